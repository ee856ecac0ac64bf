//! Names and numbers of the NVM Express Base Specification 1.4.

use vfio::DmaError;

/// Registers (§3.1).
pub(super) mod register {
    pub(crate) const INTMS: u64 = 0x0c;
    pub(crate) const INTMC: u64 = 0x10;
    pub(crate) const CC: u64 = 0x14;
    pub(crate) const AQA: u64 = 0x24;
    pub(crate) const ASQ: u64 = 0x28;
    pub(crate) const ACQ: u64 = 0x30;
    pub(crate) const END: u64 = 0x38;
    /// Where the doorbells begin, two of 4 bytes for each queue pair.
    pub(crate) const DOORBELLS: u64 = 0x1000;
}

/// `VS`: 1.4.
pub(super) const VERSION: u32 = 0x0001_0400;

/// `CC`.
pub(super) const CC_EN: u32 = 1;
pub(super) const CC_CSS: u32 = 0b111 << 4;
pub(super) const CC_MPS_SHIFT: u32 = 7;
pub(super) const CC_AMS: u32 = 0b111 << 11;
pub(super) const CC_SHN: u32 = 0b11 << 14;
pub(super) const CC_IOSQES_SHIFT: u32 = 16;
pub(super) const CC_IOCQES_SHIFT: u32 = 20;

/// `CSTS`.
pub(super) const CSTS_RDY: u32 = 1;
pub(super) const CSTS_CFS: u32 = 1 << 1;
pub(super) const CSTS_SHST: u32 = 0b11 << 2;
pub(super) const CSTS_SHST_OCCURRING: u32 = 0b01 << 2;
pub(super) const CSTS_SHST_COMPLETE: u32 = 0b10 << 2;

/// Admin commands (§5).
pub(super) mod admin {
    pub(crate) const DELETE_SQ: u8 = 0x00;
    pub(crate) const CREATE_SQ: u8 = 0x01;
    pub(crate) const GET_LOG_PAGE: u8 = 0x02;
    pub(crate) const DELETE_CQ: u8 = 0x04;
    pub(crate) const CREATE_CQ: u8 = 0x05;
    pub(crate) const IDENTIFY: u8 = 0x06;
    pub(crate) const ABORT: u8 = 0x08;
    pub(crate) const SET_FEATURES: u8 = 0x09;
    pub(crate) const GET_FEATURES: u8 = 0x0a;
    pub(crate) const ASYNC_EVENT_REQUEST: u8 = 0x0c;
}

/// NVM commands (§6).
pub(super) mod nvm {
    pub(crate) const FLUSH: u8 = 0x00;
    pub(crate) const WRITE: u8 = 0x01;
    pub(crate) const READ: u8 = 0x02;
    pub(crate) const WRITE_ZEROES: u8 = 0x08;
    pub(crate) const DATASET_MANAGEMENT: u8 = 0x09;
}

/// Log pages (§5.14.1).
pub(super) mod log_page {
    pub(crate) const ERRORS: u8 = 0x01;
    pub(crate) const HEALTH: u8 = 0x02;
    pub(crate) const FIRMWARE: u8 = 0x03;
}

/// A command's status: status code, its type from bit 8 on (§4.6.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Status(u16);

impl Status {
    pub(super) const SUCCESS: Self = Self(0x000);
    pub(super) const INVALID_OPCODE: Self = Self(0x001);
    pub(super) const INVALID_FIELD: Self = Self(0x002);
    pub(super) const DATA_TRANSFER_ERROR: Self = Self(0x004);
    pub(super) const INVALID_NAMESPACE: Self = Self(0x00b);
    pub(super) const COMMAND_SEQUENCE_ERROR: Self = Self(0x00c);
    pub(super) const INVALID_PRP_OFFSET: Self = Self(0x013);
    pub(super) const WRITE_PROTECTED: Self = Self(0x020);
    pub(super) const LBA_OUT_OF_RANGE: Self = Self(0x080);
    pub(super) const CAPACITY_EXCEEDED: Self = Self(0x081);
    pub(super) const INVALID_COMPLETION_QUEUE: Self = Self(0x100);
    pub(super) const INVALID_QUEUE_IDENTIFIER: Self = Self(0x101);
    pub(super) const INVALID_QUEUE_SIZE: Self = Self(0x102);
    pub(super) const TOO_MANY_EVENT_REQUESTS: Self = Self(0x105);
    pub(super) const INVALID_INTERRUPT_VECTOR: Self = Self(0x108);
    pub(super) const INVALID_LOG_PAGE: Self = Self(0x109);
    pub(super) const INVALID_QUEUE_DELETION: Self = Self(0x10c);
    pub(super) const FEATURE_NOT_SAVEABLE: Self = Self(0x10d);
    pub(super) const WRITE_FAULT: Self = Self(0x280);
    pub(super) const UNRECOVERED_READ_ERROR: Self = Self(0x281);

    pub(super) fn is_success(self) -> bool {
        self == Self::SUCCESS
    }

    /// The Status Field of a completion, 15 bits. What failed for want of memory or media may succeed another time.
    pub(super) fn field(self) -> u16 {
        /// There is more in the error log.
        const MORE: u16 = 1 << 13;
        const DO_NOT_RETRY: u16 = 1 << 14;
        match self {
            Self::SUCCESS => 0,
            Self::DATA_TRANSFER_ERROR
            | Self::CAPACITY_EXCEEDED
            | Self::WRITE_FAULT
            | Self::UNRECOVERED_READ_ERROR => self.0 | MORE,
            _ => self.0 | MORE | DO_NOT_RETRY,
        }
    }
}

impl From<DmaError> for Status {
    fn from(_: DmaError) -> Self {
        Self::DATA_TRANSFER_ERROR
    }
}

/// A command, 64 bytes in a submission queue (§4.2).
#[derive(Debug, Clone, Copy)]
pub(super) struct Command {
    pub(super) opcode: u8,
    /// `FUSE` and `PSDT`.
    pub(super) flags: u8,
    pub(super) id: u16,
    pub(super) namespace: u32,
    pub(super) prp1: u64,
    pub(super) prp2: u64,
    /// Command Dwords 10 to 15.
    pub(super) dwords: [u32; 6],
}

impl Command {
    pub(super) fn decode(bytes: &[u8; 64]) -> Self {
        let dword = |n: usize| {
            let at = 4 * n;
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let qword = |n: usize| u64::from(dword(n)) | u64::from(dword(n + 1)) << 32;
        Self {
            opcode: bytes[0],
            flags: bytes[1],
            id: u16::from_le_bytes([bytes[2], bytes[3]]),
            namespace: dword(1),
            prp1: qword(6),
            prp2: qword(8),
            dwords: std::array::from_fn(|n| dword(10 + n)),
        }
    }

    /// Command Dword `n`, from 10 to 15.
    pub(super) fn dword(&self, n: usize) -> u32 {
        self.dwords[n - 10]
    }
}
