//! Lazy images: containers that read from an archive which nobody unpacked, and what becomes of them when it, or whoever serves
//! it, is not what it was.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::Command;
use std::time::{Duration, Instant};

use containust_tests::archive::{Archive, docker, gzip, sha256};
use containust_tests::{Caller, Done, Project, eventually, finish};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tar::EntryType;

/// A component that runs from `a.tar`.
fn lazy(name: &str, more: &str) -> String {
    format!(
        "COMPONENT {name} {{ image = \"tar://./a.tar\" lazy = true {more}
  command = [\"/bin/sh\", \"-c\", \"echo started; exec /bin/ctst-probe hold\"] }}\n"
    )
}

/// Bytes of which no two thousand are the same.
fn noise(length: u32) -> Vec<u8> {
    (0..length / 4).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect()
}

fn archive() -> Archive {
    let mut archive = Archive::root().folder("srv/many/").folder("srv/late/");
    for number in 0..2000 {
        archive = archive.file(&format!("srv/many/{number}"), format!("{number}\n"));
    }
    for number in 0..20 {
        archive = archive.file(&format!("srv/late/{number}"), noise(50_000));
    }
    archive
        .entry(EntryType::Regular, "srv/large", 0o644, (0, 0), "", &noise(5_000_000))
        .attribute("user.kind", b"a tag")
        .file("srv/tagged", "tagged\n")
        .link("srv/link", "late/0")
}

fn sh(project: &Project, component: &str, script: &str) -> Done {
    project.ctst(["exec", component, "/bin/sh", "-c", script])
}

/// Folders of the project's layers.
fn layers(project: &Project) -> Vec<String> {
    let entries = fs::read_dir(project.folder().join(".containust/images/layers"));
    entries.into_iter().flatten().flatten().map(|entry| entry.file_name().into_string().expect("a name")).collect()
}

/// The processes that serve images.
fn servers(project: &Project) -> Vec<i32> {
    let serves = |pid: &i32| {
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        words.split(|b| *b == 0).skip(1).take(2).eq([&b"worker"[..], b"serve"])
    };
    project.processes().into_keys().map(|(pid, _)| pid).filter(serves).collect()
}

fn signal(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).expect("a pid"), signal).expect("signal a process of the project");
}

fn is_single(caller: &Caller) -> bool {
    caller.single || caller.uid != 0 && caller.range().is_none()
}

