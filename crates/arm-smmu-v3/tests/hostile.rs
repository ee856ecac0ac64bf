//! The hostile guest: whatever it writes to its memory, its STEs and its commands, and whatever its device does, nothing
//! outside its stage 2 is touched, and other guests notice nothing.
//!
//! `SOFTIOMMU_CASES` says how many guests there are, one after another.

mod common;
#[path = "common/guest.rs"]
mod guest;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use arm_smmu_v3::DeviceOptions;
use common::{HEAP, RAM_SIZE, Watch};
use guest::{Guest, GuestRam, Host, IPA, SIZE, Space, attach};
use iommu::{Device, Domain, Error, Prot, Target};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use smmuv3::wire::{Cd, Command, L1Cd, Register, Ste, TlbiVa};
use smmuv3::{AtsRequest, Transaction};

const HOSTILE: u32 = 5;
const BYSTANDER: u32 = 6;
const VSID: u32 = 3;
const VA: u64 = 0x7000_0000;
/// The guest's pages.
const PAGES: u64 = SIZE >> 12;
/// A page that the guest may only read: its IPA, and where it is.
const READ_ONLY: u64 = 0x5000_0000;
const READ_ONLY_PA: u64 = 0x7_0000;

/// Addresses that a hostile guest would like to be used: its own, what is there physically, and what is nowhere.
fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        90 => (0..7u64).prop_map(|page| IPA + (page << 12)),
        3 => (0..PAGES).prop_map(|page| IPA + (page << 12)),
        6 => Just(READ_ONLY),
        // Its own memory's physical address, its neighbour's, the host's, and what nobody has.
        2 => (0..8u64).prop_map(|page| 0x8_0000 + (page << 12)),
        2 => (0..8u64).prop_map(|page| 0x8_0000 + SIZE + (page << 12)),
        1 => (0..64u64).prop_map(|page| HEAP + (page << 12)),
        1 => Just(READ_ONLY_PA),
        1 => (12..56u32).prop_map(|bit| 1 << bit),
        1 => any::<u64>().prop_map(|address| address & 0xff_ffff_ffff_f000),
    ]
}

/// Few bits of any value.
fn sparse() -> impl Strategy<Value = u64> {
    any::<[u64; 3]>().prop_map(|[a, b, c]| a & b & c)
}

fn ste() -> impl Strategy<Value = Ste> {
    let good = (address(), 0..4u8, 0..3u8, 0..4u8, any::<bool>(), 0..4u8).prop_map(
        |(cds, cd_max, format, dss, stalld, eats)| {
            let ste = Guest::ste(cds).with_s1_cd_max(cd_max).with_s1_fmt(format);
            ste.with_s1_dss(dss).with_s1_stalld(stalld).with_eats(u8::from(eats == 1))
        },
    );
    let simple = prop::sample::select(&[0b000u8, 0b100][..])
        .prop_map(|config| Ste::default().with_v(true).with_config(config));
    let wild = (sparse(), sparse()).prop_map(|(low, high)| Ste([low, high, 0, 0, 0, 0, 0, 0]));
    let bent = (address(), sparse(), sparse()).prop_map(|(cds, low, high)| {
        let mut ste = Guest::ste(cds);
        ste.0[0] |= low;
        ste.0[1] |= high;
        ste
    });
    prop_oneof![8 => good, 2 => simple, 1 => wild, 2 => bent]
}

fn cd() -> impl Strategy<Value = Cd> {
    // Of one to four levels.
    let size = prop_oneof![6 => prop::sample::select(&[16, 16, 25, 25, 33, 39][..]), 1 => 16..49u8];
    let good = (address(), address(), 0..6u8, 0..3u8, size, any::<[bool; 6]>(), 0..3u16).prop_map(
        |(ttb0, ttb1, tg0, ips, size, [epd0, epd1, ha, hd, s, affd], asid)| {
            let cd = Cd::default().with_v(true).with_aa64(true).with_r(true).with_a(true);
            let cd = cd.with_ttb0(ttb0).with_ttb1(ttb1).with_tg0(u8::from(tg0 == 5));
            let cd = cd.with_tg1(0b10).with_t0sz(size).with_t1sz(size).with_ips(5 - ips);
            let cd = cd.with_epd0(epd0 && epd1 && ha).with_epd1(epd1).with_ha(ha).with_hd(hd && ha);
            cd.with_s(s && ha && !hd)
                .with_affd(affd)
                .with_mair(0xff04)
                .with_asid(asid)
                .with_aset(true)
        },
    );
    let wild = prop::array::uniform8(sparse()).prop_map(Cd);
    prop_oneof![30 => good, 1 => wild]
}

