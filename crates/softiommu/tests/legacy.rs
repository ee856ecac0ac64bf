//! What clients from before the iommufd do: `/sys`, groups, a container.

mod client;

use std::fs::{self, File};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Once;

use client::{call, device_of};

const MACHINE: &str = r#"
[[iommu]]
name = "smmu"
model = "smmuv3"

[[device]]
name = "alone"
model = "ioat"
iommu = "smmu"
address = "00fa:17:0b.5"

[[device]]
name = "one"
model = "ioat"
iommu = "smmu"
group = "both"

[[device]]
name = "two"
model = "ioat"
iommu = "smmu"
group = "both"
mmap = true
"#;

const ALONE: &str = "00fa:17:0b.5";
const ONE: &str = "0001:00:01.0";
const TWO: &str = "0001:00:02.0";

const GET_API_VERSION: u64 = 0x3b64;
const CHECK_EXTENSION: u64 = 0x3b65;
const SET_IOMMU: u64 = 0x3b66;
const GROUP_GET_STATUS: u64 = 0x3b67;
const GROUP_SET_CONTAINER: u64 = 0x3b68;
const GROUP_UNSET_CONTAINER: u64 = 0x3b69;
const DEVICE_SET_IRQS: u64 = 0x3b6e;
const DEVICE_GET_PCI_HOT_RESET_INFO: u64 = 0x3b70;
const DEVICE_PCI_HOT_RESET: u64 = 0x3b71;
const IOMMU_GET_INFO: u64 = 0x3b70;
const MAP_DMA: u64 = 0x3b71;
const UNMAP_DMA: u64 = 0x3b72;
const DEVICE_BIND_IOMMUFD: u64 = 0x3b76;
const TYPE1V2: u64 = 3;
const CONFIG: u64 = 7 << 40;

fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        softiommu::install(softiommu::Machine::from_toml(MACHINE).unwrap()).unwrap();
    });
}

fn ioctl<const N: usize>(file: &File, command: u64, words: &mut [u32; N]) -> Result<i32, i32> {
    call(file, command, words.as_mut_ptr() as u64)
}

/// The page sizes of a container, a bit for each, and its IOVAs: first and last of each range.
fn info(container: &File) -> (u64, Vec<(u64, u64)>) {
    let mut info = [0_u32; 256];
    info[0] = 4 * 256;
    ioctl(container, IOMMU_GET_INFO, &mut info).unwrap();
    let wide = |at: usize| u64::from(info[at / 4]) | u64::from(info[at / 4 + 1]) << 32;
    let mut at = info[4] as usize;
    // VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE.
    while info[at / 4] & 0xffff != 1 {
        at = info[at / 4 + 1] as usize;
    }
    let count = info[at / 4 + 2] as usize;
    let range = |n: usize| (wide(at + 16 + 16 * n), wide(at + 24 + 16 * n));
    (wide(8), (0..count).map(range).collect())
}

fn open(path: impl AsRef<Path>) -> std::io::Result<File> {
    File::options().read(true).write(true).open(path)
}

fn sys(address: &str) -> String {
    format!("/sys/bus/pci/devices/{address}")
}

fn group_of(address: &str) -> String {
    let link = fs::read_link(sys(address) + "/iommu_group").unwrap();
    link.file_name().unwrap().to_str().unwrap().to_owned()
}

