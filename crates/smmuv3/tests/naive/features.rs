//! What the ID registers say, and the choices that IHI 0070 leaves to an implementation.

use super::{bit, bits};

/// IDR0, IDR1, IDR3, IDR5 and AIDR, field by field, with the specification's names.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Features {
    pub s1p: bool,
    pub s2p: bool,
    pub httu: u64,
    pub hyp: bool,
    pub ats: bool,
    pub ns1ats: bool,
    pub atsrecerr: bool,
    pub asid16: bool,
    pub vmid16: bool,
    pub cd2l: bool,
    pub stall_model: u64,
    pub term_model: bool,
    pub two_level: bool,
    pub sidsize: u64,
    pub ssidsize: u64,
    pub attr_types_ovr: bool,
    pub attr_perms_ovr: bool,
    pub had: bool,
    pub xnx: bool,
    pub fwb: bool,
    pub stt: bool,
    pub ril: bool,
    pub e0pd: bool,
    pub oas: u64,
    pub gran4k: bool,
    pub gran16k: bool,
    pub gran64k: bool,
    pub ds: bool,
    pub vax: u64,
    /// SMMUv3.`minor`.
    pub minor: u64,
}

impl Features {
    pub(crate) fn from_registers(idr0: u32, idr1: u32, idr3: u32, idr5: u32, aidr: u32) -> Self {
        let [idr0, idr1, idr3, idr5, aidr] = [idr0, idr1, idr3, idr5, aidr].map(u64::from);
        // Little-endian VMSAv8-64 tables and nothing else.
        assert_eq!((bits(idr0, 3, 2), bits(idr0, 22, 21)), (0b10, 0b10));
        Self {
            s2p: bit(idr0, 0),
            s1p: bit(idr0, 1),
            httu: bits(idr0, 7, 6),
            hyp: bit(idr0, 9),
            ats: bit(idr0, 10),
            ns1ats: bit(idr0, 11),
            atsrecerr: bit(idr0, 23),
            asid16: bit(idr0, 12),
            vmid16: bit(idr0, 18),
            cd2l: bit(idr0, 19),
            stall_model: bits(idr0, 25, 24),
            term_model: bit(idr0, 26),
            two_level: bits(idr0, 28, 27) == 1,
            sidsize: bits(idr1, 5, 0),
            ssidsize: bits(idr1, 10, 6),
            attr_perms_ovr: bit(idr1, 26),
            attr_types_ovr: bit(idr1, 27),
            had: bit(idr3, 2),
            xnx: bit(idr3, 4),
            fwb: bit(idr3, 8),
            stt: bit(idr3, 9),
            ril: bit(idr3, 10),
            e0pd: bit(idr3, 13),
            oas: [32, 36, 40, 42, 44, 48, 52][bits(idr5, 2, 0) as usize],
            gran4k: bit(idr5, 4),
            gran16k: bit(idr5, 5),
            gran64k: bit(idr5, 6),
            ds: bit(idr5, 7),
            vax: bits(idr5, 11, 10),
            minor: bits(aidr, 3, 0),
        }
    }

    /// The size that a `PS` field (CD.IPS, STE.S2PS) selects, capped to the OAS.
    pub(crate) fn effective_ps(&self, ps: u64) -> u64 {
        let size = match ps {
            0 => 32,
            1 => 36,
            2 => 40,
            3 => 42,
            4 => 44,
            5 => 48,
            _ if self.minor == 0 => 48,
            _ => 52,
        };
        size.min(self.oas)
    }

    /// Without VMSAv8-32 LPAE the IAS is the OAS (§3.4).
    pub(crate) fn ias(&self) -> u64 {
        self.oas
    }

    /// Whether a granule, as log2 of its size, is implemented.
    pub(crate) fn granule_supported(&self, granule: u64) -> bool {
        match granule {
            12 => self.gran4k,
            14 => self.gran16k,
            16 => self.gran64k,
            _ => false,
        }
    }
}
