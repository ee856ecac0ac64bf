//! A hostile virtio-blk driver.

use devices::VirtioBlk;
use host_fake::BASE;
use vfio::Device;

use crate::Driver;

const BAR: u64 = 16 << 10;
const DRIVER_SELECT: u64 = 8;
const DRIVER_FEATURE: u64 = 12;
const STATUS: u64 = 20;
const QUEUE_SELECT: u64 = 22;
const QUEUE_SIZE: u64 = 24;
const QUEUE_ENABLE: u64 = 28;
const QUEUE_DESC: u64 = 32;
const ISR: u64 = 0x1000;
const NOTIFY: u64 = 0x3000;

/// Entries of each ring, and how many rings there are.
const SIZE: u16 = 16;
const QUEUES: u16 = 2;
const NEXT: u16 = 1;
const WRITE: u16 = 2;

/// What came of a program.
#[derive(Debug, Default, Clone, Copy)]
pub struct Outcome {
    /// Requests that were carried out.
    pub done: u32,
    /// How often the device asked for a reset.
    pub broken: u32,
}

/// Runs a program.
pub fn virtio_blk(program: &[u8]) -> Outcome {
    let driver = Driver::new(program, |bus, spawn, image| {
        VirtioBlk::new(bus, spawn, "virtio-blk", image, 512, QUEUES)
    });
    Hostile { driver, available: [0; 2], outcome: Outcome::default() }.run()
}

struct Hostile<'a> {
    driver: Driver<'a, VirtioBlk>,
    available: [u16; QUEUES as usize],
    outcome: Outcome,
}

/// Where a ring is: descriptors, what the driver writes, what the device writes.
fn places(queue: u16) -> [u64; 3] {
    [0, 0x1000, 0x2000].map(|at| BASE + 0x3000 * u64::from(queue) + at)
}

/// What requests begin with, and their statuses.
const HEADERS: u64 = BASE + 0x6000;
const STATUSES: u64 = BASE + 0x7000;

impl Hostile<'_> {
    fn run(mut self) -> Outcome {
        self.start();
        while !self.driver.program.is_empty() {
            match self.driver.byte() % 16 {
                0..9 => self.request(),
                9 => {
                    std::thread::yield_now();
                    self.count();
                }
                10 => self.start(),
                11 => {
                    // Any field of the common configuration, with anything.
                    let (at, value) = (self.driver.number(1) % 60, self.driver.value());
                    let len = [1, 2, 4, 8][self.driver.byte() as usize % 4];
                    self.driver.write(at / len * len, &value.to_le_bytes()[..len as usize]);
                }
                12 => {
                    let value = self.driver.value() as u16;
                    let queue = self.driver.number(1) as u16 % QUEUES;
                    // The index alone: more, or less, than there is.
                    self.driver.put(places(queue)[1] + 2, &value.to_le_bytes());
                    self.notify(queue);
                }
                13 if self.driver.byte().is_multiple_of(4) => self.driver.device.reset(),
                _ => self.driver.anything(BAR),
            }
        }
        for _ in 0..8 {
            std::thread::yield_now();
        }
        self.count();
        self.driver.device.reset();
        self.outcome
    }

    fn half(&self, at: u64, value: u16) {
        self.driver.write(at, &value.to_le_bytes());
    }

    fn start(&mut self) {
        let choice = self.driver.byte();
        self.driver.write(STATUS, &[0]);
        self.driver.write(STATUS, &[3]);
        // Flush, indirect descriptors, indices; version 1, platform access.
        let low = u32::from(choice & 1) << 9
            | u32::from(choice >> 1 & 1) << 28
            | u32::from(choice >> 2 & 1) << 29;
        for (select, bits) in [(0, low), (1, 0b11)] {
            self.driver.write32(DRIVER_SELECT, select);
            self.driver.write32(DRIVER_FEATURE, bits);
        }
        self.driver.write(STATUS, &[11]);
        for queue in 0..QUEUES {
            self.driver.put(places(queue)[0], &[0; 0x3000]);
            self.half(QUEUE_SELECT, queue);
            self.half(QUEUE_SIZE, SIZE);
            for (at, place) in (QUEUE_DESC..).step_by(8).zip(places(queue)) {
                self.driver.write(at, &place.to_le_bytes());
            }
            self.half(QUEUE_ENABLE, 1);
        }
        self.available = [0; 2];
        self.driver.write(STATUS, &[15]);
    }

    fn describe(&self, at: u64, address: u64, len: u32, flags: u16, next: u16) {
        let word = u128::from(address)
            | u128::from(len) << 64
            | u128::from(flags) << 96
            | u128::from(next) << 112;
        self.driver.put(at, &word.to_le_bytes());
    }

    /// A request that could be one.
    fn request(&mut self) {
        let choice = self.driver.byte();
        let queue = u16::from(choice) % QUEUES;
        let kind = [0, 1, 0, 1, 4, 8, 11, 13][usize::from(choice >> 1) % 8];
        let [table, ring, _] = places(queue);
        let n = u64::from(self.available[usize::from(queue)] % SIZE);
        let (header, status) = (HEADERS + 16 * n, STATUSES + n);
        let sector = u64::from(self.driver.byte());
        self.driver.put(header, &[kind, sector].map(u64::to_le_bytes).concat());
        self.driver.put(status, &[0xff]);
        let flag = if kind == 0 || kind == 8 { WRITE } else { 0 };
        let count = u16::from(self.driver.byte() % 4);
        self.describe(table, header, 16, NEXT, 1);
        for part in 1..=count {
            let (address, len) = (self.driver.address(), 512 * u32::from(self.driver.byte()));
            self.describe(table + 16 * u64::from(part), address, len, flag | NEXT, part + 1);
        }
        self.describe(table + 16 * u64::from(count + 1), status, 1, WRITE, 0);
        // One descriptor is not what it should be.
        if choice & 0x80 != 0 {
            let at = table + 16 * (self.driver.number(1) % (u64::from(count) + 2));
            let (address, len) = (self.driver.address(), self.driver.value() as u32);
            let (flags, next) = (u16::from(self.driver.byte() & 7), self.driver.value() as u16);
            self.describe(at, address, len, flags, next);
        }
        let available = &mut self.available[usize::from(queue)];
        let slot = ring + 4 + 2 * u64::from(*available % SIZE);
        *available = available.wrapping_add(1);
        let available = *available;
        self.driver.put(slot, &0_u16.to_le_bytes());
        self.driver.put(ring + 2, &available.to_le_bytes());
        self.notify(queue);
    }

    fn notify(&self, queue: u16) {
        self.half(NOTIFY + 4 * u64::from(queue), queue);
    }

    fn count(&mut self) {
        for n in 0..u64::from(SIZE) {
            let [status] = self.driver.get(STATUSES + n);
            self.outcome.done += u32::from(status == 0);
            self.driver.put(STATUSES + n, &[0xff]);
        }
        let mut status = [0];
        self.driver.device.read(0, STATUS, &mut status);
        self.outcome.broken += u32::from(status[0] >> 6 & 1);
        self.driver.device.read(0, ISR, &mut [0]);
    }
}
