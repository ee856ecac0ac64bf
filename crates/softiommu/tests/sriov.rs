//! SR-IOV as programs use it: virtual functions that come and go by `sriov_numvfs`, with streams, groups and files of
//! their own, and the token that their users share.

mod client;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Arc, Mutex, Once};

use client::{Client, INTX, IOVA, call, device_of};
use softiommu::device::{Bus, Device, Identity};

/// Each test has a device of its own: `vfioN` in this order, and after the last the virtual functions.
const MACHINE: &str = r#"
explain-faults = true
iommu = [{ name = "smmu", model = "smmuv3" }]
device = [
    { name = "a", model = "ioat", iommu = "smmu", vfs = 3, stream-id = 0x100 },
    { name = "b", model = "ioat", iommu = "smmu", vfs = 2, pasid-bits = 4, ats = true, pri = true },
    { name = "c", model = "ioat", iommu = "smmu", vfs = 2 },
    { name = "d", model = "ioat", iommu = "smmu", vfs = 2 },
    { name = "e", model = "ioat", iommu = "smmu", vfs = 2, num-vfs = 1, group = "all" },
    { name = "f", iommu = "smmu", vfs = 1 },
    { name = "g", model = "ioat", iommu = "smmu" },
    { name = "h", model = "ioat", iommu = "smmu", vfs = 1 },
    { name = "i", model = "ioat", iommu = "smmu", vfs = 2 },
]
"#;

const A: &str = "0001:00:01.0";
const B: &str = "0001:00:02.0";
const C: &str = "0001:00:03.0";
const D: &str = "0001:00:04.0";
const E: &str = "0001:00:05.0";
const F: &str = "0001:00:06.0";
const H: &str = "0001:00:08.0";

const I: &str = "0001:00:09.0";

const SET_IOMMU: u64 = 0x3b66;
const GROUP_SET_CONTAINER: u64 = 0x3b68;
const DEVICE_GET_IRQ_INFO: u64 = 0x3b6d;
const DEVICE_SET_IRQS: u64 = 0x3b6e;
const DEVICE_RESET: u64 = 0x3b6f;
const DEVICE_GET_PCI_HOT_RESET_INFO: u64 = 0x3b70;
const DEVICE_FEATURE: u64 = 0x3b75;
const TYPE1V2: u64 = 3;
const REQUEST: u32 = 4;
const CHANNEL: u64 = 0x80;
const SRIOV: u64 = 0x200;

/// `vfioN` of the first virtual function, and how many there are.
const FIRST_VF: usize = 9;
const VFS: usize = 15;

const TOKEN: &[u8; 16] = b"the right token!";
/// The same for the file of a group.
const RIGHT: &str = " vf_token=74686520-7269-6768-7420-746f6b656e21";
const WRONG: &[u8; 16] = b"the wrong token!";

/// What the machine had to tell.
static REPORTS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// A device of one's own, whose virtual functions are something else.
struct Own(Option<u16>);

impl Device for Own {
    fn identity(&self) -> Identity {
        let (vendor, device) = if self.0.is_some() { (0xffff, 0x1235) } else { (0x1af4, 0x1234) };
        let (subsystem_vendor, subsystem) = (0, 0);
        Identity { vendor, device, subsystem_vendor, subsystem, class: 0x0b_40_00, revision: 1 }
    }

    fn bars(&self) -> [u64; 6] {
        if self.0.is_some() { [0x1000, 0, 0, 0, 0, 0] } else { [0x4000, 0, 0x8000, 0, 0, 0] }
    }

    fn vectors(&self) -> u16 {
        0
    }

    fn has_line(&self) -> bool {
        true
    }

    fn read(&self, _: usize, _: u64, data: &mut [u8]) {
        data.fill(self.0.map_or(0xff, |index| index as u8));
    }

    fn write(&self, _: usize, _: u64, _: &[u8]) {}

    fn reset(&self) {}
}

fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let machine = softiommu::Machine::from_toml(MACHINE).unwrap();
        let own = |bus: Bus, _: &_| -> Arc<dyn Device> { Arc::new(Own(bus.virtual_function())) };
        let report = |text: &str| REPORTS.lock().unwrap().push(text.to_owned());
        softiommu::Setup::new(machine).device("f", own).report(report).install().unwrap();
    });
}

