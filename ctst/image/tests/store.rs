//! `file://` images and the store.

mod common;

use std::ffi::OsStr;
use std::fs::{self, File, FileTimes};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use common::*;
use containust_image::model::Ownership;
use containust_image::{Direct, Error, Progress, Request, Source, Store, remove_tree};
use sha2::{Digest, Sha256};

#[test]
fn an_import_keeps_everything_and_is_found_again() {
    as_user(|| {
        let scratch = Scratch::new();
        let root = scratch.join("root");
        small_tree(&root);
        fs::write(root.join(OsStr::from_bytes(b"etc/\xff\x1bname")), "odd").unwrap();
        chmod(&root, 0o555);
        let store = Store::at(&scratch.join("project/.containust/images"));
        let request = file(&root);
        assert_eq!(store.find(&request).unwrap(), None);
        assert_eq!(store.list().unwrap(), []);
        assert!(!scratch.join("project").exists(), "looking writes nothing");

        let mut seen = Vec::new();
        let image = store.import(&request, &mut |progress| seen.push(progress)).unwrap();
        assert_eq!(image.layers.len(), 1);
        assert_eq!(facts(&image.layers[0]), facts(&root));
        assert_eq!(image.notes, Vec::<String>::new());
        assert_eq!(image.size, 700_000 + 10 + 6 + 26 + 27 + 1 + 3);
        assert_eq!(seen.first(), Some(&Progress::Scanning));
        assert_eq!(seen.last(), Some(&Progress::Syncing));
        assert!(
            seen.iter().any(|p| matches!(p, Progress::Copying { files_done, files_total, bytes_done, bytes_total }
            if files_done == files_total && bytes_done == bytes_total && *bytes_done >= 700_000))
        );

        let images = scratch.join("project/.containust/images");
        for dir in [images.clone(), images.join("layers"), images.join("catalogue"), images.join("staging")] {
            assert_eq!(dir.metadata().unwrap().mode() & 0o7777, 0o700, "{}", dir.display());
        }
        assert_eq!(names(&images.join("staging")), ["lock"]);

        let inode = image.layers[0].metadata().unwrap().ino();
        assert_eq!(store.find(&request).unwrap().as_ref(), Some(&image));
        let again = import(&store, &request).unwrap();
        assert_eq!((&again, again.layers[0].metadata().unwrap().ino()), (&image, inode));
        let list = store.list().unwrap();
        assert_eq!(list.len(), 1);
        assert_eq!(list[0].reference, format!("file://{}", root.display()));
        assert_eq!((&list[0].digest, list[0].size), (&image.digest, image.size));
        assert!(list[0].imported > 1_700_000_000);

        // The same content by another name shares the layer.
        let copy = import(&store, &file(&image.layers[0])).unwrap();
        assert_eq!((&copy.digest, &copy.layers), (&image.digest, &image.layers));
        assert_eq!(store.list().unwrap().len(), 2);
    });
}

