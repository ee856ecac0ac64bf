//! Building the kernel's selftests with the kernel's own makefiles.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::source::Source;
use crate::{Result, command};

/// A test program, as built.
#[derive(Debug)]
pub(crate) struct Program {
    pub(crate) name: &'static str,
    pub(crate) path: PathBuf,
}

/// Tools and headers the build needs, the Debian package each is in, and how to
/// tell that it is there.
const NEEDED: [(&str, &str, Presence); 6] = [
    ("gcc", "gcc", Presence::Program),
    ("make", "make", Presence::Program),
    ("xz", "xz-utils", Presence::Program),
    ("stdio.h", "libc6-dev", Presence::Header),
    ("sys/capability.h", "libcap-dev", Presence::Header),
    ("uuid/uuid.h", "uuid-dev", Presence::Header),
];

#[derive(Clone, Copy)]
enum Presence {
    Program,
    Header,
}

/// Makes sure that the tools are there: installs what is missing if this is
/// root on a Debian system, says what to install if not.
pub(crate) fn prerequisites() -> Result<()> {
    let missing = || {
        let missing = NEEDED.iter().filter(|(name, _, presence)| match presence {
            Presence::Program => !on_path(name),
            Presence::Header => !has_header(name),
        });
        missing.map(|(_, package, _)| *package).collect::<Vec<_>>()
    };
    let packages = missing();
    if packages.is_empty() {
        return Ok(());
    }
    let list = packages.join(" ");
    let advice = format!("missing to build the selftests; install: {list}");
    let can_install =
        rustix::process::geteuid().is_root() && Path::new("/etc/debian_version").exists();
    if !can_install {
        return Err(advice.into());
    }
    println!("installing {list}");
    let install = || {
        let mut apt = Command::new("apt-get");
        apt.env("DEBIAN_FRONTEND", "noninteractive");
        apt.args(["install", "--yes", "--no-install-recommends"]);
        command::output(apt.args(&packages))
    };
    // The package lists may be missing or old.
    install().or_else(|_| {
        command::output(Command::new("apt-get").arg("update"))?;
        install()
    })?;
    if missing().is_empty() { Ok(()) } else { Err(advice.into()) }
}

fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

/// Asks the compiler, which knows where headers are.
fn has_header(header: &str) -> bool {
    let mut gcc = Command::new("gcc");
    gcc.args(["-E", "-x", "c", "-include", header, "/dev/null"]);
    command::output(&mut gcc).is_ok()
}

/// The kernel's makefiles, about to be run.
fn make() -> Command {
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    let mut make = Command::new("make");
    // A variable of ours must not steer the kernel's makefiles.
    for variable in ["ARCH", "CROSS_COMPILE", "LLVM", "KBUILD_OUTPUT", "O", "MAKEFLAGS"] {
        make.env_remove(variable);
    }
    make.env("LC_ALL", "C").arg(format!("-j{jobs}"));
    make
}

/// Installs the uapi headers in the tree, in `usr/include`.
pub(crate) fn headers(source: &Source) -> Result<()> {
    if !source.tree.join("usr/include/linux/iommufd.h").exists() {
        command::output(make().arg("-C").arg(&source.tree).arg("headers"))?;
    }
    Ok(())
}

/// Builds the programs of a suite: `folder` under `tools/testing/selftests`. The
/// [`headers`] have to be there.
pub(crate) fn programs(
    source: &Source,
    folder: &str,
    names: &[&'static str],
) -> Result<Vec<Program>> {
    let folder = source.tree.join("tools/testing/selftests").join(folder);
    // With a sub-make's level, lib.mk leaves the headers alone.
    let output = format!("OUTPUT={}", folder.display());
    let headers = format!("KHDR_INCLUDES=-isystem {}", source.tree.join("usr/include").display());
    command::output(make().arg("-C").arg(&folder).args([output, headers]))?;
    let programs = names.iter().map(|&name| Program { name, path: folder.join(name) });
    let programs: Vec<_> = programs.collect();
    match programs.iter().find(|program| !program.path.is_file()) {
        Some(program) => Err(format!("make did not build {}", program.path.display()).into()),
        None => Ok(programs),
    }
}
