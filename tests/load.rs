//! Published ports under load, on a host of their own: thousands of connections at once, and as many descriptors as there are.
#![forbid(unsafe_code)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use containust_tests::{Caller, Project, World, eventually};
use rustix::net::sockopt::set_socket_linger;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

const PATIENCE: Duration = Duration::from_secs(20);
const PLACE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8080);
/// At once, of which each fourth is closed by halves, each twelfth reads late, and each fifth is reset.
const MANY: usize = 3000;
/// What a late reader asks for, which is more than sockets hold.
const MUCH: usize = 8 << 20;

const STACK: &str = r#"
COMPONENT web {
  image   = "file://ROOTFS"
  command = ["/bin/ctst-probe", "tell", "tcp:80"]
  ulimits { nofile = "LIMIT" }
  stop    { grace = 0s }
}
EXPOSE 8080 -> web:80
"#;

fn stack(limit: usize) -> String {
    STACK.replace("LIMIT", &limit.to_string())
}

fn callers() -> Vec<Caller> {
    if Caller::root().is_none() {
        return Vec::new();
    }
    [Caller::ranges(), Caller::strict()].into_iter().flatten().collect()
}

fn raise_limit() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).expect("raise the limit");
    assert!(
        maximum.is_none_or(|most| most > 4 * MANY as u64),
        "a hard limit of {maximum:?} is not enough for this test"
    );
}

/// A connection that was greeted, so that it is one to the container.
fn connected() -> TcpStream {
    let stream = TcpStream::connect_timeout(&PLACE, PATIENCE).expect("connect");
    stream.set_read_timeout(Some(PATIENCE)).expect("set a limit");
    stream.set_write_timeout(Some(PATIENCE)).expect("set a limit");
    stream
}

fn greeted(stream: &TcpStream) {
    let mut line = Vec::new();
    let mut byte = [0];
    let mut stream = stream;
    while byte != [b'\n'] {
        stream.read_exact(&mut byte).expect("read");
        line.extend(byte);
    }
    assert!(line.starts_with(b"80/tcp sees "), "{}", String::from_utf8_lossy(&line));
}

fn echoes(mut stream: &TcpStream, text: &[u8]) {
    stream.write_all(text).expect("write");
    let mut back = vec![0; text.len()];
    stream.read_exact(&mut back).expect("read");
    assert_eq!(back, text);
}

/// Open descriptors and bytes in memory of every process of ours that lives as long as the project.
fn held(project: &Project) -> (usize, u64) {
    let parts = project.parts();
    let count = |pid: i32| std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
    let memory = |pid: i32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("0 kB").to_owned();
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
    };
    let ours = || parts.iter().filter(|(_, part)| *part != "X").map(|(pid, _)| *pid);
    assert!(ours().count() >= 3, "{parts:?}");
    (ours().map(count).sum(), ours().map(memory).sum())
}

/// All at once: open, greeted, and then each in its way.
fn round() {
    let mut streams = Vec::with_capacity(MANY);
    while streams.len() < MANY {
        // No more than the 128 that a service of the standard library has in its queue (listen(2)): the kernel asks again for the others, later
        // each time.
        let some: Vec<TcpStream> = (0..100).map(|_| connected()).collect();
        some.iter().for_each(greeted);
        streams.extend(some);
    }
    let mut late = Vec::new();
    for (number, stream) in streams.iter().enumerate() {
        if number % 12 == 1 && late.len() < 8 {
            // It does not read what it is sent back, and writes until nobody takes any more.
            let mut writer = stream.try_clone().expect("copy a descriptor");
            late.push((
                stream,
                std::thread::spawn(move || {
                    let sent = writer.write_all(&vec![7; MUCH]);
                    sent.and_then(|()| writer.shutdown(Shutdown::Write))
                }),
            ));
        }
    }
    // Who reads late slows nobody else.
    for (number, stream) in streams.iter().enumerate() {
        if number % 12 != 1 {
            echoes(stream, format!("hello from {number}").as_bytes());
        }
    }
    for (number, stream) in streams.iter().enumerate().filter(|(number, _)| number % 12 != 1) {
        if number % 5 == 0 {
            set_socket_linger(stream.as_fd(), Some(Duration::ZERO)).expect("have it reset");
        } else if number % 4 == 0 {
            stream.shutdown(Shutdown::Write).expect("half-close");
            let mut stream = stream;
            assert_eq!(stream.read(&mut [0; 16]).expect("read"), 0, "it is answered by the end");
        }
    }
    for (mut stream, writer) in late {
        let (mut length, mut buffer) = (0, vec![0; 1 << 16]);
        loop {
            match stream.read(&mut buffer).expect("read") {
                0 => break,
                read => length += read,
            }
        }
        writer.join().expect("it writes").expect("write");
        assert_eq!(length, MUCH);
    }
}

