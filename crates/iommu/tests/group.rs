//! Groups move between domains together, or not at all.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use iommu::{
    Attachment, Capability, Device, Domain, Driver, Error, FaultGroup, FaultHandler, FaultPerm,
    Geometry, Group, HwInfo, MapError, OwnerId, PageRequest, PageResponse, PagingDomain,
    PagingFlags, Pasids, Prot, ReservedKind, ReservedRegion, Target, UserData,
};

const ME: OwnerId = OwnerId(1);

/// Records where each device is, and refuses where it is told to.
#[derive(Default)]
struct Recorder {
    /// The domain of each device's Requester ID and of PASID 5.
    at: Mutex<Vec<[&'static str; 2]>>,
    /// Attaching this device to a paging domain fails.
    refuse: AtomicUsize,
    direct: bool,
    answers: Mutex<Vec<(u32, PageResponse)>>,
}

struct Index(usize);

fn kind(domain: &Domain) -> &'static str {
    match domain {
        Domain::Blocked => "blocked",
        Domain::Identity => "identity",
        Domain::Paging(_) => "paging",
        Domain::Nested(_) => "nested",
    }
}

impl Recorder {
    fn set(&self, device: &Device, target: Target, domain: &Domain) {
        let column = usize::from(target != Target::Rid);
        self.at.lock().unwrap()[device.data::<Index>().unwrap().0][column] = kind(domain);
    }

    fn rids(&self) -> Vec<&'static str> {
        self.at.lock().unwrap().iter().map(|at| at[0]).collect()
    }
}

impl Driver for Recorder {
    fn capable(&self, _: &Device, _: Capability) -> bool {
        true
    }

    fn pasids(&self, device: &Device) -> Pasids {
        // The last device has none.
        let max = if device.data::<Index>().unwrap().0 == 4 { 0 } else { 16 };
        Pasids { max, ..Pasids::default() }
    }

    fn reserved_regions(&self, _: &Device) -> Vec<ReservedRegion> {
        let region = ReservedRegion { range: 0..=0xfff, kind: ReservedKind::Direct };
        if self.direct { vec![region] } else { Vec::new() }
    }

    fn hw_info(&self, _: &Device, _: u32) -> Result<HwInfo, Error> {
        Err(Error::Unsupported("hardware information"))
    }

    fn alloc_paging(
        &self,
        _: &Device,
        _: PagingFlags,
        _: Option<&UserData>,
    ) -> Result<Arc<dyn PagingDomain>, Error> {
        Ok(Arc::new(Empty))
    }

    fn attach(
        &self,
        device: &Device,
        target: Target,
        new: &Domain,
        _: &Domain,
    ) -> Result<(), Error> {
        let index = device.data::<Index>().unwrap().0;
        if matches!(new, Domain::Paging(_)) && self.refuse.load(Ordering::Relaxed) == index {
            return Err(Error::NoMemory);
        }
        self.set(device, target, new);
        Ok(())
    }

    fn block(&self, device: &Device, target: Target, _: &Domain) {
        self.set(device, target, &Domain::Blocked);
    }

    fn page_response(&self, _: &Device, last: &PageRequest, response: PageResponse) {
        self.answers.lock().unwrap().push((last.group, response));
    }
}

struct Empty;

impl PagingDomain for Empty {
    fn geometry(&self) -> Geometry {
        Geometry { aperture: 0..=u64::MAX, page_sizes: 4096 }
    }

    fn map(&self, _: u64, _: u64, _: u64, _: Prot, _: u64) -> Result<(), MapError> {
        Err(MapError::NoMemory)
    }

    fn unmap(&self, _: u64, _: u64) {}

    fn iova_to_phys(&self, _: u64) -> Option<u64> {
        None
    }
}

fn paging() -> Attachment {
    Attachment { domain: Domain::Paging(Arc::new(Empty)), faults: None }
}

