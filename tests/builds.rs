//! Images that are built: what Dockerfiles say is done, once, in containers, and with nothing of the host but the build's folder.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use containust_tests::archive::{Archive, gzip, oci};
use containust_tests::registry::Distribution;
use containust_tests::{Caller, Done, Project, World, eventually, programs};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};

const WEB: &str = "COMPONENT web { build { dockerfile = \"Dockerfile\" } }\n";

/// Whether only the caller's own id exists in his containers.
fn is_single(caller: &Caller) -> bool {
    caller.single || caller.uid != 0 && caller.range().is_none()
}

/// A project with the tests' root file system under the name `base`.
fn project(caller: &Caller, text: &str) -> Project {
    let project = Project::new(caller, text);
    let root = programs().with_file_name("rootfs").display().to_string();
    project.ctst(["images", "import", &root, "base"]).ok();
    project
}

/// A project whose one component is built from this.
fn dockerfile(caller: &Caller, text: &str) -> Project {
    let project = project(caller, &WEB.replace("COMPONENT", "JOB"));
    project.write("Dockerfile", text);
    project
}

fn build(project: &Project) -> Done {
    project.ctst(["build"])
}

/// Names in a folder of the project's image store.
fn store(project: &Project, folder: &str) -> BTreeSet<String> {
    let path = project.folder().join(".containust/images").join(folder);
    let Ok(entries) = fs::read_dir(path) else { return BTreeSet::new() };
    entries.flatten().map(|entry| entry.file_name().into_string().expect("a name")).collect()
}

/// Nothing of a build is under way, and nothing was left.
fn assert_clean(project: &Project) {
    assert_eq!(store(project, "staging").into_iter().filter(|name| name != "lock").collect::<Vec<_>>(), [""; 0]);
}

#[test]
fn steps_that_make_the_same_are_one_layer_and_the_path_is_there() {
    for caller in Caller::all() {
        let steps = "FROM image://base\nENV PATH=/opt/bin:$PATH\nRUN true\nRUN true\nCOPY a /x\nRUN echo 1 > /z && rm /x\nCOPY a /x\n\
                     RUN true\nCMD [\"sh\", \"-c\", \"echo $PATH; cat /x /z\"]\n";
        let project = dockerfile(&caller, steps);
        project.write("a", "a\n");
        build(&project).ok();
        project.ctst(["run", "--yes"]).ok();
        let path = "/opt/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        assert_eq!(project.logs("web"), format!("{path}\na\n1\n"), "{}", caller.name);
        // What goes out comes in again.
        project.ctst(["images", "export", "build://web", "out.tar"]).ok();
        project.ctst(["images", "import", "out.tar", "again"]).ok();
        project.assert_nothing_left();
    }
}

#[test]
fn dockerfiles_of_the_usual_shapes_build() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("dockerfiles");
    let mut files: Vec<(String, String)> = fs::read_dir(folder)
        .expect("list the Dockerfiles")
        .map(|entry| entry.expect("an entry").path())
        .map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read_to_string(&path).unwrap()))
        .collect();
    files.sort();
    assert!(files.len() >= 20, "{} Dockerfiles", files.len());
    for caller in Caller::all() {
        let component = |(name, _): &(String, String)| {
            format!(
                "JOB {name} {{ readonly = false build {{ context = \"./context\" dockerfile = \"../{name}\" }} }}\n"
            )
        };
        let project = project(&caller, &files.iter().map(component).collect::<String>());
        project.make_folder("context");
        project.make_folder("context/conf");
        let packed = Archive::new().folder("in/").file("in/file", "packed\n").end();
        project.write_bytes("context/packed.tar.gz", &gzip(&packed));
        for (name, text) in [
            ("app.txt", "app.txt\n"),
            ("conf/a.conf", ""),
            ("conf/b.conf", ""),
            ("conf/c.txt", ""),
            ("a.log", "x"),
            ("keep.log", "x"),
            ("secret.env", "x"),
            (".dockerignore", "# not these\n*.log\n!keep.log\n**/*.env\n.dockerignore\n"),
        ] {
            project.write(&format!("context/{name}"), text);
        }
        for (name, text) in &files {
            project.write(name, text);
        }
        let plan = project.ctst(["plan"]).ok();
        assert!(plan.stdout.contains("build://arguments, will be built"), "{plan}");
        let done = project.ctst(["run", "--yes"]).ok();
        for (name, text) in &files {
            let expected = text.lines().find_map(|line| line.strip_prefix("# prints: ")).expect("says what it prints");
            let printed = project.logs(name).split_whitespace().collect::<Vec<_>>().join(" ");
            assert_eq!(printed, expected, "{} {name}\n{done}", caller.name);
        }
        assert_clean(&project);
        let plan = project.ctst(["plan"]).ok();
        assert!(!plan.stdout.contains("will be built"), "{plan}");
        let again = build(&project).ok();
        assert!(!again.stderr.contains("building"), "{again}");
        assert!(project.ctst(["images", "ls"]).ok().stdout.contains("build://labels from labels"), "{again}");
        let json = project.ctst(["images", "ls", "--format", "json"]).ok().json();
        let labels =
            json.as_array().unwrap().iter().find(|image| image["reference"] == "build://labels").unwrap().clone();
        assert_eq!(labels["declared"]["labels"]["org.opencontainers.image.title"], "a title");
        assert_eq!(labels["declared"]["ports"].as_array().unwrap().len(), 4);
        let check = json.as_array().unwrap().iter().find(|image| image["reference"] == "build://healthcheck").unwrap();
        assert_eq!(check["declared"]["healthcheck"]["test"][0], "CMD-SHELL");
        project.ctst(["images", "verify"]).ok();
        project.assert_nothing_left();
    }
}

