//! `tar://` images: what they are told by, and what is kept of them.

mod common;

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::process::Command;

use common::tarball::*;
use common::*;
use containust_image::model::{Image, Ownership};
use containust_image::{Direct, Error, How, Progress, Request, Source, Store};

fn tar(path: &Path) -> Request<'static> {
    Request { source: Source::Tar(path.into()), ownership: Ownership::Caller, pin: None }
}

/// Imports an archive of these bytes into a store of its own.
fn unpack(scratch: &Path, bytes: &[u8]) -> Result<(Store, Image), Error> {
    let store = Store::at(&scratch.join("images"));
    let image = import(&store, &tar(&save(&scratch.join("a.tar"), bytes)))?;
    Ok((store, image))
}

fn tree() -> Tarball {
    Tarball::new()
        .dir("./", 0o755)
        .dir("./bin/", 0o755)
        .add(b"./bin/su", Head { mode: 0o4755, ..Head::default() }, b"setuid")
        .hard("./bin/other", "./bin/su")
        .symlink("./lib", "usr/lib")
        .dir("./closed/", 0o555)
        .add(b"./closed/inside", Head { mode: 0o444, mtime: 1_234_567_890, ..Head::default() }, b"x")
        .dir("./tmp/", 0o1777)
        .file("./etc/passwd", "root:x:0:0::/root:/bin/sh\n")
        .file("./big", vec![7; 700_000])
}

#[test]
fn every_compression_gives_the_same_tree() {
    as_user(|| {
        type Compress = fn(&[u8]) -> Vec<u8>;
        let kinds: [(&str, Compress); 5] = [
            ("plain", <[u8]>::to_vec),
            ("gzip", gzip),
            ("zstd", zstd),
            ("xz", xz),
            ("two gzip members", |bytes| [gzip(&bytes[..1000]), gzip(&bytes[1000..])].concat()),
        ];
        let plain = tree().end();
        let mut first = None;
        for (what, compress) in kinds {
            let scratch = Scratch::new();
            let bytes = compress(&plain);
            let (store, image) = unpack(&scratch, &bytes).unwrap();
            assert_eq!(image.digest, format!("sha256:{}", sha256(&bytes)), "{what}");
            assert_eq!(image.size, 700_000 + 6 + 26 + 1, "{what}");
            let facts = facts(&image.layers[0]);
            assert_eq!(facts[Path::new("bin/su")].mode, 0o104_755);
            assert_eq!(facts[Path::new("bin/su")].same_as, Some("bin/other".into()));
            assert_eq!(facts[Path::new("lib")].content, b"usr/lib");
            assert_eq!(facts[Path::new("closed")].mode, 0o040_555);
            assert_eq!(facts[Path::new("closed/inside")].mtime, (1_234_567_890, 0));
            assert_eq!(facts[Path::new("closed")].mtime, (1_000_000_000, 0));
            assert_eq!(facts[Path::new("tmp")].mode, 0o041_777);
            assert_eq!(facts[Path::new("big")].content, vec![7; 700_000]);
            assert_eq!(facts.len(), 11, "{what}");
            // The layer is named by the uncompressed stream.
            let layer = format!("{}-lowest", sha256(&plain));
            assert_eq!(names(&scratch.join("images/layers")), [layer], "{what}");
            assert_eq!(*first.get_or_insert(facts), common::facts(&image.layers[0]), "{what}");
            assert_eq!(names(&scratch.join("images/staging")), ["lock"]);
            store.verify(&format!("tar://{}", scratch.join("a.tar").display()), &Direct).unwrap();
            let record = fs::read_dir(scratch.join("images/catalogue")).unwrap().next().unwrap().unwrap().path();
            assert!(fs::read_to_string(record).unwrap().contains("\"tree\":\"blake3:"));
        }
    });
}

