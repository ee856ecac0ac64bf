//! A guest, a VMM around it, and a host that is made up.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part")]

pub mod double;

use std::sync::Arc;

use smmuv3::vm_memory::GuestRam;
use smmuv3::wire::{Command, Ste};
use smmuv3::{Options, Requester, Smmu};
use smmuv3_iommufd::{Capabilities, NestParents, Vsmmu};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use double::Double;

pub type Ram = GuestRam<GuestMemoryMmap>;

pub const IOAS: u32 = 7;
pub const STRTAB: u64 = 0x1_0000;
pub const CMDQ: u64 = 0x2_0000;
pub const CMDQ_LOG2: u32 = 7;
pub const EVENTQ: u64 = 0x3_0000;
pub const PRIQ: u64 = 0x4_0000;
pub const QUEUE_LOG2: u32 = 4;
pub const CD: u64 = 0x5_0000;

pub mod reg {
    pub const CR0: u64 = 0x20;
    pub const CR0ACK: u64 = 0x24;
    pub const GBPA: u64 = 0x44;
    pub const GERROR: u64 = 0x60;
    pub const GERRORN: u64 = 0x64;
    pub const STRTAB_BASE: u64 = 0x80;
    pub const STRTAB_BASE_CFG: u64 = 0x88;
    pub const CMDQ_BASE: u64 = 0x90;
    pub const CMDQ_PROD: u64 = 0x98;
    pub const CMDQ_CONS: u64 = 0x9c;
    pub const EVENTQ_BASE: u64 = 0xa0;
    pub const PRIQ_BASE: u64 = 0xc0;
    pub const EVENTQ_PROD: u64 = 0x1_00a8;
    pub const EVENTQ_CONS: u64 = 0x1_00ac;
    pub const PRIQ_PROD: u64 = 0x1_00c8;
    pub const PRIQ_CONS: u64 = 0x1_00cc;
}

/// `CR0`: the queues, and SMMUEN.
pub const QUEUES: u32 = 0b1110;
pub const ENABLED: u32 = 0b1111;

pub const SYNC: Command = Command::Sync { cs: 0, msh: 0, msi_attr: 0, msi_data: 0, msi_address: 0 };

/// One VM.
pub struct Vm {
    pub ram: GuestMemoryMmap,
    pub smmu: Arc<Smmu<Ram>>,
    pub vsmmu: Vsmmu<Ram>,
    pub host: Arc<Double>,
}

pub fn options(host: &Double) -> Options {
    let mut capabilities = Capabilities::new(Options::everything());
    for info in host.infos() {
        capabilities.add(&info).unwrap();
    }
    capabilities.freeze().unwrap()
}

impl Vm {
    pub fn new(host: &Arc<Double>) -> Self {
        let parents = NestParents::new(host.clone(), IOAS);
        Self::with(host, options(host), &parents)
    }

    pub fn with(host: &Arc<Double>, options: Options, parents: &Arc<NestParents>) -> Self {
        let ram = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let smmu = Smmu::new(options, GuestRam(ram.clone()), (), ()).unwrap();
        let vsmmu = Vsmmu::new(smmu.clone(), host.clone(), parents.clone()).unwrap();
        Self { ram, smmu, vsmmu, host: host.clone() }
    }

    /// With device 1 as stream 3, and a guest that translates it.
    pub fn running() -> Self {
        let vm = Self::new(&Double::new(1));
        vm.vsmmu.plug(vm.host.device(1)).unwrap();
        vm.vsmmu.set_stream_id(1, Some(3)).unwrap();
        vm.boot();
        vm.set_ste(3, &translating(CD));
        vm.host.take();
        vm
    }

    pub fn read(&self, offset: u64) -> u32 {
        self.smmu.read32(offset)
    }

    pub fn write(&self, offset: u64, value: u32) {
        self.smmu.write32(offset, value);
    }

