//! The memory of a guest, from files: raw images, and ELF cores as QEMU's `dump-guest-memory` writes them.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use object::elf::{FileHeader64, PT_LOAD};
use object::read::elf::{FileHeader, ProgramHeader};
use object::{Endianness, ReadCache};
use smmuv3::{Abort, Memory};
use thiserror::Error;

/// A `--memory` argument: a file, and where it begins in physical memory if it is raw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Source {
    path: PathBuf,
    base: Option<u64>,
}

impl std::str::FromStr for Source {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // The last `@` counts: a path may have others.
        let Some((path, base)) = text.rsplit_once('@') else {
            return Ok(Self { path: text.into(), base: None });
        };
        let base =
            super::number(base).map_err(|error| format!("the address after `@`: {error}"))?;
        Ok(Self { path: path.into(), base: Some(base) })
    }
}

/// Why a file is not memory.
#[derive(Debug, Error)]
pub(crate) enum ImageError {
    #[error("cannot open {path}: {error}")]
    Open { path: PathBuf, error: io::Error },
    #[error("cannot read {path}: {error}")]
    Read { path: PathBuf, error: io::Error },
    #[error("{path} is an ELF file, but not a core: {error}")]
    Elf { path: PathBuf, error: object::read::Error },
    #[error(
        "{path} is an ELF core, which says itself where its memory is; leave `@{base:#x}` away"
    )]
    BaseOfElf { path: PathBuf, base: u64 },
}

/// Some physical memory, and where in a file it is.
struct Segment {
    base: u64,
    length: u64,
    file: usize,
    offset: u64,
}

/// All memory that there is.
#[derive(Default)]
pub(crate) struct Image {
    files: Vec<File>,
    segments: Vec<Segment>,
}

impl Image {
    pub(crate) fn open(sources: &[Source]) -> Result<Self, ImageError> {
        let mut image = Self::default();
        for source in sources {
            image.add(source)?;
        }
        Ok(image)
    }

    fn add(&mut self, source: &Source) -> Result<(), ImageError> {
        let path = &source.path;
        let file =
            File::open(path).map_err(|error| ImageError::Open { path: path.clone(), error })?;
        let read = |error| ImageError::Read { path: path.clone(), error };
        let mut magic = [0; 4];
        let elf = file.read_exact_at(&mut magic, 0).is_ok() && magic == *b"\x7fELF";
        let index = self.files.len();
        match (elf, source.base) {
            (true, Some(base)) => return Err(ImageError::BaseOfElf { path: path.clone(), base }),
            (true, None) => self.segments.extend(core(path, &file, index)?),
            (false, base) => {
                let length = file.metadata().map_err(read)?.len();
                self.segments.push(Segment {
                    base: base.unwrap_or(0),
                    length,
                    file: index,
                    offset: 0,
                });
            }
        }
        self.files.push(file);
        Ok(())
    }
}

/// The loadable segments of a core, by physical address.
fn core(path: &Path, file: &File, index: usize) -> Result<Vec<Segment>, ImageError> {
    let broken = |error| ImageError::Elf { path: path.into(), error };
    let cache = ReadCache::new(file);
    let header = FileHeader64::<Endianness>::parse(&cache).map_err(broken)?;
    let endian = header.endian().map_err(broken)?;
    let segments = header.program_headers(endian, &cache).map_err(broken)?;
    let loadable = segments.iter().filter(|segment| segment.p_type(endian) == PT_LOAD);
    Ok(loadable
        .map(|segment| Segment {
            base: segment.p_paddr(endian),
            length: segment.p_filesz(endian),
            file: index,
            offset: segment.p_offset(endian),
        })
        .collect())
}

impl Memory for Image {
    fn load(&self, address: u64) -> Result<u64, Abort> {
        let mut word = [0; 8];
        self.read(address, &mut word)?;
        Ok(u64::from_le_bytes(word))
    }

    fn read(&self, address: u64, data: &mut [u8]) -> Result<(), Abort> {
        let last = address.checked_add(data.len() as u64).ok_or(Abort)?;
        let holds =
            |segment: &&Segment| address >= segment.base && last - segment.base <= segment.length;
        let segment = self.segments.iter().find(holds).ok_or(Abort)?;
        let offset = segment.offset.checked_add(address - segment.base).ok_or(Abort)?;
        self.files[segment.file].read_exact_at(data, offset).map_err(|_| Abort)
    }

    /// A dump is not changed.
    fn compare_exchange(&self, _: u64, _: u64, _: u64) -> Result<u64, Abort> {
        Err(Abort)
    }

    fn write(&self, _: u64, _: &[u8]) -> Result<(), Abort> {
        Err(Abort)
    }
}
