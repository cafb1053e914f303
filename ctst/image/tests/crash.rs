//! Kills, full disks, races between processes, and workers. Without the usual harness, because this program is also the
//! process that is killed, `crash import STORE SOURCE`, and the worker, `crash worker JOB TARGET`.

mod common;

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use common::tarball::*;
use common::*;
use containust_image::model::Ownership;
use containust_image::{
    Algorithm, Answer, Direct, Error, How, Job, Owners, Progress, Report, Request, Runner, Source, Store, UnpackJob,
    read_answer,
};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [verb, store, source] = &args[..]
        && verb == "import"
    {
        let source = Path::new(source);
        let request = if source.is_dir() { file(source) } else { archive(source) };
        match import(&Store::at(Path::new(store)), &request) {
            Ok(image) => println!("{}", image.digest),
            Err(error) => {
                println!("{} {error}", error.code());
                std::process::exit(1);
            }
        }
        return;
    }
    if let [verb, job, target] = &args[..]
        && verb == "worker"
    {
        std::process::exit(containust_image::worker_main(job, Path::new(target)));
    }
    let tests: [(&str, fn()); 6] = [
        ("kill_an_import_of_an_archive", kill_an_import_of_an_archive),
        ("a_worker_has_the_ids_of_its_map", a_worker_has_the_ids_of_its_map),
        ("a_worker_is_not_believed", a_worker_is_not_believed),
        ("kill_at_any_moment", kill_at_any_moment),
        ("processes_share_one_layer", processes_share_one_layer),
        ("full_disk", full_disk),
    ];
    for (name, test) in tests {
        if args.iter().all(|arg| arg.starts_with('-') || name.contains(arg.as_str())) {
            let start = Instant::now();
            test();
            println!("test {name} ... ok ({:.1?})", start.elapsed());
        }
    }
}

fn start(store: &Path, source: &Path) -> Child {
    let me = std::env::current_exe().unwrap();
    Command::new(me).arg("import").args([store, source]).stdout(Stdio::piped()).spawn().unwrap()
}

fn finish(child: Child) -> (bool, String) {
    let output = child.wait_with_output().unwrap();
    (output.status.success(), String::from_utf8(output.stdout).unwrap().trim().to_owned())
}

/// A tree that takes long enough to be killed at different places.
fn tree(scratch: &Path) -> PathBuf {
    let root = scratch.join("root");
    small_tree(&root);
    for index in 0..400 {
        write(&root.join(format!("many/{}/{index}", index % 20)), vec![index as u8; 20_000]);
    }
    root
}

