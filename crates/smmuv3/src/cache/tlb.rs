//! The TLB: combined translations in small and large pages, and what walks need again: stage 2
//! translations and last-level tables.

use std::sync::atomic::{AtomicU64, Ordering};

use super::array::{Array, Clock, Epoch, tag};
use super::generation::{Generations, Space, StreamWorld};
use crate::sync::AtomicBool;

/// Log2 of the page size of the small entries, in bytes. Every granule is a multiple of it.
pub(crate) const SMALL: u32 = 12;
/// Log2 of the page size of the large entries, in bytes.
pub(crate) const LARGE: u32 = 21;

/// How many entries each part of the TLB has, as powers of two; 32 bytes each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TlbSize {
    /// Combined (stage 1, stage 2, or both) translations of 4 KiB.
    pub small_log2: u8,
    /// Combined translations of 2 MiB.
    pub large_log2: u8,
    /// Stage 2 translations of 4 KiB: of pages that hold tables.
    pub stage2_log2: u8,
    /// Each of: stage 2 blocks, last-level stage 1 tables, last-level stage 2 tables.
    pub walk_log2: u8,
}

impl Default for TlbSize {
    /// 416 KiB.
    fn default() -> Self {
        Self { small_log2: 13, large_log2: 10, stage2_log2: 10, walk_log2: 10 }
    }
}

impl TlbSize {
    /// Memory that the TLB takes, in bytes.
    pub fn bytes(&self) -> usize {
        let walk = 3 * (32usize << self.walk_log2);
        walk + [self.small_log2, self.large_log2, self.stage2_log2]
            .iter()
            .map(|log2| 32usize << log2)
            .sum::<usize>()
    }
}

/// What an entry says: an address of up to 52 bits, and the bits around it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Data(u64);

const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
const PERMISSIONS: u64 = 0x3f;
const GLOBAL: u64 = 1 << 6;
const SHAREABILITY_SHIFT: u32 = 7;
const MEMORY_SHIFT: u32 = 52;

impl Data {
    /// `address` is that of the page or table, `permissions` six bits, `memory` a `MAIR` byte or a stage 2 `MemAttr`.
    #[inline]
    pub(crate) fn new(
        address: u64,
        permissions: u8,
        global: bool,
        memory: u8,
        shareability: u8,
    ) -> Self {
        Self(
            address & ADDRESS
                | u64::from(permissions) & PERMISSIONS
                | if global { GLOBAL } else { 0 }
                | u64::from(shareability & 3) << SHAREABILITY_SHIFT
                | u64::from(memory) << MEMORY_SHIFT,
        )
    }
    #[inline]
    pub(crate) fn from_raw(raw: u64) -> Self {
        Self(raw)
    }
    #[inline]
    pub(crate) fn raw(self) -> u64 {
        self.0
    }
    #[inline]
    pub(crate) fn address(self) -> u64 {
        self.0 & ADDRESS
    }
    #[inline]
    pub(crate) fn permissions(self) -> u8 {
        (self.0 & PERMISSIONS) as u8
    }
    #[inline]
    pub(crate) fn memory(self) -> u8 {
        (self.0 >> MEMORY_SHIFT) as u8
    }
    #[inline]
    pub(crate) fn shareability(self) -> u8 {
        (self.0 >> SHAREABILITY_SHIFT) as u8 & 3
    }
    #[inline]
    fn global(self) -> bool {
        self.0 & GLOBAL != 0
    }
}

/// The tags of the current entries of a context, as of some [`Generations::changes`].
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tags {
    asid: u64,
    global: u64,
    table: u64,
    stage2: u64,
}

/// What the caches were before a walk read anything; what it finds is cached for that state only.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Before {
    tags: Tags,
    epoch: Epoch,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Tlb {
    generations: Generations,
    clock: Clock,
    small: Array,
    large: Array,
    stage2: Array,
    stage2_blocks: Array,
    stage1_tables: Array,
    stage2_tables: Array,
    /// Whether there may be global entries at all.
    global: AtomicBool,
    /// Invalidations so far, to sweep before a stamp can come round again.
    retired: AtomicU64,
}

impl Tlb {
    pub(crate) fn new(size: TlbSize) -> Self {
        Self {
            generations: Generations::default(),
            clock: Clock::default(),
            small: Array::new(size.small_log2, SMALL),
            large: Array::new(size.large_log2, LARGE),
            stage2: Array::new(size.stage2_log2, SMALL),
            stage2_blocks: Array::new(size.walk_log2, LARGE),
            stage1_tables: Array::new(size.walk_log2, LARGE),
            stage2_tables: Array::new(size.walk_log2, LARGE),
            global: AtomicBool::new(false),
            retired: AtomicU64::new(0),
        }
    }

