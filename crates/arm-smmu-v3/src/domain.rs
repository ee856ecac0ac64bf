//! Domains: page tables that streams translate through.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use iommu::Prot;
use pagetable::{
    Attributes, Gather, Geometry, Granule, Mapper, Shareability, Stage, Stage1Attributes,
    Stage2Attributes,
};
use parking_lot::Mutex;
use smmuv3::wire::{Cd, Command, Ste, TlbiVa, address_bits};

use crate::error::Error;
use crate::platform::{DmaMemory, Registers};
use crate::probe::Httu;
use crate::smmu::Smmu;

/// MAIR, and the attributes in it: write-back memory, Device-nGnRE, non-cacheable memory.
const MAIR: u64 = 0x44_04_ff;
const WRITE_BACK: u8 = 0;
const DEVICE: u8 = 1;
const NON_CACHEABLE: u8 = 2;

/// The most pages that are invalidated one by one, where there is no invalidation of ranges: beyond that, to do without
/// the whole address space costs less.
const SINGLE_PAGES: u64 = 512;

/// A set of page tables of one stage, which any number of streams of one SMMU may be attached to.
///
/// Methods may be called while devices translate through the domain.
pub struct Domain<R: Registers, M: DmaMemory> {
    smmu: Arc<Smmu<R, M>>,
    geometry: Geometry,
    tag: Tag,
    dirty: bool,
    tables: Mutex<Tables<M>>,
}

/// What TLB entries of the domain have in common.
#[derive(Clone, Copy)]
enum Tag {
    Asid(u16),
    Vmid(u16),
}

struct Tables<M: DmaMemory> {
    mapper: Mapper<Arc<M>>,
    /// What has been unmapped and may still be in TLBs.
    gather: Gather,
    /// New mappings are clean.
    tracking: bool,
    /// How many vIOMMUs are above: entries of the VMID may have stage 1 in them too.
    nesting: usize,
    /// Who may have translations of the domain in a cache of its own.
    ats: Vec<AtsUser>,
}

/// A stream that asks for translations and keeps them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AtsUser {
    pub(crate) sid: u32,
    pub(crate) ssid: Option<u32>,
    /// It knows addresses that are none of the domain's: it forgets everything or nothing.
    pub(crate) whole: bool,
}

impl AtsUser {
    /// What has it forget a range, or more.
    pub(crate) fn forget(&self, range: &Range<u64>) -> Command {
        let &Self { sid, ssid, whole } = self;
        let (first, last) = (range.start >> 12, range.end.saturating_sub(1) >> 12);
        // The smallest aligned power of two that has all of it.
        let size = (64 - (first ^ last).leading_zeros()) as u8;
        let (size, addr) = if whole { (52, 0) } else { (size, first >> size << size << 12) };
        // Without a PASID, what was asked for with one is meant too.
        let ssid = ssid.filter(|_| !whole);
        Command::AtcInv { sid, ssid, global: false, size, addr }
    }
}

impl<R: Registers, M: DmaMemory> Domain<R, M> {
    /// An empty domain. With `dirty`, hardware marks the pages that devices write to.
    pub fn new(smmu: &Arc<Smmu<R, M>>, stage: Stage, dirty: bool) -> Result<Arc<Self>, Error> {
        let features = smmu.features();
        let (is_there, ids, name) = match stage {
            Stage::One => (features.stage1, &smmu.asids, "ASID"),
            Stage::Two => (features.stage2, &smmu.vmids, "VMID"),
        };
        if !is_there {
            return Err(Error::Unsupported("the SMMU does not have this stage of translation"));
        }
        if dirty && features.httu < Httu::Dirty {
            return Err(Error::Unsupported("the SMMU does not track dirty pages"));
        }
        let geometry = geometry(stage, features.granule(), features.output_bits)
            .ok_or(Error::Unsupported("no shape of tables suits the SMMU"))?;
        let mapper = Mapper::new(geometry, smmu.memory.clone())?;
        let id = ids.take().ok_or(Error::Exhausted(name))?;
        let tag = match stage {
            Stage::One => Tag::Asid(id),
            Stage::Two => Tag::Vmid(id),
        };
        let tables = Mutex::new(Tables {
            mapper,
            gather: Gather::default(),
            tracking: false,
            nesting: 0,
            ats: Vec::new(),
        });
        Ok(Arc::new(Self { smmu: smmu.clone(), geometry, tag, dirty, tables }))
    }

