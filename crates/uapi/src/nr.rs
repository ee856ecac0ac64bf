//! The ioctl numbers: all are `_IO(';', nr)`, with no size in the command.

use crate::{iommufd as i, vfio as v};

/// The command for `_IO(';', nr)`.
pub const fn io(nr: u32) -> u32 {
    ((i::IOMMUFD_TYPE as u32) << 8) | nr
}

/// The number of a command, `_IOC_NR`.
pub const fn nr_of(cmd: u32) -> u32 {
    cmd & 0xff
}

const fn vfio(offset: u32) -> u32 {
    io(v::VFIO_BASE + offset)
}

macro_rules! commands {
    ($(#[$all:meta])+ $table:ident, $(#[$one:meta])+ $lookup:ident; $($name:ident = $value:expr;)+) => {
        $(
            #[doc = concat!("`", stringify!($name), "`.")]
            pub const $name: u32 = $value;
        )+

        $(#[$all])+
        pub const $table: &[(&str, u32)] = &[$((stringify!($name), $name)),+];

        $(#[$one])+
        pub fn $lookup(cmd: u32) -> Option<&'static str> {
            match cmd {
                $($name => Some(stringify!($name)),)+
                _ => None,
            }
        }
    };
}

commands! {
    /// Every command of `/dev/iommu`, by the name it has in C.
    COMMANDS,
    /// The name of a command of `/dev/iommu`, for logs.
    name;
    IOMMU_DESTROY = io(i::IOMMUFD_CMD_DESTROY);
    IOMMU_IOAS_ALLOC = io(i::IOMMUFD_CMD_IOAS_ALLOC);
    IOMMU_IOAS_ALLOW_IOVAS = io(i::IOMMUFD_CMD_IOAS_ALLOW_IOVAS);
    IOMMU_IOAS_COPY = io(i::IOMMUFD_CMD_IOAS_COPY);
    IOMMU_IOAS_IOVA_RANGES = io(i::IOMMUFD_CMD_IOAS_IOVA_RANGES);
    IOMMU_IOAS_MAP = io(i::IOMMUFD_CMD_IOAS_MAP);
    IOMMU_IOAS_UNMAP = io(i::IOMMUFD_CMD_IOAS_UNMAP);
    IOMMU_OPTION = io(i::IOMMUFD_CMD_OPTION);
    IOMMU_VFIO_IOAS = io(i::IOMMUFD_CMD_VFIO_IOAS);
    IOMMU_HWPT_ALLOC = io(i::IOMMUFD_CMD_HWPT_ALLOC);
    IOMMU_GET_HW_INFO = io(i::IOMMUFD_CMD_GET_HW_INFO);
    IOMMU_HWPT_SET_DIRTY_TRACKING = io(i::IOMMUFD_CMD_HWPT_SET_DIRTY_TRACKING);
    IOMMU_HWPT_GET_DIRTY_BITMAP = io(i::IOMMUFD_CMD_HWPT_GET_DIRTY_BITMAP);
    IOMMU_HWPT_INVALIDATE = io(i::IOMMUFD_CMD_HWPT_INVALIDATE);
    IOMMU_FAULT_QUEUE_ALLOC = io(i::IOMMUFD_CMD_FAULT_QUEUE_ALLOC);
    IOMMU_IOAS_MAP_FILE = io(i::IOMMUFD_CMD_IOAS_MAP_FILE);
    IOMMU_VIOMMU_ALLOC = io(i::IOMMUFD_CMD_VIOMMU_ALLOC);
    IOMMU_VDEVICE_ALLOC = io(i::IOMMUFD_CMD_VDEVICE_ALLOC);
    IOMMU_IOAS_CHANGE_PROCESS = io(i::IOMMUFD_CMD_IOAS_CHANGE_PROCESS);
    IOMMU_VEVENTQ_ALLOC = io(i::IOMMUFD_CMD_VEVENTQ_ALLOC);
    IOMMU_HW_QUEUE_ALLOC = io(i::IOMMUFD_CMD_HW_QUEUE_ALLOC);
    IOMMU_IOAS_NOIOMMU_GET_PA = io(0x95);
    IOMMU_TEST_CMD = io(0xa0);
    VFIO_GET_API_VERSION = vfio(0);
    VFIO_CHECK_EXTENSION = vfio(1);
    VFIO_SET_IOMMU = vfio(2);
    VFIO_IOMMU_GET_INFO = vfio(12);
    VFIO_IOMMU_MAP_DMA = vfio(13);
    VFIO_IOMMU_UNMAP_DMA = vfio(14);
}

commands! {
    /// Every command of a VFIO device, by the name it has in C. Some have the number of one of `/dev/iommu`.
    DEVICE_COMMANDS,
    /// The name of a command of a VFIO device, for logs.
    device_name;
    VFIO_DEVICE_GET_INFO = vfio(7);
    VFIO_DEVICE_GET_REGION_INFO = vfio(8);
    VFIO_DEVICE_GET_IRQ_INFO = vfio(9);
    VFIO_DEVICE_SET_IRQS = vfio(10);
    VFIO_DEVICE_RESET = vfio(11);
    VFIO_DEVICE_GET_PCI_HOT_RESET_INFO = vfio(12);
    VFIO_DEVICE_PCI_HOT_RESET = vfio(13);
    VFIO_DEVICE_FEATURE = vfio(17);
    VFIO_DEVICE_BIND_IOMMUFD = vfio(18);
    VFIO_DEVICE_ATTACH_IOMMUFD_PT = vfio(19);
    VFIO_DEVICE_DETACH_IOMMUFD_PT = vfio(20);
}

commands! {
    /// Every command of a VFIO group, by the name it has in C.
    GROUP_COMMANDS,
    /// The name of a command of a VFIO group, for logs.
    group_name;
    VFIO_GROUP_GET_STATUS = vfio(3);
    VFIO_GROUP_SET_CONTAINER = vfio(4);
    VFIO_GROUP_UNSET_CONTAINER = vfio(5);
    VFIO_GROUP_GET_DEVICE_FD = vfio(6);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_the_ones_of_the_kernel_header() {
        assert_eq!(IOMMU_DESTROY, 0x3b80);
        assert_eq!(IOMMU_HW_QUEUE_ALLOC, 0x3b94);
        assert_eq!(IOMMU_IOAS_NOIOMMU_GET_PA, 0x3b95);
        assert_eq!(IOMMU_TEST_CMD, 0x3ba0);
        assert_eq!(VFIO_IOMMU_MAP_DMA, 0x3b71);
        assert_eq!(name(0x3b85), Some("IOMMU_IOAS_MAP"));
        assert_eq!(device_name(0x3b76), Some("VFIO_DEVICE_BIND_IOMMUFD"));
    }
}
