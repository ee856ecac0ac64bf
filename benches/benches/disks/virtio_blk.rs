//! Reads of a virtio disk, several at a time.

use std::sync::atomic::{Ordering, fence};

use crate::client::{Client, DATA, SLOTS};
use crate::{Disk, Places};

/// Memory: descriptors, what the driver writes, what the device writes, headers and statuses, and data.
const DESCRIPTORS: u64 = 0;
const DRIVER: u64 = 0x2000;
const DEVICE: u64 = 0x4000;
const HEADERS: u64 = 0x6000;
const STATUSES: u64 = 0x8000;
const SIZE: u16 = 256;
/// Requests at a time: of three descriptors each.
const REQUESTS: u64 = 64;
const NOTIFY: u64 = 0x3000;
const NEXT: u16 = 1;
const WRITE: u16 = 2;

pub(crate) struct VirtioBlk {
    client: Client,
    available: u16,
    used: u16,
}

impl VirtioBlk {
    pub(crate) fn new(client: Client) -> Self {
        client.write(20, &[3]);
        // VERSION_1, ACCESS_PLATFORM.
        client.write32(8, 1);
        client.write32(12, 0b11);
        client.write(20, &[11]);
        client.write(24, &SIZE.to_le_bytes());
        for (at, place) in [(32, DESCRIPTORS), (40, DRIVER), (48, DEVICE)] {
            client.write(at, &client.at(place).to_le_bytes());
        }
        client.write(26, &[1, 0]);
        client.write(28, &[1, 0]);
        client.write(20, &[15]);
        assert_eq!(client.read(20), [15], "it runs");
        Self { client, available: 0, used: 0 }
    }

    fn describe(&self, n: u64, offset: u64, len: u64, flags: u16) {
        let word = u128::from(self.client.at(offset))
            | u128::from(len) << 64
            | u128::from(flags) << 96
            | u128::from(n + 1) << 112;
        self.client.put(DESCRIPTORS + 16 * n, &word.to_le_bytes());
    }

    fn under_way(&self) -> u16 {
        self.available.wrapping_sub(self.used)
    }

    fn done(&self) -> u16 {
        (self.client.load(DEVICE) >> 16) as u16
    }

    fn add(&mut self, write: bool, place: u64, len: u64) {
        let slot = u64::from(self.available) % REQUESTS;
        let header = [u64::from(write), place / 512].map(u64::to_le_bytes).concat();
        self.client.put(HEADERS + 16 * slot, &header);
        self.describe(3 * slot, HEADERS + 16 * slot, 16, NEXT);
        let flag = if write { 0 } else { WRITE };
        self.describe(3 * slot + 1, DATA + ((slot % SLOTS) << 20), len, flag | NEXT);
        self.describe(3 * slot + 2, STATUSES + slot, 1, WRITE);
        let entry = DRIVER + 4 + 2 * u64::from(self.available % SIZE);
        self.client.put(entry, &(3 * slot as u16).to_le_bytes());
        self.available = self.available.wrapping_add(1);
    }
}

impl Disk for VirtioBlk {
    fn client(&self) -> &Client {
        &self.client
    }

    fn run(&mut self, write: bool, places: &mut Places<'_>, len: u64, depth: usize) {
        loop {
            let before = self.available;
            while usize::from(self.under_way()) < depth
                && let Some(place) = places.next()
            {
                self.add(write, place, len);
            }
            if self.available != before {
                // No flags; the index.
                let [low, high] = self.available.to_le_bytes();
                fence(Ordering::Release);
                self.client.put(DRIVER, &[0, 0, low, high]);
                self.client.write(NOTIFY, &[0, 0]);
            }
            if self.under_way() == 0 {
                return;
            }
            while self.done() == self.used {
                self.client.sleep();
            }
            while self.used != self.done() {
                let slot = u64::from(self.used) % REQUESTS;
                let status = self.client.load(STATUSES + (slot & !3)) >> (8 * (slot & 3)) & 0xff;
                assert_eq!(status, 0);
                self.used = self.used.wrapping_add(1);
            }
        }
    }
}
