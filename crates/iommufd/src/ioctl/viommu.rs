//! `IOMMU_VIOMMU_ALLOC`, `IOMMU_VDEVICE_ALLOC`, `IOMMU_VEVENTQ_ALLOC` and
//! `IOMMU_HW_QUEUE_ALLOC`.

use std::sync::Arc;

use uapi::iommufd as u;

use super::codec::Command;
use super::hwpt::user_data;
use crate::veventq::{EventFile, EventQueue};
use crate::viommu::HwQueueRequest;
use crate::{Context, Error};

pub(super) fn alloc(context: &Context, command: &Command<'_>) -> Result<(), Error> {
    let cmd: u::iommu_viommu_alloc = command.get();
    if cmd.flags != 0 || cmd.type_ == u::iommu_viommu_type_IOMMU_VIOMMU_TYPE_DEFAULT {
        return Err(Error::Unsupported("VIOMMU_ALLOC flags or type"));
    }
    let mm = command.mm();
    let data = user_data(mm, cmd.type_, cmd.data_len, cmd.data_uptr);
    let reply = std::cell::RefCell::new(Vec::new());
    context.publish(
        |state| {
            let made = state.alloc_viommu(cmd.type_, cmd.dev_id, cmd.hwpt_id, data.as_ref())?;
            reply.replace(made.1);
            Ok(made.0)
        },
        |id| {
            mm.copy_to_user(cmd.data_uptr, &reply.borrow())?;
            command.respond(&u::iommu_viommu_alloc { out_viommu_id: id, ..cmd })
        },
    )
}

pub(super) fn vdevice_alloc(context: &Context, command: &Command<'_>) -> Result<(), Error> {
    let cmd: u::iommu_vdevice_alloc = command.get();
    context.publish(
        |state| state.alloc_vdevice(cmd.viommu_id, cmd.dev_id, cmd.virt_id),
        |id| command.respond(&u::iommu_vdevice_alloc { out_vdevice_id: id, ..cmd }),
    )
}

/// The deepest event queue.
const MAX_DEPTH: u32 = 1 << 19;

pub(super) fn veventq_alloc(context: &Context, command: &Command<'_>) -> Result<(), Error> {
    let cmd: u::iommu_veventq_alloc = command.get();
    if cmd.flags != 0
        || cmd.__reserved != 0
        || cmd.type_ == u::iommu_veventq_type_IOMMU_VEVENTQ_TYPE_DEFAULT
    {
        return Err(Error::Unsupported("VEVENTQ_ALLOC flags, type or reserved field"));
    }
    if cmd.veventq_depth == 0 || cmd.veventq_depth > MAX_DEPTH {
        return Err(Error::Invalid("the depth of the event queue"));
    }
    let queue = Arc::new(EventQueue::new(cmd.veventq_depth));
    let file = Arc::new(EventFile::new(context.arc()?, queue.clone()));
    let fd = command.task().install(file.clone(), true).map_err(Error::File)?;
    let published = context.publish_held(
        |state| state.alloc_veventq(cmd.viommu_id, cmd.type_, queue),
        |id| {
            let (out_veventq_id, out_veventq_fd) = (id, fd as u32);
            command.respond(&u::iommu_veventq_alloc { out_veventq_id, out_veventq_fd, ..cmd })
        },
        |state, id| file.hold().take(state, id),
    );
    published.inspect_err(|_| command.task().uninstall(fd))
}

pub(super) fn hw_queue_alloc(context: &Context, command: &Command<'_>) -> Result<(), Error> {
    let mut cmd: u::iommu_hw_queue_alloc = command.get();
    if cmd.flags != 0 || cmd.type_ == u::iommu_hw_queue_type_IOMMU_HW_QUEUE_TYPE_DEFAULT {
        return Err(Error::Unsupported("HW_QUEUE_ALLOC flags or type"));
    }
    if cmd.length == 0 {
        return Err(Error::Invalid("the length is 0"));
    }
    cmd.nesting_parent_iova
        .checked_add(cmd.length - 1)
        .ok_or(Error::Overflow("nesting_parent_iova + length"))?;
    let request = HwQueueRequest {
        viommu: cmd.viommu_id,
        queue_type: cmd.type_,
        index: cmd.index,
        iova: cmd.nesting_parent_iova,
        len: cmd.length,
    };
    context.publish(
        |state| state.alloc_hw_queue(&request),
        |id| {
            cmd.out_hw_queue_id = id;
            command.respond(&cmd)
        },
    )
}
