//! As whom registries are asked: what docker, podman and skopeo have stored, in their files or with their helpers
//! (containers-auth.json(5), and docker's `config.json`).

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use containust_image::Error;
use containust_image::registry::Credentials;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::host::launch;
use crate::project::read_bounded;

/// How docker calls its own registry in its files.
const DOCKER: &str = "https://index.docker.io/v1/";
/// As a user's name: what follows is an identity token.
const TOKEN: &str = "<token>";

/// One of the files. What else they hold is nobody's business here.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
    creds_store: Option<String>,
    #[serde(default)]
    cred_helpers: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
struct Entry {
    auth: Option<String>,
    identitytoken: Option<String>,
}

/// The files, in the order in which podman and skopeo look into them.
fn files() -> Vec<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    if let Some(file) = variable("REGISTRY_AUTH_FILE") {
        return vec![file];
    }
    let home = std::env::home_dir();
    let config = variable("XDG_CONFIG_HOME").or_else(|| home.as_ref().map(|home| home.join(".config")));
    let docker = variable("DOCKER_CONFIG").or_else(|| home.as_ref().map(|home| home.join(".docker")));
    let of = |folder: Option<PathBuf>, file: &str| folder.map(|folder| folder.join(file));
    let places = [
        of(variable("XDG_RUNTIME_DIR"), "containers/auth.json"),
        of(config, "containers/auth.json"),
        of(docker, "config.json"),
    ];
    places.into_iter().flatten().collect()
}

/// What is stored for a registry, if anything is. Why something could not be had is no error here, because many images are for everybody:
/// it goes to `problems`.
pub(super) fn find(host: &str, problems: &mut Vec<String>) -> Option<Credentials> {
    files().into_iter().find_map(|path| match read(&path) {
        Ok(file) => of(&file?, host, problems),
        Err(problem) => {
            problems.push(format!("mend {}: {problem}", path.display()));
            None
        }
    })
}

fn read(path: &Path) -> Result<Option<File>, String> {
    match read_bounded(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| error.to_string()),
        Err(crate::Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(crate::Error::Io { source, .. }) => Err(source.to_string()),
        Err(error) => Err(error.to_string()),
    }
}

/// Whether a key of a file means this host.
fn is_for(key: &str, host: &str) -> bool {
    let plain = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let known = plain.split('/').next().unwrap_or_default();
    known == host || host == "docker.io" && ["index.docker.io", "registry-1.docker.io"].contains(&known)
}

fn of(file: &File, host: &str, problems: &mut Vec<String>) -> Option<Credentials> {
    if let Some(helper) = file.helper(host)
        && let Some(found) = ask(&helper, host, problems)
    {
        return Some(found);
    }
    // A key with a path is podman's, for a part of a registry; one without it is for all.
    let mut entries: Vec<(&String, &Entry)> = file.auths.iter().filter(|(key, _)| is_for(key, host)).collect();
    entries.sort_by_key(|(key, _)| key.len());
    entries.into_iter().find_map(|(key, entry)| {
        if let Some(token) = entry.identitytoken.as_ref().filter(|token| !token.is_empty()) {
            return Some(Credentials::Token(token.clone()));
        }
        let auth = entry.auth.as_ref().filter(|auth| !auth.is_empty())?;
        let decoded = STANDARD.decode(auth.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let parts = decoded.as_ref().and_then(|text| text.trim_end_matches('\0').split_once(':'));
        match parts {
            Some((user, password)) => Some(Credentials::Password { user: user.into(), password: password.into() }),
            None => {
                problems.push(format!(
                    "what is stored for {} is not a name and a password; log in again",
                    key.escape_debug()
                ));
                None
            }
        }
    })
}

/// Asks a helper, as docker does: the server on its standard input, JSON on its standard output.
fn ask(helper: &str, host: &str, problems: &mut Vec<String>) -> Option<Credentials> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Answer {
        username: String,
        secret: String,
    }
    let program = program(helper);
    let is_name = helper.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    if !is_name || which::which(&program).is_err() {
        problems.push(format!("install {}, which the file of credentials names for {host}", program.escape_debug()));
        return None;
    }
    let mut command = Command::new(&program);
    command.arg("get").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let output = launch::spawn(command).and_then(|mut child| {
        if let Some(mut input) = child.stdin.take() {
            // One that does not want to know says so.
            input.write_all(server(host).as_bytes()).ok();
        }
        child.wait_with_output()
    });
    // What it says on its standard output, where it fails, is for people, such as that it has nothing for this server.
    let output = output.ok().filter(|output| output.status.success())?;
    match serde_json::from_slice::<Answer>(&output.stdout) {
        Ok(Answer { username, secret }) if username == TOKEN => Some(Credentials::Token(secret)),
        Ok(Answer { username, secret }) => Some(Credentials::Password { user: username, password: secret }),
        Err(_) => {
            problems.push(format!("{program} answers otherwise than it should; log in again"));
            None
        }
    }
}

