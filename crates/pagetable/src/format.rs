//! What the bits of a descriptor mean (DDI 0487 D8.3), apart from its address,
//! whose place depends on the [geometry](crate::geometry).

use std::fmt;
use std::ops::{BitAnd, BitOr};

/// Bit 0: the descriptor is valid.
pub const VALID: u64 = 1;
/// Bit 1: a table above level 3, a page at level 3; a block if clear.
pub const TABLE: u64 = 1 << 1;
/// A table above level 3, a page at level 3.
pub const TABLE_OR_PAGE: u64 = VALID | TABLE;
/// Bit 10: Access flag. While it is clear the first access faults, or sets it.
pub const AF: u64 = 1 << 10;
/// Bit 11, stage 1: not global, so that TLB entries belong to one ASID.
pub const NG: u64 = 1 << 11;
/// Bit 51: Dirty Bit Modifier. Hardware that updates dirty state makes a
/// read-only leaf writable when it is written.
pub const DBM: u64 = 1 << 51;
/// Bit 52: the leaf is one of a contiguous group.
pub const CONTIGUOUS: u64 = 1 << 52;
/// Bit 53, stage 1: Privileged eXecute-Never.
pub const PXN: u64 = 1 << 53;
/// Bit 54, stage 1: Unprivileged eXecute-Never, or XN with one privilege.
pub const UXN: u64 = 1 << 54;

/// Bit 6, stage 1: AP\[1\], unprivileged software may access too.
pub const AP_USER: u64 = 1 << 6;
/// Bit 7, stage 1: AP\[2\], read-only.
pub const AP_READ_ONLY: u64 = 1 << 7;
/// Bit 6, stage 2: S2AP\[0\], readable.
pub const S2AP_READ: u64 = 1 << 6;
/// Bit 7, stage 2: S2AP\[1\], writable.
pub const S2AP_WRITE: u64 = 1 << 7;
/// Bits 54 and 53, stage 2: XN\[1:0\].
pub const S2XN: u64 = 3 << 53;

/// Bit 59 of a table descriptor, stage 1: PXNTable.
const PXN_TABLE: u8 = 1;
/// Bit 60 of a table descriptor, stage 1: UXNTable or XNTable.
const UXN_TABLE: u8 = 1 << 1;
/// Bit 61 of a table descriptor, stage 1: APTable\[0\], nothing for unprivileged.
const AP_TABLE_NO_USER: u8 = 1 << 2;
/// Bit 62 of a table descriptor, stage 1: APTable\[1\], read-only.
const AP_TABLE_READ_ONLY: u8 = 1 << 3;

/// What the table descriptors of a stage 1 walk take away from every leaf below
/// them: PXNTable, UXNTable and APTable, accumulated over the levels.
///
/// NSTable has no meaning in the Non-secure state and is left out. At stage 2 the
/// bits are reserved and this is always empty.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct TableAttributes(u8);

impl TableAttributes {
    /// Nothing is taken away.
    pub const NONE: Self = Self(0);

    /// The attributes of one table descriptor.
    #[inline]
    pub const fn of(descriptor: u64) -> Self {
        Self((descriptor >> 59) as u8 & 0xf)
    }

    /// These and those of a table further down.
    #[inline]
    #[must_use]
    pub const fn and(self, below: Self) -> Self {
        Self(self.0 | below.0)
    }

    /// PXNTable, UXNTable, APTable\[0\], APTable\[1\], from bit 0 on.
    #[inline]
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// Inverse of [`bits`](Self::bits); higher bits are ignored.
    #[inline]
    pub const fn from_bits(bits: u8) -> Self {
        Self(bits & 0xf)
    }

    /// PXNTable.
    pub const fn pxn(self) -> bool {
        self.0 & PXN_TABLE != 0
    }

    /// UXNTable, or XNTable with one privilege.
    pub const fn uxn(self) -> bool {
        self.0 & UXN_TABLE != 0
    }

    /// APTable\[0\]: nothing for unprivileged software.
    pub const fn no_user(self) -> bool {
        self.0 & AP_TABLE_NO_USER != 0
    }

    /// APTable\[1\]: read-only.
    pub const fn read_only(self) -> bool {
        self.0 & AP_TABLE_READ_ONLY != 0
    }
}

impl fmt::Debug for TableAttributes {
    /// The names of what is taken away: `APTable[1] PXNTable`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = [
            (self.read_only(), "APTable[1]"),
            (self.no_user(), "APTable[0]"),
            (self.uxn(), "UXNTable"),
            (self.pxn(), "PXNTable"),
        ];
        let set: Vec<&str> = names.iter().filter(|(set, _)| *set).map(|(_, name)| *name).collect();
        f.write_str(if set.is_empty() { "none" } else { "" })?;
        f.write_str(&set.join(" "))
    }
}

/// A set of permitted accesses: read, write and execute, each for unprivileged
/// ("user") and privileged accesses.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Permissions(u8);

