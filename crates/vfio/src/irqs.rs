//! `VFIO_DEVICE_SET_IRQS`: which eventfd an interrupt signals.

use std::ops::Range;
use std::sync::Arc;

use host::{KernelFile, OpenFile, Task};
use uapi::extra::vfio_irq_set_header;
use uapi::{Plain, vfio as v};

use crate::{Error, Function};

const HEADER: usize = size_of::<vfio_irq_set_header>();
const DATA: u32 =
    v::VFIO_IRQ_SET_DATA_NONE | v::VFIO_IRQ_SET_DATA_BOOL | v::VFIO_IRQ_SET_DATA_EVENTFD;
const ACTION: u32 =
    v::VFIO_IRQ_SET_ACTION_MASK | v::VFIO_IRQ_SET_ACTION_UNMASK | v::VFIO_IRQ_SET_ACTION_TRIGGER;

/// How many interrupts of a kind there are, and what can be done with them.
pub(crate) fn info(function: &Function, index: u32) -> Result<(u32, u32), Error> {
    match index {
        v::VFIO_PCI_MSIX_IRQ_INDEX => {
            let count = function.msix().map_or(0, |msix| msix.vectors().into());
            Ok((count, v::VFIO_IRQ_INFO_EVENTFD))
        }
        v::VFIO_PCI_INTX_IRQ_INDEX | v::VFIO_PCI_MSI_IRQ_INDEX => Ok((0, v::VFIO_IRQ_INFO_EVENTFD)),
        _ => Err(Error::Invalid("IRQ index")),
    }
}

/// What the data of one call says of each interrupt.
enum Data {
    None,
    Bool(Vec<bool>),
    Eventfd(Vec<Option<Arc<dyn KernelFile>>>),
}

/// One call. `prepare` says where the device finds the doorbell's frame.
pub(crate) fn set(
    function: &Function,
    task: &dyn Task,
    arg: u64,
    prepare: impl FnOnce(u64) -> Result<u64, Error>,
) -> Result<(), Error> {
    let mut set = vfio_irq_set_header::zeroed();
    task.mm().copy_from_user(arg, set.as_bytes_mut())?;
    let room = (set.argsz as usize).checked_sub(HEADER).ok_or(Error::Invalid("argsz"))?;
    let (data, action) = (set.flags & DATA, set.flags & ACTION);
    if set.flags & !(DATA | ACTION) != 0 || !data.is_power_of_two() || !action.is_power_of_two() {
        return Err(Error::Invalid("VFIO_DEVICE_SET_IRQS flags"));
    }
    let (count, _) = info(function, set.index)?;
    let end = set.start.checked_add(set.count).filter(|end| *end <= count);
    let range = set.start..end.ok_or(Error::Invalid("there are not so many interrupts"))?;
    if range.start >= count && count > 0 {
        return Err(Error::Invalid("there are not so many interrupts"));
    }
    let width = match data {
        v::VFIO_IRQ_SET_DATA_BOOL => 1,
        v::VFIO_IRQ_SET_DATA_EVENTFD => 4,
        _ => 0,
    };
    let len = range.len() * width;
    if len > room {
        return Err(Error::Invalid("argsz does not cover the data"));
    }
    let mut bytes = vec![0; len];
    task.mm().copy_from_user(arg + HEADER as u64, &mut bytes)?;
    let data = match data {
        v::VFIO_IRQ_SET_DATA_NONE => Data::None,
        v::VFIO_IRQ_SET_DATA_BOOL => Data::Bool(bytes.iter().map(|byte| *byte != 0).collect()),
        _ => {
            let fds = bytes.as_chunks().0.iter().map(|word| i32::from_ne_bytes(*word));
            Data::Eventfd(fds.map(|fd| eventfd(task, fd)).collect::<Result<_, _>>()?)
        }
    };
    if action != v::VFIO_IRQ_SET_ACTION_TRIGGER {
        // Of MSI-X, as in the kernel: masking is in the table, which is the host's.
        return Err(Error::UnknownIoctl);
    }
    trigger(function, range, data, prepare)
}

fn trigger(
    function: &Function,
    range: Range<u32>,
    data: Data,
    prepare: impl FnOnce(u64) -> Result<u64, Error>,
) -> Result<(), Error> {
    let msix = function.msix().ok_or(Error::Invalid("the device has no such interrupts"))?;
    let all = range.start as u16..range.end as u16;
    match data {
        Data::None if all.is_empty() => msix.disable(),
        Data::Eventfd(triggers) => {
            // The frame, and behind it the doorbell, are in the device's domain from here on.
            let frame = prepare(msix.frame())?;
            msix.enable(frame, all.start, triggers);
        }
        Data::None | Data::Bool(_) if !msix.is_enabled() => {
            return Err(Error::Invalid("interrupts are not enabled"));
        }
        Data::None => all.for_each(|vector| msix.trigger(vector)),
        Data::Bool(wanted) => {
            let wanted = all.zip(wanted).filter(|(_, wanted)| *wanted);
            wanted.for_each(|(vector, _)| msix.trigger(vector));
        }
    }
    Ok(())
}

/// The eventfd behind a descriptor; -1 is none.
fn eventfd(task: &dyn Task, fd: i32) -> Result<Option<Arc<dyn KernelFile>>, Error> {
    if fd == -1 {
        return Ok(None);
    }
    match task.file(fd).map_err(Error::File)? {
        OpenFile::Kernel(file) if file.is_eventfd() => Ok(Some(file)),
        _ => Err(Error::Invalid("not an eventfd")),
    }
}
