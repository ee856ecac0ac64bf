//! `ioctl`, `read`, `write` and their families.

use std::ffi::{c_int, c_ulong, c_void};

use host::Errno;
use libc::{iovec, off_t, size_t, ssize_t};

use super::kvm;
use crate::sys::answer;
use crate::table::slot_of;
use crate::{calls, next};

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn ioctl(fd: c_int, cmd: c_ulong, arg: usize) -> c_int {
    if slot_of(fd) != 0 {
        return answer(|| calls::ioctl(fd, cmd as u32, arg as u64));
    }
    // SAFETY: the same call, as promised by the caller.
    unsafe { kvm::ioctl(fd, cmd, arg).unwrap_or_else(|| next::ioctl(fd, cmd, arg)) }
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn __ioctl_time64(fd: c_int, cmd: c_ulong, arg: usize) -> c_int {
    if slot_of(fd) != 0 {
        return answer(|| calls::ioctl(fd, cmd as u32, arg as u64));
    }
    // SAFETY: the same call, as promised by the caller.
    unsafe { next::__ioctl_time64(fd, cmd, arg) }
}

/// A position argument: negative ones are invalid.
fn position(pos: off_t) -> Result<Option<u64>, Errno> {
    u64::try_from(pos).map(Some).map_err(|_| Errno::INVAL)
}

macro_rules! plain {
    ($($name:ident($buf:ty, $call:ident $(, $pos:ident)? $(; $room:ident)?);)*) => {$(
        #[unsafe(no_mangle)]
        pub(super) unsafe extern "C" fn $name(fd: c_int, buf: $buf, len: size_t $(, $pos: off_t)? $(, $room: size_t)?) -> ssize_t {
            if slot_of(fd) != 0 {
                return answer(|| {
                    let pos: Option<u64> = None;
                    $(let pos = pos.or(position($pos)?);)?
                    calls::$call(fd, buf as u64, len, pos)
                });
            }
            // SAFETY: the same call, as promised by the caller.
            unsafe { next::$name(fd, buf, len $(, $pos)? $(, $room)?) }
        }
    )*};
}

plain! {
    read(*mut c_void, read);
    __read_chk(*mut c_void, read; room);
    pread(*mut c_void, read, pos);
    pread64(*mut c_void, read, pos);
    __pread_chk(*mut c_void, read, pos; room);
    __pread64_chk(*mut c_void, read, pos; room);
    write(*const c_void, write);
    pwrite(*const c_void, write, pos);
    pwrite64(*const c_void, write, pos);
}

/// Applies `call` to each buffer of a vector until one is not used up.
fn each(
    iov: *const iovec,
    n: c_int,
    mut pos: Option<u64>,
    call: impl Fn(u64, usize, Option<u64>) -> Result<isize, Errno>,
) -> Result<isize, Errno> {
    let n = usize::try_from(n).ok().filter(|&n| n <= 1024).ok_or(Errno::INVAL)?;
    let mut total = 0;
    for index in 0..n {
        let mut raw = [0; size_of::<iovec>()];
        let at = iov.wrapping_add(index) as u64;
        host_linux::read_own_memory(at, &mut raw).map_err(|_| Errno::FAULT)?;
        let word =
            |range: std::ops::Range<usize>| raw[range].try_into().map_or(0, usize::from_ne_bytes);
        let (base, len) = (word(0..8), word(8..16));
        match call(base as u64, len, pos) {
            Ok(done) => {
                total += done;
                pos = pos.map(|pos| pos + done as u64);
                if (done as usize) < len {
                    break;
                }
            }
            Err(_) if total > 0 => break,
            Err(e) => return Err(e),
        }
    }
    Ok(total)
}

macro_rules! vectored {
    ($($name:ident($call:ident $(, $pos:ident)? $(; $flags:ident)?);)*) => {$(
        #[unsafe(no_mangle)]
        pub(super) unsafe extern "C" fn $name(fd: c_int, iov: *const iovec, n: c_int $(, $pos: off_t)? $(, $flags: c_int)?) -> ssize_t {
            if slot_of(fd) != 0 {
                return answer(|| {
                    let pos: Option<u64> = None;
                    $(let pos = pos.or(position($pos)?);)?
                    each(iov, n, pos, |buf, len, pos| calls::$call(fd, buf, len, pos))
                });
            }
            // SAFETY: the same call, as promised by the caller.
            unsafe { next::$name(fd, iov, n $(, $pos)? $(, $flags)?) }
        }
    )*};
}

vectored! {
    readv(read);
    writev(write);
    preadv(read, pos);
    preadv64(read, pos);
    pwritev(write, pos);
    pwritev64(write, pos);
    preadv2(read, pos; flags);
    preadv64v2(read, pos; flags);
    pwritev2(write, pos; flags);
    pwritev64v2(write, pos; flags);
}
