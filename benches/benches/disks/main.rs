//! Disks: what an IOMMU costs them, and what the device costs beside the copies that must be.

mod client;
mod nvme;
mod virtio_blk;

use std::cell::RefCell;
use std::hint::black_box;

use benches::{Goal, Race, Random, Report};
use devices::Image;

use crate::client::Client;
use crate::nvme::Nvme;
use crate::virtio_blk::VirtioBlk;

const MACHINE: &str = r#"
grant = ["sys-rawio", "ipc-lock"]
[[iommu]]
name = "smmu"
model = "smmuv3"
[[device]]
name = "nvme"
model = "nvme"
iommu = "smmu"
memory = "64MiB"
[[device]]
name = "nvme-direct"
model = "nvme"
iommu = "none"
memory = "64MiB"
[[device]]
name = "virtio"
model = "virtio-blk"
iommu = "smmu"
memory = "64MiB"
[[device]]
name = "virtio-direct"
model = "virtio-blk"
iommu = "none"
memory = "64MiB"
"#;

const DISK: u64 = 64 << 20;
const MIB: u64 = 1 << 20;
const COUNT: u64 = 4096;

/// Where on a disk.
type Places<'a> = dyn Iterator<Item = u64> + 'a;

/// Moves bytes of a disk: to it or from it, where, how many each, and how many places at a time.
type Run<'a> = dyn FnMut(bool, &mut Places<'_>, u64, usize) + 'a;

/// Every byte of the disk is there.
fn fill(run: &mut Run<'_>) {
    run(true, &mut (0..DISK).step_by(MIB as usize), MIB, 1);
}

fn random_reads(run: &mut Run<'_>, depth: usize) {
    let mut random = Random::new(5);
    let mut places = (0..COUNT).map(|_| random.below(DISK >> 12) << 12);
    run(false, &mut places, 4096, depth);
}

fn sequential_reads(run: &mut Run<'_>) {
    run(false, &mut (0..DISK).step_by(MIB as usize), MIB, 4);
}

fn race(report: &mut Report, name: &str, through: &mut Run<'_>, direct: &mut Run<'_>) {
    let (through, direct) = (RefCell::new(through), RefCell::new(direct));
    fill(&mut *through.borrow_mut());
    fill(&mut *direct.borrow_mut());
    for depth in [1, 32] {
        let title = format!("{name}: random reads of 4 KiB, {depth} at a time");
        let mut race = Race::new(title, COUNT);
        race.enter("without an IOMMU", || random_reads(&mut *direct.borrow_mut(), depth));
        race.enter("through the IOMMU", || random_reads(&mut *through.borrow_mut(), depth));
        race.goal("through the IOMMU", Goal::Within("without an IOMMU", 1.43));
        report.run(race);
    }
    let image = Image::memory(DISK).expect("memory");
    let mut from = vec![1; MIB as usize];
    for at in (0..DISK).step_by(MIB as usize) {
        image.write(at, &from).expect("memory");
    }
    // As much memory as the device writes to.
    let mut to = vec![1; 32 * MIB as usize];
    let mut race = Race::new(format!("{name}: reads of 1 MiB in order, 4 at a time"), DISK / MIB);
    race.enter("image read and memcpy", || {
        for n in 0..DISK / MIB {
            image.read(n * MIB, &mut from).expect("memory");
            let at = (n % 32 * MIB) as usize;
            to[at..at + MIB as usize].copy_from_slice(black_box(&from));
            black_box(&mut to);
        }
    });
    race.enter("through the IOMMU", || sequential_reads(&mut *through.borrow_mut()));
    race.goal("through the IOMMU", Goal::Within("image read and memcpy", 1.11));
    report.run(race);
}

fn main() {
    let machine = softiommu::Machine::from_toml(MACHINE).expect("a machine");
    softiommu::install(machine).expect("a machine");
    let mut report = Report::new("disks", 9);
    let [mut through, mut direct] =
        [(0, false), (1, true)].map(|(n, direct)| Nvme::new(Client::new(n, direct)));
    race(
        &mut report,
        "nvme",
        &mut |write, places, len, depth| through.run(write, places, len, depth),
        &mut |write, places, len, depth| direct.run(write, places, len, depth),
    );
    let [mut through, mut direct] =
        [(2, false), (3, true)].map(|(n, direct)| VirtioBlk::new(Client::new(n, direct)));
    race(
        &mut report,
        "virtio-blk",
        &mut |write, places, len, depth| through.run(write, places, len, depth),
        &mut |write, places, len, depth| direct.run(write, places, len, depth),
    );
    report.finish();
}
