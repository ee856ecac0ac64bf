//! The virtio block device, driven through `/dev/iommu` and the VFIO cdev as drivers in user space do.

#[path = "../client/mod.rs"]
mod client;
mod driver;
mod hostile;

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

use client::{INTX, IOVA, MSIX, Random};
use driver::{
    BEGUN, DATA, Driver, FEATURE_EVENT_IDX, FEATURE_FLUSH, FEATURE_INDIRECT, FEATURE_MQ,
    FEATURE_RO, FEATURE_VERSION_1, FEATURES_OK, FLUSH, GET_ID, IN, NEEDS_RESET, OUT, Part,
    QUEUE_SELECT, QUEUE_SIZE, QUEUE_VECTOR, STATUS,
};

/// How many devices there are: each test has its own.
const DEVICES: usize = 10;
const SIZE: u64 = 4 << 20;
const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;
const ALL: u64 = !0;

/// The images of the machine: a file that is written, one that is only read.
struct Images {
    written: File,
    read: File,
}

fn install() -> &'static Images {
    static IMAGES: OnceLock<Images> = OnceLock::new();
    IMAGES.get_or_init(|| {
        let contents = Random(3).bytes(SIZE as usize);
        let images = Images {
            written: client::memory_file(&contents),
            read: client::memory_file(&contents),
        };
        let image = |file: &File| format!("image = \"/proc/self/fd/{}\"", file.as_raw_fd());
        let (written, read) = (image(&images.written), image(&images.read));
        let device = |n| {
            let disk = match n {
                0 => written.clone(),
                1 => format!("{read}\nread-only = true\nblock-size = 4096"),
                _ => "memory = \"4MiB\"".to_owned(),
            };
            format!(
                "[[device]]\nname = \"d{n}\"\nmodel = \"virtio-blk\"\niommu = \"s\"\nqueues = 2\n{disk}\n"
            )
        };
        let devices: Vec<_> = (0..DEVICES).map(device).collect();
        let text =
            format!("[[iommu]]\nname = \"s\"\nmodel = \"smmuv3\"\n{}", devices.concat());
        softiommu::install(softiommu::Machine::from_toml(&text).unwrap()).unwrap();
        images
    })
}

fn found(n: usize) -> Driver {
    install();
    Driver::found(n)
}

fn driver(n: usize, features: u64) -> Driver {
    install();
    Driver::new(n, features)
}

const SECTOR_IN: Part = (IOVA + DATA, 512, true);
const SECTOR_OUT: Part = (IOVA + DATA, 512, false);

