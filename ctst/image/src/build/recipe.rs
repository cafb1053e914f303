//! What a Dockerfile says: stages, and what is done in each of them.
//!
//! [`Recipe::read`] finds everything that can be found without an image; [`Stage::evaluate`] fills in variables, which come from
//! the image below, and gives what has to be done and the configuration afterwards. Nothing here touches a file.

mod instructions;

use std::cell::Cell;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use strsim::damerau_levenshtein;

use super::dockerfile::{Line, Problem, lines};
use super::words::{expand, split};
use crate::archive::image::architecture;
use crate::model::{Config, Declared};

use instructions::State;

/// In a container whose image says nothing of it, as docker sets it.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const SHELL: [&str; 2] = ["/bin/sh", "-c"];
/// A stage that begins with nothing.
const SCRATCH: &str = "scratch";
/// More would be no Dockerfile that anybody wrote.
const MOST_STAGES: usize = 100;
const MOST_LINES: usize = 2000;
const MOST_PROBLEMS: usize = 20;
/// Bytes of a stage's variables, ARGs and ENV together, which each of its steps is told.
const MOST_VARIABLES: usize = 64 << 10;
/// Bytes of all words of a stage, once names are filled in.
const MOST_FILLED: usize = 2 << 20;

const INSTRUCTIONS: [&str; 18] = [
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "MAINTAINER",
    "ONBUILD",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];

/// What is read from a Dockerfile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipe {
    /// In the order of the file, those alone that the last of them needs, which is the one that is wanted.
    pub stages: Vec<Stage>,
    /// Names of the others.
    others: Vec<String>,
    escape: char,
    /// Of `ARG` before the first `FROM`, and those that everybody has.
    global: BTreeMap<String, Option<String>>,
    /// As the author of the build gives them.
    given: BTreeMap<String, String>,
    /// Instead of lines.
    steps: Option<Native>,
}

/// Steps that stand in a composition.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Native {
    /// The image, as [`Recipe::images`] gives it.
    pub from: String,
    /// `NAME` and value.
    pub env: Vec<(String, String)>,
    /// A source, and an absolute path.
    pub copy: Vec<(String, String)>,
    /// For `/bin/sh`.
    pub run: Vec<String>,
    /// Absolute.
    pub workdir: Option<String>,
    /// Of the image.
    pub user: Option<String>,
    /// Of the image; none: as below.
    pub entrypoint: Option<Vec<String>>,
    /// The same.
    pub command: Option<Vec<String>>,
}

/// One stage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stage {
    /// What it begins with.
    pub base: Base,
    /// Its place in the file, counted from 0.
    number: usize,
    name: Option<String>,
    from: Line,
    lines: Vec<Line>,
}

/// What files come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Base {
    /// Nothing.
    Scratch,
    /// The stage at this place of [`Recipe::stages`].
    Stage(usize),
    /// An image, as it is written.
    Image(String),
}

/// A stage with its variables filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evaluated {
    /// What is done to files, in order.
    pub steps: Vec<Step>,
    /// What the image says about how it is run.
    pub config: Config,
    /// What it declares beyond that.
    pub declared: Declared,
    shell: Vec<String>,
}

/// Something that is done to files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Of the instruction, counted from 1.
    pub line: usize,
    /// Its first line as it is written.
    pub source: String,
    /// What.
    pub work: Work,
}

impl Step {
    /// What is wrong with it.
    #[must_use]
    pub fn problem(&self, text: impl Into<String>) -> Problem {
        Problem { line: self.line, source: self.source.clone(), text: text.into(), help: None }
    }
}

/// What is done to files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Work {
    /// A program is run.
    Run {
        /// Program and arguments.
        argv: Vec<String>,
        /// `NAME=value`, each name once.
        env: Vec<String>,
        /// Absolute.
        cwd: String,
        /// Empty: root.
        user: String,
        /// Folders that outlast the build.
        caches: Vec<Cache>,
        /// A script that it reads at [`SCRIPT`].
        script: Option<String>,
        /// Whether it has a way out where the build has one.
        network: bool,
    },
    /// Files are copied.
    Copy(Copy),
    /// A folder is made where there is none.
    Folder {
        /// Absolute.
        path: String,
    },
}

