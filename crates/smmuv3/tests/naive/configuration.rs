//! Stream table, STE and CD: finding them (§3.3.1, §5.1, §5.3) and judging them (§5.2.2, §5.4.2).

use super::features::Features;
use super::permissions::Regime;
use super::{Naive, Role, Words, bit, bits};

/// A structure of 512 bits, with bits numbered as in the specification's field lists.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Structure(pub [u64; 8]);

impl Structure {
    pub(crate) fn bits(&self, high: u32, low: u32) -> u64 {
        bits(self.0[low as usize / 64], high % 64, low % 64)
    }

    pub(crate) fn bit(&self, n: u32) -> bool {
        self.bits(n, n) == 1
    }

    /// An address field, its bits where they belong in an address.
    pub(crate) fn address(&self, high: u32, low: u32, lowest: u32) -> u64 {
        self.bits(high, low) << lowest
    }
}

/// TG0 and S2TG: log2 of the granule. 0 is the reserved encoding.
fn tg0(encoding: u64) -> u64 {
    [12, 16, 14, 0][encoding as usize]
}

/// TG1.
fn tg1(encoding: u64) -> u64 {
    [0, 14, 12, 16][encoding as usize]
}

/// What one STE says, as far as this SMMU understands it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ste {
    pub raw: Structure,
    pub config: u64,
    pub s1_fmt: u64,
    pub s1_context_ptr: u64,
    pub s1_cd_max: u64,
    pub s1_dss: u64,
    pub s1_stalld: bool,
    pub eats: u64,
    pub strw: u64,
    pub s2_fwb: bool,
    pub s2_vmid: u64,
    pub s2_t0sz: u64,
    pub s2_sl0: u64,
    pub s2_sl2: bool,
    pub s2_sh0: u64,
    pub s2_granule: u64,
    pub s2_ps: u64,
    pub s2_aa64: bool,
    pub s2_endi: bool,
    pub s2_affd: bool,
    pub s2_ptw: bool,
    pub s2_hd: bool,
    pub s2_ha: bool,
    pub s2_s: bool,
    pub s2_r: bool,
    pub s2_ds: bool,
    pub s2_ttb: u64,
}

impl Ste {
    pub(crate) fn decode(words: [u64; 8], features: &Features) -> Self {
        let raw = Structure(words);
        let s2_granule = tg0(raw.bits(175, 174));
        Self {
            raw,
            config: raw.bits(3, 1),
            s1_fmt: raw.bits(5, 4),
            s1_context_ptr: raw.address(55, 6, 6),
            s1_cd_max: raw.bits(63, 59),
            s1_dss: raw.bits(65, 64),
            s1_stalld: raw.bit(91),
            eats: raw.bits(93, 92),
            strw: raw.bits(95, 94),
            s2_fwb: features.fwb && raw.bit(89),
            s2_vmid: raw.bits(143, 128),
            s2_t0sz: raw.bits(165, 160),
            s2_sl0: raw.bits(167, 166),
            s2_sl2: features.ds && raw.bit(194),
            s2_sh0: raw.bits(173, 172),
            s2_granule,
            s2_ps: raw.bits(178, 176),
            s2_aa64: raw.bit(179),
            s2_endi: raw.bit(180),
            s2_affd: raw.bit(181),
            s2_ptw: raw.bit(182),
            s2_hd: raw.bit(183),
            s2_ha: raw.bit(184),
            s2_s: raw.bit(185),
            s2_r: raw.bit(186),
            // RES0 if S2TG selects 64KB or LPA2 is not there.
            s2_ds: features.ds && s2_granule != 16 && raw.bit(195),
            s2_ttb: if features.minor == 0 {
                raw.address(239, 196, 4)
            } else {
                raw.address(243, 196, 4)
            },
        }
    }

    pub(crate) fn stage1(&self) -> bool {
        self.config & 0b101 == 0b101
    }

    pub(crate) fn stage2(&self) -> bool {
        self.config & 0b110 == 0b110
    }

    /// What STEs of one VMID must have in common: S2FWB, S2VMID to S2HA without S2S and S2R, and
    /// S2SL0_2, S2DS and S2TTB (§5.2.1).
    pub(crate) fn stage2_fields(&self) -> [u64; 3] {
        let words = self.raw.0;
        [words[1] & 1 << 25, words[2] & !(0b11 << 57), words[3]]
    }

