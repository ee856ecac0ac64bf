//! `SIGSEGV`: ours first, then the program's.

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicBool, Ordering};

use host::Errno;
use libc::{sigaction, siginfo_t, ucontext_t};
use parking_lot::Mutex;

use super::decode::carry_out;
use super::stack::{on_own_stack, with_room};
use super::{Found, Unsupported};
use crate::next;
use crate::process::Inside;
use crate::sys::{errno, set_errno};

/// What the program wants done at a fault.
pub(crate) type Disposition = sigaction;

/// The handler is ours.
static INSTALLED: AtomicBool = AtomicBool::new(false);
/// What the program has set. `None`: the default.
static PROGRAM: Mutex<Option<Held>> = Mutex::new(None);

#[derive(Clone, Copy)]
struct Held(Disposition);

// SAFETY: an address of a function, masks and numbers.
unsafe impl Send for Held {}

thread_local! {
    /// The thread was told of an instruction that is not supported.
    static TOLD: Cell<bool> = const { Cell::new(false) };
}

fn default() -> Disposition {
    // SAFETY: a structure of integers: the default action, no flags, no mask.
    unsafe { std::mem::zeroed() }
}

/// The signals that nothing but a fault of the thread itself raises; or somebody who sends them.
const FAULTS: [c_int; 5] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP];

fn all_but_faults() -> libc::sigset_t {
    // SAFETY: a set of integers, filled by the call.
    unsafe {
        let mut all = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        for fault in FAULTS {
            libc::sigdelset(&raw mut all, fault);
        }
        all
    }
}

/// Blocks all signals but faults, as in the handler.
#[cfg(target_arch = "x86_64")]
pub(super) fn block_all() {
    let all = all_but_faults();
    // SAFETY: only the calling thread, which is in the handler.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, std::ptr::null_mut()) };
}

/// Puts the handler in its place.
pub(super) fn install() -> Result<(), Errno> {
    let mut program = PROGRAM.lock();
    if INSTALLED.load(Ordering::Acquire) {
        return Ok(());
    }
    let mut new = default();
    new.sa_sigaction = handler as *const () as usize;
    // On the alternative stack if the thread has one: its own may be what has overflowed.
    new.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER | libc::SA_RESTART | libc::SA_ONSTACK;
    // An instruction is carried out as a whole.
    new.sa_mask = all_but_faults();
    let mut old = default();
    // SAFETY: both are structures of ours.
    if unsafe { next::sigaction(libc::SIGSEGV, &raw const new, &raw mut old) } != 0 {
        return Err(Errno::NOMEM);
    }
    *program = Some(Held(old));
    INSTALLED.store(true, Ordering::Release);
    Ok(())
}

/// What the program has set for a signal, if that is kept here.
pub(crate) fn action(signal: c_int) -> Option<Disposition> {
    (signal == libc::SIGSEGV && INSTALLED.load(Ordering::Acquire))
        .then(|| PROGRAM.lock().map_or_else(default, |held| held.0))
}

/// The program sets what is to be done at a signal for which [`action`] has an answer.
pub(crate) fn set_action(new: Disposition) {
    *PROGRAM.lock() = Some(Held(new));
}

extern "C" fn handler(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    let before = errno();
    // SAFETY: the kernel's.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
    let fault = code > 0;
    if fault && Found::at(address).is_some() {
        let mut done = Err(Unsupported);
        // SAFETY: the kernel's, for this very fault.
        unsafe {
            with_room(context.cast(), || {
                let _inside = Inside::enter();
                done = carry_out(context.cast::<ucontext_t>());
            });
        }
        if done.is_ok() {
            set_errno(before);
            return;
        }
        if !TOLD.replace(true) {
            eprintln!(
                "softiommu: an instruction that reads or writes mapped registers at {address:#x} is not \
                 supported; use pread and pwrite, or plain moves of up to 8 bytes"
            );
        }
    }
    set_errno(before);
    // SAFETY: as the kernel called us.
    unsafe { follow(signal, info, context, fault) };
}

/// Does what the program wants.
unsafe fn follow(signal: c_int, info: *mut siginfo_t, context: *mut c_void, fault: bool) {
    let mut program = PROGRAM.lock();
    let action = program.map_or_else(default, |held| held.0);
    if action.sa_flags & libc::SA_RESETHAND != 0 {
        *program = None;
    }
    drop(program);
    // A fault cannot be ignored.
    let ends =
        action.sa_sigaction == libc::SIG_DFL || fault && action.sa_sigaction == libc::SIG_IGN;
    // SAFETY: the program's handler is called as it asked the kernel to call it, but that faults are never blocked. What is
    // blocked here is as it was when the kernel's frame of our handler is left.
    unsafe {
        if ends {
            // The instruction faults again, or the signal comes again, and ends the program.
            let default = default();
            next::sigaction(signal, &raw const default, std::ptr::null_mut());
            if !fault {
                libc::raise(signal);
            }
            return;
        }
        if action.sa_sigaction == libc::SIG_IGN {
            return;
        }
        let interrupted = &raw const (*context.cast::<ucontext_t>()).uc_sigmask;
        let mut mask = action.sa_mask;
        // The kernel's set is of 64 signals, and shorter than the C library's.
        for blocked in (1..=64).filter(|signal| libc::sigismember(interrupted, *signal) == 1) {
            libc::sigaddset(&raw mut mask, blocked);
        }
        // The handler may access registers: that is a fault, which ends the program where it is blocked.
        libc::sigdelset(&raw mut mask, libc::SIGSEGV);
        let call = || {
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const mask, std::ptr::null_mut());
            if action.sa_flags & libc::SA_SIGINFO != 0 {
                let call: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) =
                    std::mem::transmute(action.sa_sigaction);
                call(signal, info, context);
            } else {
                let call: extern "C" fn(c_int) = std::mem::transmute(action.sa_sigaction);
                call(signal);
            }
        };
        if action.sa_flags & libc::SA_ONSTACK != 0 {
            call();
        } else {
            on_own_stack(context.cast(), call);
        }
    }
}
