//! Events: which are a guest's, what stays with the host, and that nobody crowds out others.

mod common;
#[path = "common/guest.rs"]
mod guest;

use std::sync::{Arc, Mutex};

use arm_smmu_v3::{Cause, DeviceOptions, HostFault};
use guest::{Guest, Host, IPA, RW, Space, attach, make_viommu};
use iommu::{Device, Domain, Error, EventSink, PagingFlags, Target};
use smmuv3::wire::{Cd, Command, Event, EventKind, Register, Ste};
use smmuv3::{Transaction, Wire};

const SID: u32 = 5;
const VSID: u32 = 0xabcd_0123;
const VA: u64 = 0x7000_0000;

/// A guest whose device translates one page at `VA`, and one that stage 2 does not have.
fn nested(host: &Host, n: u32) -> (Arc<Device>, Guest, Space) {
    let device = host.device(SID + n, DeviceOptions::default());
    let guest = Guest::new(host, &device, n.into());
    let cds = guest.ram.alloc(6);
    let mut space = Space::new(&guest.ram, 1);
    space.map(VA..VA + 0x1000, IPA);
    space.map(VA + 0x1000..VA + 0x2000, 0x1234_5000);
    guest.ram.write(cds, &space.cd().0);
    guest.viommu.add_device(&device, (VSID + n).into()).unwrap();
    attach(&device, guest.nested(&device, Guest::ste(cds)).unwrap()).unwrap();
    (device, guest, space)
}

fn drain(host: &Host) {
    while host.driver.handle_events() {}
}

fn told(guest: &Guest) -> Vec<Event> {
    let records = std::mem::take(&mut *guest.events.0.lock().unwrap());
    let decode = |(kind, record): (u32, Vec<u8>)| {
        assert_eq!((kind, record.len()), (1, 32));
        let (words, _) = record.as_chunks();
        let words: Vec<_> = words.iter().map(|word| u64::from_le_bytes(*word)).collect();
        Event::decode(&words.try_into().unwrap()).unwrap()
    };
    records.into_iter().map(decode).collect()
}

#[test]
fn a_guest_is_told_what_its_own_smmu_would_tell() {
    let mut host = Host::new(smmuv3::Options::everything());
    let (device, guest, _space) = nested(&host, 0);
    let other = nested(&host, 1);
    assert_eq!(host.read(SID, VA + 0x2010), None);
    assert_eq!(host.go(&Transaction::write(SID, VA + 0x2010)), None);
    drain(&host);
    let write =
        Event { sid: VSID, input_address: VA + 0x2010, ..Event::new(EventKind::Translation, VSID) };
    let seen = told(&guest);
    assert_eq!(seen, [Event { rnw: true, ..write }, write]);

    // The guest's CD is not valid.
    guest.ram.write(IPA, &Cd::default().0);
    guest.all(&[Command::CfgiCdAll { sid: VSID, ssec: false }]);
    assert_eq!(host.read(SID, VA), None);
    // It has no substreams.
    assert_eq!(host.go(&Transaction::read(SID, VA).with_substream(3)), None);
    drain(&host);
    let kinds: Vec<_> =
        told(&guest).iter().map(|event| (event.kind, event.sid, event.ssid)).collect();
    assert_eq!(kinds, [(EventKind::BadCd, VSID, None), (EventKind::BadSubstreamId, VSID, Some(3))]);

    // CDs where the memory does not answer; which physical address that is, the guest does not learn.
    guest.parent.map(0x5000_0000, 1 << 40, 0x1000, RW, 1 << 12).unwrap();
    attach(&device, guest.nested(&device, Guest::ste(0x5000_0000)).unwrap()).unwrap();
    assert_eq!(host.read(SID, VA), None);
    drain(&host);
    let seen = told(&guest);
    assert_eq!(seen, [Event { ..Event::new(EventKind::CdFetch, VSID) }]);
    assert_eq!(told(&other.1), []);
    assert_eq!(host.driver.host_faults().faults, []);
}

