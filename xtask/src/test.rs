//! `cargo xtask test`.

use std::process::Command;

use crate::{Result, command, workspace};

/// Runs every check, the quickest first, and stops at the first that fails.
pub(crate) fn run() -> Result<()> {
    let cargo = |arguments: &str| {
        println!("\n== cargo {arguments}");
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
        cargo.args(arguments.split_whitespace());
        cargo.current_dir(workspace());
        cargo
    };
    command::run(&mut cargo("fmt --all --check"))?;
    command::run(&mut cargo("clippy --workspace --all-targets --locked -- -D warnings"))?;
    // The shared library that `softiommu run` preloads is not built by tests.
    command::run(&mut cargo("build --workspace --locked"))?;
    command::run(&mut cargo("test --workspace --locked"))?;
    // Under the model checker the crates are other crates, so their artifacts go elsewhere.
    let mut loom = cargo("test --package smmuv3 --lib --release --locked loom");
    loom.env("RUSTFLAGS", "--cfg loom").env("CARGO_TARGET_DIR", workspace().join("target/loom"));
    command::run(&mut loom)?;
    let mut doc = cargo("doc --workspace --no-deps --locked");
    command::run(doc.env("RUSTDOCFLAGS", "-D warnings"))?;
    println!("\nall checks passed");
    Ok(())
}
