//! DPDK drives the DMA engine from user space: by a type1 container, with the engine's registers mapped. Its own test of DMA
//! devices is the judge.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use super::end_in_time;
use super::packages::Packages;
use crate::Result;

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
mmap = true
"#;
const ADDRESS: &str = "0000:fa:00.0";
/// The drivers that it loads: by name, because it refuses paths that anybody may write to, as a cache's may be.
const PLUGINS: [&str; 3] = ["librte_bus_pci.so", "librte_mempool_ring.so", "librte_dma_ioat.so"];

/// Runs the test; what is wrong.
pub(super) fn run(packages: &Packages, softiommu: &Path, place: &Path) -> Result<Vec<String>> {
    println!("DPDK's dmadev_autotest");
    fs::write(place.join("dpdk.toml"), MACHINE)?;
    let mut dpdk = Command::new(softiommu);
    dpdk.args(["run", "--machine", "dpdk.toml", "--"]).current_dir(place);
    packages.dpdk_test(&mut dpdk)?;
    dpdk.args(["--no-huge", "-m", "256", "--no-shconf", "--no-telemetry", "-l", "0"]);
    for plugin in PLUGINS {
        dpdk.args(["-d", plugin]);
    }
    dpdk.args(["-a", ADDRESS, "--iova-mode=va"]);
    let mut child = end_in_time(&dpdk)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    child.stdin.take().ok_or("no input")?.write_all(b"dmadev_autotest\nquit\n")?;
    let output = child.wait_with_output()?;
    let text =
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    let text = text.concat();
    // It rewrites one line, over and over.
    let lines: Vec<_> =
        text.split(['\r', '\n']).map(str::trim).filter(|line| !line.is_empty()).collect();
    for line in lines.iter().filter(|line| line.contains("Running") || line.starts_with("Test ")) {
        println!("  {line}");
    }
    if output.status.success() && lines.contains(&"Test OK") {
        return Ok(Vec::new());
    }
    let tail = lines[lines.len().saturating_sub(12)..].join("\n  ");
    Ok(vec![format!("DPDK ({}); it said last:\n  {tail}", output.status)])
}
