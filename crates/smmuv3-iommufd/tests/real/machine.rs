//! The host's machine, and a VM on it.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::Arc;

use iommufd_ioctls::{IommuFd, IommufdIoas};
use smmuv3::vm_memory::GuestRam;
use smmuv3::wire::{Cd, Command, Ste, TlbiVa};
use smmuv3::{Options, Smmu};
use smmuv3_iommufd::{Capabilities, Device, Host, Iommufd, NestParents, VfioDevice, Vsmmu};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};

use crate::engine::{self, Outcome};

/// Guest memory: little enough for the locked memory that ordinary users have.
pub(crate) const IPA: u64 = 0x4000_0000;
const RAM: u64 = 4 << 20;

/// Offsets in it.
const STRTAB: u64 = 0x1_0000;
const CMDQ: u64 = 0x2_0000;
const EVENTQ: u64 = 0x3_0000;
const QUEUE_LOG2: u32 = 6;
/// For each device: a CD, and tables of three levels.
const CONTEXTS: u64 = 0x10_0000;
const CONTEXT_SIZE: u64 = 0x1_0000;

/// Pages as devices see them, below 2 MiB, and where they are in memory.
const DESCRIPTOR: (u64, u64) = (0x10_0000, 0);
pub(crate) const SOURCE: (u64, u64) = (0x10_1000, 0x20_0000);
pub(crate) const DESTINATION: (u64, u64) = (0x10_2000, 0x20_1000);

pub(crate) mod reg {
    pub(crate) const CR0: u64 = 0x20;
    pub(crate) const GBPA: u64 = 0x44;
    pub(crate) const GERROR: u64 = 0x60;
    pub(crate) const GERRORN: u64 = 0x64;
    pub(crate) const STRTAB_BASE: u64 = 0x80;
    pub(crate) const STRTAB_BASE_CFG: u64 = 0x88;
    pub(crate) const CMDQ_BASE: u64 = 0x90;
    pub(crate) const CMDQ_PROD: u64 = 0x98;
    pub(crate) const CMDQ_CONS: u64 = 0x9c;
    pub(crate) const EVENTQ_BASE: u64 = 0xa0;
    pub(crate) const EVENTQ_PROD: u64 = 0x1_00a8;
    pub(crate) const EVENTQ_CONS: u64 = 0x1_00ac;
}

pub(crate) const SYNC: Command =
    Command::Sync { cs: 0, msh: 0, msi_attr: 0, msi_data: 0, msi_address: 0 };

/// The engine behind the SMMU that has no ATS.
pub(crate) const WITHOUT_ATS: usize = 9;

/// The engine behind another SMMU than the others.
pub(crate) const ELSEWHERE: usize = 13;

/// Engines behind three SMMUs: each test uses some of its own.
pub(crate) fn machine() {
    static MACHINE: std::sync::Once = std::sync::Once::new();
    MACHINE.call_once(|| {
        let iommus = r#"
            [[iommu]]
            name = "first"
            model = "smmuv3"
            [[iommu]]
            name = "second"
            model = "smmuv3"
            [[iommu]]
            name = "plain"
            model = "smmuv3"
            options = { ats = false, pri = false }
        "#;
        let device = |n| {
            let iommu = match n {
                ELSEWHERE => "second",
                WITHOUT_ATS => "plain",
                _ => "first",
            };
            format!("[[device]]\nname = 'engine{n}'\nmodel = 'ioat'\niommu = '{iommu}'\n")
        };
        let toml: String = std::iter::once(iommus.to_owned()).chain((0..14).map(device)).collect();
        softiommu::install(softiommu::Machine::from_toml(&toml).unwrap()).unwrap();
    });
}

type Iommu = Arc<IommuFd>;

/// A device file bound to an iommufd.
fn bind(iommu: &Iommu, n: usize) -> Arc<VfioDevice<File>> {
    let path = format!("/dev/vfio/devices/vfio{n}");
    let file = File::options().read(true).write(true).open(path).unwrap();
    let device = VfioDevice::bind(file, iommu).unwrap();
    engine::enable(device.file());
    Arc::new(device)
}