/// A table of a stage 1: descriptors of tables, blocks and pages.
fn table() -> impl Strategy<Value = Vec<u64>> {
    let attributes =
        (any::<[bool; 6]>(), 0..24u64).prop_map(|([af, ng, ap1, ap2, dbm, xn], low)| {
            let bit = |set: bool, bit: u32| u64::from(set) << bit;
            // More often than not: an Access flag, and a table or page.
            let low = if low == 1 { 1 } else { 3 };
            low | bit(af || ng || ap1, 10)
                | bit(ng, 11)
                | bit(ap1 || af || dbm, 6)
                | bit(ap2 && xn, 7)
                | bit(dbm, 51)
                | bit(xn && ap1, 54)
        });
    let descriptor =
        (address(), attributes).prop_map(|(address, bits)| address & 0xffff_ffff_f000 | bits);
    let wild = (sparse(), address()).prop_map(|(bits, address)| bits | address);
    prop::collection::vec(prop_oneof![39 => descriptor, 1 => wild], 8)
}

/// CD tables of two levels.
fn cd_tables() -> impl Strategy<Value = Vec<u64>> {
    let l1 = address().prop_map(|address| L1Cd(0).with_v(true).with_l2_ptr(address).0);
    prop::collection::vec(l1, 4)
}

fn command() -> impl Strategy<Value = [u64; 2]> {
    let va = (input(), 0..3u16, any::<bool>()).prop_map(|(address, asid, leaf)| TlbiVa {
        address,
        asid,
        leaf,
        ..TlbiVa::default()
    });
    let sid = prop::sample::select(&[VSID, HOSTILE, BYSTANDER, 0][..]);
    let good = (va, sid, 0..8u32, 0..9u8).prop_map(|(va, sid, ssid, which)| match which {
        0 => Command::TlbiNsnhAll,
        1 => Command::TlbiNhAll { vmid: 2 },
        2 => Command::TlbiNhAsid { vmid: 1, asid: va.asid },
        3 => Command::TlbiNhVa(va),
        4 => Command::TlbiNhVaa(TlbiVa { asid: 0, ..va }),
        5 => Command::CfgiCd { sid, ssid, leaf: va.leaf, ssec: false },
        6 => Command::CfgiCdAll { sid, ssec: false },
        7 => Command::AtcInv { sid, ssid: None, global: false, size: 52, addr: 0 },
        _ => Command::CfgiSte { sid, leaf: true, ssec: false },
    });
    let wild = (0..=255u64, sparse(), sparse())
        .prop_map(|(opcode, low, high)| [low & !0xff | opcode, high]);
    prop_oneof![8 => good.prop_map(|command| command.encode()), 1 => wild]
}

/// Input addresses that lie in the first entries of tables, or anywhere.
fn input() -> impl Strategy<Value = u64> {
    let few = || prop_oneof![4 => Just(0), 1 => 0..8u64];
    let low = (few(), few(), few(), 0..8u64, 0..0x1000u64, 0..8u8).prop_map(
        |(a, b, c, d, offset, shape)| match shape {
            1 => 0xffff << 48 | a << 39 | b << 30 | c << 21 | d << 12 | offset,
            _ => a << 39 | b << 30 | c << 21 | d << 12 | offset,
        },
    );
    prop_oneof![16 => low, 1 => address(), 1 => any::<u64>()]
}

#[derive(Debug, Clone)]
enum Step {
    Attach(Ste),
    Commands(Vec<[u64; 2]>),
    Cd(u64, u64, Cd),
    Table(u64, Vec<u64>),
    Word(u64, u64),
    Dma {
        ssid: Option<u32>,
        address: u64,
        write: bool,
        privileged: bool,
        instruction: bool,
        len: usize,
    },
    Ats {
        ssid: Option<u32>,
        address: u64,
        no_write: bool,
    },
    /// The host takes a page away, or gives it back.
    Toggle(u64),
    HandleEvents,
}

