//! Commands (§4): 16 bytes each, in the Command queue.

use std::fmt;

use super::field::fields;

fields! {
    /// Where the parameters of all commands stand. Commands share positions, so fields overlap.
    struct Raw([u64; 2]) {
        opcode, with_opcode: u8 = "Opcode" [7:0];
        global, with_global: bool = "Global" [9];
        ssec, with_ssec: bool = "SSec" [10];
        ssv, with_ssv: bool = "SSV" [11];
        ssid, with_ssid: u32 = "SubstreamID" [31:12];
        sid, with_sid: u32 = "StreamID" [63:32];
        num, with_num: u8 = "NUM" [16:12];
        scale, with_scale: u8 = "SCALE" [25:20];
        vmid, with_vmid: u16 = "VMID" [47:32];
        asid, with_asid: u16 = "ASID" [63:48];
        action, with_action: u8 = "Ab:Ac" [13:12];
        cs, with_cs: u8 = "CS" [13:12];
        msh, with_msh: u8 = "MSH" [23:22];
        msi_attr, with_msi_attr: u8 = "MSIAttr" [27:24];
        msi_data, with_msi_data: u32 = "MSIData" [63:32];
        leaf, with_leaf: bool = "Leaf" [64];
        range, with_range: u8 = "Range" [68:64];
        size, with_size: u8 = "Size" [68:64];
        atc_size, with_atc_size: u8 = "Size" [69:64];
        prg_index, with_prg_index: u16 = "PRGIndex" [72:64];
        resp, with_resp: u8 = "Resp" [77:76];
        stag, with_stag: u16 = "STAG" [79:64];
        ttl128, with_ttl128: bool = "TTL128" [71];
        ttl, with_ttl: u8 = "TTL" [73:72];
        tg, with_tg: u8 = "TG" [75:74];
        address, with_address: address = "Address" [127:76];
        ipa, with_ipa: address = "Address" [119:76];
        msi_address, with_msi_address: address = "MSIAddress" [119:66];
        operand, with_operand: u64 = "Operand" [127:64];
    }
}

impl Raw {
    fn new(opcode: u8) -> Self {
        Self::default().with_opcode(opcode)
    }

    fn substream(&self) -> Option<u32> {
        self.ssv().then(|| self.ssid())
    }

    fn with_substream(self, ssid: Option<u32>) -> Self {
        match ssid {
            Some(ssid) => self.with_ssv(true).with_ssid(ssid),
            None => self,
        }
    }

    /// The parameters every invalidation by address has (§4.4.1.1), without VMID and ASID.
    fn tlbi_va(&self) -> TlbiVa {
        TlbiVa {
            vmid: 0,
            asid: 0,
            address: self.address(),
            leaf: self.leaf(),
            ttl: self.ttl(),
            ttl128: self.ttl128(),
            tg: self.tg(),
            num: self.num(),
            scale: self.scale(),
        }
    }

    fn with_tlbi_va(self, va: &TlbiVa) -> Self {
        self.with_address(va.address)
            .with_leaf(va.leaf)
            .with_ttl(va.ttl)
            .with_ttl128(va.ttl128)
            .with_tg(va.tg)
            .with_num(va.num)
            .with_scale(va.scale)
    }
}

