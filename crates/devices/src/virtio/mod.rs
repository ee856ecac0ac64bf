//! A virtio block device (VIRTIO 1.2) on PCI, with split virtqueues.
//!
//! What it implements and what not is in `docs/virtio-blk.md` of this crate.

mod request;
mod ring;
mod spec;
mod state;

use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use platform::Spawn;
use vfio::{Bus, Device, Identity, InUse, Work, Worker};

use self::request::{Disk, MAX_RANGE, MAX_RANGES, Scratch};
use self::ring::{Broken, MAX_SIZE};
use self::spec::{ISR_CONFIG, ISR_QUEUE, NO_VECTOR, feature};
use self::state::{COMMON_LEN, Effect, State};
use crate::burst::Burst;
use crate::image::Image;

const VENDOR: u16 = 0x1af4;
/// A transitional device's number is another: this one is modern only.
const DEVICE: u16 = 0x1042;
/// Most queues: one for each bit of a word.
const MAX_QUEUES: u16 = 64;

/// The parts of BAR 0.
const BAR_SIZE: u64 = 16 << 10;
const COMMON: u64 = 0;
const ISR: u64 = 0x1000;
const CONFIG: u64 = 0x2000;
const NOTIFY: u64 = 0x3000;
/// Bytes between the notification addresses of queues.
const NOTIFY_STEP: u64 = 4;
/// Bytes of the device configuration, and where its writable byte is.
const CONFIG_LEN: usize = 60;
const WRITEBACK: u64 = 32;

/// A block device.
pub struct VirtioBlk {
    engine: Arc<Engine>,
    worker: Arc<Worker>,
}

struct Engine {
    bus: Bus,
    disk: Disk,
    block: u32,
    queues: u16,
    state: Mutex<State>,
    scratch: Mutex<Scratch>,
}

impl VirtioBlk {
    /// A disk on this bus, whose thread `spawn` starts, with blocks of `block` bytes and `queues` queues, of which there
    /// are 1 to 64. `name` is what it says if asked who it is.
    pub fn new(
        bus: Bus,
        spawn: &Spawn,
        name: &str,
        image: Image,
        block: u32,
        queues: u16,
    ) -> Arc<Self> {
        let queues = queues.clamp(1, MAX_QUEUES);
        let mut offered = feature::SEG_MAX
            | feature::BLK_SIZE
            | feature::FLUSH
            | feature::CONFIG_WCE
            | feature::INDIRECT_DESC
            | feature::EVENT_IDX
            | feature::VERSION_1
            | feature::ACCESS_PLATFORM;
        offered |= if image.is_read_only() {
            feature::RO
        } else {
            feature::DISCARD | feature::WRITE_ZEROES
        };
        if queues > 1 {
            offered |= feature::MQ;
        }
        let state = Mutex::new(State::new(0, offered, queues.into()));
        let disk = Disk { image, id: name.to_owned() };
        let engine = Engine { bus, disk, block, queues, state, scratch: Mutex::default() };
        Arc::new(Self { engine: Arc::new(engine), worker: Worker::new("virtio-blk", spawn) })
    }

    /// The device configuration (§5.2.4).
    fn config(&self) -> [u8; CONFIG_LEN] {
        let Engine { disk, block, queues, .. } = &*self.engine;
        let mut bytes = [0; CONFIG_LEN];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, &(disk.image.size() / 512).to_le_bytes());
        // What a request needs beside its data are two.
        put(12, &(u32::from(MAX_SIZE) - 2).to_le_bytes());
        put(20, &block.to_le_bytes());
        put(WRITEBACK as usize, &[self.engine.state.lock().writeback.into()]);
        put(34, &queues.to_le_bytes());
        put(36, &MAX_RANGE.to_le_bytes());
        put(40, &MAX_RANGES.to_le_bytes());
        put(44, &(block / 512).to_le_bytes());
        put(48, &MAX_RANGE.to_le_bytes());
        put(52, &MAX_RANGES.to_le_bytes());
        // write_zeroes_may_unmap.
        put(56, &[1]);
        bytes
    }

    fn write_common(&self, at: u64, data: &[u8]) {
        let engine = &self.engine;
        let mut state = engine.state.lock();
        match state.set_common((at - COMMON) as usize, data) {
            Effect::None => return,
            Effect::Reset => {
                // What is under way ends, and then the status reads as zero.
                state.begin_reset();
                drop(state);
                engine.bus.without_waiting(|| self.worker.rest());
                engine.state.lock().reset();
                engine.bus.set_line(false);
                return;
            }
            Effect::Start => {}
            Effect::Break => state.fail(),
        }
        drop(state);
        self.worker.kick(engine);
    }
}

impl Device for VirtioBlk {
    fn identity(&self) -> Identity {
        Identity {
            vendor: VENDOR,
            device: DEVICE,
            subsystem_vendor: VENDOR,
            subsystem: 0x1100,
            // Mass storage.
            class: 0x01_00_00,
            revision: 1,
        }
    }

    fn bars(&self) -> [u64; 6] {
        [BAR_SIZE, 0, 0, 0, 0, 0]
    }

