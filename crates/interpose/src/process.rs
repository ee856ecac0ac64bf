//! What this process knows: its machine, its emulated files.

use std::cell::Cell;
use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
use std::sync::{Arc, OnceLock};

use host::{Errno, File, User};
use host_linux::{Host, PrivateFd};
use parking_lot::{Mutex, RwLock};
use rustix::io::FdFlags;

use crate::handle::{Id, LocalFile, ServerEnd, pair};
use crate::observe::Observer;
use crate::paths::{PathTable, Prefixes};
use crate::table::{Handle, Slab, slot_of};
use crate::{fork, next, server};

pub(crate) type Make = Box<dyn Fn(&Arc<Host>) -> PathTable + Send + Sync>;

/// What [`crate::install`] was told.
pub(crate) struct Config {
    pub(crate) prefixes: Prefixes,
    pub(crate) make: Make,
}

pub(crate) static CONFIG: OnceLock<Config> = OnceLock::new();

/// State of one process. A forked child makes its own and leaves the parent's
/// untouched: what it holds is the parent's to release.
pub(crate) struct Process {
    pid: u32,
    host: OnceLock<Arc<Host>>,
    paths: OnceLock<PathTable>,
    pub(crate) slab: RwLock<Slab>,
    users: Mutex<Vec<(u32, Arc<User>)>>,
    /// What children reach this process by even if they inherit no emulated
    /// file: the child's end, which they inherit, and ours.
    pub(crate) control: OnceLock<(PrivateFd, Arc<ServerEnd>)>,
    /// Watches files that others hold; made with its thread.
    pub(crate) service: OnceLock<Arc<PrivateFd>>,
    /// How to reach the process that this one was forked from, if that has a
    /// machine; and its paths, to be compared with but not used.
    pub(crate) owner: Option<PrivateFd>,
    pub(crate) owner_paths: Option<&'static PathTable>,
    owner_gone: AtomicBool,
    pub(crate) observer: OnceLock<Arc<dyn Observer>>,
    pub(crate) at_end: OnceLock<Arc<dyn Fn() + Send + Sync>>,
}

/// Who serves an emulated descriptor.
pub(crate) enum Behind {
    Here(Arc<LocalFile>),
    /// Another process.
    Elsewhere,
}

/// Which process knows what is behind a path.
pub(crate) enum Machine {
    Here(&'static PathTable),
    /// Another one, reached through this descriptor.
    Owner(RawFd),
}

static CURRENT: AtomicPtr<Process> = AtomicPtr::new(std::ptr::null_mut());

thread_local! {
    /// This thread runs code of the machine: paths it opens are the kernel's.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Marks the thread as running code of the machine until dropped.
pub(crate) struct Inside(bool);

impl Inside {
    pub(crate) fn enter() -> Self {
        Self(INSIDE.replace(true))
    }

    pub(crate) fn now() -> bool {
        INSIDE.get()
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        INSIDE.set(self.0);
    }
}

/// The state of this process.
#[inline]
pub(crate) fn current() -> &'static Process {
    let current = CURRENT.load(Ordering::Acquire);
    if current.is_null() {
        return first();
    }
    if fork::unnoticed() {
        return fork::become_child(false);
    }
    // SAFETY: set once to a leaked box, replaced only by another, in a child.
    unsafe { &*current }
}

/// Puts a child's own state in place of its parent's.
pub(crate) fn replace(process: Process) -> &'static Process {
    let process: &'static Process = Box::leak(Box::new(process));
    CURRENT.store(std::ptr::from_ref(process).cast_mut(), Ordering::Release);
    process
}

#[cold]
fn first() -> &'static Process {
    let new = Box::into_raw(Box::new(Process::new(Slab::default())));
    let old = std::ptr::null_mut();
    match CURRENT.compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => {
            fork::register();
            // SAFETY: leaked just now.
            unsafe { &*new }
        }
        Err(other) => {
            // SAFETY: `new` was never shared; `other` is leaked.
            unsafe {
                drop(Box::from_raw(new));
                &*other
            }
        }
    }
}

fn real_pid() -> u32 {
    rustix::process::getpid().as_raw_nonzero().get() as u32
}

/// The state if there is any yet.
pub(crate) fn existing() -> Option<&'static Process> {
    // SAFETY: null or a leaked box.
    unsafe { CURRENT.load(Ordering::Acquire).as_ref() }
}

