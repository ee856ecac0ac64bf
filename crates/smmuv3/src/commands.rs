//! The SMMU as a consumer: the Command queue (§4, §7.1).

use crate::accelerator::Collected;
use crate::cache::generation::StreamWorld;
use crate::front::{Effect, Front};
use crate::observe::Observation;
use crate::options::StallModel;
use crate::platform::{AtcInvalidate, Memory, PageResponse, PageResponseCode, Resume, Wire};
use crate::queues::{CMDQ_ERR, MSI_CMDQ_ABT_ERR};
use crate::smmu::Smmu;
use crate::sync::Fence;
use crate::wire::register::{CmdqCons, CommandError, Prod, Register};
use crate::wire::{Command, TlbiVa};

/// log2 of the size of a command, in bytes.
pub(crate) const COMMAND_LOG2: u32 = 4;

/// Effects of commands that may wait to be carried out. More commands run once these are.
const EFFECTS: usize = 64;

/// ATS invalidations that may be without an answer at a time; PCIe has 32 tags for each function.
pub(crate) const ATC_INVALIDATIONS: usize = 64;

/// What became of a command.
enum Outcome {
    Consumed,
    /// It is part of a batch that the accelerator gets.
    Collected,
    /// It stays at the head of the queue until something else has happened.
    Waits,
    Error(CommandError),
}

const ILLEGAL: Outcome = Outcome::Error(CommandError::Ill);

impl<M: Memory, F: Fence> Smmu<M, F> {
    /// Executes commands until none is left, one waits or fails, or the budget is used up. Returns whether
    /// any was consumed.
    pub(crate) fn run_commands(&self, front: &mut Front, budget: &mut u32) -> bool {
        self.acknowledge_enable(front);
        let (base, ring) = front.queue(Register::CmdqBase, COMMAND_LOG2, self.options.cmdq_log2);
        let mut progress = false;
        let mut full = ring.is_full(
            Prod(front.word(Register::CmdqProd)).wr(),
            CmdqCons(front.word(Register::CmdqCons)).rd(),
        );
        while *budget > 0
            && front.effects.len() < EFFECTS
            && front.cr0().cmdqen()
            && !front.active(CMDQ_ERR)
            && !front.assigned.waits()
        {
            let consumed = CmdqCons(front.word(Register::CmdqCons));
            let collected = front.assigned.collected();
            let cons = consumed.with_rd(collected.unwrap_or(consumed.rd()));
            if ring.is_empty(Prod(front.word(Register::CmdqProd)).wr(), cons.rd()) {
                break;
            }
            *budget -= 1;
            let address = base + (u64::from(ring.index(cons.rd())) << COMMAND_LOG2);
            let mut bytes = [0; 16];
            let outcome = if self.memory.read(address, &mut bytes).is_err() {
                Outcome::Error(CommandError::Abt)
            } else {
                let (low, high) = bytes.split_at(8);
                let word = |half: &[u8]| u64::from_le_bytes(half.try_into().unwrap_or_default());
                self.execute(
                    front,
                    [word(low), word(high)],
                    CmdqCons(cons.0).with_rd(ring.next(cons.rd())),
                )
            };
            match outcome {
                Outcome::Consumed => {
                    progress = true;
                    // Whoever waits for room in the queue is told that there is some (§4.1.2).
                    if std::mem::take(&mut full) && self.options.sev {
                        front.effects.push_back(Effect::Pulse(Wire::Sev));
                    }
                }
                Outcome::Collected => {}
                Outcome::Waits => break,
                // Not before what precedes it.
                Outcome::Error(_) if collected.is_some() => break,
                Outcome::Error(error) => {
                    let cons = CmdqCons(front.word(Register::CmdqCons)).with_err(error as u8);
                    front.set(Register::CmdqCons, cons.0.into());
                    self.tell(Observation::CommandError(error));
                    self.activate(front, CMDQ_ERR);
                    progress = true;
                }
            }
        }
        front.send_batch();
        progress
    }

    /// Executes one command; `next` is what `CMDQ_CONS` becomes when it is consumed.
    fn execute(&self, front: &mut Front, raw: [u64; 2], next: CmdqCons) -> Outcome {
        let Some(command) = Command::decode(&raw) else { return ILLEGAL };
        if self.options.check_reserved && command.encode() != raw {
            return ILLEGAL;
        }
        if !self.legal(&command) {
            return ILLEGAL;
        }
        if self.accelerator.get().is_some() {
            match self.collect(front, command, next) {
                Collected::Added => return Outcome::Collected,
                Collected::Boundary => return Outcome::Waits,
                Collected::Not => {}
            }
        }
        if let Command::Sync { cs, msi_data, msi_address, .. } = command {
            let outcome = self.sync(front, cs, msi_address, msi_data, next);
            match outcome {
                Outcome::Consumed => {
                    self.watch(&command);
                    self.tell(Observation::Command(&command));
                }
                Outcome::Waits => self.tell(Observation::Waits(&command)),
                _ => {}
            }
            return outcome;
        }
        if matches!(command, Command::AtcInv { .. }) && front.atc_pending.len() >= ATC_INVALIDATIONS
        {
            return Outcome::Waits;
        }
        self.carry_out(front, command);
        self.watch(&command);
        self.tell(Observation::Command(&command));
        front.set(Register::CmdqCons, next.0.into());
        Outcome::Consumed
    }

