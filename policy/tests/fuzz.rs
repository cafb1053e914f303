//! The fuzzer's corpora of this crate (`fuzz/README.md`).

#[path = "../../fuzz/checks/judge.rs"]
mod judge;
#[path = "../../fuzz/checks/policy_conf.rs"]
mod policy_conf;
#[path = "../../fuzz/checks/replay.rs"]
mod replay;
#[path = "../../fuzz/checks/subid.rs"]
mod subid;

#[test]
fn judge() {
    replay::replay("fuzz/corpus/judge", 64, judge::run);
}

#[test]
fn policy_conf() {
    replay::replay("fuzz/corpus/policy_conf", 64, policy_conf::run);
}

#[test]
fn subid() {
    replay::replay("fuzz/corpus/subid", 64, subid::run);
}