impl Process {
    pub(crate) fn new(slab: Slab) -> Self {
        Self {
            pid: real_pid(),
            host: OnceLock::new(),
            paths: OnceLock::new(),
            slab: RwLock::new(slab),
            users: Mutex::default(),
            control: OnceLock::new(),
            service: OnceLock::new(),
            owner: None,
            owner_paths: None,
            owner_gone: AtomicBool::new(false),
            observer: OnceLock::new(),
            at_end: OnceLock::new(),
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// The state of a copy of this process that goes on in its place.
    ///
    /// # Safety
    /// Only in such a copy, with one thread, made while the table was locked.
    pub(crate) unsafe fn continued(&'static self) -> Self {
        // A new lock: the old may have waiters that did not come along.
        // SAFETY: as promised by the caller; the original is never used again.
        let mut slab = unsafe { std::ptr::read(self.slab.data_ptr()) };
        for fd in slab.fds_in(0, u32::MAX) {
            slab.detach(fd);
        }
        slab.abandon_closing();
        let process = Self::new(slab);
        if let Some(host) = self.host.get() {
            host.take_over();
            let _ = process.host.set(Arc::clone(host));
        }
        if let Some(paths) = self.paths.get() {
            let _ = process.paths.set(paths.clone());
        }
        if let Some(observer) = self.observer.get() {
            let _ = process.observer.set(Arc::clone(observer));
        }
        if let Some(hook) = self.at_end.get() {
            let _ = process.at_end.set(Arc::clone(hook));
        }
        if let Some(service) = self.service.get() {
            let _ = process.service.set(Arc::clone(service));
        }
        if let Some((client, end)) = self.control.get()
            && let Some(client) = PrivateFd::adopt(client.as_raw_fd())
        {
            let _ = process.control.set((client, Arc::clone(end)));
        }
        process
    }

    /// Whether this is really a `vfork` child borrowing our memory: what it
    /// does to its descriptors is not done to ours.
    pub(crate) fn is_borrowed(&self) -> bool {
        real_pid() != self.pid()
    }

    /// The memory of this process.
    pub(crate) fn host(&self) -> Result<&Arc<Host>, Errno> {
        if let Some(host) = self.host.get() {
            return Ok(host);
        }
        let host = Host::new().map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::NODEV))?;
        Ok(self.host.get_or_init(|| host))
    }

    /// Where `path` is looked up: in this process's machine, in its parent's if
    /// that has one, or in one built now, if `build`. `None`: there is no machine,
    /// so the path is the kernel's.
    pub(crate) fn machine(
        &'static self,
        config: &Config,
        path: &str,
        build: bool,
    ) -> Option<Machine> {
        if let Some(paths) = self.paths.get() {
            return Some(Machine::Here(paths));
        }
        if let Some(route) = self.route() {
            if self.owner_paths.is_some_and(|paths| paths.find(path).is_none()) {
                return None;
            }
            return Some(Machine::Owner(route));
        }
        if !build {
            return None;
        }
        let host = self.host().ok()?;
        let paths = self.paths.get_or_init(|| {
            let _inside = Inside::enter();
            (config.make)(host)
        });
        self.expect_children();
        Some(Machine::Here(paths))
    }

    /// Children may open our paths even if they inherit no file of ours.
    fn expect_children(&'static self) {
        let Ok(epoll) = server::start(self) else {
            return;
        };
        let Ok((client, end, _)) = pair() else { return };
        let Ok(client) = PrivateFd::new(client) else {
            return;
        };
        let end = Arc::new(end);
        if self.control.set((client, Arc::clone(&end))).is_ok() {
            end.watch(epoll, server::CONTROL);
        }
    }

    /// A descriptor that leads to the process whose machine this one shares.
    fn route(&self) -> Option<RawFd> {
        if self.owner_gone.load(Ordering::Relaxed) {
            return None;
        }
        let owner = self.owner.as_ref().map(AsRawFd::as_raw_fd);
        owner.or_else(|| {
            let slab = self.slab.read();
            slab.iter()
                .find(|handle| handle.file.is_none())
                .and_then(|handle| handle.fds.first().copied())
        })
    }

    /// The process that [`Self::machine`] named does not answer any more.
    pub(crate) fn forget_owner(&self) {
        self.owner_gone.store(true, Ordering::Relaxed);
    }

    /// The path table, if this process has built one.
    pub(crate) fn built_paths(&self) -> Option<&PathTable> {
        self.paths.get()
    }

    pub(crate) fn user(&self, uid: u32) -> Arc<User> {
        let mut users = self.users.lock();
        if let Some((_, user)) = users.iter().find(|(known, _)| *known == uid) {
            return Arc::clone(user);
        }
        let user = Arc::<User>::default();
        users.push((uid, Arc::clone(&user)));
        user
    }

    /// Who serves `fd`; `None` if it is not emulated.
    #[inline]
    pub(crate) fn file(&self, fd: RawFd) -> Option<Behind> {
        let slab = self.slab.read();
        let handle = slab.by_fd(fd)?;
        Some(handle.file.as_ref().map_or(Behind::Elsewhere, |file| Behind::Here(Arc::clone(file))))
    }

