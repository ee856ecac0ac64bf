//! A client of `/dev/iommu`: what a VMM does for its guest's memory, with the
//! crates a VMM would use. It knows nothing of softiommu, and runs as it is on a
//! kernel with `CONFIG_IOMMUFD_TEST`.
//!
//! The device is the mock one of the kernel's selftests, which does DMA when
//! told to by `IOMMU_TEST_CMD`.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::Arc;

use iommufd_bindings::iommufd as u;
use iommufd_ioctls::{IommuFd, IommufdIoas};
use vmm_sys_util::ioctl::ioctl_with_mut_ref;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Little enough for the locked memory that ordinary users are allowed.
const RAM: u64 = 4 << 20;
const PAGE: u64 = 4096;
const IOVA: u64 = 0x4000_0000;
const MESSAGE: &[u8] = b"written by a device, at an IOVA";

/// `struct iommu_test_cmd`, its union as words.
#[repr(C)]
#[derive(Default)]
struct TestCmd {
    size: u32,
    op: u32,
    id: u32,
    reserved: u32,
    arg: [u32; 14],
}

/// One `IOMMU_TEST_CMD` with the union's 64-bit members `arg`.
fn test(iommu: &File, op: u32, id: u32, arg: &[u64]) -> Result<TestCmd> {
    let mut cmd = TestCmd { size: 72, op, id, ..TestCmd::default() };
    for (words, value) in cmd.arg.chunks_mut(2).zip(arg) {
        words.copy_from_slice(&[*value as u32, (*value >> 32) as u32]);
    }
    // SAFETY: the ioctl reads and writes this struct, whose size it is told.
    if unsafe { ioctl_with_mut_ref(iommu, 0x3ba0, &mut cmd) } < 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    Ok(cmd)
}

/// Guest memory, as VMMs keep it.
fn guest_ram() -> Result<File> {
    let dir = if std::path::Path::new("/dev/shm").is_dir() { "/dev/shm" } else { "/tmp" };
    let path = format!("{dir}/client-ram-{}", std::process::id());
    let ram = File::options().read(true).write(true).create_new(true).open(&path)?;
    std::fs::remove_file(path)?;
    ram.set_len(RAM)?;
    Ok(ram)
}

