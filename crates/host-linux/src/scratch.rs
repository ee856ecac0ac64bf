//! Quick copies of our own process's memory that cannot raise a signal.
//!
//! `process_vm_readv` on oneself takes a microsecond. Writing a file *from* an
//! address, or reading one *to* it, fails as politely on a bad address and takes
//! a fraction of that; the file is a memfd that we have mapped.

use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap};

use crate::fd::PrivateFd;
use crate::sys::syscall6;

/// Longest copy; longer ones are better off with `process_vm_readv`.
pub(crate) const MAX: usize = 4096;
const SLOTS: usize = 64;

/// One page for each of as many copies at a time.
struct Scratch {
    fd: PrivateFd,
    base: *mut u8,
    /// A bit for each slot in use.
    busy: AtomicU64,
}

/// Of this process; a child makes its own and leaves the parent's, which it
/// shares the pages of.
static SCRATCH: AtomicPtr<Scratch> = AtomicPtr::new(std::ptr::null_mut());

/// Makes a new one; the old, if any, is the parent's.
pub(crate) fn renew() {
    let new = make().map_or(std::ptr::null_mut(), |scratch| Box::into_raw(Box::new(scratch)));
    SCRATCH.store(new, Ordering::Release);
}

fn make() -> Option<Scratch> {
    let fd = memfd_create("scratch", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).ok()?;
    ftruncate(&fd, (SLOTS * MAX) as u64).ok()?;
    fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW).ok()?;
    let prot = ProtFlags::READ | ProtFlags::WRITE;
    let flags = MapFlags::SHARED | MapFlags::POPULATE;
    // SAFETY: a new mapping at an address the kernel chooses; never unmapped.
    let base =
        unsafe { mmap(std::ptr::null_mut(), SLOTS * MAX, prot, flags, fd.as_fd(), 0) }.ok()?;
    Some(Scratch { fd: PrivateFd::new(fd).ok()?, base: base.cast(), busy: AtomicU64::new(0) })
}

/// A slot, given back on drop.
struct Slot {
    scratch: &'static Scratch,
    index: usize,
}

impl Slot {
    fn claim() -> Option<Self> {
        // SAFETY: null, or leaked for good.
        let scratch = unsafe { SCRATCH.load(Ordering::Acquire).as_ref() }?;
        let mut busy = scratch.busy.load(Ordering::Relaxed);
        loop {
            let index = busy.trailing_ones() as usize;
            if index == SLOTS {
                return None;
            }
            let taken = busy | 1 << index;
            match scratch.busy.compare_exchange_weak(
                busy,
                taken,
                Ordering::Acquire,
                Ordering::Relaxed,
            ) {
                Ok(_) => return Some(Self { scratch, index }),
                Err(now) => busy = now,
            }
        }
    }

    fn page(&self) -> *mut u8 {
        self.scratch.base.wrapping_add(self.index * MAX)
    }

    /// `pread64` or `pwrite64` between the slot and the address `va`.
    fn transfer(&self, nr: std::ffi::c_long, va: u64, len: usize) -> bool {
        let fd = self.scratch.fd.as_raw_fd() as usize;
        // SAFETY: the kernel checks `va`; what it writes there, if it writes, is
        // what the caller of `write` wants there.
        let n = unsafe { syscall6(nr, [fd, va as usize, len, self.index * MAX, 0, 0]) };
        n == len as isize
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.scratch.busy.fetch_and(!(1 << self.index), Ordering::Release);
    }
}

/// Reads at most [`MAX`] bytes at `va`; whether that worked, or `None` if there
/// is no room now.
pub(crate) fn read(va: u64, buf: &mut [u8]) -> Option<bool> {
    let slot = Slot::claim()?;
    let done = slot.transfer(libc::SYS_pwrite64, va, buf.len());
    if done {
        // SAFETY: the slot is ours, mapped, and cannot shrink.
        unsafe { std::ptr::copy_nonoverlapping(slot.page(), buf.as_mut_ptr(), buf.len()) };
    }
    Some(done)
}

/// Writes at most [`MAX`] bytes at `va`, as [`read`] does.
pub(crate) fn write(va: u64, buf: &[u8]) -> Option<bool> {
    let slot = Slot::claim()?;
    // SAFETY: the slot is ours, mapped, and cannot shrink.
    unsafe { std::ptr::copy_nonoverlapping(buf.as_ptr(), slot.page(), buf.len()) };
    Some(slot.transfer(libc::SYS_pread64, va, buf.len()))
}
