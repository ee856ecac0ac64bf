//! Memory attributes, chapter 13: type, cacheability with its hints, shareability.

use super::configuration::Ste;
use super::{bit, bits};

/// Cacheability at one level.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Cache {
    Nc,
    Wt,
    Wb,
}

/// Allocation hints at one level.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Hints {
    pub read: bool,
    pub write: bool,
    pub transient: bool,
}

/// §13.1.3: what is assumed where nothing is supplied.
const ALLOCATE: Hints = Hints { read: true, write: true, transient: false };
const NONE: Hints = Hints { read: false, write: false, transient: false };

/// A memory type. Levels are inner and outer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Memory {
    /// 0 nGnRnE, 1 nGnRE, 2 nGRE, 3 GRE: the lower the stronger.
    Device(u64),
    Normal([(Cache, Hints); 2]),
}

/// In the order of strength.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Share {
    Non,
    Inner,
    Outer,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Attributes {
    pub memory: Memory,
    pub share: Share,
}

impl Memory {
    /// A stage 2 `MemAttr`, not under FWB. Reserved encodings are Device-nGnRnE (§5.2 MemAttr).
    pub(crate) fn of_mem_attr(mem_attr: u64) -> Self {
        let level = |encoding| match encoding {
            0b01 => (Cache::Nc, NONE),
            0b10 => (Cache::Wt, ALLOCATE),
            _ => (Cache::Wb, ALLOCATE),
        };
        match (bits(mem_attr, 3, 2), bits(mem_attr, 1, 0)) {
            (0b00, device) => Self::Device(device),
            (_, 0b00) => Self::Device(0),
            (outer, inner) => Self::Normal([level(inner), level(outer)]),
        }
    }

    fn of_mair(byte: u64) -> Self {
        let level = |nibble| {
            let hints =
                |transient| Hints { read: bit(nibble, 1), write: bit(nibble, 0), transient };
            match bits(nibble, 3, 2) {
                0b01 if bits(nibble, 1, 0) == 0 => (Cache::Nc, NONE),
                0b00 => (Cache::Wt, hints(true)),
                0b01 => (Cache::Wb, hints(true)),
                0b10 => (Cache::Wt, hints(false)),
                _ => (Cache::Wb, hints(false)),
            }
        };
        match (bits(byte, 7, 4), bits(byte, 3, 0)) {
            // 0b00RW, 0b01RW, … with RW != 0 are reserved and behave as the Device type.
            (0, low) => Self::Device(bits(low, 3, 2)),
            // Reserved, behaves as Normal-iWT Transient with RW == 0b11.
            (high, 0) => Self::Normal([level(0b0011), level(high)]),
            (high, low) => Self::Normal([level(low), level(high)]),
        }
    }
}

fn share(sh: u64) -> Share {
    match sh {
        0b10 => Share::Outer,
        0b11 => Share::Inner,
        _ => Share::Non,
    }
}

impl Attributes {
    /// By `AttrIndx` and `SH` of a stage 1 leaf.
    pub(crate) fn of_mair(byte: u64, sh: u64) -> Self {
        Self { memory: Memory::of_mair(byte), share: share(sh) }.consistent()
    }

    /// §13.1.7.
    pub(crate) fn consistent(mut self) -> Self {
        match &mut self.memory {
            Memory::Device(_) => self.share = Share::Outer,
            Memory::Normal(levels) => {
                for (cache, hints) in levels.iter_mut() {
                    if *cache == Cache::Nc {
                        *hints = NONE;
                    }
                    if !hints.read && !hints.write {
                        hints.transient = false;
                    }
                }
                if levels.iter().all(|(cache, _)| *cache == Cache::Nc) {
                    self.share = Share::Outer;
                }
            }
        }
        self
    }

    /// Cacheable at both levels.
    pub(crate) fn fully_cacheable(self) -> bool {
        match self.memory {
            Memory::Device(_) => false,
            Memory::Normal(levels) => levels.iter().all(|(cache, _)| *cache != Cache::Nc),
        }
    }

