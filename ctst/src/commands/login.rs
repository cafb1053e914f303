//! `ctst login` and `ctst logout`

use std::io::{self, BufRead, IsTerminal, Read};

use crate::args::{Login, Logout};
use crate::failure::{Failure, Outcome};
use crate::output::talk;
use crate::terminal;

/// Longer than any token.
const MAX_PASSWORD: u64 = 64 << 10;

pub(crate) fn run(args: &Login) -> Outcome {
    let host = host(&args.registry)?;
    let user = match &args.username {
        Some(user) => user.clone(),
        None => ask("Name: ", || {
            let mut line = String::new();
            io::stdin().lock().take(MAX_PASSWORD).read_line(&mut line).map(|_| line)
        })?,
    };
    let password = match args.password_stdin {
        true => {
            let mut text = String::new();
            let read = io::stdin().lock().take(MAX_PASSWORD).read_to_string(&mut text);
            read.map_err(|error| Failure::io("read the password", error))?;
            text
        }
        false => ask("Password: ", terminal::read_hidden)?,
    };
    let (user, password) = (user.trim(), password.trim_end_matches(['\r', '\n']));
    if user.is_empty() || user.contains(':') || password.is_empty() {
        let problem = format!("log in to {host}: a name without a colon, and a password, are needed");
        return Err(Failure::new(problem, "ctst login REGISTRY -u NAME --password-stdin < FILE".to_owned()));
    }
    let place = containust_sdk::login(host, user, password)?;
    talk!("logged in to {host} as {}, which {} keeps", user.escape_debug(), place.escape_debug());
    Ok(0)
}

pub(crate) fn logout(args: &Logout) -> Outcome {
    let host = host(&args.registry)?;
    let places = containust_sdk::logout(host)?;
    match places.is_empty() {
        true => talk!("nothing is stored for {host}"),
        false => talk!("logged out of {host}: removed from {}", places.join(", ").escape_debug()),
    }
    Ok(0)
}

/// Without what people copy along from a browser.
fn host(text: &str) -> Result<&str, Failure> {
    let host = text.strip_prefix("https://").unwrap_or(text).trim_end_matches('/');
    let good = !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-:".contains(&byte));
    good.then_some(host).ok_or_else(|| {
        let problem = format!("log in to {}: that is no registry", text.escape_debug());
        Failure::new(problem, "write its host, with a port if need be, such as registry.example:5000".to_owned())
    })
}

fn ask(what: &str, answer: impl FnOnce() -> io::Result<String>) -> Result<String, Failure> {
    if !io::stdin().is_terminal() {
        let problem = format!("ask for {}: standard input is no terminal", what.trim_end_matches(": ").to_lowercase());
        return Err(Failure::new(problem, "ctst login REGISTRY -u NAME --password-stdin < FILE".to_owned()));
    }
    talk(what);
    answer().map_err(|error| Failure::io("read from the terminal", error))
}
