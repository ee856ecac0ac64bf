//! A hostile NVMe driver.

use devices::{Namespace, Nvme};
use host_fake::BASE;
use vfio::Device;

use crate::Driver;

const BAR: u64 = 16 << 10;
/// Registers.
const CC: u64 = 0x14;
const CSTS: u64 = 0x1c;
const AQA: u64 = 0x24;
const ASQ: u64 = 0x28;
const ACQ: u64 = 0x30;
const DOORBELLS: u64 = 0x1000;
const ENABLED: u32 = 6 << 16 | 4 << 20 | 1;

/// Entries of each queue, and how many queues are rung. Those of I/O begin where the program has them created.
const ENTRIES: u32 = 8;
const QUEUES: u64 = 4;

/// What came of a program.
#[derive(Debug, Default, Clone, Copy)]
pub struct Outcome {
    /// Completions that were successful, on the admin queue and on others.
    pub admin: u32,
    /// Of which these were of I/O queues.
    pub io: u32,
}

/// Runs a program.
pub fn nvme(program: &[u8]) -> Outcome {
    let driver = Driver::new(program, |bus, spawn, image| {
        Nvme::new(bus, spawn, "nvme", vec![Namespace::new(image, 512)])
    });
    Hostile { driver, tails: [0; QUEUES as usize], outcome: Outcome::default() }.run()
}

struct Hostile<'a> {
    driver: Driver<'a, Nvme>,
    tails: [u32; QUEUES as usize],
    outcome: Outcome,
}

/// Where a queue is: commands, and completions.
fn place(queue: u64) -> u64 {
    BASE + 0x2000 * queue
}

impl Hostile<'_> {
    fn run(mut self) -> Outcome {
        self.enable();
        while !self.driver.program.is_empty() {
            match self.driver.byte() % 16 {
                0..8 => self.command(),
                8 => self.wait(),
                9 => self.enable(),
                10 => {
                    let doorbell = DOORBELLS + 4 * (self.driver.number(1) % (2 * QUEUES));
                    let value = self.driver.value() as u32;
                    self.driver.write32(doorbell, value);
                }
                11 => self.free(),
                12 if self.driver.byte().is_multiple_of(8) => {
                    let value = self.driver.value() as u32;
                    self.driver.write32(CC, value);
                }
                13 if self.driver.byte().is_multiple_of(8) => self.driver.device.reset(),
                _ => self.driver.anything(BAR),
            }
        }
        self.wait();
        self.driver.device.reset();
        self.outcome
    }

    fn enable(&mut self) {
        let driver = &self.driver;
        driver.write32(CC, 0);
        driver.put(place(0), &[0; 0x2000]);
        driver.write32(AQA, (ENTRIES - 1) << 16 | (ENTRIES - 1));
        driver.write(ASQ, &place(0).to_le_bytes());
        driver.write(ACQ, &(place(0) + 0x1000).to_le_bytes());
        driver.write32(CC, ENABLED);
        self.tails = [0; QUEUES as usize];
        // A completion queue, and those that use it.
        driver.put(place(1) + 0x1000, &[0; 0x1000]);
        let last = ENTRIES - 1;
        let created = (1..QUEUES as u32).map(|id| (1, id, place(id.into()), 1 | 1 << 16));
        let all = [(5, 1, place(1) + 0x1000, 0b11)].into_iter().chain(created);
        for (opcode, id, at, flags) in all {
            let mut dwords = [0; 16];
            (dwords[0], dwords[6], dwords[10], dwords[11]) =
                (opcode, at as u32, id | last << 16, flags);
            self.submit(0, dwords);
        }
        for _ in 0..100 {
            let [status] = self.driver.get(place(0) + 0x1000 + 16 * (QUEUES - 1) + 14);
            if status != 0 {
                break;
            }
            std::thread::yield_now();
        }
        self.driver.write32(DOORBELLS + 4, QUEUES as u32);
    }

    fn submit(&mut self, queue: u64, dwords: [u32; 16]) {
        let tail = &mut self.tails[queue as usize];
        let bytes = dwords.map(u32::to_le_bytes).concat();
        self.driver.put(place(queue) + 64 * u64::from(*tail), &bytes);
        *tail = (*tail + 1) % ENTRIES;
        self.driver.write32(DOORBELLS + 8 * queue, *tail);
    }

    /// A command that could be one, in a queue that could be there.
    fn command(&mut self) {
        let choice = self.driver.byte();
        let queue = u64::from(choice >> 4) % QUEUES;
        let mut dwords = [0_u32; 16];
        let driver = &mut self.driver;
        let opcodes: &[u8] = match queue {
            0 => &[0, 1, 1, 2, 4, 5, 5, 6, 8, 9, 10, 12, 0x80],
            _ => &[0, 1, 2, 1, 2, 8, 9, 4],
        };
        let opcode = opcodes[usize::from(choice & 15) % opcodes.len()];
        dwords[0] = u32::from(opcode) | u32::from(choice) << 16;
        dwords[1] = u32::from(queue > 0 || opcode == 6);
        for (at, address) in [(6, driver.address()), (8, driver.address())] {
            dwords[at] = address as u32;
            dwords[at + 1] = (address >> 32) as u32;
        }
        if queue > 0 {
            dwords[10] = driver.byte().into();
            dwords[12] = driver.byte().into();
        } else {
            let id = 1 + driver.number(1) as u32 % (QUEUES as u32 - 1);
            match opcode {
                // Queues where this driver has them, all with the first completion queue.
                1 | 5 => {
                    let at = place(if opcode == 1 { id.into() } else { 1 });
                    let at = if opcode == 5 { at + 0x1000 } else { at };
                    (dwords[6], dwords[7]) = (at as u32, 0);
                    dwords[10] = if opcode == 5 { 1 } else { id } | (ENTRIES - 1) << 16;
                    dwords[11] = if opcode == 5 { 0b11 } else { 1 | 1 << 16 };
                }
                6 => dwords[10] = driver.byte().into(),
                _ => dwords[10] = driver.value() as u32,
            }
        }
        // One thing is different from what it should be.
        if driver.byte() & 1 != 0 {
            let at = usize::from(driver.byte()) % 16;
            dwords[at] = driver.value() as u32;
        }
        self.submit(queue, dwords);
    }

    /// Gives the controller some time.
    fn wait(&mut self) {
        for _ in 0..8 {
            std::thread::yield_now();
        }
        self.driver.device.read(0, CSTS, &mut [0; 4]);
    }

    /// Takes completions, from the admin queue and from the only other one there is.
    fn free(&mut self) {
        self.wait();
        let count = |queue: u64| {
            let entries = (0..u64::from(ENTRIES)).map(|n| place(queue) + 0x1000 + 16 * n);
            let posted = |at: u64| {
                let entry: [u8; 16] = self.driver.get(at);
                let status = u16::from_le_bytes([entry[14], entry[15]]);
                self.driver.put(at, &[0; 16]);
                // Success, whatever the phase.
                status == 1 || status == 0 && entry[12..14] != [0; 2]
            };
            entries.filter(|at| posted(*at)).count() as u32
        };
        self.outcome.admin += count(0);
        self.outcome.io += count(1);
        let value = self.driver.byte();
        let queue = u64::from(value & 1);
        let head = u32::from(value >> 1) % ENTRIES;
        self.driver.write32(DOORBELLS + 4 + 8 * queue, head);
    }
}
