//! Devices of a machine under iommufd: what reaches memory, what reaches a doorbell.

mod common;

use std::fs::File;
use std::ops::RangeInclusive;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use common::{Machine, NEST_PARENT};
use host::{Errno, Mm};
use host_fake::BASE;
use iommu::{Doorbells, Target};
use platform::{
    Access, DeviceOptions, Dma, FilePart, ItsDevice, Message, Observer, Platform, Port, Sink,
};

/// The window for doorbells that the driver reserves.
const WINDOW: RangeInclusive<u64> = 0x800_0000..=0x80f_ffff;

/// A device's table at the first controller, and the last event that arrived there.
fn table(platform: &Platform, port: &Port) -> (ItsDevice, Arc<AtomicU32>) {
    let table = platform.its().map_device(port.device_id(), 8).unwrap();
    let last = Arc::new(AtomicU32::new(u32::MAX));
    for event in 0..8 {
        let last = last.clone();
        let sink: Sink = Arc::new(move || last.store(event, Ordering::Relaxed));
        assert!(table.set(event, Some(sink)));
    }
    (table, last)
}

#[test]
fn dma_goes_where_the_ioas_says_and_nowhere_else() {
    let machine = Machine::new();
    let (device, mut port) = machine.device(0x10);
    machine.host.copy_to_user(BASE, b"in memory").unwrap();
    let mut data = [0; 9];
    let id = machine.bind(device);
    assert!(port.read(Access::at(BASE), &mut data).is_err(), "nothing is attached");
    let ioas = machine.ioas();
    machine.map(ioas, BASE, 0x4000_0000).unwrap();
    machine.context.attach(id, Target::Rid, ioas).unwrap();
    port.read(Access::at(0x4000_0000), &mut data).unwrap();
    assert_eq!(&data, b"in memory");
    port.write(Access::at(0x4000_0003), b"the device").unwrap();
    let mut seen = [0; 13];
    machine.host.copy_from_user(BASE, &mut seen).unwrap();
    assert_eq!(&seen, b"in the device");
    let error = port.write(Access::at(0x4000_0ffe), b"across").unwrap_err();
    assert_eq!(error.to_string(), "the DMA at 0x40000ffe was aborted");
    assert!(port.read(Access::at(BASE), &mut data).is_err(), "a physical address is no IOVA");
    machine.context.unbind(id).unwrap();
    assert!(port.read(Access::at(0x4000_0000), &mut data).is_err());
}

#[test]
fn bytes_of_a_file_go_as_far_as_they_can_and_no_further_than_is_mapped() {
    // Any file with known bytes. The made-up host moves 1500 at most.
    let name = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/machine.rs");
    let (file, bytes) = (File::open(name).unwrap(), std::fs::read(name).unwrap());
    for ats in [false, true] {
        let machine = Machine::new();
        let options = DeviceOptions { ats, ..DeviceOptions::default() };
        let (device, mut port) = machine.device_with(0x10, options);
        let id = machine.bind(device);
        let ioas = machine.ioas();
        let mut from = |offset: u64, len: usize, iova: u64| {
            let part = FilePart { file: file.as_fd(), offset, len, in_memory: true };
            port.write_from(Access::at(iova), part).ok()
        };
        assert_eq!(from(0, 10, 0x4000_0000), None, "nothing is attached");
        // Two pages, the other way round in memory.
        machine.map(ioas, BASE + 0x1000, 0x4000_0000).unwrap();
        machine.map(ioas, BASE, 0x4000_1000).unwrap();
        machine.context.attach(id, Target::Rid, ioas).unwrap();
        assert_eq!(from(5, 100, 0x4000_0ffe), Some(100), "across pages");
        assert_eq!(from(5, 4000, 0x4000_0800), Some(1500), "as far as the host goes");
        let mut seen = [0; 2048];
        machine.host.copy_from_user(BASE + 0x1800, &mut seen).unwrap();
        assert_eq!(seen[..1500], bytes[5..1505]);
        assert_eq!(seen[2046..], bytes[5..7]);
        machine.host.copy_from_user(BASE, &mut seen).unwrap();
        assert_eq!(seen[..98], bytes[7..105]);
        assert_eq!(from(0, 100, 0x4000_1ffe), None, "the next page is not mapped");
        assert_eq!(from(bytes.len() as u64, 1, 0x4000_0000), Some(0), "the end of the file");
        assert_eq!(from(0, 0, 0x4000_0000), Some(0));
    }
}