#[test]
fn a_change_is_built_from_its_step_on() {
    let text = "FROM image://base\nRUN echo one >> /srv/runs\nCOPY file /srv/file\nRUN echo two >> /srv/runs; cat /srv/file\nCMD [\"cat\", \"/srv/runs\", \"/srv/file\"]\n";
    for caller in Caller::all() {
        let project = dockerfile(&caller, text);
        project.write("file", "first\n");
        project.write("unused", "first\n");
        let first = build(&project).ok();
        assert!(first.stderr.contains("| first") && !first.stderr.contains("as before"), "{first}");
        let layers = store(&project, "layers");
        // What no step copies does not count.
        project.write("unused", "second\n");
        let same = build(&project).ok();
        assert_eq!((same.stdout.clone(), same.stderr.contains("building")), (first.stdout.clone(), false), "{same}");
        project.write("file", "second\n");
        let second = build(&project).ok();
        let told: Vec<&str> = second.stderr.lines().filter(|line| line.contains("as before")).collect();
        assert!(told.len() == 1 && told[0].contains("RUN echo one"), "{second}");
        assert!(second.stderr.contains("| second"), "{second}");
        assert!(store(&project, "layers").is_superset(&layers), "nothing was removed");
        // What was there before is known still.
        project.write("file", "first\n");
        let back = build(&project).ok();
        assert_eq!(back.stderr.matches("as before").count(), 3, "{back}");
        assert_eq!(back.stdout, first.stdout);
        let anew = project.ctst(["build", "--no-cache"]).ok();
        assert!(!anew.stderr.contains("as before") && anew.stderr.contains("| first"), "{anew}");
        project.ctst(["run", "--yes"]).ok();
        assert_eq!(project.logs("web"), "one\ntwo\nfirst\n");
        // Only what a container was made of stays, and it is found.
        project.ctst(["images", "prune"]).ok();
        assert!(!build(&project).ok().stderr.contains("building"));
        assert!(store(&project, "layers").len() < layers.len() + 4);
        project.assert_nothing_left();
    }
}

#[test]
fn owners_are_who_a_file_says() {
    let text = "FROM image://base\nCOPY --chown=somebody:extra file /srv/\nCOPY --chown=1000 file /srv/other/deep\nRUN chmod 1777 /tmp\nUSER somebody\nRUN id -u > /tmp/who; ! touch /etc/x\nRUN stat -c '%u %g' /srv/file /srv/other /srv/other/deep >> /tmp/who\nCMD [\"/bin/sh\", \"-c\", \"cat /tmp/who; id -u\"]\n";
    for caller in Caller::all() {
        let project = dockerfile(&caller, text);
        project.write("file", "x");
        if is_single(&caller) {
            build(&project).fails(125, &["error[S0211]", "line 2", "only one id is mapped", "COPY --chown=somebody"]);
            project.write("Dockerfile", "FROM image://base\nUSER somebody\nRUN id\n");
            build(&project).fails(125, &["error[S0211]", "line 3", "only one id is mapped"]);
            continue;
        }
        project.write("stack.ctst", &WEB.replace("COMPONENT", "JOB").replace("build", "readonly = false build"));
        project.ctst(["run", "--yes"]).ok();
        assert_eq!(project.logs("web"), "1000\n1000 1001\n1000 1000\n1000 1000\n1000\n");
        // Another stage's files keep theirs.
        let text = "FROM image://base AS a\nCOPY --chown=1000:1001 file /srv/\nFROM image://base\nCOPY --from=a /srv/ /srv/\nCOPY --from=a --chown=0:0 /srv/file /srv/root\nCMD [\"stat\", \"-c\", \"%u %g\", \"/srv/file\", \"/srv/root\"]\n";
        project.write("Dockerfile", text);
        project.ctst(["run", "--yes", "--allow-destroy"]).ok();
        assert_eq!(project.logs("web"), "1000 1001\n0 0\n");
        project.assert_nothing_left();
    }
}

