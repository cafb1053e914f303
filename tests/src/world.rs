use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, UdpSocket};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::finish;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A network namespace for a host, and one for everything that the host reaches, which answers: HTTP at port 80 with who asked, and
/// names, of which it knows [`World::NAME`], at port 53. For root.
#[derive(Debug)]
pub struct World {
    /// The host's network namespace, as `ip netns` knows it.
    pub home: String,
    there: String,
}

impl World {
    /// The host's address.
    pub const HOME: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
    /// That of everybody else.
    pub const THERE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
    /// The host's address by IPv6.
    pub const HOME6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
    /// An address that clouds give to what describes a host, and answers here, too.
    pub const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
    /// The name of [`World::THERE`].
    pub const NAME: &str = "somewhere.example";

    /// Makes both, and connects them.
    ///
    /// # Panics
    /// If they cannot be made.
    #[must_use]
    pub fn new() -> Self {
        let number = format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let world = Self { home: format!("ctst-home-{number}"), there: format!("ctst-there-{number}") };
        let (home, there) = (&world.home, &world.there);
        let (metadata, gateway) = (Self::METADATA, Self::THERE);
        for line in [
            format!("netns add {home}"),
            format!("netns add {there}"),
            format!("link add uplink netns {home} type veth peer name uplink netns {there}"),
            format!("-n {home} address add {}/24 dev uplink", Self::HOME),
            format!("-n {there} address add {gateway}/24 dev uplink"),
            format!("-n {there} address add {metadata}/32 dev uplink"),
            format!("-n {home} address add {}/64 dev uplink nodad", Self::HOME6),
            format!("-n {there} address add 2001:db8::2/64 dev uplink nodad"),
            format!("-n {home} link set lo up"),
            format!("-n {home} link set uplink up"),
            format!("-n {there} link set uplink up"),
            format!("-n {home} route add default via {gateway}"),
        ] {
            finish(Command::new("ip").args(line.split(' '))).ok();
        }
        fs::create_dir_all(world.settings()).expect("make a folder");
        fs::write(world.settings().join("resolv.conf"), format!("nameserver {gateway}\n")).expect("write resolv.conf");
        let (ready, served) = channel();
        let namespace = Path::new("/var/run/netns").join(there);
        // They end with the tests.
        let names = ready.clone();
        let place = namespace.clone();
        thread::spawn(move || {
            within(
                &place,
                || UdpSocket::bind((gateway, 53)).expect("bind"),
                &names,
                |socket| {
                    tell_names(socket, World::NAME, 3, &Asked::default());
                },
            );
        });
        thread::spawn(move || within(&namespace, || TcpListener::bind("0.0.0.0:80").expect("bind"), &ready, greet));
        served.recv().and_then(|()| served.recv()).expect("the world answers");
        world
    }

    /// A name server at this address elsewhere, which is given it, that answers with the address of [`World::THERE`] to this name, and with
    /// this response code to all others. Returns what it is asked.
    ///
    /// # Panics
    /// If it cannot be made.
    #[must_use]
    pub fn name_server(&self, ip: Ipv4Addr, name: &'static str, code: u8) -> Asked {
        let line = format!("-n {} address add {ip}/32 dev uplink", self.there);
        finish(Command::new("ip").args(line.split(' '))).ok();
        let socket = self.elsewhere(|| UdpSocket::bind((ip, 53)).expect("bind"));
        let asked = Asked::default();
        let asking = asked.clone();
        thread::spawn(move || tell_names(&socket, name, code, &asking));
        asked
    }

    /// `ip netns exec` mounts what is in here over `/etc`.
    fn settings(&self) -> PathBuf {
        Path::new("/etc/netns").join(&self.home)
    }

    /// The network namespace elsewhere, as `ip netns` knows it.
    #[must_use]
    pub fn there(&self) -> &str {
        &self.there
    }

