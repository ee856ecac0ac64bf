//! Encodings of what software and the SMMU share: structures in memory, queue records, registers.
//!
//! This module knows where every bit stands and nothing else: no behaviour, no state, no policy.
//! A value is decoded from raw words and encoded back; reserved encodings are kept as written,
//! for the reader to judge. Section numbers are those of Arm IHI 0070 H.a.
//!
//! Words are in the byte order of the machine. In memory all structures and records are
//! little-endian, so whoever moves them converts with [`u64::from_le`] and [`u64::to_le`].

pub mod cd;
pub mod command;
pub mod event;
pub mod field;
pub mod pri;
pub mod register;
pub mod ste;
pub mod table;

#[cfg(test)]
mod tests;

pub use cd::Cd;
pub use command::{Command, TlbiVa};
pub use event::{Class, Event, EventKind, Rwx};
pub use pri::PageRequest;
pub use register::Register;
pub use ste::Ste;
pub use table::{L1Cd, L1Std};

/// Number of address bits an encoding of STE.S2PS, CD.IPS or SMMU_IDR5.OAS names: 32 to 56.
///
/// Only the low three bits count.
#[must_use]
pub const fn address_bits(encoding: u8) -> u32 {
    match encoding & 0b111 {
        0b000 => 32,
        0b001 => 36,
        0b010 => 40,
        0b011 => 42,
        0b100 => 44,
        0b101 => 48,
        0b110 => 52,
        _ => 56,
    }
}