    /// See [`Generations::changes`].
    #[inline]
    pub(crate) fn changes(&self) -> u64 {
        self.generations.changes()
    }

    /// What the configuration of a stream must carry to be current.
    pub(crate) fn stream(&self, stream_id: u32) -> u64 {
        self.generations.stream(stream_id)
    }

    /// What the entries of a context must carry to be current: of its combined translations' space,
    /// and of its stage 2's.
    pub(crate) fn tags(&self, space: &Space, vm: &Space) -> Tags {
        let leaf = self.generations.leaf(space);
        Tags {
            asid: tag(leaf.asid, space),
            global: tag(leaf.global, space),
            table: tag(self.generations.table(space), space),
            stage2: tag(self.generations.stage2(vm), vm),
        }
    }

    /// The combined translation of `address` and the log2 of its page's size. `address` is sign-extended from
    /// bit 52 or below.
    #[inline(always)]
    pub(crate) fn lookup(&self, space: &Space, tags: &Tags, address: u64) -> Option<(Data, u32)> {
        let wanted = |data: Data| if data.global() { tags.global } else { tags.asid };
        if let Some(data) = self.small.lookup(space, address, wanted) {
            return Some((data, SMALL));
        }
        if !self.large.is_used() {
            return None;
        }
        self.lookup_large(space, tags, address)
    }

    #[inline(never)]
    fn lookup_large(&self, space: &Space, tags: &Tags, address: u64) -> Option<(Data, u32)> {
        let wanted = |data: Data| if data.global() { tags.global } else { tags.asid };
        self.large.lookup(space, address, wanted).map(|data| (data, LARGE))
    }

    /// To be called before a walk reads anything, with tags that are current.
    #[inline]
    pub(crate) fn before(&self, tags: Tags) -> Before {
        Before { tags, epoch: self.clock.now() }
    }

    /// Remembers a combined translation: `data` for the `1 << size` bytes around `address`, which
    /// are invalidated as part of `1 << scope` bytes (the stage 1 page; the only stage's page).
    #[inline]
    pub(crate) fn fill(
        &self,
        space: &Space,
        address: u64,
        size: u32,
        scope: u32,
        data: Data,
        before: &Before,
    ) {
        let tag = if data.global() {
            self.global.store(true, Ordering::Release);
            before.tags.global
        } else {
            before.tags.asid
        };
        let array = if size >= LARGE { &self.large } else { &self.small };
        array.fill(space, address, scope, data, tag, &self.clock, before.epoch);
    }

    /// The stage 2 translation of `ipa` and the log2 of its page's size; of small pages only with
    /// `pages`. `vm` is the stage 2 space.
    #[inline]
    pub(crate) fn lookup_stage2(
        &self,
        vm: &Space,
        ipa: u64,
        pages: bool,
        before: &Before,
    ) -> Option<(Data, u32)> {
        let tag = before.tags.stage2;
        if pages && let Some(data) = self.stage2.lookup(vm, ipa, |_| tag) {
            return Some((data, SMALL));
        }
        if !self.stage2_blocks.is_used() {
            return None;
        }
        self.stage2_blocks.lookup(vm, ipa, |_| tag).map(|data| (data, LARGE))
    }

    #[inline]
    pub(crate) fn fill_stage2(&self, vm: &Space, ipa: u64, size: u32, data: Data, before: &Before) {
        let array = if size >= LARGE { &self.stage2_blocks } else { &self.stage2 };
        array.fill(vm, ipa, size, data, before.tags.stage2, &self.clock, before.epoch);
    }

    /// The last-level stage 1 table for the 2 MiB around `address`.
    #[inline]
    pub(crate) fn lookup_stage1_table(
        &self,
        space: &Space,
        address: u64,
        before: &Before,
    ) -> Option<Data> {
        let stamp = before.tags.table;
        self.stage1_tables.lookup(space, address, |_| stamp)
    }

    #[inline]
    pub(crate) fn fill_stage1_table(
        &self,
        space: &Space,
        address: u64,
        data: Data,
        before: &Before,
    ) {
        self.stage1_tables.fill(
            space,
            address,
            LARGE,
            data,
            before.tags.table,
            &self.clock,
            before.epoch,
        );
    }