fn sys(address: &str, name: &str) -> String {
    format!("/sys/bus/pci/devices/{address}/{name}")
}

fn text(address: &str, name: &str) -> String {
    fs::read_to_string(sys(address, name)).unwrap().trim().to_owned()
}

/// The last part of what a link leads to.
fn link(address: &str, name: &str) -> String {
    let target = fs::read_link(sys(address, name)).unwrap();
    target.file_name().unwrap().to_str().unwrap().to_owned()
}

fn errno<T>(result: std::io::Result<T>) -> Result<T, i32> {
    result.map_err(|error| error.raw_os_error().unwrap())
}

/// As a shell's `echo` does it.
fn write_to(path: impl AsRef<Path>, value: &str) -> Result<(), i32> {
    let file = File::options().write(true).create(true).truncate(true).open(path);
    errno(file.unwrap().write_all(value.as_bytes()))
}

fn enable(address: &str, count: &str) -> Result<(), i32> {
    write_to(sys(address, "sriov_numvfs"), count)
}

fn open(path: impl AsRef<Path>) -> Result<File, i32> {
    errno(File::options().read(true).write(true).open(path))
}

#[test]
fn virtual_functions_come_and_go() {
    install();
    let (vf, node) = ("0001:00:01.1", "/dev/vfio/devices/vfio9");
    assert_eq!((text(A, "sriov_totalvfs"), text(A, "sriov_numvfs")), ("3".into(), "0".into()));
    assert_eq!((text(A, "sriov_offset"), text(A, "sriov_stride")), ("1".into(), "1".into()));
    assert_eq!(text(A, "sriov_vf_device"), "2021");
    let absent = || {
        let gone = [format!("/sys/bus/pci/devices/{vf}"), sys(A, "virtfn0"), node.to_owned()];
        assert!(gone.iter().all(|path| !fs::exists(path).unwrap()));
        assert_eq!(open(node).err(), Some(libc::ENOENT));
        let listed = |path| fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name());
        assert!(listed("/dev/vfio/devices").all(|name| name != "vfio9"));
        assert!(listed("/sys/bus/pci/drivers/vfio-pci").all(|name| name != vf));
    };
    absent();
    for (value, error) in [("4", libc::ERANGE), ("x", libc::EINVAL), ("-1", libc::EINVAL)] {
        assert_eq!(enable(A, value), Err(error), "{value}");
    }
    assert_eq!(enable(A, "0"), Ok(()));
    absent();
    assert_eq!(enable(A, "2\n"), Ok(()));
    assert_eq!((text(A, "sriov_numvfs"), link(A, "virtfn1")), ("2".into(), "0001:00:01.2".into()));
    assert!(!fs::exists(sys(A, "virtfn2")).unwrap());
    assert_eq!(enable(A, "2"), Ok(()), "which there are");
    assert_eq!((enable(A, "3"), enable(A, "1")), (Err(libc::EBUSY), Err(libc::EBUSY)));
    // As any device is found.
    let address = link(A, "virtfn0");
    assert_eq!((address.as_str(), link(vf, "physfn")), (vf, A.into()));
    assert_eq!((text(vf, "vendor"), text(vf, "device")), ("0x8086".into(), "0x2021".into()));
    assert_eq!(link(vf, "driver"), "vfio-pci");
    assert_eq!(
        fs::canonicalize(sys(A, "virtfn0")).unwrap(),
        Path::new(&format!("/sys/devices/pci0001:00/{vf}"))
    );
    let mut vfio = fs::read_dir(sys(vf, "vfio-dev")).unwrap();
    assert_eq!(vfio.next().unwrap().unwrap().file_name(), "vfio9");
    let rdev = fs::metadata(node).unwrap().rdev();
    assert_eq!(rdev, libc::makedev(511, 9));
    assert!(open("/dev/char/511:9").is_ok());
    let group = link(vf, "iommu_group");
    assert!(group != link(A, "iommu_group") && group != link("0001:00:01.2", "iommu_group"));
    assert!(open(format!("/dev/vfio/{group}")).is_ok());
    // The capability says so, too, and nobody changes it.
    assert_eq!(fs::read(sys(A, "config")).unwrap()[0x210..0x212], [2, 0]);
    let physical = Client::new(0);
    assert_eq!(physical.config(SRIOV, 4), [0x10, 0, 1, 0]);
    let registers = [9, 0, 0, 0, 3, 0, 3, 0, 2, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0x21, 0x20];
    assert_eq!(physical.config(SRIOV + 8, 20), registers);
    physical.write((7 << 40) + SRIOV + 8, &[0; 16]);
    assert_eq!(physical.config(SRIOV + 8, 20), registers);
    // There is no reset of the slot with them.
    let info = physical.ioctl(DEVICE_GET_PCI_HOT_RESET_INFO, &mut [20, 0, 0, 0, 0]);
    assert_eq!(info, Err(libc::ENODEV));
    drop(physical);
    assert_eq!(enable(A, "0x0"), Ok(()));
    absent();
    assert!(!fs::exists(format!("/sys/kernel/iommu_groups/{group}")).unwrap());
    assert_eq!(open(format!("/dev/vfio/{group}")).err(), Some(libc::ENOENT));
    // By other paths to the same file; read from the same descriptor; and from a directory.
    let driver = format!("/sys/bus/pci/drivers/vfio-pci/{A}");
    assert_eq!(write_to(format!("{driver}/sriov_numvfs"), "1"), Ok(()));
    let mut file = open(sys(A, "sriov_numvfs")).unwrap();
    let (mut before, mut after) = (String::new(), [0; 2]);
    file.read_to_string(&mut before).unwrap();
    file.write_all(b"0").unwrap();
    file.read_exact_at(&mut after, 0).unwrap();
    assert_eq!((before.as_str(), &after), ("1\n", b"0\n"));
    let directory = File::options().read(true).custom_flags(libc::O_DIRECTORY).open(&driver);
    let directory = directory.unwrap();
    // SAFETY: a plain system call with a C string; the descriptor is nobody else's.
    let mut relative = unsafe {
        let name = c"sriov_numvfs".as_ptr();
        File::from_raw_fd(libc::openat(directory.as_raw_fd(), name, libc::O_WRONLY))
    };
    relative.write_all(b"3").unwrap();
    assert_eq!(text(A, "sriov_numvfs"), "3");
    relative.write_all(b"0").unwrap();
}

