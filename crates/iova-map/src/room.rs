//! How much a hole can hold, per alignment, and when a request fits.

/// A hole between two neighbouring ranges. It never touches `u64::MAX` (a range
/// follows it), so its size fits in a `u64`; size 0 means there is no hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Gap {
    pub(crate) start: u64,
    pub(crate) size: u64,
}

impl Gap {
    /// The hole between a range that ends at `last` and one that begins at `next`.
    #[inline]
    pub(crate) fn between(last: u64, next: u64) -> Self {
        let start = last.wrapping_add(1);
        Self { start, size: next.wrapping_sub(start) }
    }

    /// Bytes of the hole that a request of `class` could use.
    #[inline]
    pub(crate) fn room(self, class: usize) -> u64 {
        if class == RAGGED {
            return if self.start & (PAGE - 1) == 0 { 0 } else { self.size };
        }
        let to_aligned = self.start.wrapping_neg() & ((1 << SHIFTS[class]) - 1);
        self.size.saturating_sub(to_aligned)
    }

    pub(crate) fn rooms(self) -> [u64; CLASSES] {
        std::array::from_fn(|class| self.room(class))
    }
}

const PAGE: u64 = 4096;

/// The alignments kept exactly: any, each power of two from 4 KiB to 2 MiB
/// (the range iommufd asks for), 1 GiB. A hole's room in one of these classes is
/// what is left of it after its start has been aligned up.
const SHIFTS: [u32; 12] = [0, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 30];

/// One more class, for requests at an offset within their page: the whole size
/// of the hole if it begins inside a page, else 0. Where every range ends on a
/// page boundary there are no such holes, and a request at an offset is simply
/// one for `offset` bytes more.
pub(crate) const RAGGED: usize = SHIFTS.len();

/// Number of classes.
pub(crate) const CLASSES: usize = RAGGED + 1;

/// The class with the largest alignment that is at most `1 << shift`.
fn class_at_most(shift: u32) -> usize {
    SHIFTS.partition_point(|&s| s <= shift) - 1
}

/// What [`IovaMap::find_gap`](crate::IovaMap::find_gap) was asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    /// Length minus one.
    extent: u64,
    mask: u64,
    offset: u64,
    lo: u64,
    pub(crate) hi: u64,
    /// A hole can fit the request only if it has this much room in this class…
    need: (usize, u64),
    /// … or, for offsets within a page, this much room in [`RAGGED`].
    ragged_need: u64,
}

impl Request {
    /// `None` if nothing can ever satisfy it.
    pub(crate) fn new(len: u64, align: u64, offset: u64, lo: u64, hi: u64) -> Option<Self> {
        if !align.is_power_of_two() || offset >= align || lo > hi {
            return None;
        }
        let extent = len.checked_sub(1)?;
        if extent > hi - lo {
            return None;
        }
        let shift = align.trailing_zeros();
        let (need, ragged_need) = if offset == 0 {
            ((class_at_most(shift), len), u64::MAX)
        } else if offset < PAGE && align >= PAGE {
            // Either the hole holds the aligned address below the answer, or it
            // begins between that and the answer: inside a page.
            let need = offset.saturating_add(len);
            ((class_at_most(shift), need), len)
        } else {
            // The answer has at least the alignment of its offset.
            ((class_at_most(offset.trailing_zeros()), len), u64::MAX)
        };
        Some(Self { extent, mask: align - 1, offset, lo, hi, need, ragged_need })
    }

    /// The lowest answer inside the hole `[start, last]`, not looking at `hi`:
    /// an answer that sticks out of the window has no better one after it.
    #[inline]
    pub(crate) fn fit(&self, start: u64, last: u64) -> Option<u64> {
        let start = start.max(self.lo);
        let answer = start.checked_add(self.offset.wrapping_sub(start) & self.mask)?;
        (answer <= last && last - answer >= self.extent).then_some(answer)
    }

    /// The answer, if it lies in the window.
    pub(crate) fn within_window(&self, answer: u64) -> Option<u64> {
        let last = answer.checked_add(self.extent)?;
        (last <= self.hi).then_some(answer)
    }

    /// The classes that [`may_fit`](Self::may_fit) reads.
    pub(crate) fn classes(&self) -> impl Iterator<Item = usize> + use<> {
        let ragged = (self.ragged_need != u64::MAX).then_some(RAGGED);
        std::iter::once(self.need.0).chain(ragged)
    }

    /// The first of the slots from `from` on whose rooms do not rule the request out.
    #[inline]
    pub(crate) fn may_fit<const N: usize>(
        &self,
        rooms: &[[u64; N]; CLASSES],
        from: usize,
        len: usize,
    ) -> Option<usize> {
        let (class, need) = self.need;
        let (rooms, ragged) = (&rooms[class][..len], &rooms[RAGGED][..len]);
        if self.ragged_need == u64::MAX {
            (from..len).find(|&i| rooms[i] >= need)
        } else {
            (from..len).find(|&i| rooms[i] >= need || ragged[i] >= self.ragged_need)
        }
    }
}
