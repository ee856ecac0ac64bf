//! The mapper against a naive model: random calls, every kind of geometry, memory that
//! runs out.

mod model;

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::atomic::Ordering;

use model::{Leaf, Model, Watched, dump};
use pagetable::format::{AF, AP_READ_ONLY, AP_USER, DBM, PXN, UXN};
use pagetable::{
    Attributes, Gather, Geometry, Granule, MapError, Mapper, Reader, Run, Stage, TableMemory,
};
use proptest::prelude::*;

impl Model {
    fn at(&self, input: u64) -> Option<(u64, Leaf)> {
        let (&start, &leaf) = self.0.range(..=input).next_back()?;
        (input < start + leaf.size).then_some((start, leaf))
    }

    fn translate(&self, input: u64) -> Option<u64> {
        self.at(input).map(|(start, leaf)| leaf.output + (input - start))
    }

    /// The leaves that overlap a range.
    fn overlapping(&self, range: &Range<u64>) -> Vec<u64> {
        let first = self.at(range.start).map(|(start, _)| start);
        let others = self.0.range(range.clone()).map(|(&start, _)| start);
        first.into_iter().chain(others).collect::<BTreeSet<_>>().into_iter().collect()
    }

    fn cuts(&self, range: &Range<u64>) -> bool {
        let cut = |at| self.at(at).is_some_and(|(start, _)| start != at);
        cut(range.start) || cut(range.end)
    }

    /// Adds leaves one by one, each the largest that fits.
    fn map(&mut self, range: Range<u64>, output: u64, attributes: u64, sizes: u64) {
        for (input, leaf) in greedy(range, output, attributes, sizes) {
            self.0.insert(input, leaf);
        }
    }
}

/// The leaves of a mapping, each the largest that fits.
fn greedy(
    range: Range<u64>,
    output: u64,
    attributes: u64,
    sizes: u64,
) -> impl Iterator<Item = (u64, Leaf)> {
    let mut done = 0;
    let length = range.end - range.start;
    std::iter::from_fn(move || {
        if done == length {
            return None;
        }
        let (input, output) = (range.start + done, output + done);
        let log2 = (0..64).rev().find(|log2| {
            let size = 1u64 << log2;
            sizes & size != 0 && input % size == 0 && output % size == 0 && length - done >= size
        });
        let size = 1 << log2.expect("a range of whole leaves");
        done += size;
        Some((input, Leaf { size, output, attributes }))
    })
}

fn geometries() -> Vec<Geometry> {
    use Granule::{K4, K16, K64};
    let one = |granule, input, output, ds| Geometry::stage1(granule, input, output, ds).unwrap();
    let two = |granule, input, level, output, ds| {
        Geometry::stage2(granule, input, level, output, ds).unwrap()
    };
    vec![
        one(K4, 48, 48, false),
        one(K4, 39, 40, false),
        one(K4, 52, 52, true),
        one(K4, 22, 44, false),
        one(K16, 48, 48, false),
        one(K16, 47, 52, true),
        one(K16, 26, 48, false),
        one(K64, 48, 48, false),
        one(K64, 52, 52, false),
        two(K4, 40, 1, 40, false),
        two(K4, 43, 1, 48, false),
        two(K4, 34, 2, 48, false),
        two(K4, 52, 0, 52, true),
        two(K16, 40, 1, 48, false),
        two(K16, 40, 2, 48, false),
        two(K64, 46, 2, 52, false),
    ]
}

/// A place and a length, to be fitted to a geometry.
#[derive(Clone, Debug)]
struct Place {
    /// Which boundary it is near: level, multiple.
    level: i8,
    multiple: u64,
    /// Pages before or after.
    pages: i64,
    /// Length: pages, and entries of level 2 and level 1.
    length: [u64; 3],
}

impl Place {
    fn range(&self, geometry: &Geometry, unit: u64) -> Range<u64> {
        let span = |level: i8| 1u64 << geometry.shift(level.max(geometry.initial_level()));
        let limit = 1u64 << geometry.input_bits();
        let anchor = span(self.level) * self.multiple % limit;
        let start = anchor.wrapping_add_signed(self.pages * unit as i64) % limit;
        let [pages, twos, ones] = self.length;
        let length = pages * unit + twos * span(2) + ones * span(1);
        start..(start + length.max(unit)).min(limit)
    }
}

