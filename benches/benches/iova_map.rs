//! `iova-map` against `BTreeMap`, `rangemap` and `nodit`: 4 KiB areas on an 8 KiB
//! stride with values that differ, so that nothing merges.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::hint::black_box;

use benches::{Goal, Race, Random, Report};
use iova_map::IovaMap;
use nodit::interval::ii;
use nodit::{Interval, NoditMap};
use rangemap::RangeInclusiveMap;

const STRIDE: u64 = 0x2000;
const SIZE: u64 = 0x1000;

type Value = [u64; 2];

/// First and last address of the n-th area.
fn area(n: u64) -> (u64, u64) {
    (n * STRIDE, n * STRIDE + (SIZE - 1))
}

struct Maps {
    areas: u64,
    ours: RefCell<IovaMap<Value>>,
    btree: RefCell<BTreeMap<u64, (u64, Value)>>,
    rangemap: RefCell<RangeInclusiveMap<u64, Value>>,
    nodit: RefCell<NoditMap<u64, Interval<u64>, Value>>,
}

impl Maps {
    fn new(areas: u64) -> Self {
        Self {
            areas,
            ours: RefCell::new(build_ours(areas)),
            btree: RefCell::new(build_btree(areas)),
            rangemap: RefCell::new(build_rangemap(areas)),
            nodit: RefCell::new(build_nodit(areas)),
        }
    }

    fn title(&self, what: &str) -> String {
        format!("{what}, {} areas", self.areas)
    }
}

fn build_ours(areas: u64) -> IovaMap<Value> {
    let mut map = IovaMap::new();
    for n in 0..areas {
        let (start, last) = area(n);
        map.insert(start, last, [n; 2]).expect("a free range");
    }
    map
}

fn build_btree(areas: u64) -> BTreeMap<u64, (u64, Value)> {
    let mut map = BTreeMap::new();
    for n in 0..areas {
        let (start, last) = area(n);
        map.insert(start, (last, [n; 2]));
    }
    map
}

fn build_rangemap(areas: u64) -> RangeInclusiveMap<u64, Value> {
    let mut map = RangeInclusiveMap::new();
    for n in 0..areas {
        let (start, last) = area(n);
        map.insert(start..=last, [n; 2]);
    }
    map
}

fn build_nodit(areas: u64) -> NoditMap<u64, Interval<u64>, Value> {
    let mut map = NoditMap::new();
    for n in 0..areas {
        let (start, last) = area(n);
        map.insert_strict(ii(start, last), [n; 2]).expect("a free range");
    }
    map
}

/// Calls `f` with `count` areas in random order.
fn scattered(areas: u64, count: u64, seed: &RefCell<Random>, mut f: impl FnMut(u64)) {
    let mut random = seed.borrow_mut();
    for _ in 0..count {
        f(random.below(areas));
    }
}

fn lookup(report: &mut Report, maps: &Maps) {
    const COUNT: u64 = 100_000;
    let seed = RefCell::new(Random::new(1));
    let each = |f: &mut dyn FnMut(u64) -> u64| {
        let mut sum = 0u64;
        scattered(maps.areas, COUNT, &seed, |n| {
            sum = sum.wrapping_add(f(n * STRIDE + 0x123));
        });
        black_box(sum);
    };
    let mut race = Race::new(maps.title("lookup of an address"), COUNT);
    race.enter("iova-map", || {
        let map = maps.ours.borrow();
        each(&mut |addr| map.get(addr).map_or(0, |area| area.value[0] + area.last));
    });
    race.enter("BTreeMap", || {
        let map = maps.btree.borrow();
        each(&mut |addr| {
            let area = map.range(..=addr).next_back();
            let area = area.filter(|(_, (last, _))| *last >= addr);
            area.map_or(0, |(_, (last, value))| value[0] + last)
        });
    });
    race.enter("rangemap", || {
        let map = maps.rangemap.borrow();
        each(&mut |addr| {
            map.get_key_value(&addr).map_or(0, |(range, value)| value[0] + range.end())
        });
    });
    race.enter("nodit", || {
        let map = maps.nodit.borrow();
        each(&mut |addr| {
            map.get_key_value_at_point(&addr).map_or(0, |(range, value)| value[0] + range.end())
        });
    });
    if maps.areas >= 1_000_000 {
        race.goal("iova-map", Goal::FasterThan("BTreeMap", 1.5));
    }
    report.run(race);
}

