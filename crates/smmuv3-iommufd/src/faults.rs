//! The host's fault queue: page requests of devices to the guest's PRI queue, and the guest's responses back.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::{self, Read, Write};

use parking_lot::Mutex;
use smmuv3::wire::PageRequest;
use smmuv3::{PageResponse, PageResponseCode};

use crate::viommu::Viommu;

/// `struct iommu_hwpt_pgfault`.
const RECORD: usize = 40;
/// The host gives whole groups only; a PCIe function has at most 512 requests outstanding.
const RECORDS: usize = 1024;

/// Groups that may wait for the guest at a time.
const PENDING_MAX: usize = 1 << 16;

/// Page Request Group Indexes have 9 bits.
const PRG_INDEX_MAX: u32 = 0x1ff;

/// A page request as the host tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) device: u32,
    pub(crate) cookie: u32,
    group: u32,
    /// Its StreamID is not filled in.
    request: PageRequest,
}

impl Fault {
    fn parse(record: &[u8; RECORD]) -> Self {
        let word = |at: usize| {
            u32::from_ne_bytes([record[at], record[at + 1], record[at + 2], record[at + 3]])
        };
        let (flags, permissions) = (word(0), word(16));
        let address = u64::from_ne_bytes(record[24..32].try_into().unwrap_or_default());
        let request = PageRequest {
            sid: 0,
            ssid: (flags & 1 != 0).then(|| word(8)),
            read: permissions & 1 != 0,
            write: permissions & 2 != 0,
            exec: permissions & 4 != 0,
            privileged: permissions & 8 != 0,
            last: flags & 2 != 0,
            prg_index: word(12) as u16,
            address: address & !0xfff,
        };
        Self { device: word(4), cookie: word(36), group: word(12), request }
    }

    /// The last of its group: the one that is answered.
    pub(crate) fn last(&self) -> bool {
        self.request.last
    }
}

/// Groups that wait for the guest.
#[derive(Default)]
pub(crate) struct Faults {
    pending: Mutex<Pending>,
}

#[derive(Default)]
struct Pending {
    /// Cookies by StreamID and PRGIndex, oldest first.
    cookies: HashMap<(u32, u16), VecDeque<u32>>,
    count: usize,
}

/// Reads what is there.
pub(crate) fn read(mut file: &File) -> io::Result<Vec<Fault>> {
    let mut bytes = vec![0; RECORDS * RECORD];
    let length = loop {
        match file.read(&mut bytes) {
            Ok(length) => break length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Vec::new()),
            Err(error) => return Err(error),
        }
    };
    let (records, _) = bytes[..length].as_chunks::<RECORD>();
    Ok(records.iter().map(Fault::parse).collect())
}

/// Answers a group.
pub(crate) fn answer(mut file: &File, cookie: u32, success: bool) {
    // IOMMUFD_PAGE_RESP_SUCCESS and IOMMUFD_PAGE_RESP_INVALID.
    let code = u32::from(!success);
    let response = [cookie.to_ne_bytes(), code.to_ne_bytes()].concat();
    if let Err(error) = file.write_all(&response) {
        // The host has answered by itself: the device was attached to something else meanwhile.
        tracing::debug!(cookie, %error, "a page response came late");
    }
}

impl Faults {
    /// Makes a request of it that the guest can be given, and remembers what to answer to; or not, if the guest could
    /// not be asked.
    pub(crate) fn admit(&self, stream_id: u32, fault: &Fault) -> Option<PageRequest> {
        if fault.group > PRG_INDEX_MAX {
            return None;
        }
        if fault.request.last {
            let mut pending = self.pending.lock();
            if pending.count >= PENDING_MAX {
                return None;
            }
            pending.count += 1;
            let key = (stream_id, fault.request.prg_index);
            pending.cookies.entry(key).or_default().push_back(fault.cookie);
        }
        Some(PageRequest { sid: stream_id, ..fault.request })
    }

    /// Passes on a response of the guest, or of the model. A response to nothing is ignored.
    pub(crate) fn respond(&self, viommu: &Viommu, response: &PageResponse) {
        let key = (response.stream_id, response.prg_index);
        let cookie = {
            let mut pending = self.pending.lock();
            let Some(cookies) = pending.cookies.get_mut(&key) else { return };
            let cookie = cookies.pop_front();
            if cookies.is_empty() {
                pending.cookies.remove(&key);
            }
            pending.count -= usize::from(cookie.is_some());
            cookie
        };
        if let (Some(cookie), Some(queue)) = (cookie, &viommu.faults) {
            answer(&queue.file, cookie, response.code == PageResponseCode::Success);
        }
    }

    /// The host has answered, or will, all that a stream waits for.
    pub(crate) fn forget(&self, stream_id: u32) {
        let mut pending = self.pending.lock();
        pending.cookies.retain(|(stream, _), _| *stream != stream_id);
        pending.count = pending.cookies.values().map(VecDeque::len).sum();
    }
}
