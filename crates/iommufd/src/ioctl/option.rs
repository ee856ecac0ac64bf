//! `IOMMU_OPTION` and `IOMMU_VFIO_IOAS`.

use std::mem::offset_of;

use host::Capability;
use uapi::iommufd as u;

use super::codec::Command;
use crate::{Context, Error};

const SET: u32 = u::iommufd_option_ops_IOMMU_OPTION_OP_SET;
const GET: u32 = u::iommufd_option_ops_IOMMU_OPTION_OP_GET;

pub(super) fn option(context: &Context, command: &Command<'_>) -> Result<(), Error> {
    let cmd: u::iommu_option = command.get();
    if cmd.__reserved != 0 {
        return Err(Error::Unsupported("reserved field"));
    }
    let value = match cmd.option_id {
        u::iommufd_option_IOMMU_OPTION_RLIMIT_MODE => rlimit_mode(context, command, &cmd)?,
        u::iommufd_option_IOMMU_OPTION_HUGE_PAGES => huge_pages(context, &cmd)?,
        _ => return Err(Error::Unsupported("the option")),
    };
    command.respond_at(offset_of!(u::iommu_option, val64), &value.to_ne_bytes())
}

fn rlimit_mode(
    context: &Context,
    command: &Command<'_>,
    cmd: &u::iommu_option,
) -> Result<u64, Error> {
    if cmd.object_id != 0 {
        return Err(Error::Unsupported("RLIMIT_MODE has no object"));
    }
    let mut state = context.lock();
    match u32::from(cmd.op) {
        GET => Ok(u64::from(state.account_mm)),
        SET => {
            if !context.capable(command.task(), Capability::SysResource) {
                return Err(Error::Permission("RLIMIT_MODE needs CAP_SYS_RESOURCE"));
            }
            if !state.objects.is_empty() {
                return Err(Error::Busy("the context has objects already"));
            }
            state.account_mm = match cmd.val64 {
                0 => false,
                1 => true,
                _ => return Err(Error::Invalid("RLIMIT_MODE is 0 or 1")),
            };
            Ok(cmd.val64)
        }
        _ => Err(Error::Unsupported("the operation on an option")),
    }
}

fn huge_pages(context: &Context, cmd: &u::iommu_option) -> Result<u64, Error> {
    let mut state = context.lock();
    let (ioas, pages) = state.ioas_and_pages(cmd.object_id)?;
    match u32::from(cmd.op) {
        GET => Ok(u64::from(!ioas.small_pages_only())),
        SET => {
            let on = match cmd.val64 {
                0 => false,
                1 => true,
                _ => return Err(Error::Invalid("HUGE_PAGES is 0 or 1")),
            };
            ioas.set_huge_pages(pages, on)?;
            Ok(cmd.val64)
        }
        _ => Err(Error::Unsupported("the operation on an option")),
    }
}

pub(super) fn vfio_ioas(context: &Context, command: &Command<'_>) -> Result<(), Error> {
    let mut cmd: u::iommu_vfio_ioas = command.get();
    if cmd.__reserved != 0 {
        return Err(Error::Unsupported("reserved field"));
    }
    let mut state = context.lock();
    match u32::from(cmd.op) {
        u::iommufd_vfio_ioas_op_IOMMU_VFIO_IOAS_GET => {
            cmd.ioas_id = state.vfio_ioas.ok_or(Error::NoDevice("no VFIO IOAS is set"))?;
            drop(state);
            command.respond(&cmd)
        }
        u::iommufd_vfio_ioas_op_IOMMU_VFIO_IOAS_SET => {
            state.ioas(cmd.ioas_id)?;
            state.vfio_ioas = Some(cmd.ioas_id);
            Ok(())
        }
        u::iommufd_vfio_ioas_op_IOMMU_VFIO_IOAS_CLEAR => {
            state.vfio_ioas = None;
            Ok(())
        }
        _ => Err(Error::Unsupported("the operation on the VFIO IOAS")),
    }
}