fn overlap(report: &mut Report, maps: &Maps) {
    const COUNT: u64 = 100_000;
    let seed = RefCell::new(Random::new(2));
    // Every second query lies in a hole.
    let each = |f: &mut dyn FnMut(u64, u64) -> bool| {
        let mut hits = 0u64;
        scattered(maps.areas * 2, COUNT, &seed, |n| {
            let start = n * SIZE;
            hits += u64::from(f(start, start + SIZE - 1));
        });
        black_box(hits);
    };
    let mut race = Race::new(maps.title("does a range overlap"), COUNT);
    race.enter("iova-map", || {
        let map = maps.ours.borrow();
        each(&mut |start, last| map.overlaps(start, last));
    });
    race.enter("BTreeMap", || {
        let map = maps.btree.borrow();
        each(&mut |start, last| {
            let below = map.range(..=last).next_back();
            below.is_some_and(|(_, (end, _))| *end >= start)
        });
    });
    race.enter("rangemap", || {
        let map = maps.rangemap.borrow();
        each(&mut |start, last| map.overlaps(&(start..=last)));
    });
    race.enter("nodit", || {
        let map = maps.nodit.borrow();
        each(&mut |start, last| map.overlaps(&ii(start, last)));
    });
    report.run(race);
}

fn remove_insert(report: &mut Report, maps: &Maps) {
    const COUNT: u64 = 100_000;
    let seed = RefCell::new(Random::new(3));
    let each = |f: &mut dyn FnMut(u64, u64, u64)| {
        scattered(maps.areas, COUNT, &seed, |n| {
            let (start, last) = area(n);
            f(start, last, n);
        });
    };
    let mut race = Race::new(maps.title("remove + insert"), COUNT);
    race.enter("iova-map", || {
        let mut map = maps.ours.borrow_mut();
        each(&mut |start, last, n| {
            map.remove(start).expect("there");
            map.insert(start, last, [n; 2]).expect("free");
        });
    });
    race.enter("BTreeMap, checked", || {
        let mut map = maps.btree.borrow_mut();
        each(&mut |start, last, n| {
            map.remove(&start).expect("there");
            let below = map.range(..=last).next_back();
            assert!(below.is_none_or(|(_, (end, _))| *end < start));
            map.insert(start, (last, [n; 2]));
        });
    });
    race.enter("rangemap", || {
        let mut map = maps.rangemap.borrow_mut();
        each(&mut |start, last, n| {
            map.remove(start..=last);
            map.insert(start..=last, [n; 2]);
        });
    });
    race.enter("nodit", || {
        let mut map = maps.nodit.borrow_mut();
        each(&mut |start, last, n| {
            let range = ii(start, last);
            assert_eq!(map.remove_overlapping(&range).count(), 1);
            map.insert_strict(range, [n; 2]).expect("free");
        });
    });
    if maps.areas >= 1_000_000 {
        race.goal("iova-map", Goal::FasterThan("BTreeMap, checked", 2.0));
        race.goal("iova-map", Goal::FasterThan("nodit", 2.0));
        race.goal("iova-map", Goal::FasterThan("rangemap", 3.0));
    }
    report.run(race);
}

fn first_aligned(start: u64, last: u64, len: u64, align: u64) -> Option<u64> {
    let answer = start.checked_next_multiple_of(align)?;
    (answer <= last && last - answer >= len - 1).then_some(answer)
}

fn gap_scan(report: &mut Report, maps: &Maps) {
    const LEN: u64 = 0x1_0000;
    let end = maps.areas * STRIDE + (1 << 30);
    let expected = (maps.areas * STRIDE).next_multiple_of(LEN);
    // The scans are too slow to repeat as often as a search. Both are reported
    // per search.
    let mut race = Race::new(maps.title("aligned 64 KiB, free only at the end"), 1);
    let ours = RefCell::new(&maps.ours);
    race.enter("iova-map, 1000 searches", || {
        let mut map = ours.borrow().borrow_mut();
        for _ in 0..1000 {
            let found = map.find_gap(black_box(LEN), LEN, 0, 0, end);
            assert_eq!(found, Some(expected));
        }
    });
    race.enter("BTreeMap scan", || {
        let map = maps.btree.borrow();
        let mut free = 0;
        let mut found = None;
        for (&start, &(last, _)) in map.iter() {
            found = start.checked_sub(1).and_then(|end| first_aligned(free, end, LEN, LEN));
            if found.is_some() {
                break;
            }
            free = last + 1;
        }
        let found = found.or_else(|| first_aligned(free, end, LEN, LEN));
        assert_eq!(found, Some(expected));
    });
    race.enter("rangemap gaps()", || {
        let map = maps.rangemap.borrow();
        let found =
            map.gaps(&(0..=end)).find_map(|gap| first_aligned(*gap.start(), *gap.end(), LEN, LEN));
        assert_eq!(found, Some(expected));
    });
    race.enter("nodit gaps_trimmed()", || {
        let map = maps.nodit.borrow();
        let found = map
            .gaps_trimmed(&ii(0, end))
            .find_map(|gap| first_aligned(*gap.start(), *gap.end(), LEN, LEN));
        assert_eq!(found, Some(expected));
    });
    if maps.areas >= 1_000_000 {
        // A thousand searches against one.
        race.goal("iova-map, 1000 searches", Goal::FasterThan("rangemap gaps()", 10.0));
        race.goal("iova-map, 1000 searches", Goal::FasterThan("nodit gaps_trimmed()", 10.0));
    }
    report.run(race);
}

