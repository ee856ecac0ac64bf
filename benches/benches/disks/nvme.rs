//! Reads of an NVMe disk, several at a time.

use crate::client::{Client, DATA, SLOTS};
use crate::{Disk, Places};

/// Memory: the admin queues, the I/O queues, lists, and from `DATA` on data.
const ADMIN: u64 = 0;
const QUEUE: u64 = 0x2000;
const LISTS: u64 = 0x10_0000;
const ENTRIES: u32 = 64;
const SECTOR: u64 = 512;

pub(crate) struct Nvme {
    client: Client,
    tail: u32,
    head: u32,
    phase: u32,
}

impl Nvme {
    pub(crate) fn new(client: Client) -> Self {
        client.write32(0x24, 1 | 1 << 16);
        client.write(0x28, &client.at(ADMIN).to_le_bytes());
        client.write(0x30, &client.at(ADMIN + 0x1000).to_le_bytes());
        client.write32(0x14, 6 << 16 | 4 << 20 | 1);
        while u32::from_le_bytes(client.read(0x1c)) & 1 == 0 {}
        // Two entries each: one command at a time.
        let create =
            [(5, client.at(QUEUE + 0x1000), 0b11 | 1 << 16), (1, client.at(QUEUE), 1 | 1 << 16)];
        for (n, (opcode, place, flags)) in (0..).zip(create) {
            let command = command(opcode, 0, [place, 0], [1 | (ENTRIES - 1) << 16, flags, 0]);
            client.put(ADMIN + 64 * n, &command);
            client.write32(0x1000, (n as u32 + 1) % 2);
            while client.load(ADMIN + 0x1000 + 16 * n + 12) >> 16 != 1 {}
            client.write32(0x1004, (n as u32 + 1) % 2);
        }
        // A list for each command: pages one after the other.
        for slot in 0..u64::from(ENTRIES) {
            let pages =
                (1..256).map(|page| client.at(DATA + ((slot % SLOTS) << 20) + (page << 12)));
            let list: Vec<u8> = pages.flat_map(u64::to_le_bytes).collect();
            client.put(LISTS + (slot << 12), &list);
        }
        Self { client, tail: 0, head: 0, phase: 1 }
    }

    fn add(&mut self, write: bool, place: u64, len: u64) {
        let slot = u64::from(self.tail);
        let data = self.client.at(DATA + ((slot % SLOTS) << 20));
        let second = match len {
            ..=4096 => 0,
            4097..=8192 => data + 4096,
            _ => self.client.at(LISTS + (slot << 12)),
        };
        let block = place / SECTOR;
        let dwords = [block as u32, (block >> 32) as u32, (len / SECTOR) as u32 - 1];
        let command = command(if write { 1 } else { 2 }, 1, [data, second], dwords);
        self.client.put(QUEUE + 64 * slot, &command);
        self.tail = (self.tail + 1) % ENTRIES;
    }

    fn status(&self) -> u32 {
        self.client.load(QUEUE + 0x1000 + 16 * u64::from(self.head) + 12)
    }

    fn is_posted(&self) -> bool {
        self.status() >> 16 & 1 == self.phase
    }

    fn wait(&mut self) {
        while !self.is_posted() {
            self.client.sleep();
        }
        assert_eq!(self.status() >> 17, 0);
        self.head = (self.head + 1) % ENTRIES;
        self.phase ^= u32::from(self.head == 0);
    }
}

impl Disk for Nvme {
    fn client(&self) -> &Client {
        &self.client
    }

    fn run(&mut self, write: bool, places: &mut Places<'_>, len: u64, depth: usize) {
        let mut under_way = 0;
        loop {
            let before = under_way;
            while under_way < depth
                && let Some(place) = places.next()
            {
                self.add(write, place, len);
                under_way += 1;
            }
            if under_way > before {
                self.client.write32(0x1008, self.tail);
            }
            if under_way == 0 {
                return;
            }
            self.wait();
            under_way -= 1;
            while self.is_posted() {
                self.wait();
                under_way -= 1;
            }
            self.client.write32(0x100c, self.head);
        }
    }
}

fn command(opcode: u8, namespace: u32, prps: [u64; 2], dwords: [u32; 3]) -> [u8; 64] {
    let mut bytes = [0; 64];
    bytes[0] = opcode;
    bytes[4..8].copy_from_slice(&namespace.to_le_bytes());
    bytes[24..32].copy_from_slice(&prps[0].to_le_bytes());
    bytes[32..40].copy_from_slice(&prps[1].to_le_bytes());
    for (to, dword) in bytes[40..52].as_chunks_mut().0.iter_mut().zip(dwords) {
        *to = dword.to_le_bytes();
    }
    bytes
}
