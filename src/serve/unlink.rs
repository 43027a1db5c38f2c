//! The path of a Unix socket, which outlives it.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::task::{Context, Poll};

use tokio::net::unix::SocketAddr;
use tokio::net::{UnixListener, UnixStream};

use super::listener::Listener;

/// A [`UnixListener`] that removes its path when it is closed.
///
/// Neither std nor tokio removes the path of a Unix socket, and as long as it is there, nobody else can bind
/// it. As Go's `net.UnixListener` this removes a path that it has bound itself; other than that one, only
/// while it still leads to its own socket. A successor may have put another there meanwhile, by renaming say,
/// which then stays. Never one that was inherited: that belongs to whoever bound it, and a child that was forked
/// removes nothing. Who hands the socket itself on, to a successor that goes on with the same path, keeps it by
/// [`into_inner`](Self::into_inner).
///
/// Off by default, as the path may be somebody else's to remove: systemd's (`RemoveOnStop=`), or of a successor
/// who removes it before binding.
///
/// The path goes before the last look at the queue, so that a connect either fails or is served, and none is reset.
///
/// # Examples
///
/// ```
/// # use axum::Router;
/// use http_terminator::{Terminator, UnlinkOnClose};
///
/// # #[tokio::main] async fn main() -> std::io::Result<()> {
/// # let app: Router = Router::new();
/// # let path = std::env::temp_dir().join(format!("unlink-on-close-{}", std::process::id()));
/// let terminator = Terminator::new();
/// let server = terminator.serve(UnlinkOnClose::bind(&path)?, app);
/// drop(terminator.terminate());
/// server.await;
/// assert!(!path.exists());
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct UnlinkOnClose {
    // First, if it is dropped: while the socket lives a successor that connects does not take the path for a left over one, and
    // no other can get its inode.
    bound: Bound,
    inner: UnixListener,
}

/// A path, for as long as it is to be removed.
#[derive(Debug)]
struct Bound {
    path: PathBuf,
    /// Device and inode: what tells whether it is still the same.
    is: Option<(u64, u64)>,
    /// Whose it is: a child's copy is not.
    of: u32,
}

impl UnlinkOnClose {
    /// Binds it, as [`UnixListener::bind`] does. The path is made absolute, so that a later `chdir` changes nothing.
    ///
    /// # Errors
    ///
    /// Those of `bind`: `AddrInUse` also where a path is left over from a process that was killed. That is not
    /// removed here, as nobody can tell whether it is still in use without connecting to it.
    ///
    /// # Panics
    ///
    /// As [`UnixListener::bind`] does, outside of a tokio runtime with IO enabled.
    ///
    /// # Examples
    ///
    /// ```
    /// # use http_terminator::UnlinkOnClose;
    /// # #[tokio::main] async fn main() -> std::io::Result<()> {
    /// # let path = std::env::temp_dir().join(format!("unlink-bind-{}", std::process::id()));
    /// let listener = UnlinkOnClose::bind(&path)?;
    /// drop(listener);
    /// assert!(!path.exists());
    /// # Ok(()) }
    /// ```
    pub fn bind(path: impl AsRef<Path>) -> io::Result<Self> {
        // Ahead of the bind, behind which a failure would leave it there.
        let absolute = std::path::absolute(&path)?;
        let inner = UnixListener::bind(&path)?;
        // At once: somebody may remove it, and bind his own.
        let is = is(path.as_ref());
        let path = absolute;
        let of = std::process::id();
        let bound = Bound { path, is, of };
        Ok(Self { bound, inner })
    }

    /// The listener.
    ///
    /// # Examples
    ///
    /// ```
    /// # use http_terminator::UnlinkOnClose;
    /// # #[tokio::main] async fn main() -> std::io::Result<()> {
    /// # let path = std::env::temp_dir().join(format!("unlink-ref-{}", std::process::id()));
    /// let listener = UnlinkOnClose::bind(&path)?;
    /// assert_eq!(listener.get_ref().local_addr()?.as_pathname(), Some(&*path));
    /// # Ok(()) }
    /// ```
    pub fn get_ref(&self) -> &UnixListener {
        &self.inner
    }

    /// The listener alone: its path stays.
    ///
    /// # Examples
    ///
    /// ```
    /// # use http_terminator::UnlinkOnClose;
    /// # #[tokio::main] async fn main() -> std::io::Result<()> {
    /// # let path = std::env::temp_dir().join(format!("unlink-inner-{}", std::process::id()));
    /// drop(UnlinkOnClose::bind(&path)?.into_inner());
    /// assert!(path.exists());
    /// # std::fs::remove_file(&path)?;
    /// # Ok(()) }
    /// ```
    pub fn into_inner(mut self) -> UnixListener {
        self.bound.is = None;
        self.inner
    }
}

impl Listener for UnlinkOnClose {
    type Io = UnixStream;
    type Addr = SocketAddr;

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(Self::Io, Self::Addr)>> {
        Listener::poll_accept(&mut self.inner, cx)
    }

    fn accept_queued(&mut self) -> io::Result<Option<(Self::Io, Self::Addr)>> {
        self.inner.accept_queued()
    }

    fn close(self) -> Vec<(Self::Io, Self::Addr)> {
        drop(self.bound);
        self.inner.close()
    }

    fn prepare(&mut self) {
        self.inner.prepare();
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        let ours = self.of == std::process::id();
        if ours && self.is.is_some() && is(&self.path) == self.is {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn is(path: &Path) -> Option<(u64, u64)> {
    let it = fs::symlink_metadata(path).ok()?;
    Some((it.dev(), it.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Its child's copy goes too, as that ends.
    #[test]
    fn a_path_goes_with_who_bound_it_and_not_with_its_child() {
        let dir = std::env::temp_dir();
        let path = dir.join(format!("http-terminator-unlink-{}", std::process::id()));
        fs::write(&path, "").expect("a fresh name");
        let bound = |of| Bound {
            path: path.clone(),
            is: is(&path),
            of,
        };
        drop(bound(std::process::id() + 1));
        assert!(path.exists());
        drop(bound(std::process::id()));
        assert!(!path.exists());
    }
}
