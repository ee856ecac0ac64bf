//! One assigned device, and what it is attached to.

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use smmuv3::StreamConfig;

use crate::host::{Device, Object};
use crate::viommu::Viommu;

/// A device that is plugged in. It is attached to something of its vIOMMU all the time. Fields are in the order in which
/// the host lets them go.
pub(crate) struct Slot {
    state: Mutex<State>,
    viommu: Arc<Viommu>,
    pub(crate) device: Arc<dyn Device>,
}

/// As above.
#[derive(Default)]
struct State {
    /// The page table of its own that it is attached to.
    nested: Option<Object>,
    vdevice: Option<Object>,
    stream_id: Option<u32>,
    /// The host does not take page requests of this device: it is an SR-IOV function whose physical one has PRI.
    no_page_requests: bool,
}

impl Slot {
    /// Attaches the device so that it aborts.
    pub(crate) fn new(device: Arc<dyn Device>, viommu: Arc<Viommu>) -> io::Result<Self> {
        device.attach(viommu.abort.id)?;
        Ok(Self { device, state: Mutex::default(), viommu })
    }

    pub(crate) fn stream_id(&self) -> Option<u32> {
        self.state.lock().stream_id
    }

    /// Gives the device a vDEVICE: from now on configurations can be installed.
    pub(crate) fn name(&self, stream_id: u32) -> io::Result<()> {
        let mut state = self.state.lock();
        state.vdevice = Some(self.viommu.vdevice(self.device.id(), stream_id)?);
        state.stream_id = Some(stream_id);
        Ok(())
    }

    /// Takes the vDEVICE back. The device aborts.
    pub(crate) fn unname(&self) -> io::Result<()> {
        let mut state = self.state.lock();
        state.stream_id = None;
        let result = self.proxy(&mut state, &self.viommu.abort);
        state.vdevice = None;
        result
    }

    /// Does nothing if the device has another StreamID by now. After an error the device aborts.
    pub(crate) fn install(&self, stream_id: u32, config: StreamConfig) -> io::Result<()> {
        let mut state = self.state.lock();
        if state.stream_id != Some(stream_id) {
            return Ok(());
        }
        let result = match config {
            StreamConfig::Abort => return self.proxy(&mut state, &self.viommu.abort),
            StreamConfig::Bypass => self.proxy(&mut state, &self.viommu.bypass),
            StreamConfig::Translate { ste } => match self.translate(&mut state, ste) {
                Err(error)
                    if error.raw_os_error() == Some(libc::EINVAL)
                        && self.viommu.faults.is_some()
                        && !state.no_page_requests =>
                {
                    state.no_page_requests = true;
                    let result = self.translate(&mut state, ste);
                    state.no_page_requests = result.is_ok();
                    result
                }
                result => result,
            },
        };
        if result.is_err() {
            // The error that is told is the first one.
            let _ = self.proxy(&mut state, &self.viommu.abort);
        }
        result
    }

    fn translate(&self, state: &mut State, ste: [u64; 2]) -> io::Result<()> {
        let nested = self.viommu.nested(self.device.id(), ste, !state.no_page_requests)?;
        self.device.attach(nested.id)?;
        state.nested = Some(nested);
        Ok(())
    }

    /// Attaches the device to a page table that is there already; detaches it if that fails, which aborts, too.
    fn proxy(&self, state: &mut State, table: &Object) -> io::Result<()> {
        let result = self.device.attach(table.id);
        if result.is_err() && table.id == self.viommu.abort.id {
            self.device.detach()?;
        }
        if result.is_ok() || table.id == self.viommu.abort.id {
            state.nested = None;
        }
        result
    }
}

impl Drop for Slot {
    /// Before its page table and its vDEVICE go.
    fn drop(&mut self) {
        if let Err(error) = self.device.detach() {
            tracing::warn!(device = self.device.id(), %error, "a device stays attached");
        }
    }
}
