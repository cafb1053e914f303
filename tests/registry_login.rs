//! As whom registries are asked: what docker, podman and skopeo have stored, and that nobody else gets it.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use containust_tests::archive::{Archive, oci, sha256};
use containust_tests::registry::{Answer, Asked, Distribution, Image, Registry};
use containust_tests::{Caller, Done, Project, finish};
use serde_json::{Value, json};

/// `me` and `secret`.
const USERS: &str = "me:$2b$04$rHTNREJhPYpIaU365TwRiezGUuCrSzTwu.YWSvmwtUCeM9rzfdrCS\n";

fn config() -> Value {
    json!({ "Entrypoint": ["/bin/true"] })
}

fn image() -> Image {
    Image::oci(&[Archive::root().end()], &config())
}

/// A project of `app:1` of a registry, with a home of its own.
fn project(host: &str) -> Project {
    let text = format!("COMPONENT app {{ image = \"oci://{host}/team/app:1\" restart = \"never\" }}\n");
    let project = Project::new(&Caller::ordinary(), &text);
    for folder in ["home", "home/.docker", "home/.config", "home/.config/containers", "bin"] {
        project.make_folder(folder);
    }
    project
}

fn ctst(project: &Project, variables: &[(&str, &str)], args: &[&str]) -> Done {
    let mut command = project.command(args);
    let home = project.folder().join("home");
    let path = format!("{}:/usr/bin:/bin", project.folder().join("bin").display());
    command.env("HOME", &home).env("PATH", path).env_remove("XDG_CONFIG_HOME");
    for (name, value) in variables {
        command.env(name, value);
    }
    let done = finish(&mut command);
    assert!(!done.stderr.contains("secret") && !done.stdout.contains("secret"), "{done}");
    done
}

fn pull(project: &Project) -> Done {
    ctst(project, &[], &["pull"])
}

fn auths(host: &str, user: &str, password: &str) -> String {
    json!({ "auths": { host: { "auth": STANDARD.encode(format!("{user}:{password}")) } } }).to_string()
}

/// A helper that knows one registry.
fn helper(project: &Project, name: &str, script: &str) {
    let file = format!("bin/docker-credential-{name}");
    project.write(&file, &format!("#!/bin/sh\n{script}\n"));
    fs::set_permissions(project.folder().join(file), Permissions::from_mode(0o755)).expect("make it executable");
}

#[test]
fn debians_registry_lets_in_who_is_stored() {
    let registry = Distribution::start(Some(USERS));
    registry.push(&oci(&[Archive::root().end()], &config()), "team/app:1", &["--dest-creds=me:secret"]);
    let host = registry.host();
    let one = project(&host);
    pull(&one).fails(125, &["I051", "wants to know who asks", &format!("ctst login {host}")]);
    one.write("home/.docker/config.json", &auths(&host, "me", "wrong"));
    pull(&one).fails(125, &["I051", "does not accept the credentials"]);
    for file in ["home/.docker/config.json", "home/.config/containers/auth.json", "elsewhere.json"] {
        let one = project(&host);
        one.write(file, &auths(&host, "me", "secret"));
        let place = one.folder().join(file).display().to_string();
        let variables: &[(&str, &str)] = if file == "elsewhere.json" { &[("REGISTRY_AUTH_FILE", &place)] } else { &[] };
        ctst(&one, variables, &["pull"]).ok();
        let locked = fs::read_to_string(one.folder().join("containust.lock")).expect("a lock");
        assert!(!locked.contains("secret"), "{locked}");
    }
    // podman's file of this session counts first.
    let one = project(&host);
    one.write("home/.docker/config.json", &auths(&host, "me", "secret"));
    one.make_folder("run");
    one.make_folder("run/containers");
    one.write("run/containers/auth.json", &auths(&host, "me", "wrong"));
    let run = one.folder().join("run").display().to_string();
    ctst(&one, &[("XDG_RUNTIME_DIR", &run)], &["pull"]).fails(125, &["does not accept"]);
    ctst(&one, &[("XDG_RUNTIME_DIR", "/nowhere")], &["pull"]).ok();
    one.write("home/.docker/config.json", "{");
    one.write("stack.ctst", "COMPONENT app { image = \"oci://127.0.0.1:1/a:1\" }");
}