/// Where a script of a here-document is that names its own interpreter.
pub const SCRIPT: &str = "/dev/shm/script";

/// `RUN --mount=type=cache`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cache {
    /// Whoever names the same has the same files.
    pub id: String,
    /// Absolute.
    pub target: String,
    /// Permission bits of a new one.
    pub mode: u32,
    /// Its owner inside, when it is new.
    pub owner: (u32, u32),
}

/// COPY or ADD.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Copy {
    /// Where from.
    pub from: Origin,
    /// Paths or patterns there.
    pub sources: Vec<String>,
    /// Here-documents: names and contents.
    pub documents: Vec<(String, String)>,
    /// Absolute, with a `/` at its end if it is a folder.
    pub to: String,
    /// `user` or `user:group`.
    pub owner: Option<String>,
    /// Permission bits.
    pub mode: Option<u32>,
    /// Whether archives are unpacked.
    pub unpack: bool,
    /// What was seen of the files when the key of the step was made of it.
    #[serde(skip)]
    pub seen: Option<[u8; 32]>,
}

/// Where COPY takes files from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Origin {
    /// The build's folder.
    Context,
    /// The stage at this place of [`Recipe::stages`].
    Stage(usize),
    /// An image, as it is written.
    Image(String),
}

impl Recipe {
    /// Reads a Dockerfile. `target`: the name or number of the stage that is wanted; none: the last. `given`: values for ARGs.
    ///
    /// # Errors
    /// Everything that is wrong in it, as far as it can be seen.
    pub fn read(text: &str, target: Option<&str>, given: &[(String, String)]) -> Result<Recipe, Vec<Problem>> {
        let nowhere = |text: String| Problem { line: 0, source: String::new(), text, help: None };
        let (lines, escape) = lines(text).map_err(|problem| vec![problem])?;
        if lines.len() > MOST_LINES {
            return Err(vec![nowhere(format!("it has more than {MOST_LINES} instructions"))]);
        }
        let mut problems: Vec<Problem> = lines.iter().filter_map(is_known).take(MOST_PROBLEMS).collect();
        let mut recipe = Recipe {
            stages: Vec::new(),
            others: Vec::new(),
            escape,
            global: platform(),
            given: given.iter().cloned().collect(),
            steps: None,
        };
        let named = |line: &Line| line.keyword == "ARG";
        let words = lines.iter().filter(|line| named(line)).flat_map(|line| split(&line.rest, escape));
        let names: Vec<&str> = words.map(|word| word.split('=').next().unwrap_or(word)).collect();
        for (name, _) in given.iter().filter(|(name, _)| !names.contains(&name.as_str())) {
            problems.push(nowhere(format!("no ARG is called `{name}`, for which there is a value")));
        }
        for line in lines {
            match (line.keyword.as_str(), recipe.stages.last_mut()) {
                ("FROM", _) => match recipe.stage(&line) {
                    Ok(stage) if recipe.stages.len() < MOST_STAGES => recipe.stages.push(stage),
                    Ok(_) => problems.push(line.problem(format!("there are more than {MOST_STAGES} stages"))),
                    Err(problem) => problems.push(problem),
                },
                ("ARG", None) => {
                    if let Err(problem) = recipe.global_argument(&line) {
                        problems.push(problem);
                    }
                }
                (_, Some(stage)) => stage.lines.push(line),
                (_, None) if problems.is_empty() => {
                    problems.push(line.problem("no FROM stands before it"));
                }
                (_, None) => {}
            }
        }
        if problems.is_empty() && recipe.stages.is_empty() {
            problems.push(nowhere("it has no FROM".into()));
        }
        if !problems.is_empty() {
            problems.truncate(MOST_PROBLEMS);
            return Err(problems);
        }
        recipe.only(target).map_err(|problem| vec![problem])?;
        Ok(recipe)
    }

