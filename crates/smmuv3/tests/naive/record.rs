//! Event records, §7.3: which bits hold what, written down once more.

/// A 32-byte record and the bits of it that are not UNKNOWN.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Record {
    pub words: [u64; 4],
    pub known: [u64; 4],
}

/// `CLASS`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Class {
    Cd = 0,
    Tt = 1,
    In = 2,
}

/// Where in a translation something happened: `S2`, `CLASS`, `IPA`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Place {
    pub s2: bool,
    pub class: Class,
    pub ipa: u64,
    /// `TTRnW`: the table access that faulted was a read.
    pub table_read: bool,
}

/// The transaction's part of a record.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Who {
    pub stream: u32,
    pub substream: Option<u32>,
    pub address: u64,
    pub read: bool,
    pub instruction: bool,
    pub privileged: bool,
}

const SSV: u64 = 1 << 11;

impl Record {
    /// Event number, StreamID, SSV and SubstreamID. Without SSV the SubstreamID is UNKNOWN.
    fn named(number: u64, who: &Who) -> Self {
        let mut record = Self { words: [0; 4], known: [u64::MAX; 4] };
        record.words[0] = number | u64::from(who.stream) << 32;
        match who.substream {
            Some(ssid) => record.words[0] |= SSV | u64::from(ssid) << 12,
            None => record.known[0] &= !(0xf_ffff << 12),
        }
        record
    }

    /// A record without SSV and SubstreamID.
    fn without_substream(mut self) -> Self {
        self.words[0] &= !0xffff_f800;
        self.known[0] = u64::MAX;
        self
    }

    fn with_transaction(mut self, who: &Who) -> Self {
        self.words[1] |= u64::from(who.privileged) << 33
            | u64::from(who.instruction) << 34
            | u64::from(who.read) << 35;
        self.words[2] = who.address;
        self
    }

    pub(crate) fn bad_stream_id(who: &Who) -> Self {
        Self::named(0x02, who)
    }

    pub(crate) fn ste_fetch(who: &Who, address: u64) -> Self {
        Self::fetch(0x03, who, address)
    }

    pub(crate) fn bad_ste(who: &Who) -> Self {
        Self::named(0x04, who)
    }

    /// Which translation was asked for, and how, stands in the second word.
    pub(crate) fn bad_ats_request(who: &Who) -> Self {
        let mut record = Self::named(0x05, who);
        record.known[1] = 0;
        record.words[2] = who.address & !0xfff;
        record
    }

    pub(crate) fn translation_forbidden(who: &Who) -> Self {
        let mut record = Self::named(0x07, who).without_substream();
        record.words[1] = u64::from(who.read) << 35;
        record.words[2] = who.address;
        record
    }

    /// Of a Translation Request, which is neither a read nor a write: RnW is UNKNOWN.
    pub(crate) fn of_ats(mut self) -> Self {
        self.known[1] &= !(1 << 35);
        self
    }

    pub(crate) fn stream_disabled(who: &Who) -> Self {
        Self::named(0x06, who).without_substream()
    }

    /// The SubstreamID is always valid, there is no SSV.
    pub(crate) fn bad_substream_id(who: &Who) -> Self {
        let ssid = who.substream.unwrap_or(0);
        let mut record = Self::named(0x08, &Who { substream: Some(ssid), ..*who });
        record.words[0] &= !SSV;
        record
    }

    pub(crate) fn cd_fetch(who: &Who, address: u64) -> Self {
        Self::fetch(0x09, who, address)
    }

    pub(crate) fn bad_cd(who: &Who) -> Self {
        Self::named(0x0a, who)
    }

    /// FetchAddr in bits [247:195]; Reason is IMPLEMENTATION DEFINED, GPCF 0.
    fn fetch(number: u64, who: &Who, address: u64) -> Self {
        let mut record = Self::named(number, who);
        record.words[3] = address & 0x00ff_ffff_ffff_fff8;
        record.known[1] &= !0xffff;
        record
    }

    pub(crate) fn walk_eabt(who: &Who, place: Place, address: u64) -> Self {
        let mut record = Self::fetch(0x0b, who, address).with_transaction(who);
        record.words[1] |= u64::from(place.s2) << 39 | (place.class as u64) << 40;
        record
    }

    /// F_TRANSLATION, F_ADDR_SIZE, F_ACCESS, F_PERMISSION. STAG matters if stalled only, IPA at
    /// stage 2 only, TTRnW to Permission faults of CLASS TT only; [127:112] are IMPLEMENTATION DEFINED.
    pub(crate) fn fault(fault: Fault, who: &Who, place: Place, stall: bool) -> Self {
        let mut record = Self::named(fault as u64, who).with_transaction(who);
        record.words[1] |=
            u64::from(stall) << 31 | u64::from(place.s2) << 39 | (place.class as u64) << 40;
        record.known[1] &= !(0xffff << 48);
        if stall {
            record.known[1] &= !0xffff;
        }
        if place.s2 {
            record.words[3] = place.ipa & 0x00ff_ffff_ffff_f000;
        } else {
            record.known[3] &= !0x00ff_ffff_ffff_f000;
        }
        if fault == Fault::Permission {
            if place.s2 && place.class == Class::Tt {
                record.words[1] |= u64::from(place.table_read) << 44;
            } else {
                record.known[1] &= !(1 << 44);
            }
        }
        record
    }
}

/// The four Translation-related faults.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fault {
    Translation = 0x10,
    AddrSize = 0x11,
    Access = 0x12,
    Permission = 0x13,
}
