//! Asks Linux about TCP sockets, by the netlink protocol of `sock_diag(7)`, as `ss` does. It looks at no socket's data.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

const AF_NETLINK: i32 = 16;
const NETLINK_SOCK_DIAG: i32 = 4;
pub(crate) const AF_INET: u8 = 2;
pub(crate) const AF_INET6: u8 = 10;
const IPPROTO_TCP: u8 = 6;

/// `NLM_F_REQUEST`, and with `NLM_F_DUMP`.
const ONE: u16 = 1;
const DUMP: u16 = 0x301;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const SOCK_DIAG_BY_FAMILY: u16 = 20;

/// Behind a `struct nlmsghdr`, where `idiag_dport` and `idiag_wqueue` lie in a `struct inet_diag_msg`.
const DPORT: usize = 16 + 6;
const WQUEUE: usize = 16 + 60;

/// Whether any socket of that family and local port is in one of these states, which are bits.
///
/// # Errors
///
/// Where it may not be asked.
pub(crate) fn any(family: u8, port: u16, states: u32) -> io::Result<bool> {
    let mut request = request(family, DUMP);
    request[20..24].copy_from_slice(&states.to_ne_bytes());
    request[24..26].copy_from_slice(&port.to_be_bytes());
    Ok(ask(&request)?.is_some())
}

/// How many bytes of a connection were written and not acknowledged by the other side's kernel.
///
/// # Errors
///
/// Where it may not be asked, and where there is none.
pub(crate) fn unacknowledged(local: SocketAddr, peer: SocketAddr) -> io::Result<u32> {
    let family = if local.is_ipv4() { AF_INET } else { AF_INET6 };
    let mut request = request(family, ONE);
    // In any state.
    request[20..24].fill(0xff);
    request[24..26].copy_from_slice(&local.port().to_be_bytes());
    request[26..28].copy_from_slice(&peer.port().to_be_bytes());
    for (at, addr) in [(28, local), (44, peer)] {
        match addr.ip() {
            IpAddr::V4(ip) => request[at..at + 4].copy_from_slice(&ip.octets()),
            IpAddr::V6(ip) => request[at..at + 16].copy_from_slice(&ip.octets()),
        }
    }
    if let SocketAddr::V6(peer) = peer {
        request[60..64].copy_from_slice(&peer.scope_id().to_ne_bytes());
    }
    // `INET_DIAG_NOCOOKIE`.
    request[64..].fill(0xff);
    // Of a connection that has gone it is the listener that answers.
    match ask(&request)? {
        Some((port, queue)) if port == peer.port() => Ok(queue),
        _ => Err(io::ErrorKind::NotFound.into()),
    }
}

/// A `struct nlmsghdr`, and a `struct inet_diag_req_v2` behind it.
fn request(family: u8, flags: u16) -> [u8; 72] {
    let mut request = [0; 72];
    request[..4].copy_from_slice(&72_u32.to_ne_bytes());
    request[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    request[6..8].copy_from_slice(&flags.to_ne_bytes());
    request[16] = family;
    request[17] = IPPROTO_TCP;
    request
}

/// The remote port and the write queue of the first socket that it is answered by, if there is any.
fn ask(request: &[u8]) -> io::Result<Option<(u16, u32)>> {
    let protocol = Some(Protocol::from(NETLINK_SOCK_DIAG));
    let mut socket = Socket::new(Domain::from(AF_NETLINK), Type::DGRAM, protocol)?;
    // The kernel answers within the call; this is for one that does not.
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    socket.write_all(request)?;
    let mut answer = [0; 16 * 1024];
    loop {
        let n = socket.read(&mut answer)?;
        let answer = &answer[..n];
        let kind = answer.get(4..6).ok_or(io::ErrorKind::UnexpectedEof)?;
        match u16::from_ne_bytes([kind[0], kind[1]]) {
            SOCK_DIAG_BY_FAMILY => {
                let port = answer.get(DPORT..).and_then(<[u8]>::first_chunk);
                let queue = answer.get(WQUEUE..).and_then(<[u8]>::first_chunk);
                let (&port, &queue) = port.zip(queue).ok_or(io::ErrorKind::UnexpectedEof)?;
                return Ok(Some((u16::from_be_bytes(port), u32::from_ne_bytes(queue))));
            }
            NLMSG_DONE => {
                // It may have come to nothing behind that: an error of the kernel's, below zero.
                let error = answer.get(16..).and_then(<[u8]>::first_chunk);
                return match error.map(|it| i32::from_ne_bytes(*it)) {
                    Some(..0) => Err(io::ErrorKind::Unsupported.into()),
                    _ => Ok(None),
                };
            }
            NLMSG_ERROR => return Err(io::ErrorKind::Unsupported.into()),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    fn wait() -> bool {
        std::thread::sleep(Duration::from_millis(10));
        false
    }

    #[test]
    fn sees_what_the_other_side_does_not_take() {
        for addr in ["127.0.0.1:0", "[::1]:0", "[::]:0"] {
            let Ok(listener) = TcpListener::bind(addr) else {
                continue;
            };
            let port = listener.local_addr().expect("bound").port();
            let to = if addr == "[::1]:0" {
                "::1"
            } else {
                "127.0.0.1"
            };
            let mut client = TcpStream::connect((to, port)).expect("it listens");
            let (mut server, peer) = listener.accept().expect("it has connected");
            let local = server.local_addr().expect("connected");
            let unread = || unacknowledged(local, peer).expect("may be asked");
            assert_eq!(unread(), 0, "{addr}");
            server.set_nonblocking(true).expect("it can be");
            let mut sent = 0;
            while let Ok(n) = server.write(&[0; 4096]) {
                sent += n;
            }
            let full = unread();
            assert!(full > 0 && full as usize <= sent, "{addr}: {full}");
            let mut half = vec![0; sent / 2];
            client.read_exact(&mut half).expect("it was sent");
            assert!(unread() < full, "{addr}: of {full} {}", unread());
            // Reset, with what is unread.
            drop(client);
            let gone = || unacknowledged(local, peer).is_err();
            assert!((0..500).any(|_| gone() || wait()), "{addr}");
        }
    }
}
