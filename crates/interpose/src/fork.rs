//! Forks: the parent keeps the state, the child forgets it.
//!
//! What a child inherits of the machine's memory is a picture of the parent's at
//! one moment; it is leaked, never dropped, and the child reaches the real one
//! through its descriptors.

use std::cell::Cell;
use std::sync::atomic::{AtomicPtr, AtomicU8, Ordering};

use host_linux::{PrivateFd, close_private_fds};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous};

use crate::process::{Process, existing, replace};
use crate::table::Slab;
use crate::{caretaker, mappings};

/// A page that reads as zeros in a child: how a fork that ran no handler (a bare
/// `clone` system call) is noticed.
static MARK: AtomicPtr<AtomicU8> = AtomicPtr::new(std::ptr::null_mut());

thread_local! {
    static COPYING: Cell<bool> = const { Cell::new(false) };
}

/// Forks a copy of this process that keeps its state, with our tables locked.
pub(crate) fn copy() -> i32 {
    COPYING.set(true);
    // SAFETY: the copy leaves for good or calls `take_over` first of all.
    let pid = unsafe { libc::fork() };
    COPYING.set(false);
    pid
}

/// Makes such a copy the process that its original was.
///
/// # Safety
/// Only in a copy from [`copy`], with one thread.
pub(crate) unsafe fn take_over(process: &'static Process) -> &'static Process {
    mark();
    // SAFETY: as promised by the caller. What the program mapped went with it.
    unsafe {
        mappings::forget();
        mappings::unlock();
        replace(process.continued())
    }
}

/// Called once, with the first state of a process.
pub(crate) fn register() {
    // SAFETY: the handlers may be called at any fork, and the exit, from now on.
    unsafe {
        libc::pthread_atfork(Some(prepare), Some(parent), Some(child));
        libc::atexit(caretaker::before_exit);
    }
    let len = host::PAGE_SIZE as usize;
    // SAFETY: a new page, which is never unmapped.
    unsafe {
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        let Ok(page) = mmap_anonymous(std::ptr::null_mut(), len, prot, MapFlags::PRIVATE) else {
            return;
        };
        if madvise(page, len, Advice::LinuxWipeOnFork).is_ok() {
            MARK.store(page.cast(), Ordering::Release);
        }
    }
    mark();
}

/// Says that this process knows what it is.
pub(crate) fn mark() {
    // SAFETY: null or the page, which is never unmapped.
    if let Some(mark) = unsafe { MARK.load(Ordering::Relaxed).as_ref() } {
        mark.store(1, Ordering::Relaxed);
    }
}

/// Whether this is a child that does not know yet.
#[inline]
pub(crate) fn unnoticed() -> bool {
    // SAFETY: null or the page, which is never unmapped.
    let mark = unsafe { MARK.load(Ordering::Relaxed).as_ref() };
    mark.is_some_and(|mark| mark.load(Ordering::Relaxed) == 0)
}

extern "C" fn prepare() {
    let Some(process) = existing() else { return };
    // The child must find the tables in one piece.
    std::mem::forget(process.slab.write());
    mappings::lock();
}

extern "C" fn parent() {
    let Some(process) = existing() else { return };
    // SAFETY: locked by `prepare`, on this thread.
    unsafe { mappings::unlock() };
    // SAFETY: locked by `prepare`, on this thread.
    unsafe { process.slab.force_unlock_write() };
}

extern "C" fn child() {
    // A copy that may go on in our place must not forget.
    if existing().is_some() && !COPYING.get() {
        become_child(true);
        // SAFETY: locked by `prepare`, on the thread that this one copies.
        unsafe { mappings::unlock() };
    }
}

/// Gives a child its own state. `prepared`: the tables are in one piece.
#[cold]
pub(crate) fn become_child(prepared: bool) -> &'static Process {
    mark();
    let Some(parent) = existing() else {
        return replace(Process::new(Slab::default()));
    };
    let slab = if prepared {
        // SAFETY: the parent's handler locked it and no other thread exists here.
        unsafe { &*parent.slab.data_ptr() }.inherited()
    } else {
        Slab::default()
    };
    let mut process = Process::new(slab);
    let route = parent.control.get().map(|(client, _)| client).or(parent.owner.as_ref());
    let route = route.map(std::os::fd::AsRawFd::as_raw_fd);
    close_private_fds(route.as_slice());
    process.owner = route.and_then(PrivateFd::adopt);
    process.owner_paths = parent.built_paths().or(parent.owner_paths);
    if prepared {
        // SAFETY: as above.
        unsafe { mappings::forget() };
    }
    let process = replace(process);
    if !prepared {
        process.scan();
    }
    process
}
