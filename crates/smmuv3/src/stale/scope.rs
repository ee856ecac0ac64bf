//! What must be invalidated: which commands do it, and why another does not.

use crate::cache::generation::StreamWorld;
use crate::wire::{Command, TlbiVa};

/// An address space, as commands name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tag {
    pub(super) world: StreamWorld,
    pub(super) vmid: u16,
    pub(super) asid: u16,
}

/// Something that a cache holds and memory contradicts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// An STE; unless `leaf`, the descriptor that leads to it.
    Ste { sid: u32, leaf: bool },
    /// A CD; unless `leaf`, the descriptor that leads to it.
    Cd { sid: u32, ssid: u32, leaf: bool },
    /// The stage 1 translation of the `1 << size` bytes around an address; unless `leaf`, the tables on the way there.
    Va { tag: Tag, address: u64, size: u32, leaf: bool },
    /// All stage 1 translations of an address space, one of which is that of `address`.
    Asid { tag: Tag, address: u64 },
    /// The stage 2 translation of the `1 << size` bytes around an IPA, and, with `combined`, what both stages made of it
    /// for `address`.
    Ipa { tag: Tag, ipa: u64, size: u32, leaf: bool, combined: bool, address: u64 },
    /// Both stages of a VM.
    Vm { tag: Tag, combined: bool, address: u64 },
    /// What a device's own cache holds for the `1 << size` bytes around an address.
    Atc { sid: u32, ssid: Option<u32>, address: u64, size: u32 },
}

/// What a command can invalidate of a [`Scope`].
pub(super) const STAGE1: u8 = 1;
pub(super) const STAGE2: u8 = 2;
pub(super) const ALL: u8 = 3;

impl Scope {
    /// What there is to be invalidated.
    pub(super) fn parts(&self) -> u8 {
        match self {
            Self::Ipa { combined: false, .. } | Self::Vm { combined: false, .. } => STAGE2,
            Self::Ipa { .. } | Self::Vm { .. } => ALL,
            _ => STAGE1,
        }
    }

    /// The commands that invalidate it, and no more than need be.
    pub(super) fn commands(&self) -> Vec<Command> {
        let va = |tag: Tag, address: u64, leaf| TlbiVa {
            vmid: tag.vmid,
            asid: tag.asid,
            address: address & !0xfff,
            leaf,
            ..TlbiVa::default()
        };
        match *self {
            Self::Ste { sid, leaf } => vec![Command::CfgiSte { sid, leaf, ssec: false }],
            Self::Cd { sid, ssid, leaf } => {
                vec![Command::CfgiCd { sid, ssid, leaf, ssec: false }]
            }
            Self::Va { tag, address, leaf, .. } => vec![match tag.world {
                StreamWorld::El1 => Command::TlbiNhVa(va(tag, address, leaf)),
                StreamWorld::El2 | StreamWorld::El2E2h => {
                    Command::TlbiEl2Va(TlbiVa { vmid: 0, ..va(tag, address, leaf) })
                }
            }],
            Self::Asid { tag, .. } => vec![match tag.world {
                StreamWorld::El1 => Command::TlbiNhAsid { vmid: tag.vmid, asid: tag.asid },
                StreamWorld::El2 => Command::TlbiEl2All,
                StreamWorld::El2E2h => Command::TlbiEl2Asid { asid: tag.asid },
            }],
            Self::Ipa { tag, ipa, leaf, combined, .. } => {
                let ipa = TlbiVa { vmid: tag.vmid, asid: 0, ..va(tag, ipa, leaf) };
                let mut commands = vec![Command::TlbiS2Ipa(ipa)];
                if combined {
                    commands.push(Command::TlbiNhAll { vmid: tag.vmid });
                }
                commands
            }
            Self::Vm { tag, .. } => vec![Command::TlbiS12Vmall { vmid: tag.vmid }],
            Self::Atc { sid, ssid, address, size } => {
                let size = size.saturating_sub(12).min(52);
                vec![Command::AtcInv {
                    sid,
                    ssid,
                    global: false,
                    size: size as u8,
                    addr: address >> (12 + size) << (12 + size),
                }]
            }
        }
    }

