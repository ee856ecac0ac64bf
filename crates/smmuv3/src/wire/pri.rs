//! PRI queue records (§8): 16 bytes each.

use std::fmt;

use super::field::fields;

fields! {
    struct Raw([u64; 2]) {
        sid, with_sid: u32 = "StreamID" [31:0];
        ssid, with_ssid: u32 = "SubstreamID" [51:32];
        privileged, with_privileged: bool = "Priv" [58];
        exec, with_exec: bool = "X" [59];
        read, with_read: bool = "R" [60];
        write, with_write: bool = "W" [61];
        last, with_last: bool = "Last" [62];
        ssv, with_ssv: bool = "SSV" [63];
        prg_index, with_prg_index: u16 = "PRGIndex" [72:64];
        address, with_address: address = "PageAddress" [127:76];
    }
}

/// A page request from a device (§8).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PageRequest {
    /// StreamID; its low 16 bits are the PCIe RequesterID.
    pub sid: u32,
    /// SubstreamID, if the request came with a PASID.
    pub ssid: Option<u32>,
    /// Write access wanted.
    pub write: bool,
    /// Read access wanted.
    pub read: bool,
    /// Execute access wanted; only with a SubstreamID.
    pub exec: bool,
    /// Privileged access wanted; only with a SubstreamID.
    pub privileged: bool,
    /// The last request of its group.
    pub last: bool,
    /// Page request group index, 9 bits.
    pub prg_index: u16,
    /// Address of the page, bits 63:12.
    pub address: u64,
}

impl PageRequest {
    /// Encodes the record. Without a SubstreamID, X and Priv are 0 as §8 demands.
    #[must_use]
    pub fn encode(&self) -> [u64; 2] {
        let raw = Raw::default()
            .with_sid(self.sid)
            .with_read(self.read)
            .with_write(self.write)
            .with_last(self.last)
            .with_prg_index(self.prg_index)
            .with_address(self.address);
        match self.ssid {
            Some(ssid) => raw
                .with_ssv(true)
                .with_ssid(ssid)
                .with_exec(self.exec)
                .with_privileged(self.privileged),
            None => raw,
        }
        .0
    }

    /// Decodes a record.
    #[must_use]
    pub fn decode(raw: &[u64; 2]) -> Self {
        let raw = Raw(*raw);
        Self {
            sid: raw.sid(),
            ssid: raw.ssv().then(|| raw.ssid()),
            write: raw.write(),
            read: raw.read(),
            exec: raw.ssv() && raw.exec(),
            privileged: raw.ssv() && raw.privileged(),
            last: raw.last(),
            prg_index: raw.prg_index(),
            address: raw.address(),
        }
    }

    /// Whether this is a Stop PASID marker: it ends the use of a PASID, and nobody answers it.
    ///
    /// The same bits without a SubstreamID are an ordinary request.
    #[must_use]
    pub const fn is_stop_marker(&self) -> bool {
        self.ssid.is_some() && self.last && !self.write && !self.read
    }
}

impl fmt::Display for PageRequest {
    /// One line: `page request SID=0x8 SSID=0x1 0x7000 rw- user PRGIndex=3 last`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.is_stop_marker() { "stop marker" } else { "page request" };
        write!(f, "{kind} SID={:#x}", self.sid)?;
        if let Some(ssid) = self.ssid {
            write!(f, " SSID={ssid:#x}")?;
        }
        let letter = |set, letter| if set { letter } else { "-" };
        write!(
            f,
            " {:#x} {}{}{} {} PRGIndex={}",
            self.address,
            letter(self.read, "r"),
            letter(self.write, "w"),
            letter(self.exec, "x"),
            if self.privileged { "privileged" } else { "user" },
            self.prg_index
        )?;
        if self.last { f.write_str(" last") } else { Ok(()) }
    }
}
