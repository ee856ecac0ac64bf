//! `softiommu run` as a user meets it.

mod common;

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output};

use common::library;

fn softiommu(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_softiommu"));
    command.env("SOFTIOMMU_LIBRARY", library()).args(args).output().unwrap()
}

/// The standard error of a run that must fail with this status.
fn refused(status: i32, args: &[&str]) -> String {
    let output = softiommu(args);
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(status), "{error}");
    assert!(output.stdout.is_empty());
    assert!(error.starts_with("softiommu: "), "{error}");
    error
}

fn write(dir: &Path, name: &str, bytes: &[u8], mode: u32) -> String {
    let path = dir.join(name);
    std::fs::write(&path, bytes).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn the_program_finds_the_device_and_its_output_is_its_own() {
    let output = softiommu(&["run", "--", "sh", "-c", "test -c /dev/iommu && echo found"]);
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "found\n");
    assert!(output.stderr.is_empty());
}

#[test]
fn exit_status_and_signals_are_the_programs() {
    assert_eq!(softiommu(&["run", "--", "sh", "-c", "exit 42"]).status.code(), Some(42));
    assert_eq!(softiommu(&["run", "--", "sh", "-c", "kill -TERM $$"]).status.signal(), Some(15));
}

#[test]
fn programs_that_the_program_starts_have_it_too() {
    let inner = "sh -c 'test -c /dev/iommu && echo inner'";
    let output = softiommu(&["run", "--", "sh", "-c", inner]);
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "inner\n");
}

#[test]
fn arguments_after_the_program_are_not_ours() {
    let output = softiommu(&["run", "echo", "--help", "-v"]);
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "--help -v\n");
}

#[test]
fn a_program_that_is_not_there_is_named() {
    assert!(refused(127, &["run", "--", "no-such-program"]).contains("no-such-program"));
    assert!(refused(127, &["run", "--", "./no-such-file"]).contains("./no-such-file"));
}

#[test]
fn what_cannot_be_interposed_is_refused_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let mut elf = [0u8; 64];
    elf[..7].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1]);
    // ET_EXEC; no program headers, so nothing that asks for a dynamic loader.
    elf[16] = 2;
    elf[20] = 1;
    elf[52] = 64;
    let machine = |elf: &mut [u8; 64], number: u8| elf[18] = number;
    let (ours, other) = if cfg!(target_arch = "x86_64") { (62, 183) } else { (183, 62) };
    machine(&mut elf, ours);
    let path = write(dir.path(), "static", &elf, 0o755);
    assert!(refused(126, &["run", "--", &path]).contains("statically linked"));
    machine(&mut elf, other);
    let path = write(dir.path(), "foreign", &elf, 0o755);
    let error = refused(126, &["run", "--", &path]);
    assert!(error.contains("this executable is for"), "{error}");
    let path = write(dir.path(), "text", b"hello", 0o755);
    assert!(refused(126, &["run", "--", &path]).contains("neither an ELF"));
    let path = write(dir.path(), "plain", b"hello", 0o644);
    assert!(refused(126, &["run", "--", &path]).contains("not executable"));
}

#[test]
fn a_set_user_id_program_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = write(dir.path(), "suid", &std::fs::read("/bin/true").unwrap(), 0o755);
    // Only root can make a file somebody else's; for others it stays their own
    // and its mark changes nothing, so that the program runs.
    let given = std::os::unix::fs::chown(&path, Some(12345), None).is_ok();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o4755)).unwrap();
    if given {
        assert!(refused(126, &["run", "--", &path]).contains("set-user-ID"));
    } else {
        assert!(softiommu(&["run", "--", &path]).status.success());
    }
}

#[test]
fn a_wrong_machine_file_is_named_with_line_and_key() {
    let dir = tempfile::tempdir().unwrap();
    let path = write(dir.path(), "m.toml", b"[[iommu]]\nmodel = \"mock\"\ncolour = 1\n", 0o644);
    let error = refused(125, &["run", "--machine", &path, "--", "true"]);
    assert!(error.contains("m.toml") && error.contains("line 3") && error.contains("colour"));
    assert!(refused(125, &["run", "--machine", "/none.toml", "--", "true"]).contains("/none.toml"));
}

