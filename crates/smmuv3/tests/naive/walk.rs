//! `AArch64.S1Walk()`, `AArch64.S2Walk()` and what surrounds them in `AArch64.S1Translate()` and
//! `AArch64.S2Translate()`: levels, descriptor types, addresses, Access flag, permissions, hardware updates.

use super::attributes::{Attributes, Memory};
use super::configuration::{Cd, Ste};
use super::permissions::{Access, Controls, Hierarchy, stage1_allows, stage2_allows};
use super::record::{Class, Fault, Place};
use super::{Descriptor, Naive, Role, Step, Stop, Update, Words, bit, bits};

/// What both stages' walks have in common.
#[derive(Clone, Copy, Debug)]
struct Shape {
    /// log2.
    granule: u64,
    iasize: u64,
    start_level: i64,
    /// Effective output size.
    oasize: u64,
    ds: bool,
    ttb: u64,
}

/// What a descriptor is.
enum Kind {
    Invalid,
    Table(u64),
    /// The output address at which the block or page begins.
    Leaf(u64),
}

/// A leaf that a walk found.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Leaf {
    pub descriptor: u64,
    /// Where it was read, PA.
    address: u64,
    /// Where it was read, as the walk sees it: an IPA if a stage 2 is under it.
    input: u64,
    pub output: u64,
    hierarchy: Hierarchy,
}

impl Shape {
    fn stride(&self) -> u64 {
        self.granule - 3
    }

    /// The lowest input bit that a table at `level` resolves.
    fn lsb(&self, level: i64) -> u64 {
        self.granule + self.stride() * (3 - level) as u64
    }

    /// `AArch64.S1TTBaseAddress()`, `AArch64.S2TTBaseAddress()`.
    fn base(&self) -> u64 {
        let mut tsize = self.iasize - self.lsb(self.start_level) + 3;
        // 64-byte alignment where the output has 52 bits (§5.2 S2TTB, §5.4 TTB0).
        if self.oasize == 52 {
            tsize = tsize.max(6);
        }
        self.ttb >> tsize << tsize
    }

    /// The output address bits of a descriptor, down to `lowest`.
    fn output(&self, descriptor: u64, lowest: u64, pamax: u64) -> u64 {
        let mut address = bits(descriptor, 47, lowest as u32) << lowest;
        if self.ds {
            address |= bits(descriptor, 49, 48) << 48 | bits(descriptor, 9, 8) << 50;
        } else if self.granule == 16 && pamax >= 52 {
            address |= bits(descriptor, 15, 12) << 48;
        }
        address
    }

    /// `AArch64.DecodeDescriptorType()`, `AArch64.BlockDescSupported()`.
    fn kind(&self, descriptor: u64, level: i64, pamax: u64) -> Kind {
        let block = match (self.granule, level) {
            (12, 1 | 2) | (14 | 16, 2) => true,
            (12, 0) | (14, 1) => self.ds,
            (16, 1) => pamax >= 52,
            _ => false,
        };
        match (bits(descriptor, 1, 0), level == 3) {
            (0b11, true) => Kind::Leaf(self.output(descriptor, self.granule, pamax)),
            (0b11, false) => Kind::Table(self.output(descriptor, self.granule, pamax)),
            (0b01, false) if block => Kind::Leaf(self.output(descriptor, self.lsb(level), pamax)),
            _ => Kind::Invalid,
        }
    }
}

/// Whose walk it is.
#[derive(Clone, Copy)]
enum Stage<'a> {
    One(&'a Ste, &'a Cd),
    Two(&'a Ste, Place),
}

/// The result of stage 2 for one IPA.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Second {
    pub pa: u64,
    pub descriptor: u64,
}

