//! A client of `/dev/iommu`: its calls go through the C library's `ioctl`, which
//! is softiommu's in this executable.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use uapi::iommufd as u;
use uapi::selftest::{self as t, iommu_hwpt_selftest, iommu_test_cmd};
use uapi::{Plain, nr};

/// Readable and writable.
const RW: u32 = 6;
const FIXED_IOVA: u32 = 1;

/// An open `/dev/iommu`.
pub(crate) struct Iommu(File);

impl Iommu {
    pub(crate) fn open() -> Self {
        let file = File::options().read(true).write(true).open("/dev/iommu");
        Self(file.expect("softiommu's /dev/iommu"))
    }

    /// One ioctl. Its struct is on the stack, as clients have it.
    #[inline]
    fn call<T: Plain>(&self, cmd: u32, arg: &mut T) {
        // SAFETY: the argument is the command's struct and tells its size.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), cmd.into(), &raw mut *arg) };
        assert!(result == 0, "{:?}: {}", nr::name(cmd), io::Error::last_os_error());
    }

    /// A new IOAS.
    pub(crate) fn ioas(&self) -> u32 {
        let mut cmd = u::iommu_ioas_alloc { size: 12, flags: 0, out_ioas_id: 0 };
        self.call(nr::IOMMU_IOAS_ALLOC, &mut cmd);
        cmd.out_ioas_id
    }

    /// Attaches a mock device to an IOAS, by a domain with a 56-bit aperture and
    /// large leaves.
    pub(crate) fn attach_mock(&self, ioas: u32) {
        let [stdev, _, dev_id] = self.test(t::IOMMU_TEST_OP_MOCK_DOMAIN, ioas, 0);
        let data = iommu_hwpt_selftest { iotlb: 0, pagetable_type: t::MOCK_IOMMUPT_HUGE };
        let mut cmd = u::iommu_hwpt_alloc::zeroed();
        cmd.size = size_of::<u::iommu_hwpt_alloc>() as u32;
        (cmd.dev_id, cmd.pt_id) = (dev_id, ioas);
        cmd.data_type = t::IOMMU_HWPT_DATA_SELFTEST;
        cmd.data_len = size_of::<iommu_hwpt_selftest>() as u32;
        cmd.data_uptr = &raw const data as u64;
        self.call(nr::IOMMU_HWPT_ALLOC, &mut cmd);
        self.test(t::IOMMU_TEST_OP_MOCK_DOMAIN_REPLACE, stdev, cmd.out_hwpt_id);
    }

    /// A vIOMMU with the mock device 1 in it.
    pub(crate) fn viommu(&self) -> u32 {
        let ioas = self.ioas();
        let [_, _, dev_id] = self.test(t::IOMMU_TEST_OP_MOCK_DOMAIN, ioas, 0);
        let mut hwpt = u::iommu_hwpt_alloc::zeroed();
        hwpt.size = size_of::<u::iommu_hwpt_alloc>() as u32;
        hwpt.flags = u::iommufd_hwpt_alloc_flags_IOMMU_HWPT_ALLOC_NEST_PARENT;
        (hwpt.dev_id, hwpt.pt_id) = (dev_id, ioas);
        self.call(nr::IOMMU_HWPT_ALLOC, &mut hwpt);
        let mut cmd = u::iommu_viommu_alloc::zeroed();
        (cmd.size, cmd.type_) = (40, t::IOMMU_VIOMMU_TYPE_SELFTEST);
        (cmd.dev_id, cmd.hwpt_id) = (dev_id, hwpt.out_hwpt_id);
        self.call(nr::IOMMU_VIOMMU_ALLOC, &mut cmd);
        let viommu_id = cmd.out_viommu_id;
        let mut cmd = u::iommu_vdevice_alloc::zeroed();
        (cmd.size, cmd.viommu_id, cmd.dev_id, cmd.virt_id) = (24, viommu_id, dev_id, 1);
        self.call(nr::IOMMU_VDEVICE_ALLOC, &mut cmd);
        viommu_id
    }

    /// `IOMMU_HWPT_INVALIDATE` of a vIOMMU.
    #[inline]
    pub(crate) fn invalidate(&self, viommu: u32, entries: &[t::iommu_viommu_invalidate_selftest]) {
        let mut cmd = u::iommu_hwpt_invalidate {
            size: 32,
            hwpt_id: viommu,
            data_uptr: entries.as_ptr() as u64,
            data_type: t::IOMMU_VIOMMU_INVALIDATE_DATA_SELFTEST,
            entry_len: size_of_val(&entries[0]) as u32,
            entry_num: entries.len() as u32,
            __reserved: 0,
        };
        self.call(nr::IOMMU_HWPT_INVALIDATE, &mut cmd);
    }

    fn test(&self, op: u32, id: u32, arg: u32) -> [u32; 3] {
        let mut cmd = iommu_test_cmd::zeroed();
        (cmd.size, cmd.op, cmd.id) = (size_of::<iommu_test_cmd>() as u32, op, id);
        cmd.arg[0] = arg;
        self.call(nr::IOMMU_TEST_CMD, &mut cmd);
        [cmd.arg[0], cmd.arg[1], cmd.arg[2]]
    }

    /// `IOMMU_IOAS_MAP` of memory, at an IOVA or where there is room.
    #[inline]
    pub(crate) fn map(&self, ioas: u32, user_va: u64, length: u64, iova: Option<u64>) -> u64 {
        let mut cmd = u::iommu_ioas_map {
            size: 40,
            flags: RW | iova.map_or(0, |_| FIXED_IOVA),
            ioas_id: ioas,
            __reserved: 0,
            user_va,
            length,
            iova: iova.unwrap_or(0),
        };
        self.call(nr::IOMMU_IOAS_MAP, &mut cmd);
        cmd.iova
    }

    /// `IOMMU_IOAS_MAP_FILE` of the first bytes of a file, at an IOVA.
    #[inline]
    pub(crate) fn map_file(&self, ioas: u32, fd: RawFd, length: u64, iova: u64) {
        let mut cmd = u::iommu_ioas_map_file {
            size: 40,
            flags: RW | FIXED_IOVA,
            ioas_id: ioas,
            fd,
            start: 0,
            length,
            iova,
        };
        self.call(nr::IOMMU_IOAS_MAP_FILE, &mut cmd);
    }

    /// `IOMMU_IOAS_UNMAP`.
    #[inline]
    pub(crate) fn unmap(&self, ioas: u32, iova: u64, length: u64) {
        let mut cmd = u::iommu_ioas_unmap { size: 24, ioas_id: ioas, iova, length };
        self.call(nr::IOMMU_IOAS_UNMAP, &mut cmd);
    }
}