fn place() -> impl Strategy<Value = Place> {
    let length = prop_oneof![
        (0u64..40).prop_map(|n| [n, 0, 0]),
        (0u64..600, 0u64..3).prop_map(|(n, m)| [n * (n % 2), m, 0]),
        (0u64..20, 0u64..2, 0u64..3).prop_map(|(n, m, k)| [n, m, k]),
    ];
    (1i8..=3, 0u64..4, -40i64..40, length).prop_map(|(level, multiple, pages, length)| Place {
        level,
        multiple,
        pages,
        length,
    })
}

#[derive(Clone, Debug)]
struct Mapping {
    place: Place,
    /// Input and output are equally aligned to an entry of this level, and to a
    /// contiguous group with the flag.
    level: i8,
    group: bool,
    output: u64,
    sizes: u64,
    attributes: u64,
    /// How many tables there are.
    memory: Option<u64>,
}

#[derive(Clone, Debug)]
enum Call {
    Map(Mapping),
    Unmap(Place),
    /// Unmaps exactly the n-th leaf and some of its neighbours.
    UnmapLeaves(usize, usize),
    Protect(Place, u64),
    ProtectLeaves(usize, usize, u64),
    /// The hardware writes through the n-th leaf, to its k-th entry.
    Write(usize, usize),
    Dirty(Place, bool),
    ReadRun(Place),
}

fn call() -> impl Strategy<Value = Call> {
    let sizes = prop_oneof![Just(u64::MAX), Just(0x5000 | 1 << 16), any::<u64>()];
    let protection = any::<u64>().prop_map(|n| n & (AP_USER | AP_READ_ONLY | DBM | UXN | PXN) | AF);
    let protection = protection.boxed();
    let memory = prop_oneof![3 => Just(None), 1 => (0u64..6).prop_map(Some)];
    let map = (place(), 0i8..=3, any::<bool>(), any::<u64>(), sizes, protection.clone(), memory)
        .prop_map(|(place, level, group, output, sizes, attributes, memory)| {
            Call::Map(Mapping { place, level, group, output, sizes, attributes, memory })
        });
    prop_oneof![
        8 => map,
        3 => place().prop_map(Call::Unmap),
        3 => (any::<usize>(), 0usize..600).prop_map(|(n, k)| Call::UnmapLeaves(n, k)),
        1 => (place(), protection.clone()).prop_map(|(place, a)| Call::Protect(place, a)),
        2 => (any::<usize>(), 0usize..40, protection)
            .prop_map(|(n, k, a)| Call::ProtectLeaves(n, k, a)),
        4 => (any::<usize>(), any::<usize>()).prop_map(|(n, k)| Call::Write(n, k)),
        2 => (place(), any::<bool>()).prop_map(|(place, clear)| Call::Dirty(place, clear)),
        2 => place().prop_map(Call::ReadRun),
    ]
}

struct Test<'a> {
    geometry: Geometry,
    memory: &'a Watched,
    mapper: Mapper<&'a Watched>,
    model: Model,
    gather: Gather,
}

