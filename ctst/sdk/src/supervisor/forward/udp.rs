//! Datagrams to published ports.
//!
//! What comes from one address of a client is a flow: it has a socket of its own on the containers' side, by which the answers
//! find their way back, and which a container sees as one peer. UDP does not tell the end of anything, so that a flow ends
//! when nothing was moved for a time, or when there are too many: then the one goes that nobody has answered for the longest
//! time, or, where all were answered, that was used the longest ago. A flood from many addresses takes [`MOST`] descriptors,
//! and pushes out those that were not answered yet. Whatever does not fit anywhere at once is lost, as it may be by UDP.

use std::collections::{HashMap, VecDeque};
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket as StdSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use mio::net::UdpSocket;
use mio::{Interest, Registry, Token};
use nix::libc::{in_addr, in_pktinfo, in6_addr, in6_pktinfo};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt, sockopt,
};

use super::{BACKEND, DOOR, Socket, State, Target};

/// Flows of a project at once, where they are a quarter of the descriptors that there may be at most: each is one.
pub(super) const MOST: usize = 4096;
/// How long a flow stays that moved nothing: one that was never answered, and one that was. Those of the kernel's own translation
/// of addresses (`nf_conntrack_udp_timeout`, `nf_conntrack_udp_timeout_stream`).
const UNANSWERED: Duration = Duration::from_secs(30);
const ANSWERED: Duration = Duration::from_secs(120);
/// Datagrams moved for one socket before others have their turn.
const TURN: usize = 64;
/// Bytes that wait for sockets, of all flows together.
const HELD: usize = 1 << 20;
/// What one of them counts besides its bytes, which may be none.
const EACH: usize = 64;

/// A socket of the host.
#[derive(Debug)]
pub(super) struct Door {
    socket: UdpSocket,
    /// It is bound to all addresses of its family: an answer has to go out from the one that was asked, which the kernel tells
    /// and is told of each datagram (ip(7), ipv6(7)).
    wild: bool,
}

/// The address of the host that a datagram came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Asked {
    /// The one that the socket is bound to.
    Bound,
    V4(Ipv4Addr),
    /// With the interface, without which a link-local one means nothing.
    V6(Ipv6Addr, u32),
}

impl Door {
    pub(super) fn open(socket: StdSocket, registry: &Registry, token: Token) -> io::Result<Self> {
        let place = socket.local_addr()?;
        let wild = place.ip().is_unspecified();
        if wild && place.is_ipv4() {
            setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
        } else if wild {
            setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
        }
        let mut socket = UdpSocket::from_std(socket);
        registry.register(&mut socket, token, Interest::READABLE)?;
        Ok(Self { socket, wild })
    }

    fn receive(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr, Asked)> {
        if !self.wild {
            let (length, from) = self.socket.recv_from(buffer)?;
            return Ok((length, from, Asked::Bound));
        }
        let mut told = nix::cmsg_space!(in6_pktinfo);
        let mut buffers = [IoSliceMut::new(buffer)];
        let flags = MsgFlags::empty();
        let message = recvmsg::<SockaddrStorage>(self.socket.as_raw_fd(), &mut buffers, Some(&mut told), flags)?;
        let asked = message.cmsgs()?.find_map(|told| match told {
            ControlMessageOwned::Ipv4PacketInfo(info) => {
                // The first was looked up when the datagram came, which may have been before anybody wanted to know.
                let addresses = [info.ipi_spec_dst, info.ipi_addr].map(|own| Ipv4Addr::from(own.s_addr.to_ne_bytes()));
                let asked = addresses.into_iter().find(|address| !address.is_unspecified())?;
                Some(Asked::V4(asked)).filter(|_| !asked.is_multicast() && asked != Ipv4Addr::BROADCAST)
            }
            ControlMessageOwned::Ipv6PacketInfo(info) => {
                let address = Ipv6Addr::from(info.ipi6_addr.s6_addr);
                let link = if address.is_unicast_link_local() { info.ipi6_ifindex } else { 0 };
                Some(Asked::V6(address, link)).filter(|_| !address.is_multicast())
            }
            _ => None,
        });
        let from = message.address.as_ref().and_then(|from| {
            let v4 = from.as_sockaddr_in().map(|from| SocketAddr::V4((*from).into()));
            v4.or_else(|| from.as_sockaddr_in6().map(|from| SocketAddr::V6((*from).into())))
        });
        let from = from.ok_or_else(|| io::Error::other("a datagram from no address"))?;
        Ok((message.bytes, from, asked.unwrap_or(Asked::Bound)))
    }

