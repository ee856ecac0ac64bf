//! Developer commands: `cargo xtask --help`.
#![forbid(unsafe_code)]

mod apt;
mod clients;
mod command;
mod conformance;
mod demo;
mod test;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Developer commands of this workspace.
#[derive(Parser)]
#[command(name = "cargo xtask", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// A client made of third-party crates has a device copy memory through both stages of an SMMUv3
    Demo,
    /// Everything a change has to pass: format, lints, build, tests, documentation
    Test,
    /// Our layouts against the kernel's headers, and the kernel's own iommufd and VFIO selftests,
    /// unmodified, under `softiommu run`
    #[command(after_help = CONFORMANCE_HELP)]
    Conformance(conformance::Options),
    /// QEMU, its tools for disk images and DPDK as Debian has them, with devices of ours, under `softiommu run`
    #[command(after_help = CLIENTS_HELP)]
    Clients(clients::Options),
}

const CONFORMANCE_HELP: &str = "\
The Linux source comes from the package linux-source-7.3, which the Debian mirror this machine
already uses carries in trixie-backports; the machine's apt configuration and package lists are
not touched. The parts needed are kept in $XDG_CACHE_HOME/softiommu or ~/.cache/softiommu.

As root, 66 huge pages of 2 MiB are reserved for the run and given back after it. Without them 29
cases cannot run; they are named and counted as skipped. So are 5 that want pages of 1 GiB.

Examples:
  cargo xtask conformance                                  all there is
  cargo xtask conformance layout                           structs and numbers, no selftests
  cargo xtask conformance iommu                            the selftests of iommufd
  cargo xtask conformance vfio                             those of VFIO
  cargo xtask conformance 'iommufd_ioas.mock_domain.*'     the cases that match a pattern
  cargo xtask conformance access_pin                       the cases whose name contains a text
  cargo xtask conformance --linux-src ~/linux              a source tree or a tarball of one
  cargo xtask conformance --runner env                     without any shim: nearly everything fails

Exit status: 0 if no case failed or is missing, 1 if one did, 2 if the run could not be done.";

const CLIENTS_HELP: &str = "\
QEMU, DPDK, a kernel and busybox come as packages from the Debian mirror this machine already uses, into
$XDG_CACHE_HOME/softiommu or ~/.cache/softiommu. Nothing is installed, and root is not needed.

Examples:
  cargo xtask clients                all of them
  cargo xtask clients qemu           one
  cargo xtask clients --race 7       how long a guest takes to boot from QEMU's own virtio disk, and from ours

Exit status: 0 if every client did all it should, 1 if one did not, 2 if it could not be tried.";

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Task::Demo => demo::run().map(|()| true),
        Task::Test => test::run().map(|()| true),
        Task::Conformance(options) => conformance::run(&options),
        Task::Clients(options) => clients::run(&options),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

/// The root of the workspace.
fn workspace() -> PathBuf {
    let xtask = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().map_or(xtask.clone(), PathBuf::from)
}
