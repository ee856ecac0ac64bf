use crate::layout::Struct;
use crate::{extra, iommufd as i, selftest as t, vfio as v};

/// A C struct of integers without padding: any bytes make a valid value, and
/// every byte of a value is initialised.
///
/// # Safety
///
/// The type is `repr(C)`, has no padding and no field for which some bit
/// pattern is invalid.
pub unsafe trait Plain: Sized + 'static {
    /// The value all of whose bytes are zero.
    fn zeroed() -> Self {
        // SAFETY: every bit pattern is valid, by the contract of the trait.
        unsafe { std::mem::zeroed() }
    }

    /// The value as its bytes in memory.
    fn as_bytes(&self) -> &[u8] {
        // SAFETY: no padding, so all `size_of` bytes are initialised.
        unsafe { std::slice::from_raw_parts((&raw const *self).cast(), size_of::<Self>()) }
    }

    /// The value as its bytes in memory, to fill in.
    fn as_bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: no padding, and whatever is written is a valid value.
        unsafe { std::slice::from_raw_parts_mut((&raw mut *self).cast(), size_of::<Self>()) }
    }

    /// A value from the bytes that are there, zero-extended; bytes beyond the
    /// struct are ignored.
    fn from_bytes(bytes: &[u8]) -> Self {
        let mut value = Self::zeroed();
        let len = bytes.len().min(size_of::<Self>());
        value.as_bytes_mut()[..len].copy_from_slice(&bytes[..len]);
        value
    }
}

macro_rules! plain {
    ($($ty:ty: $size:literal [$($field:ident),+];)+) => {
        $(
            // SAFETY: a repr(C) struct of integers whose fields fill it: the
            // assertion below adds their sizes up.
            unsafe impl Plain for $ty {}
            const _: () = assert!(size_of::<$ty>() == $size);
            const _: () = {
                const fn size_of_field<S, F>(_: fn(&S) -> &F) -> usize {
                    size_of::<F>()
                }
                assert!($size == 0 $(+ size_of_field(|s: &$ty| &s.$field))+);
            };
        )+

        /// Every struct above, as [`crate::layout`] shows it.
        pub(crate) const STRUCTS: &[Struct] = &[$(Struct {
            name: stringify!($ty),
            size: $size,
            fields: &[$((stringify!($field), std::mem::offset_of!($ty, $field))),+],
        }),+];
    };
}

