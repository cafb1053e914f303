//! ctst
fn main() {}
