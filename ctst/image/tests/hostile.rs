//! Archives that want something else than to be unpacked. Every entry lands inside or is refused by its name, and nothing
//! outside changes: around each target lie canaries that are compared afterwards.

mod common;

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::tarball::*;
use common::*;
use containust_image::{Algorithm, Direct, Error, IndexJob, Limits, Owners, Report, Runner, UnpackJob};

/// A folder for unpacking, with files beside and above it that archives try to reach.
struct Arena {
    scratch: Scratch,
    before: Vec<String>,
}

impl Arena {
    fn new() -> Arena {
        let scratch = Scratch::new();
        write(&scratch.join("canary"), "safe");
        write(&scratch.join("outside/canary"), "safe");
        fs::create_dir_all(scratch.join("a/b/target")).unwrap();
        write(&scratch.join("a/b/canary"), "safe");
        symlink("outside", scratch.join("a/b/link")).unwrap();
        let before = canaries(&scratch);
        Arena { scratch, before }
    }

    fn target(&self) -> PathBuf {
        self.scratch.join("a/b/target")
    }

    fn root(&self) -> PathBuf {
        self.target().join("0/tree")
    }

    fn run(&self, owners: Owners, limits: Limits, bytes: &[u8]) -> Result<Report, Error> {
        let archive = tempfile::NamedTempFile::new().unwrap();
        fs::write(archive.path(), bytes).unwrap();
        self.run_file(owners, limits, archive.path())
    }

    fn run_file(&self, owners: Owners, limits: Limits, archive: &Path) -> Result<Report, Error> {
        let job = UnpackJob { archive: "x.tar".into(), owners, limits, have: Vec::new(), partial: false, image: None };
        let file = fs::File::open(archive).unwrap().into();
        let result = Direct.unpack(&job, file, &self.target(), &mut |_| {});
        assert_eq!(canaries(&self.scratch), self.before, "something outside was touched");
        self.index_like(owners, limits, archive, &result);
        result
    }

    /// What unpacking refuses no container is started from either, by the same words.
    fn index_like(&self, owners: Owners, limits: Limits, archive: &Path, unpacked: &Result<Report, Error>) {
        for hash in [false, true] {
            self.index_as(hash, owners, limits, archive, unpacked);
        }
    }

    fn index_as(&self, hash: bool, owners: Owners, limits: Limits, archive: &Path, unpacked: &Result<Report, Error>) {
        let folder = tempfile::tempdir().unwrap();
        let job = IndexJob { archive: "x.tar".into(), owners, limits, hash };
        let indexed = Direct.index(&job, fs::File::open(archive).unwrap().into(), folder.path());
        match (unpacked, indexed) {
            (_, Err(Error::NotLazy { .. })) => {}
            (Ok(report), Ok(indexed)) => {
                assert_eq!(indexed.digest, hash.then(|| report.digest.clone()));
                if let [layer] = &report.layers[..] {
                    assert_eq!(layer.made.as_ref().unwrap().size, indexed.size);
                }
                assert_eq!((&report.config, &report.declared), (&indexed.config, &indexed.declared));
                // What a file system takes of attributes depends on it.
                if !report.notes.iter().any(|note| note.contains("attributes")) {
                    assert_eq!(report.notes, indexed.notes);
                }
            }
            (Err(Error::BlobDigest { .. }), Ok(_)) if !hash => {}
            // Only whoever unpacks reads everything.
            (Err(Error::TooLarge { .. }), _) => {}
            (Err(refused), Err(other)) => {
                let (refused, other) = (refused.to_string(), other.to_string());
                // Whoever passes over a file's content finds its end missing only behind it.
                let is_cut = refused.contains("it is not whole") && other.contains("it is not whole");
                // Of compressed data that is damaged, more or less has come out before that is seen.
                let is_packed = [&refused, &other].iter().any(|error| error.contains("compressed data"));
                assert!(is_cut || is_packed || refused == other, "{refused}\n{other}");
            }
            (unpacked, indexed) => panic!("unpacked: {unpacked:?}, indexed: {indexed:?}"),
        }
    }

    fn unpack(&self, bytes: &[u8]) -> Result<Report, Error> {
        self.run(Owners::Flatten, Limits::default(), bytes)
    }
}

/// Everything but the target, and the links to everything.
fn canaries(scratch: &Path) -> Vec<String> {
    let all = walkdir::WalkDir::new(scratch).sort_by_file_name().into_iter();
    all.filter_entry(|entry| entry.file_name() != "target")
        .map(|entry| {
            let entry = entry.unwrap();
            let meta = entry.path().symlink_metadata().unwrap();
            let content = if meta.is_file() { fs::read_to_string(entry.path()).unwrap() } else { String::new() };
            let links = if meta.is_dir() { 0 } else { meta.nlink() };
            format!("{} {:o} {links} {} {content}", entry.path().display(), meta.mode(), meta.mtime())
        })
        .collect()
}

/// The text of a refusal that names the entry, in a run as an ordinary user.
fn refused(what: &str, bytes: &[u8]) -> String {
    let arena = Arena::new();
    match arena.unpack(bytes) {
        Err(error @ Error::Entry { .. }) => {
            assert_eq!(error.code(), "I032", "{what}");
            error.to_string()
        }
        other => panic!("{what}: {other:?}"),
    }
}

fn damaged(what: &str, bytes: &[u8]) -> String {
    match Arena::new().unpack(bytes) {
        Err(error @ Error::Archive { .. }) => error.to_string(),
        other => panic!("{what}: {other:?}"),
    }
}

fn too_large(what: &str, limits: Limits, bytes: &[u8]) -> String {
    match Arena::new().run(Owners::Flatten, limits, bytes) {
        Err(error @ Error::TooLarge { .. }) => error.to_string(),
        other => panic!("{what}: {other:?}"),
    }
}

fn etc() -> Tarball {
    Tarball::new().dir("etc", 0o755)
}

