//! What the kernel's selftests do not look at, or only together with much else.

mod common;

use common::{Client, FIXED, RO, RW, page, words};
use host::{Capability, Errno, File, Mm};
use iommu::Pasids;
use iommu_mock::{MockDevice, MockDriver};
use uapi::iommufd as u;
use uapi::nr;
use uapi::selftest as t;

#[test]
fn closing_the_context_unpins_everything() {
    let client = Client::new();
    let ioas = client.ioas();
    client.mock(ioas).unwrap();
    client.map(ioas, page(0), 16 * 4096, RW, 0).unwrap();
    let fd = client.open_file(4);
    client.map_file(ioas, fd, 4096, 8192).unwrap();
    assert_eq!(client.host.total_pins(), 18);
    let host = client.host.clone();
    drop(client);
    host.close_all();
    assert_eq!(host.total_pins(), 0);
}

impl Client {
    fn open_file(&self, pages: u64) -> i32 {
        self.host.open_memory(Some(pages))
    }
}

#[test]
fn without_a_domain_nothing_is_pinned_or_even_looked_at() {
    let client = Client::new();
    let ioas = client.ioas();
    client.map(ioas, 0x7000_0000_0000, 4096, RW | FIXED, 0x100_0000).unwrap();
    assert_eq!(client.host.total_pins(), 0);
    // The error comes when a device would need the memory, and leaves no trace.
    assert_eq!(client.mock(ioas).unwrap_err(), Errno::FAULT);
    assert_eq!(client.unmap(ioas, 0x100_0000, 4096), Ok(4096));
    client.mock(ioas).unwrap();
}

#[test]
fn a_page_is_pinned_once_for_all_domains_and_copies() {
    let client = Client::new();
    let (a, b) = (client.ioas(), client.ioas());
    let first = client.mock(a).unwrap();
    client.mock(b).unwrap();
    let iova = client.map(a, page(0), 4 * 4096, RW, 0).unwrap();
    let copied = client.copy(a, iova + 4096, 2 * 4096, b, RW).unwrap();
    assert_eq!(client.host.total_pins(), 4);
    client.unmap(a, iova, 4 * 4096).unwrap();
    assert_eq!(client.host.total_pins(), 2);
    assert_eq!((client.host.pins(page(0)), client.host.pins(page(1))), (0, 1));
    client.unmap(b, copied, 2 * 4096).unwrap();
    assert_eq!(client.host.total_pins(), 0);
    client.destroy(first.stdev).unwrap();
}

#[test]
fn a_failed_attach_leaves_every_area_as_it_was() {
    let client = Client::new();
    let ioas = client.ioas();
    let good = client.map(ioas, page(0), 4096, RW | FIXED, 0x100_0000).unwrap();
    client.map(ioas, page(8), 4096, RW | FIXED, 0x100_1000).unwrap();
    client.host.set_present(page(8), false);
    assert_eq!(client.mock(ioas).unwrap_err(), Errno::FAULT);
    assert_eq!(client.host.total_pins(), 0);
    client.host.set_present(page(8), true);
    let mock = client.mock(ioas).unwrap();
    client.check_map(mock.hwpt, good, 4096, page(0)).unwrap();
}

#[test]
fn unmapping_stops_at_an_area_that_sticks_out_but_keeps_what_it_did() {
    let client = Client::new();
    let ioas = client.ioas();
    client.map(ioas, page(0), 4096, RW | FIXED, 0x10000).unwrap();
    client.map(ioas, page(1), 8192, RW | FIXED, 0x11000).unwrap();
    assert_eq!(client.unmap(ioas, 0x10000, 8192), Err(Errno::NOENT));
    assert_eq!(client.unmap(ioas, 0x10000, 4096), Err(Errno::NOENT));
    assert_eq!(client.unmap(ioas, 0x11000, 8192), Ok(8192));
    assert_eq!(client.unmap(ioas, 0, u64::MAX), Ok(0));
}

#[test]
fn chosen_iovas_are_the_lowest_and_keep_the_alignment_of_the_memory() {
    let client = Client::new();
    let ioas = client.ioas();
    assert_eq!(client.map(ioas, 0x1000_1000, 4096, RW, 0), Ok(0x1000));
    assert_eq!(client.map(ioas, 0x1000_2000, 8192, RW, 0), Ok(0x2000));
    assert_eq!(client.map(ioas, 0x2000_0000, 0x10000, RW, 0), Ok(0x10000));
    assert_eq!(client.map(ioas, 0x4000_0000, 4 << 20, RW, 0), Ok(0x20_0000));
    // The offset within the page stays, so that whole pages stay whole.
    assert_eq!(client.map(ioas, 0x1000_107b, 100, RW, 0), Ok(0x407b));
}

