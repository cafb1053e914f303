//! Images of which only what a program needs is kept: what that is, what is an error, and that nothing else is there.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use containust_tests::archive::{Archive, docker};
use containust_tests::{Caller, Done, Project, eventually, finish, programs};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tar::EntryType;

const MAIN: &str = r#"
#include <dlfcn.h>
#include <stdio.h>
#include <pwd.h>
int base(void);
int main(void) {
    void *plug = dlopen("libplug.so.7", RTLD_NOW);
    int (*answer)(void) = plug ? (int (*)(void))dlsym(plug, "answer") : 0;
    struct passwd *user = getpwuid(1000);
    printf("%d %d %s\n", base(), answer ? answer() : -1, user ? user->pw_name : "nobody");
    return 0;
}
"#;

/// A program, a library that it is linked with, and one that it opens, as the C compiler makes them.
fn compiled() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a folder").keep();
        fs::write(folder.join("base.c"), "int base(void) { return 4; }").unwrap();
        fs::write(folder.join("plug.c"), "int answer(void) { return 42; }").unwrap();
        fs::write(folder.join("main.c"), MAIN).unwrap();
        for words in [
            &["-shared", "-fPIC", "-o", "libbase.so", "base.c"][..],
            &["-shared", "-fPIC", "-o", "libplug.so.7", "plug.c"],
            &["-o", "main", "main.c", "-L.", "-lbase", "-Wl,--enable-new-dtags,-rpath,$ORIGIN/../lib"],
        ] {
            let done =
                Command::new("gcc").args(words).current_dir(&folder).output().expect("run gcc (Debian: gcc libc6-dev)");
            assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        }
        folder
    })
}

/// An image with that program, the C library of this host, and things that nobody needs.
fn image() -> Vec<u8> {
    let read = |path: &str| fs::read(path).unwrap_or_else(|error| panic!("read {path}: {error}"));
    let library = |name: &str| {
        let triple = if cfg!(target_arch = "x86_64") { "x86_64-linux-gnu" } else { "aarch64-linux-gnu" };
        read(&format!("/lib/{triple}/{name}"))
    };
    let loader = if cfg!(target_arch = "x86_64") { "lib64/ld-linux-x86-64.so.2" } else { "lib/ld-linux-aarch64.so.1" };
    let own = |name: &str| fs::read(compiled().join(name)).unwrap();
    let mut layer = Archive::new();
    for folder in [
        "./",
        "bin/",
        "etc/",
        "lib/",
        "lib64/",
        "opt/",
        "opt/bin/",
        "opt/lib/",
        "usr/",
        "usr/share/",
        "usr/share/doc/",
        "var/",
        "var/lib/",
    ] {
        layer = layer.folder(folder);
    }
    let program =
        |layer: Archive, name: &str, content: &[u8]| layer.entry(EntryType::Regular, name, 0o755, (0, 0), "", content);
    layer = program(layer, "opt/bin/main", &own("main"));
    layer = program(layer, "opt/bin/unused", &own("main"));
    layer = program(layer, "bin/busybox", &read("/bin/busybox")).link("bin/sh", "busybox");
    layer = layer.file("opt/lib/libbase.so", own("libbase.so")).file("opt/lib/libplug.so.7", own("libplug.so.7"));
    layer = program(layer, loader, &read(&format!("/{loader}"))).file("lib/libc.so.6", library("libc.so.6"));
    layer = layer
        .file("etc/passwd", "root:x:0:0::/root:/bin/sh\nsomebody:x:1000:1000::/var/lib/home:/bin/sh\n")
        .file("etc/group", "root:x:0:\n")
        .file("etc/secret.conf", "x\n")
        .file("usr/share/doc/manual", vec![b'm'; 3 << 20])
        .entry(EntryType::Directory, "var/lib/home/", 0o750, (0, 0), "", b"")
        .file("var/lib/home/data", "data\n");
    docker(&[layer.end()], &json!({ "Entrypoint": ["/opt/bin/main"] }))
}

