//! A small machine: memory, wires, devices, an SMMU, and a driver for it that knows registers and memory only.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part")]

pub mod raw;
pub mod world;

use std::sync::Arc;

use smmuv3::{Options, Refused, Requester, Smmu, Transaction, Translation};

use raw::cd::{self, Cd};
use raw::cmd::{self, Cmd};
use raw::event::{self, Record};
use raw::ste::{self, Ste};
use raw::{Words, pte, reg};
use world::{Ram, World};

pub const RAM_SIZE: u64 = 4 << 20;

pub const CMDQ: u64 = 0x1_0000;
pub const CMDQ_LOG2: u32 = 6;
pub const EVENTQ: u64 = 0x2_0000;
pub const EVENTQ_LOG2: u32 = 5;
pub const PRIQ: u64 = 0x3_0000;
pub const PRIQ_LOG2: u32 = 3;
pub const STRTAB: u64 = 0x4_0000;
pub const STRTAB_LOG2: u32 = 8;
const HEAP: u64 = 0x10_0000;

/// Where stage 2 of [`Machine::nested`] maps the memory of the machine.
pub const GUEST: u64 = 0x1000_0000;

/// An SMMU with its driver.
pub struct Machine {
    pub smmu: Arc<Smmu<Arc<Ram>>>,
    pub world: World,
    pub ram: Arc<Ram>,
    port: Requester<Arc<Ram>>,
    heap: u64,
}

/// Translation tables of one stage in memory.
#[derive(Debug, Clone, Copy)]
pub struct Tables {
    /// Physical address of the initial table.
    pub root: u64,
    /// What is added to physical addresses in table descriptors: [`GUEST`] if stage 2 translates them.
    pub offset: u64,
    /// Log2 of the page size.
    pub granule: u32,
    /// Bits of input address.
    pub bits: u32,
    /// Initial level.
    pub level: i32,
}

impl Tables {
    fn shift(&self, level: i32) -> u32 {
        self.granule + (3 - level) as u32 * (self.granule - 3)
    }

    fn index(&self, level: i32, input: u64) -> u64 {
        let bits =
            if level == self.level { self.bits - self.shift(level) } else { self.granule - 3 };
        input >> self.shift(level) & ((1 << bits) - 1)
    }

    fn page_mask(&self) -> u64 {
        0x0000_ffff_ffff_ffff & !((1 << self.granule) - 1)
    }
}

/// A stream under stage 1.
#[derive(Debug, Clone, Copy)]
pub struct Stage1 {
    pub sid: u32,
    pub ste: Ste,
    pub cd: Cd,
    /// Physical address of the CD.
    pub cd_at: u64,
    pub tables: Tables,
}

/// A stream under stage 2.
#[derive(Debug, Clone, Copy)]
pub struct Stage2 {
    pub sid: u32,
    pub ste: Ste,
    pub tables: Tables,
}

impl Machine {
    /// Out of reset.
    pub fn new(options: Options) -> Self {
        let world = World::new(RAM_SIZE);
        let smmu =
            Smmu::new(options, world.ram.clone(), world.wires.clone(), world.devices.clone())
                .expect("valid options");
        let port = smmu.requester();
        Self { smmu, ram: world.ram.clone(), world, port, heap: HEAP }
    }

    /// With queues, a stream table, interrupts and translation enabled.
    pub fn booted(options: Options) -> Self {
        let mut machine = Self::new(options);
        machine.boot();
        machine
    }

    pub fn everything() -> Self {
        Self::booted(Options::everything())
    }

    /// All that a driver does at first, up to `SMMUEN`.
    pub fn prepare(&mut self) {
        self.w32(reg::CR1, 0xd75);
        self.w32(reg::CR2, reg::RECINVSID);
        self.w64(reg::STRTAB_BASE, STRTAB);
        self.w32(reg::STRTAB_BASE_CFG, STRTAB_LOG2);
        self.w64(reg::CMDQ_BASE, CMDQ | u64::from(CMDQ_LOG2));
        self.w32(reg::CMDQ_PROD, 0);
        self.w32(reg::CMDQ_CONS, 0);
        self.w64(reg::EVENTQ_BASE, EVENTQ | u64::from(EVENTQ_LOG2));
        self.w32(reg::EVENTQ_PROD, 0);
        self.w32(reg::EVENTQ_CONS, 0);
        self.w64(reg::PRIQ_BASE, PRIQ | u64::from(PRIQ_LOG2));
        self.w32(reg::PRIQ_PROD, 0);
        self.w32(reg::PRIQ_CONS, 0);
        self.w32(reg::CR0, reg::CMDQEN);
        self.run(&[cmd::cfgi_all(), cmd::new(cmd::TLBI_NSNH_ALL)]);
        self.w32(reg::CR0, reg::CMDQEN | reg::EVENTQEN);
        let pri = if self.smmu.options().pri { 0b10 } else { 0 };
        self.w32(reg::IRQ_CTRL, 0b101 | pri);
    }

