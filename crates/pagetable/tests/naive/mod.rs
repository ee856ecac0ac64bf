//! A second walker, deliberately naive: explicit tables instead of formulas, in the
//! order and with the names of the pseudocode of DDI 0487 (`AArch64.S1Walk`,
//! `AArch64.S2Walk` and what they call). It shares no code with the crate.

/// A walk's parameters, as the registers hold them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Params {
    pub second_stage: bool,
    /// 4, 16 or 64.
    pub granule_kib: u64,
    pub txsz: u64,
    /// For stage 2 only.
    pub start_level: i64,
    /// Effective output size.
    pub oasize: u64,
    pub ds: bool,
    /// `FEAT_LPA` with PAMax of 52.
    pub lpa: bool,
    pub ttb: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Outcome {
    Translation { level: i64 },
    AddressSize { level: i64 },
    External { level: i64, at: u64 },
    Done(Done),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Done {
    pub oa: u64,
    pub level: i64,
    pub lsb: u64,
    pub descriptor: u64,
    pub at: u64,
    pub contiguous: bool,
    /// ap_table[1], ap_table[0], xn_table, pxn_table.
    pub tables: [bool; 4],
}

fn bits(value: u64, high: u64, low: u64) -> u64 {
    let mut result = 0;
    for bit in low..=high {
        if value & (1u64 << bit) != 0 {
            result += 1u64 << (bit - low);
        }
    }
    result
}

fn bit(value: u64, n: u64) -> bool {
    bits(value, n, n) == 1
}

/// The lowest input bit that a table of each level resolves.
pub(crate) fn lsb(granule_kib: u64, level: i64) -> u64 {
    match (granule_kib, level) {
        (4, -1) => 48,
        (4, 0) => 39,
        (4, 1) => 30,
        (4, 2) => 21,
        (4, 3) => 12,
        (16, 0) => 47,
        (16, 1) => 36,
        (16, 2) => 25,
        (16, 3) => 14,
        (64, 1) => 42,
        (64, 2) => 29,
        (64, 3) => 16,
        _ => panic!("no level {level} with {granule_kib}K"),
    }
}

fn entry_bits(granule_kib: u64) -> u64 {
    match granule_kib {
        4 => 9,
        16 => 11,
        _ => 13,
    }
}

pub(crate) fn start_level(params: &Params) -> i64 {
    if params.second_stage {
        return params.start_level;
    }
    let mut level = 3;
    while lsb(params.granule_kib, level) + entry_bits(params.granule_kib) < 64 - params.txsz {
        level -= 1;
    }
    level
}

fn block_supported(params: &Params, level: i64) -> bool {
    match params.granule_kib {
        4 => level == 1 || level == 2 || (level == 0 && params.ds),
        16 => level == 2 || (level == 1 && params.ds),
        _ => level == 2 || (level == 1 && params.lpa),
    }
}

fn contiguous_entries(params: &Params, level: i64) -> u64 {
    match (params.granule_kib, level) {
        (4, 1..=3) => 16,
        (16, 3) => 128,
        (16, 2) | (64, 2 | 3) => 32,
        _ => 1,
    }
}

/// The address in a descriptor, with every bit above `low` that it holds.
fn address(params: &Params, descriptor: u64, low: u64) -> u64 {
    let mut address = bits(descriptor, 47, low) << low;
    if params.granule_kib == 64 {
        if params.lpa {
            address += bits(descriptor, 15, 12) << 48;
        }
    } else if params.ds {
        let (first, second) = (bits(descriptor, 9, 8), bits(descriptor, 49, 48));
        // A block larger than 2^48 bytes does not exist.
        address += first << 50;
        address += second << 48;
    }
    address
}

pub(crate) fn walk(params: &Params, ia: u64, read: &mut dyn FnMut(u64) -> Option<u64>) -> Outcome {
    let iasize = 64 - params.txsz;
    if ia.checked_shr(iasize as u32).unwrap_or(0) != 0 {
        return Outcome::Translation { level: 0 };
    }
    let mut level = start_level(params);
    // Align the base to the size of the initial table; fewer than eight entries to 64 bytes if output
    // addresses have more than 48 bits (D8.2.5.2).
    let entries = 1u64 << (iasize - lsb(params.granule_kib, level));
    let wide = params.oasize > 48 && (params.ds || params.granule_kib == 64);
    let size = if wide { (entries * 8).max(64) } else { entries * 8 };
    let mut table = params.ttb - params.ttb % size;
    let mut tables = [false; 4];
    if table >= 1u64 << params.oasize {
        return Outcome::AddressSize { level: 0 };
    }
    let mut top = iasize - 1;
    loop {
        let low = lsb(params.granule_kib, level);
        let at = table + 8 * bits(ia, top, low);
        let Some(descriptor) = read(at) else {
            return Outcome::External { level, at };
        };
        let leaf = match (bit(descriptor, 1), bit(descriptor, 0)) {
            (_, false) => return Outcome::Translation { level },
            (false, true) if level == 3 || !block_supported(params, level) => {
                return Outcome::Translation { level };
            }
            (false, true) => true,
            (true, true) => level == 3,
        };
        if leaf {
            let base = address(params, descriptor, low);
            if base >= 1u64 << params.oasize {
                return Outcome::AddressSize { level };
            }
            let mut span = 1u64 << low;
            let group = contiguous_entries(params, level) * span;
            let contiguous = bit(descriptor, 52)
                && contiguous_entries(params, level) > 1
                && group <= 1u64 << iasize;
            if contiguous {
                span = group;
            }
            return Outcome::Done(Done {
                oa: base / span * span + ia % span,
                level,
                lsb: low,
                descriptor,
                at,
                contiguous,
                tables,
            });
        }
        table = address(params, descriptor, lsb(params.granule_kib, 3));
        if table >= 1u64 << params.oasize {
            return Outcome::AddressSize { level };
        }
        if !params.second_stage {
            for (i, n) in [62, 61, 60, 59].into_iter().enumerate() {
                tables[i] |= bit(descriptor, n);
            }
        }
        level += 1;
        top = low - 1;
    }
}

/// Permissions in the order user read, write, execute, privileged read, write, execute.
pub(crate) type Six = [bool; 6];

#[derive(Clone, Copy, Debug)]
pub(crate) struct S1 {
    pub has_unprivileged: bool,
    pub hpd: bool,
    pub wxn: bool,
    pub pan: bool,
    pub epan: bool,
    pub hd: bool,
}

/// `AArch64.S1DirectBasePermissions`, for data accesses where PAN is concerned.
pub(crate) fn s1_permissions(descriptor: u64, tables: [bool; 4], s1: S1) -> Six {
    let [mut ap_table1, mut ap_table0, mut xn_table, mut pxn_table] = tables;
    if s1.hpd {
        (ap_table1, ap_table0, xn_table, pxn_table) = (false, false, false, false);
    }
    let mut ap2 = bit(descriptor, 7);
    if s1.hd && bit(descriptor, 51) {
        ap2 = false;
    }
    if !s1.has_unprivileged {
        let w = !(ap2 || ap_table1);
        let mut x = !(bit(descriptor, 54) || xn_table);
        if s1.wxn && w {
            x = false;
        }
        return [true, w, x, true, w, x];
    }
    let (mut pr, mut pw, mut ur, mut uw) = match (ap2, bit(descriptor, 6)) {
        (false, false) => (true, true, false, false),
        (false, true) => (true, true, true, true),
        (true, false) => (true, false, false, false),
        (true, true) => (true, false, true, false),
    };
    (pr, pw, ur, uw) = match (ap_table1, ap_table0) {
        (false, false) => (pr, pw, ur, uw),
        (false, true) => (pr, pw, false, false),
        (true, false) => (pr, false, ur, false),
        (true, true) => (pr, false, false, false),
    };
    let mut ux = !(bit(descriptor, 54) || xn_table);
    let mut px = !(bit(descriptor, 53) || pxn_table || uw);
    // PAN concerns data accesses and WXN fetches: neither sees what the other did.
    let pan = s1.pan && (ur || uw || (s1.epan && ux));
    let (data_pr, data_pw) = (pr && !pan, pw && !pan);
    if s1.wxn {
        px = px && !pw;
        ux = ux && !uw;
    }
    [ur, uw, ux, data_pr, data_pw, px]
}

/// `AArch64.S2DirectBasePermissions`.
pub(crate) fn s2_permissions(descriptor: u64, xnx: bool, hd: bool) -> Six {
    let r = bit(descriptor, 6);
    let w = bit(descriptor, 7) || (hd && bit(descriptor, 51));
    let (px, ux) = match (bit(descriptor, 54), xnx && bit(descriptor, 53)) {
        (false, false) => (true, true),
        (false, true) => (false, true),
        (true, false) => (false, false),
        (true, true) => (true, false),
    };
    [r, w, ux, r, w, px]
}
