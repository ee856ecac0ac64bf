//! The model against a deliberately naive one, on random configurations, tables and transactions.
//!
//! Every preset of `Options` meets random worlds ([`chaos::plan`]), each with a hundred cases, each met
//! twice: the second time by a warm TLB. A case is a transaction, one whose address ATS has translated, or an ATS
//! Translation Request. What both SMMUs make of it is compared: its end, the address, attributes, the event
//! record bit by bit where it is not UNKNOWN, the descriptors that hardware updates, and what the model
//! explains of itself. In half of the worlds software changes tables as it goes ([`chaos::live`]).
//!
//! * `SOFTIOMMU_CASES=10000000` sets how many cases each preset meets.
//! * `SOFTIOMMU_SEED=0x…` begins elsewhere (a failure prints its own world's seed).
//! * `SOFTIOMMU_WORLD=0x…`, with `SOFTIOMMU_CASE=n`, replays one world, or one transaction of it.

mod chaos;
#[expect(clippy::match_same_arms, reason = "tables stay in the order of the specification's")]
mod naive;

use chaos::dice::Dice;
use chaos::duel::{Duel, Tally};
use chaos::plan::seed_of;
use smmuv3::{Httu, Options, StallModel, TlbSize, Version};

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    let number = match text.strip_prefix("0x") {
        Some(hexadecimal) => u64::from_str_radix(hexadecimal, 16),
        None => text.parse(),
    };
    Some(number.unwrap_or_else(|error| panic!("{name}={text}: {error}")))
}

fn run(name: &str, options: Options) {
    if let Some(world) = number("SOFTIOMMU_WORLD") {
        if let Err(difference) = Duel::new(&options).world(world, number("SOFTIOMMU_CASE")) {
            panic!("{difference:?}");
        }
        return;
    }
    let cases = number("SOFTIOMMU_CASES").unwrap_or(10_000);
    let seed = number("SOFTIOMMU_SEED").unwrap_or(0);
    println!("{name}: {:?}", duel(name, &options, cases, seed));
}

/// As many worlds as make so many cases.
fn duel(name: &str, options: &Options, cases: u64, seed: u64) -> Tally {
    duel_of(Duel::new, name, options, cases, seed)
}

fn duel_of(
    kind: fn(&Options) -> Duel,
    name: &str,
    options: &Options,
    cases: u64,
    seed: u64,
) -> Tally {
    let mut duel = kind(options);
    let mut n = 0;
    while duel.tally.cases < cases {
        let world = seed_of(seed, n);
        n += 1;
        if let Err(difference) = duel.world(world, None) {
            let alone = kind(options).world(world, Some(difference.case)).is_err();
            let after = if alone { "alone" } else { "after the cases before it" };
            panic!(
                "{difference:?}\n{name}: this case differs {after}; replay with \
                 SOFTIOMMU_WORLD={:#x} SOFTIOMMU_CASE={}",
                difference.seed, difference.case
            );
        }
    }
    duel.tally
}

/// Options that IHI 0070 allows, otherwise at random.
fn varied(d: &mut Dice) -> Options {
    loop {
        let mut flip = |usual: bool| if d.chance(250) { !usual } else { usual };
        let base = Options::everything();
        let options = Options {
            stage1: flip(true),
            stage2: flip(true),
            hyp: flip(true),
            ats: flip(true),
            ns1ats: flip(false),
            pri: false,
            priq_log2: 0,
            atsrecerr: false,
            asid16: flip(true),
            vmid16: flip(true),
            cd2l: flip(true),
            abort_only: flip(false),
            two_level_stream_table: flip(true),
            attr_types_ovr: flip(true),
            attr_perms_ovr: flip(true),
            had: flip(true),
            xnx: flip(true),
            fwb: flip(true),
            stt: flip(true),
            e0pd: flip(true),
            gran4k: flip(true),
            gran16k: flip(true),
            gran64k: flip(true),
            va52: flip(true),
            ds: flip(true),
            merge_events: flip(true),
            version: d.pick(&[Version::V3_0, Version::V3_1, Version::V3_2, Version::V3_3]),
            httu: d.pick(&[Httu::None, Httu::Access, Httu::AccessDirty]),
            stall_model: d.pick(&[
                StallModel::Both,
                StallModel::TerminateOnly,
                StallModel::StallOnly,
            ]),
            oas: d.pick(&[32, 36, 40, 42, 44, 48, 52]),
            sid_bits: d.within(0, 32) as u8,
            ssid_bits: d.pick(&[0, 1, 4, 8, 12, 20]),
            tlb: d.pick(&[SMALL, TlbSize::default()]),
            contexts_log2: d.within(0, 6) as u8,
            ..base
        };
        let old = options.version < Version::V3_2;
        let options = Options {
            ril: !old,
            bbml: if old { 0 } else { options.bbml },
            ptwnnc: options.stage2 && options.version == Version::V3_3,
            ..options
        };
        if options.check().is_ok() {
            return options;
        }
    }
}

/// So small that entries replace each other all the time.
const SMALL: TlbSize = TlbSize { small_log2: 4, large_log2: 3, stage2_log2: 4, walk_log2: 3 };

#[test]
fn linux_host() {
    run("linux_host", Options::linux_host());
}

#[test]
fn mmu600() {
    run("mmu600", Options::mmu600());
}

#[test]
fn mmu700() {
    run("mmu700", Options::mmu700());
}

#[test]
fn minimal() {
    run("minimal", Options::minimal());
}

#[test]
fn everything() {
    run("everything", Options::everything());
}

/// Other kinds of SMMU, with two thousand cases each.
#[test]
fn any_other() {
    let cases = number("SOFTIOMMU_CASES").unwrap_or(20_000);
    let seed = number("SOFTIOMMU_SEED").unwrap_or(0);
    let d = &mut Dice::new(seed, 3);
    let kinds = cases / 2_000;
    for n in 0..kinds {
        let options = varied(d);
        let name = format!("{options:?}");
        duel(&name, &options, 2_000, seed_of(seed, n << 32));
    }
    println!("{kinds} other kinds of SMMU");
}

#[test]
fn everything_with_a_small_tlb() {
    run("everything, small TLB", Options { tlb: SMALL, ..Options::everything() });
}

/// The checker for stale translations accuses nobody, and changes nothing.
#[test]
fn everything_under_the_eyes_of_the_checker() {
    for tlb in [SMALL, TlbSize::default()] {
        let options = Options { tlb, ..Options::everything() };
        let cases = number("SOFTIOMMU_CASES").unwrap_or(10_000);
        let seed = number("SOFTIOMMU_SEED").unwrap_or(0);
        println!("{:?}", duel_of(Duel::checked, "checked", &options, cases, seed));
    }
}
