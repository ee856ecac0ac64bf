//! `VFIO_DEVICE_SET_IRQS`: which eventfd an interrupt signals.

use std::ops::Range;
use std::sync::Arc;

use host::{Errno, KernelFile, OpenFile, Task};
use uapi::extra::vfio_irq_set_header;
use uapi::{Plain, vfio as v};

use crate::interrupts::{Interrupts, Kind};
use crate::{Error, Function};

const HEADER: usize = size_of::<vfio_irq_set_header>();
const DATA: u32 =
    v::VFIO_IRQ_SET_DATA_NONE | v::VFIO_IRQ_SET_DATA_BOOL | v::VFIO_IRQ_SET_DATA_EVENTFD;
const ACTION: u32 =
    v::VFIO_IRQ_SET_ACTION_MASK | v::VFIO_IRQ_SET_ACTION_UNMASK | v::VFIO_IRQ_SET_ACTION_TRIGGER;

/// What an index of `VFIO_PCI_*_IRQ_INDEX` means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Index {
    /// What the device itself raises.
    Device(Kind),
    /// The device has failed.
    Error,
    /// The host wants the device back.
    Request,
}

impl Index {
    fn of(index: u32) -> Result<Self, Error> {
        Ok(match index {
            v::VFIO_PCI_INTX_IRQ_INDEX => Self::Device(Kind::Line),
            v::VFIO_PCI_MSI_IRQ_INDEX => Self::Device(Kind::Msi),
            v::VFIO_PCI_MSIX_IRQ_INDEX => Self::Device(Kind::MsiX),
            v::VFIO_PCI_ERR_IRQ_INDEX => Self::Error,
            v::VFIO_PCI_REQ_IRQ_INDEX => Self::Request,
            _ => return Err(Error::Invalid("IRQ index")),
        })
    }

    fn count(self, function: &Function) -> u32 {
        match self {
            Self::Device(kind) => function.interrupts().count(kind),
            Self::Error | Self::Request => 1,
        }
    }
}

/// How many interrupts of a kind there are, and what can be done with them.
pub(crate) fn info(function: &Function, index: u32) -> Result<(u32, u32), Error> {
    let index = Index::of(index)?;
    let flags = match index {
        Index::Device(Kind::Line) => v::VFIO_IRQ_INFO_MASKABLE | v::VFIO_IRQ_INFO_AUTOMASKED,
        // Vectors can be added one by one.
        Index::Device(Kind::MsiX) => 0,
        _ => v::VFIO_IRQ_INFO_NORESIZE,
    };
    Ok((index.count(function), flags | v::VFIO_IRQ_INFO_EVENTFD))
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
    let index = Index::of(set.index)?;
    let count = index.count(function);
    let end = set.start.checked_add(set.count).filter(|end| *end <= count && set.start < count);
    let range = set.start..end.ok_or(Error::Invalid("there are not so many interrupts"))?;
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
    let interrupts = function.interrupts();
    match (index, action) {
        (Index::Device(Kind::Line), v::VFIO_IRQ_SET_ACTION_TRIGGER) => {
            line(interrupts, range, data)
        }
        (Index::Device(Kind::Line), action) => {
            mask(interrupts, range, data, action == v::VFIO_IRQ_SET_ACTION_MASK)
        }
        (Index::Device(kind), v::VFIO_IRQ_SET_ACTION_TRIGGER) => {
            messages(interrupts, kind, range, data, prepare)
        }
        (Index::Error, v::VFIO_IRQ_SET_ACTION_TRIGGER) => {
            notice(range, data, |to| interrupts.set_error(to), || interrupts.trigger_error())
        }
        (Index::Request, v::VFIO_IRQ_SET_ACTION_TRIGGER) => {
            notice(range, data, |to| interrupts.set_request(to), || interrupts.trigger_request())
        }
        // As in the kernel: masking of messages is in the table, which is the host's.
        _ => Err(Error::UnknownIoctl),
    }
}

/// The kind may be used: no other is.
fn check_free(interrupts: &Interrupts, kind: Kind) -> Result<(), Error> {
    match interrupts.kind() {
        Some(used) if used != kind => Err(Error::Invalid("another kind of interrupt is in use")),
        _ => Ok(()),
    }
}

fn line(interrupts: &Interrupts, range: Range<u32>, data: Data) -> Result<(), Error> {
    let used = interrupts.kind() == Some(Kind::Line);
    match data {
        Data::None if used && range.is_empty() => interrupts.disable(),
        _ if range != (0..1) => return Err(Error::Invalid("there is one interrupt line")),
        Data::Eventfd(mut trigger) => {
            check_free(interrupts, Kind::Line)?;
            interrupts.enable_line(trigger.pop().flatten());
        }
        _ if !used => return Err(Error::Invalid("the interrupt line is not in use")),
        Data::Bool(wanted) if wanted == [false] => {}
        Data::None | Data::Bool(_) => interrupts.trigger(0),
    }
    Ok(())
}

fn mask(interrupts: &Interrupts, range: Range<u32>, data: Data, mask: bool) -> Result<(), Error> {
    if interrupts.kind() != Some(Kind::Line) || range != (0..1) {
        return Err(Error::Invalid("the interrupt line is not in use"));
    }
    match data {
        Data::Bool(wanted) if wanted == [false] => {}
        Data::None | Data::Bool(_) => interrupts.mask_line(mask),
        // As in the kernel: eventfds only unmask, which KVM's resampling does.
        Data::Eventfd(_) if mask => return Err(Error::UnknownIoctl),
        Data::Eventfd(mut file) => {
            let file = file.pop().flatten();
            if file.is_some() && interrupts.is_unmasked_by_eventfd() {
                return Err(Error::Busy("another eventfd unmasks the line: -1 takes it away"));
            }
            interrupts.unmask_line_by(file).map_err(|_| Error::File(Errno::NOMEM))?;
        }
    }
    Ok(())
}

fn messages(
    interrupts: &Interrupts,
    kind: Kind,
    range: Range<u32>,
    data: Data,
    prepare: impl FnOnce(u64) -> Result<u64, Error>,
) -> Result<(), Error> {
    check_free(interrupts, kind)?;
    let used = interrupts.kind() == Some(kind);
    let all = range.start as u16..range.end as u16;
    match data {
        Data::None if used && all.is_empty() => interrupts.disable(),
        Data::Eventfd(triggers) => {
            // The frame, and behind it the doorbell, are in the device's domain from here on.
            let frame = prepare(interrupts.frame())?;
            interrupts.enable(kind, frame, all.start, triggers);
        }
        Data::None | Data::Bool(_) if !used => {
            return Err(Error::Invalid("interrupts are not enabled"));
        }
        Data::None => all.for_each(|event| interrupts.trigger(event)),
        Data::Bool(wanted) => {
            let wanted = all.zip(wanted).filter(|(_, wanted)| *wanted);
            wanted.for_each(|(event, _)| interrupts.trigger(event));
        }
    }
    Ok(())
}

/// An interrupt that the host raises, not the device.
fn notice(
    range: Range<u32>,
    data: Data,
    set: impl FnOnce(Option<Arc<dyn KernelFile>>),
    trigger: impl FnOnce(),
) -> Result<(), Error> {
    match data {
        Data::None if range.is_empty() => set(None),
        Data::Eventfd(mut to) if !range.is_empty() => set(to.pop().flatten()),
        Data::Bool(wanted) if wanted == [false] => {}
        Data::None | Data::Bool(_) if !range.is_empty() => trigger(),
        _ => return Err(Error::Invalid("there is one such interrupt")),
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
