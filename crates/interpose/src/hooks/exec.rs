//! The end of this program in this process: exec and `_exit`. (`exit` calls
//! us as it calls every `atexit` handler; `execl` and its like cannot be
//! interposed in Rust, and reach the kernel inside the C library.)

use std::ffi::{c_char, c_int};

use crate::sys::{c_result, syscall6};
use crate::{caretaker, next};

type Strings = *const *const c_char;

macro_rules! exec {
    ($($name:ident($($arg:ident: $ty:ty),*);)*) => {$(
        #[unsafe(no_mangle)]
        pub(super) unsafe extern "C" fn $name($($arg: $ty),*) -> c_int {
            let caretaker = caretaker::before_exec();
            // SAFETY: the same call, as promised by the caller.
            let result = unsafe { next::$name($($arg),*) };
            // Only a failure returns.
            if let Some(caretaker) = caretaker {
                caretaker.dismiss();
            }
            result
        }
    )*};
}

exec! {
    execve(path: *const c_char, args: Strings, env: Strings);
    execv(path: *const c_char, args: Strings);
    execvp(file: *const c_char, args: Strings);
    execvpe(file: *const c_char, args: Strings, env: Strings);
    execveat(dir: c_int, path: *const c_char, args: Strings, env: Strings, flags: c_int);
    fexecve(fd: c_int, args: Strings, env: Strings);
}

macro_rules! exit {
    ($($name:ident;)*) => {$(
        #[unsafe(no_mangle)]
        pub(super) unsafe extern "C" fn $name(status: c_int) -> ! {
            caretaker::before_exit();
            loop {
                // SAFETY: what this function is for.
                c_result(unsafe { syscall6(libc::SYS_exit_group, [status as usize, 0, 0, 0, 0, 0]) });
            }
        }
    )*};
}

exit! {
    _exit;
    _Exit;
}
