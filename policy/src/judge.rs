//! The verdict on a container: one pure function. The shim's C asks it before it touches anything, which is the verdict that
//! counts; `ctst plan` asks it to say beforehand what C would say, in the same words.

use std::fmt;
use std::net::SocketAddr;

use containust_shared::port::LIMIT;
use containust_shared::protocol::{self, Mount, Plan};

use crate::capabilities;
use crate::conf::{Access, Filter, Line, MountRule, PATH, Publish, Rules, Who, cpus, is_plain, named, short, size};

/// Control groups, which a container with limits sees its own part of.
const CGROUPS: &str = "/sys/fs/cgroup";
/// The folder beside a `.ctst` file in which its state is.
const STATE: &[u8] = b".containust";
/// More reasons than a person reads at once.
const MAX_TOLD: usize = 8;

/// What a host path is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A layer of the image.
    Image,
    /// The writable layer, or what goes with it.
    Layer,
    /// Mounted where the author says.
    Mount,
    /// A device that the container can open.
    Device,
}

/// A path of the host of which a container is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostPath<'a> {
    /// As the kernel will follow it.
    pub path: &'a [u8],
    /// Whether the container may write there.
    pub writable: bool,
    /// What for.
    pub purpose: Purpose,
    /// Where it is seen inside; of a layer nothing.
    pub target: &'a [u8],
}

/// Limits of a component; none of one that is not limited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of memory.
    pub memory: Option<u64>,
    /// Thousandths of a processor.
    pub cpu_millis: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
}

/// A port of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port {
    /// Where.
    pub place: SocketAddr,
    /// UDP instead of TCP.
    pub udp: bool,
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.place, if self.udp { "/udp" } else { "" })
    }
}

/// What a container asks for, as far as a policy has to do with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec<'a> {
    /// All there are.
    pub paths: Vec<HostPath<'a>>,
    /// Whether its root is an overlay.
    pub overlay: bool,
    /// Whether a layer of it is served by FUSE.
    pub fuse: bool,
    /// Capabilities of root, bit n for number n.
    pub capabilities: u64,
    /// Its system call filter.
    pub filter: Filter,
    /// What is published. Listening is not the shim's, who sees none.
    pub ports: Vec<Port>,
    /// Whether it is on a network that leads out of its project. C does not see that, and S asks [`egress`].
    pub egress: bool,
    /// None where they are not known: C does not see them, and S asks [`limits`].
    pub limits: Option<Limits>,
}

impl<'a> Spec<'a> {
    /// What C's plan asks for.
    #[must_use]
    pub fn of(plan: &'a Plan) -> Self {
        let layer = |path: &'a [u8], writable| {
            let purpose = if writable { Purpose::Layer } else { Purpose::Image };
            HostPath { path, writable, purpose, target: b"" }
        };
        // Without a writable layer the image itself is what the container writes to.
        let bare = plan.upper.is_none() && plan.work.is_none();
        let layers = plan.layers.iter().map(|source| layer(&source.path, bare));
        let written = plan.upper.iter().chain(&plan.work).map(|source| layer(&source.path, true));
        let mounts = plan.mounts.iter().filter_map(|mount| match mount {
            Mount::Bind { source, target, readonly } => {
                Some(HostPath { path: &source.path, writable: !readonly, purpose: Purpose::Mount, target })
            }
            Mount::Device { source, target } => {
                Some(HostPath { path: &source.path, writable: true, purpose: Purpose::Device, target })
            }
            Mount::Tmpfs { .. } | Mount::File { .. } => None,
        });
        Self {
            paths: layers.chain(written).chain(mounts).collect(),
            overlay: !bare,
            fuse: plan.fuse,
            capabilities: plan.capabilities,
            filter: match plan.filter {
                protocol::Filter::Default => Filter::Default,
                protocol::Filter::Strict => Filter::Strict,
                protocol::Filter::Compat => Filter::Compat,
            },
            ports: Vec::new(),
            egress: false,
            limits: None,
        }
    }

    /// One that asks for nothing.
    #[must_use]
    pub fn nothing() -> Self {
        let (paths, ports) = (Vec::new(), Vec::new());
        Self {
            paths,
            overlay: false,
            fuse: false,
            capabilities: 0,
            filter: Filter::Default,
            ports,
            egress: false,
            limits: None,
        }
    }
}

/// Whoever asks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Caller {
    uid: u32,
    groups: Vec<u32>,
    user_names: Vec<Vec<u8>>,
    group_names: Vec<Vec<u8>>,
    strict: bool,
}

impl Caller {
    /// `groups`: all that the kernel counts for the process, the effective one too. `passwd` and `group`: the contents of
    /// the files, which tell the names of these ids. `strict`: the shim has file capabilities.
    #[must_use]
    pub fn new(uid: u32, groups: Vec<u32>, passwd: &[u8], group: &[u8], strict: bool) -> Self {
        let user_names = names(passwd, &[uid]);
        let group_names = names(group, &groups);
        Self { uid, groups, user_names, group_names, strict }
    }

