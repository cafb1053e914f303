//! Secrets: looked up by the client when a run begins, kept in the memory of the supervisor, and nowhere else. No value is
//! in a record, a plan, a log, an error message or an argument of a process.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use containust_lang::model::{Component, ConfigFile, Part, Secret, SecretFile, SecretSource, SecretVariable};
use rustix::fs::OFlags;
use rustix::process::{Resource, Rlimit, getrlimit, getuid, setrlimit};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::error::{During, Error, Result};
use crate::host::ways;
use crate::project::{Project, found};

/// The largest value. What a container is made from has to fit one message of this size anyway.
const MAX_SECRET: u64 = 64 << 10;
/// Variables that hold secrets begin with this.
pub(crate) const PREFIX: &str = "CONTAINUST_SECRET_";

/// Values of secrets by name. What is dropped is overwritten before.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Values(BTreeMap<String, Zeroizing<Vec<u8>>>);

impl fmt::Debug for Values {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.keys()).finish()
    }
}

impl Values {
    /// What is put together from these parts. A secret that is not here stands for nothing: [`Values::missing`] is asked
    /// before anything is started.
    pub(crate) fn render(&self, parts: &[Part]) -> Zeroizing<Vec<u8>> {
        let parts = parts.iter().map(|part| match part {
            Part::Text(text) => text.as_bytes(),
            Part::Secret(name) => self.0.get(name).map_or(&b""[..], |value| value),
        });
        Zeroizing::new(parts.collect::<Vec<_>>().concat())
    }

    pub(crate) fn get(&self, name: &str) -> &[u8] {
        self.0.get(name).map_or(&[], |value| value)
    }

    /// Those of `names` that are not here.
    pub(crate) fn missing<'a>(&self, names: BTreeSet<&'a str>) -> Vec<&'a str> {
        names.into_iter().filter(|name| !self.0.contains_key(*name)).collect()
    }

    /// Only the values of these names.
    pub(crate) fn only(&self, names: &BTreeSet<&str>) -> Self {
        let chosen = self.0.iter().filter(|(name, _)| names.contains(name.as_str()));
        Self(chosen.map(|(name, value)| (name.clone(), value.clone())).collect())
    }
}

/// The names of the secrets that a component refers to.
pub(crate) fn names<'a>(
    variables: &'a [SecretVariable],
    files: &'a [SecretFile],
    configs: &'a [ConfigFile],
) -> BTreeSet<&'a str> {
    let parts = variables.iter().map(|variable| &variable.parts).chain(configs.iter().map(|config| &config.content));
    let named = parts.flatten().filter_map(|part| match part {
        Part::Secret(name) => Some(name.as_str()),
        Part::Text(_) => None,
    });
    named.chain(files.iter().map(|file| file.secret.as_str())).collect()
}

/// Where a secret was found.
enum Place {
    /// A variable of the environment.
    Variable(String),
    File(PathBuf, std::fs::File),
    Command(String),
}

/// Keeps what is in this process's memory out of core files, for all that follows.
pub(crate) fn no_core() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Core);
    // With 0 the kernel still feeds a program that core_pattern names; 1 stops that, and is too little for a file.
    // The hard limit is what containers may have for themselves.
    setrlimit(Resource::Core, Rlimit { current: Some(maximum.map_or(1, |hard| hard.min(1))), maximum }).ok();
}

/// Looks up what these components refer to. Commands run here.
///
/// # Errors
/// [`Error::Secrets`], which names all that cannot be had.
pub(crate) fn look_up(project: &Project, components: &[&Component], declared: &[Secret]) -> Result<Values> {
    no_core();
    let mut values = Values::default();
    let mut problems = Vec::new();
    for (name, place) in places(project, components, declared) {
        match place.and_then(|place| read(project, components, place)) {
            Ok(value) => drop(values.0.insert(name, value)),
            Err(problem) => problems.push((name, problem)),
        }
    }
    refuse(problems)?;
    for component in components {
        check_variables(component, &values)?;
    }
    Ok(values)
}

/// Whether all of these can be found. Reads no value and runs no command.
///
/// # Errors
/// [`Error::Secrets`].
pub(crate) fn check(project: &Project, components: &[&Component], declared: &[Secret]) -> Result<()> {
    let found = places(project, components, declared).into_iter();
    refuse(found.filter_map(|(name, place)| Some((name, place.err()?))).collect())
}

