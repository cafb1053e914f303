//! `inspect`, `wait`, `restart`, `doctor` and `completions`, as a person uses them.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use containust_tests::{Caller, Done, Project, eventually, finish};

const TWO: &str = r#"
COMPONENT db { image = "file://ROOTFS" command = ["/bin/ctst-probe", "hold"] }
COMPONENT app {
  image   = "file://ROOTFS"
  command = ["/bin/sh", "-c", "echo started; exec ctst-probe hold"]
  env     { COLOUR = "red", TOKEN = "${secret.token}" }
  labels  { tier = "front" }
}
CONNECT app -> db
"#;

fn with_secret(caller: &Caller, text: &str) -> Project {
    let project = Project::new(caller, text);
    for folder in [".containust", ".containust/secrets"] {
        project.make_folder(folder);
        std::fs::set_permissions(project.folder().join(folder), std::os::unix::fs::PermissionsExt::from_mode(0o700))
            .expect("set a mode");
    }
    project.write(".containust/secrets/token", "hunter2");
    std::fs::set_permissions(
        project.folder().join(".containust/secrets/token"),
        std::os::unix::fs::PermissionsExt::from_mode(0o600),
    )
    .expect("set a mode");
    project
}

#[test]
fn inspect_shows_all_but_secrets() {
    let project = with_secret(&Caller::ordinary(), TWO);
    project.ctst(["inspect", "app"]).fails(125, &["app"]);
    project.up();
    let rows = project.ctst(["inspect", "app", "--format", "json"]).ok().json();
    assert_eq!(rows.as_array().map(Vec::len), Some(1));
    let row = &rows[0];
    assert_eq!((row["component"].as_str(), row["state"].as_str()), (Some("app"), Some("running")));
    assert_eq!((row["file"].as_str(), row["spec"]["labels"][0][1].as_str()), (Some("stack.ctst"), Some("front")));
    assert!(row["spec"]["env"].as_array().is_some_and(|env| env.iter().any(|entry| entry == "COLOUR=red")));
    assert_eq!(row["spec"]["secret_env"][0]["parts"][0]["secret"], "token");
    let text = project.ctst(["inspect"]).ok().stdout;
    for word in ["db", "app", "COLOUR=red", "secret: token"] {
        assert!(text.contains(word), "no {word} in {text}");
    }
    assert!(!text.contains("hunter2") && !row.to_string().contains("hunter2"));
    project.ctst(["inspect", "nobody"]).fails(125, &["nobody"]);
    project.stop();
    assert_eq!(project.ctst(["inspect", "app", "--format", "json"]).ok().json()[0]["state"], "stopped");
}

#[test]
fn wait_gives_the_exit_codes() {
    let text = r#"
COMPONENT three { image = "file://ROOTFS" command = ["/bin/sh", "-c", "sleep 1; exit 3"] }
JOB zero { image = "file://ROOTFS" command = ["/bin/sh", "-c", "sleep 0.5"] }
COMPONENT none { image = "file://ROOTFS" command = ["/bin/nothing"] }
COMPONENT holds { image = "file://ROOTFS" command = ["/bin/ctst-probe", "hold"] }
"#;
    let project = Project::new(&Caller::ordinary(), text);
    project.ctst(["wait", "three"]).fails(125, &["three"]);
    project.ctst(["run", "-d", "--yes"]).fails(127, &[]);
    assert_eq!(project.ctst(["wait", "zero"]).ok().stdout, "0\n");
    assert_eq!(project.ctst(["wait", "zero", "three"]).fails(3, &[]).stdout, "0\n3\n");
    assert_eq!(project.ctst(["wait", "none"]).fails(127, &[]).stdout, "127\n");
    let waiting = project.start(["wait", "holds"]);
    std::thread::sleep(Duration::from_millis(200));
    project.ctst(["stop"]).ok();
    let done = waiting.wait(Duration::from_secs(20));
    assert_eq!((done.code, done.stdout.as_str()), (143, "143\n"), "{done}");
    assert_eq!(project.ctst(["wait", "three"]).fails(3, &[]).stdout, "3\n");
}

