//! What one random world is like.
//!
//! Its memory is a pool of 2 MiB, divided by what software might keep there: CDs, level 1
//! descriptors, STEs, translation tables. Each word follows from the seed and its address alone, so
//! nothing is filled in advance. Descriptors are the same at every level and both stages: most of
//! them map the pool to itself, so that walks of any depth, and walks under walks, get somewhere.

use super::dice::{Dice, mix};
use crate::naive::Features;

/// Where the pool is. Small enough for the smallest output size, and not zero.
pub(crate) const POOL: u64 = 0x20_0000;
pub(crate) const POOL_SIZE: u64 = 0x20_0000;
/// Parts of the pool are 64 KiB.
pub(crate) const PART: u64 = 0x1_0000;
/// Tables first: so upper levels of walks for addresses in the pool, whose indexes are small, find tables.
const TABLES: u64 = 0;
const CDS: u64 = 26;
const LEVEL1: u64 = 29;
const STES: u64 = 30;
const PARTS: u64 = 32;
/// Where the queues are: where no plan points.
pub(crate) const QUEUES: u64 = 0x5a5a_0000;
pub(crate) const QUEUES_SIZE: u64 = 0x2000;

/// One random world.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub seed: u64,
    features: Features,
    /// log2, of most tables.
    granule: u64,
    ds: bool,
    t0sz: u64,
    t1sz: u64,
    s2_t0sz: u64,
    /// How many of 1000 descriptors are odd in one way or another.
    odd: u64,
    /// Permille of descriptors that are blocks, are not accessed, are dirty-bit managed.
    blocks: u64,
    unaccessed: u64,
    dbm: u64,
    /// Permille of structures with something broken.
    broken: u64,
    pub httu: bool,
    stall: bool,
    contiguous: bool,
    globals: bool,
    restricted: bool,
    /// Streams share VMIDs, stage 2 and CDs.
    shared: bool,
    /// Address bits under which the pool is there once more.
    alias: u64,
    /// Ranges of the pool that abort, and that refuse updates.
    pub holes: [(u64, u64); 2],
    pub rom: (u64, u64),
    pub strtab_base: u64,
    pub strtab_base_cfg: u32,
    pub cr2: u32,
    pub gbpa: u32,
    pub atschk: bool,
    pub enabled: bool,
    /// Software changes its tables as it goes.
    pub live: bool,
}

impl Plan {
    pub(crate) fn new(seed: u64, features: &Features) -> Self {
        let f = *features;
        let mut dice = Dice::new(seed, 1);
        let d = &mut dice;
        let granules: Vec<u64> =
            [12, 14, 16].into_iter().filter(|g| f.granule_supported(*g)).collect();
        let granule = d.pick(&granules);
        let contiguous = d.chance(150);
        let httu = !contiguous && f.httu != 0 && d.chance(400);
        let ds = f.ds && d.chance(400);
        let tsz = |d: &mut Dice| legal_tsz(d, &f, granule, ds);
        let (t0sz, t1sz, s2_t0sz) = (tsz(d), tsz(d), tsz(d));
        let range = |d: &mut Dice| {
            let start = POOL + d.below(POOL_SIZE / 64) * 64;
            (start, start + (64 << d.below(11)))
        };
        let holes = if d.chance(150) { [range(d), range(d)] } else { [(0, 0); 2] };
        let rom = if d.chance(150) { range(d) } else { (0, 0) };
        let two_level = d.chance(500);
        let log2size = if d.chance(900) { d.within(2, 11) } else { d.bits(6) };
        let split = if d.chance(850) { d.pick(&[6, 8, 10]) } else { d.bits(5) };
        let part = if two_level { LEVEL1 } else { STES };
        let low = if d.chance(500) { d.bits(15) & !0x3f } else { 0 };
        let high = if f.minor == 0 { 1 << 43 } else { 1 << 49 };
        let fmt = if d.chance(950) { u64::from(two_level) } else { d.bits(2) };
        Self {
            seed,
            features: f,
            granule,
            ds,
            t0sz,
            t1sz,
            s2_t0sz,
            odd: d.pick(&[0, 0, 0, 1, 5, 20, 80]),
            blocks: d.pick(&[0, 0, 20, 60, 150]),
            unaccessed: d.pick(if httu { &[100, 300, 600] } else { &[0, 0, 3, 50] }),
            dbm: d.pick(&[0, 300, 800]),
            broken: d.pick(&[0, 10, 50, 300]),
            httu,
            stall: f.stall_model != 1 && d.chance(300),
            contiguous,
            globals: d.chance(300),
            restricted: d.chance(400),
            shared: d.chance(350),
            alias: d.pick(&[
                0,
                0,
                0,
                0,
                0,
                0,
                1 << 33,
                1 << 37,
                1 << 41,
                1 << 45,
                1 << 47,
                high,
                high << 2,
            ]),
            holes,
            rom,
            strtab_base: (POOL + part * PART + low) | d.bits(1) << 62,
            strtab_base_cfg: (log2size | split << 6 | fmt << 16) as u32,
            cr2: (d.bits(2) | d.bits(1) << 3) as u32,
            atschk: f.ats && d.chance(600),
            gbpa: (d.bits(21) & 0x000f_3f1f) as u32 | u32::from(d.chance(200)) << 20,
            enabled: d.chance(980),
            // Hardware updates and contiguous groups would leave open what caches may hold.
            live: !httu && !contiguous && d.chance(700),
        }
    }