#[test]
fn a_child_enables_virtual_functions_for_its_parent() {
    install();
    let path = std::ffi::CString::new(sys(H, "sriov_numvfs")).unwrap();
    assert_eq!(text(H, "sriov_numvfs"), "0");
    // SAFETY: the child makes plain system calls and leaves.
    let child = unsafe {
        let child = libc::fork();
        if child == 0 {
            let file = libc::open(path.as_ptr(), libc::O_WRONLY);
            let written = libc::write(file, c"1".as_ptr().cast(), 1);
            libc::_exit((written != 1).into());
        }
        child
    };
    let mut status = -1;
    // SAFETY: a place for the status.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert_eq!((status, text(H, "sriov_numvfs")), (0, "1".into()));
    assert_eq!(link(H, "virtfn0"), "0001:00:08.1");
}

/// Several write `sriov_numvfs` at a time, and others open what there is.
#[test]
fn who_has_a_virtual_function_keeps_it() {
    install();
    drop(Client::bind_with(FIRST_VF - 1, Some(TOKEN)).unwrap());
    let writer = |n: usize| {
        for turn in 0..100 {
            let count = if turn % 2 == 0 { ["1", "2"][n] } else { "0" };
            assert!(matches!(enable(I, count), Ok(()) | Err(libc::EBUSY)));
            let now = text(I, "sriov_numvfs");
            assert!(["0", "1", "2"].contains(&now.as_str()), "{now:?}");
        }
    };
    let user = || {
        let mut found = 0;
        while found < 20 {
            // The last two of all.
            let node = format!("/dev/vfio/devices/vfio{}", FIRST_VF + VFS - 2);
            let Ok(file) = open(&node) else {
                // In case the writers are done.
                let _ = enable(I, "2");
                continue;
            };
            found += 1;
            assert!(fs::exists(&node).unwrap());
            // It takes its turn: what was written before can be read.
            assert_eq!(enable(I, "0"), Err(libc::EBUSY));
            assert_ne!(text(I, "sriov_numvfs"), "0");
            drop(file);
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| writer(0));
        scope.spawn(|| writer(1));
        scope.spawn(user);
    });
    while enable(I, "0").is_err() {}
    assert!(!fs::exists(sys(I, "virtfn0")).unwrap());
}