/// The way from an address to the device's file, as QEMU and the kernel's selftests go it.
#[test]
fn a_device_is_found_by_its_address() {
    install();
    for (address, group_mates) in [(ALONE, vec![ALONE]), (ONE, vec![ONE, TWO])] {
        let at = sys(address);
        assert_eq!(fs::read_to_string(at.clone() + "/vendor").unwrap(), "0x8086\n");
        assert_eq!(fs::read_to_string(at.clone() + "/class").unwrap(), "0x088000\n");
        assert_eq!(fs::read(at.clone() + "/config").unwrap()[..4], [0x86, 0x80, 0x21, 0x20]);
        let driver = fs::read_link(at.clone() + "/driver").unwrap();
        assert_eq!(driver.file_name().unwrap(), "vfio-pci");
        let real = fs::canonicalize(&at).unwrap();
        assert!(real.starts_with("/sys/devices/") && real.ends_with(address), "{real:?}");
        assert_eq!(fs::canonicalize(at.clone() + "/subsystem").unwrap(), Path::new("/sys/bus/pci"));
        let mut vfio = fs::read_dir(at.clone() + "/vfio-dev").unwrap();
        let name = vfio.next().unwrap().unwrap().file_name().into_string().unwrap();
        let numbers = fs::read_to_string(format!("{at}/vfio-dev/{name}/dev")).unwrap();
        let (major, minor) = numbers.trim().split_once(':').unwrap();
        let (major, minor) = (major.parse().unwrap(), minor.parse().unwrap());
        let node = fs::metadata(format!("/dev/vfio/devices/{name}")).unwrap();
        assert_eq!(node.rdev(), libc::makedev(major, minor));
        assert_eq!(
            open(format!("/dev/char/{major}:{minor}")).unwrap().metadata().unwrap().rdev(),
            node.rdev()
        );
        let group = format!("/sys/kernel/iommu_groups/{}/devices", group_of(address));
        let mates = fs::read_dir(group).unwrap().map(|mate| mate.unwrap().file_name());
        let mut mates: Vec<_> = mates.map(|mate| mate.into_string().unwrap()).collect();
        mates.sort();
        assert_eq!(mates, group_mates);
        assert!(fs::exists(format!("/sys/class/iommu/smmu/devices/{address}/vendor")).unwrap());
    }
    let listed = |path| fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(listed("/dev/vfio").any(|name| name == "vfio"));
    assert_eq!(listed("/dev/vfio/devices").count(), 3);
    assert!(listed("/sys/bus/pci/devices").any(|name| name == ALONE));
}

