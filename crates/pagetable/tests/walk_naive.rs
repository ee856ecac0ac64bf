//! The walker against the naive one: random tables, every geometry.

mod naive;

use naive::{Outcome, Params, S1};
use pagetable::{
    Descriptors, Fault, Geometry, GeometryError, Granule, Meaning, Permissions, Position, Regime,
    Stage1Controls, Stage1Leaf, Stage2Controls, Stage2Leaf, Step, Table, TableAttributes,
};
use proptest::prelude::*;

/// Memory in which every address holds a descriptor, worked out from a seed.
#[derive(Clone, Copy)]
struct Chaos {
    seed: u64,
    /// Descriptor bits that hold address bits which are often to be zero.
    high: u64,
}

fn mix(mut n: u64) -> u64 {
    n = (n ^ n >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    n = (n ^ n >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ n >> 31
}

impl Chaos {
    fn get(self, address: u64) -> Option<u64> {
        let random = mix(self.seed ^ mix(address.wrapping_add(0x9e37_79b9_7f4a_7c15)));
        let choice = mix(random);
        // Half of the addresses are small enough, and half of those contain no bit
        // that the 48-bit formats do not have.
        let bits = match choice >> 8 & 3 {
            0 => random,
            1 => random & !(self.high & !0xf300),
            _ => random & !self.high,
        };
        match choice & 63 {
            0..44 => Some(bits | 0b11),
            44..58 => Some(bits & !0b10 | 0b01),
            58..61 => Some(bits & !0b11),
            61 => Some(bits & !0b01),
            _ => None,
        }
    }
}

struct Reader {
    memory: Chaos,
    steps: Vec<Step>,
}

impl Descriptors for Reader {
    type Error = ();
    fn read(&mut self, address: u64, _level: i8) -> Result<u64, ()> {
        assert_eq!(address % 8, 0);
        self.memory.get(address).ok_or(())
    }
    fn seen(&mut self, step: Step) {
        self.steps.push(step);
    }
}

fn granule(kib: u64) -> Granule {
    match kib {
        4 => Granule::K4,
        16 => Granule::K16,
        _ => Granule::K64,
    }
}

fn ours(params: &Params) -> Result<Table, GeometryError> {
    let granule = granule(params.granule_kib);
    let (input, output) = ((64 - params.txsz) as u8, params.oasize as u8);
    let geometry = if params.second_stage {
        Geometry::stage2(granule, input, params.start_level as i8, output, params.ds)
    } else {
        Geometry::stage1(granule, input, output, params.ds)
    }?;
    Ok(Table::new(geometry.with_lpa(params.lpa), params.ttb))
}

/// Every combination that the architecture allows, by its own tables.
fn params() -> impl Strategy<Value = Params> {
    let sizes =
        prop_oneof![Just(32u64), Just(36), Just(40), Just(42), Just(44), Just(48), Just(52)];
    let shape = (any::<bool>(), prop_oneof![Just(4u64), Just(16), Just(64)], any::<bool>());
    (shape, 12u64..=48, -1i64..=3, sizes, any::<bool>(), any::<u64>()).prop_filter_map(
        "a legal geometry",
        |((second_stage, granule_kib, ds), txsz, start_level, oasize, lpa, ttb)| {
            let lpa = lpa || oasize == 52;
            let ds = ds && granule_kib != 64;
            // What reaches a table of 48-bit descriptors is capped by the caller or by us.
            let wide = if granule_kib == 64 { lpa } else { ds };
            let oasize = if wide { oasize } else { oasize.min(48) };
            let ttb = ttb % (1 << 53);
            let params = Params {
                second_stage,
                granule_kib,
                txsz,
                start_level,
                oasize,
                ds,
                lpa,
                ttb: if ttb % 8 == 0 { ttb } else { ttb % (1 << oasize) },
            };
            legal(&params).then_some(params)
        },
    )
}

/// The tables of DDI 0487 D8.2 (TxSZ limits, SL0 and SL2, concatenation).
fn legal(params: &Params) -> bool {
    let min = if params.ds || params.granule_kib == 64 { 12 } else { 16 };
    let max = if params.granule_kib == 64 { 47 } else { 48 };
    if !(min..=max).contains(&params.txsz) {
        return false;
    }
    if !params.second_stage {
        return true;
    }
    let levels: &[i64] = match (params.granule_kib, params.ds) {
        (4, true) => &[-1, 0, 1, 2, 3],
        (4, false) | (16, true) => &[0, 1, 2, 3],
        _ => &[1, 2, 3],
    };
    if !levels.contains(&params.start_level) {
        return false;
    }
    let input = 64 - params.txsz;
    let low = naive::lsb(params.granule_kib, params.start_level);
    let stride = [(4, 9), (16, 11), (64, 13)].iter().find(|s| s.0 == params.granule_kib).unwrap().1;
    input > low && input - low <= stride + 4
}

/// Says what came out, so that tests can tell whether they reached everything.
fn compare(params: &Params, memory: Chaos, input: u64) -> Result<Outcome, TestCaseError> {
    let table = ours(params).expect("a legal geometry");
    let expected = naive::walk(params, input, &mut |at| memory.get(at));
    let mut reader = Reader { memory, steps: Vec::new() };
    let got = table.walk(input, &mut reader);
    let seen = match got {
        Err(Fault::Translation { level }) => Outcome::Translation { level: level.into() },
        Err(Fault::AddressSize { level }) => Outcome::AddressSize { level: level.into() },
        Err(Fault::Memory { level, address, error: () }) => {
            Outcome::External { level: level.into(), at: address }
        }
        Ok(leaf) => Outcome::Done(naive::Done {
            oa: leaf.output,
            level: leaf.level.into(),
            lsb: leaf.size_log2.into(),
            descriptor: leaf.descriptor,
            at: leaf.descriptor_address,
            contiguous: leaf.contiguous,
            tables: [
                leaf.table_attributes.read_only(),
                leaf.table_attributes.no_user(),
                leaf.table_attributes.uxn(),
                leaf.table_attributes.pxn(),
            ],
        }),
    };
    prop_assert_eq!(seen, expected);
    // What the recorder saw is a walk: from each table on, it goes the same way.
    for step in &reader.steps {
        prop_assert_eq!(memory.get(step.address), Some(step.descriptor));
        if let Meaning::Table(position) = step.meaning {
            prop_assert_eq!(position.level, step.level + 1);
            let mut reader = Reader { memory, steps: Vec::new() };
            prop_assert_eq!(table.walk_from(position, input, &mut reader), got);
        }
    }
    Ok(expected)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn random_tables(params in params(), seed: u64, input: u64, beyond in 0u8..16) {
        let memory = Chaos { seed, high: 0x0003_ffff_0000_f300 };
        let size = 64 - params.txsz;
        let input = if beyond == 0 { input >> (params.txsz - 1) } else { input % (1 << size) };
        compare(&params, memory, input)?;
    }

    #[test]
    fn nothing_illegal_is_accepted(
        second_stage: bool, kib in prop_oneof![Just(4u64), Just(16), Just(64)], ds: bool,
        txsz in 0u64..=64, start_level in -8i64..=8, oasize in 0u64..=80,
    ) {
        let params = Params {
            second_stage, granule_kib: kib, txsz, start_level, oasize,
            ds: ds && kib != 64, lpa: oasize > 48, ttb: 0,
        };
        prop_assert_eq!(ours(&params).is_ok(), legal(&params) && (32..=52).contains(&oasize));
    }

    #[test]
    fn addresses_survive_their_field(params in params(), address: u64) {
        let geometry = *ours(&params).unwrap().geometry();
        let address = address % (1 << geometry.output_bits());
        let address = address >> geometry.granule().page_log2() << geometry.granule().page_log2();
        let field = geometry.address_field(address);
        prop_assert_eq!(field & !geometry.address_mask(), 0);
        prop_assert_eq!(geometry.address(field), address);
    }
}

#[test]
fn every_geometry_once() {
    let mut geometries = 0;
    let mut outcomes = [0; 5];
    for second_stage in [false, true] {
        for granule_kib in [4, 16, 64] {
            for (txsz, start_level) in (12..=48).flat_map(|t| (-1..=3).map(move |l| (t, l))) {
                for (ds, lpa) in [(false, false), (true, false), (false, true)] {
                    let oasize = if ds || lpa && granule_kib == 64 { 52 } else { 48 };
                    let params = Params {
                        second_stage,
                        granule_kib,
                        txsz,
                        start_level,
                        oasize,
                        ds,
                        lpa,
                        ttb: 0x4000_0000,
                    };
                    if !legal(&params) || ds && granule_kib == 64 {
                        continue;
                    }
                    geometries += 1;
                    for seed in 0..20 {
                        let oasize = if seed % 2 == 0 { oasize } else { 40 };
                        let params = Params { oasize, ..params };
                        let memory = Chaos { seed: mix(seed), high: 0x0003_ffff_0000_f300 };
                        let input = mix(seed ^ txsz) >> txsz;
                        let kind = match compare(&params, memory, input).unwrap() {
                            Outcome::Translation { .. } => 0,
                            Outcome::AddressSize { .. } => 1,
                            Outcome::External { .. } => 2,
                            Outcome::Done(done) => 3 + usize::from(done.contiguous),
                        };
                        outcomes[kind] += 1;
                    }
                }
            }
        }
    }
    assert!(geometries > 900, "{geometries} geometries");
    assert!(outcomes.iter().all(|&n| n > 1000), "{outcomes:?}");
}

fn six(permissions: Permissions) -> naive::Six {
    std::array::from_fn(|bit| permissions.bits() >> bit & 1 != 0)
}

#[test]
fn permissions_of_every_kind() {
    for n in 0u64..1 << 15 {
        let flag = |bit: u64| n >> bit & 1 != 0;
        let descriptor = (n & 3) << 6 | (n >> 2 & 3) << 53 | (n >> 4 & 1) << 51 | 0b11;
        let tables = TableAttributes::of((n >> 5 & 15) << 59);
        let s1 = S1 {
            has_unprivileged: flag(9),
            hpd: flag(10),
            wxn: flag(11),
            pan: flag(12),
            epan: flag(13),
            hd: flag(14),
        };
        let controls = Stage1Controls {
            regime: if s1.has_unprivileged { Regime::TwoPrivileges } else { Regime::OnePrivilege },
            hierarchical_disabled: s1.hpd,
            wxn: s1.wxn,
            pan: s1.pan,
            epan: s1.epan,
            hardware_dirty: s1.hd,
        };
        let ours = Stage1Leaf { descriptor, tables }.permissions(controls);
        let taken = [tables.read_only(), tables.no_user(), tables.uxn(), tables.pxn()];
        let theirs = naive::s1_permissions(descriptor, taken, s1);
        assert_eq!(six(ours), theirs, "{descriptor:#x} {tables:?} {s1:?}: {ours:?}");

        let controls = Stage2Controls { xnx: flag(10), hardware_dirty: flag(14) };
        let ours = Stage2Leaf { descriptor }.permissions(controls);
        let theirs = naive::s2_permissions(descriptor, controls.xnx, controls.hardware_dirty);
        assert_eq!(six(ours), theirs, "{descriptor:#x} {controls:?}: {ours:?}");
    }
}

#[test]
fn a_position_is_small() {
    assert_eq!(size_of::<Position>(), 16);
    assert!(size_of::<Table>() <= 40);
}