    /// Which [parts](Self::parts) a command invalidates. Where in doubt, all: then nothing is claimed to be missing.
    pub(super) fn covered_by(&self, command: &Command) -> u8 {
        match (*self, *command) {
            (
                Self::Ste { sid, .. } | Self::Cd { sid, .. },
                Command::CfgiSteRange { sid: first, range, .. },
            ) => {
                let log2 = u32::from(range) + 1;
                part(u64::from(sid) >> log2 == u64::from(first) >> log2)
            }
            (Self::Ste { sid, leaf }, Command::CfgiSte { sid: named, leaf: only_leaf, .. }) => {
                part(sid == named && (leaf || !only_leaf))
            }
            // The CDs of an STE go with it.
            (
                Self::Cd { sid, .. },
                Command::CfgiSte { sid: named, .. } | Command::CfgiCdAll { sid: named, .. },
            ) => part(sid == named),
            (
                Self::Cd { sid, ssid, leaf },
                Command::CfgiCd { sid: named, ssid: named_ssid, leaf: only_leaf, .. },
            ) => part(sid == named && ssid == named_ssid && (leaf || !only_leaf)),
            (Self::Va { .. } | Self::Asid { .. } | Self::Ipa { .. } | Self::Vm { .. }, _) => {
                self.covered_by_tlbi(command)
            }
            (
                Self::Atc { sid, ssid, address, size },
                Command::AtcInv { sid: named, ssid: named_ssid, global, size: log2, addr },
            ) => {
                let pasid = of_pasid(ssid, named_ssid, global);
                let log2 = u32::from(log2).min(52);
                let range = log2 >= 52 || {
                    let log2 = (12 + log2).max(size);
                    address >> log2 == addr >> log2
                };
                part(sid == named && pasid && range)
            }
            _ => 0,
        }
    }

    fn covered_by_tlbi(&self, command: &Command) -> u8 {
        let (tag, address, size, leaf) = match *self {
            Self::Va { tag, address, size, leaf } => (tag, address, size, leaf),
            Self::Asid { tag, address }
            | Self::Vm { tag, address, .. }
            | Self::Ipa { tag, address, .. } => (tag, address, 12, true),
            _ => return 0,
        };
        let el1 = tag.world == StreamWorld::El1;
        let here = |va: &TlbiVa| reaches(va, address, size) && (leaf || !va.leaf);
        let of_vm = |vmid| el1 && vmid == tag.vmid;
        let covered = match *command {
            Command::TlbiNsnhAll if el1 => return ALL,
            Command::TlbiS12Vmall { vmid } if of_vm(vmid) => return ALL,
            Command::TlbiNhAll { vmid } => of_vm(vmid),
            Command::TlbiNhAsid { vmid, asid } => of_vm(vmid) && asid == tag.asid,
            Command::TlbiNhVa(va) => of_vm(va.vmid) && va.asid == tag.asid && here(&va),
            Command::TlbiNhVaa(va) => of_vm(va.vmid) && here(&va),
            Command::TlbiEl2All => !el1,
            Command::TlbiEl2Asid { asid } => !el1 && asid == tag.asid,
            Command::TlbiEl2Va(va) => {
                !el1 && (tag.world == StreamWorld::El2 || va.asid == tag.asid) && here(&va)
            }
            Command::TlbiEl2Vaa(va) => !el1 && here(&va),
            Command::TlbiS2Ipa(va) => {
                let covers = match *self {
                    Self::Ipa { ipa, size, leaf, .. } => {
                        reaches(&va, ipa, size) && (leaf || !va.leaf)
                    }
                    Self::Vm { .. } => true,
                    _ => false,
                };
                return if covers && of_vm(va.vmid) { STAGE2 } else { 0 };
            }
            _ => false,
        };
        if covered { STAGE1 } else { 0 }
    }

