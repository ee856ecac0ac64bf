//! `softiommu machine` as a user meets it.

use std::process::{Command, Output};

fn machine(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_softiommu")).arg("machine").args(args).output().unwrap()
}

fn printed(args: &[&str]) -> String {
    let output = machine(args);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_default_machine_is_a_machine_file_that_can_be_changed() {
    let text = printed(&["--print-default"]);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("machine.toml");
    std::fs::write(&path, &text).unwrap();
    let path = path.to_str().unwrap();
    assert_eq!(printed(&[path]), printed(&[]));
    assert!(printed(&[]).contains(
        "ioat0: ioat at 0001:00:01.0, behind iommu0, StreamID 0x8: /dev/vfio/devices/vfio0"
    ));
    let changed = text.replace("stream-id = 8", "stream-id = 9");
    std::fs::write(path, changed).unwrap();
    assert!(printed(&[path]).contains("StreamID 0x9"));
    let json: serde_json::Value = serde_json::from_str(&printed(&["--json", path])).unwrap();
    assert_eq!(json["devices"][0]["stream-id"], 9);
    assert_eq!(json["iommus"][0]["model"], "smmuv3");
}

#[test]
fn a_file_that_describes_no_machine_is_refused_with_what_to_write() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("machine.toml");
    let text =
        "[[iommu]]\nname = \"s\"\nmodel = \"smmuv3\"\n[[device]]\nname = \"d\"\niommu = \"t\"\n";
    std::fs::write(&path, text).unwrap();
    let output = machine(&[path.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("machine.toml") && error.contains("write `s` or \"none\""), "{error}");
    assert!(output.stdout.is_empty());
}

#[test]
fn devices_are_added_and_shown_with_their_disks() {
    let text =
        printed(&["--device", "nvme,image=/disks/a.img,ro", "--device", "virtio-blk,memory=64MiB"]);
    assert!(
        text.contains("nvme0: nvme at 0001:00:02.0, behind iommu0: /dev/vfio/devices/vfio1"),
        "{text}"
    );
    assert!(text.contains("  /disks/a.img, blocks of 512 bytes, read-only\n"), "{text}");
    assert!(text.contains("  64MiB of memory, blocks of 512 bytes\n"), "{text}");
    let text = printed(&["--device", "ioat,vfs=4,num-vfs=1"]);
    assert!(text.contains("/dev/vfio/devices/vfio1\n  TotalVFs 4, NumVFs 1\n"), "{text}");
    let json = printed(&["--json", "--device", "nvme,memory=1MiB,block-size=4096"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["devices"][1]["disks"][0]["memory"], 1 << 20);
    assert_eq!(json["devices"][1]["disks"][0]["block-size"], 4096);
    // As a machine file, too.
    let file = printed(&["--print-default", "--device", "nvme,memory=1MiB"]);
    assert!(file.contains("model = \"nvme\"") && file.contains("memory = \"1MiB\""), "{file}");
    let refused = |device| String::from_utf8(machine(&["--device", device]).stderr).unwrap();
    let error = refused("nvme");
    assert!(error.contains("`nvme0` needs one of image"), "{error}");
    let error = refused("floppy");
    assert!(error.contains("`floppy`") && error.contains("`virtio-blk`"), "{error}");
}
