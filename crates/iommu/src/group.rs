use std::any::Any;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::{
    Domain, Driver, Error, FaultGroup, FaultHandler, NoIommu, PageRequest, PageResponse,
    ReservedKind, Target,
};

/// Page requests of a device that are kept until their group's last one comes.
/// What is beyond that it can ask for again.
const MAX_PARTIAL: usize = 4096;

/// A device that does DMA.
pub struct Device {
    name: String,
    driver: Arc<dyn Driver>,
    data: Box<dyn Any + Send + Sync>,
    group: Arc<Group>,
    /// Page requests whose group's last one has not come yet.
    partial: Mutex<Vec<PageRequest>>,
}

impl Device {
    /// A device behind `driver`'s hardware, added to `group`. `data` is the
    /// driver's own. It starts in the group's domain.
    pub fn new(
        name: impl Into<String>,
        driver: Arc<dyn Driver>,
        data: Box<dyn Any + Send + Sync>,
        group: &Arc<Group>,
    ) -> Arc<Self> {
        let device = Arc::new(Self {
            name: name.into(),
            driver,
            data,
            group: group.clone(),
            partial: Mutex::default(),
        });
        group.lock().devices.push(Arc::downgrade(&device));
        device
    }

    /// Its name, such as a PCI address.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The driver of the IOMMU that it is behind.
    pub fn driver(&self) -> &Arc<dyn Driver> {
        &self.driver
    }

    /// Whether there is one. If not, DMA is never translated, and who holds the
    /// device reaches all memory.
    pub fn has_iommu(&self) -> bool {
        let driver: &dyn Any = self.driver.as_ref();
        !driver.is::<NoIommu>()
    }

    /// What the driver keeps with it.
    pub fn data<T: 'static>(&self) -> Option<&T> {
        self.data.downcast_ref()
    }

    /// The group it belongs to.
    pub fn group(&self) -> &Arc<Group> {
        &self.group
    }

    /// The hardware reports a page request. A complete group goes to the
    /// handler of the attachment that it belongs to; `fallback` says whose
    /// handler takes a PASID that is not attached (a driver whose nested domain
    /// owns the PASID table says [`Target::Rid`]). Without a handler the answer
    /// is [`PageResponse::Invalid`].
    pub fn report_page_request(
        self: &Arc<Self>,
        request: PageRequest,
        fallback: Option<Target>,
    ) -> Result<(), Error> {
        let handler = {
            let state = self.group.lock();
            let find = |target| state.attached.get(&target).and_then(|a| a.faults.clone());
            find(request.target).or_else(|| fallback.and_then(find))
        };
        let Some(handler) = handler else {
            if request.last {
                self.driver.page_response(self, &request, PageResponse::Invalid);
            }
            return Err(Error::NotFound("nobody handles page requests of this device"));
        };
        let mut partial = self.partial.lock().unwrap_or_else(PoisonError::into_inner);
        if !request.last {
            if partial.len() == MAX_PARTIAL {
                return Err(Error::NoSpace("page requests without their group's last"));
            }
            partial.push(request);
            return Ok(());
        }
        let same = |r: &mut PageRequest| r.group == request.group && r.target == request.target;
        let mut requests: Vec<_> = partial.extract_if(.., same).collect();
        drop(partial);
        requests.push(request);
        handler.report(FaultGroup::new(self.clone(), requests));
        Ok(())
    }

    /// Forgets the page requests whose group's last one has not come, for a
    /// driver whose hardware may have lost it.
    pub fn drop_partial_page_requests(&self) {
        self.partial.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// `target` is about to have another handler: forgets what it was to get,
    /// and what was to fall back to it.
    fn drop_partial(&self, target: Target, state: &State) {
        let mut partial = self.partial.lock().unwrap_or_else(PoisonError::into_inner);
        let falls_back = |other| target == Target::Rid && !state.attached.contains_key(&other);
        partial.retain(|request| request.target != target && !falls_back(request.target));
    }
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Device").field(&self.name).finish()
    }
}

/// Who holds a group, such as one iommufd context. 0 is nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct OwnerId(pub u64);

/// A domain in use, and who takes its page requests.
#[derive(Clone)]
pub struct Attachment {
    /// The domain.
    pub domain: Domain,
    /// Who takes the page requests, if anybody.
    pub faults: Option<Arc<dyn FaultHandler>>,
}

/// The devices that the hardware cannot tell apart. They always share one
/// domain for their Requester IDs and one for each PASID.
#[derive(Default)]
pub struct Group {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    devices: Vec<Weak<Device>>,
    owner: Option<(OwnerId, usize)>,
    /// What an owner has attached. A target that is not here is blocked while
    /// the group has an owner, and on identity otherwise.
    attached: BTreeMap<Target, Attachment>,
}

impl State {
    fn devices(&self) -> Vec<Arc<Device>> {
        self.devices.iter().filter_map(Weak::upgrade).collect()
    }