/// Stores what a registry lets in: with the helper that docker's file names for it, or else where podman and skopeo look, too. Gives the
/// place, for people.
pub(super) fn store(host: &str, user: &str, password: &str) -> Result<String, Error> {
    let places = files();
    let helper = places.iter().find_map(|path| read(path).ok().flatten()?.helper(host));
    if let Some(helper) = helper {
        let entry = json!({ "ServerURL": server(host), "Username": user, "Secret": password });
        return tell(&helper, "store", &entry.to_string()).map(|()| program(&helper));
    }
    // Where there is an entry already, or the file that outlives the session.
    let has = |path: &&PathBuf| {
        let file = read(path).ok().flatten();
        file.is_some_and(|file| file.auths.keys().any(|key| is_for(key, host)))
    };
    let session = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let lasts = |path: &&PathBuf| session.as_ref().is_none_or(|session| !path.starts_with(session));
    let place = places.iter().find(has).or_else(|| places.iter().find(lasts)).or(places.first());
    let Some(path) = place else {
        return Err(not_kept("store credentials: there is no home to keep them in".to_owned(), "set HOME"));
    };
    change(path, |auths| {
        auths.retain(|key, _| !is_for(key, host));
        auths.insert(server(host).to_owned(), json!({ "auth": STANDARD.encode(format!("{user}:{password}")) }));
    })?;
    Ok(path.display().to_string())
}

/// Removes what is stored for a registry, wherever it is. Gives the places.
pub(super) fn erase(host: &str) -> Result<Vec<String>, Error> {
    let mut places = Vec::new();
    for path in files() {
        let unreadable = |problem: String| not_kept(format!("read {}: {problem}", path.display()), "mend that file");
        let Some(file) = read(&path).map_err(unreadable)? else { continue };
        if let Some(helper) = file.helper(host)
            && ask(&helper, host, &mut Vec::new()).is_some()
        {
            tell(&helper, "erase", server(host))?;
            places.push(program(&helper));
        }
        let is_there = file.auths.keys().any(|key| is_for(key, host));
        if is_there {
            change(&path, |auths| auths.retain(|key, _| !is_for(key, host)))?;
            places.push(path.display().to_string());
        }
    }
    Ok(places)
}

fn not_kept(text: String, help: &str) -> Error {
    Error::Registry { code: "I058", text, help: Some(help.to_owned()) }
}

/// How a registry is called in the files.
fn server(host: &str) -> &str {
    if host == "docker.io" { DOCKER } else { host }
}

fn program(helper: &str) -> String {
    format!("docker-credential-{helper}")
}

/// Changes the part of a file that is about credentials, and nothing else in it. It is for its user alone.
fn change(path: &Path, change: impl FnOnce(&mut Map<String, Value>)) -> Result<(), Error> {
    let failed = |problem: &dyn std::fmt::Display| {
        not_kept(format!("write {}: {problem}", path.display()), "mend that, and try again")
    };
    let mut whole: Value = match read_bounded(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| failed(&e))?,
        Err(crate::Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => json!({}),
        Err(error) => return Err(failed(&error)),
    };
    let file = whole.as_object_mut().ok_or_else(|| failed(&"it is no object"))?;
    let auths = file.entry("auths").or_insert_with(|| json!({}));
    change(auths.as_object_mut().ok_or_else(|| failed(&"its `auths` is no object"))?);
    // A link stays one.
    let place = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let folder = place.parent().unwrap_or(Path::new("/"));
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(|e| failed(&e))?;
    let mut new = tempfile::Builder::new().prefix(".new.").tempfile_in(folder).map_err(|e| failed(&e))?;
    serde_json::to_writer_pretty(new.as_file_mut(), &whole).map_err(|e| failed(&e))?;
    new.as_file().sync_all().map_err(|e| failed(&e))?;
    new.persist(&place).map_err(|e| failed(&e.error))?;
    Ok(())
}

