use std::net::{Ipv4Addr, SocketAddrV4};
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::thread::sleep;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener as StdListener, TcpStream as StdStream, UdpSocket};

use super::*;

const LOCAL: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0));
const PATIENCE: Duration = Duration::from_secs(20);

/// A forwarder with a thread that supplies it as the supervisor does, from this namespace.
struct Stage {
    forwarder: Arc<Forwarder>,
    address: SocketAddr,
    server: StdListener,
    stop: Arc<AtomicBool>,
    supplier: Option<JoinHandle<()>>,
}

impl Stage {
    fn new() -> Self {
        let forwarder = Arc::new(Forwarder::start(Publisher::start().unwrap()).unwrap());
        // With a queue for thousands.
        let server = StdListener::from(bind(tcp(LOCAL)).unwrap());
        server.set_nonblocking(false).unwrap();
        let address = forwarder.listen(7, tcp(LOCAL)).unwrap();
        forwarder.target(7, Some(server.local_addr().unwrap()));
        let stop = Arc::new(AtomicBool::new(false));
        let supplier = std::thread::spawn({
            let (forwarder, stop) = (Arc::clone(&forwarder), Arc::clone(&stop));
            move || {
                while !stop.load(Ordering::SeqCst) {
                    if readable(&forwarder, Duration::from_millis(20)) {
                        forwarder.noticed();
                        for (protocol, kind) in
                            [(Protocol::Tcp, SocketType::STREAM), (Protocol::Udp, SocketType::DGRAM)]
                        {
                            for _ in 0..forwarder.needs(protocol).div_ceil(16) {
                                forwarder.supply(protocol, (0..16).map(|_| socket(kind)).collect());
                            }
                        }
                    }
                }
            }
        });
        Self { forwarder, address, server, stop, supplier: Some(supplier) }
    }

    fn connect(&self) -> StdStream {
        let client = StdStream::connect(self.address).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.set_write_timeout(Some(PATIENCE)).unwrap();
        client
    }

    /// A client is reset, perhaps before its connect(2) returns.
    fn resets(&self) {
        match StdStream::connect(self.address) {
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}"),
            Ok(mut client) => {
                client.set_read_timeout(Some(PATIENCE)).unwrap();
                assert_reset(&mut client);
            }
        }
    }

    fn pair(&self) -> (StdStream, StdStream) {
        let client = self.connect();
        assert!(readable(&self.server, PATIENCE), "nobody was led there");
        let (server, _) = self.server.accept().unwrap();
        server.set_read_timeout(Some(PATIENCE)).unwrap();
        server.set_write_timeout(Some(PATIENCE)).unwrap();
        (client, server)
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        self.supplier.take().unwrap().join().unwrap();
    }
}

fn socket(kind: SocketType) -> OwnedFd {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    rustix::net::socket_with(AddressFamily::INET, kind, flags, None).unwrap()
}

fn tcp(place: SocketAddr) -> HostPort {
    HostPort { protocol: Protocol::Tcp, place }
}

fn udp(place: SocketAddr) -> HostPort {
    HostPort { protocol: Protocol::Udp, place }
}

fn readable(fd: &impl AsFd, wait: Duration) -> bool {
    let mut fds = [rustix::event::PollFd::new(fd, rustix::event::PollFlags::IN)];
    rustix::event::poll(&mut fds, Some(&wait.try_into().unwrap())).unwrap() > 0
}

fn read_all(stream: &mut StdStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    bytes
}

#[track_caller]
fn assert_reset(stream: &mut StdStream) {
    let error = stream.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}");
}

fn eventually(condition: impl Fn() -> bool) -> bool {
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        if condition() {
            return true;
        }
        sleep(Duration::from_millis(10));
    }
    false
}

/// Bytes in which a shift or a swap of blocks shows.
fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|n| (n as u32).wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect()
}

fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let hard = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: hard, maximum: hard }).unwrap();
}

