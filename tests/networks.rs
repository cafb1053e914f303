//! Several networks of a project: who reaches whom, seen from inside, and what a change of them does.
#![forbid(unsafe_code)]

use std::process::Command;

use containust_tests::{Caller, Project, eventually, finish, free_port, get};

const SERVE: &str = r#"image = "file://ROOTFS" command = ["/bin/ctst-probe", "serve", "80"] port = 80"#;

/// Who answers under a name, if anybody does.
fn ask(project: &Project, from: &str, name: &str) -> String {
    let url = format!("http://{name}/");
    project.ctst(["exec", from, "timeout", "3", "wget", "-q", "-O-", &url]).stdout.trim().to_owned()
}

/// What comes of a connection: `reached`, `refused` by somebody who is there, or `silent`.
fn reach(project: &Project, from: &str, address: &str, interface: Option<&str>) -> String {
    let mut args = vec!["exec", from, "/bin/ctst-probe", "reach", address];
    args.extend(interface);
    let said = project.ctst(args).ok().stdout;
    said.split([':', '\n']).next().unwrap_or_default().to_owned()
}

/// The addresses that `ps` shows, by network.
fn address(project: &Project, component: &str, network: &str) -> String {
    let row = project.status(component);
    let pairs = row["addresses"].as_array().cloned().unwrap_or_default();
    let found = pairs.iter().find(|pair| pair[0] == network).and_then(|pair| pair[1].as_str());
    found.unwrap_or_else(|| panic!("{component} is not on {network}: {row}")).to_owned()
}

fn cat(project: &Project, component: &str, file: &str) -> String {
    project.ctst(["exec", component, "cat", file]).ok().stdout.trim().to_owned()
}

/// The IPv6 address that `ps` shows.
fn address6(project: &Project, component: &str, network: &str) -> String {
    let row = project.status(component);
    let pairs = row["addresses"].as_array().cloned().unwrap_or_default();
    let all = pairs.iter().filter(|pair| pair[0] == network).filter_map(|pair| pair[1].as_str());
    let found = all.into_iter().find(|ip| ip.contains(':'));
    found.unwrap_or_else(|| panic!("{component} has no IPv6 on {network}: {row}")).to_owned()
}

/// On two networks with IPv6, of which one has a chosen prefix, and on one without.
const SIX: &str = r#"
NETWORK front { ipv6 = true }
NETWORK back { subnet = ["10.77.4.0/24", "fd12:3456:789a::/64"] }
COMPONENT web { SERVE network = "front" replicas = 2 }
COMPONENT both { SERVE networks = ["front", "back"] }
COMPONENT db { SERVE networks { back { address = ["10.77.4.9", "fd12:3456:789a::9"] } } healthcheck { http = "/" } }
COMPONENT mixed { SERVE networks = ["bridge", "front"] }
COMPONENT plain { SERVE }
COMPONENT glibc {
  image   = ["host:///bin/busybox", "host:///usr/bin/getent"]
  command = ["sleep", "1000000"]
  network = "front"
}
EXPOSE 127.0.0.1:PORT -> db:80
"#;

