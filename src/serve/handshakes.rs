//! Asks Linux whether a TCP port has handshakes under way, which a listener can't tell: a client may
//! hold one for done whose last segment is on its way, or whose accept is deferred until data comes
//! (`TCP_DEFER_ACCEPT` in tcp(7)).
//!
//! By the netlink protocol of `sock_diag(7)`, as `ss state syn-recv` does. It looks at no other sockets'
//! data, and costs a walk over the kernel's table: one as the drain begins, and while any handshake is half done one each
//! 5 ms, for `settle` at most.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

const AF_NETLINK: i32 = 16;
const NETLINK_SOCK_DIAG: i32 = 4;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IPPROTO_TCP: u8 = 6;

/// `NLM_F_REQUEST | NLM_F_DUMP`.
const DUMP: u16 = 0x301;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const SOCK_DIAG_BY_FAMILY: u16 = 20;

/// The states `TCP_SYN_RECV` and `TCP_NEW_SYN_RECV`, as bits.
const SYN_RECV: u32 = 1 << 3 | 1 << 12;

/// Whether the port of `addr` has any.
///
/// # Errors
///
/// Where it may not be asked.
pub(super) fn under_way(addr: SocketAddr) -> io::Result<bool> {
    // A socket of IPv6 may take connections of IPv4, too.
    let families: &[u8] = if addr.is_ipv4() {
        &[AF_INET]
    } else {
        &[AF_INET6, AF_INET]
    };
    for family in families {
        if any(*family, addr.port())? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn any(family: u8, port: u16) -> io::Result<bool> {
    let protocol = Some(Protocol::from(NETLINK_SOCK_DIAG));
    let mut socket = Socket::new(Domain::from(AF_NETLINK), Type::DGRAM, protocol)?;
    // The kernel answers within the call; this is for one that does not.
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    socket.write_all(&request(family, port))?;
    let mut answer = [0; 16 * 1024];
    loop {
        let n = socket.read(&mut answer)?;
        match answer[..n].get(4..6) {
            Some(kind) => match u16::from_ne_bytes([kind[0], kind[1]]) {
                SOCK_DIAG_BY_FAMILY => return Ok(true),
                NLMSG_DONE => return Ok(false),
                NLMSG_ERROR => return Err(io::ErrorKind::Unsupported.into()),
                _ => {}
            },
            None => return Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

/// A `struct nlmsghdr`, and a `struct inet_diag_req_v2` behind it.
fn request(family: u8, port: u16) -> [u8; 72] {
    let mut request = [0; 72];
    request[..4].copy_from_slice(&72_u32.to_ne_bytes());
    request[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    request[6..8].copy_from_slice(&DUMP.to_ne_bytes());
    request[16] = family;
    request[17] = IPPROTO_TCP;
    request[20..24].copy_from_slice(&SYN_RECV.to_ne_bytes());
    request[24..26].copy_from_slice(&port.to_be_bytes());
    request
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    /// A full queue leaves handshakes half done.
    #[test]
    fn sees_handshakes_of_this_port_only() {
        for addr in ["127.0.0.1:0", "[::1]:0", "[::]:0"] {
            let Ok(listener) = TcpListener::bind(addr) else {
                continue;
            };
            let addr = listener.local_addr().expect("bound");
            assert!(!under_way(addr).expect("may be asked"), "{addr}");
            let backlog = socket2::SockRef::from(&listener).listen(0);
            backlog.expect("it listens");
            let to = SocketAddr::new(
                if addr.is_ipv4() || addr.ip().is_unspecified() {
                    [127, 0, 0, 1].into()
                } else {
                    addr.ip()
                },
                addr.port(),
            );
            let connect = || TcpStream::connect_timeout(&to, Duration::from_millis(50));
            let clients: Vec<_> = (0..4).map(|_| connect()).collect();
            let other = SocketAddr::new(addr.ip(), addr.port() ^ 1);
            assert!(!under_way(other).expect("may be asked"), "{other}");
            drop(clients);
        }
    }
}