    fn send(&self, bytes: &[u8], to: SocketAddr, from: Asked) -> io::Result<()> {
        let (v4, v6);
        let from = match from {
            Asked::Bound => return self.socket.send_to(bytes, to).map(drop),
            Asked::V4(address) => {
                let any = in_addr { s_addr: 0 };
                let own = in_addr { s_addr: u32::from_ne_bytes(address.octets()) };
                v4 = in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: own, ipi_addr: any };
                ControlMessage::Ipv4PacketInfo(&v4)
            }
            Asked::V6(address, link) => {
                v6 = in6_pktinfo { ipi6_addr: in6_addr { s6_addr: address.octets() }, ipi6_ifindex: link };
                ControlMessage::Ipv6PacketInfo(&v6)
            }
        };
        let (buffers, to) = ([IoSlice::new(bytes)], SockaddrStorage::from(to));
        Ok(sendmsg(self.socket.as_raw_fd(), &buffers, &[from], MsgFlags::empty(), Some(&to)).map(drop)?)
    }
}

/// A flood leaves descriptors for everything else.
fn most() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    limit.map_or(MOST, |limit| MOST.min(usize::try_from(limit / 4).unwrap_or(MOST)))
}

/// A client's address at a port of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    port: usize,
    client: SocketAddr,
    asked: Asked,
}

#[derive(Debug)]
struct Flow {
    key: Key,
    target: Target,
    /// None: it waits for a socket.
    backend: Option<UdpSocket>,
    used: Instant,
    answered: bool,
}

