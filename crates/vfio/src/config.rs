//! PCI configuration space: a type 0 header with MSI-X, PCI Express and power management capabilities, and the extended
//! ones ATS, PRI and SR-IOV.
//!
//! Who uses a device through VFIO sees what the kernel lets him see. ATS, PRI and PASIDs are the host's: its IOMMU driver
//! enables them. ATS and PRI can be read, as they are at the moment, and not written; the PASID capability is hidden: how
//! many there are is in `IOMMU_GET_HW_INFO`. SR-IOV can be read and not written: its PF's driver in the kernel enables
//! virtual functions, for who writes `sriov_numvfs`.

use platform::{Capabilities, PAGE_REQUEST_CAPACITY, PriStatus};

use crate::device::Identity;
use crate::interrupts::Counts;

/// Bytes of configuration space.
pub(crate) const SIZE: usize = 4096;

/// The BAR that holds the MSI-X table, and the pending bits behind it.
pub(crate) const MSIX_BAR: usize = 4;
/// Size of that BAR, and where the pending bits are in it.
pub(crate) const MSIX_BAR_SIZE: u64 = 64 << 10;
const PBA: u32 = 48 << 10;

const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const BARS: usize = 0x10;
const CAPABILITIES: usize = 0x34;
/// Capabilities, in the order of the list.
const PM: usize = 0x40;
const MSIX: usize = 0x50;
const EXPRESS: usize = 0x60;
const MSI: usize = 0xa0;
/// Where those begin that the device has of its own.
const VENDOR: usize = 0xb0;
const ID_VENDOR: u8 = 0x09;
const DEVICE_CONTROL: usize = EXPRESS + 8;

/// Extended capabilities, in the order of the list; the first is where the list begins.
const ATS: usize = 0x100;
const PRI: usize = 0x110;
/// Beyond the registers of its own that Intel's DMA engine has from 140h on.
const SRIOV: usize = 0x200;
/// `PCI_EXT_CAP_ID_*`.
const ID_ATS: u32 = 0x0f;
const ID_PRI: u32 = 0x13;
const ID_SRIOV: u32 = 0x10;
/// `SR-IOV Control.VF Enable` and `VF MSE`.
const SRIOV_ENABLE: u16 = 1 << 0 | 1 << 3;
/// `Supported Page Sizes`: those that every PF has to support, from 4 KiB to 4 MiB.
const SRIOV_PAGE_SIZES: u32 = 0x553;
/// `PCI_ATS_CAP`: requests are for whole pages, invalidations of all PASIDs at once work, and 32 of them fit.
const ATS_CAP: u16 = 1 << 5 | 1 << 6;
/// `PCI_ATS_CTRL_ENABLE`. The Smallest Translation Unit, below it, is 4 KiB.
const ATS_CTRL_ENABLE: u16 = 1 << 15;
/// `PCI_PRI_STATUS_*`.
const PRI_STATUS_RF: u16 = 1 << 0;
const PRI_STATUS_UPRGI: u16 = 1 << 1;
const PRI_STATUS_STOPPED: u16 = 1 << 8;
/// `Device Capabilities 2`: one TLP prefix from end to end, which is what a PASID is in.
const DEVICE_CAPABILITIES2: usize = EXPRESS + 0x24;
const END_END_PREFIX: u32 = 1 << 21 | 1 << 22;

const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_MASTER: u16 = 1 << 2;
const COMMAND_LINE_DISABLE: u16 = 1 << 10;
const COMMAND_WRITABLE: u16 =
    COMMAND_MEMORY | COMMAND_MASTER | 1 << 6 | 1 << 8 | COMMAND_LINE_DISABLE;
const STATUS_INTERRUPT: u8 = 1 << 3;
const STATUS_CAPABILITIES: u16 = 1 << 4;
const INTERRUPT_LINE: usize = 0x3c;
const INTERRUPT_PIN: usize = 0x3d;
const INTA: u8 = 1;
/// `Device Control.Initiate Function Level Reset`: reads as zero.
const INITIATE_FLR: u16 = 1 << 15;
/// `Device Capabilities.Function Level Reset Capability`.
const FLR_CAPABLE: u32 = 1 << 28;