/// Paths of all files of the stripped image of `web`, without folders.
fn files(project: &Project) -> BTreeSet<String> {
    let json = project.ctst(["images", "ls", "--format", "json"]).ok().json();
    let entry = json
        .as_array()
        .unwrap()
        .iter()
        .find(|image| image["reference"] == "distroless://web")
        .expect("stripped")
        .clone();
    let layer = entry["layers"][0].as_str().unwrap();
    let tree = project.folder().join(".containust/images/layers").join(layer).join("tree");
    let files = walkdir::WalkDir::new(&tree).into_iter().map(|entry| entry.expect("an entry"));
    let files = files.filter(|entry| !entry.file_type().is_dir()).map(|entry| entry.into_path());
    files.map(|path| path.strip_prefix(&tree).unwrap().display().to_string()).collect()
}

fn has(project: &Project, reference: &str) -> bool {
    project.ctst(["images", "ls"]).ok().stdout.contains(reference)
}

const WEB: &str = "JOB web { image = \"tar://./image.tar\" distroless = true }\n";

fn project(caller: &Caller, text: &str) -> Project {
    let project = Project::new(caller, text);
    project.write_bytes("image.tar", &image());
    project
}

#[test]
fn a_program_keeps_what_it_needs_and_nothing_else() {
    let mut digests = BTreeSet::new();
    for caller in Caller::all().into_iter().chain(Caller::strict()) {
        let project = project(&caller, WEB);
        let plan = project.ctst(["plan"]).ok();
        assert!(plan.stdout.contains("distroless://web, will be stripped"), "{plan}");
        let done = project.ctst(["build"]).ok();
        assert!(done.stderr.contains("web stripped: ") && done.stderr.contains(" files"), "{done}");
        let files = files(&project);
        for kept in ["opt/bin/main", "opt/lib/libbase.so", "opt/lib/libplug.so.7", "lib/libc.so.6", "etc/passwd"] {
            assert!(files.contains(kept), "{kept} is not in {files:?}");
        }
        for dropped in
            ["opt/bin/unused", "bin/busybox", "bin/sh", "etc/secret.conf", "usr/share/doc/manual", "var/lib/home/data"]
        {
            assert!(!files.contains(dropped), "{dropped} is in {files:?}");
        }
        let plan = project.ctst(["plan"]).ok();
        assert!(!plan.stdout.contains("will be"), "{plan}");
        project.ctst(["run", "--yes"]).ok();
        assert_eq!(project.logs("web"), "4 42 somebody\n", "{}", caller.name);
        // Nothing is done twice.
        let again = project.ctst(["build"]).ok();
        assert_eq!((again.stdout.clone(), again.stderr.contains("stripp")), (done.stdout.clone(), false), "{again}");
        let anew = project.ctst(["build", "--no-cache"]).ok();
        assert!(anew.stderr.contains("stripped") && anew.stdout == done.stdout, "{anew}");
        let shown = project.ctst(["images", "inspect", "distroless://web"]).ok().stdout;
        assert!(shown.contains("/usr ") && shown.contains("tar://./image.tar"), "{shown}");
        let json = project.ctst(["images", "inspect", "distroless://web", "--format", "json"]).ok().json();
        assert_eq!(json["stripped"]["dropped"][0]["path"], "/usr", "{json}");
        assert_eq!(json["stripped"]["dropped"][0]["files"], 1, "{json}");
        digests.insert((
            project.caller.single || project.caller.uid != 0 && project.caller.range().is_none(),
            done.stdout,
        ));

        project.ctst(["images", "verify"]).ok();
        project.ctst(["images", "df"]).ok();
        project.ctst(["images", "export", "distroless://web", "out.tar"]).ok();
        project.ctst(["images", "import", "out.tar", "again"]).ok();
        project.ctst(["down"]).ok();
        project.ctst(["images", "prune"]).ok();
        assert!(has(&project, "distroless://web") && has(&project, "tar://./image.tar"));
        project.write("stack.ctst", &WEB.replace("distroless = true", "distroless = false"));
        project.ctst(["images", "prune"]).ok();
        assert!(!has(&project, "distroless://web"));
        project.ctst(["run", "--yes"]).ok();
        project.assert_nothing_left();
    }
    // One for all who have ids of their own for others, and one for those who have a single one.
    assert!(digests.len() <= 2, "{digests:?}");
}

