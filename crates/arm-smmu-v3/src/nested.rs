//! Nested domains: what a guest's STE makes of a stage 2.

use std::sync::Arc;

use smmuv3::wire::Ste;

use crate::domain::Domain;
use crate::error::Error;
use crate::platform::{DmaMemory, Registers};
use crate::probe::Features;
use crate::viommu::Viommu;

/// What a guest has said of a stream in its STE, over the stage 2 of its vIOMMU.
///
/// It never changes: a guest that changes its STE gets another domain, which [replaces](crate::Stream::attach) this one.
pub struct Nested<R: Registers, M: DmaMemory> {
    viommu: Arc<Viommu<R, M>>,
    config: Config,
}

/// What a virtual STE asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Config {
    /// All aborts.
    Abort,
    /// Stage 2 alone.
    Bypass,
    /// The guest's stage 1 before stage 2: the STE has the guest's fields, and no others.
    Translate {
        /// The fields of stage 1 but EATS.
        stage1: Ste,
        /// EATS: the guest wants ATS.
        ats: bool,
    },
}

/// The fields that are the guest's: `linux/iommufd.h`, `struct iommu_hwpt_arm_smmuv3`.
fn allowed() -> Ste {
    let all = Ste([!0; 8]);
    let ste = Ste::default().with_v(true).with_config(all.config()).with_s1_fmt(all.s1_fmt());
    let ste = ste.with_s1_context_ptr(all.s1_context_ptr()).with_s1_cd_max(all.s1_cd_max());
    let ste = ste.with_s1_dss(all.s1_dss()).with_s1_cir(all.s1_cir()).with_s1_cor(all.s1_cor());
    ste.with_s1_csh(all.s1_csh()).with_s1_stalld(true).with_eats(all.eats())
}

impl Config {
    /// Judges the first two words of a guest's STE. What passes is legal for this SMMU, so whatever is wrong with a
    /// stream's STE later is the host's fault.
    pub(crate) fn new(words: [u64; 2], features: &Features) -> Result<Self, Error> {
        let mut ste = Ste::default();
        ste.0[..2].copy_from_slice(&words);
        if !ste.v() {
            return Ok(Self::Abort);
        }
        let refused = |reason| Err(Error::VirtualSte(reason));
        if ste.0.iter().zip(allowed().0).any(|(word, allowed)| word & !allowed != 0) {
            return refused("a field that is not the guest's");
        }
        if ste.eats() > 0b01 {
            return refused("EATS is neither 0 nor full ATS");
        }
        match ste.config() {
            0b000 => return Ok(Self::Abort),
            0b100 => return Ok(Self::Bypass),
            0b101 => {}
            _ => return refused("Config is none of abort, bypass and stage 1"),
        }
        let two_levels = ste.s1_cd_max() > 0 && matches!(ste.s1_fmt(), 0b01 | 0b10);
        if ste.s1_cd_max() > features.ssid_bits {
            return refused("S1CDMax is more than the SMMU has bits of SubstreamID");
        }
        if two_levels && !features.two_level_cds {
            return refused("S1Fmt is two levels, which the SMMU does not have");
        }
        if ste.s1_context_ptr() >> features.output_bits != 0 {
            return refused("S1ContextPtr is beyond the SMMU's addresses");
        }
        if ste.s1_stalld() && !features.stalls {
            return refused("S1STALLD without the Stall model");
        }
        Ok(Self::Translate { stage1: ste.with_eats(0), ats: ste.eats() == 0b01 })
    }
}

impl<R: Registers, M: DmaMemory> Nested<R, M> {
    /// A domain for what the first two words of a guest's STE say. Fields that are not the guest's, and values that the
    /// SMMU does not have, are [`Error::VirtualSte`]; an STE that is not valid aborts.
    pub fn new(viommu: &Arc<Viommu<R, M>>, ste: [u64; 2]) -> Result<Arc<Self>, Error> {
        let config = Config::new(ste, viommu.parent().smmu().features())?;
        Ok(Arc::new(Self { viommu: viommu.clone(), config }))
    }

    /// The vIOMMU that it belongs to.
    pub fn viommu(&self) -> &Arc<Viommu<R, M>> {
        &self.viommu
    }

