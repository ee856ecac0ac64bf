//! `/dev/vfio/devices/vfioN`: bind, attach, detach, and what the device is.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use host::{Capability, CharDevice, Errno, File, FileMode, OpenFile, Task};
use iommu::Target;
use iommufd::{Context, Id};
use parking_lot::Mutex;
use uapi::extra::vfio_device_feature_header;
use uapi::{Plain, nr, vfio as v};

use crate::{Error, Function, irqs};

/// Bits of an offset into the device's file; above them is the region.
const OFFSET_SHIFT: u32 = 40;
/// The longest copy at a time.
const CHUNK: usize = 4096;

/// The node of one device.
pub struct Cdev {
    function: Arc<Function>,
    mode: FileMode,
}

impl Cdev {
    /// The node of a function, with these device numbers.
    pub fn new(function: Arc<Function>, major: u32, minor: u32) -> Self {
        Self { function, mode: FileMode::CharDevice { major, minor } }
    }
}

impl CharDevice for Cdev {
    fn open(&self, _task: &dyn Task) -> Result<Arc<dyn File>, Errno> {
        if host::fail::point() {
            return Err(Errno::NOMEM);
        }
        let (function, mode) = (self.function.clone(), self.mode);
        Ok(Arc::new(DeviceFile { function, mode, bound: Mutex::default() }))
    }

    fn mode(&self) -> FileMode {
        self.mode
    }
}

/// An open file of a device.
struct DeviceFile {
    function: Arc<Function>,
    mode: FileMode,
    bound: Mutex<Option<Bound>>,
}

/// The device in an iommufd.
#[derive(Clone)]
struct Bound {
    context: Arc<Context>,
    id: Id,
}

impl Drop for DeviceFile {
    fn drop(&mut self) {
        if let Some(bound) = self.bound.get_mut().take() {
            self.function.close();
            if let Err(error) = bound.context.unbind(bound.id) {
                tracing::error!(%error, "cannot unbind");
            }
            self.function.bound.store(false, Ordering::Release);
        }
    }
}

/// Reads what is there of a struct that needs at least `min` bytes and says how many it has.
fn read<T: Plain>(task: &dyn Task, arg: u64, min: usize) -> Result<(T, usize), Error> {
    let mut value = T::zeroed();
    task.mm().copy_from_user(arg, &mut value.as_bytes_mut()[..min])?;
    let argsz = u32::from_bytes(value.as_bytes()) as usize;
    if argsz < min {
        return Err(Error::Invalid("argsz"));
    }
    let known = argsz.min(size_of::<T>());
    task.mm().copy_from_user(arg, &mut value.as_bytes_mut()[..known])?;
    Ok((value, known))
}

trait FirstWord {
    fn from_bytes(bytes: &[u8]) -> u32;
}

impl FirstWord for u32 {
    fn from_bytes(bytes: &[u8]) -> u32 {
        bytes.first_chunk().map_or(0, |word| u32::from_ne_bytes(*word))
    }
}

fn write(task: &dyn Task, arg: u64, value: &impl Plain, len: usize) -> Result<(), Error> {
    Ok(task.mm().copy_to_user(arg, &value.as_bytes()[..len])?)
}

impl DeviceFile {
    fn bound(&self) -> Result<Bound, Error> {
        self.bound.lock().clone().ok_or(Error::Invalid("the device is not bound to an iommufd"))
    }

    fn call(&self, task: &dyn Task, cmd: u32, arg: u64) -> Result<i32, Error> {
        if cmd == nr::VFIO_DEVICE_BIND_IOMMUFD {
            return self.bind(task, arg);
        }
        let bound = self.bound()?;
        match cmd {
            nr::VFIO_DEVICE_ATTACH_IOMMUFD_PT => attach(&bound, task, arg),
            nr::VFIO_DEVICE_DETACH_IOMMUFD_PT => detach(&bound, task, arg),
            nr::VFIO_DEVICE_GET_INFO => info(task, arg),
            nr::VFIO_DEVICE_GET_REGION_INFO => self.region_info(task, arg),
            nr::VFIO_DEVICE_GET_IRQ_INFO => self.irq_info(task, arg),
            nr::VFIO_DEVICE_SET_IRQS => {
                let prepare = |frame| Ok(bound.context.prepare_msi(bound.id, frame)?);
                irqs::set(&self.function, task, arg, prepare).map(|()| 0)
            }
            nr::VFIO_DEVICE_RESET => {
                self.function.open();
                Ok(0)
            }
            nr::VFIO_DEVICE_FEATURE => {
                // There are none; but a malformed question is answered as such.
                let (feature, _): (vfio_device_feature_header, _) = read(task, arg, 8)?;
                let known = v::VFIO_DEVICE_FEATURE_MASK
                    | v::VFIO_DEVICE_FEATURE_GET
                    | v::VFIO_DEVICE_FEATURE_SET
                    | v::VFIO_DEVICE_FEATURE_PROBE;
                let both = v::VFIO_DEVICE_FEATURE_GET | v::VFIO_DEVICE_FEATURE_SET;
                let probes = feature.flags & v::VFIO_DEVICE_FEATURE_PROBE != 0;
                if feature.flags & !known != 0 || !probes && feature.flags & both == both {
                    return Err(Error::Invalid("VFIO_DEVICE_FEATURE flags"));
                }
                Err(Error::UnknownIoctl)
            }
            _ => Err(Error::UnknownIoctl),
        }
    }

