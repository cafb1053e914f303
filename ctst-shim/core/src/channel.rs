//! `SOCK_SEQPACKET` sockets with descriptors (`unix(7)`): one record, one message.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::sockopt;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketType, recvmsg, sendmsg,
};
use rustix::process::{PidfdFlags, getppid, pidfd_open};

/// Most descriptors in one message; the kernel's own limit is 253.
pub const MAX_FDS: usize = 16;

/// Checks that `socket` is an `AF_UNIX` `SOCK_SEQPACKET` socket whose peer was opened by `uid`.
///
/// # Errors
/// When it is not, or a socket option cannot be read.
pub fn check(socket: BorrowedFd<'_>, uid: u32) -> io::Result<()> {
    if sockopt::socket_domain(socket)? != AddressFamily::UNIX || sockopt::socket_type(socket)? != SocketType::SEQPACKET
    {
        return Err(io::Error::other("not a unix SOCK_SEQPACKET socket"));
    }
    let peer = sockopt::socket_peercred(socket)?;
    if peer.uid.as_raw() != uid {
        return Err(io::Error::other("the peer is another user"));
    }
    Ok(())
}

/// The process that made `socket` and started this one, as a pidfd: it tells of that process's end even where somebody else
/// holds a copy of the other end, which then would never close.
///
/// # Errors
/// When that is not one process, or it has ended, and the kernel's.
pub fn caller(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let gone = || io::Error::other("the process that started this program has ended, or another one made the socket");
    let parent = getppid().ok_or_else(gone)?;
    let opened = pidfd_open(parent, PidfdFlags::empty())?;
    // Had it ended before it was opened, this process would be somebody else's child by now.
    if getppid() != Some(parent) || sockopt::socket_peercred(socket)?.pid != parent {
        return Err(gone());
    }
    Ok(opened)
}

/// Sends one message with its descriptors.
///
/// # Errors
/// EPIPE when the peer is gone, EMSGSIZE above the socket buffer, and the kernel's others.
pub fn send(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if fds.len() > MAX_FDS || (!fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds))) {
        return Err(io::Error::other("too many descriptors for one message"));
    }
    loop {
        match sendmsg(&socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL) {
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
            Ok(n) if n == bytes.len() => return Ok(()),
            Ok(_) => return Err(io::Error::other("the record was cut")),
        }
    }
}

/// Receives one message into `buffer`: its length and its descriptors, close-on-exec. None: the peer has closed.
///
/// # Errors
/// A record that is larger than `buffer`, more than [`MAX_FDS`] descriptors, other ancillary data, and the kernel's.
pub fn receive(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<Option<(usize, Vec<OwnedFd>)>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message = loop {
        match recvmsg(&socket, &mut [IoSliceMut::new(buffer)], &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            // The peer closed with unread data of ours.
            Err(rustix::io::Errno::CONNRESET) => return Ok(None),
            other => break other?,
        }
    };
    // Descriptors become owned before anything else can fail, so that a refused message leaks none.
    let mut fds = Vec::new();
    let mut foreign = false;
    for ancillary in control.drain() {
        match ancillary {
            RecvAncillaryMessage::ScmRights(rights) => fds.extend(rights),
            _ => foreign = true,
        }
    }
    if foreign || message.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(io::Error::other("the record does not fit, or carries what it may not"));
    }
    if message.bytes == 0 && fds.is_empty() { Ok(None) } else { Ok(Some((message.bytes, fds))) }
}