/// newuidmap may be told otherwise than by the files, which are all that the shim reads.
#[test]
fn doctor_compares_what_getsubids_lists_with_the_files() {
    let Some(caller) = Caller::ranges() else { return };
    let (first, count) = caller.range().expect("a range");
    let name = &caller.name;
    let strict = Caller::strict();
    for caller in [Some(&caller), strict.as_ref()].into_iter().flatten() {
        let project = Project::new(caller, "");
        let look = |path: &str| {
            let done = finish(project.command(["doctor", "--format", "json"]).env("PATH", path));
            let checks = done.json();
            let check = checks.as_array().expect("a list").iter().find(|check| check["name"] == "subordinate ids");
            check.cloned()
        };
        let usual = "/usr/bin:/bin:/usr/sbin:/sbin";
        let check = look(usual).expect("uidmap is installed");
        assert_eq!(check["status"], "good", "{check}");
        assert_eq!(look("/nowhere"), None, "without getsubids there is nothing to compare");

        project.make_folder("bin");
        let fake = project.folder().join("bin/getsubids");
        let lists = |uids: &str, gids: &str| {
            let script = format!(
                "#!/bin/sh\n[ \"$*\" = {name} ] && echo '{uids}'\n[ \"$*\" = '-g {name}' ] && echo '{gids}'\nexit 0\n"
            );
            project.write("bin/getsubids", &script);
            fs::set_permissions(&fake, Permissions::from_mode(0o755)).expect("set a mode");
            let path = format!("{}:{usual}", fake.parent().expect("a folder").display());
            look(&path).expect("a check")
        };
        let same = format!("0: {name} {first} {count}");
        assert_eq!(lists(&same, &same)["status"], "good");
        let check = lists(&same, &format!("{same}\n1: {name} 700000 65536"));
        let (found, fix) = (check["found"].as_str().expect("a text"), check["fix"].as_str().expect("a fix"));
        assert_eq!(check["status"], "limited", "{check}");
        let words = format!(
            "getsubids lists {count} from {first} and 65536 from 700000, and /etc/subgid grants {count} from {first}"
        );
        assert!(found.contains(&words) && found.contains("ctst and ctst-shim read the other"), "{check}");
        assert!(!found.contains("/etc/subuid"), "{check}");
        assert!(fix.ends_with(&format!("echo {}:700000:65536 | sudo tee -a /etc/subgid", caller.uid)), "{check}");
        let check = lists("", "");
        assert!(
            check["found"].as_str().expect("a text").contains("getsubids lists none, and /etc/subuid grants"),
            "{check}"
        );
        assert!(check["fix"].as_str().expect("a fix").contains("subid: files"), "{check}");
    }
}

#[test]
fn restart_keeps_what_there_is_and_the_order() {
    let project = with_secret(&Caller::ordinary(), &TWO.replace("labels ", "readonly = false\n  labels "));
    project.ctst(["restart"]).fails(125, &["nothing of"]);
    project.ctst(["restart", "app"]).fails(125, &["component app: not running", "ctst run -d app"]);
    project.up();
    let pids = || ["db", "app"].map(|name| project.status(name)["pid"].as_u64());
    let before = pids();
    project.ctst(["exec", "app", "/bin/sh", "-c", "echo kept > /srv/kept"]).ok();
    let done = project.ctst(["restart"]).ok();
    let order = ["app stopping", "db stopping", "db started", "app started"];
    let places: Vec<_> =
        order.iter().map(|line| done.stderr.find(line).unwrap_or_else(|| panic!("{line}: {done}"))).collect();
    assert!(places[2] < places[3], "{done}");
    assert!(before.iter().zip(pids()).all(|(old, new)| new.is_some() && *old != new));
    assert_eq!(
        project.ctst(["exec", "app", "/bin/sh", "-c", "cat /srv/kept; echo $TOKEN"]).ok().stdout,
        "kept\nhunter2\n"
    );
    eventually("the log goes on", || project.logs("app").matches("started").count() == 2);
    let before = pids();
    project.ctst(["restart", "-t", "1", "app"]).ok();
    assert_eq!(pids()[0], before[0]);
    assert_ne!(pids()[1], before[1]);
    project.ctst(["stop", "app"]).ok();
    project.ctst(["restart", "app"]).fails(125, &["component app", "not running", "ctst run -d app"]);
    project.ctst(["restart", "nobody"]).fails(125, &["nobody"]);
    project.stop();
}

