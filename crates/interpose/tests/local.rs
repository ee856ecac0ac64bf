//! One process, no preloading: the standard library's and libc's calls arrive
//! here because this crate is linked in.

mod common;

use std::ffi::{CString, c_int};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use common::*;
use host::Errno;

fn readable_now(fd: &impl AsRawFd) -> bool {
    let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one valid pollfd.
    unsafe { libc::poll(&raw mut poll, 1, 0) };
    poll.revents & libc::POLLIN != 0
}

#[test]
fn open_ioctl_close() {
    let _one = setup();
    let before = live();
    let device = open();
    assert_eq!(live(), before + 1);
    assert_eq!(add(&device, 5), Ok(5));
    assert_eq!(add(&device, 6), Ok(11));
    let mut on_heap = Box::new(4_u64);
    assert_eq!(ioctl(&device, ADD, &raw mut *on_heap as u64), Ok(7));
    assert_eq!(*on_heap, 15);
    assert_eq!(ioctl(&device, 0xdead, 0), Err(Errno::NOTTY));
    assert_eq!(ioctl(&device, ADD, 0), Err(Errno::FAULT), "null");
    assert_eq!(ioctl(&device, ADD, 1 << 46), Err(Errno::FAULT), "a hole");
    drop(device);
    assert_eq!(live(), before, "close releases before it returns");
}

#[test]
fn every_event_is_an_edge() {
    let _one = setup();
    let mut device = open();
    // SAFETY: plain system calls on descriptors of ours, with a valid event.
    let (epoll, added) = unsafe {
        let epoll = libc::epoll_create1(libc::EPOLL_CLOEXEC);
        let events = (libc::EPOLLIN | libc::EPOLLET) as u32;
        let mut event = libc::epoll_event { events, u64: 0 };
        (epoll, libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, device.as_raw_fd(), &raw mut event))
    };
    assert_eq!(added, 0);
    let edges = || {
        let mut event = libc::epoll_event { events: 0, u64: 0 };
        // SAFETY: room for one event.
        unsafe { libc::epoll_wait(epoll, &raw mut event, 1, 0) }
    };
    assert_eq!(edges(), 0);
    for byte in *b"ab" {
        ioctl(&device, PUSH, u64::from(byte)).unwrap();
        assert_eq!((edges(), edges()), (1, 0), "also when nobody has read the one before");
    }
    assert_eq!(device.read(&mut [0; 9]).unwrap(), 2);
    assert!(!readable_now(&device));
    // SAFETY: ours, and not used again.
    unsafe { libc::close(epoll) };
}

#[test]
fn read_write_poll() {
    let _one = setup();
    let mut device = open();
    assert!(!readable_now(&device));
    assert_eq!(device.write(b"abc").unwrap(), 3);
    assert!(readable_now(&device));
    let mut two = [0; 2];
    assert_eq!(device.read(&mut two).unwrap(), 2);
    assert_eq!(&two, b"ab");
    assert!(readable_now(&device), "one byte is left");
    assert_eq!(device.read(&mut two).unwrap(), 1);
    assert!(!readable_now(&device));
    ioctl(&device, PUSH, u64::from(b'z')).unwrap();
    assert!(readable_now(&device));
    let parts = [std::io::IoSlice::new(b"1"), std::io::IoSlice::new(b"23")];
    assert_eq!(device.write_vectored(&parts).unwrap(), 3);
    let mut all = [0; 9];
    assert_eq!(device.read(&mut all).unwrap(), 4);
    assert_eq!(&all[..4], b"z123");
    // SAFETY: a bad buffer must fail, not fault.
    let result = unsafe { libc::write(device.as_raw_fd(), std::ptr::null(), 3) };
    assert_eq!((result, last_errno()), (-1, Errno::FAULT));
}

fn dup2(old: &impl AsRawFd, new: &impl AsRawFd) -> c_int {
    // SAFETY: descriptors of the test.
    unsafe { libc::dup2(old.as_raw_fd(), new.as_raw_fd()) }
}

