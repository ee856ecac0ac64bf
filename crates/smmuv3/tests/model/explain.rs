//! `explain`: every step of a translation, as data and as text, and nothing else.

use std::sync::{Arc, Mutex};

use smmuv3::wire::{Class, EventKind};
use smmuv3::{AlreadyExplaining, ExplainedFault, Explanation, Options, Refused, Step, Transaction};

use crate::common::raw::{cd, pte, reg, ste};
use crate::common::{GUEST, Machine};

const OUT: u64 = 0x30_0000;

/// The lines of the text hold these, in this order.
#[track_caller]
fn assert_tells(explanation: &Explanation, parts: &[&str]) {
    let text = explanation.to_string();
    let mut lines = text.lines();
    for part in parts {
        assert!(
            lines.any(|line| line.contains(part)),
            "{part:?} is missing, or too early, in\n{text}"
        );
    }
}

#[test]
fn a_nested_translation_is_told_step_by_step() {
    let mut m = Machine::everything();
    let (nested, second) = m.nested(3, 1, 7);
    m.map(&nested.tables, 0x5000, GUEST + OUT);
    let at = m.entry(&nested.tables, 0x5000, 2);
    m.ram.set(at, m.ram.get(at) | pte::AP_TABLE_READ_ONLY);
    let (result, explanation) = m.smmu.explain(&Transaction::read(3, 0x5678));
    assert_eq!(result.unwrap().address, OUT + 0x678);
    // STE; the CD, four levels of stage 1, and the page, each behind three levels of stage 2.
    let kinds: String = explanation
        .steps
        .iter()
        .map(|step| match step {
            Step::Ste { .. } => 'S',
            Step::Cd { .. } => 'C',
            Step::Stage2 { .. } => '>',
            Step::Descriptor { stage: 1, .. } => '1',
            Step::Descriptor { stage: 2, .. } => '2',
            Step::Combined { .. } => '=',
            _ => '?',
        })
        .collect();
    assert_eq!(kinds, "S>222C>2221>2221>2221>2221>222=");
    // Data, not only text.
    let Step::Cd { address, physical, cd } = explanation.steps[5] else { panic!() };
    assert_eq!((address, physical, cd.asid()), (GUEST + nested.cd_at, nested.cd_at, 7));
    let leaf = m.entry(&nested.tables, 0x5000, 3);
    let page = m.entry(&second, GUEST + OUT, 3);
    let lines = [
        "STE at 0x400c0".to_string(),
        "  Config = 0b111: both stages translate".into(),
        "stage 2 level 1 at".into(),
        format!("CD at IPA {:#x} = PA {:#x}", GUEST + nested.cd_at, nested.cd_at),
        "  ASID = 7".into(),
        "stage 1 level 0 at IPA".into(),
        "which takes away APTable[1]".into(),
        format!("stage 1 level 3 at IPA {:#x} = PA {leaf:#x}", GUEST + leaf),
        format!("stage 2 level 3 at {page:#x}: {:#018x} maps 4 KiB to 0x300678", m.ram.get(page)),
        "output 0x300678 in a page of 4 KiB".into(),
    ];
    assert_tells(&explanation, &lines.each_ref().map(String::as_str));
}

