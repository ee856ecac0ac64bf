//! Several processes: what one opened, others use.

mod common;

use std::ffi::c_int;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use common::*;
use host::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

/// Runs `run` in a forked child.
fn in_child(run: impl FnOnce()) -> Child {
    // SAFETY: the child runs `run` and leaves without unwinding into the harness.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0);
    if pid == 0 {
        let failed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err();
        // SAFETY: ends the child.
        unsafe { libc::_exit(c_int::from(failed)) };
    }
    Child(pid)
}

struct Child(c_int);

impl Child {
    /// Waits for it; whether it succeeded.
    fn wait(self) -> bool {
        let mut status = 0;
        // SAFETY: waits for our own child.
        assert_eq!(unsafe { libc::waitpid(self.0, &raw mut status, 0) }, self.0);
        libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0
    }
}

#[test]
fn a_child_uses_what_its_parent_opened() {
    let _one = setup();
    let before = live();
    let device = open();
    add(&device, 1).unwrap();
    let child = in_child(|| {
        assert_eq!(add(&device, 10), Ok(11));
        let mut on_heap = Box::new(100_u64);
        assert_eq!(ioctl(&device, ADD, &raw mut *on_heap as u64), Ok(7));
        assert_eq!(*on_heap, 111);
        assert_eq!(ioctl(&device, 0xdead, 0), Err(Errno::NOTTY));
        assert_eq!(ioctl(&device, ADD, 0), Err(Errno::FAULT));
        assert_eq!(ioctl(&device, ADD, 1 << 46), Err(Errno::FAULT));
    });
    assert!(child.wait());
    assert_eq!(add(&device, 1000), Ok(1111));
    drop(device);
    assert_eq!(live(), before, "all copies are closed: released at once");
}

#[test]
fn a_child_makes_new_files() {
    let _one = setup();
    let before = live();
    let device = open();
    let child = in_child(|| {
        let fd = ioctl(&device, CHILD, 1).unwrap();
        // SAFETY: a new descriptor.
        let made = unsafe { std::fs::File::from_raw_fd(fd) };
        assert_eq!(rustix::io::fcntl_getfd(&made), Ok(rustix::io::FdFlags::CLOEXEC));
        assert_eq!(add(&made, 3), Ok(3));
        assert_eq!(ioctl(&made, SAME, made.as_raw_fd() as u64), Ok(1));
        assert_eq!(ioctl(&made, SAME, device.as_raw_fd() as u64), Ok(0));
        assert_eq!(ioctl(&made, SAME, 0), Ok(2));
        assert_eq!(ioctl(&made, SAME, 9999), Err(Errno::BADF));
        let undone = ioctl(&made, UNDO, 0).unwrap();
        assert_eq!(ioctl_raw(undone, ADD, 0), Err(Errno::BADF));
        let link = std::fs::read_link(format!("/proc/self/fd/{fd}")).unwrap();
        assert_eq!(link.to_str(), Some("anon_inode:[counter]"));
        // Left to the end of the process.
        std::mem::forget(made);
    });
    assert!(child.wait());
    wait_live(before + 1);
    drop(device);
    assert_eq!(live(), before);
}