#[test]
fn what_was_listed_while_unpacking_is_what_is_found() {
    as_user(|| {
        let setgid = Head { mode: 0o2755, ..Head::default() };
        let cases = [
            ("setgid", tree().add(b"./bin/wall", setgid, b"w").dir("./mail/", 0o2775)),
            ("hard link twice", tree().hard("./bin/third", "./bin/other").hard("./bin/third", "./bin/su")),
            ("hard link to a link", tree().hard("./lib2", "./lib")),
            ("a file twice", tree().file("./etc/passwd", "")),
            ("a hard-linked file replaced", tree().file("./bin/su", "new")),
            ("a link replaced by a file", tree().file("./lib", "l")),
            ("a file replaced by a hard link", tree().hard("./big", "./etc/passwd")),
            (
                "a folder replaced by a link",
                tree().dir("./empty/", 0o755).symlink("./empty", "etc").symlink("./e", "etc"),
            ),
            ("a folder twice", tree().dir("./etc/", 0o700).dir("./etc/", 0o711)),
            ("a FIFO", tree().add(b"./fifo", of(b'6'), b"")),
        ];
        for (what, tree) in cases {
            let scratch = Scratch::new();
            let (store, _) = unpack(&scratch, &tree.end()).unwrap_or_else(|error| panic!("{what}: {error}"));
            let reference = format!("tar://{}", scratch.join("a.tar").display());
            store.verify(&reference, &Direct).unwrap_or_else(|error| panic!("{what}: {error}"));
        }
    });
}

#[test]
fn what_tar_writes_is_read() {
    as_user(|| {
        let scratch = Scratch::new();
        let root = scratch.join("root");
        small_tree(&root);
        let deep = format!("long/{}/{}", "d".repeat(120), "n".repeat(200));
        write(&root.join(&deep), "deep");
        let sparse = fs::File::create(root.join("sparse")).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&sparse, b"middle", 1 << 20).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&sparse, b"end", 3 << 20).unwrap();
        sparse.set_len(5 << 20).unwrap();
        for format in ["gnu", "posix", "oldgnu"] {
            for compress in ["", "z", "J"] {
                let scratch = Scratch::new();
                let file = scratch.join("a.tar");
                let status = Command::new("tar")
                    .arg(format!("-S{compress}cf"))
                    .arg(&file)
                    .args(["--format", format, "--sort=name", "-C"])
                    .args([&root, Path::new(".")])
                    .status()
                    .unwrap();
                assert!(status.success());
                let image = import(&Store::at(&scratch.join("images")), &tar(&file)).unwrap();
                let mut expected = facts(&root);
                if format != "posix" {
                    expected.values_mut().for_each(|fact| fact.mtime.1 = 0);
                }
                assert_eq!(facts(&image.layers[0]), expected, "{format} {compress}");
                let blocks = image.layers[0].join("sparse").metadata().unwrap().blocks();
                assert!(blocks < 200, "{format}: {blocks} blocks for three stretches");
            }
        }
    });
}

#[test]
fn find_sees_the_archive_change_and_the_pin_is_of_its_file() {
    as_user(|| {
        let scratch = Scratch::new();
        let path = save(&scratch.join("a.tar"), tree().end());
        let store = Store::at(&scratch.join("images"));
        let request = tar(&path);
        assert_eq!(store.find(&request).unwrap(), None);
        let mut seen = Vec::new();
        let image = store.import(&request, &mut |progress| seen.push(progress)).unwrap();
        assert_eq!(seen.first(), Some(&Progress::Scanning));
        assert_eq!(seen.last(), Some(&Progress::Syncing));
        assert!(seen.iter().any(|p| matches!(p, Progress::Copying { bytes_total, .. } if *bytes_total > 700_000)));
        assert_eq!(store.find(&request).unwrap(), Some(image.clone()));
        assert_eq!(store.list().unwrap()[0].reference, format!("tar://{}", path.display()));

        let pin = image.digest.clone();
        assert_eq!(store.find(&Request { pin: Some(&pin), ..request.clone() }).unwrap(), Some(image.clone()));
        let wrong = "0".repeat(64);
        for result in [
            store.find(&Request { pin: Some(&wrong), ..request.clone() }).map(drop),
            import(&Store::at(&scratch.join("other")), &Request { pin: Some(&wrong), ..request.clone() }).map(drop),
        ] {
            assert!(matches!(result, Err(Error::Pin { found, .. }) if pin.ends_with(&found)));
        }
        assert_eq!(names(&scratch.join("other/layers")), Vec::<String>::new());

        save(&path, tree().file("new", "").end());
        assert_eq!(store.find(&request).unwrap(), None);
        let after = import(&store, &request).unwrap();
        assert!(after.layers[0].join("new").exists() && after.digest != image.digest);
        assert!(matches!(store.import(&tar(&scratch.join("none.tar")), &mut |_| {}), Err(Error::ArchiveMissing(_))));
        let error = import(&store, &tar(&scratch)).unwrap_err();
        assert_eq!((error.code(), error.to_string().ends_with("is not a regular file")), ("I031", true));
        let error = import(&store, &tar(Path::new("relative.tar"))).unwrap_err();
        assert_eq!(error.code(), "I005");
    });
}

