//! The two kinds of node. Keys past a node's length hold `u64::MAX`, so that a
//! search need not know the length.

use crate::Entry;
use crate::room::{CLASSES, Gap, RAGGED};

/// How many of the ascending `keys` are at most `x`.
///
/// Two short counts without a branch that depends on the data: first over every
/// eighth key, then inside one group of eight. All cache lines of the node are
/// asked for at once, where a binary search would wait for one after the other.
#[inline]
pub(crate) fn rank<const N: usize>(keys: &[u64; N], len: usize, x: u64) -> usize {
    const GROUP: usize = 8;
    let count = |keys: &[u64]| keys.iter().map(|&key| usize::from(key <= x)).sum::<usize>();
    let below = if N > GROUP && N.is_multiple_of(GROUP) {
        let group = (1..N / GROUP).map(|i| usize::from(keys[i * GROUP] <= x)).sum::<usize>();
        group * GROUP + count(&keys[group * GROUP..][..GROUP])
    } else {
        count(keys)
    };
    // Only for x == u64::MAX does the padding count too.
    below.min(len)
}

/// Makes room for `key` at `at`, dropping the padding at the end.
#[inline]
fn open<T: Copy, const N: usize>(keys: &mut [T; N], at: usize, len: usize, key: T) {
    keys.copy_within(at..len, at + 1);
    keys[at] = key;
}

#[inline]
fn close<T: Copy, const N: usize>(keys: &mut [T; N], at: usize, len: usize, padding: T) {
    keys.copy_within(at + 1..len, at);
    keys[len - 1] = padding;
}

/// Moves `keys[at..len]` out, into the front of a fresh array.
fn cut<T: Copy, const N: usize>(keys: &mut [T; N], at: usize, len: usize, padding: T) -> [T; N] {
    let mut right = [padding; N];
    right[..len - at].copy_from_slice(&keys[at..len]);
    keys[at..len].fill(padding);
    right
}

/// The ranges themselves. Only starts are kept in order, which is all that a
/// search reads; the rest of a range stays where it is while the starts shift.
/// That way a change touches few cache lines of a leaf that is not in the cache.
#[derive(Clone, Debug)]
#[repr(C)]
pub(crate) struct Leaf<V, const N: usize> {
    /// In no order. Its length is the length of the node.
    tails: Vec<Tail<V>>,
    /// Which tail belongs to each start.
    order: [u8; N],
    pub(crate) starts: [u64; N],
}

/// A range but for its start.
#[derive(Clone, Debug)]
struct Tail<V> {
    last: u64,
    value: V,
}