#[test]
fn the_last_descriptor_releases() {
    let _one = setup();
    let before = live();
    let first = open();
    let second = first.try_clone().unwrap();
    // SAFETY: plain descriptor calls on descriptors of this test.
    let third = unsafe { std::fs::File::from_raw_fd(libc::dup(first.as_raw_fd())) };
    let spare = std::fs::File::open("/dev/null").unwrap();
    assert_eq!(dup2(&first, &spare), spare.as_raw_fd(), "another copy");
    drop(first);
    assert_eq!(add(&second, 1), Ok(1));
    drop(second);
    assert_eq!(add(&third, 1), Ok(2));
    drop(third);
    assert_eq!(live(), before + 1);
    assert_eq!(add(&spare, 1), Ok(3));
    let null = std::fs::File::open("/dev/null").unwrap();
    assert_eq!(dup2(&null, &spare), spare.as_raw_fd(), "replaces the last copy");
    assert_eq!(live(), before);
    assert_eq!(add(&spare, 1), Err(Errno::NOTTY), "now /dev/null");
}

#[test]
fn close_range_releases_and_spares_what_is_ours() {
    let _one = setup();
    let before = live();
    // SAFETY: moves descriptors of this test to numbers nothing else uses.
    let high = |fd: c_int| unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 5000) };
    let (a, b) = (open(), open());
    let keep = open();
    let (a2, b2) = (high(a.as_raw_fd()), high(b.as_raw_fd()));
    drop((a, b));
    assert_eq!(live(), before + 3);
    // SAFETY: closes those two and, were they not protected, private ones.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, 5000, u32::MAX, 0) };
    assert_eq!(closed, 0);
    assert_eq!(live(), before + 1);
    assert_eq!(add(&keep, 2), Ok(2));
    for fd in [a2, b2] {
        assert_eq!(ioctl_raw(fd, ADD, 0), Err(Errno::BADF));
    }
    drop(keep);
    assert_eq!(live(), before, "our end of the pair survived");
}

#[test]
fn files_made_by_an_ioctl() {
    let _one = setup();
    let before = live();
    let device = open();
    let fd = ioctl(&device, CHILD, 1).unwrap();
    // SAFETY: a new descriptor.
    let child = unsafe { std::fs::File::from_raw_fd(fd) };
    assert_eq!(add(&child, 3), Ok(3));
    assert_eq!(add(&device, 1), Ok(1));
    assert_eq!(ioctl(&child, SAME, child.as_raw_fd() as u64), Ok(1));
    assert_eq!(ioctl(&child, SAME, device.as_raw_fd() as u64), Ok(0));
    assert_eq!(ioctl(&child, SAME, 0), Ok(2));
    assert_eq!(ioctl(&child, SAME, 9999), Err(Errno::BADF));
    // SAFETY: asks for flags.
    assert_eq!(unsafe { libc::fcntl(fd, libc::F_GETFD) }, libc::FD_CLOEXEC);
    let undone = ioctl(&device, UNDO, 0).unwrap();
    // SAFETY: asks for flags.
    assert_eq!(unsafe { libc::fcntl(undone, libc::F_GETFD) }, -1);
    let link = std::fs::read_link(format!("/proc/self/fd/{fd}")).unwrap();
    assert_eq!(link.to_str(), Some("anon_inode:[counter]"));
    drop(device);
    assert_eq!(live(), before + 1);
    drop(child);
    assert_eq!(live(), before);
}

