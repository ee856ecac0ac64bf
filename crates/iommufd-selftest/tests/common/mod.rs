//! A client of `/dev/iommu` on a made-up host.
#![allow(dead_code, reason = "not every test file uses all of it")]

use std::sync::Arc;

use host::{Errno, File, Mm};
use host_fake::{BASE, FakeHost, FakeTask};
use iommu::NoIommu;
use iommufd::{Context, Iommufd};
use uapi::extra::iommu_ioas_noiommu_get_pa;
use uapi::iommufd as u;
use uapi::selftest::{self as t, iommu_test_cmd};
use uapi::{Plain, nr};

/// Memory for the arguments of ioctls: the last page.
const PAGES: u64 = 1024;
const ARG: u64 = BASE + (PAGES - 1) * 4096;

pub(crate) const RW: u32 = u::iommufd_ioas_map_flags_IOMMU_IOAS_MAP_READABLE
    | u::iommufd_ioas_map_flags_IOMMU_IOAS_MAP_WRITEABLE;
pub(crate) const RO: u32 = u::iommufd_ioas_map_flags_IOMMU_IOAS_MAP_READABLE;
pub(crate) const FIXED: u32 = u::iommufd_ioas_map_flags_IOMMU_IOAS_MAP_FIXED_IOVA;

pub(crate) struct Client {
    pub(crate) host: Arc<FakeHost>,
    pub(crate) task: FakeTask,
    pub(crate) node: Arc<Iommufd>,
    pub(crate) context: Arc<Context>,
}

/// A mock device: its objects' ids.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mock {
    pub(crate) stdev: u32,
    pub(crate) hwpt: u32,
    pub(crate) idev: u32,
}

impl Client {
    pub(crate) fn new() -> Self {
        let host = FakeHost::new(PAGES as usize);
        let noiommu = vec![NoIommu::add_device("nic0"), NoIommu::add_device("nic1")];
        let node = iommufd_selftest::device_node(host.clone(), 200, &[], noiommu);
        let context = node.context();
        Self { task: FakeTask::new(&host), host, node, context }
    }

    /// Calls with a struct whose size field is already set.
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

    pub(crate) fn destroy(&self, id: u32) -> Result<i32, Errno> {
        self.call(nr::IOMMU_DESTROY, &mut u::iommu_destroy { size: 8, id })
    }

    /// Maps; returns the IOVA.
    pub(crate) fn map(
        &self,
        ioas: u32,
        va: u64,
        length: u64,
        flags: u32,
        iova: u64,
    ) -> Result<u64, Errno> {
        let mut cmd = u::iommu_ioas_map {
            size: 40,
            flags,
            ioas_id: ioas,
            __reserved: 0,
            user_va: va,
            length,
            iova,
        };
        self.call(nr::IOMMU_IOAS_MAP, &mut cmd).map(|_| cmd.iova)
    }

    pub(crate) fn map_file(
        &self,
        ioas: u32,
        fd: i32,
        start: u64,
        length: u64,
    ) -> Result<u64, Errno> {
        let mut cmd = u::iommu_ioas_map_file {
            size: 40,
            flags: RW,
            ioas_id: ioas,
            fd,
            start,
            length,
            iova: 0,
        };
        self.call(nr::IOMMU_IOAS_MAP_FILE, &mut cmd).map(|_| cmd.iova)
    }

    /// Copies; returns the IOVA.
    pub(crate) fn copy(
        &self,
        from: u32,
        iova: u64,
        length: u64,
        to: u32,
        flags: u32,
    ) -> Result<u64, Errno> {
        let mut cmd = u::iommu_ioas_copy {
            size: 40,
            flags,
            dst_ioas_id: to,
            src_ioas_id: from,
            length,
            dst_iova: 0,
            src_iova: iova,
        };
        self.call(nr::IOMMU_IOAS_COPY, &mut cmd).map(|_| cmd.dst_iova)
    }