#[test]
fn data_is_what_was_written_with_every_shape_of_buffer() {
    let images = install();
    let mut disk = driver(0, 0);
    let mut expected = vec![0; SIZE as usize];
    images.written.read_exact_at(&mut expected, 0).unwrap();
    let mut random = Random(11);
    for features in [0, FEATURE_INDIRECT, FEATURE_EVENT_IDX, ALL] {
        disk.start(features, 2);
        for round in 0..150 {
            let sectors = 1 + random.below(if round % 10 == 0 { 2048 } else { 40 });
            let sector = random.below(SIZE / 512 - sectors + 1);
            let len = (sectors * 512) as usize;
            let write = random.below(2) == 0;
            // The data in pieces of any length, anywhere, in an order of their own.
            let count = 1 + random.below(20);
            let mut cuts: Vec<_> = (1..count).map(|_| random.below(len as u64)).collect();
            cuts.extend([0, len as u64]);
            cuts.sort_unstable();
            let mut parts = Vec::new();
            let mut at = DATA;
            for pair in cuts.windows(2) {
                at += random.below(5000);
                parts.push((IOVA + at, (pair[1] - pair[0]) as u32, !write));
                at += pair[1] - pair[0];
            }
            let start = (sector * 512) as usize;
            if write {
                expected[start..start + len].copy_from_slice(&random.bytes(len));
                for (part, cut) in parts.iter().zip(&cuts) {
                    let from = start + *cut as usize;
                    let bytes = &expected[from..from + part.1 as usize];
                    disk.client.put(part.0 - IOVA, bytes);
                }
            }
            let queue = random.below(2) as usize;
            let kind = if write { OUT } else { IN };
            let all = disk.request(kind, sector, &parts, &mut random);
            let direct = if features & FEATURE_INDIRECT == 0 {
                all.len()
            } else {
                random.below(all.len() as u64 + 1) as usize
            };
            disk.submit(queue, &all, direct);
            let written = disk.wait(queue);
            assert_eq!(disk.answer(), OK);
            assert_eq!(written as usize, if write { 1 } else { len + 1 });
            if !write {
                let get = |part: &Part| disk.client.get(part.0 - IOVA, part.1 as usize);
                let got: Vec<u8> = parts.iter().flat_map(get).collect();
                assert!(got == expected[start..start + len], "round {round}");
            }
        }
        assert_eq!(disk.run(FLUSH, 0, &[]), (OK, 1));
    }
    // A range of zeros, and one that is given up.
    for (kind, range) in [(13, [8_u64, 4 | 1 << 32]), (11, [20, 4])] {
        disk.client.put(DATA, &range.map(u64::to_le_bytes).concat());
        assert_eq!(disk.run(kind, 0, &[(IOVA + DATA, 16, false)]).0, OK);
    }
    expected[8 * 512..12 * 512].fill(0);
    let mut file = vec![0; SIZE as usize];
    images.written.read_exact_at(&mut file, 0).unwrap();
    for bytes in [&mut file, &mut expected] {
        bytes[20 * 512..24 * 512].fill(0);
    }
    assert!(file == expected, "the file is what was written");
}

#[test]
fn what_cannot_be_written_is_read() {
    let mut disk = driver(1, ALL);
    // Others may read the file meanwhile, and nobody may write it.
    let path = format!("/proc/self/fd/{}", install().read.as_raw_fd());
    let other = File::open(path).unwrap();
    assert!(other.try_lock().is_err());
    other.try_lock_shared().unwrap();
    other.unlock().unwrap();
    drop(disk);
    other.try_lock().unwrap();
    assert_eq!(client::Client::bind(1).err(), Some(libc::EBUSY));
    other.unlock().unwrap();
    disk = driver(1, ALL);
    assert_ne!(disk.features & FEATURE_RO, 0);
    assert_eq!(disk.features & (1 << 13 | 1 << 14), 0, "nothing that writes");
    assert_eq!(u32::from_le_bytes(disk.config(20)), 4096, "blk_size");
    assert_eq!(disk.run(IN, 8, &[SECTOR_IN]), (OK, 513));
    let mut sector = [0; 512];
    install().read.read_exact_at(&mut sector, 8 * 512).unwrap();
    assert_eq!(disk.client.get_array(DATA), sector);
    for kind in [OUT, 13] {
        assert_eq!(disk.run(kind, 8, &[SECTOR_OUT]).0, IOERR);
    }
    assert_eq!(disk.run(FLUSH, 0, &[]).0, OK);
}

