//! Ports that EXPOSE publishes, on a host of their own with an outside: every form, changed while their component runs.
#![forbid(unsafe_code)]

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use containust_tests::{Caller, Project, World, eventually, finish, inside};
use rustix::net::{AddressFamily, Protocol, RawProtocol, SendFlags, SocketFlags, SocketType, sendto, socket_with};

const PATIENCE: Duration = Duration::from_secs(20);

fn callers() -> Vec<Caller> {
    if Caller::root().is_none() {
        return Vec::new();
    }
    Caller::all().into_iter().chain(Caller::strict()).collect()
}

/// A component that tells what it sees at these ports, and what is published of it.
fn telling(places: &str, exposures: &str) -> String {
    let words: Vec<String> = places.split(' ').map(|place| format!("\"{place}\"")).collect();
    format!(
        "COMPONENT web {{ image = \"file://ROOTFS\", command = [\"/bin/ctst-probe\", \"tell\", {}], restart = \"always\",\n\
         stop {{ grace = 0s }} }}\n{exposures}",
        words.join(", ")
    )
}

/// What a connection to there is told; none: nobody listens, or it ended without a word.
fn told(place: impl Into<SocketAddr>) -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&place.into(), PATIENCE).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    stream.write_all(b"hello\n").ok()?;
    stream.shutdown(Shutdown::Write).ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    text.strip_suffix("hello\n").map(str::to_owned)
}

/// Which port of the container a connection to there comes to.
fn leads(place: impl Into<SocketAddr>) -> Option<String> {
    Some(told(place)?.split(' ').next()?.to_owned())
}

#[test]
fn every_form_is_published_and_changed_in_place() {
    Caller::at_once(callers(), |caller| {
        let world = World::new();
        let places = "tcp:80 tcp:8000 tcp:8001 tcp:8002";
        let text = |more: &str| {
            telling(
                places,
                &format!(
                    "EXPOSE 8000-8002 -> web:8000-8002\nEXPOSE [::1]:8080 -> web:80\nEXPOSE 0.0.0.0:9000 -> web:8000\n\
                     EXPOSE [::]:9000 -> web:8001/tcp\n{more}"
                ),
            )
        };
        let project = Project::within(caller, &text("EXPOSE 198.51.100.1:9001-9002 -> web:8001-8002"), &world);
        project.ctst(["run", "-d"]).fails(125, &["for everyone who can reach this host", "[::]:9000 to 8001", "--yes"]);
        project.up();
        let local = Ipv4Addr::LOCALHOST;
        let home = |place: (IpAddr, u16)| world.at_home(|| leads(place));
        let there = |place: (IpAddr, u16)| world.elsewhere(|| leads(place));
        let port = |number: u16| Some(format!("{number}/tcp"));
        for number in 8000..=8002 {
            eventually("it serves", || home((local.into(), number)) == port(number));
            assert_eq!(there((World::HOME.into(), number)), None, "{number} is for this host only");
        }
        assert_eq!(home((Ipv6Addr::LOCALHOST.into(), 8080)), port(80));
        assert_eq!(home((local.into(), 8080)), None, "IPv4 was not asked for");
        // Both families of one port, each by itself.
        assert_eq!(home((local.into(), 9000)), port(8000));
        assert_eq!(there((World::HOME.into(), 9000)), port(8000));
        assert_eq!(there((World::HOME6.into(), 9000)), port(8001));
        assert_eq!(there((World::HOME.into(), 9001)), port(8001));
        assert_eq!(there((World::HOME.into(), 9002)), port(8002));
        assert_eq!(home((local.into(), 9001)), None);

        let started = project.status("web")["started"].clone();
        let next = text("EXPOSE 198.51.100.1:9002-9003 -> web:8001-8002");
        project.write("stack.ctst", &next);
        let plan = project.ctst(["plan"]).ok().stdout;
        for words in ["198.51.100.1:9001 -> 8001", "198.51.100.1:9003 -> 8002", "198.51.100.1:9002 -> 8001"] {
            assert!(plan.contains(words), "{plan}");
        }
        project.up();
        eventually("it is withdrawn", || there((World::HOME.into(), 9001)).is_none());
        assert_eq!(there((World::HOME.into(), 9002)), port(8001));
        assert_eq!(there((World::HOME.into(), 9003)), port(8002));
        assert_eq!(project.status("web")["started"], started, "it runs on");
        project.stop();
        assert_eq!(home((local.into(), 9000)), None);
    });
}

