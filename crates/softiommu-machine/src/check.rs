//! What a machine file must say beyond its syntax.

use std::collections::HashMap;
use std::hash::Hash;

use crate::{Behind, Device, Error, Iommu, MSI_WINDOW_SIZE, Machine, Model, PciAddress};

/// The most virtual functions of a device: they are on its bus, on which nothing is at device 0.
const MAX_VFS: u16 = 247;
/// Bits of physical address that the machine's memory needs.
const PHYS_BITS: u8 = 48;

impl Machine {
    /// Whether there can be such a machine.
    pub fn check(&self) -> Result<(), Error> {
        self.find_problem().map_err(|problem| Error::Unsupported { path: None, problem })
    }

    /// Whether there can be such a machine; if not, what to write instead.
    pub(crate) fn find_problem(&self) -> Result<(), String> {
        if self.iommus.is_empty() {
            return Err("there is no IOMMU: add an [[iommu]] section with a model".to_owned());
        }
        if let Some(name) = twice(self.iommus.iter().map(|iommu| &iommu.name)) {
            return Err(format!(
                "two IOMMUs are called `{name}`: give each [[iommu]] section its own name"
            ));
        }
        if let Some(name) = twice(self.devices.iter().map(|device| &device.name)) {
            return Err(format!(
                "two devices are called `{name}`: give each [[device]] section its own name"
            ));
        }
        let mocks = self.iommus.iter().filter(|iommu| iommu.model == Model::Mock).count();
        if mocks > 0 && self.iommus.len() > 1 {
            return Err("the mock IOMMU works alone: leave one [[iommu]] section".to_owned());
        }
        if mocks > 0 && (self.explain_faults || self.check_stale.is_some()) {
            return Err("the mock IOMMU has neither explain-faults nor check-stale: \
                        leave them out, or choose another model"
                .to_owned());
        }
        if let Some(path) = self.trace.as_deref().filter(|path| path.to_str().is_none()) {
            return Err(format!(
                "the name of the trace file {} is not UTF-8: choose another one",
                path.display()
            ));
        }
        if let Some(window) = self.msi_window
            && !(window.is_multiple_of(MSI_WINDOW_SIZE) && window < 1 << PHYS_BITS)
        {
            return Err(format!(
                "msi-window = {window:#x} is not possible: write a multiple of 0x100000 below 1 << {PHYS_BITS}"
            ));
        }
        self.iommus.iter().try_for_each(check_iommu)?;
        self.devices.iter().try_for_each(|device| self.check_device(device))?;
        let mut groups = HashMap::new();
        for device in &self.devices {
            let Some(group) = &device.group else { continue };
            let (other, behind) = groups.entry(group).or_insert((&device.name, &device.iommu));
            if **behind != device.iommu {
                return Err(format!(
                    "`{other}` and `{}` are in the group `{group}`, but behind different IOMMUs",
                    device.name
                ));
            }
        }
        let addresses = self.addresses().map_err(|error| format!("a device's address: {error}"))?;
        if addresses.len() < self.devices.len() {
            return Err(
                "there are more devices than segment 1 has places for: give some an address"
                    .to_owned(),
            );
        }
        let mut functions = Vec::new();
        for (device, address) in self.devices.iter().zip(addresses) {
            functions.extend(device.all_at(address).ok_or_else(|| no_room(device, address))?);
        }
        if let Some(address) = twice(functions.iter()) {
            return Err(format!(
                "two devices have the address {address}: give each [[device]] section its own"
            ));
        }
        let mut streams = HashMap::new();
        for (device, first) in self.devices.iter().zip(self.stream_ids()) {
            let Behind::Iommu(iommu) = &device.iommu else { continue };
            let Some(first) = first else {
                return Err(format!(
                    "`{iommu}` has not enough StreamIDs for the device `{}`: leave out devices, or some of their vfs",
                    device.name
                ));
            };
            for id in first..=first + u32::from(device.vfs) {
                if let Some(other) = streams.insert((iommu, id), &device.name) {
                    return Err(format!(
                        "`{other}` and `{}` both have stream-id {id}",
                        device.name
                    ));
                }
            }
        }
        Ok(())
    }

