//! The parts of a Linux source tree that the selftests are built from.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::Result;
use crate::apt::{Apt, Mirror};

const PACKAGE: &str = "linux-source-7.3";
const PACKAGE_PREFIX: &str = "linux-source-7.";

/// Suites that carry the package, the most likely first.
const SUITES: [&str; 2] = ["trixie-backports", "sid"];

/// Written when a tree is complete: the parts that it has.
const STAMP: &str = ".complete";

/// A source tree that may be written to.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) tree: PathBuf,
    /// What to call it.
    pub(crate) version: String,
}

/// What is taken out of a tree, relative to its root. The uapi headers are made
/// by the kernel's own rules, which need its top-level makefile and scripts.
fn parts() -> Vec<String> {
    let arch = match std::env::consts::ARCH {
        "aarch64" => "arm64",
        "riscv64" => "riscv",
        _ => "x86",
    };
    let fixed = [
        "Makefile",
        "scripts",
        "include/uapi",
        "include/asm-generic",
        "drivers/iommu/iommufd/iommufd_test.h",
        "tools/include",
        "tools/arch",
        "tools/scripts",
        "tools/build",
        "tools/testing/selftests/Makefile",
        "tools/testing/selftests/*.mk",
        "tools/testing/selftests/*.h",
        "tools/testing/selftests/*.sh",
        "tools/testing/selftests/kselftest",
        "tools/testing/selftests/kselftest_harness",
        "tools/testing/selftests/iommu",
        "tools/testing/selftests/vfio",
        // What the VFIO suite has links to.
        "include/linux/pci_ids.h",
        "drivers/dma/idxd/registers.h",
        "drivers/dma/ioat/hw.h",
        "drivers/dma/ioat/registers.h",
        "drivers/net/ethernet/intel/igb/*.h",
    ];
    let per_arch = ["Makefile", "include/uapi", "include/asm", "entry/syscalls"];
    let per_arch = per_arch.iter().map(|part| format!("arch/{arch}/{part}"));
    let tables = [format!("arch/{arch}/tools")];
    let fixed = fixed.into_iter().map(str::to_owned);
    fixed.chain(per_arch).chain(tables).collect()
}

fn stamp() -> String {
    parts().join("\n")
}

/// A file without which there is nothing to build.
const LANDMARK: &str = "tools/testing/selftests/iommu/Makefile";

impl Source {
    /// Takes the source from `local`, a tree or a tarball of one, or, without it,
    /// from the cache or the machine's Debian mirror.
    pub(crate) fn obtain(local: Option<&Path>) -> Result<Self> {
        let cache = cache_directory()?;
        std::fs::create_dir_all(&cache)?;
        match local {
            Some(path) => from_local(path, &cache),
            None => match cached(&cache) {
                Some(source) => Ok(source),
                None => from_mirror(&cache),
            },
        }
    }
}

pub(crate) fn cache_directory() -> Result<PathBuf> {
    let set = |name| std::env::var_os(name).map(PathBuf::from);
    let base = set("XDG_CACHE_HOME").filter(|path| path.is_absolute());
    let base = base.or_else(|| Some(set("HOME")?.join(".cache")));
    let base = base.ok_or("neither XDG_CACHE_HOME nor HOME is set")?;
    Ok(base.join("softiommu"))
}

fn cached(cache: &Path) -> Option<Source> {
    let entries = std::fs::read_dir(cache).ok()?.flatten();
    let complete = entries.filter(|entry| {
        std::fs::read_to_string(entry.path().join(STAMP)).is_ok_and(|parts| parts == stamp())
    });
    let versions = complete.filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        let (package, version) = name.split_once('_')?;
        package.strip_prefix(PACKAGE_PREFIX)?;
        Some((package == PACKAGE, version.to_owned(), entry.path()))
    });
    let (_, version, tree) = versions.max()?;
    Some(Source { tree, version })
}

