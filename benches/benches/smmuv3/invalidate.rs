//! Invalidations through the Command queue, and what they do to transactions on other threads.

use std::cell::RefCell;
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use benches::{Goal, Race, Report};
use smmuv3::wire::{Command, TlbiVa};
use smmuv3::{Requester, Transaction};

use crate::machine::{Machine, PAGE, Ram, Stages};

const PAGES: u64 = 1000;
const BATCH: u64 = 256;
const TARGET: u64 = 0x800_0000;

fn machine() -> Machine<Ram> {
    let ram = TARGET + PAGES * PAGE;
    Machine::new(Ram::new(ram), ram, Stages::One, PAGES, TARGET)
}

fn va(page: u64) -> Command {
    Command::TlbiNhVa(TlbiVa {
        vmid: 1,
        asid: 7,
        address: page * PAGE,
        leaf: true,
        ..TlbiVa::default()
    })
}

const SYNC: Command = Command::Sync { cs: 0, msh: 0, msi_attr: 0, msi_data: 0, msi_address: 0 };

pub(crate) fn commands(report: &mut Report) {
    let fill = |machine: &Machine<Ram>| {
        let mut requester = machine.smmu.requester();
        let mut transfer = requester.begin();
        for page in 0..PAGES {
            transfer.translate(&Transaction::read(1, page * PAGE)).expect("mapped");
        }
    };
    let ours = RefCell::new(machine());
    fill(&ours.borrow());
    let batch = |command: fn(u64) -> Command| -> Vec<Command> { (0..BATCH).map(command).collect() };
    let by_va = batch(va);
    let by_asid = batch(|_| Command::TlbiNhAsid { vmid: 1, asid: 7 });
    let by_vmid = batch(|_| Command::TlbiNhAll { vmid: 1 });
    let by_all = batch(|_| Command::TlbiNsnhAll);
    // A table of 8192 tags, swept for one of them.
    let tags: Vec<AtomicU64> = (0..8192).map(|n| AtomicU64::new(n % 7)).collect();

    let mut race = Race::new("one TLBI through the Command queue", BATCH);
    race.enter("sweep of 8192 tags", || {
        for _ in 0..BATCH {
            for tag in &tags {
                if black_box(tag.load(Ordering::Relaxed)) == 9 {
                    tag.store(0, Ordering::Relaxed);
                }
            }
        }
    });
    race.enter("by VA", || ours.borrow_mut().command(&by_va));
    race.enter("by ASID", || ours.borrow_mut().command(&by_asid));
    race.enter("by VMID", || ours.borrow_mut().command(&by_vmid));
    race.enter("all", || ours.borrow_mut().command(&by_all));
    race.goal("by VA", Goal::Compared("sweep of 8192 tags"));
    race.goal("by ASID", Goal::FasterThan("sweep of 8192 tags", 50.0));
    race.goal("by VMID", Goal::FasterThan("sweep of 8192 tags", 50.0));
    race.goal("all", Goal::FasterThan("sweep of 8192 tags", 50.0));
    report.run(race);
    let empty = RefCell::new(machine());
    let mut race = Race::new("CMD_SYNC", 1);
    race.enter("alone", || empty.borrow_mut().command(&[SYNC]));
    report.run(race);
}

/// Nanoseconds for each of `count` hits, on this thread.
fn hits(requester: &mut Requester<Ram, smmuv3::Membarrier>, count: u64) -> f64 {
    let begin = Instant::now();
    for n in 0..count {
        let transaction = Transaction::read(1, n % 64 * PAGE);
        black_box(requester.begin().translate(&transaction).map_or(0, |to| to.address));
    }
    begin.elapsed().as_nanos() as f64 / count as f64
}

/// What shares nothing: the loop of a hit on private memory.
fn control(count: u64) -> f64 {
    let entries: Vec<(u64, u64)> = (0..64).map(|n| (n, n * PAGE)).collect();
    let begin = Instant::now();
    for n in 0..count {
        let (tag, data) = black_box(&entries)[(n % 64) as usize];
        black_box(if tag == n % 64 { data } else { 0 });
    }
    begin.elapsed().as_nanos() as f64 / count as f64
}

/// The best of a few runs of `work` while `beside` runs over and over on another thread.
fn best_beside(work: impl Fn() -> f64, beside: impl Fn() + Sync) -> f64 {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                beside();
            }
        });
        let best = (0..15).map(|_| work()).fold(f64::INFINITY, f64::min);
        stop.store(true, Ordering::Relaxed);
        best
    })
}

pub(crate) fn threads(report: &mut Report) {
    const HITS: u64 = 200_000;
    let alone = |work: &dyn Fn() -> f64| (0..15).map(|_| work()).fold(f64::INFINITY, f64::min);
    let machine = machine();
    let smmu = machine.smmu.clone();
    let ours = || {
        let mut requester = smmu.requester();
        hits(&mut requester, 1000);
        hits(&mut requester, HITS)
    };
    let (ours_alone, control_alone) = (alone(&ours), alone(&|| control(HITS)));
    let ours_beside = best_beside(ours, || {
        let mut requester = smmu.requester();
        hits(&mut requester, HITS);
    });
    let control_beside = best_beside(
        || control(HITS),
        || {
            control(HITS);
        },
    );
    let slowed = (ours_beside / ours_alone) / (control_beside / control_alone);
    report.quantity("hits beside hits, slowed against what shares nothing", slowed, "x", Some(1.1));
    let machine = std::sync::Mutex::new(machine);
    let batch: Vec<Command> = (0..63).map(|n| va(200 + n)).chain([SYNC]).collect();
    let storm = best_beside(ours, || machine.lock().expect("no panic").command(&batch));
    let slowed = (storm / ours_alone) / (control_beside / control_alone);
    report.quantity("hits in an invalidation storm, slowed likewise", slowed, "x", Some(1.2));
}
