//! Disk images: a file, a block device, or memory.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{
    FallocateFlags, FileType, FlockOperation, MemfdFlags, Mode, OFlags, SealFlags, SeekFrom,
};
use rustix::io::Errno;
use vfio::FilePart;

const TMPFS_MAGIC: u64 = 0x0102_1994;

/// Zeros for file systems that cannot make them.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// Why there is no such disk.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The file cannot be opened.
    #[error("cannot open the disk image {}{}: {source}{}", path.display(), for_writing(*read_only), hint(*read_only, source))]
    Open {
        /// The file.
        path: PathBuf,
        /// It was to be read only.
        read_only: bool,
        /// Why.
        source: io::Error,
    },
    /// It is a directory, a pipe…
    #[error("the disk image {} is neither a file nor a block device", path.display())]
    Kind {
        /// The file.
        path: PathBuf,
    },
    /// Somebody else has locked it.
    #[error("the disk image {} is in use by another disk or program{}", path.display(), if *read_only { ", which writes it: end that one first" } else { ": end that one first, or open it read-only in both" })]
    InUse {
        /// The file.
        path: PathBuf,
        /// It was to be read only.
        read_only: bool,
    },
    /// It is not made of whole blocks.
    #[error("{what} has {len} bytes, and a disk with blocks of {block} bytes has a multiple of that, and at least one{}", fix(path.as_deref(), *len, *block))]
    Size {
        /// The disk, for people.
        what: String,
        /// The file, if it is one.
        path: Option<PathBuf>,
        /// Its size in bytes.
        len: u64,
        /// Bytes in a block.
        block: u32,
    },
    /// There is no descriptor for it.
    #[error(
        "there is no file descriptor left for a disk: {source}; raise the limit with `ulimit -n`"
    )]
    Descriptor {
        /// Why.
        source: io::Error,
    },
    /// There is not so much memory.
    #[error("there is no memory for a disk of {len} bytes: {source}")]
    Memory {
        /// The size in bytes.
        len: u64,
        /// Why.
        source: io::Error,
    },
}

fn for_writing(read_only: bool) -> &'static str {
    if read_only { "" } else { " for writing" }
}

fn hint(read_only: bool, source: &io::Error) -> &'static str {
    let denied = matches!(
        source.kind(),
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
    );
    match source.kind() {
        io::ErrorKind::NotFound => "; make it with `truncate -s 1G FILE`",
        _ if denied && !read_only => "; make the disk read-only, or let this user write the file",
        _ => "",
    }
}

fn fix(path: Option<&Path>, len: u64, block: u32) -> String {
    let block = u64::from(block);
    let size = len.max(1).next_multiple_of(block);
    match path {
        Some(path) => format!("; make it larger with `truncate -s {size} {}`", path.display()),
        None => format!("; write memory = \"{size}\""),
    }
}

/// What a disk consists of. Every access goes to the file, of which nothing is kept.
pub struct Image {
    file: Box<dyn AsFd + Send + Sync>,
    /// `None`: it is memory.
    path: Option<PathBuf>,
    len: u64,
    read_only: bool,
    /// It cannot shrink.
    sealed: bool,
    /// Its file is memory: to read it is never to wait for a disk.
    in_memory: bool,
}

