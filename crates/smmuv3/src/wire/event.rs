//! Event records (§7.3): 32 bytes each, in the Event queue.

use std::fmt;

use super::field::fields;

fields! {
    /// Where the fields of all event records stand. Kinds share positions, so fields overlap.
    struct Raw([u64; 4]) {
        number, with_number: u8 = "Number" [7:0];
        ssv, with_ssv: bool = "SSV" [11];
        ssid, with_ssid: u32 = "SubstreamID" [31:12];
        sid, with_sid: u32 = "StreamID" [63:32];
        stag, with_stag: u16 = "STAG" [79:64];
        reason, with_reason: u16 = "Reason" [79:64];
        conflict_reason, with_conflict_reason: u32 = "Reason" [95:64];
        ats_span, with_ats_span: u8 = "Span" [67:64];
        gpcf, with_gpcf: bool = "GPCF" [80];
        ats_privileged, with_ats_privileged: bool = "Priv" [92];
        ats_exec, with_ats_exec: bool = "X" [93];
        ats_write, with_ats_write: bool = "W" [94];
        ats_read, with_ats_read: bool = "R" [95];
        stall, with_stall: bool = "Stall" [95];
        pnu, with_pnu: bool = "PnU" [97];
        ind, with_ind: bool = "InD" [98];
        rnw, with_rnw: bool = "RnW" [99];
        user_exec, with_user_exec: bool = "uX" [97];
        user_write, with_user_write: bool = "uW" [98];
        user_read, with_user_read: bool = "uR" [99];
        privileged_exec, with_privileged_exec: bool = "pX" [101];
        privileged_write, with_privileged_write: bool = "pW" [102];
        privileged_read, with_privileged_read: bool = "pR" [103];
        nsipa, with_nsipa: bool = "NSIPA" [102];
        s2, with_s2: bool = "S2" [103];
        class, with_class: u8 = "CLASS" [105:104];
        ttrnw, with_ttrnw: bool = "TTRnW" [108];
        span, with_span: u8 = "Span" [115:108];
        impl_def, with_impl_def: u16 = "ImplDef" [127:112];
        input, with_input: u64 = "InputAddr" [191:128];
        input_page, with_input_page: address = "InputAddr" [191:140];
        fetch, with_fetch: address = "FetchAddr" [247:195];
        ipa, with_ipa: address = "IPA" [247:204];
    }
}

/// What happened: the event number (§7.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum EventKind {
    /// `F_UUT`, unsupported upstream transaction.
    #[default]
    Uut = 0x01,
    /// `C_BAD_STREAMID`.
    BadStreamId = 0x02,
    /// `F_STE_FETCH`.
    SteFetch = 0x03,
    /// `C_BAD_STE`.
    BadSte = 0x04,
    /// `F_BAD_ATS_TREQ`.
    BadAtsTreq = 0x05,
    /// `F_STREAM_DISABLED`.
    StreamDisabled = 0x06,
    /// `F_TRANSL_FORBIDDEN`.
    TranslForbidden = 0x07,
    /// `C_BAD_SUBSTREAMID`.
    BadSubstreamId = 0x08,
    /// `F_CD_FETCH`.
    CdFetch = 0x09,
    /// `C_BAD_CD`.
    BadCd = 0x0A,
    /// `F_WALK_EABT`.
    WalkEabt = 0x0B,
    /// `F_TRANSLATION`.
    Translation = 0x10,
    /// `F_ADDR_SIZE`.
    AddrSize = 0x11,
    /// `F_ACCESS`.
    Access = 0x12,
    /// `F_PERMISSION`.
    Permission = 0x13,
    /// `F_TLB_CONFLICT`.
    TlbConflict = 0x20,
    /// `F_CFG_CONFLICT`.
    CfgConflict = 0x21,
    /// `E_PAGE_REQUEST`.
    PageRequest = 0x24,
    /// `F_VMS_FETCH`.
    VmsFetch = 0x25,
}

/// The fields a record may have beyond its number and StreamID.
#[derive(Clone, Copy)]
struct Fields(u16);

