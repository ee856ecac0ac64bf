//! What devices do, for who watches.

use std::sync::Arc;
use std::time::Instant;

use crate::{Access, DmaError};

/// A DMA access that is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Dma {
    /// Where it began, and for whom.
    pub access: Access,
    /// A write, else a read.
    pub write: bool,
    /// In bytes.
    pub length: usize,
    /// When the device issued it; what it waited for software is in between.
    pub started: Instant,
    /// Whether it was done.
    pub result: Result<(), DmaError>,
}

/// A message that a device sent: an MSI.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Message {
    /// The doorbell, as the device addresses it.
    pub address: u64,
    /// What it wrote there.
    pub data: u32,
    /// When.
    pub started: Instant,
    /// Whether it got there.
    pub result: Result<(), DmaError>,
}

/// Who watches. Called by the thread of the device: do not wait.
pub trait Observer: Send + Sync {
    /// A device of this name has finished an access.
    fn dma(&self, device: &str, dma: &Dma) {
        let _ = (device, dma);
    }

    /// A device of this name has sent a message.
    fn message(&self, device: &str, message: &Message) {
        let _ = (device, message);
    }
}

/// A device's view of who watches.
#[derive(Clone, Default)]
pub(crate) struct Watch(Option<(Arc<dyn Observer>, Arc<str>)>);

impl Watch {
    pub(crate) fn new(observer: &Arc<dyn Observer>, device: &str) -> Self {
        Self(Some((observer.clone(), device.into())))
    }

    /// Something begins: when, if anybody wants to know.
    #[inline]
    pub(crate) fn begin(&self) -> Option<Instant> {
        self.0.as_ref().map(|_| Instant::now())
    }

    /// An access that began so has ended.
    #[inline]
    pub(crate) fn dma(
        &self,
        begun: Option<Instant>,
        access: Access,
        write: bool,
        length: usize,
        result: Result<(), DmaError>,
    ) {
        if let (Some((observer, device)), Some(started)) = (&self.0, begun) {
            observer.dma(device, &Dma { access, write, length, started, result });
        }
    }

    /// A message that began so has ended.
    #[inline]
    pub(crate) fn message(
        &self,
        begun: Option<Instant>,
        address: u64,
        data: u32,
        result: Result<(), DmaError>,
    ) {
        if let (Some((observer, device)), Some(started)) = (&self.0, begun) {
            observer.message(device, &Message { address, data, started, result });
        }
    }
}