#[test]
fn what_is_wrong_is_told_with_its_line() {
    let caller = Caller::ordinary();
    let project = dockerfile(&caller, "FROM image://base\n\nRUM echo x\nFOO bar\n");
    let told = ["error[S0211]", "build web from Dockerfile", "line 3", "3 | RUM echo x", "line 4", "did you mean RUN?"];
    build(&project).fails(125, &told);
    project.ctst(["plan"]).fails(125, &told);
    for (text, words) in [
        ("FROM image://base\nRUN --mount=type=secret,id=x cat x\n", &["line 2", "type=secret"][..]),
        ("FROM image://base\nCOPY none /srv/\n", &["line 2", "`none`", "is not in"]),
        ("FROM image://base\nADD https://example.com/x /srv/\n", &["line 2", "nothing from the network"]),
        ("FROM image://base\nONBUILD RUN x\n", &["line 2", "ONBUILD"]),
        ("FROM image://none\n", &["line 1", "image://none"]),
        ("FROM --platform=linux/s390x image://base\n", &["line 1", "linux/s390x"]),
        ("FROM image://base\nCOPY file /bin/sh/x/\n", &["line 2", "no folder"]),
        ("FROM image://base\nUSER nobody-here\nRUN true\n", &["line 3"]),
        ("FROM image://base\nRUN [\"/bin/none\"]\n", &["line 2", "/bin/none"]),
        ("FROM scratch\nRUN true\n", &["line 2"]),
        ("FROM scratch AS a\nFROM image://base\nCOPY --from=a /x /\n", &["line 3", "empty stage"]),
    ] {
        project.write("Dockerfile", text);
        project.write("file", "x");
        build(&project).fails(125, words);
        assert_clean(&project);
    }
    project.write("Dockerfile", "FROM image://base AS build\nFROM image://base\nCOPY --from=biuld /x /\n");
    project.ctst(["--offline", "build"]).fails(125, &["line 3", "biuld", "help: write `--from=build`"]);
    project.write("Dockerfile", "FROM image://base\nRUN seq 1 30; echo last words >&2; exit 7\n");
    let done = build(&project).fails(125, &["error[S0212]", "line 2", "it ended with 7", "  last words", "  30"]);
    assert!(done.stderr.contains("| 1\n") && !done.stderr.contains("\n  1\n"), "the last lines only: {done}");
    assert_clean(&project);
    let long = format!("RUN : {}\n", "x".repeat(60_000));
    project.write("Dockerfile", &format!("FROM image://base\n{long}"));
    build(&project)
        .fails(125, &["error[S0211]", "line 2", "bytes with its environment", "help: copy it into the image"]);
    project.write_bytes("Dockerfile", b"FROM image://base\nLABEL a=\xff\n");
    build(&project).fails(125, &["error[S0204]", "Dockerfile", "help: write it in UTF-8"]);
    project.write("Dockerfile", "FROM image://base\n");
    project.write("stack.ctst", "COMPONENT web { build { from = \"image://base\" run = [\"true\", \"exit 3\"] } }\n");
    build(&project).fails(125, &["error[S0212]", "`run exit 3`: it ended with 3"]);
    assert_clean(&project);
    project.write("stack.ctst", "COMPONENT web { build { dockerfile = \"None\" } }\n");
    build(&project).fails(125, &["error[S0204]", "None", "or correct the path"]);
    project.write(
        "stack.ctst",
        "COMPONENT web { build { dockerfile = \"Dockerfile\" target = \"prod\" args { X = 1 } } }\n",
    );
    build(&project).fails(125, &["no ARG is called `X`"]);
    project.write("stack.ctst", "COMPONENT web { image = \"image://base\" build { dockerfile = \"Dockerfile\" } }\n");
    project.ctst(["check"]).fails(125, &["exclude each other"]);
}

