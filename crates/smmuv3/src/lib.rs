//! A register-accurate model of the Arm SMMUv3 (Arm IHI 0070).
#![forbid(unsafe_code)]
// The hit path is one function in the end.
#![allow(clippy::inline_always)]

mod ats;
mod attributes;
mod cache;
mod commands;
mod config;
mod explain;
mod fault;
mod fetch;
pub mod firmware;
mod front;
mod options;
mod platform;
mod queues;
mod registers;
mod requester;
mod smmu;
mod state;
mod sync;
mod translate;
#[cfg(feature = "vm-memory")]
pub mod vm_memory;
pub mod wire;

pub use ats::{AtsError, AtsRequest, AtsTranslation};
pub use attributes::Attributes;
pub use cache::generation::StreamWorld;
pub use cache::tlb::TlbSize;
pub use explain::{Explanation, Step};
pub use options::{Httu, Options, OptionsError, StallModel, Version};
pub use pagetable::{Permissions, Shareability};
pub use platform::{
    Abort, AtcCompletion, AtcInvalidate, Devices, Interrupts, Memory, PageResponse,
    PageResponseCode, Resume, Wire,
};
pub use registers::REGISTER_FILE_SIZE;
pub use requester::{Refused, Requester, Transaction, Transfer, Translation};
pub use smmu::Smmu;
pub use state::{RestoreError, StalledState, State};
#[cfg(all(feature = "membarrier", target_os = "linux"))]
pub use sync::Membarrier;
pub use sync::{Fence, SeqCst};
