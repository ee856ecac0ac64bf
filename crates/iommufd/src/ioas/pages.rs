//! The memory behind mappings: what to pin, what is pinned, who is charged.
//!
//! One [`Pages`] stands behind every area that shows part of it, in whatever
//! IOAS. A page is pinned once, however many domains and accesses hold it, and
//! for as long as one of them does.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use host::{Access, KernelFile, Mm, PAGE_SIZE, PhysMemory, PhysRun, User};
use slab::Slab;

use super::pins::PinnedParts;
use crate::error::fallible;
use crate::{DmaBuf, Error};

/// Names a [`Pages`] of one context.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct PagesId(u32);

/// Whose memory it is, and who is charged for pinned pages.
pub(crate) struct Mapper {
    pub(crate) mm: Arc<dyn Mm>,
    pub(crate) user: Arc<User>,
    pub(crate) account: Account,
    /// `RLIMIT_MEMLOCK` in bytes.
    pub(crate) memlock_limit: u64,
}

/// Where pinned pages are charged. All modes also count as `VmPin`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Account {
    /// Nowhere: the mapper has `CAP_IPC_LOCK`.
    None,
    /// To the user.
    User,
    /// To the address space, as VFIO's type1 does.
    Mm,
}

impl Mapper {
    fn charge(&self, pages: u64) -> Result<(), Error> {
        let limit = self.memlock_limit / PAGE_SIZE;
        let counters = self.mm.counters();
        fallible("pages to charge")?;
        let charged = match self.account {
            Account::None => true,
            Account::User => self.user.charge(pages, limit),
            Account::Mm => counters.charge_locked(pages, limit),
        };
        if !charged {
            return Err(Error::NoMemory("RLIMIT_MEMLOCK"));
        }
        counters.pinned_vm.fetch_add(pages, Ordering::Relaxed);
        Ok(())
    }

    fn uncharge(&self, pages: u64) {
        let counters = self.mm.counters();
        match self.account {
            Account::None => {}
            Account::User => {
                self.user.locked_vm.fetch_sub(pages, Ordering::Relaxed);
            }
            Account::Mm => {
                counters.locked_vm.fetch_sub(pages, Ordering::Relaxed);
            }
        }
        counters.pinned_vm.fetch_sub(pages, Ordering::Relaxed);
    }

    /// Whether a mapping by this caller would be charged as this one is.
    pub(crate) fn same(&self, other: &Self) -> bool {
        self.charges(&other.mm, &other.user, other.account, other.memlock_limit)
    }

    /// Whether these are who and what is charged.
    pub(crate) fn charges(
        &self,
        mm: &Arc<dyn Mm>,
        user: &Arc<User>,
        account: Account,
        memlock_limit: u64,
    ) -> bool {
        Arc::ptr_eq(&self.mm, mm)
            && Arc::ptr_eq(&self.user, user)
            && self.account == account
            && self.memlock_limit == memlock_limit
    }
}

/// Where the memory is. Offsets within [`Pages`] count from the first byte of
/// the page that `start` lies in.
pub(crate) enum Source {
    /// At a user address of the mapper.
    User { start: u64 },
    /// In a file, which outlives the mapper.
    File { file: Arc<FileSource> },
    /// In a dma-buf.
    DmaBuf { buf: Arc<DmaBufSource> },
}

pub(crate) struct FileSource {
    pub(crate) file: Arc<dyn KernelFile>,
    pub(crate) start: u64,
}

pub(crate) struct DmaBufSource {
    pub(crate) buf: Arc<DmaBuf>,
    /// Where all of it is.
    pub(crate) pa: u64,
    pub(crate) start: u64,
}

/// Memory that areas show.
pub(crate) struct Pages {
    mapper: Arc<Mapper>,
    source: Source,
    /// Bytes from the source's start.
    len: u64,
    pins: Pins,
    areas: u32,
    pub(crate) writable: bool,
    /// The dma-buf was taken away, for good.
    pub(crate) revoked: bool,
}

/// Pinned pages. Indices count pages from the page of the source's start.
#[derive(Default)]
enum Pins {
    #[default]
    None,
    /// All pages, contiguous, held equally often: nearly every mapping.
    Whole {
        pa: u64,
        holds: u32,
    },
    Parts(Box<PinnedParts>),
}

impl Pages {
    pub(crate) fn new(mapper: Arc<Mapper>, source: Source, len: u64, writable: bool) -> Self {
        Self { mapper, source, len, pins: Pins::None, areas: 0, writable, revoked: false }
    }

