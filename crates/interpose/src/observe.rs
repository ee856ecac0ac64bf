//! Calls on emulated files, for who watches; and the end of a process.

use std::sync::Arc;

use host::{Errno, Task};

use crate::handle::LocalFile;
use crate::process::{Process, current};

/// An ioctl on an emulated file.
pub struct Ioctl<'a> {
    /// Where the file was opened, as `/proc/self/fd` shows it.
    pub file: &'a str,
    /// The process that makes the call: this one, or one that shares the file.
    pub process: u32,
    /// Its thread, by the number that it has there.
    pub thread: u32,
    /// The caller's memory and more.
    pub task: &'a dyn Task,
    /// The command.
    pub command: u32,
    /// The third argument.
    pub arg: u64,
}

/// What is to be told how a call ended.
pub type Ended<'a> = Box<dyn FnOnce(Result<i32, Errno>) + 'a>;

/// Who watches. Called by whoever executes the call: do not wait.
pub trait Observer: Send + Sync {
    /// An ioctl begins; the result is told when it is over.
    fn ioctl<'a>(&'a self, ioctl: &Ioctl<'a>) -> Ended<'a>;
}

/// Has `observer` told of the calls that this process executes from now on, its own and those of others. The first one
/// stays. Forked processes do not have it, but for the copy of this one that is left behind for files that others still
/// have: its locks are as they were at some moment, held by threads that it does not have.
pub fn observe(observer: impl Observer + 'static) {
    let _ = current().observer.set(Arc::new(observer));
}

/// Has `hook` called when this process ends or becomes another program, after the emulated files that only it has were
/// closed; not if it is killed. The first one stays. It is called in the same processes as an observer.
pub fn before_end(hook: impl Fn() + Send + Sync + 'static) {
    let _ = current().at_end.set(Arc::new(hook));
}

/// Executes an ioctl on a file of this process's machine.
#[inline]
pub(crate) fn ioctl(
    process: &'static Process,
    file: &LocalFile,
    caller: impl FnOnce() -> (u32, u32),
    task: &dyn Task,
    command: u32,
    arg: u64,
) -> Result<i32, Errno> {
    match process.observer.get() {
        None => file.file.ioctl(task, command, arg),
        Some(observer) => {
            let (process, thread) = caller();
            let ioctl = Ioctl { file: &file.name, process, thread, task, command, arg };
            let ended = observer.ioctl(&ioctl);
            let result = file.file.ioctl(task, command, arg);
            ended(result);
            result
        }
    }
}
