//! Images from archives: every kind runs and is what its maker meant, names lead to them, and hostile ones do no harm.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use containust_tests::archive::{Archive, docker, gzip, oci, sha256, xz, zstd};
use containust_tests::{Caller, Project, eventually, finish, programs};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tar::EntryType;

/// Names in a folder of the project's image store.
fn store(project: &Project, folder: &str) -> Vec<String> {
    let path = project.folder().join(".containust/images").join(folder);
    let Ok(entries) = fs::read_dir(path) else { return Vec::new() };
    let mut names: Vec<String> =
        entries.flatten().map(|entry| entry.file_name().into_string().expect("a name")).collect();
    names.sort();
    names
}

/// Whether only the caller's own id exists in his containers, so that all files are root's there.
fn is_single(caller: &Caller) -> bool {
    caller.single || caller.uid != 0 && caller.range().is_none()
}

/// Nothing of an import is under way, and nothing was left.
fn assert_clean(project: &Project) {
    assert_eq!(store(project, "staging").into_iter().filter(|name| name != "lock").collect::<Vec<_>>(), [""; 0]);
}

#[test]
fn archives_of_every_kind_run() {
    let root = Archive::root().end();
    let look = r#"command = ["/bin/sh", "-c", "cd /srv; stat -c '%n %u %g %a %Y' owned setuid; stat -c '%h %F' other-name fifo"]"#;
    let files = [("a.tar", root.clone()), ("b.tgz", gzip(&root)), ("c.zst", zstd(&root)), ("d", xz(&root))];
    for caller in Caller::all() {
        let mut stack = String::new();
        for (number, (name, _)) in files.iter().enumerate() {
            stack += &format!("COMPONENT c{number} {{ image = \"tar://./{name}\" {look} }}\n");
        }
        let project = Project::new(&caller, &stack);
        for (name, bytes) in &files {
            project.write_bytes(name, bytes);
        }
        let plan = project.ctst(["plan"]).ok();
        assert!(plan.stdout.contains("tar://./a.tar"), "{plan}");
        assert!(!project.folder().join(".containust").exists(), "a plan writes nothing");
        let done = project.ctst(["run", "--yes"]).ok();
        assert!(done.stderr.contains("c0 imported tar://./a.tar"), "{done}");
        let owner = if is_single(&caller) { "0 0" } else { "1000 1001" };
        let expected = format!("owned {owner} 640 1000000000\nsetuid 0 0 4755 1000000000\n2 regular file\n1 fifo\n");
        for number in 0..files.len() {
            assert_eq!(project.logs(&format!("c{number}")), expected, "{} c{number}", caller.name);
        }
        assert_eq!(done.stderr.contains("uid 1000; gid 1001"), is_single(&caller), "{done}");
        // One tree, whatever it came from, in one layer for each archive's digest.
        assert_clean(&project);
        let again = project.ctst(["run", "--yes"]).ok();
        assert!(!again.stderr.contains("import"), "{again}");
        let pinned = format!("tar://./a.tar@sha256:{}", sha256(&root));
        project.write("stack.ctst", &format!("COMPONENT c0 {{ image = \"{pinned}\" {look} }}\n"));
        project.ctst(["build"]).ok();
        let wrong = pinned.replace(&sha256(&root), &"0".repeat(64));
        project.write("stack.ctst", &format!("COMPONENT c0 {{ image = \"{wrong}\" {look} }}\n"));
        project.ctst(["build"]).fails(125, &["component c0", "pinned", &sha256(&root)]);
        project.assert_nothing_left();
    }
}

/// A layer with a whiteout, an opaque folder and a file of its own above a root file system.
fn layers() -> Vec<Vec<u8>> {
    let lower = Archive::root().folder("srv/hidden/").file("srv/hidden/below", "x").file("srv/gone", "x");
    let lower =
        lower.folder("srv/data/").entry(EntryType::Regular, "srv/data/first", 0o644, (1000, 1001), "", b"begun\n");
    let upper = Archive::new().folder("srv/").file("srv/.wh.gone", "").file("srv/.wh.fifo", "");
    let upper = upper.folder("srv/hidden/").file("srv/hidden/.wh..wh..opq", "").file("srv/hidden/above", "x");
    vec![lower.end(), upper.end()]
}

fn config() -> Value {
    json!({
        "Entrypoint": ["/bin/sh", "-c"],
        "Cmd": ["trap 'echo asked; exit 3' USR1; echo $(id -u) $(pwd) $A $B; find . | sort; while :; do sleep 0.1; done"],
        "Env": ["A=1", "B=2"], "User": "somebody", "WorkingDir": "/srv",
        "ExposedPorts": { "80/tcp": {} }, "Volumes": { "/srv/data": {} }, "StopSignal": "SIGUSR1",
        "Healthcheck": { "Test": ["CMD", "/bin/true"], "Interval": 50_000_000 },
    })
}

