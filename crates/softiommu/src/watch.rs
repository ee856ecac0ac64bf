//! Who watches a machine: a trace, counts, or both.

use std::sync::Arc;

use interpose::{Ended, Ioctl};
use platform::{Dma, Message};
use smmuv3::Observation;
use softiommu_machine::Machine;

use crate::Report;
use crate::stats::Stats;
use crate::timeline::Timeline;

/// See the module.
pub(crate) struct Watch {
    timeline: Option<Arc<Timeline>>,
    stats: Option<Stats>,
}

impl Watch {
    /// Watches what this process's machine does, if the machine file asks for that. `anew`: its trace begins a new file.
    /// `report` is told at the end.
    pub(crate) fn start(machine: &Machine, anew: bool, report: &Report) -> Option<Arc<Self>> {
        let timeline =
            machine.trace.as_deref().and_then(|path| Timeline::start(path, anew, report));
        let stats = machine.stats.then(Stats::default);
        if timeline.is_none() && stats.is_none() {
            return None;
        }
        let watch = Arc::new(Self { timeline, stats });
        interpose::observe(Calls(watch.clone()));
        let (ended, report, process) = (watch.clone(), report.clone(), std::process::id());
        interpose::before_end(move || {
            if let Some(timeline) = &ended.timeline {
                timeline.end(&report);
            }
            // A copy that was left behind has closed what the program would be told on.
            if let Some(stats) = ended.stats.as_ref().filter(|_| process == std::process::id()) {
                report(&stats.to_string());
            }
        });
        Some(watch)
    }

    pub(crate) fn timeline(&self) -> Option<&Arc<Timeline>> {
        self.timeline.as_ref()
    }

    /// Watches an SMMU. The devices behind it are to be told.
    pub(crate) fn smmu(self: &Arc<Self>, name: &str, smmu: &platform::Model) {
        let (watch, name) = (self.clone(), name.to_owned());
        let observer = move |observation: Observation<'_>| {
            if let Some(stats) = &watch.stats {
                stats.smmu(&observation);
            }
            if let Some(timeline) = &watch.timeline {
                timeline.smmu(&name, observation);
            }
        };
        // It is new: nobody observes it yet.
        let _ = smmu.observe(observer);
    }
}

struct Calls(Arc<Watch>);

impl interpose::Observer for Calls {
    fn ioctl<'a>(&'a self, ioctl: &Ioctl<'a>) -> Ended<'a> {
        let traced = self.0.timeline.as_ref().map(|timeline| timeline.ioctl(ioctl));
        Box::new(move |result| {
            if let Some(stats) = &self.0.stats {
                stats.ioctl(result.is_ok());
            }
            if let Some(traced) = traced {
                traced(result);
            }
        })
    }
}

impl platform::Observer for Watch {
    fn dma(&self, device: &str, dma: &Dma) {
        if let Some(stats) = &self.stats {
            stats.dma(dma);
        }
        if let Some(timeline) = &self.timeline {
            timeline.dma(device, dma);
        }
    }

    fn message(&self, device: &str, message: &Message) {
        if let Some(stats) = &self.stats {
            stats.message(message);
        }
        if let Some(timeline) = &self.timeline {
            timeline.message(device, message);
        }
    }
}
