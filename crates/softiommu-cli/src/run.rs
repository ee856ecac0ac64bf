//! `softiommu run`: the program in place of this one, with our library in it.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use clap::Args;
use softiommu_machine::{Grant, Machine, Model, StaleRule};

use crate::devices::{self, DevicesError};
use crate::library::{self, LibraryError};
use crate::program::{self, ProgramError};

/// Run a program with a working /dev/iommu
///
/// The program is started in place of softiommu: its standard streams, its
/// signals and its exit status are its own. Programs that it starts have the
/// same /dev/iommu.
///
/// The library is put into the program with LD_PRELOAD. That reaches what the
/// program does through the C library; statically linked programs, programs
/// that make system calls themselves (Go) and set-user-ID programs are out of
/// its reach.
#[derive(Args)]
#[command(after_help = "Examples:
  softiommu run -- ./my-vmm --device vfio
  softiommu run -v --log /tmp/iommu.log -- cargo test
  softiommu run --machine machine.toml -- ./client
  softiommu run --device nvme,image=disk.img --device virtio-blk,memory=64MiB,ro -- ./driver
  softiommu run --trace trace.json -- ./my-vmm     # then open it in https://ui.perfetto.dev

Exit status: the program's own; 125 if softiommu itself failed, 126 if the program cannot be
run with the library in it, 127 if it was not found.")]
pub(crate) struct Run {
    /// The machine file: which IOMMUs and devices there are (see the README)
    #[arg(long, value_name = "FILE.toml", conflicts_with = "iommu")]
    machine: Option<PathBuf>,

    /// The model of the IOMMU: smmuv3, mmu600 or mmu700, with a DMA engine behind it; or mock, what the
    /// kernel's selftests expect
    #[arg(long, value_name = "MODEL", default_value_t = Model::Smmuv3)]
    iommu: Model,

    /// Add a device to the machine: ioat, nvme or virtio-blk, and for disks, after commas, image=FILE or
    /// memory=SIZE, ro, block-size=BYTES, queues=N; for ioat, vfs=N and num-vfs=N; for each, mmap, name=NAME
    /// and address=ADDRESS. Its node is the next /dev/vfio/devices/vfioN: `softiommu machine` shows it
    #[arg(long, value_name = "MODEL[,KEY=VALUE...]")]
    device: Vec<String>,

    /// Act as if the program had a capability: ipc-lock, sys-resource or
    /// sys-rawio. What they protect here is only the emulation's bookkeeping
    #[arg(long, value_name = "CAPABILITY")]
    grant: Vec<Grant>,

    /// Make the N-th fallible step of the main thread fail: an allocation, a pin,
    /// a copy, a driver's call, a new descriptor. Sweep N upwards until the
    /// program does not notice
    #[arg(long, value_name = "N")]
    fail_nth: Option<u32>,

    /// Offer the kernel's knobs for fault injection: /proc/self/task/TID/fail-nth
    #[arg(long)]
    fault_injection: bool,

    /// Print the whole walk of each DMA that faults: STE, CD and every descriptor, of both stages
    #[arg(long)]
    explain_faults: bool,

    /// Compare each translation that a cache serves with the tables, and report what software forgot to
    /// invalidate: when the address is used again (reuse), when a CMD_SYNC went by (sync), or at once (use)
    #[arg(long, value_name = "RULE", num_args = 0..=1, require_equals = true, default_missing_value = "reuse")]
    check_stale: Option<StaleRule>,

    /// Write what happens to a file that the Perfetto UI (ui.perfetto.dev) opens: ioctls of each thread; commands, events
    /// and errors of each SMMU; DMA, MSIs and faults of each device; invalidations and events of each vIOMMU
    ///
    /// All processes that the program starts write to this one file, each under its own process ID. Calls of a
    /// process that uses the machine of another, as a forked child does, are on its own threads' tracks, and what
    /// the hardware does on those of the process that has the machine. The file is an event on each line, for grep
    /// and, with `tail -n +2 FILE | sed 's/,$//'`, for jq. It can be read at any time; what a program did in its last
    /// milliseconds before it was killed may be missing.
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,

