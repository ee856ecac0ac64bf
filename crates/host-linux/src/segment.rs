//! Ways to reach the bytes of an object.

use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use host::{Fault, FilePart};
use rustix::fs::{Mode, OFlags, SealFlags, fcntl_get_seals};
use rustix::mm::{Advice, MapFlags, MprotectFlags, MremapFlags, ProtFlags};
use rustix::mm::{madvise, mmap, mprotect, mremap_fixed};

use crate::place::Place;
use crate::user_copy::{read_own, read_process, write_own, write_own_from, write_process};
use crate::vma::{Maps, Vma};

/// A stretch of an object that can be read and perhaps written.
#[derive(Debug)]
pub(crate) struct Segment {
    /// Bytes of the object that this reaches.
    pub(crate) range: Range<u64>,
    pub(crate) writable: bool,
    backing: Backing,
}

#[derive(Debug)]
enum Backing {
    Mapping(Mapping),
    /// The client's own mapping at `va`: only as long as it keeps it.
    Client {
        pid: u32,
        maps: Arc<Maps>,
        va: u64,
    },
}

/// A mapping of ours, in a place of ours.
#[derive(Debug)]
struct Mapping {
    place: Place,
    /// The object can never shrink, so plain loads and stores cannot fault.
    sealed: bool,
}

impl Segment {
    /// A duplicate of the shared mapping `vma` of this process.
    pub(crate) fn duplicate(vma: &Vma) -> Option<Self> {
        let len = (vma.range.end - vma.range.start) as usize;
        let place = Place::reserve(len)?;
        // SAFETY: an old size of 0 leaves the old mapping alone and makes a new
        // one of the same shared object in place of our own reservation.
        unsafe {
            mremap_fixed(
                vma.range.start as *mut _,
                0,
                len,
                MremapFlags::MAYMOVE,
                place.base() as *mut _,
            )
        }
        .ok()?;
        let mapping = Mapping::adopt(place, false);
        let writable = vma.writable || mapping.make_writable();
        let start = vma.offset;
        Some(Self::from_mapping(mapping, start, writable))
    }

    /// Our own mapping of the bytes `range` (page-aligned) of `fd`.
    pub(crate) fn of_file(fd: BorrowedFd<'_>, range: Range<u64>) -> Option<Self> {
        let len = usize::try_from(range.end - range.start).ok()?;
        let place = Place::reserve(len)?;
        let map = |prot| {
            // SAFETY: a new mapping in place of our own reservation.
            unsafe {
                mmap(
                    place.base() as *mut _,
                    len,
                    prot,
                    MapFlags::SHARED | MapFlags::NORESERVE | MapFlags::FIXED,
                    fd,
                    range.start,
                )
            }
        };
        let writable = map(ProtFlags::READ | ProtFlags::WRITE).is_ok();
        if !writable {
            map(ProtFlags::READ).ok()?;
        }
        // A hole of a hugetlb file may still find no page; a hole of a memfd does.
        let sealed = fcntl_get_seals(fd).is_ok_and(|seals| seals.contains(SealFlags::SHRINK))
            && rustix::fs::fstatfs(fd)
                .is_ok_and(|fs| fs.f_type as u64 == crate::memfile::TMPFS_MAGIC);
        let mapping = Mapping::adopt(place, sealed);
        Some(Self::from_mapping(mapping, range.start, writable))
    }

    /// The whole of the file that `/proc/PID/map_files` gives for `vma`; needs
    /// privileges.
    pub(crate) fn of_map_file(pid: u32, vma: &Vma) -> Option<Self> {
        let path = format!("/proc/{pid}/map_files/{:x}-{:x}", vma.range.start, vma.range.end);
        let open = |flags| rustix::fs::open(&path, flags | OFlags::CLOEXEC, Mode::empty());
        let fd = open(OFlags::RDWR).or_else(|_| open(OFlags::RDONLY)).ok()?;
        let end = vma.offset + (vma.range.end - vma.range.start);
        Self::of_file(fd.as_fd(), vma.offset..end)
    }

    /// The client's mapping `vma` itself.
    pub(crate) fn client(pid: u32, maps: &Arc<Maps>, vma: &Vma, offset: u64) -> Self {
        Self {
            range: offset..offset + (vma.range.end - vma.range.start),
            writable: vma.writable,
            backing: Backing::Client { pid, maps: Arc::clone(maps), va: vma.range.start },
        }
    }

    /// Lets children inherit our mapping, or no longer.
    pub(crate) fn inherit(&self, inherit: bool) {
        if let Backing::Mapping(mapping) = &self.backing {
            let advice = if inherit { Advice::LinuxDoFork } else { Advice::LinuxDontFork };
            // SAFETY: our own mapping.
            let _ = unsafe { madvise(mapping.place.base() as *mut _, mapping.place.len(), advice) };
        }
    }

    fn from_mapping(mapping: Mapping, start: u64, writable: bool) -> Self {
        Self {
            range: start..start + mapping.place.len() as u64,
            writable,
            backing: Backing::Mapping(mapping),
        }
    }