    fn bind(&self, task: &dyn Task, arg: u64) -> Result<i32, Error> {
        const TOKEN: u32 = 1;
        let (mut bind, _): (v::vfio_device_bind_iommufd, _) = read(task, arg, 16)?;
        if bind.flags & !TOKEN != 0 || bind.iommufd < 0 {
            return Err(Error::Invalid("VFIO_DEVICE_BIND_IOMMUFD flags or iommufd"));
        }
        if bind.flags & TOKEN != 0 {
            return Err(Error::Invalid("the device has no VF token"));
        }
        let mut own = self.bound.lock();
        if own.is_some() {
            return Err(Error::Invalid("the device is bound already"));
        }
        let context = match task.file(bind.iommufd).map_err(Error::File)? {
            OpenFile::Emulated(file) => {
                let file: Arc<dyn Any + Send + Sync> = file;
                file.downcast::<Context>().map_err(|_| Error::WrongFile)?
            }
            OpenFile::Kernel(_) => return Err(Error::WrongFile),
        };
        let device = self.function.device();
        if !device.has_iommu() && !context.capable(task, Capability::SysRawio) {
            return Err(Error::Permission("a device without an IOMMU needs CAP_SYS_RAWIO"));
        }
        if self.function.bound.swap(true, Ordering::AcqRel) {
            return Err(Error::Invalid("the device is bound through another file"));
        }
        let bound = context.bind(device.clone()).map_err(Error::from).and_then(|id| {
            bind.out_devid = id;
            match write(task, arg, &bind, 16) {
                Ok(()) => Ok(Bound { context, id }),
                Err(error) => {
                    context.unbind(id)?;
                    Err(error)
                }
            }
        });
        match bound {
            Ok(bound) => {
                self.function.open();
                *own = Some(bound);
                Ok(0)
            }
            Err(error) => {
                self.function.bound.store(false, Ordering::Release);
                Err(error)
            }
        }
    }

    fn region_info(&self, task: &dyn Task, arg: u64) -> Result<i32, Error> {
        let (mut info, _): (v::vfio_region_info, _) = read(task, arg, 32)?;
        let size = self.function.region_size(info.index).ok_or(Error::Invalid("region index"))?;
        if size == 0 && info.index >= v::VFIO_PCI_ROM_REGION_INDEX {
            return Err(Error::Invalid("the device has no such region"));
        }
        info.argsz = size_of_val(&info) as u32;
        info.cap_offset = 0;
        info.size = size;
        info.offset = u64::from(info.index) << OFFSET_SHIFT;
        let both = v::VFIO_REGION_INFO_FLAG_READ | v::VFIO_REGION_INFO_FLAG_WRITE;
        info.flags = if size == 0 { 0 } else { both };
        write(task, arg, &info, 32).map(|()| 0)
    }

    fn irq_info(&self, task: &dyn Task, arg: u64) -> Result<i32, Error> {
        let (mut info, _): (v::vfio_irq_info, _) = read(task, arg, 16)?;
        let (count, flags) = irqs::info(&self.function, info.index)?;
        info.argsz = size_of_val(&info) as u32;
        (info.count, info.flags) = (count, flags);
        write(task, arg, &info, 16).map(|()| 0)
    }

    /// The region at a file offset, the offset in it, and how many of `len` bytes it has from there.
    fn place(&self, pos: Option<u64>, len: usize) -> Result<(u32, u64, usize), Error> {
        self.bound()?;
        let pos = pos.ok_or(Error::Invalid("a device is read and written at an offset"))?;
        let (index, offset) = (pos >> OFFSET_SHIFT, pos & ((1 << OFFSET_SHIFT) - 1));
        let index = u32::try_from(index).map_err(|_| Error::Invalid("offset"))?;
        let size = self.function.region_size(index).ok_or(Error::Invalid("offset"))?;
        let left = size.checked_sub(offset).filter(|left| *left > 0);
        let left = left.ok_or(Error::Invalid("the offset is outside the region"))?;
        Ok((index, offset, len.min(usize::try_from(left).unwrap_or(usize::MAX))))
    }

