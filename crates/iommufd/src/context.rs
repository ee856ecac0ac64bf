//! The device node, and the context behind one open of it.

use std::any::Any;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, Weak};

use host::{
    Capability, CharDevice, Errno, File, FileMode, MappedMemory, MmapBacking, MmapRequest,
    PhysMemory, PhysRun, Task,
};
use iommu::{Doorbells, OwnerId};

use crate::access::Access;
use crate::device::{BoundDevice, GroupAttachments};
use crate::error::fallible;
use crate::fault::FaultQueue;
use crate::hwpt::{HwptNested, HwptPaging};
use crate::ioas::Ioas;
use crate::ioas::pages::{Account, Mapper, PagesTable};
use crate::objects::ObjectTable;
use crate::observe::{Observer, Watch};
use crate::sync::{Mutex, MutexGuard};
use crate::veventq::VeventqObject;
use crate::viommu::{HwQueueObject, Mmaps, VdeviceObject, ViommuObject};
use crate::{Error, Id};

/// `/dev/iommu`.
pub struct Iommufd {
    memory: Arc<dyn PhysMemory>,
    extension: Option<Arc<dyn Extension>>,
    minor: u32,
    doorbells: Arc<Doorbells>,
    /// What every caller may do, whatever the kernel says of it.
    granted: Vec<Capability>,
    observer: OnceLock<Arc<dyn Observer>>,
    contexts: Mutex<Vec<Weak<Context>>>,
}

/// An ioctl beside those of the uAPI, as the kernel's test build has one.
pub trait Extension: Send + Sync {
    /// The command it answers.
    fn command(&self) -> u32;

    /// Executes it.
    fn ioctl(&self, context: &Arc<Context>, task: &dyn Task, arg: u64) -> Result<i32, Error>;
}

/// An object whose meaning lies outside iommufd.
pub trait External: Any + Send + Sync {
    /// The object was taken out of its context.
    fn destroy(&self, context: &Context);
}

impl Iommufd {
    /// A device node whose contexts map `memory`, with the minor device number
    /// `minor` of the major 10 (misc).
    pub fn new(
        memory: Arc<dyn PhysMemory>,
        minor: u32,
        extension: Option<Arc<dyn Extension>>,
    ) -> Self {
        Self {
            memory,
            extension,
            minor,
            doorbells: Arc::default(),
            granted: Vec::new(),
            observer: OnceLock::new(),
            contexts: Mutex::default(),
        }
    }

    /// Lets every caller do what needs these capabilities: what they protect
    /// here is only our own bookkeeping.
    #[must_use]
    pub fn grant(mut self, capabilities: &[Capability]) -> Self {
        self.granted.extend(capabilities);
        self
    }

    /// Maps these MSI doorbells for devices that need that, and those that are added to them later.
    #[must_use]
    pub fn doorbells(mut self, doorbells: &Arc<Doorbells>) -> Self {
        self.doorbells = doorbells.clone();
        self
    }

    /// Has `observer` told what happens in all contexts that are made from now on. The first one stays.
    pub fn observe(&self, observer: Arc<dyn Observer>) {
        let _ = self.observer.set(observer);
    }

    /// A new context that no file refers to.
    pub fn context(&self) -> Arc<Context> {
        self.new_context(false)
    }

    /// A new context behind a type1 container, which also maps registers that a program has mapped, by their address.
    pub fn container(&self) -> Arc<Context> {
        self.new_context(true)
    }

    fn new_context(&self, maps_registers: bool) -> Arc<Context> {
        static NEXT_OWNER: AtomicU64 = AtomicU64::new(1);
        let owner = NEXT_OWNER.fetch_add(1, Ordering::Relaxed);
        let watch = Watch::new(self.observer.get().cloned(), owner);
        let context = Arc::new_cyclic(|this| Context {
            this: this.clone(),
            owner: OwnerId(owner),
            watch: watch.clone(),
            extension: self.extension.clone(),
            granted: self.granted.clone(),
            mode: self.mode(),
            maps_registers,
            state: Mutex::new(State {
                objects: ObjectTable::default(),
                pages: PagesTable::new(self.memory.clone()),
                doorbells: self.doorbells.clone(),
                groups: HashMap::new(),
                vfio_ioas: None,
                account_mm: false,
                mmaps: Mmaps::default(),
                last_mapper: None,
                watch,
            }),
        });
        let mut contexts = self.contexts.lock().unwrap_or_else(PoisonError::into_inner);
        contexts.retain(|context| context.strong_count() > 0);
        contexts.push(Arc::downgrade(&context));
        context
    }

