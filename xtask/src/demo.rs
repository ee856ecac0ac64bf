//! `cargo xtask demo`.

use std::process::Command;

use crate::{Result, command, workspace};

/// Builds the command line, its library and the client, and runs the one under
/// the other.
pub(crate) fn run() -> Result<()> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    cargo.current_dir(workspace()).args(["build", "--release", "--locked"]);
    cargo.args(["-p", "softiommu-cli", "-p", "softiommu-preload", "-p", "client"]);
    command::run(&mut cargo)?;
    let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or("target".into());
    let release = workspace().join(target).join("release");
    let (softiommu, client) = (release.join("softiommu"), release.join("client"));
    let shown = client.strip_prefix(workspace()).unwrap_or(&client);
    println!("\n$ softiommu run --explain-faults -- {}", shown.display());
    command::run(Command::new(softiommu).args(["run", "--explain-faults", "--"]).arg(client))
}
