//! How much memory processes need: measured on processes of their own, which
//! have nothing else in them.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use benches::{Goal, Race, Report};

use crate::PAGE;
use crate::client::Iommu;

const AREAS: u64 = 1_000_000;

/// Tells this executable that it is run by [`areas`], and how.
const ROLE: &str = "SOFTIOMMU_BENCH_AREAS";

/// If this process is a measuring one: measures and returns true.
pub(crate) fn measured() -> bool {
    let Ok(role) = std::env::var(ROLE) else { return false };
    let page = crate::Memory::new(PAGE);
    let iommu = Iommu::open();
    let ioas = iommu.ioas();
    if role == "domain" {
        iommu.attach_mock(ioas);
    }
    // What is allocated once is not counted.
    iommu.map(ioas, page.va(), PAGE, Some(0));
    let before = resident_pages();
    for n in 1..=AREAS {
        iommu.map(ioas, page.va(), PAGE, Some(n * PAGE));
    }
    println!("{}", (resident_pages() - before) * PAGE);
    true
}

fn resident_pages() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("/proc");
    let resident = statm.split_whitespace().nth(1).and_then(|pages| pages.parse().ok());
    resident.expect("a number")
}

/// Bytes per area of 4 KiB when there are a million.
#[allow(clippy::cast_precision_loss)]
pub(crate) fn areas(report: &mut Report) {
    let cases = [
        ("resident per 4 KiB area, no domain", "none", Some(96.0)),
        ("resident per 4 KiB area, one domain", "domain", None),
    ];
    for (title, role, limit) in cases {
        let exe = std::env::current_exe().expect("/proc");
        let output = Command::new(exe).env(ROLE, role).stderr(Stdio::inherit()).output();
        let output = output.expect("this executable runs");
        assert!(output.status.success(), "{title}");
        let bytes: u64 = String::from_utf8_lossy(&output.stdout).trim().parse().expect("a number");
        report.quantity(title, bytes as f64 / AREAS as f64, "bytes", limit);
    }
}

/// The preloaded library, newly built where this executable was.
fn library() -> PathBuf {
    let cargo = std::env::var_os("CARGO").unwrap_or("cargo".into());
    let mut build = Command::new(cargo);
    build.args(["build", "--quiet", "--release", "--locked", "-p", "softiommu-preload"]);
    build.current_dir(env!("CARGO_MANIFEST_DIR"));
    assert!(build.status().is_ok_and(|status| status.success()), "the library builds");
    let exe = std::env::current_exe().expect("/proc");
    let release = exe.ancestors().nth(2).expect("target/release/deps/uapi-hash");
    release.join("libsoftiommu_preload.so")
}

/// Resident memory of a program that does nothing else than tell it.
#[allow(clippy::cast_precision_loss)]
fn resident_kib(preload: &str) -> f64 {
    let mut rollups: Vec<u64> = (0..9)
        .map(|_| {
            let mut cat = Command::new("/bin/cat");
            let output = cat.arg("/proc/self/smaps_rollup").env("LD_PRELOAD", preload).output();
            let text = String::from_utf8(output.expect("cat runs").stdout).expect("text");
            let line = text.lines().find_map(|line| line.strip_prefix("Rss:"));
            let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
            number.expect("Rss")
        })
        .collect();
    rollups.sort_unstable();
    rollups[rollups.len() / 2] as f64
}

/// What the library costs a program that never opens `/dev/iommu`.
pub(crate) fn preload(report: &mut Report) {
    const SPAWNS: u64 = 30;
    let library = library().to_str().expect("a plain path").to_owned();
    let added = resident_kib(&library) - resident_kib("");
    report.quantity("resident, added to /bin/cat", added / 1024.0, "MiB", Some(4.0));

    let spawn = |preload: &str| {
        for _ in 0..SPAWNS {
            let status = Command::new("/bin/true").env("LD_PRELOAD", preload).status();
            assert!(status.is_ok_and(|status| status.success()));
        }
    };
    let mut race = Race::new("starting /bin/true", SPAWNS);
    race.enter("as it is", || spawn(""));
    race.enter("library preloaded", || spawn(&library));
    race.goal("library preloaded", Goal::Compared("as it is"));
    report.run(race);
}