    /// The SMMU that the domain is for.
    pub fn smmu(&self) -> &Arc<Smmu<R, M>> {
        &self.smmu
    }

    /// Granule, sizes and stage.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Whether it was made to track dirty pages.
    pub fn tracks_dirty(&self) -> bool {
        self.dirty
    }

    /// Maps `range` to as many bytes from `output` on, with leaves of `page_sizes` (bit n for 2^n bytes): all of it, or
    /// nothing. Stage 1 can always be read.
    pub fn map(
        &self,
        range: Range<u64>,
        output: u64,
        prot: Prot,
        page_sizes: u64,
    ) -> Result<(), Error> {
        let tables = &mut *self.tables.lock();
        // A new leaf must not meet an old one in a TLB, nor hide behind an old table there.
        let stale = tables.gather.range();
        if tables.gather.has_tables()
            || stale.is_some_and(|stale| stale.start < range.end && range.start < stale.end)
        {
            self.invalidate(tables)?;
        }
        let attributes = self.attributes(prot, tables.tracking);
        tables.mapper.map(range, output, attributes, page_sizes)?;
        // The tables come before whatever tells a device to use them.
        fence(Ordering::SeqCst);
        Ok(())
    }

    /// Unmaps what is mapped in `range`, which cuts no leaf: all of it, or nothing. Devices may go on using it until
    /// [`sync`](Self::sync).
    pub fn unmap(&self, range: Range<u64>) -> Result<(), Error> {
        let tables = &mut *self.tables.lock();
        Ok(tables.mapper.unmap(range, &mut tables.gather)?)
    }

    /// When it returns, no device uses what was unmapped before. After an error it is to be called again.
    pub fn sync(&self) -> Result<(), Error> {
        self.invalidate(&mut self.tables.lock())
    }

    /// The output address for an input address.
    pub fn translate(&self, input: u64) -> Option<u64> {
        let run = self.tables.lock().mapper.read_run(input..input.checked_add(1)?)?;
        Some(run.output)
    }

    /// Begins to track the pages that devices write to, all clean; or ends it, and leaves their state as it is.
    /// While it is off, what is mapped writable counts as written to.
    pub fn set_dirty_tracking(&self, enabled: bool) -> Result<(), Error> {
        self.check_dirty()?;
        let tables = &mut *self.tables.lock();
        if enabled && !tables.tracking {
            let all = 0..1 << self.geometry.input_bits();
            tables.mapper.read_dirty(all, true, &mut tables.gather, |_| ())?;
            self.invalidate(tables)?;
        }
        tables.tracking = enabled;
        Ok(())
    }

    /// Reports the parts of `range` that lie in dirty leaves, in ascending order; with `clear`, makes those clean that
    /// lie in the range in full, for devices too before it returns.
    pub fn read_dirty(
        &self,
        range: Range<u64>,
        clear: bool,
        report: impl FnMut(Range<u64>),
    ) -> Result<(), Error> {
        self.check_dirty()?;
        let tables = &mut *self.tables.lock();
        tables.mapper.read_dirty(range, clear, &mut tables.gather, report)?;
        if clear { self.invalidate(tables) } else { Ok(()) }
    }

    fn check_dirty(&self) -> Result<(), Error> {
        let reason = "the domain was not made to track dirty pages";
        if self.dirty { Ok(()) } else { Err(Error::Unsupported(reason)) }
    }

    /// Invalidate, wait, and only then let the tables be used for something else.
    fn invalidate(&self, tables: &mut Tables<M>) -> Result<(), Error> {
        if let Some(range) = tables.gather.range() {
            let leaf = !tables.gather.has_tables();
            let mut commands = self.invalidations(range.clone(), leaf);
            if tables.nesting > 0 {
                commands.push(self.invalidate_stage1());
            }
            self.smmu.run(&commands)?;
            // Only now: a device that asks again must not be given the same.
            self.smmu.forget_atc(&tables.ats, &range)?;
        }
        tables.mapper.recycle(&mut tables.gather);
        Ok(())
    }

