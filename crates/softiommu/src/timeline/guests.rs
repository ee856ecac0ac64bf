//! What guests do, on the tracks of their vIOMMUs.

use std::sync::Arc;

use iommu::Target;
use iommufd::{Attachment, Id, Invalidation, Observer};
use smmuv3::wire::{Command, Event};
use trace::{Args, Track};
use uapi::iommufd as u;

use super::{Era, Timeline, calls, event_args};

const ARM_SMMUV3_INVALIDATE: u32 =
    u::iommu_hwpt_invalidate_data_type_IOMMU_VIOMMU_INVALIDATE_DATA_ARM_SMMUV3;
const ARM_SMMUV3_EVENTS: u32 = u::iommu_veventq_type_IOMMU_VEVENTQ_TYPE_ARM_SMMUV3;

impl Era {
    fn viommu(&self, context: u64, id: Id) -> Arc<Track> {
        let name = || format!("vIOMMU {id} (iommufd {context})");
        self.viommus.get(&(context, id), || self.trace.track(&name()))
    }

    fn nested(&self, context: u64, id: Id) -> Arc<Track> {
        let name = || format!("nested HWPT {id} (iommufd {context})");
        self.viommus.get(&(context, id), || self.trace.track(&name()))
    }
}

/// Little-endian words.
fn words<const N: usize>(bytes: &[u8]) -> Option<[u64; N]> {
    let mut words = [0; N];
    for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(8)) {
        *word = u64::from_le_bytes(bytes.try_into().ok()?);
    }
    (bytes.len() >= 8 * N).then_some(words)
}

/// What an entry says; its words if it is none that there is.
fn command(entry: &[u8]) -> String {
    match words::<2>(entry) {
        Some(raw) => Command::decode(&raw).map_or_else(
            || format!("{:#018x} {:#018x}", raw[0], raw[1]),
            |command| command.to_string(),
        ),
        None => "too short".to_owned(),
    }
}

impl Observer for Timeline {
    fn invalidated(&self, invalidation: &Invalidation<'_>) {
        let Invalidation { context, target, data_type, entry_num, done, .. } = *invalidation;
        let mut args = Args::new()
            .int("entry_num", entry_num.into())
            .int("out_entry_num", done.into())
            .int("data_type", data_type.into());
        if invalidation.is_viommu && data_type == ARM_SMMUV3_INVALIDATE {
            let entries = invalidation.entries.chunks(invalidation.entry_len.max(1) as usize);
            args = args.list("commands", entries.map(command));
        }
        if let Err(errno) = invalidation.result {
            args = calls::refused(args, errno);
        }
        self.tell(|era| {
            let track = if invalidation.is_viommu {
                era.viommu(context, target)
            } else {
                era.nested(context, target)
            };
            era.trace.slice(&track, "viommu", "HWPT_INVALIDATE", invalidation.started, &args);
        });
    }

    fn attached(&self, attachment: &Attachment<'_>) {
        let Attachment { context, device, target, hwpt, viommu, .. } = *attachment;
        let mut args = Args::new().text("device", device).int("iommufd", context as i64);
        if let Target::Pasid(pasid) = target {
            args = args.hex("pasid", pasid.into());
        }
        let name = if hwpt.is_some() { "attached" } else { "detached" };
        args = hwpt.into_iter().fold(args, |args, hwpt| args.int("hwpt_id", hwpt.into()));
        args = viommu.into_iter().fold(args, |args, viommu| args.int("viommu_id", viommu.into()));
        self.tell(|era| {
            era.trace.instant(&era.device(device), "device", name, &args);
            if let Some(viommu) = viommu {
                era.trace.instant(&era.viommu(context, viommu), "viommu", name, &args);
            }
        });
    }

    fn vdevice(&self, context: u64, viommu: Id, device: &str, virt_id: u64) {
        let args = Args::new().text("device", device).hex("virt_id", virt_id);
        self.tell(|era| {
            era.trace.instant(&era.viommu(context, viommu), "viommu", "vDEVICE", &args);
        });
    }

    fn vevent(&self, context: u64, viommu: Id, event_type: u32, data: &[u8], lost: bool) {
        let event = words(data).filter(|_| event_type == ARM_SMMUV3_EVENTS);
        let event = event.and_then(|raw| Event::decode(&raw));
        let (name, mut args) = match &event {
            Some(event) => (event.kind.name(), event_args(event)),
            None => ("event", Args::new().int("type", event_type.into())),
        };
        if lost {
            args = args.text("lost", "its queue is full");
        }
        self.tell(|era| era.trace.instant(&era.viommu(context, viommu), "viommu", name, &args));
    }
}
