//! What devices see of the memory of real processes.

use std::ffi::c_int;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use host::{Access, Fault, FilePart, FilePinError, Mm, PAGE_SIZE, PhysRun};
use host_linux::Host;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap, mmap_anonymous, mprotect, munmap};

const READ: ProtFlags = ProtFlags::READ;
const BOTH: ProtFlags = ProtFlags::READ.union(ProtFlags::WRITE);

/// Where nobody else's mapping is: the kernel would fill holes that one test makes with what another asks for.
fn fresh() -> *mut std::ffi::c_void {
    static NEXT: AtomicUsize = AtomicUsize::new(1 << 44);
    std::ptr::without_provenance_mut(NEXT.fetch_add(1 << 30, Ordering::Relaxed))
}

/// A mapping of this test, unmapped on drop.
struct Map {
    at: *mut u8,
    len: usize,
}

impl Map {
    fn anonymous(pages: u64, flags: MapFlags) -> Self {
        let len = (pages * PAGE_SIZE) as usize;
        let flags = flags | MapFlags::FIXED_NOREPLACE;
        // SAFETY: a new mapping where there is none.
        let at = unsafe { mmap_anonymous(fresh(), len, BOTH, flags) }.unwrap();
        Self { at: at.cast(), len }
    }

    fn file(fd: impl AsFd, offset: u64, pages: u64, prot: ProtFlags, flags: MapFlags) -> Self {
        let len = (pages * PAGE_SIZE) as usize;
        let flags = flags | MapFlags::FIXED_NOREPLACE;
        // SAFETY: a new mapping where there is none.
        let at = unsafe { mmap(fresh(), len, prot, flags, fd, offset) }.unwrap();
        Self { at: at.cast(), len }
    }

    fn va(&self) -> u64 {
        self.at as u64
    }

    fn put(&self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= self.len);
        // SAFETY: inside the mapping, whose pages exist.
        unsafe { std::ptr::copy(bytes.as_ptr(), self.at.add(offset), bytes.len()) };
    }

    fn get<const N: usize>(&self, offset: usize) -> [u8; N] {
        assert!(offset + N <= self.len);
        // SAFETY: inside the mapping, whose pages exist.
        unsafe { self.at.add(offset).cast::<[u8; N]>().read_volatile() }
    }

    fn unmap_page(&self, page: u64) {
        // SAFETY: a page of this mapping.
        unsafe { munmap(self.at.add((page * PAGE_SIZE) as usize).cast(), PAGE_SIZE as usize) }
            .unwrap();
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: this mapping, or what remains of it.
        unsafe { munmap(self.at.cast(), self.len) }.unwrap();
    }
}

fn pin(mm: &Arc<dyn Mm>, va: u64, pages: u64, access: Access) -> Result<Vec<PhysRun>, Fault> {
    let mut runs = Vec::new();
    mm.pin(va, pages * PAGE_SIZE, access, &mut |run| runs.push(run))?;
    assert_eq!(runs.iter().map(|run| run.len).sum::<u64>(), pages * PAGE_SIZE);
    Ok(runs)
}

fn pin_file(
    host: &Host,
    fd: &OwnedFd,
    offset: u64,
    pages: u64,
) -> Result<Vec<PhysRun>, FilePinError> {
    let file = host.memory_file(fd.try_clone().unwrap());
    let mut runs = Vec::new();
    file.pin(offset, pages * PAGE_SIZE, &mut |run| runs.push(run))?;
    Ok(runs)
}

fn unpin(host: &Host, runs: Vec<PhysRun>) {
    for run in runs {
        host.phys().unpin(run);
    }
}

fn read<const N: usize>(host: &Host, pa: u64) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    host.phys().read(pa, &mut bytes).ok().map(|()| bytes)
}