impl<M: Words> Naive<'_, M> {
    fn walk(&self, shape: &Shape, input: u64, stage: Stage) -> Step<Leaf> {
        let fault = |fault| match stage {
            Stage::One(_, cd) => self.stage1_fault(fault, cd),
            Stage::Two(ste, place) => self.stage2_fault(fault, ste, place),
        };
        let had = match stage {
            Stage::One(_, cd) => cd.halves[cd.half(self.incoming.address)].had,
            Stage::Two(..) => true,
        };
        let mut hierarchy = Hierarchy::default();
        let mut table = shape.base();
        let mut level = shape.start_level;
        loop {
            let top = if level == shape.start_level {
                shape.iasize - 1
            } else {
                shape.lsb(level - 1) - 1
            };
            let lsb = shape.lsb(level);
            let at = table + bits(input, top as u32, lsb as u32) * 8;
            let (address, place) = match stage {
                Stage::One(ste, _) => {
                    let place = Place { s2: false, class: Class::Tt, ipa: 0, table_read: true };
                    (self.table_address(ste, at, false)?, place)
                }
                Stage::Two(_, place) => (at, place),
            };
            let read = self.load(address);
            let kind =
                read.map_or(Kind::Invalid, |word| shape.kind(word, level, self.features.oas));
            let leaf = matches!(kind, Kind::Leaf(_));
            let which = Descriptor { granule: shape.granule, level, leaf };
            self.note(
                address,
                match stage {
                    Stage::One(..) => Role::First(which),
                    Stage::Two(_, place) => Role::Second(which, place),
                },
            );
            let Some(descriptor) = read else {
                return Err(self.external(place, address));
            };
            match kind {
                Kind::Invalid => return Err(fault(Fault::Translation)),
                Kind::Table(next) => {
                    if next >> shape.oasize != 0 {
                        return Err(fault(Fault::AddrSize));
                    }
                    if !had {
                        hierarchy.ap |= bits(descriptor, 62, 61);
                        hierarchy.xn |= bit(descriptor, 60);
                        hierarchy.pxn |= bit(descriptor, 59);
                    }
                    table = next;
                    level += 1;
                }
                Kind::Leaf(output) => {
                    if output >> shape.oasize != 0 {
                        return Err(fault(Fault::AddrSize));
                    }
                    if bit(descriptor, 52) && !self.group_agrees(shape, level, address, descriptor)
                    {
                        self.unpredictable.set(true);
                    }
                    let output = output | bits(input, lsb as u32 - 1, 0);
                    return Ok(Leaf { descriptor, address, input: at, output, hierarchy });
                }
            }
        }
    }

    /// Whether the contiguous bit of a leaf tells the truth: DDI 0487 leaves open what happens
    /// if not. Access flag and dirty state may differ.
    fn group_agrees(&self, shape: &Shape, level: i64, address: u64, descriptor: u64) -> bool {
        let entries = match (shape.granule, level) {
            (12, 1..=3) => 16,
            (14, 2) => 32,
            (14, 3) => 128,
            (16, 2 | 3) => 32,
            // No group at this level: the bit is ignored.
            _ => return true,
        };
        if shape.lsb(level) + u64::ilog2(entries) as u64 > shape.iasize {
            return true;
        }
        let pamax = self.features.oas;
        let size = 1 << shape.lsb(level);
        let output = |descriptor| shape.output(descriptor, shape.lsb(level), pamax);
        let mut compared = !((1 << 50) - (1 << 12)) & !(1 << 51 | 1 << 10 | 1 << 7);
        if shape.ds {
            compared &= !(3 << 8);
        }
        let index = address / 8 % entries;
        let first = output(descriptor).wrapping_sub(index * size);
        first % (entries * size) == 0
            && (0..entries).all(|n| {
                self.load(address - index * 8 + n * 8).is_some_and(|other| {
                    (other ^ descriptor) & compared == 0 && output(other) == first + n * size
                })
            })
    }

    /// The PA of a stage 1 descriptor: through stage 2, if there is one.
    fn table_address(&self, ste: &Ste, address: u64, write: bool) -> Step<u64> {
        if !ste.stage2() {
            return Ok(address);
        }
        let place = Place { s2: true, class: Class::Tt, ipa: address, table_read: !write };
        Ok(self.stage2(ste, address, Access::own(write), place)?.pa)
    }

    /// Updates a descriptor atomically, unless it has changed since it was read.
    fn update(&self, address: u64, old: u64, new: u64, place: Place) -> Step<()> {
        if new == old {
            return Ok(());
        }
        if self.optional.get() {
            self.may.borrow_mut().push(Update { address, value: new });
            return Ok(());
        }
        if self.load(address) != Some(old) {
            return Err(Stop::Again);
        }
        if !self.memory.takes_updates(address) {
            return Err(self.external(place, address));
        }
        self.must.borrow_mut().push(Update { address, value: new });
        Ok(())
    }

    /// Does something of which nobody knows whether it is done.
    pub(crate) fn perhaps<T>(&self, doing: impl FnOnce() -> Step<T>) {
        let before = self.optional.replace(true);
        let _ = doing();
        self.optional.set(before);
    }

    /// Does something that may be done on the way to something else.
    pub(crate) fn in_passing<T>(&self, doing: impl FnOnce() -> Step<T>) {
        let before = self.may.borrow().len();
        self.perhaps(doing);
        self.passed.borrow_mut().extend(self.may.borrow_mut().drain(before..));
    }

    /// Stage 1: the output address and its attributes.
    pub(crate) fn stage1(&self, ste: &Ste, cd: &Cd, access: Access) -> Step<(u64, Attributes)> {
        let leaf = self.first_leaf(ste, cd, access.privileged)?;
        if !first_allows(cd, &leaf, access) {
            self.perhaps(|| self.first_update(ste, cd, &leaf, false));
            return Err(self.stage1_fault(Fault::Permission, cd));
        }
        self.mark.set(self.must.borrow().len());
        self.first_update(ste, cd, &leaf, access.write)?;
        let old = leaf.descriptor;
        let half = &cd.halves[cd.half(self.incoming.address)];
        let sh = if half.ds { half.sh } else { bits(old, 9, 8) };
        let byte = bits(cd.mair, 8 * bits(old, 4, 2) as u32 + 7, 8 * bits(old, 4, 2) as u32);
        Ok((leaf.output, Attributes::of_mair(byte, sh)))
    }

    /// Stage 1 up to the Access flag of its leaf.
    pub(crate) fn first_leaf(&self, ste: &Ste, cd: &Cd, privileged: bool) -> Step<Leaf> {
        let va = self.incoming.address;
        let upper = cd.half(va) == 1;
        let half = &cd.halves[usize::from(upper)];
        let fault = |fault| Err(self.stage1_fault(fault, cd));
        if half.epd {
            return fault(Fault::Translation);
        }
        if half.e0pd && !privileged {
            return fault(Fault::Translation);
        }
        // AArch64.VAIsOutOfRange()
        let iasize = 64 - half.tsz;
        let addrtop = if half.tbi { 55 } else { 63 };
        let above = bits(va, addrtop, iasize as u32);
        let expected = if upper { bits(u64::MAX, addrtop, iasize as u32) } else { 0 };
        if above != expected {
            return fault(Fault::Translation);
        }
        let shape = Shape {
            granule: half.granule,
            iasize,
            start_level: 3
                - ((iasize as i64 - 1) - half.granule as i64) / (half.granule as i64 - 3),
            oasize: self.features.effective_ps(cd.ips),
            ds: half.ds,
            ttb: half.ttb,
        };
        let leaf = self.walk(&shape, va, Stage::One(ste, cd))?;
        if !bit(leaf.descriptor, 11) {
            let mut tags = self.tags.get();
            tags.global = true;
            self.tags.set(tags);
        }
        if !bit(leaf.descriptor, 10) && !cd.ha && !cd.affd {
            return fault(Fault::Access);
        }
        Ok(leaf)
    }

    /// Hardware update of a stage 1 leaf: accessed, and dirty if it is written.
    pub(crate) fn first_update(&self, ste: &Ste, cd: &Cd, leaf: &Leaf, write: bool) -> Step<()> {
        let old = leaf.descriptor;
        let mut new = old;
        if cd.ha {
            new |= 1 << 10;
        }
        if write && cd.ha && cd.hd && bit(old, 51) {
            new &= !(1 << 7);
        }
        if new == old {
            return Ok(());
        }
        let address = self.table_address(ste, leaf.input, true)?;
        self.first.borrow_mut().push(address);
        debug_assert_eq!(address, leaf.address);
        let place = Place { s2: false, class: Class::Tt, ipa: 0, table_read: false };
        self.update(address, old, new, place)
    }

    /// Stage 2 for an access that has reached `place`.
    pub(crate) fn stage2(&self, ste: &Ste, ipa: u64, access: Access, place: Place) -> Step<Second> {
        let leaf = self.second_leaf(ste, ipa, place)?;
        if !self.second_allows(ste, &leaf, access, place) {
            self.perhaps(|| self.second_update(ste, &leaf, false, place));
            return Err(self.stage2_fault(Fault::Permission, ste, place));
        }
        self.second_update(ste, &leaf, access.write, place)?;
        Ok(Second { pa: leaf.output, descriptor: leaf.descriptor })
    }

    /// Stage 2 up to the Access flag of its leaf.
    pub(crate) fn second_leaf(&self, ste: &Ste, ipa: u64, place: Place) -> Step<Leaf> {
        let fault = |fault| Err(self.stage2_fault(fault, ste, place));
        let iasize = 64 - ste.s2_t0sz;
        if ipa >> iasize != 0 {
            return fault(Fault::Translation);
        }
        let shape = Shape {
            granule: ste.s2_granule,
            iasize,
            start_level: ste.s2_start_level(),
            oasize: self.features.effective_ps(ste.s2_ps),
            ds: ste.s2_ds,
            ttb: ste.s2_ttb,
        };
        let leaf = self.walk(&shape, ipa, Stage::Two(ste, place))?;
        self.second.borrow_mut().push(leaf.address);
        if !bit(leaf.descriptor, 10) && !ste.s2_ha && !ste.s2_affd {
            return fault(Fault::Access);
        }
        Ok(leaf)
    }

    pub(crate) fn second_allows(
        &self,
        ste: &Ste,
        leaf: &Leaf,
        access: Access,
        place: Place,
    ) -> bool {
        let own = place.class != Class::In;
        let protected = own && ste.stage1() && ste.s2_ptw && is_device(ste, leaf.descriptor);
        let dirty = ste.s2_ha && ste.s2_hd;
        !protected && stage2_allows(leaf.descriptor, dirty, self.features.xnx, access)
    }

    /// Hardware update of a stage 2 leaf.
    pub(crate) fn second_update(
        &self,
        ste: &Ste,
        leaf: &Leaf,
        write: bool,
        place: Place,
    ) -> Step<()> {
        let old = leaf.descriptor;
        let mut new = old;
        if ste.s2_ha {
            new |= 1 << 10;
        }
        if write && ste.s2_ha && ste.s2_hd && bit(old, 51) {
            new |= 1 << 7;
        }
        self.update(leaf.address, old, new, place)
    }
}

/// Whether a stage 1 leaf allows an access.
pub(crate) fn first_allows(cd: &Cd, leaf: &Leaf, access: Access) -> bool {
    let dirty = cd.ha && cd.hd;
    let controls = Controls { regime: cd.regime, wxn: cd.wxn, pan: cd.pan, dirty };
    stage1_allows(leaf.descriptor, leaf.hierarchy, controls, access)
}

/// Whether a stage 2 descriptor maps its page as any Device type.
fn is_device(ste: &Ste, descriptor: u64) -> bool {
    if ste.s2_fwb {
        !bit(descriptor, 4)
    } else {
        matches!(Memory::of_mem_attr(bits(descriptor, 5, 2)), Memory::Device(_))
    }
}
