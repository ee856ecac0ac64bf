//! The peers, each with the memory that suits it best: tables that have been touched
//! before and, where the peer wants that, are zero already.

use std::cell::RefCell;
use std::ptr::NonNull;

use aarch64_paging::descriptor::{Descriptor, El1Attributes, PhysicalAddress};
use aarch64_paging::paging::{
    Constraints, El1And0, MemoryRegion, PageTable, RootTable, Translation, VaRange,
};
use memory_addr::{PhysAddr, VirtAddr};
use page_table_multiarch::x86_64::X64PageTable;
use page_table_multiarch::{MappingFlags, PagingHandler};

type Table = NonNull<PageTable<El1Attributes>>;

/// Tables for `aarch64-paging`: zero when handed out, dirty when they come back.
#[derive(Default)]
pub(crate) struct Pool {
    zero: Vec<Table>,
    dirty: Vec<Table>,
}

/// A [`Pool`] that outlives its tables, and can be cleaned in between.
pub(crate) struct Shared<'a>(&'a RefCell<Pool>);

impl Translation<El1Attributes> for Shared<'_> {
    #[inline]
    fn allocate_table(&mut self) -> (Table, PhysicalAddress) {
        let table = self.0.borrow_mut().zero.pop().unwrap_or_else(PageTable::new);
        (table, PhysicalAddress(table.as_ptr() as usize))
    }

    #[inline]
    unsafe fn deallocate_table(&mut self, table: Table) {
        self.0.borrow_mut().dirty.push(table);
    }

    #[inline]
    fn physical_to_virtual(&self, address: PhysicalAddress) -> Table {
        NonNull::new(address.0 as *mut _).expect("a table")
    }
}

impl Pool {
    /// Makes everything that came back zero again.
    pub(crate) fn clean(&mut self) {
        for mut table in self.dirty.drain(..) {
            // SAFETY: the tables are valid, and nobody uses one that came back.
            unsafe { *table.as_mut() = PageTable::EMPTY };
            self.zero.push(table);
        }
    }
}

/// `aarch64-paging`, not live: without barriers and TLB maintenance.
pub(crate) struct Aarch64Paging<'a>(RootTable<El1And0, Shared<'a>>);

const ATTRIBUTES: El1Attributes = El1Attributes::VALID
    .union(El1Attributes::ATTRIBUTE_INDEX_1)
    .union(El1Attributes::INNER_SHAREABLE)
    .union(El1Attributes::ACCESSED)
    .union(El1Attributes::NON_GLOBAL)
    .union(El1Attributes::UXN);

impl<'a> Aarch64Paging<'a> {
    pub(crate) fn new(pool: &'a RefCell<Pool>) -> Self {
        Self(RootTable::with_va_range(Shared(pool), 0, El1And0, VaRange::Lower))
    }

    #[inline]
    pub(crate) fn map(&mut self, input: u64, length: u64, output: u64) {
        self.set(input, length, output, ATTRIBUTES);
    }

    #[inline]
    pub(crate) fn unmap(&mut self, input: u64, length: u64) {
        self.set(input, length, 0, El1Attributes::empty());
    }

    #[inline]
    fn set(&mut self, input: u64, length: u64, output: u64, attributes: El1Attributes) {
        let region = MemoryRegion::new(input as usize, (input + length) as usize);
        let pages = Constraints::NO_BLOCK_MAPPINGS | Constraints::NO_CONTIGUOUS_HINT;
        self.0
            .map_range(&region, PhysicalAddress(output as usize), attributes, pages)
            .expect("a range");
    }

    /// The output address of one page.
    #[inline]
    pub(crate) fn query(&self, input: u64) -> u64 {
        let region = MemoryRegion::new(input as usize, input as usize + 4096);
        let mut output = 0;
        let mut look = |_: &MemoryRegion, descriptor: &Descriptor<El1Attributes>, _| {
            output = descriptor.output_address().0 as u64;
            Ok(())
        };
        self.0.walk_range(&region, &mut look).expect("a range");
        output
    }

    /// The sum of all output addresses in a range.
    pub(crate) fn walk(&self, input: u64, length: u64) -> u64 {
        let region = MemoryRegion::new(input as usize, (input + length) as usize);
        let mut sum = 0;
        let mut look = |_: &MemoryRegion, descriptor: &Descriptor<El1Attributes>, _| {
            sum += descriptor.output_address().0 as u64;
            Ok(())
        };
        self.0.walk_range(&region, &mut look).expect("a range");
        sum
    }
}

thread_local! {
    static FRAMES: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

/// Frames for `page_table_multiarch`, which zeroes them itself.
pub(crate) struct Frames;

impl PagingHandler for Frames {
    fn alloc_frames(count: usize, _align: usize) -> Option<PhysAddr> {
        assert_eq!(count, 1);
        let frame = FRAMES.with_borrow_mut(Vec::pop);
        let fresh = || PageTable::<El1Attributes>::new().as_ptr() as usize;
        Some(PhysAddr::from(frame.unwrap_or_else(fresh)))
    }

    fn dealloc_frames(frame: PhysAddr, _count: usize) {
        FRAMES.with_borrow_mut(|frames| frames.push(frame.as_usize()));
    }

    fn phys_to_virt(frame: PhysAddr) -> VirtAddr {
        VirtAddr::from(frame.as_usize())
    }
}

/// `page_table_multiarch`. Its AArch64 entries exist on AArch64 only: here it writes
/// those of x86-64, in four levels of 512 as well.
pub(crate) struct Multiarch(X64PageTable<Frames>);

impl Multiarch {
    pub(crate) fn new() -> Self {
        Self(X64PageTable::try_new().expect("a table"))
    }

    #[inline]
    pub(crate) fn map(&mut self, input: u64, length: u64, output: u64) {
        let flags = MappingFlags::READ | MappingFlags::WRITE | MappingFlags::USER;
        let distance = output.wrapping_sub(input) as usize;
        self.0
            .cursor()
            .map_region(
                VirtAddr::from(input as usize),
                |at| PhysAddr::from(at.as_usize().wrapping_add(distance)),
                length as usize,
                flags,
                false,
            )
            .expect("a free range");
    }

    #[inline]
    pub(crate) fn unmap(&mut self, input: u64, length: u64) {
        let input = VirtAddr::from(input as usize);
        self.0.cursor().unmap_region(input, length as usize).expect("a mapped range");
    }

    #[inline]
    pub(crate) fn query(&self, input: u64) -> u64 {
        let (output, _, _) = self.0.query(VirtAddr::from(input as usize)).expect("a page");
        output.as_usize() as u64
    }
}
