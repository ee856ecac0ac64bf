//! A virtio-blk driver in user space: one request at a time, polled.

use crate::client::{Client, IOVA, Random};

pub(crate) const IN: u32 = 0;
pub(crate) const OUT: u32 = 1;
pub(crate) const FLUSH: u32 = 4;
pub(crate) const GET_ID: u32 = 8;

pub(crate) const FEATURE_RO: u64 = 1 << 5;
pub(crate) const FEATURE_FLUSH: u64 = 1 << 9;
pub(crate) const FEATURE_MQ: u64 = 1 << 12;
pub(crate) const FEATURE_INDIRECT: u64 = 1 << 28;
pub(crate) const FEATURE_EVENT_IDX: u64 = 1 << 29;
pub(crate) const FEATURE_VERSION_1: u64 = 1 << 32;

/// Fields of the common configuration.
pub(crate) const STATUS: u64 = 20;
pub(crate) const QUEUE_SELECT: u64 = 22;
pub(crate) const QUEUE_SIZE: u64 = 24;
pub(crate) const QUEUE_VECTOR: u64 = 26;
pub(crate) const QUEUE_ENABLE: u64 = 28;
const CONFIG_VECTOR: u64 = 16;
const QUEUE_DESC: u64 = 32;

/// ACKNOWLEDGE, DRIVER; FEATURES_OK; DRIVER_OK.
pub(crate) const BEGUN: u8 = 3;
pub(crate) const FEATURES_OK: u8 = 8;
pub(crate) const RUNNING: u8 = 15;
pub(crate) const NEEDS_RESET: u8 = 64;

/// Memory, by offset: the queues' rings, what requests begin and end with, tables, data.
const RINGS: u64 = 0;
pub(crate) const HEADERS: u64 = 0x40_000;
const TABLES: u64 = 0x50_000;
pub(crate) const DATA: u64 = 0x100_000;

pub(crate) const WRITE: u16 = 2;
const NEXT: u16 = 1;
const INDIRECT: u16 = 4;

/// A part of a buffer: where, how long, whether the device writes it.
pub(crate) type Part = (u64, u32, bool);

/// Where the device says that its parts are.
struct Places {
    common: u64,
    notify: u64,
    isr: u64,
    config: u64,
}

pub(crate) struct Queue {
    number: u64,
    pub(crate) size: u16,
    pub(crate) available: u16,
    pub(crate) used: u16,
}

impl Queue {
    /// Descriptors, what the driver writes, what the device writes.
    pub(crate) fn places(&self) -> [u64; 3] {
        let at = RINGS + 0x4000 * self.number;
        [at, at + 0x1000, at + 0x2000]
    }
}

pub(crate) struct Driver {
    pub(crate) client: Client,
    places: Places,
    pub(crate) features: u64,
    pub(crate) queues: Vec<Queue>,
}

impl Driver {
    /// A device that runs, with these of its features.
    pub(crate) fn new(n: usize, features: u64) -> Self {
        let mut driver = Self::found(n);
        driver.start(features, 2);
        driver
    }

    /// A device of which nothing is known but where its parts are.
    pub(crate) fn found(n: usize) -> Self {
        let client = Client::new(n);
        let places = find(&client);
        Self { client, places, features: 0, queues: Vec::new() }
    }

    pub(crate) fn common<const N: usize>(&self, at: u64) -> [u8; N] {
        self.client.read(self.places.common + at)
    }

    pub(crate) fn set_common(&self, at: u64, bytes: &[u8]) {
        self.client.write(self.places.common + at, bytes);
    }

    pub(crate) fn config<const N: usize>(&self, at: u64) -> [u8; N] {
        self.client.read(self.places.config + at)
    }

    pub(crate) fn set_config(&self, at: u64, bytes: &[u8]) {
        self.client.write(self.places.config + at, bytes);
    }

    pub(crate) fn isr(&self) -> u8 {
        let [isr] = self.client.read(self.places.isr);
        isr
    }

