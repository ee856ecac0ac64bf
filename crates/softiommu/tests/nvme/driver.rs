//! An NVMe driver in user space, of the simple kind: one command at a time, polled.

use crate::client::{Client, IOVA};

pub(crate) const INTMS: u64 = 0x0c;
pub(crate) const INTMC: u64 = 0x10;
pub(crate) const CC: u64 = 0x14;
pub(crate) const CSTS: u64 = 0x1c;
pub(crate) const AQA: u64 = 0x24;
pub(crate) const ASQ: u64 = 0x28;
pub(crate) const ACQ: u64 = 0x30;
/// 4 KiB pages, entries of 64 and 16 bytes, enabled.
pub(crate) const CC_ENABLED: u32 = 6 << 16 | 4 << 20 | 1;

/// Memory, by offset: the admin queues, I/O queues, what commands return, PRP lists, data.
const QUEUES: u64 = 0;
pub(crate) const ANSWER: u64 = 0x10_000;
pub(crate) const LISTS: u64 = 0x20_000;
pub(crate) const DATA: u64 = 0x100_000;

/// A command: opcode, namespace, PRPs, dwords 10 to 15.
#[derive(Clone, Copy, Default)]
pub(crate) struct Command {
    pub(crate) opcode: u8,
    pub(crate) flags: u8,
    pub(crate) id: u16,
    pub(crate) namespace: u32,
    pub(crate) prp: [u64; 2],
    pub(crate) dwords: [u32; 6],
}

impl Command {
    pub(crate) fn new(opcode: u8, namespace: u32, dwords: [u32; 6]) -> Self {
        Self { opcode, namespace, dwords, prp: [IOVA + ANSWER, 0], ..Self::default() }
    }

    /// Read or write of blocks.
    pub(crate) fn io(opcode: u8, namespace: u32, block: u64, count: u32) -> Self {
        let dwords = [block as u32, (block >> 32) as u32, count - 1, 0, 0, 0];
        Self { prp: [IOVA + DATA, 0], ..Self::new(opcode, namespace, dwords) }
    }

    pub(crate) fn to(self, prp1: u64, prp2: u64) -> Self {
        Self { prp: [prp1, prp2], ..self }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; 64];
        bytes[0] = self.opcode;
        bytes[1] = self.flags;
        bytes[2..4].copy_from_slice(&self.id.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.namespace.to_le_bytes());
        for (at, prp) in [24, 32].into_iter().zip(self.prp) {
            bytes[at..at + 8].copy_from_slice(&prp.to_le_bytes());
        }
        for (at, dword) in (40..).step_by(4).zip(self.dwords) {
            bytes[at..at + 4].copy_from_slice(&dword.to_le_bytes());
        }
        bytes
    }
}

/// What a completion says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Completion {
    pub(crate) dword: u32,
    pub(crate) head: u16,
    pub(crate) queue: u16,
    pub(crate) id: u16,
    /// Status code and its type, without the bits that say what to do about it.
    pub(crate) status: u16,
    pub(crate) do_not_retry: bool,
}

/// A queue pair; entries in one page each.
pub(crate) struct Queue {
    id: u64,
    size: u32,
    tail: u32,
    head: u32,
    phase: bool,
    commands: u16,
}

impl Queue {
    pub(crate) fn new(id: u64, size: u32) -> Self {
        Self { id, size, tail: 0, head: 0, phase: true, commands: 0 }
    }

    /// Where its entries are: commands, and completions.
    pub(crate) fn places(&self) -> [u64; 2] {
        [QUEUES + 0x2000 * self.id, QUEUES + 0x2000 * self.id + 0x1000]
    }

    /// Puts a command into the queue, without telling.
    pub(crate) fn add(&mut self, client: &Client, command: Command) -> u16 {
        self.commands += 1;
        let command = Command { id: self.commands, ..command };
        client.put(self.places()[0] + 64 * u64::from(self.tail), &command.bytes());
        self.tail = (self.tail + 1) % self.size;
        command.id
    }

    pub(crate) fn ring(&self, client: &Client) {
        client.write32(0x1000 + 8 * self.id, self.tail);
    }

