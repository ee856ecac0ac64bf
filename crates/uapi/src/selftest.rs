//! `IOMMU_TEST_CMD`, the ioctl by which the kernel's selftests drive the mock
//! hardware: structs and numbers of the kernel's `iommufd_test.h`.
#![allow(non_camel_case_types, missing_docs)]

use crate::Plain;

pub const IOMMU_TEST_OP_ADD_RESERVED: u32 = 1;
pub const IOMMU_TEST_OP_MOCK_DOMAIN: u32 = 2;
pub const IOMMU_TEST_OP_MD_CHECK_MAP: u32 = 3;
pub const IOMMU_TEST_OP_MD_CHECK_REFS: u32 = 4;
pub const IOMMU_TEST_OP_CREATE_ACCESS: u32 = 5;
pub const IOMMU_TEST_OP_DESTROY_ACCESS_PAGES: u32 = 6;
pub const IOMMU_TEST_OP_ACCESS_PAGES: u32 = 7;
pub const IOMMU_TEST_OP_ACCESS_RW: u32 = 8;
pub const IOMMU_TEST_OP_SET_TEMP_MEMORY_LIMIT: u32 = 9;
pub const IOMMU_TEST_OP_MOCK_DOMAIN_REPLACE: u32 = 10;
pub const IOMMU_TEST_OP_ACCESS_REPLACE_IOAS: u32 = 11;
pub const IOMMU_TEST_OP_MOCK_DOMAIN_FLAGS: u32 = 12;
pub const IOMMU_TEST_OP_DIRTY: u32 = 13;
pub const IOMMU_TEST_OP_MD_CHECK_IOTLB: u32 = 14;
pub const IOMMU_TEST_OP_TRIGGER_IOPF: u32 = 15;
pub const IOMMU_TEST_OP_DEV_CHECK_CACHE: u32 = 16;
pub const IOMMU_TEST_OP_TRIGGER_VEVENT: u32 = 17;
pub const IOMMU_TEST_OP_PASID_ATTACH: u32 = 18;
pub const IOMMU_TEST_OP_PASID_REPLACE: u32 = 19;
pub const IOMMU_TEST_OP_PASID_DETACH: u32 = 20;
pub const IOMMU_TEST_OP_PASID_CHECK_HWPT: u32 = 21;
pub const IOMMU_TEST_OP_DMABUF_GET: u32 = 22;
pub const IOMMU_TEST_OP_DMABUF_REVOKE: u32 = 23;

pub const MOCK_IOMMUPT_DEFAULT: u32 = 0;
pub const MOCK_IOMMUPT_HUGE: u32 = 1;
pub const MOCK_APERTURE_START: u64 = 1 << 24;
pub const MOCK_APERTURE_LAST: u64 = (1 << 31) - 1;
pub const MOCK_PAGE_SIZE: u64 = 2048;
pub const MOCK_HUGE_PAGE_SIZE: u64 = 512 * MOCK_PAGE_SIZE;
pub const MOCK_FLAGS_ACCESS_WRITE: u32 = 1 << 0;
pub const MOCK_ACCESS_RW_WRITE: u32 = 1 << 0;
pub const MOCK_ACCESS_RW_SLOW_PATH: u32 = 1 << 2;
pub const MOCK_FLAGS_ACCESS_CREATE_NEEDS_PIN_PAGES: u32 = 1 << 0;
pub const MOCK_FLAGS_DEVICE_NO_DIRTY: u32 = 1 << 0;
pub const MOCK_FLAGS_DEVICE_PASID: u32 = 1 << 2;
pub const MOCK_NESTED_DOMAIN_IOTLB_NUM: usize = 4;
pub const MOCK_DEV_CACHE_NUM: usize = 4;
pub const MOCK_PASID_WIDTH: u32 = 20;
pub const IOMMU_TEST_PASID_RESERVED: u32 = 1024;
pub const IOMMU_HW_INFO_TYPE_SELFTEST: u32 = 0xfeed_beef;
pub const IOMMU_HW_INFO_SELFTEST_REGVAL: u32 = 0xdead_beef;
pub const IOMMU_HWPT_DATA_SELFTEST: u32 = 0xdead;
pub const IOMMU_TEST_DEV_CACHE_DEFAULT: u32 = 0xba_ddad;
pub const IOMMU_HWPT_INVALIDATE_DATA_SELFTEST: u32 = 0xdead_beef;
pub const IOMMU_TEST_INVALIDATE_FLAG_ALL: u32 = 1 << 0;
pub const IOMMU_VIOMMU_TYPE_SELFTEST: u32 = 0xdead_beef;
pub const IOMMU_VIOMMU_INVALIDATE_DATA_SELFTEST: u32 = 0xdead_beef;
pub const IOMMU_VEVENTQ_TYPE_SELFTEST: u32 = 0xbeef_beef;
pub const IOMMU_HW_QUEUE_TYPE_SELFTEST: u32 = 0xdead_beef;
pub const IOMMU_TEST_HW_QUEUE_MAX: u32 = 2;

/// `struct iommu_test_cmd`; `arg` is its union and the padding behind it, in
/// 32-bit words.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct iommu_test_cmd {
    pub size: u32,
    pub op: u32,
    pub id: u32,
    pub __reserved: u32,
    pub arg: [u32; 14],
}

impl iommu_test_cmd {
    /// Bytes up to the end of its last field: the shortest accepted.
    pub const MIN_SIZE: usize = 68;

    /// The 32-bit union member at this byte offset in the union.
    pub fn u32_at(&self, offset: usize) -> u32 {
        self.arg[offset / 4]
    }

    /// The 64-bit union member at this byte offset in the union.
    pub fn u64_at(&self, offset: usize) -> u64 {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&self.as_bytes()[16 + offset..16 + offset + 8]);
        u64::from_ne_bytes(bytes)
    }

    /// Sets the 32-bit union member at this byte offset in the union.
    pub fn set_u32_at(&mut self, offset: usize, value: u32) {
        self.arg[offset / 4] = value;
    }

    /// Sets the 64-bit union member at this byte offset in the union.
    pub fn set_u64_at(&mut self, offset: usize, value: u64) {
        let start = offset + 16;
        self.as_bytes_mut()[start..start + 8].copy_from_slice(&value.to_ne_bytes());
    }
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct iommu_test_hw_info {
    pub flags: u32,
    pub test_reg: u32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct iommu_hwpt_selftest {
    pub iotlb: u32,
    pub pagetable_type: u32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct iommu_hwpt_invalidate_selftest {
    pub flags: u32,
    pub iotlb_id: u32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct iommu_viommu_selftest {
    pub in_data: u32,
    pub out_data: u32,
    pub out_mmap_offset: u64,
    pub out_mmap_length: u64,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct iommu_viommu_invalidate_selftest {
    pub flags: u32,
    pub vdev_id: u32,
    pub cache_id: u32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct iommu_viommu_event_selftest {
    pub virt_id: u32,
}
