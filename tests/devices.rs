//! Devices of the host in a container: those that are named, as far as their files' permissions let it, and no others.
#![forbid(unsafe_code)]

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use containust_tests::{Caller, Project};

const STACK: &str = r#"
COMPONENT one {
  image   = "file://ROOTFS"
  command = ["/bin/ctst-probe", "hold"]
  devices = ["/dev/full:/dev/sink", "FOLDER/link:/opt/bus/zeros"]
}
COMPONENT other { image = "file://ROOTFS" command = ["/bin/ctst-probe", "hold"] }
"#;

fn asking(device: &str) -> String {
    format!(
        r#"COMPONENT one {{ image = "file://ROOTFS" command = ["/bin/ctst-probe", "hold"] devices = ["{device}"] }}"#
    )
}

fn run(program: &str, args: &[&str]) {
    assert!(Command::new(program).args(args).status().expect("run a program").success(), "{program} {args:?}");
}

/// A node like /dev/zero, of this user and group.
fn zeros(at: &Path, owner: &str, mode: &str) {
    let at = at.to_str().expect("a path");
    run("mknod", &["-m", mode, at, "c", "1", "5"]);
    run("chown", &[owner, at]);
}

#[test]
fn what_is_named_is_there_and_nothing_else_is() {
    Caller::at_once(Caller::all(), |caller| {
        let project = Project::new(caller, STACK);
        project.write("stack.ctst", &STACK.replace("FOLDER", &project.folder().display().to_string()));
        symlink("/dev/zero", project.folder().join("link")).expect("make a link");
        let plan = project.ctst(["plan"]).ok().stdout;
        assert!(plan.contains("one: the device /dev/full at /dev/sink (new)"), "{plan}");
        assert!(plan.contains("one: the device /dev/zero at /opt/bus/zeros (new)"), "{plan}");
        project.up();
        let inside = |component: &str, script: &str| project.ctst(["exec", component, "/bin/sh", "-c", script]);
        assert_eq!(inside("one", "stat -c %t:%T /dev/sink /opt/bus/zeros").ok().stdout, "1:7\n1:5\n");
        assert_eq!(inside("one", "head -c 3 /opt/bus/zeros | od -An -tx1").ok().stdout.trim(), "00 00 00");
        inside("one", "echo x > /dev/sink").fails(1, &["No space left"]);
        // /dev itself stays as it is in every container, and so does the mount of the node.
        inside("one", "touch /dev/new").fails(1, &["Read-only"]);
        inside("one", "rm /dev/sink").fails(1, &["sink"]);
        inside("other", "ls /dev/sink").fails(1, &["No such file"]);
        project.ctst(["plan"]).ok();

        // Another device makes another container.
        let text = std::fs::read_to_string(project.folder().join("stack.ctst")).expect("read the file");
        project.write("stack.ctst", &text.replace("/dev/full:/dev/sink", "/dev/null:/dev/sink"));
        let plan = project.ctst(["plan"]).ok().stdout;
        assert!(plan.contains("devices /dev/sink changed"), "{plan}");
        project.ctst(["up", "--yes"]).ok();
        assert_eq!(inside("one", "stat -c %t:%T /dev/sink").ok().stdout, "1:3\n");
        project.ctst(["down"]).ok();
        project.assert_nothing_left();
    });
}

#[test]
fn what_no_container_should_have_is_refused_before_anything_starts() {
    let project = Project::new(&Caller::ordinary(), &asking("/dev/ctst-none"));
    project.ctst(["up"]).fails(125, &["S0204", "/dev/ctst-none"]);
    for (device, word) in [
        ("/etc/hostname", "it is no device"),
        ("/dev", "it is no device"),
        ("/dev/ptmx:/dev/x", "a terminal of this host"),
    ] {
        project.write("stack.ctst", &asking(device));
        project.ctst(["up"]).fails(125, &["S0203", word]);
    }
    for (device, word) in [
        ("./x", "is relative"),
        ("/dev/zero:/dev/zero", "a device of its own there"),
        ("/dev/zero:/dev/pts/1", "of its own there"),
        ("/dev/zero:/x:rwm", "leave permissions"),
    ] {
        project.write("stack.ctst", &asking(device));
        project.ctst(["check"]).fails(125, &[word]);
    }
    assert!(!project.folder().join(".containust/containers").exists(), "something was started");
}

#[test]
fn the_files_permissions_hold() {
    if Caller::root().is_none() {
        return;
    }
    Caller::at_once(Caller::all(), |caller| {
        let text = |name: &str, project: &Project| asking(&format!("{}/{name}:/dev/zeros", project.folder().display()));
        let project = Project::new(caller, "");
        let folder = project.folder().to_owned();
        zeros(&folder.join("open"), "0:0", "666");
        zeros(&folder.join("closed"), "0:6", "660");
        run("mknod", &["-m", "666", folder.join("disk").to_str().expect("a path"), "b", "7", "200"]);
        project.write("stack.ctst", &text("closed", &project));
        project
            .ctst(["plan"])
            .fails(125, &["S0203", "no id of the container may open it", "group 6 with mode 0660", "udev"]);
        project.write("stack.ctst", &text("disk", &project));
        project.ctst(["plan"]).fails(125, &["S0203", "a block device"]);
        project.write("stack.ctst", &text("open", &project));
        project.ctst(["up", "--yes"]).ok();
        let read = || project.ctst(["exec", "one", "/bin/sh", "-c", "head -c 2 /dev/zeros | od -An -tx1"]);
        assert_eq!(read().ok().stdout.trim(), "00 00");
        // Somebody takes it away: at the next start that is found out, too.
        std::fs::remove_file(folder.join("open")).expect("remove the node");
        std::fs::write(folder.join("open"), "").expect("write a file");
        project.ctst(["restart", "one"]).fails(125, &["no character device"]);
        project.ctst(["down"]).ok();
        project.assert_nothing_left();
    });
}

#[test]
fn strict_devices_want_a_line_of_the_policy() {
    let Some(caller) = Caller::strict() else { return };
    let project = Project::governed(&caller, &asking("/dev/zero:/dev/zeros"), "", &[]);
    for command in ["plan", "up"] {
        project.ctst([command]).fails(125, &["S0410", "ask the administrator for `device = /dev/zero`"]);
    }
    project.set_policy("device = /dev/zero\n");
    project.up();
    assert_eq!(
        project.ctst(["exec", "one", "/bin/sh", "-c", "head -c 1 /dev/zeros | od -An -tx1"]).ok().stdout.trim(),
        "00"
    );
    project.ctst(["down"]).ok();
    project.assert_nothing_left();
}