    /// `IgnoreSTESTRW()`.
    fn strw_ignored(&self, features: &Features) -> bool {
        !features.s1p || !features.hyp || self.stage2() || self.config == 0b100
    }

    /// The translation regime, from STRW and CR2.E2H.
    pub(crate) fn regime(&self, features: &Features, e2h: bool) -> Regime {
        if self.strw_ignored(features) || self.strw == 0b00 {
            Regime::El1
        } else if e2h {
            Regime::El2Host
        } else {
            Regime::El2
        }
    }

    /// `SteIllegal()` for a Non-secure STE.
    pub(crate) fn illegal(&self, f: &Features) -> bool {
        // From SMMUv3.1 on, a value out of range is always ILLEGAL; for SMMUv3.0 this is the choice made.
        let constr_unpred_s2t0sz_oor_illegal = true;
        let constr_unpred_eats_s2s = false;
        let strw_unused = self.strw_ignored(f);
        if !self.raw.bit(0) {
            return true;
        }
        if self.config & 0b100 == 0 {
            return false;
        }
        if self.stage1() && !f.s1p {
            return true;
        }
        if self.stage2() && !f.s2p {
            return true;
        }
        if f.ats && self.config & 0b011 != 0 {
            if self.eats == 0b10 && (self.config != 0b111 || self.s2_s || f.ns1ats) {
                return true;
            }
            if self.eats == 0b01 && self.s2_s && (self.stage2() || constr_unpred_eats_s2s) {
                return true;
            }
        }
        if !strw_unused && self.strw & 0b01 != 0 {
            return true;
        }
        if self.stage1() && self.stage1_illegal(f) {
            return true;
        }
        if self.stage2() {
            if self.s2_s && f.stall_model == 0b01 {
                return true;
            }
            if !self.s2_s && f.stall_model == 0b10 {
                return true;
            }
            if !self.s2_aa64 {
                return true;
            }
            if (self.s2_ha || self.s2_hd) && f.httu == 0 {
                return true;
            }
            if self.s2_hd && f.httu == 1 {
                return true;
            }
            if !f.granule_supported(self.s2_granule) {
                return true;
            }
            if self.s2_ttb_out_of_range(f) {
                return true;
            }
            if self.s2_t0sz_invalid(f) && constr_unpred_s2t0sz_oor_illegal {
                return true;
            }
            if self.walk_config_inconsistent(f) {
                return true;
            }
            if self.s2_endi {
                return true;
            }
        }
        // IgnoreSTES2VMID()
        let vmid_ignored = !f.s2p || self.config == 0b100 || (self.strw != 0b00 && !strw_unused);
        !vmid_ignored && !f.vmid16 && self.s2_vmid > 0xff
    }

    fn stage1_illegal(&self, f: &Features) -> bool {
        if self.s1_stalld && f.stall_model != 0b00 {
            return true;
        }
        if f.ssidsize != 0 && self.s1_cd_max > f.ssidsize {
            return true;
        }
        if f.ssidsize != 0
            && self.s1_cd_max != 0
            && !f.cd2l
            && (self.s1_fmt == 0b01 || self.s1_fmt == 0b10)
        {
            return true;
        }
        // §3.4.3 (1) and (2): of the choices that an IPA leaves, the ILLEGAL one.
        let size = if self.stage2() { f.ias() } else { f.oas };
        self.s1_context_ptr >> size != 0
    }

    fn s2_ttb_out_of_range(&self, f: &Features) -> bool {
        let small = self.s2_granule != 16 && !self.s2_ds;
        self.s2_ttb >> f.effective_ps(self.s2_ps) != 0 || small && self.s2_ttb >> 48 != 0
    }

    /// `STES2T0SZInvalid()`.
    fn s2_t0sz_invalid(&self, f: &Features) -> bool {
        let max = match (f.stt, self.s2_granule) {
            (true, 12 | 14) => 48,
            (true, _) => 47,
            (false, _) => 39,
        };
        let least = 64 - f.ias();
        let min = if f.minor == 0 {
            least
        } else if self.s2_granule == 16 || self.s2_ds {
            least.max(12)
        } else {
            least.max(16)
        };
        self.s2_t0sz < min || self.s2_t0sz > max
    }