fn kill_at_any_moment() {
    let scratch = Scratch::new();
    let root = tree(&scratch);
    let store = scratch.join("images");
    let reference = import(&Store::at(&scratch.join("reference")), &file(&root)).unwrap();
    let begun = Instant::now();
    assert!(finish(start(&store, &root)).0);
    let whole = begun.elapsed();
    let (mut killed, mut half) = (0, 0);
    for round in 0..60 {
        // A new state of the source, so that there is something to import.
        chmod(&root.join("etc/passwd"), if round % 2 == 0 { 0o600 } else { 0o644 });
        let _ = remove_layers(&store);
        let mut child = start(&store, &root);
        std::thread::sleep(whole.mul_f64(f64::from(round) / 60.0));
        killed += usize::from(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        finish(child);
        half += usize::from(names(&store.join("staging")).len() > 1);
        for layer in names(&store.join("layers")) {
            assert_eq!(facts(&store.join("layers").join(layer).join("tree")), facts(&root), "round {round}");
        }
    }
    // How many depends on what else the machine does.
    assert!(killed > 0 && half > 0, "the kills came too early or too late: {killed}, {half}");
    chmod(&root.join("etc/passwd"), 0o644);
    let image = import(&Store::at(&store), &file(&root)).unwrap();
    assert_eq!(image.digest, reference.digest);
    assert_eq!(facts(&image.layers[0]), facts(&root));
    // What is found may have been there already, so that only a further import is sure to clean.
    write(&root.join("new"), "");
    import(&Store::at(&store), &file(&root)).unwrap();
    assert_eq!(names(&store.join("staging")), ["lock"]);
}

fn remove_layers(store: &Path) -> std::io::Result<()> {
    for layer in fs::read_dir(store.join("layers"))? {
        containust_image::remove_tree(&layer?.path()).unwrap();
    }
    Ok(())
}

fn processes_share_one_layer() {
    let scratch = Scratch::new();
    let root = tree(&scratch);
    let store = scratch.join("images");
    let children: Vec<Child> = (0..4).map(|_| start(&store, &root)).collect();
    let results: Vec<_> = children.into_iter().map(finish).collect();
    assert!(results.iter().all(|(ok, digest)| *ok && digest == &results[0].1), "{results:?}");
    assert_eq!(names(&store.join("layers")).len(), 1);
    assert_eq!(names(&store.join("staging")), ["lock"]);
}

fn full_disk() {
    let scratch = Scratch::new();
    let root = tree(&scratch);
    let disk = scratch.join("disk");
    fs::create_dir(&disk).unwrap();
    // 9 MB of content on a disk of 4.
    let script = r#"mount -t tmpfs -o size=4m,mode=0755 tmpfs "$1" && { "$0" import "$1/images" "$2"; ls -A "$1/images/staging" "$1/images/layers"; }"#;
    let output = Command::new("unshare")
        .args(["-Urm", "sh", "-c", script])
        .arg(std::env::current_exe().unwrap())
        .args([&disk, &root])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    if text.is_empty() {
        println!("test full_disk ... NOT RUN: {}", String::from_utf8_lossy(&output.stderr).trim());
        return;
    }
    assert!(text.starts_with("I002 ") && text.contains("the disk is full"), "{text}");
    assert!(text.contains(disk.to_str().unwrap()), "{text}");
    let left: Vec<&str> = text.lines().skip(1).filter(|line| !line.is_empty() && !line.ends_with(':')).collect();
    assert_eq!(left, ["lock"], "{text}");
}

fn archive(path: &Path) -> Request<'static> {
    Request { source: Source::Tar(path.into()), ownership: Ownership::Caller, pin: None }
}

/// Two layers with many files.
fn image_archive(scratch: &Path) -> PathBuf {
    let layer = |name: &str| {
        let mut tar = Tarball::new().dir("etc", 0o755);
        for index in 0..300 {
            tar =
                tar.add(format!("etc/{name}{index}").as_bytes(), Head { uid: index, ..Head::default() }, &[1; 20_000]);
        }
        tar.file("etc/.wh.gone", "").end()
    };
    save(&scratch.join("image.tar"), docker(&[layer("a"), layer("b")], "{}"))
}

