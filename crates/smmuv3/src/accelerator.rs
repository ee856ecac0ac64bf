//! Streams that somebody else translates for: devices assigned to a guest, behind the IOMMU of the host.
//!
//! Software sees one SMMU. For a stream that is *assigned*, what it writes into the SMMU is handed to an
//! [`Accelerator`] instead of being used here: the configuration, decoded once, whenever it changes; and the
//! invalidations that concern it, in order and in batches. The host is never called with a lock held. Until a batch's
//! result is in, its commands stay in the queue: `CMDQ_CONS` tells of nothing that has not happened.

mod forward;

use std::collections::BTreeMap;

use thiserror::Error;

use crate::config::{Context, Eats};
use crate::front::{Effect, Front};
use crate::options::{Options, StallModel};
use crate::platform::{Memory, PageResponse};
use crate::smmu::Smmu;
use crate::sync::Fence;
use crate::wire::register::CmdqCons;
use crate::wire::{Command, Event, Ste};

pub(crate) use forward::Collected;

/// Streams that can be assigned at a time: as many as a PCIe segment has functions.
pub const ASSIGNED_MAX: usize = 1 << 16;

/// Invalidations in one call at most: what `IOMMU_HWPT_INVALIDATE` takes. The longest command queue holds as many
/// commands, so that it takes a guest some effort to need a second call before a `CMD_SYNC`.
const BATCH_MAX: usize = 1 << 19;

/// Who translates for assigned streams. See [`Smmu::accelerate`].
///
/// Methods are called one at a time, in the order of what caused them, without any lock of the SMMU held, on the
/// thread of some register access, event or [`poll`](Smmu::poll). They may call the SMMU.
pub trait Accelerator: Send + Sync {
    /// The configuration of a stream is `config` from now on. Returns whether it is in force; if it is not, the
    /// stream has to abort, and is tried again at the next occasion.
    ///
    /// A call that was under way when its stream was unassigned arrives all the same.
    fn install(&self, stream_id: u32, config: StreamConfig) -> bool;

    /// Carries out invalidations in order; those of earlier calls are complete. When it returns `Ok`, nothing that they
    /// name is cached, and accesses that used it are complete.
    ///
    /// They are `CMD_TLBI_{NSNH_ALL, NH_ALL, NH_ASID, NH_VA, NH_VAA}`, `CMD_CFGI_CD`, `CMD_CFGI_CD_ALL` and
    /// `CMD_ATC_INV`, with VMID 0 and all bits zero that are reserved given the ID registers of this SMMU.
    fn invalidate(&self, commands: &[[u64; 2]]) -> Result<(), Refusal>;

    /// A PRG response to an assigned stream: `CMD_PRI_RESP`, or of the SMMU itself when the PRI queue overflows.
    fn page_response(&self, response: PageResponse) {
        let _ = response;
    }
}

impl<T: Accelerator + ?Sized> Accelerator for std::sync::Arc<T> {
    fn install(&self, stream_id: u32, config: StreamConfig) -> bool {
        (**self).install(stream_id, config)
    }
    fn invalidate(&self, commands: &[[u64; 2]]) -> Result<(), Refusal> {
        (**self).invalidate(commands)
    }
    fn page_response(&self, response: PageResponse) {
        (**self).page_response(response);
    }
}

/// Why [`Accelerator::invalidate`] did not do everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Refusal {
    /// Command `index` is not one that can be carried out. Those before it are complete, those from it on are not.
    /// Software sees `CERROR_ILL` at it.
    #[error("command {index} was refused")]
    Illegal {
        /// Its index in the batch.
        index: usize,
    },
    /// All is done but that an endpoint did not answer an ATS Invalidate Request in time: the next `CMD_SYNC` fails
    /// with `CERROR_ATC_INV_SYNC`.
    #[error("an ATS invalidation timed out")]
    AtcTimeout,
    /// Nobody knows how many were carried out. Software sees `CERROR_ABT` at the first, the error after which
    /// the same commands are issued again: none is lost, and twice does no harm.
    #[error("the batch failed as a whole")]
    Unknown,
}

/// What an assigned stream is to do with transactions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum StreamConfig {
    /// Abort them in silence. Also where there is no valid STE, or one that only stage 2 of this SMMU could carry out.
    #[default]
    Abort,
    /// Pass their addresses on: guest-physical.
    Bypass,
    /// Translate at stage 1.
    Translate {
        /// The first two words of the STE, of which only these fields can be set: `V`, `Config`, `S1Fmt`,
        /// `S1ContextPtr`, `S1CDMax`; `S1DSS`, `S1CIR`, `S1COR`, `S1CSH`, `S1STALLD`, `EATS` (0 or 1). Those that
        /// have no effect are zero, so that equal words mean equal behaviour.
        ste: [u64; 2],
    },
}