#[test]
fn completions_are_scripts() {
    let project = Project::new(&Caller::ordinary(), "");
    for (shell, word) in [("bash", "complete -o"), ("zsh", "#compdef ctst"), ("fish", "complete --keep-order")] {
        let script = project.ctst(["completions", shell]).ok().stdout;
        assert!(script.contains(word) && script.contains("CTST_COMPLETE"), "{shell}: {script}");
    }
    project.ctst(["completions", "tcsh"]).fails(125, &["bash"]);
    let script = project.ctst(["completions", "bash"]).ok().stdout;
    project.write("completions", &script);
    let checked = std::process::Command::new("bash").arg("-n").arg(project.folder().join("completions")).status();
    assert!(checked.is_ok_and(|status| status.success()));
}

#[test]
fn without_names_only_the_components_of_the_file_are_meant() {
    let hold = |name: &str| {
        format!("COMPONENT {name} {{ image = \"file://ROOTFS\" command = [\"/bin/ctst-probe\", \"hold\"] }}\n")
    };
    let project = Project::new(&Caller::ordinary(), &hold("mine"));
    project.write("b.ctst", &hold("other"));
    project.up();
    project.ctst(["-f", "b.ctst", "run", "-d"]).ok();
    let state = |name: &str| project.status(name)["state"].clone();
    let pid = |name: &str| project.status(name)["pid"].clone();
    let (mine, other) = (pid("mine"), pid("other"));

    project.ctst(["restart"]).ok();
    assert_ne!(pid("mine"), mine);
    project.ctst(["stop"]).ok();
    assert_eq!((state("mine"), state("other")), ("stopped".into(), "running".into()));
    project.ctst(["stop"]).fails(0, &["nothing of this file is running"]);
    project.ctst(["restart"]).fails(125, &["S0301"]);
    project.ctst(["pause"]).ok();
    project.ctst(["rm"]).ok();
    let left: Vec<_> = project.ps().iter().map(|row| row["component"].clone()).collect();
    assert_eq!((left, pid("other")), (vec!["other".into()], other.clone()));
    project.ctst(["rm"]).fails(0, &["nothing is left"]);

    // A name is one of the folder, whatever file it comes from.
    project.up();
    project.ctst(["restart", "other"]).ok();
    assert_ne!(pid("other"), other);
    project.ctst(["-f", "b.ctst", "stop", "mine"]).ok();
    project.ctst(["-f", "b.ctst", "stop"]).ok();
    project.assert_nothing_left();
    project.ctst(["rm"]).ok();
    assert_eq!(state("other"), "stopped");
    project.ctst(["rm"]).fails(0, &["nothing is left"]);
    // Nobody knows which file this is of.
    let record = project.folder().join(".containust/containers/other/record.json");
    std::fs::write(&record, "{").expect("damage a record");
    project.ctst(["rm"]).ok();
    assert_eq!(project.ps().len(), 0);
}

/// What bash offers for a line, the last word of which is begun, but for options.
fn offered(project: &Project, words: &[&str]) -> Vec<String> {
    let mut command = project.command([&["--"][..], words].concat());
    command.env("CTST_COMPLETE", "bash").env("_CLAP_IFS", "\n");
    let done = finish(command.env("_CLAP_COMPLETE_INDEX", (words.len() - 1).to_string()));
    assert!(done.code == 0 && done.stderr.is_empty(), "{words:?}: {done}");
    done.stdout.lines().filter(|word| !word.starts_with("--")).map(str::to_owned).collect()
}