fn step() -> impl Strategy<Value = Step> {
    let page = || 0..8u64;
    let ssid = || prop::option::weighted(0.3, 0..8u32);
    let dma = (ssid(), input(), any::<[bool; 3]>(), prop_oneof![Just(1), Just(8), 1..0x2000usize]);
    prop_oneof![
        1 => ste().prop_map(Step::Attach),
        2 => prop::collection::vec(command(), 0..5).prop_map(Step::Commands),
        2 => (page(), 0..8u64, cd()).prop_map(|(page, index, cd)| Step::Cd(page, index, cd)),
        3 => (page(), table()).prop_map(|(page, table)| Step::Table(page, table)),
        1 => (page(), cd_tables()).prop_map(|(page, table)| Step::Table(page, table)),
        1 => (0..PAGES << 9, sparse()).prop_map(|(word, value)| Step::Word(word, value)),
        20 => dma.prop_map(|(ssid, address, [write, privileged, instruction], len)| {
            Step::Dma { ssid, address, write, privileged, instruction, len }
        }),
        3 => (ssid(), input(), any::<bool>())
            .prop_map(|(ssid, address, no_write)| Step::Ats { ssid, address, no_write }),
        3 => page().prop_map(Step::Toggle),
        1 => Just(Step::HandleEvents),
    ]
}

/// The host, and the guest that nothing happens to.
struct World {
    host: Host,
    bystander: (Guest, Arc<Device>, Space),
}

impl World {
    fn new() -> Self {
        let host = Host::new(smmuv3::Options::everything());
        let device = host.device(BYSTANDER, DeviceOptions::default());
        let guest = Guest::new(&host, &device, 1);
        let cds = guest.ram.alloc(6);
        let mut space = Space::new(&guest.ram, 1);
        space.map(VA..VA + 0x4000, IPA + 0x3_0000);
        guest.ram.write(cds, &space.cd().0);
        guest.viommu.add_device(&device, VSID.into()).unwrap();
        attach(&device, guest.nested(&device, Guest::ste(cds)).unwrap()).unwrap();
        Self { host, bystander: (guest, device, space) }
    }

    /// What the other guest's device does goes on as ever.
    fn check_bystander(&mut self) -> Result<(), TestCaseError> {
        let at = self.bystander.0.ram.pa + 0x3_0123;
        for n in 0..2 {
            let seen = self.host.read(BYSTANDER, VA + 0x123 + (n << 12));
            prop_assert_eq!(seen, Some(at + (n << 12)));
        }
        let (done, result) = self.bystander.0.run(&[Command::TlbiNhAll { vmid: 0 }]);
        prop_assert_eq!((done, result), (1, Ok(())));
        prop_assert_eq!(&*self.bystander.0.events.0.lock().unwrap(), &[]);
        Ok(())
    }
}

/// What a guest's device achieved, over all guests.
#[derive(Default)]
struct Score {
    transactions: Cell<u64>,
    reached: Cell<u64>,
    read_only: Cell<u64>,
    with_pasid: Cell<u64>,
    events: Cell<u64>,
}

fn count(cell: &Cell<u64>) {
    cell.set(cell.get() + 1);
}

struct Attacker<'a> {
    world: &'a mut World,
    device: Arc<Device>,
    guest: Guest,
    there: Vec<bool>,
    /// What worked of late: it is tried again whenever the host takes memory away.
    worked: VecDeque<(Transaction, usize)>,
}

impl<'a> Attacker<'a> {
    fn new(world: &'a mut World, stalls: bool) -> Self {
        let options =
            DeviceOptions { pasid_bits: 3, ats: true, stalls, ..DeviceOptions::default() };
        let device = world.host.device(HOSTILE, options);
        let guest = Guest::new(&world.host, &device, 0);
        let read = Prot::READ | Prot::CACHE;
        guest.parent.map(READ_ONLY, READ_ONLY_PA, 0x1000, read, 1 << 12).unwrap();
        // Small pages, to be taken away one by one.
        guest.parent.unmap(IPA, SIZE);
        guest.parent.map(IPA, guest.ram.pa, SIZE, read | Prot::WRITE, 1 << 12).unwrap();
        guest.viommu.add_device(&device, VSID.into()).unwrap();
        let zeroes = vec![0; (SIZE / 8) as usize];
        guest.ram.write(IPA, &zeroes);
        Self { world, device, guest, there: vec![true; 8], worked: VecDeque::new() }
    }

