//! Leaving the alternative stack of a signal handler.

use libc::ucontext_t;

/// Runs `f` on the stack of the code that the signal has interrupted, below what that uses, if the handler is on another one.
///
/// # Safety
/// `context` is what the kernel gave to the handler that calls this. If that is on an alternative stack, the code was on one
/// with room.
#[cfg(target_arch = "x86_64")]
pub(super) unsafe fn on_own_stack<F: FnOnce()>(context: *const ucontext_t, f: F) {
    /// What the calling convention lets a function use below the stack pointer.
    const RED_ZONE: usize = 128;

    extern "C" fn run<F: FnOnce()>(f: *mut Option<F>) {
        // SAFETY: the caller below waits for us with it.
        if let Some(f) = unsafe { (*f).take() } {
            f();
        }
    }

    // SAFETY: as promised by the caller.
    let (alternative, interrupted) = unsafe {
        let stack = (*context).uc_stack;
        let first = stack.ss_sp as usize;
        let sp = (*context).uc_mcontext.gregs[libc::REG_RSP as usize] as usize;
        (first..first + stack.ss_size, sp)
    };
    let mut f = Some(f);
    let here = (&raw const f) as usize;
    if !alternative.contains(&here) || alternative.contains(&interrupted) {
        return run(&raw mut f);
    }
    let top = (interrupted - RED_ZONE) & !0xf;
    // SAFETY: the interrupted code does not go on before the handler returns, so what is below its stack is free. The
    // function never unwinds, and the register that the old stack pointer waits in is preserved by it.
    unsafe {
        std::arch::asm!(
            "mov r12, rsp",
            "mov rsp, {top}",
            "call {run}",
            "mov rsp, r12",
            top = in(reg) top,
            run = in(reg) run::<F> as extern "C" fn(*mut Option<F>),
            in("rdi") &raw mut f,
            out("r12") _,
            clobber_abi("C"),
        );
    }
}

/// There are no registers to be mapped.
#[cfg(not(target_arch = "x86_64"))]
pub(super) unsafe fn on_own_stack<F: FnOnce()>(_context: *const ucontext_t, f: F) {
    f();
}
