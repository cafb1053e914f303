//! `host://` images: programs of this machine, and small ones that the C compiler makes here, which Rust needs anyway.

mod common;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::*;
use containust_image::model::Image;
use containust_image::{Error, Store};
use goblin::elf::Elf;

/// Runs a program with the image's tree as root, the host's /proc ($ORIGIN is read there) and nothing of its environment.
fn run(image: &Image, command: &[&str]) -> Option<Output> {
    let script = r#"mount --rbind /proc "$0/proc" && exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin chroot "$0" "$@""#;
    let inside = |script: &str| {
        let mut unshare = Command::new("unshare");
        unshare.args(["-Urm", "sh", "-c", script]).arg(&image.layers[0]);
        unshare
    };
    if !inside(r#"mount --rbind /proc "$0/proc""#).output().is_ok_and(|output| output.status.success()) {
        println!("NOT RUN inside: user namespaces cannot be made here");
        return None;
    }
    Some(inside(script).args(command).output().unwrap())
}

fn succeeds(image: &Image, command: &[&str]) -> String {
    match run(image, command) {
        Some(output) => {
            assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).unwrap()
        }
        None => String::new(),
    }
}

/// Every DT_NEEDED of every ELF file in the tree names a library that is in the tree, and every interpreter is there.
fn assert_closed(image: &Image) -> usize {
    let root = &image.layers[0];
    let files: Vec<PathBuf> = walkdir::WalkDir::new(root).into_iter().map(|entry| entry.unwrap().into_path()).collect();
    let has = |name: &str| files.iter().any(|path| path.file_name().is_some_and(|file| file == name));
    let mut count = 0;
    for path in files.iter().filter(|path| path.symlink_metadata().unwrap().is_file()) {
        let bytes = fs::read(path).unwrap();
        let Ok(elf) = Elf::parse(&bytes) else { continue };
        count += 1;
        for name in &elf.libraries {
            assert!(has(name.rsplit('/').next().unwrap()), "{} needs {name}", path.display());
        }
        if let Some(interpreter) = elf.interpreter {
            assert!(inside(root, Path::new(interpreter)).is_some(), "{interpreter}");
        }
    }
    for path in files.iter().filter(|path| path.is_symlink() && !path.starts_with(root.join("etc/ssl"))) {
        let path = Path::new("/").join(path.strip_prefix(root).unwrap());
        assert!(inside(root, &path).is_some(), "{} leads nowhere", path.display());
    }
    count
}

/// Where a path leads when `root` is the root.
fn inside(root: &Path, path: &Path) -> Option<PathBuf> {
    let mut at = PathBuf::from("/");
    let mut rest: Vec<_> = path.components().rev().map(|part| part.as_os_str().to_owned()).collect();
    for _ in 0..200 {
        let Some(part) = rest.pop() else { return Some(at) };
        if part == "/" {
            at = "/".into();
        } else if part == ".." {
            at.pop();
        } else {
            at.push(&part);
            let real = root.join(at.strip_prefix("/").unwrap());
            if let Ok(target) = fs::read_link(&real) {
                at.pop();
                rest.extend(target.components().rev().map(|part| part.as_os_str().to_owned()));
            } else if !real.exists() {
                return None;
            }
        }
    }
    None
}

fn text(image: &Image, path: &str) -> String {
    fs::read_to_string(image.layers[0].join(path)).unwrap()
}

/// Compiles a program or library. `options` as for cc.
fn cc(source: &str, output: &Path, options: &[&str]) {
    fs::create_dir_all(output.parent().unwrap()).unwrap();
    let code = output.with_extension("c");
    fs::write(&code, source).unwrap();
    let done = Command::new("cc").arg(&code).arg("-o").arg(output).args(options).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    fs::remove_file(code).unwrap();
}