/// Descriptors are counted in a process that runs nothing else.
fn alone() -> bool {
    if std::env::var_os("FORWARD_TEST_ALONE").is_some() {
        return true;
    }
    let name = std::thread::current().name().unwrap().to_owned();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &name, "--nocapture"])
        .env("FORWARD_TEST_ALONE", "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}{}", String::from_utf8_lossy(&output.stderr));
    false
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn two_thousand_at_once_and_no_descriptor_left() {
    if !alone() {
        return;
    }
    raise_descriptor_limit();
    let before_all = descriptors();
    let stage = Stage::new();
    assert!(eventually(|| descriptors() >= before_all + POOL.end));
    let before = descriptors();
    let mut clients: Vec<_> = (0..2000).map(|_| stage.connect()).collect();
    let mut servers: Vec<_> = (0..2000).map(|_| stage.server.accept().unwrap().0).collect();
    for (n, client) in clients.iter_mut().enumerate() {
        write!(client, "{n:08}").unwrap();
    }
    for server in &mut servers {
        let mut hello = [0; 8];
        server.read_exact(&mut hello).unwrap();
        server.write_all(&hello).unwrap();
    }
    for (n, client) in clients.iter_mut().enumerate() {
        let mut answer = [0; 8];
        client.read_exact(&mut answer).unwrap();
        assert_eq!(answer, format!("{n:08}").as_bytes());
    }
    // What is in the pool now may not be what was in it before.
    assert!(descriptors() >= before_all + 8000);
    // Ends of all kinds.
    for (n, (client, server)) in clients.into_iter().zip(servers).enumerate() {
        match n % 3 {
            0 => drop((client, server)),
            1 => drop((server, client)),
            _ => sockopt::set_socket_linger(&client, Some(Duration::ZERO)).unwrap(),
        }
    }
    let pooled = POOL.end - POOL.start;
    assert!(eventually(|| descriptors() <= before + pooled), "{} of {before} left", descriptors());
    drop(stage);
    assert_eq!(descriptors(), before_all);
}

#[test]
fn each_direction_closes_by_itself() {
    let stage = Stage::new();
    for client_first in [true, false] {
        let (client, server) = stage.pair();
        let (mut first, mut second) = if client_first { (client, server) } else { (server, client) };
        first.write_all(b"question").unwrap();
        first.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_all(&mut second), b"question");
        sleep(Duration::from_millis(30));
        let answer = pattern(1_000_000);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                second.write_all(&answer).unwrap();
                second.shutdown(Shutdown::Write).unwrap();
            });
            assert!(read_all(&mut first) == answer);
        });
    }
}

#[test]
fn large_streams_arrive_whole_in_both_directions_at_once() {
    let stage = Stage::new();
    let (client, server) = stage.pair();
    let data = pattern(32 << 20);
    std::thread::scope(|scope| {
        for mut stream in [client.try_clone().unwrap(), server.try_clone().unwrap()] {
            let data = &data;
            scope.spawn(move || {
                // Odd lengths make partial reads and writes.
                data.chunks(77_777).for_each(|chunk| stream.write_all(chunk).unwrap());
                stream.shutdown(Shutdown::Write).unwrap();
            });
        }
        for mut stream in [client, server] {
            let data = &data;
            scope.spawn(move || assert!(read_all(&mut stream) == *data));
        }
    });
}

#[test]
fn a_slow_reader_slows_its_sender_and_nobody_else() {
    if !alone() {
        return;
    }
    let stage = Stage::new();
    let (mut client, mut server) = stage.pair();
    server.set_nonblocking(true).unwrap();
    let chunk = pattern(1 << 20);
    let mut sent = 0;
    let mut last = Instant::now();
    while last.elapsed() < Duration::from_millis(300) {
        match server.write(&chunk[sent % chunk.len()..]) {
            Ok(n) => (sent, last) = (sent + n, Instant::now()),
            Err(e) => {
                assert_eq!(e.kind(), io::ErrorKind::WouldBlock);
                sleep(Duration::from_millis(5));
            }
        }
    }
    // What four socket buffers hold at most by tcp_rmem and tcp_wmem, and our one.
    assert!(sent < 40 << 20, "{sent} bytes taken from the sender");
    let cpu = cpu_time();
    let (mut other, mut other_server) = stage.pair();
    other.write_all(b"quick").unwrap();
    other_server.read_exact(&mut [0; 5]).unwrap();
    sleep(Duration::from_millis(500));
    assert!(cpu_time() - cpu < Duration::from_millis(100), "waiting takes no processor time");

    server.shutdown(Shutdown::Write).unwrap();
    let received = read_all(&mut client);
    assert_eq!(received.len(), sent);
    assert!(received.chunks(chunk.len()).all(|c| c == &chunk[..c.len()]));
}

