//! The calling thread of this process, as a character device sees it.

use std::cell::Cell;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use host::{Capability, Errno, File, MappedFile, Mm, OpenFile, Task, User};
use host_linux::Host;
use rustix::process::{Resource, getrlimit, getuid};

use crate::process::{Behind, Process, close, current, duplicate};

/// Counts calls that may have changed the credentials of some thread.
static GENERATION: AtomicU32 = AtomicU32::new(1);

/// Credentials of the calling thread, asked for once: that takes a
/// microsecond, an ioctl a tenth of it. A limit that another process changes
/// from outside, and calls past the C library, go unnoticed.
#[derive(Clone, Copy)]
struct Credentials {
    generation: u32,
    effective: u64,
    memlock: u64,
    uid: u32,
}

thread_local! {
    static CREDENTIALS: Cell<Credentials> =
        const { Cell::new(Credentials { generation: 0, effective: 0, memlock: 0, uid: 0 }) };
}

/// To be called after whatever may change credentials or limits.
pub(crate) fn credentials_changed() {
    GENERATION.fetch_add(1, Ordering::Relaxed);
}

fn credentials() -> Credentials {
    let generation = GENERATION.load(Ordering::Relaxed);
    let known = CREDENTIALS.get();
    if known.generation == generation {
        return known;
    }
    let effective = rustix::thread::capabilities(None).map_or(0, |sets| sets.effective.bits());
    let fresh = Credentials {
        generation,
        effective,
        memlock: getrlimit(Resource::Memlock).current.unwrap_or(u64::MAX),
        uid: getuid().as_raw(),
    };
    CREDENTIALS.set(fresh);
    fresh
}

/// The calling thread.
pub(crate) struct LocalTask {
    process: &'static Process,
    host: &'static Arc<Host>,
}

impl LocalTask {
    #[inline]
    pub(crate) fn current() -> Result<Self, Errno> {
        let process = current();
        Ok(Self { process, host: process.host()? })
    }

    /// The process.
    #[inline]
    pub(crate) fn process(&self) -> &'static Process {
        self.process
    }
}

impl Task for LocalTask {
    fn mm(&self) -> &Arc<dyn Mm> {
        self.host.local_mm()
    }

    fn user(&self) -> Arc<User> {
        self.process.user(credentials().uid)
    }

    fn capable(&self, capability: Capability) -> bool {
        credentials().effective >> capability.number() & 1 != 0
    }

    fn memlock_limit(&self) -> u64 {
        credentials().memlock
    }

    fn file(&self, fd: RawFd) -> Result<OpenFile, Errno> {
        match self.process.file(fd) {
            Some(Behind::Here(local)) => Ok(OpenFile::Emulated(Arc::clone(&local.file))),
            // Another process's file means nothing to this machine.
            Some(Behind::Elsewhere) => Err(Errno::BADF),
            None => Ok(OpenFile::Kernel(self.host.memory_file(duplicate(fd)?))),
        }
    }

    fn mapped_file(&self, va: u64) -> Option<MappedFile> {
        crate::trap::mapped_file(va)
    }

    fn install(&self, file: Arc<dyn File>, cloexec: bool) -> Result<RawFd, Errno> {
        if host::fail::point() {
            return Err(Errno::MFILE);
        }
        self.process.install(file, cloexec, None)
    }

    fn uninstall(&self, fd: RawFd) {
        close(fd);
    }
}
