//! The `host` traits on Linux: memory of this process and of others.
//!
//! **A physical address names a page, not one mapping of it.**
//!
//! | memory | physical address | backing |
//! |---|---|---|
//! | private, of this process | its virtual address | the mapping itself: memory taken away aborts the access |
//! | shared: memfd, tmpfs, hugetlbfs, shared anonymous, shared file | a range per object, above 2⁴⁷ | our own mapping of the object, kept while it is pinned |
//! | private, of another process | a range per GiB of it, above 2⁴⁷ | `process_vm_readv` until it dies |
//!
//! One [`Host`] holds all of it. Nothing here calls the C library for a system
//! call that an interposition library would want to define: `rustix` speaks to
//! the kernel itself.

mod buddy;
mod eventfd;
mod fd;
mod local;
mod memfile;
mod object;
mod phys;
mod place;
mod remote;
mod scratch;
mod segment;
mod sys;
mod user_copy;
mod vma;

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use host::{KernelFile, Mm, PhysMemory};
use parking_lot::Mutex;

pub use fd::{PrivateFd, close_private_fds, is_private_fd};
pub use local::LocalMm;
pub use memfile::FdFile;
pub use phys::Phys;
pub use remote::RemoteMm;
pub use sys::syscall6;

/// The memory of one process and of those that talk to it.
///
/// A forked child must not use its copy of the parent's `Host`: it makes its own.
pub struct Host {
    phys: Arc<Phys>,
    phys_dyn: Arc<dyn PhysMemory>,
    local: Arc<dyn Mm>,
    remotes: Mutex<HashMap<u32, Arc<RemoteMm>>>,
}

impl Host {
    /// The host as this process sees it. Needs `/proc`.
    pub fn new() -> io::Result<Arc<Self>> {
        if user_copy::set_own_pid() {
            scratch::renew();
        }
        let phys = Arc::new(Phys::new());
        let local: Arc<dyn Mm> = Arc::new(LocalMm::new(Arc::clone(&phys))?);
        Ok(Arc::new(Self {
            phys_dyn: Arc::clone(&phys) as Arc<dyn PhysMemory>,
            phys,
            local,
            remotes: Mutex::default(),
        }))
    }

    /// This process's address space.
    pub fn local_mm(&self) -> &Arc<dyn Mm> {
        &self.local
    }

    /// The physical address space.
    pub fn phys(&self) -> &Arc<dyn PhysMemory> {
        &self.phys_dyn
    }

    /// The address space of the process `pid`: the same one, with the same
    /// counters, for as long as the process lives and does not exec.
    pub fn mm_of(&self, pid: u32) -> io::Result<Arc<dyn Mm>> {
        if pid == user_copy::own_pid() {
            return Ok(Arc::clone(&self.local));
        }
        let mut remotes = self.remotes.lock();
        if let Some(mm) = remotes.get(&pid)
            && mm.is_alive()
        {
            return Ok(Arc::clone(mm) as Arc<dyn Mm>);
        }
        remotes.retain(|_, mm| mm.is_alive());
        let mm = Arc::new(RemoteMm::new(Arc::clone(&self.phys), pid)?);
        remotes.insert(pid, Arc::clone(&mm));
        Ok(mm)
    }

    /// The address space of `pid` if it is this process or one that
    /// [`Host::mm_of`] has met; its counters are what `/proc/PID/status` should
    /// tell.
    pub fn known_mm(&self, pid: u32) -> Option<Arc<dyn Mm>> {
        if pid == user_copy::own_pid() {
            return Some(Arc::clone(&self.local));
        }
        let remotes = self.remotes.lock();
        let mm = remotes.get(&pid).filter(|mm| mm.is_alive())?;
        Some(Arc::clone(mm) as Arc<dyn Mm>)
    }

    /// Lets children inherit what backs pinned memory, or no longer. Only a child
    /// that takes over this machine should.
    pub fn inherit(&self, inherit: bool) {
        self.phys.inherit(inherit);
    }

    /// To be called in a child that goes on in place of its parent: private
    /// memory is now the child's copy of it.
    pub fn take_over(&self) {
        user_copy::set_own_pid();
    }

    /// Pages of shared objects pinned now, over all of them.
    pub fn pinned_object_pages(&self) -> u64 {
        self.phys.pinned_pages()
    }

    /// A descriptor that may hold memory, to pin pages of it.
    pub fn memory_file(&self, fd: OwnedFd) -> Arc<dyn KernelFile> {
        Arc::new(FdFile::new(Arc::clone(&self.phys), fd))
    }
}

/// Reads memory of the calling process at `va`, without ever raising a signal.
pub fn read_own_memory(va: u64, buf: &mut [u8]) -> Result<(), host::Fault> {
    user_copy::read_process(std::process::id(), va, buf)
}