#[test]
fn an_observer_is_told_of_each_access_and_message() {
    #[derive(Default)]
    struct Told(Mutex<Vec<String>>);
    impl Observer for Told {
        fn dma(&self, device: &str, dma: &Dma) {
            let Dma { access, write, length, result, .. } = dma;
            let Access { address, pasid, .. } = access;
            let (verb, done) = (if *write { "writes" } else { "reads" }, result.is_ok());
            let text = format!("{device} {verb} {length} at {address:#x} for {pasid:?}: {done}");
            self.0.lock().unwrap().push(text);
        }
        fn message(&self, device: &str, message: &Message) {
            let text = format!("{device} sends {}: {}", message.data, message.result.is_ok());
            self.0.lock().unwrap().push(text);
        }
    }
    let machine = Machine::new();
    let told = Arc::new(Told::default());
    let (_, mut unseen) = machine.device(0x11);
    machine.platform.observe(told.clone());
    let (device, mut port) = machine.device(0x10);
    let id = machine.bind(device);
    let ioas = machine.ioas();
    machine.map(ioas, BASE, 0x4000_0000).unwrap();
    machine.context.attach(id, Target::Rid, ioas).unwrap();
    let its = machine.platform.its();
    let frame = machine.context.prepare_msi(id, its.frame()).unwrap();
    let _ = unseen.read(Access::at(0), &mut [0; 8]);
    port.read(Access::at(0x4000_0000), &mut [0; 100]).unwrap();
    // Its other threads, too.
    port.another().write(Access::at(0x4000_1000), &[0; 8]).unwrap_err();
    port.read(Access::at(0x4000_0000).with_pasid(5), &mut [0; 4]).unwrap_err();
    port.message(frame + (its.translater() - its.frame()), 3).unwrap();
    port.message(its.translater(), 4).unwrap_err();
    assert_eq!(
        *told.0.lock().unwrap(),
        [
            "device reads 100 at 0x40000000 for None: true",
            "device writes 8 at 0x40001000 for None: false",
            "device reads 4 at 0x40000000 for Some(5): false",
            "device sends 3: true",
            "device sends 4: false",
        ]
    );
}

#[test]
fn doorbells_are_there_from_the_beginning_of_each_domain() {
    let machine = Machine::new();
    let (device, mut port) = machine.device(0x10);
    let (_table, last) = table(&machine.platform, &port);
    let its = machine.platform.its();
    // On identity the doorbell is where it is.
    port.message(its.translater(), 1).unwrap();
    assert_eq!(last.load(Ordering::Relaxed), 1);
    let id = machine.bind(device);
    let blocked = machine.context.prepare_msi(id, its.frame()).unwrap_err();
    assert_eq!(blocked.errno(), Errno::OPNOTSUPP);
    assert!(port.message(its.translater(), 2).is_err(), "blocked");
    let ioas = machine.ioas();
    for flags in [0, NEST_PARENT] {
        let hwpt = machine.hwpt(id, ioas, flags).unwrap();
        let domain = machine.context.paging_domain(hwpt).unwrap();
        assert_eq!(
            domain.iova_to_phys(*WINDOW.start()),
            Some(its.frame()),
            "before it is attached"
        );
        machine.context.attach(id, Target::Rid, hwpt).unwrap();
        let frame = machine.context.prepare_msi(id, its.frame()).unwrap();
        assert_eq!(frame, *WINDOW.start());
        port.message(frame + (its.translater() - its.frame()), 3 + flags).unwrap();
        assert_eq!(last.load(Ordering::Relaxed), 3 + flags);
        assert!(port.message(its.translater(), 7).is_err(), "not by its physical address");
        assert!(port.write(Access::at(frame), &[0; 4]).is_err(), "the frame has one register");
        assert!(port.read(Access::at(frame + 0x40), &mut [0; 4]).is_err(), "which is not read");
        machine.context.detach(id, Target::Rid);
        machine.context.destroy(hwpt).unwrap();
    }
    assert_eq!(its.dropped(), 0);
}

