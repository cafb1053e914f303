//! A stack that travels as one file: all that it takes is in it, it runs where nothing is reached, and a hostile one does no harm.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::process::Command;

use containust_tests::archive::{Archive, docker, oci, sha256};
use containust_tests::{Caller, Project, eventually, finish};
use rustix::process::geteuid;
use serde_json::{Value, json};

/// Names and contents.
type Members = Vec<(String, Vec<u8>)>;

const NAME: &str = "x.ctstar";
const MANIFEST: &str = "containust-bundle.json";

/// A stack of two images that share a layer, an import, variables and a config from files, and a profile.
const STACK: &str = r#"
PARAM word = "usual"
IMPORT "lib/base.ctst" AS lib
CONFIG page = { file = "conf/page" }
COMPONENT one FROM lib.base {
  command = ["/bin/sh", "-c", "echo $A $B; cat /page; cat /above; exec sleep 1000"]
  env { B = "${word}" }
  configs = ["page"]
  seccomp = "./profile.json"
}
COMPONENT two { image = "tar://./two.tar" command = ["/bin/sh", "-c", "cat /above; exec sleep 1000"] }
JOB three { image = "tar://./three.tar" command = ["/bin/sh", "-c", "ls /srv"] }
"#;

fn source(caller: &Caller) -> Project {
    let project = Project::new(caller, STACK);
    for folder in ["lib", "conf"] {
        project.make_folder(folder);
    }
    let base = r#"COMPONENT base { image = "tar://../one.tar" env_file = ["base.env", { path = "none.env" required = false }] }"#;
    project.write("lib/base.ctst", base);
    project.write("lib/base.env", "A=of-a-file\n");
    project.write("conf/page", "of a config\n");
    project.write("profile.json", r#"{ "defaultAction": "SCMP_ACT_ALLOW" }"#);
    let lower = Archive::root().end();
    let layers = |text: &str| vec![lower.clone(), Archive::new().file("above", text).end()];
    project.write_bytes("one.tar", &docker(&layers("one\n"), &json!({})));
    project.write_bytes("two.tar", &oci(&layers("two\n"), &json!({})));
    project.write_bytes("three.tar", &lower);
    project
}

/// Another folder, as on another host, with nothing in it but the bundle.
fn elsewhere(caller: &Caller, bundle: &[u8]) -> Project {
    let project = Project::new(caller, "");
    fs::remove_file(project.folder().join("stack.ctst")).expect("remove a file");
    project.write_bytes(NAME, bundle);
    project
}

fn made(project: &Project) -> Vec<u8> {
    project.ctst(["bundle", "-o", NAME]).ok();
    fs::read(project.folder().join(NAME)).expect("a bundle")
}

/// What it writes, once it does.
fn says(project: &Project, component: &str, text: &str) {
    eventually(&format!("{component} says {text:?}"), || project.logs(component) == text);
}

fn store(project: &Project, folder: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(project.folder().join(".containust/images").join(folder)) else { return Vec::new() };
    entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name != "lock")
        .collect()
}

/// Members by name, in their order.
fn members(bundle: &[u8]) -> Members {
    let mut archive = tar::Archive::new(bundle);
    let read = |entry: std::io::Result<tar::Entry<'_, &[u8]>>| {
        let mut entry = entry.expect("an entry");
        let name = entry.path().expect("a name").display().to_string();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).expect("a content");
        (name, bytes)
    };
    archive.entries().expect("an archive").map(read).collect()
}

