//! The model's [`Accelerator`]: configurations become page tables, invalidations become ioctls.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::RwLock;
use smmuv3::wire::Command;
use smmuv3::{Accelerator, PageResponse, Refusal, StreamConfig};

use crate::faults::Faults;
use crate::host::{Host, InvalidateError};
use crate::slot::Slot;
use crate::viommu::Viommu;

/// What happened that nobody is told of otherwise. Counted from the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Statistics {
    /// Calls of `IOMMU_HWPT_INVALIDATE`.
    pub invalidate_calls: u64,
    /// Commands that the host refused; the guest saw `CERROR_ILL`. If the guest is not at fault, the
    /// host does not keep what it promised.
    pub commands_refused: u64,
    /// Batches that failed for another reason, such as a lack of memory; the guest saw
    /// `CERROR_ABT`, and issues them again.
    pub batches_failed: u64,
    /// Configurations that the host refused; the stream aborts.
    pub installs_failed: u64,
    /// Times that the host, or the queue between it and us, lost events.
    pub events_lost: u64,
    /// Events that name no stream of this vSMMU, or that nobody can read.
    pub events_dropped: u64,
    /// Page requests that were answered without asking the guest.
    pub page_requests_refused: u64,
}

/// [`Statistics`], as they are counted.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) invalidate_calls: AtomicU64,
    pub(crate) commands_refused: AtomicU64,
    pub(crate) batches_failed: AtomicU64,
    pub(crate) installs_failed: AtomicU64,
    pub(crate) events_lost: AtomicU64,
    pub(crate) events_dropped: AtomicU64,
    pub(crate) page_requests_refused: AtomicU64,
}

/// Adds one, and says whether it is the first: that one is worth a warning, the others may be the guest's doing.
pub(crate) fn count(counter: &AtomicU64) -> bool {
    counter.fetch_add(1, Ordering::Relaxed) == 0
}

impl Counters {
    pub(crate) fn read(&self) -> Statistics {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Statistics {
            invalidate_calls: read(&self.invalidate_calls),
            commands_refused: read(&self.commands_refused),
            batches_failed: read(&self.batches_failed),
            installs_failed: read(&self.installs_failed),
            events_lost: read(&self.events_lost),
            events_dropped: read(&self.events_dropped),
            page_requests_refused: read(&self.page_requests_refused),
        }
    }
}

/// Shared by the model, which calls it, and by the [`Vsmmu`](crate::Vsmmu), which knows the model.
pub(crate) struct Back {
    pub(crate) host: Arc<dyn Host>,
    pub(crate) viommu: RwLock<Option<Arc<Viommu>>>,
    /// The devices that have a vDEVICE, by StreamID. Held while the host uses StreamIDs, so that none goes meanwhile.
    pub(crate) streams: RwLock<BTreeMap<u32, Arc<Slot>>>,
    pub(crate) faults: Faults,
    pub(crate) counters: Counters,
    /// The host's SMMU has the erratum that has invalidations issued twice.
    pub(crate) repeat: AtomicBool,
}

/// A command is about a device's configuration or its ATC.
fn stream(command: &[u64; 2]) -> Option<u32> {
    match Command::decode(command) {
        Some(
            Command::CfgiCd { sid, .. }
            | Command::CfgiCdAll { sid, .. }
            | Command::AtcInv { sid, .. },
        ) => Some(sid),
        _ => None,
    }
}

fn is_atc_inv(command: &[u64; 2]) -> bool {
    matches!(Command::decode(command), Some(Command::AtcInv { .. }))
}

impl Back {
    pub(crate) fn new(host: Arc<dyn Host>) -> Self {
        Self {
            host,
            viommu: RwLock::default(),
            streams: RwLock::default(),
            faults: Faults::default(),
            counters: Counters::default(),
            repeat: AtomicBool::new(false),
        }
    }

