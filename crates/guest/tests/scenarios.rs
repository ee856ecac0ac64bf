//! Nested translation end to end: a guest's driver, the vSMMU, ioctls, the host's driver, its SMMU, a device.

mod common;

use std::fs::File;
use std::io::Read;
use std::os::fd::FromRawFd;

use arm_smmu_v3::{Command, StreamOptions};
use common::{CHAIN, Copy, FROM, MESSAGE, RAM, TO, Vm, install, open};
use guest::engine::{self, Copied};
use guest::{Assigned, Guest, GuestRam, Region, Vmm};
use smmuv3::Options;
use smmuv3::wire::EventKind;

#[test]
fn a_guest_boots_and_its_device_reaches_what_it_maps() {
    let vm = Vm::new(0);
    // Before: GBPA lets the device through, to stage 2.
    let [chain, from, to] = std::array::from_fn(|_| vm.ram.page().unwrap());
    vm.ram.write(from, &MESSAGE).unwrap();
    engine::descriptor(&vm.ram, chain, from, to, MESSAGE.len() as u32, false).unwrap();
    assert_eq!(vm.device.engine().run(chain).unwrap(), Copied::Done);
    assert!(matches!(vm.device.engine().run(RAM - 4096).unwrap(), Copied::Refused(_)));
    let guest = vm.boot();
    assert!(matches!(vm.device.engine().run(chain).unwrap(), Copied::Refused(_)), "no stream yet");
    let stream = guest.stream(0x10).unwrap();
    let copy = Copy::new(&vm.ram, &stream);
    assert!(copy.arrives(&vm.ram, &vm.device));
    assert!(matches!(vm.device.engine().run(chain).unwrap(), Copied::Refused(_)), "no IOVA");
}

#[test]
fn strict_unmapping_is_in_force_when_it_returns_and_lazy_when_it_is_synced() {
    let vm = Vm::new(1);
    let guest = vm.boot();
    let stream = guest.stream(0x10).unwrap();
    let copy = Copy::new(&vm.ram, &stream);
    for _ in 0..20 {
        assert!(copy.arrives(&vm.ram, &vm.device));
        stream.unmap(TO).unwrap();
        assert!(!copy.arrives(&vm.ram, &vm.device));
        stream.map(TO, copy.to).unwrap();
        assert!(copy.arrives(&vm.ram, &vm.device));
        stream.unmap_lazily(FROM).unwrap();
        // It may still be seen; after the sync it may not.
        let _ = vm.device.engine().run(CHAIN).unwrap();
        stream.domain().sync().unwrap();
        assert!(!copy.arrives(&vm.ram, &vm.device));
        stream.map(FROM, copy.from).unwrap();
    }
}

#[test]
fn two_devices_on_one_vsmmu_have_their_own_stage_1() {
    let vm = Vm::new(2);
    let other = open(&vm.vmm, 3);
    vm.vmm.plug(&vm.vsmmu, &other, 0x18).unwrap();
    let guest = vm.boot();
    let [one, two] = [0x10, 0x18].map(|id| guest.stream(id).unwrap());
    let [copy, also] = [&one, &two].map(|stream| Copy::new(&vm.ram, stream));
    assert!(copy.arrives(&vm.ram, &vm.device) && also.arrives(&vm.ram, &other));
    one.unmap(FROM).unwrap();
    assert!(!copy.arrives(&vm.ram, &vm.device));
    assert!(also.arrives(&vm.ram, &other));
}

#[test]
fn two_vsmmus_keep_apart_what_a_guest_calls_the_same() {
    let vm = Vm::new(4);
    let other = open(&vm.vmm, 5);
    let second = vm.vmm.vsmmu(Options::mmu700(), &other, 0x10).unwrap();
    assert_ne!(second.nest_parent(), vm.vsmmu.nest_parent());
    let guests =
        [&vm.vsmmu, &second].map(|vsmmu| Guest::boot(vsmmu.smmu().clone(), &vm.ram).unwrap());
    // The same StreamID, ASID and IOVA on both, at once, and different pages.
    let streams = guests.each_ref().map(|guest| guest.stream(0x10).unwrap());
    let copies = streams.each_ref().map(|stream| Copy::new(&vm.ram, stream));
    for _ in 0..4 {
        for (copy, device) in copies.iter().zip([&vm.device, &other]) {
            assert!(copy.arrives(&vm.ram, device));
        }
    }
    streams[0].unmap(TO).unwrap();
    assert!(!copies[0].arrives(&vm.ram, &vm.device));
    assert!(copies[1].arrives(&vm.ram, &other));
}

