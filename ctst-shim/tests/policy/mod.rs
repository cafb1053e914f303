//! The administrator's policy as C judges by it: for plans that no ctst would send, and in the words in which `ctst plan` says
//! it beforehand. Root's own tests: each has an `/etc` of its own, in a mount namespace of its own.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::common::{Image, Project, is_root, network, pair, receive, request, send, shim, source};
use command_fds::{CommandFdExt, FdMapping};
use containust_policy::capabilities::DEFAULT;
use containust_policy::conf::PATH;
use containust_shared::protocol::{
    FromContainer, FromSandbox, FromShim, IdMap, MAIN, Mount, Plan, Sandbox, ToSandbox, ToShim,
};

/// A folder that takes the place of `/etc`, with this policy in it.
struct Etc(tempfile::TempDir);

impl Etc {
    fn new(policy: &str) -> Option<Self> {
        if !is_root() {
            eprintln!("skipped: only root mounts over /etc");
            return None;
        }
        let etc = Self(tempfile::tempdir().unwrap());
        fs::set_permissions(etc.0.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        for name in ["passwd", "group"] {
            fs::copy(Path::new("/etc").join(name), etc.0.path().join(name)).unwrap();
        }
        fs::create_dir(etc.0.path().join("containust")).unwrap();
        etc.set(policy);
        Some(etc)
    }

    fn file(&self) -> PathBuf {
        self.0.path().join("containust/policy.conf")
    }

    fn set(&self, policy: &str) {
        fs::write(self.file(), policy).unwrap();
    }

    /// A command that sees it.
    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", r#"mount --bind "$0" /etc && exec "$@""#]);
        command.arg(self.0.path()).arg(program);
        command
    }

    /// What the shim first says to a request.
    fn ask(&self, request: &Sandbox) -> (OwnedFd, FromShim, Vec<OwnedFd>) {
        let (ours, theirs) = pair();
        let mut command = self.command(&shim());
        command.fd_mappings(vec![FdMapping { parent_fd: theirs, child_fd: 3 }]).unwrap();
        let mut shim = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // The mapping keeps the other end, without which nobody would hear of the shim's end.
        drop(command);
        send(&ours, &ToShim::Sandbox(*request), &[]);
        let (answer, fds) = receive(&ours).unwrap();
        shim.wait().unwrap();
        (ours, answer, fds)
    }

    fn project(&self) -> Project {
        let (channel, answer, mut fds) = self.ask(&request());
        assert!(matches!(answer, FromShim::Created { .. }), "{answer:?}");
        assert_eq!(receive(&channel).map(|(m, _)| m), Some(FromShim::Ready));
        Project { channel, init: fds.remove(0), networks: vec![network(0)], next: 0 }
    }
}

fn denied(project: &mut Project, plan: Plan) -> String {
    let (answer, channel) = project.run(plan);
    let FromContainer::Denied { reasons } = answer else { panic!("{answer:?}") };
    assert!(receive::<FromContainer>(&channel).is_none(), "C ends after a refusal");
    reasons
}

fn granted(project: &mut Project, plan: Plan) {
    let (answer, _channel) = project.run(plan);
    assert!(matches!(answer, FromContainer::Started { id: MAIN, .. }), "{answer:?}");
}

fn bind(path: &Path, readonly: bool) -> Mount {
    Mount::Bind { source: source(path), target: b"/x".into(), readonly }
}

#[test]
fn capabilities_are_given_as_a_line_says() {
    const NET_RAW: u64 = 1 << 13;
    let Some(etc) = Etc::new("capability = NET_RAW\n") else { return };
    let image = Image::new();
    let asking = |capabilities| Plan { capabilities, ..image.plan() };
    let mut project = etc.project();
    granted(&mut project, asking(DEFAULT | NET_RAW));
    granted(&mut project, asking(DEFAULT));
    let said = denied(&mut project, asking(DEFAULT | NET_RAW | 1 << 27));
    assert_eq!(
        said,
        "give root CAP_MKNOD: line 1 of /etc/containust/policy.conf says `capability = NET_RAW`, so ask the administrator for \
         `capability = MKNOD`"
    );
    etc.set("capability = none\n");
    let mut project = etc.project();
    granted(&mut project, asking(DEFAULT));
    assert!(denied(&mut project, asking(DEFAULT | NET_RAW)).contains("`capability = none`"));
}

