//! Page requests and stalled transactions: who handles them, and that each is answered.

mod common;
#[path = "common/guest.rs"]
mod guest;

use std::sync::{Arc, Mutex};

use arm_smmu_v3::{Cause, DeviceOptions};
use guest::{ANY, Guest, Host, IPA, RW, Space, attach};
use iommu::{
    Attachment, Device, Domain, FaultGroup, FaultHandler, FaultPerm, PageResponse, PagingFlags,
    Target,
};
use smmuv3::wire::{Command, PageRequest};
use smmuv3::{PageResponseCode, Refused, Resume, Transaction};

const SID: u32 = 5;
const VA: u64 = 0x7000_0000;

/// What the device is told.
#[derive(Default)]
struct Endpoint {
    responses: Mutex<Vec<smmuv3::PageResponse>>,
    resumed: Mutex<Vec<(u32, u16, Resume)>>,
}

impl smmuv3::Devices for Endpoint {
    fn page_response(&self, response: smmuv3::PageResponse) {
        self.responses.lock().unwrap().push(response);
    }
    fn resume(&self, stream_id: u32, stag: u16, action: Resume) {
        self.resumed.lock().unwrap().push((stream_id, stag, action));
    }
}

impl Endpoint {
    fn responses(&self) -> Vec<(Option<u32>, u16, PageResponseCode)> {
        let responses = std::mem::take(&mut *self.responses.lock().unwrap());
        responses.iter().map(|one| (one.substream_id, one.prg_index, one.code)).collect()
    }
    fn resumed(&self) -> Vec<(u32, u16, Resume)> {
        std::mem::take(&mut *self.resumed.lock().unwrap())
    }
}

/// Keeps the groups until somebody answers them.
#[derive(Default)]
struct Handler(Mutex<Vec<FaultGroup>>);

impl FaultHandler for Handler {
    fn report(&self, group: FaultGroup) {
        self.0.lock().unwrap().push(group);
    }
}