#[test]
fn a_mapping_cannot_gain_the_right_to_write() {
    let client = Client::new();
    let (a, b) = (client.ioas(), client.ioas());
    let iova = client.map(a, page(0), 4096, RO, 0).unwrap();
    assert_eq!(client.copy(a, iova, 4096, b, RW), Err(Errno::PERM));
    assert!(client.copy(a, iova, 4096, b, RO).is_ok());
    client.host.set_writable(page(5), false);
    let c = client.ioas();
    client.mock(c).unwrap();
    assert_eq!(client.map(c, page(5), 4096, RW, 0), Err(Errno::FAULT));
    assert!(client.map(c, page(5), 4096, RO, 0).is_ok());
}

#[test]
fn memory_over_the_limit_is_refused_and_not_left_charged() {
    let mut client = Client::new();
    client.task.capabilities = vec![Capability::SysResource];
    client.task.memlock_limit = 3 * 4096;
    let ioas = client.ioas();
    client.mock(ioas).unwrap();
    let two = client.map(ioas, page(0), 2 * 4096, RW, 0).unwrap();
    assert_eq!(client.map(ioas, page(4), 2 * 4096, RW, 0), Err(Errno::NOMEM));
    assert_eq!(client.host.total_pins(), 2);
    client.map(ioas, page(4), 4096, RW, 0).unwrap();
    client.unmap(ioas, two, 2 * 4096).unwrap();
    client.map(ioas, page(4), 2 * 4096, RW, 0).unwrap();
}

#[test]
fn an_access_that_lets_go_does_not_block_unmapping() {
    let client = Client::new();
    let ioas = client.ioas();
    let iova = client.map(ioas, page(0), 4 * 4096, RW, 0).unwrap();
    let pins = t::MOCK_FLAGS_ACCESS_CREATE_NEEDS_PIN_PAGES;
    let access = client.access(ioas, pins).unwrap();
    client.pin(access, iova + 4096, 4096, 0).unwrap();
    client.pin(access, iova, 4 * 4096, t::MOCK_FLAGS_ACCESS_WRITE).unwrap();
    assert_eq!(client.host.total_pins(), 4);
    assert_eq!(client.unmap(ioas, iova, 4 * 4096), Ok(4 * 4096));
    assert_eq!(client.host.total_pins(), 0);
    assert_eq!(client.destroy(ioas), Err(Errno::BUSY));
    client.host.close(access);
    assert_eq!(client.destroy(ioas), Ok(0));
}

#[test]
fn an_access_reads_and_writes_across_areas_and_nothing_else() {
    let client = Client::new();
    let ioas = client.ioas();
    client.map(ioas, page(3) + 5, 100, RW | FIXED, 0x1_0000).unwrap();
    client.map(ioas, page(7), 100, RO | FIXED, 0x1_0064).unwrap();
    let access = client.access(ioas, 0).unwrap();
    client.host.copy_to_user(page(3) + 5, &[7; 100]).unwrap();
    client.host.copy_to_user(page(7), &[9; 100]).unwrap();
    let rw = |iova, len, uptr, flags: u32| {
        let mut args = words(&[iova, len, uptr]);
        args.push(flags);
        client.test(t::IOMMU_TEST_OP_ACCESS_RW, access as u32, &args).map(drop)
    };
    rw(0x1_0000, 200, page(20), 0).unwrap();
    let mut read = [0; 200];
    client.host.copy_from_user(page(20), &mut read).unwrap();
    assert_eq!((read[99], read[100]), (7, 9));
    assert_eq!(rw(0x1_0000, 201, page(20), 0), Err(Errno::NOENT));
    assert_eq!(rw(0x1_0000, 101, page(20), t::MOCK_ACCESS_RW_WRITE), Err(Errno::PERM));
    assert_eq!(client.host.total_pins(), 0);
}

#[test]
fn a_struct_may_be_longer_only_by_zeroes() {
    let client = Client::new();
    let mut long = [0u32; 6];
    long[0] = 24;
    let call = |words: &[u32; 6]| {
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_ne_bytes()).collect();
        client.host.copy_to_user(page(30), &bytes).unwrap();
        client.context.ioctl(&client.task, nr::IOMMU_IOAS_ALLOC, page(30))
    };
    assert_eq!(call(&long), Ok(0));
    long[5] = 0x0100_0000;
    assert_eq!(call(&long), Err(Errno::TOOBIG));
    long[0] = 8;
    assert_eq!(call(&long), Err(Errno::INVAL));
}

