//! What drivers do wrong, and what the controller says.

use super::*;
use crate::client::RAM;

const IDENTIFY: u8 = 0x06;
const CREATE_CQ: u8 = 0x05;
const CREATE_SQ: u8 = 0x01;

#[test]
fn each_mistake_has_its_status() {
    let mut nvme = driver(7);
    let mut queue = nvme.queue(1, 16);
    let admin = |opcode, dwords| Command::new(opcode, 0, dwords);
    let mistakes = [
        (admin(0x7f, [0; 6]), 0x001),
        (Command { flags: 1, ..admin(IDENTIFY, [1, 0, 0, 0, 0, 0]) }, 0x002),
        (admin(IDENTIFY, [0x55, 0, 0, 0, 0, 0]), 0x002),
        (Command::new(IDENTIFY, 2, [0; 6]), 0x00b),
        (Command::new(IDENTIFY, !0, [2, 0, 0, 0, 0, 0]), 0x00b),
        (admin(IDENTIFY, [1, 0, 0, 0, 0, 0]).to(IOVA + 2, 0), 0x013),
        (admin(IDENTIFY, [1, 0, 0, 0, 0, 0]).to(IOVA + ANSWER + 64, IOVA + ANSWER + 64), 0x013),
        (admin(IDENTIFY, [1, 0, 0, 0, 0, 0]).to(0, 0), 0x004),
        // Queues: number, size, contiguity, place, vector, completions.
        (admin(CREATE_CQ, [0xf_0000, 1, 0, 0, 0, 0]), 0x101),
        (admin(CREATE_CQ, [0xf_0001, 1, 0, 0, 0, 0]), 0x101),
        (admin(CREATE_CQ, [0xf_0041, 1, 0, 0, 0, 0]), 0x101),
        (admin(CREATE_CQ, [2, 1, 0, 0, 0, 0]), 0x102),
        (admin(CREATE_CQ, [2 | 1024 << 16, 1, 0, 0, 0, 0]), 0x102),
        (admin(CREATE_CQ, [0xf_0002, 0, 0, 0, 0, 0]), 0x002),
        (admin(CREATE_CQ, [0xf_0002, 1, 0, 0, 0, 0]).to(IOVA + 64, 0), 0x013),
        (admin(CREATE_CQ, [0xf_0002, 1 | 65 << 16, 0, 0, 0, 0]), 0x108),
        (admin(CREATE_SQ, [0xf_0002, 1 | 2 << 16, 0, 0, 0, 0]), 0x100),
        (admin(CREATE_SQ, [0xf_0002, 1, 0, 0, 0, 0]), 0x100),
        (admin(0x00, [2, 0, 0, 0, 0, 0]), 0x101),
        (admin(0x04, [0, 0, 0, 0, 0, 0]), 0x101),
        (admin(0x09, [7, 0, 0, 0, 0, 0]), 0x00c),
        (admin(0x09, [0x99, 0, 0, 0, 0, 0]), 0x002),
        (admin(0x09, [1 << 31 | 6, 1, 0, 0, 0, 0]), 0x10d),
        (admin(0x0a, [9, 65, 0, 0, 0, 0]), 0x002),
        (admin(0x02, [0x7f, 0, 0, 0, 0, 0]), 0x109),
        (admin(0x02, [2, 0xffff, 0, 0, 0, 0]), 0x002),
        (admin(0x02, [2, 0, 1024, 0, 0, 0]), 0x002),
    ];
    for (n, (command, status)) in mistakes.into_iter().enumerate() {
        assert_eq!(nvme.run(command).status, status, "admin command {n}");
    }
    let io = |opcode, first, count| Command::io(opcode, 1, first, count);
    // Where lists are: a list of 255 entries, all in place.
    let pages = (1..256).flat_map(|page| (IOVA + DATA + 4096 * page).to_le_bytes());
    nvme.client.put(LISTS, &pages.collect::<Vec<_>>());
    nvme.client.put(LISTS + 0x1000 - 8, &(IOVA + LISTS + 8).to_le_bytes());
    nvme.client.put(LISTS + 0x2000, &(IOVA + DATA + 4).to_le_bytes());
    let end = (16 << 20) / 512;
    let mistakes = [
        (io(0x7f, 0, 1), 0x001),
        (Command { flags: 0x40, ..io(READ, 0, 1) }, 0x002),
        (Command { namespace: 0, ..io(READ, 0, 1) }, 0x00b),
        (Command { namespace: 2, ..io(READ, 0, 1) }, 0x00b),
        (Command { namespace: !0, ..io(READ, 0, 1) }, 0x00b),
        (io(READ, end, 1), 0x080),
        (io(READ, end - 1, 2), 0x080),
        (io(WRITE, u64::MAX, 2), 0x080),
        (io(8, end - 1, 2), 0x080),
        (io(READ, 0, 2049).to(IOVA + DATA, IOVA + LISTS), 0x002),
        (io(READ, 0, 1).to(IOVA + DATA + 2, 0), 0x013),
        (io(READ, 0, 16).to(IOVA + DATA, IOVA + DATA + 4), 0x013),
        (io(READ, 0, 2048).to(IOVA + DATA, IOVA + LISTS + 4), 0x013),
        (io(READ, 0, 24).to(IOVA + DATA, IOVA + LISTS + 0x2000), 0x013),
        (io(READ, 0, 24).to(IOVA + DATA, IOVA + LISTS + 0x1000 - 8), 0x013),
        (io(READ, 0, 1).to(8, 0), 0x004),
        (io(WRITE, 0, 1).to(8, 0), 0x004),
        (io(READ, 0, 2048).to(IOVA + DATA, 8), 0x004),
        (io(READ, 0, 16).to(IOVA + DATA, 4096), 0x004),
        (io(9, 0, 1).to(8, 0), 0x004),
    ];
    for (n, (command, status)) in mistakes.into_iter().enumerate() {
        assert_eq!(queue.run(&nvme.client, command).status, status, "command {n}");
    }
    // The log has the latest first.
    nvme.ok(Command::new(0x02, 0, [1 | 31 << 16, 0, 0, 0, 0, 0]));
    let log = nvme.client.get(ANSWER, 128);
    assert_eq!(word(&log, 0) - word(&log, 64), 1);
    assert_eq!(log[8], 1, "the queue");
    assert_eq!(log[12] >> 1, 4, "its status");
    assert_eq!(queue.run(&nvme.client, io(READ, 0, 1)).status, 0, "it still works");
}

