//! Open files and mappings that hold objects, and the last close.

use std::sync::Arc;

use host::{Errno, File, MmapBacking, MmapRequest, PAGE_SIZE, PhysMemory, Task};
use iommu::Target;
use shuttle::thread;
use uapi::iommufd as u;
use uapi::nr;
use uapi::selftest as t;

use super::{Thread, every_order, many_orders};
use crate::{DmaBuf, Id};

fn fault_queue(thread: &Thread) -> (Id, i32) {
    let mut fd = 0;
    let cmd = u::iommu_fault_alloc { size: 16, ..Default::default() };
    let id = thread.make(nr::IOMMU_FAULT_QUEUE_ALLOC, cmd, |cmd| {
        fd = cmd.out_fault_fd as i32;
        cmd.out_fault_id
    });
    (id.expect("a fault queue"), fd)
}

#[test]
fn an_open_file_holds_its_object_from_the_start() {
    every_order(|world| {
        world.two(
            |thread| {
                fault_queue(thread);
            },
            |thread| {
                let answers = [thread.destroy(1), thread.destroy(1)];
                assert!(!answers.contains(&Ok(())), "destroyed under its file");
            },
        );
    });
}

#[test]
fn a_fault_queue_is_held_by_its_file_and_its_hwpts() {
    many_orders(|world| {
        let main = world.thread(0);
        let ioas = main.ioas();
        let device = main.context.bind(world.mock()).expect("a fresh device");
        let (fault, fd) = fault_queue(&main);
        let closer = world.thread(3);
        let closer = thread::spawn(move || closer.host.close(fd));
        world.two(
            move |thread| {
                let flag = u::iommufd_hwpt_alloc_flags_IOMMU_HWPT_FAULT_ID_VALID;
                if let Ok(hwpt) = thread.hwpt(device, ioas, flag, fault) {
                    assert_eq!(thread.destroy(fault), Err(Errno::BUSY));
                    assert_eq!(thread.destroy(hwpt), Ok(()));
                }
            },
            move |thread| {
                let _ = thread.destroy(fault);
                let (other, fd) = fault_queue(thread);
                assert_eq!(thread.destroy(other), Err(Errno::BUSY));
                thread.host.close(fd);
                // In use only if it has the other one's id, and a HWPT took it for that.
                if thread.destroy(other) == Err(Errno::BUSY) {
                    assert_eq!(other, fault);
                }
            },
        );
        closer.join().expect("the third thread");
        assert_ne!(main.destroy(fault), Err(Errno::BUSY), "file and HWPT are gone");
        main.context.unbind(device).expect("nobody else unbinds it");
    });
}

impl Thread {
    /// A vIOMMU with two pages to be mapped, over a nesting parent that is made for it.
    fn viommu(&self, dev_id: Id, ioas: Id) -> Id {
        let parent = u::iommufd_hwpt_alloc_flags_IOMMU_HWPT_ALLOC_NEST_PARENT;
        let cmd = u::iommu_viommu_alloc {
            size: 40,
            type_: t::IOMMU_VIOMMU_TYPE_SELFTEST,
            dev_id,
            hwpt_id: self.hwpt(dev_id, ioas, parent, 0).expect("a nesting parent"),
            data_len: size_of::<t::iommu_viommu_selftest>() as u32,
            data_uptr: self.arg + 2048,
            ..Default::default()
        };
        self.make(nr::IOMMU_VIOMMU_ALLOC, cmd, |cmd| cmd.out_viommu_id).expect("a vIOMMU")
    }

    fn mmap(&self) -> Result<MmapBacking, Errno> {
        let (offset, len) = (PAGE_SIZE, 2 * PAGE_SIZE);
        let (read, write, exec, shared) = (true, true, false, true);
        self.context.mmap(&self.task, MmapRequest { offset, len, read, write, exec, shared })
    }
}

#[test]
fn a_mapping_holds_its_viommu() {
    every_order(|world| {
        let main = world.thread(0);
        let device = main.context.bind(world.mock()).expect("a fresh device");
        let viommu = main.viommu(device, main.ioas());
        world.two(
            move |thread| match thread.mmap() {
                Ok(mapping) => {
                    assert_eq!(thread.destroy(viommu), Err(Errno::BUSY));
                    drop(mapping);
                }
                Err(error) => assert_eq!(error, Errno::NXIO),
            },
            move |thread| {
                let _ = thread.destroy(viommu);
                drop(thread.mmap());
            },
        );
        main.context.unbind(device).expect("nobody else unbinds it");
    });
}

