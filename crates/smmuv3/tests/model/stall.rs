//! The Stall model (§3.12.2, §4.7, §5.5).

use smmuv3::{Options, Refused, Resume, StallModel};

use crate::common::raw::event::*;
use crate::common::raw::{cd, cmd, event, reg, ste};
use crate::common::world::Message;
use crate::common::{EVENTQ_LOG2, Machine, Stage1};

/// A stream whose stage 1 faults stall.
fn stalling(m: &mut Machine, sid: u32) -> Stage1 {
    let one = m.stage1(sid, sid as u16);
    // R == 0 is ignored, and A does not count.
    m.set_cd(&one, one.cd.with(cd::S, 1).with(cd::R, 0).with(cd::A, 0));
    one
}

#[track_caller]
fn stalls(m: &mut Machine, sid: u32, address: u64) -> u16 {
    match m.read(sid, address) {
        Err(Refused::Stalled { stag }) => stag,
        other => panic!("{other:?}"),
    }
}

fn resumed(sid: u32, stag: u16, action: Resume) -> Vec<Message> {
    vec![Message::Resume(sid, stag, action)]
}

#[test]
fn a_stalled_transaction_is_retried_aborted_or_ended_quietly_as_software_says() {
    let mut m = Machine::everything();
    let one = stalling(&mut m, 3);
    for (action, expected) in [
        (cmd::RETRY, Resume::Retry),
        (cmd::ABORT, Resume::Abort),
        (cmd::TERMINATE, Resume::RazWi),
        // With Ac the abort parameter is ignored.
        (cmd::RETRY | cmd::ABORT, Resume::Retry),
    ] {
        let stag = stalls(&mut m, 3, 0x5678);
        let record = m.event();
        assert_eq!(record.get(event::NUMBER), F_TRANSLATION);
        assert_eq!((record.get(event::STALL), record.get(event::STAG)), (1, stag.into()));
        assert_eq!(record.get(event::INPUT), 0x5678);
        assert_eq!(m.world.devices.take(), []);
        m.run(&[cmd::resume(3, stag, action)]);
        assert_eq!(m.world.devices.take(), resumed(3, stag, expected));
        // Once only.
        m.run(&[cmd::resume(3, stag, action)]);
        assert_eq!(m.world.devices.take(), []);
    }
    // A retry finds what software has mapped meanwhile.
    let stag = stalls(&mut m, 3, 0x5678);
    m.map(&one.tables, 0x5000, 0x30_0000);
    m.run(&[cmd::resume(3, stag, cmd::RETRY)]);
    assert_eq!(m.output(3, 0x5678), 0x30_0678);
}

#[test]
fn a_resume_must_name_the_transaction_by_stream_and_tag() {
    let mut m = Machine::everything();
    stalling(&mut m, 3);
    stalling(&mut m, 4);
    let (one, other) = (stalls(&mut m, 3, 0x5000), stalls(&mut m, 4, 0x5000));
    assert_ne!(one, other);
    m.run(&[
        cmd::resume(4, one, cmd::RETRY),
        cmd::resume(3, other, cmd::RETRY),
        cmd::resume(5, one, cmd::RETRY),
        cmd::resume(3, 0xffff, cmd::RETRY),
        cmd::resume(3, one + 100, cmd::RETRY),
    ]);
    assert_eq!(m.world.devices.take(), []);
    // In any order.
    m.run(&[cmd::resume(4, other, cmd::RETRY), cmd::resume(3, one, cmd::ABORT)]);
    let expected = [resumed(4, other, Resume::Retry), resumed(3, one, Resume::Abort)].concat();
    assert_eq!(m.world.devices.take(), expected);
}

#[test]
fn all_transactions_of_a_stream_are_terminated_at_once() {
    let mut m = Machine::everything();
    stalling(&mut m, 3);
    stalling(&mut m, 4);
    let tags: Vec<u16> = (0..3).map(|n| stalls(&mut m, 3, n << 12)).collect();
    let other = stalls(&mut m, 4, 0x5000);
    m.set_ste(3, ste::new(ste::ABORT));
    m.run(&[cmd::stream(cmd::STALL_TERM, 3)]);
    let expected: Vec<Message> =
        tags.iter().map(|stag| Message::Resume(3, *stag, Resume::Abort)).collect();
    assert_eq!(m.world.devices.take(), expected);
    m.run(&[cmd::resume(4, other, cmd::RETRY)]);
    assert_eq!(m.world.devices.take(), resumed(4, other, Resume::Retry));
}