impl Handler {
    fn take(&self) -> Vec<FaultGroup> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

fn with_pri() -> DeviceOptions {
    DeviceOptions { ats: true, pri: true, pasid_bits: 4, ..DeviceOptions::default() }
}

fn request(prg_index: u16, address: u64, last: bool) -> PageRequest {
    PageRequest { sid: SID, read: true, last, prg_index, address, ..PageRequest::default() }
}

fn drain(host: &Host) {
    while host.driver.handle_events() {}
}

/// Attaches a domain with a handler.
fn handled(device: &Device, target: Target, domain: Domain) -> Arc<Handler> {
    let handler = Arc::new(Handler::default());
    let attachment = Attachment { domain, faults: Some(handler.clone()) };
    device.group().attach(target, attachment).unwrap();
    handler
}

fn paging(device: &Device, flags: PagingFlags) -> Domain {
    let domain = device.driver().alloc_paging(device, flags, None).unwrap();
    domain.map(VA, 0x10_0000, 0x1000, RW, ANY).unwrap();
    Domain::Paging(domain)
}

#[test]
fn a_group_of_requests_is_handled_and_answered() {
    let endpoint = Arc::new(Endpoint::default());
    let host = Host::with(smmuv3::Options::everything(), endpoint.clone());
    let device = host.device(SID, with_pri());
    let ask = |request| host.bus.model.page_request(request);
    // Nobody handles them; and nobody knows that device.
    ask(request(3, VA, true));
    ask(PageRequest { sid: 77, ..request(4, VA, true) });
    ask(PageRequest { sid: 77, ..request(4, VA, false) });
    drain(&host);
    let expected =
        [(None, 3, PageResponseCode::InvalidRequest), (None, 4, PageResponseCode::Failure)];
    assert_eq!(endpoint.responses(), expected);

    let handler = handled(&device, Target::Rid, paging(&device, PagingFlags::PASID));
    let of_pasid = handled(&device, Target::Pasid(2), paging(&device, PagingFlags::PASID));
    ask(request(7, VA, false));
    ask(request(8, VA + 0x5000, true));
    ask(PageRequest { write: true, ..request(7, VA + 0x1000, true) });
    let pasid = PageRequest { ssid: Some(2), privileged: true, ..request(9, VA, true) };
    ask(pasid);
    // A marker that ends a PASID wants no answer.
    ask(PageRequest { read: false, ..pasid });
    drain(&host);
    assert_eq!(endpoint.responses(), []);
    let groups = handler.take();
    let seen: Vec<Vec<_>> = groups
        .iter()
        .map(|group| group.requests().iter().map(|one| (one.group, one.addr, one.perm)).collect())
        .collect();
    let both = FaultPerm::READ | FaultPerm::WRITE;
    assert_eq!(
        seen,
        [
            vec![(8, VA + 0x5000, FaultPerm::READ)],
            vec![(7, VA, FaultPerm::READ), (7, VA + 0x1000, both)]
        ]
    );
    for group in groups {
        group.respond(PageResponse::Success);
    }
    let mut groups = of_pasid.take();
    assert_eq!(groups[0].requests()[0].target, Target::Pasid(2));
    assert_eq!(groups[0].requests()[0].perm, FaultPerm::READ | FaultPerm::PRIV);
    groups.remove(0).respond(PageResponse::Invalid);
    let success = PageResponseCode::Success;
    let expected =
        [(None, 8, success), (None, 7, success), (Some(2), 9, PageResponseCode::InvalidRequest)];
    assert_eq!(endpoint.responses(), expected);
    // The group is free for another.
    ask(request(7, VA, true));
    drain(&host);
    drop(handler.take());
    assert_eq!(endpoint.responses(), [(None, 7, PageResponseCode::InvalidRequest)]);
}

#[test]
fn a_guests_pasids_are_handled_where_the_guest_is() {
    let endpoint = Arc::new(Endpoint::default());
    let host = Host::with(smmuv3::Options::everything(), endpoint.clone());
    let device = host.device(SID, with_pri());
    let guest = Guest::new(&host, &device, 0);
    guest.viommu.add_device(&device, 1).unwrap();
    let cds = guest.ram.alloc(12);
    let ste = Guest::ste(cds).with_s1_cd_max(4).with_s1_dss(2).with_eats(1);
    let handler = handled(&device, Target::Rid, guest.nested(&device, ste).unwrap());
    host.bus.model.page_request(PageRequest { ssid: Some(6), ..request(1, VA, true) });
    drain(&host);
    let groups = handler.take();
    assert_eq!(groups[0].requests()[0].target, Target::Pasid(6));
    drop(groups);
    assert_eq!(endpoint.responses(), [(Some(6), 1, PageResponseCode::InvalidRequest)]);
}

#[test]
fn a_device_that_asks_without_end_takes_no_more_than_its_share() {
    let endpoint = Arc::new(Endpoint::default());
    let host = Host::with(smmuv3::Options::everything(), endpoint.clone());
    let device = host.device(SID, with_pri());
    let handler = handled(&device, Target::Rid, paging(&device, PagingFlags::empty()));
    for n in 0..2000u16 {
        host.bus.model.page_request(request(n % 512, VA, true));
        drain(&host);
    }
    assert_eq!(handler.0.lock().unwrap().len(), 512);
    assert_eq!(endpoint.responses().len(), 2000 - 512);
    drop(handler.take());
    assert_eq!(endpoint.responses().len(), 512);
}

#[test]
fn a_full_queue_leaves_no_part_of_a_group_behind() {
    let endpoint = Arc::new(Endpoint::default());
    let host = Host::with(
        smmuv3::Options { priq_log2: 3, ..smmuv3::Options::everything() },
        endpoint.clone(),
    );
    let device = host.device(SID, with_pri());
    let handler = handled(&device, Target::Rid, paging(&device, PagingFlags::empty()));
    for n in 0..8 {
        host.bus.model.page_request(request(1, VA + (n << 12), false));
    }
    host.bus.model.page_request(request(1, VA, true));
    // The SMMU says success itself: ask again.
    assert_eq!(endpoint.responses(), [(None, 1, PageResponseCode::Success)]);
    drain(&host);
    let lost = host.driver.host_faults().faults;
    assert!(matches!(lost[..], [arm_smmu_v3::HostFault { cause: Cause::PageRequestsLost, .. }]));
    host.bus.model.page_request(request(1, VA, true));
    drain(&host);
    let groups = handler.take();
    assert_eq!(groups.iter().map(|group| group.requests().len()).collect::<Vec<_>>(), [1]);
}

#[test]
fn a_stalled_transaction_goes_on_when_its_page_is_there() {
    let endpoint = Arc::new(Endpoint::default());
    let mut host = Host::with(smmuv3::Options::everything(), endpoint.clone());
    let device = host.device(SID, DeviceOptions { stalls: true, ..DeviceOptions::default() });
    let domain = device.driver().alloc_paging(&device, PagingFlags::empty(), None).unwrap();
    let handler = handled(&device, Target::Rid, Domain::Paging(domain.clone()));
    let at = Transaction::write(SID, VA + 0x10);
    let stall = |host: &mut Host| match host.port.begin().translate(&at) {
        Err(Refused::Stalled { stag }) => stag,
        other => panic!("{other:?}"),
    };
    let stag = stall(&mut host);
    drain(&host);
    let mut groups = handler.take();
    let seen = groups[0].requests()[0];
    assert_eq!((seen.addr, seen.perm, seen.target), (VA + 0x10, FaultPerm::WRITE, Target::Rid));
    domain.map(VA, 0x10_0000, 0x1000, RW, ANY).unwrap();
    groups.remove(0).respond(PageResponse::Success);
    assert_eq!(endpoint.resumed(), [(SID, stag, Resume::Retry)]);
    assert_eq!(host.go(&at), Some(0x10_0010));
    domain.unmap(VA, 0x1000);
    domain.sync();
    let stag = stall(&mut host);
    drain(&host);
    drop(handler.take());
    assert_eq!(endpoint.resumed(), [(SID, stag, Resume::Abort)]);
    // Nobody to handle it: an abort, and the host knows why.
    attach(&device, Domain::Paging(domain)).unwrap();
    let stag = stall(&mut host);
    drain(&host);
    assert_eq!(endpoint.resumed(), [(SID, stag, Resume::Abort)]);
    assert_eq!(host.driver.host_faults().faults.len(), 1);
    // The device goes while it waits.
    let stag = stall(&mut host);
    drop(device);
    assert_eq!(endpoint.resumed(), [(SID, stag, Resume::Abort)]);
}

#[test]
fn a_guest_stalls_only_devices_that_may() {
    for stalls in [false, true] {
        let endpoint = Arc::new(Endpoint::default());
        let mut host = Host::with(smmuv3::Options::everything(), endpoint.clone());
        let device = host.device(SID, DeviceOptions { stalls, ..DeviceOptions::default() });
        let guest = Guest::new(&host, &device, 0);
        guest.viommu.add_device(&device, 9).unwrap();
        let cds = guest.ram.alloc(6);
        let mut space = Space::new(&guest.ram, 1);
        space.map(VA..VA + 0x1000, IPA);
        guest.ram.write(cds, &space.cd().with_s(true).0);
        let nested = guest.nested(&device, Guest::ste(cds)).unwrap();
        let handler = handled(&device, Target::Rid, nested);
        let result = host.port.begin().translate(&Transaction::read(SID, VA + 0x1000));
        drain(&host);
        if stalls {
            assert!(matches!(result, Err(Refused::Stalled { .. })));
            handler.take().remove(0).respond(PageResponse::Success);
            assert!(matches!(endpoint.resumed()[..], [(SID, _, Resume::Retry)]));
            assert_eq!(host.read(SID, VA), Some(guest.ram.pa));
        } else {
            assert_eq!(result, Err(Refused::Abort));
            assert_eq!(guest.events.0.lock().unwrap().len(), 1, "C_BAD_CD");
            guest.ram.write(cds, &space.cd().0);
            guest.all(&[Command::CfgiCdAll { sid: 9, ssec: false }]);
            assert_eq!(host.read(SID, VA), Some(guest.ram.pa));
        }
    }
}

#[test]
fn devices_cannot_use_what_the_smmu_does_not_have() {
    let host = Host::new(smmuv3::Options::minimal());
    let everything = Host::new(smmuv3::Options::everything());
    let plain = DeviceOptions::default();
    for (host, options) in [
        (&host, with_pri()),
        (&host, DeviceOptions { stalls: true, ..plain.clone() }),
        (&everything, DeviceOptions { pri: true, ..plain.clone() }),
        (&everything, DeviceOptions { stalls: true, ..with_pri() }),
    ] {
        let group = iommu::Group::new();
        assert!(host.driver.add_device("device", 1, options, &group).is_err());
    }
}