#[test]
fn a_container_runs_from_its_archive() {
    let bytes = archive().end();
    let sums = [("large", noise(5_000_000)), ("link", noise(50_000)), ("many/1999", b"1999\n".to_vec())];
    for caller in Caller::all() {
        let stack = lazy("reads", "") + &lazy("writes", "readonly = false") + &lazy("user", "user = \"somebody\"");
        let project = Project::new(&caller, &stack);
        project.write_bytes("a.tar", &bytes);
        let plan = project.ctst(["plan"]).ok();
        assert!(plan.stdout.contains("indexed, and read from its archive"), "{plan}");
        assert!(!project.folder().join(".containust").exists(), "a plan writes nothing");
        project.up();
        let about = &caller.name;
        // Nothing of it was unpacked but what names users.
        let [layer] = &layers(&project)[..] else { panic!("{:?}", layers(&project)) };
        let layer = project.folder().join(".containust/images/layers").join(layer);
        let size = fs::metadata(layer.join("index")).expect("there is an index").len();
        assert!(layer.to_string_lossy().contains("-lazy") && size < 400_000, "{size} bytes");
        let files = finish(Command::new("find").arg(&layer).args(["-type", "f"])).ok().stdout;
        assert_eq!(files.lines().count(), 3, "{files}");
        assert_eq!(servers(&project).len(), 3, "{about}");

        // Everything is there, as it is in an image that was unpacked.
        for (name, content) in &sums {
            let sum = sh(&project, "reads", &format!("sha256sum /srv/{name}")).ok().stdout;
            assert!(sum.starts_with(&sha256(content)), "{about}: {name}: {sum}");
        }
        let owner = if is_single(&caller) { "0 0" } else { "1000 1001" };
        let stat =
            sh(&project, "reads", "cd /srv; stat -c '%n %u %g %a %Y' owned setuid; stat -c '%h %F' other-name fifo");
        let expected = format!("owned {owner} 640 1000000000\nsetuid 0 0 4755 1000000000\n2 regular file\n1 fifo\n");
        assert_eq!(stat.ok().stdout, expected, "{about}");
        let same =
            sh(&project, "reads", "cd /srv; [ owned -ef other-name ] && ls -i many | sort -n | uniq | wc -l").ok();
        assert_eq!(same.stdout.trim(), "2000", "{about}");
        let found = sh(&project, "reads", "find /srv | wc -l; find /srv/many -type f | wc -l").ok().stdout;
        assert_eq!(found, "2030\n2000\n", "{about}");
        let together = "for n in 1 2 3 4 5 6 7 8; do sha256sum /srv/late/* /srv/large & done; wait";
        let sums: BTreeSet<String> = sh(&project, "reads", together).ok().stdout.lines().map(str::to_owned).collect();
        assert_eq!(sums.len(), 21, "{about}: {sums:?}");
        sh(&project, "reads", "ls /srv/none").fails(1, &["No such file"]);
        sh(&project, "reads", "echo x > /srv/new").fails(1, &["Read-only"]);
        let id = sh(&project, "user", "id -u; cat /srv/owned").ok().stdout;
        assert_eq!(id, "1000\nowned\n", "{about}");

        // What is written lands above it, and stays there.
        let change = "set -e; cd /srv; echo more >> tagged; rm many/7; mv many/8 many/eight; rm -r late/; mkdir late; \
                      chmod 600 large; ln many/9 many/nine; echo x > late/x";
        sh(&project, "writes", change).ok();
        let look = "cd /srv; cat tagged late/x many/eight; ls late; stat -c %a large; ls many | wc -l; cat many/7";
        let now = "tagged\nmore\nx\n8\nx\n600\n2000\n";
        assert_eq!(sh(&project, "writes", look).fails(1, &["many/7"]).stdout, now, "{about}");
        let upper = project.folder().join(".containust/containers/writes/upper/srv/tagged");
        let mut tag = [0; 16];
        let length = rustix::fs::getxattr(&upper, "user.kind", &mut tag[..]);
        if rustix::process::getuid().is_root() || caller.uid != 0 {
            assert_eq!(length.map(|length| &tag[..length]), Ok(&b"a tag"[..]), "{about}");
        }
        project.ctst(["restart", "writes"]).ok();
        assert_eq!(sh(&project, "writes", look).fails(1, &["many/7"]).stdout, now, "{about}");
        assert_eq!(sh(&project, "reads", "ls /srv/many | wc -l; ls /srv/late | wc -l").ok().stdout, "2000\n20\n");

        // Whoever asks is told how it is.
        let ps = project.ctst(["ps"]).ok().stdout;
        assert_eq!(ps.matches("(lazy)").count(), 3, "{ps}");
        let status = project.status("reads");
        assert!(
            status["lazy"] == true && status["digest"].as_str().is_some_and(|d| d.starts_with("blake3:")),
            "{status}"
        );
        assert!(project.ctst(["inspect", "reads"]).ok().stdout.contains("a.tar"), "{about}");
        let images = project.ctst(["images", "ls", "--format", "json"]).ok().json();
        assert!(images[0]["lazy"] == true && images.as_array().is_some_and(|all| all.len() == 1), "{images}");
        project.ctst(["images", "verify"]).ok();
        project.ctst(["images", "export", "tar://./a.tar", "out.tar"]).fails(125, &["an index only"]);
        project.ctst(["images", "rm", "tar://./a.tar"]).fails(125, &["reads"]);
        let again = project.ctst(["run", "-d", "--yes"]).ok();
        assert!(!again.stderr.contains("import") && !again.stderr.contains("start"), "{again}");
        project.stop();
        project.ctst(["run", "-d", "--wait", "--yes"]).ok();
        assert_eq!(sh(&project, "writes", look).fails(1, &["many/7"]).stdout, now, "{about}");
        project.stop();
        project.ctst(["rm", "--allow-destroy"]).ok();
        project.write("stack.ctst", "COMPONENT other { image = \"file://ROOTFS\" command = [\"/bin/true\"] }\n");
        project.ctst(["images", "prune"]).ok();
        assert_eq!(layers(&project), [""; 0], "{about}");
    }
}