#[test]
fn every_change_of_the_source_is_seen() {
    as_user(|| {
        type Change = (&'static str, bool, fn(&Path));
        let changes: [Change; 12] = [
            ("content of the same size", true, |root| {
                let meta = root.join("etc/passwd").metadata().unwrap();
                let file = File::options().write(true).open(root.join("etc/passwd")).unwrap();
                file.write_all_at(b"R", 0).unwrap();
                // Put back, as an attacker or a build tool would: ctime still tells.
                file.set_times(FileTimes::new().set_modified(meta.modified().unwrap())).unwrap();
            }),
            ("longer", true, |root| fs::write(root.join("etc/empty"), "no more").unwrap()),
            ("mode", true, |root| chmod(&root.join("bin/tool"), 0o700)),
            ("mode of a directory", true, |root| chmod(&root.join("usr"), 0o700)),
            ("mode of the root", true, |root| chmod(root, 0o750)),
            ("new file", true, |root| write(&root.join("new"), "")),
            ("new directory", true, |root| fs::create_dir(root.join("a/b/new")).unwrap()),
            ("removed file", true, |root| fs::remove_file(root.join("a/b/c/d/deep")).unwrap()),
            ("renamed file", true, |root| fs::rename(root.join("etc/empty"), root.join("etc/e")).unwrap()),
            ("another link", true, |root| {
                fs::remove_file(root.join("lib")).unwrap();
                symlink("usr/lob", root.join("lib")).unwrap();
            }),
            ("hard link undone", true, |root| {
                fs::remove_file(root.join("bin/other-name")).unwrap();
                fs::copy(root.join("bin/tool"), root.join("bin/other-name")).unwrap();
            }),
            ("time only", false, |root| {
                let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
                let file = File::options().write(true).open(root.join("etc/passwd")).unwrap();
                file.set_times(FileTimes::new().set_modified(time)).unwrap();
            }),
        ];
        for (what, is_new, change) in changes {
            let scratch = Scratch::new();
            let root = scratch.join("root");
            small_tree(&root);
            let store = Store::at(&scratch.join("images"));
            let before = import(&store, &file(&root)).unwrap();
            change(&root);
            assert_eq!(store.find(&file(&root)).unwrap(), None, "{what}");
            let after = import(&store, &file(&root)).unwrap();
            assert_eq!(after.digest != before.digest, is_new, "{what}");
            assert_eq!(store.find(&file(&root)).unwrap(), Some(after), "{what}");
            assert_eq!(store.list().unwrap().len(), 1, "{what}");
        }
    });
}

#[test]
fn the_digest_is_the_documented_one() {
    as_user(|| {
        let scratch = Scratch::new();
        let root = scratch.join("root");
        small_tree(&root);
        let mut expected = Sha256::new();
        expected.update(b"containust-tree-1\n");
        // Sorted by bytes, which is not the order of a walk.
        let mut facts: Vec<_> = facts(&root).into_iter().collect();
        facts.sort_by(|a, b| a.0.as_os_str().as_bytes().cmp(b.0.as_os_str().as_bytes()));
        assert!(facts.iter().any(|(path, _)| path.as_os_str() == "a-b"));
        let bytes = |hash: &mut Sha256, bytes: &[u8]| {
            hash.update(u32::try_from(bytes.len()).unwrap().to_le_bytes());
            hash.update(bytes);
        };
        for (path, fact) in &facts {
            let first = fact.same_as.as_ref().filter(|first| *first != path);
            let kind = match fact.mode & 0o170_000 {
                _ if first.is_some() => b'h',
                0o040_000 => b'd',
                0o100_000 => b'f',
                0o120_000 => b'l',
                other => panic!("{other:o}"),
            };
            expected.update([kind]);
            bytes(&mut expected, path.as_os_str().as_bytes());
            expected.update((fact.mode & 0o7777).to_le_bytes());
            expected.update([0; 8]);
            match kind {
                b'h' => bytes(&mut expected, first.unwrap().as_os_str().as_bytes()),
                b'f' => {
                    expected.update((fact.content.len() as u64).to_le_bytes());
                    expected.update(Sha256::digest(&fact.content));
                }
                b'l' => bytes(&mut expected, &fact.content),
                _ => {}
            }
        }
        let expected: String = expected.finalize().iter().map(|b| format!("{b:02x}")).collect();
        let image = import(&Store::at(&scratch.join("images")), &file(&root)).unwrap();
        assert_eq!(image.digest, format!("sha256:{expected}"));
    });
}

#[test]
fn pins() {
    let scratch = Scratch::new();
    let root = scratch.join("root");
    small_tree(&root);
    let store = Store::at(&scratch.join("images"));
    let pinned = |pin| Request { pin: Some(pin), ..file(&root) };
    let wrong = "0".repeat(64);

    let error = import(&store, &pinned(&wrong)).unwrap_err();
    let Error::Pin { expected, found, .. } = &error else { panic!("{error}") };
    assert_eq!((expected, error.code()), (&wrong, "I008"));
    assert!(error.to_string().contains(&wrong) && error.to_string().contains(found));
    assert_eq!(names(&scratch.join("images/layers")), Vec::<String>::new());
    assert_eq!(names(&scratch.join("images/staging")), ["lock"]);
    assert_eq!(store.list().unwrap(), []);

    let image = import(&store, &pinned(found)).unwrap();
    assert_eq!(image.digest, format!("sha256:{found}"));
    let upper = format!("sha256:{}", found.to_uppercase());
    assert_eq!(store.find(&pinned(&upper)).unwrap(), Some(image));
    assert_eq!(store.find(&pinned(&wrong)).unwrap_err().code(), "I008");
    for bad in ["", "sha256:", "abc", &"g".repeat(64), &"0".repeat(63), "md5:00"] {
        assert_eq!(store.find(&pinned(bad)).unwrap_err().code(), "I009", "{bad}");
    }
}

#[test]
fn links_lead_nowhere() {
    let scratch = Scratch::new();
    let (root, outside) = (scratch.join("root"), scratch.join("outside"));
    write(&outside.join("secret"), "secret");
    fs::create_dir(&root).unwrap();
    symlink(&outside, root.join("dir")).unwrap();
    symlink("../outside/secret", root.join("file")).unwrap();
    symlink(".", root.join("self")).unwrap();
    symlink("/proc/self/root", root.join("magic")).unwrap();
    symlink("..", root.join("up")).unwrap();
    symlink("loop", root.join("loop")).unwrap();
    // A name that whiteouts have in archives is an ordinary one in a directory.
    write(&root.join(".wh.etc"), "x");
    let image = import(&Store::at(&scratch.join("images")), &file(&root)).unwrap();
    assert_eq!(facts(&image.layers[0]), facts(&root));
    assert_eq!(names(&image.layers[0]), [".wh.etc", "dir", "file", "loop", "magic", "self", "up"]);
    assert!(image.layers[0].join("dir").is_symlink());
    remove_tree(&image.layers[0]).unwrap();
    assert_eq!(fs::read_to_string(outside.join("secret")).unwrap(), "secret");
}

#[test]
fn special_files_and_attributes_are_named() {
    let scratch = Scratch::new();
    let root = scratch.join("root");
    write(&root.join("bin/a"), "a");
    fs::create_dir(root.join("dev")).unwrap();
    let fifo = root.join("dev/\u{1b}[31mpipe");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let _socket = std::os::unix::net::UnixListener::bind(root.join("dev/log")).unwrap();
    let flags = rustix::fs::XattrFlags::empty();
    let has_attributes =
        rustix::fs::setxattr(root.join("bin/a").as_path(), "user.overlay.redirect", b"/etc", flags).is_ok();

    let image = import(&Store::at(&scratch.join("images")), &file(&root)).unwrap();
    assert_eq!(names(&image.layers[0].join("dev")), Vec::<String>::new());
    assert_eq!(image.notes[0], "2 device nodes, sockets and pipes were left out: /dev/\\u{1b}[31mpipe, /dev/log");
    if has_attributes {
        assert!(image.notes[1].starts_with("1 files have extended attributes"), "{:?}", image.notes);
        let mut list = [0; 256];
        let length = rustix::fs::listxattr(image.layers[0].join("bin/a").as_path(), &mut list).unwrap();
        assert!(!String::from_utf8_lossy(&list[..length]).contains("user."));
    }
}

#[test]
fn holes_stay_holes_and_count_as_zeros() {
    let scratch = Scratch::new();
    let (sparse, dense) = (scratch.join("sparse"), scratch.join("dense"));
    for root in [&sparse, &dense] {
        fs::create_dir(root).unwrap();
        chmod(root, 0o755);
        let file = File::create(root.join("disk")).unwrap();
        file.set_len(9_000_001).unwrap();
        file.write_all_at(b"middle", 4_000_000).unwrap();
        if root == &dense {
            file.write_all_at(&vec![0; 4_000_000], 0).unwrap();
            file.write_all_at(&vec![0; 4_999_995], 4_000_006).unwrap();
        }
    }
    let store = Store::at(&scratch.join("images"));
    let image = import(&store, &file(&sparse)).unwrap();
    let copy = image.layers[0].join("disk");
    assert_eq!(fs::read(&copy).unwrap(), fs::read(dense.join("disk")).unwrap());
    let blocks = |path: &Path| path.metadata().unwrap().blocks();
    assert!(blocks(&copy) <= blocks(&sparse.join("disk")), "{}", blocks(&copy));
    let other = Store::at(&scratch.join("other"));
    assert_eq!(import(&other, &file(&dense)).unwrap().digest, image.digest);

    File::options().write(true).open(sparse.join("disk")).unwrap().set_len(5 << 40).unwrap();
    assert_eq!(import(&store, &file(&sparse)).unwrap_err().code(), "I015");
}

#[test]
fn what_cannot_be_read_is_named() {
    as_user(|| {
        let scratch = Scratch::new();
        let root = scratch.join("root");
        for index in 0..9 {
            write(&root.join(format!("etc/shadow{index}")), "x");
            chmod(&root.join(format!("etc/shadow{index}")), 0o200);
        }
        let store = Store::at(&scratch.join("images"));
        let error = import(&store, &file(&root)).unwrap_err();
        let Error::Unreadable { examples, count: 9, .. } = &error else { panic!("{error}") };
        assert_eq!((examples.len(), error.code()), (5, "I006"));
        assert!(error.to_string().contains("and 4 more"), "{error}");
        assert!(error.help().unwrap().contains("chmod"));
        assert_eq!(names(&scratch.join("images/staging")), ["lock"]);

        chmod(&root.join("etc"), 0);
        assert_eq!(import(&store, &file(&root)).unwrap_err().code(), "I006");
        chmod(&root.join("etc"), 0o755);
    });
}

#[test]
fn bad_sources() {
    let scratch = Scratch::new();
    let store = Store::at(&scratch.join("project/.containust/images"));
    let codes = |path: &Path| {
        let find = store.find(&file(path)).unwrap_err();
        let import = import(&store, &file(path)).unwrap_err();
        assert_eq!(find.code(), import.code());
        assert!(find.help().is_some());
        find.code()
    };
    write(&scratch.join("file"), "");
    assert_eq!(codes(&scratch.join("nowhere")), "I003");
    assert_eq!(codes(&scratch.join("file")), "I004");
    assert_eq!(codes(Path::new("relative")), "I005");
    // What it would be is a root file system of blobs.
    let layout = scratch.join("layout");
    write(&layout.join("oci-layout"), "{}");
    write(&layout.join("index.json"), "{}");
    assert_eq!(codes(&layout), "I004");
    fs::remove_dir_all(&layout).unwrap();
    assert_eq!(codes(&scratch), "I016", "the project's store would lie inside");
    assert_eq!(names(&scratch), ["file"]);
}

#[test]
fn a_store_of_others_is_refused() {
    let scratch = Scratch::new();
    let root = scratch.join("root");
    write(&root.join("a"), "a");
    let dir = scratch.join("images");
    let store = Store::at(&dir);
    let refused = || {
        let code = import(&store, &file(&root)).unwrap_err().code();
        assert_eq!(store.list().unwrap_err().code(), code);
        assert_eq!(store.find(&file(&root)).unwrap_err().code(), code);
        code
    };
    fs::create_dir(scratch.join("elsewhere")).unwrap();
    symlink(scratch.join("elsewhere"), &dir).unwrap();
    assert_eq!(refused(), "I010");
    fs::remove_file(&dir).unwrap();
    fs::create_dir(&dir).unwrap();
    chmod(&dir, 0o755);
    assert_eq!(refused(), "I010");
    if rustix::process::geteuid().is_root() {
        chmod(&dir, 0o700);
        std::os::unix::fs::chown(&dir, Some(1), None).unwrap();
        assert_eq!(refused(), "I010");
    }
    fs::remove_dir(&dir).unwrap();
    import(&store, &file(&root)).unwrap();
}

#[test]
fn a_setgid_project_does_not_leak_its_group() {
    let scratch = Scratch::new();
    let root = scratch.join("root");
    small_tree(&root);
    let project = scratch.join("project");
    fs::create_dir(&project).unwrap();
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(&project, None, Some(100)).unwrap();
    }
    chmod(&project, 0o2775);
    let image = import(&Store::at(&project.join("images")), &file(&root)).unwrap();
    let group = rustix::process::getegid().as_raw();
    for entry in walkdir::WalkDir::new(&image.layers[0]) {
        assert_eq!(entry.unwrap().metadata().unwrap().gid(), group);
    }
    assert_eq!(facts(&image.layers[0]), facts(&root));
}