/// The variables that a composition takes secrets from by name, for those who must not inherit them.
pub(crate) fn variables(declared: &[Secret]) -> Vec<&str> {
    declared
        .iter()
        .filter_map(|secret| match &secret.source {
            Some(SecretSource::Env(name)) => Some(name.as_str()),
            _ => None,
        })
        .collect()
}

fn refuse(problems: Vec<(String, String)>) -> Result<()> {
    let absent = problems.iter().filter(|(name, problem)| *problem == nowhere(name)).map(|(name, _)| name.clone());
    let absent = absent.collect();
    if problems.is_empty() { Ok(()) } else { Err(Error::Secrets { problems, absent }) }
}

/// Where a secret of which nothing is said may be told.
fn variable(name: &str) -> String {
    format!("{PREFIX}{}", name.to_uppercase().replace('-', "_"))
}

/// What is wrong with one that is at none of the usual places.
fn nowhere(name: &str) -> String {
    let variable = variable(name);
    format!("neither {variable} nor .containust/secrets/{name} nor /run/containust/secrets/{name} is there")
}

fn places(project: &Project, components: &[&Component], declared: &[Secret]) -> Vec<(String, Result<Place, String>)> {
    let wanted: BTreeSet<&str> = components.iter().flat_map(|c| names(&c.secret_env, &c.secrets, &c.configs)).collect();
    let find = |name: &str| {
        // What the author says is where it comes from; nothing else may stand in for it.
        match declared.iter().find(|secret| secret.name == name).and_then(|secret| secret.source.as_ref()) {
            Some(SecretSource::Env(variable)) if std::env::var_os(variable).is_some() => {
                Ok(Place::Variable(variable.clone()))
            }
            Some(SecretSource::Env(variable)) => Err(format!("the variable {variable} is not set")),
            Some(SecretSource::File(path)) => {
                // Without the `./` that it is written with.
                let path: PathBuf = project.folder().join(path).components().collect();
                open(&path, false).and_then(|file| {
                    file.map(|file| Place::File(path.clone(), file))
                        .ok_or_else(|| format!("{} is not there", path.display()))
                })
            }
            Some(SecretSource::Command(command)) => Ok(Place::Command(command.clone())),
            None => usual(project, name),
        }
    };
    wanted.into_iter().map(|name| (name.to_owned(), find(name))).collect()
}

/// Of a secret of which nothing is said.
fn usual(project: &Project, name: &str) -> Result<Place, String> {
    let variable = variable(name);
    if std::env::var_os(&variable).is_some() {
        return Ok(Place::Variable(variable));
    }
    let folders = [project.state_dir().join("secrets"), PathBuf::from("/run/containust/secrets")];
    for folder in folders {
        let path = folder.join(name);
        if let Some(file) = open(&path, true)? {
            return Ok(Place::File(path, file));
        }
    }
    Err(nowhere(name))
}

/// Opens a file that nobody but the caller can have written or read; `None`: it is not there. `own`: it must be his.
fn open(path: &Path, own: bool) -> Result<Option<std::fs::File>, String> {
    // A FIFO would wait for a writer.
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY).bits().cast_signed();
    let shown = path.display();
    let file = match std::fs::File::options().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) if e.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => {
            return Err(format!("{shown} is a symbolic link, and a secret is a file"));
        }
        Err(e) => return Err(format!("open {shown}: {e}")),
    };
    let meta = file.metadata().map_err(|e| format!("inspect {shown}: {e}"))?;
    let (mode, uid) = (meta.mode() & 0o7777, getuid().as_raw());
    if !meta.is_file() {
        return Err(format!("{shown} is not a regular file"));
    }
    if meta.uid() != uid && (own || meta.uid() != 0) {
        return Err(format!("{shown} belongs to user {}, and this is user {uid}", meta.uid()));
    }
    if own && mode != 0o400 && mode != 0o600 {
        return Err(format!("{shown} has mode {mode:o}; chmod 600 {shown}"));
    }
    // A file of the author's may be shared with a group, as TLS keys are, but nobody else reads or changes it.
    if !own && mode & 0o027 != 0 {
        return Err(format!("{shown} has mode {mode:o}, and others must have no access; chmod 600 {shown}"));
    }
    if meta.len() > MAX_SECRET {
        return Err(format!("{shown} has {} bytes, and {MAX_SECRET} are the limit", meta.len()));
    }
    Ok(Some(file))
}