impl Image {
    /// The file or block device at `path`.
    pub fn open(path: &Path, read_only: bool) -> Result<Self, ImageError> {
        let failed = |source: Errno| {
            let (path, source) = (path.to_owned(), source.into());
            ImageError::Open { path, read_only, source }
        };
        let access = if read_only { OFlags::RDONLY } else { OFlags::RDWR };
        // Whoever opens a pipe must not wait for its other end.
        let flags = access | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = rustix::fs::open(path, flags, Mode::empty()).map_err(|error| match error {
            Errno::ISDIR => ImageError::Kind { path: path.to_owned() },
            error => failed(error),
        })?;
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&file).map_err(failed)?.st_mode);
        if !kind.is_file() && !kind.is_block_device() {
            return Err(ImageError::Kind { path: path.to_owned() });
        }
        let len = length(file.as_fd()).map_err(failed)?;
        let path = Some(path.to_owned());
        let in_memory = rustix::fs::fstatfs(&file).is_ok_and(|fs| fs.f_type as u64 == TMPFS_MAGIC);
        Ok(Self { file: Box::new(file), path, len, read_only, sealed: false, in_memory })
    }

    /// `len` bytes of memory, zero at first. What was never written costs nothing.
    pub fn memory(len: u64) -> Result<Self, ImageError> {
        let make = || {
            let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
            let file = rustix::fs::memfd_create("disk", flags)?;
            rustix::fs::ftruncate(&file, len)?;
            let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
            rustix::fs::fcntl_add_seals(&file, seals)?;
            Ok(file)
        };
        let file =
            make().map_err(|error: Errno| ImageError::Memory { len, source: error.into() })?;
        Ok(Self {
            file: Box::new(file),
            path: None,
            len,
            read_only: false,
            sealed: true,
            in_memory: true,
        })
    }

    /// Keeps others away, until `unlock`, or until this ends: a disk that can be written has its file for itself
    /// (`flock`), those that read share it.
    pub fn lock(&self) -> Result<(), ImageError> {
        let Some(path) = &self.path else { return Ok(()) };
        let (path, read_only) = (path.clone(), self.read_only);
        let lock = if read_only {
            FlockOperation::NonBlockingLockShared
        } else {
            FlockOperation::NonBlockingLockExclusive
        };
        rustix::fs::flock(self.fd(), lock).map_err(|error| match error {
            Errno::WOULDBLOCK => ImageError::InUse { path, read_only },
            error => ImageError::Open { path, read_only, source: error.into() },
        })
    }

    /// Lets others have it.
    pub fn unlock(&self) {
        // What is not locked needs none of it.
        let _ = rustix::fs::flock(self.fd(), FlockOperation::Unlock);
    }

    /// The same, refusing writes.
    #[must_use]
    pub fn read_only(self) -> Self {
        Self { read_only: true, ..self }
    }

    /// The same with its descriptor where `hold` puts it, for who lives in a process whose descriptors are not his.
    pub fn held_by<H: AsFd + Send + Sync + 'static>(
        self,
        hold: impl FnOnce(OwnedFd) -> io::Result<H>,
    ) -> Result<Self, ImageError> {
        // The lock belongs to what both descriptors refer to.
        let held = self.fd().try_clone_to_owned().and_then(hold);
        match held {
            Ok(file) => Ok(Self { file: Box::new(file), ..self }),
            Err(source) => Err(ImageError::Descriptor { source }),
        }
    }

    /// Whether a disk with blocks of `block` bytes can consist of it.
    pub fn check_blocks(&self, block: u32) -> Result<(), ImageError> {
        if self.len != 0 && self.len.is_multiple_of(block.into()) {
            return Ok(());
        }
        let path = self.path.clone();
        let what = match &path {
            Some(path) => format!("the disk image {}", path.display()),
            None => "a disk of memory".to_owned(),
        };
        Err(ImageError::Size { what, path, len: self.len, block })
    }

    /// Its size in bytes, when it was opened.
    pub fn size(&self) -> u64 {
        self.len
    }

    /// Writes are refused.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// The same bytes, for who puts them somewhere without a copy in between.
    pub(crate) fn part(&self, at: u64, len: usize) -> FilePart<'_> {
        let len = if self.check(at, len as u64).is_ok() { len } else { 0 };
        FilePart { file: self.fd(), offset: at, len, in_memory: self.in_memory }
    }

    /// Reads all of `data`. Where a file has shrunk there is nothing to read.
    pub fn read(&self, mut at: u64, mut data: &mut [u8]) -> io::Result<()> {
        self.check(at, data.len() as u64)?;
        while !data.is_empty() {
            match rustix::io::pread(self.fd(), &mut *data, at) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(done) => (at, data) = (at + done as u64, &mut data[done..]),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Writes all of `data`. What has shrunk is not made larger again.
    pub fn write(&self, at: u64, data: &[u8]) -> io::Result<()> {
        self.check_writable(at, data.len() as u64)?;
        self.put(at, data)
    }

    fn put(&self, mut at: u64, mut data: &[u8]) -> io::Result<()> {
        while !data.is_empty() {
            match rustix::io::pwrite(self.fd(), data, at) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(done) => (at, data) = (at + done as u64, &data[done..]),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// What was written survives a loss of power when this returns.
    pub fn flush(&self) -> io::Result<()> {
        if self.sealed || self.read_only {
            return Ok(());
        }
        Ok(rustix::fs::fdatasync(self.fd())?)
    }

    /// Makes `len` bytes zero.
    pub fn zero(&self, at: u64, len: u64) -> io::Result<()> {
        self.check_writable(at, len)?;
        if len == 0 {
            return Ok(());
        }
        // With the room that they have, without it, or as a file system does that knows neither.
        for kind in [FallocateFlags::ZERO_RANGE, FallocateFlags::PUNCH_HOLE] {
            match rustix::fs::fallocate(self.fd(), kind | FallocateFlags::KEEP_SIZE, at, len) {
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {}
                result => return Ok(result?),
            }
        }
        let mut done = 0;
        while done < len {
            let part = (len - done).min(ZEROS.len() as u64);
            self.put(at + done, &ZEROS[..part as usize])?;
            done += part;
        }
        Ok(())
    }

    /// Nobody needs what is in `len` bytes any more: they become zero, or stay as they are where that takes more than
    /// giving room back.
    pub fn discard(&self, at: u64, len: u64) -> io::Result<()> {
        self.check_writable(at, len)?;
        if len == 0 {
            return Ok(());
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(self.fd(), flags, at, len) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => Ok(()),
            result => Ok(result?),
        }
    }

    fn check(&self, at: u64, len: u64) -> io::Result<()> {
        let end = at.checked_add(len).filter(|end| *end <= self.len);
        end.map(drop).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    fn check_writable(&self, at: u64, len: u64) -> io::Result<()> {
        self.check(at, len)?;
        if self.read_only {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        if !self.sealed && length(self.fd())? < at + len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }
}

/// The size of a file or of a block device. Nobody uses the position.
fn length(file: BorrowedFd<'_>) -> Result<u64, Errno> {
    rustix::fs::seek(file, SeekFrom::End(0))
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use super::*;

    fn file(len: u64) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.img");
        File::create(&path).unwrap().set_len(len).unwrap();
        (dir, path)
    }

    #[test]
    fn what_is_written_is_read_from_files_and_from_memory() {
        let (_dir, path) = file(8192);
        for image in [Image::open(&path, false).unwrap(), Image::memory(8192).unwrap()] {
            image.write(4000, b"across blocks").unwrap();
            let mut data = [1; 15];
            image.read(3999, &mut data).unwrap();
            assert_eq!(&data, b"\0across blocks\0");
            image.flush().unwrap();
            image.zero(4000, 96).unwrap();
            image.read(3999, &mut data).unwrap();
            assert_eq!(data, [0; 15]);
            image.write(4000, &[7; 96]).unwrap();
            image.discard(4000, 96).unwrap();
            image.read(4000, &mut data).unwrap();
            assert!(data == [0; 15] || data == [7; 15]);
            assert!(image.read(8190, &mut [0; 3]).is_err(), "beyond its end");
            assert!(image.write(u64::MAX, &[0]).is_err());
            assert!(image.zero(0, 8193).is_err());
        }
        assert_eq!(fs::metadata(&path).unwrap().len(), 8192);
    }

    #[test]
    fn one_writes_or_many_read() {
        let (_dir, path) = file(512);
        let open = |read_only| Image::open(&path, read_only).unwrap();
        let (writer, other) = (open(false), open(false));
        // The lock goes where the descriptor goes.
        writer.lock().unwrap();
        let writer = writer.held_by(Ok).unwrap();
        for image in [&other, &open(true)] {
            let error = image.lock().unwrap_err().to_string();
            assert!(error.contains("disk.img is in use"), "{error}");
        }
        writer.unlock();
        other.lock().unwrap();
        drop(other);
        let readers = [open(true), open(true)];
        readers.iter().for_each(|reader| reader.lock().unwrap());
        assert!(writer.lock().is_err());
        let error = readers[0].write(0, &[1]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ReadOnlyFilesystem);
        assert!(readers[1].zero(0, 512).is_err());
        drop(readers);
        writer.lock().unwrap();
    }

    #[test]
    fn a_file_that_shrinks_gives_errors_and_stays_short() {
        let (_dir, path) = file(8192);
        let image = Image::open(&path, false).unwrap();
        File::options().write(true).open(&path).unwrap().set_len(4096).unwrap();
        assert!(image.read(4000, &mut [0; 200]).is_err());
        assert!(image.write(4000, &[0; 200]).is_err());
        assert!(image.zero(4000, 200).is_err());
        image.write(4000, &[1; 96]).unwrap();
        image.read(4000, &mut [0; 96]).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().len(), 4096);
    }

    #[test]
    fn what_is_no_disk_is_refused_with_its_name_and_what_to_do() {
        let (dir, path) = file(1000);
        let check = |image: Image| image.check_blocks(512).unwrap_err().to_string();
        let error = check(Image::open(&path, true).unwrap());
        assert!(error.contains("1000 bytes") && error.contains("truncate -s 1024"), "{error}");
        let error = check(Image::memory(0).unwrap());
        assert!(error.contains("memory = \"512\""), "{error}");
        Image::memory(512).unwrap().check_blocks(512).unwrap();
        let refused = |path: &Path| Image::open(path, true).err().unwrap().to_string();
        for read_only in [false, true] {
            let error = Image::open(dir.path(), read_only).err().unwrap().to_string();
            assert!(error.contains("neither a file nor a block device"), "{error}");
        }
        let error = refused(&dir.path().join("none.img"));
        assert!(error.contains("none.img") && error.contains("truncate"), "{error}");
    }
}
