//! What `/sys` and `/dev` say of the machine's devices, in the shape of `sysfs-bus-pci`, `sysfs-kernel-iommu_groups`,
//! `sysfs-class-iommu` and `vfio-dev` of the kernel's ABI documentation.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::io;
use std::sync::Arc;

use interpose::Tree;
use vfio::{Function, PciAddress};

/// A device that programs find.
#[derive(Clone)]
pub(crate) struct Listed {
    pub(crate) function: Arc<Function>,
    /// N of `vfioN`.
    pub(crate) minor: u32,
    /// The IOMMU that it is behind.
    pub(crate) iommu: Option<String>,
    /// Whose virtual function it is, and which.
    pub(crate) of: Option<(Arc<Function>, u16)>,
}

/// Directories that are shown in whole, together with what the system has in them.
const WHOLE: [&str; 4] =
    ["/sys/bus/pci/devices", "/sys/kernel/iommu_groups", "/sys/class/iommu", "/sys/class/vfio-dev"];
/// Modules that clients look for before they look for devices.
const MODULES: [&str; 5] = ["vfio", "vfio_iommu_type1", "vfio_pci", "vfio_pci_core", "iommufd"];
/// The driver that has our devices, which the system may not have loaded.
const DRIVER: &str = "/sys/bus/pci/drivers/vfio-pci";
/// From the directory of a device to `/sys`.
const UP: &str = "../../..";
/// A memory BAR of 64 bits: `IORESOURCE_MEM`, `_MEM_64`, `_SIZEALIGN`, and the register's own low bits.
const BAR_FLAGS: u64 = 0x0014_0204;

/// The first number of a group that the system does not use.
pub(crate) fn first_group() -> u32 {
    let groups = std::fs::read_dir("/sys/kernel/iommu_groups").into_iter().flatten().flatten();
    let numbers = groups.filter_map(|group| group.file_name().to_str()?.parse::<u32>().ok());
    numbers.max().map_or(0, |last| last + 1)
}

/// Makes the tree. The paths that are to be looked up in it.
pub(crate) fn fill(tree: &Tree, devices: &[Listed], major: u32) -> io::Result<Vec<String>> {
    let mut paths: BTreeSet<String> = WHOLE.iter().map(|path| (*path).to_owned()).collect();
    paths.extend([DRIVER.to_owned(), "/dev/vfio".to_owned()]);
    for file in ["bind", "unbind", "new_id", "remove_id"] {
        tree.file(&format!("{DRIVER}/{file}"), "")?;
    }
    for module in MODULES {
        let path = format!("/sys/module/{module}");
        tree.file(&format!("{path}/initstate"), "live\n")?;
        paths.insert(path);
    }
    tree.file("/sys/module/vfio_pci/parameters/enable_sriov", "Y\n")?;
    tree.file("/dev/vfio/vfio", "")?;
    tree.directory("/dev/vfio/devices")?;
    for device in devices.iter().filter(|device| device.of.is_none()) {
        paths.insert(root(device.function.address()));
        show(tree, device, major)?;
    }
    let smmus: BTreeSet<_> = devices.iter().filter_map(|device| device.iommu.as_ref()).collect();
    for name in smmus {
        paths.insert(iommu_path(name));
        tree.link(
            &format!("/sys/class/iommu/{name}"),
            format!("../../devices/virtual/iommu/{name}"),
        )?;
    }
    for path in WHOLE {
        tree.show_also(path)?;
    }
    Ok(paths.into_iter().collect())
}

/// A file in the directory of a device.
pub(crate) fn path(address: PciAddress, name: &str) -> String {
    format!("{}/{address}/{name}", root(address))
}

/// The directory of a host bridge.
fn root(address: PciAddress) -> String {
    format!("/sys/devices/pci{:04x}:{:02x}", address.segment, address.bus)
}

fn iommu_path(name: &str) -> String {
    format!("/sys/devices/virtual/iommu/{name}")
}

/// What a path has.
enum Content {
    File(Vec<u8>),
    Link(String),
}

/// Paths and what they have.
#[derive(Default)]
struct Entries(Vec<(String, Content)>);

impl Entries {
    fn file(&mut self, path: impl Into<String>, content: impl Into<Vec<u8>>) {
        self.0.push((path.into(), Content::File(content.into())));
    }

    fn link(&mut self, path: impl Into<String>, target: String) {
        self.0.push((path.into(), Content::Link(target)));
    }
}

/// Puts what there is of a device into the tree.
pub(crate) fn show(tree: &Tree, device: &Listed, major: u32) -> io::Result<()> {
    for (path, content) in entries(device, major).0 {
        match content {
            Content::File(content) => tree.file(&path, content)?,
            Content::Link(target) => tree.link(&path, target)?,
        }
    }
    Ok(())
}

/// Takes that away again, as far as it was put there.
pub(crate) fn hide(tree: &Tree, device: &Listed, major: u32) {
    for (path, _) in entries(device, major).0 {
        let _ = tree.remove(&path);
    }
}

