//! `IOMMU_TEST_CMD`: how the kernel's iommufd selftests create mock devices and
//! look behind the uAPI.
//!
//! It stands on what `iommufd` offers to any driver, and is the only code beside
//! the driver that knows the mock hardware.
#![forbid(unsafe_code)]

mod access;
mod check;
mod device;

use std::sync::{Arc, OnceLock, Weak};

use host::{Capability, PhysMemory, Task};
use iommu::Device;
use iommu_mock::{MockDriver, MockNested};
use iommufd::{Context, DmaBuf, Error, Extension, Iommufd};
use uapi::selftest::{self as t, iommu_test_cmd};
use uapi::{Plain, nr};

/// A `/dev/iommu` on the mock hardware, with the test ioctl, whose callers may do
/// what needs the `granted` capabilities. The test ioctl makes mock devices as it
/// is asked to; `noiommu` are those devices of the machine that are behind no IOMMU.
pub fn device_node(
    memory: Arc<dyn PhysMemory>,
    minor: u32,
    granted: &[Capability],
    noiommu: Vec<Arc<Device>>,
) -> Arc<Iommufd> {
    let test = Arc::new(TestIoctl {
        driver: MockDriver::new(memory.clone()),
        memory: memory.clone(),
        noiommu,
        node: OnceLock::new(),
    });
    let node = Arc::new(Iommufd::new(memory, minor, Some(test.clone())).grant(granted));
    // Just made: it is empty.
    let _ = test.node.set(Arc::downgrade(&node));
    node
}

struct TestIoctl {
    driver: Arc<MockDriver>,
    memory: Arc<dyn PhysMemory>,
    noiommu: Vec<Arc<Device>>,
    node: OnceLock<Weak<Iommufd>>,
}

/// One call: the struct, and how to answer.
struct Call<'a> {
    context: &'a Arc<Context>,
    task: &'a dyn Task,
    arg: u64,
    user_size: usize,
    cmd: iommu_test_cmd,
}

impl Call<'_> {
    fn respond(&self) -> Result<(), Error> {
        if host::fail::point() {
            return Err(host::Fault { va: self.arg }.into());
        }
        let len = self.user_size.min(size_of::<iommu_test_cmd>());
        Ok(self.task.mm().copy_to_user(self.arg, &self.cmd.as_bytes()[..len])?)
    }
}

impl Extension for TestIoctl {
    fn command(&self) -> u32 {
        nr::IOMMU_TEST_CMD
    }

    fn ioctl(&self, context: &Arc<Context>, task: &dyn Task, arg: u64) -> Result<i32, Error> {
        let (cmd, user_size) = iommufd::read_struct(task, arg, iommu_test_cmd::MIN_SIZE)?;
        let mut call = Call { context, task, arg, user_size, cmd };
        self.run(&mut call)
    }
}

/// `O_CLOEXEC`.
const O_CLOEXEC: u32 = 0o2_000_000;

/// Offsets in the union of `struct iommu_test_cmd`, by member.
mod at {
    pub(crate) const FIRST: usize = 0;
    pub(crate) const SECOND: usize = 4;
    pub(crate) const THIRD: usize = 8;
    pub(crate) const FOURTH: usize = 12;
    pub(crate) const SECOND_U64: usize = 8;
    pub(crate) const THIRD_U64: usize = 16;
    pub(crate) const FOURTH_U64: usize = 24;
    pub(crate) const FIFTH_U64: usize = 32;
    pub(crate) const SIXTH_U64: usize = 40;
}

