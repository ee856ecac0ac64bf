//! From the Command queue to the [`Accelerator`](super::Accelerator): what is forwarded, batches, and their results.

use super::{Assigned, BATCH_MAX, Batch, Refusal, StreamConfig};
use crate::commands::{ATC_INVALIDATIONS, COMMAND_LOG2};
use crate::front::{Effect, Front};
use crate::observe::Observation;
use crate::options::Options;
use crate::platform::{Memory, Wire};
use crate::queues::CMDQ_ERR;
use crate::smmu::Smmu;
use crate::sync::Fence;
use crate::wire::register::{CmdqCons, CommandError, Cr0, Prod, Register};
use crate::wire::{Command, TlbiVa};

/// What [`Smmu::collect`] did with a command.
pub(crate) enum Collected {
    /// Nothing: it is to be carried out here and now.
    Not,
    /// It waits for the batch's result.
    Added,
    /// The batch before it goes first.
    Boundary,
}

impl<M: Memory, F: Fence> Smmu<M, F> {
    /// Adds a legal command to the batch if it concerns the host, or if it comes after one that does. Has changed
    /// configurations installed.
    pub(crate) fn collect(&self, front: &mut Front, command: Command, next: CmdqCons) -> Collected {
        let streams = match command {
            Command::CfgiSte { sid, .. } => sid..=sid,
            Command::CfgiSteRange { sid, range, .. } => {
                let low = ((2u64 << range) - 1) as u32;
                sid & !low..=sid | low
            }
            Command::Sync { .. }
            | Command::PriResp { .. }
            | Command::Resume { .. }
            | Command::StallTerm { .. } => {
                let collecting = front.assigned.collected().is_some();
                return if collecting { Collected::Boundary } else { Collected::Not };
            }
            _ => return self.collect_invalidation(front, command, next),
        };
        let found: Vec<u32> = front.assigned.streams.range(streams).map(|(sid, _)| *sid).collect();
        if front.assigned.collected().is_some() && !found.is_empty() {
            // What came before took effect under the old configuration.
            return Collected::Boundary;
        }
        front.flush_if_stale();
        let unchanged: Vec<[u64; 2]> = found
            .into_iter()
            .filter(|sid| {
                let same = self.refresh(front, *sid, None);
                matches!(same, Some(StreamConfig::Translate { .. }))
            })
            // The CDs of a stream go with its STE (§4.3.1); whoever installs the same STE again would not notice.
            .map(|sid| Command::CfgiCdAll { sid, ssec: false }.encode())
            .collect();
        front.assigned.add(command, next, &unchanged, 0)
    }

    fn collect_invalidation(
        &self,
        front: &mut Front,
        command: Command,
        next: CmdqCons,
    ) -> Collected {
        let enabled = front.cr0().smmuen();
        let assigned = &mut front.assigned;
        let host = host_command(&self.options, command);
        let (host, local) = match command {
            Command::AtcInv { sid, .. } if assigned.contains(sid) => (host.filter(|_| enabled), 0),
            Command::AtcInv { .. } => (None, 1),
            Command::CfgiCd { sid, .. } | Command::CfgiCdAll { sid, .. } => {
                (host.filter(|_| assigned.contains(sid)), 0)
            }
            _ => {
                let forwarded = !assigned.streams.is_empty();
                // Whoever comes next must not meet what this was to invalidate.
                assigned.stale |= host.is_some() && !forwarded;
                (host.filter(|_| forwarded), 0)
            }
        };
        let outstanding = front.atc_pending.len() + assigned.batch.local;
        if local > 0 && assigned.collected().is_some() && outstanding >= ATC_INVALIDATIONS {
            return Collected::Boundary;
        }
        assigned.add(command, next, host.as_slice(), local)
    }

    /// [`Effect::Forward`], without the lock.
    pub(crate) fn forward(&self, tag: u64, commands: &[[u64; 2]]) {
        let result = self.accelerator.get().map_or(Ok(()), |host| host.invalidate(commands));
        let mut front = self.front.lock();
        if front.assigned.sent != Some(tag) {
            // Of another life: there was a reset.
            return;
        }
        front.assigned.sent = None;
        let batch = std::mem::take(&mut front.assigned.batch);
        let all = batch.commands.len();
        let (done, error) = match result {
            Ok(()) => (all, None),
            Err(Refusal::AtcTimeout) => {
                front.atc_failed = true;
                (all, None)
            }
            Err(Refusal::Illegal { index }) => match batch.host.get(index) {
                Some((_, position)) => (*position, Some(CommandError::Ill)),
                None => (0, Some(CommandError::Abt)),
            },
            Err(Refusal::Unknown) => (0, Some(CommandError::Abt)),
        };
        self.complete(&mut front, &batch.commands[..done]);
        if let Some(error) = error {
            let cons = CmdqCons(front.word(Register::CmdqCons)).with_err(error as u8);
            front.set(Register::CmdqCons, cons.0.into());
            self.tell(Observation::CommandError(error));
            self.activate(&mut front, CMDQ_ERR);
        }
        if !front.cr0().cmdqen() {
            // That was asked for while the batch was under way.
            let ack = Cr0(front.word(Register::Cr0Ack)).with_cmdqen(false);
            front.set(Register::Cr0Ack, ack.0.into());
        }
    }

