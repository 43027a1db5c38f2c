//! Where tests listen.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU16, Ordering};

use tokio::net::{TcpListener, TcpSocket};
use tokio::runtime::Handle;

use super::{load, starts};

/// A listener, for those who have no runtime at hand, and its address. With `SO_REUSEADDR`, as tokio's own `bind`.
///
/// Its port is none that the kernel chooses for who asks for any: one of these, given up, may be another test's at once, and
/// what should be refused there is not.
pub fn bound(runtime: &Handle) -> (TcpListener, SocketAddr) {
    static N: AtomicU16 = AtomicU16::new(0);
    load::watch_load();
    starts::beset();
    let _inside = runtime.enter();
    let [.., high, low] = std::process::id().to_be_bytes();
    for _ in 0..PORTS {
        // Processes side by side are far from each other.
        let n = u16::from_be_bytes([low, high]).wrapping_add(N.fetch_add(1, Ordering::Relaxed));
        let addr = SocketAddr::from(([127, 0, 0, 1], FIRST + n % PORTS));
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_reuseaddr(true).expect("a TCP option");
        match socket.bind(addr).and_then(|()| socket.listen(1024)) {
            Ok(listener) => return (listener, addr),
            Err(error) if error.kind() == ErrorKind::AddrInUse => {}
            Err(error) => panic!("{addr}: {error}"),
        }
    }
    panic!("no port is free");
}

/// The same within a runtime.
pub fn bound_here() -> (TcpListener, SocketAddr) {
    bound(&Handle::current())
}

/// Below those that kernels choose of, from 32768 on in Linux.
const FIRST: u16 = 12_000;
const PORTS: u16 = 20_000;