fn from_local(path: &Path, cache: &Path) -> Result<Source> {
    let tree = cache.join("linux-local");
    let _ = std::fs::remove_dir_all(&tree);
    std::fs::create_dir_all(&tree)?;
    if path.is_dir() {
        if !path.join(LANDMARK).exists() {
            return Err(
                format!("{}: not a Linux source tree (no {LANDMARK})", path.display()).into()
            );
        }
        // Copied, so that the build leaves no traces in somebody's tree.
        let present = |part: &String| part.contains('*') || path.join(part).exists();
        let (plain, globs): (Vec<_>, Vec<_>) =
            parts().into_iter().filter(present).partition(|part| !part.contains('*'));
        let mut names = plain;
        for glob in globs {
            let (directory, pattern) = glob.rsplit_once('/').ok_or("a pattern in a folder")?;
            let suffix = pattern.trim_start_matches('*');
            let Ok(entries) = std::fs::read_dir(path.join(directory)) else { continue };
            for entry in entries.flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                if name.ends_with(suffix) {
                    names.push(format!("{directory}/{name}"));
                }
            }
        }
        let mut pack = Command::new("tar");
        pack.arg("-C").arg(path).args(["-cf", "-"]).args(names);
        let mut unpack = Command::new("tar");
        unpack.arg("-C").arg(&tree).args(["-xf", "-"]);
        pipe(vec![pack, unpack])?;
    } else {
        let mut unpack = unpack_parts(&tree);
        // tar finds out about the compression.
        unpack.arg("-f").arg(path);
        pipe(vec![unpack])?;
    }
    check(&tree)?;
    let version = version_of(&tree);
    Ok(Source { tree, version })
}

fn from_mirror(cache: &Path) -> Result<Source> {
    let mirror = Mirror::of_this_machine()
        .map_err(|error| format!("{error}; give the kernel source with --linux-src"))?;
    let work = cache.join("download");
    let mut problems = Vec::new();
    for suite in SUITES {
        let _ = std::fs::remove_dir_all(&work);
        let found = Apt::update(&mirror, &[suite], &work)
            .and_then(|apt| Ok((apt.newest(PACKAGE_PREFIX, PACKAGE)?, apt)));
        let (package, version, apt) = match found {
            Ok((Some((package, version)), apt)) => (package, version, apt),
            Ok((None, _)) => {
                problems.push(format!("{suite} has no {PACKAGE_PREFIX}*"));
                continue;
            }
            Err(error) => {
                problems.push(format!("{suite}: {error}"));
                continue;
            }
        };
        if package != PACKAGE {
            println!("{suite} has no {PACKAGE} any more; taking {package}");
        }
        println!("downloading {package} {version} from {suite} (some 160 MB, once)");
        let file = apt.download(&package, Some(&version))?;
        let tree = cache.join(format!("{package}_{version}"));
        let _ = std::fs::remove_dir_all(&tree);
        std::fs::create_dir_all(&tree)?;
        println!("unpacking what is needed of it");
        let mut package_files = Command::new("dpkg-deb");
        package_files.arg("--fsys-tarfile").arg(&file);
        let mut tarball = Command::new("tar");
        tarball.args(["-xOf", "-", "--wildcards", "./usr/src/linux-source-*.tar.xz"]);
        let mut unpack = unpack_parts(&tree);
        unpack.args(["-J", "-f", "-"]);
        pipe(vec![package_files, tarball, unpack])?;
        check(&tree)?;
        std::fs::write(tree.join(STAMP), stamp())?;
        std::fs::remove_dir_all(&work)?;
        return Ok(Source { tree, version });
    }
    let problems = problems.join("\n");
    Err(format!(
        "{problems}\nThe mirror in the apt sources does not offer a {PACKAGE_PREFIX}* package; \
         give the kernel source with --linux-src"
    )
    .into())
}

/// tar, about to unpack the [`parts`] of an archive that has everything in one
/// folder; the archive is still to be named.
fn unpack_parts(tree: &Path) -> Command {
    let mut tar = Command::new("tar");
    tar.arg("-C").arg(tree);
    tar.args(["-x", "--strip-components=1", "--wildcards"]);
    // Parts of the tree that this version does not have are no error: `check`
    // looks for what matters.
    tar.args(["--no-wildcards-match-slash", "--warning=no-timestamp"]);
    tar.args(parts().iter().map(|part| format!("*/{part}")));
    tar
}

fn check(tree: &Path) -> Result<()> {
    for part in [LANDMARK, "Makefile", "scripts", "include/uapi/linux/iommufd.h"] {
        if !tree.join(part).exists() {
            return Err(format!("the Linux source has no {part}").into());
        }
    }
    Ok(())
}

