//! Ports below 1024, which the kernel keeps from ordinary users: what `ctst-port` binds for whom, and what becomes of such a port
//! while its component changes, restarts and ends. `ctst-port` has its file capability here, so that these tests are root's.
#![forbid(unsafe_code)]

use std::fs::{self, Permissions};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU16, Ordering};

use containust_shared::port::{FromPort, ToPort, VERSION};
use containust_shared::wire;
use containust_tests::{Caller, Done, Project, RawShim, eventually, finish, get, programs};

const PATH: &str = "/etc/containust/policy.conf";

/// Programs as packages install them: ctst and its shim as they are, ctst-port root's, with its capability, for the caller's
/// group.
struct Installed(tempfile::TempDir);

impl Installed {
    fn new(caller: &Caller) -> Self {
        let folder = tempfile::tempdir_in("/var/tmp").expect("make a folder");
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).expect("set a mode");
        for name in ["ctst", "ctst-shim", "ctst-port"] {
            fs::copy(programs().join(name), folder.path().join(name)).expect("copy a program");
        }
        let made = Self(folder);
        chown(made.port(), Some(0), Some(caller.gid)).expect("give it to the group");
        fs::set_permissions(made.port(), Permissions::from_mode(0o750)).expect("set a mode");
        // After chown, which takes capabilities away.
        made.set("cap_net_bind_service+p");
        made
    }

    fn port(&self) -> PathBuf {
        self.0.path().join("ctst-port")
    }

    fn set(&self, capability: &str) {
        let set = Command::new("setcap").arg(capability).arg(self.port()).status();
        assert!(set.expect("run setcap (Debian: libcap2-bin)").success(), "setcap {capability} failed");
    }
}

/// An ordinary user with these programs, where the tests are root's and the host keeps low ports.
fn installed() -> Option<(Caller, Installed)> {
    Caller::root()?;
    let caller = Caller::ranges()?;
    let first = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").expect("read a setting");
    assert_eq!(first.trim(), "1024", "these tests need the kernel's default");
    let installed = Installed::new(&caller);
    Some((caller, installed))
}