    /// The word that the world begins with.
    pub(crate) fn word(&self, address: u64) -> Option<u64> {
        let place = address & !self.alias;
        let offset = place.wrapping_sub(POOL);
        if offset >= POOL_SIZE || in_range(self.holes[0], place) || in_range(self.holes[1], place) {
            return None;
        }
        let within = (offset % 64 / 8) as usize;
        Some(match offset / PART {
            CDS..LEVEL1 => self.cd(address & !63)[within],
            LEVEL1 if offset % PART < PART / 2 => self.l1std(address),
            LEVEL1 => self.l1cd(address),
            STES..PARTS => self.ste(address & !63)[within],
            _ => self.descriptor(address),
        })
    }

    /// The same world with other content: what software might write over its memory.
    pub(crate) fn otherwise(&self, salt: u64) -> Self {
        Self { seed: self.seed ^ mix(salt), ..self.clone() }
    }

    /// Whether 64-byte structures are at an address.
    pub(crate) fn is_structure(&self, address: u64) -> bool {
        (address & !self.alias).wrapping_sub(POOL + CDS * PART) < (PARTS - CDS) * PART
    }

    pub(crate) fn is_rom(&self, address: u64) -> bool {
        in_range(self.rom, address & !self.alias)
    }

    /// A number that no other structure of the pool has.
    fn slot(address: u64) -> u64 {
        (address / 64) & 0x7fff
    }

    fn aliased(&self, d: &mut Dice, permille: u64) -> u64 {
        if d.chance(permille) { self.alias } else { 0 }
    }

    /// Something in the tables, anywhere in the pool now and then.
    fn table_pointer(&self, d: &mut Dice) -> u64 {
        let part = if d.chance(950) { d.within(TABLES, CDS - 1) } else { d.below(32) };
        let offset = if d.chance(300) { d.bits(16) & !0xf } else { 0 };
        // In SMMUv3.0 bits [51:48] are RES0.
        let top = if self.features.minor == 0 { 47 } else { 51 };
        let far = if d.chance(self.broken / 8) { 1 << d.within(30, top) } else { 0 };
        (POOL + part * PART + offset) | self.aliased(d, 30) | far
    }

    fn granule(&self, d: &mut Dice) -> u64 {
        if self.contiguous || d.chance(900) { self.granule } else { d.pick(&[12, 14, 16, 0]) }
    }

