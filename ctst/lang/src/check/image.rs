//! `image` and `include`.

use crate::codes::Code;
use crate::diagnostic::{Span, nearest};
use crate::model::Image;
use crate::syntax::ValueKind;

use super::Checker;
use super::inherit::{Setting, Settings};
use super::resolve::Scope;
use super::values::Read;

const HELP: &str = "write `file://./rootfs` for a directory, `tar://./image.tar` for an archive, `oci://registry/name:tag` for one of a registry, `image://name` for one of the store or `host:///usr/bin/program` for a program of this host";

/// Where images come from.
const SOURCES: &[&str] = &["file", "host", "oci", "tar", "image", "preset", "https"];

/// Words that say what a service speaks, with the scheme of its URLs.
const SCHEMES: &[(&str, &str)] = &[
    ("postgres", "postgres"),
    ("postgresql", "postgres"),
    ("postgis", "postgres"),
    ("timescaledb", "postgres"),
    ("pgbouncer", "postgres"),
    ("mysql", "mysql"),
    ("mysqld", "mysql"),
    ("percona", "mysql"),
    ("mariadb", "mariadb"),
    ("mariadbd", "mariadb"),
    ("redis", "redis"),
    ("valkey", "redis"),
    ("keydb", "redis"),
    ("mongo", "mongodb"),
    ("mongod", "mongodb"),
    ("mongodb", "mongodb"),
    ("amqp", "amqp"),
    ("rabbitmq", "amqp"),
    ("nats", "nats"),
    ("kafka", "kafka"),
    ("redpanda", "kafka"),
    ("mqtt", "mqtt"),
    ("mosquitto", "mqtt"),
    ("memcached", "memcached"),
    ("clickhouse", "clickhouse"),
    ("ldap", "ldap"),
    ("openldap", "ldap"),
    ("smtp", "smtp"),
    ("mailpit", "smtp"),
    ("mailhog", "smtp"),
];

/// The scheme of a component's connection string, by a well-known word of its name or else of its image's last path
/// element.
pub(super) fn scheme(name: &str, image: Option<&Image>) -> &'static str {
    let path = match image {
        Some(Image::File { path, .. } | Image::Tar { path, .. }) => path.as_str(),
        Some(Image::Local { name, .. } | Image::Registry { name, .. }) => name.as_str(),
        Some(Image::Host { programs, .. }) => programs.first().map_or("", String::as_str),
        Some(Image::Bundled { .. } | Image::Build(_)) | None => "",
    };
    let element = path.rsplit('/').find(|element| !matches!(*element, "" | "." | "..")).unwrap_or_default();
    let known = |text: &str| {
        text.split(|c: char| !c.is_ascii_alphabetic()).filter(|word| !word.is_empty()).find_map(|word| {
            let same = |known: &str| known.len() == word.len() && known.eq_ignore_ascii_case(word);
            SCHEMES.iter().find(|(known, _)| same(known)).map(|(_, scheme)| *scheme)
        })
    };
    known(name).or_else(|| known(element)).unwrap_or("http")
}

/// The name of an image in the store with its tag, as in references of OCI registries; `latest` is the tag of what has
/// none.
fn local_name(text: &str) -> Option<String> {
    let place = text.rfind('/').map_or(0, |slash| slash + 1);
    let (name, tag) = match text[place..].split_once(':') {
        Some((last, tag)) => (&text[..place + last.len()], tag),
        None => (text, "latest"),
    };
    let element = |element: &str| {
        element.starts_with(|c: char| c.is_ascii_alphanumeric())
            && element.ends_with(|c: char| c.is_ascii_alphanumeric())
            && element.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
    };
    let mut elements = name.split('/');
    // The first one may be a registry with a port.
    let first = elements.next().unwrap_or_default();
    let (host, port) = first.split_once(':').unwrap_or((first, "0"));
    let good = name.len() <= 255
        && element(host)
        && port.parse::<u16>().is_ok()
        && elements.all(element)
        && (1..=128).contains(&tag.len())
        && !tag.starts_with(['.', '-'])
        && tag.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    good.then(|| format!("{name}:{tag}"))
}

