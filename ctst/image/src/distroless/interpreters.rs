//! What interpreters load by themselves: their own folders, whole, because which modules a program imports is only known when it runs.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::FileType;

use super::{Closure, is_shared};
use crate::Error;

/// A language whose programs load modules from folders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Language {
    Python,
    Perl,
    Ruby,
    Node,
}

impl Language {
    /// That of an interpreter, by its name: `python3.11`.
    pub(super) fn of(name: &OsStr) -> Option<Self> {
        let name = name.to_str()?.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.');
        Some(match name {
            "python" => Self::Python,
            "perl" => Self::Perl,
            "ruby" => Self::Ruby,
            "node" | "nodejs" => Self::Node,
            _ => return None,
        })
    }

    fn name(self) -> &'static str {
        match self {
            Self::Python => "python",
            Self::Perl => "perl",
            Self::Ruby => "ruby",
            Self::Node => "node",
        }
    }

    /// Folders with modules, below the `prefix` that the interpreter is installed in: those that begin so.
    fn folders(self) -> &'static [&'static str] {
        match self {
            Self::Python => &["lib/python3", "lib64/python3", "share/python3"],
            Self::Perl => &["lib/perl", "lib64/perl", "share/perl", "lib/*/perl"],
            Self::Ruby => &["lib/ruby", "share/ruby", "lib/*/ruby"],
            Self::Node => &["lib/node_modules", "share/nodejs", "share/node_modules"],
        }
    }

    fn variable(self) -> &'static str {
        match self {
            Self::Python => "PYTHONPATH",
            Self::Perl => "PERL5LIB",
            Self::Ruby => "RUBYLIB",
            Self::Node => "NODE_PATH",
        }
    }
}

impl Closure<'_> {
    /// Takes the folders of all interpreters that are taken.
    pub(super) fn interpreters(&mut self) -> Result<(), Error> {
        for real in self.files.executables.clone() {
            let Some(language) = real.file_name().and_then(Language::of) else { continue };
            if !self.interpreters.insert(real.to_string_lossy().into_owned()) {
                continue;
            }
            let mut prefixes = vec![PathBuf::from("/usr"), PathBuf::from("/usr/local")];
            prefixes.extend(real.ancestors().nth(2).map(PathBuf::from));
            prefixes.extend(self.job.variable("VIRTUAL_ENV").map(PathBuf::from));
            prefixes.sort();
            prefixes.dedup();
            for prefix in prefixes {
                for begin in language.folders() {
                    self.beginning(&prefix.join(begin))?;
                }
            }
            for folder in self.job.paths(language.variable()) {
                self.folder(&folder)?;
            }
            if language == Language::Python {
                self.folder(Path::new("/etc").join(real.file_name().unwrap_or_default()).as_path())?;
                // Which zones a program asks for is known when it runs.
                self.folder(Path::new("/usr/share/zoneinfo"))?;
            }
            let note = format!(
                "all modules of {} are kept: which of them are imported is only known when it runs",
                language.name()
            );
            if !self.files.notes.contains(&note) {
                self.files.notes.push(note);
            }
        }
        Ok(())
    }

    /// Takes the folders whose paths begin like this; a `*` is one folder.
    fn beginning(&mut self, begin: &Path) -> Result<(), Error> {
        let (Some(folder), Some(name)) = (begin.parent(), begin.file_name()) else { return Ok(()) };
        if folder.file_name() == Some(OsStr::new("*")) {
            let above = folder.parent().unwrap_or(Path::new("/"));
            for below in self.list(above)? {
                self.beginning(&below.join(name))?;
            }
            return Ok(());
        }
        for path in self.list(folder)? {
            if path.file_name().is_some_and(|other| other.as_bytes().starts_with(name.as_bytes())) {
                self.folder(&path)?;
            }
        }
        Ok(())
    }

    /// The folders in one.
    fn list(&mut self, folder: &Path) -> Result<Vec<PathBuf>, Error> {
        let Some(found) = self.files.resolve(folder)?.filter(|found| found.meta.kind == FileType::Directory) else {
            return Ok(Vec::new());
        };
        let entries = std::fs::read_dir(&found.real).map_err(|e| Error::std("list", folder, &e))?;
        let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        paths.sort();
        Ok(paths.into_iter().filter(|path| path.is_dir()).collect())
    }

    /// Takes what a program of a language finds beside itself.
    pub(super) fn beside(&mut self, language: Language, program: &Path) -> Result<(), Error> {
        let Some(folder) = program.parent() else { return Ok(()) };
        if language == Language::Python && folder.file_name() == Some(OsStr::new("bin")) {
            // One of a virtual environment names the interpreter there.
            let config = folder.with_file_name("pyvenv.cfg");
            if self.files.take_if_there(&config)?
                && let Some(whole) = folder.parent()
            {
                self.folder(whole)?;
            }
        }
        if language == Language::Node {
            // require() looks in all folders above.
            for above in program.ancestors().skip(1).filter(|above| above.parent().is_some()) {
                self.folder(&above.join("node_modules"))?;
                if !is_shared(above) && above.join("package.json").is_file() {
                    self.folder(above)?;
                }
            }
        }
        if !is_shared(folder) {
            self.folder(folder)?;
        }
        Ok(())
    }
}
