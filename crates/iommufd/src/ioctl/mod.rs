//! The ioctls of `/dev/iommu`: one table, one codec, and a handler for each.
//!
//! A handler checks flags and reserved fields first, then values, then ids, in
//! the kernel's order, because user space sees the first error.

mod codec;
mod hwpt;
mod ioas;
mod option;
mod viommu;

use std::mem::offset_of;

use host::Task;
use uapi::iommufd as u;
use uapi::{Plain, nr};

pub(crate) use self::codec::{Command, read_user};
pub(crate) use self::ioas::{Memory, NewMapping};
use crate::{Context, Error};

type Handler = fn(&Context, &Command<'_>) -> Result<(), Error>;

struct Op {
    command: u32,
    /// Bytes up to the end of the last field that every version had.
    min: usize,
    size: usize,
    handler: Handler,
}

macro_rules! ops {
    ($($command:ident $ty:ty, $last:ident: $last_ty:ty => $handler:path;)+) => {
        static OPS: &[Op] = &[$(Op {
            command: nr::$command,
            min: offset_of!($ty, $last) + size_of::<$last_ty>(),
            size: size_of::<$ty>(),
            handler: $handler,
        }),+];
    };
}

ops! {
    IOMMU_DESTROY u::iommu_destroy, id: u32 => destroy;
    IOMMU_IOAS_ALLOC u::iommu_ioas_alloc, out_ioas_id: u32 => ioas::alloc;
    IOMMU_IOAS_ALLOW_IOVAS u::iommu_ioas_allow_iovas, allowed_iovas: u64 => ioas::allow_iovas;
    IOMMU_IOAS_COPY u::iommu_ioas_copy, src_iova: u64 => ioas::copy;
    IOMMU_IOAS_IOVA_RANGES u::iommu_ioas_iova_ranges, out_iova_alignment: u64 => ioas::iova_ranges;
    IOMMU_IOAS_MAP u::iommu_ioas_map, iova: u64 => ioas::map;
    IOMMU_IOAS_UNMAP u::iommu_ioas_unmap, length: u64 => ioas::unmap;
    IOMMU_OPTION u::iommu_option, val64: u64 => option::option;
    IOMMU_VFIO_IOAS u::iommu_vfio_ioas, __reserved: u16 => option::vfio_ioas;
    IOMMU_HWPT_ALLOC u::iommu_hwpt_alloc, __reserved: u32 => hwpt::alloc;
    IOMMU_GET_HW_INFO u::iommu_hw_info, __reserved: [u8; 3] => hwpt::get_hw_info;
    IOMMU_HWPT_SET_DIRTY_TRACKING u::iommu_hwpt_set_dirty_tracking, __reserved: u32 => hwpt::set_dirty_tracking;
    IOMMU_HWPT_GET_DIRTY_BITMAP u::iommu_hwpt_get_dirty_bitmap, data: u64 => hwpt::get_dirty_bitmap;
    IOMMU_HWPT_INVALIDATE u::iommu_hwpt_invalidate, __reserved: u32 => hwpt::invalidate;
    IOMMU_FAULT_QUEUE_ALLOC u::iommu_fault_alloc, out_fault_fd: u32 => hwpt::fault_queue_alloc;
    IOMMU_IOAS_MAP_FILE u::iommu_ioas_map_file, iova: u64 => ioas::map_file;
    IOMMU_VIOMMU_ALLOC u::iommu_viommu_alloc, out_viommu_id: u32 => viommu::alloc;
    IOMMU_VDEVICE_ALLOC u::iommu_vdevice_alloc, virt_id: u64 => viommu::vdevice_alloc;
    IOMMU_VEVENTQ_ALLOC u::iommu_veventq_alloc, out_veventq_fd: u32 => viommu::veventq_alloc;
    IOMMU_HW_QUEUE_ALLOC u::iommu_hw_queue_alloc, length: u64 => viommu::hw_queue_alloc;
    IOMMU_IOAS_NOIOMMU_GET_PA uapi::extra::iommu_ioas_noiommu_get_pa, out_phys: u64 => ioas::noiommu_get_pa;
    IOMMU_IOAS_CHANGE_PROCESS u::iommu_ioas_change_process, __reserved: u32 => ioas::change_process;
}

/// Executes one ioctl of a context's file.
pub(crate) fn ioctl(context: &Context, task: &dyn Task, cmd: u32, arg: u64) -> Result<i32, Error> {
    // Only the number selects the entry, as in the kernel.
    let number = nr::nr_of(cmd);
    if number < u::IOMMUFD_CMD_BASE {
        return crate::vfio_compat::ioctl(context, task, cmd, arg);
    }
    if let Some(extension) = context.extension()
        && number == nr::nr_of(extension.command())
    {
        Command::peek_size(task, arg)?;
        return if cmd == extension.command() {
            extension.ioctl(&context.arc()?, task, arg)
        } else {
            Err(Error::UnknownIoctl)
        };
    }
    let Some(op) = OPS.iter().find(|op| nr::nr_of(op.command) == number) else {
        return crate::vfio_compat::ioctl(context, task, cmd, arg);
    };
    if op.command != cmd {
        Command::peek_size(task, arg)?;
        return Err(Error::UnknownIoctl);
    }
    let command = Command::read(task, arg, op.min, op.size)?;
    (op.handler)(context, &command)?;
    Ok(0)
}

/// Reads a struct by the rules of every iommufd ioctl: `T` bytes are known, at
/// least `min` needed, and what user space has beyond must be zero. Returns
/// also how many of its bytes user space has. For [`crate::Extension`]s.
pub fn read_struct<T: Plain>(task: &dyn Task, arg: u64, min: usize) -> Result<(T, usize), Error> {
    let command = Command::read(task, arg, min, size_of::<T>())?;
    Ok((command.get(), command.user_size()))
}

fn destroy(context: &Context, command: &Command<'_>) -> Result<(), Error> {
    let cmd: u::iommu_destroy = command.get();
    context.destroy(cmd.id)
}
