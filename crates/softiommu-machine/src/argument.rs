//! Devices in one word, as on a command line: `nvme,image=disk.img,ro`.

use crate::{Behind, Device, DeviceModel, Machine, Model};

const KEYS: &str = "image=FILE, memory=SIZE, ro, block-size=BYTES, queues=N, mmap, vfs=N, num-vfs=N, name=NAME, address=ADDRESS";

impl Machine {
    /// Adds a device behind the first IOMMU: a model, and after commas what is different from a device of this model
    /// that does not say. If it is refused the error says what to write.
    ///
    /// ```
    /// let mut machine = softiommu_machine::Machine::default();
    /// machine.add_device("nvme,memory=64MiB,block-size=4096")?;
    /// assert_eq!(machine.devices[1].name, "nvme0");
    /// assert!(machine.add_device("nvme,ramdisk").unwrap_err().contains("memory=SIZE"));
    /// # Ok::<(), String>(())
    /// ```
    pub fn add_device(&mut self, text: &str) -> Result<(), String> {
        let refused = |problem: String| format!("the device `{text}`: {problem}");
        let device = self.device_of(text).map_err(refused)?;
        self.devices.push(device);
        Ok(())
    }

    fn device_of(&self, text: &str) -> Result<Device, String> {
        let (model, rest) = text.split_once(',').unwrap_or((text, ""));
        let model: DeviceModel = model.parse()?;
        let Some(iommu) = self.iommus.first().filter(|iommu| iommu.model != Model::Mock) else {
            return Err("the mock IOMMU has no devices: choose another model".to_owned());
        };
        let names = (0..).map(|n| format!("{model}{n}"));
        let mut free = names.filter(|name| self.devices.iter().all(|device| device.name != *name));
        let name = free.next().unwrap_or_default();
        let mut device = Device::new(name, Some(model), Behind::Iommu(iommu.name.clone()));
        for word in rest.split(',').filter(|word| !word.is_empty()) {
            let (key, value) = word.split_once('=').unwrap_or((word, ""));
            let number = || value.parse().map_err(|_| format!("`{word}`: write a number"));
            let count = || u16::try_from(number()?).map_err(|_| format!("`{word}` is too many"));
            match key {
                "image" if !value.is_empty() => device.image = Some(value.into()),
                "memory" => device.memory = Some(value.parse()?),
                "ro" | "read-only" if word == key => device.read_only = true,
                "mmap" if word == key => device.mmap = true,
                "block-size" => device.block_size = Some(number()?),
                "queues" => device.queues = Some(count()?),
                "vfs" => device.vfs = count()?,
                "num-vfs" => device.num_vfs = count()?,
                "name" if !value.is_empty() => value.clone_into(&mut device.name),
                "address" => device.address = Some(value.to_owned()),
                _ => return Err(format!("`{word}` is nothing that a device has: write {KEYS}")),
            }
        }
        Ok(device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_added_with_names_of_their_own() {
        let mut machine = Machine::default();
        for text in [
            "ioat,mmap",
            "nvme,image=/a,ro",
            "nvme,memory=1MiB",
            "virtio-blk,memory=1MiB,queues=4,name=x",
            "ioat,vfs=4,num-vfs=2",
        ] {
            machine.add_device(text).unwrap();
        }
        machine.check().unwrap();
        let names: Vec<_> = machine.devices.iter().map(|device| device.name.as_str()).collect();
        assert_eq!(names, ["ioat0", "ioat1", "nvme0", "nvme1", "x", "ioat2"]);
        assert!(machine.devices[1].mmap && !machine.devices[2].mmap);
        assert_eq!((machine.devices[5].vfs, machine.devices[5].num_vfs), (4, 2));
        assert!(machine.devices[2].read_only && machine.devices[4].queues == Some(4));
    }

    #[test]
    fn what_is_no_device_is_refused_with_what_to_write() {
        let mut machine = Machine::default();
        for (text, named) in [
            ("nvmee,image=a", "`nvme`, `virtio-blk`"),
            ("nvme,file=a", "write image=FILE"),
            ("nvme,image=", "write image=FILE"),
            ("nvme,ro=no", "ro, block-size"),
            ("nvme,memory=1MB", "such as `64MiB`"),
            ("virtio-blk,queues=many", "write a number"),
            ("virtio-blk,queues=65537", "too many"),
        ] {
            let error = machine.add_device(text).unwrap_err();
            assert!(error.contains(&format!("`{text}`")) && error.contains(named), "{error}");
        }
        let error = Machine::of(Model::Mock).add_device("ioat").unwrap_err();
        assert!(error.contains("choose another model"), "{error}");
    }
}
