//! `/dev/vfio/GROUP`: devices of an IOMMU group, as clients from before the iommufd open them.

use std::any::Any;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use host::{CharDevice, Errno, File, FileMode, OpenFile, Task};
use iommu::Target;
use iommufd::Context;
use parking_lot::Mutex;
use uapi::{nr, vfio as v};

use crate::binding::{Binding, Opened};
use crate::cdev::iommufd;
use crate::container::{Container, Member};
use crate::file::{DeviceFile, OpenDevice};
use crate::sriov::parse_options;
use crate::user::{read, read_text, write};
use crate::{Error, Function};

/// The longest name of a device.
const NAME: usize = 4096;

/// Functions that share an IOMMU group.
pub struct Group {
    id: u32,
    state: Mutex<Usage>,
}

#[derive(Default)]
struct Usage {
    functions: Vec<Weak<Function>>,
    /// Devices that are bound by their own files.
    cdevs: usize,
    /// The group's file is open.
    open: bool,
}

impl Group {
    /// The group `/dev/vfio/ID`, of nobody yet.
    pub fn new(id: u32) -> Arc<Self> {
        Arc::new(Self { id, state: Mutex::default() })
    }

    /// Its number.
    pub fn id(&self) -> u32 {
        self.id
    }

    pub(crate) fn add(&self, function: &Arc<Function>) {
        self.state.lock().functions.push(Arc::downgrade(function));
    }

    /// Its functions, those among them that are not there at the moment.
    pub(crate) fn functions(&self) -> Vec<Arc<Function>> {
        self.state.lock().functions.iter().filter_map(Weak::upgrade).collect()
    }

    fn present(&self) -> impl Iterator<Item = Arc<Function>> {
        self.functions().into_iter().filter(|function| function.is_present())
    }

    /// The function whose name `text` begins with, and what follows its name.
    fn function<'a>(&self, text: &'a str) -> Option<(Arc<Function>, &'a str)> {
        let (name, options) = text.find(' ').map_or((text, ""), |end| text.split_at(end));
        let found = self.present().find(|function| function.address().to_string() == name);
        Some((found?, options))
    }
}

/// A device is bound by its own file: nobody else binds it, and nobody opens its group.
pub(crate) struct CdevUse(Arc<Function>);

impl CdevUse {
    pub(crate) fn new(function: &Arc<Function>) -> Result<Self, Error> {
        let mut state = function.group().state.lock();
        if state.open {
            return Err(Error::Busy("the device's group is open"));
        }
        if function.bound.swap(true, Ordering::AcqRel) {
            return Err(Error::Invalid("the device is bound through another file"));
        }
        state.cdevs += 1;
        Ok(Self(function.clone()))
    }
}

impl Drop for CdevUse {
    fn drop(&mut self) {
        self.0.group().state.lock().cdevs -= 1;
        self.0.bound.store(false, Ordering::Release);
    }
}

/// The node of a group.
pub struct GroupNode {
    group: Arc<Group>,
    major: u32,
}

impl GroupNode {
    /// The node of a group, with this major device number; the minor is the group's.
    pub fn new(group: Arc<Group>, major: u32) -> Self {
        Self { group, major }
    }
}

impl CharDevice for GroupNode {
    fn open(&self, _task: &dyn Task) -> Result<Arc<dyn File>, Errno> {
        {
            let mut state = self.group.state.lock();
            if state.open || state.cdevs > 0 {
                return Err(Errno::BUSY);
            }
            state.open = true;
        }
        let group = self.group.clone();
        let open = GroupOpen { group, set: Mutex::default(), opened: Mutex::default() };
        Ok(Arc::new(GroupFile { open: Arc::new(open), mode: self.mode() }))
    }

    fn mode(&self) -> FileMode {
        FileMode::CharDevice { major: self.major, minor: self.group.id }
    }

    fn exists(&self) -> bool {
        self.group.present().next().is_some()
    }
}

/// A group that is open, by its file or by those of its devices.
pub(crate) struct GroupOpen {
    group: Arc<Group>,
    set: Mutex<Option<Set>>,
    /// Its devices that are open.
    opened: Mutex<Vec<Weak<Opened>>>,
}

/// What stands behind a group.
enum Set {
    Container(Member),
    Iommufd(Arc<Context>),
}

impl Drop for GroupOpen {
    fn drop(&mut self) {
        // What stood behind it may be another's next.
        *self.set.get_mut() = None;
        self.group.state.lock().open = false;
    }
}

impl GroupOpen {
    fn opened(&self) -> Vec<Arc<Opened>> {
        let mut opened = self.opened.lock();
        opened.retain(|opened| opened.strong_count() > 0);
        opened.iter().filter_map(Weak::upgrade).collect()
    }

