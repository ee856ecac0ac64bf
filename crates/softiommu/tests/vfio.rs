//! A device of the default machine, driven as a program does that knows nothing of us: `/dev/iommu` through a client
//! crate, the VFIO cdev through the C library.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use iommufd_ioctls::{IommuFd, IommufdIoas};

const DEVICE_GET_INFO: u64 = 0x3b6b;
const DEVICE_GET_REGION_INFO: u64 = 0x3b6c;
const DEVICE_GET_IRQ_INFO: u64 = 0x3b6d;
const DEVICE_SET_IRQS: u64 = 0x3b6e;
const DEVICE_RESET: u64 = 0x3b6f;
const DEVICE_FEATURE: u64 = 0x3b75;
const BIND: u64 = 0x3b76;
const ATTACH: u64 = 0x3b77;
const DETACH: u64 = 0x3b78;

const CONFIG: u64 = 7 << 40;
const CHANNEL: u64 = 0x80;
const IOVA: u64 = 0x4000_0000;

fn install() {
    static MACHINE: std::sync::Once = std::sync::Once::new();
    // Tests of one process share the machine, and each wants a device.
    let mut machine = "[[iommu]]\nname = \"s\"\nmodel = \"smmuv3\"\n".to_owned();
    for n in 0..13 {
        let device = format!("[[device]]\nname = \"d{n}\"\nmodel = \"ioat\"\niommu = \"s\"\n");
        machine += &device;
    }
    let machine = softiommu::Machine::from_toml(&machine).unwrap();
    MACHINE.call_once(|| softiommu::install(machine).unwrap());
}

fn ioctl<const N: usize>(fd: &impl AsRawFd, cmd: u64, words: &mut [u32; N]) -> Result<(), i32> {
    // SAFETY: the calls below give structs of as many words as their first says.
    match unsafe { libc::ioctl(fd.as_raw_fd(), cmd, words.as_mut_ptr()) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error().raw_os_error().unwrap()),
    }
}

/// A DMA engine, bound and attached to an IOAS that maps 1 MiB of memory at `IOVA`.
struct Engine {
    device: File,
    id: u32,
    ioas: IommufdIoas,
    ram: File,
}

fn open(n: u32) -> File {
    install();
    File::options().read(true).write(true).open(format!("/dev/vfio/devices/vfio{n}")).unwrap()
}

fn bind(device: &File, iommufd: RawFd) -> Result<u32, i32> {
    let mut bind = [16, 0, iommufd as u32, 0];
    ioctl(device, BIND, &mut bind).map(|()| bind[3])
}

impl Engine {
    fn new(n: u32) -> Self {
        let device = open(n);
        let iommu = Arc::new(IommuFd::new().unwrap());
        let id = bind(&device, iommu.as_raw_fd()).unwrap();
        let ioas = IommufdIoas::new(iommu).unwrap();
        // SAFETY: a plain system call with a C string; the descriptor is ours.
        let ram =
            unsafe { File::from_raw_fd(libc::memfd_create(c"ram".as_ptr(), libc::MFD_CLOEXEC)) };
        ram.set_len(1 << 20).unwrap();
        ioas.map_file(ram.as_raw_fd(), 0, 1 << 20, IOVA, true).unwrap();
        ioctl(&device, ATTACH, &mut [12, 0, ioas.id()]).unwrap();
        // Memory space, bus master.
        device.write_at(&[0b110, 0], CONFIG + 4).unwrap();
        Self { device, id, ioas, ram }
    }

    fn put(&self, offset: u64, bytes: &[u8]) {
        self.ram.write_all_at(bytes, offset).unwrap();
    }

