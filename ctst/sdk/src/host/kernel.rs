//! What a component asks of the kernel by name: resource limits and settings of its namespaces.

use containust_lang::model::Ulimit;
use containust_shared::names;
use containust_shared::protocol::Rlimit;
use rustix::process::{Resource, getrlimit};

use crate::host::ids::Ids;
use crate::spec::ContainerSpec;

/// `getrlimit(2)`: the name of `RLIMIT_*` in lower case.
fn resource(name: &str) -> Option<Resource> {
    Some(match name {
        "as" => Resource::As,
        "core" => Resource::Core,
        "cpu" => Resource::Cpu,
        "data" => Resource::Data,
        "fsize" => Resource::Fsize,
        "locks" => Resource::Locks,
        "memlock" => Resource::Memlock,
        "msgqueue" => Resource::Msgqueue,
        "nice" => Resource::Nice,
        "nofile" => Resource::Nofile,
        "nproc" => Resource::Nproc,
        "rss" => Resource::Rss,
        "rtprio" => Resource::Rtprio,
        "rttime" => Resource::Rttime,
        "sigpending" => Resource::Sigpending,
        "stack" => Resource::Stack,
        _ => return None,
    })
}

/// What stands in the way of what a component asks of the kernel, for this caller; found before anything is started.
pub(crate) fn problem(
    ulimits: &[Ulimit],
    sysctls: &[(String, String)],
    groups: &[String],
    ids: &Ids,
) -> Option<String> {
    for limit in ulimits {
        let name = &limit.name;
        let Some(resource) = resource(name) else {
            return Some(format!("set ulimit {}: there is no such limit", name.escape_debug()));
        };
        if limit.soft > limit.hard {
            return Some(format!(
                "set ulimit {name}: the soft limit {} is above the hard one {}",
                limit.soft, limit.hard
            ));
        }
        // Nobody who is not root of the host raises a hard limit.
        let own = getrlimit(resource).maximum.unwrap_or(u64::MAX);
        if limit.hard > own {
            let wanted = if limit.hard == u64::MAX { "unlimited".to_owned() } else { limit.hard.to_string() };
            return Some(format!(
                "set ulimit {name} to {wanted}: that of ctst is {own}; lower it, or raise your session's (limits.conf(5))"
            ));
        }
    }
    for (name, value) in sysctls {
        if !names::is_namespaced_sysctl(name.as_bytes()) {
            let name = name.escape_debug();
            return Some(format!(
                "set {name}: only net.*, fs.mqueue.* and the kernel settings of System V IPC are a container's own"
            ));
        }
        if value.contains('\0') || value.is_empty() {
            return Some(format!("set {name}: give a value without zero bytes"));
        }
    }
    if let (Ids::Single(why), [group, ..]) = (ids, groups) {
        return Some(format!("give it the group {}: only one id is mapped, {why}", group.escape_debug()));
    }
    None
}

/// The limits as the helper takes them. Those of unknown names were refused by [`problem`].
pub(crate) fn rlimits(spec: &ContainerSpec) -> Vec<Rlimit> {
    let limit = |ulimit: &Ulimit| {
        let resource = resource(&ulimit.name)? as u32;
        Some(Rlimit { resource, soft: ulimit.soft, hard: ulimit.hard })
    };
    spec.ulimits.iter().filter_map(limit).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::ids::Range;
    use crate::record::tests::spec;

    fn check(spec: &ContainerSpec, ids: &Ids) -> Option<String> {
        problem(&spec.ulimits, &spec.sysctls, &spec.groups, ids)
    }

    fn refused(change: impl FnOnce(&mut ContainerSpec)) -> Option<String> {
        let mut spec = spec("web");
        change(&mut spec);
        check(&spec, &Ids::Root(Range { first: 1, count: 1 }))
    }

    fn ulimit(name: &str, soft: u64, hard: u64) -> Vec<Ulimit> {
        vec![Ulimit { name: name.into(), soft, hard }]
    }

    #[test]
    fn refuses_what_the_kernel_would() {
        assert_eq!(refused(|spec| spec.ulimits = ulimit("nofile", 10, 20)), None);
        assert_eq!(refused(|spec| spec.ulimits = ulimit("core", 0, 0)), None);
        for (name, soft, hard, why) in [
            ("nofile", 1, u64::MAX, "that of ctst is"),
            ("nofile", 2, 1, "above the hard"),
            ("files", 1, 1, "no such limit"),
        ] {
            let text = refused(|spec| spec.ulimits = ulimit(name, soft, hard)).unwrap_or_default();
            assert!(text.contains(why), "{name}: {text}");
        }
        assert_eq!(refused(|spec| spec.sysctls = vec![("net.core.somaxconn".into(), "5".into())]), None);
        assert!(refused(|spec| spec.sysctls = vec![("vm.swappiness".into(), "5".into())]).is_some());
        assert!(refused(|spec| spec.sysctls = vec![("net.core.somaxconn".into(), String::new())]).is_some());
        assert_eq!(refused(|spec| spec.groups = vec!["7".into()]), None);
        let mut single = spec("web");
        single.groups = vec!["video".into()];
        assert!(check(&single, &Ids::Single("why".into())).is_some_and(|text| text.contains("video")));
    }

    #[test]
    fn numbers_limits_as_the_kernel_does() {
        let mut spec = spec("web");
        spec.ulimits = [ulimit("nofile", 1, 2), ulimit("nproc", 3, 4), ulimit("as", 5, 6)].concat();
        let numbers: Vec<_> = rlimits(&spec).iter().map(|limit| limit.resource).collect();
        // asm-generic/resource.h, which x86 and arm take as it is.
        assert_eq!(numbers, [7, 6, 9]);
    }
}
