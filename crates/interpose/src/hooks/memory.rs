//! `mmap`, `munmap`, `mremap`.

use std::ffi::{c_int, c_void};

use host::{Errno, MappedMemory, MmapBacking, MmapRequest, PAGE_SIZE};
use libc::{off_t, size_t};

use crate::sys::{answer, c_result, errno, set_errno, syscall6};
use crate::table::slot_of;
use crate::{calls, mappings, next, trap};

/// Maps what an emulated file says to map instead of itself.
unsafe fn map_ours(
    addr: *mut c_void,
    len: size_t,
    prot: c_int,
    flags: c_int,
    fd: c_int,
    pos: off_t,
) -> *mut c_void {
    let before = errno();
    let shared = [libc::MAP_SHARED, libc::MAP_SHARED_VALIDATE].contains(&(flags & libc::MAP_TYPE));
    let has = |bit| prot & bit != 0;
    let request = MmapRequest {
        offset: pos as u64,
        len: len as u64,
        read: has(libc::PROT_READ),
        write: has(libc::PROT_WRITE),
        exec: has(libc::PROT_EXEC),
        shared,
    };
    let aligned = (pos as u64).is_multiple_of(PAGE_SIZE) && len != 0;
    let backing = if aligned { calls::mmap(fd, request) } else { Err(Errno::INVAL) };
    match backing {
        Ok(MmapBacking { memory: MappedMemory::File { fd, offset }, guard }) => {
            let (fd, offset) = (std::os::fd::AsRawFd::as_raw_fd(&fd), offset as usize);
            let args = [addr as usize, len, prot as usize, flags as usize, fd as usize, offset];
            // SAFETY: the caller's own mapping, of another file.
            let at = c_result(unsafe { syscall6(libc::SYS_mmap, args) });
            if at != -1 {
                mappings::add(at as usize, len, guard);
                set_errno(before);
            }
            at as *mut c_void
        }
        Ok(MmapBacking { memory: MappedMemory::Registers, guard }) => answer(|| {
            let file = calls::Held::new(fd)?;
            // SAFETY: the caller's own mapping.
            unsafe { trap::map(addr, len, flags, (file, pos as u64), guard) }
        }),
        Err(e) => {
            set_errno(e.raw_os_error());
            libc::MAP_FAILED
        }
    }
}

macro_rules! mapper {
    ($($name:ident;)*) => {$(
        #[unsafe(no_mangle)]
        pub(super) unsafe extern "C" fn $name(
            addr: *mut c_void,
            len: size_t,
            prot: c_int,
            flags: c_int,
            fd: c_int,
            pos: off_t,
        ) -> *mut c_void {
            // SAFETY: the same call, as promised by the caller.
            unsafe {
                if flags & libc::MAP_ANONYMOUS == 0 && slot_of(fd) != 0 {
                    return map_ours(addr, len, prot, flags, fd, pos);
                }
                let result = next::$name(addr, len, prot, flags, fd, pos);
                if flags & libc::MAP_FIXED != 0 && result != libc::MAP_FAILED {
                    mappings::remove(result as usize, len);
                }
                result
            }
        }
    )*};
}

mapper! {
    mmap;
    mmap64;
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn munmap(addr: *mut c_void, len: size_t) -> c_int {
    // SAFETY: the same call, as promised by the caller.
    let result = unsafe { next::munmap(addr, len) };
    if result == 0 {
        mappings::remove(addr as usize, len);
    }
    result
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn mremap(
    addr: *mut c_void,
    old: size_t,
    new: size_t,
    flags: c_int,
    to: *mut c_void,
) -> *mut c_void {
    // SAFETY: the same call, as promised by the caller.
    let result = unsafe { next::mremap(addr, old, new, flags, to) };
    if result != libc::MAP_FAILED {
        mappings::moved(addr as usize, old, result as usize, new);
    }
    result
}
