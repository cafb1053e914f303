//! Exit codes, which are an interface: scripts depend on them.

/// `ctst` itself failed: bad arguments, an invalid file, a refused request.
pub const TOOL: i32 = 125;
/// The command was found in the container but could not be executed.
pub const NOT_EXECUTABLE: i32 = 126;
/// The command was not found in the container.
pub const NOT_FOUND: i32 = 127;
/// A process ended by signal `n` is reported as `SIGNAL_BASE + n`, as shells do.
pub const SIGNAL_BASE: i32 = 128;
