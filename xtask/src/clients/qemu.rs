//! QEMU passes the devices of a machine to a guest whose kernel is Debian's. Its drivers use them, and what they read from
//! disks and write to them is compared with the images here. Once with MSI-X, once with INTx.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use super::packages::Packages;
use super::{disk, end_in_time, initrd};
use crate::Result;

const INIT: &str = include_str!("init.sh");
/// Modules of the guest; names with underscores.
const MODULES: &[&str] = &[
    "crc64",
    "crc64_rocksoft",
    "crc64_rocksoft_generic",
    "crct10dif_common",
    "crct10dif_generic",
    "crc_t10dif",
    "t10_pi",
    "nvme_auth",
    "nvme_keyring",
    "nvme_common",
    "nvme_core",
    "nvme",
    "virtio",
    "virtio_ring",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "virtio_blk",
    "dca",
    "ioatdma",
];
/// The devices, and where they are.
const MACHINE: &str = r#"
grant = ["ipc-lock"]

[[iommu]]
name = "iommu0"
model = "smmuv3"

[[device]]
name = "ioat0"
model = "ioat"
iommu = "iommu0"
address = "0000:fa:00.0"

[[device]]
name = "vda"
model = "virtio-blk"
image = "vda.img"
iommu = "iommu0"
address = "0000:fb:00.0"

[[device]]
name = "nvme0"
model = "nvme"
image = "nvme0n1.img"
iommu = "iommu0"
address = "0000:fc:00.0"
"#;
const ADDRESSES: [&str; 3] = ["0000:fa:00.0", "0000:fb:00.0", "0000:fc:00.0"];
const DISKS: [&str; 2] = ["vda", "nvme0n1"];
/// What the guest writes: where, how much, and the line that it repeats.
const WRITTEN: (usize, usize, &[u8]) = (32 * 65536, 1 << 20, b"written by the guest\n");
/// The ways for interrupts, and what the guest's kernel is told.
const BOOTS: [(&str, &str); 2] = [("MSI-X", ""), ("INTx", "pci=nomsi")];

/// Boots the guests; what is wrong with them.
pub(super) fn run(packages: &Packages, softiommu: &Path, place: &Path) -> Result<Vec<String>> {
    fs::write(place.join("machine.toml"), MACHINE)?;
    let initrd = initrd::write(packages, MODULES, INIT, place)?;
    let mut problems = Vec::new();
    for (interrupts, argument) in BOOTS {
        println!("a guest of QEMU, with {interrupts}");
        let before = images(place)?;
        let mut softiommu = Command::new(softiommu);
        softiommu.args(["run", "--machine", "machine.toml", "--"]);
        let mut qemu = guest(softiommu, packages, &initrd, argument)?;
        qemu.current_dir(place);
        qemu.args(["-object", "iommufd,id=iommufd0"]);
        for address in ADDRESSES {
            qemu.args(["-device", &format!("vfio-pci,host={address},iommufd=iommufd0")]);
        }
        let mut said = Vec::new();
        follow(qemu, |words| {
            println!("  {}", words.join(" "));
            said.push(words.iter().map(|word| (*word).to_owned()).collect());
        })?;
        let found = judge(&said, interrupts, &before, place)?;
        problems.extend(found.into_iter().map(|problem| format!("with {interrupts}: {problem}")));
    }
    Ok(problems)
}

/// Has the command at the end of `under` be QEMU with a guest that has no devices yet.
pub(super) fn guest(
    mut under: Command,
    packages: &Packages,
    initrd: &Path,
    argument: &str,
) -> Result<Command> {
    packages.qemu(&mut under);
    under.args(["-machine", "q35", "-accel", "tcg", "-m", "512"]);
    under.args(["-nodefaults", "-nographic", "-serial", "stdio", "-no-reboot"]);
    under.arg("-kernel").arg(packages.kernel()?).arg("-initrd").arg(initrd);
    under.args(["-append", &format!("console=ttyS0 quiet panic=-1 {argument}")]);
    Ok(under)
}

/// Makes the images anew; their sums.
pub(super) fn images(place: &Path) -> Result<BTreeMap<&'static str, String>> {
    let mut sums = BTreeMap::new();
    for (seed, disk) in (1..).zip(DISKS) {
        sums.insert(disk, disk::make(&place.join(format!("{disk}.img")), seed)?);
    }
    Ok(sums)
}

/// Runs QEMU until it ends, and has `hear` listen to what the guest says to us, line by line.
pub(super) fn follow(mut qemu: Command, mut hear: impl FnMut(&[&str])) -> Result<()> {
    qemu = end_in_time(&qemu);
    let mut child = qemu.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let output = child.stdout.take().ok_or("no output")?;
    for line in BufReader::new(output).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).trim_end().to_owned();
        // The firmware's control characters may stand before it.
        if let Some((_, words)) = line.split_once("@@ ") {
            hear(&words.split_whitespace().collect::<Vec<_>>());
        } else if line.contains("panic") {
            println!("  {line}");
        }
    }
    let status = child.wait()?;
    if !status.success() {
        return Err(format!("QEMU: {status}").into());
    }
    Ok(())
}

/// What is wrong with what a guest said and left behind.
fn judge(
    said: &[Vec<String>],
    interrupts: &str,
    before: &BTreeMap<&'static str, String>,
    place: &Path,
) -> Result<Vec<String>> {
    let mut problems = Vec::new();
    let has = |words: &[&str]| said.iter().any(|line| line == words);
    if !has(&["done"]) {
        problems.push("the guest did not come to its end".to_owned());
    }
    for driver in ["ioatdma", "nvme", "virtio-pci"] {
        if !has(&["bound", driver]) {
            problems.push(format!("{driver} has no device"));
        }
    }
    for (disk, sum_before) in before {
        if !has(&["read", disk, sum_before]) {
            problems.push(format!("{disk}: what the guest read is not what the image had"));
        }
        let path = place.join(format!("{disk}.img"));
        let after = disk::sum(&path)?;
        if !has(&["wrote", disk, &after]) {
            problems.push(format!("{disk}: the image is not what the guest last read"));
        }
        let (offset, len, line) = WRITTEN;
        let image = fs::read(&path)?;
        if !image[offset..offset + len].iter().eq(line.iter().cycle().take(len)) {
            problems.push(format!("{disk}: the image has not what the guest wrote"));
        }
    }
    let wanted = if interrupts == "INTx" { "IO-APIC" } else { "MSI" };
    for name in ["nvme", "virtio"] {
        let kinds = said.iter().find(|line| line.starts_with(&["interrupts".into(), name.into()]));
        if !kinds.is_some_and(|kinds| kinds.iter().any(|kind| kind.starts_with(wanted))) {
            problems.push(format!("{name} did not interrupt by {interrupts}"));
        }
    }
    problems.extend(
        said.iter().filter(|line| line[..1] == ["trouble".to_owned()]).map(|line| line.join(" ")),
    );
    Ok(problems)
}