    /// The last-level stage 2 table for the 2 MiB around `ipa`.
    #[inline]
    pub(crate) fn lookup_stage2_table(
        &self,
        vm: &Space,
        ipa: u64,
        before: &Before,
    ) -> Option<Data> {
        let stamp = before.tags.stage2;
        self.stage2_tables.lookup(vm, ipa, |_| stamp)
    }

    #[inline]
    pub(crate) fn fill_stage2_table(&self, vm: &Space, ipa: u64, data: Data, before: &Before) {
        self.stage2_tables.fill(
            vm,
            ipa,
            LARGE,
            data,
            before.tags.stage2,
            &self.clock,
            before.epoch,
        );
    }

    /// `CMD_CFGI_*` of `1 << log2` streams around `stream_id`.
    pub(crate) fn invalidate_streams(&self, stream_id: u32, log2: u32) {
        if log2 > 6 {
            return self.invalidate_all_streams();
        }
        let first = stream_id >> log2 << log2;
        (0..1 << log2).for_each(|n| self.generations.retire_stream(first | n));
    }

    /// `CMD_CFGI_ALL`, and a change of the registers that configurations depend on.
    pub(crate) fn invalidate_all_streams(&self) {
        self.generations.retire_all_streams();
    }

    /// `CMD_TLBI_NSNH_ALL`, and a change of what the caches depend on.
    pub(crate) fn invalidate_all(&self) {
        self.generations.retire_all();
        self.count();
    }

    /// `CMD_TLBI_NH_ALL`, `CMD_TLBI_EL2_ALL`; with `stage2`, `CMD_TLBI_S12_VMALL`.
    pub(crate) fn invalidate_vmid(&self, world: StreamWorld, vmid: u16, stage2: bool) {
        self.generations.retire_vmid(world, vmid);
        if stage2 {
            self.generations.retire_stage2(vmid);
        }
        self.count();
    }

    /// `CMD_TLBI_NH_ASID`, `CMD_TLBI_EL2_ASID`: global translations stay.
    pub(crate) fn invalidate_asid(&self, world: StreamWorld, vmid: u16, asid: u16) {
        self.generations.retire_asid(world, vmid, asid);
        self.count();
    }

    /// `CMD_TLBI_NH_VA`, `CMD_TLBI_EL2_VA`: `size` bytes from `address` on; unless `leaf`, the tables on the way
    /// there, too.
    pub(crate) fn invalidate_va(
        &self,
        world: StreamWorld,
        vmid: u16,
        asid: u16,
        address: u64,
        size: u64,
        leaf: bool,
    ) {
        if !leaf {
            self.generations.retire_tables(world, vmid, asid);
        }
        if self.global.load(Ordering::Acquire) {
            // A global translation sits under the ASID that filled it, whichever that was.
            self.generations.retire_global(world, vmid);
        }
        self.clock.tick();
        let fits = [false, true].into_iter().all(|stage2| {
            let space = Space::new(world, vmid, asid, true, stage2);
            self.small.clear(&space, address, size) && self.large.clear(&space, address, size)
        });
        if !fits {
            self.generations.retire_asid(world, vmid, asid);
        }
        self.count();
    }

    /// `CMD_TLBI_S2_IPA`: stage 2 translations, alone and as used by walks. Combined translations may stay.
    pub(crate) fn invalidate_ipa(&self, vmid: u16, ipa: u64, size: u64, leaf: bool) {
        let vm = Space::stage2(vmid);
        self.clock.tick();
        let fits = leaf
            && self.stage2.clear(&vm, ipa, size)
            && self.stage2_blocks.clear(&vm, ipa, size)
            && self.small.clear(&vm, ipa, size)
            && self.large.clear(&vm, ipa, size);
        if !fits {
            // Stage 2 only translations carry the stamp of ASID 0.
            self.generations.retire_stage2(vmid);
            self.generations.retire_vmid(StreamWorld::El1, vmid);
        }
        self.count();
    }

    fn count(&self) {
        let retired = self.retired.fetch_add(1, Ordering::Relaxed);
        // Each invalidation advances a stamp by three at most.
        if retired & 0x1fff_ffff == 0x1fff_ffff {
            self.clock.tick();
            for array in [
                &self.small,
                &self.large,
                &self.stage2,
                &self.stage2_blocks,
                &self.stage1_tables,
                &self.stage2_tables,
            ] {
                array.sweep();
            }
        }
    }
}
