//! `syscall(2)`: calls that name what is ours go where their own function goes.

use std::ffi::{c_int, c_long};

use super::{credentials, descriptor, io, memory, message, open, stat};
use crate::next;
use crate::table::slot_of;

/// Seven fixed arguments stand for C's variadic ones; see the module above.
#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn syscall(
    nr: c_long,
    a: usize,
    b: usize,
    c: usize,
    d: usize,
    e: usize,
    f: usize,
) -> c_long {
    let fd = a as c_int;
    // SAFETY: the same call, as promised by the caller.
    unsafe {
        match nr {
            libc::SYS_openat => c_long::from(open::openat(fd, b as _, c as c_int, d as _)),
            libc::SYS_close => c_long::from(descriptor::close(fd)),
            libc::SYS_close_range => {
                c_long::from(descriptor::close_range(a as _, b as _, c as c_int))
            }
            libc::SYS_dup => c_long::from(descriptor::dup(fd)),
            libc::SYS_dup3 => c_long::from(descriptor::dup3(fd, b as c_int, c as c_int)),
            libc::SYS_fcntl => c_long::from(descriptor::fcntl(fd, b as c_int, c)),
            libc::SYS_ioctl => c_long::from(io::ioctl(fd, b as _, c)),
            libc::SYS_read if slot_of(fd) != 0 => io::read(fd, b as _, c) as c_long,
            libc::SYS_write if slot_of(fd) != 0 => io::write(fd, b as _, c) as c_long,
            libc::SYS_pread64 if slot_of(fd) != 0 => io::pread64(fd, b as _, c, d as _) as c_long,
            libc::SYS_pwrite64 if slot_of(fd) != 0 => io::pwrite64(fd, b as _, c, d as _) as c_long,
            libc::SYS_mmap => {
                memory::mmap(a as _, b, c as c_int, d as c_int, e as c_int, f as _) as c_long
            }
            libc::SYS_munmap => c_long::from(memory::munmap(a as _, b)),
            libc::SYS_mremap => memory::mremap(a as _, b, c, d as c_int, e as _) as c_long,
            libc::SYS_recvmsg => message::recvmsg(fd, b as _, c as c_int) as c_long,
            libc::SYS_statx => c_long::from(stat::statx(fd, b as _, c as c_int, d as _, e as _)),
            libc::SYS_faccessat => c_long::from(stat::faccessat(fd, b as _, c as c_int, 0)),
            libc::SYS_faccessat2 => {
                c_long::from(stat::faccessat(fd, b as _, c as c_int, d as c_int))
            }
            libc::SYS_readlinkat => stat::readlinkat(fd, b as _, c as _, d) as c_long,
            _ => {
                let result = next::syscall(nr, [a, b, c, d, e, f]);
                if credentials::changes(nr) {
                    crate::task::credentials_changed();
                }
                result
            }
        }
    }
}