    pub fn boot(&mut self) {
        self.prepare();
        self.enable();
    }

    /// Sets `SMMUEN`, and `PRIQEN` if there is one.
    pub fn enable(&mut self) {
        let pri = if self.smmu.options().pri { reg::PRIQEN } else { 0 };
        self.set_cr0(reg::CMDQEN | reg::EVENTQEN | reg::SMMUEN | pri);
    }

    /// Writes `CR0` and waits for the acknowledgement.
    pub fn set_cr0(&mut self, value: u32) {
        self.w32(reg::CR0, value);
        assert_eq!(self.r32(reg::CR0ACK), value, "acknowledged at once: nothing is in flight");
    }

    pub fn r32(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.smmu.mmio_read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    pub fn w32(&self, offset: u64, value: u32) {
        self.smmu.mmio_write(offset, &value.to_le_bytes());
    }

    pub fn r64(&self, offset: u64) -> u64 {
        let mut data = [0; 8];
        self.smmu.mmio_read(offset, &mut data);
        u64::from_le_bytes(data)
    }

    pub fn w64(&self, offset: u64, value: u64) {
        self.smmu.mmio_write(offset, &value.to_le_bytes());
    }

    /// Global errors that are active.
    pub fn gerror(&self) -> u32 {
        self.r32(reg::GERROR) ^ self.r32(reg::GERRORN)
    }

    /// Acknowledges all global errors.
    pub fn acknowledge(&self) {
        self.w32(reg::GERRORN, self.r32(reg::GERROR));
    }

    /// Memory of that size and alignment, zeroed.
    pub fn alloc(&mut self, size: u64) -> u64 {
        self.heap = self.heap.next_multiple_of(size.next_power_of_two());
        let address = self.heap;
        self.heap += size;
        assert!(self.heap <= RAM_SIZE, "out of memory");
        address
    }

    pub fn store<const N: usize>(&self, address: u64, words: &Words<N>) {
        for (n, word) in words.0.iter().enumerate() {
            self.ram.set(address + 8 * n as u64, *word);
        }
    }
}

/// The Command queue.
impl Machine {
    fn write_commands(&self, prod: u32, commands: &[Cmd]) -> u32 {
        let mask = (2 << CMDQ_LOG2) - 1;
        for (n, command) in commands.iter().enumerate() {
            let index = (prod + n as u32) & ((1 << CMDQ_LOG2) - 1);
            self.store(CMDQ + 16 * u64::from(index), command);
        }
        (prod + commands.len() as u32) & mask
    }

    /// Puts commands in the queue and tells the SMMU.
    pub fn submit(&self, commands: &[Cmd]) {
        let prod = self.r32(reg::CMDQ_PROD);
        self.w32(reg::CMDQ_PROD, self.write_commands(prod, commands));
    }

    /// Whether all commands are consumed.
    pub fn idle(&self) -> bool {
        // The first read may set something going.
        self.r32(reg::CMDQ_CONS);
        self.r32(reg::CMDQ_CONS) & 0xf_ffff == self.r32(reg::CMDQ_PROD)
    }

    /// Has commands executed, up to a `CMD_SYNC` after them.
    pub fn run(&self, commands: &[Cmd]) {
        self.submit(commands);
        self.submit(&[cmd::sync()]);
        assert_eq!(self.gerror() & reg::CMDQ_ERR, 0, "error {:#x}", self.r32(reg::CMDQ_CONS));
        assert!(self.idle(), "CONS {:#x}", self.r32(reg::CMDQ_CONS));
    }

    /// Submits one command; returns `CMDQ_CONS.ERR` if it fails, clears the queue and acknowledges.
    pub fn error_of(&self, command: Cmd) -> Option<u32> {
        assert!(self.idle());
        let at = self.r32(reg::CMDQ_PROD);
        self.submit(&[command]);
        if self.gerror() & reg::CMDQ_ERR == 0 {
            assert!(self.idle(), "neither consumed nor failed: {command:x?}");
            return None;
        }
        let cons = self.r32(reg::CMDQ_CONS);
        assert_eq!(cons & 0xf_ffff, at, "CONS.RD is at the failing command");
        // Linux replaces the command by one that does nothing, and lets the queue go on.
        self.write_commands(at, &[cmd::sync()]);
        self.acknowledge();
        assert!(self.idle());
        Some(cons >> 24 & 0x7f)
    }