#[test]
fn what_is_kept_is_there_and_what_is_not_there_is_an_error() {
    Caller::at_once(Caller::all(), |caller| {
        let keep = "distroless { keep = [\"/etc/*.conf\", \"/var/lib/home\"] }";
        let project = project(caller, &WEB.replace("distroless = true", keep));
        project.ctst(["build"]).ok();
        let kept = files(&project);
        assert!(kept.contains("etc/secret.conf") && kept.contains("var/lib/home/data"), "{kept:?}");
        let help = "write an absolute glob that matches files of the image";
        project.write("stack.ctst", &WEB.replace("distroless = true", "distroless { keep = \"/none/**\" }"));
        project.ctst(["build"]).fails(125, &["S0213", "keep `/none/**` matches nothing", help]);
        project.write(
            "stack.ctst",
            &WEB.replace("distroless", "command = [\"x\"] entrypoint = [\"/opt/none\"] distroless"),
        );
        project.ctst(["build"]).fails(125, &["S0213", "program `/opt/none` is not in the image"]);
        assert!(!has(&project, "[") && !staging(&project));
    });
}

/// Whether something of an import was left.
fn staging(project: &Project) -> bool {
    let entries = fs::read_dir(project.folder().join(".containust/images/staging")).into_iter().flatten().flatten();
    entries.into_iter().any(|entry| entry.file_name() != "lock")
}