#[test]
fn nothing_of_the_host_is_reached_but_the_folder() {
    for caller in Caller::all() {
        let project = dockerfile(&caller, "");
        let outside = project.folder().join("outside");
        fs::write(&outside, "outside").unwrap();
        project.make_folder("context");
        project.make_folder("context/in");
        project.write("context/in/file", "inside");
        let link = |to: &str, name: &str| {
            let place = project.folder().join("context").join(name);
            fs::remove_file(&place).ok();
            symlink(to, place).unwrap();
        };
        link(outside.to_str().unwrap(), "absolute");
        link("../outside", "relative");
        link("/etc", "etc");
        link("in/file", "good");
        link("../../outside", "in/below");
        project.write("stack.ctst", &WEB.replace("build {", "readonly = false build { context = \"./context\""));
        let with = |text: &str| {
            project.write("context/Dockerfile", text);
            build(&project)
        };
        for bad in ["absolute", "relative", "etc", "etc/passwd", "../outside", "in/../../outside", "in/below/x"] {
            with(&format!("FROM image://base\nCOPY {bad} /srv/\n")).fails(125, &["line 2"]);
        }
        // A link below what is copied is a link, and leads into the image.
        let done =
            with("FROM image://base\nCOPY good in /srv/\nRUN readlink /srv/below; cat /srv/good; ! cat /srv/below\n")
                .ok();
        assert!(done.stderr.contains("| ../../outside\n") && done.stderr.contains("| inside"), "{done}");
        assert!(!done.stderr.contains("| outside"), "{done}");
        // Links of the image lead into itself.
        let place = project.folder().display().to_string();
        let steps = format!("RUN ln -s {place} /srv/out\nCOPY good /srv/out/x/\n");
        with(&format!("FROM image://base\n{steps}").replace("out/x/", "out/")).fails(125, &["line 3", "leads nowhere"]);
        let steps = steps.replace("RUN ", &format!("RUN mkdir -p {place} && "));
        let done = with(&format!("FROM image://base\n{steps}RUN cat {place}/x/good\n")).ok();
        assert!(done.stderr.contains("| inside") && !project.folder().join("x").exists(), "{done}");
        with("FROM image://base AS a\nRUN ln -s /etc/hostname /srv/host && ln -s ../../../../../../etc/passwd /srv/up\nFROM image://base\nCOPY --from=a /srv/up /srv/passwd\nRUN cmp /srv/passwd /etc/passwd\n").ok();
        // A step sees neither the folder, nor the store, nor processes, nor a network.
        let look = format!(
            "RUN ! ls {0} && ! ls {0}/.containust && ls /proc | grep -c '^[0-9]' && ls /sys/class/net && id -u\n",
            project.folder().display()
        );
        let done = with(&format!("FROM image://base\n{look}")).ok();
        assert!(done.stderr.contains("| lo\n") && !done.stderr.contains("| eth"), "{done}");
        // What leads somewhere else in the way of a copied folder is not followed.
        with("FROM image://base\nRUN rm -rf /srv/in && mkdir /srv/d && ln -s /etc /srv/d/in\nCOPY . /srv/d/\n")
            .fails(125, &["line 3", "link"]);
        // Of the project's own state nothing is copied.
        project.write("stack.ctst", &WEB.replace("build {", "readonly = false build { context = \".\""));
        project
            .write("Dockerfile", "FROM image://base\nCOPY . /srv/all\nRUN ls -a /srv/all; ! ls /srv/all/.containust\n");
        build(&project).ok();
        project.write("Dockerfile", "FROM image://base\nCOPY .containust/images /srv/all\n");
        build(&project).fails(125, &["line 2"]);
        project.assert_nothing_left();
    }
}

#[test]
fn builds_that_are_killed_leave_nothing_that_counts() {
    for caller in Caller::all() {
        let project = dockerfile(
            &caller,
            "FROM image://base\nRUN echo first > /srv/a\nRUN echo begun > /srv/b; echo now; sleep 1000\nCMD [\"cat\", \"/srv/b\"]\n",
        );
        for signal in [Signal::KILL, Signal::INT, Signal::TERM] {
            let running = project.start(["build"]);
            let pid = running.pid();
            eventually("the second step writes", || {
                let found = fs::read_dir(project.folder().join(".containust/images/staging")).ok();
                found.into_iter().flatten().flatten().any(|entry| {
                    let tree = entry.path();
                    (1..9).any(|n| tree.join(format!("{n}/layer/tree/srv/b")).symlink_metadata().is_ok())
                })
            });
            let pid = Pid::from_raw(pid).unwrap();
            kill_process(pid, signal).unwrap();
            let done = running.wait(Duration::from_secs(60));
            assert_eq!(done.code, 128 + signal.as_raw(), "{done}");
            assert!(test_kill_process(pid).is_err());
            eventually("every process of it is gone", || project.left().is_empty());
        }
        project.write(
            "Dockerfile",
            "FROM image://base\nRUN echo first > /srv/a\nRUN echo now > /srv/b\nCMD [\"cat\", \"/srv/b\"]\n",
        );
        let done = build(&project).ok();
        assert_eq!(done.stderr.matches("as before").count(), 1, "{done}");
        assert_clean(&project);
        project.ctst(["run", "--yes"]).ok();
        assert_eq!(project.logs("web"), "now\n");
        project.assert_nothing_left();
    }
}

