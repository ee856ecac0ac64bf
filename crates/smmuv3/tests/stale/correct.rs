//! Drivers at random: correct ones are never accused, however lazy, and of those that forget a command
//! the damage is always found.

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use proptest::prelude::*;
use smmuv3::{AlreadyChecking, Proof, StaleRule, Transaction};

use super::Reports;
use crate::common::raw::cmd::Cmd;
use crate::common::raw::ste::Ste;
use crate::common::raw::{cmd, pte, ste};
use crate::common::{GUEST, Machine, Tables};

const BASE: u64 = 0x4000_0000;
const FRAMES: u64 = 0x20_0000;
const PAGES: u64 = 6;
const STREAMS: [u32; 2] = [3, 4];

/// What software does.
#[derive(Debug, Clone, Copy)]
enum Op {
    Dma {
        stream: usize,
        page: u64,
        write: bool,
    },
    Map {
        domain: usize,
        page: u64,
        frame: u64,
    },
    /// At once, or with the domain's next flush.
    Unmap {
        domain: usize,
        page: u64,
        lazily: bool,
    },
    ReadOnly {
        domain: usize,
        page: u64,
    },
    Flush {
        domain: usize,
    },
    Attach {
        stream: usize,
        domain: usize,
    },
    /// Somebody else's `CMD_SYNC`.
    Sync,
    /// The next invalidation is forgotten.
    Forget,
}

fn ops(forgetful: bool) -> impl Strategy<Value = Vec<Op>> {
    let (stream, domain, page) = (0..STREAMS.len(), 0..3usize, 0..PAGES);
    let dma = (stream.clone(), page.clone(), any::<bool>())
        .prop_map(|(stream, page, write)| Op::Dma { stream, page, write });
    let map = (domain.clone(), page.clone(), 0..16u64).prop_map(|(domain, page, frame)| Op::Map {
        domain,
        page,
        frame,
    });
    let unmap = (domain.clone(), page.clone(), any::<bool>())
        .prop_map(|(domain, page, lazily)| Op::Unmap { domain, page, lazily });
    let read_only = (domain.clone(), page).prop_map(|(domain, page)| Op::ReadOnly { domain, page });
    let flush = domain.clone().prop_map(|domain| Op::Flush { domain });
    let attach = (stream, domain).prop_map(|(stream, domain)| Op::Attach { stream, domain });
    let op = prop_oneof![
        16 => dma,
        6 => map,
        4 => unmap,
        1 => read_only,
        1 => flush,
        1 => attach,
        1 => Just(Op::Sync),
        u32::from(forgetful) => Just(Op::Forget),
    ];
    proptest::collection::vec(op, 1..150)
}

/// Translations that streams can be attached to.
struct Domain {
    ste: Ste,
    tables: Tables,
    /// Flags of a page, and what is added to its frame's address.
    flags: u64,
    offset: u64,
    vmid: u16,
    asid: u16,
    stage1: bool,
    /// By page: the frame, and whether it may be written.
    pages: HashMap<u64, (u64, bool)>,
    /// Unmapped, and not invalidated yet.
    lazily: HashSet<u64>,
}

impl Domain {
    fn invalidate(&self, page: u64) -> Cmd {
        let address = BASE + (page << 12);
        if self.stage1 {
            cmd::tlbi_va(cmd::TLBI_NH_VA, self.vmid, self.asid, address)
        } else {
            cmd::tlbi_va(cmd::TLBI_S2_IPA, self.vmid, 0, address)
        }
    }

    fn invalidate_all(&self) -> Cmd {
        if self.stage1 {
            cmd::tlbi(cmd::TLBI_NH_ASID, self.vmid, self.asid)
        } else {
            cmd::tlbi(cmd::TLBI_S12_VMALL, self.vmid, 0)
        }
    }
}

struct Driver {
    m: Machine,
    reports: Reports,
    domains: [Domain; 3],
    attached: [usize; 2],
    forget: bool,
    /// An invalidation was forgotten; of the configuration of these streams.
    forgotten: bool,
    reconfigured: HashSet<usize>,
    /// Stream and page of all reports.
    reported: HashSet<(u32, u64)>,
}

