//! The trace of a machine: who tells of what, on which track.
//!
//! | track | what is on it | told by |
//! |---|---|---|
//! | each thread that calls | ioctls | `interpose` |
//! | each SMMU | commands, events, page requests, errors | `smmuv3` |
//! | each device | DMA, messages, its events, what it is attached to | `platform`, `smmuv3`, `iommufd` |
//! | each vIOMMU | invalidations, events, vDEVICEs, attached devices | `iommufd` |

mod calls;
mod guests;
mod hardware;

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use host_linux::PrivateFd;
use rustix::fs::{FlockOperation, Mode, OFlags, flock, fstat, open};
use smmuv3::wire::Event;
use trace::{Args, HEADER, Trace, Track};

use crate::Report;

/// Bytes of events that wait for the disk at most.
const BUFFER: usize = 8 << 20;

/// The most tracks of a kind that are remembered. One that was forgotten begins anew.
const TRACKS: usize = 4096;

/// Tracks by what they are of.
struct Tracks<K>(Mutex<HashMap<K, Arc<Track>>>);

impl<K: Eq + Hash> Tracks<K> {
    fn new() -> Self {
        Self(Mutex::default())
    }

    fn get<Q>(&self, key: &Q, make: impl FnOnce() -> Track) -> Arc<Track>
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ToOwned<Owned = K> + ?Sized,
    {
        let mut tracks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(track) = tracks.get(key) {
            return track.clone();
        }
        if tracks.len() == TRACKS {
            tracks.clear();
        }
        let track = Arc::new(make());
        tracks.insert(key.to_owned(), track.clone());
        track
    }
}

/// What all who tell something have in common.
pub(crate) struct Timeline {
    trace: Trace,
    threads: Tracks<(u32, u32)>,
    devices: Tracks<String>,
    /// By context and id.
    viommus: Tracks<(u64, u32)>,
}

impl Timeline {
    /// Begins to trace what this process's machine does: into a new file (`anew`), or one that others may be writing to
    /// as well. `report` is told of problems, and at the end how much it was.
    pub(crate) fn start(path: &Path, anew: bool, report: &Report) -> Option<Arc<Self>> {
        let process = std::process::id();
        let timeline = Arc::new(Self {
            trace: Trace::new(&calls::name_of(process, process), BUFFER),
            threads: Tracks::new(),
            devices: Tracks::new(),
            viommus: Tracks::new(),
        });
        let started = Output::open(path, anew).and_then(|output| {
            let writer = timeline.clone();
            // Its error is in the summary.
            let write = move || drop(writer.trace.write_to(output));
            interpose::spawn("softiommu trace", write)
        });
        if let Err(error) = started {
            report(&format!("softiommu: trace: cannot write {}: {error}\n", path.display()));
            return None;
        }
        interpose::observe(calls::Calls(timeline.clone()));
        let (ended, path, report) = (timeline.clone(), path.to_owned(), report.clone());
        interpose::before_end(move || {
            if let Some(summary) = ended.trace.flush() {
                report(&told(&summary, &path));
            }
        });
        Some(timeline)
    }

    /// Runs `f` unless this is a copy of the process, left behind for files that others still have: it has our locks
    /// in whatever state they were, and no trace.
    fn tell(&self, f: impl FnOnce(&Trace)) {
        if self.trace.is_ours() {
            f(&self.trace);
        }
    }

    fn device(&self, name: &str) -> Arc<Track> {
        self.devices.get(name, || self.trace.track(name))
    }
}

/// How much it was.
fn told(summary: &trace::Summary, path: &Path) -> String {
    use std::fmt::Write;
    let (events, path) = (summary.events, path.display());
    let mut line = format!("softiommu: trace: {events} events in {path}");
    // Writing to a string does not fail.
    let _ = match (&summary.error, summary.dropped) {
        (Some(error), dropped) => write!(line, ", {dropped} dropped: {error}"),
        (None, 0) => Ok(()),
        (None, dropped) => write!(line, ", {dropped} dropped: the disk is too slow"),
    };
    line + " (open it in https://ui.perfetto.dev)\n"
}

/// The trace file, out of the program's way.
struct Output(PrivateFd);

impl Output {
    fn open(path: &Path, anew: bool) -> io::Result<Self> {
        // What is appended at once stays together, whoever else writes.
        let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE | OFlags::CLOEXEC;
        let flags = if anew { flags | OFlags::TRUNC } else { flags };
        let file = open(path, flags, Mode::from_raw_mode(0o644))?;
        flock(&file, FlockOperation::LockExclusive)?;
        if fstat(&file)?.st_size == 0 {
            rustix::io::write(&file, HEADER.as_bytes())?;
        }
        flock(&file, FlockOperation::Unlock)?;
        Ok(Self(PrivateFd::new(file)?))
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(rustix::io::write(&self.0, bytes)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What a trace tells of an event record.
fn event_args(event: &Event) -> Args {
    Args::new()
        .hex("number", event.kind as u64)
        .hex("StreamID", event.sid.into())
        .hex("address", event.input_address)
        .text("text", &event.to_string())
}