#[test]
fn queues_out_of_reach_are_fatal_and_a_reset_helps() {
    let mut nvme = driver(8);
    for part in 0..2 {
        let mut queue = nvme.queue(1, 16);
        queue.add(&nvme.client, Command::io(READ, 1, 0, 1));
        nvme.client.unmap(queue.places()[part], 4096);
        queue.ring(&nvme.client);
        while nvme.client.read32(CSTS) & 2 == 0 {
            std::thread::yield_now();
        }
        nvme.client.unmap(0, 0);
        nvme.disable();
        assert_eq!(nvme.client.read32(CSTS), 0);
        nvme.enable();
    }
    // What it cannot be enabled with is fatal at once.
    nvme.disable();
    for control in [1 << 4 | 1, 15 << 7 | 1, 1 << 11 | 1] {
        nvme.client.write32(CC, control);
        assert_eq!(nvme.client.read32(CSTS) & 3, 2, "{control:#x}");
        nvme.client.write32(CC, 0);
    }
    nvme.enable();
}

#[test]
fn doorbells_that_mean_nothing_are_events() {
    let mut nvme = driver(9);
    let request = |nvme: &mut Driver| {
        let id = nvme.admin.add(&nvme.client, Command::new(0x0c, 0, [0; 6]));
        nvme.admin.ring(&nvme.client);
        id
    };
    let id = request(&mut nvme);
    nvme.client.write32(0x1000 + 8 * 5, 1);
    let event = nvme.admin.wait(&nvme.client);
    assert_eq!((event.id, event.status, event.dword), (id, 0, 1 << 16), "no such doorbell");
    // The next one is told when the log has been read.
    let id = request(&mut nvme);
    let mut queue = nvme.queue(1, 16);
    nvme.client.write32(0x1000 + 8, 16);
    nvme.client.write32(0x1004 + 8, 3);
    assert_eq!(queue.run(&nvme.client, Command::io(READ, 1, 0, 1)).status, 0, "ignored");
    nvme.admin.add(&nvme.client, Command::new(0x02, 0, [1 | 15 << 16, 0, 0, 0, 0, 0]));
    nvme.admin.ring(&nvme.client);
    let both = [nvme.admin.wait(&nvme.client), nvme.admin.wait(&nvme.client)];
    assert_eq!((both[1].id, both[1].dword), (id, 1 << 8 | 1 << 16), "a value that is none");
    // Only so many may wait.
    let ids: Vec<_> = (0..5).map(|_| request(&mut nvme)).collect();
    let refused = nvme.admin.wait(&nvme.client);
    assert_eq!((refused.id, refused.status), (ids[4], 0x105));
    assert_eq!(nvme.run(Command::new(0x08, 0, [0; 6])).dword, 1, "nothing is aborted");
}