/// A low port on which nobody listens: another one each time.
fn low_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = u16::try_from(std::process::id() % 700).expect("it is small");
    loop {
        let port = 300 + (start + NEXT.fetch_add(1, Ordering::Relaxed)) % 700;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

fn nobody_listens(port: u16) {
    // A process that another test starts has our sockets until it has become its program.
    eventually("nobody listens", || TcpStream::connect(("127.0.0.1", port)).is_err());
}

fn serving(exposures: &[u16]) -> String {
    let exposures: String = exposures.iter().map(|port| format!("EXPOSE 127.0.0.1:{port} -> web:80\n")).collect();
    format!(
        "COMPONENT web {{ image = \"file://ROOTFS\", command = [\"/bin/ctst-probe\", \"serve\", \"80\"], port = 80,\n\
         healthcheck {{ http = \"/\" }}, stop {{ grace = 0s }} }}\n{exposures}"
    )
}

/// A project whose host grants these ports of 127.0.0.1.
fn project(caller: &Caller, installed: &Installed, text: &str, granted: &[u16]) -> Project {
    let policy: String = granted.iter().map(|port| format!("publish = 127.0.0.1 {port}\n")).collect();
    let mut project = Project::governed(caller, text, &policy, &[]);
    project.programs = installed.0.path().to_owned();
    project
}

fn answers(port: u16) {
    assert!(get(port).ends_with("hello from web\n"), "{}", get(port));
}

/// Neither `plan` nor `run` goes on, and both say `words`.
fn refused(project: &Project, code: &str, words: &[&str]) {
    let words = [&[code], words].concat();
    for command in [&["plan"][..], &["run", "-d", "--yes"]] {
        project.ctst(command).fails(125, &words);
    }
    assert!(project.ps().is_empty(), "nothing was made");
    project.assert_nothing_left();
}

#[test]
fn a_granted_port_is_published_and_stays_with_its_component() {
    let Some((caller, installed)) = installed() else { return };
    let [one, two] = [low_port(), low_port()];
    let project = project(&caller, &installed, &serving(&[one]), &[one, two]);
    let plan = project.ctst(["plan"]).ok();
    assert!(plan.stdout.contains(&format!("web: ctst-port binds 127.0.0.1:{one}")), "{plan}");
    nobody_listens(one);
    project.up();
    answers(one);
    let pid = project.status("web")["pid"].clone();
    assert!(!project.ctst(["plan"]).ok().stdout.contains("ctst-port"), "it is there");
    project.up();

    // Another one while it runs, by a supervisor that can start nothing any more.
    project.write("stack.ctst", &serving(&[one, two]));
    project.up();
    answers(one);
    answers(two);
    assert_eq!(project.status("web")["pid"], pid);
    project.write("stack.ctst", &serving(&[two]));
    project.up();
    nobody_listens(one);
    answers(two);
    assert_eq!(project.status("web")["pid"], pid);

    // Started again, and made anew.
    project.ctst(["restart"]).ok();
    project.up();
    answers(two);
    assert_ne!(project.status("web")["pid"], pid);
    project.write("stack.ctst", &serving(&[two]).replace("port = 80", "port = 80, env = { A = \"b\" }"));
    project.up();
    answers(two);
    assert_eq!(project.status("web")["ports"][0]["host_port"], two);

    project.stop();
    nobody_listens(two);
    project.up();
    answers(two);
    // Its supervisor is killed, and the port goes with it.
    let (pid, _) = project.parts().into_iter().find(|(_, part)| *part == "supervisor").expect("a supervisor");
    let pid = rustix::process::Pid::from_raw(pid).expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("kill it");
    project.assert_nothing_left();
    nobody_listens(two);
    project.up();
    answers(two);
    project.stop();
}

#[test]
fn what_no_line_allows_is_refused() {
    let Some((caller, installed)) = installed() else { return };
    let port = low_port();
    let project = project(&caller, &installed, &serving(&[port]), &[]);
    let words = format!(
        "component web: publish 127.0.0.1:{port}: it is below 1024, and no line of {PATH} allows it, so ask the administrator \
         for `publish = 127.0.0.1 {port}`"
    );
    refused(&project, "[S0410]", &[&words]);
    for policy in ["publish = none", "publish = any 1024-65535", "publish = 127.0.0.2 1-1023"] {
        project.set_policy(&format!("{policy}\n"));
        refused(&project, "[S0410]", &[&format!("publish 127.0.0.1:{port}: line 1 of {PATH} says `{policy}`")]);
    }
    project.set_policy(&format!("publish = any 1-65535\nallow = group {}\n", caller.gid));
    project.up();
    answers(port);
    project.stop();
    nobody_listens(port);
}

#[test]
fn a_port_that_somebody_has_is_named() {
    let Some((caller, installed)) = installed() else { return };
    let port = low_port();
    let _held = TcpListener::bind(("127.0.0.1", port)).expect("listen");
    let project = project(&caller, &installed, &serving(&[port]), &[port]);
    let plan = project.ctst(["plan"]).ok();
    assert!(plan.stdout.contains("another process listens"), "{plan}");
    project.ctst(["run", "-d", "--yes"]).fails(125, &["[S0501]", &format!("127.0.0.1:{port}"), "ss -ltnp"]);
    project.assert_nothing_left();
}

#[test]
fn without_the_program_or_its_capability_it_says_what_is_missing() {
    let Some((caller, installed)) = installed() else { return };
    let port = low_port();
    let project = project(&caller, &installed, &serving(&[port]), &[port]);
    let doctor = |words: &[&str], status: &str| {
        let done = project.ctst(["doctor", "--format", "json"]);
        let checks = done.json();
        let check = checks.as_array().expect("a list").iter().find(|check| check["name"] == "low ports");
        let check = check.unwrap_or_else(|| panic!("no such check: {done}"));
        let said =
            format!("{} {}", check["found"].as_str().unwrap_or_default(), check["fix"].as_str().unwrap_or_default());
        assert!(check["status"] == status && words.iter().all(|word| said.contains(word)), "{words:?}: {check}");
    };
    let named = format!("publish 127.0.0.1:{port} for web: ");
    let path = installed.port().display().to_string();
    doctor(&[&format!("127.0.0.1 {port}, by {path}"), "from 1024 on"], "good");
    project.set_policy("publish = any 8000\n");
    doctor(&["no line of", "publish = 127.0.0.1 80"], "limited");
    project.set_policy(&format!("publish = any 8000\npublish = any {port}\n"));

    installed.set("-r");
    let setcap = format!("sudo setcap cap_net_bind_service+p {path}");
    refused(&project, "[S0501]", &[&named, "has no file capabilities", &setcap]);
    doctor(&["has no file capabilities", &setcap], "limited");
    // Another one, which does not help.
    installed.set("cap_net_raw+p");
    project.ctst(["run", "-d", "--yes"]).fails(125, &["[S0501]", &named, "ctst-port lost cap_net_bind_service"]);
    project.assert_nothing_left();

    chown(installed.port(), Some(0), Some(0)).expect("give it away");
    installed.set("cap_net_bind_service+p");
    let member = format!("sudo usermod -aG root {}", caller.name);
    refused(&project, "[S0501]", &[&named, "only members of group root may", &member]);
    doctor(&["only members of group root may", &member], "limited");

    fs::remove_file(installed.port()).expect("remove it");
    let open = format!("sudo sysctl -w net.ipv4.ip_unprivileged_port_start={port}");
    let words =
        ["from 1024 on only", "there is no ctst-port", "containust-port", &format!("`publish = 127.0.0.1 {port}`")];
    refused(&project, "[S0501]", &[&[named.as_str(), open.as_str()], &words[..]].concat());
    doctor(&["there is no ctst-port", "containust-port", "sudo sysctl -w"], "limited");

    // Root needs none of it.
    let root = Caller::root().expect("these tests run as root");
    let mut project = Project::new(&root, &serving(&[port]));
    project.programs = installed.0.path().to_owned();
    let done = project.ctst(["doctor"]);
    assert!(done.stdout.contains("every port"), "{done}");
    project.up();
    answers(port);
    project.stop();
}

/// One that is asked by hand.
struct Asked<'a> {
    project: &'a Project,
    installed: &'a Installed,
}

