//! Images of registries, as the [distribution specification](https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md)
//! has them served.
//!
//! What asks a registry is a process of its own, which is believed nothing: it gets a [`PullJob`] on its standard input, writes a
//! tar of an OCI layout to its standard output, a file, and tells of it in lines of JSON on its standard error. The file is read by
//! the same worker that reads archives, which holds every blob to its digest, and the first of them to the digest that was asked for.

mod http;
pub(crate) mod layout;
mod pull;
mod push;

use std::fmt;
use std::io::{BufRead, Read, Write};
use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};

use crate::error::text;
use crate::source::is_digest;
use crate::{Error, Limits};

pub use http::Prepared;

/// Longest line that the process says: of 500 layers.
const MAX_LINE: u64 = 1 << 20;
/// Characters of a text of its.
const MAX_TEXT: usize = 4 << 10;

/// An image's name at its registry, taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Name<'a> {
    /// Host, with a port where it has one.
    pub registry: &'a str,
    /// Path without a slash at its ends.
    pub repository: &'a str,
    /// Tag.
    pub tag: &'a str,
}

impl<'a> Name<'a> {
    /// Takes `registry/repository:tag` apart.
    ///
    /// # Errors
    /// [`Error::Name`].
    pub fn parse(name: &'a str) -> Result<Self, Error> {
        let parts = name.split_once('/').and_then(|(registry, rest)| {
            let (repository, tag) = rest.rsplit_once(':')?;
            (!registry.is_empty() && !repository.is_empty() && !tag.contains('/')).then_some(Name {
                registry,
                repository,
                tag,
            })
        });
        parts.ok_or_else(|| Error::Name(name.into()))
    }

    /// Whether the registry is this host, by the only names for it that need no resolver: it is spoken to without TLS.
    #[must_use]
    pub fn is_loopback(registry: &str) -> bool {
        let host = registry.rsplit_once(':').map_or(registry, |(host, _)| host);
        host == "localhost" || host.parse::<std::net::Ipv4Addr>().is_ok_and(|address| address.is_loopback())
    }
}

/// Who asks.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Credentials {
    /// A name and a password.
    Password {
        /// The name.
        user: String,
        /// The password, or a token that is used as one.
        password: String,
    },
    /// What docker calls an identity token: a refresh token of [OAuth 2](https://distribution.github.io/distribution/spec/auth/oauth/).
    Token(String),
}

/// Without what is secret.
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Credentials::Password { .. } => "Password",
            Credentials::Token(_) => "Token",
        })
    }
}

/// One place where the image may be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// `http://` or `https://`, host and port.
    pub base: String,
    /// The image's repository there.
    pub repository: String,
    /// Certificates in PEM that are trusted there beside the system's.
    pub authority: Option<String>,
    /// Who asks there, if anybody in particular.
    pub credentials: Option<Credentials>,
}

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PullJob {
    /// What is tried on what, as messages begin with it, such as `pull oci://registry/name:tag`.
    pub what: String,
    /// Mirrors, and the registry as the last.
    pub endpoints: Vec<Endpoint>,
    /// What is to be done.
    pub task: Task,
    /// How much it may be.
    pub limits: Limits,
}

/// What is done with a registry. What is `wanted` is a tag, or `sha256:` and 64 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// An image is written as a layout.
    Pull {
        /// Which.
        wanted: String,
        /// Layers that are in the store, as [`Layer::key`](crate::Layer::key) names them, and are left out.
        have: Vec<String>,
    },
    /// It is seen what a tag means.
    Resolve {
        /// Which.
        wanted: String,
    },
    /// The layout that the output, open for reading too, is already is pushed under this tag.
    Push {
        /// Which.
        tag: String,
    },
    /// It is seen whether the registry lets in who asks.
    Login,
}

/// What a registry has under a tag or digest: an image, or an index of images for several platforms.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// 64 hexadecimal digits.
    pub digest: String,
    /// Type of the document, one of four.
    pub media_type: String,
    /// Size of the document in bytes.
    pub size: u64,
}

/// How much of a blob is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// The first digits of its digest.
    pub digest: String,
    /// Bytes that are there.
    pub done: u64,
    /// All of its bytes.
    pub total: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    /// The blobs that are fetched or sent.
    Parts(Vec<Part>),
    /// Bytes that one of them has.
    Done(usize, u64),
    /// The end: what was found, if anything was looked for.
    Found(Option<Found>),
    Error {
        code: String,
        text: String,
        help: Option<String>,
    },
}

