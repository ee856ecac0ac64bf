//! Nested domains: what a device reaches through a guest's tables and the host's, and what a guest may not say.

mod common;
#[path = "common/guest.rs"]
mod guest;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arm_smmu_v3::DeviceOptions;
use guest::{ANY, Events, Guest, Host, IPA, RW, SIZE, Space, attach, data, make_viommu};
use iommu::{Attachment, Domain, Error, PagingFlags, Target};
use smmuv3::Transaction;
use smmuv3::wire::{Command, Ste};

const SID: u32 = 5;
const VA: u64 = 0x7000_0000;

fn bypass() -> Ste {
    Ste::default().with_v(true).with_config(0b100)
}

fn kinds() -> Vec<smmuv3::Options> {
    let everything = smmuv3::Options::everything();
    let linear = smmuv3::Options { sid_bits: 6, ..everything.clone() };
    vec![everything, smmuv3::Options::mmu600(), smmuv3::Options::linux_host(), linear]
}

#[test]
fn a_device_goes_through_the_guests_stage_and_the_hosts() {
    for options in kinds() {
        let mut host = Host::new(options);
        let device = host.device(SID, DeviceOptions::default());
        let guest = Guest::new(&host, &device, 0);
        let cds = guest.ram.alloc(6);
        let mut space = Space::new(&guest.ram, 1);
        space.map(VA..VA + 0x2000, IPA + 0x3_0000);
        // Not the guest's memory, whatever it says.
        space.map(VA + 0x2000..VA + 0x3000, 0x8_0000);
        guest.ram.write(cds, &space.cd().0);

        guest.viommu.add_device(&device, 0x777).unwrap();
        attach(&device, guest.nested(&device, Guest::ste(cds)).unwrap()).unwrap();
        let at = guest.ram.pa + 0x3_0000;
        assert_eq!(host.read(SID, VA + 0x1234), Some(at + 0x1234));
        assert_eq!(host.read(SID, VA + 0x2000), None, "stage 2 does not have it");
        assert_eq!(host.read(SID, VA + 0x3000), None, "stage 1 does not have it");
        assert_eq!(host.read(SID, IPA), None);

        attach(&device, guest.nested(&device, bypass()).unwrap()).unwrap();
        assert_eq!(host.read(SID, IPA + 0x10), Some(guest.ram.pa + 0x10));
        assert_eq!(host.read(SID, VA), None);
        for nothing in [Ste::default(), Guest::ste(cds).with_v(false), bypass().with_config(0)] {
            attach(&device, guest.nested(&device, nothing).unwrap()).unwrap();
            assert_eq!(host.read(SID, IPA), None);
        }
        // Back to the guest's tables, where much is cached.
        attach(&device, guest.nested(&device, Guest::ste(cds)).unwrap()).unwrap();
        assert_eq!(host.read(SID, VA), Some(at));
        device.group().detach(Target::Rid);
        assert_eq!(host.read(SID, VA), None);
        let ram = host.ram.clone();
        drop((device, guest, space, host));
        assert_eq!(ram.allocations(), 0);
    }
}

