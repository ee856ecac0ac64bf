//! Attributes of leaves, as a mapper writes them.

use crate::format::{
    AF, AP_READ_ONLY, AP_USER, DBM, NG, PXN, S2AP_READ, S2AP_WRITE, S2XN, Shareability, UXN,
};

/// The attribute bits of a block or page descriptor.
///
/// Bits that hold type, address or the contiguous hint are the mapper's and are
/// ignored here; with 52-bit descriptors (`ds`) that includes shareability.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Attributes(u64);

/// The permissions of both stages, AF and DBM: what may change in a live leaf
/// without breaking it before making it anew (DDI 0487 D8.16).
pub(crate) const PROTECTION: u64 = AF | AP_USER | AP_READ_ONLY | DBM | S2XN;

impl Attributes {
    /// Attributes from the bits of a descriptor.
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The bits of a descriptor.
    pub const fn bits(self) -> u64 {
        self.0
    }
}

/// What a leaf of stage 1 allows and what memory it means.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Stage1Attributes {
    /// AttrIndx, 0 to 7: which byte of MAIR describes the memory.
    pub attr_index: u8,
    /// AP\[1\]: unprivileged software may access too.
    pub user: bool,
    /// AP\[2\]: no writes, or with `dbm` none so far.
    pub read_only: bool,
    /// SH.
    pub shareability: Shareability,
    /// AF. A leaf without it faults at the first access, unless hardware sets it.
    pub accessed: bool,
    /// nG: TLB entries belong to one ASID.
    pub not_global: bool,
    /// DBM: hardware that manages dirty state may make it writable.
    pub dbm: bool,
    /// PXN: privileged software does not execute it.
    pub pxn: bool,
    /// UXN: unprivileged software does not execute it; XN with one privilege.
    pub uxn: bool,
}

impl Stage1Attributes {
    /// Memory for DMA: everybody reads and writes, nobody executes; inner shareable,
    /// attribute 0, accessed, not global.
    pub const DMA: Self = Self {
        attr_index: 0,
        user: true,
        read_only: false,
        shareability: Shareability::Inner,
        accessed: true,
        not_global: true,
        dbm: false,
        pxn: true,
        uxn: true,
    };
}

impl From<Stage1Attributes> for Attributes {
    fn from(a: Stage1Attributes) -> Self {
        Self(
            u64::from(a.attr_index & 7) << 2
                | flag(a.user, AP_USER)
                | flag(a.read_only, AP_READ_ONLY)
                | (a.shareability as u64) << 8
                | flag(a.accessed, AF)
                | flag(a.not_global, NG)
                | flag(a.dbm, DBM)
                | flag(a.pxn, PXN)
                | flag(a.uxn, UXN),
        )
    }
}

/// What a leaf of stage 2 allows and what memory it means.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Stage2Attributes {
    /// MemAttr, 0 to 15.
    pub mem_attr: u8,
    /// S2AP\[0\].
    pub read: bool,
    /// S2AP\[1\]: writes, or with `dbm` there have been some.
    pub write: bool,
    /// SH.
    pub shareability: Shareability,
    /// AF. A leaf without it faults at the first access, unless hardware sets it.
    pub accessed: bool,
    /// DBM: hardware that manages dirty state may make it writable.
    pub dbm: bool,
    /// XN\[1:0\]: 0 lets both privileges execute, 1 unprivileged software, 2 nobody,
    /// 3 privileged software.
    pub execute_never: u8,
}

impl Stage2Attributes {
    /// Memory of a guest: everything is allowed; normal write-back, inner shareable,
    /// accessed.
    pub const GUEST: Self = Self {
        mem_attr: 0xf,
        read: true,
        write: true,
        shareability: Shareability::Inner,
        accessed: true,
        dbm: false,
        execute_never: 0,
    };
}

impl From<Stage2Attributes> for Attributes {
    fn from(a: Stage2Attributes) -> Self {
        Self(
            u64::from(a.mem_attr & 0xf) << 2
                | flag(a.read, S2AP_READ)
                | flag(a.write, S2AP_WRITE)
                | (a.shareability as u64) << 8
                | flag(a.accessed, AF)
                | flag(a.dbm, DBM)
                | u64::from(a.execute_never & 3) << 53,
        )
    }
}

const fn flag(set: bool, bit: u64) -> u64 {
    if set { bit } else { 0 }
}