#[test]
fn a_pin_is_held_with_every_read() {
    let bytes = archive().end();
    for caller in Caller::all() {
        let pinned = |digest: &str| lazy("web", "").replace("a.tar", &format!("a.tar@sha256:{digest}"));
        let project = Project::new(&caller, &pinned(&"0".repeat(64)));
        project.write_bytes("a.tar", &bytes);
        project.ctst(["run", "-d", "--yes"]).fails(125, &["pinned", &sha256(&bytes)]);
        assert_eq!(layers(&project), [""; 0]);
        project.write("stack.ctst", &pinned(&sha256(&bytes)));
        project.up();
        assert_eq!(project.status("web")["digest"], format!("sha256:{}", sha256(&bytes)));
        let sum = sh(&project, "web", "sha256sum /srv/late/3").ok().stdout;
        assert!(sum.starts_with(&sha256(&noise(50_000))), "{sum}");

        // One byte, and the time of before: only a digest tells.
        let path = project.folder().join("a.tar");
        let file = File::options().write(true).open(&path).expect("open the archive");
        let time = file.metadata().and_then(|meta| meta.modified()).expect("look at the archive");
        let wanted = &noise(5_000_000)[4_000_000..4_000_010];
        let at = bytes.windows(10).position(|window| window == wanted).expect("it is there");
        file.write_all_at(b"!", at as u64).expect("write to the archive");
        file.set_modified(time).expect("set its time");
        sh(&project, "web", "cat /srv/large > /dev/null").fails(1, &["rror"]);
        let log = project.logs("web");
        assert!(
            log.contains("ctst: archive `") && log.contains("was changed after the container was started"),
            "{log}"
        );
        // What is as it was is served.
        let sum = sh(&project, "web", "sha256sum /srv/late/4; head -c 1000000 /srv/large | wc -c").ok().stdout;
        assert!(sum.starts_with(&sha256(&noise(50_000))) && sum.ends_with("1000000\n"), "{sum}");
        assert_eq!(project.status("web")["state"], "running");
        project.stop();
    }
}

#[test]
fn an_archive_that_changes_gives_errors_and_a_line() {
    type Change = fn(&std::path::Path);
    let bytes = archive().end();
    let changes: [(&str, Change); 2] = [
        ("cut off", |path| {
            let file = File::options().write(true).open(path).expect("open the archive");
            file.set_len(100_000).expect("cut the archive off");
        }),
        ("written to", |path| {
            let file = File::options().append(true).open(path).expect("open the archive");
            std::io::Write::write_all(&mut &file, &[0; 512]).expect("write to the archive");
        }),
    ];
    for caller in Caller::all() {
        for (what, change) in changes {
            let about = format!("{what} for {}", caller.name);
            let project = Project::new(&caller, &lazy("web", ""));
            project.write_bytes("a.tar", &bytes);
            project.up();
            // Programs, too.
            sh(&project, "web", "cat /bin/busybox /srv/late/1 > /dev/null").ok();
            change(&project.folder().join("a.tar"));
            // Or a program that the kernel would have to read again, which ends by SIGBUS.
            let failed = sh(&project, "web", "cat /srv/late/2");
            assert!(matches!(failed.code, 1 | 126 | 135), "{about}: {failed}");
            // Names, and what was read, are known.
            sh(&project, "web", "cat /srv/late/1 > /dev/null; ls /srv/many | wc -l").ok();
            let log = project.logs("web");
            let line = "was changed after the container was started on it";
            assert!(log.contains(line) && log.matches("ctst:").count() == 1, "{about}: {log}");
            let ps = project.ctst(["ps"]).ok();
            assert!(ps.stderr.contains(line), "{about}: {ps}");
            assert_eq!(project.status("web")["state"], "running", "{about}");
            // It is not started on what it was not made from,
            project.ctst(["restart", "web"]).fails(125, &["a.tar", "changed"]);
            // but from what is there now.
            project.write_bytes("a.tar", &bytes);
            project.ctst(["run", "-d", "--wait", "--yes"]).ok();
            sh(&project, "web", "cat /srv/late/2 > /dev/null").ok();
            project.stop();
        }
    }
}