    fn l1std(&self, address: u64) -> u64 {
        let d = &mut Dice::new(self.seed, address);
        let split = match self.strtab_base_cfg >> 6 & 0x1f {
            split @ (8 | 10) => u64::from(split),
            _ => 6,
        };
        let span = if d.chance(900) { split + 1 - d.below(2) } else { d.bits(5) };
        let pointer = POOL + d.within(STES, PARTS - 1) * PART + (d.bits(16) & !0x3f);
        let far = if d.chance(self.broken / 8) { 1 << d.within(30, 55) } else { 0 };
        span | pointer | self.aliased(d, 30) | far
    }

    fn l1cd(&self, address: u64) -> u64 {
        let d = &mut Dice::new(self.seed, address);
        // Bits [15:12] are RES0 if S1Fmt says 64 KiB.
        let offset = if d.chance(150) { d.bits(16) & !0xfff } else { 0 };
        let pointer = POOL + d.within(CDS, LEVEL1 - 1) * PART + offset;
        let far = if d.chance(self.broken / 8) { 1 << d.within(30, 55) } else { 0 };
        u64::from(!d.chance(self.broken)) | pointer | self.aliased(d, 30) | far
    }

    fn ste(&self, address: u64) -> [u64; 8] {
        let f = &self.features;
        let d = &mut Dice::new(self.seed, address);
        let mut s = Fields([0; 8]);
        let broken = d.chance(self.broken);
        s.set(0, 1, u64::from(!(broken && d.chance(200))));
        let config = match d.below(100) {
            0..35 => 0b111,
            35..65 => 0b101,
            65..85 => 0b110,
            85..88 => 0b100,
            _ => d.bits(3),
        };
        let config = if f.s2p || d.chance(20) { config } else { config & !0b010 };
        s.set(1, 3, if f.s1p { config } else { config & !0b001 });
        let cdmax =
            if f.ssidsize == 0 || d.chance(300) { 0 } else { d.within(0, 12.min(f.ssidsize)) };
        let two_level = f.cd2l && cdmax != 0 && d.chance(400);
        s.set(4, 2, if two_level { d.within(1, 2) } else { d.pick(&[0, 3]) });
        let pointer = if two_level {
            POOL + LEVEL1 * PART + PART / 2 + d.bits(14)
        } else {
            let offset = if self.shared { d.below(2) << (cdmax + 6) } else { d.bits(16) };
            POOL + d.within(CDS, LEVEL1 - 1) * PART + offset
        };
        let lowest = if two_level { 6.max(cdmax as i64 - 3) } else { cdmax as i64 + 6 };
        let pointer = pointer >> lowest << lowest | self.aliased(d, 30);
        s.set(6, 50, pointer >> 6);
        s.set(59, 5, cdmax);
        s.set(64, 2, d.bits(2));
        s.set(66, 6, d.bits(6));
        s.set(76, 1, d.bits(1));
        s.set(83, 5, d.bits(5));
        s.set(91, 1, u64::from(f.stall_model == 0 && d.chance(100)));
        s.set(92, 2, d.pick(&[0, 0, 1, if config == 0b111 && !f.ns1ats { 2 } else { 1 }]));
        s.set(94, 2, d.pick(&[0, 0, 0, 2]));
        if d.chance(400) {
            // Overrides of attributes.
            s.set(96, 5, d.bits(5));
            s.set(101, 4, d.bits(4));
            s.set(108, 2, d.bits(2));
            s.set(112, 4, d.bits(4));
        } else {
            s.set(108, 2, 0b01);
        }
        if self.shared {
            let vmid = address / 64 % 3;
            s.set(128, 16, vmid);
            self.stage2(&mut Dice::new(self.seed, vmid), &mut s);
        } else {
            let vmid = Self::slot(address);
            s.set(128, 16, if f.vmid16 { vmid } else { vmid & 0xff });
            self.stage2(d, &mut s);
        }
        if broken && !d.chance(200) {
            // Something, anything.
            let at = d
                .pick(&[1, 4, 59, 60, 61, 91, 92, 94, 143, 160, 165, 166, 174, 179, 183, 184])
                + d.below(3) as usize;
            s.set(at, 1, s.get(at, 1) ^ 1);
            if d.chance(300) {
                // S1ContextPtr; S2TTB, whose bits [55:52] are RES0.
                let at = d.pick(&[30, 35, 39, 40, 42, 45, 47, 50, 51, 55]);
                let at = if d.chance(500) { at } else { 192 + at.min(51) };
                s.set(at, 1, 1);
            }
        }
        if self.contiguous {
            s.set(183, 2, 0);
        }
        s.0
    }

