//! Calls from other processes: the side that answers.
//!
//! One thread waits; each call gets a thread of its own, because the process
//! that made it may stop or die at any moment.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use host::{Errno, MappedMemory, MmapRequest, Task};
use host_linux::PrivateFd;
use rustix::event::epoll;
use rustix::net::{RecvFlags, sockopt::socket_peercred};

use crate::calls::Identity;
use crate::handle::{Id, LocalFile, ServerEnd};
use crate::observe;
use crate::open::{self, Look, Opened};
use crate::process::{Inside, Process};
use crate::remote_task::RemoteTask;
use crate::wire::{Message, Tag, receive, receive_bytes, send};

/// The token of [`Process::control`]; no file is named 0.
pub(crate) const CONTROL: u64 = 0;

/// What the service waits on, started if it was not.
pub(crate) fn start(process: &'static Process) -> Result<&'static Arc<PrivateFd>, Errno> {
    if let Some(epoll) = process.service.get() {
        return Ok(epoll);
    }
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let epoll = Arc::new(PrivateFd::new(epoll).map_err(|_| Errno::MFILE)?);
    let mut ours = false;
    let shared = process.service.get_or_init(|| {
        ours = true;
        epoll
    });
    if ours {
        spawn("softiommu", move || serve_while(process, shared, || true))?;
    }
    Ok(shared)
}

/// Starts a thread that takes none of the program's signals.
pub(crate) fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), Errno> {
    // SAFETY: the sets are initialised before they are read, and the old mask is
    // put back.
    let spawned = unsafe {
        let (mut all, mut old) = (std::mem::zeroed(), std::mem::zeroed());
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut old);
        let spawned = std::thread::Builder::new().name(name.into()).spawn(run);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const old, std::ptr::null_mut());
        spawned
    };
    spawned.map(drop).map_err(|_| Errno::AGAIN)
}

/// The service: hands out calls and notices when a file's last descriptor is
/// closed somewhere.
pub(crate) fn serve_while(
    process: &'static Process,
    epoll: &'static Arc<PrivateFd>,
    needed: impl Fn() -> bool,
) {
    let _inside = Inside::enter();
    let mut events = Vec::with_capacity(64);
    while needed() {
        events.clear();
        match epoll::wait(epoll, rustix::buffer::spare_capacity(&mut events), None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => return,
        }
        for event in &events {
            let epoll::Event { flags, data } = *event;
            let token = data.u64();
            let end = if token == CONTROL {
                process.control.get().map(|(_, end)| Arc::clone(end))
            } else {
                // Not the file: it is released by who closes it.
                process.slab.read().own_end(Id(token))
            };
            if let Some(end) = end {
                accept(process, Id(token), &end);
            }
            if flags.contains(epoll::EventFlags::HUP) {
                process.hung_up(Id(token));
            }
        }
    }
}

/// Starts the calls that wait at `end`.
fn accept(process: &'static Process, id: Id, end: &ServerEnd) {
    let mut byte = [0; 8];
    while let Ok((n, fds)) = receive_bytes(&end.fd, &mut byte, RecvFlags::DONTWAIT) {
        if n == 0 {
            return;
        }
        let mut fds = fds.into_iter();
        if let (Some(call), client) = (fds.next(), fds.next()) {
            // Without a thread the caller sees its call closed, and fails.
            let _ = spawn("softiommu call", move || {
                let _inside = Inside::enter();
                serve(process, id, &call, client);
            });
        }
    }
}

/// Serves one call.
fn serve(process: &'static Process, id: Id, call: &OwnedFd, client: Option<OwnedFd>) {
    serve_call(process, id, call, client);
    // What is left of an injected failure went back with the answer.
    host::fail::set_nth(0);
}

