//! The thread of another process that makes a call, as a character device sees
//! it.

use std::cell::OnceCell;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::sync::Arc;

use host::{Capability, Errno, File, Mm, OpenFile, Task, User};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use crate::handle::Id;
use crate::process::Process;
use crate::sys::syscall6;
use crate::wire::{Message, Tag, receive, send};

/// A thread that waits for the answer to its call.
pub(crate) struct RemoteTask<'a> {
    process: &'static Process,
    pid: u32,
    tid: u32,
    mm: Arc<dyn Mm>,
    pidfd: OwnedFd,
    call: &'a OwnedFd,
    /// Real user and effective capabilities.
    credentials: OnceCell<(u32, u64)>,
}

impl<'a> RemoteTask<'a> {
    pub(crate) fn new(
        process: &'static Process,
        pid: u32,
        tid: u32,
        call: &'a OwnedFd,
    ) -> Result<Self, Errno> {
        let number = Pid::from_raw(pid as i32).ok_or(Errno::SRCH)?;
        Ok(Self {
            process,
            pid,
            tid,
            mm: process.host()?.mm_of(pid).map_err(|_| Errno::SRCH)?,
            pidfd: pidfd_open(number, PidfdFlags::empty())?,
            call,
            credentials: OnceCell::new(),
        })
    }

    /// The process and the thread.
    pub(crate) fn caller(&self) -> (u32, u32) {
        (self.pid, self.tid)
    }

    fn credentials(&self) -> (u32, u64) {
        *self.credentials.get_or_init(|| {
            let Self { pid, tid, .. } = self;
            // The thread's own if it is known here by that number.
            let status = std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/status"))
                .or_else(|_| std::fs::read_to_string(format!("/proc/{pid}/status")))
                .unwrap_or_default();
            let field = |name| {
                let line = status.lines().find_map(|line| line.strip_prefix(name));
                line.and_then(|line| line.split_ascii_whitespace().next())
            };
            let uid = field("Uid:").and_then(|uid| uid.parse().ok());
            let effective = field("CapEff:").and_then(|caps| u64::from_str_radix(caps, 16).ok());
            (uid.unwrap_or(u32::MAX), effective.unwrap_or(0))
        })
    }

    /// Asks the caller's process to do something and tell a number.
    fn ask(&self, message: &Message, fd: Option<&OwnedFd>) -> Result<RawFd, Errno> {
        let fds: Vec<_> = fd.iter().map(AsFd::as_fd).collect();
        send(self.call, message, &fds)?;
        let (answer, _) = receive(self.call).ok_or(Errno::INTR)?;
        match answer.words[0] as i64 {
            _ if answer.tag != Tag::Number => Err(Errno::PROTO),
            number @ 0.. => Ok(number as RawFd),
            errno => Err(Errno::from_raw_os_error(-errno as i32)),
        }
    }
}

impl Task for RemoteTask<'_> {
    fn mm(&self) -> &Arc<dyn Mm> {
        &self.mm
    }

    fn user(&self) -> Arc<User> {
        self.process.user(self.credentials().0)
    }

    fn capable(&self, capability: Capability) -> bool {
        self.credentials().1 >> capability.number() & 1 != 0
    }

    fn memlock_limit(&self) -> u64 {
        let mut limit = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
        let args =
            [self.pid as usize, libc::RLIMIT_MEMLOCK as usize, 0, &raw mut limit as usize, 0, 0];
        // SAFETY: the kernel fills `limit`, which has the layout it wants. An
        // infinite limit is `u64::MAX` to it and to us.
        unsafe { syscall6(libc::SYS_prlimit64, args) };
        limit.rlim_cur
    }

    fn file(&self, fd: RawFd) -> Result<OpenFile, Errno> {
        let fd = pidfd_getfd(&self.pidfd, fd, PidfdGetfdFlags::empty())?;
        let Some(id) = Id::of(&fd) else {
            return Ok(OpenFile::Kernel(self.process.host()?.memory_file(fd)));
        };
        let file = self.process.slab.read().own_file(id).ok_or(Errno::BADF)?;
        Ok(OpenFile::Emulated(Arc::clone(&file.file)))
    }

    fn install(&self, file: Arc<dyn File>, cloexec: bool) -> Result<RawFd, Errno> {
        if host::fail::point() {
            return Err(Errno::MFILE);
        }
        let client = self.process.export(file, None)?;
        self.ask(&Message::new(Tag::Install, &[u64::from(cloexec)]), Some(&client))
    }

    fn uninstall(&self, fd: RawFd) {
        // A caller that is gone has closed it.
        let _ = self.ask(&Message::new(Tag::Uninstall, &[fd as u64]), None);
    }
}
