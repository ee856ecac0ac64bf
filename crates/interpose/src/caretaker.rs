//! Files that other processes still hold when the one that serves them leaves.
//!
//! In the kernel a file lives as long as its last descriptor. Here its state is
//! memory of the process that opened it; so before that exits or becomes another
//! program, a copy of it goes on serving, and ends with the last file.
//!
//! A process that is killed leaves nobody behind: its files then answer `ENODEV`.

use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};

use crate::process::{Inside, Process, existing};
use crate::sys::syscall6;
use crate::{fork, hooks, server};

/// A caretaker that waits to hear whether it is needed.
pub(crate) struct Caretaker {
    process: &'static Process,
    /// Closes when this process exits or execs: then it is.
    signal: OwnedFd,
}

impl Caretaker {
    /// Tells it that this process stays after all.
    pub(crate) fn dismiss(self) {
        let _ = rustix::io::write(&self.signal, &[0]);
        if let Ok(host) = self.process.host() {
            host.inherit(false);
        }
    }
}

/// Before exec: leaves a caretaker if this process serves any file. One that
/// nobody else holds is noticed by the caretaker.
pub(crate) fn before_exec() -> Option<Caretaker> {
    let process = existing().filter(|process| !fork::unnoticed() && !process.is_borrowed())?;
    let caretaker = if process.slab.read().serves() { start(process) } else { None };
    end(process);
    caretaker
}

/// Before exit: gives up this process's own descriptors, and leaves a caretaker
/// if others hold what they opened.
pub(crate) extern "C" fn before_exit() {
    let process = existing().filter(|process| !fork::unnoticed() && !process.is_borrowed());
    if let Some(process) = process {
        leave(process);
        end(process);
    }
}

/// Whoever wants to know is told that this is the end.
fn end(process: &Process) {
    if let Some(hook) = process.at_end.get() {
        let _inside = Inside::enter();
        hook();
    }
}

fn leave(process: &'static Process) {
    if !process.slab.read().serves() {
        return;
    }
    let fds = process.slab.read().fds_in(0, u32::MAX);
    for fd in fds {
        crate::process::close(fd);
    }
    if process.slab.read().serves()
        && let Some(caretaker) = start(process)
    {
        // Closed by the end of the process, however that comes about.
        std::mem::forget(caretaker.signal);
    }
}

fn start(process: &'static Process) -> Option<Caretaker> {
    process.host().ok()?.inherit(true);
    let (wait, signal) = pipe_with(PipeFlags::CLOEXEC).ok()?;
    // Twice, so that it is nobody's child. First with the C library's care for its
    // own locks, and with our handler's for ours.
    match fork::copy() {
        0 => {
            if clone() == 0 {
                drop(signal);
                take_care(process, wait);
            }
            exit()
        }
        child if child > 0 => {
            // SAFETY: waits for the intermediate process, which leaves at once.
            unsafe {
                syscall6(libc::SYS_wait4, [child as usize, 0, libc::__WALL as usize, 0, 0, 0])
            };
            Some(Caretaker { process, signal })
        }
        _ => None,
    }
}

/// A bare fork: no handlers, which would make the child forget.
fn clone() -> isize {
    // SAFETY: no flags: a plain fork.
    unsafe { syscall6(libc::SYS_clone, [0; 6]) }
}

fn exit() -> ! {
    loop {
        // SAFETY: ends this process, without handlers.
        unsafe { syscall6(libc::SYS_exit_group, [0; 6]) };
    }
}

/// The caretaker's life.
fn take_care(process: &'static Process, wait: OwnedFd) -> ! {
    // SAFETY: this is the copy that `fork::copy` made, and has one thread.
    let process = unsafe { fork::take_over(process) };
    let Ok(wait) = host_linux::PrivateFd::new(wait) else { exit() };
    // Pipes and terminals of the program's must not stay open because of us, and
    // its emulated descriptors least of all.
    hooks::close_all();
    let _ = rustix::process::setsid();
    let mut byte = [0];
    let needed = loop {
        match rustix::io::read(wait.as_fd(), &mut byte) {
            Err(Errno::INTR) => {}
            other => break other == Ok(0),
        }
    };
    drop(wait);
    if needed && let Ok(epoll) = server::start(process) {
        server::serve_while(process, epoll, || process.slab.read().serves());
    }
    end(process);
    exit()
}