#[test]
fn two_vsmmus_share_a_stage_2_where_the_hardware_allows() {
    install();
    let ram = GuestRam::new(RAM, 16 << 20).unwrap();
    let vmm = Vmm::with_shared_stage_2(&ram).unwrap();
    let devices = [29, 30, 24].map(|engine| open(&vmm, engine));
    let [first, second, elsewhere] =
        devices.each_ref().map(|device| vmm.vsmmu(Options::mmu700(), device, 0x10).unwrap());
    assert_eq!(first.nest_parent(), second.nest_parent());
    assert_ne!(first.nest_parent(), elsewhere.nest_parent(), "another SMMU, another page table");
    assert_eq!(vmm.parents().ids().len(), 2);
    let guests =
        [&first, &second, &elsewhere].map(|vsmmu| Guest::boot(vsmmu.smmu().clone(), &ram).unwrap());
    // An ASID means one address space on all of them: nobody else's is taken.
    let _before = guests[1].domain().unwrap();
    let streams = guests.each_ref().map(|guest| guest.stream(0x10).unwrap());
    let copies = streams.each_ref().map(|stream| Copy::new(&ram, stream));
    for (copy, device) in copies.iter().zip(&devices) {
        assert!(copy.arrives(&ram, device));
    }
    // What leaves stage 2 is gone for all.
    let region = Region::new(0x1_0000_0000, 2 << 20).unwrap();
    for stream in &streams {
        stream.unmap(TO).unwrap();
        stream.map(TO, region.range().start).unwrap();
    }
    vmm.plug_memory(&region).unwrap();
    let run = |device: &Assigned| device.engine().run(CHAIN).unwrap() == Copied::Done;
    assert!(devices.iter().all(run));
    vmm.unplug_memory(&region).unwrap();
    assert!(!devices.iter().any(run));
}

#[test]
fn memory_comes_and_goes_under_load() {
    let vm = Vm::new(6);
    let guest = vm.boot();
    let stream = guest.stream(0x10).unwrap();
    let copy = Copy::new(&vm.ram, &stream);
    for round in 0..8_u64 {
        let region = Region::new(0x1_0000_0000 + (round << 30), 2 << 20).unwrap();
        stream.unmap(TO).unwrap();
        // The guest maps what is not there yet.
        stream.map(TO, region.range().start).unwrap();
        assert!(matches!(vm.device.engine().run(CHAIN).unwrap(), Copied::Refused(_)));
        vm.vmm.plug_memory(&region).unwrap();
        let plugged = Copy { to: region.range().start, ..copy };
        assert!(plugged.arrives(&vm.ram, &vm.device));
        // It goes while the device is busy with it.
        std::thread::scope(|scope| {
            let load = scope.spawn(|| {
                let mut refused = 0;
                while refused < 3 {
                    refused += u32::from(vm.device.engine().run(CHAIN).unwrap() != Copied::Done);
                }
            });
            std::thread::yield_now();
            vm.vmm.unplug_memory(&region).unwrap();
            load.join().unwrap();
        });
        let mut data = [0; MESSAGE.len()];
        assert!(vm.ram.read(region.range().start, &mut data).is_err());
    }
    stream.unmap(TO).unwrap();
    stream.map(TO, copy.to).unwrap();
    assert!(copy.arrives(&vm.ram, &vm.device));
}