impl StreamConfig {
    fn new(context: &Context, options: &Options) -> Self {
        let ste = &context.ste;
        match ste.config() {
            0b100 => Self::Bypass,
            0b101 => {
                let mut words = Ste::default()
                    .with_v(true)
                    .with_config(0b101)
                    .with_s1_context_ptr(ste.s1_context_ptr())
                    .with_s1_cir(ste.s1_cir())
                    .with_s1_cor(ste.s1_cor())
                    .with_s1_csh(ste.s1_csh())
                    .with_s1_stalld(ste.s1_stalld() && options.stall_model == StallModel::Both)
                    .with_eats(u8::from(context.eats == Eats::Full));
                if options.ssid_bits > 0 && ste.s1_cd_max() > 0 {
                    let format = if ste.s1_fmt() == 0b11 { 0 } else { ste.s1_fmt() };
                    let format = if options.cd2l { format } else { 0 };
                    words = words
                        .with_s1_cd_max(ste.s1_cd_max())
                        .with_s1_fmt(format)
                        .with_s1_dss(ste.s1_dss());
                }
                Self::Translate { ste: [words.0[0], words.0[1]] }
            }
            _ => Self::Abort,
        }
    }
}

/// Why a stream cannot be assigned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum AssignError {
    /// [`Smmu::accelerate`] comes first.
    #[error("there is no accelerator")]
    NoAccelerator,
    /// Beyond `IDR1.SIDSIZE`.
    #[error("StreamID {0:#x} is out of range")]
    OutOfRange(u32),
    /// It is assigned already.
    #[error("StreamID {0:#x} is assigned already")]
    Assigned(u32),
    /// There are [`ASSIGNED_MAX`].
    #[error("{ASSIGNED_MAX} streams are assigned already")]
    TooMany,
}

/// An SMMU has one accelerator, for as long as it lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the SMMU has an accelerator already")]
pub struct AlreadyAccelerated;

/// What the register front knows of assigned streams.
#[derive(Debug, Default)]
pub(crate) struct Assigned {
    streams: BTreeMap<u32, Stream>,
    /// `Effect::Install` in the queue.
    queued: usize,
    /// `Effect::Flush` is in the queue.
    flush_queued: bool,
    /// One of them is being carried out.
    calling: bool,
    /// Invalidations went by while nothing was assigned.
    stale: bool,
    batch: Batch,
    /// The batch is with the accelerator, under this name.
    sent: Option<u64>,
    tags: u64,
}

#[derive(Debug, Default)]
struct Stream {
    wanted: StreamConfig,
    /// What is in force, if that is known.
    installed: Option<StreamConfig>,
    queued: bool,
}

#[derive(Debug, Default)]
struct Batch {
    /// The commands as software wrote them, and what `CMDQ_CONS` becomes after each.
    commands: Vec<(Command, CmdqCons)>,
    /// What goes to the accelerator, and the position in `commands` of what caused it.
    host: Vec<([u64; 2], usize)>,
    /// ATS invalidations among them that go to devices.
    local: usize,
}

impl Assigned {
    pub(crate) fn contains(&self, stream_id: u32) -> bool {
        self.streams.contains_key(&stream_id)
    }

    /// Configurations are on their way to the accelerator.
    pub(crate) fn busy(&self) -> bool {
        self.queued > 0 || self.flush_queued || self.calling
    }

    /// The head of the Command queue waits for a batch's result.
    pub(crate) fn waits(&self) -> bool {
        self.sent.is_some()
    }

    /// The position of the next command if some are collected and not yet consumed.
    pub(crate) fn collected(&self) -> Option<u32> {
        self.batch.commands.last().map(|(_, next)| next.rd())
    }

    /// Drops what waits, for a front whose effects are dropped: the streams stay.
    pub(crate) fn restart(self) -> Self {
        let Self { mut streams, calling, tags, .. } = self;
        for stream in streams.values_mut() {
            stream.queued = false;
        }
        Self { streams, calling, tags, stale: true, ..Self::default() }
    }
}

impl<M: Memory, F: Fence> Smmu<M, F> {
    /// Takes the one that translates for assigned streams, once.
    ///
    /// Give the SMMU [`Options`] that promise software no more than both the accelerator and this
    /// model do; with a second stage of its own (`stage2`) such streams abort that use it.
    pub fn accelerate(
        &self,
        accelerator: impl Accelerator + 'static,
    ) -> Result<(), AlreadyAccelerated> {
        self.accelerator.set(Box::new(accelerator)).map_err(|_| AlreadyAccelerated)
    }

