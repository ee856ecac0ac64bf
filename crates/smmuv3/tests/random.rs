//! The model against a deliberately naive one, on random configurations, tables and transactions.
//!
//! Every preset of `Options` meets random worlds ([`chaos::plan`]), each with a hundred
//! transactions, each issued twice: the second time from the TLB. What both SMMUs make of them is compared: the end of the transaction, the
//! address, attributes, the event record bit by bit where it is not UNKNOWN, and the descriptors in memory.
//!
//! * `SOFTIOMMU_CASES=10000000` sets how many cases each preset meets.
//! * `SOFTIOMMU_SEED=0x…` begins elsewhere (a failure prints its own world's seed).
//! * `SOFTIOMMU_WORLD=0x…`, with `SOFTIOMMU_CASE=n`, replays one world, or one transaction of it.

mod chaos;
mod naive;

use chaos::duel::Duel;
use chaos::plan::seed_of;
use smmuv3::{Options, TlbSize};

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    let number = match text.strip_prefix("0x") {
        Some(hexadecimal) => u64::from_str_radix(hexadecimal, 16),
        None => text.parse(),
    };
    Some(number.unwrap_or_else(|error| panic!("{name}={text}: {error}")))
}

fn run(name: &str, options: Options) {
    let mut duel = Duel::new(&options);
    if let Some(world) = number("SOFTIOMMU_WORLD") {
        if let Err(difference) = duel.world(world, number("SOFTIOMMU_CASE")) {
            panic!("{difference:?}");
        }
        return;
    }
    let cases = number("SOFTIOMMU_CASES").unwrap_or(10_000);
    let seed = number("SOFTIOMMU_SEED").unwrap_or(0);
    let mut n = 0;
    while duel.tally.cases < cases {
        let world = seed_of(seed, n);
        n += 1;
        if let Err(difference) = duel.world(world, None) {
            let alone = Duel::new(&options).world(world, Some(difference.case)).is_err();
            let after = if alone { "alone" } else { "after the cases before it" };
            panic!(
                "{difference:?}\n{name}: this case differs {after}; replay with \
                 SOFTIOMMU_WORLD={:#x} SOFTIOMMU_CASE={}",
                difference.seed, difference.case
            );
        }
    }
    println!("{name}: {:?}", duel.tally);
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

#[test]
fn everything_with_a_small_tlb() {
    run("everything, small TLB", Options { tlb: SMALL, ..Options::everything() });
}
