//! Features (§5.21.1): what the host can set of a controller.

use super::spec::{Command, Status};
use super::state::{IO_QUEUES, VECTORS};

const ARBITRATION: u32 = 0x01;
const POWER_MANAGEMENT: u32 = 0x02;
const TEMPERATURE_THRESHOLD: u32 = 0x04;
const ERROR_RECOVERY: u32 = 0x05;
const VOLATILE_WRITE_CACHE: u32 = 0x06;
const NUMBER_OF_QUEUES: u32 = 0x07;
const INTERRUPT_COALESCING: u32 = 0x08;
const INTERRUPT_VECTOR: u32 = 0x09;
const WRITE_ATOMICITY: u32 = 0x0a;
const ASYNC_EVENTS: u32 = 0x0b;

/// The temperature that is too high, in Kelvin, and the one that there always is.
pub(super) const WARNING_TEMPERATURE: u16 = 343;
pub(super) const TEMPERATURE: u16 = 300;

/// Their values since the last reset. Those that nothing here depends on are kept for who asks.
pub(super) struct Features {
    arbitration: u32,
    over_temperature: u16,
    under_temperature: u16,
    error_recovery: u32,
    pub(super) write_cache: bool,
    interrupt_coalescing: u32,
    /// Vectors that are not to be coalesced; none are.
    not_coalesced: [bool; VECTORS as usize],
    write_atomicity: u32,
    async_events: u32,
}

impl Features {
    pub(super) fn new() -> Self {
        Self {
            arbitration: 0,
            over_temperature: WARNING_TEMPERATURE,
            under_temperature: 0,
            error_recovery: 0,
            write_cache: true,
            interrupt_coalescing: 0,
            not_coalesced: [false; VECTORS as usize],
            write_atomicity: 0,
            async_events: 0,
        }
    }

    /// Get Features: Dword 0 of the completion.
    pub(super) fn get(&self, command: &Command) -> Result<u32, Status> {
        let argument = command.dword(11);
        Ok(match command.dword(10) & 0xff {
            ARBITRATION => self.arbitration,
            POWER_MANAGEMENT => 0,
            TEMPERATURE_THRESHOLD => {
                let under = argument >> 20 & 0b11 == 1;
                (if under { self.under_temperature } else { self.over_temperature }).into()
            }
            ERROR_RECOVERY => self.error_recovery,
            VOLATILE_WRITE_CACHE => self.write_cache.into(),
            NUMBER_OF_QUEUES => Self::queues(),
            INTERRUPT_COALESCING => self.interrupt_coalescing,
            INTERRUPT_VECTOR => {
                let vector = argument & 0xffff;
                let set = self.not_coalesced.get(vector as usize).ok_or(Status::INVALID_FIELD)?;
                vector | u32::from(*set) << 16
            }
            WRITE_ATOMICITY => self.write_atomicity,
            ASYNC_EVENTS => self.async_events,
            _ => return Err(Status::INVALID_FIELD),
        })
    }

    /// Set Features: Dword 0 of the completion. `has_queues`: there are I/O queues.
    pub(super) fn set(&mut self, command: &Command, has_queues: bool) -> Result<u32, Status> {
        const SAVE: u32 = 1 << 31;
        let (id, value) = (command.dword(10), command.dword(11));
        if id & SAVE != 0 {
            return Err(Status::FEATURE_NOT_SAVEABLE);
        }
        match id & 0xff {
            ARBITRATION => self.arbitration = value,
            // There is one state, 0.
            POWER_MANAGEMENT if value & 0x1f != 0 => return Err(Status::INVALID_FIELD),
            POWER_MANAGEMENT => {}
            TEMPERATURE_THRESHOLD => match value >> 20 & 0b11 {
                0 => self.over_temperature = value as u16,
                1 => self.under_temperature = value as u16,
                _ => return Err(Status::INVALID_FIELD),
            },
            ERROR_RECOVERY => self.error_recovery = value & 0xffff,
            VOLATILE_WRITE_CACHE => self.write_cache = value & 1 != 0,
            NUMBER_OF_QUEUES => {
                if has_queues {
                    return Err(Status::COMMAND_SEQUENCE_ERROR);
                }
                if value & 0xffff == 0xffff || value >> 16 == 0xffff {
                    return Err(Status::INVALID_FIELD);
                }
                return Ok(Self::queues());
            }
            INTERRUPT_COALESCING => self.interrupt_coalescing = value & 0xffff,
            INTERRUPT_VECTOR => {
                let vector = self.not_coalesced.get_mut((value & 0xffff) as usize);
                *vector.ok_or(Status::INVALID_FIELD)? = value >> 16 & 1 != 0;
            }
            WRITE_ATOMICITY => self.write_atomicity = value & 1,
            ASYNC_EVENTS => self.async_events = value,
            _ => return Err(Status::INVALID_FIELD),
        }
        Ok(0)
    }

    /// As many as there are, however many were asked for; both counts less one.
    fn queues() -> u32 {
        let count = u32::from(IO_QUEUES) - 1;
        count | count << 16
    }
}
