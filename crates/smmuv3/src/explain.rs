//! Every step of a translation, for people.

use std::fmt;

use pagetable::{Meaning, Permissions, Step as WalkStep, TableAttributes};

use crate::attributes::Attributes;
use crate::transaction::{Refused, Transaction, Translation};
use crate::wire::{Cd, Class, Event, L1Cd, L1Std, Ste};

/// One thing that happened on the way from an input address to an output address or a fault.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Step {
    /// `SMMU_CR0.SMMUEN` is 0; `SMMU_GBPA` decides.
    Disabled {
        /// `GBPA.ABORT`.
        abort: bool,
    },
    /// A level 1 stream table descriptor was fetched.
    L1Std {
        /// Where (PA).
        address: u64,
        /// What.
        l1std: L1Std,
    },
    /// An STE was fetched.
    Ste {
        /// Where (PA).
        address: u64,
        /// What.
        ste: Ste,
    },
    /// A level 1 CD descriptor was fetched.
    L1Cd {
        /// Where: an IPA if stage 2 translates, else the PA.
        address: u64,
        /// Where (PA).
        physical: u64,
        /// What.
        l1cd: L1Cd,
    },
    /// A CD was fetched.
    Cd {
        /// Where: an IPA if stage 2 translates, else the PA.
        address: u64,
        /// Where (PA).
        physical: u64,
        /// What.
        cd: Cd,
    },
    /// The address is outside the range that a stage translates.
    OutOfRange {
        /// 1 or 2.
        stage: u8,
        /// The address.
        address: u64,
    },
    /// Stage 2 is about to translate an address.
    Stage2 {
        /// The address (IPA).
        ipa: u64,
        /// What is there: a CD, a stage 1 table, or the data.
        class: Class,
    },
    /// A translation table descriptor was read.
    Descriptor {
        /// 1 or 2.
        stage: u8,
        /// Where (PA); `step` has the IPA if stage 2 translates stage 1's tables.
        physical: u64,
        /// What, and what it means.
        step: WalkStep,
    },
    /// Hardware update of access or dirty state.
    Updated {
        /// 1 or 2.
        stage: u8,
        /// Where (PA).
        address: u64,
        /// The descriptor before.
        old: u64,
        /// The descriptor after.
        new: u64,
    },
    /// A stage does not permit the access.
    Denied {
        /// 1 or 2.
        stage: u8,
        /// What it permits.
        granted: Permissions,
        /// What was wanted.
        wanted: Permissions,
    },
    /// What all stages make together.
    Combined {
        /// The output address (PA).
        address: u64,
        /// Log2 of the size of the page around it.
        size_log2: u8,
        /// What is permitted.
        permissions: Permissions,
        /// The memory attributes.
        attributes: Attributes,
    },
    /// The transaction ended in a fault; this is the event, whether or not it is to be recorded.
    Fault {
        /// The event.
        event: Event,
        /// Whether the configuration has it recorded.
        recorded: bool,
        /// Whether the transaction stalls.
        stalls: bool,
    },
}

/// Sees the steps of a translation.
pub(crate) trait Recorder {
    fn step(&mut self, step: impl FnOnce() -> Step);
}

/// Nobody watches; costs nothing.
impl Recorder for () {
    #[inline]
    fn step(&mut self, _: impl FnOnce() -> Step) {}
}

impl Recorder for Vec<Step> {
    fn step(&mut self, step: impl FnOnce() -> Step) {
        self.push(step());
    }
}

/// All steps of one translation; see [`Smmu::explain`](crate::Smmu::explain).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// In the order in which they happened.
    pub steps: Vec<Step>,
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.steps.iter().try_for_each(|step| writeln!(f, "{step}"))
    }
}

/// A transaction that was refused, explained.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExplainedFault {
    /// The transaction.
    pub transaction: Transaction,
    /// How it ended.
    pub refused: Refused,
    /// What memory says of it right after: the event, or [`Event::default`] if there is none for this; a translation if
    /// software has mended in the meantime what was wrong.
    pub now: Result<Translation, Event>,
    /// The same step by step.
    pub explanation: Explanation,
}

impl fmt::Display for ExplainedFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {}", self.transaction, self.refused)?;
        writeln!(f, "{}", Indented(&self.explanation))?;
        match &self.now {
            Ok(_) => writeln!(f, "  by now memory permits it: changed in the meantime"),
            Err(event) if *event == Event::default() => writeln!(f, "  aborted without an event"),
            Err(_) => Ok(()),
        }
    }
}

