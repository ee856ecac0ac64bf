//! `/dev/vfio/devices/vfioN`: bind, attach, detach.

use std::any::Any;
use std::sync::Arc;

use host::{CharDevice, Errno, File, FileMode, OpenFile, Task};
use iommu::Target;
use iommufd::Context;
use parking_lot::Mutex;
use uapi::{nr, vfio as v};

use crate::binding::{Binding, Opened};
use crate::file::{DeviceFile, OpenDevice};
use crate::group::CdevUse;
use crate::sriov::{OpenFunction, Uuid};
use crate::user::{read, write};
use crate::{Error, Function};

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
        let open = OpenFunction::new(&self.function).map_err(|error| error.errno())?;
        let (function, mode) = (self.function.clone(), self.mode);
        let file = CdevFile { function, mode, bound: Mutex::default(), _open: open };
        Ok(Arc::new(OpenDevice(file)))
    }

    fn mode(&self) -> FileMode {
        self.mode
    }

    fn exists(&self) -> bool {
        self.function.is_present()
    }
}

/// An open file of a device.
struct CdevFile {
    function: Arc<Function>,
    mode: FileMode,
    bound: Mutex<Option<Bound>>,
    _open: OpenFunction,
}

/// What it is bound to, and what keeps others from it.
struct Bound {
    opened: Opened,
    _used: CdevUse,
}

impl DeviceFile for CdevFile {
    fn mode(&self) -> FileMode {
        self.mode
    }

    fn binding(&self) -> Result<Arc<Binding>, Error> {
        let bound = self.bound.lock();
        let binding = bound.as_ref().map(|bound| bound.opened.binding().clone());
        binding.ok_or(Error::Invalid("the device is not bound to an iommufd"))
    }

    fn own_ioctl(&self, task: &dyn Task, cmd: u32, arg: u64) -> Option<Result<(), Error>> {
        Some(match cmd {
            nr::VFIO_DEVICE_BIND_IOMMUFD => self.bind(task, arg),
            nr::VFIO_DEVICE_ATTACH_IOMMUFD_PT => self.attach(task, arg),
            nr::VFIO_DEVICE_DETACH_IOMMUFD_PT => self.detach(task, arg),
            _ => return None,
        })
    }
}

impl CdevFile {
    fn bind(&self, task: &dyn Task, arg: u64) -> Result<(), Error> {
        const TOKEN: u32 = v::VFIO_DEVICE_BIND_FLAG_TOKEN;
        const LEN: usize = 16;
        let (mut bind, _): (v::vfio_device_bind_iommufd, _) = read(task, arg, LEN)?;
        if bind.flags & !TOKEN != 0 || bind.iommufd < 0 {
            return Err(Error::Invalid("VFIO_DEVICE_BIND_IOMMUFD flags or iommufd"));
        }
        let mut token = None;
        if bind.flags & TOKEN != 0 {
            task.mm().copy_from_user(bind.token_uuid_ptr, token.insert(Uuid::default()))?;
        }
        let mut bound = self.bound.lock();
        if bound.is_some() {
            return Err(Error::Invalid("the device is bound already"));
        }
        self.function.match_token(token)?;
        let context = iommufd(task, bind.iommufd)?.ok_or(Error::WrongFile)?;
        let used = CdevUse::new(&self.function)?;
        let binding = Binding::new(&self.function, context, task)?;
        bind.out_devid = binding.id;
        let new = Bound { opened: Opened::new(binding)?, _used: used };
        write(task, arg, &bind, LEN)?;
        *bound = Some(new);
        Ok(())
    }

    fn attach(&self, task: &dyn Task, arg: u64) -> Result<(), Error> {
        const LEN: usize = 12;
        let binding = self.binding()?;
        let (mut attach, len): (v::vfio_device_attach_iommufd_pt, _) = read(task, arg, LEN)?;
        let target = target(attach.flags, len, 16, attach.pasid)?;
        let old = binding.context.attached_hwpt(binding.id, target)?;
        attach.pt_id = binding.attach(target, attach.pt_id)?;
        write(task, arg, &attach, LEN).inspect_err(|_| {
            if old.is_none() {
                binding.context.detach(binding.id, target);
            }
        })
    }

    fn detach(&self, task: &dyn Task, arg: u64) -> Result<(), Error> {
        let binding = self.binding()?;
        let (detach, len): (v::vfio_device_detach_iommufd_pt, _) = read(task, arg, 8)?;
        let target = target(detach.flags, len, 12, detach.pasid)?;
        binding.context.detach(binding.id, target);
        Ok(())
    }
}

/// The iommufd behind a descriptor; `None` if it is something else.
pub(crate) fn iommufd(task: &dyn Task, fd: i32) -> Result<Option<Arc<Context>>, Error> {
    Ok(match task.file(fd).map_err(Error::File)? {
        OpenFile::Emulated(file) => {
            let file: Arc<dyn Any + Send + Sync> = file;
            file.downcast().ok()
        }
        OpenFile::Kernel(_) => None,
    })
}

/// Whose traffic is meant: bit 0 of the flags says that there is a PASID, which then has to be there.
fn target(flags: u32, len: usize, with_pasid: usize, pasid: u32) -> Result<Target, Error> {
    match flags {
        0 => Ok(Target::Rid),
        1 if len >= with_pasid => Ok(Target::Pasid(pasid)),
        _ => Err(Error::Invalid("flags")),
    }
}
