//! Components made by a program instead of a `.ctst` file.

use std::time::Duration;

use containust_lang::model::{
    Component, Dependency, Healthcheck, Image, Limits, Network, Part, Probe, Restart, Tmpfs, Volume, When,
};
use containust_shared::names;

use crate::error::{Error, Result};

/// Of all configs of a component, in bytes: they stand in its record.
const MAX_CONFIGS: usize = 2 << 20;

/// Builds a [`Component`] with the language's defaults for everything that is not said.
///
/// ```
/// use containust_lang::model::{Image, Probe, When};
/// use containust_sdk::ContainerBuilder;
///
/// let api = ContainerBuilder::new("api", Image::File { path: "./rootfs".into(), sha256: None })
///     .command(["/usr/bin/api", "--port", "8080"])
///     .env("LOG", "info")
///     .port(8080)
///     .volume("./data", "/data", true)
///     .healthcheck(Probe::Http { port: 8080, path: "/healthz".into() })
///     .after("db", When::Healthy)
///     .build()?;
/// assert!(api.readonly && api.hostname == "api");
/// # Ok::<(), containust_sdk::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct ContainerBuilder {
    component: Component,
}

impl ContainerBuilder {
    /// Starts with a name and an image.
    #[must_use]
    pub fn new(name: impl Into<String>, image: Image) -> Self {
        let name = name.into();
        Self { component: Component::new(name.clone(), names::host_name(&name), image) }
    }

    /// Arguments; replaces the image's default command.
    #[must_use]
    pub fn command<S: Into<String>>(mut self, argv: impl IntoIterator<Item = S>) -> Self {
        self.component.command = Some(argv.into_iter().map(Into::into).collect());
        self
    }

    /// Program and leading arguments; replaces the image's entrypoint.
    #[must_use]
    pub fn entrypoint<S: Into<String>>(mut self, argv: impl IntoIterator<Item = S>) -> Self {
        self.component.entrypoint = Some(argv.into_iter().map(Into::into).collect());
        self
    }

    /// Adds a variable to the environment, or replaces it.
    #[must_use]
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        let name = name.into();
        self.component.env.retain(|(n, _)| *n != name);
        self.component.env.push((name, value.into()));
        self
    }

    /// Names a port that it listens on.
    #[must_use]
    pub fn port(mut self, port: u16) -> Self {
        self.component.ports.push(port);
        self
    }

    /// Mounts a host path.
    #[must_use]
    pub fn volume(mut self, source: impl Into<String>, target: impl Into<String>, readonly: bool) -> Self {
        self.component.volumes.push(Volume { source: source.into(), target: target.into(), readonly, named: false });
        self
    }

    /// Mounts a memory file system of at most `size` bytes.
    #[must_use]
    pub fn tmpfs(mut self, target: impl Into<String>, size: Option<u64>) -> Self {
        self.component.tmpfs.push(Tmpfs { target: target.into(), size, mode: 0o1777 });
        self
    }

    /// Makes the root file system writable or not; not is the default.
    #[must_use]
    pub fn readonly(mut self, readonly: bool) -> Self {
        self.component.readonly = readonly;
        self
    }

    /// Working directory.
    #[must_use]
    pub fn workdir(mut self, path: impl Into<String>) -> Self {
        self.component.workdir = Some(path.into());
        self
    }

    /// `name`, `uid`, `name:group` or `uid:gid`.
    #[must_use]
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.component.user = Some(user.into());
        self
    }

    /// Host name inside; the component's name otherwise.
    #[must_use]
    pub fn hostname(mut self, name: impl Into<String>) -> Self {
        self.component.hostname = name.into();
        self
    }

    /// When to start it again.
    #[must_use]
    pub fn restart(mut self, policy: Restart) -> Self {
        self.component.restart = policy;
        self
    }

    /// What it may use of the host.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.component.limits = (limits != Limits::default()).then(|| Box::new(limits));
        self
    }

    /// Its network.
    #[must_use]
    pub fn network(mut self, network: Network) -> Self {
        self.component.network = network;
        self
    }

    /// A health check with the language's default times.
    #[must_use]
    pub fn healthcheck(self, probe: Probe) -> Self {
        self.healthcheck_with(Healthcheck {
            probe,
            interval: Duration::from_secs(30),
            timeout: Duration::from_secs(5),
            retries: 3,
            start_period: Duration::ZERO,
        })
    }

    /// A health check with times of your own.
    #[must_use]
    pub fn healthcheck_with(mut self, check: Healthcheck) -> Self {
        self.component.healthcheck = Some(check);
        self
    }

    /// Starts it only when `on` is up, waiting 5 minutes at most.
    #[must_use]
    pub fn after(mut self, on: impl Into<String>, when: When) -> Self {
        self.component.after.push(Dependency {
            on: on.into(),
            when,
            timeout: Duration::from_secs(300),
            implied: false,
            optional: false,
        });
        self
    }

    /// The component.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a name, host name, target or variable that a `.ctst` file could not have either.
    pub fn build(self) -> Result<Component> {
        let component = self.component;
        match problem(&component) {
            None => Ok(component),
            Some(problem) => Err(Error::Invalid { component: component.name, problem }),
        }
    }
}

