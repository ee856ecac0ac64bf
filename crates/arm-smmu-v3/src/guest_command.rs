//! Commands of a guest, and what the SMMU is given in their place.

use smmuv3::wire::{Command, TlbiVa};

use crate::probe::Features;

/// Bits `high` to `low` of a word.
const fn bits(high: u32, low: u32) -> u64 {
    (!0 >> (63 - high)) & (!0 << low)
}

const OPCODE: u64 = bits(7, 0);
const GLOBAL: u64 = bits(9, 9);
const SSV: u64 = bits(11, 11);
const SSID: u64 = bits(31, 12);
const SID: u64 = bits(63, 32);
const RANGE: u64 = bits(16, 12) | bits(25, 20);
const VMID: u64 = bits(47, 32);
const ASID: u64 = bits(63, 48);
const LEAF: u64 = bits(0, 0);
const ATC_SIZE: u64 = bits(5, 0);
const TTL_TG: u64 = bits(11, 8);
const ADDRESS: u64 = bits(63, 12);

/// The bits that may be set in a command of an opcode (IHI 0070 §4.3 to §4.5); `None` if it is not for guests. SSec is
/// none of them.
fn allowed(opcode: u8, features: &Features) -> Option<[u64; 2]> {
    let (range, hint) = if features.range_invalidation { (RANGE, TTL_TG) } else { (0, 0) };
    let [low, high] = match opcode {
        0x05 => [SSID | SID, LEAF],
        0x06 => [SID, 0],
        0x10 => [VMID, 0],
        0x11 => [VMID | ASID, 0],
        0x12 => [range | VMID | ASID, LEAF | hint | ADDRESS],
        0x13 => [range | VMID, LEAF | hint | ADDRESS],
        0x30 => [0, 0],
        0x40 => [GLOBAL | SSV | SSID | SID, ATC_SIZE | ADDRESS],
        _ => return None,
    };
    Some([OPCODE | low, high])
}

/// What the SMMU is to execute for a guest's command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rewritten {
    /// This command.
    Run(Command),
    /// Nothing: the device has no cache of its own.
    Nothing,
}

/// Who a virtual StreamID is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Physical {
    pub(crate) sid: u32,
    pub(crate) ats: bool,
}

/// The command for the SMMU: of the guest's VMID, with the StreamID that `stream` finds for the virtual one. The error
/// says what is wrong with it. What is returned is legal for the SMMU: a guest's mistake never stops the queue that all
/// share.
pub(crate) fn rewrite(
    raw: [u64; 2],
    vmid: u16,
    features: &Features,
    stream: impl FnOnce(u32) -> Option<Physical>,
) -> Result<Rewritten, &'static str> {
    let allowed = allowed(raw[0] as u8, features).ok_or("not a command for guests")?;
    if raw[0] & !allowed[0] != 0 || raw[1] & !allowed[1] != 0 {
        return Err("a reserved field is not 0");
    }
    let stream = |sid| stream(sid).ok_or("no device has this virtual StreamID");
    let substream = |ssid: u32| {
        let there = u64::from(ssid) >> features.ssid_bits == 0;
        if there { Ok(()) } else { Err("more bits of SubstreamID than the SMMU has") }
    };
    let asid = |asid: u16| {
        let there = u32::from(asid) >> features.asid_bits == 0;
        if there { Ok(asid) } else { Err("more bits of ASID than the SMMU has") }
    };
    let command = match Command::decode(&raw).ok_or("not a command")? {
        Command::TlbiNsnhAll | Command::TlbiNhAll { .. } => Command::TlbiNhAll { vmid },
        Command::TlbiNhAsid { asid: id, .. } => Command::TlbiNhAsid { vmid, asid: asid(id)? },
        Command::TlbiNhVa(va) => {
            check_range(&va, features)?;
            Command::TlbiNhVa(TlbiVa { vmid, asid: asid(va.asid)?, ..va })
        }
        Command::TlbiNhVaa(va) => {
            check_range(&va, features)?;
            Command::TlbiNhVaa(TlbiVa { vmid, ..va })
        }
        Command::CfgiCd { sid, ssid, leaf, .. } => {
            substream(ssid)?;
            Command::CfgiCd { sid: stream(sid)?.sid, ssid, leaf, ssec: false }
        }
        Command::CfgiCdAll { sid, .. } => Command::CfgiCdAll { sid: stream(sid)?.sid, ssec: false },
        Command::AtcInv { sid, ssid, global, size, addr } => {
            if !features.ats {
                return Err("the SMMU does not have ATS");
            }
            if size > 52 {
                return Err("a reserved size");
            }
            substream(ssid.unwrap_or(0))?;
            let Physical { sid, ats } = stream(sid)?;
            if !ats {
                // Nobody would answer, and the queue would wait for that.
                return Ok(Rewritten::Nothing);
            }
            Command::AtcInv { sid, ssid, global, size, addr }
        }
        _ => return Err("not a command for guests"),
    };
    Ok(Rewritten::Run(command))
}

/// The ranges that are malformed (IHI 0070 §4.4.1.1).
fn check_range(va: &TlbiVa, features: &Features) -> Result<(), &'static str> {
    if va.tg == 0 {
        return Ok(());
    }
    let (largest, no_level) = if features.wide_ranges { (39, false) } else { (31, va.tg == 2) };
    if va.scale > largest {
        return Err("a reserved scale");
    }
    let level = va.ttl != 0 && !(va.ttl == 1 && no_level);
    if va.num == 0 && va.scale == 0 && !level {
        return Err("a range of a single page and no level");
    }
    Ok(())
}
