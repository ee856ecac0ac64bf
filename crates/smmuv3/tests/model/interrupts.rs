//! Interrupts of all sources, wired and as messages (§3.18, §7.5).

use smmuv3::wire::PageRequest;
use smmuv3::{Options, Wire};

use crate::common::raw::{Words, cmd, reg};
use crate::common::{Machine, PRIQ_LOG2};

const GERROR_AT: u64 = 0x8_0000;
const EVENTQ_AT: u64 = 0x8_0014;
const PRIQ_AT: u64 = 0x8_0028;
const HOLE: u64 = 0x9_0000;

/// With messages to the given addresses.
fn messages(gerror: u64, eventq: u64, priq: u64) -> Machine {
    let mut m = Machine::new(Options { merge_events: false, ..Options::everything() });
    m.w64(reg::GERROR_IRQ_CFG0, gerror);
    m.w32(reg::GERROR_IRQ_CFG1, 0x6e11);
    m.w64(reg::EVENTQ_IRQ_CFG0, eventq);
    m.w32(reg::EVENTQ_IRQ_CFG1, 0xe4e2);
    m.w64(reg::PRIQ_IRQ_CFG0, priq);
    m.w32(reg::PRIQ_IRQ_CFG1, 0x9219);
    m.boot();
    m.ram.make_hole(HOLE..HOLE + 0x1000);
    m.world.wires.take();
    m
}

fn request(m: &Machine, last: bool) {
    m.smmu.page_request(PageRequest { sid: 3, read: true, last, ..PageRequest::default() });
}

fn illegal(m: &Machine) {
    m.submit(&[Words([0, 0])]);
}

fn repair(m: &Machine) {
    m.w32(reg::CMDQ_PROD, m.r32(reg::CMDQ_CONS) & 0xf_ffff);
    m.acknowledge();
}

#[test]
fn every_source_sends_its_message_and_an_edge() {
    let mut m = messages(GERROR_AT, EVENTQ_AT, PRIQ_AT);
    m.read(7, 0).unwrap_err();
    assert_eq!((m.ram.get32(EVENTQ_AT), m.world.wires.take()), (0xe4e2, vec![Wire::Eventq]));
    request(&m, true);
    assert_eq!((m.ram.get32(PRIQ_AT), m.world.wires.take()), (0x9219, vec![Wire::Priq]));
    illegal(&m);
    assert_eq!((m.ram.get32(GERROR_AT), m.world.wires.take()), (0x6e11, vec![Wire::Gerror]));
    assert_eq!(m.gerror(), reg::CMDQ_ERR);
    // Each of them is 32 bits.
    for at in [GERROR_AT, EVENTQ_AT, PRIQ_AT] {
        assert_eq!((m.ram.get32(at + 4), m.ram.get32(at - 4)), (0, 0));
    }
}

/// An address of 0 sends no message: the wire is what is left.
#[test]
fn without_an_address_there_is_the_wire() {
    let mut m = messages(0, 0, 0);
    m.ram.set(0, 0);
    m.read(7, 0).unwrap_err();
    request(&m, true);
    illegal(&m);
    assert_eq!(m.world.wires.take(), [Wire::Eventq, Wire::Priq, Wire::Gerror]);
    assert_eq!(m.ram.get(0), 0);
}

#[test]
fn a_disabled_interrupt_says_nothing_and_is_not_made_up_for() {
    let mut m = messages(GERROR_AT, EVENTQ_AT, PRIQ_AT);
    m.w32(reg::IRQ_CTRL, 0);
    m.read(7, 0).unwrap_err();
    request(&m, true);
    illegal(&m);
    m.w32(reg::IRQ_CTRL, 0b111);
    assert_eq!(m.world.wires.take(), []);
    assert_eq!([GERROR_AT, EVENTQ_AT, PRIQ_AT].map(|at| m.ram.get32(at)), [0; 3]);
    assert_eq!(m.gerror(), reg::CMDQ_ERR, "the state is there all the same");
}