#[test]
fn a_child_reads_writes_and_polls() {
    let _one = setup();
    let mut device = open();
    let child = in_child(|| {
        let mut device = device.try_clone().unwrap();
        assert_eq!(device.write(b"hello").unwrap(), 5);
        let mut three = [0; 3];
        assert_eq!(device.read(&mut three).unwrap(), 3);
        assert_eq!(&three, b"hel");
    });
    assert!(child.wait());
    let readable = || {
        let mut poll = libc::pollfd { fd: device.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid pollfd.
        unsafe { libc::poll(&raw mut poll, 1, 0) };
        poll.revents & libc::POLLIN != 0
    };
    assert!(readable());
    let emptied = in_child(|| {
        let mut device = device.try_clone().unwrap();
        let mut all = [0; 9];
        assert_eq!(device.read(&mut all).unwrap(), 2);
        assert!(!readable());
    });
    assert!(emptied.wait());
    assert!(!readable());
    assert_eq!(device.read(&mut [0; 9]).unwrap(), 0);
}

#[test]
fn a_child_opens_its_parents_paths() {
    let _one = setup();
    let before = live();
    let device = open();
    let parent = std::process::id();
    let child = in_child(|| {
        let own = open();
        assert_eq!(add(&own, 4), Ok(4));
        assert_eq!(std::fs::metadata("/dev/counter").unwrap().len(), 0);
        // The parent answers for both.
        for pid in [parent, std::process::id()] {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
            assert!(status.ends_with(&format!("Patched:\t{pid} {parent}\n")), "{status}");
        }
        assert!(std::fs::metadata("/proc/self/cmdline").is_ok());
        assert_eq!(std::fs::read("/dev/counter-text").unwrap(), b"some text\n");
    });
    assert!(child.wait());
    wait_live(before + 1);
    drop(device);
}

#[test]
fn the_last_close_may_be_a_childs() {
    let _one = setup();
    let before = live();
    let device = open();
    let (mut ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let child = in_child(|| {
        let mut theirs = theirs.try_clone().unwrap();
        theirs.read_exact(&mut [0]).unwrap();
        assert_eq!(add(&device, 1), Ok(1), "served though the parent closed it");
        // SAFETY: the child's own copy.
        assert_eq!(unsafe { libc::close(device.as_raw_fd()) }, 0);
        theirs.write_all(b"x").unwrap();
        theirs.read_exact(&mut [0]).unwrap();
    });
    drop(device);
    assert_eq!(live(), before + 1);
    ours.write_all(b"x").unwrap();
    ours.read_exact(&mut [0]).unwrap();
    wait_live(before);
    ours.write_all(b"x").unwrap();
    assert!(child.wait());
}

#[test]
fn grandchildren_and_killed_children() {
    let _one = setup();
    let device = open();
    let child = in_child(|| {
        assert_eq!(add(&device, 1), Ok(1));
        let grandchild = in_child(|| assert_eq!(add(&device, 1), Ok(2)));
        assert!(grandchild.wait());
        assert_eq!(add(&device, 1), Ok(3));
    });
    assert!(child.wait());
    let sleeper = in_child(|| {
        let _ = ioctl(&device, SLEEP, 200);
    });
    std::thread::sleep(std::time::Duration::from_millis(50));
    // SAFETY: our own child, in the middle of its call.
    unsafe { libc::kill(sleeper.0, libc::SIGKILL) };
    assert!(!sleeper.wait());
    assert_eq!(add(&device, 1), Ok(4));
    let next = in_child(|| assert_eq!(add(&device, 1), Ok(5)));
    assert!(next.wait());
}

#[test]
fn a_stopped_child_blocks_nobody() {
    let _one = setup();
    let device = open();
    let stopped = in_child(|| {
        for _ in 0..1_000_000 {
            if ioctl(&device, CHILD, 1).is_err() {
                break;
            }
        }
    });
    std::thread::sleep(std::time::Duration::from_millis(20));
    // SAFETY: our own child.
    unsafe { libc::kill(stopped.0, libc::SIGSTOP) };
    let other = in_child(|| assert_eq!(add(&device, 1), Ok(1)));
    assert!(other.wait());
    // SAFETY: our own child.
    unsafe { libc::kill(stopped.0, libc::SIGKILL) };
    assert!(!stopped.wait());
}

#[test]
fn a_fork_without_handlers() {
    let _one = setup();
    let device = open();
    // SAFETY: a bare fork; the child leaves at once.
    let pid = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) };
    if pid == 0 {
        let good = add(&device, 5) == Ok(5);
        // SAFETY: ends the child.
        unsafe { libc::_exit(c_int::from(!good)) };
    }
    assert!(Child(pid as c_int).wait());
    assert_eq!(add(&device, 5), Ok(10));
}

#[test]
fn a_vfork_child_closes_only_its_own() {
    let _one = setup();
    let before = live();
    let device = open();
    let fd = device.as_raw_fd();
    let status = std::process::Command::new("/bin/true").status().unwrap();
    assert!(status.success());
    // SAFETY: what posix_spawn does: a child in our memory that closes and leaves.
    #[allow(deprecated)]
    unsafe {
        let pid = libc::vfork();
        if pid == 0 {
            let closed = libc::close(fd);
            libc::_exit(closed);
        }
        assert!(Child(pid).wait());
    }
    assert_eq!(add(&device, 6), Ok(6));
    drop(device);
    assert_eq!(live(), before);
}