#[test]
fn an_archive_that_is_gone_or_replaced_is_served_as_it_was() {
    let bytes = archive().end();
    for caller in Caller::all() {
        let project = Project::new(&caller, &lazy("web", ""));
        project.write_bytes("a.tar", &bytes);
        project.up();
        let path = project.folder().join("a.tar");
        project.write_bytes("new.tar", &Archive::root().file("srv/new", "new\n").end());
        fs::rename(project.folder().join("new.tar"), &path).expect("replace the archive");
        let sum = |name: &str| {
            let sum = sh(&project, "web", &format!("sha256sum /srv/late/{name}")).ok().stdout;
            assert!(sum.starts_with(&sha256(&noise(50_000))), "{sum}");
        };
        sum("1");
        fs::remove_file(&path).expect("remove the archive");
        sum("2");
        project.ctst(["restart", "web"]).ok();
        sum("3");
        assert!(!project.logs("web").contains("ctst:"));
        project.ctst(["run", "-d", "--yes"]).fails(125, &["a.tar", "does not exist"]);
        sum("4");
        project.write_bytes("a.tar", &Archive::root().file("srv/new", "new\n").end());
        project.ctst(["run", "-d", "--wait", "--yes"]).ok();
        assert_eq!(sh(&project, "web", "cat /srv/new").ok().stdout, "new\n");
        project.stop();
    }
}

#[test]
fn a_server_that_ends_leaves_errors_and_a_line() {
    let bytes = archive().end();
    for caller in Caller::all() {
        let stack = lazy("web", "stop { grace = 1s }") + &lazy("other", "stop { grace = 1s }");
        let project = Project::new(&caller, &stack);
        project.write_bytes("a.tar", &bytes);
        project.up();
        // What was read stays: programs among it.
        for name in ["web", "other"] {
            sh(&project, name, "cat /bin/busybox > /dev/null").ok();
        }
        let all = servers(&project);
        assert_eq!(all.len(), 2, "{}", caller.name);
        for server in &all {
            signal(*server, Signal::KILL);
        }
        eventually("both are told of", || {
            ["web", "other"].iter().all(|name| project.logs(name).contains("the process that serves its image ended"))
        });
        sh(&project, "web", "cat /srv/late/2").fails(1, &["not connected"]);
        assert_eq!(project.status("web")["state"], "running");
        assert!(project.ctst(["ps"]).ok().stderr.contains("the process that serves its image ended"));
        project.ctst(["restart", "web"]).ok();
        sh(&project, "web", "cat /srv/late/2 > /dev/null").ok();
        let logged = project.logs("web").matches("the process that serves").count();
        assert_eq!((logged, servers(&project).len()), (1, 1));

        // One that hangs, and with it whoever reads, ends with the container.
        let [server] = servers(&project)[..] else { panic!("one server") };
        signal(server, Signal::STOP);
        let mut reader = project.start(["exec", "web", "/bin/cat", "/srv/late/3"]);
        std::thread::sleep(Duration::from_millis(300));
        assert!(matches!(reader.child().try_wait(), Ok(None)), "it waits");
        let start = Instant::now();
        project.stop();
        assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
        assert_ne!(reader.wait(Duration::from_secs(10)).code, 0);

        // With a supervisor everything goes.
        project.up();
        let supervisor = project.parts().into_iter().find(|(_, part)| *part == "supervisor").expect("one runs").0;
        signal(supervisor, Signal::KILL);
        project.assert_nothing_left();
    }
}

