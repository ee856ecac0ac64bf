//! PASIDs: a guest's CD table, of which the device uses several entries at once.

mod common;

use std::sync::Arc;

use arm_smmu_v3::{Attachment, Prot, Stream, StreamOptions};
use common::{ATS, CHAIN, Copy, FROM, PASIDS, Registers, TO, Vm};
use guest::engine::{self, Copied};
use guest::{Guest, GuestRam};
use smmuv3::wire::EventKind;

type Domain = arm_smmu_v3::Domain<Registers, Arc<GuestRam>>;

/// PASIDs that the guest has a CD table for; the device has more.
const BITS: u8 = 4;

fn options(ats: bool) -> StreamOptions {
    StreamOptions { pasid_bits: BITS, ats, ..StreamOptions::default() }
}

fn map(domain: &Domain, iova: u64, page: u64) {
    domain.map(iova..iova + 4096, page, Prot::READ | Prot::WRITE | Prot::CACHE, 4096).unwrap();
}

fn unmap(domain: &Domain, iova: u64) {
    domain.unmap(iova..iova + 4096).unwrap();
    domain.sync().unwrap();
}

/// A process: an address space that has its own pages at the same addresses as every other.
struct Process {
    pasid: u32,
    domain: Arc<Domain>,
    pages: Copy,
}

impl Process {
    fn new(vm: &Vm, guest: &Guest<Registers>, pasid: u32) -> Self {
        let (domain, pages) = (guest.domain().unwrap(), Copy::unmapped(&vm.ram));
        map(&domain, FROM, pages.from);
        map(&domain, TO, pages.to);
        Self { pasid, domain, pages }
    }

    /// Copies on its behalf. The chain is the kernel's, and the device finds it at `chain`.
    fn copies(&self, vm: &Vm, kernel: &Copy, chain: u64) -> bool {
        engine::set_pasid(&vm.ram, kernel.chain, Some(self.pasid)).unwrap();
        let arrived = self.pages.arrives_by(&vm.ram, &vm.device, chain);
        engine::set_pasid(&vm.ram, kernel.chain, None).unwrap();
        arrived
    }
}

/// With and without an ATC in the device, which has to forget what the guest invalidates.
fn processes(engine: u32, ats: bool) {
    let vm = Vm::new(engine);
    let guest = vm.boot();
    let stream = guest.stream_in(0x10, options(ats), &guest.domain().unwrap()).unwrap();
    let kernel = Copy::new(&vm.ram, &stream);
    let processes = [1, 2, 15].map(|pasid| Process::new(&vm, &guest, pasid));
    for process in &processes {
        stream.stream().attach_pasid(process.pasid, &process.domain).unwrap();
    }
    let [one, two, three] = &processes;
    let works = |process: &Process| process.copies(&vm, &kernel, CHAIN);
    // The same addresses, four times: `Copy` looks at whose page has the message.
    assert!(kernel.arrives(&vm.ram, &vm.device));
    assert!(processes.iter().all(works) && processes.iter().all(works));

    // CMD_TLBI_NH_VA with the ASID of one.
    unmap(&one.domain, TO);
    assert!(!works(one) && works(two) && works(three));
    assert!(kernel.arrives(&vm.ram, &vm.device));
    if ats {
        assert_eq!(vm.events_now(&guest), [], "an ATC is told, and faults by itself");
    } else {
        let events = vm.events(&guest);
        let [event] = events.as_slice() else { panic!("{events:?}") };
        assert_eq!((event.kind, event.sid, event.ssid), (EventKind::Translation, 0x10, Some(1)));
        assert_eq!(event.input_address, TO);
    }
    map(&one.domain, TO, one.pages.to);
    assert!(works(one));

    // CMD_CFGI_CD of another.
    stream.stream().detach_pasid(2).unwrap();
    assert_eq!([one, two, three].map(works), [true, false, true]);
    if !ats {
        let events = vm.events(&guest);
        assert_eq!((events[0].kind, events[0].ssid), (EventKind::BadCd, Some(2)));
    }
    // Its place goes to a third address space.
    stream.stream().attach_pasid(2, &three.domain).unwrap();
    let renamed = Process { pasid: 2, domain: three.domain.clone(), pages: Copy { ..three.pages } };
    assert!(works(&renamed) && works(three) && works(one));
}

#[test]
fn a_pasid_is_an_address_space() {
    processes(PASIDS, false);
}

