//! Calls on emulated descriptors, whoever serves them.

use std::ffi::c_int;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;

use host::{Errno, FileMode, MmapBacking, MmapRequest};

use host_linux::PrivateFd;

use crate::client;
use crate::handle::LocalFile;
use crate::observe;
use crate::process::{Behind, current};
use crate::task::LocalTask;
use crate::wire::Tag;

/// Who serves a descriptor.
enum Server {
    Here(Arc<LocalFile>, LocalTask),
    /// The process at the other end.
    Elsewhere,
}

fn server(fd: RawFd) -> Result<Server, Errno> {
    match current().file(fd) {
        Some(Behind::Here(file)) => Ok(Server::Here(file, LocalTask::current()?)),
        Some(Behind::Elsewhere) => Ok(Server::Elsewhere),
        // Closed by another thread just now.
        None => Err(Errno::BADF),
    }
}

/// What `fstat` and `readlink` tell of an emulated descriptor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    /// Major and minor number of a character device.
    pub(crate) device: Option<(u32, u32)>,
    /// What `/proc/self/fd` shows.
    pub(crate) name: String,
}

impl Identity {
    pub(crate) fn of(file: &LocalFile) -> Self {
        let device = match file.file.mode() {
            FileMode::CharDevice { major, minor } => Some((major, minor)),
            FileMode::AnonInode(_) => None,
        };
        Self { device, name: file.name.clone() }
    }
}

pub(crate) fn ioctl(fd: RawFd, cmd: u32, arg: u64) -> Result<c_int, Errno> {
    let result = match server(fd)? {
        Server::Here(file, task) => {
            let process = task.process();
            let caller = || (process.pid(), crate::open::tid());
            observe::ioctl(process, &file, caller, &task, cmd, arg)
        }
        Server::Elsewhere => client::ioctl(fd, cmd, arg),
    };
    tracing::trace!(fd, cmd = format_args!("{cmd:#x}"), ?result, "ioctl");
    result
}

pub(crate) fn read(fd: RawFd, buf: u64, len: usize, pos: Option<u64>) -> Result<isize, Errno> {
    let result = match server(fd)? {
        Server::Here(file, task) => {
            let result = file.file.read(&task, buf, len, pos);
            // SAFETY: the program's descriptor, open during its own call.
            file.update_readable(unsafe { BorrowedFd::borrow_raw(fd) });
            result
        }
        Server::Elsewhere => client::transfer(Tag::Read, fd, buf, len, pos),
    };
    tracing::trace!(fd, len, ?pos, ?result, "read");
    result.map(|n| n as isize)
}

pub(crate) fn write(fd: RawFd, buf: u64, len: usize, pos: Option<u64>) -> Result<isize, Errno> {
    let result = match server(fd)? {
        Server::Here(file, task) => file.file.write(&task, buf, len, pos),
        Server::Elsewhere => client::transfer(Tag::Write, fd, buf, len, pos),
    };
    tracing::trace!(fd, len, ?pos, ?result, "write");
    result.map(|n| n as isize)
}

/// An emulated file that stays open without a descriptor of the program's.
pub(crate) enum Held {
    Here(Arc<LocalFile>),
    Elsewhere(PrivateFd),
}

impl Held {
    pub(crate) fn new(fd: RawFd) -> Result<Self, Errno> {
        match server(fd)? {
            Server::Here(file, _) => Ok(Self::Here(file)),
            Server::Elsewhere => {
                // SAFETY: the program's descriptor, open during its own call.
                let fd = unsafe { BorrowedFd::borrow_raw(fd) };
                let copy = rustix::io::fcntl_dupfd_cloexec(fd, 0)?;
                Ok(Self::Elsewhere(PrivateFd::new(copy).map_err(|_| Errno::MFILE)?))
            }
        }
    }

    /// Whether all of `data` was read.
    pub(crate) fn read(&self, pos: u64, data: &mut [u8]) -> bool {
        let (buf, len, pos) = (data.as_mut_ptr() as u64, data.len(), Some(pos));
        let result = match self {
            Self::Here(file) => {
                LocalTask::current().and_then(|task| file.file.read(&task, buf, len, pos))
            }
            Self::Elsewhere(fd) => client::transfer(Tag::Read, fd.as_raw_fd(), buf, len, pos),
        };
        result == Ok(len)
    }

    pub(crate) fn write(&self, pos: u64, data: &[u8]) {
        let (buf, len, pos) = (data.as_ptr() as u64, data.len(), Some(pos));
        let result = match self {
            Self::Here(file) => {
                LocalTask::current().and_then(|task| file.file.write(&task, buf, len, pos))
            }
            Self::Elsewhere(fd) => client::transfer(Tag::Write, fd.as_raw_fd(), buf, len, pos),
        };
        if let Err(error) = result {
            tracing::debug!(%error, "a write to mapped registers is lost");
        }
    }
}

pub(crate) fn identity(fd: RawFd) -> Result<Identity, Errno> {
    match server(fd)? {
        Server::Here(file, _) => Ok(Identity::of(&file)),
        Server::Elsewhere => client::identity(fd),
    }
}

pub(crate) fn mmap(fd: RawFd, request: MmapRequest) -> Result<MmapBacking, Errno> {
    let result = match server(fd)? {
        Server::Here(file, task) => file.file.mmap(&task, request).map(|backing| {
            // A mapping keeps its file open.
            MmapBacking { guard: Box::new((backing.guard, file)), ..backing }
        }),
        Server::Elsewhere => client::mmap(fd, request),
    };
    tracing::trace!(fd, ?request, errno = ?result.as_ref().err(), "mmap");
    result
}