#[test]
fn what_it_is_and_how_it_is_configured() {
    let mut disk = found(2);
    assert_eq!(disk.client.config(0, 4), [0xf4, 0x1a, 0x42, 0x10]);
    assert_eq!(u64::from_le_bytes(disk.config(0)), SIZE / 512, "capacity");
    assert_eq!(u16::from_le_bytes(disk.config(34)), 2, "num_queues");
    assert_eq!(u16::from_le_bytes(disk.common(18)), 2, "num_queues of the transport");
    // Features: without VERSION_1, or with some that were not offered, there is no FEATURES_OK.
    let offered = disk.offered();
    assert_ne!(offered & FEATURE_MQ, 0);
    for (features, fine) in
        [(0, false), (FEATURE_VERSION_1, true), (offered, true), (offered | 1 << 40, false)]
    {
        disk.reset();
        disk.set_common(STATUS, &[BEGUN]);
        disk.accept(features);
        disk.set_common(STATUS, &[BEGUN | FEATURES_OK]);
        assert_eq!(disk.status() & FEATURES_OK != 0, fine, "{features:#x}");
    }
    // Queues that there are not, sizes and vectors that there are not.
    let half = |disk: &Driver, at| u16::from_le_bytes(disk.common(at));
    disk.reset();
    disk.set_common(QUEUE_SELECT, &[2, 0]);
    assert_eq!((half(&disk, QUEUE_SIZE), half(&disk, QUEUE_VECTOR)), (0, 0xffff));
    disk.set_common(QUEUE_SELECT, &[1, 0]);
    assert_eq!(half(&disk, QUEUE_SIZE), 256);
    for (size, expected) in [(100_u16, 256), (0, 256), (512, 256), (8, 8)] {
        disk.set_common(QUEUE_SIZE, &size.to_le_bytes());
        assert_eq!(half(&disk, QUEUE_SIZE), expected);
    }
    for (vector, expected) in [(2_u16, 2), (3, 0xffff)] {
        disk.set_common(QUEUE_VECTOR, &vector.to_le_bytes());
        assert_eq!(half(&disk, QUEUE_VECTOR), expected);
    }
    // Its name; its cache.
    disk.start(ALL, 1);
    assert_eq!(disk.run(GET_ID, 0, &[(IOVA + DATA, 20, true)]), (OK, 21));
    assert_eq!(&disk.client.get_array::<4>(DATA), b"d2\0\0");
    assert_eq!(disk.config(32), [1]);
    disk.set_config(32, &[0]);
    assert_eq!(disk.config(32), [0]);
    assert_eq!(disk.run(OUT, 0, &[SECTOR_OUT]), (OK, 1));
    disk.start(FEATURE_FLUSH, 1);
    disk.set_config(32, &[0]);
    assert_eq!(disk.config(32), [1], "not without CONFIG_WCE");
}

#[test]
fn messages_of_each_queue_signal_their_eventfds() {
    for features in [0, FEATURE_EVENT_IDX] {
        let mut disk = driver(3, features);
        let events = disk.client.enable_interrupts(MSIX, 3);
        for queue in 0..2 {
            let parts = disk.request(IN, 0, &[SECTOR_IN], &mut Random(1));
            disk.submit(queue, &parts, parts.len());
            disk.wait(queue);
            assert_eq!(events[queue + 1].wait(), 1);
        }
        // Not where the driver does not want to know.
        let [_, ring, _] = disk.queues[0].places();
        if features == 0 {
            disk.client.put(ring, &[1, 0]);
        }
        disk.run(IN, 0, &[SECTOR_IN]);
        // The next one of another queue comes after what is decided for this one.
        let parts = disk.request(IN, 0, &[SECTOR_IN], &mut Random(1));
        disk.submit(1, &parts, parts.len());
        disk.wait(1);
        let asked = u64::from(features == 0);
        if asked == 1 {
            events[2].wait();
        }
        assert_eq!((events[0].count(), events[1].count()), (0, 0));
        assert_eq!(disk.isr(), 0, "that is for the line");
        // With an index of its own choice it is told once.
        if features != 0 {
            let at = ring + 4 + 2 * u64::from(disk.queues[0].size);
            disk.client.put(at, &3_u16.to_le_bytes());
            for _ in 0..3 {
                disk.run(IN, 0, &[SECTOR_IN]);
            }
            assert_eq!(events[1].wait(), 1);
        }
    }
}

