//! The address space of another process: a forked child, or any client.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use host::{Access, Fault, Mm, MmCounters, PAGE_SIZE, PhysRun};

use crate::buddy::WINDOW_START;
use crate::local::{pin_inode, pin_range};
use crate::object::Key;
use crate::phys::Phys;
use crate::segment::Segment;
use crate::user_copy::{own_pid, read_process, write_process};
use crate::vma::{Maps, Vma};

/// Numbers address spaces: process ids are used again, these are not.
static NEXT_MM: AtomicU64 = AtomicU64::new(0);

/// Another process's address space. Once the process exits or execs it is gone:
/// everything then faults, even if the process id lives on.
pub struct RemoteMm {
    phys: Arc<Phys>,
    pid: u32,
    maps: Arc<Maps>,
    id: u64,
    counters: MmCounters,
}

impl RemoteMm {
    pub(crate) fn new(phys: Arc<Phys>, pid: u32) -> io::Result<Self> {
        Ok(Self {
            phys,
            pid,
            maps: Arc::new(Maps::open(pid)?),
            id: NEXT_MM.fetch_add(1, Ordering::Relaxed),
            counters: MmCounters::default(),
        })
    }

    /// Whether the process still has this address space.
    pub fn is_alive(&self) -> bool {
        self.maps.is_alive()
    }

    fn alive_at(&self, va: u64) -> Result<(), Fault> {
        if self.is_alive() { Ok(()) } else { Err(Fault { va }) }
    }

    /// A backing for the file that `vma` maps, best one that outlives the process.
    fn shared_segment(&self, vma: &Vma, write: bool) -> Segment {
        let usable = |segment: &Segment| segment.writable || !write;
        Segment::of_map_file(self.pid, vma)
            .filter(usable)
            // What was inherited over fork we usually still map ourselves.
            .or_else(|| Segment::duplicate(&same_file(vma)?).filter(usable))
            .unwrap_or_else(|| Segment::client(self.pid, &self.maps, vma, vma.offset))
    }
}

/// A shared mapping of ours of the same part of the file that `theirs` maps.
fn same_file(theirs: &Vma) -> Option<Vma> {
    let end = |vma: &Vma| vma.offset + (vma.range.end - vma.range.start);
    let same = |ours: &Vma| {
        ours.shared
            && (ours.dev, ours.inode) == (theirs.dev, theirs.inode)
            && ours.offset <= theirs.offset
            && end(theirs) <= end(ours)
    };
    Maps::open(own_pid()).ok()?.search(same).ok()
}

impl Mm for RemoteMm {
    fn copy_from_user(&self, va: u64, buf: &mut [u8]) -> Result<(), Fault> {
        read_process(self.pid, va, buf)?;
        self.alive_at(va)
    }

    fn copy_to_user(&self, va: u64, buf: &[u8]) -> Result<(), Fault> {
        self.alive_at(va)?;
        write_process(self.pid, va, buf)
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
            if vma.inode != 0 || vma.shared {
                // As in the local case, the last page tells whether there are any.
                read_process(self.pid, range.end - PAGE_SIZE, &mut [0]).ok()?;
            }
            if vma.shared {
                let segment = || Some(self.shared_segment(vma, write));
                return Some(Some(pin_inode(&self.phys, vma, range, write, segment)?));
            }
            // Offsets are virtual addresses; one segment reaches all of them.
            let all = Vma { range: 0..WINDOW_START, writable: true, ..vma.clone() };
            let segment = || Some(Segment::client(self.pid, &self.maps, &all, 0));
            let key = Key::Private { mm: self.id };
            Some(Some(self.phys.pin_object(key, range, write, range.end, segment)?))
        })
    }

    fn counters(&self) -> &MmCounters {
        &self.counters
    }
}
