//! What the tests of `softiommu run` need built.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The library, built the way this test was, and with it the client.
pub(crate) fn library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let exe = Path::new(env!("CARGO_BIN_EXE_softiommu"));
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--quiet", "-p", "softiommu-preload", "-p", "client"]);
        if exe.parent().is_some_and(|dir| dir.ends_with("release")) {
            cargo.arg("--release");
        }
        assert!(cargo.status().unwrap().success(), "cannot build the library");
        exe.with_file_name("libsoftiommu_preload.so")
    })
}