/// Processor time of this process, which does nothing else. Needs no descriptor, of which there may be none.
fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.try_into().unwrap()
}

#[test]
fn resets_are_passed_on() {
    let stage = Stage::new();
    for client_first in [true, false] {
        let (client, server) = stage.pair();
        let (first, mut second) = if client_first { (client, server) } else { (server, client) };
        sockopt::set_socket_linger(&first, Some(Duration::ZERO)).unwrap();
        drop(first);
        assert_reset(&mut second);
    }
    // While the forwarder holds bytes that the other side does not take.
    let (mut client, server) = stage.pair();
    client.set_nonblocking(true).unwrap();
    let (mut sent, mut last) = (0, Instant::now());
    while last.elapsed() < Duration::from_millis(100) {
        match client.write(&[0; 65_536]) {
            Ok(n) => (sent, last) = (sent + n, Instant::now()),
            Err(_) => sleep(Duration::from_millis(5)),
        }
    }
    assert!(sent > BUFFER);
    sockopt::set_socket_linger(&client, Some(Duration::ZERO)).unwrap();
    drop(client);
    assert!(eventually(|| server.take_error().unwrap().is_some()), "the reset arrives before the bytes are read");
}

#[test]
fn no_container_no_listener_no_port() {
    let stage = Stage::new();
    stage.forwarder.target(7, None);
    stage.resets();
    // Bound and not listening, so that nobody else gets it.
    let refused = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    rustix::net::bind(&refused, &LOCAL).unwrap();
    let refused: StdListener = refused.into();
    stage.forwarder.target(7, Some(refused.local_addr().unwrap()));
    stage.resets();
    stage.forwarder.target(7, Some("[::1]:1".parse().unwrap()));
    stage.resets();
    stage.forwarder.target(7, Some(stage.server.local_addr().unwrap()));
    drop(stage.pair());
    stage.forwarder.unlisten(7);
    let refused = || StdStream::connect(stage.address).is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused);
    assert!(eventually(refused));
    assert_eq!(stage.forwarder.listen(7, tcp(stage.address)).unwrap(), stage.address);
    let taken = stage.forwarder.listen(8, tcp(stage.address)).unwrap_err();
    assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
}

#[test]
fn whoever_comes_after_a_command_is_led_by_it() {
    let stage = Stage::new();
    for _ in 0..500 {
        stage.forwarder.target(7, None);
        stage.resets();
        stage.forwarder.target(7, Some(stage.server.local_addr().unwrap()));
        drop(stage.pair());
    }
}

#[test]
fn connections_to_a_container_that_is_gone_end() {
    let stage = Stage::new();
    let (mut idle, _idle_server) = stage.pair();
    let (mut busy, mut busy_server) = stage.pair();
    stage.forwarder.target(7, None);
    stage.forwarder.target(7, Some(stage.server.local_addr().unwrap()));
    let until = Instant::now() + ORPHAN_TIMEOUT + Duration::from_secs(1);
    while Instant::now() < until {
        busy_server.write_all(b"x").unwrap();
        busy.read_exact(&mut [0]).unwrap();
        sleep(Duration::from_millis(100));
    }
    assert_reset(&mut idle);
    drop(stage.pair());
}

#[test]
fn without_supply_clients_are_reset_and_the_asking_is_calm() {
    let forwarder = Forwarder::start(Publisher::start().unwrap()).unwrap();
    assert!(!readable(&forwarder, Duration::from_millis(50)), "nothing is published yet");
    let address = forwarder.listen(1, tcp(LOCAL)).unwrap();
    forwarder.target(1, Some(address));
    assert!(readable(&forwarder, PATIENCE));
    forwarder.noticed();
    assert_eq!((forwarder.needs(Protocol::Tcp), forwarder.needs(Protocol::Udp)), (POOL.end, 0));
    let mut client = StdStream::connect(address).unwrap();
    assert!(!readable(&forwarder, Duration::from_millis(50)), "asked for once");
    forwarder.supply(Protocol::Tcp, Vec::new());
    assert_reset(&mut client);
    assert!(!readable(&forwarder, SUPPLY_PAUSE / 2));
    assert!(readable(&forwarder, PATIENCE), "asked for again");
    forwarder.supply(Protocol::Tcp, (0..POOL.end).map(|_| socket(SocketType::STREAM)).collect());
    assert!(eventually(|| forwarder.needs(Protocol::Tcp) == 0));
}

