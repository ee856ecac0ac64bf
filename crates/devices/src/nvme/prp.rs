//! Physical Region Pages: where in memory a command's data is (§4.3).

use vfio::{Access, Bus};

use super::spec::{Command, Status};

/// A run of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    address: u64,
    len: usize,
}

/// The data of one command, as runs of memory, and how far it has been moved.
#[derive(Default)]
pub(super) struct Data {
    segments: Vec<Segment>,
    /// The entries of a list that are in one page.
    list: Vec<u8>,
    /// The segment that is next, and what of it is done.
    next: usize,
    done: usize,
}

impl Data {
    /// Finds `len` bytes of data with pages of `page` bytes. `len` bounds the work: lists are read as far as it needs.
    pub(super) fn gather(
        &mut self,
        bus: &mut Bus,
        command: &Command,
        len: usize,
        page: usize,
    ) -> Result<(), Status> {
        self.segments.clear();
        (self.next, self.done) = (0, 0);
        let offset = |address: u64| (address as usize) & (page - 1);
        if !command.prp1.is_multiple_of(4) {
            return Err(Status::INVALID_PRP_OFFSET);
        }
        let first = len.min(page - offset(command.prp1));
        self.add(command.prp1, first);
        let mut left = len - first;
        if left == 0 {
            return Ok(());
        }
        if left <= page {
            return self.add_page(command.prp2, left, page);
        }
        let mut at = command.prp2;
        if !at.is_multiple_of(8) {
            return Err(Status::INVALID_PRP_OFFSET);
        }
        loop {
            let (room, needed) = ((page - offset(at)) / 8, left.div_ceil(page));
            let mut list = std::mem::take(&mut self.list);
            list.resize(8 * room.min(needed), 0);
            let result = bus.read(Access::at(at), &mut list);
            self.list = list;
            result.map_err(|_| Status::DATA_TRANSFER_ERROR)?;
            // If there is not room for all, the last one is where the list goes on.
            let entries = if needed > room { room - 1 } else { needed };
            for n in 0..entries {
                let part = left.min(page);
                self.add_page(self.entry(n), part, page)?;
                left -= part;
            }
            if left == 0 {
                return Ok(());
            }
            at = self.entry(entries);
            if offset(at) != 0 {
                return Err(Status::INVALID_PRP_OFFSET);
            }
        }
    }

    fn entry(&self, n: usize) -> u64 {
        self.list[8 * n..].first_chunk().copied().map_or(0, u64::from_le_bytes)
    }

    fn add_page(&mut self, address: u64, len: usize, page: usize) -> Result<(), Status> {
        if (address as usize) & (page - 1) != 0 {
            return Err(Status::INVALID_PRP_OFFSET);
        }
        self.add(address, len);
        Ok(())
    }

    fn add(&mut self, address: u64, len: usize) {
        match self.segments.last_mut() {
            Some(last) if last.address.wrapping_add(last.len as u64) == address => last.len += len,
            _ => self.segments.push(Segment { address, len }),
        }
    }

    /// Writes the next bytes of the data to memory.
    pub(super) fn put(&mut self, bus: &mut Bus, bytes: &[u8]) -> Result<(), Status> {
        self.advance(bytes.len(), |at, part| bus.write(Access::at(at), &bytes[part]).is_ok())
    }

    /// Reads the next bytes of the data from memory.
    pub(super) fn take(&mut self, bus: &mut Bus, bytes: &mut [u8]) -> Result<(), Status> {
        self.advance(bytes.len(), |at, part| bus.read(Access::at(at), &mut bytes[part]).is_ok())
    }

    fn advance(
        &mut self,
        len: usize,
        mut access: impl FnMut(u64, std::ops::Range<usize>) -> bool,
    ) -> Result<(), Status> {
        let mut moved = 0;
        while moved < len {
            // As much was asked for as was gathered.
            let Some(segment) = self.segments.get(self.next) else { break };
            let part = (len - moved).min(segment.len - self.done);
            let at = segment.address.wrapping_add(self.done as u64);
            if !access(at, moved..moved + part) {
                return Err(Status::DATA_TRANSFER_ERROR);
            }
            (moved, self.done) = (moved + part, self.done + part);
            if self.done == segment.len {
                (self.next, self.done) = (self.next + 1, 0);
            }
        }
        Ok(())
    }
}
