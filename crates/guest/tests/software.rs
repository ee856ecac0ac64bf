//! The same guest, and no host: the vSMMU translates for devices that the VMM emulates; in the end, beside a device of
//! the host's.

mod common;

use std::sync::{Arc, Mutex};

use arm_smmu_v3::{Command, StreamOptions};
use common::{CHAIN, Copy, FROM, MESSAGE, RAM, Registers, TO, Vm};
use guest::engine::{self, Copied};
use guest::{Emulated, Guest, GuestRam, Region};
use smmuv3::wire::EventKind;
use smmuv3::{Options, Smmu, StaleRule};

/// A VM with a device of the VMM's at StreamID 0x10.
struct Software {
    device: Emulated,
    smmu: Registers,
    ram: Arc<GuestRam>,
    stale: Arc<Mutex<Vec<String>>>,
}

impl Software {
    fn new() -> Self {
        let ram = GuestRam::new(RAM, 16 << 20).unwrap();
        let options = Options { sid_bits: 16, ..Options::mmu700() };
        let smmu = Smmu::new(options, ram.clone(), (), ()).unwrap();
        let stale = Arc::new(Mutex::new(Vec::new()));
        let reports = stale.clone();
        let report = move |stale: &smmuv3::Stale| reports.lock().unwrap().push(stale.to_string());
        smmu.check_stale(StaleRule::Reuse, report).unwrap();
        Self { device: Emulated::new(&smmu, 0x10), smmu, ram, stale }
    }

    fn boot(&self) -> Guest<Registers> {
        Guest::boot(self.smmu.clone(), &self.ram).unwrap()
    }
}

impl Drop for Software {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let stale = self.stale.lock().unwrap();
            assert!(stale.is_empty(), "{}", stale.join("\n"));
        }
    }
}

#[test]
fn a_guest_boots_maps_and_unmaps() {
    let vm = Software::new();
    let Software { device, ram, .. } = &vm;
    let [chain, from, to] = std::array::from_fn(|_| ram.page().unwrap());
    ram.write(from, &MESSAGE).unwrap();
    engine::descriptor(ram, chain, from, to, MESSAGE.len() as u32, false).unwrap();
    assert_eq!(device.run(chain), Copied::Done, "GBPA lets it pass");
    let guest = vm.boot();
    assert!(matches!(device.run(chain), Copied::Refused(_)), "no stream yet");
    let stream = guest.stream(0x10).unwrap();
    let copy = Copy::new(ram, &stream);
    for _ in 0..20 {
        assert!(copy.arrives(ram, device));
        stream.unmap(TO).unwrap();
        assert!(!copy.arrives(ram, device));
        stream.map(TO, copy.to).unwrap();
        assert!(copy.arrives(ram, device));
        stream.unmap_lazily(FROM).unwrap();
        let _ = device.run(CHAIN);
        stream.domain().sync().unwrap();
        assert!(!copy.arrives(ram, device));
        stream.map(FROM, copy.from).unwrap();
    }
}

#[test]
fn devices_have_their_own_stage_1_and_their_faults_their_names() {
    let vm = Software::new();
    let Software { device, smmu, ram, .. } = &vm;
    let other = Emulated::new(smmu, 0x18);
    let guest = vm.boot();
    let [one, two] = [0x10, 0x18].map(|id| guest.stream(id).unwrap());
    let [copy, also] = [&one, &two].map(|stream| Copy::new(ram, stream));
    assert!(copy.arrives(ram, device) && also.arrives(ram, &other));
    one.unmap(FROM).unwrap();
    assert!(!copy.arrives(ram, device) && also.arrives(ram, &other));
    two.unmap(TO).unwrap();
    assert!(!also.arrives(ram, &other));
    let events = guest.events().records;
    let seen: Vec<_> =
        events.iter().map(|event| (event.kind, event.sid, event.input_address)).collect();
    let translation = EventKind::Translation;
    assert_eq!(seen, [(translation, 0x10, FROM), (translation, 0x18, TO)]);
}

