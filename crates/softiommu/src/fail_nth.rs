//! The kernel's knobs for fault injection, turned to ours.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use host::{CharDevice, Errno, File, FileMode, Task, fail};

/// `/proc/self/task/TID/fail-nth`: which fallible step of the calling thread
/// fails. Reads as what is left of it: 0 once it has.
pub(crate) struct FailNth;

impl CharDevice for FailNth {
    fn open(&self, _: &dyn Task) -> Result<Arc<dyn File>, Errno> {
        Ok(Arc::new(FailNthFile(AtomicBool::new(false))))
    }

    fn mode(&self) -> FileMode {
        FileMode::AnonInode("[fail-nth]")
    }
}

/// Whether it has been read to its end without a position.
struct FailNthFile(AtomicBool);

impl File for FailNthFile {
    fn mode(&self) -> FileMode {
        FailNth.mode()
    }

    fn read(
        &self,
        task: &dyn Task,
        buf: u64,
        len: usize,
        pos: Option<u64>,
    ) -> Result<usize, Errno> {
        let at_end = match pos {
            Some(pos) => pos != 0,
            None => self.0.swap(true, Ordering::Relaxed),
        };
        if at_end {
            return Ok(0);
        }
        let text = format!("{}\n", fail::nth());
        let part = &text.as_bytes()[..text.len().min(len)];
        task.mm().copy_to_user(buf, part).map_err(|_| Errno::FAULT)?;
        Ok(part.len())
    }

    fn write(&self, task: &dyn Task, buf: u64, len: usize, _: Option<u64>) -> Result<usize, Errno> {
        let mut text = vec![0; len.min(16)];
        task.mm().copy_from_user(buf, &mut text).map_err(|_| Errno::FAULT)?;
        let text = std::str::from_utf8(&text).map_err(|_| Errno::INVAL)?;
        fail::set_nth(text.trim().parse().map_err(|_| Errno::INVAL)?);
        Ok(len)
    }
}

/// A knob of the kernel's fault injection that changes nothing of ours, such as
/// `/sys/kernel/debug/failslab/verbose`.
pub(crate) struct Knob;

impl CharDevice for Knob {
    fn open(&self, _: &dyn Task) -> Result<Arc<dyn File>, Errno> {
        Ok(Arc::new(Self))
    }

    fn mode(&self) -> FileMode {
        FileMode::AnonInode("[debugfs]")
    }
}

impl File for Knob {
    fn mode(&self) -> FileMode {
        CharDevice::mode(self)
    }

    fn write(&self, _: &dyn Task, _: u64, len: usize, _: Option<u64>) -> Result<usize, Errno> {
        Ok(len)
    }
}
