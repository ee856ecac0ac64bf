//! An iommufd that keeps its rules and does nothing else: objects and who uses them, what a device is attached to, and
//! which StreamIDs there are. It can fail at any call.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::sync::{Arc, Mutex, MutexGuard};

use smmuv3::wire::Command;
use smmuv3_iommufd::{Device, Host, HwInfo, InvalidateError};

/// What was asked of it, if it did it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    Parent(u32),
    Viommu(u32),
    Nested([u64; 2]),
    Vdevice(u32, u32),
    EventQueue,
    FaultQueue,
    Invalidate(Vec<Command>),
    Attach(u32, Target),
    Detach(u32),
    Destroy(&'static str),
}

/// What a device is attached to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    Abort,
    Bypass,
    Translate([u64; 2]),
    Nothing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Object {
    Parent { smmu: u32 },
    Viommu { parent: u32, smmu: u32 },
    Nested { viommu: u32, ste: [u64; 2], faults: Option<u32> },
    Vdevice { viommu: u32, device: u32, stream_id: u32 },
    Events { viommu: u32 },
    Faults,
}

struct Bound {
    /// The SMMU that it is behind.
    smmu: u32,
    /// It may not have a page table with a fault queue.
    virtual_function: bool,
    info: HwInfo,
    attached: Option<u32>,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<u32, Object>,
    next: u32,
    devices: BTreeMap<u32, Bound>,
    calls: Vec<Call>,
    fail_in: Option<u32>,
    refusals: VecDeque<Option<(usize, i32)>>,
    events: Option<UnixDatagram>,
    faults: Option<UnixDatagram>,
    violations: Vec<String>,
}

/// See the module.
#[derive(Default)]
pub struct Double(Mutex<State>);

fn errno(errno: i32) -> io::Error {
    io::Error::from_raw_os_error(errno)
}

/// An SMMU that has all that a VMM may look at.
pub fn info() -> HwInfo {
    HwInfo {
        flags: 0,
        idr: [
            0b10 << 2 | 1 << 12 | 1 << 19 | 0b10 << 21 | 1 << 24,
            20 << 6 | 32,
            0,
            0b110 << 10,
            0,
            0xc70,
        ],
        iidr: 0,
        aidr: 2,
    }
}

impl Double {
    /// With devices 1 and so on, each behind the same SMMU.
    pub fn new(devices: u32) -> Arc<Self> {
        let host = Self::default();
        (1..=devices).for_each(|id| host.add(id, 0, info()));
        Arc::new(host)
    }

    pub fn add(&self, id: u32, smmu: u32, info: HwInfo) {
        self.lock()
            .devices
            .insert(id, Bound { smmu, info, attached: None, virtual_function: false });
    }

    pub fn make_virtual_function(&self, id: u32) {
        self.lock().devices.get_mut(&id).unwrap().virtual_function = true;
    }

    pub fn infos(&self) -> Vec<HwInfo> {
        self.lock().devices.values().map(|device| device.info).collect()
    }