fn library(path: &Path, function: &str, value: i32, options: &[&str]) {
    let soname = format!("-Wl,-soname,{}", path.file_name().unwrap().to_str().unwrap());
    let mut all = vec!["-shared", "-fPIC", &soname];
    all.extend(options);
    cc(&format!("int {function}(void) {{ return {value}; }}"), path, &all);
}

fn prints(function: &str) -> String {
    format!(
        "#include <stdio.h>\nint {function}(void);\nint main(void) {{ printf(\"%d\\n\", {function}()); return 0; }}"
    )
}

#[test]
fn a_program_with_its_libraries_runs_alone() {
    let scratch = Scratch::new();
    let store = Store::at(&scratch.join("images"));
    let request = host(&[Path::new("/bin/sh"), Path::new("/usr/bin/id")], &[]);
    let image = import(&store, &request).unwrap();
    assert_eq!(image.config.entrypoint, ["/bin/sh"]);
    assert!(assert_closed(&image) >= 4);
    assert_eq!(store.find(&request).unwrap(), Some(image.clone()));
    assert_eq!(store.list().unwrap()[0].reference, "host:///bin/sh,/usr/bin/id");

    let shown = succeeds(&image, &["/bin/sh", "-c", "id -un && id -gn && cd /tmp && echo there"]);
    assert!(["root\nroot\nthere\n", ""].contains(&&*shown), "{shown}");
    assert_eq!(text(&image, "etc/nsswitch.conf").lines().last(), Some("hosts: files dns"));
    assert!(text(&image, "etc/passwd").contains("nobody:x:65534:65534:"));
    let mode = |path: &str| image.layers[0].join(path).symlink_metadata().unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode("tmp"), mode("var/tmp"), mode("root")), (0o1777, 0o1777, 0o700));
    for dir in ["dev", "proc", "sys", "run"] {
        assert!(fs::read_dir(image.layers[0].join(dir)).unwrap().next().is_none(), "{dir}");
    }
    assert_eq!(Path::new("/lib").is_symlink(), image.layers[0].join("lib").is_symlink());
    assert!(!image.layers[0].join("etc/ssl").exists(), "nothing here speaks TLS");

    // Its digest does not depend on when or where it is imported.
    let other = import(&Store::at(&scratch.join("other")), &request).unwrap();
    assert_eq!(other.digest, image.digest);
}

