//! Devices behind no IOMMU: their IOAS tells physical addresses.

mod common;

use common::{Client, FIXED, RO, RW, page};
use host::{Capability, Errno, Mm};
use iommu::{NoIommu, Target};
use uapi::extra::iommu_ioas_noiommu_get_pa;
use uapi::iommufd as u;
use uapi::nr;
use uapi::selftest as t;

const IOVA: u64 = 0x100_0000;

impl Client {
    fn hwpt_alloc(&self, cmd: u::iommu_hwpt_alloc) -> Result<u32, Errno> {
        let mut cmd = u::iommu_hwpt_alloc { size: 48, ..cmd };
        self.call(nr::IOMMU_HWPT_ALLOC, &mut cmd).map(|_| cmd.out_hwpt_id)
    }
}

#[test]
fn an_iova_leads_to_its_page_and_the_run_ends_with_the_area() {
    let client = Client::new();
    let ioas = client.ioas();
    client.nic(0, ioas).unwrap();
    client.map(ioas, page(3), 4 * 4096, RW | FIXED, IOVA).unwrap();
    // Contiguous in IOVAs and in memory, but another area.
    client.map(ioas, page(7), 4096, RO | FIXED, IOVA + 4 * 4096).unwrap();
    // A page of memory has its user address as physical address here.
    assert_eq!(client.get_pa(ioas, IOVA, u64::MAX), Ok((page(3), 4 * 4096)));
    assert_eq!(client.get_pa(ioas, IOVA, 1), Ok((page(3), 1)));
    assert_eq!(client.get_pa(ioas, IOVA, 4097), Ok((page(3), 4097)));
    let odd = IOVA + 4096 + 0x123;
    assert_eq!(client.get_pa(ioas, odd, u64::MAX), Ok((page(4) + 0x123, 3 * 4096 - 0x123)));
    let last = IOVA + 5 * 4096 - 1;
    assert_eq!(client.get_pa(ioas, last, 9), Ok((page(8) - 1, 1)));
    assert_eq!(client.get_pa(ioas, last + 1, 1), Err(Errno::NOENT));
    client.unmap(ioas, IOVA, 4 * 4096).unwrap();
    assert_eq!(client.get_pa(ioas, IOVA, 4096), Err(Errno::NOENT));
    assert_eq!(client.get_pa(ioas, IOVA + 4 * 4096, 8192), Ok((page(7), 4096)));
}

#[test]
fn a_copy_and_a_second_view_of_a_file_have_the_same_physical_address() {
    let client = Client::new();
    let (a, b) = (client.ioas(), client.ioas());
    client.nic(0, a).unwrap();
    client.nic(1, b).unwrap();
    let fd = client.host.open_memory(Some(4));
    let first = client.map_file(a, fd, 4096, 2 * 4096).unwrap();
    let copied = client.copy(a, first + 4096, 4096, b, RO).unwrap();
    let again = client.map_file(b, fd, 0, 4 * 4096).unwrap();
    let (pa, length) = client.get_pa(a, first + 4096, u64::MAX).unwrap();
    assert_eq!(length, 4096);
    assert_eq!(client.get_pa(b, copied, 4096), Ok((pa, 4096)));
    assert_eq!(client.get_pa(b, again + 8192, u64::MAX), Ok((pa, 8192)));
}

#[test]
fn the_kernels_order_of_errors() {
    let mut client = Client::new();
    let ioas = client.ioas();
    client.map(ioas, page(0), 4096, RW | FIXED, IOVA).unwrap();
    let answer = |client: &Client, change: fn(&mut iommu_ioas_noiommu_get_pa)| {
        let mut cmd = iommu_ioas_noiommu_get_pa {
            size: 40,
            ioas_id: 1,
            iova: IOVA,
            length: 4096,
            ..Default::default()
        };
        change(&mut cmd);
        client.call(nr::IOMMU_IOAS_NOIOMMU_GET_PA, &mut cmd).unwrap_err()
    };
    // Nothing is attached; then something whose addresses are translated.
    assert_eq!(answer(&client, |_| ()), Errno::OPNOTSUPP);
    assert_eq!(answer(&client, |cmd| cmd.iova += 4096), Errno::NOENT);
    client.mock(ioas).unwrap();
    assert_eq!(answer(&client, |_| ()), Errno::OPNOTSUPP);
    assert_eq!(answer(&client, |cmd| cmd.ioas_id = 99), Errno::NOENT);
    let top = |cmd: &mut iommu_ioas_noiommu_get_pa| (cmd.ioas_id, cmd.iova) = (99, u64::MAX);
    assert_eq!(answer(&client, top), Errno::OVERFLOW);
    let empty = |cmd: &mut iommu_ioas_noiommu_get_pa| (cmd.iova, cmd.length) = (u64::MAX, 0);
    assert_eq!(answer(&client, empty), Errno::INVAL);
    let reserved = |cmd: &mut iommu_ioas_noiommu_get_pa| (cmd.length, cmd.__reserved) = (0, 1);
    assert_eq!(answer(&client, reserved), Errno::OPNOTSUPP);
    assert_eq!(answer(&client, |cmd| (cmd.length, cmd.flags) = (0, 1)), Errno::OPNOTSUPP);
    client.task.capabilities = vec![Capability::IpcLock, Capability::SysResource];
    assert_eq!(answer(&client, |cmd| cmd.flags = 1), Errno::PERM);
}

