//! `softiommu`: a whole IOMMU for programs that have none.
#![forbid(unsafe_code)]

mod decode;
mod devices;
mod explain;
mod library;
mod machine;
mod program;
mod run;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(
    name = "softiommu",
    version,
    about = "A whole IOMMU in user space",
    long_about = "Gives programs a working /dev/iommu on a machine that has neither an IOMMU nor \
                  the kernel support for one."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Run(run::Run),
    Machine(machine::Machine),
    Decode(decode::Decode),
    Explain(explain::Explain),
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Run(run) => {
            // Only returns if the program could not be started.
            let error = run.exec();
            eprintln!("softiommu: {error}");
            ExitCode::from(error.exit_code())
        }
        Command::Machine(machine) => match machine.run() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("softiommu: {error}");
                ExitCode::FAILURE
            }
        },
        Command::Decode(decode) => match decode.run() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("softiommu: {error}");
                ExitCode::FAILURE
            }
        },
        Command::Explain(explain) => match explain.run() {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::from(3),
            Err(error) => {
                eprintln!("softiommu: {error}");
                ExitCode::FAILURE
            }
        },
    }
}
