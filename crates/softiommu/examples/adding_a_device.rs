//! How a device of one's own comes into the machine: here one that counts bytes in memory.
//!
//! `cargo run -p softiommu --example adding_a_device`

use std::error::Error;
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex};

use iommufd_ioctls::{IommuFd, IommufdIoas};
use softiommu::device::{Access, Bus, Device, Identity, Spawn, Work, Worker};
use vfio_ioctls::{VfioDevice, VfioIommufd, VfioOps};

/// Its registers, in BAR 0: what to count and how much of it; the count, once it is there.
const ADDRESS: u64 = 0x00;
const LENGTH: u64 = 0x08;
const COUNT: u64 = 0x10;
/// What `COUNT` has as long as there is no count.
const NONE: u64 = u64::MAX;

/// Counts the bytes that are not zero.
pub struct Counter {
    state: Arc<State>,
    worker: Arc<Worker>,
}

struct State {
    bus: Mutex<Bus>,
    registers: Mutex<Registers>,
}

#[derive(Clone, Copy)]
struct Registers {
    address: u64,
    length: u64,
    count: u64,
    wanted: bool,
}

impl Default for Registers {
    fn default() -> Self {
        Self { address: 0, length: 0, count: NONE, wanted: false }
    }
}

impl Counter {
    /// A counter with this way to memory.
    pub fn on(bus: Bus, spawn: &Spawn) -> Arc<dyn Device> {
        let state = Arc::new(State { bus: Mutex::new(bus), registers: Mutex::default() });
        Arc::new(Self { state, worker: Worker::new("counter", spawn) })
    }
}

impl Device for Counter {
    fn identity(&self) -> Identity {
        // A vendor ID that nobody has.
        Identity {
            vendor: 0xfffe,
            device: 1,
            subsystem_vendor: 0,
            subsystem: 0,
            class: 0xff_0000,
            revision: 0,
        }
    }

    fn bars(&self) -> [u64; 6] {
        [4096, 0, 0, 0, 0, 0]
    }

    fn vectors(&self) -> u16 {
        1
    }

    fn read(&self, _bar: usize, offset: u64, data: &mut [u8]) {
        let registers = self.state.registers.lock().unwrap();
        let value = match offset {
            ADDRESS => registers.address,
            LENGTH => registers.length,
            COUNT => registers.count,
            _ => 0,
        };
        data.copy_from_slice(&value.to_le_bytes()[..data.len()]);
    }

    fn write(&self, _bar: usize, offset: u64, data: &[u8]) {
        let Ok(value) = data.try_into().map(u64::from_le_bytes) else { return };
        let mut registers = self.state.registers.lock().unwrap();
        match offset {
            ADDRESS => registers.address = value,
            // That is the order to count. The DMA is the worker's: a register access never waits.
            LENGTH => {
                *registers = Registers { length: value, count: NONE, wanted: true, ..*registers };
                drop(registers);
                self.worker.kick(&self.state);
            }
            _ => {}
        }
    }

    fn reset(&self) {
        *self.state.registers.lock().unwrap() = Registers::default();
        // What is under way is over when this returns.
        self.worker.rest();
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        self.worker.close();
    }
}

impl Work for State {
    fn bus(&self) -> Bus {
        self.bus.lock().unwrap().another()
    }

    fn step(&self, bus: &mut Bus) -> bool {
        let Registers { address, length, wanted: true, .. } = *self.registers.lock().unwrap()
        else {
            return false;
        };
        let (mut page, mut count) = ([0; 4096], 0);
        for at in (0..length).step_by(page.len()) {
            let part = &mut page[..(length - at).min(4096) as usize];
            // Through the IOMMU. What it refuses has no bytes.
            if bus.read(Access::at(address + at), part).is_ok() {
                count += part.iter().filter(|byte| **byte != 0).count() as u64;
            }
        }
        let mut registers = self.registers.lock().unwrap();
        // Unless it was reset meanwhile.
        if registers.wanted {
            (registers.count, registers.wanted) = (count, false);
            drop(registers);
            bus.raise(0);
        }
        true
    }
}

const MACHINE: &str = r#"
[[iommu]]
model = "smmuv3"

[[device]]
name = "counter"
iommu = "iommu0"
address = "0000:c0:00.0"
"#;

/// Has the counter count bytes in memory of ours, as a client does.
pub fn main() -> Result<(), Box<dyn Error>> {
    let machine = softiommu::Machine::from_toml(MACHINE)?;
    softiommu::Setup::new(machine).device("counter", Counter::on).install()?;

    // From here on nothing knows of softiommu.
    let iommufd = Arc::new(IommuFd::new()?);
    let ioas = Arc::new(IommufdIoas::new(iommufd.clone())?);
    let ops: Arc<dyn VfioOps> = Arc::new(VfioIommufd::new(iommufd, Some(ioas.clone()), None)?);
    let device = VfioDevice::new(Path::new("/sys/bus/pci/devices/0000:c0:00.0"), ops, true)?;
    // SAFETY: a plain system call; the descriptor is ours.
    let memory = unsafe { File::from_raw_fd(libc::memfd_create(c"memory".as_ptr(), 0)) };
    memory.set_len(0x10_0000)?;
    memory.write_all_at(b"sixteen letters!", 0x8ffc)?;
    ioas.map_file(memory.as_raw_fd(), 0, 0x10_0000, 0x4000_0000, true)?;
    // Memory and bus master.
    device.region_write(7, &0b110_u16.to_le_bytes(), 4);
    device.region_write(0, &0x4000_0000_u64.to_le_bytes(), ADDRESS);
    device.region_write(0, &0x10_0000_u64.to_le_bytes(), LENGTH);
    let mut count = NONE.to_le_bytes();
    while count == NONE.to_le_bytes() {
        device.region_read(0, &mut count, COUNT);
    }
    println!("the device has counted {} bytes", u64::from_le_bytes(count));
    assert_eq!(u64::from_le_bytes(count), 16);
    Ok(())
}