/// What a datagram to there is answered by the one who was asked; none: nothing comes.
fn answered(place: impl Into<SocketAddr>) -> Option<String> {
    let place = place.into();
    let any = if place.is_ipv4() { IpAddr::from(Ipv4Addr::UNSPECIFIED) } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(place).ok()?;
    socket.set_read_timeout(Some(Duration::from_millis(500))).ok()?;
    socket.send(b"hello\n").ok()?;
    let mut buffer = [0; 256];
    let length = socket.recv(&mut buffer).ok()?;
    String::from_utf8_lossy(&buffer[..length]).strip_suffix("hello\n").map(str::to_owned)
}

fn comes(place: impl Into<SocketAddr>) -> Option<String> {
    Some(answered(place)?.split(' ').next()?.to_owned())
}

#[test]
fn datagrams_are_published_beside_connections() {
    Caller::at_once(callers(), |caller| {
        let world = World::new();
        let text = |more: &str| {
            telling(
                "udp:53 tcp:53 udp:5000 udp:5001",
                &format!(
                    "EXPOSE 5353 -> web:53/udp\nEXPOSE 5353 -> web:53/tcp\nEXPOSE 6000-6001 -> web:5000-5001/udp PUBLIC\n\
                     EXPOSE [::]:6000 -> web:53/udp\n{more}"
                ),
            )
        };
        let project = Project::within(caller, &text("EXPOSE 7000 -> web:53/udp"), &world);
        let plan = project.ctst(["plan"]).ok().stdout;
        assert!(plan.contains("port 127.0.0.1:5353 to 53/udp, for this host only"), "{plan}");
        project.ctst(["run", "-d"]).fails(125, &["port 0.0.0.0:6000 to 5000/udp, for everyone", "--yes"]);
        project.up();
        let port = |number: u16| Some(format!("{number}/udp"));
        let local = IpAddr::from(Ipv4Addr::LOCALHOST);
        eventually("it answers", || world.at_home(|| comes((local, 5353))) == port(53));
        assert_eq!(world.at_home(|| leads((local, 5353))), Some("53/tcp".to_owned()));
        assert_eq!(world.elsewhere(|| comes((World::HOME, 5353))), None, "for this host only");
        // From whichever address was asked.
        for address in [local, Ipv4Addr::new(127, 7, 7, 7).into(), World::HOME.into()] {
            assert_eq!(world.at_home(|| comes((address, 6000))), port(5000), "{address}");
        }
        assert_eq!(world.elsewhere(|| comes((World::HOME, 6001))), port(5001));
        assert_eq!(world.elsewhere(|| comes((World::HOME6, 6000))), port(53));
        assert_eq!(world.at_home(|| comes((Ipv6Addr::LOCALHOST, 6000))), port(53));
        let listed = project.ctst(["ps"]).ok().stdout;
        for words in ["127.0.0.1:5353->53/udp", "127.0.0.1:5353->53,", "[::]:6000->53/udp"] {
            assert!(listed.contains(words), "{listed}");
        }

        // Somebody else has one that is wanted now, and so nothing is changed.
        let held = world.at_home(|| UdpSocket::bind((local, 7001)).expect("bind"));
        project.write("stack.ctst", &text("EXPOSE 7001 -> web:53/udp"));
        assert!(project.ctst(["plan"]).ok().stdout.contains("listens on 127.0.0.1:7001/udp"));
        project.ctst(["run", "-d", "--yes"]).fails(125, &["S0501", "publish 127.0.0.1:7001/udp for web"]);
        assert_eq!(world.at_home(|| comes((local, 7000))), port(53));
        drop(held);
        let started = project.status("web")["started"].clone();
        let plan = project.ctst(["plan"]).ok().stdout;
        assert!(plan.contains("127.0.0.1:7000/udp -> 53") && plan.contains("127.0.0.1:7001/udp -> 53"), "{plan}");
        project.up();
        assert_eq!(world.at_home(|| comes((local, 7001))), port(53));
        assert_eq!(world.at_home(|| comes((local, 7000))), None);
        assert_eq!(project.status("web")["started"], started, "it runs on");

        // A client that goes on asking finds who comes next.
        let client = world.at_home(|| UdpSocket::bind((local, 0)).expect("bind"));
        client.connect((local, 5353)).expect("connect");
        client.set_read_timeout(Some(Duration::from_millis(200))).expect("set a limit");
        let asks = || {
            while client.recv(&mut [0; 64]).is_ok() {}
            client.send(b"?").is_ok() && client.recv(&mut [0; 64]).is_ok()
        };
        assert!(asks());
        project.ctst(["restart"]).ok();
        eventually("it is answered again", asks);
        project.stop();
        assert!(world.at_home(|| UdpSocket::bind((local, 5353))).is_ok(), "nothing holds the port");
    });
}