/// Five devices in one group, on identity as the kernel leaves them.
fn five(direct: bool) -> (Arc<Recorder>, Arc<Group>, Vec<Arc<Device>>) {
    let at = Mutex::new(vec![["identity", "blocked"]; 5]);
    let refuse = AtomicUsize::new(usize::MAX);
    let driver = Arc::new(Recorder { at, refuse, direct, ..Recorder::default() });
    let group = Group::new();
    let device =
        |n: usize| Device::new(format!("dev{n}"), driver.clone(), Box::new(Index(n)), &group);
    let devices = (0..5).map(device).collect();
    (driver, group, devices)
}

#[test]
fn claiming_blocks_and_releasing_returns_to_identity() {
    let (driver, group, _devices) = five(false);
    group.claim(ME).unwrap();
    group.claim(ME).unwrap();
    assert_eq!(driver.rids(), ["blocked"; 5]);
    assert_eq!(group.claim(OwnerId(2)), Err(Error::NotOwner));
    group.release(ME);
    assert_eq!(driver.rids(), ["blocked"; 5]);
    group.release(ME);
    assert_eq!(driver.rids(), ["identity"; 5]);
    group.claim(OwnerId(2)).unwrap();
}

#[test]
fn a_device_that_firmware_needs_mapped_cannot_be_claimed() {
    let (driver, group, _devices) = five(true);
    assert!(matches!(group.claim(ME), Err(Error::Invalid(_))));
    assert_eq!(driver.rids(), ["identity"; 5]);
}

#[test]
fn when_the_third_of_five_fails_to_attach_all_go_back() {
    let (driver, group, _devices) = five(false);
    group.claim(ME).unwrap();
    driver.refuse.store(2, Ordering::Relaxed);
    assert_eq!(group.attach(Target::Rid, paging()), Err(Error::NoMemory));
    assert_eq!(driver.rids(), ["blocked"; 5]);
    assert!(group.attached(Target::Rid).is_none());
    driver.refuse.store(usize::MAX, Ordering::Relaxed);
    group.attach(Target::Rid, paging()).unwrap();
    assert_eq!(driver.rids(), ["paging"; 5]);
    assert!(matches!(group.attach(Target::Rid, paging()), Err(Error::Busy(_))));
}

#[test]
fn when_a_replace_fails_all_stay_where_they_were() {
    let (driver, group, _devices) = five(false);
    group.claim(ME).unwrap();
    let identity = Attachment { domain: Domain::Identity, faults: None };
    group.attach(Target::Rid, identity).unwrap();
    driver.refuse.store(4, Ordering::Relaxed);
    assert_eq!(group.replace(Target::Rid, paging()).err(), Some(Error::NoMemory));
    assert_eq!(driver.rids(), ["identity"; 5]);
    assert!(matches!(group.attached(Target::Rid).unwrap().domain, Domain::Identity));
    driver.refuse.store(usize::MAX, Ordering::Relaxed);
    let old = group.replace(Target::Rid, paging()).unwrap();
    assert!(matches!(old.domain, Domain::Identity));
    group.detach(Target::Rid);
    assert_eq!(driver.rids(), ["blocked"; 5]);
    assert!(matches!(group.replace(Target::Rid, paging()), Err(Error::Invalid(_))));
}

#[test]
fn pasids_are_apart_from_the_requester_id_and_in_range() {
    let (driver, group, _devices) = five(false);
    group.claim(ME).unwrap();
    group.attach(Target::Pasid(5), paging()).unwrap();
    assert_eq!(driver.rids(), ["blocked"; 5]);
    let pasids: Vec<_> = driver.at.lock().unwrap().iter().map(|at| at[1]).collect();
    // The device without PASIDs is left alone, and no obstacle.
    assert_eq!(pasids, ["paging", "paging", "paging", "paging", "blocked"]);
    for outside in [0, 16] {
        let attached = group.attach(Target::Pasid(outside), paging());
        assert!(matches!(attached, Err(Error::Invalid(_))));
    }
}

