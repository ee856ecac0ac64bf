#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod cmdq;
mod entry;
mod error;
mod eventq;
mod platform;
mod probe;
mod smmu;
mod stream_table;
mod wait;

#[cfg(test)]
extern crate self as arm_smmu_v3;
#[cfg(test)]
#[path = "../tests/common/mod.rs"]
mod common;

pub use cmdq::CommandsError;
pub use error::Error;
pub use eventq::Events;
pub use platform::{DmaMemory, Registers};
pub use probe::{Features, Httu, ProbeError};
pub use smmu::{Options, Smmu};
pub use smmuv3::wire::{Command, Event};