/// What the program does that [`descriptors_survive_exec`] runs.
#[test]
#[ignore = "run by another test"]
fn after_exec() {
    let _one = setup();
    let fd = std::env::var("COUNTER_FD").expect("run by another test").parse().unwrap();
    // SAFETY: inherited.
    let device = unsafe { std::fs::File::from_raw_fd(fd) };
    assert_eq!(add(&device, 5), Ok(6));
    assert_eq!(add(&open(), 7), Ok(7), "a path of the same machine");
}

#[test]
fn descriptors_survive_exec() {
    let _one = setup();
    let device = open();
    add(&device, 1).unwrap();
    rustix::io::fcntl_setfd(&device, rustix::io::FdFlags::empty()).unwrap();
    // By posix_spawn: neither we nor our fork handlers see it.
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "after_exec", "--ignored"])
        .env("COUNTER_FD", device.as_raw_fd().to_string())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert_eq!(add(&device, 0), Ok(6));
}

/// What the program does that [`files_outlive_the_process_that_opened_them`] runs.
#[test]
#[ignore = "run by another test"]
fn open_and_leave() {
    let _one = setup();
    let leave = std::env::var("COUNTER_LEAVE").expect("run by another test");
    let device = open();
    add(&device, 1).unwrap();
    // SAFETY: forks a child that tells what it sees, and leaves.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        // Until the other process is gone.
        let _ = std::io::stdin().read(&mut [0]);
        let same = add(&device, 1);
        let made = ioctl(&device, CHILD, 1).map(|fd| ioctl_raw(fd, CAPABLE, 0).is_ok());
        let text = format!("seen: {same:?} {made:?} {:?}\n", add(&open(), 5));
        let _ = std::io::stdout().write_all(text.as_bytes());
        // SAFETY: ends the child.
        unsafe { libc::_exit(0) };
    }
    match &*leave {
        "exit" => std::process::exit(0),
        // SAFETY: ends this process.
        "_exit" => unsafe { libc::_exit(0) },
        "exec self" => {
            rustix::io::fcntl_setfd(&device, rustix::io::FdFlags::empty()).unwrap();
            let number = format!("COUNTER_FD={}\0", device.as_raw_fd());
            let program = c"/proc/self/exe".as_ptr();
            let args = [
                c"fork".as_ptr(),
                c"--exact".as_ptr(),
                c"uses_later".as_ptr(),
                c"--ignored".as_ptr(),
            ];
            let args = [&args[..], &[std::ptr::null()]].concat();
            // SAFETY: C strings and lists that end in null.
            unsafe {
                libc::execve(
                    program,
                    args.as_ptr(),
                    [number.as_ptr().cast(), std::ptr::null()].as_ptr(),
                )
            };
        }
        _ => {
            let name = c"/bin/true".as_ptr();
            // SAFETY: C strings and a list that ends in null.
            unsafe { libc::execv(name, [name, std::ptr::null()].as_ptr()) };
        }
    }
}

/// What that becomes if it is to become itself.
#[test]
#[ignore = "run by another test"]
fn uses_later() {
    let _one = setup();
    let fd = std::env::var("COUNTER_FD").expect("run by another test").parse().unwrap();
    // SAFETY: inherited.
    let device = unsafe { std::fs::File::from_raw_fd(fd) };
    assert_eq!(add(&device, 0).map(|sum| sum > 0), Ok(true));
}