    /// `replace_attrs()` with an STE's or GBPA's fields.
    pub(crate) fn replaced(mut self, by: &Overrides) -> Self {
        if !by.supported {
            return self;
        }
        if by.mtcfg {
            let mut memory = Memory::of_mem_attr(by.mem_attr);
            // Hints come with cacheable incoming memory; else the defaults apply.
            if let (Memory::Normal(new), Memory::Normal(old)) = (&mut memory, &self.memory) {
                for (new, old) in new.iter_mut().zip(old) {
                    new.1 = if old.0 == Cache::Nc { ALLOCATE } else { old.1 };
                }
            }
            self.memory = memory;
        }
        if bit(by.alloc_cfg, 3)
            && let Memory::Normal(levels) = &mut self.memory
        {
            for (_, hints) in levels {
                *hints = Hints {
                    read: bit(by.alloc_cfg, 2),
                    write: bit(by.alloc_cfg, 1),
                    transient: bit(by.alloc_cfg, 0),
                };
            }
        }
        self.share = match by.sh_cfg {
            0b01 => self.share,
            sh => share(sh),
        };
        self.consistent()
    }

    /// Stage 1: its type and shareability replace what came in; hints combine, where what came in
    /// was cacheable (§13.4.2).
    pub(crate) fn through_stage1(self, first: Self) -> Self {
        let mut result = first;
        if let (Memory::Normal(levels), Memory::Normal(incoming)) =
            (&mut result.memory, self.memory)
        {
            for (level, incoming) in levels.iter_mut().zip(incoming) {
                if incoming.0 != Cache::Nc {
                    level.1.read &= incoming.1.read;
                    level.1.write &= incoming.1.write;
                    level.1.transient |= incoming.1.transient;
                }
            }
        }
        result.consistent()
    }

    /// Stage 2: `combine_attrs()` or, with S2FWB, `combine_attrs_fwb()`.
    pub(crate) fn through_stage2(self, ste: &Ste, descriptor: u64) -> Self {
        let mem_attr = bits(descriptor, 5, 2);
        let sh = share(if ste.s2_ds { ste.s2_sh0 } else { bits(descriptor, 9, 8) });
        let memory = if ste.s2_fwb {
            self.forced(mem_attr)
        } else {
            self.combined(Memory::of_mem_attr(mem_attr))
        };
        Self { memory, share: self.share.max(sh) }.consistent()
    }

    fn combined(self, second: Memory) -> Memory {
        match (self.memory, second) {
            (Memory::Device(first), Memory::Device(second)) => Memory::Device(first.min(second)),
            (device @ Memory::Device(_), _) | (_, device @ Memory::Device(_)) => device,
            (Memory::Normal(mut levels), Memory::Normal(second)) => {
                for (level, second) in levels.iter_mut().zip(second) {
                    level.0 = level.0.min(second.0);
                }
                Memory::Normal(levels)
            }
        }
    }

    /// `S2ApplyFWBMemAttrs()`.
    fn forced(self, mem_attr: u64) -> Memory {
        if !bit(mem_attr, 2) {
            return match self.memory {
                Memory::Device(first) => Memory::Device(first.min(bits(mem_attr, 1, 0))),
                Memory::Normal(_) => Memory::Device(bits(mem_attr, 1, 0)),
            };
        }
        match (bits(mem_attr, 1, 0), self.memory) {
            (0b11, first) => first,
            (0b10, Memory::Device(_)) => Memory::Normal([(Cache::Wb, ALLOCATE); 2]),
            (0b10, Memory::Normal(levels)) => Memory::Normal(levels.map(|(cache, hints)| {
                (Cache::Wb, if cache == Cache::Nc { ALLOCATE } else { hints })
            })),
            (_, Memory::Device(first)) => Memory::Device(first),
            (_, Memory::Normal(_)) => Memory::Normal([(Cache::Nc, NONE); 2]),
        }
    }
}

/// The fields of an STE, or of GBPA, that replace incoming attributes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Overrides {
    pub supported: bool,
    pub mtcfg: bool,
    pub mem_attr: u64,
    pub alloc_cfg: u64,
    pub sh_cfg: u64,
}
