//! Random ioctl sequences against an iommufd context on the mock hardware.
//!
//! [`run`] reads its input as a program: each step calls an ioctl with a struct
//! that is mostly plausible (small ids, addresses that meet), sometimes raw
//! bytes; takes memory away and gives it back; opens, reads, writes and closes
//! files; maps the context's file and unmaps it; has a step somewhere fail. After each step every invariant of the context holds, and pages are
//! pinned exactly as often as the context says; at the end nothing is left.
//!
//! It panics where something is wrong: a fuzzer or a test calls it.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::Arc;

use host::{Capability, File, Mm, PAGE_SIZE};
use host_fake::{BASE, FakeHost, FakeTask};
use iommu::NoIommu;
use iommufd::{Context, Iommufd};
use uapi::extra::iommu_ioas_noiommu_get_pa;
use uapi::{Plain, nr, selftest as t};

use crate::mappings::Mappings;

mod mappings;

const PAGES: usize = 64;
/// Arguments of ioctls lie in the last two pages.
const ARG: u64 = BASE + (PAGES as u64 - 2) * PAGE_SIZE;

/// What a program brought about, for tests that count on it.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Reached {
    /// Successful `mmap`s.
    pub mappings: u32,
    /// Physical addresses told.
    pub addresses: u32,
}

/// Runs one program.
pub fn run(program: &[u8]) -> Reached {
    host::fail::set_nth(0);
    let mut machine = Machine::new();
    let mut input = Input(program);
    while let Some(step) = input.u8() {
        machine.step(step, &mut input);
        machine.check();
    }
    host::fail::set_nth(0);
    let reached = machine.reached;
    machine.finish();
    reached
}

/// Runs two programs at once, on the same contexts, from two threads of one
/// process. What must hold after each call of one program must hold once both
/// have ended.
pub fn race(one: &[u8], other: &[u8]) {
    let machine = Machine::new();
    std::thread::scope(|threads| {
        for (number, program) in [one, other].into_iter().enumerate() {
            let mut machine = machine.twin(number as u64);
            threads.spawn(move || {
                let mut input = Input(program);
                while let Some(step) = input.u8() {
                    machine.step(step, &mut input);
                    machine.mappings.check();
                }
                host::fail::set_nth(0);
            });
        }
    });
    machine.check();
    machine.finish();
}

/// Bytes that choose; zeroes once they run out.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn u8(&mut self) -> Option<u8> {
        let (&first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(first)
    }

    fn byte(&mut self) -> u8 {
        self.u8().unwrap_or(0)
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(std::array::from_fn(|_| self.byte()))
    }

    /// A small id, as objects have.
    fn id(&mut self) -> u32 {
        match self.byte() {
            255 => u32::MAX,
            byte => u32::from(byte % 16),
        }
    }

    /// Addresses that meet each other: pages of a small window, sometimes odd.
    fn iova(&mut self) -> u64 {
        let byte = self.byte();
        match byte {
            0..=199 => (1 << 24) + u64::from(byte % 32) * PAGE_SIZE,
            200..=219 => (1 << 24) + u64::from(byte) * 2048,
            220..=239 => u64::from(self.byte()) * PAGE_SIZE,
            240..=244 => (1 << 24) + u64::from(self.byte()),
            245..=248 => 0u64.wrapping_sub(u64::from(self.byte()) * 2048),
            _ => self.u64(),
        }
    }

    fn length(&mut self) -> u64 {
        let byte = self.byte();
        match byte {
            0..=199 => u64::from(byte % 12) * PAGE_SIZE,
            200..=229 => u64::from(byte - 199) * 2048,
            230..=244 => u64::from(self.byte()),
            245..=248 => u64::MAX,
            _ => self.u64(),
        }
    }

    fn va(&mut self) -> u64 {
        let byte = self.byte();
        match byte {
            0..=229 => BASE + u64::from(byte) % PAGES as u64 * PAGE_SIZE,
            230..=244 => BASE + u64::from(self.byte()) * 512,
            245..=248 => 0,
            _ => self.u64(),
        }
    }

    fn flags(&mut self) -> u32 {
        match self.byte() {
            255 => self.u64() as u32,
            byte => u32::from(byte) % 16,
        }
    }
}

