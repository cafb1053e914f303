//! Lazy images: containers that read from an archive which nobody unpacked, and what becomes of them when it, or whoever serves
//! it, is not what it was.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use containust_tests::archive::{Archive, docker, gzip, oci, sha256, xz, zstd};
use containust_tests::{Caller, Done, Project, eventually, finish, programs};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tar::EntryType;

const ALWAYS: &str = "lazy = \"always\"";

/// A component that runs from `a.tar`, which nobody unpacks.
fn lazy(name: &str, more: &str) -> String {
    format!(
        "COMPONENT {name} {{ image = \"tar://./a.tar\" lazy = \"always\" {more}
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
    Caller::at_once(Caller::all(), |caller| {
        let stack = lazy("reads", "") + &lazy("writes", "readonly = false") + &lazy("user", "user = \"somebody\"");
        let project = Project::new(caller, &stack);
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
        assert_eq!(files.lines().count(), 4, "{files}");
        assert_eq!(servers(&project).len(), 3, "{about}");

        // Everything is there, as it is in an image that was unpacked.
        for (name, content) in &sums {
            let sum = sh(&project, "reads", &format!("sha256sum /srv/{name}")).ok().stdout;
            assert!(sum.starts_with(&sha256(content)), "{about}: {name}: {sum}");
        }
        let owner = if is_single(caller) { "0 0" } else { "1000 1001" };
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
    });
}

fn blocks_of_gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).and_then(|()| encoder.finish()).expect("write to memory")
}

fn frames_of_zstd(bytes: &[u8]) -> Vec<u8> {
    bytes.chunks(900_001).flat_map(zstd).collect()
}

/// The same archive in every other form.
fn forms(bytes: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    vec![
        // Of a single block, as its fastest compressor makes it.
        ("gzip", gzip(bytes)),
        ("blocks of gzip", blocks_of_gzip(bytes)),
        ("members of gzip", bytes.chunks(700_001).flat_map(gzip).collect()),
        ("zstd", zstd(bytes)),
        ("frames of zstd", frames_of_zstd(bytes)),
        ("xz", xz(bytes)),
    ]
}

#[test]
fn compressed_archives_are_read_from_the_middle() {
    let bytes = archive().end();
    Caller::at_once(Caller::all(), |caller| {
        for (number, (form, packed)) in forms(&bytes).into_iter().enumerate() {
            // What differs between callers are owners, between forms decoders: not every pair is another case.
            if (caller.uid == 0 || is_single(caller)) && number % 3 != usize::from(is_single(caller)) {
                continue;
            }
            let about = format!("{form} for {}", caller.name);
            let pin = if number % 2 == 0 { format!("@sha256:{}", sha256(&packed)) } else { String::new() };
            let stack = lazy("web", "readonly = false").replace("a.tar", &format!("a.tar{pin}"));
            let project = Project::new(caller, &stack);
            project.write_bytes("a.tar", &packed);
            project.up();
            let status = project.status("web");
            let algorithm = if pin.is_empty() { "blake3:" } else { "sha256:" };
            let digest = status["digest"].as_str().expect("a digest");
            assert!(status["lazy"] == true && digest.starts_with(algorithm), "{about}: {status}");
            // Of the last file first.
            for (name, content) in [("late/19", noise(50_000)), ("large", noise(5_000_000)), ("late/0", noise(50_000))]
            {
                let sum = sh(&project, "web", &format!("sha256sum /srv/{name}")).ok().stdout;
                assert!(sum.starts_with(&sha256(&content)), "{about}: {name}: {sum}");
            }
            let together = "for n in 1 2 3 4 5 6 7 8; do sha256sum /srv/late/* /srv/large & done; wait";
            let sums: BTreeSet<String> = sh(&project, "web", together).ok().stdout.lines().map(str::to_owned).collect();
            assert_eq!(sums.len(), 21, "{about}: {sums:?}");
            let look = "cd /srv; [ owned -ef other-name ] && stat -c %h owned && cat many/* | wc -l && find . | wc -l";
            assert_eq!(sh(&project, "web", look).ok().stdout, "2\n2000\n2030\n", "{about}");
            sh(&project, "web", "cd /srv; echo more >> tagged; rm many/7; ! ls many/7 && cat tagged").ok();
            project.ctst(["images", "verify"]).ok();
            project.ctst(["restart", "web"]).ok();
            assert_eq!(sh(&project, "web", "cat /srv/tagged").ok().stdout, "tagged\nmore\n", "{about}");
            project.stop();
        }
    });
}

/// Each of them comes out of the decoder alone, and tens of thousands lie in one piece of the index.
#[test]
fn an_archive_may_consist_of_tiny_members() {
    let bytes = archive().file("srv/tiny", noise(100_000)).end();
    let (rest, tiny) = bytes.split_at(bytes.len() - 110_000);
    let stored = |byte: &u8| {
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::none());
        packed.write_all(&[*byte]).and_then(|()| packed.finish()).expect("write to memory")
    };
    let project = Project::new(&Caller::ordinary(), &lazy("web", ""));
    project.write_bytes("a.tar", &[gzip(rest), tiny.iter().flat_map(stored).collect()].concat());
    project.up();
    let sum = sh(&project, "web", "sha256sum /srv/tiny").ok().stdout;
    assert!(sum.starts_with(&sha256(&noise(100_000))), "{sum}");
    project.stop();
}

