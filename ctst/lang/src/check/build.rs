//! `build`.

use crate::codes::Code;
use crate::model::{Build, BuildSteps, Image};

use super::Checker;
use super::image::Reference;
use super::inherit::Settings;
use super::resolve::Scope;

/// What belongs to a Dockerfile, and what to steps.
const OF_DOCKERFILE: [&str; 3] = ["dockerfile", "target", "args"];
const OF_STEPS: [&str; 8] = ["from", "env", "copy", "run", "workdir", "user", "entrypoint", "command"];

impl<'a> Checker<'a, '_> {
    /// What the component's image is built from.
    pub(super) fn build(&mut self, scope: Scope, settings: &Settings<'a>) -> Option<Image> {
        let build = settings.get("build")?;
        for other in ["image", "include"] {
            if let Some(key) = settings.key(other) {
                self.finding(Code::Exclusive, key, format!("`{other}` and `build` exclude each other"))
                    .label("the image is built")
                    .related(build.key, "here it says from what")
                    .help(format!("keep one of them; `UNSET {other}` if it is inherited"));
                return None;
            }
        }
        let block = self.block_of(settings, "build")?;
        let steps = OF_STEPS.iter().find_map(|name| Some((*name, block.key(name)?)));
        let dockerfile = OF_DOCKERFILE.iter().find_map(|name| Some((*name, block.key(name)?)));
        if let (Some((step, key)), Some((other, other_key))) = (steps, dockerfile) {
            self.finding(Code::Exclusive, key, format!("`{step}` and `{other}` exclude each other"))
                .label("for steps that stand here")
                .related(other_key, "for steps in a Dockerfile")
                .help("put all of it into the Dockerfile, or none");
            return None;
        }
        let context = match block.get("context") {
            Some(setting) => {
                let (text, parts) = self.filled_parts(setting.read(), scope)?;
                self.seen_from_here(&text, &parts, 0)
            }
            None => self.beside(".", self.file_of(build.value.origin)),
        };
        let text = |checker: &mut Self, name: &str| {
            let setting = block.get(name);
            setting
                .map(|setting| checker.filled(setting.read(), scope).map(|text| text.into_owned()).ok_or(()))
                .transpose()
        };
        let (Ok(dockerfile), Ok(target)) = (text(self, "dockerfile"), text(self, "target")) else { return None };
        let args = self.pairs(block, "args", scope);
        let steps = match steps {
            Some(_) => Some(Box::new(self.build_steps(block, scope)?)),
            None => None,
        };
        Some(Image::Build(Box::new(Build { context, dockerfile, target, args, steps })))
    }

    fn pairs(&mut self, block: &Settings<'a>, name: &str, scope: Scope) -> Vec<(String, String)> {
        if block.get(name).is_none() {
            return Vec::new();
        }
        let Some(pairs) = self.block_of(block, name) else { return Vec::new() };
        pairs.iter().filter_map(|entry| Some((entry.name.clone().into_owned(), self.entry(entry, scope)?))).collect()
    }

    fn build_steps(&mut self, block: &Settings<'a>, scope: Scope) -> Option<BuildSteps> {
        let Some(from) = block.get("from") else {
            let span = OF_STEPS.iter().find_map(|name| block.key(name)).unwrap_or_default();
            self.finding(Code::MissingProperty, span, "the build does not say what it begins with")
                .label("`from` is missing")
                .expected("`from`")
                .help("add `from = \"oci://docker.io/library/debian:12\"`, or for nothing at all use a Dockerfile with `FROM scratch`");
            return None;
        };
        let image = match self.reference(from.read(), scope)? {
            Reference::Whole(image) => image,
            Reference::Host { program, sha256 } => Image::Host { programs: vec![program], include: Vec::new(), sha256 },
        };
        let env = self.pairs(block, "env", scope);
        let mut copy = Vec::new();
        if let Some(setting) = block.get("copy") {
            for item in self.items(setting, scope)? {
                let text = self.filled((setting.property, item), scope)?;
                let Some((source, place)) = text.rsplit_once(':').filter(|(source, _)| !source.is_empty()) else {
                    let span = item.value.span;
                    let shown = self.shown(span);
                    self.finding(Code::BadPath, span, format!("{shown} does not say what is copied where"))
                        .label("no `source:/place`")
                        .expected("a path from the context on, a `:`, and an absolute path")
                        .help(format!("for example `{}`", setting.property.example));
                    return None;
                };
                let folder = if place.ends_with('/') && place != "/" { "/" } else { "" };
                let place = self.absolute(item.value.span, "copy", place)?;
                copy.push((source.to_owned(), format!("{place}{folder}")));
            }
        }
        let mut run = Vec::new();
        if let Some(setting) = block.get("run") {
            for item in self.items(setting, scope)? {
                run.push(self.filled((setting.property, item), scope)?.into_owned());
            }
        }
        let workdir = match block.get("workdir") {
            Some(setting) => {
                let path = self.filled(setting.read(), scope)?;
                Some(self.absolute(setting.value.value.span, "workdir", &path)?)
            }
            None => None,
        };
        let user = match block.get("user") {
            Some(setting) => Some(self.user(setting.read(), scope)?),
            None => None,
        };
        let entrypoint = match block.get("entrypoint") {
            Some(setting) => Some(self.arguments(setting, scope)?),
            None => None,
        };
        let command = match block.get("command") {
            Some(setting) => Some(self.arguments(setting, scope)?),
            None => None,
        };
        Some(BuildSteps { from: image, env, copy, run, workdir, user, entrypoint, command })
    }
}
