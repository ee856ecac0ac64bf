//! The thread that faulted, and its instruction.

use iced_x86::{Decoder, DecoderOptions, Instruction, Register};
use libc::ucontext_t;

use super::instruction::{Cpu, Memory, execute};
use super::{Found, Unsupported};

/// The longest instruction.
const LONGEST: usize = 15;

/// Carries out the instruction that a thread faulted at.
///
/// # Safety
/// `context` is what the kernel gave to a handler of the fault.
pub(super) unsafe fn carry_out(context: *mut ucontext_t) -> Result<(), Unsupported> {
    // SAFETY: as promised by the caller; nobody else has it.
    let context = unsafe { &mut *context };
    let ip = context.uc_mcontext.gregs[libc::REG_RIP as usize] as u64;
    // SAFETY: the thread was about to execute it.
    let instruction = unsafe { decode(ip) };
    if instruction.is_invalid() {
        return Err(Unsupported);
    }
    let mut thread = Thread { context };
    execute(&instruction, &mut thread, &mut Mapped)?;
    thread.context.uc_mcontext.gregs[libc::REG_RIP as usize] = instruction.next_ip() as i64;
    Ok(())
}

/// The instruction at an address.
///
/// # Safety
/// There is one, which can be read as well.
unsafe fn decode(ip: u64) -> Instruction {
    let page = host::PAGE_SIZE as usize;
    let here = LONGEST.min(page - ip as usize % page);
    let mut instruction = Instruction::default();
    // Behind the page there may be nothing.
    for len in [here, LONGEST] {
        // SAFETY: as promised by the caller; the second time the instruction goes on there.
        let bytes = unsafe { std::slice::from_raw_parts(ip as *const u8, len) };
        instruction = Decoder::with_ip(64, bytes, ip, DecoderOptions::NONE).decode();
        if !instruction.is_invalid() {
            break;
        }
    }
    instruction
}

struct Thread<'a> {
    context: &'a mut ucontext_t,
}

fn index(register: Register) -> usize {
    let index = match register {
        Register::RAX => libc::REG_RAX,
        Register::RCX => libc::REG_RCX,
        Register::RDX => libc::REG_RDX,
        Register::RBX => libc::REG_RBX,
        Register::RSP => libc::REG_RSP,
        Register::RBP => libc::REG_RBP,
        Register::RSI => libc::REG_RSI,
        Register::RDI => libc::REG_RDI,
        Register::R8 => libc::REG_R8,
        Register::R9 => libc::REG_R9,
        Register::R10 => libc::REG_R10,
        Register::R11 => libc::REG_R11,
        Register::R12 => libc::REG_R12,
        Register::R13 => libc::REG_R13,
        Register::R14 => libc::REG_R14,
        Register::R15 => libc::REG_R15,
        _ => libc::REG_RIP,
    };
    index as usize
}

impl Cpu for Thread<'_> {
    fn get(&self, register: Register) -> u64 {
        self.context.uc_mcontext.gregs[index(register)] as u64
    }

    fn set(&mut self, register: Register, value: u64) {
        self.context.uc_mcontext.gregs[index(register)] = value as i64;
    }

    fn get_vector(&self, number: usize) -> u128 {
        // SAFETY: the kernel saves the vector registers with the others, where it points to.
        let words = unsafe { (*self.context.uc_mcontext.fpregs)._xmm[number].element };
        words.iter().rev().fold(0, |value, word| value << 32 | u128::from(*word))
    }

    fn set_vector(&mut self, number: usize, value: u128) {
        let words = std::array::from_fn(|n| (value >> (32 * n)) as u32);
        // SAFETY: as above.
        unsafe { (*self.context.uc_mcontext.fpregs)._xmm[number].element = words };
    }

    fn flags(&self) -> u64 {
        self.context.uc_mcontext.gregs[libc::REG_EFL as usize] as u64
    }

    fn set_flags(&mut self, flags: u64) {
        self.context.uc_mcontext.gregs[libc::REG_EFL as usize] = flags as i64;
    }
}

/// Registers of devices where there are some, the program's memory elsewhere.
struct Mapped;

impl Memory for Mapped {
    fn read(&mut self, address: u64, data: &mut [u8]) {
        match Found::at(address as usize) {
            Some(found) => {
                let place = found.place(address, data.len());
                if !place.is_some_and(|(file, offset)| file.read(offset, data)) {
                    data.fill(0xff);
                }
            }
            // SAFETY: what the program itself reads here; where there is nothing, that is its fault.
            None => unsafe {
                std::ptr::copy(address as *const u8, data.as_mut_ptr(), data.len());
            },
        }
    }

    fn write(&mut self, address: u64, data: &[u8]) {
        match Found::at(address as usize) {
            Some(found) => {
                if let Some((file, offset)) = found.place(address, data.len()) {
                    file.write(offset, data);
                }
            }
            // SAFETY: as above.
            None => unsafe { std::ptr::copy(data.as_ptr(), address as *mut u8, data.len()) },
        }
    }
}
