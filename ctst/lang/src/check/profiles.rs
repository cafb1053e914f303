//! Profiles: components that are deployed only if they are asked for.

use std::collections::HashSet;

use crate::Inputs;
use crate::codes::Code;
use crate::diagnostic::{Span, nearest, shown};

use super::inherit::Settings;
use super::resolve::Scope;
use super::{Checker, Role, some_of};

impl<'a> Checker<'a, '_> {
    /// Sets the components aside that have profiles of which none is active.
    pub(super) fn profiles(&mut self, inputs: &Inputs<'_>) {
        let mut known = HashSet::new();
        for index in 0..self.declared.len() {
            if self.report.full() {
                return;
            }
            let declared = &self.declared[index];
            if !declared.has_profiles || !declared.is_examined() {
                continue;
            }
            let names = self.examine(index, |checker, settings| checker.profiles_of(Scope::facts(index), settings));
            let active = names.is_empty() || names.iter().any(|name| inputs.profiles.contains(name));
            let declared = &mut self.declared.to_mut()[index];
            if declared.role == Role::Deployed {
                known.extend(names);
                if !active {
                    declared.role = Role::Inactive;
                }
            }
        }
        for name in inputs.profiles {
            if !known.contains(name) && !self.partial && !self.report.has_errors() {
                let mut names: Vec<&str> = known.iter().map(String::as_str).collect();
                names.sort_unstable();
                let meant = nearest(name, names.iter().copied()).map(|meant| format!("did you mean `{meant}`?"));
                let expected = if names.is_empty() {
                    "no profile: no component has one".to_owned()
                } else {
                    format!("one of {}", some_of(names.into_iter()))
                };
                self.finding(
                    Code::UnknownProfile,
                    Span::default(),
                    format!("no component has the profile {}", shown(name)),
                )
                .expected(expected)
                .help("leave it out, or give a component `profiles = [\"name\"]`")
                .help_if(meant);
            }
        }
    }

    /// Whether there is something to deploy at all.
    pub(super) fn something_is_active(&mut self) {
        let nothing = !self.declared.iter().any(|declared| declared.role == Role::Deployed);
        if nothing && !self.report.has_errors() {
            let message = "every component has a profile that is not active, or no replicas";
            self.finding(Code::NothingDeclared, Span::default(), message)
                .help("activate one of the profiles, or remove `profiles` from a component");
        }
    }

    fn profiles_of(&mut self, scope: Scope, settings: &Settings<'a>) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        let Some(setting) = settings.get("profiles") else { return names };
        let mut seen = HashSet::new();
        let good = |name: &str| {
            name.len() <= 63
                && name.starts_with(|c: char| c.is_ascii_alphanumeric())
                && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte))
        };
        for item in self.items(setting, scope).into_iter().flatten() {
            let Some(name) = self.filled((setting.property, item), scope) else { continue };
            let span = item.value.span;
            if !seen.insert(name.clone()) {
                self.duplicate(span, "profiles");
            } else if !good(&name) {
                let shown = self.shown(span);
                self.finding(Code::BadName, span, format!("{shown} is no name of a profile"))
                    .label("malformed")
                    .expected("a letter or digit, then letters, digits, `_`, `-` and `.`, 63 characters at most")
                    .help(format!("for example `{}`", setting.property.example));
            }
            names.push(name.into_owned());
        }
        names
    }

    /// A component that is set aside stands where one is needed that is deployed.
    pub(super) fn inactive_named(&mut self, span: Span, index: usize) {
        let (name, at) = (shown(&self.declared[index].name), self.declared[index].span);
        let (why, help) = match self.declared[index].replicas {
            Some(0) => ("it has 0 replicas", "give it at least one"),
            _ => (
                "none of its profiles is active",
                "activate its profile, or give the component that needs it the same `profiles`",
            ),
        };
        self.finding(Code::Inactive, span, format!("{name} is not deployed: {why}"))
            .label("is needed here")
            .related(at, "declared here")
            .help(format!("{help}; a CONNECT that can do without it ends in OPTIONAL"));
    }
}
