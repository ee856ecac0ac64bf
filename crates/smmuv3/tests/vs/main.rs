//! The thirty behaviours that models of the SMMUv3 get wrong, one test each, by number.
//!
//! Driven through registers, memory and transactions alone. Sections are those of Arm IHI 0070 H.a.

#[path = "../common/mod.rs"]
mod common;

mod caches;
mod commands;
mod configuration;
mod faults;
mod records;
