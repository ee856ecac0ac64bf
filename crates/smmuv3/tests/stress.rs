//! The guarantee of `CMD_SYNC` with real threads: once it has completed, no transaction uses what the commands before
//! it invalidated (§4.7.3).
//!
//! Devices translate on threads of their own. The driver unmaps a page, invalidates, waits, and gives the frame away;
//! a device that still holds a transfer into that frame has found a bug.
//!
//! Then the same again with the checker for stale translations, which must find that this driver does nothing wrong,
//! whenever it looks.

mod common;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use smmuv3::{Refused, Smmu, Stale, StaleRule, Transaction};

use common::raw::cmd::Cmd;
use common::raw::{cd, cmd, pte, reg, ste};
use common::world::Ram;
use common::{GUEST, Machine, Stage1, Tables};

const PAGES: u64 = 8;
const BASE: u64 = 0x4000_0000;
const FRAMES: u64 = 0x20_0000;

/// Two frames for each page. Given away: nothing may be under way into it.
#[derive(Default)]
struct Frames([AtomicBool; 2 * PAGES as usize]);

impl Frames {
    fn address(page: u64, which: u64) -> u64 {
        FRAMES + ((2 * page + which) << 12)
    }

    fn of(&self, address: u64) -> &AtomicBool {
        &self.0[((address - FRAMES) >> 12) as usize]
    }
}

struct Device {
    smmu: Arc<Smmu<Arc<Ram>>>,
    frames: Arc<Frames>,
    done: Arc<AtomicBool>,
    hits: Arc<AtomicU64>,
    tries: Arc<AtomicU64>,
    sid: u32,
    seed: u64,
}

impl Device {
    fn run(self) {
        let mut port = self.smmu.requester();
        let mut random = self.seed;
        while !self.done.load(Ordering::Relaxed) {
            random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            let mut transfer = port.begin();
            // Several transactions in one transfer: the first is the oldest when the last ends.
            let mut used = [None; 3];
            for (n, used) in used.iter_mut().enumerate() {
                let page = (random >> (40 + 4 * n)) % PAGES;
                let transaction = Transaction {
                    write: random >> (30 + n) & 1 == 1,
                    ..Transaction::read(self.sid, BASE + (page << 12) + 8)
                };
                self.tries.fetch_add(1, Ordering::Relaxed);
                match transfer.translate(&transaction) {
                    Ok(translation) => {
                        assert!(translation.length <= 0x1000 - 8);
                        assert_eq!(translation.address & 0xfff, 8);
                        *used = Some(self.frames.of(translation.address));
                        self.hits.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(refused) => assert_eq!(refused, Refused::Abort, "unmapped"),
                }
            }
            for _ in 0..random >> 60 {
                for frame in used.into_iter().flatten() {
                    assert!(
                        !frame.load(Ordering::Acquire),
                        "a frame that was given away is in use"
                    );
                }
                std::hint::spin_loop();
            }
            drop(transfer);
            if random >> 60 == 0 {
                // Rather here than in a transfer, for which the driver would wait.
                std::thread::yield_now();
            }
        }
    }
}

/// Waits as a driver does: it reads `CMDQ_CONS`.
fn wait(m: &Machine) {
    while !m.idle() {
        std::thread::yield_now();
    }
    assert_eq!(m.gerror() & reg::CMDQ_ERR, 0);
}

/// What the driver maps and how it takes away: `map` writes the descriptor of a page, `commands` are what must follow
/// before the frame may be given away.
fn race(
    m: &mut Machine,
    rounds: u64,
    map: impl Fn(&Machine, u64, Option<u64>),
    commands: impl Fn(u64, u64) -> Vec<Cmd>,
) {
    // One race at a time, so that its threads do run at once.
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    run(m, rounds, &map, &commands, 0);
    let accused: Arc<Mutex<Vec<Stale>>> = Arc::default();
    let sink = accused.clone();
    m.smmu
        .check_stale(StaleRule::Sync, move |stale: &Stale| {
            sink.lock().unwrap().push(stale.clone());
        })
        .expect("it was off");
    run(m, rounds / 3, &map, &commands, 8);
    let accused = std::mem::take(&mut *accused.lock().unwrap());
    assert!(accused.is_empty(), "{}", accused[0]);
    assert_eq!(m.smmu.stale_pending(), []);
    let summary = m.smmu.stale_summary().expect("it is on");
    assert!(summary.checked > rounds && summary.stale > 0, "it had nothing to see: {summary:?}");
}

/// The driver lets `late` transactions pass before it invalidates what it has taken away.
fn run(
    m: &Machine,
    rounds: u64,
    map: &impl Fn(&Machine, u64, Option<u64>),
    commands: &impl Fn(u64, u64) -> Vec<Cmd>,
    late: u64,
) {
    let frames = Arc::new(Frames::default());
    let done = Arc::new(AtomicBool::new(false));
    let hits = Arc::new(AtomicU64::new(0));
    let tries = Arc::new(AtomicU64::new(0));
    for page in 0..PAGES {
        map(m, page, Some(Frames::address(page, 0)));
    }
    m.tlbi_all();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..2)
            .map(|n| {
                let device = Device {
                    smmu: m.smmu.clone(),
                    frames: frames.clone(),
                    done: done.clone(),
                    hits: hits.clone(),
                    tries: tries.clone(),
                    sid: 3,
                    seed: n + 1,
                };
                scope.spawn(|| device.run())
            })
            .collect();
        let mut current = [0; PAGES as usize];
        for round in 0..rounds {
            let page = round * 5 % PAGES;
            let which = &mut current[page as usize];
            let failed = || threads.iter().any(std::thread::ScopedJoinHandle::is_finished);
            map(m, page, None);
            let taken_away = tries.load(Ordering::Relaxed);
            while tries.load(Ordering::Relaxed) < taken_away + late && !failed() {
                std::thread::yield_now();
            }
            m.submit(&commands(round, page));
            m.submit(&[cmd::sync()]);
            wait(m);
            frames.of(Frames::address(page, *which)).store(true, Ordering::Release);
            *which ^= 1;
            let next = Frames::address(page, *which);
            frames.of(next).store(false, Ordering::Release);
            map(m, page, Some(next));
            if round % 16 == 0 {
                m.events();
            }
            // The devices are to meet this page before the next one changes.
            while hits.load(Ordering::Relaxed) < 8 * round && !failed() {
                std::thread::yield_now();
            }
            if failed() {
                break;
            }
        }
        done.store(true, Ordering::Relaxed);
        // A device that has found a bug panics: tell.
        threads.into_iter().for_each(|thread| thread.join().expect("no stale translation"));
    });
}