#[test]
fn a_low_port_of_datagrams_is_refused_with_the_way_to_it() {
    let Some(caller) = Caller::root().and_then(|_| Caller::ranges()) else { return };
    let world = World::new();
    let project = Project::within(&caller, &telling("udp:53", "EXPOSE 53 -> web:53/udp"), &world);
    for command in [&["plan"][..], &["run", "-d"]] {
        project.ctst(command).fails(125, &["publish 127.0.0.1:53/udp for web", "ctst-port"]);
    }
    project.assert_nothing_left();
}

/// The address that the container sees, and the client's own, of a connection and of a datagram.
fn seen(place: impl Into<SocketAddr>, tcp: u16, udp: u16) -> [(SocketAddr, SocketAddr); 2] {
    let ip = place.into().ip();
    let sees = |text: &str| -> SocketAddr {
        let word = text.lines().next().and_then(|line| line.split(' ').next_back()).expect("a line");
        word.parse().unwrap_or_else(|_| panic!("{text:?} ends with an address"))
    };
    let mut stream = TcpStream::connect((ip, tcp)).expect("connect");
    stream.set_read_timeout(Some(PATIENCE)).expect("set a limit");
    stream.shutdown(Shutdown::Write).expect("half-close");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("read");
    let connection = (sees(&text), stream.local_addr().expect("an address"));
    let any = if ip.is_ipv4() { IpAddr::from(Ipv4Addr::UNSPECIFIED) } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).expect("bind");
    socket.connect((ip, udp)).expect("connect");
    socket.set_read_timeout(Some(PATIENCE)).expect("set a limit");
    socket.send(b"").expect("send");
    let mut buffer = [0; 256];
    let length = socket.recv(&mut buffer).expect("an answer");
    let datagram = (sees(&String::from_utf8_lossy(&buffer[..length])), socket.local_addr().expect("an address"));
    [connection, datagram]
}

/// The kernel would forget after a minute that it is an answer, and lead it outwards.
#[test]
fn an_answer_may_be_late_after_a_half_close() {
    // Otherwise the setting alone is looked at, on which it depends.
    let late = if std::env::var_os("CTST_LONG").is_some() { 70 } else { 1 };
    Caller::at_once(callers(), |caller| {
        let world = World::new();
        let text = "NETWORK out { internal = false }\nCOMPONENT late { image = \"file://ROOTFS\", network = \"out\", \
                    command = [\"nc\", \"-ll\", \"-p\", \"80\", \"-e\", \"sh\", \"-c\", \"cat >/dev/null; sleep SECONDS; echo late\"] }\n\
                    EXPOSE 8000 -> late:80 PUBLIC\n";
        let project = Project::within(caller, &text.replace("SECONDS", &late.to_string()), &world);
        project.up();
        let listens = || {
            project.ctst(["exec", "late", "grep", "-q", ":0050 .*:0000 0A", "/proc/net/tcp", "/proc/net/tcp6"]).code
                == 0
        };
        eventually("it listens", listens);
        let told = world.elsewhere(|| {
            let mut stream = TcpStream::connect((World::HOME, 8000)).expect("connect");
            stream.set_read_timeout(Some(PATIENCE + Duration::from_secs(late))).expect("set a limit");
            stream.shutdown(Shutdown::Write).expect("half-close");
            let mut text = String::new();
            stream.read_to_string(&mut text).map(|_| text)
        });
        assert_eq!(told.expect("read"), "late\n");
        // Nowhere else.
        let setting = "/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_close_wait";
        let set = |pid| inside(pid, || std::fs::read_to_string(setting).unwrap_or_default());
        let sandbox = project.parts().into_iter().find(|(_, part)| *part == "S").expect("S runs").0;
        assert_eq!(set(sandbox), "432000\n");
        assert_ne!(set(rustix::process::getpid().as_raw_nonzero().get()), "432000\n");
        project.stop();
    });
}

