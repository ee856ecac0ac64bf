//! The test access: an access whose pins user space makes and drops.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use host::{Access, Errno, Fault, File, FileMode, OpenFile, PAGE_SIZE, Task};
use iommufd::{AccessHandler, Context, Error, Id};
use uapi::selftest as t;

use crate::{Call, TestIoctl, at};

/// The longest transfer or pin, in bytes.
const MAX: u64 = 16 << 20;

/// The open file of a test access; closing it ends the access.
pub(crate) struct TestAccess {
    context: Arc<Context>,
    pins: bool,
    items: Arc<Items>,
}

/// What is pinned. The access's handler, which must not keep the context alive.
struct Items {
    context: Weak<Context>,
    id: OnceLock<Id>,
    pinned: Mutex<Pinned>,
}

#[derive(Default)]
struct Pinned {
    next: u32,
    /// IOVA and length, by item.
    ranges: BTreeMap<u32, (u64, u64)>,
}

impl Items {
    fn lock(&self) -> MutexGuard<'_, Pinned> {
        self.pinned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unpin(&self, (iova, len): (u64, u64)) {
        if let (Some(context), Some(id)) = (self.context.upgrade(), self.id.get()) {
            context.access_unpin(*id, iova, len);
        }
    }
}

impl AccessHandler for Items {
    fn unmap(&self, iova: u64, len: u64) {
        let last = iova.saturating_add(len - 1);
        // Taken for the whole pin in `access_pages`, so that no pin slips by.
        let mut pinned = self.lock();
        let hit =
            |_: &u32, (start, len): &mut (u64, u64)| *start <= last && iova <= *start + (*len - 1);
        let gone: Vec<_> = pinned.ranges.extract_if(.., hit).collect();
        for (_, range) in gone {
            self.unpin(range);
        }
    }
}

/// The test access behind a descriptor.
pub(crate) fn of(task: &dyn Task, fd: u32) -> Result<Arc<TestAccess>, Error> {
    let Ok(OpenFile::Emulated(file)) = task.file(fd as i32) else { return Err(Error::WrongFile) };
    let file: Arc<dyn std::any::Any + Send + Sync> = file;
    file.downcast().map_err(|_| Error::WrongFile)
}

impl TestAccess {
    fn id(&self) -> Result<Id, Error> {
        self.items.id.get().copied().ok_or(Error::WrongFile)
    }

    pub(crate) fn replace(&self, context: &Arc<Context>, ioas: Id) -> Result<(), Error> {
        self.belongs(context)?;
        self.context.access_replace(self.id()?, ioas)
    }

    pub(crate) fn destroy_item(&self, item: u32) -> Result<(), Error> {
        let mut pinned = self.items.lock();
        let range = pinned.ranges.remove(&item).ok_or(Error::NoObject(item))?;
        self.items.unpin(range);
        Ok(())
    }

    fn belongs(&self, context: &Arc<Context>) -> Result<(), Error> {
        if Arc::ptr_eq(&self.context, context) { Ok(()) } else { Err(Error::WrongFile) }
    }
}

impl File for TestAccess {
    fn mode(&self) -> FileMode {
        FileMode::AnonInode("[iommufd_test_staccess]")
    }
}

impl Drop for TestAccess {
    fn drop(&mut self) {
        self.items.unmap(0, u64::MAX);
        if let Some(id) = self.items.id.get() {
            // Made with the file and destroyed with it.
            let _ = self.context.access_destroy(*id);
        }
    }
}

pub(crate) fn create_access(call: &mut Call<'_>) -> Result<(), Error> {
    let flags = call.cmd.u32_at(at::SECOND);
    let pin = t::MOCK_FLAGS_ACCESS_CREATE_NEEDS_PIN_PAGES;
    if flags & !pin != 0 {
        return Err(Error::Unsupported("access flags"));
    }
    let pins = flags & pin != 0;
    let context = call.context;
    let items = Arc::new(Items {
        context: Arc::downgrade(context),
        id: OnceLock::new(),
        pinned: Mutex::default(),
    });
    let file = Arc::new(TestAccess { context: context.clone(), pins, items: items.clone() });
    // From here on, dropping the file undoes everything.
    let id = context.access_create(items.clone(), pins)?;
    let _ = items.id.set(id);
    context.access_attach(id, call.cmd.id)?;
    let fd = call.task.install(file, true).map_err(Error::File)?;
    call.cmd.set_u32_at(at::FIRST, fd as u32);
    call.respond().inspect_err(|_| call.task.uninstall(fd))
}