fn entry(m: &Machine, tables: &Tables, page: u64) -> u64 {
    m.entry(tables, BASE + (page << 12), 3)
}

/// Stage 1 with tables in place; nothing mapped.
fn stage1(m: &mut Machine) -> Stage1 {
    let one = m.stage1(3, 7);
    m.put(&one.tables, BASE, 3, 0);
    one
}

const ROUNDS: u64 = 1500;

#[test]
fn pages_of_stage_1_unmapped_under_running_devices() {
    for flags in [pte::S1_RW, pte::S1_RW & !pte::NG] {
        let mut m = Machine::everything();
        let one = stage1(&mut m);
        let map = |m: &Machine, page: u64, frame: Option<u64>| {
            m.ram.set(entry(m, &one.tables, page), frame.map_or(0, |frame| frame | flags));
        };
        race(&mut m, ROUNDS, map, |round, page| {
            let va = BASE + (page << 12);
            // Global pages stay where ASIDs are invalidated.
            let by_asid = if flags & pte::NG == 0 { cmd::TLBI_NH_ALL } else { cmd::TLBI_NH_ASID };
            vec![match round % 6 {
                0 => cmd::tlbi_va(cmd::TLBI_NH_VA, 0, 7, va),
                1 => cmd::range(cmd::tlbi_va(cmd::TLBI_NH_VA, 0, 7, va), 1, 0, 0, 3),
                2 => cmd::tlbi_va(cmd::TLBI_NH_VAA, 0, 0, va),
                3 => cmd::tlbi(by_asid, 0, 7),
                4 => cmd::tlbi(cmd::TLBI_S12_VMALL, 0, 0),
                _ => cmd::new(cmd::TLBI_NSNH_ALL),
            }]
        });
    }
}

#[test]
fn pages_of_stage_2_unmapped_under_running_devices() {
    let mut m = Machine::everything();
    let two = m.stage2(3, 5);
    m.put(&two.tables, BASE, 3, 0);
    let map = |m: &Machine, page: u64, frame: Option<u64>| {
        m.ram.set(entry(m, &two.tables, page), frame.map_or(0, |frame| frame | pte::S2_RW));
    };
    race(&mut m, ROUNDS, map, |round, page| {
        let ipa = BASE + (page << 12);
        vec![match round % 3 {
            0 => cmd::tlbi_va(cmd::TLBI_S2_IPA, 5, 0, ipa),
            1 => cmd::tlbi(cmd::TLBI_S12_VMALL, 5, 0),
            _ => cmd::tlbi_va(cmd::TLBI_S2_IPA, 5, 0, ipa).with(cmd::LEAF, 0),
        }]
    });
}