    fn set_container(&self, task: &dyn Task, arg: u64) -> Result<(), Error> {
        let mut fd = [0; 4];
        task.mm().copy_from_user(arg, &mut fd)?;
        let fd = i32::from_ne_bytes(fd);
        if fd < 0 {
            return Err(Error::Invalid("the container's descriptor"));
        }
        let mut set = self.set.lock();
        if set.is_some() {
            return Err(Error::Invalid("the group has a container"));
        }
        if let Some(context) = iommufd(task, fd)? {
            context.vfio_ioas()?;
            *set = Some(Set::Iommufd(context));
            return Ok(());
        }
        let OpenFile::Emulated(file) = task.file(fd).map_err(Error::File)? else {
            return Err(Error::WrongFile);
        };
        let file: Arc<dyn Any + Send + Sync> = file;
        let container: Arc<Container> = file.downcast().map_err(|_| Error::WrongFile)?;
        *set = Some(Set::Container(container.join(&self.group, task)?));
        Ok(())
    }

    fn unset_container(&self) -> Result<(), Error> {
        let mut set = self.set.lock();
        if set.is_none() {
            return Err(Error::Invalid("the group has no container"));
        }
        if !self.opened().is_empty() {
            return Err(Error::Busy("devices of the group are open"));
        }
        *set = None;
        Ok(())
    }

    fn status(&self, task: &dyn Task, arg: u64) -> Result<(), Error> {
        let (mut status, len): (v::vfio_group_status, _) = read(task, arg, 8)?;
        status.flags = v::VFIO_GROUP_FLAGS_VIABLE;
        if self.set.lock().is_some() {
            status.flags |= v::VFIO_GROUP_FLAGS_CONTAINER_SET;
        }
        write(task, arg, &status, len)
    }

    /// Opens a device, of which `text` has the name and maybe a token. With an iommufd it is bound and attached the first
    /// time; a container has done that.
    fn device(&self, task: &dyn Task, text: &str) -> Result<Arc<Opened>, Error> {
        let (function, options) = self.group.function(text).ok_or(Error::NoDevice)?;
        function.match_token(parse_options(options)?)?;
        let set = self.set.lock();
        let set = set.as_ref().ok_or(Error::Invalid("the group has no container"))?;
        let is_open = |opened: &Arc<Opened>| Arc::ptr_eq(&opened.binding().function, &function);
        if let Some(opened) = self.opened().into_iter().find(is_open) {
            return Ok(opened);
        }
        let binding = match set {
            Set::Container(member) => member.binding(&function)?,
            Set::Iommufd(context) => {
                let ioas = context.vfio_ioas()?;
                let binding = Binding::new(&function, context.clone(), task)?;
                binding.attach(Target::Rid, ioas)?;
                binding
            }
        };
        let opened = Arc::new(Opened::new(binding)?);
        self.opened.lock().push(Arc::downgrade(&opened));
        Ok(opened)
    }
}

/// An open file of a group.
struct GroupFile {
    open: Arc<GroupOpen>,
    mode: FileMode,
}

impl GroupFile {
    fn call(&self, task: &dyn Task, cmd: u32, arg: u64) -> Result<i32, Error> {
        let done = match cmd {
            nr::VFIO_GROUP_GET_STATUS => self.open.status(task, arg),
            nr::VFIO_GROUP_SET_CONTAINER => self.open.set_container(task, arg),
            nr::VFIO_GROUP_UNSET_CONTAINER => self.open.unset_container(),
            nr::VFIO_GROUP_GET_DEVICE_FD => {
                let name = read_text(task, arg, NAME)?;
                let opened = self.open.device(task, &name)?;
                let open = self.open.clone();
                let file = GroupDevice { opened, open };
                return task.install(Arc::new(OpenDevice(file)), true).map_err(Error::File);
            }
            _ => Err(Error::UnknownIoctl),
        };
        done.map(|()| 0)
    }
}

impl File for GroupFile {
    fn mode(&self) -> FileMode {
        self.mode
    }

    fn ioctl(&self, task: &dyn Task, cmd: u32, arg: u64) -> Result<i32, Errno> {
        let result = self.call(task, cmd, arg);
        if let Err(error) = &result {
            tracing::debug!(ioctl = nr::group_name(cmd), %error, "refused");
        }
        result.map_err(|error| error.errno())
    }
}

/// An open device of a group, which is open as long.
struct GroupDevice {
    opened: Arc<Opened>,
    open: Arc<GroupOpen>,
}

impl DeviceFile for GroupDevice {
    fn mode(&self) -> FileMode {
        FileMode::AnonInode("[vfio-device]")
    }

    fn binding(&self) -> Result<Arc<Binding>, Error> {
        Ok(self.opened.binding().clone())
    }

    fn own_ioctl(&self, _task: &dyn Task, cmd: u32, _arg: u64) -> Option<Result<(), Error>> {
        (cmd == nr::VFIO_DEVICE_BIND_IOMMUFD)
            .then_some(Err(Error::Invalid("the device was opened by its group")))
    }

    fn group_id(&self) -> Option<u32> {
        Some(self.open.group.id)
    }

    fn is_group(&self, task: &dyn Task, fd: i32) -> bool {
        let Ok(OpenFile::Emulated(file)) = task.file(fd) else { return false };
        let file: Arc<dyn Any + Send + Sync> = file;
        let group = file.downcast::<GroupFile>();
        group.is_ok_and(|group| Arc::ptr_eq(&group.open, &self.open))
    }
}