#[test]
fn what_stat_and_access_tell() {
    let _one = setup();
    let node = std::fs::metadata("/dev/counter").unwrap();
    assert!(node.file_type().is_char_device());
    assert_eq!((node.mode() & 0o7777, node.rdev()), (0o660, libc::makedev(10, 77)));
    let device = open();
    let opened = device.metadata().unwrap();
    assert_eq!(
        (opened.rdev(), opened.ino(), opened.mode()),
        (node.rdev(), node.ino(), node.mode())
    );
    let path = CString::new("/dev/counter").unwrap();
    // SAFETY: C strings and a zeroed structure.
    unsafe {
        assert_eq!(libc::access(path.as_ptr(), libc::R_OK | libc::W_OK), 0);
        assert_eq!(libc::access(path.as_ptr(), libc::X_OK), -1);
        let mut stat: libc::stat64 = std::mem::zeroed();
        assert_eq!(libc::fstat64(device.as_raw_fd(), &raw mut stat), 0);
        assert_eq!(stat.st_mode & libc::S_IFMT, libc::S_IFCHR);
    }
    assert_eq!(std::fs::canonicalize("/dev/counter").unwrap().to_str(), Some("/dev/counter"));
    let link = std::fs::read_link(format!("/proc/self/fd/{}", device.as_raw_fd())).unwrap();
    assert_eq!(link.to_str(), Some("/dev/counter"));
    assert!(std::fs::metadata("/dev/counter-none").is_err());
    assert_eq!(std::fs::metadata("/dev/counter-text").unwrap().len(), 10);
}

#[test]
fn text_and_patched_files() {
    let _one = setup();
    assert_eq!(std::fs::read("/dev/counter-text").unwrap(), b"some text\n");
    let _device = open();
    let me = std::process::id();
    let line = format!("Patched:\t{me} {me}\n");
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    assert!(status.starts_with("Name:") && status.ends_with(&line), "{status}");
    let (path, mode) = (CString::new("/proc/self/status").unwrap(), CString::new("r").unwrap());
    // SAFETY: C strings; the stream is closed once.
    unsafe {
        let stream = libc::fopen(path.as_ptr(), mode.as_ptr());
        assert!(!stream.is_null());
        let mut bytes = vec![0_u8; 65536];
        let n = libc::fread(bytes.as_mut_ptr().cast(), 1, bytes.len(), stream);
        libc::fclose(stream);
        assert!(String::from_utf8_lossy(&bytes[..n]).ends_with(&line));
    }
    assert!(std::fs::read("/proc/self/cmdline").is_ok());
}

#[test]
fn foreign_descriptors_are_untouched() {
    let _one = setup();
    let mut file = tempfile();
    file.write_all(b"kernel").unwrap();
    assert_eq!(ioctl(&file, ADD, 0), Err(Errno::NOTTY));
    let mut pair = std::io::pipe().unwrap();
    pair.1.write_all(b"x").unwrap();
    let mut byte = [0];
    pair.0.read_exact(&mut byte).unwrap();
    assert_eq!(&byte, b"x");
    // SAFETY: a descriptor that is not open.
    assert_eq!(unsafe { libc::close(7777) }, -1);
    assert_eq!(last_errno(), Errno::BADF);
}

fn tempfile() -> std::fs::File {
    rustix::fs::memfd_create("foreign", rustix::fs::MemfdFlags::CLOEXEC).unwrap().into()
}

#[test]
fn errno_survives_success() {
    let _one = setup();
    let device = open();
    let mut on_heap = Box::new(1_u64);
    // SAFETY: errno, and an ioctl of the test device.
    unsafe {
        *libc::__errno_location() = 77;
        libc::ioctl(device.as_raw_fd(), u64::from(ADD), &raw mut *on_heap);
        assert_eq!(*libc::__errno_location(), 77);
    }
}

#[test]
fn threads_hammer_the_table() {
    let _one = setup();
    let before = live();
    let shared = open();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..300 {
                    let own = open();
                    let copy = own.try_clone().unwrap();
                    drop(own);
                    assert_eq!(add(&copy, 2), Ok(2));
                    add(&shared, 1).unwrap();
                }
            });
        }
    });
    assert_eq!(add(&shared, 0), Ok(1200));
    drop(shared);
    assert_eq!(live(), before);
}