    /// Every run that any context has pinned, once for each mapping's pages
    /// that pin it.
    pub fn pinned_runs(&self, mut run: impl FnMut(PhysRun)) {
        let contexts = self.contexts.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for context in contexts.iter().filter_map(Weak::upgrade) {
            context.lock().pages.iter().for_each(|(_, pages)| pages.pinned_runs(&mut run));
        }
    }
}

impl CharDevice for Iommufd {
    fn open(&self, _task: &dyn Task) -> Result<Arc<dyn File>, Errno> {
        if host::fail::point() {
            return Err(Errno::NOMEM);
        }
        Ok(self.context())
    }

    fn mode(&self) -> FileMode {
        FileMode::CharDevice { major: 10, minor: self.minor }
    }
}

/// What one open of `/dev/iommu` refers to.
pub struct Context {
    this: Weak<Self>,
    pub(crate) owner: OwnerId,
    pub(crate) watch: Watch,
    extension: Option<Arc<dyn Extension>>,
    granted: Vec<Capability>,
    mode: FileMode,
    /// Registers that a program has mapped are memory like any other.
    pub(crate) maps_registers: bool,
    state: Mutex<State>,
}

/// Everything of a context, behind its one lock.
pub(crate) struct State {
    pub(crate) objects: ObjectTable<Object>,
    pub(crate) pages: PagesTable,
    /// Where the devices of the machine write their MSIs.
    pub(crate) doorbells: Arc<Doorbells>,
    /// What is attached, by group (its address, for as long as a device of it
    /// is bound).
    pub(crate) groups: HashMap<usize, GroupAttachments>,
    /// The IOAS behind the VFIO type1 ioctls.
    pub(crate) vfio_ioas: Option<Id>,
    /// `IOMMU_OPTION_RLIMIT_MODE`: charge the address space, not the user.
    pub(crate) account_mm: bool,
    /// Memory that user space may map through the context's file.
    pub(crate) mmaps: Mmaps,
    last_mapper: Option<Arc<Mapper>>,
    pub(crate) watch: Watch,
}

/// An object of a context.
pub(crate) enum Object {
    Ioas(Box<Ioas>),
    HwptPaging(HwptPaging),
    HwptNested(HwptNested),
    Device(BoundDevice),
    Access(Access),
    Fault(Arc<FaultQueue>),
    Viommu(ViommuObject),
    Vdevice(VdeviceObject),
    Veventq(VeventqObject),
    HwQueue(HwQueueObject),
    External(Arc<dyn External>),
}

macro_rules! kinds {
    ($($get:ident $($get_mut:ident)? => $kind:ident $ty:ty;)+) => {
        impl State {
            $(
                pub(crate) fn $get(&self, id: Id) -> Result<&$ty, Error> {
                    match self.objects.get(id) {
                        Ok(Object::$kind(object)) => Ok(object),
                        _ => Err(Error::NoObject(id)),
                    }
                }

                $(pub(crate) fn $get_mut(&mut self, id: Id) -> Result<&mut $ty, Error> {
                    match self.objects.get_mut(id) {
                        Ok(Object::$kind(object)) => Ok(object),
                        _ => Err(Error::NoObject(id)),
                    }
                })?
            )+
        }
    };
}

kinds! {
    ioas ioas_mut => Ioas Ioas;
    hwpt_paging hwpt_paging_mut => HwptPaging HwptPaging;
    hwpt_nested => HwptNested HwptNested;
    device device_mut => Device BoundDevice;
    access access_mut => Access Access;
    fault_queue => Fault Arc<FaultQueue>;
    viommu viommu_mut => Viommu ViommuObject;
}

impl State {
    /// An IOAS together with the pages it maps.
    pub(crate) fn ioas_and_pages(&mut self, id: Id) -> Result<(&mut Ioas, &mut PagesTable), Error> {
        match self.objects.get_mut(id) {
            Ok(Object::Ioas(ioas)) => Ok((ioas, &mut self.pages)),
            _ => Err(Error::NoObject(id)),
        }
    }

    /// Who is charged for what `task` maps.
    pub(crate) fn mapper(&mut self, task: &dyn Task, unlimited: bool) -> Arc<Mapper> {
        let account = match (unlimited, self.account_mm) {
            (true, _) => Account::None,
            (false, true) => Account::Mm,
            (false, false) => Account::User,
        };
        let (mm, user, memlock_limit) = (task.mm(), task.user(), task.memlock_limit());
        match &self.last_mapper {
            Some(last) if last.charges(mm, &user, account, memlock_limit) => last.clone(),
            _ => {
                let mapper = Mapper { mm: mm.clone(), user, account, memlock_limit };
                self.last_mapper.insert(Arc::new(mapper)).clone()
            }
        }
    }