/// §7.5: one error for each source whose message aborts; that of GERROR's own raises no further interrupt.
#[test]
fn messages_that_abort_are_global_errors() {
    let mut m = messages(GERROR_AT, HOLE, HOLE + 4);
    m.read(7, 0).unwrap_err();
    assert_eq!(m.gerror(), reg::MSI_EVENTQ_ABT_ERR);
    assert_eq!(m.ram.get32(GERROR_AT), 0x6e11);
    assert_eq!(m.events().len(), 1, "the record is there");
    m.acknowledge();
    request(&m, true);
    assert_eq!(m.gerror(), reg::MSI_PRIQ_ABT_ERR);
    m.acknowledge();
    m.submit(&[cmd::sync_signal(1, HOLE, 1)]);
    assert_eq!(m.gerror(), reg::MSI_CMDQ_ABT_ERR);
    m.acknowledge();

    let mut m = messages(HOLE, HOLE, PRIQ_AT);
    illegal(&m);
    assert_eq!(m.gerror(), reg::CMDQ_ERR | reg::MSI_GERROR_ABT_ERR);
    assert_eq!(m.world.wires.take(), [Wire::Gerror], "of CMDQ_ERR, not of the abort");
    // Active errors do not toggle again.
    let flags = m.r32(reg::GERROR);
    m.read(7, 0).unwrap_err();
    assert_eq!(m.r32(reg::GERROR), flags | reg::MSI_EVENTQ_ABT_ERR);
    repair(&m);
    assert_eq!(m.gerror(), 0);
    // The next round toggles back.
    illegal(&m);
    assert_eq!(m.r32(reg::GERROR) & reg::CMDQ_ERR, 0);
    assert_eq!(m.gerror() & reg::CMDQ_ERR, reg::CMDQ_ERR);
}

/// §3.18: from empty to non-empty, not for each record.
#[test]
fn the_event_queue_interrupts_when_it_stops_being_empty() {
    let mut m = messages(0, 0, 0);
    for round in 0..3 {
        for _ in 0..3 {
            m.read(7, 0).unwrap_err();
        }
        assert_eq!(m.world.wires.take(), [Wire::Eventq], "round {round}");
        assert_eq!(m.events().len(), 3);
    }
}

/// §6.3.36: LO.
#[test]
fn the_pri_queue_interrupts_when_it_stops_being_empty_or_at_the_last_request_of_a_group() {
    let m = messages(0, 0, 0);
    for last in [false, true, false] {
        request(&m, last);
    }
    assert_eq!(m.world.wires.take(), [Wire::Priq]);
    assert_eq!(m.page_requests().len(), 3);
    m.w32(reg::IRQ_CTRL, 0b101);
    m.w32(reg::PRIQ_IRQ_CFG2, 1 << 31);
    m.w32(reg::IRQ_CTRL, 0b111);
    request(&m, false);
    assert_eq!(m.world.wires.take(), []);
    request(&m, true);
    assert_eq!(m.world.wires.take(), [Wire::Priq]);
    request(&m, true);
    assert_eq!(m.world.wires.take(), [Wire::Priq], "each of them");
    // One that an overflow discards interrupts, too; one that is discarded otherwise does not.
    for _ in 3..1 << PRIQ_LOG2 {
        request(&m, false);
    }
    assert_eq!(m.world.wires.take(), []);
    request(&m, false);
    assert_eq!(m.world.wires.take(), []);
    request(&m, true);
    assert_eq!(m.world.wires.take(), [Wire::Priq]);
    m.w32(reg::CR0, reg::SMMUEN | reg::CMDQEN | reg::EVENTQEN);
    request(&m, true);
    assert_eq!(m.world.wires.take(), []);
}

/// §4.1.2: who waits for room in the Command queue is woken.
#[test]
fn a_full_command_queue_that_has_room_again_sends_an_event() {
    for sev in [true, false] {
        let mut m = Machine::new(Options { sev, ..Options::everything() });
        m.prepare();
        let entries = 1usize << crate::common::CMDQ_LOG2;
        m.w32(reg::CR0, 0);
        m.world.wires.take();
        m.submit(&vec![cmd::cfgi_all(); entries]);
        m.w32(reg::CR0, reg::CMDQEN);
        assert!(m.idle());
        let expected: &[Wire] = if sev { &[Wire::Sev] } else { &[] };
        assert_eq!(m.world.wires.take(), expected);
        m.run(&[cmd::cfgi_all()]);
        assert_eq!(m.world.wires.take(), [], "it was not full");
    }
}
