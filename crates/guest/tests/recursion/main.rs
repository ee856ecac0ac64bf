//! A guest's guest.
//!
//! L0 shows L1 an SMMU with both stages, as only software can: what is accelerated has no second stage left to give, in
//! Linux as here. L1's kernel drives it with our driver, keeps stage 2 for itself and gives stage 1 to L2, through the
//! accelerated vSMMU over its own kernel; L2's kernel drives that one. So each of L2's commands is a register write in L2, a call
//! into L1's kernel, and a register write in L1; a device of L0's translates through L2's tables, and L1's.

#[path = "../common/mod.rs"]
mod common;
mod kernel;

use std::sync::{Arc, Mutex};

use common::{CHAIN, Copy, FROM, RAM, TO};
use guest::{Emulated, Guest, GuestRam};
use kernel::{Kernel, Passed};
use pagetable::TableMemory;
use smmuv3::wire::EventKind;
use smmuv3::{Options, Smmu, StaleRule};
use smmuv3_iommufd::{Capabilities, Host, NestParents, Vsmmu};

type Registers = Arc<Smmu<Arc<GuestRam>>>;

/// The device to L1, and to L2.
const SID1: u32 = 8;
const SID2: u32 = 0x20;
/// L2's memory, to L2.
const RAM2: u64 = 0x8000_0000;
const LEN2: u64 = 8 << 20;

const CMDQ_PROD: u64 = 0x98;

struct Levels {
    /// L0's device, behind what L1 sees.
    device: Emulated,
    smmu1: Registers,
    ram1: Arc<GuestRam>,
    kernel1: Arc<Kernel>,
    /// L1's VMM.
    vsmmu2: Vsmmu<Arc<GuestRam>>,
    ram2: Arc<GuestRam>,
    /// Where L2's memory is to L1.
    pa2: u64,
    stale: Arc<Mutex<Vec<String>>>,
}

impl Levels {
    fn new() -> Self {
        // L0: memory, an SMMU, a device.
        let ram1 = GuestRam::new(RAM, 64 << 20).unwrap();
        let options = Options { sid_bits: 16, pri: false, priq_log2: 0, ..Options::linux_host() };
        let smmu1 = Smmu::new(options, ram1.clone(), (), ()).unwrap();
        let stale = Arc::new(Mutex::new(Vec::new()));
        let reports = stale.clone();
        let report = move |stale: &smmuv3::Stale| reports.lock().unwrap().push(stale.to_string());
        smmu1.check_stale(StaleRule::Reuse, report).unwrap();
        let device = Emulated::new(&smmu1, SID1);
        // L1: a part of its memory is L2's, at another address.
        let mut block = Vec::new();
        ram1.allocate(LEN2.ilog2() as u8, 1, &mut block).unwrap();
        let pa = block[0];
        let region = ram1.first().part(pa..pa + LEN2, RAM2).unwrap();
        let ram2 = GuestRam::of(region);
        let kernel1 = Kernel::boot(&smmu1, &ram1, SID1, (RAM2..RAM2 + LEN2, pa));
        let host: Arc<dyn Host> = kernel1.clone();
        let mut capabilities =
            Capabilities::new(Options { pri: false, priq_log2: 0, ..Options::mmu700() });
        capabilities.add(&host.hw_info(0).unwrap()).unwrap();
        let model = Smmu::new(capabilities.freeze().unwrap(), ram2.clone(), (), ()).unwrap();
        let parents = NestParents::new(host.clone(), 0);
        let vsmmu2 = Vsmmu::new(model, host, parents).unwrap();
        vsmmu2.plug(Arc::new(Passed(kernel1.clone()))).unwrap();
        vsmmu2.set_stream_id(0, Some(SID2)).unwrap();
        Self { device, smmu1, ram1, kernel1, vsmmu2, ram2, pa2: pa, stale }
    }

    fn boot2(&self) -> Guest<Registers> {
        Guest::boot(self.vsmmu2.smmu().clone(), &self.ram2).unwrap()
    }

