//! The buffer between those who have something to tell and the file.

use std::fmt;
use std::io::{self, Write};
use std::sync::atomic::{AtomicU32, Ordering};
// Not parking_lot's: what its threads wait in is shared by the whole process, and in a forked copy of it has entries of
// threads that do not exist.
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use crate::json::string;
use crate::{Args, Track};

/// What a file begins with.
pub const HEADER: &str = "[\n";

/// Threads that do not exist have numbers that no thread has: `PID_MAX_LIMIT` is 2²².
const FIRST_TRACK: u32 = 10_000_000;
/// How long the writer gathers events before it writes again.
const GATHER: Duration = Duration::from_millis(5);
/// How long the end of a process waits for the disk.
const PATIENCE: Duration = Duration::from_secs(10);

/// A trace of one process.
pub struct Trace {
    process: u32,
    process_name: String,
    clock: Clock,
    limit: usize,
    next_track: AtomicU32,
    /// What the trace has to tell about itself.
    own: Track,
    state: Mutex<State>,
    /// The writer waits for the first event.
    wake: Condvar,
    /// The writer gathers more.
    hurry: Condvar,
    /// Somebody waits for the writer.
    written: Condvar,
}

#[derive(Default)]
struct State {
    buffer: String,
    /// Events in the buffer.
    buffered: u64,
    summary: Summary,
    /// Dropped events that the trace has mentioned.
    mentioned: u64,
    idle: bool,
    /// A batch is on its way to the file.
    writing: bool,
    /// Somebody waits.
    urgent: bool,
    /// Nothing is recorded any more.
    closed: bool,
}

/// What became of the events so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// Events in the file.
    pub events: u64,
    /// Events that are not.
    pub dropped: u64,
    /// Why the file could not be written any further.
    pub error: Option<String>,
}

/// `CLOCK_MONOTONIC` in nanoseconds, which is the same in all processes and what `perf` and `ftrace` can use.
struct Clock {
    epoch: Instant,
    at_epoch: u64,
}

impl Clock {
    fn new() -> Self {
        let now = clock_gettime(ClockId::Monotonic);
        let at_epoch = now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64;
        Self { epoch: Instant::now(), at_epoch }
    }

    fn nanoseconds(&self, at: Instant) -> u64 {
        let after = at.saturating_duration_since(self.epoch).as_nanos() as u64;
        let before = self.epoch.saturating_duration_since(at).as_nanos() as u64;
        (self.at_epoch + after).saturating_sub(before)
    }
}

/// Microseconds, the unit of the format, with nanoseconds.
pub(crate) struct Micros(pub(crate) u64);

impl fmt::Display for Micros {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:03}", self.0 / 1000, self.0 % 1000)
    }
}

impl Trace {
    /// A trace of this process, which has this name. At most `limit` bytes of events wait to be written, and as
    /// many are being written.
    pub fn new(process_name: &str, limit: usize) -> Self {
        let process = std::process::id();
        Self {
            process,
            process_name: process_name.to_owned(),
            clock: Clock::new(),
            limit,
            next_track: AtomicU32::new(FIRST_TRACK + 1),
            own: Track::new(process, process_name, FIRST_TRACK, "trace"),
            state: Mutex::default(),
            wake: Condvar::new(),
            hurry: Condvar::new(),
            written: Condvar::new(),
        }
    }

    /// A track of its own in this process. It shows up with its first event.
    pub fn track(&self, name: &str) -> Track {
        Track::new(self.process, &self.process_name, self.new_tid(), name)
    }

    /// The track of a thread of any process.
    #[allow(clippy::unused_self, reason = "tracks belong to a trace")]
    pub fn thread(&self, process: u32, process_name: &str, thread: u32, name: &str) -> Track {
        Track::new(process, process_name, thread, name)
    }

    /// Something that began at `started` is over.
    pub fn slice(&self, track: &Track, category: &str, name: &str, started: Instant, args: &Args) {
        let started = self.clock.nanoseconds(started);
        self.emit(track, Some(started), &tail(category, name, args));
    }

    /// Something happens.
    pub fn instant(&self, track: &Track, category: &str, name: &str, args: &Args) {
        self.emit(track, None, &tail(category, name, args));
    }

    /// Whether this is the process that the trace was made in: a forked copy of it has a copy of the trace and no
    /// writer, and nothing that it tells is recorded.
    pub fn is_ours(&self) -> bool {
        self.process == std::process::id()
    }

    fn new_tid(&self) -> u32 {
        self.next_track.fetch_add(1, Ordering::Relaxed)
    }

