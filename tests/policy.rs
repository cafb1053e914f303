//! What an administrator says in /etc/containust/policy.conf, key by key: what it forbids is refused before anything starts,
//! in the words in which the shim refuses it, and what it allows runs. The tests that are root's own put the file only where
//! the commands of one project see it.
#![expect(clippy::unwrap_used, reason = "test code")]

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;

use containust_tests::{Caller, Done, Project, free_port};

const SLEEP: &str = r#"image = "file://ROOTFS", command = ["sleep", "100000"]"#;
const PATH: &str = "/etc/containust/policy.conf";

/// Ordinary callers; none, and said so, where only root could put a policy in their way.
fn callers() -> Vec<Caller> {
    if Caller::root().is_none() {
        Vec::new()
    } else {
        [Caller::ranges(), Some(Caller::single())].into_iter().flatten().collect()
    }
}

fn web(more: &str) -> String {
    format!("COMPONENT web {{ {SLEEP}{more} }}\n")
}

/// All of `check`, `plan` and `run` refuse it and say `words`; nothing starts.
fn refused(project: &Project, words: &[&str]) {
    let words = [&["[S0410]"], words].concat();
    for command in [&["plan"][..], &["run", "-d", "--yes"]] {
        project.ctst(command).fails(125, &words);
    }
    assert!(project.ps().is_empty(), "nothing was made");
    project.assert_nothing_left();
}

/// It runs.
fn granted(project: &Project) {
    project.ctst(["check"]).ok();
    project.ctst(["plan"]).ok();
    project.up();
    assert_eq!(project.status("web")["state"], "running");
    project.stop();
}

#[test]
fn who_is_not_allowed_has_no_containers() {
    for caller in callers() {
        let project = Project::governed(&caller, &web(""), "# ours\nallow = group daemon\n", &[]);
        let uid = caller.uid;
        let words = format!(
            "have containers as user {uid}: line 2 of {PATH} says `allow = group daemon`, and no other line allows somebody, so \
             ask the administrator for `allow = user {uid}`"
        );
        refused(&project, &[&words]);
        project.ctst(["check"]).fails(125, &[&words]);
        let doctor = project.ctst(["doctor"]);
        assert!(doctor.code == 125 && doctor.stdout.contains("have containers as user"), "{doctor}");

        for allowed in [format!("user {uid}"), format!("user {}", caller.name), format!("group {}", caller.gid)] {
            project.set_policy(&format!("allow = group 4000000\nallow = {allowed}\n"));
            project.ctst(["plan"]).ok();
        }
        granted(&project);
    }
}

#[test]
fn a_supplementary_group_is_enough() {
    for caller in callers() {
        let project = Project::governed(&caller, &web(""), "allow = group 54321\n", &[54321]);
        granted(&project);
    }
}

#[test]
fn root_is_always_allowed() {
    let Some(caller) = Caller::root() else { return };
    let project = Project::governed(&caller, &web(""), "allow = user nobody\n", &[]);
    granted(&project);
}

/// Folders that a governed project needs besides what its test is about: itself, its image, and ctst for the workers.
fn own(project: &Project) -> String {
    let base = project.folder().parent().unwrap().display().to_string();
    format!("mount = rw {}\nmount = ro {base}/bin\nmount = ro {base}/rootfs\n", project.folder().display())
}

