//! How every ioctl reads its struct and writes its answer.

use host::{Fault, Mm, Task};
use uapi::Plain;

use crate::Error;

/// The largest struct of any ioctl.
const MAX: usize = 80;

/// The struct of one call, as user space gave it: its first word is its size.
pub(crate) struct Command<'a> {
    task: &'a dyn Task,
    arg: u64,
    user_size: usize,
    bytes: [u8; MAX],
}

impl<'a> Command<'a> {
    /// Reads the first word, which even an unknown command must have.
    pub(crate) fn peek_size(task: &dyn Task, arg: u64) -> Result<u32, Error> {
        let mut size = [0; 4];
        task.mm().copy_from_user(arg, &mut size)?;
        Ok(u32::from_ne_bytes(size))
    }

    /// Reads a struct that we know `size` bytes of and that needs at least
    /// `min`: a shorter one is extended with zeroes, a longer one must end in
    /// them.
    pub(crate) fn read(
        task: &'a dyn Task,
        arg: u64,
        min: usize,
        size: usize,
    ) -> Result<Self, Error> {
        debug_assert!(min <= size && size <= MAX);
        if host::fail::point() {
            return Err(Fault { va: arg }.into());
        }
        let mut bytes = [0; MAX];
        // One copy for the common case; the size alone if there is less.
        let whole = task.mm().copy_from_user(arg, &mut bytes[..min]).is_ok();
        if !whole {
            bytes[..4].copy_from_slice(&Self::peek_size(task, arg)?.to_ne_bytes());
        }
        let user_size = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize;
        if user_size < min {
            return Err(Error::Invalid("the struct is too short"));
        }
        if !whole {
            return Err(Fault { va: arg }.into());
        }
        let known = user_size.min(size);
        if known > min {
            task.mm().copy_from_user(arg + min as u64, &mut bytes[min..known])?;
        }
        check_zero(task.mm().as_ref(), arg + known as u64, user_size - known)?;
        Ok(Self { task, arg, user_size: known, bytes })
    }

    /// The struct.
    pub(crate) fn get<T: Plain>(&self) -> T {
        T::from_bytes(&self.bytes[..size_of::<T>()])
    }

    /// Writes the struct back, as much of it as user space has.
    pub(crate) fn respond<T: Plain>(&self, answer: &T) -> Result<(), Error> {
        let len = self.user_size.min(size_of::<T>());
        self.respond_at(0, &answer.as_bytes()[..len])
    }

    /// Writes a part of the struct back.
    pub(crate) fn respond_at(&self, offset: usize, bytes: &[u8]) -> Result<(), Error> {
        if host::fail::point() {
            return Err(Fault { va: self.arg }.into());
        }
        Ok(self.task.mm().copy_to_user(self.arg + offset as u64, bytes)?)
    }

    /// How many of the bytes that we know user space has.
    pub(crate) fn user_size(&self) -> usize {
        self.user_size
    }

    pub(crate) fn task(&self) -> &'a dyn Task {
        self.task
    }

    /// The caller's memory.
    pub(crate) fn mm(&self) -> &'a dyn Mm {
        self.task.mm().as_ref()
    }
}

/// User memory beyond what we know must be zero.
#[inline]
fn check_zero(mm: &dyn Mm, at: u64, len: usize) -> Result<(), Error> {
    if len == 0 { Ok(()) } else { check_zero_bytes(mm, at, len) }
}

/// Kept apart, so that nobody pays for its buffer who has nothing to check.
#[cold]
#[inline(never)]
fn check_zero_bytes(mm: &dyn Mm, mut at: u64, mut len: usize) -> Result<(), Error> {
    let mut chunk = [0; 4096];
    while len > 0 {
        let part = &mut chunk[..len.min(4096)];
        mm.copy_from_user(at, part)?;
        if part.iter().any(|&byte| byte != 0) {
            return Err(Error::TooBig);
        }
        at = at.wrapping_add(part.len() as u64);
        len -= part.len();
    }
    Ok(())
}

/// Reads one struct of an array in user memory.
pub(crate) fn read_user<T: Plain>(mm: &dyn Mm, at: u64) -> Result<T, Fault> {
    let mut value = T::zeroed();
    mm.copy_from_user(at, value.as_bytes_mut())?;
    Ok(value)
}