/// An image's name at its registry, in its one form: with a tag, and with what docker leaves out of the names of its own registry.
fn registry_name(text: &str) -> Option<String> {
    const MOST: usize = 255;
    let (registry, rest) = text.split_once('/')?;
    let (repository, tag) = match rest.rsplit_once(':') {
        Some((repository, tag)) => (repository, tag),
        None => (rest, "latest"),
    };
    let (host, port) = registry.split_once(':').unwrap_or((registry, "443"));
    let label = |label: &str| {
        let inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        !label.is_empty() && label.bytes().all(inner) && !label.starts_with('-') && !label.ends_with('-')
    };
    // Otherwise it is the first word of a name at docker's, which is to be written out.
    let is_host = host == "localhost" || registry.contains([':', '.']);
    let element = |element: &str| {
        let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let parts = element.split(['.', '_', '-']);
        // One dot, one or two underscores, or hyphens, between letters and digits.
        let is_separated = !["..", "___", "._", "_.", ".-", "-.", "_-", "-_"].iter().any(|bad| element.contains(bad));
        let ends = |byte: Option<u8>| byte.is_some_and(inner);
        is_separated
            && ends(element.bytes().next())
            && ends(element.bytes().last())
            && parts.flat_map(str::bytes).all(inner)
    };
    let is_tag = (1..=128).contains(&tag.len())
        && !tag.starts_with(['.', '-'])
        && tag.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    let good = is_host
        && host.split('.').all(label)
        && port.parse::<u16>().is_ok_and(|port| port > 0)
        && text.len() <= MOST
        && repository.split('/').all(element)
        && is_tag;
    let library = if registry == "docker.io" && !repository.contains('/') { "library/" } else { "" };
    good.then(|| format!("{registry}/{library}{repository}:{tag}"))
}

/// An image of a registry, written as in a file: `oci://registry/name[:tag]`, or a name such as `redis:7`, which is one of docker's
/// registry; with a digest if wanted. `None`: it is none.
#[must_use]
pub fn registry_image(text: &str) -> Option<Image> {
    let (text, sha256) = match text.rsplit_once("@sha256:") {
        Some((text, digits)) if digits.len() == 64 && digits.bytes().all(|b| b.is_ascii_hexdigit()) => {
            (text, Some(digits.to_ascii_lowercase()))
        }
        _ => (text, None),
    };
    let name = match text.strip_prefix("oci://") {
        Some(name) => registry_name(name),
        None => short_name(text),
    };
    Some(Image::Registry { name: name?, sha256, locked: None })
}

/// A name without a scheme, in the one form: without a registry it is one of docker's.
fn short_name(text: &str) -> Option<String> {
    let first = text.split_once('/').map_or("", |(first, _)| first);
    match first == "localhost" || first.contains(['.', ':']) {
        true => registry_name(text),
        false => registry_name(&format!("docker.io/{text}")),
    }
}

/// One reference, understood.
pub(super) enum Reference {
    /// Everything but programs, of which there may be several.
    Whole(Image),
    Host {
        program: String,
        sha256: Option<String>,
    },
}

