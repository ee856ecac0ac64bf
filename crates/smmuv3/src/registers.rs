//! The register bus: decoding, guards, write masks, and what a write sets off (§6).

use crate::front::{Effect, Front};
use crate::options::Options;
use crate::platform::{Memory, Resume};
use crate::smmu::Smmu;
use crate::sync::Fence;
use crate::wire::register::{Access, CmdqCons, Cr0, Gbpa, IrqCtrl, PAGE_SIZE, Register};

/// Size of the register file in bytes: two pages of 64 KiB.
pub const REGISTER_FILE_SIZE: u64 = 2 * PAGE_SIZE as u64;

/// Writable bits of a register that this SMMU implements; the others are RES0.
fn writable(register: Register, o: &Options) -> u64 {
    let address = ((1u128 << o.oas) - 1) as u64;
    let msi = |mask: u64| if o.msi { mask } else { 0 };
    let pri = |mask: u64| if o.pri { mask } else { 0 };
    let queue = address & 0x00ff_ffff_ffff_ffe0 | 1 << 62 | 0x1f;
    match register {
        Register::Cr0 => 0b1101 | pri(0b10) | if o.ats { 1 << 4 } else { 0 },
        Register::Cr1 => 0xfff,
        Register::Cr2 => u64::from(o.hyp) | 0b10 | u64::from(o.atsrecerr) << 3,
        Register::Gbpa => {
            let types = if o.attr_types_ovr { 0x3f1f } else { 0 };
            let permissions = if o.attr_perms_ovr { 0xf << 16 } else { 0 };
            types | permissions | 1 << 20
        }
        Register::IrqCtrl => 0b101 | pri(0b10),
        Register::Gerrorn => 0xff & if o.pri { !0 } else { !0b0100_1000 },
        Register::GerrorIrqCfg0 | Register::EventqIrqCfg0 => msi(address & !0b11),
        Register::PriqIrqCfg0 => pri(msi(address & !0b11)),
        Register::GerrorIrqCfg1 | Register::EventqIrqCfg1 => msi(0xffff_ffff),
        Register::PriqIrqCfg1 => pri(msi(0xffff_ffff)),
        Register::GerrorIrqCfg2 | Register::EventqIrqCfg2 => msi(0x3f),
        Register::PriqIrqCfg2 => pri(msi(0x3f | 1 << 31)),
        Register::StrtabBase => address & !0x3f | 1 << 62,
        Register::StrtabBaseCfg => 0x3f | if o.two_level_stream_table { 0x3_07c0 } else { 0 },
        Register::CmdqBase | Register::EventqBase => queue,
        Register::PriqBase => pri(queue),
        Register::CmdqProd => 0xf_ffff,
        Register::CmdqCons => 0x7f0f_ffff,
        Register::EventqProd | Register::EventqCons => 0x800f_ffff,
        Register::PriqProd | Register::PriqCons => pri(0x800f_ffff),
        // Features that are not implemented: RES0.
        _ => 0,
    }
}

/// Bits that a register may hold, whoever set them.
pub(crate) fn stored(register: Register, options: &Options) -> u64 {
    match register {
        Register::Cr0Ack => writable(Register::Cr0, options),
        Register::IrqCtrlAck => writable(Register::IrqCtrl, options),
        Register::Gerror => writable(Register::Gerrorn, options),
        _ => writable(register, options),
    }
}

