#![no_main]
// The name server is no part of the library's interface: its file is taken as it is, with what it uses.
mod poller {
    pub(super) type Cid = u32;
}
#[path = "../checks/zone.rs"]
mod check;
#[path = "../../ctst/sdk/src/supervisor/zone.rs"]
mod zone;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| check::run(bytes));