    /// Commands so far: L1's, and L2's.
    fn commands(&self) -> [u32; 2] {
        [&self.smmu1, self.vsmmu2.smmu()].map(|smmu| smmu.read32(CMDQ_PROD))
    }
}

impl Drop for Levels {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let stale = self.stale.lock().unwrap();
            assert!(stale.is_empty(), "{}", stale.join("\n"));
        }
    }
}

#[test]
fn a_guest_s_guest_maps_and_unmaps() {
    let levels = Levels::new();
    let Levels { device, ram1, ram2, .. } = &levels;
    let guest2 = levels.boot2();
    let stream = guest2.stream(SID2).unwrap();
    let copy = Copy::new(ram2, &stream);
    for _ in 0..8 {
        assert!(copy.arrives(ram2, device));
        let before = levels.commands();
        stream.unmap(TO).unwrap();
        let after = levels.commands();
        assert!(before.iter().zip(after).all(|(before, after)| *before != after), "at each level");
        assert!(!copy.arrives(ram2, device));
        stream.map(TO, copy.to).unwrap();
    }
    // One page, at three addresses.
    assert!(copy.arrives(ram2, device));
    assert_eq!(ram1.load(levels.pa2 + (copy.to - RAM2)), ram2.load(copy.to));
}

#[test]
fn each_level_hears_of_its_own_faults() {
    let levels = Levels::new();
    let Levels { device, ram2, kernel1, vsmmu2, .. } = &levels;
    let guest2 = levels.boot2();
    let stream = guest2.stream(SID2).unwrap();
    let copy = Copy::new(ram2, &stream);
    // L2's: it has unmapped a page.
    stream.unmap(FROM).unwrap();
    assert!(!copy.arrives(ram2, device));
    assert_eq!(kernel1.interrupt().faults, []);
    assert_eq!(vsmmu2.process_events().unwrap(), 1);
    let events = guest2.events().records;
    assert_eq!((events[0].kind, events[0].sid), (EventKind::Translation, SID2));
    assert_eq!((events[0].input_address, events.len()), (FROM, 1));
    // L1's: L2 maps what is not its memory, which is L1's own.
    stream.map(FROM, RAM).unwrap();
    assert!(!copy.arrives(ram2, device));
    let faults = kernel1.interrupt().faults;
    assert_eq!(faults.len(), 1, "{faults:?}");
    assert_eq!(vsmmu2.process_events().unwrap(), 0);
    // L1's: it takes away what L2 has mapped, and gives it back.
    stream.unmap(FROM).unwrap();
    stream.map(FROM, copy.from).unwrap();
    assert!(copy.arrives(ram2, device));
    kernel1.unmap_all();
    assert!(!copy.arrives(ram2, device));
    assert_eq!((kernel1.interrupt().faults.len(), vsmmu2.process_events().unwrap()), (1, 0));
    kernel1.map_all();
    assert!(copy.arrives(ram2, device));
}

#[test]
fn l2_crashes_resets_and_goes() {
    let levels = Levels::new();
    let Levels { device, ram2, vsmmu2, .. } = &levels;
    let guest2 = levels.boot2();
    let stream = guest2.stream(SID2).unwrap();
    assert!(Copy::new(ram2, &stream).arrives(ram2, device));
    // A crash kernel.
    std::mem::forget((stream, guest2));
    let guest2 = levels.boot2();
    assert!(!Copy::unmapped(ram2).arrives(ram2, device), "streams abort");
    let stream = guest2.stream(SID2).unwrap();
    let copy = Copy::new(ram2, &stream);
    assert!(copy.arrives(ram2, device));
    // A reset: GBPA lets the device through to L1's stage 2, and no further.
    std::mem::forget((stream, guest2));
    vsmmu2.reset().unwrap();
    assert!(!copy.arrives(ram2, device));
    guest::engine::descriptor(ram2, copy.chain, copy.from, copy.to, 21, false).unwrap();
    assert!(copy.arrives_by(ram2, device, copy.chain));
    assert!(!copy.arrives_by(ram2, device, CHAIN));
    // L1 takes the device back.
    vsmmu2.unplug(0).unwrap();
    assert!(!copy.arrives_by(ram2, device, copy.chain));
}