    /// Why a command of the right kind does not invalidate it, or not all of it. `None` if it does, or if it is of
    /// another kind altogether.
    pub(super) fn missed_by(&self, command: &Command) -> Option<String> {
        let parts = self.covered_by(command) & self.parts();
        if parts == self.parts() {
            return None;
        }
        if parts == STAGE2 {
            return Some("covers the stage 2 translation, not what both stages made of it".into());
        }
        if parts == STAGE1 {
            return Some("covers what both stages made of it, not the stage 2 translation".into());
        }
        let other = |what: &str, is: u64, wanted: u64| {
            (is != wanted).then(|| format!("its {what} is {is:#x}, not {wanted:#x}"))
        };
        let leaf_only = |only: bool, leaf: bool| {
            (only && !leaf).then(|| "with Leaf it keeps what leads there".to_string())
        };
        match (*self, *command) {
            (Self::Ste { sid, leaf }, Command::CfgiSte { sid: named, leaf: only, .. }) => {
                other("StreamID", named.into(), sid.into()).or_else(|| leaf_only(only, leaf))
            }
            (Self::Ste { .. }, Command::CfgiCd { .. } | Command::CfgiCdAll { .. }) => {
                Some("covers CDs, not the STE".into())
            }
            (Self::Ste { sid, .. } | Self::Cd { sid, .. }, Command::CfgiSteRange { .. }) => {
                Some(format!("its range does not hold stream {sid:#x}"))
            }
            (
                Self::Cd { sid, ssid, leaf },
                Command::CfgiCd { sid: named, ssid: named_ssid, leaf: only, .. },
            ) => other("StreamID", named.into(), sid.into())
                .or_else(|| other("SubstreamID", named_ssid.into(), ssid.into()))
                .or_else(|| leaf_only(only, leaf)),
            (
                Self::Cd { sid, .. },
                Command::CfgiCdAll { sid: named, .. } | Command::CfgiSte { sid: named, .. },
            ) => other("StreamID", named.into(), sid.into()),
            (
                Self::Va { tag, address, leaf, .. },
                Command::TlbiNhVa(va) | Command::TlbiEl2Va(va),
            ) => other("VMID", va.vmid.into(), tag.vmid.into())
                .or_else(|| other("ASID", va.asid.into(), tag.asid.into()))
                .or_else(|| elsewhere(&va, address))
                .or_else(|| leaf_only(va.leaf, leaf)),
            (
                Self::Va { tag, address, leaf, .. },
                Command::TlbiNhVaa(va) | Command::TlbiEl2Vaa(va),
            ) => other("VMID", va.vmid.into(), tag.vmid.into())
                .or_else(|| elsewhere(&va, address))
                .or_else(|| leaf_only(va.leaf, leaf)),
            (Self::Va { tag, .. } | Self::Asid { tag, .. }, Command::TlbiNhAsid { vmid, asid }) => {
                other("VMID", vmid.into(), tag.vmid.into())
                    .or_else(|| other("ASID", asid.into(), tag.asid.into()))
            }
            (
                Self::Va { tag, .. }
                | Self::Asid { tag, .. }
                | Self::Ipa { tag, .. }
                | Self::Vm { tag, .. },
                Command::TlbiNhAll { vmid } | Command::TlbiS12Vmall { vmid },
            ) => other("VMID", vmid.into(), tag.vmid.into()),
            (Self::Ipa { tag, ipa, leaf, .. }, Command::TlbiS2Ipa(va)) => {
                other("VMID", va.vmid.into(), tag.vmid.into())
                    .or_else(|| elsewhere(&va, ipa))
                    .or_else(|| leaf_only(va.leaf, leaf))
            }
            (
                Self::Atc { sid, ssid, .. },
                Command::AtcInv { sid: named, ssid: named_ssid, global, .. },
            ) => other("StreamID", named.into(), sid.into()).or_else(|| {
                Some(match (of_pasid(ssid, named_ssid, global), ssid) {
                    (true, _) => "covers other addresses".into(),
                    (false, Some(ssid)) => format!("it is not for SubstreamID {ssid:#x}"),
                    (false, None) => "it is for a SubstreamID, this has none".into(),
                })
            }),
            _ => None,
        }
    }
}

fn part(covered: bool) -> u8 {
    if covered { ALL } else { 0 }
}

/// Whether a `CMD_ATC_INV` for `named` is for what a device was told for `ssid`. An Invalidate Request without a PASID is for
/// all address spaces of the function (PCIe 6.0 §10.3.8).
fn of_pasid(ssid: Option<u32>, named: Option<u32>, global: bool) -> bool {
    named.is_none() || named == ssid || global
}

fn elsewhere(va: &TlbiVa, address: u64) -> Option<String> {
    (!reaches(va, address, 12))
        .then(|| format!("covers other addresses than {:#x}", address & !0xfff))
}