#[test]
fn ipv6_is_on_networks_that_want_it_and_leads_nowhere_else() {
    Caller::at_once(Caller::all().into_iter().chain(Caller::strict()).collect(), |caller| {
        const SERVE6: &str = r#"image = "file://ROOTFS" command = ["/bin/ctst-probe", "serve", "80", "::"] port = 80"#;
        let port = free_port();
        let project = Project::new(caller, &SIX.replace("SERVE", SERVE6).replace("PORT", &port.to_string()));
        project.up();
        for name in ["web-1", "web-2", "both", "db", "mixed"] {
            eventually("it listens", || project.logs(name).contains("listening"));
        }
        let web = ["web-1", "web-2"].map(|name| address6(&project, name, "front"));
        let (front, back) = (address6(&project, "both", "front"), address6(&project, "both", "back"));
        assert!(web.iter().chain([&front]).all(|ip| ip.starts_with("fd")), "{web:?} {front}");
        assert!(back.starts_with("fd12:3456:789a::"), "{back}");
        assert_eq!(address6(&project, "db", "back"), "fd12:3456:789a::9");
        let at = |ip: &str| format!("[{ip}]:80");
        assert_eq!(reach(&project, "web-1", &at(&web[1]), None), "reached");
        assert_eq!(reach(&project, "web-1", &at(&front), None), "reached");
        assert_eq!(reach(&project, "db", &at(&back), None), "reached");
        assert_eq!(reach(&project, "both", &at("fd12:3456:789a::9"), Some("eth1")), "reached");
        // Not over another network, as if everything were on the link, nor anywhere else.
        for (from, target) in [
            ("web-1", at("fd12:3456:789a::9")),
            ("web-1", at(&back)),
            ("db", at(&front)),
            ("db", at(&web[0])),
            ("both", at("fd12:3456:789a::9")),
            ("web-1", at("2001:db8::1")),
            ("plain", at(&web[0])),
        ] {
            for interface in [None, Some("eth0")] {
                if from == "both" && interface.is_none() {
                    continue;
                }
                assert_eq!(reach(&project, from, &target, interface), "silent", "{from} {target} over {interface:?}");
            }
        }
        // An address is there at once (no flag but "permanent" and "not asked for"), and no other, a link-local one neither.
        for name in ["web-1", "both", "db"] {
            let shown = cat(&project, name, "/proc/net/if_inet6");
            let own: Vec<Vec<&str>> = shown.lines().map(|line| line.split_whitespace().collect()).collect();
            let own: Vec<_> = own.iter().filter(|fields| fields[5] != "lo").collect();
            assert_eq!(own.len(), if name == "both" { 2 } else { 1 }, "{shown}");
            assert!(own.iter().all(|fields| fields[0].starts_with("fd") && fields[4] == "82"), "{shown}");
        }
        // Neighbours tell nobody of other addresses and ways; and what is on no network with IPv6 tells nobody anything.
        for setting in ["accept_ra", "accept_redirects", "forwarding"] {
            assert_eq!(cat(&project, "both", &format!("/proc/sys/net/ipv6/conf/eth1/{setting}")), "0", "{setting}");
        }
        for name in ["mixed", "plain"] {
            assert_eq!(cat(&project, name, "/proc/sys/net/ipv6/conf/eth0/disable_ipv6"), "1", "{name}");
        }
        assert_eq!(reach(&project, "mixed", &at(&front), None), "reached");
        // Nobody sends in the name of another, to one or to all.
        for to in [at(&front), "[ff02::1%10000]:9".to_owned()] {
            let forge = |from: &str| project.ctst(["exec", "web-1", "/bin/ctst-probe", "forge", from, &to]).ok().stdout;
            assert_eq!(forge(&web[0]), "sent\n", "{to}");
            for other in [&web[1], "fd12:3456:789a::9", "2001:db8::1"] {
                assert!(forge(other).starts_with("refused: "), "{other} to {to}: {}", forge(other));
            }
        }
        // Names, of both kinds, by the C library; and where there are none, none.
        let getent = |words: &[&str]| project.ctst([&["exec", "glibc", "getent"], words].concat()).stdout;
        for _ in 0..2 {
            let told = getent(&["ahostsv6", "web"]);
            assert!(web.iter().all(|ip| told.contains(&**ip)) && !told.contains("::ffff:"), "{told}");
        }
        let firsts: Vec<String> = (0..4)
            .map(|_| getent(&["hosts", "web"]).split_whitespace().next().unwrap_or_default().to_owned())
            .collect();
        assert!(web.iter().all(|ip| firsts.contains(ip)), "each in its turn: {firsts:?}");
        assert!(getent(&["hosts", &web[1]]).contains("web-2"), "{}", getent(&["hosts", &web[1]]));
        assert!(!getent(&["ahosts", "db"]).contains("fd12"));
        // By what people look at.
        let ps = project.ctst(["ps"]).ok().stdout;
        assert!(ps.contains(&front) && ps.contains(&back), "{ps}");
        let shown = project.ctst(["inspect", "db"]).ok().stdout;
        assert!(shown.contains("back fd12:3456:789a::9"), "{shown}");
        assert!(cat(&project, "both", "/etc/hosts").contains(&front));
        let checks = project.ctst(["doctor", "net"]).ok().stdout;
        assert!(checks.contains("knows"), "{checks}");
        // From the host, and by the health check.
        assert!(get(port).ends_with("hello from db\n"), "{}", get(port));
        eventually("it is healthy", || project.status("db")["health"] == "healthy");
        if caller.name == "root" {
            let (pid, _) = project.parts().into_iter().find(|(_, part)| *part == "S").expect("S runs");
            let mut command = Command::new("nsenter");
            command.args(["-t", &pid.to_string(), "-n", "cat", "/proc/net/if_inet6"]);
            assert_eq!(finish(&mut command).ok().stdout, "");
        }
        // Whoever is started again has the same.
        project.ctst(["restart", "both"]).ok();
        assert_eq!(address6(&project, "both", "front"), front);
        assert_eq!(address6(&project, "both", "back"), back);
        project.stop();
        project.up();
        assert_eq!(address6(&project, "web-1", "front"), web[0], "the same in every run");
        project.stop();
    });
}