unsafe extern "C" {
    fn scandir(
        path: *const libc::c_char,
        list: *mut *mut *mut libc::dirent,
        filter: Option<extern "C" fn(*const libc::dirent) -> c_int>,
        compare: Option<extern "C" fn(*mut *const libc::dirent, *mut *const libc::dirent) -> c_int>,
    ) -> c_int;
}

#[test]
fn a_tree_is_found_where_programs_look_for_it() {
    use std::fs;
    use std::path::Path;
    const AT: &str = "/sys/class/counter";
    let _one = setup();
    let mut names: Vec<_> =
        fs::read_dir(AT).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["number", "other", "up"]);
    for name in names {
        assert_eq!(fs::read_to_string(Path::new(AT).join(name)).unwrap(), "10:77\n");
    }
    assert!(fs::metadata(AT).unwrap().is_dir());
    let link = format!("{AT}/up");
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(fs::read_link(&link).unwrap(), Path::new("../counter/number"));
    assert_eq!(fs::canonicalize(&link).unwrap(), Path::new("/sys/class/counter/number"));
    assert!(!fs::exists(format!("{AT}/nothing")).unwrap());
    assert!(!fs::exists("/sys/class/counters").unwrap(), "whole segments");
    // By C, and from a directory that is open.
    let directory = fs::File::open(AT).unwrap();
    // SAFETY: C strings, a descriptor of ours, and what the C library allocates.
    unsafe {
        let path = CString::new(format!("{AT}/number")).unwrap();
        assert_eq!(libc::access(path.as_ptr(), libc::R_OK), 0);
        let file = libc::fopen(path.as_ptr(), c"r".as_ptr());
        assert!(!file.is_null());
        assert_eq!(libc::fgetc(file), c_int::from(b'1'));
        libc::fclose(file);
        let mut list: *mut *mut libc::dirent = std::ptr::null_mut();
        let path = CString::new(AT).unwrap();
        let found = scandir(path.as_ptr(), &raw mut list, None, None);
        assert_eq!(found, 5, "with . and ..");
        for n in 0..found as usize {
            libc::free((*list.add(n)).cast());
        }
        libc::free(list.cast());
        let fd = libc::openat(directory.as_raw_fd(), c"other".as_ptr(), libc::O_RDONLY);
        let mut text = String::new();
        fs::File::from_raw_fd(fd).read_to_string(&mut text).unwrap();
        assert_eq!(text, "10:77\n");
    }
}

