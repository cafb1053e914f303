//! Secrets reach the container they are for, and nothing else; configs are files.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use containust_tests::{Caller, Done, Project, eventually};

const CANARY: &str = "cnry-7d1f0a";

const STACK: &str = r#"
SECRET told FROM ENV "TOLD"
SECRET made FROM COMMAND "printf cnry-; echo 7d1f0a-made"
CONFIG plain = "for ${one.host}"
CONFIG mixed = "password=${secret.kept}"
COMPONENT one {
  image   = "file://ROOTFS"
  command = ["/bin/ctst-probe", "hold"]
  env     { DSN = "x:${secret.kept}@${secret.told}", PLAIN = "p" }
  secrets = ["kept", "made:/etc/app/made:0440"]
  configs = ["plain:/etc/plain.conf", "mixed"]
  healthcheck { command = ["/bin/sh", "-c", "test $${#DSN} = 35"] interval = 100ms }
}
COMPONENT other { image = "file://ROOTFS" command = ["/bin/ctst-probe", "hold"] }
"#;

fn keep(project: &Project, name: &str, content: &str, mode: u32) {
    for folder in [".containust", ".containust/secrets"] {
        if !project.folder().join(folder).exists() {
            project.make_folder(folder);
            fs::set_permissions(project.folder().join(folder), fs::Permissions::from_mode(0o700)).expect("set a mode");
        }
    }
    let path = format!(".containust/secrets/{name}");
    project.write(&path, content);
    fs::set_permissions(project.folder().join(path), fs::Permissions::from_mode(mode)).expect("set a mode");
}

fn ctst(project: &Project, args: &[&str]) -> Done {
    let done = containust_tests::finish(project.command(args).env("TOLD", format!("{CANARY}-told")));
    project.note();
    assert!(!done.stdout.contains(CANARY) && !done.stderr.contains(CANARY), "{args:?} tells:\n{done}");
    done
}

fn contains(bytes: &[u8]) -> bool {
    bytes.windows(CANARY.len()).any(|window| window == CANARY.as_bytes())
}

/// Files below `folder` in which the canary stands.
fn telling(folder: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let kind = entry.file_type().expect("look");
        if kind.is_dir() {
            telling(&entry.path(), found);
        } else if kind.is_file() && fs::read(entry.path()).is_ok_and(|bytes| contains(&bytes)) {
            found.push(entry.path().display().to_string());
        }
    }
}