    fn stage2(&self, d: &mut Dice, s: &mut Fields) {
        let f = &self.features;
        s.set(89, 1, u64::from(d.chance(300)));
        let granule = self.granule(d);
        let ds = self.ds && granule != 16;
        let sz = if d.chance(700) && granule == self.granule {
            self.s2_t0sz
        } else if granule == 0 {
            d.bits(6)
        } else {
            legal_tsz(d, f, granule, ds)
        };
        // Any start level that leaves one to stride + 4 bits for its table.
        let iasize = 64 - sz as i64;
        let stride = granule as i64 - 3;
        let fits = |level: &i64| {
            let below = granule as i64 + stride * (3 - level);
            iasize > below && iasize <= below + stride + 4
        };
        let levels: Vec<i64> = (-1..=3).filter(fits).collect();
        let level = if levels.is_empty() { 1 } else { d.pick(&levels) };
        let (sl2, sl0) = match (granule, level) {
            (12, -1) => (1, 0),
            (12, 3) => (0, 3),
            (12, level) => (0, 2 - level as u64),
            (_, level) => (0, 3 - level as u64),
        };
        s.set(160, 6, sz);
        s.set(166, 2, sl0);
        s.set(168, 6, d.bits(6));
        s.set(
            174,
            2,
            [0, 2, 1, 3][match granule {
                12 => 0,
                14 => 1,
                16 => 2,
                _ => 3,
            }],
        );
        let wide = [5, 6, 4, 7, 3, 2];
        s.set(176, 3, if d.chance(850) { d.pick(&wide) } else { d.bits(3) });
        s.set(179, 1, 1);
        s.set(181, 1, u64::from(d.chance(150)));
        s.set(182, 1, u64::from(d.chance(200)));
        if self.httu {
            s.set(184, 1, u64::from(d.chance(900)));
            s.set(183, 1, u64::from(f.httu == 2 && d.chance(700)));
        }
        let stall = match f.stall_model {
            0 => self.stall && s.get(92, 2) == 0 && d.chance(500),
            2 => true,
            _ => false,
        };
        s.set(185, 1, u64::from(stall));
        s.set(186, 1, u64::from(d.chance(800)));
        s.set(194, 1, if ds { sl2 } else { 0 });
        s.set(195, 1, u64::from(if granule == 16 { d.chance(200) } else { ds }));
        s.set(196, 48, self.table_pointer(d) >> 4);
    }

