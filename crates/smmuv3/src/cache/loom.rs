//! The guarantee of `CMD_SYNC`, under every interleaving and reordering that loom finds: a
//! transaction that uses an old translation has ended before the `CMD_SYNC` after the
//! invalidation completes.

use std::sync::Arc;

use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::generation::{Space, StreamWorld};
use super::in_flight::{InFlight, Marker};
use super::tlb::{Data, Tlb, TlbSize};
use crate::sync::SeqCst;

const OLD: u64 = 0x1000;
const NEW: u64 = 0x2000;
const INPUT: u64 = 0x7000;

/// One page, one cached translation of it, one descriptor.
struct System {
    tlb: Tlb,
    in_flight: InFlight<SeqCst>,
    descriptor: AtomicU64,
    /// The page at [`OLD`] belongs to somebody else.
    reused: AtomicBool,
}

fn space() -> Space {
    Space::new(StreamWorld::El1, 1, 1, true, false)
}

impl System {
    fn new() -> Self {
        let one = TlbSize { small_log2: 0, large_log2: 0, stage2_log2: 0, walk_log2: 0 };
        Self {
            tlb: Tlb::new(one),
            in_flight: InFlight::new(SeqCst),
            descriptor: AtomicU64::new(OLD),
            reused: AtomicBool::new(false),
        }
    }

    /// A transaction: translate, through the TLB or the descriptor, and access.
    fn transaction(&self, marker: &Marker) -> u64 {
        self.in_flight.begin(marker);
        let space = space();
        let tags = self.tlb.tags(&space, &Space::stage2(1));
        let address = match self.tlb.lookup(&space, &tags, INPUT) {
            Some((data, _)) => data.address(),
            None => {
                let before = self.tlb.before(tags);
                let address = self.descriptor.load(Ordering::Acquire);
                let data = Data::new(address, 0x3f, false, 0, 0);
                self.tlb.fill(&space, INPUT, 12, 12, data, &before);
                address
            }
        };
        // The access itself.
        if address == OLD {
            assert!(!self.reused.load(Ordering::Acquire), "a page is accessed after CMD_SYNC");
        }
        let _ = self.in_flight.end(marker);
        address
    }

    /// Software takes the page away: new descriptor, invalidation, `CMD_SYNC`.
    fn take_away(&self, invalidate: fn(&Tlb)) {
        self.descriptor.store(NEW, Ordering::Release);
        invalidate(&self.tlb);
        let mut outstanding = self.in_flight.outstanding();
        while !outstanding.refresh() {
            loom::thread::yield_now();
        }
        self.in_flight.forget_unless(false);
        self.reused.store(true, Ordering::Release);
    }
}

fn check(invalidate: fn(&Tlb)) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(2);
    model.check(move || {
        let system = Arc::new(System::new());
        let device = {
            let system = system.clone();
            let marker = system.in_flight.register();
            loom::thread::spawn(move || {
                system.transaction(&marker);
                system.transaction(&marker);
            })
        };
        system.take_away(invalidate);
        // Whoever comes after the CMD_SYNC sees the new translation.
        let marker = system.in_flight.register();
        assert_eq!(system.transaction(&marker), NEW);
        device.join().expect("the device's thread");
    });
}

#[test]
fn by_address() {
    check(|tlb| tlb.invalidate_va(StreamWorld::El1, 1, 1, INPUT, 1, true));
}

#[test]
fn by_asid() {
    check(|tlb| tlb.invalidate_asid(StreamWorld::El1, 1, 1));
}

#[test]
fn by_vmid() {
    check(|tlb| tlb.invalidate_vmid(StreamWorld::El1, 1, false));
}

#[test]
fn all() {
    check(Tlb::invalidate_all);
}

/// A waiting `CMD_SYNC` learns of the end of the transaction that it waits for.
#[test]
fn the_end_of_a_transaction_is_not_missed() {
    loom::model(|| {
        let in_flight = Arc::new(InFlight::new(SeqCst));
        let marker = in_flight.register();
        let told = {
            let in_flight = in_flight.clone();
            loom::thread::spawn(move || {
                in_flight.begin(&marker);
                in_flight.end(&marker)
            })
        };
        let mut outstanding = in_flight.outstanding();
        let waits = !outstanding.is_empty();
        let told = told.join().expect("the device's thread");
        assert!(!waits || told, "nobody will wake the CMD_SYNC");
        assert!(outstanding.refresh());
    });
}