#[test]
fn a_message_goes_through_both_stages() {
    const DOORBELL: u64 = 0x800_0000;
    let vm = Vm::new(7);
    let guest = vm.boot();
    let stream = guest.stream(0x10).unwrap();
    let copy = Copy::new(&vm.ram, &stream);
    // SAFETY: a plain system call; the descriptor is ours.
    let mut event =
        unsafe { File::from_raw_fd(libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK)) };
    vm.device.engine().enable_interrupt(&event).unwrap();
    let mut count = [0; 8];
    assert!(copy.arrives(&vm.ram, &vm.device));
    // The guest has nothing at the doorbell's address: the message is a fault of its own.
    let found = vm.events(&guest);
    assert!(found.iter().any(|event| event.input_address >> 12 == DOORBELL >> 12), "{found:?}");
    assert!(event.read_exact(&mut count).is_err());
    // What firmware tells it to: one to one.
    stream.map_mmio(DOORBELL, DOORBELL).unwrap();
    assert!(copy.arrives(&vm.ram, &vm.device));
    while event.read_exact(&mut count).is_err() {
        std::thread::yield_now();
    }
    assert_eq!(u64::from_ne_bytes(count), 1);
}

#[test]
fn the_guest_hears_of_its_faults_and_of_no_others() {
    let vm = Vm::new(8);
    let guest = vm.boot();
    let stream = guest.stream(0x10).unwrap();
    let copy = Copy::new(&vm.ram, &stream);
    stream.unmap(TO).unwrap();
    assert!(!copy.arrives(&vm.ram, &vm.device));
    let events = vm.events(&guest);
    assert_eq!(events.len(), 1, "{events:?}");
    let event = &events[0];
    assert_eq!((event.kind, event.sid, event.input_address), (EventKind::Translation, 0x10, TO));
    assert!(!event.rnw && !event.s2);
    // Beyond its memory: the host's affair.
    stream.map(TO, RAM + (1 << 30)).unwrap();
    assert!(matches!(vm.device.engine().run(CHAIN).unwrap(), Copied::Refused(_)));
    stream.unmap(FROM).unwrap();
    assert!(!copy.arrives(&vm.ram, &vm.device));
    let events = vm.events(&guest);
    assert_eq!(events.len(), 1, "{events:?}");
    assert_eq!(events[0].input_address, FROM);
}

#[test]
fn a_command_error_in_the_middle_of_a_batch_names_its_command() {
    let vm = Vm::new(9);
    let guest = vm.boot();
    let stream = guest.stream(0x10).unwrap();
    let copy = Copy::new(&vm.ram, &stream);
    let fine = Command::TlbiNsnhAll;
    // The Secure state's: not for this queue.
    let bad = Command::CfgiSte { sid: 0x10, leaf: true, ssec: true };
    for position in [0, 1, 5, 40] {
        let mut batch = vec![fine; 64];
        batch[position] = bad;
        let error = guest.smmu().run(&batch).unwrap_err().to_string();
        assert!(error.contains(&position.to_string()), "{error}");
        assert!(copy.arrives(&vm.ram, &vm.device), "the queue goes on");
    }
}

#[test]
fn gbpa_decides_while_the_smmu_is_off() {
    const GBPA: u64 = 0x44;
    const ABORT: u32 = 1 << 20;
    const UPDATE: u32 = 1 << 31;
    let vm = Vm::new(10);
    let [chain, from, to] = std::array::from_fn(|_| vm.ram.page().unwrap());
    vm.ram.write(from, &MESSAGE).unwrap();
    engine::descriptor(&vm.ram, chain, from, to, MESSAGE.len() as u32, false).unwrap();
    let smmu = vm.vsmmu.smmu();
    for (value, passes) in [(ABORT, false), (0, true), (ABORT, false), (0, true)] {
        smmu.write32(GBPA, value | UPDATE);
        while smmu.read32(GBPA) & UPDATE != 0 {
            std::thread::yield_now();
        }
        let result = vm.device.engine().run(chain).unwrap();
        assert_eq!(result == Copied::Done, passes);
    }
    // On and off again.
    let guest = vm.boot();
    drop(guest.stream(0x10).unwrap());
    drop(guest);
    assert!(matches!(vm.device.engine().run(chain).unwrap(), Copied::Refused(_)), "GBPA.ABORT");
}