    fn read_region(
        &self,
        task: &dyn Task,
        buf: u64,
        len: usize,
        pos: Option<u64>,
    ) -> Result<usize, Error> {
        let (index, offset, len) = self.place(pos, len)?;
        let mut chunk = [0; CHUNK];
        let mut done = 0;
        while done < len {
            let part = &mut chunk[..(len - done).min(CHUNK)];
            self.function.read(index, offset + done as u64, part)?;
            task.mm().copy_to_user(buf + done as u64, part)?;
            done += part.len();
        }
        Ok(done)
    }

    fn write_region(
        &self,
        task: &dyn Task,
        buf: u64,
        len: usize,
        pos: Option<u64>,
    ) -> Result<usize, Error> {
        let (index, offset, len) = self.place(pos, len)?;
        let mut chunk = [0; CHUNK];
        let mut done = 0;
        while done < len {
            let part = &mut chunk[..(len - done).min(CHUNK)];
            task.mm().copy_from_user(buf + done as u64, part)?;
            self.function.write(index, offset + done as u64, part)?;
            done += part.len();
        }
        Ok(done)
    }
}

fn info(task: &dyn Task, arg: u64) -> Result<i32, Error> {
    let (mut info, _): (v::vfio_device_info, _) = read(task, arg, 16)?;
    let argsz = info.argsz as usize;
    info = Plain::zeroed();
    info.argsz = size_of_val(&info) as u32;
    info.flags = v::VFIO_DEVICE_FLAGS_RESET | v::VFIO_DEVICE_FLAGS_PCI;
    info.num_regions = v::VFIO_PCI_NUM_REGIONS;
    info.num_irqs = v::VFIO_PCI_NUM_IRQS;
    let len = argsz.min(size_of_val(&info));
    write(task, arg, &info, len).map(|()| 0)
}

fn attach(bound: &Bound, task: &dyn Task, arg: u64) -> Result<i32, Error> {
    let (mut attach, len): (v::vfio_device_attach_iommufd_pt, _) = read(task, arg, 12)?;
    let target = target(attach.flags, len, 16, attach.pasid)?;
    let Bound { context, id } = bound;
    let old = context.attached_hwpt(*id, target)?;
    // Attaching again is a replacement.
    let new = match old {
        Some(_) => context.replace(*id, target, attach.pt_id)?,
        None => context.attach(*id, target, attach.pt_id)?,
    };
    attach.pt_id = new;
    write(task, arg, &attach, 12).inspect_err(|_| {
        if old.is_none() {
            context.detach(*id, target);
        }
    })?;
    Ok(0)
}

fn detach(bound: &Bound, task: &dyn Task, arg: u64) -> Result<i32, Error> {
    let (detach, len): (v::vfio_device_detach_iommufd_pt, _) = read(task, arg, 8)?;
    let target = target(detach.flags, len, 12, detach.pasid)?;
    bound.context.detach(bound.id, target);
    Ok(0)
}

/// Whose traffic is meant: bit 0 of the flags says that there is a PASID, which then has to be there.
fn target(flags: u32, len: usize, with_pasid: usize, pasid: u32) -> Result<Target, Error> {
    match flags {
        0 => Ok(Target::Rid),
        1 if len >= with_pasid => Ok(Target::Pasid(pasid)),
        _ => Err(Error::Invalid("flags")),
    }
}

impl File for DeviceFile {
    fn mode(&self) -> FileMode {
        self.mode
    }

    fn ioctl(&self, task: &dyn Task, cmd: u32, arg: u64) -> Result<i32, Errno> {
        let result = self.call(task, cmd, arg);
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
        self.read_region(task, buf, len, pos).map_err(|error| error.errno())
    }

    fn write(
        &self,
        task: &dyn Task,
        buf: u64,
        len: usize,
        pos: Option<u64>,
    ) -> Result<usize, Errno> {
        self.write_region(task, buf, len, pos).map_err(|error| error.errno())
    }

    fn mmap(
        &self,
        _task: &dyn Task,
        _request: host::MmapRequest,
    ) -> Result<host::MmapBacking, Errno> {
        // Every register access has to be seen.
        Err(Errno::INVAL)
    }
}