impl<V, const N: usize> Leaf<V, N> {
    pub(crate) fn with(start: u64, last: u64, value: V, capacity: usize) -> Self {
        const { assert!(N <= 256, "positions of tails are bytes") };
        let mut leaf =
            Self { tails: Vec::with_capacity(capacity), order: [0; N], starts: [u64::MAX; N] };
        leaf.insert(0, start, last, value);
        leaf
    }

    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.tails.len()
    }

    /// Bytes on the heap, without what the values own.
    pub(crate) fn memory_usage(&self) -> usize {
        self.tails.capacity() * size_of::<Tail<V>>()
    }

    /// How many ranges start at `x` or before.
    #[inline]
    pub(crate) fn rank(&self, x: u64) -> usize {
        // Asks for the line that will be needed next together with those that
        // are needed first: a big map is not in the cache.
        std::hint::black_box(self.order[0]);
        rank(&self.starts, self.len(), x)
    }

    /// Position of the first range that ends at `x` or later.
    #[inline]
    pub(crate) fn first_reaching(&self, x: u64) -> usize {
        let at = self.rank(x);
        at - usize::from(at > 0 && self.last(at - 1) >= x)
    }

    #[inline]
    pub(crate) fn last(&self, at: usize) -> u64 {
        self.tails[usize::from(self.order[at])].last
    }

    #[inline]
    pub(crate) fn entry(&self, at: usize) -> Entry<&V> {
        let Tail { last, value } = &self.tails[usize::from(self.order[at])];
        Entry { start: self.starts[at], last: *last, value }
    }

    #[inline]
    pub(crate) fn entry_mut(&mut self, at: usize) -> Entry<&mut V> {
        let Tail { last, value } = &mut self.tails[usize::from(self.order[at])];
        Entry { start: self.starts[at], last: *last, value }
    }

    /// First and last address of all of them.
    pub(crate) fn bounds(&self) -> (u64, u64) {
        (self.starts[0], self.last(self.len() - 1))
    }

    #[inline]
    pub(crate) fn insert(&mut self, at: usize, start: u64, last: u64, value: V) {
        let len = self.len();
        open(&mut self.starts, at, len, start);
        open(&mut self.order, at, len, len as u8);
        self.tails.push(Tail { last, value });
    }

    #[inline]
    pub(crate) fn remove(&mut self, at: usize) -> V {
        let len = self.len();
        let (hole, moved) = (self.order[at], (len - 1) as u8);
        close(&mut self.starts, at, len, u64::MAX);
        close(&mut self.order, at, len, 0);
        // Over the padding too, which is harmless, so that it takes no branches.
        for place in &mut self.order {
            *place = if *place == moved { hole } else { *place };
        }
        self.tails.swap_remove(usize::from(hole)).value
    }

    pub(crate) fn split_off(&mut self, at: usize) -> Self {
        let len = self.len();
        let mut tails: Vec<_> = self.tails.drain(..).map(Some).collect();
        let mut right = Vec::with_capacity(N);
        for (position, &place) in self.order[..len].iter().enumerate() {
            let side = if position < at { &mut self.tails } else { &mut right };
            side.extend(tails[usize::from(place)].take());
        }
        self.order = std::array::from_fn(|position| position as u8);
        Self { tails: right, order: self.order, starts: cut(&mut self.starts, at, len, u64::MAX) }
    }

    pub(crate) fn append(&mut self, mut right: Self) {
        let (len, more) = (self.len(), right.len());
        self.starts[len..len + more].copy_from_slice(&right.starts[..more]);
        for (place, right) in self.order[len..].iter_mut().zip(&right.order[..more]) {
            *place = right + len as u8;
        }
        self.tails.append(&mut right.tails);
    }

    /// The holes between the ranges of this leaf.
    #[inline]
    pub(crate) fn gaps(&self) -> impl Iterator<Item = Gap> {
        let nexts = self.starts[..self.len()].iter().skip(1);
        std::iter::zip(&self.order, nexts).map(|(&place, &next)| {
            let last = self.tails[usize::from(place)].last;
            Gap::between(last, next)
        })
    }

    pub(crate) fn room(&self, class: usize) -> u64 {
        self.gaps().map(|gap| gap.room(class)).max().unwrap_or(0)
    }
}

/// What a parent knows of each child.
#[derive(Clone, Debug)]
pub(crate) struct Inner<const N: usize> {
    len: usize,
    /// Exactly the first address of each child.
    pub(crate) firsts: [u64; N],
    /// Exactly the last address of each child.
    pub(crate) lasts: [u64; N],
    pub(crate) children: [u32; N],
    /// Per class and slot, no less than the largest room of the holes inside the
    /// child and the hole between it and the child before it. Removing a range
    /// raises it at once; inserting one leaves it too large, and a search that
    /// is misled by it puts it right.
    pub(crate) rooms: [[u64; N]; CLASSES],
}

impl<const N: usize> Inner<N> {
    pub(crate) fn new() -> Self {
        Self {
            len: 0,
            firsts: [u64::MAX; N],
            lasts: [u64::MAX; N],
            children: [u32::MAX; N],
            rooms: [[0; N]; CLASSES],
        }
    }

    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The slot whose child holds `x`, if anything does.
    #[inline]
    pub(crate) fn slot_of(&self, x: u64) -> usize {
        rank(&self.firsts, self.len, x).saturating_sub(1)
    }