/// Opcodes (§4.1.1).
mod op {
    pub(super) const PREFETCH_CONFIG: u8 = 0x01;
    pub(super) const PREFETCH_ADDR: u8 = 0x02;
    pub(super) const CFGI_STE: u8 = 0x03;
    pub(super) const CFGI_STE_RANGE: u8 = 0x04;
    pub(super) const CFGI_CD: u8 = 0x05;
    pub(super) const CFGI_CD_ALL: u8 = 0x06;
    pub(super) const CFGI_VMS_PIDM: u8 = 0x07;
    pub(super) const TLBI_NH_ALL: u8 = 0x10;
    pub(super) const TLBI_NH_ASID: u8 = 0x11;
    pub(super) const TLBI_NH_VA: u8 = 0x12;
    pub(super) const TLBI_NH_VAA: u8 = 0x13;
    pub(super) const TLBI_EL3_ALL: u8 = 0x18;
    pub(super) const TLBI_EL3_VA: u8 = 0x1A;
    pub(super) const TLBI_EL2_ALL: u8 = 0x20;
    pub(super) const TLBI_EL2_ASID: u8 = 0x21;
    pub(super) const TLBI_EL2_VA: u8 = 0x22;
    pub(super) const TLBI_EL2_VAA: u8 = 0x23;
    pub(super) const TLBI_S12_VMALL: u8 = 0x28;
    pub(super) const TLBI_S2_IPA: u8 = 0x2A;
    pub(super) const TLBI_NSNH_ALL: u8 = 0x30;
    pub(super) const ATC_INV: u8 = 0x40;
    pub(super) const PRI_RESP: u8 = 0x41;
    pub(super) const RESUME: u8 = 0x44;
    pub(super) const STALL_TERM: u8 = 0x45;
    pub(super) const SYNC: u8 = 0x46;
    pub(super) const TLBI_S_EL2_ALL: u8 = 0x50;
    pub(super) const TLBI_S_EL2_ASID: u8 = 0x51;
    pub(super) const TLBI_S_EL2_VA: u8 = 0x52;
    pub(super) const TLBI_S_EL2_VAA: u8 = 0x53;
    pub(super) const TLBI_S_S12_VMALL: u8 = 0x58;
    pub(super) const TLBI_S_S2_IPA: u8 = 0x5A;
    pub(super) const TLBI_SNH_ALL: u8 = 0x60;
    pub(super) const DPTI_ALL: u8 = 0x70;
    pub(super) const DPTI_PA: u8 = 0x73;
}

/// What a TLB invalidation by address names (§4.4.1.1).
///
/// With `tg` 0 it names the one entry that holds `address`. Otherwise it names the range
/// `(num + 1) << scale` granules long that begins at `address`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct TlbiVa {
    /// Virtual machine, for commands that have one; otherwise 0.
    pub vmid: u16,
    /// Address space, for commands that have one; otherwise 0.
    pub asid: u16,
    /// Virtual address bits 63:12, or intermediate physical address bits 55:12, in place.
    pub address: u64,
    /// Only entries from the last level of a walk need go.
    pub leaf: bool,
    /// Level that holds the leaf entry, a hint; 0 for any.
    pub ttl: u8,
    /// `ttl` speaks of 128-bit descriptors.
    pub ttl128: bool,
    /// Granule: 0 any (and no range), 1 4 KiB, 2 16 KiB, 3 64 KiB.
    pub tg: u8,
    /// One less than the range's multiplier, 5 bits.
    pub num: u8,
    /// Log2 scale of the range, 6 bits (5 where SMMU_IDR5.DS is 0).
    pub scale: u8,
}

