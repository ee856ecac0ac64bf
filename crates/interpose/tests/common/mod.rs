//! A device for the tests: a counter that can be added to, made and read.
#![allow(dead_code, unreachable_pub, reason = "each test file uses a part of it")]

use std::collections::VecDeque;
use std::ffi::c_int;
use std::fs::File as StdFile;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Once};

use host::{
    Access, Capability, CharDevice, Errno, File, FileMode, MappedMemory, MmapBacking, MmapRequest,
    Notify, OpenFile, PhysRun, Task,
};
use interpose::{Node, PathTable, Prefixes, Tree};

pub const ADD: u32 = 0x4008_7001;
pub const CHILD: u32 = 0x7002;
pub const PUSH: u32 = 0x7003;
pub const SAME: u32 = 0x7004;
pub const PIN: u32 = 0x7005;
pub const CAPABLE: u32 = 0x7006;
pub const UNDO: u32 = 0x7007;
pub const SLEEP: u32 = 0x7008;

/// From this offset on, two pages of registers can be mapped.
pub const REGISTERS: u64 = 1 << 20;

/// Open files alive.
pub static LIVE: AtomicI64 = AtomicI64::new(0);
/// Mappings alive.
pub static MAPPED: AtomicI64 = AtomicI64::new(0);

pub struct Device;

impl CharDevice for Device {
    fn open(&self, _: &dyn Task) -> Result<Arc<dyn File>, Errno> {
        Ok(Counter::new(FileMode::CharDevice { major: 10, minor: 77 }))
    }

    fn mode(&self) -> FileMode {
        FileMode::CharDevice { major: 10, minor: 77 }
    }
}

/// Whether [`Sometimes`] is there.
static PRESENT: AtomicBool = AtomicBool::new(false);

/// A device that comes and goes.
pub struct Sometimes;

impl CharDevice for Sometimes {
    fn open(&self, task: &dyn Task) -> Result<Arc<dyn File>, Errno> {
        Device.open(task)
    }

    fn mode(&self) -> FileMode {
        Device.mode()
    }

    fn exists(&self) -> bool {
        PRESENT.load(Ordering::SeqCst)
    }
}

pub struct Counter {
    mode: FileMode,
    value: AtomicU64,
    queue: Mutex<VecDeque<u8>>,
    notify: Mutex<Option<Notify>>,
    registers: Bank,
}

/// Registers that hold what is written to them, and count accesses.
#[derive(Default)]
pub struct Bank {
    bytes: Mutex<Vec<u8>>,
    accesses: AtomicU64,
}

/// The count of accesses, which can only be read.
pub const ACCESSES: u64 = 0x1ff8;

impl Bank {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if offset == ACCESSES {
            data.copy_from_slice(&self.accesses.load(Ordering::SeqCst).to_le_bytes()[..data.len()]);
            return;
        }
        self.accesses.fetch_add(1, Ordering::SeqCst);
        let bytes = self.bytes.lock().unwrap();
        for (byte, at) in data.iter_mut().zip(offset as usize..) {
            *byte = bytes.get(at).copied().unwrap_or(0);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.accesses.fetch_add(1, Ordering::SeqCst);
        let mut bytes = self.bytes.lock().unwrap();
        let end = offset as usize + data.len();
        if bytes.len() < end {
            bytes.resize(end, 0);
        }
        bytes[offset as usize..end].copy_from_slice(data);
    }
}

impl Counter {
    fn new(mode: FileMode) -> Arc<Self> {
        LIVE.fetch_add(1, Ordering::SeqCst);
        Arc::new(Self {
            mode,
            value: AtomicU64::new(0),
            queue: Mutex::default(),
            notify: Mutex::default(),
            registers: Bank::default(),
        })
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        LIVE.fetch_sub(1, Ordering::SeqCst);
    }
}

struct Mapped;

impl Drop for Mapped {
    fn drop(&mut self) {
        MAPPED.fetch_sub(1, Ordering::SeqCst);
    }
}

impl File for Counter {
    fn mode(&self) -> FileMode {
        self.mode
    }