/// A struct under construction.
struct Struct(Vec<u8>);

impl Struct {
    fn new(size: u32) -> Self {
        Self(size.to_ne_bytes().to_vec())
    }

    fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_ne_bytes());
        self
    }

    fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_ne_bytes());
        self
    }
}

struct Machine {
    host: Arc<FakeHost>,
    task: FakeTask,
    node: Arc<Iommufd>,
    contexts: Vec<Arc<Context>>,
    /// Where this thread puts the arguments of its ioctls.
    arg: u64,
    /// What this thread has mapped.
    mappings: Mappings,
    /// No other thread uses the contexts.
    alone: bool,
    reached: Reached,
}

impl Machine {
    fn new() -> Self {
        let host = FakeHost::new(PAGES);
        let noiommu = vec![NoIommu::add_device("nic0"), NoIommu::add_device("nic1")];
        let node = iommufd_selftest::device_node(host.clone(), 200, &[], noiommu);
        let contexts = vec![node.context(), node.context()];
        let task = FakeTask::new(&host);
        let mappings = Mappings::default();
        let reached = Reached::default();
        Self { task, host, node, contexts, arg: ARG, mappings, alone: true, reached }
    }

    /// The same process, as another of its threads sees it.
    fn twin(&self, number: u64) -> Self {
        Self {
            task: FakeTask::new(&self.host),
            host: self.host.clone(),
            node: self.node.clone(),
            contexts: self.contexts.clone(),
            arg: ARG + number * PAGE_SIZE,
            mappings: Mappings::default(),
            alone: false,
            reached: Reached::default(),
        }
    }

    fn step(&mut self, step: u8, input: &mut Input<'_>) {
        let which = usize::from(step >= 240) % self.contexts.len();
        let context = self.contexts[which].clone();
        match step % 46 {
            42 => self.host_step(input),
            44 => {
                let request = mappings::request(input);
                let certain = self.alone && host::fail::nth() == 0;
                let mapped = self.mappings.map(&context, &self.task, request, certain);
                self.reached.mappings += u32::from(mapped);
            }
            45 => self.mappings.unmap(input.byte()),
            43 => {
                let cmd = 0x3b00 | u32::from(input.byte());
                let bytes: Vec<u8> = (0..80).map(|_| input.byte()).collect();
                self.call(&context, cmd, &bytes);
            }
            op => {
                let (cmd, arg) = Self::plausible(op, input);
                self.call(&context, cmd, &arg.0);
            }
        }
    }

    fn call(&mut self, context: &Arc<Context>, cmd: u32, bytes: &[u8]) {
        // The page may be read-only or gone just now; then the call faults.
        let _ = self.host.copy_to_user(self.arg, bytes);
        let answer = context.ioctl(&self.task, cmd, self.arg);
        if cmd == nr::IOMMU_IOAS_NOIOMMU_GET_PA && answer.is_ok() && self.alone {
            self.check_pa(bytes);
            self.reached.addresses += 1;
        }
    }

    /// A physical address that was told is one that cannot go away.
    fn check_pa(&self, asked: &[u8]) {
        let asked = iommu_ioas_noiommu_get_pa::from_bytes(&asked[..40]);
        let mut told = asked;
        self.host.copy_from_user(self.arg, told.as_bytes_mut()).expect("it was just written");
        assert!((1..=asked.length).contains(&told.length), "{told:?}");
        let first = told.out_phys / PAGE_SIZE * PAGE_SIZE;
        for pa in (first..told.out_phys + told.length).step_by(PAGE_SIZE as usize) {
            assert_ne!(self.host.pins(pa), 0, "{told:?} has a page that is not pinned");
        }
    }

