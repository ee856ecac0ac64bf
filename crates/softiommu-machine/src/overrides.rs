use serde::{Deserialize, Serialize};
use smmuv3::{Httu as HardwareUpdates, Options, StallModel};

use crate::Model;

/// Bits of StreamID of every SMMU: what a PCI segment needs.
const SID_BITS: u8 = 16;

/// What hardware updates in translation tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Httu {
    /// Nothing.
    None,
    /// The Access flag.
    Access,
    /// The Access flag and dirty state.
    Dirty,
}

/// What becomes of transactions that fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stall {
    /// As configured.
    Both,
    /// They terminate.
    Terminate,
}

macro_rules! overrides {
    ($($(#[$doc:meta])+ $field:ident: $ty:ty => $to:ident $(via $via:expr)?;)+) => {
        /// What of an SMMUv3 is different from its model: the fields of [`smmuv3::Options`] that a machine file can set.
        #[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
        #[serde(deny_unknown_fields, rename_all = "kebab-case")]
        pub struct Overrides {
            $(
                $(#[$doc])+
                #[serde(default, skip_serializing_if = "Option::is_none")]
                pub $field: Option<$ty>,
            )+
        }

        impl Overrides {
            /// Nothing is.
            pub fn is_empty(&self) -> bool {
                *self == Self::default()
            }

            fn apply(&self, options: &mut Options) {
                $(if let Some(value) = self.$field {
                    options.$to = overrides!(@ value $(, $via)?);
                })+
            }
        }
    };
    (@ $value:ident) => { $value };
    (@ $value:ident, $via:expr) => { $via($value) };
}

overrides! {
    /// Stage 1 is there.
    stage1: bool => stage1;
    /// Stage 2 is there.
    stage2: bool => stage2;
    /// PCIe address translation services.
    ats: bool => ats;
    /// PCIe page requests.
    pri: bool => pri;
    /// `"none"`, `"access"` or `"dirty"`.
    httu: Httu => httu via |httu| match httu {
        Httu::None => HardwareUpdates::None,
        Httu::Access => HardwareUpdates::Access,
        Httu::Dirty => HardwareUpdates::AccessDirty,
    };
    /// `"both"` or `"terminate"`.
    stall: Stall => stall_model via |stall| match stall {
        Stall::Both => StallModel::Both,
        Stall::Terminate => StallModel::TerminateOnly,
    };
    /// Invalidation of ranges.
    ril: bool => ril;
    /// 16-bit ASIDs, else 8.
    asid16: bool => asid16;
    /// 16-bit VMIDs, else 8.
    vmid16: bool => vmid16;
    /// Two-level CD tables.
    cd2l: bool => cd2l;
    /// Bits of physical address.
    oas: u8 => oas;
    /// Bits of SubstreamID, at most 20.
    ssid_bits: u8 => ssid_bits;
    /// log2 of the largest Command queue, in entries.
    cmdq_log2: u8 => cmdq_log2;
    /// log2 of the largest Event queue, in entries.
    eventq_log2: u8 => eventq_log2;
    /// Granule of 4 KiB.
    gran4k: bool => gran4k;
    /// Granule of 16 KiB.
    gran16k: bool => gran16k;
    /// Granule of 64 KiB.
    gran64k: bool => gran64k;
}

impl Model {
    /// The SMMUv3 that a model is, as far as this machine can have it; `None` if it is no SMMUv3.
    pub fn smmuv3(self, overrides: &Overrides) -> Option<Options> {
        let preset = match self {
            Self::Smmuv3 => Options::linux_host(),
            Self::Mmu600 => Options::mmu600(),
            Self::Mmu700 => Options::mmu700(),
            Self::Mock => return None,
        };
        // Physical addresses of the machine have 48 bits, in every granule.
        let mut options = Options { sid_bits: SID_BITS, oas: 48, ds: false, ..preset };
        overrides.apply(&mut options);
        // What follows from something that is not there, unless the file says otherwise.
        if !options.ats && overrides.pri.is_none() {
            options.pri = false;
        }
        if !options.pri {
            (options.priq_log2, options.pps) = (0, false);
        }
        if !options.ats {
            (options.ns1ats, options.atsrecerr) = (false, false);
        }
        if options.stall_model == StallModel::TerminateOnly {
            options.stall_max = 0;
        }
        if !options.stage1 {
            options.ssid_bits = overrides.ssid_bits.unwrap_or(0);
            options.cd2l = overrides.cd2l.unwrap_or(false);
            options.asid16 = overrides.asid16.unwrap_or(false);
            (options.hyp, options.had, options.e0pd) = (false, false, false);
        }
        if !options.stage2 {
            (options.fwb, options.xnx, options.ptwnnc) = (false, false, false);
            options.vmid16 = overrides.vmid16.unwrap_or(false);
        }
        Some(options)
    }
}
