//! `cp`: into a container that runs and out of it, and nowhere else.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::time::Duration;

use containust_tests::{Caller, Project};

const ONE: &str = r#"
COMPONENT one { image = "file://ROOTFS" command = ["/bin/ctst-probe", "hold"] readonly = false }
COMPONENT user { image = "file://ROOTFS" command = ["/bin/ctst-probe", "hold"] user = "1000:1000" }
"#;

fn inside(project: &Project, component: &str, words: &str) -> String {
    project.ctst(["exec", component, "/bin/sh", "-c", words]).ok().stdout
}

#[test]
fn files_and_folders_go_in_and_come_out() {
    for caller in Caller::all() {
        let project = Project::new(&caller, ONE);
        project.make_folder("tree");
        project.make_folder("tree/inner");
        project.write("tree/inner/file", "text\n");
        fs::set_permissions(project.folder().join("tree/inner/file"), fs::Permissions::from_mode(0o640))
            .expect("a mode");
        symlink("/etc/passwd", project.folder().join("tree/link")).expect("link");
        project.up();
        // As a new name, into a folder, and a file over a file.
        project.ctst(["cp", "tree", "one:/srv/copy"]).ok();
        assert_eq!(inside(&project, "one", "cat /srv/copy/inner/file; readlink /srv/copy/link"), "text\n/etc/passwd\n");
        assert_eq!(inside(&project, "one", "stat -c '%u %g %a' /srv/copy/inner/file"), "0 0 640\n", "{}", caller.name);
        project.ctst(["cp", "tree/inner/file", "one:/srv"]).ok();
        project.ctst(["cp", "tree/inner/file", "one:/srv/file"]).ok();
        assert_eq!(inside(&project, "one", "cat /srv/file"), "text\n");
        project.ctst(["cp", "tree/inner/file", "user:/tmp/file"]).ok();

        project.ctst(["cp", "one:/srv/copy", "back"]).ok();
        project.make_folder("into");
        project.ctst(["cp", "one:/srv/copy", "into"]).ok();
        for place in ["back", "into/copy"] {
            let file = project.folder().join(place).join("inner/file");
            assert_eq!(fs::read_to_string(&file).expect("read"), "text\n");
            let meta = file.metadata().expect("look");
            assert_eq!((meta.uid(), meta.mode() & 0o7777), (caller.uid, 0o640), "{}", caller.name);
        }
        let stream = project.ctst(["cp", "one:/srv/copy", "-"]).ok().stdout;
        assert!(stream.contains("copy/inner/file") && stream.contains("ustar"));
        let mut child = project.start(["cp", "-", "one:/tmp"]);
        child.child().stdin.take().expect("a pipe").write_all(stream.as_bytes()).expect("write");
        child.wait(Duration::from_secs(20)).ok();
        assert_eq!(inside(&project, "one", "cat /tmp/copy/inner/file"), "text\n");
        // Of a folder that nobody may write, and of what has no size.
        inside(&project, "one", "mkdir -p /srv/ro/in; echo text > /srv/ro/in/file; chmod 555 /srv/ro/in /srv/ro");
        project.ctst(["cp", "one:/srv/ro", "ro"]).ok();
        let ro = project.folder().join("ro");
        assert_eq!(fs::read_to_string(ro.join("in/file")).expect("read"), "text\n");
        for folder in [ro.join("in"), ro] {
            assert_eq!(folder.metadata().expect("look").mode() & 0o7777, 0o555);
            fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).expect("a mode");
        }
        project.ctst(["cp", "one:/proc/version", "version"]).ok();
        let version = fs::read_to_string("/proc/version").expect("read");
        assert_eq!(fs::read_to_string(project.folder().join("version")).expect("read"), version);
        project.stop();
    }
}

#[test]
fn links_of_a_container_lead_to_its_own_places() {
    let project = Project::new(&Caller::ordinary(), ONE);
    project.make_folder("secret");
    project.write("secret/key", "of the host");
    project.write("file", "mine");
    project.up();
    let secret = project.folder().join("secret").display().to_string();
    inside(
        &project,
        "one",
        &format!(
            "ln -s {secret} /srv/way; ln -s {secret}/key /srv/key; mkfifo /srv/fifo; mkdir -p /srv/d; mkfifo /srv/d/f"
        ),
    );
    project.ctst(["cp", "one:/srv/way/key", "out"]).fails(125, &["component one", "copy"]);
    project.ctst(["cp", "file", "one:/srv/way/new"]).fails(125, &["component one", "copy"]);
    assert!(!project.folder().join("secret/new").exists());
    // A link is copied as a link.
    project.ctst(["cp", "one:/srv/key", "key"]).ok();
    assert!(project.folder().join("key").symlink_metadata().expect("look").file_type().is_symlink());
    project.ctst(["cp", "one:/srv/fifo", "fifo"]).fails(125, &["copy /srv/fifo"]);
    let done = project.ctst(["cp", "one:/srv/d", "d"]).ok();
    assert!(done.stderr.contains("left out 1"), "{done}");
    project.stop();
}

#[test]
fn what_cannot_be_copied_is_said() {
    let project = Project::new(&Caller::ordinary(), ONE);
    project.write("file", "mine");
    project.ctst(["cp", "file", "one:/srv"]).fails(125, &["one"]);
    project.up();
    project.ctst(["cp", "none", "one:/srv"]).fails(125, &["none"]);
    project.ctst(["cp", "one:/none", "."]).fails(125, &["copy /none", "No such file"]);
    project.ctst(["cp", "file", "one:/none/deep/file"]).fails(125, &["copy /none/deep/file", "No such file"]);
    project.ctst(["cp", "file", "user:/srv/file"]).fails(125, &["Read-only"]);
    project.ctst(["cp", "one:/etc", "none/deep"]).fails(125, &["No such file"]);
    project.ctst(["cp", "one:/etc", "file"]).fails(125, &["file"]);
    project.ctst(["cp", "file", "other"]).fails(125, &["one of them has to be in a container"]);
    let told = ["both are in containers", "ctst cp one:/etc ./COPY, then: ctst cp ./COPY user:/tmp"];
    project.ctst(["cp", "one:/etc", "user:/tmp"]).fails(125, &told);
    assert_eq!(fs::read_to_string(project.folder().join("file")).expect("read"), "mine");
    let left: Vec<_> = fs::read_dir(project.folder())
        .expect("list")
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(".ctst-"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    project.stop();
}

/// What a killed copy left goes with the next one, and somebody in the container who holds its streams holds up nobody.
#[test]
fn nobody_waits_for_who_holds_the_streams() {
    // Opens the first pipe of another process that it sees, and keeps it.
    const HOLDER: &str = "cd /proc; while :; do for fd in [0-9]*/fd/[12]; do case $fd in $$/*|1/*) continue;; esac; \
        [ ! -p $fd ] || [ -e /srv/held ] || { exec 9<>$fd && touch /srv/held; }; done; done";
    let stack = format!(
        r#"COMPONENT one {{ image = "file://ROOTFS" command = ["/bin/sh", "-c", "{HOLDER}"] readonly = false }}"#
    );
    let project = Project::new(&Caller::ordinary(), &stack);
    project.make_folder(".ctst-cp-a1b2c3");
    project.up();
    for round in 0..5 {
        project.ctst(["cp", "one:/etc", &format!("etc{round}")]).ok();
        project.ctst(["cp", "stack.ctst", "one:/srv"]).ok();
    }
    assert!(!project.folder().join(".ctst-cp-a1b2c3").exists());
    project.stop();
}