    /// An ioctl that has a chance.
    fn plausible(op: u8, i: &mut Input<'_>) -> (u32, Struct) {
        let map_flags = |i: &mut Input<'_>| i.flags() % 8;
        match op {
            0 | 1 => (0x3b81, Struct::new(12).u32(0).u32(0)),
            2..=7 => {
                let flags = map_flags(i);
                let head = Struct::new(40).u32(flags).u32(i.id()).u32(0);
                (0x3b85, head.u64(i.va()).u64(i.length()).u64(i.iova()))
            }
            8 | 9 => {
                let flags = map_flags(i);
                let head = Struct::new(40).u32(flags).u32(i.id()).u32(u32::from(i.byte() % 16));
                (0x3b8f, head.u64(u64::from(i.byte() % 8) * 2048).u64(i.length()).u64(i.iova()))
            }
            10..=13 => (0x3b86, Struct::new(24).u32(i.id()).u64(i.iova()).u64(i.length())),
            14..=16 => {
                let flags = map_flags(i);
                let head = Struct::new(40).u32(flags).u32(i.id()).u32(i.id());
                (0x3b83, head.u64(i.length()).u64(i.iova()).u64(i.iova()))
            }
            17 | 18 => (0x3b80, Struct::new(8).u32(i.id())),
            19 => {
                let option = u32::from(i.byte() % 2);
                let op = u32::from(i.byte() % 2);
                (
                    0x3b87,
                    Struct::new(24).u32(option).u32(op).u32(i.id()).u64(u64::from(i.byte() % 2)),
                )
            }
            20 => (0x3b88, Struct::new(12).u32(i.id()).u32(u32::from(i.byte() % 3))),
            21 | 22 => {
                let flags = i.flags();
                let head = Struct::new(48).u32(flags).u32(i.id()).u32(i.id()).u32(0).u32(0);
                let data = if i.byte().is_multiple_of(2) { (0, 0) } else { (0xdead, 8) };
                (0x3b89, head.u32(data.0).u32(data.1).u64(i.va()).u32(i.id()).u32(0))
            }
            23 => (0x3b8b, Struct::new(16).u32(i.flags() % 2).u32(i.id()).u32(0)),
            24 => {
                let head = Struct::new(48).u32(i.id()).u32(i.flags() % 2).u32(0).u64(i.iova());
                (0x3b8c, head.u64(i.length()).u64(2048 << (i.byte() % 3)).u64(i.va()))
            }
            25 => {
                let head = Struct::new(32).u32(i.id()).u64(i.va()).u32(0xdead_beef);
                (0x3b8d, head.u32(u32::from(i.byte() % 16)).u32(u32::from(i.byte() % 8)).u32(0))
            }
            26 => (0x3b8e, Struct::new(16).u32(0).u32(0).u32(0)),
            27 => (
                0x3b82,
                Struct::new(24).u32(i.id()).u32(u32::from(i.byte() % 3)).u32(0).u64(i.va()),
            ),
            28 => {
                let head = Struct::new(32).u32(i.id()).u32(u32::from(i.byte() % 8)).u32(0);
                (0x3b84, head.u64(i.va()).u64(0))
            }
            29 => (
                0x3b8a,
                Struct::new(40)
                    .u32(0)
                    .u32(i.id())
                    .u32(u32::from(i.byte()))
                    .u64(i.va())
                    .u64(0)
                    .u64(0),
            ),
            30 => (0x3b92, Struct::new(8).u32(0)),
            31 => {
                (0x3b72, Struct::new(24).u32(u32::from(i.byte() % 3)).u64(i.iova()).u64(i.length()))
            }
            32 => {
                let flags = i.flags() % 4;
                (0x3b71, Struct::new(32).u32(flags).u64(i.va()).u64(i.iova()).u64(i.length()))
            }
            33 => {
                let data = if i.byte().is_multiple_of(2) { (0, 0) } else { (24, i.va()) };
                let head = Struct::new(40).u32(0).u32(0xdead_beef).u32(i.id()).u32(i.id());
                (0x3b90, head.u32(0).u32(data.0).u32(0).u64(data.1))
            }
            34 => {
                let virt_id = u64::from(i.byte() % 4);
                (0x3b91, Struct::new(24).u32(i.id()).u32(i.id()).u32(0).u64(virt_id))
            }
            35 => {
                let head = Struct::new(32).u32(0).u32(i.id()).u32(0xbeef_beef);
                (0x3b93, head.u32(u32::from(i.byte() % 4)).u32(0).u32(0).u32(0))
            }
            36 => {
                let index = u32::from(i.byte() % 3);
                let head = Struct::new(40).u32(0).u32(i.id()).u32(0xdead_beef).u32(index).u32(0);
                (0x3b94, head.u64(i.iova()).u64(i.length()))
            }
            37 => {
                let head = Struct::new(40).u32(0).u32(i.id()).u32(0);
                (nr::IOMMU_IOAS_NOIOMMU_GET_PA, head.u64(i.iova()).u64(i.length()).u64(0))
            }
            _ => {
                let test = match i.byte() % 25 {
                    24 => t::SOFTIOMMU_TEST_OP_NOIOMMU_DEVICE,
                    test => u32::from(test),
                };
                let head = Struct::new(72).u32(test).u32(i.id()).u32(0);
                let arg = match test {
                    4 => head.u32(0).u32(u32::from(i.byte() % 2)),
                    7 => head
                        .u32(u32::from(i.byte() % 2))
                        .u32(0)
                        .u64(i.iova())
                        .u64(i.length())
                        .u64(0),
                    3 | 8 => {
                        head.u64(i.iova()).u64(i.length()).u64(i.va()).u32(u32::from(i.byte() % 2))
                    }
                    13 => head.u64(0).u64(i.iova()).u64(i.length()).u64(2048).u64(i.va()).u64(0),
                    1 => head.u64(i.iova()).u64(i.length()),
                    _ => head
                        .u32(i.id())
                        .u32(i.id())
                        .u32(i.id())
                        .u32(u32::from(i.byte() % 8))
                        .u64(i.va()),
                };
                let mut arg = arg;
                arg.0.resize(72, 0);
                (0x3ba0, arg)
            }
        }
    }