#[test]
fn rpath_runpath_origin_and_what_libraries_need() {
    let scratch = Scratch::new();
    let app = scratch.join("app");
    let (lib, deep) = (app.join("lib"), app.join("lib/deep"));
    library(&deep.join("libdeep.so.1"), "deep", 41, &[]);
    fs::rename(deep.join("libdeep.so.1"), deep.join("libdeep.so.1.2.3")).unwrap();
    symlink("libdeep.so.1.2.3", deep.join("libdeep.so.1")).unwrap();
    let deep_option = deep.join("libdeep.so.1");
    cc(
        "int deep(void); int middle(void) { return deep() + 1; }",
        &lib.join("libmiddle.so"),
        &["-shared", "-fPIC", "-Wl,-soname,libmiddle.so", "-Wl,-rpath,$ORIGIN/deep", deep_option.to_str().unwrap()],
    );
    let middle = lib.join("libmiddle.so");
    let deep_dir = format!("-Wl,-rpath-link,{}", deep.display());
    for (name, tags) in [("runpath", "--enable-new-dtags"), ("rpath", "--disable-new-dtags")] {
        let tags = format!("-Wl,{tags},-rpath,${{ORIGIN}}/../lib");
        cc(&prints("middle"), &app.join("bin").join(name), &[&tags, middle.to_str().unwrap(), &deep_dir]);
    }
    // RPATH counts for what libraries need, RUNPATH does not.
    library(&app.join("old/libdeep.so.1"), "deep", 1, &[]);
    cc(
        "int deep(void); int middle(void) { return deep() + 1; }",
        &app.join("old/libbare.so"),
        &["-shared", "-fPIC", "-Wl,-soname,libbare.so", app.join("old/libdeep.so.1").to_str().unwrap()],
    );
    let bare = app.join("old/libbare.so");
    let old_dir = format!("-Wl,-rpath-link,{}", app.join("old").display());
    for (name, tags) in [("bare-runpath", "--enable-new-dtags"), ("bare-rpath", "--disable-new-dtags")] {
        let tags = format!("-Wl,{tags},-rpath,$ORIGIN/../old");
        cc(&prints("middle"), &app.join("bin").join(name), &[&tags, bare.to_str().unwrap(), &old_dir]);
    }
    symlink("../app/bin", scratch.join("app/alias")).unwrap();

    let store = Store::at(&scratch.join("images"));
    for (program, answer) in [("alias/runpath", "42\n"), ("bin/rpath", "42\n"), ("bin/bare-rpath", "2\n")] {
        let program = app.join(program);
        let image = import(&store, &host(&[&program], &[])).unwrap();
        assert_closed(&image);
        let shown = succeeds(&image, &[program.to_str().unwrap()]);
        assert!([answer, ""].contains(&&*shown), "{}: {shown}", program.display());
    }
    let image = import(&store, &host(&[&app.join("bin/rpath")], &[])).unwrap();
    let link = image.layers[0].join(deep.strip_prefix("/").unwrap()).join("libdeep.so.1");
    assert_eq!(fs::read_link(link).unwrap(), Path::new("libdeep.so.1.2.3"));

    let error = import(&store, &host(&[&app.join("bin/bare-runpath")], &[])).unwrap_err();
    let Error::Library { name, needed_by, .. } = &error else { panic!("{error}") };
    assert_eq!((name.as_str(), needed_by), ("libdeep.so.1", &bare));
    assert!(error.help().unwrap().contains("apt-file search libdeep.so.1"));
    assert_eq!(names(&scratch.join("images/staging")), ["lock"]);
}

#[test]
fn every_change_of_the_host_that_matters_is_seen() {
    let scratch = Scratch::new();
    let app = scratch.join("app");
    library(&app.join("second/libx.so"), "x", 1, &[]);
    library(&scratch.join("new.so"), "x", 2, &[]);
    fs::create_dir(app.join("data")).unwrap();
    write(&app.join("data/one.txt"), "1");
    let program = app.join("bin/program");
    let x = app.join("second/libx.so");
    cc(&prints("x"), &program, &["-Wl,-rpath,$ORIGIN/../first:$ORIGIN/../second", x.to_str().unwrap()]);
    let store = Store::at(&scratch.join("images"));
    let glob = format!("{}/data/*.txt", app.display());
    let request = host(&[&program], &[&glob]);
    let mut last = import(&store, &request).unwrap();
    let mut expect = |what: &str, is_new: bool| {
        assert_eq!(store.find(&request).unwrap(), None, "{what}");
        let image = import(&store, &request).unwrap();
        assert_eq!(image.digest != last.digest, is_new, "{what}");
        assert_eq!(store.find(&request).unwrap().as_ref(), Some(&image), "{what}");
        last = image;
    };
    fs::copy(scratch.join("new.so"), &x).unwrap();
    expect("a library is replaced", true);
    fs::create_dir(app.join("first")).unwrap();
    expect("a searched folder appears", false);
    fs::copy(scratch.join("new.so"), app.join("first/libx.so")).unwrap();
    expect("a library appears that is found earlier", true);
    write(&app.join("data/two.txt"), "2");
    expect("a file that the glob matches", true);
    fs::remove_file(app.join("data/one.txt")).unwrap();
    expect("a file that the glob matched", true);
    fs::rename(app.join("data"), app.join("moved")).unwrap();
    symlink("moved", app.join("data")).unwrap();
    expect("a folder becomes a link", true);

    // What others do beside it is nothing to this image.
    write(&app.join("bin/other"), "");
    write(&app.join("second/other"), "");
    write(&scratch.join("other"), "");
    assert_eq!(store.find(&request).unwrap(), Some(last));
    fs::remove_file(&program).unwrap();
    assert_eq!(store.find(&request).unwrap_err().code(), "I021");
}

