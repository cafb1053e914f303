//! `ctst fmt`

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use containust_sdk::lang::{format, render};
use containust_sdk::logs::escape;
use containust_sdk::{Error, Project};

use super::{count, show};
use crate::args::Fmt;
use crate::failure::{Failure, Outcome, TOOL};
use crate::output;

/// With `--check`: a file is not in the one layout.
const DIFFERS: i32 = 1;

pub(crate) fn run(args: &Fmt, file: Option<&Path>) -> Outcome {
    let mut files = args.files.clone();
    // A folder stands for its composition.
    if file.map_or(files.is_empty(), Path::is_dir) {
        files.insert(0, Project::locate(file)?.file().to_owned());
    } else {
        files.splice(0..0, file.map(Path::to_owned));
    }
    let (mut refused, mut changed) = (false, false);
    for file in &files {
        match one(file, args.check) {
            Ok(true) => {
                changed = true;
                output::print(&format!("{}\n", escape(file.as_os_str().as_encoded_bytes())))?;
            }
            Ok(false) => {}
            Err(Failure::BrokenPipe) => return Err(Failure::BrokenPipe),
            // The others are looked at all the same.
            Err(failure) => {
                failure.tell();
                refused = true;
            }
        }
    }
    Ok(match (refused, changed && args.check) {
        (true, _) => TOOL,
        (false, true) => DIFFERS,
        (false, false) => 0,
    })
}

/// Whether the file was not in the one layout, into which it is brought unless it is only to be looked at.
fn one(file: &Path, check: bool) -> Result<bool, Failure> {
    let project = Project::locate(Some(file))?;
    if project.bundle()?.is_some() {
        return Err(Error::IsBundle { file: project.file().to_owned() }.into());
    }
    let loaded = project.load()?;
    let text = format(&loaded.name, &loaded.source).map_err(|found| {
        show(&render(&found, &loaded.source, true), &count(&found), &loaded.name);
        Failure::Told(TOOL)
    })?;
    if text.as_bytes() == loaded.source {
        return Ok(false);
    }
    if !check {
        replace(file, text.as_bytes())
            .map_err(|e| Error::Io { what: format!("write {}", file.display()), source: e })?;
    }
    Ok(true)
}

/// Gives a file another content, the old or the new one whenever it is looked at, and leaves a link to it a link.
fn replace(file: &Path, content: &[u8]) -> io::Result<()> {
    let file = file.canonicalize()?;
    // Where the file itself may not be written, as on a file that was set to be read only, its folder's word is not
    // enough.
    let permissions = File::options().write(true).open(&file)?.metadata()?.permissions();
    let mut name = std::ffi::OsString::from(".");
    name.push(file.file_name().unwrap_or_default());
    name.push(format!(".{}", std::process::id()));
    let new = file.with_file_name(name);
    let write = || {
        let mut out = File::create_new(&new)?;
        out.set_permissions(permissions)?;
        out.write_all(content)?;
        out.sync_all()?;
        fs::rename(&new, &file)
    };
    write().inspect_err(|_| {
        // What is to be told is why it was not written.
        fs::remove_file(&new).ok();
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn replacing_keeps_mode_and_links() {
        let folder = std::env::temp_dir().join(format!("ctst-fmt-{}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        let (file, link) = (folder.join("a.ctst"), folder.join("b.ctst"));
        fs::write(&file, "old").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        symlink("a.ctst", &link).unwrap();
        replace(&link, b"new").unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"new");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o640);
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 2);
        fs::remove_dir_all(&folder).unwrap();
    }
}
