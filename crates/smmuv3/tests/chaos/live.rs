//! Software that changes its structures and tables while they are in use, and then invalidates
//! what caches may hold of them, by commands no wider than the specification demands (§4.3, §4.4).

use super::dice::Dice;
use crate::naive::permissions::Regime;
use crate::naive::record::Class;
use crate::naive::{Descriptor, Features, Read, Role, Tags};

/// A transaction that caches may remember, and all that was read for it.
#[derive(Clone, Debug)]
pub(crate) struct Issued {
    pub stream: u32,
    pub substream: Option<u32>,
    pub address: u64,
    pub tags: Tags,
    pub trace: Vec<Read>,
}

/// Commands that make a change visible.
#[derive(Clone, Default, Debug)]
pub(crate) struct Invalidation {
    pub commands: Vec<[u64; 2]>,
    /// World and VMID of which nothing remains, or, if not both, nothing of stage 1.
    pub forgotten: Vec<(u64, u64, bool)>,
}

/// What one transaction needs after the words in `changed` have changed.
pub(crate) fn invalidation(
    issued: &Issued,
    changed: &dyn Fn(&Read) -> bool,
    features: &Features,
    d: &mut Dice,
) -> Invalidation {
    let mut maker = Maker { issued, features, d, made: Invalidation::default() };
    let roles: Vec<Role> =
        issued.trace.iter().filter(|read| changed(read)).map(|read| read.role).collect();
    for (n, role) in roles.iter().enumerate() {
        if roles[..n].contains(role) {
            continue;
        }
        match role {
            Role::L1Std => maker.ste(false),
            Role::Ste => maker.ste(true),
            Role::L1Cd => maker.cd(false),
            Role::Cd => maker.cd(true),
            Role::First(descriptor) => maker.first(*descriptor),
            Role::Second(descriptor, place) => {
                maker.second(*descriptor, place.ipa, place.class);
            }
        }
    }
    maker.made
}

struct Maker<'a> {
    issued: &'a Issued,
    features: &'a Features,
    d: &'a mut Dice,
    made: Invalidation,
}

