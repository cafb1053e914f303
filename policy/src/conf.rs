//! The grammar of `/etc/containust/policy.conf`, with which the administrator of a host says what containers may have.
//!
//! One rule a line, `key = value`; a line that is blank or begins with `#` says nothing. Blanks around key and value do not
//! count. A key that [`KEYS`] calls a list may be repeated, every other stands once. What is not understood is an error:
//! nothing is skipped, and nothing is guessed. The file is UTF-8 without control characters, of at most [`MAX_SIZE`] bytes.

use std::fmt;
use std::net::IpAddr;

use crate::capabilities;

/// Where the file is. The place is fixed: whoever could choose it could choose the policy.
pub const PATH: &str = "/etc/containust/policy.conf";
/// The largest file in bytes.
pub const MAX_SIZE: usize = 64 * 1024;
/// Most lines of one key that may be repeated: each is looked at for each host path of each container.
pub const MAX_LINES: usize = 256;
/// `linux/uidgid.h`: the id that stands for none.
const NO_ID: u32 = u32::MAX;
/// Ids below this are the system's and people's own (`login.defs(5)` gives people at most 60000).
const FIRST_SHARED_ID: u32 = 65_536;

/// Every key there is, and whether it may be repeated. `policy.conf` beside this crate's sources explains them.
pub const KEYS: &[(&str, bool)] = &[
    ("allow", true),
    ("mount", true),
    ("device", true),
    ("capability", true),
    ("filter", false),
    ("publish", true),
    ("egress", false),
    ("offline", true),
    ("max_memory", false),
    ("max_cpus", false),
    ("max_pids", false),
    ("cgroup_parent", false),
    ("overlay", false),
    ("fuse", false),
    ("root_range", false),
];

/// A value and the line that says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line<T> {
    /// Counted from 1.
    pub number: u32,
    /// What it says.
    pub value: T,
}

/// Somebody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Who {
    /// A user by name of `/etc/passwd`.
    User(String),
    /// A user by number.
    Uid(u32),
    /// A group by name of `/etc/group`.
    Group(String),
    /// A group by number.
    Gid(u32),
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(name) => write!(f, "user {name}"),
            Self::Uid(id) => write!(f, "user {id}"),
            Self::Group(name) => write!(f, "group {name}"),
            Self::Gid(id) => write!(f, "group {id}"),
        }
    }
}

/// How a host path may be seen inside. Later is more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Access {
    /// Not at all.
    Deny,
    /// Read-only.
    ReadOnly,
    /// Writable, as far as the caller may write.
    ReadWrite,
}

impl Access {
    /// As it is written.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Deny => "deny",
            Self::ReadOnly => "ro",
            Self::ReadWrite => "rw",
        }
    }
}

/// A host path and how it, and what is below it, may be seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountRule {
    /// How.
    pub access: Access,
    /// From `/` on, without empty parts, `.`, `..` or a `/` at the end.
    pub path: String,
}

/// Base filters, the strictest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Filter {
    /// Less than the usual one.
    Strict,
    /// The usual one.
    Default,
    /// Looser.
    Compat,
}

impl Filter {
    /// As it is written.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Strict => "strict",
            Self::Default => "default",
            Self::Compat => "compat",
        }
    }
}

/// Where a component may be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Publish {
    /// One host address; none: each.
    pub address: Option<IpAddr>,
    /// UDP instead of TCP.
    pub udp: bool,
    /// The first port.
    pub first: u16,
    /// The last one.
    pub last: u16,
}

impl fmt::Display for Publish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            Some(address) => write!(f, "{address} ")?,
            None => f.write_str("any ")?,
        }
        write!(f, "{}", self.first)?;
        if self.first != self.last {
            write!(f, "-{}", self.last)?;
        }
        f.write_str(if self.udp { "/udp" } else { "" })
    }
}

/// A part of the host's ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// What 0 inside is outside.
    pub first: u32,
    /// How many.
    pub count: u32,
}

/// What the ids of root's containers are where no line says it: above those of systemd-nspawn, which end at 0x6fffffff.
pub const ROOT_RANGE: Range = Range { first: 0x7000_0000, count: 65_536 };

