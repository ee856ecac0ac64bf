//! The file as those who read it see it.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Condvar, Mutex};
use std::thread;
use std::time::Instant;

use proptest::prelude::*;
use serde_json::Value;

use crate::{Args, HEADER, Summary, Trace};

/// Runs `tell` beside a writer; the events, and what the trace says of itself.
fn events_of(limit: usize, tell: impl FnOnce(&Trace)) -> (Vec<Value>, Summary) {
    let (trace, mut file) = (Trace::new("test", limit), Vec::new());
    let summary = thread::scope(|scope| {
        scope.spawn(|| trace.write_to(&mut file).unwrap());
        tell(&trace);
        trace.finish().unwrap()
    });
    (parse(&file), summary)
}

/// As a reader does it who closes the bracket.
fn parse(file: &[u8]) -> Vec<Value> {
    let lines = String::from_utf8(file.to_vec()).unwrap();
    for line in lines.lines() {
        let event = line.strip_suffix(',').expect("a comma after each event");
        serde_json::from_str::<Value>(event).expect("an event on each line");
    }
    let whole = format!("{HEADER}{}]", lines.strip_suffix(",\n").unwrap_or_default());
    serde_json::from_str(&whole).unwrap()
}

fn is_metadata(event: &Value) -> bool {
    event["ph"] == "M"
}

/// The names of a track's rows, from what the file says before their first events.
fn names(events: &[Value]) -> BTreeMap<u64, String> {
    let mut names = BTreeMap::new();
    for event in events {
        let tid = event["tid"].as_u64().unwrap();
        if event["name"] == "thread_name" && is_metadata(event) {
            names.insert(tid, event["args"]["name"].as_str().unwrap().to_owned());
        }
        assert!(names.contains_key(&tid) || is_metadata(event), "{event} is on no track");
    }
    names
}

/// Nanoseconds: what JSON's numbers make of the digits is near enough.
fn nanoseconds(number: &Value) -> u64 {
    (number.as_f64().unwrap() * 1000.0).round() as u64
}

/// On no row does a slice begin before the one before it has ended, and instants are in order.
fn check_order(events: &[Value]) {
    let (mut ends, mut instants) = (BTreeMap::new(), BTreeMap::new());
    for event in events.iter().filter(|event| !is_metadata(event)) {
        let (tid, start) = (event["tid"].as_u64().unwrap(), nanoseconds(&event["ts"]));
        let (last, end) = match event["ph"].as_str() {
            Some("X") => (ends.insert(tid, start + nanoseconds(&event["dur"])), start),
            _ => (instants.insert(tid, start), start),
        };
        assert!(last.is_none_or(|last| last <= end), "{event} begins before {last:?}");
    }
}

#[test]
fn an_event_has_its_name_its_track_and_its_arguments() {
    let (events, summary) = events_of(1 << 16, |trace| {
        let thread = trace.thread(7, "vmm", 8, "vcpu0");
        let args = Args::new().hex("iova", u64::MAX).int("errno", -1).text("file", "/dev/iommu");
        trace.slice(&thread, "ioctl", "IOMMU_IOAS_MAP", Instant::now(), &args);
        let list = Args::new().list("commands", ["a".to_owned(), "b".to_owned()]);
        trace.instant(&thread, "x", "y", &list);
    });
    assert_eq!(summary, Summary { events: 2, ..Summary::default() });
    assert_eq!(names(&events), BTreeMap::from([(8, "vcpu0".to_owned())]));
    let [slice, instant] = [&events[2], &events[3]];
    assert_eq!((&slice["ph"], &slice["name"]), (&"X".into(), &"IOMMU_IOAS_MAP".into()));
    assert_eq!((slice["pid"].as_u64(), slice["tid"].as_u64()), (Some(7), Some(8)));
    let args = serde_json::json!({"iova": "0xffffffffffffffff", "errno": -1, "file": "/dev/iommu"});
    assert_eq!(slice["args"], args);
    assert_eq!(instant["args"]["commands"], serde_json::json!(["a", "b"]));
    check_order(&events);
}

#[test]
fn what_overlaps_is_on_lanes_that_have_names() {
    let (events, _) = events_of(1 << 16, |trace| {
        let device = trace.track("nic");
        let outer = Instant::now();
        let inner = Instant::now();
        trace.slice(&device, "dma", "inner", inner, &Args::new());
        trace.slice(&device, "dma", "outer", outer, &Args::new());
        trace.slice(&device, "dma", "after", Instant::now(), &Args::new());
    });
    let names = names(&events);
    let lane = |name: &str| {
        let event = events.iter().find(|event| event["name"] == name).unwrap();
        names[&event["tid"].as_u64().unwrap()].as_str()
    };
    assert_eq!((lane("inner"), lane("outer"), lane("after")), ("nic", "nic (2)", "nic"));
    check_order(&events);
}