#[test]
fn a_secret_is_where_it_belongs_and_nowhere_else() {
    for caller in Caller::all() {
        let project = Project::new(&caller, STACK);
        keep(&project, "kept", &format!("{CANARY}-kept\n"), 0o600);
        ctst(&project, &["plan"]).ok();
        ctst(&project, &["plan", "--format", "json"]).ok();
        ctst(&project, &["run", "-d", "--wait", "--yes"]).ok();

        let inside = |component: &str, words: &str| {
            let done = project.ctst(["exec", component, "/bin/sh", "-c", words]);
            done.ok().stdout
        };
        assert_eq!(inside("one", "cat /run/secrets/kept"), "cnry-7d1f0a-kept", "{}", caller.name);
        assert_eq!(inside("one", "cat /etc/app/made /mixed"), "cnry-7d1f0a-madepassword=cnry-7d1f0a-kept");
        assert_eq!(inside("one", "cat /etc/plain.conf"), "for one");
        assert_eq!(inside("one", "stat -c '%u %a' /run/secrets/kept /etc/app/made"), "0 400\n0 440\n");
        assert_eq!(inside("one", "echo $DSN $PLAIN"), "x:cnry-7d1f0a-kept@cnry-7d1f0a-told p\n");
        let own = project.ctst(["exec", "-e", "DSN=mine", "one", "/bin/sh", "-c", "echo $DSN"]).ok().stdout;
        assert_eq!(own, "mine\n");
        for file in ["/run/secrets/kept", "/etc/app/made", "/etc/plain.conf", "/mixed"] {
            let words = format!("echo x >> {file}");
            project.ctst(["exec", "one", "/bin/sh", "-c", &words]).fails(1, &["Read-only"]);
        }
        assert!(!inside("other", "cat /proc/mounts; env").contains("secrets"));
        let mount = project.report(&[], "one").mount("/run/secrets/kept").expect("a mount").clone();
        assert_eq!(mount.kind, "ramfs");
        for option in ["ro", "nosuid", "nodev", "noexec"] {
            assert!(mount.options.iter().any(|found| found == option), "{mount:?}");
        }

        ctst(&project, &["ps", "-a", "--format", "json"]).ok();
        ctst(&project, &["logs"]).ok();
        let mut found = Vec::new();
        telling(project.folder(), &mut found);
        found.retain(|path| !path.ends_with("secrets/kept") && !path.ends_with("stack.ctst"));
        assert_eq!(found, [""; 0], "{}", caller.name);
        let mut ours = 0;
        for ((pid, _), name) in project.processes() {
            let file = |file: &str| fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
            assert!(!contains(&file("cmdline")), "{name}");
            // The component's own programs have it there.
            if name.starts_with("ctst") && !name.contains("probe") {
                assert!(!contains(&file("environ")), "{name}");
                let limits = String::from_utf8(file("limits")).expect("text");
                let core = limits.lines().find_map(|line| line.strip_prefix("Max core file size")).expect("a limit");
                let core: Vec<&str> = core.split_whitespace().collect();
                // The rest is not dumpable.
                assert!(name != "ctst" || core[0] == "1" || core[1] == "0", "{core:?}");
                ours += 1;
            }
        }
        assert!(ours > 2, "the supervisor and its helpers: {:?}", project.processes());

        // What is in memory serves for a start that nobody asked for, too.
        let pid = project.status("one")["pid"].as_i64().expect("a pid");
        project.ctst(["exec", "one", "/bin/kill", "-9", "2"]);
        eventually("it ended", || project.status("one")["state"] == "exited");
        ctst(&project, &["run", "-d", "--wait", "--yes"]).ok();
        assert_ne!(project.status("one")["pid"].as_i64(), Some(pid));
        assert_eq!(inside("one", "cat /run/secrets/kept"), "cnry-7d1f0a-kept");
        // Another value is not another component.
        keep(&project, "kept", &format!("{CANARY}-kept2\n"), 0o600);
        ctst(&project, &["plan", "--detailed-exitcode"]).ok();
        project.stop();
    }
}

#[test]
fn a_secret_survives_restarts_and_belongs_to_the_user() {
    let text = r#"
COMPONENT one {
  image   = "file://ROOTFS"
  command = ["/bin/sh", "-c", "cat /run/secrets/kept >> /state/seen; [ $(wc -c < /state/seen) -ge 15 ] || exit 1; exec ctst-probe hold"]
  user    = "1000:1000"
  restart = "on-failure"
  secrets = ["kept"]
  tmpfs   = ["/var"]
  volume  = "state:/state"
}
COMPONENT maker { image = "file://ROOTFS" command = ["/bin/sh", "-c", "chmod 777 /state; exec ctst-probe hold"] volume = "state:/state"
  healthcheck { command = ["/bin/sh", "-c", "test $(stat -c %a /state) = 777"] interval = 100ms } }
CONNECT one -> maker
"#;
    for caller in Caller::all() {
        let project = Project::new(&caller, text);
        keep(&project, "kept", "12345\n", 0o400);
        project.up();
        eventually("the third start lasts", || {
            let row = project.status("one");
            row["restarts"] == 2 && row["state"] == "running"
        });
        assert_eq!(project.ctst(["exec", "one", "cat", "/run/secrets/kept"]).ok().stdout, "12345", "{}", caller.name);
        let stat = project.ctst(["exec", "one", "stat", "-c", "%u %a", "/run/secrets/kept"]).ok().stdout;
        assert_eq!(stat, "1000 400\n", "{}", caller.name);
        project.stop();
    }
}

