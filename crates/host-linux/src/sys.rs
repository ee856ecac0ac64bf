//! Raw system calls, for what takes addresses that may be bad.

use std::arch::asm;
use std::ffi::c_long;

/// A system call with six arguments: the kernel's raw answer, `-errno` included.
///
/// # Safety
/// As the system call itself.
#[inline]
pub unsafe fn syscall6(nr: c_long, args: [usize; 6]) -> isize {
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
