//! `softiommu decode`.

use std::io::Write;
use std::process::{Command, Output, Stdio};

fn decode(arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_softiommu"))
        .arg("decode")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("softiommu");
    child.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("softiommu reads");
    child.wait_with_output().expect("softiommu")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("text")
}

#[test]
fn a_kernel_log_is_read_from_standard_input() {
    let log = "\
[    3.1] usb 1-1: new device
[   12.1] arm-smmu-v3 2b400000.iommu: event 0x10 received:
[   12.1] arm-smmu-v3 2b400000.iommu: \t0x0000080000000010
[   12.1] arm-smmu-v3 2b400000.iommu: \t0x0000020000000000
[   12.1] arm-smmu-v3 2b400000.iommu: \t0x00000000fffff000
[   12.1] arm-smmu-v3 2b400000.iommu: \t0x0000000000000000
";
    let output = decode(&["log"], log);
    assert!(output.status.success());
    let line = text(&output.stdout);
    assert!(line.starts_with("2b400000.iommu: F_TRANSLATION"), "{line}");
    assert!(line.contains("SID=0x800") && line.contains("0xfffff000"), "{line}");
    assert_eq!(line.lines().count(), 1);
}

#[test]
fn words_come_from_arguments_or_from_standard_input() {
    let arguments = decode(&["ste", "0xb", "0", "0", "0", "0", "0", "0", "0"], "");
    let input = decode(&["ste"], "000000000000000b, 0\n0 0 0\n0 0 0\n");
    assert_eq!(
        text(&arguments.stdout),
        "V = 1\nConfig = 0b101: stage 1 translates, stage 2 bypasses\n"
    );
    assert_eq!(arguments.stdout, input.stdout);
    let all = decode(&["--all", "ste", "0xb", "0", "0", "0", "0", "0", "0", "0"], "");
    assert!(text(&all.stdout).contains("S2VMID = 0"), "{}", text(&all.stdout));
}

#[test]
fn json_has_the_fields() {
    let output = decode(&["--json", "command", "0x12", "0x12345001", "0x46", "0"], "");
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(json.as_array().map(Vec::len), Some(2));
    assert_eq!(json[0]["text"], "CMD_TLBI_NH_VA VMID=0 ASID=0 VA=0x12345000 Leaf");
    let output = decode(&["--json", "ste", "0xb", "0", "0", "0", "0", "0", "0", "0"], "");
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(json[0]["fields"]["Config"]["value"], 5);
}

#[test]
fn what_cannot_be_decoded_is_said_on_standard_error() {
    for (arguments, input, message) in [
        (&["event", "1", "2", "3"][..], "", "1 more would"),
        (&["event"], "+1 2 3 4", "\"+1\" is not a 64-bit word"),
        (&["event"], "0x11112222333344445 0 0 0", "is not a 64-bit word"),
        (&["cd"], "\n", "there are no words"),
        (&["log"], "nothing here", "no event record"),
        (&["log", "0x10"], "", "standard input"),
    ] {
        let output = decode(arguments, input);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert!(output.stdout.is_empty());
        assert!(text(&output.stderr).contains(message), "{arguments:?}: {}", text(&output.stderr));
    }
}