    fn start(&self) -> u64 {
        match &self.source {
            Source::User { start } => *start,
            Source::File { file } => file.start,
            Source::DmaBuf { buf } => buf.start,
        }
    }

    /// The address or offset of a byte, which guides the choice of an IOVA.
    pub(crate) fn address_of(&self, byte: u64) -> u64 {
        self.start() + byte
    }

    /// Where a byte lies in its page.
    pub(crate) fn page_offset(&self, byte: u64) -> u64 {
        self.address_of(byte) % PAGE_SIZE
    }

    /// The first and last page index of `len` bytes from `byte`.
    fn indices(&self, byte: u64, len: u64) -> (u64, u64) {
        let offset = self.start() % PAGE_SIZE + byte;
        (offset / PAGE_SIZE, (offset + len - 1) / PAGE_SIZE)
    }

    fn last_index(&self) -> u64 {
        self.indices(0, self.len).1
    }

    pub(crate) fn dmabuf(&self) -> Option<&Arc<DmaBuf>> {
        match &self.source {
            Source::DmaBuf { buf } => Some(&buf.buf),
            _ => None,
        }
    }

    /// Whether the memory can be pinned whoever is alive.
    pub(crate) fn is_file(&self) -> bool {
        matches!(self.source, Source::File { .. })
    }

    pub(crate) fn mapper(&self) -> &Arc<Mapper> {
        &self.mapper
    }

    /// How many pages are pinned and charged.
    pub(crate) fn pinned(&self) -> u64 {
        if self.dmabuf().is_some() {
            return 0;
        }
        match &self.pins {
            Pins::None => 0,
            Pins::Whole { .. } => self.last_index() + 1,
            Pins::Parts(parts) => parts.runs().map(|(_, run)| run.len / PAGE_SIZE).sum(),
        }
    }

    /// Every pinned run.
    pub(crate) fn pinned_runs(&self, run: &mut dyn FnMut(PhysRun)) {
        if self.dmabuf().is_some() {
            return;
        }
        match &self.pins {
            Pins::None => {}
            Pins::Whole { pa, .. } => {
                run(PhysRun { pa: *pa, len: (self.last_index() + 1) * PAGE_SIZE });
            }
            Pins::Parts(parts) => parts.runs().for_each(|(_, r)| run(r)),
        }
    }

    /// Charges `mapper` instead of the present one; all or nothing.
    pub(crate) fn charge_to(&self, mapper: &Mapper) -> Result<(), Error> {
        mapper.charge(self.pinned())
    }

    /// Takes back [`Pages::charge_to`].
    pub(crate) fn uncharge_from(&self, mapper: &Mapper) {
        mapper.uncharge(self.pinned());
    }

    /// Makes `mapper`, already charged, the one who is charged.
    pub(crate) fn set_mapper(&mut self, mapper: Arc<Mapper>) {
        self.mapper.uncharge(self.pinned());
        self.mapper = mapper;
    }

    /// Pins pages `first..=last`, all of them unpinned, and passes their runs on.
    fn pin(&self, first: u64, last: u64, run: &mut dyn FnMut(PhysRun)) -> Result<(), Error> {
        let len = (last - first + 1) * PAGE_SIZE;
        let at = self.start() / PAGE_SIZE * PAGE_SIZE + first * PAGE_SIZE;
        let access = if self.writable { Access::Write } else { Access::Read };
        match &self.source {
            Source::User { .. } => self.mapper.mm.pin(at, len, access, run)?,
            Source::File { file } => file.file.pin(at, len, run)?,
            Source::DmaBuf { buf } => run(PhysRun { pa: buf.pa + at, len }),
        }
        Ok(())
    }

    /// Pins the pages `first..=last` and charges them, or does neither.
    fn pin_charged(&self, memory: &dyn PhysMemory, first: u64, last: u64) -> Result<Runs, Error> {
        fallible("pages to pin")?;
        let mut runs = Runs::default();
        self.pin(first, last, &mut |run| runs.push(run))?;
        if self.dmabuf().is_none()
            && let Err(error) = self.mapper.charge(last - first + 1)
        {
            runs.as_slice().iter().for_each(|run| memory.unpin(*run));
            return Err(error);
        }
        Ok(runs)
    }

    /// Takes back [`Pages::pin_charged`] for one run.
    fn unpin(&self, memory: &dyn PhysMemory, run: PhysRun) {
        if self.dmabuf().is_none() {
            memory.unpin(run);
            self.mapper.uncharge(run.len / PAGE_SIZE);
        }
    }

