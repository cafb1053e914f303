//! The fuzzer's corpora of this crate (`fuzz/README.md`).

#[path = "../../fuzz/checks/decode.rs"]
mod decode;
#[path = "../../fuzz/checks/replay.rs"]
mod replay;

#[test]
fn decode() {
    replay::replay("fuzz/corpus/decode", 64, decode::run);
}
