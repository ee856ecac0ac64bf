//! The functions that ours stand in front of: the next definition of each
//! symbol, normally the C library's.

use std::cell::Cell;
use std::ffi::{c_char, c_int, c_long, c_uint, c_ulong, c_void};
use std::sync::atomic::{AtomicPtr, Ordering};

use libc::{DIR, FILE, iovec, mmsghdr, mode_t, msghdr, off_t, size_t, ssize_t};

use crate::sys::{Answer, c_result, set_errno, syscall6};

thread_local! {
    static RESOLVING: Cell<bool> = const { Cell::new(false) };
}

/// Looks up `name` (with its NUL) behind us. Null while `dlsym` itself calls us:
/// an allocator that reads a file in its constructor does that.
#[cold]
fn resolve(cache: &AtomicPtr<c_void>, name: &'static str) -> *mut c_void {
    if RESOLVING.replace(true) {
        return std::ptr::null_mut();
    }
    // SAFETY: `name` ends in NUL, as the macro below sees to.
    let found = unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr().cast()) };
    RESOLVING.set(false);
    cache.store(found, Ordering::Relaxed);
    found
}

/// Each with what to do where there is no such function (yet): a system call,
/// or fail with `ENOSYS`.
///
/// Variadic ones are called with fixed arguments: on x86-64 (System V) and on
/// AArch64 Linux (AAPCS64) integer arguments travel in the same registers
/// either way.
macro_rules! next {
    ($(fn $name:ident($($arg:ident: $ty:ty),*) -> $ret:ty $(= $nr:ident [$($sys:expr),*])?;)*) => {$(
        #[inline]
        pub(crate) unsafe fn $name($($arg: $ty),*) -> $ret {
            static REAL: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());
            let mut real = REAL.load(Ordering::Relaxed);
            if real.is_null() {
                real = resolve(&REAL, concat!(stringify!($name), "\0"));
                if real.is_null() {
                    $(
                        #[allow(unused_mut, clippy::needless_return)]
                        return {
                            let mut args = [0; 6];
                            let given = [$($sys as usize),*];
                            args[..given.len()].copy_from_slice(&given);
                            // SAFETY: the same call, as promised by the caller.
                            c_result(unsafe { syscall6(libc::$nr, args) }) as $ret
                        };
                    )?
                    #[allow(unreachable_code)]
                    {
                        set_errno(libc::ENOSYS);
                        return <$ret as Answer>::FAILED;
                    }
                }
            }
            // SAFETY: the C library declares the symbol with this type.
            unsafe {
                let real: unsafe extern "C" fn($($ty),*) -> $ret = std::mem::transmute(real);
                real($($arg),*)
            }
        }
    )*};
}

type Stat = libc::stat;
type Statx = libc::statx;
type Str = *const c_char;
const CWD: c_int = libc::AT_FDCWD;

