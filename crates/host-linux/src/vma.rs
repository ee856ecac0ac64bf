//! One mapping of an address space, asked for by address.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::ioctl::{Updater, ioctl, opcode};

use crate::fd::PrivateFd;

/// A mapping: `struct vm_area_struct`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Vma {
    pub(crate) range: Range<u64>,
    pub(crate) readable: bool,
    pub(crate) writable: bool,
    pub(crate) shared: bool,
    /// Offset of the mapping's first byte in its file.
    pub(crate) offset: u64,
    pub(crate) dev: (u32, u32),
    /// 0 for private anonymous memory.
    pub(crate) inode: u64,
}

/// `struct procmap_query` of `linux/fs.h`.
#[repr(C)]
#[derive(Debug, Default)]
struct ProcmapQuery {
    size: u64,
    query_flags: u64,
    query_addr: u64,
    vma_start: u64,
    vma_end: u64,
    vma_flags: u64,
    vma_page_size: u64,
    vma_offset: u64,
    inode: u64,
    dev_major: u32,
    dev_minor: u32,
    vma_name_size: u32,
    build_id_size: u32,
    vma_name_addr: u64,
    build_id_addr: u64,
}

const PROCMAP_QUERY: rustix::ioctl::Opcode = opcode::read_write::<ProcmapQuery>(b'f', 17);
const VMA_READABLE: u64 = 1;
const VMA_WRITABLE: u64 = 2;
const VMA_SHARED: u64 = 8;

/// Why there is no mapping to tell of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoVma {
    /// The address is not mapped.
    Hole,
    /// The address space is gone.
    Dead,
}

/// An open `/proc/PID/maps`: it names an address space, not a process, and
/// fails once that is gone.
#[derive(Debug)]
pub(crate) struct Maps {
    fd: PrivateFd,
    path: String,
    /// The kernel knows no PROCMAP_QUERY (before Linux 6.11).
    parse: AtomicBool,
    /// Mappings with no pages behind them, such as `[vvar]`.
    special: Vec<Range<u64>>,
}

impl Maps {
    pub(crate) fn open(pid: u32) -> io::Result<Self> {
        let path = format!("/proc/{pid}/maps");
        let mut special = Vec::new();
        for line in lines(&path)? {
            let line = line?;
            let name = line.split_ascii_whitespace().nth(5).unwrap_or("");
            if ["[vvar", "[vdso", "[vsyscall"].iter().any(|prefix| name.starts_with(prefix))
                && let Some(vma) = parse(&line)
            {
                special.push(vma.range);
            }
        }
        Ok(Self { fd: PrivateFd::new(open(&path)?)?, path, parse: AtomicBool::new(false), special })
    }

    /// The mapping that holds `va`: one system call.
    #[inline]
    pub(crate) fn query(&self, va: u64) -> Result<Vma, NoVma> {
        if self.parse.load(Ordering::Relaxed) {
            return self.search(|vma| vma.range.contains(&va));
        }
        let mut query = ProcmapQuery {
            size: size_of::<ProcmapQuery>() as u64,
            query_addr: va,
            ..ProcmapQuery::default()
        };
        // SAFETY: the opcode's argument is this structure, whose size field says
        // how much of it the kernel may write; no name or build id is asked for.
        let result = unsafe { ioctl(&self.fd, Updater::<PROCMAP_QUERY, _>::new(&mut query)) };
        match result {
            Ok(()) => {}
            Err(Errno::NOTTY) => {
                self.parse.store(true, Ordering::Relaxed);
                return self.query(va);
            }
            Err(Errno::NOENT) => return Err(NoVma::Hole),
            Err(_) => return Err(NoVma::Dead),
        }
        if query.inode == 0 && self.special.iter().any(|range| range.contains(&va)) {
            return Err(NoVma::Hole);
        }
        Ok(Vma {
            range: query.vma_start..query.vma_end,
            readable: query.vma_flags & VMA_READABLE != 0,
            writable: query.vma_flags & VMA_WRITABLE != 0,
            shared: query.vma_flags & VMA_SHARED != 0,
            offset: query.vma_offset,
            dev: (query.dev_major, query.dev_minor),
            inode: query.inode,
        })
    }

    /// Whether the address space still exists.
    pub(crate) fn is_alive(&self) -> bool {
        // No process maps its last page, so a living one answers Hole.
        self.query(u64::MAX) != Err(NoVma::Dead)
    }

    /// The first mapping that `pick` accepts, by reading the text.
    pub(crate) fn search(&self, pick: impl Fn(&Vma) -> bool) -> Result<Vma, NoVma> {
        let mut empty = true;
        for line in lines(&self.path).map_err(|_| NoVma::Dead)? {
            empty = false;
            if let Some(vma) = line.ok().as_deref().and_then(parse)
                && pick(&vma)
            {
                let special = self.special.contains(&vma.range);
                return if special { Err(NoVma::Hole) } else { Ok(vma) };
            }
        }
        Err(if empty { NoVma::Dead } else { NoVma::Hole })
    }
}

fn open(path: &str) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

fn lines(path: &str) -> io::Result<io::Lines<BufReader<File>>> {
    Ok(BufReader::new(File::from(open(path)?)).lines())
}

/// Parses a line of `/proc/PID/maps`.
fn parse(line: &str) -> Option<Vma> {
    let mut words = line.split_ascii_whitespace();
    let hex = |text: &str| u64::from_str_radix(text, 16).ok();
    let (start, end) = words.next()?.split_once('-')?;
    let flags = words.next()?.as_bytes();
    let offset = hex(words.next()?)?;
    let (major, minor) = words.next()?.split_once(':')?;
    Some(Vma {
        range: hex(start)?..hex(end)?,
        readable: flags.first()? == &b'r',
        writable: flags.get(1)? == &b'w',
        shared: flags.get(3)? == &b's',
        offset,
        dev: (hex(major)? as u32, hex(minor)? as u32),
        inode: words.next()?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ioctl_and_the_text_agree() {
        let maps = Maps::open(std::process::id()).unwrap();
        let on_stack = 0_u8;
        let on_heap = Box::new(0_u8);
        let places = [
            &raw const on_stack as u64,
            std::ptr::from_ref("in the executable").addr() as u64,
            std::ptr::from_ref(&*on_heap) as u64,
            16,
        ];
        for va in places {
            let asked = maps.query(va);
            let read = maps.search(|vma| vma.range.contains(&va));
            assert_eq!(asked, read, "{va:#x}");
        }
    }

    #[test]
    fn special_mappings_have_no_pages() {
        let maps = Maps::open(std::process::id()).unwrap();
        assert!(!maps.special.is_empty());
        for range in &maps.special {
            assert_eq!(maps.query(range.start), Err(NoVma::Hole));
        }
    }
}