#[test]
fn host_paths_are_mounted_as_the_longest_line_says() {
    for caller in callers() {
        let project = Project::governed(&caller, "", "", &[]);
        for folder in ["data", "data/open", "data/read", "data/secret"] {
            project.make_folder(folder);
        }
        let data = project.folder().join("data").display().to_string();
        let rules = format!(
            "mount = deny /\n{}mount = deny {data}\nmount = ro {data}/read\nmount = rw {data}/open\n",
            own(&project)
        );
        let mounting = |volume: &str| project.write("stack.ctst", &web(&format!(", volume = \"{data}{volume}\"")));
        project.set_policy(&rules);
        mounting("/open:/x");
        granted(&project);
        project.ctst(["rm", "web"]).ok();
        mounting("/read:/x:ro");
        granted(&project);
        project.ctst(["rm", "web"]).ok();

        mounting("/read:/x");
        let words = format!(
            "component web: mount {data}/read writable: line 6 of {PATH} says `mount = ro {data}/read`, so ask the administrator \
             for `mount = rw {data}/read`"
        );
        refused(&project, &[&words]);
        project.ctst(["check"]).fails(125, &[&words]);
        mounting("/secret:/x:ro");
        refused(&project, &[&format!("mount {data}/secret read-only: line 5 of {PATH} says `mount = deny {data}`")]);
        // By a link it is the same place.
        symlink(format!("{data}/secret"), format!("{data}/open/link")).unwrap();
        mounting("/open/link:/x:ro");
        refused(&project, &[&format!("mount {data}/secret read-only: line 5")]);
        // Nor is it shown by what is above it.
        project.set_policy(&format!("mount = deny {data}/secret\n"));
        mounting(":/x:ro");
        refused(
            &project,
            &[&format!("mount {data} read-only: line 1 of {PATH} says `mount = deny {data}/secret` of what is below")],
        );
    }
}

#[test]
fn an_image_and_the_state_are_host_paths_too() {
    for caller in callers() {
        let project = Project::governed(&caller, &web(""), "", &[]);
        let deny = format!("mount = deny {}\n", project.folder().parent().unwrap().display());
        project.set_policy(&deny);
        let state = project.folder().join(".containust").display().to_string();
        let words = format!("component web: keep state in {state}: line 1 of {PATH} says `{}`", deny.trim());
        refused(&project, &[&words]);
        project.ctst(["check"]).fails(125, &[&words]);
        assert!(!project.folder().join(".containust/images").exists(), "nothing was imported");
        project.set_policy(&format!("{deny}{}", own(&project)));
        granted(&project);
    }
}

#[test]
fn ports_are_published_where_a_line_says() {
    for caller in callers() {
        let port = free_port();
        let text = format!("{}EXPOSE {port} -> web:80\n", web(""));
        let project = Project::governed(&caller, &text, &format!("publish = any {port}\n"), &[]);
        granted(&project);
        project.ctst(["rm", "web"]).ok();
        project.set_policy("publish = none\n");
        let words = format!(
            "component web: publish 127.0.0.1:{port}: line 1 of {PATH} says `publish = none`, so ask the administrator for \
             `publish = 127.0.0.1 {port}`"
        );
        refused(&project, &[&words]);
        project.ctst(["check"]).fails(125, &[&words]);
        project.set_policy(&format!("publish = 127.0.0.2 {port}\n"));
        refused(&project, &["publish = 127.0.0.2"]);
    }
}

#[test]
fn limits_are_wanted_and_bounded() {
    for caller in callers() {
        let text = |limits: &str| web(&format!(", limits = \"best-effort\"{limits}"));
        let policy = "max_memory = 64MiB\nmax_cpus = 1.5\nmax_pids = 50\n";
        let project = Project::governed(&caller, &text(", memory = 64MiB, cpus = 1.5, pids = 50"), policy, &[]);
        granted(&project);
        project.ctst(["rm", "web"]).ok();
        project.write("stack.ctst", &text(", memory = 65MiB, pids = 51"));
        refused(
            &project,
            &[
                &format!("component web: limit its memory to 65MiB: line 1 of {PATH} says `max_memory = 64MiB`"),
                &format!("run without a limit of cpus: line 2 of {PATH} says `max_cpus = 1.5`, so write `cpus = 1.5`"),
                "`max_pids = 51`",
            ],
        );
    }
}