fn resolved(host: &impl Host, devices: &[Arc<VfioDevice<File>>]) -> Options {
    let mut capabilities = Capabilities::new(Options { oas: 44, ..Options::everything() });
    for device in devices {
        capabilities.add(&host.hw_info(device.id()).unwrap()).unwrap();
    }
    capabilities.freeze().unwrap()
}

/// What a guest with a device may be promised.
pub(crate) fn options(n: usize) -> Options {
    machine();
    let iommu = Arc::new(IommuFd::new().unwrap());
    let device = bind(&iommu, n);
    resolved(&Iommufd::new(iommu), &[device])
}

/// Memory that several VMs' vSMMUs have in common.
struct Memory {
    iommu: Iommu,
    ioas: IommufdIoas,
    ram: GuestMemoryMmap,
    parents: Arc<NestParents>,
}

impl Memory {
    fn new(share: bool) -> Arc<Self> {
        machine();
        let iommu = Arc::new(IommuFd::new().unwrap());
        // SAFETY: a plain system call with a C string; the descriptor is ours.
        let file =
            unsafe { File::from_raw_fd(libc::memfd_create(c"guest".as_ptr(), libc::MFD_CLOEXEC)) };
        file.set_len(RAM).unwrap();
        let ioas = IommufdIoas::new(iommu.clone()).unwrap();
        ioas.map_file(file.as_raw_fd(), 0, RAM, IPA, true).unwrap();
        let range = (GuestAddress(IPA), RAM as usize, Some(FileOffset::new(file, 0)));
        let ram = GuestMemoryMmap::from_ranges_with_files([range]).unwrap();
        let host = Arc::new(Iommufd::new(iommu.clone()));
        let parents = if share {
            NestParents::shared(host, ioas.id())
        } else {
            NestParents::new(host, ioas.id())
        };
        Arc::new(Self { iommu, ioas, ram, parents })
    }
}

/// A vSMMU with its devices, and what a guest's driver does with it.
pub(crate) struct Vm {
    pub(crate) vsmmu: Vsmmu<GuestRam<GuestMemoryMmap>>,
    pub(crate) smmu: Arc<Smmu<GuestRam<GuestMemoryMmap>>>,
    devices: Vec<Arc<VfioDevice<File>>>,
    memory: Arc<Memory>,
    /// Its structures begin here.
    base: u64,
}

impl Vm {
    /// With some of the machine's engines, plugged in.
    pub(crate) fn new(engines: &[usize]) -> Self {
        Self::over(Memory::new(false), 0, engines, None)
    }

    pub(crate) fn with_options(engine: usize, options: Options) -> Self {
        Self::over(Memory::new(false), 0, &[engine], Some(options))
    }

    /// Two vSMMUs of one VM, with an engine each.
    pub(crate) fn pair(engines: [usize; 2], share: bool) -> [Self; 2] {
        let memory = Memory::new(share);
        [0, 1].map(|n| Self::over(memory.clone(), n * 0x4_0000, &[engines[n as usize]], None))
    }

    /// The same memory under another vSMMU, with another engine.
    pub(crate) fn migrate(self, engine: usize, stream_id: u32) -> Self {
        let options = self.smmu.options().clone();
        let memory = self.memory.clone();
        drop(self);
        let there = Self::over(memory, 0, &[engine], Some(options));
        there.smmu.write32(reg::GBPA, 1 << 31 | 1 << 20);
        there.vsmmu.set_stream_id(there.id(0), Some(stream_id)).unwrap();
        there
    }

    fn over(memory: Arc<Memory>, base: u64, engines: &[usize], options: Option<Options>) -> Self {
        let host = Arc::new(Iommufd::new(memory.iommu.clone()));
        let devices: Vec<_> = engines.iter().map(|n| bind(&memory.iommu, *n)).collect();
        let options = options.unwrap_or_else(|| resolved(&*host, &devices));
        let smmu = Smmu::new(options, GuestRam(memory.ram.clone()), (), ()).unwrap();
        let vsmmu = Vsmmu::new(smmu.clone(), host, memory.parents.clone()).unwrap();
        for device in &devices {
            vsmmu.plug(device.clone()).unwrap();
        }
        Self { vsmmu, smmu, devices, memory, base }
    }

