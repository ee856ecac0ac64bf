//! I/O address spaces: what is mapped where, for every domain at once.
//!
//! An IOAS holds *areas*, each showing part of some [`pages::Pages`]. All its
//! domains map every area; with no domain nothing is pinned and nothing is even
//! looked at. IOVAs are bytes, ranges inclusive.

mod access;
mod area;
mod dirty;
mod domains;
pub(crate) mod pages;
mod pins;
mod reserved;

use std::collections::BTreeMap;
use std::sync::Arc;

use iommu::{PagingDomain, Prot};
use iova_map::{Entry, IovaMap};

use self::pages::{PagesId, PagesTable};
use self::reserved::Reserved;
use crate::Id;

pub(crate) use self::access::Transfer;
pub(crate) use self::area::{MapRequest, Piece, Unmapped, range_last};
pub(crate) use self::reserved::ReservedBy;

/// Where an area finds its memory.
#[derive(Debug, Clone, Copy)]
struct Area {
    pages: PagesId,
    prot: Prot,
    /// An access was asked to unpin it: no new pins.
    prevent_access: bool,
    /// `pinned` has an entry for it.
    pinned: bool,
    /// Byte of the pages at which it starts.
    byte: u64,
}

/// What keeps an area from going away.
#[derive(Debug, Default, Clone, Copy)]
struct Use {
    /// Pins by accesses, which are asked to unpin.
    accesses: u32,
    /// Locks by objects that must be destroyed first.
    locks: u32,
}

/// An I/O address space.
pub(crate) struct Ioas {
    areas: IovaMap<Area>,
    /// Uses of areas that have any, by the area's first IOVA.
    uses: BTreeMap<u64, Use>,
    reserved: Reserved,
    domains: Vec<(Id, Arc<dyn PagingDomain>)>,
    /// Accesses in the order they came, with their alignment.
    accesses: Vec<(Id, u64)>,
    /// Hardware queues in it.
    locks: u32,
    /// Every IOVA, length and page offset is a multiple.
    alignment: u64,
    /// `IOMMU_OPTION_HUGE_PAGES` is off: only PAGE_SIZE leaves, areas can be cut.
    small_pages_only: bool,
    /// Paging HWPTs in the order they were made.
    pub(crate) hwpts: Vec<Id>,
}

impl Default for Ioas {
    fn default() -> Self {
        Self {
            areas: IovaMap::new(),
            uses: BTreeMap::new(),
            reserved: Reserved::default(),
            domains: Vec::new(),
            accesses: Vec::new(),
            locks: 0,
            alignment: 1,
            small_pages_only: false,
            hwpts: Vec::new(),
        }
    }
}

impl Ioas {
    /// What IOVAs and lengths must be multiples of, in bytes.
    pub(crate) fn alignment(&self) -> u64 {
        self.alignment
    }

    /// The ranges that are not reserved, ascending.
    pub(crate) fn iova_ranges(&self) -> Vec<(u64, u64)> {
        self.reserved.free_ranges().collect()
    }

    pub(crate) fn accesses(&self) -> impl Iterator<Item = Id> + '_ {
        self.accesses.iter().map(|(id, _)| *id)
    }

    /// The domains that map this IOAS.
    pub(crate) fn domains(&self) -> impl Iterator<Item = &Arc<dyn PagingDomain>> {
        self.domains.iter().map(|(_, domain)| domain)
    }

    /// Areas keep out of reserved ranges, and every domain maps exactly them.
    pub(crate) fn check_invariants(&self, table: &PagesTable) -> Result<(), String> {
        let mut next = 0u64;
        for Entry { start, last, value: area } in self.areas.iter() {
            if self.reserved.overlaps(start, last) {
                return Err(format!("the area {start:#x}..={last:#x} is reserved"));
            }
            for (hwpt, domain) in &self.domains {
                let hole = start.checked_sub(1).filter(|hole| *hole >= next);
                if hole.is_some_and(|hole| domain.iova_to_phys(hole).is_some()) {
                    return Err(format!("HWPT {hwpt} maps the hole below {start:#x}"));
                }
                let mut at = start;
                let mut wrong = None;
                let revoked = table.get(area.pages).revoked;
                table.runs(area.pages, area.byte, last - start + 1, &mut |run| {
                    for (iova, pa) in [(at, run.pa), (at + (run.len - 1), run.pa + (run.len - 1))] {
                        let expected = (!revoked).then_some(pa);
                        if domain.iova_to_phys(iova) != expected {
                            wrong = Some(iova);
                        }
                    }
                    at = at.wrapping_add(run.len);
                });
                if let Some(iova) = wrong {
                    return Err(format!("HWPT {hwpt} maps {iova:#x} wrongly"));
                }
                if at != last.wrapping_add(1) {
                    return Err(format!("the area at {start:#x} is not held for HWPT {hwpt}"));
                }
            }
            next = last.saturating_add(1);
        }
        Ok(())
    }

    pub(crate) fn small_pages_only(&self) -> bool {
        self.small_pages_only
    }

    /// How many areas there are, and the memory of the structures that hold
    /// them, in bytes.
    pub(crate) fn footprint(&self) -> (usize, usize) {
        (self.areas.len(), self.areas.memory_usage())
    }
}