/// What the language would refuse in a component. Checked again before a plan, because a [`Component`] is plain data.
pub(crate) fn problem(component: &Component) -> Option<String> {
    if !names::is_name(&component.name) {
        return Some("a name is a letter, then letters, digits, `_` or `-`, 63 at most".to_owned());
    }
    if !names::is_host_name(component.hostname.as_bytes()) {
        return Some(format!("`{}` is no host name", component.hostname));
    }
    let targets = component.volumes.iter().map(|v| &v.target).chain(component.tmpfs.iter().map(|t| &t.target));
    let files = component.secrets.iter().map(|s| &s.target).chain(component.configs.iter().map(|c| &c.target));
    let targets = targets.chain(files);
    for target in targets {
        let steps_back = target.split('/').any(|part| part == "." || part == "..");
        if !target.starts_with('/') || steps_back || target.trim_matches('/').is_empty() || target.contains('\0') {
            return Some(format!("mount at `{target}`: give an absolute path below / without `.` and `..`"));
        }
    }
    let hidden = component.secret_env.iter().map(|variable| &variable.name);
    if let Some(name) = hidden.into_iter().find(|name| name.is_empty() || name.contains(['=', '\0'])) {
        return Some(format!("environment variable `{}` cannot be set", name.escape_debug()));
    }
    let length = |part: &Part| match part {
        Part::Text(text) => text.len(),
        Part::Secret(_) => 0,
    };
    let configs: usize = component.configs.iter().flat_map(|config| &config.content).map(length).sum();
    if configs > MAX_CONFIGS {
        return Some(format!(
            "keep configs of {configs} bytes: {MAX_CONFIGS} are the limit; mount a file (volume) instead"
        ));
    }
    if let Some(volume) = component.volumes.iter().find(|volume| volume.named && !names::is_name(&volume.source)) {
        return Some(format!("`{}` is no name of a volume", volume.source.escape_debug()));
    }
    for (name, value) in &component.env {
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            return Some(format!("environment variable `{}` cannot be set", name.escape_debug()));
        }
    }
    let words = component.command.iter().chain(&component.entrypoint).flatten();
    if words.clone().any(|word| word.contains('\0')) {
        return Some("an argument contains a zero byte".to_owned());
    }
    if component.job && matches!(component.restart, Restart::Always | Restart::UnlessStopped) {
        return Some("a job that is always started again never completes; use `on-failure`".to_owned());
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> Image {
        Image::File { path: "/srv".into(), sha256: None }
    }

    #[test]
    fn refuses_what_the_language_refuses() {
        assert!(ContainerBuilder::new("1x", image()).build().is_err());
        assert!(ContainerBuilder::new("x", image()).hostname("a_b").build().is_err());
        for target in ["data", "/", "//", "/a/../b", "/a/./b"] {
            assert!(ContainerBuilder::new("x", image()).volume("/srv", target, true).build().is_err(), "{target}");
        }
        assert!(ContainerBuilder::new("x", image()).env("A=B", "").build().is_err());
        assert!(ContainerBuilder::new("x", image()).command(["a\0b"]).build().is_err());
    }

    #[test]
    fn replaces_a_variable() {
        let component =
            ContainerBuilder::new("my_db", image()).env("A", "1").env("B", "2").env("A", "3").build().unwrap();
        assert_eq!(component.env, [("B".into(), "2".into()), ("A".into(), "3".into())]);
        assert_eq!(component.hostname, "my-db");
    }
}
