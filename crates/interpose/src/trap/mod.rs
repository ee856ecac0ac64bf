//! Registers that programs map: an address range without access rights, and a handler of `SIGSEGV` that carries out the
//! instruction that faulted, by reading and writing the device's file.
//!
//! The handler is there once something is mapped so. From then on what the program does with `SIGSEGV` is kept here,
//! and followed for every other fault.

#[cfg(target_arch = "x86_64")]
mod decode;
#[cfg(target_arch = "x86_64")]
mod instruction;
mod signal;
mod stack;

use std::any::Any;
use std::ffi::{c_int, c_void};
use std::sync::Arc;

use host::{Errno, MappedFile};

use crate::calls::Held;
use crate::mappings;
use crate::sys::{c_result, syscall6};

pub(crate) use signal::{Disposition, action, set_action};

/// An instruction that is not carried out here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Unsupported;

#[cfg(not(target_arch = "x86_64"))]
mod decode {
    pub(super) unsafe fn carry_out(_: *mut libc::ucontext_t) -> Result<(), super::Unsupported> {
        Err(super::Unsupported)
    }
}

/// What is mapped somewhere.
struct Mapped {
    file: Held,
    /// Offset in the file of the first byte.
    offset: u64,
    start: usize,
    len: usize,
    _guard: Box<dyn Any + Send + Sync>,
}

/// Maps registers, at an offset of a file, at `addr` if the flags say so.
///
/// # Safety
/// As `mmap` itself.
pub(crate) unsafe fn map(
    addr: *mut c_void,
    len: usize,
    flags: c_int,
    (file, offset): (Held, u64),
    guard: Box<dyn Any + Send + Sync>,
) -> Result<*mut c_void, Errno> {
    if !cfg!(target_arch = "x86_64") {
        return Err(Errno::NODEV);
    }
    signal::install()?;
    let placement = flags & (libc::MAP_FIXED | libc::MAP_FIXED_NOREPLACE);
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | placement;
    let args = [addr as usize, len, libc::PROT_NONE as usize, flags as usize, usize::MAX, 0];
    // SAFETY: the caller's own mapping, of nothing.
    let at = c_result(unsafe { syscall6(libc::SYS_mmap, args) });
    if at == -1 {
        return Err(Errno::from_raw_os_error(crate::sys::errno()));
    }
    let start = at as usize;
    let mapped = Mapped { file, offset, start, len, _guard: guard };
    mappings::add(start, len, Box::new(mapped));
    Ok(at as *mut c_void)
}

/// The file of this process whose registers are mapped at an address.
pub(crate) fn mapped_file(address: u64) -> Option<MappedFile> {
    let found = Found::at(usize::try_from(address).ok()?)?;
    match found.place(address, 1)? {
        (Held::Here(local), offset) => {
            Some(MappedFile { file: local.file.clone(), offset, len: found.end as u64 - address })
        }
        (Held::Elsewhere(_), _) => None,
    }
}

/// Registers at an address.
struct Found {
    guard: Arc<dyn Any + Send + Sync>,
    /// Where they end, or what is left of them.
    end: usize,
}

impl Found {
    fn at(address: usize) -> Option<Self> {
        let (guard, end) = mappings::find(address)?;
        let found = Self { guard, end };
        let mapped = found.mapped()?;
        // What was moved elsewhere is not followed.
        (address.wrapping_sub(mapped.start) < mapped.len).then_some(found)
    }

    fn mapped(&self) -> Option<&Mapped> {
        let guard = self.guard.downcast_ref::<Box<dyn Any + Send + Sync>>()?;
        guard.downcast_ref()
    }

    /// The file, and where in it `len` bytes at an address are.
    fn place(&self, address: u64, len: usize) -> Option<(&Held, u64)> {
        let mapped = self.mapped()?;
        let within = address.checked_sub(mapped.start as u64)?;
        let fits = within.checked_add(len as u64)? <= mapped.len as u64;
        fits.then_some((&mapped.file, mapped.offset + within))
    }
}