impl Maker<'_> {
    fn push(&mut self, low: u64, high: u64) {
        self.made.commands.push([low, high]);
    }

    fn stream(&self) -> u64 {
        u64::from(self.issued.stream) << 32
    }

    fn vmid(&self) -> u64 {
        self.issued.tags.vmid << 32
    }

    fn asid(&self) -> u64 {
        self.issued.tags.asid << 48
    }

    fn el2(&self) -> bool {
        self.issued.tags.world != Regime::El1 as u64
    }

    fn el2_host(&self) -> bool {
        self.issued.tags.world == Regime::El2Host as u64
    }

    /// `CMD_CFGI_STE`, `CMD_CFGI_STE_RANGE`, and the translations.
    fn ste(&mut self, leaf: bool) {
        if self.d.chance(200) {
            let range = self.d.below(32);
            self.push(0x04 | self.stream(), range);
        } else {
            let leaf = leaf && self.d.chance(500);
            self.push(0x03 | self.stream(), u64::from(leaf));
        }
        self.all();
    }

    /// `CMD_CFGI_CD`, `CMD_CFGI_CD_ALL`, `CMD_CFGI_STE`, and the translations.
    fn cd(&mut self, leaf: bool) {
        let ssid = u64::from(self.issued.substream.unwrap_or(0)) << 12;
        match self.d.below(4) {
            0 => self.push(0x06 | self.stream(), 0),
            1 => self.push(0x03 | self.stream(), 1),
            _ => {
                let leaf = leaf && self.d.chance(500);
                self.push(0x05 | ssid | self.stream(), u64::from(leaf));
            }
        }
        self.all();
    }

    /// All translations of the stream's VM, or of EL2.
    fn all(&mut self) {
        let (stage1, stage2) = (self.features.s1p, self.features.s2p);
        let tags = &self.issued.tags;
        let (world, vmid) = (tags.world, tags.vmid);
        let both = match self.d.below(3) {
            _ if self.el2() => {
                self.push(0x20, 0);
                false
            }
            1 | 2 if stage1 && tags.stage2.is_none() => {
                self.push(0x10 | self.vmid(), 0);
                false
            }
            _ if stage2 => {
                self.push(0x28 | self.vmid(), 0);
                true
            }
            _ => {
                self.push(0x30, 0);
                true
            }
        };
        self.made.forgotten.push((world, vmid, both));
    }

    /// A stage 1 descriptor: by VA, ASID, or more.
    fn first(&mut self, descriptor: Descriptor) {
        let by_asid = !self.issued.tags.global;
        let (vmid, asid) = (self.vmid(), self.asid());
        let address = self.by_va(descriptor);
        match (self.el2(), self.d.below(8)) {
            (false, 0) => self.push(0x10 | vmid, 0),
            (false, 1) if by_asid => self.push(0x11 | vmid | asid, 0),
            (false, 2 | 3) => self.push(0x13 | vmid | address[0], address[1]),
            (false, _) => self.push(0x12 | vmid | asid | address[0], address[1]),
            (true, 0) => self.push(0x20, 0),
            (true, 1) if by_asid && self.el2_host() => self.push(0x21 | asid, 0),
            (true, 2 | 3) => self.push(0x23 | address[0], address[1]),
            (true, _) => self.push(0x22 | asid | address[0], address[1]),
        }
    }

    /// A stage 2 descriptor: by IPA, and by VA what both stages together have made; or by VMID.
    fn second(&mut self, descriptor: Descriptor, ipa: u64, class: Class) {
        if class == Class::Cd {
            self.cd(false);
        }
        let vmid = self.vmid();
        if self.d.chance(300) {
            self.push(0x28 | vmid, 0);
            return;
        }
        let address = self.by_address(ipa, descriptor);
        self.push(0x2a | vmid | address[0], address[1]);
        if self.issued.tags.cd.is_some() {
            let leaf = class == Class::In && self.d.chance(500);
            let va = self.page() | u64::from(leaf);
            match self.d.below(3) {
                0 => self.push(0x10 | vmid, 0),
                1 => self.push(0x13 | vmid, va),
                _ => self.push(0x12 | vmid | self.asid(), va),
            }
        }
    }

    /// The page of the input address, without a tag.
    fn page(&self) -> u64 {
        ((self.issued.address << 8) as i64 >> 8) as u64 & !0xfff
    }

    fn by_va(&mut self, descriptor: Descriptor) -> [u64; 2] {
        let page = self.page();
        self.by_address(page, descriptor)
    }

    /// Address, Leaf, and with range invalidation TG, TTL, NUM and SCALE.
    fn by_address(&mut self, address: u64, descriptor: Descriptor) -> [u64; 2] {
        let d = &mut *self.d;
        let leaf = u64::from(descriptor.leaf && d.chance(500));
        let Descriptor { granule, level, .. } = descriptor;
        if !self.features.ril || d.chance(400) {
            return [0, address & !0xfff | leaf];
        }
        let tg = ((granule - 10) / 2) << 10;
        let has_ttl = level >= 1 && (granule != 14 || level >= 2 || self.features.ds);
        if descriptor.leaf && has_ttl && d.chance(500) {
            // One block or page, or some from there on.
            let lsb = granule + (granule - 3) * (3 - level) as u64;
            let (num, scale) = (d.below(3), lsb - granule);
            let base = address >> lsb << lsb;
            return [num << 12 | scale << 20, base | (level as u64) << 8 | tg | leaf];
        }
        // A range that begins before the address, at the other half's edge at most.
        let (num, scale) = (d.below(32), d.within(1, 6));
        let before = d.below((num + 1) << scale) << granule;
        let base = (address >> granule << granule).wrapping_sub(before);
        let crossed = (base ^ address) >> 55 != 0;
        let base = if crossed { address >> granule << granule } else { base };
        [num << 12 | scale << 20, base | tg | leaf]
    }
}
