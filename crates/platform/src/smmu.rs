//! An SMMU under its driver.

use std::sync::Arc;

use smmuv3::{Fence, Membarrier, SeqCst};

use crate::bus::Bus;
use crate::endpoint::Endpoints;
use crate::irq::{LineEnds, Lines, Spawn};
use crate::{Error, irq};

/// The model of an SMMU in this machine.
pub type Model = smmuv3::Smmu<Arc<Bus>, AnyFence>;
/// Its driver's view of it.
pub(crate) type DriverSmmu = arm_smmu_v3::Smmu<Arc<Model>, Arc<Bus>>;
pub(crate) type Driver = arm_smmu_v3::Driver<Arc<Model>, Arc<Bus>>;

/// The better barrier that the kernel offers.
pub enum AnyFence {
    /// `membarrier(2)`.
    Membarrier(Membarrier),
    /// A fence on both sides.
    SeqCst(SeqCst),
}

impl AnyFence {
    fn new() -> Self {
        Membarrier::new().map_or(Self::SeqCst(SeqCst), Self::Membarrier)
    }
}

impl Fence for AnyFence {
    #[inline]
    fn light(&self) {
        match self {
            Self::Membarrier(fence) => fence.light(),
            Self::SeqCst(fence) => fence.light(),
        }
    }

    fn heavy(&self) {
        match self {
            Self::Membarrier(fence) => fence.heavy(),
            Self::SeqCst(fence) => fence.heavy(),
        }
    }
}

/// One SMMU of a machine, in service.
pub struct Smmu {
    name: String,
    model: Arc<Model>,
    pub(crate) driver: Arc<Driver>,
    pub(crate) endpoints: Arc<Endpoints>,
    lines: Arc<Lines>,
    /// Called by the thread of `lines`.
    _handler: Arc<dyn Fn() + Send + Sync>,
}

impl Smmu {
    pub(crate) fn new(
        name: &str,
        options: smmuv3::Options,
        bus: &Arc<Bus>,
        spawn: &Spawn,
    ) -> Result<Self, Error> {
        let lines = irq::Lines::new(name, spawn);
        let endpoints = Arc::new(Endpoints::default());
        let (ends, devices) = (LineEnds(lines.clone()), endpoints.clone());
        let model = Model::with_fence(options, bus.clone(), ends, devices, AnyFence::new())?;
        let smmu: Arc<DriverSmmu> =
            arm_smmu_v3::Smmu::new(model.clone(), bus.clone(), arm_smmu_v3::Options::default())?;
        smmu.connect(endpoints.clone());
        let driver = arm_smmu_v3::Driver::new(&smmu);
        let handled = driver.clone();
        let handler: Arc<dyn Fn() + Send + Sync> = Arc::new(move || {
            // In bounded steps, so that an end of the machine is noticed in between.
            while handled.handle_events() {}
        });
        lines.connect(Arc::downgrade(&handler));
        Ok(Self { name: name.to_owned(), model, driver, endpoints, lines, _handler: handler })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The hardware itself: to explain, to check, to look at its registers.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }
}

impl Drop for Smmu {
    fn drop(&mut self) {
        self.lines.close();
    }
}