impl<M: Memory, F: Fence> Smmu<M, F> {
    /// A read by software of `data.len()` bytes at `offset` from the start of page 0. Aligned accesses of 4 and 8
    /// bytes reach registers; anything else reads as zero.
    pub fn mmio_read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        match data.len() {
            4 if offset.is_multiple_of(4) => {
                data.copy_from_slice(&self.read32(offset).to_le_bytes());
            }
            8 if offset.is_multiple_of(8) => {
                data.copy_from_slice(&self.read64(offset).to_le_bytes());
            }
            _ => {}
        }
    }

    /// A write by software; see [`mmio_read`](Self::mmio_read). Other accesses are ignored.
    pub fn mmio_write(&self, offset: u64, data: &[u8]) {
        match *data {
            [a, b, c, d] => self.write32(offset, u32::from_le_bytes([a, b, c, d])),
            [a, b, c, d, e, f, g, h] if offset.is_multiple_of(8) => {
                self.write64(offset, u64::from_le_bytes([a, b, c, d, e, f, g, h]));
            }
            _ => {}
        }
    }

    /// Reads 32 bits: a register, or half of a 64-bit register.
    pub fn read32(&self, offset: u64) -> u32 {
        let Some((register, shift)) = find(offset) else { return 0 };
        let value = self.visible(&self.front.lock(), register) >> shift;
        if matches!(register, Register::CmdqCons | Register::Cr0Ack) {
            // Software that polls makes what it polls for go on.
            self.poll();
        }
        value as u32
    }

    /// Reads 64 bits: a 64-bit register, or two neighbouring 32-bit registers.
    pub fn read64(&self, offset: u64) -> u64 {
        match find(offset) {
            Some((register, 0)) if register.width() == 64 => self.front.lock().value(register),
            _ => {
                u64::from(self.read32(offset))
                    | u64::from(self.read32(offset.saturating_add(4))) << 32
            }
        }
    }

    /// A register as software sees it: of an index, the bits that the size of its queue leaves.
    fn visible(&self, front: &Front, register: Register) -> u64 {
        let o = &self.options;
        let (base, max_log2, flags) = match register {
            Register::CmdqProd => (Register::CmdqBase, o.cmdq_log2, 0),
            Register::CmdqCons => (Register::CmdqBase, o.cmdq_log2, 0x7f00_0000),
            Register::EventqProd | Register::EventqCons => {
                (Register::EventqBase, o.eventq_log2, 1 << 31)
            }
            Register::PriqProd | Register::PriqCons => (Register::PriqBase, o.priq_log2, 1 << 31),
            // An update that the host has yet to make.
            Register::Gbpa if !front.cr0().smmuen() && front.assigned.busy() => {
                return Gbpa(front.word(register)).with_update(true).0.into();
            }
            _ => return front.value(register),
        };
        let (_, ring) = front.queue(base, 0, max_log2);
        front.value(register) & (flags | u64::from(ring.mask()))
    }

    /// Writes 32 bits: a register, or half of a 64-bit register.
    pub fn write32(&self, offset: u64, value: u32) {
        let Some((register, shift)) = find(offset) else { return };
        let mask = if register.width() == 64 { 0xffff_ffff << shift } else { 0xffff_ffff };
        self.write(register, u64::from(value) << shift, mask);
    }

    /// Writes 64 bits: a 64-bit register, or two neighbouring 32-bit registers.
    pub fn write64(&self, offset: u64, value: u64) {
        match find(offset) {
            Some((register, 0)) if register.width() == 64 => self.write(register, value, !0),
            _ => {
                self.write32(offset, value as u32);
                self.write32(offset.saturating_add(4), (value >> 32) as u32);
            }
        }
    }

    fn write(&self, register: Register, value: u64, mask: u64) {
        {
            let mut front = self.front.lock();
            let Some(allowed) = front.allowed(register) else { return };
            let mask = mask & allowed & writable(register, &self.options);
            let old = front.value(register);
            let new = old & !mask | value & mask;
            self.apply(&mut front, register, old, new, value);
        }
        self.poll();
    }

    /// Stores a value and does what the write sets off. `raw` still has the bits that are not stored.
    fn apply(&self, front: &mut Front, register: Register, old: u64, new: u64, raw: u64) {
        match register {
            Register::Gbpa => {
                // Without UPDATE the write is ignored (§6.3.14); the update itself takes no time.
                if Gbpa(raw as u32).update() {
                    front.set(register, new);
                    self.live.set(front);
                    self.tlb.invalidate_all_streams();
                    self.refresh_all(front, None);
                }
            }
            Register::Cr0 => self.write_cr0(front, Cr0(old as u32), Cr0(new as u32)),
            Register::IrqCtrl => {
                front.set(register, new);
                front.set(Register::IrqCtrlAck, IrqCtrl(new as u32).0.into());
            }
            Register::Gerrorn => {
                front.set(register, new);
                let acknowledged = crate::wire::register::Gerror((old ^ new) as u32);
                if acknowledged.cmdq_err() && !front.active(crate::queues::CMDQ_ERR) {
                    let cons = CmdqCons(front.word(Register::CmdqCons)).with_err(0);
                    front.set(Register::CmdqCons, cons.0.into());
                }
                self.report_stalled(front);
            }
            Register::EventqCons => {
                front.set(register, new);
                self.report_stalled(front);
            }
            _ => {
                front.set(register, new);
                if matches!(
                    register,
                    Register::Cr2 | Register::StrtabBase | Register::StrtabBaseCfg
                ) {
                    self.live.set(front);
                }
            }
        }
    }

    fn write_cr0(&self, front: &mut Front, old: Cr0, new: Cr0) {
        front.set(Register::Cr0, new.0.into());
        // SMMUEN == 0 implies PRIQEN == 0 in effect; the bits themselves are acknowledged as written.
        let ack = Cr0(front.word(Register::Cr0Ack));
        let mut now =
            new.with_smmuen(ack.smmuen()).with_cmdqen(new.cmdqen() || front.assigned.waits());
        if old.smmuen() != new.smmuen() || old.atschk() != new.atschk() {
            self.live.set(front);
            self.tlb.invalidate_all_streams();
        }
        if old.smmuen() != new.smmuen() {
            if !new.smmuen() {
                front.end_stalls(|_| true, Resume::Abort);
            }
            self.refresh_all(front, None);
            // Acknowledged once no transaction is under way that saw the old value.
            let outstanding = self.in_flight.outstanding();
            if outstanding.is_empty() && !front.assigned.busy() {
                now = now.with_smmuen(new.smmuen());
                self.in_flight.forget_unless(front.sync.is_some());
                front.enable = None;
            } else {
                front.enable = Some(outstanding);
            }
        }
        front.set(Register::Cr0Ack, now.0.into());
        if old.cmdqen() && !new.cmdqen() {
            // A CMD_SYNC that waits begins anew when the queue is enabled again, if it is still there.
            front.sync = None;
            self.in_flight.forget_unless(front.enable.is_some());
        }
        if new.eventqen() && !old.eventqen() {
            front.last_event = None;
            self.report_stalled(front);
        }
    }

    /// Acknowledges `CR0.SMMUEN` if that waited and need not any longer.
    pub(crate) fn acknowledge_enable(&self, front: &mut Front) {
        if !front.assigned.busy()
            && front.enable.as_mut().is_some_and(super::cache::in_flight::Outstanding::refresh)
        {
            front.enable = None;
            let ack = Cr0(front.word(Register::Cr0Ack)).with_smmuen(front.cr0().smmuen());
            if !ack.smmuen() {
                // Those that stalled in the meantime.
                front.end_stalls(|_| true, Resume::Abort);
            }
            front.set(Register::Cr0Ack, ack.0.into());
            self.in_flight.forget_unless(front.sync.is_some());
        }
    }
}

