//! Queue indexes (§3.5.1) and Command queue errors (§7.1).

use std::fmt;

/// The arithmetic of a queue's indexes (§3.5.1).
///
/// An index is `log2size` bits and above them a wrap flag, which toggles each time the index
/// passes the end: equal indexes mean empty, indexes that differ in the flag alone mean full.
/// Bits above the flag are ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ring {
    log2size: u32,
}

impl Ring {
    /// Largest log2 of a queue's size.
    pub const MAX_LOG2SIZE: u32 = 19;

    /// A queue of `2^log2size` entries, at most `2^19`.
    #[must_use]
    pub const fn new(log2size: u32) -> Self {
        let fits = log2size < Self::MAX_LOG2SIZE;
        Self { log2size: if fits { log2size } else { Self::MAX_LOG2SIZE } }
    }

    /// Number of entries.
    #[must_use]
    pub const fn entries(self) -> u32 {
        1 << self.log2size
    }

    /// The bits of an index register that count: index and wrap flag.
    #[must_use]
    pub const fn mask(self) -> u32 {
        (2 << self.log2size) - 1
    }

    /// Entry an index names, from 0.
    #[must_use]
    pub const fn index(self, pointer: u32) -> u32 {
        pointer & (self.entries() - 1)
    }

    /// The next index.
    #[must_use]
    pub const fn next(self, pointer: u32) -> u32 {
        (pointer & self.mask()).wrapping_add(1) & self.mask()
    }

    /// Entries the consumer has yet to read. More than [`Ring::entries`] means that software
    /// wrote inconsistent indexes.
    #[must_use]
    pub const fn len(self, prod: u32, cons: u32) -> u32 {
        prod.wrapping_sub(cons) & self.mask()
    }

    /// Whether there is nothing to read.
    #[must_use]
    pub const fn is_empty(self, prod: u32, cons: u32) -> bool {
        self.len(prod, cons) == 0
    }

    /// Whether there is no room: full, or inconsistent, which §3.5.1 lets a producer treat as
    /// full.
    #[must_use]
    pub const fn is_full(self, prod: u32, cons: u32) -> bool {
        self.len(prod, cons) >= self.entries()
    }
}

/// Why the SMMU stopped reading commands: SMMU_CMDQ_CONS.ERR (§7.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum CommandError {
    /// `CERROR_NONE`: it did not.
    #[default]
    None = 0,
    /// `CERROR_ILL`: the command is illegal.
    Ill = 1,
    /// `CERROR_ABT`: the command could not be read.
    Abt = 2,
    /// `CERROR_ATC_INV_SYNC`: a device did not complete an invalidation that `CMD_SYNC` waits for.
    AtcInvSync = 3,
}

impl CommandError {
    /// The error with that code, if architected.
    #[must_use]
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::None),
            1 => Some(Self::Ill),
            2 => Some(Self::Abt),
            3 => Some(Self::AtcInvSync),
            _ => None,
        }
    }
}

impl fmt::Display for CommandError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "CERROR_NONE",
            Self::Ill => "CERROR_ILL",
            Self::Abt => "CERROR_ABT",
            Self::AtcInvSync => "CERROR_ATC_INV_SYNC",
        })
    }
}