    /// The same of steps that stand in a composition.
    #[must_use]
    pub fn of_steps(steps: Native) -> Recipe {
        let from = Line {
            number: 0,
            source: String::new(),
            keyword: String::new(),
            flags: Vec::new(),
            rest: String::new(),
            documents: Vec::new(),
        };
        let stage = Stage { base: Base::Image(steps.from.clone()), number: 0, name: None, from, lines: Vec::new() };
        let (global, given) = (BTreeMap::new(), BTreeMap::new());
        Recipe { stages: vec![stage], others: Vec::new(), escape: '\\', global, given, steps: Some(steps) }
    }

    fn global_argument(&mut self, line: &Line) -> Result<(), Problem> {
        for (name, value) in arguments(line, self.escape, &|name| self.global.get(name).cloned().flatten())? {
            let value = self.given.get(&name).cloned().or(value);
            self.global.insert(name, value);
        }
        Ok(())
    }

    fn stage(&self, line: &Line) -> Result<Stage, Problem> {
        let lookup = |name: &str| self.global.get(name).cloned().flatten();
        let fill = |word: &str| expand(word, self.escape, &lookup).map_err(|why| line.problem(why));
        for (flag, value) in &line.flags {
            match (flag.as_str(), value) {
                ("platform", Some(platform)) => check_platform(line, &fill(platform)?)?,
                _ => return Err(unknown_flag(line, flag, "--platform")),
            }
        }
        let words: Vec<String> = split(&line.rest, self.escape).into_iter().map(fill).collect::<Result<_, _>>()?;
        let (image, name) = match words.as_slice() {
            [image] => (image, None),
            [image, word, name] if word.eq_ignore_ascii_case("as") => (image, Some(name.to_ascii_lowercase())),
            _ => return Err(line.problem("it reads FROM IMAGE, or FROM IMAGE AS NAME")),
        };
        if image.is_empty() {
            return Err(line.problem("the image has no name: is a variable in it not set?"));
        }
        if let Some(name) = &name {
            let is_good = name.starts_with(|c: char| c.is_ascii_lowercase())
                && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-.".contains(&b));
            if !is_good || name == SCRATCH {
                return Err(line.problem(format!("`{name}` is no name for a stage")));
            }
            if self.stages.iter().any(|stage| stage.name.as_ref() == Some(name)) {
                return Err(line.problem(format!("another stage is called `{name}`, too")));
            }
        }
        let base = match self.find(image) {
            Some(place) => Base::Stage(place),
            None if image == SCRATCH => Base::Scratch,
            None => Base::Image(image.clone()),
        };
        Ok(Stage { base, number: self.stages.len(), name, from: line.clone(), lines: Vec::new() })
    }

    /// The stage of this name.
    fn find(&self, name: &str) -> Option<usize> {
        let name = name.to_ascii_lowercase();
        self.stages.iter().position(|stage| stage.name.as_ref() == Some(&name))
    }

    /// Leaves out stages that the wanted one does not need.
    fn only(&mut self, target: Option<&str>) -> Result<(), Problem> {
        let wanted = match target {
            None => self.stages.len() - 1,
            Some(name) => match self.find(name).or_else(|| name.parse().ok().filter(|at| *at < self.stages.len())) {
                Some(place) => place,
                None => {
                    let names: Vec<&str> = self.stages.iter().filter_map(|stage| stage.name.as_deref()).collect();
                    let text = format!("no stage is called `{name}`, which is the target");
                    let help = (!names.is_empty()).then(|| format!("there are {}", names.join(", ")));
                    return Err(Problem { line: 0, source: String::new(), text, help });
                }
            },
        };
        let mut needed = vec![false; wanted + 1];
        needed[wanted] = true;
        for place in (0..=wanted).rev() {
            if !needed[place] {
                continue;
            }
            if let Base::Stage(below) = self.stages[place].base {
                needed[below] = true;
            }
            for line in &self.stages[place].lines {
                if let Some(Origin::Stage(from)) = self.origin(place, line)? {
                    needed[from] = true;
                }
            }
        }
        let mut places = Vec::with_capacity(needed.len());
        let mut count = 0;
        for is_needed in &needed {
            places.push(count);
            count += usize::from(*is_needed);
        }
        let mut at = 0;
        let others = self.stages.extract_if(.., |_| {
            at += 1;
            !needed.get(at - 1).copied().unwrap_or(false)
        });
        self.others = others.filter_map(|stage| stage.name).collect();
        for stage in &mut self.stages {
            if let Base::Stage(below) = &mut stage.base {
                *below = places[*below];
            }
        }
        Ok(())
    }