#[test]
fn images_of_docker_and_oci_say_how_they_run() {
    for caller in Caller::all() {
        for (what, bytes) in [("docker", docker(&layers(), &config())), ("oci", oci(&layers(), &config()))] {
            let stack = r#"
                COMPONENT app { image = "tar://./app.tar" env { B = "mine" } stop { grace = 60s } }
                COMPONENT plain { image = "tar://./app.tar" healthcheck = "none" user = "root" command = ["id -u; sleep 1000"] }
            "#;
            let project = Project::new(&caller, stack);
            project.write_bytes("app.tar", &bytes);
            project.up();
            let about = format!("{what} for {}", caller.name);
            let find = ". ./data ./data/first ./hidden ./hidden/above ./other-name ./owned ./setuid".replace(' ', "\n");
            let said = format!("1000 /srv 1 mine\n{find}\n");
            // Its health check does not wait for what it writes.
            eventually(&format!("{about}: it writes {said}"), || project.logs("app") == said);
            assert_eq!(project.logs("plain"), "0\n", "{about}");
            assert_eq!(project.status("app")["health"], "healthy", "{about}");
            assert_eq!(project.status("plain")["health"], Value::Null, "{about}");

            // What the image wants to be a volume can be written and begins with its content; the rest cannot.
            let sh = |component: &str, script: &str| project.ctst(["exec", component, "/bin/sh", "-c", script]);
            sh("plain", "touch /srv/other").fails(1, &["Read-only"]);
            assert_eq!(sh("plain", "cat data/first; echo more >> data/first").ok().stdout, "begun\n", "{about}");
            if !is_single(&caller) {
                let owners = sh("app", "stat -c '%u %g' data/first; echo mine >> data/first").ok();
                assert_eq!(owners.stdout, "1000 1001\n", "{about}");
            }
            // Each container has its own.
            assert!(!sh("app", "cat data/first").ok().stdout.contains("more"), "{about}");

            project.ctst(["stop", "app"]).ok();
            assert!(project.logs("app").ends_with("asked\n"), "{about}: {}", project.logs("app"));
            assert_eq!(project.status("app")["exit_code"], 3, "{about}");
            let stopped = |component: &str| project.ctst(["stop", component]).ok();
            stopped("plain");
            // Kept with the container, and gone with it.
            project.ctst(["run", "-d", "--yes", "plain"]).ok();
            assert_eq!(sh("plain", "cat data/first").ok().stdout, "begun\nmore\n", "{about}");
            project.stop();
            project.ctst(["rm"]).fails(125, &["S0602", "plain"]);
            project.ctst(["rm", "--allow-destroy"]).ok();
            eventually("the folders of the containers are gone", || {
                let left = fs::read_dir(project.folder().join(".containust/containers")).map_or(0, Iterator::count);
                left == 0
            });
            assert_clean(&project);
        }
    }
}

