//! The model beyond the thirty: registers, interrupts, stalls, ATS and PRI, substreams, attributes, hardware updates,
//! and what `explain` tells. Driven as the guest would; sections are those of Arm IHI 0070 H.a.

#[path = "../common/mod.rs"]
mod common;

mod ats;
mod attributes;
mod caches;
mod explain;
mod httu;
mod in_flight;
mod interrupts;
mod merging;
mod observe;
mod pri;
mod registers;
mod stall;
mod substreams;
mod tables;