#[test]
fn a_pasid_is_an_address_space() {
    let vm = Software::new();
    let Software { device, ram, .. } = &vm;
    let guest = vm.boot();
    let options = StreamOptions { pasid_bits: 4, ..StreamOptions::default() };
    let stream = guest.stream_in(0x10, options, &guest.domain().unwrap()).unwrap();
    let kernel = Copy::new(ram, &stream);
    let processes = [1, 2].map(|pasid| {
        // Through a stream of its own, to have somebody to map.
        let options = StreamOptions::default();
        let process = guest.stream_in(0x100 + pasid, options, &guest.domain().unwrap()).unwrap();
        stream.stream().attach_pasid(pasid, process.domain()).unwrap();
        (pasid, Copy::new(ram, &process), process)
    });
    let copies = |pasid: u32, copy: &Copy| {
        engine::set_pasid(ram, kernel.chain, Some(pasid)).unwrap();
        copy.arrives(ram, device)
    };
    assert!(processes.iter().all(|(pasid, copy, _)| copies(*pasid, copy)));
    processes[0].2.unmap(TO).unwrap();
    assert!(!copies(1, &processes[0].1) && copies(2, &processes[1].1));
    stream.stream().detach_pasid(2).unwrap();
    assert!(!copies(2, &processes[1].1) && !copies(0x10, &kernel));
    let events = guest.events().records;
    let seen: Vec<_> = events.iter().map(|event| (event.kind, event.ssid)).collect();
    assert_eq!(
        seen,
        [
            (EventKind::Translation, Some(1)),
            (EventKind::BadCd, Some(2)),
            (EventKind::BadSubstreamId, Some(0x10)),
        ]
    );
}

#[test]
fn a_command_error_names_its_command() {
    let vm = Software::new();
    let guest = vm.boot();
    let stream = guest.stream(0x10).unwrap();
    let copy = Copy::new(&vm.ram, &stream);
    for position in [0, 1, 40] {
        let mut batch = vec![Command::TlbiNsnhAll; 64];
        batch[position] = Command::CfgiSte { sid: 0x10, leaf: true, ssec: true };
        let error = guest.smmu().run(&batch).unwrap_err().to_string();
        assert!(error.contains(&position.to_string()), "{error}");
        assert!(copy.arrives(&vm.ram, &vm.device), "the queue goes on");
    }
}

#[test]
fn a_crash_and_a_reset() {
    let vm = Software::new();
    let Software { device, smmu, ram, .. } = &vm;
    let guest = vm.boot();
    let stream = guest.stream(0x10).unwrap();
    assert!(Copy::new(ram, &stream).arrives(ram, device));
    std::mem::forget((stream, guest));
    let guest = vm.boot();
    assert!(matches!(device.run(CHAIN), Copied::Refused(_)), "a crash kernel has it abort");
    let stream = guest.stream(0x10).unwrap();
    let copy = Copy::new(ram, &stream);
    assert!(copy.arrives(ram, device));
    std::mem::forget((stream, guest));
    smmu.reset();
    assert!(matches!(device.run(CHAIN), Copied::Refused(_)), "no such address");
    engine::descriptor(ram, copy.chain, copy.from, copy.to, 21, false).unwrap();
    assert!(copy.arrives_by(ram, device, copy.chain), "GBPA lets it pass");
}

#[test]
fn memory_comes_and_goes() {
    let vm = Software::new();
    let Software { device, ram, .. } = &vm;
    let guest = vm.boot();
    let stream = guest.stream(0x10).unwrap();
    let copy = Copy::new(ram, &stream);
    let region = Region::new(0x1_0000_0000, 2 << 20).unwrap();
    stream.unmap(TO).unwrap();
    stream.map(TO, region.range().start).unwrap();
    let plugged = Copy { to: region.range().start, ..copy };
    for _ in 0..4 {
        assert!(matches!(device.run(CHAIN), Copied::Refused(_)));
        ram.plug(region.clone());
        assert!(plugged.arrives(ram, device));
        ram.unplug(&region);
    }
}

#[test]
fn emulated_and_assigned_devices_share_a_vsmmu() {
    let vm = Vm::new(0);
    let emulated = Emulated::new(vm.vsmmu.smmu(), 0x20);
    let guest = vm.boot();
    let assigned = guest.stream(0x10).unwrap();
    let copy = Copy::new(&vm.ram, &assigned);
    assert!(copy.arrives(&vm.ram, &vm.device));
    assert!(matches!(emulated.run(CHAIN), Copied::Refused(_)), "no stream yet");
    // One address space, two devices: one translates in hardware, the other in the VMM.
    let options = StreamOptions::default();
    let shared = guest.stream_in(0x20, options, assigned.domain()).unwrap();
    for _ in 0..8 {
        assert!(copy.arrives(&vm.ram, &vm.device) && copy.arrives(&vm.ram, &emulated));
        assigned.unmap(TO).unwrap();
        assert!(!copy.arrives(&vm.ram, &vm.device) && !copy.arrives(&vm.ram, &emulated));
        assigned.map(TO, copy.to).unwrap();
    }
    let mut sids = Vec::new();
    while !(sids.contains(&0x10) && sids.contains(&0x20)) {
        sids.extend(vm.events_now(&guest).iter().map(|event| event.sid));
        std::thread::yield_now();
    }
    assert!(sids.iter().all(|sid| [0x10, 0x20].contains(sid)));
    drop(shared);
    assert!(copy.arrives(&vm.ram, &vm.device) && !copy.arrives(&vm.ram, &emulated));
}
