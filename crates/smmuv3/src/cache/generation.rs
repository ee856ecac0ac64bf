//! Generations: forgetting an address space in constant time.
//!
//! Each entry carries the sum of the counters of everything that could invalidate it as a whole: one
//! for all, one for its VMID, one for its ASID. An invalidation adds one to its counter, the sums
//! no longer agree, and no entry had to be found. VMIDs and ASIDs share counters by hash: a
//! collision invalidates more than was asked, which is always allowed.

use crate::sync::{AtomicU64, Ordering};

const VMIDS: usize = if cfg!(loom) { 2 } else { 256 };
const ASIDS: usize = if cfg!(loom) { 2 } else { 1024 };
const STREAMS: usize = if cfg!(loom) { 2 } else { 256 };

/// The translation regime of a cached translation (IHI 0070 §3.3.3, StreamWorld).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StreamWorld {
    /// NS-EL1: tagged with VMID and ASID.
    El1,
    /// NS-EL2: tagged with neither.
    El2,
    /// NS-EL2-E2H: tagged with an ASID.
    El2E2h,
}

/// The address space that a cached translation belongs to: regime, VMID, ASID, and which stages
/// took part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Space {
    /// Regime and stages, in the bits of an entry's key above the page number.
    pub(crate) regime: u64,
    /// VMID in the upper, ASID in the lower half.
    pub(crate) tag: u32,
    /// Spreads address spaces over a cache, so that the same page of two of them does not meet.
    pub(crate) salt: u32,
    vmid: u16,
    asid: u16,
}

/// Lowest bit of [`Space::regime`].
pub(crate) const REGIME_SHIFT: u32 = 41;

impl Space {
    pub(crate) fn new(
        world: StreamWorld,
        vmid: u16,
        asid: u16,
        stage1: bool,
        stage2: bool,
    ) -> Self {
        let (vmid, asid) = match world {
            StreamWorld::El1 => (vmid, asid),
            StreamWorld::El2 => (0, 0),
            StreamWorld::El2E2h => (0, asid),
        };
        let tag = u32::from(vmid) << 16 | u32::from(asid);
        let regime = world as u64 | u64::from(stage1) << 2 | u64::from(stage2) << 3 | 1 << 4;
        Self {
            regime: regime << REGIME_SHIFT,
            tag,
            salt: (u64::from(tag).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32,
            vmid: vmid_index(world, vmid),
            asid: asid_index(world, vmid, asid),
        }
    }

    /// The stage 2 of a VM by itself: stage 2 only translations, and what nested walks look up.
    #[inline]
    pub(crate) fn stage2(vmid: u16) -> Self {
        Self::new(StreamWorld::El1, vmid, 0, false, true)
    }
}

fn vmid_index(world: StreamWorld, vmid: u16) -> u16 {
    match world {
        StreamWorld::El1 => vmid % VMIDS as u16,
        // A counter of its own: TLBI_EL2_ALL names no VMID.
        StreamWorld::El2 | StreamWorld::El2E2h => VMIDS as u16,
    }
}

fn asid_index(world: StreamWorld, vmid: u16, asid: u16) -> u16 {
    let hash = (u32::from(vmid) << 16 | u32::from(asid)).wrapping_add(world as u32 * 0x5555);
    ((hash.wrapping_mul(0x9e37_79b1) >> 16) % ASIDS as u32) as u16
}

/// The sums that an entry must carry to be current.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// For an entry of one ASID.
    pub(crate) asid: u32,
    /// For a global entry (`nG == 0`).
    pub(crate) global: u32,
}

pub(crate) fn counters<const N: usize>() -> [AtomicU64; N] {
    std::array::from_fn(|_| AtomicU64::new(0))
}

/// All counters of one SMMU's caches.
#[derive(Debug)]
pub(crate) struct Generations {
    all: AtomicU64,
    vmid: [AtomicU64; VMIDS + 1],
    asid: [AtomicU64; ASIDS],
    /// Global entries of a VMID.
    global: [AtomicU64; VMIDS + 1],
    /// Stage 2 alone, per VMID.
    stage2: [AtomicU64; VMIDS + 1],
    /// Stage 1 tables, per ASID.
    tables: [AtomicU64; ASIDS],
    /// Configurations of all streams, and of each.
    all_streams: AtomicU64,
    streams: [AtomicU64; STREAMS],
    /// Counts after any of the others did.
    changes: AtomicU64,
}

