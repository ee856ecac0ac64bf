//! Saving, restoring and resetting all that software can see.

use thiserror::Error;

use crate::accelerator::StreamConfig;
use crate::front::{Front, Stalled};
use crate::platform::{Memory, Resume};
use crate::smmu::Smmu;
use crate::sync::Fence;
use crate::wire::Event;
use crate::wire::register::{Access, Cr0, Register};

/// The state of an SMMU: its registers, and the transactions that it holds stalled. Caches are not
/// part of it; what they held is read from memory again.
///
/// Stalled transactions belong to devices, which save them with their STAG and issue them again
/// when [`Devices::resume`](crate::Devices::resume) names it after the restore. An ATS invalidation without
/// an answer counts as done after a restore: a restored endpoint has an empty ATC.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct State {
    /// All registers by their offset in the register file, ID registers included.
    pub registers: Vec<(u32, u64)>,
    /// The stalled transactions.
    pub stalled: Vec<StalledState>,
    /// The STAG from which the next one is looked for.
    pub next_stag: u16,
    /// An ATS invalidation since the last `CMD_SYNC` was not answered in time.
    pub atc_failed: bool,
}

/// A stalled transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct StalledState {
    /// Its event record; the STAG is in it.
    pub event: [u64; 4],
    /// Whether the record is in the Event queue.
    pub reported: bool,
}

/// A state that this SMMU cannot take over. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RestoreError {
    /// Software has seen other features than this SMMU has.
    #[error(
        "{register} was {saved:#x} when the state was saved and is {here:#x} here: \
         create the SMMU with the options of the one that was saved"
    )]
    Different {
        /// The ID register.
        register: Register,
        /// Its value in the state.
        saved: u64,
        /// Its value here.
        here: u64,
    },
    /// A register has no value, or there is no such register.
    #[error("the state has no value, or more than one, for the register at {offset:#x}")]
    Registers {
        /// Its offset in the register file.
        offset: u32,
    },
    /// A stalled transaction makes no sense.
    #[error(
        "the state's stalled transaction {index} is not an event record of a stall, or its STAG is taken"
    )]
    Stalled {
        /// Its index in [`State::stalled`].
        index: usize,
    },
}

impl<M: Memory, F: Fence> Smmu<M, F> {
    /// The state as of now. Transactions and register accesses should have ceased.
    pub fn save(&self) -> State {
        self.poll();
        let front = self.front.lock();
        let register = |&register: &Register| (register.offset(), front.value(register));
        let stalled = |stalled: &Stalled| StalledState {
            event: stalled.event.encode(),
            reported: stalled.reported,
        };
        State {
            registers: Register::ALL.iter().map(register).collect(),
            stalled: front.stalled.iter().flatten().map(stalled).collect(),
            next_stag: front.next_stag,
            atc_failed: front.atc_failed,
        }
    }

    /// Takes over a saved state, and goes on with the commands that were not executed when it was saved.
    pub fn restore(&self, state: &State) -> Result<(), RestoreError> {
        let mut restored = Front::new(&self.options);
        for register in Register::ALL {
            let offset = register.offset();
            let mut found = state.registers.iter().filter(|(at, _)| *at == offset);
            let (Some((_, saved)), None) = (found.next(), found.next()) else {
                return Err(RestoreError::Registers { offset });
            };
            let here = restored.value(*register);
            let acknowledgement =
                matches!(register, Register::Cr0Ack | Register::IrqCtrlAck | Register::Gerror);
            if register.access() == Access::ReadOnly && !acknowledgement {
                if *saved != here {
                    return Err(RestoreError::Different {
                        register: *register,
                        saved: *saved,
                        here,
                    });
                }
            } else {
                let mask = crate::registers::stored(*register, &self.options);
                restored.set(*register, saved & mask);
            }
        }
        if let Some((offset, _)) =
            state.registers.iter().find(|(at, _)| !Register::ALL.iter().any(|r| r.offset() == *at))
        {
            return Err(RestoreError::Registers { offset: *offset });
        }
        for (index, saved) in state.stalled.iter().enumerate() {
            let event = Event::decode(&saved.event).filter(|event| event.stall);
            let slot = event.and_then(|event| restored.stalled.get_mut(usize::from(event.stag)));
            match (event, slot) {
                (Some(event), Some(slot @ None)) => {
                    *slot = Some(Stalled { event, reported: saved.reported });
                }
                _ => return Err(RestoreError::Stalled { index }),
            }
        }
        restored.next_stag = state.next_stag;
        restored.atc_failed = state.atc_failed;
        // Whatever waited for transactions to end: there are none.
        let cr0 = Cr0(restored.word(Register::Cr0));
        restored.set(Register::Cr0Ack, cr0.0.into());
        self.replace(restored);
        Ok(())
    }

    /// What a reset line does: registers as out of reset, nothing cached, stalled transactions aborted.
    ///
    /// Assigned streams do first what `GBPA` will say.
    pub fn reset(&self) {
        {
            let mut front = self.front.lock();
            front.end_stalls(|_| true, Resume::Abort);
            let abort = self.options.reset_abort;
            let policy = if abort { StreamConfig::Abort } else { StreamConfig::Bypass };
            self.refresh_all(&mut front, Some(policy));
        }
        self.poll();
        self.replace(Front::new(&self.options));
    }

    fn replace(&self, new: Front) {
        {
            let mut front = self.front.lock();
            let draining = front.draining;
            let assigned = std::mem::take(&mut front.assigned).restart();
            *front = new;
            (front.draining, front.assigned) = (draining, assigned);
            self.live.set(&front);
            self.tlb.invalidate_all_streams();
            self.tlb.invalidate_all();
            self.refresh_all(&mut front, None);
            self.in_flight.forget_unless(false);
            self.report_stalled(&mut front);
        }
        self.poll();
    }
}
