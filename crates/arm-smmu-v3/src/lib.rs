#![doc = include_str!("../README.md")]
//!
//! # Where things are
//!
//! `platform` is what the driver stands on. `probe` reads what the SMMU is; `smmu` takes it into service, with `cmdq`
//! and `records`. `entry` changes STEs and CDs; `stream_table` and `cd_table` are where they stand. `domain` is a page table and
//! its invalidation, `stream` attaches it, `driver` shows all that to the crate `iommu`. Of a guest's, `nested` is its STE,
//! `guest_command` its commands, and `viommu` what both are about. `faults` sorts what the SMMU
//! reports: for a guest, for whoever handles page requests, or for the host.
#![forbid(unsafe_code)]

mod cd_table;
mod cmdq;
mod domain;
mod driver;
mod entry;
mod error;
mod faults;
mod guest_command;
mod ids;
mod nested;
mod platform;
mod probe;
mod records;
mod smmu;
mod stream;
mod stream_table;
mod viommu;
mod wait;

#[cfg(test)]
extern crate self as arm_smmu_v3;
#[cfg(test)]
#[path = "../tests/common/mod.rs"]
mod common;

pub use cmdq::CommandsError;
pub use domain::Domain;
pub use driver::{DeviceOptions, Driver};
pub use error::Error;
pub use faults::{Cause, HostFault, HostFaults};
pub use iommu::Prot;
pub use nested::Nested;
pub use pagetable::Stage;
pub use platform::{DmaMemory, Functions, Registers};
pub use probe::{Features, Httu, ProbeError};
pub use smmu::{Events, Options, PageRequests, Smmu};
pub use smmuv3::wire::{Command, Event};
pub use stream::{Attachment, Stream, StreamOptions};
pub use viommu::Viommu;
