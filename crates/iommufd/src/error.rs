use host::{Errno, Fault, FilePinError};

/// Why an operation on an iommufd context was refused. Nothing was changed,
/// unless the operation says otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// There is no such ioctl.
    #[error("no such ioctl")]
    UnknownIoctl,
    /// User memory faulted.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// Unknown bytes at the end of a struct are not zero.
    #[error("the struct is longer than known and its tail is not zero")]
    TooBig,
    /// Something that this version does not know or the hardware does not do.
    #[error("not supported: {0}")]
    Unsupported(&'static str),
    /// A value is wrong.
    #[error("invalid: {0}")]
    Invalid(&'static str),
    /// No object of the wanted type has this id.
    #[error("no object {0} of that type")]
    NoObject(u32),
    /// Part of an IOVA range is not mapped, or a mapping sticks out of it.
    #[error("the range {0:#x} is not exactly what is mapped")]
    NotMapped(u64),
    /// Other objects still use it.
    #[error("in use: {0}")]
    Busy(&'static str),
    /// A range wraps around or cannot be represented.
    #[error("the range overflows: {0}")]
    Overflow(&'static str),
    /// A size that cannot be represented.
    #[error("out of range: {0}")]
    Range(&'static str),
    /// It exists already.
    #[error("exists already: {0}")]
    Exists(&'static str),
    /// The IOVAs are mapped, reserved or allowed elsewhere.
    #[error("IOVAs are in use: {0}")]
    AddressInUse(&'static str),
    /// No IOVA range is free.
    #[error("no free IOVA range fits")]
    NoIova,
    /// Out of memory or over `RLIMIT_MEMLOCK`.
    #[error("out of memory: {0}")]
    NoMemory(&'static str),
    /// The caller or the mapping lacks the permission.
    #[error("not permitted: {0}")]
    Permission(&'static str),
    /// The VFIO compatibility IOAS or the device is missing.
    #[error("no device: {0}")]
    NoDevice(&'static str),
    /// The result does not fit; as much as fits was written.
    #[error("more ranges than there is room for")]
    MessageSize,
    /// An access does not unpin what is to be unmapped.
    #[error("an access does not let go of its pages")]
    Deadlock,
    /// The descriptor is open but of another kind.
    #[error("the file descriptor is of another kind")]
    WrongFile,
    /// The caller's descriptors.
    #[error("file descriptor: {0}")]
    File(Errno),
    /// Nothing can be mapped at this offset with this length.
    #[error("no memory to map at offset {0:#x} with this length")]
    NoMmap(u64),
    /// A count that is not a whole number of records, or a file position.
    #[error("reads and writes must be whole records without a position")]
    Seek,
    /// The core or a driver refused.
    #[error(transparent)]
    Core(#[from] iommu::Error),
    /// The mapping lives in a paging domain that refused it.
    #[error(transparent)]
    Map(#[from] iommu::MapError),
}

impl From<FilePinError> for Error {
    fn from(error: FilePinError) -> Self {
        match error {
            FilePinError::NotMemory => Self::Invalid("the file holds no memory to pin"),
            FilePinError::BeyondEnd => Self::Invalid("the range ends beyond the file"),
            FilePinError::NoMemory => Self::NoMemory("pages of the file"),
        }
    }
}

/// A step that allocates: fails if fault injection says so.
pub(crate) fn fallible(what: &'static str) -> Result<(), Error> {
    if host::fail::point() { Err(Error::NoMemory(what)) } else { Ok(()) }
}

impl Error {
    /// The errno that the kernel answers: the one place where errors become
    /// numbers.
    pub fn errno(&self) -> Errno {
        use iommu::Error as Core;
        match *self {
            Self::UnknownIoctl => Errno::NOTTY,
            Self::Fault(_) | Self::Core(Core::Fault(_)) => Errno::FAULT,
            Self::TooBig | Self::Core(Core::TooBig) => Errno::TOOBIG,
            Self::Unsupported(_) | Self::Core(Core::Unsupported(_)) => Errno::OPNOTSUPP,
            Self::Invalid(_)
            | Self::Core(Core::Invalid(_) | Core::Incompatible(_))
            | Self::Map(iommu::MapError::Invalid) => Errno::INVAL,
            Self::NoObject(_) | Self::NotMapped(_) | Self::Core(Core::NotFound(_)) => Errno::NOENT,
            Self::Busy(_) | Self::Core(Core::Busy(_)) => Errno::BUSY,
            Self::Overflow(_) => Errno::OVERFLOW,
            Self::Range(_) => Errno::RANGE,
            Self::Exists(_) | Self::Core(Core::Exists(_)) => Errno::EXIST,
            Self::AddressInUse(_) | Self::Map(iommu::MapError::Overlap) => Errno::ADDRINUSE,
            Self::NoIova | Self::Core(Core::NoSpace(_)) => Errno::NOSPC,
            Self::NoMemory(_)
            | Self::Core(Core::NoMemory)
            | Self::Map(iommu::MapError::NoMemory) => Errno::NOMEM,
            Self::Permission(_) | Self::Core(Core::NotOwner) => Errno::PERM,
            Self::NoDevice(_) => Errno::NODEV,
            Self::MessageSize => Errno::MSGSIZE,
            Self::Deadlock => Errno::DEADLK,
            Self::WrongFile => Errno::BADFD,
            Self::File(errno) => errno,
            Self::NoMmap(_) => Errno::NXIO,
            Self::Seek => Errno::SPIPE,
            Self::Core(Core::Io(_)) => Errno::IO,
        }
    }
}
