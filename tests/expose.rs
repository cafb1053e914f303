//! Ports that EXPOSE publishes, on a host of their own with an outside: every form, changed while their component runs.
#![forbid(unsafe_code)]

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use containust_tests::{Caller, Project, World, eventually};

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
