//! The address space of this process, and how any address space is pinned.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use host::{Access, Fault, Mm, MmCounters, PAGE_SIZE, PhysMemory, PhysRun};
use rustix::mm::{Advice, madvise};

use crate::buddy::WINDOW_START;
use crate::object::Key;
use crate::phys::Phys;
use crate::place::Place;
use crate::segment::Segment;
use crate::user_copy::{self, own_pid};
use crate::vma::{Maps, Vma};

/// This process's address space.
pub struct LocalMm {
    phys: Arc<Phys>,
    maps: Arc<Maps>,
    counters: MmCounters,
}

impl LocalMm {
    pub(crate) fn new(phys: Arc<Phys>) -> io::Result<Self> {
        let maps = Arc::new(Maps::open(own_pid())?);
        Ok(Self { phys, maps, counters: MmCounters::default() })
    }

    /// The runs of `range`, which lies inside `vma`, unless they are simply its
    /// virtual addresses.
    fn pin_shared(&self, vma: &Vma, range: &Range<u64>, write: bool) -> Option<Vec<PhysRun>> {
        let pid = own_pid();
        let segment = || {
            Segment::duplicate(vma)
                // Huge pages cannot be duplicated, only mapped from their file.
                .or_else(|| Segment::of_map_file(pid, vma))
                .filter(|segment| segment.writable || !write)
                .or_else(|| Some(Segment::client(pid, &self.maps, vma, vma.offset)))
        };
        pin_inode(&self.phys, vma, range, write, segment)
    }
}

impl Mm for LocalMm {
    fn copy_from_user(&self, va: u64, buf: &mut [u8]) -> Result<(), Fault> {
        user_copy::from_self(va, buf)
    }

    fn copy_to_user(&self, va: u64, buf: &[u8]) -> Result<(), Fault> {
        user_copy::to_self(va, buf)
    }

    fn pin(
        &self,
        va: u64,
        len: u64,
        access: Access,
        run: &mut dyn FnMut(PhysRun),
    ) -> Result<(), Fault> {
        let write = access == Access::Write;
        pin_range(&self.phys, &self.maps, va, len, write, run, |vma, range| {
            if vma.inode == 0 && !vma.shared {
                return Some(None);
            }
            // Where the client has a hole we may have put something of ours.
            if vma.shared && Place::is_ours(range.start) {
                return None;
            }
            // Beyond the end of a file there are no pages, nor behind device
            // memory. A file ends only once, so its last page speaks for all.
            let advice = if write { Advice::LinuxPopulateWrite } else { Advice::LinuxPopulateRead };
            let last = (range.end - PAGE_SIZE) as *mut _;
            // SAFETY: brings in a page of the client's as any access of it would.
            unsafe { madvise(last, PAGE_SIZE as usize, advice) }.ok()?;
            if vma.shared { Some(Some(self.pin_shared(vma, range, write)?)) } else { Some(None) }
        })
    }

    fn counters(&self) -> &MmCounters {
        &self.counters
    }
}

/// Pins `range`, inside the shared mapping `vma`, of the file it maps.
pub(crate) fn pin_inode(
    phys: &Phys,
    vma: &Vma,
    range: &Range<u64>,
    write: bool,
    segment: impl FnOnce() -> Option<Segment>,
) -> Option<Vec<PhysRun>> {
    let key = Key::Inode { dev: vma.dev, inode: vma.inode };
    let offset = |va| vma.offset + (va - vma.range.start);
    let size = offset(vma.range.end);
    phys.pin_object(key, &(offset(range.start)..offset(range.end)), write, size, segment)
}

/// Walks the mappings of `[va, va + len)`, asks `pin_vma` for the runs of each
/// part (`Some(None)`: its virtual addresses; `None`: a fault), and passes them
/// on merged. On a fault nothing stays pinned.
pub(crate) fn pin_range(
    phys: &Phys,
    maps: &Maps,
    va: u64,
    len: u64,
    write: bool,
    run: &mut dyn FnMut(PhysRun),
    mut pin_vma: impl FnMut(&Vma, &Range<u64>) -> Option<Option<Vec<PhysRun>>>,
) -> Result<(), Fault> {
    let end = va.checked_add(len).filter(|&end| end <= WINDOW_START).ok_or(Fault { va })?;
    let mut pinned: Vec<PhysRun> = Vec::new();
    let mut pending: Option<PhysRun> = None;
    let mut pass = |next: PhysRun| match &mut pending {
        Some(last) if last.pa + last.len == next.pa => last.len += next.len,
        _ => {
            if let Some(last) = pending.replace(next) {
                run(last);
            }
        }
    };
    let mut at = va;
    while at < end {
        let vma = maps.query(at).ok().filter(|vma| vma.readable && (vma.writable || !write));
        let part = vma.and_then(|vma| {
            let range = at..vma.range.end.min(end);
            Some((pin_vma(&vma, &range)?, range))
        });
        match part {
            Some((None, range)) => {
                pass(PhysRun { pa: range.start, len: range.end - range.start });
                at = range.end;
            }
            Some((Some(runs), range)) => {
                for &run in &runs {
                    pass(run);
                }
                pinned.extend(runs);
                at = range.end;
            }
            None => {
                for run in pinned {
                    phys.unpin(run);
                }
                return Err(Fault { va: at });
            }
        }
    }
    if let Some(last) = pending {
        run(last);
    }
    Ok(())
}