    /// The commands that invalidate a range; with `leaf`, what is remembered of tables may stay.
    fn invalidations(&self, range: Range<u64>, leaf: bool) -> Vec<Command> {
        let log2 = self.geometry.granule().page_log2();
        let (vmid, asid) = match self.tag {
            Tag::Asid(asid) => (0, asid),
            Tag::Vmid(vmid) => (vmid, 0),
        };
        let command = |va| match self.tag {
            Tag::Asid(_) => Command::TlbiNhVa(va),
            Tag::Vmid(_) => Command::TlbiS2Ipa(va),
        };
        let page = |address| TlbiVa { vmid, asid, address, leaf, ..TlbiVa::default() };
        let mut pages = (range.end - range.start) >> log2;
        let mut address = range.start;
        // Beyond what five bits of scale can say, without 52-bit addresses.
        if pages >> 31 != 0 {
            return vec![self.invalidate_all()];
        }
        if !self.smmu.features().range_invalidation {
            if pages > SINGLE_PAGES {
                return vec![self.invalidate_all()];
            }
            return (0..pages).map(|n| command(page(address + (n << log2)))).collect();
        }
        let tg = match self.geometry.granule() {
            Granule::K4 => 1,
            Granule::K16 => 2,
            Granule::K64 => 3,
        };
        // Five bits of the count at a time, from the lowest that is set.
        let mut commands = Vec::new();
        while pages > 0 {
            let scale = pages.trailing_zeros();
            let count = (pages >> scale) & 0x1f;
            commands.push(command(if count << scale == 1 {
                // As a range, a single page is malformed.
                page(address)
            } else {
                TlbiVa { tg, num: count as u8 - 1, scale: scale as u8, ..page(address) }
            }));
            pages -= count << scale;
            address += count << scale << log2;
        }
        commands
    }

    /// What stage 1 has been combined with this stage 2 is known by addresses that only the guest knows: so all of it.
    fn invalidate_stage1(&self) -> Command {
        Command::TlbiNhAll { vmid: self.vmid() }
    }

    /// The VMID of a stage 2; 0 for a stage 1.
    pub(crate) fn vmid(&self) -> u16 {
        match self.tag {
            Tag::Asid(_) => 0,
            Tag::Vmid(vmid) => vmid,
        }
    }

    /// From now on there may be stages 1 over this stage 2.
    pub(crate) fn begin_nesting(&self) {
        self.tables.lock().nesting += 1;
    }

    /// One of those who began is gone. What its stage 1 left in TLBs goes with the last: nobody would find it later.
    pub(crate) fn end_nesting(&self) {
        let tables = &mut *self.tables.lock();
        if tables.nesting > 1 || self.smmu.run(&[self.invalidate_stage1()]).is_ok() {
            tables.nesting -= 1;
        }
    }

    /// From now on a stream may keep translations of the domain.
    pub(crate) fn add_ats(&self, user: AtsUser) {
        self.tables.lock().ats.push(user);
    }

    /// A stream has forgotten what it kept.
    pub(crate) fn remove_ats(&self, user: AtsUser) {
        let users = &mut self.tables.lock().ats;
        if let Some(at) = users.iter().position(|other| *other == user) {
            users.swap_remove(at);
        }
    }

    fn invalidate_all(&self) -> Command {
        match self.tag {
            Tag::Asid(asid) => Command::TlbiNhAsid { vmid: 0, asid },
            Tag::Vmid(vmid) => Command::TlbiS12Vmall { vmid },
        }
    }

    fn attributes(&self, prot: Prot, tracking: bool) -> Attributes {
        let write = prot.contains(Prot::WRITE);
        let dbm = write && self.dirty;
        // Clean is what hardware may make writable, and is not yet.
        let writable = write && !(dbm && tracking);
        let no_execute = prot.contains(Prot::NOEXEC);
        let memory = if prot.contains(Prot::MMIO) {
            DEVICE
        } else if prot.contains(Prot::CACHE) {
            WRITE_BACK
        } else {
            NON_CACHEABLE
        };
        match self.geometry.stage() {
            Stage::One => Stage1Attributes {
                attr_index: memory,
                read_only: !writable,
                dbm,
                pxn: no_execute,
                uxn: no_execute,
                ..Stage1Attributes::DMA
            }
            .into(),
            Stage::Two => Stage2Attributes {
                mem_attr: [0b1111, 0b0001, 0b0101][usize::from(memory)],
                read: prot.contains(Prot::READ),
                write: writable,
                shareability: Shareability::Inner,
                accessed: true,
                dbm,
                execute_never: if no_execute { 0b10 } else { 0 },
            }
            .into(),
        }
    }

