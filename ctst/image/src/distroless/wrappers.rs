//! Programs that run the command in their arguments.

use std::ops::Range;

/// How the arguments of one are read.
struct Wrapper {
    name: &'static str,
    /// Letters of options whose value is the rest of the word, or else the next one.
    letters: &'static str,
    /// Long options whose value is the next word, where none stands behind a `=`.
    long: &'static [&'static str],
    /// Words of its own between its options and the command.
    own: usize,
}

const fn wrapper(name: &'static str, letters: &'static str, long: &'static [&'static str], own: usize) -> Wrapper {
    Wrapper { name, letters, long, own }
}

/// As their man pages have them: coreutils, util-linux, findutils and each one's own; `builtin`, `command` and `exec`: bash(1).
const WRAPPERS: [Wrapper; 21] = [
    wrapper("builtin", "", &[], 0),
    wrapper("catatonit", "", &[], 0),
    wrapper("chroot", "", &["groups", "userspec"], 1),
    wrapper("command", "", &[], 0),
    wrapper("dumb-init", "r", &["rewrite"], 0),
    wrapper("env", "aCSu", &["argv0", "chdir", "split-string", "unset"], 0),
    wrapper("exec", "a", &[], 0),
    wrapper("flock", "Ew", &["conflict-exit-code", "timeout", "wait"], 1),
    wrapper("gosu", "", &[], 1),
    wrapper("ionice", "cnPpu", &["class", "classdata", "pgid", "pid", "uid"], 0),
    wrapper("nice", "n", &["adjustment"], 0),
    wrapper("nohup", "", &[], 0),
    wrapper(
        "setpriv",
        "",
        &[
            "ambient-caps",
            "apparmor-profile",
            "bounding-set",
            "egid",
            "euid",
            "groups",
            "inh-caps",
            "landlock-access",
            "landlock-rule",
            "pdeathsig",
            "ptracer",
            "regid",
            "reuid",
            "rgid",
            "ruid",
            "seccomp-filter",
            "securebits",
            "selinux-label",
        ],
        0,
    ),
    wrapper("setsid", "", &[], 0),
    wrapper("setuidgid", "", &[], 1),
    wrapper("stdbuf", "eio", &["error", "input", "output"], 0),
    wrapper("su-exec", "", &[], 1),
    wrapper("time", "fo", &["format", "output"], 0),
    wrapper("timeout", "ks", &["kill-after", "signal"], 1),
    wrapper("tini", "ep", &[], 0),
    wrapper(
        "xargs",
        "adEILnPs",
        &["arg-file", "delimiter", "max-args", "max-chars", "max-procs", "process-slot-var"],
        0,
    ),
];
const FIND: [&str; 4] = ["-exec", "-execdir", "-ok", "-okdir"];
const SU: [&str; 3] = ["-c", "--command", "--session-command"];

/// What the arguments of a program have run.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Runs {
    /// These arguments.
    Command(Range<usize>),
    /// A shell what stands in this one.
    Text(usize),
}

/// Whether a program of this name runs what its arguments say.
pub(super) fn is_wrapper(name: &str) -> bool {
    matches!(name, "find" | "su") || WRAPPERS.iter().any(|wrapper| wrapper.name == name)
}

/// What a program of this name runs. `literal`: an argument, if it is known.
pub(super) fn runs<T>(name: &str, arguments: &[T], literal: impl Fn(&T) -> Option<&str>) -> Vec<Runs> {
    let words: Vec<Option<&str>> = arguments.iter().map(literal).collect();
    match name {
        "find" => found(&words),
        "su" => {
            let at = words.iter().position(|word| word.is_some_and(|word| SU.contains(&word)));
            at.map(|at| at + 1).filter(|at| *at < words.len()).map(Runs::Text).into_iter().collect()
        }
        _ => match WRAPPERS.iter().find(|wrapper| wrapper.name == name) {
            Some(wrapper) => wrapper.runs(&words).into_iter().collect(),
            None => Vec::new(),
        },
    }
}