#[test]
fn layers_are_one_file_system() {
    let low = archive().file("srv/below/a", "a").file("srv/below/b", "b").file("srv/stays", "low\n").end();
    let middle = Archive::new()
        .file("srv/.wh.link", "")
        .file("srv/many/.wh.7", "")
        .folder("srv/late/")
        .file("srv/late/.wh..wh..opq", "")
        .file("srv/late/mine", "mine\n")
        .entry(EntryType::Regular, "srv/owned", 0o600, (1000, 1001), "", b"changed\n")
        .entry(EntryType::Link, "srv/again", 0o600, (1000, 1001), "srv/owned", b"")
        .end();
    let top = Archive::new().file("srv/.wh.below", "").file("srv/below/c", "c").file("srv/top", noise(3_000_000)).end();
    let config = json!({ "Entrypoint": ["/bin/sh", "-c"], "Cmd": ["echo $SAYS; id -u; exec /bin/ctst-probe hold"],
        "Env": ["SAYS=from the image"], "User": "somebody", "WorkingDir": "/srv",
        "Volumes": { "/srv/late": {} } });
    let layers = [low, middle, top];
    let image = docker(&layers, &config);
    let forms = [
        ("docker save", image.clone()),
        ("compressed by gzip", gzip(&image)),
        ("an OCI layout", oci(&layers, &config)),
    ];
    let look = "cd /srv; ls late below; cat owned again stays; stat -c %h again; ls many | wc -l; sha256sum top; \
                ls link many/7; pwd; ls | wc -l";
    Caller::at_once(Caller::all(), |caller| {
        let unpacked = Project::new(caller, "COMPONENT web { image = \"tar://./a.tar\" }\n");
        unpacked.write_bytes("a.tar", &image);
        unpacked.up();
        let expected = sh(&unpacked, "web", look).stdout;
        assert!(expected.starts_with("below:\nc\n\nlate:\nmine\nchanged\nchanged\nlow\n2\n1999\n"), "{expected}");
        let log = unpacked.logs("web");
        unpacked.stop();
        for (number, (form, packed)) in forms.iter().enumerate() {
            let about = format!("{form} for {}", caller.name);
            let pin = if number % 2 == 1 { format!("@sha256:{}", sha256(packed)) } else { String::new() };
            let stack = format!("COMPONENT web {{ image = \"tar://./a.tar{pin}\" lazy = true }}\n");
            let project = Project::new(caller, &stack);
            project.write_bytes("a.tar", packed);
            project.up();
            assert_eq!(sh(&project, "web", look).stdout, expected, "{about}");
            assert_eq!(project.logs("web"), log, "{about}");
            assert!(project.status("web")["lazy"] == true && servers(&project).len() == 1, "{about}");
            project.stop();
        }
    });
}

#[test]
fn a_compressed_archive_that_changes_gives_errors_and_a_line() {
    let bytes = archive().end();
    Caller::at_once(Caller::all(), |caller| {
        for (form, packed) in [("gzip", blocks_of_gzip(&bytes)), ("zstd", frames_of_zstd(&bytes))] {
            let about = format!("{form} for {}", caller.name);
            let project = Project::new(caller, &lazy("web", ""));
            project.write_bytes("a.tar", &packed);
            project.up();
            sh(&project, "web", "cat /bin/busybox /bin/ctst-probe /srv/late/1 > /dev/null").ok();
            // One byte of the last file, with the time of before.
            let path = project.folder().join("a.tar");
            let file = File::options().write(true).open(&path).expect("open the archive");
            let time = file.metadata().and_then(|meta| meta.modified()).expect("look at the archive");
            let at = packed.len() - 50_000;
            file.write_all_at(&[packed[at] ^ 1], at as u64).expect("write to the archive");
            file.set_modified(time).expect("set its time");
            sh(&project, "web", "cat /srv/large > /dev/null").fails(1, &["rror"]);
            let log = project.logs("web");
            assert!(log.contains("was changed after the container was started on it"), "{about}: {log}");
            sh(&project, "web", "cat /srv/late/1 > /dev/null; ls /srv/many | wc -l").ok();
            assert_eq!(project.status("web")["state"], "running", "{about}");
            project.stop();
        }
    });
}

