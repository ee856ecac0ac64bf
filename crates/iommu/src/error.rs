use host::Fault;

/// Why the core or a driver refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// This domain cannot serve this device; another one may.
    #[error("the domain is not compatible with the device: {0}")]
    Incompatible(&'static str),
    /// A value is out of its range.
    #[error("invalid: {0}")]
    Invalid(&'static str),
    /// The driver or the hardware lacks this.
    #[error("not supported: {0}")]
    Unsupported(&'static str),
    /// The group is attached, or in use by the kernel's own DMA.
    #[error("the device is in use: {0}")]
    Busy(&'static str),
    /// Another owner holds the group.
    #[error("the group belongs to another owner")]
    NotOwner,
    /// What the call refers to does not exist.
    #[error("not found: {0}")]
    NotFound(&'static str),
    /// What the call would make exists already.
    #[error("exists already: {0}")]
    Exists(&'static str),
    /// Unknown bytes at the end of an entry are not zero.
    #[error("an entry is longer than known and its tail is not zero")]
    TooBig,
    /// No memory for the driver's structures.
    #[error("out of memory")]
    NoMemory,
    /// No identifier (VMID, ASID, queue) is left.
    #[error("no space left: {0}")]
    NoSpace(&'static str),
    /// The hardware or a command for it is in error.
    #[error("input/output error: {0}")]
    Io(&'static str),
    /// The caller's memory faulted.
    #[error(transparent)]
    Fault(#[from] Fault),
}