#[test]
fn helpers_are_asked_and_missed_only_where_they_are_needed() {
    let registry = Distribution::start(Some(USERS));
    registry.push(&oci(&[Archive::root().end()], &config()), "team/app:1", &["--dest-creds=me:secret"]);
    let host = registry.host();
    let answer = r#"{"ServerURL":"x","Username":"me","Secret":"secret"}"#;
    for file in [json!({ "credsStore": "test" }), json!({ "credHelpers": { &host: "test" } })] {
        let one = project(&host);
        one.write("home/.docker/config.json", &file.to_string());
        pull(&one).fails(125, &["I051", "install docker-credential-test", &host]);
        helper(&one, "test", &format!("[ \"$1\" = get ] && [ \"$(cat)\" = '{host}' ] && echo '{answer}'"));
        pull(&one).ok();
        // What the helper has nothing for may be in the file.
        helper(&one, "test", "echo 'credentials not found in native keychain'; exit 1");
        let other = project(&host);
        let mut both: Value = serde_json::from_str(&auths(&host, "me", "secret")).expect("JSON");
        both["credsStore"] = "test".into();
        other.write("home/.docker/config.json", &both.to_string());
        helper(&other, "test", "echo 'credentials not found in native keychain'; exit 1");
        pull(&other).ok();
    }
    let open = Registry::new();
    open.fill(|content| image().put(content, "team/app", "1"));
    let one = project(&open.host());
    one.write("home/.docker/config.json", r#"{"credsStore":"test"}"#);
    pull(&one).ok();
    one.write("home/.docker/config.json", "{");
    ctst(&one, &[], &["pull", "--update"]).ok();
}

/// A registry that wants tokens, and gives them to `me` with `secret`.
fn with_tokens(registry: &Registry, renewed: usize) {
    let host = registry.host();
    registry.behave(move |asked, before| {
        let me = format!("Basic {}", STANDARD.encode("me:secret"));
        if asked.path.starts_with("/token?") {
            let query: BTreeMap<&str, &str> =
                asked.path["/token?".len()..].split('&').filter_map(|pair| pair.split_once('=')).collect();
            let good = query.get("service") == Some(&"test.example")
                && query
                    .get("scope")
                    .is_some_and(|scope| scope.replace("%3A", ":").replace("%2F", "/") == "repository:team/app:pull");
            return Some(match good && asked.header("authorization") == me {
                true => Answer::of(200).body(format!(r#"{{"token":"token{before}","expires_in":60}}"#)),
                false => Answer::of(401).body(r#"{"errors":[{"code":"UNAUTHORIZED","message":"who are you"}]}"#),
            });
        }
        // A token that ends in the middle.
        let token = asked.header("authorization");
        let good =
            token == "Bearer token0" && (renewed == 0 || !asked.path.contains("/blobs/")) || token == "Bearer token1";
        let scope = r#"service="test.example",scope="repository:team/app:pull""#;
        let challenge = format!(r#"Bearer realm="http://{host}/token",{scope}"#);
        (!good).then(|| Answer::of(401).with("WWW-Authenticate", challenge))
    });
}

#[test]
fn tokens_are_asked_for_and_renewed() {
    for renewed in [0, 1] {
        let registry = Registry::new();
        registry.fill(|content| image().put(content, "team/app", "1"));
        with_tokens(&registry, renewed);
        let one = project(&registry.host());
        pull(&one).fails(125, &["I051", "wants to know who asks (who are you)"]);
        drop(registry.asked());
        one.write("home/.docker/config.json", &auths(&registry.host(), "me", "secret"));
        pull(&one).ok();
        let asked = registry.asked();
        let tokens = asked.iter().filter(|asked| asked.path.starts_with("/token")).count();
        // Of another process each time, so that the second begins with the first token again.
        assert!(tokens >= 1, "{tokens}");
        // The password went nowhere but where tokens are given.
        let basic = |asked: &&Asked| asked.header("authorization").starts_with("Basic");
        assert!(asked.iter().filter(basic).all(|asked| asked.path.starts_with("/token")));
    }
    // A place where nobody should send a password.
    let registry = Registry::new();
    registry.behave(|_, _| {
        Some(Answer::of(401).with("WWW-Authenticate", r#"Bearer realm="http://elsewhere.example/token",service="x""#))
    });
    let one = project(&registry.host());
    one.write("home/.docker/config.json", &auths(&registry.host(), "me", "secret"));
    pull(&one).fails(125, &["I054", "elsewhere.example", "no place to send a password"]);
}

#[test]
fn an_identity_token_is_a_refresh_token() {
    let registry = Registry::new();
    registry.fill(|content| image().put(content, "team/app", "1"));
    let host = registry.host();
    registry.behave(move |asked, _| {
        if asked.path == "/token" && asked.method == "POST" {
            return Some(Answer::of(200).body(r#"{"access_token":"it"}"#));
        }
        let challenge = format!(r#"Bearer realm="http://{host}/token",service="x""#);
        (asked.header("authorization") != "Bearer it").then(|| Answer::of(401).with("WWW-Authenticate", challenge))
    });
    let one = project(&registry.host());
    let file = json!({ "auths": { registry.host(): { "identitytoken": "secret" } } });
    one.write("home/.docker/config.json", &file.to_string());
    pull(&one).ok();
    one.write("home/.docker/config.json", r#"{"credsStore":"test"}"#);
    helper(&one, "test", r#"echo '{"Username":"<token>","Secret":"secret"}'"#);
    ctst(&one, &[], &["pull", "--update"]).ok();
}

#[test]
fn another_host_is_told_nothing() {
    let (registry, store) = (Registry::new(), Registry::new());
    registry.fill(|content| image().put(content, "team/app", "1"));
    registry.fill(|content| store.fill(|there| there.extend(content.clone())));
    let place = store.host();
    let blob = format!("/v2/team/app/blobs/sha256:{}", sha256(&image().layers[0].1));
    registry.behave(move |asked, _| match asked.header("authorization") {
        "" => Some(Answer::of(401).with("WWW-Authenticate", "Basic realm=\"test\"")),
        _ if asked.path == blob => Some(Answer::of(307).with("Location", format!("http://{place}{}", asked.path))),
        _ => None,
    });
    let one = project(&registry.host());
    one.write("home/.docker/config.json", &auths(&registry.host(), "me", "secret"));
    pull(&one).ok();
    let asked = store.asked();
    assert!(!asked.is_empty() && asked.iter().all(|asked| !asked.headers.contains_key("authorization")), "{asked:?}");
}

#[test]
fn who_logs_in_is_let_in_and_forgotten_again() {
    let registry = Distribution::start(Some(USERS));
    registry.push(&oci(&[Archive::root().end()], &config()), "team/app:1", &["--dest-creds=me:secret"]);
    let host = registry.host();
    let one = project(&host);
    let login = |project: &Project, password: &str| {
        let mut command = project.command(["login", &host, "-u", "me", "--password-stdin"]);
        let path = format!("{}:/usr/bin:/bin", project.folder().join("bin").display());
        command.env("HOME", project.folder().join("home")).env("PATH", path).env_remove("XDG_CONFIG_HOME");
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("start");
        child.stdin.take().expect("a pipe").write_all(password.as_bytes()).expect("write");
        let output = child.wait_with_output().expect("wait");
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!told.contains("secret"), "{told}");
        (output.status.code(), told)
    };
    let (code, told) = login(&one, "wrong\n");
    assert!(code == Some(125) && told.contains("I051") && told.contains("does not accept"), "{told}");
    let file = one.folder().join("home/.config/containers/auth.json");
    assert!(!file.exists());
    one.write("home/.config/containers/auth.json", r#"{"auths":{"other.example":{"auth":"eDp5"}},"more":1}"#);
    let (code, told) = login(&one, "secret\n");
    assert!(code == Some(0) && told.contains("auth.json"), "{told}");
    assert_eq!(fs::metadata(&file).expect("a file").permissions().mode() & 0o777, 0o600);
    let kept: Value = serde_json::from_slice(&fs::read(&file).expect("a file")).expect("JSON");
    assert_eq!((&kept["more"], &kept["auths"]["other.example"]["auth"]), (&json!(1), &json!("eDp5")));
    pull(&one).ok();
    // skopeo reads the same.
    let looked = std::process::Command::new("skopeo")
        .args(["inspect", "--tls-verify=false", "--authfile"])
        .arg(&file)
        .arg(format!("docker://{host}/team/app:1"))
        .output();
    if let Ok(output) = looked {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    ctst(&one, &[], &["logout", &host]).ok();
    ctst(&one, &[], &["pull", "--update"]).fails(125, &["I051"]);
    let kept: Value = serde_json::from_slice(&fs::read(&file).expect("a file")).expect("JSON");
    assert_eq!(kept["auths"]["other.example"]["auth"], "eDp5");
    let again = ctst(&one, &[], &["logout", &host]).ok();
    assert!(again.stderr.contains("nothing is stored"), "{again}");

    // With a helper, nothing lies in a file.
    let one = project(&host);
    one.write("home/.docker/config.json", r#"{"credsStore":"test"}"#);
    let store = one.folder().join("kept");
    let store = store.display();
    let script = format!(
        "case $1 in store) cat > '{store}';; get) cat > /dev/null; [ -e '{store}' ] && cat '{store}';; erase) rm '{store}';; esac"
    );
    helper(&one, "test", &script);
    let (code, told) = login(&one, "secret");
    assert!(code == Some(0) && told.contains("docker-credential-test"), "{told}");
    assert!(!one.folder().join("home/.config/containers/auth.json").exists());
    pull(&one).ok();
    ctst(&one, &[], &["logout", &host]).ok();
    ctst(&one, &[], &["pull", "--update"]).fails(125, &["I051"]);
    ctst(&one, &[], &["login", "a b"]).fails(125, &["no registry"]);
    ctst(&one, &["CONTAINUST_OFFLINE"].map(|name| (name, "1")), &["login", &host, "-u", "me"])
        .fails(125, &["standard input is no terminal"]);
}
