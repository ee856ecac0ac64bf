//! Interposes the C library, so that device nodes can be served by code in the
//! same process: `open`, `ioctl`, `mmap`, `poll` on them work, in a program that
//! knows nothing of it.
//!
//! It works as a preloaded library (a `cdylib` that depends on this crate and
//! calls [`install`] when loaded) and linked into a Rust program or test, where
//! the standard library's own calls arrive here too.
//!
//! It knows nothing of what the devices are: [`install`] takes a table of paths.
//!
//! The process that opens a file serves it; forked children, programs after exec
//! and receivers of a passed descriptor call that process through the
//! descriptor itself, which is one end of a socket pair.
//!
//! # Limits
//! - Static programs and bare system call instructions are not seen, nor are the
//!   C library's calls to itself: `execl`, `glob` below our paths, `dprintf`, a standard stream
//!   whose descriptor is replaced by one of ours.
//! - Paths are compared as written, without `..` or symbolic links but for those in a [`Tree`];
//!   relative ones only where [`Prefixes::relative`] says so.
//! - A program that makes a directory of a [`Tree`] its working directory sees where it really is.
//! - A path argument that points nowhere crashes instead of failing with `EFAULT`.
//! - Registers can be mapped on x86-64, by the process that opened the file, and be accessed by it with the plain
//!   instructions of `trap`. A thread that blocks `SIGSEGV` must not do that.
//! - Files of a process that was killed answer `ENODEV` in others.

mod attribute;
mod calls;
mod caretaker;
mod client;
mod fork;
mod handle;
mod hooks;
mod mappings;
mod next;
mod observe;
mod open;
mod paths;
mod process;
mod remote_task;
mod server;
mod sys;
mod table;
mod task;
mod trap;
mod tree;
mod wire;

use std::sync::Arc;

use host_linux::Host;

pub use observe::{Ended, Ioctl, Observer, before_end, observe};
pub use paths::{Captures, Generate, Node, Patch, PathTable, Prefixes, Store};
pub use tree::Tree;

/// Starts a thread of whoever is behind the paths: it takes none of the program's signals.
pub fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
    Ok(server::spawn(name, run)?)
}

/// [`install`] was called before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AlreadyInstalled;

impl std::fmt::Display for AlreadyInstalled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the path table of this process is already installed")
    }
}

impl std::error::Error for AlreadyInstalled {}

/// Redirects paths from now on. `make` builds the table when a path that begins
/// like one of [`Prefixes::build`] is first used, so that a program which never
/// does pays nothing; a forked child that cannot reach its parent's table
/// builds its own.
pub fn install(
    prefixes: Prefixes,
    make: impl Fn(&Arc<Host>) -> PathTable + Send + Sync + 'static,
) -> Result<(), AlreadyInstalled> {
    let make = Box::new(make);
    process::CONFIG.set(process::Config { prefixes, make }).map_err(|_| AlreadyInstalled)?;
    // Descriptors inherited over exec.
    process::current().scan();
    Ok(())
}