/// As a kernel with `ipv6.disable=1` shows it.
#[test]
fn a_kernel_without_ipv6_is_told_of() {
    let Some(caller) = Caller::root() else { return };
    let text = format!("NETWORK six {{ ipv6 = true }}\nCOMPONENT web {{ {SERVE} network = \"six\" }}\n");
    let project = Project::new(&caller, &text);
    let without = |args: &[&str]| {
        let ctst = project.command(args);
        let mut command = Command::new("unshare");
        command.envs(ctst.get_envs().filter_map(|(name, value)| Some((name, value?)))).current_dir(project.folder());
        command.args(["--mount", "sh", "-c", "mount -t tmpfs none /proc/sys/net && exec \"$@\"", "sh"]);
        finish(command.arg(ctst.get_program()).args(ctst.get_args()))
    };
    without(&["plan"]).fails(125, &["web", "the network six", "this kernel has no IPv6", "ipv6.disable=1"]);
    without(&["run", "-d", "--yes"]).fails(125, &["this kernel has no IPv6"]);
    project.write("stack.ctst", &text.replace("ipv6 = true", "ipv6 = false"));
    without(&["plan"]).ok();
    project.assert_nothing_left();
}

#[test]
fn only_those_on_a_common_network_reach_each_other() {
    Caller::at_once(Caller::all().into_iter().chain(Caller::strict()).collect(), |caller| {
        let port = free_port();
        let text = format!(
            r#"
NETWORK front
NETWORK back {{ internal = true, subnet = "10.77.3.0/24" }}
COMPONENT web {{ {SERVE} network = "front" }}
COMPONENT both {{ {SERVE} networks = ["front", "back"] }}
COMPONENT db {{ {SERVE} networks {{ back {{ aliases = ["store", "cache.local"], address = "10.77.3.9" }} }} healthcheck {{ http = "/" }} }}
COMPONENT plain {{ {SERVE} }}
CONNECT web -> both
CONNECT both -> db
EXPOSE 127.0.0.1:{port} -> db:80
"#
        );
        let project = Project::new(caller, &text);
        project.up();
        for name in ["both", "db", "web", "plain"] {
            eventually("it listens", || project.logs(name).contains("listening"));
        }
        // By name: everybody on a common network, by every name, and nobody else.
        for (from, name, answer) in [
            ("web", "both", "both"),
            ("both", "web", "web"),
            ("both", "db", "db"),
            ("both", "store", "db"),
            ("db", "cache.local", "db"),
            ("db", "both", "both"),
        ] {
            assert_eq!(ask(&project, from, name), format!("hello from {answer}"), "{from} asks {name}");
        }
        for (from, name) in
            [("web", "db"), ("web", "store"), ("db", "web"), ("plain", "web"), ("plain", "db"), ("both", "plain")]
        {
            assert_eq!(ask(&project, from, name), "", "{from} asks {name}");
        }
        let (front, back) = (address(&project, "both", "front"), address(&project, "both", "back"));
        let (web, plain) = (address(&project, "web", "front"), address(&project, "plain", "bridge"));
        assert_eq!(address(&project, "db", "back"), "10.77.3.9");
        let bridge = |address: &str| format!("{}.1:9", address.rsplit_once('.').expect("an address").0);
        let http = |address: &str| format!("{address}:80");
        // By address. The first ones show that what follows would be seen.
        assert_eq!(reach(&project, "web", &http(&front), None), "reached");
        assert_eq!(reach(&project, "web", &http(&front), Some("eth0")), "reached");
        assert_eq!(reach(&project, "both", "10.77.3.9:80", Some("eth1")), "reached");
        assert_eq!(reach(&project, "web", &bridge(&front), None), "refused");
        assert_eq!(reach(&project, "both", &bridge(&back), None), "refused");
        // The project's end has the addresses of all its bridges, and hears on none what is for another's.
        for other in [&back, &plain] {
            for port in [9, 53] {
                let target = bridge(other).replace(":9", &format!(":{port}"));
                for interface in [None, Some("eth0")] {
                    let result = reach(&project, "web", &target, interface);
                    assert!(["silent", "refused"].contains(&&*result), "{target} over {interface:?}: {result}");
                }
            }
        }
        for target in ["10.77.3.9:80", &http(&back), &http(&plain)] {
            // Without a route, and as if everything were on the link: neither the project's own end nor a container on
            // both answers there for what it has on the other network.
            for interface in [None, Some("eth0")] {
                assert_eq!(reach(&project, "web", target, interface), "silent", "{target} over {interface:?}");
            }
        }
        for target in [&http(&web), &http(&front)] {
            assert_eq!(reach(&project, "db", target, Some("eth0")), "silent", "{target}");
        }
        // Over a wrong interface of its own no more than over none.
        assert_eq!(reach(&project, "both", "10.77.3.9:80", Some("eth0")), "silent");
        // Nobody forwards, whatever the host does.
        assert_eq!(cat(&project, "both", "/proc/sys/net/ipv4/ip_forward"), "0");
        if caller.name == "root" {
            let (pid, _) = project.parts().into_iter().find(|(_, part)| *part == "S").expect("S runs");
            let shown = |file: &str| {
                let mut command = Command::new("nsenter");
                command.args(["-t", &pid.to_string(), "-n", "cat", file]);
                finish(&mut command).ok().stdout.trim().to_owned()
            };
            assert_eq!(shown("/proc/sys/net/ipv4/ip_forward"), "0");
            assert_eq!(shown("/proc/sys/net/ipv4/conf/all/arp_ignore"), "1");
        }
        // Nor has anybody IPv6 who does not ask for it, not even addresses of the link.
        for name in ["both", "web"] {
            let shown = cat(&project, name, "/proc/net/if_inet6");
            assert!(shown.lines().all(|line| line.ends_with(" lo")), "{shown}");
        }
        let mut interfaces = project.report(&[], "both").interfaces;
        interfaces.sort();
        assert_eq!(interfaces, ["eth0", "eth1", "lo"]);
        // From the host, and by the health check, on whatever network it is.
        assert!(get(port).ends_with("hello from db\n"), "{}", get(port));
        eventually("it is healthy", || project.status("db")["health"] == "healthy");
        let shown = project.ctst(["inspect", "both"]).ok().stdout;
        assert!(shown.contains(&format!("addresses: front {front}, back {back}")), "{shown}");
        assert!(project.ctst(["ps"]).ok().stdout.contains(&format!("{front}, {back}")), "{shown}");
        project.stop();
    });
}

