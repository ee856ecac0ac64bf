//! From an input address to an output address: stage 1, stage 2, and stage 1 through stage 2.
//!
//! One walk serves data, CD fetches and table fetches; one recorder sees all of it. Faults leave
//! here with what an event record needs, and it is [`fault`](crate::fault) that makes the record.

use pagetable::{
    Descriptors, Fault as WalkFault, Granule, LAST_LEVEL, Leaf, Permissions, Shareability,
    Step as WalkStep, TableAttributes,
};

use crate::attributes::Attributes;
use crate::cache::tlb::{Before, Data, LARGE, Tlb};
use crate::config::{Context, FaultControls, Half, Stage1, Stage2};
use crate::explain::{Recorder, Step};
use crate::fault::Fault;
use crate::platform::Memory;
use crate::wire::{Class, EventKind};

/// How often a walk starts over because a descriptor changed under a hardware update. Whoever
/// changes it more often than that only delays its own transactions.
const UPDATES: u32 = 64;

/// What a transaction wants to do, after the STE's overrides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) write: bool,
    pub(crate) privileged: bool,
    pub(crate) instruction: bool,
}

impl Wanted {
    /// A read by the SMMU itself, of a table or a CD.
    pub(crate) const READ: Self = Self::own(false);

    const fn own(write: bool) -> Self {
        Self { write, privileged: true, instruction: false }
    }

    #[inline]
    pub(crate) fn permissions(self) -> Permissions {
        match (self.privileged, self.write, self.instruction) {
            (false, true, _) => Permissions::USER_WRITE,
            (false, false, false) => Permissions::USER_READ,
            (false, false, true) => Permissions::USER_EXECUTE,
            (true, true, _) => Permissions::PRIVILEGED_WRITE,
            (true, false, false) => Permissions::PRIVILEGED_READ,
            (true, false, true) => Permissions::PRIVILEGED_EXECUTE,
        }
    }
}

/// Where a translation ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    /// The output address for the input.
    pub(crate) address: u64,
    /// What stage 1 made of the input; the input itself if stage 1 is off.
    pub(crate) ipa: u64,
    /// Log2 of the size of the page around it that all enabled stages translate alike.
    pub(crate) size: u32,
    pub(crate) permissions: Permissions,
    /// Of the result if stage 1 translates, else of stage 2 alone.
    pub(crate) memory: u8,
    pub(crate) shareability: Shareability,
}

/// Bits [63:52] agree: an address that a 52-bit regime could translate, and that the TLB can hold.
#[inline]
pub(crate) fn representable(address: u64) -> bool {
    (address << 11) as i64 >> 11 == address as i64
}

impl Stage1 {
    /// `address` as the regime sees it, with the top byte replaced by the sign where it is ignored.
    #[inline]
    pub(crate) fn canonical(&self, address: u64) -> u64 {
        let upper = self.two_halves && address >> 55 & 1 == 1;
        match (self.tbi[usize::from(upper)], upper) {
            (false, _) => address,
            (true, false) => address & ((1 << 56) - 1),
            (true, true) => address | 0xff << 56,
        }
    }

    /// The half that translates a canonical address, and the address without the sign. `None` is a
    /// translation fault.
    fn select(&self, canonical: u64) -> Option<(&Half, u64)> {
        let upper = self.two_halves && canonical >> 55 & 1 == 1;
        let half = self.halves[usize::from(upper)].as_ref()?;
        let bits = half.table.geometry().input_bits();
        let sign = if upper { !0 } else { 0 };
        ((canonical ^ sign) >> bits == 0).then_some((half, canonical & ((1 << bits) - 1)))
    }
}

/// One translation in the making.
pub(crate) struct Walker<'a, M, R> {
    pub(crate) memory: &'a M,
    pub(crate) tlb: &'a Tlb,
    pub(crate) context: &'a Context,
    /// Bits of physical address.
    pub(crate) oas: u8,
    /// The state of the TLB before anything was read; `None` leaves caches and tables as they are,
    /// for explanations.
    pub(crate) before: Option<Before>,
    pub(crate) recorder: &'a mut R,
}