#[test]
fn a_revoked_dmabuf_is_out_of_every_table_for_good() {
    let client = Client::new();
    let ioas = client.ioas();
    let mock = client.mock(ioas).unwrap();
    let mut cmd = t::iommu_test_cmd { size: 72, op: 22, id: 0, __reserved: 0, arg: [0; 14] };
    cmd.arg[0] = 8192;
    let fd = client.call(nr::IOMMU_TEST_CMD, &mut cmd).unwrap();
    let iova = client.map_file(ioas, fd, 0, 8192).unwrap();
    let domain = client.context.paging_domain(mock.hwpt).unwrap();
    assert!(domain.iova_to_phys(iova).is_some());
    client.test(t::IOMMU_TEST_OP_DMABUF_REVOKE, 0, &[fd as u32, 1]).unwrap();
    assert_eq!(domain.iova_to_phys(iova), None);
    assert_eq!(client.map_file(ioas, fd, 0, 4096), Err(Errno::NODEV));
    client.test(t::IOMMU_TEST_OP_DMABUF_REVOKE, 0, &[fd as u32, 0]).unwrap();
    assert_eq!(domain.iova_to_phys(iova), None);
    assert_eq!(client.unmap(ioas, iova, 8192), Ok(8192));
    assert!(client.map_file(ioas, fd, 0, 4096).is_ok());
}

#[test]
fn objects_in_use_cannot_be_destroyed() {
    let client = Client::new();
    let ioas = client.ioas();
    let mock = client.mock(ioas).unwrap();
    assert_eq!(client.destroy(mock.hwpt), Err(Errno::BUSY));
    assert_eq!(client.destroy(mock.idev), Err(Errno::BUSY));
    assert_eq!(client.destroy(ioas), Err(Errno::BUSY));
    assert_eq!(client.destroy(mock.stdev), Ok(0));
    // The automatic HWPT went with its device.
    assert_eq!(client.destroy(mock.hwpt), Err(Errno::NOENT));
    assert_eq!(client.destroy(ioas), Ok(0));
    assert_eq!(client.destroy(0), Err(Errno::NOENT));
}

#[test]
fn an_id_that_did_not_reach_user_space_is_free_again() {
    let client = Client::new();
    client.host.set_writable(page(31), false);
    let cmd = u::iommu_ioas_alloc { size: 12, flags: 0, out_ioas_id: 0 };
    client.host.set_writable(page(31), true);
    client.host.copy_to_user(page(31), uapi::Plain::as_bytes(&cmd)).unwrap();
    client.host.set_writable(page(31), false);
    let failed = client.context.ioctl(&client.task, nr::IOMMU_IOAS_ALLOC, page(31));
    assert_eq!(failed, Err(Errno::FAULT));
    assert_eq!(client.ioas(), 1);
}

const WO: u32 = u::iommufd_ioas_map_flags_IOMMU_IOAS_MAP_WRITEABLE;

impl Client {
    fn read_through(&self, access: i32, iova: u64, len: u64) -> Result<(), Errno> {
        let mut args = words(&[iova, len, page(40)]);
        args.push(0);
        self.test(t::IOMMU_TEST_OP_ACCESS_RW, access as u32, &args).map(drop)
    }

    fn hwpt(&self, device: u32, pt_id: u32, flags: u32, fault_id: u32) -> Result<u32, Errno> {
        let mut cmd = u::iommu_hwpt_alloc {
            size: 48,
            flags,
            dev_id: device,
            pt_id,
            fault_id,
            ..Default::default()
        };
        self.call(nr::IOMMU_HWPT_ALLOC, &mut cmd).map(|_| cmd.out_hwpt_id)
    }

    fn alignment(&self, ioas_id: u32) -> u64 {
        let mut cmd = u::iommu_ioas_iova_ranges { size: 32, ioas_id, ..Default::default() };
        // There is no room for the ranges; the rest of the answer comes.
        assert_eq!(self.call(nr::IOMMU_IOAS_IOVA_RANGES, &mut cmd), Err(Errno::MSGSIZE));
        cmd.out_iova_alignment
    }
}

