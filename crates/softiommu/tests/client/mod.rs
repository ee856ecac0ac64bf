//! What every driver in user space begins with: a device that is bound and attached, memory that it reaches, its
//! registers, its interrupts.
#![allow(dead_code, reason = "each test file uses a part")]

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use iommufd_ioctls::{IommuFd, IommufdIoas};

const GROUP_GET_DEVICE_FD: u64 = 0x3b6a;
const DEVICE_SET_IRQS: u64 = 0x3b6e;
const DEVICE_RESET: u64 = 0x3b6f;
const BIND: u64 = 0x3b76;
const ATTACH: u64 = 0x3b77;
const DETACH: u64 = 0x3b78;
const CONFIG: u64 = 7 << 40;

/// Where the memory is for the device, and how much there is.
pub(crate) const IOVA: u64 = 0x4000_0000;
pub(crate) const RAM: u64 = 4 << 20;

/// `VFIO_PCI_*_IRQ_INDEX`.
pub(crate) const INTX: u32 = 0;
pub(crate) const MSI: u32 = 1;
pub(crate) const MSIX: u32 = 2;

/// An ioctl whose argument is a number, or points to what the command wants.
pub(crate) fn call(fd: &impl AsRawFd, cmd: u64, argument: u64) -> Result<i32, i32> {
    // SAFETY: as promised by the tests.
    match unsafe { libc::ioctl(fd.as_raw_fd(), cmd, argument) } {
        -1 => Err(std::io::Error::last_os_error().raw_os_error().unwrap()),
        result => Ok(result),
    }
}

/// An ioctl with a struct of as many words as its first says.
fn ioctl(fd: &impl AsRawFd, cmd: u64, words: &mut [u32]) -> Result<(), i32> {
    call(fd, cmd, words.as_mut_ptr() as u64).map(drop)
}

