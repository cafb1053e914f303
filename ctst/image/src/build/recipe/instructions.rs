//! What each instruction of a stage does.

use std::cell::Cell;
use std::collections::BTreeMap;

use super::{
    Cache, Copy, Evaluated, MOST_FILLED, MOST_VARIABLES, Native, Origin, PATH, Recipe, SCRIPT, SHELL, Step, Work,
    absolute, arguments, check_name, unknown_flag,
};
use crate::build::dockerfile::{Line, Problem, list};
use crate::build::words::{expand, expand_text, split};
use crate::model::Healthcheck;

/// A stage that is being carried out.
pub(super) struct State<'a> {
    pub(super) recipe: &'a Recipe,
    pub(super) place: usize,
    pub(super) now: Evaluated,
    pub(super) arguments: BTreeMap<String, String>,
    pub(super) has_command: bool,
    /// Bytes.
    pub(super) filled: Cell<usize>,
}

impl State<'_> {
    fn lookup(&self, name: &str) -> Option<String> {
        let of_env = self.now.config.env.iter().find_map(|entry| entry.strip_prefix(name)?.strip_prefix('='));
        let found = of_env.map(str::to_owned).or_else(|| self.arguments.get(name).cloned());
        // A container has it where nobody sets another.
        found.or_else(|| (name == "PATH").then(|| PATH.trim_start_matches("PATH=").to_owned()))
    }

    fn fill(&self, line: &Line, word: &str) -> Result<String, Problem> {
        let filled = expand(word, self.recipe.escape, &|name| self.lookup(name)).map_err(|why| line.problem(why))?;
        self.count(line, &filled)?;
        Ok(filled)
    }

    fn count(&self, line: &Line, filled: &str) -> Result<(), Problem> {
        self.filled.set(self.filled.get().saturating_add(filled.len()));
        match self.filled.get() > MOST_FILLED {
            true => Err(line.problem(format!("the stage becomes longer than {} MiB here", MOST_FILLED >> 20))),
            false => Ok(()),
        }
    }

    /// Whether a step can be told its variables.
    fn bounded(&self, line: &Line) -> Result<(), Problem> {
        let arguments = self.arguments.iter().map(|(name, value)| name.len() + value.len());
        let size: usize = self.now.config.env.iter().map(String::len).chain(arguments).sum();
        match size > MOST_VARIABLES {
            true => Err(line.problem(format!(
                "its variables take more than {} KiB from here on, more than a step can be told",
                MOST_VARIABLES >> 10
            ))),
            false => Ok(()),
        }
    }

    fn fill_all(&self, line: &Line) -> Result<Vec<String>, Problem> {
        let words: Vec<String> = match line.list() {
            Some(words) => words.iter().map(|word| self.fill(line, word)).collect::<Result<_, _>>()?,
            None => {
                let words = split(&line.rest, self.recipe.escape);
                words.into_iter().map(|word| self.fill(line, word)).collect::<Result<_, _>>()?
            }
        };
        match words.is_empty() {
            true => Err(line.problem(format!("{} says nothing", line.keyword))),
            false => Ok(words),
        }
    }

    fn one(&self, line: &Line) -> Result<String, Problem> {
        match self.fill_all(line)?.as_slice() {
            [word] if !word.is_empty() => Ok(word.clone()),
            [_] => Err(line.problem("its word is empty: is a variable in it not set?")),
            words => Err(line.problem(format!("{} takes one word, and there are {}", line.keyword, words.len()))),
        }
    }

    /// `name=value` pairs, or a name and the rest of the line.
    fn pairs(&self, line: &Line) -> Result<Vec<(String, String)>, Problem> {
        let words = split(&line.rest, self.recipe.escape);
        let first = words.first().ok_or_else(|| line.problem(format!("{} says nothing", line.keyword)))?;
        if !first.contains('=') {
            let value = line.rest[first.len()..].trim();
            if value.is_empty() {
                return Err(line.problem(format!("`{first}` gets no value")));
            }
            return Ok(vec![(self.fill(line, first)?, self.fill(line, value)?)]);
        }
        let pair = |word: &&str| {
            let Some((name, value)) = word.split_once('=') else {
                return Err(line.problem(format!("`{}` has no `=`", crate::error::text(word))));
            };
            Ok((self.fill(line, name)?, self.fill(line, value)?))
        };
        words.iter().map(pair).collect()
    }

    fn workdir(&self) -> &str {
        self.now.config.workdir.as_deref().filter(|path| path.starts_with('/')).unwrap_or("/")
    }

    fn work(&mut self, line: &Line, work: Work) {
        self.now.steps.push(Step { line: line.number, source: line.source.clone(), work });
    }

    pub(super) fn native(&mut self, steps: &Native) {
        for (name, value) in &steps.env {
            set(&mut self.now.config.env, name, value);
        }
        let mut step = |source: String, work| self.now.steps.push(Step { line: 0, source, work });
        if let Some(path) = &steps.workdir {
            self.now.config.workdir = Some(path.clone());
            step(format!("workdir {path}"), Work::Folder { path: path.clone() });
        }
        for (from, to) in &steps.copy {
            let copy = Copy {
                from: Origin::Context,
                sources: vec![from.clone()],
                documents: Vec::new(),
                to: to.clone(),
                owner: None,
                mode: None,
                unpack: false,
                seen: None,
            };
            step(format!("copy {from} to {to}"), Work::Copy(copy));
        }
        let mut env = vec![PATH.to_owned()];
        for entry in &self.now.config.env {
            let (name, value) = entry.split_once('=').unwrap_or((entry, ""));
            set(&mut env, name, value);
        }
        let cwd = self.now.config.workdir.as_deref().filter(|path| path.starts_with('/')).unwrap_or("/").to_owned();
        for text in &steps.run {
            let argv = SHELL.iter().map(|word| (*word).to_owned()).chain([text.clone()]).collect();
            let (env, cwd) = (env.clone(), cwd.clone());
            let (user, caches) = (String::new(), Vec::new());
            step(format!("run {text}"), Work::Run { argv, env, cwd, user, caches, script: None, network: true });
        }
        let config = &mut self.now.config;
        config.user = steps.user.clone().or(config.user.take());
        if let Some(words) = &steps.entrypoint {
            config.entrypoint.clone_from(words);
            config.command.clear();
        }
        if let Some(words) = &steps.command {
            config.command.clone_from(words);
        }
    }

    pub(super) fn line(&mut self, line: &Line) -> Result<(), Problem> {
        let takes_flags = matches!(line.keyword.as_str(), "RUN" | "COPY" | "ADD" | "HEALTHCHECK");
        // What begins with two hyphens may be a value elsewhere, and never is.
        if let (false, Some((flag, _))) = (takes_flags, line.flags.first()) {
            return Err(unknown_flag(line, flag, "none"));
        }
        match line.keyword.as_str() {
            "ARG" => {
                for (name, value) in arguments(line, self.recipe.escape, &|name| self.lookup(name))? {
                    let given = self.recipe.given.get(&name).cloned();
                    let global = self.recipe.global.get(&name).cloned().flatten();
                    if let Some(value) = given.or(value).or(global) {
                        self.count(line, &value)?;
                        self.arguments.insert(name, value);
                    }
                }
                self.bounded(line)?;
            }
            "ENV" => {
                for (name, value) in self.pairs(line)? {
                    check_name(line, &name)?;
                    set(&mut self.now.config.env, &name, &value);
                }
                self.bounded(line)?;
            }
            "LABEL" => {
                let pairs = self.pairs(line)?;
                self.now.declared.labels.extend(pairs);
            }
            "MAINTAINER" => {
                self.now.declared.labels.insert("maintainer".into(), line.rest.clone());
            }
            "WORKDIR" => {
                let path = absolute(self.workdir(), self.one(line)?.trim_end_matches('/'));
                self.now.config.workdir = Some(path.clone());
                self.work(line, Work::Folder { path });
            }
            "USER" => self.now.config.user = Some(self.one(line)?),
            "STOPSIGNAL" => self.now.declared.stop_signal = Some(self.one(line)?),
            "VOLUME" => {
                for path in self.fill_all(line)? {
                    let path = absolute(self.workdir(), &path);
                    add(&mut self.now.declared.volumes, path);
                }
            }
            "EXPOSE" => {
                for word in self.fill_all(line)? {
                    for port in ports(line, &word)? {
                        add(&mut self.now.declared.ports, port);
                    }
                }
            }
            "SHELL" => match line.list() {
                Some(words) if !words.is_empty() => self.now.shell = words,
                _ => return Err(line.problem_with("SHELL takes a list", "for example SHELL [\"/bin/bash\", \"-c\"]")),
            },
            "CMD" => {
                self.now.config.command = self.command(line, &line.rest);
                self.has_command = true;
            }
            "ENTRYPOINT" => {
                self.now.config.entrypoint = self.command(line, &line.rest);
                // The command of the image below is for its own entrypoint.
                if !self.has_command {
                    self.now.config.command.clear();
                }
            }
            "HEALTHCHECK" => self.now.declared.healthcheck = Some(self.healthcheck(line)?),
            "RUN" => self.run(line)?,
            "COPY" | "ADD" => self.copy(line)?,
            "ONBUILD" => {
                return Err(line.problem_with(
                    "ONBUILD is not supported: nothing here would carry it out later",
                    "write what it says into the Dockerfile that builds on this one",
                ));
            }
            "FROM" => {}
            // Looked at before.
            other => return Err(line.problem(format!("there is no instruction `{other}`"))),
        }
        Ok(())
    }

    /// A list as it is, anything else for the shell.
    fn command(&self, line: &Line, text: &str) -> Vec<String> {
        match list(text) {
            Some(words) => words,
            None if line.rest.is_empty() => Vec::new(),
            None => self.now.shell.iter().cloned().chain([text.to_owned()]).collect(),
        }
    }

    fn healthcheck(&self, line: &Line) -> Result<Healthcheck, Problem> {
        let mut check = Healthcheck::default();
        for (name, value) in &line.flags {
            let value = value.as_deref().unwrap_or_default();
            let bad = || line.problem(format!("`--{name}={}` is not understood", crate::error::text(value)));
            let time = || duration(value).ok_or_else(bad);
            match name.as_str() {
                "interval" => check.interval = Some(time()?),
                "timeout" => check.timeout = Some(time()?),
                "start-period" => check.start_period = Some(time()?),
                "start-interval" => check.start_interval = Some(time()?),
                "retries" => check.retries = Some(value.parse().map_err(|_| bad())?),
                _ => {
                    let known = "--interval, --timeout, --start-period, --start-interval and --retries";
                    return Err(unknown_flag(line, name, known));
                }
            }
        }
        let (word, rest) = line.rest.split_once(char::is_whitespace).unwrap_or((&line.rest, ""));
        let rest = rest.trim();
        match word.to_ascii_uppercase().as_str() {
            "NONE" if rest.is_empty() => check.test = vec!["NONE".into()],
            "CMD" if !rest.is_empty() => {
                check.test = match list(rest) {
                    Some(words) => ["CMD".to_owned()].into_iter().chain(words).collect(),
                    None => vec!["CMD-SHELL".into(), rest.into()],
                }
            }
            _ => return Err(line.problem("it reads HEALTHCHECK CMD COMMAND, or HEALTHCHECK NONE")),
        }
        Ok(check)
    }

    fn run(&mut self, line: &Line) -> Result<(), Problem> {
        let (mut caches, mut network) = (Vec::new(), true);
        for (name, value) in &line.flags {
            let value = self.fill(line, value.as_deref().unwrap_or_default())?;
            match (name.as_str(), value.as_str()) {
                ("mount", _) => caches.push(self.cache(line, &value)?),
                ("network", "default") => {}
                ("network", "none") => network = false,
                ("network", _) => {
                    return Err(line.problem_with(
                        format!("steps are given no network `{}`", crate::error::text(&value)),
                        "there are `default` and `none`",
                    ));
                }
                _ => return Err(unknown_flag(line, name, "--mount=type=cache and --network")),
            }
        }
        let mut script = None;
        let argv = match (line.documents.as_slice(), line.list()) {
            (_, Some(words)) if words.is_empty() => return Err(line.problem("RUN says nothing")),
            (_, Some(words)) => words,
            ([only], None) if line.rest == only.word => match only.content.strip_prefix("#!") {
                None => self.now.shell.iter().cloned().chain([only.content.clone()]).collect(),
                // As the kernel reads it: one program and at most one argument (execve(2)).
                Some(rest) => {
                    let first = rest.lines().next().unwrap_or_default().trim();
                    let (program, argument) = first.split_once(char::is_whitespace).unwrap_or((first, ""));
                    let words = [program, argument.trim(), SCRIPT].into_iter().filter(|word| !word.is_empty());
                    script = Some(only.content.clone());
                    words.map(str::to_owned).collect()
                }
            },
            (documents, None) => {
                if line.rest.is_empty() {
                    return Err(line.problem("RUN says nothing"));
                }
                let mut text = line.rest.clone();
                for document in documents {
                    text.push_str(&format!("\n{}{}", document.content, document.name));
                }
                self.now.shell.iter().cloned().chain([text]).collect()
            }
        };
        let mut env = vec![PATH.to_owned()];
        for (name, value) in &self.arguments {
            set(&mut env, name, value);
        }
        for entry in &self.now.config.env {
            let (name, value) = entry.split_once('=').unwrap_or((entry, ""));
            set(&mut env, name, value);
        }
        let (cwd, user) = (self.workdir().to_owned(), self.now.config.user.clone().unwrap_or_default());
        self.work(line, Work::Run { argv, env, cwd, user, caches, script, network });
        Ok(())
    }

    fn cache(&self, line: &Line, written: &str) -> Result<Cache, Problem> {
        let mut options: BTreeMap<&str, &str> = BTreeMap::new();
        for option in written.split(',') {
            let (name, value) = option.split_once('=').unwrap_or((option, ""));
            options.insert(name, value.trim_matches('"'));
        }
        match options.remove("type") {
            Some("cache") => {}
            kind => {
                let kind = crate::error::text(kind.unwrap_or("bind"));
                return Err(line.problem_with(
                    format!("RUN with `--mount=type={kind}` is not supported"),
                    "supported is type=cache; files are copied in with COPY, but a secret would stay in the image: do in a \
                     container what needs it",
                ));
            }
        }
        let target = ["target", "dst", "destination"].into_iter().find_map(|name| options.remove(name));
        let Some(target) = target.filter(|target| !target.is_empty()) else {
            return Err(line.problem("the mount has no target"));
        };
        let target = absolute(self.workdir(), target);
        let number = |value: &str, radix| {
            // The last one stands for none.
            let number = u32::from_str_radix(value, radix).ok().filter(|number| *number != u32::MAX);
            number.ok_or_else(|| line.problem(format!("`{}` is no number", crate::error::text(value))))
        };
        let mode = options.remove("mode").map_or(Ok(0o755), |mode| number(mode, 8))? & 0o7777;
        let uid = options.remove("uid").map_or(Ok(0), |id| number(id, 10))?;
        let gid = options.remove("gid").map_or(Ok(0), |id| number(id, 10))?;
        let id = options.remove("id").unwrap_or(&target).to_owned();
        // One build runs at a time, so that every way of sharing is the same.
        options.remove("sharing");
        if let Some(name) = options.keys().next() {
            let name = crate::error::text(name);
            return Err(line.problem_with(
                format!("a cache with `{name}` is not supported"),
                "supported are target, id, sharing, mode, uid and gid",
            ));
        }
        Ok(Cache { id, target, mode, owner: (uid, gid) })
    }

    fn copy(&mut self, line: &Line) -> Result<(), Problem> {
        let is_add = line.keyword == "ADD";
        let (mut owner, mut mode) = (None, None);
        for (name, value) in &line.flags {
            let value = self.fill(line, value.as_deref().unwrap_or_default())?;
            match name.as_str() {
                "chown" if !value.is_empty() => owner = Some(value),
                "chmod" => {
                    let bits = u32::from_str_radix(&value, 8).ok().filter(|bits| *bits <= 0o7777);
                    let bits = bits.ok_or_else(|| {
                        line.problem(format!("`--chmod={}` is no octal number", crate::error::text(&value)))
                    })?;
                    mode = Some(bits);
                }
                // How layers lie on each other is our own affair.
                "link" if matches!(value.as_str(), "" | "true" | "false") => {}
                "from" if !is_add => {}
                _ if is_add => return Err(unknown_flag(line, name, "--chown, --chmod and --link")),
                _ => return Err(unknown_flag(line, name, "--from, --chown, --chmod and --link")),
            }
        }
        let words: Vec<String> = match line.list() {
            Some(words) => words,
            None => split(&line.rest, self.recipe.escape).into_iter().map(str::to_owned).collect(),
        };
        let Some((to, sources)) = words.split_last().filter(|(_, sources)| !sources.is_empty()) else {
            return Err(line.problem(format!("{} takes a source and a place", line.keyword)));
        };
        let (mut paths, mut documents) = (Vec::new(), Vec::new());
        for source in sources {
            if let Some(document) = line.documents.iter().find(|document| document.word == *source) {
                let fill = |text: &str| {
                    expand_text(text, self.recipe.escape, &|name| self.lookup(name)).map_err(|why| line.problem(why))
                };
                let content = if document.expands { fill(&document.content)? } else { document.content.clone() };
                self.count(line, &content)?;
                documents.push((document.name.clone(), content));
                continue;
            }
            let source = self.fill(line, source)?;
            let is_remote = ["http://", "https://", "git://", "git@", "ssh://"].iter().any(|s| source.starts_with(s));
            if is_add && is_remote {
                return Err(line.problem_with(
                    "ADD fetches nothing from the network",
                    "fetch it before, put it into the build's folder, and ADD or COPY it from there",
                ));
            }
            if source.is_empty() {
                return Err(line.problem("a source is empty: is a variable in it not set?"));
            }
            paths.push(source);
        }
        let to = self.fill(line, to)?;
        if to.is_empty() {
            return Err(line.problem("the place is empty: is a variable in it not set?"));
        }
        let count = paths.len() + documents.len();
        let is_folder = to.ends_with('/') || matches!(to.as_str(), "." | "..") || to.ends_with("/.");
        if count > 1 && !is_folder {
            return Err(line.problem_with(
                format!("{count} sources go into a folder, and `{}` is written as a file", crate::error::text(&to)),
                "put a `/` at its end",
            ));
        }
        let mut place = absolute(self.workdir(), &to);
        if is_folder && place != "/" {
            place.push('/');
        }
        let from = self.recipe.origin(self.place, line)?.unwrap_or(Origin::Context);
        let copy = Copy { from, sources: paths, documents, to: place, owner, mode, unpack: is_add, seen: None };
        self.work(line, Work::Copy(copy));
        Ok(())
    }
}