    fn call(&self, viommu: &Viommu, commands: &[[u64; 2]]) -> Result<(), InvalidateError> {
        if commands.is_empty() {
            return Ok(());
        }
        count(&self.counters.invalidate_calls);
        self.host.invalidate(viommu.id.id, commands)
    }

    /// Everything again but what the host need not, or cannot, do twice.
    fn again(&self, viommu: &Viommu, commands: &[[u64; 2]]) -> Result<(), Refusal> {
        let rest: Vec<_> = commands.iter().filter(|c| !is_atc_inv(c)).copied().collect();
        self.call(viommu, &rest).map_err(|error| self.failed(&error))
    }

    fn failed(&self, error: &InvalidateError) -> Refusal {
        if count(&self.counters.batches_failed) {
            tracing::warn!(%error, "the host failed to invalidate; the guest is told to try again");
        }
        Refusal::Unknown
    }

    /// Carries out a batch, and finds the command that is at fault if one is.
    fn execute(&self, viommu: &Viommu, commands: &[[u64; 2]]) -> Result<(), Refusal> {
        // Those before are complete.
        let mut from = 0;
        loop {
            let rest = &commands[from..];
            let Err(failure) = self.call(viommu, rest) else { return Ok(()) };
            let done = failure.done;
            match failure.error.raw_os_error() {
                Some(libc::EIO | libc::EINVAL | libc::EOPNOTSUPP) if done == 0 => {
                    if count(&self.counters.commands_refused) {
                        let command = rest.first().and_then(Command::decode);
                        tracing::warn!(?command, error = %failure.error, "the host refuses a command");
                    }
                    return Err(Refusal::Illegal { index: from });
                }
                Some(libc::EIO | libc::EINVAL | libc::EOPNOTSUPP) if done < rest.len() => {
                    // Linux up to 7.3 counts commands as done that it has looked at only; and an error may be about
                    // them, not about the next. So both parts again, each by itself: twice does no harm.
                    self.call(viommu, &rest[..done]).map_err(|error| self.failed(&error))?;
                    from += done;
                }
                Some(libc::ETIMEDOUT) if commands.iter().any(is_atc_inv) => {
                    return self.again(viommu, commands).and(Err(Refusal::AtcTimeout));
                }
                _ => return Err(self.failed(&failure)),
            }
        }
    }
}

impl Accelerator for Back {
    fn install(&self, stream_id: u32, config: StreamConfig) -> bool {
        let Some(slot) = self.streams.read().get(&stream_id).cloned() else { return true };
        // The host answers what the device asked for under the old configuration.
        self.faults.forget(stream_id);
        let installed = slot.install(stream_id, config);
        if let Err(error) = &installed
            && count(&self.counters.installs_failed)
        {
            tracing::warn!(stream_id, ?config, %error, "the stream aborts");
        }
        installed.is_ok()
    }

    fn invalidate(&self, commands: &[[u64; 2]]) -> Result<(), Refusal> {
        let Some(viommu) = self.viommu.read().clone() else { return Ok(()) };
        // A StreamID without a vDEVICE has nothing cached, and the host does not know it.
        let streams = self.streams.read();
        let (positions, known): (Vec<usize>, Vec<[u64; 2]>) = commands
            .iter()
            .enumerate()
            .filter(|(_, c)| stream(c).is_none_or(|sid| streams.contains_key(&sid)))
            .map(|(position, command)| (position, *command))
            .unzip();
        self.execute(&viommu, &known).map_err(|refusal| match refusal {
            Refusal::Illegal { index } => Refusal::Illegal { index: positions[index] },
            other => other,
        })?;
        if self.repeat.load(Ordering::Relaxed) {
            // Each call ends with a CMD_SYNC.
            self.again(&viommu, &known)?;
        }
        Ok(())
    }

    fn page_response(&self, response: PageResponse) {
        if let Some(viommu) = self.viommu.read().clone() {
            self.faults.respond(&viommu, &response);
        }
    }
}