#[test]
fn what_cannot_be_had_is_named_at_once() {
    let text = r#"
SECRET told FROM ENV "NOT_TOLD"
SECRET filed FROM FILE "./open"
COMPONENT one {
  image   = "file://ROOTFS"
  command = ["/bin/true"]
  secrets = ["told", "filed", "none", "bad", "link", "fifo", "large"]
}"#;
    let project = Project::new(&Caller::ordinary(), text);
    keep(&project, "bad", CANARY, 0o644);
    keep(&project, "large", &CANARY.repeat(7000), 0o600);
    keep(&project, "open", "", 0o600);
    project.write("open", CANARY);
    fs::set_permissions(project.folder().join("open"), fs::Permissions::from_mode(0o644)).expect("set a mode");
    symlink("bad", project.folder().join(".containust/secrets/link")).expect("link");
    let fifo = project.folder().join(".containust/secrets/fifo");
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RWXU).expect("make a FIFO");
    std::os::unix::fs::chown(&fifo, Some(project.caller.uid), Some(project.caller.gid)).expect("give it away");
    let filed = format!("filed: {} has mode 644", project.folder().join("open").display());
    for command in [&["plan"][..], &["run", "-d", "--yes"]] {
        ctst(&project, command).fails(
            125,
            &[
                "S0210",
                "told: the variable NOT_TOLD is not set",
                &filed,
                "none: neither CONTAINUST_SECRET_NONE",
                "bad: ",
                "has mode 644",
                "link: ",
                "symbolic link",
                "fifo: ",
                "not a regular file",
                "large: ",
                "65536 are the limit",
                "help: ",
            ],
        );
    }
    assert!(project.ps().is_empty());
    // Of somebody else's.
    if project.caller.uid != 0 && rustix::process::getuid().is_root() {
        let bad = project.folder().join(".containust/secrets/bad");
        fs::set_permissions(&bad, fs::Permissions::from_mode(0o400)).expect("set a mode");
        std::os::unix::fs::chown(&bad, Some(0), Some(0)).expect("give it to root");
        ctst(&project, &["plan"]).fails(125, &["bad: "]);
    }
}

#[test]
fn a_plan_runs_no_command_and_a_state_made_by_hand_is_ignored_by_git() {
    let text = r#"
SECRET made FROM COMMAND "touch ran; echo x"
COMPONENT one { image = "file://ROOTFS" command = ["/bin/ctst-probe", "hold"] secrets = ["made", "kept"] }
"#;
    let project = Project::new(&Caller::ordinary(), text);
    keep(&project, "kept", "", 0o600);
    assert!(project.ctst(["plan"]).ok().stdout.contains("touch ran"));
    project.ctst(["check"]).ok();
    // Whoever can write the file would run what he likes as the caller.
    project.ctst(["run", "-d"]).fails(125, &["the secret made from a command", "touch ran", "--yes"]);
    assert!(!project.folder().join("ran").exists());
    assert!(!project.folder().join(".containust/.gitignore").exists(), "a plan writes nothing");
    project.up();
    assert!(project.folder().join("ran").exists());
    project.ctst(["run", "-d"]).fails(125, &["--yes"]);
    assert_eq!(fs::read_to_string(project.folder().join(".containust/.gitignore")).expect("read"), "*\n");
    assert_eq!(project.ctst(["exec", "one", "cat", "/run/secrets/kept"]).ok().stdout, "");
    project.stop();
}

#[test]
fn secrets_and_configs_have_a_size() {
    let text = r#"
COMPONENT one { image = "file://ROOTFS" command = ["/bin/ctst-probe", "hold"] secrets = ["a", "b"] }
CONFIG page = { file = "./page" }
COMPONENT two { image = "file://ROOTFS" command = ["/bin/ctst-probe", "hold"] configs = ["page:/srv/page:0644"] }
"#;
    let project = Project::new(&Caller::ordinary(), text);
    let half = CANARY.repeat(3500);
    keep(&project, "a", &half, 0o600);
    keep(&project, "b", &half, 0o600);
    let page = "0123456789abcde\n".repeat(40_000);
    project.write("page", &page);
    ctst(&project, &["run", "-d", "--yes"]).fails(125, &["component one", "secrets", "65536 are the limit"]);
    keep(&project, "b", "short", 0o600);
    ctst(&project, &["run", "-d", "--wait", "--yes"]).ok();
    assert_eq!(project.ctst(["exec", "two", "cat", "/srv/page"]).ok().stdout, page);
    assert_eq!(project.ctst(["exec", "one", "cat", "/run/secrets/a"]).ok().stdout, half);
    let written = project.folder().join(".containust/containers/two/configs");
    assert_eq!(written.metadata().expect("look").mode() & 0o777, 0o700);
    // A config that changes changes its component.
    project.write("page", "new");
    ctst(&project, &["run", "-d", "--wait", "--yes"]).ok();
    assert_eq!(project.ctst(["exec", "two", "cat", "/srv/page"]).ok().stdout, "new");
    project.stop();
}

