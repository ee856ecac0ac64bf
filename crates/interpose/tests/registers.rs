//! Registers that are mapped: each instruction does to them what it does to memory.
#![cfg(target_arch = "x86_64")]

mod common;

use std::arch::asm;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::*;
use proptest::prelude::*;

/// What an instruction may use and change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct State {
    rax: u64,
    rcx: u64,
    rdx: u64,
    /// Where the memory is: the address itself differs.
    rdi: u64,
    flags: u64,
    near: Near,
}

/// Memory of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
struct Near {
    vector: [u8; 16],
    room: [u8; 16],
}

/// Carry, parity, zero, sign, overflow.
const FLAGS: u64 = 0x8c5;

type Run = unsafe fn(&mut State);

/// Memory that is aligned for those instructions that ask for it.
#[repr(align(64))]
struct Aligned([u8; 192]);

/// Functions that execute one instruction each, with `RDI` and `RSI` pointing to memory.
macro_rules! instructions {
    ($($text:literal)*) => {
        &[$(($text, {
            unsafe fn run(state: &mut State) {
                let (start, near) = (state.rdi, &raw mut state.near);
                // SAFETY: as promised by the caller: RDI points to memory or registers, 64 bytes at least on both sides.
                unsafe {
                    asm!(
                        "movdqu xmm0, [r8]",
                        // Most instructions leave the flags alone: the same for all that compare them.
                        "xor r9d, r9d",
                        $text,
                        "pushfq",
                        "pop r9",
                        "movdqu [r8], xmm0",
                        inout("rax") state.rax, inout("rcx") state.rcx, inout("rdx") state.rdx,
                        inout("rdi") state.rdi, in("r8") near, out("r9") state.flags, out("xmm0") _,
                    );
                }
                state.flags &= FLAGS;
                state.rdi = state.rdi.wrapping_sub(start);
            }
            run as Run
        })),*]
    };
}

const INSTRUCTIONS: &[(&str, Run)] = instructions! {
    "mov [rdi], al" "mov [rdi], ah" "mov [rdi + 3], cx" "mov [rdi - 8], edx" "mov [rdi], rcx"
    "mov byte ptr [rdi], 0x5a" "mov word ptr [rdi + 6], 0x1234" "mov dword ptr [rdi], 0x89abcdef"
    "mov qword ptr [rdi], -2" "movnti [rdi], rax"
    "mov al, [rdi]" "mov ah, [rdi + 1]" "mov cx, [rdi + 2]" "mov edx, [rdi + 4]" "mov rdx, [rdi - 3]"
    "movzx eax, byte ptr [rdi]" "movzx rcx, word ptr [rdi]" "movsx eax, byte ptr [rdi]"
    "movsx rdx, word ptr [rdi]" "movsxd rax, dword ptr [rdi]" "movzx ax, byte ptr [rdi]"
    "movd xmm0, dword ptr [rdi]" "movq xmm0, qword ptr [rdi]" "movss xmm0, dword ptr [rdi]"
    "movsd xmm0, qword ptr [rdi]" "movups xmm0, [rdi + 1]" "movdqu xmm0, [rdi]" "movaps xmm0, [rdi]"
    "movd dword ptr [rdi], xmm0" "movq qword ptr [rdi], xmm0" "movdqu [rdi], xmm0" "movntdq [rdi], xmm0"
    "movsd qword ptr [rdi], xmm0"
    "add [rdi], eax" "add rcx, [rdi]" "sub byte ptr [rdi], 0x80" "sub [rdi], rax" "sub ecx, [rdi]"
    "and dword ptr [rdi], 0x0f0f0f0f" "and [rdi], cl" "or [rdi], rdx" "or word ptr [rdi], 0x8000" "xor eax, [rdi]"
    "xor qword ptr [rdi], -1" "cmp dword ptr [rdi], 0" "cmp [rdi], rax" "cmp al, [rdi]" "cmp rdx, [rdi]"
    "test byte ptr [rdi], 0x20" "test [rdi], rcx" "test dword ptr [rdi], eax"
    "xchg [rdi], rax" "xchg cl, [rdi]"
    "stosb" "stosq" "std; stosd; cld" "mov ecx, 7; rep stosw" "mov ecx, 0; rep stosb"
    "push rsi; mov rsi, rdi; lea rdi, [rdi + 16]; mov ecx, 3; rep movsd; pop rsi"
    "push rsi; push rdi; mov rsi, rdi; lea rdi, [r8 + 16]; movsq; pop rdi; pop rsi"
};

/// Registers of a device, until it is dropped.
struct Registers {
    at: *mut u8,
    len: usize,
}

