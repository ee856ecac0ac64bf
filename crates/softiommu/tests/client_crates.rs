//! The crates that VMMs use, unmodified, in a plain test: no LD_PRELOAD.

use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::Arc;

use iommufd_bindings::iommufd as u;
use iommufd_ioctls::{IommuFd, IommufdIoas};

/// One machine for all tests of this process.
fn iommu() -> Arc<IommuFd> {
    static MACHINE: std::sync::Once = std::sync::Once::new();
    MACHINE.call_once(|| {
        softiommu::install(softiommu::Machine::with(softiommu::Model::Mock)).unwrap();
    });
    Arc::new(IommuFd::new().unwrap())
}

fn memfd(len: u64) -> std::fs::File {
    // SAFETY: a plain system call with a C string; the descriptor is ours.
    let file = unsafe {
        std::fs::File::from_raw_fd(libc::memfd_create(c"ram".as_ptr(), libc::MFD_CLOEXEC))
    };
    file.set_len(len).unwrap();
    file
}

/// An `IOMMU_TEST_CMD` with the 64-bit members `arg` of its union.
fn test(iommu: &IommuFd, op: u32, id: u32, arg: &[u64]) -> Result<[u32; 14], std::io::Error> {
    let mut cmd = [0u32; 18];
    cmd[..3].copy_from_slice(&[72, op, id]);
    for (words, value) in cmd[4..].chunks_mut(2).zip(arg) {
        words.copy_from_slice(&[*value as u32, (*value >> 32) as u32]);
    }
    // SAFETY: the ioctl reads and writes these 72 bytes.
    match unsafe { libc::ioctl(iommu.as_raw_fd(), 0x3ba0, cmd.as_mut_ptr()) } {
        0 => Ok(std::array::from_fn(|n| cmd[4 + n])),
        _ => Err(std::io::Error::last_os_error()),
    }
}

#[test]
fn dma_reaches_the_memory_that_was_mapped() {
    let iommu = iommu();
    let ioas = IommufdIoas::new(iommu.clone()).unwrap();
    let mut ram = memfd(1 << 20);
    ioas.map_file(ram.as_raw_fd(), 0, 1 << 20, 0x4000_0000, true).unwrap();
    let device = test(&iommu, 2, ioas.id(), &[]).unwrap();
    let access = test(&iommu, 5, ioas.id(), &[]).unwrap()[0];
    let message = *b"hello";
    let at = 0x4000_0000 + 4094;
    test(&iommu, 8, access, &[at, 5, message.as_ptr() as u64, 1]).unwrap();
    let mut found = [0; 5];
    ram.seek(SeekFrom::Start(4094)).unwrap();
    ram.read_exact(&mut found).unwrap();
    assert_eq!(found, message);
    // And the other way, from a copy of the descriptor.
    ram.seek(SeekFrom::Start(0)).unwrap();
    ram.write_all(b"device, read this").unwrap();
    let mut read = [0; 17];
    test(&iommu, 8, access, &[0x4000_0000, 17, read.as_mut_ptr() as u64]).unwrap();
    assert_eq!(&read, b"device, read this");
    // SAFETY: the test ioctl gave us this descriptor.
    drop(unsafe { std::fs::File::from_raw_fd(access as i32) });
    iommu.destroy_iommu_object(device[0]).unwrap();
}

#[test]
fn errors_are_the_kernels() {
    let iommu = iommu();
    let mut cmd = u::iommu_ioas_alloc { size: 12, flags: 1, out_ioas_id: 0 };
    let error = iommu.alloc_iommu_ioas(&mut cmd).unwrap_err().to_string();
    assert!(error.contains(&libc::EOPNOTSUPP.to_string()), "{error}");
    let error = iommu.destroy_iommu_object(77).unwrap_err().to_string();
    assert!(error.contains(&libc::ENOENT.to_string()), "{error}");
    let unmapped = test(&iommu, 8, 1000, &[0, 1, 0, 0]).unwrap_err();
    assert_eq!(unmapped.raw_os_error(), Some(libc::EBADFD));
}

#[test]
fn the_node_looks_like_a_character_device() {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    drop(iommu());
    let node = std::fs::metadata("/dev/iommu").unwrap();
    assert!(node.file_type().is_char_device());
    let open = std::fs::File::options().read(true).write(true).open("/dev/iommu").unwrap();
    assert_eq!(open.metadata().unwrap().rdev(), node.rdev());
}

#[test]
fn a_bad_pointer_is_an_error_and_not_a_signal() {
    let iommu = iommu();
    for address in [0usize, 8, usize::MAX, usize::MAX - 4096, 1 << 47] {
        // SAFETY: the ioctl checks the address; that it does is what we test.
        let result = unsafe { libc::ioctl(iommu.as_raw_fd(), 0x3b85, address) };
        let errno = std::io::Error::last_os_error().raw_os_error();
        assert_eq!((result, errno), (-1, Some(libc::EFAULT)), "{address:#x}");
    }
}

#[test]
fn a_path_that_cannot_be_an_address_is_the_kernels_to_refuse() {
    drop(iommu());
    for address in [0usize, 1, usize::MAX] {
        // SAFETY: no memory is there, and it is the kernel that finds out.
        let fd = unsafe { libc::open(address as *const _, libc::O_RDONLY) };
        let errno = std::io::Error::last_os_error().raw_os_error();
        assert_eq!((fd, errno), (-1, Some(libc::EFAULT)), "{address:#x}");
    }
}
