//! Devices that keep translations: when they get them, when they must forget them, and what becomes of one that does not
//! answer.

mod common;
#[path = "common/guest.rs"]
mod guest;

use std::sync::{Arc, Mutex};

use arm_smmu_v3::{DeviceOptions, Error, Functions};
use guest::{ANY, Atcs, Guest, Host, IPA, RW, Space, attach};
use iommu::{Attachment, Capability, Device, Domain, PagingDomain, PagingFlags, Target};
use smmuv3::{AtcInvalidate, AtsError, AtsRequest, Transaction};

const SID: u32 = 5;

fn ats() -> DeviceOptions {
    DeviceOptions { ats: true, pasid_bits: 4, ..DeviceOptions::default() }
}

/// What the device is told of an address, if it may ask.
fn ask(host: &Host, address: u64, substream_id: Option<u32>) -> Result<Option<u64>, AtsError> {
    let request = AtsRequest {
        stream_id: SID,
        substream_id,
        address,
        no_write: true,
        privileged: false,
        execute: false,
    };
    let answer = host.bus.model.ats_request(&request)?;
    Ok(answer.read.then_some(answer.address))
}

/// Whether the device may use an address that it says is translated.
fn uses(host: &mut Host, address: u64) -> bool {
    host.go(&Transaction { translated: true, ..Transaction::read(SID, address) }).is_some()
}

fn paging(device: &Device, flags: PagingFlags, pa: u64) -> Arc<dyn PagingDomain> {
    let domain = device.driver().alloc_paging(device, flags, None).unwrap();
    domain.map(0x10_0000, pa, 0x8000, RW, ANY).unwrap();
    domain
}

#[test]
fn a_device_gets_translations_where_a_domain_translates() {
    let atcs = Arc::new(Atcs::default());
    let mut host = Host::with(smmuv3::Options::everything(), atcs.clone());
    let device = host.device(SID, ats());
    assert!(device.driver().capable(&device, Capability::PciAts));
    let asked = || std::mem::take(&mut *atcs.asked.lock().unwrap());
    let at = 0x10_0000;
    assert_eq!(
        (ask(&host, at, None), uses(&mut host, 1 << 30)),
        (Err(AtsError::UnsupportedRequest), false)
    );
    for flags in [PagingFlags::PASID, PagingFlags::NEST_PARENT] {
        let domain = paging(&device, flags, 1 << 30);
        attach(&device, Domain::Paging(domain.clone())).unwrap();
        assert_eq!(ask(&host, at, None), Ok(Some(1 << 30)));
        assert!(uses(&mut host, 1 << 30));
        asked();
        domain.unmap(at + 0x2000, 0x3000);
        domain.sync();
        let forgotten = asked();
        assert_eq!(forgotten.len(), 1, "{forgotten:?}");
        let AtcInvalidate { stream_id, substream_id, address, size_log2, .. } = forgotten[0];
        assert_eq!((stream_id, substream_id, address, size_log2), (SID, None, at, 3));
        assert_eq!(ask(&host, at + 0x2000, None), Ok(None));

        // Elsewhere it must not use what it has from here.
        attach(&device, Domain::Paging(paging(&device, flags, 2 << 30))).unwrap();
        assert!(asked().iter().any(|all| all.size_log2 == 52 && all.substream_id.is_none()));
        domain.unmap(at, 0x2000);
        domain.sync();
        assert_eq!(asked(), [], "no longer its domain");
        device.group().detach(Target::Rid);
        assert!(!uses(&mut host, 2 << 30));
    }
    let own = paging(&device, PagingFlags::PASID, 3 << 30);
    let attachment = Attachment { domain: Domain::Paging(own.clone()), faults: None };
    device.group().attach(Target::Pasid(2), attachment).unwrap();
    assert_eq!(ask(&host, at, Some(2)), Ok(Some(3 << 30)));
    asked();
    own.unmap(at, 0x8000);
    own.sync();
    assert_eq!(asked().iter().map(|one| one.substream_id).collect::<Vec<_>>(), [Some(2)]);
}

/// What functions are told, and whether the SMMU answers them at that moment.
struct Told {
    model: Arc<smmuv3::Smmu<Arc<common::Ram>>>,
    calls: Mutex<Vec<(u32, bool, bool)>>,
}