#[test]
fn what_a_step_starts_ends_with_it() {
    let caller = Caller::ordinary();
    let project = dockerfile(
        &caller,
        "FROM image://base\nRUN (while true; do echo x >> /srv/grows; done) & sleep 0.2\nRUN wc -c < /srv/grows > /srv/size; sleep 0.3; test $(cat /srv/size) = $(wc -c < /srv/grows)\n",
    );
    build(&project).ok();
    project.ctst(["images", "verify"]).ok();
    project.assert_nothing_left();
}

#[test]
fn steps_can_stand_in_the_composition() {
    for caller in Caller::all() {
        let text = r#"
PARAM mode = "production"
JOB web {
  readonly = false
  build {
    from = "image://base"
    context = "./context"
    env { MODE = "${mode}" }
    workdir = "/srv/app"
    copy = ["app.txt:/srv/app/", "conf:/etc/conf"]
    run = ["echo $MODE > mode", "ls /etc/conf >> mode"]
    entrypoint = ["/bin/cat"]
    command = ["mode", "app.txt"]
  }
}
"#;
        let project = project(&caller, text);
        project.make_folder("context");
        project.make_folder("context/conf");
        project.write("context/app.txt", "app\n");
        project.write("context/conf/a", "");
        project.ctst(["run", "--yes"]).ok();
        assert_eq!(project.logs("web"), "production\na\napp\n");
        assert!(!build(&project).ok().stderr.contains("building"));
        let other = project.ctst(["build", "--set", "mode=test"]).ok();
        assert!(other.stderr.contains("building from stack.ctst"), "{other}");
        project.assert_nothing_left();
    }
}

#[test]
fn an_image_that_was_built_can_be_carried_elsewhere() {
    let caller = Caller::ordinary();
    let project = dockerfile(
        &caller,
        "FROM image://base\nRUN rm /etc/group; mkdir -p /srv/x; echo y > /srv/x/y\nCMD [\"/bin/sh\", \"-c\", \"cat /srv/x/y; ls /etc\"]\n",
    );
    build(&project).ok();
    project.ctst(["images", "export", "build://web", "web.tar"]).ok();
    let other = Project::new(&caller, "JOB web { image = \"tar://./web.tar\" }\n");
    other.write_bytes("web.tar", &fs::read(project.folder().join("web.tar")).unwrap());
    other.ctst(["run", "--yes"]).ok();
    assert_eq!(other.logs("web").lines().next(), Some("y"));
    assert!(!other.logs("web").contains("group"), "{}", other.logs("web"));
    other.assert_nothing_left();
}

#[test]
fn a_dockerfile_names_nothing_of_the_host_but_what_is_beside_it() {
    for caller in Caller::all() {
        let project = dockerfile(&caller, "");
        project.make_folder("context");
        project.make_folder("outside");
        project.write("outside/key", "a key of the host");
        project.write_bytes("out.tar", &Archive::root().end());
        project.write_bytes("context/base.tar", &Archive::root().end());
        symlink("../out.tar", project.folder().join("context/link.tar")).expect("make a link");
        project.write("stack.ctst", &WEB.replace("build {", "build { context = \"./context\""));
        let outside = project.folder().join("outside").display().to_string();
        for (text, words) in [
            (format!("FROM file://{outside}\n"), ["line 1", "images import"]),
            ("FROM file://.\n".into(), ["line 1", "images import"]),
            (format!("FROM image://base\nCOPY --from=file://{outside} /key /got\n"), ["line 2", "images import"]),
            ("FROM image://base\nCOPY --from=file://../outside /key /got\n".into(), ["line 2", "images import"]),
            ("FROM tar://../out.tar\n".into(), ["line 1", "is not below the Dockerfile's folder"]),
            (format!("FROM tar://{}/out.tar\n", project.folder().display()), ["line 1", "is not below"]),
            ("FROM tar://link.tar\n".into(), ["line 1", "by a link"]),
            ("FROM host:///bin/sh\n".into(), ["line 1", "host://"]),
        ] {
            project.write("context/Dockerfile", &text);
            for command in ["plan", "build"] {
                project.ctst([command]).fails(125, &["S0211", words[0], words[1]]);
            }
        }
        project.write("context/Dockerfile", "FROM tar://base.tar\nRUN echo beside\n");
        assert!(build(&project).ok().stderr.contains("| beside"), "{}", caller.name);
        project.assert_nothing_left();
    }
}