impl Asked<'_> {
    fn start(&self, words: &[&str]) -> RawShim {
        self.project.raw(words, &self.installed.port())
    }

    /// What it answers to these bytes; its descriptors; its exit code.
    fn answer(&self, words: &[&str], bytes: &[u8]) -> (Option<FromPort>, Vec<OwnedFd>, i32) {
        let mut port = self.start(words);
        port.send_bytes(bytes);
        let (answer, fds) = port.receive_all().map_or((None, Vec::new()), |(answer, fds)| (Some(answer), fds));
        assert!(port.receive::<FromPort>().is_none(), "it ends");
        (answer, fds, port.wait())
    }

    /// It refuses in these words.
    fn fails(&self, words: &[&str], bytes: &[u8], said: &str) {
        let (answer, fds, code) = self.answer(words, bytes);
        let text = match &answer {
            Some(FromPort::Failed(failure)) => {
                format!("{} {}", failure.step, String::from_utf8_lossy(&failure.subject))
            }
            Some(FromPort::Denied { reasons }) => reasons.clone(),
            other => panic!("{other:?} to {bytes:?} after {words:?}"),
        };
        assert!(text.contains(said), "{text:?} does not say {said:?} after {words:?}");
        assert!(fds.is_empty() && code == 125, "{fds:?}, {code}");
    }
}

fn wanting(address: impl Into<IpAddr>, port: u16) -> Vec<u8> {
    wire::encode(&ToPort::Bind { version: VERSION, address: address.into(), port, udp: false })
        .expect("encode a request")
}

