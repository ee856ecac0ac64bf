//! The hardware of a machine: a physical address space ([`Bus`]), SMMUs in service under their driver ([`Smmu`]), the
//! interrupt controllers' doorbells ([`Its`]), and for each device a way to all of it ([`Port`]).
//!
//! It knows neither files nor ioctls: devices come out as [`iommu::Device`]s.
//!
//! | physical address | what answers |
//! |---|---|
//! | below `0xe000_0000_0000` | memory of processes, as the crate `host` has it |
//! | from there, 1 TiB | the machine's own memory: tables and queues of drivers |
//! | above, 1 TiB | doorbells, 64 KiB each |
//! | above, to 2⁴⁸ | registers of devices, for other devices |
#![forbid(unsafe_code)]

mod atc;
mod bus;
mod endpoint;
mod irq;
mod its;
mod mmio;
mod monitor;
mod observe;
mod pci;
mod port;
mod pri;
mod smmu;

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use host::PhysMemory;
use iommu::{Device, Doorbells, Group, NoIommu};
use parking_lot::Mutex;

use crate::observe::Watch;

pub use arm_smmu_v3::DeviceOptions;
pub use bus::Bus;
pub use endpoint::Capabilities;
pub use host::FilePart;
pub use irq::Spawn;
pub use its::{Its, ItsDevice, ItsError, Sink};
pub use mmio::Registers;
pub use monitor::Monitor;
pub use observe::{Dma, Message, Observer};
pub use pci::{NotAnAddress, PciAddress};
pub use port::{Access, DmaError, Port};
pub use pri::{CAPACITY as PAGE_REQUEST_CAPACITY, PriStatus};
pub use smmu::{AnyFence, Model, Smmu};

use crate::endpoint::Endpoint;
use crate::port::Itses;

/// Why a machine cannot be built so.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No SMMU may be like this.
    #[error(transparent)]
    Options(#[from] smmuv3::OptionsError),
    /// The driver does not take it.
    #[error(transparent)]
    Driver(#[from] arm_smmu_v3::Error),
    /// The machine has all the doorbells that it can.
    #[error(transparent)]
    Doorbells(#[from] iommu::Error),
}

/// Where a device is.
#[derive(Clone)]
pub enum Place<'a> {
    /// Behind an SMMU.
    Smmu {
        /// The SMMU.
        smmu: &'a Smmu,
        /// Its StreamID, which no other device of this SMMU has.
        stream_id: u32,
        /// What it can do.
        options: DeviceOptions,
        /// Devices that share a domain.
        group: &'a Arc<Group>,
    },
    /// Behind no IOMMU.
    Direct,
}

/// A machine's hardware.
pub struct Platform {
    bus: Arc<Bus>,
    spawn: Spawn,
    doorbells: Arc<Doorbells>,
    itses: Arc<Itses>,
    next_device: AtomicU32,
    smmus: Mutex<Vec<Arc<Smmu>>>,
    observer: OnceLock<Arc<dyn Observer>>,
}

impl Platform {
    /// A machine whose processes have this memory, with one interrupt controller and nothing else. `spawn` starts its
    /// threads.
    pub fn new(memory: Arc<dyn PhysMemory>, spawn: Spawn) -> Result<Self, Error> {
        let platform = Self {
            bus: Bus::new(memory, &spawn),
            spawn,
            doorbells: Arc::default(),
            itses: Arc::default(),
            next_device: AtomicU32::new(0),
            smmus: Mutex::default(),
            observer: OnceLock::new(),
        };
        platform.add_its()?;
        Ok(platform)
    }

    /// Has `observer` told what those devices do that are added from now on. The first one stays.
    pub fn observe(&self, observer: Arc<dyn Observer>) {
        let _ = self.observer.set(observer);
    }

    /// The physical address space.
    pub fn bus(&self) -> &Arc<Bus> {
        &self.bus
    }

    /// The doorbells, for who maps them.
    pub fn doorbells(&self) -> &Arc<Doorbells> {
        &self.doorbells
    }

    /// The first interrupt controller.
    pub fn its(&self) -> Arc<Its> {
        self.itses.0.lock()[0].clone()
    }

    /// Starts a thread of the machine's.
    pub fn spawn(&self, name: &str, run: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
        (self.spawn)(name, Box::new(run))
    }

    /// Adds an interrupt controller, at any time.
    pub fn add_its(&self) -> Result<Arc<Its>, Error> {
        let mut itses = self.itses.0.lock();
        let its = Its::new(bus::MMIO.start + ((itses.len() as u64) << its::FRAME_LOG2));
        self.doorbells.add(its.frame())?;
        itses.push(its.clone());
        Ok(its)
    }

    /// Adds an SMMU and takes it into service.
    pub fn add_smmu(&self, name: &str, options: smmuv3::Options) -> Result<Arc<Smmu>, Error> {
        let smmu = Arc::new(Smmu::new(name, options, &self.bus, &self.spawn)?);
        self.smmus.lock().push(smmu.clone());
        Ok(smmu)
    }

    /// All SMMUs.
    pub fn smmus(&self) -> Vec<Arc<Smmu>> {
        self.smmus.lock().clone()
    }

    /// Adds a device: what the IOMMU core knows it by, and its way to memory.
    pub fn add_device(&self, name: &str, place: &Place<'_>) -> Result<(Arc<Device>, Port), Error> {
        let device_id = self.next_device.fetch_add(1, Ordering::Relaxed);
        let watch = self.observer.get().map(|observer| Watch::new(observer, name));
        let watch = watch.unwrap_or_default();
        let port = |endpoint, behind| {
            Port::new(&self.bus, &self.itses, device_id, endpoint, behind, watch)
        };
        match place {
            Place::Smmu { smmu, stream_id, options, group } => {
                let device = smmu.driver.add_device(name, *stream_id, options.clone(), group)?;
                let endpoint = Endpoint::new(*stream_id, options);
                smmu.endpoints.add(&endpoint);
                let behind = (smmu.model(), *stream_id, &smmu.endpoints);
                Ok((device, port(endpoint, Some(behind))))
            }
            Place::Direct => {
                let endpoint = Endpoint::new(0, &DeviceOptions::default());
                Ok((NoIommu::add_device(name), port(endpoint, None)))
            }
        }
    }
}
