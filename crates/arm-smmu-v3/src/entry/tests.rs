use std::fmt::Debug;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use pagetable::{Attributes, Geometry, Granule, Mapper, Stage1Attributes, Stage2Attributes};
use proptest::prelude::*;
use smmuv3::wire::{Cd, Ste};
use smmuv3::{Refused, Transaction};

use super::*;
use crate::common::{self, Ram, machine};
use crate::platform::Region;
use crate::{Options, Smmu};

/// What an entry means: the bits in use and what they are.
fn meaning<E: Entry>(entry: E) -> (Words, Words) {
    let used = entry.in_use();
    (used, std::array::from_fn(|n| entry.words()[n] & used[n]))
}

/// Every entry that hardware may see between two images: each word is of the one or of the other.
fn mixes(a: Words, b: Words) -> impl Iterator<Item = Words> {
    let differing = (0..8).filter(|&n| a[n] != b[n]).fold(0u32, |all, n| all | 1 << n);
    (0..256u32)
        .filter(move |choice| choice & !differing == 0)
        .map(move |choice| std::array::from_fn(|n| [a, b][(choice >> n & 1) as usize][n]))
}

/// Walks through the plan from `old` to `new`; says whether it is hitless.
fn check<E: Entry + Debug>(old: E, new: E, of: impl Fn(Words) -> E) -> Result<bool, TestCaseError> {
    let images = plan(old, new);
    prop_assert_eq!(images.last().copied().unwrap(), new.words());
    let mut hit = false;
    let mut before = old.words();
    for image in images {
        for mix in mixes(before, image) {
            let mix = meaning(of(mix));
            if mix != meaning(old) && mix != meaning(new) {
                prop_assert_eq!(mix, meaning(old.aborting()), "{:x?} to {:x?}", old, new);
                hit = true;
            }
        }
        before = image;
    }
    Ok(!hit)
}

fn word() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), Just(!0), any::<u64>(), (0..64u32).prop_map(|bit| 1 << bit)]
}

fn ste() -> impl Strategy<Value = Ste> {
    (any::<[bool; 2]>(), 0..8u8, 0..3u8, prop::array::uniform8(word())).prop_map(
        |([valid, sure], config, substreams, words)| {
            let ste = Ste(words).with_v(valid || sure).with_config(config);
            ste.with_s1_cd_max(substreams)
        },
    )
}

fn cd() -> impl Strategy<Value = Cd> {
    let halves = (any::<[bool; 4]>(), prop::array::uniform8(word()));
    halves.prop_map(|([a, b, epd0, epd1], words)| {
        Cd(words).with_v(a || b).with_epd0(epd0).with_epd1(epd1)
    })
}