/// A command (§4).
///
/// Reserved bits are not kept: an implementation may ignore them (§4.1.5). What the SMMU does not
/// support, or what the Non-secure queue may not ask for, is decoded all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the parameters are named as in the specification")]
pub enum Command {
    /// Fetch the configuration of a stream ahead (§4.2.1).
    PrefetchConfig { sid: u32, ssid: Option<u32>, ssec: bool },
    /// Translate `2^size` addresses from `addr` on ahead (§4.2.2).
    ///
    /// Stride and NS are not decoded: one refines a hint, the other is RES0 outside the Secure
    /// queue.
    PrefetchAddr { sid: u32, ssid: Option<u32>, ssec: bool, addr: u64, size: u8 },
    /// Forget one STE (§4.3.1).
    CfgiSte { sid: u32, leaf: bool, ssec: bool },
    /// Forget `2^(range + 1)` STEs, aligned (§4.3.2). Range 31 is `CMD_CFGI_ALL` (§4.3.6).
    CfgiSteRange { sid: u32, range: u8, ssec: bool },
    /// Forget one CD (§4.3.3).
    CfgiCd { sid: u32, ssid: u32, leaf: bool, ssec: bool },
    /// Forget all CDs of a stream (§4.3.4).
    CfgiCdAll { sid: u32, ssec: bool },
    /// Forget a VM's PARTID map (§4.3.5).
    CfgiVmsPidm { vmid: u16, ssec: bool },
    /// Invalidate stage 1 of a VM (§4.4.2.1).
    TlbiNhAll { vmid: u16 },
    /// Invalidate what is not global of an address space (§4.4.2.2).
    TlbiNhAsid { vmid: u16, asid: u16 },
    /// Invalidate an address in one address space (§4.4.2.4).
    TlbiNhVa(TlbiVa),
    /// Invalidate an address in all address spaces of a VM (§4.4.2.3).
    TlbiNhVaa(TlbiVa),
    /// Secure queue only (§4.4.2.5).
    TlbiEl3All,
    /// Secure queue only (§4.4.2.6).
    TlbiEl3Va(TlbiVa),
    /// Invalidate EL2 (§4.4.2.7).
    TlbiEl2All,
    /// Invalidate what is not global of an EL2-E2H address space (§4.4.2.10).
    TlbiEl2Asid { asid: u16 },
    /// Invalidate an address in EL2 (§4.4.2.8).
    TlbiEl2Va(TlbiVa),
    /// Invalidate an address in all EL2 address spaces (§4.4.2.9).
    TlbiEl2Vaa(TlbiVa),
    /// Invalidate both stages of a VM (§4.4.3.2).
    TlbiS12Vmall { vmid: u16 },
    /// Invalidate stage 2 of a VM by intermediate physical address (§4.4.3.1).
    TlbiS2Ipa(TlbiVa),
    /// Invalidate all of Non-secure EL1, both stages (§4.4.4.1).
    TlbiNsnhAll,
    /// Invalidate a device's cache of translations, `4096 << size` bytes; size 52 is everything
    /// (§4.5.1).
    AtcInv { sid: u32, ssid: Option<u32>, global: bool, size: u8, addr: u64 },
    /// Answer a group of page requests: 0 failure, 1 invalid request, 2 success (§4.5.2).
    PriResp { sid: u32, ssid: Option<u32>, prg_index: u16, resp: u8 },
    /// Decide a stalled transaction (§4.7.1): see [`Command::RESUME_RETRY`] and
    /// [`Command::RESUME_ABORT`] for the bits of `action`.
    Resume { sid: u32, stag: u16, action: u8, ssec: bool },
    /// Terminate all stalled transactions of a stream (§4.7.2).
    StallTerm { sid: u32, ssec: bool },
    /// Wait for everything before, then signal: 0 not at all, 1 by interrupt, 2 by event, 3 is
    /// reserved (§4.7.3).
    Sync { cs: u8, msh: u8, msi_attr: u8, msi_data: u32, msi_address: u64 },
    /// Secure queue only (§4.4.2.11).
    TlbiSEl2All,
    /// Secure queue only (§4.4.2.14).
    TlbiSEl2Asid { asid: u16 },
    /// Secure queue only (§4.4.2.12).
    TlbiSEl2Va(TlbiVa),
    /// Secure queue only (§4.4.2.13).
    TlbiSEl2Vaa(TlbiVa),
    /// Secure queue only (§4.4.3.4).
    TlbiSS12Vmall { vmid: u16 },
    /// Secure queue only (§4.4.3.3). The NS parameter is not decoded.
    TlbiSS2Ipa(TlbiVa),
    /// Secure queue only (§4.4.4.2).
    TlbiSnhAll,
    /// Forget all of the Device Permission Table (§4.6.1).
    DptiAll,
    /// Forget a region of the Device Permission Table (§4.6.2); the operand is not decoded.
    DptiPa { operand: u64 },
}

impl Command {
    /// Bit of [`Command::Resume`]'s action: retry the transaction (Ac). Otherwise terminate it.
    pub const RESUME_RETRY: u8 = 1 << 0;
    /// Bit of [`Command::Resume`]'s action: terminate with an abort (Ab), not as RAZ/WI.
    pub const RESUME_ABORT: u8 = 1 << 1;
    /// Range of [`Command::CfgiSteRange`] that makes it `CMD_CFGI_ALL`.
    pub const CFGI_ALL_RANGE: u8 = 31;

    /// Opcode of a raw command (§4.1.1).
    #[must_use]
    pub const fn opcode(raw: &[u64; 2]) -> u8 {
        raw[0] as u8
    }