    /// Whether this serves an access of `range`.
    pub(crate) fn covers(&self, range: &Range<u64>, write: bool) -> bool {
        self.range.start <= range.start && range.end <= self.range.end && (self.writable || !write)
    }

    /// Reads at `offset` of the object, inside [`Self::range`].
    pub(crate) fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), Fault> {
        let delta = offset - self.range.start;
        match &self.backing {
            Backing::Mapping(mapping) if mapping.sealed => {
                let from = (mapping.place.base() + delta as usize) as *const u8;
                // SAFETY: inside our mapping of an object that cannot shrink.
                unsafe { copy(from, buf.as_mut_ptr(), buf.len()) };
                Ok(())
            }
            Backing::Mapping(mapping) => read_own(mapping.place.base() as u64 + delta, buf),
            Backing::Client { pid, maps, va } => {
                read_process(*pid, va + delta, buf)?;
                // The process may have become another one meanwhile.
                maps.is_alive().then_some(()).ok_or(Fault { va: va + delta })
            }
        }
    }

    /// Writes at `offset` of the object, inside [`Self::range`].
    pub(crate) fn write(&self, offset: u64, buf: &[u8]) -> Result<(), Fault> {
        let delta = offset - self.range.start;
        match &self.backing {
            Backing::Mapping(mapping) if mapping.sealed => {
                let to = (mapping.place.base() + delta as usize) as *mut u8;
                // SAFETY: inside our writable mapping of an object that cannot shrink.
                unsafe { copy(buf.as_ptr(), to, buf.len()) };
                Ok(())
            }
            Backing::Mapping(mapping) => write_own(mapping.place.base() as u64 + delta, buf),
            Backing::Client { pid, maps, va } => {
                if !maps.is_alive() {
                    return Err(Fault { va: va + delta });
                }
                write_process(*pid, va + delta, buf)
            }
        }
    }

    /// Writes the first of these bytes at `offset` of the object, inside [`Self::range`]; how many.
    pub(crate) fn write_from(&self, offset: u64, from: FilePart<'_>) -> usize {
        match &self.backing {
            Backing::Mapping(mapping) => {
                write_own_from(mapping.place.base() as u64 + (offset - self.range.start), from)
            }
            Backing::Client { .. } => 0,
        }
    }
}

impl Segment {
    /// Replaces the aligned little-endian word at `offset` if it is `current`; returns what was
    /// there. Refuses where memory may be taken away.
    pub(crate) fn compare_exchange(
        &self,
        offset: u64,
        current: u64,
        new: u64,
    ) -> Result<u64, Fault> {
        let delta = offset - self.range.start;
        let Backing::Mapping(mapping) = &self.backing else { return Err(Fault { va: offset }) };
        if !mapping.sealed || !self.writable || !delta.is_multiple_of(8) {
            return Err(Fault { va: offset });
        }
        let word = (mapping.place.base() + delta as usize) as *mut u64;
        // SAFETY: aligned, inside our writable mapping of an object that cannot shrink; those who
        // share it change it by their own processor's stores.
        let word = unsafe { AtomicU64::from_ptr(word) };
        let (current, new) = (current.to_le(), new.to_le());
        let result = word.compare_exchange(current, new, Ordering::AcqRel, Ordering::Acquire);
        Ok(u64::from_le(result.unwrap_or_else(|seen| seen)))
    }
}

/// Copies shared memory; an aligned 4 or 8 bytes in one access, because
/// descriptors and doorbells are read while others write them.
///
/// # Safety
/// Both must be valid for `len` bytes; one of them is shared with other
/// processes, who see bytes and not Rust values.
#[allow(clippy::cast_ptr_alignment, reason = "checked")]
unsafe fn copy(from: *const u8, to: *mut u8, len: usize) {
    let aligned = |align: usize| (from as usize | to as usize).is_multiple_of(align);
    // SAFETY: as promised by the caller; alignment was just checked.
    unsafe {
        match len {
            8 if aligned(8) => to.cast::<u64>().write_volatile(from.cast::<u64>().read_volatile()),
            4 if aligned(4) => to.cast::<u32>().write_volatile(from.cast::<u32>().read_volatile()),
            _ => std::ptr::copy(from, to, len),
        }
    }
}

impl Mapping {
    /// Takes over a mapping just made. It stays out of forked children: they
    /// would keep the object alive.
    fn adopt(place: Place, sealed: bool) -> Self {
        // SAFETY: our own mapping; no child of ours uses it.
        let _ = unsafe { madvise(place.base() as *mut _, place.len(), Advice::LinuxDontFork) };
        Self { place, sealed }
    }

    fn make_writable(&self) -> bool {
        // SAFETY: our own mapping, to which no reference exists.
        unsafe {
            mprotect(
                self.place.base() as *mut _,
                self.place.len(),
                MprotectFlags::READ | MprotectFlags::WRITE,
            )
        }
        .is_ok()
    }
}
