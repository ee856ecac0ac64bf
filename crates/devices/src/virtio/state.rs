//! What the driver has made of the device: the common configuration (§4.1.4.3) and what follows from it.

use super::ring::{MAX_SIZE, Ring};
use super::spec::{NO_VECTOR, feature, status};

/// Bytes of the common configuration.
pub(super) const COMMON_LEN: usize = 60;

/// A queue as it is configured.
#[derive(Debug, Clone, Copy)]
pub(super) struct Queue {
    pub(super) ring: Ring,
    pub(super) vector: u16,
    pub(super) enabled: bool,
}

impl Queue {
    fn new() -> Self {
        Self { ring: Ring::new(), vector: NO_VECTOR, enabled: false }
    }
}

/// What a write to the common configuration asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    /// Nothing more.
    None,
    /// A reset.
    Reset,
    /// The queues are to be looked at.
    Start,
    /// The device cannot go on.
    Break,
}

/// See the module.
pub(super) struct State {
    /// Changes with each reset.
    pub(super) life: u64,
    offered: u64,
    pub(super) accepted: u64,
    status: u8,
    device_select: u32,
    driver_select: u32,
    queue_select: u16,
    pub(super) config_vector: u16,
    pub(super) queues: Vec<Queue>,
    /// Queues that there may be something in, a bit each.
    pending: u64,
    /// The queue after the one that was served last.
    turn: u32,
    pub(super) isr: u8,
    /// The driver is to be told that the device's status has changed.
    pub(super) config_changed: bool,
    /// `writeback`: what is written may wait for a flush.
    pub(super) writeback: bool,
}

impl State {
    /// As after a reset, with these features on offer.
    pub(super) fn new(life: u64, offered: u64, queues: usize) -> Self {
        Self {
            life,
            offered,
            accepted: 0,
            status: 0,
            device_select: 0,
            driver_select: 0,
            queue_select: 0,
            config_vector: NO_VECTOR,
            queues: vec![Queue::new(); queues],
            pending: 0,
            turn: 0,
            isr: 0,
            config_changed: false,
            writeback: true,
        }
    }

    /// Nothing more is begun, and what is under way is forgotten. The status tells when that is over: after `reset`.
    pub(super) fn begin_reset(&mut self) {
        self.life += 1;
        self.status &= !status::DRIVER_OK;
    }

    pub(super) fn reset(&mut self) {
        *self = Self::new(self.life + 1, self.offered, self.queues.len());
    }

    pub(super) fn has(&self, feature: u64) -> bool {
        self.accepted & feature != 0
    }

    /// What is written may wait for a flush (§5.2.5.2).
    pub(super) fn is_cached(&self) -> bool {
        self.has(feature::FLUSH) && self.writeback
    }

    /// Requests are carried out.
    pub(super) fn is_running(&self) -> bool {
        self.status & (status::DRIVER_OK | status::NEEDS_RESET) == status::DRIVER_OK
    }

    /// The ring of a queue makes no sense, or cannot be reached.
    pub(super) fn fail(&mut self) {
        self.config_changed |= self.is_running();
        self.status |= status::NEEDS_RESET;
    }

    pub(super) fn notify(&mut self, queue: u64) {
        if self.queues.get(queue as usize).is_some_and(|queue| queue.enabled) {
            self.pending |= 1 << queue;
        }
    }

    /// There may be more in a queue.
    pub(super) fn defer(&mut self, queue: usize) {
        self.pending |= 1 << queue;
    }

    /// The next queue with something in it.
    pub(super) fn next_queue(&mut self) -> Option<usize> {
        if !self.is_running() || self.pending == 0 {
            return None;
        }
        let behind = self.pending & !0 << self.turn;
        let next = if behind == 0 { self.pending } else { behind }.trailing_zeros();
        self.pending &= !(1 << next);
        self.turn = (next + 1) % 64;
        Some(next as usize)
    }

