//! What an SMMU is: every optional feature and every IMPLEMENTATION DEFINED choice.
//!
//! The ID registers are derived from here, and [`Options::check`] refuses a set that no SMMU may
//! have.

use thiserror::Error;

use crate::cache::tlb::TlbSize;
#[cfg(test)]
use crate::wire::register::Register;
use crate::wire::register::{Aidr, Idr0, Idr1, Idr3, Idr5};

/// The architecture version that `SMMU_AIDR` reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    /// SMMUv3.0.
    V3_0,
    /// SMMUv3.1.
    V3_1,
    /// SMMUv3.2.
    V3_2,
    /// SMMUv3.3.
    V3_3,
}

/// `SMMU_IDR0.HTTU`: what hardware updates in translation tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Httu {
    /// Nothing.
    None,
    /// The Access flag.
    Access,
    /// The Access flag and dirty state.
    AccessDirty,
}

/// `SMMU_IDR0.STALL_MODEL`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StallModel {
    /// Faulting transactions may stall or terminate, as configured.
    Both,
    /// They always terminate.
    TerminateOnly,
    /// They always stall.
    StallOnly,
}

/// The configuration of one SMMU. Start from a preset, change fields, and give it to
/// [`Smmu::new`](crate::Smmu::new), which checks it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Architecture version: `SMMU_AIDR`.
    pub version: Version,
    /// `SMMU_IIDR` as is.
    pub iidr: u32,

    /// `IDR0.S1P`: stage 1 is implemented.
    pub stage1: bool,
    /// `IDR0.S2P`: stage 2 is implemented.
    pub stage2: bool,
    /// `IDR0.Hyp`: EL2 stage 1 contexts (StreamWorld NS-EL2, and with v3.0's `E2H` bit NS-EL2-E2H).
    pub hyp: bool,
    /// `IDR0.COHACC`: the SMMU's own accesses are coherent.
    pub cohacc: bool,
    /// `IDR0.HTTU`.
    pub httu: Httu,
    /// `IDR0.ASID16`: 16-bit ASIDs, else 8.
    pub asid16: bool,
    /// `IDR0.VMID16`: 16-bit VMIDs, else 8.
    pub vmid16: bool,
    /// `IDR0.MSI`: interrupts can be messages.
    pub msi: bool,
    /// `IDR0.SEV`: `CMD_SYNC` can send an event to the processors.
    pub sev: bool,
    /// `IDR0.ATS`: PCIe address translation services.
    pub ats: bool,
    /// `IDR0.NS1ATS`: split-stage ATS is *not* supported.
    pub ns1ats: bool,
    /// `IDR0.PRI`: PCIe page request interface.
    pub pri: bool,
    /// `IDR0.CD2L`: two-level CD tables.
    pub cd2l: bool,
    /// `IDR0.ATSRECERR`: configuration errors of ATS requests can be recorded.
    pub atsrecerr: bool,
    /// `IDR0.STALL_MODEL`.
    pub stall_model: StallModel,
    /// `IDR0.TERM_MODEL`: terminated transactions always abort, `CD.A == 0` is ILLEGAL.
    pub abort_only: bool,
    /// `IDR0.ST_LEVEL`: two-level stream tables.
    pub two_level_stream_table: bool,

    /// `IDR1.SIDSIZE`: bits of StreamID, at most 32.
    pub sid_bits: u8,
    /// `IDR1.SSIDSIZE`: bits of SubstreamID, at most 20; 0 is none.
    pub ssid_bits: u8,
    /// `IDR1.CMDQS`: log2 of the largest Command queue, in entries; at most 19.
    pub cmdq_log2: u8,
    /// `IDR1.EVENTQS`: log2 of the largest Event queue, in entries; at most 19.
    pub eventq_log2: u8,
    /// `IDR1.PRIQS`: log2 of the largest PRI queue, in entries; at most 19.
    pub priq_log2: u8,
    /// `IDR1.ATTR_TYPES_OVR`: STE and GBPA can override memory types.
    pub attr_types_ovr: bool,
    /// `IDR1.ATTR_PERMS_OVR`: STE and GBPA can override privilege and instruction attributes.
    pub attr_perms_ovr: bool,

    /// `IDR3.HAD`: hierarchical attributes can be disabled.
    pub had: bool,
    /// `IDR3.XNX`: stage 2 execute permissions tell privileges apart.
    pub xnx: bool,
    /// `IDR3.PPS`: the PASID of a page request response is as in the last request of its group.
    pub pps: bool,
    /// `IDR3.FWB`: stage 2 can force memory attributes.
    pub fwb: bool,
    /// `IDR3.STT`: small translation tables.
    pub stt: bool,
    /// `IDR3.RIL`: range-based invalidation.
    pub ril: bool,
    /// `IDR3.BBML`: break-before-make level, 0 to 2.
    pub bbml: u8,
    /// `IDR3.E0PD`: unprivileged access can be disabled per half of the address space.
    pub e0pd: bool,
    /// `IDR3.PTWNNC`: stage 1 walks to stage 2 Device memory are made as Normal Non-cacheable.
    pub ptwnnc: bool,

    /// `IDR5.OAS`: bits of physical address: 32, 36, 40, 42, 44, 48 or 52.
    pub oas: u8,
    /// `IDR5.GRAN4K`.
    pub gran4k: bool,
    /// `IDR5.GRAN16K`.
    pub gran16k: bool,
    /// `IDR5.GRAN64K`.
    pub gran64k: bool,
    /// `IDR5.VAX`: virtual addresses of up to 52 bits, else 48.
    pub va52: bool,
    /// `IDR5.DS`: 52-bit addresses with 4K and 16K granules.
    pub ds: bool,
    /// `IDR5.STALL_MAX`: how many transactions can be stalled at a time.
    pub stall_max: u16,

    /// Reset value of `SMMU_GBPA.ABORT`: whether transactions abort until software enables the SMMU.
    pub reset_abort: bool,
    /// Events of one stream that are alike, one after another and not yet read are merged where `STE.MEV`
    /// allows it (§7.3.1).
    pub merge_events: bool,
    /// A command with a non-zero reserved bit is malformed (`CERROR_ILL`), else the bit is ignored (§4.1.5).
    pub check_reserved: bool,
    /// How many stream configurations each [`Requester`](crate::Requester) remembers, as a power of two.
    pub contexts_log2: u8,
    /// Sizes of the TLB.
    pub tlb: TlbSize,
}

