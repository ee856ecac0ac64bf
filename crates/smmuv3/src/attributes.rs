//! Memory attributes: what stages and overrides make of the type, cacheability and shareability
//! that a transaction came with (IHI 0070 chapter 13, DDI 0487 D8.6).

use std::fmt;

use pagetable::Shareability;

/// A memory type in the encoding of a `MAIR` byte, and a shareability.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Attributes {
    /// As a byte of `CD.MAIR`: upper half outer, lower half inner; upper half zero is Device.
    pub memory: u8,
    /// Who is kept coherent. Means something to cacheable memory only; other types are Outer Shareable.
    pub shareability: Shareability,
}

/// Device-nGnRnE.
const DEVICE_NGNRNE: u8 = 0x00;
/// Normal, inner and outer non-cacheable.
const NON_CACHEABLE: u8 = 0x44;
/// One half of that.
const NC: u8 = 0x4;
/// Normal, inner and outer write-back, read- and write-allocate.
const WRITE_BACK: u8 = 0xff;

impl Default for Attributes {
    /// Normal write-back memory, Inner Shareable: what a coherent PCIe root port presents.
    fn default() -> Self {
        Self { memory: WRITE_BACK, shareability: Shareability::Inner }
    }
}

impl Attributes {
    /// Attributes from a byte of `CD.MAIR`, with its reserved encodings resolved (§5.4, MAIR0).
    pub(crate) fn from_mair(byte: u8, shareability: Shareability) -> Self {
        let memory = match (byte >> 4, byte & 0xf) {
            // Reserved Device encodings behave as the type that bits [3:2] name.
            (0, low) => low & 0xc,
            (high, 0) => high << 4 | 0b0011,
            _ => byte,
        };
        Self { memory, shareability }.consistent()
    }

    /// The memory type replaced by a `MemAttr` of an STE or of GBPA (§5.2, MemAttr). Allocation hints stay, where
    /// there were any (§13.1.4).
    pub(crate) fn with_mem_attr(self, mem_attr: u8) -> Self {
        let new = mem_attr_to_mair(mem_attr);
        let half = |new: u8, old: u8| match new {
            NC => NC,
            _ if old == NC => new,
            _ => new & 0x4 | old & !0x4,
        };
        let memory = if new >> 4 == 0 || self.is_device() {
            new
        } else {
            half(new >> 4, self.memory >> 4) << 4 | half(new & 0xf, self.memory & 0xf)
        };
        Self { memory, ..self }.consistent()
    }

    /// Allocation hints replaced by an `ALLOCCFG` of an STE or of GBPA: read, write, transient.
    pub(crate) fn with_allocation(self, hints: u8) -> Self {
        if self.is_device() {
            return self;
        }
        let allocated = hints >> 1 & 0x3;
        // Nothing is transient that is not allocated.
        let new = if hints & 1 == 0 || allocated == 0 { 0x8 | allocated } else { allocated };
        Self {
            memory: both(self.memory, |half| if half == NC { NC } else { half & 0x4 | new }),
            ..self
        }
    }

    /// Whether the allocation hints can differ from those that change nothing.
    #[inline]
    pub(crate) fn has_hints(self) -> bool {
        self.memory != WRITE_BACK
    }

    /// The result of stage 1 with the allocation hints of what came in, where both are cacheable: the weaker hint
    /// wins (§13.4.2).
    pub(crate) fn hinted(self, incoming: Self) -> Self {
        if !incoming.has_hints() || incoming.is_device() || self.is_device() {
            return self;
        }
        let half = |own: u8, incoming: u8| {
            if own == NC || incoming == NC {
                return own;
            }
            let allocated = own & incoming & 0x3;
            let lasting = if allocated == 0 { 0x8 } else { own & incoming & 0x8 };
            own & 0x4 | lasting | allocated
        };
        let memory = half(self.memory >> 4, incoming.memory >> 4) << 4
            | half(self.memory & 0xf, incoming.memory & 0xf);
        Self { memory, ..self }
    }