    /// Carries out here as well what the host has done, and consumes it.
    fn complete(&self, front: &mut Front, commands: &[(Command, CmdqCons)]) {
        let Some((_, last)) = commands.last() else { return };
        let (_, ring) = front.queue(Register::CmdqBase, COMMAND_LOG2, self.options.cmdq_log2);
        let full = ring.is_full(
            Prod(front.word(Register::CmdqProd)).wr(),
            CmdqCons(front.word(Register::CmdqCons)).rd(),
        );
        for (command, _) in commands {
            self.carry_out(front, *command);
            self.tell(Observation::Command(command));
        }
        front.set(Register::CmdqCons, last.0.into());
        if full && self.options.sev {
            front.effects.push_back(Effect::Pulse(Wire::Sev));
        }
    }

    /// [`Effect::Install`], without the lock.
    pub(crate) fn install(&self, stream_id: u32) {
        let Some(accelerator) = self.accelerator.get() else { return };
        let config = {
            let mut front = self.front.lock();
            let assigned = &mut front.assigned;
            let Some(stream) = assigned.streams.get_mut(&stream_id).filter(|s| s.queued) else {
                return;
            };
            stream.queued = false;
            // With what was not invalidated still cached, nothing may be translated.
            let config = if assigned.stale { StreamConfig::Abort } else { stream.wanted };
            stream.installed = Some(config);
            assigned.queued -= 1;
            assigned.calling = true;
            config
        };
        let in_force = accelerator.install(stream_id, config);
        let mut front = self.front.lock();
        front.assigned.calling = false;
        if !in_force && let Some(stream) = front.assigned.streams.get_mut(&stream_id) {
            stream.installed = None;
        }
    }

    /// [`Effect::Flush`], without the lock.
    pub(crate) fn flush(&self) {
        let Some(accelerator) = self.accelerator.get() else { return };
        let commands = {
            let mut front = self.front.lock();
            let assigned = &mut front.assigned;
            assigned.flush_queued = false;
            assigned.stale = false;
            assigned.calling = true;
            let translating = |config| matches!(config, Some(StreamConfig::Translate { .. }));
            let cds = assigned
                .streams
                .iter()
                .filter(|(_, stream)| translating(stream.installed))
                .map(|(sid, _)| Command::CfgiCdAll { sid: *sid, ssec: false });
            let commands = std::iter::once(Command::TlbiNsnhAll).chain(cds);
            commands.map(|command| command.encode()).collect::<Vec<_>>()
        };
        let done = accelerator.invalidate(&commands).is_ok();
        let mut front = self.front.lock();
        front.assigned.calling = false;
        front.assigned.stale |= !done;
    }
}

impl Front {
    /// Sends off what was collected.
    pub(crate) fn send_batch(&mut self) {
        let assigned = &mut self.assigned;
        if assigned.sent.is_none() && assigned.collected().is_some() {
            let tag = assigned.tags;
            assigned.tags += 1;
            assigned.sent = Some(tag);
            let commands = assigned.batch.host.iter().map(|(command, _)| *command).collect();
            self.effects.push_back(Effect::Forward { tag, commands });
        }
    }
}

impl Assigned {
    fn add(
        &mut self,
        command: Command,
        next: CmdqCons,
        host: &[[u64; 2]],
        local: usize,
    ) -> Collected {
        let Batch { commands, host: forwarded, local: so_far } = &mut self.batch;
        if commands.is_empty() && host.is_empty() {
            return Collected::Not;
        }
        if !forwarded.is_empty() && forwarded.len() + host.len() > BATCH_MAX {
            return Collected::Boundary;
        }
        let position = commands.len();
        forwarded.extend(host.iter().map(|command| (*command, position)));
        commands.push((command, next));
        *so_far += local;
        Collected::Added
    }
}

/// What the host is to do for a command, with nothing in it that the ID registers do not promise.
fn host_command(options: &Options, command: Command) -> Option<[u64; 2]> {
    let asid = |asid: u16| if options.asid16 { asid } else { asid & 0xff };
    let command = match command {
        Command::TlbiNsnhAll => command,
        Command::TlbiNhAll { .. } => Command::TlbiNhAll { vmid: 0 },
        Command::TlbiNhAsid { asid: id, .. } => Command::TlbiNhAsid { vmid: 0, asid: asid(id) },
        Command::TlbiNhVa(va) => {
            Command::TlbiNhVa(TlbiVa { asid: asid(va.asid), ..host_range(options, va) })
        }
        Command::TlbiNhVaa(va) => Command::TlbiNhVaa(TlbiVa { asid: 0, ..host_range(options, va) }),
        Command::CfgiCd { sid, ssid, leaf, .. } => {
            let ssid = if options.ssid_bits > 0 { ssid } else { 0 };
            Command::CfgiCd { sid, ssid, leaf, ssec: false }
        }
        Command::CfgiCdAll { sid, .. } => Command::CfgiCdAll { sid, ssec: false },
        Command::AtcInv { sid, ssid, global, size, addr } => {
            let ssid = ssid.filter(|_| options.ssid_bits > 0);
            let global = global && ssid.is_some();
            let addr = if size >= 52 { 0 } else { addr >> (12 + size) << (12 + size) };
            Command::AtcInv { sid, ssid, global, size, addr }
        }
        _ => return None,
    };
    Some(command.encode())
}

fn host_range(options: &Options, va: TlbiVa) -> TlbiVa {
    if !options.ril || va.tg == 0 {
        return TlbiVa { address: va.address, leaf: va.leaf, ..TlbiVa::default() };
    }
    let granule = 10 + 2 * u32::from(va.tg);
    let reserved = va.tg == 2 && va.ttl == 1 && !options.ds;
    TlbiVa {
        vmid: 0,
        address: va.address >> granule << granule,
        ttl: if reserved { 0 } else { va.ttl },
        ttl128: false,
        scale: va.scale.min(if options.ds { 39 } else { 31 }),
        ..va
    }
}