/// A set of options that IHI 0070 does not allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("{field}: {rule}")]
pub struct OptionsError {
    /// The field of [`Options`] to change.
    pub field: &'static str,
    /// What IHI 0070 demands.
    pub rule: &'static str,
}

impl Options {
    /// What Linux's `arm-smmu-v3` driver makes use of, as the hardware under it.
    pub fn linux_host() -> Self {
        Self { version: Version::V3_2, hyp: false, atsrecerr: false, ..Self::everything() }
    }

    /// As Arm's MMU-600: SMMUv3.1 with 48-bit addresses, without HTTU of its own and range invalidation.
    pub fn mmu600() -> Self {
        Self {
            version: Version::V3_1,
            iidr: 0x4830_043b,
            ril: false,
            bbml: 0,
            e0pd: false,
            atsrecerr: false,
            ptwnnc: false,
            fwb: false,
            stt: false,
            ds: false,
            va52: false,
            oas: 48,
            hyp: true,
            sid_bits: 24,
            ..Self::everything()
        }
    }

    /// Like Arm's MMU-700: SMMUv3.2 with range invalidation and 52-bit addresses with 64K pages.
    pub fn mmu700() -> Self {
        Self {
            version: Version::V3_2,
            iidr: 0x4870_043b,
            bbml: 2,
            atsrecerr: false,
            e0pd: false,
            ptwnnc: false,
            ds: false,
            sid_bits: 24,
            ..Self::everything()
        }
    }

