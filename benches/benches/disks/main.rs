//! Disks: what an IOMMU costs them, and what the device costs beside the copies that must be.

mod client;
mod nvme;
mod virtio_blk;

use std::cell::RefCell;
use std::fmt::Write as _;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;

use benches::{Goal, Race, Random, Report};
use devices::Image;
use rustix::fs::{MemfdFlags, memfd_create};

use crate::client::{Client, DATA, SLOTS};
use crate::nvme::Nvme;
use crate::virtio_blk::VirtioBlk;

/// Of each kind one behind the SMMU and one behind none, each with an image of its own.
const MACHINE: &str = r#"
grant = ["sys-rawio", "ipc-lock"]
[[iommu]]
name = "smmu"
model = "smmuv3"
"#;
const DEVICES: [(&str, &str); 4] =
    [("nvme", "smmu"), ("nvme", "none"), ("virtio-blk", "smmu"), ("virtio-blk", "none")];

const DISK: u64 = 64 << 20;
const MIB: u64 = 1 << 20;
const COUNT: u64 = 4096;

/// Where on a disk.
type Places<'a> = dyn Iterator<Item = u64> + 'a;

/// A disk, and the client that has it.
trait Disk {
    fn client(&self) -> &Client;

    /// Moves `len` bytes of each of these places, `depth` at a time, to the disk or from it.
    fn run(&mut self, write: bool, places: &mut Places<'_>, len: u64, depth: usize);

    /// Every byte of the disk is there.
    fn fill(&mut self) {
        self.run(true, &mut (0..DISK).step_by(MIB as usize), MIB, 1);
    }

    fn random_reads(&mut self, depth: usize) {
        let mut random = Random::new(5);
        let mut places = (0..COUNT).map(|_| random.below(DISK >> 12) << 12);
        self.run(false, &mut places, 4096, depth);
    }

    fn sequential_reads(&mut self) {
        self.run(false, &mut (0..DISK).step_by(MIB as usize), MIB, 4);
    }
}

fn race(
    report: &mut Report,
    name: &str,
    image: &Image,
    mut through: impl Disk,
    mut direct: impl Disk,
) {
    through.fill();
    direct.fill();
    let through = RefCell::new(through);
    for depth in [1, 32] {
        let title = format!("{name}: random reads of 4 KiB, {depth} at a time");
        let mut race = Race::new(title, COUNT);
        race.enter("without an IOMMU", || direct.random_reads(depth));
        race.enter("through the IOMMU", || through.borrow_mut().random_reads(depth));
        race.goal("through the IOMMU", Goal::Within("without an IOMMU", 1.43));
        report.run(race);
    }
    // The same image to the same memory: where either has come to lie matters more than who copies.
    let mut buffer = vec![1; MIB as usize];
    let mut race = Race::new(format!("{name}: reads of 1 MiB in order, 4 at a time"), DISK / MIB);
    race.enter("image read and memcpy", || {
        for n in 0..DISK / MIB {
            image.read(n * MIB, &mut buffer).expect("the image");
            through.borrow().client().put(DATA + (n % SLOTS) * MIB, &buffer);
        }
    });
    race.enter("through the IOMMU", || through.borrow_mut().sequential_reads());
    race.goal("through the IOMMU", Goal::Within("image read and memcpy", 1.11));
    report.run(race);
}

fn main() {
    let files = DEVICES.map(|_| {
        let file = File::from(memfd_create("disk", MemfdFlags::CLOEXEC).expect("memory"));
        file.set_len(DISK).expect("memory");
        file
    });
    let paths = files.each_ref().map(|file| format!("/proc/self/fd/{}", file.as_raw_fd()));
    let mut machine = MACHINE.to_owned();
    for (n, ((model, iommu), path)) in DEVICES.iter().zip(&paths).enumerate() {
        write!(
            machine,
            "[[device]]\nname = \"disk{n}\"\nmodel = \"{model}\"\niommu = \"{iommu}\"\nimage = \"{path}\"\n"
        )
        .expect("text");
    }
    let machine = softiommu::Machine::from_toml(&machine).expect("a machine");
    softiommu::install(machine).expect("a machine");
    let image = |n: usize| Image::open(Path::new(&paths[n]), true).expect("an image");
    let client = |n: u32| Client::new(n, n % 2 == 1);
    let mut report = Report::new("disks", 9);
    race(&mut report, "nvme", &image(0), Nvme::new(client(0)), Nvme::new(client(1)));
    race(
        &mut report,
        "virtio-blk",
        &image(2),
        VirtioBlk::new(client(2)),
        VirtioBlk::new(client(3)),
    );
    report.finish();
}
