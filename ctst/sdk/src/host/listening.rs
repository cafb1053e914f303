//! Which TCP ports of this host are taken, as `proc_net(5)` tells without a socket of ours.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::error::{Error, Result};

/// `TCP_LISTEN` of `include/net/tcp_states.h`, as the tables write it.
const LISTEN: &str = "0A";

/// The sockets that listen, by port.
#[derive(Debug, Default)]
pub(crate) struct Listening(HashMap<u16, Vec<IpAddr>>);

impl Listening {
    /// Those of this network namespace.
    pub(crate) fn read() -> Result<Self> {
        let mut found = Self::default();
        for table in ["/proc/self/net/tcp", "/proc/self/net/tcp6"] {
            match std::fs::read_to_string(table) {
                Ok(text) => found.add(&text),
                // A kernel without IPv6.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(Error::io(format!("read {table}"), e)),
            }
        }
        Ok(found)
    }

    fn add(&mut self, table: &str) {
        for line in table.lines().skip(1) {
            let mut fields = line.split_whitespace().skip(1);
            let (local, state) = (fields.next(), fields.nth(1));
            if state == Some(LISTEN)
                && let Some((address, port)) = local.and_then(parse)
            {
                self.0.entry(port).or_default().push(address);
            }
        }
    }

    /// Whether `bind(2)` to this address and port would be refused.
    pub(crate) fn blocks(&self, address: IpAddr, port: u16) -> bool {
        let holders = self.0.get(&port).map(Vec::as_slice).unwrap_or_default();
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
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn sees_who_listens() {
        for local in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(socket) = TcpListener::bind(local) else { continue };
            let address = socket.local_addr().unwrap();
            let now = Listening::read().unwrap();
            assert!(now.blocks(address.ip(), address.port()), "{address}");
            let any: IpAddr =
                if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
            assert!(now.blocks(any, address.port()));
            drop(socket);
            assert!(!Listening::read().unwrap().blocks(address.ip(), address.port()));
        }
        assert!(!Listening::default().blocks(Ipv4Addr::LOCALHOST.into(), 1));
    }
}
