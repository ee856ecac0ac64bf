//! What a vSMMU has at the host, whatever devices it has.

use std::fs::File;
use std::io;
use std::sync::Arc;

use crate::HwInfo;
use crate::host::{Host, Object};
use crate::parents::{NestParent, NestParents};

/// Words of an STE that is valid (V) and aborts, or bypasses.
const ABORT: [u64; 2] = [0b0001, 0];
const BYPASS: [u64; 2] = [0b1001, 0];

/// `STE.S1STALLD` in word 1.
const S1STALLD: u64 = 1 << 27;

/// Records that the host keeps for us before it loses some: the guest's queue has its own size.
const EVENTS: u32 = 1024;

/// A vIOMMU with its queues, and page tables that any of its devices can be attached to. Fields
/// are in the order in which the host lets them go.
pub(crate) struct Viommu {
    pub(crate) abort: Object,
    pub(crate) bypass: Object,
    pub(crate) events: Queue,
    pub(crate) faults: Option<Queue>,
    pub(crate) id: Object,
    pub(crate) parent: NestParent,
    /// Set in each STE: to a guest that was promised no stalls a CD that asks for them is ILLEGAL.
    stall_disable: u64,
    host: Arc<dyn Host>,
}

/// A queue of the host.
pub(crate) struct Queue {
    pub(crate) file: File,
    id: Object,
}

impl Viommu {
    pub(crate) fn new(
        host: &Arc<dyn Host>,
        parents: &NestParents,
        device: u32,
        info: &HwInfo,
        page_requests: bool,
    ) -> io::Result<Self> {
        // Local variables go in reverse order.
        let (parent, id) = parents.viommu(device)?;
        let queue = |(id, file)| Queue { file, id: Object::new(host, id) };
        let proxy = |ste| host.nested(device, id.id, ste, None).map(|id| Object::new(host, id));
        Ok(Self {
            abort: proxy(ABORT)?,
            bypass: proxy(BYPASS)?,
            events: queue(host.event_queue(id.id, EVENTS)?),
            faults: if page_requests { Some(queue(host.fault_queue()?)) } else { None },
            id,
            parent,
            stall_disable: if info.can_stall() { S1STALLD } else { 0 },
            host: host.clone(),
        })
    }

    /// A page table for a stream of a device.
    pub(crate) fn nested(
        &self,
        device: u32,
        ste: [u64; 2],
        page_requests: bool,
    ) -> io::Result<Object> {
        let faults = self.faults.as_ref().filter(|_| page_requests).map(|queue| queue.id.id);
        let ste = [ste[0], ste[1] | self.stall_disable];
        let id = self.host.nested(device, self.id.id, ste, faults)?;
        Ok(Object::new(&self.host, id))
    }

    pub(crate) fn vdevice(&self, device: u32, stream_id: u32) -> io::Result<Object> {
        let id = self.host.vdevice(self.id.id, device, stream_id)?;
        Ok(Object::new(&self.host, id))
    }
}
