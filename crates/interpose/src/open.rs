//! Opening and looking at paths of ours.

use std::ffi::{CStr, CString, c_char, c_int};
use std::io::{Seek, Write};
use std::os::fd::{IntoRawFd, RawFd};
use std::sync::Arc;

use host::{Errno, File, FileMode, PAGE_SIZE, Task};
use rustix::fs::{MemfdFlags, Mode, OFlags};
use rustix::io::FdFlags;

use crate::attribute::AttributeFile;
use crate::client;
use crate::paths::{Captures, Node, PathTable, begins_like, spell_out_self};
use crate::process::{CONFIG, Config, Inside, Machine, current};
use crate::sys::{errno, set_errno};
use crate::task::LocalTask;

/// A path that may be ours, by its first bytes: all that others cost.
///
/// # Safety
/// `path` is null or a C string, as the C library itself wants it.
#[inline]
pub(crate) unsafe fn candidate<'a>(path: *const c_char) -> Option<&'a str> {
    let config = CONFIG.get()?;
    // What no address can be is for the kernel to refuse: EFAULT, not a signal.
    if !(PAGE_SIZE..1 << 56).contains(&(path as u64)) {
        return None;
    }
    // SAFETY: not null, so a C string.
    let path = unsafe { CStr::from_ptr(path) }.to_bytes();
    let ours = path.first() == Some(&b'/')
        && (begins_like(path, config.prefixes.build)
            || begins_like(path, config.prefixes.if_built))
        && !Inside::now();
    if ours { std::str::from_utf8(path).ok() } else { None }
}

/// A relative path that may be ours, made absolute.
///
/// # Safety
/// As for [`candidate`].
pub(crate) unsafe fn relative_candidate(dir: c_int, path: *const c_char) -> Option<String> {
    let config = CONFIG.get()?;
    if config.prefixes.relative.is_empty() || dir < 0 && dir != libc::AT_FDCWD || Inside::now() {
        return None;
    }
    if !(PAGE_SIZE..1 << 56).contains(&(path as u64)) {
        return None;
    }
    // SAFETY: an address, so a C string.
    let path = unsafe { CStr::from_ptr(path) }.to_bytes();
    if !begins_like(path, config.prefixes.relative) {
        return None;
    }
    let base = match dir {
        libc::AT_FDCWD => "/proc/self/cwd".to_owned(),
        _ => format!("/proc/self/fd/{dir}"),
    };
    let base = rustix::fs::readlink(base, Vec::new()).ok()?.into_bytes();
    let base = shown(&base).unwrap_or(&base);
    let full = format!("{}/{}", str::from_utf8(base).ok()?, str::from_utf8(path).ok()?);
    begins_like(full.as_bytes(), config.prefixes.build).then_some(full)
}

/// The path to give to the C library.
pub(crate) struct Redirected {
    path: *const c_char,
    /// What `path` points to, if it is not the caller's.
    ours: Option<CString>,
}

impl Redirected {
    pub(crate) fn as_ptr(&self) -> *const c_char {
        self.ours.as_ref().map_or(self.path, |ours| ours.as_ptr())
    }

    pub(crate) fn is_ours(&self) -> bool {
        self.ours.is_some()
    }
}

/// Where to look for a path that no node is at.
///
/// # Safety
/// As for [`candidate`].
#[inline]
pub(crate) unsafe fn redirect(path: *const c_char) -> Redirected {
    // SAFETY: as promised by the caller.
    let ours = unsafe { candidate(path) }.and_then(overlaid);
    Redirected { path, ours }
}

fn overlaid(path: &str) -> Option<CString> {
    in_trees(path, |paths| paths.overlaid(path))
}

/// What `find` finds for a path in the trees that programs see.
fn in_trees<T>(path: &str, find: impl FnOnce(&PathTable) -> Option<T>) -> Option<T> {
    let config = CONFIG.get()?;
    let before = errno();
    let build = begins_like(path.as_bytes(), config.prefixes.build);
    let ours = trees(config, path, build).and_then(find);
    set_errno(before);
    ours
}

/// The table whose trees programs see: this process's, or the one of whoever forked it.
fn trees(config: &Config, path: &str, build: bool) -> Option<&'static PathTable> {
    let process = current();
    match process.machine(config, path, build) {
        Some(Machine::Here(paths)) => Some(paths),
        _ => process.owner_paths,
    }
}

/// A path as programs know it, if it is in a tree.
pub(crate) fn shown(path: &[u8]) -> Option<&[u8]> {
    trees(CONFIG.get()?, "", false)?.shown(path)
}