    /// Where a COPY takes files from; none: it is none, or takes them from the build's folder.
    fn origin(&self, place: usize, line: &Line) -> Result<Option<Origin>, Problem> {
        let from = line.flags.iter().find(|(name, _)| name == "from" && line.keyword == "COPY");
        let Some((_, from)) = from else { return Ok(None) };
        // No variable of the stage's can be in it: which stages there are is known before any is begun.
        let lookup = |name: &str| self.global.get(name).cloned().flatten();
        let from =
            expand(from.as_deref().unwrap_or_default(), self.escape, &lookup).map_err(|why| line.problem(why))?;
        if from.is_empty() {
            return Err(line.problem("`--from` names nothing"));
        }
        let numbered =
            || from.parse().ok().and_then(|number: usize| self.stages.iter().position(|s| s.number == number));
        match self.find(&from).or_else(numbered) {
            Some(found) if found < place => Ok(Some(Origin::Stage(found))),
            Some(_) => Err(line.problem(format!("the stage `{from}` does not come before this one"))),
            None if from.bytes().all(|b| b.is_ascii_digit()) => Err(line.problem(format!("there is no stage {from}"))),
            None => Ok(Some(Origin::Image(from))),
        }
    }

    /// The images that stages begin with or take files from, each once.
    ///
    /// # Errors
    /// What is wrong with a `--from`.
    pub fn images(&self) -> Result<Vec<String>, Problem> {
        let mut images: Vec<String> = Vec::new();
        let mut add = |image: &String| {
            if !images.contains(image) {
                images.push(image.clone());
            }
        };
        for (place, stage) in self.stages.iter().enumerate() {
            if let Base::Image(image) = &stage.base {
                add(image);
            }
            for line in &stage.lines {
                if let Some(Origin::Image(image)) = self.origin(place, line)? {
                    add(&image);
                }
            }
        }
        Ok(images)
    }

    /// What is wrong with the image that a stage begins with, at its line.
    #[must_use]
    pub fn problem_of(&self, image: &str, text: String, help: Option<String>) -> Problem {
        let of = |(place, stage): (usize, &Stage)| match &stage.base {
            Base::Image(base) if base == image => Some(stage.from.clone()),
            _ => stage
                .lines
                .iter()
                .find(|line| matches!(self.origin(place, line), Ok(Some(Origin::Image(from))) if from == image))
                .cloned(),
        };
        let line = self.stages.iter().enumerate().find_map(of);
        // An image, because no stage is called so; which is why the one that was meant may be among those that nobody needs.
        let is_near = |stage: &&str| damerau_levenshtein(image, stage) <= 1 + image.len() / 5;
        let stages = self.stages.iter().filter_map(|stage| stage.name.as_ref()).chain(&self.others);
        let meant =
            stages.map(String::as_str).find(is_near).filter(|_| line.as_ref().is_some_and(|l| l.keyword == "COPY"));
        let help = meant.map(|stage| format!("write `--from={stage}`, if the stage of that name is meant")).or(help);
        match line {
            Some(line) => Problem { help, ..line.problem(text) },
            None => Problem { line: 0, source: String::new(), text, help },
        }
    }

    /// Carries out a stage as far as that needs no files. `below`: what it begins with, for `FROM scratch` the default.
    ///
    /// # Errors
    /// Everything that is wrong in it.
    pub fn evaluate(&self, place: usize, below: &Evaluated) -> Result<Evaluated, Vec<Problem>> {
        let mut state = State {
            recipe: self,
            place,
            now: Evaluated { steps: Vec::new(), ..below.clone() },
            arguments: BTreeMap::new(),
            has_command: false,
            filled: Cell::new(0),
        };
        if let Some(steps) = &self.steps {
            state.native(steps);
        }
        let problems: Vec<Problem> =
            self.stages[place].lines.iter().filter_map(|line| state.line(line).err()).take(MOST_PROBLEMS).collect();
        if problems.is_empty() { Ok(state.now) } else { Err(problems) }
    }
}