/// One copy, with a descriptor at the beginning of the memory; whether it was carried out.
fn copy(engine: &Client, from: u64, to: u64) -> bool {
    let descriptor = [8, IOVA + from, IOVA + to, 0, 0, 0, 0, 0u64];
    engine.put(0, &descriptor.map(u64::to_le_bytes).concat());
    engine.write(CHANNEL + 4, &[0x20]);
    engine.write(CHANNEL + 0x10, &IOVA.to_le_bytes());
    engine.write(CHANNEL + 6, &[1, 0]);
    loop {
        match engine.read::<8>(CHANNEL + 8)[0] & 7 {
            0 => std::thread::yield_now(),
            status => return status == 1,
        }
    }
}

#[test]
fn each_virtual_function_is_a_device_of_its_own() {
    install();
    enable(B, "2").unwrap();
    let physical = Client::bind_with(1, Some(TOKEN)).unwrap();
    let virtual_functions: Vec<_> =
        [12, 13].into_iter().map(|n| Client::bind_with(n, Some(TOKEN)).unwrap()).collect();
    let all = [&physical, &virtual_functions[0], &virtual_functions[1]];
    for (n, engine) in all.into_iter().enumerate() {
        engine.put(0x1000, &[n as u8 + 1; 8]);
    }
    // The same addresses, and each finds its own memory there.
    assert!(all.iter().all(|engine| copy(engine, 0x1000, 0x2000)));
    for (n, engine) in all.into_iter().enumerate() {
        assert_eq!(engine.get(0x2000, 8), [n as u8 + 1; 8]);
    }
    // What one of them loses the others keep.
    virtual_functions[0].detach();
    assert_eq!(all.map(|engine| copy(engine, 0x1000, 0x3000)), [true, false, true]);
    // Its stream follows that of the physical function, which is 0.
    let reports = REPORTS.lock().unwrap().concat();
    assert!(reports.contains("smmu: stream 0x1 reads 0x40000000: aborted"), "{reports}");
    // Its registers answer as long as it is there, it has no line, and it has what it shares with its physical function
    // but for page requests.
    let [_, vf, _] = all;
    assert_eq!((vf.config(0, 4), vf.config(0x3d, 1)), (vec![0x86, 0x80, 0x21, 0x20], vec![0]));
    vf.write((7 << 40) + 4, &[0, 0]);
    assert_eq!((vf.config(4, 2), vf.read::<1>(8)), (vec![0, 0], [0x33]));
    let mut info = [16, 0, INTX, 0];
    vf.ioctl(DEVICE_GET_IRQ_INFO, &mut info).unwrap();
    assert_eq!(info[3], 0);
    let (ats, pri) = (0x0f, 0x13);
    assert_eq!((physical.config(0x100, 1), physical.config(0x110, 1)), (vec![ats], vec![pri]));
    assert_eq!((vf.config(0x100, 4), vf.config(0x110, 1)), (vec![ats, 0, 1, 0], vec![0]));
    // A reset of one is its own; one of the physical function is theirs.
    let status = |engine: &Client| engine.read::<1>(CHANNEL + 8)[0] & 7;
    let arm = |engine: &Client| engine.write(CHANNEL + 0x10, &IOVA.to_le_bytes());
    let (armed, halted) = (4, 3);
    all.into_iter().for_each(|engine| {
        engine.reset();
        arm(engine);
    });
    virtual_functions[1].ioctl(DEVICE_RESET, &mut [0]).unwrap();
    assert_eq!(all.map(status), [armed, armed, halted]);
    arm(&virtual_functions[1]);
    physical.ioctl(DEVICE_RESET, &mut [0]).unwrap();
    assert_eq!(all.map(status), [halted; 3]);
    // They stay when the physical function is closed, and go when nobody has them.
    drop(physical);
    assert!(copy(&virtual_functions[1], 0x1000, 0x2000));
    assert_eq!(enable(B, "0"), Err(libc::EBUSY));
    drop(virtual_functions);
    assert_eq!(enable(B, "0"), Ok(()));
}