    pub(crate) fn status(&self) -> u8 {
        let [status] = self.common(STATUS);
        status
    }

    pub(crate) fn offered(&self) -> u64 {
        let half = |select: u32| {
            self.set_common(0, &select.to_le_bytes());
            u64::from(u32::from_le_bytes(self.common(4)))
        };
        half(0) | half(1) << 32
    }

    pub(crate) fn accept(&self, features: u64) {
        for (select, half) in [(0_u32, features as u32), (1, (features >> 32) as u32)] {
            self.set_common(8, &select.to_le_bytes());
            self.set_common(12, &half.to_le_bytes());
        }
    }

    pub(crate) fn reset(&self) {
        self.set_common(STATUS, &[0]);
        while self.status() != 0 {}
    }

    /// Initialises the device (§3.1), with queues that have the vectors 1, 2… and 0 for its configuration.
    pub(crate) fn start(&mut self, features: u64, queues: u64) {
        self.reset();
        self.set_common(STATUS, &[BEGUN]);
        self.features = self.offered() & (features | FEATURE_VERSION_1);
        self.accept(self.features);
        self.set_common(STATUS, &[BEGUN | FEATURES_OK]);
        assert_eq!(self.status(), BEGUN | FEATURES_OK);
        self.set_common(CONFIG_VECTOR, &[0, 0]);
        self.queues.clear();
        for number in 0..queues {
            let queue = Queue { number, size: 64, available: 0, used: 0 };
            self.client.put(queue.places()[0], &[0; 0x4000]);
            self.set_common(QUEUE_SELECT, &(number as u16).to_le_bytes());
            self.set_common(QUEUE_SIZE, &queue.size.to_le_bytes());
            self.set_common(QUEUE_VECTOR, &(number as u16 + 1).to_le_bytes());
            for (at, place) in (QUEUE_DESC..).step_by(8).zip(queue.places()) {
                // As Linux does, and as who can write more at once.
                let bytes = (IOVA + place).to_le_bytes();
                if number == 0 {
                    self.set_common(at, &bytes[..4]);
                    self.set_common(at + 4, &bytes[4..]);
                } else {
                    self.set_common(at, &bytes);
                }
            }
            self.set_common(QUEUE_ENABLE, &[1, 0]);
            self.queues.push(queue);
        }
        self.set_common(STATUS, &[RUNNING]);
    }

    /// Writes a descriptor to a table.
    pub(crate) fn describe(&self, at: u64, address: u64, len: u32, flags: u16, next: u16) {
        let word = u128::from(address)
            | u128::from(len) << 64
            | u128::from(flags) << 96
            | u128::from(next) << 112;
        self.client.put(at, &word.to_le_bytes());
    }

    /// Makes a buffer available, described from descriptor 0 on, directly or by a table that is after `direct`
    /// descriptors. Tells the device if it asks for it.
    pub(crate) fn submit(&mut self, queue: usize, parts: &[Part], direct: usize) {
        let [table, ..] = self.queues[queue].places();
        let number = self.queues[queue].number;
        let indirect = TABLES + 0x1000 * number;
        for (n, (address, len, write)) in parts.iter().enumerate() {
            let last = n + 1 == parts.len();
            let flags = if *write { WRITE } else { 0 } | if last { 0 } else { NEXT };
            let (at, place) = if n < direct { (table, n) } else { (indirect, n - direct) };
            let next = if n < direct { n + 1 } else { n - direct + 1 };
            self.describe(at + 16 * place as u64, *address, *len, flags, next as u16);
        }
        if direct < parts.len() {
            let len = 16 * (parts.len() - direct) as u32;
            self.describe(table + 16 * direct as u64, IOVA + indirect, len, INDIRECT, 0);
        }
        self.offer(queue, 0);
    }

