//! Named volumes: made and filled once, shared, kept, and removed only by name.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use containust_tests::{Caller, Project, eventually};

/// An image with content where the volume goes, some of it another user's inside.
const STACK: &str = r#"
VOLUME data { labels { kept = "yes", bell = "\u{1b}]0;x\u{7}" } }
COMPONENT db {
  image   = "file://./root"
  command = ["/bin/busybox", "sh", "-c", "cat /srv/data/first; echo more >> /srv/data/list; sleep 1000"]
  volume  = "data:/srv/data"
}
COMPONENT reader {
  image   = "file://ROOTFS"
  command = ["/bin/ctst-probe", "hold"]
  volume  = "data:/data:ro"
}
CONNECT reader -> db
"#;

fn project(caller: &Caller) -> Project {
    let project = Project::new(caller, STACK);
    for folder in ["root", "root/bin", "root/srv", "root/srv/data", "root/srv/data/inner"] {
        project.make_folder(folder);
        fs::set_permissions(project.folder().join(folder), fs::Permissions::from_mode(0o755)).expect("set a mode");
    }
    let busybox = fs::read("/bin/busybox").expect("read busybox");
    project.write_bytes("root/bin/busybox", &busybox);
    fs::set_permissions(project.folder().join("root/bin/busybox"), fs::Permissions::from_mode(0o755))
        .expect("set a mode");
    project.write("root/srv/data/first", "of the image\n");
    project.write("root/srv/data/inner/file", "x");
    fs::set_permissions(project.folder().join("root/srv/data/inner/file"), fs::Permissions::from_mode(0o640))
        .expect("set a mode");
    symlink("/etc/passwd", project.folder().join("root/srv/data/link")).expect("link");
    project
}

fn volume(project: &Project) -> std::path::PathBuf {
    project.folder().join(".containust/volumes/data")
}

#[test]
fn a_volume_begins_with_the_image_and_outlives_its_containers() {
    for caller in Caller::all() {
        let project = project(&caller);
        project.up();
        let read = |path: &str| project.ctst(["exec", "reader", "cat", path]);
        assert_eq!(read("/data/first").ok().stdout, "of the image\n", "{}", caller.name);
        assert_eq!(read("/data/list").ok().stdout, "more\n");
        let stat = project.ctst(["exec", "reader", "stat", "-c", "%u %g %a", "/data/inner/file"]).ok().stdout;
        assert_eq!(stat, "0 0 640\n", "{}", caller.name);
        assert_eq!(fs::read_link(volume(&project).join("link")).expect("a link"), Path::new("/etc/passwd"));
        project.ctst(["exec", "reader", "touch", "/data/x"]).fails(1, &["Read-only"]);
        // Kept by a new container of another image, and not filled again.
        project.ctst(["exec", "db", "/bin/busybox", "rm", "/srv/data/first"]).ok();
        project.stop();
        project.ctst(["rm"]).ok();
        project.write("stack.ctst", &STACK.replace("cat /srv/data/first; ", ""));
        project.up();
        read("/data/first").fails(1, &["No such file"]);
        assert_eq!(read("/data/list").ok().stdout, "more\nmore\n");
        let left: Vec<_> = fs::read_dir(project.folder().join(".containust/volumes"))
            .expect("list")
            .flatten()
            .map(|entry| entry.file_name().into_string().expect("a name"))
            .filter(|name| name.starts_with('.'))
            .collect();
        assert_eq!(left, [""; 0]);
        project.stop();
    }
}

/// As databases do: the folder itself belongs to the user that the image gives it.
#[test]
fn a_volume_that_belongs_to_another_id_is_removed() {
    let text = r#"
COMPONENT db {
  image   = "file://ROOTFS"
  command = ["/bin/sh", "-c", "chown 1000:1000 /data; chmod 700 /data; touch /data/x; exec sleep 1000"]
  volume  = "data:/data"
}
"#;
    for caller in [Caller::ranges(), Caller::root()].into_iter().flatten() {
        let project = Project::new(&caller, text);
        project.up();
        eventually("it is given away", || volume(&project).metadata().is_ok_and(|meta| meta.uid() != caller.uid));
        project.stop();
        project.ctst(["rm"]).ok();
        project.ctst(["volumes", "rm", "data"]).ok();
        assert!(!volume(&project).exists());
        let left = fs::read_dir(project.folder().join(".containust/volumes")).expect("a folder");
        assert_eq!(left.count(), 0, "{}", caller.name);
    }
}

