//! The table of objects: which physical range names which bytes of what.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use host::{Fault, FilePart, PAGE_SIZE, PhysRun};

use crate::buddy::{Buddy, MIN_ORDER};
use crate::segment::Segment;

/// What an object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Key {
    /// Shared memory: the file's device and inode.
    Inode { dev: (u32, u32), inode: u64 },
    /// Another process's private memory, by a number of its address space;
    /// offsets are virtual addresses.
    Private { mm: u64 },
}

impl Key {
    /// Largest block of physical addresses that the object gets at once.
    fn max_order(self) -> u32 {
        match self {
            Self::Inode { .. } => 40,
            // An address space is almost all holes.
            Self::Private { .. } => 30,
        }
    }
}

#[derive(Debug, Default)]
struct Object {
    /// Pins, in pages.
    pins: AtomicU64,
    /// Blocks by the offset they begin at: order and physical address. Offset
    /// and address are both aligned to the block's size.
    blocks: BTreeMap<u64, (u32, u64)>,
    segments: Vec<Segment>,
}

impl Object {
    /// The block that holds `offset`: its range of offsets and its address.
    fn block_at(&self, offset: u64) -> Option<(Range<u64>, u64)> {
        let (&start, &(order, pa)) = self.blocks.range(..=offset).next_back()?;
        let range = start..start + (1 << order);
        range.contains(&offset).then_some((range, pa))
    }

    fn segment(&self, range: &Range<u64>, write: bool) -> Option<&Segment> {
        self.segments.iter().find(|segment| segment.covers(range, write))
    }

    /// The physical runs of `range`, if all of it has addresses and backing.
    fn runs(&self, range: &Range<u64>, write: bool) -> Option<Vec<PhysRun>> {
        self.segment(range, write)?;
        let mut runs = Vec::with_capacity(1);
        let mut at = range.start;
        while at < range.end {
            let (block, pa) = self.block_at(at)?;
            let end = block.end.min(range.end);
            runs.push(PhysRun { pa: pa + (at - block.start), len: end - at });
            at = end;
        }
        Some(runs)
    }
}

#[derive(Debug)]
pub(crate) struct Table {
    buddy: Buddy,
    objects: HashMap<Key, Object>,
    /// Blocks by physical address: order, whose, and the offset they begin at.
    by_pa: BTreeMap<u64, (u32, Key, u64)>,
}

/// The stretch of one object that a physical range begins with.
struct Hit<'a> {
    key: Key,
    object: &'a Object,
    offsets: Range<u64>,
}

impl Table {
    pub(crate) fn new() -> Self {
        Self { buddy: Buddy::new(), objects: HashMap::new(), by_pa: BTreeMap::new() }
    }

    /// Pins `range` of an object that is known in full; `None` if not.
    pub(crate) fn pin_known(
        &self,
        key: Key,
        range: &Range<u64>,
        write: bool,
    ) -> Option<Vec<PhysRun>> {
        let object = self.objects.get(&key)?;
        let runs = object.runs(range, write)?;
        object.pins.fetch_add((range.end - range.start) / PAGE_SIZE, Ordering::Relaxed);
        Some(runs)
    }

    /// Pins `range`, giving it addresses (of an object of at least `size`
    /// bytes) and the backing `segment` where it has none yet. `None` if
    /// physical addresses have run out or nothing backs the range.
    pub(crate) fn pin_new(
        &mut self,
        key: Key,
        range: &Range<u64>,
        write: bool,
        size: u64,
        segment: Option<Segment>,
    ) -> Option<Vec<PhysRun>> {
        let object = self.objects.entry(key).or_default();
        if object.segment(range, write).is_none() {
            object.segments.extend(segment);
        }
        let mut at = range.start;
        let mut full = false;
        while at < range.end {
            if let Some((block, _)) = object.block_at(at) {
                at = block.end;
                continue;
            }
            let wanted = size.max(range.end).next_power_of_two().ilog2();
            let order = free_order(object, at, wanted.clamp(MIN_ORDER, key.max_order()));
            let Some(pa) = self.buddy.alloc(order) else {
                full = true;
                break;
            };
            let start = at & !((1 << order) - 1);
            object.blocks.insert(start, (order, pa));
            self.by_pa.insert(pa, (order, key, start));
            at = start + (1 << order);
        }
        let runs = if full { None } else { self.pin_known(key, range, write) };
        if runs.is_none() {
            self.remove_if_unpinned(key);
        }
        runs
    }