#[test]
fn the_line_is_asserted_until_the_status_is_read() {
    let mut disk = driver(4, ALL);
    let [line] = &disk.client.enable_interrupts(INTX, 1)[..] else { panic!("there is one") };
    assert_eq!(disk.run(IN, 0, &[SECTOR_IN]).0, OK);
    assert_eq!(line.wait(), 1);
    disk.client.unmask_line();
    assert_eq!(line.wait(), 1, "again: nobody has looked");
    assert_eq!(disk.isr(), 1);
    disk.client.unmask_line();
    assert_eq!((line.count(), disk.isr()), (0, 0));
}

#[test]
fn a_reset_in_the_middle_of_requests_leaves_a_device_that_works() {
    let mut disk = driver(5, 0);
    for round in 0..60 {
        let queue = &disk.queues[0];
        let used = queue.places()[2];
        let data = (IOVA + DATA, 2 << 20, true);
        let parts = disk.request(IN, 0, &[data], &mut Random(1));
        for _ in 0..20 {
            disk.submit(0, &parts, parts.len());
        }
        for _ in 0..round {
            std::hint::spin_loop();
        }
        if round % 2 == 0 {
            disk.reset();
        } else {
            disk.client.reset();
            assert_eq!(disk.status(), 0);
        }
        // Nothing comes afterwards.
        disk.client.put(used, &[0; 4]);
        disk.client.put(DATA, &[0x5a; 4096]);
        disk.start(0, 1);
        assert_eq!(disk.client.get(DATA, 4096), [0x5a; 4096]);
        assert_eq!(disk.client.get_array(used), [0; 4]);
        assert_eq!(disk.run(IN, 0, &[SECTOR_IN]), (OK, 513));
    }
}

#[test]
fn each_mistake_has_its_status() {
    let mut disk = driver(6, ALL);
    let end = SIZE / 512;
    let read = |len, write| (IOVA + DATA, len, write);
    let unmapped = |write| (4096, 512, write);
    for (n, (kind, sector, data, status)) in [
        (IN, end, vec![SECTOR_IN], IOERR),
        (IN, end - 1, vec![read(1024, true)], IOERR),
        (IN, u64::MAX, vec![SECTOR_IN], IOERR),
        (IN, u64::MAX / 512, vec![SECTOR_IN], IOERR),
        (IN, 0, vec![read(511, true)], IOERR),
        (IN, 0, vec![read(u32::MAX, true), read(u32::MAX, true)], IOERR),
        (OUT, end, vec![SECTOR_OUT], IOERR),
        (OUT, 0, vec![read(513, false)], IOERR),
        (IN, 0, vec![unmapped(true)], IOERR),
        (OUT, 0, vec![unmapped(false)], IOERR),
        (OUT, 0, vec![SECTOR_OUT, unmapped(false)], IOERR),
        (GET_ID, 0, vec![unmapped(true)], IOERR),
        (99, 0, vec![SECTOR_IN], UNSUPP),
        (11, 0, vec![read(15, false)], IOERR),
        (11, 0, vec![read(16 * 33, false)], IOERR),
        (13, 0, vec![unmapped(false)], IOERR),
    ]
    .into_iter()
    .enumerate()
    {
        assert_eq!(disk.run(kind, sector, &data), (status, 1), "request {n}");
    }
    for (range, status) in [
        ([0, 1 | 1 << 33], UNSUPP),
        ([0, 1 | 1 << 32], UNSUPP),
        ([end, 1], IOERR),
        ([0, u64::from(u32::MAX)], IOERR),
        ([0, 0], OK),
    ] {
        disk.client.put(DATA, &range.map(u64::to_le_bytes).concat());
        assert_eq!(disk.run(11, 0, &[read(16, false)]).0, status, "{range:?}");
    }
    // What is read of nothing is nothing.
    assert_eq!(disk.run(IN, 0, &[]), (OK, 1));
    // Through the end of what is mapped.
    disk.client.unmap(DATA + 4096, 4096);
    assert_eq!(disk.run(IN, 0, &[(IOVA + DATA, 8192, true)]), (IOERR, 1));
    assert_eq!(disk.status() & NEEDS_RESET, 0);
}
