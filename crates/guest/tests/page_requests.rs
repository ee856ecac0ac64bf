//! ATS and page requests: a device that translates for itself, and asks the guest for what is not there.

mod common;

use std::os::unix::fs::FileExt;

use arm_smmu_v3::StreamOptions;
use common::{CHAIN, Copy, FROM, MESSAGE, PRI, Registers, TO, Vm};
use guest::engine::{self, Copied};
use guest::{Guest, GuestStream};
use smmuv3::Options;
use smmuv3::wire::PageRequest;

/// `ATS Control`, and the status of page requests, in configuration space.
const ATS_CONTROL: u64 = (7 << 40) + 0x106;
const PRI_CONTROL: u64 = (7 << 40) + 0x114;

fn stream(guest: &Guest<Registers>) -> GuestStream<Registers> {
    let options = StreamOptions { ats: true, pasid_bits: 4, ..StreamOptions::default() };
    guest.stream_in(0x10, options, &guest.domain().unwrap()).unwrap()
}

/// What the device asks for next: whole groups, at least one.
fn asked(vm: &Vm, guest: &Guest<Registers>) -> Vec<PageRequest> {
    let mut found = Vec::new();
    while found.last().is_none_or(|request: &PageRequest| !request.last) {
        vm.vsmmu.process_page_requests().unwrap();
        found.extend(guest.page_requests().records);
        std::thread::yield_now();
    }
    found
}

fn end(vm: &Vm) -> Copied {
    loop {
        if let Some(end) = vm.device.engine().poll().unwrap() {
            return end;
        }
        std::thread::yield_now();
    }
}

fn half(vm: &Vm, at: u64) -> u16 {
    let mut bytes = [0; 2];
    vm.device.engine().file().read_exact_at(&mut bytes, at).unwrap();
    u16::from_le_bytes(bytes)
}

#[test]
fn a_device_has_ats_where_the_guest_wants_it_and_forgets_what_the_guest_invalidates() {
    let vm = Vm::new(PRI);
    assert_eq!(half(&vm, ATS_CONTROL), 0, "stage 1 bypasses");
    let guest = vm.boot();
    let plain = guest.stream(0x10).unwrap();
    assert_eq!(half(&vm, ATS_CONTROL), 0, "EATS is 0");
    drop(plain);
    let stream = stream(&guest);
    assert_eq!((half(&vm, ATS_CONTROL), half(&vm, PRI_CONTROL)), (1 << 15, 1));
    let copy = Copy::new(&vm.ram, &stream);
    for _ in 0..20 {
        assert!(copy.arrives(&vm.ram, &vm.device) && copy.arrives(&vm.ram, &vm.device));
        // To another page: what the device knows of the address is wrong from now on.
        let other = vm.ram.page().unwrap();
        stream.unmap(TO).unwrap();
        stream.map(TO, other).unwrap();
        vm.ram.write(copy.to, &[0; MESSAGE.len()]).unwrap();
        assert_eq!(vm.device.engine().run(CHAIN).unwrap(), Copied::Done);
        assert!(!copy.has_arrived(&vm.ram));
        stream.unmap(TO).unwrap();
        stream.map(TO, copy.to).unwrap();
    }
    assert_eq!(vm.events_now(&guest), []);
    drop(stream);
    assert_eq!(half(&vm, ATS_CONTROL), 0, "the stream aborts");
    assert!(!copy.arrives(&vm.ram, &vm.device));
}