    /// The common configuration.
    pub(super) fn common(&self) -> [u8; COMMON_LEN] {
        let half = |word: u64, select: u32| match select {
            0 => word as u32,
            1 => (word >> 32) as u32,
            _ => 0,
        };
        let mut bytes = [0; COMMON_LEN];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, &self.device_select.to_le_bytes());
        put(4, &half(self.offered, self.device_select).to_le_bytes());
        put(8, &self.driver_select.to_le_bytes());
        put(12, &half(self.accepted, self.driver_select).to_le_bytes());
        put(16, &self.config_vector.to_le_bytes());
        put(18, &(self.queues.len() as u16).to_le_bytes());
        put(20, &[self.status]);
        put(22, &self.queue_select.to_le_bytes());
        if let Some(queue) = self.queues.get(usize::from(self.queue_select)) {
            let Ring { size, descriptors, driver, device, .. } = queue.ring;
            put(24, &size.to_le_bytes());
            put(26, &queue.vector.to_le_bytes());
            put(28, &u16::from(queue.enabled).to_le_bytes());
            // queue_notify_off: each has its own.
            put(30, &self.queue_select.to_le_bytes());
            put(32, &descriptors.to_le_bytes());
            put(40, &driver.to_le_bytes());
            put(48, &device.to_le_bytes());
        } else {
            put(26, &NO_VECTOR.to_le_bytes());
        }
        bytes
    }

    /// Writes a part of the common configuration. Drivers write whole fields, or halves of those of 8 bytes.
    pub(super) fn set_common(&mut self, at: usize, data: &[u8]) -> Effect {
        let value = data.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
        let vectors = self.queues.len() as u16 + 1;
        let vector = |value: u64| {
            let vector = value as u16;
            if vector < vectors { vector } else { NO_VECTOR }
        };
        match (at, data.len()) {
            (0, 4) => self.device_select = value as u32,
            (8, 4) => self.driver_select = value as u32,
            (12, 4) if self.status & status::FEATURES_OK == 0 => {
                let (shift, keep) = match self.driver_select {
                    0 => (0, !0 << 32),
                    1 => (32, !0 >> 32),
                    _ => return Effect::None,
                };
                self.accepted = self.accepted & keep | value << shift;
            }
            (16, 2) => self.config_vector = vector(value),
            (20, 1) => return self.set_status(value as u8),
            (22, 2) => self.queue_select = value as u16,
            (24..56, _) => return self.set_queue(at, data, value, vector(value)),
            _ => {}
        }
        Effect::None
    }

    fn set_queue(&mut self, at: usize, data: &[u8], value: u64, vector: u16) -> Effect {
        let Some(queue) = self.queues.get_mut(usize::from(self.queue_select)) else {
            return Effect::None;
        };
        if (at, data.len()) == (26, 2) {
            queue.vector = vector;
            return Effect::None;
        }
        if queue.enabled {
            return Effect::None;
        }
        let merge = |old: u64, at: usize| {
            let (shift, bits) = (8 * at, 8 * data.len());
            let mask = if bits == 64 { !0 } else { ((1 << bits) - 1) << shift };
            old & !mask | value << shift & mask
        };
        match (at, data.len()) {
            (24, 2) => {
                let size = value as u16;
                if size.is_power_of_two() && size <= MAX_SIZE {
                    queue.ring.size = size;
                }
            }
            (28, 2) if value == 1 => {
                queue.enabled = true;
                if !queue.ring.is_aligned() {
                    return Effect::Break;
                }
            }
            (32 | 36, 4) | (32, 8) => {
                queue.ring.descriptors = merge(queue.ring.descriptors, at - 32);
            }
            (40 | 44, 4) | (40, 8) => queue.ring.driver = merge(queue.ring.driver, at - 40),
            (48 | 52, 4) | (48, 8) => queue.ring.device = merge(queue.ring.device, at - 48),
            _ => {}
        }
        Effect::None
    }

    fn set_status(&mut self, value: u8) -> Effect {
        if value == 0 {
            return Effect::Reset;
        }
        let was_running = self.is_running();
        // The driver only adds to it; what the device says stays.
        let mut new = self.status | value & !status::NEEDS_RESET;
        let possible = self.accepted & !self.offered == 0 && self.has(feature::VERSION_1);
        if self.status & status::FEATURES_OK == 0 && !possible {
            new &= !status::FEATURES_OK;
        }
        if new & status::FEATURES_OK == 0 {
            // Without features that both know there is nothing to run.
            new &= !status::DRIVER_OK;
        }
        self.status = new;
        if self.is_running() && !was_running {
            let enabled = (0..).zip(&self.queues).filter(|(_, queue)| queue.enabled);
            self.pending = enabled.fold(0, |all, (n, _)| all | 1 << n);
            return Effect::Start;
        }
        Effect::None
    }
}
