//! A PCI function as VFIO hands it out: configuration space, BARs, interrupts, and the emulated device behind them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::{Mutex, MutexGuard};
use platform::{Its, Monitor, PciAddress, Port, Spawn};
use uapi::vfio as v;

use crate::Error;
use crate::bar::Bars;
use crate::config::{self, Config, Effect, MSIX_BAR, MSIX_BAR_SIZE};
use crate::device::{Bus, Device, Identity, InUse, Shared};
use crate::group::Group;
use crate::interrupts::{Counts, Interrupts};
use crate::sriov::Role;

/// A function of the machine that user space may drive.
pub struct Function {
    device: Arc<iommu::Device>,
    identity: Identity,
    emulated: Arc<dyn Device>,
    shared: Arc<Shared>,
    port: Port,
    config: Mutex<Config>,
    bars: OnceLock<Bars>,
    address: PciAddress,
    group: Arc<Group>,
    mappable: AtomicBool,
    /// Bound by its own file.
    pub(crate) bound: AtomicBool,
    /// It is open, or being opened or closed.
    in_use: Monitor<bool>,
    pub(crate) role: Role,
}

/// Where a function is in the machine.
pub(crate) struct Parts<'a> {
    pub(crate) device: Arc<iommu::Device>,
    pub(crate) port: Port,
    pub(crate) its: Arc<Its>,
    pub(crate) address: PciAddress,
    pub(crate) group: &'a Arc<Group>,
    pub(crate) spawn: &'a Spawn,
    pub(crate) role: Role,
}

impl Function {
    /// A function of a group that the IOMMU core knows as `device`, with `port` as its way to memory and messages to
    /// `its`. `make` builds what is behind the registers; `spawn` starts threads.
    pub fn new(
        device: Arc<iommu::Device>,
        port: Port,
        its: Arc<Its>,
        address: PciAddress,
        group: &Arc<Group>,
        spawn: &Spawn,
        make: impl FnOnce(Bus) -> Arc<dyn Device>,
    ) -> Result<Arc<Self>, Error> {
        let role = Role::Physical(OnceLock::new());
        Self::assemble(Parts { device, port, its, address, group, spawn, role }, None, make)
    }

    /// A function, with the vendor ID of another if there is one.
    pub(crate) fn assemble(
        parts: Parts<'_>,
        vendor: Option<u16>,
        make: impl FnOnce(Bus) -> Arc<dyn Device>,
    ) -> Result<Arc<Self>, Error> {
        let Parts { device, port, its, address, group, spawn, role } = parts;
        let virtual_function = match &role {
            Role::Physical(_) => None,
            Role::Virtual(virtual_function) => Some(virtual_function.index),
        };
        let (interrupts, master) = (OnceLock::new(), AtomicBool::new(false));
        let shared = Arc::new(Shared { interrupts, master, virtual_function });
        let emulated = make(Bus::new(port.another(), &shared));
        let counts = Counts {
            line: emulated.has_line() && virtual_function.is_none(),
            msi: emulated.messages(),
            msix: emulated.vectors(),
        };
        // Just made: it is empty.
        let _ = shared.interrupts.set(Interrupts::new(its, &port, counts, spawn)?);
        let mut bars = emulated.bars();
        if counts.msix > 0 {
            bars[MSIX_BAR] = MSIX_BAR_SIZE;
        }
        let (mut identity, own) = (emulated.identity(), emulated.capabilities());
        identity.vendor = vendor.unwrap_or(identity.vendor);
        let config = Config::new(&identity, bars, counts, port.capabilities(), &own);
        let config = Mutex::new(config);
        let function = Arc::new(Self {
            device,
            identity,
            emulated,
            shared,
            port,
            config,
            bars: OnceLock::new(),
            address,
            group: group.clone(),
            mappable: AtomicBool::new(false),
            bound: AtomicBool::new(false),
            in_use: Monitor::default(),
            role,
        });
        let answers = |index| !function.is_table(index);
        let placed = Bars::place(&Arc::downgrade(&function), &function.port, bars, answers);
        // Just made: it is empty.
        let _ = function.bars.set(placed.ok_or(Error::NoSpace)?);
        group.add(&function);
        Ok(function)
    }

    /// Lets programs map its registers: each access is carried out, at the price of a signal.
    pub fn allow_mmap(&self) {
        self.mappable.store(true, Ordering::Release);
    }

    /// Whether programs may map a region. The MSI-X table stays the host's.
    pub(crate) fn is_mappable(&self, index: u32) -> bool {
        self.is_memory(index) && self.mappable.load(Ordering::Acquire)
    }

    /// The region is of registers that are the device's own.
    pub(crate) fn is_memory(&self, index: u32) -> bool {
        let bar = self.bars().get(index as usize).is_some_and(|size| *size > 0);
        bar && !self.is_table(index)
    }

    /// Its address.
    pub fn address(&self) -> PciAddress {
        self.address
    }

    /// Its group.
    pub fn group(&self) -> &Arc<Group> {
        &self.group
    }

    /// What it is.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// The sizes of its BARs in bytes; 0 is none.
    pub fn bars(&self) -> [u64; 6] {
        self.place().sizes()
    }

    /// Where they are in the physical address space; 0 is nowhere.
    pub fn bar_addresses(&self) -> [u64; 6] {
        self.place().addresses()
    }

    pub(crate) fn place(&self) -> &Bars {
        self.bars.get().expect("set when the function was made")
    }

    /// It decodes its BARs; a virtual function as long as it is there, which is VF MSE.
    pub(crate) fn has_memory(&self) -> bool {
        if self.is_virtual() { self.is_present() } else { self.config.lock().has_memory() }
    }

