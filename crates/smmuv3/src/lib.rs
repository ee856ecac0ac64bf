#![doc = include_str!("../README.md")]
//!
//! # Where things are
//!
//! [`wire`] knows encodings and nothing else. `registers` is the bus; `front` the state behind it, with `commands` (the
//! SMMU as consumer) and `queues` (as producer). `fetch` finds STEs and CDs, `config` decodes them into a context once,
//! `translate` walks; a fault is neutral until `resolve` turns it into an event. `cache` remembers: `slot` is an
//! entry read without a lock, `generation` forgets address spaces in constant time, `in_flight` is why a `CMD_SYNC`
//! means what it says. `accelerator` hands streams to somebody else. `stale` compares what caches answered with
//! memory, for who asks.
#![forbid(unsafe_code)]
// The hit path is one function in the end.
#![allow(clippy::inline_always)]

mod accelerator;
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
mod observe;
mod options;
mod platform;
mod queues;
mod registers;
mod requester;
mod resolve;
mod smmu;
mod stale;
mod state;
mod sync;
mod transaction;
mod translate;
#[cfg(feature = "vm-memory")]
pub mod vm_memory;
pub mod wire;

pub use accelerator::{
    ASSIGNED_MAX, Accelerator, AlreadyAccelerated, AssignError, Refusal, StreamConfig,
};
pub use ats::{AtsError, AtsRequest, AtsTranslation};
pub use attributes::Attributes;
pub use cache::generation::StreamWorld;
pub use cache::tlb::TlbSize;
pub use explain::{AlreadyExplaining, ExplainedFault, Explanation, FaultSink, Step};
pub use observe::{AlreadyObserved, Observation, Observer};
pub use options::{Httu, IdRegisters, Options, OptionsError, StallModel, Version};
pub use pagetable::{Permissions, Shareability};
pub use platform::{
    Abort, AtcCompletion, AtcInvalidate, Devices, Interrupts, Memory, PageResponse,
    PageResponseCode, Resume, Wire,
};
pub use registers::REGISTER_FILE_SIZE;
pub use requester::{Requester, Transfer};
pub use smmu::Smmu;
pub use stale::{
    AlreadyChecking, Change, Miss, Place, Proof, Stale, StaleCache, StaleRule, StaleSink,
    StaleSummary,
};
pub use state::{RestoreError, StalledState, State};
#[cfg(all(feature = "membarrier", target_os = "linux"))]
pub use sync::Membarrier;
pub use sync::{Fence, SeqCst};
pub use transaction::{Refused, Transaction, Translation};
