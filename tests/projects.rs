//! Projects from anywhere: `-p`, and the list of all that run.

use std::fs;
use std::path::Path;

use containust_tests::{Caller, Done, Project, finish};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

fn hold(name: &str) -> String {
    format!("COMPONENT {name} {{ image = \"file://ROOTFS\" command = [\"/bin/ctst-probe\", \"hold\"] }}\n")
}

/// A folder with a project in it, and another one in `shop`.
fn two(caller: &Caller) -> Project {
    let project = Project::new(caller, &hold("one"));
    project.make_folder("shop");
    project.write("shop/shop.ctst", &(hold("two") + "\n\n\n"));
    project.make_folder("empty");
    project
}

fn within(project: &Project, folder: &Path, args: &[&str]) -> Done {
    finish(project.command(args).current_dir(folder))
}

fn listed(done: &Done) -> Vec<(String, String)> {
    let rows = done.json();
    let text = |row: &Value, field: &str| row[field].as_str().unwrap_or_default().to_owned();
    let rows = rows.as_array().expect("a list");
    rows.iter().map(|row| (text(row, "project"), text(row, "component"))).collect()
}

fn signal(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).expect("a pid"), signal).expect("signal a process");
}

#[test]
fn a_project_can_be_anywhere() {
    let project = two(&Caller::ordinary());
    let folder = project.folder().display().to_string();
    let anywhere = |args: &[&str]| within(&project, Path::new("/"), args);
    let shop = format!("{folder}/shop");
    anywhere(&["-p", &shop, "up"]).ok();
    assert_eq!(
        listed(&anywhere(&["--project", &shop, "ps", "--format", "json"]).ok()),
        [(String::new(), "two".into())]
    );
    // A file is looked for in the folder.
    anywhere(&["-p", &shop, "-f", "shop.ctst", "exec", "two", "/bin/true"]).ok();
    assert_eq!(anywhere(&["-p", &shop, "fmt", "--check"]).code, 1);
    project.ctst(["-p", "shop", "stop"]).ok();
    anywhere(&["-p", &format!("{folder}/none"), "ps"]).fails(125, &["none"]);
    anywhere(&["-p", &format!("{folder}/empty"), "ps"]).fails(125, &["S0102", "empty"]);
    anywhere(&["-p", &shop, "-f", "none.ctst", "ps"]).fails(125, &["none.ctst"]);
    anywhere(&["-p", &shop, "check", "x.ctst"]).fails(125, &["name one"]);
    project.assert_nothing_left();
}

#[test]
fn a_file_that_is_gone_is_known_by_its_containers() {
    let project = two(&Caller::ordinary());
    let rename =
        |from: &str, to: &str| fs::rename(project.folder().join(from), project.folder().join(to)).expect("rename");
    project.up();
    rename("stack.ctst", "gone");
    assert!(project.ctst(["ps"]).ok().stdout.contains("one"));
    project.ctst(["exec", "one", "/bin/true"]).ok();
    project.ctst(["plan"]).fails(125, &["stack.ctst"]);
    // Under another name it is another file, and the first one is still known.
    rename("gone", "other.ctst");
    assert!(project.ctst(["ps"]).ok().stdout.contains("one"));
    project.ctst(["-f", "none.ctst", "stop"]).fails(125, &["none.ctst"]);
    project.ctst(["-f", "stack.ctst", "stop"]).ok();
    project.assert_nothing_left();
    project.ctst(["-f", "stack.ctst", "rm"]).ok();
    project.ctst(["-f", "stack.ctst", "stop"]).fails(125, &["stack.ctst"]);
    // What is of a whole folder does not ask which of its files.
    project.write("more.ctst", "");
    project.ctst(["ps"]).ok();
    project.ctst(["volumes"]).ok();
    project.ctst(["images"]).ok();
    project.ctst(["stop"]).fails(125, &["S0103"]);
}

#[test]
fn all_that_run_are_listed_and_nothing_else() {
    for caller in Caller::all().into_iter().chain(Caller::strict()) {
        let project = two(&caller);
        let folder = project.folder().canonicalize().expect("find the folder").display().to_string();
        let all = || listed(&within(&project, Path::new("/"), &["ps", "-A", "--format", "json"]).ok());
        let row = |folder: String, name: &str| (folder, name.to_owned());
        let ours =
            |all: Vec<(String, String)>| all.into_iter().filter(|(at, _)| at.starts_with(&folder)).collect::<Vec<_>>();
        assert_eq!(ours(all()), []);
        project.up();
        project.ctst(["-p", "shop", "up"]).ok();
        let both = [row(folder.clone(), "one"), row(format!("{folder}/shop"), "two")];
        assert_eq!(ours(all()), both, "{}", caller.name);
        // Without being asked for where there is no project.
        let here = within(&project, &project.folder().join("empty"), &["ps"]).ok();
        assert!(here.stderr.contains("all projects") && here.stdout.contains(&format!("{folder}/shop")), "{here}");
        assert!(!project.ctst(["ps"]).ok().stdout.contains("two"));

        // Nothing but a supervisor of one's own is believed.
        let sockets = project.sockets();
        fs::write(sockets.join("0123456789abcdef.sock"), "{}").expect("write a file");
        // What another user listens on; one's own would be asked.
        let foreign = (caller.uid != rustix::process::getuid().as_raw())
            .then(|| std::os::unix::net::UnixListener::bind(sockets.join("fedcba9876543210.sock")).expect("listen"));
        std::os::unix::fs::symlink("nowhere", sockets.join("link.sock")).expect("make a link");
        assert_eq!(ours(all()), both);
        drop(foreign);

        // One that does not answer keeps nobody from being listed, and is told of.
        let (supervisor, _) = *project.parts().iter().find(|(_, part)| *part == "supervisor").expect("a supervisor");
        signal(supervisor, Signal::STOP);
        let done = within(&project, Path::new("/"), &["ps", "-A"]).fails(125, &["does not answer"]);
        assert_eq!(done.stdout.lines().filter(|line| line.starts_with(&folder)).count(), 1, "{done}");
        signal(supervisor, Signal::CONT);
        // What is killed falls out, though its socket stays.
        signal(supervisor, Signal::KILL);
        containust_tests::eventually("it is gone", || ours(all()).len() == 1);
        project.ctst(["-p", "shop", "stop"]).ok();
        project.ctst(["stop"]).ok();
        assert_eq!(ours(all()), []);
        project.assert_nothing_left();
    }
}

#[test]
fn nobody_lists_what_is_somebody_elses() {
    let (Some(caller), Some(root)) = (Caller::ranges(), Caller::root()) else { return };
    let project = Project::new(&caller, &hold("one"));
    project.up();
    let other = Project::new(&root, "");
    let done = finish(
        other
            .command(["ps", "-A", "--format", "json"])
            .env("XDG_RUNTIME_DIR", project.sockets().parent().expect("a folder")),
    );
    let folder = project.folder().display().to_string();
    assert!(listed(&done.ok()).iter().all(|(at, _)| !at.starts_with(&folder)));
    project.stop();
}
