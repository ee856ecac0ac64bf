//! What a guest may be promised: what the VMM wants, as far as the SMMUs of all assigned devices have it.

use smmuv3::wire::register::{Idr0, Idr1, Idr3, Idr5};
use smmuv3::{Httu, IdRegisters, Options, OptionsError, StallModel, Version};
use thiserror::Error;

/// `struct iommu_hw_info_arm_smmuv3`, as the host tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HwInfo {
    /// `enum iommu_hw_info_arm_smmuv3_flags`.
    pub flags: u32,
    /// `SMMU_IDR0` to `SMMU_IDR5`. Most of their bits are not for a VMM to look at.
    pub idr: [u32; 6],
    /// `SMMU_IIDR`.
    pub iidr: u32,
    /// `SMMU_AIDR`.
    pub aidr: u32,
}

impl HwInfo {
    /// `IOMMU_HW_INFO_ARM_SMMUV3_ERRATA_REPEAT_TLBI_CFGI`: invalidations have to be issued twice.
    pub const REPEAT_TLBI_CFGI: u32 = 1 << 0;

    /// Whether the SMMU has the erratum.
    pub fn repeats_invalidations(&self) -> bool {
        self.flags & Self::REPEAT_TLBI_CFGI != 0
    }

    /// The fields that the uAPI lets a VMM look at; the others are zero.
    fn visible(&self) -> IdRegisters {
        let [idr0, idr1, _, idr3, _, idr5] = self.idr;
        let (idr0, idr1, idr3, idr5) = (Idr0(idr0), Idr1(idr1), Idr3(idr3), Idr5(idr5));
        IdRegisters {
            idr0: Idr0(0)
                .with_st_level(idr0.st_level())
                .with_term_model(idr0.term_model())
                .with_stall_model(idr0.stall_model())
                .with_ttendian(idr0.ttendian())
                .with_cd2l(idr0.cd2l())
                .with_asid16(idr0.asid16())
                .with_ttf(idr0.ttf())
                .0,
            idr1: Idr1(0).with_sid_size(idr1.sid_size()).with_ssid_size(idr1.ssid_size()).0,
            idr3: Idr3(0).with_bbml(idr3.bbml()).with_ril(idr3.ril()).0,
            idr5: Idr5(0)
                .with_vax(idr5.vax())
                .with_gran4k(idr5.gran4k())
                .with_gran16k(idr5.gran16k())
                .with_gran64k(idr5.gran64k())
                .with_ds(idr5.ds())
                .0,
            iidr: 0,
            aidr: 0,
        }
    }

    /// Whether a stream whose CD asks for stalls would stall, unless its STE forbids that.
    pub(crate) fn can_stall(&self) -> bool {
        Options::from_id_registers(&self.visible()).stall_model == StallModel::Both
    }
}