impl Permissions {
    /// Nothing is permitted.
    pub const NONE: Self = Self(0);
    /// Unprivileged data reads.
    pub const USER_READ: Self = Self(1);
    /// Unprivileged writes.
    pub const USER_WRITE: Self = Self(1 << 1);
    /// Unprivileged instruction fetches.
    pub const USER_EXECUTE: Self = Self(1 << 2);
    /// Privileged data reads.
    pub const PRIVILEGED_READ: Self = Self(1 << 3);
    /// Privileged writes.
    pub const PRIVILEGED_WRITE: Self = Self(1 << 4);
    /// Privileged instruction fetches.
    pub const PRIVILEGED_EXECUTE: Self = Self(1 << 5);
    /// Everything is permitted.
    pub const ALL: Self = Self(0x3f);

    /// Both reads.
    pub const READ: Self = Self(0x9);
    /// Both writes.
    pub const WRITE: Self = Self(0x12);
    /// Both fetches.
    pub const EXECUTE: Self = Self(0x24);

    /// Whether all of `wanted` is permitted.
    #[inline]
    pub const fn contains(self, wanted: Self) -> bool {
        self.0 & wanted.0 == wanted.0
    }

    /// Whether any of `wanted` is permitted.
    #[inline]
    pub const fn intersects(self, wanted: Self) -> bool {
        self.0 & wanted.0 != 0
    }

    /// These without those.
    #[inline]
    #[must_use]
    pub const fn without(self, taken: Self) -> Self {
        Self(self.0 & !taken.0)
    }

    /// One bit each, in the order of the constants, from bit 0.
    #[inline]
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// The reverse of [`bits`](Self::bits). Bits 7 and 6 are ignored.
    #[inline]
    pub const fn from_bits(bits: u8) -> Self {
        Self(bits & Self::ALL.0)
    }
}

impl BitOr for Permissions {
    type Output = Self;
    #[inline]
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitAnd for Permissions {
    type Output = Self;
    #[inline]
    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

impl fmt::Debug for Permissions {
    /// `rw-/rwx`: unprivileged, then privileged.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (bit, letter) in "rwxrwx".chars().enumerate() {
            if bit == 3 {
                f.write_str("/")?;
            }
            write!(f, "{}", if self.0 >> bit & 1 != 0 { letter } else { '-' })?;
        }
        Ok(())
    }
}

/// How many privileges a stage 1 regime tells apart.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Regime {
    /// Privileged and unprivileged: EL1&0 and EL2&0.
    TwoPrivileges,
    /// EL2 or EL3 alone. AP\[1\] and PXN mean nothing and bit 54 is XN; the
    /// permissions of both privileges come out equal.
    OnePrivilege,
}

/// The controls that stage 1 permissions depend on.
///
/// In AArch64 tables memory that unprivileged software may write is never
/// executable by privileged software: there is no control for that.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Stage1Controls {
    /// How many privileges there are.
    pub regime: Regime,
    /// HPD (an SMMU's `CD.HADx`): ignore what table descriptors take away.
    pub hierarchical_disabled: bool,
    /// WXN: what is writable is not executable.
    pub wxn: bool,
    /// PAN in force: no privileged data access to what unprivileged software can
    /// read or write.
    pub pan: bool,
    /// With `pan`, what unprivileged software can only execute counts as well.
    pub epan: bool,
    /// Hardware manages dirty state: a leaf with DBM counts as writable.
    pub hardware_dirty: bool,
}

impl Stage1Controls {
    /// Two privileges and no control set.
    pub const PLAIN: Self = Self {
        regime: Regime::TwoPrivileges,
        hierarchical_disabled: false,
        wxn: false,
        pan: false,
        epan: false,
        hardware_dirty: false,
    };
}

/// The controls that stage 2 permissions depend on.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Stage2Controls {
    /// `FEAT_XNX`: XN\[0\] tells the privileges apart. It is reserved otherwise.
    pub xnx: bool,
    /// Hardware manages dirty state: a leaf with DBM counts as writable.
    pub hardware_dirty: bool,
}

/// Shareability (SH).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Shareability {
    /// Used by one observer.
    NonShareable = 0,
    /// The reserved encoding 0b01.
    Reserved = 1,
    /// Coherent in the outer domain.
    Outer = 2,
    /// Coherent in the inner domain.
    Inner = 3,
}

impl Shareability {
    /// From the lowest two bits.
    #[inline]
    pub const fn from_bits(bits: u64) -> Self {
        match bits & 3 {
            0 => Self::NonShareable,
            1 => Self::Reserved,
            2 => Self::Outer,
            _ => Self::Inner,
        }
    }
}

/// A valid block or page descriptor of stage 1, with what the tables above say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stage1Leaf {
    /// The descriptor.
    pub descriptor: u64,
    /// What the tables above it take away.
    pub tables: TableAttributes,
}

impl Stage1Leaf {
    /// AF.
    #[inline]
    pub const fn accessed(self) -> bool {
        self.descriptor & AF != 0
    }

    /// DBM.
    #[inline]
    pub const fn dbm(self) -> bool {
        self.descriptor & DBM != 0
    }

