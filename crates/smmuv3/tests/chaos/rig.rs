//! The model under test, driven as software and devices do: registers, queues, transactions.

use std::sync::{Arc, Mutex};

use smmuv3::wire::Event;
use smmuv3::{
    AtsError, AtsRequest, AtsTranslation, Explanation, Options, Refused, Requester, Smmu, Stale,
    StaleRule, Transaction, Translation,
};

use super::plan::{Plan, QUEUES};
use super::ram::Ram;
use crate::naive::{Features, Registers};

const IDR0: u64 = 0x00;
const IDR1: u64 = 0x04;
const IDR3: u64 = 0x0c;
const IDR5: u64 = 0x14;
const AIDR: u64 = 0x1c;
const CR0: u64 = 0x20;
const CR0ACK: u64 = 0x24;
const CR2: u64 = 0x2c;
const GBPA: u64 = 0x44;
const GERROR: u64 = 0x60;
const GERRORN: u64 = 0x64;
const STRTAB_BASE: u64 = 0x80;
const STRTAB_BASE_CFG: u64 = 0x88;
const CMDQ_BASE: u64 = 0x90;
const CMDQ_PROD: u64 = 0x98;
const CMDQ_CONS: u64 = 0x9c;
const EVENTQ_BASE: u64 = 0xa0;
const EVENTQ_PROD: u64 = 0x1_00a8;
const EVENTQ_CONS: u64 = 0x1_00ac;

const SMMUEN: u32 = 1 << 0;
const EVENTQEN: u32 = 1 << 2;
const CMDQEN: u32 = 1 << 3;
const ATSCHK: u32 = 1 << 4;

/// Both queues have 64 entries.
const LOG2: u32 = 6;
const COMMANDS: u64 = QUEUES;
const EVENTS: u64 = QUEUES + 0x1000;

const CFGI_ALL: [u64; 2] = [0x04, 31];
const TLBI_EL2_ALL: [u64; 2] = [0x20, 0];
const TLBI_NSNH_ALL: [u64; 2] = [0x30, 0];
const SYNC: [u64; 2] = [0x46, 0];

/// An SMMU with its memory, a requester, and the driver's side of its queues.
pub(crate) struct Rig {
    smmu: Arc<Smmu<Arc<Ram>>>,
    requester: Requester<Arc<Ram>>,
    pub(crate) ram: Arc<Ram>,
    pub(crate) features: Features,
    pub(crate) registers: Registers,
    commands: u32,
    events: u32,
    stale: Arc<Mutex<Vec<Stale>>>,
}

impl Rig {
    pub(crate) fn new(options: &Options) -> Self {
        // The first plan is replaced before anything happens.
        let blank = Features::from_registers(0b11 | 2 << 2 | 2 << 21, 0, 0, 1 << 4, 0);
        let ram = Arc::new(Ram::new(Plan::new(0, &blank)));
        let smmu = Smmu::new(options.clone(), ram.clone(), (), ()).expect("sound options");
        let id = |offset| smmu.read32(offset);
        let features = Features::from_registers(id(IDR0), id(IDR1), id(IDR3), id(IDR5), id(AIDR));
        smmu.write64(CMDQ_BASE, COMMANDS | u64::from(LOG2));
        smmu.write64(EVENTQ_BASE, EVENTS | u64::from(LOG2));
        smmu.write32(CR0, CMDQEN | EVENTQEN);
        let requester = smmu.requester();
        let registers = Registers::default();
        Self {
            smmu,
            requester,
            ram,
            features,
            registers,
            commands: 0,
            events: 0,
            stale: Arc::default(),
        }
    }

    /// Turns on the checker for stale translations.
    pub(crate) fn check_stale(&self) {
        let sink = self.stale.clone();
        self.smmu
            .check_stale(StaleRule::Use, move |stale: &Stale| {
                sink.lock().unwrap().push(stale.clone());
            })
            .expect("it was off");
    }