/// `7.3.4`, out of the top-level makefile.
fn version_of(tree: &Path) -> String {
    let text = std::fs::read_to_string(tree.join("Makefile")).unwrap_or_default();
    let value = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        let (_, value) = line.split_once('=')?;
        Some(value.trim().to_owned()).filter(|value| !value.is_empty())
    };
    let numbers = ["VERSION", "PATCHLEVEL", "SUBLEVEL"].map(value);
    numbers.into_iter().flatten().collect::<Vec<_>>().join(".")
}

/// Runs a pipeline. The last program decides, and those before it unless they
/// were cut short by it.
fn pipe(mut commands: Vec<Command>) -> Result<()> {
    let mut children = Vec::new();
    let mut input = Stdio::null();
    let last = commands.len() - 1;
    for (i, command) in commands.iter_mut().enumerate() {
        command.stdin(input);
        if i < last {
            command.stdout(Stdio::piped());
        }
        command.stderr(Stdio::piped());
        let program = command.get_program().to_string_lossy().into_owned();
        let mut child = command.spawn().map_err(|error| format!("{program}: {error}"))?;
        input = child.stdout.take().map_or(Stdio::null(), Stdio::from);
        children.push((program, child));
    }
    for (program, child) in children.into_iter().rev() {
        let output = child.wait_with_output()?;
        if !output.status.success() {
            let message = String::from_utf8_lossy(&output.stderr);
            // Not every version of the tree has every part.
            let only_missing = message.lines().all(|line| {
                line.contains("Not found in archive") || line.contains("previous errors")
            });
            if !only_missing {
                return Err(format!("{program}: {}\n{message}", output.status).into());
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fake_tree(root: &Path) {
        for file in [
            LANDMARK,
            "Makefile",
            "scripts/x",
            "include/uapi/linux/iommufd.h",
            "tools/testing/selftests/lib.mk",
            "tools/testing/selftests/net/big",
            "drivers/gpu/big.h",
        ] {
            let file = root.join(file);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, "VERSION = 7\nPATCHLEVEL = 3\nSUBLEVEL = 4\n").unwrap();
        }
    }

    #[test]
    fn only_the_parts_are_taken_from_trees_and_tarballs() {
        let folder = tempfile::tempdir().unwrap();
        let tree = folder.path().join("linux-7.3.4");
        fake_tree(&tree);
        let tarball = folder.path().join("linux.tar");
        let mut tar = Command::new("tar");
        tar.arg("-C").arg(folder.path()).arg("-cf").arg(&tarball);
        assert!(tar.arg("linux-7.3.4").status().unwrap().success());
        for (i, local) in [tree, tarball].iter().enumerate() {
            let cache = folder.path().join(i.to_string());
            let source = from_local(local, &cache).unwrap();
            assert_eq!(source.version, "7.3.4");
            assert!(source.tree.join("tools/testing/selftests/lib.mk").exists());
            assert!(source.tree.join("scripts/x").exists());
            assert!(!source.tree.join("drivers/gpu").exists());
            assert!(!source.tree.join("tools/testing/selftests/net").exists());
        }
        let error = from_local(folder.path(), &folder.path().join("2")).unwrap_err();
        assert!(error.to_string().contains("not a Linux source tree"));
    }

    #[test]
    fn an_incomplete_download_is_not_used() {
        let cache = tempfile::tempdir().unwrap();
        let tree = |name: &str, parts: Option<&str>| {
            let tree = cache.path().join(name);
            std::fs::create_dir_all(&tree).unwrap();
            if let Some(parts) = parts {
                std::fs::write(tree.join(STAMP), parts).unwrap();
            }
        };
        tree("linux-source-7.3_7.3.9-1", None);
        tree("linux-source-7.3_7.3.8-1", Some("scripts"));
        assert!(cached(cache.path()).is_none(), "one is not complete, one has too few parts");
        tree("linux-source-7.4_7.4.1-1", Some(&stamp()));
        tree("linux-source-7.3_7.3.4-1", Some(&stamp()));
        let source = cached(cache.path()).unwrap();
        assert!(source.tree.ends_with("linux-source-7.3_7.3.4-1"));
    }
}