/// Has a helper keep or forget something.
fn tell(helper: &str, verb: &str, words: &str) -> Result<(), Error> {
    let program = program(helper);
    let failed =
        |problem: String| not_kept(format!("{program} {verb}: {problem}"), "see to it, or take it out of config.json");
    let mut command = Command::new(&program);
    command.arg(verb).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = launch::spawn(command).map_err(|e| failed(e.to_string()))?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(words.as_bytes()).ok();
    }
    let output = child.wait_with_output().map_err(|e| failed(e.to_string()))?;
    match output.status.success() {
        true => Ok(()),
        // Helpers say on their standard output what is wrong.
        false => Err(failed(String::from_utf8_lossy(&output.stdout).trim().escape_debug().to_string())),
    }
}

impl File {
    fn helper(&self, host: &str) -> Option<String> {
        let own = self.cred_helpers.iter().find(|(key, _)| is_for(key, host)).map(|(_, helper)| helper);
        own.or(self.creds_store.as_ref()).filter(|helper| !helper.is_empty()).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(json: &str, host: &str) -> (Option<Credentials>, Vec<String>) {
        let mut problems = Vec::new();
        let found = of(&serde_json::from_str(json).unwrap(), host, &mut problems);
        (found, problems)
    }

    fn password(user: &str, password: &str) -> Option<Credentials> {
        Some(Credentials::Password { user: user.into(), password: password.into() })
    }

    #[test]
    fn keys_are_what_programs_write() {
        let auth = STANDARD.encode("me:a:b");
        for (key, host) in [
            ("localhost:5000", "localhost:5000"),
            ("https://a.example", "a.example"),
            ("https://a.example/v1/", "a.example"),
            ("a.example/team", "a.example"),
            ("https://index.docker.io/v1/", "docker.io"),
            ("docker.io", "docker.io"),
        ] {
            let (credentials, problems) = found(&format!(r#"{{"auths":{{"{key}":{{"auth":"{auth}"}}}}}}"#), host);
            assert_eq!((credentials, problems), (password("me", "a:b"), vec![]), "{key}");
        }
        let other = format!(r#"{{"auths":{{"b.example":{{"auth":"{auth}"}}}},"HttpHeaders":{{}}}}"#);
        assert_eq!(found(&other, "a.example").0, None);
        // The whole registry's first.
        let two = format!(
            r#"{{"auths":{{"a.example/x":{{"auth":"{}"}},"a.example":{{"auth":"{auth}"}}}}}}"#,
            STANDARD.encode("x:x")
        );
        assert_eq!(found(&two, "a.example").0, password("me", "a:b"));
    }

    #[test]
    fn what_is_broken_is_told_and_does_no_harm() {
        let (credentials, problems) = found(r#"{"auths":{"a.example":{"auth":"%%"}}}"#, "a.example");
        assert!(credentials.is_none() && problems[0].contains("log in again"), "{problems:?}");
        let (credentials, problems) = found(r#"{"credsStore":"no-such-helper"}"#, "a.example");
        assert!(credentials.is_none() && problems[0].contains("docker-credential-no-such-helper"), "{problems:?}");
        let (credentials, problems) = found(r#"{"credHelpers":{"a.example":"../../bin/sh"}}"#, "a.example");
        assert!(credentials.is_none() && !problems.is_empty());
        let token = found(r#"{"auths":{"a.example":{"identitytoken":"t"}}}"#, "a.example").0;
        assert_eq!(token, Some(Credentials::Token("t".into())));
        assert_eq!(format!("{:?}", password("u", "secret")), "Some(Password)");
    }
}
