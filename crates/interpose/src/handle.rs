//! An emulated open file and the kernel object that stands for it.
//!
//! The object is a socket pair. The client's descriptor is one end, so that
//! `dup`, `fork`, `exec`, descriptor passing and `poll` are the kernel's business.
//! We hold the other end: it tells when the last copy of the client's end is
//! closed, in whatever process. Its address is how any copy is recognised.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, OnceLock};

use host::{Errno, File, FileMode};
use host_linux::PrivateFd;
use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, epoll, poll};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, bind,
    getpeername, recv, send, socketpair,
};
use rustix::rand::{GetRandomFlags, getrandom};

/// Names an emulated open file on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Id(pub(crate) u64);

const PREFIX: &str = "softiommu/";

impl Id {
    fn random() -> Result<Self, Errno> {
        let mut bytes = [0; 8];
        getrandom(&mut bytes, GetRandomFlags::empty())?;
        Ok(Self(u64::from_le_bytes(bytes).max(1)))
    }

    /// The file that `fd` is a client's end of, whoever serves it.
    pub(crate) fn of(fd: impl AsFd) -> Option<Self> {
        let address = SocketAddrUnix::try_from(getpeername(fd).ok()??).ok()?;
        let name = std::str::from_utf8(address.abstract_name()?).ok()?;
        let digits = name.strip_prefix(PREFIX).filter(|digits| digits.len() == 16)?;
        u64::from_str_radix(digits, 16).ok().map(Self)
    }
}

/// Our end of the pair.
#[derive(Debug)]
pub(crate) struct ServerEnd {
    pub(crate) fd: PrivateFd,
    /// A byte waits at the client's end, so that `poll` reports `POLLIN`.
    armed: Mutex<bool>,
    /// The service that watches it, if any.
    watcher: OnceLock<Arc<PrivateFd>>,
}

/// A new pair: the client's end (close-on-exec), ours and its name.
pub(crate) fn pair() -> Result<(OwnedFd, ServerEnd, Id), Errno> {
    let (client, server) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    let id = loop {
        let id = Id::random()?;
        let name = format!("{PREFIX}{:016x}", id.0);
        match bind(&server, &SocketAddrUnix::new_abstract_name(name.as_bytes())?) {
            Ok(()) => break id,
            Err(Errno::ADDRINUSE) => {}
            Err(e) => return Err(e),
        }
    };
    let fd = PrivateFd::new(server).map_err(|_| Errno::MFILE)?;
    Ok((client, ServerEnd { fd, armed: Mutex::new(false), watcher: OnceLock::new() }, id))
}

impl ServerEnd {
    /// Whether the last copy of the client's end is closed.
    pub(crate) fn hung_up(&self) -> bool {
        let mut fds = [PollFd::new(&self.fd, PollFlags::empty())];
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut fds, Some(&now)).is_ok_and(|n| n > 0) && fds[0].revents().contains(PollFlags::HUP)
    }

    /// Lets the service behind `epoll` see calls and the end of this file, as
    /// `token`.
    pub(crate) fn watch(&self, epoll: &Arc<PrivateFd>, token: u64) {
        self.watcher.get_or_init(|| {
            let data = epoll::EventData::new_u64(token);
            let _ = epoll::add(epoll, &self.fd, data, epoll::EventFlags::IN);
            Arc::clone(epoll)
        });
    }

    /// Makes `poll` on the client's end report `POLLIN`: once more each time, for
    /// those who wait for edges.
    fn arm(&self) {
        let mut armed = self.armed.lock();
        let sent = send(&self.fd, &[0], SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
        // Full is as readable as can be.
        *armed |= matches!(sent, Ok(_) | Err(Errno::AGAIN));
    }

    /// Makes it stop; `client` is any copy of the client's end.
    fn disarm(&self, client: impl AsFd) {
        let mut armed = self.armed.lock();
        if *armed {
            let mut byte = [0];
            while recv(&client, &mut byte, RecvFlags::DONTWAIT).is_ok_and(|(n, _)| n > 0) {}
            *armed = false;
        }
    }
}

impl Drop for ServerEnd {
    fn drop(&mut self) {
        // A forked child may still hold a copy of our end; the kernel would go on
        // reporting its events.
        if let Some(epoll) = self.watcher.get() {
            let _ = epoll::delete(epoll, &self.fd);
        }
    }
}

/// An emulated open file of this process.
pub(crate) struct LocalFile {
    pub(crate) file: Arc<dyn File>,
    pub(crate) end: Arc<ServerEnd>,
    /// What `/proc/self/fd` shows.
    pub(crate) name: String,
}

impl LocalFile {
    /// Joins `file` to `end`; `path` is where it was opened, if anywhere.
    pub(crate) fn new(file: Arc<dyn File>, end: ServerEnd, path: Option<&str>) -> Self {
        let name = match (path, file.mode()) {
            (Some(path), _) => path.to_owned(),
            (None, FileMode::AnonInode(name)) => format!("anon_inode:{name}"),
            (None, FileMode::CharDevice { major, minor }) => format!("/dev/char/{major}:{minor}"),
        };
        let end = Arc::new(end);
        // Weak: the file must not keep alive what tells that it is unused.
        let notified = Arc::downgrade(&end);
        file.set_notify(Box::new(move || {
            if let Some(end) = notified.upgrade() {
                end.arm();
            }
        }));
        Self { file, end, name }
    }

    /// To be called after a read: `POLLIN` must say what is true now.
    pub(crate) fn update_readable(&self, client: impl AsFd) {
        // No lock is held over `readable`: the file calls us under its own.
        if !self.file.readable() {
            self.end.disarm(client);
            if self.file.readable() {
                self.end.arm();
            }
        }
    }
}
