//! Making, using and destroying objects; devices that come and go.

use std::sync::{Arc, OnceLock, Weak};

use host::{Errno, File, Mm, PAGE_SIZE};
use iommu::{NoIommu, Target};
use shuttle::thread;
use uapi::iommufd as u;
use uapi::{Plain, nr};

use super::{every_order, many_orders};
use crate::sync::Mutex;
use crate::{AccessHandler, Context, Id};

#[test]
fn an_id_is_one_object_at_a_time() {
    every_order(|world| {
        let first = world.thread(0).ioas();
        world.two(
            move |thread| {
                let _ = thread.destroy(first);
                // The id that it had, or the next.
                thread.ioas();
            },
            move |thread| {
                let _ = thread.destroy(first);
                thread.look(first);
            },
        );
    });
}

#[test]
fn an_object_under_construction_is_nobodys() {
    // Whoever guesses the id that comes next finds it only when it is complete.
    every_order(|world| {
        world.two(
            |thread| {
                let ioas = thread.ioas();
                // It may have been destroyed by who guessed right.
                let _ = thread.map(ioas, 9);
            },
            |thread| {
                thread.look(1);
                let _ = thread.destroy(1);
                thread.look(1);
            },
        );
    });
}

#[test]
fn an_id_that_was_never_told_is_never_found() {
    every_order(|world| {
        world.two(
            |thread| {
                // The answer cannot be written: the IOAS never was.
                let cmd = u::iommu_ioas_alloc { size: 12, ..Default::default() };
                thread.host.copy_to_user(thread.arg, cmd.as_bytes()).expect("a page of ours");
                thread.host.set_writable(thread.arg, false);
                let alloc = thread.context.ioctl(&thread.task, nr::IOMMU_IOAS_ALLOC, thread.arg);
                assert_eq!(alloc, Err(Errno::FAULT));
            },
            |thread| {
                thread.look(1);
                assert_eq!(thread.destroy(1), Err(Errno::NOENT));
            },
        );
    });
}

#[test]
fn what_a_hwpt_uses_stays_until_it_is_gone() {
    every_order(|world| {
        let main = world.thread(0);
        let ioas = main.ioas();
        let device = main.context.bind(world.mock()).expect("a fresh device");
        world.two(
            move |thread| {
                if let Ok(hwpt) = thread.hwpt(device, ioas, 0, 0) {
                    assert_eq!(thread.destroy(ioas), Err(Errno::BUSY));
                    assert_eq!(thread.destroy(hwpt), Ok(()));
                }
            },
            move |thread| {
                let _ = thread.destroy(ioas);
                let _ = thread.map(ioas, 9);
            },
        );
        main.context.unbind(device).expect("nobody else unbinds it");
    });
}

#[test]
fn a_device_leaves_while_others_attach_map_and_destroy() {
    many_orders(|world| {
        let main = world.thread(0);
        let (ioas, other) = (main.ioas(), main.ioas());
        let device = main.context.bind(world.mock()).expect("a fresh device");
        let plain = main.context.bind(NoIommu::add_device("plain")).expect("a fresh device");
        let mover = world.thread(3);
        let mover = thread::spawn(move || {
            let _ = mover.context.attach(plain, Target::Rid, ioas);
            let _ = mover.context.replace(plain, Target::Rid, other);
            let _ = mover.destroy(ioas);
        });
        world.two(
            move |thread| {
                let _ = thread.context.attach(device, Target::Rid, ioas);
                let _ = thread.map(other, 8);
                let _ = thread.context.replace(device, Target::Rid, other);
                thread.context.detach(device, Target::Rid);
            },
            move |thread| {
                let _ = thread.map(ioas, 9);
                thread.context.unbind(device).expect("nobody else unbinds it");
                let _ = thread.unmap_all(ioas);
                let _ = thread.destroy(other);
            },
        );
        mover.join().expect("the third thread");
        main.context.unbind(plain).expect("nobody else unbinds it");
        assert_eq!(world.host.total_pins(), 0, "without a device nothing is pinned");
    });
}

/// Lets go of the one range that it may have pinned.
struct Pinner {
    context: Weak<Context>,
    access: OnceLock<Id>,
    pinned: Mutex<Option<u64>>,
}

impl Pinner {
    fn drop_pin(&self) {
        // Held while unpinning: `pin` below holds it too, so none slips by.
        let mut pinned = self.pinned.lock().expect("no thread panicked");
        if let (Some(iova), Some(context)) = (pinned.take(), self.context.upgrade()) {
            context.access_unpin(*self.access.get().expect("set first"), iova, PAGE_SIZE);
        }
    }

    fn pin(&self, context: &Context, iova: u64) {
        let access = *self.access.get().expect("set first");
        let mut pinned = self.pinned.lock().expect("no thread panicked");
        if pinned.is_none() && context.access_pin(access, iova, PAGE_SIZE, false).is_ok() {
            *pinned = Some(iova);
        }
    }
}

impl AccessHandler for Pinner {
    fn unmap(&self, _iova: u64, _len: u64) {
        self.drop_pin();
    }
}

#[test]
fn an_access_pins_moves_and_goes_while_its_memory_is_unmapped() {
    many_orders(|world| {
        let main = world.thread(0);
        let (ioas, other) = (main.ioas(), main.ioas());
        let iova = main.map(ioas, 9).expect("a page");
        assert_eq!(main.map(other, 9), Ok(iova));
        let pinner = Arc::new(Pinner {
            context: Arc::downgrade(&main.context),
            access: OnceLock::new(),
            pinned: Mutex::new(None),
        });
        let access = main.context.access_create(pinner.clone(), true).expect("an access");
        pinner.access.set(access).expect("once");
        main.context.access_attach(access, ioas).expect("an IOAS");
        let unmapper = world.thread(3);
        let unmapper = thread::spawn(move || {
            unmapper.unmap_all(ioas).expect("the access lets go");
            let _ = unmapper.destroy(ioas);
        });
        let (one, two) = (pinner.clone(), pinner.clone());
        world.two(
            move |thread| {
                one.pin(&thread.context, iova);
                let _ = thread.context.access_read(access, iova, &mut [0; 8]);
                one.pin(&thread.context, iova);
            },
            move |thread| {
                two.pin(&thread.context, iova);
                thread.context.access_replace(access, other).expect("another IOAS");
                assert_eq!(thread.destroy(other), Err(Errno::BUSY));
            },
        );
        unmapper.join().expect("the third thread");
        pinner.drop_pin();
        main.context.access_destroy(access).expect("nobody else destroys it");
        assert_eq!(world.host.total_pins(), 0);
        let _ = main.destroy(ioas);
        assert_eq!(main.destroy(other), Ok(()));
    });
}
