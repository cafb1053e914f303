//! Bad input and bad moments: every one ends with a clear error and leaves nothing.
#![forbid(unsafe_code)]

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use containust_tests::{Caller, Project, eventually, finish, free_port, programs};

const HOLD: &str = r#"COMPONENT one { image = "file://ROOTFS" command = ["/bin/ctst-probe", "hold"] }"#;

/// Runs a project that cannot work: `run` and `plan` (or only `run`) say why, and nothing is left.
fn refused(text: &str, code: i32, words: &[&str]) -> Project {
    let project = Project::new(&Caller::ordinary(), text);
    project.ctst(["run", "-d", "--wait", "--yes"]).fails(code, words);
    project.ctst(["stop"]);
    project.assert_nothing_left();
    project
}

#[test]
fn files_that_are_not_compositions() {
    let project = Project::new(&Caller::ordinary(), HOLD);
    let check = |bytes: &[u8], words: &[&str]| {
        project.write_bytes("stack.ctst", bytes);
        for command in ["check", "plan"] {
            project.ctst([command]).fails(125, words);
        }
        project.ctst(["run", "-d", "--yes"]).fails(125, words);
    };
    check(&[0xff, 0xfe, 0, 0x80, 0xc3, 0x28], &["UTF-8"]);
    check(&(0..4096u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect::<Vec<_>>(), &["error"]);
    check(&[0; 1000], &["error"]);
    check(format!("COMPONENT one {{ env = {}", "[".repeat(200_000)).as_bytes(), &["deep"]);
    check("COMPONENT one {\n".repeat(200_000).as_bytes(), &["error"]);
    for cut in 1..HOLD.len() - 1 {
        project.write_bytes("stack.ctst", &HOLD.as_bytes()[..cut]);
        project.ctst(["check"]).fails(125, &["stack.ctst"]);
    }
    project.assert_nothing_left();
}

/// In an archive that somebody gave away, or by a container that can write the project's folder.
#[test]
fn links_in_the_state_lead_nowhere() {
    let project = Project::new(&Caller::ordinary(), HOLD);
    project.make_folder("victim");
    project.make_folder("victim/one");
    project.write("victim/one/kept", "kept");
    project.up();
    project.ctst(["down"]).ok();
    for name in ["containers", "volumes", "secrets", "imports", "supervisor.lock"] {
        let place = project.folder().join(".containust").join(name);
        fs::remove_file(&place).ok();
        fs::remove_dir(&place).ok();
        symlink("../victim", &place).expect("link");
        for words in [&["plan"][..], &["up", "--yes"], &["down"], &["ps"], &["rm"], &["volumes"]] {
            project.ctst(words).fails(125, &["S0105", name, "symbolic link"]);
        }
        fs::remove_file(&place).expect("unlink");
    }
    assert_eq!(fs::read_to_string(project.folder().join("victim/one/kept")).expect("read"), "kept");
    assert_eq!(fs::read_dir(project.folder().join("victim")).expect("list").count(), 1);
    project.assert_nothing_left();
}

/// What a container can write is a folder of its author's; what a link in it leads to is not.
#[test]
fn a_container_gets_nothing_of_the_host_by_links_that_it_made() {
    for caller in Caller::all() {
        let project = Project::new(&caller, "");
        for folder in ["out", "out/www", "private"] {
            project.make_folder(folder);
        }
        for file in ["private/file", "out/env", "out/conf", "out/tok"] {
            project.write(file, "A=b");
            fs::set_permissions(project.folder().join(file), fs::Permissions::from_mode(0o600)).expect("chmod");
        }
        let image = "image = \"file://ROOTFS\" command = [\"/bin/ctst-probe\", \"hold\"]";
        let reads = [
            ("volume = \"./out/www:/www:ro\"", "", "www", "../private"),
            ("env_file = \"./out/env\"", "", "env", "../private/file"),
            ("configs = [\"conf\"]", "CONFIG conf = { file = \"./out/conf\" }", "conf", "../private/file"),
            ("secrets = [\"tok\"]", "SECRET tok FROM FILE \"./out/sub/file\"", "sub", "../private"),
        ];
        for (line, declared, name, target) in reads {
            let text = format!(
                "COMPONENT builder {{ {image} volume = \"./out:/out\" }}\nCOMPONENT one {{ {image} {line} }}\n{declared}\n"
            );
            project.write("stack.ctst", &text);
            let place = project.folder().join("out").join(name);
            fs::remove_dir(&place).or_else(|_| fs::remove_file(&place)).ok();
            symlink(target, &place).expect("link");
            for words in [&["plan"][..], &["up", "--yes"], &["run", "-d", "--yes", "one"]] {
                project.ctst(words).fails(125, &["S0109", "by a link", "builder can write"]);
            }
            fs::remove_file(&place).expect("unlink");
        }
        // Root's containers are others outside.
        fs::set_permissions(project.folder().join("out"), fs::Permissions::from_mode(0o777)).expect("chmod");
        // From inside; and the file need not name the container any more.
        let builder = format!("COMPONENT builder {{ {image} volume = \"./out:/out\" }}\n");
        let reader = format!("COMPONENT one {{ {image} volume = \"./out/made:/made:ro\" }}\n");
        project.write("stack.ctst", &builder);
        project.up();
        project.ctst(["exec", "builder", "ln", "-s", "../private", "/out/made"]).ok();
        for text in [builder + &reader, reader] {
            project.write("stack.ctst", &text);
            project.ctst(["plan"]).fails(125, &["S0109", "private by a link", "builder can write"]);
        }
        project.ctst(["down", "--allow-destroy"]).ok();
        project.assert_nothing_left();
    }
}

#[test]
fn folders_that_somebody_else_can_exchange() {
    let project = Project::new(&Caller::ordinary(), HOLD);
    let mode = |mode| fs::set_permissions(project.folder(), fs::Permissions::from_mode(mode)).expect("chmod");
    mode(0o777);
    project.ctst(["up"]).fails(125, &["S0105", "anybody"]);
    mode(0o1777);
    project.ctst(["check"]).ok();
    project.up();
    project.stop();
    mode(0o755);
    if rustix::process::getuid().is_root() {
        std::os::unix::fs::chown(project.folder(), Some(65_533), None).expect("chown");
        project.ctst(["up"]).fails(125, &["S0105", "65533"]);
    }
}

#[test]
fn users_that_no_id_is_given_for() {
    let Some(caller) = Caller::ranges() else { return };
    let text = |user: &str| HOLD.replace("command", &format!("user = \"{user}\" command"));
    let project = Project::new(&caller, &text("65535"));
    project.up();
    let pid = project.status("one")["pid"].clone();
    for user in ["100000", "0:4000000000"] {
        project.write("stack.ctst", &text(user));
        for words in [&["plan"][..], &["run", "-d", "--yes"]] {
            project.ctst(words).fails(125, &["one", user, "only for 0 to"]);
        }
    }
    assert_eq!(project.status("one")["pid"], pid, "nothing was stopped");
    project.stop();
}

#[test]
fn fifty_megabytes() {
    let project = Project::new(&Caller::ordinary(), HOLD);
    // Valid, and refused for what is wrong at its very end.
    let mut text = "// a comment that goes on for quite a while, as comments do\n".repeat(850_000);
    assert!(text.len() > 50_000_000);
    text += "COMPONENT one { imge = \"file:///\" }";
    project.write_bytes("stack.ctst", text.as_bytes());
    project.ctst(["check"]).fails(125, &["imge", "850001"]);
    // One string without an end.
    project.write_bytes("stack.ctst", format!("COMPONENT one {{ image = \"{}", "x".repeat(50_000_000)).as_bytes());
    let done = project.ctst(["check"]).fails(125, &["error"]);
    assert!(done.stderr.len() < 1_000_000, "an error of {} bytes", done.stderr.len());
}

#[test]
fn files_that_cannot_be_read() {
    let project = Project::new(&Caller::ordinary(), HOLD);
    let file = project.folder().join("stack.ctst");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o000)).expect("set a mode");
    project.ctst(["check"]).fails(125, &["stack.ctst", "ermission denied"]);
    fs::remove_file(&file).expect("remove");
    project.ctst(["check"]).fails(125, &[".ctst"]);
    project.ctst(["-f", "other.ctst", "check"]).fails(125, &["other.ctst"]);
    project.make_folder("stack.ctst");
    project.ctst(["check"]).fails(125, &[".ctst"]);
    fs::remove_dir(&file).expect("remove");
    symlink("stack.ctst", &file).expect("link");
    project.ctst(["check"]).fails(125, &[".ctst"]);
    fs::remove_file(&file).expect("remove");
    // A device would be read for ever.
    symlink("/dev/zero", &file).expect("link");
    project.ctst(["check", "stack.ctst"]).fails(125, &["not a regular file"]);
}

