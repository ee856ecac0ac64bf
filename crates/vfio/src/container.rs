//! `/dev/vfio/vfio`: a type1 container, as clients from before the iommufd have it.
//!
//! Behind it is an iommufd of its own that nobody has a file of: its VFIO ioctls are those of a container, but for when
//! they may be called.

use std::sync::Arc;

use host::{CharDevice, Errno, File, FileMode, Task};
use iommufd::{Context, Iommufd};
use parking_lot::Mutex;
use uapi::{nr, vfio as v};

use crate::Error;

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
        let context = self.iommufd.context();
        Ok(Arc::new_cyclic(|this| Container {
            this: this.clone(),
            context,
            state: Mutex::default(),
            mode: self.mode,
        }))
    }

    fn mode(&self) -> FileMode {
        self.mode
    }
}

/// An open container.
pub(crate) struct Container {
    this: std::sync::Weak<Self>,
    context: Arc<Context>,
    state: Mutex<State>,
    mode: FileMode,
}

#[derive(Default)]
struct State {
    /// Groups in it.
    groups: usize,
    /// `VFIO_SET_IOMMU` was called.
    iommu: bool,
}

/// A group in a container.
pub(crate) struct Member(Arc<Container>);

impl Container {
    /// Puts a group in.
    pub(crate) fn join(&self) -> Result<Member, Error> {
        let this = self.this.upgrade().ok_or(Error::NoDevice)?;
        self.context.vfio_ioas()?;
        self.state.lock().groups += 1;
        Ok(Member(this))
    }

    fn call(&self, task: &dyn Task, cmd: u32, arg: u64) -> Result<i32, Errno> {
        match cmd {
            nr::VFIO_GET_API_VERSION => return Ok(v::VFIO_API_VERSION as i32),
            nr::VFIO_CHECK_EXTENSION => {}
            nr::VFIO_SET_IOMMU => {
                let mut state = self.state.lock();
                if state.groups == 0 || state.iommu {
                    return Err(Errno::INVAL);
                }
                let result = self.context.ioctl(task, cmd, arg)?;
                state.iommu = true;
                return Ok(result);
            }
            nr::VFIO_IOMMU_GET_INFO | nr::VFIO_IOMMU_MAP_DMA | nr::VFIO_IOMMU_UNMAP_DMA
                if self.state.lock().iommu => {}
            _ if self.state.lock().iommu => return Err(Errno::NOTTY),
            _ => return Err(Errno::INVAL),
        }
        self.context.ioctl(task, cmd, arg)
    }
}

impl Member {
    /// Where its devices belong.
    pub(crate) fn context(&self) -> Result<Arc<Context>, Error> {
        let Self(container) = self;
        if !container.state.lock().iommu {
            return Err(Error::Invalid("the container has no IOMMU: VFIO_SET_IOMMU comes first"));
        }
        Ok(container.context.clone())
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.groups -= 1;
        // The last group takes the IOMMU along; what is mapped stays.
        state.iommu &= state.groups > 0;
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