#[test]
fn a_damaged_record_is_no_record() {
    let scratch = Scratch::new();
    let root = scratch.join("root");
    write(&root.join("a"), "a");
    let store = Store::at(&scratch.join("images"));
    let image = import(&store, &file(&root)).unwrap();
    let record = scratch.join("images/catalogue").join(&names(&scratch.join("images/catalogue"))[0]);
    let whole = fs::read(&record).unwrap();
    for length in 0..whole.len() {
        fs::write(&record, &whole[..length]).unwrap();
        assert_eq!(store.find(&file(&root)).unwrap(), None, "{length}");
        assert_eq!(store.list().unwrap(), [], "{length}");
    }
    assert_eq!(import(&store, &file(&root)).unwrap(), image);

    // Other damage may change what is said, but neither panics nor leads out of the store.
    for index in 0..whole.len() {
        for bit in 0..8 {
            let mut bytes = whole.clone();
            bytes[index] ^= 1 << bit;
            fs::write(&record, &bytes).unwrap();
            match store.find(&file(&root)) {
                Ok(None) | Err(Error::Newer { .. }) => {}
                Ok(Some(found)) => assert_eq!(found.layers, image.layers),
                Err(error) => panic!("{error}"),
            }
        }
    }
    fs::remove_file(&record).unwrap();
    fs::create_dir(&record).unwrap();
    assert_eq!(store.find(&file(&root)).unwrap(), None);
    fs::remove_dir(&record).unwrap();

    let newer = String::from_utf8(whole).unwrap().replace("\"schema\":2", "\"schema\":3,\"unknown\":[]");
    fs::write(&record, newer).unwrap();
    for error in [store.find(&file(&root)).unwrap_err(), store.list().unwrap_err()] {
        assert_eq!(error.code(), "I011");
    }
}