    /// The CD of a stage 1; `None` for a stage 2.
    pub(crate) fn cd(&self) -> Option<Cd> {
        let Tag::Asid(asid) = self.tag else { return None };
        let granule = match self.geometry.granule() {
            Granule::K4 => 0b00,
            Granule::K64 => 0b01,
            Granule::K16 => 0b10,
        };
        let cd = Cd::default().with_v(true).with_aa64(true).with_r(true).with_a(true);
        let cd = cd.with_t0sz(64 - self.geometry.input_bits()).with_tg0(granule);
        // Walks are cached, inner shareable. Nothing is in the upper half.
        let cd = cd.with_ir0(1).with_or0(1).with_sh0(3).with_epd1(true);
        let cd = cd.with_ips(self.output_size()).with_ttb0(self.base()).with_mair(MAIR);
        Some(cd.with_aset(true).with_asid(asid).with_ha(self.dirty).with_hd(self.dirty))
    }

    /// Adds a stage 2 to an STE; `None` for a stage 1.
    pub(crate) fn stage2(&self, ste: Ste) -> Option<Ste> {
        let Tag::Vmid(vmid) = self.tag else { return None };
        let (granule, last) = match self.geometry.granule() {
            Granule::K4 => (0b00, 2),
            Granule::K64 => (0b01, 3),
            Granule::K16 => (0b10, 3),
        };
        let ste = ste.with_s2_aa64(true).with_s2_r(true).with_s2_vmid(vmid);
        let ste = ste.with_s2_t0sz(64 - self.geometry.input_bits()).with_s2_tg(granule);
        let ste = ste.with_s2_sl0((last - self.geometry.initial_level()) as u8);
        let ste = ste.with_s2_ir0(1).with_s2_or0(1).with_s2_sh0(3);
        let ste = ste.with_s2_ps(self.output_size()).with_s2_ttb(self.base());
        Some(ste.with_s2_ha(self.dirty).with_s2_hd(self.dirty))
    }

    fn base(&self) -> u64 {
        self.tables.lock().mapper.table().base()
    }

    /// The output size as CDs and STEs encode it.
    fn output_size(&self) -> u8 {
        let bits = u32::from(self.geometry.output_bits());
        (0..=6).find(|&code| address_bits(code) >= bits).unwrap_or(6)
    }
}

impl<R: Registers, M: DmaMemory> Drop for Domain<R, M> {
    /// Nothing is attached any more. Whoever gets the ASID or VMID next must not find entries in the TLBs.
    fn drop(&mut self) {
        if self.smmu.run(&[self.invalidate_all()]).is_ok() {
            match self.tag {
                Tag::Asid(asid) => self.smmu.asids.give(asid),
                Tag::Vmid(vmid) => self.smmu.vmids.give(vmid),
            }
        }
        let tables = self.tables.get_mut();
        tables.mapper.recycle(&mut tables.gather);
    }
}

fn geometry(stage: Stage, granule: Granule, output_bits: u8) -> Option<Geometry> {
    // More needs another form of descriptors, or with 64K wins nothing.
    let bits = output_bits.min(48);
    let output = if granule == Granule::K64 { output_bits } else { bits };
    let geometry = match stage {
        Stage::One => Geometry::stage1(granule, 48, output, false).ok(),
        // As few levels as there can be, with up to 16 tables side by side at the top.
        Stage::Two => (0..3)
            .rev()
            .find_map(|level| Geometry::stage2(granule, bits, level, output, false).ok()),
    };
    geometry.map(|geometry| geometry.with_lpa(output_bits == 52))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// The smallest aligned power of two that has the range.
        #[test]
        fn what_an_endpoint_forgets_covers_the_range(a in 0..1u64 << 52, b in 0..1u64 << 52, far in 0..52u32) {
            let (start, end) = (a.min(b) >> far, (a.max(b) >> far) + 1);
            let user = AtsUser { sid: 3, ssid: Some(4), whole: false };
            let Command::AtcInv { sid: 3, ssid: Some(4), size, addr, .. } = user.forget(&(start..end)) else {
                return Err(TestCaseError::fail("another command"));
            };
            let covers = |size: u8, addr: u64| {
                u128::from(addr) <= u128::from(start)
                    && u128::from(addr) + (4096u128 << size) >= u128::from(end)
            };
            prop_assert!(size <= 52 && addr.trailing_zeros() >= u32::from(size) + 12 || addr == 0);
            prop_assert!(covers(size, addr));
            if size > 0 {
                let smaller = start >> (size + 11) << (size + 11);
                prop_assert!(!covers(size - 1, smaller));
            }
        }
    }
}
