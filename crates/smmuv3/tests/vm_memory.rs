//! The SMMU between vm-memory's guest memory and its `IommuMemory`.
#![cfg(feature = "vm-memory")]

use std::sync::Arc;

use smmuv3::vm_memory::{GuestRam, StreamIommu};
use smmuv3::wire::register::Register;
use smmuv3::wire::{Cd, Command, Ste};
use smmuv3::{Memory, Options, Smmu};
use vm_memory::iommu::{Iommu, IommuMemory};
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryMmap, Permissions};

const STRTAB: u64 = 0x1000;
const CD: u64 = 0x2000;
const CMDQ: u64 = 0x3000;
const LEVEL2: u64 = 0x4000;
const LEVEL3: u64 = 0x5000;
/// A hole follows.
const LOW_END: u64 = 0x10_0000;
const HIGH: u64 = 0x20_0000;

struct Guest {
    smmu: Arc<Smmu<GuestRam<GuestMemoryMmap>>>,
    ram: GuestMemoryMmap,
    producer: u32,
}

impl Guest {
    /// Stream 1 translates 30 bits of address at stage 1; nothing is mapped.
    fn new() -> Self {
        let ranges = [(GuestAddress(0), LOW_END as usize), (GuestAddress(HIGH), 0x10_0000)];
        let ram = GuestMemoryMmap::from_ranges(&ranges).expect("RAM");
        let smmu =
            Smmu::new(Options::linux_host(), GuestRam(ram.clone()), (), ()).expect("an SMMU");
        let ste = Ste::default().with_v(true).with_config(0b101).with_s1_context_ptr(CD);
        let cd = Cd::default()
            .with_v(true)
            .with_aa64(true)
            .with_t0sz(34)
            .with_epd1(true)
            .with_ips(0b101)
            .with_a(true)
            .with_ttb0(LEVEL2)
            .with_mair(0xff);
        for n in 0..8 {
            ram.write_obj(ste.0[n], GuestAddress(STRTAB + 64 + 8 * n as u64)).expect("RAM");
            ram.write_obj(cd.0[n], GuestAddress(CD + 8 * n as u64)).expect("RAM");
        }
        ram.write_obj(LEVEL3 | 3, GuestAddress(LEVEL2)).expect("RAM");
        let at = |register: Register| u64::from(register.offset());
        smmu.write64(at(Register::StrtabBase), STRTAB);
        smmu.write32(at(Register::StrtabBaseCfg), 4);
        smmu.write64(at(Register::CmdqBase), CMDQ | 4);
        smmu.write32(at(Register::Cr0), 0b1001);
        Self { smmu, ram, producer: 0 }
    }

    /// Maps a page for reading, or for writing as well.
    fn map(&self, page: u64, target: u64, write: bool) {
        let read_only = if write { 0 } else { 1 << 7 };
        let descriptor = target | 3 | 1 << 10 | 1 << 6 | 3 << 8 | read_only;
        self.ram.write_obj(descriptor, GuestAddress(LEVEL3 + 8 * page)).expect("RAM");
    }

    fn invalidate(&mut self) {
        for command in [
            Command::TlbiNsnhAll,
            Command::Sync { cs: 0, msh: 0, msi_attr: 0, msi_data: 0, msi_address: 0 },
        ] {
            let at = CMDQ + 16 * u64::from(self.producer & 15);
            self.ram.write_obj(command.encode(), GuestAddress(at)).expect("RAM");
            self.producer = (self.producer + 1) & 31;
        }
        self.smmu.write32(u64::from(Register::CmdqProd.offset()), self.producer);
    }

    fn idle(&self) -> bool {
        self.smmu.read32(u64::from(Register::CmdqCons.offset())) == self.producer
    }

    fn device_memory(
        &self,
    ) -> IommuMemory<GuestMemoryMmap, StreamIommu<GuestRam<GuestMemoryMmap>>> {
        IommuMemory::new(self.ram.clone(), StreamIommu::new(self.smmu.clone(), 1, None), true, ())
    }
}

