//! Messages with descriptors over UNIX sockets.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use containust_shared::protocol::MAX_FDS;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair, sockopt,
};

/// A connected pair, close-on-exec and blocking.
pub(crate) fn pair(kind: SocketType) -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?)
}

/// Lets one record of `bytes` fit into the socket's buffer, whatever `net.core.wmem_default` says.
pub(crate) fn want_buffer(socket: &OwnedFd, bytes: usize) -> io::Result<()> {
    if sockopt::socket_send_buffer_size(socket)? < bytes {
        sockopt::set_socket_send_buffer_size(socket, bytes)?;
    }
    Ok(())
}

/// Sends without waiting. On a stream socket fewer bytes may go out than given; the descriptors go with the first.
pub(crate) fn send(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    send_with(socket, bytes, fds, SendFlags::DONTWAIT)
}

/// Sends, waiting for room.
pub(crate) fn send_waiting(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    send_with(socket, bytes, fds, SendFlags::empty())
}

fn send_with(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>], flags: SendFlags) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors for one message"));
    }
    loop {
        match sendmsg(&socket, &[IoSlice::new(bytes)], &mut control, flags | SendFlags::NOSIGNAL) {
            Err(rustix::io::Errno::INTR) => {}
            result => return Ok(result?),
        }
    }
}

/// Receives without waiting, appending descriptors to `fds`; 0 bytes are the end. A record or its descriptors that do
/// not fit are an error, because a part of a message means nothing.
pub(crate) fn receive(socket: impl AsFd, buffer: &mut [u8], fds: &mut impl Extend<OwnedFd>) -> io::Result<usize> {
    receive_with(socket, buffer, fds, RecvFlags::DONTWAIT)
}

/// The same, waiting for a message.
pub(crate) fn receive_waiting(
    socket: impl AsFd,
    buffer: &mut [u8],
    fds: &mut impl Extend<OwnedFd>,
) -> io::Result<usize> {
    receive_with(socket, buffer, fds, RecvFlags::empty())
}

fn receive_with(
    socket: impl AsFd,
    buffer: &mut [u8],
    fds: &mut impl Extend<OwnedFd>,
    flags: RecvFlags,
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message = loop {
        match recvmsg(&socket, &mut [IoSliceMut::new(buffer)], &mut control, flags | RecvFlags::CMSG_CLOEXEC) {
            // Told once of a peer that closed before it had read everything. What it sent before is behind it.
            Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNRESET) => {}
            result => break result?,
        }
    };
    for item in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = item {
            fds.extend(rights);
        }
    }
    if message.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a message was cut off"));
    }
    Ok(message.bytes)
}
