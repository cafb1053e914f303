//! Runs inside test containers. `report` says as JSON what the process is and what the kernel answers when it tries to
//! get out; `serve PORT [ADDRESS]` answers HTTP; `tell PROTOCOL:PORT…` tells who connects or sends how it sees him, and sends back what
//! he sent; `reach ADDRESS [INTERFACE]` connects, over that interface whatever the routes say; `forge FROM TO`
//! sends from another's IPv6 address; `dns`, `look-up` and `flood` talk to a name server; `lease FILE` makes whoever opens it for writing wait; `calls` makes system
//! calls, and `i386` one by that processor's table; `hold` waits without an end.
#![deny(unsafe_code)]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::time::Duration;

use containust_tests::probe::{Mount, Report};
use rustix::io::Errno;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    match args.get(1).map(String::as_str) {
        Some("report") => {
            let report = serde_json::to_string(&report()).expect("a report is valid JSON");
            println!("{report}");
        }
        Some("serve") => {
            serve(args.get(3).map_or("0.0.0.0", String::as_str), args[2].parse().expect("serve takes a port"))
        }
        Some("forge") => forge(args[2].parse().expect("an address"), args[3].parse().expect("an address with a port")),
        Some("tell") => tell(&args[2..]),
        Some("reach") => reach(args[2].parse().expect("reach takes an address with a port"), args.get(3)),
        Some("ping") => ping(args[2].parse().expect("ping takes an address")),
        Some("lease") => lease(&args[2]),
        Some("dns") => dns(&args[2], &args[3], &args[4..]),
        Some("look-up") => {
            look_up(&args[2], &args[3], args[4].parse().expect("a number"), args[5].parse().expect("a number"))
        }
        Some("flood") => flood(&args[2], args[3].parse().expect("flood takes seconds")),
        Some("calls") => calls(&args[2..]),
        #[cfg(target_arch = "x86_64")]
        Some("i386") => i386(),
        Some("hold") => loop {
            std::thread::park();
        },
        other => {
            eprintln!(
                "ctst-probe: report, serve PORT, tell PROTOCOL:PORT…, reach ADDRESS [INTERFACE], dns SERVER udp|tcp HEX…, look-up SERVER HEX COUNT THREADS, flood SERVER \
                 SECONDS, ping ADDRESS, lease FILE, calls NUMBER[:ARGUMENT…]…, i386 or hold, not {other:?}"
            );
            std::process::exit(64);
        }
    }
}

fn report() -> Report {
    // The attempts come last: one that succeeded would change what the rest says.
    Report {
        pid: rustix::process::getpid().as_raw_nonzero().get(),
        status: lines("/proc/self/status")
            .filter_map(|line| line.split_once(':').map(|(name, value)| (name.to_owned(), value.trim().to_owned())))
            .collect(),
        limits: limits(),
        uid_map: numbers("/proc/self/uid_map"),
        gid_map: numbers("/proc/self/gid_map"),
        namespaces: links("/proc/self/ns").collect(),
        mounts: mounts(),
        descriptors: descriptors(),
        devices: devices(Path::new("/dev")),
        interfaces: lines("/proc/self/net/dev")
            .filter_map(|line| line.split_once(':').map(|(name, _)| name.trim().to_owned()))
            .collect(),
        processes: fs::read_dir("/proc")
            .into_iter()
            .flatten()
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .collect(),
        hostname: lines("/proc/sys/kernel/hostname").next().unwrap_or_default(),
        env: std::env::vars().collect(),
        args: std::env::args().collect(),
        cwd: std::env::current_dir().unwrap_or_default().display().to_string(),
        attempts: attempts(),
    }
}

fn lines(path: &str) -> impl Iterator<Item = String> {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("read {path}: {error}"));
    text.lines().map(str::to_owned).collect::<Vec<_>>().into_iter()
}

