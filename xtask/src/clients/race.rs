//! The same guest boots from QEMU's own virtio disk and from ours, in turns: which takes longer, and by how much.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use super::packages::Packages;
use super::{initrd, qemu};
use crate::Result;

const INIT: &str = include_str!("race.sh");
const MODULES: &[&str] = &[
    "virtio",
    "virtio_ring",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "virtio_blk",
];
const MACHINE: &str = r#"
grant = ["ipc-lock"]

[[iommu]]
name = "iommu0"
model = "smmuv3"

[[device]]
name = "vda"
model = "virtio-blk"
image = "vda.img"
iommu = "iommu0"
address = "0000:fb:00.0"
"#;
/// How QEMU gets its disk.
const QEMUS: [&str; 4] =
    ["-drive", "file=vda.img,format=raw,if=none,id=vda", "-device", "virtio-blk-pci,drive=vda"];
const OURS: [&str; 4] =
    ["-object", "iommufd,id=iommufd0", "-device", "vfio-pci,host=0000:fb:00.0,iommufd=iommufd0"];
/// Ours may take this many times as long.
const GOAL: f64 = 1.05;

/// Whose disk it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Disk {
    Qemu,
    Ours,
}

/// Seconds from the start of QEMU.
#[derive(Debug, Clone, Copy)]
struct Times {
    /// Until the disk was there.
    disk: f64,
    /// Until its last byte had been read.
    done: f64,
}

/// The best and the median of these.
fn best_and_median(all: &[Times], which: impl Fn(&Times) -> f64) -> (f64, f64) {
    let mut all: Vec<_> = all.iter().map(which).collect();
    all.sort_by(f64::total_cmp);
    (all[0], all[all.len() / 2])
}

/// Boots each guest `count` times, after one that does not count. True if ours met the goal.
pub(super) fn run(packages: &Packages, softiommu: &Path, place: &Path, count: u32) -> Result<bool> {
    std::fs::write(place.join("race.toml"), MACHINE)?;
    let initrd = initrd::write(packages, MODULES, INIT, place)?;
    let sum = qemu::images(place)?["vda"].clone();
    println!("a guest of QEMU boots {} times from either disk", count + 1);
    let (mut qemus, mut ours) = (Vec::new(), Vec::new());
    for n in 0..=count {
        for (disk, all) in [(Disk::Qemu, &mut qemus), (Disk::Ours, &mut ours)] {
            let times = boot(packages, softiommu, place, &initrd, disk, &sum)?;
            println!("  {disk:?}: {:.2} s to the disk, {:.2} s to its end", times.disk, times.done);
            // The first brings everything into memory.
            if n > 0 {
                all.push(times);
            }
        }
    }
    println!("\nseconds until the guest has          found its disk     read all of it");
    println!("best and median of {count:<14}");
    let row = |name: &str, all: &[Times]| {
        let disk = best_and_median(all, |times| times.disk);
        let done = best_and_median(all, |times| times.done);
        println!("  {name:<32}{:>8.2}{:>8.2}   {:>8.2}{:>8.2}", disk.0, disk.1, done.0, done.1);
        done
    };
    let (theirs, ours) = (row("QEMU's own virtio-blk", &qemus), row("ours, by VFIO", &ours));
    let (best, median) = (ours.0 / theirs.0, ours.1 / theirs.1);
    let verdict = if best <= GOAL { "met" } else { "MISSED" };
    println!(
        "ours takes {best:.3}x of the best, {median:.3}x of the median; goal ≤ {GOAL}x {verdict}"
    );
    Ok(best <= GOAL)
}

fn boot(
    packages: &Packages,
    softiommu: &Path,
    place: &Path,
    initrd: &Path,
    disk: Disk,
    sum: &str,
) -> Result<Times> {
    let (mut under, device) = match disk {
        Disk::Qemu => (Command::new("env"), QEMUS),
        Disk::Ours => (Command::new(softiommu), OURS),
    };
    if disk == Disk::Ours {
        under.args(["run", "--machine", "race.toml", "--"]);
    }
    let mut command = qemu::guest(under, packages, initrd, "")?;
    command.current_dir(place).args(device);
    let started = Instant::now();
    let (mut found, mut done, mut right) = (None, None, false);
    qemu::follow(command, |words| {
        let now = started.elapsed().as_secs_f64();
        match words {
            ["disk"] => found = Some(now),
            ["read", "vda", seen] => right = *seen == sum,
            ["done"] => done = Some(now),
            _ => {}
        }
    })?;
    let (Some(disk), Some(done)) = (found, done) else {
        return Err("the guest did not come to its end".into());
    };
    if !right {
        return Err("what the guest read is not what the image has".into());
    }
    Ok(Times { disk, done })
}
