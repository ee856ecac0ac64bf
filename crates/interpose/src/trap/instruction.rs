//! Carrying out an instruction of x86-64 that reads or writes memory which is not there: the moves, and the arithmetic
//! that compilers make of an access to a volatile variable.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use super::Unsupported;

/// The registers of a thread that an instruction may use.
pub(super) trait Cpu {
    /// A register of 64 bits.
    fn get(&self, register: Register) -> u64;
    fn set(&mut self, register: Register, value: u64);
    /// One of `XMM0` to `XMM15`.
    fn get_vector(&self, number: usize) -> u128;
    fn set_vector(&mut self, number: usize, value: u128);
    fn flags(&self) -> u64;
    fn set_flags(&mut self, flags: u64);
}

/// Memory as the instruction sees it.
pub(super) trait Memory {
    fn read(&mut self, address: u64, data: &mut [u8]);
    fn write(&mut self, address: u64, data: &[u8]);
}

const CARRY: u64 = 1 << 0;
const PARITY: u64 = 1 << 2;
const ADJUST: u64 = 1 << 4;
const ZERO: u64 = 1 << 6;
const SIGN: u64 = 1 << 7;
const DIRECTION: u64 = 1 << 10;
const OVERFLOW: u64 = 1 << 11;

/// Carries an instruction out, all but the step to the next.
pub(super) fn execute(
    instruction: &Instruction,
    cpu: &mut impl Cpu,
    memory: &mut impl Memory,
) -> Result<(), Unsupported> {
    use Mnemonic as M;
    let mut machine = Machine { instruction, cpu, memory };
    match instruction.mnemonic() {
        M::Mov | M::Movnti | M::Movzx => machine.store_or_load(Extend::Zero),
        M::Movsx | M::Movsxd => machine.store_or_load(Extend::Sign),
        M::Movd
        | M::Movq
        | M::Movss
        | M::Movups
        | M::Movaps
        | M::Movupd
        | M::Movapd
        | M::Movdqu
        | M::Movdqa
        | M::Movntps
        | M::Movntpd
        | M::Movntdq
        | M::Lddqu => machine.vector(),
        // The string instruction has the same name.
        M::Movsd if !instruction.is_string_instruction() => machine.vector(),
        M::Movsb | M::Movsw | M::Movsd | M::Movsq => machine.string(true),
        M::Stosb | M::Stosw | M::Stosd | M::Stosq => machine.string(false),
        M::Add | M::Sub | M::And | M::Or | M::Xor | M::Cmp | M::Test => machine.arithmetic(),
        M::Xchg => machine.exchange(),
        _ => Err(Unsupported),
    }
}

#[derive(Clone, Copy)]
enum Extend {
    Zero,
    Sign,
}

struct Machine<'a, C, M> {
    instruction: &'a Instruction,
    cpu: &'a mut C,
    memory: &'a mut M,
}

/// The lowest `size` bytes of a value.
fn cut(value: u64, size: usize) -> u64 {
    if size >= 8 { value } else { value & ((1 << (8 * size)) - 1) }
}

fn sign_extended(value: u64, size: usize) -> u64 {
    let shift = 64 - 8 * size.min(8);
    ((value << shift) as i64 >> shift) as u64
}

