//! What an observer is told, and when.

use std::mem::take;
use std::sync::{Arc, Mutex};

use smmuv3::wire::PageRequest;
use smmuv3::{Observation, Options, Transaction};

use crate::common::raw::{Words, cmd};
use crate::common::{EVENTQ_LOG2, Machine};

#[derive(Clone, Default)]
struct Told(Arc<Mutex<Vec<String>>>);

impl Told {
    fn of(m: &Machine) -> Self {
        let told = Self::default();
        let sink = told.0.clone();
        let observer = move |observation: Observation<'_>| {
            let text = match observation {
                Observation::Command(command) => command.name().to_owned(),
                Observation::Waits(command) => format!("{} waits", command.name()),
                Observation::CommandError(error) => format!("error {error:?}"),
                Observation::Event(event) => format!("{} {:#x}", event.kind, event.input_address),
                Observation::EventLost(event) => format!("lost {}", event.kind),
                Observation::PageRequest(request) => format!("request {}", request.prg_index),
                Observation::GlobalError(gerror) => format!("GERROR {:#x}", gerror.0),
                other => format!("{other:?}"),
            };
            sink.lock().unwrap().push(text);
        };
        m.smmu.observe(observer).unwrap();
        assert!(m.smmu.observe(|_: Observation<'_>| {}).is_err(), "one is enough");
        told
    }

    fn take(&self) -> Vec<String> {
        take(&mut self.0.lock().unwrap())
    }
}

#[test]
fn commands_are_told_when_they_are_consumed() {
    let m = Machine::everything();
    let told = Told::of(&m);
    m.run(&[cmd::cfgi_ste(3), cmd::new(cmd::TLBI_NSNH_ALL)]);
    assert_eq!(told.take(), ["CMD_CFGI_STE", "CMD_TLBI_NSNH_ALL", "CMD_SYNC"]);
    m.submit(&[cmd::cfgi_ste(3), Words([0, 0]), cmd::sync()]);
    assert_eq!(told.take(), ["CMD_CFGI_STE", "error Ill", "GERROR 0x1"]);
}

#[test]
fn a_sync_that_waits_is_told_before_it_is_done() {
    let mut m = Machine::everything();
    let one = m.stage1(3, 1);
    m.map(&one.tables, 0x5000, 0x30_0000);
    let told = Told::of(&m);
    let smmu = m.smmu.clone();
    let mut port = smmu.requester();
    let mut transfer = port.begin();
    transfer.translate(&Transaction::read(3, 0x5000)).unwrap();
    m.submit(&[cmd::cfgi_all(), cmd::sync()]);
    assert!(!m.idle());
    let waiting = told.take();
    assert_eq!(waiting[..2], ["CMD_CFGI_ALL", "CMD_SYNC waits"]);
    assert!(waiting[2..].iter().all(|told| told == "CMD_SYNC waits"));
    drop(transfer);
    assert_eq!(told.take(), ["CMD_SYNC"]);
}

#[test]
fn events_and_page_requests_are_told_lost_ones_too() {
    let mut m = Machine::booted(Options { merge_events: false, ..Options::everything() });
    m.stage1(3, 1);
    let told = Told::of(&m);
    m.read(3, 0x5000).unwrap_err();
    m.smmu.page_request(PageRequest { sid: 3, prg_index: 7, ..PageRequest::default() });
    assert_eq!(told.take(), ["F_TRANSLATION 0x5000", "request 7"]);
    for _ in 0..1 << EVENTQ_LOG2 {
        m.read(3, 0x6000).unwrap_err();
    }
    let events = told.take();
    assert_eq!(events.len(), 1 << EVENTQ_LOG2);
    assert_eq!(events.last().unwrap(), "lost F_TRANSLATION");
}