    /// Decodes a raw command. `None` if the opcode is reserved or IMPLEMENTATION DEFINED, which
    /// is CERROR_ILL.
    #[must_use]
    pub fn decode(raw: &[u64; 2]) -> Option<Self> {
        let raw = Raw(*raw);
        let (sid, ssid, ssec) = (raw.sid(), raw.substream(), raw.ssec());
        let (vmid, asid, leaf) = (raw.vmid(), raw.asid(), raw.leaf());
        let va = raw.tlbi_va();
        Some(match raw.opcode() {
            op::PREFETCH_CONFIG => Self::PrefetchConfig { sid, ssid, ssec },
            op::PREFETCH_ADDR => {
                Self::PrefetchAddr { sid, ssid, ssec, addr: raw.address(), size: raw.size() }
            }
            op::CFGI_STE => Self::CfgiSte { sid, leaf, ssec },
            op::CFGI_STE_RANGE => Self::CfgiSteRange { sid, range: raw.range(), ssec },
            op::CFGI_CD => Self::CfgiCd { sid, ssid: raw.ssid(), leaf, ssec },
            op::CFGI_CD_ALL => Self::CfgiCdAll { sid, ssec },
            op::CFGI_VMS_PIDM => Self::CfgiVmsPidm { vmid, ssec },
            op::TLBI_NH_ALL => Self::TlbiNhAll { vmid },
            op::TLBI_NH_ASID => Self::TlbiNhAsid { vmid, asid },
            op::TLBI_NH_VA => Self::TlbiNhVa(TlbiVa { vmid, asid, ..va }),
            op::TLBI_NH_VAA => Self::TlbiNhVaa(TlbiVa { vmid, ..va }),
            op::TLBI_EL3_ALL => Self::TlbiEl3All,
            op::TLBI_EL3_VA => Self::TlbiEl3Va(va),
            op::TLBI_EL2_ALL => Self::TlbiEl2All,
            op::TLBI_EL2_ASID => Self::TlbiEl2Asid { asid },
            op::TLBI_EL2_VA => Self::TlbiEl2Va(TlbiVa { asid, ..va }),
            op::TLBI_EL2_VAA => Self::TlbiEl2Vaa(va),
            op::TLBI_S12_VMALL => Self::TlbiS12Vmall { vmid },
            op::TLBI_S2_IPA => Self::TlbiS2Ipa(TlbiVa { vmid, address: raw.ipa(), ..va }),
            op::TLBI_NSNH_ALL => Self::TlbiNsnhAll,
            op::ATC_INV => Self::AtcInv {
                sid,
                ssid,
                global: raw.global(),
                size: raw.atc_size(),
                addr: raw.address(),
            },
            op::PRI_RESP => {
                Self::PriResp { sid, ssid, prg_index: raw.prg_index(), resp: raw.resp() }
            }
            op::RESUME => Self::Resume { sid, stag: raw.stag(), action: raw.action(), ssec },
            op::STALL_TERM => Self::StallTerm { sid, ssec },
            op::SYNC => Self::Sync {
                cs: raw.cs(),
                msh: raw.msh(),
                msi_attr: raw.msi_attr(),
                msi_data: raw.msi_data(),
                msi_address: raw.msi_address(),
            },
            op::TLBI_S_EL2_ALL => Self::TlbiSEl2All,
            op::TLBI_S_EL2_ASID => Self::TlbiSEl2Asid { asid },
            op::TLBI_S_EL2_VA => Self::TlbiSEl2Va(TlbiVa { asid, ..va }),
            op::TLBI_S_EL2_VAA => Self::TlbiSEl2Vaa(va),
            op::TLBI_S_S12_VMALL => Self::TlbiSS12Vmall { vmid },
            op::TLBI_S_S2_IPA => Self::TlbiSS2Ipa(TlbiVa { vmid, address: raw.ipa(), ..va }),
            op::TLBI_SNH_ALL => Self::TlbiSnhAll,
            op::DPTI_ALL => Self::DptiAll,
            op::DPTI_PA => Self::DptiPa { operand: raw.operand() },
            _ => return None,
        })
    }