/// What a policy says. The default is what holds where there is no file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Empty: everyone.
    pub allow: Vec<Line<Who>>,
    /// Each path once.
    pub mounts: Vec<Line<MountRule>>,
    /// Devices, or folders of them. Empty: each, but in strict mode none. One that is `None`: none.
    pub devices: Vec<Line<Option<String>>>,
    /// Numbers of capabilities beyond the default ones. Empty: those of [`capabilities::CEILING`]. One that is `None`: none.
    pub capabilities: Vec<Line<Option<u8>>>,
    /// The loosest one.
    pub filter: Option<Line<Filter>>,
    /// Empty: everywhere. One that is `None`: nowhere.
    pub publish: Vec<Line<Option<Publish>>>,
    /// Whether networks may have a way out of their project.
    pub egress: Option<Line<bool>>,
    /// Who is kept offline. One that is `None`: everyone.
    pub offline: Vec<Line<Option<Who>>>,
    /// Bytes.
    pub max_memory: Option<Line<u64>>,
    /// Thousandths of a processor.
    pub max_cpus: Option<Line<u64>>,
    /// Processes and threads.
    pub max_pids: Option<Line<u64>>,
    /// The directory of the control group below which a shim with file capabilities makes those of containers.
    pub cgroup_parent: Option<Line<String>>,
    /// Whether overlayfs is used.
    pub overlay: Option<Line<bool>>,
    /// Whether FUSE file systems are mounted.
    pub fuse: Option<Line<bool>>,
    /// Ids of root's containers.
    pub root_range: Option<Line<Range>>,
}

impl Rules {
    /// Whether images may be mounted with overlayfs; `strict`: by a shim with file capabilities, where only a line of the
    /// file allows it.
    #[must_use]
    pub fn overlay(&self, strict: bool) -> bool {
        self.overlay.as_ref().map_or(!strict, |line| line.value)
    }

    /// Whether images may be read from their archives, by FUSE; `strict`: as of [`Rules::overlay`].
    #[must_use]
    pub fn fuse(&self, strict: bool) -> bool {
        self.fuse.as_ref().map_or(!strict, |line| line.value)
    }

    /// The loosest filter that a component may choose; `strict`: as of [`Rules::overlay`].
    #[must_use]
    pub fn filter(&self, strict: bool) -> Filter {
        let usual = if strict { Filter::Default } else { Filter::Compat };
        self.filter.as_ref().map_or(usual, |line| line.value)
    }