#[test]
fn a_link_that_a_container_made_leads_no_build_elsewhere() {
    let caller = Caller::ordinary();
    let hold = "COMPONENT hold { image = \"file://ROOTFS\" command = [\"/bin/ctst-probe\", \"hold\"] volume = \"./data:/data\" }\n";
    let project = project(&caller, hold);
    for folder in ["data", "outside", "own"] {
        project.make_folder(folder);
    }
    project.write("outside/Dockerfile", "FROM image://base\nCOPY key /key\n");
    project.write("outside/key", "a key of the host");
    project.up();
    project.ctst(["exec", "hold", "ln", "-s", "../outside", "/data/ctx"]).ok();
    project.ctst(["exec", "hold", "ln", "-s", "../outside/Dockerfile", "/data/Dockerfile"]).ok();
    for settings in
        ["context = \"./data/ctx\"", "context = \"./data\"", "context = \"./own\" dockerfile = \"../data/Dockerfile\""]
    {
        project.write(
            "stack.ctst",
            &format!("{hold}{}", WEB.replace("build {", "build { ").replace("dockerfile = \"Dockerfile\"", settings)),
        );
        for command in [&["plan"][..], &["build"], &["up", "--yes"]] {
            project.ctst(command).fails(125, &["S0109", "hold can write"]);
        }
    }
    // What a component wrote stays when its container has gone, and an image is as dangerous as what it is built from.
    project.ctst(["down"]).ok();
    project.make_folder("outside/bin");
    for image in [
        "image = \"file://./data/ctx\"",
        "build { from = \"file://./data/ctx\" run = \"true\" }",
        "build { context = \"./data/ctx\" }",
    ] {
        project.write("stack.ctst", &format!("{hold}COMPONENT web {{ command = [\"/bin/x\"] {image} }}\n"));
        for command in [&["plan"][..], &["build"], &["bundle", "-o", "x.ctstar"]] {
            project.ctst(command).fails(125, &["S0109", "hold can write"]);
        }
    }
    assert!(!project.folder().join("x.ctstar").exists());
    project.assert_nothing_left();
}

#[test]
fn steps_reach_what_their_component_reaches() {
    if Caller::root().is_none() {
        return;
    }
    Caller::at_once(Caller::all(), |caller| {
        let world = World::new();
        let out = "NETWORK out { internal = false }\n";
        let web = WEB.replace("build {", "network = \"out\" build {");
        let project = Project::within(caller, &format!("{out}{web}"), &world);
        let root = programs().with_file_name("rootfs").display().to_string();
        project.ctst(["images", "import", &root, "base"]).ok();
        let fetch = format!("timeout 10 wget -q -O- http://{}/", World::THERE);
        project.write(
            "Dockerfile",
            &format!("FROM image://base\nRUN echo it says $({fetch})\nRUN --network=none ! {fetch}\n"),
        );
        let done = build(&project).ok();
        assert!(done.stderr.contains(&format!("| it says seen from {}", World::HOME)), "{}: {done}", caller.name);
        let by_name = format!("timeout 10 wget -q -O- http://{}/", World::NAME);
        project.write("Dockerfile", &format!("FROM image://base\nRUN echo by name $({by_name})\n"));
        let done = build(&project).ok();
        assert!(done.stderr.contains(&format!("| by name seen from {}", World::HOME)), "{}: {done}", caller.name);
        project.write(
            "Dockerfile",
            &format!("FROM image://base\nRUN echo it says $({fetch})\nRUN --network=none ! {fetch}\n"),
        );
        // The kernel sees to it, whatever the composition says.
        project.ctst(["--offline", "build", "--no-cache"]).ok();
        project.write("Dockerfile", &format!("FROM image://base\nRUN ! {fetch}\n"));
        project.ctst(["--offline", "build"]).ok();
        project.write("stack.ctst", WEB);
        project.ctst(["build", "--no-cache"]).ok();
        project.assert_nothing_left();
    });
}

