//! A client that does whatever it likes with the files of a device: nothing breaks, and afterwards the device works.
//!
//! `SOFTIOMMU_CASES` says how many such clients there are.

use std::fs::{self, File};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;
use std::sync::Once;

use proptest::prelude::*;

const MACHINE: &str = "\
[[iommu]]
model = \"smmuv3\"

[[device]]
name = \"d\"
model = \"ioat\"
iommu = \"iommu0\"
address = \"0000:aa:00.0\"
pasid-bits = 4
ats = true
pri = true
vfs = 2
";
const CONFIG: u64 = 7 << 40;
const IOVA: u64 = 0x4000_0000;
const REGISTERS: u64 = 0x5000_0000;
/// `VFIO_DEVICE_FEATURE_DMA_BUF`.
const DMA_BUF: u32 = 11;
const NUM_VFS: &str = "/sys/bus/pci/devices/0000:aa:00.0/sriov_numvfs";

#[derive(Debug, Clone)]
enum Op {
    Read {
        region: u64,
        offset: u64,
        len: usize,
    },
    Write {
        region: u64,
        offset: u64,
        data: Vec<u8>,
    },
    /// With a struct of these words.
    Ioctl {
        file: usize,
        command: u64,
        words: [u32; 12],
    },
    Reopen {
        by_group: bool,
    },
    /// Maps registers of the device for its own DMA, at an IOVA that says which.
    Export {
        offset: u64,
        len: u64,
        at: u64,
    },
    /// Has the engine go through descriptors, of which this is the first, between memory and registers.
    Copy {
        from: u64,
        to: u64,
        len: u64,
        count: u16,
    },
    /// `VFIO_DEVICE_SET_IRQS` with an eventfd, or by it.
    Irq {
        index: u32,
        flags: u32,
        start: u32,
        eventfd: bool,
    },
    Signal,
    /// Enables virtual functions, and maybe opens the last of them.
    NumVfs {
        count: u16,
        open: bool,
    },
}

/// Offsets that mean something, and others.
fn offset() -> impl Strategy<Value = u64> {
    prop_oneof![
        0..0x200_u64,
        0..0x1100_u64,
        0xbff0..0x1_0010_u64,
        any::<u64>().prop_map(|n| n >> 24)
    ]
}

fn region() -> impl Strategy<Value = u64> {
    prop_oneof![4 => Just(0_u64), 4 => Just(7), 1 => 0..12_u64]
}

/// Words as commands have them: their size, small numbers, IOVAs.
fn words() -> impl Strategy<Value = [u32; 12]> {
    let word = prop_oneof![
        4 => 0..9_u32,
        2 => 0..64_u32,
        1 => Just(IOVA as u32),
        1 => any::<u32>(),
    ];
    (prop_oneof![0..50_u32, Just(48), any::<u32>()], prop::array::uniform11(word)).prop_map(
        |(size, rest)| {
            let mut words = [size; 12];
            words[1..].copy_from_slice(&rest);
            words
        },
    )
}

/// Where the engine copies from or to: memory, and registers, of which those of the channel do something.
fn place() -> impl Strategy<Value = u64> {
    prop_oneof![
        3 => (0..0x1_0000_u64).prop_map(|at| IOVA + at),
        3 => (0..3_u64, 0..0xc0_u64).prop_map(|(at, register)| REGISTERS + (at << 16) + register),
        1 => any::<u64>(),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let data = prop::collection::vec(any::<u8>(), 0..24);
    prop_oneof![
        4 => (region(), offset(), 0..300_usize)
            .prop_map(|(region, offset, len)| Op::Read { region, offset, len }),
        6 => (region(), offset(), data)
            .prop_map(|(region, offset, data)| Op::Write { region, offset, data }),
        // Every command of devices, groups, containers and iommufd, on each file.
        6 => (0..4_usize, 0x3b60..0x3b98_u64, words())
            .prop_map(|(file, command, words)| Op::Ioctl { file, command, words }),
        1 => any::<bool>().prop_map(|by_group| Op::Reopen { by_group }),
        1 => (0..5_u64, 0..6_u64, 0..3_u64).prop_map(|(offset, len, at)| Op::Export {
            offset: offset << 12,
            len: len << 12,
            at: REGISTERS + (at << 16),
        }),
        3 => (place(), place(), 0..20_u64, 0..4_u16)
            .prop_map(|(from, to, len, count)| Op::Copy { from, to, len, count }),
        2 => (0..5_u32, 0..0x40_u32, 0..2_u32, any::<bool>())
            .prop_map(|(index, flags, start, eventfd)| Op::Irq { index, flags, start, eventfd }),
        1 => Just(Op::Signal),
        1 => (0..4_u16, any::<bool>()).prop_map(|(count, open)| Op::NumVfs { count, open }),
    ]
}

fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        softiommu::install(softiommu::Machine::from_toml(MACHINE).unwrap()).unwrap();
    });
}