#[test]
fn a_device_that_leaves_its_viommu_leaves_a_tombstone() {
    many_orders(|world| {
        let main = world.thread(0);
        let device = main.context.bind(world.mock()).expect("a fresh device");
        let viommu = main.viommu(device, main.ioas());
        let destroyer = world.thread(3);
        let destroyer = thread::spawn(move || destroyer.destroy(viommu));
        world.two(
            move |thread| {
                let mut cmd = u::iommu_vdevice_alloc {
                    size: 24,
                    viommu_id: viommu,
                    dev_id: device,
                    virt_id: 7,
                    ..Default::default()
                };
                // Its id may be dead by the time it is known: the device decides.
                if thread.call(nr::IOMMU_VDEVICE_ALLOC, &mut cmd).is_ok() {
                    let mut destroy = u::iommu_destroy { size: 8, id: cmd.out_vdevice_id };
                    let destroyed = thread.call(nr::IOMMU_DESTROY, &mut destroy);
                    assert!(matches!(destroyed, Ok(()) | Err(Errno::NOENT)), "{destroyed:?}");
                }
            },
            move |thread| thread.context.unbind(device).expect("nobody else unbinds it"),
        );
        let _ = destroyer.join().expect("the third thread");
        assert_ne!(main.destroy(viommu), Err(Errno::BUSY), "nobody is left in it");
    });
}

#[test]
fn a_dmabuf_that_is_revoked_while_it_is_mapped_is_out_of_the_table() {
    every_order(|world| {
        let main = world.thread(0);
        let ioas_id = main.ioas();
        let device = main.context.bind(world.mock()).expect("a fresh device");
        let hwpt = main.context.attach(device, Target::Rid, ioas_id).expect("a fresh IOAS");
        let page = world.host.alloc(PAGE_SIZE).expect("a page");
        let buf = DmaBuf::new(Some(page.run()), Box::new(page));
        let fd = main.task.install(buf.clone(), true).expect("a descriptor");
        world.two(
            move |thread| {
                let mut cmd = u::iommu_ioas_map_file {
                    size: 40,
                    flags: u::iommufd_ioas_map_flags_IOMMU_IOAS_MAP_READABLE,
                    ioas_id,
                    fd,
                    length: PAGE_SIZE,
                    ..Default::default()
                };
                let mapped = thread.call(nr::IOMMU_IOAS_MAP_FILE, &mut cmd);
                assert!(matches!(mapped, Ok(()) | Err(Errno::NODEV)), "{mapped:?}");
            },
            move |_| buf.set_revoked(true),
        );
        let domain = main.context.paging_domain(hwpt).expect("still attached");
        let first = t::MOCK_APERTURE_START;
        assert_eq!(domain.iova_to_phys(first), None, "devices still reach it");
        main.context.unbind(device).expect("nobody else unbinds it");
    });
}

#[test]
fn the_last_close_comes_from_any_thread() {
    many_orders(|world| {
        let main = world.thread(0);
        let ioas = main.ioas();
        let device = main.context.bind(world.mock()).expect("a fresh device");
        let viommu = main.viommu(device, ioas);
        main.map(ioas, 9).expect("a page");
        let (fault, fd) = fault_queue(&main);
        main.context.unbind(device).expect("nobody else unbinds it");
        let (mapping, host) = (main.mmap().expect("a live vIOMMU"), world.host.clone());
        let context = Arc::downgrade(&main.context);
        let (one, other) = (world.thread(1), world.thread(2));
        drop((main, world.context.take()));
        // Four references are left, each in the hands of one thread.
        let threads = [
            thread::spawn(move || host.close(fd)),
            thread::spawn(move || drop(mapping)),
            thread::spawn(move || {
                let mine = one.ioas();
                let _ = one.map(mine, 8);
                let _ = one.destroy(fault);
                drop(one);
            }),
            thread::spawn(move || {
                let _ = other.destroy(viommu);
                let _ = other.unmap_all(ioas);
                drop(other);
            }),
        ];
        threads.into_iter().for_each(|thread| thread.join().expect("a thread"));
        assert!(context.upgrade().is_none(), "somebody still has it open");
    });
}
