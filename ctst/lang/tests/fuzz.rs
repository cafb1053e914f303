//! The fuzzer's corpus of this crate (`fuzz/README.md`).

#[path = "../../../fuzz/checks/lang.rs"]
mod lang;
#[path = "../../../fuzz/checks/replay.rs"]
mod replay;

#[test]
fn lang() {
    for folder in ["valid", "invalid", "warnings"] {
        replay::replay(&format!("ctst/lang/tests/corpus/{folder}"), 16, lang::run);
    }
    replay::replay("fuzz/corpus/lang", 32, lang::run);
}
