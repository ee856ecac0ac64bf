//! Memory of a device that other devices may reach.

use std::any::Any;
use std::sync::{Arc, PoisonError, Weak};

use host::{File, FileMode, PhysRun};

use crate::Context;
use crate::sync::{Mutex, MutexGuard};

/// A dma-buf: a physical range that its exporter may take away.
///
/// `IOMMU_IOAS_MAP_FILE` recognises it behind a file descriptor. It is a file
/// that can only be closed and mapped for DMA.
pub struct DmaBuf {
    run: Option<PhysRun>,
    _memory: Box<dyn Any + Send + Sync>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    revoked: bool,
    /// Contexts that map it.
    importers: Vec<Weak<Context>>,
}

impl DmaBuf {
    /// Exports memory or registers that are at `run`, page-aligned, for as long as `memory` lives. `None`: they are in several
    /// pieces, which no IOAS maps.
    pub fn new(run: Option<PhysRun>, memory: Box<dyn Any + Send + Sync>) -> Arc<Self> {
        Arc::new(Self { run, _memory: memory, state: Mutex::default() })
    }

    /// Where it is, if that is one range.
    pub fn phys(&self) -> Option<PhysRun> {
        self.run
    }

    /// Whether new mappings are refused.
    pub fn is_revoked(&self) -> bool {
        self.lock().revoked
    }

    /// Takes the memory away from every device that maps it, for good, and
    /// refuses new mappings while `revoked`. Existing mappings do not come back
    /// when it is granted again: they must be made anew.
    pub fn set_revoked(&self, revoked: bool) {
        let importers = {
            let mut state = self.lock();
            state.revoked = revoked;
            std::mem::take(&mut state.importers)
        };
        for context in importers.iter().filter_map(Weak::upgrade) {
            context.revoke_dmabuf(self);
        }
    }

    /// Notes who must hear of [`DmaBuf::set_revoked`].
    pub(crate) fn import(&self, context: &Arc<Context>) {
        let mut state = self.lock();
        let known = |c: &Weak<Context>| std::ptr::eq(c.as_ptr(), Arc::as_ptr(context));
        if !state.importers.iter().any(known) {
            state.importers.retain(|context| context.strong_count() > 0);
            state.importers.push(Arc::downgrade(context));
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl File for DmaBuf {
    fn mode(&self) -> FileMode {
        FileMode::AnonInode("dmabuf")
    }
}
