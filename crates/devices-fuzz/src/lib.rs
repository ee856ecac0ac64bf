//! Hostile drivers: what a program of random bytes does to a device's registers, and to the memory that the device
//! reads, while it reads it.
//!
//! Whatever the bytes are, nothing panics and nothing hangs: after each program the device is reset, which waits for its
//! thread, and ends. A panic of the thread ends the process. That programs get anywhere, the tests say.
#![forbid(unsafe_code)]

mod ioat;
mod nvme;
mod virtio_blk;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use devices::Image;
use host::PhysMemory;
use host_fake::{BASE, FakeHost};
use platform::{Place, Platform, Spawn};
use vfio::{Bus, Device};

pub use ioat::ioat;
pub use nvme::nvme;
pub use virtio_blk::virtio_blk;

/// Pages of memory, and of those, one that is sometimes not there.
const PAGES: usize = 64;
const FICKLE: u64 = 40;
/// The size of disks in bytes.
const DISK: u64 = 256 << 10;

/// A device, its memory, and what is left of a program.
struct Driver<'a, D: ?Sized> {
    host: Arc<FakeHost>,
    device: Arc<D>,
    program: &'a [u8],
    /// After the device, which they end with.
    _threads: Threads,
}

/// The threads of a device.
type Handles = Arc<Mutex<Vec<JoinHandle<()>>>>;

/// Waits for them, when there is no device any more: nothing of a program goes on in the next.
struct Threads(Handles);

impl Drop for Threads {
    fn drop(&mut self) {
        let threads = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            // One that panics has ended the process.
            let _ = thread.join();
        }
    }
}

impl<'a, D: Device + ?Sized> Driver<'a, D> {
    fn new(program: &'a [u8], make: impl FnOnce(Bus, &Spawn, Image) -> Arc<D>) -> Self {
        let host = FakeHost::new(PAGES);
        let handles = Handles::default();
        let threads = Threads(handles.clone());
        let spawn: Spawn = Arc::new(move |name, run| {
            let run = move || {
                if catch_unwind(AssertUnwindSafe(run)).is_err() {
                    // Whoever waits for the thread would wait forever.
                    std::process::abort();
                }
            };
            let thread = std::thread::Builder::new().name(name.to_owned()).spawn(run)?;
            handles.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
            Ok(())
        });
        let platform = Platform::new(host.clone(), spawn.clone()).expect("a machine");
        let (_, port) = platform.add_device("device", &Place::Direct).expect("a device");
        let image = Image::memory(DISK).expect("a disk");
        let device = make(Bus::alone(port), &spawn, image);
        Self { host, device, program, _threads: threads }
    }

    /// The next byte of the program; 0 at its end.
    fn byte(&mut self) -> u8 {
        let (byte, rest) = self.program.split_first().unwrap_or((&0, &[]));
        self.program = rest;
        *byte
    }

    fn number(&mut self, len: usize) -> u64 {
        (0..len).fold(0, |number, _| number << 8 | u64::from(self.byte()))
    }

    /// A number that means something now and then: small, large, or any.
    fn value(&mut self) -> u64 {
        match self.byte() {
            0xf0 => self.number(8),
            0xf1 => u64::MAX - self.number(1),
            0xf2 => u64::from(u32::MAX) - self.number(1),
            0xf3 => 1 << (self.number(1) % 64),
            small => small.into(),
        }
    }

    /// An address: mostly of memory, aligned to something.
    fn address(&mut self) -> u64 {
        let page = BASE + 4096 * u64::from(self.byte() & 0x3f);
        match self.byte() {
            0xf0 => self.number(8),
            0xf1 => page + self.number(2) % 4096,
            0xf2 => page + 4096 - 8 * (self.number(1) % 4),
            byte @ 0x80.. => page + 16 * u64::from(byte & 0x7f),
            _ => page,
        }
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        // Where nothing is, nothing is put.
        let _ = PhysMemory::write(&*self.host, at, bytes);
    }

    fn get<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        let _ = PhysMemory::read(&*self.host, at, &mut bytes);
        bytes
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        self.device.write(0, at, bytes);
    }

    fn write32(&self, at: u64, value: u32) {
        self.write(at, &value.to_le_bytes());
    }

    /// What has nothing to do with what kind of device it is.
    fn anything(&mut self, bar: u64) {
        // An access of 1, 2, 4 or 8 bytes, aligned, somewhere among the registers.
        let len = 1 << (self.byte() & 3);
        let at = match self.byte() {
            byte @ ..0x80 => u64::from(byte),
            _ => self.number(2),
        } % bar
            / len
            * len;
        match self.byte() % 8 {
            0..3 => {
                let value = self.value().to_le_bytes();
                self.write(at, &value[..len as usize]);
            }
            3 => self.device.read(0, at, &mut [0; 8][..len as usize]),
            4 => {
                let (at, bytes) = (self.address(), self.number(8).to_le_bytes());
                self.put(at, &bytes);
            }
            5 => {
                let (at, byte, len) = (self.address(), self.byte(), self.byte());
                self.put(at, &vec![byte; 64 * usize::from(len)]);
            }
            6 => {
                let present = self.byte() & 1 != 0;
                self.host.set_present(BASE + 4096 * FICKLE, present);
            }
            _ => std::thread::yield_now(),
        }
    }
}