#[test]
fn a_file_belongs_to_whom_its_author_names() {
    let text = r#"
CONFIG plain = "for one user"
CONFIG mixed = "password=${secret.kept}"
COMPONENT one {
  image   = "file://ROOTFS"
  command = ["/bin/ctst-probe", "hold"]
  secrets = [{ source = "kept", owner = "70:71" }, { source = "kept", target = "/named", owner = "somebody" }, "kept:/usual"]
  configs = [{ source = "plain", mode = "0400", owner = 70 }, { source = "mixed", mode = "0640", owner = "0:1000" }]
}
"#;
    for caller in [Caller::ranges(), Caller::root(), Caller::strict()].into_iter().flatten() {
        let project = Project::new(&caller, text);
        keep(&project, "kept", "12345\n", 0o400);
        project.up();
        let files = ["/run/secrets/kept", "/named", "/usual", "/plain", "/mixed"];
        let words = [&["exec", "one", "stat", "-c", "%u:%g %a %n"][..], &files].concat();
        let told = project.ctst(words).ok().stdout;
        let expected =
            "70:71 400 /run/secrets/kept\n1000:1000 400 /named\n0:0 400 /usual\n70:0 400 /plain\n0:1000 640 /mixed\n";
        assert_eq!(told, expected, "{}", caller.name);
        let reads = |user: &str, file: &str| project.ctst(["exec", "-u", user, "one", "cat", file]);
        assert_eq!(reads("70", "/run/secrets/kept").ok().stdout, "12345");
        assert_eq!(reads("70", "/plain").ok().stdout, "for one user");
        assert_eq!(reads("somebody", "/mixed").ok().stdout, "password=12345");
        for (user, file) in
            [("70", "/named"), ("somebody", "/run/secrets/kept"), ("somebody", "/plain"), ("70", "/mixed")]
        {
            reads(user, file).fails(1, &["Permission denied"]);
        }
        // Who is named is a part of what the component is; what stands in it is shown to nobody.
        project.write("stack.ctst", &text.replace("70:71", "70:72").replace("for one user", "secret words"));
        let plan = project.ctst(["plan"]).ok().stdout;
        assert!(plan.lines().any(|line| line.trim_start().starts_with("-/+  one")), "{plan}");
        assert!(plan.contains("owner 70:71") && plan.contains("owner 70:72"), "{plan}");
        assert!(plan.contains("configs /plain changed") && !plan.contains("words"), "{plan}");
        project.up();
        let told = project.ctst(["exec", "one", "stat", "-c", "%u:%g", "/run/secrets/kept"]).ok().stdout;
        assert_eq!(told, "70:72\n");
        project.stop();
    }
}

#[test]
fn who_has_one_id_gives_files_to_nobody_else() {
    let text = |user: &str, owner: &str| {
        format!(
            r#"
CONFIG plain = "x"
COMPONENT one {{
  image   = "file://ROOTFS"
  command = ["/bin/ctst-probe", "hold"]
  user    = "{user}"
  secrets = [{{ source = "kept", owner = "{owner}" }}]
  configs = [{{ source = "plain", owner = "{owner}" }}]
}}
"#
        )
    };
    let project = Project::new(&Caller::single(), &text("0", "1000"));
    keep(&project, "kept", "12345\n", 0o400);
    // Whose id a name has is known with the image.
    project.ctst(["build"]).ok();
    for command in [&["plan"][..], &["run", "-d"]] {
        project.ctst(command).fails(125, &["give /run/secrets/kept to `1000`: only one id is mapped"]);
    }
    assert!(project.ps().is_empty());
    for (user, owner) in [("0", "root"), ("1000:1000", "1000:1000")] {
        project.write("stack.ctst", &text(user, owner));
        project.up();
        assert_eq!(project.ctst(["exec", "one", "cat", "/run/secrets/kept", "/plain"]).ok().stdout, "12345x");
        project.write("stack.ctst", &text(user, "7"));
        project.ctst(["run", "-d"]).fails(125, &["to `7`: only one id is mapped"]);
        assert_eq!(project.status("one")["state"], "running");
        project.stop();
    }
}