#[test]
fn a_pasid_is_an_address_space_to_a_device_with_an_atc() {
    processes(ATS, true);
}

#[test]
fn what_has_no_pasid_goes_where_s1dss_says() {
    let vm = Vm::new(PASIDS + 1);
    let guest = vm.boot();
    let stream = Stream::new(guest.smmu(), 0x10, options(false)).unwrap();
    let kernel = Copy::unmapped(&vm.ram);
    let process = Process::new(&vm, &guest, 5);
    stream.attach_pasid(5, &process.domain).unwrap();

    // 0b00: it is terminated. The engine does not come to what has a PASID.
    assert!(!process.copies(&vm, &kernel, kernel.chain));
    let events = vm.events(&guest);
    assert_eq!((events[0].kind, events[0].ssid), (EventKind::StreamDisabled, None));

    // 0b01: it bypasses stage 1, and addresses are the guest's physical ones.
    stream.attach(Attachment::Identity).unwrap();
    assert!(process.copies(&vm, &kernel, kernel.chain));
    engine::descriptor(&vm.ram, kernel.chain, kernel.from, kernel.to, 21, false).unwrap();
    assert!(kernel.arrives_by(&vm.ram, &vm.device, kernel.chain));

    // 0b10: it is PASID 0's.
    let domain = guest.domain().unwrap();
    stream.attach(Attachment::Paging(domain.clone())).unwrap();
    map(&domain, CHAIN, kernel.chain);
    engine::descriptor(&vm.ram, kernel.chain, FROM, TO, 21, false).unwrap();
    assert!(process.copies(&vm, &kernel, CHAIN));
    assert!(!process.copies(&vm, &kernel, kernel.chain), "no IOVA any more");
    assert_eq!(vm.events(&guest)[0].kind, EventKind::Translation);
    engine::set_pasid(&vm.ram, kernel.chain, Some(0)).unwrap();
    assert!(matches!(vm.device.engine().run(CHAIN).unwrap(), Copied::Refused(_)));
    let events = vm.events(&guest);
    assert_eq!(events[0].kind, EventKind::StreamDisabled);
}

#[test]
fn a_pasid_beyond_the_table_is_the_guest_s_event() {
    let vm = Vm::new(PASIDS + 2);
    let guest = vm.boot();
    let stream = guest.stream_in(0x10, options(false), &guest.domain().unwrap()).unwrap();
    let kernel = Copy::new(&vm.ram, &stream);
    let process = Process::new(&vm, &guest, 1 << BITS);
    assert!(stream.stream().attach_pasid(1 << BITS, &process.domain).is_err());
    assert!(!process.copies(&vm, &kernel, CHAIN));
    let events = vm.events(&guest);
    let [event] = events.as_slice() else { panic!("{events:?}") };
    assert_eq!((event.kind, event.sid), (EventKind::BadSubstreamId, 0x10));
    assert_eq!(event.ssid, Some(1 << BITS));
    assert!(kernel.arrives(&vm.ram, &vm.device));
}

#[test]
fn privilege_is_part_of_the_transaction() {
    let vm = Vm::new(PASIDS + 3);
    let guest = vm.boot();
    let stream = guest.stream_in(0x10, options(false), &guest.domain().unwrap()).unwrap();
    let kernel = Copy::new(&vm.ram, &stream);
    let process = Process::new(&vm, &guest, 6);
    stream.stream().attach_pasid(6, &process.domain).unwrap();
    unmap(&process.domain, TO);
    for privileged in [false, true] {
        let word = 1 << 31 | u64::from(privileged) << 30 | 6;
        vm.ram.store(kernel.chain + 32, word).unwrap();
        assert!(matches!(vm.device.engine().run(CHAIN).unwrap(), Copied::Refused(_)));
        let events = vm.events(&guest);
        let [event] = events.as_slice() else { panic!("{events:?}") };
        assert_eq!((event.ssid, event.pnu), (Some(6), privileged));
    }
}

#[test]
fn an_engine_without_pasids_does_not_look_for_one() {
    let vm = Vm::new(0);
    let guest = vm.boot();
    let stream = guest.stream(0x10).unwrap();
    let copy = Copy::new(&vm.ram, &stream);
    engine::set_pasid(&vm.ram, copy.chain, Some(3)).unwrap();
    assert!(copy.arrives(&vm.ram, &vm.device));
    assert_eq!(vm.events_now(&guest), []);
}
