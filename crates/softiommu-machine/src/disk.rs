//! Disks of devices.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Device, DeviceModel};

/// A disk: a file, or memory.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Disk {
    /// Its image file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<PathBuf>,
    /// Its size, if it is in memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Size>,
    /// It cannot be written.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
    /// Bytes of a block, by default 512.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_size: Option<u32>,
}

impl Disk {
    /// Bytes of a block.
    pub fn block(&self) -> u32 {
        self.block_size.unwrap_or(512)
    }

    fn check(&self, of: &str) -> Result<(), String> {
        if self.image.is_some() == self.memory.is_some() {
            return Err(format!(
                "{of} needs one of image = \"FILE\" and memory = \"SIZE\": write one of them"
            ));
        }
        let block = self.block();
        if !block.is_power_of_two() || !(512..=4096).contains(&block) {
            return Err(format!("{of} has block-size {block}: write 512, 1024, 2048 or 4096"));
        }
        match self.memory {
            Some(size) if size.0 == 0 || !size.0.is_multiple_of(block.into()) => Err(format!(
                "{of} has memory = \"{size}\": write a multiple of its block-size, {block}"
            )),
            _ => Ok(()),
        }
    }
}

impl Device {
    /// It has the disks that its model needs, and no others.
    pub(crate) fn check_disks(&self) -> Result<(), String> {
        let name = &self.name;
        let Some(model) = self.model.filter(|model| model.has_disks()) else {
            let key = match self {
                Self { image: Some(_), .. } => "image",
                Self { memory: Some(_), .. } => "memory",
                Self { read_only: true, .. } => "read-only",
                Self { block_size: Some(_), .. } => "block-size",
                Self { queues: Some(_), .. } => "queues",
                Self { namespaces, .. } if !namespaces.is_empty() => "namespaces",
                _ => return Ok(()),
            };
            return Err(format!("the device `{name}` is no disk: leave out {key}"));
        };
        if self.queues.is_some() && model != DeviceModel::VirtioBlk {
            return Err(format!(
                "the device `{name}` is {model}, whose driver says how many queues there are: leave out queues"
            ));
        }
        if let Some(queues) = self.queues.filter(|queues| !(1..=64).contains(queues)) {
            return Err(format!("the device `{name}` has {queues} queues: write 1 to 64"));
        }
        if self.namespaces.is_empty() {
            let Self { image, memory, read_only, block_size, .. } = self.clone();
            let own = Disk { image, memory, read_only, block_size };
            return own.check(&format!("the device `{name}`"));
        }
        if model != DeviceModel::Nvme {
            return Err(format!(
                "the device `{name}` is {model}, which is one disk: write image or memory instead of namespaces"
            ));
        }
        let key = match self {
            Self { image: Some(_), .. } => Some("image"),
            Self { memory: Some(_), .. } => Some("memory"),
            Self { read_only: true, .. } => Some("read-only"),
            Self { block_size: Some(_), .. } => Some("block-size"),
            _ => None,
        };
        if let Some(key) = key {
            return Err(format!("the device `{name}` has namespaces: write {key} in each of them"));
        }
        let mut numbered = (1..).zip(&self.namespaces);
        numbered.try_for_each(|(n, disk)| disk.check(&format!("namespace {n} of `{name}`")))
    }
}

/// A number of bytes, such as `64MiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Size(pub u64);

/// Units, the largest first.
const UNITS: [(&str, u32); 4] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = |shift: &u32| self.0 != 0 && self.0.is_multiple_of(1 << shift);
        match UNITS.iter().find(|(_, shift)| whole(shift)) {
            Some((unit, shift)) => write!(f, "{}{unit}", self.0 >> shift),
            None => write!(f, "{}", self.0),
        }
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let unit = UNITS.iter().find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, shift)));
        let (number, shift) = unit.unwrap_or((text, &0));
        let number = number.parse::<u64>().ok();
        let size = number.and_then(|number| number.checked_mul(1 << shift));
        // What a file can have.
        let size = size.filter(|size| i64::try_from(*size).is_ok());
        size.map(Self).ok_or_else(|| {
            format!("`{text}` is no size: write a number of bytes, KiB, MiB, GiB or TiB, such as `64MiB`")
        })
    }
}

