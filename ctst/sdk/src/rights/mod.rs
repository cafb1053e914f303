//! What the processes of a container may do: capabilities, system calls, landlock. Everything here is checked before a plan is
//! shown; the helper checks again what counts.

use containust_lang::model::{Component, Filter, Landlock, Scope};
use containust_policy::capabilities::{self, Given};
use containust_shared::protocol;
use landlock::{ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr};
use rustix::system::uname;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

mod profile;

/// Which system calls a container can make.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Seccomp {
    pub(crate) filter: Filter,
    pub(crate) profile: Option<Profile>,
}

/// An author's filter on top of the built-in one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Profile {
    /// As the file has it.
    pub(crate) path: String,
    /// SHA-256 of the file.
    pub(crate) sha256: String,
    /// Eight bytes for each instruction, as hexadecimal digits: code, jumps, operand.
    pub(crate) program: String,
}

impl Profile {
    fn new(path: &str, sha256: String, program: &[protocol::Instruction]) -> Self {
        let digits = |i: &protocol::Instruction| format!("{:04x}{:02x}{:02x}{:08x}", i.code, i.jt, i.jf, i.k);
        Self { path: path.to_owned(), sha256, program: program.iter().map(digits).collect() }
    }

    /// None where a record was tampered with.
    pub(crate) fn instructions(&self) -> Option<Vec<protocol::Instruction>> {
        let mut left = self.program.as_str();
        let mut program = Vec::with_capacity(left.len() / 16);
        while !left.is_empty() {
            let (this, rest) = left.split_at_checked(16)?;
            let number = |from, to| this.get(from..to).and_then(|digits| u32::from_str_radix(digits, 16).ok());
            program.push(protocol::Instruction {
                code: number(0, 4)?.try_into().ok()?,
                jt: number(4, 6)?.try_into().ok()?,
                jf: number(6, 8)?.try_into().ok()?,
                k: number(8, 16)?,
            });
            left = rest;
        }
        Some(program)
    }
}

/// What root has of capabilities, as a mask, or the problem.
pub(crate) fn mask(add: &[String], drop: &[String]) -> Result<u64, String> {
    let mut mask = capabilities::DEFAULT;
    for name in drop {
        mask &= match (name.as_str(), capabilities::find(name)) {
            ("ALL", _) => 0,
            (_, Some(capability)) => !capability.bit(),
            (_, None) => return Err(format!("drop the capability {}: there is none", name.escape_debug())),
        };
    }
    for name in add {
        let Some(capability) = capabilities::find(name) else {
            return Err(format!("add the capability {}: there is none", name.escape_debug()));
        };
        if capability.given == Given::Never {
            let (name, reason) = (capability.name, capability.reason);
            return Err(format!("add the capability {name}: no container gets it, because {reason}"));
        }
        mask |= capability.bit();
    }
    Ok(mask)
}

/// Capabilities that root has beyond the usual ones.
pub(crate) fn beyond(add: &[String]) -> impl Iterator<Item = &'static str> {
    let known = add.iter().filter_map(|name| capabilities::find(name));
    known.filter(|capability| capability.given != Given::Always).map(|capability| capability.name)
}

/// Reads a file that a component names.
pub(crate) type Reading<'a> = dyn Fn(&str) -> std::result::Result<Vec<u8>, String> + 'a;

/// The filter and the profile of a component, compiled for the capabilities that it has.
pub(crate) fn seccomp(read: &Reading<'_>, component: &Component) -> Result<Seccomp> {
    let invalid = |problem| Error::Invalid { component: component.name.clone(), problem };
    let mask = mask(&component.cap_add, &component.cap_drop).map_err(invalid)?;
    let profile = match &component.seccomp.profile {
        None => None,
        Some(path) => {
            let problem = |problem| invalid(format!("use the seccomp profile {}: {problem}", path.escape_debug()));
            let bytes = read(path).map_err(problem)?;
            let program = profile::compile(&bytes, mask, &profile::Host::this()).map_err(problem)?;
            let sha256 = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
            Some(Profile::new(path, sha256, &program))
        }
    };
    Ok(Seccomp { filter: component.seccomp.filter, profile })
}

pub(crate) fn filter(filter: Filter) -> protocol::Filter {
    match filter {
        Filter::Default => protocol::Filter::Default,
        Filter::Strict => protocol::Filter::Strict,
        Filter::Compat => protocol::Filter::Compat,
    }
}