#[test]
fn hw_info_says_what_a_device_declares_of_pasids() {
    let client = Client::new();
    let info = |pasids| {
        let driver = MockDriver::new(client.host.clone());
        let device = driver.add_device("pci", MockDevice::new(true, pasids));
        let dev_id = client.context.bind(device).unwrap();
        let mut cmd = u::iommu_hw_info { size: 40, dev_id, ..Default::default() };
        client.call(nr::IOMMU_GET_HW_INFO, &mut cmd).unwrap();
        client.context.unbind(dev_id).unwrap();
        (cmd.out_max_pasid_log2, cmd.out_capabilities)
    };
    let exec = u64::from(u::iommufd_hw_capabilities_IOMMU_HW_CAP_PCI_PASID_EXEC);
    let privileged = u64::from(u::iommufd_hw_capabilities_IOMMU_HW_CAP_PCI_PASID_PRIV);
    let no_ats = u64::from(u::iommufd_hw_capabilities_IOMMU_HW_CAP_PCI_ATS_NOT_SUPPORTED);
    let plain = Pasids { max: 1 << 20, ..Pasids::default() };
    assert_eq!(info(Pasids::default()), (0, no_ats));
    assert_eq!(info(plain), (20, no_ats));
    assert_eq!(info(Pasids { exec: true, ..plain }), (20, no_ats | exec));
    assert_eq!(info(Pasids { max: 65536, privileged: true, ..plain }), (16, no_ats | privileged));
    // Without PASIDs there is nothing to permit.
    assert_eq!(info(Pasids { max: 0, exec: true, privileged: true }), (0, no_ats));
    // What the test ioctl makes is not on PCI.
    let ioas = client.ioas();
    let flags = [0, 0, 0, t::MOCK_FLAGS_DEVICE_PASID];
    let mock = client.test(t::IOMMU_TEST_OP_MOCK_DOMAIN_FLAGS, ioas, &flags).unwrap();
    let mut cmd = u::iommu_hw_info { size: 40, dev_id: mock.arg[2], ..Default::default() };
    client.call(nr::IOMMU_GET_HW_INFO, &mut cmd).unwrap();
    assert_eq!((cmd.out_max_pasid_log2, cmd.out_capabilities & (exec | privileged)), (20, 0));
}

#[test]
fn what_may_only_be_written_cannot_be_read() {
    let client = Client::new();
    let ioas = client.ioas();
    let iova = client.map(ioas, page(0), 4096, WO, 0).unwrap();
    let access = client.access(ioas, t::MOCK_FLAGS_ACCESS_CREATE_NEEDS_PIN_PAGES).unwrap();
    assert_eq!(client.read_through(access, iova, 8), Err(Errno::PERM));
    assert_eq!(client.pin(access, iova, 4096, 0), Err(Errno::PERM));
    client.pin(access, iova, 4096, t::MOCK_FLAGS_ACCESS_WRITE).unwrap();
}

#[test]
fn reading_through_an_ioas_is_charged_to_nobody() {
    let mut client = Client::new();
    client.task.capabilities.clear();
    client.task.memlock_limit = 0;
    let ioas = client.ioas();
    let iova = client.map(ioas, page(0), 8192, RW, 0).unwrap();
    let access = client.access(ioas, t::MOCK_FLAGS_ACCESS_CREATE_NEEDS_PIN_PAGES).unwrap();
    client.read_through(access, iova + 4000, 200).unwrap();
    assert_eq!(client.pin(access, iova, 4096, 0), Err(Errno::NOMEM));
    assert_eq!(client.host.total_pins(), 0);
}

#[test]
fn an_iova_may_span_allowed_ranges_that_touch() {
    let client = Client::new();
    let ioas = client.ioas();
    let ranges = [0x1_0000u64, 0x1_0fff, 0x1_1000, 0x1_1fff].map(u64::to_ne_bytes).concat();
    client.host.copy_to_user(page(30), &ranges).unwrap();
    let mut cmd = u::iommu_ioas_allow_iovas {
        size: 24,
        ioas_id: ioas,
        num_iovas: 2,
        __reserved: 0,
        allowed_iovas: page(30),
    };
    client.call(nr::IOMMU_IOAS_ALLOW_IOVAS, &mut cmd).unwrap();
    assert_eq!(client.map(ioas, page(0), 8192, RW, 0), Ok(0x1_0000));
    assert_eq!(client.map(ioas, page(2), 4096, RW, 0), Err(Errno::NOSPC));
}

