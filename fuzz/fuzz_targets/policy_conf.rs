#![no_main]
#[path = "../checks/policy_conf.rs"]
mod policy_conf;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| policy_conf::run(bytes));
