//! What devices issue, and what becomes of it.

use std::fmt;

use crate::attributes::Attributes;
use crate::platform::Abort;

/// A transaction as a device issues it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transaction {
    /// Who issues it.
    pub stream_id: u32,
    /// On behalf of which of its address spaces (PCIe: PASID).
    pub substream_id: Option<u32>,
    /// The input address, 64 bits.
    pub address: u64,
    /// A write, else a read.
    pub write: bool,
    /// Privileged, else unprivileged.
    pub privileged: bool,
    /// An instruction fetch; writes are data whatever this says.
    pub instruction: bool,
    /// The memory attributes that it comes with.
    pub attributes: Attributes,
    /// PCIe: the address was translated by ATS.
    pub translated: bool,
}

impl Transaction {
    /// An unprivileged data read of ordinary memory.
    pub fn read(stream_id: u32, address: u64) -> Self {
        Self {
            stream_id,
            substream_id: None,
            address,
            write: false,
            privileged: false,
            instruction: false,
            attributes: Attributes::default(),
            translated: false,
        }
    }

    /// An unprivileged data write of ordinary memory.
    pub fn write(stream_id: u32, address: u64) -> Self {
        Self { write: true, ..Self::read(stream_id, address) }
    }

    /// The same for a substream.
    #[must_use]
    pub fn with_substream(self, substream_id: u32) -> Self {
        Self { substream_id: Some(substream_id), ..self }
    }
}

impl fmt::Display for Transaction {
    /// `stream 0x3, SubstreamID 0x9 reads 0x5000`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "stream {:#x}", self.stream_id)?;
        if let Some(substream_id) = self.substream_id {
            write!(f, ", SubstreamID {substream_id:#x}")?;
        }
        let verb = match (self.write, self.instruction) {
            (true, _) => "writes",
            (false, true) => "fetches instructions from",
            (false, false) => "reads",
        };
        write!(f, " {verb} {:#x}", self.address)?;
        match (self.privileged, self.translated) {
            (false, false) => Ok(()),
            (true, false) => f.write_str(" (privileged)"),
            (_, true) => f.write_str(" (translated by ATS)"),
        }
    }
}

/// Where a transaction goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Translation {
    /// The output address for the transaction's input address (PA).
    pub address: u64,
    /// How many bytes from there on continue the input alike: to the end of the page.
    pub length: u64,
    /// Memory attributes of the access.
    pub attributes: Attributes,
    /// Privileged, after overrides.
    pub privileged: bool,
    /// An instruction fetch, after overrides.
    pub instruction: bool,
}

/// Why a transaction goes nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It ends with a bus error.
    #[error("aborted")]
    Abort,
    /// It ends as if it had succeeded: reads are zero, writes are ignored (`CD.A == 0`).
    #[error("terminated, reads as zero and ignores writes")]
    RazWi,
    /// It waits: [`Devices::resume`](crate::Devices::resume) says when to issue it again or how to end it.
    #[error("stalled as {stag:#x}")]
    Stalled {
        /// What names it until then.
        stag: u16,
    },
}

impl From<Abort> for Refused {
    fn from(_: Abort) -> Self {
        Self::Abort
    }
}