    /// `STEWalkConfigInconsistentAA64()`: `AArch64.S2InvalidSL()` or `AArch64.S2InconsistentSL()`.
    fn walk_config_inconsistent(&self, f: &Features) -> bool {
        // SL2 counts with 4KB and DS only.
        let sl2 = self.s2_sl2 && self.s2_ds && self.s2_granule == 12;
        let invalid = match (self.s2_granule, sl2, self.s2_sl0) {
            (12, true, sl0) => sl0 != 0,
            (12, false, 0b10) => f.oas < 44,
            (12, false, 0b11) => !f.stt,
            (14, _, 0b11) => !self.s2_ds || f.oas < 52,
            (14, _, 0b10) => f.oas < 42,
            (16, _, 0b11) => true,
            (16, _, 0b10) => f.oas < 44,
            _ => false,
        };
        if invalid {
            return true;
        }
        let levels = 3 - self.s2_start_level();
        let stride = self.s2_granule as i64 - 3;
        let min = levels * stride + self.s2_granule as i64 + 1;
        let max = min + (stride - 1) + 4;
        let iasize = 64 - self.s2_t0sz as i64;
        iasize < min || iasize > max
    }

    /// `AArch64.S2StartLevel()`.
    pub(crate) fn s2_start_level(&self) -> i64 {
        let sl2 = self.s2_sl2 && self.s2_ds && self.s2_granule == 12;
        match (self.s2_granule, sl2, self.s2_sl0) {
            (12, true, _) => -1,
            (12, false, 0b00) => 2,
            (12, false, 0b01) => 1,
            (12, false, 0b10) => 0,
            (14 | 16, _, 0b10) => 1,
            (14, _, 0b11) => 0,
            (14 | 16, _, 0b01) => 2,
            _ => 3,
        }
    }
}

/// The half of a CD that is about one translation table base.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Half {
    pub tsz: u64,
    /// log2, 0 if reserved.
    pub granule: u64,
    pub sh: u64,
    pub epd: bool,
    pub ttb: u64,
    pub had: bool,
    pub e0pd: bool,
    pub tbi: bool,
    /// 52-bit descriptors: not with 64KB.
    pub ds: bool,
}

/// What one CD says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cd {
    pub raw: Structure,
    pub regime: Regime,
    pub halves: [Half; 2],
    pub ips: u64,
    pub affd: bool,
    pub wxn: bool,
    pub pan: bool,
    pub aa64: bool,
    pub hd: bool,
    pub ha: bool,
    pub s: bool,
    pub r: bool,
    pub a: bool,
    pub asid: u64,
    pub mair: u64,
}

impl Cd {
    pub(crate) fn decode(words: [u64; 8], features: &Features, regime: Regime) -> Self {
        let raw = Structure(words);
        let single = regime == Regime::El2;
        // In SMMUv3.0 addresses have 48 bits.
        let top = if features.minor == 0 { 4 } else { 0 };
        let ds = features.ds && raw.bit(186);
        let half = |tsz, granule, sh, epd: u32, ttb, had: u32, tbi: u32| Half {
            tsz,
            granule,
            sh,
            epd: raw.bit(epd),
            ttb,
            had: features.had && raw.bit(had),
            e0pd: features.e0pd && raw.bit(had + 1) && !single,
            tbi: raw.bit(tbi),
            ds: ds && granule != 16,
        };
        let mut halves = [
            half(
                raw.bits(5, 0),
                tg0(raw.bits(7, 6)),
                raw.bits(13, 12),
                14,
                raw.address(115 - top, 68, 4),
                65,
                38,
            ),
            half(
                raw.bits(21, 16),
                tg1(raw.bits(23, 22)),
                raw.bits(29, 28),
                30,
                raw.address(179 - top, 132, 4),
                129,
                39,
            ),
        ];
        if single {
            // EffectiveCDEPD0(), EffectiveCDEPD1(): EPDx are IGNORED, TTB1 is unreachable.
            halves[0].epd = false;
            halves[1].epd = true;
        }
        Self {
            raw,
            regime,
            halves,
            ips: raw.bits(34, 32),
            affd: raw.bit(35),
            wxn: raw.bit(36),
            pan: raw.bit(40) && !single,
            aa64: raw.bit(41),
            hd: raw.bit(42),
            ha: raw.bit(43),
            s: raw.bit(44),
            r: raw.bit(45),
            a: raw.bit(46),
            asid: raw.bits(63, 48),
            mair: raw.0[3],
        }
    }