#[test]
fn what_cannot_be_is_refused_with_the_error_that_linux_has() {
    let host = Host::new(smmuv3::Options::everything());
    let device = host.device(SID, DeviceOptions { pasid_bits: 4, ..DeviceOptions::default() });
    let guest = Guest::new(&host, &device, 0);
    let translating = guest.nested(&device, Guest::ste(IPA)).unwrap();

    // A guest's stage 1 needs a vDEVICE; bypass and abort do not.
    assert!(matches!(attach(&device, translating.clone()), Err(Error::NotFound(_))));
    attach(&device, guest.nested(&device, bypass()).unwrap()).unwrap();
    device.group().detach(Target::Rid);

    // PASIDs are the guest's or the host's.
    guest.viommu.add_device(&device, 1).unwrap();
    let own = device.driver().alloc_paging(&device, PagingFlags::PASID, None).unwrap();
    let own = Attachment { domain: Domain::Paging(own), faults: None };
    device.group().attach(Target::Pasid(3), own.clone()).unwrap();
    for ste in [Guest::ste(IPA), bypass()] {
        let nested = guest.nested(&device, ste).unwrap();
        assert!(matches!(attach(&device, nested), Err(Error::Busy(_))));
    }
    device.group().detach(Target::Pasid(3));
    attach(&device, translating.clone()).unwrap();
    let beside = device.group().attach(Target::Pasid(3), own).unwrap_err();
    assert!(matches!(beside, Error::Incompatible(_)), "{beside}");
    let nested = Attachment { domain: translating.clone(), faults: None };
    let pasid = device.group().attach(Target::Pasid(3), nested).unwrap_err();
    assert!(matches!(pasid, Error::Unsupported(_)), "{pasid}");

    // A vDEVICE has one id, of 32 bits, and is of this SMMU.
    let add = |device, id| guest.viommu.add_device(device, id);
    assert!(matches!(add(&device, 2), Err(Error::Exists(_))));
    let second = host.device(SID + 1, DeviceOptions::default());
    assert!(matches!(add(&second, 1), Err(Error::Exists(_))));
    assert!(matches!(add(&second, 1 << 32), Err(Error::Invalid(_))));
    add(&second, u64::from(u32::MAX)).unwrap();
    guest.viommu.remove_device(1);
    add(&device, 2).unwrap();
    let other = Host::new(smmuv3::Options::everything());
    let foreign = other.device(SID, DeviceOptions::default());
    assert!(matches!(add(&foreign, 9), Err(Error::Invalid(_))));
    assert!(matches!(attach(&foreign, translating), Err(Error::Incompatible(_))));
    let parent =
        make_viommu(&foreign, &guest.parent, Arc::new(Events::default())).map(drop).unwrap_err();
    assert!(matches!(parent, Error::Incompatible(_)), "{parent}");

    // Data of another type or length, and fields that are not the guest's.
    let alloc = |kind, bytes: &[u8]| {
        guest.viommu.alloc_nested(&device, &data(kind, bytes)).map(drop).unwrap_err()
    };
    assert!(matches!(alloc(1, &[0; 16]), Error::Unsupported(_)));
    assert!(matches!(alloc(2, &[0; 15]), Error::Invalid(_)));
    assert!(matches!(alloc(2, &[0; 24]), Error::Invalid(_)));
    let ste = Guest::ste(IPA);
    for wrong in [
        ste.with_config(0b111),
        ste.with_config(0b001),
        ste.with_mev(true),
        ste.with_strw(2),
        ste.with_sh_cfg(1),
        ste.with_priv_cfg(3),
        ste.with_eats(2),
        ste.with_s1_cd_max(31),
        Ste(ste.0.map(|word| word | 1 << 56)),
    ] {
        let refused = guest.nested(&device, wrong).map(drop).unwrap_err();
        assert!(matches!(refused, Error::Io(_)), "{refused}");
    }
    guest.nested(&device, ste.with_mev(true).with_v(false)).unwrap();
}

#[test]
fn an_smmu_of_one_stage_has_no_viommus() {
    let host = Host::new(smmuv3::Options::minimal());
    let device = host.device(SID, DeviceOptions::default());
    assert!(!device.driver().has_viommu(&device, 1));
    let both = Host::new(smmuv3::Options::everything());
    let device = both.device(SID, DeviceOptions::default());
    let has = |kind| device.driver().has_viommu(&device, kind);
    assert_eq!([has(0), has(1), has(2)], [false, true, false]);
    let stage1 = device.driver().alloc_paging(&device, PagingFlags::empty(), None).unwrap();
    assert!(make_viommu(&device, &stage1, Arc::new(Events::default())).is_err());
}

