//! QEMU, a kernel, busybox and DPDK: Debian's packages, unpacked beside the system.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::apt::{Apt, Mirror};
use crate::conformance::cache_directory;
use crate::{Result, command};

const QEMU: [&str; 2] = ["qemu-system-x86", "qemu-utils"];
const BUSYBOX: &str = "busybox-static";
const DPDK: [&str; 2] = ["dpdk-dev", "librte-meta-dma"];
const KERNEL: &str = "linux-image-amd64";
/// Written when everything is unpacked: the packages.
const STAMP: &str = ".complete";

/// Unpacked packages.
pub(super) struct Packages {
    root: PathBuf,
}

impl Packages {
    /// Takes them from the cache, or from the machine's Debian mirror.
    pub(super) fn obtain() -> Result<Self> {
        let cache = cache_directory()?.join("clients");
        let root = cache.join("root");
        let packages = [&QEMU[..], &[BUSYBOX], &DPDK].concat();
        let all = [&packages[..], &[KERNEL]].concat().join(" ");
        if std::fs::read_to_string(cache.join(STAMP)).is_ok_and(|found| found == all) {
            return Ok(Self { root });
        }
        let _ = std::fs::remove_dir_all(&cache);
        std::fs::create_dir_all(&root)?;
        let release = release()?;
        // QEMU passes devices by iommufd since 9.0, which bookworm has in its backports.
        let backports = format!("{release}-backports");
        let mirror = Mirror::of_this_machine()?;
        let work = cache.join("download");
        let apt = Apt::update(&mirror, &[&release, &backports], &work)?;
        let kernel = apt.dependency(KERNEL, "linux-image-")?;
        println!(
            "downloading {kernel}, {} and what they need from {release} (some 200 MB, once)",
            packages.join(", ")
        );
        let files = apt.download_with_needs(&backports, &packages)?;
        let kernel = apt.download(&kernel, None)?;
        for file in files.iter().chain([&kernel]) {
            command::output(Command::new("dpkg-deb").arg("-x").arg(file).arg(&root))?;
        }
        std::fs::remove_dir_all(&work)?;
        std::fs::write(cache.join(STAMP), all)?;
        Ok(Self { root })
    }

    /// Has `command` run QEMU.
    pub(super) fn qemu(&self, command: &mut Command) {
        self.run(command, "qemu-system-x86_64", &[]);
        for data in ["seabios", "qemu"] {
            command.arg("-L").arg(self.root.join("usr/share").join(data));
        }
    }

    /// Has `command` run DPDK's tests, which find their drivers by name.
    pub(super) fn dpdk_test(&self, command: &mut Command) -> Result<()> {
        let all = self.root.join("usr/lib/x86_64-linux-gnu/dpdk");
        let pmds =
            |entry: &std::fs::DirEntry| entry.file_name().to_string_lossy().starts_with("pmds-");
        let found = std::fs::read_dir(all)?.flatten().find(pmds);
        let found = found.ok_or("DPDK's packages have no drivers")?;
        self.run(command, "dpdk-test", &[found.path()]);
        Ok(())
    }

    /// Has `command` run a program, which finds its libraries in these directories, too.
    pub(super) fn run(&self, command: &mut Command, program: &str, libraries: &[PathBuf]) {
        let system = ["usr/lib", "lib"].map(|top| self.root.join(top).join("x86_64-linux-gnu"));
        // None has a colon in it: they are ours.
        let path = std::env::join_paths(system.iter().chain(libraries)).unwrap_or_default();
        command.env("LD_LIBRARY_PATH", path);
        command.arg(self.root.join("usr/bin").join(program));
    }

    pub(super) fn busybox(&self) -> Result<PathBuf> {
        let places = ["bin/busybox", "usr/bin/busybox"].map(|place| self.root.join(place));
        let found = places.into_iter().find(|place| place.exists());
        found.ok_or_else(|| "the package busybox-static has no busybox".into())
    }

    /// The kernel's image.
    pub(super) fn kernel(&self) -> Result<PathBuf> {
        let named =
            |entry: &std::fs::DirEntry| entry.file_name().to_string_lossy().starts_with("vmlinuz-");
        let found = std::fs::read_dir(self.root.join("boot"))?.flatten().find(named);
        found.map(|entry| entry.path()).ok_or_else(|| "the kernel's package has no image".into())
    }

    /// The modules with these names; those that the kernel has built in are missing.
    pub(super) fn modules(&self, names: &[&str]) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for top in ["lib/modules", "usr/lib/modules"] {
            collect(&self.root.join(top), names, &mut found);
        }
        found
    }
}

fn collect(directory: &Path, names: &[&str], found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect(&path, names, found);
        } else if let Some(file) = path.file_name().and_then(|name| name.to_str())
            && let Some((name, _)) = file.split_once(".ko")
            && names.contains(&name.replace('-', "_").as_str())
        {
            found.push(path);
        }
    }
}

/// `bookworm`, of the machine's Debian.
fn release() -> Result<String> {
    let text = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    let name = name.filter(|_| text.lines().any(|line| line == "ID=debian"));
    Ok(name
        .ok_or("the packages are Debian's, and this machine is not: there is nothing to try")?
        .to_owned())
}
