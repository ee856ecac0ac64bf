//! The uAPI as a client meets it: every call goes through the C library's
//! functions, which are softiommu's in this executable.

mod client;
mod memory;

use std::ffi::{c_int, c_ulong, c_void};
use std::fs::File;
use std::os::fd::AsRawFd;

use benches::{Goal, Race, Report};
use rustix::fs::MemfdFlags;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use softiommu::{Grant, Machine, Model};

use uapi::selftest::iommu_viommu_invalidate_selftest;

use crate::client::Iommu;

const PAGE: u64 = 4096;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Private anonymous memory.
struct Memory {
    at: *mut c_void,
    len: usize,
}

impl Memory {
    fn new(len: u64) -> Self {
        let (len, rw) = (len as usize, ProtFlags::READ | ProtFlags::WRITE);
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new mapping, wherever there is room.
        let at = unsafe { mmap_anonymous(std::ptr::null_mut(), len, rw, flags) };
        Self { at: at.expect("memory"), len }
    }

    fn va(&self) -> u64 {
        self.at as u64
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: ours alone; nobody has a reference into it.
        let _ = unsafe { munmap(self.at, self.len) };
    }
}

/// The plainest system call, made without the C library.
fn getppid() {
    std::hint::black_box(rustix::process::getppid());
}

/// Asks the kernel what is mapped at an address, as every map of private memory
/// has to: `PROCMAP_QUERY`, whose struct is 13 words, its own size and the address
/// among them.
fn procmap_query(maps: &File, va: u64) {
    const PROCMAP_QUERY: c_ulong = 0xc068_6611;
    let mut query = [0_u64; 13];
    (query[0], query[2]) = (size_of_val(&query) as u64, va);
    // SAFETY: the struct of this command, which tells its size and asks for
    // nothing to be written elsewhere.
    let result = unsafe { libc::ioctl(maps.as_raw_fd(), PROCMAP_QUERY, &raw mut query) };
    assert!(result == 0, "PROCMAP_QUERY, of Linux 6.11");
}

/// Mapping and unmapping with a domain attached.
fn map_unmap(report: &mut Report) {
    const COUNT: u64 = 10_000;
    const SYSCALL: &str = "getppid, a bare system call";
    let iommu = Iommu::open();
    let ioas = iommu.ioas();
    iommu.attach_mock(ioas);
    let memory = Memory::new(GIB);
    let file = rustix::fs::memfd_create("bench", MemfdFlags::CLOEXEC).expect("a memfd");
    rustix::fs::ftruncate(&file, PAGE).expect("a page");
    let maps = File::open("/proc/self/maps").expect("/proc");

    let pairs = |length: u64| {
        for _ in 0..COUNT {
            iommu.map(ioas, memory.va(), length, Some(GIB));
            iommu.unmap(ioas, GIB, length);
        }
    };
    let mut race = Race::new("IOMMU_IOAS_MAP + IOMMU_IOAS_UNMAP, one domain", COUNT);
    race.enter(SYSCALL, || (0..COUNT).for_each(|_| getppid()));
    race.enter("PROCMAP_QUERY, the kernel's part", || {
        (0..COUNT).for_each(|_| procmap_query(&maps, memory.va()));
    });
    race.enter("4 KiB, private memory", || pairs(PAGE));
    race.enter("2 MiB, private memory", || pairs(2 * MIB));
    race.enter("1 GiB, private memory", || pairs(GIB));
    race.enter("4 KiB of a memfd, MAP_FILE", || {
        for _ in 0..COUNT {
            iommu.map_file(ioas, file.as_raw_fd(), PAGE, GIB);
            iommu.unmap(ioas, GIB, PAGE);
        }
    });
    race.goal("4 KiB, private memory", Goal::Within(SYSCALL, 4.0));
    for name in [
        "PROCMAP_QUERY, the kernel's part",
        "2 MiB, private memory",
        "1 GiB, private memory",
        "4 KiB of a memfd, MAP_FILE",
    ] {
        race.goal(name, Goal::Compared(SYSCALL));
    }
    report.run(race);
}

/// Allocation of an aligned range, behind areas with holes that are too small.
fn allocation(report: &mut Report) {
    const COUNT: u64 = 10_000;
    const LENGTH: u64 = 16 * PAGE;
    let iommu = Iommu::open();
    let memory = Memory::new(LENGTH);
    let crowded = |areas: u64| {
        let ioas = iommu.ioas();
        for n in 0..areas {
            iommu.map(ioas, memory.va(), PAGE, Some(n * 2 * PAGE));
        }
        ioas
    };
    let (few, many) = (crowded(1000), crowded(1_000_000));
    let pairs = |ioas: u32| {
        for _ in 0..COUNT {
            let iova = iommu.map(ioas, memory.va(), LENGTH, None);
            iommu.unmap(ioas, iova, LENGTH);
        }
    };
    let mut race = Race::new("IOMMU_IOAS_MAP of 64 KiB anywhere + UNMAP, no domain", COUNT);
    race.enter("1000 live areas", || pairs(few));
    race.enter("1000000 live areas", || pairs(many));
    race.goal("1000000 live areas", Goal::Within("1000 live areas", 10.0));
    report.run(race);
}

