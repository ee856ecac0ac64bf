//! `softiommu machine`: what a machine file says there is.

use std::fmt::Write;
use std::io::{self, Write as _};
use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};
use softiommu_machine::{Behind, Device, Disk, Iommu, Machine as Description, Model, PciAddress};

use crate::devices::{self, DevicesError};

/// Show what a machine offers to programs, or print a machine file to start from
///
/// Without a file it is the machine that `softiommu run` has if nobody says otherwise.
#[derive(Args)]
#[command(after_help = "Examples:
  softiommu machine                                  # the default machine, for people
  softiommu machine --print-default > machine.toml   # the same, as a machine file to change
  softiommu machine machine.toml                     # check a machine file, and show what it describes
  softiommu machine --device nvme,image=disk.img     # the default machine with a disk

Exit status: 0, or 1 if there is no such machine.")]
pub(crate) struct Machine {
    /// The machine file
    #[arg(value_name = "FILE.toml", conflicts_with = "iommu")]
    file: Option<PathBuf>,

    /// The model of the default machine's IOMMU: smmuv3, mmu600, mmu700 or mock
    #[arg(long, value_name = "MODEL", default_value_t = Model::Smmuv3)]
    iommu: Model,

    /// Add a device to it, as in `softiommu run`
    #[arg(long, value_name = "MODEL[,KEY=VALUE...]")]
    device: Vec<String>,

    /// Print the default machine as a machine file
    #[arg(long, conflicts_with_all = ["file", "json"])]
    print_default: bool,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Why there is nothing to show.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Machine(#[from] softiommu_machine::Error),
    #[error(transparent)]
    Devices(#[from] DevicesError),
    #[error("cannot write: {0}")]
    Write(#[from] io::Error),
}

impl Machine {
    pub(crate) fn run(&self) -> Result<(), Error> {
        let mut machine = match &self.file {
            Some(path) => Description::from_file(path)?,
            None => Description::of(self.iommu),
        };
        devices::add(&mut machine, &self.device)?;
        machine.check()?;
        let text = if self.print_default {
            machine.to_toml()
        } else if self.json {
            format!("{:#}\n", as_json(&machine))
        } else {
            for_people(&machine)
        };
        match io::stdout().lock().write_all(text.as_bytes()) {
            // Whoever reads has seen enough.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            result => Ok(result?),
        }
    }
}

/// Devices with the nodes that programs open for them.
fn devices_of(
    machine: &Description,
) -> impl Iterator<Item = (&Device, Option<(PciAddress, String)>)> {
    let mut next = 0;
    // The machine has been checked.
    let addresses = machine.addresses().unwrap_or_default();
    machine.devices.iter().zip(addresses).map(move |(device, address)| {
        let place = device.model.map(|_| {
            next += 1;
            (address, format!("/dev/vfio/devices/vfio{}", next - 1))
        });
        (device, place)
    })
}

fn model_of(device: &Device) -> String {
    device.model.map_or_else(|| "DMA only".to_owned(), |model| model.to_string())
}

fn place_of(disk: &Disk) -> String {
    match (&disk.image, disk.memory) {
        (Some(path), _) => path.display().to_string(),
        (None, Some(size)) => format!("{size} of memory"),
        (None, None) => "nothing".to_owned(),
    }
}

fn disk_as_json(disk: &Disk) -> Value {
    json!({
        "image": disk.image,
        "memory": disk.memory.map(|size| size.0),
        "read-only": disk.read_only,
        "block-size": disk.block(),
    })
}

fn for_people(machine: &Description) -> String {
    let mut text = String::new();
    for iommu in &machine.iommus {
        let _ = writeln!(text, "{}: {}{}", iommu.name, iommu.model, features(iommu));
    }
    for (device, place) in devices_of(machine) {
        let behind = match &device.iommu {
            Behind::None => "behind no IOMMU".to_owned(),
            Behind::Iommu(name) => {
                let stream =
                    device.stream_id.map_or_else(String::new, |id| format!(", StreamID {id:#x}"));
                format!("behind {name}{stream}")
            }
        };
        let (at, node) = place.map_or_else(Default::default, |(address, node)| {
            (format!(" at {address}"), format!(": {node}"))
        });
        let _ = writeln!(text, "{}: {}{at}, {behind}{node}", device.name, model_of(device));
        if device.vfs > 0 {
            let _ = writeln!(text, "  TotalVFs {}, NumVFs {}", device.vfs, device.num_vfs);
        }
        for disk in device.disks() {
            let read_only = if disk.read_only { ", read-only" } else { "" };
            let _ = writeln!(
                text,
                "  {}, blocks of {} bytes{read_only}",
                place_of(&disk),
                disk.block()
            );
        }
    }
    text
}

/// What an SMMUv3 can do, in the words of its ID registers.
fn features(iommu: &Iommu) -> String {
    let Some(options) = iommu.model.smmuv3(&iommu.options) else { return String::new() };
    let flags = [
        (options.stage1, "S1P"),
        (options.stage2, "S2P"),
        (options.ats, "ATS"),
        (options.pri, "PRI"),
        (options.ril, "RIL"),
        (options.httu != smmuv3::Httu::None, "HTTU"),
        (options.gran4k, "GRAN4K"),
        (options.gran16k, "GRAN16K"),
        (options.gran64k, "GRAN64K"),
    ];
    let flags: Vec<_> = flags.iter().filter(|(there, _)| *there).map(|(_, name)| *name).collect();
    format!(
        ", {}, OAS {}, SIDSIZE {}, SSIDSIZE {}",
        flags.join(" "),
        options.oas,
        options.sid_bits,
        options.ssid_bits
    )
}

fn as_json(machine: &Description) -> Value {
    let iommus: Vec<_> = machine
        .iommus
        .iter()
        .map(|iommu| json!({ "name": iommu.name, "model": iommu.model.to_string() }))
        .collect();
    let devices: Vec<_> = devices_of(machine)
        .map(|(device, place)| {
            let (address, node) = place.unzip();
            json!({
                "name": device.name,
                "model": device.model.map(|model| model.to_string()),
                "iommu": String::from(device.iommu.clone()),
                "stream-id": device.stream_id,
                "vfs": device.vfs,
                "num-vfs": device.num_vfs,
                "group": device.group,
                "pasid-bits": device.pasid_bits,
                "address": address.map(|address| address.to_string()),
                "node": node,
                "disks": device.disks().iter().map(disk_as_json).collect::<Vec<_>>(),
            })
        })
        .collect();
    json!({ "iommus": iommus, "devices": devices })
}
