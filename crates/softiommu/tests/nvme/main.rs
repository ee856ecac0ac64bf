//! The NVMe controller, driven through `/dev/iommu` and the VFIO cdev as drivers in user space do.

#[path = "../client/mod.rs"]
mod client;
mod driver;
mod errors;

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

use client::{INTX, IOVA, MSI, MSIX, Random};
use driver::{ANSWER, CC, CSTS, Command, DATA, Driver, INTMC, INTMS, LISTS};

const READ: u8 = 2;
const WRITE: u8 = 1;
/// How many controllers there are: each test has its own. The first has three disks.
const CONTROLLERS: usize = 12;

/// The disks of the first controller: 512-byte blocks; 4096-byte blocks in memory; read-only.
const SIZES: [u64; 3] = [1 << 20, 8 << 20, 64 << 10];

fn pattern(len: u64, seed: u64) -> Vec<u8> {
    Random(seed).bytes(len as usize)
}

/// The images of the machine: a file that is written, one that is only read, one that shrinks.
struct Images {
    written: File,
    read: File,
    shrinks: File,
}

fn install() -> &'static Images {
    static IMAGES: OnceLock<Images> = OnceLock::new();
    IMAGES.get_or_init(|| {
        let images = Images {
            written: client::memory_file(&pattern(SIZES[0], SIZES[0])),
            read: client::memory_file(&pattern(SIZES[2], SIZES[2])),
            shrinks: client::memory_file(&pattern(1 << 20, 1)),
        };
        let image = |file: &File| format!("image = \"/proc/self/fd/{}\"", file.as_raw_fd());
        let [written, read, shrinks] = [&images.written, &images.read, &images.shrinks].map(image);
        let disks = |n| match n {
            0 => format!(
                "namespaces = [{{ {written} }}, {{ memory = \"8MiB\", block-size = 4096 }}, \
                 {{ {read}, read-only = true }}]"
            ),
            1 => shrinks.clone(),
            _ => "memory = \"16MiB\"".to_owned(),
        };
        let device = |n| {
            let disks = disks(n);
            format!("[[device]]\nname = \"d{n}\"\nmodel = \"nvme\"\niommu = \"s\"\n{disks}\n")
        };
        let devices: Vec<_> = (0..CONTROLLERS).map(device).collect();
        let text = format!("[[iommu]]\nname = \"s\"\nmodel = \"smmuv3\"\n{}", devices.concat());
        softiommu::install(softiommu::Machine::from_toml(&text).unwrap()).unwrap();
        images
    })
}

