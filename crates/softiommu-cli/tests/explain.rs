//! `softiommu explain`, on images made here.

use std::io::Write;
use std::process::{Command, Output};

use smmuv3::wire::{Cd, Ste};
use tempfile::NamedTempFile;

/// Where the guest's memory begins.
const BASE: u64 = 0x4000_0000;
const STRTAB: u64 = BASE;
const CD: u64 = BASE + 0x1000;
const LEVEL2: u64 = BASE + 0x2000;
const LEVEL3: u64 = BASE + 0x3000;

/// 64 KiB in which stream 1 maps the page 0x5000 to itself plus [`BASE`], read-only.
fn memory() -> Vec<u8> {
    let mut memory = vec![0; 0x1_0000];
    let mut put = |address: u64, value: u64| {
        let at = (address - BASE) as usize;
        memory[at..at + 8].copy_from_slice(&value.to_le_bytes());
    };
    let ste = Ste::default().with_v(true).with_config(0b101).with_s1_context_ptr(CD);
    let cd = Cd::default()
        .with_v(true)
        .with_aa64(true)
        .with_t0sz(34)
        .with_epd1(true)
        .with_ips(0b101)
        .with_a(true)
        .with_r(true)
        .with_ttb0(LEVEL2)
        .with_mair(0xff);
    for n in 0..8 {
        put(STRTAB + 64 + 8 * n, ste.0[n as usize]);
        put(CD + 8 * n, cd.0[n as usize]);
    }
    put(LEVEL2, LEVEL3 | 3);
    put(LEVEL3 + 8 * 5, (BASE + 0x5000) | 1 << 10 | 3 << 8 | 1 << 7 | 1 << 6 | 3);
    memory
}

fn file(bytes: &[u8]) -> NamedTempFile {
    let mut file = NamedTempFile::new().expect("a file");
    file.write_all(bytes).expect("room");
    file
}

fn explain(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_softiommu"))
        .arg("explain")
        .args(arguments)
        .output()
        .expect("softiommu")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("text")
}

const STREAM: [&str; 6] = [
    "--register",
    "STRTAB_BASE=0x40000000",
    "--register",
    "SMMU_STRTAB_BASE_CFG=0x4",
    "--stream-id",
    "1",
];

#[test]
fn a_raw_image_is_walked_to_the_output_address() {
    let image = file(&memory());
    let memory = format!("{}@{BASE:#x}", image.path().display());
    let output = explain(&[&["--memory", &memory], &STREAM[..], &["0x5123"]].concat());
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let lines: Vec<_> = text(&output.stdout).lines().collect();
    assert_eq!(lines[0], "STE at 0x40000040");
    assert!(lines.iter().any(|line| line.contains("stage 1 level 3 at 0x40003028")), "{lines:#?}");
    assert!(
        lines.last().expect("lines").starts_with("output 0x40005123 in a page of 4 KiB"),
        "{lines:#?}"
    );
}

#[test]
fn an_access_that_faults_says_why_and_exits_with_3() {
    let image = file(&memory());
    let memory = format!("{}@{BASE:#x}", image.path().display());
    let run = |rest: &[&str]| explain(&[&["--memory", &memory], &STREAM[..], rest].concat());
    let write = run(&["--write", "0x5123"]);
    assert_eq!(write.status.code(), Some(3));
    assert!(text(&write.stdout).contains("F_PERMISSION"), "{}", text(&write.stdout));
    let hole = run(&["0x6000"]);
    assert!(text(&hole.stdout).contains("F_TRANSLATION"), "{}", text(&hole.stdout));
    let other = run(&["--stream-id", "2", "0x5000"]);
    assert_eq!(other.status.code(), Some(2), "an argument twice is a mistake");
    let json = run(&["--json", "--write", "0x5123"]);
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).expect("JSON");
    assert!(json["translation"].is_null());
    let steps = json["steps"].as_array().expect("steps");
    assert_eq!(steps.last().expect("a step")["event"], "F_PERMISSION");
}

#[test]
fn an_elf_core_knows_its_addresses() {
    // Header, one program header, memory: what dump-guest-memory writes, without notes.
    let mut core = b"\x7fELF\x02\x01\x01".to_vec();
    core.resize(16, 0);
    core.extend([4u16, 183].iter().flat_map(|half| half.to_le_bytes()));
    core.extend(1u32.to_le_bytes());
    core.extend([0u64, 64, 0].iter().flat_map(|word| word.to_le_bytes()));
    core.extend(0u32.to_le_bytes());
    core.extend([64u16, 56, 1, 0, 0, 0].iter().flat_map(|half| half.to_le_bytes()));
    core.extend([1u32, 7].iter().flat_map(|word| word.to_le_bytes()));
    core.extend(
        [0x78, 0, BASE, 0x1_0000, 0x1_0000, 0].iter().flat_map(|word: &u64| word.to_le_bytes()),
    );
    assert_eq!(core.len(), 0x78);
    core.extend(memory());
    let core = file(&core);
    let path = core.path().display().to_string();
    let output = explain(&[&["--memory", &path], &STREAM[..], &["0x5123"]].concat());
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let with_base = format!("{path}@0x1000");
    let output = explain(&[&["--memory", &with_base], &STREAM[..], &["0x5123"]].concat());
    assert!(text(&output.stderr).contains("leave `@0x1000` away"), "{}", text(&output.stderr));
}

