//! What hardware does: SMMUs and devices, on tracks of their own.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use platform::{Dma, Message, Observer};
use smmuv3::Observation;
use smmuv3::wire::register::{CommandError, Gerror};
use smmuv3::wire::{Command, Event};
use trace::{Args, Track};

use super::{Timeline, event_args};

impl Observer for Timeline {
    fn dma(&self, device: &str, dma: &Dma) {
        let mut args =
            Args::new().hex("address", dma.access.address).hex("length", dma.length as u64);
        if let Some(pasid) = dma.access.pasid {
            args = args.hex("pasid", pasid.into());
        }
        let args = outcome(args, dma.result.is_ok());
        let name = if dma.write { "DMA write" } else { "DMA read" };
        self.tell(|trace| trace.slice(&self.device(device), "dma", name, dma.started, &args));
    }

    fn message(&self, device: &str, message: &Message) {
        let args = Args::new().hex("address", message.address).hex("data", message.data.into());
        let args = outcome(args, message.result.is_ok());
        self.tell(|trace| {
            trace.slice(&self.device(device), "dma", "MSI", message.started, &args);
        });
    }
}

fn outcome(args: Args, done: bool) -> Args {
    args.text("result", if done { "done" } else { "aborted" })
}

/// The devices behind an SMMU, by StreamID.
#[derive(Clone, Default)]
pub(crate) struct Streams(Arc<Mutex<HashMap<u32, Arc<Track>>>>);

impl Timeline {
    /// Watches an SMMU. The devices behind it are to be told.
    pub(crate) fn watch(self: &Arc<Self>, name: &str, smmu: &platform::Model) -> Streams {
        let streams = Streams::default();
        let watched = Watched {
            timeline: self.clone(),
            track: self.trace.track(name),
            streams: streams.clone(),
            waits_since: Mutex::new(None),
        };
        // It is new: nobody observes it yet.
        let _ = smmu.observe(move |observation: Observation<'_>| {
            watched.timeline.tell(|_| watched.tell(observation));
        });
        streams
    }

    /// Says which device a stream of an SMMU is.
    pub(crate) fn add_stream(&self, streams: &Streams, stream_id: u32, device: &str) {
        let mut streams = streams.0.lock().unwrap_or_else(PoisonError::into_inner);
        streams.insert(stream_id, self.device(device));
    }
}

/// One SMMU.
struct Watched {
    timeline: Arc<Timeline>,
    track: Track,
    streams: Streams,
    /// Since when a `CMD_SYNC` has been at the head of the queue.
    waits_since: Mutex<Option<Instant>>,
}

impl Watched {
    fn tell(&self, observation: Observation<'_>) {
        match observation {
            Observation::Command(command) => self.command(command),
            Observation::Waits(_) => {
                self.waiting(|since| since.get_or_insert_with(Instant::now).to_owned());
            }
            Observation::CommandError(error) => {
                let name = match error {
                    CommandError::None => "CERROR_NONE",
                    CommandError::Ill => "CERROR_ILL",
                    CommandError::Abt => "CERROR_ABT",
                    CommandError::AtcInvSync => "CERROR_ATC_INV_SYNC",
                };
                self.waiting(Option::take);
                self.instant("error", name, &Args::new());
            }
            Observation::Event(event) => self.event(event, event_args(event)),
            Observation::EventLost(event) => {
                self.event(event, event_args(event).text("lost", "the Event queue is full"));
            }
            Observation::PageRequest(request) => {
                let args = Args::new()
                    .hex("StreamID", request.sid.into())
                    .hex("address", request.address)
                    .int("group", request.prg_index.into())
                    .text("last", if request.last { "yes" } else { "no" });
                self.both(request.sid, "page request", &args);
            }
            Observation::GlobalError(gerror) => {
                let words = [gerror.0.into()];
                let names = Gerror::FIELDS.iter().filter(|field| field.value(&words) != 0);
                let args = Args::new().list("errors", names.map(|field| field.name.to_owned()));
                self.instant("error", "GERROR", &args);
            }
            _ => {}
        }
    }

    fn waiting<T>(&self, f: impl FnOnce(&mut Option<Instant>) -> T) -> T {
        f(&mut self.waits_since.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn command(&self, command: &Command) {
        let args = Args::new().text("text", &command.to_string());
        let since = match command {
            Command::Sync { .. } => self.waiting(Option::take),
            _ => None,
        };
        match since {
            Some(since) => {
                let trace = &self.timeline.trace;
                trace.slice(&self.track, "command", command.name(), since, &args);
            }
            None => self.instant("command", command.name(), &args),
        }
    }

    fn event(&self, event: &Event, args: Args) {
        self.both(event.sid, event.kind.name(), &args);
    }

    /// On the SMMU's track and on that of the device which it is about.
    fn both(&self, stream_id: u32, name: &str, args: &Args) {
        self.instant("event", name, args);
        let streams = self.streams.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(device) = streams.get(&stream_id) {
            self.timeline.trace.instant(device, "event", name, args);
        }
    }

    fn instant(&self, category: &str, name: &str, args: &Args) {
        self.timeline.trace.instant(&self.track, category, name, args);
    }
}