/// I01–I12 and links into /proc.
#[test]
fn names_and_links_lead_nowhere() {
    as_user(|| {
        let victim = "x".repeat(20);
        let cases: [(&str, Tarball, &str); 16] = [
            ("../", etc().file("../canary", "bad"), "`../canary` leads out of its folder by `..`"),
            ("deep ../", etc().file("etc/a/../../../../canary", "bad"), "leads out"),
            (".. alone", etc().dir("..", 0), "`..` leads out"),
            ("absolute ../", etc().file("/../../canary", "bad"), "leads out"),
            (
                "write through an absolute link",
                etc().symlink("l", "/tmp").file("l/ctst-bad", "bad"),
                "lies below `l`, which is a symbolic link",
            ),
            ("write through a relative link", etc().symlink("l", "../..").file("l/canary", "bad"), "lies below `l`"),
            ("write through a link inside", etc().symlink("l", "etc").file("l/passwd", "bad"), "lies below `l`"),
            (
                "folder replaced by a link",
                etc().dir("d", 0o755).symlink("d", "../../../outside").file("d/canary", "bad"),
                "lies below `d`",
            ),
            ("folder in a link", etc().symlink("l", "..").dir("l/new", 0o777), "lies below `l`"),
            ("link to /proc", etc().symlink("l", "/proc/self/cwd").file("l/bad", "bad"), "lies below `l`"),
            (
                "hard link outside",
                etc().hard("h", "../../canary"),
                "`h` is a hard link to `../../canary`, which leads out",
            ),
            (
                "hard link through a link",
                etc().symlink("l", "../../../outside").hard("h", "l/canary"),
                "lies behind a link",
            ),
            ("hard link to nothing", etc().hard("h", "/etc/hostname-of-the-host"), "does not exist"),
            ("hard link to a folder", etc().hard("h", "etc"), "is no file"),
            ("hard link to the root", etc().hard("h", "/"), "is the root"),
            ("below a file", etc().file("f", &victim).file("f/x", "bad"), "lies below `f`, which is no folder"),
        ];
        for (what, tar, expected) in cases {
            let text = refused(what, &tar.end());
            assert!(text.contains(expected), "{what}: {text}");
        }
        // 60 links one after the other: each is kept as it is, none is followed.
        let mut tar = etc();
        for n in 0..60 {
            tar = tar.symlink(&format!("l{n}"), &format!("l{}", n + 1));
        }
        assert!(
            refused("60 links", &tar.symlink("l60", "../../..").file("l0/canary", "bad").end())
                .contains("lies below `l0`")
        );
    });
}

#[test]
fn what_looks_like_an_attack_and_is_none_lands_inside() {
    as_user(|| {
        let arena = Arena::new();
        let bytes = etc()
            .file("/absolute", "1")
            .file("//etc//./double", "2")
            // The last component is replaced, never written through.
            .symlink("final", "../../../canary")
            .file("final", "3")
            .symlink("gone", "/etc/passwd")
            .dir("gone", 0o755)
            .file("gone/inside", "4")
            // Neither are the names of one file.
            .file("one", "5")
            .hard("two", "one")
            .file("two", "6")
            .hard("one", "one")
            .symlink("proc", "/proc/self/root")
            .hard("proc2", "proc")
            .file("esc\x1b[2J", "7")
            .file("Case", "8")
            .file("case", "9")
            .end();
        let report = arena.unpack(&bytes).unwrap();
        assert_eq!(report.notes, Vec::<String>::new());
        let read = |name: &str| fs::read_to_string(arena.root().join(name)).unwrap();
        let names = ["absolute", "etc/double", "final", "gone/inside", "one", "two", "esc\x1b[2J", "Case", "case"];
        assert_eq!(names.map(read).concat(), "123456789");
        assert_eq!(fs::read_link(arena.root().join("proc2")).unwrap(), Path::new("/proc/self/root"));
        assert!(arena.root().join("final").symlink_metadata().unwrap().is_file());
        // CVE-2026-33056: the mode of a folder is not given to what a link of its name leads to.
        let arena = Arena::new();
        let tar = etc().symlink("d", "../../../../outside").dir("d", 0o700);
        arena.unpack(&tar.end()).unwrap();
        assert!(arena.root().join("d").symlink_metadata().unwrap().is_dir());
    });
}

/// I13–I16.
#[test]
fn special_files_and_modes() {
    as_user(|| {
        let arena = Arena::new();
        let device = |kind, device| Head { device, mode: 0o666, ..of(kind) };
        let bytes = etc()
            .add(b"dev/null", device(b'3', (1, 3)), b"")
            .add(b"dev/sda", device(b'4', (8, 0)), b"")
            // What overlayfs would take for a whiteout.
            .add(b"etc/hidden", device(b'3', (0, 0)), b"")
            .add(b"run/fifo", Head { mode: 0o622, ..of(b'6') }, b"")
            .add(b"su", Head { mode: 0o6755, ..Head::default() }, b"")
            .end();
        let report = arena.unpack(&bytes).unwrap();
        assert_eq!(report.notes, ["3 device nodes were left out: /dev/null, /dev/sda, /etc/hidden"]);
        let meta = |name: &str| arena.root().join(name).symlink_metadata();
        assert!(meta("run/fifo").unwrap().file_type().is_fifo());
        assert_eq!(meta("run/fifo").unwrap().mode() & 0o7777, 0o622);
        assert_eq!(meta("su").unwrap().mode() & 0o7777, 0o6755);
        assert_eq!(meta("su").unwrap().uid(), rustix::process::geteuid().as_raw());
        for name in ["dev/null", "dev/sda", "etc/hidden"] {
            assert!(meta(name).is_err(), "{name}");
        }
    });
}

