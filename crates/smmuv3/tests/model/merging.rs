//! Merging of event records (§7.3.1).

use smmuv3::{Options, Refused, Transaction};

use crate::common::raw::event::*;
use crate::common::raw::{cd, cmd, event, ste};
use crate::common::{GUEST, Machine};

fn faults(m: &mut Machine, transactions: &[Transaction]) -> Vec<u64> {
    for transaction in transactions {
        m.go(transaction).unwrap_err();
    }
    m.events().iter().map(|record| record.get(event::NUMBER)).collect()
}

#[test]
fn like_faults_of_a_page_are_one_record_where_mev_allows_it() {
    let mut m = Machine::everything();
    let one = m.stage1(3, 1);
    let two = m.stage2(4, 1);
    for mev in [0, 1] {
        m.set_ste(3, one.ste.with(ste::MEV, mev));
        m.set_ste(4, two.ste.with(ste::MEV, mev));
        for sid in [3, 4] {
            let at = |address| Transaction::read(sid, address);
            let merged = if mev == 1 { 1 } else { 3 };
            let same_page = [at(0x5000), at(0x5008), at(0x5fff)];
            assert_eq!(faults(&mut m, &same_page).len(), merged, "MEV {mev}");
            // Other pages, writes and privileges are other events.
            let write = Transaction::write(sid, 0x5000);
            let privileged = Transaction { privileged: true, ..at(0x5000) };
            let different = [at(0x5000), at(0x6000), write, privileged, at(0x5000)];
            assert_eq!(faults(&mut m, &different).len(), 5);
            // Once software has read the record, the next is new.
            assert_eq!(faults(&mut m, &[at(0x5000)]).len(), 1);
            assert_eq!(faults(&mut m, &[at(0x5000)]).len(), 1);
        }
        // Between them another stream's event.
        let (a, b) = (Transaction::read(3, 0x5000), Transaction::read(4, 0x5000));
        assert_eq!(faults(&mut m, &[a, b, a, b]).len(), 4);
    }
    // Before the STE is found there is no MEV to ask.
    let (bad, outside) = (Transaction::read(7, 0x5000), Transaction::read(999, 0x5000));
    assert_eq!(faults(&mut m, &[bad, bad, outside, outside]), [C_BAD_STE, C_BAD_STREAMID]);
    // An SMMU that does not merge.
    let mut m = Machine::booted(Options { merge_events: false, ..Options::everything() });
    let one = m.stage1(3, 1);
    m.set_ste(3, one.ste.with(ste::MEV, 1));
    assert_eq!(faults(&mut m, &[Transaction::read(3, 0x5000), bad, bad]).len(), 3);
}

/// MEV counts from the STE on: for its own errors that come after it, too.
#[test]
fn mev_holds_for_substream_and_cd_errors() {
    for mev in [0, 1] {
        let expected = |number| if mev == 1 { vec![number] } else { vec![number, number] };
        let mut m = Machine::everything();
        let one = m.stage1(3, 1);
        let ste = one.ste.with(ste::MEV, mev);
        let plain = Transaction::read(3, 0x5000);
        m.set_ste(3, ste);
        let substream = plain.with_substream(1);
        assert_eq!(faults(&mut m, &[substream, substream]), expected(C_BAD_SUBSTREAMID));
        m.set_ste(3, ste.with(ste::S1_CD_MAX, 1));
        assert_eq!(faults(&mut m, &[plain, plain]), expected(F_STREAM_DISABLED));
        m.set_ste(3, ste);
        m.set_cd(&one, one.cd.with(cd::V, 0));
        assert_eq!(faults(&mut m, &[plain, plain]), expected(C_BAD_CD));
        m.ram.make_hole(one.cd_at..one.cd_at + 8);
        assert_eq!(faults(&mut m, &[plain, plain]), expected(F_CD_FETCH));
        m.ram.fill_holes();
        // Stage 2 of a CD: with the attributes that the STE makes, as well.
        let (nested, second) = m.nested(4, 1, 1);
        let ste =
            nested.ste.with(ste::MEV, mev).with(ste::PRIV_CFG, 0b11).with(ste::INST_CFG, 0b11);
        m.set_ste(4, ste);
        m.ram.set(m.entry(&second, GUEST + nested.cd_at, 3), 0);
        m.run(&[cmd::cfgi_all(), cmd::new(cmd::TLBI_NSNH_ALL)]);
        for _ in 0..2 {
            assert_eq!(m.read(4, 0x5000), Err(Refused::Abort));
        }
        let records = m.events();
        assert_eq!(records.len(), if mev == 1 { 1 } else { 2 });
        let record = records[0];
        assert_eq!(
            (record.get(event::NUMBER), record.get(event::CLASS)),
            (F_TRANSLATION, CLASS_CD)
        );
        assert_eq!((record.get(event::PNU), record.get(event::IND)), (1, 1));
        // ATS requests that are refused.
        m.set_ste(3, one.ste.with(ste::MEV, mev));
        let request = smmuv3::AtsRequest {
            stream_id: 3,
            substream_id: None,
            address: 0x5000,
            no_write: false,
            privileged: false,
            execute: false,
        };
        for _ in 0..2 {
            m.smmu.ats_request(&request).unwrap_err();
        }
        assert_eq!(m.events().len(), if mev == 1 { 1 } else { 2 });
    }
}

#[test]
fn records_of_stalls_are_never_merged() {
    let mut m = Machine::everything();
    let one = m.stage1(3, 1);
    m.set_ste(3, one.ste.with(ste::MEV, 1));
    m.set_cd(&one, one.cd.with(cd::S, 1));
    let read = Transaction::read(3, 0x5000);
    assert_eq!(faults(&mut m, &[read, read, read]).len(), 3);
}