    fn ram(&self) -> &GuestRam {
        &self.guest.ram
    }

    /// The physical memory that the guest may use now.
    fn memory(&self) -> Vec<Range<u64>> {
        let pa = self.ram().pa;
        // A transfer may cross pages that are both there.
        let mut ranges: Vec<Range<u64>> = Vec::new();
        ranges.push(pa + 0x8000..pa + SIZE);
        for page in (0..8).rev().filter(|page| self.there[*page as usize]) {
            let start: u64 = pa + (page << 12);
            match ranges.last_mut() {
                Some(last) if last.start == start + 0x1000 => last.start = start,
                _ => ranges.push(start..start + 0x1000),
            }
        }
        ranges
    }

    fn watch(&self) {
        let writable = self.memory();
        let mut readable = writable.clone();
        readable.push(READ_ONLY_PA..READ_ONLY_PA + 0x1000);
        // The tables and queues of the host: the SMMU reads them, and writes events.
        readable.push(HEAP..RAM_SIZE);
        let mut writable = writable;
        let events = 1 << 15;
        let in_use = self.world.host.ram.in_use();
        writable.extend(in_use.into_iter().filter(|range| range.end - range.start == events));
        self.world.host.ram.watch(Some(Watch { readable, writable }));
    }

    fn step(&mut self, step: &Step, score: &Score) -> Result<(), TestCaseError> {
        match step {
            Step::Attach(ste) => match self.guest.nested(&self.device, *ste) {
                Ok(nested) => prop_assert!(attach(&self.device, nested).is_ok()),
                Err(error) => prop_assert!(matches!(error, Error::Io(_)), "{}", error),
            },
            Step::Commands(commands) => {
                let (done, result) = self.guest.run_raw(commands);
                prop_assert_eq!(done as usize == commands.len(), result.is_ok());
            }
            Step::Cd(page, index, cd) => {
                self.ram().write(IPA + (page << 12) + (index << 6), &cd.0);
            }
            Step::Table(page, words) => self.ram().write(IPA + (page << 12), words),
            Step::Word(word, value) => self.ram().write(IPA + (word << 3), &[*value]),
            Step::Dma { ssid, address, write, privileged, instruction, len } => {
                let transaction = Transaction {
                    substream_id: *ssid,
                    write: *write,
                    privileged: *privileged,
                    instruction: *instruction,
                    ..Transaction::read(HOSTILE, *address)
                };
                self.dma(&transaction, *len, score)?;
            }
            Step::Ats { ssid, address, no_write } => self.ats(*ssid, *address, *no_write)?,
            Step::Toggle(page) => {
                let there = &mut self.there[*page as usize];
                let (ipa, pa) = (IPA + (page << 12), self.guest.ram.pa + (page << 12));
                if *there {
                    self.guest.parent.unmap(ipa, 0x1000);
                    self.guest.parent.sync();
                } else {
                    let rw = Prot::READ | Prot::WRITE | Prot::CACHE;
                    self.guest.parent.map(ipa, pa, 0x1000, rw, 1 << 12).unwrap();
                }
                *there = !*there;
                for (transaction, len) in self.worked.clone() {
                    self.dma(&transaction, len, score)?;
                }
            }
            Step::HandleEvents => self.handle_events(score),
        }
        Ok(())
    }

    fn handle_events(&mut self, score: &Score) {
        while self.world.host.driver.handle_events() {}
        let told = std::mem::take(&mut *self.guest.events.0.lock().unwrap());
        score.events.set(score.events.get() + told.len() as u64);
        self.world.host.driver.host_faults();
    }