fn open(path: &str) -> File {
    File::options().read(true).write(true).open(path).unwrap()
}

fn ioctl(file: &File, command: u64, words: &mut [u32]) -> i32 {
    // SAFETY: room for every struct of these commands; addresses in them are checked as the kernel does.
    unsafe { libc::ioctl(file.as_raw_fd(), command, words.as_mut_ptr()) }
}

/// The program's descriptors, without those far up, which are the machine's.
fn descriptors() -> Vec<i32> {
    // SAFETY: asks for a flag.
    (0..500).filter(|fd| unsafe { libc::fcntl(*fd, libc::F_GETFD) } >= 0).collect()
}

/// Closes what commands have made.
fn close_new(known: &[i32]) {
    for fd in descriptors().into_iter().filter(|fd| !known.contains(fd)) {
        // SAFETY: nobody else has opened any meanwhile.
        unsafe { libc::close(fd) };
    }
}

/// A bound, attached device copies.
fn works(memory: &File) {
    let (iommu, device) = (open("/dev/iommu"), open("/dev/vfio/devices/vfio0"));
    let mut bind = [16, 0, iommu.as_raw_fd() as u32, 0];
    let bound = ioctl(&device, 0x3b76, &mut bind);
    assert_eq!(bound, 0, "bind: {}", std::io::Error::last_os_error());
    let mut alloc = [12, 0, 0];
    assert_eq!(ioctl(&iommu, 0x3b81, &mut alloc), 0);
    let (size, fd) = (64, memory.as_raw_fd() as u32);
    let mut map = [48, 7, alloc[2], fd, 0, 0, size << 10, 0, IOVA as u32, 0, 0, 0];
    assert_eq!(ioctl(&iommu, 0x3b8f, &mut map), 0, "{}", std::io::Error::last_os_error());
    assert_eq!(ioctl(&device, 0x3b77, &mut [12, 0, alloc[2]]), 0);
    device.write_all_at(&[0b110, 0], CONFIG + 4).unwrap();
    let descriptor = [16, IOVA + 0x1000, IOVA + 0x2000, 0];
    memory.write_all_at(&descriptor.map(u64::to_le_bytes).concat(), 0).unwrap();
    memory.write_all_at(b"after all of it!", 0x1000).unwrap();
    memory.write_all_at(&[0; 16], 0x2000).unwrap();
    device.write_all_at(&IOVA.to_le_bytes(), 0x90).unwrap();
    device.write_all_at(&[1, 0], 0x86).unwrap();
    let mut status = [4; 8];
    while [0, 4].contains(&(status[0] & 7)) {
        device.read_exact_at(&mut status, 0x88).unwrap();
    }
    let mut copied = [0; 16];
    memory.read_exact_at(&mut copied, 0x2000).unwrap();
    assert_eq!(&copied, b"after all of it!");
}

fn group() -> String {
    let link = fs::read_link("/sys/bus/pci/devices/0000:aa:00.0/iommu_group").unwrap();
    format!("/dev/vfio/{}", link.file_name().unwrap().to_str().unwrap())
}

