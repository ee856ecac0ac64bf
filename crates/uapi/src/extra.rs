//! Structs of `linux/iommufd.h` and `linux/vfio.h` that the bindings do not have.
#![allow(non_camel_case_types)]

/// `IOMMU_IOAS_NOIOMMU_GET_PA`, new in Linux 7: the physical address behind an
/// IOVA of an IOAS that a no-IOMMU device is attached to.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct iommu_ioas_noiommu_get_pa {
    /// Size of this struct.
    pub size: u32,
    /// Must be 0.
    pub flags: u32,
    /// The IOAS.
    pub ioas_id: u32,
    /// Must be 0.
    pub __reserved: u32,
    /// First IOVA.
    pub iova: u64,
    /// In: the most bytes wanted. Out: how many are physically contiguous.
    pub length: u64,
    /// The physical address of `iova`.
    pub out_phys: u64,
}

/// `VFIO_DEVICE_SET_IRQS`, before its data.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct vfio_irq_set_header {
    /// Size of what user space passes, data included.
    pub argsz: u32,
    /// `VFIO_IRQ_SET_*`: one kind of data, one action.
    pub flags: u32,
    /// Which kind of interrupt.
    pub index: u32,
    /// The first of them.
    pub start: u32,
    /// How many.
    pub count: u32,
}

/// `VFIO_DEVICE_FEATURE`, before its data.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct vfio_device_feature_header {
    /// Size of what user space passes, data included.
    pub argsz: u32,
    /// The feature, and what to do with it.
    pub flags: u32,
}

/// `VFIO_DEVICE_FEATURE_DMA_BUF`, before its ranges.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct vfio_device_feature_dma_buf_header {
    /// Of which region.
    pub region_index: u32,
    /// `O_CLOEXEC` and the like, for the new descriptor.
    pub open_flags: u32,
    /// Must be 0.
    pub flags: u32,
    /// How many ranges there are.
    pub nr_ranges: u32,
}

/// `struct vfio_region_dma_range`: a part of a region.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct vfio_region_dma_range {
    /// Its first byte.
    pub offset: u64,
    /// How many there are.
    pub length: u64,
}

/// `VFIO_DEVICE_GET_PCI_HOT_RESET_INFO` and `VFIO_DEVICE_PCI_HOT_RESET`, before their arrays.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct vfio_pci_hot_reset_header {
    /// Size of what user space passes, array included.
    pub argsz: u32,
    /// `VFIO_PCI_HOT_RESET_FLAG_*`.
    pub flags: u32,
    /// How long the array is.
    pub count: u32,
}

/// `struct vfio_pci_dependent_device`: one that is reset along.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct vfio_pci_dependent_device {
    /// Its group, or its id in the iommufd.
    pub id: u32,
    /// Its segment.
    pub segment: u16,
    /// Its bus.
    pub bus: u8,
    /// Its device and function.
    pub devfn: u8,
}
