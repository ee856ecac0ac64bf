//! Traces in the Trace Event Format (JSON), which <https://ui.perfetto.dev> opens.
//!
//! The file is `[` and then one event on each line, each with a comma at its end. The `]` is left out, as the format
//! permits: a program that is killed leaves a file that can be read, several processes may append to one file, and
//! `grep` finds whole events. For `jq`: `tail -n +2 FILE | sed 's/,$//' | jq …`.
//!
//! A [`Trace`] belongs to one process. Events go to [`Track`]s: threads of a process, or made-up ones beside them, such
//! as a device. What two threads do on one track at the same time is shown on lanes.
//!
//! Nobody waits for the disk: events are put into a buffer of bounded size, which one thread
//! ([`Trace::write_to`]) empties. What does not fit is dropped, counted, and mentioned in the trace.
//!
//! ```
//! use trace::{Args, Trace};
//!
//! let (trace, mut file) = (Trace::new("client", 1 << 20), Vec::new());
//! std::thread::scope(|scope| {
//!     scope.spawn(|| trace.write_to(&mut file));
//!     let device = trace.track("ioat0");
//!     let started = std::time::Instant::now();
//!     trace.slice(&device, "dma", "read", started, &Args::new().hex("address", 0x1000));
//!     assert_eq!(trace.finish().unwrap().events, 1);
//! });
//! let text = String::from_utf8(file).unwrap();
//! assert!(text.contains(r#""name":"read","args":{"address":"0x1000"}"#));
//! ```
#![forbid(unsafe_code)]

mod json;
mod track;
mod writer;

#[cfg(test)]
mod tests;

pub use json::Args;
pub use track::Track;
pub use writer::{HEADER, Summary, Trace};