fn cases() -> u32 {
    std::env::var("SOFTIOMMU_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(150)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases()))]

    #[test]
    fn nothing_breaks(ops in prop::collection::vec(op(), 1..60)) {
        install();
        // SAFETY: a plain system call; the descriptor is ours.
        let memory = unsafe { File::from_raw_fd(libc::memfd_create(c"memory".as_ptr(), 0)) };
        memory.set_len(1 << 16).unwrap();
        let known = descriptors();
        let (iommu, container) = (open("/dev/iommu"), open("/dev/vfio/vfio"));
        let mut other: Option<File> = None;
        let mut device = Some(open("/dev/vfio/devices/vfio0"));
        let mut alloc = [12, 0, 0];
        ioctl(&iommu, 0x3b81, &mut alloc);
        let bind = |device: &File| {
            ioctl(device, 0x3b76, &mut [16, 0, iommu.as_raw_fd() as u32, 0]);
            ioctl(device, 0x3b77, &mut [12, 0, alloc[2]]);
        };
        bind(device.as_ref().unwrap());
        let map_file = |fd: i32, len: u64, iova: u64| {
            let mut map =
                [48, 7, alloc[2], fd as u32, 0, 0, len as u32, 0, iova as u32, 0, 0, 0];
            ioctl(&iommu, 0x3b8f, &mut map);
        };
        map_file(memory.as_raw_fd(), 1 << 16, IOVA);
        // SAFETY: a plain system call; the descriptor is ours.
        let event = unsafe { File::from_raw_fd(libc::eventfd(0, libc::EFD_NONBLOCK)) };
        for op in ops {
            let current = device.as_ref().unwrap();
            match op {
                Op::Read { region, offset, len } => {
                    let at = region << 40 | offset & ((1 << 40) - 1);
                    let _ = current.read_at(&mut vec![0; len], at);
                }
                Op::Write { region, offset, data } => {
                    let at = region << 40 | offset & ((1 << 40) - 1);
                    let _ = current.write_at(&data, at);
                }
                Op::Ioctl { file, command, mut words } => {
                    let file = match file {
                        0 => &iommu,
                        1 => &container,
                        2 => other.as_ref().unwrap_or(current),
                        _ => current,
                    };
                    ioctl(file, command, &mut words);
                }
                Op::Export { offset, len, at } => {
                    let mut export =
                        [40, 1 << 16 | DMA_BUF, 0, 0, 0, 1, offset as u32, 0, len as u32, 0];
                    let buf = ioctl(current, 0x3b75, &mut export);
                    map_file(buf, len, at);
                    if buf >= 0 {
                        // SAFETY: nobody else has it.
                        unsafe { libc::close(buf) };
                    }
                }
                Op::Copy { from, to, len, count } => {
                    let descriptor = [len, from, to, IOVA].map(u64::to_le_bytes).concat();
                    memory.write_all_at(&descriptor, 0).unwrap();
                    let _ = current.write_at(&[0b110, 0], CONFIG + 4);
                    let _ = current.write_at(&IOVA.to_le_bytes(), 0x90);
                    let _ = current.write_at(&count.to_le_bytes(), 0x86);
                }
                Op::Irq { index, flags, start, eventfd } => {
                    let fd = if eventfd { event.as_raw_fd() } else { -1 };
                    ioctl(current, 0x3b6e, &mut [24, flags, index, start, 1, fd as u32]);
                }
                Op::NumVfs { count, open } => {
                    let _ = fs::write(NUM_VFS, count.to_string());
                    if open {
                        let vf = format!("/dev/vfio/devices/vfio{count}");
                        other = File::options().read(true).write(true).open(vf).ok();
                        other.iter().for_each(bind);
                    }
                }
                Op::Signal => {
                    let _ = std::io::Write::write(&mut &event, &1_u64.to_ne_bytes());
                }
                Op::Reopen { by_group: false } => {
                    drop((device.take(), other.take()));
                    device = Some(open("/dev/vfio/devices/vfio0"));
                    bind(device.as_ref().unwrap());
                }
                Op::Reopen { by_group: true } => {
                    // A device that is bound keeps its group from being opened.
                    other = File::options().read(true).write(true).open(group()).ok();
                }
            }
        }
        drop((device, other, iommu, container, event));
        fs::write(NUM_VFS, "0").unwrap();
        close_new(&known);
        works(&memory);
    }
}