/// The path is the kernel's: no way of writing it leads past a line.
#[test]
fn paths_are_judged_as_the_kernel_follows_them() {
    let (open, closed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let text = format!("mount = deny {}\n", closed.path().display());
    let Some(etc) = Etc::new(&text) else { return };
    let image = Image::new();
    let with = |mounts| Plan { mounts, ..image.plan() };
    let mut project = etc.project();
    granted(&mut project, with(vec![bind(open.path(), false)]));
    denied(&mut project, with(vec![bind(closed.path(), true)]));
    let path = closed.path().display().to_string();
    for way in [
        format!("{path}/"),
        format!("/{path}"),
        format!("/.{path}"),
        format!("{path}/."),
        format!("{}/../..{path}", open.path().display()),
        format!("/proc/self/root{path}"),
        format!("/proc/1/root{path}"),
    ] {
        let Mount::Bind { mut source, target, readonly } = bind(closed.path(), true) else { panic!("a bind") };
        source.path = way.clone().into_bytes();
        let (answer, channel) = project.run(with(vec![Mount::Bind { source, target, readonly }]));
        let refused = matches!(answer, FromContainer::Denied { .. } | FromContainer::Failed { id: MAIN, .. });
        assert!(refused && receive::<FromContainer>(&channel).is_none(), "{way}: {answer:?}");
    }
    // As whatever else: layers and the writable layer are host paths, too.
    for folder in ["root", "upper", "work"] {
        fs::create_dir(closed.path().join(folder)).unwrap();
    }
    let at = |name: &str| source(&closed.path().join(name));
    assert!(denied(&mut project, Plan { layers: vec![at("root")], ..image.plan() }).starts_with("read the image in "));
    assert!(denied(&mut project, Plan { upper: Some(at("upper")), ..image.plan() }).starts_with("write to "));
    assert!(denied(&mut project, Plan { work: Some(at("work")), ..image.plan() }).starts_with("write to "));
    let bare = Plan { layers: vec![at("root")], upper: None, work: None, ..image.plan() };
    assert!(denied(&mut project, bare).starts_with("write to "), "it is what would be written");
    granted(&mut project, image.plan());
}

#[test]
fn ctst_predicts_in_the_same_words() {
    let ctst = shim().with_file_name("ctst");
    assert!(ctst.exists(), "{} is not there: cargo build --workspace --bins", ctst.display());
    let data = tempfile::tempdir().unwrap();
    let data = data.path().canonicalize().unwrap();
    for name in ["ro", "deny"] {
        fs::create_dir(data.join(name)).unwrap();
    }
    let Some(etc) = Etc::new("") else { return };
    let image = Image::new();
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| data.join(name);
    let rules = format!("mount = ro {0}/ro\nmount = deny {0}/deny\n", data.display());
    let cases = [
        (format!("{rules}overlay = no\n"), vec![(at("ro"), true)], false),
        (rules.clone(), vec![(at("ro"), false), (at("deny"), true)], false),
        (rules.clone(), vec![(data.clone(), true)], false),
        (rules, vec![(at("ro"), true)], true),
    ];
    for (policy, mounts, good) in cases {
        etc.set(&policy);
        let volume = |(number, (path, readonly)): (usize, &(PathBuf, bool))| {
            format!("\"{}:/x{number}{}\"", path.display(), if *readonly { ":ro" } else { "" })
        };
        let volumes: Vec<_> = mounts.iter().enumerate().map(volume).collect();
        let text = format!(
            "COMPONENT web {{ image = \"file://{}\", command = [\"/probe\"], volumes = [{}] }}\n",
            image.root().display(),
            volumes.join(", ")
        );
        fs::write(folder.path().join("stack.ctst"), text).unwrap();
        let plan = etc.command(&ctst).arg("plan").current_dir(folder.path()).output().unwrap();
        let said = String::from_utf8_lossy(&plan.stderr).into_owned();

        let mounts = mounts.iter().map(|(path, readonly)| bind(path, *readonly)).collect();
        let mut project = etc.project();
        if good {
            assert_eq!(plan.status.code(), Some(0), "{said}");
            granted(&mut project, Plan { mounts, ..image.plan() });
        } else {
            assert_eq!(plan.status.code(), Some(125), "{said}");
            let reasons = denied(&mut project, Plan { mounts, ..image.plan() });
            assert_eq!(said, format!("error[S0410]: component web: {reasons}\n"));
        }
    }
}

#[test]
fn a_file_that_is_not_understood_starts_nothing() {
    let Some(etc) = Etc::new("overlay = yes\nmount = x\n") else { return };
    let (_, answer, fds) = etc.ask(&request());
    let FromShim::Failed(failure) = answer else { panic!("{answer:?}") };
    assert!(fds.is_empty() && failure.step.contains("line 2: `x` is no access"), "{failure:?}");
    // Nor one that is changed while a project runs, whatever it is changed to.
    etc.set("");
    let image = Image::new();
    let mut project = etc.project();
    granted(&mut project, image.plan());
    etc.set("overlay = yes\n");
    for again in [true, false] {
        let (answer, channel) = project.run(image.plan());
        let FromContainer::Failed { id: MAIN, code: 125, failure } = answer else { panic!("{answer:?}") };
        assert!(failure.step.contains("was changed (first: ctst stop)"), "{failure:?}");
        assert!(receive::<FromContainer>(&channel).is_none());
        if again {
            fs::remove_file(etc.file()).unwrap();
        }
    }
    // One that appears where there was none is as much a change.
    let mut project = etc.project();
    granted(&mut project, image.plan());
    etc.set("");
    let (answer, _channel) = project.run(image.plan());
    assert!(matches!(answer, FromContainer::Failed { id: MAIN, code: 125, .. }), "{answer:?}");
    granted(&mut etc.project(), image.plan());
}

#[test]
fn root_gets_the_range_of_the_policy_and_no_other() {
    let Some(etc) = Etc::new("root_range = 1900000000 1000\n") else { return };
    let asking = |first, count| etc.ask(&Sandbox { map: IdMap::Range { first, count }, ..request() });
    for (first, count) in [(1_879_048_192, 65_536), (1_900_000_000, 1001), (1_900_000_001, 1000), (0, 1000), (0, 0)] {
        let (_, answer, fds) = asking(first, count);
        let FromShim::Failed(failure) = answer else { panic!("{answer:?}") };
        assert!(fds.is_empty() && failure.step.contains("1000 from 1900000000"), "{failure:?}");
    }
    let (_channel, answer, _) = asking(1_900_000_000, 1000);
    let FromShim::Created { pid } = answer else { panic!("{answer:?}") };
    let map = fs::read_to_string(format!("/proc/{pid}/uid_map")).unwrap();
    assert_eq!(map.split_whitespace().collect::<Vec<_>>(), ["0", "1900000000", "1000"]);
}

/// By S, whose device it would be.
#[test]
fn a_way_out_is_refused() {
    for policy in ["egress = no", "offline = everyone", "offline = user root", "offline = group 0"] {
        let Some(etc) = Etc::new(policy) else { return };
        let project = etc.project();
        send(&project.channel, &ToSandbox::Tap, &[]);
        let Some((FromSandbox::TapFailed(failure), fds)) = receive(&project.channel) else { panic!("no answer") };
        let stated = format!("go beyond the policy: have a way out of its project: line 1 of {PATH} says `{policy}`");
        assert!(fds.is_empty() && failure.step.starts_with(&stated), "{failure:?}");
    }
    let Some(etc) = Etc::new("egress = yes\noffline = user 4000000\n") else { return };
    let project = etc.project();
    send(&project.channel, &ToSandbox::Tap, &[]);
    assert!(matches!(receive(&project.channel), Some((FromSandbox::Tapped, fds)) if fds.len() == 2));
}