fn driver(n: usize) -> Driver {
    install();
    Driver::new(n)
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

#[test]
fn what_it_is_and_the_data_of_its_disks() {
    let images = install();
    let mut nvme = driver(0);
    assert_eq!(nvme.client.config(9, 3), [0x02, 0x08, 0x01], "the class that drivers look for");
    let controller = nvme.identify(1, 0);
    assert_eq!(controller[77], 8, "1 MiB at a time");
    assert!(controller[4..].starts_with(b"d0 ") && controller[24..].starts_with(b"softiommu"));
    assert!(controller[768..].starts_with(b"nqn.2014-08.org.nvmexpress:uuid:"));
    assert_eq!((word(&controller, 516), word(&controller, 80)), (3, 0x1_0400));
    let list = nvme.identify(2, 1);
    assert_eq!([word(&list, 0), word(&list, 4), word(&list, 8)], [2, 3, 0]);
    for (n, (len, shift)) in (1..).zip([(SIZES[0], 9), (SIZES[1], 12), (SIZES[2], 9)]) {
        let namespace = nvme.identify(0, n);
        assert_eq!(u64::from(word(&namespace, 0)), len >> shift);
        assert_eq!(namespace[130], shift);
        assert_eq!(namespace[99], u8::from(n == 3), "write protected");
        assert_eq!(nvme.identify(3, n)[..2], [3, 16], "a UUID");
    }
    // Data: each disk against what it should be, with every form of PRPs.
    let mut expected =
        [pattern(SIZES[0], SIZES[0]), vec![0; SIZES[1] as usize], pattern(SIZES[2], SIZES[2])];
    let mut queue = nvme.queue(1, 16);
    let mut random = Random(7);
    for round in 0..300 {
        let n = random.below(3) as usize;
        let block = [512, 4096, 512][n];
        let longest = (SIZES[n] / block).min((1 << 20) / block);
        let count = 1 + if round % 8 == 0 { longest - 1 } else { random.below(longest.min(100)) };
        let first = random.below(SIZES[n] / block - count + 1);
        let len = (count * block) as usize;
        // Pages of the data in an order of their own, the first from the middle.
        let offset = 4 * random.below(1024);
        let pages = (len as u64 + offset).div_ceil(4096);
        let mut order: Vec<_> = (0..pages).map(|page| DATA + 4096 * page).collect();
        for i in (1..order.len()).rev() {
            if round % 3 != 0 {
                order.swap(i, random.below(i as u64 + 1) as usize);
            }
        }
        // Where the bytes of the data are, one after the other.
        let mut at = order[0] + offset;
        let mut parts = Vec::new();
        let mut left = len;
        for next in order.iter().skip(1).copied().chain([0]) {
            let part = left.min((4096 - at % 4096) as usize);
            parts.push((at, part));
            (at, left) = (next, left - part);
        }
        let iovas: Vec<_> = order[1..].iter().map(|page| IOVA + page).collect();
        // Lists begin anywhere, also in the last entry of a page.
        let list = LISTS + 4096 - 8 * (1 + random.below(4));
        let [prp1, prp2] = nvme.list(IOVA + order[0] + offset, &iovas, list);
        let start = (first * block) as usize;
        let write = random.below(2) == 0;
        if write {
            let new = random.bytes(len);
            let mut rest = &new[..];
            for (at, part) in &parts {
                nvme.client.put(*at, &rest[..*part]);
                rest = &rest[*part..];
            }
            let command = Command::io(WRITE, n as u32 + 1, first, count as u32).to(prp1, prp2);
            let status = queue.run(&nvme.client, command).status;
            if n == 2 {
                assert_eq!(status, 0x20, "write protected");
            } else {
                assert_eq!(status, 0);
                expected[n][start..start + len].copy_from_slice(&new);
            }
        } else {
            let command = Command::io(READ, n as u32 + 1, first, count as u32).to(prp1, prp2);
            assert_eq!(queue.run(&nvme.client, command).status, 0);
            let got: Vec<u8> =
                parts.iter().flat_map(|(at, part)| nvme.client.get(*at, *part)).collect();
            assert!(got == expected[n][start..start + len], "round {round}");
        }
    }
    // Zeros, one range of blocks given up, and all of it in the file.
    let zero = Command::io(8, 1, 3, 10);
    assert_eq!(queue.run(&nvme.client, zero).status, 0);
    expected[0][3 * 512..13 * 512].fill(0);
    let range = [0, 4, 100, 0].map(u32::to_le_bytes).concat();
    nvme.client.put(DATA, &range);
    let mut deallocate = Command::io(9, 1, 0, 1);
    deallocate.dwords[1] = 1 << 2;
    assert_eq!(queue.run(&nvme.client, deallocate).status, 0);
    assert_eq!(queue.run(&nvme.client, Command::io(0, !0, 0, 1)).status, 0, "flush");
    let contents = |file: &File| {
        let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    };
    let mut file = contents(&images.written);
    file.drain(100 * 512..104 * 512);
    expected[0].drain(100 * 512..104 * 512);
    assert!(file == expected[0], "the file is what was written");
    assert!(contents(&images.read) == expected[2]);
    // What was moved is in the health log.
    nvme.ok(Command::new(0x02, !0, [2 | 127 << 16, 0, 0, 0, 0, 0]));
    let health = nvme.client.get(ANSWER, 512);
    assert!(word(&health, 64) > 50 && word(&health, 80) > 50, "commands");
}

#[test]
fn an_image_that_shrinks_gives_media_errors() {
    let images = install();
    let mut nvme = driver(1);
    let mut queue = nvme.queue(1, 16);
    images.shrinks.set_len(4096).unwrap();
    let mut status = |opcode, first| {
        let completion = queue.run(&nvme.client, Command::io(opcode, 1, first, 4));
        (completion.status, completion.do_not_retry)
    };
    assert_eq!(status(READ, 4), (0, false));
    assert_eq!(status(READ, 6), (0x281, false), "unrecovered read error");
    assert_eq!(status(WRITE, 6), (0x280, false), "write fault");
    assert_eq!(status(WRITE, 4), (0, false));
    assert_eq!(images.shrinks.metadata().unwrap().len(), 4096);
}

#[test]
fn several_queues_are_served_and_full_ones_wait() {
    let mut nvme = driver(2);
    assert_eq!(nvme.ok(Command::new(0x0a, 0, [7, 0, 0, 0, 0, 0])), 63 | 63 << 16);
    let mut queues: Vec<_> = (1..=4).map(|id| nvme.queue(id, 4)).collect();
    for (n, queue) in queues.iter_mut().enumerate() {
        for _ in 0..3 {
            queue.add(&nvme.client, Command::io(READ, 1, n as u64, 1));
        }
        queue.ring(&nvme.client);
    }
    for queue in &mut queues {
        for n in 1..=3 {
            assert_eq!(queue.wait(&nvme.client).id, n);
        }
    }
    // Three completions fill a queue of four; what is more waits for the host.
    let queue = &mut queues[0];
    for _ in 0..3 {
        queue.add(&nvme.client, Command::io(READ, 1, 0, 1));
    }
    queue.ring(&nvme.client);
    let seen: Vec<_> = std::iter::from_fn(|| {
        loop {
            if let Some(completion) = queue.peek(&nvme.client) {
                return Some(completion.id);
            }
        }
    })
    .take(3)
    .collect();
    assert_eq!(seen, [4, 5, 6]);
    queue.add(&nvme.client, Command::io(READ, 1, 0, 1));
    queue.ring(&nvme.client);
    // Other queues go on meanwhile.
    assert_eq!(nvme.run(Command::new(0x06, 0, [1, 0, 0, 0, 0, 0])).status, 0);
    assert_eq!(queue.peek(&nvme.client), None);
    queue.free(&nvme.client);
    assert_eq!(queue.wait(&nvme.client).id, 7);
    // Queues go in the order that keeps them whole.
    let delete = |opcode, id| Command::new(opcode, 0, [id, 0, 0, 0, 0, 0]);
    assert_eq!(nvme.run(delete(0x04, 1)).status, 0x10c, "it has a submission queue");
    nvme.ok(delete(0x00, 1));
    nvme.ok(delete(0x04, 1));
    nvme.queue(1, 16);
}

#[test]
fn messages_of_each_queue_signal_their_eventfds() {
    let mut nvme = driver(3);
    let events = nvme.client.enable_interrupts(MSIX, 4);
    let mut queues = [nvme.queue(1, 8), nvme.queue(3, 8)];
    assert!(events[0].count() > 0, "the admin queue's");
    for queue in &mut queues {
        assert_eq!(queue.run(&nvme.client, Command::io(READ, 1, 0, 1)).status, 0);
    }
    assert_eq!((events[1].wait(), events[3].wait()), (1, 1));
    assert_eq!(events[2].count(), 0);
    // MSI-X has masks of its own: the registers are not for it.
    nvme.client.write32(INTMS, !0);
    queues[0].run(&nvme.client, Command::io(READ, 1, 0, 1));
    assert_eq!(events[1].wait(), 1);
    nvme.client.disable_interrupts(MSIX);
    // MSI: the masks count, and what came meanwhile is told afterwards.
    let events = nvme.client.enable_interrupts(MSI, 4);
    queues[0].add(&nvme.client, Command::io(READ, 1, 0, 1));
    queues[0].ring(&nvme.client);
    while queues[0].peek(&nvme.client).is_none() {}
    // Behind the next command of another queue, the first one's interrupt is decided.
    queues[1].run(&nvme.client, Command::io(READ, 1, 0, 1));
    assert_eq!(events[1].count(), 0, "masked");
    nvme.client.write32(INTMC, 1 << 1);
    assert_eq!(events[1].wait(), 1);
}

#[test]
fn the_line_is_asserted_until_completions_are_seen() {
    let mut nvme = driver(4);
    let mut queue = nvme.queue(1, 8);
    let [line] = &nvme.client.enable_interrupts(INTX, 1)[..] else { panic!("there is one") };
    assert_eq!(line.count(), 0, "all is seen");
    queue.add(&nvme.client, Command::io(READ, 1, 0, 1));
    queue.ring(&nvme.client);
    assert_eq!(line.wait(), 1);
    assert_eq!(nvme.client.config(6, 1)[0] & 8, 8, "STATUS.Interrupt Status");
    nvme.client.unmask_line();
    assert_eq!(line.wait(), 1, "again: nobody has seen it");
    nvme.client.write32(INTMS, 1 << 1);
    nvme.client.unmask_line();
    assert_eq!(line.count(), 0, "masked in the controller");
    nvme.client.write32(INTMC, 1 << 1);
    assert_eq!(line.wait(), 1);
    queue.wait(&nvme.client);
    nvme.client.unmask_line();
    assert_eq!(line.count(), 0);
    assert_eq!(nvme.client.config(6, 1)[0] & 8, 0);
}

#[test]
fn a_reset_in_the_middle_of_commands_leaves_a_controller_that_works() {
    let mut nvme = driver(5);
    for round in 0..60 {
        let mut queue = nvme.queue(1, 16);
        let pages: Vec<_> = (1..256).map(|page| IOVA + DATA + 4096 * page).collect();
        let [prp1, prp2] = nvme.list(IOVA + DATA, &pages, LISTS);
        for _ in 0..10 {
            queue.add(&nvme.client, Command::io(READ, 1, 0, 2048).to(prp1, prp2));
        }
        queue.ring(&nvme.client);
        for _ in 0..round {
            std::hint::spin_loop();
        }
        match round % 3 {
            0 => nvme.disable(),
            1 => nvme.client.reset(),
            // Off the bus, too.
            _ => {
                nvme.client.reset();
                assert_eq!(nvme.client.read32(CC), 0);
            }
        }
        // Nothing comes afterwards.
        nvme.client.put(DATA, &[0x5a; 4096]);
        let places = queue.places();
        nvme.client.put(places[1], &[0; 4096]);
        nvme.enable();
        assert_eq!(nvme.client.get(DATA, 4096), [0x5a; 4096]);
        assert_eq!(nvme.client.get(places[1], 4096), [0; 4096]);
    }
}

#[test]
fn a_shutdown_is_told_when_all_is_written() {
    let nvme = driver(6);
    let control = nvme.client.read32(CC);
    nvme.client.write32(CC, control | 0b01 << 14);
    while nvme.client.read32(CSTS) & 0b1100 != 0b1000 {
        std::thread::yield_now();
    }
    nvme.disable();
    assert_eq!(nvme.client.read32(CSTS), 0);
}