#[test]
fn a_reset_and_another_boot() {
    let vm = Vm::new(11);
    let guest = vm.boot();
    let stream = guest.stream(0x10).unwrap();
    let copy = Copy::new(&vm.ram, &stream);
    assert!(copy.arrives(&vm.ram, &vm.device));
    // Nobody tells the guest.
    std::mem::forget((stream, guest));
    vm.vsmmu.reset().unwrap();
    assert!(matches!(vm.device.engine().run(CHAIN).unwrap(), Copied::Refused(_)), "no such IPA");
    let guest = vm.boot();
    let stream = guest.stream(0x10).unwrap();
    assert!(Copy::new(&vm.ram, &stream).arrives(&vm.ram, &vm.device));
}

#[test]
fn a_guest_crashes_and_the_next_one_boots_on_what_it_left() {
    let vm = Vm::new(12);
    let guest = vm.boot();
    let stream = guest.stream(0x10).unwrap();
    let copy = Copy::new(&vm.ram, &stream);
    vm.device.engine().start(CHAIN).unwrap();
    std::mem::forget((stream, guest));
    // A crash kernel takes over, with the device still at work.
    let guest = vm.boot();
    assert!(matches!(vm.device.engine().run(CHAIN).unwrap(), Copied::Refused(_)));
    let stream = guest.stream(0x10).unwrap();
    let after = Copy::new(&vm.ram, &stream);
    assert!(after.arrives(&vm.ram, &vm.device));
    assert_ne!(copy.to, after.to);
}

#[test]
fn a_device_is_unplugged_and_comes_back_elsewhere() {
    let vm = Vm::new(13);
    let guest = vm.boot();
    let stream = guest.stream(0x10).unwrap();
    let copy = Copy::new(&vm.ram, &stream);
    assert!(copy.arrives(&vm.ram, &vm.device));
    vm.vsmmu.unplug(vm.device.id()).unwrap();
    assert!(!copy.arrives(&vm.ram, &vm.device), "nobody's device");
    // The guest's driver lets go of what is gone.
    stream.unmap(TO).unwrap();
    drop(stream);
    vm.vmm.plug(&vm.vsmmu, &vm.device, 0x20).unwrap();
    assert!(matches!(vm.device.engine().run(CHAIN).unwrap(), Copied::Refused(_)));
    let stream = guest.stream(0x20).unwrap();
    let copy = Copy::new(&vm.ram, &stream);
    assert!(copy.arrives(&vm.ram, &vm.device));
    // The guest renumbers its buses.
    vm.vsmmu.set_stream_id(vm.device.id(), Some(0x28)).unwrap();
    assert!(!copy.arrives(&vm.ram, &vm.device));
    let options = StreamOptions::default();
    let _stream = guest.stream_in(0x28, options, stream.domain()).unwrap();
    assert!(copy.arrives(&vm.ram, &vm.device));
}

#[test]
fn two_vms_do_not_see_each_other() {
    let [one, two] = [14, 15].map(Vm::new);
    let guests = [&one, &two].map(Vm::boot);
    let streams: Vec<_> = guests.iter().map(|guest| guest.stream(0x10).unwrap()).collect();
    let copies: Vec<_> =
        [&one, &two].iter().zip(&streams).map(|(vm, stream)| Copy::new(&vm.ram, stream)).collect();
    std::thread::scope(|scope| {
        let disturb = scope.spawn(|| {
            for _ in 0..200 {
                guests[1].smmu().run(&[Command::TlbiNsnhAll; 16]).unwrap();
            }
        });
        for _ in 0..20 {
            assert!(copies[0].arrives(&one.ram, &one.device));
            streams[0].unmap(TO).unwrap();
            assert!(!copies[0].arrives(&one.ram, &one.device));
            streams[0].map(TO, copies[0].to).unwrap();
        }
        disturb.join().unwrap();
    });
    assert!(copies[1].arrives(&two.ram, &two.device));
    // Those of the first are there by now, and none is the second's.
    assert!(!one.events(&guests[0]).is_empty());
    assert_eq!(two.events_now(&guests[1]), []);
}