fn numbers(path: &str) -> Vec<Vec<u32>> {
    lines(path).map(|line| line.split_whitespace().filter_map(|word| word.parse().ok()).collect()).collect()
}

fn links(folder: &str) -> impl Iterator<Item = (String, String)> {
    fs::read_dir(folder).into_iter().flatten().filter_map(|entry| {
        let entry = entry.ok()?;
        let target = fs::read_link(entry.path()).ok()?;
        Some((entry.file_name().to_string_lossy().into_owned(), target.to_string_lossy().into_owned()))
    })
}

fn descriptors() -> BTreeMap<i32, String> {
    // The folder's own descriptor shows as a link to itself.
    let own = format!("/proc/{}/fd", rustix::process::getpid().as_raw_nonzero());
    links("/proc/self/fd")
        .filter(|(_, target)| *target != own)
        .filter_map(|(number, target)| Some((number.parse().ok()?, target)))
        .collect()
}

fn limits() -> BTreeMap<String, (String, String)> {
    // The columns of proc_pid_limits(5) have fixed widths: names contain spaces.
    lines("/proc/self/limits")
        .skip(1)
        .filter_map(|line| {
            let name = line.get(..25)?.trim().to_owned();
            let mut values = line.get(25..)?.split_whitespace();
            Some((name, (values.next()?.to_owned(), values.next()?.to_owned())))
        })
        .collect()
}

fn mounts() -> Vec<Mount> {
    lines("/proc/self/mountinfo")
        .filter_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            let fields: Vec<&str> = left.split(' ').collect();
            Some(Mount {
                root: (*fields.get(3)?).to_owned(),
                target: (*fields.get(4)?).to_owned(),
                options: fields.get(5)?.split(',').map(str::to_owned).collect(),
                kind: right.split(' ').next()?.to_owned(),
            })
        })
        .collect()
}

fn devices(folder: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let Ok(meta) = path.symlink_metadata() else { continue };
        let (major, minor) = (libc::major(meta.rdev()), libc::minor(meta.rdev()));
        let kind = meta.file_type();
        let text = if kind.is_symlink() {
            format!("link {}", fs::read_link(&path).unwrap_or_default().display())
        } else if kind.is_char_device() {
            format!("char {major}:{minor}")
        } else if kind.is_block_device() {
            format!("block {major}:{minor}")
        } else if kind.is_dir() {
            found.extend(devices(&path));
            "folder".to_owned()
        } else {
            "file".to_owned()
        };
        found.insert(path.display().to_string(), text);
    }
    found
}

/// Makes a system call and returns its error number, 0 for a success.
#[expect(unsafe_code, reason = "what the filter answers can only be seen by making the call itself")]
fn call(number: libc::c_long, arguments: [libc::c_long; 6]) -> i32 {
    let [a, b, c, d, e, f] = arguments;
    // SAFETY: `attempts` and the tests pass no pointer but null, with which no call writes into this process.
    let result = unsafe { libc::syscall(number, a, b, c, d, e, f) };
    if result >= 0 { 0 } else { std::io::Error::last_os_error().raw_os_error().unwrap_or(-1) }
}

/// Makes these calls one after the other, and prints a line with the error number, 0 for a success.
fn calls(words: &[String]) {
    for word in words {
        let mut numbers = word
            .split(':')
            .map(|number| number.parse::<libc::c_long>().unwrap_or_else(|error| panic!("{number}: {error}")));
        let number = numbers.next().expect("split gives one part at least");
        let arguments = std::array::from_fn(|_| numbers.next().unwrap_or(0));
        println!("{}", call(number, arguments));
    }
}

#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "this gate into the kernel has no other name")]
fn i386() {
    // SAFETY: the i386 getpid touches no memory and gives its answer in eax.
    unsafe { std::arch::asm!("int 0x80", inlateout("eax") 20 => _) };
    println!("carried out");
}