    fn cd(&self, address: u64) -> [u64; 8] {
        let f = &self.features;
        let d = &mut Dice::new(self.seed, address);
        let mut c = Fields([0; 8]);
        let broken = d.chance(self.broken);
        let tsz = |d: &mut Dice, granule: u64, usual: u64| {
            if granule == self.granule && d.chance(700) {
                usual
            } else if granule == 0 {
                d.bits(6)
            } else {
                legal_tsz(d, f, granule, self.ds)
            }
        };
        let (g0, g1) = (self.granule(d), self.granule(d));
        c.set(0, 6, tsz(d, g0, self.t0sz));
        c.set(
            6,
            2,
            match g0 {
                12 => 0,
                14 => 2,
                16 => 1,
                _ => 3,
            },
        );
        c.set(8, 6, d.bits(6));
        c.set(14, 1, u64::from(d.chance(30)));
        c.set(16, 6, tsz(d, g1, self.t1sz));
        c.set(
            22,
            2,
            match g1 {
                12 => 2,
                14 => 1,
                16 => 3,
                _ => 0,
            },
        );
        c.set(24, 6, d.bits(6));
        c.set(30, 1, u64::from(d.chance(50)));
        c.set(31, 1, u64::from(!(broken && d.chance(200))));
        c.set(32, 3, if d.chance(850) { d.pick(&[5, 6, 4, 7, 3, 2]) } else { d.bits(3) });
        c.set(35, 1, u64::from(d.chance(150)));
        for at in [36, 37, 40, 65, 66, 129, 130] {
            c.set(at, 1, u64::from(self.restricted && d.chance(250)));
        }
        c.set(38, 2, d.bits(2));
        c.set(41, 1, 1);
        if self.httu {
            c.set(43, 1, u64::from(d.chance(900)));
            c.set(42, 1, u64::from(f.httu == 2 && d.chance(700)));
        }
        c.set(44, 1, u64::from(f.stall_model == 2 || self.stall && d.chance(400)));
        c.set(45, 1, u64::from(d.chance(800)));
        c.set(46, 1, u64::from(f.term_model || d.chance(700)));
        c.set(47, 1, d.bits(1));
        let asid = Self::slot(address);
        c.set(48, 16, if f.asid16 { asid } else { asid & 0xff });
        c.set(68, 48, self.table_pointer(d) >> 4);
        c.set(132, 48, self.table_pointer(d) >> 4);
        c.set(186, 1, u64::from(self.ds));
        c.0[3] = d.word();
        if broken && !d.chance(200) {
            let at = d.pick(&[0, 3, 6, 14, 16, 19, 22, 31, 32, 41, 42, 44, 46, 55, 62])
                + d.below(2) as usize;
            c.set(at, 1, c.get(at, 1) ^ 1);
            if d.chance(300) {
                let top = if f.minor == 0 { 47 } else { 51 };
                let at = d.pick(&[30, 35, 39, 40, 42, 45, 47, top]);
                let which = d.pick(&[64, 128]);
                c.set(which + at, 1, 1);
            }
        }
        if self.contiguous {
            c.set(42, 2, 0);
        }
        c.0
    }

    /// A table, block or page: which of them depends on where a walk meets it.
    fn descriptor(&self, address: u64) -> u64 {
        let d = &mut Dice::new(self.seed, address);
        let index = address % (1 << self.granule) / 8;
        let odd = d.chance(self.odd);
        let mut identity = POOL + (index << self.granule) % POOL_SIZE;
        let mut contiguous = false;
        if self.contiguous {
            // All of a group alike: 16, 128 or 32 entries.
            let group = match self.granule {
                12 => 16,
                14 => 128,
                _ => 32,
            } * 8;
            *d = Dice::new(self.seed, address / group * group);
            contiguous = d.chance(300);
        } else if d.chance(200) {
            identity = POOL + (d.below(32) << 16);
        }
        let mut word = identity | self.aliased(d, 10);
        word |= if !contiguous && d.chance(self.blocks) { 0b01 } else { 0b11 };
        // AttrIndx, NS: MemAttr at stage 2, of which one in four is Device.
        word |= d.bits(4) << 2;
        // AP[2:1], S2AP: mostly readable at stage 2.
        word |= 1 << 6 | d.bits(1) << 7;
        if !self.ds {
            word |= d.pick(&[0, 2, 3]) << 8;
        }
        word |= u64::from(!d.chance(self.unaccessed)) << 10;
        word |= u64::from(!self.globals || d.chance(500)) << 11;
        word |= u64::from(d.chance(self.dbm)) << 51;
        word |= u64::from(contiguous) << 52;
        word |= u64::from(d.chance(150)) << 53 | u64::from(d.chance(150)) << 54;
        // Software's, and whatever: PBHA, NSTable.
        word |= d.bits(4) << 55 | d.bits(1) << 63;
        if self.restricted {
            // APTable, UXNTable, PXNTable.
            for at in 59..=62 {
                word |= u64::from(d.chance(60)) << at;
            }
        }
        if odd {
            match d.below(8) {
                0 | 1 => word &= !1,
                2 => word ^= 1 << 1,
                3 => word ^= 1 << 6,
                4 => word ^= 1 << d.within(12, 51),
                5 => word ^= 1 << d.within(30, 51),
                6 => word ^= 1 << d.pick(&[8, 9, 12, 13, 14, 15, 48, 49, 50]),
                _ => word ^= 1 << d.within(2, 11),
            }
        }
        word
    }