    /// The key of a limit that every component has to have; none where none has to.
    #[must_use]
    pub fn demands(&self) -> Option<&'static str> {
        let keys = [
            (self.max_memory.is_some(), "max_memory"),
            (self.max_cpus.is_some(), "max_cpus"),
            (self.max_pids.is_some(), "max_pids"),
        ];
        keys.into_iter().find_map(|(demanded, key)| demanded.then_some(key))
    }

    /// The host ids of containers that root starts.
    #[must_use]
    pub fn root_range(&self) -> Range {
        self.root_range.as_ref().map_or(ROOT_RANGE, |line| line.value)
    }

    /// What of the defaults it changes, in a few words; empty where nothing.
    #[must_use]
    pub fn summary(&self) -> String {
        fn list<T>(lines: &[Line<T>], text: impl Fn(&T) -> String) -> String {
            lines.iter().map(|line| text(&line.value)).collect::<Vec<_>>().join(", ")
        }
        let mut parts = Vec::new();
        if !self.allow.is_empty() {
            parts.push(format!("for {} only", list(&self.allow, Who::to_string)));
        }
        if !self.mounts.is_empty() {
            parts.push(format!(
                "mounts {}",
                list(&self.mounts, |rule| format!("{} {}", rule.access.name(), short(&rule.path)))
            ));
        }
        if !self.devices.is_empty() {
            let text = |path: &Option<String>| path.as_deref().map_or("none".to_owned(), short);
            parts.push(format!("devices {}", list(&self.devices, text)));
        }
        if !self.capabilities.is_empty() {
            parts.push(format!(
                "capabilities {}",
                list(&self.capabilities, |n| n.map_or("none", capabilities::name).to_owned())
            ));
        }
        if let Some(line) = &self.filter {
            parts.push(format!("filter {}", line.value.name()));
        }
        if !self.publish.is_empty() {
            let text = |publish: &Option<Publish>| publish.map_or("nothing".to_owned(), |publish| publish.to_string());
            parts.push(format!("publishes {}", list(&self.publish, text)));
        }
        if let Some(line) = &self.egress {
            parts.push(if line.value { "ways out of projects" } else { "no way out of a project" }.to_owned());
        }
        if !self.offline.is_empty() {
            parts.push(format!("{} kept offline", list(&self.offline, |who| named(who.as_ref()))));
        }
        if let Some(line) = &self.max_memory {
            parts.push(format!("at most {} of memory", size(line.value)));
        }
        if let Some(line) = &self.max_cpus {
            parts.push(format!("at most {} processors", cpus(line.value)));
        }
        if let Some(line) = &self.max_pids {
            parts.push(format!("at most {} processes", line.value));
        }
        if let Some(line) = &self.cgroup_parent {
            parts.push(format!("limits below {}", short(&line.value)));
        }
        if let Some(line) = &self.overlay {
            parts.push(if line.value { "overlayfs".to_owned() } else { "no overlayfs".to_owned() });
        }
        if let Some(line) = &self.fuse {
            parts.push(if line.value { "FUSE".to_owned() } else { "no FUSE".to_owned() });
        }
        if let Some(line) = &self.root_range {
            parts.push(format!("{} ids from {} for root", line.value.count, line.value.first));
        }
        parts.join("; ")
    }
}

/// Who, as it is written; none: everyone.
pub(crate) fn named(who: Option<&Who>) -> String {
    who.map_or(EVERYONE.to_owned(), Who::to_string)
}

/// Thousandths of a processor as they are written: `1.5`.
pub(crate) fn cpus(millis: u64) -> String {
    let (whole, rest) = (millis / 1000, millis % 1000);
    if rest == 0 { whole.to_string() } else { format!("{whole}.{rest:03}").trim_end_matches('0').to_owned() }
}

/// Bytes as they are written: `64MiB`.
pub(crate) fn size(bytes: u64) -> String {
    let units = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    let whole = |(_, shift): &(&str, u32)| bytes != 0 && bytes.trailing_zeros() >= *shift;
    match units.into_iter().find(whole) {
        Some((unit, shift)) => format!("{}{unit}", bytes.checked_shr(shift).unwrap_or_default()),
        None => bytes.to_string(),
    }
}

/// Why a file is no policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid {
    /// The line, counted from 1; 0: the file as a whole.
    pub line: u32,
    /// What is wrong with it.
    pub problem: String,
    /// One thing that mends it.
    pub fix: String,
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{} ({})", self.problem, self.fix),
            line => write!(f, "line {line}: {} ({})", self.problem, self.fix),
        }
    }
}

impl std::error::Error for Invalid {}

/// What is wrong with a value, and what mends it.
type Wrong = (String, String);

fn wrong<T>(problem: impl Into<String>, fix: impl Into<String>) -> Result<T, Wrong> {
    Err((problem.into(), fix.into()))
}

/// Reads a policy.
///
/// # Errors
/// The first thing that is not understood, with its line and one way to mend it.
pub fn parse(bytes: &[u8]) -> Result<Rules, Invalid> {
    let whole = |problem: String, fix: &str| Invalid { line: 0, problem, fix: fix.to_owned() };
    if bytes.len() > MAX_SIZE {
        let problem = format!("it is longer than {MAX_SIZE} bytes");
        return Err(whole(problem, "make it shorter: one `mount` line covers all that is below its path"));
    }
    let mut rules = Rules::default();
    for (number, line) in (1..).zip(bytes.split(|b| *b == b'\n')) {
        let at = |(problem, fix)| Invalid { line: number, problem, fix };
        read_line(&mut rules, number, line).map_err(at)?;
    }
    Ok(rules)
}