const CONFIG: &str = r#"{"User":"app:app","Env":["A=1","B=2"],"Entrypoint":["/entry"],"Cmd":["serve","-v"],"WorkingDir":"/srv",
    "ExposedPorts":{"80/tcp":{},"53/udp":null},"Volumes":{"/data":{}},"StopSignal":"SIGQUIT","Labels":{"x":"y"},
    "Healthcheck":{"Test":["CMD","/ok"],"Interval":5000000000,"Retries":3},"Unknown":[1]}"#;

fn layers() -> Vec<Vec<u8>> {
    let lower = Tarball::new().dir("etc", 0o755).file("etc/gone", "1").file("etc/stays", "2").dir("opt", 0o755);
    let lower = lower.file("opt/hidden", "3").dir("srv", 0o755).file("srv/file", "a file");
    let upper = Tarball::new()
        .dir("etc/", 0o755)
        .file("etc/.wh.gone", "")
        .dir("opt/", 0o700)
        .file("opt/.wh..wh..opq", "")
        .file("opt/new", "4")
        // Hidden and made again, in both orders.
        .file(".wh.srv", "")
        .dir("srv", 0o755)
        .file("srv/other", "5")
        .file("top", "6");
    vec![lower.end(), upper.end()]
}

fn check_layers(image: &Image) {
    let [upper, lower] = &image.layers[..] else { panic!("{image:?}") };
    assert_eq!(fs::read(lower.join("etc/gone")).unwrap(), b"1");
    let whiteout = upper.join("etc/gone").symlink_metadata().unwrap();
    assert!(whiteout.file_type().is_char_device() && whiteout.rdev() == 0);
    assert!(!upper.join("etc/.wh.gone").exists() && !upper.join("opt/.wh..wh..opq").exists());
    for folder in ["opt", "srv"] {
        let mut value = [0; 8];
        let count = rustix::fs::getxattr(upper.join(folder), "user.overlay.opaque", &mut value).unwrap();
        assert_eq!(&value[..count], b"y", "{folder}");
    }
    assert!(rustix::fs::getxattr(upper.join("etc"), "user.overlay.opaque", &mut [0; 8]).is_err());
}

fn check_config(image: &Image) {
    let config = &image.config;
    assert_eq!(
        (&config.entrypoint[..], &config.command[..]),
        (&["/entry".into()][..], &["serve".into(), "-v".into()][..])
    );
    assert_eq!(
        (config.env.join(" "), config.user.as_deref(), config.workdir.as_deref()),
        ("A=1 B=2".into(), Some("app:app"), Some("/srv"))
    );
    let declared = &image.declared;
    assert_eq!(
        (&declared.ports[..], &declared.volumes[..]),
        (&["53/udp".into(), "80/tcp".into()][..], &["/data".into()][..])
    );
    assert_eq!((declared.stop_signal.as_deref(), declared.labels["x"].as_str()), (Some("SIGQUIT"), "y"));
    let check = declared.healthcheck.as_ref().unwrap();
    assert_eq!(
        (check.test.join(" "), check.interval, check.retries, check.timeout),
        ("CMD /ok".into(), Some(5_000_000_000), Some(3), None)
    );
}