#[test]
fn the_window_is_nobody_s_memory() {
    let machine = Machine::new();
    let (device, _port) = machine.device(0x10);
    let id = machine.bind(device);
    let ioas = machine.ioas();
    machine.map(ioas, BASE, *WINDOW.end() - 0xfff).unwrap();
    assert_eq!(machine.hwpt(id, ioas, 0), Err(Errno::ADDRINUSE));
    let ioas = machine.ioas();
    machine.hwpt(id, ioas, 0).unwrap();
    assert_eq!(machine.map(ioas, BASE, *WINDOW.start()), Err(Errno::INVAL));
    machine.map(ioas, BASE, *WINDOW.end() + 1).unwrap();
}

#[test]
fn a_doorbell_that_comes_later_is_mapped_when_it_is_needed() {
    let machine = Machine::new();
    let (device, mut port) = machine.device(0x10);
    let id = machine.bind(device);
    let ioas = machine.ioas();
    let [first, second] = [0, 0].map(|flags| machine.hwpt(id, ioas, flags).unwrap());
    machine.context.attach(id, Target::Rid, first).unwrap();
    let its = machine.platform.add_its().unwrap();
    let table = its.map_device(port.device_id(), 1).unwrap();
    let rung = Arc::new(AtomicU32::new(0));
    let sink = rung.clone();
    let sink: Sink = Arc::new(move || {
        sink.fetch_add(1, Ordering::Relaxed);
    });
    table.set(0, Some(sink));
    let at = WINDOW.start() + 4096 + 0x40;
    assert!(port.message(at, 0).is_err(), "nobody asked for it");
    assert_eq!(machine.context.prepare_msi(id, its.frame()).unwrap(), at - 0x40);
    port.message(at, 0).unwrap();
    // A domain that the device moves to has what it needs before it does.
    machine.context.replace(id, Target::Rid, second).unwrap();
    port.message(at, 0).unwrap();
    assert_eq!(rung.load(Ordering::Relaxed), 2);
    let unknown = machine.context.prepare_msi(id, 0x1234_0000).unwrap_err();
    assert_eq!(unknown.errno(), Errno::NODEV);
}

#[test]
fn doorbells_run_out() {
    let machine = Machine::new();
    for _ in 1..Doorbells::MAX {
        machine.platform.add_its().unwrap();
    }
    assert!(machine.platform.add_its().is_err());
    let (device, _port) = machine.device(0x10);
    let id = machine.bind(device);
    let ioas = machine.ioas();
    let hwpt = machine.context.attach(id, Target::Rid, ioas).unwrap();
    let domain = machine.context.paging_domain(hwpt).unwrap();
    let last = WINDOW.start() + 63 * 4096;
    let frame = *machine.platform.doorbells().frames().last().unwrap();
    assert_eq!(domain.iova_to_phys(last), Some(frame));
    assert_eq!(machine.context.prepare_msi(id, frame).unwrap(), last);
}

#[test]
fn many_prepare_at_once() {
    let machine = Machine::new();
    let devices: Vec<_> = (0..4).map(|n| machine.device(0x10 + n)).collect();
    let ioas = machine.ioas();
    let ids: Vec<_> = devices
        .iter()
        .map(|(device, _)| {
            let id = machine.bind(device.clone());
            machine.context.attach(id, Target::Rid, ioas).unwrap();
            id
        })
        .collect();
    let later: Vec<_> = (0..8).map(|_| machine.platform.add_its().unwrap().frame()).collect();
    let iovas: Vec<Vec<u64>> = std::thread::scope(|scope| {
        let prepare = |id: u32| {
            let (context, later) = (&machine.context, &later);
            scope.spawn(move || {
                later.iter().map(|frame| context.prepare_msi(id, *frame).unwrap()).collect()
            })
        };
        let threads: Vec<_> = ids.iter().map(|id| prepare(*id)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(iovas.iter().all(|own| *own == iovas[0]), "the same for all of a domain");
    machine.context.check_invariants().unwrap();
}

#[test]
fn a_failed_preparation_leaves_nothing_and_can_be_repeated() {
    let machine = Machine::new();
    let (device, _port) = machine.device(0x10);
    let id = machine.bind(device);
    let ioas = machine.ioas();
    machine.context.attach(id, Target::Rid, ioas).unwrap();
    let frame = machine.platform.add_its().unwrap().frame();
    host::fail::set_nth(1);
    let error = machine.context.prepare_msi(id, frame).unwrap_err();
    assert_eq!(error.errno(), Errno::NOMEM);
    assert_eq!(machine.context.prepare_msi(id, frame).unwrap(), WINDOW.start() + 4096);
}
