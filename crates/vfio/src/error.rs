use host::{Errno, Fault};
use platform::ItsError;

/// Why a call to a VFIO device was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// There is no such ioctl, or no such feature.
    #[error("no such ioctl")]
    UnknownIoctl,
    /// User memory faulted.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// A value is wrong.
    #[error("invalid: {0}")]
    Invalid(&'static str),
    /// The descriptor is open but no iommufd, nor a container.
    #[error("the file descriptor is no iommufd or container")]
    WrongFile,
    /// Somebody uses it.
    #[error("busy: {0}")]
    Busy(&'static str),
    /// There is no such device.
    #[error("no such device")]
    NoDevice,
    /// The answer is longer than the room for it.
    #[error("the answer does not fit")]
    NoSpace,
    /// The caller's descriptors.
    #[error("file descriptor: {0}")]
    File(Errno),
    /// The caller lacks the permission.
    #[error("not permitted: {0}")]
    Permission(&'static str),
    /// The caller has not shown the token.
    #[error("no access: {0}")]
    Access(&'static str),
    /// A number is too large.
    #[error("out of range: {0}")]
    Range(&'static str),
    /// iommufd refused.
    #[error(transparent)]
    Iommufd(#[from] iommufd::Error),
    /// The interrupt controller refused.
    #[error(transparent)]
    Its(#[from] ItsError),
}

impl Error {
    /// The errno that the kernel answers.
    pub fn errno(&self) -> Errno {
        match self {
            Self::UnknownIoctl => Errno::NOTTY,
            Self::Fault(_) => Errno::FAULT,
            Self::Invalid(_) | Self::Its(ItsError::TooMany) => Errno::INVAL,
            Self::WrongFile => Errno::BADFD,
            Self::File(errno) => *errno,
            Self::Permission(_) => Errno::PERM,
            Self::Access(_) => Errno::ACCESS,
            Self::Range(_) => Errno::RANGE,
            Self::Iommufd(error) => error.errno(),
            Self::Busy(_) | Self::Its(ItsError::InUse(_)) => Errno::BUSY,
            Self::NoDevice => Errno::NODEV,
            Self::NoSpace => Errno::NOSPC,
        }
    }
}