#[test]
fn what_is_the_hosts_stays_with_the_host() {
    let mut host = Host::new(smmuv3::Options::everything());
    let (device, guest, _space) = nested(&host, 0);
    let faults = |host: &Host| {
        drain(host);
        let found = host.driver.host_faults();
        assert_eq!(found.lost, 0);
        let event = |fault: HostFault| match fault.cause {
            Cause::Event(event) => (fault.device, event.kind, event.sid, event.s2),
            other => panic!("{other:?}"),
        };
        found.faults.into_iter().map(event).collect::<Vec<_>>()
    };
    let name = || Some(format!("device {SID}"));
    // Stage 2 does not have it: for the guest's tables, and for its CDs.
    assert_eq!(host.read(SID, VA + 0x1000), None);
    attach(&device, guest.nested(&device, Guest::ste(0x2000_0000)).unwrap()).unwrap();
    assert_eq!(host.read(SID, VA), None);
    let expected = (name(), EventKind::Translation, SID, true);
    assert_eq!(faults(&host), [expected.clone(), expected.clone()]);
    // A stream with nobody behind it.
    host.go(&Transaction::read(0x300_0000, VA));
    assert_eq!(faults(&host), [(None, EventKind::BadStreamId, 0x300_0000, false)]);
    // A domain of the host's.
    let stage1 = device.driver().alloc_paging(&device, PagingFlags::empty(), None).unwrap();
    attach(&device, Domain::Paging(stage1)).unwrap();
    assert_eq!(host.read(SID, VA), None);
    assert_eq!(faults(&host), [(name(), EventKind::Translation, SID, false)]);
    attach(&device, Domain::Paging(guest.parent.clone())).unwrap();
    assert_eq!(host.read(SID, VA), None);
    assert_eq!(faults(&host), [expected]);
    // A guest that does not know the device any more.
    let bypass = Ste::default().with_v(true).with_config(0b100);
    attach(&device, guest.nested(&device, bypass).unwrap()).unwrap();
    guest.viommu.remove_device(VSID.into());
    assert_eq!(host.go(&Transaction::read(SID, VA).with_substream(3)), None);
    assert_eq!(faults(&host), [(name(), EventKind::BadSubstreamId, SID, false)]);
    device.group().detach(Target::Rid);
    assert_eq!(told(&guest), []);
}

/// Nobody listens.
struct Deaf;

impl EventSink for Deaf {
    fn report(&self, _: u32, _: &[u8]) -> Result<(), Error> {
        Err(Error::Unsupported("nobody listens"))
    }
}

#[test]
fn what_a_guest_does_not_want_to_hear_the_host_can_read() {
    let mut host = Host::new(smmuv3::Options::everything());
    let (device, guest, _space) = nested(&host, 0);
    device.group().detach(Target::Rid);
    guest.viommu.remove_device(VSID.into());
    let viommu = make_viommu(&device, &guest.parent, Arc::new(Deaf)).unwrap();
    viommu.add_device(&device, 9).unwrap();
    let guest = Guest { viommu, ..guest };
    attach(&device, guest.nested(&device, Guest::ste(IPA)).unwrap()).unwrap();
    assert_eq!(host.read(SID, VA + 0x2000), None);
    drain(&host);
    assert_eq!(host.driver.host_faults().faults.len(), 1);
}

#[test]
fn nobody_crowds_out_the_faults_of_others() {
    let mut host = Host::new(smmuv3::Options::everything());
    let (_a, guest_a, _space_a) = nested(&host, 0);
    let (_b, guest_b, _space_b) = nested(&host, 1);
    for n in 0..3000 {
        // One half is the guest's, the other the host's.
        host.read(SID, VA + 0x2000 + (n << 12));
        host.read(SID, VA + 0x1000 + (n & 0xff8));
        if n % 100 == 0 {
            drain(&host);
        }
    }
    host.read(SID + 1, VA + 0x1000);
    host.read(SID + 1, VA + 0x2000);
    drain(&host);
    assert!(told(&guest_a).len() > 2900);
    assert_eq!(told(&guest_b).len(), 1);
    let found = host.driver.host_faults();
    let names: Vec<_> = found.faults.iter().filter_map(|fault| fault.device.clone()).collect();
    let count = |name: String| names.iter().filter(|other| **other == name).count();
    assert_eq!((count(format!("device {SID}")), count(format!("device {}", SID + 1))), (32, 1));
    assert!(found.lost > 0);
    assert_eq!(host.driver.host_faults(), arm_smmu_v3::HostFaults::default());
}