    fn emit(&self, track: &Track, started: Option<u64>, tail: &str) {
        if !self.is_ours() {
            return;
        }
        let mut state = lock(&self.state);
        let state = &mut *state;
        if state.closed {
            return;
        }
        if state.summary.error.is_some() {
            state.summary.dropped += 1;
            return;
        }
        // Under the lock: the file has events in the order in which they ended.
        let now = self.clock.nanoseconds(Instant::now());
        let before = state.buffer.len();
        let mut lanes = lock(&track.lanes);
        let start = started.map(|started| started.min(now));
        let index = start.map_or(0, |start| lanes.fit(start, || self.new_tid()));
        let mentioned = self.mention_dropped(state, now);
        track.append(&lanes.lanes[index], index, &mut state.buffer, now, start, tail);
        if state.buffer.len() > self.limit {
            state.buffer.truncate(before);
            state.summary.dropped += 1;
            return;
        }
        if mentioned {
            lock(&self.own.lanes).lanes[0].told(now, None);
            state.mentioned = state.summary.dropped;
        }
        lanes.lanes[index].told(now, start);
        state.buffered += 1;
        if std::mem::take(&mut state.idle) {
            self.wake.notify_one();
        }
    }

    /// Appends how many events are missing since this was last told; whether there are any.
    fn mention_dropped(&self, state: &mut State, now: u64) -> bool {
        let missing = state.summary.dropped - state.mentioned;
        if missing > 0 {
            let args = Args::new().int("count", missing as i64);
            let tail = tail("trace", "events dropped: the buffer was full", &args);
            let own = lock(&self.own.lanes);
            self.own.append(&own.lanes[0], 0, &mut state.buffer, now, None, &tail);
        }
        missing > 0
    }

    /// Writes events to `out` as they come, until [`finish`](Self::finish), or until that fails; for a thread that
    /// does nothing else. Each piece is some whole lines.
    ///
    /// # Errors
    ///
    /// The first error of `out`. Whatever comes after it is counted as dropped.
    pub fn write_to(&self, mut out: impl Write) -> io::Result<()> {
        let mut batch = String::new();
        loop {
            let events = {
                let mut state = lock(&self.state);
                while state.buffer.is_empty() {
                    state.urgent = false;
                    if state.closed {
                        return Ok(());
                    }
                    state.idle = true;
                    state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
                state.idle = false;
                state.writing = true;
                std::mem::swap(&mut batch, &mut state.buffer);
                std::mem::take(&mut state.buffered)
            };
            let result = out.write_all(batch.as_bytes());
            batch.clear();
            let mut state = lock(&self.state);
            state.writing = false;
            self.written.notify_all();
            match result {
                Ok(()) => state.summary.events += events,
                Err(error) => {
                    state.summary.dropped += events + std::mem::take(&mut state.buffered);
                    state.summary.error = Some(error.to_string());
                    state.buffer.clear();
                    return Err(error);
                }
            }
            if !state.urgent && !state.closed {
                let _gathered = self.hurry.wait_timeout(state, GATHER);
            }
        }
    }

    /// Waits until everything that was told so far is in the file, if [`write_to`](Self::write_to) runs and the disk
    /// is not too slow. `None` in a forked copy of the process, whose trace this is not.
    pub fn flush(&self) -> Option<Summary> {
        self.wait(false)
    }

    /// Records nothing from now on, and otherwise does as [`flush`](Self::flush).
    pub fn finish(&self) -> Option<Summary> {
        self.wait(true)
    }

    fn lock_until(&self, until: Instant) -> Option<MutexGuard<'_, State>> {
        loop {
            match self.state.try_lock() {
                Ok(state) => return Some(state),
                Err(TryLockError::Poisoned(state)) => return Some(state.into_inner()),
                Err(TryLockError::WouldBlock) if Instant::now() > until => return None,
                Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    fn wait(&self, close: bool) -> Option<Summary> {
        if !self.is_ours() {
            return None;
        }
        let until = Instant::now() + PATIENCE;
        // A signal handler that ends the process may have interrupted who holds it.
        let mut state = self.lock_until(until)?;
        if close && !state.closed && state.summary.error.is_none() {
            self.mention_dropped(&mut state, self.clock.nanoseconds(Instant::now()));
        }
        state.closed |= close;
        state.urgent = true;
        self.wake.notify_one();
        self.hurry.notify_one();
        while !state.buffer.is_empty() || state.writing {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let waited = self.written.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        Some(state.summary.clone())
    }
}

/// Nothing panics under a lock of ours that leaves something half done.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What of an event is known without the time and the lane.
fn tail(category: &str, name: &str, args: &Args) -> String {
    let mut tail = String::with_capacity(64 + name.len() + args.members().len());
    tail.push_str("\"cat\":");
    string(&mut tail, category);
    tail.push_str(",\"name\":");
    string(&mut tail, name);
    tail.push_str(",\"args\":{");
    tail.push_str(args.members());
    tail.push_str("}},");
    tail
}