    /// Where the parts of BAR 0 are (§4.1.4).
    fn capabilities(&self) -> Vec<Vec<u8>> {
        let place = |kind: u8, at: u64, len: u64| {
            // Type, BAR, identifier, padding; offset, length.
            let mut body = vec![kind, 0, 0, 0, 0];
            body.extend((at as u32).to_le_bytes());
            body.extend((len as u32).to_le_bytes());
            body
        };
        let mut notify = place(2, NOTIFY, NOTIFY_STEP * u64::from(self.engine.queues));
        notify.extend((NOTIFY_STEP as u32).to_le_bytes());
        vec![
            place(1, COMMON, COMMON_LEN as u64),
            notify,
            place(3, ISR, 1),
            place(4, CONFIG, CONFIG_LEN as u64),
        ]
    }

    fn vectors(&self) -> u16 {
        self.engine.queues + 1
    }

    fn has_line(&self) -> bool {
        true
    }

    fn open(&self) -> Result<(), InUse> {
        let Disk { image, id } = &self.engine.disk;
        crate::lock(id, &[image])
    }

    fn close(&self) {
        self.engine.disk.image.unlock();
    }

    fn read(&self, _bar: usize, offset: u64, data: &mut [u8]) {
        let mut copy = |from: &[u8], at: u64| {
            let there = from.get(at as usize..).unwrap_or_default();
            let len = data.len().min(there.len());
            data[..len].copy_from_slice(&there[..len]);
            data[len..].fill(0);
        };
        match offset {
            ..ISR => {
                let common = self.engine.state.lock().common();
                copy(&common, offset - COMMON);
            }
            ISR => {
                let mut state = self.engine.state.lock();
                copy(&[std::mem::take(&mut state.isr)], 0);
                self.engine.bus.set_line(false);
            }
            CONFIG..NOTIFY => copy(&self.config(), offset - CONFIG),
            _ => copy(&[], 0),
        }
    }

    fn write(&self, _bar: usize, offset: u64, data: &[u8]) {
        match offset {
            ..ISR => self.write_common(offset, data),
            offset if offset == CONFIG + WRITEBACK => {
                let mut state = self.engine.state.lock();
                if state.has(feature::CONFIG_WCE) {
                    state.writeback = data[0] & 1 != 0;
                }
            }
            NOTIFY.. => {
                self.engine.state.lock().notify((offset - NOTIFY) / NOTIFY_STEP);
                self.worker.kick(&self.engine);
            }
            _ => {}
        }
    }

    fn reset(&self) {
        self.engine.state.lock().reset();
        self.worker.rest();
    }
}

impl Drop for VirtioBlk {
    fn drop(&mut self) {
        self.worker.close();
    }
}

/// The device was reset.
struct Stopped;

/// Why serving a queue ended.
enum End {
    Stopped,
    Broken,
}

impl From<Broken> for End {
    fn from(_: Broken) -> Self {
        Self::Broken
    }
}

impl From<Stopped> for End {
    fn from(_: Stopped) -> Self {
        Self::Stopped
    }
}

impl Engine {
    /// The state, if it is still in the same life.
    fn alive(&self, life: u64) -> Result<MutexGuard<'_, State>, Stopped> {
        let state = self.state.lock();
        if state.life == life { Ok(state) } else { Err(Stopped) }
    }

    /// Carries out requests of a queue.
    fn serve(&self, bus: &mut Bus, number: usize, life: u64) -> Result<(), End> {
        let (mut ring, by_index) = {
            let state = self.alive(life)?;
            (state.queues[number].ring, state.has(feature::EVENT_IDX))
        };
        let before = ring.used();
        let mut scratch = self.scratch.lock();
        let alive = || self.alive(life).is_ok();
        let mut more = true;
        let mut burst = Burst::new();
        while burst.goes_on() {
            let cached = self.alive(life)?.is_cached();
            more = ring.pop(bus, &mut scratch.chain)?;
            if !more {
                break;
            }
            let len = self.disk.execute(bus, &mut scratch, cached, &alive)?;
            ring.push(bus, scratch.chain.head, len.ok_or(Stopped)?)?;
            burst.spend(scratch.chain.len());
        }
        more = more || ring.ask(bus, by_index)?;
        let wanted = ring.is_wanted(bus, before, by_index)?;
        let vector = {
            let mut state = self.alive(life)?;
            state.queues[number].ring = ring;
            if more {
                state.defer(number);
            }
            let vector = state.queues[number].vector;
            if wanted { signal(bus, &mut state, ISR_QUEUE, vector) } else { None }
        };
        vector.into_iter().for_each(|vector| bus.raise(vector));
        Ok(())
    }
}

/// Tells the driver: the vector to raise, without the lock, or by the line.
fn signal(bus: &Bus, state: &mut State, why: u8, vector: u16) -> Option<u16> {
    if bus.is_msix() {
        return Some(vector).filter(|vector| *vector != NO_VECTOR);
    }
    state.isr |= why;
    bus.set_line(true);
    None
}

impl Work for Engine {
    fn bus(&self) -> Bus {
        self.bus.another()
    }

    fn step(&self, bus: &mut Bus) -> bool {
        let (queue, life) = {
            let mut state = self.state.lock();
            if std::mem::take(&mut state.config_changed) {
                let vector = state.config_vector;
                let vector = signal(bus, &mut state, ISR_CONFIG, vector);
                drop(state);
                vector.into_iter().for_each(|vector| bus.raise(vector));
                return true;
            }
            let Some(queue) = state.next_queue() else { return false };
            (queue, state.life)
        };
        match self.serve(bus, queue, life) {
            Ok(()) => true,
            Err(End::Stopped) => false,
            Err(End::Broken) => self.alive(life).map(|mut state| state.fail()).is_ok(),
        }
    }
}
