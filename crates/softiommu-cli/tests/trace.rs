//! `softiommu run --trace` as those see it who open the file.

mod common;

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use common::library;
use serde_json::Value;

fn softiommu(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_softiommu"));
    command.env("SOFTIOMMU_LIBRARY", library()).args(args);
    command
}

fn client() -> PathBuf {
    library().with_file_name("client")
}

/// Runs a program with a trace in `dir`.
fn traced(dir: &Path, program: &[&str]) -> (Trace, Output) {
    let file = dir.join("trace.json");
    let args = [&["run", "--trace", file.to_str().unwrap(), "--"], program].concat();
    let output = softiommu(&args).output().unwrap();
    (Trace::read(&file), output)
}

/// The events of a file, and what the tracks are called.
struct Trace {
    events: Vec<Value>,
    names: BTreeMap<(u64, u64), String>,
}

fn row(event: &Value) -> (u64, u64) {
    (event["pid"].as_u64().unwrap(), event["tid"].as_u64().unwrap())
}

impl Trace {
    /// As the Perfetto UI does: an array without its end, the last event of which may be cut short.
    fn read(path: &Path) -> Self {
        let text = std::fs::read_to_string(path).unwrap();
        let lines = text.strip_prefix("[\n").expect("a JSON array");
        let whole = lines.rfind('\n').map_or("", |end| &lines[..end]);
        let text = format!("[{}]", whole.strip_suffix(',').unwrap_or(whole));
        let (mut events, mut names) = (Vec::new(), BTreeMap::new());
        for event in serde_json::from_str::<Vec<Value>>(&text).unwrap() {
            match (event["ph"].as_str(), event["name"].as_str()) {
                (Some("M"), Some("thread_name")) => {
                    let name = event["args"]["name"].as_str().unwrap().to_owned();
                    names.insert(row(&event), name);
                }
                (Some("M"), _) => {}
                _ => events.push(event),
            }
        }
        Self { events, names }
    }

    /// Events on a track.
    fn on(&self, track: &str) -> impl Iterator<Item = &Value> + use<'_> {
        let track = track.to_owned();
        self.events.iter().filter(move |event| self.names[&row(event)] == track)
    }

    /// What they are called.
    fn names_on(&self, track: &str) -> Vec<&str> {
        self.on(track).map(|event| event["name"].as_str().unwrap()).collect()
    }

    /// The only one that is called so.
    #[track_caller]
    fn only(&self, track: &str, name: &str) -> &Value {
        let found: Vec<_> = self.on(track).filter(|event| event["name"] == name).collect();
        let [event] = found[..] else { panic!("{} events {name} on {track}", found.len()) };
        event
    }
}

/// When a slice began and ended.
fn span(event: &Value) -> (f64, f64) {
    let start = event["ts"].as_f64().unwrap();
    (start, start + event["dur"].as_f64().unwrap_or_default())
}

const VIOMMU: &str = "vIOMMU 4 (iommufd 1)";