impl Fields {
    const NONE: Self = Self(0);
    /// SubstreamID with SSV.
    const SSID: Self = Self(1 << 0);
    /// SubstreamID without SSV.
    const SSID_ALWAYS: Self = Self(1 << 1);
    /// Reason, 16 bits.
    const REASON: Self = Self(1 << 2);
    /// Reason, 32 bits.
    const CONFLICT: Self = Self(1 << 3);
    /// FetchAddr and GPCF.
    const FETCH: Self = Self(1 << 4);
    const RNW: Self = Self(1 << 5);
    /// PnU and InD.
    const ATTRIBUTES: Self = Self(1 << 6);
    /// S2 and NSIPA.
    const STAGE: Self = Self(1 << 7);
    const CLASS: Self = Self(1 << 8);
    /// Stall, STAG and the IMPLEMENTATION DEFINED bits.
    const STALL: Self = Self(1 << 9);
    const TTRNW: Self = Self(1 << 10);
    const INPUT: Self = Self(1 << 11);
    const INPUT_PAGE: Self = Self(1 << 12);
    const IPA: Self = Self(1 << 13);
    /// Span and rights of a translation request.
    const ATS: Self = Self(1 << 14);
    /// Span and rights of a page request.
    const PAGES: Self = Self(1 << 15);

    const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    const fn has(self, part: Self) -> bool {
        self.0 & part.0 != 0
    }
}

impl EventKind {
    /// All kinds, by number.
    pub const ALL: [Self; 19] = [
        Self::Uut,
        Self::BadStreamId,
        Self::SteFetch,
        Self::BadSte,
        Self::BadAtsTreq,
        Self::StreamDisabled,
        Self::TranslForbidden,
        Self::BadSubstreamId,
        Self::CdFetch,
        Self::BadCd,
        Self::WalkEabt,
        Self::Translation,
        Self::AddrSize,
        Self::Access,
        Self::Permission,
        Self::TlbConflict,
        Self::CfgConflict,
        Self::PageRequest,
        Self::VmsFetch,
    ];