    fn get<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.ram.read_exact_at(&mut bytes, offset).unwrap();
        bytes
    }

    fn status(&self) -> u64 {
        let mut status = [0; 8];
        self.device.read_exact_at(&mut status, CHANNEL + 8).unwrap();
        u64::from_le_bytes(status) & 7
    }

    /// A part of its BAR 0 for the DMA of other devices.
    fn export(&self, offset: u64, len: u64) -> Result<File, i32> {
        self.export_parts(0, &[(offset, len)])
    }

    fn export_parts(&self, region: u32, parts: &[(u64, u64)]) -> Result<File, i32> {
        const DMA_BUF: u32 = 11;
        let head = [24 + 16 * parts.len() as u32, 1 << 16 | DMA_BUF, region, 0, 0];
        let mut bytes = [head.as_slice(), &[parts.len() as u32]].concat();
        for (offset, len) in parts {
            let words = [*offset, *len].map(|word| [word as u32, (word >> 32) as u32]);
            bytes.extend(words.concat());
        }
        // SAFETY: the struct, with as many ranges as it says.
        match unsafe { libc::ioctl(self.device.as_raw_fd(), DEVICE_FEATURE, bytes.as_mut_ptr()) } {
            -1 => Err(std::io::Error::last_os_error().raw_os_error().unwrap()),
            // SAFETY: a new descriptor, of nobody else.
            fd => Ok(unsafe { File::from_raw_fd(fd) }),
        }
    }

    /// A register of its channel.
    fn channel(&self, register: u64) -> u64 {
        let mut value = [0; 8];
        self.device.read_exact_at(&mut value, CHANNEL + register).unwrap();
        u64::from_le_bytes(value)
    }

    /// One copy, with a descriptor at the beginning of the memory; how it ended.
    fn copy(&self, from: u64, to: u64, len: u32, interrupt: bool) -> u64 {
        let mut descriptor = [0u64; 8];
        descriptor[..4].copy_from_slice(&[
            u64::from(len) | u64::from(interrupt) << 32,
            from,
            to,
            IOVA,
        ]);
        self.put(0, &descriptor.map(u64::to_le_bytes).concat());
        self.device.write_all_at(&[0x20], CHANNEL + 4).unwrap();
        self.device.write_all_at(&[0x08], 3).unwrap();
        self.device.write_all_at(&IOVA.to_le_bytes(), CHANNEL + 0x10).unwrap();
        self.device.write_all_at(&1u16.to_le_bytes(), CHANNEL).unwrap();
        self.device.write_all_at(&1u16.to_le_bytes(), CHANNEL + 6).unwrap();
        while self.status() == 0 {
            std::thread::yield_now();
        }
        self.status()
    }
}

const DONE: u64 = 1;
const HALTED: u64 = 3;
const ARMED: u64 = 4;

#[test]
fn a_copy_goes_through_the_iommu() {
    let engine = Engine::new(0);
    assert!(engine.id > 0);
    engine.put(0x8000, b"from one page to another");
    assert_eq!(engine.copy(IOVA + 0x8000, IOVA + 0xfff0, 24, false), DONE);
    assert_eq!(&engine.get(0xfff0), b"from one page to another");
    // What is not mapped any more is not reached.
    engine.ioas.unmap(IOVA, 1 << 20).unwrap();
    engine.ioas.map_file(engine.ram.as_raw_fd(), 0, 1 << 12, IOVA, true).unwrap();
    assert_eq!(engine.copy(IOVA + 0x8000, IOVA + 64, 24, false), HALTED);
    let mut error = [0; 4];
    engine.device.read_exact_at(&mut error, CHANNEL + 0x28).unwrap();
    assert_eq!(u32::from_le_bytes(error), 1 << 8, "reading the source");
    // Nor is anything once it is detached.
    ioctl(&engine.device, DETACH, &mut [8, 0]).unwrap();
    assert_eq!(engine.copy(IOVA, IOVA + 64, 8, false), HALTED);
}

/// What DPDK's driver relies on beside copies.
#[test]
fn an_engine_is_armed_by_a_chain_and_fills() {
    let engine = Engine::new(6);
    assert_eq!(engine.status(), HALTED);
    engine.device.write_all_at(&IOVA.to_le_bytes(), CHANNEL + 0x10).unwrap();
    assert_eq!(engine.status(), ARMED);
    let fill = [0x14 | 1 << 56, 0x0807_0605_0403_0201, IOVA + 0x5000, IOVA, 0, 0, 0, 0u64];
    engine.put(0, &fill.map(u64::to_le_bytes).concat());
    engine.device.write_all_at(&1u16.to_le_bytes(), CHANNEL + 6).unwrap();
    while engine.status() != DONE {
        std::thread::yield_now();
    }
    let filled: [u8; 21] = engine.get(0x5000);
    assert_eq!(filled, [1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 0]);
}

