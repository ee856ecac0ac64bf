//! The SMMU as a producer: events, page requests, global errors, and the interrupts for them.

use crate::front::{Effect, Front, Stalled};
use crate::observe::Observation;
use crate::platform::{Memory, PageResponse, PageResponseCode, Resume, Wire};
use crate::smmu::Smmu;
use crate::sync::Fence;
use crate::wire::pri::PageRequest;
use crate::wire::register::{Cons, Gerror, IrqCfg2, IrqCtrl, Prod, Register};
use crate::wire::{Event, EventKind};

/// Bits of `GERROR` and `GERRORN`.
pub(crate) const CMDQ_ERR: u32 = 1 << 0;
pub(crate) const EVENTQ_ABT_ERR: u32 = 1 << 2;
pub(crate) const PRIQ_ABT_ERR: u32 = 1 << 3;
pub(crate) const MSI_CMDQ_ABT_ERR: u32 = 1 << 4;
const MSI_EVENTQ_ABT_ERR: u32 = 1 << 5;
const MSI_PRIQ_ABT_ERR: u32 = 1 << 6;
const MSI_GERROR_ABT_ERR: u32 = 1 << 7;

/// log2 of the size of a record, in bytes.
const EVENT_LOG2: u32 = 5;
const PAGE_REQUEST_LOG2: u32 = 4;

/// What an interrupt is about.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    Gerror,
    Eventq,
    Priq,
}

impl Front {
    pub(crate) fn events_delivered(&self) -> bool {
        self.cr0().eventqen() && !self.active(EVENTQ_ABT_ERR)
    }

    /// An event is lost (§7.4).
    pub(crate) fn overflow_events(&mut self) {
        let prod = Prod(self.word(Register::EventqProd));
        let cons = Cons(self.word(Register::EventqCons));
        if prod.ovflg() == cons.ovackflg() {
            self.set(Register::EventqProd, prod.with_ovflg(!prod.ovflg()).0.into());
        }
    }

    /// Has the stalled transactions tried again whose events could not be recorded so far: what a `CMD_SYNC`
    /// completed may have changed why they stall, and no record may tell of the past (§4.7.3).
    pub(crate) fn retry_unreported(&mut self) {
        for stag in 0..self.stalled.len() {
            if let Some(Stalled { event, reported: false }) = self.stalled[stag] {
                self.stalled[stag] = None;
                let (stream_id, stag) = (event.sid, stag as u16);
                self.effects.push_back(Effect::Resume { stream_id, stag, action: Resume::Retry });
            }
        }
    }

    /// Whether a global error is active: raised and not acknowledged (§7.5).
    pub(crate) fn active(&self, error: u32) -> bool {
        (self.word(Register::Gerror) ^ self.word(Register::Gerrorn)) & error != 0
    }
}

impl<M: Memory, F: Fence> Smmu<M, F> {
    /// Activates a global error unless it is active already (§7.5).
    pub(crate) fn activate(&self, front: &mut Front, error: u32) {
        if front.active(error) {
            return;
        }
        self.tell(Observation::GlobalError(Gerror(error)));
        front.set(Register::Gerror, (front.word(Register::Gerror) ^ error).into());
        if error != MSI_GERROR_ABT_ERR {
            self.interrupt(front, Source::Gerror);
        }
    }

    fn interrupt(&self, front: &mut Front, source: Source) {
        let enables = IrqCtrl(front.word(Register::IrqCtrl));
        let (enabled, wire, [address, data], aborted) = match source {
            Source::Gerror => (
                enables.gerror_irqen(),
                Wire::Gerror,
                [Register::GerrorIrqCfg0, Register::GerrorIrqCfg1],
                MSI_GERROR_ABT_ERR,
            ),
            Source::Eventq => (
                enables.eventq_irqen(),
                Wire::Eventq,
                [Register::EventqIrqCfg0, Register::EventqIrqCfg1],
                MSI_EVENTQ_ABT_ERR,
            ),
            Source::Priq => (
                enables.priq_irqen(),
                Wire::Priq,
                [Register::PriqIrqCfg0, Register::PriqIrqCfg1],
                MSI_PRIQ_ABT_ERR,
            ),
        };
        if !enabled {
            return;
        }
        let address = front.value(address);
        if address != 0 && self.memory.write(address, &front.word(data).to_le_bytes()).is_err() {
            self.activate(front, aborted);
        }
        front.effects.push_back(Effect::Pulse(wire));
    }

