//! The client's descriptors of the kernel's files: memory, and eventfds.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;

use host::{FilePinError, KernelFile, PAGE_SIZE, PhysRun, StartThread};
use rustix::fs::Stat;

use crate::object::Key;
use crate::phys::Phys;
use crate::segment::Segment;

pub(crate) const TMPFS_MAGIC: u64 = 0x0102_1994;
const HUGETLBFS_MAGIC: u64 = 0x9584_58f6;

/// The object that a file is.
pub(crate) fn key_of(stat: &Stat) -> Key {
    let dev = stat.st_dev;
    Key::Inode { dev: (rustix::fs::major(dev), rustix::fs::minor(dev)), inode: stat.st_ino }
}

/// A descriptor of the client's, duplicated.
pub struct FdFile {
    phys: Arc<Phys>,
    fd: OwnedFd,
}

impl FdFile {
    pub(crate) fn new(phys: Arc<Phys>, fd: OwnedFd) -> Self {
        Self { phys, fd }
    }
}

impl KernelFile for FdFile {
    fn is_eventfd(&self) -> bool {
        let path = format!("/proc/self/fd/{}", self.fd.as_raw_fd());
        rustix::fs::readlink(path, Vec::new())
            .is_ok_and(|to| to.as_bytes() == b"anon_inode:[eventfd]")
    }

    fn signal(&self) {
        let mut poll = [rustix::event::PollFd::new(&self.fd, rustix::event::PollFlags::OUT)];
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        // A full counter would make us wait, and its reader has something to read already.
        if rustix::event::poll(&mut poll, Some(&now)) == Ok(1) {
            let _ = rustix::io::write(&self.fd, &1_u64.to_ne_bytes());
        }
    }

    fn on_signal(
        &self,
        spawn: &StartThread<'_>,
        signalled: Box<dyn FnMut() + Send>,
    ) -> io::Result<Box<dyn Send + Sync>> {
        crate::eventfd::watch(self.fd.as_fd(), spawn, signalled)
    }

    fn pin(&self, offset: u64, len: u64, run: &mut dyn FnMut(PhysRun)) -> Result<(), FilePinError> {
        let fs = rustix::fs::fstatfs(&self.fd).map_err(|_| FilePinError::NotMemory)?;
        let stat = rustix::fs::fstat(&self.fd).map_err(|_| FilePinError::NotMemory)?;
        let magic = fs.f_type as u64 & 0xffff_ffff;
        let regular = rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file();
        if !regular || (magic != TMPFS_MAGIC && magic != HUGETLBFS_MAGIC) {
            return Err(FilePinError::NotMemory);
        }
        let page = if magic == HUGETLBFS_MAGIC { fs.f_bsize as u64 } else { PAGE_SIZE };
        let size = (stat.st_size as u64).next_multiple_of(page.max(PAGE_SIZE));
        let end = offset.checked_add(len).filter(|&end| end <= size);
        let end = end.ok_or(FilePinError::BeyondEnd)?;
        if len == 0 {
            return Ok(());
        }
        let segment = || Segment::of_file(self.fd.as_fd(), 0..size);
        let runs = self.phys.pin_object(key_of(&stat), &(offset..end), false, size, segment);
        for phys_run in runs.ok_or(FilePinError::NoMemory)? {
            run(phys_run);
        }
        Ok(())
    }
}
