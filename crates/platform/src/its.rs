//! The MSI doorbell, as a GICv3 ITS has one: a register that devices write an EventID to. Which device writes comes
//! with the transaction, out of reach of who programs it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::RwLock;

/// The page with the doorbell, of 64 KiB.
pub(crate) const FRAME_LOG2: u32 = 16;
/// `GITS_TRANSLATER`, from the beginning of its frame.
const TRANSLATER: u64 = 0x40;
/// EventIDs that a device may have at most: as many as MSI-X has vectors.
const MAX_EVENTS: u32 = 2048;

/// What an interrupt does when it arrives.
pub type Sink = Arc<dyn Fn() + Send + Sync>;

/// Where each EventID of a device leads.
type Table = Arc<[RwLock<Option<Sink>>]>;

/// One interrupt translation service.
pub struct Its {
    frame: u64,
    /// Interrupt translation tables, by DeviceID.
    devices: RwLock<HashMap<u32, Table>>,
    dropped: AtomicU64,
}

/// A device cannot be given interrupts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ItsError {
    /// The DeviceID has a table already.
    #[error("DeviceID {0:#x} is in use")]
    InUse(u32),
    /// More than 2048.
    #[error("a device has at most 2048 EventIDs")]
    TooMany,
}

impl Its {
    pub(crate) fn new(frame: u64) -> Arc<Self> {
        Arc::new(Self { frame, devices: RwLock::default(), dropped: AtomicU64::new(0) })
    }

    /// The physical address of the frame with the doorbell: what a domain has to map, of 64 KiB.
    pub fn frame(&self) -> u64 {
        self.frame
    }

    /// The physical address that a message is written to.
    pub fn translater(&self) -> u64 {
        self.frame + TRANSLATER
    }

    /// Messages so far that meant no interrupt.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Gives the device `device_id` a table of `events` EventIDs, from 0 on, none of which leads anywhere (`MAPD`).
    pub fn map_device(
        self: &Arc<Self>,
        device_id: u32,
        events: u32,
    ) -> Result<ItsDevice, ItsError> {
        if events > MAX_EVENTS {
            return Err(ItsError::TooMany);
        }
        let mut devices = self.devices.write();
        if devices.contains_key(&device_id) {
            return Err(ItsError::InUse(device_id));
        }
        let table: Table = (0..events).map(|_| RwLock::new(None)).collect();
        devices.insert(device_id, table.clone());
        Ok(ItsDevice { its: Arc::downgrade(self), device_id, table })
    }

    /// A device writes 32 bits to the doorbell.
    pub(crate) fn message(&self, device_id: u32, event_id: u32) {
        let table = self.devices.read().get(&device_id).cloned();
        let entry = table.as_ref().and_then(|table| table.get(event_id as usize));
        let sink = entry.and_then(|entry| entry.read().clone());
        if let Some(sink) = sink {
            sink();
        } else {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(device_id, event_id, "an MSI that nobody asked for");
        }
    }
}

/// A device's interrupt translation table; unmapped when dropped.
pub struct ItsDevice {
    its: Weak<Its>,
    device_id: u32,
    table: Table,
}

impl ItsDevice {
    /// Where `event_id` leads from now on (`MAPTI`, `DISCARD`). Whether there is such an EventID.
    pub fn set(&self, event_id: u32, sink: Option<Sink>) -> bool {
        let Some(entry) = self.table.get(event_id as usize) else { return false };
        *entry.write() = sink;
        true
    }

    /// The DeviceID.
    pub fn device_id(&self) -> u32 {
        self.device_id
    }
}

impl Drop for ItsDevice {
    fn drop(&mut self) {
        if let Some(its) = self.its.upgrade() {
            its.devices.write().remove(&self.device_id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_reaches_whom_its_device_and_event_belong_to() {
        let its = Its::new(0);
        let rung = Arc::new(AtomicU64::new(0));
        let sink = |value: u64| -> Option<Sink> {
            let rung = rung.clone();
            Some(Arc::new(move || rung.store(value, Ordering::Relaxed)))
        };
        let [one, two] = [1, 2].map(|id| its.map_device(id, 4).unwrap());
        assert_eq!(its.map_device(1, 4).err(), Some(ItsError::InUse(1)));
        assert_eq!(its.map_device(3, 2049).err(), Some(ItsError::TooMany));
        assert!(one.set(3, sink(13)) && two.set(3, sink(23)) && !one.set(4, sink(0)));
        its.message(2, 3);
        assert_eq!(rung.load(Ordering::Relaxed), 23);
        its.message(1, 3);
        assert_eq!(rung.load(Ordering::Relaxed), 13);
        drop(one);
        for (device, event) in [(1, 3), (2, 4), (2, 0), (9, 3)] {
            its.message(device, event);
        }
        assert_eq!((rung.load(Ordering::Relaxed), its.dropped()), (13, 4));
    }
}
