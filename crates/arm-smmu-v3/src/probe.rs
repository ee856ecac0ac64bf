//! What the SMMU is: its ID registers as a type.

use pagetable::Granule;
use smmuv3::wire::Register;
use smmuv3::wire::address_bits;
use smmuv3::wire::register::{Aidr, Idr0, Idr1, Idr3, Idr5};
use thiserror::Error;

use crate::platform::{Registers, read};

/// What hardware updates in translation tables: `IDR0.HTTU`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Httu {
    /// Nothing.
    None,
    /// The Access flag.
    Access,
    /// The Access flag and dirty state.
    Dirty,
}

/// What an SMMU can do, as far as this driver makes use of it or tells others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Features {
    /// Minor version of the architecture: 1 for SMMUv3.1.
    pub minor: u8,
    /// Stage 1 is there.
    pub stage1: bool,
    /// Stage 2 is there.
    pub stage2: bool,
    /// EL2 is there: it has caches to invalidate.
    pub hyp: bool,
    /// Broadcast TLB maintenance is there, and has to be told to leave this SMMU alone.
    pub broadcast: bool,
    /// What hardware updates in translation tables.
    pub httu: Httu,
    /// Bits of ASID: 8 or 16.
    pub asid_bits: u8,
    /// Bits of VMID: 8 or 16.
    pub vmid_bits: u8,
    /// Stream tables may have two levels.
    pub two_level_streams: bool,
    /// CD tables may have two levels.
    pub two_level_cds: bool,
    /// Bits of StreamID, at most 32.
    pub sid_bits: u8,
    /// Bits of SubstreamID, at most 20; 0 is none.
    pub ssid_bits: u8,
    /// log2 of the entries of the largest Command queue, at most 19.
    pub cmdq_log2: u8,
    /// log2 of the entries of the largest Event queue, at most 19.
    pub eventq_log2: u8,
    /// PCIe ATS: devices may ask for translations and keep them.
    pub ats: bool,
    /// PCIe PRI: devices may ask for pages.
    pub pri: bool,
    /// log2 of the entries of the largest PRI queue, at most 19.
    pub priq_log2: u8,
    /// Faulting transactions may stall or terminate, as software chooses; otherwise they always terminate.
    pub stalls: bool,
    /// Invalidation of ranges of addresses.
    pub range_invalidation: bool,
    /// 52-bit addresses with 4K and 16K, and their larger invalidations.
    pub wide_ranges: bool,
    /// Granule of 4 KiB.
    pub granule_4k: bool,
    /// Granule of 16 KiB.
    pub granule_16k: bool,
    /// Granule of 64 KiB.
    pub granule_64k: bool,
    /// Bits of physical address: 32 to 52.
    pub output_bits: u8,
    /// Bits of virtual address with the granule of 64 KiB: 48 or 52.
    pub virtual_bits: u8,
    /// The ID registers IDR0 to IDR5 as they are.
    pub idr: [u32; 6],
    /// IIDR as it is.
    pub iidr: u32,
    /// AIDR as it is.
    pub aidr: u32,
}

/// What makes an SMMU one that this driver cannot work with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ProbeError {
    /// Another major version of the architecture, or nothing at all at that address.
    #[error("not an SMMUv3: AIDR is {0:#x}")]
    Version(u32),
    /// A register has a value that no SMMUv3 has.
    #[error("{0} has a reserved value")]
    Reserved(&'static str),
    /// The tables of VMSAv8-64 are not supported (`IDR0.TTF`).
    #[error("no VMSAv8-64 translation tables")]
    TableFormat,
    /// Tables must be big-endian (`IDR0.TTENDIAN`).
    #[error("big-endian translation tables only")]
    BigEndian,
    /// Neither stage is there.
    #[error("neither stage of translation")]
    NoStage,
    /// Accesses of the SMMU miss the caches (`IDR0.COHACC`): memory here is coherent.
    #[error("accesses to tables and queues are not coherent")]
    NotCoherent,
    /// Faulting transactions always stall (`IDR0.STALL_MODEL`): nobody would resume them.
    #[error("faulting transactions always stall")]
    StallOnly,
    /// The places of tables or queues are fixed (`IDR1.{TABLES,QUEUES}_PRESET`).
    #[error("tables or queues at preset addresses")]
    Preset,
    /// No granule is supported (`IDR5`).
    #[error("no translation granule")]
    NoGranule,
    /// The Command queue has no room for a command and a `CMD_SYNC` (`IDR1.CMDQS`).
    #[error("a Command queue of one entry")]
    CommandQueue,
}