impl TestIoctl {
    fn run(&self, call: &mut Call<'_>) -> Result<i32, Error> {
        let cmd = call.cmd;
        let (u32_at, u64_at) = (|o| cmd.u32_at(o), |o| cmd.u64_at(o));
        match cmd.op {
            t::IOMMU_TEST_OP_ADD_RESERVED => {
                let (start, length) = (u64_at(at::FIRST), u64_at(at::SECOND_U64));
                let last = range(start, length)?;
                call.context.reserve_iova(cmd.id, start, last)?;
            }
            t::IOMMU_TEST_OP_MOCK_DOMAIN => self.mock_domain(call, 0)?,
            t::IOMMU_TEST_OP_MOCK_DOMAIN_FLAGS => self.mock_domain(call, u32_at(at::FOURTH))?,
            t::SOFTIOMMU_TEST_OP_NOIOMMU_DEVICE => self.noiommu_device(call)?,
            t::IOMMU_TEST_OP_MOCK_DOMAIN_REPLACE => {
                let device = device::binding(call)?;
                let hwpt = device.replace(call.context, u32_at(at::FIRST))?;
                call.cmd.set_u32_at(at::FIRST, hwpt);
                call.respond()?;
            }
            t::IOMMU_TEST_OP_MD_CHECK_MAP => {
                let (iova, length) = (u64_at(at::FIRST), u64_at(at::SECOND_U64));
                self.check_map(call, iova, length, u64_at(at::THIRD_U64))?;
            }
            t::IOMMU_TEST_OP_MD_CHECK_REFS => {
                let (length, uptr) = (u64_at(at::FIRST), u64_at(at::SECOND_U64));
                self.check_refs(call, uptr, length, u32_at(at::THIRD_U64))?;
            }
            t::IOMMU_TEST_OP_MD_CHECK_IOTLB => {
                let nested = MockNested::from_domain(call.context.nested_domain(cmd.id)?)
                    .ok_or(Error::Invalid("not a domain of the mock IOMMU"))?;
                let (id, value) = (u32_at(at::FIRST), u32_at(at::SECOND));
                if nested.iotlb(id as usize) != Some(value) {
                    return Err(Error::Invalid("the IOTLB entry differs"));
                }
            }
            t::IOMMU_TEST_OP_CREATE_ACCESS => access::create_access(call)?,
            t::IOMMU_TEST_OP_ACCESS_REPLACE_IOAS => {
                access::of(call.task, cmd.id)?.replace(call.context, u32_at(at::FIRST))?;
            }
            t::IOMMU_TEST_OP_ACCESS_PAGES => self.access_pages(call)?,
            t::IOMMU_TEST_OP_DESTROY_ACCESS_PAGES => {
                access::of(call.task, cmd.id)?.destroy_item(u32_at(at::FIRST))?;
            }
            t::IOMMU_TEST_OP_ACCESS_RW => access::access_rw(call)?,
            t::IOMMU_TEST_OP_SET_TEMP_MEMORY_LIMIT => {
                // It shrinks the kernel's batches; we have none to shrink.
                if u32_at(at::FIRST) < 12 {
                    return Err(Error::Invalid("the memory limit"));
                }
            }
            t::IOMMU_TEST_OP_DIRTY => check::dirty(call)?,
            t::IOMMU_TEST_OP_TRIGGER_IOPF => device::trigger_iopf(call)?,
            t::IOMMU_TEST_OP_DEV_CHECK_CACHE => {
                let (index, value) = (u32_at(at::FIRST), u32_at(at::SECOND));
                device::check_cache(call, index as usize, value)?;
            }
            t::IOMMU_TEST_OP_TRIGGER_VEVENT => device::trigger_vevent(call)?,
            t::IOMMU_TEST_OP_PASID_ATTACH => {
                device::binding(call)?.pasid_attach(call, u32_at(at::FIRST), u32_at(at::SECOND))?;
            }
            t::IOMMU_TEST_OP_PASID_REPLACE => {
                device::binding(call)?.pasid_replace(
                    call,
                    u32_at(at::FIRST),
                    u32_at(at::SECOND),
                )?;
            }
            t::IOMMU_TEST_OP_PASID_DETACH => {
                device::binding(call)?.pasid_detach(call, u32_at(at::FIRST));
            }
            t::IOMMU_TEST_OP_PASID_CHECK_HWPT => {
                device::binding(call)?.pasid_check(call, u32_at(at::FIRST), u32_at(at::SECOND))?;
            }
            t::IOMMU_TEST_OP_DMABUF_GET => return self.dmabuf_get(call),
            t::IOMMU_TEST_OP_DMABUF_REVOKE => {
                let (fd, revoked) = (u32_at(at::FIRST) as i32, u32_at(at::SECOND) != 0);
                dmabuf(call.task, fd)?.set_revoked(revoked);
            }
            _ => return Err(Error::Unsupported("the test operation")),
        }
        Ok(0)
    }

    fn dmabuf_get(&self, call: &Call<'_>) -> Result<i32, Error> {
        const MAX: u64 = 512 * host::PAGE_SIZE;
        let length = u64::from(call.cmd.u32_at(at::FIRST));
        if length == 0 || length > MAX {
            return Err(Error::Invalid("the length of the dma-buf"));
        }
        let memory = self.memory.alloc(length).ok_or(Error::NoMemory("the dma-buf"))?;
        let cloexec = call.cmd.u32_at(at::SECOND) & O_CLOEXEC != 0;
        call.task
            .install(DmaBuf::new(Some(memory.run()), Box::new(memory)), cloexec)
            .map_err(Error::File)
    }
}

/// The last IOVA of a range.
fn range(start: u64, length: u64) -> Result<u64, Error> {
    if length == 0 {
        return Err(Error::Invalid("the length is 0"));
    }
    start.checked_add(length - 1).ok_or(Error::Overflow("start + length"))
}

fn dmabuf(task: &dyn Task, fd: i32) -> Result<Arc<DmaBuf>, Error> {
    let file = match task.file(fd).map_err(Error::File)? {
        host::OpenFile::Emulated(file) => file as Arc<dyn std::any::Any + Send + Sync>,
        host::OpenFile::Kernel(_) => return Err(Error::Invalid("not a dma-buf")),
    };
    file.downcast().map_err(|_| Error::Invalid("not a dma-buf"))
}