#[test]
fn a_missing_fault_queue_is_the_last_error() {
    let client = Client::new();
    let (ioas, far) = (client.ioas(), client.ioas());
    let device = client.mock(ioas).unwrap().idev;
    let fault = u::iommufd_hwpt_alloc_flags_IOMMU_HWPT_FAULT_ID_VALID;
    assert_eq!(client.hwpt(device, ioas, fault, 77), Err(Errno::NOENT));
    // Outside what the hardware can map: that comes first.
    client.map(far, page(0), 4096, RW | FIXED, 0x1000).unwrap();
    assert_eq!(client.hwpt(device, far, fault, 77), Err(Errno::ADDRINUSE));
}

#[test]
fn events_survive_a_reader_whose_memory_faults() {
    let client = Client::new();
    let ioas = client.ioas();
    let device = client.mock(ioas).unwrap();
    let parent = u::iommufd_hwpt_alloc_flags_IOMMU_HWPT_ALLOC_NEST_PARENT;
    let parent = client.hwpt(device.idev, ioas, parent, 0).unwrap();
    let mut viommu = u::iommu_viommu_alloc {
        size: 40,
        type_: t::IOMMU_VIOMMU_TYPE_SELFTEST,
        dev_id: device.idev,
        hwpt_id: parent,
        ..Default::default()
    };
    client.call(nr::IOMMU_VIOMMU_ALLOC, &mut viommu).unwrap();
    let viommu_id = viommu.out_viommu_id;
    let mut vdevice = u::iommu_vdevice_alloc {
        size: 24,
        viommu_id,
        dev_id: device.idev,
        virt_id: 9,
        ..Default::default()
    };
    client.call(nr::IOMMU_VDEVICE_ALLOC, &mut vdevice).unwrap();
    let mut nested = u::iommu_hwpt_alloc {
        size: 48,
        dev_id: device.idev,
        pt_id: viommu_id,
        data_type: t::IOMMU_HWPT_DATA_SELFTEST,
        data_len: 4,
        data_uptr: page(30),
        ..Default::default()
    };
    client.call(nr::IOMMU_HWPT_ALLOC, &mut nested).unwrap();
    let replace = t::IOMMU_TEST_OP_MOCK_DOMAIN_REPLACE;
    client.test(replace, device.stdev, &[nested.out_hwpt_id]).unwrap();
    let mut queue = u::iommu_veventq_alloc {
        size: 32,
        viommu_id,
        type_: t::IOMMU_VEVENTQ_TYPE_SELFTEST,
        veventq_depth: 2,
        ..Default::default()
    };
    client.call(nr::IOMMU_VEVENTQ_ALLOC, &mut queue).unwrap();
    let file = client.host.emulated(queue.out_veventq_fd as i32).unwrap();
    for _ in 0..3 {
        client.test(t::IOMMU_TEST_OP_TRIGGER_VEVENT, 0, &[device.idev]).unwrap();
    }
    // Two events of 12 bytes, then the header that says that one was lost.
    assert_eq!(file.read(&client.task, 8, 12, None), Err(Errno::FAULT));
    assert_eq!(file.read(&client.task, page(30), 24, None), Ok(24));
    assert_eq!(file.read(&client.task, 8, 8, None), Err(Errno::FAULT));
    assert_eq!(file.read(&client.task, page(30), 64, None), Ok(8));
    let mut header = [0; 8];
    client.host.copy_from_user(page(30), &mut header).unwrap();
    assert_eq!(header, [1, 0, 0, 0, 2, 0, 0, 0]);
    assert_eq!(file.read(&client.task, page(30), 64, None), Ok(0));
    // A queue of the hardware's keeps IOVAs to whole pages, and its own mapped.
    client.map(ioas, page(0), 4096, RW | FIXED, 0x200_0000).unwrap();
    assert_eq!(client.alignment(ioas), 2048);
    let mut hw = u::iommu_hw_queue_alloc {
        size: 40,
        viommu_id,
        type_: t::IOMMU_HW_QUEUE_TYPE_SELFTEST,
        nesting_parent_iova: 0x200_0000,
        length: 4096,
        ..Default::default()
    };
    client.call(nr::IOMMU_HW_QUEUE_ALLOC, &mut hw).unwrap();
    assert_eq!(client.alignment(ioas), 4096);
    assert_eq!(client.unmap(ioas, 0x200_0000, 4096), Err(Errno::BUSY));
    client.destroy(hw.out_hw_queue_id).unwrap();
    assert_eq!(client.alignment(ioas), 2048);
    assert_eq!(client.unmap(ioas, 0x200_0000, 4096), Ok(4096));
}
