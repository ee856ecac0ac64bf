//! Descriptors of our own in a process that belongs to someone else.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::io::{fcntl_dupfd_cloexec, fcntl_getfd};
use rustix::process::{Resource, getrlimit};

/// Which descriptors are ours, so that an interposed `close_range(3, ~0)` or
/// `dup2` can leave them alone.
static PRIVATE: [AtomicU64; MAX_FDS / 64] = [const { AtomicU64::new(0) }; MAX_FDS / 64];
const MAX_FDS: usize = 1 << 20;

/// Whether `fd` is a [`PrivateFd`] of this process.
#[inline]
pub fn is_private_fd(fd: RawFd) -> bool {
    usize::try_from(fd)
        .ok()
        .and_then(|fd| Some(PRIVATE.get(fd / 64)?.load(Ordering::Relaxed) >> (fd % 64) & 1 != 0))
        .unwrap_or(false)
}

fn mark(fd: RawFd, private: bool) {
    let Some(word) = PRIVATE.get(fd as usize / 64) else {
        return;
    };
    let bit = 1 << (fd as usize % 64);
    if private {
        word.fetch_or(bit, Ordering::Relaxed);
    } else {
        word.fetch_and(!bit, Ordering::Relaxed);
    }
}

/// Closes every private descriptor except `keep`, in a forked child that has
/// forgotten (and will never drop) whatever held them.
pub fn close_private_fds(keep: &[RawFd]) {
    for (index, word) in PRIVATE.iter().enumerate() {
        let mut bits = word.load(Ordering::Relaxed);
        while bits != 0 {
            let fd = (index * 64) as RawFd + bits.trailing_zeros() as RawFd;
            bits &= bits - 1;
            if !keep.contains(&fd) {
                mark(fd, false);
                // Not open if another thread made it while the kernel copied the
                // descriptors first and the memory, with its mark, later.
                // SAFETY: the caller says that nothing will use this descriptor again.
                let _ = unsafe { rustix::io::try_close(fd) };
            }
        }
    }
}

/// A descriptor moved out of the way of the program: a high number, close on
/// exec, closed without the C library on drop.
#[derive(Debug)]
pub struct PrivateFd(RawFd);

impl PrivateFd {
    /// Moves `fd` to a high number; it stays where it is if there is none free.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        // Programs count upwards from 0 and a few put things at 255 or at a
        // fixed high number; the top quarter of the limit is the quietest.
        let limit = getrlimit(Resource::Nofile).current.unwrap_or(MAX_FDS as u64);
        let base = limit.min(MAX_FDS as u64) / 4 * 3;
        let fd = fcntl_dupfd_cloexec(&fd, base as RawFd).unwrap_or(fd);
        let fd = fd.into_raw_fd();
        mark(fd, true);
        Ok(Self(fd))
    }

    /// Takes over a private descriptor that a forked child inherited; `None` if
    /// it is not open.
    pub fn adopt(fd: RawFd) -> Option<Self> {
        // SAFETY: only asks whether the number is in use.
        let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
        fcntl_getfd(borrowed).ok()?;
        mark(fd, true);
        Some(Self(fd))
    }
}

impl AsFd for PrivateFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: `self` owns the descriptor for as long as the borrow lasts.
        unsafe { BorrowedFd::borrow_raw(self.0) }
    }
}

impl AsRawFd for PrivateFd {
    fn as_raw_fd(&self) -> RawFd {
        self.0
    }
}

impl Drop for PrivateFd {
    fn drop(&mut self) {
        mark(self.0, false);
        // SAFETY: `self` owns the descriptor and this is its last use. Not through
        // the C library: its `close` may be interposed and refuse private ones.
        unsafe { rustix::io::close(self.0) };
    }
}