#[test]
fn a_fault_is_told_with_its_event_and_its_fate() {
    let mut m = Machine::everything();
    let one = m.stage1(3, 1);
    m.map(&one.tables, 0x5000, OUT);
    let transaction = Transaction::write(3, 0x6678);
    for (r, s, fate) in [
        (1, 0, "(recorded)"),
        (0, 0, "(not recorded: the configuration says so)"),
        (0, 1, "(recorded, the transaction stalls)"),
    ] {
        m.set_cd(&one, one.cd.with(cd::R, r).with(cd::S, s));
        let (result, explanation) = m.smmu.explain(&transaction);
        let event = result.unwrap_err();
        assert_eq!(
            (event.kind, event.sid, event.input_address),
            (EventKind::Translation, 3, 0x6678)
        );
        assert_tells(&explanation, &["stage 1 level 2", "invalid", fate]);
        let last = explanation.to_string();
        assert!(
            last.contains("SID=0x3 unprivileged write of 0x6678 at stage 1, class IN"),
            "{last}"
        );
    }
    assert_eq!(m.events(), [], "nothing is recorded");
    // Each kind of fault says why.
    let leaf = m.entry(&one.tables, 0x5000, 3);
    m.set_cd(&one, one.cd.with(cd::IPS, 0b010));
    for (descriptor, parts) in [
        (1 << 40 | pte::S1_RW, ["0x10000000000 is beyond the output size", "F_ADDR_SIZE"]),
        (OUT | pte::S1_RW & !pte::USER, ["stage 1 grants", "F_PERMISSION"]),
        (OUT | pte::BLOCK, ["reserved encoding", "F_TRANSLATION"]),
    ] {
        m.ram.set(leaf, descriptor);
        let (_, explanation) = m.smmu.explain(&Transaction::read(3, 0x5008));
        assert_tells(&explanation, &parts);
    }
    let (_, explanation) = m.smmu.explain(&Transaction::read(3, 1 << 50));
    assert_tells(&explanation, &["outside of the range", "F_TRANSLATION"]);
    let (event, explanation) = m.smmu.explain(&Transaction::read(7, 0));
    assert_eq!(event.unwrap_err().kind, EventKind::BadSte);
    assert_tells(&explanation, &["STE at 0x401c0", "V = 0: invalid", "C_BAD_STE"]);
    let (_, explanation) = m.smmu.explain(&Transaction::read(999, 0));
    assert_tells(&explanation, &["C_BAD_STREAMID"]);
    // A fault of the SMMU's own access names it.
    let (nested, second) = m.nested(4, 1, 1);
    m.ram.set(m.entry(&second, GUEST + nested.cd_at, 3), 0);
    let (event, explanation) = m.smmu.explain(&Transaction::read(4, 0x5000));
    let event = event.unwrap_err();
    assert_eq!(
        (event.class, event.s2, event.ipa & !0xfff),
        (Class::Cd, true, (GUEST + nested.cd_at) & !0xfff)
    );
    assert_tells(&explanation, &["STE at", "stage 2 level 3", "at stage 2, class CD"]);
}

#[test]
fn streams_that_translate_nothing_are_told_as_well() {
    let mut m = Machine::everything();
    m.set_ste(3, ste::new(ste::BYPASS));
    let (_, explanation) = m.smmu.explain(&Transaction::read(3, 0x5000));
    assert_tells(&explanation, &["Config = 0b100: both stages bypass", "output 0x5000"]);
    m.set_ste(3, ste::new(ste::ABORT));
    let (result, explanation) = m.smmu.explain(&Transaction::read(3, 0x5000));
    assert!(result.is_err());
    assert_tells(&explanation, &["abort without an event"]);
    let two = m.stage2(4, 1);
    m.map2(&two.tables, 0x5000, OUT);
    let (_, explanation) = m.smmu.explain(&Transaction::read(4, 0x5000));
    assert_tells(&explanation, &["stage 2 level 3", "output 0x300000 in a page of 4 KiB"]);
    m.set_cr0(reg::CMDQEN);
    let (result, explanation) = m.smmu.explain(&Transaction::read(3, 0x5000));
    assert_eq!(result.unwrap().address, 0x5000);
    assert_tells(&explanation, &["SMMUEN = 0, GBPA.ABORT = 0: passed through"]);
    m.w32(reg::GBPA, reg::GBPA_ABORT | reg::GBPA_UPDATE);
    let (result, explanation) = m.smmu.explain(&Transaction::read(3, 0x5000));
    assert!(result.is_err());
    assert_tells(&explanation, &["GBPA.ABORT = 1: aborted"]);
}