type Ioctl = unsafe extern "C" fn(c_int, c_ulong, *mut c_int) -> c_int;
type Read = unsafe extern "C" fn(c_int, *mut c_void, usize) -> isize;

/// The C library's own function, whoever interposes it.
fn of_libc(name: &std::ffi::CStr) -> *mut c_void {
    // SAFETY: C strings; the library is loaded already and stays.
    let address = unsafe {
        let library = libc::dlopen(c"libc.so.6".as_ptr(), libc::RTLD_NOW | libc::RTLD_NOLOAD);
        libc::dlsym(library, name.as_ptr())
    };
    assert!(!address.is_null(), "{name:?} in libc.so.6");
    address
}

/// What the hooks add to calls that are none of our business.
fn foreign(report: &mut Report) {
    const COUNT: u64 = 50_000;
    const REAL: &str = "the C library's";
    const HOOK: &str = "the hook";
    let (reader, _writer) = std::io::pipe().expect("a pipe");
    let pipe = reader.as_raw_fd();
    // SAFETY: ioctl has this signature for commands with a pointer to int.
    let real = unsafe { std::mem::transmute::<*mut c_void, Ioctl>(of_libc(c"ioctl")) };
    // SAFETY: the same function as this executable's linker found it; variadic,
    // which for this argument is passed alike.
    let hook = unsafe { std::mem::transmute::<*const (), Ioctl>(libc::ioctl as *const ()) };
    assert!(!std::ptr::fn_addr_eq(real, hook), "ioctl is interposed");
    let run = move |ioctl: Ioctl| {
        let mut waiting = 0;
        for _ in 0..COUNT {
            // SAFETY: FIONREAD writes an int.
            let result = unsafe { ioctl(pipe, libc::FIONREAD, &raw mut waiting) };
            assert_eq!(result, 0);
        }
    };
    let mut race = Race::new("ioctl(FIONREAD) of a pipe", COUNT);
    race.enter(REAL, move || run(real));
    race.enter(HOOK, move || run(hook));
    race.goal(HOOK, Goal::Within(REAL, 1.2));
    report.run(race);

    let zero = File::open("/dev/zero").expect("/dev/zero");
    let fd = zero.as_raw_fd();
    // SAFETY: read has this signature.
    let real = unsafe { std::mem::transmute::<*mut c_void, Read>(of_libc(c"read")) };
    let hook: Read = libc::read;
    assert!(!std::ptr::fn_addr_eq(real, hook), "read is interposed");
    let run = move |read: Read| {
        let mut byte = 0_u8;
        for _ in 0..COUNT {
            // SAFETY: one byte, and room for it.
            let result = unsafe { read(fd, (&raw mut byte).cast(), 1) };
            assert_eq!(result, 1);
        }
    };
    let mut race = Race::new("read of a byte of /dev/zero", COUNT);
    race.enter(REAL, move || run(real));
    race.enter(HOOK, move || run(hook));
    race.goal(HOOK, Goal::Within(REAL, 1.2));
    report.run(race);
}

/// Invalidations of a vIOMMU, in batches; the times are per entry.
fn invalidate(report: &mut Report) {
    const ENTRIES: u64 = 1 << 14;
    let iommu = Iommu::open();
    let viommu = iommu.viommu();
    let entry = iommu_viommu_invalidate_selftest { flags: 0, vdev_id: 1, cache_id: 2 };
    let entries = vec![entry; 4096];
    let batches = |batch: usize| {
        for _ in 0..ENTRIES as usize / batch {
            iommu.invalidate(viommu, &entries[..batch]);
        }
    };
    let mut race = Race::new("IOMMU_HWPT_INVALIDATE on a vIOMMU, per entry", ENTRIES);
    race.enter("getppid, a bare system call", || (0..ENTRIES).for_each(|_| getppid()));
    race.enter("1 entry per call", || batches(1));
    race.enter("16 entries per call", || batches(16));
    race.enter("256 entries per call", || batches(256));
    race.enter("4096 entries per call", || batches(4096));
    report.run(race);
}

fn main() {
    // As root in the kernel: pinned memory is not limited.
    let machine = Machine { grant: vec![Grant::IpcLock], ..Machine::with(Model::Mock) };
    softiommu::install(machine).expect("the first machine");
    if memory::measured() {
        return;
    }
    let mut report = Report::new("uAPI", 9);
    map_unmap(&mut report);
    allocation(&mut report);
    invalidate(&mut report);
    foreign(&mut report);
    memory::areas(&mut report);
    memory::preload(&mut report);
    report.finish();
}