/// I17–I20: in a layer that has one below.
#[test]
fn whiteouts() {
    as_user(|| {
        let image = |upper: Tarball| docker(&[etc().end(), upper.end()], "{}");
        let cases: [(&str, Tarball, &str); 8] = [
            ("of the root", Tarball::new().file(".wh..", ""), "whiteout of nothing that can be hidden"),
            ("of ..", Tarball::new().file("etc/.wh...", ""), "whiteout of nothing that can be hidden"),
            ("of nothing", Tarball::new().file("etc/.wh.", ""), "whiteout of nothing"),
            ("of all", Tarball::new().file(".wh..wh..opq", ""), "hides all layers below"),
            (
                "opaque through a link",
                Tarball::new().symlink("l", "../../../outside").file("l/.wh..wh..opq", ""),
                "lies below `l`",
            ),
            ("through a link", Tarball::new().symlink("l", "../../..").file("l/.wh.canary", ""), "lies below `l`"),
            ("with content", Tarball::new().file("etc/.wh.x", "content"), "is no empty file"),
            ("as a folder", Tarball::new().dir(".wh.etc", 0o755).file(".wh.etc/x", ""), "is no empty file"),
        ];
        for (what, tar, expected) in cases {
            let text = refused(what, &image(tar));
            assert!(text.contains(expected), "{what}: {text}");
        }
        assert!(refused("below one", &image(Tarball::new().file(".wh.a/b", ""))).contains("lies below a whiteout"));

        let arena = Arena::new();
        let upper = Tarball::new().file(".wh.etc", "").file("etc/new", "1").file("plain", "2").file(".wh.plain", "");
        let upper = upper.file(".wh..wh.plnk", "").hard(".wh.linked", "whatever").file(".wh.opt", "").file("opt", "3");
        let report = arena.unpack(&image(upper)).unwrap();
        let root = arena.target().join("1/tree");
        let opaque = |name: &str| rustix::fs::getxattr(root.join(name), "user.overlay.opaque", &mut [0; 4]).is_ok();
        assert!(opaque("etc") && fs::read(root.join("etc/new")).unwrap() == b"1");
        assert_eq!(
            (fs::read(root.join("plain")).unwrap(), fs::read(root.join("opt")).unwrap()),
            (b"2".to_vec(), b"3".to_vec())
        );
        assert!(root.join("linked").symlink_metadata().unwrap().file_type().is_char_device());
        assert_eq!(
            report.notes,
            [
                "1 folders are not described by their layer and were made with mode 0755: /etc",
                "1 records of aufs were left out: /.wh..wh.plnk"
            ]
        );
        // A whiteout cannot be had by a hard link, nor below the lowest layer.
        let tar = Tarball::new().file(".wh.x", "").hard("y", "x");
        assert!(refused("hard link to one", &image(tar)).contains("is no file"));
        let arena = Arena::new();
        let report = arena.unpack(&etc().file("etc/.wh.x", "").file("etc/.wh..wh..opq", "").end()).unwrap();
        assert_eq!(names(&arena.root().join("etc")), Vec::<String>::new());
        assert_eq!(report.notes.len(), 1, "{:?}", report.notes);
    });
}

/// I21–I28.
#[test]
fn odd_names_and_changes_of_type() {
    as_user(|| {
        let (long, component) = ([b"d/".repeat(2049), b"x".to_vec()].concat(), "n".repeat(256));
        let cases: [(&str, Tarball, &str); 8] = [
            (
                "file over a full folder",
                etc().file("etc/x", "").file("etc", ""),
                "would replace a folder that is not empty",
            ),
            ("link over a full folder", etc().file("etc/x", "").symlink("etc", "/"), "not empty"),
            ("file as the root", etc().file("./", "").add(b".", of(b'2'), b""), "is a link to nothing"),
            ("link as the root", etc().symlink("./", "/"), "would replace the root"),
            ("4,099 bytes", etc().long(b'L', &long).file("short", ""), "has a name of 4099 bytes, 4095 are the most"),
            (
                "256 bytes",
                etc().long(b'L', component.as_bytes()).file("short", ""),
                "has a name of 256 bytes, 255 are the most",
            ),
            ("no name", etc().file("", "x"), "has no name"),
            ("no name in PAX", etc().pax(&[("path", b"")]).file("x", "x"), "has no name"),
        ];
        for (what, tar, expected) in cases {
            let text = refused(what, &tar.end());
            assert!(text.contains(expected), "{what}: {text}");
        }
        let arena = Arena::new();
        let name = "n".repeat(255);
        let bytes = etc()
            .dir(".", 0o000)
            .file("a", "1")
            .dir("a", 0o700)
            .file("a", "2")
            .symlink("a", "etc")
            .add(b"a", of(b'6'), b"")
            .file("a", "3")
            .dir("etc", 0o000)
            .file("etc/inside", "4")
            .long(b'L', name.as_bytes())
            .file("short", "5")
            .long(b'K', &b"t/".repeat(300))
            .symlink("long", "short")
            .pax(&[("path", b"from/pax"), ("mtime", b"-1.25")])
            .file("not/this", "6")
            .end();
        arena.unpack(&bytes).unwrap();
        let mode = |path: &Path| path.symlink_metadata().unwrap().mode() & 0o7777;
        assert_eq!(mode(&arena.root()), 0);
        chmod(&arena.root(), 0o755);
        assert_eq!(mode(&arena.root().join("etc")), 0);
        chmod(&arena.root().join("etc"), 0o755);
        let read = |name: &str| fs::read_to_string(arena.root().join(name)).unwrap();
        assert_eq!(["a", "etc/inside", &name, "from/pax"].map(read).concat(), "3456");
        assert_eq!(fs::read_link(arena.root().join("long")).unwrap().as_os_str().len(), 600);
        let meta = arena.root().join("from/pax").metadata().unwrap();
        assert_eq!((meta.mtime(), meta.mtime_nsec()), (-2, 750_000_000));
    });
}

#[test]
fn depth_2000() {
    as_user(|| {
        for every_level in [false, true] {
            let arena = Arena::new();
            let mut tar = Tarball::new();
            let mut path = Vec::new();
            for _ in 0..2000 {
                path.extend(b"d/");
                if every_level {
                    tar = tar.long(b'L', &path).dir("short", 0o500);
                }
            }
            tar = tar.long(b'L', &[&path[..], b"f"].concat()).file("short", "deep");
            let start = Instant::now();
            let report = arena.unpack(&tar.end()).unwrap();
            assert_eq!(report.layers[0].made.as_ref().unwrap().size, 4);
            assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
        }
        // Few bytes that make many folders.
        let mut tar = Tarball::new();
        for n in 0..100 {
            tar = tar.long(b'L', &[format!("{n}/").as_bytes(), &b"d/".repeat(2000)].concat()).file("short", "");
        }
        let text = too_large("names", Limits { names: 4 << 20, ..Limits::default() }, &gzip(&tar.end()));
        assert!(text.contains("has names of more than 4194304 bytes"), "{text}");
    });
}