/// Of nothing.
impl Default for Evaluated {
    fn default() -> Self {
        Self::of_image(Config::default(), Declared::default())
    }
}

impl Evaluated {
    /// An image, before anything is done.
    #[must_use]
    pub fn of_image(config: Config, declared: Declared) -> Self {
        Self { steps: Vec::new(), config, declared, shell: SHELL.map(str::to_owned).to_vec() }
    }
}

fn is_known(line: &Line) -> Option<Problem> {
    if INSTRUCTIONS.contains(&line.keyword.as_str()) {
        return None;
    }
    let name = crate::error::text(&line.keyword);
    let near = INSTRUCTIONS.iter().min_by_key(|known| damerau_levenshtein(known, &line.keyword));
    let near = near.filter(|known| damerau_levenshtein(known, &line.keyword) <= 2);
    let help = match near {
        Some(known) => format!("did you mean {known}?"),
        None => format!("there are {}", INSTRUCTIONS.join(", ")),
    };
    Some(line.problem_with(format!("there is no instruction `{name}`"), help))
}

fn unknown_flag(line: &Line, flag: &str, known: &str) -> Problem {
    let flag = crate::error::text(flag);
    line.problem_with(format!("{} with `--{flag}` is not supported", line.keyword), format!("supported are {known}"))
}

/// The ARGs that everybody has.
fn platform() -> BTreeMap<String, Option<String>> {
    let architecture = architecture().to_owned();
    let whole = format!("linux/{architecture}");
    let names = ["TARGET", "BUILD"].into_iter().flat_map(|prefix| {
        [
            ("PLATFORM", whole.clone()),
            ("OS", "linux".to_owned()),
            ("ARCH", architecture.clone()),
            ("VARIANT", String::new()),
        ]
        .map(|(name, value)| (format!("{prefix}{name}"), Some(value)))
    });
    names.collect()
}

fn check_platform(line: &Line, platform: &str) -> Result<(), Problem> {
    let mut parts = platform.split('/');
    match (parts.next(), parts.next()) {
        (Some("linux"), Some(given)) if given == architecture() => Ok(()),
        _ => Err(line.problem_with(
            format!(
                "this host is linux/{}, and steps for `{}` do not run on it",
                architecture(),
                crate::error::text(platform)
            ),
            "leave `--platform` out, or write `--platform=$BUILDPLATFORM`",
        )),
    }
}

/// Names and values of an ARG.
fn arguments(
    line: &Line,
    escape: char,
    lookup: &dyn Fn(&str) -> Option<String>,
) -> Result<Vec<(String, Option<String>)>, Problem> {
    let mut found = Vec::new();
    for word in split(&line.rest, escape) {
        let (name, value) = match word.split_once('=') {
            Some((name, value)) => (name, Some(expand(value, escape, lookup).map_err(|why| line.problem(why))?)),
            None => (word, None),
        };
        check_name(line, name)?;
        found.push((name.to_owned(), value));
    }
    match found.is_empty() {
        true => Err(line.problem("it names nothing")),
        false => Ok(found),
    }
}

fn check_name(line: &Line, name: &str) -> Result<(), Problem> {
    match name.is_empty() || name.contains(['\0', '"', '\'', '$']) {
        true => Err(line.problem(format!("`{}` is no name of a variable", crate::error::text(name)))),
        false => Ok(()),
    }
}