#[test]
fn an_overlay_is_mounted_where_a_line_does_not_forbid_it() {
    for caller in callers() {
        let project = Project::governed(&caller, &web(""), "overlay = no\n", &[]);
        project.ctst(["run", "-d", "--yes"]).fails(
            125,
            &["[S0410]", &format!("mount an overlay: line 1 of {PATH} says `overlay = no`, so ask the administrator for `overlay = yes`")],
        );
        assert!(project.ps().is_empty());
        project.set_policy("overlay = yes\n");
        granted(&project);
    }
}

#[test]
fn a_filter_is_one_that_a_line_does_not_forbid() {
    for caller in callers() {
        let project = Project::governed(&caller, &web(""), "filter = strict\n", &[]);
        refused(
            &project,
            &[&format!(
                "component web: run under the filter default: line 1 of {PATH} says `filter = strict`, so ask the administrator \
                 for `filter = default`"
            )],
        );
        project.set_policy("filter = default\n");
        granted(&project);
    }
}

#[test]
fn roots_containers_have_the_ids_that_a_line_gives() {
    let Some(caller) = Caller::root() else { return };
    let project = Project::governed(&caller, &web(""), "root_range = 1900000000 65536\n", &[]);
    project.up();
    assert_eq!(project.report(&[], "web").uid_map, [[0, 1_900_000_000, 65536]]);
    project.stop();
    project.ctst(["doctor"]).ok();
    project.set_policy("");
    project.ctst(["rm", "web"]).ok();
    project.up();
    assert_eq!(project.report(&[], "web").uid_map, [[0, 1_879_048_192, 65536]]);
    project.stop();
}

#[test]
fn a_file_that_is_not_understood_stops_everything_and_names_its_line() {
    for caller in callers().into_iter().take(1) {
        let project = Project::governed(&caller, &web(""), "# x\nmuont = ro /srv\n", &[]);
        let many = "#\n".repeat(1_000_000);
        let cases = [
            ("# x\nmuont = ro /srv\n", "line 2: there is no key `muont`"),
            ("overlay = yes\noverlay = no\n", "line 2: line 1 says `overlay` already"),
            ("mount = ro /srv/../etc\n", "line 1: `/srv/../etc` is no plain path"),
            ("\0\0\0\0", "line 1: it holds a control character"),
            (&many, "is longer than 65536 bytes"),
        ];
        for (policy, words) in cases {
            project.set_policy(policy);
            stopped(&project, words);
        }
        project.set_policy("");
        granted(&project);
    }
}

/// Every command that would start something says why not, and so does doctor.
fn stopped(project: &Project, words: &str) {
    for command in [&["check"][..], &["plan"], &["run", "-d", "--yes"]] {
        project.ctst(command).fails(125, &["[S0409]", words]);
    }
    let doctor: Done = project.ctst(["doctor", "--format", "json"]);
    let checks = doctor.json();
    let check = checks.as_array().unwrap().iter().find(|check| check["name"] == "policy").unwrap();
    assert!(
        doctor.code == 125 && check["status"] == "bad" && check["found"].as_str().unwrap().contains(words),
        "{check}"
    );
    assert!(project.ps().is_empty());
    project.assert_nothing_left();
}

