//! What the kernel knows of the sockets of this process.

use std::collections::HashSet;
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use socket2::{SockAddr, Socket};

use super::{BOUND, Target};

/// How many file descriptors of this process are connections whose local port is `port`: those of
/// the server's side, not its listener, not the clients'. None, where it isn't Linux: nothing is known there.
///
/// To be asked while the clients still hold their ends: the kernel's table no longer lists a socket
/// that both sides have ended, even if its file descriptor is open. One that was only shut down here
/// is counted.
pub fn open_fds_to(port: u16) -> usize {
    if cfg!(not(target_os = "linux")) {
        return 0;
    }
    let table = std::fs::read_to_string("/proc/self/net/tcp").expect("Linux has this file");
    // Thousands of lines after other tests, most of them of connections in TIME_WAIT.
    let hex = format!(":{port:04X} ");
    let mut inodes: Vec<String> = table
        .lines()
        .skip(1)
        .filter(|line| line.contains(&hex))
        .filter_map(|line| {
            // sl local_address rem_address st queues tr:when retrnsmt uid timeout inode
            let fields: Vec<&str> = line.split_whitespace().collect();
            let (_, local) = fields.get(1)?.rsplit_once(':')?;
            let is_ours = u16::from_str_radix(local, 16) == Ok(port);
            let listens = fields[3] == "0A";
            (is_ours && !listens).then(|| format!("socket:[{}]", fields[9]))
        })
        .collect();
    // Of thousands that come and go while it is read, it lists some more than once.
    inodes.sort_unstable();
    inodes.dedup();
    held(&inodes)
}

/// The same for the Unix socket that is bound to `path`.
pub fn open_fds_at(path: &Path) -> usize {
    if cfg!(not(target_os = "linux")) {
        return 0;
    }
    let table = std::fs::read_to_string("/proc/self/net/unix").expect("Linux has this file");
    let inodes: Vec<String> = table
        .lines()
        .skip(1)
        .filter_map(|line| {
            // Num RefCount Protocol Flags Type St Inode Path, where those accepted have the listener's
            let fields: Vec<&str> = line.split_whitespace().collect();
            let listens = fields[3] == "00010000";
            let is_ours = fields.get(7).is_some_and(|at| Path::new(at) == path);
            (is_ours && !listens).then(|| format!("socket:[{}]", fields[6]))
        })
        .collect();
    held(&inodes)
}

/// How many are in the accept queue of this listener. Linux only.
pub fn queued_at(addr: SocketAddr) -> usize {
    let table = std::fs::read_to_string("/proc/self/net/tcp").expect("Linux has this file");
    let local = format!(":{:04X}", addr.port());
    // sl local_address rem_address st tx_queue:rx_queue …
    let listener = table.lines().find_map(|line| {
        let queues = line.split_once(" 00000000:0000 0A ")?;
        queues.0.ends_with(&local).then_some(queues.1)
    });
    let queued = listener.and_then(|it| it.get(9..17));
    let queued = queued.expect("it listens");
    usize::from_str_radix(queued, 16).expect("a number")
}

/// How many bytes of this client's wait on the other side to be read. `None` where nobody tells.
pub fn unread(client: &Socket) -> Option<usize> {
    let port = |addr: io::Result<SockAddr>| Some(addr.ok()?.as_socket()?.port());
    let (ours, theirs) = (port(client.local_addr())?, port(client.peer_addr())?);
    let table = std::fs::read_to_string("/proc/self/net/tcp").ok()?;
    let (ours, theirs) = (format!(":{ours:04X}"), format!(":{theirs:04X}"));
    table.lines().find_map(|line| {
        // sl local_address rem_address st tx_queue:rx_queue …
        let fields: Vec<&str> = line.split_whitespace().collect();
        let is_it = fields[1].ends_with(&theirs) && fields[2].ends_with(&ours);
        let (_, unread) = fields.get(4).filter(|_| is_it)?.split_once(':')?;
        if fields[3] == "03" {
            return Some(usize::MAX); // in a handshake still
        }
        usize::from_str_radix(unread, 16).ok()
    })
}

/// How many of these are file descriptors of this process.
fn held(inodes: &[String]) -> usize {
    let links: HashSet<PathBuf> = std::fs::read_dir("/proc/self/fd")
        .expect("Linux has this directory")
        // Another thread may have closed one meanwhile.
        .filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok())
        .collect();
    inodes
        .iter()
        .filter(|inode| links.contains(&PathBuf::from(inode)))
        .count()
}

/// Nobody listens there any more.
#[track_caller]
pub fn assert_refused(target: &Target) {
    let error = match target {
        Target::Tcp(addr) | Target::Tls(addr) => TcpStream::connect_timeout(addr, BOUND).err(),
        Target::Unix(path) => UnixStream::connect(path).err(),
    };
    let kind = error.as_ref().map(io::Error::kind);
    assert_eq!(
        kind,
        Some(ErrorKind::ConnectionRefused),
        "{target:?}: {error:?}"
    );
}
