//! A hostile driver of the DMA engine.

use devices::Ioat;
use host_fake::BASE;
use vfio::Device;

use crate::Driver;

const BAR: u64 = 16 << 10;
/// Registers, of the device and of its channel.
const INTRCTRL: u64 = 0x03;
const ATTNSTATUS: u64 = 0x04;
const CHANCTRL: u64 = 0x80;
const CHANCMD: u64 = 0x84;
const DMACOUNT: u64 = 0x86;
const CHANSTS: u64 = 0x88;
const CHAINADDR: u64 = 0x90;
const CHANCMP: u64 = 0x98;
const CHANERR: u64 = 0xa8;
const CHANERR_MASK: u64 = 0xac;

/// `CHANCMD`.
const SUSPEND: u8 = 1 << 2;
const RESUME: u8 = 1 << 4;
const RESET: u8 = 1 << 5;

/// The state of a channel that has halted.
const HALTED: u64 = 3;

/// Descriptors are a page, one after the other, and the status is written behind them.
const DESCRIPTORS: u64 = 4096 / 64;
const COMPLETION: u64 = BASE + 0x1000;

/// What came of a program.
#[derive(Debug, Default, Clone, Copy)]
pub struct Outcome {
    /// How often a descriptor was found complete.
    pub done: u32,
    /// How often the channel had halted.
    pub halted: u32,
}

/// Runs a program.
///
/// # Panics
/// If a reset leaves anything behind.
pub fn ioat(program: &[u8]) -> Outcome {
    let driver = Driver::new(program, |bus, spawn, _| Ioat::new(bus, spawn));
    Hostile { driver, next: 0, count: 0, outcome: Outcome::default() }.run()
}

struct Hostile<'a> {
    driver: Driver<'a, Ioat>,
    /// The descriptor that is written next, and how many the channel was told of.
    next: u64,
    count: u16,
    outcome: Outcome,
}

fn place(n: u64) -> u64 {
    BASE + 64 * (n % DESCRIPTORS)
}

impl Hostile<'_> {
    fn run(mut self) -> Outcome {
        self.start();
        while !self.driver.program.is_empty() {
            match self.driver.byte() % 16 {
                0..8 => self.descriptor(),
                8 => self.look(),
                9 => self.start(),
                10 => {
                    // More than there are, or fewer: of a loop, each of them.
                    self.count = self.driver.value() as u16;
                    self.tell();
                }
                11 => {
                    let command = [SUSPEND, RESUME, RESUME, RESET][self.driver.byte() as usize % 4];
                    self.driver.write(CHANCMD, &[command]);
                }
                12 => {
                    // The chain goes on elsewhere, while it is worked off.
                    let (at, address) = (
                        [CHAINADDR, CHANCMP][self.driver.byte() as usize % 2],
                        self.driver.address(),
                    );
                    self.driver.write(at, &address.to_le_bytes());
                }
                13 if self.driver.byte().is_multiple_of(4) => self.reset(),
                14 => {
                    let (interrupts, control) = (self.driver.byte(), self.driver.value() as u16);
                    self.driver.write(INTRCTRL, &[interrupts]);
                    self.driver.write(CHANCTRL, &control.to_le_bytes());
                }
                _ => self.driver.anything(BAR),
            }
        }
        self.look();
        self.reset();
        self.outcome
    }

    /// A chain from the beginning.
    fn start(&mut self) {
        let choice = self.driver.byte();
        let driver = &self.driver;
        driver.write(CHANCMD, &[RESET]);
        driver.write(INTRCTRL, &[choice & 0b1001]);
        driver.write(CHANCTRL, &u16::from(choice & 0b1_0101).to_le_bytes());
        driver.write(CHANCMP, &COMPLETION.to_le_bytes());
        driver.write(CHAINADDR, &place(0).to_le_bytes());
        (self.next, self.count) = (0, 0);
    }

    /// A descriptor that could be one, and one more to work off.
    fn descriptor(&mut self) {
        let choice = self.driver.byte();
        let driver = &mut self.driver;
        // Copies, fills, nothing, and what there is not; with an interrupt, with a completion.
        let kind = [0, 0, 1 << 24, 1 << 5, 0, 1 << 24, 0, 0x80 << 24][usize::from(choice & 7)];
        let control = kind | u32::from(choice >> 3 & 0b1001);
        let size = match driver.byte() {
            0xf0 => driver.value() as u32,
            byte @ 0x80.. => 512 * u32::from(byte & 0x7f),
            byte => byte.into(),
        };
        let (source, destination) = (driver.address(), driver.address());
        // Mostly the one behind it; else one before, which makes a loop, or anything.
        let next = match driver.byte() {
            0xe0.. => place(driver.byte().into()),
            0xd0.. => driver.address(),
            _ => place(self.next + 1),
        };
        let process = if choice & 0x80 == 0 { 0 } else { driver.value() };
        let first = u64::from(size) | u64::from(control) << 32;
        let words = [first, source, destination, next, process, 0, 0, 0];
        driver.put(place(self.next), &words.map(u64::to_le_bytes).concat());
        self.next += 1;
        self.count = self.count.wrapping_add(1);
        self.tell();
    }

    fn tell(&self) {
        self.driver.write(DMACOUNT, &self.count.to_le_bytes());
    }

    fn register<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.driver.device.read(0, at, &mut bytes);
        bytes
    }

    /// The channel's state, and the last descriptor that is complete.
    fn status(&self) -> (u64, u64) {
        let status = u64::from_le_bytes(self.register(CHANSTS));
        (status & 0x3f, status & !0x3f)
    }

    /// Gives the channel some time, and sees how far it has come. One that has halted is freed of its errors.
    fn look(&mut self) {
        for _ in 0..8 {
            std::thread::yield_now();
        }
        let (state, completed) = self.status();
        self.outcome.done += u32::from(completed != 0);
        self.outcome.halted += u32::from(state == HALTED);
        let error: [u8; 4] = self.register(CHANERR);
        self.driver.write(CHANERR, &error);
    }

    /// A reset leaves nothing behind, whatever the thread was about.
    fn reset(&mut self) {
        self.driver.device.reset();
        let registers =
            [INTRCTRL, ATTNSTATUS, CHANCTRL, DMACOUNT, CHAINADDR, CHANCMP, CHANERR, CHANERR_MASK];
        for at in registers {
            let [byte] = self.register(at);
            assert_eq!(byte, 0, "the register at {at:#x} after a reset");
        }
        assert_eq!(self.status(), (HALTED, 0));
        (self.next, self.count) = (0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The state of a channel that has something to do.
    const ACTIVE: u64 = 0;

    /// What comes last of a descriptor is its completion and its interrupt.
    #[test]
    fn a_reset_meets_an_interrupt() {
        // Interrupts are on, and armed; a null descriptor with completion and interrupt.
        let start = [0b0001];
        let descriptor = [0b0100_1011, 0, 0, 0, 0, 0, 0];
        let driver = Driver::new(&[], |bus, spawn, _| Ioat::new(bus, spawn));
        let mut hostile = Hostile { driver, next: 0, count: 0, outcome: Outcome::default() };
        for n in 0..4000 {
            hostile.driver.program = &start;
            hostile.start();
            hostile.driver.program = &descriptor;
            hostile.descriptor();
            while hostile.status().0 == ACTIVE {
                std::hint::spin_loop();
            }
            for _ in 0..n % 16 {
                hostile.register::<4>(CHANERR);
            }
            hostile.reset();
        }
    }
}
