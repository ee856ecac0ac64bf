//! Descriptors: `close`, `dup` and their families, `fcntl`.

use std::ffi::{c_int, c_uint};

use host_linux::is_private_fd;

use crate::process::{close as close_ours, current};
use crate::sys::set_errno;
use crate::table::slot_of;
use crate::{next, process};

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn close(fd: c_int) -> c_int {
    if slot_of(fd) != 0 {
        return close_ours(fd);
    }
    if is_private_fd(fd) {
        set_errno(libc::EBADF);
        return -1;
    }
    // SAFETY: the same call, as promised by the caller.
    unsafe { next::close(fd) }
}

/// Closes every descriptor of the program's.
pub(crate) fn close_all() {
    // SAFETY: the caller has no use for them.
    close_around(0, c_uint::MAX, |first, last| unsafe { next::close_range(first, last, 0) });
}

/// Closes the range, around our own descriptors.
fn close_around(first: c_uint, last: c_uint, close: impl Fn(c_uint, c_uint) -> c_int) -> c_int {
    let mut start = first;
    let table_end = (1 << 20) - 1;
    for fd in first..=last.min(table_end) {
        if is_private_fd(fd as c_int) {
            if start < fd && close(start, fd - 1) != 0 {
                return -1;
            }
            start = fd + 1;
        }
    }
    if start <= last { close(start, last) } else { 0 }
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn close_range(first: c_uint, last: c_uint, flags: c_int) -> c_int {
    let marks_only = flags & libc::CLOSE_RANGE_CLOEXEC as c_int != 0;
    let Some(process) = process::existing().filter(|_| first <= last && !marks_only) else {
        // SAFETY: the same call, as promised by the caller.
        return unsafe { next::close_range(first, last, flags) };
    };
    let mut released = Vec::new();
    if !process.is_borrowed() {
        let mut slab = process.slab.write();
        for fd in slab.fds_in(first, last) {
            released.extend(slab.begin_close(fd));
        }
    }
    // SAFETY: the same call in parts, as promised by the caller.
    let result =
        close_around(first, last, |first, last| unsafe { next::close_range(first, last, flags) });
    for id in released {
        process.closed(id);
    }
    result
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn closefrom(first: c_int) {
    // SAFETY: the same call, as promised by the caller.
    unsafe { close_range(first.max(0) as c_uint, c_uint::MAX, 0) };
}

/// Notes that `new` was made from `old`.
fn note_copy(old: c_int, new: c_int) -> c_int {
    if new >= 0 && slot_of(old) != 0 {
        let process = current();
        if !process.is_borrowed() {
            process.duplicated(old, new);
        }
    }
    new
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn dup(old: c_int) -> c_int {
    // SAFETY: the same call, as promised by the caller.
    note_copy(old, unsafe { next::dup(old) })
}

/// `dup2` and `dup3` close `new` first.
fn replace(old: c_int, new: c_int, dup: impl FnOnce() -> c_int) -> c_int {
    if is_private_fd(new) {
        set_errno(libc::EBUSY);
        return -1;
    }
    if old == new || (slot_of(old) == 0 && slot_of(new) == 0) {
        return dup();
    }
    let result = dup();
    let process = current();
    if result >= 0 && !process.is_borrowed() {
        let replaced = process.closing(new);
        process.duplicated(old, new);
        if let Some(id) = replaced {
            process.closed(id);
        }
    }
    result
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn dup2(old: c_int, new: c_int) -> c_int {
    // SAFETY: the same call, as promised by the caller.
    replace(old, new, || unsafe { next::dup2(old, new) })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn dup3(old: c_int, new: c_int, flags: c_int) -> c_int {
    // SAFETY: the same call, as promised by the caller.
    replace(old, new, || unsafe { next::dup3(old, new, flags) })
}

fn duplicates(cmd: c_int) -> bool {
    cmd == libc::F_DUPFD || cmd == libc::F_DUPFD_CLOEXEC
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn fcntl(fd: c_int, cmd: c_int, arg: usize) -> c_int {
    // SAFETY: the same call, as promised by the caller.
    let result = unsafe { next::fcntl(fd, cmd, arg) };
    if duplicates(cmd) { note_copy(fd, result) } else { result }
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn fcntl64(fd: c_int, cmd: c_int, arg: usize) -> c_int {
    // SAFETY: the same call, as promised by the caller.
    let result = unsafe { next::fcntl64(fd, cmd, arg) };
    if duplicates(cmd) { note_copy(fd, result) } else { result }
}
