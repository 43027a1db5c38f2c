//! What supervisor and worker say to each other, with a file descriptor: packets on a pair of Unix sockets.
//!
//! The worker's end is its standard input: so it is inherited without a number to agree upon, and without `unsafe`.
//!
//! Slow: who sends waits, as the kernel's buffer is full. Gone: sending fails, and receiving gives `None` once what
//! was on its way has been received.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::io::Interest;
use tokio::net::UnixStream;

use crate::echo::Echo;
use crate::session::Session;

/// The first argument of a worker; its number is the second.
pub const WORKER: &str = "--worker";

#[derive(Debug, Serialize, Deserialize)]
pub enum ToWorker {
    /// The first message. With the listening socket, unless connections are handed out.
    Begin,
    /// A connection, for whom the supervisor waits until it is [`Taken`](ToSupervisor::Taken) or given
    /// [`Back`](ToSupervisor::Back).
    Take {
        id: u64,
        what: Connection,
    },
    /// Ends, and leaves to the others what is queued.
    Leave,
    /// Ends within so many milliseconds, and takes what is queued, as all others end too.
    Stop(u64),
    Force,
}

#[derive(Debug, Serialize, Deserialize)]
pub enum ToSupervisor {
    Ready,
    /// Somebody else has told it to end: it takes what it is given for a moment yet.
    Told,
    /// It accepts no more; `faulty` if something in it has panicked.
    Leaving {
        faulty: bool,
    },
    Taken(u64),
    /// The worker is closing, or has no descriptors, and has not read a byte of it.
    Back(u64),
    /// A connection, to be given to another worker.
    Give(Connection),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Connection {
    /// That has just been accepted.
    Fresh,
    Session(Session),
    Echo(Echo),
}

/// The longest message: a packet must fit into the kernel's buffer.
const LONGEST: usize = 128 * 1024;

/// To its type it is a stream, but what comes is still one packet at a time.
pub struct Wire(UnixStream);

impl Wire {
    pub fn pair() -> io::Result<(Self, OwnedFd)> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        Ok((Self(UnixStream::from_std(ours.into())?), theirs))
    }

    /// That of this worker.
    pub fn of_worker() -> io::Result<Self> {
        let stdin = io::stdin().as_fd().try_clone_to_owned()?;
        // Or each process that this one starts would hold it too, and our end would not be seen.
        rustix::stdio::dup2_stdin(std::fs::File::open("/dev/null")?)?;
        Ok(Self(UnixStream::from_std(stdin.into())?))
    }

    pub async fn send(&self, message: &impl Serialize, fd: Option<&OwnedFd>) -> io::Result<()> {
        let bytes = serde_json::to_vec(message)?;
        if bytes.len() > LONGEST {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let fd = fd.map(|fd| [fd.as_fd()]);
        let send = || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if let Some(fd) = &fd {
                control.push(SendAncillaryMessage::ScmRights(fd));
            }
            let iov = [IoSlice::new(&bytes)];
            sendmsg(&self.0, &iov, &mut control, SendFlags::NOSIGNAL)?;
            Ok(())
        };
        self.0.async_io(Interest::WRITABLE, send).await
    }

    /// `None` when the other end is gone.
    pub async fn receive<M: DeserializeOwned>(&self) -> io::Result<Option<(M, Option<OwnedFd>)>> {
        let receive = || {
            let mut bytes = vec![0; LONGEST];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let iov = &mut [IoSliceMut::new(&mut bytes)];
            let received = recvmsg(&self.0, iov, &mut control, RecvFlags::CMSG_CLOEXEC)?;
            bytes.truncate(received.bytes);
            let fd = control.drain().find_map(|it| match it {
                RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
                _ => None,
            });
            Ok((bytes, fd))
        };
        loop {
            match self.0.async_io(Interest::READABLE, receive).await {
                // It is gone and has not read all; what it had said before is still to come.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
                Err(error) => return Err(error),
                Ok((bytes, _)) if bytes.is_empty() => return Ok(None),
                Ok((bytes, fd)) => return Ok(Some((serde_json::from_slice(&bytes)?, fd))),
            }
        }
    }
}
