//! A function in an iommufd: what a client has between bind and close.

use std::sync::Arc;

use host::{Capability, Task};
use iommu::Target;
use iommufd::{Context, Id};

use crate::group::{CdevUse, GroupOpen};
use crate::{Error, Function};

/// See the module. Dropped, the function is as it was before.
pub(crate) struct Binding {
    pub(crate) function: Arc<Function>,
    pub(crate) context: Arc<Context>,
    pub(crate) id: Id,
    /// Keeps others from it.
    _owner: Owner,
}

/// How the function was come by.
pub(crate) enum Owner {
    Cdev { _used: CdevUse },
    Group { _open: Arc<GroupOpen> },
}

impl Binding {
    pub(crate) fn new(
        function: &Arc<Function>,
        context: Arc<Context>,
        task: &dyn Task,
        owner: Owner,
    ) -> Result<Self, Error> {
        let device = function.device();
        if !device.has_iommu() && !context.capable(task, Capability::SysRawio) {
            return Err(Error::Permission("a device without an IOMMU needs CAP_SYS_RAWIO"));
        }
        let id = context.bind(device.clone())?;
        let binding = Self { function: function.clone(), context, id, _owner: owner };
        function.open()?;
        Ok(binding)
    }

    /// Attaches the function to an IOAS or a HWPT, or moves it there. The HWPT that it is attached to.
    pub(crate) fn attach(&self, target: Target, to: Id) -> Result<Id, Error> {
        let Self { context, id, .. } = self;
        Ok(match context.attached_hwpt(*id, target)? {
            Some(_) => context.replace(*id, target, to)?,
            None => context.attach(*id, target, to)?,
        })
    }
}

impl Drop for Binding {
    fn drop(&mut self) {
        self.function.close();
        if let Err(error) = self.context.unbind(self.id) {
            tracing::error!(%error, "cannot unbind");
        }
    }
}