#[test]
fn a_file_that_others_could_have_written_stops_everything() {
    for caller in callers().into_iter().take(1) {
        let project = Project::governed(&caller, &web(""), "", &[]);
        let file = project.policy();
        let folder = file.parent().unwrap();
        let mode = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();

        mode(&file, 0o664);
        stopped(&project, "chmod go-w /etc/containust/policy.conf");
        mode(&file, 0o646);
        stopped(&project, "chmod go-w /etc/containust/policy.conf");
        mode(&file, 0o600);
        stopped(&project, "(chmod a+rX /etc/containust /etc/containust/policy.conf)");
        mode(&file, 0o644);
        for uid in [caller.uid, 12345] {
            chown(&file, Some(uid), None).unwrap();
            stopped(&project, "chown root /etc/containust/policy.conf");
        }
        chown(&file, Some(0), None).unwrap();
        mode(folder, 0o775);
        stopped(&project, "chmod go-w /etc/containust)");
        // Without a file too: who may write the folder may have removed it.
        fs::remove_file(&file).unwrap();
        stopped(&project, "chmod go-w /etc/containust)");
        mode(folder, 0o755);
        chown(folder, Some(caller.uid), None).unwrap();
        stopped(&project, "chown root /etc/containust)");
        chown(folder, Some(0), None).unwrap();
        let etc = folder.parent().unwrap();
        mode(etc, 0o777);
        stopped(&project, "chmod go-w /etc)");
        mode(etc, 0o755);

        fs::write(folder.join("other"), "").unwrap();
        symlink("other", &file).unwrap();
        stopped(&project, "policy.conf is a symbolic link");
        fs::remove_file(&file).unwrap();
        let fifo = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, &file, fifo, rustix::fs::Mode::from_raw_mode(0o644), 0).unwrap();
        mode(&file, 0o644);
        stopped(&project, "policy.conf is no regular file");
        fs::remove_file(&file).unwrap();
        fs::create_dir(&file).unwrap();
        stopped(&project, "policy.conf is no regular file");
        fs::remove_dir(&file).unwrap();
        fs::File::create(&file).unwrap().set_len(2 << 30).unwrap();
        mode(&file, 0o644);
        stopped(&project, "is longer than 65536 bytes");
        fs::remove_file(&file).unwrap();
        granted(&project);
        project.ctst(["rm", "web"]).ok();

        fs::rename(folder, etc.join("elsewhere")).unwrap();
        symlink("elsewhere", folder).unwrap();
        stopped(&project, "/etc/containust is a symbolic link");
    }
}

#[test]
fn doctor_says_what_the_policy_is() {
    for caller in callers() {
        let project = Project::governed(&caller, &web(""), "overlay = yes\nmax_pids = 9\n", &[]);
        let policy = |project: &Project| {
            let checks = project.ctst(["doctor", "--format", "json"]).json();
            checks.as_array().unwrap().iter().find(|check| check["name"] == "policy").unwrap().clone()
        };
        let mode = project.ctst(["doctor"]).ok().stdout;
        assert!(mode.lines().any(|line| line.starts_with("mode") && line.contains("rootless")), "{mode}");
        let check = policy(&project);
        let found = check["found"].as_str().unwrap();
        assert!(check["status"] == "good" && found.contains("at most 9 processes; overlayfs"), "{check}");
        fs::remove_file(project.policy()).unwrap();
        let found = policy(&project)["found"].clone();
        assert_eq!(found, format!("there is no {PATH}: the defaults hold"));
        // Where it tries containers none may be, and that is what it says.
        project.set_policy("mount = deny /tmp\n");
        let doctor = project.ctst(["doctor"]).ok().stdout;
        assert!(doctor.contains("`mount = deny /tmp`") && doctor.contains("set TMPDIR to a folder"), "{doctor}");
    }
}

/// The shim's own verdict: ctst has asked before the file was another, and a container that is started again by itself meets
/// the new one.
#[test]
fn what_was_started_before_the_file_changed_starts_nothing_more() {
    for caller in callers() {
        let text = format!("{}COMPONENT db {{ {SLEEP} }}\n", web(""));
        let project = Project::governed(&caller, &text, "overlay = yes\n", &[]);
        project.up();
        for change in ["overlay = yes\n# another\n", "overlay = no\n"] {
            project.set_policy(change);
            let said = project.ctst(["restart", "web"]);
            assert!(said.code == 125 || project.status("web")["state"] == "failed", "{said}");
            let status = project.status("web").to_string();
            assert!(status.contains("was changed (first: ctst stop)"), "{status}");
            assert_eq!(project.status("db")["state"], "running", "what runs goes on");
        }
        project.set_policy("overlay = yes\n");
        project.ctst(["stop"]).ok();
        project.up();
        project.stop();
    }
}

fn leaving(internal: bool) -> String {
    format!("NETWORK out {{ internal = {internal} }}\n{}", web(", network = \"out\""))
}

