//! `stat`, `access`, `readlink`, `realpath` and their families.

use std::ffi::{CStr, c_char, c_int, c_uint};

use host::Errno;
use libc::{size_t, ssize_t};

use crate::calls::{self, Identity};
use crate::next;
use crate::open::{Look, candidate, look, redirect, shown};
use crate::sys::answer;
use crate::table::slot_of;

type Stat = libc::stat;
type Statx = libc::statx;

/// What to tell of a file of ours.
struct Facts {
    mode: u32,
    device: (u32, u32),
    size: u64,
}

impl From<Look> for Facts {
    fn from(look: Look) -> Self {
        match look {
            Look::Device(major, minor) => {
                Self { mode: libc::S_IFCHR | 0o660, device: (major, minor), size: 0 }
            }
            Look::Text(size) => Self { mode: libc::S_IFREG | 0o444, device: (0, 0), size },
        }
    }
}

impl From<Identity> for Facts {
    fn from(identity: Identity) -> Self {
        match identity.device {
            Some((major, minor)) => Look::Device(major, minor).into(),
            None => Self { mode: 0o600, device: (0, 0), size: 0 },
        }
    }
}

/// Every file of ours on the one device that no file system has.
const DEVICE: (u32, u32) = (0, 0xfff);

fn inode(facts: &Facts) -> u64 {
    libc::makedev(facts.device.0, facts.device.1) + 1
}

unsafe fn fill(facts: Facts, out: *mut Stat) -> Result<c_int, Errno> {
    if out.is_null() {
        return Err(Errno::FAULT);
    }
    // SAFETY: the structure is plain integers; the caller's buffer holds one.
    unsafe {
        let mut stat: Stat = std::mem::zeroed();
        stat.st_dev = libc::makedev(DEVICE.0, DEVICE.1);
        stat.st_ino = inode(&facts);
        stat.st_nlink = 1;
        stat.st_mode = facts.mode;
        stat.st_rdev = libc::makedev(facts.device.0, facts.device.1);
        stat.st_size = facts.size as i64;
        stat.st_blksize = 4096;
        out.write(stat);
    }
    Ok(0)
}

unsafe fn fill_x(facts: Facts, out: *mut Statx) -> Result<c_int, Errno> {
    if out.is_null() {
        return Err(Errno::FAULT);
    }
    // SAFETY: the structure is plain integers; the caller's buffer holds one.
    unsafe {
        let mut stat: Statx = std::mem::zeroed();
        stat.stx_mask = libc::STATX_BASIC_STATS;
        stat.stx_blksize = 4096;
        stat.stx_nlink = 1;
        stat.stx_mode = facts.mode as u16;
        stat.stx_ino = inode(&facts);
        stat.stx_size = facts.size;
        (stat.stx_rdev_major, stat.stx_rdev_minor) = facts.device;
        (stat.stx_dev_major, stat.stx_dev_minor) = DEVICE;
        out.write(stat);
    }
    Ok(0)
}

/// What to tell of a path, if it is ours.
unsafe fn facts_at(path: *const c_char) -> Option<Result<Facts, Errno>> {
    // SAFETY: the caller's C string.
    let path = unsafe { candidate(path) }?;
    Some(look(path)?.map(Facts::from))
}

/// `AT_EMPTY_PATH` with an emulated descriptor.
unsafe fn names_descriptor(dir: c_int, path: *const c_char, flags: c_int) -> bool {
    // SAFETY: the caller's C string, if any.
    flags & libc::AT_EMPTY_PATH != 0 && slot_of(dir) != 0 && unsafe { path.is_null() || *path == 0 }
}

macro_rules! by_path {
    ($($name:ident($($ver:ident)?);)*) => {$(
        #[unsafe(no_mangle)]
        pub(super) unsafe extern "C" fn $name($($ver: c_int,)? path: *const c_char, buf: *mut Stat) -> c_int {
            // SAFETY: the same call, as promised by the caller.
            unsafe {
                match facts_at(path) {
                    Some(facts) => answer(|| fill(facts?, buf)),
                    None => next::$name($($ver,)? redirect(path).as_ptr(), buf),
                }
            }
        }
    )*};
}

