//! `open(2)` and its family, `fopen(3)`.

use std::ffi::{c_char, c_int, c_void};

use libc::{FILE, mode_t};

use crate::open::{candidate, open as open_ours, redirect, relative_candidate};
use crate::process::current;
use crate::sys::answer;
use crate::table::slot_of;
use crate::{calls, next};

/// Our own answer for `path`, if it is ours.
unsafe fn ours(path: *const c_char, flags: c_int) -> Option<c_int> {
    // SAFETY: as the caller's C string.
    unsafe { ours_at(libc::AT_FDCWD, path, flags) }
}

/// Our own answer for a path in the directory `dir`, if it is ours.
unsafe fn ours_at(dir: c_int, path: *const c_char, flags: c_int) -> Option<c_int> {
    // SAFETY: as the caller's C string.
    let result = match unsafe { candidate(path) } {
        Some(path) => open_ours(path, flags)?,
        // SAFETY: as above.
        None => open_ours(&unsafe { relative_candidate(dir, path) }?, flags)?,
    };
    Some(answer(|| result))
}

macro_rules! openers {
    (@ours $path:ident $flags:ident) => { ours($path, $flags) };
    (@ours $dir:ident $path:ident $flags:ident) => { ours_at($dir, $path, $flags) };
    ($($name:ident($([$dir:ident])? path, flags $(, $mode:ident)?);)*) => {$(
        #[unsafe(no_mangle)]
        pub(super) unsafe extern "C" fn $name($($dir: c_int,)? path: *const c_char, flags: c_int $(, $mode: mode_t)?) -> c_int {
            // SAFETY: the same call, as promised by the caller.
            unsafe {
                match openers!(@ours $($dir)? path flags) {
                    Some(fd) => fd,
                    None => next::$name($($dir,)? redirect(path).as_ptr(), flags $(, $mode)?),
                }
            }
        }
    )*};
}

