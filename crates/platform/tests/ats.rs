//! Devices that translate for themselves: what they know is never more than what is so.

mod common;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use common::Machine;
use host::{Errno, Mm};
use host_fake::BASE;
use iommu::Target;
use platform::{Access, DeviceOptions, PriStatus};
use smmuv3::{Stale, StaleRule};
use uapi::iommufd as u;

const IOVA: u64 = 0x4000_0000;

fn ats() -> DeviceOptions {
    DeviceOptions { ats: true, ..DeviceOptions::default() }
}

fn memory<const N: usize>(machine: &Machine, at: u64) -> [u8; N] {
    let mut data = [0; N];
    machine.host.copy_from_user(at, &mut data).unwrap();
    data
}

#[test]
fn ats_is_on_where_a_domain_translates_and_follows_it() {
    let machine = Machine::new();
    let (device, mut port) = machine.device_with(0x10, ats());
    assert!(!port.has_ats_enabled(), "identity");
    let id = machine.bind(device);
    assert!(port.write(Access::at(IOVA), b"nothing").is_err());
    let ioas = machine.ioas();
    for page in [BASE, BASE + 4096, BASE] {
        machine.map(ioas, page, IOVA).unwrap();
        machine.context.attach(id, Target::Rid, ioas).unwrap();
        assert!(port.has_ats_enabled());
        for data in [b"one", b"two"] {
            port.write(Access::at(IOVA + 5), data).unwrap();
            assert_eq!(&memory(&machine, page + 5), data);
        }
        assert!(port.write(Access::at(IOVA + 4094), b"across").is_err());
        assert_eq!(&memory(&machine, page + 4094), b"ac", "as far as it goes");
        machine.unmap(ioas, IOVA).unwrap();
        assert!(port.read(Access::at(IOVA), &mut [0; 4]).is_err());
        machine.context.detach(id, Target::Rid);
        assert!(!port.has_ats_enabled());
        assert!(port.read(Access::at(IOVA), &mut [0; 4]).is_err());
    }
}

#[test]
fn what_is_not_there_is_asked_for_only_by_who_may() {
    let machine = Machine::new();
    let pri = DeviceOptions { pri: true, ..ats() };
    let (device, mut port) = machine.device_with(0x10, pri);
    let off = PriStatus { stopped: true, ..PriStatus::default() };
    assert_eq!(port.page_requests(), off);
    let id = machine.bind(device);
    let ioas = machine.ioas();
    machine.map(ioas, BASE, IOVA).unwrap();
    machine.context.attach(id, Target::Rid, ioas).unwrap();
    let on = PriStatus { enabled: true, ..PriStatus::default() };
    assert_eq!(port.page_requests(), on);
    // Nobody takes requests here, and so the driver says no to each.
    for _ in 0..3 {
        assert!(port.read(Access::at(IOVA + 4096), &mut [0; 4]).is_err());
    }
    assert_eq!(port.page_requests(), on);
    port.read(Access::at(IOVA), &mut [0; 4]).unwrap();
    machine.context.detach(id, Target::Rid);
    assert_eq!(port.page_requests(), off);
}

#[test]
fn a_page_that_was_clean_is_marked_again() {
    let machine = Machine::new();
    let (device, mut port) = machine.device_with(0x10, ats());
    let id = machine.bind(device);
    let ioas = machine.ioas();
    machine.map(ioas, BASE, IOVA).unwrap();
    let flags = u::iommufd_hwpt_alloc_flags_IOMMU_HWPT_ALLOC_DIRTY_TRACKING;
    let hwpt = machine.hwpt(id, ioas, flags).unwrap();
    machine.context.attach(id, Target::Rid, hwpt).unwrap();
    let domain = machine.context.paging_domain(hwpt).unwrap();
    let dirty = domain.dirty().unwrap();
    dirty.set_enabled(true).unwrap();
    let is_dirty = || {
        let mut found = false;
        dirty.read_and_clear(IOVA, 4096, false, &mut |_, _| found = true);
        found
    };
    for _ in 0..3 {
        port.read(Access::at(IOVA), &mut [0; 4]).unwrap();
        assert!(!is_dirty(), "read, and no intention to write");
        port.write(Access::at(IOVA), b"some").unwrap();
        port.write(Access::at(IOVA), b"more").unwrap();
        assert!(is_dirty());
    }
}

/// Ends the writers, also where an assertion fails.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Several ports of a device write to an IOVA as fast as they can, while it is mapped to one page after the other and
/// the device is attached and detached.
#[test]
fn after_an_unmap_the_page_is_quiet() {
    const WRITERS: u64 = 2;
    const ROUNDS: u64 = 24;
    let machine = Machine::new();
    let stale = Arc::new(Mutex::new(Vec::new()));
    let reports = stale.clone();
    let report = move |stale: &Stale| reports.lock().unwrap().push(stale.to_string());
    machine.smmu.model().check_stale(StaleRule::Reuse, report).unwrap();
    let (device, port) = machine.device_with(0x10, ats());
    let id = machine.bind(device);
    let ioas = machine.ioas();
    machine.context.attach(id, Target::Rid, ioas).unwrap();
    let (over, written) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let mut port = port.another();
            let (over, written) = (&over, &written);
            scope.spawn(move || {
                let mut count = 0u64;
                while !over.load(Ordering::Relaxed) {
                    count += 1;
                    let at = Access::at(IOVA + 8 * writer);
                    if port.write(at, &count.to_le_bytes()).is_ok() {
                        written.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        let _over = Over(&over);
        let some_more = || {
            let until = written.load(Ordering::Relaxed) + 20;
            while written.load(Ordering::Relaxed) < until {
                std::thread::yield_now();
            }
        };
        for round in 0..ROUNDS {
            let page = BASE + (round % 8) * 4096;
            machine.map(ioas, page, IOVA).unwrap();
            some_more();
            if round % 3 == 0 {
                machine.context.detach(id, Target::Rid);
            } else {
                machine.unmap(ioas, IOVA).unwrap();
            }
            let before: [u8; 32] = memory(&machine, page);
            for _ in 0..3 {
                std::thread::yield_now();
            }
            assert_eq!(memory::<32>(&machine, page), before, "round {round}");
            if round % 3 == 0 {
                machine.unmap(ioas, IOVA).unwrap();
                machine.context.attach(id, Target::Rid, ioas).unwrap();
            }
        }
    });
    assert_eq!(machine.unmap(ioas, IOVA), Err(Errno::NOENT));
    let stale = stale.lock().unwrap();
    assert!(stale.is_empty(), "{}", stale.join("\n"));
}