fn serve_call(process: &'static Process, id: Id, call: &OwnedFd, client: Option<OwnedFd>) {
    let Some((request, _)) = receive(call) else {
        return;
    };
    let pid = socket_peercred(call).map(|cred| cred.pid.as_raw_nonzero().get() as u32);
    // The references to the file end here, before the answer: the caller may
    // close it next, and that must release it.
    let answer = pid.and_then(|pid| {
        let task = RemoteTask::new(process, pid, request.words[0] as u32, call)?;
        if matches!(request.tag, Tag::Open | Tag::Look) {
            return path_call(process, &task, &request, call);
        }
        let file = process.slab.read().own_file(id).ok_or(Errno::NODEV)?;
        file_call(process, &file, &task, &request, call, client)
    });
    tracing::trace!(?request.tag, ?answer, "call from another process");
    let answer = match answer {
        Ok(Some(answer)) => answer,
        // Answered already.
        Ok(None) => return,
        Err(e) => Message::new(Tag::Failed, &[e.raw_os_error() as u64]),
    };
    // The caller may have died: then nobody misses the answer.
    let _ = send(call, &answer, &[]);
}

fn done(value: u64) -> Message {
    Message::new(Tag::Done, &[value])
}

fn file_call(
    process: &'static Process,
    local: &LocalFile,
    task: &RemoteTask<'_>,
    request: &Message,
    call: &OwnedFd,
    client: Option<OwnedFd>,
) -> Result<Option<Message>, Errno> {
    let [_, a, b, c, d, _] = request.words;
    let pos = (c != 0).then_some(d);
    match request.tag {
        Tag::Ioctl => {
            // Its own reference would keep the file open beyond its last close.
            drop(client);
            let result = observe::ioctl(process, local, || task.caller(), task, a as u32, b)?;
            Ok(Some(done(result as u64)))
        }
        Tag::Read => {
            let result = local.file.read(task, a, b as usize, pos);
            if let Some(client) = client {
                local.update_readable(client);
            }
            Ok(Some(done(result? as u64)))
        }
        Tag::Write => Ok(Some(done(local.file.write(task, a, b as usize, pos)? as u64))),
        Tag::Identity => {
            let Identity { device, name } = Identity::of(local);
            let (major, minor) = device.unwrap_or_default();
            let words = [0, u64::from(device.is_some()), u64::from(major), u64::from(minor)];
            Ok(Some(Message::with_text(Tag::Done, &words, &name)))
        }
        Tag::Mmap => {
            let bit = |n: u32| c >> n & 1 != 0;
            let request = MmapRequest {
                offset: a,
                len: b,
                read: bit(0),
                write: bit(1),
                exec: bit(2),
                shared: bit(3),
            };
            drop(client);
            let backing = local.file.mmap(task, request)?;
            match backing.memory {
                MappedMemory::File { fd, offset } => {
                    send(call, &Message::new(Tag::Done, &[offset]), &[fd.as_fd()])?;
                }
                MappedMemory::Registers => send(call, &Message::new(Tag::Done, &[0]), &[])?,
            }
            // The user keeps its end of the call until the last munmap.
            while receive(call).is_some() {}
            drop(backing.guard);
            Ok(None)
        }
        _ => Err(Errno::NOSYS),
    }
}

fn path_call(
    process: &'static Process,
    task: &dyn Task,
    request: &Message,
    call: &OwnedFd,
) -> Result<Option<Message>, Errno> {
    let path = std::str::from_utf8(&request.text).map_err(|_| Errno::NOENT)?;
    let not_ours = Ok(Some(Message::new(Tag::NotOurs, &[])));
    let Some((node, captures)) = process.built_paths().and_then(|paths| paths.find(path)) else {
        return not_ours;
    };
    if request.tag == Tag::Look {
        return match open::look_at(node, &captures) {
            None => not_ours,
            Some(look) => {
                let words = match look? {
                    Look::Device(major, minor) => [0, 1, u64::from(major), u64::from(minor)],
                    Look::Text(size) => [0, 0, size, 0],
                };
                Ok(Some(Message::new(Tag::Done, &words)))
            }
        };
    }
    let fd = match open::open_node(node, &captures, path, request.words[1] as i32, task) {
        None => return not_ours,
        Some(opened) => match opened? {
            Opened::File(file) => process.export(file, Some(path))?,
            Opened::Text(text) => open::text_file(&text)?.into(),
        },
    };
    send(call, &Message::new(Tag::Done, &[0]), &[fd.as_fd()])?;
    Ok(None)
}