    /// Records an event of a terminated transaction if `CR2.RECINVSID` lets it, or loses it as §7.4 says.
    pub(crate) fn record(&self, front: &mut Front, event: Event, mergeable: bool) {
        if event.kind != EventKind::BadStreamId || self.live.cr2().recinvsid() {
            self.record_any(front, event, mergeable);
        }
    }

    /// [`record`](Self::record) without regard to `CR2.RECINVSID`.
    pub(crate) fn record_any(&self, front: &mut Front, event: Event, mergeable: bool) {
        if !front.events_delivered() {
            return;
        }
        if mergeable && self.options.merge_events && self.merges(front, &event) {
            return;
        }
        if self.event_queue_full(front) {
            self.tell(Observation::EventLost(&event));
            return front.overflow_events();
        }
        self.write_event(front, event);
    }

    fn event_queue_full(&self, front: &Front) -> bool {
        let (_, ring) = front.queue(Register::EventqBase, EVENT_LOG2, self.options.eventq_log2);
        ring.is_full(
            Prod(front.word(Register::EventqProd)).wr(),
            Cons(front.word(Register::EventqCons)).rd(),
        )
    }

    /// Whether the last record says the same and software has not read it yet (§7.3.1).
    fn merges(&self, front: &Front, event: &Event) -> bool {
        let Some((last, position)) = &front.last_event else { return false };
        let (_, ring) = front.queue(Register::EventqBase, EVENT_LOG2, self.options.eventq_log2);
        let (prod, cons) = (
            Prod(front.word(Register::EventqProd)).wr(),
            Cons(front.word(Register::EventqCons)).rd(),
        );
        // Unread: as far behind PROD as one record, and CONS is at it or before.
        let unread = ring.next(*position) == prod & ring.mask() && !ring.is_empty(prod, cons);
        let page = |event: &Event| Event {
            input_address: event.input_address & !0xfff,
            ipa: event.ipa & !0xfff,
            ..*event
        };
        unread && page(last) == page(event)
    }

    /// Returns whether the record is in the queue.
    fn write_event(&self, front: &mut Front, event: Event) -> bool {
        let (base, ring) = front.queue(Register::EventqBase, EVENT_LOG2, self.options.eventq_log2);
        let prod = Prod(front.word(Register::EventqProd));
        let cons = Cons(front.word(Register::EventqCons));
        let mut record = [0; 32];
        for (bytes, word) in record.chunks_exact_mut(8).zip(event.encode()) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        let address = base + (u64::from(ring.index(prod.wr())) << EVENT_LOG2);
        if self.memory.write(address, &record).is_err() {
            self.activate(front, EVENTQ_ABT_ERR);
            return false;
        }
        let was_empty = ring.is_empty(prod.wr(), cons.rd());
        front.last_event = (!event.stall).then_some((event, prod.wr()));
        front.set(Register::EventqProd, prod.with_wr(ring.next(prod.wr())).0.into());
        self.tell(Observation::Event(&event));
        if was_empty {
            self.interrupt(front, Source::Eventq);
        }
        true
    }

    /// Stalls a transaction if there is room to hold one more; its event waits for the queue if it must.
    pub(crate) fn stall(&self, front: &mut Front, event: Event) -> Option<u16> {
        let count = front.stalled.len();
        let stag = (0..count)
            .map(|n| (usize::from(front.next_stag) + n) % count)
            .find(|stag| front.stalled[*stag].is_none())? as u16;
        front.next_stag = stag.wrapping_add(1);
        let event = Event { stall: true, stag, ..event };
        front.stalled[usize::from(stag)] = Some(Stalled { event, reported: false });
        self.report_stalled(front);
        Some(stag)
    }