#[test]
fn without_an_iommu_there_is_nothing_but_a_plain_table() {
    let client = Client::new();
    let ioas = client.ioas();
    let nic = client.nic(0, ioas).unwrap();
    let alloc = |flags, pt_id, data_len, fault_id| {
        let data_type = if data_len == 0 { 0 } else { t::IOMMU_HWPT_DATA_SELFTEST };
        client.hwpt_alloc(u::iommu_hwpt_alloc {
            flags,
            dev_id: nic.idev,
            pt_id,
            data_type,
            data_len,
            data_uptr: page(30),
            fault_id,
            ..Default::default()
        })
    };
    for flags in [1, 2, 8] {
        assert_eq!(alloc(flags, ioas, 0, 0), Err(Errno::OPNOTSUPP));
    }
    assert_eq!(alloc(0, ioas, 4, 0), Err(Errno::OPNOTSUPP));
    // Not a nesting parent: that would be the error of a device with an IOMMU.
    let plain = alloc(0, ioas, 0, 0).unwrap();
    assert_eq!(alloc(0, plain, 4, 0), Err(Errno::OPNOTSUPP));
    let mut info = u::iommu_hw_info { size: 40, dev_id: nic.idev, ..Default::default() };
    assert_eq!(client.call(nr::IOMMU_GET_HW_INFO, &mut info), Err(Errno::OPNOTSUPP));
    let viommu = |dev_id, hwpt_id| {
        let type_ = t::IOMMU_VIOMMU_TYPE_SELFTEST;
        let mut cmd =
            u::iommu_viommu_alloc { size: 40, type_, dev_id, hwpt_id, ..Default::default() };
        client.call(nr::IOMMU_VIOMMU_ALLOC, &mut cmd).map(|_| cmd.out_viommu_id)
    };
    assert_eq!(viommu(nic.idev, plain), Err(Errno::OPNOTSUPP));
    // Nor does it fit into the vIOMMU of another device.
    let mock = client.mock(ioas).unwrap();
    let parent =
        u::iommu_hwpt_alloc { flags: 1, dev_id: mock.idev, pt_id: ioas, ..Default::default() };
    let viommu_id = viommu(mock.idev, client.hwpt_alloc(parent).unwrap()).unwrap();
    let mut vdevice =
        u::iommu_vdevice_alloc { size: 24, viommu_id, dev_id: nic.idev, ..Default::default() };
    assert_eq!(client.call(nr::IOMMU_VDEVICE_ALLOC, &mut vdevice), Err(Errno::INVAL));
    assert_eq!(alloc(0, viommu_id, 4, 0), Err(Errno::INVAL));
}

#[test]
fn the_table_has_every_iova_and_whole_pages() {
    let client = Client::new();
    let ioas = client.ioas();
    let nic = client.nic(0, ioas).unwrap();
    let mut ranges = u::iommu_ioas_iova_ranges {
        size: 32,
        ioas_id: ioas,
        num_iovas: 1,
        allowed_iovas: page(30),
        ..Default::default()
    };
    client.call(nr::IOMMU_IOAS_IOVA_RANGES, &mut ranges).unwrap();
    assert_eq!((ranges.num_iovas, ranges.out_iova_alignment), (1, 4096));
    let mut range = [0; 16];
    client.host.copy_from_user(page(30), &mut range).unwrap();
    assert_eq!(range, [[0; 8], [0xff; 8]].concat()[..]);
    assert_eq!(client.map(ioas, page(0) + 2048, 4096, RW, 0), Err(Errno::INVAL));
    client.map(ioas, page(0), 4096, RW | FIXED, 0).unwrap();
    client.check_map(nic.hwpt, 0, 4096, page(0)).unwrap();
    assert_eq!(client.host.pins(page(0)), 1);
    client.destroy(nic.stdev).unwrap();
    assert_eq!(client.host.pins(page(0)), 0);
    assert_eq!(client.destroy(nic.hwpt), Err(Errno::NOENT));
}