    pub fn device(self: &Arc<Self>, id: u32) -> Arc<dyn Device> {
        Arc::new(Port { host: self.clone(), id })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// The calls since the last time.
    pub fn take(&self) -> Vec<Call> {
        std::mem::take(&mut self.lock().calls)
    }

    /// The batches since the last time.
    pub fn batches(&self) -> Vec<Vec<Command>> {
        let invalidation = |call| match call {
            Call::Invalidate(commands) => Some(commands),
            _ => None,
        };
        self.take().into_iter().filter_map(invalidation).collect()
    }

    /// The next invalidation executes `done` commands, then fails.
    pub fn refuse(&self, done: usize, errno: i32) {
        self.lock().refusals.push_back(Some((done, errno)));
    }

    /// The next invalidation does not fail.
    pub fn accept(&self) {
        self.lock().refusals.push_back(None);
    }

    /// The call after `calls` more fails; `None`: none does. Returns whether the last one set has failed.
    pub fn fail_in(&self, calls: Option<u32>) -> bool {
        std::mem::replace(&mut self.lock().fail_in, calls).is_none()
    }

    pub fn attached(&self, device: u32) -> Target {
        let state = self.lock();
        state.target(state.devices[&device].attached)
    }

    pub fn stream_ids(&self) -> Vec<u32> {
        let stream_id = |object: &Object| match object {
            Object::Vdevice { stream_id, .. } => Some(*stream_id),
            _ => None,
        };
        self.lock().objects.values().filter_map(stream_id).collect()
    }

    /// Everything that is left.
    pub fn objects(&self) -> Vec<String> {
        self.lock().objects.values().map(|object| format!("{object:?}")).collect()
    }

    /// What a client must not do.
    pub fn violations(&self) -> Vec<String> {
        std::mem::take(&mut self.lock().violations)
    }

    /// What the host puts into its event queue.
    pub fn event(&self, flags: u32, sequence: u32, record: Option<[u64; 4]>) {
        let mut bytes = [flags.to_ne_bytes(), sequence.to_ne_bytes()].concat();
        record.iter().flatten().for_each(|word| bytes.extend(word.to_le_bytes()));
        self.lock().events.as_ref().unwrap().send(&bytes).unwrap();
    }

    /// A page request of a device.
    pub fn fault(&self, record: &[u32; 10]) {
        let bytes: Vec<u8> = record.iter().flat_map(|word| word.to_ne_bytes()).collect();
        self.lock().faults.as_ref().unwrap().send(&bytes).unwrap();
    }

    /// Responses to those: cookies and codes.
    pub fn responses(&self) -> Vec<[u32; 2]> {
        let state = self.lock();
        let faults = state.faults.as_ref().unwrap();
        let mut found = Vec::new();
        let mut bytes = [0; 64];
        while let Ok(length) = faults.recv(&mut bytes) {
            let words = bytes[..length].as_chunks::<4>().0;
            found.extend(words.chunks(2).map(|pair| [pair[0], pair[1]].map(u32::from_ne_bytes)));
        }
        found
    }
}

impl State {
    /// What every call begins with.
    fn enter(&mut self) -> io::Result<()> {
        match &mut self.fail_in {
            Some(0) => {
                self.fail_in = None;
                Err(errno(libc::ENOMEM))
            }
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn add(&mut self, object: Object, call: Call) -> u32 {
        self.next += 1;
        self.objects.insert(self.next, object);
        self.calls.push(call);
        self.next
    }

    fn smmu_of(&self, device: u32) -> io::Result<u32> {
        self.devices.get(&device).map(|device| device.smmu).ok_or_else(|| errno(libc::ENOENT))
    }

    fn target(&self, page_table: Option<u32>) -> Target {
        match page_table.map(|id| self.objects[&id]) {
            Some(Object::Nested { ste, .. }) => match ste[0] >> 1 & 7 {
                0b100 => Target::Bypass,
                0b101 => Target::Translate(ste),
                _ => Target::Abort,
            },
            _ => Target::Nothing,
        }
    }

    fn in_use(&self, id: u32) -> bool {
        self.devices.values().any(|device| device.attached == Some(id))
            || self.objects.values().any(|object| match object {
                Object::Parent { .. } | Object::Faults => false,
                Object::Viommu { parent, .. } => *parent == id,
                Object::Nested { viommu, faults, .. } => *viommu == id || *faults == Some(id),
                Object::Vdevice { viommu, .. } | Object::Events { viommu } => *viommu == id,
            })
    }

    /// The device that has a StreamID in a vIOMMU.
    fn device_of(&self, viommu: u32, stream_id: u32) -> bool {
        self.objects.values().any(|object| {
            matches!(object, Object::Vdevice { viommu: v, stream_id: s, .. } if (*v, *s) == (viommu, stream_id))
        })
    }
}

impl Host for Double {
    fn hw_info(&self, device: u32) -> io::Result<HwInfo> {
        let mut state = self.lock();
        state.enter()?;
        state.devices.get(&device).map(|device| device.info).ok_or_else(|| errno(libc::ENOENT))
    }

    fn nest_parent(&self, device: u32, ioas: u32) -> io::Result<u32> {
        let mut state = self.lock();
        state.enter()?;
        let smmu = state.smmu_of(device)?;
        Ok(state.add(Object::Parent { smmu }, Call::Parent(ioas)))
    }

    fn viommu(&self, device: u32, parent: u32) -> io::Result<u32> {
        let mut state = self.lock();
        state.enter()?;
        let smmu = state.smmu_of(device)?;
        match state.objects.get(&parent) {
            // SMMUs from 10 on are of another kind.
            Some(Object::Parent { smmu: other }) if other / 10 == smmu / 10 => {}
            Some(Object::Parent { .. }) => return Err(errno(libc::EINVAL)),
            _ => return Err(errno(libc::ENOENT)),
        }
        Ok(state.add(Object::Viommu { parent, smmu }, Call::Viommu(parent)))
    }

    fn nested(
        &self,
        device: u32,
        viommu: u32,
        ste: [u64; 2],
        faults: Option<u32>,
    ) -> io::Result<u32> {
        let mut state = self.lock();
        state.enter()?;
        let smmu = state.smmu_of(device)?;
        match state.objects.get(&viommu) {
            Some(Object::Viommu { smmu: other, .. }) if *other == smmu => {}
            _ => return Err(errno(libc::EINVAL)),
        }
        let allowed = [0xf8ff_ffff_ffff_ffff, 0x3800_00ff];
        if ste[0] & !allowed[0] | ste[1] & !allowed[1] != 0 || ste[1] >> 28 & 3 > 1 {
            return Err(errno(libc::EIO));
        }
        Ok(state.add(Object::Nested { viommu, ste, faults }, Call::Nested(ste)))
    }

    fn vdevice(&self, viommu: u32, device: u32, stream_id: u32) -> io::Result<u32> {
        let mut state = self.lock();
        state.enter()?;
        let taken = state
            .objects
            .values()
            .any(|object| matches!(object, Object::Vdevice { device: d, .. } if *d == device));
        if taken || state.device_of(viommu, stream_id) {
            return Err(errno(libc::EEXIST));
        }
        let vdevice = Object::Vdevice { viommu, device, stream_id };
        Ok(state.add(vdevice, Call::Vdevice(device, stream_id)))
    }

    fn event_queue(&self, viommu: u32, _: u32) -> io::Result<(u32, File)> {
        let mut state = self.lock();
        state.enter()?;
        let (theirs, ours) = UnixDatagram::pair()?;
        theirs.set_nonblocking(true)?;
        state.events = Some(ours);
        let id = state.add(Object::Events { viommu }, Call::EventQueue);
        Ok((id, File::from(OwnedFd::from(theirs))))
    }

    fn fault_queue(&self) -> io::Result<(u32, File)> {
        let mut state = self.lock();
        state.enter()?;
        let (theirs, ours) = UnixDatagram::pair()?;
        theirs.set_nonblocking(true)?;
        ours.set_nonblocking(true)?;
        state.faults = Some(ours);
        let id = state.add(Object::Faults, Call::FaultQueue);
        Ok((id, File::from(OwnedFd::from(theirs))))
    }

    fn invalidate(&self, viommu: u32, commands: &[[u64; 2]]) -> Result<(), InvalidateError> {
        let mut state = self.lock();
        state.enter().map_err(|error| InvalidateError { done: 0, error })?;
        let commands: Vec<Command> =
            commands.iter().map(|words| Command::decode(words).unwrap()).collect();
        for command in &commands {
            if let Command::CfgiCd { sid, .. }
            | Command::CfgiCdAll { sid, .. }
            | Command::AtcInv { sid, .. } = *command
                && !state.device_of(viommu, sid)
            {
                state.violations.push(format!("StreamID {sid} without a vDEVICE"));
            }
        }
        if !matches!(state.objects.get(&viommu), Some(Object::Viommu { .. })) {
            state.violations.push("no such vIOMMU".into());
        }
        let refusal = state.refusals.pop_front().flatten();
        let executed = refusal.map_or(commands.len(), |(done, _)| done);
        state.calls.push(Call::Invalidate(commands[..executed.min(commands.len())].to_vec()));
        match refusal {
            Some((done, number)) => Err(InvalidateError { done, error: errno(number) }),
            None => Ok(()),
        }
    }

    fn destroy(&self, id: u32) -> io::Result<()> {
        let mut state = self.lock();
        // Never fails by itself: nobody could do anything about it.
        if state.in_use(id) {
            let object = state.objects.get(&id).copied();
            state.violations.push(format!("destroyed while in use: {object:?}"));
            return Err(errno(libc::EBUSY));
        }
        let name = match state.objects.remove(&id) {
            Some(Object::Parent { .. }) => "parent",
            Some(Object::Viommu { .. }) => "viommu",
            Some(Object::Nested { .. }) => "nested",
            Some(Object::Vdevice { .. }) => "vdevice",
            Some(Object::Events { .. }) => "events",
            Some(Object::Faults) => "faults",
            None => {
                state.violations.push(format!("{id} destroyed twice"));
                return Err(errno(libc::ENOENT));
            }
        };
        state.calls.push(Call::Destroy(name));
        Ok(())
    }
}

struct Port {
    host: Arc<Double>,
    id: u32,
}

impl Device for Port {
    fn id(&self) -> u32 {
        self.id
    }

    fn attach(&self, page_table: u32) -> io::Result<()> {
        let mut state = self.host.lock();
        state.enter()?;
        let Some(Object::Nested { viommu, faults, .. }) = state.objects.get(&page_table).copied()
        else {
            return Err(errno(libc::ENOENT));
        };
        if faults.is_some() && state.devices[&self.id].virtual_function {
            return Err(errno(libc::EINVAL));
        }
        let Some(Object::Viommu { smmu, .. }) = state.objects.get(&viommu).copied() else {
            return Err(errno(libc::ENOENT));
        };
        if smmu != state.devices[&self.id].smmu {
            return Err(errno(libc::EINVAL));
        }
        let target = state.target(Some(page_table));
        let named = state.objects.values().any(|object| {
            matches!(object, Object::Vdevice { viommu: v, device, .. } if (*v, *device) == (viommu, self.id))
        });
        if matches!(target, Target::Translate(_)) && !named {
            state.violations.push(format!("device {} translates without a vDEVICE", self.id));
            return Err(errno(libc::ENOENT));
        }
        state.devices.get_mut(&self.id).unwrap().attached = Some(page_table);
        state.calls.push(Call::Attach(self.id, target));
        Ok(())
    }

    fn detach(&self) -> io::Result<()> {
        let mut state = self.host.lock();
        state.devices.get_mut(&self.id).unwrap().attached = None;
        state.calls.push(Call::Detach(self.id));
        Ok(())
    }
}