#[test]
fn scripts_bring_their_interpreters() {
    let scratch = Scratch::new();
    let store = Store::at(&scratch.join("images"));
    let script = |name: &str, text: &str| {
        write(&scratch.join(name), text);
        chmod(&scratch.join(name), 0o755);
        scratch.join(name)
    };
    let plain = script("plain", "#! /bin/sh -e\necho plain\n");
    let env = script("env", "#!/usr/bin/env -S sh -e\necho env\n");
    let nested = script("nested", &format!("#!{}\n", plain.display()));
    for (program, answer) in [(&plain, "plain\n"), (&env, "env\n"), (&nested, "plain\n")] {
        let image = import(&store, &host(&[program], &[])).unwrap();
        assert_closed(&image);
        let shown = succeeds(&image, &[program.to_str().unwrap()]);
        assert!([answer, ""].contains(&&*shown), "{shown}");
    }
    for (name, text, what) in [
        ("no-interpreter", "#!/nowhere/sh\n", "`/nowhere/sh` does not exist"),
        ("relative", "#!sh\n", "names no interpreter by an absolute path"),
        ("empty", "#!\n", "names no interpreter by an absolute path"),
        ("no-env", "#!/usr/bin/env\n", "names no program for env"),
        ("env-missing", "#!/usr/bin/env no-such-program\n", "runs `no-such-program`"),
        ("text", "hello", "is neither an ELF file nor a script"),
        ("nothing", "", "is neither an ELF file nor a script"),
        ("truncated", "\u{7f}ELF", "ELF file"),
    ] {
        let error = import(&store, &host(&[&script(name, text)], &[])).unwrap_err();
        assert!(error.to_string().contains(what), "{name}: {error}");
    }
    let endless = script("endless", &format!("#!{}/endless\n", scratch.display()));
    assert!(import(&store, &host(&[&endless], &[])).unwrap_err().to_string().contains("do not end"));
    chmod(&plain, 0o644);
    assert!(import(&store, &host(&[&plain], &[])).unwrap_err().to_string().contains("is not executable"));
    for (path, code) in [("/nowhere", "I021"), ("sh", "I005"), ("/usr", "I021")] {
        let error = import(&store, &host(&[Path::new(path)], &[])).unwrap_err();
        assert_eq!(error.code(), code, "{error}");
    }
    assert_eq!(import(&store, &host(&[], &[])).unwrap_err().code(), "I020");
}