    /// Unmaps; returns how many bytes.
    pub(crate) fn unmap(&self, ioas: u32, iova: u64, length: u64) -> Result<u64, Errno> {
        let mut cmd = u::iommu_ioas_unmap { size: 24, ioas_id: ioas, iova, length };
        self.call(nr::IOMMU_IOAS_UNMAP, &mut cmd).map(|_| cmd.length)
    }

    /// A test operation; `args` are the 32-bit words of the union.
    pub(crate) fn test(&self, op: u32, id: u32, args: &[u32]) -> Result<iommu_test_cmd, Errno> {
        let mut cmd = iommu_test_cmd::zeroed();
        (cmd.size, cmd.op, cmd.id) = (72, op, id);
        cmd.arg[..args.len()].copy_from_slice(args);
        self.call(nr::IOMMU_TEST_CMD, &mut cmd).map(|_| cmd)
    }

    pub(crate) fn mock(&self, pt_id: u32) -> Result<Mock, Errno> {
        self.test(t::IOMMU_TEST_OP_MOCK_DOMAIN, pt_id, &[]).map(|cmd| Mock {
            stdev: cmd.arg[0],
            hwpt: cmd.arg[1],
            idev: cmd.arg[2],
        })
    }

    /// Binds the n-th device that is behind no IOMMU and attaches it.
    pub(crate) fn nic(&self, n: u32, pt_id: u32) -> Result<Mock, Errno> {
        let cmd = self.test(t::SOFTIOMMU_TEST_OP_NOIOMMU_DEVICE, pt_id, &[0, 0, 0, n])?;
        Ok(Mock { stdev: cmd.arg[0], hwpt: cmd.arg[1], idev: cmd.arg[2] })
    }

    /// The physical address of an IOVA and the contiguous bytes behind it.
    pub(crate) fn get_pa(&self, ioas_id: u32, iova: u64, length: u64) -> Result<(u64, u64), Errno> {
        let mut cmd =
            iommu_ioas_noiommu_get_pa { size: 40, ioas_id, iova, length, ..Default::default() };
        let result = self.call(nr::IOMMU_IOAS_NOIOMMU_GET_PA, &mut cmd);
        if result.is_err() {
            assert_eq!((cmd.length, cmd.out_phys), (length, 0), "an error answers nothing");
        }
        result.map(|_| (cmd.out_phys, cmd.length))
    }

    /// Whether the HWPT maps `iova` to the memory at `va`.
    pub(crate) fn check_map(
        &self,
        hwpt: u32,
        iova: u64,
        length: u64,
        va: u64,
    ) -> Result<(), Errno> {
        let words = words(&[iova, length, va]);
        self.test(t::IOMMU_TEST_OP_MD_CHECK_MAP, hwpt, &words).map(drop)
    }

    /// A test access to an IOAS; returns its descriptor.
    pub(crate) fn access(&self, ioas: u32, flags: u32) -> Result<i32, Errno> {
        self.test(t::IOMMU_TEST_OP_CREATE_ACCESS, ioas, &[0, flags]).map(|cmd| cmd.arg[0] as i32)
    }

    /// Pins through a test access; returns the item.
    pub(crate) fn pin(
        &self,
        access: i32,
        iova: u64,
        length: u64,
        flags: u32,
    ) -> Result<u32, Errno> {
        let mut args = vec![flags, 0];
        args.extend(words(&[iova, length, 0]));
        self.test(t::IOMMU_TEST_OP_ACCESS_PAGES, access as u32, &args).map(|cmd| cmd.arg[1])
    }
}

/// 64-bit union members as words.
pub(crate) fn words(values: &[u64]) -> Vec<u32> {
    values.iter().flat_map(|v| [*v as u32, (*v >> 32) as u32]).collect()
}

/// User memory to map: page `n`.
pub(crate) fn page(n: u64) -> u64 {
    BASE + n * 4096
}
