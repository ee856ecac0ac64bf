//! `IOMMU_TEST_CMD`, the ioctl by which the kernel's selftests drive the mock
//! hardware: structs and numbers of the kernel's `iommufd_test.h`.
#![allow(non_camel_case_types, missing_docs)]

use crate::Plain;

macro_rules! constants {
    ($($name:ident: $type:ty = $value:expr;)+) => {
        $(pub const $name: $type = $value;)+

        /// Every number above, by the name it has in C.
        pub const CONSTANTS: &[(&str, u64)] = &[$((stringify!($name), $name as u64)),+];
    };
}

constants! {
    IOMMU_TEST_OP_ADD_RESERVED: u32 = 1;
    IOMMU_TEST_OP_MOCK_DOMAIN: u32 = 2;
    IOMMU_TEST_OP_MD_CHECK_MAP: u32 = 3;
    IOMMU_TEST_OP_MD_CHECK_REFS: u32 = 4;
    IOMMU_TEST_OP_CREATE_ACCESS: u32 = 5;
    IOMMU_TEST_OP_DESTROY_ACCESS_PAGES: u32 = 6;
    IOMMU_TEST_OP_ACCESS_PAGES: u32 = 7;
    IOMMU_TEST_OP_ACCESS_RW: u32 = 8;
    IOMMU_TEST_OP_SET_TEMP_MEMORY_LIMIT: u32 = 9;
    IOMMU_TEST_OP_MOCK_DOMAIN_REPLACE: u32 = 10;
    IOMMU_TEST_OP_ACCESS_REPLACE_IOAS: u32 = 11;
    IOMMU_TEST_OP_MOCK_DOMAIN_FLAGS: u32 = 12;
    IOMMU_TEST_OP_DIRTY: u32 = 13;
    IOMMU_TEST_OP_MD_CHECK_IOTLB: u32 = 14;
    IOMMU_TEST_OP_TRIGGER_IOPF: u32 = 15;
    IOMMU_TEST_OP_DEV_CHECK_CACHE: u32 = 16;
    IOMMU_TEST_OP_TRIGGER_VEVENT: u32 = 17;
    IOMMU_TEST_OP_PASID_ATTACH: u32 = 18;
    IOMMU_TEST_OP_PASID_REPLACE: u32 = 19;
    IOMMU_TEST_OP_PASID_DETACH: u32 = 20;
    IOMMU_TEST_OP_PASID_CHECK_HWPT: u32 = 21;
    IOMMU_TEST_OP_DMABUF_GET: u32 = 22;
    IOMMU_TEST_OP_DMABUF_REVOKE: u32 = 23;

    MOCK_IOMMUPT_DEFAULT: u32 = 0;
    MOCK_IOMMUPT_HUGE: u32 = 1;
    MOCK_APERTURE_START: u64 = 1 << 24;
    MOCK_APERTURE_LAST: u64 = (1 << 31) - 1;
    MOCK_PAGE_SIZE: u64 = 2048;
    MOCK_HUGE_PAGE_SIZE: u64 = 512 * MOCK_PAGE_SIZE;
    MOCK_FLAGS_ACCESS_WRITE: u32 = 1 << 0;
    MOCK_ACCESS_RW_WRITE: u32 = 1 << 0;
    MOCK_ACCESS_RW_SLOW_PATH: u32 = 1 << 2;
    MOCK_FLAGS_ACCESS_CREATE_NEEDS_PIN_PAGES: u32 = 1 << 0;
    MOCK_FLAGS_DEVICE_NO_DIRTY: u32 = 1 << 0;
    MOCK_FLAGS_DEVICE_PASID: u32 = 1 << 2;
    MOCK_NESTED_DOMAIN_IOTLB_NUM: usize = 4;
    MOCK_DEV_CACHE_NUM: usize = 4;
    MOCK_PASID_WIDTH: u32 = 20;
    IOMMU_TEST_PASID_RESERVED: u32 = 1024;
    IOMMU_HW_INFO_TYPE_SELFTEST: u32 = 0xfeed_beef;
    IOMMU_HW_INFO_SELFTEST_REGVAL: u32 = 0xdead_beef;
    IOMMU_HWPT_DATA_SELFTEST: u32 = 0xdead;
    IOMMU_TEST_DEV_CACHE_DEFAULT: u32 = 0xba_ddad;
    IOMMU_HWPT_INVALIDATE_DATA_SELFTEST: u32 = 0xdead_beef;
    IOMMU_TEST_INVALIDATE_FLAG_ALL: u32 = 1 << 0;
    IOMMU_VIOMMU_TYPE_SELFTEST: u32 = 0xdead_beef;
    IOMMU_VIOMMU_INVALIDATE_DATA_SELFTEST: u32 = 0xdead_beef;
    IOMMU_VEVENTQ_TYPE_SELFTEST: u32 = 0xbeef_beef;
    IOMMU_HW_QUEUE_TYPE_SELFTEST: u32 = 0xdead_beef;
    IOMMU_TEST_HW_QUEUE_MAX: u32 = 2;
}

/// Ours, not the kernel's: as `IOMMU_TEST_OP_MOCK_DOMAIN`, but with a device of the
/// machine that is behind no IOMMU, the n-th as the fourth word of the union says.
/// The caller needs `CAP_SYS_RAWIO`, as for opening such a device through VFIO.
pub const SOFTIOMMU_TEST_OP_NOIOMMU_DEVICE: u32 = 1 << 31;

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