#[test]
fn names_are_completed() {
    let text = TWO.replace("image = ", "volume = \"data:/data\" image = ");
    let project = with_secret(&Caller::ordinary(), &text);
    project.write("b.ctst", "COMPONENT other { image = \"file://ROOTFS\" command = [\"/bin/true\"] }");
    assert_eq!(offered(&project, &["ctst", "ru"]), ["run"]);
    assert_eq!(offered(&project, &["ctst", "run", "a"]), ["app"]);
    assert_eq!(offered(&project, &["ctst", "-f", "b.ctst", "run", "o"]), ["other"]);
    assert_eq!(offered(&project, &["ctst", "run", "--exit-code-from", ""]), ["app", "db"]);
    assert!(offered(&project, &["ctst", "-f", ""]).contains(&"b.ctst".to_owned()));
    assert_eq!(offered(&project, &["ctst", "exec", ""]), [""; 0], "nothing runs");
    project.up();
    assert_eq!(offered(&project, &["ctst", "exec", ""]), ["app", "db"]);
    assert_eq!(offered(&project, &["ctst", "exec", "app", "d"]), [""; 0]);
    assert_eq!(offered(&project, &["ctst", "logs", "app", "d"]), ["db"]);
    assert_eq!(offered(&project, &["ctst", "cp", "ap"]), ["app:"]);
    assert_eq!(offered(&project, &["ctst", "volumes", "rm", ""]), ["data"]);
    assert_eq!(offered(&project, &["ctst", "images", "rm", "file"]).len(), 1);
    assert!(offered(&project, &["ctst", "explain", "E01"]).len() > 1);

    // Whatever is wrong, nothing is said, and soon.
    let (supervisor, _) = *project.parts().iter().find(|(_, part)| *part == "supervisor").expect("a supervisor");
    let signal = |signal| {
        rustix::process::kill_process(rustix::process::Pid::from_raw(supervisor).expect("a pid"), signal)
            .expect("signal");
    };
    signal(rustix::process::Signal::STOP);
    let start = std::time::Instant::now();
    offered(&project, &["ctst", "exec", ""]);
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    signal(rustix::process::Signal::CONT);
    project.stop();
    project.write("stack.ctst", "COMPONENT {");
    for words in
        [&["ctst", "run", ""][..], &["ctst", "-f", "none.ctst", "exec", ""], &["ctst", "-p", "/nowhere", "run", "x"]]
    {
        offered(&project, words);
    }
    project.write(".containust/containers/app/record.json", "{");
    offered(&project, &["ctst", "rm", ""]);
}

/// The script, in the shell that it is for.
#[test]
fn bash_completes_names() {
    let project = with_secret(&Caller::ordinary(), TWO);
    let script = project.ctst(["completions", "bash"]).ok().stdout;
    project.write("completions", &script);
    let words = "source ./completions; COMP_WORDS=(ctst run a); COMP_CWORD=2; COMP_TYPE=9; \
        _clap_complete_ctst ctst a run; echo \"${COMPREPLY[@]}\"";
    assert_eq!(in_shell(&project, "bash", words).stdout, "app\n");
}

#[test]
fn fish_completes_names() {
    let project = with_secret(&Caller::ordinary(), TWO);
    let script = project.ctst(["completions", "fish"]).ok().stdout;
    project.write("completions", &script);
    let words = "source ./completions; complete -C 'ctst run a'";
    assert_eq!(in_shell(&project, "fish", words).stdout, "app\n");
    assert!(in_shell(&project, "fish", "source ./completions; complete -C 'ctst sto'").stdout.starts_with("stop\t"));
}

/// Found by its name, as the package has it there, in a terminal: functions of zsh complete nowhere else.
#[test]
fn zsh_completes_names() {
    const WORDS: &str = r#"
zmodload zsh/zpty
zpty shell "TERM=dumb zsh -f -i"
zpty -w shell "fpath=(./functions \$fpath); autoload -Uz compinit; compinit -u -D; print now-'ready'"
zpty -r shell seen "*now-ready*"
zpty -n -w shell $'ctst run a\t'
zpty -r shell seen "*ctst run app*"
zpty -n -w shell $'\C-uctst sto\t'
zpty -r shell seen "*ctst stop*"
print completed
zpty -d shell
"#;
    let project = with_secret(&Caller::ordinary(), TWO);
    let script = project.ctst(["completions", "zsh"]).ok().stdout;
    project.make_folder("functions");
    project.write("functions/_ctst", &script);
    assert_eq!(in_shell(&project, "zsh", WORDS).stdout, "completed\n");
}

fn in_shell(project: &Project, shell: &str, words: &str) -> Done {
    let ctst = project.command([""; 0]);
    let folder = std::path::Path::new(ctst.get_program()).parent().expect("a folder").display().to_string();
    let mut command = std::process::Command::new("timeout");
    project.caller.login(&mut command);
    command.args(["60", shell, "-c", words]).env("PATH", format!("{folder}:/usr/bin:/bin"));
    finish(command.current_dir(project.folder())).ok()
}
