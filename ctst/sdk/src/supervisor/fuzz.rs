//! The fuzzer's corpus of the name server (`fuzz/README.md`).

#[path = "../../../../fuzz/checks/zone.rs"]
mod check;
#[path = "../../../../fuzz/checks/replay.rs"]
mod replay;

use super::zone;

#[test]
fn zone() {
    replay::replay("fuzz/corpus/zone", 64, check::run);
}