/// Peer to peer: registers of one device in the IOAS of another.
#[test]
fn the_registers_of_a_device_are_reached_by_another() {
    const PEER: u64 = 0x7000_0000;
    const CHAINADDR: u64 = 0x10;
    let (engine, peer) = (Engine::new(8), Engine::new(9));
    let there = PEER + CHANNEL + CHAINADDR;
    let map = |buf: &File| engine.ioas.map_file(buf.as_raw_fd(), 0, 0x4000, PEER, true);
    let refused = |buf: &File| map(buf).is_err();
    let buf = peer.export(0, 0x4000).unwrap();
    map(&buf).unwrap();
    // Written, and read back.
    engine.put(0x8000, &0x1234_5000_u64.to_le_bytes());
    assert_eq!(engine.copy(IOVA + 0x8000, there, 8, false), DONE);
    assert_eq!(peer.channel(CHAINADDR), 0x1234_5000);
    assert_eq!(engine.copy(there, IOVA + 0x9000, 8, false), DONE);
    assert_eq!(u64::from_le_bytes(engine.get(0x9000)), 0x1234_5000);
    // Across pages, into registers that are not there.
    assert_eq!(engine.copy(IOVA + 0x8000, PEER + 0xff4, 32, false), DONE);
    assert_eq!(engine.copy(PEER + 0xff4, IOVA + 0x9000, 32, false), DONE);
    assert_eq!(engine.get(0x9000), [0; 32]);
    // As memory of its own: by doorbell and all, the peer copies.
    peer.put(0x8000, b"asked by a peer");
    let copy = [15, IOVA + 0x8000, IOVA + 0x9000, IOVA, 0, 0, 0, 0u64];
    peer.put(0, &copy.map(u64::to_le_bytes).concat());
    peer.device.write_all_at(&IOVA.to_le_bytes(), CHANNEL + CHAINADDR).unwrap();
    peer.device.write_all_at(&1u16.to_le_bytes(), CHANNEL).unwrap();
    engine.put(0x8000, &1u16.to_le_bytes());
    assert_eq!(engine.copy(IOVA + 0x8000, PEER + CHANNEL + 6, 2, false), DONE);
    while peer.status() != DONE {
        std::thread::yield_now();
    }
    assert_eq!(&peer.get(0x9000), b"asked by a peer");
    // Not beyond what was exported, nor what is the host's.
    assert_eq!(engine.copy(there, PEER + 0x4000, 8, false), HALTED);
    assert_eq!(peer.export(0x4000, 0x1000).err(), Some(libc::EINVAL));
    assert_eq!(peer.export(0x800, 0x1000).err(), Some(libc::EINVAL));
    assert_eq!(peer.export(0, 0).err(), Some(libc::EINVAL));
    assert_eq!(peer.export_parts(0, &[]).err(), Some(libc::EINVAL));
    assert_eq!(peer.export_parts(4, &[(0, 0x1000)]).err(), Some(libc::EINVAL), "the MSI-X table");
    assert_eq!(peer.export_parts(7, &[(0, 0x1000)]).err(), Some(libc::ENODEV));
    let apart = peer.export_parts(0, &[(0, 0x1000), (0x2000, 0x1000)]).unwrap();
    assert!(engine.ioas.map_file(apart.as_raw_fd(), 0, 0x1000, PEER * 2, true).is_err());
    // Once it does not decode its BARs they are gone, from where they were mapped for good.
    peer.device.write_all_at(&[0b100, 0], CONFIG + 4).unwrap();
    assert_eq!(engine.copy(there, IOVA + 0x9000, 8, false), HALTED);
    assert!(refused(&buf));
    peer.device.write_all_at(&[0b110, 0], CONFIG + 4).unwrap();
    assert_eq!(engine.copy(there, IOVA + 0x9000, 8, false), HALTED);
    engine.ioas.unmap(PEER, 0x4000).unwrap();
    map(&buf).unwrap();
    assert_eq!(engine.copy(there, IOVA + 0x9000, 8, false), DONE);
    // So with a reset, and with the end of the file.
    ioctl(&peer.device, DEVICE_RESET, &mut [0]).unwrap();
    assert_eq!(engine.copy(there, IOVA + 0x9000, 8, false), HALTED);
    engine.ioas.unmap(PEER, 0x4000).unwrap();
    map(&buf).unwrap();
    drop(peer);
    assert_eq!(engine.copy(there, IOVA + 0x9000, 8, false), HALTED);
    assert!(refused(&buf));
}