#[test]
fn beside_an_iommu_the_first_table_decides() {
    let client = Client::new();
    let ioas = client.ioas();
    let nic = client.nic(0, ioas).unwrap();
    client.map(ioas, page(0), 4096, RW | FIXED, IOVA).unwrap();
    // A real IOMMU cannot use the table, and gets its own.
    let mock = client.mock(ioas).unwrap();
    assert_ne!(mock.hwpt, nic.hwpt);
    assert_eq!(client.get_pa(ioas, IOVA, 4096), Ok((page(0), 4096)));
    client.destroy(nic.stdev).unwrap();
    assert_eq!(client.get_pa(ioas, IOVA, 4096), Err(Errno::OPNOTSUPP));
    // The other way round the device shares what it has no use for.
    let nic = client.nic(0, ioas).unwrap();
    assert_eq!(nic.hwpt, mock.hwpt);
    assert_eq!(client.get_pa(ioas, IOVA, 4096), Err(Errno::OPNOTSUPP));
    client.destroy(mock.stdev).unwrap();
    client.check_map(nic.hwpt, IOVA, 4096, page(0)).unwrap();
    // A table allocated by hand comes second as well, until it is alone.
    let by_hand = u::iommu_hwpt_alloc { dev_id: nic.idev, pt_id: ioas, ..Default::default() };
    let by_hand = client.hwpt_alloc(by_hand).unwrap();
    assert_eq!(client.get_pa(ioas, IOVA, 4096), Err(Errno::OPNOTSUPP));
    client.test(t::IOMMU_TEST_OP_MOCK_DOMAIN_REPLACE, nic.stdev, &[by_hand]).unwrap();
    assert_eq!(client.get_pa(ioas, IOVA, 4096), Ok((page(0), 4096)));
}

#[test]
fn a_revoked_dmabuf_has_no_address_any_more() {
    let client = Client::new();
    let ioas = client.ioas();
    client.nic(0, ioas).unwrap();
    let mut cmd = t::iommu_test_cmd { size: 72, op: 22, id: 0, __reserved: 0, arg: [0; 14] };
    cmd.arg[0] = 8192;
    let fd = client.call(nr::IOMMU_TEST_CMD, &mut cmd).unwrap();
    let iova = client.map_file(ioas, fd, 0, 8192).unwrap();
    assert_eq!(client.get_pa(ioas, iova + 4096, u64::MAX).map(|(_, length)| length), Ok(4096));
    client.test(t::IOMMU_TEST_OP_DMABUF_REVOKE, 0, &[fd as u32, 1]).unwrap();
    assert_eq!(client.get_pa(ioas, iova, 4096), Err(Errno::INVAL));
}

#[test]
fn a_device_has_one_owner_who_may_know_physical_addresses() {
    let mut client = Client::new();
    let ioas = client.ioas();
    assert_eq!(client.nic(2, ioas).unwrap_err(), Errno::NODEV);
    assert_eq!(client.nic(0, 99).unwrap_err(), Errno::NOENT);
    let nic = client.nic(0, ioas).unwrap();
    let first = std::mem::replace(&mut client.context, client.node.context());
    let ioas = client.ioas();
    assert_eq!(client.nic(0, ioas).unwrap_err(), Errno::PERM);
    client.nic(1, ioas).unwrap();
    first.destroy(nic.stdev).unwrap();
    client.nic(0, ioas).unwrap();
    client.task.capabilities.clear();
    assert_eq!(client.nic(0, ioas).unwrap_err(), Errno::PERM);
}

/// As a VFIO file does it.
#[test]
fn a_device_is_bound_attached_moved_and_unbound() {
    let client = Client::new();
    let (a, b) = (client.ioas(), client.ioas());
    let context = &client.context;
    let device = context.bind(NoIommu::add_device("0000:00:04.0")).unwrap();
    client.map(a, page(0), 4096, RW | FIXED, IOVA).unwrap();
    client.map(b, page(9), 4096, RW | FIXED, IOVA).unwrap();
    let hwpt = context.attach(device, Target::Rid, a).unwrap();
    assert_eq!(client.get_pa(a, IOVA, 4096), Ok((page(0), 4096)));
    assert_eq!(context.attach(device, Target::Rid, a).unwrap_err().errno(), Errno::BUSY);
    let moved = context.replace(device, Target::Rid, b).unwrap();
    assert_ne!(moved, hwpt);
    assert_eq!(client.get_pa(a, IOVA, 4096), Err(Errno::OPNOTSUPP));
    assert_eq!(client.get_pa(b, IOVA, 4096), Ok((page(9), 4096)));
    // A table that was not made for PASIDs takes none.
    let pasid = context.attach(device, Target::Pasid(1), b).unwrap_err();
    assert_eq!(pasid.errno(), Errno::INVAL);
    assert_eq!(client.destroy(device), Err(Errno::BUSY));
    context.detach(device, Target::Rid);
    assert_eq!(client.host.total_pins(), 0);
    context.attach(device, Target::Rid, b).unwrap();
    context.unbind(device).unwrap();
    assert_eq!(client.host.total_pins(), 0);
    assert_eq!((client.destroy(a), client.destroy(b)), (Ok(0), Ok(0)));
}