#[test]
fn volumes_are_listed_and_removed_by_name_only() {
    for caller in Caller::all() {
        let project = project(&caller);
        assert_eq!(project.ctst(["volumes", "--format", "json"]).ok().json().as_array().map(Vec::len), Some(0));
        project.up();
        let rows = project.ctst(["volumes", "ls", "--format", "json"]).ok().json();
        assert_eq!((rows[0]["name"].as_str(), rows[0]["labels"]["kept"].as_str()), (Some("data"), Some("yes")));
        assert_eq!(rows[0]["used_by"], serde_json::json!(["db", "reader"]));
        let shown = project.ctst(["volumes"]).ok().stdout;
        assert!(shown.contains("db, reader") && shown.contains(r"bell=\x1b]0;x\x07"), "{shown}");
        project.ctst(["volumes", "rm", "data"]).fails(125, &["db, reader has it", "ctst rm db reader"]);
        project.stop();
        project.ctst(["volumes", "rm", "data"]).fails(125, &["has it"]);
        project.ctst(["volumes", "rm", "date"]).fails(125, &["find volume date", "data"]);
        project.ctst(["volumes", "rm", "../containers"]).fails(125, &["find volume"]);
        project.ctst(["rm"]).ok();
        assert!(volume(&project).is_dir());
        project.ctst(["volumes", "rm", "data"]).ok();
        assert!(!volume(&project).exists());
        assert_eq!(project.ctst(["volumes", "--format", "json"]).ok().json().as_array().map(Vec::len), Some(0));
        project.up();
        assert_eq!(project.ctst(["exec", "reader", "cat", "/data/first"]).ok().stdout, "of the image\n");
        project.stop();
    }
}

#[test]
fn a_half_filled_volume_is_not_one() {
    let project = project(&Caller::ordinary());
    project.make_folder(".containust");
    fs::set_permissions(project.folder().join(".containust"), fs::Permissions::from_mode(0o700)).expect("set a mode");
    for folder in [".containust/volumes", ".containust/volumes/.new-data"] {
        project.make_folder(folder);
    }
    project.write(".containust/volumes/.new-data/half", "");
    project.up();
    assert!(!volume(&project).join("half").exists());
    assert_eq!(project.ctst(["exec", "reader", "cat", "/data/first"]).ok().stdout, "of the image\n");
    project.stop();
}

#[test]
fn a_hostile_image_fills_a_volume_from_nothing_but_itself() {
    let project = project(&Caller::ordinary());
    fs::remove_dir_all(project.folder().join("root/srv/data")).expect("remove");
    // To the host's own, where it would be followed outside.
    let secret = project.folder().join("secret");
    project.make_folder("secret");
    project.write("secret/first", "of the host\n");
    symlink(&secret, project.folder().join("root/srv/data")).expect("link");
    project.write("stack.ctst", &STACK.replace("cat /srv/data/first; echo more >> /srv/data/list; ", ""));
    let done = project.ctst(["run", "-d", "--yes"]);
    assert!(!volume(&project).join("first").exists(), "{done}");
    project.ctst(["stop"]).ok();
    // A file in the place of the folder is nobody's volume.
    project.ctst(["rm"]).ok();
    project.ctst(["volumes", "rm", "data"]);
    project.write(".containust/volumes/data", "");
    project.ctst(["run", "-d", "--wait", "--yes"]).fails(125, &["component db", "not a folder"]);
    assert_eq!(fs::metadata(volume(&project)).expect("look").size(), 0);
    project.stop();
}

/// Whatever an image holds, also under the names of our own mounts.
#[test]
fn an_image_does_not_spoil_the_filling() {
    for caller in Caller::all() {
        let project = project(&caller);
        for name in [".ctst-target", ".ctst-worker", "target", "ctst"] {
            symlink("/srv/data/nowhere", project.folder().join("root").join(name)).expect("link");
        }
        project.make_folder("root/dev");
        symlink("/srv/data", project.folder().join("root/dev/shm")).expect("link");
        project.up();
        let done = project.ctst(["exec", "reader", "cat", "/data/first", "/data/inner/file"]).ok();
        assert_eq!(done.stdout, "of the image\nx", "{}", caller.name);
        project.stop();
    }
}