next! {
    fn open(path: Str, flags: c_int, mode: mode_t) -> c_int = SYS_openat[CWD, path, flags, mode];
    fn open64(path: Str, flags: c_int, mode: mode_t) -> c_int = SYS_openat[CWD, path, flags, mode];
    fn openat(dir: c_int, path: Str, flags: c_int, mode: mode_t) -> c_int = SYS_openat[dir, path, flags, mode];
    fn openat64(dir: c_int, path: Str, flags: c_int, mode: mode_t) -> c_int = SYS_openat[dir, path, flags, mode];
    fn __open_2(path: Str, flags: c_int) -> c_int = SYS_openat[CWD, path, flags];
    fn __open64_2(path: Str, flags: c_int) -> c_int = SYS_openat[CWD, path, flags];
    fn __openat_2(dir: c_int, path: Str, flags: c_int) -> c_int = SYS_openat[dir, path, flags];
    fn __openat64_2(dir: c_int, path: Str, flags: c_int) -> c_int = SYS_openat[dir, path, flags];
    fn close(fd: c_int) -> c_int = SYS_close[fd];
    fn close_range(first: c_uint, last: c_uint, flags: c_int) -> c_int = SYS_close_range[first, last, flags];
    fn dup(fd: c_int) -> c_int = SYS_dup[fd];
    fn dup2(old: c_int, new: c_int) -> c_int = SYS_dup3[old, new, 0];
    fn dup3(old: c_int, new: c_int, flags: c_int) -> c_int = SYS_dup3[old, new, flags];
    fn fcntl(fd: c_int, cmd: c_int, arg: usize) -> c_int = SYS_fcntl[fd, cmd, arg];
    fn fcntl64(fd: c_int, cmd: c_int, arg: usize) -> c_int = SYS_fcntl[fd, cmd, arg];
    fn ioctl(fd: c_int, cmd: c_ulong, arg: usize) -> c_int = SYS_ioctl[fd, cmd, arg];
    fn __ioctl_time64(fd: c_int, cmd: c_ulong, arg: usize) -> c_int = SYS_ioctl[fd, cmd, arg];

    fn read(fd: c_int, buf: *mut c_void, len: size_t) -> ssize_t = SYS_read[fd, buf, len];
    fn __read_chk(fd: c_int, buf: *mut c_void, len: size_t, room: size_t) -> ssize_t = SYS_read[fd, buf, len.min(room)];
    fn pread(fd: c_int, buf: *mut c_void, len: size_t, pos: off_t) -> ssize_t = SYS_pread64[fd, buf, len, pos];
    fn pread64(fd: c_int, buf: *mut c_void, len: size_t, pos: off_t) -> ssize_t = SYS_pread64[fd, buf, len, pos];
    fn __pread_chk(fd: c_int, buf: *mut c_void, len: size_t, pos: off_t, room: size_t) -> ssize_t = SYS_pread64[fd, buf, len.min(room), pos];
    fn __pread64_chk(fd: c_int, buf: *mut c_void, len: size_t, pos: off_t, room: size_t) -> ssize_t = SYS_pread64[fd, buf, len.min(room), pos];
    fn write(fd: c_int, buf: *const c_void, len: size_t) -> ssize_t = SYS_write[fd, buf, len];
    fn pwrite(fd: c_int, buf: *const c_void, len: size_t, pos: off_t) -> ssize_t = SYS_pwrite64[fd, buf, len, pos];
    fn pwrite64(fd: c_int, buf: *const c_void, len: size_t, pos: off_t) -> ssize_t = SYS_pwrite64[fd, buf, len, pos];
    fn readv(fd: c_int, iov: *const iovec, n: c_int) -> ssize_t = SYS_readv[fd, iov, n];
    fn writev(fd: c_int, iov: *const iovec, n: c_int) -> ssize_t = SYS_writev[fd, iov, n];
    fn preadv(fd: c_int, iov: *const iovec, n: c_int, pos: off_t) -> ssize_t = SYS_preadv[fd, iov, n, pos];
    fn preadv64(fd: c_int, iov: *const iovec, n: c_int, pos: off_t) -> ssize_t = SYS_preadv[fd, iov, n, pos];
    fn pwritev(fd: c_int, iov: *const iovec, n: c_int, pos: off_t) -> ssize_t = SYS_pwritev[fd, iov, n, pos];
    fn pwritev64(fd: c_int, iov: *const iovec, n: c_int, pos: off_t) -> ssize_t = SYS_pwritev[fd, iov, n, pos];
    fn preadv2(fd: c_int, iov: *const iovec, n: c_int, pos: off_t, flags: c_int) -> ssize_t = SYS_preadv2[fd, iov, n, pos, 0, flags];
    fn preadv64v2(fd: c_int, iov: *const iovec, n: c_int, pos: off_t, flags: c_int) -> ssize_t = SYS_preadv2[fd, iov, n, pos, 0, flags];
    fn pwritev2(fd: c_int, iov: *const iovec, n: c_int, pos: off_t, flags: c_int) -> ssize_t = SYS_pwritev2[fd, iov, n, pos, 0, flags];
    fn pwritev64v2(fd: c_int, iov: *const iovec, n: c_int, pos: off_t, flags: c_int) -> ssize_t = SYS_pwritev2[fd, iov, n, pos, 0, flags];

    fn mmap(addr: *mut c_void, len: size_t, prot: c_int, flags: c_int, fd: c_int, pos: off_t) -> *mut c_void = SYS_mmap[addr, len, prot, flags, fd, pos];
    fn mmap64(addr: *mut c_void, len: size_t, prot: c_int, flags: c_int, fd: c_int, pos: off_t) -> *mut c_void = SYS_mmap[addr, len, prot, flags, fd, pos];
    fn munmap(addr: *mut c_void, len: size_t) -> c_int = SYS_munmap[addr, len];
    fn mremap(addr: *mut c_void, old: size_t, new: size_t, flags: c_int, to: *mut c_void) -> *mut c_void = SYS_mremap[addr, old, new, flags, to];

    fn fstat(fd: c_int, buf: *mut Stat) -> c_int = SYS_fstat[fd, buf];
    fn fstat64(fd: c_int, buf: *mut Stat) -> c_int = SYS_fstat[fd, buf];
    fn stat(path: Str, buf: *mut Stat) -> c_int = SYS_newfstatat[CWD, path, buf, 0];
    fn stat64(path: Str, buf: *mut Stat) -> c_int = SYS_newfstatat[CWD, path, buf, 0];
    fn lstat(path: Str, buf: *mut Stat) -> c_int = SYS_newfstatat[CWD, path, buf, libc::AT_SYMLINK_NOFOLLOW];
    fn lstat64(path: Str, buf: *mut Stat) -> c_int = SYS_newfstatat[CWD, path, buf, libc::AT_SYMLINK_NOFOLLOW];
    fn fstatat(dir: c_int, path: Str, buf: *mut Stat, flags: c_int) -> c_int = SYS_newfstatat[dir, path, buf, flags];
    fn fstatat64(dir: c_int, path: Str, buf: *mut Stat, flags: c_int) -> c_int = SYS_newfstatat[dir, path, buf, flags];
    fn __fxstat(ver: c_int, fd: c_int, buf: *mut Stat) -> c_int = SYS_fstat[fd, buf];
    fn __fxstat64(ver: c_int, fd: c_int, buf: *mut Stat) -> c_int = SYS_fstat[fd, buf];
    fn __xstat(ver: c_int, path: Str, buf: *mut Stat) -> c_int = SYS_newfstatat[CWD, path, buf, 0];
    fn __xstat64(ver: c_int, path: Str, buf: *mut Stat) -> c_int = SYS_newfstatat[CWD, path, buf, 0];
    fn __lxstat(ver: c_int, path: Str, buf: *mut Stat) -> c_int = SYS_newfstatat[CWD, path, buf, libc::AT_SYMLINK_NOFOLLOW];
    fn __lxstat64(ver: c_int, path: Str, buf: *mut Stat) -> c_int = SYS_newfstatat[CWD, path, buf, libc::AT_SYMLINK_NOFOLLOW];
    fn __fxstatat(ver: c_int, dir: c_int, path: Str, buf: *mut Stat, flags: c_int) -> c_int = SYS_newfstatat[dir, path, buf, flags];
    fn __fxstatat64(ver: c_int, dir: c_int, path: Str, buf: *mut Stat, flags: c_int) -> c_int = SYS_newfstatat[dir, path, buf, flags];
    fn statx(dir: c_int, path: Str, flags: c_int, mask: c_uint, buf: *mut Statx) -> c_int = SYS_statx[dir, path, flags, mask, buf];
    fn access(path: Str, mode: c_int) -> c_int = SYS_faccessat[CWD, path, mode];
    fn euidaccess(path: Str, mode: c_int) -> c_int = SYS_faccessat2[CWD, path, mode, libc::AT_EACCESS];
    fn eaccess(path: Str, mode: c_int) -> c_int = SYS_faccessat2[CWD, path, mode, libc::AT_EACCESS];
    fn faccessat(dir: c_int, path: Str, mode: c_int, flags: c_int) -> c_int = SYS_faccessat2[dir, path, mode, flags];
    fn readlink(path: Str, buf: *mut c_char, len: size_t) -> ssize_t = SYS_readlinkat[CWD, path, buf, len];
    fn readlinkat(dir: c_int, path: Str, buf: *mut c_char, len: size_t) -> ssize_t = SYS_readlinkat[dir, path, buf, len];
    fn realpath(path: Str, out: *mut c_char) -> *mut c_char;
    fn __realpath_chk(path: Str, out: *mut c_char, room: size_t) -> *mut c_char;
    fn canonicalize_file_name(path: Str) -> *mut c_char;
    fn fopen(path: Str, mode: Str) -> *mut FILE;
    fn fopen64(path: Str, mode: Str) -> *mut FILE;
    fn fclose(file: *mut FILE) -> c_int;
    fn opendir(path: Str) -> *mut DIR;
    fn scandir(path: Str, list: *mut *mut *mut c_void, filter: *const c_void, compare: *const c_void) -> c_int;
    fn scandir64(path: Str, list: *mut *mut *mut c_void, filter: *const c_void, compare: *const c_void) -> c_int;
    fn freopen(path: Str, mode: Str, file: *mut FILE) -> *mut FILE;
    fn freopen64(path: Str, mode: Str, file: *mut FILE) -> *mut FILE;

    fn recvmsg(fd: c_int, msg: *mut msghdr, flags: c_int) -> ssize_t = SYS_recvmsg[fd, msg, flags];
    fn recvmmsg(fd: c_int, msgs: *mut mmsghdr, n: c_uint, flags: c_int, timeout: *mut libc::timespec) -> c_int = SYS_recvmmsg[fd, msgs, n, flags, timeout];

    fn execve(path: Str, args: *const Str, env: *const Str) -> c_int = SYS_execve[path, args, env];
    fn execv(path: Str, args: *const Str) -> c_int;
    fn execvp(file: Str, args: *const Str) -> c_int;
    fn execvpe(file: Str, args: *const Str, env: *const Str) -> c_int;
    fn execveat(dir: c_int, path: Str, args: *const Str, env: *const Str, flags: c_int) -> c_int = SYS_execveat[dir, path, args, env, flags];
    fn fexecve(fd: c_int, args: *const Str, env: *const Str) -> c_int;

    fn capset(header: *mut c_void, data: *const c_void) -> c_int = SYS_capset[header, data];
    fn setuid(uid: c_uint) -> c_int = SYS_setuid[uid];
    fn seteuid(uid: c_uint) -> c_int;
    fn setreuid(real: c_uint, effective: c_uint) -> c_int = SYS_setreuid[real, effective];
    fn setresuid(real: c_uint, effective: c_uint, saved: c_uint) -> c_int = SYS_setresuid[real, effective, saved];
    fn setrlimit(resource: c_uint, limit: *const c_void) -> c_int = SYS_setrlimit[resource, limit];
    fn setrlimit64(resource: c_uint, limit: *const c_void) -> c_int = SYS_setrlimit[resource, limit];
    fn prlimit(pid: c_int, resource: c_uint, new: *const c_void, old: *mut c_void) -> c_int = SYS_prlimit64[pid, resource, new, old];
    fn prlimit64(pid: c_int, resource: c_uint, new: *const c_void, old: *mut c_void) -> c_int = SYS_prlimit64[pid, resource, new, old];
    fn prctl(op: c_int, a: usize, b: usize, c: usize, d: usize) -> c_int = SYS_prctl[op, a, b, c, d];
    fn sigaction(signal: c_int, new: *const libc::sigaction, old: *mut libc::sigaction) -> c_int;
    fn signal(signal: c_int, handler: libc::sighandler_t) -> libc::sighandler_t;
    fn bsd_signal(signal: c_int, handler: libc::sighandler_t) -> libc::sighandler_t;
    fn ssignal(signal: c_int, handler: libc::sighandler_t) -> libc::sighandler_t;
    fn setns(fd: c_int, kind: c_int) -> c_int = SYS_setns[fd, kind];
    fn unshare(flags: c_int) -> c_int = SYS_unshare[flags];
}

/// `syscall(2)` never needs the C library.
///
/// # Safety
/// As the system call itself.
#[inline]
pub(crate) unsafe fn syscall(nr: c_long, args: [usize; 6]) -> c_long {
    // SAFETY: the same call, as promised by the caller.
    c_result(unsafe { syscall6(nr, args) }) as c_long
}
