//! What a component asks of its own kernel and files, how it ends, and what is kept of it.

use std::fs;
use std::time::{Duration, Instant};

use containust_tests::{Caller, Project, eventually};

#[test]
fn limits_settings_and_groups_are_the_containers_own() {
    let text = r#"
COMPONENT one {
  image   = "file://ROOTFS"
  command = ["/bin/ctst-probe", "hold"]
  ulimits { nofile = "100:200", nproc = 4000, core = 0 }
  sysctls { "net.ipv4.ip_unprivileged_port_start" = 80, "kernel.sem" = "250 32000 32 99" }
  shm     = 1MiB
  hosts   { "db.example" = "192.0.2.7", six = "2001:db8::1" }
}
COMPONENT apart { image = "file://ROOTFS" command = ["/bin/ctst-probe", "hold"] network = "none" hosts = ["x:192.0.2.8"] }
"#;
    for caller in Caller::all() {
        let project = Project::new(&caller, text);
        project.up();
        for options in [&[][..], &["-e", "A=1"]] {
            let report = project.report(options, "one");
            let limit = |name: &str| report.limits[name].clone();
            assert_eq!(limit("Max open files"), ("100".to_owned(), "200".to_owned()), "{}", caller.name);
            assert_eq!(limit("Max processes").0, "4000");
            assert_eq!(limit("Max core file size"), ("0".to_owned(), "0".to_owned()));
        }
        let inside =
            |component: &str, words: &str| project.ctst(["exec", component, "/bin/sh", "-c", words]).ok().stdout;
        assert_eq!(inside("one", "cat /proc/sys/net/ipv4/ip_unprivileged_port_start"), "80\n");
        assert_eq!(inside("one", "cat /proc/sys/kernel/sem").split_whitespace().last(), Some("99"));
        project
            .ctst(["exec", "one", "/bin/sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_unprivileged_port_start"])
            .fails(1, &[]);
        assert_eq!(inside("one", "df -k /dev/shm | tail -1").split_whitespace().nth(1), Some("1024"));
        let hosts = inside("one", "cat /etc/hosts");
        for line in ["192.0.2.7 db.example", "2001:db8::1 six", " one"] {
            assert!(hosts.lines().any(|found| found.ends_with(line)), "{line}: {hosts}");
        }
        assert!(inside("apart", "cat /etc/hosts").contains("192.0.2.8 x"));
        let host = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").expect("read a setting");
        assert_ne!(host.trim(), "80", "the host's own setting is another");
        project.stop();
    }
}

#[test]
fn groups_come_by_name_and_number_where_there_are_ids_for_them() {
    let text = r#"
COMPONENT one {
  image   = "file://ROOTFS"
  command = ["/bin/ctst-probe", "hold"]
  user    = "somebody"
  groups  = ["nogroup", 1234]
}"#;
    for caller in Caller::all() {
        let project = Project::new(&caller, text);
        if caller == Caller::single() {
            project.ctst(["run", "-d", "--yes"]).fails(125, &["component one", "group", "only one id is mapped"]);
            assert!(project.ps().is_empty());
            continue;
        }
        project.up();
        let mut groups: Vec<u32> = project.report(&[], "one").status["Groups"]
            .split_whitespace()
            .filter_map(|group| group.parse().ok())
            .collect();
        groups.sort_unstable();
        assert_eq!(groups, [1000, 1001, 1234, 65534], "{}", caller.name);
        project.stop();
    }
    let project = Project::new(&Caller::all()[0], &text.replace("nogroup", "nobody-has-it"));
    if project.caller != Caller::single() {
        project.ctst(["run", "-d", "--wait", "--yes"]).fails(125, &["nobody-has-it", "/etc/group"]);
    }
}

