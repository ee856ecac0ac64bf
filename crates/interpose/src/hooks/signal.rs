//! `sigaction(2)` and `signal(2)`: faults are ours first where registers are mapped.

use std::ffi::c_int;

use libc::sighandler_t;

use crate::next;
use crate::trap::{Disposition, action, set_action};

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn sigaction(
    signal: c_int,
    new: *const Disposition,
    old: *mut Disposition,
) -> c_int {
    // SAFETY: the same call, as promised by the caller: structures, or nothing.
    unsafe {
        let Some(now) = action(signal) else {
            return next::sigaction(signal, new, old);
        };
        if let Some(new) = new.as_ref() {
            set_action(*new);
        }
        if !old.is_null() {
            old.write(now);
        }
        0
    }
}

macro_rules! signals {
    ($($name:ident;)*) => {$(
        #[unsafe(no_mangle)]
        pub(super) unsafe extern "C" fn $name(signal: c_int, handler: sighandler_t) -> sighandler_t {
            // SAFETY: the same call, as promised by the caller; the structure is of integers.
            unsafe {
                let Some(now) = action(signal) else {
                    return next::$name(signal, handler);
                };
                let mut new: Disposition = std::mem::zeroed();
                new.sa_sigaction = handler;
                new.sa_flags = libc::SA_RESTART;
                set_action(new);
                now.sa_sigaction
            }
        }
    )*};
}

signals! {
    signal;
    bsd_signal;
    ssignal;
}
