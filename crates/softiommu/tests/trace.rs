//! A trace of a machine in the test's own process, and of a child that uses it.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;

use serde_json::Value;

const IOAS_ALLOC: u64 = 0x3b81;

/// `IOMMU_IOAS_ALLOC`, with a flag that there is not if `refused`.
fn alloc(iommu: &File, refused: bool) -> i32 {
    let mut words = [12, u32::from(refused), 0];
    // SAFETY: the struct has the three words that its size says.
    unsafe { libc::ioctl(iommu.as_raw_fd(), IOAS_ALLOC, words.as_mut_ptr()) }
}

/// The ioctls in the file so far: process, thread, error.
fn calls(path: &Path) -> Vec<(u64, u64, Option<i64>)> {
    let text = std::fs::read_to_string(path).unwrap();
    let whole = text.lines().filter_map(|line| line.strip_suffix(','));
    let events = whole.map(|line| serde_json::from_str::<Value>(line).unwrap());
    let number = |value: &Value| value.as_u64().unwrap();
    let call = |event: Value| {
        assert_eq!(event["name"], "IOMMU_IOAS_ALLOC");
        (number(&event["pid"]), number(&event["tid"]), event["args"]["errno"].as_i64())
    };
    events.filter(|event| event["cat"] == "ioctl").map(call).collect()
}

#[test]
fn calls_of_a_child_are_under_its_process_id_and_the_file_begins_anew() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("trace.json");
    std::fs::write(&path, "of another run").unwrap();
    let machine = softiommu::Machine { trace: Some(path.clone()), ..Default::default() };
    softiommu::install(machine).unwrap();
    let iommu = File::options().read(true).write(true).open("/dev/iommu").unwrap();
    assert_eq!(alloc(&iommu, false), 0);
    // SAFETY: the child calls nothing that allocates or locks before it leaves.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let failed = alloc(&iommu, true) != -1;
        // SAFETY: ends the child.
        unsafe { libc::_exit(i32::from(failed)) };
    }
    let mut status = 0;
    // SAFETY: waits for our own child.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert_eq!(status, 0);
    assert_eq!(alloc(&iommu, false), 0);
    while calls(&path).len() < 3 {
        std::thread::yield_now();
    }
    // SAFETY: no arguments.
    let (own, thread) = (u64::from(std::process::id()), unsafe { libc::gettid() } as u64);
    let child = child as u64;
    let refused = Some(libc::EOPNOTSUPP.into());
    let expected = [(own, thread, None), (child, child, refused), (own, thread, None)];
    assert_eq!(calls(&path), expected);
    assert!(std::fs::read_to_string(&path).unwrap().starts_with("[\n{"));
}