    /// Takes everything away but the IOAS.
    pub(crate) fn dismantle(self) -> (Iommu, u32) {
        let Self { vsmmu, smmu, devices, memory, .. } = self;
        drop((vsmmu, smmu, devices));
        let Memory { iommu, ioas, .. } = Arc::into_inner(memory).unwrap();
        let id = ioas.id();
        std::mem::forget(ioas);
        (iommu, id)
    }

    pub(crate) fn id(&self, device: usize) -> u32 {
        self.devices[device].id()
    }

    pub(crate) fn write_ram(&self, at: u64, bytes: &[u8]) {
        self.memory.ram.write_slice(bytes, GuestAddress(IPA + at)).unwrap();
    }

    pub(crate) fn read_ram(&self, at: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory.ram.read_slice(&mut bytes, GuestAddress(IPA + at)).unwrap();
        bytes
    }

    fn store(&self, at: u64, words: &[u64]) {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.write_ram(at, &bytes);
    }

    fn load(&self, at: u64) -> u64 {
        u64::from_le_bytes(self.read_ram(at, 8).try_into().unwrap())
    }
}

/// The guest's driver.
impl Vm {
    pub(crate) fn boot(&self) {
        let smmu = &self.smmu;
        let base = IPA + self.base;
        smmu.write64(reg::STRTAB_BASE, base + STRTAB);
        smmu.write32(reg::STRTAB_BASE_CFG, 8);
        smmu.write64(reg::CMDQ_BASE, (base + CMDQ) | u64::from(QUEUE_LOG2));
        smmu.write64(reg::EVENTQ_BASE, (base + EVENTQ) | u64::from(QUEUE_LOG2));
        smmu.write32(reg::CR0, 0b1100);
        self.run(&[Command::CfgiSteRange { sid: 0, range: 31, ssec: false }, Command::TlbiNsnhAll]);
        smmu.write32(reg::CR0, 0b1101);
    }

    /// Puts a command into its place in the queue.
    pub(crate) fn replace(&self, index: u32, command: Command) {
        let index = u64::from(index & ((1 << QUEUE_LOG2) - 1));
        self.store(self.base + CMDQ + 16 * index, &command.encode());
    }

    pub(crate) fn submit(&self, commands: &[Command]) {
        let prod = self.smmu.read32(reg::CMDQ_PROD);
        for (n, command) in (prod..).zip(commands) {
            self.replace(n, *command);
        }
        let mask = (2 << QUEUE_LOG2) - 1;
        self.smmu.write32(reg::CMDQ_PROD, (prod + commands.len() as u32) & mask);
    }

    #[track_caller]
    pub(crate) fn run(&self, commands: &[Command]) {
        self.submit(&[commands, &[SYNC]].concat());
        let (cons, prod) = (self.smmu.read32(reg::CMDQ_CONS), self.smmu.read32(reg::CMDQ_PROD));
        assert_eq!(cons, prod, "not all commands were executed");
    }

    pub(crate) fn set_ste(&self, sid: u32, ste: &Ste) {
        self.store(self.base + STRTAB + 64 * u64::from(sid), &ste.0);
        self.run(&[Command::CfgiSte { sid, leaf: true, ssec: false }]);
    }

    fn context(&self, device: usize) -> u64 {
        CONTEXTS + (self.base >> 1) + CONTEXT_SIZE * device as u64
    }

