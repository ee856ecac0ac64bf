//! An open device, however it was opened: what it is, its regions, its interrupts, its reset.

use std::sync::Arc;

use host::{Errno, File, FileMode, MappedMemory, MmapBacking, MmapRequest, PhysRun, Task};
use uapi::extra::{vfio_pci_dependent_device, vfio_pci_hot_reset_header};
use uapi::{Plain, nr, vfio as v};

use crate::binding::Binding;
use crate::user::{read, write};
use crate::{Error, feature, irqs};

/// Bits of an offset into the device's file; above them is the region.
const OFFSET_SHIFT: u32 = 40;
/// The longest copy at a time.
const CHUNK: usize = 4096;

/// An open file of a device.
pub(crate) trait DeviceFile: Send + Sync + 'static {
    /// What `fstat` tells.
    fn mode(&self) -> FileMode;

    /// The function in its iommufd.
    fn binding(&self) -> Result<Arc<Binding>, Error>;

    /// Carries out an ioctl that files opened this way have; `None` if it is none.
    fn own_ioctl(&self, task: &dyn Task, cmd: u32, arg: u64) -> Option<Result<(), Error>>;

    /// The group that resets and owners are told of, by id; `None`: the device's id in the iommufd is.
    fn group_id(&self) -> Option<u32> {
        None
    }

    /// Whether a descriptor of the caller proves that the group is the caller's.
    fn is_group(&self, task: &dyn Task, fd: i32) -> bool {
        let _ = (task, fd);
        false
    }
}

/// Its operations.
pub(crate) struct OpenDevice<F>(pub(crate) F);

impl<F: DeviceFile> File for OpenDevice<F> {
    fn mode(&self) -> FileMode {
        self.0.mode()
    }

    fn ioctl(&self, task: &dyn Task, cmd: u32, arg: u64) -> Result<i32, Errno> {
        let result = ioctl(&self.0, task, cmd, arg);
        if let Err(error) = &result {
            tracing::debug!(ioctl = nr::device_name(cmd), %error, "refused");
        }
        result.map_err(|error| error.errno())
    }

    fn read(
        &self,
        task: &dyn Task,
        buf: u64,
        len: usize,
        pos: Option<u64>,
    ) -> Result<usize, Errno> {
        read_region(&self.0, task, buf, len, pos).map_err(|error| error.errno())
    }

    fn write(
        &self,
        task: &dyn Task,
        buf: u64,
        len: usize,
        pos: Option<u64>,
    ) -> Result<usize, Errno> {
        write_region(&self.0, task, buf, len, pos).map_err(|error| error.errno())
    }

    fn mmap(&self, _task: &dyn Task, request: MmapRequest) -> Result<MmapBacking, Errno> {
        map_region(&self.0, request).map_err(|error| error.errno())
    }

    fn registers(&self, offset: u64, len: u64) -> Option<PhysRun> {
        let function = self.0.binding().ok()?.function.clone();
        let (index, offset) = (offset >> OFFSET_SHIFT, offset & ((1 << OFFSET_SHIFT) - 1));
        let index = u32::try_from(index).ok().filter(|index| function.is_memory(*index))?;
        function.place().run(index, offset, len)
    }
}

fn ioctl(file: &impl DeviceFile, task: &dyn Task, cmd: u32, arg: u64) -> Result<i32, Error> {
    if let Some(result) = file.own_ioctl(task, cmd, arg) {
        return result.map(|()| 0);
    }
    let binding = file.binding()?;
    let done = match cmd {
        nr::VFIO_DEVICE_GET_INFO => info(task, arg),
        nr::VFIO_DEVICE_GET_REGION_INFO => region_info(&binding, task, arg),
        nr::VFIO_DEVICE_GET_IRQ_INFO => irq_info(&binding, task, arg),
        nr::VFIO_DEVICE_SET_IRQS => {
            let prepare = |frame| Ok(binding.context.prepare_msi(binding.id, frame)?);
            irqs::set(&binding.function, task, arg, prepare)
        }
        nr::VFIO_DEVICE_RESET => {
            binding.function.reset();
            Ok(())
        }
        nr::VFIO_DEVICE_FEATURE => return feature::carry_out(&binding.function, task, arg),
        nr::VFIO_DEVICE_GET_PCI_HOT_RESET_INFO => hot_reset_info(file, &binding, task, arg),
        nr::VFIO_DEVICE_PCI_HOT_RESET => hot_reset(file, &binding, task, arg),
        _ => Err(Error::UnknownIoctl),
    };
    done.map(|()| 0)
}

