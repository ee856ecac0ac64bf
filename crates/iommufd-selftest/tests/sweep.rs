//! Every fallible step of every operation fails once: the operation fails
//! cleanly, and works when tried again.

mod common;

use common::{Client, FIXED, Mock, RW, page, words};
use host::{Errno, fail};
use uapi::iommufd as u;
use uapi::nr;
use uapi::selftest as t;

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
        let mut scene = Self { client, ioas, other, mock, parent: 0, plain, fd, access };
        let flags = u::iommufd_hwpt_alloc_flags_IOMMU_HWPT_ALLOC_NEST_PARENT;
        scene.parent = scene.hwpt(ioas, flags, false).unwrap();
        scene
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

    fn viommu(&self) -> Result<u32, Errno> {
        let mut cmd = u::iommu_viommu_alloc {
            size: 40,
            type_: t::IOMMU_VIOMMU_TYPE_SELFTEST,
            dev_id: self.mock.idev,
            hwpt_id: self.parent,
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
    ("VIOMMU_ALLOC", |s| s.viommu().map(drop)),
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