/// As the helper takes it. A path in several lists has the rights of all.
pub(crate) fn landlock(wanted: &Landlock) -> protocol::Landlock {
    let rights = [(&wanted.read, false, false), (&wanted.write, true, false), (&wanted.execute, false, true)];
    let mut files: Option<Vec<protocol::Beneath>> = None;
    for (paths, write, execute) in rights {
        let Some(paths) = paths else { continue };
        let files = files.get_or_insert_default();
        let beneath = |path: &String| protocol::Beneath { path: path.clone().into_bytes(), write, execute };
        files.extend(paths.iter().map(beneath));
    }
    protocol::Landlock {
        files,
        bind: wanted.bind.clone(),
        connect: wanted.connect.clone(),
        abstract_sockets: wanted.scope.contains(&Scope::AbstractSockets),
        signals: wanted.scope.contains(&Scope::Signals),
    }
}

/// What stands in the way of a component's rights on this host; found before anything is started.
pub(crate) fn problem(component: &Component) -> Option<String> {
    if let Err(problem) = mask(&component.cap_add, &component.cap_drop) {
        return Some(problem);
    }
    let landlock = component.landlock.as_ref()?;
    let files = [&landlock.read, &landlock.write, &landlock.execute];
    let paths = files.into_iter().flatten().flatten();
    if let Some(path) = paths.clone().find(|path| !path.starts_with('/') || path.contains('\0')) {
        return Some(format!("restrict it to {} by landlock: give an absolute path", path.escape_debug()));
    }
    // Made and thrown away: nothing is restricted by it.
    let hard = || Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
    let has = |ruleset: Result<Ruleset, landlock::RulesetError>| ruleset.and_then(Ruleset::create).is_ok();
    let ports = landlock.bind.is_some() || landlock.connect.is_some();
    let missing = [
        (
            files.iter().any(|list| list.is_some()),
            "files",
            "6.2",
            has(hard().handle_access(AccessFs::from_all(ABI::V3))),
        ),
        (ports, "TCP ports", "6.7", has(hard().handle_access(AccessNet::from_all(ABI::V4)))),
        (
            !landlock.scope.is_empty(),
            "abstract sockets and signals",
            "6.12",
            has(hard().scope(landlock::Scope::from_all(ABI::V6))),
        ),
    ];
    let (_, what, since, _) = missing.into_iter().find(|(wanted, .., has)| *wanted && !has)?;
    Some(format!(
        "restrict its {what} by landlock: this is Linux {}, and it takes {since} or newer with lsm=landlock,... on its command line",
        uname().release().to_string_lossy()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn capabilities_are_taken_and_given() {
        let told = |add: &[&str], drop: &[&str]| {
            mask(&names(add), &names(drop)).map(|mask| capabilities::names(mask).collect::<Vec<_>>().join(" "))
        };
        assert_eq!(mask(&[], &[]), Ok(capabilities::DEFAULT));
        assert_eq!(told(&[], &["ALL"]).unwrap(), "");
        assert_eq!(told(&["NET_RAW", "CHOWN"], &["ALL"]).unwrap(), "CHOWN NET_RAW");
        assert_eq!(told(&["NET_RAW"], &["CHOWN", "SETFCAP"]).unwrap().split(' ').count(), 10);
        for (name, why) in [("SYS_ADMIN", "mounts"), ("NET_ADMIN", "address"), ("WHAT", "there is none")] {
            let problem = told(&[name], &[]).unwrap_err();
            assert!(problem.contains(name) && problem.contains(why), "{problem}");
        }
        assert!(told(&[], &["WHAT"]).is_err());
        assert_eq!(beyond(&names(&["CHOWN", "NET_RAW"])).collect::<Vec<_>>(), ["NET_RAW"]);
    }

    #[test]
    fn a_program_survives_its_record() {
        let op = |code, jt, jf, k| protocol::Instruction { code, jt, jf, k };
        let program = [op(0x20, 0, 0, 4), op(0x15, 255, 1, 0xc000_003e), op(6, 0, 0, 0x7fff_0000)];
        let mut profile = Profile::new("./p", String::new(), &program);
        assert_eq!(profile.instructions().as_deref(), Some(program.as_slice()));
        for broken in ["0", "00200000000000zz", "ääääääääääääääää", "+0200000+0000004"] {
            profile.program = broken.to_owned();
            assert!(profile.instructions().is_none_or(|program| program.len() == 1), "{broken}");
        }
    }
}
