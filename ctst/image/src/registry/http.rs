//! Requests to one registry: who asks, redirections, and what is tried again.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError};
use std::thread::sleep;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use ureq::http::{HeaderMap, Method, Request, Response, Uri, header};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body, Error as Failure, SendBody};

use super::{Credentials, Endpoint, Name, PullJob};
use crate::Error;
use crate::error::text;

/// From a registry to where its blobs are kept.
const MAX_REDIRECTS: usize = 5;
/// How often something is asked for that did not come.
pub(super) const TRIES: u32 = 5;
/// Before the second try; each time twice as long.
const PAUSE: Duration = Duration::from_millis(250);
/// What a registry may have us wait for at most.
const MAX_PAUSE: Duration = Duration::from_secs(60);
const CONNECT: Duration = Duration::from_secs(30);
/// Without a byte.
const SILENCE: Duration = Duration::from_secs(60);
/// Of an answer that is read for its words.
const MAX_WORDS: u64 = 64 << 10;
const MAX_TOKEN: u64 = 1 << 20;
/// Characters of what a registry says, in a message.
const MAX_SAID: usize = 200;

/// What is read of the host before the process gives up its files.
#[derive(Debug)]
pub struct Prepared {
    roots: Vec<Certificate<'static>>,
}

impl Prepared {
    /// Reads the certificates that the system trusts, or those of `SSL_CERT_FILE` and `SSL_CERT_DIR`, where the job needs them.
    #[must_use]
    pub fn new(job: &PullJob) -> Self {
        let needs = job.endpoints.iter().any(|endpoint| endpoint.base.starts_with("https://"));
        let roots = if needs { rustls_native_certs::load_native_certs().certs } else { Vec::new() };
        Self { roots: roots.iter().map(|der| Certificate::from_der(der).to_owned()).collect() }
    }

    fn agent(&self, more: Option<&str>) -> Agent {
        let more = more.into_iter().flat_map(|pem| parse_pem(pem.as_bytes()).flatten().collect::<Vec<_>>());
        let more = more.filter_map(|item| match item {
            PemItem::Certificate(certificate) => Some(certificate),
            _ => None,
        });
        let roots = RootCerts::from(self.roots.iter().cloned().chain(more));
        Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_connect(Some(CONNECT))
            .timeout_recv_response(Some(SILENCE))
            .timeout_per_read(Some(SILENCE))
            .user_agent(concat!("ctst/", env!("CARGO_PKG_VERSION")))
            .tls_config(TlsConfig::builder().root_certs(roots).build())
            .build()
            .into()
    }
}

/// A request.
struct Ask<'r> {
    method: Method,
    url: &'r str,
    accept: &'r str,
    /// The first byte that is wanted.
    from: u64,
    sent: Option<Sent<'r>>,
}

impl<'r> Ask<'r> {
    fn get(url: &'r str) -> Self {
        Self { method: Method::GET, url, accept: "*/*", from: 0, sent: None }
    }
}

/// A part of a file that is sent.
#[derive(Clone, Copy)]
pub(super) struct Sent<'r> {
    pub(super) file: &'r File,
    pub(super) place: u64,
    pub(super) size: u64,
    pub(super) media_type: &'r str,
    /// Told of how much of it is sent.
    pub(super) tell: &'r dyn Fn(u64),
    /// How much of it is sent.
    pub(super) done: u64,
}

impl Read for Sent<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let left = usize::try_from(self.size - self.done).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.file.read_at(&mut buffer[..left], self.place + self.done)?;
        self.done += count as u64;
        (self.tell)(self.done);
        Ok(count)
    }
}

/// One registry, or mirror.
pub(super) struct Session<'a> {
    endpoint: &'a Endpoint,
    what: &'a str,
    /// What it trusts the registry by, and by what all else.
    own: Agent,
    others: Agent,
    /// The value of the header, once the registry wanted one.
    authorization: Mutex<Option<String>>,
}

impl<'a> Session<'a> {
    pub(super) fn new(prepared: &Prepared, endpoint: &'a Endpoint, what: &'a str) -> Self {
        let own = prepared.agent(endpoint.authority.as_deref());
        Self { endpoint, what, own, others: prepared.agent(None), authorization: Mutex::default() }
    }

    /// Sees whether it lets in who asks (distribution specification, "Determining Support").
    pub(super) fn enter(&self) -> Result<(), Error> {
        self.ask(&Ask::get(&format!("{}/v2/", self.endpoint.base))).map(drop)
    }

