//! Every fallible step of every operation fails once: the operation fails
//! cleanly, and works when tried again.

mod common;

use common::{Client, FIXED, Mock, RW, page, words};
use host::{Errno, File, MmapRequest, fail};
use uapi::iommufd as u;
use uapi::nr;
use uapi::selftest as t;
use uapi::vfio::vfio_iommu_type1_dma_map;

/// What a sweep starts from: IOASes, two mapped and with a device.
struct Scene {
    client: Client,
    ioas: u32,
    other: u32,
    mock: Mock,
    /// A nesting parent that follows `ioas`.
    parent: u32,
    /// Mapped, for a device that is behind no IOMMU.
    plain: u32,
    /// A vIOMMU over the parent, with pages to be mapped.
    viommu: u32,
    /// A nested HWPT on the parent.
    nested: u32,
    /// A device that can use PASIDs, on a HWPT made for them, with PASID 2 attached.
    pasid: Mock,
    /// Another HWPT made for PASIDs.
    pasids: u32,
    fd: i32,
    access: i32,
}

const MAPPED: u64 = 0x200_0000;

impl Scene {
    fn new() -> Self {
        let client = Client::new();
        let (ioas, other, plain) = (client.ioas(), client.ioas(), client.ioas());
        client.map(ioas, page(0), 4 * 4096, RW | FIXED, MAPPED).unwrap();
        let mock = client.mock(ioas).unwrap();
        let fd = client.host.open_memory(Some(8));
        let pins = t::MOCK_FLAGS_ACCESS_CREATE_NEEDS_PIN_PAGES;
        let access = client.access(ioas, pins).unwrap();
        client.nic(0, plain).unwrap();
        client.map(plain, page(16), 4096, RW | FIXED, MAPPED).unwrap();
        let (parent, viommu, nested, pasids) = (0, 0, 0, 0);
        let mut scene = Self {
            client,
            ioas,
            other,
            mock,
            parent,
            plain,
            viommu,
            nested,
            pasid: mock,
            pasids,
            fd,
            access,
        };
        let tracked = u::iommufd_hwpt_alloc_flags_IOMMU_HWPT_ALLOC_DIRTY_TRACKING;
        let flags = u::iommufd_hwpt_alloc_flags_IOMMU_HWPT_ALLOC_NEST_PARENT | tracked;
        scene.parent = scene.hwpt(ioas, flags, false).unwrap();
        scene.viommu = scene.viommu(24).unwrap();
        scene.nested = scene.hwpt(scene.parent, 0, true).unwrap();
        let flags = u::iommufd_hwpt_alloc_flags_IOMMU_HWPT_ALLOC_PASID;
        let rid = scene.hwpt(ioas, flags, false).unwrap();
        scene.pasids = scene.hwpt(ioas, flags, false).unwrap();
        let flags = [0, 0, 0, t::MOCK_FLAGS_DEVICE_PASID];
        let made = scene.test(t::IOMMU_TEST_OP_MOCK_DOMAIN_FLAGS, rid, &flags).unwrap();
        scene.pasid = Mock { stdev: made.arg[0], hwpt: made.arg[1], idev: made.arg[2] };
        let at = [2, rid];
        scene.test(t::IOMMU_TEST_OP_PASID_ATTACH, scene.pasid.stdev, &at).unwrap();
        let mut vfio = u::iommu_vfio_ioas { size: 12, ioas_id: ioas, op: 1, ..Default::default() };
        scene.client.call(nr::IOMMU_VFIO_IOAS, &mut vfio).unwrap();
        scene
    }

    fn test(&self, op: u32, id: u32, args: &[u32]) -> Result<t::iommu_test_cmd, Errno> {
        self.client.test(op, id, args)
    }

    fn hwpt(&self, pt_id: u32, flags: u32, nested: bool) -> Result<u32, Errno> {
        let mut cmd = u::iommu_hwpt_alloc {
            size: 48,
            flags,
            dev_id: self.mock.idev,
            pt_id,
            ..Default::default()
        };
        if nested {
            (cmd.data_type, cmd.data_len, cmd.data_uptr) =
                (t::IOMMU_HWPT_DATA_SELFTEST, 4, page(9));
        }
        self.client.call(nr::IOMMU_HWPT_ALLOC, &mut cmd).map(|_| cmd.out_hwpt_id)
    }

    fn viommu(&self, data_len: u32) -> Result<u32, Errno> {
        let mut cmd = u::iommu_viommu_alloc {
            size: 40,
            type_: t::IOMMU_VIOMMU_TYPE_SELFTEST,
            dev_id: self.mock.idev,
            hwpt_id: self.parent,
            data_len,
            data_uptr: page(10),
            ..Default::default()
        };
        self.client.call(nr::IOMMU_VIOMMU_ALLOC, &mut cmd).map(|_| cmd.out_viommu_id)
    }