#[test]
fn running_out_of_descriptors_is_survived() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    if !alone() {
        return;
    }
    let stage = Stage::new();
    drop(stage.pair());
    // The clients' descriptors are taken before the limit falls, so that only `accept` meets it.
    let flags = SocketFlags::CLOEXEC;
    let sockets: Vec<OwnedFd> = (0..50)
        .map(|_| rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None).unwrap())
        .collect();
    let server = stage.server.try_clone().unwrap();
    let used = std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .map(|e| e.unwrap().file_name().to_string_lossy().parse::<u64>().unwrap())
        .max()
        .unwrap();
    let limit = getrlimit(Resource::Nofile);
    // The supplier has to live on.
    stage.stop.store(true, Ordering::SeqCst);
    sleep(Duration::from_millis(50));
    setrlimit(Resource::Nofile, Rlimit { current: Some(used + 1), ..limit }).unwrap();
    for socket in &sockets {
        rustix::net::connect(socket, &stage.address).unwrap();
    }
    let cpu = cpu_time();
    sleep(Duration::from_millis(500));
    assert!(cpu_time() - cpu < Duration::from_millis(100), "running out is no busy loop");
    setrlimit(Resource::Nofile, limit).unwrap();
    let supplied = (0..64).map(|_| socket(SocketType::STREAM)).collect();
    stage.forwarder.supply(Protocol::Tcp, supplied);
    let mut clients: Vec<StdStream> = sockets.into_iter().map(StdStream::from).collect();
    for client in &mut clients {
        client.write_all(b"late").unwrap();
    }
    for _ in 0..50 {
        server.accept().unwrap().0.read_exact(&mut [0; 4]).unwrap();
    }
}

/// A forwarder of datagrams to a socket of this namespace, and a client of it.
fn datagrams(place: SocketAddr) -> (Stage, SocketAddr, UdpSocket) {
    let stage = Stage::new();
    let server = UdpSocket::bind(LOCAL).unwrap();
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    let at = stage.forwarder.listen(9, udp(place)).unwrap();
    stage.forwarder.target(9, Some(server.local_addr().unwrap()));
    (stage, at, server)
}

fn client(of: SocketAddr) -> UdpSocket {
    let local: SocketAddr = if of.is_ipv4() { "127.0.0.1:0".parse().unwrap() } else { "[::1]:0".parse().unwrap() };
    let client = UdpSocket::bind(local).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.connect(of).unwrap();
    client
}

fn one(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut buffer = vec![0; BUFFER];
    let (length, from) = socket.recv_from(&mut buffer).unwrap();
    buffer.truncate(length);
    (buffer, from)
}

#[test]
fn datagrams_are_answered_to_who_sent_them() {
    let (_stage, at, server) = datagrams(LOCAL);
    let clients = [client(at), client(at)];
    for (n, client) in clients.iter().enumerate() {
        client.send(format!("from {n}").as_bytes()).unwrap();
    }
    let asked: Vec<_> = clients.iter().map(|_| one(&server)).collect();
    assert_ne!(asked[0].1, asked[1].1, "each is another peer");
    for (bytes, from) in asked.iter().rev() {
        server.send_to(bytes, from).unwrap();
        server.send_to(b"more", from).unwrap();
    }
    for (n, client) in clients.iter().enumerate() {
        assert_eq!(one(client).0, format!("from {n}").as_bytes());
        assert_eq!(one(client).0, b"more");
        client.send(b"again").unwrap();
        assert!(asked.contains(&(format!("from {n}").into_bytes(), one(&server).1)), "by the same socket");
    }
    // The largest, and the smallest.
    for length in [65_507, 0, 1] {
        let sent = pattern(length);
        clients[0].send(&sent).unwrap();
        let (bytes, from) = one(&server);
        assert!(bytes == sent);
        server.send_to(&bytes, from).unwrap();
        assert!(one(&clients[0]).0 == sent);
    }
}

