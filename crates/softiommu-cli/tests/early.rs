//! Programs whose libraries run before ours is ready.

mod common;

use std::path::Path;
use std::process::Command;

/// A constructor that uses everything we interpose, and a `main` that opens the
/// device afterwards.
const LIBRARY: &str = r#"
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
__attribute__((constructor)) static void early(void)
{
    struct stat st;
    char byte;
    int fd = open("/dev/null", O_RDWR | O_CLOEXEC), copy = dup(fd), zero = open("/dev/zero", O_RDONLY);
    void *page = mmap(0, 4096, PROT_READ, MAP_PRIVATE, zero, 0);
    int size;
    if (fd < 0 || copy < 0 || read(zero, &byte, 1) != 1 || write(fd, "x", 1) != 1 || fstat(fd, &st)
        || ioctl(fd, FIONREAD, &size) == 0 || page == MAP_FAILED || munmap(page, 4096)
        || close(copy) || close(fd) || close(zero))
        _exit(3);
    open("/dev/iommu", O_RDWR);
}
"#;

const PROGRAM: &str = r#"
#include <fcntl.h>
#include <sys/ioctl.h>
int main(void)
{
    unsigned alloc[3] = { 12, 0, 0 };
    int fd = open("/dev/iommu", O_RDWR);
    return fd < 0 || ioctl(fd, 0x3b81, alloc) || alloc[2] == 0;
}
"#;

fn compile(dir: &Path, name: &str, source: &str, args: &[&str]) -> String {
    let (input, output) = (dir.join(format!("{name}.c")), dir.join(name));
    std::fs::write(&input, source).unwrap();
    let cc = Command::new("cc").args(args).arg("-o").arg(&output).arg(&input).status();
    // Rust itself links with it.
    assert!(cc.expect("a C compiler").success());
    output.to_str().unwrap().to_owned()
}

#[test]
fn constructors_that_run_before_ours_are_served_by_the_kernel() {
    let dir = tempfile::tempdir().unwrap();
    let early = compile(dir.path(), "libearly.so", LIBRARY, &["-shared", "-fPIC"]);
    let program = compile(dir.path(), "program", PROGRAM, &[]);
    let output = Command::new(env!("CARGO_BIN_EXE_softiommu"))
        .env("SOFTIOMMU_LIBRARY", common::library())
        // Behind ours in the list, so initialised before it.
        .env("LD_PRELOAD", early)
        .args(["run", "--", &program])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
}