#[test]
fn what_the_kernel_would_refuse_is_refused_before_anything_starts() {
    let with =
        |property: &str| format!(r#"COMPONENT one {{ image = "file://ROOTFS" command = ["/bin/true"] {property} }}"#);
    let project = Project::new(&Caller::ordinary(), "");
    for (property, words) in [
        ("ulimits { nofile = \"unlimited\" }", ["set ulimit nofile to unlimited", "that of ctst is"]),
        ("sysctls { \"kernel.shm_next_id\" = 1 }", ["set kernel.shm_next_id", "a container's own"]),
    ] {
        project.write("stack.ctst", &with(property));
        for command in ["plan", "run"] {
            project.ctst([command]).fails(125, &["component one", words[0], words[1]]);
        }
        assert!(project.ps().is_empty());
    }
    // What only the kernel knows: a value that it does not take, a setting that it does not have.
    for (property, word) in [
        ("sysctls { \"net.core.nothing\" = 1 }", "net.core.nothing"),
        ("sysctls { \"net.ipv4.ip_forward\" = \"many\" }", "net.ipv4.ip_forward"),
    ] {
        project.write("stack.ctst", &with(property));
        project.ctst(["run", "-d", "--wait", "--yes"]).fails(125, &["start one", word]);
        assert_eq!(project.status("one")["state"], "failed");
    }
    project.assert_nothing_left();
}

#[test]
fn a_component_ends_by_its_own_signal_and_grace() {
    let text = r#"
COMPONENT one {
  image   = "file://ROOTFS"
  command = ["/bin/sh", "-c", "trap '' TERM; trap 'echo asked; exit 0' INT; echo ready; while :; do sleep 0.05; done"]
  stop    { signal = "INT" }
}
COMPONENT stubborn {
  image   = "file://ROOTFS"
  command = ["/bin/sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.05; done"]
  stop    { grace = 300ms }
}"#;
    let project = Project::new(&Caller::ordinary(), text);
    let up = |project: &Project| {
        project.up();
        for name in ["one", "stubborn"] {
            eventually("it is ready", || project.logs(name).contains("ready"));
        }
    };
    up(&project);
    let start = Instant::now();
    project.stop();
    assert!(start.elapsed() < Duration::from_secs(6), "{:?}", start.elapsed());
    assert!(project.logs("one").contains("asked"));
    assert_eq!(project.status("one")["exit_code"], 0);
    assert_eq!(project.status("stubborn")["exit_code"], 137);
    // What the caller says counts more.
    project.write("stack.ctst", &text.replace("300ms", "1h"));
    up(&project);
    let start = Instant::now();
    project.ctst(["stop", "-t", "0"]).ok();
    assert!(start.elapsed() < Duration::from_secs(6), "{:?}", start.elapsed());
    project.assert_nothing_left();
}

#[test]
fn labels_are_shown_and_chosen_by() {
    let text = r#"
STACK "shop" { labels { owner = "me", tier = "any" } }
COMPONENT one { image = "file://ROOTFS" command = ["/bin/ctst-probe", "hold"] labels { tier = "front", team = "a b" } }
COMPONENT two { image = "file://ROOTFS" command = ["/bin/ctst-probe", "hold"] labels { tier = "back" } }
"#;
    let project = Project::new(&Caller::ordinary(), text);
    project.up();
    assert_eq!(project.status("one")["labels"]["team"], "a b");
    let filtered = |filters: &[&str]| {
        let words: Vec<_> = filters.iter().flat_map(|filter| ["--filter", filter]).collect();
        let rows = project.ctst([&["ps", "--format", "json"], &words[..]].concat()).ok().json();
        let rows = rows.as_array().expect("a list").clone();
        rows.iter().map(|row| row["component"].as_str().unwrap_or_default().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(filtered(&["label=tier"]), ["one", "two"]);
    assert_eq!(filtered(&["label=tier=back"]), ["two"]);
    assert_eq!(filtered(&["label=tier", "label=team=a b"]), ["one"]);
    // The project's own are everybody's, unless they say something else.
    assert_eq!(filtered(&["label=owner=me"]), ["one", "two"]);
    assert_eq!(filtered(&["label=none"]), [""; 0]);
    project.ctst(["ps", "--filter", "name=one"]).fails(125, &["label="]);
    project.stop();
}

#[test]
fn output_is_kept_as_long_as_said() {
    let text = r#"
COMPONENT one {
  image   = "file://ROOTFS"
  command = ["/bin/sh", "-c", "seq 1 20000; exec ctst-probe hold"]
  logs    { max_size = 8KiB, max_files = 2 }
}"#;
    let project = Project::new(&Caller::ordinary(), text);
    project.up();
    eventually("it wrote all", || project.logs("one").contains("20000"));
    let sizes: Vec<u64> = fs::read_dir(project.folder().join(".containust/containers/one"))
        .expect("list")
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("log"))
        .map(|entry| entry.metadata().expect("look").len())
        .collect();
    assert!(sizes.len() == 2 && sizes.iter().all(|size| *size <= 8 << 10), "{sizes:?}");
    project.stop();
}