/// A client that is connected takes answers of nobody else than whom he asked.
#[test]
fn an_answer_comes_from_the_address_that_was_asked() {
    for (any, own) in [("0.0.0.0:0", "127.0.0.53"), ("0.0.0.0:0", "127.0.0.1"), ("[::]:0", "::1")] {
        let (_stage, at, server) = datagrams(any.parse().unwrap());
        let client = client(SocketAddr::new(own.parse().unwrap(), at.port()));
        client.send(b"question").unwrap();
        let (question, from) = one(&server);
        server.send_to(&question, from).unwrap();
        assert_eq!(one(&client).0, b"question", "{own}");
    }
}

#[test]
fn datagrams_go_where_the_port_leads_now() {
    let (stage, at, server) = datagrams(LOCAL);
    let client = client(at);
    client.send(b"one").unwrap();
    let (_, first) = one(&server);
    let other = UdpSocket::bind(LOCAL).unwrap();
    other.set_read_timeout(Some(PATIENCE)).unwrap();
    stage.forwarder.target(9, Some(other.local_addr().unwrap()));
    let led = eventually(|| {
        client.send(b"two").unwrap();
        other.set_nonblocking(true).unwrap();
        other.recv_from(&mut [0; 8]).is_ok()
    });
    assert!(led);
    // What was there is of no use to anybody.
    server.send_to(b"late", first).unwrap();
    client.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    assert!(client.recv(&mut [0; 8]).is_err());
    // Nobody is there: nothing is held, and the next who is gets what comes then.
    stage.forwarder.target(9, None);
    stage.forwarder.target(9, Some(server.local_addr().unwrap()));
    server.set_nonblocking(true).unwrap();
    assert!(eventually(|| {
        client.send(b"three").unwrap();
        server.recv_from(&mut [0; 8]).is_ok()
    }));
    // A port that nobody takes anything at: the client hears nothing, and goes on.
    drop(server);
    client.send(b"lost").unwrap();
    client.send(b"lost").unwrap();
    stage.forwarder.unlisten(9);
    assert!(eventually(|| UdpSocket::bind(at).is_ok()), "the port is free");
}

/// Of many that ask once those go that were never answered, and a conversation goes on.
#[test]
fn a_flood_of_datagrams_is_bounded() {
    if !alone() {
        return;
    }
    raise_descriptor_limit();
    let before = descriptors();
    let (stage, at, server) = datagrams("0.0.0.0:0".parse().unwrap());
    server.set_nonblocking(true).unwrap();
    let talk = client(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), at.port()));
    let answered = || {
        eventually(|| {
            talk.send(b"talk").unwrap();
            talk.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
            while let Ok((length, from)) = server.recv_from(&mut [0; 64]) {
                if length == 4 {
                    server.send_to(b"talk", from).unwrap();
                }
            }
            talk.recv(&mut [0; 8]).is_ok()
        })
    };
    assert!(answered());
    let kept = talk.local_addr().unwrap();
    // Three times as many as there may be: of loopback there are enough addresses.
    let flood = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut sent = 0;
    while sent < 3 * udp::MOST {
        let from = Ipv4Addr::from(0x7f01_0000 + u32::try_from(sent % 60_000).unwrap());
        let socket = UdpSocket::bind((from, 0)).unwrap();
        socket.send_to(b"x", (Ipv4Addr::LOCALHOST, at.port())).unwrap();
        sent += 1;
        if sent % 64 == 0 {
            sleep(Duration::from_millis(2));
        }
    }
    drop(flood);
    let most = before + udp::MOST + 4 * POOL.end + 32;
    assert!(descriptors() > before + udp::MOST / 2, "{} descriptors", descriptors());
    assert!(descriptors() <= most, "{} descriptors", descriptors());
    assert_eq!(talk.local_addr().unwrap(), kept);
    assert!(answered(), "it goes on");
    assert!(descriptors() <= most, "{} descriptors", descriptors());
    drop(stage);
    drop((talk, server));
    assert_eq!(descriptors(), before);
}