fn memfd(pages: u64) -> OwnedFd {
    let fd = memfd_create("test", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    ftruncate(&fd, pages * PAGE_SIZE).unwrap();
    fd
}

#[test]
fn private_memory_is_its_own_address() {
    let host = Host::new().unwrap();
    let map = Map::anonymous(3, MapFlags::PRIVATE);
    let runs = pin(host.local_mm(), map.va(), 3, Access::Write).unwrap();
    assert_eq!(runs, [PhysRun { pa: map.va(), len: 3 * PAGE_SIZE }]);
    map.put(5, b"hello");
    assert_eq!(&read(&host, map.va() + 5).unwrap(), b"hello");
    host.phys().write(map.va() + 4094, b"across").unwrap();
    assert_eq!(&map.get(4094), b"across");
    let pa = map.va();
    unpin(&host, runs);
    drop(map);
    assert_eq!(read::<1>(&host, pa), None, "taken away: aborts");
    assert!(host.phys().write(pa, b"x").is_err());
}

#[test]
fn what_cannot_be_pinned() {
    let host = Host::new().unwrap();
    let mm = host.local_mm();
    let map = Map::anonymous(4, MapFlags::SHARED);
    map.unmap_page(2);
    assert!(pin(mm, map.va(), 4, Access::Read).is_err(), "a hole");
    assert_eq!(host.pinned_object_pages(), 0, "nothing stays pinned");
    let page = Map::anonymous(1, MapFlags::PRIVATE);
    // SAFETY: no reference to the page exists.
    unsafe { mprotect(page.at.cast(), PAGE_SIZE as usize, MprotectFlags::READ) }.unwrap();
    assert!(pin(mm, page.va(), 1, Access::Read).is_ok());
    assert!(pin(mm, page.va(), 1, Access::Write).is_err(), "read-only");
    // SAFETY: as above.
    unsafe { mprotect(page.at.cast(), PAGE_SIZE as usize, MprotectFlags::empty()) }.unwrap();
    assert!(pin(mm, page.va(), 1, Access::Read).is_err(), "no access");
    for (va, pages) in
        [(0, 1), (1 << 46, 1), (1 << 47, 1), (u64::MAX - 4095, 1), (1 << 12, 1 << 51)]
    {
        assert!(pin(mm, va, pages, Access::Read).is_err(), "{va:#x}");
    }
    let small = memfd(1);
    for flags in [MapFlags::SHARED, MapFlags::PRIVATE] {
        let beyond = Map::file(&small, 0, 2, BOTH, flags);
        assert!(pin(mm, beyond.va(), 1, Access::Write).is_ok());
        assert!(pin(mm, beyond.va(), 2, Access::Write).is_err(), "beyond the file");
    }
}

#[test]
fn a_hole_stays_a_hole_when_its_neighbour_is_pinned() {
    let host = Host::new().unwrap();
    let map = Map::anonymous(4, MapFlags::SHARED);
    map.unmap_page(2);
    map.unmap_page(3);
    // Our own mapping of the first half must not land in the second.
    assert!(pin(host.local_mm(), map.va(), 4, Access::Write).is_err());
    let runs = pin(host.local_mm(), map.va(), 2, Access::Write).unwrap();
    assert!(pin(host.local_mm(), map.va(), 4, Access::Write).is_err());
    unpin(&host, runs);
    assert_eq!(host.pinned_object_pages(), 0);
}

#[test]
fn two_views_of_a_page_have_one_address() {
    let host = Host::new().unwrap();
    let fd = memfd(8);
    let whole = Map::file(&fd, 0, 8, BOTH, MapFlags::SHARED);
    let part = Map::file(&fd, 2 * PAGE_SIZE, 3, READ, MapFlags::SHARED);
    let through_part = pin(host.local_mm(), part.va(), 3, Access::Read).unwrap();
    let through_whole = pin(host.local_mm(), whole.va(), 8, Access::Write).unwrap();
    let through_fd = pin_file(&host, &fd, 4 * PAGE_SIZE, 4).unwrap();
    assert_eq!((through_whole.len(), through_part.len(), through_fd.len()), (1, 1, 1));
    let base = through_whole[0].pa;
    assert_eq!(base % (2 << 20), 0, "huge leaves fit");
    assert_eq!(through_part[0].pa, base + 2 * PAGE_SIZE);
    assert_eq!(through_fd[0].pa, base + 4 * PAGE_SIZE);
    assert_eq!(host.pinned_object_pages(), 15);
    host.phys().write(base + 4 * PAGE_SIZE - 2, b"word").unwrap();
    assert_eq!(&part.get(2 * PAGE_SIZE as usize - 2), b"word");
    let copy = Map::file(&fd, 0, 8, BOTH, MapFlags::PRIVATE);
    let private = pin(host.local_mm(), copy.va(), 1, Access::Write).unwrap();
    assert_eq!(private[0].pa, copy.va(), "a private view is another page");
    for runs in [through_part, through_whole, through_fd] {
        unpin(&host, runs);
    }
    assert_eq!(host.pinned_object_pages(), 0);
    assert_eq!(read::<1>(&host, base), None);
}

#[test]
fn pinned_pages_outlive_the_mapping() {
    let host = Host::new().unwrap();
    for map in
        [Map::anonymous(2, MapFlags::SHARED), Map::file(memfd(2), 0, 2, BOTH, MapFlags::SHARED)]
    {
        map.put(PAGE_SIZE as usize, b"kept");
        let runs = pin(host.local_mm(), map.va(), 2, Access::Write).unwrap();
        drop(map);
        let pa = runs[0].pa + PAGE_SIZE;
        assert_eq!(&read(&host, pa).unwrap(), b"kept");
        host.phys().write(pa, b"more").unwrap();
        assert_eq!(&read(&host, pa).unwrap(), b"more");
        // In parts, as an unmap of a part gives them back.
        host.phys().unpin(PhysRun { pa: runs[0].pa, len: PAGE_SIZE });
        assert_eq!(&read(&host, pa).unwrap(), b"more");
        host.phys().unpin(PhysRun { pa, len: PAGE_SIZE });
        assert_eq!(read::<1>(&host, pa), None);
    }
}

#[test]
fn truncation_aborts() {
    let host = Host::new().unwrap();
    let fd = memfd(4);
    let runs = pin_file(&host, &fd, 0, 4).unwrap();
    let pa = runs[0].pa;
    assert_eq!(read(&host, pa + 3 * PAGE_SIZE), Some([0; 4]));
    ftruncate(&fd, PAGE_SIZE).unwrap();
    assert_eq!(read::<4>(&host, pa + 3 * PAGE_SIZE), None);
    assert!(host.phys().write(pa + 3 * PAGE_SIZE, b"x").is_err());
    assert_eq!(read(&host, pa), Some([0; 4]));
    assert_eq!(pin_file(&host, &fd, 0, 2), Err(FilePinError::BeyondEnd));
    ftruncate(&fd, 8 << 20).unwrap();
    let grown = pin_file(&host, &fd, 0, 2048).unwrap();
    assert_eq!(grown[0].pa, pa, "known pages keep their address");
    host.phys().write(grown.last().unwrap().pa, b"grown").unwrap();
    unpin(&host, grown);
    unpin(&host, runs);
}

#[test]
fn bytes_of_a_file_go_to_memory_that_is_there() {
    let host = Host::new().unwrap();
    let from = memfd(4);
    rustix::io::pwrite(&from, b"bytes", PAGE_SIZE - 2).unwrap();
    let part = |offset: u64, len: u64, in_memory: bool| FilePart {
        file: from.as_fd(),
        offset,
        len: len as usize,
        in_memory,
    };
    let all = part(0, 3 * PAGE_SIZE, true);
    let (sealed, loose) = (memfd(3), memfd(3));
    rustix::fs::fcntl_add_seals(&sealed, rustix::fs::SealFlags::SHRINK).unwrap();
    let private = Map::anonymous(3, MapFlags::PRIVATE);
    let mut runs = pin(host.local_mm(), private.va(), 3, Access::Write).unwrap();
    for fd in [&sealed, &loose] {
        runs.extend(pin_file(&host, fd, 0, 3).unwrap());
    }
    let phys = host.phys();
    for run in &runs {
        assert_eq!(phys.write_from(run.pa, all), all.len);
        assert_eq!(&read(&host, run.pa + PAGE_SIZE - 2).unwrap(), b"bytes");
        assert_eq!(phys.write_from(run.pa + 1, part(4 * PAGE_SIZE - 8, 100, true)), 8, "its end");
        assert_eq!(phys.write_from(run.pa, part(4 * PAGE_SIZE, 1, true)), 0, "beyond it");
    }
    // What is taken away, or never was there, gets nothing; no signal.
    private.unmap_page(1);
    ftruncate(&loose, PAGE_SIZE).unwrap();
    for at in [runs[0].pa, runs[2].pa] {
        assert_eq!(phys.write_from(at + PAGE_SIZE, part(0, PAGE_SIZE, true)), 0);
        assert_eq!(phys.write_from(at, all), PAGE_SIZE as usize);
    }
    assert_eq!(phys.write_from(1 << 46, all), 0);
    assert_eq!(phys.write_from(u64::MAX, all), 0);
    assert_eq!(phys.write_from(runs[1].pa + 3 * PAGE_SIZE, all), 0);
    // A disk is not waited for; what has just been written is there without that.
    let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("part of a disk");
    std::fs::write(&path, b"from a disk").unwrap();
    let disk = std::fs::File::open(path).unwrap();
    let part_of_disk = FilePart { file: disk.as_fd(), offset: 0, len: 11, in_memory: false };
    let moved = phys.write_from(runs[1].pa, part_of_disk);
    assert_eq!(read::<11>(&host, runs[1].pa).unwrap()[..moved], b"from a disk"[..moved]);
    assert!([0, 11].contains(&moved), "a file system may lack that: {moved}");
    unpin(&host, runs);

    let constant = std::hint::black_box(&CONSTANT).as_ptr() as u64;
    assert_eq!(phys.write_from(constant, part(0, 5, true)), 0, "read-only");
    let child = Child::new();
    let mm = host.mm_of(child.pid as u32).unwrap();
    let theirs = pin(&mm, private.va(), 1, Access::Write).unwrap();
    assert_eq!(phys.write_from(theirs[0].pa, all), 0, "not ours: the long way");
    unpin(&host, theirs);
}

#[test]
fn other_files_hold_no_memory() {
    let host = Host::new().unwrap();
    let (pipe, _other) = rustix::pipe::pipe().unwrap();
    let null: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
    let exe: OwnedFd = std::fs::File::open("/proc/self/exe").unwrap().into();
    for fd in [pipe, null, exe] {
        assert_eq!(pin_file(&host, &fd, 0, 1), Err(FilePinError::NotMemory));
    }
    assert_eq!(pin_file(&host, &memfd(1), u64::MAX - 4095, 1), Err(FilePinError::BeyondEnd));
}

#[test]
fn allocations_are_contiguous_and_shared() {
    let host = Host::new().unwrap();
    let allocation = host.phys().alloc(3 << 20).unwrap();
    let run = allocation.run();
    assert_eq!((run.len, run.pa % (4 << 20)), (3 << 20, 0));
    assert_eq!(read(&host, run.pa + run.len - 8), Some([0; 8]));
    let map = Map::file(allocation.fd().unwrap(), 0, 768, BOTH, MapFlags::SHARED);
    map.put(PAGE_SIZE as usize, b"12345678");
    assert_eq!(&read(&host, run.pa + PAGE_SIZE).unwrap(), b"12345678");
    host.phys().write(run.pa, &7_u64.to_ne_bytes()).unwrap();
    assert_eq!(map.get(0), 7_u64.to_ne_bytes());
    let again = pin(host.local_mm(), map.va(), 768, Access::Write).unwrap();
    assert_eq!(again, [run]);
    unpin(&host, again);
    drop(allocation);
    assert_eq!(read::<1>(&host, run.pa), None);
    assert!(host.phys().alloc(0).is_none());
    assert!(host.phys().alloc(u64::MAX).is_none());
}

static CONSTANT: [u8; 5] = *b"const";

#[test]
fn copies_fault_instead_of_crashing() {
    let host = Host::new().unwrap();
    let mm = host.local_mm();
    let mut on_stack = *b"stack";
    let on_heap = b"heap!".to_vec();
    let mut buf = [0; 5];
    mm.copy_from_user(on_stack.as_ptr() as u64, &mut buf).unwrap();
    assert_eq!(&buf, b"stack");
    mm.copy_to_user(on_stack.as_mut_ptr() as u64, b"STACK").unwrap();
    assert_eq!(&std::hint::black_box(on_stack), b"STACK");
    mm.copy_from_user(on_heap.as_ptr() as u64, &mut buf).unwrap();
    assert_eq!(&buf, b"heap!");
    for va in [0, 1, 1 << 46, u64::MAX - 2, u64::MAX] {
        assert!(mm.copy_from_user(va, &mut buf).is_err(), "{va:#x}");
        assert!(mm.copy_to_user(va, &buf).is_err(), "{va:#x}");
    }
    let constant = std::hint::black_box(&CONSTANT).as_ptr() as u64;
    assert!(mm.copy_to_user(constant, b"other").is_err(), "read-only");
    mm.copy_from_user(constant, &mut buf).unwrap();
    assert_eq!(&buf, b"const");
}

/// Forks a child that waits until it is told to leave.
struct Child {
    pid: c_int,
    stop: Option<OwnedFd>,
}

impl Child {
    fn new() -> Self {
        let (wait, stop) = rustix::pipe::pipe().unwrap();
        // SAFETY: the child only waits and leaves.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0);
        if pid == 0 {
            // SAFETY: the child's own copies; ends the child.
            unsafe {
                libc::close(std::os::fd::AsRawFd::as_raw_fd(&stop));
                let mut byte = 0_u8;
                libc::read(std::os::fd::AsRawFd::as_raw_fd(&wait), (&raw mut byte).cast(), 1);
                libc::_exit(0);
            }
        }
        Self { pid, stop: Some(stop) }
    }

    fn end(&mut self) {
        if self.stop.take().is_some() {
            // SAFETY: our own child.
            unsafe { libc::waitpid(self.pid, std::ptr::null_mut(), 0) };
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.end();
    }
}

#[test]
fn a_childs_memory() {
    let host = Host::new().unwrap();
    let shared = Map::anonymous(4, MapFlags::SHARED);
    let private = Map::anonymous(4, MapFlags::PRIVATE);
    shared.put(0, b"shared");
    private.put(0, b"before");
    let mut child = Child::new();
    private.put(0, b"after!");
    let mm = host.mm_of(child.pid as u32).unwrap();
    let mut buf = [0; 6];
    mm.copy_from_user(private.va(), &mut buf).unwrap();
    assert_eq!(&buf, b"before", "its own copy");
    mm.copy_to_user(private.va() + 8, b"x").unwrap();
    assert!(mm.copy_from_user(0, &mut buf).is_err());

    let theirs = pin(&mm, shared.va(), 4, Access::Write).unwrap();
    let ours = pin(host.local_mm(), shared.va(), 4, Access::Write).unwrap();
    assert_eq!(theirs, ours, "one page, one address, in both processes");
    let copy = pin(&mm, private.va(), 4, Access::Write).unwrap();
    assert_ne!(copy[0].pa, private.va(), "not our page");
    assert_eq!(&read(&host, copy[0].pa).unwrap(), b"before");
    assert!(pin(&mm, 1 << 46, 1, Access::Read).is_err());

    mm.counters().pinned_vm.store(9, std::sync::atomic::Ordering::Relaxed);
    let again = host.mm_of(child.pid as u32).unwrap();
    assert_eq!(again.counters().pinned_vm.load(std::sync::atomic::Ordering::Relaxed), 9);
    assert!(host.known_mm(child.pid as u32).is_some());
    assert!(host.known_mm(1).is_none());

    child.end();
    unpin(&host, ours);
    drop(shared);
    assert_eq!(&read(&host, theirs[0].pa).unwrap(), b"shared", "outlives the child");
    assert_eq!(read::<1>(&host, copy[0].pa), None, "went with the child");
    assert!(pin(&mm, private.va(), 1, Access::Read).is_err());
    assert!(mm.copy_from_user(private.va(), &mut buf).is_err());
    assert!(host.known_mm(child.pid as u32).is_none());
    unpin(&host, theirs);
    unpin(&host, copy);
    assert_eq!(host.pinned_object_pages(), 0);
}

#[test]
fn words_of_memory_that_cannot_shrink_are_exchanged_in_one_piece() {
    let host = Host::new().unwrap();
    let sealed = memfd(1);
    rustix::fs::fcntl_add_seals(&sealed, rustix::fs::SealFlags::SHRINK).unwrap();
    let runs = pin_file(&host, &sealed, 0, 1).unwrap();
    let (phys, pa) = (host.phys(), runs[0].pa);
    phys.write(pa + 8, &5_u64.to_le_bytes()).unwrap();
    assert_eq!(phys.compare_exchange(pa + 8, 4, 6), Ok(5), "another value: nothing happens");
    assert_eq!(phys.compare_exchange(pa + 8, 5, 6), Ok(5));
    assert_eq!(phys.load(pa + 8), Ok(6));
    assert!(phys.compare_exchange(pa + 4, 0, 1).is_err(), "misaligned");
    assert!(phys.compare_exchange(pa + PAGE_SIZE, 0, 1).is_err(), "beyond");
    unpin(&host, runs);

    let loose = memfd(1);
    let runs = pin_file(&host, &loose, 0, 1).unwrap();
    assert_eq!(phys.load(runs[0].pa), Ok(0));
    assert!(phys.compare_exchange(runs[0].pa, 0, 1).is_err(), "it might be truncated meanwhile");
    unpin(&host, runs);
}

#[test]
fn what_is_the_machine_s_own_is_no_memory_of_a_process() {
    let host = Host::new().unwrap();
    // As many as it takes to fill all there is; other tests have some of it.
    let files: Vec<_> = (0..4).map(|_| memfd((1 << 45) >> 12)).collect();
    let mut all = Vec::new();
    for runs in files.iter().filter_map(|fd| pin_file(&host, fd, (1 << 45) - PAGE_SIZE, 1).ok()) {
        assert!(runs.iter().all(|run| run.pa + run.len <= host::MACHINE_START));
        all.extend(runs);
    }
    assert!(all.len() < files.len(), "there is less");
    assert!(!all.is_empty());
    unpin(&host, all);
}