/// Two devices that reset each other, and one that resets itself, by DMA: none waits for ever.
#[test]
fn devices_that_reset_each_other_come_to_an_end() {
    const PEER: u64 = 0x7000_0000;
    let engines = [Engine::new(10), Engine::new(11)];
    let bufs = engines.each_ref().map(|engine| engine.export(0, 0x4000).unwrap());
    for to in [[1, 0], [0, 1]] {
        for (engine, to) in engines.iter().zip(to) {
            engine.ioas.map_file(bufs[to].as_raw_fd(), 0, 0x4000, PEER, true).unwrap();
            // A reset is written to CHANCMD.
            engine.put(0x8000, &[0x20]);
            let copy = [1, IOVA + 0x8000, PEER + CHANNEL + 4, IOVA, 0, 0, 0, 0u64];
            engine.put(0, &copy.map(u64::to_le_bytes).concat());
        }
        for _ in 0..200 {
            for engine in &engines {
                engine.device.write_all_at(&IOVA.to_le_bytes(), CHANNEL + 0x10).unwrap();
                engine.device.write_all_at(&0x40u16.to_le_bytes(), CHANNEL + 6).unwrap();
            }
        }
        for engine in &engines {
            ioctl(&engine.device, DEVICE_RESET, &mut [0]).unwrap();
            engine.ioas.unmap(PEER, 0x4000).unwrap_or_default();
            assert_eq!(engine.copy(IOVA + 0x8000, IOVA + 0x9000, 8, false), DONE);
        }
    }
}

/// As drivers of 32 bits access them, and VMMs that split what a guest does.
#[test]
fn long_registers_are_read_and_written_in_parts() {
    const CHAINADDR: u64 = CHANNEL + 0x10;
    let engine = Engine::new(12);
    for (at, half) in [(CHAINADDR, 0x89ab_cd00_u32), (CHAINADDR + 4, 0x0123_4567)] {
        engine.device.write_all_at(&half.to_le_bytes(), at).unwrap();
    }
    let mut whole = [0; 8];
    engine.device.read_exact_at(&mut whole, CHAINADDR).unwrap();
    assert_eq!(u64::from_le_bytes(whole), 0x0123_4567_89ab_cd00);
    for len in [1, 2, 4] {
        for (n, part) in (0..).step_by(len).zip(whole.chunks_exact(len)) {
            let mut seen = [0; 4];
            engine.device.read_exact_at(&mut seen[..len], CHAINADDR + n).unwrap();
            assert_eq!(&seen[..len], part, "{len} bytes at {n}");
        }
    }
}

