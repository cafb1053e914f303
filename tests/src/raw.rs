//! A caller who speaks to the shim himself.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, Stdio};

use containust_shared::wire::{self, Message};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recv, recvmsg, send, sendmsg, socketpair,
};

/// A shim, started by an ordinary user, and its channel. Dropping it ends what it made.
#[derive(Debug)]
pub struct RawShim {
    channel: OwnedFd,
    child: Child,
}

impl RawShim {
    /// Starts what `command` executes its last argument for, with the channel as descriptor 3. The pair is made as `uid`,
    /// whose it has to be.
    ///
    /// # Panics
    /// If it cannot be started.
    pub(crate) fn start(mut command: Command, uid: u32) -> Self {
        let pair = std::thread::spawn(move || {
            let uid = rustix::process::Uid::from_raw(uid);
            rustix::thread::set_thread_res_uid(None, uid, None).expect("become the user");
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).expect("make a pair")
        });
        let (channel, theirs) = pair.join().expect("join a thread");
        let child = command.stdin(Stdio::from(theirs)).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
        Self { channel, child: child.expect("start the shim") }
    }

    /// Sends a message without descriptors.
    ///
    /// # Panics
    /// If the other side is gone.
    pub fn send<T: Message>(&self, message: &T) {
        let bytes = wire::encode(message).expect("encode a message");
        send(self.channel.as_fd(), &bytes, SendFlags::NOSIGNAL).expect("send a message");
    }

    /// The same with a descriptor.
    ///
    /// # Panics
    /// As [`RawShim::send`].
    pub fn send_with<T: Message>(&self, message: &T, fd: OwnedFd) {
        let bytes = wire::encode(message).expect("encode a message");
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds = [fd.as_fd()];
        assert!(control.push(SendAncillaryMessage::ScmRights(&fds)), "there is room for one");
        let sent = sendmsg(self.channel.as_fd(), &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL);
        sent.expect("send a message");
    }

    /// The same with these bytes, whatever they are.
    ///
    /// # Panics
    /// As [`RawShim::send`].
    pub fn send_bytes(&self, bytes: &[u8]) {
        send(self.channel.as_fd(), bytes, SendFlags::NOSIGNAL).expect("send a record");
    }

    /// Says that nothing more follows.
    ///
    /// # Panics
    /// If the other side is gone.
    pub fn close(&self) {
        rustix::net::shutdown(self.channel.as_fd(), rustix::net::Shutdown::Write).expect("close one direction");
    }

    /// The next message with its descriptors; none: the other side is gone.
    ///
    /// # Panics
    /// If it is not of this type.
    #[must_use]
    pub fn receive_all<T: Message>(&self) -> Option<(T, Vec<OwnedFd>)> {
        let mut buffer = vec![0; wire::MAX_MESSAGE];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC;
        let message = recvmsg(self.channel.as_fd(), &mut [IoSliceMut::new(&mut buffer)], &mut control, flags);
        let length = message.expect("receive a message").bytes;
        let fds = control.drain().flat_map(|item| match item {
            RecvAncillaryMessage::ScmRights(fds) => fds.collect::<Vec<_>>(),
            _ => Vec::new(),
        });
        let fds = fds.collect();
        (length > 0).then(|| (wire::decode(&buffer[..length]).expect("decode a message"), fds))
    }

    /// Its exit code.
    ///
    /// # Panics
    /// If it was killed.
    #[must_use]
    pub fn wait(&mut self) -> i32 {
        self.child.wait().expect("wait for the program").code().expect("it exits")
    }

    /// What it wrote to standard error, once it has ended.
    ///
    /// # Panics
    /// If that cannot be read.
    #[must_use]
    pub fn said(&mut self) -> String {
        let stderr = self.child.stderr.take().expect("a pipe");
        std::io::read_to_string(stderr).expect("read a pipe")
    }

    /// The next message, without its descriptors; none: the other side is gone.
    ///
    /// # Panics
    /// If it is not of this type.
    #[must_use]
    pub fn receive<T: Message>(&self) -> Option<T> {
        let mut buffer = vec![0; wire::MAX_MESSAGE];
        let (length, _) = recv(self.channel.as_fd(), &mut buffer[..], RecvFlags::empty()).expect("receive a message");
        (length > 0).then(|| wire::decode(&buffer[..length]).expect("decode a message"))
    }
}

impl Drop for RawShim {
    fn drop(&mut self) {
        // It has ended, or ends with its channel.
        self.child.wait().expect("wait for the shim");
    }
}