#[test]
fn a_stack_travels_as_one_file() {
    for caller in Caller::all().into_iter().chain(Caller::strict()) {
        let about = format!("as {}", caller.name);
        let project = source(&caller);
        let done = project.ctst(["bundle", "--offline", "-o", NAME]).ok();
        let bundle = fs::read(project.folder().join(NAME)).expect("a bundle");
        let digest = sha256(&bundle);
        assert_eq!(done.stdout, format!("{digest}  {NAME}\n"), "{about}");
        assert_eq!(made(&project), bundle, "{about}: made again");

        let there = elsewhere(&caller, &bundle);
        let plan = there.ctst(["--offline", "plan"]).ok();
        assert!(plan.stdout.contains("tar://./two.tar of a bundle, will be unpacked"), "{about}: {plan}");
        assert!(!there.folder().join(".containust").exists(), "{about}: a plan writes nothing");
        let done = there.ctst(["--offline", "up", NAME, "--sha256", &digest]).ok();
        assert!(done.stderr.contains(&format!("{NAME} is whole: sha256:{digest}")), "{about}: {done}");
        says(&there, "one", "of-a-file usual\nof a config\none\n");
        says(&there, "two", "two\n");
        assert!(there.logs("three").contains("owned\n"), "{about}");
        // The lowest layer of all, and what is above it in two.
        assert_eq!(store(&there, "layers").len(), 3, "{about}");
        let again = there.ctst(["--offline", "up"]).ok();
        assert!(again.stderr.contains("nothing to do"), "{about}: {again}");
        let other = there.ctst(["--offline", "up", NAME, "--set", "word=other"]).ok();
        assert!(!other.stderr.contains("import"), "{about}: {other}");
        says(&there, "one", "of-a-file other\nof a config\none\n");
        let images = there.ctst(["images"]).ok();
        assert!(images.stdout.contains("tar://./two.tar of a bundle"), "{about}: {images}");
        assert_eq!(there.ctst(["images", "verify"]).ok().stdout.matches("whole").count(), 3, "{about}");
        // What a bundle of the folder names is kept.
        there.ctst(["down"]).ok();
        assert_eq!(there.ctst(["images", "prune", "--format", "json"]).ok().json()["images"], json!([]), "{about}");
        fs::remove_file(there.folder().join(NAME)).expect("remove a file");
        there.write("stack.ctst", "COMPONENT none { image = \"tar://./none.tar\" }\n");
        let pruned = there.ctst(["images", "prune", "--format", "json"]).ok();
        assert_eq!(pruned.json()["images"].as_array().map(Vec::len), Some(3), "{about}: {pruned}");
        assert!(store(&there, "layers").is_empty(), "{about}");
        there.assert_nothing_left();
    }
}

#[test]
fn an_image_by_name_travels_too() {
    for caller in Caller::all() {
        let text = "COMPONENT one { image = \"image://base\" command = [\"echo\", \"here\"] }\n";
        let project = Project::new(&caller, text);
        project.write("where", "ROOTFS");
        let folder = fs::read_to_string(project.folder().join("where")).expect("it was written");
        project.ctst(["images", "import", &folder, "base"]).ok();
        project.ctst(["bundle", "-o", NAME]).ok();
        let there = elsewhere(&caller, &fs::read(project.folder().join(NAME)).expect("a bundle"));
        assert_eq!(there.ctst(["--offline", "run", "--yes"]).ok().stdout, "here\n", "{}", caller.name);
        there.ctst(["down"]).ok();
        there.assert_nothing_left();
    }
}

#[test]
fn what_is_in_it_can_be_listed() {
    let caller = Caller::ordinary();
    let project = source(&caller);
    let bundle = made(&project);
    let members = members(&bundle);
    assert_eq!(members[0].0, MANIFEST);
    let manifest: Value = serde_json::from_slice(&members[0].1).expect("the manifest is JSON");
    let told = manifest["members"].as_array().expect("a list");
    assert_eq!(told.len(), members.len() - 1);
    for (told, (name, bytes)) in told.iter().zip(&members[1..]) {
        assert_eq!(*told, json!({ "name": name, "size": bytes.len(), "sha256": sha256(bytes) }));
    }
    for name in
        ["files/stack.ctst", "files/lib/base.ctst", "files/lib/base.env", "files/conf/page", "files/profile.json"]
    {
        assert!(members.iter().any(|(member, _)| member == name), "{name}");
    }
    // One folder and the same sources, another place and another time.
    let other = source(&caller);
    assert!(made(&other) == bundle, "another folder gives another file");

    // It is an OCI layout, too.
    let copied = project.folder().join("copied.tar");
    let mut skopeo = Command::new("skopeo");
    let from = format!("oci-archive:{}:two", project.folder().join(NAME).display());
    skopeo.args(["--insecure-policy", "copy", "-q", &from, &format!("oci-archive:{}:two", copied.display())]);
    finish(&mut skopeo).ok();
    let told = project.ctst(["images", "import", "copied.tar", "two:1"]);
    // Root's file may not be readable to the caller.
    if geteuid().as_raw() == caller.uid {
        told.ok();
    }
    for name in ["containust-bundle.json", "blobs/sha256"] {
        let listed = finish(Command::new("tar").arg("tf").arg(project.folder().join(NAME))).ok();
        assert!(listed.stdout.contains(name), "{listed}");
    }
    project.ctst(["images", "import", NAME, "all:1"]).fails(125, &["error[I036]", "holds 3 images"]);
}