    /// Whether this SMMU has the command, and its parameters have a meaning (§4.1.3).
    fn legal(&self, command: &Command) -> bool {
        let o = &self.options;
        let stalls = o.stall_model != StallModel::TerminateOnly;
        match command {
            Command::PrefetchConfig { ssec, .. }
            | Command::PrefetchAddr { ssec, .. }
            | Command::CfgiSte { ssec, .. }
            | Command::CfgiSteRange { ssec, .. } => !ssec,
            Command::CfgiCd { ssec, .. } | Command::CfgiCdAll { ssec, .. } => o.stage1 && !ssec,
            Command::TlbiNhAll { .. } | Command::TlbiNhAsid { .. } => o.stage1,
            Command::TlbiNhVa(va) | Command::TlbiNhVaa(va) => o.stage1 && self.range(va).is_some(),
            Command::TlbiEl2All | Command::TlbiEl2Asid { .. } => o.hyp,
            Command::TlbiEl2Va(va) | Command::TlbiEl2Vaa(va) => o.hyp && self.range(va).is_some(),
            Command::TlbiS12Vmall { .. } => o.stage2,
            Command::TlbiS2Ipa(ipa) => o.stage2 && self.range(ipa).is_some(),
            Command::TlbiNsnhAll => true,
            Command::AtcInv { size, .. } => o.ats && *size <= 52,
            Command::PriResp { resp, .. } => o.pri && *resp != 0b11,
            Command::Resume { ssec, .. } | Command::StallTerm { ssec, .. } => stalls && !ssec,
            Command::Sync { cs, .. } => *cs != 0b11,
            // Secure, EL3, MPAM and DPT are not implemented.
            _ => false,
        }
    }

    /// Carries out a legal command.
    pub(crate) fn carry_out(&self, front: &mut Front, command: Command) {
        // Without stage 2 there are no VMIDs.
        let vmid = |vmid: u16| if self.options.stage2 { vmid } else { 0 };
        match command {
            Command::CfgiSte { sid, .. }
            | Command::CfgiCd { sid, .. }
            | Command::CfgiCdAll { sid, .. } => self.tlb.invalidate_streams(sid, 0),
            Command::CfgiSteRange { sid, range, .. } => {
                self.tlb.invalidate_streams(sid, u32::from(range) + 1);
            }
            Command::TlbiNhAll { vmid: id } => {
                self.tlb.invalidate_vmid(StreamWorld::El1, vmid(id), false);
            }
            Command::TlbiNhAsid { vmid: id, asid } => {
                self.tlb.invalidate_asid(StreamWorld::El1, vmid(id), asid);
            }
            Command::TlbiNhVa(va) => {
                self.invalidate_va(StreamWorld::El1, vmid(va.vmid), va.asid, &va);
            }
            Command::TlbiNhVaa(va) => {
                self.tlb.invalidate_vmid(StreamWorld::El1, vmid(va.vmid), false);
            }
            Command::TlbiEl2All | Command::TlbiEl2Vaa(_) => {
                self.tlb.invalidate_vmid(StreamWorld::El2, 0, false);
            }
            Command::TlbiEl2Asid { asid } => {
                self.tlb.invalidate_asid(StreamWorld::El2E2h, 0, asid);
            }
            Command::TlbiEl2Va(va) => {
                // Of the two EL2 regimes CR2.E2H has only one in use.
                self.invalidate_va(StreamWorld::El2, 0, 0, &va);
                self.invalidate_va(StreamWorld::El2E2h, 0, va.asid, &va);
            }
            Command::TlbiS12Vmall { vmid } => {
                self.tlb.invalidate_vmid(StreamWorld::El1, vmid, true);
            }
            Command::TlbiS2Ipa(ipa) => {
                let size = self.range(&ipa).unwrap_or(u64::MAX);
                self.tlb.invalidate_ipa(ipa.vmid, ipa.address, size, ipa.leaf);
            }
            Command::TlbiNsnhAll => self.tlb.invalidate_all(),
            Command::AtcInv { sid, ssid, global, size, addr } => {
                self.atc_invalidate(front, sid, ssid, global, size, addr);
            }
            Command::PriResp { sid, ssid, prg_index, resp } => {
                let ssid = ssid.filter(|_| self.options.ssid_bits > 0);
                page_response(front, sid, ssid, prg_index, resp);
            }
            Command::Resume { sid, stag, action, .. } => self.resume(front, sid, stag, action),
            Command::StallTerm { sid, .. } => {
                front.end_stalls(|stalled| stalled == sid, Resume::Abort);
            }
            // Prefetches are hints.
            _ => {}
        }
    }

