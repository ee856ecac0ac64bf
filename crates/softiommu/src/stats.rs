//! What a machine did, in numbers, for the end of a program.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use platform::{Dma, Message};
use smmuv3::Observation;

/// Counts, of whatever any thread does.
#[derive(Default)]
pub(crate) struct Stats {
    ioctls: AtomicU64,
    ioctls_refused: AtomicU64,
    reads: AtomicU64,
    bytes_read: AtomicU64,
    writes: AtomicU64,
    bytes_written: AtomicU64,
    aborted: AtomicU64,
    messages: AtomicU64,
    commands: AtomicU64,
    syncs: AtomicU64,
    events: AtomicU64,
    page_requests: AtomicU64,
}

fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

impl Stats {
    pub(crate) fn ioctl(&self, done: bool) {
        count(&self.ioctls, 1);
        count(&self.ioctls_refused, u64::from(!done));
    }

    pub(crate) fn dma(&self, dma: &Dma) {
        let (accesses, bytes) = if dma.write {
            (&self.writes, &self.bytes_written)
        } else {
            (&self.reads, &self.bytes_read)
        };
        count(accesses, 1);
        match dma.result {
            Ok(()) => count(bytes, dma.length as u64),
            Err(_) => count(&self.aborted, 1),
        }
    }

    pub(crate) fn message(&self, message: &Message) {
        count(if message.result.is_ok() { &self.messages } else { &self.aborted }, 1);
    }

    pub(crate) fn smmu(&self, observation: &Observation<'_>) {
        match observation {
            Observation::Command(command) => {
                count(&self.commands, 1);
                let sync = matches!(command, smmuv3::wire::Command::Sync { .. });
                count(&self.syncs, u64::from(sync));
            }
            Observation::Event(_) | Observation::EventLost(_) => count(&self.events, 1),
            Observation::PageRequest(_) => count(&self.page_requests, 1),
            _ => {}
        }
    }
}

/// Bytes in a unit that people can read.
struct Bytes(u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
        let unit = UNITS.into_iter().enumerate().rev();
        let fits =
            unit.map(|(n, unit)| (10 * (n as u32 + 1), unit)).find(|(log2, _)| self.0 >> log2 > 0);
        match fits {
            Some((log2, unit)) => {
                let tenths = ((u128::from(self.0) * 10) >> log2) as u64;
                write!(f, "{}.{} {unit}", tenths / 10, tenths % 10)
            }
            None => write!(f, "{} bytes", self.0),
        }
    }
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        writeln!(
            f,
            "softiommu: {} ioctls, {} refused",
            get(&self.ioctls),
            get(&self.ioctls_refused)
        )?;
        writeln!(
            f,
            "softiommu: DMA: {} read in {} accesses, {} written in {}, {} aborted; {} MSIs",
            Bytes(get(&self.bytes_read)),
            get(&self.reads),
            Bytes(get(&self.bytes_written)),
            get(&self.writes),
            get(&self.aborted),
            get(&self.messages)
        )?;
        writeln!(
            f,
            "softiommu: SMMU: {} commands, of them {} CMD_SYNC; {} events, {} page requests",
            get(&self.commands),
            get(&self.syncs),
            get(&self.events),
            get(&self.page_requests)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_readable() {
        let text = |bytes| Bytes(bytes).to_string();
        assert_eq!(text(0), "0 bytes");
        assert_eq!(text(1023), "1023 bytes");
        assert_eq!(text(1024), "1.0 KiB");
        assert_eq!(text(1 << 20 | 1 << 19), "1.5 MiB");
        assert_eq!(text(u64::MAX), "16777215.9 TiB");
    }
}