    fn domain(&self, target: Target) -> Domain {
        match self.attached.get(&target) {
            Some(attachment) => attachment.domain.clone(),
            None if self.owner.is_none() && target == Target::Rid => Domain::Identity,
            None => Domain::Blocked,
        }
    }
}

impl Group {
    /// An empty group.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic in a driver leaves the group in a state that the unwinding
        // below keeps consistent.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the group away from the kernel's own use for `owner`: all its DMA
    /// aborts until something is attached. An owner may claim it several times.
    pub fn claim(&self, owner: OwnerId) -> Result<(), Error> {
        let mut state = self.lock();
        match &mut state.owner {
            Some((current, claims)) if *current == owner => *claims += 1,
            Some(_) => return Err(Error::NotOwner),
            None => {
                let devices = state.devices();
                for device in &devices {
                    let regions = device.driver.reserved_regions(device);
                    if regions.iter().any(|r| r.kind == ReservedKind::Direct) {
                        return Err(Error::Invalid("firmware needs this device's mappings"));
                    }
                }
                for device in &devices {
                    device.driver.block(device, Target::Rid, &Domain::Identity);
                }
                state.owner = Some((owner, 1));
            }
        }
        Ok(())
    }

    /// Gives up one claim; the last one returns the group to the kernel's own
    /// use. Everything must have been detached.
    pub fn release(&self, owner: OwnerId) {
        let mut state = self.lock();
        let Some((current, claims)) = &mut state.owner else {
            return;
        };
        if *current != owner {
            return;
        }
        *claims -= 1;
        if *claims == 0 {
            debug_assert!(state.attached.is_empty(), "released while attached");
            state.owner = None;
            for device in state.devices() {
                let back =
                    device.driver.attach(&device, Target::Rid, &Domain::Identity, &Domain::Blocked);
                if let Err(error) = back {
                    tracing::error!(device = device.name, %error, "stays blocked");
                }
            }
        }
    }

    /// Attaches `target`, which must not be attached, of every device. On error
    /// none is.
    pub fn attach(&self, target: Target, attachment: Attachment) -> Result<(), Error> {
        let mut state = self.lock();
        if state.attached.contains_key(&target) {
            return Err(Error::Busy("the group is attached to another domain"));
        }
        Self::switch(&state, target, &attachment.domain)?;
        state.attached.insert(target, attachment);
        Ok(())
    }

    /// Moves `target`, which must be attached, of every device to another
    /// domain without a gap. On error all stay where they are. Returns what was
    /// attached.
    pub fn replace(&self, target: Target, attachment: Attachment) -> Result<Attachment, Error> {
        let mut state = self.lock();
        if !state.attached.contains_key(&target) {
            return Err(Error::Invalid("nothing is attached that could be replaced"));
        }
        Self::switch(&state, target, &attachment.domain)?;
        for device in state.devices() {
            device.drop_partial(target, &state);
        }
        state
            .attached
            .insert(target, attachment)
            .ok_or(Error::Invalid("nothing is attached that could be replaced"))
    }

    /// Detaches `target` of every device: its DMA aborts from now on. Returns
    /// what was attached.
    pub fn detach(&self, target: Target) -> Option<Attachment> {
        let mut state = self.lock();
        let old = state.attached.remove(&target)?;
        for device in state.devices() {
            device.driver.block(&device, target, &old.domain);
            device.drop_partial(target, &state);
        }
        Some(old)
    }

    /// What `target` is attached to.
    pub fn attached(&self, target: Target) -> Option<Attachment> {
        self.lock().attached.get(&target).cloned()
    }

    /// Whether any PASID is attached.
    pub fn has_pasids(&self) -> bool {
        self.lock().attached.keys().any(|target| *target != Target::Rid)
    }

    fn switch(state: &State, target: Target, new: &Domain) -> Result<(), Error> {
        let old = state.domain(target);
        let mut devices = state.devices();
        if let Target::Pasid(pasid) = target {
            // A device without PASIDs has no traffic to move.
            let max = |device: &Arc<Device>| device.driver.pasids(device).max;
            devices.retain(|device| max(device) != 0);
            let max = devices.iter().map(max).min();
            if pasid == 0 || max.is_some_and(|max| pasid >= max) {
                return Err(Error::Invalid("the PASID is out of the device's range"));
            }
        }
        for (done, device) in devices.iter().enumerate() {
            let attached = if host::fail::point() {
                Err(Error::NoMemory)
            } else {
                device.driver.attach(device, target, new, &old)
            };
            let Err(error) = attached else { continue };
            for device in &devices[..done] {
                let back = match &old {
                    Domain::Blocked => {
                        device.driver.block(device, target, new);
                        Ok(())
                    }
                    old => device.driver.attach(device, target, old, new),
                };
                if let Err(error) = back {
                    tracing::error!(device = device.name, %error, "cannot go back: blocked");
                    device.driver.block(device, target, new);
                }
            }
            return Err(error);
        }
        Ok(())
    }
}