fn info(task: &dyn Task, arg: u64) -> Result<(), Error> {
    let (mut info, _): (v::vfio_device_info, _) = read(task, arg, 16)?;
    let argsz = info.argsz as usize;
    info = Plain::zeroed();
    info.argsz = size_of_val(&info) as u32;
    info.flags = v::VFIO_DEVICE_FLAGS_RESET | v::VFIO_DEVICE_FLAGS_PCI;
    info.num_regions = v::VFIO_PCI_NUM_REGIONS;
    info.num_irqs = v::VFIO_PCI_NUM_IRQS;
    let len = argsz.min(size_of_val(&info));
    write(task, arg, &info, len)
}

fn region_info(binding: &Binding, task: &dyn Task, arg: u64) -> Result<(), Error> {
    let (mut info, _): (v::vfio_region_info, _) = read(task, arg, 32)?;
    let size = binding.function.region_size(info.index).ok_or(Error::Invalid("region index"))?;
    if size == 0 && info.index == v::VFIO_PCI_VGA_REGION_INDEX {
        return Err(Error::Invalid("the device has no such region"));
    }
    info.argsz = size_of_val(&info) as u32;
    info.cap_offset = 0;
    info.size = size;
    info.offset = u64::from(info.index) << OFFSET_SHIFT;
    let both = v::VFIO_REGION_INFO_FLAG_READ | v::VFIO_REGION_INFO_FLAG_WRITE;
    info.flags = if size == 0 { 0 } else { both };
    if binding.function.is_mappable(info.index) {
        info.flags |= v::VFIO_REGION_INFO_FLAG_MMAP;
    }
    write(task, arg, &info, 32)
}

fn irq_info(binding: &Binding, task: &dyn Task, arg: u64) -> Result<(), Error> {
    let (mut info, _): (v::vfio_irq_info, _) = read(task, arg, 16)?;
    let (count, flags) = irqs::info(&binding.function, info.index)?;
    info.argsz = size_of_val(&info) as u32;
    (info.count, info.flags) = (count, flags);
    write(task, arg, &info, 16)
}

/// Each function is alone in its slot: a reset of the slot is a reset of the function. It would take virtual functions
/// along: while there are any there is no such reset, nor is there one of theirs.
fn check_slot(binding: &Binding) -> Result<(), Error> {
    if binding.function.has_slot() { Ok(()) } else { Err(Error::NoDevice) }
}

fn hot_reset_info(
    file: &impl DeviceFile,
    binding: &Binding,
    task: &dyn Task,
    arg: u64,
) -> Result<(), Error> {
    check_slot(binding)?;
    let (mut header, len): (vfio_pci_hot_reset_header, _) = read(task, arg, 12)?;
    let room = header.argsz as usize;
    let address = binding.function.address();
    let device = vfio_pci_dependent_device {
        id: file.group_id().unwrap_or(binding.id),
        segment: address.segment,
        bus: address.bus,
        devfn: address.devfn(),
    };
    header.argsz = (len + size_of_val(&device)) as u32;
    header.flags = match file.group_id() {
        Some(_) => 0,
        None => v::VFIO_PCI_HOT_RESET_FLAG_DEV_ID | v::VFIO_PCI_HOT_RESET_FLAG_DEV_ID_OWNED,
    };
    header.count = 1;
    let fits = room >= header.argsz as usize;
    if fits {
        write(task, arg + len as u64, &device, size_of_val(&device))?;
    }
    write(task, arg, &header, len)?;
    if fits { Ok(()) } else { Err(Error::NoSpace) }
}