fn build(report: &mut Report, areas: u64) {
    let mut race = Race::new(format!("ascending inserts, {areas} areas"), areas);
    race.enter("iova-map", || drop(black_box(build_ours(areas))));
    race.enter("BTreeMap", || drop(black_box(build_btree(areas))));
    race.enter("rangemap", || drop(black_box(build_rangemap(areas))));
    race.enter("nodit", || drop(black_box(build_nodit(areas))));
    report.run(race);
}

/// A map like one of a long-running guest: areas of 4 to 64 KiB, every fourth freed
/// again, in no order.
fn fragmented(areas: u64) -> (IovaMap<Value>, Vec<(u64, u64)>) {
    let mut random = Random::new(4);
    let mut map = IovaMap::new();
    let mut live = Vec::new();
    for n in 0..areas * 4 / 3 {
        let size = SIZE << random.below(5);
        let align = size;
        let start = map.find_gap(size, align, 0, 0x1000, u64::MAX).expect("endless space");
        map.insert(start, start + size - 1, [n; 2]).expect("free");
        live.push((start, size));
    }
    for _ in 0..areas / 3 {
        let n = random.below(live.len() as u64) as usize;
        map.remove(live.swap_remove(n).0).expect("there");
    }
    (map, live)
}

/// Frees an area and allocates one of another size, over and over.
fn churn(map: &mut IovaMap<Value>, live: &mut [(u64, u64)], random: &mut Random, count: u64) {
    for n in 0..count {
        let slot = &mut live[random.below(live.len() as u64) as usize];
        map.remove(slot.0).expect("there");
        let size = SIZE << random.below(5);
        let start = map.find_gap(size, size, 0, 0x1000, u64::MAX).expect("endless space");
        map.insert(start, start + size - 1, [n; 2]).expect("free");
        *slot = (start, size);
    }
}

fn allocation(report: &mut Report) {
    const COUNT: u64 = 20_000;
    let (mut small, mut small_live) = fragmented(1000);
    let (mut large, mut large_live) = fragmented(1_000_000);
    let mut random = [Random::new(5), Random::new(5)];
    let [first, second] = &mut random;
    let mut race = Race::new("free + aligned allocation of 4 to 64 KiB, fragmented", COUNT);
    race.enter("iova-map, 1000 areas", || {
        churn(&mut small, &mut small_live, first, COUNT);
    });
    race.enter("iova-map, 1000000 areas", || {
        churn(&mut large, &mut large_live, second, COUNT);
    });
    race.goal("iova-map, 1000000 areas", Goal::Within("iova-map, 1000 areas", 10.0));
    report.run(race);

    let (mut small, _) = fragmented(1000);
    let (mut large, _) = fragmented(1_000_000);
    let windows = [1000u64, 1_000_000].map(|areas| areas * 0x4000);
    let mut random = Random::new(6);
    let mut race = Race::new("search only, 4 to 64 KiB from a random address on", COUNT);
    let random = RefCell::new(&mut random);
    let search = |map: &mut IovaMap<Value>, window: u64| {
        let mut random = random.borrow_mut();
        for _ in 0..COUNT {
            let size = SIZE << random.below(5);
            let lo = random.below(window >> 12) << 12;
            black_box(map.find_gap(size, size, 0, lo, u64::MAX));
        }
    };
    race.enter("iova-map, 1000 areas", || search(&mut small, windows[0]));
    race.enter("iova-map, 1000000 areas", || search(&mut large, windows[1]));
    race.goal("iova-map, 1000000 areas", Goal::Within("iova-map, 1000 areas", 10.0));
    report.run(race);
}

fn main() {
    let mut report = Report::new("IOVA maps", 9);
    for areas in [1000, 1_000_000] {
        let maps = Maps::new(areas);
        lookup(&mut report, &maps);
        overlap(&mut report, &maps);
        remove_insert(&mut report, &maps);
        gap_scan(&mut report, &maps);
    }
    allocation(&mut report);
    build(&mut report, 1_000_000);
    #[allow(clippy::cast_precision_loss)]
    let bytes = build_ours(1_000_000).memory_usage() as f64 / 1e6;
    report.quantity("memory, 1000000 ascending areas", bytes, "bytes/area", Some(36.0));
    report.finish();
}