#[test]
fn what_it_does_not_hold_is_named() {
    let caller = Caller::ordinary();
    let stack = r#"
SECRET told FROM FILE "./told"
PARAM image = "a"
COMPONENT one {
  image = "tar://./${image}.tar"
  command = ["/bin/sh", "-c", "cat /data/x; exec sleep 1000"]
  volumes = ["./data:/data:ro", "kept:/kept"]
  secrets = ["told", "other"]
  env { HERE = "${env.CTST_HERE:-nothing}" }
}
"#;
    let project = Project::new(&caller, stack);
    project.make_folder("data");
    project.write("data/x", "here\n");
    let packed = Archive::root().end();
    project.write_bytes("a.tar", &packed);
    project.write_bytes("b.tar", &packed);
    let mut command = project.command(["bundle", "-o", NAME]);
    let done = finish(command.env("CTST_HERE", "set")).ok();
    for note in [
        "not carried: ./data of this host, which one has at /data",
        "not carried: the secret told, of the file ./told",
        "not carried: the secret other, which is looked up where it runs",
        "takes CTST_HERE from the environment",
    ] {
        assert!(done.stderr.contains(note), "no {note:?} in {done}");
    }
    let bundle = fs::read(project.folder().join(NAME)).expect("a bundle");
    assert!(members(&bundle).iter().all(|(name, _)| !name.contains("told") && !name.contains("data")));

    let there = elsewhere(&caller, &bundle);
    there.ctst(["up", NAME]).fails(125, &["S0210", "told", "other"]);
    there.write("told", "secret");
    fs::set_permissions(there.folder().join("told"), std::os::unix::fs::PermissionsExt::from_mode(0o600))
        .expect("a mode");
    let with_secret = || {
        let mut command = there.command(["--offline", "up", NAME]);
        command.env("CONTAINUST_SECRET_OTHER", "x");
        finish(&mut command)
    };
    with_secret().fails(125, &["S0204", "data"]);
    there.make_folder("data");
    there.write("data/x", "there\n");
    with_secret().ok();
    // Beside the bundle.
    says(&there, "one", "there\n");
    assert!(there.folder().join(".containust/volumes/kept").is_dir());
    there
        .ctst(["plan", NAME, "--set", "image=b"])
        .fails(125, &["S0205", "no image `tar://./b.tar`", "other parameters"]);
    there.stop();
    there.assert_nothing_left();

    project.ctst(["bundle", "-o", "x.tar"]).fails(125, &["x.tar.ctstar"]);
    project.ctst(["bundle", NAME, "-o", "y.ctstar"]).fails(125, &["I063", "it is one"]);
    let bytes = fs::read(project.folder().join(NAME)).expect("read the bundle");
    for words in [&["lock", NAME][..], &["fmt", NAME], &["fmt", "--check", NAME]] {
        project.ctst(words).fails(125, &["S0110", "everything stands fast"]);
    }
    assert_eq!(fs::read(project.folder().join(NAME)).expect("read the bundle"), bytes);
    project.ctst(["check", "--sha256", &"0".repeat(64)]).fails(125, &["S0110", "--sha256"]);
    project.write("stack.ctst", "COMPONENT one { image = 1 }\n");
    project.ctst(["bundle", "-o", "y.ctstar"]).fails(125, &["error[E"]);
    assert!(!project.folder().join("y.ctstar").exists());
}

/// A bundle of a manifest and members, as nobody has to make them.
fn archive(manifest: &Value, members: &[(String, Vec<u8>)], kind: tar::EntryType, link: &str) -> Vec<u8> {
    packed(manifest.to_string().into_bytes(), members, kind, link)
}

fn packed(manifest: Vec<u8>, members: &[(String, Vec<u8>)], kind: tar::EntryType, link: &str) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, content) in std::iter::once(&(MANIFEST.to_owned(), manifest)).chain(members) {
        let mut header = tar::Header::new_ustar();
        let is_odd = kind != tar::EntryType::Regular && name.ends_with("stack.ctst");
        header.set_mode(0o644);
        header.set_size(if is_odd { 0 } else { content.len() as u64 });
        header.set_entry_type(if is_odd { kind } else { tar::EntryType::Regular });
        // Not by the functions that check names.
        let place = header.as_old_mut();
        place.name[..name.len()].copy_from_slice(name.as_bytes());
        if is_odd {
            place.linkname[..link.len()].copy_from_slice(link.as_bytes());
        }
        header.set_cksum();
        archive.append(&header, if is_odd { &[][..] } else { &content[..] }).expect("write to memory");
    }
    archive.into_inner().expect("write to memory")
}

