//! The host's events and page requests, in the guest's queues.

use std::os::fd::AsRawFd;

use smmuv3::wire::{Command, Event, EventKind, PageRequest};
use smmuv3_iommufd::Host;

use crate::common::double::Target;
use crate::common::{CD, QUEUE_LOG2, Vm, reg, translating};

const LOST_EVENTS: u32 = 1;

fn event(sid: u32, address: u64) -> Event {
    Event { rnw: true, input_address: address, ..Event::new(EventKind::Translation, sid) }
}

fn readable(fd: i32) -> bool {
    let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    // SAFETY: one structure, which is ours.
    unsafe { libc::poll(&raw mut poll, 1, 0) == 1 }
}

#[test]
fn events_reach_the_guest_with_its_own_stream_ids() {
    let vm = Vm::running();
    let fd = vm.vsmmu.with_event_file(|file| file.as_raw_fd()).unwrap();
    assert!(!readable(fd));
    assert_eq!(vm.vsmmu.process_events().unwrap(), 0);
    for n in 0..3u32 {
        vm.host.event(0, n, Some(event(3, u64::from(n) << 12).encode()));
    }
    // Of a device that has gone, and what nobody knows.
    vm.host.event(0, 3, Some(event(4, 0).encode()));
    vm.host.event(0, 4, Some([0xff; 4]));
    assert!(readable(fd));
    assert_eq!(vm.vsmmu.process_events().unwrap(), 3);
    let expected: Vec<_> = (0..3).map(|n| event(3, n << 12).encode()).collect();
    assert_eq!(vm.events(), expected);
    assert!(!readable(fd));
    let statistics = vm.vsmmu.statistics();
    assert_eq!((statistics.events_dropped, statistics.events_lost), (2, 0));
}

#[test]
fn what_the_host_lost_is_an_overflow_to_the_guest() {
    let overflowed = |vm: &Vm| (vm.read(reg::EVENTQ_PROD) ^ vm.read(reg::EVENTQ_CONS)) >> 31 == 1;
    // A gap in the numbers; a header that says so.
    for header in [false, true] {
        let vm = Vm::running();
        vm.host.event(0, 0, Some(event(3, 0).encode()));
        vm.vsmmu.process_events().unwrap();
        assert!(!overflowed(&vm));
        if header {
            vm.host.event(LOST_EVENTS, 4, None);
        }
        vm.host.event(0, 5, Some(event(3, 0x1000).encode()));
        assert_eq!(vm.vsmmu.process_events().unwrap(), 1);
        assert!(overflowed(&vm));
        assert_eq!(vm.events().len(), 2, "with room in its queue");
        assert!(!overflowed(&vm), "acknowledged");
        assert_eq!(vm.vsmmu.statistics().events_lost, 1);
    }
    // And the guest's own queue has an end.
    let vm = Vm::running();
    for n in 0..=(1 << QUEUE_LOG2) {
        assert!(!overflowed(&vm));
        vm.host.event(0, n, Some(event(3, u64::from(n) << 12).encode()));
        vm.vsmmu.process_events().unwrap();
    }
    assert!(overflowed(&vm));
    assert_eq!(vm.events().len(), 1 << QUEUE_LOG2);
}

/// `struct iommu_hwpt_pgfault`: a read of 0x5000 with PASID 9.
fn fault(device: u32, group: u32, last: bool, cookie: u32) -> [u32; 10] {
    [1 | u32::from(last) << 1, device, 9, group, 1, 0, 0x5123, 0, 0, cookie]
}

fn pri_resp(prg_index: u16, resp: u8) -> Command {
    Command::PriResp { sid: 3, ssid: Some(9), prg_index, resp }
}