    /// Takes back pins of `run`; the objects that now may have none left.
    pub(crate) fn unpin(&self, run: PhysRun) -> Vec<Key> {
        let mut unpinned = Vec::new();
        let mut at = run.pa;
        let end = run.pa.saturating_add(run.len);
        while let Some(hit) = self.hit(at, end) {
            let len = hit.offsets.end - hit.offsets.start;
            let pages = len.div_ceil(PAGE_SIZE);
            let sub = |pins: u64| Some(pins.saturating_sub(pages));
            let before = hit.object.pins.fetch_update(Ordering::Relaxed, Ordering::Relaxed, sub);
            if before.is_ok_and(|pins| pins <= pages) {
                unpinned.push(hit.key);
            }
            at += len;
        }
        unpinned
    }

    /// Forgets an object without pins. The caller drops its backing, best
    /// after the lock.
    pub(crate) fn remove_if_unpinned(&mut self, key: Key) -> Option<Vec<Segment>> {
        if self.objects.get(&key)?.pins.load(Ordering::Relaxed) != 0 {
            return None;
        }
        let object = self.objects.remove(&key)?;
        for (order, pa) in object.blocks.values() {
            self.by_pa.remove(pa);
            self.buddy.free(*pa, *order);
        }
        Some(object.segments)
    }

    pub(crate) fn read(&self, pa: u64, buf: &mut [u8]) -> Result<(), Fault> {
        self.access(pa, buf.len(), false, |segment, offset, part| {
            segment.read(offset, &mut buf[part])
        })
    }

    pub(crate) fn write(&self, pa: u64, buf: &[u8]) -> Result<(), Fault> {
        self.access(pa, buf.len(), true, |segment, offset, part| segment.write(offset, &buf[part]))
    }

    /// Writes the first of these bytes; how many.
    pub(crate) fn write_from(&self, pa: u64, from: FilePart<'_>) -> usize {
        let mut done = 0;
        // Where it ends early, there is nothing to say that the long way does not find out.
        let _ = self.access(pa, from.len, true, |segment, offset, part| {
            done += segment.write_from(offset, from.part(part.clone()));
            if done == part.end { Ok(()) } else { Err(Fault { va: pa }) }
        });
        done
    }

    pub(crate) fn compare_exchange(&self, pa: u64, current: u64, new: u64) -> Result<u64, Fault> {
        let mut seen = Err(Fault { va: pa });
        self.access(pa, size_of::<u64>(), true, |segment, offset, part| {
            if part.len() == size_of::<u64>() {
                seen = segment.compare_exchange(offset, current, new);
            }
            Ok(())
        })?;
        seen
    }

    pub(crate) fn pinned_pages(&self) -> u64 {
        self.objects.values().map(|object| object.pins.load(Ordering::Relaxed)).sum()
    }

    /// Every backing there is.
    pub(crate) fn segments(&self) -> impl Iterator<Item = &Segment> {
        self.objects.values().flat_map(|object| &object.segments)
    }

    fn access(
        &self,
        pa: u64,
        len: usize,
        write: bool,
        mut copy: impl FnMut(&Segment, u64, Range<usize>) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let end = pa.checked_add(len as u64).ok_or(Fault { va: pa })?;
        let mut at = pa;
        while at < end {
            let hit = self.hit(at, end).ok_or(Fault { va: at })?;
            // Segments need not be as long as blocks: go as far as one reaches.
            let start = hit.offsets.start;
            let usable = |s: &&Segment| s.range.contains(&start) && (s.writable || !write);
            let segments = hit.object.segments.iter().filter(usable);
            let segment = segments.max_by_key(|s| s.range.end).ok_or(Fault { va: at })?;
            let len = segment.range.end.min(hit.offsets.end) - start;
            let from = (at - pa) as usize;
            copy(segment, start, from..from + len as usize)?;
            at += len;
        }
        Ok(())
    }

    fn hit(&self, pa: u64, end: u64) -> Option<Hit<'_>> {
        if pa >= end {
            return None;
        }
        let (&block, &(order, key, start)) = self.by_pa.range(..=pa).next_back()?;
        let within = pa - block;
        if within >= 1 << order {
            return None;
        }
        let len = (end - pa).min((1 << order) - within);
        let object = self.objects.get(&key)?;
        Some(Hit { key, object, offsets: start + within..start + within + len })
    }
}

/// The largest order, at most `wanted`, of an aligned block around `offset`
/// that meets no other block.
fn free_order(object: &Object, offset: u64, wanted: u32) -> u32 {
    let meets = |order: u32| {
        let start = offset & !((1 << order) - 1);
        let end = start + (1 << order);
        let before = object.blocks.range(..end).next_back();
        before.is_some_and(|(&s, &(o, _))| s + (1 << o) > start)
    };
    (MIN_ORDER..=wanted).rev().find(|&order| !meets(order)).unwrap_or(MIN_ORDER)
}

#[cfg(test)]
#[path = "object_tests.rs"]
mod tests;
