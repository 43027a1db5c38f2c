//! Asks Linux whether a TCP port has handshakes under way, which a listener can't tell: a client may
//! hold one for done whose last segment is on its way, or whose accept is deferred until data comes
//! (`TCP_DEFER_ACCEPT` in tcp(7)).
//!
//! It costs a walk over the kernel's table: one as the drain begins, and while any handshake is half done one each
//! 5 ms, for `settle` at most.

use std::io;
use std::net::SocketAddr;

use crate::sock_diag::{AF_INET, AF_INET6, any};

/// The states `TCP_SYN_RECV` and `TCP_NEW_SYN_RECV`, as bits.
const SYN_RECV: u32 = 1 << 3 | 1 << 12;

/// `TCP_LISTEN`, as a bit.
const LISTEN: u32 = 1 << 10;

/// Whether the port of `addr` has any.
///
/// # Errors
///
/// Where it may not be asked, or who asks does not see the listener: it is of another network namespace.
pub(super) fn under_way(addr: SocketAddr) -> io::Result<bool> {
    // A socket of IPv6 may take connections of IPv4, too.
    let families: &[u8] = if addr.is_ipv4() {
        &[AF_INET]
    } else {
        &[AF_INET6, AF_INET]
    };
    for family in families {
        if any(*family, addr.port(), SYN_RECV)? {
            return Ok(true);
        }
    }
    for family in families {
        if any(*family, addr.port(), LISTEN)? {
            return Ok(false);
        }
    }
    Err(io::ErrorKind::NotFound.into())
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::time::Duration;

    use super::*;

    /// Of those that it is asked for; that it sees any is shown in `tests/listeners/queue.rs`, as those need `TCP_DEFER_ACCEPT`.
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
            assert!(!under_way(other).unwrap_or(false), "{other}");
            drop((clients, listener));
            // As of one that is out of sight.
            assert!(under_way(addr).is_err(), "{addr}");
        }
    }
}
