//! Which ports of this host are taken, as `proc_net(5)` tells without a socket of ours.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use containust_lang::model::Protocol;

use crate::error::{Error, Result};
use crate::status::HostPort;

/// The tables, and the state in them of a socket that is in the way: `TCP_LISTEN` of `include/net/tcp_states.h`; one of UDP
/// that is connected has `TCP_ESTABLISHED`, and lets others be bound to no port of its own.
const TABLES: [(Protocol, &str, &str); 4] = [
    (Protocol::Tcp, "tcp", "0A"),
    (Protocol::Tcp, "tcp6", "0A"),
    (Protocol::Udp, "udp", "07"),
    (Protocol::Udp, "udp6", "07"),
];

/// The addresses that are taken, by port.
#[derive(Debug, Default)]
pub(crate) struct Listening(HashMap<(Protocol, u16), Vec<IpAddr>>);

impl Listening {
    /// Those of this network namespace.
    pub(crate) fn read() -> Result<Self> {
        Self::of("self")
    }

    /// Those of the network namespace in which the process with this pid is. Everybody may read them who sees it in /proc.
    pub(crate) fn of(pid: &str) -> Result<Self> {
        let mut found = Self::default();
        // Where this is not there, it is not for want of IPv6.
        let folder = format!("/proc/{pid}/net");
        std::fs::metadata(&folder).map_err(|e| Error::io(format!("read {folder}"), e))?;
        for (protocol, table, state) in TABLES {
            let table = format!("{folder}/{table}");
            match std::fs::read_to_string(&table) {
                Ok(text) => found.add(protocol, &text, state),
                // A kernel without IPv6.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(Error::io(format!("read {table}"), e)),
            }
        }
        Ok(found)
    }

    /// The addresses on which this port is taken.
    pub(crate) fn holders(&self, protocol: Protocol, port: u16) -> &[IpAddr] {
        self.0.get(&(protocol, port)).map(Vec::as_slice).unwrap_or_default()
    }

    fn add(&mut self, protocol: Protocol, table: &str, taken: &str) {
        for line in table.lines().skip(1) {
            let mut fields = line.split_whitespace().skip(1);
            let (local, state) = (fields.next(), fields.nth(1));
            if state == Some(taken)
                && let Some((address, port)) = local.and_then(parse)
            {
                self.0.entry((protocol, port)).or_default().push(address);
            }
        }
    }

    /// Whether `bind(2)` to this port would be refused.
    pub(crate) fn blocks(&self, HostPort { protocol, place }: HostPort) -> bool {
        let address = place.ip();
        let holders = self.holders(protocol, place.port());
        let overlap = |holder: &IpAddr| match (holder, &address) {
            // `::` takes the port of IPv4 along unless IPV6_V6ONLY says otherwise, which the tables do not tell: nothing is
            // claimed that may be wrong.
            (IpAddr::V6(_), IpAddr::V4(_)) | (IpAddr::V4(_), IpAddr::V6(_)) => false,
            (holder, address) => *holder == *address || holder.is_unspecified() || address.is_unspecified(),
        };
        holders.iter().any(overlap)
    }
}

/// `0100007F:1F90`: 32-bit words in the machine's byte order, then the port.
fn parse(field: &str) -> Option<(IpAddr, u16)> {
    let (address, port) = field.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| Some(u32::from_str_radix(address.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    match address.len() {
        8 => Some((Ipv4Addr::from(word(0)?).into(), port)),
        32 => {
            let bytes = [word(0)?, word(8)?, word(16)?, word(24)?].concat();
            let bytes: [u8; 16] = bytes.try_into().ok()?;
            Some((Ipv6Addr::from(bytes).into(), port))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, TcpListener, UdpSocket};

    use super::*;

    #[test]
    fn sees_who_listens() {
        fn seen<S>(socket: S, protocol: Protocol, place: SocketAddr) {
            let now = Listening::read().unwrap();
            assert!(now.blocks(HostPort { protocol, place }), "{place}");
            let any: IpAddr = if place.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
            let any = HostPort { protocol, place: SocketAddr::new(any, place.port()) };
            assert!(now.blocks(any));
            drop(socket);
            assert!(!Listening::read().unwrap().blocks(HostPort { protocol, place }));
        }
        for local in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(socket) = TcpListener::bind(local) else { continue };
            let place = socket.local_addr().unwrap();
            seen(socket, Protocol::Tcp, place);
            let socket = UdpSocket::bind(local).unwrap();
            let place = socket.local_addr().unwrap();
            seen(socket, Protocol::Udp, place);
        }
    }
}