#[test]
fn a_device_model_on_iommu_memory_sees_its_own_address_space() {
    let guest = Guest::new();
    guest.map(1, HIGH, true);
    guest.map(2, 0x8000, true);
    let memory = guest.device_memory();
    // Across pages that are far apart behind the SMMU.
    let text = b"one buffer, two pages";
    memory.write_slice(text, GuestAddress(0x1ff8)).expect("mapped");
    let mut first = [0; 8];
    guest.ram.read_slice(&mut first, GuestAddress(HIGH + 0xff8)).expect("RAM");
    assert_eq!(&first, &text[..8]);
    let mut rest = [0; 13];
    guest.ram.read_slice(&mut rest, GuestAddress(0x8000)).expect("RAM");
    assert_eq!(&rest, &text[8..]);
    let mut back = [0; 21];
    memory.read_slice(&mut back, GuestAddress(0x1ff8)).expect("mapped");
    assert_eq!(&back, text);
}

#[test]
fn what_is_not_mapped_or_not_permitted_is_refused() {
    let guest = Guest::new();
    guest.map(1, HIGH, false);
    let memory = guest.device_memory();
    assert!(memory.read_obj::<u64>(GuestAddress(0x1000)).is_ok());
    assert!(memory.write_obj(1u64, GuestAddress(0x1000)).is_err(), "read-only");
    assert!(memory.read_obj::<u64>(GuestAddress(0x1ffc)).is_err(), "runs into the next page");
    assert!(memory.read_obj::<u64>(GuestAddress(u64::MAX - 3)).is_err(), "wraps around");
    let iommu = StreamIommu::new(guest.smmu.clone(), 1, None);
    assert!(iommu.translate(GuestAddress(0x1000), 8, Permissions::ReadWrite).is_err());
    assert!(iommu.translate(GuestAddress(0x1000), 8, Permissions::Read).is_ok());
    let stranger = StreamIommu::new(guest.smmu.clone(), 2, None);
    let error =
        stranger.translate(GuestAddress(0x1000), 8, Permissions::Read).err().expect("no STE");
    assert!(error.to_string().contains("aborted"), "{error}");
}

#[test]
fn an_iterator_holds_invalidations_back() {
    let mut guest = Guest::new();
    guest.map(1, HIGH, true);
    let smmu = guest.smmu.clone();
    let iommu = StreamIommu::new(smmu, 1, None);
    let mut translated =
        iommu.translate(GuestAddress(0x1000), 8, Permissions::Read).expect("mapped");
    guest.map(1, 0x8000, true);
    guest.invalidate();
    assert!(!guest.idle(), "the device may still be at the old page");
    assert_eq!(translated.next().expect("a range").base, GuestAddress(HIGH));
    drop(translated);
    assert!(guest.idle());
    let mut again = iommu.translate(GuestAddress(0x1000), 8, Permissions::Read).expect("mapped");
    assert_eq!(again.next().expect("a range").base, GuestAddress(0x8000));
}

#[test]
fn memory_that_is_not_there_aborts() {
    let guest = Guest::new();
    let ram = GuestRam(guest.ram.clone());
    assert!(ram.load(LOW_END).is_err());
    assert!(ram.read(LOW_END - 4, &mut [0; 8]).is_err());
    assert!(ram.write(u64::MAX - 3, &[0; 8]).is_err());
    assert!(ram.load(LOW_END - 4).is_err(), "and so does what is not aligned at its end");
    ram.write(LOW_END - 8, &7u64.to_le_bytes()).expect("RAM");
    assert_eq!(ram.compare_exchange(LOW_END - 8, 7, 9), Ok(7));
    assert_eq!(ram.compare_exchange(LOW_END - 8, 7, 10), Ok(9));
    assert_eq!(ram.load(LOW_END - 8), Ok(9));
    assert!(guest.ram.check_range(GuestAddress(HIGH), 0x1000, Permissions::Read));
}
