//! `VFIO_DEVICE_FEATURE`: what a device can do beyond what all can.

use host::{PAGE_SIZE, PhysRun, Task};
use uapi::extra::{
    vfio_device_feature_dma_buf_header, vfio_device_feature_header, vfio_region_dma_range,
};
use uapi::{Plain, vfio as v};

use crate::sriov::Uuid;
use crate::user::read;
use crate::{Error, Function};

const HEADER: u64 = size_of::<vfio_device_feature_header>() as u64;
/// What can be asked for.
const GET: u32 = v::VFIO_DEVICE_FEATURE_GET;
const SET: u32 = v::VFIO_DEVICE_FEATURE_SET;
const PROBE: u32 = v::VFIO_DEVICE_FEATURE_PROBE;
/// `VFIO_DEVICE_FEATURE_DMA_BUF`.
const DMA_BUF: u32 = 11;
const O_CLOEXEC: u32 = 0o200_0000;
/// The most ranges of one dma-buf: what user space could list would be more than there are pages.
const MAX_RANGES: u32 = 1 << 16;

/// Carries out the ioctl; what it returns.
pub(crate) fn carry_out(function: &Function, task: &dyn Task, arg: u64) -> Result<i32, Error> {
    let (feature, _): (vfio_device_feature_header, _) = read(task, arg, HEADER as usize)?;
    let known = v::VFIO_DEVICE_FEATURE_MASK | GET | SET | PROBE;
    let probes = feature.flags & PROBE != 0;
    if feature.flags & !known != 0 || !probes && feature.flags & (GET | SET) == GET | SET {
        return Err(Error::Invalid("VFIO_DEVICE_FEATURE flags"));
    }
    match feature.flags & v::VFIO_DEVICE_FEATURE_MASK {
        DMA_BUF => {
            let len = size_of::<vfio_device_feature_dma_buf_header>();
            if is_wanted(feature, GET, len)? {
                dma_buf(function, task, arg + HEADER)
            } else {
                Ok(0)
            }
        }
        v::VFIO_DEVICE_FEATURE_PCI_VF_TOKEN if function.has_token() => {
            // Not to be read: it may be the one of the user before.
            let mut token = Uuid::default();
            if is_wanted(feature, SET, size_of_val(&token))? {
                task.mm().copy_from_user(arg + HEADER, &mut token)?;
                function.set_token(token);
            }
            Ok(0)
        }
        _ => Err(Error::UnknownIoctl),
    }
}

/// Whether a feature is to be carried out, and not only asked for: one that can be used in these ways, with `len` bytes of
/// data at least.
fn is_wanted(feature: vfio_device_feature_header, ways: u32, len: usize) -> Result<bool, Error> {
    if feature.flags & (GET | SET) & !ways != 0 {
        return Err(Error::Invalid("the feature cannot be used so"));
    }
    if feature.flags & PROBE != 0 {
        return Ok(false);
    }
    if feature.flags & (GET | SET) == 0 || u64::from(feature.argsz) < HEADER + len as u64 {
        return Err(Error::Invalid("VFIO_DEVICE_FEATURE flags or argsz"));
    }
    Ok(true)
}

/// `VFIO_DEVICE_FEATURE_DMA_BUF`: a descriptor for parts of a BAR, which `IOMMU_IOAS_MAP_FILE` maps for DMA.
fn dma_buf(function: &Function, task: &dyn Task, arg: u64) -> Result<i32, Error> {
    let mut header = vfio_device_feature_dma_buf_header::zeroed();
    task.mm().copy_from_user(arg, header.as_bytes_mut())?;
    if header.nr_ranges == 0 || header.nr_ranges > MAX_RANGES || header.flags != 0 {
        return Err(Error::Invalid("VFIO_DEVICE_FEATURE_DMA_BUF nr_ranges or flags"));
    }
    if header.region_index >= v::VFIO_PCI_ROM_REGION_INDEX {
        return Err(Error::NoDevice);
    }
    if !function.is_memory(header.region_index) {
        return Err(Error::Invalid("the region cannot be reached by DMA"));
    }
    let mut all: Option<PhysRun> = None;
    let mut in_one = true;
    let mut at = arg + size_of_val(&header) as u64;
    for _ in 0..header.nr_ranges {
        let mut range = vfio_region_dma_range::zeroed();
        task.mm().copy_from_user(at, range.as_bytes_mut())?;
        at += size_of_val(&range) as u64;
        let vfio_region_dma_range { offset, length } = range;
        if length == 0 || !offset.is_multiple_of(PAGE_SIZE) || !length.is_multiple_of(PAGE_SIZE) {
            return Err(Error::Invalid("a range of VFIO_DEVICE_FEATURE_DMA_BUF"));
        }
        let run = function.place().run(header.region_index, offset, length);
        let run = run.ok_or(Error::Invalid("a range outside the region"))?;
        all = match all {
            None => Some(run),
            Some(before) => {
                in_one &= before.pa + before.len == run.pa;
                Some(PhysRun { len: before.len + run.len, ..before })
            }
        };
    }
    let export = function.place().export(all.filter(|_| in_one));
    function.place().revoke(|| !function.has_memory());
    let cloexec = header.open_flags & O_CLOEXEC != 0;
    task.install(export, cloexec).map_err(Error::File)
}
