//! The project's network from both sides.
#![forbid(unsafe_code)]

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use containust_tests::{Caller, Project, eventually, finish, free_port, get};

#[test]
fn each_finds_the_other_by_name_and_the_host_through_the_published_port() {
    for caller in Caller::all() {
        let port = free_port();
        let text = format!(
            r#"
COMPONENT a_server {{ image = "file://ROOTFS" command = ["/bin/ctst-probe", "serve", "80"] port = 80 }}
COMPONENT client {{ image = "file://ROOTFS" command = ["/bin/ctst-probe", "hold"] }}
CONNECT client -> a_server
EXPOSE 127.0.0.1:{port} -> a_server:80
"#
        );
        let project = Project::new(&caller, &text);
        project.up();
        eventually("the server answers", || {
            project.ctst(["exec", "client", "wget", "-q", "-O-", "http://a-server/"]).code == 0
        });
        let inside = project
            .ctst(["exec", "client", "sh", "-c", "wget -q -O- http://$A_SERVER_HOST:$A_SERVER_PORT/"])
            .ok()
            .stdout;
        assert_eq!(inside.trim(), "hello from a-server");
        let server = project.status("a_server")["address"].as_str().expect("an address").to_owned();
        project.ctst(["exec", "client", "ctst-probe", "ping", &server]).ok();
        if !caller.single && caller.range().is_some() {
            project.ctst(["exec", "-u", "65534:65534", "client", "ctst-probe", "ping", &server]).ok();
        }
        assert!(get(port).ends_with("hello from a-server\n"), "{}", get(port));
        // Not on any other address of the host.
        assert_eq!(listeners(port), ["0100007F"], "{}", caller.name);
        project.stop();
        assert_eq!(listeners(port), [""; 0]);
        assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
    }
}

/// Addresses on which something listens on this port, as `/proc/net/tcp` shows them.
fn listeners(port: u16) -> Vec<String> {
    ["tcp", "tcp6"]
        .iter()
        .flat_map(|table| {
            std::fs::read_to_string(format!("/proc/net/{table}"))
                .unwrap_or_default()
                .lines()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        })
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let (address, number) = fields.get(1)?.split_once(':')?;
            (*fields.get(3)? == "0A" && u16::from_str_radix(number, 16) == Ok(port)).then(|| address.to_owned())
        })
        .collect()
}

#[test]
fn network_none_has_a_loopback_and_nothing_else() {
    let text = r#"
COMPONENT alone { image = "file://ROOTFS" command = ["/bin/ctst-probe", "hold"] network = "none" }
COMPONENT other { image = "file://ROOTFS" command = ["/bin/ctst-probe", "serve", "80"] port = 80 }
"#;
    let project = Project::new(&Caller::ordinary(), text);
    project.up();
    assert_eq!(project.report(&[], "alone").interfaces, ["lo"]);
    let mut other = project.report(&[], "other").interfaces;
    other.sort();
    assert_eq!(other, ["eth0", "lo"]);
    let address = project.status("other")["address"].as_str().expect("an address").to_owned();
    let done = project.ctst(["exec", "alone", "timeout", "3", "wget", "-q", "-O-", &format!("http://{address}/")]);
    assert_ne!(done.code, 0, "{done}");
    // The loopback works.
    project.ctst(["exec", "alone", "sh", "-c", "nc -l -p 9 -e true & sleep 0.3; nc 127.0.0.1 9 < /dev/null"]).ok();
    project.stop();
}

