use pagetable::{MapError, OutOfMemory};
use thiserror::Error;

use crate::cmdq::CommandsError;
use crate::probe::ProbeError;

/// Why the driver did not do something.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Error {
    /// The driver cannot work with this SMMU.
    #[error(transparent)]
    Probe(#[from] ProbeError),
    /// The SMMU did not acknowledge a change in time.
    #[error("{0} is not acknowledged")]
    NotAcknowledged(&'static str),
    /// Commands did not complete.
    #[error(transparent)]
    Commands(#[from] CommandsError),
    /// No DMA memory is left.
    #[error("no DMA memory")]
    OutOfMemory(#[from] OutOfMemory),
    /// The Stream table does not reach that far: the SMMU has fewer StreamID bits, or more than the 25 that this
    /// driver uses.
    #[error("StreamID {0:#x} is out of range")]
    StreamId(u32),
    /// Somebody else has the stream.
    #[error("StreamID {0:#x} is in use")]
    StreamInUse(u32),
    /// The SMMU, the stream or the domain cannot do that.
    #[error("{0}")]
    Unsupported(&'static str),
    /// What the stream is to be attached to cannot be beside PASIDs, and there are some.
    #[error("the stream has PASIDs attached")]
    PasidsInUse,
    /// A guest's stage 1 for a stream of which its vIOMMU does not know.
    #[error("the vIOMMU does not know StreamID {0:#x}")]
    NoVirtualStreamId(u32),
    /// What a guest says of a stream is not for it to say, or not what the SMMU can do.
    #[error("a virtual STE that cannot be: {0}")]
    VirtualSte(&'static str),
    /// All ASIDs or VMIDs are in use.
    #[error("no {0} is left")]
    Exhausted(&'static str),
    /// A page table could not be changed as asked.
    #[error(transparent)]
    Map(#[from] MapError),
}