impl Driver {
    fn new(rule: StaleRule) -> Self {
        let mut m = Machine::everything();
        let reports = Reports::of(&m, rule);
        let one = m.stage1(10, 7);
        let two = m.stage2(11, 5);
        let (nested, _) = m.nested(12, 6, 8);
        let domain = |ste, tables, flags, offset, (vmid, asid), stage1| Domain {
            ste,
            tables,
            flags,
            offset,
            vmid,
            asid,
            stage1,
            pages: HashMap::new(),
            lazily: HashSet::new(),
        };
        let domains = [
            domain(one.ste, one.tables, pte::S1_RW, 0, (0, 7), true),
            domain(two.ste, two.tables, pte::S2_RW, 0, (5, 0), false),
            domain(nested.ste, nested.tables, pte::S1_RW, GUEST, (6, 8), true),
        ];
        let mut driver = Self {
            m,
            reports,
            domains,
            attached: [0, 1],
            forget: false,
            forgotten: false,
            reconfigured: HashSet::new(),
            reported: HashSet::new(),
        };
        driver.attach(0, 0);
        driver.attach(1, 1);
        driver
    }

    /// Whether the command was not forgotten.
    fn issue(&mut self, command: Cmd) -> bool {
        let forget = std::mem::take(&mut self.forget);
        self.forgotten |= forget;
        // Software that forgets a command still waits for it.
        self.m.run(if forget { &[] } else { std::slice::from_ref(&command) });
        !forget
    }

    fn attach(&mut self, stream: usize, domain: usize) {
        let sid = STREAMS[stream];
        self.m.store(Machine::ste_at(sid), &self.domains[domain].ste);
        self.attached[stream] = domain;
        if self.issue(cmd::cfgi_ste(sid)) {
            self.reconfigured.remove(&stream);
        } else {
            self.reconfigured.insert(stream);
        }
    }

    fn put(&mut self, domain: usize, page: u64, descriptor: u64) {
        let tables = self.domains[domain].tables;
        self.m.put(&tables, BASE + (page << 12), 3, descriptor);
    }

    fn act(&mut self, op: Op) {
        match op {
            Op::Dma { stream, page, write } => self.dma(stream, page, write),
            Op::Map { domain, page, frame } => {
                let d = &mut self.domains[domain];
                if d.pages.contains_key(&page) || d.lazily.contains(&page) {
                    return;
                }
                d.pages.insert(page, (frame, true));
                let descriptor = (FRAMES + (frame << 12) + d.offset) | d.flags;
                self.put(domain, page, descriptor);
            }
            Op::Unmap { domain, page, lazily } => {
                let d = &mut self.domains[domain];
                if d.pages.remove(&page).is_none() {
                    return;
                }
                let command = d.invalidate(page);
                if lazily {
                    d.lazily.insert(page);
                }
                self.put(domain, page, 0);
                if !lazily {
                    self.issue(command);
                }
            }
            Op::ReadOnly { domain, page } => {
                let d = &mut self.domains[domain];
                let command = d.invalidate(page);
                let Some((frame, write)) = d.pages.get_mut(&page) else { return };
                *write = false;
                let descriptor = (FRAMES + (*frame << 12) + d.offset) | d.flags;
                let descriptor = if d.stage1 {
                    descriptor | pte::READ_ONLY
                } else {
                    descriptor & !pte::S2_WRITE
                };
                self.put(domain, page, descriptor);
                self.issue(command);
            }
            Op::Flush { domain } => {
                let command = self.domains[domain].invalidate_all();
                self.issue(command);
                self.domains[domain].lazily.clear();
            }
            Op::Attach { stream, domain } => self.attach(stream, domain),
            Op::Sync => self.m.run(&[]),
            Op::Forget => self.forget = true,
        }
    }

