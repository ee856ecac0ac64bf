//! A machine, VMs on it, and something for devices to copy.
//!
//! The stale-translation checker is on for the host's SMMUs; when a VM ends, it must have had nothing to say.
#![allow(dead_code, reason = "not every test uses all of it")]

use std::fmt::Write;
use std::sync::{Arc, Mutex};

use guest::engine::{self, Copied};
use guest::{Assigned, Emulated, Guest, GuestRam, GuestStream, Vmm, VsmmuOf};
use smmuv3::wire::Event;
use smmuv3::{Options, Smmu};

pub(crate) type Registers = Arc<Smmu<Arc<GuestRam>>>;

pub(crate) const RAM: u64 = 0x4000_0000;
/// Where each guest lets the device see three pages.
pub(crate) const CHAIN: u64 = 0x10_0000;
pub(crate) const FROM: u64 = 0x20_0000;
pub(crate) const TO: u64 = 0x30_0000;

/// The first engine with PASIDs, of 8 bits, the first that has ATS as well, and the first with PRI, too.
pub(crate) const PASIDS: u32 = 32;
pub(crate) const ATS: u32 = 44;
pub(crate) const PRI: u32 = 48;

static REPORTS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Fails if something stale was used.
pub(crate) fn nothing_stale() {
    let reports = REPORTS.lock().unwrap();
    assert!(reports.is_empty(), "{}", reports.join("\n"));
}

/// A machine with two SMMUs, `s0` and `s1`, and an engine for each test that asks.
pub(crate) fn install() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let mut file =
            "check-stale = \"reuse\"\ngrant = [\"ipc-lock\"]\nmsi-window = 0x8000000\n".to_owned();
        for name in ["s0", "s1"] {
            let _ = write!(file, "[[iommu]]\nname = \"{name}\"\nmodel = \"smmuv3\"\n");
        }
        for n in 0..64 {
            let smmu = if (28..32).contains(&n) { "s1" } else { "s0" };
            let _ =
                write!(file, "[[device]]\nname = \"e{n}\"\nmodel = \"ioat\"\niommu = \"{smmu}\"\n");
            if n >= PASIDS {
                file += "pasid-bits = 8\n";
            }
            if n >= ATS {
                file += "ats = true\n";
            }
            if n >= PRI {
                file += "pri = true\n";
            }
        }
        let machine = softiommu::Machine::from_toml(&file).unwrap();
        softiommu::install_with(machine, |report| REPORTS.lock().unwrap().push(report.to_owned()))
            .unwrap();
    });
}

/// A VM with one engine at StreamID 0x10.
pub(crate) struct Vm {
    pub(crate) vsmmu: VsmmuOf,
    pub(crate) device: Assigned,
    pub(crate) vmm: Vmm,
    pub(crate) ram: Arc<GuestRam>,
}

impl Vm {
    pub(crate) fn new(engine: u32) -> Self {
        Self::with(engine, Options::mmu700())
    }

    pub(crate) fn with(engine: u32, options: Options) -> Self {
        install();
        let ram = GuestRam::new(RAM, 16 << 20).unwrap();
        let vmm = Vmm::new(&ram).unwrap();
        let device = open(&vmm, engine);
        let vsmmu = vmm.vsmmu(options, &device, 0x10).unwrap();
        Self { vsmmu, device, vmm, ram }
    }

    pub(crate) fn boot(&self) -> Guest<Registers> {
        Guest::boot(self.vsmmu.smmu().clone(), &self.ram).unwrap()
    }

    /// The guest's events, of which there are some: the host's interrupt thread may not have come to them yet.
    pub(crate) fn events(&self, guest: &Guest<Registers>) -> Vec<Event> {
        loop {
            let events = self.events_now(guest);
            if !events.is_empty() {
                return events;
            }
            std::thread::yield_now();
        }
    }

    pub(crate) fn events_now(&self, guest: &Guest<Registers>) -> Vec<Event> {
        self.vsmmu.process_events().unwrap();
        guest.events().records
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            nothing_stale();
        }
    }
}

pub(crate) fn open(vmm: &Vmm, engine: u32) -> Assigned {
    vmm.open_device(format!("/dev/vfio/devices/vfio{engine}")).unwrap()
}

/// What copies.
pub(crate) trait Dma {
    fn run(&self, chain: u64) -> Copied;
}

impl Dma for Assigned {
    fn run(&self, chain: u64) -> Copied {
        self.engine().run(chain).unwrap()
    }
}

impl Dma for Emulated {
    fn run(&self, chain: u64) -> Copied {
        Emulated::run(self, chain)
    }
}

/// Three pages that a stream sees, a message in one of them, and the chain that copies it.
pub(crate) struct Copy {
    pub(crate) chain: u64,
    pub(crate) from: u64,
    pub(crate) to: u64,
}

pub(crate) const MESSAGE: [u8; 21] = *b"through both stages, ";

impl Copy {
    pub(crate) fn new<R: arm_smmu_v3::Registers>(
        ram: &Arc<GuestRam>,
        stream: &GuestStream<R>,
    ) -> Self {
        let copy = Self::unmapped(ram);
        for (iova, page) in [(CHAIN, copy.chain), (FROM, copy.from), (TO, copy.to)] {
            stream.map(iova, page).unwrap();
        }
        copy
    }

    /// The same, and nobody sees the pages.
    pub(crate) fn unmapped(ram: &Arc<GuestRam>) -> Self {
        let [chain, from, to] = std::array::from_fn(|_| ram.page().unwrap());
        ram.write(from, &MESSAGE).unwrap();
        engine::descriptor(ram, chain, FROM, TO, MESSAGE.len() as u32, true).unwrap();
        Self { chain, from, to }
    }

    /// Copies, and says whether it arrived.
    pub(crate) fn arrives(&self, ram: &GuestRam, device: &impl Dma) -> bool {
        self.arrives_by(ram, device, CHAIN)
    }

    /// The same, where the device finds the chain elsewhere.
    pub(crate) fn arrives_by(&self, ram: &GuestRam, device: &impl Dma, chain: u64) -> bool {
        ram.write(self.to, &[0; MESSAGE.len()]).unwrap();
        let done = device.run(chain) == Copied::Done;
        assert_eq!(done, self.has_arrived(ram), "what is done has arrived, and nothing else");
        done
    }

    pub(crate) fn has_arrived(&self, ram: &GuestRam) -> bool {
        let mut found = [0; MESSAGE.len()];
        ram.read(self.to, &mut found).unwrap();
        found == MESSAGE
    }
}