    fn ioctl(&self, task: &dyn Task, cmd: u32, arg: u64) -> Result<i32, Errno> {
        match cmd {
            // Adds the u64 at `arg`, puts the sum there.
            ADD => {
                let mut word = [0; 8];
                task.mm().copy_from_user(arg, &mut word).map_err(|_| Errno::FAULT)?;
                let delta = u64::from_ne_bytes(word);
                let sum = self.value.fetch_add(delta, Ordering::SeqCst) + delta;
                task.mm().copy_to_user(arg, &sum.to_ne_bytes()).map_err(|_| Errno::FAULT)?;
                Ok(7)
            }
            // A new file.
            CHILD => task.install(Counter::new(FileMode::AnonInode("[counter]")), arg != 0),
            // Makes a byte readable.
            PUSH => {
                self.queue.lock().unwrap().push_back(arg as u8);
                if let Some(notify) = &*self.notify.lock().unwrap() {
                    notify();
                }
                Ok(0)
            }
            // Whether `arg` is a descriptor of this very file: 1, of another: 0, a kernel file: 2.
            SAME => Ok(match task.file(arg as i32)? {
                OpenFile::Emulated(other) => {
                    i32::from(std::ptr::addr_eq(Arc::as_ptr(&other), std::ptr::from_ref(self)))
                }
                OpenFile::Kernel(_) => 2,
            }),
            // Pins the page at `arg` and gives it back.
            PIN => {
                let mut runs: Vec<PhysRun> = Vec::new();
                let pinned = task.mm().pin(arg, 4096, Access::Write, &mut |run| runs.push(run));
                pinned.map_err(|_| Errno::FAULT)?;
                Ok(runs.len() as i32)
            }
            CAPABLE => Ok(i32::from(task.capable(Capability::IpcLock))),
            UNDO => {
                let fd = task.install(Counter::new(FileMode::AnonInode("[undone]")), true)?;
                task.uninstall(fd);
                Ok(fd)
            }
            SLEEP => {
                std::thread::sleep(std::time::Duration::from_millis(arg));
                Ok(0)
            }
            _ => Err(Errno::NOTTY),
        }
    }

    fn read(
        &self,
        task: &dyn Task,
        buf: u64,
        len: usize,
        pos: Option<u64>,
    ) -> Result<usize, Errno> {
        if let Some(offset) = pos.and_then(|pos| pos.checked_sub(REGISTERS)) {
            let mut data = vec![0; len];
            self.registers.read(offset, &mut data);
            task.mm().copy_to_user(buf, &data).map_err(|_| Errno::FAULT)?;
            return Ok(len);
        }
        if pos.is_some() {
            return Err(Errno::SPIPE);
        }
        let mut queue = self.queue.lock().unwrap();
        let n = len.min(queue.len());
        let bytes: Vec<u8> = queue.iter().take(n).copied().collect();
        task.mm().copy_to_user(buf, &bytes).map_err(|_| Errno::FAULT)?;
        queue.drain(..n);
        Ok(n)
    }

    fn write(
        &self,
        task: &dyn Task,
        buf: u64,
        len: usize,
        pos: Option<u64>,
    ) -> Result<usize, Errno> {
        if let Some(offset) = pos.and_then(|pos| pos.checked_sub(REGISTERS)) {
            let mut data = vec![0; len];
            task.mm().copy_from_user(buf, &mut data).map_err(|_| Errno::FAULT)?;
            self.registers.write(offset, &data);
            return Ok(len);
        }
        if pos.is_some() {
            return Err(Errno::SPIPE);
        }
        let mut bytes = vec![0; len];
        task.mm().copy_from_user(buf, &mut bytes).map_err(|_| Errno::FAULT)?;
        self.queue.lock().unwrap().extend(bytes);
        if let Some(notify) = &*self.notify.lock().unwrap() {
            notify();
        }
        Ok(len)
    }

    fn mmap(&self, _: &dyn Task, request: MmapRequest) -> Result<MmapBacking, Errno> {
        if !request.shared {
            return Err(Errno::INVAL);
        }
        if request.offset >= REGISTERS {
            MAPPED.fetch_add(1, Ordering::SeqCst);
            return Ok(MmapBacking { memory: MappedMemory::Registers, guard: Box::new(Mapped) });
        }
        let fd = rustix::fs::memfd_create("counter", rustix::fs::MemfdFlags::CLOEXEC)?;
        rustix::fs::ftruncate(&fd, request.len)?;
        rustix::io::pwrite(&fd, b"mapped", 0)?;
        MAPPED.fetch_add(1, Ordering::SeqCst);
        Ok(MmapBacking { memory: MappedMemory::File { fd, offset: 0 }, guard: Box::new(Mapped) })
    }