impl<M: Memory, R: Recorder> Walker<'_, M, R> {
    /// Translates the input address of a transaction. `canonical` has its top byte as the regime sees it.
    #[inline]
    pub(crate) fn translate(&mut self, canonical: u64, wanted: Wanted) -> Result<Output, Fault> {
        let context = self.context;
        match (&context.stage1, &context.stage2) {
            (Some(stage1), _) => self.stage1(stage1, canonical, wanted),
            (None, stage2) => {
                // Stage 1 passes the address on, if the next stage (or the system) can take it.
                if canonical >> self.oas != 0 {
                    return Err(Fault::bypassed_stage1());
                }
                let Some(stage2) = stage2 else {
                    return Ok(Output {
                        address: canonical,
                        ipa: canonical,
                        size: u32::from(self.oas),
                        permissions: Permissions::ALL,
                        memory: 0,
                        shareability: Shareability::NonShareable,
                    });
                };
                let output = self.stage2(stage2, canonical, wanted, Class::In)?;
                if let Some(before) = &self.before {
                    let data = Data::new(
                        output.address & !0xfff,
                        output.permissions.bits(),
                        false,
                        output.memory,
                        output.shareability as u8,
                    );
                    self.fill(canonical, output.size, output.size, data, before);
                }
                Ok(output)
            }
        }
    }

    #[inline(always)]
    fn fill(&self, address: u64, size: u32, scope: u32, data: Data, before: &Before) {
        // A large entry holds the address of its 2 MiB.
        let data = if size >= LARGE { Data::from_raw(data.raw() & !0x1f_f000) } else { data };
        self.tlb.fill(&self.context.space, address, size, scope, data, before);
    }

    fn stage1(&mut self, stage1: &Stage1, canonical: u64, wanted: Wanted) -> Result<Output, Fault> {
        let fault = |kind| Fault::stage1(kind, stage1.faults);
        let Some((half, input)) = stage1.select(canonical) else {
            self.recorder.step(|| Step::OutOfRange { stage: 1, address: canonical });
            return Err(fault(EventKind::Translation));
        };
        if half.e0pd && !wanted.privileged {
            return Err(fault(EventKind::Translation));
        }
        let controls =
            pagetable::Stage1Controls { hierarchical_disabled: half.had, ..stage1.controls };
        for _ in 0..UPDATES {
            let (leaf, descriptor_pa) = self.walk_stage1(stage1, half, canonical, input)?;
            let view = leaf.stage1();
            let mut descriptor = leaf.descriptor;
            if !view.accessed() {
                match (stage1.ha, stage1.affd) {
                    (true, _) => descriptor |= pagetable::format::AF,
                    (false, true) => {}
                    (false, false) => return Err(fault(EventKind::Access)),
                }
            }
            let permissions = view.permissions(controls);
            if !permissions.contains(wanted.permissions()) {
                self.recorder.step(|| Step::Denied {
                    stage: 1,
                    granted: permissions,
                    wanted: wanted.permissions(),
                });
                return Err(fault(EventKind::Permission));
            }
            if wanted.write && stage1.hd && view.writable_clean() {
                descriptor = pagetable::Stage1Leaf { descriptor, ..view }.dirtied();
            }
            if descriptor != leaf.descriptor
                && !self.update_stage1(
                    leaf.descriptor_address,
                    descriptor_pa,
                    leaf.descriptor,
                    descriptor,
                )?
            {
                continue;
            }
            return self.after_stage1(stage1, half, canonical, &leaf, descriptor, controls, wanted);
        }
        Err(Fault::walk_abort(false, Class::Tt, 0))
    }

    /// Hardware update of a stage 1 descriptor; `false` if it changed in between.
    fn update_stage1(
        &mut self,
        ipa: u64,
        pa: Option<u64>,
        old: u64,
        new: u64,
    ) -> Result<bool, Fault> {
        let pa = match (&self.context.stage2, pa) {
            (Some(stage2), _) => self.stage2(stage2, ipa, Wanted::own(true), Class::Tt)?.address,
            (None, Some(pa)) => pa,
            (None, None) => ipa,
        };
        self.recorder.step(|| Step::Updated { stage: 1, address: pa, old, new });
        if self.before.is_none() {
            return Ok(true);
        }
        let seen = self
            .memory
            .compare_exchange(pa, old, new)
            .map_err(|_| Fault::walk_abort(false, Class::Tt, pa))?;
        Ok(seen == old)
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one finished stage 1")]
    #[inline(always)]
    fn after_stage1(
        &mut self,
        stage1: &Stage1,
        half: &Half,
        canonical: u64,
        leaf: &Leaf,
        descriptor: u64,
        controls: pagetable::Stage1Controls,
        wanted: Wanted,
    ) -> Result<Output, Fault> {
        let view = pagetable::Stage1Leaf { descriptor, ..leaf.stage1() };
        let mut permissions = view.permissions(controls);
        if controls.hardware_dirty && view.writable_clean() {
            // A page that is still clean must come back for its first write. For everything else, execution above
            // all, it counts as writable already.
            permissions =
                permissions.without(Permissions::USER_WRITE).without(Permissions::PRIVILEGED_WRITE);
        }
        if half.e0pd {
            permissions = permissions
                .without(Permissions::USER_READ)
                .without(Permissions::USER_WRITE)
                .without(Permissions::USER_EXECUTE);
        }
        let own = half.shareability.unwrap_or_else(|| view.shareability());
        let mut attributes =
            Attributes::from_mair((stage1.mair >> (8 * view.attr_index())) as u8, own);
        let scope = u32::from(leaf.size_log2);
        let ipa = leaf.output;
        let (mut address, mut size) = (ipa, scope);
        if let Some(stage2) = &self.context.stage2 {
            let second = self.stage2(stage2, address, wanted, Class::In)?;
            permissions = Permissions::from_bits(permissions.bits() & second.permissions.bits());
            attributes = attributes.through_stage2(second.memory, second.shareability, stage2.fwb);
            address = second.address;
            size = size.min(second.size);
        }
        self.recorder.step(|| Step::Combined {
            address,
            size_log2: size as u8,
            permissions,
            attributes,
        });
        if let Some(before) = &self.before {
            let global = !view.not_global();
            let data = Data::new(
                address & !0xfff,
                permissions.bits(),
                global,
                attributes.memory,
                attributes.shareability as u8,
            );
            self.fill(canonical, size, scope, data, before);
        }
        Ok(Output {
            address,
            ipa,
            size,
            permissions,
            memory: attributes.memory,
            shareability: attributes.shareability,
        })
    }

    /// Stage 1 up to its leaf, and where the leaf's descriptor is if no second translation is
    /// needed to know.
    #[inline(always)]
    fn walk_stage1(
        &mut self,
        stage1: &Stage1,
        half: &Half,
        canonical: u64,
        input: u64,
    ) -> Result<(Leaf, Option<u64>), Fault> {
        let geometry = half.table.geometry();
        let cacheable = geometry.granule() == Granule::K4 && geometry.initial_level() < LAST_LEVEL;
        if cacheable
            && let Some(before) = &self.before
            && let Some(data) = self.tlb.lookup_stage1_table(&self.context.space, canonical, before)
        {
            let attributes = TableAttributes::from_bits(data.permissions());
            let mut direct =
                Direct { memory: self.memory, stage: 1, recorder: &mut *self.recorder };
            match half.table.walk_last_level(data.address(), attributes, input, &mut direct) {
                Ok(leaf)
                    if self.context.stage2.is_none()
                        || leaf.stage1().accessed() && !leaf.stage1().writable_clean() =>
                {
                    return Ok((leaf, Some(leaf.descriptor_address)));
                }
                // A hardware update needs the descriptor's IPA, and a fault is reported from a walk
                // that had nothing cached.
                _ => {}
            }
        }
        let nested = self.context.stage2.is_some();
        let mut tables = Stage1Tables { walker: self, last: 0 };
        let result = half.table.walk(input, &mut tables);
        let last = tables.last;
        match result {
            Ok(leaf) => {
                if cacheable
                    && leaf.level == LAST_LEVEL
                    && let Some(before) = &self.before
                {
                    let data = Data::new(last & !0xfff, leaf.table_attributes.bits(), false, 0, 0);
                    self.tlb.fill_stage1_table(&self.context.space, canonical, data, before);
                }
                Ok((leaf, (!nested).then_some(last)))
            }
            Err(WalkFault::Translation { .. }) => {
                Err(Fault::stage1(EventKind::Translation, stage1.faults))
            }
            Err(WalkFault::AddressSize { .. }) => {
                Err(Fault::stage1(EventKind::AddrSize, stage1.faults))
            }
            Err(WalkFault::Memory { error, .. }) => Err(error),
        }
    }

    /// Translates an IPA.
    pub(crate) fn stage2(
        &mut self,
        stage2: &Stage2,
        ipa: u64,
        wanted: Wanted,
        class: Class,
    ) -> Result<Output, Fault> {
        let need = wanted.permissions();
        self.recorder.step(|| Step::Stage2 { ipa, class });
        // Tables are met again and again; a page of data has its own entry among the combined ones.
        let pages = class != Class::In;
        if let Some(before) = &self.before
            && let Some((data, size)) = self.tlb.lookup_stage2(&self.context.vm, ipa, pages, before)
        {
            let permissions = Permissions::from_bits(data.permissions());
            if permissions.contains(need) && !(stage2.ptw && class != Class::In) {
                let offset = (1 << size) - 1;
                return Ok(Output {
                    address: data.address() & !offset | ipa & offset,
                    ipa,
                    size,
                    permissions,
                    memory: data.memory(),
                    shareability: Shareability::from_bits(data.shareability().into()),
                });
            }
        }
        let fault = |kind| Fault::stage2(kind, stage2.faults, class, ipa, !wanted.write);
        for _ in 0..UPDATES {
            let leaf = self.walk_stage2(stage2, ipa, class, !wanted.write)?;
            let view = leaf.stage2();
            let mut descriptor = leaf.descriptor;
            if !view.accessed() {
                match (stage2.ha, stage2.affd) {
                    (true, _) => descriptor |= pagetable::format::AF,
                    (false, true) => {}
                    (false, false) => return Err(fault(EventKind::Access)),
                }
            }
            let permissions = view.permissions(stage2.controls);
            let device = is_device(view.mem_attr(), stage2.fwb);
            if !permissions.contains(need) || stage2.ptw && class != Class::In && device {
                self.recorder.step(|| Step::Denied {
                    stage: 2,
                    granted: permissions,
                    wanted: need,
                });
                return Err(fault(EventKind::Permission));
            }
            if wanted.write && stage2.hd && view.writable_clean() {
                descriptor = pagetable::Stage2Leaf { descriptor }.dirtied();
            }
            if descriptor != leaf.descriptor {
                let address = leaf.descriptor_address;
                self.recorder.step(|| Step::Updated {
                    stage: 2,
                    address,
                    old: leaf.descriptor,
                    new: descriptor,
                });
                if self.before.is_some() {
                    let seen = self
                        .memory
                        .compare_exchange(address, leaf.descriptor, descriptor)
                        .map_err(|_| Fault::walk_abort(true, class, address))?;
                    if seen != leaf.descriptor {
                        continue;
                    }
                }
            }
            let view = pagetable::Stage2Leaf { descriptor };
            let permissions = view.permissions(pagetable::Stage2Controls {
                hardware_dirty: false,
                ..stage2.controls
            });
            let output = Output {
                address: leaf.output,
                ipa,
                size: u32::from(leaf.size_log2),
                permissions,
                memory: view.mem_attr(),
                shareability: stage2.shareability.unwrap_or_else(|| view.shareability()),
            };
            let block = output.size >= LARGE;
            if let Some(before) = &self.before
                && (pages || block)
            {
                let page = if block { !0x1f_ffff } else { !0xfff };
                let data = Data::new(
                    output.address & page,
                    permissions.bits(),
                    false,
                    output.memory,
                    output.shareability as u8,
                );
                self.tlb.fill_stage2(&self.context.vm, ipa, output.size, data, before);
            }
            return Ok(output);
        }
        Err(Fault::walk_abort(true, class, 0))
    }

    #[inline(always)]
    fn walk_stage2(
        &mut self,
        stage2: &Stage2,
        ipa: u64,
        class: Class,
        read: bool,
    ) -> Result<Leaf, Fault> {
        let granule4k = stage2.table.geometry().granule() == Granule::K4;
        let mut direct = Direct { memory: self.memory, stage: 2, recorder: &mut *self.recorder };
        let cached = match &self.before {
            Some(before) if granule4k => {
                self.tlb.lookup_stage2_table(&self.context.vm, ipa, before)
            }
            _ => None,
        };
        let result = match cached {
            Some(data) => {
                let attributes = TableAttributes::NONE;
                stage2.table.walk_last_level(data.address(), attributes, ipa, &mut direct)
            }
            None => stage2.table.walk(ipa, &mut direct),
        };
        match result {
            Ok(leaf) => {
                if granule4k
                    && cached.is_none()
                    && leaf.level == LAST_LEVEL
                    && stage2.table.geometry().initial_level() < LAST_LEVEL
                    && let Some(before) = &self.before
                {
                    let data = Data::new(leaf.descriptor_address & !0xfff, 0, false, 0, 0);
                    self.tlb.fill_stage2_table(&self.context.vm, ipa, data, before);
                }
                Ok(leaf)
            }
            Err(WalkFault::Translation { .. }) => {
                Err(Fault::stage2(EventKind::Translation, stage2.faults, class, ipa, read))
            }
            Err(WalkFault::AddressSize { .. }) => {
                Err(Fault::stage2(EventKind::AddrSize, stage2.faults, class, ipa, read))
            }
            Err(WalkFault::Memory { error, .. }) => Err(Fault::walk_abort(true, class, error)),
        }
    }
}