    /// Encodes the command; parameters are cut to their fields.
    #[must_use]
    pub fn encode(&self) -> [u64; 2] {
        let by_vmid = |opcode, vmid| Raw::new(opcode).with_vmid(vmid);
        let by_asid = |opcode, asid| Raw::new(opcode).with_asid(asid);
        let by_va = |opcode, va: &TlbiVa| Raw::new(opcode).with_tlbi_va(va);
        let by_ipa = |opcode, va: &TlbiVa| {
            Raw::new(opcode)
                .with_tlbi_va(va)
                .with_address(0)
                .with_ipa(va.address)
                .with_vmid(va.vmid)
        };
        let by_sid = |opcode, sid, ssec| Raw::new(opcode).with_sid(sid).with_ssec(ssec);
        match *self {
            Self::PrefetchConfig { sid, ssid, ssec } => {
                by_sid(op::PREFETCH_CONFIG, sid, ssec).with_substream(ssid)
            }
            Self::PrefetchAddr { sid, ssid, ssec, addr, size } => {
                by_sid(op::PREFETCH_ADDR, sid, ssec)
                    .with_substream(ssid)
                    .with_address(addr)
                    .with_size(size)
            }
            Self::CfgiSte { sid, leaf, ssec } => by_sid(op::CFGI_STE, sid, ssec).with_leaf(leaf),
            Self::CfgiSteRange { sid, range, ssec } => {
                by_sid(op::CFGI_STE_RANGE, sid, ssec).with_range(range)
            }
            Self::CfgiCd { sid, ssid, leaf, ssec } => {
                by_sid(op::CFGI_CD, sid, ssec).with_ssid(ssid).with_leaf(leaf)
            }
            Self::CfgiCdAll { sid, ssec } => by_sid(op::CFGI_CD_ALL, sid, ssec),
            Self::CfgiVmsPidm { vmid, ssec } => by_vmid(op::CFGI_VMS_PIDM, vmid).with_ssec(ssec),
            Self::TlbiNhAll { vmid } => by_vmid(op::TLBI_NH_ALL, vmid),
            Self::TlbiNhAsid { vmid, asid } => by_vmid(op::TLBI_NH_ASID, vmid).with_asid(asid),
            Self::TlbiNhVa(va) => by_va(op::TLBI_NH_VA, &va).with_vmid(va.vmid).with_asid(va.asid),
            Self::TlbiNhVaa(va) => by_va(op::TLBI_NH_VAA, &va).with_vmid(va.vmid),
            Self::TlbiEl3All => Raw::new(op::TLBI_EL3_ALL),
            Self::TlbiEl3Va(va) => by_va(op::TLBI_EL3_VA, &va),
            Self::TlbiEl2All => Raw::new(op::TLBI_EL2_ALL),
            Self::TlbiEl2Asid { asid } => by_asid(op::TLBI_EL2_ASID, asid),
            Self::TlbiEl2Va(va) => by_va(op::TLBI_EL2_VA, &va).with_asid(va.asid),
            Self::TlbiEl2Vaa(va) => by_va(op::TLBI_EL2_VAA, &va),
            Self::TlbiS12Vmall { vmid } => by_vmid(op::TLBI_S12_VMALL, vmid),
            Self::TlbiS2Ipa(va) => by_ipa(op::TLBI_S2_IPA, &va),
            Self::TlbiNsnhAll => Raw::new(op::TLBI_NSNH_ALL),
            Self::AtcInv { sid, ssid, global, size, addr } => by_sid(op::ATC_INV, sid, false)
                .with_substream(ssid)
                .with_global(global)
                .with_atc_size(size)
                .with_address(addr),
            Self::PriResp { sid, ssid, prg_index, resp } => by_sid(op::PRI_RESP, sid, false)
                .with_substream(ssid)
                .with_prg_index(prg_index)
                .with_resp(resp),
            Self::Resume { sid, stag, action, ssec } => {
                by_sid(op::RESUME, sid, ssec).with_stag(stag).with_action(action)
            }
            Self::StallTerm { sid, ssec } => by_sid(op::STALL_TERM, sid, ssec),
            Self::Sync { cs, msh, msi_attr, msi_data, msi_address } => Raw::new(op::SYNC)
                .with_cs(cs)
                .with_msh(msh)
                .with_msi_attr(msi_attr)
                .with_msi_data(msi_data)
                .with_msi_address(msi_address),
            Self::TlbiSEl2All => Raw::new(op::TLBI_S_EL2_ALL),
            Self::TlbiSEl2Asid { asid } => by_asid(op::TLBI_S_EL2_ASID, asid),
            Self::TlbiSEl2Va(va) => by_va(op::TLBI_S_EL2_VA, &va).with_asid(va.asid),
            Self::TlbiSEl2Vaa(va) => by_va(op::TLBI_S_EL2_VAA, &va),
            Self::TlbiSS12Vmall { vmid } => by_vmid(op::TLBI_S_S12_VMALL, vmid),
            Self::TlbiSS2Ipa(va) => by_ipa(op::TLBI_S_S2_IPA, &va),
            Self::TlbiSnhAll => Raw::new(op::TLBI_SNH_ALL),
            Self::DptiAll => Raw::new(op::DPTI_ALL),
            Self::DptiPa { operand } => Raw::new(op::DPTI_PA).with_operand(operand),
        }
        .0
    }