    /// Does something on the host.
    ///
    /// # Panics
    /// If that does, or the host is not there.
    pub fn at_home<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        Self::at(&self.home, work)
    }

    /// Does something elsewhere.
    ///
    /// # Panics
    /// As [`World::at_home`].
    pub fn elsewhere<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        Self::at(&self.there, work)
    }

    fn at<T: Send>(name: &str, work: impl FnOnce() -> T + Send) -> T {
        let place = Path::new("/var/run/netns").join(name);
        let there = move || {
            enter(&place);
            work()
        };
        thread::scope(|scope| scope.spawn(there).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    }

    /// A socket that listens on the host's loopback.
    ///
    /// # Panics
    /// If it cannot be made.
    #[must_use]
    pub fn on_loopback(&self) -> u16 {
        let namespace = Path::new("/var/run/netns").join(&self.home);
        let (ready, served) = channel();
        thread::spawn(move || {
            let bind = || TcpListener::bind("127.0.0.1:0").expect("bind");
            within(&namespace, bind, &channel().0, |listener| {
                ready.send(listener.local_addr().expect("an address").port()).expect("tell the port");
                greet(listener);
            });
        });
        served.recv().expect("it listens")
    }
}

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for name in [&self.home, &self.there] {
            let _ = Command::new("ip").args(["netns", "delete", name]).status();
        }
        let _ = fs::remove_dir_all(self.settings());
    }
}

/// Binds and serves in another network namespace, which this thread does not leave.
fn within<S>(place: &Path, bind: impl FnOnce() -> S, ready: &std::sync::mpsc::Sender<()>, serve: impl FnOnce(&S)) {
    enter(place);
    let socket = bind();
    let _ = ready.send(());
    serve(&socket);
}

/// For this thread.
fn enter(place: &Path) {
    let namespace = fs::File::open(place).expect("open the network namespace");
    move_into_link_name_space(std::os::fd::AsFd::as_fd(&namespace), Some(LinkNameSpaceType::Network))
        .expect("enter it");
}

fn greet(listener: &TcpListener) {
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { continue };
        let from = stream.peer_addr().map(|from| from.ip().to_string()).unwrap_or_default();
        let _ = stream.read(&mut [0; 1024]);
        let text = format!("seen from {from}\n");
        let _ = write!(stream, "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len());
    }
}

/// Names that a server was asked for, in lower case.
pub type Asked = Arc<Mutex<Vec<String>>>;

fn tell_names(socket: &UdpSocket, name: &str, code: u8, asked: &Asked) {
    let mut buffer = [0; 512];
    while let Ok((length, from)) = socket.recv_from(&mut buffer) {
        let question = &buffer[..length];
        let name: Vec<u8> = name.split('.').flat_map(|part| [&[part.len() as u8], part.as_bytes()].concat()).collect();
        let Some(end) = question[12..].iter().position(|byte| *byte == 0).map(|at| 12 + at + 5) else { continue };
        let known = question[12..end - 5].eq_ignore_ascii_case(&name);
        let mut labels = Vec::new();
        let mut rest = &question[12..end - 5];
        while let [length, more @ ..] = rest {
            let (label, others) = more.split_at(usize::from(*length));
            labels.push(String::from_utf8_lossy(label).to_lowercase());
            rest = others;
        }
        asked.lock().expect("a list").push(labels.join("."));
        let mut answer = question[..end.min(length)].to_vec();
        answer[2] |= 0x80;
        answer[3] = if known { 0x80 } else { 0x80 | code };
        answer[6..12].fill(0);
        if known && question[end - 3] == 1 {
            answer[7] = 1;
            answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
            answer.extend(World::THERE.octets());
        }
        let _ = socket.send_to(&answer, from);
    }
}

/// Runs in the network namespace of a process.
///
/// # Panics
/// Where the caller is not root, or the process is gone.
pub fn inside<T: Send>(pid: i32, work: impl FnOnce() -> T + Send) -> T {
    let namespace = fs::File::open(format!("/proc/{pid}/ns/net")).expect("open a network namespace");
    let enter = move || {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).expect("enter it");
        work()
    };
    thread::scope(|scope| scope.spawn(enter).join().expect("it works"))
}