/// Whether a stage 2 `MemAttr` makes Device memory by itself, as the reserved encodings do.
fn is_device(mem_attr: u8, fwb: bool) -> bool {
    let (outer, inner) = (mem_attr >> 2 & 0x3, mem_attr & 0x3);
    if fwb { mem_attr & 0x4 == 0 } else { outer == 0 || inner == 0 }
}

/// Tables at physical addresses.
struct Direct<'a, M, R> {
    memory: &'a M,
    stage: u8,
    recorder: &'a mut R,
}

impl<M: Memory, R: Recorder> Descriptors for Direct<'_, M, R> {
    /// The physical address that aborted.
    type Error = u64;

    #[inline]
    fn read(&mut self, address: u64, _level: i8) -> Result<u64, u64> {
        self.memory.load(address).map_err(|_| address)
    }

    #[inline]
    fn seen(&mut self, step: WalkStep) {
        let stage = self.stage;
        self.recorder.step(|| Step::Descriptor { stage, physical: step.address, step });
    }
}

/// Stage 1 tables, which may be in intermediate physical memory.
struct Stage1Tables<'w, 'a, M, R> {
    walker: &'w mut Walker<'a, M, R>,
    /// Physical address of the last descriptor read.
    last: u64,
}

impl<M: Memory, R: Recorder> Descriptors for Stage1Tables<'_, '_, M, R> {
    type Error = Fault;

    #[inline]
    fn read(&mut self, address: u64, _level: i8) -> Result<u64, Fault> {
        let context = self.walker.context;
        let physical = match &context.stage2 {
            Some(stage2) => self.walker.stage2(stage2, address, Wanted::READ, Class::Tt)?.address,
            None => address,
        };
        self.last = physical;
        self.walker.memory.load(physical).map_err(|_| Fault::walk_abort(false, Class::Tt, physical))
    }

    #[inline]
    fn seen(&mut self, step: WalkStep) {
        let physical = self.last;
        self.walker.recorder.step(|| Step::Descriptor { stage: 1, physical, step });
    }
}

/// How one stage's faults are handled, for a fault that is not that of a translation.
impl FaultControls {
    /// Configuration errors and aborted fetches: recorded, terminated, never stalled.
    pub(crate) const ALWAYS: Self = Self { abort: true, record: true, stall: false };
}
