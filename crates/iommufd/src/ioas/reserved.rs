//! IOVAs that cannot be mapped, and those that user space allows.

use iova_map::IovaMap;

use crate::{Error, Id};

/// On whose behalf a range is reserved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReservedBy {
    /// A paging HWPT's aperture.
    Hwpt(Id),
    /// A device's reserved regions.
    Device(Id),
    /// The test ioctl; until the IOAS goes.
    Test,
}

/// Reserved and allowed ranges of one IOAS. Reservations may overlap.
#[derive(Default)]
pub(crate) struct Reserved {
    ranges: Vec<(u64, u64, ReservedBy)>,
    /// The union of `ranges`, ascending and not touching.
    union: Vec<(u64, u64)>,
    allowed: IovaMap<()>,
    /// The same, with touching ranges joined.
    allowed_windows: Vec<(u64, u64)>,
}

impl Reserved {
    /// Whether a reserved range intersects `first..=last`.
    pub(crate) fn overlaps(&self, first: u64, last: u64) -> bool {
        let next = self.union.partition_point(|&(_, end)| end < first);
        self.union.get(next).is_some_and(|&(start, _)| start <= last)
    }

    /// Whether user space insists on part of `first..=last`.
    pub(crate) fn allows_any(&self, first: u64, last: u64) -> bool {
        self.allowed.overlaps(first, last)
    }

    pub(crate) fn add(&mut self, first: u64, last: u64, by: ReservedBy) {
        self.ranges.push((first, last, by));
        self.rebuild();
    }

    pub(crate) fn remove(&mut self, by: ReservedBy) {
        self.ranges.retain(|&(_, _, owner)| owner != by);
        self.rebuild();
    }

    fn rebuild(&mut self) {
        let mut all: Vec<_> = self.ranges.iter().map(|&(first, last, _)| (first, last)).collect();
        all.sort_unstable();
        self.union.clear();
        for (first, last) in all {
            match self.union.last_mut() {
                Some((_, end)) if first <= end.saturating_add(1) => *end = last.max(*end),
                _ => self.union.push((first, last)),
            }
        }
    }

    /// Replaces the allowed ranges, or leaves them as they are.
    pub(crate) fn set_allowed(&mut self, ranges: &[(u64, u64)]) -> Result<(), Error> {
        let mut allowed = IovaMap::new();
        for &(first, last) in ranges {
            if first >= last {
                return Err(Error::Invalid("an allowed range must start before it ends"));
            }
            if allowed.insert(first, last, ()).is_err() {
                return Err(Error::Invalid("allowed ranges overlap each other"));
            }
        }
        if ranges.iter().any(|&(first, last)| self.overlaps(first, last)) {
            return Err(Error::AddressInUse("an allowed range is reserved"));
        }
        self.allowed_windows.clear();
        for range in allowed.iter() {
            match self.allowed_windows.last_mut() {
                Some((_, end)) if end.checked_add(1) == Some(range.start) => *end = range.last,
                _ => self.allowed_windows.push((range.start, range.last)),
            }
        }
        self.allowed = allowed;
        Ok(())
    }

    /// What is not reserved, ascending.
    pub(crate) fn free_ranges(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let starts =
            std::iter::once(Some(0)).chain(self.union.iter().map(|&(_, last)| last.checked_add(1)));
        let ends = self
            .union
            .iter()
            .map(|&(first, _)| first.checked_sub(1))
            .chain(std::iter::once(Some(u64::MAX)));
        starts.zip(ends).filter_map(|(start, end)| Some((start?, end?)).filter(|(s, e)| s <= e))
    }

    /// Where an IOVA may be chosen: what is neither reserved nor, if user space
    /// allowed anything, outside that.
    pub(crate) fn windows(&self, lo: u64, hi: u64) -> impl Iterator<Item = (u64, u64)> + '_ {
        let clip = move |(first, last): (u64, u64)| {
            let (first, last) = (first.max(lo), last.min(hi));
            (first <= last).then_some((first, last))
        };
        // Allowed ranges are never reserved, so they are windows as they are.
        let everywhere = self.allowed.is_empty().then(|| self.free_ranges());
        let allowed = self.allowed_windows.iter().copied();
        everywhere.into_iter().flatten().chain(allowed).filter_map(clip)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_ranges_are_the_holes_of_overlapping_reservations() {
        let mut reserved = Reserved::default();
        assert_eq!(reserved.free_ranges().collect::<Vec<_>>(), [(0, u64::MAX)]);
        reserved.add(0, 0xfff, ReservedBy::Test);
        reserved.add(0x800, 0x1fff, ReservedBy::Device(1));
        reserved.add(0x8000, u64::MAX, ReservedBy::Hwpt(2));
        assert_eq!(reserved.free_ranges().collect::<Vec<_>>(), [(0x2000, 0x7fff)]);
        assert!(reserved.overlaps(0x1fff, 0x2000) && !reserved.overlaps(0x2000, 0x7fff));
        reserved.remove(ReservedBy::Device(1));
        reserved.remove(ReservedBy::Hwpt(2));
        assert_eq!(reserved.free_ranges().collect::<Vec<_>>(), [(0x1000, u64::MAX)]);
    }

    #[test]
    fn a_refused_list_leaves_the_old_one() {
        let mut reserved = Reserved::default();
        reserved.set_allowed(&[(0x1000, 0x1fff)]).unwrap();
        reserved.add(0x8000, 0x8fff, ReservedBy::Test);
        let taken = reserved.set_allowed(&[(0x8800, 0x9000)]);
        assert!(matches!(taken, Err(Error::AddressInUse(_))));
        let twice = reserved.set_allowed(&[(0, 9), (9, 12)]);
        assert!(matches!(twice, Err(Error::Invalid(_))));
        assert_eq!(reserved.windows(0, u64::MAX).collect::<Vec<_>>(), [(0x1000, 0x1fff)]);
    }
}