#[test]
fn addresses_and_aliases_stay_over_restarts() {
    let text = format!(
        r#"
NETWORK back {{ subnet = "10.77.4.0/29" }}
COMPONENT one {{ {SERVE} network = "back" }}
COMPONENT fixed {{ {SERVE} restart = "always" networks {{ back {{ address = "10.77.4.2" }} }} }}
COMPONENT app {{ {SERVE} replicas = 2 networks {{ back {{ aliases = ["service"] }} bridge {{ }} }} }}
CONNECT one -> fixed, app
"#
    );
    let project = Project::new(&Caller::ordinary(), &text);
    project.up();
    for name in ["app-1", "app-2", "fixed"] {
        eventually("it answers", || ask(&project, "one", name) == format!("hello from {name}"));
    }
    assert!(ask(&project, "one", "service").starts_with("hello from app-"));
    assert!(ask(&project, "app-1", "app").starts_with("hello from app-"));
    let all = |project: &Project| ["one", "fixed", "app-1", "app-2"].map(|name| address(project, name, "back"));
    let before = all(&project);
    // The chosen address is nobody else's, although the others started first or last.
    assert_eq!(before[1], "10.77.4.2");
    project.ctst(["restart"]).ok();
    assert_eq!(all(&project), before);
    project.ctst(["exec", "fixed", "kill", "-9", "2"]);
    eventually("it was restarted", || project.status("fixed")["restarts"] == 1);
    eventually("it answers again", || ask(&project, "one", "fixed") == "hello from fixed");
    assert_eq!(address(&project, "fixed", "back"), "10.77.4.2");
    project.ctst(["stop"]).ok();
    project.up();
    assert_eq!(address(&project, "fixed", "back"), "10.77.4.2");
    project.stop();
}

