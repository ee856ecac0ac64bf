//! Finding the library that goes into the program, and checking that it is ours.

use std::path::{Path, PathBuf};

const NAME: &str = "libsoftiommu_preload.so";

/// What the library of this version contains; see the crate `softiommu-preload`.
const MARK: &str = concat!("softiommu-library-version=", env!("CARGO_PKG_VERSION"), ";");
const MARK_PREFIX: &str = "softiommu-library-version=";

/// Why there is no library.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LibraryError {
    #[error(
        "cannot find {NAME}; looked in {}. Build it with `cargo build --release -p \
         softiommu-preload`, or say where it is in SOFTIOMMU_LIBRARY",
        places(looked)
    )]
    NotFound { looked: Vec<PathBuf> },
    #[error("cannot read the library {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error(
        "the library {} is {found}, but this is softiommu {}: install both from one build",
        path.display(),
        env!("CARGO_PKG_VERSION")
    )]
    Mismatch { path: PathBuf, found: String },
}

fn places(looked: &[PathBuf]) -> String {
    let places: Vec<_> = looked.iter().map(|path| path.display().to_string()).collect();
    places.join(", ")
}

/// The library: from `SOFTIOMMU_LIBRARY`, beside this executable, or in
/// `../lib` of it.
pub(crate) fn find() -> Result<PathBuf, LibraryError> {
    let candidates = if let Some(path) = std::env::var_os("SOFTIOMMU_LIBRARY") {
        vec![PathBuf::from(path)]
    } else {
        let exe = std::env::current_exe().unwrap_or_default();
        let here = exe.parent().unwrap_or(Path::new("."));
        vec![
            here.join(NAME),
            here.join("../lib/softiommu").join(NAME),
            here.join("../lib").join(NAME),
        ]
    };
    let Some(path) = candidates.iter().find(|path| path.is_file()) else {
        return Err(LibraryError::NotFound { looked: candidates });
    };
    let path = std::path::absolute(path).unwrap_or_else(|_| path.clone());
    check(&path)?;
    Ok(path)
}

/// The version is written in the library's data; nothing of it is executed.
fn check(path: &Path) -> Result<(), LibraryError> {
    let bytes = std::fs::read(path)
        .map_err(|source| LibraryError::Read { path: path.to_owned(), source })?;
    let starts = memchr_all(&bytes, MARK_PREFIX.as_bytes());
    let mut other = None;
    for start in starts {
        let rest = &bytes[start..];
        if rest.starts_with(MARK.as_bytes()) {
            return Ok(());
        }
        let version = &rest[MARK_PREFIX.len()..];
        let end = version.iter().take(64).position(|&byte| byte == b';');
        other = other.or(end.map(|end| String::from_utf8_lossy(&version[..end]).into_owned()));
    }
    let found = other.map_or("not softiommu's".to_owned(), |version| format!("version {version}"));
    Err(LibraryError::Mismatch { path: path.to_owned(), found })
}

fn memchr_all<'a>(haystack: &'a [u8], needle: &'a [u8]) -> impl Iterator<Item = usize> + 'a {
    haystack.windows(needle.len()).enumerate().filter(move |(_, w)| *w == needle).map(|(at, _)| at)
}
