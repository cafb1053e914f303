//! The fuzzer's corpus of this crate (`fuzz/README.md`).

#[path = "../../../fuzz/checks/replay.rs"]
mod replay;
#[path = "../../../fuzz/checks/unpack.rs"]
mod unpack;

#[test]
fn unpack() {
    replay::replay("fuzz/corpus/unpack", 8, unpack::run);
}