impl TestIoctl {
    pub(crate) fn access_pages(&self, call: &mut Call<'_>) -> Result<(), Error> {
        let cmd = &call.cmd;
        let (flags, iova) = (cmd.u32_at(at::FIRST), cmd.u64_at(at::SECOND_U64));
        let (length, uptr) = (cmd.u64_at(at::THIRD_U64), cmd.u64_at(at::FOURTH_U64));
        if length > MAX {
            return Err(Error::NoMemory("the pages of the access"));
        }
        if flags & !t::MOCK_FLAGS_ACCESS_WRITE != 0 {
            return Err(Error::Unsupported("access flags"));
        }
        let access = of(call.task, cmd.id)?;
        if !access.pins {
            return Err(Error::Unsupported("this access does not pin"));
        }
        let id = access.id()?;
        let mut pinned = access.items.lock();
        let write = flags & t::MOCK_FLAGS_ACCESS_WRITE != 0;
        let runs = access.context.access_pin(id, iova, length, write)?;
        let same =
            uptr == 0 || self.same_pages(call, uptr.wrapping_sub(iova % PAGE_SIZE), &runs)?;
        let item = pinned.next;
        call.cmd.set_u32_at(at::SECOND, item);
        let result = if same { call.respond() } else { Err(Error::File(Errno::BADE)) };
        match result {
            Ok(()) => {
                pinned.next += 1;
                pinned.ranges.insert(item, (iova, length));
            }
            Err(_) => access.context.access_unpin(id, iova, length),
        }
        result
    }

    /// Whether the pages of user memory at `uptr` are those of `runs`.
    fn same_pages(
        &self,
        call: &Call<'_>,
        uptr: u64,
        runs: &[host::PhysRun],
    ) -> Result<bool, Fault> {
        let page = |pa: u64| pa / PAGE_SIZE * PAGE_SIZE;
        let pages = runs
            .iter()
            .flat_map(|run| (page(run.pa)..run.pa + run.len).step_by(PAGE_SIZE as usize));
        for (index, pa) in pages.enumerate() {
            let va = uptr.wrapping_add(index as u64 * PAGE_SIZE);
            let mut found = None;
            call.task.mm().pin(va, PAGE_SIZE, Access::Read, &mut |run| found = Some(run))?;
            if let Some(run) = found {
                self.memory.unpin(run);
            }
            if found.map(|run| run.pa) != Some(pa) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

pub(crate) fn access_rw(call: &Call<'_>) -> Result<(), Error> {
    let cmd = &call.cmd;
    let (iova, length) = (cmd.u64_at(at::FIRST), cmd.u64_at(at::SECOND_U64));
    let (uptr, flags) = (cmd.u64_at(at::THIRD_U64), cmd.u32_at(at::FOURTH_U64));
    if length > MAX {
        return Err(Error::NoMemory("the buffer of the access"));
    }
    if flags & !(t::MOCK_ACCESS_RW_WRITE | t::MOCK_ACCESS_RW_SLOW_PATH) != 0 {
        return Err(Error::Unsupported("access flags"));
    }
    let access = of(call.task, cmd.id)?;
    let id = access.id()?;
    let mut buf = vec![0; length as usize];
    if flags & t::MOCK_ACCESS_RW_WRITE != 0 {
        call.task.mm().copy_from_user(uptr, &mut buf)?;
        access.context.access_write(id, iova, &buf)
    } else {
        access.context.access_read(id, iova, &mut buf)?;
        Ok(call.task.mm().copy_to_user(uptr, &buf)?)
    }
}