/// I29–I34.
#[test]
fn attributes_owners_and_times() {
    as_user(|| {
        for name in ["user.overlay.redirect", "user.overlay.opaque", "user.overlay.whiteout", "user.overlay.metacopy"] {
            for kind in [b'0', b'5'] {
                let tar = etc().pax(&[(&format!("SCHILY.xattr.{name}"), b"/etc")]).add(b"x", of(kind), b"");
                let text = refused(name, &tar.end());
                assert!(text.contains(&format!("has the attribute `{name}`")), "{text}");
            }
        }
        let arena = Arena::new();
        let bytes = etc()
            .pax(&[("SCHILY.xattr.user.a", b"line\nbreak\0"), ("SCHILY.xattr.security.capability", b"\x01\0\0\x02")])
            .file("file", "1")
            .pax(&[("SCHILY.xattr.trusted.overlay.opaque", b"y"), ("SCHILY.xattr.user.b", b"2")])
            .dir("folder", 0o555)
            .pax(&[("SCHILY.acl.access", b"user::rwx"), ("LIBARCHIVE.xattr.user.c", b"eA==")])
            .file("other", "2")
            .add(b"owned", Head { uid: 1000, gid: 50, ..Head::default() }, b"")
            .pax(&[("mtime", b"9223372036854775807"), ("uid", b"4294967294")])
            .file("late", "")
            .pax(&[("mtime", b"-9223372036854775808")])
            .file("early", "")
            .end();
        let report = arena.unpack(&bytes).unwrap();
        let get = |path: &str, name: &str| {
            let mut value = [0; 64];
            rustix::fs::getxattr(arena.root().join(path), name, &mut value).map(|count| value[..count].to_vec())
        };
        assert_eq!(
            (get("file", "user.a").unwrap(), get("folder", "user.b").unwrap()),
            (b"line\nbreak\0".to_vec(), b"2".to_vec())
        );
        assert!(get("file", "security.capability").is_err() && get("folder", "trusted.overlay.opaque").is_err());
        assert_eq!(
            report.notes,
            [
                "4 attributes were left out (LIBARCHIVE.xattr.user.c, SCHILY.acl.access, security.capability, trusted.overlay.opaque): /file, /folder, /other, /other",
                "2 files of other owners (uid 1000, 4294967294; gid 50) belong to root inside the container"
            ]
        );
        let map = Owners::Map { base: 0, count: 1000 };
        for (what, head) in
            [("uid", Head { uid: 1000, ..Head::default() }), ("gid", Head { gid: 1000, ..Head::default() })]
        {
            let error = Arena::new().run(map, Limits::default(), &etc().add(b"etc/x", head, b"").end()).unwrap_err();
            // As an ordinary user, giving the first entry to root fails before that.
            let is_named =
                matches!(&error, Error::OwnerRange { path, id: 1000, count: 1000 } if path.ends_with("etc/x"));
            assert!(is_named, "{what}: {error}");
        }
        for (what, value) in [
            ("mtime", "1e9"),
            ("mtime", ""),
            ("mtime", "9223372036854775808"),
            ("uid", "-1"),
            ("uid", "4294967296"),
            ("uid", "4294967295"),
            ("gid", "x"),
        ] {
            refused(what, &etc().pax(&[(what, value.as_bytes())]).file("x", "").end());
        }
    });
}

/// As root of a namespace with ids, as in a worker.
#[test]
fn a_map_gives_files_to_their_owners() {
    if !rustix::process::geteuid().is_root() {
        println!("NOT RUN: needs root");
        return;
    }
    let arena = Arena::new();
    let bytes = etc()
        .add(b"a", Head { uid: 7, gid: 8, mode: 0o6755, ..Head::default() }, b"")
        .add(b"d", Head { uid: 9, mode: 0o700, ..of(b'5') }, b"")
        .add(b"d/l", Head { uid: 10, link: b"x", ..of(b'2') }, b"")
        .add(b"d/f", Head { gid: 11, ..of(b'6') }, b"")
        .end();
    let owners = Owners::Map { base: 70_000, count: 100 };
    let report = arena.run(owners, Limits::default(), &bytes).unwrap();
    let ids = |name: &str| {
        let meta = arena.root().join(name).symlink_metadata().unwrap();
        (meta.uid() - 70_000, meta.gid() - 70_000)
    };
    assert_eq!([ids(""), ids("a"), ids("d"), ids("d/l"), ids("d/f")], [(0, 0), (7, 8), (9, 0), (10, 0), (0, 11)]);
    assert_eq!(arena.root().join("a").metadata().unwrap().mode() & 0o7777, 0o6755);
    assert_eq!(
        Direct.digest(owners, Algorithm::Blake3, &arena.root()).unwrap(),
        report.layers[0].made.as_ref().unwrap().tree
    );
    // The digest is of the archive's owners, not of this range.
    let other = Arena::new().run(Owners::Map { base: 90_000, count: 100 }, Limits::default(), &bytes).unwrap();
    assert_eq!(other, report);
}