    fn is(&self, who: &Who) -> bool {
        match who {
            Who::Uid(uid) => self.uid == *uid,
            Who::Gid(gid) => self.groups.contains(gid),
            Who::User(name) => self.user_names.iter().any(|own| own == name.as_bytes()),
            Who::Group(name) => self.group_names.iter().any(|own| own == name.as_bytes()),
        }
    }
}

/// The names that `passwd(5)` or `group(5)` gives to these ids: both have the name first and the id third.
fn names(file: &[u8], ids: &[u32]) -> Vec<Vec<u8>> {
    let entry = |line: &[u8]| {
        let mut fields = line.split(|b| *b == b':');
        let name = fields.next()?;
        let id: u32 = std::str::from_utf8(fields.nth(1)?).ok()?.parse().ok()?;
        ids.contains(&id).then(|| name.to_vec())
    };
    file.split(|b| *b == b'\n').filter_map(entry).collect()
}

/// One reason why a container is not given what it asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denial(String);

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// All reasons as one text, which does not grow with what is asked for.
#[must_use]
pub fn tell(denials: &[Denial]) -> String {
    let mut text = denials.iter().take(MAX_TOLD).map(Denial::to_string).collect::<Vec<_>>().join("; ");
    if denials.len() > MAX_TOLD {
        text.push_str(&format!("; and {} more", denials.len().saturating_sub(MAX_TOLD)));
    }
    text
}

/// What was asked for, what forbids it, and the line that would allow it.
fn denial(what: impl fmt::Display, why: impl fmt::Display, wanted: impl fmt::Display) -> Denial {
    Denial(format!("{what}: {why}, so ask the administrator for `{wanted}`"))
}

/// Names a line of the policy and what it says.
fn line<T>(line: &Line<T>, key: &str, value: impl fmt::Display) -> String {
    format!("line {} of {PATH} says `{key} = {value}`", line.number)
}

/// Whether `caller` may have a container like this.
///
/// # Errors
/// Every reason why not.
pub fn judge(spec: &Spec<'_>, rules: &Rules, caller: &Caller) -> Result<(), Vec<Denial>> {
    let mut denials: Vec<Denial> = admit(rules, caller).err().into_iter().collect();
    judge_paths(spec, rules, &mut denials);
    judge_devices(spec, rules, caller, &mut denials);
    judge_overlay(spec, rules, caller, &mut denials);
    judge_fuse(spec, rules, caller, &mut denials);
    judge_capabilities(spec, rules, &mut denials);
    judge_filter(spec, rules, caller, &mut denials);
    judge_ports(spec, rules, &mut denials);
    judge_egress(spec, rules, caller, &mut denials);
    judge_limits(spec, rules, &mut denials);
    if denials.is_empty() { Ok(()) } else { Err(denials) }
}

/// Whether `caller` may have containers at all. Root may: who could edit the file is not held to it.
///
/// # Errors
/// Why not.
pub fn admit(rules: &Rules, caller: &Caller) -> Result<(), Denial> {
    let [first, others @ ..] = rules.allow.as_slice() else { return Ok(()) };
    if caller.uid == 0 || rules.allow.iter().any(|line| caller.is(&line.value)) {
        return Ok(());
    }
    let mut why = line(first, "allow", &first.value);
    match others.len() {
        0 => why.push_str(", and no other line allows somebody"),
        n => why.push_str(&format!(", and {n} more allow others")),
    }
    Err(denial(
        format_args!("have containers as user {}", caller.uid),
        why,
        format_args!("allow = user {}", caller.uid),
    ))
}

/// A path for a person: nothing in it steers a terminal.
fn shown(path: &[u8]) -> String {
    short(&String::from_utf8_lossy(path))
}

/// Whether `path` is `folder` or below it, by whole components.
fn within(path: &[u8], folder: &[u8]) -> bool {
    folder == b"/" || path.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.first() == Some(&b'/'))
}

/// The folder of a project's state that a path is in: what an administrator would allow as a whole.
fn state_folder(path: &[u8]) -> Option<&[u8]> {
    let mut end = 0usize;
    for part in path.split(|b| *b == b'/') {
        end = end.saturating_add(part.len());
        if part == STATE {
            return path.get(..end);
        }
        end = end.saturating_add(1);
    }
    None
}