    fn dma(
        &mut self,
        transaction: &Transaction,
        len: usize,
        score: &Score,
    ) -> Result<(), TestCaseError> {
        count(&score.transactions);
        self.watch();
        let port = &mut self.world.host.port;
        let translation = port.begin().translate(transaction);
        // The bytes, too: across pages, and with what has been remembered by now.
        let mut data = vec![0xa5; len];
        let _ = if transaction.write {
            port.begin().write(transaction, &data)
        } else {
            port.begin().read(transaction, &mut data)
        };
        self.world.host.ram.watch(None);
        prop_assert_eq!(self.world.host.ram.escapes(), &[]);
        let Ok(translation) = translation else { return Ok(()) };
        count(&score.reached);
        if transaction.substream_id.is_some() {
            count(&score.with_pasid);
        }
        let (start, end) = (translation.address, translation.address + translation.length);
        let inside = |range: &Range<u64>| range.start <= start && end <= range.end;
        if !transaction.write && inside(&(READ_ONLY_PA..READ_ONLY_PA + 0x1000)) {
            count(&score.read_only);
        } else {
            prop_assert!(self.memory().iter().any(inside), "{:x?}", translation);
        }
        self.worked.push_back((*transaction, len));
        if self.worked.len() > 8 {
            self.worked.pop_front();
        }
        Ok(())
    }

    fn ats(
        &mut self,
        ssid: Option<u32>,
        address: u64,
        no_write: bool,
    ) -> Result<(), TestCaseError> {
        self.watch();
        let request = AtsRequest {
            stream_id: HOSTILE,
            substream_id: ssid,
            address,
            no_write,
            privileged: false,
            execute: false,
        };
        let answer = self.world.host.bus.model.ats_request(&request);
        self.world.host.ram.watch(None);
        prop_assert_eq!(self.world.host.ram.escapes(), &[]);
        if let Ok(found) = answer
            && (found.read || found.write)
        {
            let (start, end) = (found.address, found.address + (1 << found.size_log2));
            let mut memory = self.memory();
            if !found.write {
                memory.push(READ_ONLY_PA..READ_ONLY_PA + 0x1000);
            }
            let inside = |range: &Range<u64>| range.start <= start && end <= range.end;
            prop_assert!(memory.iter().any(inside), "{:x?}", found);
        }
        Ok(())
    }
}

#[test]
fn no_guest_escapes() {
    let cases = std::env::var("SOFTIOMMU_CASES").ok().and_then(|cases| cases.parse().ok());
    let config = ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(cases.unwrap_or(3000))
    };
    let world = RefCell::new(World::new());
    let (round, score) = (Cell::new(0u32), Score::default());
    // What guests begin with, or little would ever be reached: pages of descriptors, one of CDs, and an STE for it.
    let cds = prop::collection::vec(cd(), 8);
    let start = (prop::collection::vec(table(), 3), cds, any::<bool>());
    let strategy = (start, prop::collection::vec(step(), 1..40));
    let result = TestRunner::new(config).run(&strategy, |((tables, cds, stalls), steps)| {
        let world = &mut *world.borrow_mut();
        // What the SMMU remembers of one guest's pages has it invalidate more than it need for all that follow.
        if round.replace(round.get() + 1) % 16 == 15 {
            *world = World::new();
        }
        let mut attacker = Attacker::new(world, stalls);
        let ram = &attacker.guest.ram;
        for (page, table) in (0..7).zip(tables.iter().cycle()) {
            ram.write(IPA + (page << 12), table);
        }
        let place = IPA + 0x7000;
        for (n, cd) in (0..).zip(cds) {
            ram.write(place + (n << 6), &cd.0);
        }
        let ste = Guest::ste(place).with_s1_cd_max(3).with_s1_dss(2).with_eats(1);
        attacker.step(&Step::Attach(ste), &score)?;
        for step in &steps {
            attacker.step(step, &score)?;
        }
        attacker.handle_events(&score);
        attacker.device.group().detach(Target::Rid);
        attacker.world.check_bystander()?;
        let gerror = attacker.world.host.bus.model.read32(Register::Gerror.offset().into());
        prop_assert_eq!(gerror, 0, "nothing went wrong in the SMMU");
        attach(&attacker.device, Domain::Identity).unwrap();
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
    // Or it would have tried nothing.
    let Score { transactions, reached, read_only, with_pasid, events } = &score;
    println!(
        "{} transactions, {} of them to memory ({} read-only, {} with a PASID), {} events",
        transactions.get(),
        reached.get(),
        read_only.get(),
        with_pasid.get(),
        events.get()
    );
    if transactions.get() > 10_000 {
        assert!(reached.get() > transactions.get() / 50);
        assert!(read_only.get() > 0 && with_pasid.get() > 0 && events.get() > 0);
    }
}
