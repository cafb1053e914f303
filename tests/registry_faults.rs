//! A registry that does what none should, and a network that breaks off: each is told as what it is, and leaves nothing.
#![forbid(unsafe_code)]

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use containust_tests::archive::{Archive, sha256};
use containust_tests::registry::{Answer, Image, Registry, descriptor, kind, put_blob, put_manifest};
use containust_tests::{Caller, Done, Project, eventually, free_port};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

fn config() -> Value {
    json!({ "Entrypoint": ["/bin/sh", "-c"], "Cmd": ["cat /srv/text; sleep 1000"] })
}

/// Bytes that do not get smaller.
fn noise(size: usize) -> Vec<u8> {
    let mut bytes = vec![0_u8; size];
    let mut state = 1_u64;
    for word in bytes.chunks_exact_mut(8) {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        word.copy_from_slice(&state.to_le_bytes());
    }
    bytes
}

fn image() -> Image {
    let upper = Archive::new().folder("srv/").file("srv/text", "one").file("srv/noise", noise(1 << 20));
    Image::oci(&[Archive::root().end(), upper.end()], &config())
}

fn project(registry: &Registry, tag: &str) -> Project {
    let text = format!(
        "COMPONENT app {{ image = \"oci://{}/app:{tag}\" stop {{ signal = \"SIGKILL\" }} }}\n",
        registry.host()
    );
    Project::new(&Caller::ordinary(), &text)
}

/// A registry with [`image`] as `app:1`.
fn registry() -> Registry {
    let registry = Registry::new();
    registry.fill(|content| image().put(content, "app", "1"));
    registry
}

/// Nothing was kept of a pull that failed.
fn assert_nothing_kept(project: &Project) {
    let images = project.folder().join(".containust/images");
    for folder in ["staging", "layers", "catalogue"] {
        let left: Vec<_> =
            fs::read_dir(images.join(folder)).into_iter().flatten().flatten().map(|e| e.file_name()).collect();
        assert!(left.iter().all(|name| name == "lock"), "{folder}: {left:?}");
    }
    assert!(!project.folder().join("containust.lock").exists());
}

/// A pull that fails with this code and these words.
fn refused(registry: &Registry, tag: &str, code: &str, words: &[&str]) -> Done {
    let project = project(registry, tag);
    let done = project.ctst(["pull"]).fails(125, words);
    assert!(done.stderr.contains(code), "no {code} in {done}");
    assert_nothing_kept(&project);
    done
}

#[test]
fn what_a_registry_answers_is_told_by_its_code() {
    let registry = registry();
    let answers = [
        (401, "I051", "wants to know who asks", "ctst login 127.0.0.1:"),
        (403, "I052", "forbids it", "ask for access"),
        (404, "I053", "has none such", "correct the name"),
        (418, "I054", "answers 418", ""),
    ];
    for (status, code, why, way) in answers {
        registry.behave(move |_, _| {
            let body = r#"{"errors":[{"code":"X","message":"so it is \u001b[31m"}]}"#;
            Some(Answer::of(status).body(body))
        });
        let done = refused(&registry, "1", code, &[why, way, &format!("oci://{}/app:1", registry.host())]);
        assert!(done.stderr.contains("(so it is \\u{1b}[31m)"), "{done}");
        assert_eq!(registry.asked().len(), 1, "{status}: it is not asked again");
    }
    // Only once: somebody who may not today may not a moment later either.
    registry.behave(|_, _| None);
    refused(&registry, "none", "I053", &["has none such (not here)"]);
    drop(registry);
    let closed = Project::new(
        &Caller::ordinary(),
        &format!("COMPONENT app {{ image = \"oci://127.0.0.1:{}/app:1\" }}", free_port()),
    );
    let done = closed.ctst(["pull"]).fails(125, &["I050", "Connection refused"]);
    assert!(!done.stderr.contains("again and again"), "{done}");
    let nowhere = Project::new(&Caller::ordinary(), "COMPONENT app { image = \"oci://registry.invalid/app:1\" }");
    nowhere.ctst(["pull"]).fails(125, &["I050", "https://registry.invalid/v2/app/manifests/1"]);
}