by_path! {
    stat();
    stat64();
    lstat();
    lstat64();
    __xstat(ver);
    __xstat64(ver);
    __lxstat(ver);
    __lxstat64(ver);
}

macro_rules! by_path_at {
    ($($name:ident($($ver:ident)?);)*) => {$(
        #[unsafe(no_mangle)]
        pub(super) unsafe extern "C" fn $name($($ver: c_int,)? dir: c_int, path: *const c_char, buf: *mut Stat, flags: c_int) -> c_int {
            // SAFETY: the same call, as promised by the caller.
            unsafe {
                if names_descriptor(dir, path, flags) {
                    return answer(|| fill(calls::identity(dir)?.into(), buf));
                }
                match facts_at(path) {
                    Some(facts) => answer(|| fill(facts?, buf)),
                    None => next::$name($($ver,)? dir, redirect(path).as_ptr(), buf, flags),
                }
            }
        }
    )*};
}

by_path_at! {
    fstatat();
    fstatat64();
    __fxstatat(ver);
    __fxstatat64(ver);
}

macro_rules! by_descriptor {
    ($($name:ident($($ver:ident)?);)*) => {$(
        #[unsafe(no_mangle)]
        pub(super) unsafe extern "C" fn $name($($ver: c_int,)? fd: c_int, buf: *mut Stat) -> c_int {
            // SAFETY: the same call, as promised by the caller.
            unsafe {
                if slot_of(fd) != 0 {
                    return answer(|| fill(calls::identity(fd)?.into(), buf));
                }
                next::$name($($ver,)? fd, buf)
            }
        }
    )*};
}