#[test]
fn files_outlive_the_process_that_opened_them() {
    let _one = setup();
    for leave in ["exit", "_exit", "exec", "exec self"] {
        let mut opener = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "open_and_leave", "--ignored", "--nocapture"])
            .env("COUNTER_LEAVE", leave)
            .env("COUNTER_RUN", std::process::id().to_string())
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = opener.stdin.take();
        let mut stdout = opener.stdout.take().unwrap();
        assert!(opener.wait().unwrap().success());
        drop(stdin);
        let mut told = String::new();
        stdout.read_to_string(&mut told).unwrap();
        assert!(told.contains("seen: Ok(2) Ok(true) Ok(5)"), "{leave}: {told}");
    }
    // Whoever has taken care of its files goes with the last of them.
    let ours = format!("COUNTER_RUN={}\0", std::process::id());
    let of_ours = |process: std::fs::DirEntry| {
        std::fs::read_to_string(process.path().join("environ"))
            .is_ok_and(|environment| environment.contains(&ours))
    };
    while std::fs::read_dir("/proc").unwrap().flatten().any(of_ours) {
        std::thread::yield_now();
    }
}

#[test]
fn an_exec_that_fails_changes_nothing() {
    let _one = setup();
    let device = open();
    let name = c"/nonexistent".as_ptr();
    // SAFETY: C strings and a list that ends in null.
    let result = unsafe { libc::execv(name, [name, std::ptr::null()].as_ptr()) };
    assert_eq!((result, last_errno()), (-1, Errno::NOENT));
    let child = in_child(|| assert_eq!(add(&device, 1), Ok(1)));
    assert!(child.wait());
    assert_eq!(add(&device, 1), Ok(2));
    drop(device);
    wait_live(0);
}

fn send_fd(socket: &OwnedFd, fd: impl AsFd) {
    let mut header = Header::new();
    header.push(fd.as_fd().as_raw_fd());
    // SAFETY: a well-formed message.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), header.message(), 0) };
    assert_eq!(sent, 1);
}

fn receive_fd(socket: &OwnedFd) -> std::fs::File {
    let mut header = Header::new();
    // SAFETY: a well-formed message with room for one descriptor.
    let received = unsafe { libc::recvmsg(socket.as_raw_fd(), header.message(), 0) };
    assert_eq!(received, 1);
    // SAFETY: the descriptor just received.
    unsafe { std::fs::File::from_raw_fd(header.fd()) }
}

#[test]
fn descriptors_travel_in_messages() {
    let _one = setup();
    let before = live();
    let (a, b) =
        socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
    let device = open();
    add(&device, 1).unwrap();
    send_fd(&a, &device);
    drop(device);
    assert_eq!(live(), before + 1, "under way");
    let same = receive_fd(&b);
    assert_eq!(add(&same, 1), Ok(2));
    drop(same);
    assert_eq!(live(), before, "nobody holds it");
    // To a child that was forked before the file existed.
    let child = in_child(|| {
        let received = receive_fd(&b);
        assert_eq!(add(&received, 5), Ok(5));
    });
    let device = open();
    send_fd(&a, &device);
    drop(device);
    assert!(child.wait());
    wait_live(before);
}

#[test]
fn mappings_hold_their_guard() {
    let _one = setup();
    let device = open();
    let map = || {
        // SAFETY: a new mapping where the kernel likes.
        let at = unsafe {
            let prot = libc::PROT_READ | libc::PROT_WRITE;
            libc::mmap(std::ptr::null_mut(), 8192, prot, libc::MAP_SHARED, device.as_raw_fd(), 0)
        };
        assert_ne!(at, libc::MAP_FAILED);
        // SAFETY: mapped just now.
        let seen = unsafe { std::slice::from_raw_parts(at.cast::<u8>(), 6) };
        assert_eq!(seen, b"mapped");
        at
    };
    let mapped = || MAPPED.load(std::sync::atomic::Ordering::SeqCst);
    let at = map();
    assert_eq!(mapped(), 1);
    // SAFETY: the mapping made above, in halves.
    unsafe {
        assert_eq!(libc::munmap(at, 4096), 0);
        assert_eq!(mapped(), 1, "half of it remains");
        assert_eq!(libc::munmap(at.byte_add(4096), 4096), 0);
    }
    assert_eq!(mapped(), 0);
    // SAFETY: private mappings are refused by the device.
    let refused = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            4096,
            libc::PROT_READ,
            libc::MAP_PRIVATE,
            device.as_raw_fd(),
            0,
        )
    };
    assert_eq!((refused, last_errno()), (libc::MAP_FAILED, Errno::INVAL));
    let child = in_child(|| {
        map();
    });
    assert!(child.wait());
    while mapped() != 0 {
        std::thread::yield_now();
    }
}

