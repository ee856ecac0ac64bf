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
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::Instant;

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
    path: PathBuf,
    era: Era,
    /// The names of devices, by those of their SMMUs and by StreamID. Only read once the machine is built.
    streams: RwLock<HashMap<(String, u32), String>>,
}

/// The trace of one process, with what is behind locks: a copy of the process, left behind for files that others still
/// have, has the locks in whatever state they were, and begins a new one.
struct Era {
    trace: Arc<Trace>,
    threads: Tracks<(u32, u32)>,
    smmus: Tracks<String>,
    devices: Tracks<String>,
    /// By context and id.
    viommus: Tracks<(u64, u32)>,
    /// Since when an SMMU has had a `CMD_SYNC` at the head of its queue.
    syncs: Mutex<HashMap<String, Instant>>,
    /// That of a copy of this process; `None` if it cannot be.
    next: OnceLock<Option<Box<Era>>>,
}

impl Timeline {
    /// Begins to trace what this process's machine does: into a new file (`anew`), or one that others may be writing to
    /// as well. `report` is told of problems.
    pub(crate) fn start(path: &Path, anew: bool, report: &Report) -> Option<Arc<Self>> {
        let name = calls::name_of(std::process::id(), std::process::id());
        let era = match Era::start(path, anew, &name) {
            Ok(era) => era,
            Err(error) => {
                report(&format!("softiommu: trace: cannot write {}: {error}\n", path.display()));
                return None;
            }
        };
        let timeline = Arc::new(Self { path: path.to_owned(), era, streams: RwLock::default() });
        Some(timeline)
    }

    /// The process ends: what there is gets to the file, and `report` is told how much it was.
    pub(crate) fn end(&self, report: &Report) {
        let Some(era) = self.era_so_far() else { return };
        // A copy has closed what the program would be told on.
        if let Some(summary) = era.trace.flush().filter(|_| std::ptr::eq(era, &raw const self.era))
        {
            report(&told(&summary, &self.path));
        }
    }

    /// Has `f` tell something.
    fn tell(&self, f: impl FnOnce(&Era)) {
        let mut era = &self.era;
        while !era.trace.is_ours() {
            let next = era.next.get_or_init(|| {
                let name = calls::name_of(std::process::id(), std::process::id());
                Era::start(&self.path, false, &format!("{name} (left behind)")).ok().map(Box::new)
            });
            let Some(next) = next else { return };
            era = next;
        }
        f(era);
    }

    /// This process's era, if it has one already.
    fn era_so_far(&self) -> Option<&Era> {
        let mut era = &self.era;
        while !era.trace.is_ours() {
            era = era.next.get()?.as_deref()?;
        }
        Some(era)
    }
}

impl Era {
    fn start(path: &Path, anew: bool, name: &str) -> io::Result<Self> {
        let output = Output::open(path, anew)?;
        let trace = Arc::new(Trace::new(name, BUFFER));
        let writer = trace.clone();
        // Its error is in the summary.
        interpose::spawn("softiommu trace", move || drop(writer.write_to(output)))?;
        Ok(Self {
            trace,
            threads: Tracks::new(),
            smmus: Tracks::new(),
            devices: Tracks::new(),
            viommus: Tracks::new(),
            syncs: Mutex::default(),
            next: OnceLock::new(),
        })
    }

    fn device(&self, name: &str) -> Arc<Track> {
        self.devices.get(name, || self.trace.track(name))
    }

    fn smmu(&self, name: &str) -> Arc<Track> {
        self.smmus.get(name, || self.trace.track(name))
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