#[derive(Default)]
struct Inbox(Mutex<Vec<FaultGroup>>);

impl FaultHandler for Inbox {
    fn report(&self, group: FaultGroup) {
        self.0.lock().unwrap().push(group);
    }
}

fn request(target: Target, group: u32, addr: u64, last: bool) -> PageRequest {
    PageRequest { target, group, last, perm: FaultPerm::READ, addr }
}

#[test]
fn a_fault_group_is_delivered_whole_and_answered_once() {
    let (driver, group, devices) = five(false);
    group.claim(ME).unwrap();
    let inbox = Arc::new(Inbox::default());
    let domain = Domain::Paging(Arc::new(Empty));
    group.attach(Target::Rid, Attachment { domain, faults: Some(inbox.clone()) }).unwrap();
    let report = |group, addr, last| {
        devices[0].report_page_request(request(Target::Rid, group, addr, last), None).unwrap();
    };
    report(7, 0x1000, false);
    report(8, 0x9000, true);
    report(7, 0x2000, true);
    let mut groups = std::mem::take(&mut *inbox.0.lock().unwrap());
    let addresses: Vec<u64> = groups[1].requests().iter().map(|r| r.addr).collect();
    assert_eq!(addresses, [0x1000, 0x2000]);
    groups.remove(0).respond(PageResponse::Success);
    // Nobody answers the other: the device hears that its pages will not come.
    drop(groups);
    let answers = [(8, PageResponse::Success), (7, PageResponse::Invalid)];
    assert_eq!(*driver.answers.lock().unwrap(), answers);
}

#[test]
fn a_request_that_nobody_handles_is_answered_invalid() {
    let (driver, group, devices) = five(false);
    group.claim(ME).unwrap();
    let pasid = request(Target::Pasid(3), 1, 0, true);
    assert!(devices[0].report_page_request(pasid, None).is_err());
    assert_eq!(*driver.answers.lock().unwrap(), [(1, PageResponse::Invalid)]);
    // A nested domain that owns the PASID table takes it instead.
    let inbox = Arc::new(Inbox::default());
    let domain = Domain::Paging(Arc::new(Empty));
    group.attach(Target::Rid, Attachment { domain, faults: Some(inbox.clone()) }).unwrap();
    devices[0].report_page_request(pasid, Some(Target::Rid)).unwrap();
    assert_eq!(inbox.0.lock().unwrap().len(), 1);
}

#[test]
fn requests_whose_last_one_never_comes_do_not_pile_up() {
    let (_driver, group, devices) = five(false);
    group.claim(ME).unwrap();
    let attach = || {
        let inbox = Arc::new(Inbox::default());
        let domain = Domain::Paging(Arc::new(Empty));
        group.attach(Target::Rid, Attachment { domain, faults: Some(inbox.clone()) }).unwrap();
        inbox
    };
    let inbox = attach();
    let report = |target, last| {
        devices[0].report_page_request(request(target, 1, 0, last), Some(Target::Rid))
    };
    let len = |inbox: &Inbox| {
        let groups = std::mem::take(&mut *inbox.0.lock().unwrap());
        groups.iter().map(|group| group.requests().len()).collect::<Vec<_>>()
    };
    let taken = (0..10_000).filter(|_| report(Target::Rid, false).is_ok()).count();
    assert_eq!(taken, 4096);
    report(Target::Rid, true).unwrap();
    assert_eq!(len(&inbox), [4097]);
    // The hardware has lost some.
    report(Target::Rid, false).unwrap();
    devices[0].drop_partial_page_requests();
    report(Target::Rid, true).unwrap();
    assert_eq!(len(&inbox), [1]);
    // Whoever comes next is not told of a part of what was another's, whatever its PASID.
    for target in [Target::Rid, Target::Pasid(3)] {
        report(target, false).unwrap();
        group.detach(Target::Rid);
        let next = attach();
        report(target, true).unwrap();
        assert_eq!(len(&next), [1]);
    }
}
