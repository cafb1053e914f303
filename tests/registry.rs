//! Images of registries: Debian's, and one of our own that does what none should.
#![forbid(unsafe_code)]

use std::fs;

use containust_tests::archive::{Archive, oci, sha256, zstd};
use containust_tests::registry::{
    Answer, Distribution, Image, Registry, architecture, descriptor, kind, put_manifest, skopeo,
};
use containust_tests::{Caller, Project, eventually};
use serde_json::json;

/// A root file system, and above it a layer with one file that says who it is.
fn layers(text: &str) -> Vec<Vec<u8>> {
    vec![Archive::root().end(), Archive::new().folder("srv/").file("srv/text", text).end()]
}

fn config() -> serde_json::Value {
    json!({ "Entrypoint": ["/bin/sh", "-c"], "Cmd": ["cat /srv/text; echo $A; sleep 1000"], "Env": ["A=1"] })
}

fn stack(image: &str) -> String {
    format!("COMPONENT app {{ image = \"{image}\" stop {{ signal = \"SIGKILL\" }} }}\n")
}

fn lock(project: &Project) -> String {
    fs::read_to_string(project.folder().join("containust.lock")).unwrap_or_default()
}

/// Nothing of a pull is under way, and nothing was left.
fn assert_clean(project: &Project) {
    let staging = project.folder().join(".containust/images/staging");
    let left: Vec<_> = fs::read_dir(staging).into_iter().flatten().flatten().map(|entry| entry.file_name()).collect();
    assert!(left.iter().all(|name| name == "lock"), "{left:?}");
}

#[test]
fn an_image_of_debians_registry_runs_and_is_locked() {
    let mut registry = Distribution::start(None);
    registry.push(&oci(&layers("one"), &config()), "team/app:1", &[]);
    for caller in Caller::all().into_iter().chain(Caller::strict()) {
        let name = format!("{}/team/app:1", registry.host());
        let project = Project::new(&caller, &stack(&format!("oci://{name}")));
        let plan = project.ctst(["plan"]).ok();
        assert!(plan.stdout.contains(&format!("oci://{name}, will be pulled, and locked")), "{plan}");
        assert!(!project.folder().join(".containust").exists(), "a plan writes nothing");
        let done = project.up();
        assert!(done.stderr.contains(&format!("app imported oci://{name}")), "{done}");
        eventually("it says who it is", || project.logs("app") == "one1\n");
        let locked = lock(&project);
        assert!(locked.contains("version = 2") && locked.contains(&format!("\"{name}\" = \"")), "{locked}");
        let digest = locked.rsplit('"').nth(1).expect("a digest").to_owned();

        let images = project.ctst(["images", "ls"]).ok();
        assert!(images.stdout.contains(&format!("oci://{name}")) && images.stdout.contains(&digest[..12]), "{images}");
        let inspected = project.ctst(["inspect", "app"]).ok();
        assert!(inspected.stdout.contains(&name) && inspected.stdout.contains(&digest), "{inspected}");
        let plan = project.ctst(["plan", "--detailed-exitcode"]).ok();
        assert!(!plan.stdout.contains("pulled"), "{plan}");
        project.stop();
        assert_clean(&project);
        project.assert_nothing_left();
    }
    registry.stop();
}

#[test]
fn a_tag_is_what_was_locked_until_somebody_renews_it() {
    let mut registry = Distribution::start(None);
    let name = format!("{}/app:1", registry.host());
    registry.push(&oci(&layers("one"), &config()), "app:1", &[]);
    let project = Project::new(&Caller::ordinary(), &stack(&format!("oci://{name}")));
    let first = project.ctst(["lock"]).ok();
    let digest = first.stdout.split(' ').next().expect("a digest").to_owned();
    assert_eq!(first.stdout, format!("{digest}  oci://{name}\n"));
    assert!(!project.folder().join(".containust/images").exists(), "nothing was pulled");
    let plan = project.ctst(["plan"]).ok();
    assert!(plan.stdout.contains(&format!("will be pulled as {}", &digest[..12])), "{plan}");

    registry.push(&oci(&layers("two"), &config()), "app:1", &[]);
    project.ctst(["lock"]).ok();
    project.up();
    eventually("what was locked runs", || project.logs("app") == "one1\n");
    assert!(lock(&project).contains(&digest));

    let pulled = project.ctst(["pull", "--update"]).ok();
    let new = pulled.stdout.split(' ').next().expect("a digest").to_owned();
    assert!(new != digest && pulled.stderr.contains(&format!("was {} before", &digest[..12])), "{pulled}");
    assert!(lock(&project).contains(&new) && !lock(&project).contains(&digest));
    let plan = project.ctst(["plan"]).ok();
    assert!(plan.stdout.contains("replace") && plan.stdout.contains(&new[..12]), "{plan}");
    project.up();
    eventually("what is new runs", || project.logs("app").ends_with("two1\n"));

    // What is locked and not there is told, whoever is asked; what is another is, too.
    registry.stop();
    project.ctst(["pull"]).ok();
    let text = fs::read_to_string(project.folder().join("containust.lock")).expect("a lock");
    project.write("containust.lock", &text.replace(&new, &digest));
    let plan = project.ctst(["plan"]).ok();
    assert!(plan.stdout.contains("replace") && plan.stdout.contains("another digest"), "{plan}");
    fs::remove_file(project.folder().join("containust.lock")).expect("remove the lock");
    let plan = project.ctst(["plan"]).ok();
    assert!(
        plan.stdout.contains("no digest of its image is locked") && plan.stdout.contains("no longer says"),
        "{plan}"
    );
    project.ctst(["run", "-d", "--yes"]).fails(125, &["component app", "ask http://", "Connection refused"]);
    project.stop();
    assert_clean(&project);
}