/// A project with an image of busybox and these files, whose component runs `/entry.sh serve`.
fn scripted(caller: &Caller, files: &[(&str, &str)], keep: &str) -> Project {
    let text = format!(
        "JOB web {{ image = \"file://./root\" command = [\"/entry.sh\", \"cat\", \"/etc/greeting\"] distroless {{ keep = [{keep}] }} }}\n"
    );
    let project = Project::new(caller, &text);
    let root = project.folder().join("root");
    for folder in ["root", "root/bin", "root/etc", "root/usr", "root/usr/bin", "root/tmp"] {
        project.make_folder(folder);
    }
    for (name, content) in [("etc/greeting", "hello\n"), ("etc/passwd", "root:x:0:0::/:/bin/sh\n")].iter().chain(files)
    {
        project.write(&format!("root/{name}"), content);
        fs::set_permissions(root.join(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    for applet in ["sh", "cat", "id", "ls", "tr", "sort", "sleep", "wc"] {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    project
}

fn build(project: &Project) -> Done {
    project.ctst(["build"])
}

#[test]
fn scripts_keep_what_they_run() {
    let entry = r#"#!/bin/sh
set -e
say() { echo "$(id -u | tr 0 z)"; }
forward() { "$@"; }
. /etc/common
case "$1" in
    -*) set -- sort "$@" ;;
esac
if command -v nothing >/dev/null; then nothing --now; fi
say; forward wc -l /etc/greeting
exec "$@"
"#;
    let common = "common() { sleep 0; }\ncommon\n";
    for caller in Caller::all() {
        let project = scripted(&caller, &[("entry.sh", entry), ("etc/common", common)], "");
        let done = build(&project).ok();
        assert!(done.stderr.contains("`nothing` (`/entry.sh`)"), "{done}");
        let files = files(&project);
        for kept in
            ["entry.sh", "bin/sh", "bin/id", "bin/tr", "bin/wc", "bin/sleep", "bin/sort", "bin/cat", "etc/common"]
        {
            assert!(files.contains(kept), "{kept} is not in {files:?}");
        }
        assert!(!files.contains("bin/ls"), "{files:?}");
        project.ctst(["run", "--yes"]).ok();
        assert_eq!(project.logs("web"), "z\n1 /etc/greeting\nhello\n", "{}", caller.name);
    }
}

#[test]
fn what_scripts_run_through_other_programs_is_kept() {
    let applets = [
        "timeout", "stdbuf", "xargs", "env", "setpriv", "su", "find", "date", "head", "rm", "seq", "chmod", "stat",
        "nslookup", "nproc", "uptime", "tac",
    ];
    let entry = r#"#!/bin/sh
if false; then
    (exec -a x date)
    timeout -k 5 10 id
    stdbuf -o L tac x
    ls | xargs -I {} rm {}
    env -u FOO seq 3
    setpriv --reuid root chmod 700 /tmp
    su root -c 'head /etc/passwd'
    find / -exec stat {} \; -execdir nproc +
    alias foo=nslookup bar='uptime -s'
    foo; bar
fi
exec "$@"
"#;
    let project = scripted(&Caller::ordinary(), &[("entry.sh", entry)], "");
    for applet in applets {
        symlink("busybox", project.folder().join("root/bin").join(applet)).unwrap();
    }
    let done = build(&project).ok();
    assert!(!done.stderr.contains("does not have"), "{done}");
    let files = files(&project);
    for applet in applets.iter().chain(&["ls", "id", "cat"]) {
        assert!(files.contains(&format!("bin/{applet}")), "{applet} is not in {files:?}");
    }
    assert!(!files.contains("bin/wc"), "{files:?}");
}

#[test]
fn what_only_a_running_script_knows_is_an_error_that_names_it() {
    let caller = Caller::ordinary();
    for (script, words) in [
        ("#!/bin/sh\necho\n$CMD serve\n", ["line 3 of `/entry.sh`", "`$CMD`"]),
        ("#!/bin/sh\nfor f in /etc/*.sh; do\n . \"$f\"\ndone\n", ["line 3 of `/entry.sh`", "$f"]),
        ("#!/bin/sh\neval \"$X\"\n", ["line 2 of `/entry.sh`", "$X"]),
        ("#!/bin/sh\necho \"$(\n$Y)\"\n", ["of `/entry.sh`", "$Y"]),
        ("#!/bin/sh\nsh -c \"$Z\"\n", ["line 2 of `/entry.sh`", "$Z"]),
        ("#!/bin/sh\nif true; then\n", ["`/entry.sh`", "is not understood"]),
        ("#!/bin/sh\n$A\nls\n$B\n", ["line 2 of `/entry.sh`: `$A`", "; line 4 of `/entry.sh`: `$B`"]),
    ] {
        let project = scripted(&caller, &[("entry.sh", script)], "");
        let done = build(&project).fails(125, &["S0213", "in `keep`: `/entry.sh`"]);
        assert!(words.iter().all(|word| done.stderr.contains(word)), "{script}: {done}");
        assert!(!has(&project, "distroless://") && !staging(&project));
    }
    // Who names the script has looked into it.
    let project = scripted(&caller, &[("entry.sh", "#!/bin/sh\nC=ls\n$C -d /etc\n")], "\"/entry.sh\", \"/bin/ls\"");
    build(&project).ok();
    project.ctst(["run", "--yes"]).ok();
    assert_eq!(project.logs("web"), "/etc\n");
    // What is known of it is taken all the same, and what it is called with.
    let entry = "#!/bin/sh\nC=ls\n$C -d /etc\nid > /dev/null || exit 4\nexec \"$@\"\n";
    let project = scripted(&caller, &[("entry.sh", entry)], "\"/entry.sh\", \"/bin/ls\"");
    build(&project).ok();
    project.ctst(["run", "--yes"]).ok();
    assert_eq!(project.logs("web"), "/etc\nhello\n");
    let files = files(&project);
    assert!(["bin/id", "bin/cat", "bin/ls"].iter().all(|file| files.contains(*file)), "{files:?}");
}

/// In a mount namespace of its own, because what is mounted below a project's folder is a mark of all who see it.
#[test]
fn a_full_disk_is_told_and_cleaned() {
    // The image has its place there, and what is kept of it has not.
    const SCRIPT: &str = r#"
        mount -t tmpfs -o "size=3m,mode=0700,uid=$1,gid=$2" tmpfs .containust
        setpriv --reuid "$1" --regid "$2" --clear-groups "$3" build; echo "code $?"
        ls .containust/images/staging .containust/images/layers | wc -l
    "#;
    if Caller::root().is_none() {
        // It says so.
        return;
    }
    Caller::at_once(Caller::all(), |caller| {
        let project = scripted(caller, &[("entry.sh", "#!/bin/sh\nexec \"$@\"\n")], "");
        project.make_folder(".containust");
        let mut command = Command::new("unshare");
        caller.login(&mut command);
        // Not yet as him, for whom nothing can be mounted.
        command.uid(0).gid(0).args(["-m", "sh", "-c", SCRIPT, "sh", &caller.uid.to_string(), &caller.gid.to_string()]);
        let done = finish(command.arg(programs().join("ctst")).current_dir(project.folder()));
        assert!(done.stderr.contains("S0213") && done.stderr.contains("the disk is full"), "{}: {done}", caller.name);
        // Two headings, an empty line, a lock, and the whole image.
        assert_eq!(done.stdout, "code 125\n5\n", "{}: {done}", caller.name);
        project.assert_nothing_left();
    });
}

#[test]
fn folders_that_programs_write_to_may_be_links() {
    let entry = "#!/bin/sh\nls -d /var/lib/* /var/run\nexec \"$@\"\n";
    let project = scripted(&Caller::ordinary(), &[("entry.sh", entry)], "");
    for folder in ["data", "data/var", "data/var/lib", "data/var/lib/web", "run"] {
        project.make_folder(&format!("root/{folder}"));
    }
    symlink("data/var", project.folder().join("root/var")).unwrap();
    symlink("/run", project.folder().join("root/data/var/run")).unwrap();
    build(&project).ok();
    project.ctst(["run", "--yes"]).ok();
    assert_eq!(project.logs("web"), "/var/lib/web\n/var/run\nhello\n");
}

#[test]
fn what_a_trial_depends_on_is_tried_again() {
    Caller::at_once(Caller::all(), |caller| {
        let project = scripted(caller, &[("entry.sh", "#!/bin/sh\ntest \"$MODE\" = ok || exit 5\n")], "");
        let text = fs::read_to_string(project.folder().join("stack.ctst")).unwrap();
        let with = |more: &str| project.write("stack.ctst", &text.replace("distroless", &format!("{more} distroless")));
        with("env { MODE = \"ok\" }");
        build(&project).ok();
        with("env { MODE = \"bad\" }");
        build(&project).fails(125, &["S0213", "its program ended with 5"]);
        // Nothing limits what is tried, so that what has limits is not.
        with("env { MODE = \"bad\" } memory = 64MiB limits = \"best-effort\"");
        let done = build(&project).ok();
        assert!(done.stderr.contains("not tried: it has limits"), "{done}");
        project.assert_nothing_left();
    });
}

#[test]
fn an_image_is_tried_with_its_volumes_and_never_for_long() {
    Caller::at_once(Caller::all(), |caller| {
        let project = scripted(caller, &[], "");
        let root = project.folder().join("root").display().to_string();
        project.ctst(["images", "import", &root, "base"]).ok();
        project.write("stack.ctst", "COMPONENT web { build { dockerfile = \"Dockerfile\" } distroless = true }\n");
        let volume = "FROM image://base\nRUN mkdir /data && echo kept > /data/file\nVOLUME /data\n";
        project
            .write("Dockerfile", &format!("{volume}CMD [\"sh\", \"-c\", \"cat /data/file && echo x > /data/new\"]\n"));
        let done = build(&project).ok();
        assert!(done.stderr.contains("web trying its program"), "{}: {done}", caller.name);
        // A check whose time is over before it began.
        let check =
            "HEALTHCHECK --interval=1ms --timeout=1ms --start-period=2s CMD sleep 3600\nCMD [\"sleep\", \"3600\"]\n";
        project.write("Dockerfile", &format!("FROM image://base\n{check}"));
        build(&project).fails(125, &["S0213", "its health check does not succeed within 2 s: it takes too long"]);
        project.assert_nothing_left();
    });
}

#[test]
fn an_image_is_tried_with_its_configs() {
    let callers = Caller::all().into_iter().chain(Caller::strict()).collect();
    Caller::at_once(callers, |caller| {
        let entry = "#!/bin/sh\n[ \"$(cat /etc/extra)\" = given ] || exit 7\nexec \"$@\"\n";
        let project = scripted(caller, &[("entry.sh", entry)], "");
        let stack = fs::read_to_string(project.folder().join("stack.ctst")).unwrap();
        build(&project).fails(125, &["S0213", "its program ended with 7"]);
        let stack = stack.replace(" distroless", " configs = [\"extra:/etc/extra\"] distroless");
        project.write("stack.ctst", &format!("{stack}CONFIG extra = \"given\"\n"));
        project.ctst(["run", "--yes"]).ok();
        assert_eq!(project.logs("web"), "hello\n", "{}", caller.name);
        project.assert_nothing_left();
    });
}

#[test]
fn words_that_take_too_long_to_read_are_not_known() {
    let deep = (0..30).fold("1".to_owned(), |inner, _| format!("${{a[{inner}]}}"));
    let project = scripted(&Caller::ordinary(), &[("entry.sh", &format!("#!/bin/sh\necho {deep}\n"))], "");
    build(&project).fails(125, &["S0213", "its program ended with"]);
    let project = scripted(&Caller::ordinary(), &[("entry.sh", &format!("#!/bin/sh\n{deep}\n"))], "");
    build(&project).fails(125, &["S0213", "line 2 of `/entry.sh`", "runs what is not known before"]);
}

/// An ELF file whose dynamic section has this many entries.
fn needs(count: usize) -> Vec<u8> {
    let mut elf = vec![0; 64 + 56];
    elf[..20].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 62, 0]);
    elf[32..40].copy_from_slice(&64u64.to_le_bytes());
    elf[54..58].copy_from_slice(&[56, 0, 1, 0]);
    elf[64..68].copy_from_slice(&2u32.to_le_bytes());
    elf[72..80].copy_from_slice(&120u64.to_le_bytes());
    let size = (count as u64 * 16).to_le_bytes();
    elf[96..104].copy_from_slice(&size);
    elf[104..112].copy_from_slice(&size);
    elf.extend([1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0].repeat(count));
    elf
}

#[test]
fn strangers_images_are_looked_through_within_bounds() {
    let caller = Caller::ordinary();
    let nested = format!("#!/bin/sh\n{}\n", "(".repeat(200_000));
    let loops = ("entry.sh", "#!/entry.sh\n");
    for (files, words) in [
        (&[loops][..], ["S0213", "interpreters do not end"]),
        (&[("entry.sh", "#!/other\n"), ("other", "#!/entry.sh\n")], ["S0213", "interpreters do not end"]),
        (&[("entry.sh", "#!relative\n")], ["S0213", "names no interpreter"]),
        (&[("entry.sh", &nested)], ["S0213", "200001 brackets, operators and keywords"]),
    ] {
        let project = scripted(&caller, files, "");
        build(&project).fails(125, &words);
        assert!(!has(&project, "distroless://"));
    }
    // Deeper than what a thread's stack usually has room for.
    for (open, close) in
        [("{ ", "; }"), ("if true; then ", "; fi"), ("while true; do ", "; break; done"), ("case a in a) ", ";; esac")]
    {
        let levels = 10_000;
        let deep = format!("#!/bin/sh\n{}cat /etc/greeting{}\n", open.repeat(levels), close.repeat(levels));
        let project = scripted(&caller, &[("entry.sh", &deep)], "");
        build(&project).ok();
        assert!(files(&project).contains("bin/cat"), "{open}");
    }
    // A gigabyte on one line.
    let project = scripted(&caller, &[("entry.sh", "#!/bin/sh\n")], "");
    let script = fs::File::options().write(true).open(project.folder().join("root/entry.sh")).unwrap();
    script.set_len(1 << 30).unwrap();
    build(&project).fails(125, &["S0213", "more than a megabyte"]);
    for elf in [needs(100_000), [&needs(1)[..56], &[0xff; 200]].concat()] {
        let project = scripted(&caller, &[], "");
        project.write_bytes("root/entry.sh", &elf);
        fs::set_permissions(project.folder().join("root/entry.sh"), fs::Permissions::from_mode(0o755)).unwrap();
        build(&project).fails(125, &["S0213"]);
    }
    // Links that would lead out of it lead into it.
    let project = scripted(&caller, &[("entry.sh", "#!/bin/sh\nexec \"$@\"\n")], "\"/links/**\"");
    project.make_folder("root/links");
    let links = project.folder().join("root/links");
    symlink("../../../../../../../../etc/shadow", links.join("up")).unwrap();
    symlink("/proc/1/root/etc/shadow", links.join("proc")).unwrap();
    symlink("/etc/greeting", links.join("inside")).unwrap();
    symlink("circle", links.join("circle")).unwrap();
    build(&project).ok();
    let kept = files(&project);
    assert!(kept.contains("etc/greeting") && !kept.contains("etc/shadow"), "{kept:?}");
    project.ctst(["run", "--yes"]).ok();
    assert_eq!(project.logs("web"), "hello\n");
}

#[test]
fn one_that_is_killed_leaves_nothing_that_counts() {
    Caller::at_once(Caller::all(), |caller| {
        let project = scripted(caller, &[("entry.sh", "#!/bin/sh\nexec \"$@\"\n")], "\"/large\"");
        let large = fs::File::create(project.folder().join("root/large")).unwrap();
        large.set_len(8 << 30).unwrap();
        fs::set_permissions(project.folder().join("root/large"), fs::Permissions::from_mode(0o644)).unwrap();
        let running = project.start(["build"]);
        let pid = Pid::from_raw(running.pid()).unwrap();
        eventually("it copies", || {
            let staging = fs::read_dir(project.folder().join(".containust/images/staging")).ok();
            staging.into_iter().flatten().flatten().any(|entry| entry.path().join("1/layer/tree/large").exists())
        });
        kill_process(pid, Signal::KILL).unwrap();
        assert_eq!(running.wait(Duration::from_secs(60)).code, 137);
        eventually("every process of it is gone", || project.left().is_empty());
        assert!(!has(&project, "distroless://"));
        project.write(
            "stack.ctst",
            &fs::read_to_string(project.folder().join("stack.ctst")).unwrap().replace("\"/large\"", ""),
        );
        build(&project).ok();
        assert!(!staging(&project));
        project.ctst(["run", "--yes"]).ok();
        assert_eq!(project.logs("web"), "hello\n");
    });
}

#[test]
fn a_bundle_carries_what_was_kept() {
    Caller::at_once(Caller::all(), |caller| {
        let project = project(caller, WEB);
        project.ctst(["bundle", "-o", "web.ctstar"]).ok();
        let bundle = fs::read(project.folder().join("web.ctstar")).unwrap();
        let manual = [b'm'; 4096];
        assert!(!bundle.windows(manual.len()).any(|window| window == manual), "the manual is in the bundle");
        let there = Project::new(caller, "");
        fs::remove_file(there.folder().join("stack.ctst")).unwrap();
        there.write_bytes("web.ctstar", &bundle);
        let done = there.ctst(["run", "web.ctstar", "--offline", "--yes"]).ok();
        assert!(!done.stderr.contains("stripp"), "{done}");
        let logs = there.ctst(["-f", "web.ctstar", "logs", "--no-log-prefix", "web"]).ok();
        assert!(logs.stdout.contains("4 42 somebody"), "{logs}");
    });
}

#[test]
fn what_is_built_is_stripped_afterwards() {
    Caller::at_once(Caller::all(), |caller| {
        let text = "JOB web { build { } distroless = true }\n";
        let project = Project::new(caller, text);
        let root = programs().with_file_name("rootfs").display().to_string();
        project.ctst(["images", "import", &root, "base"]).ok();
        project.write(
            "Dockerfile",
            "FROM image://base\nRUN echo built > /srv/file && echo x > /srv/unused\nCMD [\"cat\", \"/srv/file\"]\n",
        );
        project.ctst(["run", "--yes"]).ok();
        assert_eq!(project.logs("web"), "built\n", "{}", caller.name);
        let files = files(&project);
        assert!(files.contains("srv/file") && !files.contains("srv/unused") && !files.contains("bin/ls"), "{files:?}");
        // What it is built from counts.
        project.write("Dockerfile", "FROM image://base\nRUN echo again > /srv/file\nCMD [\"cat\", \"/srv/file\"]\n");
        let done = project.ctst(["run", "--yes"]).ok();
        assert!(done.stderr.contains("stripped"), "{done}");
        assert_eq!(project.logs("web").lines().last(), Some("again"));
        project.assert_nothing_left();
    });
}

#[test]
fn what_does_not_run_with_what_was_kept_is_not_taken() {
    // Which file it reads is only known when it runs.
    let entry = "#!/bin/sh\necho beginning\nsleep 0\ncat \"/etc/$(echo secret | tr s s).conf\" || exit 3\n";
    Caller::at_once(Caller::all(), |caller| {
        let files = [("entry.sh", entry), ("etc/secret.conf", "found\n")];
        let project = scripted(caller, &files, "");
        let done = build(&project).fails(125, &["S0213", "its program ended with 3", "keep = [\"/etc/secret.conf\"]"]);
        let (missing, first) = (done.stderr.find("No such file"), done.stderr.find("  beginning"));
        assert!(missing.is_some() && first.is_some() && missing < first, "what is missing stands first: {done}");
        assert!(!has(&project, "distroless://") && !staging(&project));
        let text = fs::read_to_string(project.folder().join("stack.ctst")).unwrap();
        let kept = text.replace("keep = []", "keep = [\"/etc/secret.conf\"]");
        project.write("stack.ctst", &kept);
        let done = build(&project).ok();
        assert!(done.stderr.contains("web trying its program"), "{done}");
        let shown = project.ctst(["images", "inspect", "distroless://web"]).ok().stdout;
        assert!(shown.contains("it runs"), "{shown}");
        project.ctst(["run", "--yes"]).ok();
        assert_eq!(project.logs("web"), "beginning\nfound\n", "{}", caller.name);
        // A folder of the host is not written to for a trial.
        project.make_folder("data");
        project.write(
            "stack.ctst",
            &kept
                .replace("distroless", "volume = \"./data:/data\" distroless")
                .replace("/etc/secret.conf", "/etc/*.conf"),
        );
        let done = build(&project).ok();
        assert!(done.stderr.contains("not tried: it has volumes"), "{done}");
        project.assert_nothing_left();
    });
}

#[test]
fn the_hint_of_what_is_missing_looks_into_the_image_alone() {
    Caller::at_once(Caller::all(), |caller| {
        let project = scripted(caller, &[], "");
        let root = project.folder().join("root");
        project.make_folder("root/app");
        project.make_folder("outside");
        project.write("outside/secret", "");
        fs::set_permissions(project.folder().join("outside"), fs::Permissions::from_mode(0o755)).unwrap();
        symlink(project.folder().join("outside"), root.join("app/l")).unwrap();
        symlink("busybox", root.join("bin/rm")).unwrap();
        project.write("root/etc/gone", "");
        project.write("root/etc/there", "");
        project.ctst(["images", "import", &root.display().to_string(), "base"]).ok();
        project.write("stack.ctst", "COMPONENT web { build { dockerfile = \"Dockerfile\" } distroless = true }\n");
        let command = "for f in app/l/secret etc/gone etc/there; do cat \\\"/$(echo $f | tr s s)\\\"; done; exit 3";
        project.write(
            "Dockerfile",
            &format!("FROM image://base\nRUN [\"rm\", \"/etc/gone\"]\nCMD [\"sh\", \"-c\", \"{command}\"]\n"),
        );
        let done = build(&project).fails(125, &["S0213", "'/app/l/secret': No such", "'/etc/gone': No such"]);
        assert!(done.stderr.contains("keep = [\"/etc/there\"] }"), "{done}");
        project.assert_nothing_left();
    });
}

#[test]
fn a_health_check_says_whether_it_works() {
    let serve = "#!/bin/sh\necho serving\nexec sleep 1000\n";
    Caller::at_once(Caller::all(), |caller| {
        let project = scripted(caller, &[("entry.sh", serve)], "");
        let text = fs::read_to_string(project.folder().join("stack.ctst")).unwrap().replace("JOB", "COMPONENT");
        let check = |check: &str| {
            project.write(
                "stack.ctst",
                &text
                    .replace("distroless", &format!("healthcheck {{ {check} interval = 1s timeout = 1s }} distroless")),
            )
        };
        check("command = [\"cat\", \"/etc/passwd\"]");
        build(&project).ok();
        check("command = [\"cat\", \"/etc/none\"]");
        build(&project)
            .fails(125, &["S0213", "its health check does not succeed within 4 s: it ends with 1", "serving"]);
        check("tcp = 4711");
        build(&project).fails(125, &["S0213", "127.0.0.1:4711"]);
        check("http = \"/\" port = 4711");
        build(&project).fails(125, &["S0213", "127.0.0.1:4711"]);
        // Who has none is taken to work once it has lived for some seconds.
        project.write("stack.ctst", &text);
        build(&project).ok();
        project.assert_nothing_left();
    });
}
