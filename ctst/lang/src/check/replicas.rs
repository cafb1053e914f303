//! `replicas`: several components that are alike.

use crate::codes::Code;
use crate::diagnostic::shown;
use crate::model::{self, Replica};

use super::declare::well_formed;
use super::inherit::Settings;
use super::resolve::Scope;
use super::{Checker, Role};

/// Most replicas of one component, and of all together.
const MOST_OF_ONE: u64 = 100;
const MOST: usize = 4096;

impl Checker<'_, '_> {
    /// Counts the replicas of each component. Without any it is not deployed.
    pub(super) fn replicas(&mut self) {
        let mut all = 0;
        for index in 0..self.declared.len() {
            if self.report.full() {
                return;
            }
            let declared = &self.declared[index];
            if !declared.has_replicas || !declared.is_examined() {
                continue;
            }
            let count = self.examine(index, |checker, settings| {
                let setting = settings.get("replicas")?;
                let count = checker.whole(setting.read(), 0..=MOST_OF_ONE, Scope::facts(index))?;
                Some((u32::try_from(count).ok()?, setting.value.value.span))
            });
            let Some((count, span)) = count else { continue };
            let declared = &mut self.declared.to_mut()[index];
            if declared.role != Role::Deployed {
                continue;
            }
            declared.replicas = Some(count);
            if count == 0 {
                declared.role = Role::Inactive;
                continue;
            }
            all += count as usize;
            if all > MOST {
                self.finding(Code::OutOfRange, span, format!("there are more than {MOST} replicas in all"))
                    .label("too many from here on")
                    .help("deploy fewer");
                return;
            }
            let last = format!("{}-{count}", self.declared[index].name);
            if well_formed(&self.declared[index].name) && !well_formed(&last) {
                let at = self.declared[index].span;
                self.finding(
                    Code::BadName,
                    at,
                    format!("the name is too long for that of a replica, {}", shown(&last)),
                )
                .label("too long")
                .expected("63 characters at most with the number")
                .help("give the component a shorter name");
            }
        }
    }

    /// What others call each of the components that a declaration becomes.
    pub(super) fn deployed_names(&self, index: usize) -> impl Iterator<Item = String> {
        let declared = &self.declared[index];
        let alone = declared.replicas.is_none().then(|| declared.name.clone().into_owned());
        let replicas = 1..=declared.replicas.unwrap_or(0);
        alone.into_iter().chain(replicas.map(|number| format!("{}-{number}", declared.name)))
    }

    /// Whether the replicas of a component are not too much.
    pub(super) fn can_be_copied(&mut self, index: usize, component: &model::Component) -> bool {
        let declared = &self.declared[index];
        let (Some(count), span) = (declared.replicas, declared.span) else { return true };
        let copies = (count as usize).saturating_sub(1);
        self.expands(span, copies.saturating_mul(weight(component)))
    }

    /// Adds a component, as many times as it has replicas.
    pub(super) fn deploy(&self, index: usize, component: model::Component, all: &mut Vec<model::Component>) {
        let Some(count) = self.declared[index].replicas else { return all.push(component) };
        for number in 1..=count {
            all.push(model::Component {
                name: format!("{}-{number}", component.name),
                hostname: format!("{}-{number}", component.hostname),
                replica: Some(Replica { of: component.name.clone(), number }),
                ..component.clone()
            });
        }
    }

    /// A replica is named by its number, so a host name of the author's would be that of all.
    pub(super) fn host_name_of_replicas(&mut self, index: usize, settings: &Settings<'_>) {
        if let (Some(at), Some(_)) = (settings.key("hostname"), self.declared[index].replicas) {
            let key = settings.key("replicas").unwrap_or(at);
            self.finding(Code::Exclusive, at, "replicas cannot all have one host name")
                .label("the same for each")
                .related(key, "replicas")
                .help("remove it: their host names are the component's name with their numbers, and that name means all of them");
        }
    }
}

/// About as many bytes as a component takes.
fn weight(component: &model::Component) -> usize {
    const EACH: usize = 64;
    let texts = |list: &[String]| list.iter().map(|text| EACH + text.len()).sum::<usize>();
    let parts = |list: &[model::Part]| {
        let length = list.iter().map(|part| match part {
            model::Part::Text(text) | model::Part::Secret(text) => EACH + text.len(),
        });
        length.sum::<usize>()
    };
    let pairs =
        |list: &[(String, String)]| list.iter().map(|(name, text)| EACH + name.len() + text.len()).sum::<usize>();
    texts(component.command.as_deref().unwrap_or_default())
        + texts(component.entrypoint.as_deref().unwrap_or_default())
        + pairs(&component.env)
        + pairs(&component.labels)
        + pairs(&component.sysctls)
        + component.dns.as_deref().map_or(0, |dns| texts(&dns.search) + texts(&dns.options))
        + component.secret_env.iter().map(|variable| EACH + parts(&variable.parts)).sum::<usize>()
        + component.configs.iter().map(|config| EACH + parts(&config.content)).sum::<usize>()
        + EACH
            * (component.after.len()
                + component.volumes.len()
                + component.tmpfs.len()
                + component.devices.len()
                + component.ports.len())
}
