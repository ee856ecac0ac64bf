//! `/dev/vfio/vfio`: a type1 container, as clients from before the iommufd have it.
//!
//! Behind it is an iommufd of its own that nobody has a file of: its VFIO ioctls are those of a container, but for when
//! they may be called.

use std::sync::{Arc, Weak};

use host::{CharDevice, Errno, File, FileMode, Task};
use iommu::Target;
use iommufd::{Context, Iommufd};
use parking_lot::Mutex;
use uapi::{nr, vfio as v};

use crate::binding::Binding;
use crate::group::Group;
use crate::{Error, Function};

/// The node of containers.
pub struct ContainerNode {
    iommufd: Arc<Iommufd>,
    mode: FileMode,
}

impl ContainerNode {
    /// The node, with these device numbers, whose containers map the memory that `iommufd` maps.
    pub fn new(iommufd: Arc<Iommufd>, major: u32, minor: u32) -> Self {
        Self { iommufd, mode: FileMode::CharDevice { major, minor } }
    }
}

impl CharDevice for ContainerNode {
    fn open(&self, _task: &dyn Task) -> Result<Arc<dyn File>, Errno> {
        let state = State { context: self.iommufd.container(), members: Vec::new(), iommu: false };
        Ok(Arc::new_cyclic(|this| Container {
            this: this.clone(),
            iommufd: self.iommufd.clone(),
            state: Mutex::new(state),
            mode: self.mode,
        }))
    }

    fn mode(&self) -> FileMode {
        self.mode
    }
}

/// An open container.
pub(crate) struct Container {
    this: Weak<Self>,
    iommufd: Arc<Iommufd>,
    state: Mutex<State>,
    mode: FileMode,
}

struct State {
    /// What is mapped. Ends with the last group.
    context: Arc<Context>,
    /// The groups in it.
    members: Vec<Weak<Devices>>,
    /// `VFIO_SET_IOMMU` was called.
    iommu: bool,
}

/// A group in a container.
pub(crate) struct Member {
    container: Arc<Container>,
    devices: Arc<Devices>,
}

/// The devices of a group in a container: once that has its IOMMU all of them are attached, open or not.
struct Devices {
    group: Arc<Group>,
    attached: Mutex<Vec<Arc<Binding>>>,
}

impl Devices {
    fn attach(&self, context: &Arc<Context>, task: &dyn Task) -> Result<(), Error> {
        let ioas = context.vfio_ioas()?;
        let mut attached = Vec::new();
        for function in self.group.functions() {
            let binding = Binding::new(&function, context.clone(), task)?;
            binding.attach(Target::Rid, ioas)?;
            attached.push(binding);
        }
        *self.attached.lock() = attached;
        Ok(())
    }

    fn detach(&self) {
        let attached = std::mem::take(&mut *self.attached.lock());
        drop(attached);
    }
}

impl Container {
    /// Puts a group in.
    pub(crate) fn join(&self, group: &Arc<Group>, task: &dyn Task) -> Result<Member, Error> {
        let container = self.this.upgrade().ok_or(Error::NoDevice)?;
        let devices = Arc::new(Devices { group: group.clone(), attached: Mutex::default() });
        let mut state = self.state.lock();
        state.context.vfio_ioas()?;
        if state.iommu {
            devices.attach(&state.context, task)?;
        }
        state.members.push(Arc::downgrade(&devices));
        drop(state);
        Ok(Member { container, devices })
    }

    fn set_iommu(&self, task: &dyn Task, cmd: u32, arg: u64) -> Result<i32, Errno> {
        let mut state = self.state.lock();
        if state.members.is_empty() || state.iommu {
            return Err(Errno::INVAL);
        }
        let result = state.context.ioctl(task, cmd, arg)?;
        let members: Vec<_> = state.members.iter().filter_map(Weak::upgrade).collect();
        for (n, member) in members.iter().enumerate() {
            if let Err(error) = member.attach(&state.context, task) {
                members[..n].iter().for_each(|member| member.detach());
                return Err(error.errno());
            }
        }
        state.iommu = true;
        Ok(result)
    }

    fn call(&self, task: &dyn Task, cmd: u32, arg: u64) -> Result<i32, Errno> {
        let (context, iommu) = {
            let state = self.state.lock();
            (state.context.clone(), state.iommu)
        };
        match cmd {
            nr::VFIO_GET_API_VERSION => return Ok(v::VFIO_API_VERSION as i32),
            nr::VFIO_SET_IOMMU => return self.set_iommu(task, cmd, arg),
            nr::VFIO_CHECK_EXTENSION => {}
            nr::VFIO_IOMMU_GET_INFO | nr::VFIO_IOMMU_MAP_DMA | nr::VFIO_IOMMU_UNMAP_DMA
                if iommu => {}
            _ if iommu => return Err(Errno::NOTTY),
            _ => return Err(Errno::INVAL),
        }
        context.ioctl(task, cmd, arg)
    }
}

impl Member {
    /// A function of the group in the container's iommufd.
    pub(crate) fn binding(&self, function: &Arc<Function>) -> Result<Arc<Binding>, Error> {
        if !self.container.state.lock().iommu {
            return Err(Error::Invalid("the container has no IOMMU: VFIO_SET_IOMMU comes first"));
        }
        let attached = self.devices.attached.lock();
        let found = attached.iter().find(|binding| Arc::ptr_eq(&binding.function, function));
        found.cloned().ok_or(Error::NoDevice)
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.devices.detach();
        let mut state = self.container.state.lock();
        state.members.retain(|member| !std::ptr::eq(member.as_ptr(), &raw const *self.devices));
        if state.members.is_empty() {
            // The last group takes the IOMMU along, and what is mapped.
            state.iommu = false;
            let old = std::mem::replace(&mut state.context, self.container.iommufd.container());
            drop(state);
            drop(old);
        }
    }
}

impl File for Container {
    fn mode(&self) -> FileMode {
        self.mode
    }

    fn ioctl(&self, task: &dyn Task, cmd: u32, arg: u64) -> Result<i32, Errno> {
        self.call(task, cmd, arg).inspect_err(|errno| {
            tracing::debug!(ioctl = nr::name(cmd), %errno, "refused by the container");
        })
    }
}