    fn dma(&mut self, stream: usize, page: u64, write: bool) {
        let sid = STREAMS[stream];
        let transaction = Transaction { write, ..Transaction::read(sid, BASE + (page << 12)) };
        let used = self.m.go(&transaction).ok().map(|translation| translation.address);
        self.m.events();
        let reports = self.reports.take();
        assert!(reports.is_empty() || self.forgotten, "{}", reports[0]);
        let of = |report: &smmuv3::Stale| {
            (report.transaction.stream_id, (report.transaction.address - BASE) >> 12)
        };
        self.reported.extend(reports.iter().map(of));
        let domain = &self.domains[self.attached[stream]];
        let mapped = domain.pages.get(&page).filter(|(_, writable)| *writable || !write);
        let right = mapped.map(|(frame, _)| FRAMES + (frame << 12));
        if !self.forgotten {
            let lazily = domain.lazily.contains(&page);
            assert!(used == right || lazily && right.is_none(), "{used:x?}, not {right:x?}");
        }
        if let (Some(used), Some(right)) = (used, right)
            && used != right
            && !self.reconfigured.contains(&stream)
        {
            assert!(self.reported.contains(&(sid, page)), "{used:#x} instead of {right:#x}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn correct_drivers_are_not_accused(ops in ops(false)) {
        let mut driver = Driver::new(StaleRule::Reuse);
        ops.into_iter().for_each(|op| driver.act(op));
        // Once all is invalidated nothing is left to be said either.
        (0..3).for_each(|domain| driver.act(Op::Flush { domain }));
        prop_assert_eq!(driver.m.smmu.stale_pending(), []);
    }

    #[test]
    fn drivers_that_are_not_lazy_are_not_accused_by_the_sharper_rule(ops in ops(false)) {
        let mut driver = Driver::new(StaleRule::Sync);
        for op in ops {
            driver.act(match op {
                Op::Unmap { domain, page, .. } => Op::Unmap { domain, page, lazily: false },
                op => op,
            });
            prop_assert_eq!(driver.m.smmu.stale_pending(), []);
        }
    }

    /// DMA to a frame that is no longer the page's never goes unseen.
    #[test]
    fn drivers_that_forget_are_found(ops in ops(true)) {
        let mut driver = Driver::new(StaleRule::Reuse);
        ops.into_iter().for_each(|op| driver.act(op));
    }
}

/// Lazy unmapping by the book: the page is used on, others synchronize, and then it is flushed and used again.
#[test]
fn lazy_unmapping_is_legal() {
    let mut driver = Driver::new(StaleRule::Reuse);
    for frame in 0..8 {
        driver.act(Op::Map { domain: 0, page: 1, frame });
        driver.act(Op::Dma { stream: 0, page: 1, write: true });
        driver.act(Op::Unmap { domain: 0, page: 1, lazily: true });
        for _ in 0..3 {
            driver.act(Op::Dma { stream: 0, page: 1, write: true });
            driver.act(Op::Sync);
        }
        assert_eq!(driver.m.smmu.stale_pending()[0].uses, 3);
        driver.act(Op::Flush { domain: 0 });
        assert_eq!(driver.m.smmu.stale_pending(), []);
    }
    let summary = driver.m.smmu.stale_summary().unwrap();
    assert_eq!((summary.checked, summary.stale, summary.reported), (8 * 4, 8 * 3, 0));
}

/// Two processors with a domain and a device each, and one queue: both unmap lazily, under running devices, and
/// synchronize whenever it suits them.
#[test]
fn lazy_processors_are_not_accused_of_each_other() {
    const ROUNDS: u64 = 600;
    let mut m = Machine::everything();
    let reports = Reports::of(&m, StaleRule::Reuse);
    let domains: [_; 2] = std::array::from_fn(|n| {
        let one = m.stage1(STREAMS[n], 7 + n as u16);
        (0..PAGES).for_each(|page| m.map(&one.tables, BASE + (page << 12), FRAMES + (page << 12)));
        one
    });
    let (m, queue, done) = (&m, Mutex::new(()), AtomicBool::new(false));
    let served = [AtomicU64::new(0), AtomicU64::new(0)];
    let issue = |commands: &[Cmd]| {
        let _alone = queue.lock().unwrap();
        m.submit(commands);
        while !m.idle() {
            std::thread::yield_now();
        }
    };
    let device = |n: usize| {
        let mut port = m.smmu.requester();
        let mut random = n as u64;
        while !done.load(Ordering::Relaxed) {
            random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            let address = BASE + (((random >> 40) % PAGES) << 12);
            port.begin().translate(&Transaction::read(STREAMS[n], address)).ok();
            served[n].fetch_add(1, Ordering::Relaxed);
        }
    };
    let driver = |n: usize| {
        let entry = |page: u64| m.entry(&domains[n].tables, BASE + (page << 12), 3);
        let pass = |count: u64| {
            let until = served[n].load(Ordering::Relaxed) + count;
            while served[n].load(Ordering::Relaxed) < until {
                std::thread::yield_now();
            }
        };
        for round in 0..ROUNDS {
            let pages = [round % PAGES, (round + 1) % PAGES];
            for page in pages {
                m.ram.set(entry(page), 0);
                issue(&[cmd::sync()]);
                pass(4);
            }
            issue(&[cmd::tlbi(cmd::TLBI_NH_ASID, 0, 7 + n as u16), cmd::sync()]);
            for page in pages {
                let frame = FRAMES + ((page + round % 7 * PAGES) << 12);
                m.ram.set(entry(page), frame | pte::S1_RW);
            }
            m.smmu.poll();
        }
    };
    std::thread::scope(|scope| {
        let drivers = [0, 1].map(|n| {
            let (device, driver) = (&device, &driver);
            scope.spawn(move || device(n));
            scope.spawn(move || driver(n))
        });
        let results = drivers.map(std::thread::ScopedJoinHandle::join);
        done.store(true, Ordering::Relaxed);
        results.into_iter().for_each(|result| result.expect("a driver"));
    });
    reports.none();
    assert_eq!(m.smmu.stale_pending(), []);
    let summary = m.smmu.stale_summary().unwrap();
    assert!(summary.stale > 0, "nothing was seen: {summary:?}");
}

/// A `CMD_SYNC` that was in the queue already says nothing of what was seen after it.
#[test]
fn only_a_later_sync_counts() {
    let m = Machine::everything();
    let reports = Reports::of(&m, StaleRule::Sync);
    m.set_ste(3, ste::new(ste::BYPASS));
    let smmu = m.smmu.clone();
    let mut port = smmu.requester();
    let mut transfer = port.begin();
    let go = |transfer: &mut smmuv3::Transfer<'_, _>| {
        transfer.translate(&Transaction::read(3, 0x5000)).unwrap();
    };
    go(&mut transfer);
    let at = Machine::ste_at(3);
    m.ram.set(at, m.ram.get(at) & !(0b111 << 1) | ste::ABORT << 1);
    // Another processor's. It waits for the transfer, in which the difference is seen.
    m.submit(&[cmd::sync(), cmd::sync()]);
    go(&mut transfer);
    drop(transfer);
    assert!(m.idle());
    go(&mut port.begin());
    reports.none();
    m.run(&[]);
    go(&mut port.begin());
    assert_eq!(reports.one().proof, Some(Proof::Synchronized));
}

#[test]
fn it_is_turned_on_once_and_sees_what_is_in_use_already() {
    let mut m = Machine::everything();
    assert_eq!(m.smmu.stale_summary(), None);
    m.set_ste(3, ste::new(ste::BYPASS));
    m.output(3, 0x5000);
    let reports = Reports::of(&m, StaleRule::Use);
    assert!(matches!(
        m.smmu.check_stale(StaleRule::Sync, |_: &smmuv3::Stale| ()),
        Err(AlreadyChecking)
    ));
    m.output(3, 0x5000);
    m.ram.set(Machine::ste_at(3), 1);
    m.output(3, 0x5000);
    assert_eq!(reports.one().proof, Some(Proof::Used));
    // Long transfers are looked at page by page.
    m.ram.set(Machine::ste_at(3), 1 | ste::BYPASS << 1);
    assert_eq!(m.read(3, 0x5008).unwrap().length, 0xff8);
    assert_eq!(m.smmu.stale_summary().unwrap().checked, 3);
}