#[test]
fn a_guest_maps_what_a_device_asks_for() {
    let vm = Vm::new(PRI + 1);
    let guest = vm.boot();
    let stream = stream(&guest);
    let copy = Copy::unmapped(&vm.ram);
    vm.device.engine().start(CHAIN).unwrap();
    // The chain, what is read, and what is written: each when the device comes to it.
    for (iova, page) in [(CHAIN, copy.chain), (FROM, copy.from), (TO, copy.to)] {
        let requests = asked(&vm, &guest);
        let [request] = requests.as_slice() else { panic!("{requests:?}") };
        assert_eq!((request.sid, request.ssid, request.address), (0x10, None, iova));
        assert_eq!((request.write, request.read, request.last), (iova == TO, iova != TO, true));
        assert_eq!(vm.device.engine().poll().unwrap(), None, "it waits");
        stream.map(iova, page).unwrap();
        guest.answer(request, true).unwrap();
    }
    assert_eq!(end(&vm), Copied::Done);
    assert!(copy.has_arrived(&vm.ram));
    // Now it knows.
    assert!(copy.arrives(&vm.ram, &vm.device));
    assert_eq!(vm.events_now(&guest), []);
    assert_eq!(vm.vsmmu.statistics().page_requests_refused, 0);
}

#[test]
fn pages_are_asked_for_in_groups_and_for_a_pasid() {
    const LEN: u64 = 5 * 4096;
    let vm = Vm::new(PRI + 2);
    let guest = vm.boot();
    let stream = stream(&guest);
    let process = guest.domain().unwrap();
    stream.stream().attach_pasid(3, &process).unwrap();
    let copy = Copy::new(&vm.ram, &stream);
    engine::descriptor(&vm.ram, copy.chain, FROM, TO, LEN as u32, false).unwrap();
    engine::set_pasid(&vm.ram, copy.chain, Some(3)).unwrap();
    vm.device.engine().start(CHAIN).unwrap();
    let (mut asked_for, mut seen) = (Vec::new(), Vec::new());
    for _ in 0..2 {
        let requests = asked(&vm, &guest);
        assert_eq!(requests.len(), 5);
        for request in &requests {
            assert_eq!((request.sid, request.ssid), (0x10, Some(3)));
            assert_eq!(request.prg_index, requests[0].prg_index);
            assert_eq!(request.last, request.address == requests[4].address);
            asked_for.push(request.address);
            let page = vm.ram.page().unwrap();
            vm.ram.write(page, &request.address.to_le_bytes()).unwrap();
            seen.push(page);
            let prot = arm_smmu_v3::Prot::READ | arm_smmu_v3::Prot::WRITE;
            process.map(request.address..request.address + 4096, page, prot, 4096).unwrap();
        }
        guest.answer(&requests[4], true).unwrap();
    }
    assert_eq!(end(&vm), Copied::Done);
    let pages = |from: u64| (from..from + LEN).step_by(4096);
    assert!(pages(FROM).chain(pages(TO)).eq(asked_for));
    for (from, to) in pages(FROM).zip(&seen[5..]) {
        assert_eq!(vm.ram.load(*to).unwrap(), from, "page by page");
    }
}

#[test]
fn a_guest_may_say_no() {
    let vm = Vm::new(PRI + 3);
    let guest = vm.boot();
    let stream = stream(&guest);
    let copy = Copy::new(&vm.ram, &stream);
    stream.unmap(TO).unwrap();
    for _ in 0..3 {
        vm.ram.write(copy.to, &[0; MESSAGE.len()]).unwrap();
        vm.device.engine().start(CHAIN).unwrap();
        let requests = asked(&vm, &guest);
        guest.answer(&requests[0], false).unwrap();
        assert!(matches!(end(&vm), Copied::Refused(_)));
        assert!(!copy.has_arrived(&vm.ram));
    }
    assert_eq!(vm.events_now(&guest), [], "the device knows, and nobody else");
    stream.map(TO, copy.to).unwrap();
    assert!(copy.arrives(&vm.ram, &vm.device));
}