plain! {
    i::iommu_destroy: 8 [size, id];
    i::iommu_ioas_alloc: 12 [size, flags, out_ioas_id];
    i::iommu_iova_range: 16 [start, last];
    i::iommu_ioas_iova_ranges: 32 [size, ioas_id, num_iovas, __reserved, allowed_iovas, out_iova_alignment];
    i::iommu_ioas_allow_iovas: 24 [size, ioas_id, num_iovas, __reserved, allowed_iovas];
    i::iommu_ioas_map: 40 [size, flags, ioas_id, __reserved, user_va, length, iova];
    i::iommu_ioas_map_file: 40 [size, flags, ioas_id, fd, start, length, iova];
    i::iommu_ioas_copy: 40 [size, flags, dst_ioas_id, src_ioas_id, length, dst_iova, src_iova];
    i::iommu_ioas_unmap: 24 [size, ioas_id, iova, length];
    i::iommu_option: 24 [size, option_id, op, __reserved, object_id, val64];
    i::iommu_vfio_ioas: 12 [size, ioas_id, op, __reserved];
    i::iommu_hwpt_alloc: 48 [size, flags, dev_id, pt_id, out_hwpt_id, __reserved, data_type, data_len, data_uptr, fault_id, __reserved2];
    i::iommu_hw_info: 40 [size, flags, dev_id, data_len, data_uptr, __bindgen_anon_1, out_max_pasid_log2, __reserved, out_capabilities];
    i::iommu_hwpt_set_dirty_tracking: 16 [size, flags, hwpt_id, __reserved];
    i::iommu_hwpt_get_dirty_bitmap: 48 [size, hwpt_id, flags, __reserved, iova, length, page_size, data];
    i::iommu_hwpt_invalidate: 32 [size, hwpt_id, data_uptr, data_type, entry_len, entry_num, __reserved];
    i::iommu_hwpt_arm_smmuv3: 16 [ste];
    i::iommu_hw_info_arm_smmuv3: 40 [flags, __reserved, idr, iidr, aidr];
    i::iommu_viommu_arm_smmuv3_invalidate: 16 [cmd];
    i::iommu_vevent_arm_smmuv3: 32 [evt];
    i::iommu_hwpt_pgfault: 40 [flags, dev_id, pasid, grpid, perm, __reserved, addr, length, cookie];
    i::iommu_hwpt_page_response: 8 [cookie, code];
    i::iommu_fault_alloc: 16 [size, flags, out_fault_id, out_fault_fd];
    i::iommu_viommu_alloc: 40 [size, flags, type_, dev_id, hwpt_id, out_viommu_id, data_len, __reserved, data_uptr];
    i::iommu_vdevice_alloc: 24 [size, viommu_id, dev_id, out_vdevice_id, virt_id];
    i::iommu_ioas_change_process: 8 [size, __reserved];
    i::iommufd_vevent_header: 8 [flags, sequence];
    i::iommu_veventq_alloc: 32 [size, flags, viommu_id, type_, veventq_depth, out_veventq_id, out_veventq_fd, __reserved];
    i::iommu_hw_queue_alloc: 40 [size, flags, viommu_id, type_, index, out_hw_queue_id, nesting_parent_iova, length];
    extra::iommu_ioas_noiommu_get_pa: 40 [size, flags, ioas_id, __reserved, iova, length, out_phys];
    v::vfio_device_bind_iommufd: 24 [argsz, flags, iommufd, out_devid, token_uuid_ptr];
    v::vfio_device_attach_iommufd_pt: 16 [argsz, flags, pt_id, pasid];
    v::vfio_device_detach_iommufd_pt: 12 [argsz, flags, pasid];
    v::vfio_device_info: 24 [argsz, flags, num_regions, num_irqs, cap_offset, pad];
    v::vfio_region_info: 32 [argsz, flags, index, cap_offset, size, offset];
    v::vfio_irq_info: 16 [argsz, flags, index, count];
    v::vfio_info_cap_header: 8 [id, version, next];
    v::vfio_group_status: 8 [argsz, flags];
    v::vfio_iommu_type1_info: 24 [argsz, flags, iova_pgsizes, cap_offset, pad];
    v::vfio_iommu_type1_dma_map: 32 [argsz, flags, vaddr, iova, size];
    v::vfio_iommu_type1_dma_unmap: 24 [argsz, flags, iova, size];
    v::vfio_iova_range: 16 [start, end];
    v::vfio_iommu_type1_info_dma_avail: 12 [header, avail];
    extra::vfio_region_dma_range: 16 [offset, length];
    t::iommu_test_cmd: 72 [size, op, id, __reserved, arg];
    t::iommu_test_hw_info: 8 [flags, test_reg];
    t::iommu_hwpt_selftest: 8 [iotlb, pagetable_type];
    t::iommu_hwpt_invalidate_selftest: 8 [flags, iotlb_id];
    t::iommu_viommu_selftest: 24 [in_data, out_data, out_mmap_offset, out_mmap_length];
    t::iommu_viommu_invalidate_selftest: 12 [flags, vdev_id, cache_id];
    t::iommu_viommu_event_selftest: 4 [virt_id];
}

// Structs that end in data of any length in C: here without it, and so under names that C does not have.

// SAFETY: a repr(C) struct of five words.
unsafe impl Plain for extra::vfio_irq_set_header {}
const _: () = assert!(size_of::<extra::vfio_irq_set_header>() == 20);
// SAFETY: a repr(C) struct of two words.
unsafe impl Plain for extra::vfio_device_feature_header {}
const _: () = assert!(size_of::<extra::vfio_device_feature_header>() == 8);
// SAFETY: a repr(C) struct of four words.
unsafe impl Plain for extra::vfio_device_feature_dma_buf_header {}
const _: () = assert!(size_of::<extra::vfio_device_feature_dma_buf_header>() == 16);
// SAFETY: a repr(C) struct of three words.
unsafe impl Plain for extra::vfio_pci_hot_reset_header {}
const _: () = assert!(size_of::<extra::vfio_pci_hot_reset_header>() == 12);
// SAFETY: a repr(C) struct of integers without padding.
unsafe impl Plain for extra::vfio_pci_dependent_device {}
const _: () = assert!(size_of::<extra::vfio_pci_dependent_device>() == 8);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_bytes_are_zero_extended_and_long_ones_cut() {
        let short = i::iommu_destroy::from_bytes(&8u32.to_ne_bytes());
        assert_eq!((short.size, short.id), (8, 0));
        let long = i::iommu_destroy::from_bytes(&[1; 12]);
        assert_eq!(long.id, 0x0101_0101);
        assert_eq!(long.as_bytes(), [1; 8]);
    }
}