    /// The least that a driver can work with: one stage, one granule, linear tables, wired interrupts.
    pub fn minimal() -> Self {
        Self {
            version: Version::V3_0,
            stage2: false,
            hyp: false,
            cohacc: true,
            httu: Httu::None,
            asid16: false,
            vmid16: false,
            msi: false,
            sev: false,
            ats: false,
            ns1ats: false,
            pri: false,
            cd2l: false,
            atsrecerr: false,
            stall_model: StallModel::TerminateOnly,
            abort_only: true,
            two_level_stream_table: false,
            sid_bits: 6,
            ssid_bits: 0,
            cmdq_log2: 8,
            eventq_log2: 7,
            priq_log2: 0,
            attr_types_ovr: false,
            attr_perms_ovr: false,
            had: false,
            xnx: false,
            pps: false,
            fwb: false,
            stt: false,
            ril: false,
            bbml: 0,
            e0pd: false,
            ptwnnc: false,
            oas: 40,
            gran16k: false,
            gran64k: false,
            va52: false,
            ds: false,
            stall_max: 0,
            ..Self::everything()
        }
    }

    /// All that this model implements.
    pub fn everything() -> Self {
        Self {
            version: Version::V3_3,
            iidr: 0,
            stage1: true,
            stage2: true,
            hyp: true,
            cohacc: true,
            httu: Httu::AccessDirty,
            asid16: true,
            vmid16: true,
            msi: true,
            sev: true,
            ats: true,
            ns1ats: false,
            pri: true,
            cd2l: true,
            atsrecerr: true,
            stall_model: StallModel::Both,
            abort_only: false,
            two_level_stream_table: true,
            sid_bits: 32,
            ssid_bits: 20,
            cmdq_log2: 19,
            eventq_log2: 19,
            priq_log2: 19,
            attr_types_ovr: true,
            attr_perms_ovr: true,
            had: true,
            xnx: true,
            pps: true,
            fwb: true,
            stt: true,
            ril: true,
            bbml: 2,
            e0pd: true,
            ptwnnc: true,
            oas: 52,
            gran4k: true,
            gran16k: true,
            gran64k: true,
            va52: true,
            ds: true,
            stall_max: 256,
            reset_abort: false,
            merge_events: true,
            check_reserved: false,
            contexts_log2: 6,
            tlb: TlbSize::default(),
        }
    }