#[test]
fn an_attribute_is_written_by_all_its_names_and_a_device_comes_and_goes() {
    use std::fs::{self, File};
    use std::os::unix::fs::FileExt;
    const AT: &str = "/sys/devices/counter";
    const DEVICE: &str = "/dev/counter-level";
    let _one = setup();
    let write = |path: &str, text: &str| {
        // As a shell does it.
        let file = File::options().write(true).create(true).truncate(true).open(path);
        file.unwrap().write_all(text.as_bytes()).map_err(|error| error.raw_os_error().unwrap())
    };
    let level = || fs::read_to_string(format!("{AT}/level")).unwrap();
    assert_eq!((level().as_str(), write(&format!("{AT}/level"), "no")), ("0\n", Err(libc::ERANGE)));
    assert!(!fs::exists(DEVICE).unwrap());
    assert_eq!(File::open(DEVICE).unwrap_err().raw_os_error(), Some(libc::ENOENT));
    write(&format!("{AT}/link"), "7").unwrap();
    assert_eq!(level(), "7\n");
    assert!(fs::metadata(format!("{AT}/level")).unwrap().is_file());
    assert!(fs::metadata(DEVICE).unwrap().file_type().is_char_device());
    assert!(File::open(DEVICE).is_ok());
    // From a directory that is open; and one descriptor for both.
    let directory = File::open(AT).unwrap();
    // SAFETY: a C string, and a descriptor of ours.
    let mut file = unsafe {
        let (fd, name) = (directory.as_raw_fd(), c"level".as_ptr());
        File::from_raw_fd(libc::openat(fd, name, libc::O_RDWR))
    };
    let (mut text, mut byte) = (String::new(), [0]);
    file.read_to_string(&mut text).unwrap();
    file.write_all(b"0").unwrap();
    assert_eq!((text.as_str(), level().as_str()), ("7\n", "0\n"));
    assert_eq!((file.read(&mut byte).unwrap(), file.read_at(&mut byte, 0).unwrap()), (0, 1));
    assert_eq!((byte, file.read_at(&mut byte, 1 << 40).unwrap()), ([b'0'], 0));
    assert!(!fs::exists(DEVICE).unwrap());
    // By streams of the C library.
    let print = |text: &std::ffi::CStr| {
        // SAFETY: C strings, and a stream that is closed once.
        unsafe {
            let stream = libc::fopen(c"/sys/devices/counter/level".as_ptr(), c"w".as_ptr());
            assert!(!stream.is_null() && libc::fputs(text.as_ptr(), stream) >= 0);
            libc::fclose(stream)
        }
    };
    assert_eq!((print(c"3"), level().as_str()), (0, "3\n"));
    assert_eq!((print(c"no"), level().as_str()), (libc::EOF, "3\n"));
    // SAFETY: as above, and a buffer for a line.
    unsafe {
        let stream = libc::fopen(c"/sys/devices/counter/level".as_ptr(), c"r+".as_ptr());
        let mut line = [0_u8; 8];
        assert!(!libc::fgets(line.as_mut_ptr().cast(), 8, stream).is_null());
        assert_eq!((&line[..3], libc::fclose(stream)), (b"3\n\0".as_slice(), 0));
    }
}

#[test]
fn kvm_need_not_know_our_files() {
    const CREATE_VM: libc::c_ulong = 0xae01;
    const CREATE_DEVICE: libc::c_ulong = 0xc00c_aee0;
    const SET_DEVICE_ATTR: libc::c_ulong = 0x4018_aee1;
    let _one = setup();
    let device = open();
    let add = |to: &std::fs::File, file: c_int| {
        let file = Box::new(file);
        let attr = [1 << 32, 1, &raw const *file as u64];
        // SAFETY: the struct, with the address of a descriptor.
        match unsafe { libc::ioctl(to.as_raw_fd(), SET_DEVICE_ATTR, attr.as_ptr()) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error().raw_os_error().unwrap()),
        }
    };
    let null = std::fs::File::open("/dev/null").unwrap();
    assert_eq!(add(&null, device.as_raw_fd()), Ok(()));
    assert_eq!(add(&null, null.as_raw_fd()), Err(libc::ENOTTY), "the kernel's files are its own");
    // With a KVM, in the way that a VMM does it.
    let Ok(kvm) = std::fs::File::options().read(true).write(true).open("/dev/kvm") else { return };
    // SAFETY: a number, then a struct.
    unsafe {
        let vm = libc::ioctl(kvm.as_raw_fd(), CREATE_VM, 0);
        assert!(vm >= 0);
        let vm = std::fs::File::from_raw_fd(vm);
        let mut create = [4_u32, 0, 0];
        assert_eq!(libc::ioctl(vm.as_raw_fd(), CREATE_DEVICE, create.as_mut_ptr()), 0);
        let vfio = std::fs::File::from_raw_fd(create[1] as c_int);
        assert_eq!(add(&vfio, device.as_raw_fd()), Ok(()));
        assert!(add(&vfio, null.as_raw_fd()).is_err());
    }
}

/// The thread that watches files for others sees their end, too, and must not be the one who releases them.
#[test]
fn a_file_is_released_before_close_returns_every_time() {
    let _one = setup();
    let before = live();
    let mut late = 0;
    for _ in 0..20_000 {
        drop(open());
        if live() != before {
            late += 1;
            wait_live(before);
        }
    }
    // Whoever looks at `/proc/PID/fd` just then holds the file for a moment, as he would hold the kernel's.
    assert!(late < 10, "{late} were late");
}