/// §6.3.9.6.
#[test]
fn disabling_the_smmu_terminates_what_is_stalled() {
    let mut m = Machine::everything();
    stalling(&mut m, 3);
    let stag = stalls(&mut m, 3, 0x5000);
    m.set_cr0(reg::CMDQEN | reg::EVENTQEN);
    assert_eq!(m.world.devices.take(), resumed(3, stag, Resume::Abort));
}

/// §7.2.1, §7.4: their records are not lost and overflow nothing; they come when the queue has room.
#[test]
fn stall_records_wait_for_room_in_the_queue() {
    let mut m = Machine::booted(Options { merge_events: false, ..Options::everything() });
    stalling(&mut m, 3);
    let entries = 1u32 << EVENTQ_LOG2;
    for _ in 0..entries {
        m.read(7, 0x1000).unwrap_err();
    }
    let (first, second) = (stalls(&mut m, 3, 0x5000), stalls(&mut m, 3, 0x6000));
    assert_eq!(m.r32(reg::EVENTQ_PROD), entries, "no overflow");
    // Nobody can know the tag yet.
    m.submit(&[cmd::resume(3, first, cmd::RETRY)]);
    assert_eq!(m.world.devices.take(), []);
    m.w32(reg::EVENTQ_CONS, 1);
    assert_eq!(m.r32(reg::EVENTQ_PROD), entries + 1);
    m.w32(reg::EVENTQ_CONS, entries);
    let records = m.events();
    let tags: Vec<u64> = records.iter().map(|record| record.get(event::STAG)).collect();
    assert_eq!(tags, [u64::from(first), u64::from(second)]);
    // Nor while the queue is off, or stopped by an abort.
    m.set_cr0(reg::CMDQEN | reg::SMMUEN | reg::PRIQEN);
    let third = stalls(&mut m, 3, 0x7000);
    assert_eq!(m.events(), []);
    m.enable();
    assert_eq!(m.event().get(event::STAG), u64::from(third));
    m.ram.fail_next_write();
    m.read(7, 0x1000).unwrap_err();
    let fourth = stalls(&mut m, 3, 0x8000);
    assert_eq!(m.events(), []);
    m.acknowledge();
    assert_eq!(m.event().get(event::STAG), u64::from(fourth));
    // One whose own record aborts is not lost either.
    m.ram.fail_next_write();
    let fifth = stalls(&mut m, 3, 0x9000);
    assert_eq!(m.events(), []);
    m.acknowledge();
    assert_eq!(m.event().get(event::STAG), u64::from(fifth));
}

/// §4.7.3: no record of what was true before a `CMD_SYNC` is written after it; the transaction is tried again instead.
#[test]
fn a_sync_makes_stalled_transactions_that_are_not_recorded_start_over() {
    let mut m = Machine::booted(Options { merge_events: false, ..Options::everything() });
    let one = stalling(&mut m, 3);
    let recorded = stalls(&mut m, 3, 0x9000);
    for _ in 1..1 << EVENTQ_LOG2 {
        m.read(7, 0x1000).unwrap_err();
    }
    let stag = stalls(&mut m, 3, 0x5000);
    m.map(&one.tables, 0x5000, 0x30_0000);
    m.run(&[cmd::tlbi_va(cmd::TLBI_NH_VA, 0, 3, 0x5000)]);
    assert_eq!(m.world.devices.take(), resumed(3, stag, Resume::Retry));
    m.events();
    assert_eq!(m.events(), [], "nothing about the past");
    m.read(3, 0x5000).unwrap();
    // What was recorded waits for its answer as before.
    m.run(&[cmd::resume(3, recorded, cmd::ABORT)]);
    assert_eq!(m.world.devices.take(), resumed(3, recorded, Resume::Abort));
}

