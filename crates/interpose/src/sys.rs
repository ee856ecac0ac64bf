//! Raw system calls and `errno`.

use std::arch::asm;
use std::ffi::{c_int, c_long};

use host::Errno;

/// A system call with six arguments: the kernel's raw answer, `-errno` included.
///
/// # Safety
/// As the system call itself.
#[inline]
pub(crate) unsafe fn syscall6(nr: c_long, args: [usize; 6]) -> isize {
    let ret: isize;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the kernel's calling convention; it preserves all else.
    unsafe {
        asm!("syscall", inlateout("rax") nr as isize => ret, in("rdi") args[0], in("rsi") args[1],
            in("rdx") args[2], in("r10") args[3], in("r8") args[4], in("r9") args[5],
            lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: the kernel's calling convention; it preserves all else.
    unsafe {
        asm!("svc 0", in("x8") nr, inlateout("x0") args[0] as isize => ret, in("x1") args[1],
            in("x2") args[2], in("x3") args[3], in("x4") args[4], in("x5") args[5],
            options(nostack));
    }
    ret
}

/// The raw answer as the C library gives it: -1 and `errno`.
#[inline]
pub(crate) fn c_result(raw: isize) -> isize {
    if (-4095..0).contains(&raw) {
        set_errno(-raw as c_int);
        return -1;
    }
    raw
}

#[inline]
pub(crate) fn set_errno(errno: c_int) {
    // SAFETY: the C library's thread-local `errno`.
    unsafe { *libc::__errno_location() = errno };
}

#[inline]
pub(crate) fn errno() -> c_int {
    // SAFETY: the C library's thread-local `errno`.
    unsafe { *libc::__errno_location() }
}

/// An answer of ours as C has it. What we did to find it may have touched
/// `errno`; success must not.
pub(crate) trait Answer: Sized {
    /// What the function returns on failure.
    const FAILED: Self;
}

impl Answer for c_int {
    const FAILED: Self = -1;
}

impl Answer for isize {
    const FAILED: Self = -1;
}

impl<T> Answer for *mut T {
    const FAILED: Self = std::ptr::null_mut();
}

/// Runs `f` and turns its answer into C's.
#[inline]
pub(crate) fn answer<T: Answer>(f: impl FnOnce() -> Result<T, Errno>) -> T {
    let before = errno();
    match f() {
        Ok(value) => {
            set_errno(before);
            value
        }
        Err(e) => {
            set_errno(e.raw_os_error());
            T::FAILED
        }
    }
}