#[test]
fn projects_do_not_reach_each_other_nor_the_hosts_loopback() {
    let server = std::net::TcpListener::bind("127.0.0.1:0").expect("listen");
    let port = server.local_addr().expect("an address").port();
    let text = r#"COMPONENT one { image = "file://ROOTFS" command = ["/bin/ctst-probe", "serve", "80"] port = 80 }"#;
    let (first, second) = (Project::new(&Caller::ordinary(), text), Project::new(&Caller::ordinary(), text));
    first.up();
    second.up();
    let nets = [&first, &second].map(|project| project.report(&[], "one").namespaces["net"].clone());
    assert_ne!(nets[0], nets[1]);
    let gateway = first.ctst(["exec", "one", "sh", "-c", "ip route; ip -4 addr"]).ok().stdout;
    for target in ["127.0.0.1", "10.0.2.2", "169.254.169.254"] {
        let done = first.ctst(["exec", "one", "nc", "-w", "2", target, &port.to_string()]);
        assert_ne!(done.code, 0, "reached {target} by\n{gateway}\n{done}");
    }
    first.stop();
    second.stop();
}

#[test]
fn a_large_transfer_arrives_whole_and_half_closes() {
    let port = free_port();
    let text = format!(
        r#"
COMPONENT echo {{ image = "file://ROOTFS" command = ["/bin/busybox", "nc", "-ll", "-p", "7", "-e", "cat"] port = 7 }}
EXPOSE 127.0.0.1:{port} -> echo:7
"#
    );
    let project = Project::new(&Caller::ordinary(), &text);
    project.up();
    eventually("echo answers", || {
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { return false };
        let mut answer = String::new();
        stream.write_all(b"x").is_ok()
            && stream.shutdown(Shutdown::Write).is_ok()
            && stream.read_to_string(&mut answer).is_ok()
            && answer == "x"
    });
    let bytes: Vec<u8> = (0..20_000_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("connect");
    let mut writer = stream.try_clone().expect("clone");
    let sent = bytes.clone();
    let writing = std::thread::spawn(move || {
        writer.write_all(&sent).expect("write");
        // The other direction goes on after this: cat answers what it still holds, then ends.
        writer.shutdown(Shutdown::Write).expect("half-close");
    });
    let mut back = Vec::new();
    stream.read_to_end(&mut back).expect("read");
    writing.join().expect("the writer does not panic");
    assert!(back == bytes, "{} bytes came back of {}", back.len(), bytes.len());
    project.stop();
}

#[test]
fn a_thousand_connections_at_once() {
    let port = free_port();
    let text = format!(
        r#"
COMPONENT server {{ image = "file://ROOTFS" command = ["/bin/ctst-probe", "serve", "80"] port = 80 }}
EXPOSE 127.0.0.1:{port} -> server:80
"#
    );
    let project = Project::new(&Caller::ordinary(), &text);
    project.up();
    eventually("the server answers", || {
        TcpStream::connect(("127.0.0.1", port)).is_ok_and(|mut stream| {
            let mut answer = String::new();
            stream.write_all(b"GET / HTTP/1.0\r\n\r\n").is_ok()
                && stream.read_to_string(&mut answer).is_ok()
                && answer.contains("200")
        })
    });
    // This process may open a thousand; each takes one here.
    let mut open: Vec<TcpStream> = (0..900)
        .map(|n| TcpStream::connect(("127.0.0.1", port)).unwrap_or_else(|error| panic!("connection {n}: {error}")))
        .collect();
    for stream in &mut open {
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").expect("ask");
    }
    for (n, stream) in open.iter_mut().enumerate() {
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("set a limit");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap_or_else(|error| panic!("answer {n}: {error}"));
        assert!(answer.contains("200 OK"), "answer {n}: {answer:?}");
    }
    drop(open);
    assert!(get(port).contains("200 OK"));
    project.stop();
}

#[test]
fn a_connection_to_a_service_that_is_not_there_ends() {
    let port = free_port();
    let text = format!(
        r#"
COMPONENT server {{ image = "file://ROOTFS" command = ["/bin/ctst-probe", "hold"] port = 80 }}
EXPOSE 127.0.0.1:{port} -> server:80
"#
    );
    let project = Project::new(&Caller::ordinary(), &text);
    project.up();
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("the port is published");
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("set a limit");
    let mut answer = Vec::new();
    // An end or a reset: not a hang.
    let read = stream.read_to_end(&mut answer);
    assert!(!matches!(&read, Err(error) if error.kind() == std::io::ErrorKind::WouldBlock), "{read:?}");
    assert!(answer.is_empty());
    project.stop();
}

#[test]
fn names_are_those_of_the_project_only() {
    let text = r#"
COMPONENT one { image = "file://ROOTFS" command = ["/bin/ctst-probe", "hold"] }
COMPONENT two { image = "file://ROOTFS" command = ["/bin/ctst-probe", "hold"] hostname = "second" }
"#;
    let project = Project::new(&Caller::ordinary(), text);
    project.up();
    let hosts = finish(&mut project.command(["exec", "one", "cat", "/etc/hosts"])).ok().stdout;
    for name in ["localhost", "one"] {
        assert!(hosts.split_whitespace().any(|word| word == name), "no {name} in {hosts}");
    }
    // Of others the name server knows (tests/names.rs).
    assert!(!hosts.contains("two") && !hosts.contains("second"), "{hosts}");
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").expect("read the host's name");
    assert!(!hosts.split_whitespace().any(|word| word == host.trim()), "{hosts}");
    assert_eq!(project.report(&[], "two").hostname, "second");
    project.stop();
}

/// What is started again keeps its ports meanwhile: they lead nowhere, and nobody else can have them.
#[test]
fn a_port_stays_until_a_stop_that_nothing_follows() {
    let port = free_port();
    let text = format!(
        r#"
COMPONENT server {{
  image = "file://ROOTFS"
  command = ["/bin/sh", "-c", "trap '' TERM; /bin/ctst-probe serve 80"]
  port = 80
  healthcheck {{ http = "/" }}
  stop {{ grace = 2s }}
}}
EXPOSE 127.0.0.1:{port} -> server:80
"#
    );
    let project = Project::new(&Caller::ordinary(), &text);
    project.up();
    assert!(get(port).contains("200 OK"));
    let restarting = project.start(["restart"]);
    eventually("it is being stopped", || project.status("server")["state"] == "stopping");
    assert_eq!(project.status("server")["ports"][0]["host_port"], port);
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("it is still the component's");
    assert!(!matches!(stream.read(&mut [0]), Ok(1..)), "nobody answers");
    assert!(std::net::TcpListener::bind(("127.0.0.1", port)).is_err());
    restarting.wait(Duration::from_secs(60)).ok();
    project.up();
    assert!(get(port).contains("200 OK"));
    // The later wish counts.
    let restarting = project.start(["restart"]);
    eventually("it is being stopped", || project.status("server")["state"] == "stopping");
    project.ctst(["stop", "-t", "0"]).ok();
    drop(restarting.wait(Duration::from_secs(60)));
    project.assert_nothing_left();
    assert_eq!(listeners(port), [""; 0]);
}

/// A restart gives the component a new interface: nobody may go on talking to the old one's hardware address, which
/// the kernel believes in for half a minute.
#[test]
fn a_component_that_was_restarted_is_reached_at_once() {
    let port = free_port();
    let text = format!(
        r#"
COMPONENT server {{ image = "file://ROOTFS" command = ["/bin/ctst-probe", "serve", "80"] port = 80 restart = "always" }}
COMPONENT client {{ image = "file://ROOTFS" command = ["/bin/ctst-probe", "hold"] }}
CONNECT client -> server
EXPOSE 127.0.0.1:{port} -> server:80
"#
    );
    let project = Project::new(&Caller::ordinary(), &text);
    project.up();
    let ask = ["exec", "client", "timeout", "2", "wget", "-q", "-O-", "http://server/"];
    for round in 0..3 {
        eventually("the server answers", || project.ctst(ask).code == 0);
        assert!(get(port).contains("200 OK"));
        project.ctst(["exec", "server", "kill", "-9", "2"]);
        eventually("it was restarted", || {
            let row = project.status("server");
            row["state"] == "running" && row["restarts"] == round + 1
        });
        let start = std::time::Instant::now();
        eventually("the server answers again", || project.ctst(ask).code == 0);
        assert!(start.elapsed() < Duration::from_secs(10), "reached only after {:?}", start.elapsed());
    }
    project.stop();
}
