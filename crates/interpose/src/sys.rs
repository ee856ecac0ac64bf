//! `errno`, and answers as the C library gives them.

use std::ffi::c_int;

use host::Errno;
pub(crate) use host_linux::syscall6;

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

/// `sighandler_t`.
impl Answer for usize {
    const FAILED: Self = libc::SIG_ERR;
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
