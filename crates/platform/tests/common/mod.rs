//! A machine with an SMMU under iommufd, on a made-up host.
#![allow(dead_code, reason = "not every test uses all of it")]

use std::cell::RefCell;
use std::sync::Arc;

use host::{Errno, File, Mm};
use host_fake::{BASE, FakeHost, FakeTask};
use iommu::{Device, Group};
use iommufd::{Context, Iommufd};
use platform::{DeviceOptions, Place, Platform, Port, Smmu};
use uapi::iommufd as u;
use uapi::{Plain, nr};

pub(crate) const PAGES: u64 = 64;
const ARG: u64 = BASE + (PAGES - 1) * 4096;
pub(crate) const NEST_PARENT: u32 = u::iommufd_hwpt_alloc_flags_IOMMU_HWPT_ALLOC_NEST_PARENT;

pub(crate) struct Machine {
    pub(crate) host: Arc<FakeHost>,
    pub(crate) task: FakeTask,
    pub(crate) platform: Platform,
    pub(crate) smmu: Arc<Smmu>,
    pub(crate) context: Arc<Context>,
    pub(crate) bound: RefCell<Vec<u32>>,
}

impl Drop for Machine {
    fn drop(&mut self) {
        // What VFIO does when its files are closed.
        for id in self.bound.get_mut().drain(..) {
            let _ = self.context.unbind(id);
        }
    }
}

impl Machine {
    pub(crate) fn new() -> Self {
        let host = FakeHost::new(PAGES as usize);
        let spawn = |_: &str, run: Box<dyn FnOnce() + Send>| {
            std::thread::spawn(run);
            Ok(())
        };
        let platform = Platform::new(host.clone(), Arc::new(spawn)).unwrap();
        let options =
            smmuv3::Options { sid_bits: 16, oas: 48, ds: false, ..smmuv3::Options::linux_host() };
        let smmu = platform.add_smmu("smmu0", options).unwrap();
        let node = Iommufd::new(host.clone(), 200, None).doorbells(platform.doorbells());
        let context = node.context();
        Self {
            task: FakeTask::new(&host),
            host,
            platform,
            smmu,
            context,
            bound: RefCell::default(),
        }
    }

    pub(crate) fn device(&self, stream_id: u32) -> (Arc<Device>, Port) {
        self.device_with(stream_id, DeviceOptions::default())
    }

    pub(crate) fn device_with(
        &self,
        stream_id: u32,
        options: DeviceOptions,
    ) -> (Arc<Device>, Port) {
        let group = Group::new();
        let place = Place::Smmu { smmu: &self.smmu, stream_id, options, group: &group };
        self.platform.add_device("device", &place).unwrap()
    }

    pub(crate) fn bind(&self, device: Arc<Device>) -> u32 {
        let id = self.context.bind(device).unwrap();
        self.bound.borrow_mut().push(id);
        id
    }

    pub(crate) fn call<T: Plain>(&self, cmd: u32, arg: &mut T) -> Result<i32, Errno> {
        self.host.copy_to_user(ARG, arg.as_bytes()).unwrap();
        let result = self.context.ioctl(&self.task, cmd, ARG);
        self.host.copy_from_user(ARG, arg.as_bytes_mut()).unwrap();
        self.context.check_invariants().unwrap();
        result
    }

    pub(crate) fn ioas(&self) -> u32 {
        let mut cmd = u::iommu_ioas_alloc { size: 12, flags: 0, out_ioas_id: 0 };
        self.call(nr::IOMMU_IOAS_ALLOC, &mut cmd).unwrap();
        cmd.out_ioas_id
    }

    pub(crate) fn map(&self, ioas_id: u32, va: u64, iova: u64) -> Result<i32, Errno> {
        let flags = u::iommufd_ioas_map_flags_IOMMU_IOAS_MAP_READABLE
            | u::iommufd_ioas_map_flags_IOMMU_IOAS_MAP_WRITEABLE
            | u::iommufd_ioas_map_flags_IOMMU_IOAS_MAP_FIXED_IOVA;
        let mut cmd = u::iommu_ioas_map {
            size: 40,
            flags,
            ioas_id,
            __reserved: 0,
            user_va: va,
            length: 4096,
            iova,
        };
        self.call(nr::IOMMU_IOAS_MAP, &mut cmd)
    }

    pub(crate) fn hwpt(&self, device: u32, ioas: u32, flags: u32) -> Result<u32, Errno> {
        let mut cmd = u::iommu_hwpt_alloc { dev_id: device, pt_id: ioas, flags, ..Plain::zeroed() };
        cmd.size = size_of_val(&cmd) as u32;
        self.call(nr::IOMMU_HWPT_ALLOC, &mut cmd).map(|_| cmd.out_hwpt_id)
    }

    pub(crate) fn unmap(&self, ioas_id: u32, iova: u64) -> Result<i32, Errno> {
        let mut cmd = u::iommu_ioas_unmap { size: 24, ioas_id, iova, length: 4096 };
        self.call(nr::IOMMU_IOAS_UNMAP, &mut cmd)
    }
}