/// `VFIO_DEVICE_FEATURE` with a token; `operation`: get, set, probe are 1, 2, 4.
fn feature(device: &Client, operation: u32, token: &[u8; 16]) -> Result<(), i32> {
    let token = token.as_chunks().0.iter().map(|word| u32::from_ne_bytes(*word));
    let mut words = vec![24, operation << 16];
    words.extend(token);
    device.ioctl(DEVICE_FEATURE, &mut words)
}

#[test]
fn a_virtual_function_is_for_who_knows_the_token() {
    install();
    enable(C, "2").unwrap();
    let refused = |n, token| Client::bind_with(n, token).err();
    // Nobody has set it: nobody knows it.
    for token in [None, Some(&[0; 16]), Some(TOKEN)] {
        assert_eq!(refused(14, token), Some(libc::EACCES));
    }
    let physical = Client::bind_with(2, Some(TOKEN)).unwrap();
    let vf = Client::bind_with(14, Some(TOKEN)).unwrap();
    assert_eq!(
        (refused(15, None), refused(15, Some(WRONG))),
        (Some(libc::EACCES), Some(libc::EACCES))
    );
    // It outlives who set it, and is asked of the next.
    drop(physical);
    assert_eq!(
        (refused(2, None), refused(2, Some(WRONG))),
        (Some(libc::EACCES), Some(libc::EACCES))
    );
    let physical = Client::bind_with(2, Some(TOKEN)).unwrap();
    // It can be changed, not read.
    assert_eq!(feature(&physical, 4, TOKEN), Ok(()), "probe");
    assert_eq!(feature(&physical, 4 | 2, TOKEN), Ok(()), "probe set");
    assert_eq!(feature(&physical, 4 | 1, TOKEN), Err(libc::EINVAL), "probe get");
    assert_eq!(feature(&physical, 1, TOKEN), Err(libc::EINVAL), "get");
    assert_eq!(feature(&physical, 0, TOKEN), Err(libc::EINVAL), "nothing");
    let short = physical.ioctl(DEVICE_FEATURE, &mut [16, 2 << 16, 0, 0]);
    assert_eq!(short, Err(libc::EINVAL));
    assert_eq!(feature(&vf, 2, WRONG), Err(libc::ENOTTY), "not by a virtual function");
    assert_eq!(feature(&physical, 2, WRONG), Ok(()));
    assert_eq!(refused(15, Some(TOKEN)), Some(libc::EACCES));
    drop(Client::bind_with(15, Some(WRONG)).unwrap());
    // Nobody uses virtual functions: whoever comes sets it, or does not.
    drop((vf, physical));
    drop(Client::new(2));
    drop(Client::bind_with(2, Some(TOKEN)).unwrap());
    drop(Client::bind_with(15, Some(TOKEN)).unwrap());
    // A device without any has no token.
    assert_eq!(refused(6, Some(TOKEN)), Some(libc::EINVAL));
    assert_eq!(feature(&Client::new(6), 4, TOKEN), Err(libc::ENOTTY));
    // The same by the group's file.
    let vf = link(C, "virtfn0");
    let group = open(format!("/dev/vfio/{}", link(&vf, "iommu_group"))).unwrap();
    let device = |options: &str| device_of(&group, &format!("{vf}{options}"));
    assert_eq!(device("").err(), Some(libc::EACCES), "before it is asked for a container");
    assert_eq!(device(RIGHT).err(), Some(libc::EINVAL));
    let container = open("/dev/vfio/vfio").unwrap();
    let fd = container.as_raw_fd();
    call(&group, GROUP_SET_CONTAINER, (&raw const fd) as u64).unwrap();
    call(&container, SET_IOMMU, TYPE1V2).unwrap();
    for (options, error) in [
        ("", libc::EACCES),
        (" vf_token=00000000-0000-0000-0000-000000000000", libc::EACCES),
        (" vf_token=", libc::EINVAL),
        (" token", libc::EINVAL),
        ("0", libc::ENODEV),
    ] {
        assert_eq!(device(options).err(), Some(error), "{options:?}");
    }
    let first = device(RIGHT).unwrap();
    assert_eq!(device("").err(), Some(libc::EACCES), "each time");
    let second = device(RIGHT).unwrap();
    assert_eq!(refused(2, None), Some(libc::EACCES));
    drop(first);
    assert_eq!(enable(C, "0"), Err(libc::EBUSY));
    drop(second);
    // Without virtual functions an open group has no device.
    assert_eq!(enable(C, "0"), Ok(()));
    assert_eq!(device(RIGHT).err(), Some(libc::ENODEV));
}