#[test]
fn a_busy_registry_is_asked_again_when_it_wants() {
    let registry = registry();
    registry.behave(|_, before| match before {
        0 => Some(Answer::of(429).with("Retry-After", "1")),
        1 => Some(Answer::of(503)),
        _ => None,
    });
    let project = project(&registry, "1");
    let start = Instant::now();
    project.ctst(["pull"]).ok();
    // A manifest, a configuration, and two layers at once: a second each time.
    assert!(start.elapsed() >= Duration::from_secs(3), "{:?}", start.elapsed());
    registry.behave(|_, _| Some(Answer::of(429).with("Retry-After", "86400")));
    refused(&registry, "1", "I055", &["wants fewer requests", "try again later"]);
    registry.behave(|_, _| Some(Answer::of(500)));
    drop(registry.asked());
    refused(&registry, "1", "I055", &["fails with 500"]);
    assert_eq!(registry.asked().len(), 5);
}

#[test]
fn what_is_cut_off_goes_on_where_it_was() {
    let registry = registry();
    let layer = image().layers[1].1.clone();
    let path = format!("/v2/app/blobs/sha256:{}", sha256(&layer));
    let (half, all) = (layer.len() / 2, layer.len());
    let (cut, whole) = (path.clone(), layer.clone());
    registry.behave(move |asked, before| {
        let first = asked.path == cut && before == 0;
        first.then(|| Answer { announced: Some(all), ..Answer::of(200).body(&whole[..half]) })
    });
    project(&registry, "1").ctst(["pull"]).ok();
    let ranges = |registry: &Registry| {
        let asked = registry.asked().into_iter().filter(|asked| asked.path == path);
        asked.map(|asked| asked.header("range").to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(ranges(&registry), ["".to_owned(), format!("bytes={half}-")]);

    // One that knows no ranges sends all of it anew.
    let (cut, whole) = (path.clone(), layer.clone());
    registry.behave(move |asked, before| {
        let answer = Answer::of(200).body(whole.clone());
        match (asked.path == cut, before) {
            (false, _) => None,
            (true, 0) => Some(Answer { announced: Some(all), ..Answer::of(200).body(&whole[..half]) }),
            (true, _) => Some(answer),
        }
    });
    project(&registry, "1").ctst(["pull"]).ok();
    assert_eq!(ranges(&registry).len(), 2);

    // And one that says it goes on, and does not, is found out.
    let (cut, whole) = (path.clone(), layer.clone());
    registry.behave(move |asked, before| match (asked.path == cut, before) {
        (false, _) => None,
        (true, 0) => Some(Answer { announced: Some(all), ..Answer::of(200).body(&whole[..half]) }),
        (true, _) => {
            let range = format!("bytes {half}-{}/{all}", all - 1);
            Some(Answer::of(206).with("Content-Range", range).body(vec![0; all - half]))
        }
    });
    refused(&registry, "1", "I054", &["sends a layer with digest", &sha256(&layer)]);

    // It ends.
    let (cut, whole) = (path.clone(), layer.clone());
    registry.behave(move |asked, _| {
        (asked.path == cut).then(|| Answer { announced: Some(all), ..Answer::of(200).body(&whole[..100]) })
    });
    refused(&registry, "1", "I050", &["is cut off", "again and again"]);
}

#[test]
fn what_is_sent_is_what_was_announced_or_nothing() {
    let registry = registry();
    let image = image();
    let layer = image.layers[1].1.clone();
    let digest = sha256(&layer);
    let path = format!("/v2/app/blobs/sha256:{digest}");
    let with = |body: Vec<u8>| {
        let path = path.clone();
        move |asked: &containust_tests::registry::Asked, _: usize| {
            (asked.path == path).then(|| Answer::of(200).body(body.clone()))
        }
    };
    let mut other = layer.clone();
    other[100] ^= 1;
    registry.behave(with(other));
    refused(&registry, "1", "I054", &["sends a layer with digest", &digest]);
    registry.behave(with([&layer[..], b"more"].concat()));
    refused(&registry, "1", "I054", &["sends more than", &digest]);
    registry.behave(with(layer[..10].to_vec()));
    refused(&registry, "1", "I050", &["is cut off"]);
    // Its document and its configuration.
    let config = format!("/v2/app/blobs/sha256:{}", sha256(image.document().as_bytes()));
    registry.behave(move |asked, _| (asked.path == config).then(|| Answer::of(200).body("{}")));
    refused(&registry, "1", "I054", &["sends another configuration"]);
    registry.behave(|asked, _| {
        let body = r#"{"schemaVersion":2}"#;
        let lie = format!("sha256:{}", "0".repeat(64));
        let answer = Answer::of(200).with("Content-Type", kind::MANIFEST).with("Docker-Content-Digest", lie).body(body);
        asked.path.ends_with("/manifests/1").then_some(answer)
    });
    refused(&registry, "1", "I054", &["sends a manifest with digest"]);
    registry.behave(|asked, _| {
        let answer = Answer::of(200).with("Content-Type", kind::MANIFEST).body(vec![b' '; 5 << 20]);
        asked.path.contains("/manifests/").then_some(answer)
    });
    refused(&registry, "1", "I054", &["a manifest of more than 4194304 bytes"]);
}

#[test]
fn documents_that_make_no_sense_are_refused() {
    let registry = Registry::new();
    let image = image();
    let manifest = |change: &dyn Fn(&mut Value)| {
        let mut manifest = image.manifest();
        change(&mut manifest);
        manifest.to_string()
    };
    let put = |tag: &str, kind: &str, body: &str| {
        registry.fill(|content| {
            image.put(content, "app", "base");
            put_manifest(content, "app", tag, kind, body.as_bytes())
        })
    };
    let of = |kind: &str, body: &str| descriptor(kind, body.as_bytes());

    for (tag, kind, body, words) in [
        ("json", kind::MANIFEST, "{".to_owned(), &["I054", "has a bad document"][..]),
        ("html", "text/html", "<html>".to_owned(), &["I054", "is of type `text/html`"]),
        (
            "old",
            "application/vnd.docker.distribution.manifest.v1+prettyjws",
            r#"{"schemaVersion":1}"#.to_owned(),
            &["I054", "manifest.v1+prettyjws"],
        ),
        (
            "artifact",
            kind::MANIFEST,
            manifest(&|m| m["config"]["mediaType"] = "application/vnd.cncf.helm.config.v1+json".into()),
            &["I054", "helm", "no image's"],
        ),
        (
            "layer",
            kind::MANIFEST,
            manifest(&|m| m["layers"][1]["mediaType"] = "application/octet-stream".into()),
            &["I054", "layer of type `application/octet-stream`"],
        ),
        (
            "encrypted",
            kind::MANIFEST,
            manifest(&|m| m["layers"][1]["mediaType"] = format!("{}+encrypted", kind::GZIP).into()),
            &["I054", "encrypted"],
        ),
        (
            "sha512",
            kind::MANIFEST,
            manifest(&|m| m["layers"][1]["digest"] = format!("sha512:{}", "0".repeat(128)).into()),
            &["I054", "not sha256"],
        ),
        (
            "path",
            kind::MANIFEST,
            manifest(&|m| m["layers"][1]["digest"] = "sha256:../../../etc/passwd".into()),
            &["I054", "not sha256"],
        ),
        (
            "fewer",
            kind::MANIFEST,
            manifest(&|m| drop(m["layers"].as_array_mut().expect("a list").pop())),
            &["I054", "1 layers and a config for 2"],
        ),
        (
            "huge",
            kind::MANIFEST,
            manifest(&|m| m["layers"][1]["size"] = (1_u64 << 60).into()),
            &["I033", "more than 68719476736 bytes"],
        ),
        (
            "overflow",
            kind::MANIFEST,
            manifest(&|m| {
                m["layers"][0]["size"] = u64::MAX.into();
                m["layers"][1]["size"] = u64::MAX.into();
            }),
            &["I033", "more than 68719476736 bytes"],
        ),
        (
            "negative",
            kind::MANIFEST,
            manifest(&|m| m["layers"][1]["size"] = (-1).into()),
            &["I054", "has a bad document"],
        ),
        (
            "config",
            kind::MANIFEST,
            manifest(&|m| m["config"]["size"] = (1_u64 << 40).into()),
            &["I054", "configuration of 1099511627776 bytes"],
        ),
    ] {
        put(tag, kind, &body);
        refused(&registry, tag, words[0], words);
    }

    // More layers than the kernel takes, none of which is fetched.
    let many = manifest(&|m| {
        let layer = m["layers"][1].clone();
        m["layers"] = vec![layer; 10_000].into();
    });
    put("many", kind::MANIFEST, &many);
    drop(registry.asked());
    refused(&registry, "many", "I033", &["has 10000 layers, 500 are the most"]);
    assert_eq!(registry.asked().len(), 2);

    // Indexes.
    let entry = |platform: Value, kind: &str, body: &str| {
        let mut entry = of(kind, body);
        if !platform.is_null() {
            entry["platform"] = platform;
        }
        entry
    };
    let index =
        |entries: Vec<Value>| json!({ "schemaVersion": 2, "mediaType": kind::INDEX, "manifests": entries }).to_string();
    let other = index(vec![
        entry(json!({ "os": "linux", "architecture": "s390x" }), kind::MANIFEST, "{}"),
        entry(json!({ "os": "windows", "architecture": "amd64" }), kind::MANIFEST, "{}"),
        entry(json!({ "os": "unknown", "architecture": "unknown" }), kind::MANIFEST, "{}"),
    ]);
    put("other", kind::INDEX, &other);
    refused(&registry, "other", "I035", &["no image for linux/", "only for linux/s390x, windows/amd64"]);
    put("empty", kind::INDEX, &index(Vec::new()));
    refused(&registry, "empty", "I035", &["no image for linux/"]);
    let alien = Image { architecture: "s390x".to_owned(), ..self::image() };
    registry.fill(|content| alien.put(content, "app", "alien"));
    refused(&registry, "alien", "I035", &["only for linux/s390x"]);
    // One below the other without end, each true to its digest.
    let mut deep = index(Vec::new());
    for _ in 0..20 {
        let outer = index(vec![entry(Value::Null, kind::INDEX, &deep)]);
        put("deep", kind::INDEX, &deep);
        deep = outer;
    }
    put("deep", kind::INDEX, &deep);
    drop(registry.asked());
    refused(&registry, "deep", "I054", &["indexes more than 4 levels deep"]);
    assert!(registry.asked().len() <= 6);
    // And one that names itself, which cannot be true.
    let own = format!("sha256:{}", "1".repeat(64));
    let circle = index(vec![json!({ "mediaType": kind::INDEX, "digest": own, "size": 100 })]);
    registry.fill(|content| {
        content.insert(format!("/v2/app/manifests/{own}"), (kind::INDEX.to_owned(), circle.clone().into_bytes()))
    });
    put("circle", kind::INDEX, &circle);
    refused(&registry, "circle", "I054", &["sends a manifest"]);
    // A layer that is no archive, with all digests as they should be.
    let lie =
        Image { layers: vec![(kind::GZIP, b"no tar".to_vec(), b"no tar".to_vec())], ..Image::oci(&[], &config()) };
    registry.fill(|content| lie.put(content, "app", "tar"));
    refused(&registry, "tar", "I03", &["oci://"]);
    // One whose layers are others than its configuration says.
    let diffs = Image {
        layers: vec![(kind::GZIP, image.layers[0].1.clone(), b"other".to_vec())],
        ..Image::oci(&[], &config())
    };
    registry.fill(|content| diffs.put(content, "app", "diffs"));
    refused(&registry, "diffs", "I034", &["expected is sha256:"]);
    registry.fill(|content| put_blob(content, "app", b""));
}

#[test]
fn redirections_lead_somewhere_and_no_further() {
    let (registry, store) = (registry(), Registry::new());
    let path = format!("/v2/app/blobs/sha256:{}", sha256(&image().layers[1].1));
    registry.fill(|content| store.fill(|there| there.extend(content.clone())));
    let place = format!("http://{}", store.host());
    let to = |location: String| {
        let path = path.clone();
        registry
            .behave(move |asked, _| (asked.path == path).then(|| Answer::of(307).with("Location", location.clone())));
    };
    to(format!("{place}{path}"));
    project(&registry, "1").ctst(["pull"]).ok();
    assert_eq!(store.asked().len(), 1);
    for (location, words) in [
        (path.clone(), "more than 5 other addresses"),
        ("file:///etc/passwd".to_owned(), "cannot be followed"),
        ("http://registry.example/x".to_owned(), "cannot be followed"),
        (String::new(), "cannot be followed"),
    ] {
        to(location);
        refused(&registry, "1", "I054", &[words]);
    }
}

#[test]
fn a_mirror_is_asked_first_and_the_registry_where_it_fails() {
    let (registry, mirror) = (registry(), Registry::new());
    let with = |project: &Project, text: &str| {
        project.make_folder("config");
        project.make_folder("config/containust");
        project.write("config/containust/registries.toml", text);
    };
    let pull = |project: &Project| {
        let mut command = project.command(["pull"]);
        command.env("XDG_CONFIG_HOME", project.folder().join("config"));
        containust_tests::finish(&mut command)
    };
    let text = format!("[registry.\"{}\"]\nmirrors = [\"{}/cache\"]\n", registry.host(), mirror.host());
    let one = project(&registry, "1");
    with(&one, &text);
    pull(&one).ok();
    assert!(mirror.asked().iter().all(|asked| asked.path.starts_with("/v2/cache/app/")));
    assert!(!registry.asked().is_empty());
    mirror.fill(|content| image().put(content, "cache/app", "1"));
    let two = project(&registry, "1");
    with(&two, &text);
    pull(&two).ok();
    assert_eq!((mirror.asked().len(), registry.asked().len()), (4, 0));
    // What is wrong there is had from the registry, and what is wrong everywhere is told of that.
    mirror.behave(|asked, _| asked.path.contains("/blobs/").then(|| Answer::of(200).body("other")));
    let three = project(&registry, "1");
    with(&three, &text);
    pull(&three).ok();
    assert_eq!(registry.asked().len(), 3);
    let bad = project(&registry, "1");
    with(&bad, "[registry.\"a\"]\nmirror = []\n");
    pull(&bad).fails(125, &["I057", "registries.toml", "mirror"]);
    assert_nothing_kept(&bad);
}

#[test]
fn offline_it_is_refused_before_any_socket() {
    let registry = registry();
    let name = format!("oci://{}/app:1", registry.host());
    for words in [&["pull"][..], &["build"], &["run", "-d", "--yes"], &["lock"]] {
        let project = project(&registry, "1");
        let done = project.ctst([&["--offline"], words].concat());
        done.fails(125, &[&name, "nothing is fetched with --offline", "ctst pull"]);
        assert_nothing_kept(&project);
    }
    assert_eq!(registry.asked().len(), 0);
    let project = project(&registry, "1");
    project.ctst(["pull"]).ok();
    drop(registry.asked());
    for words in [&["pull"][..], &["lock"], &["build"], &["run", "-d", "--yes"], &["stop"]] {
        project.ctst([&["--offline"], words].concat()).ok();
    }
    project.ctst(["pull", "--update", "--offline"]).fails(125, &[&name, "--offline"]);
    assert_eq!(registry.asked().len(), 0);
}

#[test]
fn whoever_is_killed_leaves_nothing() {
    let registry = registry();
    let path = format!("/v2/app/blobs/sha256:{}", sha256(&image().layers[1].1));
    let reached = Arc::new(AtomicUsize::new(0));
    let (waits, seen) = (path.clone(), Arc::clone(&reached));
    registry.behave(move |asked, _| {
        if asked.path == waits {
            seen.fetch_add(1, Ordering::SeqCst);
            std::thread::sleep(Duration::from_secs(60));
        }
        None
    });
    let project = project(&registry, "1");
    let mine = || -> Vec<i32> {
        let all = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let is_client = |pid: &i32| {
            let place = Path::new("/proc").join(pid.to_string());
            let words = fs::read(place.join("cmdline")).unwrap_or_default();
            let input = fs::read_link(place.join("fd/1")).unwrap_or_default();
            words.starts_with(b"ctst\0registry\0") && input.starts_with(project.folder())
        };
        pids.filter(is_client).collect()
    };
    for round in 1..=2 {
        let running = project.start(["pull"]);
        eventually("a layer is being fetched", || reached.load(Ordering::SeqCst) == round && mine().len() == 1);
        let pid = if round == 1 { running.pid() } else { mine()[0] };
        kill_process(Pid::from_raw(pid).expect("a pid"), Signal::KILL).expect("kill it");
        let done = running.wait(Duration::from_secs(60));
        if round == 2 {
            done.fails(125, &["I050", "ended without an answer"]);
        }
        eventually("who asked is gone, too", || mine().is_empty());
    }
    registry.behave(|_, _| None);
    project.ctst(["pull"]).ok();
    let staging = project.folder().join(".containust/images/staging");
    let left: Vec<_> = fs::read_dir(staging).into_iter().flatten().flatten().map(|entry| entry.file_name()).collect();
    assert!(left.iter().all(|name| name == "lock"), "{left:?}");
}