#[test]
fn a_server_has_nothing_but_what_it_serves() {
    for caller in Caller::all() {
        let project = Project::new(&caller, &lazy("web", ""));
        project.write_bytes("a.tar", &archive().end());
        project.up();
        let [server] = servers(&project)[..] else { panic!("one server") };
        let status = fs::read_to_string(format!("/proc/{server}/status")).expect("it runs");
        let value = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key)).expect("a line of it");
            line.trim_start_matches(':').trim().to_owned()
        };
        assert_eq!((value("Seccomp"), value("NoNewPrivs")), ("2".to_owned(), "1".to_owned()));
        assert_eq!(value("CapEff"), "0000000000000000");
        if rustix::process::getuid().is_root() {
            let mut files = BTreeSet::new();
            for entry in fs::read_dir(format!("/proc/{server}/fd")).expect("it runs").flatten() {
                let target = fs::read_link(entry.path()).expect("a descriptor").display().to_string();
                files.insert(
                    target.split(':').next().unwrap_or_default().rsplit('/').next().expect("a name").to_owned(),
                );
            }
            let expected = ["a.tar", "fuse", "index", "pipe", "socket"].map(str::to_owned);
            assert!(files.iter().all(|file| expected.contains(file)), "{files:?}");
            // Its root is empty but for the program, and the container has no way to it.
            let root = fs::read_dir(format!("/proc/{server}/root")).expect("look at its root");
            let names: BTreeSet<String> =
                root.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
            assert_eq!(names, ["ctst", "dev", "proc", "sys"].map(str::to_owned).into());
        }
        let sees = sh(&project, "web", "ls /dev/fuse; cat /proc/*/cmdline").stdout;
        assert!(!sees.contains("serve") && !sees.contains("/dev/fuse"), "{sees}");
        project.stop();
    }
}

#[test]
fn what_cannot_be_started_from_is_refused_by_name() {
    let root = || Archive::root();
    let odd = |kind, name: &str, link: &str| root().entry(kind, name, 0o644, (0, 0), link, b"").end();
    let cases = [
        (gzip(&root().end()), vec!["is compressed with gzip", "remove `lazy = true`"]),
        (docker(&[root().end()], &json!({})), vec!["is an image of layers"]),
        (odd(EntryType::Regular, "../out", ""), vec!["`../out` leads out of its folder by `..`"]),
        (odd(EntryType::Link, "srv/h", "../../etc/shadow"), vec!["`srv/h` is a hard link", "leads out"]),
        (
            root().link("srv/l", "/etc").file("srv/l/passwd", "bad").end(),
            vec!["lies below `srv/l`, which is a symbolic link"],
        ),
        (root().end()[..20_000].to_vec(), vec!["is not whole"]),
        (Vec::new(), vec!["is empty"]),
        (
            root().entry(EntryType::Regular, "srv/x", 0o644, (2_000_000, 0), "", b"").end(),
            vec!["belongs to id 2000000"],
        ),
    ];
    for caller in Caller::all() {
        let project = Project::new(&caller, &lazy("web", ""));
        for (bytes, words) in &cases {
            project.write_bytes("a.tar", bytes);
            if is_single(&caller) && words[0].starts_with("belongs") {
                continue;
            }
            project.ctst(["run", "-d", "--yes"]).fails(125, &[&["component web", "a.tar"][..], words].concat());
            assert_eq!(layers(&project), [""; 0]);
        }
        let staging = fs::read_dir(project.folder().join(".containust/images/staging")).expect("a folder");
        assert_eq!(staging.flatten().filter(|entry| entry.file_name() != "lock").count(), 0);
        project.assert_nothing_left();
        project
            .write("stack.ctst", "COMPONENT web { image = \"file://ROOTFS\" lazy = true command = [\"/bin/true\"] }\n");
        project.ctst(["plan"]).fails(125, &["E0211", "`tar://` archives only"]);
    }
}

