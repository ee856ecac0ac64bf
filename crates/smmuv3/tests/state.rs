//! Saving, restoring and resetting an SMMU.

mod common;

use std::sync::Arc;

use common::raw::cmd;
use common::raw::event;
use common::raw::{cd, reg};
use common::world::Message;
use common::{Machine, RAM_SIZE};
use smmuv3::wire::register::Register;
use smmuv3::{Options, Refused, RestoreError, Resume, Smmu, Transaction};

/// Another SMMU of the same kind on the same memory, as after a migration.
fn successor(machine: &Machine, options: Options) -> Arc<Smmu<Arc<common::world::Ram>>> {
    Smmu::new(
        options,
        machine.ram.clone(),
        machine.world.wires.clone(),
        machine.world.devices.clone(),
    )
    .expect("valid options")
}

#[test]
fn a_restored_smmu_goes_on_where_the_saved_one_stopped() {
    let mut m = Machine::everything();
    let stream = m.stage1(3, 7);
    m.map(&stream.tables, 0x5000, 0x30_0000);
    assert_eq!(m.output(3, 0x5123), 0x30_0123);
    // An event that software has not read, and commands that it has yet to write.
    assert!(m.read(3, 0x9000).is_err());

    let state = m.smmu.save();
    let next = successor(&m, Options::everything());
    next.restore(&state).expect("the same kind of SMMU");
    assert_eq!(next.save(), state);
    m.smmu = next;
    let mut port = m.smmu.requester();
    assert_eq!(port.begin().translate(&Transaction::read(3, 0x5123)).unwrap().address, 0x30_0123);
    assert_eq!(m.events().len(), 1, "the event is still to be read");
    assert!(port.begin().translate(&Transaction::read(3, 0x9000)).is_err());
    assert_eq!(m.events().len(), 1, "and the next one comes after it");
    m.run(&[cmd::tlbi(cmd::TLBI_NSNH_ALL, 0, 0), cmd::sync()]);
}

#[test]
fn commands_that_were_queued_are_executed_after_a_restore() {
    let m = Machine::everything();
    let mut port = m.smmu.requester();
    let transfer = port.begin();
    m.submit(&[cmd::sync()]);
    assert!(!m.idle(), "a transfer is under way");
    let state = m.smmu.save();
    drop(transfer);

    let next = successor(&m, Options::everything());
    next.restore(&state).expect("the same kind of SMMU");
    let at = |register: Register| u64::from(register.offset());
    assert_eq!(next.read32(at(Register::CmdqCons)), next.read32(at(Register::CmdqProd)));
}

#[test]
fn a_stalled_transaction_survives() {
    let mut m = Machine::everything();
    let stream = m.stage1(3, 7);
    m.set_cd(&stream, stream.cd.with(cd::S, 1));
    let Err(Refused::Stalled { stag }) = m.read(3, 0x9000) else { panic!("it stalls") };
    let record = m.event();
    let state = m.smmu.save();
    m.smmu = successor(&m, Options::everything());
    m.smmu.restore(&state).expect("the same kind of SMMU");
    assert_eq!(record.get(event::STAG), u64::from(stag));
    m.run(&[cmd::resume(3, stag, 1), cmd::sync()]);
    assert_eq!(m.world.devices.take(), [Message::Resume(3, stag, Resume::Retry)]);
}

#[test]
fn another_kind_of_smmu_refuses_the_state_and_stays_as_it_is() {
    let m = Machine::everything();
    let state = m.smmu.save();
    let smaller = successor(
        &m,
        Options { ats: false, pri: false, priq_log2: 0, atsrecerr: false, ..Options::everything() },
    );
    let before = smaller.save();
    let error = smaller.restore(&state).expect_err("it has no ATS");
    assert!(matches!(error, RestoreError::Different { register: Register::Idr0, .. }), "{error}");
    assert!(error.to_string().contains("SMMU_IDR0"));
    assert_eq!(smaller.save(), before);
}

#[test]
fn a_state_that_makes_no_sense_is_refused() {
    let m = Machine::everything();
    let state = m.smmu.save();
    let mut missing = state.clone();
    missing.registers.pop();
    assert!(matches!(m.smmu.restore(&missing), Err(RestoreError::Registers { .. })));
    let mut unknown = state.clone();
    unknown.registers.push((0xfff0, 1));
    assert!(matches!(m.smmu.restore(&unknown), Err(RestoreError::Registers { offset: 0xfff0 })));
    let mut garbage = state.clone();
    garbage.stalled.push(smmuv3::StalledState { event: [0; 4], reported: true });
    assert_eq!(m.smmu.restore(&garbage), Err(RestoreError::Stalled { index: 0 }));
    // Bits that no write could have set do not get in.
    let mut wild = state.clone();
    wild.registers.iter_mut().for_each(|(at, value)| {
        if *at == Register::StrtabBase.offset() {
            *value = !0;
        }
    });
    m.smmu.restore(&wild).expect("reserved bits are ignored");
    assert_eq!(m.smmu.read64(reg::STRTAB_BASE) >> 52, 1 << 10, "bit 62 and an address of 52 bits");
}

#[test]
fn a_reset_forgets_everything() {
    let mut m = Machine::everything();
    let fresh = Machine::new(Options::everything()).smmu.save();
    let stream = m.stage1(3, 7);
    m.map(&stream.tables, 0x5000, 0x30_0000);
    m.output(3, 0x5000);
    m.set_cd(&stream, stream.cd.with(cd::S, 1));
    let Err(Refused::Stalled { stag }) = m.read(3, 0x9000) else { panic!("it stalls") };
    m.smmu.reset();
    assert_eq!(m.smmu.save(), fresh);
    assert_eq!(m.world.devices.take(), [Message::Resume(3, stag, Resume::Abort)]);
    // Disabled: addresses pass through.
    assert_eq!(m.output(3, 0x5000), 0x5000);
    assert!(m.output(3, RAM_SIZE - 8) == RAM_SIZE - 8);
}

#[test]
fn a_transfer_that_was_forgotten_ends_with_its_requester() {
    let m = Machine::everything();
    let mut port = m.smmu.requester();
    std::mem::forget(port.begin());
    m.submit(&[cmd::sync()]);
    assert!(!m.idle(), "nobody has ended the transfer");
    drop(port);
    assert!(m.idle());
}