/// Who hears of transactions that are refused: a closure, mostly.
pub trait FaultSink: Send + Sync {
    /// A transaction was refused. Called on its thread while it is under way: do not wait for software here, whose
    /// `CMD_SYNC` waits for the transaction. No lock of the SMMU is held.
    fn fault(&self, fault: &ExplainedFault);
}

impl<T: Fn(&ExplainedFault) + Send + Sync> FaultSink for T {
    fn fault(&self, fault: &ExplainedFault) {
        self(fault);
    }
}

/// Faults are being explained already, to somebody else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("faults are being explained already")]
pub struct AlreadyExplaining;

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disabled { abort: true } => write!(f, "SMMUEN = 0, GBPA.ABORT = 1: aborted"),
            Self::Disabled { abort: false } => {
                write!(f, "SMMUEN = 0, GBPA.ABORT = 0: passed through")
            }
            Self::L1Std { address, l1std } => {
                write!(f, "L1STD at {address:#x}\n{}", Indented(l1std))
            }
            Self::Ste { address, ste } => write!(f, "STE at {address:#x}\n{}", Indented(ste)),
            Self::L1Cd { address, physical, l1cd } => {
                write!(f, "L1CD at {}\n{}", At(*address, *physical), Indented(l1cd))
            }
            Self::Cd { address, physical, cd } => {
                write!(f, "CD at {}\n{}", At(*address, *physical), Indented(cd))
            }
            Self::OutOfRange { stage, address } => {
                write!(f, "stage {stage}: {address:#x} is outside of the range that it translates")
            }
            Self::Stage2 { ipa, class } => {
                let what = match class {
                    Class::Cd => "the CD's table",
                    Class::Tt => "a stage 1 table",
                    _ => "the data",
                };
                write!(f, "    IPA {ipa:#x} of {what}:")
            }
            Self::Descriptor { stage, physical, step } => {
                let indent = if *stage == 2 { "      " } else { "  " };
                write!(
                    f,
                    "{indent}stage {stage} level {} at {}: {:#018x} ",
                    step.level,
                    At(step.address, *physical),
                    step.descriptor
                )?;
                match step.meaning {
                    Meaning::Invalid => f.write_str("invalid"),
                    Meaning::Reserved => {
                        f.write_str("reserved encoding, or a block where none may stand: invalid")
                    }
                    Meaning::Table(next) => {
                        write!(f, "table at {:#x}", next.table)?;
                        if next.attributes == TableAttributes::NONE {
                            return Ok(());
                        }
                        write!(f, ", which takes away {:?}", next.attributes)
                    }
                    Meaning::Leaf { output, size_log2 } => {
                        write!(f, "maps {} to {output:#x}", Size(size_log2))
                    }
                    Meaning::BeyondOutput { address } => {
                        write!(f, "{address:#x} is beyond the output size")
                    }
                }
            }
            Self::Updated { stage, address, old, new } => write!(
                f,
                "  stage {stage} descriptor at {address:#x} updated by hardware: {old:#018x} -> {new:#018x}"
            ),
            Self::Denied { stage, granted, wanted } => {
                write!(f, "stage {stage} grants {granted:?}, the transaction wants {wanted:?}")
            }
            Self::Combined { address, size_log2, permissions, attributes } => {
                write!(
                    f,
                    "output {address:#x} in a page of {}, {permissions:?}, {attributes}",
                    Size(*size_log2)
                )
            }
            Self::Fault { event, recorded, stalls } => {
                let fate = match (recorded, stalls) {
                    (_, true) => "recorded, the transaction stalls",
                    (true, _) => "recorded",
                    _ => "not recorded: the configuration says so",
                };
                write!(f, "fault: {event} ({fate})")
            }
        }
    }
}

struct Indented<T>(T);

impl<T: fmt::Display> fmt::Display for Indented<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.0.to_string();
        let mut lines = text.lines().peekable();
        while let Some(line) = lines.next() {
            write!(f, "  {line}")?;
            if lines.peek().is_some() {
                writeln!(f)?;
            }
        }
        Ok(())
    }
}

struct At(u64, u64);

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == self.1 {
            write!(f, "{:#x}", self.0)
        } else {
            write!(f, "IPA {:#x} = PA {:#x}", self.0, self.1)
        }
    }
}

struct Size(u8);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            log2 @ 40.. => write!(f, "{} TiB", 1u64 << (log2 - 40)),
            log2 @ 30.. => write!(f, "{} GiB", 1u64 << (log2 - 30)),
            log2 @ 20.. => write!(f, "{} MiB", 1u64 << (log2 - 20)),
            log2 @ 10.. => write!(f, "{} KiB", 1u64 << (log2 - 10)),
            log2 => write!(f, "{} bytes", 1u64 << log2),
        }
    }
}
