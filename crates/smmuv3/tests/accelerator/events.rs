//! Events and page requests of assigned streams, in the guest's queues.

use smmuv3::wire::{Event, EventKind, PageRequest};
use smmuv3::{PageResponseCode, Refused, Transaction, Wire};

use crate::common::raw::{event, reg, ste};
use crate::common::{EVENTQ, EVENTQ_LOG2, PRIQ_LOG2};
use crate::host::Call;
use crate::{ASSIGNED, EMULATED, translating};

fn fault(address: u64) -> Event {
    Event {
        ssid: Some(5),
        rnw: true,
        input_address: address,
        ..Event::new(EventKind::Translation, ASSIGNED)
    }
}

#[test]
fn an_event_of_the_host_is_recorded_as_one_of_its_own() {
    let (mut m, _) = translating();
    m.world.wires.take();
    m.smmu.inject_event(fault(0x5000));
    assert_eq!(m.world.wires.take(), [Wire::Eventq]);
    // Behind it one of an emulated stream: one queue, one order.
    assert_eq!(m.go(&Transaction::read(EMULATED, 0x6000)), Err(Refused::Abort));
    let records = m.events();
    assert_eq!(records.len(), 2);
    assert_eq!(records[0].0, fault(0x5000).encode());
    assert_eq!(records[1].get(event::SID), u64::from(EMULATED));
    // With the queue disabled it is lost without a trace.
    m.set_cr0(reg::CMDQEN | reg::SMMUEN);
    m.smmu.inject_event(fault(0x5000));
    m.smmu.inject_lost_events();
    m.set_cr0(reg::CMDQEN | reg::SMMUEN | reg::EVENTQEN);
    assert_eq!(m.events(), []);
    assert_eq!(m.r32(reg::EVENTQ_PROD) & reg::OVFLG, 0);
}

#[test]
fn a_full_queue_overflows_once_until_that_is_acknowledged() {
    let (m, _) = translating();
    let capacity = 1 << EVENTQ_LOG2;
    for n in 0..capacity {
        m.smmu.inject_event(fault(n << 12));
        assert_eq!(m.r32(reg::EVENTQ_PROD) & reg::OVFLG, 0);
    }
    for _ in 0..3 {
        m.smmu.inject_event(fault(0xdead_0000));
        m.smmu.inject_lost_events();
        assert_eq!(m.r32(reg::EVENTQ_PROD) & reg::OVFLG, reg::OVFLG);
    }
    assert_eq!(m.gerror(), 0);
    let records = m.events();
    assert_eq!(records.len(), capacity as usize);
    assert!(records.iter().all(|record| record.0[2] < capacity << 12));
    // `events` has written PROD to CONS, and so acknowledged.
    m.smmu.inject_lost_events();
    assert_eq!(m.r32(reg::EVENTQ_PROD) & reg::OVFLG, 0, "toggled again, with room in the queue");
    m.smmu.inject_event(fault(0x1000));
    assert_eq!(m.events().len(), 1);
}

#[test]
fn a_queue_that_cannot_be_written_is_a_global_error() {
    let (m, _) = translating();
    m.ram.make_hole(EVENTQ..EVENTQ + (32 << EVENTQ_LOG2));
    m.smmu.inject_event(fault(0x5000));
    assert_eq!(m.gerror(), reg::EVENTQ_ABT_ERR);
    m.ram.fill_holes();
    m.smmu.inject_event(fault(0x5000));
    assert_eq!(m.events(), [], "not before it is acknowledged");
    m.acknowledge();
    m.smmu.inject_event(fault(0x5000));
    assert_eq!(m.events().len(), 1);
}

#[test]
fn events_are_merged_only_where_the_guests_ste_lets_them() {
    let (m, _) = translating();
    m.smmu.inject_event(fault(0x5000));
    m.smmu.inject_event(fault(0x5008));
    assert_eq!(m.events().len(), 2);
    let one = m.ram.get(crate::Machine::ste_at(ASSIGNED) + 8);
    m.ram.set(crate::Machine::ste_at(ASSIGNED) + 8, one | 1 << (ste::MEV.0 - 64));
    m.smmu.inject_event(fault(0x5000));
    m.smmu.inject_event(fault(0x5008));
    assert_eq!(m.events().len(), 1);
}

#[test]
fn what_does_not_fit_the_pri_queue_is_answered_to_the_host() {
    let (m, host) = translating();
    let request = |prg_index| PageRequest {
        sid: ASSIGNED,
        ssid: Some(5),
        read: true,
        last: true,
        prg_index,
        address: 0x5000,
        ..PageRequest::default()
    };
    for n in 0..1 << PRIQ_LOG2 {
        m.smmu.page_request(request(n));
    }
    assert_eq!(host.take(), []);
    m.smmu.page_request(request(99));
    let calls = host.take();
    let [Call::Response(response)] = calls[..] else { panic!("{calls:?}") };
    assert_eq!((response.prg_index, response.code), (99, PageResponseCode::Success));
    assert_eq!(m.world.devices.take(), []);
    assert_eq!(m.page_requests().len(), 1 << PRIQ_LOG2);
}
