//! (house being built)