#[test]
fn a_copy_in_the_store_that_is_damaged_is_noticed() {
    let bytes = archive().end();
    let caller = Caller::ordinary();
    let project = Project::new(&caller, &lazy("web", ""));
    project.write_bytes("a.tar", &xz(&bytes));
    project.up();
    sh(&project, "web", "cat /bin/busybox /bin/ctst-probe /srv/late/1 > /dev/null").ok();
    let data = project.folder().join(".containust/images/layers").join(&layers(&project)[0]).join("data");
    let mut copy = fs::read(&data).expect("read the copy");
    assert_eq!(copy.len(), bytes.len(), "all of it was decompressed");
    let middle = copy.len() - 2_000_000;
    copy[middle] ^= 1;
    fs::write(&data, copy).expect("damage the copy");
    sh(&project, "web", "cat /srv/large > /dev/null").fails(1, &["rror"]);
    let log = project.logs("web");
    assert!(log.contains("what the image store keeps of archive `") && log.contains("is damaged"), "{log}");
    let verified = project.ctst(["images", "verify"]);
    assert!(verified.code == 1 && verified.stdout.contains("changed"), "{verified}");
    project.stop();
}

/// A root file system with a file of 300 MB of nothing, which takes no room on a disk.
fn write_large(project: &Project) {
    let bytes = Archive::root().entry(EntryType::Regular, "srv/large", 0o644, (0, 0), "", b"").end();
    let mut header =
        tar::Header::from_byte_slice(bytes[bytes.len() - 1536..][..512].try_into().expect("a header")).clone();
    header.set_size(300_000_000 / 512 * 512);
    header.set_cksum();
    project.write_bytes("a.tar", &[&bytes[..bytes.len() - 1536], header.as_bytes()].concat());
    let file = File::options().write(true).open(project.folder().join("a.tar")).expect("open the archive");
    let length = bytes.len() as u64 + 300_000_000 / 512 * 512;
    file.set_len(length).expect("lengthen the archive");
}

#[test]
fn large_archives_are_not_unpacked_where_nobody_says_so() {
    let stack = lazy("web", "").replace(ALWAYS, "");
    Caller::at_once(Caller::all(), |caller| {
        let project = Project::new(caller, &stack);
        write_large(&project);
        assert!(project.ctst(["plan"]).ok().stdout.contains("indexed, and read from its archive"), "{}", caller.name);
        project.up();
        assert_eq!(sh(&project, "web", "wc -c < /srv/large").ok().stdout, "299999744\n");
        assert!(project.status("web")["lazy"] == true && servers(&project).len() == 1, "{}", caller.name);
        let again = project.ctst(["run", "-d", "--yes"]).ok();
        assert!(!again.stderr.contains("import") && !again.stderr.contains("start"), "{again}");
        // Who asks for it has it unpacked, and the next container is made of that.
        project.ctst(["build"]).ok();
        let again = project.ctst(["run", "-d", "--yes"]).ok();
        assert!(!again.stderr.contains("start"), "{again}");
        assert!(project.status("web")["lazy"] == true, "{}", caller.name);
        project.stop();
        let plan = project.ctst(["plan"]).ok().stdout;
        assert!(plan.contains("it is unpacked now"), "{}: {plan}", caller.name);
        project.up();
        assert_eq!((project.status("web")["lazy"].as_bool(), servers(&project).len()), (None, 0), "{}", caller.name);
        assert_eq!(sh(&project, "web", "wc -c < /srv/large").ok().stdout, "299999744\n");
        project.stop();
        fs::remove_dir_all(project.folder().join(".containust/images")).ok();
        project.write("stack.ctst", &stack.replace("command", "lazy = false command"));
        assert!(project.ctst(["plan"]).ok().stdout.contains("will be imported"), "{}", caller.name);
        // Smaller ones are.
        project.write("stack.ctst", &stack);
        project.write_bytes("a.tar", &archive().end());
        assert!(project.ctst(["plan"]).ok().stdout.contains("will be imported"), "{}", caller.name);
        project.stop();
    });
}

#[test]
fn a_large_archive_that_cannot_be_read_from_is_unpacked() {
    let caller = Caller::ordinary();
    let project = Project::new(&caller, &lazy("web", "").replace(ALWAYS, ""));
    // Members with nothing in them but an extra field of 64 KiB.
    let mut empty = flate2::GzBuilder::new().extra(vec![0; 65_000]).write(Vec::new(), flate2::Compression::fast());
    empty.write_all(b"").expect("write to memory");
    let empty = empty.finish().expect("write to memory");
    let packed = [gzip(&oci(&[Archive::root().end()], &json!({}))), empty.repeat((260 << 20) / empty.len())].concat();
    project.write_bytes("a.tar", &packed);
    let run = project.ctst(["run", "-d", "--wait", "--yes"]).ok();
    assert!(run.stderr.contains("it was unpacked") && run.stderr.contains("so are the layers"), "{run}");
    assert_eq!((project.status("web")["lazy"].as_bool(), servers(&project).len()), (None, 0));
    let again = project.ctst(["run", "-d", "--yes"]).ok();
    assert!(!again.stderr.contains("import") && !again.stderr.contains("start"), "{again}");
    project.stop();
}