impl Functions for Told {
    fn enable_ats(&self, stream_id: u32, enable: bool) {
        let request = AtsRequest {
            stream_id,
            substream_id: None,
            address: 0x10_0000,
            no_write: true,
            privileged: false,
            execute: false,
        };
        let answers = self.model.ats_request(&request).is_ok();
        self.calls.lock().unwrap().push((stream_id, enable, answers));
    }
}

#[test]
fn a_function_may_ask_only_while_it_is_answered() {
    let atcs = Arc::new(Atcs::default());
    let host = Host::with(smmuv3::Options::everything(), atcs.clone());
    let told = Arc::new(Told { model: host.bus.model.clone(), calls: Mutex::default() });
    host.driver.smmu().connect(told.clone());
    let calls = || std::mem::take(&mut *told.calls.lock().unwrap());
    let (on, off) = ((SID, true, true), (SID, false, true));
    let device = host.device(SID, ats());
    assert_eq!(calls(), [], "identity");
    let domains =
        [PagingFlags::PASID, PagingFlags::NEST_PARENT].map(|flags| paging(&device, flags, 1 << 30));
    for domain in &domains {
        attach(&device, Domain::Paging(domain.clone())).unwrap();
        // Again: it may have taken a refusal to heart that was none.
        assert_eq!(calls(), [on]);
    }
    device.group().detach(Target::Rid);
    assert_eq!(calls(), [off]);
    attach(&device, Domain::Paging(domains[0].clone())).unwrap();
    *atcs.deaf.lock().unwrap() = Some(SID);
    domains[0].unmap(0x10_1000, 0x1000);
    domains[0].sync();
    assert_eq!(calls(), [on, off], "it does not answer");
    attach(&device, Domain::Paging(domains[1].clone())).unwrap();
    assert_eq!(calls(), [], "nor will it be asked");
    drop(device);
    *atcs.deaf.lock().unwrap() = None;
    let device = host.device(SID, ats());
    attach(&device, Domain::Paging(domains[0].clone())).unwrap();
    assert_eq!(calls(), [on]);
    drop(device);
    assert_eq!(calls(), [off]);
}

#[test]
fn ats_is_for_those_who_say_that_they_use_it() {
    let mut host = Host::new(smmuv3::Options::everything());
    let device = host.device(SID, DeviceOptions::default());
    assert!(!device.driver().capable(&device, Capability::PciAts));
    attach(&device, Domain::Paging(paging(&device, PagingFlags::empty(), 1 << 30))).unwrap();
    assert_eq!(ask(&host, 0x10_0000, None), Err(AtsError::UnsupportedRequest));
    assert!(!uses(&mut host, 1 << 30));

    let without = Host::new(smmuv3::Options::minimal());
    let group = iommu::Group::new();
    let options = DeviceOptions { ats: true, ..DeviceOptions::default() };
    let refused = without.driver.add_device("device", 1, options, &group).map(drop).unwrap_err();
    assert!(matches!(refused, Error::Unsupported(_)));
}

#[test]
fn a_guest_decides_on_ats_and_the_host_has_all_forgotten() {
    let atcs = Arc::new(Atcs::default());
    let mut host = Host::with(smmuv3::Options::everything(), atcs.clone());
    let device = host.device(SID, ats());
    let guest = Guest::new(&host, &device, 0);
    let cds = guest.ram.alloc(6);
    let mut space = Space::new(&guest.ram, 1);
    let va = 0x7000_0000;
    space.map(va..va + 0x1000, IPA + 0x3_0000);
    guest.ram.write(cds, &space.cd().0);
    guest.viommu.add_device(&device, 1).unwrap();
    attach(&device, guest.nested(&device, Guest::ste(cds)).unwrap()).unwrap();
    assert_eq!(ask(&host, va, None), Err(AtsError::UnsupportedRequest));
    let with = guest.nested(&device, Guest::ste(cds).with_eats(1)).unwrap();
    attach(&device, with).unwrap();
    assert_eq!(ask(&host, va, None), Ok(Some(guest.ram.pa + 0x3_0000)));
    atcs.asked.lock().unwrap().clear();
    guest.parent.unmap(IPA, 0x4_0000);
    guest.parent.sync();
    let asked = atcs.asked.lock().unwrap().clone();
    assert!(
        matches!(asked[..], [AtcInvalidate { stream_id: SID, size_log2: 52, .. }]),
        "{asked:?}"
    );
    assert_eq!(ask(&host, va, None).ok().flatten(), None);
    attach(&device, guest.nested(&device, Guest::ste(cds)).unwrap()).unwrap();
    assert!(!uses(&mut host, guest.ram.pa));
}