fn read_line(rules: &mut Rules, number: u32, line: &[u8]) -> Result<(), Wrong> {
    let Ok(text) = std::str::from_utf8(line) else {
        return wrong("it is not UTF-8", "write it anew in a text editor");
    };
    if text.chars().any(|c| c.is_control() && c != '\t') {
        return wrong("it holds a control character", "remove it: cat -v shows it");
    }
    let text = text.trim_matches([' ', '\t']);
    if text.is_empty() || text.starts_with('#') {
        return Ok(());
    }
    let Some((key, value)) = text.split_once('=') else {
        return wrong(format!("`{}` has no `=`", short(text)), "write `key = value`, or # before a comment");
    };
    let (key, value) = (key.trim_end_matches([' ', '\t']), value.trim_start_matches([' ', '\t']));
    if value.is_empty() {
        return wrong(format!("`{}` has no value", short(key)), "write one, or remove the line");
    }
    match key {
        "allow" => push(&mut rules.allow, number, who(key, value)?, |a, b| a == b),
        "mount" => push(&mut rules.mounts, number, mount(value)?, |a, b| a.path == b.path),
        "device" => push_or_none(&mut rules.devices, number, none_or(value, plain_path)?),
        "capability" => push_or_none(&mut rules.capabilities, number, none_or(value, capability)?),
        "publish" => push_or_none(&mut rules.publish, number, none_or(value, publish)?),
        "egress" => set(&mut rules.egress, number, key, yes(value)?),
        "offline" => push(&mut rules.offline, number, everyone_or(key, value)?, |a, b| a == b),
        "filter" => set(&mut rules.filter, number, key, filter(value)?),
        "max_memory" => set(&mut rules.max_memory, number, key, memory(value)?),
        "max_cpus" => set(&mut rules.max_cpus, number, key, millis(value)?),
        "max_pids" => set(&mut rules.max_pids, number, key, count(value)?),
        "cgroup_parent" => set(&mut rules.cgroup_parent, number, key, group(value)?),
        "overlay" => set(&mut rules.overlay, number, key, yes(value)?),
        "fuse" => set(&mut rules.fuse, number, key, yes(value)?),
        "root_range" => set(&mut rules.root_range, number, key, range(value)?),
        _ => {
            let known: Vec<&str> = KEYS.iter().map(|(name, _)| *name).collect();
            wrong(format!("there is no key `{}`", short(key)), format!("write one of {}", known.join(", ")))
        }
    }
}

fn push<T>(list: &mut Vec<Line<T>>, number: u32, value: T, same: impl Fn(&T, &T) -> bool) -> Result<(), Wrong> {
    if let Some(other) = list.iter().find(|other| same(&other.value, &value)) {
        return wrong(format!("line {} says it already, or otherwise", other.number), "remove one of them");
    }
    if list.len() >= MAX_LINES {
        return wrong(format!("there are more than {MAX_LINES} lines of this key"), "say it with fewer");
    }
    list.push(Line { number, value });
    Ok(())
}

/// The value; `None` for the word none.
fn none_or<T>(value: &str, read: impl Fn(&str) -> Result<T, Wrong>) -> Result<Option<T>, Wrong> {
    if value == "none" { Ok(None) } else { read(value).map(Some) }
}

/// Of a list in which none stands alone.
fn push_or_none<T: PartialEq>(list: &mut Vec<Line<Option<T>>>, number: u32, value: Option<T>) -> Result<(), Wrong> {
    if let Some(other) = list.iter().find(|other| other.value.is_none() != value.is_none()) {
        let problem = format!("`none` and another line, which is line {}, exclude each other", other.number);
        return wrong(problem, "remove one of them");
    }
    push(list, number, value, |a, b| a == b)
}

fn set<T>(place: &mut Option<Line<T>>, number: u32, key: &str, value: T) -> Result<(), Wrong> {
    match place {
        Some(other) => wrong(format!("line {} says `{key}` already", other.number), "remove one of them"),
        None => {
            *place = Some(Line { number, value });
            Ok(())
        }
    }
}

/// A text in a message, cut where nobody would read on.
pub(crate) fn short(text: &str) -> String {
    let shown: String = text.chars().take(200).flat_map(char::escape_debug).collect();
    if text.chars().nth(200).is_some() { format!("{shown}...") } else { shown }
}

