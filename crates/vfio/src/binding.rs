//! A function in an iommufd: what a client has between bind and close.

use std::sync::Arc;

use host::{Capability, Task};
use iommu::Target;
use iommufd::{Context, Id};

use crate::sriov::User;
use crate::{Error, Function};

/// A function that is bound to an iommufd, its own or the one behind a container. Dropped, it is unbound.
pub(crate) struct Binding {
    pub(crate) function: Arc<Function>,
    pub(crate) context: Arc<Context>,
    pub(crate) id: Id,
}

impl Binding {
    pub(crate) fn new(
        function: &Arc<Function>,
        context: Arc<Context>,
        task: &dyn Task,
    ) -> Result<Arc<Self>, Error> {
        let device = function.device();
        if !device.has_iommu() && !context.capable(task, Capability::SysRawio) {
            return Err(Error::Permission("a device without an IOMMU needs CAP_SYS_RAWIO"));
        }
        let id = context.bind(device.clone())?;
        Ok(Arc::new(Self { function: function.clone(), context, id }))
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
        if let Err(error) = self.context.unbind(self.id) {
            tracing::error!(%error, "cannot unbind");
        }
    }
}

/// A function that is bound and in use. Dropped, it is as it was before.
pub(crate) struct Opened {
    binding: Arc<Binding>,
    _user: User,
}

impl Opened {
    pub(crate) fn new(binding: Arc<Binding>) -> Result<Self, Error> {
        let user = User::new(&binding.function)?;
        binding.function.open()?;
        Ok(Self { binding, _user: user })
    }

    pub(crate) fn binding(&self) -> &Arc<Binding> {
        &self.binding
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        self.binding.function.close();
    }
}