#[test]
fn page_requests_reach_the_guest_and_its_responses_the_host() {
    let vm = Vm::running();
    let fd = vm.vsmmu.with_fault_file(|file| file.as_raw_fd()).unwrap();
    assert!(!readable(fd));
    vm.host.fault(&fault(1, 5, false, 0));
    vm.host.fault(&fault(1, 5, true, 70));
    vm.host.fault(&fault(1, 6, true, 71));
    vm.host.fault(&fault(1, 7, true, 72));
    assert!(readable(fd));
    assert_eq!(vm.vsmmu.process_page_requests().unwrap(), 4);
    let request = |prg_index, last| PageRequest {
        sid: 3,
        ssid: Some(9),
        read: true,
        last,
        prg_index,
        address: 0x5000,
        ..PageRequest::default()
    };
    let expected = [(5, false), (5, true), (6, true), (7, true)];
    assert_eq!(vm.page_requests(), expected.map(|(index, last)| request(index, last).encode()));
    assert_eq!(vm.host.responses(), Vec::<[u32; 2]>::new());
    // In any order; failure and invalid are one to the host; what was not asked is not answered.
    vm.run(&[pri_resp(6, 2), pri_resp(5, 1), pri_resp(99, 2), pri_resp(7, 0), pri_resp(7, 2)]);
    assert_eq!(vm.host.responses(), [[71, 0], [70, 1], [72, 1]]);
}

#[test]
fn page_requests_that_the_guest_does_not_get_are_answered() {
    let vm = Vm::running();
    // Of no device here, and with a group index that PCIe does not have.
    vm.host.fault(&fault(2, 5, true, 1));
    vm.host.fault(&fault(1, 0x200, true, 2));
    vm.host.fault(&fault(2, 5, false, 3));
    assert_eq!(vm.vsmmu.process_page_requests().unwrap(), 0);
    assert_eq!(vm.host.responses(), [[1, 1], [2, 1]]);
    assert_eq!(vm.vsmmu.statistics().page_requests_refused, 2);
    // The guest's queue overflows: the device is to try again.
    let room = 1 << QUEUE_LOG2;
    for n in 0..=room {
        vm.host.fault(&fault(1, n, true, 100 + n));
        vm.vsmmu.process_page_requests().unwrap();
    }
    assert_eq!(vm.host.responses(), [[100 + room, 0]]);
    assert_eq!(vm.page_requests().len(), room as usize);
    // The guest has no queue.
    vm.write(reg::CR0, 0b1101);
    vm.host.fault(&fault(1, 100, true, 200));
    vm.vsmmu.process_page_requests().unwrap();
    assert_eq!(vm.host.responses(), [[200, 1]]);
}

#[test]
fn a_response_to_a_configuration_of_the_past_is_dropped() {
    let vm = Vm::running();
    vm.host.fault(&fault(1, 5, true, 70));
    vm.vsmmu.process_page_requests().unwrap();
    // The host answers when the device is attached to something else.
    vm.set_ste(3, &translating(CD + 0x1000));
    vm.run(&[pri_resp(5, 2)]);
    assert_eq!(vm.host.responses(), Vec::<[u32; 2]>::new());
    vm.host.fault(&fault(1, 5, true, 71));
    vm.vsmmu.process_page_requests().unwrap();
    vm.vsmmu.unplug(1).unwrap();
    vm.run(&[pri_resp(5, 2)]);
    assert_eq!(vm.host.responses(), Vec::<[u32; 2]>::new());
}

#[test]
fn a_guest_without_a_pri_queue_has_no_fault_queue_at_the_host() {
    let host = crate::common::double::Double::new(1);
    let options = smmuv3::Options { pri: false, priq_log2: 0, ..crate::common::options(&host) };
    let parents = smmuv3_iommufd::NestParents::new(host.clone(), 7);
    let vm = Vm::with(&host, options, &parents);
    assert!(vm.vsmmu.with_event_file(|_| ()).is_none(), "no device yet");
    vm.vsmmu.plug(host.device(1)).unwrap();
    assert!(vm.vsmmu.with_fault_file(|_| ()).is_none());
    assert_eq!(vm.vsmmu.process_page_requests().unwrap(), 0);
    assert_eq!(host.attached(1), Target::Abort);
    assert!(host.hw_info(1).is_ok());
}