    /// Puts the head of a chain into the available ring.
    pub(crate) fn offer(&mut self, queue: usize, head: u16) {
        let ring = &mut self.queues[queue];
        let [_, driver, device] = ring.places();
        let slot = u64::from(ring.available % ring.size);
        self.client.put(driver + 4 + 2 * slot, &head.to_le_bytes());
        let old = ring.available;
        ring.available = old.wrapping_add(1);
        self.client.put(driver + 2, &ring.available.to_le_bytes());
        let event = self.client.get_array(device + 4 + 8 * u64::from(ring.size));
        let event = u16::from_le_bytes(event);
        let asked = self.features & FEATURE_EVENT_IDX == 0 || event == old;
        if asked {
            self.notify(queue);
        }
    }

    pub(crate) fn notify(&self, queue: usize) {
        let number = queue as u16;
        self.client.write(self.places.notify + 4 * queue as u64, &number.to_le_bytes());
    }

    /// The next used buffer, if there is one: its head, and bytes written.
    pub(crate) fn used(&mut self, queue: usize) -> Option<(u32, u32)> {
        let ring = &mut self.queues[queue];
        let [_, _, device] = ring.places();
        let index = u16::from_le_bytes(self.client.get_array(device + 2));
        if index == ring.used {
            return None;
        }
        let entry: [u8; 8] =
            self.client.get_array(device + 4 + 8 * u64::from(ring.used % ring.size));
        ring.used = ring.used.wrapping_add(1);
        let word = u64::from_le_bytes(entry);
        Some((word as u32, (word >> 32) as u32))
    }

    pub(crate) fn wait(&mut self, queue: usize) -> u32 {
        loop {
            if let Some((head, len)) = self.used(queue) {
                assert_eq!(head, 0);
                return len;
            }
            assert_eq!(self.status() & NEEDS_RESET, 0, "the device has given up");
            std::thread::yield_now();
        }
    }

    /// A request's parts: its header in pieces, the data, the status.
    pub(crate) fn request(
        &self,
        kind: u32,
        sector: u64,
        data: &[Part],
        random: &mut Random,
    ) -> Vec<Part> {
        let header = [u64::from(kind), sector].map(u64::to_le_bytes).concat();
        self.client.put(HEADERS, &header);
        self.client.put(HEADERS + 16, &[0xff]);
        let cut = random.below(16) as u32;
        let mut parts = vec![(IOVA + HEADERS, cut, false)];
        parts.push((IOVA + HEADERS + u64::from(cut), 16 - cut, false));
        parts.retain(|(_, len, _)| *len > 0);
        parts.extend(data);
        parts.push((IOVA + HEADERS + 16, 1, true));
        parts
    }

    pub(crate) fn answer(&self) -> u8 {
        let [status] = self.client.get_array(HEADERS + 16);
        status
    }

    /// Carries out a request with its data in one piece; its status, and the bytes that were written.
    pub(crate) fn run(&mut self, kind: u32, sector: u64, data: &[Part]) -> (u8, u32) {
        let parts = self.request(kind, sector, data, &mut Random(1));
        self.submit(0, &parts, parts.len());
        let len = self.wait(0);
        (self.answer(), len)
    }
}

/// The parts of BAR 0, by the vendor-specific capabilities.
fn find(client: &Client) -> Places {
    let byte = |at: u64| client.config(at, 1)[0];
    let mut found = [None; 5];
    let mut at = u64::from(byte(0x34));
    while at != 0 {
        if byte(at) == 0x09 {
            let kind = usize::from(byte(at + 3));
            assert_eq!(byte(at + 4), 0, "the BAR");
            let word = |at| u32::from_le_bytes(client.config(at, 4).try_into().unwrap());
            found[kind] = Some(u64::from(word(at + 8)));
            if kind == 2 {
                assert_eq!(word(at + 16), 4, "between notification addresses");
            }
        }
        at = byte(at + 1).into();
    }
    let [_, Some(common), Some(notify), Some(isr), Some(config)] = found else {
        panic!("there are not all parts: {found:?}");
    };
    Places { common, notify, isr, config }
}