impl TryFrom<String> for Size {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Size> for String {
    fn from(size: Size) -> Self {
        size.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Machine;

    #[test]
    fn sizes_are_read_as_they_are_written() {
        for (text, bytes) in [("512", 512), ("64MiB", 64 << 20), ("3TiB", 3 << 40), ("0", 0)] {
            let size: Size = text.parse().unwrap();
            assert_eq!((size.0, size.to_string().as_str()), (bytes, text));
        }
        for text in ["", "MiB", "1.5GiB", "64MB", "-1", "9999999TiB", "18446744073709551615"] {
            assert!(text.parse::<Size>().unwrap_err().contains("such as `64MiB`"), "{text}");
        }
    }

    fn parse(keys: &str) -> Result<Machine, String> {
        let text = "[[iommu]]\nname = \"s\"\nmodel = \"smmuv3\"\n[[device]]\nname = \"d\"\niommu = \"s\"\n";
        Machine::from_toml(&format!("{text}{keys}")).map_err(|error| error.to_string())
    }

    #[test]
    fn disks_survive_their_text() {
        for (keys, disks) in [
            ("model = \"nvme\"\nimage = \"/a\"\nread-only = true\nblock-size = 4096\n", 1),
            ("model = \"nvme\"\nnamespaces = [{ image = \"a\" }, { memory = \"1GiB\" }]\n", 2),
            ("model = \"virtio-blk\"\nmemory = \"64MiB\"\nqueues = 4\n", 1),
        ] {
            let machine = parse(keys).unwrap();
            assert_eq!(machine.devices[0].disks().len(), disks);
            assert_eq!(Machine::from_toml(&machine.to_toml()).unwrap(), machine);
        }
    }

    #[test]
    fn what_is_no_disk_is_refused_with_what_to_write() {
        for (keys, named) in [
            ("model = \"nvme\"\n", "one of image = \"FILE\" and memory = \"SIZE\""),
            ("model = \"nvme\"\nimage = \"a\"\nmemory = \"1MiB\"\n", "write one of them"),
            ("model = \"ioat\"\nimage = \"a\"\n", "`d` is no disk: leave out image"),
            (
                "model = \"nvme\"\nimage = \"a\"\nblock-size = 500\n",
                "write 512, 1024, 2048 or 4096",
            ),
            ("model = \"nvme\"\nmemory = \"1000\"\n", "multiple of its block-size, 512"),
            ("model = \"nvme\"\nmemory = \"1MiB\"\nqueues = 2\n", "leave out queues"),
            ("model = \"virtio-blk\"\nmemory = \"1MiB\"\nqueues = 65\n", "write 1 to 64"),
            ("model = \"virtio-blk\"\nnamespaces = [{ image = \"a\" }]\n", "which is one disk"),
            ("model = \"nvme\"\nnamespaces = [{ image = \"a\" }, {}]\n", "namespace 2 of `d`"),
            (
                "model = \"nvme\"\nread-only = true\nnamespaces = [{ image = \"a\" }]\n",
                "write read-only in each of them",
            ),
            ("model = \"nvme\"\nmemory = \"64MB\"\n", "`64MB` is no size"),
        ] {
            let error = parse(keys).unwrap_err();
            assert!(error.contains(named), "{keys}: {error}");
        }
    }

    #[test]
    fn images_are_where_they_are_from_the_machine_file() {
        let dir = std::env::temp_dir();
        let path = dir.join(format!("softiommu-machine-{}.toml", std::process::id()));
        let keys = "model = \"nvme\"\nnamespaces = [{ image = \"a\" }, { image = \"/b\" }]\n";
        std::fs::write(&path, parse(keys).unwrap().to_toml()).unwrap();
        let machine = Machine::from_file(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let images = machine.devices[0].disks().into_iter().map(|disk| disk.image.unwrap());
        assert_eq!(images.collect::<Vec<_>>(), [dir.join("a"), PathBuf::from("/b")]);
    }
}