impl<'a> Checker<'a, '_> {
    pub(super) fn image(&mut self, scope: Scope, settings: &Settings<'a>) -> Option<Image> {
        if settings.get("build").is_some() {
            return self.build(scope, settings);
        }
        let setting = settings.get("image")?;
        let (property, value) = (setting.property, setting.value.value);
        let items = self.items(setting, scope)?;
        let count = items.clone().count();
        let listed = count != 1 || matches!(self.follow(setting.value, scope)?.value.kind, ValueKind::List(_));
        if count == 0 {
            self.bad_image(value.span, "the list of programs is empty", None);
            return None;
        }
        let mut programs = Vec::new();
        let mut pin = None;
        let mut broken = false;
        let mut whole = None;
        for (number, item) in items.enumerate() {
            let span = item.value.span;
            match self.reference((property, item), scope) {
                None => broken = true,
                Some(Reference::Whole(image)) if !listed => whole = Some(image),
                Some(Reference::Whole(_)) => {
                    self.bad_image(span, "a list of images holds `host://` programs only", None);
                    broken = true;
                }
                Some(Reference::Host { program, sha256 }) => {
                    if programs.contains(&program) {
                        self.duplicate(span, "image");
                        broken = true;
                    }
                    if sha256.is_some() && number + 1 != count {
                        self.finding(Code::BadDigest, span, "a list has one digest, of the whole image")
                            .label("not the last entry")
                            .help("pin the list at its last entry");
                        broken = true;
                    }
                    pin = sha256;
                    programs.reserve_exact(count - number);
                    programs.push(program);
                }
            }
        }
        let include = self.include(scope, settings);
        if broken {
            return None;
        }
        match whole {
            None => Some(Image::Host { programs, include: include?, sha256: pin }),
            Some(image) => {
                if let Some(key) = settings.key("include") {
                    self.finding(Code::Exclusive, key, "`include` adds to `host://` programs only")
                        .label("not with this image")
                        .related(value.span, "the image has all of its files")
                        .help("put the files into the image, or mount them as volumes; `UNSET include` if it is inherited");
                    return None;
                }
                Some(image)
            }
        }
    }

    fn include(&mut self, scope: Scope, settings: &Settings<'a>) -> Option<Vec<String>> {
        settings.get("include").map_or(Some(Vec::new()), |setting| self.globs(setting, scope))
    }

    /// Globs of files, absolute.
    pub(super) fn globs(&mut self, setting: &Setting<'a>, scope: Scope) -> Option<Vec<String>> {
        let property = setting.property;
        let mut globs = Some(Vec::new());
        for item in self.items(setting, scope)? {
            let span = item.value.span;
            let glob = self.filled((property, item), scope);
            let absolute = glob.filter(|glob| {
                let good = glob.starts_with('/') && !glob.split('/').any(|part| part == "..");
                if !good {
                    let shown = self.shown(span);
                    self.finding(Code::BadPath, span, format!("the glob {shown} is not absolute"))
                        .label("not an absolute path")
                        .expected("an absolute path without `..`, with `*`, `?`, `[…]` or `**` in it")
                        .help(format!("for example `{}`", property.example));
                }
                good
            });
            match (absolute, &mut globs) {
                (Some(glob), Some(globs)) => globs.push(glob.into_owned()),
                _ => globs = None,
            }
        }
        globs
    }

    pub(super) fn reference(&mut self, (property, item): Read<'a>, scope: Scope) -> Option<Reference> {
        let (text, parts) = self.filled_parts((property, item), scope)?;
        let span = item.value.span;
        let Some((scheme, rest)) = text.split_once("://") else {
            return self.schemeless(span, &text);
        };
        match scheme {
            "file" | "host" | "tar" | "image" | "oci" => {}
            "preset" | "https" => {
                self.not_supported(span, &format!("an image from `{scheme}://`")).help(HELP);
                return None;
            }
            _ => {
                let meant = nearest(
                    span.text(self.source).trim_matches('"').split(':').next().unwrap_or_default(),
                    SOURCES.iter().copied(),
                );
                self.bad_image(
                    span,
                    "the image's scheme is unknown",
                    meant.map(|meant| format!("did you mean `{meant}://`?")),
                );
                return None;
            }
        }
        let (path, sha256) = self.pinned(span, rest)?;
        if path.is_empty() {
            let what =
                if ["image", "oci"].contains(&scheme) { "the image has no name" } else { "the image has no path" };
            self.bad_image(span, what, None);
            return None;
        }
        match scheme {
            "file" | "tar" => {
                let path = self.seen_from_here(path, &parts, scheme.len() + "://".len());
                let image = if scheme == "tar" { Image::Tar { path, sha256 } } else { Image::File { path, sha256 } };
                return Some(Reference::Whole(image));
            }
            "oci" => {
                let Some(name) = registry_name(path) else {
                    let help =
                        "for example `oci://docker.io/library/redis:7`, in lower case, with the registry written out";
                    self.bad_image(span, "the image's name is none that a registry has", Some(help.to_owned()));
                    return None;
                };
                return Some(Reference::Whole(Image::Registry { name, sha256, locked: None }));
            }
            "image" => {
                let Some(name) = local_name(path) else {
                    let help = "for example `image://builds/web:1.2`; `ctst images ls` shows the names";
                    self.bad_image(span, "the image's name is malformed", Some(help.to_owned()));
                    return None;
                };
                return Some(Reference::Whole(Image::Local { name, sha256 }));
            }
            _ => {}
        }
        if !path.starts_with('/') || path.ends_with('/') {
            self.bad_image(span, "the program has no absolute path", None);
            return None;
        }
        Some(Reference::Host { program: self.absolute(span, "image", path)?, sha256 })
    }

    /// A name without a registry is one of docker's.
    fn schemeless(&mut self, span: Span, text: &str) -> Option<Reference> {
        if text.starts_with(['/', '.', '~']) {
            self.bad_image(span, "a path is no image reference", None);
            return None;
        }
        let (name, sha256) = self.pinned(span, text)?;
        let whole = short_name(name);
        if whole.is_none() {
            self.bad_image(span, "the image reference is malformed", None);
        }
        Some(Reference::Whole(Image::Registry { name: whole?, sha256, locked: None }))
    }

    /// What stands before the digest, and the digest.
    fn pinned<'t>(&mut self, span: Span, text: &'t str) -> Option<(&'t str, Option<String>)> {
        match text.rsplit_once('@') {
            Some((path, pin)) if pin.starts_with("sha256:") => Some((path, Some(self.digest(span, pin)?))),
            Some((_, pin)) if !pin.contains('/') && pin.contains(':') => {
                self.digest(span, pin);
                None
            }
            _ => Some((text, None)),
        }
    }

    fn digest(&mut self, span: Span, pin: &str) -> Option<String> {
        let digest =
            pin.strip_prefix("sha256:").filter(|hex| hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit()));
        if digest.is_none() {
            self.finding(Code::BadDigest, span, "the image's digest is malformed")
                .label("malformed digest")
                .expected("`@sha256:` and 64 hexadecimal digits at the end")
                .help("copy it from `ctst images`, or leave it out");
        }
        digest.map(str::to_ascii_lowercase)
    }

    pub(super) fn bad_image(&mut self, span: Span, message: &str, help: Option<String>) {
        self.finding(Code::BadImage, span, message)
            .label("not understood")
            .expected(
                "`file://DIRECTORY`, `tar://ARCHIVE`, `oci://REGISTRY/NAME`, `image://NAME` or `host:///PROGRAM`, with `@sha256:…` if wanted",
            )
            .help(HELP)
            .help_if(help);
    }

    pub(super) fn duplicate(&mut self, span: Span, name: &str) {
        let shown = self.shown(span);
        self.finding(Code::DuplicateValue, span, format!("{shown} is listed twice in `{name}`"))
            .label("again")
            .help("remove it");
    }
}