#[test]
fn virtual_functions_that_are_open_are_asked_for_and_stay() {
    install();
    enable(D, "2").unwrap();
    drop(Client::bind_with(3, Some(TOKEN)).unwrap());
    let vf = Client::bind_with(16, Some(TOKEN)).unwrap();
    // SAFETY: a plain system call; the descriptor is ours.
    let mut event =
        unsafe { File::from_raw_fd(libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK)) };
    let mut set = [24, 1 << 2 | 1 << 5, REQUEST, 0, 1, event.as_raw_fd() as u32];
    vf.ioctl(DEVICE_SET_IRQS, &mut set).unwrap();
    let mut asked = || event.read(&mut [0; 8]).is_ok();
    assert!(!asked());
    assert_eq!(enable(D, "0"), Err(libc::EBUSY));
    assert!(asked());
    assert_eq!((text(D, "sriov_numvfs"), copy(&vf, 0x1000, 0x2000)), ("2".into(), true));
    drop(vf);
    // Nor while one is open and not bound.
    let other = open("/dev/vfio/devices/vfio17").unwrap();
    assert_eq!(enable(D, "0"), Err(libc::EBUSY));
    drop(other);
    assert_eq!(enable(D, "0"), Ok(()));
    assert!(!asked());
}

#[test]
fn a_group_is_of_all_and_some_are_there_from_the_start() {
    install();
    assert_eq!((text(E, "sriov_numvfs"), link(E, "virtfn0")), ("1".into(), "0001:00:05.1".into()));
    assert_eq!(link(E, "iommu_group"), link("0001:00:05.1", "iommu_group"));
    enable(E, "0").unwrap();
    let group = format!("/sys/kernel/iommu_groups/{}", link(E, "iommu_group"));
    assert!(fs::exists(format!("{group}/type")).unwrap());
    assert_eq!(fs::read_dir(format!("{group}/devices")).unwrap().count(), 1);
    // It is in a container, and some come later: they are where the group is.
    let group = open(format!("/dev/vfio/{}", link(E, "iommu_group"))).unwrap();
    let container = open("/dev/vfio/vfio").unwrap();
    let fd = container.as_raw_fd();
    call(&group, GROUP_SET_CONTAINER, (&raw const fd) as u64).unwrap();
    call(&container, SET_IOMMU, TYPE1V2).unwrap();
    let physical = device_of(&group, &format!("{E}{RIGHT}")).unwrap();
    let vf = "0001:00:05.2";
    assert_eq!(device_of(&group, &format!("{vf}{RIGHT}")).err(), Some(libc::ENODEV));
    enable(E, "2").unwrap();
    let vf = device_of(&group, &format!("{vf}{RIGHT}")).unwrap();
    assert_eq!(enable(E, "0"), Err(libc::EBUSY));
    drop((vf, physical));
    assert_eq!(enable(E, "0"), Ok(()));
}

#[test]
fn a_device_of_one_s_own_has_virtual_functions() {
    install();
    enable(F, "1").unwrap();
    let vf = link(F, "virtfn0");
    assert_eq!((text(F, "device"), text(F, "sriov_vf_device")), ("0x1234".into(), "1235".into()));
    assert_eq!((text(&vf, "vendor"), text(&vf, "device")), ("0x1af4".into(), "0x1235".into()));
    let physical = Client::bind_with(5, Some(TOKEN)).unwrap();
    let vf = Client::bind_with(20, Some(TOKEN)).unwrap();
    assert_eq!((physical.read(0), vf.read(0)), ([0xff], [0]));
    assert_eq!(vf.config(0x3d, 1), [0]);
    assert_eq!(physical.config(SRIOV + 0x24, 8), [4, 0, 0, 0, 0, 0, 0, 0]);
}