/// Whether an invalidation by address names one of the `1 << size` bytes around `address`. Sizes that the
/// architecture leaves open count as the largest.
fn reaches(va: &TlbiVa, address: u64, size: u32) -> bool {
    // Commands have no sign where the top byte is ignored.
    let strip = |address: u64| address << 8 >> 8;
    let mask = u64::MAX.checked_shl(size).unwrap_or(0);
    let (first, last) = (strip(address) & mask, strip(address) | !mask & u64::MAX >> 8);
    let from = strip(va.address);
    let bytes = if va.tg == 0 {
        1
    } else {
        (u128::from(va.num) + 1) << (u32::from(va.scale) + 10 + 2 * u32::from(va.tg))
    };
    u128::from(from) <= u128::from(last) && u128::from(from) + bytes > u128::from(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TAG: Tag = Tag { world: StreamWorld::El1, vmid: 5, asid: 7 };

    fn scopes() -> Vec<Scope> {
        let address = 0x4000_5000;
        let mut scopes = vec![
            Scope::Asid { tag: TAG, address },
            Scope::Vm { tag: TAG, combined: true, address },
            Scope::Vm { tag: TAG, combined: false, address },
            Scope::Atc { sid: 3, ssid: Some(9), address, size: 12 },
            Scope::Atc { sid: 3, ssid: None, address, size: 21 },
        ];
        for leaf in [false, true] {
            scopes.push(Scope::Ste { sid: 3, leaf });
            scopes.push(Scope::Cd { sid: 3, ssid: 9, leaf });
            for world in [StreamWorld::El1, StreamWorld::El2, StreamWorld::El2E2h] {
                scopes.push(Scope::Va { tag: Tag { world, ..TAG }, address, size: 12, leaf });
                scopes.push(Scope::Asid { tag: Tag { world, ..TAG }, address });
            }
            for combined in [false, true] {
                scopes.push(Scope::Ipa {
                    tag: TAG,
                    ipa: 0x8000,
                    size: 12,
                    leaf,
                    combined,
                    address,
                });
            }
        }
        scopes
    }

    #[test]
    fn the_commands_that_are_asked_for_suffice() {
        for scope in scopes() {
            let covered = scope
                .commands()
                .iter()
                .fold(0, |covered, command| covered | scope.covered_by(command));
            assert_eq!(covered & scope.parts(), scope.parts(), "{scope:?}");
        }
    }

    #[test]
    fn each_of_them_is_needed_and_no_stranger_does() {
        for scope in scopes() {
            let commands = scope.commands();
            if let [first, _] = commands[..] {
                assert_ne!(scope.covered_by(&first) & scope.parts(), scope.parts());
                assert!(scope.missed_by(&first).is_some());
            }
            for stranger in [
                Command::TlbiNhVa(TlbiVa {
                    vmid: 5,
                    asid: 8,
                    address: 0x4000_5000,
                    ..TlbiVa::default()
                }),
                Command::TlbiNhVa(TlbiVa {
                    vmid: 5,
                    asid: 7,
                    address: 0x4000_6000,
                    ..TlbiVa::default()
                }),
                Command::TlbiS12Vmall { vmid: 6 },
                Command::TlbiNhAll { vmid: 6 },
                Command::CfgiSte { sid: 4, leaf: false, ssec: false },
                Command::CfgiCd { sid: 3, ssid: 8, leaf: false, ssec: false },
                Command::AtcInv { sid: 3, ssid: Some(8), global: false, size: 52, addr: 0 },
            ] {
                assert_eq!(scope.covered_by(&stranger), 0, "{scope:?} {stranger}");
            }
        }
    }

    #[test]
    fn ranges_reach_to_their_last_byte() {
        let va = TlbiVa { address: 0x10_0000, tg: 1, num: 3, scale: 1, ..TlbiVa::default() };
        assert!(reaches(&va, 0x10_7fff, 12));
        assert!(!reaches(&va, 0x10_8000, 12));
        assert!(!reaches(&va, 0xf_f000, 12));
        assert!(reaches(&va, 0xf_f000, 21), "a block of which the range names a part");
        let high = TlbiVa { address: 0xffff_ffff_ffff_f000, ..TlbiVa::default() };
        assert!(reaches(&high, 0xffff_ffff_ffff_f000, 12));
    }
}
