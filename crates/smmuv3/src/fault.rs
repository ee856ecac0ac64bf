//! What ends a transaction, until one place turns it into an event and an answer to the device.

use crate::config::FaultControls;
use crate::wire::{Class, Event, EventKind};

/// Why a transaction cannot go on, with everything that its event record may need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) kind: EventKind,
    pub(crate) controls: FaultControls,
    pub(crate) s2: bool,
    pub(crate) class: Class,
    pub(crate) ipa: u64,
    pub(crate) ttrnw: bool,
    pub(crate) fetch_address: u64,
    /// `C_BAD_SUBSTREAMID` names the CD that was looked for.
    pub(crate) substream_id: Option<u32>,
}

impl Fault {
    fn new(kind: EventKind, controls: FaultControls) -> Self {
        Self {
            kind,
            controls,
            s2: false,
            class: Class::In,
            ipa: 0,
            ttrnw: false,
            fetch_address: 0,
            substream_id: None,
        }
    }

    /// A configuration error.
    pub(crate) fn configuration(kind: EventKind) -> Self {
        Self::new(kind, FaultControls::ALWAYS)
    }

    /// A structure at `address` could not be fetched.
    pub(crate) fn fetch(kind: EventKind, address: u64) -> Self {
        Self { fetch_address: address, ..Self::configuration(kind) }
    }

    /// One of the four translation faults, at stage 1.
    pub(crate) fn stage1(kind: EventKind, controls: FaultControls) -> Self {
        Self::new(kind, controls)
    }

    /// One of the four translation faults, at stage 2. `read` is what kind of access of the SMMU
    /// itself was made, if `class` says that it was one.
    pub(crate) fn stage2(
        kind: EventKind,
        controls: FaultControls,
        class: Class,
        ipa: u64,
        read: bool,
    ) -> Self {
        let ttrnw = class == Class::Tt && kind == EventKind::Permission && read;
        Self { s2: true, class, ipa, ttrnw, ..Self::new(kind, controls) }
    }

    /// A stage 1 that only passes addresses on cannot pass this one (§3.4).
    pub(crate) fn bypassed_stage1() -> Self {
        Self::new(EventKind::AddrSize, FaultControls::ALWAYS)
    }

    /// The descriptor at `address` could not be read or updated.
    pub(crate) fn walk_abort(s2: bool, class: Class, address: u64) -> Self {
        Self { s2, class, ..Self::fetch(EventKind::WalkEabt, address) }
    }

    /// The event record of this fault for a transaction.
    pub(crate) fn event(&self, from: &Origin) -> Event {
        Event {
            ssid: self.substream_id.or(from.substream_id),
            pnu: from.privileged,
            ind: from.instruction && !from.write,
            rnw: !from.write,
            s2: self.s2,
            class: self.class,
            ttrnw: self.ttrnw,
            input_address: from.address,
            ipa: self.ipa,
            fetch_address: self.fetch_address,
            ..Event::new(self.kind, from.stream_id)
        }
    }
}

/// The transaction that a fault is about, with its attributes after the STE's overrides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Origin {
    pub(crate) stream_id: u32,
    pub(crate) substream_id: Option<u32>,
    pub(crate) address: u64,
    pub(crate) write: bool,
    pub(crate) privileged: bool,
    pub(crate) instruction: bool,
}