#[test]
fn docker_save_and_oci_layouts_are_images() {
    as_user(|| {
        let layers = layers();
        let document = document(&layers, CONFIG);
        let oci = |compress| Oci::new().image(&document, &layers, compress, "").end();
        let both = {
            // As newer versions of docker write.
            let image = Oci::new().image(&document, &layers, <[u8]>::to_vec, "");
            let names: Vec<String> = layers.iter().map(|layer| format!("\"blobs/sha256/{}\"", sha256(layer))).collect();
            let manifest = format!(
                r#"[{{"Config":"blobs/sha256/{}","RepoTags":null,"Layers":[{}]}}]"#,
                sha256(document.as_bytes()),
                names.join(",")
            );
            Oci { tar: image.tar.file("manifest.json", manifest), ..image }.end()
        };
        let archives: [(&str, Vec<u8>); 6] = [
            ("docker", docker(&layers, CONFIG)),
            ("docker.gz", gzip(&docker(&layers, CONFIG))),
            ("oci plain", oci(<[u8]>::to_vec)),
            ("oci gzip", oci(gzip)),
            ("oci zstd in xz", xz(&oci(zstd))),
            ("both", both),
        ];
        let mut trees = None;
        for (what, bytes) in archives {
            println!("{what}");
            let scratch = Scratch::new();
            let (store, image) = unpack(&scratch, &bytes).unwrap();
            check_layers(&image);
            check_config(&image);
            let now: Vec<_> = image.layers.iter().map(|layer| facts(layer)).collect();
            assert_eq!(*trees.get_or_insert(now), image.layers.iter().map(|layer| facts(layer)).collect::<Vec<_>>());
            let reference = store.list().unwrap()[0].reference.clone();
            store.verify(&reference, &Direct).unwrap();
            // A second archive with the same layers takes nothing more.
            let second = save(&scratch.join("b.tar"), docker(&layers, "{}"));
            let other = import(&store, &tar(&second)).unwrap();
            assert_eq!(other.layers, image.layers);
            assert_eq!(other.config.env, Vec::<String>::new());
            assert_eq!(store.df().unwrap().layers, 2);
        }
    });
}

/// The real thing: what a container sees through the kernel's overlay in a user namespace.
#[test]
fn an_overlay_of_the_layers_shows_the_image() {
    let scratch = Scratch::new();
    let (_, image) = unpack(&scratch, &docker(&layers(), "{}")).unwrap();
    let lower: Vec<&str> = image.layers.iter().map(|layer| layer.to_str().unwrap()).collect();
    let mount = scratch.join("mount");
    fs::create_dir(&mount).unwrap();
    let script =
        r#"mount -t overlay overlay -o "userxattr,lowerdir=$1" "$2" && cd "$2" && find . | sort | tr '\n' ' '"#;
    let output = Command::new("unshare")
        .args(["-Urm", "sh", "-c", script, "sh", &lower.join(":")])
        .arg(&mount)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(text, ". ./etc ./etc/stays ./opt ./opt/new ./srv ./srv/other ./top");
}