#[test]
fn a_socket_listens_where_it_was_asked_to_and_nowhere_else() {
    let Some((caller, installed)) = installed() else { return };
    let port = low_port();
    let project = project(&caller, &installed, "", &[]);
    project.set_policy(&format!("publish = any {port}\n"));
    let asked = Asked { project: &project, installed: &installed };
    for address in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into(), Ipv4Addr::UNSPECIFIED.into()] {
        let (answer, mut fds, code) = asked.answer(&[], &wanting(address, port));
        assert_eq!((answer, fds.len(), code), (Some(FromPort::Bound), 1, 0), "{address}");
        let socket = TcpListener::from(fds.remove(0));
        assert_eq!(socket.local_addr().expect("an address"), SocketAddr::new(address, port));
        let waits = socket.accept().expect_err("nobody has connected");
        assert_eq!(waits.kind(), std::io::ErrorKind::WouldBlock, "it is non-blocking");
        let to = if address.is_ipv6() { IpAddr::from(Ipv6Addr::LOCALHOST) } else { Ipv4Addr::LOCALHOST.into() };
        TcpStream::connect((to, port)).expect("it listens");
        socket.accept().expect("a connection");
        assert_eq!(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok(), address.is_ipv4(), "{address}");
        drop(socket);
        nobody_listens(port);
    }
    // Of UDP where a line says so.
    let datagrams = |address: IpAddr| {
        wire::encode(&ToPort::Bind { version: VERSION, address, port, udp: true }).expect("encode a request")
    };
    let local = IpAddr::from(Ipv4Addr::LOCALHOST);
    asked.fails(&[], &datagrams(local), &format!("`publish = 127.0.0.1 {port}/udp`"));
    project.set_policy(&format!("publish = any {port}/udp\n"));
    asked.fails(&[], &wanting(local, port), &format!("says `publish = any {port}/udp`"));
    for address in [local, Ipv6Addr::LOCALHOST.into(), Ipv6Addr::UNSPECIFIED.into()] {
        let (answer, mut fds, code) = asked.answer(&[], &datagrams(address));
        assert_eq!((answer, fds.len(), code), (Some(FromPort::Bound), 1, 0), "{address}");
        let socket = UdpSocket::from(fds.remove(0));
        assert_eq!(socket.local_addr().expect("an address"), SocketAddr::new(address, port));
        assert!(UdpSocket::bind((address, port)).is_err(), "it is its alone");
        let waits = socket.recv(&mut [0]).expect_err("nobody has sent anything");
        assert_eq!(waits.kind(), std::io::ErrorKind::WouldBlock, "it is non-blocking");
        assert!(UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).is_ok() == address.is_ipv6(), "IPv6 alone");
    }
    let check = wire::encode(&ToPort::Check { version: VERSION }).expect("encode a request");
    let (answer, fds, code) = asked.answer(&[], &check);
    assert_eq!((answer, fds.len(), code), (Some(FromPort::Able), 0, 0));
}

#[test]
fn a_request_that_is_not_exactly_one_is_refused() {
    let Some((caller, installed)) = installed() else { return };
    let port = low_port();
    let project = project(&caller, &installed, "", &[port]);
    let asked = Asked { project: &project, installed: &installed };
    let good = wanting(Ipv4Addr::LOCALHOST, port);
    for length in 1..good.len() {
        asked.fails(&[], &good[..length], "read the request");
    }
    asked.fails(&[], &[&good[..], &[0]].concat(), "read the request");
    asked.fails(&[], &[0xff; 14], "read the request");
    // Neither TCP nor UDP.
    let mut third = good.clone();
    *third.last_mut().expect("it is not empty") = 2;
    asked.fails(&[], &third, "read the request");
    asked.fails(&[], &vec![0; wire::MAX_MESSAGE], "read the request");
    // Neither another request, nor another family.
    for at in [0, 8] {
        let mut other = good.clone();
        other[at] = 2;
        asked.fails(&[], &other, "read the request");
    }
    let mut version = good.clone();
    version[4] += 1;
    asked.fails(&[], &version, "reinstall ctst and ctst-port together");
    // Longer than any record: whether it is read before the program ends is a race of the kernel's.
    let long = asked.start(&[]);
    let sent =
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| long.send_bytes(&vec![0; wire::MAX_MESSAGE + 1])));
    assert!(sent.is_err() || matches!(long.receive::<FromPort>(), None | Some(FromPort::Failed(_))));

    // None, and one with a descriptor.
    let mut absent = asked.start(&[]);
    absent.close();
    assert!(matches!(absent.receive(), Some(FromPort::Failed(failure)) if failure.step.contains("the caller is gone")));
    assert_eq!(absent.wait(), 125);
    let surplus = asked.start(&[]);
    let request = ToPort::Bind { version: VERSION, address: Ipv4Addr::LOCALHOST.into(), port, udp: false };
    surplus.send_with(&request, fs::File::open("/dev/null").expect("open").into());
    assert!(matches!(surplus.receive(), Some(FromPort::Failed(failure)) if failure.step.contains("descriptors")));
    nobody_listens(port);
}

