//! Devices' own caches: a forgotten `CMD_ATC_INV`.

use smmuv3::wire::Command;
use smmuv3::{AtsRequest, Options, Place, Proof, StaleCache, StaleRule, Transaction};

use super::Reports;
use crate::common::raw::cmd::Cmd;
use crate::common::raw::{cmd, pte, reg, ste};
use crate::common::{GUEST, Machine};

const FULL: u64 = 0b01;
const SPLIT: u64 = 0b10;
const A: u64 = 0x30_0000;
const B: u64 = 0x31_0000;
const VA: u64 = 0x4000_5000;

fn machine() -> Machine {
    let mut m = Machine::new(Options::everything());
    m.prepare();
    m.set_cr0(reg::CMDQEN | reg::EVENTQEN | reg::SMMUEN | reg::PRIQEN | reg::ATSCHK);
    m
}

/// The device asks; returns the translated address.
fn ask(m: &Machine, substream_id: Option<u32>) -> u64 {
    let request = AtsRequest {
        stream_id: 3,
        substream_id,
        address: VA,
        no_write: false,
        privileged: false,
        execute: false,
    };
    let found = m.smmu.ats_request(&request).expect("a translation");
    assert!(found.read && found.write);
    found.address
}

/// The device uses what it was told.
fn access(m: &mut Machine, address: u64) {
    m.go(&Transaction { translated: true, ..Transaction::write(3, address + 8) }).unwrap();
}

/// A driver remaps a page; `commands` are what it issues for the device's cache.
fn story(m: &mut Machine, reports: &Reports, commands: &[Cmd]) {
    let one = m.stage1(3, 7);
    m.set_ste(3, one.ste.with(ste::EATS, FULL));
    m.map(&one.tables, VA, A);
    let told = ask(m, None);
    assert_eq!(told, A);
    access(m, told);
    reports.none();
    m.put(&one.tables, VA, 3, 0);
    m.run(&[&[cmd::tlbi_va(cmd::TLBI_NH_VA, 0, 7, VA)], commands].concat());
    m.map(&one.tables, VA, B);
    access(m, told);
}

#[test]
fn atc_inv() {
    let reaching = [
        cmd::atc_inv(3, None, VA, 0),
        cmd::atc_inv(3, None, VA & !0x1_ffff, 5),
        cmd::atc_inv(3, None, 0, 52),
    ];
    for command in reaching {
        let mut m = machine();
        let reports = Reports::of(&m, StaleRule::Sync);
        story(&mut m, &reports, &[command]);
        reports.none();
        assert_eq!(ask(&m, None), B);
        access(&mut m, B);
        reports.none();
    }
    for (command, reason) in [
        (cmd::atc_inv(4, None, VA, 0), "its StreamID is 0x4, not 0x3"),
        (cmd::atc_inv(3, None, VA + 0x1000, 0), "covers other addresses"),
        (cmd::atc_inv(3, Some(1), VA, 0), "it is for a SubstreamID, this has none"),
    ] {
        let mut m = machine();
        let reports = Reports::of(&m, StaleRule::Reuse);
        story(&mut m, &reports, &[command]);
        let stale = reports.one();
        assert_eq!((stale.cache, stale.proof), (StaleCache::Atc, Some(Proof::Remapped)));
        assert_eq!((stale.transaction.stream_id, stale.transaction.address), (3, VA + 8));
        assert_eq!((stale.used.unwrap().address, stale.now.unwrap().address), (A + 8, B + 8));
        let change = stale.change.unwrap();
        assert_eq!(change.place, Place::Stage1 { level: 3 });
        assert_eq!((change.was, change.is), (A | pte::S1_RW, B | pte::S1_RW));
        let wanted = Command::AtcInv { sid: 3, ssid: None, global: false, size: 0, addr: VA };
        assert_eq!(stale.commands, [wanted]);
        let text = stale.to_string();
        for part in [
            "error: stream 0x3 writes 0x40005008",
            "the device's ATC",
            "CMD_ATC_INV SID=0x3 Addr=0x40005000 Size=0",
            reason,
        ] {
            assert!(text.contains(part), "{part:?} is missing in\n{text}");
        }
    }
}