    /// The next completion, if there is one; the entry stays the controller's until `free`.
    pub(crate) fn peek(&mut self, client: &Client) -> Option<Completion> {
        let entry: [u8; 16] = client.get_array(self.places()[1] + 16 * u64::from(self.head));
        let half = |at: usize| u16::from_le_bytes([entry[at], entry[at + 1]]);
        let status = half(14);
        if (status & 1 != 0) != self.phase {
            return None;
        }
        self.head = (self.head + 1) % self.size;
        self.phase ^= self.head == 0;
        Some(Completion {
            dword: u32::from_le_bytes(entry[..4].try_into().unwrap()),
            head: half(8),
            queue: half(10),
            id: half(12),
            status: status >> 1 & 0x7ff,
            do_not_retry: status >> 15 != 0,
        })
    }

    /// Gives the controller back what was seen.
    pub(crate) fn free(&self, client: &Client) {
        client.write32(0x1004 + 8 * self.id, self.head);
    }

    pub(crate) fn wait(&mut self, client: &Client) -> Completion {
        loop {
            if let Some(completion) = self.peek(client) {
                self.free(client);
                return completion;
            }
            std::thread::yield_now();
        }
    }

    /// One command and its completion.
    pub(crate) fn run(&mut self, client: &Client, command: Command) -> Completion {
        let id = self.add(client, command);
        self.ring(client);
        let completion = self.wait(client);
        assert_eq!((completion.id, u64::from(completion.queue)), (id, self.id));
        completion
    }
}

/// A controller that is enabled.
pub(crate) struct Driver {
    pub(crate) client: Client,
    pub(crate) admin: Queue,
}

impl Driver {
    pub(crate) fn new(n: usize) -> Self {
        let mut driver = Self { client: Client::new(n), admin: Queue::new(0, 16) };
        driver.enable();
        driver
    }

    /// From disabled to ready.
    pub(crate) fn enable(&mut self) {
        self.admin = Queue::new(0, 16);
        let [commands, completions] = self.admin.places();
        self.client.put(completions, &[0; 4096]);
        self.client.write32(AQA, 15 | 15 << 16);
        self.client.write(ASQ, &(IOVA + commands).to_le_bytes());
        self.client.write(ACQ, &(IOVA + completions).to_le_bytes());
        self.client.write32(CC, CC_ENABLED);
        while self.client.read32(CSTS) & 1 == 0 {
            assert_eq!(self.client.read32(CSTS), 0, "fatal");
        }
    }

    pub(crate) fn disable(&self) {
        self.client.write32(CC, 0);
        while self.client.read32(CSTS) & 1 != 0 {}
    }

    pub(crate) fn run(&mut self, command: Command) -> Completion {
        self.admin.run(&self.client, command)
    }

    /// As `run`, for what cannot fail.
    pub(crate) fn ok(&mut self, command: Command) -> u32 {
        let completion = self.run(command);
        assert_eq!(completion.status, 0, "opcode {:#x}", command.opcode);
        completion.dword
    }

    /// Identify; the answer.
    pub(crate) fn identify(&mut self, cns: u32, namespace: u32) -> Vec<u8> {
        self.ok(Command::new(0x06, namespace, [cns, 0, 0, 0, 0, 0]));
        self.client.get(ANSWER, 4096)
    }

    /// An I/O queue pair with a vector of its own number.
    pub(crate) fn queue(&mut self, id: u64, size: u32) -> Queue {
        let queue = Queue::new(id, size);
        let [commands, completions] = queue.places();
        self.client.put(completions, &[0; 4096]);
        let number = id as u32 | (size - 1) << 16;
        let create = Command::new(0x05, 0, [number, 0b11 | (id as u32) << 16, 0, 0, 0, 0]);
        self.ok(create.to(IOVA + completions, 0));
        let create = Command::new(0x01, 0, [number, 1 | (id as u32) << 16, 0, 0, 0, 0]);
        self.ok(create.to(IOVA + commands, 0));
        queue
    }

    /// The PRPs of `len` bytes, page after page in this order, with the list at an offset of memory.
    pub(crate) fn list(&self, first: u64, pages: &[u64], list: u64) -> [u64; 2] {
        match *pages {
            [] => [first, 0],
            [page] => [first, page],
            _ => {
                let mut at = list;
                let mut left = pages;
                while let Some((page, rest)) = left.split_first() {
                    // The last entry of a page of the list, with more to come: where it goes on.
                    let next = (at + 8).next_multiple_of(4096);
                    if at % 4096 == 4088 && !rest.is_empty() {
                        // Not the page behind it.
                        self.client.put(at, &(IOVA + next + 4096).to_le_bytes());
                        at = next + 4096;
                        continue;
                    }
                    self.client.put(at, &page.to_le_bytes());
                    (at, left) = (at + 8, rest);
                }
                [first, IOVA + list]
            }
        }
    }
}
