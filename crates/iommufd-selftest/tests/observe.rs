//! What an observer of the contexts is told.

mod common;

use std::sync::{Arc, Mutex};

use common::{Client, page};
use host::{Errno, Mm};
use iommufd::{Attachment, Id, Invalidation, Observer};
use uapi::iommufd as u;
use uapi::nr;
use uapi::selftest as t;

#[derive(Default)]
struct Told(Mutex<Vec<String>>);

impl Told {
    fn push(&self, text: String) {
        self.0.lock().unwrap().push(text);
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl Observer for Told {
    fn invalidated(&self, i: &Invalidation<'_>) {
        let Invalidation { target, is_viommu, entry_num, done, entries, result, .. } = i;
        let result = result.map_err(Errno::raw_os_error);
        self.push(format!("{target} {is_viommu}: {done} of {entry_num}, {entries:?}, {result:?}"));
    }

    fn attached(&self, a: &Attachment<'_>) {
        self.push(format!("{} on {:?} in {:?}", a.device, a.hwpt, a.viommu));
    }

    fn vdevice(&self, _: u64, viommu: Id, device: &str, virt_id: u64) {
        self.push(format!("{device} is {virt_id} in {viommu}"));
    }

    fn vevent(&self, _: u64, viommu: Id, event_type: u32, data: &[u8], lost: bool) {
        let kind = if event_type == t::IOMMU_VEVENTQ_TYPE_SELFTEST { "event" } else { "?" };
        self.push(format!("{kind} {data:?} of {viommu}, lost: {lost}"));
    }
}

#[test]
fn a_guest_s_life_is_told() {
    let mut client = Client::new();
    let told = Arc::new(Told::default());
    client.node.observe(told.clone());
    client.context = client.node.context();
    let ioas = client.ioas();
    let device = client.mock(ioas).unwrap();
    let name = told.take()[0].split(' ').next().unwrap().to_owned();
    let mut parent = u::iommu_hwpt_alloc {
        size: 48,
        flags: u::iommufd_hwpt_alloc_flags_IOMMU_HWPT_ALLOC_NEST_PARENT,
        dev_id: device.idev,
        pt_id: ioas,
        ..Default::default()
    };
    client.call(nr::IOMMU_HWPT_ALLOC, &mut parent).unwrap();
    let mut viommu = u::iommu_viommu_alloc {
        size: 40,
        type_: t::IOMMU_VIOMMU_TYPE_SELFTEST,
        dev_id: device.idev,
        hwpt_id: parent.out_hwpt_id,
        ..Default::default()
    };
    client.call(nr::IOMMU_VIOMMU_ALLOC, &mut viommu).unwrap();
    let viommu = viommu.out_viommu_id;
    let dev_id = device.idev;
    let mut vdevice = u::iommu_vdevice_alloc {
        size: 24,
        viommu_id: viommu,
        dev_id,
        virt_id: 9,
        ..Default::default()
    };
    client.call(nr::IOMMU_VDEVICE_ALLOC, &mut vdevice).unwrap();
    assert_eq!(told.take(), [format!("{name} is 9 in {viommu}")]);

    let mut nested = u::iommu_hwpt_alloc {
        size: 48,
        dev_id,
        pt_id: viommu,
        data_type: t::IOMMU_HWPT_DATA_SELFTEST,
        data_len: 4,
        data_uptr: page(30),
        ..Default::default()
    };
    client.call(nr::IOMMU_HWPT_ALLOC, &mut nested).unwrap();
    let nested = nested.out_hwpt_id;
    client.test(t::IOMMU_TEST_OP_MOCK_DOMAIN_REPLACE, device.stdev, &[nested]).unwrap();
    assert_eq!(told.take(), [format!("{name} on Some({nested}) in Some({viommu})")]);

    let mut queue = u::iommu_veventq_alloc {
        size: 32,
        viommu_id: viommu,
        type_: t::IOMMU_VEVENTQ_TYPE_SELFTEST,
        veventq_depth: 1,
        ..Default::default()
    };
    client.call(nr::IOMMU_VEVENTQ_ALLOC, &mut queue).unwrap();
    for _ in 0..2 {
        client.test(t::IOMMU_TEST_OP_TRIGGER_VEVENT, 0, &[dev_id]).unwrap();
    }
    let event = |lost| format!("event [9, 0, 0, 0] of {viommu}, lost: {lost}");
    assert_eq!(told.take(), [event(false), event(true)]);

    // Three entries, the second of which has a flag that there is not. The mock reads them all first.
    let entries = [[0u32, 0], [8, 0], [0, 0]];
    let bytes: Vec<u8> = entries.as_flattened().iter().flat_map(|w| w.to_le_bytes()).collect();
    client.host.copy_to_user(page(31), &bytes).unwrap();
    let mut invalidate = u::iommu_hwpt_invalidate {
        size: 32,
        hwpt_id: nested,
        data_uptr: page(31),
        data_type: t::IOMMU_HWPT_INVALIDATE_DATA_SELFTEST,
        entry_len: 8,
        entry_num: 3,
        __reserved: 0,
    };
    let errno = client.call(nr::IOMMU_HWPT_INVALIDATE, &mut invalidate).unwrap_err();
    let expected =
        format!("{nested} false: 1 of 3, {bytes:?}, {:?}", Err::<(), _>(errno.raw_os_error()));
    assert_eq!((invalidate.entry_num, told.take()), (1, vec![expected]));
}