fn hot_reset(
    file: &impl DeviceFile,
    binding: &Binding,
    task: &dyn Task,
    arg: u64,
) -> Result<(), Error> {
    check_slot(binding)?;
    let (header, len): (vfio_pci_hot_reset_header, _) = read(task, arg, 12)?;
    // Nobody proves the ownership of one device with more than one descriptor.
    if header.flags != 0 || header.count > 1 {
        return Err(Error::Invalid("VFIO_DEVICE_PCI_HOT_RESET flags or count"));
    }
    let owned = match (file.group_id(), header.count) {
        (None, 0) => true,
        (Some(_), 1) => {
            let mut fd = [0; 4];
            task.mm().copy_from_user(arg + len as u64, &mut fd)?;
            file.is_group(task, i32::from_ne_bytes(fd))
        }
        _ => return Err(Error::Invalid("ownership is proved by one group, or by a bound device")),
    };
    if !owned {
        return Err(Error::Invalid("the descriptor is not the device's group"));
    }
    binding.function.reset();
    Ok(())
}

/// The region at a file offset, the offset in it, and how many of `len` bytes it has from there.
fn place(binding: &Binding, pos: Option<u64>, len: usize) -> Result<(u32, u64, usize), Error> {
    let pos = pos.ok_or(Error::Invalid("a device is read and written at an offset"))?;
    let (index, offset) = (pos >> OFFSET_SHIFT, pos & ((1 << OFFSET_SHIFT) - 1));
    let index = u32::try_from(index).map_err(|_| Error::Invalid("offset"))?;
    let size = binding.function.region_size(index).ok_or(Error::Invalid("offset"))?;
    let left = size.checked_sub(offset).filter(|left| *left > 0);
    let left = left.ok_or(Error::Invalid("the offset is outside the region"))?;
    Ok((index, offset, len.min(usize::try_from(left).unwrap_or(usize::MAX))))
}

/// Registers of a BAR, for a program to access as memory.
fn map_region(file: &impl DeviceFile, request: MmapRequest) -> Result<MmapBacking, Error> {
    let binding = file.binding()?;
    let len = usize::try_from(request.len).map_err(|_| Error::Invalid("length"))?;
    let (index, _, fits) = place(&binding, Some(request.offset), len)?;
    if !binding.function.is_mappable(index) || !request.shared || request.exec || fits < len {
        return Err(Error::Invalid("the region cannot be mapped so"));
    }
    Ok(MmapBacking { memory: MappedMemory::Registers, guard: Box::new(()) })
}

fn read_region(
    file: &impl DeviceFile,
    task: &dyn Task,
    buf: u64,
    len: usize,
    pos: Option<u64>,
) -> Result<usize, Error> {
    let binding = file.binding()?;
    let (index, offset, len) = place(&binding, pos, len)?;
    by_chunk(len, |done, part| {
        binding.function.read(index, offset + done, part)?;
        Ok(task.mm().copy_to_user(buf + done, part)?)
    })
}

fn write_region(
    file: &impl DeviceFile,
    task: &dyn Task,
    buf: u64,
    len: usize,
    pos: Option<u64>,
) -> Result<usize, Error> {
    let binding = file.binding()?;
    let (index, offset, len) = place(&binding, pos, len)?;
    by_chunk(len, |done, part| {
        task.mm().copy_from_user(buf + done, part)?;
        binding.function.write(index, offset + done, part)
    })
}

/// Moves `len` bytes through a buffer of [`CHUNK`] bytes: `each` gets how many bytes are done and the part to fill or to empty.
fn by_chunk(
    len: usize,
    mut each: impl FnMut(u64, &mut [u8]) -> Result<(), Error>,
) -> Result<usize, Error> {
    let mut chunk = [0; CHUNK];
    let mut done = 0;
    while done < len {
        let part = &mut chunk[..(len - done).min(CHUNK)];
        each(done as u64, part)?;
        done += part.len();
    }
    Ok(done)
}