    /// What must be the same before and after a failed operation.
    fn fingerprint(&self) -> (u64, usize) {
        (self.client.host.total_pins(), self.client.host.descriptors())
    }
}

type Operation = fn(&Scene) -> Result<(), Errno>;

const OPERATIONS: &[(&str, Operation)] = &[
    ("IOAS_ALLOC", |s| {
        let mut cmd = u::iommu_ioas_alloc { size: 12, flags: 0, out_ioas_id: 0 };
        s.client.call(nr::IOMMU_IOAS_ALLOC, &mut cmd).map(drop)
    }),
    ("IOAS_MAP", |s| s.client.map(s.ioas, page(4), 8192, RW, 0).map(drop)),
    ("IOAS_MAP_FILE", |s| s.client.map_file(s.ioas, s.fd, 4096, 8192).map(drop)),
    ("IOAS_COPY", |s| s.client.copy(s.ioas, MAPPED + 4096, 8192, s.other, RW).map(drop)),
    ("copy beside a domain", |s| s.client.copy(s.ioas, MAPPED, 8192, s.ioas, RW).map(drop)),
    ("attach to a new IOAS", |s| s.client.mock(s.other).map(drop)),
    ("attach to an IOAS in use", |s| s.client.mock(s.ioas).map(drop)),
    ("attach without an IOMMU", |s| s.client.nic(1, s.other).map(drop)),
    ("IOAS_NOIOMMU_GET_PA", |s| s.client.get_pa(s.plain, MAPPED, 4096).map(drop)),
    ("replace by another IOAS", |s| {
        let op = t::IOMMU_TEST_OP_MOCK_DOMAIN_REPLACE;
        s.client.test(op, s.mock.stdev, &[s.other]).map(drop)
    }),
    ("HWPT_ALLOC", |s| s.hwpt(s.ioas, 0, false).map(drop)),
    ("HWPT_ALLOC nested", |s| s.hwpt(s.parent, 0, true).map(drop)),
    ("FAULT_QUEUE_ALLOC", |s| {
        let mut cmd = u::iommu_fault_alloc { size: 16, ..Default::default() };
        s.client.call(nr::IOMMU_FAULT_QUEUE_ALLOC, &mut cmd).map(drop)
    }),
    ("VIOMMU_ALLOC", |s| s.viommu(0).map(drop)),
    ("VIOMMU_ALLOC with pages to map", |s| s.viommu(24).map(drop)),
    ("mmap", |s| {
        let (offset, len, shared) = (4096, 8192, true);
        let (read, write, exec) = (true, true, false);
        let request = MmapRequest { offset, len, read, write, exec, shared };
        s.client.context.mmap(&s.client.task, request).map(drop)
    }),
    ("HWPT_ALLOC on a vIOMMU", |s| s.hwpt(s.viommu, 0, true).map(drop)),
    ("VDEVICE_ALLOC", |s| {
        let mut cmd = u::iommu_vdevice_alloc {
            size: 24,
            viommu_id: s.viommu,
            dev_id: s.mock.idev,
            virt_id: 7,
            ..Default::default()
        };
        s.client.call(nr::IOMMU_VDEVICE_ALLOC, &mut cmd).map(drop)
    }),
    ("VEVENTQ_ALLOC", |s| {
        let mut cmd = u::iommu_veventq_alloc {
            size: 32,
            viommu_id: s.viommu,
            type_: t::IOMMU_VEVENTQ_TYPE_SELFTEST,
            veventq_depth: 4,
            ..Default::default()
        };
        s.client.call(nr::IOMMU_VEVENTQ_ALLOC, &mut cmd).map(drop)
    }),
    ("HW_QUEUE_ALLOC", |s| {
        let mut cmd = u::iommu_hw_queue_alloc {
            size: 40,
            viommu_id: s.viommu,
            type_: t::IOMMU_HW_QUEUE_TYPE_SELFTEST,
            nesting_parent_iova: MAPPED,
            length: 8192,
            ..Default::default()
        };
        s.client.call(nr::IOMMU_HW_QUEUE_ALLOC, &mut cmd).map(drop)
    }),
    ("HWPT_INVALIDATE", |s| {
        let mut cmd = u::iommu_hwpt_invalidate {
            size: 32,
            hwpt_id: s.nested,
            data_uptr: page(11),
            data_type: t::IOMMU_HWPT_INVALIDATE_DATA_SELFTEST,
            entry_len: 8,
            entry_num: 4,
            ..Default::default()
        };
        s.client.call(nr::IOMMU_HWPT_INVALIDATE, &mut cmd).map(drop)
    }),
    ("GET_HW_INFO", |s| {
        let mut cmd = u::iommu_hw_info { size: 40, dev_id: s.mock.idev, ..Default::default() };
        s.client.call(nr::IOMMU_GET_HW_INFO, &mut cmd).map(drop)
    }),
    ("HWPT_SET_DIRTY_TRACKING", |s| {
        let (flags, hwpt_id) = (1, s.parent);
        let mut cmd =
            u::iommu_hwpt_set_dirty_tracking { size: 16, flags, hwpt_id, ..Default::default() };
        s.client.call(nr::IOMMU_HWPT_SET_DIRTY_TRACKING, &mut cmd).map(drop)
    }),
    ("HWPT_GET_DIRTY_BITMAP", |s| {
        let mut cmd = u::iommu_hwpt_get_dirty_bitmap {
            size: 48,
            hwpt_id: s.parent,
            iova: MAPPED,
            length: 4 * 4096,
            page_size: 4096,
            data: page(13),
            ..Default::default()
        };
        s.client.call(nr::IOMMU_HWPT_GET_DIRTY_BITMAP, &mut cmd).map(drop)
    }),
    ("IOAS_IOVA_RANGES", |s| {
        let mut cmd = u::iommu_ioas_iova_ranges {
            size: 32,
            ioas_id: s.other,
            num_iovas: 4,
            allowed_iovas: page(14),
            ..Default::default()
        };
        s.client.call(nr::IOMMU_IOAS_IOVA_RANGES, &mut cmd).map(drop)
    }),
    ("IOAS_ALLOW_IOVAS", |s| {
        let mut cmd =
            u::iommu_ioas_allow_iovas { size: 24, ioas_id: s.other, ..Default::default() };
        s.client.call(nr::IOMMU_IOAS_ALLOW_IOVAS, &mut cmd).map(drop)
    }),
    ("OPTION", |s| {
        let (option_id, op, object_id) = (1, 1, s.ioas);
        let mut cmd = u::iommu_option { size: 24, option_id, op, object_id, ..Default::default() };
        s.client.call(nr::IOMMU_OPTION, &mut cmd).map(drop)
    }),
    ("VFIO_IOAS", |s| {
        let mut cmd = u::iommu_vfio_ioas { size: 12, ..Default::default() };
        s.client.call(nr::IOMMU_VFIO_IOAS, &mut cmd).map(drop)
    }),
    ("VFIO_IOMMU_MAP_DMA", |s| {
        let (vaddr, iova, size) = (page(17), 0x300_0000, 8192);
        let mut cmd = vfio_iommu_type1_dma_map { argsz: 32, flags: 3, vaddr, iova, size };
        s.client.call(nr::VFIO_IOMMU_MAP_DMA, &mut cmd).map(drop)
    }),
    ("DESTROY", |s| s.client.destroy(s.other).map(drop)),
    ("attach a PASID", |s| {
        s.test(t::IOMMU_TEST_OP_PASID_ATTACH, s.pasid.stdev, &[1, s.pasids]).map(drop)
    }),
    ("replace by a PASID's other HWPT", |s| {
        s.test(t::IOMMU_TEST_OP_PASID_REPLACE, s.pasid.stdev, &[2, s.pasids]).map(drop)
    }),
    ("an access", |s| s.client.access(s.ioas, 0).map(drop)),
    ("a pin", |s| s.client.pin(s.access, MAPPED + 4096, 8192, 0).map(drop)),
    ("a transfer", |s| {
        let mut args = words(&[MAPPED, 100, page(12)]);
        args.push(0);
        s.client.test(t::IOMMU_TEST_OP_ACCESS_RW, s.access as u32, &args).map(drop)
    }),
    ("another IOAS for an access", |s| {
        let op = t::IOMMU_TEST_OP_ACCESS_REPLACE_IOAS;
        s.client.test(op, s.access as u32, &[s.other]).map(drop)
    }),
];

#[test]
fn every_step_fails_cleanly_once() {
    let mut points = 0;
    for (name, operation) in OPERATIONS {
        for nth in 1.. {
            let scene = Scene::new();
            let before = scene.fingerprint();
            fail::set_nth(nth);
            let result = operation(&scene);
            let fired = fail::nth() == 0;
            fail::set_nth(0);
            scene.client.context.check_invariants().unwrap();
            if !fired {
                assert_eq!(result, Ok(()), "{name} without a failure");
                assert!(nth > 1, "{name} has no step that can fail");
                break;
            }
            points += 1;
            assert!(result.is_err(), "{name}: step {nth} failed, and nobody noticed");
            assert_eq!(scene.fingerprint(), before, "{name}: step {nth} left something behind");
            operation(&scene).unwrap_or_else(|e| panic!("{name} after step {nth} failed: {e}"));
            let host = scene.client.host.clone();
            drop(scene);
            host.close_all();
            assert_eq!(host.total_pins(), 0, "{name}: step {nth} leaked a pin");
        }
    }
    println!("{points} points of failure in {} operations", OPERATIONS.len());
    assert!(points >= 2 * OPERATIONS.len());
}
