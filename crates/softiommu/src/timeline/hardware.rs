//! What hardware does: SMMUs and devices, on tracks of their own.

use std::collections::HashMap;
use std::sync::PoisonError;
use std::time::Instant;

use platform::{Dma, Message};
use smmuv3::Observation;
use smmuv3::wire::register::{CommandError, Gerror};
use smmuv3::wire::{Command, Event};
use trace::Args;

use super::{Era, Timeline, event_args};

impl Timeline {
    /// A device has finished an access.
    pub(crate) fn dma(&self, device: &str, dma: &Dma) {
        let mut args =
            Args::new().hex("address", dma.access.address).hex("length", dma.length as u64);
        if let Some(pasid) = dma.access.pasid {
            args = args.hex("pasid", pasid.into());
        }
        let args = outcome(args, dma.result.is_ok());
        let name = if dma.write { "DMA write" } else { "DMA read" };
        self.tell(|era| era.trace.slice(&era.device(device), "dma", name, dma.started, &args));
    }

    /// A device has sent a message.
    pub(crate) fn message(&self, device: &str, message: &Message) {
        let args = Args::new().hex("address", message.address).hex("data", message.data.into());
        let args = outcome(args, message.result.is_ok());
        self.tell(|era| {
            era.trace.slice(&era.device(device), "dma", "MSI", message.started, &args);
        });
    }
}

fn outcome(args: Args, done: bool) -> Args {
    args.text("result", if done { "done" } else { "aborted" })
}

impl Timeline {
    /// An SMMU did something. The devices behind it are to be told.
    pub(crate) fn smmu(&self, name: &str, observation: Observation<'_>) {
        self.tell(|era| Smmu { timeline: self, era, name }.tell(observation));
    }

    /// Says which device a stream of an SMMU is.
    pub(crate) fn add_stream(&self, smmu: &str, stream_id: u32, device: &str) {
        let mut streams = self.streams.write().unwrap_or_else(PoisonError::into_inner);
        streams.insert((smmu.to_owned(), stream_id), device.to_owned());
    }

    fn device_of(&self, smmu: &str, stream_id: u32) -> Option<String> {
        let streams = self.streams.read().unwrap_or_else(PoisonError::into_inner);
        streams.get(&(smmu.to_owned(), stream_id)).cloned()
    }
}

/// One SMMU, as something happens.
struct Smmu<'a> {
    timeline: &'a Timeline,
    era: &'a Era,
    name: &'a str,
}

impl Smmu<'_> {
    fn tell(&self, observation: Observation<'_>) {
        match observation {
            Observation::Command(command) => self.command(command),
            Observation::Waits(_) => {
                self.syncs(|syncs| {
                    syncs.entry(self.name.to_owned()).or_insert_with(Instant::now);
                });
            }
            Observation::CommandError(error) => {
                let name = match error {
                    CommandError::None => "CERROR_NONE",
                    CommandError::Ill => "CERROR_ILL",
                    CommandError::Abt => "CERROR_ABT",
                    CommandError::AtcInvSync => "CERROR_ATC_INV_SYNC",
                };
                self.syncs(|syncs| syncs.remove(self.name));
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

    fn syncs<T>(&self, f: impl FnOnce(&mut HashMap<String, Instant>) -> T) -> T {
        f(&mut self.era.syncs.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn command(&self, command: &Command) {
        let args = Args::new().text("text", &command.to_string());
        let since = match command {
            Command::Sync { .. } => self.syncs(|syncs| syncs.remove(self.name)),
            _ => None,
        };
        match since {
            Some(since) => {
                let track = self.era.smmu(self.name);
                self.era.trace.slice(&track, "command", command.name(), since, &args);
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
        if let Some(device) = self.timeline.device_of(self.name, stream_id) {
            self.era.trace.instant(&self.era.device(&device), "event", name, args);
        }
    }

    fn instant(&self, category: &str, name: &str, args: &Args) {
        self.era.trace.instant(&self.era.smmu(self.name), category, name, args);
    }
}
