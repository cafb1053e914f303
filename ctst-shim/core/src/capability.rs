//! Capability sets of this process (`capabilities(7)`).

use std::io;

use caps::{CapSet, CapsHashSet};

use crate::sys;
use crate::weak::{Layer, weak};

fn mask(set: &CapsHashSet) -> u64 {
    set.iter().fold(0, |mask, cap| mask | cap.bitmask())
}

fn read(set: CapSet) -> io::Result<u64> {
    caps::read(None, set).map(|set| mask(&set)).map_err(io::Error::other)
}

/// Permitted capabilities as a bit mask.
///
/// # Errors
/// When capget(2) fails.
pub fn permitted() -> io::Result<u64> {
    read(CapSet::Permitted)
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