    /// Makes an address space for a device, with the three pages in it, and puts the device into it as a stream.
    pub(crate) fn translate(&self, device: usize, sid: u32) {
        if self.vsmmu.smmu().stream_config(sid) == smmuv3::StreamConfig::Abort {
            let _ = self.vsmmu.set_stream_id(self.id(device), Some(sid));
        }
        let context = self.context(device);
        let tables = [1, 2, 3].map(|n| context + 0x1000 * n);
        self.write_ram(context, &[0; 0x4000]);
        for above in [0, 1] {
            self.store(tables[above], &[(IPA + tables[above + 1]) | 0b11]);
        }
        for (address, at) in [DESCRIPTOR, SOURCE, DESTINATION] {
            let at = if address == DESCRIPTOR.0 { context + 0x4000 } else { at };
            self.map(device, address, at);
        }
        let cd = Cd::default()
            .with_v(true)
            .with_aa64(true)
            .with_t0sz(64 - 39)
            .with_ir0(1)
            .with_or0(1)
            .with_sh0(3)
            .with_epd1(true)
            .with_ips(0b100)
            .with_r(true)
            .with_a(true)
            .with_aset(true)
            .with_asid(asid(device))
            .with_ttb0(IPA + tables[0])
            .with_mair(0xff);
        self.store(context, &cd.0);
        let ste = Ste::default()
            .with_v(true)
            .with_config(0b101)
            .with_s1_context_ptr(IPA + context)
            .with_s1_cir(1)
            .with_s1_cor(1)
            .with_s1_csh(3);
        self.set_ste(sid, &ste);
    }

    /// Has a stream use the address space of another.
    pub(crate) fn share(&self, from: u32, to: u32) {
        let at = self.base + STRTAB + 64 * u64::from(from);
        let ste = std::array::from_fn(|n| self.load(at + 8 * n as u64));
        self.set_ste(to, &Ste(ste));
    }

    fn leaf(&self, device: usize, address: u64) -> u64 {
        assert_eq!(address >> 21, 0, "there is one table of each level");
        self.context(device) + 0x3000 + 8 * (address >> 12)
    }

    /// A page that unprivileged devices read and write, of write-back memory.
    pub(crate) fn map(&self, device: usize, address: u64, at: u64) {
        let page = 0b11 | 1 << 6 | 0b11 << 8 | 1 << 10 | 1 << 11;
        self.store(self.leaf(device, address), &[(IPA + at) | page]);
    }

    pub(crate) fn unmap(&self, device: usize, address: u64) {
        self.store(self.leaf(device, address), &[0]);
    }

    /// New event records, consumed.
    pub(crate) fn events(&self) -> Vec<[u64; 4]> {
        let (prod, cons) = (self.smmu.read32(reg::EVENTQ_PROD), self.smmu.read32(reg::EVENTQ_CONS));
        let mask = (2 << QUEUE_LOG2) - 1;
        let record = |n| {
            let index = u64::from((cons + n) & (mask >> 1));
            std::array::from_fn(|word| self.load(self.base + EVENTQ + 32 * index + 8 * word as u64))
        };
        let records = (0..prod.wrapping_sub(cons) & mask).map(record).collect();
        self.smmu.write32(reg::EVENTQ_CONS, prod);
        records
    }

    /// Waits until the host has something to tell.
    pub(crate) fn wait_for_events(&self) {
        let fd = self.vsmmu.with_event_file(|file| file.as_raw_fd()).unwrap();
        let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        // SAFETY: one structure, which is ours.
        assert_eq!(unsafe { libc::poll(&raw mut poll, 1, -1) }, 1);
    }
}

/// The guest's driver of the engine.
impl Vm {
    /// Copies from [`SOURCE`] to [`DESTINATION`].
    pub(crate) fn copy(&self, device: usize, length: usize) -> Outcome {
        self.copy_at(device, DESCRIPTOR.0, SOURCE.0, DESTINATION.0, length)
    }

    /// With the descriptor at an address for the device, of which the last bits are where it is in its page.
    pub(crate) fn copy_at(
        &self,
        device: usize,
        descriptor: u64,
        source: u64,
        destination: u64,
        length: usize,
    ) -> Outcome {
        let at = self.context(device) + 0x4000;
        self.store(at, &[length as u64, source, destination, 0, 0, 0, 0, 0]);
        let descriptor = if descriptor == IPA { IPA + at } else { descriptor };
        engine::run(self.devices[device].file(), descriptor)
    }
}

fn asid(device: usize) -> u16 {
    device as u16 + 1
}

pub(crate) fn tlbi_va(device: usize, address: u64) -> Command {
    Command::TlbiNhVa(TlbiVa { asid: asid(device), address, leaf: true, ..TlbiVa::default() })
}