fn set(env: &mut Vec<String>, name: &str, value: &str) {
    let entry = format!("{name}={value}");
    match env.iter_mut().find(|old| old.split('=').next() == Some(name)) {
        Some(old) => *old = entry,
        None => env.push(entry),
    }
}

fn add(list: &mut Vec<String>, item: String) {
    if let Err(place) = list.binary_search(&item) {
        list.insert(place, item);
    }
}

/// `80`, `53/udp` or `3000-3005`, as images declare them.
fn ports(line: &Line, word: &str) -> Result<Vec<String>, Problem> {
    let bad = || line.problem(format!("`{}` is no port", crate::error::text(word)));
    let (ports, protocol) = word.split_once('/').unwrap_or((word, "tcp"));
    let protocol = protocol.to_ascii_lowercase();
    if !matches!(protocol.as_str(), "tcp" | "udp" | "sctp") {
        return Err(bad());
    }
    let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
    let (first, last): (u16, u16) = (first.parse().map_err(|_| bad())?, last.parse().map_err(|_| bad())?);
    if first == 0 || last < first || last - first > 1000 {
        return Err(bad());
    }
    Ok((first..=last).map(|port| format!("{port}/{protocol}")).collect())
}

/// `1m30s` in nanoseconds, as Go writes it.
fn duration(text: &str) -> Option<u64> {
    let mut rest = text;
    let mut total = 0_u64;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').filter(|at| *at > 0)?;
        let (number, unit) = rest.split_at(digits);
        let end = unit.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(unit.len());
        let (unit, after) = unit.split_at(end);
        let unit = match unit {
            "ns" => 1_u64,
            "us" | "µs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return None,
        };
        let (whole, part) = number.split_once('.').unwrap_or((number, ""));
        let mut value = whole.parse::<u64>().ok()?.checked_mul(unit)?;
        for (at, digit) in part.bytes().take(9).enumerate() {
            value = value
                .checked_add(u64::from(digit.checked_sub(b'0')?) * unit / 10_u64.pow(u32::try_from(at).ok()? + 1))?;
        }
        total = total.checked_add(value)?;
        rest = after;
    }
    (!text.is_empty()).then_some(total)
}
