//! Waiting for the client to signal an eventfd of its own.

use std::io;
use std::os::fd::BorrowedFd;

use host::StartThread;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::{Errno, fcntl_dupfd_cloexec, preadv2, write};

use crate::PrivateFd;

/// Has the watching thread end.
struct Stop(PrivateFd);

impl Drop for Stop {
    fn drop(&mut self) {
        let _ = write(&self.0, &1_u64.to_ne_bytes());
    }
}

/// See [`host::KernelFile::on_signal`].
pub(crate) fn watch(
    fd: BorrowedFd<'_>,
    spawn: &StartThread<'_>,
    mut signalled: Box<dyn FnMut() + Send>,
) -> io::Result<Box<dyn Send + Sync>> {
    let watched = PrivateFd::new(fcntl_dupfd_cloexec(fd, 0)?)?;
    let end = eventfd(0, EventfdFlags::CLOEXEC)?;
    let stop = Stop(PrivateFd::new(fcntl_dupfd_cloexec(&end, 0)?)?);
    let end = PrivateFd::new(end)?;
    let run = move || {
        loop {
            let mut both = [PollFd::new(&watched, PollFlags::IN), PollFd::new(&end, PollFlags::IN)];
            let woken = poll(&mut both, None);
            if woken.is_err_and(|error| error != Errno::INTR) || !both[1].revents().is_empty() {
                return;
            }
            if both[0].revents().is_empty() {
                continue;
            }
            match take(&watched) {
                Ok(true) => signalled(),
                Ok(false) => {}
                Err(_) => return,
            }
        }
    };
    spawn("softiommu-eventfd", Box::new(run))?;
    Ok(Box::new(stop))
}

/// Takes the counter of an eventfd; whether there was one. Never waits, whatever the client made of the descriptor.
fn take(fd: &PrivateFd) -> Result<bool, Errno> {
    let mut counter = [0; 8];
    let mut into = [io::IoSliceMut::new(&mut counter)];
    match preadv2(fd, &mut into, u64::MAX, rustix::io::ReadWriteFlags::NOWAIT) {
        Ok(_) => Ok(true),
        Err(Errno::AGAIN | Errno::INTR) => Ok(false),
        Err(error) => Err(error),
    }
}
