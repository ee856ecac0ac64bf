//! A made-up host for tests: memory in a vector, descriptors in a table.
//!
//! It counts what is pinned page by page, so that a test can tell a leak, and
//! takes pages away on demand. Nothing here touches the machine: it runs under
//! Miri and in a fuzzer. (Only the descriptor of an allocation is real.)
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use host::{
    Access, BusError, Capability, Errno, Fault, File, FilePart, FilePinError, KernelFile, Mm,
    MmCounters, OpenFile, PAGE_SIZE, PhysAllocation, PhysMemory, PhysRun, Task, User,
};

/// First address of the user memory.
pub const BASE: u64 = 0x1000_0000;

/// Where the physical memory of files begins.
const FILE_PA: u64 = 1 << 40;

/// A process with memory at [`BASE`] and descriptors. Memory at a user address
/// has that physical address; file memory lies above.
pub struct FakeHost {
    state: Mutex<State>,
    counters: MmCounters,
}

struct State {
    pages: Vec<Page>,
    files: BTreeMap<i32, OpenFile>,
    next_file_pa: u64,
    file_pages: BTreeMap<u64, Page>,
}

#[derive(Clone)]
struct Page {
    bytes: Box<[u8; PAGE_SIZE as usize]>,
    present: bool,
    writable: bool,
    pins: u64,
}

impl Default for Page {
    fn default() -> Self {
        Self { bytes: Box::new([0; PAGE_SIZE as usize]), present: true, writable: true, pins: 0 }
    }
}