    /// Undoes what an object did to others. Its id is free already.
    fn dispose(&mut self, id: Id, object: Object) {
        match object {
            Object::Ioas(mut ioas) => {
                ioas.clear(&mut self.pages);
                if self.vfio_ioas == Some(id) {
                    self.vfio_ioas = None;
                }
            }
            Object::HwptPaging(hwpt) => self.dispose_hwpt_paging(id, &hwpt),
            Object::HwptNested(hwpt) => self.dispose_hwpt_nested(&hwpt),
            Object::Access(access) => self.dispose_access(id, &access),
            Object::Viommu(viommu) => self.dispose_viommu(&viommu),
            Object::Vdevice(vdevice) => self.dispose_vdevice(&vdevice),
            Object::Veventq(queue) => self.dispose_veventq(&queue),
            Object::HwQueue(queue) => self.dispose_hw_queue(&queue),
            Object::Device(_) | Object::Fault(_) | Object::External(_) => {}
        }
    }

    /// Gives a complete object an id that user space cannot look up yet. If
    /// there is none the object is undone.
    pub(crate) fn reserve(&mut self, object: Object) -> Result<Id, Error> {
        let reserved = if host::fail::point() {
            Err((object, Error::NoMemory("object ids")))
        } else {
            self.objects.reserve(object)
        };
        reserved.map_err(|(object, error)| {
            self.dispose(0, object);
            error
        })
    }

    /// Undoes a reserved object.
    pub(crate) fn abort(&mut self, id: Id) {
        if let Ok(object) = self.objects.abort(id) {
            self.dispose(id, object);
        }
    }

    /// Destroys an object that nobody uses, other than an external one.
    pub(crate) fn destroy_unused(&mut self, id: Id) -> Result<(), Error> {
        let object = self.objects.remove(id)?;
        self.dispose(id, object);
        Ok(())
    }
}

impl Context {
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the caller has a capability, by the kernel's word or by ours.
    pub fn capable(&self, task: &dyn Task, capability: Capability) -> bool {
        self.granted.contains(&capability) || task.capable(capability)
    }

    pub(crate) fn extension(&self) -> Option<&Arc<dyn Extension>> {
        self.extension.as_ref()
    }

    /// A counted reference to this context.
    pub(crate) fn arc(&self) -> Result<Arc<Self>, Error> {
        self.this.upgrade().ok_or(Error::NoDevice("the context is being closed"))
    }

    /// `IOMMU_DESTROY`.
    pub fn destroy(&self, id: Id) -> Result<(), Error> {
        let mut state = self.lock();
        let object = state.objects.remove(id)?;
        if let Object::External(object) = object {
            drop(state);
            object.destroy(self);
        } else {
            state.dispose(id, object);
        }
        Ok(())
    }

    /// Gives a new object an id (`reserve`), tells user space (`respond`,
    /// without the lock), and only then makes it visible. If either fails the
    /// object is gone.
    pub(crate) fn publish(
        &self,
        reserve: impl FnOnce(&mut State) -> Result<Id, Error>,
        respond: impl FnOnce(Id) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.publish_held(reserve, respond, |_, _| {})
    }

    /// As [`Context::publish`]; `hold` is told the id before anybody else can
    /// use it.
    pub(crate) fn publish_held(
        &self,
        reserve: impl FnOnce(&mut State) -> Result<Id, Error>,
        respond: impl FnOnce(Id) -> Result<(), Error>,
        hold: impl FnOnce(&mut State, Id),
    ) -> Result<(), Error> {
        let id = reserve(&mut self.lock())?;
        let result = respond(id);
        let mut state = self.lock();
        match result {
            Ok(()) if state.objects.finalize(id) => {
                hold(&mut state, id);
                Ok(())
            }
            Ok(()) => Err(Error::NoObject(id)),
            Err(error) => {
                state.abort(id);
                Err(error)
            }
        }
    }

    /// Adds an object whose meaning lies outside iommufd.
    pub fn add_external(&self, object: Arc<dyn External>) -> Result<Id, Error> {
        let mut state = self.lock();
        let id = state.reserve(Object::External(object))?;
        state.objects.finalize(id);
        Ok(id)
    }

    /// The external object with this id, if it is a `T`.
    pub fn external<T: External>(&self, id: Id) -> Result<Arc<T>, Error> {
        let object = match self.lock().objects.get(id) {
            Ok(Object::External(object)) => object.clone(),
            _ => return Err(Error::NoObject(id)),
        };
        (object as Arc<dyn Any + Send + Sync>).downcast().map_err(|_| Error::NoObject(id))
    }