#[test]
fn a_pin_is_held_with_every_read() {
    let bytes = archive().end();
    Caller::at_once(Caller::all(), |caller| {
        let pinned = |digest: &str| lazy("web", "").replace("a.tar", &format!("a.tar@sha256:{digest}"));
        let project = Project::new(caller, &pinned(&"0".repeat(64)));
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
    });
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
    Caller::at_once(Caller::all(), |caller| {
        for (what, change) in changes {
            let about = format!("{what} for {}", caller.name);
            let project = Project::new(caller, &lazy("web", ""));
            project.write_bytes("a.tar", &bytes);
            project.up();
            // Programs, too.
            sh(&project, "web", "cat /bin/busybox /bin/ctst-probe /srv/late/1 > /dev/null").ok();
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
    });
}

#[test]
fn an_archive_that_is_gone_or_replaced_is_served_as_it_was() {
    let bytes = archive().end();
    Caller::at_once(Caller::all(), |caller| {
        let project = Project::new(caller, &lazy("web", ""));
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
    });
}

#[test]
fn a_server_that_ends_leaves_errors_and_a_line() {
    let bytes = archive().end();
    Caller::at_once(Caller::all(), |caller| {
        let stack = lazy("web", "stop { grace = 1s }") + &lazy("other", "stop { grace = 1s }");
        let project = Project::new(caller, &stack);
        project.write_bytes("a.tar", &bytes);
        project.up();
        // What was read stays: programs among it.
        for name in ["web", "other"] {
            sh(&project, name, "cat /bin/busybox /bin/ctst-probe > /dev/null").ok();
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
    });
}

#[test]
fn a_server_has_nothing_but_what_it_serves() {
    Caller::at_once(Caller::all(), |caller| {
        let project = Project::new(caller, &lazy("web", ""));
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
            let expected = ["a.tar", "data", "fuse", "index", "pipe", "socket"].map(str::to_owned);
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
    });
}

#[test]
fn what_cannot_be_started_from_is_refused_by_name() {
    let root = || Archive::root();
    let odd = |kind, name: &str, link: &str| root().entry(kind, name, 0o644, (0, 0), link, b"").end();
    let damaged = |mut bytes: Vec<u8>, at: usize| {
        let at = bytes.len() - at;
        bytes[at] ^= 1;
        bytes
    };
    let cut = |bytes: Vec<u8>| bytes[..bytes.len() * 2 / 3].to_vec();
    let many: Vec<Vec<u8>> = (0..10_000).map(|number| Archive::new().file("srv/n", number.to_string()).end()).collect();
    let other = |layer: &[u8]| {
        let image = docker(&[layer.to_vec()], &json!({}));
        let at = image.windows(6).position(|window| window == b"owned\n").expect("it is there");
        let mut image = image;
        image[at] = b'O';
        image
    };
    let hidden = |name: &str| docker(&[root().end(), Archive::new().file(name, "").end()], &json!({}));
    let mut bomb = ::zstd::stream::Encoder::new(Vec::new(), 1).expect("an encoder");
    let zeros = vec![0; 1 << 20];
    let head = Archive::new().folder("etc/").entry(EntryType::Regular, "etc/b", 0o644, (0, 0), "", &zeros).end();
    let mut header = tar::Header::from_byte_slice(head[512..1024].try_into().expect("a header")).clone();
    header.set_size(4 << 30);
    header.set_cksum();
    bomb.write_all(&head[..512]).and_then(|()| bomb.write_all(header.as_bytes())).expect("write to memory");
    (0..4096).for_each(|_| bomb.write_all(&zeros).expect("write to memory"));
    bomb.write_all(&[0; 1024]).expect("write to memory");
    let bomb = bomb.finish().expect("write to memory");
    // A file of 60 GiB, by what its header says.
    let claim = {
        header.set_size(60 << 30);
        header.set_cksum();
        [&head[..512], header.as_bytes(), &[0; 4096]].concat()
    };
    let cases = [
        (damaged(gzip(&root().end()), 6), vec!["does not have a matching checksum"]),
        // Which of its parts are no more what they were depends on the byte.
        (damaged(gzip(&archive().end()), 100_000), vec!["damaged"]),
        (cut(gzip(&root().end())), vec!["ends in the middle of its compressed data"]),
        (cut(zstd(&root().end())), vec!["ends in the middle of its compressed data"]),
        (cut(xz(&root().end())), vec!["ends in the middle of its compressed data"]),
        (
            [gzip(&root().end()), b"more than a header".to_vec()].concat(),
            vec!["damaged compressed data", "gzip header"],
        ),
        (gzip(&gzip(&root().end())), vec!["is not a tar archive"]),
        (bomb, vec!["1000 times its size"]),
        (claim.clone(), vec!["is not whole"]),
        (gzip(&claim), vec!["is not whole"]),
        (gzip(&oci(&[root().end()], &json!({}))), vec!["is compressed, and so are the layers", "remove `lazy = true`"]),
        (docker(&many, &json!({})), vec!["has 10000 layers, 500 are the most"]),
        (cut(oci(&[archive().end()], &json!({}))), vec!["is not whole"]),
        (gzip(&other(&root().end())), vec!["layer.tar", "has digest sha256:"]),
        (hidden(".wh..wh..opq"), vec!["hides all layers below"]),
        (hidden("srv/.wh..."), vec!["is a whiteout of nothing"]),
        (hidden("srv/.wh.x/y"), vec!["lies below a whiteout"]),
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
        let project = Project::new(&caller, &lazy("web", "").replace(ALWAYS, ""));
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
    let doctor = project.ctst(["doctor"]).stdout;
    let line = doctor.lines().find(|line| line.starts_with("lazy images")).unwrap_or_default();
    assert!(line.contains("limited") && line.contains("is not open to this user"), "{doctor}");
    // What nobody has asked for is done without.
    project.write("stack.ctst", &lazy("web", "").replace(ALWAYS, ""));
    write_large(&project);
    assert!(project.ctst(["plan"]).ok().stdout.contains("will be imported"));
    project.up();
    assert_eq!(sh(&project, "web", "wc -c < /srv/large").ok().stdout, "299999744\n");
    assert_eq!((project.status("web")["lazy"].as_bool(), servers(&project).len()), (None, 0));
    project.stop();
    project.ctst(["rm"]).ok();
    fs::remove_dir_all(project.folder().join(".containust")).expect("forget the image");
    project.prelude = String::new();
    assert!(project.ctst(["plan"]).ok().stdout.contains("indexed, and read from its archive"));
    let doctor = project.ctst(["doctor"]).stdout;
    assert!(doctor.lines().any(|line| line.starts_with("lazy images") && line.contains("good")), "{doctor}");
    project.write("stack.ctst", &lazy("web", ""));
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
    let bytes = archive().end();
    for (form, packed) in [("plain", bytes.clone()), ("gzip", blocks_of_gzip(&bytes)), ("zstd", frames_of_zstd(&bytes))]
    {
        project.write_bytes("a.tar", &packed);
        project.up();
        let sum = sh(&project, "web", "sha256sum /srv/late/3").ok().stdout;
        assert!(sum.starts_with(&sha256(&noise(50_000))), "{form}: {sum}");
        assert!(project.status("web")["lazy"] == true, "{form}");
        project.stop();
        project.ctst(["rm"]).ok();
    }
    project.write("stack.ctst", &lazy("web", "").replace(ALWAYS, "lazy = true"));
    project.up();
    eventually_unpacked(&project, "web");
    project.stop();
    project.up();
    assert_eq!((project.status("web")["lazy"].as_bool(), servers(&project).len()), (None, 0));
    project.stop();
    let ordinary = Project::governed(&Caller::ordinary(), &lazy("web", ""), "fuse = no\n", &[]);
    ordinary.write_bytes("a.tar", &archive().end());
    ordinary.ctst(["run", "-d", "--yes"]).fails(125, &["line 1", "says `fuse = no`"]);
}

/// A component that runs from `a.tar`, which is unpacked meanwhile.
fn completed(name: &str, more: &str) -> String {
    lazy(name, more).replace(ALWAYS, "lazy = true")
}

/// Waits until the archive of a component is unpacked.
fn eventually_unpacked(project: &Project, component: &str) {
    eventually("an archive is unpacked", || {
        let unpacked = &project.status(component)["unpacked"];
        unpacked["total_bytes"].is_u64() && unpacked["done_bytes"] == unpacked["total_bytes"]
    });
}

/// What was told of unpacking, of whatever component: name and event.
fn told(project: &Project) -> Vec<(String, String)> {
    let events = project.ctst(["events", "--format", "json"]).ok().stdout;
    let events = events.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect("an event"));
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    events
        .map(|event| (text(&event["component"]), format!("{} {}", text(&event["event"]), text(&event["why"]))))
        .filter(|(_, event)| event.contains("unpack"))
        .collect()
}

/// The workers that unpack.
fn unpackers(project: &Project) -> Vec<i32> {
    let unpacks = |pid: &i32| {
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        words.split(|b| *b == 0).skip(1).take(2).eq([&b"worker"[..], b"image"]) && words.ends_with(b"background\0")
    };
    project.processes().into_keys().map(|(pid, _)| pid).filter(unpacks).collect()
}

/// What imports that are under way, or were killed, have there.
fn staged(project: &Project) -> usize {
    let entries = fs::read_dir(project.folder().join(".containust/images/staging"));
    entries.into_iter().flatten().flatten().filter(|entry| entry.file_name() != "lock").count()
}

/// An archive that takes a moment to unpack, and to make.
fn slow() -> &'static [u8] {
    static MADE: OnceLock<Vec<u8>> = OnceLock::new();
    MADE.get_or_init(|| {
        let archive = (0..6000).fold(archive().folder("srv/more/"), |archive, number| {
            archive.file(&format!("srv/more/{number}"), noise(10_000 + number))
        });
        blocks_of_gzip(&archive.end())
    })
}

/// Runs from an archive until that is being unpacked, and holds who does.
fn caught(project: &Project) -> i32 {
    project.up();
    let mut found = Vec::new();
    eventually("an archive is being unpacked", || {
        found = unpackers(project);
        found.first().is_some_and(|pid| {
            signal(*pid, Signal::STOP);
            staged(project) == 1
        })
    });
    assert_eq!(found.len(), 1, "one at a time");
    found[0]
}

#[test]
fn what_is_read_from_its_archive_is_unpacked_meanwhile() {
    let bytes = archive().end();
    let forms = [bytes.clone(), blocks_of_gzip(&bytes), zstd(&bytes)];
    Caller::at_once(Caller::all(), |caller| {
        let about = &caller.name;
        // Of each form once.
        let packed = &forms[if caller.uid == 0 { 0 } else { 1 + usize::from(is_single(caller)) }];
        let stack = completed("reads", "") + &completed("writes", "readonly = false") + &lazy("always", "");
        let stack = stack
            + "COMPONENT late { image = \"file://ROOTFS\" command = [\"/bin/ctst-probe\", \"hold\"] tmpfs = \"/ok\"
          healthcheck { command = [\"/bin/sh\", \"-c\", \"test -e /ok/go\"] interval = 200ms start_period = 100s } }\n";
        let project = Project::new(caller, &stack);
        project.write_bytes("a.tar", packed);
        project.ctst(["run", "-d", "--yes"]).ok();
        sh(&project, "writes", "echo mine >> /srv/tagged").ok();
        // Nothing is begun before all is up.
        std::thread::sleep(Duration::from_secs(4));
        assert_eq!((staged(&project), layers(&project).len(), told(&project)), (0, 2, vec![]), "{about}");
        assert!(project.status("reads")["unpacked"].is_null() && project.ctst(["ps"]).ok().stdout.contains("(lazy)"));
        sh(&project, "late", "echo > /ok/go").ok();
        eventually_unpacked(&project, "reads");
        assert!(project.ctst(["ps"]).ok().stdout.contains("(lazy 100%)"), "{about}");
        assert_eq!(project.status("reads")["unpacked"]["total_bytes"], packed.len(), "{about}");
        let events = told(&project);
        let names = ["always", "reads", "writes"];
        let of = |event: &str| names.map(|name| (name.to_owned(), format!("{event} ")));
        let mut sorted = events.clone();
        sorted.sort();
        let mut expected = [of("unpacking"), of("unpacked")].concat();
        expected.sort();
        assert_eq!(sorted, expected, "{about}");

        // Who runs is not disturbed, and the same again is nothing to do.
        let plan = project.ctst(["plan"]).ok().stdout;
        assert!(plan.contains("nothing to do"), "{about}: {plan}");
        let again = project.ctst(["run", "-d", "--yes"]).ok();
        assert!(!again.stderr.contains("start") && servers(&project).len() == 3, "{about}: {again}");
        let sum = sh(&project, "reads", "sha256sum /srv/large").ok().stdout;
        assert!(sum.starts_with(&sha256(&noise(5_000_000))), "{about}");
        project.ctst(["restart", "reads"]).ok();
        assert!(project.ctst(["ps"]).ok().stdout.matches("(lazy 100%)").count() == 3, "{about}");
        let df = project.ctst(["images", "df", "--format", "json"]).ok().json();
        let sizes: Vec<u64> =
            df["images"].as_array().expect("images").iter().filter_map(|i| i["size"].as_u64()).collect();
        assert_eq!((sizes.len(), df["unused_layers"].as_u64()), (3, Some(0)), "{df}");
        project.ctst(["images", "prune"]).ok();
        project.ctst(["images", "verify"]).ok();

        // A container that is made anew has layers. One with data stays what it is.
        project.stop();
        project.ctst(["run", "-d", "--yes", "--wait", "reads", "writes"]).ok();
        assert_eq!(servers(&project).len(), 1, "{about}");
        assert!(project.status("reads")["lazy"].is_null() && project.status("writes")["lazy"] == true, "{about}");
        assert_eq!(sh(&project, "writes", "cat /srv/tagged").ok().stdout, "tagged\nmine\n", "{about}");
        project.ctst(["down", "--allow-destroy"]).ok();
        assert_eq!(layers(&project).len(), 3, "{about}");
        project.ctst(["run", "-d", "--yes", "--wait", "reads", "writes"]).ok();
        // The index is gone, and nobody misses the archive's bytes.
        assert!(layers(&project).iter().all(|layer| !layer.contains("lazy")), "{about}: {:?}", layers(&project));
        assert_eq!((servers(&project).len(), project.ctst(["ps"]).ok().stdout.contains("lazy")), (0, false), "{about}");
        File::options()
            .write(true)
            .open(project.folder().join("a.tar"))
            .and_then(|file| file.set_len(0))
            .expect("cut it");
        let sum = sh(&project, "reads", "sha256sum /srv/large; ls /srv/many | wc -l").ok().stdout;
        assert!(sum.starts_with(&sha256(&noise(5_000_000))) && sum.ends_with("2000\n"), "{about}: {sum}");
        let root = sh(&project, "reads", "grep -c fuse /proc/self/mountinfo");
        assert_eq!(root.stdout, "0\n", "{about}: {root}");
        project.stop();
    });
}

#[test]
fn what_is_always_read_from_its_archive_is_never_unpacked() {
    let project = Project::new(&Caller::ordinary(), &lazy("web", ""));
    project.write_bytes("a.tar", &archive().end());
    project.up();
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!((staged(&project), layers(&project).len(), told(&project)), (0, 1, vec![]));
    project.stop();
    project.write("stack.ctst", &lazy("web", "").replace("always", "never"));
    project.ctst(["check"]).fails(125, &["\"never\"", "`always` in quotes"]);
}

#[test]
fn who_unpacks_may_be_stopped_or_killed_at_any_time() {
    let packed = slow();
    Caller::at_once(Caller::all(), |caller| {
        let about = &caller.name;
        let project = Project::new(caller, &completed("web", "stop { grace = 1s }"));
        project.write_bytes("a.tar", packed);
        // The project goes down in the middle.
        let worker = caught(&project);
        let status = project.status("web")["unpacked"].clone();
        let percent = project.ctst(["ps"]).ok().stdout;
        assert!(status.is_null() || percent.contains("(lazy ") && percent.contains("%)"), "{about}: {percent}");
        // It sets that itself, after it has been caught by its name.
        eventually("it lets others go first", || {
            let stat = fs::read_to_string(format!("/proc/{worker}/stat")).expect("a process");
            stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(16)) == Some("10")
        });
        project.ctst(["down"]).ok();
        project.assert_nothing_left();
        assert_eq!((staged(&project), layers(&project).len()), (0, 1), "{about}");

        // Its supervisor is killed.
        caught(&project);
        let parts = project.parts();
        let supervisor = parts.iter().find(|(_, part)| *part == "supervisor").expect("a supervisor").0;
        signal(supervisor, Signal::KILL);
        project.assert_nothing_left();
        assert_eq!(staged(&project), 1, "{about}");
        assert!(project.status("web")["state"] == "dead" && project.status("web")["unpacked"].is_null(), "{about}");

        // The worker is.
        let worker = caught(&project);
        signal(worker, Signal::KILL);
        eventually("that is told", || {
            told(&project).iter().any(|(_, event)| event.contains("the worker ended with 137"))
        });
        eventually("it is cleaned up", || staged(&project) == 0);
        assert!(project.status("web")["unpacked"].is_null(), "{about}");
        let sum = sh(&project, "web", "sha256sum /srv/late/3").ok().stdout;
        assert!(sum.starts_with(&sha256(&noise(50_000))), "{about}: {sum}");
        // The next run tries again.
        project.ctst(["run", "-d", "--yes"]).ok();
        eventually_unpacked(&project, "web");
        assert_eq!((staged(&project), layers(&project).len()), (0, 2), "{about}");
        project.stop();
        project.up();
        assert_eq!((project.status("web")["lazy"].as_bool(), servers(&project).len()), (None, 0), "{about}");
        project.stop();
    });
}

/// `down` comes while the project waits for somebody else's work on the store, and nobody wants the archive unpacked any more.
#[test]
fn what_nobody_needs_any_more_is_not_begun() {
    let project = Project::new(&Caller::ordinary(), &completed("web", "stop { grace = 1s }"));
    project.write_bytes("a.tar", slow());
    project.up();
    let lock = fs::File::options().write(true).open(project.folder().join(".containust/images/staging/lock"));
    let lock = lock.expect("there is a lock");
    lock.lock().expect("take it");
    // By then it waits.
    std::thread::sleep(Duration::from_secs(5));
    // It need not be given free for that.
    project.ctst(["down"]).ok();
    assert_eq!(unpackers(&project), Vec::<i32>::new());
    assert_eq!(staged(&project), 0);
    project.assert_nothing_left();
    drop(lock);
    assert_eq!(layers(&project).len(), 1);
}

/// Ten layers, each with a file of the same name: the image has one of them, and all of them are unpacked.
#[test]
fn room_is_wanted_for_files_that_others_hide() {
    let caller = Caller::ordinary();
    let large = |number: u8| Archive::new().file("srv/large", vec![number; 1_000_000]).end();
    let layers: Vec<Vec<u8>> = std::iter::once(Archive::root().end()).chain((0..10).map(large)).collect();
    let project = Project::new(&caller, &completed("web", ""));
    project.write_bytes("a.tar", &docker(&layers, &json!({})));
    project.up();
    let records = project.folder().join(".containust/images/catalogue");
    let record = fs::read_dir(records).expect("a catalogue").flatten().next().expect("a record");
    let record: serde_json::Value = serde_json::from_slice(&fs::read(record.path()).unwrap()).unwrap();
    let (size, unpacked) = (record["size"].as_u64().unwrap(), record["lazy"]["unpacked"].as_u64().unwrap());
    assert_eq!(unpacked - size, 9_000_000, "{record}");
    project.stop();
}

#[test]
fn an_archive_that_changes_is_not_unpacked() {
    let packed = slow();
    let pin = format!("a.tar@sha256:{}", sha256(packed));
    let caller = Caller::ordinary();
    for vanishes in [false, true] {
        let project = Project::new(&caller, &completed("web", "").replace("a.tar", &pin));
        project.write_bytes("a.tar", packed);
        let worker = caught(&project);
        let path = project.folder().join("a.tar");
        if vanishes {
            fs::remove_file(&path).expect("remove the archive");
        } else {
            let file = File::options().write(true).open(&path).expect("open the archive");
            let time = file.metadata().and_then(|meta| meta.modified()).expect("look at the archive");
            file.write_all_at(&[packed[packed.len() - 1] ^ 1], packed.len() as u64 - 1).expect("write to the archive");
            file.set_modified(time).expect("set its time");
        }
        signal(worker, Signal::CONT);
        let failed = |(_, event): &(String, String)| event.starts_with("not-unpacked ") && event.contains("a.tar");
        eventually("that is told", || told(&project).iter().any(failed));
        eventually("it is cleaned up", || staged(&project) == 0);
        assert_eq!(layers(&project).len(), 1);
        assert!(project.status("web")["unpacked"].is_null() && project.status("web")["state"] == "running");
        let sum = sh(&project, "web", "sha256sum /srv/late/3").ok().stdout;
        assert!(sum.starts_with(&sha256(&noise(50_000))), "{sum}");
        project.stop();
    }
}

/// In a mount namespace of its own, because what is mounted below a project's folder is a mark of all who see it.
#[test]
fn where_there_is_little_room_nothing_is_unpacked() {
    const SCRIPT: &str = r#"
        mount -t tmpfs -o "size=$4,mode=0700,uid=$1,gid=$2" tmpfs .containust
        user="$1" group="$2" ctst="$3"
        ctst() { setpriv --reuid "$user" --regid "$group" --clear-groups "$ctst" "$@"; }
        ctst run -d --wait --yes >&2
        for n in $(seq 300); do
            ctst events | grep -q "for its next\|goes on" && break
            sleep 0.1
        done
        ctst events | grep "unpacked\|goes on"
        ls .containust/images/staging
        ctst exec web sh -c 'sha256sum /srv/large; ls /srv/many | wc -l'
        ctst ps
        ctst stop >&2
    "#;
    if Caller::root().is_none() {
        // It says so.
        return;
    }
    let bytes = archive().end();
    Caller::at_once(Caller::all(), |caller| {
        for (size, line) in
            [("16m", "twice what its files take"), ("40m", "its archive is unpacked, for its next container")]
        {
            let project = Project::new(caller, &completed("web", ""));
            project.write_bytes("a.tar", &bytes);
            project.make_folder(".containust");
            let mut command = Command::new("unshare");
            caller.login(&mut command);
            // Not yet as him, for whom nothing can be mounted.
            command.uid(0).gid(0).args([
                "-m",
                "sh",
                "-c",
                SCRIPT,
                "sh",
                &caller.uid.to_string(),
                &caller.gid.to_string(),
            ]);
            let done = finish(command.arg(programs().join("ctst")).arg(size).current_dir(project.folder()));
            let about = format!("{} with {size}: {done}", caller.name);
            assert!(done.stdout.contains(line) && done.stdout.contains("\nlock\n"), "{about}");
            assert!(done.stdout.contains(&sha256(&noise(5_000_000))) && done.stdout.contains("\n2000\n"), "{about}");
            project.assert_nothing_left();
        }
    });
}

#[test]
fn one_archive_is_unpacked_once() {
    let packed = slow();
    let caller = Caller::ordinary();
    let project = Project::new(&caller, &(completed("one", "") + &completed("two", "")));
    project.write("other.ctst", &completed("three", ""));
    project.write_bytes("a.tar", packed);
    project.ctst(["-f", "other.ctst", "run", "-d", "--yes"]).ok();
    let worker = caught(&project);
    // Somebody imports it meanwhile, and neither is in the other's way.
    project.write("build.ctst", &completed("four", "").replace("lazy = true", "lazy = false"));
    project.ctst(["-f", "build.ctst", "build"]).ok();
    assert_eq!(unpackers(&project), [worker]);
    signal(worker, Signal::CONT);
    eventually_unpacked(&project, "three");
    let events = told(&project);
    assert_eq!(events.iter().filter(|(_, event)| event == "unpacked ").count(), 3, "{events:?}");
    assert_eq!((staged(&project), layers(&project).len()), (0, 2));
    project.ctst(["images", "verify"]).ok();
    project.ctst(["-f", "other.ctst", "down"]).ok();
    project.ctst(["down"]).ok();
    project.assert_nothing_left();
}