#[test]
fn a_message_signals_its_eventfd() {
    let engine = Engine::new(1);
    let mut event = eventfd();
    // MSI-X, one eventfd, trigger.
    let mut set = [24, 1 << 2 | 1 << 5, 2, 0, 1, event.as_raw_fd() as u32];
    ioctl(&engine.device, DEVICE_SET_IRQS, &mut set).unwrap();
    assert_eq!(engine.copy(IOVA + 0x1000, IOVA + 0x2000, 8, true), DONE);
    let mut count = [0; 8];
    // The message comes after the status that was waited for.
    let mut poll = libc::pollfd { fd: event.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one pollfd.
    assert_eq!(unsafe { libc::poll(&raw mut poll, 1, -1) }, 1);
    event.read_exact(&mut count).unwrap();
    assert_eq!(u64::from_ne_bytes(count), 1);
    // By software, with a byte for each.
    let mut trigger = [21, 1 << 1 | 1 << 5, 2, 0, 1, 1];
    ioctl(&engine.device, DEVICE_SET_IRQS, &mut trigger).unwrap();
    event.read_exact(&mut count).unwrap();
    // Off: neither.
    ioctl(&engine.device, DEVICE_SET_IRQS, &mut [20, 1 | 1 << 5, 2, 0, 0]).unwrap();
    assert_eq!(engine.copy(IOVA + 0x1000, IOVA + 0x2000, 8, true), DONE);
    assert_eq!(ioctl(&engine.device, DEVICE_SET_IRQS, &mut trigger), Err(libc::EINVAL));
    assert!(event.read_exact(&mut count).is_err());
    let mut no_eventfd = [24, 1 << 2 | 1 << 5, 2, 0, 1, engine.ram.as_raw_fd() as u32];
    assert_eq!(ioctl(&engine.device, DEVICE_SET_IRQS, &mut no_eventfd), Err(libc::EINVAL));
}

#[test]
fn the_interrupt_line_is_a_level() {
    const INTX: u32 = 0;
    let engine = Engine::new(7);
    let event = eventfd();
    let mut set = [24, 1 << 2 | 1 << 5, INTX, 0, 1, event.as_raw_fd() as u32];
    ioctl(&engine.device, DEVICE_SET_IRQS, &mut set).unwrap();
    let unmask =
        || ioctl(&engine.device, DEVICE_SET_IRQS, &mut [20, 1 | 1 << 4, INTX, 0, 1]).unwrap();
    let signalled = || (&event).read_exact(&mut [0; 8]).is_ok();
    let pending = || {
        let mut status = [0; 2];
        engine.device.read_exact_at(&mut status, CONFIG + 6).unwrap();
        status[0] & 1 << 3 != 0
    };
    // With the line, and not with MSI-X.
    engine.device.write_all_at(&[1], 3).unwrap();
    let copy = [8 | 1 << 32, IOVA + 0x1000, IOVA + 0x2000, IOVA, 0, 0, 0, 0u64];
    engine.put(0, &copy.map(u64::to_le_bytes).concat());
    engine.device.write_all_at(&IOVA.to_le_bytes(), CHANNEL + 0x10).unwrap();
    engine.device.write_all_at(&1u16.to_le_bytes(), CHANNEL).unwrap();
    engine.device.write_all_at(&1u16.to_le_bytes(), CHANNEL + 6).unwrap();
    while !pending() {
        std::thread::yield_now();
    }
    assert!(signalled());
    assert!(!signalled(), "it is masked");
    unmask();
    assert!(signalled(), "and it is still asserted");
    // By an eventfd, as KVM does at the end of an interrupt: whoever signals it need not know of VFIO.
    let mut resample = eventfd();
    let by_eventfd = |action: u32, fd: i32| {
        let mut set = [24, 1 << 2 | action, INTX, 0, 1, fd as u32];
        ioctl(&engine.device, DEVICE_SET_IRQS, &mut set)
    };
    assert_eq!(by_eventfd(1 << 3, resample.as_raw_fd()), Err(libc::ENOTTY), "they do not mask");
    assert_eq!(by_eventfd(1 << 4, engine.ram.as_raw_fd()), Err(libc::EINVAL), "no eventfd");
    assert!(!signalled(), "it is still masked");
    by_eventfd(1 << 4, resample.as_raw_fd()).unwrap();
    assert_eq!(by_eventfd(1 << 4, event.as_raw_fd()), Err(libc::EBUSY), "one");
    for _ in 0..3 {
        resample.write_all(&1_u64.to_ne_bytes()).unwrap();
        while !signalled() {
            std::thread::yield_now();
        }
        assert!(resample.read(&mut [0; 8]).is_err(), "what it was signalled with is taken");
    }
    by_eventfd(1 << 4, -1).unwrap();
    resample.write_all(&1_u64.to_ne_bytes()).unwrap();
    unmask();
    assert!(signalled() && !signalled(), "once, and not by the eventfd");
    resample.read_exact(&mut [0; 8]).unwrap();
    // Acknowledged, in the device.
    engine.device.write_all_at(&[0b11], 3).unwrap();
    unmask();
    assert!(!signalled() && !pending());
}

fn eventfd() -> File {
    // SAFETY: a plain system call; the descriptor is ours.
    unsafe { File::from_raw_fd(libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK)) }
}