#[test]
fn what_an_image_declares_badly_is_refused() {
    let project =
        Project::new(&Caller::ordinary(), r#"COMPONENT a { image = "tar://./a.tar" command = ["/bin/true"] }"#);
    for (config, words) in [
        (json!({ "StopSignal": "SIGNONE" }), &["stop signal", "SIGNONE"][..]),
        (json!({ "Healthcheck": { "Test": ["RUN", "x"] } }), &["health check", "RUN"]),
        (json!({ "Volumes": { "/a/../../b": {} } }), &["volume", "/a/../../b"]),
        (json!({ "Volumes": { "relative": {} } }), &["volume", "relative"]),
    ] {
        project.write_bytes("a.tar", &docker(&layers()[..1], &config));
        project.ctst(["run", "--yes"]).fails(125, &[&["component a"], words].concat());
    }
    project.assert_nothing_left();
}

#[test]
fn images_have_names() {
    for caller in Caller::all() {
        let stack = r#"COMPONENT app { image = "image://app:1" command = ["echo $A; sleep 1000"] healthcheck = "none" user = "root" }"#;
        let project = Project::new(&caller, stack);
        let json = |args: &[&str]| project.ctst([&["images"], args, &["--format", "json"]].concat()).ok().json();
        project.write_bytes("app.tar", &docker(&layers(), &config()));
        project.ctst(["plan"]).fails(125, &["component app", "no image `image://app:1`", "ctst images import"]);
        let digest = project.ctst(["images", "import", "app.tar"]).ok().stdout;
        assert_eq!(digest, format!("sha256:{}\n", sha256(&docker(&layers(), &config()))));
        fs::remove_file(project.folder().join("app.tar")).expect("remove");
        project.write("stack.ctst", &stack.replace("app:1", "app:2"));
        project.ctst(["run", "--yes"]).fails(125, &["no image `image://app:2`", "did you mean `app:1`?"]);
        project.write("stack.ctst", stack);
        project.up();
        assert_eq!(project.logs("app"), "1\n");

        project.write_bytes("root.tar", &Archive::root().end());
        project.ctst(["images", "import", "root.tar"]).fails(125, &["root.tar", "brings no name"]);
        project.ctst(["images", "import", "root.tar", "no name"]).fails(125, &["`no name` is no name"]);
        project.ctst(["images", "import", "none.tar", "x"]).fails(125, &["none.tar", "does not exist"]);
        project.ctst(["images", "import", "root.tar", "tools"]).ok();
        let rows = json(&[]);
        assert_eq!(rows, json(&["ls"]));
        let names: Vec<_> = rows.as_array().expect("a list").iter().map(|row| row["reference"].clone()).collect();
        assert_eq!(names, ["image://app:1", "image://tools:latest"]);
        assert_eq!(
            (&rows[0]["declared"]["ports"][0], &rows[0]["config"]["user"]),
            (&json!("80/tcp"), &json!("somebody"))
        );
        assert!(project.ctst(["images"]).ok().stdout.contains("image://app:1"));
        let df = json(&["df"]);
        assert_eq!((&df["layers"], &df["unused_layers"]), (&json!(3), &json!(0)));
        assert!(project.ctst(["images", "df"]).ok().stdout.contains("OWN"));

        // One that a container was made of stays, running or not.
        project
            .ctst(["images", "rm", "app:1", "tools"])
            .fails(125, &["image://app:1", "app was made of it", "ctst rm app"]);
        project.stop();
        project.ctst(["images", "rm", "app:1"]).fails(125, &["app was made of it"]);
        project.ctst(["images", "prune", "--all"]).ok();
        let left = json(&[]);
        assert_eq!((left.as_array().map(Vec::len), &left[0]["reference"]), (Some(1), &json!("image://app:1")));
        assert_eq!(store(&project, "layers").len(), 2);
        project.ctst(["rm"]).ok();
        // The file names it still.
        project.ctst(["images", "prune", "--all"]).ok();
        assert_eq!(json(&[]).as_array().map(Vec::len), Some(1));

        project.ctst(["images", "export", "app", "out.tar"]).fails(125, &["no image `app`", "`app:1`"]);
        project.ctst(["images", "export", "app:1", "out.tar"]).ok();
        project.ctst(["images", "rm", "app:1"]).ok();
        assert_eq!(store(&project, "layers"), [""; 0]);
        project.ctst(["images", "rm", "app:1"]).fails(125, &["no image"]);
        project.ctst(["images", "import", "out.tar"]).ok();
        project.up();
        assert_eq!(project.logs("app"), "1\n");
        let list = project.ctst(["exec", "app", "/bin/sh", "-c", "find . | sort; stat -c '%u %a' owned"]).ok().stdout;
        let owner = if is_single(&caller) { 0 } else { 1000 };
        assert!(
            !list.contains("gone") && !list.contains("below") && list.ends_with(&format!("{owner} 640\n")),
            "{list}"
        );
        project.stop();
        assert_clean(&project);
    }
}

#[test]
fn a_changed_image_is_seen() {
    for caller in Caller::all() {
        let project = Project::new(&caller, r#"COMPONENT a { image = "tar://./a.tar" command = ["/bin/true"] }"#);
        project.write_bytes("a.tar", &Archive::root().end());
        project.ctst(["build"]).ok();
        assert!(project.ctst(["images", "verify"]).ok().stdout.contains("whole"));
        let layer = &store(&project, "layers")[0];
        let layer = project.folder().join(".containust/images/layers").join(layer);
        fs::write(layer.join("tree/etc/passwd"), "root::0:0::/:/bin/sh\n").expect("change a file");
        let done = project.ctst(["images", "verify", "tar://./a.tar", "--format", "json"]);
        assert_eq!(done.code, 1, "{done}");
        let problem = done.json()[0]["problem"].as_str().expect("a problem").to_owned();
        assert!(problem.contains("digest"), "{problem}");
        project.ctst(["images", "verify", "other"]).fails(125, &["no image `other`"]);
        project.ctst(["images", "rm", "tar://./a.tar"]).ok();
        project.ctst(["build"]).ok();
        project.ctst(["images", "verify"]).ok();
        project.assert_nothing_left();
    }
}

/// Each with a word of why it is refused; none: it lands inside.
fn hostile(outside: &Path) -> Vec<(&'static str, Vec<u8>, Option<&'static str>)> {
    use EntryType::{Block, Char, Link, Regular};
    let entry = |kind, name: &str, link: &str, content: &[u8]| {
        Archive::new().folder("etc/").entry(kind, name, 0o644, (0, 0), link, content)
    };
    let victim = outside.join("victim");
    let (folder, victim) = (outside.to_str().expect("a path"), victim.to_str().expect("a path"));
    let up = "../".repeat(12);
    let deep = format!("{}x", "a/".repeat(45));
    let bomb = {
        // 4 GiB of zeros: 1000 times and more what it is compressed.
        let mut encoder = ::zstd::stream::Encoder::new(Vec::new(), 1).expect("an encoder");
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(Regular);
        header.set_path("etc/bomb").expect("a name");
        header.set_mode(0o644);
        header.set_size(4 << 30);
        header.set_cksum();
        let zeros = vec![0; 1 << 20];
        std::io::Write::write_all(&mut encoder, header.as_bytes()).expect("write to memory");
        for _ in 0..4 << 10 {
            std::io::Write::write_all(&mut encoder, &zeros).expect("write to memory");
        }
        encoder.finish().expect("write to memory")
    };
    let sized = |size: [u8; 12]| {
        let mut bytes = Archive::new().folder("etc/").file("etc/large", "x").end();
        bytes[512 + 124..512 + 136].copy_from_slice(&size);
        bytes[512 + 148..512 + 156].fill(b' ');
        let sum: u32 = bytes[512..1024].iter().map(|byte| u32::from(*byte)).sum();
        bytes[512 + 148..512 + 156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        bytes
    };
    let far = [0x80, 0, 0, 0, 0x40, 0, 0, 0, 0, 0, 0, 0];
    let negative = [0xff; 12];
    let cut = Archive::root().end();
    vec![
        ("a way out", entry(Regular, "../../victim", "", b"x").end(), Some("`../../victim`")),
        ("a long way out", entry(Regular, &format!("{up}{}", &victim[1..]), "", b"x").end(), Some("..")),
        ("from the root", entry(Regular, victim, "", b"x").end(), None),
        ("through a link", Archive::new().link("etc", folder).file("etc/victim", "x").end(), Some("`etc/victim`")),
        ("over a link", Archive::new().folder("etc/").link("etc/a", victim).file("etc/a", "x").end(), None),
        (
            "a folder over a link",
            Archive::new().folder("usr/").link("usr/a", folder).folder("usr/a/").file("usr/a/victim", "x").end(),
            None,
        ),
        ("a hard link out", entry(Link, "etc/hard", victim, b"").end(), Some("etc/hard")),
        ("a hard link up", entry(Link, "etc/hard", "../../../victim", b"").end(), Some("etc/hard")),
        (
            "through a hard link",
            Archive::new()
                .folder("etc/")
                .link("etc/l", victim)
                .entry(Link, "etc/hard", 0o644, (0, 0), "etc/l", b"")
                .file("etc/hard", "x")
                .end(),
            None,
        ),
        ("a character device", entry(Char, "etc/null", "", b"").end(), None),
        ("a block device", entry(Block, "etc/disk", "", b"").end(), None),
        (
            "below a file",
            Archive::new().folder("etc/").file("etc/a", "x").file("etc/a/b", "x").end(),
            Some("`etc/a/b`"),
        ),
        ("an escape", entry(Regular, "etc/\u{1b}[2J", "", b"x").file("etc/\u{1b}[2J/x", "x").end(), Some("\\u{1b}[2J")),
        ("deep", Archive::new().folder("etc/").file(&deep, "x").end(), None),
        ("a bomb", bomb, Some("1000 times its size")),
        ("2^62 bytes", sized(far), Some("large")),
        ("-1 bytes", sized(negative), Some("")),
        ("half", cut[..cut.len() / 2].to_vec(), Some("ends")),
        ("nothing", Vec::new(), Some("is empty")),
        ("noise", vec![0x5a; 4096], Some("")),
        ("a device as image", docker(&[entry(Char, "etc/x", "", b"").end()], &json!({})), None),
        (
            "a whiteout of nothing",
            docker(&[Archive::root().end(), entry(Regular, "etc/.wh...", "", b"").end()], &json!({})),
            Some("etc/.wh..."),
        ),
        (
            "a whiteout of all",
            docker(&[Archive::root().end(), entry(Regular, ".wh..wh..opq", "", b"").end()], &json!({})),
            Some(".wh..wh..opq"),
        ),
        (
            "steering the overlay",
            {
                let mut archive = Archive::new().folder("etc/");
                let record = "40 SCHILY.xattr.user.overlay.redirect=/x";
                let record = format!("{record}\n").replacen("40", &(record.len() + 1).to_string(), 1);
                archive = archive.entry(EntryType::XHeader, "pax", 0o644, (0, 0), "", record.as_bytes());
                archive.folder("etc/a/").end()
            },
            Some("user.overlay.redirect"),
        ),
        (
            "another's id",
            entry(Regular, "etc/a", "", b"").entry(Regular, "etc/b", 0o644, (4_000_000, 0), "", b"").end(),
            None,
        ),
    ]
}

#[test]
fn hostile_archives_do_no_harm() {
    for caller in Caller::all() {
        let project = Project::new(&caller, r#"COMPONENT a { image = "tar://./a.tar" command = ["/bin/true"] }"#);
        project.make_folder("outside");
        project.write("outside/victim", "untouched");
        let outside = project.folder().join("outside");
        for (what, bytes, refused) in hostile(&outside) {
            let about = format!("{what}, by {}", caller.name);
            project.write_bytes("a.tar", &bytes);
            let start = Instant::now();
            let done = project.ctst(["build"]);
            assert!(start.elapsed() < Duration::from_secs(100), "{about}: {:?}", start.elapsed());
            // Ids beyond the map can be flattened, and cannot be given.
            let refused = if what == "another's id" && !is_single(&caller) { Some("etc/b") } else { refused };
            match refused {
                Some(word) => drop(done.fails(125, &["component a", "a.tar", word])),
                None => drop(done.ok()),
            }
            assert_clean(&project);
            assert_eq!(fs::read_to_string(outside.join("victim")).expect("the victim"), "untouched", "{about}");
            assert_eq!(fs::read_dir(&outside).expect("list").count(), 1, "{about}");
            let meta = fs::metadata(&outside).expect("look");
            assert_eq!((meta.mode() & 0o7777, meta.uid()), (0o755 & !umask_of(&outside), caller.uid), "{about}");
        }
        project.assert_nothing_left();
        // A good one afterwards.
        project.write_bytes("a.tar", &Archive::root().end());
        project.ctst(["run", "--yes"]).ok();
        project.assert_nothing_left();
    }
}

/// What the test's own umask has taken from a folder's mode when it was made.
fn umask_of(folder: &Path) -> u32 {
    0o777 & !fs::metadata(folder).expect("look").permissions().mode() & 0o022
}

/// Names of users are looked up in files of the image, which may be anything.
#[test]
fn a_hostile_passwd_names_nobody_and_delays_nothing() {
    let root = || Archive::new().folder("bin/").folder("etc/").folder("root/");
    let busybox = fs::read("/bin/busybox").expect("read busybox");
    let busybox = |archive: Archive| archive.entry(EntryType::Regular, "bin/true", 0o755, (0, 0), "", &busybox).end();
    let host = "root:x:0:0::/root:/bin/sh\n";
    let archives = [
        ("a link to the host's", busybox(root().link("etc/passwd", "/proc/1/root/etc/passwd"))),
        ("a link up", busybox(root().link("etc/passwd", "../../../../../../etc/passwd"))),
        ("a FIFO", busybox(root().entry(EntryType::Fifo, "etc/passwd", 0o666, (0, 0), "", b""))),
        ("a folder", busybox(root().folder("etc/passwd/"))),
        ("far too long", busybox(root().file("etc/passwd", host.repeat(100_000)))),
    ];
    for caller in Caller::all() {
        let stack = r#"COMPONENT a { image = "tar://./a.tar" command = ["/bin/true"] user = "ctst-test" }"#;
        let project = Project::new(&caller, stack);
        for (what, bytes) in &archives {
            project.write_bytes("a.tar", bytes);
            let start = Instant::now();
            let done = project.ctst(["run", "--yes"]);
            assert_eq!(done.code, 125, "{what}, by {}: {done}", caller.name);
            assert!(done.stderr.contains("passwd"), "{what}, by {}: {done}", caller.name);
            assert!(start.elapsed() < Duration::from_secs(60), "{what}: {:?}", start.elapsed());
        }
        project.assert_nothing_left();
    }
}

#[test]
fn an_archive_that_is_replaced_while_it_is_read_is_not_taken_for_either() {
    let (first, second) = (xz(&large(300)), Archive::root().end());
    let project =
        Project::new(&Caller::ordinary(), r#"COMPONENT a { image = "tar://./a.tar" command = ["/bin/true"] }"#);
    for in_place in [true, false] {
        project.write_bytes("a.tar", &first);
        project.write_bytes("b.tar", &second);
        let build = project.start(["build"]);
        let staging = project.folder().join(".containust/images/staging");
        let own = format!("{}-0/unpacked/0", build.pid());
        eventually("an import unpacks", || staging.join(&own).exists());
        let place = project.folder().join("a.tar");
        if in_place {
            fs::write(&place, &second).expect("write over the archive");
        } else {
            fs::rename(project.folder().join("b.tar"), &place).expect("replace the archive");
        }
        let done = build.wait(Duration::from_secs(60));
        let digest = |bytes: &[u8]| format!("sha256:{}", sha256(bytes));
        if in_place {
            assert_eq!(done.code, 125, "{done}");
            assert_clean(&project);
            assert_eq!(store(&project, "layers"), [""; 0]);
        } else {
            // All of what was opened, and so no longer what is there.
            assert!(done.code == 125 || done.stdout.contains(&digest(&first)), "{done}");
        }
        let done = project.ctst(["build"]).ok();
        assert!(done.stdout.contains(&digest(&second)), "{done}");
        project.ctst(["images", "verify"]).ok();
        project.ctst(["images", "rm", "tar://./a.tar"]).ok();
    }
    project.assert_nothing_left();
}

/// A root file system with these many files of 128 KiB that hold digits.
fn large(files: u32) -> Vec<u8> {
    let mut seed = 1_u64;
    // Closed to the caller, where it is not root's inside.
    let mut archive = Archive::root().entry(EntryType::Directory, "large/", 0o700, (1000, 1000), "", b"");
    for number in 0..files {
        let mut text = String::new();
        while text.len() < 128 << 10 {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            text += &format!("{seed:016x}");
        }
        let name = format!("large/{number}");
        archive = archive.entry(EntryType::Regular, &name, 0o600, (1000, 1000), "", text.as_bytes());
    }
    archive.end()
}

/// The processes below `pid`, the nearest first (`proc_pid_task_tid_children(5)`).
fn below(pid: i32) -> Vec<i32> {
    let mut all = vec![pid];
    let mut next = 0;
    while let Some(parent) = all.get(next).copied() {
        let text = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap_or_default();
        all.extend(text.split_whitespace().filter_map(|child| child.parse::<i32>().ok()));
        next += 1;
    }
    all.split_off(1)
}

fn kill(pid: i32) {
    // It may have ended by itself meanwhile.
    let _ = kill_process(Pid::from_raw(pid).expect("a pid"), Signal::KILL);
}

#[test]
fn a_killed_import_leaves_nothing_that_the_next_one_does_not_clean() {
    // Of which most of the time goes to decompression.
    let large = xz(&large(300));
    for caller in Caller::all() {
        let stack = r#"COMPONENT a { image = "tar://./a.tar" command = ["/bin/true"] }"#;
        let project = Project::new(&caller, stack);
        project.write_bytes("a.tar", &large);
        // An import's folder is named after its process.
        let unpacks = |pid: i32| {
            let staging = project.folder().join(".containust/images/staging");
            let all = fs::read_dir(staging).into_iter().flatten().flatten();
            let mut own = all.filter(|entry| entry.file_name().to_string_lossy().starts_with(&format!("{pid}-")));
            own.any(|entry| entry.path().join("unpacked/0").exists())
        };
        // ctst itself, and each of what is below it beside the one that has made the sandbox and ended: the sandbox, the
        // container's pid 1, the worker.
        let (mut victims, mut caught) = (0, 0);
        for number in 0..4 {
            // Another file, so that there is something to import whatever became of the one before.
            project.write_bytes("a.tar", &large);
            let build = project.start(["build"]);
            let own = build.pid();
            eventually("an import unpacks", || unpacks(own));
            let victim = if number == 0 { own } else { below(own).get(number).copied().unwrap_or(own) };
            victims += usize::from(victim != own);
            kill(victim);
            let done = build.wait(Duration::from_secs(60));
            project.assert_nothing_left();
            if victim == own {
                caught += usize::from(unpacks(own));
            } else if done.code != 0 {
                caught += 1;
                // It cleans up for who was killed.
                done.fails(125, &["component a"]);
                assert_clean(&project);
            }
        }
        assert!(victims >= 2 && caught >= 2, "{caught} of {victims} were killed in time, of {}", caller.name);
        project.write_bytes("a.tar", &large);
        let last = project.start(["build"]);
        eventually("an import unpacks", || unpacks(last.pid()));
        let all = [below(last.pid()), vec![last.pid()]].concat();
        all.into_iter().for_each(kill);
        project.assert_nothing_left();
        project.ctst(["build"]).ok();
        assert_clean(&project);
        project.ctst(["images", "verify"]).ok();
        project.ctst(["run", "--yes"]).ok();
        project.assert_nothing_left();
    }
}

/// In a mount namespace of its own, because what is mounted below a project's folder is a mark of all who see it.
#[test]
fn a_full_disk_is_told_and_cleaned() {
    const SCRIPT: &str = r#"
        mount -t tmpfs -o "size=8m,mode=0700,uid=$1,gid=$2" tmpfs .containust
        build() { setpriv --reuid "$1" --regid "$2" --clear-groups "$3" build; echo "code $?"; }
        build "$@"
        ls .containust/images/staging .containust/images/layers .containust/images/catalogue
        cp small.tar a.tar
        build "$@"
    "#;
    if Caller::root().is_none() {
        // It says so.
        return;
    }
    let large = large(100);
    for caller in Caller::all() {
        let project = Project::new(&caller, r#"COMPONENT a { image = "tar://./a.tar" command = ["/bin/true"] }"#);
        project.write_bytes("a.tar", &large);
        project.write_bytes("small.tar", &Archive::new().folder("etc/").file("etc/small", "x").end());
        project.make_folder(".containust");
        let mut command = Command::new("unshare");
        caller.login(&mut command);
        // Not yet as him, for whom nothing can be mounted.
        command.uid(0).gid(0).args(["-m", "sh", "-c", SCRIPT, "sh", &caller.uid.to_string(), &caller.gid.to_string()]);
        let done = finish(command.arg(programs().join("ctst")).current_dir(project.folder()));
        let about = format!("{}: {done}", caller.name);
        assert!(done.stderr.contains("component a: write `/") && done.stderr.contains("the disk is full"), "{about}");
        let listed = "code 125\n.containust/images/catalogue:\n\n.containust/images/layers:\n\n.containust/images/staging:\nlock\n";
        assert!(done.stdout.starts_with(listed) && done.stdout.ends_with("code 0\n"), "{about}");
        project.assert_nothing_left();
    }
}

/// Writes into the layer that has this file, as a broken disk might.
fn damage(project: &Project, file: &str) {
    let layers = project.folder().join(".containust/images/layers");
    let place = |name: String| layers.join(name).join("tree").join(file);
    let path = store(project, "layers").into_iter().map(place).find(|path| path.exists()).expect("a layer has it");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("a mode");
    fs::write(&path, "damaged").expect("write into a layer");
}

#[test]
fn what_is_damaged_is_imported_again() {
    let stack = r#"
        COMPONENT one { image = "tar://./one.tar" command = ["/bin/sh", "-c", "cat /srv/whole; exec sleep 1000"] }
        COMPONENT two { image = "image://two:1" command = ["/bin/sh", "-c", "cat /srv/whole; exec sleep 1000"] }
        COMPONENT three { image = "file://./three" command = ["/bin/sh", "-c", "true"] }
    "#;
    for caller in Caller::all() {
        let about = format!("as {}", caller.name);
        let project = Project::new(&caller, stack);
        let lower = Archive::root().file("srv/whole", "whole\n").end();
        let above = |text: &str| vec![lower.clone(), Archive::new().file("srv/mine", text).end()];
        project.write_bytes("one.tar", &docker(&above("one"), &json!({})));
        project.write_bytes("two.tar", &docker(&above("two"), &json!({})));
        project.make_folder("three");
        project.write("three/x", "three");
        project.ctst(["images", "import", "two.tar", "two:1"]).ok();
        project.ctst(["build"]).ok();
        let verify = |words: &[&str]| {
            let done = project.ctst([&["images", "verify", "--format", "json"], words].concat());
            let told = done.json();
            let state = |image: &Value| {
                let name =
                    image["reference"].as_str().expect("a reference").rsplit('/').next().expect("a name").to_owned();
                let state = match (image["problem"].is_null(), &image["repaired"]) {
                    (true, Value::Bool(true)) => "repaired".to_owned(),
                    (true, _) => "whole".to_owned(),
                    _ => image["lacks"].as_str().unwrap_or("changed").to_owned(),
                };
                (name, state)
            };
            let mut states: Vec<_> = told.as_array().expect("a list").iter().map(state).collect();
            states.sort();
            (done.code, states)
        };
        let states = |one: &str, three: &str, two: &str| {
            [("one.tar", one), ("three", three), ("two:1", two)]
                .map(|(name, state)| (name.into(), state.into()))
                .to_vec()
        };
        assert_eq!(verify(&["--repair"]), (0, states("whole", "whole", "whole")), "{about}");

        // The layer that two images have comes back from the source of one.
        damage(&project, "srv/whole");
        assert_eq!(verify(&[]), (1, states("changed", "whole", "changed")), "{about}");
        assert_eq!(verify(&["--repair"]), (0, states("repaired", "whole", "repaired")), "{about}");
        assert_eq!(verify(&[]), (0, states("whole", "whole", "whole")), "{about}");
        assert_clean(&project);

        // A folder that is as it was, and one that is not.
        damage(&project, "x");
        assert_eq!(verify(&["--repair"]), (0, states("whole", "repaired", "whole")), "{about}");
        damage(&project, "x");
        project.write("three/x", "four");
        let (code, found) = verify(&["--repair"]);
        assert!(code == 1 && found[1].1.contains("its source has another digest by now"), "{about}: {found:?}");
        project.write("three/x", "three");

        // What has no source, and what has none any more.
        let layers = store(&project, "layers").len();
        for (file, source) in [("one.tar", "one"), ("two.tar", "two")] {
            fs::remove_file(project.folder().join(file)).expect("remove a file");
            damage(&project, "srv/mine");
            let (code, found) = verify(&["--repair"]);
            assert!(
                code == 1
                    && found.iter().any(|(_, state)| state.contains("import") || state.contains("does not exist")),
                "{about} {source}: {found:?}"
            );
        }
        assert_eq!(store(&project, "layers").len(), layers, "{about}");
        project.write_bytes("one.tar", &docker(&above("one"), &json!({})));
        project.ctst(["images", "verify", "--repair"]);

        // Who runs on it is let be.
        project.ctst(["up", "one"]).ok();
        damage(&project, "srv/whole");
        let (code, found) = verify(&["--repair"]);
        assert!(code == 1 && found[0].1.contains("one runs on it"), "{about}: {found:?}");
        project.ctst(["exec", "one", "cat", "/srv/owned"]).ok();
        project.stop();
        verify(&["--repair"]);
        let done = project.ctst(["images", "verify", "tar://./one.tar"]).ok();
        assert!(done.stdout.contains("whole"), "{about}: {done}");
        project.ctst(["up", "one"]).ok();
        eventually("it reads what is whole", || project.logs("one").ends_with("whole\n"));
        project.stop();
        project.assert_nothing_left();
    }
}

#[test]
fn what_is_missing_is_told_and_imported_again() {
    let stack = r#"
        COMPONENT one { image = "tar://./one.tar" command = ["/bin/sh", "-c", "true"] }
        COMPONENT two { image = "image://two:1" command = ["/bin/sh", "-c", "true"] }
    "#;
    for caller in Caller::all() {
        let about = format!("as {}", caller.name);
        let project = Project::new(&caller, stack);
        for (file, text) in [("one.tar", "one"), ("two.tar", "two")] {
            project.write_bytes(file, &docker(&[Archive::root().file("srv/mine", text).end()], &json!({})));
        }
        project.ctst(["images", "import", "two.tar", "two:1"]).ok();
        project.ctst(["build"]).ok();
        let layers = project.folder().join(".containust/images/layers");
        let aside = project.folder().join("aside");
        let layer_of = |text: &str| {
            let is_it = |name: &String| {
                fs::read_to_string(layers.join(name).join("tree/srv/mine")).is_ok_and(|found| found == text)
            };
            store(&project, "layers").into_iter().find(is_it).expect("a layer")
        };
        let listed = || project.ctst(["images", "ls"]).ok().stdout.contains("one.tar");

        let one = layer_of("one");
        let (folder, tree) = (layers.join(&one), layers.join(&one).join("tree"));
        let ways: [(&str, &dyn Fn()); 3] = [
            ("no tree", &|| fs::rename(&tree, &aside).expect("rename a tree")),
            ("a link", &|| {
                fs::rename(&tree, &aside).expect("rename a tree");
                symlink(&aside, &tree).expect("make a link");
            }),
            ("no folder", &|| fs::rename(&folder, &aside).expect("rename a folder")),
        ];
        for (way, take_away) in ways {
            take_away();
            assert!(!listed(), "{about}: {way}");
            let done = project.ctst(["images", "verify"]);
            let told = done.stdout.lines().find(|line| line.contains("one.tar")).unwrap_or_default();
            assert!(done.code == 1 && told.contains(&format!("layer {one} is missing")), "{about}: {way}: {done}");
            let done = project.ctst(["images", "verify", "--repair", "tar://./one.tar"]).ok();
            assert!(done.stdout.contains("repaired"), "{about}: {way}: {done}");
            assert!(listed() && layer_of("one") == one, "{about}: {way}");
            project.ctst(["images", "verify"]).ok();
            assert_clean(&project);
            fs::remove_dir_all(&aside).expect("remove what was taken away");
        }

        // What nothing can bring back is told until it is removed, whatever its name.
        let two = layer_of("two");
        fs::remove_dir_all(layers.join(&two)).expect("remove a layer");
        let done = project.ctst(["images", "verify", "--repair"]);
        assert!(
            done.code == 1 && done.stdout.contains(&two) && done.stdout.contains("import it again"),
            "{about}: {done}"
        );
        let pruned = project.ctst(["images", "prune", "--format", "json"]).ok().json();
        assert_eq!(pruned["images"], json!(["image://two:1"]), "{about}");
        project.ctst(["images", "verify"]).ok();
        project.assert_nothing_left();
    }
}