fn judge_paths(spec: &Spec<'_>, rules: &Rules, denials: &mut Vec<Denial>) {
    let mut told: Vec<(&[u8], u32)> = Vec::new();
    for host in &spec.paths {
        if !is_plain(host.path) {
            let what = shown(host.path);
            denials
                .push(Denial(format!("mount {what}: it is not written from / on without empty parts, `.` and `..`")));
            continue;
        }
        let Some((rule, below)) = forbidding(host, rules) else { continue };
        let state = state_folder(host.path);
        let named = state.unwrap_or(host.path);
        if told.contains(&(named, rule.number)) {
            continue;
        }
        told.push((named, rule.number));
        let path = shown(named);
        // Everything of a project is in its state folder, and most of that is written.
        let (what, access) = match (state, host.purpose, host.writable) {
            (Some(_), ..) => (format!("keep state in {path}"), Access::ReadWrite),
            (None, Purpose::Image, _) => (format!("read the image in {path}"), Access::ReadOnly),
            (None, Purpose::Layer, _) => (format!("write to {path}"), Access::ReadWrite),
            (None, Purpose::Device, _) => (format!("give the device {path}"), Access::ReadWrite),
            (None, Purpose::Mount, true) => (format!("mount {path} writable"), Access::ReadWrite),
            (None, Purpose::Mount, false) => (format!("mount {path} read-only"), Access::ReadOnly),
        };
        let MountRule { access: given, path: of } = &rule.value;
        let mut why = line(rule, "mount", format_args!("{} {}", given.name(), short(of)));
        let mut wanted = path;
        if below {
            why.push_str(" of what is below");
            wanted = short(of);
        }
        denials.push(denial(what, why, format_args!("mount = {} {wanted}", access.name())));
    }
}

/// The line that forbids a path, and whether it is about something below it.
fn forbidding<'r>(host: &HostPath<'_>, rules: &'r Rules) -> Option<(&'r Line<MountRule>, bool)> {
    let wanted = if host.writable { Access::ReadWrite } else { Access::ReadOnly };
    let folder = |line: &'r Line<MountRule>| line.value.path.as_bytes();
    let over = rules.mounts.iter().filter(|line| within(host.path, folder(line)));
    if let Some(rule) = over.max_by_key(|line| line.value.path.len())
        && rule.value.access < wanted
    {
        let own_group = !host.writable && host.target == CGROUPS.as_bytes() && within(host.path, CGROUPS.as_bytes());
        if !own_group || within(folder(rule), CGROUPS.as_bytes()) {
            return Some((rule, false));
        }
    }
    // Mounted with all that is below it.
    let mut under = rules.mounts.iter().filter(|line| within(folder(line), host.path));
    under.find(|line| line.value.access < wanted).map(|line| (line, true))
}

fn judge_devices(spec: &Spec<'_>, rules: &Rules, caller: &Caller, denials: &mut Vec<Denial>) {
    for device in spec.paths.iter().filter(|host| host.purpose == Purpose::Device && is_plain(host.path)) {
        let mut allowed = rules.devices.iter().filter_map(|line| line.value.as_deref());
        if allowed.any(|path| within(device.path, path.as_bytes())) {
            continue;
        }
        let why = match rules.devices.as_slice() {
            [] if !caller.strict => continue,
            [] => format!("ctst-shim has file capabilities, and no line of {PATH} allows it"),
            [first, others @ ..] => {
                let mut why = line(first, "device", first.value.as_deref().map_or("none".to_owned(), short));
                if !others.is_empty() {
                    why.push_str(&format!(", and {} more allow others", others.len()));
                }
                why
            }
        };
        let path = shown(device.path);
        denials.push(denial(format_args!("give the device {path}"), why, format_args!("device = {path}")));
    }
}

fn judge_overlay(spec: &Spec<'_>, rules: &Rules, caller: &Caller, denials: &mut Vec<Denial>) {
    if !spec.overlay || rules.overlay(caller.strict) {
        return;
    }
    let why = match &rules.overlay {
        Some(stated) => line(stated, "overlay", "no"),
        None => format!("ctst-shim has file capabilities, and no line of {PATH} allows it"),
    };
    denials.push(denial("mount an overlay", why, "overlay = yes"));
}

fn judge_fuse(spec: &Spec<'_>, rules: &Rules, caller: &Caller, denials: &mut Vec<Denial>) {
    if !spec.fuse || rules.fuse(caller.strict) {
        return;
    }
    let why = match &rules.fuse {
        Some(stated) => line(stated, "fuse", "no"),
        None => format!("ctst-shim has file capabilities, and no line of {PATH} allows it"),
    };
    denials.push(denial("mount a FUSE file system, to read a lazy image", why, "fuse = yes"));
}