#[test]
fn an_index_that_is_damaged_starts_nothing() {
    let caller = Caller::ordinary();
    let project = Project::new(&caller, &lazy("web", ""));
    project.write_bytes("a.tar", &archive().end());
    project.up();
    project.stop();
    let index = project.folder().join(".containust/images/layers").join(&layers(&project)[0]).join("index");
    let mut bytes = fs::read(&index).expect("read the index");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&index, bytes).expect("damage the index");
    project.ctst(["run", "-d", "--wait", "--yes"]).fails(125, &["web", "is not the one that was made"]);
    let verified = project.ctst(["images", "verify"]);
    assert!(verified.code == 1 && verified.stdout.contains("changed"), "{verified}");
    project.ctst(["stop"]);
    project.assert_nothing_left();
}

#[test]
fn an_image_that_was_unpacked_is_taken_as_it_is() {
    for caller in Caller::all() {
        let project = Project::new(&caller, &lazy("web", "").replace("lazy = true", ""));
        project.write_bytes("a.tar", &archive().end());
        project.ctst(["build"]).ok();
        project.write("stack.ctst", &lazy("web", ""));
        project.up();
        assert_eq!((project.status("web")["lazy"].as_bool(), servers(&project).len()), (None, 0));
        project.stop();
    }
}

#[test]
fn a_volume_begins_with_what_the_archive_has() {
    for caller in Caller::all() {
        let project = Project::new(&caller, &lazy("web", "volume = \"data:/srv/late\""));
        project.write_bytes("a.tar", &archive().end());
        project.up();
        assert_eq!(sh(&project, "web", "echo x > /srv/late/mine; ls /srv/late | wc -l").ok().stdout, "21\n");
        assert_eq!(servers(&project).len(), 1, "that of the worker has ended");
        project.stop();
    }
}

#[test]
fn without_the_device_it_is_said_what_to_do() {
    let Some(_) = Caller::root() else { return };
    let caller = Caller::ordinary();
    let mut project = Project::governed(&caller, &lazy("web", ""), "", &[]);
    project.write_bytes("a.tar", &archive().end());
    let closed = project.folder().join("closed");
    fs::write(&closed, "").expect("write a file");
    fs::set_permissions(&closed, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("close it");
    assert_eq!(closed.metadata().expect("look at it").uid(), 0);
    project.prelude = format!("mount --bind {} /dev/fuse", closed.display());
    for verb in [&["plan"][..], &["run", "-d", "--yes"]] {
        project.ctst(verb).fails(125, &["web", "read its archive lazily", "sudo chmod 0666 /dev/fuse"]);
    }
    assert_eq!(layers(&project), [""; 0]);
    project.prelude = String::new();
    project.up();
    project.stop();
}

#[test]
fn the_policy_says_whether_there_may_be_such_a_thing() {
    let Some(caller) = Caller::strict() else { return };
    let project = Project::governed(&caller, &lazy("web", ""), "", &[]);
    project.write_bytes("a.tar", &archive().end());
    project.ctst(["run", "-d", "--yes"]).fails(125, &["web", "`overlay = yes` and `fuse = yes`"]);
    project.set_policy("overlay = yes\n");
    project
        .ctst(["run", "-d", "--yes"])
        .fails(125, &["mount a FUSE file system", "ask the administrator for `fuse = yes`"]);
    project.set_policy("overlay = yes\nfuse = yes\n");
    project.up();
    let sum = sh(&project, "web", "sha256sum /srv/late/3").ok().stdout;
    assert!(sum.starts_with(&sha256(&noise(50_000))), "{sum}");
    project.stop();
    let ordinary = Project::governed(&Caller::ordinary(), &lazy("web", ""), "fuse = no\n", &[]);
    ordinary.write_bytes("a.tar", &archive().end());
    ordinary.ctst(["run", "-d", "--yes"]).fails(125, &["line 1", "says `fuse = no`"]);
}