/// As the kernel, which restores configuration space: DPDK enables bus mastering before it resets.
#[test]
fn a_reset_leaves_configuration_space() {
    let engine = Engine::new(5);
    engine.put(0x8000, b"after a reset");
    ioctl(&engine.device, DEVICE_RESET, &mut [0]).unwrap();
    assert_eq!(engine.copy(IOVA + 0x8000, IOVA + 0x9000, 13, false), DONE);
    assert_eq!(&engine.get(0x9000), b"after a reset");
    // Function level: Initiate, in Device Control.
    engine.device.write_all_at(&[0x10, 0xa8], CONFIG + 0x68).unwrap();
    assert_eq!(engine.status(), HALTED);
    assert_eq!(engine.copy(IOVA + 0x8000, IOVA + 0xa000, 13, false), DONE);
}

#[test]
fn a_device_has_one_owner_and_comes_back_clean() {
    let device = open(2);
    let mut info = [24, 0, 0, 0, 0, 0];
    assert_eq!(ioctl(&device, DEVICE_GET_INFO, &mut info), Err(libc::EINVAL), "not bound");
    assert!(device.read_at(&mut [0; 4], CONFIG).is_err());
    assert_eq!(bind(&device, -1), Err(libc::EINVAL));
    assert_eq!(bind(&device, device.as_raw_fd()), Err(libc::EBADFD));
    let iommu = IommuFd::new().unwrap();
    bind(&device, iommu.as_raw_fd()).unwrap();
    assert_eq!(bind(&device, iommu.as_raw_fd()), Err(libc::EINVAL), "once");
    let other = open(2);
    assert_eq!(bind(&other, iommu.as_raw_fd()), Err(libc::EINVAL), "one file");
    ioctl(&device, DEVICE_GET_INFO, &mut info).unwrap();
    assert_eq!(info[1..4], [0b11, 9, 5]);
    device.write_all_at(&[0b110, 0], CONFIG + 4).unwrap();
    drop(device);
    bind(&other, iommu.as_raw_fd()).unwrap();
    let mut command = [0; 2];
    other.read_exact_at(&mut command, CONFIG + 4).unwrap();
    assert_eq!(command, [0b10, 0], "as after a reset");
}

#[test]
fn what_the_device_is() {
    let engine = Engine::new(3);
    let mut id = [0; 4];
    engine.device.read_exact_at(&mut id, CONFIG).unwrap();
    assert_eq!(id, [0x86, 0x80, 0x21, 0x20]);
    let mut region = [32, 0, 0, 0, 0, 0, 0, 0];
    ioctl(&engine.device, DEVICE_GET_REGION_INFO, &mut region).unwrap();
    assert_eq!((region[1], region[4]), (0b11, 16 << 10));
    region[2] = 9;
    assert_eq!(ioctl(&engine.device, DEVICE_GET_REGION_INFO, &mut region), Err(libc::EINVAL));
    let mut irq = [16, 0, 2, 0];
    ioctl(&engine.device, DEVICE_GET_IRQ_INFO, &mut irq).unwrap();
    assert_eq!((irq[1], irq[3]), (1, 1));
    ioctl(&engine.device, DEVICE_RESET, &mut [0]).unwrap();
    assert_eq!(ioctl(&engine.device, DEVICE_FEATURE, &mut [8, 1 << 16]), Err(libc::ENOTTY));
    // Beyond a region there is nothing; inside it, as much as there is.
    assert!(engine.device.read_at(&mut [0; 4], 16 << 10).is_err());
    assert_eq!(engine.device.read_at(&mut [0; 64], CONFIG + 4096 - 8).unwrap(), 8);
    assert!(engine.device.write_at(&[0; 4], 12 << 40).is_err());
}

#[test]
fn the_readme_lists_every_ioctl_with_what_is_true() {
    let engine = Engine::new(4);
    for &(name, command) in uapi::nr::DEVICE_COMMANDS {
        let readme = include_str!("../../../README.md");
        let row = readme.lines().find(|line| line.starts_with(&format!("| `{name}` |")));
        let state = row.and_then(|row| row.split('|').nth(2)).map(str::trim);
        // No argument: what it gets as far as says whether it is known.
        let answer = ioctl(&engine.device, command.into(), &mut [0; 8]);
        assert_eq!(
            state.map(|state| state == "missing"),
            Some(answer == Err(libc::ENOTTY)),
            "{name} is {state:?} in the README, and answers {answer:?}"
        );
    }
}
