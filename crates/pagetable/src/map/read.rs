//! Reading mappings back.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Lost, Mapper};
use crate::format::{TABLE, VALID};
use crate::geometry::{LAST_LEVEL, low_bits};
use crate::memory::TableMemory;
use crate::walk::{Descriptors, Leaf};

/// Input addresses that translate to consecutive output addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    /// The first output address.
    pub output: u64,
    /// How many bytes.
    pub length: u64,
}

/// Lets a [`Table`](crate::Table) be walked in [`TableMemory`].
#[derive(Clone, Copy, Debug)]
pub struct Reader<M>(pub M);

impl<M: TableMemory> Descriptors for Reader<M> {
    type Error = Lost;

    #[inline]
    fn read(&mut self, address: u64, _level: i8) -> Result<u64, Lost> {
        match self.0.table(address, 1) {
            Some([entry, ..]) => Ok(entry.load(Ordering::Acquire)),
            _ => Err(Lost(address)),
        }
    }
}

impl<M: TableMemory> Mapper<M> {
    /// The leaf that translates `input`, if any.
    pub fn leaf(&self, input: u64) -> Option<Leaf> {
        self.table.walk(input, &mut Reader(&self.memory)).ok()
    }

    /// The longest run of consecutive output addresses that starts with `range` and
    /// ends no later, whatever the leaves' sizes and attributes. `None` if nothing is
    /// mapped at the start.
    ///
    /// Neither end needs alignment, and the end may lie beyond the input size.
    pub fn read_run(&self, range: Range<u64>) -> Option<Run> {
        let geometry = self.geometry();
        let end = range.end.min(1 << geometry.input_bits());
        if range.start >= end {
            return None;
        }
        let mut input = range.start;
        let mut run = Run { output: 0, length: 0 };
        // Table by table: a walk each.
        while input < end {
            let Some((level, entries)) = self.entries_from(input) else { break };
            let shift = geometry.shift(level);
            let inside = input & low_bits(shift);
            if input == range.start {
                let descriptor = entries[0].load(Ordering::Relaxed);
                run.output = geometry.address(descriptor) & !low_bits(shift) | inside;
            }
            let output = run.output + run.length - inside;
            let leaves = self.consecutive(level, entries, output, end - (input - inside));
            if leaves == 0 {
                break;
            }
            run.length += (leaves << shift) - inside;
            input = range.start + run.length;
        }
        run.length = run.length.min(end - range.start);
        (run.length > 0).then_some(run)
    }

    /// The entries from the leaf that translates `input` to the end of its table.
    fn entries_from(&self, input: u64) -> Option<(i8, &[AtomicU64])> {
        let geometry = self.geometry();
        let mut level = geometry.initial_level();
        let mut address = self.table.base();
        loop {
            let table = self.table_at(level, address).ok()?;
            let entries = &table[geometry.index(level, input) as usize..];
            let descriptor = entries.first()?.load(Ordering::Acquire);
            if descriptor & VALID == 0 {
                return None;
            }
            if level == LAST_LEVEL || descriptor & TABLE == 0 {
                return Some((level, entries));
            }
            address = geometry.address(descriptor);
            level += 1;
        }
    }

    /// How many entries from the first on are leaves that continue at `output`, looking
    /// no further than `bytes`.
    fn consecutive(&self, level: i8, entries: &[AtomicU64], output: u64, bytes: u64) -> u64 {
        let geometry = self.geometry();
        let shift = geometry.shift(level);
        let wanted = bytes.div_ceil(1 << shift).min(entries.len() as u64) as usize;
        let kind = if level == LAST_LEVEL { VALID | TABLE } else { VALID };
        let mask = geometry.leaf_address_mask(shift) | VALID | TABLE;
        let mut output = output;
        let mut n = 0;
        while n < wanted {
            let left = (geometry.straight_end(output) - output) >> shift;
            let stop = wanted.min(n.saturating_add(left as usize));
            let expected = geometry.address_field(output) | kind;
            let ahead = &entries[n..stop];
            if (ahead[0].load(Ordering::Relaxed) ^ expected) & mask != 0 {
                break;
            }
            let step = (8 * matching_lines(ahead, expected, shift, mask)).max(1);
            n += step;
            output += (step as u64) << shift;
        }
        n as u64
    }
}

/// How many lines of eight entries go on from `expected` in steps of 2^`shift`, in the
/// bits of `mask`.
fn matching_lines(entries: &[AtomicU64], mut expected: u64, shift: u8, mask: u64) -> usize {
    let (lines, _) = entries.as_chunks::<8>();
    let matches = |line: &[AtomicU64; 8]| {
        let differing = (0_u64..).zip(line).fold(0, |differing, (n, entry)| {
            differing | entry.load(Ordering::Relaxed) ^ expected.wrapping_add(n << shift)
        });
        expected = expected.wrapping_add(8 << shift);
        differing & mask == 0
    };
    lines.iter().map(matches).position(|matches| !matches).unwrap_or(lines.len())
}