#[test]
fn a_trace_shows_the_client_the_smmu_the_device_and_the_viommu() {
    let dir = tempfile::tempdir().unwrap();
    let (trace, output) = traced(dir.path(), &[client().to_str().unwrap()]);
    assert!(output.status.success());

    // The program's thread: its ioctls, in order.
    let mut calls = trace.names_on("client");
    let destroyed = calls.iter().filter(|name| **name == "IOMMU_DESTROY").count();
    calls.truncate(calls.len() - destroyed);
    assert_eq!(
        calls,
        [
            "VFIO_DEVICE_BIND_IOMMUFD",
            "IOMMU_IOAS_ALLOC",
            "IOMMU_IOAS_MAP_FILE",
            "IOMMU_GET_HW_INFO",
            "IOMMU_GET_HW_INFO",
            "IOMMU_HWPT_ALLOC",
            "IOMMU_VIOMMU_ALLOC",
            "IOMMU_HWPT_ALLOC",
            "IOMMU_HWPT_ALLOC",
            "IOMMU_VEVENTQ_ALLOC",
            "IOMMU_VDEVICE_ALLOC",
            "IOMMU_HWPT_ALLOC",
            "VFIO_DEVICE_ATTACH_IOMMUFD_PT",
            "IOMMU_HWPT_INVALIDATE",
            "VFIO_DEVICE_DETACH_IOMMUFD_PT",
        ]
    );
    let map = trace.only("client", "IOMMU_IOAS_MAP_FILE");
    assert_eq!(
        (&map["args"]["iova"], &map["args"]["length"]),
        (&"0x40000000".into(), &"0x400000".into())
    );
    assert_eq!(trace.only("client", "IOMMU_VIOMMU_ALLOC")["args"]["out_viommu_id"], 4);
    let refused = trace.on("client").find(|event| event["args"]["errno"] == 95).unwrap();
    assert_eq!(refused["name"], "IOMMU_GET_HW_INFO");

    // The device: two copies, the second of which is refused; its fault is within that access.
    assert_eq!(
        trace
            .names_on("ioat0")
            .iter()
            .filter(|name| **name != "attached" && **name != "detached")
            .collect::<Vec<_>>(),
        [
            &"DMA read",
            &"DMA read",
            &"DMA write",
            &"DMA read",
            &"DMA read",
            &"F_TRANSLATION",
            &"DMA write"
        ]
    );
    let writes: Vec<_> = trace.on("ioat0").filter(|event| event["name"] == "DMA write").collect();
    let outcomes = writes.iter().map(|write| write["args"]["result"].as_str().unwrap());
    assert_eq!(outcomes.collect::<Vec<_>>(), ["done", "aborted"]);
    assert_eq!(writes[0]["args"]["address"], "0x102000");
    assert_eq!(writes[0]["args"]["length"], "0x26");
    let fault = trace.only("ioat0", "F_TRANSLATION");
    let (start, end) = span(writes[1]);
    assert!((start..=end).contains(&span(fault).0));

    // The event: on the SMMU's track with the StreamID of the host, on the vIOMMU's with that of the guest.
    for (track, stream) in [("iommu0", "0x8"), ("ioat0", "0x8"), (VIOMMU, "0x10")] {
        let args = &trace.only(track, "F_TRANSLATION")["args"];
        assert_eq!(
            (&args["number"], &args["StreamID"]),
            (&"0x10".into(), &stream.into()),
            "{track}"
        );
        assert_eq!(args["address"], "0x102000");
    }

    // The guest's invalidation: a batch of one, within it the command as the SMMU gets it, and CMD_SYNC.
    assert_eq!(trace.names_on(VIOMMU), ["vDEVICE", "attached", "HWPT_INVALIDATE", "F_TRANSLATION"]);
    let batch = trace.only(VIOMMU, "HWPT_INVALIDATE");
    assert_eq!(
        (&batch["args"]["entry_num"], &batch["args"]["out_entry_num"]),
        (&1.into(), &1.into())
    );
    let guests = serde_json::json!(["CMD_TLBI_NH_VA VMID=0 ASID=1 VA=0x102000 Leaf"]);
    assert_eq!(batch["args"]["commands"], guests);
    let (start, end) = span(batch);
    let within = trace.on("iommu0").filter(|event| (start..=end).contains(&span(event).1));
    let within: Vec<_> = within.map(|event| event["args"]["text"].as_str().unwrap()).collect();
    assert_eq!(within[0], "CMD_TLBI_NH_VA VMID=1 ASID=1 VA=0x102000 Leaf");
    assert!(within[1].starts_with("CMD_SYNC"), "{within:?}");

    // And at the end, how much it was.
    let (events, file) = (trace.events.len(), dir.path().join("trace.json"));
    let line = format!(
        "softiommu: trace: {events} events in {} (open it in https://ui.perfetto.dev)\n",
        file.display()
    );
    assert_eq!(String::from_utf8(output.stderr).unwrap(), line);
}

#[test]
fn several_machines_are_in_one_file() {
    let dir = tempfile::tempdir().unwrap();
    let client = client();
    let script = format!("{0} & {0} & wait; {0}", client.display());
    let (trace, output) = traced(dir.path(), &["sh", "-c", &script]);
    let attached = trace.on("ioat0").filter(|event| event["name"] == "attached");
    let mut processes: Vec<_> = attached.map(|event| row(event).0).collect();
    processes.sort_unstable();
    processes.dedup();
    assert_eq!(processes.len(), 3, "each under its own process ID");
    let told = String::from_utf8(output.stderr).unwrap();
    let counts = told.lines().map(|line| line.split(' ').nth(2).unwrap().parse::<usize>().unwrap());
    assert_eq!(counts.collect::<Vec<_>>().iter().sum::<usize>(), trace.events.len());
}