impl Flow {
    fn send(&self, bytes: &[u8]) {
        let Some(backend) = &self.backend else { return };
        // What came of the last one is told at the next (ICMP: nobody is there), which is then not sent.
        if backend.send(bytes).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused) {
            backend.send(bytes).ok();
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Flows {
    all: HashMap<usize, Flow>,
    by_key: HashMap<Key, usize>,
    /// Those that were not answered, and those that were, each with when it was put there, about the longest unused first. May name
    /// some that are gone, or have been used or answered since.
    unanswered: VecDeque<(Instant, usize)>,
    answered: VecDeque<(Instant, usize)>,
    /// Datagrams of flows that wait for a socket.
    held: VecDeque<(usize, Vec<u8>)>,
    held_bytes: usize,
}

impl Flows {
    pub(super) fn has(&self, id: usize) -> bool {
        self.all.contains_key(&id)
    }

    /// Sockets that are waited for.
    pub(super) fn waiting(&self) -> usize {
        self.held.len()
    }

    /// When the next flow may end.
    pub(super) fn next(&self) -> Option<Instant> {
        let ends = |queue: &VecDeque<(Instant, usize)>, after| queue.front().map(|(since, _)| *since + after);
        ends(&self.unanswered, UNANSWERED).into_iter().chain(ends(&self.answered, ANSWERED)).min()
    }

    fn add(&mut self, id: usize, flow: Flow) {
        self.by_key.insert(flow.key, id);
        self.unanswered.push_back((flow.used, id));
        self.all.insert(id, flow);
    }

    fn remove(&mut self, id: usize) {
        if let Some(flow) = self.all.remove(&id) {
            self.by_key.remove(&flow.key);
        }
    }

    /// Ends the flows of a port to other targets than these.
    pub(super) fn keep(&mut self, port: usize, targets: &[Target]) {
        let gone = |flow: &Flow| flow.key.port == port && !targets.contains(&flow.target);
        let gone: Vec<usize> = self.all.iter().filter(|(_, flow)| gone(flow)).map(|(id, _)| *id).collect();
        gone.into_iter().for_each(|id| self.remove(id));
    }

    /// Puts a flow that is first in its queue where it belongs, if it was used since; else it stays away.
    fn look_again(&mut self, since: Instant, id: usize, was_answered: bool) -> Option<usize> {
        let flow = self.all.get(&id)?;
        if flow.used <= since && flow.answered == was_answered {
            return Some(id);
        }
        let queue = if flow.answered { &mut self.answered } else { &mut self.unanswered };
        queue.push_back((flow.used, id));
        None
    }

    pub(super) fn expire(&mut self, now: Instant) {
        for (was_answered, after) in [(false, UNANSWERED), (true, ANSWERED)] {
            loop {
                let queue = if was_answered { &mut self.answered } else { &mut self.unanswered };
                let Some((since, id)) = queue.pop_front_if(|(since, _)| *since + after <= now) else { break };
                if let Some(id) = self.look_again(since, id, was_answered) {
                    self.remove(id);
                }
            }
        }
    }

    /// Makes room for another.
    fn push_out(&mut self) {
        for was_answered in [false, true] {
            let length = |flows: &Self| if was_answered { flows.answered.len() } else { flows.unanswered.len() };
            // Each once: what was used meanwhile comes to the end.
            for _ in 0..=length(self) {
                let queue = if was_answered { &mut self.answered } else { &mut self.unanswered };
                let Some((since, id)) = queue.pop_front() else { break };
                if let Some(id) = self.look_again(since, id, was_answered) {
                    return self.remove(id);
                }
            }
        }
    }

    fn hold(&mut self, id: usize, bytes: &[u8]) {
        let size = bytes.len() + EACH;
        if self.held_bytes + size <= HELD {
            self.held_bytes += size;
            self.held.push_back((id, bytes.to_vec()));
        }
    }

    /// There is no socket for those that wait.
    pub(super) fn drop_waiting(&mut self) {
        for (id, _) in std::mem::take(&mut self.held) {
            self.remove(id);
        }
        self.held_bytes = 0;
    }
}

impl State {
    /// Takes what came to a port.
    pub(super) fn receive(&mut self, port: usize) {
        let now = Instant::now();
        for _ in 0..TURN {
            let Some(Socket::Udp(door)) = self.ports.get(&port).map(|port| &port.socket) else { return };
            match door.receive(&mut self.buffer) {
                Ok((length, client, asked)) => self.carry(Key { port, client, asked }, length, now),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                // Empty; or what went wrong with an answer, which is lost.
                Err(_) => return,
            }
        }
        self.again.push(Token(4 * port + DOOR));
    }

    /// Passes on a datagram of this length in the buffer.
    fn carry(&mut self, key: Key, length: usize, now: Instant) {
        let id = match self.flows.by_key.get(&key) {
            Some(id) => *id,
            None => {
                let Some(target) = self.lead(key.port) else { return };
                if self.flows.all.len() >= most() {
                    self.flows.push_out();
                }
                self.next_id += 1;
                let flow = Flow { key, target, backend: None, used: now, answered: false };
                self.flows.add(self.next_id, flow);
                self.next_id
            }
        };
        if !self.equip(id) {
            return self.flows.hold(id, &self.buffer[..length]);
        }
        if let Some(flow) = self.flows.all.get_mut(&id) {
            flow.used = now;
            flow.send(&self.buffer[..length]);
        }
    }

    /// Whether the flow has a socket, or is gone because none works.
    fn equip(&mut self, id: usize) -> bool {
        let Some(flow) = self.flows.all.get_mut(&id) else { return true };
        if flow.backend.is_some() {
            return true;
        }
        let Some(socket) = self.udp.sockets.pop() else { return false };
        match connect(socket, flow.target.0, self.poll.registry(), Token(4 * id + BACKEND)) {
            Ok(backend) => flow.backend = Some(backend),
            Err(_) => self.flows.remove(id),
        }
        true
    }

    /// Sends what waited for a socket.
    pub(super) fn send_waiting(&mut self) {
        while let Some((id, bytes)) = self.flows.held.pop_front() {
            if !self.equip(id) {
                return self.flows.held.push_front((id, bytes));
            }
            self.flows.held_bytes -= bytes.len() + EACH;
            if let Some(flow) = self.flows.all.get(&id) {
                flow.send(&bytes);
            }
        }
    }

    /// Takes a container's answers to the client.
    pub(super) fn answer(&mut self, id: usize) {
        let now = Instant::now();
        for _ in 0..TURN {
            let Some(flow) = self.flows.all.get_mut(&id) else { return };
            let Some(backend) = &flow.backend else { return };
            let length = match backend.recv(&mut self.buffer) {
                Ok(length) => length,
                // Nobody took an earlier one, which the client cannot be told.
                Err(e) if matches!(e.kind(), io::ErrorKind::Interrupted | io::ErrorKind::ConnectionRefused) => continue,
                Err(_) => return,
            };
            (flow.used, flow.answered) = (now, true);
            let Some(Socket::Udp(door)) = self.ports.get(&flow.key.port).map(|port| &port.socket) else { return };
            // What does not fit into the socket's buffer is lost.
            door.send(&self.buffer[..length], flow.key.client, flow.key.asked).ok();
        }
        self.again.push(Token(4 * id + BACKEND));
    }
}

fn connect(socket: OwnedFd, target: SocketAddr, registry: &Registry, token: Token) -> io::Result<UdpSocket> {
    rustix::net::connect(&socket, &target)?;
    let mut socket = UdpSocket::from_std(StdSocket::from(socket));
    registry.register(&mut socket, token, Interest::READABLE)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use mio::Poll;

    use super::*;

    /// It came when the socket was bound, and nobody had asked the kernel yet to tell where to.
    #[test]
    fn an_early_datagram_is_answered_from_where_it_came_to() {
        let any = StdSocket::bind("0.0.0.0:0").unwrap();
        let at = (Ipv4Addr::new(127, 0, 0, 53), any.local_addr().unwrap().port());
        let client = StdSocket::bind("127.0.0.1:0").unwrap();
        client.connect(at).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        client.send(b"early").unwrap();
        let poll = Poll::new().unwrap();
        let door = Door::open(any, poll.registry(), Token(0)).unwrap();
        let mut buffer = [0; 16];
        let (length, from, asked) = door.receive(&mut buffer).unwrap();
        assert_eq!((length, asked), (5, Asked::V4(at.0)));
        door.send(b"answer", from, asked).unwrap();
        assert_eq!(client.recv(&mut buffer).unwrap(), 6);
    }
}