/// Why a device cannot be behind a vSMMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Incompatible {
    /// Nothing that a guest is shown could make this work.
    #[error("the host's SMMU {0}")]
    Host(&'static str),
    /// The guest has been promised a feature that this device's SMMU does not have.
    #[error("the guest was promised `{0}`, which the SMMU of this device does not have")]
    Promised(&'static str),
}

/// Collects what the devices have that are there from the start, and is then fixed.
///
/// Only fields are looked at that the uAPI lists; what depends on others is not promised (hardware updates, hierarchical
/// attributes on SMMUv3.0, E0PD and so on). `IDR1.SIDSIZE` and `IDR0.ST_LEVEL` do not limit the guest: its stream table
/// is read by the VMM only.
#[derive(Debug, Clone)]
pub struct Capabilities {
    options: Options,
}

impl Capabilities {
    /// Begins with what the VMM wants: any [`Options`], most of which will do.
    ///
    /// From `wanted` alone come `oas` (the guest's physical addresses), `sid_bits`, queue sizes, `ats` and `pri` (say yes
    /// if devices have it, and firmware tells), and what the model does by itself, as `msi`.
    pub fn new(wanted: Options) -> Self {
        Self { options: base(wanted) }
    }

    /// Restricts the promise to what the SMMU of a device has. For devices that are there before the guest.
    pub fn add(&mut self, host: &HwInfo) -> Result<(), Incompatible> {
        self.options = restricted(&self.options, host)?;
        Ok(())
    }

    /// The options for [`Smmu::new`](smmuv3::Smmu::new): from then on the promise is made, and devices that come later
    /// are held to it.
    pub fn freeze(self) -> Result<Options, OptionsError> {
        self.options.check()?;
        Ok(self.options)
    }

    /// Whether a device can be added to a vSMMU that has been made with `options`.
    pub fn validate(options: &Options, host: &HwInfo) -> Result<(), Incompatible> {
        let possible = restricted(options, host)?;
        let less = [
            ("cd2l", options.cd2l != possible.cd2l),
            ("asid16", options.asid16 != possible.asid16),
            ("abort_only", options.abort_only != possible.abort_only),
            ("stall_model", options.stall_model != possible.stall_model),
            ("ssid_bits", options.ssid_bits != possible.ssid_bits),
            ("bbml", options.bbml != possible.bbml),
            ("ril", options.ril != possible.ril),
            ("va52", options.va52 != possible.va52),
            ("gran4k", options.gran4k != possible.gran4k),
            ("gran16k", options.gran16k != possible.gran16k),
            ("gran64k", options.gran64k != possible.gran64k),
            ("ds", options.ds != possible.ds),
            ("version", options.version != possible.version),
        ];
        match less.iter().find(|(_, differs)| *differs) {
            Some((field, _)) => Err(Incompatible::Promised(field)),
            None if *options != possible => Err(Incompatible::Promised("a field beyond the uAPI")),
            None => Ok(()),
        }
    }
}

/// What a nested stage 1 can be at most, whatever the host is.
fn base(wanted: Options) -> Options {
    let version = wanted.version.min(Version::V3_2);
    Options {
        version,
        stage1: true,
        stage2: false,
        hyp: false,
        cohacc: true,
        httu: Httu::None,
        vmid16: false,
        // EATS is 0 or 1.
        ns1ats: wanted.ats,
        atsrecerr: false,
        // Stalls would have to come through the fault queue, which does not tell them from page requests.
        stall_model: StallModel::TerminateOnly,
        stall_max: 0,
        attr_types_ovr: false,
        attr_perms_ovr: false,
        xnx: false,
        fwb: false,
        stt: false,
        e0pd: false,
        ptwnnc: false,
        cd2l: wanted.cd2l && wanted.ssid_bits > 0,
        ..wanted
    }
}

/// What is left of `options` on `host`.
fn restricted(options: &Options, host: &HwInfo) -> Result<Options, Incompatible> {
    let seen = host.visible();
    let (idr0, idr3) = (Idr0(seen.idr0), Idr3(seen.idr3));
    // TTF: 0b10 or 0b11; TTENDIAN: 0b00 or 0b10.
    if idr0.ttf() & 0b10 == 0 {
        return Err(Incompatible::Host("does not have VMSAv8-64 tables (IDR0.TTF)"));
    }
    if !matches!(idr0.ttendian(), 0b00 | 0b10) {
        return Err(Incompatible::Host("does not have little-endian tables (IDR0.TTENDIAN)"));
    }
    let host = Options::from_id_registers(&seen);
    if host.stall_model == StallModel::StallOnly {
        return Err(Incompatible::Host("always stalls (IDR0.STALL_MODEL)"));
    }
    let options = base(options.clone());
    let ril = options.ril && idr3.ril() && idr3.bbml() > 0 && options.bbml > 0;
    let va52 = options.va52 && host.va52;
    // What no field tells follows from the architecture: RIL comes with 3.2, VAX with 3.1, HAD is in both.
    let version = match (ril, va52) {
        (true, _) => options.version.min(Version::V3_2),
        (_, true) => options.version.min(Version::V3_1),
        _ => Version::V3_0,
    };
    let modern = version >= Version::V3_1;
    let ril = ril && version >= Version::V3_2;
    let ssid_bits = options.ssid_bits.min(host.ssid_bits);
    let granules = [
        options.gran4k && host.gran4k,
        options.gran16k && host.gran16k,
        options.gran64k && host.gran64k,
    ];
    if granules == [false; 3] {
        return Err(Incompatible::Host("has none of the granules wanted (IDR5)"));
    }
    Ok(Options {
        version,
        cd2l: options.cd2l && host.cd2l && ssid_bits > 0,
        asid16: options.asid16 && host.asid16,
        abort_only: options.abort_only || host.abort_only,
        ssid_bits,
        had: options.had && modern,
        ril,
        bbml: if ril { options.bbml.min(idr3.bbml()) } else { 0 },
        va52: va52 && modern,
        ds: options.ds && host.ds && ril && (granules[0] || granules[1]),
        oas: if modern { options.oas } else { options.oas.min(48) },
        gran4k: granules[0],
        gran16k: granules[1],
        gran64k: granules[2],
        ..options
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Everything that the uAPI lists.
    fn full() -> HwInfo {
        HwInfo {
            flags: 0,
            idr: [
                Idr0(0).with_ttf(0b10).with_ttendian(0b10).with_cd2l(true).with_asid16(true).0,
                Idr1(0).with_ssid_size(20).with_sid_size(32).0,
                0,
                Idr3(0).with_ril(true).with_bbml(2).0,
                0,
                Idr5(0)
                    .with_gran4k(true)
                    .with_gran16k(true)
                    .with_gran64k(true)
                    .with_vax(1)
                    .with_ds(true)
                    .0,
            ],
            iidr: 0,
            aidr: 0,
        }
    }

    #[test]
    fn a_guest_gets_what_both_have() {
        let mut capabilities = Capabilities::new(Options::everything());
        capabilities.add(&full()).unwrap();
        let options = capabilities.clone().freeze().unwrap();
        assert!(options.ril && options.ds && options.va52 && options.cd2l && options.asid16);
        assert_eq!((options.ssid_bits, options.bbml, options.version), (20, 2, Version::V3_2));
        assert!(!options.stage2 && options.httu == Httu::None && !options.attr_types_ovr);
        // A second device behind a lesser SMMU.
        let mut lesser = full();
        lesser.idr[1] = Idr1(0).with_ssid_size(8).0;
        lesser.idr[5] = Idr5(0).with_gran4k(true).0;
        lesser.idr[3] = 0;
        capabilities.add(&lesser).unwrap();
        let both = capabilities.freeze().unwrap();
        assert_eq!((both.ssid_bits, both.version, both.gran64k), (8, Version::V3_0, false));
        // After that it is too late to promise less.
        assert_eq!(Capabilities::validate(&both, &full()), Ok(()));
        let late = Capabilities::validate(&options, &lesser);
        assert_eq!(late, Err(Incompatible::Promised("ssid_bits")));
        lesser.idr[1] = full().idr[1];
        let late = Capabilities::validate(&options, &lesser).unwrap_err();
        assert!(late.to_string().contains("bbml"), "{late}");
    }

    #[test]
    fn some_hosts_will_not_do() {
        let refused = |change: &dyn Fn(&mut HwInfo)| {
            let mut host = full();
            change(&mut host);
            Capabilities::new(Options::everything()).add(&host).unwrap_err().to_string()
        };
        let idr0 = Idr0(full().idr[0]);
        assert!(refused(&|host| host.idr[0] = idr0.with_ttf(0b01).0).contains("TTF"));
        assert!(refused(&|host| host.idr[0] = idr0.with_ttendian(0b11).0).contains("TTENDIAN"));
        let stalls = idr0.with_stall_model(0b10).0;
        assert!(refused(&|host| host.idr[0] = stalls).contains("STALL_MODEL"));
        assert!(refused(&|host| host.idr[5] = 0).contains("granules"));
    }

    proptest! {
        /// Whatever hosts say, an SMMU can be made of it, it does not depend on what a VMM may not look at, and each of
        /// the hosts can be hot-plugged again.
        #[test]
        fn any_hosts_make_options(
            hosts in prop::collection::vec(prop::array::uniform6(any::<u32>()), 0..4),
            noise in prop::array::uniform6(any::<u32>()),
            preset in 0usize..5,
        ) {
            let wanted = [
                Options::everything(),
                Options::linux_host(),
                Options::mmu600(),
                Options::mmu700(),
                Options::minimal(),
            ][preset].clone();
            let visible: [u32; 6] = [
                0b11 << 27 | 1 << 26 | 0b11 << 24 | 0b11 << 21 | 1 << 19 | 1 << 12 | 0b11 << 2,
                0x7ff,
                0,
                0b111 << 10,
                0,
                0b1111 << 4 | 0b11 << 10,
            ];
            let mut capabilities = Capabilities::new(wanted.clone());
            let mut noisy = Capabilities::new(wanted);
            let mut accepted = Vec::new();
            for idr in hosts {
                let host = HwInfo { idr, ..HwInfo::default() };
                let mut other = host;
                for (word, mask) in visible.iter().enumerate() {
                    other.idr[word] ^= noise[word] & !mask;
                }
                let result = capabilities.add(&host);
                prop_assert_eq!(noisy.add(&other), result);
                if result.is_ok() {
                    accepted.push(host);
                }
            }
            let options = capabilities.freeze();
            prop_assert_eq!(noisy.freeze(), options.clone());
            let options = options.unwrap();
            for host in accepted {
                prop_assert_eq!(Capabilities::validate(&options, &host), Ok(()));
            }
        }
    }
}
