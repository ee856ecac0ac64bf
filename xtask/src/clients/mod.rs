//! `cargo xtask clients`: programs that know nothing of us, with devices of ours.

mod disk;
mod dpdk;
mod initrd;
mod nvme;
mod packages;
mod qemu;
mod race;

use std::fs;
use std::process::Command;

use self::packages::Packages;
use crate::{Result, conformance};

/// Command line.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// One client; all without it
    client: Option<Client>,

    /// Measure instead: boot a guest this many times from a disk of QEMU's own and from one of ours
    #[arg(long, value_name = "TIMES", conflicts_with = "client", value_parser = clap::value_parser!(u32).range(1..))]
    race: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Client {
    /// A stock kernel, booted by QEMU
    Qemu,
    /// DPDK's driver of the DMA engine, under its own test
    Dpdk,
    /// QEMU's driver of NVMe in user space, by its tools for images
    Nvme,
}

/// Runs the clients. True if they did all they should.
pub(crate) fn run(options: &Options) -> Result<bool> {
    let packages = Packages::obtain()?;
    let softiommu = conformance::build_softiommu()?;
    let place = crate::workspace().join("target/clients");
    fs::create_dir_all(&place)?;
    if let Some(times) = options.race {
        return race::run(&packages, &softiommu, &place, times);
    }
    let mut problems = Vec::new();
    for client in [Client::Dpdk, Client::Nvme, Client::Qemu] {
        if options.client.is_some_and(|wanted| wanted != client) {
            continue;
        }
        println!();
        problems.extend(match client {
            Client::Qemu => qemu::run(&packages, &softiommu, &place)?,
            Client::Dpdk => dpdk::run(&packages, &softiommu, &place)?,
            Client::Nvme => nvme::run(&packages, &softiommu, &place)?,
        });
    }
    println!();
    for problem in &problems {
        println!("FAILED {problem}");
    }
    let verdict = if problems.is_empty() { "did" } else { "did not do" };
    println!("clients: they {verdict} all that they should");
    Ok(problems.is_empty())
}

/// The same command, ended after five minutes: a guest may hang.
fn end_in_time(command: &Command) -> Command {
    let mut timeout = Command::new("timeout");
    timeout.args(["--kill-after=5", "300"]).arg(command.get_program()).args(command.get_args());
    timeout.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    if let Some(place) = command.get_current_dir() {
        timeout.current_dir(place);
    }
    timeout
}