#[test]
fn features_are_kept_until_a_reset() {
    let mut nvme = driver(10);
    let get =
        |nvme: &mut Driver, id, value| nvme.ok(Command::new(0x0a, 0, [id, value, 0, 0, 0, 0]));
    for (id, value, other) in [(1, 0x0102_0304, 0), (4, 350, 0), (8, 0x1234, 0), (0xb, 0x300, 0)] {
        let before = get(&mut nvme, id, other);
        nvme.ok(Command::new(0x09, 0, [id, value, 0, 0, 0, 0]));
        assert_eq!(get(&mut nvme, id, other), value);
        nvme.disable();
        nvme.enable();
        assert_eq!(get(&mut nvme, id, other), before);
    }
    assert_eq!(get(&mut nvme, 6, 0), 1, "the write cache is on");
    nvme.ok(Command::new(0x09, 0, [6, 0, 0, 0, 0, 0]));
    let mut queue = nvme.queue(1, 16);
    assert_eq!(queue.run(&nvme.client, Command::io(WRITE, 1, 0, 8)).status, 0);
    nvme.ok(Command::new(0x09, 0, [9, 1 << 16 | 3, 0, 0, 0, 0]));
    assert_eq!(get(&mut nvme, 9, 3), 1 << 16 | 3);
}

#[test]
fn memory_that_goes_away_under_commands_and_a_device_that_is_closed_under_them() {
    for round in 0..20 {
        let mut nvme = driver(11);
        let mut queue = nvme.queue(1, 16);
        let pages: Vec<_> = (1..256).map(|page| IOVA + DATA + 4096 * page).collect();
        let [prp1, prp2] = nvme.list(IOVA + DATA, &pages, LISTS);
        // An area of its own for the data: it can go alone.
        nvme.client.unmap(DATA, 0);
        for _ in 0..10 {
            let opcode = if round % 2 == 0 { READ } else { WRITE };
            queue.add(&nvme.client, Command::io(opcode, 1, 0, 2048).to(prp1, prp2));
        }
        queue.ring(&nvme.client);
        if round % 4 == 3 {
            // Bound again in the next round, which begins with a controller that is off.
            continue;
        }
        if round % 4 == 2 {
            // All at once, its queues included.
            nvme.client.detach();
            queue.add(&nvme.client, Command::io(READ, 1, 0, 1));
            queue.ring(&nvme.client);
            while nvme.client.read32(CSTS) & 2 == 0 {
                std::thread::yield_now();
            }
            continue;
        }
        nvme.client.unmap_area(DATA, RAM - DATA);
        let ends: Vec<_> = (0..10).map(|_| queue.wait(&nvme.client).status).collect();
        assert!(ends.iter().all(|status| [0, 4].contains(status)), "{ends:?}");
        let command = Command::io(READ, 1, 0, 2048).to(prp1, prp2);
        assert_eq!(queue.run(&nvme.client, command).status, 4);
        nvme.client.unmap(0, 0);
        assert_eq!(queue.run(&nvme.client, command).status, 0);
    }
}