    /// Gives `file` a new descriptor of this process.
    pub(crate) fn install(
        &'static self,
        file: Arc<dyn File>,
        cloexec: bool,
        path: Option<&str>,
    ) -> Result<RawFd, Errno> {
        let (client, end, id) = pair()?;
        if !cloexec {
            rustix::io::fcntl_setfd(&client, FdFlags::empty())?;
        }
        let fd = client.into_raw_fd();
        let added = self.add(LocalFile::new(file, end, path), id, vec![fd]);
        if added.is_err() {
            // SAFETY: made just now.
            unsafe { rustix::io::close(fd) };
        }
        added.map(|()| fd)
    }

    /// Makes a descriptor for `file` that is to be sent to another process.
    pub(crate) fn export(
        &'static self,
        file: Arc<dyn File>,
        path: Option<&str>,
    ) -> Result<OwnedFd, Errno> {
        let (client, end, id) = pair()?;
        self.add(LocalFile::new(file, end, path), id, Vec::new())?;
        Ok(client)
    }

    /// Every file is watched from the start: it may get to other processes in
    /// ways that we never see, such as `posix_spawn`.
    fn add(&'static self, file: LocalFile, id: Id, fds: Vec<RawFd>) -> Result<(), Errno> {
        let epoll = server::start(self)?;
        let end = Arc::clone(&file.end);
        let file = Some(Arc::new(file));
        self.slab.write().insert(Handle::new(id, file, fds));
        end.watch(epoll, id.0);
        Ok(())
    }

    /// `fd` is a copy of the emulated `old`, made by `dup` and its like.
    pub(crate) fn duplicated(&self, old: RawFd, fd: RawFd) {
        let mut slab = self.slab.write();
        let id = slab.by_fd(old).map(|handle| handle.id);
        if let Some(id) = id {
            slab.attach(fd, id);
        }
    }

    /// Says that `fd` is closed or about to be; what then has no descriptor
    /// left must go to [`Self::closed`] once it is.
    pub(crate) fn closing(&self, fd: RawFd) -> Option<Id> {
        if slot_of(fd) == 0 { None } else { self.slab.write().begin_close(fd) }
    }

    /// Releases a file whose last descriptor here is closed, unless others
    /// still hold it.
    pub(crate) fn closed(&self, id: Id) {
        let mut slab = self.slab.write();
        let Some(handle) = slab.by_id(id) else { return };
        let elsewhere = handle.file.as_ref().is_some_and(|file| !file.end.hung_up());
        // If others hold it, the last of them releases it.
        handle.closing = false;
        let handle = if elsewhere { None } else { slab.remove_unused(id) };
        drop(slab);
        // Released here and now, as the kernel does; without our lock, because
        // the file may well call us.
        drop(handle);
    }

    /// `fd` came from elsewhere; if it is an emulated file's, it is one from
    /// now on.
    pub(crate) fn adopt(&self, fd: RawFd) {
        // SAFETY: the descriptor was just received or found open.
        let Some(id) = Id::of(unsafe { BorrowedFd::borrow_raw(fd) }) else {
            return;
        };
        let mut slab = self.slab.write();
        if !slab.attach(fd, id) {
            slab.insert(Handle::new(id, None, vec![fd]));
        }
    }

    /// No copy of the client's end of this file is left anywhere.
    pub(crate) fn hung_up(&self, id: Id) {
        let mut slab = self.slab.write();
        if slab.by_id(id).is_some_and(|handle| handle.closing) {
            // Whoever closes it is about to release it, and waits for that.
            return;
        }
        // Descriptors closed behind our back, in one of the C library's own calls.
        let stale = slab.by_id(id).map(|handle| handle.fds.clone()).unwrap_or_default();
        for fd in stale {
            slab.detach(fd);
        }
        let handle = slab.remove_unused(id);
        drop(slab);
        drop(handle);
    }

    /// Finds emulated files among the descriptors that this process was born with.
    pub(crate) fn scan(&self) {
        let Ok(dir) = std::fs::read_dir("/proc/self/fd") else {
            return;
        };
        let names = dir.flatten().map(|entry| entry.file_name());
        let fds: Vec<RawFd> = names.filter_map(|name| name.to_str()?.parse().ok()).collect();
        for fd in fds {
            self.adopt(fd);
        }
    }
}

/// Closes a descriptor of the program's, emulated or not.
pub(crate) fn close(fd: RawFd) -> i32 {
    let process = current();
    let last = if process.is_borrowed() { None } else { process.closing(fd) };
    // SAFETY: the program gives up this descriptor.
    let result = unsafe { next::close(fd) };
    if let Some(id) = last {
        process.closed(id);
    }
    result
}

/// A duplicate of a descriptor of the program's, for us.
pub(crate) fn duplicate(fd: RawFd) -> Result<OwnedFd, Errno> {
    if fd < 0 {
        return Err(Errno::BADF);
    }
    // SAFETY: only duplicated; the kernel says EBADF if it is not open.
    rustix::io::fcntl_dupfd_cloexec(unsafe { BorrowedFd::borrow_raw(fd) }, 0)
}