/// Does a job, once the process has given up all that it does not need: writes the layout to `out`, a file open for writing, and tells of
/// it on the standard error. Returns the exit code: 0, or 125 after an error, which is in what it tells.
#[must_use]
pub fn client_main(prepared: &Prepared, job: &PullJob, out: OwnedFd) -> i32 {
    let say = |line: &Line| {
        let mut json = serde_json::to_vec(line).expect("a line is plain data");
        json.push(b'\n');
        std::io::stderr().lock().write_all(&json)
    };
    // Whoever does not read any more has ended.
    let done = pull::pull(prepared, job, &out.into(), &|parts| drop(say(&Line::Parts(parts))), &|layer, bytes| {
        drop(say(&Line::Done(layer, bytes)));
    });
    let code = if done.is_ok() { 0 } else { 125 };
    let line = match done {
        Ok(found) => Line::Found(found),
        Err(error) => Line::Error { code: error.code().into(), text: error.to_string(), help: error.help() },
    };
    if say(&line).is_err() { 125 } else { code }
}

/// Reads what [`client_main`] tells, up to its end. Nothing in it is believed: the process has read what strangers sent.
///
/// # Errors
/// [`Error::Registry`]: the process's own error, or that it ended without a word.
pub fn read_found(mut lines: impl BufRead, progress: &mut dyn FnMut(&[Part])) -> Result<Option<Found>, Error> {
    let silent = |text: &str| Error::Registry { code: "I050", text: text.into(), help: None };
    let mut parts: Vec<Part> = Vec::new();
    loop {
        let mut line = Vec::new();
        let read = (&mut lines).take(MAX_LINE).read_until(b'\n', &mut line);
        read.map_err(|e| silent(&format!("read what the registry client says: {e}")))?;
        if line.pop() != Some(b'\n') {
            return Err(silent("the registry client ended without an answer"));
        }
        let line =
            serde_json::from_slice(&line).map_err(|_| silent("the registry client's answer is not understood"))?;
        let clean = |dirty: String| text(&dirty.chars().take(MAX_TEXT).collect::<String>());
        match line {
            Line::Parts(new) => {
                parts = new.into_iter().map(|part| Part { digest: clean(part.digest), ..part }).collect();
                progress(&parts);
            }
            Line::Done(layer, bytes) => {
                if let Some(part) = parts.get_mut(layer) {
                    part.done = bytes.min(part.total);
                }
                progress(&parts);
            }
            Line::Found(found)
                if found
                    .as_ref()
                    .is_none_or(|found| is_digest(&found.digest) && layout::is_known(&found.media_type)) =>
            {
                return Ok(found);
            }
            Line::Found(_) => return Err(silent("the registry client's answer contradicts itself")),
            Line::Error { code, text, help } => {
                let code = CODES.iter().find(|known| **known == code).unwrap_or(&"I050");
                return Err(Error::Registry { code, text: clean(text), help: help.map(clean) });
            }
        }
    }
}

/// Codes of errors that come out of the process.
const CODES: [&str; 10] = ["I001", "I002", "I033", "I035", "I050", "I051", "I052", "I053", "I054", "I055"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_apart() {
        let name = Name::parse("localhost:5000/team/app:1.0").unwrap();
        assert_eq!((name.registry, name.repository, name.tag), ("localhost:5000", "team/app", "1.0"));
        for bad in ["", "app:1", "/app:1", "host/app", "host:80/app", "host/:1"] {
            assert!(Name::parse(bad).is_err(), "{bad}");
        }
        for (registry, loopback) in [
            ("localhost", true),
            ("localhost:5000", true),
            ("127.3.2.1:80", true),
            ("localhost.example", false),
            ("10.0.0.1", false),
        ] {
            assert_eq!(Name::is_loopback(registry), loopback, "{registry}");
        }
    }

    #[test]
    fn what_the_process_says_is_not_believed() {
        let read = |text: &str| read_found(text.as_bytes(), &mut |_| {});
        let found = |digest: &str, kind: &str| {
            format!("{{\"found\":{{\"digest\":\"{digest}\",\"media_type\":\"{kind}\",\"size\":1}}}}\n")
        };
        let digest = "0123456789abcdef".repeat(4);
        assert!(read(&found(&digest, "application/vnd.oci.image.index.v1+json")).is_ok());
        for bad in [
            "",
            "{}\n",
            "{\"done\":[0,1]}\n",
            &found("../../x", "application/vnd.oci.image.index.v1+json"),
            &found(&digest, "text/html"),
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
        let error = read("{\"error\":{\"code\":\"X\",\"text\":\"a\\u001b[31mb\",\"help\":null}}\n").unwrap_err();
        assert_eq!((error.code(), error.to_string().as_str()), ("I050", "a\\u{1b}[31mb"));
    }
}