    /// `CdIllegal()` for a Non-secure stream.
    pub(crate) fn illegal(&self, f: &Features, ste: &Ste) -> bool {
        if !self.raw.bit(31) {
            return true;
        }
        if ste.s1_stalld && self.s {
            return true;
        }
        if f.term_model && !self.a {
            return true;
        }
        if f.stall_model == 0b01 && self.s {
            return true;
        }
        if f.stall_model == 0b10 && !self.s {
            return true;
        }
        let [walk0, walk1] = self.halves.map(|half| !half.epd);
        if (walk0 || walk1) && self.raw.bit(15) {
            return true;
        }
        if !self.aa64 {
            return true;
        }
        if (self.ha || self.hd) && f.httu == 0 || self.hd && f.httu == 1 {
            return true;
        }
        if self.regime != Regime::El2 && !f.asid16 && self.asid > 0xff {
            return true;
        }
        self.halves.iter().any(|half| {
            !half.epd
                && (half.tsz_invalid(f)
                    || !f.granule_supported(half.granule)
                    || half.ttb_out_of_range(f.effective_ps(self.ips)))
        })
    }
}

impl Cd {
    /// Which of TTB0 and TTB1 an input address selects (§3.4.1).
    pub(crate) fn half(&self, address: u64) -> usize {
        usize::from(self.regime.has_unprivileged() && bit(address, 55))
    }
}

impl Half {
    /// `CDTxSZInvalid()`. For SMMUv3.0 ILLEGAL is the choice made.
    fn tsz_invalid(&self, f: &Features) -> bool {
        let max = match (f.stt, self.granule) {
            (true, 12 | 14) => 48,
            (true, _) => 47,
            (false, _) => 39,
        };
        let min = if f.vax == 0b01 && (self.granule == 16 || self.ds) { 12 } else { 16 };
        self.tsz < min || self.tsz > max
    }

    fn ttb_out_of_range(&self, ips: u64) -> bool {
        let small = self.granule != 16 && !self.ds;
        self.ttb >> ips != 0 || small && self.ttb >> 48 != 0
    }
}

/// Where the search for an STE ends.
pub(crate) enum Located {
    Ste([u64; 8]),
    OutOfRange,
    External(u64),
}

impl<M: Words> Naive<'_, M> {
    /// §3.3.1, §6.3.24, §6.3.25, §5.1.
    pub(crate) fn locate_ste(&self) -> Located {
        let cfg = self.registers.strtab_base_cfg;
        let sid = u64::from(self.incoming.stream);
        let two_level = self.features.two_level && bits(cfg, 17, 16) == 0b01;
        let log2size = bits(cfg, 5, 0);
        if sid >> log2size.min(self.features.sidsize) != 0 {
            return Located::OutOfRange;
        }
        let base = bits(self.registers.strtab_base, 55, 6) << 6;
        // Alignment goes by the literal LOG2SIZE.
        let align =
            |address: u64, lowest: u64| if lowest > 63 { 0 } else { address >> lowest << lowest };
        let at = if two_level {
            let split = match bits(cfg, 10, 6) {
                split @ (8 | 10) => split,
                _ => 6,
            };
            let base = align(base, (log2size + 3).saturating_sub(split).max(6));
            let at = base + (sid >> split) * 8;
            self.note(at, Role::L1Std);
            let Some(l1std) = self.fetch(at) else {
                return Located::External(at);
            };
            let span = bits(l1std, 4, 0);
            let index = sid & ((1 << split) - 1);
            if span == 0 || span > 11 || span > split + 1 || index >> (span - 1) != 0 {
                return Located::OutOfRange;
            }
            align(bits(l1std, 55, 6) << 6, 6 + span - 1) + index * 64
        } else {
            align(base, log2size + 6) + sid * 64
        };
        self.note(at, Role::Ste);
        match self.fetch_structure(at) {
            Some(words) => Located::Ste(words),
            None => Located::External(at),
        }
    }

    /// A load of the SMMU's own from a PA that may exceed the OAS: of the choices of §3.4.3 (5),
    /// the external abort.
    fn fetch(&self, address: u64) -> Option<u64> {
        if address >> self.features.oas != 0 { None } else { self.load(address) }
    }

    /// 64 bytes.
    pub(crate) fn fetch_structure(&self, address: u64) -> Option<[u64; 8]> {
        let mut words = [0; 8];
        for (n, word) in words.iter_mut().enumerate() {
            *word = self.fetch(address + n as u64 * 8)?;
        }
        Some(words)
    }

    /// Whether register CR2 selects the EL2&0 regime for STRW 0b10.
    pub(crate) fn e2h(&self) -> bool {
        self.features.hyp && bit(self.registers.cr2, 0)
    }
}