fn read(project: &Project, components: &[&Component], place: Place) -> Result<Zeroizing<Vec<u8>>, String> {
    match place {
        Place::Variable(name) => {
            let value = std::env::var_os(&name).ok_or_else(|| format!("the variable {name} is not set"))?;
            let value = Zeroizing::new(std::os::unix::ffi::OsStringExt::into_vec(value));
            let long = format!("the variable {name} has {} bytes, and {MAX_SECRET} are the limit", value.len());
            if value.len() as u64 > MAX_SECRET { Err(long) } else { Ok(value) }
        }
        Place::File(path, file) => {
            let whole = found(&file).map_err(|e| format!("find {}: {e}", path.display()))?;
            if path != whole {
                let writable = ways::writable(project, components.iter().copied());
                ways::check(&path, &whole, &writable).map_err(|error| error.to_string())?;
            }
            read_bounded(file, &path.display().to_string()).map(without_line_end)
        }
        Place::Command(command) => {
            let what = "its command";
            let mut child = Command::new("/bin/sh")
                .args(["-c", &command])
                .current_dir(project.folder())
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .spawn()
                .map_err(|e| format!("start {what}: {e}"))?;
            let value = match child.stdout.take() {
                Some(output) => read_bounded(output, what),
                None => Err(format!("{what} has no output")),
            };
            if value.is_err() {
                // It may go on writing for ever.
                child.kill().ok();
            }
            let status = child.wait().map_err(|e| format!("wait for {what}: {e}"))?;
            let value = value?;
            if status.success() { Ok(without_line_end(value)) } else { Err(format!("{what} failed ({status})")) }
        }
    }
}

fn read_bounded(from: impl Read, what: &str) -> Result<Zeroizing<Vec<u8>>, String> {
    // Room for all of it, so that no copy is left behind by growing.
    let mut value = Zeroizing::new(Vec::with_capacity(MAX_SECRET as usize + 1));
    from.take(MAX_SECRET + 1).read_to_end(&mut value).map_err(|e| format!("read {what}: {e}"))?;
    if value.len() as u64 > MAX_SECRET {
        return Err(format!("{what} gives more than {MAX_SECRET} bytes, which are the limit"));
    }
    Ok(value)
}

fn without_line_end(mut value: Zeroizing<Vec<u8>>) -> Zeroizing<Vec<u8>> {
    if value.last() == Some(&b'\n') {
        value.pop();
        if value.last() == Some(&b'\r') {
            value.pop();
        }
    }
    value
}

fn check_variables(component: &Component, values: &Values) -> Result<()> {
    for variable in &component.secret_env {
        if values.render(&variable.parts).contains(&0) {
            let problem = format!(
                "set {}: a secret of it holds a zero byte, which no variable can; mount it as a file (secrets)",
                variable.name
            );
            return Err(Error::Invalid { component: component.name.clone(), problem });
        }
    }
    Ok(())
}

/// Writes the configs of a container that hold no secret, where `dir` is its folder: to be mounted from there.
pub(crate) fn write_configs(dir: &Path, configs: &[ConfigFile], own: impl Fn(&Path) -> Result<()>) -> Result<()> {
    let plain: Vec<_> = configs.iter().enumerate().filter(|(_, config)| !is_in_memory(config)).collect();
    if plain.is_empty() {
        return Ok(());
    }
    let folder = dir.join("configs");
    crate::volumes::create_dir(&folder, 0o700)?;
    for (number, config) in plain {
        let path = config_path(dir, number);
        let what = || format!("write {}", path.display());
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e).during(what),
            Ok(()) | Err(_) => {}
        }
        let mut file = std::fs::File::options().write(true).create_new(true).mode(0o600).open(&path).during(what)?;
        io::Write::write_all(&mut file, &Values::default().render(&config.content)).during(what)?;
        own(&path)?;
        let mode = std::os::unix::fs::PermissionsExt::from_mode(config.mode & 0o777);
        file.set_permissions(mode).during(what)?;
    }
    Ok(())
}

/// Whether a config has to be kept in memory.
pub(crate) fn is_in_memory(config: &ConfigFile) -> bool {
    // Only who is root inside can give away a file that is on a disk.
    config.owner.is_some() || config.content.iter().any(|part| matches!(part, Part::Secret(_)))
}

