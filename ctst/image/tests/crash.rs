//! Kills, full disks and races between processes. Without the usual harness, because this program is also the process
//! that is killed: `crash import STORE SOURCE`.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use common::*;
use containust_image::Store;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [verb, store, source] = &args[..]
        && verb == "import"
    {
        match import(&Store::at(Path::new(store)), &file(Path::new(source))) {
            Ok(image) => println!("{}", image.digest),
            Err(error) => {
                println!("{} {error}", error.code());
                std::process::exit(1);
            }
        }
        return;
    }
    let tests: [(&str, fn()); 3] = [
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