    /// Hands a stream over to the accelerator, which is told its configuration at once. Transactions of the stream that
    /// come through a [`Requester`](crate::Requester) are translated here as before.
    pub fn assign(&self, stream_id: u32) -> Result<(), AssignError> {
        if self.accelerator.get().is_none() {
            return Err(AssignError::NoAccelerator);
        }
        if u64::from(stream_id) >> self.options.sid_bits != 0 {
            return Err(AssignError::OutOfRange(stream_id));
        }
        {
            let mut front = self.front.lock();
            let streams = &mut front.assigned.streams;
            if streams.contains_key(&stream_id) {
                return Err(AssignError::Assigned(stream_id));
            }
            if streams.len() >= ASSIGNED_MAX {
                return Err(AssignError::TooMany);
            }
            streams.insert(stream_id, Stream::default());
            front.flush_if_stale();
            self.refresh(&mut front, stream_id, None);
        }
        self.poll();
        Ok(())
    }

    /// Takes a stream back. The accelerator is not told: the caller knows. Returns whether it was assigned.
    pub fn unassign(&self, stream_id: u32) -> bool {
        let removed = {
            let mut front = self.front.lock();
            let assigned = &mut front.assigned;
            let removed = assigned.streams.remove(&stream_id);
            if removed.as_ref().is_some_and(|stream| stream.queued) {
                assigned.queued -= 1;
                front.effects.retain(
                    |effect| !matches!(effect, Effect::Install { stream_id: id } if *id == stream_id),
                );
            }
            removed
        };
        self.poll();
        removed.is_some()
    }

    /// What the registers and the stream table say about a stream now.
    pub fn stream_config(&self, stream_id: u32) -> StreamConfig {
        if !self.live.cr0().smmuen() {
            return if self.live.gbpa().abort() {
                StreamConfig::Abort
            } else {
                StreamConfig::Bypass
            };
        }
        self.fetch_ste(stream_id, &mut ())
            .map_or(StreamConfig::Abort, |context| StreamConfig::new(&context, &self.options))
    }

    /// An event of an assigned stream, from the host: recorded as an event of this SMMU is, with what §7.4 says of a
    /// full or disabled queue. It is merged with its like only if the stream's STE lets it.
    pub fn inject_event(&self, event: Event) {
        let mergeable = self.fetch_ste(event.sid, &mut ()).is_ok_and(|context| context.mev);
        self.record(&mut self.front.lock(), event, mergeable);
        self.poll();
    }

    /// Events of assigned streams were lost on their way here: software sees that as an overflow of its Event queue.
    pub fn inject_lost_events(&self) {
        {
            let mut front = self.front.lock();
            if front.events_delivered() {
                front.overflow_events();
            }
        }
        self.poll();
    }

    /// Has the configuration of a stream installed if it is not what is in force; `policy` instead of what software
    /// wrote. Returns the configuration if nothing is to be done.
    fn refresh(
        &self,
        front: &mut Front,
        stream_id: u32,
        policy: Option<StreamConfig>,
    ) -> Option<StreamConfig> {
        let config = policy.unwrap_or_else(|| self.stream_config(stream_id));
        let assigned = &mut front.assigned;
        let stream = assigned.streams.get_mut(&stream_id)?;
        stream.wanted = config;
        if !stream.queued {
            if stream.installed == Some(config) {
                return Some(config);
            }
            stream.queued = true;
            assigned.queued += 1;
            front.effects.push_back(Effect::Install { stream_id });
        }
        None
    }

    /// [`refresh`](Self::refresh)es all of them: `SMMUEN` or `GBPA` changed, or everything did.
    pub(crate) fn refresh_all(&self, front: &mut Front, policy: Option<StreamConfig>) {
        front.flush_if_stale();
        let streams: Vec<u32> = front.assigned.streams.keys().copied().collect();
        for stream_id in streams {
            self.refresh(front, stream_id, policy);
        }
    }
}

impl Front {
    /// What the host cached before the streams of today, or before a restore, may be out of date.
    fn flush_if_stale(&mut self) {
        let assigned = &mut self.assigned;
        if assigned.stale && !assigned.flush_queued && !assigned.streams.is_empty() {
            assigned.flush_queued = true;
            self.effects.push_back(Effect::Flush);
        }
    }
}