    pub(crate) fn parent(&self) -> &Arc<Domain<R, M>> {
        self.viommu.parent()
    }

    /// The guest's stage 1 is in use.
    pub(crate) fn translates(&self) -> bool {
        matches!(self.config, Config::Translate { .. })
    }

    /// The guest's STE allows ATS.
    pub(crate) fn wants_ats(&self) -> bool {
        matches!(self.config, Config::Translate { ats: true, .. })
    }

    /// The STE, from one that has what is the same for all; `None` if it aborts. With `stalls`, the stream may stall
    /// if the guest wants it to.
    pub(crate) fn ste(&self, base: Ste, stalls: bool) -> Option<Ste> {
        // The guest decides how many events there are; merged, they fill the queue that all share less quickly.
        let base = base.with_mev(true);
        match self.config {
            Config::Abort => None,
            Config::Bypass => self.parent().stage2(base.with_config(0b110)),
            Config::Translate { stage1, .. } => {
                let mut ste = self.parent().stage2(base)?;
                for (word, guest) in ste.0.iter_mut().zip(stage1.0) {
                    *word |= guest;
                }
                // Transactions that stall take places that others need.
                let features = self.parent().smmu().features();
                let stalld = ste.s1_stalld() || features.stalls && !stalls;
                Some(ste.with_config(0b111).with_s1_stalld(stalld))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;

    use super::*;
    use crate::common::machine;

    fn features(options: smmuv3::Options) -> Features {
        Features::probe(&machine(options).0).unwrap()
    }

    #[test]
    fn the_fields_are_those_of_the_header() {
        // V, Config, S1Fmt, S1ContextPtr, S1CDMax; S1DSS, S1CIR, S1COR, S1CSH, S1STALLD, EATS.
        let [first, second, rest @ ..] = allowed().0;
        assert_eq!(first, 0xf8ff_ffff_ffff_ffff);
        assert_eq!(second, 0x3800_00ff);
        assert_eq!(rest, [0; 6]);
    }

    #[test]
    fn what_the_smmu_lacks_is_refused() {
        let everything = features(smmuv3::Options::everything());
        let minimal = features(smmuv3::Options::minimal());
        let stage1 = Ste::default().with_v(true).with_config(0b101);
        for (ste, features, good) in [
            (stage1.with_s1_cd_max(20).with_s1_fmt(1), &everything, true),
            (stage1.with_s1_cd_max(21), &everything, false),
            (stage1.with_s1_cd_max(1), &minimal, false),
            (stage1.with_s1_stalld(true), &everything, true),
            (stage1.with_s1_stalld(true), &minimal, false),
            (stage1.with_s1_context_ptr(1 << 40), &minimal, false),
            (stage1.with_s1_context_ptr(1 << 39), &minimal, true),
            (stage1.with_eats(1), &minimal, true),
            (stage1.with_eats(2), &everything, false),
            (stage1.with_s1_fmt(1), &minimal, true),
        ] {
            let result = Config::new([ste.0[0], ste.0[1]], features);
            assert_eq!(result.is_ok(), good, "{ste:x?}: {result:?}");
        }
    }

    static EVERYTHING: LazyLock<Features> =
        LazyLock::new(|| features(smmuv3::Options::everything()));

    proptest! {
        #[test]
        fn what_passes_holds_nothing_but_the_guests_fields(words in any::<[u64; 2]>()) {
            match Config::new(words, &EVERYTHING) {
                Ok(Config::Translate { stage1, .. }) => {
                    prop_assert_eq!(stage1.0[0], words[0]);
                    prop_assert_eq!(&stage1.0[2..], &[0; 6]);
                    prop_assert_eq!(stage1.0[1] & !0x0800_00ff, 0);
                }
                Ok(Config::Bypass) => prop_assert_eq!(words[0] & 0xf, 0b1001),
                Ok(Config::Abort) => prop_assert!(words[0] & 0xf == 1 || words[0] & 1 == 0),
                Err(error) => prop_assert!(matches!(error, Error::VirtualSte(_))),
            }
        }
    }
}
