//! VMSAv8-64 translation tables (DDI 0487, chapter D8), stage 1 and stage 2.
//!
//! * [`geometry`]: granules, levels, sizes, where walks start.
//! * [`format`](mod@format): what the bits of a descriptor mean.
//! * [`walk`]: from an input address to its leaf, with neutral faults.
//! * [`map`]: making and changing tables under the eyes of the hardware.
//! * [`attributes`]: what a new leaf is to be.
//! * [`memory`]: where tables live.
//!
//! Granules of 4K, 16K and 64K; 48 bits, 52 with 64K (`FEAT_LVA`, `FEAT_LPA`) and, with
//! `ds`, with 4K and 16K (`FEAT_LPA2`); small tables (`FEAT_TTST`); concatenated
//! initial tables at stage 2. 128-bit descriptors and permission indirection are not
//! here.
#![forbid(unsafe_code)]

pub mod attributes;
pub mod format;
pub mod geometry;
pub mod map;
pub mod memory;
pub mod walk;

pub use attributes::{Attributes, Stage1Attributes, Stage2Attributes};
pub use format::{
    Permissions, Regime, Shareability, Stage1Controls, Stage1Leaf, Stage2Controls, Stage2Leaf,
    TableAttributes,
};
pub use geometry::{Geometry, GeometryError, Granule, LAST_LEVEL, Stage};
pub use map::{Gather, Lost, MapError, Mapper, Reader, Run};
pub use memory::{HeapPool, OutOfMemory, TableMemory};
pub use walk::{Descriptors, Fault, Leaf, Meaning, Position, Step, Table};
