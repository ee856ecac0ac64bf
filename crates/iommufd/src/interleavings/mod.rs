//! The object table under every order, or very many, in which threads can take the
//! locks: `shuttle` runs the threads and chooses who goes next.
//!
//! What runs is the context itself: ioctls that make, use and destroy objects, the
//! drivers' calls, files and mappings that hold objects, and the last close. After
//! each run the invariants hold, what the threads saw can be explained
//! ([`history`]), and once everything is destroyed nobody is counted anywhere.

mod files;
mod history;
mod objects;

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use host::{Errno, File, Mm, PAGE_SIZE};
use host_fake::{BASE, FakeHost, FakeTask};
use iommu::Device;
use iommu_mock::{MockDevice, MockDriver};
use shuttle::thread;
use uapi::iommufd as u;
use uapi::{Plain, nr};

use self::history::{History, Saw};
use crate::{Context, Id, Iommufd};

/// Runs the scene once for every order that there is. Prints how many.
fn every_order(scene: fn(&World)) {
    let runs = Arc::new(AtomicUsize::new(0));
    let counted = runs.clone();
    shuttle::check_dfs(
        move || {
            counted.fetch_add(1, Ordering::Relaxed);
            World::run(scene);
        },
        None,
    );
    let runs = runs.load(Ordering::Relaxed);
    println!("{runs} orders");
    assert!(runs > 10, "the threads hardly meet");
}

/// Runs the scene in random orders, and in those that change threads seldom.
fn many_orders(scene: fn(&World)) {
    shuttle::check_random(move || World::run(scene), 1000);
    shuttle::check_pct(move || World::run(scene), 1000, 3);
}

/// A process with one context.
struct World {
    host: Arc<FakeHost>,
    /// Its descriptor, until it is closed.
    context: RefCell<Option<Arc<Context>>>,
    history: Arc<History>,
    driver: Arc<MockDriver>,
}

/// What one thread has of it.
struct Thread {
    task: FakeTask,
    host: Arc<FakeHost>,
    context: Arc<Context>,
    history: Arc<History>,
    /// Where it puts the arguments of its ioctls: a page of its own.
    arg: u64,
}

const PAGES: u64 = 16;

impl World {
    fn run(scene: fn(&Self)) {
        let host = FakeHost::new(PAGES as usize);
        let node = Iommufd::new(host.clone(), 0, None);
        let (history, driver) = (Arc::default(), MockDriver::new(host.clone()));
        let context = RefCell::new(Some(node.context()));
        let world = Self { host, context, history, driver };
        scene(&world);
        if let Some(context) = world.context.take() {
            context.check_invariants().expect("after the threads");
            let lives = |id| context.lock().objects.get(id).is_ok();
            world.history.check(lives).expect("what the threads saw");
        }
        world.host.close_all();
        assert_eq!(world.host.total_pins(), 0, "pages stay pinned");
        node.pinned_runs(|run| panic!("{run:?} is still mapped by a context"));
    }

    /// What thread `n` works with.
    fn thread(&self, n: u64) -> Thread {
        Thread {
            task: FakeTask::new(&self.host),
            host: self.host.clone(),
            context: self.context.borrow().clone().expect("it is open"),
            history: self.history.clone(),
            arg: BASE + n * PAGE_SIZE,
        }
    }

    fn mock(&self) -> Arc<Device> {
        self.driver.add_device("mock", MockDevice::new(false, iommu::Pasids::default()))
    }

    /// Runs two threads to their ends.
    fn two(
        &self,
        one: impl FnOnce(&Thread) + Send + 'static,
        other: impl FnOnce(&Thread) + Send + 'static,
    ) {
        let (a, b) = (self.thread(1), self.thread(2));
        let one = thread::spawn(move || one(&a));
        let other = thread::spawn(move || other(&b));
        one.join().expect("the first thread");
        other.join().expect("the second thread");
    }
}

impl Thread {
    fn call<T: Plain>(&self, cmd: u32, arg: &mut T) -> Result<(), Errno> {
        self.host.copy_to_user(self.arg, arg.as_bytes()).expect("a page of ours");
        let answer = self.context.ioctl(&self.task, cmd, self.arg);
        self.host.copy_from_user(self.arg, arg.as_bytes_mut()).expect("a page of ours");
        answer.map(drop)
    }

    /// An ioctl that makes an object, whose id `id` finds in the answer.
    fn make<T: Plain>(&self, cmd: u32, arg: T, id: impl FnOnce(&T) -> Id) -> Result<Id, Errno> {
        let (mut arg, mut made) = (arg, Err(Errno::INVAL));
        self.history.note(|| {
            made = self.call(cmd, &mut arg).map(|()| id(&arg));
            Some((made.ok()?, Saw::Made))
        });
        made
    }

    fn ioas(&self) -> Id {
        let cmd = u::iommu_ioas_alloc { size: 12, ..Default::default() };
        self.make(nr::IOMMU_IOAS_ALLOC, cmd, |cmd| cmd.out_ioas_id).expect("an IOAS")
    }

    fn hwpt(&self, dev_id: Id, pt_id: Id, flags: u32, fault_id: Id) -> Result<Id, Errno> {
        let cmd =
            u::iommu_hwpt_alloc { size: 48, flags, dev_id, pt_id, fault_id, ..Default::default() };
        self.make(nr::IOMMU_HWPT_ALLOC, cmd, |cmd| cmd.out_hwpt_id)
    }

    fn destroy(&self, id: Id) -> Result<(), Errno> {
        let mut answer = Ok(());
        self.history.note(|| {
            answer = self.call(nr::IOMMU_DESTROY, &mut u::iommu_destroy { size: 8, id });
            Some((id, History::saw(&answer, Saw::Destroyed)?))
        });
        answer
    }

    /// Looks an IOAS up.
    fn look(&self, ioas_id: Id) {
        self.history.note(|| {
            let mut cmd = u::iommu_option {
                size: 24,
                option_id: u::iommufd_option_IOMMU_OPTION_HUGE_PAGES,
                op: u::iommufd_option_ops_IOMMU_OPTION_OP_GET as u16,
                object_id: ioas_id,
                ..Default::default()
            };
            let answer = self.call(nr::IOMMU_OPTION, &mut cmd);
            Some((ioas_id, History::saw(&answer, Saw::Found)?))
        });
    }

    fn map(&self, ioas_id: Id, page: u64) -> Result<u64, Errno> {
        let mut cmd = u::iommu_ioas_map {
            size: 40,
            flags: u::iommufd_ioas_map_flags_IOMMU_IOAS_MAP_READABLE,
            ioas_id,
            user_va: BASE + page * PAGE_SIZE,
            length: PAGE_SIZE,
            ..Default::default()
        };
        self.call(nr::IOMMU_IOAS_MAP, &mut cmd).map(|()| cmd.iova)
    }

    fn unmap_all(&self, ioas_id: Id) -> Result<(), Errno> {
        let length = u64::MAX;
        let mut cmd = u::iommu_ioas_unmap { size: 24, ioas_id, iova: 0, length };
        self.call(nr::IOMMU_IOAS_UNMAP, &mut cmd)
    }
}