/// The register whose 32-bit word is at `offset`, and how far up in the register the word is.
fn find(offset: u64) -> Option<(Register, u32)> {
    let offset = u32::try_from(offset).ok()?;
    let register = Register::lookup(offset)?;
    Some((register, (offset - register.offset()) * 8))
}

impl Front {
    /// Ends the stalled transactions of the streams that `which` selects.
    pub(crate) fn end_stalls(&mut self, which: impl Fn(u32) -> bool, action: Resume) {
        for stag in 0..self.stalled.len() {
            if let Some(stalled) = self.stalled[stag]
                && which(stalled.event.sid)
            {
                self.stalled[stag] = None;
                self.effects.push_back(Effect::Resume {
                    stream_id: stalled.event.sid,
                    stag: stag as u16,
                    action,
                });
            }
        }
    }

    /// The bits of a register that its guard lets software write now; `None` if there are none.
    fn allowed(&self, register: Register) -> Option<u64> {
        let cr0 = self.word(Register::Cr0) | self.word(Register::Cr0Ack);
        let cr0 = Cr0(cr0);
        let irq = IrqCtrl(self.word(Register::IrqCtrl));
        let open = match register.access() {
            Access::ReadWrite | Access::WhileNotUpdating | Access::PerField => true,
            Access::WhileSmmuDisabled => !cr0.smmuen(),
            Access::WhileCmdqDisabled => !cr0.cmdqen(),
            Access::WhileEventqDisabled => !cr0.eventqen(),
            Access::WhilePriqDisabled => !cr0.priqen(),
            Access::WhileEventqIrqDisabled => !irq.eventq_irqen(),
            Access::WhilePriqIrqDisabled => !irq.priq_irqen(),
            Access::WhileGerrorIrqDisabled => !irq.gerror_irqen(),
            Access::ReadOnly
            | Access::WhileGatosIdle
            | Access::WhileVatosIdle
            | Access::WhileDptDisabled => false,
        };
        if register == Register::Cr1 {
            let queues = cr0.cmdqen() || cr0.eventqen() || cr0.priqen();
            let fields = if queues { 0 } else { 0x3f } | if cr0.smmuen() { 0 } else { 0xfc0 };
            return (fields != 0).then_some(fields);
        }
        open.then_some(!0)
    }
}
