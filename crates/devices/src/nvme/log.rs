//! Log pages (§5.14.1): the error log, health, firmware slots.

use std::collections::VecDeque;

use super::features::TEMPERATURE;
use super::spec::{Status, log_page};

/// Entries of the error log: `ELPE` + 1.
pub(super) const ERRORS: usize = 16;
/// Bytes of an entry of the error log, and of each of the other pages.
const ERROR: usize = 64;
const PAGE: usize = 512;

/// A command that failed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Failure {
    pub(super) queue: u16,
    pub(super) id: u16,
    pub(super) status: Status,
    pub(super) namespace: u32,
}

/// What is counted over resets.
#[derive(Default)]
pub(super) struct Log {
    /// The latest first, with its number.
    errors: VecDeque<(u64, Failure)>,
    error_count: u64,
    media_errors: u64,
    reads: u64,
    writes: u64,
    bytes_read: u64,
    bytes_written: u64,
}

impl Log {
    pub(super) fn new() -> Self {
        Self::default()
    }

    pub(super) fn add(&mut self, failure: Failure) {
        self.error_count += 1;
        if matches!(failure.status, Status::WRITE_FAULT | Status::UNRECOVERED_READ_ERROR) {
            self.media_errors += 1;
        }
        self.errors.truncate(ERRORS - 1);
        self.errors.push_front((self.error_count, failure));
    }

    pub(super) fn count_read(&mut self, len: usize) {
        self.reads += 1;
        self.bytes_read += len as u64;
    }

    pub(super) fn count_write(&mut self, len: usize) {
        self.writes += 1;
        self.bytes_written += len as u64;
    }

    /// The bytes of a page.
    pub(super) fn page(&self, id: u8) -> Option<Vec<u8>> {
        match id {
            log_page::ERRORS => Some(self.errors()),
            log_page::HEALTH => Some(self.health()),
            log_page::FIRMWARE => {
                let mut page = vec![0; PAGE];
                // Slot 1 is active.
                page[0] = 1;
                page[8..16].copy_from_slice(&super::identify::FIRMWARE);
                Some(page)
            }
            _ => None,
        }
    }

    fn errors(&self) -> Vec<u8> {
        let mut page = vec![0; ERRORS * ERROR];
        for (entry, (number, failure)) in page.chunks_exact_mut(ERROR).zip(&self.errors) {
            let Failure { queue, id, status, namespace } = *failure;
            entry[..8].copy_from_slice(&number.to_le_bytes());
            entry[8..10].copy_from_slice(&queue.to_le_bytes());
            entry[10..12].copy_from_slice(&id.to_le_bytes());
            entry[12..14].copy_from_slice(&(status.field() << 1).to_le_bytes());
            // It is no single parameter's.
            entry[14..16].fill(0xff);
            entry[24..28].copy_from_slice(&namespace.to_le_bytes());
        }
        page
    }

    fn health(&self) -> Vec<u8> {
        let mut page = vec![0; PAGE];
        page[1..3].copy_from_slice(&TEMPERATURE.to_le_bytes());
        // All of the spare room is available, of which a tenth is little.
        page[3..5].copy_from_slice(&[100, 10]);
        // In thousands of 512 bytes.
        let units = |bytes: u64| bytes.div_ceil(512_000);
        let numbers = [
            (32, units(self.bytes_read)),
            (48, units(self.bytes_written)),
            (64, self.reads),
            (80, self.writes),
            (160, self.media_errors),
            (176, self.error_count),
        ];
        for (at, number) in numbers {
            page[at..at + 8].copy_from_slice(&number.to_le_bytes());
        }
        page
    }
}