#[test]
fn other_ports_than_granted_low_ones_are_refused() {
    let Some((caller, installed)) = installed() else { return };
    let port = low_port();
    let project = project(&caller, &installed, "", &[]);
    let asked = Asked { project: &project, installed: &installed };
    let local = Ipv4Addr::LOCALHOST;
    asked.fails(&[], &wanting(local, port), "no line of /etc/containust/policy.conf allows it");
    project.set_policy(&format!("publish = 127.0.0.1 {port}\n"));
    for other in [0, 1024, 8080, 65535] {
        asked.fails(&[], &wanting(local, other), "another port than one below 1024");
    }
    let neighbour = port + 1;
    asked.fails(&[], &wanting(local, neighbour), &format!("publish 127.0.0.1:{neighbour}: line 1 of {PATH} says"));
    asked.fails(&[], &wanting(Ipv4Addr::UNSPECIFIED, port), "`publish = any ");
    asked.fails(&[], &wanting(Ipv6Addr::LOCALHOST, port), "says `publish = 127.0.0.1");
    // One written as the other is not it.
    asked.fails(&[], &wanting(local.to_ipv6_mapped(), port), "says `publish = 127.0.0.1");
    project.set_policy(&format!("publish = any {port}\n"));
    asked.fails(&[], &wanting(Ipv4Addr::new(192, 0, 2, 1), port), "bind");
    project.set_policy(&format!("publish = any {port}\nallow = group 54321\n"));
    asked.fails(&[], &wanting(local, port), &format!("have containers as user {}", caller.uid));
    // Another user's groups do not help him, and his real ids are what counts.
    project.set_policy(&format!("publish = any {port}\nallow = user {}\n", caller.name));
    assert_eq!(asked.answer(&[], &wanting(local, port)).0, Some(FromPort::Bound));
}

#[test]
fn a_policy_that_others_could_have_written_grants_nothing() {
    let Some((caller, installed)) = installed() else { return };
    let port = low_port();
    let project = project(&caller, &installed, "", &[port]);
    let asked = Asked { project: &project, installed: &installed };
    let file = project.policy();
    let folder = file.parent().expect("a folder");
    let fails = |said: &str| asked.fails(&[], &wanting(Ipv4Addr::LOCALHOST, port), said);
    let mode = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).expect("set a mode");
    mode(&file, 0o664);
    fails("chmod go-w /etc/containust/policy.conf");
    mode(&file, 0o600);
    fails("open /etc/containust/policy.conf");
    mode(&file, 0o644);
    chown(&file, Some(caller.uid), None).expect("give it away");
    fails("chown root /etc/containust/policy.conf");
    chown(&file, Some(0), None).expect("take it back");
    mode(folder, 0o777);
    fails("chmod go-w /etc/containust)");
    mode(folder, 0o755);
    fs::rename(&file, folder.join("other")).expect("rename it");
    symlink("other", &file).expect("make a link");
    fails("policy.conf is a symbolic link");
    fs::remove_file(&file).expect("remove it");
    fails("no line of");
    project.set_policy("publish = everywhere 80\n");
    fails("line 1: `everywhere` is no address");
    project.set_policy(&format!("publish = any {port}\n"));
    assert_eq!(asked.answer(&[], &wanting(Ipv4Addr::LOCALHOST, port)).0, Some(FromPort::Bound));
}