/// Two entries, of which the second may have words of the first.
fn pair<E: Entry + Debug>(
    entry: impl Fn() -> BoxedStrategy<E>,
    of: fn(Words) -> E,
) -> impl Strategy<Value = (E, E)> {
    (entry(), entry(), any::<u8>()).prop_map(move |(old, new, kept)| {
        let (a, b) = (old.words(), new.words());
        (old, of(std::array::from_fn(|n| if kept >> n & 1 == 1 { a[n] } else { b[n] })))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn every_mix_of_an_ste_is_the_old_the_new_or_an_abort(
        (old, new) in pair(|| ste().boxed(), Ste)
    ) {
        check(old, new, Ste)?;
    }

    #[test]
    fn every_mix_of_a_cd_is_the_old_the_new_or_an_abort((old, new) in pair(|| cd().boxed(), Cd)) {
        check(old, new, Cd)?;
    }

    #[test]
    fn from_and_to_what_aborts_nothing_else_is_seen(ste in ste(), cd in cd()) {
        for (old, new) in [(ste, ste.aborting()), (ste.aborting(), ste), (Ste::default(), ste)] {
            prop_assert!(check(old, new, Ste)?);
        }
        for (old, new) in [(cd, cd.aborting()), (cd.aborting(), cd), (Cd::default(), cd)] {
            prop_assert!(check(old, new, Cd)?);
        }
    }

    #[test]
    fn bits_that_are_not_in_use_have_no_say(ste in ste(), cd in cd(), noise: [u64; 8]) {
        let blurred = |words: Words, used: Words| -> Words {
            std::array::from_fn(|n| words[n] & used[n] | noise[n] & !used[n])
        };
        let other = Ste(blurred(ste.0, ste.in_use()));
        prop_assert_eq!(meaning(ste), meaning(other));
        let other = Cd(blurred(cd.0, cd.in_use()));
        prop_assert_eq!(meaning(cd), meaning(other));
    }
}

/// Entries that work, over memory in which `PAGE` maps to a different page in each.
struct Stage {
    bus: common::Bus,
    ram: std::sync::Arc<Ram>,
    mappers: Vec<Mapper<std::sync::Arc<Ram>>>,
    cds: Vec<Region<Ram>>,
}

const PAGE: u64 = 0x5000;
const SID: u32 = 30;

impl Stage {
    fn new(options: smmuv3::Options) -> Self {
        // It remembers one stream at a time.
        let options = smmuv3::Options { contexts_log2: 0, ..options };
        let (bus, ram) = machine(options);
        Self { bus, ram, mappers: Vec::new(), cds: Vec::new() }
    }

    fn tables(&mut self, geometry: Geometry, attributes: Attributes, output: u64) -> u64 {
        let mut mapper = Mapper::new(geometry, self.ram.clone()).unwrap();
        mapper.map(PAGE..PAGE + 0x1000, output, attributes, 1 << 12).unwrap();
        self.mappers.push(mapper);
        self.mappers.last().unwrap().table().base()
    }

    fn cd(&mut self, asid: u16, output: u64) -> Cd {
        let geometry = Geometry::stage1(Granule::K4, 48, 48, false).unwrap();
        let ttb = self.tables(geometry, Stage1Attributes::DMA.into(), output);
        Cd::default()
            .with_v(true)
            .with_aa64(true)
            .with_t0sz(16)
            .with_epd1(true)
            .with_ips(5)
            .with_r(true)
            .with_a(true)
            .with_asid(asid)
            .with_ttb0(ttb)
            .with_mair(0xff)
    }

    fn place_cd(&mut self, cd: Cd) -> u64 {
        let region = Region::new(&self.ram, 6).unwrap();
        for (place, word) in region.words().iter().zip(cd.0) {
            place.store(word, Ordering::Relaxed);
        }
        self.cds.push(region);
        self.cds.last().unwrap().address()
    }

    fn stage1(&mut self, asid: u16, output: u64) -> Ste {
        let cd = self.cd(asid, output);
        let at = self.place_cd(cd);
        Ste::default().with_v(true).with_config(0b101).with_s1_context_ptr(at).with_sh_cfg(1)
    }

    fn stage2(&mut self, vmid: u16, output: u64) -> Ste {
        let geometry = Geometry::stage2(Granule::K4, 39, 1, 48, false).unwrap();
        let ttb = self.tables(geometry, Stage2Attributes::GUEST.into(), output);
        Ste::default()
            .with_v(true)
            .with_config(0b110)
            .with_sh_cfg(1)
            .with_s2_vmid(vmid)
            .with_s2_t0sz(25)
            .with_s2_sl0(1)
            .with_s2_ps(5)
            .with_s2_aa64(true)
            .with_s2_r(true)
            .with_s2_ttb(ttb)
    }

    fn bypass() -> Ste {
        Ste::default().with_v(true).with_config(0b100).with_sh_cfg(1)
    }
}

/// What in_use says is held against what the SMMU does.
#[test]
fn the_smmu_makes_nothing_of_bits_that_are_not_in_use() {
    let mut stage = Stage::new(smmuv3::Options::everything());
    let stes = [
        Ste::default().with_v(true),
        Stage::bypass(),
        stage.stage1(1, 0x10_0000),
        stage.stage2(2, 0x20_0000),
    ];
    let cds = [
        stage.cd(3, 0x30_0000),
        stage.cd(3, 0x40_0000).with_epd0(true),
        stage.cd(3, 0x50_0000).with_epd1(false).with_t1sz(16).with_tg1(2),
    ];
    let cd_at = stage.place_cd(cds[0]);
    let over_cd = stage.stage1(0, 0).with_s1_context_ptr(cd_at);
    let smmu = Smmu::new(stage.bus.clone(), stage.ram.clone(), Options::default()).unwrap();
    let mut port = stage.bus.model.requester();
    let mut outcomes = move || {
        let transactions = [
            Transaction::read(SID, PAGE),
            Transaction::write(SID, PAGE + 8),
            Transaction::read(SID, PAGE + 0x1000),
            Transaction::read(SID, !0 << 20),
            Transaction::read(SID, PAGE).with_substream(0),
            Transaction { instruction: true, ..Transaction::read(SID, PAGE) },
        ];
        transactions.map(|transaction| port.begin().translate(&transaction))
    };
    let mut checked = 0;
    let mut one_by_one = |words: Words, used: Words, install: &dyn Fn(Words)| {
        install(words);
        let expected = outcomes();
        for bit in (0..512).filter(|bit| used[bit / 64] >> (bit % 64) & 1 == 0) {
            let mut other = words;
            other[bit / 64] ^= 1 << (bit % 64);
            install(other);
            assert_eq!(outcomes(), expected, "bit {bit} of {words:x?}");
            checked += 1;
        }
    };
    for ste in stes {
        one_by_one(ste.0, ste.in_use(), &|words| smmu.write_ste(SID, Ste(words)).unwrap());
    }
    smmu.write_ste(SID, over_cd).unwrap();
    for cd in cds {
        one_by_one(cd.0, cd.in_use(), &|words| {
            for (place, word) in stage.cds[1].words().iter().zip(words) {
                place.store(word, Ordering::Relaxed);
            }
            let forget = crate::Command::CfgiCdAll { sid: SID, ssec: false };
            smmu.run(&[forget, crate::Command::TlbiNsnhAll]).unwrap();
        });
    }
    assert!(checked > 500, "{checked} bits");
}

#[test]
fn dma_sees_the_old_the_new_or_an_abort() {
    // In a table of one level; with two, an abort is not even needed.
    let everything = smmuv3::Options::everything();
    dma(smmuv3::Options { sid_bits: 6, ..everything.clone() }, true);
    dma(everything, false);
}

fn dma(options: smmuv3::Options, aborts: bool) {
    let mut stage = Stage::new(options);
    let stes: Vec<(Ste, Option<u64>)> = vec![
        (Ste::default().with_v(true), None),
        (Stage::bypass(), Some(PAGE)),
        (stage.stage1(1, 0x10_0000), Some(0x10_0000)),
        (stage.stage1(2, 0x20_0000), Some(0x20_0000)),
        (stage.stage2(3, 0x30_0000), Some(0x30_0000)),
        (stage.stage2(4, 0x40_0000), Some(0x40_0000)),
    ];
    let options = Options { timeout: Duration::from_mins(10) };
    let smmu = Smmu::new(stage.bus.clone(), stage.ram.clone(), options).unwrap();
    smmu.write_ste(SID, stes[0].0).unwrap();
    stage.ram.slow.store(true, Ordering::Relaxed);
    // Which change is under way, and in which round: no two are alike. And how many transactions saw only one.
    let number = |round: usize, from: usize, to: usize| round << 8 | from << 4 | to;
    let (change, checked) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let dma = scope.spawn(|| {
            let mut port = stage.bus.model.requester();
            while !stop.load(Ordering::Acquire) {
                // Another stream, so that the STE is read anew.
                let _ = port.begin().translate(&Transaction::read(SID + 1, PAGE));
                let before = change.load(Ordering::SeqCst);
                let outcome = port.begin().translate(&Transaction::read(SID, PAGE));
                if change.load(Ordering::SeqCst) != before {
                    continue;
                }
                let (from, to) = (before >> 4 & 15, before & 15);
                let may_abort = aborts && hitless(stes[from].0, stes[to].0).is_none();
                let seen = match outcome {
                    Ok(translation) => Some(translation.address),
                    Err(Refused::Abort) => None,
                    Err(other) => panic!("{other}"),
                };
                assert!(
                    seen == stes[from].1 || seen == stes[to].1 || seen.is_none() && may_abort,
                    "{seen:x?} from {from} to {to}"
                );
                checked.fetch_add(1, Ordering::Relaxed);
            }
        });
        let mut at = 0;
        let mut round = 0;
        // The thread ends early if it finds something.
        while !dma.is_finished() && (round < 1000 || checked.load(Ordering::Relaxed) < 10_000) {
            // All pairs in turn.
            let to = if round % 2 == 0 { round / 12 } else { round / 2 } % stes.len();
            change.store(number(round, at, to), Ordering::SeqCst);
            // Transactions begin that are in the middle of the STE when it changes.
            (0..round % 7).for_each(|_| std::thread::yield_now());
            smmu.write_ste(SID, stes[to].0).unwrap();
            change.store(number(round, to, to), Ordering::SeqCst);
            (at, round) = (to, round + 1);
        }
        stop.store(true, Ordering::Release);
    });
}