fn main() -> Result<()> {
    let file = File::options().read(true).write(true).open("/dev/iommu")?;
    println!("opened /dev/iommu");
    let device_side = file.try_clone()?;
    let iommu = Arc::new(IommuFd::new_from_fd(file));

    let ioas = IommufdIoas::new(iommu.clone())?;
    let mut ram = guest_ram()?;
    // Whoever wants to know which pages are dirty wants small leaves.
    option(&device_side, u::iommufd_option_IOMMU_OPTION_HUGE_PAGES, ioas.id(), 0)?;
    ioas.map_file(ram.as_raw_fd(), 0, RAM, IOVA, true)?;
    println!("mapped {} MiB of guest RAM at IOVA {IOVA:#x} of IOAS {}", RAM >> 20, ioas.id());

    // A device appears, and gets page tables of its own for the same memory.
    let device = test(&device_side, 2, ioas.id(), &[])?;
    let [stdev, auto_hwpt, dev_id, ..] = device.arg;
    println!("attached device {dev_id}: the kernel made HWPT {auto_hwpt} for it");
    let mut hwpt = u::iommu_hwpt_alloc {
        size: size_of::<u::iommu_hwpt_alloc>() as u32,
        flags: u::iommufd_hwpt_alloc_flags_IOMMU_HWPT_ALLOC_DIRTY_TRACKING,
        dev_id,
        pt_id: ioas.id(),
        ..Default::default()
    };
    iommu.alloc_iommu_hwpt(&mut hwpt)?;
    test(&device_side, 10, stdev, &[u64::from(hwpt.out_hwpt_id)])?;
    println!("moved it to HWPT {}, which tracks dirty pages", hwpt.out_hwpt_id);

    // DMA: a device's write through the IOAS lands in guest memory.
    let access = test(&device_side, 5, ioas.id(), &[])?.arg[0];
    let target = IOVA + 5 * PAGE + 100;
    let buffer = MESSAGE.as_ptr() as u64;
    test(&device_side, 8, access, &[target, MESSAGE.len() as u64, buffer, 1])?;
    ram.seek(SeekFrom::Start(target - IOVA))?;
    let mut found = vec![0; MESSAGE.len()];
    ram.read_exact(&mut found)?;
    println!("DMA to IOVA {target:#x}; guest RAM has: {:?}", String::from_utf8_lossy(&found));

    // Live migration: which pages did the device write?
    set_tracking(&device_side, hwpt.out_hwpt_id)?;
    let pages = RAM / PAGE;
    let mut written = vec![0u8; (pages / 8) as usize];
    for page in [0, 5, 6, 1000] {
        written[page / 8] |= 1 << (page % 8);
    }
    let bitmap = written.as_ptr() as u64;
    test(&device_side, 13, hwpt.out_hwpt_id, &[0, IOVA, RAM, PAGE, bitmap])?;
    let dirty = dirty_bitmap(&device_side, hwpt.out_hwpt_id)?;
    let is_dirty = |page: &u64| dirty[(page / 8) as usize] & 1 << (page % 8) != 0;
    let dirty: Vec<u64> = (0..pages).filter(is_dirty).collect();
    println!("of {pages} pages the device wrote these, says the bitmap: {dirty:?}");

    // A mapping in use stays; one that goes takes the IOVAs with it.
    ioas.unmap(IOVA, RAM)?;
    let after = test(&device_side, 8, access, &[target, 1, buffer, 1]);
    println!(
        "unmapped; DMA to IOVA {target:#x} now: {}",
        after.err().map_or("works".into(), |e| e.to_string())
    );
    // SAFETY: the ioctl that made this descriptor gave it to us.
    drop(unsafe { File::from_raw_fd(access as i32) });
    iommu.destroy_iommu_object(stdev)?;
    iommu.destroy_iommu_object(hwpt.out_hwpt_id)?;
    drop(ioas);
    println!("destroyed everything");
    Ok(())
}

fn option(iommu: &File, option_id: u32, object_id: u32, val64: u64) -> Result<()> {
    let size = size_of::<u::iommu_option>() as u32;
    let mut cmd = u::iommu_option { size, option_id, object_id, val64, ..Default::default() };
    // SAFETY: the ioctl reads and writes this struct, whose size it is told.
    match unsafe { ioctl_with_mut_ref(iommu, 0x3b87, &mut cmd) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error().into()),
    }
}

fn set_tracking(iommu: &File, hwpt_id: u32) -> Result<()> {
    let mut cmd = u::iommu_hwpt_set_dirty_tracking { size: 16, flags: 1, hwpt_id, __reserved: 0 };
    // SAFETY: the ioctl reads and writes this struct, whose size it is told.
    match unsafe { ioctl_with_mut_ref(iommu, 0x3b8b, &mut cmd) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error().into()),
    }
}

fn dirty_bitmap(iommu: &File, hwpt_id: u32) -> Result<Vec<u8>> {
    let mut bitmap = vec![0u8; (RAM / PAGE / 8) as usize];
    let mut cmd = u::iommu_hwpt_get_dirty_bitmap {
        size: size_of::<u::iommu_hwpt_get_dirty_bitmap>() as u32,
        hwpt_id,
        iova: IOVA,
        length: RAM,
        page_size: PAGE,
        data: bitmap.as_mut_ptr() as u64,
        ..Default::default()
    };
    // SAFETY: as above; the bitmap has a bit for every page of the range.
    match unsafe { ioctl_with_mut_ref(iommu, 0x3b8c, &mut cmd) } {
        0 => Ok(bitmap),
        _ => Err(std::io::Error::last_os_error().into()),
    }
}