/// It reads memory, not caches, and leaves both as they are.
#[test]
fn explaining_changes_nothing() {
    let mut m = Machine::everything();
    let one = m.stage1(3, 1);
    m.set_cd(&one, one.cd.with(cd::HA, 1).with(cd::HD, 1));
    let clean = OUT | (pte::S1_RW | pte::READ_ONLY | pte::DBM) & !pte::AF;
    m.put(&one.tables, 0x5000, 3, clean);
    let leaf = m.entry(&one.tables, 0x5000, 3);
    let (result, explanation) = m.smmu.explain(&Transaction::write(3, 0x5000));
    result.unwrap();
    assert_tells(&explanation, &["updated by hardware", "output 0x300000"]);
    assert_eq!(m.ram.get(leaf), clean, "not updated");
    // Nothing was cached: a transaction reads all of it.
    let loads = m.ram.loads();
    m.write(3, 0x5000).unwrap();
    assert_eq!(m.ram.loads() - loads, 8 + 8 + 4, "STE, CD, four descriptors");
    // Transactions use the TLB, the explanation what memory says now.
    m.ram.set(leaf, 0);
    m.write(3, 0x5000).unwrap();
    let (result, _) = m.smmu.explain(&Transaction::write(3, 0x5000));
    assert_eq!(result.unwrap_err().kind, EventKind::Translation);
    m.write(3, 0x5000).unwrap();
    assert_eq!(m.events(), []);
}

/// Each refused transaction is explained as it happens: recorded or not, stalled, silent, translated by ATS.
#[test]
fn faults_are_explained_as_they_happen() {
    let mut m = Machine::new(Options::everything());
    m.prepare();
    m.set_cr0(reg::CMDQEN | reg::EVENTQEN | reg::SMMUEN | reg::PRIQEN | reg::ATSCHK);
    let told: Arc<Mutex<Vec<ExplainedFault>>> = Arc::default();
    let sink = told.clone();
    m.smmu
        .explain_faults(move |fault: &ExplainedFault| sink.lock().unwrap().push(fault.clone()))
        .unwrap();
    assert!(matches!(m.smmu.explain_faults(|_: &ExplainedFault| ()), Err(AlreadyExplaining)));
    let one = m.stage1(3, 1);
    m.map(&one.tables, 0x5000, OUT);
    m.read(3, 0x5678).unwrap();
    let take = || std::mem::take(&mut *told.lock().unwrap());
    assert_eq!(take(), []);
    for (r, s) in [(1, 0), (0, 0), (0, 1)] {
        m.set_cd(&one, one.cd.with(cd::R, r).with(cd::S, s));
        let refused = m.write(3, 0x6678).unwrap_err();
        let [fault] = &take()[..] else { panic!("one fault") };
        assert_eq!((fault.transaction, fault.refused), (Transaction::write(3, 0x6678), refused));
        assert_eq!(matches!(refused, Refused::Stalled { .. }), s == 1);
        assert_eq!(fault.now.unwrap_err().kind, EventKind::Translation);
        assert_eq!(fault.explanation, m.smmu.explain(&fault.transaction).1);
        let text = fault.to_string();
        assert!(text.starts_with("stream 0x3 writes 0x6678: "), "{text}");
        assert!(text.contains("\n  CD at ") && text.contains("stage 1 level 2"), "{text}");
    }
    // A transfer is told of with the page that it met.
    m.set_cd(&one, one.cd);
    let mut port = m.smmu.requester();
    port.begin().read(&Transaction::read(3, 0x5000), &mut [0; 0x1800]).unwrap_err();
    assert_eq!(take()[0].transaction.address, 0x6000);
    // Nothing is in the Event queue of these.
    m.events();
    m.set_ste(3, ste::new(ste::ABORT));
    m.read(3, 0x5000).unwrap_err();
    let text = take()[0].to_string();
    assert!(
        text.contains("abort without an event") && text.ends_with("aborted without an event\n"),
        "{text}"
    );
    assert_eq!(m.events(), []);
    m.set_ste(3, one.ste);
    let translated = Transaction { translated: true, ..Transaction::read(3, 0x5000) };
    m.go(&translated).unwrap_err();
    let fault = take().remove(0);
    assert_eq!(fault.now.unwrap_err().kind, EventKind::TranslForbidden);
    assert!(
        fault.to_string().starts_with("stream 0x3 reads 0x5000 (translated by ATS): aborted"),
        "{fault}"
    );
    m.set_cr0(reg::CMDQEN);
    m.w32(reg::GBPA, reg::GBPA_ABORT | reg::GBPA_UPDATE);
    m.read(3, 0x5000).unwrap_err();
    assert!(take()[0].to_string().contains("GBPA.ABORT = 1"));
}