#[test]
fn a_guest_that_never_answers_keeps_nobody() {
    let vm = Vm::new(PRI + 4);
    let guest = vm.boot();
    let stream = stream(&guest);
    let copy = Copy::new(&vm.ram, &stream);
    stream.unmap(TO).unwrap();
    let mut waiting = Vec::new();
    for by_function in [true, false, true] {
        vm.device.engine().start(CHAIN).unwrap();
        waiting.extend(asked(&vm, &guest));
        if by_function {
            vm.device.engine().reset().unwrap();
        }
        // Otherwise by the engine's own reset, with which each start begins.
    }
    stream.map(TO, copy.to).unwrap();
    assert!(copy.arrives(&vm.ram, &vm.device));
    // Late answers are nobody's.
    for request in &waiting {
        guest.answer(request, true).unwrap();
    }
    assert!(copy.arrives(&vm.ram, &vm.device));
    // Nor does a VM that goes.
    stream.unmap(TO).unwrap();
    vm.device.engine().start(CHAIN).unwrap();
    asked(&vm, &guest);
}

#[test]
fn a_queue_that_overflows_loses_requests_and_not_the_device() {
    let options = Options { priq_log2: 1, ..Options::mmu700() };
    let vm = Vm::with(PRI + 5, options);
    let guest = vm.boot();
    let stream = stream(&guest);
    let copy = Copy::new(&vm.ram, &stream);
    stream.unmap(TO).unwrap();
    // Five pages are asked for, and the guest's queue holds two.
    engine::descriptor(&vm.ram, copy.chain, FROM, TO, 5 * 4096, false).unwrap();
    (1..5).for_each(|n| stream.map(FROM + n * 4096, copy.from).unwrap());
    vm.device.engine().start(CHAIN).unwrap();
    let (mut mapped, mut overflowed) = (0, false);
    while vm.device.engine().poll().unwrap().is_none() {
        vm.vsmmu.process_page_requests().unwrap();
        let requests = guest.page_requests();
        overflowed |= requests.overflow;
        for request in requests.records {
            let page = if request.address == TO { copy.to } else { vm.ram.page().unwrap() };
            // It may have been asked for before.
            mapped += u32::from(stream.map(request.address, page).is_ok());
            if request.last {
                guest.answer(&request, true).unwrap();
            }
        }
    }
    assert!(overflowed);
    assert_eq!((end(&vm), mapped), (Copied::Done, 5));
    assert!(copy.has_arrived(&vm.ram));
}

#[test]
fn who_takes_a_waiting_device_away_answers_for_the_guest() {
    let vm = Vm::new(PRI + 6);
    let wait = |guest: &Guest<Registers>| {
        let stream = stream(guest);
        let copy = Copy::new(&vm.ram, &stream);
        stream.unmap(TO).unwrap();
        vm.device.engine().start(CHAIN).unwrap();
        asked(&vm, guest);
        assert_eq!(vm.device.engine().poll().unwrap(), None);
        (stream, copy)
    };
    let refused = || assert!(matches!(end(&vm), Copied::Refused(_)));
    let guest = vm.boot();
    // The guest itself: its STE aborts.
    let (taken, _) = wait(&guest);
    drop(taken);
    refused();
    // The VMM: it unplugs the device, or renumbers it.
    let (taken, _) = wait(&guest);
    vm.vsmmu.unplug(vm.device.id()).unwrap();
    refused();
    drop(taken);
    vm.vmm.plug(&vm.vsmmu, &vm.device, 0x10).unwrap();
    let (taken, _) = wait(&guest);
    vm.vsmmu.set_stream_id(vm.device.id(), Some(0x18)).unwrap();
    refused();
    drop(taken);
    vm.vsmmu.set_stream_id(vm.device.id(), Some(0x10)).unwrap();
    // A reset of the SMMU, which the guest does not survive.
    let (taken, copy) = wait(&guest);
    std::mem::forget((taken, guest));
    vm.vsmmu.reset().unwrap();
    // GBPA has it pass now, and its addresses mean nothing.
    refused();
    assert!(!copy.has_arrived(&vm.ram));
    let guest = vm.boot();
    let stream = stream(&guest);
    assert!(Copy::new(&vm.ram, &stream).arrives(&vm.ram, &vm.device));
}