    /// Whether an SMMU may be like this.
    pub fn check(&self) -> Result<(), OptionsError> {
        let rules: &[(bool, &str, &str)] = &[
            (
                self.stage1 || self.stage2,
                "stage1",
                "at least one stage of translation is implemented (IDR0)",
            ),
            (self.sid_bits <= 32, "sid_bits", "a StreamID has at most 32 bits (IDR1.SIDSIZE)"),
            (
                self.ssid_bits <= 20,
                "ssid_bits",
                "a SubstreamID has at most 20 bits (IDR1.SSIDSIZE)",
            ),
            (
                self.ssid_bits == 0 || self.stage1,
                "ssid_bits",
                "SubstreamIDs need stage 1 (IDR1.SSIDSIZE)",
            ),
            (
                self.sid_bits <= 6 || self.two_level_stream_table,
                "two_level_stream_table",
                "more than 64 StreamIDs need two-level stream tables (§3.3.1.2)",
            ),
            (
                self.cmdq_log2 <= 19,
                "cmdq_log2",
                "the Command queue has at most 2^19 entries (IDR1.CMDQS)",
            ),
            (
                self.eventq_log2 <= 19,
                "eventq_log2",
                "the Event queue has at most 2^19 entries (IDR1.EVENTQS)",
            ),
            (
                self.priq_log2 <= 19,
                "priq_log2",
                "the PRI queue has at most 2^19 entries (IDR1.PRIQS)",
            ),
            (
                self.pri || self.priq_log2 == 0,
                "priq_log2",
                "without PRI the field is RES0 (IDR1.PRIQS)",
            ),
            (!self.pri || self.ats, "pri", "PRI needs ATS (§3.9.1)"),
            (self.ats || !self.ns1ats, "ns1ats", "without ATS the bit is RES0 (IDR0.NS1ATS)"),
            (
                !self.atsrecerr || self.ats && self.version >= Version::V3_3,
                "atsrecerr",
                "needs ATS and SMMUv3.3 (IDR0.ATSRECERR)",
            ),
            (!self.vmid16 || self.stage2, "vmid16", "VMIDs need stage 2 (IDR0.VMID16)"),
            (!self.asid16 || self.stage1, "asid16", "ASIDs need stage 1 (IDR0.ASID16)"),
            (!self.hyp || self.stage1, "hyp", "EL2 contexts are stage 1 contexts (IDR0.Hyp)"),
            (
                !self.cd2l || self.ssid_bits > 0,
                "cd2l",
                "two-level CD tables need SubstreamIDs (IDR0.CD2L)",
            ),
            (
                self.gran4k || self.gran16k || self.gran64k,
                "gran4k",
                "at least one granule is implemented (IDR5)",
            ),
            (
                matches!(self.oas, 32 | 36 | 40 | 42 | 44 | 48 | 52),
                "oas",
                "one of 32, 36, 40, 42, 44, 48, 52 (IDR5.OAS)",
            ),
            (
                self.oas < 52 || self.version >= Version::V3_1,
                "oas",
                "52-bit addresses need SMMUv3.1 (IDR5.OAS)",
            ),
            (
                !self.va52 || self.version >= Version::V3_1,
                "va52",
                "52-bit virtual addresses need SMMUv3.1 (IDR5.VAX)",
            ),
            (
                !self.ds || self.gran4k || self.gran16k,
                "ds",
                "LPA2 is about the 4K and 16K granules (IDR5.DS)",
            ),
            (!self.ds || self.ril, "ds", "LPA2 needs range invalidation (IDR5.DS)"),
            (
                !self.ril || self.version >= Version::V3_2,
                "ril",
                "range invalidation comes with SMMUv3.2 (IDR3.RIL)",
            ),
            (
                self.ril || self.version < Version::V3_2,
                "ril",
                "mandatory from SMMUv3.2 on (IDR3.RIL)",
            ),
            (self.bbml <= 2, "bbml", "0, 1 or 2 (IDR3.BBML)"),
            (
                self.bbml != 0 || self.version < Version::V3_2,
                "bbml",
                "1 or 2 from SMMUv3.2 on (IDR3.BBML)",
            ),
            (
                self.e0pd || self.version < Version::V3_3 || !self.stage1,
                "e0pd",
                "mandatory from SMMUv3.3 on (IDR3.E0PD)",
            ),
            (
                self.ptwnnc || self.version < Version::V3_3 || !self.stage2,
                "ptwnnc",
                "mandatory from SMMUv3.3 on with stage 2 (IDR3.PTWNNC)",
            ),
            (
                !self.fwb || (self.stage2 && self.version >= Version::V3_2),
                "fwb",
                "needs stage 2 and SMMUv3.2 (IDR3.FWB)",
            ),
            (
                !self.xnx || (self.stage2 && self.version >= Version::V3_1),
                "xnx",
                "needs stage 2 and SMMUv3.1 (IDR3.XNX)",
            ),
            (
                self.fwb || self.version < Version::V3_2 || !self.stage2,
                "fwb",
                "mandatory from SMMUv3.2 on with stage 2 (IDR3.FWB)",
            ),
            (
                self.xnx || self.version < Version::V3_1 || !self.stage2,
                "xnx",
                "mandatory from SMMUv3.1 on with stage 2 (IDR3.XNX)",
            ),
            (!self.had || self.stage1, "had", "needs stage 1 (IDR3.HAD)"),
            (
                self.had || self.version < Version::V3_1 || !self.stage1,
                "had",
                "mandatory from SMMUv3.1 on with stage 1 (IDR3.HAD)",
            ),
            (!self.stt || self.version >= Version::V3_1, "stt", "needs SMMUv3.1 (IDR3.STT)"),
            (
                self.stall_model == StallModel::TerminateOnly || self.stall_max > 0,
                "stall_max",
                "the Stall model needs room for stalled transactions (IDR5.STALL_MAX)",
            ),
            (self.contexts_log2 <= 16, "contexts_log2", "at most 2^16 contexts for each requester"),
            (self.tlb_fits(), "tlb", "each part has at most 2^24 entries"),
        ];
        match rules.iter().find(|(holds, ..)| !holds) {
            Some(&(_, field, rule)) => Err(OptionsError { field, rule }),
            None => Ok(()),
        }
    }

    fn tlb_fits(&self) -> bool {
        let TlbSize { small_log2, large_log2, stage2_log2, walk_log2 } = self.tlb;
        [small_log2, large_log2, stage2_log2, walk_log2].iter().all(|log2| *log2 <= 24)
    }