    fn sync(
        &self,
        front: &mut Front,
        cs: u8,
        msi_address: u64,
        msi_data: u32,
        next: CmdqCons,
    ) -> Outcome {
        if !front.atc_pending.is_empty() || front.assigned.busy() {
            return Outcome::Waits;
        }
        if std::mem::take(&mut front.atc_failed) {
            return Outcome::Error(CommandError::AtcInvSync);
        }
        let quiet = if let Some(outstanding) = &mut front.sync {
            outstanding.refresh()
        } else {
            let outstanding = self.in_flight.outstanding();
            let quiet = outstanding.is_empty();
            front.sync = Some(outstanding);
            quiet
        };
        if !quiet {
            return Outcome::Waits;
        }
        front.sync = None;
        self.in_flight.forget_unless(front.enable.is_some());
        front.retry_unreported();
        front.set(Register::CmdqCons, next.0.into());
        match cs {
            0b01 => {
                let address = msi_address & ((1u128 << self.options.oas) - 1) as u64;
                if self.options.msi
                    && msi_address != 0
                    && self.memory.write(address, &msi_data.to_le_bytes()).is_err()
                {
                    self.activate(front, MSI_CMDQ_ABT_ERR);
                }
                front.effects.push_back(Effect::Pulse(Wire::CmdSync));
            }
            0b10 if self.options.sev => front.effects.push_back(Effect::Pulse(Wire::Sev)),
            _ => {}
        }
        Outcome::Consumed
    }

    /// The bytes that an invalidation by address covers, from its address on; `None` if it is malformed (§4.4.1.1).
    fn range(&self, va: &TlbiVa) -> Option<u64> {
        if !self.options.ril || va.tg == 0 {
            // Covers one entry of whatever size.
            return Some(1);
        }
        if va.num == 0
            && va.scale == 0
            && (va.ttl == 0 || va.ttl == 1 && va.tg == 2 && !self.options.ds)
        {
            return None;
        }
        let granule = 10 + 2 * u32::from(va.tg);
        let scale = u32::from(va.scale).min(if self.options.ds { 39 } else { 31 });
        let bytes = (u128::from(va.num) + 1) << (scale + granule);
        Some(u64::try_from(bytes).unwrap_or(u64::MAX))
    }

    fn invalidate_va(&self, world: StreamWorld, vmid: u16, asid: u16, va: &TlbiVa) {
        let size = self.range(va).unwrap_or(u64::MAX);
        // Addresses are cached with the sign that their regime gives them.
        let address =
            if world == StreamWorld::El2 { va.address } else { sign_extended(va.address) };
        self.tlb.invalidate_va(world, vmid, asid, address, size, va.leaf);
    }

    fn atc_invalidate(
        &self,
        front: &mut Front,
        sid: u32,
        ssid: Option<u32>,
        global: bool,
        size: u8,
        addr: u64,
    ) {
        if !front.cr0().smmuen() || front.assigned.contains(sid) {
            return;
        }
        let substream_id = ssid.filter(|_| self.options.ssid_bits > 0);
        let address = if size >= 52 { 0 } else { addr >> (12 + size) << (12 + size) };
        let request = AtcInvalidate {
            stream_id: sid,
            substream_id,
            global: global && substream_id.is_some(),
            address,
            size_log2: size,
        };
        let tag = front.atc_tag;
        front.atc_tag += 1;
        front.atc_pending.push(tag);
        front.effects.push_back(Effect::AtcInvalidate { tag, request });
    }

    fn resume(&self, front: &mut Front, sid: u32, stag: u16, action: u8) {
        let Some(Some(stalled)) = front.stalled.get(usize::from(stag)) else { return };
        if stalled.event.sid != sid || !stalled.reported {
            return;
        }
        let action = if action & Command::RESUME_RETRY != 0 {
            Resume::Retry
        } else if action & Command::RESUME_ABORT != 0 || self.options.abort_only {
            Resume::Abort
        } else {
            Resume::RazWi
        };
        front.stalled[usize::from(stag)] = None;
        front.effects.push_back(Effect::Resume { stream_id: sid, stag, action });
    }
}

/// The address with bits [63:56] as copies of bit 55.
fn sign_extended(address: u64) -> u64 {
    ((address << 8) as i64 >> 8) as u64
}

fn page_response(
    front: &mut Front,
    stream_id: u32,
    substream_id: Option<u32>,
    prg_index: u16,
    resp: u8,
) {
    let code = match resp {
        0 => PageResponseCode::Failure,
        1 => PageResponseCode::InvalidRequest,
        _ => PageResponseCode::Success,
    };
    if front.cr0().smmuen() {
        let response = PageResponse { stream_id, substream_id, prg_index, code };
        front.effects.push_back(Effect::PageResponse(response));
    }
}