#[test]
fn an_image_of_a_registry_is_built_on_and_locked() {
    let registry = Distribution::start(None);
    registry.push(
        &oci(
            &[Archive::root().end(), Archive::new().folder("srv/").file("srv/text", "of a registry\n").end()],
            &serde_json::json!({"Env": ["A=1"]}),
        ),
        "team/app:1",
        &[],
    );
    for caller in Caller::all() {
        let name = format!("{}/team/app:1", registry.host());
        let project = dockerfile(&caller, &format!("FROM oci://{name}\nRUN echo $A; cat /srv/text\n"));
        let plan = project.ctst(["plan"]).ok().stdout;
        assert!(plan.contains("will be built"), "{plan}");
        project.ctst(["--offline", "build"]).fails(125, &["line 1", "offline"]);
        let done = build(&project).ok();
        assert!(done.stderr.contains("| 1\n") && done.stderr.contains("| of a registry"), "{}: {done}", caller.name);
        let lock = fs::read_to_string(project.folder().join("containust.lock")).expect("read the lock");
        assert!(lock.contains(&name), "{lock}");
        // By that, and nothing is asked again.
        project.ctst(["--offline", "build", "--no-cache"]).ok();
        project.assert_nothing_left();
    }
}

#[test]
fn a_cache_that_was_not_set_up_is_set_up_again() {
    for caller in Caller::all() {
        let owner = if is_single(&caller) { "" } else { ",uid=7,gid=8" };
        let steps = format!(
            "FROM image://base\nRUN --mount=type=cache,target=/c,mode=0750{owner} stat -c %u:%g:%a /c; ls /c; touch /c/kept\n"
        );
        let project = dockerfile(&caller, &steps);
        let expected = if is_single(&caller) { "| 0:0:750\n" } else { "| 7:8:750\n" };
        assert!(build(&project).ok().stderr.contains(expected), "{}", caller.name);
        // As kill -9 leaves it that came before the end of setting up.
        let caches = store(&project, "caches");
        let cache = project.folder().join(".containust/images/caches").join(caches.first().expect("a cache"));
        fs::remove_file(cache.join("data/kept")).expect("remove a file");
        fs::rename(cache.join("data"), cache.join("new")).expect("rename a folder");
        let done = project.ctst(["build", "--no-cache"]).ok();
        assert!(done.stderr.contains(expected) && !done.stderr.contains("| kept"), "{}: {done}", caller.name);
        let done = project.ctst(["build", "--no-cache"]).ok();
        assert!(done.stderr.contains("| kept"), "{}: {done}", caller.name);
        project.assert_nothing_left();
    }
}

#[test]
fn builds_at_once_share_a_cache_that_is_set_up_once() {
    let caller = Caller::ordinary();
    for _ in 0..3 {
        let project = dockerfile(&caller, "");
        let steps = |name: &str| {
            format!(
                "FROM image://base\nRUN --mount=type=cache,target=/c,mode=0750,uid=7,gid=8 stat -c %u:%g:%a /c && touch /c/{name}\n"
            )
        };
        for name in ["one", "two", "three"] {
            project.write(name, &steps(name));
            let text = WEB.replace("Dockerfile", name).replace("web", name);
            project.write(&format!("{name}.ctst"), &text);
        }
        let begin = |name: &str| {
            let mut command = project.command(["-f", &format!("{name}.ctst"), "build"]);
            command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("start a build")
        };
        for build in ["one", "two", "three"].map(begin) {
            let done = build.wait_with_output().expect("a build");
            let told = String::from_utf8_lossy(&done.stderr);
            assert!(done.status.success() && told.contains("| 7:8:750\n"), "{told}");
        }
        let caches = project.folder().join(".containust/images/caches");
        let cache = fs::read_dir(&caches).unwrap().flatten().next().expect("a cache").path();
        assert_eq!(fs::read_dir(cache.join("data")).unwrap().count(), 3);
        project.assert_nothing_left();
    }
}

#[test]
fn nothing_is_removed_from_under_a_build() {
    for caller in Caller::all() {
        let about = format!("as {}", caller.name);
        let project = dockerfile(
            &caller,
            "FROM image://base\nRUN --mount=type=cache,target=/c echo kept > /c/kept; sleep 1000\n",
        );
        let root = programs().with_file_name("rootfs").display().to_string();
        project.ctst(["images", "import", &root, "other"]).ok();
        let building = project.start(["build"]);
        let caches = project.folder().join(".containust/images/caches");
        let has_cache = || {
            let found = fs::read_dir(&caches).into_iter().flatten().flatten();
            found.into_iter().any(|cache| cache.path().join("data/kept").symlink_metadata().is_ok())
        };
        eventually("the step writes into its cache", has_cache);

        let done = project.ctst(["images", "prune", "--all"]).ok();
        for what in ["other:latest removed", "layers are left", "caches are left", "is in use by"] {
            assert!(done.stderr.contains(what), "{about}: {what}: {done}");
        }
        let done =
            project.ctst(["images", "prune", "--all"]).fails(125, &["I066", "is in use by", "try again afterwards"]);
        assert!(!done.stderr.contains("chown") && has_cache(), "{about}: {done}");

        kill_process(Pid::from_raw(building.pid()).unwrap(), Signal::TERM).unwrap();
        assert_eq!(building.wait(Duration::from_secs(60)).code, 128 + Signal::TERM.as_raw(), "{about}");
        project.ctst(["images", "prune", "--all"]).ok();
        assert!(!caches.exists(), "{about}");
        project.assert_nothing_left();
    }
}

