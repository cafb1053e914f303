//! Names across files, and paths that are relative to one.

use std::sync::Arc;

use crate::codes::Code;
use crate::diagnostic::{Span, nearest, shown};
use crate::syntax::{ComponentKind, StatementKind};
use crate::text::{Part, joined};

use super::resolve::Origin;
use super::{Checker, some_of};

/// What came of reading a file: `Ok(None)` is that there is none.
pub(super) type Content = Arc<Result<Option<Arc<Vec<u8>>>, String>>;

/// The file in which byte `offset` of a text is written.
fn file_at(parts: &[Part<'_>], offset: usize) -> usize {
    let mut end = 0;
    let part = parts.iter().find(|part| {
        end += part.text.len();
        end > offset
    });
    part.map_or(0, |part| part.file)
}

impl Checker<'_, '_> {
    /// The file that a value is written in.
    pub(super) fn file_of(&self, origin: Origin) -> usize {
        match origin {
            Origin::Component(index) => self.declared[index].file,
            Origin::File(file) | Origin::Param(file) => file,
        }
    }

    /// A path as seen from the folder of the file that is checked. It is written at byte `offset` of a text, and is
    /// relative to the file in which it begins; in a file from the network, to the one that is checked.
    pub(super) fn seen_from_here(&self, path: &str, parts: &[Part<'_>], offset: usize) -> String {
        self.beside(path, file_at(parts, offset))
    }

    /// A path that is relative to this file, as seen from the folder of the file that is checked.
    pub(super) fn beside(&self, path: &str, file: usize) -> String {
        let name = self.files[file].name.as_str();
        match name.rsplit_once('/').filter(|_| !self.is_remote(file)) {
            Some((folder, _)) if file != 0 && !path.starts_with('/') => {
                let path = path.strip_prefix("./").unwrap_or(path);
                let from = if name.starts_with(['/', '.']) { "" } else { "./" };
                format!("{from}{folder}/{path}")
            }
            _ => path.to_owned(),
        }
    }

    /// Whether a file came over the network.
    pub(super) fn is_remote(&self, file: usize) -> bool {
        self.files[file].name.starts_with("https://")
    }

    /// Reads a file of the project that a text names. `None` inside: there is none, and none is needed. What is wrong is
    /// reported.
    pub(super) fn file(&mut self, span: Span, parts: &[Part<'_>], required: bool) -> Option<Option<Arc<Vec<u8>>>> {
        let written = joined(parts);
        let upwards = written.starts_with('/') || written.split('/').any(|part| part == "..");
        if self.is_remote(file_at(parts, 0)) && upwards {
            self.finding(
                Code::UnreadableFile,
                span,
                "a file from the network may only name files below the project's folder",
            )
            .label("leads out of it")
            .help("give a relative path without `..`, or make it an argument of the template");
            return None;
        }
        let path = self.seen_from_here(&written, parts, 0);
        let loader = self.loader;
        let read = || loader.map_or_else(|| Err("no files are read here".to_owned()), |loader| loader.read(&path));
        let found = self.read.entry(path.clone()).or_insert_with(|| Arc::new(read().map(|found| found.map(Arc::new))));
        let cause = match found.as_ref() {
            Ok(Some(bytes)) => return Some(Some(Arc::clone(bytes))),
            Ok(None) if !required => return Some(None),
            Ok(None) => "no such file".to_owned(),
            Err(cause) => cause.clone(),
        };
        let written = self.shown(span);
        self.finding(Code::UnreadableFile, span, format!("cannot read {written}: {cause}"))
            .label("is needed")
            .help("the path is relative to the file that it is written in");
        None
    }

    /// What imported files say in vain, and names that are taken twice.
    pub(super) fn imports(&mut self) {
        let files = self.files;
        for (number, file) in files.iter().enumerate() {
            let mut seen = std::collections::HashMap::new();
            for (place, import) in file.imports.iter().enumerate() {
                let Some(alias) = import.alias.filter(|_| !self.report.full()) else { continue };
                let text = alias.text(self.source);
                let taken = self.by_name[number].get(&text).map(|&index| self.declared[index].span);
                if let Some(first) = taken.or_else(|| seen.get(&text).copied()) {
                    self.finding(Code::DuplicateName, alias.span, format!("the name {} is taken", shown(&text)))
                        .label("the same name")
                        .related(first, "declared here")
                        .help("give the import another name with AS");
                }
                seen.insert(text.clone(), alias.span);
                self.aliases.to_mut()[number].entry(text).or_insert(place);
            }
            if number == 0 {
                continue;
            }
            for statement in &file.tree.statements {
                if matches!(
                    statement.kind,
                    StatementKind::Stack { .. } | StatementKind::Connect(_) | StatementKind::Expose(_)
                ) && !self.report.full()
                {
                    let word = self.shown(statement.keyword);
                    self.finding(
                        Code::NoEffect,
                        statement.keyword,
                        format!("{word} has no effect in an imported file"),
                    )
                    .label("passed over")
                    .help("what is imported is only there to inherit from; write this into the main file");
                }
            }
        }
    }

    /// What `FROM path` means in a file; `None` if there is no such thing, which is reported.
    pub(super) fn inherited_from(&mut self, file: usize, span: Span) -> Option<usize> {
        let path = span.text(self.source);
        let found = match path.split_once('.') {
            None => {
                if let Some(local) = self.by_name[file].get(path) {
                    return Some(*local);
                }
                if let Some(target) = self.alias(file, path) {
                    return self.only_component(target?, span);
                }
                match self.imported_plainly(file, path).as_slice() {
                    [] => None,
                    [only] => Some(*only),
                    [first, second, ..] => {
                        let (first, second) = (self.declared[*first].span, self.declared[*second].span);
                        self.finding(Code::UnknownBase, span, format!("several imports have {}", shown(path)))
                            .label("which one?")
                            .related(first, "one of them")
                            .related(second, "another one")
                            .help("give one of the imports a name with AS, and write `FROM name.template`");
                        return None;
                    }
                }
            }
            Some((alias, name)) => match self.alias(file, alias) {
                Some(target) => self.by_name[target?].get(name).copied(),
                None => None,
            },
        };
        // What is missing may be in what could not be read.
        let broken = self.files[file].tree.partial || self.files[file].imports.iter().any(|i| i.target.is_none());
        if found.is_none() && !broken {
            self.nothing_to_inherit(file, span);
        }
        found
    }

    /// The file that an alias names, if it could be read.
    fn alias(&mut self, file: usize, alias: &str) -> Option<Option<usize>> {
        let place = *self.aliases[file].get(alias)?;
        self.used_imports.insert((file, place));
        Some(self.files[file].imports[place].target)
    }

    /// What the files that are imported without AS call so.
    fn imported_plainly(&mut self, file: usize, name: &str) -> Vec<usize> {
        let mut found = Vec::new();
        for (place, import) in self.files[file].imports.iter().enumerate() {
            let Some(target) = import.target.filter(|_| import.alias.is_none()) else { continue };
            if let Some(&index) = self.by_name[target].get(name) {
                self.used_imports.insert((file, place));
                found.push(index);
            }
        }
        found
    }

    fn only_component(&mut self, target: usize, span: Span) -> Option<usize> {
        let of_kind = |kind| {
            let declared = self.declared.iter().enumerate();
            declared.filter(move |(_, d)| d.file == target && d.syntax.kind == kind).map(|(index, _)| index)
        };
        let kinds = [ComponentKind::Component, ComponentKind::Job, ComponentKind::Template];
        let mut all = kinds.into_iter().map(|kind| of_kind(kind).collect::<Vec<usize>>());
        let all = all.find(|all| !all.is_empty()).unwrap_or_default();
        if let [only] = all.as_slice() {
            return Some(*only);
        }
        if !self.files[target].tree.partial {
            let name = shown(&self.files[target].name);
            let alias = span.text(self.source);
            let list = some_of(all.iter().map(|&index| self.declared[index].name.as_ref()));
            let what = if list.is_empty() { "no component".to_owned() } else { format!("several components: {list}") };
            self.finding(Code::UnknownBase, span, format!("{name} has {what}"))
                .label("which one?")
                .help(format!("write `FROM {alias}.name`"));
        }
        None
    }

    fn nothing_to_inherit(&mut self, file: usize, span: Span) {
        let path = span.text(self.source);
        let mut names: Vec<String> = Vec::new();
        let own = |file: usize| {
            self.declared.iter().filter(move |declared| declared.file == file).map(|declared| declared.name.as_ref())
        };
        names.extend(own(file).take(1000).map(str::to_owned));
        for import in &self.files[file].imports {
            let Some(target) = import.target else { continue };
            let alias = import.alias.map(|alias| alias.text(self.source));
            let qualified = |name| alias.as_ref().map_or(String::from(name), |alias| format!("{alias}.{name}"));
            names.extend(own(target).take(1000).map(qualified));
        }
        let meant = nearest(path, names.iter().map(String::as_str)).map(|meant| format!("did you mean `{meant}`?"));
        let expected = format!("one of {}", some_of(names.iter().map(String::as_str)));
        self.finding(Code::UnknownBase, span, format!("there is no {} to inherit from", shown(path)))
            .label("unknown template")
            .expected(expected)
            .help("declare it with `TEMPLATE name { … }`")
            .help_if(meant);
    }

    /// Warns about imports that nothing inherits from.
    pub(super) fn unused_imports(&mut self) {
        if self.report.has_errors() {
            return;
        }
        let files = self.files;
        for (number, file) in files.iter().enumerate() {
            for (place, import) in file.imports.iter().enumerate() {
                if !self.used_imports.contains(&(number, place)) && !self.report.full() {
                    self.finding(Code::UnusedImport, import.span, "nothing inherits from this import")
                        .label("not used")
                        .help("remove it");
                }
            }
        }
    }
}
