//! What waits for transactions in flight: `CMD_SYNC` and the acknowledgement of `SMMUEN` (§4.7.3, §6.3.9.6).

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use smmuv3::{Interrupts, Options, Smmu, Transaction, Wire};

use crate::common::raw::{cmd, pte, reg, ste};
use crate::common::world::Ram;
use crate::common::{CMDQ, Machine};

const OLD: u64 = 0x30_0000;
const NEW: u64 = 0x31_0000;

fn mapped() -> (Machine, crate::common::Stage1) {
    let mut m = Machine::everything();
    let one = m.stage1(3, 1);
    m.map(&one.tables, 0x5000, OLD);
    (m, one)
}

#[test]
fn a_sync_completes_when_the_transactions_before_it_have() {
    let (m, one) = mapped();
    let smmu = m.smmu.clone();
    let (mut first, mut second) = (smmu.requester(), smmu.requester());
    let leaf = m.entry(&one.tables, 0x5000, 3);
    let mut early = first.begin();
    assert_eq!(early.translate(&Transaction::read(3, 0x5000)).unwrap().address, OLD);
    m.ram.set(leaf, NEW | pte::S1_RW);
    m.world.wires.take();
    let at = m.r32(reg::CMDQ_PROD);
    m.submit(&[
        cmd::tlbi_va(cmd::TLBI_NH_VA, 0, 1, 0x5000),
        cmd::sync_signal(1, 0x8_0000, 0x5555),
        cmd::cfgi_all(),
    ]);
    for _ in 0..3 {
        assert!(!m.idle());
        assert_eq!(m.r32(reg::CMDQ_CONS), at + 1, "commands after it wait, too");
    }
    assert_eq!((m.world.wires.take(), m.ram.get32(0x8_0000)), (vec![], 0));
    // A transaction that begins now finds the new page and holds nothing up.
    let mut late = second.begin();
    assert_eq!(late.translate(&Transaction::read(3, 0x5000)).unwrap().address, NEW);
    // Ending the early one is enough: no register access is needed.
    drop(early);
    assert_eq!((m.world.wires.take(), m.ram.get32(0x8_0000)), (vec![Wire::CmdSync], 0x5555));
    assert!(m.idle());
    drop(late);
}

#[test]
fn a_sync_waits_for_each_of_several_and_for_changes_of_configuration_too() {
    let (m, one) = mapped();
    let smmu = m.smmu.clone();
    let mut ports: Vec<_> = (0..4).map(|_| smmu.requester()).collect();
    let mut transfers: Vec<_> = ports.iter_mut().map(smmuv3::Requester::begin).collect();
    for transfer in &mut transfers {
        transfer.translate(&Transaction::read(3, 0x5000)).unwrap();
    }
    m.store(Machine::ste_at(3), &one.ste.with(ste::CONFIG, ste::ABORT));
    m.submit(&[cmd::cfgi_ste(3), cmd::sync()]);
    while let Some(transfer) = transfers.pop() {
        assert!(!m.idle());
        drop(transfer);
    }
    assert!(m.idle());
    drop(transfers);
    // A port that is gone is not waited for.
    drop(ports);
    m.run(&[cmd::cfgi_all()]);
}

/// Each CMD_SYNC has transactions of its own to wait for, also when the queue was off in between.
#[test]
fn a_sync_that_was_given_up_does_not_vouch_for_a_later_one() {
    let (m, _) = mapped();
    let smmu = m.smmu.clone();
    let (mut first, mut second) = (smmu.requester(), smmu.requester());
    let early = first.begin();
    m.submit(&[cmd::sync()]);
    assert!(!m.idle());
    // Software drops it: it disables the queue and empties it.
    let all = reg::SMMUEN | reg::EVENTQEN | reg::PRIQEN;
    m.w32(reg::CR0, all);
    m.w32(reg::CMDQ_PROD, 0);
    m.w32(reg::CMDQ_CONS, 0);
    let mut late = second.begin();
    late.translate(&Transaction::read(3, 0x5000)).unwrap();
    m.w32(reg::CR0, all | reg::CMDQEN);
    m.submit(&[cmd::tlbi_va(cmd::TLBI_NH_VA, 0, 1, 0x5000), cmd::sync()]);
    drop(early);
    assert!(!m.idle(), "the late transaction still uses what was invalidated");
    drop(late);
    assert!(m.idle());
}

/// §6.3.9.6: all new transactions behave in the new way, and those before have ended.
#[test]
fn smmuen_is_acknowledged_when_the_transactions_before_it_have_ended() {
    let (mut m, _) = mapped();
    let smmu = m.smmu.clone();
    let mut port = smmu.requester();
    let cr0 = m.r32(reg::CR0);
    for enable in [0, reg::SMMUEN] {
        let mut transfer = port.begin();
        let address = transfer.translate(&Transaction::read(3, 0x5000)).unwrap().address;
        assert_eq!(address, if enable == 0 { OLD } else { 0x5000 });
        m.w32(reg::CR0, cr0 & !reg::SMMUEN | enable);
        assert_eq!(m.r32(reg::CR0) & reg::SMMUEN, enable, "as written at once");
        assert_ne!(m.r32(reg::CR0ACK) & reg::SMMUEN, enable);
        // Other fields are acknowledged on their own.
        m.w32(reg::CR0, (cr0 & !reg::SMMUEN | enable) ^ reg::PRIQEN);
        assert_eq!(m.r32(reg::CR0ACK) & reg::PRIQEN, cr0 & reg::PRIQEN ^ reg::PRIQEN);
        m.w32(reg::CR0, cr0 & !reg::SMMUEN | enable);
        drop(transfer);
        assert_eq!(m.r32(reg::CR0ACK), cr0 & !reg::SMMUEN | enable);
        let expected = if enable == 0 { 0x5000 } else { OLD };
        assert_eq!(m.output(3, 0x5000), expected);
    }
    // Both kinds of waiting at a time.
    let transfer = port.begin();
    m.submit(&[cmd::sync()]);
    m.w32(reg::CR0, cr0 & !reg::SMMUEN);
    assert!(!m.idle());
    drop(transfer);
    assert!(m.idle());
    assert_eq!(m.r32(reg::CR0ACK), cr0 & !reg::SMMUEN);
}