#[test]
fn thousands_of_connections_leave_nothing_behind() {
    raise_limit();
    for caller in callers() {
        let world = World::new();
        let project = Project::within(&caller, &stack(2 * MANY), &world);
        project.up();
        eventually("it serves", || {
            world.at_home(|| {
                TcpStream::connect(PLACE).is_ok_and(|stream| {
                    BufReader::new(stream).read_line(&mut String::new()).is_ok_and(|length| length > 0)
                })
            })
        });
        world.at_home(round);
        let settled = |most: usize| eventually("its sockets are closed", || held(&project).0 <= most);
        // What is kept for the next ones, between 8 and 32, is a part of it.
        settled(200);
        let (descriptors, memory) = held(&project);
        for _ in 0..2 {
            world.at_home(round);
            settled(descriptors + 32);
        }
        let (_, after) = held(&project);
        assert!(after < memory + (4 << 20), "{memory} grew to {after}");
        let events = project.ctst(["events"]).ok().stdout;
        assert!(!events.contains("wait"), "nobody had to wait: {events}");
        project.stop();
    }
}

/// Whoever comes while a component is started again is served or refused, and soon.
#[test]
fn clients_hang_at_no_restart() {
    for caller in callers() {
        let world = World::new();
        let project = Project::within(&caller, &stack(1000), &world);
        project.up();
        let (over, served, refused) = (AtomicBool::new(false), AtomicU32::new(0), AtomicU32::new(0));
        let comes = || {
            while !over.load(Ordering::Relaxed) {
                let start = Instant::now();
                let talk = || -> std::io::Result<()> {
                    let mut stream = TcpStream::connect_timeout(&PLACE, PATIENCE)?;
                    stream.set_read_timeout(Some(PATIENCE))?;
                    stream.write_all(b"hello\n")?;
                    stream.shutdown(Shutdown::Write)?;
                    let mut text = String::new();
                    stream.read_to_string(&mut text)?;
                    match text.ends_with("hello\n") {
                        true => Ok(()),
                        false => Err(std::io::ErrorKind::UnexpectedEof.into()),
                    }
                };
                match talk() {
                    Ok(()) => served.fetch_add(1, Ordering::Relaxed),
                    Err(_) => refused.fetch_add(1, Ordering::Relaxed),
                };
                assert!(start.elapsed() < PATIENCE / 2, "it hung for {:?}", start.elapsed());
            }
        };
        std::thread::scope(|scope| {
            let clients: Vec<_> = (0..8).map(|_| scope.spawn(|| world.at_home(comes))).collect();
            for _ in 0..3 {
                let before = served.load(Ordering::Relaxed);
                eventually("it serves", || served.load(Ordering::Relaxed) > before + 20);
                project.ctst(["restart"]).ok();
            }
            let before = served.load(Ordering::Relaxed);
            eventually("it serves again", || served.load(Ordering::Relaxed) > before + 20);
            over.store(true, Ordering::Relaxed);
            for client in clients {
                client.join().expect("nobody hung");
            }
        });
        assert!(refused.load(Ordering::Relaxed) > 0, "nobody came while it was away");
        project.stop();
    }
}

/// A flood of connections takes half of the descriptors: who comes then waits, it is told, and all else works.
#[test]
fn connections_leave_descriptors_to_others() {
    raise_limit();
    for caller in callers() {
        let world = World::new();
        let mut project = Project::within(&caller, &stack(512), &world);
        "ulimit -n 512".clone_into(&mut project.prelude);
        project.up();
        let streams: Vec<TcpStream> = world.at_home(|| (0..200).map(|_| connected()).collect());
        streams[..128].iter().for_each(greeted);
        let told = || project.ctst(["events"]).ok().stdout;
        eventually("it is told", || told().contains("clients of 127.0.0.1:8080 wait: 128 connections"));
        let waits = &streams[190];
        waits.set_read_timeout(Some(Duration::from_millis(500))).expect("set a limit");
        let mut waiting = waits;
        assert!(waiting.read(&mut [0; 16]).is_err(), "it is not served yet");
        streams[..128].iter().for_each(|stream| echoes(stream, b"served"));
        // Everything else has what it needs.
        assert_eq!(project.ctst(["exec", "web", "echo", "works"]).ok().stdout, "works\n");
        project.ctst(["restart"]).ok();
        assert_eq!(project.ctst(["exec", "web", "echo", "works"]).ok().stdout, "works\n");
        drop(streams);
        eventually("who comes then is served", || {
            world.at_home(|| {
                let stream = connected();
                let mut line = String::new();
                BufReader::new(stream).read_line(&mut line).is_ok() && line.starts_with("80/tcp sees")
            })
        });
        assert_eq!(told().matches("wait: ").count(), 1, "once a minute: {}", told());
        let log = std::fs::read_to_string(project.folder().join(".containust/supervisor.log")).expect("read the log");
        assert_eq!(log.matches("clients of 127.0.0.1:8080 wait: ").count(), 1, "{log}");
        project.stop();
    }
}