#[test]
fn a_changed_network_makes_its_components_anew_and_no_others() {
    let text = |back: &str, app: &str| {
        format!(
            r#"
NETWORK front
NETWORK back {{ {back} }}
COMPONENT web {{ {SERVE} network = "front" }}
COMPONENT app {{ {SERVE} networks = [{app}] }}
COMPONENT db {{ {SERVE} network = "back" }}
"#
        )
    };
    let project = Project::new(&Caller::ordinary(), &text("", r#""back""#));
    project.up();
    let pid = |name: &str| project.status(name)["pid"].as_u64().expect("a pid");
    let before = pid("web");
    assert_eq!(ask(&project, "web", "db"), "");
    assert_eq!(project.ctst(["plan", "--detailed-exitcode"]).code, 0);

    project.write("stack.ctst", &text(r#"subnet = "10.77.5.0/24""#, r#""front", "back""#));
    let plan = project.ctst(["plan"]).ok().stdout;
    for words in ["networks back", "networks front added", "10.77.5.0/24"] {
        assert!(plan.contains(words), "no {words} in {plan}");
    }
    project.up();
    assert_eq!(pid("web"), before);
    assert!(address(&project, "db", "back").starts_with("10.77.5."));
    eventually("web reaches app", || ask(&project, "web", "app") == "hello from app");
    eventually("app reaches db", || ask(&project, "app", "db") == "hello from db");
    assert_eq!(ask(&project, "web", "db"), "");

    // What overlaps a network that is there is refused before anything is touched.
    project.write("stack.ctst", &text(r#"subnet = "10.77.0.0/16""#, r#""front", "back""#));
    let refused = project.ctst(["run", "-d"]).fails(125, &["10.77.0.0/16", "10.77.5.0/24", "ctst stop"]);
    assert_eq!(pid("web"), before, "{refused}");
    project.ctst(["stop"]).ok();
    project.up();
    assert!(address(&project, "db", "back").starts_with("10.77."));

    // Two files mean one network of a name.
    let other =
        format!("NETWORK back {{ subnet = \"10.78.0.0/16\" }}\nCOMPONENT other {{ {SERVE} network = \"back\" }}\n");
    project.write("other.ctst", &other);
    project.ctst(["-f", "other.ctst", "run", "-d"]).fails(125, &["back", "10.78.0.0/16", "10.77.0.0/16"]);
    project.write("other.ctst", &other.replace("10.78", "10.77"));
    project.ctst(["-f", "other.ctst", "run", "-d", "--wait"]).ok();
    eventually("other reaches db", || ask(&project, "other", "db") == "hello from db");
    project.ctst(["-f", "other.ctst", "stop"]).ok();
    project.stop();
}

#[test]
fn an_author_can_have_his_container_forward() {
    let text = format!(
        r#"
COMPONENT router {{ {SERVE} networks = ["a", "b"] sysctls {{ "net.ipv4.ip_forward" = 1 }} }}
"#
    );
    let project = Project::new(&Caller::ordinary(), &text);
    project.up();
    assert_eq!(cat(&project, "router", "/proc/sys/net/ipv4/ip_forward"), "1");
    project.stop();
}