/// Who is behind a published port sees who the client is, on whatever networks it is, and others see nothing of him.
#[test]
fn the_clients_address_is_what_the_container_sees() {
    Caller::at_once(callers(), |caller| {
        let world = World::new();
        let serves = "image = \"file://ROOTFS\", command = [\"/bin/ctst-probe\", \"tell\", \"tcp:80\", \"udp:53\"]";
        let text = format!(
            "NETWORK out {{ internal = false }}\nNETWORK back\nNETWORK taken {{ subnet = \"10.77.9.0/24\" }}\n\
             COMPONENT plain {{ {serves} }}\nCOMPONENT away {{ {serves}, network = \"out\" }}\n\
             COMPONENT both {{ {serves}, networks = [\"back\", \"out\"] }}\n\
             COMPONENT two {{ {serves}, networks = [\"back\", \"taken\"] }}\n\
             EXPOSE 8000 -> plain:80 PUBLIC\nEXPOSE 8000 -> plain:53/udp PUBLIC\n\
             EXPOSE 8001 -> away:80 PUBLIC\nEXPOSE 8001 -> away:53/udp PUBLIC\n\
             EXPOSE 8002 -> both:80 PUBLIC\nEXPOSE 8002 -> both:53/udp PUBLIC\n\
             EXPOSE 8003 -> two:80 PUBLIC\nEXPOSE 8003 -> two:53/udp PUBLIC\n\
             EXPOSE [::]:8000 -> plain:80\nEXPOSE [::]:8000 -> plain:53/udp\n"
        );
        let project = Project::within(caller, &text, &world);
        project.up();
        for (name, port) in [("plain", 8000), ("away", 8001), ("both", 8002), ("two", 8003)] {
            eventually("it serves", || world.at_home(|| told((Ipv4Addr::LOCALHOST, port))).is_some());
            // From elsewhere, and from this host by an address of its own: address and port.
            let [(sees, is), (afar, _)] = world.elsewhere(|| seen((World::HOME, port), port, port));
            assert_eq!(sees, is, "{name}");
            let [(sees, is), (near, _)] = world.at_home(|| seen((World::HOME, port), port, port));
            assert_eq!(sees, is, "{name}");
            // The loopback is nobody's but this host's: its clients are seen as the bridge.
            let row = project.status(name);
            let addresses: Vec<IpAddr> = row["addresses"]
                .as_array()
                .expect("addresses")
                .iter()
                .map(|pair| pair[1].as_str().and_then(|ip| ip.parse().ok()).expect("an address"))
                .collect();
            // So is everybody by UDP.
            let [(local, _), (datagram, _)] = world.at_home(|| seen((Ipv4Addr::LOCALHOST, port), port, port));
            for sees in [local, datagram, afar, near] {
                let IpAddr::V4(ip) = sees.ip() else { panic!("{sees}") };
                let [a, b, c, last] = ip.octets();
                assert_eq!(last, 1, "{name}: {ip}");
                let same = |own: &IpAddr| matches!(own, IpAddr::V4(own) if own.octets()[..3] == [a, b, c]);
                assert!(addresses.iter().any(same), "{name}: {ip} and {addresses:?}");
            }
        }
        for (sees, _) in world.elsewhere(|| seen((World::HOME6, 8000), 8000, 8000)) {
            assert!(sees.is_ipv4() && sees.to_string().contains(".1:"), "IPv6 is seen as the bridge: {sees}");
        }
        // Whoever has an address of the project's elsewhere is not taken for somebody of the project.
        let at = |words: &[&str]| {
            let there = ["-n", world.there()];
            finish(std::process::Command::new("ip").args(there.iter().chain(words))).ok();
        };
        at(&["address", "add", "10.77.9.2/32", "dev", "uplink"]);
        at(&["address", "add", "10.78.0.7/32", "dev", "uplink"]);
        let back = |ip: &str| {
            let words = ["-n", &*world.home, "route", "add", ip, "dev", "uplink"];
            finish(std::process::Command::new("ip").args(words)).ok();
        };
        back("10.77.9.2");
        back("10.78.0.7");
        for (from, is_shown) in [(Ipv4Addr::new(10, 77, 9, 2), false), (Ipv4Addr::new(10, 78, 0, 7), true)] {
            let text = world.elsewhere(|| {
                let socket = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None);
                let socket = socket.expect("make a socket");
                rustix::net::bind(&socket, &SocketAddr::from((from, 0))).expect("bind");
                rustix::net::connect(&socket, &SocketAddr::from((World::HOME, 8000))).expect("connect");
                let mut stream = TcpStream::from(socket);
                stream.set_read_timeout(Some(PATIENCE)).expect("set a limit");
                stream.shutdown(Shutdown::Write).expect("half-close");
                let mut text = String::new();
                stream.read_to_string(&mut text).map(|_| text).expect("read")
            });
            assert_eq!(text.contains(&format!("sees {from}:")), is_shown, "{text}");
        }
        // The way out works beside it, and who has none reaches nothing by having answered.
        let reach = |from: &str, to: &str| {
            let said = project.ctst(["exec", from, "/bin/ctst-probe", "reach", to]).ok().stdout;
            said.split([':', '\n']).next().unwrap_or_default().to_owned()
        };
        let outside = format!("{}:80", World::THERE);
        for (from, result) in [("away", "reached"), ("both", "reached"), ("plain", "silent"), ("two", "silent")] {
            eventually("what it reaches", || reach(from, &outside) == result);
        }
        project.stop();
    });
}

