//! The log, on a descriptor of its own: the program may do with its standard
//! error what it likes.

use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, OnceLock};

use rustix::fs::{Mode, OFlags};
use tracing::Level;
use tracing_subscriber::fmt::MakeWriter;

/// Where reports go if there is a log.
static REPORTS: OnceLock<OwnedFd> = OnceLock::new();

/// Starts logging if the environment asks for it.
pub(crate) fn start() {
    let level = match std::env::var("SOFTIOMMU_LOG_LEVEL").as_deref() {
        Ok("trace") => Level::TRACE,
        Ok(_) => Level::DEBUG,
        Err(_) => return,
    };
    let file = match std::env::var_os("SOFTIOMMU_LOG") {
        Some(path) => {
            let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE | OFlags::CLOEXEC;
            rustix::fs::open(&path, flags, Mode::from_raw_mode(0o644))
        }
        None => rustix::io::dup(rustix::stdio::stderr()),
    };
    let Some(file) = file.ok().and_then(private) else { return };
    let _ = file.try_clone().map(|file| REPORTS.set(file));
    let log = Log(Arc::new(file));
    let subscriber = tracing_subscriber::fmt()
        .with_writer(log)
        .with_max_level(level)
        .with_ansi(false)
        .with_target(false)
        .without_time()
        .finish();
    // The program itself may have one, but not before its first instruction.
    let _ = tracing::subscriber::set_global_default(subscriber);
}

/// A high number, out of the way of programs that expect to get the lowest.
fn private(file: OwnedFd) -> Option<OwnedFd> {
    rustix::io::fcntl_dupfd_cloexec(&file, 512).or(rustix::io::fcntl_dupfd_cloexec(&file, 3)).ok()
}

/// A text in the log file, or on standard error.
pub(crate) fn report(text: &str) {
    let text = text.as_bytes();
    let written = match REPORTS.get() {
        Some(file) => rustix::io::write(file, text),
        None => rustix::io::write(rustix::stdio::stderr(), text),
    };
    // There is nobody to tell if that fails.
    let _ = written;
}

/// A line on standard error.
pub(crate) fn complain(message: &str) {
    // There is nobody to tell if even that fails.
    let _ = rustix::io::write(rustix::stdio::stderr(), message.as_bytes());
}

/// Writes through the kernel directly, never through what we interpose.
#[derive(Clone)]
struct Log(Arc<OwnedFd>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(rustix::io::write(self.0.as_fd(), bytes)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Log {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}