#[test]
fn images_that_are_not_there_or_not_those() {
    refused(r#"COMPONENT one { image = "file:///no/such/folder" command = ["/bin/true"] }"#, 125, &["/no/such/folder"]);
    refused(r#"COMPONENT one { image = "host:///no/such/program" }"#, 125, &["/no/such/program"]);
    let pin = "a".repeat(64);
    let pinned = HOLD.replace("ROOTFS", &format!("ROOTFS@sha256:{pin}"));
    refused(&pinned, 125, &["one", "sha256", &pin[..12]]);
}

#[test]
fn the_right_digest_is_taken() {
    let project = Project::new(&Caller::ordinary(), HOLD);
    project.ctst(["build"]).ok();
    let images = project.ctst(["images", "--format", "json"]).ok().json();
    let digest = images[0]["digest"].as_str().expect("a digest").to_owned();
    project.write("stack.ctst", &HOLD.replace("ROOTFS", &format!("ROOTFS@{digest}")));
    project.up();
    project.stop();
}

#[test]
fn commands_that_cannot_be_started() {
    let with = |command: &str| HOLD.replace(r#""/bin/ctst-probe", "hold""#, command);
    refused(&with(r#""/no/such/program""#), 127, &["/no/such/program"]);
    refused(&with(r#""no-such-program""#), 127, &["no-such-program"]);
    refused(&with(r#""/bin/not-executable""#), 126, &["/bin/not-executable"]);
    refused(&with(r#""/srv""#), 126, &["/srv"]);
    refused(&HOLD.replace("command", r#"user = "stranger" command"#), 125, &["stranger"]);
    refused(&HOLD.replace("command", r#"user = "somebody:strangers" command"#), 125, &["strangers"]);
    refused(&HOLD.replace("command", r#"workdir = "/bin/busybox" command"#), 125, &["/bin/busybox"]);
}

#[test]
fn volumes_that_cannot_be_mounted() {
    let with = |volume: &str| HOLD.replace("command", &format!("volume = \"{volume}\" command"));
    refused(&with("./missing:/srv"), 125, &["missing"]);
    refused(&with("/no/such/source:/srv"), 125, &["/no/such/source"]);
    let project = Project::new(&Caller::ordinary(), &with("./hidden/folder:/srv"));
    project.make_folder("hidden");
    fs::set_permissions(project.folder().join("hidden"), fs::Permissions::from_mode(0o000)).expect("set a mode");
    project.ctst(["run", "-d", "--wait", "--yes"]).fails(125, &["hidden"]);
    fs::set_permissions(project.folder().join("hidden"), fs::Permissions::from_mode(0o700)).expect("set a mode");
    project.assert_nothing_left();
}

#[test]
fn what_one_may_not_read_cannot_be_mounted() {
    let caller = Caller::ordinary();
    // Of root, and closed: what a caller cannot open himself does not get into his container.
    let text = HOLD.replace("command", "volume = \"/etc/shadow:/srv/shadow:ro\" command");
    let project = Project::new(&caller, &text);
    if project.ctst(["run", "-d", "--wait", "--yes"]).code == 0 {
        project.ctst(["exec", "one", "cat", "/srv/shadow"]).fails(1, &[]);
        project.stop();
    } else {
        project.assert_nothing_left();
    }
}

#[test]
fn a_port_that_is_taken() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("listen");
    let port = taken.local_addr().expect("an address").port();
    let text = format!("{}\nEXPOSE 127.0.0.1:{port} -> one:80\n", HOLD.replace("command", "port = 80 command"));
    let project = refused(&text, 125, &[&port.to_string()]);
    drop(taken);
    project.up();
    project.stop();
}

/// With one id every user of the image is the caller outside, and may be any one user inside.
fn assert_one_id(project: &Project, why: &str) {
    let ids = project.status("one")["ids"].clone();
    assert!(ids.as_str().is_some_and(|ids| ids.starts_with("single") && ids.contains(why)), "{ids}");
    assert_eq!(project.report(&[], "one").uid_map.len(), 1);
    let pid = project.status("one")["pid"].as_u64().expect("a pid");
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("look at the container from outside");
    assert!(status.contains(&format!("\nUid:\t{0}\t{0}\t{0}\t{0}\n", project.caller.uid)), "{status}");
}

#[test]
fn without_subordinate_ids() {
    let project = Project::new(&Caller::single(), HOLD);
    project.up();
    assert_one_id(&project, "");
    // Who must change users cannot, and is told by the kernel's answer; nothing pretends.
    project.ctst(["exec", "one", "su", "somebody", "-s", "/bin/sh", "-c", "true"]).fails(1, &[]);
    project.ctst(["exec", "-u", "somebody", "one", "true"]).fails(125, &["somebody"]);
    project.stop();
    project.write("stack.ctst", &HOLD.replace("command", r#"user = "somebody" command"#));
    project.up();
    assert_one_id(&project, "");
    assert_eq!(project.report(&[], "one").status["Uid"].split_whitespace().collect::<Vec<_>>(), ["1000"; 4]);
    project.stop();
}

#[test]
fn without_newuidmap() {
    let Some(caller) = Caller::ranges() else { return };
    let project = Project::new(&caller, HOLD);
    let hidden = |args: &[&str]| finish(project.command(args).env("PATH", "/nowhere"));
    hidden(&["run", "-d", "--wait", "--yes"]).ok();
    assert_one_id(&project, "newuidmap");
    project.stop();
    assert!(hidden(&["doctor"]).stdout.contains("newuidmap"));
    // The next start has the range again.
    project.up();
    assert!(project.report(&[], "one").uid_map.len() > 1);
    project.stop();
}

#[test]
fn newuidmap_that_refuses() {
    let Some(caller) = Caller::ranges() else { return };
    let project = Project::new(&caller, HOLD);
    project.make_folder("bin");
    for name in ["newuidmap", "newgidmap"] {
        project.write(&format!("bin/{name}"), "#!/bin/sh\necho these ids are not yours >&2\nexit 1\n");
        fs::set_permissions(project.folder().join("bin").join(name), fs::Permissions::from_mode(0o755))
            .expect("set a mode");
    }
    let done = finish(project.command(["run", "-d", "--wait", "--yes"]).env("PATH", project.folder().join("bin")));
    done.fails(125, &["these ids are not yours"]);
    project.assert_nothing_left();
}

#[test]
fn where_user_namespaces_are_refused() {
    let project = Project::new(&Caller::ordinary(), HOLD);
    // In a user namespace whose own limit of further ones is 0.
    let ctst = project.command(["run", "-d", "--wait", "--yes"]);
    let mut command = Command::new("unshare");
    project.caller.login(&mut command);
    command.envs(ctst.get_envs().filter_map(|(name, value)| Some((name, value?)))).current_dir(project.folder());
    command.args(["--user", "--map-current-user", "--keep-caps", "sh", "-c"]);
    command
        .arg("echo 0 > /proc/sys/user/max_user_namespaces && exec setpriv --ambient-caps -all --inh-caps -all \"$@\"");
    command.arg("sh").arg(ctst.get_program()).args(ctst.get_args());
    finish(&mut command).fails(125, &["user", "max_user_namespaces"]);
    project.assert_nothing_left();
    project.up();
    project.stop();
}

#[test]
fn a_full_disk_while_importing() {
    let Some(_) = Caller::root() else { return };
    let project = Project::new(&Caller::ordinary(), HOLD);
    let (uid, gid) = (project.caller.uid.to_string(), project.caller.gid.to_string());
    let stack = fs::read_to_string(project.folder().join("stack.ctst")).expect("read");
    // The image takes more than a megabyte, the second file system has room.
    let script = format!(
        r#"set -e
mount -t tmpfs -o size=1m,mode=700,uid={uid},gid={gid} small .
cd "$PWD"
printf '%s' "$1" > stack.ctst
ctst() {{ setpriv --reuid={uid} --regid={gid} --clear-groups "$2" "$3"; }}
if ctst . "$2" build; then echo a build without room; exit 1; else echo "code $?"; fi
ctst . "$2" images
mount -o remount,size=100m .
ctst . "$2" build
ctst . "$2" images"#
    );
    let ctst = programs().join("ctst");
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", &script, "sh", &stack]).arg(ctst).current_dir(project.folder());
    let done = finish(&mut command).ok();
    assert!(done.stdout.contains("code 125"), "{done}");
    assert!(done.stderr.contains("the disk is full"), "{done}");
    assert!(done.stdout.contains("sha256:"), "{done}");
}

#[test]
fn two_runs_at_once() {
    for _ in 0..5 {
        let project = Project::new(&Caller::ordinary(), HOLD);
        let runs: Vec<_> = (0..4).map(|_| project.start(["run", "-d", "--wait", "--yes"])).collect();
        for run in runs {
            run.wait(Duration::from_secs(60)).ok();
        }
        let rows = project.ps();
        assert_eq!(rows.len(), 1, "{rows:?}");
        assert_eq!(rows[0]["state"], "running");
        let report = project.report(&[], "one");
        assert!(report.processes.len() <= 3, "{:?}", report.processes);
        project.stop();
    }
}

/// The record files of a project: everything in its state that is not an image or a log.
fn records(folder: &Path, found: &mut Vec<std::path::PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            if !path.ends_with("images") && !path.ends_with("upper") && !path.ends_with("work") {
                records(&path, found);
            }
        } else if path.extension().is_some_and(|extension| extension == "json") {
            found.push(path);
        }
    }
}

#[test]
fn state_truncated_at_any_byte() {
    let project = Project::new(&Caller::ordinary(), HOLD);
    project.up();
    project.stop();
    let mut files = Vec::new();
    records(&project.folder().join(".containust"), &mut files);
    assert!(!files.is_empty(), "no records found");
    for file in files {
        let whole = fs::read(&file).expect("read a record");
        for cut in 0..whole.len() {
            // In place, so that the owner stays the same.
            fs::write(&file, &whole[..cut]).expect("truncate a record");
            let done = project.ctst(["ps", "-a"]);
            assert!(done.code == 0 || done.code == 125, "{} at {cut}: {done}", file.display());
            assert!(!done.stderr.contains("panicked"), "{} at {cut}: {done}", file.display());
        }
        for cut in [0, 1, whole.len() / 2, whole.len() - 1] {
            fs::write(&file, &whole[..cut]).expect("truncate a record");
            project.up();
            assert_eq!(project.status("one")["state"], "running", "{} at {cut}", file.display());
            project.stop();
            fs::write(&file, &whole).expect("restore a record");
        }
    }
}

#[test]
fn state_of_somebody_else_or_of_the_future() {
    let project = Project::new(&Caller::ordinary(), HOLD);
    project.up();
    project.stop();
    let mut files = Vec::new();
    records(&project.folder().join(".containust"), &mut files);
    for file in &files {
        let text = fs::read_to_string(file).expect("read a record");
        let Some(at) = text.find("\"schema\"") else { continue };
        let tail = &text[at..];
        let end = tail.find([',', '}']).expect("a value ends");
        fs::write(file, format!("{}\"schema\":999{}", &text[..at], &tail[end..])).expect("write a record");
        project.ctst(["run", "-d", "--yes"]).fails(125, &["999"]);
        fs::write(file, &text).expect("restore a record");
    }
    project.up();
    project.stop();
}

#[test]
fn what_is_not_carried_out_is_refused() {
    for (text, word) in [
        ("COMPONENT one { image = \"preset://redis\" }", "preset"),
        ("COMPONENT one { image = \"file:///\" command = [\"/bin/true\"] network = \"host\" }", "network"),
    ] {
        let project = Project::new(&Caller::ordinary(), text);
        project.ctst(["check"]).fails(125, &[word, "not supported yet"]);
        project.ctst(["run", "-d", "--yes"]).fails(125, &[word]);
    }
}

#[test]
fn arguments_that_make_no_sense() {
    let project = Project::new(&Caller::ordinary(), HOLD);
    for args in [
        &["exec"][..],
        &["exec", "one"],
        &["no-such-command"],
        &["run", "--no-such-option"],
        &["logs", "--tail", "many"],
    ] {
        project.ctst(args).fails(125, &["error"]);
    }
    for args in [&["exec", "one", "true"][..], &["exec", "two", "true"]] {
        project.ctst(args).fails(125, &[args[1]]);
    }
    project.ctst(["run", "-d", "--yes", "two"]).fails(125, &["two", "one"]);
    project.ctst(["logs", "two"]).fails(125, &["two"]);
    project.ctst(["stop", "two"]).fails(125, &["two"]);
    project.ctst(["ps"]).ok();
}

#[test]
fn a_closed_pipe_is_no_reason_to_panic() {
    let project = Project::new(&Caller::ordinary(), HOLD);
    project.up();
    let script = format!(
        "{0} ps | true; {0} exec one seq 1 100000 | head -n 1; {0} logs | true",
        programs().join("ctst").display()
    );
    let plain = project.command(["ps"]);
    let mut command = Command::new("sh");
    project.caller.login(&mut command);
    command.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?)))).current_dir(project.folder());
    let done = finish(command.args(["-c", &script])).ok();
    assert!(!done.stderr.contains("panicked"), "{done}");
    eventually("seq is gone", || project.ctst(["exec", "one", "pidof", "seq"]).code == 1);
    project.stop();
}

#[test]
fn a_port_below_1024_needs_a_right_that_one_has_not() {
    let limit = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap_or_default();
    if limit.trim().parse::<u16>().unwrap_or(1024) < 100 {
        return;
    }
    let port = (20..100)
        .find(|port| std::net::TcpStream::connect(("127.0.0.1", *port)).is_err())
        .expect("a port without a server");
    let text = format!("{}\nEXPOSE 127.0.0.1:{port} -> one:80\n", HOLD.replace("command", "port = 80 command"));
    refused(&text, 125, &[&port.to_string()]);
    assert!(free_port() > 1024);
}