impl Default for Generations {
    fn default() -> Self {
        Self {
            all: AtomicU64::new(0),
            vmid: counters(),
            asid: counters(),
            global: counters(),
            stage2: counters(),
            tables: counters(),
            all_streams: AtomicU64::new(0),
            streams: counters(),
            changes: AtomicU64::new(0),
        }
    }
}

impl Generations {
    /// Changes whenever a sum may have: as long as it does not, sums need not be made again. To be
    /// read before them.
    #[inline]
    pub(crate) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    fn bump(&self, counter: &AtomicU64) {
        // Release: who sees the new sum sees what was written before the invalidation.
        counter.fetch_add(1, Ordering::AcqRel);
        self.changes.fetch_add(1, Ordering::AcqRel);
    }

    /// What the configuration of a stream must carry.
    pub(crate) fn stream(&self, stream_id: u32) -> u64 {
        let stream = self.streams[stream_id as usize % STREAMS].load(Ordering::Acquire);
        self.all_streams.load(Ordering::Acquire).wrapping_add(stream)
    }

    /// The configurations of all streams.
    pub(crate) fn retire_all_streams(&self) {
        self.bump(&self.all_streams);
    }

    /// The configuration of one stream.
    pub(crate) fn retire_stream(&self, stream_id: u32) {
        self.bump(&self.streams[stream_id as usize % STREAMS]);
    }

    /// What entries of `space` must carry.
    #[inline]
    pub(crate) fn leaf(&self, space: &Space) -> Stamp {
        Stamp { asid: self.asid_entry(space), global: self.global_entry(space) }
    }

    #[inline]
    fn shared(&self, space: &Space) -> u64 {
        let vmid = self.vmid[space.vmid as usize].load(Ordering::Acquire);
        self.all.load(Ordering::Acquire).wrapping_add(vmid)
    }

    /// What an entry of one ASID must carry.
    #[inline]
    pub(crate) fn asid_entry(&self, space: &Space) -> u32 {
        self.shared(space).wrapping_add(self.asid[space.asid as usize].load(Ordering::Acquire))
            as u32
    }

    /// What a global entry must carry.
    #[inline]
    pub(crate) fn global_entry(&self, space: &Space) -> u32 {
        let global = self.global[space.vmid as usize].load(Ordering::Acquire);
        self.shared(space).wrapping_add(global) as u32
    }

    /// What a cached stage 1 table of `space` must carry.
    #[inline]
    pub(crate) fn table(&self, space: &Space) -> u32 {
        let tables = self.tables[space.asid as usize].load(Ordering::Acquire) as u32;
        self.asid_entry(space).wrapping_add(tables)
    }

    /// What a stage 2 translation or table of `space` must carry.
    #[inline]
    pub(crate) fn stage2(&self, space: &Space) -> u32 {
        let all = self.all.load(Ordering::Acquire);
        all.wrapping_add(self.stage2[space.vmid as usize].load(Ordering::Acquire)) as u32
    }

    /// Everything.
    pub(crate) fn retire_all(&self) {
        self.bump(&self.all);
    }

    /// Stage 1 and combined translations of a VMID (or of a whole EL2 world).
    pub(crate) fn retire_vmid(&self, world: StreamWorld, vmid: u16) {
        self.bump(&self.vmid[vmid_index(world, vmid) as usize]);
    }

    /// Stage 2 translations of a VMID.
    pub(crate) fn retire_stage2(&self, vmid: u16) {
        self.bump(&self.stage2[vmid_index(StreamWorld::El1, vmid) as usize]);
    }

    /// Non-global translations of an ASID.
    pub(crate) fn retire_asid(&self, world: StreamWorld, vmid: u16, asid: u16) {
        self.bump(&self.asid[asid_index(world, vmid, asid) as usize]);
    }

    /// Global translations of a VMID (or of a whole EL2 world).
    pub(crate) fn retire_global(&self, world: StreamWorld, vmid: u16) {
        self.bump(&self.global[vmid_index(world, vmid) as usize]);
    }

    /// Stage 1 tables of an ASID.
    pub(crate) fn retire_tables(&self, world: StreamWorld, vmid: u16, asid: u16) {
        self.bump(&self.tables[asid_index(world, vmid, asid) as usize]);
    }
}