    pub fn tlbi_all(&self) {
        self.run(&[cmd::new(cmd::TLBI_NSNH_ALL)]);
    }
}

/// `CMDQ_CONS.ERR`.
pub const CERROR_ILL: u32 = 1;
pub const CERROR_ABT: u32 = 2;
pub const CERROR_ATC_INV_SYNC: u32 = 3;

/// The Event queue and the PRI queue.
impl Machine {
    /// The records that are new, consumed.
    pub fn events(&self) -> Vec<Record> {
        let (prod, cons) = (self.r32(reg::EVENTQ_PROD), self.r32(reg::EVENTQ_CONS));
        let mask = (2 << EVENTQ_LOG2) - 1;
        let count = prod.wrapping_sub(cons) & mask;
        let records = (0..count)
            .map(|n| {
                let at = EVENTQ + 32 * u64::from((cons + n) & (mask >> 1));
                Words([0, 8, 16, 24].map(|offset| self.ram.get(at + offset)))
            })
            .collect();
        self.w32(reg::EVENTQ_CONS, prod);
        records
    }

    /// The one new record.
    #[track_caller]
    pub fn event(&self) -> Record {
        let records = self.events();
        assert_eq!(records.len(), 1, "{records:x?}");
        records[0]
    }

    /// The new PRI queue records, consumed.
    pub fn page_requests(&self) -> Vec<Words<2>> {
        let (prod, cons) = (self.r32(reg::PRIQ_PROD), self.r32(reg::PRIQ_CONS));
        let mask = (2 << PRIQ_LOG2) - 1;
        let count = prod.wrapping_sub(cons) & mask;
        let records = (0..count)
            .map(|n| {
                let at = PRIQ + 16 * u64::from((cons + n) & (mask >> 1));
                Words([0, 8].map(|offset| self.ram.get(at + offset)))
            })
            .collect();
        self.w32(reg::PRIQ_CONS, prod);
        records
    }
}

/// Streams and tables.
impl Machine {
    pub fn ste_at(sid: u32) -> u64 {
        STRTAB + 64 * u64::from(sid)
    }

    /// Writes an STE and says so.
    pub fn set_ste(&self, sid: u32, ste: Ste) {
        self.store(Self::ste_at(sid), &ste);
        self.run(&[cmd::cfgi_ste(sid)]);
    }

    /// Writes a CD and says so. Translations of its address space go, too.
    pub fn set_cd(&self, stream: &Stage1, cd: Cd) {
        self.store(stream.cd_at, &cd);
        self.run(&[cmd::cfgi_cd(stream.sid, 0), cmd::new(cmd::TLBI_NSNH_ALL)]);
    }

    /// Empty tables.
    pub fn tables(&mut self, granule: u32, bits: u32, level: i32) -> Tables {
        let mut tables = Tables { root: 0, offset: 0, granule, bits, level };
        let entries = 1u64 << (bits - tables.shift(level));
        tables.root = self.alloc((8 * entries).max(64));
        tables
    }

    /// 48 bits of input address, 4K granule.
    pub fn tables48(&mut self) -> Tables {
        self.tables(12, 48, 0)
    }

    /// Where the descriptor of `level` for `input` is; the tables above it are there.
    pub fn entry(&self, tables: &Tables, input: u64, level: i32) -> u64 {
        let mut table = tables.root;
        for above in tables.level..level {
            let descriptor = self.ram.get(table + 8 * tables.index(above, input));
            assert_eq!(descriptor & 0b11, pte::TABLE, "no table at level {above}");
            table = (descriptor & tables.page_mask()) - tables.offset;
        }
        table + 8 * tables.index(level, input)
    }

    /// Writes the descriptor of `level` for `input`, and tables above it where there are none.
    pub fn put(&mut self, tables: &Tables, input: u64, level: i32, descriptor: u64) {
        for above in tables.level..level {
            let at = self.entry(tables, input, above);
            if self.ram.get(at) & 1 == 0 {
                let table = self.alloc(1 << tables.granule);
                self.ram.set(at, (table + tables.offset) | pte::TABLE);
            }
        }
        self.ram.set(self.entry(tables, input, level), descriptor);
    }

    /// Maps a page of stage 1 for reads and writes.
    pub fn map(&mut self, tables: &Tables, input: u64, output: u64) {
        self.put(tables, input, 3, output | pte::S1_RW);
    }

    /// Maps a page of stage 2 for reads and writes.
    pub fn map2(&mut self, tables: &Tables, input: u64, output: u64) {
        self.put(tables, input, 3, output | pte::S2_RW);
    }

