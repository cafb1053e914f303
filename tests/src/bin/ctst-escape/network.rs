//! W: the network. No packet leaves the machine, whatever holds: routes are asked for before anything is sent.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::linux::net::SocketAddrExt as _;

use libc::{EACCES, ECONNREFUSED, ENETUNREACH, EPERM, c_long};

use crate::sys::{call, pointer, pointer_mut};
use crate::{Broken, Check, Facts, Holds, Skipped, Verdict, all, errno, read, refused, so};

pub(crate) const CHECKS: &[Check] = &[
    ("W01", |_| connect("192.0.2.1:80")),
    ("W02", |_| refused(route("192.0.2.1:9"), &[ENETUNREACH])),
    ("W03", |_| {
        let servers = ["192.0.2.53:53", "169.254.169.253:53"];
        all(servers.map(|server| (server.to_owned(), refused(route(server), &[ENETUNREACH]))))
    }),
    ("W04", |_| all(["[2001:db8::1]:80", "169.254.169.254:80"].map(|place| (place.to_owned(), connect(place))))),
    ("W05", abstract_socket),
    ("W06", interfaces),
    ("W07", |_| set_flags()),
    ("W08", |_| loopback()),
    ("W09", |_| administer()),
    ("W11", |_| other_protocols()),
];

/// Whether the kernel knows a way there. Connecting a UDP socket sends nothing.
fn route(place: &str) -> Result<(), i32> {
    let place: SocketAddr = place.parse().expect("an address");
    let any: SocketAddr = if place.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse().expect("an address");
    errno(UdpSocket::bind(any).and_then(|socket| socket.connect(place)))
}

fn connect(place: &str) -> Verdict {
    // Without IPv6 in the kernel there is no way by it, either.
    let unreachable: &[i32] = &[ENETUNREACH, libc::EADDRNOTAVAIL, libc::EAFNOSUPPORT];
    match route(place) {
        Ok(()) => Broken("there is a route".to_owned()),
        Err(_) => refused(errno(TcpStream::connect(place)), unreachable),
    }
}

fn abstract_socket(facts: &Facts) -> Verdict {
    let Some(name) = facts.get("abstract") else { return Skipped("nobody listens outside".to_owned()) };
    let address = std::os::unix::net::SocketAddr::from_abstract_name(name).expect("a short name");
    refused(errno(std::os::unix::net::UnixStream::connect_addr(&address)), &[ECONNREFUSED])
}

fn interfaces(facts: &Facts) -> Verdict {
    let allowed = facts.get("interfaces").map(String::as_str).unwrap_or("lo");
    let table = read("/proc/net/dev");
    let names = table.lines().filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned()));
    let foreign: Vec<String> = names.filter(|name| !allowed.split(',').any(|other| other == name)).collect();
    so(foreign.is_empty(), || format!("{foreign:?}"))
}

/// Sets the flags of `lo` to what they are.
fn set_flags() -> Verdict {
    let mut request = [0_u8; 40];
    request[..2].copy_from_slice(b"lo");
    let Ok(socket) = call(libc::SYS_socket, &[libc::AF_INET.into(), libc::SOCK_DGRAM.into(), 0]) else {
        return Broken("no socket".to_owned());
    };
    let mut ioctl = |number| call(libc::SYS_ioctl, &[socket, number, pointer_mut(&mut request)]);
    if let Err(error) = ioctl(0x8913) {
        return Broken(format!("SIOCGIFFLAGS: {error}"));
    }
    refused(ioctl(0x8914), &[EPERM])
}

fn loopback() -> Verdict {
    let talk = || -> std::io::Result<String> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let mut client = TcpStream::connect(listener.local_addr()?)?;
        client.write_all(b"hello")?;
        drop(client);
        let mut heard = String::new();
        listener.accept()?.0.read_to_string(&mut heard)?;
        Ok(heard)
    };
    match talk() {
        Ok(heard) if heard == "hello" => Holds,
        other => Broken(format!("{other:?}")),
    }
}

/// Asks the kernel by netlink(7); the error it answers with.
fn netlink(protocol: c_long, kind: u16, body: &[u8]) -> Result<(), i32> {
    let socket = call(libc::SYS_socket, &[libc::AF_NETLINK.into(), libc::SOCK_RAW.into(), protocol])?;
    // The acknowledgement is there when sendto(2) returns; if none comes, nothing was changed for us to see.
    let timeout = [1_u64, 0];
    let (level, option) = (libc::SOL_SOCKET.into(), libc::SO_RCVTIMEO.into());
    call(libc::SYS_setsockopt, &[socket, level, option, pointer(&timeout), 16])?;
    let length = u32::try_from(16 + body.len()).expect("short");
    // NLM_F_REQUEST, ACK, CREATE, EXCL.
    let flags = 0x605_u16;
    let mut message = [length.to_ne_bytes(), (u32::from(kind) | u32::from(flags) << 16).to_ne_bytes()].concat();
    message.extend([1, 0, 0, 0, 0, 0, 0, 0]);
    message.extend(body);
    let to = [libc::AF_NETLINK as u16, 0, 0, 0, 0, 0];
    let bytes = c_long::from(length);
    call(libc::SYS_sendto, &[socket, pointer(message.as_slice()), bytes, 0, pointer(&to), 12])?;
    let mut answer = [0_u8; 4096];
    call(libc::SYS_recvfrom, &[socket, pointer_mut(&mut answer), 4096, 0, 0, 0])?;
    let error = i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]);
    if error == 0 { Ok(()) } else { Err(-error) }
}