fn kill_an_import_of_an_archive() {
    let scratch = Scratch::new();
    let path = image_archive(&scratch);
    let store = scratch.join("images");
    let begun = Instant::now();
    assert!(finish(start(&store, &path)).0);
    let whole = begun.elapsed();
    let (mut killed, mut half) = (0, 0);
    for round in 0..30 {
        let _ = remove_layers(&store);
        let mut child = start(&store, &path);
        std::thread::sleep(whole.mul_f64(f64::from(round) / 30.0));
        killed += usize::from(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        finish(child);
        half += usize::from(names(&store.join("staging")).len() > 1);
        for layer in names(&store.join("layers")) {
            let entries = names(&store.join("layers").join(&layer).join("tree/etc")).len();
            assert_eq!(entries, if layer.ends_with("-lowest") { 300 } else { 301 }, "round {round}: {layer}");
        }
    }
    assert!(killed > 0 && half > 0, "the kills came too early or too late: {killed}, {half}");
    let _ = remove_layers(&store);
    let image = import(&Store::at(&store), &archive(&path)).unwrap();
    assert_eq!((image.layers.len(), names(&store.join("staging"))), (2, vec!["lock".to_owned()]));
    Store::at(&store).verify(&format!("tar://{}", path.display()), &Direct).unwrap();
}

/// Runs jobs in this program, in the user namespace of the process `holder`.
struct Namespace {
    holder: Child,
}

impl Namespace {
    fn new(base: u32, count: u32) -> Option<Namespace> {
        let holder = Command::new("unshare").args(["-U", "sleep", "600"]).spawn().ok()?;
        let proc = PathBuf::from(format!("/proc/{}", holder.id()));
        let begun = Instant::now();
        while fs::read_link(proc.join("ns/user")).ok()? == fs::read_link("/proc/self/ns/user").ok()? {
            assert!(begun.elapsed().as_secs() < 20, "unshare does not start");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        for map in ["uid_map", "gid_map"] {
            fs::write(proc.join(map), format!("0 {base} {count}")).ok()?;
        }
        Some(Namespace { holder })
    }

    fn run(&self, job: &Job, folder: &Path, stdin: Stdio, progress: &mut dyn FnMut(Progress)) -> Result<Answer, Error> {
        let pid = self.holder.id().to_string();
        let mut child = Command::new("nsenter")
            .args(["-t", &pid, "-U", "-S", "0", "-G", "0", "--"])
            .arg(std::env::current_exe().unwrap())
            .args(["worker", &job.to_argument(), "."])
            // The folders above are closed to the namespace's root, as a worker has only this one.
            .current_dir(folder)
            .stdin(stdin)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let answer = read_answer(std::io::BufReader::new(child.stdout.take().unwrap()), progress);
        let code = child.wait().unwrap().code();
        assert_eq!(code, Some(if answer.is_ok() { 0 } else { 125 }), "{answer:?}");
        answer
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        self.holder.kill().unwrap();
        self.holder.wait().unwrap();
    }
}

impl Runner for Namespace {
    fn unpack(
        &self,
        job: &UnpackJob,
        archive: OwnedFd,
        target: &Path,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Report, Error> {
        match self.run(&Job::Unpack(job.clone()), target, archive.into(), progress)? {
            Answer::Report(report) => Ok(*report),
            _ => panic!("another answer"),
        }
    }

    fn digest(&self, owners: Owners, algorithm: Algorithm, tree: &Path) -> Result<String, Error> {
        match self.run(&Job::Digest(owners, algorithm), tree, Stdio::null(), &mut |_| {})? {
            Answer::Digest(digest) => Ok(digest),
            _ => panic!("another answer"),
        }
    }

    fn is_mapped(&self) -> bool {
        true
    }
}

fn a_worker_has_the_ids_of_its_map() {
    let base = 70_000;
    let namespace = rustix::process::geteuid().is_root().then(|| Namespace::new(base, 1000)).flatten();
    let Some(namespace) = namespace else {
        println!("test a_worker_has_the_ids_of_its_map ... NOT RUN: needs root and user namespaces");
        return;
    };
    let scratch = Scratch::new();
    let path = image_archive(&scratch);
    let reference = format!("tar://{}", path.display());
    let how = How { runner: &namespace, ..How::default() };
    let store = Store::at(&scratch.join("images"));
    let shifted = Request { ownership: Ownership::Shifted { base, count: 1000 }, ..archive(&path) };
    let mut seen = 0;
    let image = store.import_with(&shifted, how, &mut |_| seen += 1).unwrap();
    assert!(seen >= 2, "{seen}");
    assert_eq!(image.layers[1].join("etc/a299").metadata().unwrap().uid(), base + 299);
    assert_eq!(image.layers[0].join("etc/gone").symlink_metadata().unwrap().uid(), base);
    assert_eq!(store.find(&shifted).unwrap(), Some(image.clone()));
    store.verify(&reference, &namespace).unwrap();
    fs::write(image.layers[1].join("etc/a299"), "other").unwrap();
    assert!(matches!(store.verify(&reference, &namespace), Err(Error::Damaged { .. })));

    // The same map, without a container.
    let direct = Store::at(&scratch.join("direct"));
    let other = import(&direct, &shifted).unwrap();
    assert_eq!(other.layers[1].join("etc/a299").metadata().unwrap().uid(), base + 299);
    direct.verify(&reference, &Direct).unwrap();
    direct.verify(&reference, &namespace).unwrap();

    // Too few ids: the worker's own error, and nothing stays.
    let few = Store::at(&scratch.join("few"));
    let request = Request { ownership: Ownership::Shifted { base, count: 200 }, ..shifted.clone() };
    let error = few.import_with(&request, how, &mut |_| {}).unwrap_err();
    assert_eq!(error.code(), "I012", "{error}");
    assert!(error.to_string().contains("etc/a200` belongs to id 200, the range has 200 ids"), "{error}");
    assert!(error.help().unwrap().contains("at least 201 ids"), "{:?}", error.help());
    assert_eq!(
        (names(&few_dir(&scratch, "layers")), names(&few_dir(&scratch, "staging"))),
        (vec![], vec!["lock".into()])
    );
    // Ids that only a container can give.
    let subordinate = Ownership::Subordinate { uid: 70_000, gid: 70_000, count: 1000 };
    let request = Request { ownership: subordinate, ..shifted };
    assert!(matches!(import(&few, &request), Err(Error::NoWorker)));
}

fn few_dir(scratch: &Path, name: &str) -> PathBuf {
    scratch.join("few").join(name)
}

/// A worker that a hostile archive has taken over.
struct Liar(fn(&mut Report, &Path));

impl Runner for Liar {
    fn unpack(
        &self,
        job: &UnpackJob,
        archive: OwnedFd,
        target: &Path,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Report, Error> {
        let mut report = Direct.unpack(job, archive, target, progress)?;
        (self.0)(&mut report, target);
        Ok(report)
    }
}

fn a_worker_is_not_believed() {
    let scratch = Scratch::new();
    let path = image_archive(&scratch);
    write(&scratch.join("victim/tree/file"), "safe");
    let lies: [fn(&mut Report, &Path); 9] = [
        |report, _| report.digest = "../../x".into(),
        |report, _| report.layers.clear(),
        |report, _| report.layers[0].diff = format!("../{}", "0".repeat(61)),
        |report, _| report.layers[0].made = None,
        |report, _| report.layers[1].diff = report.layers[0].diff.clone(),
        |report, _| report.layers.iter_mut().for_each(|layer| layer.is_lowest = true),
        |report, _| report.layers[0].made.as_mut().unwrap().folder = "../../../../victim".into(),
        |report, _| report.layers[0].made.as_mut().unwrap().tree = "no digest".into(),
        |_, target| {
            let tree = target.join("0/tree");
            containust_image::remove_tree(&tree).unwrap();
            std::os::unix::fs::symlink("/etc", tree).unwrap();
        },
    ];
    for (n, lie) in lies.into_iter().enumerate() {
        let store = Store::at(&scratch.join("images"));
        let how = How { runner: &Liar(lie), ..How::default() };
        let result = store.import_with(&archive(&path), how, &mut |_| {});
        assert!(result.is_err(), "lie {n}: {result:?}");
        assert_eq!(names(&scratch.join("images/layers")), Vec::<String>::new(), "lie {n}");
        assert_eq!(names(&scratch.join("images/staging")), ["lock"], "lie {n}");
        assert_eq!(fs::read(scratch.join("victim/tree/file")).unwrap(), b"safe");
    }
    // Whatever it says, and when it says nothing.
    let long = format!("{{\"error\":{{\"code\":\"I001\",\"text\":\"{}\",\"help\":null}}}}\n", "x".repeat(100_000));
    let answers: [(&str, &str, &str); 6] = [
        ("", "I040", "ended without an answer"),
        ("{\"progress\":\"Scanning\"}\n", "I040", "ended without an answer"),
        ("{\"progress\":\"Scan", "I040", "ended without an answer"),
        ("hello\n", "I040", "not understood"),
        ("{\"error\":{\"code\":\"evil\",\"text\":\"a\\u001b[2Jb\",\"help\":null}}\n", "I040", "a\\u{1b}[2Jb"),
        (&long, "I001", "xxx"),
    ];
    for (text, code, expected) in answers {
        let error = read_answer(text.as_bytes(), &mut |_| {}).unwrap_err();
        assert_eq!(error.code(), code, "{text:.60}");
        assert!(error.to_string().contains(expected) && error.to_string().len() < 10_000, "{text:.60}");
    }
}
