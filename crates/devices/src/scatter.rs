//! Data of one request, scattered in memory.

use std::ops::Range;

use vfio::{Access, Bus, DmaError, FilePart};

/// Runs of memory, one after the other, and how far they have been moved through.
#[derive(Default)]
pub(crate) struct Scatter {
    runs: Vec<Run>,
    len: u64,
    /// The run that is next, and what of it is done.
    next: usize,
    done: u64,
}

struct Run {
    address: u64,
    len: u64,
}

impl Scatter {
    pub(crate) fn clear(&mut self) {
        self.runs.clear();
        (self.len, self.next, self.done) = (0, 0, 0);
    }

    pub(crate) fn add(&mut self, address: u64, len: u64) {
        self.len = self.len.saturating_add(len);
        match self.runs.last_mut() {
            Some(last) if last.address.wrapping_add(last.len) == address => last.len += len,
            _ => self.runs.push(Run { address, len }),
        }
    }

    /// Bytes altogether.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Goes on `at` bytes from the beginning.
    pub(crate) fn seek(&mut self, mut at: u64) {
        let inside = |run: &Run| {
            let inside = at < run.len;
            at -= if inside { 0 } else { run.len };
            inside
        };
        self.next = self.runs.iter().position(inside).unwrap_or(self.runs.len());
        self.done = at;
    }

    /// Writes the next bytes to memory.
    pub(crate) fn put(&mut self, bus: &mut Bus, bytes: &[u8]) -> Result<(), DmaError> {
        self.advance(bytes.len(), |at, part| {
            let len = part.len();
            bus.write(at, &bytes[part]).map(|()| len)
        })
        .map(drop)
    }

    /// Writes the first of these bytes to memory, as many as get there without a copy in between. How many; `put` is for
    /// the rest.
    pub(crate) fn put_from(
        &mut self,
        bus: &mut Bus,
        from: FilePart<'_>,
    ) -> Result<usize, DmaError> {
        self.advance(from.len, |at, part| bus.write_from(at, from.part(part)))
    }

    /// Reads the next bytes from memory.
    pub(crate) fn take(&mut self, bus: &mut Bus, bytes: &mut [u8]) -> Result<(), DmaError> {
        self.advance(bytes.len(), |at, part| {
            let len = part.len();
            bus.read(at, &mut bytes[part]).map(|()| len)
        })
        .map(drop)
    }

    /// Moves at most `len` bytes, as many as there are, until `access` moves less than it was asked for; how many.
    fn advance(
        &mut self,
        len: usize,
        mut access: impl FnMut(Access, Range<usize>) -> Result<usize, DmaError>,
    ) -> Result<usize, DmaError> {
        let mut moved = 0;
        while moved < len {
            let Some(run) = self.runs.get(self.next) else { break };
            let part = ((len - moved) as u64).min(run.len - self.done);
            let at = run.address.wrapping_add(self.done);
            let done = access(Access::at(at), moved..moved + part as usize)?;
            moved += done;
            self.done += done as u64;
            if self.done == run.len {
                (self.next, self.done) = (self.next + 1, 0);
            }
            if (done as u64) < part {
                break;
            }
        }
        Ok(moved)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_moved_through_from_anywhere_and_never_beyond_their_end() {
        let mut scatter = Scatter::default();
        // Two that touch, an empty one, one elsewhere.
        for (address, len) in [(0x1000, 16), (0x1010, 16), (0x5000, 0), (0x2000, 8)] {
            scatter.add(address, len);
        }
        assert_eq!(scatter.len(), 40);
        let moves = |scatter: &mut Scatter, len| {
            let mut moves = Vec::new();
            let note = |at: Access, part: Range<usize>| {
                moves.push((at.address, part.len()));
                Ok(part.len())
            };
            scatter.advance(len, note).unwrap();
            moves.retain(|(_, len)| *len > 0);
            moves
        };
        assert_eq!(moves(&mut scatter, 20), [(0x1000, 20)]);
        assert_eq!(moves(&mut scatter, 100), [(0x1014, 12), (0x2000, 8)]);
        assert_eq!(moves(&mut scatter, 1), []);
        scatter.seek(39);
        assert_eq!(moves(&mut scatter, 2), [(0x2007, 1)]);
        scatter.seek(8);
        assert_eq!(moves(&mut scatter, 4), [(0x1008, 4)]);
        scatter.seek(40);
        assert_eq!(moves(&mut scatter, 4), []);
    }
}