/// The first word, and the rest.
fn word(text: &str) -> (&str, &str) {
    match text.split_once([' ', '\t']) {
        Some((first, rest)) => (first, rest.trim_start_matches([' ', '\t'])),
        None => (text, ""),
    }
}

/// A decimal number without sign or leading zero.
fn number<T: std::str::FromStr>(text: &str) -> Option<T> {
    let plain = text.bytes().all(|b| b.is_ascii_digit()) && (text.len() == 1 || !text.starts_with('0'));
    if plain { text.parse().ok() } else { None }
}

/// The word for everyone, where there is one.
const EVERYONE: &str = "everyone";

fn everyone_or(key: &str, value: &str) -> Result<Option<Who>, Wrong> {
    if value == EVERYONE { Ok(None) } else { who(key, value).map(Some) }
}

fn who(key: &str, value: &str) -> Result<Who, Wrong> {
    let fix = || format!("write `{key} = group NAME`, or `{key} = user NAME`, or a number in place of the name");
    let (kind, name) = word(value);
    let named = !name.is_empty() && !name.contains([' ', '\t', ':', ',', '/']);
    let id = number::<u32>(name).filter(|id| *id != NO_ID);
    match (kind, id) {
        _ if !named || (id.is_none() && name.bytes().all(|b| b.is_ascii_digit())) => {
            wrong(format!("`{}` names nobody", short(value)), fix())
        }
        ("user", Some(id)) => Ok(Who::Uid(id)),
        ("user", None) => Ok(Who::User(name.to_owned())),
        ("group", Some(id)) => Ok(Who::Gid(id)),
        ("group", None) => Ok(Who::Group(name.to_owned())),
        _ => wrong(format!("`{}` is neither user nor group", short(kind)), fix()),
    }
}

fn mount(value: &str) -> Result<MountRule, Wrong> {
    let (access, path) = word(value);
    let access = match access {
        "deny" => Access::Deny,
        "ro" => Access::ReadOnly,
        "rw" => Access::ReadWrite,
        _ => {
            let fix = "write deny, ro or rw, then the path: `mount = ro /srv`";
            return wrong(format!("`{}` is no access", short(access)), fix);
        }
    };
    Ok(MountRule { access, path: plain_path(path)? })
}

fn plain_path(path: &str) -> Result<String, Wrong> {
    if !is_plain(path.as_bytes()) {
        let fix = "write it from / on, without empty parts, `.`, `..`, or a / at the end";
        return wrong(format!("`{}` is no plain path", short(path)), fix);
    }
    Ok(path.to_owned())
}

/// Whether the kernel follows a path as it stands: absolute, and no part of it is empty, `.` or `..`.
#[must_use]
pub(crate) fn is_plain(path: &[u8]) -> bool {
    let below = path.strip_prefix(b"/");
    below.is_some_and(|below| {
        below.is_empty() || below.split(|b| *b == b'/').all(|part| !matches!(part, b"" | b"." | b".."))
    })
}

fn capability(value: &str) -> Result<u8, Wrong> {
    match capabilities::number(value) {
        Some(number) if capabilities::DEFAULT & 1 << number != 0 => {
            wrong(format!("{value} is a default one"), "remove the line")
        }
        Some(number) if capabilities::CEILING & 1 << number == 0 => {
            wrong(format!("no container is given {value}, whatever a policy says"), "remove the line")
        }
        Some(number) => Ok(number),
        None => {
            let fix = "write a name of capabilities(7) in capitals without CAP_, such as NET_RAW";
            wrong(format!("there is no capability `{}`", short(value)), fix)
        }
    }
}

fn filter(value: &str) -> Result<Filter, Wrong> {
    let all = [Filter::Strict, Filter::Default, Filter::Compat];
    match all.into_iter().find(|filter| filter.name() == value) {
        Some(filter) => Ok(filter),
        None => wrong(format!("there is no filter `{}`", short(value)), "write strict, default or compat"),
    }
}