fn entries(device: &Listed, major: u32) -> Entries {
    let Listed { function, minor, iommu, of } = device;
    let (address, group) = (function.address(), function.group().id());
    let mut all = Entries::default();
    let path = format!("{}/{address}", root(address));
    let mut file = |name: &str, content: String| all.file(format!("{path}/{name}"), content);
    let identity = function.identity();
    file("vendor", format!("0x{:04x}\n", identity.vendor));
    file("device", format!("0x{:04x}\n", identity.device));
    file("subsystem_vendor", format!("0x{:04x}\n", identity.subsystem_vendor));
    file("subsystem_device", format!("0x{:04x}\n", identity.subsystem));
    file("class", format!("0x{:06x}\n", identity.class));
    file("revision", format!("0x{:02x}\n", identity.revision));
    file("irq", "0\n".to_owned());
    file("enable", "1\n".to_owned());
    file("numa_node", "-1\n".to_owned());
    file("driver_override", "vfio-pci\n".to_owned());
    file("reset", String::new());
    file("modalias", format!("{}\n", modalias(function)));
    file("uevent", uevent(function));
    file("resource", resource(function));
    let vfs = function.virtual_functions();
    if let Some(vf) = vfs.first() {
        file("sriov_totalvfs", format!("{}\n", vfs.len()));
        file("sriov_numvfs", "0\n".to_owned());
        file("sriov_offset", "1\n".to_owned());
        file("sriov_stride", "1\n".to_owned());
        file("sriov_vf_device", format!("{:x}\n", vf.identity().device));
    }
    all.file(format!("{path}/config"), function.config_space());
    let mut link = |name: &str, target: String| all.link(format!("{path}/{name}"), target);
    link("subsystem", format!("{UP}/bus/pci"));
    link("driver", format!("{UP}/bus/pci/drivers/vfio-pci"));
    link("iommu_group", format!("{UP}/kernel/iommu_groups/{group}"));
    if let Some((physical, index)) = of {
        let physical = physical.address();
        link("physfn", format!("../{physical}"));
        all.link(format!("{}/{physical}/virtfn{index}", root(physical)), format!("../{address}"));
    }
    let here = |up: &str| format!("{up}/devices/{}", path.trim_start_matches("/sys/devices/"));
    all.link(format!("/sys/bus/pci/devices/{address}"), here(UP));
    all.link(format!("{DRIVER}/{address}"), here("../../../.."));
    let group_path = format!("/sys/kernel/iommu_groups/{group}");
    all.link(format!("{group_path}/devices/{address}"), here("../../../.."));
    // What the whole group has stays if it is its physical function's, too.
    let is_shared = of.as_ref().is_some_and(|(of, _)| Arc::ptr_eq(of.group(), function.group()));
    if !is_shared {
        all.file(format!("{group_path}/type"), "DMA-FQ\n");
        all.file(format!("{group_path}/reserved_regions"), reserved_regions(function));
        all.file(format!("/dev/vfio/{group}"), "");
    }
    if let Some(name) = iommu {
        all.link(format!("{path}/iommu"), format!("../../virtual/iommu/{name}"));
        let devices = format!("{}/devices/{address}", iommu_path(name));
        all.link(devices, format!("../../../../{}", path.trim_start_matches("/sys/devices/")));
    }
    let vfio = format!("{path}/vfio-dev/vfio{minor}");
    all.file(format!("{vfio}/dev"), format!("{major}:{minor}\n"));
    all.file(
        format!("{vfio}/uevent"),
        format!("MAJOR={major}\nMINOR={minor}\nDEVNAME=vfio/devices/vfio{minor}\n"),
    );
    all.link(format!("{vfio}/device"), "../..".to_owned());
    let class = format!("/sys/class/vfio-dev/vfio{minor}");
    all.link(class, format!("{}/vfio-dev/vfio{minor}", here("../..")));
    // Nodes of the table come before these, which are for who lists directories.
    all.file(format!("/dev/vfio/devices/vfio{minor}"), "");
    all
}

fn reserved_regions(function: &Function) -> String {
    let mut regions = String::new();
    for region in function.device().driver().reserved_regions(function.device()) {
        let (first, last) = (region.range.start(), region.range.end());
        let kind = match region.kind {
            iommu::ReservedKind::SwMsi => "msi",
            _ => "reserved",
        };
        let _ = writeln!(regions, "0x{first:016x} 0x{last:016x} {kind}");
    }
    regions
}

fn modalias(function: &Function) -> String {
    let identity = function.identity();
    let (base, sub, interface) =
        (identity.class >> 16, identity.class >> 8 & 0xff, identity.class & 0xff);
    format!(
        "pci:v{:08X}d{:08X}sv{:08X}sd{:08X}bc{base:02X}sc{sub:02X}i{interface:02X}",
        identity.vendor, identity.device, identity.subsystem_vendor, identity.subsystem
    )
}

fn uevent(function: &Function) -> String {
    let identity = function.identity();
    format!(
        "DRIVER=vfio-pci\nPCI_CLASS={:X}\nPCI_ID={:04X}:{:04X}\nPCI_SUBSYS_ID={:04X}:{:04X}\n\
         PCI_SLOT_NAME={}\nMODALIAS={}\n",
        identity.class,
        identity.vendor,
        identity.device,
        identity.subsystem_vendor,
        identity.subsystem,
        function.address(),
        modalias(function)
    )
}

/// First and last address and flags of each BAR, of the ROM, and of what bridges and physical functions have.
fn resource(function: &Function) -> String {
    let mut text = String::new();
    for (size, first) in function.bars().into_iter().zip(function.bar_addresses()) {
        let (last, flags) = if size == 0 { (0, 0) } else { (first + size - 1, BAR_FLAGS) };
        let _ = writeln!(text, "0x{first:016x} 0x{last:016x} 0x{flags:016x}");
    }
    for _ in 0..7 {
        text += "0x0000000000000000 0x0000000000000000 0x0000000000000000\n";
    }
    text
}