/// `IDR5.STALL_MAX`: when no more can be held, transactions end as if nothing stalled.
#[test]
fn as_many_transactions_stall_as_the_smmu_can_hold() {
    let mut m =
        Machine::booted(Options { stall_max: 4, merge_events: false, ..Options::everything() });
    let one = stalling(&mut m, 3);
    m.set_cd(&one, one.cd.with(cd::S, 1));
    let tags: Vec<u16> = (0..4).map(|n| stalls(&mut m, 3, n << 12)).collect();
    m.events();
    assert_eq!(m.read(3, 0x9000), Err(Refused::Abort));
    assert_eq!(m.event().get(event::STALL), 0);
    m.run(&[cmd::resume(3, tags[2], cmd::ABORT)]);
    assert_eq!(stalls(&mut m, 3, 0x9000), tags[2], "the tag is free again");
}

/// §5.5: only the four faults of translation stall, from either stage, and from CD fetches through stage 2.
#[test]
fn other_errors_terminate_whatever_is_configured() {
    let mut m = Machine::everything();
    let one = stalling(&mut m, 3);
    m.map(&one.tables, 0x5000, 0x30_0000);
    let leaf = m.entry(&one.tables, 0x5000, 3);
    m.ram.make_hole(leaf..leaf + 8);
    m.read_faults(3, 0x5000, F_WALK_EABT);
    m.ram.fill_holes();
    m.set_cd(&one, one.cd.with(cd::S, 1).with(cd::AA64, 0));
    m.read_faults(3, 0x5000, C_BAD_CD);
    let (nested, second) = m.nested(4, 1, 1);
    m.set_ste(4, nested.ste.with(ste::S2_S, 1));
    m.ram.set(m.entry(&second, crate::common::GUEST + nested.cd_at, 3), 0);
    m.run(&[cmd::cfgi_all(), cmd::new(cmd::TLBI_NSNH_ALL)]);
    stalls(&mut m, 4, 0x5000);
    let record = m.event();
    assert_eq!((record.get(event::STALL), record.get(event::CLASS)), (1, CLASS_CD));
}

/// §5.2, §5.4: what may be configured depends on `STALL_MODEL`.
#[test]
fn stall_configuration_that_the_smmu_does_not_have_is_illegal() {
    for (model, stall, legal) in [
        (StallModel::Both, 0, true),
        (StallModel::Both, 1, true),
        (StallModel::TerminateOnly, 0, true),
        (StallModel::TerminateOnly, 1, false),
        (StallModel::StallOnly, 0, false),
        (StallModel::StallOnly, 1, true),
    ] {
        let stall_max = if model == StallModel::TerminateOnly { 0 } else { 4 };
        let options = Options { stall_model: model, stall_max, ..Options::everything() };
        let mut m = Machine::booted(options);
        let one = m.stage1(3, 1);
        m.set_cd(&one, one.cd.with(cd::S, stall));
        let _ = m.read(3, 0x5000);
        let number = m.event().get(event::NUMBER);
        assert_eq!(number, if legal { F_TRANSLATION } else { C_BAD_CD }, "{model:?} S = {stall}");
        let two = m.stage2(4, 1);
        m.set_ste(4, two.ste.with(ste::S2_S, stall));
        let _ = m.read(4, 0x5000);
        let number = m.event().get(event::NUMBER);
        assert_eq!(
            number,
            if legal { F_TRANSLATION } else { C_BAD_STE },
            "{model:?} S2S = {stall}"
        );
        // S1STALLD is legal where there is a choice, and then makes CD.S illegal.
        m.set_ste(3, one.ste.with(ste::S1_STALLD, 1));
        let _ = m.read(3, 0x5000);
        let expected = match (model, stall) {
            (StallModel::Both, 0) => F_TRANSLATION,
            (StallModel::Both, _) => C_BAD_CD,
            _ => C_BAD_STE,
        };
        assert_eq!(m.event().get(event::NUMBER), expected, "{model:?} S1STALLD");
    }
    // TERM_MODEL: RAZ/WI is neither configured nor ordered.
    let mut m = Machine::booted(Options { abort_only: true, ..Options::everything() });
    let one = m.stage1(3, 1);
    m.set_cd(&one, one.cd.with(cd::A, 0));
    m.read_faults(3, 0x5000, C_BAD_CD);
    m.set_cd(&one, one.cd.with(cd::S, 1));
    let stag = stalls(&mut m, 3, 0x5000);
    m.run(&[cmd::resume(3, stag, cmd::TERMINATE)]);
    assert_eq!(m.world.devices.take(), resumed(3, stag, Resume::Abort));
}