#[test]
fn a_device_that_does_not_answer_is_on_its_own() {
    let atcs = Arc::new(Atcs::default());
    let mut host = Host::with(smmuv3::Options::everything(), atcs.clone());
    let device = host.device(SID, ats());
    let other = host.device(SID + 1, ats());
    let domain = paging(&device, PagingFlags::empty(), 1 << 30);
    for device in [&device, &other] {
        attach(device, Domain::Paging(domain.clone())).unwrap();
    }
    assert_eq!(ask(&host, 0x10_0000, None), Ok(Some(1 << 30)));
    *atcs.deaf.lock().unwrap() = Some(SID);
    domain.unmap(0x10_0000, 0x1000);
    domain.sync();
    // It may have kept the page: it reaches nothing by what it says is translated. All else goes on.
    assert!(!uses(&mut host, 1 << 30));
    assert!(ask(&host, 0x10_1000, None).is_err());
    assert_eq!(host.read(SID, 0x10_1000), Some((1 << 30) + 0x1000));
    assert_eq!(host.read(SID + 1, 0x10_1000), Some((1 << 30) + 0x1000));
    let translated = Transaction { translated: true, ..Transaction::read(SID + 1, 1 << 30) };
    assert!(host.go(&translated).is_some());
    // Nobody waits for it again, whatever it is attached to, until it is replaced by another device.
    atcs.asked.lock().unwrap().clear();
    attach(&device, Domain::Paging(paging(&device, PagingFlags::NEST_PARENT, 2 << 30))).unwrap();
    assert!(ask(&host, 0x10_0000, None).is_err());
    assert_eq!(*atcs.asked.lock().unwrap(), []);
    drop(device);
    // The next one must not have anything of what this one had.
    *atcs.deaf.lock().unwrap() = None;
    let device = host.device(SID, ats());
    assert!(matches!(atcs.asked.lock().unwrap()[..], [AtcInvalidate { size_log2: 52, .. }]));
    attach(&device, Domain::Paging(domain)).unwrap();
    assert_eq!(ask(&host, 0x10_1000, None), Ok(Some((1 << 30) + 0x1000)));
}

/// The Command queue fails at any point of a change: invalidations reach the device all the same, once that works again.
#[test]
fn a_failed_change_loses_no_invalidation() {
    for target in [Target::Rid, Target::Pasid(2)] {
        for fails_after in 0..24 {
            let atcs = Arc::new(Atcs::default());
            let host = Host::with(smmuv3::Options::everything(), atcs.clone());
            let device = host.device(SID, ats());
            let domains = [1, 2, 3].map(|n| paging(&device, PagingFlags::PASID, n << 30));
            let to = |n: usize| {
                let domain = Domain::Paging(domains[n].clone());
                let attachment = Attachment { domain, faults: None };
                let group = device.group();
                if group.attached(target).is_some() {
                    group.replace(target, attachment).map(drop)
                } else {
                    group.attach(target, attachment)
                }
            };
            to(0).unwrap();
            host.ram.fail_reads_after(fails_after);
            let failed = to(1).is_err();
            host.ram.fail_reads_after(u64::MAX);
            if failed {
                // Whatever it is on now, it is put right before the next change: of something else, or of this.
                let other = paging(&device, PagingFlags::PASID, 4 << 30);
                let attachment = Attachment { domain: Domain::Paging(other), faults: None };
                device.group().attach(Target::Pasid(5), attachment).unwrap();
                if fails_after % 2 == 0 {
                    to(2).unwrap();
                }
            }
            let ssid = if let Target::Pasid(pasid) = target { Some(pasid) } else { None };
            let page = ask(&host, 0x10_0000, ssid).unwrap().unwrap();
            let last = (page >> 30) as usize - 1;
            for (n, domain) in domains.iter().enumerate() {
                atcs.asked.lock().unwrap().clear();
                domain.unmap(0x10_0000, 0x1000);
                domain.sync();
                let asked = atcs.asked.lock().unwrap().len();
                assert_eq!(asked, usize::from(n == last), "{target:?} {fails_after} {n}");
            }
        }
    }
}