/// A message of one byte with at most one descriptor.
struct Header {
    message: Box<libc::msghdr>,
    /// What the message points to.
    _parts: (Box<u8>, Box<libc::iovec>, Box<[u64; 4]>),
}

impl Header {
    fn new() -> Self {
        let mut byte = Box::new(7);
        let mut iov = Box::new(libc::iovec { iov_base: (&raw mut *byte).cast(), iov_len: 1 });
        let mut control = Box::new([0; 4]);
        // SAFETY: plain integers and pointers.
        let mut message: Box<libc::msghdr> = Box::new(unsafe { std::mem::zeroed() });
        message.msg_iov = &raw mut *iov;
        message.msg_iovlen = 1;
        message.msg_control = (&raw mut *control).cast();
        message.msg_controllen = 24;
        Self { message, _parts: (byte, iov, control) }
    }

    fn push(&mut self, fd: c_int) {
        // SAFETY: the control buffer holds one header and one descriptor.
        unsafe {
            let header = libc::CMSG_FIRSTHDR(&raw const *self.message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(4) as usize;
            libc::CMSG_DATA(header).cast::<c_int>().write_unaligned(fd);
        }
    }

    fn message(&mut self) -> *mut libc::msghdr {
        &raw mut *self.message
    }

    fn fd(&self) -> c_int {
        // SAFETY: the kernel filled the control buffer.
        unsafe {
            let header = libc::CMSG_FIRSTHDR(&raw const *self.message);
            assert!(!header.is_null());
            libc::CMSG_DATA(header).cast::<c_int>().read_unaligned()
        }
    }
}

#[test]
fn a_child_finds_the_trees_of_its_parent() {
    let _one = setup();
    // The parent has looked.
    drop(open());
    let read = || std::fs::read_to_string("/sys/class/counter/number").unwrap();
    assert!(in_child(|| assert_eq!(read(), "10:77\n")).wait());
    assert_eq!(read(), "10:77\n", "the child has ended, and left it");
}

#[test]
fn a_child_writes_an_attribute_of_its_parent_s() {
    const LINK: &str = "/sys/devices/counter/link";
    const DEVICE: &str = "/dev/counter-level";
    let _one = setup();
    let write = |text: &str| std::fs::write(LINK, text);
    // The child inherits a table in which the device is not there.
    assert!(!std::fs::exists(DEVICE).unwrap());
    assert!(
        in_child(|| {
            assert_eq!(write("no").unwrap_err().raw_os_error(), Some(libc::ERANGE));
            write("5").unwrap();
            assert!(std::fs::exists(DEVICE).unwrap() && std::fs::File::open(DEVICE).is_ok());
        })
        .wait()
    );
    assert_eq!(std::fs::read_to_string(LINK).unwrap(), "5\n");
    assert!(std::fs::exists(DEVICE).unwrap());
    write("0").unwrap();
    assert!(in_child(|| assert!(std::fs::File::open(DEVICE).is_err())).wait());
}

#[test]
#[cfg(target_arch = "x86_64")]
fn a_child_maps_registers_of_its_parent_s() {
    let _one = setup();
    let device = open();
    add(&device, 1).unwrap();
    let map = || {
        let (protection, shared) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        // SAFETY: a fresh mapping, of a page.
        unsafe {
            let null = std::ptr::null_mut();
            let at =
                libc::mmap(null, 4096, protection, shared, device.as_raw_fd(), REGISTERS as i64);
            assert_ne!(at, libc::MAP_FAILED);
            at.cast::<u32>()
        }
    };
    assert!(
        in_child(|| {
            let registers = map();
            // SAFETY: in the page.
            unsafe {
                registers.add(3).write_volatile(0x1234_5678);
                assert_eq!(registers.add(3).read_volatile(), 0x1234_5678);
            }
        })
        .wait()
    );
    let registers = map();
    // SAFETY: in the page.
    unsafe {
        assert_eq!(registers.add(3).read_volatile(), 0x1234_5678);
        libc::munmap(registers.cast(), 4096);
    }
}