fn judge_capabilities(spec: &Spec<'_>, rules: &Rules, denials: &mut Vec<Denial>) {
    let bit = |number: u8| 1u64.checked_shl(number.into()).unwrap_or_default();
    for number in (0..64u8).filter(|number| spec.capabilities & bit(*number) != 0) {
        let name = capabilities::name(number);
        if capabilities::CEILING & bit(number) == 0 {
            let what =
                format!("give root CAP_{name} (number {number}): no container is given it, whatever a policy says");
            denials.push(Denial(what));
            continue;
        }
        let stated = |line: &Line<Option<u8>>| line.value == Some(number);
        let Some(first) = rules.capabilities.first() else { continue };
        if capabilities::DEFAULT & bit(number) != 0 || rules.capabilities.iter().any(stated) {
            continue;
        }
        let mut why = line(first, "capability", first.value.map_or("none", capabilities::name));
        if rules.capabilities.len() > 1 {
            why.push_str(&format!(", and {} more allow others", rules.capabilities.len().saturating_sub(1)));
        }
        denials.push(denial(format_args!("give root CAP_{name}"), why, format_args!("capability = {name}")));
    }
}

fn judge_filter(spec: &Spec<'_>, rules: &Rules, caller: &Caller, denials: &mut Vec<Denial>) {
    let loosest = rules.filter(caller.strict);
    if spec.filter <= loosest {
        return;
    }
    let why = match &rules.filter {
        Some(stated) => line(stated, "filter", loosest.name()),
        None => format!("ctst-shim has file capabilities, and no line of {PATH} allows it"),
    };
    let name = spec.filter.name();
    denials.push(denial(format_args!("run under the filter {name}"), why, format_args!("filter = {name}")));
}

fn judge_ports(spec: &Spec<'_>, rules: &Rules, denials: &mut Vec<Denial>) {
    let [first, others @ ..] = rules.publish.as_slice() else { return };
    for port in &spec.ports {
        let fits = rules.publish.iter().filter_map(|line| line.value).any(|rule| {
            rule.address.is_none_or(|own| own == port.place.ip())
                && rule.udp == port.udp
                && (rule.first..=rule.last).contains(&port.place.port())
        });
        if fits {
            continue;
        }
        let mut why = match first.value {
            Some(publish) => line(first, "publish", publish),
            None => line(first, "publish", "none"),
        };
        if !others.is_empty() {
            why.push_str(&format!(", and {} more allow other places", others.len()));
        }
        denials.push(unpublished(*port, why));
    }
}

/// Whether `caller` may have a port that the kernel keeps from him and a program with a capability would bind: only where a
/// line says so.
///
/// # Errors
/// Every reason why not.
pub fn low_port(port: Port, rules: &Rules, caller: &Caller) -> Result<(), Vec<Denial>> {
    let mut denials: Vec<Denial> = admit(rules, caller).err().into_iter().collect();
    if rules.publish.is_empty() {
        let why = format!("it is below {LIMIT}, and no line of {PATH} allows it");
        denials.push(unpublished(port, why));
    }
    judge_ports(&Spec { ports: vec![port], ..Spec::nothing() }, rules, &mut denials);
    if denials.is_empty() { Ok(()) } else { Err(denials) }
}

fn unpublished(port: Port, why: String) -> Denial {
    let (address, number) = (Some(port.place.ip()).filter(|address| !address.is_unspecified()), port.place.port());
    let wanted = Publish { address, udp: port.udp, first: number, last: number };
    denial(format_args!("publish {port}"), why, format_args!("publish = {wanted}"))
}

/// Whether a container may have these limits.
///
/// # Errors
/// Every reason why not.
pub fn limits(limits: Limits, rules: &Rules) -> Result<(), Vec<Denial>> {
    let mut denials = Vec::new();
    judge_limits(&Spec { limits: Some(limits), ..Spec::nothing() }, rules, &mut denials);
    if denials.is_empty() { Ok(()) } else { Err(denials) }
}

/// Whether a caller's containers may read their images from archives.
///
/// # Errors
/// Why not.
pub fn fuse(rules: &Rules, caller: &Caller) -> Result<(), Vec<Denial>> {
    let mut denials = Vec::new();
    judge_fuse(&Spec { fuse: true, ..Spec::nothing() }, rules, caller, &mut denials);
    if denials.is_empty() { Ok(()) } else { Err(denials) }
}

/// Whether a project of `caller` may have a way out.
///
/// # Errors
/// Every reason why not.
pub fn egress(rules: &Rules, caller: &Caller) -> Result<(), Vec<Denial>> {
    let mut denials = Vec::new();
    judge_egress(&Spec { egress: true, ..Spec::nothing() }, rules, caller, &mut denials);
    if denials.is_empty() { Ok(()) } else { Err(denials) }
}

/// What keeps `caller` offline, in words; none: nothing does. Root too: it is no right that is kept from it, but a rule for all.
#[must_use]
pub fn offline(rules: &Rules, caller: &Caller) -> Option<String> {
    let fits = |who: &Option<Who>| who.as_ref().is_none_or(|who| caller.is(who));
    let stated = rules.offline.iter().find(|line| fits(&line.value))?;
    Some(line(stated, "offline", named(stated.value.as_ref())))
}

