//! `ctst doctor net`: what it finds, what it finds wrong, and that it leaves nothing.

use std::path::PathBuf;

use containust_tests::{Caller, Project, free_port};
use serde_json::Value;

/// A root file system with nothing but one static program, as distroless images are.
fn bare(project: &Project) -> PathBuf {
    project.make_folder("bare");
    for folder in ["bin", "dev", "etc", "proc", "sys", "tmp", "run", "var"] {
        project.make_folder(&format!("bare/{folder}"));
    }
    project.make_folder("bare/var/tmp");
    let probe = containust_tests::programs().parent().expect("a folder").join("rootfs/bin/ctst-probe");
    project.write_bytes("bare/bin/ctst-probe", &std::fs::read(probe).expect("read the probe"));
    let path = project.folder().join("bare/bin/ctst-probe");
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("set a mode");
    project.folder().join("bare")
}

fn find<'a>(checks: &'a Value, component: &str, about: &str) -> &'a Value {
    let checks = checks.as_array().expect("a list");
    let found =
        checks.iter().find(|c| c["component"] == component && c["about"].as_str().is_some_and(|a| a.contains(about)));
    found.unwrap_or_else(|| panic!("no {about} of {component}: {checks:#?}"))
}

#[test]
fn names_and_ports_are_tried_from_inside_images_that_have_nothing() {
    for caller in Caller::all().into_iter().chain(Caller::strict()) {
        let port = free_port();
        let project = Project::new(&caller, "");
        bare(&project);
        let text = format!(
            r#"
NETWORK front
NETWORK back
COMPONENT web {{ image = "file://./bare" command = ["/bin/ctst-probe", "serve", "80"] port = 80 networks = ["front"] }}
COMPONENT db {{ image = "file://./bare" command = ["/bin/ctst-probe", "hold"] networks = ["back"] replicas = 2 }}
COMPONENT app {{ image = "file://./bare" command = ["/bin/ctst-probe", "hold"] networks = ["front", "back"] }}
COMPONENT alone {{ image = "file://./bare" command = ["/bin/ctst-probe", "hold"] network = "none" }}
EXPOSE {port} -> web:80
"#
        );
        project.write("stack.ctst", &text);
        project.ctst(["doctor", "net"]).fails(125, &["S0301"]);
        project.up();
        let done = project.ctst(["doctor", "net", "--format", "json"]).ok();
        let checks = done.json();
        let web = find(&checks, "web", "names");
        let found = web["found"].as_str().expect("a text");
        assert_eq!(web["status"], "good", "{}: {web}", caller.name);
        assert!(found.contains("knows 2 from inside: app, web") && found.contains("3 on other networks"), "{found}");
        let found = find(&checks, "app", "names")["found"].as_str().expect("a text");
        assert!(found.contains("knows 5 from inside") && !found.contains("other networks"), "{found}");
        let published = find(&checks, "web", &format!("127.0.0.1:{port} -> 80"));
        assert_eq!((&published["status"], &published["fix"]), (&"good".into(), &Value::Null));
        assert!(
            checks
                .as_array()
                .expect("a list")
                .iter()
                .all(|check| check["component"] != "alone" && check["about"] != "way out")
        );
        let text = project.ctst(["doctor", "net"]).ok().stdout;
        assert!(text.contains("COMPONENT") && text.contains("app, web"), "{text}");
        project.stop();
    }
}

#[test]
fn a_port_that_nobody_reaches_is_told_with_its_cause() {
    let (one, two) = (free_port(), free_port());
    let text = format!(
        r#"
COMPONENT shy {{
  image   = "file://ROOTFS"
  command = ["/bin/httpd", "-f", "-h", "/etc", "-p", "127.0.0.1:80"]
  port    = 80
  healthcheck {{ command = ["/bin/wget", "-q", "-O", "/dev/null", "http://127.0.0.1/passwd"] }}
}}
COMPONENT deaf {{ image = "file://ROOTFS" command = ["/bin/ctst-probe", "hold"] port = 80 }}
COMPONENT tells {{ image = "file://ROOTFS" command = ["/bin/ctst-probe", "tell", "udp:53"] }}
EXPOSE {one} -> shy:80
EXPOSE {two} -> deaf:80
EXPOSE {one} -> tells:53/udp
EXPOSE {two} -> deaf:53/udp
"#
    );
    let project = Project::new(&Caller::ordinary(), &text);
    project.up();
    let done = project.ctst(["doctor", "net", "--format", "json"]).fails(125, &[]);
    let checks = done.json();
    let shy = find(&checks, "shy", "->");
    assert_eq!(shy["status"], "bad");
    assert!(shy["found"].as_str().is_some_and(|found| found.contains("loopback only")), "{shy}");
    assert_eq!(shy["fix"], "have it listen on 0.0.0.0:80");
    let deaf = find(&checks, "deaf", "-> 80");
    assert!(deaf["found"].as_str().is_some_and(|found| found.contains("nothing in deaf answers on port 80")), "{deaf}");
    assert_eq!(deaf["fix"], "see what it says: ctst logs deaf");
    assert_eq!(find(&checks, "deaf", "names")["status"], "good");
    let datagrams = |name: &str| {
        let check = find(&checks, name, "/udp -> 53");
        (check["status"].as_str().map(str::to_owned), check["found"].as_str().unwrap_or_default().to_owned())
    };
    let (status, found) = datagrams("tells");
    let told = format!("a socket takes datagrams on 127.0.0.1:{one}/udp of this host, and one on port 53 inside");
    assert_eq!((status.as_deref(), &found), (Some("good"), &told));
    let (status, found) = datagrams("deaf");
    assert_eq!((status.as_deref(), &*found), (Some("bad"), "nothing in deaf takes datagrams on port 53"));
    let text = project.ctst(["doctor", "net"]).fails(125, &[]).stdout;
    assert!(text.contains("have it listen on 0.0.0.0:80"), "{text}");
    project.stop();
}