/// What a write asks for beside changing bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Nothing.
    None,
    /// A function level reset.
    Reset,
}

/// The configuration space of one function.
pub(crate) struct Config {
    bytes: Box<[u8; SIZE]>,
    capabilities: Capabilities,
    /// Bits that software may change.
    writable: Box<[u8; SIZE]>,
}

impl Config {
    pub(crate) fn new(
        identity: &Identity,
        bars: [u64; 6],
        interrupts: Counts,
        capabilities: Capabilities,
        own: &[Vec<u8>],
    ) -> Self {
        let (bytes, writable) = (Box::new([0; SIZE]), Box::new([0; SIZE]));
        let mut config = Self { bytes, capabilities, writable };
        config.put(0x00, &identity.vendor.to_le_bytes());
        config.put(0x02, &identity.device.to_le_bytes());
        config.allow(COMMAND, &COMMAND_WRITABLE.to_le_bytes());
        config.put(STATUS, &STATUS_CAPABILITIES.to_le_bytes());
        config.put(0x08, &(identity.class << 8 | u32::from(identity.revision)).to_le_bytes());
        config.allow(0x0c, &[0xff]);
        config.put(0x2c, &identity.subsystem_vendor.to_le_bytes());
        config.put(0x2e, &identity.subsystem.to_le_bytes());
        // Software's own note.
        config.allow(INTERRUPT_LINE, &[0xff]);
        if interrupts.line {
            config.put(INTERRUPT_PIN, &[INTA]);
        }
        for (n, size) in bars.into_iter().enumerate().filter(|(_, size)| *size != 0) {
            let at = BARS + 4 * n;
            // Memory, 64 bits.
            config.put(at, &[0b100]);
            config.allow(at, &(!(size - 1)).to_le_bytes());
        }
        let mut list = vec![PM];
        // Power management, version 3: D0 and D3hot, no reset in between.
        config.put(PM, &[0x01, 0, 0x03, 0x00, 0x08]);
        config.allow(PM + 4, &[0b11]);
        if interrupts.msi > 0 {
            list.push(MSI);
            // 64 bits of address, no masks.
            let count_log2 = interrupts.msi.trailing_zeros() as u16;
            config.put(MSI, &[0x05, 0]);
            config.put(MSI + 2, &(1 << 7 | count_log2 << 1).to_le_bytes());
            config.allow(MSI + 2, &0x0071_u16.to_le_bytes());
            config.allow(MSI + 4, &(!0b11_u64).to_le_bytes());
            config.allow(MSI + 12, &[0xff; 2]);
        }
        if interrupts.msix > 0 {
            list.push(MSIX);
            config.put(MSIX, &[0x11, 0]);
            config.put(MSIX + 2, &(interrupts.msix - 1).to_le_bytes());
            config.allow(MSIX + 2, &0xc000_u16.to_le_bytes());
            config.put(MSIX + 4, &(MSIX_BAR as u32).to_le_bytes());
            config.put(MSIX + 8, &(PBA | MSIX_BAR as u32).to_le_bytes());
        }
        list.push(EXPRESS);
        let mut at = VENDOR;
        for body in own {
            let len = 3 + body.len();
            assert!(at + len <= ATS, "the capabilities of a device need at most 80 bytes");
            config.put(at, &[ID_VENDOR, 0, len as u8]);
            config.put(at + 3, body);
            list.push(at);
            at += len.next_multiple_of(4);
        }
        config.put(CAPABILITIES, &[list[0] as u8]);
        for pair in list.windows(2) {
            config.put(pair[0] + 1, &[pair[1] as u8]);
        }
        // PCI Express, version 2, an endpoint.
        config.put(EXPRESS, &[0x10]);
        config.put(EXPRESS + 2, &[0x02, 0x00]);
        config.put(EXPRESS + 4, &(FLR_CAPABLE | 1 << 15).to_le_bytes());
        config.put(DEVICE_CONTROL, &0x2810_u16.to_le_bytes());
        config.allow(DEVICE_CONTROL, &0x7fff_u16.to_le_bytes());
        // A link of width 1 at 2.5 GT/s, which is up.
        config.put(EXPRESS + 12, &0x11_u32.to_le_bytes());
        config.put(EXPRESS + 18, &0x11_u16.to_le_bytes());
        config.put_extended();
        config
    }

