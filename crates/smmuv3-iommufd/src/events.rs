//! The host's event queue: records with the StreamIDs of the guest, and news of records that were lost.

use std::fs::File;
use std::io::{self, Read};

use smmuv3::wire::Event;

/// `struct iommufd_vevent_header`, and `struct iommu_vevent_arm_smmuv3` after it.
const HEADER: usize = 8;
const RECORD: usize = 32;

/// Sequence numbers have 31 bits.
const SEQUENCE: u32 = i32::MAX as u32;
/// `IOMMU_VEVENTQ_FLAG_LOST_EVENTS`.
const LOST_EVENTS: u32 = 1 << 0;

/// What comes out of the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum News {
    Event(Event),
    /// Some events before what comes next are missing.
    Lost,
    /// A record that says nothing to us.
    Unknown,
}

/// Where the reader is.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    last: Option<u32>,
}

impl Reader {
    /// Reads what is there. Returns nothing if nothing is.
    pub(crate) fn read(&mut self, mut file: &File) -> io::Result<Vec<News>> {
        let mut bytes = [0; 64 * (HEADER + RECORD)];
        let length = loop {
            match file.read(&mut bytes) {
                Ok(length) => break length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Vec::new()),
                Err(error) => return Err(error),
            }
        };
        Ok(self.parse(&bytes[..length]))
    }

    fn parse(&mut self, mut bytes: &[u8]) -> Vec<News> {
        let mut news = Vec::new();
        while let Some((header, rest)) = bytes.split_first_chunk::<HEADER>() {
            let [f0, f1, f2, f3, s0, s1, s2, s3] = *header;
            let flags = u32::from_ne_bytes([f0, f1, f2, f3]);
            let sequence = u32::from_ne_bytes([s0, s1, s2, s3]) & SEQUENCE;
            bytes = rest;
            let expected = self.last.map(|last| last.wrapping_add(1) & SEQUENCE);
            let lost = flags & LOST_EVENTS != 0;
            if lost || expected.is_some_and(|expected| expected != sequence) {
                news.push(News::Lost);
            }
            self.last = Some(sequence);
            if lost {
                // Nothing follows this header.
                continue;
            }
            let Some((record, rest)) = bytes.split_first_chunk::<RECORD>() else {
                news.push(News::Unknown);
                break;
            };
            bytes = rest;
            let mut words = [0; 4];
            for (word, bytes) in words.iter_mut().zip(record.chunks_exact(8)) {
                *word = u64::from_le_bytes(bytes.try_into().unwrap_or_default());
            }
            news.push(Event::decode(&words).map_or(News::Unknown, News::Event));
        }
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use smmuv3::wire::EventKind;

    fn header(flags: u32, sequence: u32) -> Vec<u8> {
        [flags.to_ne_bytes(), sequence.to_ne_bytes()].concat()
    }

    fn event(sequence: u32) -> (Vec<u8>, News) {
        let event = Event { input_address: 0x5000, ..Event::new(EventKind::Access, 9) };
        let mut bytes = header(0, sequence);
        event.encode().iter().for_each(|word| bytes.extend(word.to_le_bytes()));
        (bytes, News::Event(event))
    }

    #[test]
    fn what_is_missing_is_told_where_it_is_missing() {
        let mut reader = Reader::default();
        let one = event(0).1;
        let bytes = [event(5).0, event(6).0, event(9).0, header(LOST_EVENTS, 10), event(11).0];
        let news = reader.parse(&bytes.concat());
        assert_eq!(news, [one, one, News::Lost, one, News::Lost, one]);
        // Between two reads, and over the end of the numbers.
        assert_eq!(reader.parse(&event(13).0), [News::Lost, one]);
        assert_eq!(reader.parse(&[]), []);
        reader.last = Some(SEQUENCE - 1);
        assert_eq!(reader.parse(&[event(SEQUENCE).0, event(0).0].concat()), [one, one]);
        assert_eq!(reader.parse(&header(LOST_EVENTS, 3)), [News::Lost]);
        assert_eq!(reader.parse(&event(4).0), [one]);
    }

    #[test]
    fn what_cannot_be_read_is_no_event() {
        let mut reader = Reader::default();
        let mut bytes = event(0).0;
        bytes[HEADER] = 0xff;
        assert_eq!(reader.parse(&bytes), [News::Unknown]);
        assert_eq!(reader.parse(&event(1).0[..20]), [News::Unknown]);
        assert_eq!(reader.parse(&[1, 2, 3]), []);
    }
}