/// I40–I49.
#[test]
fn damaged_headers_have_no_second_meaning() {
    as_user(|| {
        let base256 = |value: i128| {
            let mut field = [0; 12];
            field.copy_from_slice(&value.to_be_bytes()[4..]);
            field[0] |= 0x80;
            Some(field)
        };
        let sized = |size| etc().header(b"big", &Head { size, ..Head::default() }, 0);
        let too_large_sizes =
            [("2^62", base256(1 << 62)), ("1 TiB", base256(1 << 40)), ("octal", Some(*b"77777777777\0"))];
        for (what, size) in too_large_sizes {
            let text = too_large(what, Limits { bytes: 1 << 30, ..Limits::default() }, &sized(size).end());
            assert!(text.contains("entry `big` has"), "{text}");
        }
        let mut sum = etc().end();
        sum[600..605].copy_from_slice(b"wrong");
        let first = {
            let mut bytes = etc().end();
            bytes[0] ^= 1;
            bytes
        };
        assert!(damaged("no archive", &first).contains("is not a tar archive"));
        assert!(damaged("text", b"hello, this is no archive\n").contains("ends in the middle of a header"));
        assert!(damaged("empty", b"").ends_with("is empty"));
        assert!(damaged("zeros", &[0; 10240]).ends_with("holds nothing"));
        assert!(damaged("bzip2", b"BZh91AY&SY").contains("bzip2"));
        let bad_sum = {
            let mut bytes = etc().file("etc/x", "content").end();
            bytes[512 + 100] ^= 1;
            bytes
        };
        assert!(damaged("checksum", &bad_sum).contains("wrong checksum"));

        let longer = |name: &[u8]| etc().pax(&[("path", name)]).file("x", "");
        let cases: [(&str, Tarball, &str); 24] = [
            ("negative size", sized(base256(-512)), "negative, too large or not a number"),
            ("size of 2^64", sized(base256(1 << 64)), "negative, too large"),
            ("size that is text", sized(Some(*b"0x100      \0")), "not a number"),
            ("NUL in a PAX path", longer(b"a\0b"), "has a NUL in its name"),
            (
                "NUL in a PAX link",
                etc().pax(&[("linkpath", b"a\0b")]).symlink("x", "y"),
                "has a NUL in its link target",
            ),
            ("NUL in a long name", etc().long(b'L', b"a\0b").file("x", ""), "has a NUL in its name"),
            // CVE-2025-62518: two programs that believe different sizes see different files.
            (
                "two sizes",
                etc().pax(&[("size", b"1024")]).file("x", vec![0; 512]),
                "has 512 bytes by its header and 1024 by its extended header",
            ),
            (
                "a size where the header says none",
                etc().pax(&[("size", b"512")]).header(b"x", &Head::default(), 0).file("hidden", ""),
                "has 0 bytes by its header",
            ),
            ("two paths", etc().pax(&[("path", b"a"), ("path", b"b")]).file("x", ""), "sets `path` twice"),
            (
                "two PAX headers",
                etc().pax(&[("path", b"a")]).pax(&[("uid", b"1")]).file("x", ""),
                "two extended headers",
            ),
            ("two long names", etc().long(b'L', b"a").long(b'L', b"b").file("x", ""), "two long names"),
            ("GNU and PAX names", etc().long(b'L', b"a").pax(&[("path", b"b")]).file("x", ""), "two long names"),
            ("global path", etc().extended(b'g', &[("path", b"a")]).file("x", ""), "sets `path` for all entries"),
            ("global size", etc().extended(b'g', &[("size", b"0")]).file("x", ""), "sets `size` for all"),
            ("lying PAX length", etc().add(b"p", of(b'x'), b"99 path=a\n").file("x", ""), "malformed extended header"),
            ("short PAX length", etc().add(b"p", of(b'x'), b"5 path=a\n").file("x", ""), "malformed"),
            (
                "PAX length of 10^20",
                etc().add(b"p", of(b'x'), b"99999999999999999999 path=a\n").file("x", ""),
                "malformed",
            ),
            ("PAX without =", etc().add(b"p", of(b'x'), b"7 path\n").file("x", ""), "malformed"),
            ("large PAX header", etc().header(b"p", &of(b'x'), 1 << 32), "extended header of 4294967296 bytes"),
            ("unknown type", etc().add(b"x", of(b'Q'), b""), "is of type `Q`"),
            ("volume label", etc().add(b"x", of(b'V'), b""), "is of type `V`"),
            ("folder with content", etc().add(b"d", of(b'5'), b"hidden"), "claims 6 bytes of content"),
            ("link with content", etc().add(b"d", Head { link: b"x", ..of(b'2') }, b"hidden"), "claims 6 bytes"),
            ("star's sparse files", etc().pax(&[("SCHILY.realsize", b"9")]).file("x", ""), "format of star"),
        ];
        for (what, tar, expected) in cases {
            let text = refused(what, &tar.end());
            assert!(text.contains(expected), "{what}: {text}");
        }
        assert!(
            damaged("an extension of nothing", &etc().pax(&[("uid", b"1")]).end())
                .contains("ends after an extended header")
        );
        assert!(damaged("data after the end", &[etc().end(), etc().end()].concat()).contains("data after its end"));
        let mut gap = etc();
        gap.0.extend([0; 512]);
        assert!(damaged("a gap", &gap.file("etc/x", "").end()).contains("data after its end"));
        // What is allowed to differ: more than 8 GiB do not fit into the header.
        let text = too_large(
            "9 GiB",
            Limits { bytes: 8 << 30, ..Limits::default() },
            &etc().pax(&[("size", b"9663676416")]).header(b"x", &Head::default(), 0).end(),
        );
        assert!(text.contains("9663676416"), "{text}");
        Arena::new().unpack(&etc().extended(b'g', &[("comment", b"from git")]).file("x", "").end()).unwrap();
    });
}

#[test]
fn every_truncation_is_seen() {
    as_user(|| {
        let sparse = fs::read(sparse_archive()).unwrap();
        let plain =
            etc().long(b'L', b"etc/long").file("s", vec![1; 1000]).pax(&[("path", b"etc/p")]).file("s", "x").end();
        for (what, whole, step) in [
            ("plain", plain.clone(), 100),
            ("gzip", gzip(&plain), 7),
            ("zstd", zstd(&plain), 7),
            ("xz", xz(&plain), 9),
            ("sparse", sparse, 300),
        ] {
            // What a tar archive ends with is its end marker and padding.
            let limit = match what {
                "plain" | "sparse" => (whole.iter().rposition(|b| *b != 0).unwrap() + 1).next_multiple_of(512),
                _ => whole.len() - 1,
            };
            Arena::new().unpack(&whole).unwrap();
            for length in (1..limit).step_by(step).chain([limit]) {
                let error = Arena::new().unpack(&whole[..length]).unwrap_err();
                let is_clear = matches!(error, Error::Archive { .. } | Error::Entry { .. });
                assert!(is_clear, "{what} {length} of {}: {error}", whole.len());
            }
        }
    });
}

