//! Copies between our memory and a client's, without ever raising a signal.

use std::cell::Cell;
use std::sync::atomic::{AtomicU32, Ordering};

use std::os::fd::AsRawFd;

use host::{Fault, FilePart};

use crate::scratch;
use crate::sys::syscall6;

thread_local! {
    /// The calling thread's stack, `(lowest, end)`; `end` is 0 until asked for.
    static STACK: Cell<(usize, usize)> = const { Cell::new((0, 0)) };
}

/// This process, as [`crate::Host`] last saw it.
static OWN_PID: AtomicU32 = AtomicU32::new(0);

/// Notes which process this is; whether that is news.
pub(crate) fn set_own_pid() -> bool {
    let pid = std::process::id();
    OWN_PID.swap(pid, Ordering::Relaxed) != pid
}

/// This process.
#[inline]
pub(crate) fn own_pid() -> u32 {
    OWN_PID.load(Ordering::Relaxed)
}

/// Whether `[va, va + len)` lies between the caller's frame and the end of its
/// stack: memory that is surely there, because we will return through it.
/// False on a coroutine's own stack, which is only slower.
#[inline]
fn on_stack(va: usize, len: usize) -> bool {
    let here = 0_u8;
    let here = std::hint::black_box(&raw const here) as usize;
    let (low, end) = match STACK.get() {
        (_, 0) => stack_bounds(),
        bounds => bounds,
    };
    (low..end).contains(&here) && va > here && va < end && len <= end - va
}

#[cold]
fn stack_bounds() -> (usize, usize) {
    let mut bounds = (0, 1);
    // SAFETY: `attr` is initialised by pthread_getattr_np before it is read and
    // destroyed once; the two out pointers are valid.
    unsafe {
        let mut attr = std::mem::zeroed::<libc::pthread_attr_t>();
        if libc::pthread_getattr_np(libc::pthread_self(), &raw mut attr) == 0 {
            let (mut low, mut size) = (std::ptr::null_mut(), 0);
            if libc::pthread_attr_getstack(&raw const attr, &raw mut low, &raw mut size) == 0 {
                bounds = (low as usize, low as usize + size);
            }
            libc::pthread_attr_destroy(&raw mut attr);
        }
    }
    STACK.set(bounds);
    bounds
}

/// Reads our own process's memory at `va`.
#[inline]
pub(crate) fn from_self(va: u64, buf: &mut [u8]) -> Result<(), Fault> {
    if on_stack(va as usize, buf.len()) {
        // SAFETY: the source lies on the calling thread's stack, above this
        // frame, so it is mapped; `copy` allows that the two overlap.
        unsafe { std::ptr::copy(va as *const u8, buf.as_mut_ptr(), buf.len()) };
        return Ok(());
    }
    read_own(va, buf)
}

/// Writes our own process's memory at `va`.
#[inline]
pub(crate) fn to_self(va: u64, buf: &[u8]) -> Result<(), Fault> {
    if on_stack(va as usize, buf.len()) {
        // SAFETY: as in `from_self`; the caller handed the kernel, that is us,
        // this memory to write to.
        unsafe { std::ptr::copy(buf.as_ptr(), va as *mut u8, buf.len()) };
        return Ok(());
    }
    write_own(va, buf)
}

/// Reads this process's memory, all of it or a fault.
pub(crate) fn read_own(va: u64, buf: &mut [u8]) -> Result<(), Fault> {
    let quick = if buf.len() <= scratch::MAX { scratch::read(va, buf) } else { None };
    match quick {
        Some(true) => Ok(()),
        Some(false) => Err(Fault { va }),
        None => read_process(own_pid(), va, buf),
    }
}

/// Writes this process's memory, all of it or a fault.
pub(crate) fn write_own(va: u64, buf: &[u8]) -> Result<(), Fault> {
    let quick = if buf.len() <= scratch::MAX { scratch::write(va, buf) } else { None };
    match quick {
        Some(true) => Ok(()),
        Some(false) => Err(Fault { va }),
        None => write_process(own_pid(), va, buf),
    }
}

/// Has the kernel write the first of these bytes to this process's memory at `va`; how many. On a bad address it writes
/// none, and raises no signal.
pub(crate) fn write_own_from(va: u64, from: FilePart<'_>) -> usize {
    let (fd, at) = (from.file.as_raw_fd() as usize, from.offset as usize);
    let to = iovec(va as usize, from.len);
    // SAFETY: `to` is read during the call only; the kernel checks the address, and what it writes there is what the
    // caller wants there.
    let n = unsafe {
        if from.in_memory {
            // It has no flags, and takes a fifth less for a page.
            syscall6(libc::SYS_pread64, [fd, va as usize, from.len, at, 0, 0])
        } else {
            let flags = libc::RWF_NOWAIT as usize;
            syscall6(libc::SYS_preadv2, [fd, &raw const to as usize, 1, at, 0, flags])
        }
    };
    usize::try_from(n).unwrap_or(0)
}

/// Reads memory of the process `pid`, all of it or a fault.
pub(crate) fn read_process(pid: u32, va: u64, buf: &mut [u8]) -> Result<(), Fault> {
    let mut done = 0;
    while done < buf.len() {
        let at = va.checked_add(done as u64).ok_or(Fault { va })?;
        let local = iovec(buf[done..].as_mut_ptr() as usize, buf.len() - done);
        let remote = iovec(at as usize, buf.len() - done);
        // SAFETY: `local` describes the rest of `buf`, which the kernel fills; it
        // checks `remote` itself.
        let n = unsafe {
            libc::process_vm_readv(pid as i32, &raw const local, 1, &raw const remote, 1, 0)
        };
        if n <= 0 {
            return Err(Fault { va: at });
        }
        done += n as usize;
    }
    Ok(())
}

/// Writes memory of the process `pid`, all of it or a fault.
pub(crate) fn write_process(pid: u32, va: u64, buf: &[u8]) -> Result<(), Fault> {
    let mut done = 0;
    while done < buf.len() {
        let at = va.checked_add(done as u64).ok_or(Fault { va })?;
        let local = iovec(buf[done..].as_ptr() as usize, buf.len() - done);
        let remote = iovec(at as usize, buf.len() - done);
        // SAFETY: `local` describes the rest of `buf`, which the kernel only
        // reads; it checks `remote` itself.
        let n = unsafe {
            libc::process_vm_writev(pid as i32, &raw const local, 1, &raw const remote, 1, 0)
        };
        if n <= 0 {
            return Err(Fault { va: at });
        }
        done += n as usize;
    }
    Ok(())
}

fn iovec(base: usize, len: usize) -> libc::iovec {
    libc::iovec { iov_base: base as *mut libc::c_void, iov_len: len }
}