/// The tool's member list for these members.
fn listed(members: &[(String, Vec<u8>)]) -> Value {
    members.iter().map(|(name, bytes)| json!({ "name": name, "size": bytes.len(), "sha256": sha256(bytes) })).collect()
}

#[test]
fn hostile_ones_do_no_harm() {
    let caller = Caller::ordinary();
    let project = source(&caller);
    let bundle = made(&project);
    let mut all = members(&bundle);
    let bytes = all.remove(0).1;
    let manifest: Value = serde_json::from_slice(&bytes).expect("the manifest is JSON");
    let regular = tar::EntryType::Regular;
    assert!(packed(bytes, &all, regular, "") == bundle, "the tests write what ctst writes");
    let there = elsewhere(&caller, &bundle);
    there.ctst(["check", NAME]).ok();

    let with = |change: &dyn Fn(&mut Value)| {
        let mut changed = manifest.clone();
        change(&mut changed);
        archive(&changed, &all, regular, "")
    };
    let of = |change: &dyn Fn(&mut Members)| {
        let (mut members, mut manifest) = (all.clone(), manifest.clone());
        change(&mut members);
        manifest["members"] = listed(&members);
        (archive(&manifest, &members, regular, ""), manifest)
    };
    let stack = |members: &[(String, Vec<u8>)]| {
        members.iter().position(|(name, _)| name == "files/stack.ctst").expect("it is there")
    };
    let mut cases: BTreeMap<&str, (Vec<u8>, &str)> = BTreeMap::new();
    let mut case = |what: &'static str, bytes: Vec<u8>, words: &'static str| drop(cases.insert(what, (bytes, words)));
    case("empty", Vec::new(), "I060");
    case("no bundle", all[0].1.clone(), "does not begin with");
    case("an archive", Archive::root().end(), "does not begin with");
    case("a newer one", with(&|m| m["version"] = json!(2)), "error[I061]");
    case(
        "a newer one with more",
        with(&|m| {
            m["version"] = json!(9);
            m["new"] = json!(1)
        }),
        "error[I061]",
    );
    case("another format", with(&|m| m["format"] = json!("x")), "another format");
    case("another field", with(&|m| m["new"] = json!(1)), "bad manifest");
    case("another platform", with(&|m| m["platform"] = json!("linux/vax")), "error[I035]");
    case("no JSON", with(&|m| *m = json!("x")), "bad manifest");
    case("a negative size", with(&|m| m["members"][0]["size"] = json!(-1)), "bad manifest");
    case("an absurd size", with(&|m| m["members"][0]["size"] = json!(u64::MAX)), "I060");
    case("a large size", with(&|m| m["members"][0]["size"] = json!(1_u64 << 62)), "I060");
    case("a short digest", with(&|m| m["members"][0]["sha256"] = json!("0")), "64 lower-case");
    case("a wrong digest", with(&|m| m["members"][0]["sha256"] = json!("0".repeat(64))), "expected is sha256:000");
    case("out of order", of(&|all| all.swap(1, 2)).0, "out of order, or twice");
    case(
        "twice",
        of(&|all| {
            let again = all[0].clone();
            all.insert(0, again)
        })
        .0,
        "out of order, or twice",
    );
    case("a missing member", of(&|all| drop(all.remove(stack(all)))).0, "lacks `files/stack.ctst`");
    for (what, name) in
        [("..", "files/../x"), ("absolute", "/etc/x"), ("dot", "./x"), ("escape", "x\u{1b}[2J"), ("manifest", MANIFEST)]
    {
        let named = of(&|all| {
            all.push((name.to_owned(), b"x".to_vec()));
            all.sort()
        })
        .0;
        case(what, named, "which no bundle has");
    }
    let more = {
        let mut all = all.clone();
        all.push(("z".into(), b"x".to_vec()));
        archive(&manifest, &all, regular, "")
    };
    case("a member that is not told of", more, "I060");
    let less = archive(&manifest, &all[..all.len() - 1], regular, "");
    case("a member that is told of", less, "I060");
    case("more behind its end", [&bundle[..], &[0; 512]].concat(), "goes on behind its end");
    let twice = [&bundle[..bundle.len() - 1024], &bundle[bundle.len() - 1024 - 1024..]].concat();
    case("its last member again", twice, "I060");
    for (what, kind) in
        [("a link", tar::EntryType::Symlink), ("a hard link", tar::EntryType::Link), ("a device", tar::EntryType::Char)]
    {
        case(what, archive(&manifest, &all, kind, "/etc/passwd"), "something else at byte");
    }
    let huge = with(&|m| m["composition"] = json!("x".repeat(9 << 20)));
    case("a large manifest", huge, "8388608 are the most");
    let deep = {
        let mut text = manifest.to_string();
        text.replace_range(..1, &format!("{{\"x\":{}", "[".repeat(1 << 20)));
        text
    };
    let mut header = tar::Header::new_ustar();
    header.set_path(MANIFEST).expect("a name");
    header.set_entry_type(regular);
    header.set_mode(0o644);
    header.set_size(deep.len() as u64);
    header.set_cksum();
    case("a deep manifest", [&header.as_bytes()[..], deep.as_bytes(), &[0; 2048]].concat(), "bad manifest");
    let mut padded = bundle.clone();
    let end = padded.len();
    padded[end - 1] = 1;
    case("something in its end", padded, "between its members");
    // What it says is true, and the image is none.
    let digest = manifest["images"][0]["digest"].as_str().expect("a digest");
    let emptied = of(&|all| {
        let at = all.iter().position(|(name, _)| name.ends_with(digest)).expect("it is there");
        all[at].1 = b"{}".to_vec();
    });
    case("an image that is none", emptied.0, "announced");
    let layer = all.iter().max_by_key(|(_, bytes)| bytes.len()).expect("some").0.clone();
    let without = of(&|all| all.retain(|(name, _)| *name != layer));
    case("an image without its layer", without.0, "lacks");

    for (what, (bytes, words)) in &cases {
        let there = elsewhere(&caller, bytes);
        let done = there.ctst(["--offline", "up", NAME]);
        assert!(done.stderr.contains("error[") && done.stderr.contains(words), "{what}: {done}");
        done.fails(125, &[NAME]);
        assert_eq!((store(&there, "catalogue"), store(&there, "staging")), (vec![], vec![]), "{what}");
        there.assert_nothing_left();
    }
    for cut in (0..bundle.len()).step_by(bundle.len() / 40).chain([511, 512, 513, bundle.len() - 1]) {
        there.write_bytes(NAME, &bundle[..cut]);
        there.ctst(["check", NAME]).fails(125, &["I060"]);
    }
    // Of one that says nothing wrong of itself everything else is held to the digest that somebody was told.
    for at in (600..bundle.len()).step_by(bundle.len() / 40) {
        let mut changed = bundle.clone();
        changed[at] ^= 1;
        there.write_bytes(NAME, &changed);
        there.ctst(["check", NAME]).fails(125, &["error[I0"]);
        there.ctst(["--offline", "up", NAME, "--sha256", &sha256(&bundle)]).fails(125, &["error[I0"]);
    }
    let (other, _) = of(&|all| {
        let at = stack(all);
        all[at].1.extend(b"\n")
    });
    there.write_bytes(NAME, &other);
    there.ctst(["check", NAME]).ok();
    there.ctst(["check", NAME, "--sha256", &sha256(&other)]).ok();
    for words in [["check", NAME], ["plan", NAME], ["run", NAME], ["up", NAME]] {
        there
            .ctst([&words[..], &["--sha256", &sha256(&bundle)]].concat())
            .fails(125, &["error[I062]", &sha256(&other)]);
    }
    there.ctst(["check", NAME, "--sha256", "abc"]).fails(125, &["I009"]);
    assert!(!there.folder().join(".containust").exists());
}

/// A plan that was kept is carried out as it stands.
#[test]
fn plans_of_bundles_are_kept() {
    let caller = Caller::ordinary();
    let bundle = made(&source(&caller));
    let there = elsewhere(&caller, &bundle);
    there.ctst(["plan", "-o", "plan.json"]).ok();
    there.ctst(["--offline", "run", "-d", "--wait", "plan.json"]).ok();
    says(&there, "two", "two\n");
    let mut members = members(&bundle);
    let mut manifest: Value = serde_json::from_slice(&members.remove(0).1).expect("the manifest is JSON");
    members.iter_mut().find(|(name, _)| name == "files/lib/base.env").expect("a file").1 = b"A=new\n".to_vec();
    manifest["members"] = listed(&members);
    there.ctst(["plan", "-o", "plan.json"]).ok();
    there.write_bytes(NAME, &archive(&manifest, &members, tar::EntryType::Regular, ""));
    there.ctst(["run", "-d", "plan.json"]).fails(125, &["S0604", NAME]);
    there.stop();
    assert!(Path::new(&there.folder().join(NAME)).exists());
    there.assert_nothing_left();
}
