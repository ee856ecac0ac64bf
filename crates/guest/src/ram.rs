//! Guest memory: sealed memfds at guest-physical addresses.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use pagetable::{OutOfMemory, TableMemory};
use parking_lot::{Mutex, RwLock};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags};
use smmuv3::Abort;

/// A contiguous part of guest memory.
pub struct Region {
    start: u64,
    len: u64,
    fd: OwnedFd,
    /// Where it begins in the file.
    offset: u64,
    words: NonNull<AtomicU64>,
}

// SAFETY: the mapping is this region's own until it is dropped, and it is only looked at as atomic words.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    /// Zeroed memory at the guest-physical addresses from `start` on; both are multiples of 4096.
    pub fn new(start: u64, len: u64) -> io::Result<Arc<Self>> {
        let fd =
            rustix::fs::memfd_create("guest", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        rustix::fs::ftruncate(&fd, len)?;
        // It can be read and written without a signal, by whoever has it.
        rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW)?;
        Self::map(start, len, fd, 0)
    }

    /// A part of the same memory at guest-physical addresses from `start` on: what a guest gives to a guest of its own.
    /// `range`, in this region, consists of pages.
    pub fn part(&self, range: Range<u64>, start: u64) -> io::Result<Arc<Self>> {
        let own = self.range();
        if range.start < own.start || range.end > own.end || range.is_empty() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let offset = self.offset + (range.start - own.start);
        Self::map(start, range.end - range.start, self.fd.try_clone()?, offset)
    }

    fn map(start: u64, len: u64, fd: OwnedFd, offset: u64) -> io::Result<Arc<Self>> {
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        let size = usize::try_from(len).map_err(|_| io::ErrorKind::OutOfMemory)?;
        // SAFETY: a new mapping where the kernel likes.
        let at = unsafe {
            rustix::mm::mmap(std::ptr::null_mut(), size, prot, MapFlags::SHARED, &fd, offset)
        }?;
        let words = NonNull::new(at.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Arc::new(Self { start, len, fd, offset, words }))
    }

    /// Its guest-physical addresses.
    pub fn range(&self) -> Range<u64> {
        self.start..self.start + self.len
    }

    /// The file that the memory is in.
    pub fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// Where the memory begins in its file.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    fn words(&self) -> &[AtomicU64] {
        // SAFETY: page-aligned, mapped for `len` bytes as long as `self` lives, and sealed, so that all of it is there.
        unsafe { std::slice::from_raw_parts(self.words.as_ptr(), (self.len / 8) as usize) }
    }

    fn word(&self, address: u64) -> Option<&AtomicU64> {
        let offset = address.checked_sub(self.start)?;
        self.words().get(usize::try_from(offset / 8).ok()?)
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`, which nobody can reach any more.
        let _ = unsafe { rustix::mm::munmap(self.words.as_ptr().cast(), self.len as usize) };
    }
}

/// All of a guest's memory: a first region, where an operating system takes its pages from, and others that come
/// and go.
pub struct GuestRam {
    first: Arc<Region>,
    others: RwLock<Vec<Arc<Region>>>,
    heap: Mutex<Heap>,
}

/// Free pieces by log2 of their size.
struct Heap {
    next: u64,
    free: BTreeMap<u8, Vec<u64>>,
}

impl GuestRam {
    /// Memory from `start` on.
    pub fn new(start: u64, len: u64) -> io::Result<Arc<Self>> {
        Ok(Self::of(Region::new(start, len)?))
    }

    /// This memory, in which nothing is in use.
    pub fn of(first: Arc<Region>) -> Arc<Self> {
        let heap = Mutex::new(Heap { next: first.start, free: BTreeMap::new() });
        Arc::new(Self { first, others: RwLock::default(), heap })
    }

    /// The first region.
    pub fn first(&self) -> &Arc<Region> {
        &self.first
    }

    /// Memory that is plugged in.
    pub fn plug(&self, region: Arc<Region>) {
        self.others.write().push(region);
    }

    /// Memory that goes; what reads it afterwards aborts.
    pub fn unplug(&self, region: &Arc<Region>) {
        self.others.write().retain(|other| !Arc::ptr_eq(other, region));
    }

    /// A page of 4 KiB of the first region for whatever the guest likes, zeroed.
    pub fn page(&self) -> Result<u64, OutOfMemory> {
        let mut pages = Vec::with_capacity(1);
        self.allocate(12, 1, &mut pages)?;
        let page = pages.pop().ok_or(OutOfMemory)?;
        self.table(page, 512)
            .ok_or(OutOfMemory)?
            .iter()
            .for_each(|w| w.store(0, Ordering::Relaxed));
        Ok(page)
    }

    /// The memory as a file, and the offset of an address in it.
    fn find<T>(&self, address: u64, f: impl FnOnce(&Region) -> Option<T>) -> Result<T, Abort> {
        if self.first.range().contains(&address) {
            return f(&self.first).ok_or(Abort);
        }
        let others = self.others.read();
        others.iter().find(|r| r.range().contains(&address)).and_then(|r| f(r)).ok_or(Abort)
    }

    /// Reads bytes, as a processor of the guest does.
    pub fn read(&self, address: u64, data: &mut [u8]) -> Result<(), Abort> {
        for (byte, at) in data.iter_mut().zip(address..) {
            let word = self.find(at, |r| r.word(at).map(|word| word.load(Ordering::Acquire)))?;
            *byte = word.to_ne_bytes()[(at & 7) as usize];
        }
        Ok(())
    }

    /// Writes bytes.
    pub fn write(&self, address: u64, data: &[u8]) -> Result<(), Abort> {
        for (byte, at) in data.iter().zip(address..) {
            let change = |word: u64| {
                let mut bytes = word.to_ne_bytes();
                bytes[(at & 7) as usize] = *byte;
                Some(u64::from_ne_bytes(bytes))
            };
            self.find(at, |r| {
                r.word(at)
                    .map(|word| word.fetch_update(Ordering::AcqRel, Ordering::Acquire, change))
            })?
            .map_err(|_| Abort)?;
        }
        Ok(())
    }

    /// Reads a little-endian word, aligned.
    pub fn load(&self, address: u64) -> Result<u64, Abort> {
        self.find(address, |r| r.word(address).map(|w| u64::from_le(w.load(Ordering::Acquire))))
    }

    /// Writes a little-endian word, aligned.
    pub fn store(&self, address: u64, value: u64) -> Result<(), Abort> {
        self.find(address, |r| r.word(address).map(|w| w.store(value.to_le(), Ordering::Release)))
    }
}

impl smmuv3::Memory for GuestRam {
    fn load(&self, address: u64) -> Result<u64, Abort> {
        Self::load(self, address)
    }

    fn compare_exchange(&self, address: u64, current: u64, new: u64) -> Result<u64, Abort> {
        let (current, new) = (current.to_le(), new.to_le());
        self.find(address, |r| {
            let word = r.word(address)?;
            let result = word.compare_exchange(current, new, Ordering::AcqRel, Ordering::Acquire);
            Some(u64::from_le(result.unwrap_or_else(|seen| seen)))
        })
    }

    fn read(&self, address: u64, data: &mut [u8]) -> Result<(), Abort> {
        Self::read(self, address, data)
    }

    fn write(&self, address: u64, data: &[u8]) -> Result<(), Abort> {
        Self::write(self, address, data)
    }
}

impl TableMemory for GuestRam {
    fn allocate(
        &self,
        size_log2: u8,
        count: usize,
        tables: &mut Vec<u64>,
    ) -> Result<(), OutOfMemory> {
        let mut heap = self.heap.lock();
        let before = tables.len();
        for _ in 0..count {
            let again = heap.free.entry(size_log2).or_default().pop();
            let address = again.or_else(|| {
                let address = heap.next.next_multiple_of(1 << size_log2);
                let end = address.checked_add(1 << size_log2)?;
                (end <= self.first.range().end).then(|| heap.next = end)?;
                Some(address)
            });
            let Some(address) = address else {
                heap.free.entry(size_log2).or_default().extend(tables.drain(before..));
                return Err(OutOfMemory);
            };
            tables.push(address);
        }
        Ok(())
    }

    fn free(&self, size_log2: u8, tables: &[u64]) {
        self.heap.lock().free.entry(size_log2).or_default().extend(tables);
    }

    fn table(&self, address: u64, entries: usize) -> Option<&[AtomicU64]> {
        let offset = address.checked_sub(self.first.start)?;
        let index = usize::try_from(offset / 8).ok()?;
        self.first.words().get(index..index.checked_add(entries)?)
    }
}

/// The memory as a [`File`], for who maps it.
impl TryFrom<&Region> for File {
    type Error = io::Error;

    fn try_from(region: &Region) -> io::Result<Self> {
        Ok(File::from(region.fd.as_fd().try_clone_to_owned()?))
    }
}