/// The kernel takes the capability away without a word in all of these.
#[test]
fn a_lost_capability_is_named_with_its_cause() {
    let Some((caller, installed)) = installed() else { return };
    let port = low_port();
    let project = project(&caller, &installed, "", &[port]);
    let asked = Asked { project: &project, installed: &installed };
    let fails = |words: &[&str], said: &str| asked.fails(words, &wanting(Ipv4Addr::LOCALHOST, port), said);
    fails(&["/usr/bin/setpriv", "--no-new-privs", "--"], "the caller has no_new_privs");
    // -D: the program stays our child.
    fails(&["/usr/bin/strace", "-D", "-o", "/dev/null"], "under a tracer");
    if finish(Command::new("setpriv").args(["--reuid", &caller.uid.to_string(), "unshare", "--user", "true"])).code == 0
    {
        fails(&["/usr/bin/unshare", "--user", "--map-current-user"], "user namespace");
        fails(&["/usr/bin/unshare", "--user", "--map-root-user"], "root needs no file capabilities");
    }
    installed.set("cap_net_bind_service,cap_net_raw+p");
    assert_eq!(asked.answer(&[], &wanting(Ipv4Addr::LOCALHOST, port)).0, Some(FromPort::Bound), "it gives up the rest");
    installed.set("-r");
    fails(&[], "setcap cap_net_bind_service+p ctst-port");
    nobody_listens(port);
    // By root, who lends others none: a smaller bounding set, and a mount without setuid.
    installed.set("cap_net_bind_service+p");
    let place = installed.0.path().display().to_string();
    let nosuid = format!(
        "mount --bind {place} {place} && mount -o remount,bind,nosuid {place} && exec setpriv --reuid={uid} --regid={gid} \
         --clear-groups \"$@\"",
        uid = caller.uid,
        gid = caller.gid
    );
    let bounded = ["setpriv", &format!("--reuid={}", caller.uid), &format!("--regid={}", caller.gid), "--clear-groups"];
    let bounded = [&bounded[..], &["--bounding-set=-net_bind_service", "--"]].concat();
    let nosuid = ["unshare", "--mount", "sh", "-c", &nosuid, "-"];
    let ctst = installed.0.path().join("ctst");
    for (words, said) in
        [(&bounded[..], "bounding set lacks cap_net_bind_service"), (&nosuid, "is on a file system mounted nosuid")]
    {
        let done = finish(Command::new(words[0]).args(&words[1..]).arg(&ctst).arg("doctor"));
        assert!(done.stdout.contains(said), "no {said:?} after {words:?}:\n{done}");
    }
}