/// A sparse file with many stretches, by GNU tar.
fn sparse_archive() -> PathBuf {
    let folder = tempfile::tempdir().unwrap().keep();
    let file = fs::File::create(folder.join("sparse")).unwrap();
    for n in 0..30 {
        std::os::unix::fs::FileExt::write_all_at(&file, b"data", n << 16).unwrap();
    }
    let archive = folder.join("a.tar");
    let status = std::process::Command::new("tar")
        .args(["-Scf"])
        .arg(&archive)
        .args(["--format=gnu", "-C"])
        .args([&folder, Path::new("sparse")])
        .status();
    assert!(status.unwrap().success());
    archive
}

#[test]
fn sparse_files_promise_nothing() {
    as_user(|| {
        // 1 TiB of hole: refused by size, whatever it takes on disk.
        let pax = |size: &str, map: &str| {
            let mut data = map.as_bytes().to_vec();
            data.resize(512, 0);
            let records: [(&str, &[u8]); 4] = [
                ("GNU.sparse.major", b"1"),
                ("GNU.sparse.minor", b"0"),
                ("GNU.sparse.name", b"etc/sparse"),
                ("GNU.sparse.realsize", size.as_bytes()),
            ];
            etc().pax(&records).file("GNUSparseFile.0/sparse", [&data[..], b"data"].concat()).end()
        };
        let text = too_large("1 TiB", Limits::default(), &pax("1099511627776", "1\n0\n4\n"));
        assert!(text.contains("entry `etc/sparse` has 1099511627776 bytes"), "{text}");
        let arena = Arena::new();
        arena.unpack(&pax("1000000", "1\n999996\n4\n")).unwrap();
        let meta = arena.root().join("etc/sparse").metadata().unwrap();
        assert!((meta.len(), meta.blocks() < 64) == (1_000_000, true));
        let many = Limits { bytes: 2_000_000, ..Limits::default() };
        let whole = pax("999999", "1\n0\n4\n");
        let one = &whole[..whole.len() - 1024];
        let bytes = [one, one, one, &[0; 1024]].concat();
        assert!(too_large("many holes", many, &bytes).contains("unpacks to more than 2000000 bytes"));
        for (what, map) in [
            ("overlap", "2\n0\n2\n1\n2\n"),
            ("out of bounds", "1\n999999\n4\n"),
            ("too little", "1\n0\n3\n"),
            ("no end", "99999\n0\n4\n"),
            ("2^64", "1\n18446744073709551615\n4\n"),
            ("too many", "1000000000000\n"),
            ("no number", "1\nx\n4\n"),
            ("negative", "1\n-1\n4\n"),
        ] {
            assert!(refused(what, &pax("1000000", map)).contains("sparse map"), "{what}");
        }
        for (what, records) in [
            ("0.0", vec![("GNU.sparse.size", &b"9"[..])]),
            ("0.1", vec![("GNU.sparse.map", &b"0,4"[..])]),
            ("2.0", vec![("GNU.sparse.major", &b"2"[..])]),
        ] {
            assert!(refused(what, &etc().pax(&records).file("x", "data").end()).contains("is sparse in"), "{what}");
        }
    });
}

/// I50 and I51.
#[test]
fn bombs_hit_a_limit() {
    as_user(|| {
        let big = |size: u64| {
            let head = Tarball::new().header(b"etc/zeros", &Head::default(), size).0;
            (head, size)
        };
        // 8 GB of zeros in 8 MB (gzip) and less than 1 MB (zstd).
        let (head, size) = big(8_000_000_000);
        let scratch = Scratch::new();
        for kind in ["gzip", "zstd"] {
            let path = scratch.join(kind);
            let file = fs::File::create(&path).unwrap();
            let mut out: Box<dyn std::io::Write> = match kind {
                "gzip" => Box::new(flate2::write::GzEncoder::new(file, flate2::Compression::fast())),
                _ => Box::new(zstd::stream::write::Encoder::new(file, 1).unwrap().auto_finish()),
            };
            out.write_all(&head).unwrap();
            let zeros = vec![0; 1 << 20];
            for _ in 0..size.min(1_000_000_000) >> 20 {
                out.write_all(&zeros).unwrap();
            }
            drop(out);
            let start = Instant::now();
            let limits = Limits { ratio: 100, ..Limits::default() };
            let arena = Arena::new();
            let error = arena.run_file(Owners::Flatten, limits, &path).unwrap_err();
            assert!(matches!(&error, Error::TooLarge { what, .. } if what.contains("100 times")), "{error}");
            let limits = Limits { bytes: 100 << 20, ..Limits::default() };
            let error = Arena::new().run_file(Owners::Flatten, limits, &path).unwrap_err();
            assert!(matches!(&error, Error::TooLarge { .. }), "{error}");
            assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
        }
        // The same inside an image.
        let zeros = Tarball::new().file("etc/zeros", vec![0; 300 << 20]).end();
        let document = document(std::slice::from_ref(&zeros), "{}");
        let image = Oci::new().image(&document, &[zeros], common::tarball::zstd, "").end();
        let text = too_large("in an image", Limits::default(), &image);
        assert!(text.contains("1000 times"), "{text}");

        let mut many = Tarball::new();
        for n in 0..5000 {
            many = many.file(&format!("etc/{n}"), "");
        }
        let text = too_large("many files", Limits { entries: 4000, ..Limits::default() }, &many.end());
        assert!(text.contains("more than 4000 files"), "{text}");
    });
}

