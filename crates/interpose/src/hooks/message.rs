//! Descriptors that travel in messages: sending them is the kernel's business.

use std::ffi::{c_int, c_uint};

use libc::{mmsghdr, msghdr, ssize_t};

use crate::{next, process};

/// Calls `each` with every descriptor in the control data of `msg`.
///
/// # Safety
/// `msg` is null or as the kernel just accepted or filled it.
#[allow(clippy::cast_ptr_alignment, reason = "read unaligned")]
unsafe fn descriptors(msg: *const msghdr, mut each: impl FnMut(c_int)) {
    // SAFETY: as promised by the caller; the macros stay inside the control data.
    unsafe {
        if msg.is_null() || (*msg).msg_control.is_null() {
            return;
        }
        let mut header = libc::CMSG_FIRSTHDR(msg);
        while !header.is_null() {
            if (*header).cmsg_level == libc::SOL_SOCKET && (*header).cmsg_type == libc::SCM_RIGHTS {
                let data = libc::CMSG_DATA(header).cast::<c_int>();
                let bytes = (*header).cmsg_len - libc::CMSG_LEN(0) as usize;
                for index in 0..bytes / size_of::<c_int>() {
                    each(data.add(index).read_unaligned());
                }
            }
            header = libc::CMSG_NXTHDR(msg, header);
        }
    }
}

/// Emulated files in the message are now open here.
unsafe fn arrived(msg: *const msghdr) {
    // SAFETY: as promised by the caller.
    unsafe { descriptors(msg, |fd| process::current().adopt(fd)) };
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn recvmsg(fd: c_int, msg: *mut msghdr, flags: c_int) -> ssize_t {
    // SAFETY: the same call, as promised by the caller.
    unsafe {
        let result = next::recvmsg(fd, msg, flags);
        if result >= 0 {
            arrived(msg);
        }
        result
    }
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn recvmmsg(
    fd: c_int,
    msgs: *mut mmsghdr,
    n: c_uint,
    flags: c_int,
    timeout: *mut libc::timespec,
) -> c_int {
    // SAFETY: the same call, as promised by the caller.
    unsafe {
        let result = next::recvmmsg(fd, msgs, n, flags, timeout);
        for index in 0..result.max(0) as usize {
            arrived(&raw const (*msgs.add(index)).msg_hdr);
        }
        result
    }
}