fn publish(value: &str) -> Result<Publish, Wrong> {
    const FIX: &str = "write an address or any, and ports from 1 to 65535: `publish = 127.0.0.1 8000-8999`";
    let (address, ports) = word(value);
    let address = match address.parse::<IpAddr>() {
        Ok(ip) if ip.is_unspecified() => {
            return wrong(format!("`{ip}` stands for every address"), "write any in its place");
        }
        Ok(ip) => Some(ip),
        Err(_) if address == "any" => None,
        Err(_) => return wrong(format!("`{}` is no address", short(address)), FIX),
    };
    let (numbers, udp) = ports.strip_suffix("/udp").map_or((ports, false), |numbers| (numbers, true));
    let (first, last) = numbers.split_once('-').unwrap_or((numbers, numbers));
    match (number::<u16>(first), number::<u16>(last)) {
        (Some(first), Some(last)) if 0 < first && first <= last => Ok(Publish { address, udp, first, last }),
        _ => wrong(format!("`{}` are no ports", short(ports)), FIX),
    }
}

fn memory(value: &str) -> Result<u64, Wrong> {
    let units = [("KiB", 1u64 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40)];
    let unit = units.iter().find_map(|(unit, factor)| Some((value.strip_suffix(unit)?, *factor)));
    let (digits, factor) = unit.unwrap_or((value, 1));
    let bytes = number::<u64>(digits.trim_end_matches([' ', '\t'])).and_then(|n| n.checked_mul(factor));
    match bytes.filter(|bytes| *bytes > 0) {
        Some(bytes) => Ok(bytes),
        None => wrong(format!("`{}` is no size", short(value)), "write bytes, or a number with KiB, MiB, GiB or TiB"),
    }
}

fn millis(value: &str) -> Result<u64, Wrong> {
    let (whole, part) = value.split_once('.').unwrap_or((value, "0"));
    let digits = (1..=3).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_digit());
    let part: Option<u64> = if digits { format!("{part:0<3}").parse().ok() } else { None };
    let millis = number::<u64>(whole).and_then(|n| n.checked_mul(1000)).zip(part).and_then(|(n, p)| n.checked_add(p));
    match millis.filter(|millis| *millis > 0) {
        Some(millis) => Ok(millis),
        None => wrong(format!("`{}` is no number of processors", short(value)), "write a number such as 2 or 1.5"),
    }
}

fn count(value: &str) -> Result<u64, Wrong> {
    match number(value).filter(|count| *count > 0) {
        Some(count) => Ok(count),
        None => wrong(format!("`{}` is no number above 0", short(value)), "write one such as 512"),
    }
}

fn group(value: &str) -> Result<String, Wrong> {
    if is_plain(value.as_bytes()) && value != "/" {
        return Ok(value.to_owned());
    }
    let fix = "write the directory of a control group, without empty parts, `.`, `..`, or a / at the end";
    wrong(format!("`{}` is no plain path", short(value)), fix)
}

fn yes(value: &str) -> Result<bool, Wrong> {
    match value {
        "yes" => Ok(true),
        "no" => Ok(false),
        _ => wrong(format!("`{}` is neither yes nor no", short(value)), "write yes or no"),
    }
}

fn range(value: &str) -> Result<Range, Wrong> {
    let (first, count) = word(value);
    let (Some(first), Some(count)) = (number::<u32>(first), number::<u32>(count)) else {
        let fix = "write the first id and how many: `root_range = 1879048192 65536`";
        return wrong(format!("`{}` is no range", short(value)), fix);
    };
    if first < FIRST_SHARED_ID {
        let fix = format!("begin at {FIRST_SHARED_ID} or above");
        return wrong(format!("{first} may be an id of the system or of a person"), fix);
    }
    match first.checked_add(count) {
        Some(_) if count > 0 => Ok(Range { first, count }),
        _ => wrong("it is empty, or ends above 4294967294", "write a count such as 65536"),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "test code")]
mod tests {
    use super::*;

    fn fails(text: &str, line: u32, word: &str) {
        let error = parse(text.as_bytes()).unwrap_err();
        assert!(error.line == line && error.to_string().contains(word), "{text:?}: {error}");
        assert!(!error.fix.is_empty() && !error.problem.is_empty());
    }

