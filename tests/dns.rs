//! Name servers of a component's own, beyond the way out, with a world of its own around the host.
#![forbid(unsafe_code)]

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use containust_tests::{Asked, Caller, Project, World, eventually};

const KEEP: &str = r#"image = "file://ROOTFS" command = ["/bin/ctst-probe", "serve", "80"]"#;
/// Nobody is there; one that refuses; one that knows.
const SILENT: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 52);
const REFUSING: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 53);
const KNOWING: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 54);
const KNOWN: &str = "intern.corp.example";

const STACK: &str = r#"
NETWORK out { internal = false }
NETWORK back
COMPONENT own { KEEP networks = ["back", "out"] dns = ["KNOWING"] dns_search = "corp.example" dns_options = ["ndots:2", "timeout:4"] }
COMPONENT several { KEEP network = "out" dns = ["SILENT", "REFUSING", "KNOWING"] dns_search = ["a.example", "corp.example."] }
COMPONENT refused { KEEP network = "out" dns = "REFUSING" }
COMPONENT usual { KEEP network = "out" }
COMPONENT db { KEEP network = "back" }
"#;

fn stack() -> String {
    let text = STACK.replace("KEEP", KEEP);
    let servers = [("SILENT", SILENT), ("REFUSING", REFUSING), ("KNOWING", KNOWING)];
    servers.into_iter().fold(text, |text, (word, ip)| text.replace(word, &ip.to_string()))
}

fn callers() -> Vec<Caller> {
    if Caller::root().is_none() {
        return Vec::new();
    }
    Caller::all().into_iter().chain(Caller::strict()).collect()
}

fn fetch(project: &Project, from: &str, host: &str) -> String {
    let url = format!("http://{host}/");
    project.ctst(["exec", from, "timeout", "10", "wget", "-q", "-O-", &url]).stdout.trim().to_owned()
}

fn look_up(project: &Project, from: &str, name: &str) -> String {
    project.ctst(["exec", from, "nslookup", "-type=a", name]).stdout
}

fn resolv_conf(project: &Project, of: &str) -> String {
    project.ctst(["exec", of, "cat", "/etc/resolv.conf"]).ok().stdout
}

fn has(asked: &Asked, name: &str) -> bool {
    asked.lock().expect("a list").iter().any(|other| other == name)
}