#[test]
fn images_are_removed_pruned_and_verified() {
    as_user(|| {
        let scratch = Scratch::new();
        let store = Store::at(&scratch.join("images"));
        assert_eq!(store.df().unwrap(), containust_image::Usage::default());
        let two = save(&scratch.join("two.tar"), docker(&layers(), "{}"));
        let one = save(&scratch.join("one.tar"), docker(&layers()[..1], "{}"));
        let first = import(&store, &tar(&two)).unwrap();
        import(&store, &tar(&one)).unwrap();
        let reference = |path: &Path| format!("tar://{}", path.display());
        let usage = store.df().unwrap();
        assert_eq!((usage.images, usage.layers, usage.unused), (2, 2, 0));
        assert_eq!(store.prune(&[], &Direct).unwrap(), Vec::<String>::new());
        assert_eq!(store.remove(&reference(&two)).unwrap(), 1);
        assert!(matches!(store.remove(&reference(&two)), Err(Error::NotInStore { .. })));
        assert_eq!(store.df().unwrap().unused, 1);
        assert_eq!(store.prune(&first.layers, &Direct).unwrap(), Vec::<String>::new(), "in use");
        assert_eq!(store.prune(&[], &Direct).unwrap().len(), 1);
        assert!(!first.layers[0].exists() && first.layers[1].exists());

        store.verify(&reference(&one), &Direct).unwrap();
        assert!(matches!(store.verify("tar:///none", &Direct), Err(Error::NotInStore { .. })));
        let file = first.layers[1].join("etc/stays");
        type Change = fn(&Path);
        let changes: [Change; 3] =
            [|file| fs::write(file, "3").unwrap(), |file| chmod(file, 0o600), |file| fs::remove_file(file).unwrap()];
        for change in changes {
            fs::write(&file, "2").unwrap();
            chmod(&file, 0o644);
            store.verify(&reference(&one), &Direct).unwrap();
            change(&file);
            let error = store.verify(&reference(&one), &Direct).unwrap_err();
            assert!(matches!(error, Error::Damaged { .. }), "{error}");
        }
        // What file:// imported can be verified, too.
        let root = scratch.join("root");
        small_tree(&root);
        let image = import(&store, &common::file(&root)).unwrap();
        let reference = format!("file://{}", root.display());
        store.verify(&reference, &Direct).unwrap();
        write(&image.layers[0].join("etc/new"), "");
        assert!(matches!(store.verify(&reference, &Direct), Err(Error::Damaged { .. })));
    });
}

#[test]
fn what_has_a_name_is_found_by_it() {
    as_user(|| {
        let scratch = Scratch::new();
        let store = Store::at(&scratch.join("images"));
        let local = |name: &str| Request {
            source: Source::Local(containust_image::name(name).unwrap()),
            ownership: Ownership::Caller,
            pin: None,
        };
        let import_as = |path: &Path, name: Option<&str>| {
            store.import_as(&tar(path), name, Ownership::Caller, How::default(), &mut |_| {})
        };
        let archive = save(&scratch.join("a.tar"), docker(&layers(), CONFIG));
        assert!(matches!(store.find(&local("app:1")), Err(Error::NotInStore { near, .. }) if near.is_empty()));
        let (references, image) = import_as(&archive, None).unwrap();
        assert_eq!(references, ["image://app:1"]);
        // Whatever becomes of the source.
        fs::remove_file(&archive).unwrap();
        assert_eq!(store.find(&local("app:1")).unwrap(), Some(image.clone()));
        assert_eq!(import(&store, &local("docker.io/library/app:1")).unwrap(), image);
        let pinned = Request { pin: Some(&image.digest), ..local("app:1") };
        assert_eq!(store.find(&pinned).unwrap().unwrap().digest, image.digest);
        let other = "0".repeat(64);
        assert!(matches!(store.find(&Request { pin: Some(&other), ..local("app:1") }), Err(Error::Pin { .. })));
        for (wrong, meant) in
            [("app:2", &["app:1"][..]), ("team/app", &["app:1"]), ("apo:1", &["app:1"]), ("redis", &[])]
        {
            let error = store.find(&local(wrong)).unwrap_err();
            assert!(matches!(&error, Error::NotInStore { near, .. } if near == meant), "{wrong}: {error:?}");
        }

        // A root file system brings no name, and neither does a folder.
        let root = save(&scratch.join("root.tar"), &layers()[0]);
        assert!(matches!(import_as(&root, None), Err(Error::Nameless(path)) if path == root));
        assert!(matches!(import_as(&root, Some("A b")), Err(Error::Name(_))));
        let (references, new) = import_as(&root, Some("app:1")).unwrap();
        assert_eq!(references, ["image://app:1"]);
        assert_eq!(store.find(&local("app:1")).unwrap().unwrap().digest, new.digest, "the name has moved");
        let folder = scratch.join("folder");
        small_tree(&folder);
        let request = file(&folder);
        let named = store.import_as(&request, Some("tools"), Ownership::Caller, How::default(), &mut |_| {}).unwrap();
        assert_eq!(store.find(&local("tools:latest")).unwrap(), Some(named.1));
        let nameless = store.import_as(&request, None, Ownership::Caller, How::default(), &mut |_| {});
        assert!(matches!(nameless, Err(Error::Nameless(_))));
        assert_eq!(names(&scratch.join("images/staging")), ["lock"]);

        assert_eq!(store.select("tools").unwrap().reference, "image://tools:latest");
        let digits = new.digest.strip_prefix("sha256:").unwrap();
        assert_eq!(store.select(&digits[..12]).unwrap().reference, "image://app:1");
        import_as(&root, Some("app:2")).unwrap();
        assert!(matches!(store.select(&digits[..12]), Err(Error::Ambiguous { found, .. }) if found.len() == 2));
        assert!(matches!(store.select("0000000"), Err(Error::NotInStore { .. })));
        // Two names of one image share nothing with others.
        assert!(store.list().unwrap().iter().all(|entry| entry.shared == 0));

        // In the store for another id map.
        let elsewhere = Ownership::Subordinate { uid: 100_000, gid: 100_000, count: 10 };
        assert!(matches!(store.find(&Request { ownership: elsewhere, ..local("app:2") }), Err(Error::OtherIds(_))));
    });
}