    fn put_extended(&mut self) {
        let Capabilities { pasid_bits, ats, pri } = self.capabilities;
        if pasid_bits > 0 {
            self.put(DEVICE_CAPABILITIES2, &END_END_PREFIX.to_le_bytes());
        }
        self.link_extended(false);
        if ats {
            self.put(ATS + 4, &ATS_CAP.to_le_bytes());
        }
        if ats && pri {
            // The capacity, and of that what the host has allotted: all.
            self.put(PRI + 8, &PAGE_REQUEST_CAPACITY.to_le_bytes());
            self.put(PRI + 12, &PAGE_REQUEST_CAPACITY.to_le_bytes());
        }
    }

    /// The list of the extended capabilities that there are.
    fn link_extended(&mut self, sriov: bool) {
        let Capabilities { ats, pri, .. } = self.capabilities;
        let all = [(ats, ATS, ID_ATS), (ats && pri, PRI, ID_PRI), (sriov, SRIOV, ID_SRIOV)];
        let mut next = 0;
        for (_, at, id) in all.into_iter().rev().filter(|(is, ..)| *is) {
            // An identity, version 1, and where the next one is.
            self.put(at, &(id | 1 << 16 | next << 20).to_le_bytes());
            next = at as u32;
        }
        if next > ATS as u32 {
            // The list begins where ATS would be: with one of no identity.
            self.put(ATS, &(next << 20).to_le_bytes());
        }
    }

    /// The function has so many virtual functions, which have this device ID and BARs of these sizes. None is enabled.
    pub(crate) fn set_total_vfs(&mut self, total: u16, device: u16, bars: [u64; 6]) {
        self.link_extended(true);
        // InitialVFs and TotalVFs.
        self.put(SRIOV + 0x0c, &[total.to_le_bytes(); 2].concat());
        // First VF Offset and VF Stride.
        self.put(SRIOV + 0x14, &[1, 0, 1, 0]);
        self.put(SRIOV + 0x1a, &device.to_le_bytes());
        self.put(SRIOV + 0x1c, &SRIOV_PAGE_SIZES.to_le_bytes());
        // System Page Size: 4 KiB.
        self.put(SRIOV + 0x20, &[1]);
        for (n, _) in bars.into_iter().enumerate().filter(|(_, size)| *size != 0) {
            // Memory, 64 bits.
            self.put(SRIOV + 0x24 + 4 * n, &[0b100]);
        }
    }

    /// So many virtual functions are enabled.
    pub(crate) fn set_num_vfs(&mut self, count: u16) {
        let control = if count > 0 { SRIOV_ENABLE } else { 0 };
        self.put(SRIOV + 0x08, &control.to_le_bytes());
        self.put(SRIOV + 0x10, &count.to_le_bytes());
    }