    /// Its configuration space as it is now.
    pub fn config_space(&self) -> Vec<u8> {
        let mut bytes = vec![0; config::SIZE];
        self.read_config(0, &mut bytes);
        bytes
    }

    fn read_config(&self, at: usize, data: &mut [u8]) {
        let mut config = self.config.lock();
        config.show(self.port.has_ats_enabled(), self.port.page_requests());
        config.read(at, data, self.interrupts().level());
    }

    /// The device as the IOMMU core knows it.
    pub fn device(&self) -> &Arc<iommu::Device> {
        &self.device
    }

    pub(crate) fn config(&self) -> MutexGuard<'_, Config> {
        self.config.lock()
    }

    pub(crate) fn its(&self) -> &Arc<Its> {
        self.interrupts().its()
    }

    pub(crate) fn interrupts(&self) -> &Interrupts {
        self.shared.interrupts.get().expect("set when the function was made")
    }

    /// The BAR has the MSI-X table, which is the host's.
    fn is_table(&self, index: u32) -> bool {
        index as usize == MSIX_BAR && self.interrupts().counts().msix > 0
    }

    /// The size of a region of `VFIO_PCI_*_REGION_INDEX`, in bytes; 0 is none. `None`: no such region.
    pub(crate) fn region_size(&self, index: u32) -> Option<u64> {
        match index {
            v::VFIO_PCI_CONFIG_REGION_INDEX => Some(config::SIZE as u64),
            index if index < v::VFIO_PCI_NUM_REGIONS => {
                Some(self.bars().get(index as usize).copied().unwrap_or(0))
            }
            _ => None,
        }
    }

    /// Reads a part of a region, in accesses as wide as alignment allows.
    pub(crate) fn read(&self, index: u32, offset: u64, data: &mut [u8]) -> Result<(), Error> {
        if index == v::VFIO_PCI_CONFIG_REGION_INDEX {
            self.read_config(offset as usize, data);
            return Ok(());
        }
        self.answers()?;
        let mut done = 0;
        while done < data.len() {
            let at = offset + done as u64;
            let len = width(at, data.len() - done);
            let part = &mut data[done..done + len];
            if self.is_table(index) {
                // Nothing is pending.
                part.fill(if at < MSIX_BAR_SIZE / 2 { 0xff } else { 0 });
            } else {
                self.emulated.read(index as usize, at, part);
            }
            done += len;
        }
        Ok(())
    }

    /// Writes a part of a region, likewise.
    pub(crate) fn write(&self, index: u32, offset: u64, data: &[u8]) -> Result<(), Error> {
        if index == v::VFIO_PCI_CONFIG_REGION_INDEX {
            self.write_config(offset as usize, data);
            return Ok(());
        }
        self.answers()?;
        let mut done = 0;
        while done < data.len() {
            let at = offset + done as u64;
            let len = width(at, data.len() - done);
            if !self.is_table(index) {
                self.emulated.write(index as usize, at, &data[done..done + len]);
            }
            done += len;
        }
        Ok(())
    }

    /// BARs answer once software has said so.
    fn answers(&self) -> Result<(), Error> {
        if self.has_memory() { Ok(()) } else { Err(Error::File(host::Errno::IO)) }
    }

    fn write_config(&self, at: usize, data: &[u8]) {
        let effect = {
            let mut config = self.config.lock();
            let effect = config.write(at, data);
            self.shared.master.store(config.is_master(), Ordering::Release);
            self.interrupts().disable_line(config.is_line_disabled());
            effect
        };
        self.place().revoke(|| !self.has_memory());
        if effect == Effect::Reset {
            self.reset();
        }
    }

    /// A function level reset. As after the kernel's, which restores configuration space, the device is still enabled, and
    /// interrupts are still configured.
    pub(crate) fn reset(&self) {
        // No DMA and no message from here on, whatever the device is in the middle of.
        self.shared.master.store(false, Ordering::Release);
        self.port.halt(true);
        self.place().revoke(|| true);
        self.emulated.reset();
        self.port.reset();
        self.port.halt(false);
        self.interrupts().set_level(false);
        {
            let config = self.config.lock();
            self.shared.master.store(config.is_master(), Ordering::Release);
        }
        self.place().revoke(|| !self.has_memory());
        self.reset_virtual();
    }

    /// Configuration space as after power-on, and then a reset.
    fn clean(&self) {
        self.config.lock().reset();
        self.interrupts().disable_line(false);
        self.reset();
    }

    /// A device that is opened decodes its BARs. Who has it open knows that; who is just closing it, on another thread, is
    /// waited for.
    pub(crate) fn open(&self) -> Result<(), Error> {
        {
            let mut in_use = self.in_use.lock();
            while *in_use {
                in_use = self.in_use.wait(in_use);
            }
            *in_use = true;
        }
        if let Err(InUse) = self.emulated.open() {
            self.is_closed();
            return Err(Error::Busy("what the device needs"));
        }
        self.clean();
        self.config.lock().write(4, &[0b10, 0]);
        Ok(())
    }

    /// It is given back.
    pub(crate) fn close(&self) {
        self.interrupts().close();
        self.place().forget();
        self.clean();
        self.emulated.close();
        self.is_closed();
    }

    fn is_closed(&self) {
        *self.in_use.lock() = false;
        self.in_use.notify();
    }
}

/// The widest access at `at` that does not cross its own alignment.
fn width(at: u64, left: usize) -> usize {
    [8, 4, 2].into_iter().find(|len| *len <= left && at.is_multiple_of(*len as u64)).unwrap_or(1)
}
