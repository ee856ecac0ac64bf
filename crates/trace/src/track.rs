//! Tracks: what events are shown on.

use std::fmt::Write;
use std::sync::Mutex;

use crate::json::string;
use crate::writer::Micros;

/// A row of the trace: a thread, a device, whatever does one thing after the other.
///
/// Where it does not, and slices overlap, there are more rows of that name.
#[derive(Debug)]
pub struct Track {
    pub(crate) process: u32,
    pub(crate) process_name: String,
    pub(crate) name: String,
    pub(crate) lanes: Mutex<Lanes>,
}

/// The rows of a track.
#[derive(Debug)]
pub(crate) struct Lanes {
    pub(crate) lanes: Vec<Lane>,
}

/// One row.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lane {
    pub(crate) tid: u32,
    /// When its last slice ended, in nanoseconds.
    pub(crate) end: u64,
    /// The trace says what it is.
    pub(crate) named: bool,
}

impl Track {
    pub(crate) fn new(process: u32, process_name: &str, tid: u32, name: &str) -> Self {
        Self {
            process,
            process_name: process_name.to_owned(),
            name: name.to_owned(),
            lanes: Mutex::new(Lanes { lanes: vec![Lane { tid, end: 0, named: false }] }),
        }
    }

    /// Appends an event of row `index`, and before the row's first one what it is called.
    pub(crate) fn append(
        &self,
        lane: &Lane,
        index: usize,
        buffer: &mut String,
        now: u64,
        start: Option<u64>,
        tail: &str,
    ) {
        let row = format!("\"pid\":{},\"tid\":{}", self.process, lane.tid);
        if !lane.named {
            let name = match index {
                0 => self.name.clone(),
                index => format!("{} ({})", self.name, index + 1),
            };
            for (what, name) in [("process_name", &self.process_name), ("thread_name", &name)] {
                // Writing to a string does not fail.
                let _ =
                    write!(buffer, "{{\"ph\":\"M\",{row},\"name\":\"{what}\",\"args\":{{\"name\":");
                string(buffer, name);
                buffer.push_str("}},\n");
            }
        }
        let _ = match start {
            Some(start) => {
                let (ts, dur) = (Micros(start), Micros(now - start));
                writeln!(buffer, "{{\"ph\":\"X\",\"ts\":{ts},\"dur\":{dur},{row},{tail}")
            }
            None => {
                writeln!(buffer, "{{\"ph\":\"i\",\"s\":\"t\",\"ts\":{},{row},{tail}", Micros(now))
            }
        };
    }
}

impl Lane {
    /// An event of this row is in the buffer.
    pub(crate) fn told(&mut self, now: u64, start: Option<u64>) {
        self.named = true;
        if start.is_some() {
            self.end = now;
        }
    }
}

impl Lanes {
    /// The most rows of a track: beyond them the picture is wrong, but no event is lost.
    const MAX: usize = 64;

    /// The first row whose last slice ended before `start`, or a new one.
    pub(crate) fn fit(&mut self, start: u64, new_tid: impl FnOnce() -> u32) -> usize {
        match self.lanes.iter().position(|lane| lane.end <= start) {
            Some(index) => index,
            None if self.lanes.len() == Self::MAX => Self::MAX - 1,
            None => {
                self.lanes.push(Lane { tid: new_tid(), end: 0, named: false });
                self.lanes.len() - 1
            }
        }
    }
}