    #[test]
    fn reads_every_key() {
        let text = "# a comment\n\n allow=group ctst\nallow = user 1000\n\tmount = ro /srv/a b\nmount = deny /\n\
            capability = NET_RAW\nfilter = compat\npublish = 127.0.0.1 80\npublish = any 8000-8999/udp\nmax_memory = 4 GiB\n\
            max_cpus = 1.5\nmax_pids = 512\noverlay = no\nroot_range = 100000 65536\ncgroup_parent = /sys/fs/cgroup/ctst\n\
            egress = no\noffline = everyone\noffline = group 7\nfuse = yes\ndevice = /dev/ttyUSB0\ndevice = /dev/snd";
        let rules = parse(text.as_bytes()).unwrap();
        let line = |number, value| Line { number, value };
        assert_eq!(rules.allow, [line(3, Who::Group("ctst".into())), line(4, Who::Uid(1000))]);
        let rule = |access, path: &str| MountRule { access, path: path.into() };
        assert_eq!(rules.mounts[0], Line { number: 5, value: rule(Access::ReadOnly, "/srv/a b") });
        assert_eq!(rules.mounts[1], Line { number: 6, value: rule(Access::Deny, "/") });
        assert_eq!(rules.capabilities, [Line { number: 7, value: Some(13) }]);
        assert_eq!(rules.filter.as_ref().unwrap().value, Filter::Compat);
        assert_eq!(rules.publish.len(), 2);
        assert_eq!(rules.max_memory.as_ref().unwrap().value, 4 << 30);
        assert_eq!(rules.max_cpus.as_ref().unwrap().value, 1500);
        assert_eq!(rules.max_pids.as_ref().unwrap().value, 512);
        assert!(!rules.overlay(false) && !rules.overlay(true) && rules.fuse(true));
        assert_eq!(rules.egress, Some(Line { number: 17, value: false }));
        assert_eq!(rules.offline, [Line { number: 18, value: None }, Line { number: 19, value: Some(Who::Gid(7)) }]);
        let device = |number, path: &str| Line { number, value: Some(path.into()) };
        assert_eq!(rules.devices, [device(21, "/dev/ttyUSB0"), device(22, "/dev/snd")]);
        assert_eq!(rules.root_range(), Range { first: 100_000, count: 65_536 });
        assert_eq!(
            rules.summary(),
            "for group ctst, user 1000 only; mounts ro /srv/a b, deny /; devices /dev/ttyUSB0, /dev/snd; capabilities NET_RAW; filter compat; publishes \
             127.0.0.1 80, any 8000-8999/udp; no way out of a project; everyone, group 7 kept offline; at most 4GiB of memory; at most 1.5 processors; at most 512 processes; \
             limits below /sys/fs/cgroup/ctst; no overlayfs; FUSE; 65536 ids from 100000 for root"
        );
    }

    #[test]
    fn an_empty_file_is_the_default() {
        for text in ["", "\n\n", "# only\n  # comments", "\t\n"] {
            assert_eq!(parse(text.as_bytes()).unwrap(), Rules::default(), "{text:?}");
        }
        let rules = Rules::default();
        assert!(rules.overlay(false) && !rules.overlay(true));
        assert_eq!((rules.root_range(), rules.summary()), (ROOT_RANGE, String::new()));
    }