#[test]
fn a_full_queue_is_reported_and_then_goes_on() {
    let mut host = Host::new(smmuv3::Options { eventq_log2: 4, ..smmuv3::Options::everything() });
    let (_device, guest, _space) = nested(&host, 0);
    for round in 1..4 {
        for n in 0..40 {
            host.read(SID, VA + 0x2000 + (n << 12));
        }
        drain(&host);
        assert_eq!(told(&guest).len(), 16, "round {round}");
        let found = host.driver.host_faults().faults;
        assert_eq!(found, [HostFault { device: None, cause: Cause::EventsLost }]);
    }
}

/// The wires that were pulsed.
#[derive(Default)]
struct Wires(Mutex<Vec<Wire>>);

impl smmuv3::Interrupts for Wires {
    fn pulse(&self, wire: Wire) {
        self.0.lock().unwrap().push(wire);
    }
}

#[test]
fn an_interrupt_comes_whenever_there_is_something_new() {
    for options in
        [smmuv3::Options::everything(), smmuv3::Options { msi: false, ..smmuv3::Options::mmu600() }]
    {
        let wires = Arc::new(Wires::default());
        let mut host = Host::wired(options, wires.clone(), ());
        let (_device, guest, _space) = nested(&host, 0);
        for _ in 0..3 {
            wires.0.lock().unwrap().clear();
            assert_eq!(host.read(SID, VA + 0x2000), None);
            assert_eq!(host.go(&Transaction::write(SID, VA + 0x3000)), None);
            assert_eq!(*wires.0.lock().unwrap(), [Wire::Eventq]);
            drain(&host);
            assert_eq!(told(&guest).len(), 2);
        }
    }
}

#[test]
fn global_errors_are_acknowledged_and_told() {
    let host = Host::new(smmuv3::Options::everything());
    assert!(!host.driver.handle_events());
    // MSI_PRIQ_ABT_ERR and EVENTQ_ABT_ERR, as the bus has it.
    host.bus.fix(Register::Gerror, 0b100_0100);
    host.bus.writes.lock().unwrap().clear();
    assert!(host.driver.handle_events());
    let writes = host.bus.writes.lock().unwrap().clone();
    assert!(writes.contains(&(Register::Gerrorn.offset(), 0b100_0100)), "{writes:x?}");
    let found = host.driver.host_faults().faults;
    assert!(
        matches!(found[..], [HostFault { device: None, cause: Cause::Global(_) }]),
        "{found:?}"
    );
    assert!(found[0].to_string().contains("EVENTQ_ABT_ERR"), "{}", found[0]);
}

/// Events wait in the queue while the device changes hands.
#[test]
fn a_guest_hears_nothing_of_who_had_the_device_before_or_after() {
    let mut host = Host::new(smmuv3::Options::everything());
    let (device, guest, _space) = nested(&host, 0);
    let own = device.driver().alloc_paging(&device, PagingFlags::empty(), None).unwrap();
    let own = Domain::Paging(own);
    let again = || attach(&device, guest.nested(&device, Guest::ste(IPA)).unwrap()).unwrap();
    attach(&device, own.clone()).unwrap();
    for round in 0..3 {
        host.read(SID, 0x1000 + round);
        again();
        host.read(SID, VA + 0x2000 + round);
        again();
        host.read(SID, VA + 0x3000 + round);
        attach(&device, own.clone()).unwrap();
        host.read(SID, 0x2000 + round);
        if round == 1 {
            device.group().detach(Target::Rid);
        }
        drain(&host);
        let addresses: Vec<_> = told(&guest).iter().map(|event| event.input_address).collect();
        assert_eq!(addresses, [VA + 0x2000 + round, VA + 0x3000 + round]);
        let found = host.driver.host_faults().faults;
        let addresses: Vec<_> = found
            .iter()
            .map(|fault| match fault.cause {
                Cause::Event(event) => event.input_address,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(addresses, [0x1000 + round, 0x2000 + round]);
        attach(&device, own.clone()).unwrap();
    }
}