#[test]
fn an_image_of_nothing_is_whole() {
    let project = dockerfile(&Caller::ordinary(), "FROM scratch\nENV A=1\nCMD [\"/none\"]\n");
    build(&project).ok();
    project.ctst(["images", "verify"]).ok();
    project.ctst(["run", "--yes"]).fails(127, &["/none"]);
    project.ctst(["down"]).ok();
    project.assert_nothing_left();
}

#[test]
fn what_differs_has_other_layers_and_other_keys() {
    let caller = Caller::ordinary();
    // As a stream it would be what hides a file.
    let project = dockerfile(&caller, "FROM image://base\nRUN mkdir /srv/d && touch /srv/d/.wh.old\n");
    build(&project).fails(125, &["srv/d/.wh.old", "begins with `.wh.`"]);
    assert_clean(&project);
    // A file, and a folder with a file of its name.
    project.write("x", "as a file");
    project.write("Dockerfile", "FROM image://base\nCOPY x /srv/y\nCMD [\"cat\", \"/srv/y\"]\n");
    project.ctst(["run", "--yes"]).ok();
    assert_eq!(project.logs("web"), "as a file");
    fs::remove_file(project.folder().join("x")).expect("remove a file");
    project.make_folder("x");
    project.write("x/x", "as a file");
    let done = project.ctst(["run", "--yes", "--allow-destroy"]);
    assert!(done.stderr.contains("Is a directory") || project.logs("web").contains("directory"), "{done}");
    project.stop();
}

#[test]
fn a_file_that_changes_under_a_build_is_kept_under_no_key() {
    let caller = Caller::ordinary();
    for (verb, name) in [("COPY", "f"), ("ADD", "f"), ("COPY", "d")] {
        let project = dockerfile(
            &caller,
            &format!(
                "FROM image://base\nRUN sleep 2\n{verb} {name} /srv/f\nCMD [\"sh\", \"-c\", \"cat /srv/f || cat /srv/f/f\"]\n"
            ),
        );
        project.make_folder("d");
        let path = if name == "d" { "d/f" } else { "f" };
        project.write(path, "good");
        let running = project.start(["build"]);
        std::thread::sleep(Duration::from_secs(1));
        project.write(path, "evil");
        running.wait(Duration::from_secs(60)).fails(125, &["changed"]);
        project.write(path, "good");
        project.ctst(["run", "--yes"]).ok();
        assert!(project.logs("web").contains("good"), "{verb} {name}: {}", project.logs("web"));
        assert_clean(&project);
        project.stop();
    }
}

#[test]
fn what_would_grow_without_bounds_is_refused_with_its_line() {
    let caller = Caller::ordinary();
    let project = dockerfile(&caller, "");
    let doubled = (0..40).map(|_| "ENV x=$x$x\n").collect::<String>();
    let long = "y".repeat(60_000);
    for (text, word) in [
        (format!("FROM image://base\nENV x=aaaaaaaa\n{doubled}"), "more than"),
        (format!("FROM image://base\nARG x={long}\nENV a={long}\n"), "line 3"),
        (format!("FROM image://base\nARG x={long}\nLABEL a={}\n", "$x".repeat(2000)), "line 3"),
        (format!("FROM image://base\nARG x={long}\n{}", "LABEL a=$x\n".repeat(200)), "the stage becomes longer"),
        ("FROM image://base\nCOPY --chown=4294967295 Dockerfile /x\n".into(), "is no id"),
        ("FROM image://base\nRUN --mount=type=cache,target=/c,uid=4294967295 true\n".into(), "is no number"),
    ] {
        project.write("Dockerfile", &text);
        build(&project).fails(125, &[word]);
    }
    project.write("Dockerfile", "FROM image://base\nCOPY . /srv\n");
    project.write(".dockerignore", &"a*\n".repeat(1001));
    build(&project).fails(125, &["more than 1000 rules", "line 1001"]);
    assert_clean(&project);
}