    /// What the host's driver has enabled, and what has come of it.
    pub(crate) fn show(&mut self, ats: bool, pri: PriStatus) {
        if self.capabilities.ats {
            let control = if ats { ATS_CTRL_ENABLE } else { 0 };
            self.put(ATS + 6, &control.to_le_bytes());
        }
        if self.capabilities.pri {
            let PriStatus { enabled, failure, unexpected, stopped } = pri;
            let status = [
                (failure, PRI_STATUS_RF),
                (unexpected, PRI_STATUS_UPRGI),
                (stopped, PRI_STATUS_STOPPED),
            ];
            let status =
                status.into_iter().filter(|(is, _)| *is).fold(0, |status, (_, bit)| status | bit);
            self.put(PRI + 4, &u16::from(enabled).to_le_bytes());
            self.put(PRI + 6, &status.to_le_bytes());
        }
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn allow(&mut self, at: usize, bits: &[u8]) {
        self.writable[at..at + bits.len()].copy_from_slice(bits);
    }

    /// Reads bytes, inside the space. `pending`: the function asserts its interrupt line.
    pub(crate) fn read(&self, at: usize, data: &mut [u8], pending: bool) {
        data.copy_from_slice(&self.bytes[at..at + data.len()]);
        if pending && let Some(status) = STATUS.checked_sub(at).and_then(|n| data.get_mut(n)) {
            *status |= STATUS_INTERRUPT;
        }
    }

    /// Writes bytes, inside the space.
    pub(crate) fn write(&mut self, at: usize, data: &[u8]) -> Effect {
        let flr = (at..at + data.len())
            .position(|byte| byte == DEVICE_CONTROL + 1)
            .is_some_and(|n| u16::from(data[n]) << 8 & INITIATE_FLR != 0);
        for (byte, value) in (at..).zip(data) {
            let mask = self.writable[byte];
            self.bytes[byte] = self.bytes[byte] & !mask | value & mask;
        }
        if flr { Effect::Reset } else { Effect::None }
    }

    fn command(&self) -> u16 {
        u16::from_le_bytes([self.bytes[COMMAND], self.bytes[COMMAND + 1]])
    }

    /// The function may master the bus.
    pub(crate) fn is_master(&self) -> bool {
        self.command() & COMMAND_MASTER != 0
    }

    /// The function may not assert its interrupt line.
    pub(crate) fn is_line_disabled(&self) -> bool {
        self.command() & COMMAND_LINE_DISABLE != 0
    }

    /// The function answers at its BARs.
    pub(crate) fn has_memory(&self) -> bool {
        self.command() & COMMAND_MEMORY != 0
    }

    /// As after power-on: what software wrote is gone, except where the host put the BARs.
    pub(crate) fn reset(&mut self) {
        self.write(COMMAND, &[0; 2]);
        self.write(PM + 4, &[0]);
        self.write(MSI + 2, &[0; 2]);
        self.write(MSIX + 2, &[0; 2]);
        self.write(DEVICE_CONTROL, &0x2810_u16.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        with(Capabilities::default())
    }

    fn with(capabilities: Capabilities) -> Config {
        let identity = Identity {
            vendor: 0x8086,
            device: 0x2021,
            subsystem_vendor: 1,
            subsystem: 2,
            class: 0x08_80_00,
            revision: 3,
        };
        let interrupts = Counts { line: true, msi: 2, msix: 4 };
        let own = [vec![1; 13], vec![2; 17]];
        Config::new(&identity, [0x4000, 0, 0, 0, MSIX_BAR_SIZE, 0], interrupts, capabilities, &own)
    }

    fn read<const N: usize>(config: &Config, at: usize) -> [u8; N] {
        let mut data = [0; N];
        config.read(at, &mut data, false);
        data
    }

    #[test]
    fn a_bar_tells_its_size() {
        let mut config = config();
        config.write(0x10, &[0xff; 8]);
        assert_eq!(u64::from_le_bytes(read(&config, 0x10)), !0x3fff | 0b100);
        config.write(0x10, &0x1_2345_6789_u64.to_le_bytes());
        assert_eq!(u64::from_le_bytes(read(&config, 0x10)), 0x1_2345_4004);
        config.write(0x18, &[0xff; 8]);
        assert_eq!(read::<8>(&config, 0x18), [0; 8], "no BAR there");
    }

    #[test]
    fn the_capabilities_are_a_list_that_ends() {
        let config = config();
        let mut at = usize::from(read::<1>(&config, 0x34)[0]);
        let mut ids = Vec::new();
        while at != 0 && ids.len() < 10 {
            let [id, next] = read(&config, at);
            ids.push(id);
            at = next.into();
        }
        assert_eq!(ids, [0x01, 0x05, 0x11, 0x10, 0x09, 0x09]);
        assert_eq!(read(&config, VENDOR), [0x09, 0xc0, 16, 1]);
        assert_eq!(read(&config, 0xc0), [0x09, 0, 20, 2]);
        assert_eq!(read::<2>(&config, MSI + 2), [1 << 7 | 1 << 1, 0]);
    }

    #[test]
    fn extended_capabilities_are_those_that_the_function_has_and_the_host_s() {
        let walk = |config: &Config| {
            let (mut at, mut found) = (0x100, Vec::new());
            while at != 0 && found.len() < 10 {
                let header = u32::from_le_bytes(read(config, at));
                found.extend((header != 0).then_some((header & 0xffff, header >> 16 & 0xf)));
                at = (header >> 20) as usize;
            }
            found
        };
        let (ats, pri) = ((ID_ATS, 1), (ID_PRI, 1));
        let all = Capabilities { pasid_bits: 8, ats: true, pri: true };
        for (capabilities, list) in [
            (Capabilities::default(), vec![]),
            (Capabilities { pasid_bits: 8, ..Capabilities::default() }, vec![]),
            (Capabilities { pri: false, ..all }, vec![ats]),
            (all, vec![ats, pri]),
        ] {
            assert_eq!(walk(&with(capabilities)), list);
        }
        let mut config = with(all);
        let status = PriStatus { enabled: true, unexpected: true, ..PriStatus::default() };
        config.show(true, status);
        config.write(ATS, &[0; 8]);
        config.write(PRI, &[0xff; 16]);
        assert_eq!(u16::from_le_bytes(read(&config, ATS + 6)), 0x8000, "its unit is 4 KiB");
        assert_eq!(read(&config, PRI + 4), [1, 0, 2, 0]);
        assert_eq!(u32::from_le_bytes(read(&config, PRI + 8)), PAGE_REQUEST_CAPACITY);
        assert_eq!(walk(&config), [ats, pri]);
        assert_ne!(u32::from_le_bytes(read(&config, DEVICE_CAPABILITIES2)) & 1 << 21, 0);
    }

    #[test]
    fn virtual_functions_are_in_a_capability_that_software_cannot_write() {
        for (capabilities, first) in [
            (Capabilities::default(), 0),
            (Capabilities { ats: true, ..Capabilities::default() }, ID_ATS),
        ] {
            let mut config = with(capabilities);
            config.set_total_vfs(7, 0x2022, [0x4000, 0, 0, 0, MSIX_BAR_SIZE, 0]);
            let header = u32::from_le_bytes(read(&config, 0x100));
            assert_eq!((header & 0xffff, header >> 20), (first, SRIOV as u32));
            assert_eq!(read(&config, SRIOV), [0x10, 0, 1, 0], "the last");
            config.set_num_vfs(3);
            config.write(SRIOV, &[0xff; 0x40]);
            config.reset();
            assert_eq!(read(&config, SRIOV + 0x08), [0b1001, 0, 0, 0, 7, 0, 7, 0, 3, 0]);
            assert_eq!(read(&config, SRIOV + 0x14), [1, 0, 1, 0, 0, 0, 0x22, 0x20]);
            assert_eq!(read(&config, SRIOV + 0x34), [4, 0, 0, 0], "VF BAR4");
            config.set_num_vfs(0);
            assert_eq!(
                (read(&config, SRIOV + 0x08), read(&config, SRIOV + 0x10)),
                ([0; 2], [0; 2])
            );
        }
    }

    #[test]
    fn only_what_is_writable_changes_and_a_reset_asks_for_itself() {
        let mut config = config();
        config.write(0x00, &[0xff; 16]);
        assert_eq!(read::<4>(&config, 0), [0x86, 0x80, 0x21, 0x20]);
        assert!(config.is_master() && config.has_memory());
        assert_eq!(u16::from_le_bytes(read(&config, 4)), COMMAND_WRITABLE);
        assert_eq!(config.write(DEVICE_CONTROL, &[0x10, 0xa8]), Effect::Reset);
        assert_eq!(read::<2>(&config, DEVICE_CONTROL), [0x10, 0x28], "the bit reads as zero");
        assert_eq!(config.write(DEVICE_CONTROL, &[0x80]), Effect::None);
        config.reset();
        assert!(!config.is_master());
    }

    #[test]
    fn the_status_tells_of_the_line() {
        let config = config();
        for at in [4, 5, 6] {
            let mut data = [0; 4];
            config.read(at, &mut data, true);
            assert_eq!(data[6 - at], 0x18);
        }
        let mut data = [0; 4];
        config.read(7, &mut data, true);
        assert_eq!(data, [0, 3, 0, 0x80], "the next registers");
    }
}