/// A device of an open group, by its name and what may follow that.
pub(crate) fn device_of(group: &File, name: &str) -> Result<File, i32> {
    let name = std::ffi::CString::new(name).unwrap();
    let fd = call(group, GROUP_GET_DEVICE_FD, name.as_ptr() as u64)?;
    // SAFETY: a new descriptor, of nobody else.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// A file in memory.
pub(crate) fn memory_file(bytes: &[u8]) -> File {
    // SAFETY: a plain system call with a C string; the descriptor is ours.
    let file =
        unsafe { File::from_raw_fd(libc::memfd_create(c"file".as_ptr(), libc::MFD_CLOEXEC)) };
    file.write_all_at(bytes, 0).unwrap();
    file
}

/// A device, bound and attached to an IOAS that maps memory at [`IOVA`].
pub(crate) struct Client {
    device: File,
    ioas: IommufdIoas,
    ram: File,
}

impl Client {
    /// Takes `/dev/vfio/devices/vfioN`.
    pub(crate) fn new(n: usize) -> Self {
        Self::bind(n).unwrap()
    }

    /// As `new`; the errno of the bind if it is refused.
    pub(crate) fn bind(n: usize) -> Result<Self, i32> {
        Self::bind_with(n, None)
    }

    /// As `bind`, with a VF token.
    pub(crate) fn bind_with(n: usize, token: Option<&[u8; 16]>) -> Result<Self, i32> {
        let path = format!("/dev/vfio/devices/vfio{n}");
        let device = File::options().read(true).write(true).open(path).unwrap();
        let iommu = Arc::new(IommuFd::new().unwrap());
        let at = token.map_or(0, |token| token.as_ptr() as u64);
        let (flags, low, high) = (u32::from(token.is_some()), at as u32, (at >> 32) as u32);
        ioctl(&device, BIND, &mut [24, flags, iommu.as_raw_fd() as u32, 0, low, high])?;
        let ioas = IommufdIoas::new(iommu).unwrap();
        let ram = memory_file(&[]);
        ram.set_len(RAM).unwrap();
        ioas.map_file(ram.as_raw_fd(), 0, RAM, IOVA, true).unwrap();
        ioctl(&device, ATTACH, &mut [12, 0, ioas.id()]).unwrap();
        let client = Self { device, ioas, ram };
        client.enable();
        Ok(client)
    }

    /// An ioctl of the device.
    pub(crate) fn ioctl(&self, cmd: u64, words: &mut [u32]) -> Result<(), i32> {
        ioctl(&self.device, cmd, words)
    }

    /// Memory space, bus master.
    fn enable(&self) {
        self.device.write_all_at(&[0b110, 0], CONFIG + 4).unwrap();
    }

    /// Resets the function.
    pub(crate) fn reset(&self) {
        ioctl(&self.device, DEVICE_RESET, &mut [0]).unwrap();
        self.enable();
    }

    /// Takes a part of the memory away from the device, by offset; meanwhile there is none.
    pub(crate) fn unmap(&self, at: u64, len: u64) {
        self.ioas.unmap(IOVA, RAM).unwrap();
        let end = at + len;
        for (from, to) in [(0, at), (end, RAM)] {
            if from < to {
                let fd = self.ram.as_raw_fd();
                self.ioas.map_file(fd, from, to - from, IOVA + from, true).unwrap();
            }
        }
    }

    /// Takes an area away that is mapped as one.
    pub(crate) fn unmap_area(&self, at: u64, len: u64) {
        self.ioas.unmap(IOVA + at, len).unwrap();
    }

    /// Takes all memory away from the device.
    pub(crate) fn detach(&self) {
        ioctl(&self.device, DETACH, &mut [8, 0]).unwrap();
    }

    pub(crate) fn put(&self, offset: u64, bytes: &[u8]) {
        self.ram.write_all_at(bytes, offset).unwrap();
    }

    pub(crate) fn get(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.ram.read_exact_at(&mut bytes, offset).unwrap();
        bytes
    }

    pub(crate) fn get_array<const N: usize>(&self, offset: u64) -> [u8; N] {
        self.get(offset, N).try_into().unwrap()
    }

    pub(crate) fn config(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.device.read_exact_at(&mut bytes, CONFIG + at).unwrap();
        bytes
    }

    /// Reads registers of BAR 0.
    pub(crate) fn read<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.device.read_exact_at(&mut bytes, at).unwrap();
        bytes
    }

    pub(crate) fn read32(&self, at: u64) -> u32 {
        u32::from_le_bytes(self.read(at))
    }

    pub(crate) fn write(&self, at: u64, bytes: &[u8]) {
        self.device.write_all_at(bytes, at).unwrap();
    }

    pub(crate) fn write32(&self, at: u64, value: u32) {
        self.write(at, &value.to_le_bytes());
    }

    /// Has the first interrupts of a kind signal eventfds.
    pub(crate) fn enable_interrupts(&self, index: u32, count: u32) -> Vec<Event> {
        let events: Vec<_> = (0..count).map(|_| Event::new()).collect();
        let mut set = vec![20 + 4 * count, 1 << 2 | 1 << 5, index, 0, count];
        set.extend(events.iter().map(|event| event.0.as_raw_fd() as u32));
        ioctl(&self.device, DEVICE_SET_IRQS, &mut set).unwrap();
        events
    }

    pub(crate) fn disable_interrupts(&self, index: u32) {
        ioctl(&self.device, DEVICE_SET_IRQS, &mut [20, 1 | 1 << 5, index, 0, 0]).unwrap();
    }

    /// Unmasks the interrupt line, as who has handled an interrupt does.
    pub(crate) fn unmask_line(&self) {
        ioctl(&self.device, DEVICE_SET_IRQS, &mut [20, 1 | 1 << 4, INTX, 0, 1]).unwrap();
    }
}

/// An eventfd.
pub(crate) struct Event(File);

impl Event {
    fn new() -> Self {
        // SAFETY: a plain system call; the descriptor is ours.
        Self(unsafe { File::from_raw_fd(libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK)) })
    }

    /// How often it was signalled since it was asked last; 0 if it was not.
    pub(crate) fn count(&self) -> u64 {
        let mut count = [0; 8];
        (&self.0).read_exact(&mut count).map_or(0, |()| u64::from_ne_bytes(count))
    }

    /// Waits until it is signalled.
    pub(crate) fn wait(&self) -> u64 {
        let mut poll = libc::pollfd { fd: self.0.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one pollfd.
        assert_eq!(unsafe { libc::poll(&raw mut poll, 1, -1) }, 1);
        self.count()
    }
}

/// Numbers that look random (xorshift).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }
}
