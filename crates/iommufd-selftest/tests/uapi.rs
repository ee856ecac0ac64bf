//! What the kernel's selftests do not look at, or only together with much else.

mod common;

use common::{Client, FIXED, RO, RW, page, words};
use host::{Capability, Errno, File, Mm};
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