/// I52.
#[test]
fn documents_of_images() {
    as_user(|| {
        let layers = [etc().end()];
        let good = document(&layers, "{}");
        let sha = sha256(good.as_bytes());
        let docker = |config: &str, manifest: &str| {
            Tarball::new().file("config", config).file("l.tar", &layers[0]).file("manifest.json", manifest).end()
        };
        let manifest = r#"[{"Config":"config","Layers":["l.tar"]}]"#;
        Arena::new().unpack(&docker(&good, manifest)).unwrap();
        let deep = format!("{}1{}", r#"{"a":"#.repeat(100_000), "}".repeat(100_000));
        let words = document(&layers, &format!(r#"{{"Cmd":{}{}}}"#, "[".repeat(100_000), "]".repeat(100_000)));
        let twice = good.replacen("\"os\"", "\"os\":\"windows\",\"os\"", 1);
        let labels = document(&layers, r#"{"Labels":{"a":"1","a":"2"}}"#);
        let large = format!("{good}{}", " ".repeat(8 << 20));
        let absent = document(&[], "{}");
        let not_ours = document(&[b"other".to_vec()], "{}");
        let cases: [(&str, Vec<u8>, &str); 15] = [
            ("depth", docker(&deep, manifest), "missing field `rootfs`"),
            ("depth that counts", docker(&words, manifest), "recursion limit"),
            ("duplicate key", docker(&twice, manifest), "duplicate field `os`"),
            ("duplicate label", docker(&labels, manifest), "duplicate key `a`"),
            ("8 MiB", docker(&large, manifest), "8388608 are the most"),
            ("wrong count", docker(&absent, manifest), "has 1 layers and a config for 0"),
            ("no JSON", docker("{", manifest), "bad document `config`"),
            ("binary", docker("\0\0", manifest), "no JSON document"),
            ("no layer", docker(&good, r#"[{"Config":"config","Layers":["none.tar"]}]"#), "lacks `none.tar`"),
            ("no config", docker(&good, r#"[{"Config":"none","Layers":["l.tar"]}]"#), "lacks `none`"),
            (
                "outside",
                docker(&good, r#"[{"Config":"config","Layers":["../../../../etc/passwd"]}]"#),
                "lacks `../../../../etc/passwd`",
            ),
            ("no image", docker(&good, "[]"), "holds no image"),
            ("manifest", docker(&good, r#"[{"Layers":[]}]"#), "missing field `Config`"),
            (
                "no layers at all",
                docker(&document(&[], "{}"), r#"[{"Config":"config","Layers":null}]"#),
                "has no layers",
            ),
            ("bad diff", docker(&good.replace("sha256:", "md5:"), manifest), "names a digest that is not sha256"),
        ];
        for (what, bytes, expected) in cases {
            let text = damaged(what, &bytes);
            assert!(text.contains(expected), "{what}: {text}");
        }
        let mismatch = |what: &str, bytes: &[u8]| match Arena::new().unpack(bytes) {
            Err(error @ Error::BlobDigest { .. }) => assert_eq!(error.code(), "I034"),
            other => panic!("{what}: {other:?}"),
        };
        mismatch("diff", &docker(&not_ours, manifest));
        let named = Tarball::new().file(&format!("{sha}.json"), format!("{good} ")).file("l.tar", &layers[0]);
        mismatch(
            "config",
            &named.file("manifest.json", format!(r#"[{{"Config":"{sha}.json","Layers":["l.tar"]}}]"#)).end(),
        );
        for kind in ["manifest.v1+json", "config.v1+json", "layer"] {
            let mut oci = Oci::new().image(&good, &layers, gzip, "").end();
            // One byte of a blob, and its header is right.
            let needle: &[u8] = match kind {
                "manifest.v1+json" => b"\"schemaVersion\":2,\"config\"",
                "config.v1+json" => b"\"rootfs\"",
                _ => b"\x1f\x8b\x08",
            };
            let at = oci.windows(needle.len()).position(|window| window == needle).unwrap();
            match kind {
                "layer" => oci[at + 4] ^= 1,
                "manifest.v1+json" => oci[at + 17] = b'3',
                _ => oci[at + needle.len()] = b' ',
            }
            mismatch(kind, &oci);
        }
        // An index that names itself cannot have its own digest.
        let mut oci = Oci::new().image(&good, &layers, gzip, "");
        let fake = "0".repeat(64);
        let index =
            format!(r#"{{"mediaType":"application/vnd.oci.image.index.v1+json","digest":"sha256:{fake}","size":9}}"#);
        oci.manifests.push(index);
        assert!(damaged("missing index", &oci.end()).contains("lacks the blob"));
        let body = format!(
            r#"{{"manifests":[{{"mediaType":"application/vnd.oci.image.index.v1+json","digest":"sha256:{fake}","size":{{}}}}]}}"#
        );
        let body = body.replace("{}", &(body.len() + 1).to_string());
        let mut oci = Oci::new();
        oci.tar = oci.tar.file(&format!("blobs/sha256/{fake}"), &body);
        oci.manifests.push(format!(
            r#"{{"mediaType":"application/vnd.oci.image.index.v1+json","digest":"sha256:{fake}","size":{}}}"#,
            body.len()
        ));
        mismatch("loop", &oci.end());
        // The same blob for two digests.
        let two = document(&[layers[0].clone(), b"x".to_vec()], "{}");
        assert!(
            damaged("one for two", &docker(&two, r#"[{"Config":"config","Layers":["l.tar","l.tar"]}]"#))
                .contains("for two digests")
        );
        let again = Tarball::new().file("l.tar", &layers[0]).symlink("l.tar", "config").file("config", &good);
        assert!(refused("twice", &again.file("manifest.json", manifest).end()).contains("`l.tar` is there twice"));
        // A list that is none does not make a root file system of what it lists.
        for broken in ["{", "{}", "\"\"", ""] {
            let saved =
                Tarball::new().file("config", &good).file("l.tar", &layers[0]).file("manifest.json", broken).end();
            assert!(damaged("broken", &saved).contains("no list of them"), "{broken}");
        }
        let site = Tarball::new().file("index.html", "x").file("manifest.json", "{}").end();
        Arena::new().unpack(&site).unwrap();
        // One layer twice is one layer.
        let two = document(&[layers[0].clone(), layers[0].clone()], "{}");
        let report = Arena::new().unpack(&docker(&two, r#"[{"Config":"config","Layers":["l.tar","l.tar"]}]"#)).unwrap();
        assert_eq!(report.layers.len(), 1);
        // Links between layers, as docker wrote them; around a circle, too.
        let linked = |target: &str| {
            let tar = Tarball::new()
                .file("a/real.tar", &layers[0])
                .symlink("b/layer.tar", target)
                .symlink("b/loop", "../b/layer.tar");
            tar.file("config", &good).file("manifest.json", r#"[{"Config":"config","Layers":["b/layer.tar"]}]"#).end()
        };
        Arena::new().unpack(&linked("../a/real.tar")).unwrap();
        assert!(damaged("circle", &linked("loop")).contains("lacks `b/layer.tar`"));
    });
}

#[test]
fn other_platforms_and_several_images() {
    as_user(|| {
        let layers = [etc().end()];
        let for_platform = |os: &str, architecture: &str| document_for(os, architecture, &layers, "{}");
        let platform = |oci: Oci, os: &str, architecture: &str| {
            let more = format!(r#","platform":{{"os":"{os}","architecture":"{architecture}"}}"#);
            oci.image(&for_platform(os, architecture), &layers, gzip, &more)
        };
        let own = architecture();
        let other = platform(platform(Oci::new(), "linux", "s390x"), "windows", own);
        let error = Arena::new().unpack(&other.end()).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("archive `x.tar` has no image for linux/{own}, only for linux/s390x, windows/{own}")
        );
        // The right one among others, and attestations.
        let many = platform(platform(platform(Oci::new(), "linux", "s390x"), "linux", own), "unknown", "unknown");
        Arena::new().unpack(&many.end()).unwrap();
        let one = Oci::new().image(&for_platform("linux", "riscv64"), &layers, gzip, "");
        assert!(matches!(Arena::new().unpack(&one.end()), Err(Error::Platform { .. })));
        let named = |name: &str| format!(r#","annotations":{{"io.containerd.image.name":"{name}"}}"#);
        let second = document(&layers, r#"{"Cmd":["2"]}"#);
        let two = Oci::new().image(&for_platform("linux", own), &layers, gzip, &named("one:1")).image(
            &second,
            &layers,
            gzip,
            &named("two:2\x1b"),
        );
        let error = Arena::new().unpack(&two.end()).unwrap_err();
        // A control character is no JSON.
        assert!(matches!(error, Error::Archive { .. }), "{error}");
        let two = Oci::new().image(&for_platform("linux", own), &layers, gzip, &named("one:1")).image(
            &second,
            &layers,
            gzip,
            &named("two:2\\u001b"),
        );
        let error = Arena::new().unpack(&two.end()).unwrap_err();
        assert_eq!(error.to_string(), "archive `x.tar` holds 2 images: one:1, two:2\\u{1b}");
    });
}

/// Thousands of small changes: no panic, nothing outside, nothing that hangs, and an answer every time.
#[test]
fn mutations() {
    as_user(|| {
        let rootfs = etc()
            .long(b'L', b"etc/a-long-name")
            .file("s", "content")
            .pax(&[("path", b"etc/pax"), ("SCHILY.xattr.user.a", b"1"), ("mtime", b"1.5")])
            .file("s", "x")
            .symlink("etc/l", "../../canary")
            .hard("etc/h", "etc/pax")
            .add(b"etc/fifo", of(b'6'), b"")
            .file("etc/.wh.gone", "")
            .end();
        let sparse = fs::read(sparse_archive()).unwrap();
        let image = docker(&layers_for_mutation(), "{}");
        let oci = Oci::new().image(&document(&layers_for_mutation(), "{}"), &layers_for_mutation(), gzip, "").end();
        let seeds = [rootfs.clone(), gzip(&rootfs), zstd(&rootfs), xz(&rootfs), sparse, image, oci];
        let limits = Limits { bytes: 64 << 20, entries: 1000, names: 1 << 20, ..Limits::default() };
        let mut state = 0x2545_F491_4F6C_DD1D_u64;
        let mut random = |below: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            usize::try_from(state % below as u64).unwrap()
        };
        let (start, mut good, mut bad) = (Instant::now(), 0, 0);
        for round in 0..1500 {
            let mut bytes = seeds[round % seeds.len()].clone();
            for _ in 0..=random(4) {
                let at = random(bytes.len());
                match random(6) {
                    0 => bytes[at] = u8::try_from(random(256)).unwrap(),
                    1 => bytes[at] ^= 1 << random(8),
                    2 => bytes.truncate(at.max(1)),
                    3 => {
                        let block = bytes[at / 512 * 512..].iter().take(512).copied().collect::<Vec<u8>>();
                        let to = random(bytes.len()) / 512 * 512;
                        bytes.splice(to..to, block);
                    }
                    4 => bytes[at] = b"0123456789./\0 "[random(14)],
                    _ => drop(bytes.drain(at..(at + random(600)).min(bytes.len()))),
                }
                if bytes.is_empty() {
                    bytes.push(0);
                }
            }
            // Headers with a right checksum get further.
            if random(2) == 0 {
                for block in bytes.chunks_exact_mut(512).filter(|block| &block[257..262] == b"ustar") {
                    let sum: u32 = with_sum(block.try_into().unwrap())[148..154]
                        .iter()
                        .fold(0, |sum, b| sum * 8 + u32::from(b - b'0'));
                    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
                }
            }
            match Arena::new().run(Owners::Flatten, limits, &bytes) {
                Ok(_) => good += 1,
                Err(Error::Io { step, path, cause }) => panic!("round {round}: {step} {}: {cause}", path.display()),
                Err(_) => bad += 1,
            }
        }
        println!("{good} unpacked, {bad} refused, {:?}", start.elapsed());
        assert!(good > 50 && bad > 500, "{good} unpacked, {bad} refused");
    });
}

fn layers_for_mutation() -> Vec<Vec<u8>> {
    vec![
        etc().file("etc/x", "1").end(),
        etc().file("etc/.wh.x", "").dir("opt", 0o755).file("opt/.wh..wh..opq", "").end(),
    ]
}