#[test]
fn the_first_version_of_a_store_is_read() {
    let scratch = Scratch::new();
    let root = scratch.join("root");
    small_tree(&root);
    let store = Store::at(&scratch.join("images"));
    let image = import(&store, &file(&root)).unwrap();
    let record = fs::read_dir(scratch.join("images/catalogue")).unwrap().next().unwrap().unwrap().path();
    let text = fs::read_to_string(&record).unwrap();
    // It had SHA-256 only, and did not name it.
    let first = text.replace("\"schema\":2", "\"schema\":1").replace("\"tree\":\"sha256:", "\"tree\":\"");
    assert_eq!(first.len(), text.len() - "sha256:".len());
    fs::write(&record, first).unwrap();
    assert_eq!(store.find(&file(&root)).unwrap(), Some(image.clone()));
    let reference = format!("file://{}", root.display());
    store.verify(&reference, &Direct).unwrap();
    fs::write(image.layers[0].join("added"), "").unwrap();
    assert_eq!(store.verify(&reference, &Direct).unwrap_err().code(), "I042");
    // The names that version 2 has in version 1, and an algorithm that none has.
    for other in [text.replace("\"schema\":2", "\"schema\":1"), text.replace("\"sha256:", "\"md5:")] {
        assert_ne!(other, text);
        fs::write(&record, other).unwrap();
        assert_eq!(store.find(&file(&root)).unwrap(), None);
    }
}