    fn check_device(&self, device: &Device) -> Result<(), String> {
        let name = &device.name;
        if let Some(region) = device.reserved.iter().find(|region| region.first > region.last) {
            return Err(format!(
                "the device `{name}` has reserved IOVAs from {:#x} to {:#x}: first comes before last",
                region.first, region.last
            ));
        }
        device.check_disks()?;
        check_vfs(device)?;
        let Behind::Iommu(behind) = &device.iommu else {
            let key = match device {
                Device { stream_id: Some(_), .. } => "stream-id",
                Device { vfs: 1.., .. } => "vfs",
                Device { group: Some(_), .. } => "group",
                Device { pasid_bits: 1.., .. } => "pasid-bits",
                Device { reserved, .. } if !reserved.is_empty() => "reserved",
                Device { ats: true, .. } => "ats",
                Device { pri: true, .. } => "pri",
                _ => return Ok(()),
            };
            return Err(format!("the device `{name}` is behind no IOMMU: leave out {key}"));
        };
        let Some(iommu) = self.iommu(behind) else {
            let names: Vec<_> =
                self.iommus.iter().map(|iommu| format!("`{}`", iommu.name)).collect();
            return Err(format!(
                "the device `{name}` is behind `{behind}`, which there is not: write {} or \"none\"",
                names.join(", ")
            ));
        };
        let Some(options) = iommu.model.smmuv3(&iommu.options) else {
            return Err(format!(
                "the device `{name}` is behind `{behind}`, the mock IOMMU, whose users make devices of their own: write \"none\""
            ));
        };
        // The last are its virtual functions'.
        let most = (1_u64 << options.sid_bits) - 1 - u64::from(device.vfs);
        if let Some(id) = device.stream_id.filter(|id| u64::from(*id) > most) {
            return Err(format!(
                "the device `{name}` has stream-id {id}: `{behind}` has 0 to {most}"
            ));
        }
        if device.pasid_bits > options.ssid_bits {
            return Err(format!(
                "the device `{name}` has pasid-bits {}: `{behind}` has at most {}",
                device.pasid_bits, options.ssid_bits
            ));
        }
        if device.pri && !device.ats {
            return Err(format!(
                "the device `{name}` has pri without ats: add ats = true, or leave out pri"
            ));
        }
        let lacks = match device {
            Device { ats: true, .. } if !options.ats => Some(("ats", "ATS")),
            Device { pri: true, .. } if !options.pri => Some(("pri", "PRI")),
            _ => None,
        };
        if let Some((key, feature)) = lacks {
            return Err(format!(
                "the device `{name}` has {key}, but `{behind}` does not have {feature}: leave out {key}"
            ));
        }
        Ok(())
    }
}

fn check_vfs(device: &Device) -> Result<(), String> {
    let Device { name, model, vfs, num_vfs, .. } = device;
    if num_vfs > vfs {
        return Err(format!(
            "the device `{name}` has num-vfs = {num_vfs}: write at most {vfs}, its vfs"
        ));
    }
    match model {
        Some(model) if *vfs > 0 && !model.has_virtual_functions() => Err(format!(
            "the device `{name}` is {model}, which has no virtual functions: leave out vfs"
        )),
        _ if *vfs > MAX_VFS => {
            Err(format!("the device `{name}` has vfs = {vfs}: write 1 to {MAX_VFS}"))
        }
        _ => Ok(()),
    }
}

fn no_room(device: &Device, address: PciAddress) -> String {
    let Device { name, vfs, .. } = device;
    let room = u8::MAX - address.devfn();
    format!(
        "the device `{name}` has vfs = {vfs}: behind {address} its bus has room for {room}; write fewer, or another address"
    )
}

fn check_iommu(iommu: &Iommu) -> Result<(), String> {
    let name = &iommu.name;
    let Some(options) = iommu.model.smmuv3(&iommu.options) else {
        return if iommu.options.is_empty() {
            Ok(())
        } else {
            Err(format!("`{name}` is the mock IOMMU, which has no options: leave them out"))
        };
    };
    if options.oas != PHYS_BITS {
        return Err(format!(
            "`{name}` has oas {}: addresses of this machine's memory have {PHYS_BITS} bits",
            options.oas
        ));
    }
    if !options.gran4k {
        return Err(format!("`{name}` has no 4 KiB granule: pages of this machine have 4 KiB"));
    }
    options.check().map_err(|error| format!("there is no SMMUv3 like `{name}`: {error}"))
}

/// A name that occurs more than once.
fn twice<'a, T: Hash + Eq>(names: impl Iterator<Item = &'a T>) -> Option<&'a T> {
    let mut seen = std::collections::HashSet::new();
    names.into_iter().find(|name| !seen.insert(*name))
}
