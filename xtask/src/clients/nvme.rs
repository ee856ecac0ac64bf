//! QEMU's own driver of NVMe, in user space: by a type1 container, with the controller's registers mapped. `qemu-img` copies
//! whole namespaces, `qemu-io` writes to them; the images here say whether that is what happened.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::packages::Packages;
use super::{disk, end_in_time};
use crate::{Result, command};

const MACHINE: &str = r#"
grant = ["ipc-lock"]

[[iommu]]
name = "iommu0"
model = "smmuv3"

[[device]]
name = "nvme0"
model = "nvme"
iommu = "iommu0"
address = "0000:fc:00.0"
mmap = true
namespaces = [{ image = "first.img" }, { image = "second.img", block-size = 4096 }]
"#;
const ADDRESS: &str = "0000:fc:00.0";
const NAMESPACES: [(u32, &str); 2] = [(1, "first.img"), (2, "second.img")];
/// What is written, and how it is told to `qemu-io`; the byte that the image then has, from where, and how many of it.
const WRITES: [(&str, u8, usize, usize); 3] = [
    ("write -P 0x5a 1M 64k", 0x5a, 1 << 20, 64 << 10),
    ("write -z 2M 1M", 0, 2 << 20, 1 << 20),
    ("aio_write -P 0x77 8M 2M", 0x77, 8 << 20, 2 << 20),
];

/// Copies and writes; what is wrong.
pub(super) fn run(packages: &Packages, softiommu: &Path, place: &Path) -> Result<Vec<String>> {
    println!("QEMU's driver of NVMe in user space");
    fs::write(place.join("nvme.toml"), MACHINE)?;
    let tool = |tool: &str, arguments: &[&str]| {
        let mut command = Command::new(softiommu);
        command.args(["run", "--machine", "nvme.toml", "--"]).current_dir(place);
        packages.run(&mut command, tool, &[]);
        command.args(arguments);
        command::output(&mut end_in_time(&command))
    };
    let mut problems = Vec::new();
    let before: Vec<_> = NAMESPACES
        .into_iter()
        .map(|(id, image)| disk::make(&place.join(image), id.into()))
        .collect::<Result<_>>()?;
    for ((id, image), before) in NAMESPACES.into_iter().zip(&before) {
        let disk = format!("nvme://{ADDRESS}/{id}");
        tool("qemu-img", &["convert", "-f", "raw", "-O", "raw", &disk, "copy.img"])?;
        let copy = disk::sum(&place.join("copy.img"))?;
        println!("  copied namespace {id}: {copy}");
        if copy != *before {
            problems.push(format!("namespace {id}: what qemu-img read is not what {image} had"));
        }
        let mut arguments = vec!["-f", "raw"];
        arguments.extend(WRITES.iter().flat_map(|(words, ..)| ["-c", words]));
        // Read back by the driver as well: it complains of what is not as it should be.
        let read = WRITES.map(|(_, byte, at, len)| format!("read -P {byte} {at} {len}"));
        arguments.extend(["-c", "aio_flush", "-c", "flush", "-c", "discard 4M 1M"]);
        arguments.extend(read.iter().flat_map(|words| ["-c", words]));
        arguments.push(&disk);
        let said = tool("qemu-io", &arguments)?;
        for line in said.lines().filter(|line| line.contains("failed") || line.contains("error")) {
            problems.push(format!("namespace {id}: {line}"));
        }
        let content = fs::read(place.join(image))?;
        for (words, byte, at, len) in WRITES {
            if content[at..at + len].iter().any(|found| *found != byte) {
                problems.push(format!("namespace {id}: {image} has not what `{words}` wrote"));
            }
        }
        println!("  wrote namespace {id}: {} commands", WRITES.len());
    }
    Ok(problems)
}