#[test]
fn includes() {
    let scratch = Scratch::new();
    let store = Store::at(&scratch.join("images"));
    let data = scratch.join("data");
    write(&data.join("conf/a.conf"), "a");
    write(&data.join("conf/sub/b.conf"), "b");
    write(&data.join("conf/sub/c.txt"), "c");
    write(&scratch.join("target/file"), "x");
    symlink("../../target/file", data.join("conf/link.conf")).unwrap();
    symlink("/nowhere/file", data.join("conf/dangling.conf")).unwrap();
    symlink("/dev/null", data.join("conf/null.conf")).unwrap();
    symlink("data", scratch.join("alias")).unwrap();
    let sh = Path::new("/bin/sh");
    let tree = |glob: &str| -> Result<Vec<String>, Error> {
        let image = import(&store, &host(&[sh], &[&format!("{}/{glob}", scratch.display())]))?;
        let root = image.layers[0].join(scratch.strip_prefix("/").unwrap());
        let mut paths: Vec<String> = facts(&root).into_keys().map(|path| path.to_str().unwrap().to_owned()).collect();
        paths.retain(|path| !path.is_empty());
        Ok(paths)
    };
    let links = ["data/conf/dangling.conf", "data/conf/link.conf", "data/conf/null.conf"];
    let top = [&["data", "data/conf", "data/conf/a.conf"], &links[..], &["target", "target/file"]].concat();
    assert_eq!(tree("data/conf/*.conf").unwrap(), top);
    let all_conf = tree("data/**/*.conf").unwrap();
    assert!(all_conf.contains(&"data/conf/sub/b.conf".into()) && !all_conf.contains(&"data/conf/sub/c.txt".into()));
    assert_eq!(tree("data/conf/s*").unwrap().last().unwrap(), "data/conf/sub/c.txt", "a directory with all in it");
    assert_eq!(tree("data/conf/sub/").unwrap().len(), 5);
    assert_eq!(tree("data/conf/{a,x}.conf").unwrap(), ["data", "data/conf", "data/conf/a.conf"]);
    assert_eq!(tree("alias/conf/a.conf").unwrap(), ["alias", "data", "data/conf", "data/conf/a.conf"]);
    for (glob, what) in [
        ("data/*.conf", "matches nothing"),
        ("nowhere/x", "matches nothing"),
        ("data/[", "is not a glob"),
        ("../x", "has a `..`"),
    ] {
        let error = tree(glob).unwrap_err();
        assert!(error.to_string().contains(what) && error.code() == "I024", "{glob}: {error}");
    }
    for (glob, what) in [("relative/*", "is not absolute"), ("/proc/*", "file system of the kernel"), ("", "absolute")]
    {
        let error = import(&store, &host(&[sh], &[glob])).unwrap_err();
        assert!(error.to_string().contains(what), "{glob}: {error}");
    }
    as_user(|| {
        let scratch = Scratch::new();
        write(&scratch.join("private/key"), "");
        chmod(&scratch.join("private/key"), 0);
        let glob = format!("{}/private/**", scratch.display());
        let error = import(&Store::at(&scratch.join("images")), &host(&[Path::new("/bin/sh")], &[&glob])).unwrap_err();
        assert_eq!(error.code(), "I006");
        assert!(error.help().unwrap().contains("include"));
    });
}

#[test]
fn plugins_are_analysed_and_incomplete_ones_noted() {
    let scratch = Scratch::new();
    let app = scratch.join("app");
    library(&app.join("lib/libwanted.so"), "wanted", 7, &[]);
    library(&scratch.join("gone/libgone.so"), "gone", 8, &[]);
    let source = |name: &str| format!("int {name}(void); int plugin(void) {{ return {name}(); }}");
    for (name, lib) in [("wanted", app.join("lib/libwanted.so")), ("gone", scratch.join("gone/libgone.so"))] {
        let plugin = app.join("plugins").join(format!("{name}.so"));
        cc(&source(name), &plugin, &["-shared", "-fPIC", "-Wl,-rpath,$ORIGIN/../lib", lib.to_str().unwrap()]);
    }
    write(&app.join("plugins/damaged.so"), b"\x7fELF and nothing else");
    fs::remove_dir_all(scratch.join("gone")).unwrap();
    let load = "#include <dlfcn.h>\n#include <stdio.h>\nint main(int c, char **v) { void *h = dlopen(v[1], RTLD_NOW); int (*f)(void) = h ? dlsym(h, \"plugin\") : 0; printf(\"%d\\n\", f ? f() : -1); return 0; }";
    cc(load, &app.join("load"), &["-ldl"]);
    let image = import(
        &Store::at(&scratch.join("images")),
        &host(&[&app.join("load")], &[&format!("{}/plugins/*", app.display())]),
    )
    .unwrap();
    let gone = app.join("plugins/gone.so");
    assert_eq!(image.notes, [format!("library `libgone.so`, needed by `{}`, is not on this host", gone.display())]);
    let plugin = app.join("plugins/wanted.so");
    let shown = succeeds(&image, &[app.join("load").to_str().unwrap(), plugin.to_str().unwrap()]);
    assert!(["7\n", ""].contains(&&*shown), "{shown}");
}