    /// The kind with that number, if architected.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == number)
    }

    /// Name in the specification.
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.describe().0
    }

    /// What it means, in a few words.
    #[must_use]
    pub const fn meaning(self) -> &'static str {
        self.describe().1
    }

    /// Whether a record of this kind can say that its transaction stalled.
    #[must_use]
    pub const fn can_stall(self) -> bool {
        self.describe().2.has(Fields::STALL)
    }

    /// Name, meaning, and the fields of §7.3.2 to §7.3.20.
    const fn describe(self) -> (&'static str, &'static str, Fields) {
        const ACCESS: Fields =
            Fields::SSID.and(Fields::RNW).and(Fields::ATTRIBUTES).and(Fields::INPUT);
        const FETCH: Fields = Fields::SSID.and(Fields::REASON).and(Fields::FETCH);
        const FAULT: Fields =
            ACCESS.and(Fields::STAGE).and(Fields::CLASS).and(Fields::STALL).and(Fields::IPA);
        match self {
            Self::Uut => ("F_UUT", "unsupported upstream transaction", ACCESS.and(Fields::REASON)),
            Self::BadStreamId => ("C_BAD_STREAMID", "StreamID out of range", Fields::SSID),
            Self::SteFetch => ("F_STE_FETCH", "STE fetch aborted", FETCH),
            Self::BadSte => ("C_BAD_STE", "STE invalid", Fields::SSID),
            Self::BadAtsTreq => (
                "F_BAD_ATS_TREQ",
                "ATS translation request not allowed",
                Fields::SSID.and(Fields::ATS).and(Fields::INPUT_PAGE),
            ),
            Self::StreamDisabled => {
                ("F_STREAM_DISABLED", "stream disabled for this SubstreamID", Fields::NONE)
            }
            Self::TranslForbidden => (
                "F_TRANSL_FORBIDDEN",
                "ATS translated transaction not allowed",
                Fields::RNW.and(Fields::INPUT),
            ),
            Self::BadSubstreamId => {
                ("C_BAD_SUBSTREAMID", "SubstreamID not usable", Fields::SSID_ALWAYS)
            }
            Self::CdFetch => ("F_CD_FETCH", "CD fetch aborted", FETCH),
            Self::BadCd => ("C_BAD_CD", "CD invalid", Fields::SSID),
            Self::WalkEabt => (
                "F_WALK_EABT",
                "descriptor fetch aborted",
                ACCESS.and(Fields::STAGE).and(Fields::CLASS).and(Fields::REASON).and(Fields::FETCH),
            ),
            Self::Translation => ("F_TRANSLATION", "no translation", FAULT),
            Self::AddrSize => ("F_ADDR_SIZE", "output address too large", FAULT),
            Self::Access => ("F_ACCESS", "Access flag clear", FAULT),
            Self::Permission => ("F_PERMISSION", "permission denied", FAULT.and(Fields::TTRNW)),
            Self::TlbConflict => (
                "F_TLB_CONFLICT",
                "TLB conflict",
                ACCESS.and(Fields::STAGE).and(Fields::IPA).and(Fields::CONFLICT),
            ),
            Self::CfgConflict => (
                "F_CFG_CONFLICT",
                "configuration cache conflict",
                Fields::SSID.and(Fields::CONFLICT),
            ),
            Self::PageRequest => (
                "E_PAGE_REQUEST",
                "pages will be accessed soon",
                Fields::SSID.and(Fields::PAGES).and(Fields::INPUT_PAGE),
            ),
            Self::VmsFetch => ("F_VMS_FETCH", "VMS fetch aborted", FETCH),
        }
    }

    const fn fields(self) -> Fields {
        self.describe().2
    }
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What the SMMU was doing when the fault occurred (CLASS, §7.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Class {
    /// Fetching a Context Descriptor.
    Cd = 0b00,
    /// Fetching a stage 1 descriptor.
    Tt = 0b01,
    /// Translating the input address itself.
    #[default]
    In = 0b10,
    /// The reserved encoding; the SMMU never writes it.
    Reserved = 0b11,
}

impl Class {
    fn from_bits(bits: u8) -> Self {
        [Self::Cd, Self::Tt, Self::In, Self::Reserved][usize::from(bits & 0b11)]
    }
}

/// Read, write and execute, as a request names them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Rwx {
    pub read: bool,
    pub write: bool,
    pub exec: bool,
}

impl Rwx {
    fn any(self) -> bool {
        self.read || self.write || self.exec
    }
}

/// Everything an event record can hold (§7.3).
///
/// Each kind has some of the fields only: [`Event::encode`] leaves the others out and
/// [`Event::decode`] leaves them at their default. Bits that only optional features use which
/// nobody models yet (Overlay, AssuredOnly and DirtyBit of `F_PERMISSION`) have no field.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Event {
    /// Event number.
    pub kind: EventKind,
    /// StreamID.
    pub sid: u32,
    /// SubstreamID, if the transaction had one. `C_BAD_SUBSTREAMID` always has one.
    pub ssid: Option<u32>,
    /// The transaction stalled and waits for an answer that names `stag`.
    pub stall: bool,
    /// Token of the stalled transaction.
    pub stag: u16,
    /// IMPLEMENTATION DEFINED cause; 32 bits for conflicts, 16 for all others.
    pub reason: u32,
    /// The fetch failed its granule protection check.
    pub gpcf: bool,
    /// Privileged, after the STE's override.
    pub pnu: bool,
    /// Instruction, after the STE's override.
    pub ind: bool,
    /// Read.
    pub rnw: bool,
    /// The IPA is in the Non-secure space of a Secure stream.
    pub nsipa: bool,
    /// The fault occurred at stage 2.
    pub s2: bool,
    /// What the SMMU was doing.
    pub class: Class,
    /// A read of the stage 1 descriptor caused the fault, not its update (`F_PERMISSION`, TT).
    pub ttrnw: bool,
    /// IMPLEMENTATION DEFINED bits 127:112 of translation, size, access and permission faults.
    pub impl_def: u16,
    /// Address the transaction came with.
    pub input_address: u64,
    /// Intermediate physical address of a stage 2 fault, bits 55:12.
    pub ipa: u64,
    /// Physical address of the structure or descriptor, bits 55:3.
    pub fetch_address: u64,
    /// Size of a page request in 4 KiB, or of a translation request in translation units.
    pub span: u8,
    /// Unprivileged access a page request or translation request asks for.
    pub user: Rwx,
    /// Privileged access a page request or translation request asks for. A translation request
    /// asks either for this or for `user`.
    pub privileged: Rwx,
}