#[test]
fn a_digest_in_the_file_is_held_to_and_needs_no_lock() {
    let registry = Registry::new();
    let good = registry.fill(|content| Image::oci(&layers("one"), &config()).put(content, "app", "1"));
    registry.fill(|content| Image::oci(&layers("two"), &config()).put(content, "app", "1"));
    let name = format!("oci://{}/app:1@sha256:{good}", registry.host());
    let project = Project::new(&Caller::ordinary(), &stack(&name));
    project.up();
    eventually("it says who it is", || project.logs("app") == "one1\n");
    assert_eq!(lock(&project), "");
    assert!(registry.asked().iter().all(|asked| !asked.path.ends_with("/manifests/1")));
    project.stop();
    // A registry that sends something else under the digest.
    let other = "0".repeat(64);
    registry.behave(|asked, _| {
        let body = br#"{"schemaVersion":2}"#;
        asked.path.contains("/manifests/").then(|| Answer::of(200).with("Content-Type", kind::MANIFEST).body(body))
    });
    project.write("stack.ctst", &stack(&name.replace(&good, &other)));
    project.ctst(["build"]).fails(125, &["component app", "expected is", &other, &sha256(br#"{"schemaVersion":2}"#)]);
    assert_clean(&project);
}

#[test]
fn every_kind_of_image_is_understood() {
    let registry = Registry::new();
    let plain = layers("one");
    let docker = Image {
        kinds: [kind::DOCKER_MANIFEST, kind::DOCKER_CONFIG],
        layers: plain
            .iter()
            .map(|layer| (kind::DOCKER_LAYER, containust_tests::archive::gzip(layer), layer.clone()))
            .collect(),
        ..Image::oci(&[], &config())
    };
    let mixed = Image {
        layers: vec![
            (kind::ZSTD, zstd(&plain[0]), plain[0].clone()),
            (kind::PLAIN, plain[1].clone(), plain[1].clone()),
        ],
        ..Image::oci(&[], &config())
    };
    let other = Image { architecture: "s390x".to_owned(), ..Image::oci(&plain, &config()) };
    registry.fill(|content| {
        docker.put(content, "app", "docker");
        mixed.put(content, "app", "mixed");
        let mut entries = Vec::new();
        for (image, architecture) in [(&other, "s390x"), (&mixed, architecture())] {
            image.put(content, "app", architecture);
            let mut entry = descriptor(kind::MANIFEST, image.manifest().to_string().as_bytes());
            entry["platform"] = json!({ "os": "linux", "architecture": architecture });
            entries.push(entry);
        }
        // As buildkit writes them.
        let mut attestation = descriptor(kind::MANIFEST, b"{}");
        attestation["platform"] = json!({ "os": "unknown", "architecture": "unknown" });
        entries.push(attestation);
        for (tag, kind) in [("index", kind::INDEX), ("list", kind::DOCKER_LIST)] {
            let index = json!({ "schemaVersion": 2, "mediaType": kind, "manifests": entries }).to_string();
            put_manifest(content, "app", tag, kind, index.as_bytes());
            let outer = json!({ "schemaVersion": 2, "manifests": [descriptor(kind, index.as_bytes())] }).to_string();
            put_manifest(content, "app", &format!("{tag}-nested"), kind::INDEX, outer.as_bytes());
        }
    });
    let tags = ["docker", "mixed", "index", "list", "index-nested", "list-nested"];
    let text: String = tags
        .iter()
        .map(|tag| {
            format!(
                "COMPONENT {tag} {{ image = \"oci://{}/app:{tag}\" stop {{ signal = \"SIGKILL\" }} }}\n",
                registry.host()
            )
        })
        .collect();
    let project = Project::new(&Caller::ordinary(), &text);
    project.up();
    for tag in tags {
        eventually(&format!("{tag} says who it is"), || project.logs(tag) == "one1\n");
    }
    project.stop();
}

#[test]
fn layers_that_are_there_are_not_fetched_again() {
    let registry = Registry::new();
    let (one, two) = (Image::oci(&layers("one"), &config()), Image::oci(&layers("two"), &config()));
    registry.fill(|content| {
        one.put(content, "app", "1");
        two.put(content, "app", "2");
    });
    let project = Project::new(&Caller::ordinary(), &stack(&format!("oci://{}/app:1", registry.host())));
    project.ctst(["pull"]).ok();
    let blobs = |asked: Vec<containust_tests::registry::Asked>| {
        asked.into_iter().map(|asked| asked.path).filter(|path| path.contains("/blobs/")).collect::<Vec<_>>()
    };
    assert_eq!(blobs(registry.asked()).len(), 3);
    project.ctst(["pull", &format!("oci://{}/app:2", registry.host())]).ok();
    let again = blobs(registry.asked());
    let path = |bytes: &[u8]| format!("/v2/app/blobs/sha256:{}", sha256(bytes));
    assert_eq!(again, [path(two.document().as_bytes()), path(&two.layers[1].1)]);
    // And nothing at all where the tag means what it did.
    project.ctst(["pull", "--update"]).ok();
    assert_eq!(blobs(registry.asked()), [path(one.document().as_bytes())]);
    project.write("stack.ctst", &stack(&format!("oci://{}/app:2", registry.host())));
    project.up();
    eventually("it says who it is", || project.logs("app") == "two1\n");
    assert_eq!(registry.asked().len(), 0);
    project.stop();
}

#[test]
fn what_is_pushed_can_be_pulled_by_everybody() {
    let registry = Distribution::start(None);
    for caller in Caller::all() {
        let name = format!("oci://{}/mine/{}:1", registry.host(), caller.name);
        let project = Project::new(&caller, &stack(&name));
        project.write_bytes("app.tar", &oci(&layers("one"), &config()));
        project.ctst(["images", "import", "app.tar", "app:1"]).ok();
        let pushed = project.ctst(["push", "app:1", &name]).ok();
        let digest = pushed.stdout.split(' ').next().expect("a digest").to_owned();
        assert_eq!(pushed.stdout, format!("{digest}  {name}\n"));
        // What is there already is not sent again, and is the same.
        let again = project.ctst(["push", "app:1", &name]).ok();
        assert_eq!(again.stdout, pushed.stdout);
        let looked = skopeo(&["inspect", "--tls-verify=false", &name.replace("oci://", "docker://")]);
        assert!(looked.contains(&digest), "{looked}");
        project.up();
        eventually("it says who it is", || project.logs("app") == "one1\n");
        assert!(lock(&project).contains(&digest));
        project.stop();
        project.ctst(["push", "none:1", &name]).fails(125, &["none:1"]);
        project.ctst(["push", "app:1", "app:1"]).fails(125, &["oci://registry/name:tag"]);
        project.ctst(["push", "app:1", &name, "--offline"]).fails(125, &["I056"]);
    }
}

#[test]
fn a_certificate_of_ones_own_is_trusted_where_it_is_said() {
    let certified = || rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("make a certificate");
    let (own, other) = (certified(), certified());
    let registry = Distribution::start_with(None, Some((&own.cert.pem(), &own.signing_key.serialize_pem())));
    let name = format!("localhost:{}/app:1", registry.port);
    let project = Project::new(&Caller::ordinary(), &stack(&format!("oci://{name}")));
    project.make_folder("config");
    project.make_folder("config/containust");
    let pull = |settings: &str| {
        project.write("config/containust/registries.toml", settings);
        let mut command = project.command(["pull"]);
        command.env("XDG_CONFIG_HOME", project.folder().join("config"));
        containust_tests::finish(&mut command)
    };
    let with = |file: &str| {
        let path = project.folder().join(file);
        format!("[registry.\"localhost:{}\"]\nca = \"{}\"\n", registry.port, path.display())
    };
    // On the loopback it is spoken to without TLS, unless somebody says more.
    pull("").fails(125, &["I054", "answers 400"]);
    project.write("own.pem", &own.cert.pem());
    project.write("other.pem", &other.cert.pem());
    project.write("none.pem", "nothing");
    pull(&with("other.pem")).fails(125, &["I050", "certificate", "registries.toml"]);
    pull(&with("none.pem")).fails(125, &["I057", "no certificate in PEM"]);
    pull(&with("missing.pem")).fails(125, &["I057", "missing.pem"]);
    pull(&with("own.pem")).fails(125, &["I053", "has none such"]);
}
