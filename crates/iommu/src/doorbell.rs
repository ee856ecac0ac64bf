use std::sync::{PoisonError, RwLock};

use crate::Error;

/// The frames that devices write their messages (MSIs) to: those of a machine's interrupt controllers.
///
/// A device behind an IOMMU reaches its doorbell only through a mapping. Whoever makes a domain maps all that are
/// known there and then, in the window that [`ReservedKind::SwMsi`](crate::ReservedKind::SwMsi) keeps free for them:
/// doorbell n is n frames from its beginning, in every domain.
#[derive(Debug, Default)]
pub struct Doorbells {
    frames: RwLock<Vec<u64>>,
}

impl Doorbells {
    /// How many there may be.
    pub const MAX: usize = 64;

    /// Adds the frame at the physical address `frame`, a multiple of 64 KiB. One that is known stays what it is.
    ///
    /// # Errors
    /// [`Error::NoSpace`] if there are [`Self::MAX`].
    pub fn add(&self, frame: u64) -> Result<(), Error> {
        let mut frames = self.frames.write().unwrap_or_else(PoisonError::into_inner);
        if frames.contains(&frame) {
            return Ok(());
        }
        if frames.len() == Self::MAX {
            return Err(Error::NoSpace("MSI doorbells"));
        }
        frames.push(frame);
        Ok(())
    }

    /// All frames, in the order of their numbers.
    pub fn frames(&self) -> Vec<u64> {
        self.frames.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
