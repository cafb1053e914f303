//! The process that serves a lazy image: a worker that is handed four descriptors, gives up the rest, and answers the kernel.

use std::mem::ManuallyDrop;
use std::os::fd::OwnedFd;

use containust_image::Lazy;
use containust_shared::protocol::Plan;
use rustix::process::Resource;

use super::unpacker::limits_of;
use super::{PROGRAM, bare, with_program};
use crate::error::Result;
use crate::ipc::fdpass;

/// The worker's verb.
pub(crate) const VERB: &str = "serve";
/// Four million files with the longest names are an index of less than half of this.
const LIMITS: [(Resource, u64); 3] = [(Resource::As, 4 << 30), (Resource::Nofile, 64), (Resource::Core, 0)];
/// Where everything belongs to whom the index says.
const AS_INDEXED: &str = "-";

/// What C needs to run the server of an image, whose files all belong to `owner` if there is one. On its standard input it waits
/// for one message with the FUSE device, the archive, the index and what is kept beside it.
pub(crate) fn plan(lazy: &Lazy, owner: Option<(u32, u32)>) -> Result<(Plan, Vec<OwnedFd>)> {
    let lazy = serde_json::to_string(lazy).unwrap_or_default();
    let owner = owner.map_or(AS_INDEXED.to_owned(), |(uid, gid)| format!("{uid}:{gid}"));
    let (mut plan, held) = with_program(bare(&[PROGRAM, super::VERB, VERB, &lazy, &owner]))?;
    plan.capabilities = 0;
    plan.rlimits = limits_of(&LIMITS);
    Ok((plan, held))
}

/// Serves until the file system is gone.
pub(super) fn serve(lazy: &str, owner: &str) -> Result<(), String> {
    let lazy: Lazy = serde_json::from_str(lazy).map_err(|e| format!("read what to serve: {e}"))?;
    let id = |text: &str| text.parse::<u32>().map_err(|e| format!("read whom it belongs to: {e}"));
    let owner = match owner.split_once(':') {
        Some((uid, gid)) => Some((id(uid)?, id(gid)?)),
        None => None,
    };
    let mut fds: Vec<OwnedFd> = Vec::new();
    let received = fdpass::receive_waiting(rustix::stdio::stdin(), &mut [0], &mut fds);
    let fds = match (received, <[OwnedFd; 4]>::try_from(fds)) {
        (Ok(1), Ok(fds)) => fds,
        // The container ended before it had a root.
        (Ok(0), _) => return Ok(()),
        (Ok(_), Err(fds)) => return Err(format!("take over four descriptors: {} came", fds.len())),
        (Ok(_), Ok(_)) => return Err("take over four descriptors: another message came".to_owned()),
        (Err(error), _) => return Err(format!("take over four descriptors: {error}")),
    };
    let [device, archive, index, data] = fds;
    // Closed by the end of this process, so that whoever waits for an answer hears that there is none after what is said.
    let _held = ManuallyDrop::new(device.try_clone().map_err(|e| format!("copy a descriptor: {e}"))?);
    let say = |text: &str| eprintln!("{text}");
    containust_image::serve(&lazy, device, archive, &index, data, owner, say).map_err(|error| error.to_string())
}