/// An absolute path in its shortest spelling.
pub(super) fn absolute(folder: &str, path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    let whole = if path.starts_with('/') { path.to_owned() } else { format!("{folder}/{path}") };
    for part in whole.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Recipe {
        Recipe::read(text, None, &[]).unwrap()
    }

    fn only(text: &str) -> Evaluated {
        let recipe = read(text);
        recipe.evaluate(recipe.stages.len() - 1, &Evaluated::default()).unwrap()
    }

    fn problems(text: &str) -> Vec<(usize, String)> {
        let told = match Recipe::read(text, None, &[]) {
            Err(problems) => problems,
            Ok(recipe) => recipe.evaluate(recipe.stages.len() - 1, &Evaluated::default()).unwrap_err(),
        };
        told.into_iter().map(|problem| (problem.line, problem.text)).collect()
    }

    #[test]
    fn stages_that_nobody_needs_are_left_out() {
        let text = "ARG V=1\nFROM a:$V AS one\nFROM b AS two\nFROM one AS three\nFROM scratch\nCOPY --from=three / /\nCOPY --from=x:2 /a /b\n";
        let recipe = read(text);
        let bases: Vec<&Base> = recipe.stages.iter().map(|stage| &stage.base).collect();
        assert_eq!(bases, [&Base::Image("a:1".into()), &Base::Stage(0), &Base::Scratch]);
        assert_eq!(recipe.images().unwrap(), ["a:1", "x:2"]);
        let last = recipe.evaluate(2, &Evaluated::default()).unwrap();
        let Work::Copy(copy) = &last.steps[0].work else { panic!("no copy") };
        assert_eq!((&copy.from, copy.to.as_str()), (&Origin::Stage(1), "/"));
        let given = [("V".to_owned(), "2".to_owned())];
        let recipe = Recipe::read(text, Some("one"), &given).unwrap();
        assert_eq!((recipe.stages.len(), recipe.images().unwrap()), (1, vec!["a:2".to_owned()]));
        assert!(Recipe::read(text, Some("none"), &[]).unwrap_err()[0].help.as_ref().unwrap().contains("one, two"));
        assert!(Recipe::read(text, None, &[("W".to_owned(), String::new())]).is_err());
    }

    #[test]
    fn the_configuration_is_what_docker_would_make_of_it() {
        let text = r#"FROM scratch
ARG A=x
ENV B=${A}1 C="two words"
ENV D three  words
LABEL a=b "c d"='e f'
WORKDIR /srv
WORKDIR app/
USER me:us
EXPOSE 80 53/udp 3000-3001
VOLUME /data
VOLUME ["/x", "rel"]
STOPSIGNAL SIGINT
ENTRYPOINT ["/bin/app"]
CMD run $B
HEALTHCHECK --interval=1m30s --timeout=500ms --retries=3 CMD curl -f http://localhost/
"#;
        let Evaluated { steps, config, declared, .. } = only(text);
        assert_eq!(config.env, ["B=x1", "C=two words", "D=three  words"]);
        assert_eq!(declared.labels.get("c d").map(String::as_str), Some("e f"));
        assert_eq!(config.workdir.as_deref(), Some("/srv/app"));
        assert_eq!(config.user.as_deref(), Some("me:us"));
        assert_eq!(declared.ports, ["3000/tcp", "3001/tcp", "53/udp", "80/tcp"]);
        assert_eq!(declared.volumes, ["/data", "/srv/app/rel", "/x"]);
        assert_eq!(config.entrypoint, ["/bin/app"]);
        assert_eq!(config.command, ["/bin/sh", "-c", "run $B"]);
        let check = declared.healthcheck.unwrap();
        assert_eq!(check.test, ["CMD-SHELL", "curl -f http://localhost/"]);
        assert_eq!((check.interval, check.timeout), (Some(90_000_000_000), Some(500_000_000)));
        assert_eq!(steps.len(), 2);
    }

    #[test]
    fn an_entrypoint_drops_the_command_below() {
        let recipe = read("FROM a\nENTRYPOINT [\"x\"]\n");
        let below = Config { command: vec!["old".into()], ..Config::default() };
        let below = Evaluated::of_image(below, Declared::default());
        assert!(recipe.evaluate(0, &below).unwrap().config.command.is_empty());
    }

    #[test]
    fn programs_are_run_as_they_are_written() {
        let text = "FROM scratch\nARG T=1\nENV PATH=/x\nSHELL [\"/bin/bash\", \"-c\"]\nRUN echo $T \\\n && b\nRUN [\"a\", \"b c\"]\nRUN <<EOF\nset -e\nfoo\nEOF\nRUN <<EOF\n#!/usr/bin/env python3\nprint()\nEOF\nRUN cat <<EOF >/f\nx\nEOF\nUSER 5\nWORKDIR w\nRUN --mount=type=cache,target=/c,id=i --network=none d\n";
        let steps = only(text).steps;
        let runs: Vec<&Work> = steps.iter().map(|s| &s.work).filter(|w| matches!(w, Work::Run { .. })).collect();
        let argv = |at: usize| match runs[at] {
            Work::Run { argv, .. } => argv.join("|"),
            _ => panic!("no program"),
        };
        assert_eq!(argv(0), "/bin/bash|-c|echo $T  && b");
        assert_eq!(argv(1), "a|b c");
        assert_eq!(argv(2), "/bin/bash|-c|set -e\nfoo\n");
        assert_eq!(argv(3), format!("/usr/bin/env|python3|{SCRIPT}"));
        assert_eq!(argv(4), "/bin/bash|-c|cat <<EOF >/f\nx\nEOF");
        let Work::Run { env, cwd, user, caches, network, .. } = runs[5] else { panic!("no program") };
        assert_eq!(
            (env.as_slice(), cwd.as_str(), user.as_str()),
            (&["PATH=/x".to_owned(), "T=1".into()][..], "/w", "5")
        );
        assert_eq!((caches[0].id.as_str(), caches[0].target.as_str(), *network), ("i", "/c", false));
    }

    #[test]
    fn copies_know_their_places() {
        let text = "FROM scratch\nARG n=x\nWORKDIR /w\nCOPY --chown=1:2 --chmod=755 a b/\nADD a.tar /\nCOPY [\"a b\", \".\"]\nCOPY <<EOF <<'E' /d/\n$n\nEOF\n$n\nE\n";
        let copies: Vec<Copy> = only(text)
            .steps
            .into_iter()
            .filter_map(|s| match s.work {
                Work::Copy(copy) => Some(copy),
                _ => None,
            })
            .collect();
        assert_eq!(
            (copies[0].to.as_str(), copies[0].owner.as_deref(), copies[0].mode),
            ("/w/b/", Some("1:2"), Some(0o755))
        );
        assert!(copies[1].unpack && copies[1].to == "/");
        assert_eq!((copies[2].to.as_str(), copies[2].sources.as_slice()), ("/w/", &["a b".to_owned()][..]));
        assert_eq!(copies[3].documents, [("EOF".into(), "x\n".into()), ("E".into(), "$n\n".into())]);
    }

    #[test]
    fn what_is_wrong_has_a_line() {
        assert_eq!(problems("FROM a\nRUM x\nFOO\n").iter().map(|p| p.0).collect::<Vec<_>>(), [2, 3]);
        for (line, wrong) in [
            (2, "FROM a\nRUN --mount=type=secret,id=x y"),
            (2, "FROM a\nRUN --mount=type=cache y"),
            (2, "FROM a\nRUN --security=insecure y"),
            (2, "FROM a\nRUN --network=host y"),
            (2, "FROM a\nRUN"),
            (2, "FROM a\nCOPY a"),
            (2, "FROM a\nCOPY a b c"),
            (2, "FROM a\nCOPY --parents a b/"),
            (2, "FROM a\nCOPY --from=3 a b/"),
            (3, "FROM a AS x\n\nCOPY --from=x a b/"),
            (2, "FROM a\nADD https://x/y /z"),
            (2, "FROM a\nADD --checksum=x y /z"),
            (2, "FROM a\nONBUILD RUN x"),
            (2, "FROM a\nENV x"),
            (2, "FROM a\nENV a=b c"),
            (2, "FROM a\nEXPOSE x"),
            (2, "FROM a\nEXPOSE 80/x"),
            (2, "FROM a\nSHELL bash"),
            (2, "FROM a\nWORKDIR ${x#y}"),
            (2, "FROM a\nUSER ${none}"),
            (2, "FROM a\nHEALTHCHECK --interval=x CMD y"),
            (2, "FROM a\nHEALTHCHECK x"),
            (2, "FROM a\nCOPY --chmod=u+x a b"),
            (1, "FROM --platform=windows/amd64 a"),
            (1, "FROM --other a"),
            (1, "FROM a b"),
            (1, "FROM $x"),
            (2, "FROM a AS x\nFROM b AS X"),
            (1, "RUN x"),
            (0, ""),
            (0, "ARG x"),
        ] {
            assert_eq!(problems(wrong)[0].0, line, "{wrong}");
        }
    }
}