#[test]
fn a_group_and_a_container() {
    install();
    let path = format!("/dev/vfio/{}", group_of(ONE));
    let group = open(&path).unwrap();
    assert_eq!(open(&path).unwrap_err().raw_os_error(), Some(libc::EBUSY));
    let container = open("/dev/vfio/vfio").unwrap();
    assert_eq!(call(&container, GET_API_VERSION, 0), Ok(0));
    assert_eq!(call(&container, CHECK_EXTENSION, TYPE1V2), Ok(1));
    assert_eq!(call(&container, SET_IOMMU, TYPE1V2), Err(libc::EINVAL), "without a group");
    let mut status = [8, 0];
    ioctl(&group, GROUP_GET_STATUS, &mut status).unwrap();
    assert_eq!(status[1], 1, "viable");
    assert_eq!(device_of(&group, ONE).err(), Some(libc::EINVAL), "without a container");
    ioctl(&group, GROUP_SET_CONTAINER, &mut [container.as_raw_fd() as u32]).unwrap();
    ioctl(&group, GROUP_GET_STATUS, &mut status).unwrap();
    assert_eq!(status[1], 3, "and it has a container");
    assert_eq!(device_of(&group, ONE).err(), Some(libc::EINVAL), "without an IOMMU");
    // Memory may be mapped before there is a device.
    assert_eq!(ioctl(&container, UNMAP_DMA, &mut [24, 2, 0, 0, 0, 0]), Err(libc::EINVAL));
    call(&container, SET_IOMMU, TYPE1V2).unwrap();
    // From here on its devices are attached: a client that has opened none learns which IOVAs they can use.
    let (sizes, ranges) = info(&container);
    assert_eq!(sizes & 0xfff, 0);
    assert!(sizes < 1 << 40 && sizes & 0x1000 != 0, "{sizes:#x}");
    assert!(ranges.len() > 1 && ranges.last().unwrap().1 < 1 << 48, "{ranges:x?}");
    // SAFETY: a fresh mapping.
    let memory = unsafe {
        let (protection, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
        libc::mmap(std::ptr::null_mut(), 0x3000, protection, flags, -1, 0).cast::<u64>()
    };
    let address = memory as u64;
    let (low, high) = (address as u32, (address >> 32) as u32);
    ioctl(&container, MAP_DMA, &mut [32, 3, low, high, 0x10_0000, 0, 0x3000, 0]).unwrap();
    let engine = device_of(&group, ONE).unwrap();
    assert_eq!(device_of(&group, ALONE).err(), Some(libc::ENODEV), "of another group");
    assert_eq!(ioctl(&group, GROUP_UNSET_CONTAINER, &mut [0]), Err(libc::EBUSY));
    assert_eq!(ioctl(&engine, DEVICE_BIND_IOMMUFD, &mut [16, 0, 0, 0]), Err(libc::EINVAL));
    // A copy within the memory.
    let copy = |from: u64, to: u64, len: u64| {
        // SAFETY: inside the mapping; the device looks at it when it is told to.
        unsafe { memory.copy_from([len, from, to, 0].as_ptr(), 4) };
        engine.write_all_at(&[0b110, 0], CONFIG + 4).unwrap();
        engine.write_all_at(&[0x20], 0x84).unwrap();
        engine.write_all_at(&0x10_0000_u64.to_le_bytes(), 0x90).unwrap();
        engine.write_all_at(&[1, 0], 0x86).unwrap();
        loop {
            let mut state = [0; 8];
            engine.read_exact_at(&mut state, 0x88).unwrap();
            match state[0] & 7 {
                0 => {}
                state => break state,
            }
        }
    };
    // SAFETY: inside the mapping.
    unsafe { memory.add(0x200).write(0x1234_5678_9abc_de40) };
    assert_eq!(copy(0x10_1000, 0x10_2000, 64), 1);
    // SAFETY: inside the mapping.
    assert_eq!(unsafe { memory.add(0x400).read_volatile() }, 0x1234_5678_9abc_de40);
    // To the registers of another device, which are mapped by the address where the program has mapped them.
    let peer = device_of(&group, TWO).unwrap();
    // SAFETY: a fresh mapping.
    let registers = unsafe {
        let (protection, shared) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        libc::mmap(std::ptr::null_mut(), 0x4000, protection, shared, peer.as_raw_fd(), 0) as u64
    };
    let map_registers = |len: u32, iova: u32| {
        let (low, high) = (registers as u32, (registers >> 32) as u32);
        ioctl(&container, MAP_DMA, &mut [32, 3, low, high, iova, 0, len, 0])
    };
    map_registers(0x4000, 0x20_0000).unwrap();
    assert_eq!(copy(0x10_1000, 0x20_0090, 8), 1);
    let mut chain = [0; 8];
    peer.read_exact_at(&mut chain, 0x90).unwrap();
    assert_eq!(u64::from_le_bytes(chain), 0x1234_5678_9abc_de40);
    // What is not mapped any more, or never was, is not there to be mapped.
    assert_eq!(map_registers(0x5000, 0x30_0000), Err(libc::EFAULT));
    // SAFETY: a part of the mapping above.
    unsafe { libc::munmap((registers + 0x1000) as *mut _, 0x1000) };
    assert_eq!(map_registers(0x2000, 0x30_0000), Err(libc::EFAULT));
    map_registers(0x1000, 0x30_0000).unwrap();
    // SAFETY: the rest of it.
    unsafe { libc::munmap(registers as *mut _, 0x4000) };
    drop(peer);
    assert_eq!(copy(0x10_1000, 0x20_0090, 8), 3, "it does not decode its BARs");
    // One kind of interrupt at a time.
    // SAFETY: a plain system call; the descriptor is ours.
    let event = unsafe { File::from_raw_fd(libc::eventfd(0, libc::EFD_CLOEXEC)) };
    let set = |index| {
        let mut set = [24, 1 << 2 | 1 << 5, index, 0, 1, event.as_raw_fd() as u32];
        ioctl(&engine, DEVICE_SET_IRQS, &mut set)
    };
    let disable = |index| ioctl(&engine, DEVICE_SET_IRQS, &mut [20, 1 | 1 << 5, index, 0, 0]);
    assert_eq!((set(0), set(1), disable(0)), (Ok(0), Err(libc::EINVAL), Ok(0)));
    assert_eq!((set(1), set(2)), (Ok(0), Err(libc::EINVAL)));
    assert_eq!((disable(1), set(2), disable(2)), (Ok(0), Ok(0), Ok(0)));
    // The bus is reset by who owns all of it.
    let mut reset = [12, 0, 0, 0, 0];
    assert_eq!(ioctl(&engine, DEVICE_GET_PCI_HOT_RESET_INFO, &mut reset), Err(libc::ENOSPC));
    assert_eq!(reset[..3], [20, 0, 1]);
    ioctl(&engine, DEVICE_GET_PCI_HOT_RESET_INFO, &mut reset).unwrap();
    assert_eq!(reset[3..], [group_of(ONE).parse().unwrap(), 1 | 0x08 << 24]);
    let by =
        |fd: &File| ioctl(&engine, DEVICE_PCI_HOT_RESET, &mut [16, 0, 1, fd.as_raw_fd() as u32]);
    assert_eq!((by(&container), by(&group)), (Err(libc::EINVAL), Ok(0)));
    // A device that is closed stays attached, and what the container maps stays with the last group.
    drop(engine);
    let map = || ioctl(&container, MAP_DMA, &mut [32, 3, low, high, 0x10_0000, 0, 0x3000, 0]);
    assert_eq!(map(), Err(libc::EEXIST));
    assert_eq!(info(&container).1, ranges);
    ioctl(&group, GROUP_UNSET_CONTAINER, &mut [0]).unwrap();
    ioctl(&group, GROUP_SET_CONTAINER, &mut [container.as_raw_fd() as u32]).unwrap();
    call(&container, SET_IOMMU, TYPE1V2).unwrap();
    assert_eq!(map(), Ok(0), "it was taken along");
    let engine = device_of(&group, ONE).unwrap();
    // The files of devices keep the group open.
    drop(group);
    assert_eq!(open(&path).unwrap_err().raw_os_error(), Some(libc::EBUSY));
    drop((engine, container));
    let group = open(&path).unwrap();
    assert_eq!(ioctl(&group, GROUP_UNSET_CONTAINER, &mut [0]), Err(libc::EINVAL));
}

#[test]
fn a_group_and_the_file_of_a_device_exclude_each_other() {
    install();
    let (path, iommu) = (format!("/dev/vfio/{}", group_of(ALONE)), open("/dev/iommu").unwrap());
    let bind = |device: &File| {
        ioctl(device, DEVICE_BIND_IOMMUFD, &mut [16, 0, iommu.as_raw_fd() as u32, 0])
    };
    let cdev = open("/dev/vfio/devices/vfio0").unwrap();
    let group = open(&path).unwrap();
    assert_eq!(bind(&cdev), Err(libc::EBUSY));
    // With an iommufd as the container.
    ioctl(&group, GROUP_SET_CONTAINER, &mut [iommu.as_raw_fd() as u32]).unwrap();
    let first = device_of(&group, ALONE).unwrap();
    let second = device_of(&group, ALONE).unwrap();
    drop(first);
    assert!(second.read_at(&mut [0; 4], 7 << 40).is_ok());
    drop((second, group));
    bind(&cdev).unwrap();
    assert_eq!(open(&path).unwrap_err().raw_os_error(), Some(libc::EBUSY));
}