    /// What the process does beside ioctls.
    fn host_step(&mut self, input: &mut Input<'_>) {
        let va = input.va();
        match input.byte() % 13 {
            0 => self.host.set_present(va, false),
            1 | 2 => self.host.set_present(va, true),
            3 => self.host.set_writable(va, false),
            4 | 5 => self.host.set_writable(va, true),
            6 => {
                self.host.open_memory(Some(u64::from(input.byte() % 8)));
            }
            7 => {
                self.host.open_memory(None);
            }
            8 => self.host.close(i32::from(input.byte() % 16)),
            9 | 10 => {
                let Some(file) = self.host.emulated(i32::from(input.byte() % 16)) else { return };
                let len = usize::from(input.byte()) * 8;
                if input.byte().is_multiple_of(2) {
                    let _ = file.read(&self.task, va, len, None);
                } else {
                    let _ = file.write(&self.task, va, len, None);
                }
            }
            // One step of this call or of a later one fails.
            11 => host::fail::set_nth(u32::from(input.byte() % 32)),
            _ => {
                self.task.memlock_limit = u64::from(input.byte()) * PAGE_SIZE;
                self.task.capabilities = match input.byte() % 2 {
                    0 => vec![Capability::SysResource],
                    _ => vec![Capability::SysResource, Capability::IpcLock],
                };
            }
        }
    }

    fn check(&self) {
        self.mappings.check();
        for context in &self.contexts {
            if let Err(wrong) = context.check_invariants() {
                panic!("{wrong}");
            }
        }
        let mut expected: BTreeMap<u64, u64> = BTreeMap::new();
        self.node.pinned_runs(|run| {
            for pa in (run.pa..run.pa + run.len).step_by(PAGE_SIZE as usize) {
                *expected.entry(pa).or_default() += 1;
            }
        });
        for (pa, pins) in &expected {
            assert_eq!(self.host.pins(*pa), *pins, "page {pa:#x} is pinned otherwise");
        }
        assert_eq!(self.host.total_pins(), expected.values().sum(), "a page is pinned for nobody");
    }

    fn finish(self) {
        let Self { host, contexts, node, mappings, .. } = self;
        drop(contexts);
        host.close_all();
        // What is mapped outlives the descriptor, until here.
        mappings.check();
        drop(mappings);
        node.pinned_runs(|run| panic!("{:#x} is still pinned", run.pa));
        assert_eq!(host.total_pins(), 0, "pages stay pinned after the last close");
        let counters = host.counters();
        let pinned = counters.pinned_vm.load(std::sync::atomic::Ordering::Relaxed);
        assert_eq!(pinned, 0, "VmPin counts pages after the last close");
    }
}