proptest! {
    #[test]
    fn no_name_breaks_the_file(name in any::<String>(), key in any::<String>(), value in any::<String>()) {
        let (events, _) = events_of(1 << 20, |trace| {
            let track = trace.track(&name);
            trace.instant(&track, &key, &name, &Args::new().text(&key, &value));
        });
        let event = events.last().unwrap();
        prop_assert_eq!(event["name"].as_str(), Some(&*name));
        prop_assert_eq!(event["args"][&key].as_str(), Some(&*value));
    }
}

#[test]
fn endless_names_are_cut() {
    let endless = "ä\"\n".repeat(100_000);
    let (events, summary) = events_of(1 << 16, |trace| {
        let track = trace.track(&endless);
        let list = (0..100_000).map(|_| endless.clone());
        trace.instant(&track, &endless, &endless, &Args::new().text("text", &endless));
        trace.instant(&track, "x", "list", &Args::new().list("list", list.take(2000)));
    });
    assert!(
        events.iter().any(|event| event["args"]["text"].as_str().is_some_and(|t| t.ends_with('…')))
    );
    // More than the buffer holds: dropped, and counted.
    assert_eq!((summary.events, summary.dropped), (1, 1));
}

/// A file that takes nothing until it is let.
#[derive(Default)]
struct Slow {
    state: Mutex<(bool, Vec<u8>)>,
    changed: Condvar,
}

impl io::Write for &Slow {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.state.lock().unwrap();
        while !state.0 {
            state = self.changed.wait(state).unwrap();
        }
        state.1.extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_slow_disk_holds_up_nobody_and_what_is_dropped_is_told() {
    let (trace, slow) = (Trace::new("test", 4096), Slow::default());
    let summary = thread::scope(|scope| {
        scope.spawn(|| trace.write_to(&slow).unwrap());
        let track = trace.track("t");
        for _ in 0..1000 {
            trace.instant(&track, "x", "told", &Args::new());
        }
        slow.state.lock().unwrap().0 = true;
        slow.changed.notify_all();
        trace.flush().unwrap();
        trace.instant(&track, "x", "after", &Args::new());
        trace.finish().unwrap()
    });
    let events = parse(&slow.state.lock().unwrap().1);
    let count = |name: &str| events.iter().filter(|event| event["name"] == name).count() as u64;
    assert_eq!(summary.events, count("told") + count("after"));
    assert_eq!(summary.events + summary.dropped, 1001);
    assert!(summary.dropped > 0 && count("after") == 1);
    let mentioned = events.iter().filter_map(|event| event["args"]["count"].as_u64()).sum::<u64>();
    assert_eq!(mentioned, summary.dropped);
    names(&events);
    check_order(&events);
}

#[test]
fn a_full_disk_ends_the_trace_and_is_told() {
    struct Full;
    impl io::Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let trace = Trace::new("test", 4096);
    let summary = thread::scope(|scope| {
        let writer = scope.spawn(|| trace.write_to(Full));
        let track = trace.track("t");
        trace.instant(&track, "x", "first", &Args::new());
        assert!(writer.join().unwrap().is_err());
        trace.instant(&track, "x", "second", &Args::new());
        trace.finish().unwrap()
    });
    assert_eq!((summary.events, summary.dropped), (0, 2));
    assert!(summary.error.is_some());
}

#[test]
fn many_threads_lose_nothing_uncounted() {
    let (threads, each) = (4, 5000);
    let (events, summary) = events_of(20_000, |trace| {
        let shared = trace.track("shared");
        thread::scope(|scope| {
            for number in 0..threads {
                let shared = &shared;
                scope.spawn(move || {
                    let own = trace.thread(1, "p", number + 1, "own");
                    for _ in 0..each {
                        let started = Instant::now();
                        trace.instant(&own, "x", "instant", &Args::new().int("n", number.into()));
                        trace.slice(shared, "x", "slice", started, &Args::new());
                    }
                });
            }
        });
    });
    let told = events.iter().filter(|event| event["cat"] == "x").count() as u64;
    assert_eq!(told, summary.events);
    assert_eq!(summary.events + summary.dropped, u64::from(2 * threads * each));
    let mentioned = events.iter().filter_map(|event| event["args"]["count"].as_u64()).sum::<u64>();
    assert_eq!(mentioned, summary.dropped);
    names(&events);
    check_order(&events);
}