    /// DBM is set and AP\[2\] says read-only: hardware that manages dirty state
    /// clears AP\[2\] before the first write.
    #[inline]
    pub const fn writable_clean(self) -> bool {
        self.descriptor & (DBM | AP_READ_ONLY) == DBM | AP_READ_ONLY
    }

    /// What the descriptor becomes when hardware marks it dirty.
    #[inline]
    pub const fn dirtied(self) -> u64 {
        self.descriptor & !AP_READ_ONLY
    }

    /// nG.
    #[inline]
    pub const fn not_global(self) -> bool {
        self.descriptor & NG != 0
    }

    /// AttrIndx: which byte of MAIR describes the memory.
    #[inline]
    pub const fn attr_index(self) -> u8 {
        (self.descriptor >> 2) as u8 & 7
    }

    /// SH. With 52-bit descriptors (`ds`) the bits hold an address instead, and
    /// shareability comes from the translation control register.
    #[inline]
    pub const fn shareability(self) -> Shareability {
        Shareability::from_bits(self.descriptor >> 8)
    }

    /// What the descriptor and the tables above it permit (DDI 0487,
    /// `AArch64.S1DirectBasePermissions`).
    #[inline]
    pub const fn permissions(self, controls: Stage1Controls) -> Permissions {
        type P = Permissions;
        let d = self.descriptor;
        let tables =
            if controls.hierarchical_disabled { TableAttributes::NONE } else { self.tables };
        let two = matches!(controls.regime, Regime::TwoPrivileges);
        let dirty = controls.hardware_dirty && self.dbm();

        let mut taken = 0;
        if two && (d & AP_USER == 0 || tables.no_user()) {
            taken |= P::USER_READ.0 | P::USER_WRITE.0;
        }
        if (d & AP_READ_ONLY != 0 && !dirty) || tables.read_only() {
            taken |= P::WRITE.0;
        }
        let uxn = d & UXN != 0 || tables.uxn();
        let pxn = if two { d & PXN != 0 || tables.pxn() } else { uxn };
        if uxn {
            taken |= P::USER_EXECUTE.0;
        }
        if pxn || (two && taken & P::USER_WRITE.0 == 0) {
            taken |= P::PRIVILEGED_EXECUTE.0;
        }
        if controls.wxn {
            // Each privilege's write bit, where it remains, takes its execute bit.
            taken |= (!taken & P::WRITE.0) << 1;
        }
        let left = !taken & P::ALL.0;
        let users =
            P::USER_READ.0 | P::USER_WRITE.0 | if controls.epan { P::USER_EXECUTE.0 } else { 0 };
        if two && controls.pan && left & users != 0 {
            taken |= P::PRIVILEGED_READ.0 | P::PRIVILEGED_WRITE.0;
        }
        Permissions(!taken & P::ALL.0)
    }
}

/// A valid block or page descriptor of stage 2.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stage2Leaf {
    /// The descriptor.
    pub descriptor: u64,
}

impl Stage2Leaf {
    /// AF.
    #[inline]
    pub const fn accessed(self) -> bool {
        self.descriptor & AF != 0
    }

    /// DBM.
    #[inline]
    pub const fn dbm(self) -> bool {
        self.descriptor & DBM != 0
    }

    /// DBM is set and S2AP\[1\] is not: hardware that manages dirty state sets
    /// S2AP\[1\] before the first write.
    #[inline]
    pub const fn writable_clean(self) -> bool {
        self.descriptor & (DBM | S2AP_WRITE) == DBM
    }

    /// What the descriptor becomes when hardware marks it dirty.
    #[inline]
    pub const fn dirtied(self) -> u64 {
        self.descriptor | S2AP_WRITE
    }

    /// MemAttr\[3:0\].
    #[inline]
    pub const fn mem_attr(self) -> u8 {
        (self.descriptor >> 2) as u8 & 0xf
    }

    /// SH. With 52-bit descriptors (`ds`) the bits hold an address instead, and
    /// shareability comes from the translation control register.
    #[inline]
    pub const fn shareability(self) -> Shareability {
        Shareability::from_bits(self.descriptor >> 8)
    }

    /// What the descriptor permits (DDI 0487, `AArch64.S2DirectBasePermissions`).
    /// Execution is what XN says alone.
    #[inline]
    pub const fn permissions(self, controls: Stage2Controls) -> Permissions {
        type P = Permissions;
        let d = self.descriptor;
        let mut bits = if d & S2AP_READ != 0 { P::READ.0 } else { 0 };
        if d & S2AP_WRITE != 0 || (controls.hardware_dirty && self.dbm()) {
            bits |= P::WRITE.0;
        }
        bits |= match (d >> 54 & 1 != 0, controls.xnx && d >> 53 & 1 != 0) {
            (false, false) => P::EXECUTE.0,
            (false, true) => P::USER_EXECUTE.0,
            (true, false) => 0,
            (true, true) => P::PRIVILEGED_EXECUTE.0,
        };
        Permissions(bits)
    }
}