    /// The pins as parts, whatever they were.
    fn parts(&mut self) -> &mut PinnedParts {
        let last = self.last_index();
        if !matches!(self.pins, Pins::Parts(_)) {
            let mut parts = PinnedParts::default();
            if let Pins::Whole { pa, holds } = self.pins {
                parts.insert(0, &[PhysRun { pa, len: (last + 1) * PAGE_SIZE }], holds);
            }
            self.pins = Pins::Parts(Box::new(parts));
        }
        match &mut self.pins {
            Pins::Parts(parts) => parts,
            _ => unreachable!("made into parts above"),
        }
    }

    /// Returns to the small forms where they can say the same.
    fn normalise(&mut self) {
        if let Pins::Parts(parts) = &self.pins {
            if parts.is_empty() {
                self.pins = Pins::None;
            } else if let Some((pa, holds)) = parts.as_whole(self.last_index()) {
                self.pins = Pins::Whole { pa, holds };
            }
        }
    }
}

/// Runs of which there is nearly always one: no heap for it.
#[derive(Default)]
enum Runs {
    #[default]
    None,
    One([PhysRun; 1]),
    Many(Vec<PhysRun>),
}

impl Runs {
    fn push(&mut self, run: PhysRun) {
        *self = match std::mem::take(self) {
            Self::None => Self::One([run]),
            Self::One([first]) => Self::Many(vec![first, run]),
            Self::Many(mut runs) => {
                runs.push(run);
                Self::Many(runs)
            }
        };
    }

    fn as_slice(&self) -> &[PhysRun] {
        match self {
            Self::None => &[],
            Self::One(run) => run,
            Self::Many(runs) => runs,
        }
    }
}

/// All [`Pages`] of a context.
pub(crate) struct PagesTable {
    slab: Slab<Pages>,
    memory: Arc<dyn PhysMemory>,
}

impl PagesTable {
    pub(crate) fn new(memory: Arc<dyn PhysMemory>) -> Self {
        Self { slab: Slab::new(), memory }
    }

    pub(crate) fn memory(&self) -> &Arc<dyn PhysMemory> {
        &self.memory
    }

    /// Adds pages that no area shows yet: see [`PagesTable::share`].
    pub(crate) fn insert(&mut self, pages: Pages) -> Result<PagesId, Error> {
        fallible("mappings")?;
        u32::try_from(self.slab.vacant_key()).map_err(|_| Error::NoMemory("mappings"))?;
        Ok(PagesId(self.slab.insert(pages) as u32))
    }

    pub(crate) fn get(&self, id: PagesId) -> &Pages {
        &self.slab[id.0 as usize]
    }