/// The host takes memory from the guest: what stage 1 has been combined with it goes too, whichever address it has
/// there; and with the last vIOMMU goes all that is left of stage 1.
#[test]
fn what_the_host_unmaps_is_gone_for_every_guest_address() {
    for options in kinds() {
        let mut host = Host::new(options);
        let device = host.device(SID, DeviceOptions::default());
        let mut guest = Guest::new(&host, &device, 0);
        let cds = guest.ram.alloc(6);
        let mut space = Space::new(&guest.ram, 1);
        space.map(VA..VA + SIZE, IPA);
        guest.ram.write(cds, &space.cd().0);
        guest.viommu.add_device(&device, 1).unwrap();
        let page = 0x3_0000;
        let extra = IPA + 0x101_0000;
        // The table stays when the second of these goes: only leaves are invalidated.
        for n in [0, 0x1_0000] {
            guest.parent.map(extra - n, 0x10_0000, 0x1_0000, RW, 1 << 12).unwrap();
        }
        space.map(VA + 0x100_0000..VA + 0x101_0000, extra);
        for round in 0..4 {
            attach(&device, guest.nested(&device, Guest::ste(cds)).unwrap()).unwrap();
            assert_eq!(host.read(SID, VA + page), Some(guest.ram.pa + page));
            assert_eq!(host.read(SID, VA + 0x100_0000), Some(0x10_0000));
            if round % 2 == 1 {
                // Nobody nests while it is unmapped.
                device.group().detach(Target::Rid);
                guest.viommu = Arc::new(Nobody);
                guest.parent.unmap(extra, 0x1_0000);
                guest.parent.sync();
                let events = guest.events.clone();
                guest.viommu = make_viommu(&device, &guest.parent, events).unwrap();
                guest.viommu.add_device(&device, 1).unwrap();
                attach(&device, guest.nested(&device, Guest::ste(cds)).unwrap()).unwrap();
            } else {
                guest.parent.unmap(extra, 0x1_0000);
                guest.parent.sync();
            }
            // The first may be what it is because configuration is read anew.
            for _ in 0..2 {
                assert_eq!(host.read(SID, VA + 0x100_0000), None);
                assert_eq!(host.read(SID, VA + page), Some(guest.ram.pa + page));
            }
            guest.parent.map(extra, 0x10_0000, 0x1_0000, RW, 1 << 12).unwrap();
        }
    }
}

/// Where a vIOMMU was.
struct Nobody;

impl iommu::Viommu for Nobody {
    fn alloc_nested(
        &self,
        _: &iommu::Device,
        _: &iommu::UserData,
    ) -> Result<Arc<dyn iommu::NestedDomain>, Error> {
        unreachable!()
    }
    fn invalidate(&self, _: &iommu::UserArray<'_>) -> (u32, Result<(), Error>) {
        unreachable!()
    }
    fn add_device(&self, _: &Arc<iommu::Device>, _: u64) -> Result<(), Error> {
        unreachable!()
    }
    fn remove_device(&self, _: u64) {}
}