/// Who answers for a path of ours.
enum Place {
    Here(&'static Node, Captures),
    /// The process at the other end of this descriptor.
    Owner(RawFd),
}

/// Finds a path, and what it is called with `self` spelt out.
fn find(path: &str) -> Option<(Place, String)> {
    let config = CONFIG.get()?;
    let process = current();
    let full = spell_out_self(path, process.pid(), tid);
    let build = begins_like(path.as_bytes(), config.prefixes.build);
    match process.machine(config, &full, build)? {
        Machine::Here(paths) => {
            let (node, captures) = paths.find(&full)?;
            Some((Place::Here(node, captures), full))
        }
        Machine::Owner(route) => Some((Place::Owner(route), full)),
    }
}

pub(crate) fn tid() -> u32 {
    rustix::thread::gettid().as_raw_nonzero().get() as u32
}

/// Opens a path; `None` if it is the kernel's after all.
pub(crate) fn open(path: &str, flags: c_int) -> Option<Result<RawFd, Errno>> {
    let (place, full) = find(path).or_else(|| find(&linked(path, flags)?))?;
    let _inside = Inside::enter();
    let result = match place {
        Place::Here(node, captures) => LocalTask::current()
            .and_then(|task| open_node(node, &captures, &full, flags, &task).transpose())
            .transpose()?
            .and_then(|opened| install(opened, &full, flags & libc::O_CLOEXEC != 0)),
        Place::Owner(route) => {
            let Ok(result) = client::open(route, &full, flags) else {
                current().forget_owner();
                return open(path, flags);
            };
            result?
        }
    };
    tracing::debug!(path, ?result, "open");
    Some(result)
}

/// What `path` leads to in a tree, if that is to be written.
fn linked(path: &str, flags: c_int) -> Option<String> {
    let writes = flags & libc::O_ACCMODE != libc::O_RDONLY;
    writes.then(|| in_trees(path, |paths| paths.resolved(path)))?
}

/// What opening a node gave.
pub(crate) enum Opened {
    File(Arc<dyn File>),
    Text(Vec<u8>),
}

fn install(opened: Opened, path: &str, cloexec: bool) -> Result<RawFd, Errno> {
    match opened {
        Opened::File(file) => current().install(file, cloexec, Some(path)),
        Opened::Text(text) => {
            let file = text_file(&text)?;
            if !cloexec {
                rustix::io::fcntl_setfd(&file, FdFlags::empty())?;
            }
            Ok(file.into_raw_fd())
        }
    }
}

/// Opens a node for `task`; `None` if the kernel should answer.
pub(crate) fn open_node(
    node: &Node,
    captures: &Captures,
    path: &str,
    flags: c_int,
    task: &dyn Task,
) -> Option<Result<Opened, Errno>> {
    if let Node::CharDevice(device) = node {
        if !device.exists() {
            return Some(Err(Errno::NOENT));
        }
        if flags & libc::O_DIRECTORY != 0 {
            return Some(Err(Errno::NOTDIR));
        }
        if flags & libc::O_CREAT != 0 && flags & libc::O_EXCL != 0 {
            return Some(Err(Errno::EXIST));
        }
        return Some(device.open(task).map(Opened::File));
    }
    if flags & libc::O_ACCMODE != libc::O_RDONLY {
        if let Node::Attribute(store) = node {
            let file = AttributeFile::new(store, overlaid(path)?);
            return Some(Ok(Opened::File(Arc::new(file))));
        }
        // The kernel's file may be opened for writing, text of ours may not.
        return matches!(node, Node::Text(_)).then_some(Err(Errno::ACCESS));
    }
    Some(content(node, captures, path)?.map(Opened::Text))
}

/// The text behind a node that is not a device; `None` if the kernel should
/// answer, because it has no such file to change.
fn content(node: &Node, captures: &Captures, path: &str) -> Option<Result<Vec<u8>, Errno>> {
    match node {
        Node::CharDevice(_) | Node::Attribute(_) => None,
        Node::Text(text) => Some(text(captures).ok_or(Errno::NOENT)),
        Node::Patched(patch) => {
            let file =
                rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
            let mut real = Vec::new();
            std::io::Read::read_to_end(&mut std::fs::File::from(file), &mut real).ok()?;
            Some(Ok(patch(captures, real)))
        }
    }
}

/// A file of the kernel's with this content, at its beginning; close-on-exec.
pub(crate) fn text_file(content: &[u8]) -> Result<std::fs::File, Errno> {
    let fd = rustix::fs::memfd_create("text", MemfdFlags::CLOEXEC)?;
    let mut file = std::fs::File::from(fd);
    let io = |e: std::io::Error| Errno::from_io_error(&e).unwrap_or(Errno::IO);
    file.write_all(content).map_err(io)?;
    file.rewind().map_err(io)?;
    Ok(file)
}

/// What `stat` tells of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Look {
    /// A character device with these numbers.
    Device(u32, u32),
    /// A read-only file of this size.
    Text(u64),
}

/// Looks at a path; `None` if the kernel's own answer is right.
pub(crate) fn look(path: &str) -> Option<Result<Look, Errno>> {
    let (place, full) = find(path)?;
    let _inside = Inside::enter();
    match place {
        Place::Here(node, captures) => look_at(node, &captures),
        Place::Owner(route) => {
            let Ok(result) = client::look(route, &full) else {
                current().forget_owner();
                return look(path);
            };
            result
        }
    }
}

/// Looks at a node; `None` if the kernel's own answer is right.
pub(crate) fn look_at(node: &Node, captures: &Captures) -> Option<Result<Look, Errno>> {
    match node {
        Node::CharDevice(device) if !device.exists() => Some(Err(Errno::NOENT)),
        Node::CharDevice(device) => Some(Ok(match device.mode() {
            FileMode::CharDevice { major, minor } => Look::Device(major, minor),
            FileMode::AnonInode(_) => Look::Device(0, 0),
        })),
        Node::Text(text) => {
            let size = text(captures).map(|content| content.len() as u64);
            Some(size.map(Look::Text).ok_or(Errno::NOENT))
        }
        Node::Patched(_) | Node::Attribute(_) => None,
    }
}