fn number<T>(result: Result<T, Errno>) -> i32 {
    result.map_or_else(|error| error.raw_os_error(), |_| 0)
}

fn file<T>(result: std::io::Result<T>) -> i32 {
    result.map_or_else(|error| error.raw_os_error().unwrap_or(-1), |_| 0)
}

/// Everything here is refused in a container under the default profile, unless its name begins with `may `. Arguments
/// are such that a call that got through would fail with another number, or harm nothing but this process.
fn attempts() -> BTreeMap<String, i32> {
    use rustix::fs::{CWD, FileType, Mode, OFlags};
    use rustix::mount::{MountFlags, UnmountFlags};
    use rustix::net::{AddressFamily, SocketType};

    let mut tried = BTreeMap::new();
    let mut put = |name: &str, error: i32| {
        tried.insert(name.to_owned(), error);
    };
    put("mount tmpfs", number(rustix::mount::mount("none", "/tmp", "tmpfs", MountFlags::empty(), None)));
    put("mount proc", number(rustix::mount::mount("none", "/tmp", "proc", MountFlags::empty(), None)));
    put("remount root", number(rustix::mount::mount_remount("/", MountFlags::BIND, c"")));
    put("unmount /proc", number(rustix::mount::unmount("/proc", UnmountFlags::DETACH)));
    put("pivot_root", number(rustix::process::pivot_root("/", "/tmp")));
    put("chroot", number(rustix::process::chroot("/")));
    put("ptrace pid 1", call(libc::SYS_ptrace, [libc::c_long::from(libc::PTRACE_ATTACH), 1, 0, 0, 0, 0]));

    let node = |path: &str, kind, device| {
        let error = number(rustix::fs::mknodat(CWD, path, kind, Mode::from_raw_mode(0o600), device));
        if error == 0 {
            // A device node that works is worse than one that can only be made.
            let opened = file(fs::File::open(path));
            drop(fs::remove_file(path));
            return opened;
        }
        error
    };
    put("mknod mem", node("/tmp/probe-mem", FileType::CharacterDevice, libc::makedev(1, 1)));
    put("mknod disk", node("/tmp/probe-disk", FileType::BlockDevice, libc::makedev(254, 0)));
    put("may mknod fifo", {
        let made = number(rustix::fs::mknodat(CWD, "/tmp/probe-fifo", FileType::Fifo, Mode::from_raw_mode(0o600), 0));
        drop(fs::remove_file("/tmp/probe-fifo"));
        made
    });

    for (name, family, kind) in [
        ("may socket unix", AddressFamily::UNIX, SocketType::STREAM),
        ("may socket inet", AddressFamily::INET, SocketType::STREAM),
        ("may socket inet6", AddressFamily::INET6, SocketType::STREAM),
        ("may socket netlink", AddressFamily::NETLINK, SocketType::RAW),
        ("socket inet raw", AddressFamily::INET, SocketType::RAW),
        ("socket packet", AddressFamily::PACKET, SocketType::RAW),
        ("socket alg", AddressFamily::from_raw(38), SocketType::SEQPACKET),
        ("socket vsock", AddressFamily::VSOCK, SocketType::STREAM),
        ("socket bluetooth", AddressFamily::BLUETOOTH, SocketType::RAW),
    ] {
        put(name, number(rustix::net::socket(family, kind, None)));
    }

    for (name, syscall) in [
        ("acct", libc::SYS_acct),
        ("add_key", libc::SYS_add_key),
        ("bpf", libc::SYS_bpf),
        ("clone3", libc::SYS_clone3),
        ("delete_module", libc::SYS_delete_module),
        ("finit_module", libc::SYS_finit_module),
        ("fsopen", libc::SYS_fsopen),
        ("init_module", libc::SYS_init_module),
        ("io_uring_setup", libc::SYS_io_uring_setup),
        ("kcmp", libc::SYS_kcmp),
        ("kexec_load", libc::SYS_kexec_load),
        ("keyctl", libc::SYS_keyctl),
        ("mount_setattr", libc::SYS_mount_setattr),
        ("move_mount", libc::SYS_move_mount),
        ("name_to_handle_at", libc::SYS_name_to_handle_at),
        ("open_by_handle_at", libc::SYS_open_by_handle_at),
        ("open_tree", libc::SYS_open_tree),
        ("perf_event_open", libc::SYS_perf_event_open),
        ("process_vm_readv", libc::SYS_process_vm_readv),
        ("quotactl", libc::SYS_quotactl),
        ("reboot", libc::SYS_reboot),
        ("request_key", libc::SYS_request_key),
        ("setdomainname", libc::SYS_setdomainname),
        ("sethostname", libc::SYS_sethostname),
        ("settimeofday", libc::SYS_settimeofday),
        ("swapon", libc::SYS_swapon),
        ("syslog", libc::SYS_syslog),
        ("userfaultfd", libc::SYS_userfaultfd),
    ] {
        put(name, call(syscall, [0; 6]));
    }
    // Bit 30 of the number selects the x32 table, which a filter over x86-64 numbers may have forgotten.
    #[cfg(target_arch = "x86_64")]
    put("x32 getpid", call(0x4000_0000 | libc::SYS_getpid, [0; 6]));
    put("personality", call(libc::SYS_personality, [libc::c_long::from(libc::ADDR_NO_RANDOMIZE), 0, 0, 0, 0, 0]));
    // TIOCSTI types into the terminal of whoever called.
    put("ioctl TIOCSTI", call(libc::SYS_ioctl, [0, 0x5412, 0, 0, 0, 0]));

    for path in [
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/kernel/hostname",
        "/proc/sys/vm/drop_caches",
        "/proc/sysrq-trigger",
        "/proc/1/mem",
        "/sys/kernel/uevent_helper",
        "/sys/power/state",
        "/dev/mem",
        "/dev/kmsg",
    ] {
        let error = number(rustix::fs::open(path, OFlags::WRONLY, Mode::empty()));
        put(&format!("write {path}"), error);
    }
    for path in ["/proc/kcore", "/proc/keys", "/proc/kmsg", "/proc/1/environ", "/proc/1/mem", "/sys/firmware/dmi"] {
        // A masked path may be there: what counts is that nothing comes out of it.
        let error = match fs::read(path) {
            Ok(bytes) if bytes.is_empty() => libc::ENODATA,
            Err(error) if error.raw_os_error() == Some(libc::EISDIR) => match fs::read_dir(path).map(Iterator::count) {
                Ok(0) => libc::ENODATA,
                other => file(other),
            },
            other => file(other),
        };
        put(&format!("read {path}"), error);
    }
    put("list /proc/1/root", file(fs::read_dir("/proc/1/root/")));
    put("list /proc/1/fd", file(fs::read_dir("/proc/1/fd")));
    put("write /", {
        let error = file(fs::write("/probe-file", b"x"));
        drop(fs::remove_file("/probe-file"));
        error
    });
    put("may write /tmp", {
        let error = file(fs::write("/tmp/probe-file", b"x"));
        drop(fs::remove_file("/tmp/probe-file"));
        error
    });
    for name in ["user", "mnt", "pid", "net"] {
        let entered = fs::File::open(format!("/proc/1/ns/{name}"))
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
            .and_then(|link| rustix::thread::move_into_link_name_space(std::os::fd::AsFd::as_fd(&link), None));
        put(&format!("setns {name}"), number(entered));
    }
    for (name, flag) in [
        ("user", libc::CLONE_NEWUSER),
        ("mount", libc::CLONE_NEWNS),
        ("net", libc::CLONE_NEWNET),
        ("pid", libc::CLONE_NEWPID),
        ("cgroup", libc::CLONE_NEWCGROUP),
        ("time", libc::CLONE_NEWTIME),
    ] {
        put(&format!("unshare {name}"), call(libc::SYS_unshare, [flag.into(), 0, 0, 0, 0, 0]));
    }
    tried
}

