//! Mock devices as objects of a context.

use std::sync::atomic::{AtomicU32, Ordering};

use iommu::{FaultPerm, PageRequest, Target};
use iommu_mock::MockDevice;
use iommufd::{Context, Error, External, Id};
use uapi::selftest as t;

use crate::{Call, TestIoctl, at};

/// A mock device, bound and attached: what `IOMMU_TEST_OP_MOCK_DOMAIN` makes.
pub(crate) struct MockBinding {
    device: Id,
}

impl MockBinding {
    pub(crate) fn replace(&self, context: &Context, pt_id: Id) -> Result<Id, Error> {
        context.replace(self.device, Target::Rid, pt_id)
    }
}

impl External for MockBinding {
    fn destroy(&self, context: &Context) {
        // It was bound when it was made, and nobody else unbinds it.
        let _ = context.unbind(self.device);
    }
}

impl TestIoctl {
    pub(crate) fn mock_domain(&self, call: &mut Call<'_>, flags: u32) -> Result<(), Error> {
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        let (no_dirty, pasid) = (t::MOCK_FLAGS_DEVICE_NO_DIRTY, t::MOCK_FLAGS_DEVICE_PASID);
        if flags & !(no_dirty | pasid) != 0 {
            return Err(Error::Invalid("mock device flags"));
        }
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let device = self.driver.add_device(
            format!("iommufd_mock{serial}"),
            MockDevice { no_dirty: flags & no_dirty != 0, pasid: flags & pasid != 0 },
        );
        let context = call.context;
        let idev = context.bind(device)?;
        let made = context.attach(idev, Target::Rid, call.cmd.id).and_then(|hwpt| {
            let binding = std::sync::Arc::new(MockBinding { device: idev });
            Ok((hwpt, context.add_external(binding)?))
        });
        let (hwpt, stdev) = match made {
            Ok(made) => made,
            Err(error) => {
                context.unbind(idev)?;
                return Err(error);
            }
        };
        call.cmd.set_u32_at(at::FIRST, stdev);
        call.cmd.set_u32_at(at::SECOND, hwpt);
        call.cmd.set_u32_at(at::THIRD, idev);
        call.respond().inspect_err(|_| {
            let _ = context.destroy(stdev);
        })
    }
}

/// The device asks for a page.
pub(crate) fn trigger_iopf(call: &Call<'_>) -> Result<(), Error> {
    let cmd = &call.cmd;
    let device = call.context.bound_device(cmd.u32_at(at::FIRST))?;
    let target = match cmd.u32_at(at::SECOND) {
        0 => Target::Rid,
        pasid => Target::Pasid(pasid),
    };
    let request = PageRequest {
        target,
        group: cmd.u32_at(at::THIRD),
        last: true,
        perm: FaultPerm::from_bits_retain(cmd.u32_at(at::FOURTH)),
        addr: cmd.u64_at(at::THIRD_U64),
    };
    // The mock's nested domains own the PASID table: theirs is any PASID. What
    // nobody handles, the device hears of; the test does not.
    let _ = device.report_page_request(request, Some(Target::Rid));
    Ok(())
}