openers! {
    open(path, flags, mode);
    open64(path, flags, mode);
    openat([dir] path, flags, mode);
    openat64([dir] path, flags, mode);
    __open_2(path, flags);
    __open64_2(path, flags);
    __openat_2([dir] path, flags);
    __openat64_2([dir] path, flags);
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn creat(path: *const c_char, mode: mode_t) -> c_int {
    // SAFETY: the same call, as promised by the caller.
    unsafe { open(path, libc::O_CREAT | libc::O_WRONLY | libc::O_TRUNC, mode) }
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn creat64(path: *const c_char, mode: mode_t) -> c_int {
    // SAFETY: the same call, as promised by the caller.
    unsafe { open(path, libc::O_CREAT | libc::O_WRONLY | libc::O_TRUNC, mode) }
}

/// The flags of an `fopen` mode.
unsafe fn flags_of(mode: *const c_char) -> c_int {
    // SAFETY: a C string, as promised by the caller.
    let mode = unsafe { std::ffi::CStr::from_ptr(mode) }.to_bytes();
    let has = |byte| mode.contains(&byte);
    let access = match (mode.first(), has(b'+')) {
        (_, true) => libc::O_RDWR,
        (Some(b'r'), false) => libc::O_RDONLY,
        _ => libc::O_WRONLY,
    };
    access | if has(b'e') { libc::O_CLOEXEC } else { 0 }
}

/// Not a device: text, which is what streams are for. Those of devices keep their descriptors, for `fileno`.
fn is_attribute(fd: c_int) -> bool {
    slot_of(fd) != 0 && calls::identity(fd).is_ok_and(|identity| identity.device.is_none())
}

/// `cookie_io_functions_t`.
#[repr(C)]
struct CookieFunctions {
    read: extern "C" fn(*mut c_void, *mut c_char, usize) -> isize,
    write: extern "C" fn(*mut c_void, *const c_char, usize) -> isize,
    seek: Option<extern "C" fn(*mut c_void, *mut i64, c_int) -> c_int>,
    close: extern "C" fn(*mut c_void) -> c_int,
}

unsafe extern "C" {
    fn fopencookie(cookie: *mut c_void, mode: *const c_char, io: CookieFunctions) -> *mut FILE;
}

/// A stream that reads and writes as the program's own calls do: those of the C library's streams are not seen.
unsafe fn attribute(fd: c_int, mode: *const c_char) -> *mut FILE {
    extern "C" fn read(cookie: *mut c_void, buf: *mut c_char, len: usize) -> isize {
        answer(|| calls::read(cookie.addr() as c_int, buf as u64, len, None))
    }
    // 0, and not -1, says that nothing was written.
    extern "C" fn write(cookie: *mut c_void, buf: *const c_char, len: usize) -> isize {
        let written = answer(|| calls::write(cookie.addr() as c_int, buf as u64, len, None));
        written.max(0)
    }
    extern "C" fn close(cookie: *mut c_void) -> c_int {
        crate::process::close(cookie.addr() as c_int)
    }
    let cookie = std::ptr::without_provenance_mut(fd as usize);
    // SAFETY: functions of these types, and a C string, as promised by the caller.
    unsafe { fopencookie(cookie, mode, CookieFunctions { read, write, seek: None, close }) }
}

/// A stream of ours for `path`, if it is ours.
unsafe fn stream(path: *const c_char, mode: *const c_char) -> Option<*mut FILE> {
    if mode.is_null() {
        return None;
    }
    // SAFETY: C strings, as promised by the caller.
    unsafe {
        let fd = ours(path, flags_of(mode))?;
        if fd < 0 {
            return Some(std::ptr::null_mut());
        }
        let file = if is_attribute(fd) { attribute(fd, mode) } else { libc::fdopen(fd, mode) };
        if file.is_null() {
            crate::process::close(fd);
        }
        Some(file)
    }
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn fopen(path: *const c_char, mode: *const c_char) -> *mut FILE {
    // SAFETY: the same call, as promised by the caller.
    unsafe { stream(path, mode).unwrap_or_else(|| next::fopen(redirect(path).as_ptr(), mode)) }
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn fopen64(path: *const c_char, mode: *const c_char) -> *mut FILE {
    // SAFETY: the same call, as promised by the caller.
    unsafe { stream(path, mode).unwrap_or_else(|| next::fopen64(redirect(path).as_ptr(), mode)) }
}

/// The C library closes the descriptor of a stream without calling `close`.
#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn fclose(file: *mut FILE) -> c_int {
    // SAFETY: the same call, as promised by the caller.
    unsafe {
        let fd = if file.is_null() { -1 } else { libc::fileno(file) };
        if slot_of(fd) == 0 {
            return next::fclose(file);
        }
        let process = current();
        let last = if process.is_borrowed() { None } else { process.closing(fd) };
        let result = next::fclose(file);
        if let Some(id) = last {
            process.closed(id);
        }
        result
    }
}

macro_rules! reopeners {
    ($($name:ident;)*) => {$(
        #[unsafe(no_mangle)]
        pub(super) unsafe extern "C" fn $name(path: *const c_char, mode: *const c_char, file: *mut FILE) -> *mut FILE {
            // SAFETY: the same call, as promised by the caller; the fresh descriptor
            // is reached through /proc, and closed once the stream has its own.
            unsafe {
                if mode.is_null() {
                    return next::$name(path, mode, file);
                }
                let Some(fd) = ours(path, flags_of(mode)) else {
                    return next::$name(redirect(path).as_ptr(), mode, file);
                };
                if fd < 0 {
                    libc::fclose(file);
                    return std::ptr::null_mut();
                }
                let link = format!("/proc/self/fd/{fd}\0");
                let result = next::$name(link.as_ptr().cast(), mode, file);
                crate::process::close(fd);
                result
            }
        }
    )*};
}

reopeners! {
    freopen;
    freopen64;
}