/// Takes a read lease (`fcntl(2)`) and never gives it back.
#[expect(unsafe_code, reason = "no crate here has F_SETLEASE")]
fn lease(path: &str) {
    use std::os::fd::AsRawFd;
    let file = fs::File::open(path).unwrap_or_else(|error| panic!("open {path}: {error}"));
    // SAFETY: an ignored signal runs no code; the descriptor is open.
    let result = unsafe {
        libc::signal(libc::SIGIO, libc::SIG_IGN);
        libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_RDLCK)
    };
    println!("{}", if result == 0 { "leased" } else { "refused" });
    loop {
        std::thread::park();
    }
}

/// One echo request and its answer, as a program without CAP_NET_RAW sends it (icmp(7)).
fn ping(address: std::net::IpAddr) {
    use rustix::net::{AddressFamily, SocketType, ipproto};
    let (family, protocol, request) = match address {
        std::net::IpAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP, 8),
        std::net::IpAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6, 128),
    };
    let socket = rustix::net::socket(family, SocketType::DGRAM, Some(protocol)).expect("make a socket");
    rustix::net::connect(&socket, &std::net::SocketAddr::new(address, 0)).expect("connect");
    // The kernel fills in the checksum and the identifier.
    rustix::net::send(&socket, &[request, 0, 0, 0, 0, 0, 0, 1], rustix::net::SendFlags::empty()).expect("send");
    let mut fds = [rustix::event::PollFd::new(&socket, rustix::event::PollFlags::IN)];
    let limit = rustix::event::Timespec { tv_sec: 10, tv_nsec: 0 };
    assert_eq!(rustix::event::poll(&mut fds, Some(&limit)), Ok(1), "no answer within 10 s");
    println!("answered");
}