    /// Say at the end what was done: ioctls, DMA, MSIs, commands, events
    #[arg(long)]
    stats: bool,

    /// Log refused ioctls to standard error; -vv logs every emulated call
    #[arg(short, long, action = clap::ArgAction::Count)]
    verbose: u8,

    /// Log to a file instead; implies -v
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,

    /// The program and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "PROGRAM")]
    program: Vec<OsString>,
}

/// Why the program was not started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    #[error(transparent)]
    Machine(#[from] softiommu_machine::Error),
    #[error(transparent)]
    Devices(#[from] DevicesError),
    #[error(transparent)]
    Library(#[from] LibraryError),
    #[error(transparent)]
    Program(#[from] ProgramError),
    #[error("cannot write the log file {}: {source}", path.display())]
    Log { path: PathBuf, source: std::io::Error },
    #[error("cannot write the trace file {}: {source}", path.display())]
    Trace { path: PathBuf, source: std::io::Error },
    #[error("cannot start {}: {source}", path.display())]
    Exec { path: PathBuf, source: std::io::Error },
}

impl RunError {
    /// As shells and `env` have it.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Program(ProgramError::NotFound { .. }) => 127,
            Self::Program(_) | Self::Exec { .. } => 126,
            Self::Machine(_)
            | Self::Devices(_)
            | Self::Library(_)
            | Self::Log { .. }
            | Self::Trace { .. } => 125,
        }
    }
}

impl Run {
    /// Becomes the program; returns only why it could not.
    pub(crate) fn exec(self) -> RunError {
        match self.prepare() {
            Ok((path, mut command)) => RunError::Exec { path, source: command.exec() },
            Err(error) => error,
        }
    }

    fn prepare(self) -> Result<(PathBuf, Command), RunError> {
        let mut machine = match &self.machine {
            Some(path) => Machine::from_file(path)?,
            None => Machine::of(self.iommu),
        };
        devices::add(&mut machine, &self.device)?;
        machine.grant.extend(&self.grant);
        machine.fault_injection |= self.fault_injection;
        machine.explain_faults |= self.explain_faults;
        machine.stats |= self.stats;
        machine.check_stale = self.check_stale.or(machine.check_stale);
        let trace = self.trace.or(machine.trace);
        machine.trace = trace.map(|path| std::path::absolute(&path).unwrap_or(path));
        machine.check()?;
        devices::check_disks(&mut machine)?;
        let library = library::find()?;
        let (name, args) = self.program.split_first().ok_or(ProgramError::Missing)?;
        let path = program::find(name)?;
        program::check(&path)?;
        if let Some(path) = &machine.trace {
            // Begun now, so that all processes append to it.
            std::fs::write(path, trace::HEADER)
                .map_err(|source| RunError::Trace { path: path.clone(), source })?;
        }
        let mut command = Command::new(&path);
        command.arg0(name).args(args);
        let mut preload = library.into_os_string();
        if let Some(others) = std::env::var_os("LD_PRELOAD").filter(|others| !others.is_empty()) {
            preload.push(":");
            preload.push(others);
        }
        command.env("LD_PRELOAD", preload).env("SOFTIOMMU_MACHINE", machine.to_toml());
        if let Some(nth) = self.fail_nth {
            command.env("SOFTIOMMU_FAIL_NTH", nth.to_string());
        }
        if self.verbose > 0 || self.log.is_some() {
            let level = if self.verbose > 1 { "trace" } else { "debug" };
            command.env("SOFTIOMMU_LOG_LEVEL", level);
        }
        if let Some(log) = self.log {
            let path = std::path::absolute(&log).unwrap_or(log);
            // Found out now rather than inside the program.
            let opened = std::fs::OpenOptions::new().create(true).append(true).open(&path);
            opened.map_err(|source| RunError::Log { path: path.clone(), source })?;
            command.env("SOFTIOMMU_LOG", path);
        }
        Ok((path, command))
    }
}