    /// What a guest's driver does first.
    pub fn boot(&self) {
        self.write(reg::CR0, 0);
        self.smmu.write64(reg::STRTAB_BASE, STRTAB);
        self.write(reg::STRTAB_BASE_CFG, 8);
        self.smmu.write64(reg::CMDQ_BASE, CMDQ | u64::from(CMDQ_LOG2));
        self.smmu.write64(reg::EVENTQ_BASE, EVENTQ | u64::from(QUEUE_LOG2));
        self.smmu.write64(reg::PRIQ_BASE, PRIQ | u64::from(QUEUE_LOG2));
        for index in [
            reg::CMDQ_PROD,
            reg::CMDQ_CONS,
            reg::EVENTQ_PROD,
            reg::EVENTQ_CONS,
            reg::PRIQ_PROD,
            reg::PRIQ_CONS,
        ] {
            self.write(index, 0);
        }
        self.write(reg::CR0, QUEUES);
        self.run(&[Command::CfgiSteRange { sid: 0, range: 31, ssec: false }, Command::TlbiNsnhAll]);
        self.write(reg::CR0, ENABLED);
        assert_eq!(self.read(reg::CR0ACK), ENABLED);
    }

    pub fn store(&self, address: u64, words: &[u64]) {
        for (n, word) in (0..).zip(words) {
            self.ram.write_obj(word.to_le(), GuestAddress(address + 8 * n)).unwrap();
        }
    }

    pub fn load<const N: usize>(&self, address: u64) -> [u64; N] {
        std::array::from_fn(|n| {
            u64::from_le(self.ram.read_obj(GuestAddress(address + 8 * n as u64)).unwrap())
        })
    }

    pub fn submit(&self, commands: &[Command]) {
        let prod = self.read(reg::CMDQ_PROD);
        for (n, command) in (0..).zip(commands) {
            let index = (prod + n) & ((1 << CMDQ_LOG2) - 1);
            self.store(CMDQ + 16 * u64::from(index), &command.encode());
        }
        let mask = (2 << CMDQ_LOG2) - 1;
        self.write(reg::CMDQ_PROD, (prod + commands.len() as u32) & mask);
    }

    pub fn idle(&self) -> bool {
        self.read(reg::CMDQ_CONS) == self.read(reg::CMDQ_PROD)
    }

    /// Executes commands, and a CMD_SYNC.
    #[track_caller]
    pub fn run(&self, commands: &[Command]) {
        self.submit(&[commands, &[SYNC]].concat());
        assert!(self.idle(), "CONS {:#x}", self.read(reg::CMDQ_CONS));
    }

    /// Acknowledges global errors.
    pub fn acknowledge(&self) {
        self.write(reg::GERRORN, self.read(reg::GERROR));
    }

    pub fn set_ste(&self, sid: u32, ste: &Ste) {
        self.store(STRTAB + 64 * u64::from(sid), &ste.0);
        self.run(&[Command::CfgiSte { sid, leaf: true, ssec: false }]);
    }

    /// New event records, consumed.
    pub fn events(&self) -> Vec<[u64; 4]> {
        self.records(reg::EVENTQ_PROD, reg::EVENTQ_CONS, EVENTQ)
    }

    /// New page requests, consumed.
    pub fn page_requests(&self) -> Vec<[u64; 2]> {
        self.records(reg::PRIQ_PROD, reg::PRIQ_CONS, PRIQ)
    }

    fn records<const N: usize>(&self, prod: u64, cons: u64, base: u64) -> Vec<[u64; N]> {
        let (end, start) = (self.read(prod), self.read(cons));
        let mask = (2 << QUEUE_LOG2) - 1;
        let count = end.wrapping_sub(start) & mask;
        let index = |n| u64::from((start + n) & (mask >> 1));
        let records = (0..count).map(|n| self.load(base + 8 * N as u64 * index(n))).collect();
        self.write(cons, end);
        records
    }

    pub fn requester(&self) -> Requester<Ram> {
        self.smmu.requester()
    }
}

/// An STE of stage 1.
pub fn translating(cd: u64) -> Ste {
    Ste::default().with_v(true).with_config(0b101).with_s1_context_ptr(cd)
}

pub fn tlbi_asid(asid: u16) -> Command {
    Command::TlbiNhAsid { vmid: 0, asid }
}

pub fn cfgi_cd(sid: u32) -> Command {
    Command::CfgiCd { sid, ssid: 0, leaf: true, ssec: false }
}

pub fn atc_inv(sid: u32) -> Command {
    Command::AtcInv { sid, ssid: None, global: false, size: 52, addr: 0 }
}