/// Connects within a second and says what came of it. Of a link-local address the scope is the index of the interface.
#[expect(unsafe_code, reason = "no crate here has SO_BINDTODEVICE")]
fn reach(address: std::net::SocketAddr, interface: Option<&String>) {
    use std::os::fd::AsRawFd;
    let family = if address.is_ipv4() { rustix::net::AddressFamily::INET } else { rustix::net::AddressFamily::INET6 };
    let socket =
        rustix::net::socket_with(family, rustix::net::SocketType::STREAM, rustix::net::SocketFlags::NONBLOCK, None)
            .expect("make a socket");
    if let Some(name) = interface {
        let length = u32::try_from(name.len()).expect("a short name");
        // SAFETY: the name lives as long as the call, which reads so many bytes of it; the descriptor is open.
        let result = unsafe {
            libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_BINDTODEVICE, name.as_ptr().cast(), length)
        };
        assert_eq!(result, 0, "bind to {name}: {}", std::io::Error::last_os_error());
    }
    let outcome = match rustix::net::connect(&socket, &address) {
        Err(Errno::INPROGRESS) => {
            let mut fds = [rustix::event::PollFd::new(&socket, rustix::event::PollFlags::OUT)];
            let second = rustix::event::Timespec { tv_sec: 1, tv_nsec: 0 };
            match rustix::event::poll(&mut fds, Some(&second)).expect("poll") {
                0 => Err(Errno::TIMEDOUT),
                _ => rustix::net::sockopt::socket_error(&socket).expect("read what came of it"),
            }
        }
        other => other,
    };
    match outcome {
        Ok(()) => println!("reached"),
        // Nobody listens, but somebody is there to say so.
        Err(Errno::CONNREFUSED) => println!("refused"),
        Err(error) => println!("silent: {error}"),
    }
}

