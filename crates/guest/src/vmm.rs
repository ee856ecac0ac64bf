//! The VMM's half: guest memory in an IOAS, devices, and an accelerated vSMMU over both. Nothing but ioctls.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;

use iommufd_ioctls::{IommuFd, IommufdIoas};
use smmuv3::{Options, Smmu};
use smmuv3_iommufd::{
    Capabilities, Device, Host, Iommufd, NestParents, PlugError, VfioDevice, Vsmmu,
};

use crate::engine::Engine;
use crate::ram::{GuestRam, Region};

/// What goes wrong in a VMM.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or an ioctl.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// An ioctl, by way of its crate.
    #[error("iommufd: {0}")]
    Iommufd(String),
    /// A device does not fit.
    #[error(transparent)]
    Plug(#[from] PlugError),
    /// No SMMU may be as the guest is to see it.
    #[error(transparent)]
    Options(#[from] smmuv3::OptionsError),
    /// The host's SMMU has not what the guest is to see.
    #[error(transparent)]
    Incompatible(#[from] smmuv3_iommufd::Incompatible),
}

impl From<iommufd_ioctls::IommufdError> for Error {
    fn from(error: iommufd_ioctls::IommufdError) -> Self {
        Self::Iommufd(error.to_string())
    }
}

/// A device of the host, in the VMM's hands.
pub struct Assigned {
    device: Arc<VfioDevice<Arc<File>>>,
    engine: Engine,
}

impl Assigned {
    /// Its id in the iommufd.
    pub fn id(&self) -> u32 {
        self.device.id()
    }

    /// Its registers.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }
}

/// The model in front of the host, over guest memory.
pub type VsmmuOf = Vsmmu<Arc<GuestRam>>;

/// A VM.
pub struct Vmm {
    ram: Arc<GuestRam>,
    ioas: IommufdIoas,
    iommu: Arc<IommuFd>,
    host: Arc<dyn Host>,
    parents: Arc<NestParents>,
}

impl Vmm {
    /// A VM with this memory, in an IOAS of `/dev/iommu`. Each vSMMU has a stage 2 of its own.
    pub fn new(ram: &Arc<GuestRam>) -> Result<Self, Error> {
        Self::with_parents(ram, NestParents::new)
    }

    /// The same, but its vSMMUs share a stage 2 where the hardware allows: for guests that [`NestParents::shared`] is for.
    pub fn with_shared_stage_2(ram: &Arc<GuestRam>) -> Result<Self, Error> {
        Self::with_parents(ram, NestParents::shared)
    }

    fn with_parents(
        ram: &Arc<GuestRam>,
        parents: fn(Arc<dyn Host>, u32) -> Arc<NestParents>,
    ) -> Result<Self, Error> {
        let iommu = Arc::new(IommuFd::new()?);
        let ioas = IommufdIoas::new(iommu.clone())?;
        let host: Arc<dyn Host> = Arc::new(Iommufd::new(iommu.clone()));
        let parents = parents(host.clone(), ioas.id());
        let vmm = Self { ram: ram.clone(), ioas, iommu, host, parents };
        vmm.map(ram.first())?;
        Ok(vmm)
    }

    /// Guest memory.
    pub fn ram(&self) -> &Arc<GuestRam> {
        &self.ram
    }

    /// The stage 2 page tables of the VM.
    pub fn parents(&self) -> &Arc<NestParents> {
        &self.parents
    }

    fn map(&self, region: &Region) -> Result<(), Error> {
        let range = region.range();
        Ok(self.ioas.map_file(
            region.fd().as_raw_fd(),
            region.offset(),
            range.end - range.start,
            range.start,
            true,
        )?)
    }

    /// Plugs memory in.
    pub fn plug_memory(&self, region: &Arc<Region>) -> Result<(), Error> {
        self.map(region)?;
        self.ram.plug(region.clone());
        Ok(())
    }

    /// Takes memory away: when it returns no device reaches it.
    pub fn unplug_memory(&self, region: &Arc<Region>) -> Result<(), Error> {
        self.ram.unplug(region);
        let range = region.range();
        Ok(self.ioas.unmap(range.start, range.end - range.start)?)
    }

    /// Opens a VFIO device and binds it.
    pub fn open_device(&self, path: impl AsRef<Path>) -> Result<Assigned, Error> {
        let file = Arc::new(File::options().read(true).write(true).open(path)?);
        let device = Arc::new(VfioDevice::bind(file.clone(), &self.iommu)?);
        Ok(Assigned { device, engine: Engine::new(file)? })
    }

    /// A vSMMU like `wanted`, as far as the SMMU that `device` is behind allows, with the device in it at a StreamID.
    pub fn vsmmu(
        &self,
        wanted: Options,
        device: &Assigned,
        stream_id: u32,
    ) -> Result<VsmmuOf, Error> {
        let mut capabilities = Capabilities::new(wanted);
        capabilities.add(&self.host.hw_info(device.id())?)?;
        let smmu = Smmu::new(capabilities.freeze()?, self.ram.clone(), (), ())?;
        let vsmmu = Vsmmu::new(smmu, self.host.clone(), self.parents.clone())
            .map_err(|error| Error::Iommufd(error.to_string()))?;
        self.plug(&vsmmu, device, stream_id)?;
        Ok(vsmmu)
    }

    /// Plugs a device in at a StreamID.
    pub fn plug(&self, vsmmu: &VsmmuOf, device: &Assigned, stream_id: u32) -> Result<(), Error> {
        vsmmu.plug(device.device.clone())?;
        Ok(vsmmu.set_stream_id(device.id(), Some(stream_id))?)
    }
}