#[test]
fn registers_come_from_files_too() {
    let image = file(&memory());
    let memory = format!("{}@{BASE:#x}", image.path().display());
    let run = |registers: &NamedTempFile| {
        let path = registers.path().display().to_string();
        explain(&["--memory", &memory, "--registers", &path, "--stream-id", "1", "0x5123"])
    };
    let lines = file(
        b"# QEMU's x command\nSMMU_STRTAB_BASE: 0x40000000\nstrtab_base_cfg 4 # linear\n\nCR0=1\n",
    );
    assert_eq!(run(&lines).status.code(), Some(0));
    let mut dump = vec![0; 0x1000];
    dump[0x20] = 1;
    dump[0x80..0x88].copy_from_slice(&STRTAB.to_le_bytes());
    dump[0x88] = 4;
    // IDR0: stage 1, AArch64, no stalls; IDR1: 6 bits of StreamID; IDR5: 4K, 48 bits; AIDR: v3.1.
    dump[..4].copy_from_slice(&(1u32 << 1 | 2 << 2 | 1 << 24).to_le_bytes());
    dump[4] = 6;
    dump[0x14] = 0x15;
    dump[0x1c] = 1;
    let output = run(&file(&dump));
    assert_eq!(output.status.code(), Some(1));
    let message = text(&output.stderr);
    assert!(
        message.contains("ID registers") && message.contains("IDR3"),
        "v3.1 has features that IDR3 denies: {message}"
    );
    dump[0x1c] = 0;
    let output = run(&file(&dump));
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
}

#[test]
fn what_is_wrong_is_named_with_what_to_do() {
    let image = file(&memory());
    let path = image.path().display().to_string();
    let few = file(&[0; 100]);
    let short = few.path().display().to_string();
    for (arguments, message) in [
        (
            &[
                "--memory",
                "/nowhere/ram",
                "--register",
                "STRTAB_BASE=0",
                "--register",
                "STRTAB_BASE_CFG=0",
                "0x1000",
            ][..],
            "cannot open /nowhere/ram",
        ),
        (
            &["--memory", &path, "--register", "STRTAB=1", "0"],
            "\"STRTAB\" is no Non-secure register",
        ),
        (
            &["--memory", &path, "--register", "STRTAB_BASE", "0"],
            "write it like STRTAB_BASE=0x81000000",
        ),
        (&["--memory", &path, "--register", "STRTAB_BASE=+1", "0"], "is not a number"),
        (
            &["--memory", &path, "--register", "STRTAB_BASE=1", "0"],
            "SMMU_STRTAB_BASE_CFG is needed",
        ),
        (
            &["--memory", &path, "--registers", &short, "0"],
            "a dump of the registers has 4096 at least",
        ),
    ] {
        let arguments = [arguments, &["--stream-id", "1"]].concat();
        let output = explain(&arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert!(text(&output.stderr).contains(message), "{arguments:?}: {}", text(&output.stderr));
    }
}

/// What a VMM saves of its vSMMU is enough, with the guest's memory.
#[test]
fn a_saved_state_has_the_registers() {
    struct Nothing;
    impl smmuv3::Memory for Nothing {
        fn load(&self, _: u64) -> Result<u64, smmuv3::Abort> {
            Err(smmuv3::Abort)
        }
        fn compare_exchange(&self, _: u64, _: u64, _: u64) -> Result<u64, smmuv3::Abort> {
            Err(smmuv3::Abort)
        }
        fn read(&self, _: u64, _: &mut [u8]) -> Result<(), smmuv3::Abort> {
            Err(smmuv3::Abort)
        }
        fn write(&self, _: u64, _: &[u8]) -> Result<(), smmuv3::Abort> {
            Err(smmuv3::Abort)
        }
    }
    let smmu = smmuv3::Smmu::new(smmuv3::Options::mmu700(), Nothing, (), ()).unwrap();
    smmu.write64(0x80, STRTAB);
    smmu.write32(0x88, 4);
    smmu.write32(0x20, 1);
    let state = file(&serde_json::to_vec(&smmu.save()).unwrap());
    let image = file(&memory());
    let (state, memory) = (state.path().display().to_string(), image.path().display().to_string());
    let memory = format!("{memory}@{BASE:#x}");
    let run = |state: &str| {
        explain(&["--memory", &memory, "--registers", state, "--stream-id", "1", "0x5123"])
    };
    let output = run(&state);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("output 0x40005123"), "{}", text(&output.stdout));
    let wrong = file(b"{\"registers\": 1}");
    let output = run(&wrong.path().display().to_string());
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("no saved state"), "{}", text(&output.stderr));
}