impl Drop for Registers {
    fn drop(&mut self) {
        // SAFETY: our own mapping.
        unsafe { libc::munmap(self.at.cast(), self.len) };
    }
}

fn map(device: &std::fs::File, offset: u64, len: usize) -> Registers {
    let (protection, shared) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
    // SAFETY: a fresh mapping.
    let at = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            len,
            protection,
            shared,
            device.as_raw_fd(),
            (REGISTERS + offset) as i64,
        )
    };
    assert_ne!(at, libc::MAP_FAILED);
    Registers { at: at.cast(), len }
}

/// Copies by single bytes: what the library copies with is not supported for registers.
unsafe fn bytes(at: *mut u8, change: Option<&[u8; 192]>) -> [u8; 192] {
    std::array::from_fn(|n| {
        // SAFETY: as promised by the caller.
        unsafe {
            if let Some(change) = change {
                at.add(n).write_volatile(change[n]);
            }
            at.add(n).read_volatile()
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn an_instruction_does_to_registers_what_it_does_to_memory(
        content in prop::array::uniform32(any::<[u8; 6]>()),
        rax: u64, rcx: u64, rdx: u64, vector: [u8; 16],
    ) {
        let _one = setup();
        let device = open();
        // Unmapped by a failure as well: the device's file stays open until then.
        let mapping = map(&device, 0, 0x2000);
        let registers = mapping.at;
        let content: [u8; 192] = content.concat().try_into().unwrap();
        for (text, run) in INSTRUCTIONS {
            let mut memory = Aligned(content);
            // SAFETY: inside of the registers, and of the array.
            unsafe {
                bytes(registers, Some(&content));
                let start = |at: *mut u8| {
                    let near = Near { vector, room: [0; 16] };
                    let mut state = State { rax, rcx, rdx, rdi: at.add(64) as u64, flags: 0, near };
                    run(&mut state);
                    state
                };
                let (native, ours) = (start(memory.0.as_mut_ptr()), start(registers));
                prop_assert_eq!(native, ours, "{}", text);
                prop_assert_eq!(memory.0, bytes(registers, None), "{}", text);
            }
        }
    }
}

/// Runs a test of this file in a process of its own, which a signal ends; what it said.
fn ended_by(signal: libc::c_int, test: &str) -> bool {
    use std::os::unix::process::ExitStatusExt;
    let mut program = std::process::Command::new(std::env::current_exe().unwrap());
    let output = program.args(["--exact", test, "--ignored"]).output().unwrap();
    output.status.signal() == Some(signal)
}

#[test]
#[ignore = "ends its process"]
fn faults_elsewhere() {
    let _one = setup();
    let device = open();
    let mapping = map(&device, 0, 0x1000);
    let registers = mapping.at;
    // SAFETY: registers first; then a fault, which is the point.
    unsafe {
        registers.write_volatile(1);
        std::ptr::without_provenance::<u8>(64).read_volatile();
    }
}

#[test]
#[ignore = "ends its process"]
fn faults_behind_the_registers() {
    let _one = setup();
    let device = open();
    let mapping = map(&device, 0, 0x2000);
    let registers = mapping.at;
    // SAFETY: registers first; then what was unmapped.
    unsafe {
        libc::munmap(registers.add(0x1000).cast(), 0x1000);
        registers.add(0xfff).write_volatile(1);
        registers.add(0x1000).write_volatile(1);
    }
}

#[test]
#[ignore = "ends its process"]
fn overflows_its_stack() {
    fn deeper(n: u64) -> u64 {
        let mut room = [n; 512];
        std::hint::black_box(&mut room);
        if n == u64::MAX { 0 } else { deeper(n + 1) + room[1] }
    }
    let _one = setup();
    let device = open();
    let mapping = map(&device, 0, 0x1000);
    // SAFETY: inside of the registers.
    unsafe { mapping.at.write_volatile(1) };
    deeper(0);
}

#[test]
fn other_faults_are_the_program_s() {
    // The standard library's handler is on its alternative stack, says so, and aborts.
    assert!(ended_by(libc::SIGABRT, "overflows_its_stack"));
    assert!(ended_by(libc::SIGSEGV, "faults_elsewhere"));
    assert!(ended_by(libc::SIGSEGV, "faults_behind_the_registers"));
}

static FAULTS: AtomicUsize = AtomicUsize::new(0);

/// Makes the page that faulted readable.
extern "C" fn repair(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    FAULTS.fetch_add(1, Ordering::SeqCst);
    // SAFETY: the test's own page.
    unsafe {
        let page = (*info).si_addr() as usize & !0xfff;
        libc::mprotect(std::ptr::with_exposed_provenance_mut(page), 0x1000, libc::PROT_READ);
    }
}

/// Where the handler below last was.
static STACK: AtomicUsize = AtomicUsize::new(0);
/// Registers that it reads.
static TOUCHED: AtomicUsize = AtomicUsize::new(0);

extern "C" fn repair_and_tell(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    to: *mut libc::c_void,
) {
    STACK.store((&raw const signal) as usize, Ordering::SeqCst);
    let touched: *mut u8 = std::ptr::with_exposed_provenance_mut(TOUCHED.load(Ordering::SeqCst));
    for n in 0..20 {
        // SAFETY: mapped registers, as the test says.
        unsafe { touched.write_volatile(n) };
        // SAFETY: as above.
        assert_eq!(unsafe { touched.read_volatile() }, n);
    }
    repair(signal, info, to);
}

/// A handler is on the stack that the program wants it on, and accesses need no room on an alternative one.
#[test]
fn handlers_are_on_the_stack_they_ask_for() {
    let _one = setup();
    let device = open();
    let mapping = map(&device, 0, 0x1000);
    TOUCHED.store(mapping.at.expose_provenance() + 8, Ordering::SeqCst);
    let mut room = vec![0_u8; 32 << 10];
    let range = room.as_ptr() as usize..room.as_ptr() as usize + room.len();
    // SAFETY: handlers that are functions, a stack that outlives its use, and pages of ours.
    unsafe {
        let mut stack: libc::stack_t = std::mem::zeroed();
        (stack.ss_sp, stack.ss_size) = (room.as_mut_ptr().cast(), room.len());
        let mut before_stack = std::mem::zeroed::<libc::stack_t>();
        assert_eq!(libc::sigaltstack(&raw const stack, &raw mut before_stack), 0);
        let mut before = std::mem::zeroed::<libc::sigaction>();
        for (flags, alternative) in [(libc::SA_ONSTACK, true), (0, false)] {
            let mut new: libc::sigaction = std::mem::zeroed();
            new.sa_sigaction = repair_and_tell as *const () as usize;
            new.sa_flags = libc::SA_SIGINFO | flags;
            let mut old = std::mem::zeroed::<libc::sigaction>();
            assert_eq!(libc::sigaction(libc::SIGSEGV, &raw const new, &raw mut old), 0);
            if alternative {
                before = old;
            }
            let anonymous = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let page = libc::mmap(std::ptr::null_mut(), 0x1000, libc::PROT_NONE, anonymous, -1, 0);
            assert_eq!(page.cast::<u8>().read_volatile(), 0);
            assert_eq!(range.contains(&STACK.load(Ordering::SeqCst)), alternative);
            libc::munmap(page, 0x1000);
            mapping.at.write_volatile(5);
            assert_eq!(mapping.at.read_volatile(), 5);
        }
        libc::sigaction(libc::SIGSEGV, &raw const before, std::ptr::null_mut());
        libc::sigaltstack(&raw const before_stack, std::ptr::null_mut());
    }
}

#[test]
fn the_program_keeps_its_handler() {
    let _one = setup();
    let device = open();
    let mapping = map(&device, 0x1000, 0x1000);
    let registers = mapping.at;
    let earlier = FAULTS.load(Ordering::SeqCst);
    let faults = || FAULTS.load(Ordering::SeqCst) - earlier;
    // SAFETY: handlers that are functions, and pages of ours.
    unsafe {
        let mut new: libc::sigaction = std::mem::zeroed();
        new.sa_sigaction = repair as *const () as usize;
        new.sa_flags = libc::SA_SIGINFO;
        let (mut before, mut found) = (new, std::mem::zeroed::<libc::sigaction>());
        assert_eq!(libc::sigaction(libc::SIGSEGV, &raw const new, &raw mut before), 0);
        assert_eq!(libc::sigaction(libc::SIGSEGV, std::ptr::null(), &raw mut found), 0);
        assert_eq!(found.sa_sigaction, new.sa_sigaction);
        let page = libc::mmap(
            std::ptr::null_mut(),
            0x1000,
            libc::PROT_NONE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        );
        assert_eq!(page.cast::<u8>().read_volatile(), 0);
        assert_eq!(faults(), 1);
        registers.write_volatile(7);
        assert_eq!(registers.read_volatile(), 7);
        assert_eq!(registers.add((ACCESSES - 0x1000) as usize).read_volatile(), 2);
        assert_eq!(faults(), 1, "registers are none of its business");
        libc::sigaction(libc::SIGSEGV, &raw const before, std::ptr::null_mut());
    }
    drop((mapping, device));
    // Nothing is mapped any more; a program that another test just starts may hold the file until it has begun.
    wait_live(0);
}
