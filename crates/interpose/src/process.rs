//! What this process knows: its machine, its emulated files.

use std::cell::Cell;
use std::os::fd::{AsFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Arc, OnceLock};

use host::{Errno, File, User};
use host_linux::Host;
use parking_lot::{Mutex, RwLock};
use rustix::io::FdFlags;

use crate::handle::{Id, LocalFile, pair};
use crate::paths::{PathTable, Prefixes};
use crate::table::{Handle, Slab, slot_of};
use crate::{fork, next};

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
    // SAFETY: set once to a leaked box, replaced only by another, in a child.
    unsafe { &*current }
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

/// The state if there is any yet.
pub(crate) fn existing() -> Option<&'static Process> {
    // SAFETY: null or a leaked box.
    unsafe { CURRENT.load(Ordering::Acquire).as_ref() }
}

impl Process {
    pub(crate) fn new(slab: Slab) -> Self {
        Self {
            pid: rustix::process::getpid().as_raw_nonzero().get() as u32,
            host: OnceLock::new(),
            paths: OnceLock::new(),
            slab: RwLock::new(slab),
            users: Mutex::default(),
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether this is really a `vfork` child borrowing our memory: what it
    /// does to its descriptors is not done to ours.
    pub(crate) fn is_borrowed(&self) -> bool {
        rustix::process::getpid().as_raw_nonzero().get() as u32 != self.pid
    }

    /// The memory of this process.
    pub(crate) fn host(&self) -> Result<&Arc<Host>, Errno> {
        if let Some(host) = self.host.get() {
            return Ok(host);
        }
        let host = Host::new().map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::NODEV))?;
        Ok(self.host.get_or_init(|| host))
    }

    /// The path table, built now if it was not.
    pub(crate) fn paths(&self, config: &Config) -> Result<&PathTable, Errno> {
        let host = self.host()?;
        Ok(self.paths.get_or_init(|| {
            let _inside = Inside::enter();
            (config.make)(host)
        }))
    }

    /// The path table if it has been built.
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

    /// The emulated file behind `fd`: `None` if there is none, `Some(None)` if
    /// another process serves it.
    #[inline]
    pub(crate) fn file(&self, fd: RawFd) -> Option<Option<Arc<LocalFile>>> {
        self.slab.read().by_fd(fd).map(|handle| handle.file.clone())
    }

    /// Gives `file` a new descriptor of this process.
    pub(crate) fn install(
        &self,
        file: Arc<dyn File>,
        cloexec: bool,
        path: Option<&str>,
    ) -> Result<RawFd, Errno> {
        let (client, end, id) = pair()?;
        if !cloexec {
            rustix::io::fcntl_setfd(&client, FdFlags::empty())?;
        }
        let file = Some(Arc::new(LocalFile::new(file, end, path)));
        let fd = client.into_raw_fd();
        self.slab.write().insert(Handle {
            id,
            file,
            fds: vec![fd],
            shared: false,
        });
        Ok(fd)
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
        if slot_of(fd) == 0 {
            None
        } else {
            self.slab.write().detach(fd)
        }
    }

    /// Releases a file whose last descriptor here is closed, unless others
    /// still hold it.
    pub(crate) fn closed(&self, id: Id) {
        let mut slab = self.slab.write();
        let Some(handle) = slab.by_id(id) else { return };
        let elsewhere =
            handle.shared && handle.file.as_ref().is_some_and(|file| !file.end.hung_up());
        let handle = if elsewhere {
            None
        } else {
            slab.remove_unused(id)
        };
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
            slab.insert(Handle {
                id,
                file: None,
                fds: vec![fd],
                shared: true,
            });
        }
    }

    /// The file behind `fd` may from now on be held by others too.
    pub(crate) fn share(&self, fd: RawFd) {
        let mut slab = self.slab.write();
        let id = slab.by_fd(fd).map(|handle| handle.id);
        if let Some(handle) = id.and_then(|id| slab.by_id(id)) {
            handle.shared = true;
        }
    }

    /// The file of this process that `fd`, in whatever process, is a copy of.
    pub(crate) fn own_file(&self, fd: impl AsFd) -> Option<Arc<LocalFile>> {
        let id = Id::of(fd)?;
        self.slab.write().by_id(id)?.file.clone()
    }
}

/// Closes a descriptor of the program's, emulated or not.
pub(crate) fn close(fd: RawFd) -> i32 {
    let process = current();
    let last = if process.is_borrowed() {
        None
    } else {
        process.closing(fd)
    };
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
