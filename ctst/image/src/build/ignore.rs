//! `.dockerignore`.

use globset::{GlobBuilder, GlobMatcher};

/// Of state, which may hold secrets: never a part of a build's folder.
const STATE: &str = ".containust";

/// What of a build's folder is no part of it.
#[derive(Debug, Clone, Default)]
pub struct Ignore {
    rules: Vec<(GlobMatcher, bool)>,
    /// Whether a rule takes something back.
    takes_back: bool,
}

/// Each takes some ten kilobytes once it is compiled.
const MOST_RULES: usize = 1000;

impl Ignore {
    /// Reads a `.dockerignore`.
    ///
    /// # Errors
    /// The number of a line that is not understood, and why.
    pub fn read(text: &str) -> Result<Ignore, (usize, String)> {
        let mut ignore = Ignore::default();
        for (number, line) in text.strip_prefix('\u{feff}').unwrap_or(text).lines().enumerate() {
            // A comment begins at the line's beginning, as docker has it.
            let line = if line.starts_with('#') { "" } else { line.trim() };
            let (line, back) = match line.strip_prefix('!') {
                Some(rest) => (rest.trim(), true),
                None => (line, false),
            };
            let parts: Vec<&str> = line.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
            if parts.is_empty() {
                continue;
            }
            if ignore.rules.len() >= MOST_RULES {
                return Err((number + 1, format!("there are more than {MOST_RULES} rules")));
            }
            let matcher = glob(&parts.join("/")).map_err(|why| (number + 1, why))?;
            ignore.takes_back |= back;
            ignore.rules.push((matcher, !back));
        }
        Ok(ignore)
    }

    /// Whether this path, relative and plain, is left out. The last rule that fits it, or a folder above it, counts.
    pub(super) fn leaves_out(&self, path: &str) -> bool {
        if path.split('/').any(|part| part == STATE) {
            return true;
        }
        let above = || path.match_indices('/').map(|(at, _)| &path[..at]).chain([path]);
        let rule = self.rules.iter().rev().find(|(rule, _)| above().any(|path| rule.is_match(path)));
        rule.is_some_and(|(_, out)| *out)
    }

    /// Whether nothing below this folder can be a part, either.
    pub(super) fn leaves_all_out(&self, path: &str) -> bool {
        self.leaves_out(path) && (!self.takes_back || path.split('/').any(|part| part == STATE))
    }
}

/// A pattern as Go's `filepath.Match` has it, and `**`: braces mean nothing.
pub(super) fn glob(pattern: &str) -> Result<GlobMatcher, String> {
    let escaped = pattern.replace('{', "\\{").replace('}', "\\}");
    let built = GlobBuilder::new(&escaped).literal_separator(true).backslash_escape(true).build();
    built.map(|glob| glob.compile_matcher()).map_err(|e| format!("it is not a pattern: {}", e.kind()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_rule_counts() {
        let ignore =
            Ignore::read("# comment\n*.log\n/build/\n**/node_modules\n!keep.log\ndocs\n!docs/a.md\n{x}\n").unwrap();
        for out in [
            "a.log",
            "build",
            "build/x/y",
            "node_modules",
            "a/b/node_modules/c",
            "docs/b.md",
            "{x}",
            ".containust",
            "a/.containust/secrets/x",
        ] {
            assert!(ignore.leaves_out(out), "{out}");
        }
        for part in ["keep.log", "sub/a.log", "docs/a.md", "builder", "x"] {
            assert!(!ignore.leaves_out(part), "{part}");
        }
        assert!(!ignore.leaves_all_out("docs") && ignore.leaves_all_out(".containust"));
        assert!(Ignore::read("a\n*\n").unwrap().leaves_all_out("b"));
        assert_eq!(Ignore::read("a\n[\n").unwrap_err().0, 2);
    }
}