/// Where the config with this number is, in the folder of its container.
pub(crate) fn config_path(dir: &Path, number: usize) -> PathBuf {
    dir.join("configs").join(number.to_string())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use containust_lang::model::Image;

    use super::*;
    use crate::builder::ContainerBuilder;

    fn project() -> (tempfile::TempDir, Project) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("stack.ctst"), "").unwrap();
        std::fs::create_dir_all(dir.path().join(".containust/secrets")).unwrap();
        let project = Project::locate(Some(&dir.path().join("stack.ctst"))).unwrap();
        (dir, project)
    }

    fn put(project: &Project, name: &str, content: &[u8], mode: u32) -> PathBuf {
        let path = project.state_dir().join("secrets").join(name);
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        path
    }

    fn component(names: &[&str]) -> Component {
        let image = Image::File { path: "/srv".into(), sha256: None };
        let mut component = ContainerBuilder::new("web", image).build().unwrap();
        let part = |name: &&str| Part::Secret((*name).to_owned());
        component.secret_env =
            names.iter().map(|name| SecretVariable { name: "X".into(), parts: vec![part(name)] }).collect();
        component
    }

    fn declared(name: &str, source: SecretSource) -> Vec<Secret> {
        vec![Secret { name: name.into(), source: Some(source) }]
    }

    fn refused(project: &Project, name: &str, declared: &[Secret]) -> String {
        let component = component(&[name]);
        let error = look_up(project, &[&component], declared).unwrap_err();
        assert!(matches!(error, Error::Secrets { .. }), "{error:?}");
        error.to_string()
    }

    #[test]
    fn reads_what_only_the_caller_can() {
        let (_dir, project) = project();
        put(&project, "good", b"value\r\n", 0o400);
        put(&project, "lines", b"a\n\n", 0o600);
        let values = look_up(&project, &[&component(&["good", "lines"])], &[]).unwrap();
        assert_eq!((values.get("good"), values.get("lines")), (&b"value"[..], &b"a\n"[..]));
        assert_eq!(format!("{values:?}"), r#"["good", "lines"]"#);
        assert_eq!(values.missing(BTreeSet::from(["good", "none"])), ["none"]);
        assert!(check(&project, &[&component(&["good"])], &[]).is_ok());

        put(&project, "open", b"hunter2", 0o644);
        put(&project, "large", &vec![b'x'; 65537], 0o600);
        let link = project.state_dir().join("secrets/link");
        std::os::unix::fs::symlink("good", &link).unwrap();
        std::fs::create_dir(project.state_dir().join("secrets/folder")).unwrap();
        let fifo = project.state_dir().join("secrets/fifo");
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RWXU).unwrap();
        for (name, why) in [
            ("open", "mode 644"),
            ("large", "65537 bytes"),
            ("link", "symbolic link"),
            ("folder", "not a regular file"),
            ("fifo", "not a regular file"),
            ("none", "CONTAINUST_SECRET_NONE"),
        ] {
            let text = refused(&project, name, &[]);
            assert!(text.contains(why) && text.contains(name) && !text.contains("hunter2"), "{text}");
        }
        let all = look_up(&project, &[&component(&["none", "other", "good"])], &[]).unwrap_err().to_string();
        assert!(all.contains("none: ") && all.contains("other: ") && !all.contains("good"), "{all}");
    }

    #[test]
    fn what_the_author_says_counts() {
        let (_dir, project) = project();
        put(&project, "x", b"of the folder", 0o600);
        let get = |source| {
            let values = look_up(&project, &[&component(&["x"])], &declared("x", source)).unwrap();
            String::from_utf8(values.get("x").to_vec()).unwrap()
        };
        assert_eq!(get(SecretSource::Command("printf 'a\\nb\\n'".into())), "a\nb");
        assert_eq!(get(SecretSource::Env("PATH".into())), std::env::var("PATH").unwrap());
        let path = project.folder().join("file");
        std::fs::write(&path, "of the file\n").unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
        assert_eq!(get(SecretSource::File("file".into())), "of the file");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
        for (source, why) in [
            (SecretSource::File("file".into()), "mode 644"),
            (SecretSource::File("none".into()), "not there"),
            (SecretSource::Env("CTST_NO_SUCH".into()), "CTST_NO_SUCH is not set"),
            (SecretSource::Command("exit 3".into()), "exit status: 3"),
            (SecretSource::Command("yes".into()), "more than 65536"),
        ] {
            let text = refused(&project, "x", &declared("x", source.clone()));
            assert!(text.contains(why), "{text}");
            let checked = check(&project, &[&component(&["x"])], &declared("x", source.clone()));
            assert_eq!(checked.is_ok(), matches!(source, SecretSource::Command(_)), "a plan runs nothing");
        }
        let zero =
            look_up(&project, &[&component(&["x"])], &declared("x", SecretSource::Command("printf '\\0'".into())));
        assert!(zero.unwrap_err().to_string().contains("zero byte"));
    }
}