impl<C: Cpu, M: Memory> Machine<'_, C, M> {
    fn is_memory(&self, operand: u32) -> bool {
        self.instruction.op_kind(operand) == OpKind::Memory
    }

    /// Where the operand is.
    fn address(&self, operand: u32) -> Result<u64, Unsupported> {
        let register = |register: Register, _, _| match register {
            // Segments but for FS and GS begin at 0, and those are not for registers of devices.
            Register::ES | Register::CS | Register::SS | Register::DS => Some(0),
            Register::FS | Register::GS => None,
            register => Some(read_register(self.cpu, register)),
        };
        self.instruction.virtual_address(operand, 0, register).ok_or(Unsupported)
    }

    fn load(&mut self, address: u64, size: usize) -> Result<u64, Unsupported> {
        let mut data = [0; 8];
        let part = data.get_mut(..size).ok_or(Unsupported)?;
        self.memory.read(address, part);
        Ok(u64::from_le_bytes(data))
    }

    fn store(&mut self, address: u64, value: u64, size: usize) -> Result<(), Unsupported> {
        let data = value.to_le_bytes();
        self.memory.write(address, data.get(..size).ok_or(Unsupported)?);
        Ok(())
    }

    /// A register or a constant.
    fn value(&self, operand: u32) -> Result<u64, Unsupported> {
        match self.instruction.op_kind(operand) {
            OpKind::Register => Ok(read_register(self.cpu, self.instruction.op_register(operand))),
            OpKind::Memory => Err(Unsupported),
            _ => self.instruction.try_immediate(operand).map_err(|_| Unsupported),
        }
    }

    fn size(&self) -> usize {
        self.instruction.memory_size().size()
    }

    fn store_or_load(&mut self, extend: Extend) -> Result<(), Unsupported> {
        let size = self.size();
        if self.is_memory(0) {
            let (address, value) = (self.address(0)?, self.value(1)?);
            return self.store(address, value, size);
        }
        let address = self.address(1)?;
        let value = self.load(address, size)?;
        let value = match extend {
            Extend::Zero => value,
            Extend::Sign => sign_extended(value, size),
        };
        write_register(self.cpu, self.instruction.op0_register(), value)
    }

    fn vector(&mut self) -> Result<(), Unsupported> {
        let size = self.size();
        let mut data = [0; 16];
        let part = data.get_mut(..size).ok_or(Unsupported)?;
        if self.is_memory(0) {
            let (address, register) = (self.address(0)?, self.instruction.op1_register());
            let value = match register {
                register if register.is_xmm() => self.cpu.get_vector(register.number()),
                register => read_register(self.cpu, register).into(),
            };
            part.copy_from_slice(&value.to_le_bytes()[..size]);
            self.memory.write(address, part);
            return Ok(());
        }
        let (address, register) = (self.address(1)?, self.instruction.op0_register());
        if !register.is_xmm() {
            return Err(Unsupported);
        }
        self.memory.read(address, part);
        self.cpu.set_vector(register.number(), u128::from_le_bytes(data));
        Ok(())
    }

    /// `MOVS` and `STOS`, as often as a prefix says.
    fn string(&mut self, moves: bool) -> Result<(), Unsupported> {
        let size = self.size();
        let repeats = self.instruction.has_rep_prefix() || self.instruction.has_repne_prefix();
        let step = if self.cpu.flags() & DIRECTION == 0 {
            size as u64
        } else {
            (size as u64).wrapping_neg()
        };
        let mut left = if repeats { self.cpu.get(Register::RCX) } else { 1 };
        while left > 0 {
            let to = self.cpu.get(Register::RDI);
            let value = if moves {
                let from = self.cpu.get(Register::RSI);
                self.cpu.set(Register::RSI, from.wrapping_add(step));
                self.load(from, size)?
            } else {
                self.cpu.get(Register::RAX)
            };
            self.store(to, value, size)?;
            self.cpu.set(Register::RDI, to.wrapping_add(step));
            left -= 1;
            if repeats {
                self.cpu.set(Register::RCX, left);
            }
        }
        Ok(())
    }

    fn arithmetic(&mut self) -> Result<(), Unsupported> {
        use Mnemonic as M;
        let size = self.size();
        let to_memory = self.is_memory(0);
        let address = self.address(u32::from(!to_memory))?;
        let there = self.load(address, size)?;
        let other = cut(self.value(u32::from(to_memory))?, size);
        let (left, right) = if to_memory { (there, other) } else { (other, there) };
        let mnemonic = self.instruction.mnemonic();
        let result = match mnemonic {
            M::Add => left.wrapping_add(right),
            M::Sub | M::Cmp => left.wrapping_sub(right),
            M::And | M::Test => left & right,
            M::Or => left | right,
            _ => left ^ right,
        };
        let result = cut(result, size);
        self.set_flags(mnemonic, left, right, result, size);
        match mnemonic {
            M::Cmp | M::Test => Ok(()),
            _ if to_memory => self.store(address, result, size),
            _ => write_register(self.cpu, self.instruction.op0_register(), result),
        }
    }

    fn set_flags(&mut self, mnemonic: Mnemonic, left: u64, right: u64, result: u64, size: usize) {
        let sign = |value: u64| value >> (8 * size - 1) & 1 != 0;
        let (carry, overflow) = match mnemonic {
            Mnemonic::Add => {
                (result < left, sign(left) == sign(right) && sign(left) != sign(result))
            }
            Mnemonic::Sub | Mnemonic::Cmp => {
                (left < right, sign(left) != sign(right) && sign(left) != sign(result))
            }
            _ => (false, false),
        };
        let adjust = matches!(mnemonic, Mnemonic::Add | Mnemonic::Sub | Mnemonic::Cmp)
            && (left ^ right ^ result) & 0x10 != 0;
        let all = [
            (CARRY, carry),
            (PARITY, (result as u8).count_ones().is_multiple_of(2)),
            (ADJUST, adjust),
            (ZERO, result == 0),
            (SIGN, sign(result)),
            (OVERFLOW, overflow),
        ];
        let mut flags = self.cpu.flags();
        for (bit, set) in all {
            flags = if set { flags | bit } else { flags & !bit };
        }
        self.cpu.set_flags(flags);
    }

    /// Not as one access, which registers of devices do not have either.
    fn exchange(&mut self) -> Result<(), Unsupported> {
        let memory = u32::from(!self.is_memory(0));
        let (address, size) = (self.address(memory)?, self.size());
        let register = self.instruction.op_register(1 - memory);
        let value = read_register(self.cpu, register);
        let there = self.load(address, size)?;
        self.store(address, value, size)?;
        write_register(self.cpu, register, there)
    }
}

/// The second byte of a register: `AH`, `CH`, `DH`, `BH`.
fn is_high_byte(register: Register) -> bool {
    matches!(register, Register::AH | Register::CH | Register::DH | Register::BH)
}

fn read_register(cpu: &impl Cpu, register: Register) -> u64 {
    let value = cpu.get(register.full_register());
    if is_high_byte(register) { value >> 8 & 0xff } else { cut(value, register.size()) }
}

fn write_register(cpu: &mut impl Cpu, register: Register, value: u64) -> Result<(), Unsupported> {
    if !register.is_gpr() {
        return Err(Unsupported);
    }
    let full = register.full_register();
    let old = cpu.get(full);
    let new = match register.size() {
        1 if is_high_byte(register) => old & !0xff00 | (value & 0xff) << 8,
        1 => old & !0xff | value & 0xff,
        2 => old & !0xffff | value & 0xffff,
        // The upper half is cleared.
        4 => value & 0xffff_ffff,
        _ => value,
    };
    cpu.set(full, new);
    Ok(())
}