#[test]
fn an_exported_image_is_the_same_again() {
    as_user(|| {
        let scratch = Scratch::new();
        let store = Store::at(&scratch.join("images"));
        let lower = tree().file("hidden", "x").dir("opaque/", 0o711).file("opaque/below", "x");
        let long = format!("{}/{}", "d".repeat(200), "f".repeat(200));
        let lower = lower.long(b'L', long.as_bytes()).file("short", "long name").end();
        let upper = Tarball::new().file(".wh.hidden", "").dir("opaque/", 0o711).file("opaque/.wh..wh..opq", "");
        let upper = upper.pax(&[("SCHILY.xattr.user.note", b"kept")]).file("noted", "y");
        let upper = upper.add(b"fifo", of(b'6'), b"").end();
        let archive = save(&scratch.join("a.tar"), docker(&[lower, upper], CONFIG));
        let (references, image) =
            store.import_as(&tar(&archive), None, Ownership::Caller, How::default(), &mut |_| {}).unwrap();
        let out = scratch.join("out.tar");
        store.export(&references[0], &mut fs::File::create(&out).unwrap(), false, &Direct, &mut |_| {}).unwrap();
        assert_eq!(names(&scratch.join("images/staging")), ["lock"]);
        assert!(matches!(
            store.export("image://none:1", &mut Vec::new(), false, &Direct, &mut |_| {}),
            Err(Error::NotInStore { .. })
        ));

        let other = Store::at(&scratch.join("other"));
        let (again, back) = other.import_as(&tar(&out), None, Ownership::Caller, How::default(), &mut |_| {}).unwrap();
        assert_eq!(again, references);
        assert_eq!((&back.config, &back.declared), (&image.config, &image.declared));
        let trees = |image: &Image| -> Vec<_> { image.layers.iter().map(|layer| facts(layer)).collect() };
        assert_eq!(trees(&back), trees(&image));
        for image in [&image, &back] {
            let note = rustix::fs::getxattr(image.layers[0].join("noted"), "user.note", &mut [0; 8]);
            let opaque = rustix::fs::getxattr(image.layers[0].join("opaque"), "user.overlay.opaque", &mut [0; 8]);
            assert_eq!((note, opaque), (Ok(4), Ok(1)));
        }
        // Byte by byte, whenever it is made.
        let twice = scratch.join("twice.tar");
        other.export(&again[0], &mut fs::File::create(&twice).unwrap(), false, &Direct, &mut |_| {}).unwrap();
        assert_eq!(fs::read(&out).unwrap(), fs::read(&twice).unwrap());
    });
}