impl Test<'_> {
    fn page(&self) -> u64 {
        1 << self.geometry.granule().page_log2()
    }

    fn dirty(&self, attributes: u64) -> bool {
        let written = attributes & AP_READ_ONLY != 0;
        attributes & DBM != 0 && written == (self.geometry.stage() == Stage::Two)
    }

    fn run(&mut self, call: &Call) {
        match call {
            Call::Map(mapping) => self.map(mapping),
            Call::Unmap(place) => {
                let range = place.range(&self.geometry, self.page());
                self.unmap(range);
            }
            Call::UnmapLeaves(n, k) => {
                if let Some(range) = self.leaves(*n, *k) {
                    self.unmap(range);
                }
            }
            Call::Protect(place, attributes) => {
                let range = place.range(&self.geometry, self.page());
                self.protect(range, *attributes);
            }
            Call::ProtectLeaves(n, k, attributes) => {
                if let Some(range) = self.leaves(*n, *k) {
                    self.protect(range, *attributes);
                }
            }
            Call::Write(n, k) => self.write(*n, *k),
            Call::Dirty(place, clear) => {
                let range = place.range(&self.geometry, self.page());
                self.read_dirty(range, *clear);
            }
            Call::ReadRun(place) => {
                let range = place.range(&self.geometry, self.page());
                self.read_run(range.start + 0x123..range.end + 0x456);
                self.read_run(range);
            }
        }
        self.check();
    }

    /// From the n-th leaf, as far as the next k touch.
    fn leaves(&self, n: usize, k: usize) -> Option<Range<u64>> {
        let n = n % self.model.0.len().max(1);
        let mut rest = self.model.0.iter().skip(n);
        let (&start, leaf) = rest.next()?;
        let mut end = start + leaf.size;
        for (&next, leaf) in rest.take(k) {
            if next != end {
                break;
            }
            end += leaf.size;
        }
        Some(start..end)
    }

    fn map(&mut self, mapping: &Mapping) {
        let Mapping { ref place, level, group, output, sizes, attributes, memory } = *mapping;
        let geometry = self.geometry;
        let level = level.max(geometry.initial_level());
        let usable = |sizes: u64| {
            (geometry.initial_level()..=3)
                .filter(|&l| geometry.has_leaves(l) && sizes >> geometry.shift(l) & 1 != 0)
                .map(|l| 1u64 << geometry.shift(l))
                .min()
        };
        let sizes = if usable(sizes).is_some() { sizes } else { u64::MAX };
        let unit = usable(sizes).unwrap();
        let range = place.range(&geometry, unit);
        let range = range.start - range.start % unit..range.end - range.end % unit;
        let mut aligned = geometry.shift(level);
        if group {
            aligned += geometry.contiguous_log2(level).unwrap_or(0);
        }
        let limit = 1u64 << geometry.output_bits();
        let aligned = (1u64 << aligned.min(geometry.output_bits())).max(unit);
        // Often near the end of the lower address bits.
        let output = if output % 8 == 0 { (1u64 << 48).wrapping_sub(aligned) } else { output };
        let output = ((output % limit) & !(aligned - 1)).wrapping_add(range.start % aligned);

        // What groups there are to be used: those whose single leaves may be used.
        let mut offered = 0;
        for l in geometry.initial_level()..=3 {
            let shift = geometry.shift(l);
            if geometry.has_leaves(l) && sizes >> shift & 1 != 0 {
                offered |= 1 << shift;
                if let Some(log2) = geometry.contiguous_log2(l) {
                    offered |= sizes & 1 << (shift + log2);
                }
            }
        }
        let fits = output.checked_add(range.end - range.start).is_some_and(|end| end <= limit);
        let expensive = fits && greedy(range.clone(), output, 0, offered).nth(3000).is_some();
        if expensive || range.is_empty() {
            return;
        }
        self.memory.left.store(memory.unwrap_or(u64::MAX), Ordering::Relaxed);
        let result =
            self.mapper.map(range.clone(), output, Attributes::from_bits(attributes), sizes);
        self.memory.left.store(u64::MAX, Ordering::Relaxed);
        match result {
            Ok(()) => {
                assert!(fits && self.model.overlapping(&range).is_empty());
                self.model.map(range, output, attributes, offered);
            }
            Err(MapError::AlreadyMapped(at)) => {
                let hit = self.model.overlapping(&range);
                assert!(range.contains(&at));
                assert!(hit.iter().any(|start| start + self.model.0[start].size > at));
            }
            Err(MapError::Output(at)) => assert!(!fits && at == output),
            Err(MapError::OutOfMemory(_)) => {
                assert!(memory.is_some());
                assert!(self.model.overlapping(&range).is_empty());
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn unmap(&mut self, range: Range<u64>) {
        let result = self.mapper.unmap(range.clone(), &mut self.gather);
        if self.model.cuts(&range) {
            assert!(matches!(result, Err(MapError::CutsLeaf(_))), "{result:?}");
            return;
        }
        assert_eq!(result, Ok(()));
        for start in self.model.overlapping(&range) {
            let leaf = self.model.0.remove(&start).unwrap();
            let gathered = self.gather.range().expect("something was removed");
            assert!(gathered.start <= start && start + leaf.size <= gathered.end);
        }
    }

    fn protect(&mut self, range: Range<u64>, attributes: u64) {
        let result =
            self.mapper.protect(range.clone(), Attributes::from_bits(attributes), &mut self.gather);
        if self.model.cuts(&range) {
            assert!(matches!(result, Err(MapError::CutsLeaf(_))), "{result:?}");
            return;
        }
        let leaves = self.model.overlapping(&range);
        let covered: u64 = leaves.iter().map(|start| self.model.0[start].size).sum();
        if covered < range.end - range.start {
            let Err(MapError::NotMapped(at)) = result else { panic!("{result:?}") };
            assert_eq!(self.model.translate(at), None);
            return;
        }
        assert_eq!(result, Ok(()));
        for start in leaves {
            let was_dirty = self.dirty(self.model.0[&start].attributes);
            let mut new = attributes;
            if was_dirty && new & DBM != 0 && !self.dirty(new) {
                new ^= AP_READ_ONLY;
            }
            self.model.0.get_mut(&start).unwrap().attributes = new;
        }
    }

    fn write(&mut self, n: usize, k: usize) {
        let n = n % self.model.0.len().max(1);
        let Some((start, leaf)) = self.model.0.iter().nth(n).map(|(&s, &l)| (s, l)) else { return };
        let input = start + (k as u64 % 10_000 * self.page()) % leaf.size;
        let found = self.mapper.leaf(input).expect("a leaf");
        if found.descriptor & DBM == 0 || self.dirty(found.descriptor) {
            return;
        }
        let entry = &self.memory.table(found.descriptor_address, 1).unwrap()[0];
        entry.fetch_xor(AP_READ_ONLY, Ordering::Relaxed);
        // One dirty member makes a group dirty.
        if !self.dirty(leaf.attributes) {
            self.model.0.get_mut(&start).unwrap().attributes ^= AP_READ_ONLY;
        }
    }

    fn read_dirty(&mut self, range: Range<u64>, clear: bool) {
        let mut reported = Vec::new();
        let report = |part| reported.push(part);
        self.mapper.read_dirty(range.clone(), clear, &mut self.gather, report).unwrap();
        let mut expected: Vec<Range<u64>> = Vec::new();
        for start in self.model.overlapping(&range) {
            let leaf = self.model.0[&start];
            if !self.dirty(leaf.attributes) {
                continue;
            }
            let end = start + leaf.size;
            let part = start.max(range.start)..end.min(range.end);
            match expected.last_mut() {
                Some(last) if last.end == part.start => last.end = part.end,
                _ => expected.push(part),
            }
            if clear && range.start <= start && end <= range.end {
                self.model.0.get_mut(&start).unwrap().attributes ^= AP_READ_ONLY;
            }
        }
        assert_eq!(reported, expected);
    }

    fn read_run(&self, range: Range<u64>) {
        let run = self.mapper.read_run(range.clone());
        let Some(output) = self.model.translate(range.start) else {
            assert_eq!(run, None);
            return;
        };
        let mut at = range.start;
        while at < range.end && self.model.translate(at) == Some(output + (at - range.start)) {
            let (start, leaf) = self.model.at(at).unwrap();
            at = start + leaf.size;
        }
        assert_eq!(run, Some(Run { output, length: at.min(range.end) - range.start }));
    }

    /// Tables and model agree, to the last entry and the last table.
    fn check(&mut self) {
        let (mapped, tables) = dump(&self.geometry, self.mapper.table().base(), self.memory);
        assert_eq!(mapped, self.model);
        if self.gather.range().is_none() {
            assert_eq!(1 + tables, self.memory.out());
        }
        for (&start, leaf) in &self.model.0 {
            for at in [start, start + leaf.size - 1, start + leaf.size / 2] {
                let walked = self.mapper.table().walk(at, &mut Reader(self.memory)).unwrap();
                assert_eq!(walked.output, leaf.output + (at - start));
            }
            let before = start.checked_sub(1);
            for at in [before, Some(start + leaf.size)].into_iter().flatten() {
                let walked = self.mapper.leaf(at).map(|leaf| leaf.output);
                assert_eq!(walked, self.model.translate(at));
            }
        }
    }
}

fn script(geometry: Geometry, calls: &[Call]) {
    let memory = Watched::new(&geometry);
    let mut test = Test {
        geometry,
        memory: &memory,
        mapper: Mapper::new(geometry, &memory).unwrap(),
        model: Model::default(),
        gather: Gather::default(),
    };
    for (n, call) in calls.iter().enumerate() {
        test.run(call);
        if n % 3 == 2 {
            test.mapper.recycle(&mut test.gather);
            test.check();
        }
    }
    test.mapper.recycle(&mut test.gather);
    drop(test);
    assert_eq!(memory.out(), 0, "tables leaked");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn any_calls(n in 0usize..16, calls in prop::collection::vec(call(), 1..24)) {
        script(geometries()[n], &calls);
    }
}