fn administer() -> Verdict {
    let mut link = vec![0; 16];
    // IFLA_LINKINFO with IFLA_INFO_KIND "dummy".
    link.extend([16, 0, 18, 0, 9, 0, 1, 0, b'd', b'u', b'm', b'm', b'y', 0, 0, 0]);
    // AF_INET, 24 bits, table main, by an administrator, on the link, to one host; RTA_DST, and RTA_OIF: lo.
    let mut route = vec![2, 24, 0, 0, 254, 3, 253, 1, 0, 0, 0, 0];
    route.extend([8, 0, 1, 0, 198, 51, 100, 0, 8, 0, 4, 0, 1, 0, 0, 0]);
    // A batch's begin for nf_tables; AUDIT_SET.
    let absent = [libc::EPROTONOSUPPORT, ECONNREFUSED];
    all([
        ("add a link", refused(netlink(0, 16, &link), &[EPERM])),
        ("add a route", refused(netlink(0, 24, &route), &[EPERM])),
        ("change nf_tables", refused(netlink(12, 0x10, &[0, 0, 0, 10]), &[EPERM, absent[0]])),
        ("change the audit", refused(netlink(9, 1001, &[0; 32]), &[EPERM, absent[0], absent[1]])),
        ("send a uevent", refused(netlink(15, 0x10, b"add@/escape\0"), &[EPERM, ECONNREFUSED])),
    ]
    .map(|(what, verdict)| (what.to_owned(), verdict)))
}

fn other_protocols() -> Verdict {
    if route("192.0.2.1:9").is_ok() {
        return Broken("there is a route".to_owned());
    }
    let (inet, stream, datagram, raw): (c_long, c_long, c_long, c_long) = (2, 1, 2, 3);
    // AF_INET, port 9 in network order, 192.0.2.1.
    let to: [u8; 16] = [2, 0, 0, 9, 192, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0];
    let reach = |kind, protocol| {
        let socket = call(libc::SYS_socket, &[inet, kind, protocol])?;
        let timeout = [2_u64, 0];
        call(
            libc::SYS_setsockopt,
            &[socket, libc::SOL_SOCKET.into(), libc::SO_SNDTIMEO.into(), pointer(&timeout), 16],
        )?;
        call(libc::SYS_connect, &[socket, pointer(&to), 16])
    };
    let gone = [libc::EINPROGRESS, libc::EAGAIN, libc::ETIMEDOUT, libc::EHOSTUNREACH, ENETUNREACH, EACCES];
    // By any of these the kernel would load a module, and landlock's rules on ports would hold for none.
    let unknown = [libc::EPROTONOSUPPORT, libc::ESOCKTNOSUPPORT];
    let closed = |kind: c_long, protocol: c_long| {
        let high = 1 << 32;
        let ways = [(inet, kind, protocol), (10, kind, protocol), (inet | high, kind | 0x8_0000, protocol | high)];
        ways.into_iter().map(|(family, kind, protocol)| {
            let socket = |number, more: &[c_long]| call(number, &[&[family, kind, protocol], more].concat());
            let mut pair = [0_i32; 2];
            let single = refused(socket(libc::SYS_socket, &[]), &unknown);
            let pair = refused(socket(libc::SYS_socketpair, &[pointer_mut(&mut pair)]), &unknown);
            all([("socket", single), ("socketpair", pair)].map(|(what, verdict)| (what.to_owned(), verdict)))
        })
    };
    let odd: [(&str, c_long, c_long); 9] = [
        ("SCTP", stream, 132),
        ("SCTP in sequence", 5, 132),
        ("SCTP by its type", 5, 0),
        ("MPTCP", stream, 262),
        ("SMC", stream, 256),
        ("UDPLITE", datagram, 136),
        ("DCCP", 6, 33),
        ("DCCP by its type", 6, 0),
        ("AF_PACKET by an old name", 10, 0x300),
    ];
    let odd = odd.into_iter().flat_map(|(what, kind, protocol)| {
        closed(kind, protocol).map(move |verdict| (format!("{what} ({kind}, {protocol})"), verdict))
    });
    let raw = refused(call(libc::SYS_socket, &[inet, raw, 1]), &[EPERM]);
    let ping = refused(reach(datagram, 1), &gone);
    all(odd.chain([("raw ICMP".to_owned(), raw), ("ping".to_owned(), ping)]))
}