    /// What stage 2 makes of the result of stage 1 (or of the incoming attributes).
    pub(crate) fn through_stage2(
        self,
        mem_attr: u8,
        shareability: Shareability,
        fwb: bool,
    ) -> Self {
        if fwb {
            let memory = match mem_attr & 0x7 {
                device @ 0..=3 if self.is_device() => self.memory.min(device << 2),
                device @ 0..=3 => device << 2,
                0b110 if self.is_device() => WRITE_BACK,
                0b110 => both(self.memory, |half| if half == NC { 0xf } else { half | 0x4 }),
                0b111 => self.memory,
                // 0b101, and the reserved 0b100.
                _ if self.is_device() => self.memory,
                _ => NON_CACHEABLE,
            };
            return Self { memory, shareability: stronger(self.shareability, shareability) }
                .consistent();
        }
        let second = mem_attr_to_mair(mem_attr);
        let memory = match (self.is_device(), second >> 4 == 0) {
            (true, true) => self.memory.min(second),
            (true, false) => self.memory,
            (false, true) => second,
            (false, false) => {
                cacheability(self.memory >> 4, second >> 4) << 4
                    | cacheability(self.memory & 0xf, second & 0xf)
            }
        };
        Self { memory, shareability: stronger(self.shareability, shareability) }.consistent()
    }

    /// Any Device type.
    pub fn is_device(self) -> bool {
        self.memory >> 4 == 0
    }

    /// Device and non-cacheable memory is Outer Shareable whatever was said; the reserved shareability is none (§5.4,
    /// SH0).
    fn consistent(mut self) -> Self {
        if self.shareability == Shareability::Reserved {
            self.shareability = Shareability::NonShareable;
        }
        if self.is_device() || self.memory == NON_CACHEABLE {
            self.shareability = Shareability::Outer;
        }
        self
    }
}

/// A stage 2 `MemAttr` as a `MAIR` byte. The reserved encodings are Device-nGnRnE.
fn mem_attr_to_mair(mem_attr: u8) -> u8 {
    let half = |bits| match bits {
        1 => 0x4,
        2 => 0xb,
        _ => 0xf,
    };
    match (mem_attr >> 2 & 3, mem_attr & 3) {
        (0, device) => device << 2,
        (_, 0) => DEVICE_NGNRNE,
        (outer, inner) => half(outer) << 4 | half(inner),
    }
}

/// Both halves of a `MAIR` byte, changed alike.
fn both(memory: u8, change: impl Fn(u8) -> u8) -> u8 {
    change(memory >> 4) << 4 | change(memory & 0xf)
}

/// The weaker cacheability of two halves of a `MAIR` byte, with the hints of the first.
fn cacheability(first: u8, second: u8) -> u8 {
    match (first, second) {
        (NC, _) | (_, NC) => NC,
        // Bit 2 is write-back.
        _ => first & (second | !0x4),
    }
}

fn stronger(first: Shareability, second: Shareability) -> Shareability {
    match (first, second) {
        (Shareability::Outer, _) | (_, Shareability::Outer) => Shareability::Outer,
        (Shareability::Inner, _) | (_, Shareability::Inner) => Shareability::Inner,
        _ => Shareability::NonShareable,
    }
}

impl fmt::Display for Attributes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_device() {
            return f.write_str(match self.memory >> 2 {
                0 => "Device-nGnRnE",
                1 => "Device-nGnRE",
                2 => "Device-nGRE",
                _ => "Device-GRE",
            });
        }
        let name = |half: u8| match half {
            0x4 => "NC",
            half if half & 0x4 == 0 => "WT",
            _ => "WB",
        };
        let sharers = match self.shareability {
            Shareability::Outer => "OSH",
            Shareability::Inner => "ISH",
            _ => "NSH",
        };
        write!(f, "Normal i{} o{} {sharers}", name(self.memory & 0xf), name(self.memory >> 4))
    }
}