    /// Name in the specification.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::PrefetchConfig { .. } => "CMD_PREFETCH_CONFIG",
            Self::PrefetchAddr { .. } => "CMD_PREFETCH_ADDR",
            Self::CfgiSte { .. } => "CMD_CFGI_STE",
            Self::CfgiSteRange { range: Self::CFGI_ALL_RANGE, .. } => "CMD_CFGI_ALL",
            Self::CfgiSteRange { .. } => "CMD_CFGI_STE_RANGE",
            Self::CfgiCd { .. } => "CMD_CFGI_CD",
            Self::CfgiCdAll { .. } => "CMD_CFGI_CD_ALL",
            Self::CfgiVmsPidm { .. } => "CMD_CFGI_VMS_PIDM",
            Self::TlbiNhAll { .. } => "CMD_TLBI_NH_ALL",
            Self::TlbiNhAsid { .. } => "CMD_TLBI_NH_ASID",
            Self::TlbiNhVa(_) => "CMD_TLBI_NH_VA",
            Self::TlbiNhVaa(_) => "CMD_TLBI_NH_VAA",
            Self::TlbiEl3All => "CMD_TLBI_EL3_ALL",
            Self::TlbiEl3Va(_) => "CMD_TLBI_EL3_VA",
            Self::TlbiEl2All => "CMD_TLBI_EL2_ALL",
            Self::TlbiEl2Asid { .. } => "CMD_TLBI_EL2_ASID",
            Self::TlbiEl2Va(_) => "CMD_TLBI_EL2_VA",
            Self::TlbiEl2Vaa(_) => "CMD_TLBI_EL2_VAA",
            Self::TlbiS12Vmall { .. } => "CMD_TLBI_S12_VMALL",
            Self::TlbiS2Ipa(_) => "CMD_TLBI_S2_IPA",
            Self::TlbiNsnhAll => "CMD_TLBI_NSNH_ALL",
            Self::AtcInv { .. } => "CMD_ATC_INV",
            Self::PriResp { .. } => "CMD_PRI_RESP",
            Self::Resume { .. } => "CMD_RESUME",
            Self::StallTerm { .. } => "CMD_STALL_TERM",
            Self::Sync { .. } => "CMD_SYNC",
            Self::TlbiSEl2All => "CMD_TLBI_S_EL2_ALL",
            Self::TlbiSEl2Asid { .. } => "CMD_TLBI_S_EL2_ASID",
            Self::TlbiSEl2Va(_) => "CMD_TLBI_S_EL2_VA",
            Self::TlbiSEl2Vaa(_) => "CMD_TLBI_S_EL2_VAA",
            Self::TlbiSS12Vmall { .. } => "CMD_TLBI_S_S12_VMALL",
            Self::TlbiSS2Ipa(_) => "CMD_TLBI_S_S2_IPA",
            Self::TlbiSnhAll => "CMD_TLBI_SNH_ALL",
            Self::DptiAll => "CMD_DPTI_ALL",
            Self::DptiPa { .. } => "CMD_DPTI_PA",
        }
    }
}

