//! Physical Region Pages: where in memory a command's data is (§4.3).

use vfio::{Access, Bus};

use super::spec::{Command, Status};
use crate::scatter::Scatter;

/// Reads PRP lists.
#[derive(Default)]
pub(super) struct Prps {
    /// The entries of a list that are in one page.
    list: Vec<u8>,
}

impl Prps {
    /// Finds `len` bytes of data with pages of `page` bytes. `len` bounds the work: lists are read as far as it needs.
    pub(super) fn gather(
        &mut self,
        bus: &mut Bus,
        data: &mut Scatter,
        command: &Command,
        len: usize,
        page: usize,
    ) -> Result<(), Status> {
        data.clear();
        let offset = |address: u64| (address as usize) & (page - 1);
        let first = len.min(page - offset(command.prp1));
        let mut left = len - first;
        if !command.prp1.is_multiple_of(4) {
            return Err(Status::INVALID_PRP_OFFSET);
        }
        data.add(command.prp1, first as u64);
        let mut add_page = |address: u64, len: usize| {
            if offset(address) != 0 {
                return Err(Status::INVALID_PRP_OFFSET);
            }
            data.add(address, len as u64);
            Ok(())
        };
        if left == 0 {
            return Ok(());
        }
        if left <= page {
            return add_page(command.prp2, left);
        }
        let mut at = command.prp2;
        if !at.is_multiple_of(8) {
            return Err(Status::INVALID_PRP_OFFSET);
        }
        loop {
            let (room, needed) = ((page - offset(at)) / 8, left.div_ceil(page));
            self.list.resize(8 * room.min(needed), 0);
            bus.read(Access::at(at), &mut self.list).map_err(|_| Status::DATA_TRANSFER_ERROR)?;
            let mut entries = self.list.as_chunks().0.iter().copied().map(u64::from_le_bytes);
            // If there is not room for all, the last one is where the list goes on.
            let pages = if needed > room { room - 1 } else { needed };
            for address in entries.by_ref().take(pages) {
                let part = left.min(page);
                add_page(address, part)?;
                left -= part;
            }
            let Some(next) = entries.next() else { return Ok(()) };
            if offset(next) != 0 {
                return Err(Status::INVALID_PRP_OFFSET);
            }
            at = next;
        }
    }
}
