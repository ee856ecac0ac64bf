//! `opendir(3)` and `scandir(3)`: the C library opens directories without calling `open`.

use std::ffi::{c_char, c_int, c_void};

use libc::DIR;

use crate::next;
use crate::open::redirect;

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn opendir(path: *const c_char) -> *mut DIR {
    // SAFETY: the same call, as promised by the caller.
    unsafe { next::opendir(redirect(path).as_ptr()) }
}

macro_rules! scanners {
    ($($name:ident;)*) => {$(
        #[unsafe(no_mangle)]
        pub(super) unsafe extern "C" fn $name(
            path: *const c_char,
            list: *mut *mut *mut c_void,
            filter: *const c_void,
            compare: *const c_void,
        ) -> c_int {
            // SAFETY: the same call, as promised by the caller.
            unsafe { next::$name(redirect(path).as_ptr(), list, filter, compare) }
        }
    )*};
}

scanners! {
    scandir;
    scandir64;
}
