//! KVM's VFIO device: a VMM tells it of each VFIO file, so that KVM holds it and knows whether its DMA is coherent. Of
//! files of ours it has nothing to know, and would refuse them.

use std::ffi::{c_int, c_ulong};

use crate::next;
use crate::sys::{errno, set_errno};
use crate::table::slot_of;

/// The type of KVM's ioctls: `KVMIO`.
const TYPE: c_ulong = 0xae;
const KVM_CREATE_DEVICE: c_ulong = 0xc00c_aee0;
const KVM_SET_DEVICE_ATTR: c_ulong = 0x4018_aee1;
const KVM_DEV_TYPE_VFIO: u32 = 4;
const KVM_CREATE_DEVICE_TEST: u32 = 1;
const KVM_DEV_VFIO_FILE: u32 = 1;
/// `KVM_DEV_VFIO_FILE_ADD` and `_DEL`.
const ADD_OR_DELETE: [u64; 2] = [1, 2];

/// `struct kvm_create_device`.
#[repr(C)]
struct CreateDevice {
    kind: u32,
    fd: u32,
    flags: u32,
}

/// `struct kvm_device_attr`.
#[repr(C)]
struct DeviceAttr {
    flags: u32,
    group: u32,
    attr: u64,
    addr: u64,
}

/// Our answer to an ioctl on a file of the kernel's, if KVM's own would not do.
///
/// # Safety
/// As the call itself: `arg` points to what `cmd` wants.
#[inline]
pub(super) unsafe fn ioctl(fd: c_int, cmd: c_ulong, arg: usize) -> Option<c_int> {
    if cmd >> 8 & 0xff != TYPE || arg == 0 {
        return None;
    }
    // SAFETY: as promised by the caller.
    unsafe { of_kvm(fd, cmd, arg) }
}

#[cold]
unsafe fn of_kvm(fd: c_int, cmd: c_ulong, arg: usize) -> Option<c_int> {
    match cmd {
        KVM_SET_DEVICE_ATTR => {
            // SAFETY: as promised by the caller, this is the struct, and these attributes have the address of a descriptor.
            let file = unsafe {
                let attr = (arg as *const DeviceAttr).read_unaligned();
                let about_file = attr.group == KVM_DEV_VFIO_FILE
                    && ADD_OR_DELETE.contains(&attr.attr)
                    && attr.addr != 0;
                about_file.then(|| (attr.addr as *const c_int).read_unaligned())
            };
            file.filter(|file| slot_of(*file) != 0).map(|_| 0)
        }
        KVM_CREATE_DEVICE => {
            let device = arg as *mut CreateDevice;
            // SAFETY: as promised by the caller: the struct, which the kernel fills in.
            unsafe {
                if (&raw const (*device).kind).read_unaligned() != KVM_DEV_TYPE_VFIO {
                    return None;
                }
                let before = errno();
                let result = next::ioctl(fd, cmd, arg);
                if result == 0 || errno() != libc::ENODEV {
                    return Some(result);
                }
                // A KVM without that device: for files of ours any descriptor will do.
                if (&raw const (*device).flags).read_unaligned() & KVM_CREATE_DEVICE_TEST == 0 {
                    let stand_in = libc::eventfd(0, libc::EFD_CLOEXEC);
                    if stand_in < 0 {
                        return Some(-1);
                    }
                    (&raw mut (*device).fd).write_unaligned(stand_in as u32);
                }
                set_errno(before);
                Some(0)
            }
        }
        _ => None,
    }
}