#[test]
fn a_lost_layer_is_imported_again() {
    let scratch = Scratch::new();
    let root = scratch.join("root");
    small_tree(&root);
    let store = Store::at(&scratch.join("images"));
    let image = import(&store, &file(&root)).unwrap();
    remove_tree(&image.layers[0]).unwrap();
    assert_eq!(store.find(&file(&root)).unwrap(), None);
    assert_eq!(store.list().unwrap(), []);
    assert_eq!(import(&store, &file(&root)).unwrap(), image);
    assert_eq!(facts(&image.layers[0]), facts(&root));
}

#[test]
fn what_a_crash_left_is_removed() {
    let scratch = Scratch::new();
    let root = scratch.join("root");
    small_tree(&root);
    let dir = scratch.join("images");
    let store = Store::at(&dir);
    let image = import(&store, &file(&root)).unwrap();
    for old in ["1-0", "without-lock"] {
        small_tree(&dir.join("staging").join(old).join("layer/tree"));
        chmod(&dir.join("staging").join(old), 0o700);
    }
    write(&dir.join("staging/1-0/lock"), "");
    write(&dir.join("staging/stray"), "");
    write(&root.join("new"), "");
    let other = import(&store, &file(&root)).unwrap();
    assert_ne!(other.digest, image.digest);
    assert_eq!(names(&dir.join("staging")), ["lock"]);
}