#[test]
fn what_its_caller_leaves_it_has_no_effect() {
    let Some((caller, installed)) = installed() else { return };
    let port = low_port();
    let project = project(&caller, &installed, "", &[port]);
    let asked = Asked { project: &project, installed: &installed };
    let granted = |words: &[&str]| {
        let (answer, fds, code) = asked.answer(words, &wanting(Ipv4Addr::LOCALHOST, port));
        assert_eq!((answer, fds.len(), code), (Some(FromPort::Bound), 1, 0), "after {words:?}");
    };
    granted(&[
        "/usr/bin/env",
        "LD_PRELOAD=/nowhere.so",
        "LD_AUDIT=/nowhere.so",
        "GLIBC_TUNABLES=x=y",
        "RUST_BACKTRACE=full",
    ]);
    granted(&["/bin/sh", "-c", "ulimit -c unlimited; umask 0; trap '' HUP INT PIPE TERM; exec \"$@\"", "-"]);
    let many = "for n in 4 5 6 7 8 9; do eval \"exec $n</etc/passwd\"; done; exec \"$@\"";
    granted(&["/bin/sh", "-c", many, "-"]);
    granted(&["/bin/sh", "-c", "cd /proc && exec \"$@\"", "-"]);

    // Closed standard streams are not the socket's to be taken for: that got a number below 3 then.
    let user = format!("setpriv --reuid={} --regid={} --clear-groups --", caller.uid, caller.gid);
    let path = installed.port().display().to_string();
    let by_hand = |script: String| -> Done { finish(Command::new("sh").args(["-c", &script])) };
    by_hand(format!("{user} {path} --help")).fails(125, &["takes no arguments"]);
    by_hand(format!("{user} {path} ''")).fails(125, &["takes no arguments"]);
    by_hand(format!("{user} {path}")).fails(125, &["descriptor 3 is not open"]);
    by_hand(format!("{user} {path} 3</dev/null")).fails(125, &["descriptor 3"]);
    by_hand(format!("{user} {path} <&- >&-")).fails(125, &["descriptor 3"]);
    by_hand(format!("ulimit -n 20; {user} {path} 3</dev/null")).fails(125, &["descriptor 3"]);
    let done = by_hand(format!("{user} {path} 3</dev/null 2>&- ; echo $?"));
    assert_eq!(done.stdout.trim(), "125", "{done}");
    by_hand(path).fails(125, &["descriptor 3"]);
    // Nor is it somebody's who did not start it.
    let mut other = asked.start(&["/bin/sh", "-c", "\"$@\"; exit $?", "-"]);
    assert_eq!(other.wait(), 125);
    assert!(other.said().contains("another one made the socket"));
    nobody_listens(port);
}

/// The privileged window, call by call (`window-port.strace`), by a tracer that may trace anything, which leaves a program its
/// file capabilities.
#[test]
fn the_window_is_one_bind() {
    let Some((caller, installed)) = installed() else { return };
    let port = low_port();
    let project = project(&caller, &installed, "", &[port]);
    let folder = tempfile::tempdir().expect("make a folder");
    let trace = folder.path().join("trace").display().to_string();
    let root = Project::governed(&Caller::root().expect("root"), "", "", &[]);
    root.set_policy(&format!("publish = any {port}\n"));
    let raw =
        root.raw_as(&project.caller, &["/usr/bin/strace", "-D", "-u", &caller.name, "-o", &trace], &installed.port());
    raw.send_bytes(&wanting(Ipv4Addr::LOCALHOST, port));
    let (answer, fds) = raw.receive_all::<FromPort>().expect("an answer");
    assert_eq!((answer, fds.len()), (FromPort::Bound, 1));
    drop(raw);
    let read = || fs::read_to_string(&trace).unwrap_or_default();
    containust_tests::eventually("the tracer has written all", || read().contains("+++ exited with 0"));
    let trace = read();
    let calls: Vec<&str> = trace.lines().collect();
    let raised =
        calls.iter().position(|call| call.contains("capset(") && call.contains("{effective=1<<CAP_NET_BIND_SERVICE"));
    let raised = raised.unwrap_or_else(|| panic!("it was never raised:\n{trace}"));
    let gone = |call: &&str| call.contains("capget(") && call.contains("effective=0, permitted=0");
    let last = raised + calls[raised..].iter().position(gone).unwrap_or_else(|| panic!("it is kept:\n{trace}"));
    let window = &calls[raised..=last];
    let names: Vec<&str> = window.iter().filter_map(|call| call.split('(').next()).collect();
    assert_eq!(names, include_str!("window-port.strace").lines().collect::<Vec<_>>(), "{window:#?}");
    assert!(!calls[last..].iter().any(|call| call.contains("capset(")), "it is raised again:\n{trace}");
    // Before the window nothing of the caller's is named but the descriptor of the channel; the policy is, which is root's.
    let named: Vec<&str> = calls[..raised].iter().filter(|call| call.starts_with("open")).copied().collect();
    assert!(named.iter().any(|call| call.contains("policy.conf")), "{named:#?}");
}