/// With a PASID, and by software that only takes away.
#[test]
fn atc_inv_of_a_substream() {
    // Without a SubstreamID it is for all of them.
    for named in [Some(2), Some(1), None] {
        let forgotten = named == Some(2);
        let mut m = machine();
        let reports = Reports::of(&m, StaleRule::Sync);
        let one = m.stage1(3, 7);
        let cds = m.alloc(4 * 64);
        m.store(cds + 64, &one.cd);
        let ste = one.ste.with_address(ste::S1_CONTEXT_PTR, cds).with(ste::S1_CD_MAX, 2);
        m.set_ste(3, ste.with(ste::S1_DSS, 0b10).with(ste::EATS, FULL));
        m.map(&one.tables, VA, A);
        let told = ask(&m, Some(1));
        m.put(&one.tables, VA, 3, 0);
        let tlbi = cmd::tlbi_va(cmd::TLBI_NH_VA, 0, 7, VA);
        let atc = cmd::atc_inv(3, named, VA, 0);
        m.run(&[tlbi, atc]);
        access(&mut m, told);
        reports.none();
        m.run(&[]);
        access(&mut m, told);
        if !forgotten {
            reports.none();
            continue;
        }
        let stale = reports.one();
        assert_eq!((stale.cache, stale.proof), (StaleCache::Atc, Some(Proof::Synchronized)));
        assert_eq!(stale.transaction.substream_id, Some(1));
        assert!(stale.to_string().contains("it is not for SubstreamID 0x1"), "{stale}");
        // A page that is back is no matter.
        m.map(&one.tables, VA, A);
        access(&mut m, told);
        assert_eq!(m.smmu.stale_pending(), []);
    }
}

/// Split-stage: the device holds IPAs, which a change of stage 2 does not touch.
#[test]
fn split_stage_atcs_hold_what_stage_1_says() {
    for stage1 in [false, true] {
        let mut m = machine();
        let reports = Reports::of(&m, StaleRule::Reuse);
        let (nested, second) = m.nested(3, 5, 7);
        m.set_ste(3, nested.ste.with(ste::EATS, SPLIT));
        m.map(&nested.tables, VA, GUEST + A);
        let told = ask(&m, None);
        assert_eq!(told, GUEST + A);
        access(&mut m, told);
        if stage1 {
            m.put(&nested.tables, VA, 3, 0);
            m.run(&[cmd::tlbi_va(cmd::TLBI_NH_VA, 5, 7, VA)]);
            m.map(&nested.tables, VA, GUEST + B);
        } else {
            m.put(&second, GUEST + A, 3, 0);
            let ipa = cmd::tlbi_va(cmd::TLBI_S2_IPA, 5, 0, GUEST + A);
            m.run(&[ipa, cmd::tlbi(cmd::TLBI_NH_ALL, 5, 0)]);
            m.map2(&second, GUEST + A, B);
        }
        access(&mut m, told);
        if stage1 {
            let stale = reports.one();
            assert_eq!(stale.cache, StaleCache::Atc);
            assert_eq!(stale.change.unwrap().place, Place::Stage1 { level: 3 });
        } else {
            reports.none();
        }
    }
}

/// What the SMMU answers a device from its own caches is compared as well.
#[test]
fn answers_to_devices_are_compared() {
    let mut m = machine();
    let reports = Reports::of(&m, StaleRule::Reuse);
    let one = m.stage1(3, 7);
    m.set_ste(3, one.ste.with(ste::EATS, FULL));
    m.map(&one.tables, VA, A);
    assert_eq!(ask(&m, None), A);
    m.ram.set(m.entry(&one.tables, VA, 2), 0);
    m.run(&[cmd::tlbi_va(cmd::TLBI_NH_VA, 0, 7, VA), cmd::atc_inv(3, None, VA, 0)]);
    m.map(&one.tables, VA, B);
    assert_eq!(ask(&m, None), A, "through the table that was given up");
    let stale = reports.one();
    assert_eq!((stale.cache, stale.proof), (StaleCache::Walk, Some(Proof::Remapped)));
    assert_eq!(stale.change.unwrap().place, Place::Stage1 { level: 2 });
}

/// Under split-stage ATS the SMMU translates IPAs; what it remembers of stage 2 is compared.
#[test]
fn split_stage_accesses_are_compared() {
    for forgotten in [true, false] {
        let mut m = machine();
        let reports = Reports::of(&m, StaleRule::Reuse);
        let (nested, second) = m.nested(3, 5, 7);
        m.set_ste(3, nested.ste.with(ste::EATS, SPLIT));
        m.map(&nested.tables, VA, GUEST + A);
        let told = ask(&m, None);
        access(&mut m, told);
        // The whole last table of stage 2 is replaced by another.
        let at = m.entry(&second, GUEST + A, 2);
        m.ram.set(at, 0);
        let ipa = cmd::tlbi_va(cmd::TLBI_S2_IPA, 5, 0, GUEST + A);
        m.run(&[
            if forgotten { ipa } else { ipa.with(cmd::LEAF, 0) },
            cmd::tlbi(cmd::TLBI_NH_ALL, 5, 0),
        ]);
        m.map2(&second, GUEST + A, B);
        access(&mut m, told);
        if forgotten {
            let stale = reports.one();
            assert_eq!((stale.cache, stale.proof), (StaleCache::Walk, Some(Proof::Remapped)));
            assert_eq!((stale.vmid, stale.asid), (5, None));
            assert_eq!(stale.change.unwrap().address, at);
            let wanted = stale.commands.iter().map(Command::to_string).collect::<Vec<_>>();
            assert_eq!(wanted, ["CMD_TLBI_S2_IPA VMID=5 IPA=0x10300000"]);
        } else {
            reports.none();
        }
    }
}