#[test]
fn names_outside_are_asked_of_a_components_own_servers() {
    Caller::at_once(callers(), |caller| {
        let world = World::new();
        let knowing = world.name_server(KNOWING, KNOWN, 3);
        let refusing = world.name_server(REFUSING, "nothing.example", 5);
        let project = Project::within(caller, &stack(), &world);
        project.up();
        let found = format!("seen from {}", World::HOME);
        eventually("it gets out", || fetch(&project, "own", KNOWN) == found);
        // Two servers before this one: silent for a while, or unable to tell at once.
        let start = Instant::now();
        let told = look_up(&project, "several", KNOWN);
        assert!(told.contains(&format!("Address: {}\n", World::THERE)), "{told}");
        assert!((Duration::from_secs(1)..Duration::from_secs(5)).contains(&start.elapsed()), "{:?}", start.elapsed());
        assert!(has(&refusing, KNOWN) && has(&knowing, KNOWN));
        // By TCP, too.
        let probe = ["exec", "own", "/bin/ctst-probe", "dns"].map(str::to_owned);
        let server = resolv_conf(&project, "own");
        let server = server.lines().find_map(|line| line.strip_prefix("nameserver ")).expect("a server");
        let mut question = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        question.extend(KNOWN.split('.').flat_map(|part| [&[part.len() as u8], part.as_bytes()].concat()));
        question.extend([0, 0, 1, 0, 1]);
        let framed = [&(question.len() as u16).to_be_bytes(), &question[..]].concat();
        let hex: String = framed.iter().map(|byte| format!("{byte:02x}")).collect();
        let line = project.ctst(probe.iter().cloned().chain([server.to_owned(), "tcp".to_owned(), hex])).ok().stdout;
        assert!(line.trim().ends_with("c6336402"), "{line}");
        // What the one knows the others do not, and nobody of the others asks it.
        for (from, name) in [("usual", KNOWN), ("own", World::NAME)] {
            assert!(look_up(&project, from, name).contains("NXDOMAIN"), "{from} {name}");
        }
        assert!(look_up(&project, "refused", World::NAME).contains("REFUSED"));
        assert_eq!(fetch(&project, "usual", World::NAME), found);
        assert!(!has(&refusing, "usual") && has(&refusing, World::NAME) && has(&knowing, World::NAME));

        // Names of the project, of whom no server is asked unless the author's options say so.
        assert_eq!(fetch(&project, "several", "usual"), "hello from usual");
        assert!(!has(&knowing, "usual") && !has(&refusing, "usual"));
        assert_eq!(fetch(&project, "own", "db"), "hello from db");
        assert!(has(&knowing, "db.corp.example"), "{knowing:?}");
        let pointer = project.ctst(["exec", "own", "nslookup", "intern"]).stdout;
        assert!(pointer.contains(&World::THERE.to_string()), "by the domain: {pointer}");

        let text = resolv_conf(&project, "own");
        assert!(text.ends_with("\nsearch corp.example\noptions ndots:2 timeout:4\n"), "{text}");
        assert!(text.starts_with(&format!("# names outside of the project are asked of {KNOWING}\nnameserver 10.")));
        assert!(resolv_conf(&project, "several").ends_with("\nsearch a.example corp.example\noptions ndots:0\n"));
        assert!(resolv_conf(&project, "usual").lines().all(|line| line.starts_with("nameserver ")));

        let checks = project.ctst(["doctor", "net", "--format", "json"]).json();
        let told =
            checks.as_array().expect("a list").iter().find(|c| c["component"] == "own" && c["about"] == "way out");
        assert_eq!(
            told.map(|told| &told["found"]),
            Some(&format!("{KNOWING} answers from inside").into()),
            "{checks:#}"
        );
        let inspected = project.ctst(["inspect", "own", "--format", "json"]).ok().json();
        assert!(inspected.to_string().contains("\"servers\":[\"198.51.100.54\"]"), "{inspected:#}");

        // A change is one of that component.
        let started = project.status("usual")["started"].clone();
        project.write("stack.ctst", &stack().replace(r#"["198.51.100.54"]"#, r#"["198.51.100.53"]"#));
        let plan = project.ctst(["plan"]).ok().stdout;
        assert!(plan.lines().any(|line| line.trim_start().starts_with("-/+  own ")), "{plan}");
        assert!(plan.contains(r#"["198.51.100.54"]"#) && plan.contains(r#"["198.51.100.53"]"#), "{plan}");
        project.up();
        assert!(look_up(&project, "own", KNOWN).contains("REFUSED"));
        assert_eq!(project.status("usual")["started"], started);

        // Offline nobody is asked.
        let before = knowing.lock().expect("a list").len();
        project.write("stack.ctst", &stack());
        project.ctst(["run", "-d", "--wait", "--offline", "--yes"]).ok();
        assert!(look_up(&project, "own", KNOWN).contains("NXDOMAIN"));
        assert_eq!(knowing.lock().expect("a list").len(), before);
        project.stop();
    });
}

#[test]
fn who_has_no_way_to_a_server_is_told_before() {
    let project = Project::new(&Caller::ordinary(), &stack().replace("internal = false", "internal = true"));
    for command in ["check", "plan"] {
        let done = project.ctst([command]);
        assert!(done.code != 0 && done.stderr.matches("E0412").count() == 3, "{done}");
    }
    project.ctst(["run", "-d", "--yes"]).fails(125, &["E0412", "NETWORK back { internal = false }", "NETWORK out"]);
}