/// Sends a datagram in the name of an IPv6 address, which need not be its own, and says what came of it.
#[expect(unsafe_code, reason = "no crate here has IPV6_FREEBIND")]
fn forge(from: std::net::Ipv6Addr, to: std::net::SocketAddrV6) {
    use std::os::fd::AsRawFd;
    let (kind, family) = (rustix::net::SocketType::DGRAM, rustix::net::AddressFamily::INET6);
    let socket = rustix::net::socket(family, kind, None).expect("make a socket");
    let one: libc::c_int = 1;
    let length = u32::try_from(size_of_val(&one)).expect("a small number");
    // SAFETY: the number lives as long as the call, which reads so many bytes of it; the descriptor is open.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_IPV6, libc::IPV6_FREEBIND, (&raw const one).cast(), length)
    };
    assert_eq!(result, 0, "have any address: {}", std::io::Error::last_os_error());
    let sent = rustix::net::bind(&socket, &std::net::SocketAddrV6::new(from, 0, 0, 0))
        .and_then(|()| rustix::net::sendto(&socket, b"forged\n", rustix::net::SendFlags::empty(), &to));
    match sent {
        Ok(_) => println!("sent"),
        Err(error) => println!("refused: {error}"),
    }
}

fn bytes(hex: &str) -> Vec<u8> {
    let digit = |at: usize| u8::from_str_radix(hex.get(at..at + 2).unwrap_or("x"), 16).expect("hexadecimal digits");
    (0..hex.len()).step_by(2).map(digit).collect()
}

/// Sends each message as it is, and prints what comes back within three seconds: hexadecimal, `none`, or `closed`.
fn dns(server: &str, how: &str, messages: &[String]) {
    let print = |result: std::io::Result<Vec<u8>>| match result {
        Ok(bytes) => println!("{}", bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>()),
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => println!("none"),
        Err(_) => println!("closed"),
    };
    let patience = Some(Duration::from_secs(3));
    for message in messages {
        if how == "udp" {
            let socket = UdpSocket::bind("0.0.0.0:0").expect("make a socket");
            socket.set_read_timeout(patience).expect("set a limit");
            socket.send_to(&bytes(message), (server, 53)).expect("send");
            let mut answer = vec![0; 65536];
            print(socket.recv(&mut answer).map(|length| answer[..length].to_vec()));
        } else {
            let mut stream = TcpStream::connect((server, 53)).expect("connect");
            stream.set_read_timeout(patience).expect("set a limit");
            let mut length = [0; 2];
            // Whoever hangs up in the middle resets what is still written.
            print(stream.write_all(&bytes(message)).and_then(|()| stream.read_exact(&mut length)).and_then(|()| {
                let mut answer = vec![0; u16::from_be_bytes(length).into()];
                stream.read_exact(&mut answer).map(|()| answer)
            }));
        }
    }
}

/// Asks the same so many times on so many threads, each question once. Prints how many got an answer that has one, and the
/// milliseconds that it took.
fn look_up(server: &str, question: &str, count: usize, threads: usize) {
    let (question, start) = (bytes(question), std::time::Instant::now());
    let ask = || {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("make a socket");
        socket.set_read_timeout(Some(Duration::from_secs(5))).expect("set a limit");
        socket.connect((server, 53)).expect("connect");
        let mut answer = [0; 512];
        let mut good = 0;
        for number in 0..count / threads {
            let mut question = question.clone();
            question[..2].copy_from_slice(&[(number >> 8) as u8, number as u8]);
            socket.send(&question).expect("send");
            let answered = socket.recv(&mut answer).is_ok();
            good += usize::from(answered && answer[..2] == question[..2] && answer[3] & 0xf == 0 && answer[7] > 0);
        }
        good
    };
    let good: usize = std::thread::scope(|scope| {
        let all: Vec<_> = (0..threads).map(|_| scope.spawn(ask)).collect();
        all.into_iter().map(|thread| thread.join().expect("a thread that asks")).sum()
    });
    println!("{good} {}", start.elapsed().as_millis());
}