#[test]
fn a_library_that_is_not_of_this_build_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let other = b"...softiommu-library-version=9.9.9;...";
    let old = write(dir.path(), "libold.so", other, 0o755);
    let run = |library: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_softiommu"));
        let command = command.env("SOFTIOMMU_LIBRARY", library).args(["run", "--", "true"]);
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(125));
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(run(&old).contains("9.9.9"));
    assert!(run("/bin/true").contains("not softiommu's"));
    assert!(run("/none/lib.so").contains("/none/lib.so"));
}

#[test]
fn the_log_says_what_was_refused_and_why() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let log = log.to_str().unwrap();
    // The client asks whether the hardware has something that it does not have.
    let client = library().with_file_name("client");
    let output = softiommu(&["run", "--log", log, "--", client.to_str().unwrap()]);
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(printed.contains("guest memory has \"copied by a device, through two stages\""));
    assert!(printed.ends_with("event 0x10 of stream 0x10: address 0x102000\n"), "{printed}");
    assert!(output.stderr.is_empty());
    let text = std::fs::read_to_string(log).unwrap();
    assert!(text.contains("/dev/iommu"), "{text}");
    assert!(text.contains("refused ioctl=\"IOMMU_GET_HW_INFO\" errno=95"), "{text}");
}

#[test]
fn every_injected_failure_reaches_the_program_as_an_error() {
    let client = library().with_file_name("client");
    let mut points = 0;
    for nth in 1.. {
        let nth = nth.to_string();
        let output = softiommu(&["run", "--fail-nth", &nth, "--", client.to_str().unwrap()]);
        match output.status.code() {
            Some(0) => break,
            Some(1) => points += 1,
            other => panic!("failure {nth} ended the client with {other:?}"),
        }
    }
    assert!(points > 10, "only {points} steps of the client can fail");
}

#[test]
fn disks_are_there_before_the_program_is_started() {
    let dir = tempfile::tempdir().unwrap();
    let image = write(dir.path(), "disk.img", &[0; 4096], 0o600);
    let odd = write(dir.path(), "odd.img", &[0; 1000], 0o600);
    let device = |model: &str, image: &str| format!("{model},image={image}");
    // As a machine file has it: where it is from the file, wherever the program is.
    let text = "[[iommu]]\nname = \"s\"\nmodel = \"smmuv3\"\n[[device]]\nname = \"d\"\nmodel = \"nvme\"\niommu = \"s\"\nimage = \"disk.img\"\n";
    let machine = write(dir.path(), "machine.toml", text.as_bytes(), 0o600);
    let found = "cd / && test -c /dev/vfio/devices/vfio0 && sh -c 'test -c /dev/vfio/devices/vfio0' && echo found";
    let output = softiommu(&["run", "--machine", &machine, "--", "sh", "-c", found]);
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "found\n");
    assert!(output.stderr.is_empty(), "{:?}", String::from_utf8(output.stderr));
    let missing = dir.path().join("missing.img");
    for (image, named) in [
        (missing.to_str().unwrap(), "truncate"),
        (dir.path().to_str().unwrap(), "neither a file nor a block device"),
        (&odd, "1000 bytes"),
    ] {
        let error = refused(125, &["run", "--device", &device("nvme", image), "--", "true"]);
        assert!(error.contains(image) && error.contains(named), "{error}");
    }
    let (one, two) = (device("nvme", &image), device("virtio-blk", &image));
    let error = refused(125, &["run", "--device", &one, "--device", &two, "--", "true"]);
    assert!(error.contains("disk.img is in use"), "{error}");
    let read_only = [one + ",ro", two + ",ro"];
    let both = ["run", "--device", &read_only[0], "--device", &read_only[1], "--", "true"];
    assert!(softiommu(&both).status.success());
    let error = refused(125, &["run", "--device", "nvme,imagefile=a", "--", "true"]);
    assert!(error.contains("imagefile=a") && error.contains("image=FILE"), "{error}");
}