impl Event {
    /// An event with nothing but its kind and StreamID.
    #[must_use]
    pub fn new(kind: EventKind, sid: u32) -> Self {
        Self { kind, sid, ..Self::default() }
    }

    /// Encodes the fields this kind has; values are cut to their fields.
    #[must_use]
    pub fn encode(&self) -> [u64; 4] {
        let has = |part| self.kind.fields().has(part);
        let mut raw = Raw::default().with_number(self.kind as u8).with_sid(self.sid);
        if has(Fields::SSID)
            && let Some(ssid) = self.ssid
        {
            raw = raw.with_ssv(true).with_ssid(ssid);
        }
        if has(Fields::SSID_ALWAYS) {
            raw = raw.with_ssid(self.ssid.unwrap_or(0));
        }
        if has(Fields::REASON) {
            raw = raw.with_reason(self.reason as u16);
        }
        if has(Fields::CONFLICT) {
            raw = raw.with_conflict_reason(self.reason);
        }
        if has(Fields::FETCH) {
            raw = raw.with_gpcf(self.gpcf).with_fetch(self.fetch_address);
        }
        if has(Fields::RNW) {
            raw = raw.with_rnw(self.rnw);
        }
        if has(Fields::ATTRIBUTES) {
            raw = raw.with_pnu(self.pnu).with_ind(self.ind);
        }
        if has(Fields::STAGE) {
            raw = raw.with_s2(self.s2).with_nsipa(self.nsipa);
        }
        if has(Fields::CLASS) {
            raw = raw.with_class(self.class as u8);
        }
        if has(Fields::STALL) {
            raw = raw.with_stall(self.stall).with_stag(self.stag).with_impl_def(self.impl_def);
        }
        if has(Fields::TTRNW) {
            raw = raw.with_ttrnw(self.ttrnw);
        }
        if has(Fields::INPUT) {
            raw = raw.with_input(self.input_address);
        }
        if has(Fields::INPUT_PAGE) {
            raw = raw.with_input_page(self.input_address);
        }
        if has(Fields::IPA) {
            raw = raw.with_ipa(self.ipa);
        }
        if has(Fields::ATS) {
            let privileged = self.privileged.any();
            let rights = if privileged { self.privileged } else { self.user };
            raw = raw
                .with_ats_span(self.span)
                .with_ats_privileged(privileged)
                .with_ats_read(rights.read)
                .with_ats_write(rights.write)
                .with_ats_exec(rights.exec);
        }
        if has(Fields::PAGES) {
            raw = raw
                .with_span(self.span)
                .with_user_read(self.user.read)
                .with_user_write(self.user.write)
                .with_user_exec(self.user.exec)
                .with_privileged_read(self.privileged.read)
                .with_privileged_write(self.privileged.write)
                .with_privileged_exec(self.privileged.exec);
        }
        raw.0
    }