#[test]
fn files_that_a_program_leaves_behind_are_traced_further() {
    let dir = tempfile::tempdir().unwrap();
    // A launcher that becomes the program: who serves its file is a copy of it.
    let script = format!("exec 3<>/dev/iommu; exec {}", client().display());
    let (_, output) = traced(dir.path(), &["sh", "-c", &script]);
    assert!(output.status.success());
    let told = || {
        let trace = Trace::read(&dir.path().join("trace.json"));
        let last = trace.on("client").any(|event| event["name"] == "VFIO_DEVICE_DETACH_IOMMUFD_PT");
        let detached = trace.on("ioat0").any(|event| event["name"] == "detached");
        last && detached
    };
    // It ends after the program.
    while !told() {
        std::thread::yield_now();
    }
}

#[test]
fn a_killed_program_leaves_a_file_that_can_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("trace.json");
    // It waits for a line that does not come.
    let script = "exec 3<>/dev/iommu; read line";
    let args = ["run", "--trace", file.to_str().unwrap(), "--", "sh", "-c", script];
    let mut child = softiommu(&args).stdin(Stdio::piped()).spawn().unwrap();
    let begun = || std::fs::read(&file).is_ok_and(|bytes| !bytes.is_empty());
    let is_told = || begun() && Trace::read(&file).names_on("iommu0").contains(&"CMD_SYNC");
    while !is_told() {
        assert!(child.try_wait().unwrap().is_none());
        std::thread::yield_now();
    }
    child.kill().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(9));
    assert!(is_told());
}

#[test]
fn a_machine_file_can_ask_for_it_and_the_command_line_decides() {
    let dir = tempfile::tempdir().unwrap();
    let (machine, other) = (dir.path().join("m.toml"), dir.path().join("other.json"));
    std::fs::write(&machine, "trace = \"here.json\"\n[[iommu]]\nmodel = \"mock\"\n").unwrap();
    let mut run = softiommu(&["run", "--machine", machine.to_str().unwrap()]);
    let run = run.current_dir(dir.path());
    let program = ["--", "sh", "-c", "cd / && test -c /dev/iommu"];
    assert!(run.args(program).output().unwrap().status.success());
    assert_eq!(std::fs::read(dir.path().join("here.json")).unwrap(), b"[\n", "nothing happened");

    let mut run = softiommu(&["run", "--machine", machine.to_str().unwrap()]);
    let run = run.current_dir(dir.path()).args(["--trace", "other.json"]).args(program);
    std::fs::remove_file(dir.path().join("here.json")).unwrap();
    assert!(run.output().unwrap().status.success());
    assert!(other.exists() && !dir.path().join("here.json").exists());
}

#[test]
fn a_file_that_cannot_be_written_is_named() {
    let output = softiommu(&["run", "--trace", "/none/trace.json", "--", "true"]).output().unwrap();
    assert_eq!(output.status.code(), Some(125));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(
        error.starts_with("softiommu: cannot write the trace file /none/trace.json: "),
        "{error}"
    );
}

/// The example client has its engine copy 32 bytes, twice, the second time in vain.
#[test]
fn stats_count_what_the_client_does() {
    let client = client();
    let output = softiommu(&["run", "--stats", "--", client.to_str().unwrap()]).output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    let dma = told.lines().find(|line| line.starts_with("softiommu: DMA: ")).expect(&told);
    // Two descriptors of 64 bytes, two sources; one destination, the other aborted.
    assert!(
        dma.contains(" read in 4 accesses, ") && dma.contains(" written in 2, 1 aborted"),
        "{dma}"
    );
    assert!(told.contains("1 events, 0 page requests"), "{told}");
    let ioctls =
        told.lines().find_map(|line| line.strip_prefix("softiommu: ")?.split_once(" ioctls"));
    assert!(ioctls.expect(&told).0.parse::<u32>().unwrap() > 10, "{told}");
    assert_eq!(told.lines().count(), 3, "{told}");
}

#[test]
fn stats_and_a_trace_go_together() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("trace.json");
    let (client, file) = (client(), file.to_str().unwrap().to_owned());
    let args = ["run", "--stats", "--trace", &file, "--", client.to_str().unwrap()];
    let told = String::from_utf8(softiommu(&args).output().unwrap().stderr).unwrap();
    assert!(told.contains("softiommu: trace: ") && told.contains("softiommu: DMA: "), "{told}");
    assert!(Trace::read(Path::new(&file)).events.len() > 30);
}