/// Between any two of what a stream can be attached to, transactions see the one or the other.
#[test]
fn transactions_see_the_old_domain_or_the_new_one() {
    let options = smmuv3::Options { contexts_log2: 0, ..smmuv3::Options::everything() };
    let host = Host::new(options);
    let device = host.device(SID, DeviceOptions::default());
    let guests = [0, 1].map(|n| Guest::new(&host, &device, n));
    let driver = device.driver();
    let paging = driver.alloc_paging(&device, PagingFlags::empty(), None).unwrap();
    paging.map(IPA, 0x70_0000, 0x1_0000, RW, ANY).unwrap();
    let mut domains = vec![
        (Domain::Identity, Some(IPA)),
        (Domain::Blocked, None),
        (Domain::Paging(paging), Some(0x70_0000)),
        (Domain::Paging(guests[0].parent.clone()), Some(guests[0].ram.pa)),
    ];
    for guest in &guests {
        guest.viommu.add_device(&device, 1).unwrap();
        domains.push((guest.nested(&device, bypass()).unwrap(), Some(guest.ram.pa)));
        for n in 1..3 {
            // The same address, elsewhere in the guest's memory; each has an ASID of its own.
            let cds = guest.ram.alloc(6);
            let mut space = Space::new(&guest.ram, n);
            space.map(IPA..IPA + 0x1000, IPA + 0x3_0000 + u64::from(n) * 0x1000);
            guest.ram.write(cds, &space.cd().0);
            let expected = guest.ram.pa + 0x3_0000 + u64::from(n) * 0x1000;
            domains.push((guest.nested(&device, Guest::ste(cds)).unwrap(), Some(expected)));
        }
    }
    attach(&device, Domain::Identity).unwrap();
    host.ram.slow.store(true, Ordering::Relaxed);
    let change = AtomicU64::new(0);
    let (stop, checked) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let dma = scope.spawn(|| {
            let mut port = host.bus.model.requester();
            while !stop.load(Ordering::Acquire) {
                let _ = port.begin().translate(&Transaction::read(SID + 1, IPA));
                let before = change.load(Ordering::SeqCst);
                let seen = port.begin().translate(&Transaction::read(SID, IPA));
                let seen = seen.ok().map(|translation| translation.address);
                if change.load(Ordering::SeqCst) == before {
                    let expected = [before >> 32, before & 0xff].map(|n| domains[n as usize].1);
                    assert!(expected.contains(&seen), "{before:#x}: {seen:x?}, not {expected:x?}");
                    checked.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        let (mut from, mut round) = (0, 0);
        while !dma.is_finished() && (round < 400 || checked.load(Ordering::Relaxed) < 2000) {
            // Every pair in turn.
            let to = (from + 1 + round / domains.len()) % domains.len();
            change.store((from as u64) << 32 | to as u64, Ordering::SeqCst);
            (0..round % 7).for_each(|_| std::thread::yield_now());
            attach(&device, domains[to].0.clone()).unwrap();
            change.store((to as u64) << 32 | to as u64, Ordering::SeqCst);
            (from, round) = (to, round + 1);
        }
        stop.store(true, Ordering::Release);
    });
}

#[test]
fn a_guests_stage_2_serves_devices_with_and_without_stage_1() {
    let mut host = Host::new(smmuv3::Options::everything());
    let devices = [8, 9, 10].map(|sid| host.device(sid, DeviceOptions::default()));
    let guest = Guest::new(&host, &devices[0], 0);
    let cds = guest.ram.alloc(6);
    let mut space = Space::new(&guest.ram, 1);
    space.map(VA..VA + 0x1000, IPA);
    guest.ram.write(cds, &space.cd().0);
    // Two vIOMMUs over one stage 2.
    let second = make_viommu(&devices[1], &guest.parent, Arc::new(Events::default())).unwrap();
    guest.viommu.add_device(&devices[0], 1).unwrap();
    second.add_device(&devices[1], 1).unwrap();
    attach(&devices[0], guest.nested(&devices[0], Guest::ste(cds)).unwrap()).unwrap();
    attach(&devices[1], guest.nested(&devices[1], bypass()).unwrap()).unwrap();
    attach(&devices[2], Domain::Paging(guest.parent.clone())).unwrap();
    let seen = [(8, VA), (9, IPA), (10, IPA)].map(|(sid, at)| host.read(sid, at));
    assert_eq!(seen, [Some(guest.ram.pa); 3]);
    // Each keeps the stage 2 alive.
    let parent = guest.parent.clone();
    let domain = guest.nested(&devices[0], Guest::ste(cds)).unwrap();
    attach(&devices[0], domain).unwrap();
    guest.all(&[Command::TlbiNsnhAll]);
    parent.unmap(IPA, SIZE);
    parent.sync();
    let seen = [(8, VA), (9, IPA), (10, IPA)].map(|(sid, at)| host.read(sid, at));
    assert_eq!(seen, [None; 3]);
}