#[test]
fn the_cache_names_what_was_taken() {
    let Some(ldconfig) = ["/usr/sbin/ldconfig", "/sbin/ldconfig"].into_iter().find(|path| Path::new(path).exists())
    else {
        println!("NOT RUN: there is no ldconfig");
        return;
    };
    // Pairs of name and path.
    let list = |cache: &Path| -> Vec<(String, PathBuf)> {
        let output = Command::new(ldconfig).arg("-p").arg("-C").arg(cache).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let pairs = text.lines().filter(|line| line.contains("(libc6")).filter_map(|line| line.split_once(" => "));
        pairs.map(|(name, path)| (name.split_whitespace().next().unwrap().to_owned(), path.into())).collect()
    };
    let scratch = Scratch::new();
    let store = Store::at(&scratch.join("images"));
    let image = import(&store, &host(&[Path::new("/bin/sh")], &[])).unwrap();
    let taken = list(&image.layers[0].join("etc/ld.so.cache"));
    assert!(taken.iter().any(|(name, _)| name == "libc.so.6"), "{taken:?}");
    for (_, path) in &taken {
        assert!(inside(&image.layers[0], path).is_some(), "{}", path.display());
    }

    // A library outside of the default directories is found through the cache only. Most hosts have one.
    let all = list(Path::new("/etc/ld.so.cache"));
    let is_deep =
        |path: &Path| path.starts_with("/usr") && path.components().count() > 5 && !path.starts_with("/usr/lib32");
    let Some((name, path)) = all.iter().find(|(name, path)| is_deep(path) && name.starts_with("lib")) else {
        println!("NOT RUN in part: this host's libraries are all in the default directories");
        return;
    };
    let program = scratch.join("bin/program");
    cc("int main(void) { return 0; }", &program, &["-Wl,--no-as-needed", path.to_str().unwrap()]);
    let image = import(&store, &host(&[&program], &[])).unwrap();
    assert!(list(&image.layers[0].join("etc/ld.so.cache")).iter().any(|entry| entry == &(name.clone(), path.clone())));
    succeeds(&image, &[program.to_str().unwrap()]);
    fs::remove_file(image.layers[0].join("etc/ld.so.cache")).unwrap();
    if let Some(output) = run(&image, &[program.to_str().unwrap()]) {
        assert!(!output.status.success(), "{} is found without the cache: this test proves nothing", path.display());
    }
}

#[test]
fn a_python_with_its_library_speaks_tls() {
    let python = Path::new("/usr/bin/python3");
    if !python.exists() {
        println!("NOT RUN: there is no {}", python.display());
        return;
    }
    let scratch = Scratch::new();
    let version = fs::canonicalize(python).unwrap();
    let library = format!("/usr/lib/{}/**", version.file_name().unwrap().to_str().unwrap());
    let store = Store::at(&scratch.join("images"));
    let image = import(&store, &host(&[python], &[&library])).unwrap();
    println!("{} bytes, notes {:?}", image.size, image.notes);
    assert!(
        image.layers[0].join("usr/lib/locale/C.utf8/LC_CTYPE").exists()
            || !Path::new("/usr/lib/locale/C.utf8").exists()
    );
    if Path::new("/etc/ssl/certs/ca-certificates.crt").exists() {
        assert_eq!(image.config.env, ["SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt"]);
    }
    let program = "import ssl, ctypes, hashlib, socket, threading, zlib, pwd
c = ssl.create_default_context(cafile='/etc/ssl/certs/ca-certificates.crt')
t = threading.Thread(target=print, args=('thread',)); t.start(); t.join()
print(len(c.get_ca_certs()) > 0, pwd.getpwuid(0).pw_name, socket.gethostbyname('localhost'))";
    let shown = succeeds(&image, &["/usr/bin/python3", "-c", program]);
    assert!(["thread\nTrue root 127.0.0.1\n", ""].contains(&&*shown), "{shown}");
    assert_eq!(store.find(&host(&[python], &[&library])).unwrap(), Some(image));
}