    /// Asks for something below the repository. `from`: not the first bytes. Gives what succeeded only.
    pub(super) fn get(&self, path: &str, accept: &str, from: u64) -> Result<Response<Body>, Error> {
        self.ask(&Ask { accept, from, ..Ask::get(&self.url(path)) })
    }

    /// Whether it has something below the repository.
    pub(super) fn has(&self, path: &str) -> Result<bool, Error> {
        let url = self.url(path);
        match self.ask(&Ask { method: Method::HEAD, ..Ask::get(&url) }) {
            Ok(_) => Ok(true),
            Err(Error::Registry { code: "I053", .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Begins an upload; the address that it goes to.
    pub(super) fn begin_upload(&self) -> Result<String, Error> {
        let url = self.url("blobs/uploads/");
        let response = self.ask(&Ask { method: Method::POST, ..Ask::get(&url) })?;
        let location = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
        let place = location.and_then(|location| resolve(&url, location));
        place.ok_or_else(|| self.wrong("says not where an upload goes to".to_owned()))
    }

    /// Sends something to an address.
    pub(super) fn put(&self, url: &str, sent: Sent<'_>) -> Result<Response<Body>, Error> {
        self.ask(&Ask { method: Method::PUT, sent: Some(sent), ..Ask::get(url) })
    }

    pub(super) fn url(&self, path: &str) -> String {
        format!("{}/v2/{}/{path}", self.endpoint.base, self.endpoint.repository)
    }

    /// Asks, again where it may help.
    fn ask(&self, ask: &Ask<'_>) -> Result<Response<Body>, Error> {
        let mut tries = 0;
        loop {
            tries += 1;
            let (wait, error) = match self.authorized(ask)? {
                Ok(response) if response.status().is_success() => return Ok(response),
                Ok(response) => (wait(&response), self.refused(response)),
                Err(failure) => (may_pass(&failure).then_some(Duration::ZERO), unreachable(ask.url, &failure)),
            };
            match wait {
                Some(wait) if tries < TRIES => sleep(wait.max(pause(tries))),
                _ => return Err(error),
            }
        }
    }

    /// Asks, and once more as somebody where the registry wants to know who.
    fn authorized(&self, ask: &Ask<'_>) -> Result<Result<Response<Body>, Failure>, Error> {
        let known = self.authorization.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let response = match self.follow(ask, known.as_deref())? {
            Ok(response) if response.status() == 401 => response,
            other => return Ok(other),
        };
        let Some(value) = self.authorize(response.headers())? else { return Ok(Ok(response)) };
        // A token that ended is renewed, but what was refused a moment ago is again.
        *self.authorization.lock().unwrap_or_else(PoisonError::into_inner) = Some(value.clone());
        self.follow(ask, Some(&value))
    }

    /// Follows redirections of what is read. What lies on another host gets no credentials.
    fn follow(&self, ask: &Ask<'_>, authorization: Option<&str>) -> Result<Result<Response<Body>, Failure>, Error> {
        let url = ask.url;
        let mut place = url.to_owned();
        for _ in 0..=MAX_REDIRECTS {
            let is_own = origin(&place) == origin(&self.endpoint.base);
            let agent = if is_own { &self.own } else { &self.others };
            let mut request = Request::builder().method(&ask.method).uri(&place).header(header::ACCEPT, ask.accept);
            if let Some(value) = authorization.filter(|_| is_own) {
                request = request.header(header::AUTHORIZATION, value);
            }
            if ask.from > 0 {
                request = request.header(header::RANGE, format!("bytes={}-", ask.from));
            }
            let answer = match ask.sent {
                Some(mut sent) => {
                    request =
                        request.header(header::CONTENT_LENGTH, sent.size).header(header::CONTENT_TYPE, sent.media_type);
                    request
                        .body(SendBody::from_reader(&mut sent))
                        .map_err(Failure::from)
                        .and_then(|request| agent.run(request))
                }
                None => request.body(()).map_err(Failure::from).and_then(|request| agent.run(request)),
            };
            let response = match answer {
                Ok(response) => response,
                Err(failure) => return Ok(Err(failure)),
            };
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(Ok(response));
            }
            let location = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
            let target = location.filter(|_| [Method::GET, Method::HEAD].contains(&ask.method));
            place = target.and_then(|location| resolve(&place, location)).ok_or_else(|| {
                let shown = text(&location.unwrap_or("nowhere").chars().take(MAX_SAID).collect::<String>());
                self.wrong(format!("leads from {url} to {shown}, where it cannot be followed"))
            })?;
        }
        Err(self.wrong(format!("leads from {url} to more than {MAX_REDIRECTS} other addresses")))
    }

    /// What to call oneself, if there is anything to try: a challenge of HTTP (RFC 9110, 11.6.1), answered as the token
    /// specification of registries says.
    fn authorize(&self, headers: &HeaderMap) -> Result<Option<String>, Error> {
        let challenges: Vec<Challenge> = headers
            .get_all(header::WWW_AUTHENTICATE)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(challenges)
            .collect();
        if let Some(bearer) = challenges.iter().find(|challenge| challenge.scheme.eq_ignore_ascii_case("bearer")) {
            return self.token(bearer).map(Some);
        }
        let is_basic = challenges.iter().any(|challenge| challenge.scheme.eq_ignore_ascii_case("basic"));
        Ok(match &self.endpoint.credentials {
            Some(Credentials::Password { user, password }) if is_basic => Some(basic(user, password)),
            _ => None,
        })
    }

    fn token(&self, bearer: &Challenge) -> Result<String, Error> {
        let realm = bearer.get("realm").unwrap_or_default();
        if !is_allowed(&self.endpoint.base, realm) {
            let shown = text(&realm.chars().take(MAX_SAID).collect::<String>());
            return Err(self.wrong(format!("wants tokens of `{shown}`, which is no place to send a password to")));
        }
        let scope = bearer.get("scope").unwrap_or_default();
        let service = bearer.get("service").unwrap_or_default();
        let agent = if origin(realm) == origin(&self.endpoint.base) { &self.own } else { &self.others };
        let ask = || match &self.endpoint.credentials {
            Some(Credentials::Token(token)) => agent.post(realm).send_form([
                ("grant_type", "refresh_token"),
                ("service", service),
                ("scope", scope),
                ("client_id", "ctst"),
                ("refresh_token", token),
            ]),
            credentials => {
                let mut request = agent.get(realm).query("service", service);
                for scope in scope.split(' ').filter(|scope| !scope.is_empty()) {
                    request = request.query("scope", scope);
                }
                if let Some(Credentials::Password { user, password }) = credentials {
                    request = request.header(header::AUTHORIZATION, basic(user, password));
                }
                request.call()
            }
        };
        let mut tries = 0;
        let mut response = loop {
            tries += 1;
            let (wait, error) = match ask() {
                Ok(response) if response.status().is_success() => break response,
                Ok(response) => (wait(&response), self.refused(response)),
                Err(failure) => (may_pass(&failure).then_some(Duration::ZERO), unreachable(realm, &failure)),
            };
            match wait {
                Some(wait) if tries < TRIES => sleep(wait.max(pause(tries))),
                _ => return Err(error),
            }
        };
        #[derive(Deserialize)]
        struct Answer {
            token: Option<String>,
            access_token: Option<String>,
        }
        let body = read(&mut response, MAX_TOKEN).map_err(|failure| unreachable(realm, &failure))?;
        let answer: Option<Answer> = body.and_then(|body| serde_json::from_slice(&body).ok());
        let token = answer
            .and_then(|answer| answer.token.or(answer.access_token))
            .filter(|token| !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic()));
        token.map(|token| format!("Bearer {token}")).ok_or_else(|| self.wrong(format!("gets no token from {realm}")))
    }

    /// What an answer that is none means, in the terms of who asked.
    fn refused(&self, mut response: Response<Body>) -> Error {
        let status = response.status().as_u16();
        let said = read(&mut response, MAX_WORDS).ok().flatten().and_then(|body| said(&body));
        let said = said.map(|said| format!(" ({said})")).unwrap_or_default();
        let host = self.host();
        let (code, why, help) = match status {
            401 => (
                "I051",
                match self.endpoint.credentials {
                    None => format!("{host} wants to know who asks{said}"),
                    Some(_) => format!("{host} does not accept the credentials that are stored for it{said}"),
                },
                Some(format!("log in: ctst login {host}")),
            ),
            403 => (
                "I052",
                format!("{host} forbids it{said}"),
                Some(format!("ask for access, or log in as who has it: ctst login {host}")),
            ),
            404 => (
                "I053",
                format!("{host} has none such{said}"),
                Some("correct the name; some registries answer so where they would have to know who asks".to_owned()),
            ),
            429 => {
                ("I055", format!("{host} wants fewer requests{said}"), Some("try again later, or log in".to_owned()))
            }
            500.. => ("I055", format!("{host} fails with {status}{said}"), Some("try again later".to_owned())),
            _ => ("I054", format!("{host} answers {status}{said}"), None),
        };
        Error::Registry { code, text: format!("{}: {why}", self.what), help }
    }

    /// It does what no registry should.
    pub(super) fn wrong(&self, what: String) -> Error {
        let text = format!("{}: {} {what}", self.what, self.host());
        let help = Some("ask whoever keeps it; do not trust what it sends".to_owned());
        Error::Registry { code: "I054", text, help }
    }

    /// It was cut off again and again.
    pub(super) fn cut_off(&self, what: &str, cause: &str) -> Error {
        let text = format!("{}: {what} is cut off by {} again and again: {cause}", self.what, self.host());
        Error::Registry { code: "I050", text, help: Some("try again where the network is better".to_owned()) }
    }

    pub(super) fn host(&self) -> &str {
        let base = &self.endpoint.base;
        base.split_once("://").map_or(base, |(_, host)| host)
    }
}

/// Before the next try.
pub(super) fn pause(tries: u32) -> Duration {
    PAUSE * 2_u32.saturating_pow(tries.min(8) - 1)
}

/// At most `most` bytes of an answer; `None` where there are more.
pub(super) fn read(response: &mut Response<Body>, most: u64) -> Result<Option<Vec<u8>>, Failure> {
    let mut bytes = Vec::new();
    let reader = response.body_mut().with_config().limit(u64::MAX).reader();
    reader.take(most + 1).read_to_end(&mut bytes).map_err(Failure::from)?;
    Ok((bytes.len() as u64 <= most).then_some(bytes))
}

/// How long to wait where waiting helps: as long as the registry wants (RFC 9110, 10.2.3).
fn wait(response: &Response<Body>) -> Option<Duration> {
    if !matches!(response.status().as_u16(), 408 | 429 | 500 | 502 | 503 | 504) {
        return None;
    }
    let wanted = response.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
    let wanted = Duration::from_secs(wanted.unwrap_or(0));
    (wanted <= MAX_PAUSE).then_some(wanted)
}

/// Whether it may be otherwise a moment later.
fn may_pass(failure: &Failure) -> bool {
    match failure {
        Failure::Io(error) => !matches!(
            error.kind(),
            std::io::ErrorKind::ConnectionRefused
                | std::io::ErrorKind::InvalidData
                | std::io::ErrorKind::PermissionDenied
                | std::io::ErrorKind::NetworkUnreachable
                | std::io::ErrorKind::HostUnreachable
        ),
        Failure::Timeout(timeout) => !matches!(timeout, ureq::Timeout::Connect | ureq::Timeout::Resolve),
        Failure::Protocol(_) | Failure::ConnectionFailed => true,
        _ => false,
    }
}

pub(super) fn unreachable(url: &str, failure: &Failure) -> Error {
    let url = url.split(['?', '#']).next().unwrap_or(url);
    let help = match failure {
        Failure::Rustls(_) | Failure::Tls(_) => {
            "name its certificate as `ca` in registries.toml, if it is one of your own"
        }
        _ => "see whether the name is right and the host is reached; registries.toml names mirrors",
    };
    let text = format!("ask {}: {}", text(url), text(&failure.to_string()));
    Error::Registry { code: "I050", text, help: Some(help.to_owned()) }
}

/// What a registry says for people (distribution specification, "Error Codes").
fn said(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Errors {
        errors: Vec<Detail>,
    }
    #[derive(Deserialize)]
    struct Detail {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let errors: Errors = serde_json::from_slice(body).ok()?;
    let first = errors.errors.into_iter().next()?;
    let words = if first.message.is_empty() { first.code } else { first.message };
    let words: String = words.chars().take(MAX_SAID).collect();
    (!words.is_empty()).then(|| text(&words))
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

/// Scheme and authority.
fn origin(url: &str) -> Option<(String, String)> {
    let uri: Uri = url.parse().ok()?;
    Some((uri.scheme_str()?.to_ascii_lowercase(), uri.authority()?.as_str().to_ascii_lowercase()))
}

/// Whether an address may be gone to from another: never from TLS to none, and without it to this host only.
fn is_allowed(from: &str, to: &str) -> bool {
    let (Some((scheme, _)), Some((target, authority))) = (origin(from), origin(to)) else { return false };
    let is_plain = !authority.contains('@');
    is_plain && (target == "https" || target == "http" && scheme == "http" && Name::is_loopback(&authority))
}

/// Where `location` leads from `place`, if that may be followed.
fn resolve(place: &str, location: &str) -> Option<String> {
    let (scheme, authority) = origin(place)?;
    let target = match location {
        _ if location.starts_with("//") => format!("{scheme}:{location}"),
        _ if location.starts_with('/') => format!("{scheme}://{authority}{location}"),
        _ => location.to_owned(),
    };
    is_allowed(place, &target).then_some(target)
}

/// One challenge of an answer.
#[derive(Debug, PartialEq, Eq)]
struct Challenge {
    scheme: String,
    parameters: Vec<(String, String)>,
}

impl Challenge {
    fn get(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

/// The challenges of one header (RFC 9110, 11.6.1): schemes, each followed by `name=value` or `name="value"`.
fn challenges(value: &str) -> Vec<Challenge> {
    let mut found: Vec<Challenge> = Vec::new();
    let mut rest = value.trim_start_matches([' ', ',']);
    while !rest.is_empty() {
        let end = rest.find(['=', ' ', ',']).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        rest = match (after.strip_prefix('='), found.last_mut()) {
            (Some(after), Some(challenge)) => {
                let (value, after) = parameter(after);
                challenge.parameters.push((word.to_owned(), value));
                after
            }
            // A parameter of nothing.
            (Some(after), None) => parameter(after).1,
            (None, _) => {
                found.push(Challenge { scheme: word.to_owned(), parameters: Vec::new() });
                after
            }
        };
        rest = rest.trim_start_matches([' ', ',']);
    }
    found
}

fn parameter(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([' ', ',']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, c)) = characters.next() {
        match c {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(characters.next().map(|(_, c)| c)),
            c => value.push(c),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_understood() {
        let of = |text: &str| {
            let all = challenges(text).into_iter();
            all.map(|c| (c.scheme, c.parameters.into_iter().map(|(n, v)| format!("{n}={v}")).collect::<Vec<_>>()))
                .collect::<Vec<_>>()
        };
        let bearer =
            r#"Bearer realm="https://auth.example/token",service="registry.example",scope="repository:a/b:pull,push""#;
        let words = ["realm=https://auth.example/token", "service=registry.example", "scope=repository:a/b:pull,push"];
        assert_eq!(of(bearer), [("Bearer".to_owned(), words.map(str::to_owned).to_vec())]);
        let two = of(r#"Basic realm="a \"b\"", Bearer realm=x"#);
        assert_eq!(two[0], ("Basic".to_owned(), vec!["realm=a \"b\"".to_owned()]));
        assert_eq!(two[1], ("Bearer".to_owned(), vec!["realm=x".to_owned()]));
        // Never more than text, whatever it is.
        for odd in ["", "=", ",,,", "a=b", "Bearer realm=\"", "Bearer realm=\"\\", "\u{e9}=\u{e9}", "Basic", "a b c d"]
        {
            of(odd);
        }
    }

    #[test]
    fn redirections_lose_nothing_and_lead_nowhere_worse() {
        let to = |place: &str, location: &str| resolve(place, location);
        assert_eq!(to("https://a.example/v2/x", "/y?z").as_deref(), Some("https://a.example/y?z"));
        assert_eq!(to("https://a.example/v2/x", "//b.example/y").as_deref(), Some("https://b.example/y"));
        assert_eq!(to("https://a.example/x", "https://b.example/y").as_deref(), Some("https://b.example/y"));
        assert_eq!(to("http://localhost:1/x", "http://127.0.0.1:2/y").as_deref(), Some("http://127.0.0.1:2/y"));
        for (place, location) in [
            ("https://a.example/x", "http://a.example/x"),
            ("https://a.example/x", "http://localhost/x"),
            ("http://localhost/x", "http://a.example/x"),
            ("https://a.example/x", "ftp://a.example/x"),
            ("https://a.example/x", "file:///etc/passwd"),
            ("https://a.example/x", "https://user@b.example/x"),
            ("https://a.example/x", "x"),
            ("https://a.example/x", ""),
        ] {
            assert_eq!(to(place, location), None, "{place} {location}");
        }
        assert_ne!(origin("https://a.example/"), origin("https://a.example:8443/"));
    }
}
