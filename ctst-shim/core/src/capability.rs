//! Capability sets of this process (`capabilities(7)`).

use std::io;

use caps::{CapSet, CapsHashSet};
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::sys;
use crate::weak::{Layer, weak};

fn mask(set: &CapsHashSet) -> u64 {
    set.iter().fold(0, |mask, cap| mask | cap.bitmask())
}

fn read(set: CapSet) -> io::Result<u64> {
    caps::read(None, set).map(|set| mask(&set)).map_err(io::Error::other)
}

/// Keeps of the permitted set what is in `keep`, and makes the effective, inheritable and ambient sets empty. Returns what
/// is permitted still, as it was read back.
///
/// # Errors
/// When a call fails, or a set read back is not what was asked for.
pub fn lower(keep: u64) -> io::Result<u64> {
    caps::clear(None, CapSet::Ambient).map_err(io::Error::other)?;
    let held = read(CapSet::Permitted)? & keep;
    set(held, 0)?;
    if read(CapSet::Ambient)? != 0 {
        return Err(io::Error::other("an ambient capability was left"));
    }
    Ok(held)
}

/// Makes `mask`, all of which is permitted, effective.
///
/// # Errors
/// EPERM when it is not permitted.
pub fn raise(mask: u64) -> io::Result<()> {
    Ok(rustix::thread::set_capabilities(None, sets(mask, mask))?)
}

/// Gives up all capabilities, for good, and reads back that there are none.
///
/// # Errors
/// When a call fails, or a set read back is not empty.
pub fn renounce() -> io::Result<()> {
    set(0, 0)
}

fn set(permitted: u64, effective: u64) -> io::Result<()> {
    let wanted = sets(permitted, effective);
    rustix::thread::set_capabilities(None, wanted)?;
    let now = rustix::thread::capabilities(None)?;
    let same =
        (now.permitted, now.effective, now.inheritable) == (wanted.permitted, wanted.effective, wanted.inheritable);
    if same { Ok(()) } else { Err(io::Error::other("a capability set read back differs from the one that was set")) }
}

fn sets(permitted: u64, effective: u64) -> CapabilitySets {
    let set = CapabilitySet::from_bits_retain;
    CapabilitySets { effective: set(effective), permitted: set(permitted), inheritable: set(0) }
}

/// Whether the capability with this number can still be gained by this process (the bounding set).
///
/// # Errors
/// EINVAL for a number that the kernel does not know.
pub fn is_bounded_in(number: u32) -> io::Result<bool> {
    let set = CapabilitySet::from_bits_retain(1u64.checked_shl(number).unwrap_or(0));
    Ok(rustix::thread::capability_is_in_bounding_set(set)?)
}

/// Removes everything but `keep` from the bounding set, sets permitted and effective to `keep`, inheritable and ambient
/// to none, and reads all five back.
///
/// # Errors
/// When a call fails, or a set read back is not what was asked for.
pub fn confine(keep: u64) -> io::Result<()> {
    if weak(Layer::Capabilities) {
        return Ok(());
    }
    let supported = caps::runtime::thread_all_supported();
    for cap in &supported {
        if cap.bitmask() & keep == 0 {
            caps::drop(None, CapSet::Bounding, *cap).map_err(io::Error::other)?;
        }
    }
    // A capability of the kernel that the crate does not know would stay in the bounding set.
    #[expect(clippy::disallowed_methods, reason = "a fixed place in procfs")]
    let last: u8 =
        std::fs::read_to_string("/proc/sys/kernel/cap_last_cap")?.trim().parse().map_err(io::Error::other)?;
    if supported.iter().map(|cap| cap.index()).max() < Some(last) {
        return Err(io::Error::other(format!("the kernel has capability {last}, which this build does not know")));
    }
    caps::clear(None, CapSet::Ambient).map_err(io::Error::other)?;
    sys::set_capabilities(keep)?;
    let now = [CapSet::Bounding, CapSet::Permitted, CapSet::Effective].map(read);
    let none = [CapSet::Inheritable, CapSet::Ambient].map(read);
    for set in now {
        if set? != keep {
            return Err(io::Error::other("a capability set read back differs from the one that was set"));
        }
    }
    for set in none {
        if set? != 0 {
            return Err(io::Error::other("an inheritable or ambient capability was left"));
        }
    }
    Ok(())
}