    /// Records what stalled transactions wait to report, as far as the queue takes it: their events
    /// are never lost (§7.4).
    pub(crate) fn report_stalled(&self, front: &mut Front) {
        for stag in 0..front.stalled.len() {
            let Some(Stalled { event, reported: false }) = front.stalled[stag] else { continue };
            if !front.events_delivered()
                || self.event_queue_full(front)
                || !self.write_event(front, event)
            {
                return;
            }
            front.stalled[stag] = Some(Stalled { event, reported: true });
        }
    }

    /// A Page Request message of an endpoint (PCIe PRI), or a Stop PASID marker.
    pub fn page_request(&self, request: PageRequest) {
        {
            let mut front = self.front.lock();
            self.queue_page_request(&mut front, request);
        }
        self.poll();
    }

    fn queue_page_request(&self, front: &mut Front, request: PageRequest) {
        let marker = request.is_stop_marker();
        let respond = |front: &mut Front, substream_id, code| {
            if !marker {
                front.effects.push_back(Effect::PageResponse(PageResponse {
                    stream_id: request.sid,
                    substream_id,
                    prg_index: request.prg_index,
                    code,
                }));
            }
        };
        let enabled = self.options.pri && front.cr0().priqen() && front.cr0().smmuen();
        if !enabled || front.active(PRIQ_ABT_ERR) {
            return respond(front, None, PageResponseCode::Failure);
        }
        let (base, ring) =
            front.queue(Register::PriqBase, PAGE_REQUEST_LOG2, self.options.priq_log2);
        let prod = Prod(front.word(Register::PriqProd));
        let cons = Cons(front.word(Register::PriqCons));
        let overflow = prod.ovflg() != cons.ovackflg();
        let on_last = IrqCfg2(front.word(Register::PriqIrqCfg2)).lo();
        if overflow || ring.is_full(prod.wr(), cons.rd()) {
            if !overflow {
                front.set(Register::PriqProd, prod.with_ovflg(!prod.ovflg()).0.into());
            }
            // Only the last request of a group is answered (§8.1).
            if request.last {
                let (substream_id, code) = self.overflow_response(front, &request);
                respond(front, substream_id, code);
                if on_last {
                    self.interrupt(front, Source::Priq);
                }
            }
            return;
        }
        let mut record = [0; 16];
        for (bytes, word) in record.chunks_exact_mut(8).zip(request.encode()) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        let address = base + (u64::from(ring.index(prod.wr())) << PAGE_REQUEST_LOG2);
        if self.memory.write(address, &record).is_err() {
            self.activate(front, PRIQ_ABT_ERR);
            return respond(front, None, PageResponseCode::Failure);
        }
        front.set(Register::PriqProd, prod.with_wr(ring.next(prod.wr())).0.into());
        self.tell(Observation::PageRequest(&request));
        if if on_last { request.last } else { ring.is_empty(prod.wr(), cons.rd()) } {
            self.interrupt(front, Source::Priq);
        }
    }

    /// The PASID and code of a response to a request that overflowed the queue (§8.1).
    fn overflow_response(
        &self,
        front: &mut Front,
        request: &PageRequest,
    ) -> (Option<u32>, PageResponseCode) {
        let success = PageResponseCode::Success;
        match request.ssid {
            None => (None, success),
            Some(_) if self.options.ssid_bits == 0 => (None, success),
            ssid if self.options.pps => (ssid, success),
            ssid => match self.fetch_ste(request.sid, &mut ()) {
                Ok(context) if context.ste.ppar() => (ssid, success),
                Ok(_) => (None, success),
                Err(fault) => {
                    if self.live.cr2().rec_cfg_ats() {
                        let event = Event {
                            kind: fault.kind,
                            ssid,
                            fetch_address: fault.fetch_address,
                            ..Event::new(fault.kind, request.sid)
                        };
                        self.record(front, event, true);
                    }
                    (None, PageResponseCode::Failure)
                }
            },
        }
    }
}
