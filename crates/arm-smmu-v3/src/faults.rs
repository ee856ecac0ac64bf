//! What the SMMU reports, and whom it concerns: a guest, whoever handles page requests, or the host.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Weak};

use iommu::{Device, FaultPerm, PageRequest, PageResponse, Target};
use parking_lot::{Mutex, RwLock};
use smmuv3::wire::register::Gerror;
use smmuv3::wire::{Class, Command, Event, EventKind};
use uapi::iommufd as u;

use crate::driver::{Behind, Driver};
use crate::platform::{DmaMemory, Registers};
use crate::smmu::Smmu;
use crate::viommu::Viommu;

/// The most faults of one device that are kept until somebody takes them.
const KEPT: usize = 32;

/// Something that went wrong and that no guest and no fault handler is to be told of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostFault {
    /// The name of the device, if there is one behind the StreamID, or if it is about a device.
    pub device: Option<String>,
    /// What it is.
    pub cause: Cause,
}

/// What a [`HostFault`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The SMMU recorded an event.
    Event(Event),
    /// The Event queue was full: events were lost, whosever they were.
    EventsLost,
    /// The PRI queue was full: the SMMU answered page requests itself.
    PageRequestsLost,
    /// Global errors, as `SMMU_GERROR` has them.
    Global(Gerror),
}

impl fmt::Display for HostFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(device) = &self.device {
            write!(f, "{device}: ")?;
        }
        match self.cause {
            Cause::Event(event) => write!(f, "{event}"),
            Cause::EventsLost => f.write_str("events were lost: the Event queue was full"),
            Cause::PageRequestsLost => {
                f.write_str("page requests were lost: the PRI queue was full")
            }
            Cause::Global(gerror) => {
                f.write_str("global errors:")?;
                let words = [gerror.0.into()];
                let mut set = Gerror::FIELDS.iter().filter(|field| field.value(&words) != 0);
                set.try_for_each(|field| write!(f, " {}", field.name))
            }
        }
    }
}

/// The host's faults since the last time, as [`Driver::host_faults`] returns them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostFaults {
    /// Oldest first; of each device the first 32, so that none crowds out another's.
    pub faults: Vec<HostFault>,
    /// How many more there were.
    pub lost: u64,
}

/// The faults that nobody has taken yet.
#[derive(Default)]
pub(crate) struct Log {
    found: HostFaults,
    /// How many there are of each device.
    kept: BTreeMap<Option<String>, usize>,
}

impl Log {
    fn push(&mut self, fault: HostFault) {
        let kept = self.kept.entry(fault.device.clone()).or_default();
        if *kept == KEPT {
            self.found.lost += 1;
            return;
        }
        *kept += 1;
        tracing::warn!("{fault}");
        self.found.faults.push(fault);
    }
}

/// Who is behind a StreamID.
pub(crate) struct Port<R: Registers, M: DmaMemory> {
    pub(crate) device: Weak<Device>,
    /// The vIOMMU of the nested domain that it is on.
    pub(crate) guest: Weak<Viommu<R, M>>,
    /// Groups of page requests that somebody has and has not answered. There are no more than a group index can tell
    /// apart, whatever the device does.
    open: BTreeSet<u16>,
}

impl<R: Registers, M: DmaMemory> Port<R, M> {
    pub(crate) fn new(device: &Arc<Device>) -> Self {
        Self { device: Arc::downgrade(device), guest: Weak::new(), open: BTreeSet::new() }
    }
}

type Parties<R, M> = (Option<Arc<Device>>, Option<Arc<Viommu<R, M>>>);

/// All ports of an SMMU, by StreamID.
pub(crate) type Ports<R, M> = RwLock<BTreeMap<u32, Port<R, M>>>;

/// What a driver keeps for this.
pub(crate) struct Faults<R: Registers, M: DmaMemory> {
    pub(crate) ports: Ports<R, M>,
    log: Mutex<Log>,
    /// Stalled transactions that were found when it was not the time to deal with them.
    stalled: Mutex<Vec<Event>>,
}

impl<R: Registers, M: DmaMemory> Default for Faults<R, M> {
    fn default() -> Self {
        Self { ports: RwLock::default(), log: Mutex::default(), stalled: Mutex::default() }
    }
}

