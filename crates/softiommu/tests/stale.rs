//! A VMM whose guest forgets to invalidate: the checker says so, across the uAPI.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};

use iommufd_bindings::iommufd as u;
use iommufd_ioctls::{
    AttachHwpt, IommuFd, IommufdHwptData, IommufdInvalidateData, IommufdIoas, IommufdVDevice,
    IommufdVIommu,
};

static REPORTS: Mutex<Vec<String>> = Mutex::new(Vec::new());

struct Engine(File);

fn ioctl<const N: usize>(file: &File, cmd: u64, words: &mut [u32; N]) -> std::io::Result<()> {
    // SAFETY: the calls below give structs of as many words as their first says.
    match unsafe { libc::ioctl(file.as_raw_fd(), cmd, words.as_mut_ptr()) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

impl AttachHwpt for Engine {
    fn attach_hwpt(&self, pt_id: u32) -> std::io::Result<()> {
        ioctl(&self.0, 0x3b77, &mut [12, 0, pt_id])
    }

    fn detach_hwpt(&self) -> std::io::Result<()> {
        ioctl(&self.0, 0x3b78, &mut [8, 0])
    }
}

impl Engine {
    /// Has it work off the descriptor at 0x1000; whether that worked.
    fn copy(&self) -> bool {
        self.0.write_all_at(&[0x20], 0x84).unwrap();
        self.0.write_all_at(&0x1000u64.to_le_bytes(), 0x90).unwrap();
        self.0.write_all_at(&1u16.to_le_bytes(), 0x86).unwrap();
        let mut status = [0; 8];
        loop {
            self.0.read_exact_at(&mut status, 0x88).unwrap();
            match status[0] & 7 {
                0 => {}
                state => return state == 1,
            }
        }
    }
}

const IPA: u64 = 0x4000_0000;
const PAGE: u64 = 0b11 | 1 << 6 | 0b11 << 8 | 1 << 10 | 1 << 11;

#[test]
fn a_guest_that_remaps_a_page_and_forgets_the_tlbi_is_told() {
    let machine =
        softiommu::Machine { check_stale: Some(softiommu::StaleRule::Reuse), ..Default::default() };
    softiommu::install_with(machine, |report| REPORTS.lock().unwrap().push(report.to_owned()))
        .unwrap();
    let iommu = Arc::new(IommuFd::new().unwrap());
    let file = File::options().read(true).write(true).open("/dev/vfio/devices/vfio0").unwrap();
    let mut bind = [16, 0, iommu.as_raw_fd() as u32, 0];
    ioctl(&file, 0x3b76, &mut bind).unwrap();
    file.write_all_at(&[0b110, 0], (7 << 40) + 4).unwrap();
    let (engine, id) = (Arc::new(Engine(file)), bind[3]);

    // SAFETY: a plain system call with a C string; the descriptor is ours.
    let ram = unsafe { File::from_raw_fd(libc::memfd_create(c"ram".as_ptr(), libc::MFD_CLOEXEC)) };
    ram.set_len(1 << 20).unwrap();
    let word = |at: u64, value: u64| ram.write_all_at(&value.to_le_bytes(), at).unwrap();
    let ioas = Arc::new(IommufdIoas::new(iommu).unwrap());
    ioas.map_file(ram.as_raw_fd(), 0, 1 << 20, IPA, true).unwrap();
    let viommu = Arc::new(IommufdVIommu::new(ioas, id, false).unwrap());
    let mut vdevice = IommufdVDevice::new(viommu.clone(), engine.clone(), id, 0x10).unwrap();
    // A CD at 0x1000, tables of three levels after it.
    word(
        0x1000,
        (64 - 39)
            | 0b11_0101 << 8
            | 1 << 30
            | 1 << 31
            | 0b101 << 32
            | 1 << 41
            | 0b111 << 45
            | 1 << 48,
    );
    word(0x1008, IPA + 0x2000);
    word(0x1018, 0xff);
    word(0x2000, (IPA + 0x3000) | 3);
    word(0x3000, (IPA + 0x4000) | 3);
    for (iova, page) in [(1, 0x1_0000), (2, 0x2_0000), (3, 0x3_0000)] {
        word(0x4000 + 8 * iova, (IPA + page) | PAGE);
    }
    for (n, value) in [8, 0x2000, 0x3000, 0].into_iter().enumerate() {
        word(0x1_0000 + 8 * n as u64, value);
    }
    let ste = [1 | 0b101 << 1 | (IPA + 0x1000), 0b01 << 2 | 0b01 << 4 | 0b11 << 6];
    vdevice.install_s1_hwpt(&IommufdHwptData::Smmuv3(u::iommu_hwpt_arm_smmuv3 { ste })).unwrap();
    let invalidate = || {
        let cmd = [0x12 | 1 << 48, 0x3000 | 1];
        let mut cmd = IommufdInvalidateData::Smmuv3(u::iommu_viommu_arm_smmuv3_invalidate { cmd });
        viommu.invalidate(&mut cmd).unwrap();
    };
    let reports = || REPORTS.lock().unwrap().len();

    assert!(engine.copy());
    // As it should be done.
    word(0x4018, 0);
    invalidate();
    word(0x4018, (IPA + 0x5_0000) | PAGE);
    assert!(engine.copy());
    assert_eq!(reports(), 0);
    // And not.
    word(0x4018, (IPA + 0x6_0000) | PAGE);
    assert!(engine.copy());
    assert_eq!(reports(), 1);
    let report = REPORTS.lock().unwrap().remove(0);
    for part in [
        "iommu0",
        "stream 0x8",
        "0x3000",
        "CMD_TLBI_NH_VA VMID=1 ASID=1 VA=0x3000 Leaf",
        "CMD_SYNC",
    ] {
        assert!(report.contains(part), "{part} is not in:\n{report}");
    }
}