    pub(crate) fn get_mut(&mut self, id: PagesId) -> &mut Pages {
        &mut self.slab[id.0 as usize]
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Pages> {
        self.slab.iter_mut().map(|(_, pages)| pages)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (PagesId, &Pages)> {
        self.slab.iter().map(|(id, pages)| (PagesId(id as u32), pages))
    }

    /// Bytes that the records take.
    pub(crate) fn memory_usage(&self) -> usize {
        self.slab.capacity() * size_of::<Option<Pages>>()
    }

    /// One more area shows the pages.
    pub(crate) fn share(&mut self, id: PagesId) {
        self.get_mut(id).areas += 1;
    }

    /// One area fewer; the last one frees the pages, which nobody may hold.
    pub(crate) fn release(&mut self, id: PagesId) {
        let pages = self.get_mut(id);
        pages.areas = pages.areas.saturating_sub(1);
        if pages.areas == 0 {
            debug_assert!(matches!(pages.pins, Pins::None), "freed while pinned");
            self.slab.remove(id.0 as usize);
        }
    }

    /// Frees pages that no area came to show.
    pub(crate) fn discard(&mut self, id: PagesId) {
        if self.get(id).areas == 0 {
            self.slab.remove(id.0 as usize);
        }
    }

    /// Holds `len` bytes from `byte`: pins and charges what is not pinned yet.
    pub(crate) fn hold(&mut self, id: PagesId, byte: u64, len: u64) -> Result<(), Error> {
        let Self { slab, memory } = self;
        let pages = &mut slab[id.0 as usize];
        let (first, last) = pages.indices(byte, len);
        let whole = first == 0 && last == pages.last_index();
        match &mut pages.pins {
            Pins::Whole { holds, .. } if whole => {
                *holds += 1;
                return Ok(());
            }
            Pins::None if whole => {
                let runs = pages.pin_charged(memory.as_ref(), first, last)?;
                if let [run] = runs.as_slice() {
                    pages.pins = Pins::Whole { pa: run.pa, holds: 1 };
                } else {
                    pages.parts().insert(first, runs.as_slice(), 1);
                }
                return Ok(());
            }
            _ => {}
        }
        let mut pinned = Vec::new();
        for (from, to) in pages.parts().gaps(first, last) {
            match pages.pin_charged(memory.as_ref(), from, to) {
                Ok(runs) => pinned.push((from, runs)),
                Err(error) => {
                    for run in pinned.iter().flat_map(|(_, runs)| runs.as_slice()) {
                        pages.unpin(memory.as_ref(), *run);
                    }
                    pages.normalise();
                    return Err(error);
                }
            }
        }
        let parts = pages.parts();
        for (from, runs) in &pinned {
            parts.insert(*from, runs.as_slice(), 0);
        }
        parts.hold(first, last);
        pages.normalise();
        Ok(())
    }

    /// Lets go of what [`PagesTable::hold`] held: unpins and uncharges pages
    /// that nobody else holds.
    pub(crate) fn unhold(&mut self, id: PagesId, byte: u64, len: u64) {
        let Self { slab, memory } = self;
        let pages = &mut slab[id.0 as usize];
        let (first, last) = pages.indices(byte, len);
        let whole = first == 0 && last == pages.last_index();
        match &mut pages.pins {
            Pins::Whole { holds, .. } if whole && *holds > 1 => *holds -= 1,
            Pins::Whole { pa, .. } if whole => {
                let run = PhysRun { pa: *pa, len: (last + 1) * PAGE_SIZE };
                pages.pins = Pins::None;
                pages.unpin(memory.as_ref(), run);
            }
            _ => {
                let mut free = Vec::new();
                pages.parts().unhold(first, last, |run| free.push(run));
                free.into_iter().for_each(|run| pages.unpin(memory.as_ref(), run));
                pages.normalise();
            }
        }
    }

    /// Passes the physical runs of `len` bytes from `byte`, to the byte, to `run`
    /// while they are pinned for just that long, at nobody's charge.
    pub(crate) fn visit(
        &self,
        id: PagesId,
        byte: u64,
        len: u64,
        run: &mut dyn FnMut(PhysRun),
    ) -> Result<(), Error> {
        let pages = self.get(id);
        let (first, last) = pages.indices(byte, len);
        let pinned = match &pages.pins {
            Pins::None => false,
            Pins::Whole { .. } => true,
            Pins::Parts(parts) => parts.gaps(first, last).is_empty(),
        };
        if pinned {
            // Also when whoever mapped it is gone.
            self.runs(id, byte, len, run);
            return Ok(());
        }
        let begin = pages.start() % PAGE_SIZE + byte - first * PAGE_SIZE;
        fallible("pages to pin")?;
        let mut runs = Runs::default();
        pages.pin(first, last, &mut |run| runs.push(run))?;
        let (mut skip, mut left) = (begin, len);
        for pinned in runs.as_slice() {
            let part = (pinned.len - skip).min(left);
            if part > 0 {
                run(PhysRun { pa: pinned.pa + skip, len: part });
            }
            skip = 0;
            left -= part;
        }
        runs.as_slice().iter().for_each(|run| self.memory.unpin(*run));
        Ok(())
    }

    /// The physical runs of `len` held bytes from `byte`, to the byte.
    pub(crate) fn runs(&self, id: PagesId, byte: u64, len: u64, run: &mut dyn FnMut(PhysRun)) {
        let pages = self.get(id);
        let begin = pages.start() % PAGE_SIZE + byte;
        match &pages.pins {
            Pins::None => {}
            Pins::Whole { pa, .. } => run(PhysRun { pa: pa + begin, len }),
            Pins::Parts(parts) => {
                let end = begin + len;
                let (first, last) = pages.indices(byte, len);
                let mut pending: Option<PhysRun> = None;
                for (index, part) in parts.runs_of(first, last) {
                    let part_begin = index * PAGE_SIZE;
                    let part_end = part_begin + part.len;
                    let lo = part_begin.max(begin);
                    let hi = part_end.min(end);
                    let next = PhysRun { pa: part.pa + (lo - part_begin), len: hi - lo };
                    match &mut pending {
                        Some(p) if p.pa + p.len == next.pa => p.len += next.len,
                        _ => {
                            if let Some(done) = pending.replace(next) {
                                run(done);
                            }
                        }
                    }
                }
                if let Some(done) = pending {
                    run(done);
                }
            }
        }
    }
}
