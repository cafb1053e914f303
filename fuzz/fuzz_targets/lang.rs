#![no_main]
#[path = "../checks/lang.rs"]
mod lang;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| lang::run(bytes));