    /// Decodes the fields the record's kind has. `None` if its number is not architected.
    #[must_use]
    pub fn decode(raw: &[u64; 4]) -> Option<Self> {
        let raw = Raw(*raw);
        let kind = EventKind::from_number(raw.number())?;
        let has = |part| kind.fields().has(part);
        let mut event = Self::new(kind, raw.sid());
        if has(Fields::SSID_ALWAYS) || has(Fields::SSID) && raw.ssv() {
            event.ssid = Some(raw.ssid());
        }
        if has(Fields::REASON) {
            event.reason = u32::from(raw.reason());
        }
        if has(Fields::CONFLICT) {
            event.reason = raw.conflict_reason();
        }
        if has(Fields::FETCH) {
            (event.gpcf, event.fetch_address) = (raw.gpcf(), raw.fetch());
        }
        if has(Fields::RNW) {
            event.rnw = raw.rnw();
        }
        if has(Fields::ATTRIBUTES) {
            (event.pnu, event.ind) = (raw.pnu(), raw.ind());
        }
        if has(Fields::STAGE) {
            (event.s2, event.nsipa) = (raw.s2(), raw.nsipa());
        }
        if has(Fields::CLASS) {
            event.class = Class::from_bits(raw.class());
        }
        if has(Fields::STALL) {
            (event.stall, event.stag) = (raw.stall(), raw.stag());
            event.impl_def = raw.impl_def();
        }
        if has(Fields::TTRNW) {
            event.ttrnw = raw.ttrnw();
        }
        if has(Fields::INPUT) {
            event.input_address = raw.input();
        }
        if has(Fields::INPUT_PAGE) {
            event.input_address = raw.input_page();
        }
        if has(Fields::IPA) {
            event.ipa = raw.ipa();
        }
        if has(Fields::ATS) {
            let rights = Rwx { read: raw.ats_read(), write: raw.ats_write(), exec: raw.ats_exec() };
            event.span = raw.ats_span();
            if raw.ats_privileged() {
                event.privileged = rights;
            } else {
                event.user = rights;
            }
        }
        if has(Fields::PAGES) {
            event.span = raw.span();
            event.user =
                Rwx { read: raw.user_read(), write: raw.user_write(), exec: raw.user_exec() };
            event.privileged = Rwx {
                read: raw.privileged_read(),
                write: raw.privileged_write(),
                exec: raw.privileged_exec(),
            };
        }
        Some(event)
    }
}

impl fmt::Display for Event {
    /// One line: `F_TRANSLATION (no translation) SID=0x8 read of 0x1000 at stage 1, class IN`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let has = |part| self.kind.fields().has(part);
        write!(f, "{} ({}) SID={:#x}", self.kind, self.kind.meaning(), self.sid)?;
        if has(Fields::SSID.and(Fields::SSID_ALWAYS))
            && let Some(ssid) = self.ssid
        {
            write!(f, " SSID={ssid:#x}")?;
        }
        if has(Fields::ATTRIBUTES) {
            write!(f, " {}", if self.pnu { "privileged" } else { "unprivileged" })?;
        }
        if has(Fields::RNW) {
            let access = match (self.rnw, has(Fields::ATTRIBUTES) && self.ind) {
                (true, true) => "instruction fetch",
                (true, false) => "read",
                (false, _) => "write",
            };
            write!(f, " {access} of {:#x}", self.input_address)?;
        }
        if has(Fields::ATS.and(Fields::PAGES)) {
            write!(f, " for {:#x} Span={}", self.input_address, self.span)?;
            for (who, rights) in [("user", self.user), ("privileged", self.privileged)] {
                if rights.any() {
                    let letter = |set, letter| if set { letter } else { "-" };
                    write!(
                        f,
                        " {who}={}{}{}",
                        letter(rights.read, "r"),
                        letter(rights.write, "w"),
                        letter(rights.exec, "x")
                    )?;
                }
            }
        }
        if has(Fields::STAGE) {
            write!(f, " at stage {}", if self.s2 { 2 } else { 1 })?;
        }
        if has(Fields::CLASS) {
            let class = match self.class {
                Class::Cd => "CD",
                Class::Tt => "TT",
                Class::In => "IN",
                Class::Reserved => "reserved",
            };
            write!(f, ", class {class}")?;
        }
        if has(Fields::TTRNW) && self.class == Class::Tt && !self.ttrnw {
            f.write_str(" (descriptor write)")?;
        }
        if has(Fields::IPA) && self.s2 {
            write!(f, " IPA={:#x}", self.ipa)?;
            if self.nsipa {
                f.write_str(" (Non-secure)")?;
            }
        }
        if has(Fields::FETCH) {
            write!(f, " FetchAddr={:#x}", self.fetch_address)?;
            if self.gpcf {
                f.write_str(" GPCF")?;
            }
        }
        if has(Fields::REASON.and(Fields::CONFLICT)) && self.reason != 0 {
            write!(f, " Reason={:#x}", self.reason)?;
        }
        if has(Fields::STALL) && self.stall {
            write!(f, ", stalled STAG={:#x}", self.stag)?;
        }
        Ok(())
    }
}