/// A guest that keeps the queue full of work does not keep a vCPU in one register write: what is left is done by
/// and by.
#[test]
fn one_write_executes_a_bounded_number_of_commands() {
    let mut m = Machine::booted(Options { cmdq_log2: 6, ..Options::everything() });
    m.set_cr0(reg::SMMUEN | reg::EVENTQEN | reg::PRIQEN);
    // Indexes that are more than a queue apart: software's mistake. It ends all the same.
    m.w32(reg::CMDQ_PROD, 0x7f);
    m.w32(reg::CMDQ_CONS, 0x00);
    (0..64).for_each(|n| m.store(crate::common::CMDQ + 16 * n, &cmd::cfgi_all()));
    m.w32(reg::CR0, reg::CMDQEN);
    for _ in 0..4 {
        m.r32(reg::CMDQ_CONS);
    }
    assert_eq!(m.gerror(), 0);
}

/// Rings the queue from within an interrupt, as a guest on another processor would.
struct Ringing {
    smmu: OnceLock<Weak<Smmu<Arc<Ram>>>>,
    left: AtomicU32,
}

impl Interrupts for Ringing {
    fn pulse(&self, _: Wire) {
        let Some(smmu) = self.smmu.get().and_then(Weak::upgrade) else { return };
        let fewer = |left: u32| left.checked_sub(1);
        if self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fewer).is_err() {
            return;
        }
        let prod = smmu.read32(reg::CMDQ_PROD);
        smmu.write32(reg::CMDQ_PROD, prod ^ 0x40);
    }
}

/// Commands that come while effects of others are performed are executed without anybody asking again.
#[test]
fn commands_submitted_from_an_interrupt_are_executed() {
    let ram = Arc::new(Ram::new(0x2_0000));
    let ringing = Arc::new(Ringing { smmu: OnceLock::new(), left: AtomicU32::new(3) });
    // The queue holds as many commands as one call executes.
    let options = Options { cmdq_log2: 6, ..Options::everything() };
    let smmu = Smmu::new(options, ram.clone(), ringing.clone(), ()).unwrap();
    ringing.smmu.set(Arc::downgrade(&smmu)).unwrap();
    for n in 0..64u64 {
        let command = if n == 0 { cmd::sync_signal(1, 0, 0) } else { cmd::cfgi_all() };
        ram.set(CMDQ + 16 * n, command.0[0]);
        ram.set(CMDQ + 16 * n + 8, command.0[1]);
    }
    smmu.write64(reg::CMDQ_BASE, CMDQ | 6);
    smmu.write32(reg::CR0, reg::CMDQEN);
    smmu.write32(reg::CMDQ_PROD, 0x40);
    // The first read tells what was done until then.
    let cons = smmu.read32(reg::CMDQ_CONS);
    assert_eq!((cons, smmu.read32(reg::CMDQ_PROD)), (0x00, 0x00), "four times around");
}

/// Accesses of any length and alignment through the SMMU move the bytes and stop where a page refuses.
#[test]
fn reads_and_writes_go_through_page_by_page() {
    let mut m = Machine::everything();
    let one = m.stage1(3, 1);
    // Three pages: two that follow each other, one elsewhere; the fourth is missing.
    m.map(&one.tables, 0x5000, 0x30_0000);
    m.map(&one.tables, 0x6000, 0x30_1000);
    m.map(&one.tables, 0x7000, 0x38_0000);
    let data: Vec<u8> = (0..0x2800u32).map(|n| (n * 7) as u8).collect();
    let mut port = m.smmu.requester();
    for _ in 0..2 {
        let mut transfer = port.begin();
        transfer.write(&Transaction::write(3, 0x5400), &data).unwrap();
        let mut back = vec![0; data.len()];
        transfer.read(&Transaction::read(3, 0x5400), &mut back).unwrap();
        assert_eq!(back, data);
        drop(transfer);
    }
    assert_eq!(m.ram.get(0x30_0400) as u8, data[0]);
    assert_eq!(m.ram.get(0x38_0000) as u8, data[0x1c00]);
    let mut transfer = port.begin();
    transfer.write(&Transaction::write(3, 0x7ff0), &[1; 0x20]).unwrap_err();
    transfer.read(&Transaction::read(3, 0x7ff8), &mut [0; 16]).unwrap_err();
    transfer.read(&Transaction::read(3, !0), &mut [0; 16]).unwrap_err();
    transfer.read(&Transaction::read(3, 0x5000), &mut []).unwrap();
    drop(transfer);
    assert_eq!(
        m.ram.get(0x38_0ff0),
        0x0101_0101_0101_0101,
        "what precedes the failing page is written"
    );
    assert_eq!(m.events().len(), 3);
}