#[test]
fn threads_that_import_the_same_share_one_layer() {
    let scratch = Scratch::new();
    let root = scratch.join("root");
    small_tree(&root);
    let dir = scratch.join("images");
    let images: Vec<_> = std::thread::scope(|scope| {
        let import = || import(&Store::at(&dir), &file(&root)).unwrap();
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(import)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(images.iter().all(|image| image == &images[0]));
    assert_eq!(names(&dir.join("layers")).len(), 1);
    assert_eq!(names(&dir.join("catalogue")).len(), 1);
    assert_eq!(names(&dir.join("staging")), ["lock"]);
    assert_eq!(facts(&images[0].layers[0]), facts(&root));
}

#[test]
fn a_source_that_changes_meanwhile_is_refused() {
    let scratch = Scratch::new();
    let root = scratch.join("root");
    small_tree(&root);
    let store = Store::at(&scratch.join("images"));
    type Change = fn(&Path);
    let changes: [(&str, Change); 4] = [
        ("new", |root| write(&root.join("etc/new"), "x")),
        ("written", |root| write(&root.join("etc/passwd"), "changed")),
        ("removed", |root| fs::remove_file(root.join("a/b/c/d/deep")).unwrap()),
        ("replaced by a link", |root| {
            fs::rename(root.join("etc"), root.join("moved")).unwrap();
            symlink("/etc", root.join("etc")).unwrap();
        }),
    ];
    for (what, change) in changes {
        let mut change = Some(change);
        // The last report before the source is looked at again is the one that everything is copied.
        let result = store.import(&file(&root), &mut |progress| {
            if matches!(progress, Progress::Copying { files_done, files_total, .. } if files_done == files_total)
                && let Some(change) = change.take()
            {
                change(&root);
            }
        });
        let error = result.expect_err(what);
        assert!(matches!(&error, Error::Changed(_)), "{what}: {error}");
        assert_eq!(names(&scratch.join("images/staging")), ["lock"]);
        assert_eq!(names(&scratch.join("images/layers")), Vec::<String>::new());
    }
}

#[test]
fn root_gives_files_to_a_range() {
    let scratch = Scratch::new();
    let root = scratch.join("root");
    small_tree(&root);
    let request = |base, count| Request {
        source: Source::File(root.clone()),
        ownership: Ownership::Shifted { base, count },
        pin: None,
    };
    let store = Store::at(&scratch.join("images"));
    for (base, count) in [(1, 0), (u32::MAX, 2)] {
        assert_eq!(import(&store, &request(base, count)).unwrap_err().code(), "I014");
    }
    if !rustix::process::geteuid().is_root() {
        assert_eq!(import(&store, &request(100_000, 65_536)).unwrap_err().code(), "I013");
        return;
    }
    std::os::unix::fs::lchown(root.join("etc/absolute"), Some(33), Some(34)).unwrap();
    std::os::unix::fs::chown(root.join("bin/su"), Some(5), None).unwrap();
    chmod(&root.join("bin/su"), 0o4755);
    let caller = import(&store, &file(&root)).unwrap();
    assert!(caller.notes[0].starts_with("2 files of other owners (uid 5, 33; gid 34)"), "{:?}", caller.notes);
    let shifted = import(&store, &request(100_000, 65_536)).unwrap();
    assert_eq!(shifted.digest, caller.digest);
    assert_ne!(shifted.layers, caller.layers);
    assert_eq!(facts(&shifted.layers[0]), facts(&root), "modes too: giving a file away clears setuid");
    let ids = |path: &str| {
        let meta = shifted.layers[0].join(path).symlink_metadata().unwrap();
        (meta.uid(), meta.gid())
    };
    assert_eq!(ids("etc/absolute"), (100_033, 100_034));
    assert_eq!(ids("bin/su"), (100_005, 100_000));
    assert_eq!(ids(""), (100_000, 100_000));
    assert_eq!(store.find(&request(100_000, 65_536)).unwrap(), Some(shifted));
    assert_eq!(store.find(&request(200_000, 65_536)).unwrap(), None);
    assert_eq!(import(&store, &request(100_000, 33)).unwrap_err().code(), "I012");
    assert_eq!(store.list().unwrap().len(), 1, "one reference, one digest");
}

#[test]
fn trees_of_any_depth_and_mode_can_be_removed() {
    as_user(|| {
        let scratch = Scratch::new();
        let top = scratch.join("top");
        // Deeper than descriptors and paths reach: built from the inside out.
        fs::create_dir(&top).unwrap();
        for _ in 0..3000 {
            fs::create_dir(scratch.join("outer")).unwrap();
            fs::rename(&top, scratch.join("outer/top")).unwrap();
            fs::rename(scratch.join("outer"), &top).unwrap();
        }
        small_tree(&scratch.join("top/small"));
        for mode in [0, 0o100, 0o400, 0o555] {
            let dir = scratch.join(format!("top/closed{mode:o}"));
            write(&dir.join("in/file"), "x");
            chmod(&dir.join("in"), mode);
            chmod(&dir, mode);
        }
        remove_tree(&top).unwrap();
        assert!(!top.exists());
        remove_tree(&top).unwrap();
        let error = import(&Store::at(&scratch.join("images")), &file(&scratch)).unwrap_err();
        assert_eq!(error.code(), "I016");
    });
}