    pub(crate) fn revoke_dmabuf(&self, buf: &crate::DmaBuf) {
        let mut state = self.lock();
        let State { objects, pages, .. } = &mut *state;
        let is_buf = |p: &crate::ioas::pages::Pages| {
            p.dmabuf().is_some_and(|b| std::ptr::eq(Arc::as_ptr(b), buf))
        };
        for (_, object) in objects.iter() {
            if let Object::Ioas(ioas) = object {
                ioas.unmap_from_domains(pages, is_buf);
            }
        }
        pages.iter_mut().filter(|p| is_buf(p)).for_each(|p| p.revoked = true);
    }

    /// Checks what must hold between any two calls; the error says what does
    /// not. For tests: it walks everything.
    #[doc(hidden)]
    pub fn check_invariants(&self) -> Result<(), String> {
        self.lock().check_invariants()
    }

    /// What [`File::mmap`] accepts just now: offset, length, and the vIOMMU that owns
    /// the memory. For tests.
    #[doc(hidden)]
    pub fn mappable(&self) -> Vec<(u64, u64, Id)> {
        let state = self.lock();
        state.mmaps.iter().filter(|(_, _, owner)| state.viommu(*owner).is_ok()).collect()
    }

    /// Live areas, and the bytes that they and their memory's records take.
    #[doc(hidden)]
    pub fn footprint(&self) -> (usize, usize) {
        let state = self.lock();
        let areas = state.objects.iter().filter_map(|(_, object)| match object {
            Object::Ioas(ioas) => Some(ioas.footprint()),
            _ => None,
        });
        let (count, bytes) = areas.fold((0, 0), |(n, b), (count, bytes)| (n + count, b + bytes));
        (count, bytes + state.pages.memory_usage())
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // Leaves first, until nothing is left: the last close destroys all.
        loop {
            let unused: Vec<Id> = {
                let state = self.lock();
                let ids = state.objects.iter().map(|(id, _)| id);
                ids.filter(|id| state.objects.users(*id) == Some(0)).collect()
            };
            let destroyed = unused.into_iter().filter(|id| self.destroy(*id).is_ok()).count();
            if destroyed == 0 {
                break;
            }
        }
        debug_assert!(self.lock().objects.iter().next().is_none(), "closed with objects in use");
    }
}

/// Something outside the table, an open file or a mapping, that holds an object
/// and its context.
pub(crate) struct Hold {
    context: Arc<Context>,
    id: OnceLock<Id>,
}

impl Hold {
    /// Holds the context, and no object yet.
    pub(crate) fn new(context: Arc<Context>) -> Self {
        Self { context, id: OnceLock::new() }
    }

    /// Holds an object from now on; once.
    pub(crate) fn take(&self, state: &mut State, id: Id) {
        if self.id.set(id).is_ok() {
            state.objects.hold_outside(id);
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if let Some(id) = self.id.get() {
            self.context.lock().objects.unhold_outside(*id);
        }
    }
}

impl File for Context {
    fn mode(&self) -> FileMode {
        self.mode
    }

    /// Maps memory of a driver's by the offset and length it gave out. The
    /// mapping holds the vIOMMU that owns it.
    fn mmap(&self, _task: &dyn Task, request: MmapRequest) -> Result<MmapBacking, Errno> {
        if !request.len.is_multiple_of(host::PAGE_SIZE) || !request.shared {
            return Err(Errno::INVAL);
        }
        if request.exec {
            return Err(Errno::PERM);
        }
        let context = self.arc().map_err(|error| error.errno())?;
        let mut state = self.lock();
        let refused = Error::NoMmap(request.offset).errno();
        let area = state.mmaps.find(request.offset, request.len).ok_or(refused)?;
        let owner = area.owner.filter(|id| state.viommu(*id).is_ok()).ok_or(refused)?;
        fallible("a mapping").map_err(|error| error.errno())?;
        let fd = area.memory.fd().map_err(|_| Errno::NOMEM)?;
        let guard = Box::new(Hold::new(context));
        guard.take(&mut state, owner);
        Ok(MmapBacking { memory: MappedMemory::File { fd, offset: 0 }, guard })
    }

    fn ioctl(&self, task: &dyn Task, cmd: u32, arg: u64) -> Result<i32, Errno> {
        let result = crate::ioctl::ioctl(self, task, cmd, arg);
        result.map_err(|error| {
            tracing::debug!(
                ioctl = uapi::nr::name(cmd).unwrap_or("unknown"),
                errno = error.errno().raw_os_error(),
                %error,
                "refused"
            );
            error.errno()
        })
    }
}