/// Sends to a name server what it can, reads no answer, and opens connections that it leaves.
fn flood(server: &str, seconds: u64) {
    let socket = UdpSocket::bind("0.0.0.0:0").expect("make a socket");
    socket.connect((server, 53)).expect("connect");
    let (end, mut state, mut sent) = (std::time::Instant::now() + Duration::from_secs(seconds), 1u64, 0u64);
    let mut open = Vec::new();
    let query = b"\0\0\x01\0\0\x01\0\0\0\0\0\0\x03web\0\0\x01\0\x01";
    while std::time::Instant::now() < end {
        for length in 0..512usize {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let junk: Vec<u8> = (0..length).map(|n| (state >> (n % 57)) as u8 ^ n as u8).collect();
            // What the kernel takes no more of is lost, as the rest may be.
            sent += u64::from(socket.send(if length % 2 == 0 { query } else { &junk }).is_ok());
        }
        if let Ok(mut stream) = TcpStream::connect((server, 53)) {
            drop(stream.write_all(&[0]));
            open.push(stream);
        }
        if open.len() > 500 {
            open.clear();
        }
    }
    println!("{sent}");
}

/// HTTP enough for probes and clients: `/` answers with the request's body or `hello`, `/fail` with 500.
fn serve(address: &str, port: u16) {
    let listener = TcpListener::bind((address, port)).unwrap_or_else(|error| panic!("listen on {port}: {error}"));
    println!("listening on {port}");
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { continue };
        std::thread::spawn(move || -> std::io::Result<()> {
            let mut reader = BufReader::new(stream.try_clone()?);
            let mut request = String::new();
            reader.read_line(&mut request)?;
            loop {
                let mut header = String::new();
                if reader.read_line(&mut header)? == 0 || header.trim().is_empty() {
                    break;
                }
            }
            let status = if request.contains(" /fail") { "500 Internal Server Error" } else { "200 OK" };
            let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
            let body = format!("hello from {host}");
            write!(stream, "HTTP/1.0 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
        });
    }
}

fn tell(places: &[String]) {
    let serving: Vec<_> = places
        .iter()
        .map(|place| {
            let (protocol, port) = place.split_once(':').expect("tell takes PROTOCOL:PORT");
            let address = ("0.0.0.0", port.parse().expect("a port"));
            match protocol {
                "tcp" => {
                    let listener = TcpListener::bind(address).expect("listen");
                    let port = port.to_owned();
                    std::thread::spawn(move || tell_connections(&listener, &port))
                }
                _ => {
                    let socket = UdpSocket::bind(address).expect("bind");
                    let port = port.to_owned();
                    std::thread::spawn(move || tell_datagrams(&socket, &port))
                }
            }
        })
        .collect();
    println!("telling");
    for thread in serving {
        thread.join().expect("it serves on");
    }
}

fn tell_connections(listener: &TcpListener, port: &str) {
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { continue };
        let port = port.to_owned();
        // A small stack: there may be thousands.
        let serve = move || -> std::io::Result<()> {
            writeln!(stream, "{port}/tcp sees {}", stream.peer_addr()?)?;
            let mut buffer = [0; 16 * 1024];
            loop {
                match stream.read(&mut buffer)? {
                    0 => return Ok(()),
                    length => stream.write_all(&buffer[..length])?,
                }
            }
        };
        drop(std::thread::Builder::new().stack_size(64 * 1024).spawn(serve));
    }
}

fn tell_datagrams(socket: &UdpSocket, port: &str) {
    let mut buffer = vec![0; 65_536];
    loop {
        let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
        let mut answer = format!("{port}/udp sees {from}\n").into_bytes();
        answer.extend_from_slice(&buffer[..length]);
        // What became too long goes back as it came.
        if socket.send_to(&answer, from).is_err() {
            drop(socket.send_to(&buffer[..length], from));
        }
    }
}