    /// A StreamID: mostly inside the table.
    pub(crate) fn stream(&self, d: &mut Dice) -> u32 {
        let log2size = self.strtab_base_cfg & 0x3f;
        let inside = d.bits(log2size.min(32)) as u32;
        match d.below(40) {
            0 => d.word() as u32,
            1 => (1u64 << log2size.min(32)).wrapping_sub(d.below(2)) as u32,
            2..12 => inside & 0x3f,
            _ => inside,
        }
    }

    pub(crate) fn substream(&self, d: &mut Dice) -> Option<u32> {
        if self.features.ssidsize == 0 && !d.chance(50) {
            return None;
        }
        match d.below(20) {
            0..8 => None,
            8 | 9 => Some(0),
            10 => Some(d.bits(20) as u32),
            11 => Some((1 << d.below(14)) - 1),
            12 => Some(1 << d.below(14)),
            width => Some(d.bits(width as u32 - 11) as u32),
        }
    }

    /// An input address: mostly in the range of some context.
    pub(crate) fn address(&self, d: &mut Dice) -> u64 {
        let (tsz, upper) = d.pick(&[(self.t0sz, false), (self.t1sz, true), (self.s2_t0sz, false)]);
        let upper = upper ^ d.chance(50);
        let width = match d.below(20) {
            0 if d.chance(500) => 64 - tsz + 1,
            1 if d.chance(500) => d.within(1, 64),
            2..6 => d.within(12, 64 - tsz),
            _ => 64 - tsz,
        };
        let mut address = d.bits(width as u32);
        if d.chance(60) {
            // The edges.
            address = 1u64.checked_shl(width as u32).unwrap_or(0).wrapping_sub(d.within(0, 16));
        }
        if d.chance(100) {
            address = POOL + d.bits(21);
        }
        if upper {
            address = !address;
        }
        if d.chance(100) {
            address ^= d.bits(8) << 56;
        }
        address
    }
}

/// A TxSZ that an SMMU with these features takes, small ranges seldom.
fn legal_tsz(d: &mut Dice, f: &Features, granule: u64, ds: bool) -> u64 {
    let wide = (granule == 16 || ds) && f.vax == 1;
    let min = if wide { 12 } else { 16 }.max(64 - f.oas.max(48));
    let max = match (f.stt, granule) {
        (false, _) => 39,
        (true, 16) => 47,
        (true, _) => 48,
    };
    match d.below(20) {
        0 => max,
        1 | 4 => min,
        2 => d.within(min, max),
        3 => d.within(min, 39),
        _ => d.within(min.max(16), 36),
    }
}

fn in_range((start, end): (u64, u64), address: u64) -> bool {
    (start..end).contains(&address)
}

/// A structure being written, by bit numbers of the whole.
struct Fields([u64; 8]);

impl Fields {
    fn set(&mut self, low: usize, width: u32, value: u64) {
        let mask = u64::MAX >> (64 - width);
        let word = &mut self.0[low / 64];
        *word = *word & !(mask << (low % 64)) | (value & mask) << (low % 64);
    }

    fn get(&self, low: usize, width: u32) -> u64 {
        self.0[low / 64] >> (low % 64) & (u64::MAX >> (64 - width))
    }
}

/// The seed of the `n`th world of a run.
pub(crate) fn seed_of(run: u64, n: u64) -> u64 {
    mix(run ^ mix(n))
}
