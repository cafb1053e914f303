//! What an image declares about itself, in the terms of the language: it holds where the component says nothing.

use std::time::Duration;

use containust_image::model::Declared;
use containust_lang::model::{Healthcheck, Probe};
use nix::sys::signal::Signal;

/// As docker takes them where an image does not say.
const INTERVAL: Duration = Duration::from_secs(30);
const TIMEOUT: Duration = Duration::from_secs(30);
const RETRIES: u32 = 3;
/// `SIGRTMIN` and `SIGRTMAX` of glibc and musl, which images that are built around systemd count from.
const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

/// The number of the signal that asks its program to end.
pub(crate) fn stop_signal(declared: &Declared) -> Result<Option<i32>, String> {
    let Some(text) = &declared.stop_signal else { return Ok(None) };
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let realtime = |name: &str| match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
        (Some(""), _) => Some(RTMIN),
        (Some(more), _) => more.strip_prefix('+')?.parse::<i32>().ok()?.checked_add(RTMIN),
        (_, Some("")) => Some(RTMAX),
        (_, Some(less)) => RTMAX.checked_sub(less.strip_prefix('-')?.parse().ok()?),
        _ => None,
    };
    let number = name.parse().ok().or_else(|| realtime(name));
    let number = number.or_else(|| format!("SIG{name}").parse::<Signal>().ok().map(|signal| signal as i32));
    match number {
        Some(number @ 1..=RTMAX) => Ok(Some(number)),
        _ => Err(format!(
            "take over the stop signal of its image: `{}` is none; add `stop {{ signal = \"SIGTERM\" }}`",
            text.escape_debug()
        )),
    }
}

/// How it is seen whether its program works.
pub(crate) fn healthcheck(declared: &Declared) -> Result<Option<Healthcheck>, String> {
    let Some(check) = &declared.healthcheck else { return Ok(None) };
    let command = match check.test.split_first() {
        None => return Ok(None),
        Some((kind, [])) if kind == "NONE" => return Ok(None),
        Some((kind, words @ [_, ..])) if kind == "CMD" => words.to_vec(),
        Some((kind, [text])) if kind == "CMD-SHELL" => ["/bin/sh", "-c", text].map(str::to_owned).to_vec(),
        Some((kind, _)) => {
            return Err(format!(
                "take over the health check of its image: `{}` is no kind of one; add one of its own or \
                 `healthcheck = \"none\"`",
                kind.escape_debug()
            ));
        }
    };
    let time = |nanoseconds: Option<u64>, usual| nanoseconds.map_or(usual, Duration::from_nanos);
    Ok(Some(Healthcheck {
        probe: Probe::Command(command),
        interval: time(check.interval, INTERVAL),
        timeout: time(check.timeout, TIMEOUT),
        retries: check.retries.unwrap_or(RETRIES),
        start_period: time(check.start_period, Duration::ZERO),
    }))
}

/// The paths that its containers should be able to write and keep.
pub(crate) fn volumes(declared: &Declared) -> Result<Vec<String>, String> {
    let path = |text: &String| {
        let parts: Vec<&str> = text.split('/').filter(|part| !part.is_empty()).collect();
        let is_plain = text.starts_with('/') && !parts.is_empty();
        match is_plain && parts.iter().all(|part| !matches!(*part, "." | "..") && !part.contains('\0')) {
            true => Ok(format!("/{}", parts.join("/"))),
            false => Err(format!(
                "take over the volume of its image: `{}` is no plain path below /; make the image anew",
                text.escape_debug()
            )),
        }
    };
    let mut paths: Vec<String> = declared.volumes.iter().map(path).collect::<Result<_, _>>()?;
    paths.sort();
    paths.dedup();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals() {
        let signal = |text: &str| stop_signal(&Declared { stop_signal: Some(text.into()), ..Declared::default() });
        assert_eq!(stop_signal(&Declared::default()), Ok(None));
        for (text, number) in [
            ("SIGQUIT", 3),
            ("quit", 3),
            ("TERM", 15),
            ("9", 9),
            ("SIGRTMIN+3", 37),
            ("SIGRTMIN", 34),
            ("RTMAX-1", 63),
            ("SIGWINCH", 28),
        ] {
            assert_eq!(signal(text), Ok(Some(number)), "{text}");
        }
        for bad in ["", "0", "65", "-1", "SIG", "SIGNONE", "SIGRTMIN+99", "RTMAX+1", "SIGRTMIN+2147483647", "15x"] {
            assert!(signal(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn paths_of_volumes() {
        let get = |paths: &[&str]| {
            volumes(&Declared { volumes: paths.iter().map(ToString::to_string).collect(), ..Declared::default() })
        };
        assert_eq!(get(&["/var//lib/db/", "/data", "/var/lib/db"]).unwrap(), ["/data", "/var/lib/db"]);
        for bad in ["", "/", "data", "/a/../b", "/a/.", "/a\0"] {
            assert!(get(&[bad]).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn health_checks() {
        let check = |test: &[&str]| {
            let test = test.iter().map(ToString::to_string).collect();
            let check =
                containust_image::model::Healthcheck { test, interval: Some(1_500_000_000), ..Default::default() };
            healthcheck(&Declared { healthcheck: Some(check), ..Declared::default() })
        };
        let probe = |test| check(test).unwrap().map(|check| (check.probe, check.interval, check.timeout));
        let command = |words: &[&str]| {
            let words = words.iter().map(ToString::to_string).collect();
            Some((Probe::Command(words), Duration::from_millis(1500), TIMEOUT))
        };
        assert_eq!(healthcheck(&Declared::default()), Ok(None));
        assert_eq!((probe(&[]), probe(&["NONE"])), (None, None));
        assert_eq!(probe(&["CMD", "/ok", "-v"]), command(&["/ok", "-v"]));
        assert_eq!(probe(&["CMD-SHELL", "a | b"]), command(&["/bin/sh", "-c", "a | b"]));
        for bad in [&["CMD"][..], &["CMD-SHELL"], &["/ok"], &["NONE", "x"], &["CMD-SHELL", "a", "b"]] {
            assert!(check(bad).is_err(), "{bad:?}");
        }
    }
}
