//! `cargo fuzz run pagetable`: tables of any bytes, walked by the crate and by the
//! naive walker of its tests.
#![no_main]

#[path = "../../crates/pagetable/tests/naive/mod.rs"]
#[allow(dead_code, unreachable_pub)]
mod naive;

use arbitrary::Arbitrary;
use naive::{Outcome, Params};
use pagetable::{Descriptors, Fault, Geometry, Granule, Table};

/// 16 tables' worth of nothing in particular, repeated over all addresses.
const WORDS: usize = 1 << 10;

#[derive(Debug, Arbitrary)]
struct Input {
    second_stage: bool,
    granule: u8,
    input_bits: u8,
    start_level: i8,
    output_bits: u8,
    ds: bool,
    lpa: bool,
    base: u64,
    inputs: [u64; 4],
    words: Vec<u64>,
}

struct Memory<'a>(&'a [u64]);

impl Memory<'_> {
    fn get(&self, address: u64) -> Option<u64> {
        // Where a table stands counts as much as the place in it.
        let place = (address >> 3 ^ address >> 12 ^ address >> 21 ^ address >> 48) as usize;
        self.0.get(place % WORDS.min(self.0.len() + 1)).copied()
    }
}

impl Descriptors for Memory<'_> {
    type Error = ();
    fn read(&mut self, address: u64, _level: i8) -> Result<u64, ()> {
        self.get(address).ok_or(())
    }
}

libfuzzer_sys::fuzz_target!(|input: Input| {
    let (granule, granule_kib) = match input.granule % 3 {
        0 => (Granule::K4, 4),
        1 => (Granule::K16, 16),
        _ => (Granule::K64, 64),
    };
    let geometry = if input.second_stage {
        let (bits, level) = (input.input_bits, input.start_level);
        Geometry::stage2(granule, bits, level, input.output_bits, input.ds)
    } else {
        Geometry::stage1(granule, input.input_bits, input.output_bits, input.ds)
    };
    let Ok(geometry) = geometry else { return };
    let geometry = geometry.with_lpa(input.lpa);
    let params = Params {
        second_stage: input.second_stage,
        granule_kib,
        txsz: u64::from(64 - geometry.input_bits()),
        start_level: geometry.initial_level().into(),
        oasize: geometry.output_bits().into(),
        ds: geometry.ds(),
        lpa: input.lpa,
        ttb: input.base,
    };
    let table = Table::new(geometry, input.base);
    let mut memory = Memory(&input.words);
    for address in input.inputs {
        // Most addresses are in range.
        let address = if address & 7 == 0 { address } else { address >> params.txsz };
        let expected = naive::walk(&params, address, &mut |at| memory.get(at));
        let walked = table.walk(address, &mut memory);
        let walked = match walked {
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
        assert_eq!(walked, expected);
    }
});
