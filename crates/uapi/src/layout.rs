//! The layouts that this crate relies on, as data: `cargo xtask conformance
//! layout` compiles a C program from them and lets the kernel's header judge.

/// One struct of the uAPI.
#[derive(Debug, Clone, Copy)]
pub struct Struct {
    pub(crate) name: &'static str,
    /// `sizeof`.
    pub size: usize,
    pub(crate) fields: &'static [(&'static str, usize)],
}

impl Struct {
    /// The struct's tag in C.
    pub fn name(&self) -> &'static str {
        self.name.rsplit("::").next().unwrap_or(self.name).trim()
    }

    /// Its fields with their offsets in bytes, without those that have no name
    /// in C.
    pub fn fields(&self) -> impl Iterator<Item = (&'static str, usize)> {
        self.fields.iter().filter_map(|&(name, offset)| match name {
            "__bindgen_anon_1" | "arg" => None,
            "type_" => Some(("type", offset)),
            name => Some((name, offset)),
        })
    }
}

impl Struct {
    /// The fields that are integers, with their sizes and with the values that they have in these bytes of a struct;
    /// without those that are reserved or not there.
    pub fn values(&self, bytes: &[u8]) -> impl Iterator<Item = (&'static str, usize, u64)> {
        let ends = self.fields.iter().skip(1).map(|(_, offset)| *offset).chain([self.size]);
        let whole = self.fields.iter().zip(ends).filter_map(move |((name, offset), end)| {
            let field =
                bytes.get(*offset..end).filter(|field| matches!(field.len(), 1 | 2 | 4 | 8))?;
            let mut value = [0; 8];
            value[..field.len()].copy_from_slice(field);
            Some((*name, field.len(), u64::from_le_bytes(value)))
        });
        whole.filter(|(name, ..)| !name.starts_with("__")).map(|(name, size, value)| match name {
            "type_" => ("type", size, value),
            name => (name, size, value),
        })
    }
}

/// The struct that an ioctl of this name points to.
pub fn of(command: &str) -> Option<&'static Struct> {
    let name = match command {
        "IOMMU_GET_HW_INFO" => "iommu_hw_info",
        "IOMMU_FAULT_QUEUE_ALLOC" => "iommu_fault_alloc",
        "VFIO_DEVICE_GET_INFO" => "vfio_device_info",
        "VFIO_DEVICE_GET_REGION_INFO" => "vfio_region_info",
        "VFIO_DEVICE_GET_IRQ_INFO" => "vfio_irq_info",
        "VFIO_DEVICE_SET_IRQS" => "vfio_irq_set_header",
        "VFIO_DEVICE_FEATURE" => "vfio_device_feature_header",
        "VFIO_IOMMU_GET_INFO" => "vfio_iommu_type1_info",
        "VFIO_IOMMU_MAP_DMA" => "vfio_iommu_type1_dma_map",
        "VFIO_IOMMU_UNMAP_DMA" => "vfio_iommu_type1_dma_unmap",
        "VFIO_GROUP_GET_STATUS" => "vfio_group_status",
        same => &same.to_ascii_lowercase(),
    };
    STRUCTS.iter().chain(HEADS).find(|known| known.name() == name)
}

/// Structs that end in data of any length in C: what is before it.
const HEADS: &[Struct] = &[
    Struct {
        name: "vfio_irq_set_header",
        size: 20,
        fields: &[("argsz", 0), ("flags", 4), ("index", 8), ("start", 12), ("count", 16)],
    },
    Struct { name: "vfio_device_feature_header", size: 8, fields: &[("argsz", 0), ("flags", 4)] },
];

/// Every struct that user space exchanges with us.
pub const STRUCTS: &[Struct] = crate::plain::STRUCTS;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nr;

    #[test]
    fn every_ioctl_with_a_struct_has_one() {
        let all = nr::COMMANDS.iter().chain(nr::DEVICE_COMMANDS).map(|(name, _)| *name);
        let without: Vec<_> = all.filter(|name| of(name).is_none()).collect();
        assert_eq!(
            without,
            [
                "VFIO_GET_API_VERSION",
                "VFIO_CHECK_EXTENSION",
                "VFIO_SET_IOMMU",
                "VFIO_DEVICE_RESET",
                "VFIO_DEVICE_GET_PCI_HOT_RESET_INFO",
                "VFIO_DEVICE_PCI_HOT_RESET",
            ]
        );
        assert!(HEADS[0].size == size_of::<crate::extra::vfio_irq_set_header>());
        assert!(HEADS[1].size == size_of::<crate::extra::vfio_device_feature_header>());
    }

    #[test]
    fn values_are_those_of_the_fields_that_are_there() {
        let map = of("IOMMU_IOAS_UNMAP").unwrap();
        let bytes: Vec<u8> = (0..24).collect();
        let iova = u64::from_le_bytes([8, 9, 10, 11, 12, 13, 14, 15]);
        let values: Vec<_> = map.values(&bytes[..16]).collect();
        assert_eq!(
            values,
            [("size", 4, 0x0302_0100), ("ioas_id", 4, 0x0706_0504), ("iova", 8, iova)]
        );
        assert!(map.values(&[]).next().is_none());
    }

    #[test]
    fn names_are_those_of_c() {
        let alloc = STRUCTS.iter().find(|s| s.name() == "iommu_viommu_alloc").unwrap();
        assert_eq!(alloc.size, 40);
        assert!(alloc.fields().any(|f| f == ("type", 8)));
    }
}