by_descriptor! {
    fstat();
    fstat64();
    __fxstat(ver);
    __fxstat64(ver);
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn statx(
    dir: c_int,
    path: *const c_char,
    flags: c_int,
    mask: c_uint,
    buf: *mut Statx,
) -> c_int {
    // SAFETY: the same call, as promised by the caller.
    unsafe {
        if names_descriptor(dir, path, flags) {
            return answer(|| fill_x(calls::identity(dir)?.into(), buf));
        }
        match facts_at(path) {
            Some(facts) => answer(|| fill_x(facts?, buf)),
            None => next::statx(dir, redirect(path).as_ptr(), flags, mask, buf),
        }
    }
}

/// Whoever runs the program may use its devices.
fn permits(facts: &Facts, mode: c_int) -> Result<c_int, Errno> {
    let text = facts.mode & libc::S_IFMT == libc::S_IFREG;
    let denied = libc::X_OK | if text { libc::W_OK } else { 0 };
    if mode & denied == 0 { Ok(0) } else { Err(Errno::ACCESS) }
}

macro_rules! access {
    ($($name:ident($($dir:ident)?; $($flags:ident)?);)*) => {$(
        #[unsafe(no_mangle)]
        pub(super) unsafe extern "C" fn $name($($dir: c_int,)? path: *const c_char, mode: c_int $(, $flags: c_int)?) -> c_int {
            // SAFETY: the same call, as promised by the caller.
            unsafe {
                match facts_at(path) {
                    Some(facts) => answer(|| permits(&facts?, mode)),
                    None => next::$name($($dir,)? redirect(path).as_ptr(), mode $(, $flags)?),
                }
            }
        }
    )*};
}

access! {
    access(;);
    euidaccess(;);
    eaccess(;);
    faccessat(dir; flags);
}

/// The emulated descriptor that `path` names below `/proc/self/fd`.
unsafe fn descriptor_link(path: *const c_char) -> Option<c_int> {
    if path.is_null() {
        return None;
    }
    // SAFETY: the caller's C string.
    let path = unsafe { CStr::from_ptr(path) }.to_bytes();
    let rest = path.strip_prefix(b"/proc/")?;
    let path = std::str::from_utf8(rest).ok()?;
    let (who, fd) = path.split_once("/fd/")?;
    let ours = who == "self" || who == "thread-self" || who.parse() == Ok(std::process::id());
    let fd = fd.parse().ok().filter(|_| ours)?;
    (slot_of(fd) != 0).then_some(fd)
}

unsafe fn read_link(path: *const c_char, buf: *mut c_char, len: size_t) -> Option<ssize_t> {
    // SAFETY: the caller's C string and buffer of `len` bytes.
    unsafe {
        if let Some(fd) = descriptor_link(path) {
            return Some(answer(|| {
                let name = calls::identity(fd)?.name;
                let n = name.len().min(len);
                std::ptr::copy_nonoverlapping(name.as_ptr().cast(), buf, n);
                Ok(n as ssize_t)
            }));
        }
        // What exists and is no link.
        let facts = facts_at(path)?;
        Some(answer(|| facts.and(Err(Errno::INVAL))))
    }
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn readlink(
    path: *const c_char,
    buf: *mut c_char,
    len: size_t,
) -> ssize_t {
    // SAFETY: the same call, as promised by the caller.
    unsafe {
        read_link(path, buf, len)
            .unwrap_or_else(|| next::readlink(redirect(path).as_ptr(), buf, len))
    }
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn readlinkat(
    dir: c_int,
    path: *const c_char,
    buf: *mut c_char,
    len: size_t,
) -> ssize_t {
    // SAFETY: the same call, as promised by the caller.
    unsafe {
        read_link(path, buf, len)
            .unwrap_or_else(|| next::readlinkat(dir, redirect(path).as_ptr(), buf, len))
    }
}

/// The real path of what is ours: of a node the path itself, of what is in a tree the path that programs know it by.
unsafe fn real_path(path: *const c_char, out: *mut c_char) -> Option<*mut c_char> {
    // SAFETY: the caller's C string and buffer of `PATH_MAX` bytes, if any.
    unsafe {
        if let Some(facts) = facts_at(path) {
            return Some(answer(|| {
                facts?;
                give(CStr::from_ptr(path).to_bytes(), out)
            }));
        }
        let there = redirect(path);
        if !there.is_ours() {
            return None;
        }
        let real = next::realpath(there.as_ptr(), std::ptr::null_mut());
        if real.is_null() {
            return Some(real);
        }
        Some(answer(|| {
            let found = CStr::from_ptr(real).to_bytes();
            let result = give(shown(found).unwrap_or(found), out);
            libc::free(real.cast());
            result
        }))
    }
}

/// Hands a path out as `realpath` does.
unsafe fn give(path: &[u8], out: *mut c_char) -> Result<*mut c_char, Errno> {
    if path.len() >= libc::PATH_MAX as usize {
        return Err(Errno::NAMETOOLONG);
    }
    // SAFETY: the caller's buffer of `PATH_MAX` bytes, or one that has the size, for the path and its end.
    unsafe {
        let out = if out.is_null() { libc::malloc(path.len() + 1).cast() } else { out };
        if out.is_null() {
            return Err(Errno::NOMEM);
        }
        std::ptr::copy(path.as_ptr().cast(), out, path.len());
        *out.add(path.len()) = 0;
        Ok(out)
    }
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn realpath(path: *const c_char, out: *mut c_char) -> *mut c_char {
    // SAFETY: the same call, as promised by the caller.
    unsafe { real_path(path, out).unwrap_or_else(|| next::realpath(path, out)) }
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn __realpath_chk(
    path: *const c_char,
    out: *mut c_char,
    room: size_t,
) -> *mut c_char {
    // SAFETY: the same call, as promised by the caller.
    unsafe { real_path(path, out).unwrap_or_else(|| next::__realpath_chk(path, out, room)) }
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn canonicalize_file_name(path: *const c_char) -> *mut c_char {
    // SAFETY: the same call, as promised by the caller.
    unsafe {
        real_path(path, std::ptr::null_mut()).unwrap_or_else(|| next::canonicalize_file_name(path))
    }
}