impl Features {
    /// Reads the ID registers.
    pub fn probe(registers: &impl Registers) -> Result<Self, ProbeError> {
        let aidr = read(registers, Register::Aidr);
        if Aidr(aidr).major() != 0 || aidr >> 8 != 0 {
            return Err(ProbeError::Version(aidr));
        }
        let idr = [
            Register::Idr0,
            Register::Idr1,
            Register::Idr2,
            Register::Idr3,
            Register::Idr4,
            Register::Idr5,
        ]
        .map(|register| read(registers, register));
        let (idr0, idr1, idr3, idr5) = (Idr0(idr[0]), Idr1(idr[1]), Idr3(idr[3]), Idr5(idr[5]));
        check(idr0, idr1, idr5)?;
        Ok(Self {
            minor: Aidr(aidr).minor(),
            stage1: idr0.s1p(),
            stage2: idr0.s2p(),
            hyp: idr0.hyp(),
            broadcast: idr0.btm(),
            httu: match idr0.httu() {
                0b00 => Httu::None,
                0b01 => Httu::Access,
                _ => Httu::Dirty,
            },
            asid_bits: if idr0.asid16() { 16 } else { 8 },
            vmid_bits: if idr0.vmid16() { 16 } else { 8 },
            two_level_streams: idr0.st_level() == 1,
            two_level_cds: idr0.cd2l(),
            sid_bits: idr1.sid_size(),
            ssid_bits: idr1.ssid_size(),
            cmdq_log2: idr1.cmdqs(),
            eventq_log2: idr1.eventqs(),
            ats: idr0.ats(),
            pri: idr0.pri(),
            priq_log2: idr1.priqs(),
            stalls: idr0.stall_model() == 0b00,
            range_invalidation: idr3.ril(),
            wide_ranges: idr5.ds(),
            granule_4k: idr5.gran4k(),
            granule_16k: idr5.gran16k(),
            granule_64k: idr5.gran64k(),
            // 56 bits come with 128-bit descriptors only.
            output_bits: address_bits(idr5.oas()).min(52) as u8,
            virtual_bits: if idr5.vax() == 0 { 48 } else { 52 },
            idr,
            iidr: read(registers, Register::Iidr),
            aidr,
        })
    }

    /// Both stages are there, one over the other.
    pub fn nests(&self) -> bool {
        self.stage1 && self.stage2
    }

    /// The smallest granule: it gives the finest mappings.
    pub fn granule(&self) -> Granule {
        match self {
            Self { granule_4k: true, .. } => Granule::K4,
            Self { granule_16k: true, .. } => Granule::K16,
            _ => Granule::K64,
        }
    }
}

fn check(idr0: Idr0, idr1: Idr1, idr5: Idr5) -> Result<(), ProbeError> {
    let reserved = [
        (idr0.ttendian() == 0b01, "IDR0.TTENDIAN"),
        (idr0.stall_model() == 0b11, "IDR0.STALL_MODEL"),
        (idr0.st_level() > 1, "IDR0.ST_LEVEL"),
        (idr1.sid_size() > 32, "IDR1.SIDSIZE"),
        (idr1.ssid_size() > 20, "IDR1.SSIDSIZE"),
        (idr1.cmdqs() > 19, "IDR1.CMDQS"),
        (idr1.eventqs() > 19, "IDR1.EVENTQS"),
        (idr1.priqs() > 19, "IDR1.PRIQS"),
    ];
    if let Some((_, field)) = reserved.iter().find(|(reserved, _)| *reserved) {
        return Err(ProbeError::Reserved(field));
    }
    let rules = [
        (idr0.ttf() & 0b10 != 0, ProbeError::TableFormat),
        (idr0.ttendian() != 0b11, ProbeError::BigEndian),
        (idr0.s1p() || idr0.s2p(), ProbeError::NoStage),
        (idr0.cohacc(), ProbeError::NotCoherent),
        (idr0.stall_model() != 0b10, ProbeError::StallOnly),
        (!idr1.tables_preset() && !idr1.queues_preset(), ProbeError::Preset),
        (idr5.gran4k() || idr5.gran16k() || idr5.gran64k(), ProbeError::NoGranule),
        (idr1.cmdqs() > 0, ProbeError::CommandQueue),
    ];
    rules.into_iter().find(|(holds, _)| !holds).map_or(Ok(()), |(_, error)| Err(error))
}