    /// First and last address below it.
    pub(crate) fn bounds(&self) -> (u64, u64) {
        (self.firsts[0], self.lasts[self.len - 1])
    }

    pub(crate) fn insert(&mut self, at: usize, slot: &Slot) {
        open(&mut self.firsts, at, self.len, slot.first);
        open(&mut self.lasts, at, self.len, slot.last);
        open(&mut self.children, at, self.len, slot.child);
        for (rooms, &room) in self.rooms.iter_mut().zip(&slot.rooms) {
            open(rooms, at, self.len, room);
        }
        self.len += 1;
    }

    pub(crate) fn remove(&mut self, at: usize) {
        close(&mut self.firsts, at, self.len, u64::MAX);
        close(&mut self.lasts, at, self.len, u64::MAX);
        close(&mut self.children, at, self.len, u32::MAX);
        for rooms in &mut self.rooms {
            close(rooms, at, self.len, 0);
        }
        self.len -= 1;
    }

    /// Slot `at` takes over the contents of the slot after it.
    pub(crate) fn merge_slots(&mut self, at: usize) {
        self.lasts[at] = self.lasts[at + 1];
        for rooms in &mut self.rooms {
            rooms[at] = rooms[at].max(rooms[at + 1]);
        }
        self.remove(at + 1);
    }

    pub(crate) fn split_off(&mut self, at: usize) -> Self {
        let len = self.len;
        self.len = at;
        Self {
            len: len - at,
            firsts: cut(&mut self.firsts, at, len, u64::MAX),
            lasts: cut(&mut self.lasts, at, len, u64::MAX),
            children: cut(&mut self.children, at, len, u32::MAX),
            rooms: std::array::from_fn(|class| cut(&mut self.rooms[class], at, len, 0)),
        }
    }

    pub(crate) fn append(&mut self, right: &Self) {
        let gap = Gap::between(self.bounds().1, right.firsts[0]);
        let to = self.len..self.len + right.len;
        self.firsts[to.clone()].copy_from_slice(&right.firsts[..right.len]);
        self.lasts[to.clone()].copy_from_slice(&right.lasts[..right.len]);
        self.children[to.clone()].copy_from_slice(&right.children[..right.len]);
        for (rooms, more) in self.rooms.iter_mut().zip(&right.rooms) {
            rooms[to.clone()].copy_from_slice(&more[..right.len]);
        }
        self.len = to.end;
        self.raise(to.start, gap);
    }

    /// Makes sure the summary of slot `at` covers `gap`. False if it did already.
    #[inline]
    pub(crate) fn raise(&mut self, at: usize, gap: Gap) -> bool {
        let mut changed = false;
        let mut raise = |class: usize| {
            let room = gap.room(class);
            // No look at a cache line that cannot change.
            if room > 0 && room > self.rooms[class][at] {
                self.rooms[class][at] = room;
                changed = true;
            }
            room
        };
        raise(RAGGED);
        for class in 0..RAGGED {
            // Stricter alignments have no more room than this one.
            if raise(class) == 0 {
                break;
            }
        }
        changed
    }

    /// The hole before slot `at`, if that is not the first.
    #[inline]
    pub(crate) fn gap_before(&self, at: usize) -> Option<Gap> {
        let previous = at.checked_sub(1)?;
        Some(Gap::between(self.lasts[previous], self.firsts[at]))
    }

    pub(crate) fn room(&self, class: usize) -> u64 {
        let rooms = &self.rooms[class][..self.len];
        rooms.iter().copied().max().unwrap_or(0)
    }

    pub(crate) fn rooms_of(&self, at: usize) -> [u64; CLASSES] {
        std::array::from_fn(|class| self.rooms[class][at])
    }
}

/// A new entry of an [`Inner`] node.
pub(crate) struct Slot {
    pub(crate) first: u64,
    pub(crate) last: u64,
    pub(crate) child: u32,
    pub(crate) rooms: [u64; CLASSES],
}