    /// Whether `granule` is advertised.
    pub(crate) fn has_granule(&self, granule: pagetable::Granule) -> bool {
        match granule {
            pagetable::Granule::K4 => self.gran4k,
            pagetable::Granule::K16 => self.gran16k,
            pagetable::Granule::K64 => self.gran64k,
        }
    }
}

/// The ID registers of an SMMU, as software reads them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct IdRegisters {
    /// `SMMU_IDR0`.
    pub idr0: u32,
    /// `SMMU_IDR1`.
    pub idr1: u32,
    /// `SMMU_IDR3`.
    pub idr3: u32,
    /// `SMMU_IDR5`.
    pub idr5: u32,
    /// `SMMU_IIDR`.
    pub iidr: u32,
    /// `SMMU_AIDR`.
    pub aidr: u32,
}

impl Options {
    /// The SMMU that these ID registers describe, as far as this model has what it has: features
    /// that are not modelled are left out. What no register says is as in [`everything`](Self::everything).
    pub fn from_id_registers(registers: &IdRegisters) -> Self {
        let idr0 = Idr0(registers.idr0);
        let idr1 = Idr1(registers.idr1);
        let idr3 = Idr3(registers.idr3);
        let idr5 = Idr5(registers.idr5);
        Self {
            version: match Aidr(registers.aidr).minor() {
                0 => Version::V3_0,
                1 => Version::V3_1,
                2 => Version::V3_2,
                _ => Version::V3_3,
            },
            iidr: registers.iidr,
            stage1: idr0.s1p(),
            stage2: idr0.s2p(),
            hyp: idr0.hyp(),
            cohacc: idr0.cohacc(),
            httu: match idr0.httu() {
                0 => Httu::None,
                1 => Httu::Access,
                _ => Httu::AccessDirty,
            },
            asid16: idr0.asid16(),
            vmid16: idr0.vmid16(),
            msi: idr0.msi(),
            sev: idr0.sev(),
            ats: idr0.ats(),
            ns1ats: idr0.ns1ats(),
            pri: idr0.pri(),
            cd2l: idr0.cd2l(),
            atsrecerr: idr0.atsrecerr(),
            stall_model: match idr0.stall_model() {
                0b00 => StallModel::Both,
                0b10 => StallModel::StallOnly,
                _ => StallModel::TerminateOnly,
            },
            abort_only: idr0.term_model(),
            two_level_stream_table: idr0.st_level() == 1,
            sid_bits: idr1.sid_size().min(32),
            ssid_bits: idr1.ssid_size().min(20),
            cmdq_log2: idr1.cmdqs().min(19),
            eventq_log2: idr1.eventqs().min(19),
            priq_log2: idr1.priqs().min(19),
            attr_types_ovr: idr1.attr_types_ovr(),
            attr_perms_ovr: idr1.attr_perms_ovr(),
            had: idr3.had(),
            xnx: idr3.xnx(),
            pps: idr3.pps(),
            fwb: idr3.fwb(),
            stt: idr3.stt(),
            ril: idr3.ril(),
            bbml: idr3.bbml(),
            e0pd: idr3.e0pd(),
            ptwnnc: idr3.ptwnnc(),
            oas: crate::wire::address_bits(idr5.oas()).min(52) as u8,
            gran4k: idr5.gran4k(),
            gran16k: idr5.gran16k(),
            gran64k: idr5.gran64k(),
            va52: idr5.vax() != 0,
            ds: idr5.ds(),
            stall_max: idr5.stall_max(),
            ..Self::everything()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn id_registers_say_what_an_smmu_is() {
        for preset in [
            Options::everything(),
            Options::linux_host(),
            Options::mmu600(),
            Options::mmu700(),
            Options::minimal(),
        ] {
            let front = crate::front::Front::new(&preset);
            let word = |register| front.word(register);
            let registers = IdRegisters {
                idr0: word(Register::Idr0),
                idr1: word(Register::Idr1),
                idr3: word(Register::Idr3),
                idr5: word(Register::Idr5),
                iidr: word(Register::Iidr),
                aidr: word(Register::Aidr),
            };
            let found = Options::from_id_registers(&registers);
            assert_eq!(Options { reset_abort: preset.reset_abort, ..found }, preset);
        }
    }
}
