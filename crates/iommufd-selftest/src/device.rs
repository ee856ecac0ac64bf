//! Devices as objects of a context.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use host::Capability;
use iommu::{Device, Domain, FaultPerm, PageRequest, Pasids, Target};
use iommu_mock::MockDevice;
use iommufd::{Context, Error, External, Id};
use uapi::selftest as t;

use crate::{Call, TestIoctl, at};

/// A device, bound and attached: what `IOMMU_TEST_OP_MOCK_DOMAIN` makes.
pub(crate) struct Binding {
    device: Id,
}

impl Binding {
    pub(crate) fn replace(&self, context: &Context, pt_id: Id) -> Result<Id, Error> {
        context.replace(self.device, Target::Rid, pt_id)
    }
}

/// The mock device that a call names.
pub(crate) fn binding(call: &Call<'_>) -> Result<Arc<Binding>, Error> {
    call.context.external(call.cmd.id)
}

/// PASID 0 is no PASID.
fn target_of(pasid: u32) -> Target {
    if pasid == 0 { Target::Rid } else { Target::Pasid(pasid) }
}

impl Binding {
    pub(crate) fn pasid_attach(&self, call: &Call<'_>, pasid: u32, pt: Id) -> Result<(), Error> {
        let target = target_of(pasid);
        let mut answer = Call { cmd: call.cmd, ..*call };
        answer.cmd.set_u32_at(at::SECOND, call.context.attach(self.device, target, pt)?);
        answer.respond().inspect_err(|_| call.context.detach(self.device, target))
    }

    pub(crate) fn pasid_replace(&self, call: &Call<'_>, pasid: u32, pt: Id) -> Result<(), Error> {
        let target = target_of(pasid);
        let mut answer = Call { cmd: call.cmd, ..*call };
        answer.cmd.set_u32_at(at::SECOND, call.context.replace(self.device, target, pt)?);
        answer.respond()
    }

    pub(crate) fn pasid_detach(&self, call: &Call<'_>, pasid: u32) {
        call.context.detach(self.device, target_of(pasid));
    }

    /// Whether the PASID uses the domain of this HWPT; 0 is none.
    pub(crate) fn pasid_check(&self, call: &Call<'_>, pasid: u32, hwpt: Id) -> Result<(), Error> {
        let expected = (hwpt != 0).then_some(hwpt);
        if call.context.attached_hwpt(self.device, target_of(pasid))? == expected {
            Ok(())
        } else {
            Err(Error::Invalid("the PASID is attached elsewhere"))
        }
    }
}

/// Compares an entry of a device's cache.
pub(crate) fn check_cache(call: &Call<'_>, index: usize, value: u32) -> Result<(), Error> {
    let device = call.context.bound_device(call.cmd.id)?;
    let mock: Option<&MockDevice> = device.data();
    if mock.and_then(|mock| mock.cache(index)) == Some(value) {
        Ok(())
    } else {
        Err(Error::Invalid("the cache entry differs"))
    }
}

/// A device's vIOMMU reports an event.
pub(crate) fn trigger_vevent(call: &Call<'_>) -> Result<(), Error> {
    let device = call.context.bound_device(call.cmd.u32_at(at::FIRST))?;
    let mock: &MockDevice = device.data().ok_or(Error::Invalid("not a mock device"))?;
    Ok(mock.trigger_event()?)
}

impl External for Binding {
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
        // The kernel's mock device is not on PCI, so it declares no more of PASIDs.
        let max = if flags & pasid != 0 { 1 << t::MOCK_PASID_WIDTH } else { 0 };
        let pasids = Pasids { max, ..Pasids::default() };
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let device = self.driver.add_device(
            format!("iommufd_mock{serial}"),
            MockDevice::new(flags & no_dirty != 0, pasids),
        );
        bind_and_attach(call, device)
    }

    /// Binds a device of the machine that is behind no IOMMU, as opening it through
    /// VFIO and binding that file does.
    pub(crate) fn noiommu_device(&self, call: &mut Call<'_>) -> Result<(), Error> {
        if !call.context.capable(call.task, Capability::SysRawio) {
            return Err(Error::Permission("a device without an IOMMU needs CAP_SYS_RAWIO"));
        }
        let device = self.noiommu.get(call.cmd.u32_at(at::FOURTH) as usize);
        let device = device.ok_or(Error::NoDevice("the machine has no such device"))?;
        bind_and_attach(call, device.clone())
    }
}

/// Binds a device and attaches it to what the call names; answers with the ids of
/// the binding, the HWPT and the device.
fn bind_and_attach(call: &mut Call<'_>, device: Arc<Device>) -> Result<(), Error> {
    let context = call.context;
    let idev = context.bind(device)?;
    let made = context.attach(idev, Target::Rid, call.cmd.id).and_then(|hwpt| {
        let binding = Arc::new(Binding { device: idev });
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
    let nested = device.group().attached(Target::Rid);
    let nested = nested.is_some_and(|rid| matches!(rid.domain, Domain::Nested(_)));
    let _ = device.report_page_request(request, nested.then_some(Target::Rid));
    Ok(())
}