/// Whether an event of a stream on a nested domain is what the guest's own SMMU would report. What stage 2 has to say is
/// the host's; so is an STE that is not as it should be, as the guest's part of it was found to be.
fn is_guests(event: &Event) -> bool {
    match event.kind {
        EventKind::StreamDisabled
        | EventKind::BadSubstreamId
        | EventKind::CdFetch
        | EventKind::BadCd => true,
        EventKind::Translation
        | EventKind::AddrSize
        | EventKind::Access
        | EventKind::Permission => !event.s2,
        // A descriptor of the guest's that cannot be read is in memory that it chose.
        EventKind::WalkEabt => !event.s2 && event.class == Class::Tt,
        _ => false,
    }
}

impl<R: Registers + 'static, M: DmaMemory + 'static> Driver<R, M> {
    /// Deals with what the SMMU reports: on [`Wire::Eventq`](smmuv3::Wire::Eventq), [`Wire::Priq`](smmuv3::Wire::Priq)
    /// and [`Wire::Gerror`](smmuv3::Wire::Gerror), or from time to time. Says whether it found something; then it is to be
    /// called again, as no interrupt may come for what has come meanwhile. One call takes no more than the queues hold.
    ///
    /// Not from within [`pulse`](smmuv3::Interrupts::pulse), nor while a transfer through the SMMU is under way: it may wait for
    /// both.
    pub fn handle_events(&self) -> bool {
        let errors = self.smmu().global_errors();
        if errors.0 != 0 {
            self.blame(None, Cause::Global(errors));
        }
        let events = {
            let mut stalled = self.faults().stalled.lock();
            let mut events = self.smmu().events();
            events.records.splice(..0, stalled.drain(..));
            events
        };
        let requests = self.smmu().page_requests();
        let found = !events.records.is_empty() || !requests.records.is_empty();
        if events.overflow {
            self.blame(None, Cause::EventsLost);
        }
        for event in events.records {
            self.handle_event(event);
        }
        for request in requests.records {
            self.handle_page_request(request);
        }
        if requests.overflow {
            self.blame(None, Cause::PageRequestsLost);
            // The last of their groups may be among them.
            let ports = self.faults().ports.read();
            let devices: Vec<_> = ports.values().filter_map(|port| port.device.upgrade()).collect();
            drop(ports);
            devices.iter().for_each(|device| device.drop_partial_page_requests());
        }
        found || errors.0 != 0 || events.overflow || requests.overflow
    }

    /// What went wrong since the last time and is for nobody else to know.
    pub fn host_faults(&self) -> HostFaults {
        std::mem::take(&mut *self.faults().log.lock()).found
    }

    fn blame(&self, device: Option<&Device>, cause: Cause) {
        let device = device.map(|device| device.name().to_owned());
        self.faults().log.lock().push(HostFault { device, cause });
    }

    /// The device behind a StreamID, and the vIOMMU that it is in.
    fn port(&self, stream_id: u32) -> Parties<R, M> {
        let ports = self.faults().ports.read();
        let port = ports.get(&stream_id);
        port.map_or((None, None), |port| (port.device.upgrade(), port.guest.upgrade()))
    }

    /// A stream is about to change hands: what has been recorded so far goes to whom it concerns now.
    pub(crate) fn settle_events(&self) {
        let (overflow, others) = {
            // Whoever finds the queue empty finds these.
            let mut later = self.faults().stalled.lock();
            let events = self.smmu().events();
            // Who handles page requests is asked for under a lock that is held by who attaches.
            let (stalled, others): (Vec<_>, Vec<_>) =
                events.records.into_iter().partition(|event| event.stall);
            later.extend(stalled);
            (events.overflow, others)
        };
        if overflow {
            self.blame(None, Cause::EventsLost);
        }
        others.into_iter().for_each(|event| self.handle_event(event));
    }

    fn handle_event(&self, event: Event) {
        let (device, guest) = self.port(event.sid);
        let told = if event.stall {
            self.handle_stall(device.as_ref(), guest.is_some(), &event)
        } else {
            guest.is_some_and(|guest| tell(&guest, &event))
        };
        if !told {
            self.blame(device.as_deref(), Cause::Event(event));
        }
    }