/// A datagram with this sender and receiver, whole as IP has it, without a checksum of UDP.
fn datagram(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), text: &[u8]) -> Vec<u8> {
    let length = |all: usize| u16::try_from(all).expect("it is short").to_be_bytes();
    let mut packet = vec![0x45, 0];
    packet.extend(length(28 + text.len()));
    packet.extend([0, 0, 0x40, 0, 64, 17, 0, 0]);
    packet.extend(from.0.octets());
    packet.extend(to.0.octets());
    let sum: u32 = packet.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    let sum = u16::try_from((sum & 0xffff) + (sum >> 16)).expect("no second carry");
    packet[10..12].copy_from_slice(&(!sum).to_be_bytes());
    packet.extend([from.1.to_be_bytes(), to.1.to_be_bytes(), length(8 + text.len()), [0, 0]].concat());
    packet.extend(text);
    packet
}

/// Who may forge packets answers the clients of a container on his own network at most: the one that was asked is on another.
#[test]
fn datagrams_from_another_network_are_no_answers() {
    Caller::at_once(callers(), |caller| {
        let world = World::new();
        let project = Project::within(
            caller,
            "NETWORK front\nNETWORK back\n\
             COMPONENT asked { image = \"file://ROOTFS\", command = [\"/bin/ctst-probe\", \"tell\", \"udp:53\"], network = \"front\" }\n\
             COMPONENT forger { image = \"file://ROOTFS\", command = [\"/bin/ctst-probe\", \"hold\"], network = \"back\" }\n\
             EXPOSE 8000 -> asked:53/udp PUBLIC\n",
            &world,
        );
        project.up();
        eventually("it serves", || world.elsewhere(|| comes((World::HOME, 8000))).is_some());
        let client = world.elsewhere(|| {
            let client = UdpSocket::bind((World::THERE, 0)).expect("bind");
            client.connect((World::HOME, 8000)).expect("connect");
            client.set_read_timeout(Some(PATIENCE)).expect("set a limit");
            client
        });
        let mut buffer = [0; 256];
        let mut next = || {
            let length = client.recv(&mut buffer).expect("a datagram");
            String::from_utf8_lossy(&buffer[..length]).into_owned()
        };
        client.send(b"").expect("send");
        let told = next();
        let place = told.trim().rsplit(' ').next().and_then(|place| place.parse().ok());
        let Some(SocketAddr::V4(asks)) = place else { panic!("{told:?} ends with an address") };
        let pid = |name: &str| i32::try_from(project.status(name)["pid"].as_i64().expect("a pid")).expect("a pid");
        let ip = |name: &str| -> Ipv4Addr {
            project.status(name)["address"].as_str().and_then(|ip| ip.parse().ok()).expect("an address")
        };
        let asked = ip("asked");
        let send = |name: &str, text: &[u8]| {
            let own = ip(name);
            inside(pid(name), || {
                let raw = Some(Protocol::from_raw(RawProtocol::new(255).expect("not zero")));
                let socket = socket_with(AddressFamily::INET, SocketType::RAW, SocketFlags::CLOEXEC, raw);
                let socket = socket.expect("a raw socket");
                // Routes go by this one, whatever the packet says.
                rustix::net::bind(&socket, &SocketAddr::from((own, 0))).expect("bind");
                let packet = datagram((asked, 53), (*asks.ip(), asks.port()), text);
                for _ in 0..5 {
                    sendto(&socket, &packet, SendFlags::empty(), &SocketAddr::from((*asks.ip(), 0))).expect("send");
                }
            });
        };
        // What the one that was asked sends so is an answer: the packets are good.
        send("forger", b"forged");
        send("asked", b"genuine");
        assert_eq!(next(), "genuine");
        project.stop();
    });
}