#[test]
fn a_way_out_may_be_forbidden() {
    for caller in callers() {
        let project = Project::governed(&caller, &leaving(false), "# ours\negress = no\n", &[]);
        let words = format!(
            "component web: have a way out of its project: line 2 of {PATH} says `egress = no`, so ask the administrator for \
             `egress = yes`"
        );
        refused(&project, &[&words]);
        project.ctst(["check"]).fails(125, &[&words]);
        let doctor = project.ctst(["doctor"]).ok().stdout;
        let told = |name: &str, words: &str| doctor.lines().any(|line| line.starts_with(name) && line.contains(words));
        assert!(told("policy", "no way out of a project") && told("way out", "`egress = no`"), "{doctor}");
        project.write("stack.ctst", &leaving(true));
        granted(&project);
        project.ctst(["rm", "web"]).ok();
        // By itself nothing is offline.
        project.write("stack.ctst", &leaving(false));
        project.ctst(["run", "-d", "--wait", "--offline"]).ok();
        project.stop();
    }
}

/// As with `--offline`, without saying it.
#[test]
fn people_may_be_kept_offline() {
    for caller in callers() {
        let (uid, gid) = (caller.uid, caller.gid);
        let project = Project::governed(&caller, &leaving(false), "", &[54321]);
        for who in ["everyone", &format!("user {uid}"), &format!("group {gid}"), "group 54321"] {
            project.set_policy(&format!("offline = user 4000000\noffline = {who}\n"));
            let stated = format!("line 2 of {PATH} says `offline = {who}`");
            let plan = project.ctst(["plan"]).ok();
            assert!(!plan.stdout.contains("a way out") && plan.stderr.contains(&stated), "{plan}");
            let up = project.ctst(["run", "-d", "--wait"]).ok();
            assert!(up.stderr.contains(&format!("offline: no way out by out ({stated})")), "{up}");
            let is_keeper = |pid: i32| {
                let words = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                words.split('\0').nth(1) == Some("egress")
            };
            assert!(!project.processes().into_keys().any(|(pid, _)| is_keeper(pid)), "nothing could carry it");
            project.stop();
            project.ctst(["rm"]).ok();
            let doctor = project.ctst(["doctor"]).ok().stdout;
            assert!(doctor.contains(&format!("{who} kept offline")) && doctor.contains(&stated), "{doctor}");
        }
        // What would be fetched is refused before any socket, as is what the command of a secret would reach.
        project.write("stack.ctst", "IMPORT \"https://localhost:1/a.ctst\"\n");
        project.ctst(["lock"]).fails(125, &["nothing is fetched: line 2 of", "`offline = group 54321`"]);
        let calls = format!("{}:{}:{}:0", libc::SYS_socket, libc::AF_INET, libc::SOCK_STREAM);
        let text = format!(
            "SECRET tries FROM COMMAND \"ROOTFS/bin/ctst-probe calls {calls}\"\nCOMPONENT one {{ image = \"file://ROOTFS\" \
             command = [\"/bin/ctst-probe\", \"hold\"] secrets = [\"tries\"] }}\n"
        );
        for (policy, told) in [("offline = group 54321\n", "1"), ("offline = group 54322\n", "0")] {
            project.set_policy(policy);
            project.write("stack.ctst", &text);
            project.ctst(["run", "-d", "--wait", "--yes"]).ok();
            let answers = project.ctst(["exec", "one", "cat", "/run/secrets/tries"]).ok();
            assert_eq!(answers.stdout, told, "{policy}");
            project.stop();
            project.ctst(["rm"]).ok();
        }
        // A file that is not understood may say so.
        project.set_policy("ofline = everyone\n");
        project.write("stack.ctst", "IMPORT \"https://localhost:1/a.ctst\"\n");
        project.ctst(["lock"]).fails(125, &["nothing is fetched:", "line 1: there is no key `ofline`"]);
    }
}
