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
pub mod ste;
pub mod table;

pub use cd::Cd;
pub use command::{Command, TlbiVa};
pub use event::{Class, Event, EventKind, Rwx};
pub use ste::Ste;
pub use table::{L1Cd, L1Std};
