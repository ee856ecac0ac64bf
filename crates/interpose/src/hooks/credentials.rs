//! Calls that change what the calling thread may do: they go to the C library,
//! and our copy of the answer is then stale.

use std::ffi::{c_int, c_long, c_uint, c_void};

use crate::next;
use crate::task::credentials_changed;

/// Whether the system call `nr` may change credentials or limits.
pub(super) fn changes(nr: c_long) -> bool {
    [
        libc::SYS_capset,
        libc::SYS_setuid,
        libc::SYS_setreuid,
        libc::SYS_setresuid,
        libc::SYS_setrlimit,
        libc::SYS_prlimit64,
        libc::SYS_prctl,
        libc::SYS_setns,
        libc::SYS_unshare,
    ]
    .contains(&nr)
}

macro_rules! credentials {
    ($($name:ident($($arg:ident: $ty:ty),*);)*) => {$(
        #[unsafe(no_mangle)]
        pub(super) unsafe extern "C" fn $name($($arg: $ty),*) -> c_int {
            // SAFETY: the same call, as promised by the caller.
            let result = unsafe { next::$name($($arg),*) };
            credentials_changed();
            result
        }
    )*};
}

credentials! {
    capset(header: *mut c_void, data: *const c_void);
    setuid(uid: c_uint);
    seteuid(uid: c_uint);
    setreuid(real: c_uint, effective: c_uint);
    setresuid(real: c_uint, effective: c_uint, saved: c_uint);
    setrlimit(resource: c_uint, limit: *const c_void);
    setrlimit64(resource: c_uint, limit: *const c_void);
    prlimit(pid: c_int, resource: c_uint, new: *const c_void, old: *mut c_void);
    prlimit64(pid: c_int, resource: c_uint, new: *const c_void, old: *mut c_void);
    prctl(op: c_int, a: usize, b: usize, c: usize, d: usize);
    setns(fd: c_int, kind: c_int);
    unshare(flags: c_int);
}