/// `find … -exec COMMAND {} ;`: each of them, to the `;` or to the `+` behind a `{}`.
fn found(words: &[Option<&str>]) -> Vec<Runs> {
    let mut runs = Vec::new();
    let mut at = 0;
    while at < words.len() {
        at += 1;
        if !words[at - 1].is_some_and(|word| FIND.contains(&word)) {
            continue;
        }
        let begin = at;
        while at < words.len() && words[at] != Some(";") && !(words[at] == Some("+") && words[at - 1] == Some("{}")) {
            at += 1;
        }
        runs.push(Runs::Command(begin..at));
    }
    runs
}

impl Wrapper {
    fn runs(&self, words: &[Option<&str>]) -> Option<Runs> {
        let mut at = 0;
        while let Some(Some(word)) = words.get(at) {
            if *word == "--" {
                at += 1;
                break;
            }
            if self.name == "env" && matches!(*word, "-S" | "--split-string") {
                return (at + 1 < words.len()).then_some(Runs::Text(at + 1));
            }
            let has_value = match word.strip_prefix("--") {
                Some(long) => self.long.contains(&long),
                None if word.starts_with('-') => {
                    word.find(|c| self.letters.contains(c)).is_some_and(|letter| letter + 1 == word.len())
                }
                None => break,
            };
            at += 1 + usize::from(has_value);
        }
        if self.name == "env" {
            at += words.iter().skip(at).take_while(|word| word.is_some_and(|word| word.contains('='))).count();
        }
        at += self.own;
        if self.name == "flock" && matches!(words.get(at), Some(Some("-c" | "--command"))) {
            return (at + 1 < words.len()).then_some(Runs::Text(at + 1));
        }
        (at < words.len()).then_some(Runs::Command(at..words.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_options_are_no_commands() {
        for (line, run) in [
            ("exec -a x date", "date"),
            ("exec date -u", "date -u"),
            ("timeout -k 5 10 id", "id"),
            ("timeout --kill-after 5 -s KILL 10 id", "id"),
            ("timeout --kill-after=5 -v 10 id", "id"),
            ("stdbuf -o L grep x", "grep x"),
            ("stdbuf -oL grep x", "grep x"),
            ("xargs -I {} rm {}", "rm {}"),
            ("xargs -0I{} rm {}", "rm {}"),
            ("xargs -r0 -n 1 rm", "rm"),
            ("env -u FOO seq 3", "seq 3"),
            ("env -i A=b seq 3", "seq 3"),
            ("setpriv --reuid root --clear-groups chmod 700 /tmp", "chmod 700 /tmp"),
            ("setpriv --reuid=root chmod 700 /tmp", "chmod 700 /tmp"),
            ("tini -p SIGTERM -- dd", "dd"),
            ("tini -g -- dd", "dd"),
            ("nice -5 id", "id"),
            ("nice -n 5 id", "id"),
            ("flock -w 3 /lock id", "id"),
            ("chroot --userspec 1:1 /root id", "id"),
            ("find / -name x -exec stat {} ;", "stat {}"),
            ("find / -execdir stat + {} + -print", "stat + {}"),
        ] {
            let words: Vec<&str> = line.split(' ').collect();
            let (name, arguments) = words.split_first().unwrap();
            let made = runs(name, arguments, |word| Some(*word));
            let [Runs::Command(range)] = made.as_slice() else { panic!("{line}: {made:?}") };
            assert_eq!(arguments[range.clone()].join(" "), run, "{line}");
        }
        let runs = |line: &[&str]| runs(line[0], &line[1..], |word| Some(*word));
        assert_eq!(
            runs(&["find", "/", "-exec", "a", ";", "-ok", "b", ";"]),
            [Runs::Command(2..3), Runs::Command(5..6)]
        );
        assert_eq!(runs(&["su", "root", "-c", "head /etc/passwd"]), [Runs::Text(2)]);
        assert_eq!(runs(&["flock", "/lock", "-c", "id"]), [Runs::Text(2)]);
        assert_eq!(runs(&["timeout", "5"]), []);
        assert_eq!(runs(&["ls", "-c", "id"]), []);
    }
}