/// A guest's pages, unmapped by the guest.
#[test]
fn pages_of_nested_stage_1_unmapped_under_running_devices() {
    let mut m = Machine::everything();
    let (nested, _) = m.nested(3, 5, 7);
    m.put(&nested.tables, BASE, 3, 0);
    let map = |m: &Machine, page: u64, frame: Option<u64>| {
        let descriptor = frame.map_or(0, |frame| (GUEST + frame) | pte::S1_RW);
        m.ram.set(entry(m, &nested.tables, page), descriptor);
    };
    race(&mut m, ROUNDS, map, |round, page| {
        let va = BASE + (page << 12);
        vec![match round % 2 {
            0 => cmd::tlbi_va(cmd::TLBI_NH_VA, 5, 7, va),
            _ => cmd::tlbi(cmd::TLBI_NH_ASID, 5, 7),
        }]
    });
}

/// A guest's pages, taken away by the host.
#[test]
fn pages_of_nested_stage_2_unmapped_under_running_devices() {
    let mut m = Machine::everything();
    let (nested, second) = m.nested(3, 5, 7);
    for page in 0..PAGES {
        // IPAs of their own, so that each page has a stage 2 descriptor to be changed.
        let ipa = 0x6000_0000 + (page << 12);
        m.put(&nested.tables, BASE + (page << 12), 3, ipa | pte::S1_RW);
        m.put(&second, ipa, 3, 0);
    }
    let map = |m: &Machine, page: u64, frame: Option<u64>| {
        let at = m.entry(&second, 0x6000_0000 + (page << 12), 3);
        m.ram.set(at, frame.map_or(0, |frame| frame | pte::S2_RW));
    };
    race(&mut m, ROUNDS, map, |round, page| {
        let ipa = cmd::tlbi_va(cmd::TLBI_S2_IPA, 5, 0, 0x6000_0000 + (page << 12));
        match round % 3 {
            0 => vec![ipa, cmd::tlbi(cmd::TLBI_NH_ALL, 5, 0)],
            1 => vec![cmd::tlbi(cmd::TLBI_S12_VMALL, 5, 0)],
            _ => vec![ipa, cmd::tlbi_va(cmd::TLBI_NH_VAA, 5, 0, BASE + (page << 12))],
        }
    });
}

/// Hardware updates race with the driver that unmaps.
#[test]
fn pages_marked_by_hardware_unmapped_under_running_devices() {
    let mut m = Machine::everything();
    let one = stage1(&mut m);
    m.set_cd(&one, one.cd.with(cd::HA, 1).with(cd::HD, 1));
    let clean = (pte::S1_RW | pte::READ_ONLY | pte::DBM) & !pte::AF;
    let map = |m: &Machine, page: u64, frame: Option<u64>| {
        m.ram.set(entry(m, &one.tables, page), frame.map_or(0, |frame| frame | clean));
    };
    race(&mut m, ROUNDS, map, |_, page| {
        vec![cmd::tlbi_va(cmd::TLBI_NH_VA, 0, 7, BASE + (page << 12))]
    });
}

/// The stream's whole configuration changes: to other tables, and to nothing.
#[test]
fn streams_reconfigured_under_running_devices() {
    let mut m = Machine::everything();
    let one = stage1(&mut m);
    let at = Machine::ste_at(3);
    let translating = m.ram.get(at);
    let map = |m: &Machine, page: u64, frame: Option<u64>| {
        // Without a frame all of the stream is off.
        match frame {
            None => m.ram.set(at, translating & !(0b111 << 1) | ste::ABORT << 1),
            Some(frame) => {
                m.ram.set(entry(m, &one.tables, page), frame | pte::S1_RW);
                m.ram.set(at, translating);
                // That it is off may be cached.
                m.submit(&[cmd::cfgi_ste(3)]);
            }
        }
    };
    race(&mut m, ROUNDS, map, |round, page| {
        let configuration = if round % 2 == 0 { cmd::cfgi_ste(3) } else { cmd::cfgi_all() };
        // Only when no transaction uses the old configuration can none fill the TLB by it again (§4.7.3).
        vec![configuration, cmd::sync(), cmd::tlbi_va(cmd::TLBI_NH_VA, 0, 7, BASE + (page << 12))]
    });
}