#[cfg(test)]
mod tests {
    use super::{Image, local_name, registry_name, scheme};

    #[test]
    fn names_at_registries() {
        for (text, name) in [
            ("docker.io/alpine", "docker.io/library/alpine:latest"),
            ("docker.io/team/app:1.2", "docker.io/team/app:1.2"),
            ("localhost:5000/a/b-c__d.e:x_Y", "localhost:5000/a/b-c__d.e:x_Y"),
            ("localhost/a", "localhost/a:latest"),
            ("127.0.0.1:80/a--b:v1", "127.0.0.1:80/a--b:v1"),
            ("Registry.example/a", "Registry.example/a:latest"),
        ] {
            assert_eq!(registry_name(text).as_deref(), Some(name));
        }
        let long = format!("a.example/{}", "a".repeat(300));
        for text in [
            "",
            "alpine",
            "team/app",
            "a.example",
            "a.example/",
            "a.example//a",
            "a.example/A",
            "a.example/a:",
            "a.example/a:-x",
            "a.example/a_",
            "a.example/-a",
            "a.example/a..b",
            "a.example/a___b",
            "a.example/../b",
            "-a.example/b",
            "a..example/b",
            "a.example:x/b",
            "a.example:0/b",
            "a.example:99999/b",
            "user@a.example/b",
            "[::1]:5000/a",
            "a.example/a b",
            "a.example/a:b:c",
            &long,
        ] {
            assert_eq!(registry_name(text), None, "{text}");
        }
    }

    #[test]
    fn names_in_the_store() {
        let good = [("web", "web:latest"), ("a/b-c:1.2", "a/b-c:1.2"), ("localhost:5000/a:b", "localhost:5000/a:b")];
        for (text, name) in good {
            assert_eq!(local_name(text).as_deref(), Some(name));
        }
        for text in ["", "/a", "a/", "a//b", "a:", "a:b:c", "a b", "../a", "a:.b", "-a", "a@b", "a/b:c/d"] {
            assert_eq!(local_name(text), None, "{text}");
        }
    }

    #[test]
    fn schemes() {
        let host = |program: &str| Image::Host { programs: vec![program.into()], include: vec![], sha256: None };
        assert_eq!(scheme("my-postgres", None), "postgres");
        assert_eq!(scheme("db", Some(&host("/usr/bin/redis-server"))), "redis");
        assert_eq!(scheme("cache", Some(&Image::File { path: "./images/valkey8/".into(), sha256: None })), "redis");
        assert_eq!(scheme("web", Some(&host("/usr/sbin/nginx"))), "http");
    }
}