fn judge_egress(spec: &Spec<'_>, rules: &Rules, caller: &Caller, denials: &mut Vec<Denial>) {
    const WHAT: &str = "have a way out of its project";
    if !spec.egress {
        return;
    }
    if let Some(stated) = rules.egress.as_ref().filter(|line| !line.value) {
        denials.push(denial(WHAT, line(stated, "egress", "no"), "egress = yes"));
    }
    if let Some(why) = offline(rules, caller) {
        denials.push(Denial(format!("{WHAT}: {why}, so write `internal = true` for its networks")));
    }
}

fn judge_limits(spec: &Spec<'_>, rules: &Rules, denials: &mut Vec<Denial>) {
    let Some(limits) = &spec.limits else { return };
    let number = |n: u64| n.to_string();
    let all: [(_, _, _, _, &dyn Fn(u64) -> String); 3] = [
        ("memory", "max_memory", limits.memory, &rules.max_memory, &size),
        ("cpus", "max_cpus", limits.cpu_millis, &rules.max_cpus, &cpus),
        ("pids", "max_pids", limits.pids, &rules.max_pids, &number),
    ];
    for (property, key, own, most, text) in all {
        let Some(most) = most else { continue };
        let (why, value) = (line(most, key, text(most.value)), text(most.value));
        match own {
            None => {
                denials
                    .push(Denial(format!("run without a limit of {property}: {why}, so write `{property} = {value}`")));
            }
            Some(own) if own > most.value => {
                let own = text(own);
                denials.push(denial(format_args!("limit its {property} to {own}"), why, format_args!("{key} = {own}")));
            }
            Some(_) => {}
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "test code")]
mod tests {
    use super::*;
    use crate::conf::parse;

    fn rules(text: &str) -> Rules {
        parse(text.as_bytes()).unwrap()
    }

    fn at(address: &str, port: u16) -> Port {
        Port { place: SocketAddr::new(address.parse().unwrap(), port), udp: false }
    }

    fn ann() -> Caller {
        let passwd = b"root:x:0:0::/:/bin/sh\nann:x:1000:1000:Ann:/home/ann:/bin/sh\nbad\nb:x:y:z\n";
        let group = b"root:x:0:\nctst:x:990:\nann:x:1000:\nother:x:991:ann\n";
        Caller::new(1000, vec![1000, 990], passwd, group, false)
    }

    fn path(path: &str, writable: bool) -> HostPath<'_> {
        HostPath { path: path.as_bytes(), writable, purpose: Purpose::Mount, target: b"/x" }
    }

    fn told(spec: &Spec<'_>, text: &str, caller: &Caller) -> String {
        judge(spec, &rules(text), caller).err().map(|denials| tell(&denials)).unwrap_or_default()
    }

    fn mounted(place: &str, writable: bool, text: &str) -> String {
        told(&Spec { paths: vec![path(place, writable)], ..Spec::nothing() }, text, &ann())
    }

    #[test]
    fn without_a_file_everything_is_as_it_was() {
        let spec = Spec {
            paths: vec![path("/", true), path("/etc/shadow", false)],
            overlay: true,
            fuse: false,
            capabilities: capabilities::DEFAULT,
            filter: Filter::Default,
            ports: vec![at("0.0.0.0", 1), Port { udp: true, ..at("127.0.0.1", 65535) }],
            egress: true,
            limits: Some(Limits::default()),
        };
        assert_eq!(judge(&spec, &Rules::default(), &ann()), Ok(()));
        let strict = Caller { strict: true, ..ann() };
        assert_eq!(
            told(&spec, "", &strict),
            "mount an overlay: ctst-shim has file capabilities, and no line of /etc/containust/policy.conf allows it, so ask \
             the administrator for `overlay = yes`"
        );
        assert_eq!(told(&spec, "overlay = yes", &strict), "");
        let fuse = Spec { fuse: true, ..Spec::nothing() };
        assert_eq!(told(&fuse, "", &ann()), "");
        assert!(told(&fuse, "fuse = no", &ann()).contains("line 1 of /etc/containust/policy.conf says `fuse = no`"));
        assert!(told(&fuse, "overlay = yes", &strict).ends_with("ask the administrator for `fuse = yes`"));
        assert_eq!(told(&fuse, "fuse = yes", &strict), "");
    }

    #[test]
    fn devices_are_named() {
        let device = HostPath { purpose: Purpose::Device, ..path("/dev/snd/timer", true) };
        let spec = Spec { paths: vec![device], ..Spec::nothing() };
        let strict = Caller { strict: true, ..ann() };
        assert_eq!(told(&spec, "", &ann()), "");
        assert!(told(&spec, "", &strict).ends_with("so ask the administrator for `device = /dev/snd/timer`"));
        for allowed in ["device = /dev/snd", "device = /dev/x\ndevice = /dev/snd/timer", "device = /"] {
            assert_eq!(told(&spec, allowed, &strict), "", "{allowed}");
        }
        for caller in [&ann(), &strict] {
            assert!(
                told(&spec, "device = none", caller)
                    .contains("line 1 of /etc/containust/policy.conf says `device = none`")
            );
            assert!(
                told(&spec, "device = /dev/sn\ndevice = /dev/x", caller)
                    .contains("says `device = /dev/sn`, and 1 more")
            );
            assert!(told(&spec, "device = /dev/snd\nmount = ro /dev", caller).contains("`mount = ro /dev`"));
        }
    }

    #[test]
    fn the_longest_path_decides() {
        let text = "mount = deny /\nmount = rw /srv\nmount = ro /srv/data\nmount = deny /srv/data/keys";
        assert_eq!(mounted("/srv/a", true, text), "");
        assert_eq!(mounted("/srv/data2", true, text), "");
        assert_eq!(
            mounted("/srv/data/b", true, text),
            "mount /srv/data/b writable: line 3 of /etc/containust/policy.conf says `mount = ro /srv/data`, so ask the \
             administrator for `mount = rw /srv/data/b`"
        );
        assert_eq!(mounted("/srv/data/b", false, text), "");
        assert!(mounted("/srv/data/keys/k", false, text).contains("line 4"));
        assert!(mounted("/srv/data/keys", false, text).contains("line 4"));
        assert_eq!(mounted("/srv/data/keys2", false, text), "");
        assert!(mounted("/etc", false, text).contains("line 1 of"));
        assert!(mounted("/srvx", false, text).contains("line 1 of"));
        // The order of the lines says nothing.
        let turned: String = text.lines().rev().map(|line| format!("{line}\n")).collect();
        for place in ["/srv/a", "/srv/data/b", "/srv/data/keys", "/etc", "/"] {
            for writable in [false, true] {
                assert_eq!(mounted(place, writable, text).is_empty(), mounted(place, writable, &turned).is_empty());
            }
        }
    }

    #[test]
    fn a_folder_does_not_show_what_is_forbidden_below() {
        let text = "mount = ro /srv/data\nmount = deny /srv/keys";
        assert_eq!(
            mounted("/srv", true, text),
            "mount /srv writable: line 1 of /etc/containust/policy.conf says `mount = ro /srv/data` of what is below, so ask \
             the administrator for `mount = rw /srv/data`"
        );
        assert!(mounted("/srv", false, text).contains("deny /srv/keys"));
        assert!(mounted("/", false, text).contains("deny /srv/keys"));
        assert_eq!(mounted("/sr", true, text), "");
        assert_eq!(mounted("/srv/data", false, text), "");
    }

    #[test]
    fn only_plain_paths_are_judged() {
        for place in ["", "srv", "/srv/../etc", "/srv/.", "//etc", "/etc/", "./x", "/srv//data"] {
            let why = mounted(place, false, "mount = deny /etc");
            assert!(why.contains("is not written from / on"), "{place:?}: {why}");
            assert!(!mounted(place, false, "").is_empty(), "{place:?}");
        }
        assert_eq!(mounted("/srv/..x/.y", false, ""), "");
        assert!(mounted("/a\u{1b}[2J", false, "mount = deny /").starts_with("mount /a\\u{1b}[2J read-only"));
    }

    #[test]
    fn a_projects_state_is_told_once_and_as_a_whole() {
        let of =
            |path: &'static str, writable, purpose| HostPath { path: path.as_bytes(), writable, purpose, target: b"" };
        let paths = vec![
            of("/p/.containust/images/x", false, Purpose::Image),
            of("/p/.containust/containers/web/upper", true, Purpose::Layer),
            of("/p/.containust/containers/web/hosts", false, Purpose::Mount),
            of("/srv/rootfs", false, Purpose::Image),
            of("/var/upper", true, Purpose::Layer),
        ];
        let spec = Spec { paths, ..Spec::nothing() };
        let denials = judge(&spec, &rules("mount = deny /"), &ann()).unwrap_err();
        let says = |n: usize| denials[n].to_string();
        assert_eq!(denials.len(), 3);
        assert!(
            says(0).starts_with("keep state in /p/.containust: ") && says(0).contains("`mount = rw /p/.containust`")
        );
        assert!(says(1).starts_with("read the image in /srv/rootfs: ") && says(1).contains("`mount = ro /srv/rootfs`"));
        assert!(says(2).starts_with("write to /var/upper: "));
        assert_eq!(told(&spec, "mount = deny /\nmount = rw /p\nmount = rw /var\nmount = ro /srv", &ann()), "");
    }

    #[test]
    fn a_container_sees_its_own_group() {
        let group = |target: &'static [u8], writable| HostPath { target, ..path("/sys/fs/cgroup/ctst/a", writable) };
        let judged = |host, text: &str| told(&Spec { paths: vec![host], ..Spec::nothing() }, text, &ann());
        assert_eq!(judged(group(b"/sys/fs/cgroup", false), "mount = deny /"), "");
        assert_ne!(judged(group(b"/sys/fs/cgroup", true), "mount = deny /"), "");
        assert_ne!(judged(group(b"/x", false), "mount = deny /"), "");
        assert_ne!(judged(group(b"/sys/fs/cgroup", false), "mount = deny /sys/fs/cgroup"), "");
        assert_ne!(judged(HostPath { path: b"/sys/fs", ..group(b"/sys/fs/cgroup", false) }, "mount = deny /"), "");
    }

    #[test]
    fn only_whom_it_names() {
        let judged = |text: &str, caller: &Caller| told(&Spec::nothing(), text, caller);
        for good in ["group ctst", "group 990", "user ann", "user 1000", "group 5\nallow = user 1000"] {
            assert_eq!(judged(&format!("allow = {good}"), &ann()), "", "{good}");
        }
        // Neither the file's word for a group that the process does not have, nor a name that only looks alike.
        for bad in ["group other", "group 0", "user root", "user 990", "group ann2", "user an"] {
            assert!(!judged(&format!("allow = {bad}"), &ann()).is_empty(), "{bad}");
        }
        assert_eq!(judged("allow = group 5", &Caller::default()), "", "root");
        assert_eq!(
            judged("# x\nallow = group admins", &ann()),
            "have containers as user 1000: line 2 of /etc/containust/policy.conf says `allow = group admins`, and no other line \
             allows somebody, so ask the administrator for `allow = user 1000`"
        );
        assert!(judged("allow = group a\nallow = group b", &ann()).contains("and 1 more allow others"));
    }

    #[test]
    fn capabilities_beyond_the_default_want_a_line() {
        let spec = |capabilities| Spec { capabilities, ..Spec::nothing() };
        let (raw, admin) = (1 << 13, 1 << 12);
        assert_eq!(told(&spec(capabilities::DEFAULT | raw), "capability = NET_RAW", &ann()), "");
        assert_eq!(told(&spec(raw), "", &ann()), "");
        assert_eq!(told(&spec(capabilities::DEFAULT), "capability = none", &ann()), "");
        assert_eq!(
            told(&spec(raw), "capability = MKNOD", &ann()),
            "give root CAP_NET_RAW: line 1 of /etc/containust/policy.conf says `capability = MKNOD`, so ask the administrator \
             for `capability = NET_RAW`"
        );
        assert!(told(&spec(raw), "capability = none", &ann()).contains("`capability = none`"));
        assert_eq!(judge(&spec(raw | admin), &rules("capability = none"), &ann()).unwrap_err().len(), 2);
        assert!(told(&spec(admin | 1 << 45), "", &ann()).contains("CAP_UNKNOWN (number 45)"));
        let all = told(&spec(u64::MAX), "", &ann());
        assert!(all.ends_with("; and 37 more") && all.len() < 4000, "{all}");
    }

    #[test]
    fn filters_are_ordered() {
        let judged = |filter, text: &str| told(&Spec { filter, ..Spec::nothing() }, text, &ann());
        let all = [Filter::Strict, Filter::Default, Filter::Compat];
        for (n, loosest) in all.into_iter().enumerate() {
            for (m, filter) in all.into_iter().enumerate() {
                let text = format!("filter = {}", loosest.name());
                assert_eq!(judged(filter, &text).is_empty(), m <= n, "{filter:?} under {text}");
            }
        }
        assert_eq!(judged(Filter::Compat, ""), "");
        let strict = Caller { strict: true, ..ann() };
        let compat = Spec { filter: Filter::Compat, ..Spec::nothing() };
        assert!(told(&compat, "", &strict).ends_with("`filter = compat`"));
        assert_eq!(told(&compat, "filter = compat", &strict), "");
        assert!(judged(Filter::Default, "filter = strict").contains("line 1"));
    }

    #[test]
    fn ports_are_where_a_line_says() {
        let judged = |address: &str, port, text: &str| {
            let ports = vec![at(address, port)];
            told(&Spec { ports, ..Spec::nothing() }, text, &ann())
        };
        let text = "publish = any 8000-8999\npublish = 127.0.0.1 80";
        for (address, port) in [("0.0.0.0", 8000), ("::", 8999), ("127.0.0.1", 80), ("10.0.0.1", 8500)] {
            assert_eq!(judged(address, port, text), "");
        }
        for (address, port) in [("0.0.0.0", 80), ("127.0.0.1", 79), ("127.0.0.1", 9000), ("::1", 80)] {
            assert!(judged(address, port, text).contains("line 1"), "{address} {port}");
        }
        assert!(judged("0.0.0.0", 80, text).ends_with("`publish = any 80`"));
        assert!(judged("127.0.0.1", 80, "publish = none").contains("`publish = none`"));
        // A line is about one of both.
        let datagrams = Spec { ports: vec![Port { udp: true, ..at("127.0.0.1", 80) }], ..Spec::nothing() };
        assert!(told(&datagrams, text, &ann()).ends_with("`publish = 127.0.0.1 80/udp`"));
        assert_eq!(told(&datagrams, "publish = any 79-81/udp", &ann()), "");
        assert!(judged("127.0.0.1", 80, "publish = any 79-81/udp").contains("says `publish = any 79-81/udp`"));
    }

    #[test]
    fn a_low_port_wants_a_line() {
        let judged = |address: &str, port, text: &str, caller: &Caller| {
            let denied = low_port(at(address, port), &rules(text), caller).err();
            denied.map(|denials| tell(&denials)).unwrap_or_default()
        };
        for text in
            ["publish = any 80", "publish = 127.0.0.1 80", "publish = any 1-65535", "publish = any 9\npublish = any 80"]
        {
            assert_eq!(judged("127.0.0.1", 80, text, &ann()), "", "{text}");
        }
        assert_eq!(
            judged("127.0.0.1", 80, "# nothing", &ann()),
            "publish 127.0.0.1:80: it is below 1024, and no line of /etc/containust/policy.conf allows it, so ask the \
             administrator for `publish = 127.0.0.1 80`"
        );
        assert!(judged("::", 80, "", &ann()).ends_with("`publish = any 80`"));
        for text in [
            "publish = none",
            "publish = any 81",
            "publish = any 1024-65535",
            "publish = 127.0.0.2 80",
            "publish = ::1 80",
        ] {
            assert!(judged("127.0.0.1", 80, text, &ann()).contains("line 1 of"), "{text}");
        }
        // An address does not allow all of them.
        assert!(judged("0.0.0.0", 80, "publish = 127.0.0.1 80", &ann()).ends_with("`publish = any 80`"));
        let admitted = "publish = any 80\nallow = group admins";
        assert!(judged("127.0.0.1", 80, admitted, &ann()).starts_with("have containers as user 1000"));
        assert_eq!(judged("127.0.0.1", 80, admitted, &Caller::default()), "", "root");
    }

    #[test]
    fn ways_out_are_for_whom_nothing_keeps_inside() {
        let judged = |text: &str| told(&Spec { egress: true, ..Spec::nothing() }, text, &ann());
        for text in ["", "egress = yes", "offline = user 0\noffline = group other\noffline = group 991"] {
            assert_eq!(judged(text), "", "{text}");
        }
        assert_eq!(
            judged("egress = no"),
            "have a way out of its project: line 1 of /etc/containust/policy.conf says `egress = no`, so ask the administrator \
             for `egress = yes`"
        );
        for who in ["everyone", "user ann", "user 1000", "group ctst", "group 990"] {
            assert_eq!(
                judged(&format!("offline = user 5\noffline = {who}")),
                format!(
                    "have a way out of its project: line 2 of /etc/containust/policy.conf says `offline = {who}`, so write \
                     `internal = true` for its networks"
                )
            );
        }
        assert_eq!(told(&Spec::nothing(), "egress = no\noffline = everyone", &ann()), "", "who asks for none");
        assert!(egress(&rules("offline = everyone"), &Caller::default()).is_err(), "root");
        assert_eq!(offline(&rules("offline = group ctst"), &Caller::default()), None);
    }

    #[test]
    fn limits_are_wanted_and_bounded() {
        let judged = |limits, text: &str| told(&Spec { limits: Some(limits), ..Spec::nothing() }, text, &ann());
        let text = "max_memory = 1KiB\nmax_cpus = 1.5\nmax_pids = 10";
        let most = Limits { memory: Some(1024), cpu_millis: Some(1500), pids: Some(10) };
        assert_eq!(judged(most, text), "");
        assert_eq!(
            judged(Limits { memory: Some(1025), ..most }, text),
            "limit its memory to 1025: line 1 of /etc/containust/policy.conf says `max_memory = 1KiB`, so ask the administrator \
             for `max_memory = 1025`"
        );
        assert!(judged(Limits { cpu_millis: Some(2000), ..most }, text).contains("`max_cpus = 2`"));
        assert_eq!(
            judged(Limits { pids: None, ..most }, text),
            "run without a limit of pids: line 3 of /etc/containust/policy.conf says `max_pids = 10`, so write `pids = 10`"
        );
        assert_eq!(told(&Spec::nothing(), text, &ann()), "");
    }
}