    /// A stalled transaction is a page request by itself. Says whether somebody takes it.
    fn handle_stall(&self, device: Option<&Arc<Device>>, nested: bool, event: &Event) -> bool {
        let Some(device) = device else {
            self.resume(event.sid, event.stag, PageResponse::Invalid);
            return false;
        };
        let request = PageRequest {
            target: event.ssid.map_or(Target::Rid, Target::Pasid),
            group: event.stag.into(),
            last: true,
            perm: perm([event.rnw && !event.ind, !event.rnw, event.ind, event.pnu]),
            addr: event.input_address,
        };
        device.report_page_request(request, nested.then_some(Target::Rid)).is_ok()
    }

    fn handle_page_request(&self, request: smmuv3::wire::PageRequest) {
        if request.is_stop_marker() {
            return;
        }
        let (device, guest) = self.port(request.sid);
        let device =
            device.filter(|device| Behind::<R, M>::of(device).is_ok_and(|behind| behind.pri));
        // 0: do not ask any more. 1: not these.
        let Some(device) = device else { return self.refuse(&request, 0) };
        if request.last {
            let mut ports = self.faults().ports.write();
            let port = ports.get_mut(&request.sid);
            if port.is_none_or(|port| !port.open.insert(request.prg_index)) {
                drop(ports);
                return self.refuse(&request, 1);
            }
        }
        let translated = PageRequest {
            target: request.ssid.map_or(Target::Rid, Target::Pasid),
            group: request.prg_index.into(),
            last: request.last,
            perm: perm([request.read, request.write, request.exec, request.privileged]),
            addr: request.address,
        };
        // Without a handler, it has been answered.
        let _ = device.report_page_request(translated, guest.map(|_| Target::Rid));
    }

    fn refuse(&self, request: &smmuv3::wire::PageRequest, resp: u8) {
        if request.last {
            let smmuv3::wire::PageRequest { sid, ssid, prg_index, .. } = *request;
            self.answer(Command::PriResp { sid, ssid, prg_index, resp });
        }
    }

    /// Answers the device's page requests or its stalled transaction.
    pub(crate) fn respond(&self, device: &Device, last: &PageRequest, response: PageResponse) {
        let Ok(Behind { stream, pri, .. }) = Behind::<R, M>::of(device) else { return };
        let sid = stream.id();
        let group = last.group as u16;
        if !pri {
            return self.resume(sid, group, response);
        }
        if let Some(port) = self.faults().ports.write().get_mut(&sid) {
            port.open.remove(&group);
        }
        let ssid = match last.target {
            Target::Rid => None,
            Target::Pasid(pasid) => Some(pasid),
        };
        let resp = match response {
            PageResponse::Success => 2,
            PageResponse::Invalid => 1,
        };
        self.answer(Command::PriResp { sid, ssid, prg_index: group, resp });
    }

    fn resume(&self, sid: u32, stag: u16, response: PageResponse) {
        let action = match response {
            PageResponse::Success => Command::RESUME_RETRY,
            PageResponse::Invalid => Command::RESUME_ABORT,
        };
        self.answer(Command::Resume { sid, stag, action, ssec: false });
    }

    fn answer(&self, command: Command) {
        let smmu: &Smmu<R, M> = self.smmu();
        if let Err(error) = smmu.run(&[command]) {
            tracing::error!(%command, %error, "a device waits in vain");
        }
    }
}

/// To read, to write, to execute, with privilege.
fn perm(wanted: [bool; 4]) -> FaultPerm {
    FaultPerm::all()
        .iter()
        .zip(wanted)
        .filter_map(|(perm, wanted)| wanted.then_some(perm))
        .collect()
}

/// Tells a guest of an event, if it is the guest's and there is somebody to tell.
fn tell<R: Registers, M: DmaMemory>(guest: &Viommu<R, M>, event: &Event) -> bool {
    let Some(sid) = guest.virtual_id(event.sid).filter(|_| is_guests(event)) else { return false };
    // Where the fetch went is a physical address, and so none of the guest's; nor is what only the hardware's maker knows.
    let event = Event { sid, fetch_address: 0, gpcf: false, reason: 0, impl_def: 0, ..*event };
    let record: Vec<u8> = event.encode().iter().flat_map(|word| word.to_le_bytes()).collect();
    let kind = u::iommu_veventq_type_IOMMU_VEVENTQ_TYPE_ARM_SMMUV3;
    guest.events().report(kind, &record).is_ok()
}