    #[test]
    fn names_the_line_of_what_it_does_not_understand() {
        fails("\nmuont = ro /srv", 2, "no key `muont`");
        fails("mount ro /srv", 1, "no `=`");
        fails("mount =", 1, "no value");
        fails("= x", 1, "no key ``");
        fails("Overlay = yes", 1, "no key");
        fails("overlay = yes # really", 1, "neither yes nor no");
        fails("overlay = yes\noverlay = yes", 2, "line 1");
        fails("egress = never", 1, "neither yes nor no");
        fails("egress = no\negress = no", 2, "line 1");
        fails("offline = yes", 1, "offline = group NAME");
        fails("offline = everyone\noffline = everyone", 2, "line 1");
        fails("overlay = \u{1b}yes", 1, "control");
        fails("overlay = yes\r\n", 1, "control");
        for path in ["srv", "", "/srv/", "//", "/srv//a", "/srv/../etc", "/.", "/srv/./a", "../x"] {
            fails(&format!("mount = ro {path}"), 1, "no plain path");
        }
        fails("device = dev/snd", 1, "no plain path");
        fails("device = none\ndevice = /dev/snd", 2, "exclude each other");
        fails("mount = r /srv", 1, "no access");
        fails("mount = ro /srv\nmount = rw /srv", 2, "line 1");
        for who in ["ctst", "group", "group a b", "group a,b", "group 4294967295", "group 99999999999", "user 01"] {
            fails(&format!("allow = {who}"), 1, "allow = group NAME");
        }
        for name in ["CAP_NET_RAW", "net_raw", "NONE", "CHOWN", "SYS_ADMIN", "NET_RAW NET_ADMIN"] {
            fails(&format!("capability = {name}"), 1, name);
        }
        for publish in ["80", "any", "any 0", "any 80-79", "any 65536", "any 1 2", "localhost 80", "any -1", "any 1-"] {
            fails(&format!("publish = {publish}"), 1, "127.0.0.1 8000-8999");
        }
        fails("publish = 0.0.0.0 80", 1, "any");
        fails("capability = none\ncapability = NET_RAW", 2, "line 1");
        fails("publish = none\npublish = any 80", 2, "line 1");
        fails("publish = any 80\npublish = none", 2, "line 1");
        for size in ["0", "-1", "1GB", "GiB", "1.5GiB", "99999999TiB", "1 G", "01"] {
            fails(&format!("max_memory = {size}"), 1, "KiB");
        }
        for cpus in ["0", "0.0", ".5", "1.", "1.0001", "-1", "1e3", "99999999999999999999"] {
            fails(&format!("max_cpus = {cpus}"), 1, "1.5");
        }
        for pids in ["0", "many", "-1", "1.5"] {
            fails(&format!("max_pids = {pids}"), 1, "512");
        }
        for path in ["ctst", "/", "/sys/fs/cgroup/", "/sys/../ctst", "none"] {
            fails(&format!("cgroup_parent = {path}"), 1, "no plain path");
        }
        for range in ["0 65536", "1000 10", "100000", "100000 0", "4294967295 1", "100000 4294967295", "a b", "1 2 3"] {
            fails(&format!("root_range = {range}"), 1, "");
        }
    }

    #[test]
    fn refuses_what_nobody_writes() {
        assert_eq!(parse(b"\xff").unwrap_err().line, 1);
        assert_eq!(parse(b"a\n\0\0").unwrap_err().line, 1);
        assert_eq!(parse(b"\n\0\0").unwrap_err().line, 2);
        assert_eq!(parse(&vec![b'\n'; MAX_SIZE]).unwrap(), Rules::default());
        assert_eq!(parse(&vec![b'\n'; MAX_SIZE + 1]).unwrap_err().line, 0);
        let many: String = (0..=MAX_LINES).map(|n| format!("mount = ro /{n}\n")).collect();
        fails(&many, 257, "more than 256");
        let long = format!("x{} = 1", "y".repeat(60_000));
        assert!(parse(long.as_bytes()).unwrap_err().to_string().len() < 500);
    }

    #[test]
    fn every_key_is_read() {
        for (key, _) in KEYS {
            let error = parse(format!("{key} =").as_bytes()).unwrap_err();
            assert!(error.problem.contains("has no value"), "{error}");
            let error = parse(format!("{key} = ?").as_bytes()).unwrap_err();
            assert!(!error.problem.contains("no key"), "{error}");
        }
    }

    #[test]
    fn amounts_are_told_as_they_are_written() {
        for text in ["1", "1.5", "0.25", "10.001"] {
            assert_eq!(cpus(millis(text).unwrap()), text);
        }
        for text in ["1", "1023", "1KiB", "1025", "1536KiB", "4GiB", "3TiB"] {
            assert_eq!(size(memory(text).unwrap()), text);
        }
    }
}
