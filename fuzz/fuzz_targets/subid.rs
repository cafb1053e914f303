#![no_main]
#[path = "../checks/subid.rs"]
mod subid;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| subid::run(bytes));