impl FakeHost {
    /// `pages` pages of zeroed, writable memory.
    pub fn new(pages: usize) -> Arc<Self> {
        let state = State {
            pages: vec![Page::default(); pages],
            files: BTreeMap::new(),
            next_file_pa: FILE_PA,
            file_pages: BTreeMap::new(),
        };
        Arc::new(Self { state: Mutex::new(state), counters: MmCounters::default() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the page at a user address away, or gives it back.
    pub fn set_present(&self, va: u64, present: bool) {
        if let Some(page) = self.lock().page_mut(va) {
            page.present = present;
        }
    }

    /// Makes the page at a user address read-only, or writable.
    pub fn set_writable(&self, va: u64, writable: bool) {
        if let Some(page) = self.lock().page_mut(va) {
            page.writable = writable;
        }
    }

    /// How often the page with this physical address is pinned.
    pub fn pins(&self, pa: u64) -> u64 {
        self.lock().page_mut(pa).map_or(0, |page| page.pins)
    }

    /// How many pins there are on all pages together.
    pub fn total_pins(&self) -> u64 {
        let state = self.lock();
        state.pages.iter().chain(state.file_pages.values()).map(|page| page.pins).sum()
    }

    /// Opens a file of `pages` pages of memory; a file that holds no memory if
    /// that is `None`.
    pub fn open_memory(self: &Arc<Self>, pages: Option<u64>) -> i32 {
        let mut state = self.lock();
        let pa = state.next_file_pa;
        for page in 0..pages.unwrap_or(0) {
            state.file_pages.insert(pa + page * PAGE_SIZE, Page::default());
        }
        state.next_file_pa += (pages.unwrap_or(0) + 1) * PAGE_SIZE;
        let len = pages.map(|pages| pages * PAGE_SIZE);
        state.install(OpenFile::Kernel(Arc::new(FakeFile { host: self.clone(), pa, len })))
    }

    /// The emulated file behind a descriptor.
    pub fn emulated(&self, fd: i32) -> Option<Arc<dyn File>> {
        match self.lock().files.get(&fd) {
            Some(OpenFile::Emulated(file)) => Some(file.clone()),
            _ => None,
        }
    }

    /// How many descriptors are open.
    pub fn descriptors(&self) -> usize {
        self.lock().files.len()
    }

    /// Closes a descriptor.
    pub fn close(&self, fd: i32) {
        let file = self.lock().files.remove(&fd);
        // Its last close may call back.
        drop(file);
    }

    /// Closes every descriptor.
    pub fn close_all(&self) {
        let files = std::mem::take(&mut self.lock().files);
        drop(files);
    }
}

impl State {
    fn page_mut(&mut self, at: u64) -> Option<&mut Page> {
        if at >= FILE_PA {
            return self.file_pages.get_mut(&(at / PAGE_SIZE * PAGE_SIZE));
        }
        self.pages.get_mut((at.checked_sub(BASE)? / PAGE_SIZE) as usize)
    }

    fn install(&mut self, file: OpenFile) -> i32 {
        let fd = (3..i32::MAX).find(|fd| !self.files.contains_key(fd)).unwrap_or(i32::MAX);
        self.files.insert(fd, file);
        fd
    }

    /// Calls `visit` with each page's part of `[at, at + len)`.
    fn walk(
        &mut self,
        at: u64,
        len: usize,
        mut visit: impl FnMut(&mut Page, std::ops::Range<usize>, std::ops::Range<usize>) -> bool,
    ) -> Result<(), u64> {
        let mut done = 0;
        while done < len {
            let here = at.wrapping_add(done as u64);
            let offset = (here % PAGE_SIZE) as usize;
            let part = (PAGE_SIZE as usize - offset).min(len - done);
            let page = self.page_mut(here).filter(|page| page.present).ok_or(here)?;
            if !visit(page, offset..offset + part, done..done + part) {
                return Err(here);
            }
            done += part;
        }
        Ok(())
    }
}

impl Mm for FakeHost {
    fn copy_from_user(&self, va: u64, buf: &mut [u8]) -> Result<(), Fault> {
        let mut state = self.lock();
        let walked = state.walk(va, buf.len(), |page, at, part| {
            buf[part].copy_from_slice(&page.bytes[at]);
            true
        });
        walked.map_err(|va| Fault { va })
    }

    fn copy_to_user(&self, va: u64, buf: &[u8]) -> Result<(), Fault> {
        let mut state = self.lock();
        let walked = state.walk(va, buf.len(), |page, at, part| {
            if page.writable {
                page.bytes[at].copy_from_slice(&buf[part]);
            }
            page.writable
        });
        walked.map_err(|va| Fault { va })
    }

    fn pin(
        &self,
        va: u64,
        len: u64,
        access: Access,
        run: &mut dyn FnMut(PhysRun),
    ) -> Result<(), Fault> {
        let mut state = self.lock();
        let first = va.checked_sub(BASE).ok_or(Fault { va })? / PAGE_SIZE;
        let last = first + len / PAGE_SIZE;
        let pages = state.pages.get_mut(first as usize..last as usize).ok_or(Fault { va })?;
        let usable = |p: &Page| p.present && (p.writable || access == Access::Read);
        if !pages.iter().all(usable) {
            return Err(Fault { va });
        }
        pages.iter_mut().for_each(|page| page.pins += 1);
        drop(state);
        run(PhysRun { pa: va, len });
        Ok(())
    }

    fn counters(&self) -> &MmCounters {
        &self.counters
    }
}

impl PhysMemory for FakeHost {
    fn read(&self, pa: u64, buf: &mut [u8]) -> Result<(), BusError> {
        self.copy_from_user(pa, buf).map_err(|fault| BusError { pa: fault.va })
    }

    fn write(&self, pa: u64, buf: &[u8]) -> Result<(), BusError> {
        self.copy_to_user(pa, buf).map_err(|fault| BusError { pa: fault.va })
    }

    /// Ends early, as where a disk has to be waited for: amid a page.
    fn write_from(&self, pa: u64, from: FilePart<'_>) -> usize {
        let mut bytes = [0; 1500];
        let wanted = &mut bytes[..from.len.min(1500)];
        let file = from.file.try_clone_to_owned().map(std::fs::File::from);
        let read = file.and_then(|file| file.read_at(wanted, from.offset)).unwrap_or(0);
        self.copy_to_user(pa, &bytes[..read]).map_or(0, |()| read)
    }

    fn unpin(&self, run: PhysRun) {
        let mut state = self.lock();
        for pa in (run.pa..run.pa + run.len).step_by(PAGE_SIZE as usize) {
            let page = state.page_mut(pa).expect("unpinned a page that never was");
            page.pins = page.pins.checked_sub(1).expect("unpinned more often than pinned");
        }
    }

    fn alloc(&self, len: u64) -> Option<Box<dyn PhysAllocation>> {
        let mut state = self.lock();
        let run = PhysRun { pa: state.next_file_pa, len: len.next_multiple_of(PAGE_SIZE) };
        for pa in (run.pa..run.pa + run.len).step_by(PAGE_SIZE as usize) {
            state.file_pages.insert(pa, Page::default());
        }
        state.next_file_pa += run.len + PAGE_SIZE;
        Some(Box::new(FakeAllocation(run)))
    }
}

struct FakeAllocation(PhysRun);

impl PhysAllocation for FakeAllocation {
    fn run(&self) -> PhysRun {
        self.0
    }

    /// A stand-in: nobody maps it here.
    fn fd(&self) -> std::io::Result<std::os::fd::OwnedFd> {
        Ok(std::fs::File::open("/dev/null")?.into())
    }
}

struct FakeFile {
    host: Arc<FakeHost>,
    pa: u64,
    len: Option<u64>,
}

impl KernelFile for FakeFile {
    fn pin(&self, offset: u64, len: u64, run: &mut dyn FnMut(PhysRun)) -> Result<(), FilePinError> {
        let size = self.len.ok_or(FilePinError::NotMemory)?;
        if offset.checked_add(len).is_none_or(|end| end > size) {
            return Err(FilePinError::BeyondEnd);
        }
        let pinned = PhysRun { pa: self.pa + offset, len };
        let mut state = self.host.lock();
        for pa in (pinned.pa..pinned.pa + len).step_by(PAGE_SIZE as usize) {
            if let Some(page) = state.page_mut(pa) {
                page.pins += 1;
            }
        }
        drop(state);
        run(pinned);
        Ok(())
    }
}

/// A task of a [`FakeHost`] with chosen privileges.
pub struct FakeTask {
    host: Arc<FakeHost>,
    mm: Arc<dyn Mm>,
    user: Arc<User>,
    /// What it may do.
    pub capabilities: Vec<Capability>,
    /// `RLIMIT_MEMLOCK` in bytes.
    pub memlock_limit: u64,
}

impl FakeTask {
    /// A task that may do everything.
    pub fn new(host: &Arc<FakeHost>) -> Self {
        Self {
            host: host.clone(),
            mm: host.clone(),
            user: Arc::default(),
            capabilities: vec![Capability::IpcLock, Capability::SysResource, Capability::SysRawio],
            memlock_limit: u64::MAX,
        }
    }
}

impl Task for FakeTask {
    fn mm(&self) -> &Arc<dyn Mm> {
        &self.mm
    }

    fn user(&self) -> Arc<User> {
        self.user.clone()
    }

    fn capable(&self, capability: Capability) -> bool {
        self.capabilities.contains(&capability)
    }

    fn memlock_limit(&self) -> u64 {
        self.memlock_limit
    }

    fn file(&self, fd: i32) -> Result<OpenFile, Errno> {
        match self.host.lock().files.get(&fd) {
            Some(OpenFile::Emulated(file)) => Ok(OpenFile::Emulated(file.clone())),
            Some(OpenFile::Kernel(file)) => Ok(OpenFile::Kernel(file.clone())),
            None => Err(Errno::BADF),
        }
    }

    fn install(&self, file: Arc<dyn File>, _cloexec: bool) -> Result<i32, Errno> {
        if host::fail::point() {
            return Err(Errno::MFILE);
        }
        Ok(self.host.lock().install(OpenFile::Emulated(file)))
    }

    fn uninstall(&self, fd: i32) {
        self.host.close(fd);
    }
}
