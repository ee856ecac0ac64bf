//! Where devices are: PCI addresses and StreamIDs, of those that say and of those that do not.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use platform::{NotAnAddress, PciAddress};

use crate::{Behind, Device, Machine};

impl Device {
    /// How many functions it has: itself, and its virtual ones.
    fn functions(&self) -> u32 {
        1 + u32::from(self.vfs)
    }

    /// Its address, if it is at `address`, and those of its virtual functions; `None` if there is no room for them.
    pub(crate) fn all_at(&self, address: PciAddress) -> Option<Vec<PciAddress>> {
        let virtual_functions = (0..self.vfs).map(|index| address.virtual_function(index));
        std::iter::once(Some(address)).chain(virtual_functions).collect()
    }
}

impl Machine {
    /// The PCI address of each device, in their order. Those that do not say are in segment 1, which few hosts have.
    pub fn addresses(&self) -> Result<Vec<PciAddress>, NotAnAddress> {
        let said = |device: &Device| device.address.as_deref().map(str::parse).transpose();
        let said: Vec<Option<PciAddress>> =
            self.devices.iter().map(said).collect::<Result<_, _>>()?;
        let places = || self.devices.iter().zip(&said);
        let of_said = places().filter_map(|(device, address)| device.all_at((*address)?));
        let mut taken: HashSet<_> = of_said.flatten().collect();
        let mut next = (0..=u8::MAX).flat_map(|bus| {
            let at = move |device| PciAddress { segment: 1, bus, device, function: 0 };
            (1..32).map(at)
        });
        let mut free = |device: &Device| {
            let mut places = next.by_ref().filter_map(|address| device.all_at(address));
            let all = places.find(|all| all.iter().all(|address| !taken.contains(address)))?;
            taken.extend(all.iter().copied());
            all.first().copied()
        };
        Ok(places().filter_map(|(device, said)| said.or_else(|| free(device))).collect())
    }

    /// The StreamID of each device, in their order: what it says, or the next free one. Those of its virtual functions
    /// follow it. `None`: it is behind no IOMMU, or has more functions than there are StreamIDs free.
    pub fn stream_ids(&self) -> Vec<Option<u32>> {
        let mut taken = BTreeMap::<String, BTreeSet<u32>>::new();
        for device in &self.devices {
            let all = device.stream_id.map(|id| id..id.saturating_add(device.functions()));
            taken.entry(device.iommu.clone().into()).or_default().extend(all.into_iter().flatten());
        }
        let stream_id = |device: &Device| {
            let Behind::Iommu(name) = &device.iommu else { return None };
            if device.stream_id.is_some() {
                return device.stream_id;
            }
            let options = self.iommu(name).and_then(|iommu| iommu.model.smmuv3(&iommu.options))?;
            let count = device.functions();
            let taken = taken.entry(name.clone()).or_default();
            let mut first = 0;
            while let Some(used) = taken.range(first..first + count).next_back() {
                first = used + 1;
            }
            taken.extend(first..first + count);
            (u64::from(first + count) <= 1 << options.sid_bits).then_some(first)
        };
        self.devices.iter().map(stream_id).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DeviceModel;

    fn machine(devices: &[Device]) -> Machine {
        Machine { devices: devices.to_vec(), ..Machine::default() }
    }

    fn device(name: &str, vfs: u16) -> Device {
        let behind = Behind::Iommu("iommu0".to_owned());
        Device { vfs, ..Device::new(name, Some(DeviceModel::Ioat), behind) }
    }

    #[test]
    fn virtual_functions_take_the_places_behind() {
        let said = Device { address: Some("0001:00:03.0".to_owned()), ..device("said", 1) };
        let said = Device { stream_id: Some(6), ..said };
        let machine = machine(&[device("a", 8), said, device("b", 2), device("c", 247)]);
        machine.check().unwrap();
        let addresses: Vec<_> =
            machine.addresses().unwrap().iter().map(PciAddress::to_string).collect();
        assert_eq!(addresses, ["0001:00:01.0", "0001:00:03.0", "0001:00:04.0", "0001:01:01.0"]);
        // From 0 there are six free, for one with two virtual functions.
        assert_eq!(machine.stream_ids(), [Some(8), Some(6), Some(0), Some(17)]);
    }

    #[test]
    fn virtual_functions_that_there_cannot_be_are_refused() {
        let refused = |devices: &[Device], named: &[&str]| {
            let error = machine(devices).check().unwrap_err().to_string();
            assert!(named.iter().all(|word| error.contains(word)), "{error}");
        };
        let memory = Some("1MiB".parse().unwrap());
        for model in [DeviceModel::Nvme, DeviceModel::VirtioBlk] {
            let disk = Device { model: Some(model), memory, ..device("a", 1) };
            refused(&[disk], &["`a`", &model.to_string(), "leave out vfs"]);
        }
        machine(&[Device { model: None, ..device("a", 1) }]).check().unwrap();
        refused(&[device("a", 248)], &["vfs = 248", "1 to 247"]);
        refused(&[Device { iommu: Behind::None, ..device("a", 1) }], &["leave out vfs"]);
        refused(&[Device { num_vfs: 3, ..device("a", 2) }], &["num-vfs = 3", "at most 2"]);
        let at = |address: &str| Device { address: Some(address.to_owned()), ..device("a", 9) };
        machine(&[at("0001:00:1e.6")]).check().unwrap();
        refused(&[at("0001:00:1e.7")], &["vfs = 9", "0001:00:1e.7", "8"]);
        let b = Device { address: Some("0001:00:02.1".to_owned()), ..device("b", 0) };
        refused(&[at("0001:00:01.0"), b], &["0001:00:02.1"]);
        let stream = |name, stream_id| Device { stream_id: Some(stream_id), ..device(name, 3) };
        refused(&[stream("a", 8), stream("b", 11)], &["`a` and `b`", "stream-id 11"]);
        refused(&[stream("a", 0xfffd)], &["stream-id 65533", "0 to 65532"]);
        machine(&[stream("a", 0xfffc)]).check().unwrap();
    }

    #[test]
    fn there_are_as_many_streams_as_the_iommu_has() {
        let mut devices: Vec<_> = (0..264).map(|n| device(&n.to_string(), 247)).collect();
        for (bus, device) in devices.iter_mut().enumerate() {
            let (segment, bus) = (2 + bus / 256, bus % 256);
            device.address = Some(format!("{segment:04x}:{bus:02x}:01.0"));
        }
        machine(&devices).check().unwrap();
        devices.push(Device { address: Some("0004:00:01.0".to_owned()), ..device("last", 247) });
        let error = machine(&devices).check().unwrap_err().to_string();
        assert!(error.contains("`last`") && error.contains("StreamIDs"), "{error}");
    }
}