    fn readable(&self) -> bool {
        !self.queue.lock().unwrap().is_empty()
    }

    fn set_notify(&self, notify: Notify) {
        *self.notify.lock().unwrap() = Some(notify);
    }
}

/// Puts the device in place. Tests of one process run one at a time: they count
/// what is alive.
pub fn setup() -> MutexGuard<'static, ()> {
    static ONCE: Once = Once::new();
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    ONCE.call_once(|| {
        let prefixes = Prefixes {
            build: &["/dev/counter", "/sys/class/counter", "/sys/devices/counter"],
            if_built: &["/proc/"],
            relative: &["level"],
        };
        interpose::install(prefixes, |_| {
            let mut table = PathTable::new();
            table.add("/dev/counter", Node::CharDevice(Arc::new(Device)));
            table.add("/dev/counter-text", Node::Text(Arc::new(|_| Some(b"some text\n".into()))));
            table.add(
                "/proc/{pid}/status",
                Node::Patched(Arc::new(|captures, mut text| {
                    let line =
                        format!("Patched:\t{} {}\n", captures.pid().unwrap(), std::process::id());
                    text.extend(line.as_bytes());
                    text
                })),
            );
            let tree = Tree::new().unwrap();
            tree.file("/sys/class/counter/number", "10:77\n").unwrap();
            tree.link("/sys/class/counter/other", "number").unwrap();
            tree.link("/sys/class/counter/up", "../counter/number").unwrap();
            tree.file("/sys/devices/counter/level", "0\n").unwrap();
            tree.link("/sys/devices/counter/link", "level").unwrap();
            tree.remove_at_exit();
            let tree = Arc::new(tree);
            let paths = ["/sys/class/counter".to_owned(), "/sys/devices/counter".to_owned()];
            table.overlay(tree.clone(), paths);
            let level = move |text: &[u8]| {
                let [b'0'..=b'9'] = text else { return Err(Errno::RANGE) };
                tree.rewrite("/sys/devices/counter/level", [text, b"\n"].concat()).unwrap();
                PRESENT.store(text != b"0", Ordering::SeqCst);
                Ok(())
            };
            table.add("/sys/devices/counter/level", Node::Attribute(Arc::new(level)));
            table.add("/dev/counter-level", Node::CharDevice(Arc::new(Sometimes)));
            table
        })
        .unwrap();
    });
    let guard = ONE_AT_A_TIME.lock();
    let guard = guard.unwrap_or_else(std::sync::PoisonError::into_inner);
    // What killed children held is released a little later.
    wait_live(0);
    guard
}

/// Opens the device as any Rust program would.
pub fn open() -> StdFile {
    StdFile::options().read(true).write(true).open("/dev/counter").expect("/dev/counter opens")
}

/// `ioctl(2)` with a number.
pub fn ioctl(fd: &impl AsRawFd, cmd: u32, arg: u64) -> Result<c_int, Errno> {
    ioctl_raw(fd.as_raw_fd(), cmd, arg)
}

pub fn ioctl_raw(fd: RawFd, cmd: u32, arg: u64) -> Result<c_int, Errno> {
    // SAFETY: the test device checks its argument.
    let result = unsafe { libc::ioctl(fd, u64::from(cmd), arg) };
    if result < 0 { Err(last_errno()) } else { Ok(result) }
}

pub fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap()
}

/// Adds to the counter; the sum.
pub fn add(fd: &impl AsRawFd, delta: u64) -> Result<u64, Errno> {
    let mut word = delta;
    ioctl(fd, ADD, &raw mut word as u64).map(|_| word)
}

pub fn live() -> i64 {
    LIVE.load(Ordering::SeqCst)
}

/// Waits until as many files are alive: release in another process is noticed
/// by a thread.
pub fn wait_live(wanted: i64) {
    while live() != wanted {
        std::thread::yield_now();
    }
}
