//! The machine with the driver in charge of it, and a device.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part")]

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use arm_smmu_v3::{Domain, Options, Prot, Smmu, Stage, StreamOptions};
use smmuv3::{Refused, Requester, Transaction};

use crate::common::{Bus, Model, Ram, machine};

pub type Driver = Arc<Smmu<Bus, Arc<Ram>>>;

pub type Paging = Arc<Domain<Bus, Arc<Ram>>>;

pub const RW: Prot = Prot::READ.union(Prot::WRITE).union(Prot::CACHE);

pub const SID: u32 = 5;

pub fn start(options: smmuv3::Options) -> (Driver, Model, Arc<Ram>) {
    let (bus, ram) = machine(options);
    let timeout = Options { timeout: Duration::from_mins(10) };
    let smmu = Smmu::new(bus.clone(), ram.clone(), timeout).unwrap();
    (smmu, bus.model, ram)
}

/// SMMUs that differ in what matters here.
pub fn smmus() -> Vec<smmuv3::Options> {
    let everything = smmuv3::Options::everything();
    let only_16k = smmuv3::Options { gran4k: false, gran64k: false, ..smmuv3::Options::mmu600() };
    let only_64k =
        smmuv3::Options { gran4k: false, gran16k: false, ds: false, ..everything.clone() };
    vec![
        everything.clone(),
        smmuv3::Options::mmu600(),
        smmuv3::Options::linux_host(),
        only_16k,
        only_64k,
        smmuv3::Options {
            stage1: false,
            ssid_bits: 0,
            asid16: false,
            cd2l: false,
            hyp: false,
            had: false,
            ..smmuv3::Options::mmu600()
        },
        smmuv3::Options { oas: 40, va52: false, ds: false, ..everything },
        smmuv3::Options::minimal(),
    ]
}

pub fn stages(smmu: &Driver) -> Vec<Stage> {
    let both = [(smmu.features().stage1, Stage::One), (smmu.features().stage2, Stage::Two)];
    both.into_iter().filter(|(is_there, _)| *is_there).map(|(_, stage)| stage).collect()
}

pub struct Device(pub Requester<Arc<Ram>>);

impl Device {
    pub fn new(model: &Model) -> Self {
        Self(model.requester())
    }
    pub fn go(&mut self, transaction: &Transaction) -> Option<u64> {
        match self.0.begin().translate(transaction) {
            Ok(translation) => Some(translation.address),
            Err(Refused::Abort) => None,
            Err(other) => panic!("{other}"),
        }
    }
    pub fn read(&mut self, address: u64) -> Option<u64> {
        self.go(&Transaction::read(SID, address))
    }
    pub fn write(&mut self, address: u64) -> Option<u64> {
        self.go(&Transaction::write(SID, address))
    }
    pub fn pasid(&mut self, pasid: u32, address: u64) -> Option<u64> {
        self.go(&Transaction::read(SID, address).with_substream(pasid))
    }
}

pub fn map(domain: &Paging, range: Range<u64>, output: u64, prot: Prot) {
    domain.map(range, output, prot, domain.geometry().page_sizes()).unwrap();
}

/// A domain in which `at` is mapped to `output`.
pub fn with_page(smmu: &Driver, stage: Stage, at: u64, output: u64) -> Paging {
    let domain = Domain::new(smmu, stage, false).unwrap();
    map(&domain, at..at + 0x1_0000, output, RW);
    domain
}

/// A stream with PASIDs of so many bits, and nothing else.
pub fn plain(pasid_bits: u8) -> StreamOptions {
    StreamOptions { pasid_bits, ..StreamOptions::default() }
}