    /// What it has reported since the last call.
    pub(crate) fn stale(&self) -> Vec<Stale> {
        std::mem::take(&mut self.stale.lock().unwrap())
    }

    /// Stops the SMMU, changes the world, starts again with empty caches.
    pub(crate) fn enter(&mut self, plan: &Plan) {
        let queues = CMDQEN | EVENTQEN;
        self.smmu.write32(CR0, queues);
        self.ram.become_new(plan.clone());
        self.smmu.write64(STRTAB_BASE, plan.strtab_base);
        self.smmu.write32(STRTAB_BASE_CFG, plan.strtab_base_cfg);
        self.smmu.write32(CR2, plan.cr2);
        self.smmu.write32(GBPA, plan.gbpa | 1 << 31);
        self.flush();
        let mut enabled = if plan.enabled { queues | SMMUEN } else { queues };
        if plan.atschk {
            enabled |= ATSCHK;
        }
        self.smmu.write32(CR0, enabled);
        assert_eq!(self.smmu.read32(CR0ACK), enabled);
        // What was written, not what the model made of it.
        self.registers = Registers {
            cr0: u64::from(enabled),
            cr2: u64::from(plan.cr2),
            gbpa: u64::from(plan.gbpa),
            strtab_base: plan.strtab_base,
            strtab_base_cfg: u64::from(plan.strtab_base_cfg),
        };
    }

    /// Invalidates every cache.
    pub(crate) fn flush(&mut self) {
        if self.features.hyp {
            self.command(&[CFGI_ALL, TLBI_NSNH_ALL, TLBI_EL2_ALL, SYNC]);
        } else {
            self.command(&[CFGI_ALL, TLBI_NSNH_ALL, SYNC]);
        }
    }

    /// `CMD_RESUME` that ends a stalled transaction with an abort.
    pub(crate) fn resume(&mut self, stream: u32, stag: u16) {
        self.command(&[[0x44 | 1 << 13 | u64::from(stream) << 32, u64::from(stag)], SYNC]);
    }

    /// Invalidates what the commands say.
    pub(crate) fn invalidate(&mut self, commands: &[[u64; 2]]) {
        self.command(&[commands, &[SYNC]].concat());
    }

    fn command(&mut self, commands: &[[u64; 2]]) {
        for command in commands {
            let index = self.commands & ((1 << LOG2) - 1);
            self.ram.set_queue_words(COMMANDS + u64::from(index) * 16, command);
            self.commands = (self.commands + 1) & ((2 << LOG2) - 1);
        }
        self.smmu.write32(CMDQ_PROD, self.commands);
        let consumed = self.smmu.read32(CMDQ_CONS);
        assert_eq!(consumed, self.commands, "{commands:x?} were not consumed");
        let (gerror, gerrorn) = (self.smmu.read32(GERROR), self.smmu.read32(GERRORN));
        assert_eq!(gerror, gerrorn, "global error");
    }

    pub(crate) fn translate(&mut self, transaction: &Transaction) -> Result<Translation, Refused> {
        self.requester.begin().translate(transaction)
    }

    pub(crate) fn ats_request(&self, request: &AtsRequest) -> Result<AtsTranslation, AtsError> {
        self.smmu.ats_request(request)
    }

    /// What the model says that it would do.
    pub(crate) fn explain(
        &self,
        transaction: &Transaction,
    ) -> (Result<Translation, Event>, Explanation) {
        self.smmu.explain(transaction)
    }

    /// The records since the last call: how many, and the first.
    pub(crate) fn events(&mut self) -> (u32, Option<[u64; 4]>) {
        let producer = self.smmu.read32(EVENTQ_PROD);
        let count = producer.wrapping_sub(self.events) & ((2 << LOG2) - 1);
        if count == 0 {
            return (0, None);
        }
        let index = self.events & ((1 << LOG2) - 1);
        let record = self.ram.queue_words(EVENTS + u64::from(index) * 32);
        self.events = producer;
        self.smmu.write32(EVENTQ_CONS, producer);
        (count, Some(record))
    }
}