    /// A CD over `tables` at TTB0, with faults recorded and aborting.
    pub fn cd_for(tables: &Tables, asid: u16) -> Cd {
        Cd::ZERO
            .with(cd::V, 1)
            .with(cd::AA64, 1)
            .with(cd::T0SZ, u64::from(64 - tables.bits))
            .with(
                cd::TG0,
                match tables.granule {
                    12 => 0b00,
                    14 => 0b10,
                    _ => 0b01,
                },
            )
            .with(cd::EPD1, 1)
            .with(cd::IPS, 0b101)
            .with(cd::R, 1)
            .with(cd::A, 1)
            .with(cd::ASID, asid.into())
            .with_address(cd::TTB0, tables.root + tables.offset)
            .with(cd::MAIR0, 0xff)
            .with(cd::MAIR1, 0x04)
    }

    /// A stream with stage 1 only, nothing mapped.
    pub fn stage1(&mut self, sid: u32, asid: u16) -> Stage1 {
        let tables = self.tables48();
        self.stage1_over(sid, Self::cd_for(&tables, asid), tables)
    }

    pub fn stage1_over(&mut self, sid: u32, cd: Cd, tables: Tables) -> Stage1 {
        let cd_at = self.alloc(64);
        self.store(cd_at, &cd);
        let ste = ste::new(ste::STAGE1).with_address(ste::S1_CONTEXT_PTR, cd_at);
        self.set_ste(sid, ste);
        Stage1 { sid, ste, cd, cd_at, tables }
    }

    /// The stage 2 fields of an STE over 39-bit tables of 4K.
    pub fn with_stage2(ste: Ste, tables: &Tables, vmid: u16) -> Ste {
        ste.with(ste::S2_VMID, vmid.into())
            .with(ste::S2_T0SZ, u64::from(64 - tables.bits))
            .with(ste::S2_SL0, 0b01)
            .with(ste::S2_PS, 0b101)
            .with(ste::S2_AA64, 1)
            .with(ste::S2_R, 1)
            .with_address(ste::S2_TTB, tables.root)
    }

    /// A stream with stage 2 only, nothing mapped.
    pub fn stage2(&mut self, sid: u32, vmid: u16) -> Stage2 {
        let tables = self.tables(12, 39, 1);
        let ste = Self::with_stage2(ste::new(ste::STAGE2), &tables, vmid);
        self.set_ste(sid, ste);
        Stage2 { sid, ste, tables }
    }

    /// A stream with both stages. Stage 2 maps the machine's memory at [`GUEST`]; the CD and stage 1 tables are there.
    pub fn nested(&mut self, sid: u32, vmid: u16, asid: u16) -> (Stage1, Tables) {
        let second = self.tables(12, 39, 1);
        let first = Tables { offset: GUEST, ..self.tables48() };
        for page in (0..RAM_SIZE).step_by(0x1000) {
            self.map2(&second, GUEST + page, page);
        }
        let cd = Self::cd_for(&first, asid);
        let cd_at = self.alloc(64);
        self.store(cd_at, &cd);
        let ste = ste::new(ste::NESTED).with_address(ste::S1_CONTEXT_PTR, GUEST + cd_at);
        let ste = Self::with_stage2(ste, &second, vmid);
        self.set_ste(sid, ste);
        (Stage1 { sid, ste, cd, cd_at, tables: first }, second)
    }
}

/// Transactions.
impl Machine {
    pub fn go(&mut self, transaction: &Transaction) -> Result<Translation, Refused> {
        self.port.begin().translate(transaction)
    }

    pub fn read(&mut self, sid: u32, address: u64) -> Result<Translation, Refused> {
        self.go(&Transaction::read(sid, address))
    }

    pub fn write(&mut self, sid: u32, address: u64) -> Result<Translation, Refused> {
        self.go(&Transaction::write(sid, address))
    }

    /// The output address of a read that succeeds.
    #[track_caller]
    pub fn output(&mut self, sid: u32, address: u64) -> u64 {
        self.read(sid, address).expect("translated").address
    }

    /// A transaction that aborts with the one event that is returned.
    #[track_caller]
    pub fn fault(&mut self, transaction: &Transaction) -> Record {
        assert_eq!(self.go(transaction), Err(Refused::Abort));
        self.event()
    }

    /// A read that aborts with an event of that number.
    #[track_caller]
    pub fn read_faults(&mut self, sid: u32, address: u64, number: u64) -> Record {
        let record = self.fault(&Transaction::read(sid, address));
        assert_eq!(record.get(event::NUMBER), number, "{record:x?}");
        assert_eq!(record.get(event::SID), u64::from(sid));
        record
    }

    /// A read that aborts in silence.
    #[track_caller]
    pub fn read_aborts(&mut self, sid: u32, address: u64) {
        assert_eq!(self.read(sid, address), Err(Refused::Abort));
        assert_eq!(self.events(), []);
    }
}