impl fmt::Display for Command {
    /// One line: `CMD_TLBI_NH_VA VMID=3 ASID=7 VA=0x12000 Leaf`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        match *self {
            Self::PrefetchConfig { sid, ssid, ssec } => {
                stream(f, sid, ssid)?;
                flag(f, "SSec", ssec)
            }
            Self::PrefetchAddr { sid, ssid, ssec, addr, size } => {
                stream(f, sid, ssid)?;
                write!(f, " Addr={addr:#x} Size={size}")?;
                flag(f, "SSec", ssec)
            }
            Self::CfgiSte { sid, leaf, ssec } => {
                stream(f, sid, None)?;
                flag(f, "Leaf", leaf)?;
                flag(f, "SSec", ssec)
            }
            Self::CfgiSteRange { range: Self::CFGI_ALL_RANGE, ssec, .. } => flag(f, "SSec", ssec),
            Self::CfgiSteRange { sid, range, ssec } => {
                stream(f, sid, None)?;
                write!(f, " Range={range}")?;
                flag(f, "SSec", ssec)
            }
            Self::CfgiCd { sid, ssid, leaf, ssec } => {
                stream(f, sid, Some(ssid))?;
                flag(f, "Leaf", leaf)?;
                flag(f, "SSec", ssec)
            }
            Self::CfgiCdAll { sid, ssec } | Self::StallTerm { sid, ssec } => {
                stream(f, sid, None)?;
                flag(f, "SSec", ssec)
            }
            Self::CfgiVmsPidm { vmid, ssec } => {
                write!(f, " VMID={vmid}")?;
                flag(f, "SSec", ssec)
            }
            Self::TlbiNhAll { vmid }
            | Self::TlbiS12Vmall { vmid }
            | Self::TlbiSS12Vmall { vmid } => write!(f, " VMID={vmid}"),
            Self::TlbiNhAsid { vmid, asid } => write!(f, " VMID={vmid} ASID={asid}"),
            Self::TlbiEl2Asid { asid } | Self::TlbiSEl2Asid { asid } => write!(f, " ASID={asid}"),
            Self::TlbiNhVa(va) => {
                write!(f, " VMID={} ASID={}", va.vmid, va.asid)?;
                address(f, "VA", &va)
            }
            Self::TlbiNhVaa(va) => {
                write!(f, " VMID={}", va.vmid)?;
                address(f, "VA", &va)
            }
            Self::TlbiEl2Va(va) | Self::TlbiSEl2Va(va) => {
                write!(f, " ASID={}", va.asid)?;
                address(f, "VA", &va)
            }
            Self::TlbiEl3Va(va) | Self::TlbiEl2Vaa(va) | Self::TlbiSEl2Vaa(va) => {
                address(f, "VA", &va)
            }
            Self::TlbiS2Ipa(va) | Self::TlbiSS2Ipa(va) => {
                write!(f, " VMID={}", va.vmid)?;
                address(f, "IPA", &va)
            }
            Self::AtcInv { sid, ssid, global, size, addr } => {
                stream(f, sid, ssid)?;
                write!(f, " Addr={addr:#x} Size={size}")?;
                flag(f, "Global", global)
            }
            Self::PriResp { sid, ssid, prg_index, resp } => {
                stream(f, sid, ssid)?;
                let resp = ["ResponseFailure", "InvalidRequest", "Success", "reserved"]
                    [usize::from(resp & 0b11)];
                write!(f, " PRGIndex={prg_index} Resp={resp}")
            }
            Self::Resume { sid, stag, action, ssec } => {
                stream(f, sid, None)?;
                let action = match action {
                    action if action & Self::RESUME_RETRY != 0 => "Retry",
                    action if action & Self::RESUME_ABORT != 0 => "Abort",
                    _ => "Terminate",
                };
                write!(f, " STAG={stag:#x} {action}")?;
                flag(f, "SSec", ssec)
            }
            Self::Sync { cs, msh, msi_attr, msi_data, msi_address } => {
                let cs_name =
                    ["SIG_NONE", "SIG_IRQ", "SIG_SEV", "reserved"][usize::from(cs & 0b11)];
                write!(f, " CS={cs_name}")?;
                if cs == 1 && msi_address != 0 {
                    write!(
                        f,
                        " MSIAddress={msi_address:#x} MSIData={msi_data:#x} \
                         MSIAttr={msi_attr:#x} MSH={msh}"
                    )?;
                }
                Ok(())
            }
            Self::DptiPa { operand } => write!(f, " Operand={operand:#x}"),
            Self::TlbiEl3All
            | Self::TlbiEl2All
            | Self::TlbiNsnhAll
            | Self::TlbiSEl2All
            | Self::TlbiSnhAll
            | Self::DptiAll => Ok(()),
        }
    }
}

fn stream(f: &mut fmt::Formatter<'_>, sid: u32, ssid: Option<u32>) -> fmt::Result {
    write!(f, " SID={sid:#x}")?;
    ssid.map_or(Ok(()), |ssid| write!(f, " SSID={ssid:#x}"))
}

fn flag(f: &mut fmt::Formatter<'_>, name: &str, set: bool) -> fmt::Result {
    if set { write!(f, " {name}") } else { Ok(()) }
}

fn address(f: &mut fmt::Formatter<'_>, name: &str, va: &TlbiVa) -> fmt::Result {
    write!(f, " {name}={:#x}", va.address)?;
    if va.tg != 0 {
        let granule = ["", "4K", "16K", "64K"][usize::from(va.tg & 0b11)];
        write!(f, " TG={granule} NUM={} SCALE={} TTL={}", va.num, va.scale, va.ttl)?;
        flag(f, "TTL128", va.ttl128)?;
    }
    flag(f, "Leaf", va.leaf)
}
