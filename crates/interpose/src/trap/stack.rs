//! Other stacks than the one that a signal handler finds itself on.

use libc::ucontext_t;

/// Runs `f` where there is room, whatever the program has for a stack: a device may need more than the alternative stack of a
/// handler has, or the stack of a coroutine.
///
/// # Safety
/// `context` is what the kernel gave to the handler that calls this, which runs with all signals blocked but for faults.
pub(super) unsafe fn with_room<F: FnOnce()>(context: *const ucontext_t, f: F) {
    match Spare::take() {
        // SAFETY: as promised by the caller; the stack is nobody else's as long as it is out.
        Some(spare) => unsafe { switch(context, spare.top(), f) },
        None => f(),
    }
}

/// Runs `f` on the stack of the code that the signal has interrupted, below what that uses, if the handler is on another one.
///
/// # Safety
/// As for [`with_room`]; and if the handler is on an alternative stack, the code was on one that has not overflowed.
pub(super) unsafe fn on_own_stack<F: FnOnce()>(context: *const ucontext_t, f: F) {
    // SAFETY: as promised by the caller.
    let (stack, interrupted) = unsafe { ((*context).uc_stack, stack_pointer(context)) };
    let here = (&raw const stack) as usize;
    if !contains(&stack, here) || contains(&stack, interrupted) {
        return f();
    }
    // SAFETY: the interrupted code does not go on before the handler returns, so what is below its stack is free.
    unsafe { switch(context, (interrupted - RED_ZONE) & !0xf, f) }
}

/// What the calling convention lets a function use below the stack pointer.
const RED_ZONE: usize = 128;
/// `SS_AUTODISARM`: the kernel itself takes the alternative stack away meanwhile.
#[cfg(target_arch = "x86_64")]
const AUTODISARM: libc::c_int = 1 << 31;

fn contains(stack: &libc::stack_t, address: usize) -> bool {
    (address.wrapping_sub(stack.ss_sp as usize)) < stack.ss_size
}

/// Runs `f` on the stack that ends at `top`.
///
/// If this leaves the alternative stack, that is shortened meanwhile: another signal would begin at its top, where the frames
/// are that we come back to. (If `f` never returns, because it jumps, it stays shorter.)
#[cfg(target_arch = "x86_64")]
unsafe fn switch<F: FnOnce()>(context: *const ucontext_t, top: usize, f: F) {
    struct Call<F> {
        f: Option<F>,
        /// The alternative stack, if it is left.
        left: Option<libc::stack_t>,
    }

    /// On the other stack; `sp` is the stack pointer of the one before.
    extern "C" fn run<F: FnOnce()>(call: *mut Call<F>, sp: usize) {
        // SAFETY: the caller below waits for us with it.
        let Call { f, left } = unsafe { &mut *call };
        if let Some(stack) = left {
            let ss_size = sp.saturating_sub(RED_ZONE + stack.ss_sp as usize) & !0xf;
            if !set_alternative(&libc::stack_t { ss_size, ..*stack }) {
                // Too short for one.
                set_alternative(&libc::stack_t { ss_flags: libc::SS_DISABLE, ..*stack });
            }
        }
        if let Some(f) = f.take() {
            f();
        }
        if let Some(stack) = left {
            super::signal::block_all();
            set_alternative(stack);
        }
    }

    // SAFETY: as promised by the caller.
    let mut stack = unsafe { (*context).uc_stack };
    stack.ss_flags &= AUTODISARM;
    let mut call = Call { f: Some(f), left: None };
    if contains(&stack, (&raw const call) as usize) && stack.ss_flags & AUTODISARM == 0 {
        call.left = Some(stack);
    }
    // SAFETY: the stack is free, as promised by the caller. The function never unwinds, and the register that the old stack
    // pointer waits in is preserved by it.
    unsafe {
        std::arch::asm!(
            "mov r12, rsp",
            "mov rsi, rsp",
            "mov rsp, {top}",
            "call {run}",
            "mov rsp, r12",
            top = in(reg) top,
            run = in(reg) run::<F> as extern "C" fn(*mut Call<F>, usize),
            in("rdi") &raw mut call,
            out("rsi") _,
            out("r12") _,
            clobber_abi("C"),
        );
    }
}

#[cfg(target_arch = "x86_64")]
fn stack_pointer(context: *const ucontext_t) -> usize {
    // SAFETY: the callers', who have it from the kernel.
    unsafe { (*context).uc_mcontext.gregs[libc::REG_RSP as usize] as usize }
}

/// There are no registers to be mapped.
#[cfg(not(target_arch = "x86_64"))]
unsafe fn switch<F: FnOnce()>(_context: *const ucontext_t, _top: usize, f: F) {
    f();
}

#[cfg(not(target_arch = "x86_64"))]
fn stack_pointer(_context: *const ucontext_t) -> usize {
    0
}

#[cfg(target_arch = "x86_64")]
fn set_alternative(stack: &libc::stack_t) -> bool {
    // SAFETY: the program's own alternative stack, or a part of it, or none.
    unsafe { libc::sigaltstack(stack, std::ptr::null_mut()) == 0 }
}

/// A stack of ours, which goes back to where it came from.
struct Spare(usize);

/// Those that are not in use.
static FREE: parking_lot::Mutex<Vec<usize>> = parking_lot::Mutex::new(Vec::new());

impl Spare {
    /// Bytes, with a page that catches an overflow.
    const SIZE: usize = 512 << 10;

    fn take() -> Option<Self> {
        // Nobody may ever unlock it in a forked child.
        if let Some(base) = FREE.try_lock().and_then(|mut free| free.pop()) {
            return Some(Self(base));
        }
        let (write, guard) = (libc::PROT_READ | libc::PROT_WRITE, host::PAGE_SIZE as usize);
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_STACK;
        let map = [0, Self::SIZE, libc::PROT_NONE as usize, flags as usize, usize::MAX, 0];
        // SAFETY: a fresh mapping, all of which but its first page is made a stack.
        unsafe {
            let base = usize::try_from(crate::sys::syscall6(libc::SYS_mmap, map)).ok()?;
            let protect = [base + guard, Self::SIZE - guard, write as usize, 0, 0, 0];
            (crate::sys::syscall6(libc::SYS_mprotect, protect) == 0).then_some(Self(base))
        }
    }

    /// Its end, where it begins.
    fn top(&self) -> usize {
        self.0 + Self::SIZE
    }
}

impl Drop for Spare {
    fn drop(&mut self) {
        if let Some(mut free) = FREE.try_lock() {
            free.push(self.0);
            return;
        }
        // SAFETY: ours, and nobody is on it any more.
        unsafe { crate::sys::syscall6(libc::SYS_munmap, [self.0, Self::SIZE, 0, 0, 0, 0]) };
    }
}
