//! `IOMMU_HWPT_*`, `IOMMU_GET_HW_INFO` and `IOMMU_FAULT_QUEUE_ALLOC`.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Instant;

use host::{Fault, Mm, PAGE_SIZE};
use iommu::{Capability, NestedDomain, UserArray, UserData, Viommu};
use uapi::Plain;
use uapi::iommufd as u;

use super::codec::Command;
use crate::context::{Object, State};
use crate::fault::{FaultFile, FaultQueue};
use crate::hwpt::HwptRequest;
use crate::observe::{self, Invalidation};
use crate::{Context, Error};

pub(super) fn alloc(context: &Context, command: &Command<'_>) -> Result<(), Error> {
    let mut cmd: u::iommu_hwpt_alloc = command.get();
    if cmd.__reserved != 0 {
        return Err(Error::Unsupported("reserved field"));
    }
    if (cmd.data_type == u::iommu_hwpt_data_type_IOMMU_HWPT_DATA_NONE) != (cmd.data_len == 0) {
        return Err(Error::Invalid("data_type and data_len contradict each other"));
    }
    let request = HwptRequest {
        flags: cmd.flags,
        device: cmd.dev_id,
        parent: cmd.pt_id,
        fault: cmd.fault_id,
        data: user_data(command.mm(), cmd.data_type, cmd.data_len, cmd.data_uptr),
    };
    context.publish(
        |state| {
            let object = state.alloc_hwpt(&request)?;
            let join = match &object {
                Object::HwptPaging(hwpt) => {
                    Some((hwpt.ioas, hwpt.domain.clone(), hwpt.sw_msi.window()))
                }
                _ => None,
            };
            let id = state.reserve(object)?;
            let joined = match join {
                Some((ioas, domain, window)) => state.join_ioas(id, ioas, domain, window),
                None => Ok(()),
            };
            let result = joined.and_then(|()| state.check_fault(&request));
            result.map(|()| id).inspect_err(|_| state.abort(id))
        },
        |id| {
            cmd.out_hwpt_id = id;
            command.respond(&cmd)
        },
    )
}

/// Driver data, read before any lock is taken.
pub(super) fn user_data(mm: &dyn Mm, data_type: u32, len: u32, at: u64) -> Option<UserData> {
    let read = |buf: &mut [u8]| mm.copy_from_user(at, buf);
    (len != 0).then(|| UserData::new(data_type, len as usize, read))
}

const CAP_DIRTY_TRACKING: u32 = u::iommufd_hw_capabilities_IOMMU_HW_CAP_DIRTY_TRACKING;
const CAP_PASID_EXEC: u32 = u::iommufd_hw_capabilities_IOMMU_HW_CAP_PCI_PASID_EXEC;
const CAP_PASID_PRIV: u32 = u::iommufd_hw_capabilities_IOMMU_HW_CAP_PCI_PASID_PRIV;
const CAP_ATS_NOT_SUPPORTED: u32 = u::iommufd_hw_capabilities_IOMMU_HW_CAP_PCI_ATS_NOT_SUPPORTED;

pub(super) fn get_hw_info(context: &Context, command: &Command<'_>) -> Result<(), Error> {
    let mut cmd: u::iommu_hw_info = command.get();
    if cmd.flags & !u::iommufd_hw_info_flags_IOMMU_HW_INFO_FLAG_INPUT_TYPE != 0
        || cmd.__reserved != [0; 3]
    {
        return Err(Error::Unsupported("GET_HW_INFO flags or reserved field"));
    }
    // The union of in_data_type and out_data_type is one word.
    let word = std::mem::offset_of!(u::iommu_hw_info, __bindgen_anon_1);
    let mut in_type = [0; 4];
    if cmd.flags & u::iommufd_hw_info_flags_IOMMU_HW_INFO_FLAG_INPUT_TYPE != 0 {
        in_type.copy_from_slice(&cmd.as_bytes()[word..word + 4]);
    }
    let device = context.bound_device(cmd.dev_id)?;
    let driver = device.driver();
    let info = driver.hw_info(&device, u32::from_ne_bytes(in_type))?;
    let mm = command.mm();
    let known = info.data.len().min(cmd.data_len as usize);
    mm.copy_to_user(cmd.data_uptr, &info.data[..known])?;
    clear_user(mm, cmd.data_uptr + known as u64, cmd.data_len as usize - known)?;
    cmd.data_len = info.data.len() as u32;
    cmd.as_bytes_mut()[word..word + 4].copy_from_slice(&info.data_type.to_ne_bytes());
    let pasids = driver.pasids(&device);
    let usable = pasids.max != 0;
    cmd.out_max_pasid_log2 = pasids.max.checked_ilog2().unwrap_or(0) as u8;
    cmd.out_capabilities = [
        (driver.capable(&device, Capability::DirtyTracking), CAP_DIRTY_TRACKING),
        (usable && pasids.exec, CAP_PASID_EXEC),
        (usable && pasids.privileged, CAP_PASID_PRIV),
        (!driver.capable(&device, Capability::PciAts), CAP_ATS_NOT_SUPPORTED),
    ]
    .into_iter()
    .filter_map(|(has, bit)| has.then_some(u64::from(bit)))
    .sum();
    command.respond(&cmd)
}

/// Zeroes user memory.
fn clear_user(mm: &dyn Mm, mut at: u64, mut len: usize) -> Result<(), Fault> {
    let zeroes = [0; 4096];
    while len > 0 {
        let part = &zeroes[..len.min(zeroes.len())];
        mm.copy_to_user(at, part)?;
        at = at.wrapping_add(part.len() as u64);
        len -= part.len();
    }
    Ok(())
}

pub(super) fn set_dirty_tracking(context: &Context, command: &Command<'_>) -> Result<(), Error> {
    let cmd: u::iommu_hwpt_set_dirty_tracking = command.get();
    let enable = u::iommufd_hwpt_set_dirty_tracking_flags_IOMMU_HWPT_DIRTY_TRACKING_ENABLE;
    if cmd.flags & !enable != 0 {
        return Err(Error::Unsupported("SET_DIRTY_TRACKING flags"));
    }
    let state = context.lock();
    let hwpt = state.hwpt_paging(cmd.hwpt_id)?;
    let dirty = hwpt.domain.dirty().ok_or(Error::Unsupported("dirty tracking"))?;
    if cmd.flags & enable != 0 {
        // Tracking starts from a clean snapshot.
        state.ioas(hwpt.ioas)?.clear_dirty(dirty);
    }
    Ok(dirty.set_enabled(cmd.flags & enable != 0)?)
}

/// Bits collected before they are written to user memory.
const CHUNK_BITS: u64 = 1 << 19;

pub(super) fn get_dirty_bitmap(context: &Context, command: &Command<'_>) -> Result<(), Error> {
    let cmd: u::iommu_hwpt_get_dirty_bitmap = command.get();
    let no_clear = u::iommufd_hwpt_get_dirty_bitmap_flags_IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR;
    if cmd.flags & !no_clear != 0 || cmd.__reserved != 0 {
        return Err(Error::Unsupported("GET_DIRTY_BITMAP flags or reserved field"));
    }
    let last = {
        let state = context.lock();
        let hwpt = state.hwpt_paging(cmd.hwpt_id)?;
        let ioas = state.ioas(hwpt.ioas)?;
        let last = ioas.check_dirty_range(cmd.iova, cmd.length, cmd.page_size)?;
        hwpt.domain.dirty().ok_or(Error::Unsupported("dirty tracking"))?;
        last
    };
    // The kernel counts in the largest power of two that divides the page size.
    let page_size = 1 << cmd.page_size.trailing_zeros();
    let mut bits = Bits { words: vec![0; (CHUNK_BITS / 8) as usize], any: false };
    let mut first = cmd.iova;
    let mut index = 0;
    loop {
        let chunk_last = first
            .checked_add((CHUNK_BITS - 1).saturating_mul(page_size))
            .and_then(|start| start.checked_add(page_size - 1))
            .map_or(last, |chunk_last| chunk_last.min(last));
        let contiguous = {
            let state = context.lock();
            let hwpt = state.hwpt_paging(cmd.hwpt_id)?;
            let dirty = hwpt.domain.dirty().ok_or(Error::Unsupported("dirty tracking"))?;
            let keep = cmd.flags & no_clear != 0;
            state.ioas(hwpt.ioas)?.read_and_clear_dirty(
                dirty,
                first,
                chunk_last,
                keep,
                |at, len| {
                    bits.set((at - first) / page_size, (at - first + (len - 1)) / page_size);
                },
            )
        };
        let written = bits.flush(command.mm(), cmd.data.wrapping_add(index / 8));
        // A hole in the range or in the bitmap ends the walk without an error,
        // as in the kernel.
        if !contiguous || written.is_err() || chunk_last == last {
            return Ok(());
        }
        index += CHUNK_BITS;
        first = chunk_last + 1;
    }
}

/// Part of a dirty bitmap.
struct Bits {
    words: Vec<u8>,
    any: bool,
}

impl Bits {
    fn set(&mut self, first: u64, last: u64) {
        self.any = true;
        for bit in first..=last {
            self.words[(bit / 8) as usize] |= 1 << (bit % 8);
        }
    }

    /// Sets the bits in user memory, leaving those that are set there, and
    /// starts anew.
    fn flush(&mut self, mm: &dyn Mm, at: u64) -> Result<(), Fault> {
        if !std::mem::take(&mut self.any) {
            return Ok(());
        }
        for (index, block) in self.words.chunks_mut(4096).enumerate() {
            let at = at.wrapping_add(index as u64 * 4096);
            let Some(last) = block.iter().rposition(|&byte| byte != 0) else {
                continue;
            };
            let first = block.iter().position(|&byte| byte != 0).unwrap_or(0);
            let at = at.wrapping_add(first as u64);
            let mut old = vec![0; last - first + 1];
            mm.copy_from_user(at, &mut old)?;
            old.iter_mut().zip(&block[first..=last]).for_each(|(old, new)| *old |= new);
            mm.copy_to_user(at, &old)?;
            block.fill(0);
        }
        Ok(())
    }
}

/// The most entries of one invalidation.
const MAX_ENTRIES: u32 = 1 << 19;

pub(super) fn invalidate(context: &Context, command: &Command<'_>) -> Result<(), Error> {
    let mut cmd: u::iommu_hwpt_invalidate = command.get();
    let (done, result) = run_invalidate(context, command, &cmd);
    // The number of entries handled is written on every path.
    cmd.entry_num = done;
    command.respond(&cmd)?;
    result
}

/// What is invalidated; kept beyond the lock, because the array is in user
/// memory.
enum Of {
    Nested(Arc<dyn NestedDomain>),
    Viommu(Arc<dyn Viommu>),
}

/// Copies a part of the array.
type Read<'a> = dyn Fn(u64, &mut [u8]) -> Result<(), Fault> + 'a;

impl Of {
    fn invalidate(
        &self,
        cmd: &u::iommu_hwpt_invalidate,
        read: &Read<'_>,
    ) -> (u32, Result<(), Error>) {
        let array = UserArray::new(cmd.data_type, cmd.entry_len, cmd.entry_num, read);
        let (done, result) = match self {
            Self::Nested(domain) => domain.invalidate(&array),
            Self::Viommu(viommu) => viommu.invalidate(&array),
        };
        (done, result.map_err(Error::from))
    }
}

fn run_invalidate(
    context: &Context,
    command: &Command<'_>,
    cmd: &u::iommu_hwpt_invalidate,
) -> (u32, Result<(), Error>) {
    if cmd.__reserved != 0 {
        return (0, Err(Error::Unsupported("reserved field")));
    }
    let sane = cmd.entry_num == 0
        || (cmd.data_uptr != 0
            && cmd.entry_len != 0
            && u64::from(cmd.entry_len) <= PAGE_SIZE
            && cmd.entry_num <= MAX_ENTRIES);
    if !sane {
        return (0, Err(Error::Invalid("the array of invalidations")));
    }
    let of = {
        let state = context.lock();
        match state.objects.get(cmd.hwpt_id) {
            Ok(Object::HwptNested(hwpt)) => Of::Nested(hwpt.domain.clone()),
            Ok(Object::Viommu(viommu)) => Of::Viommu(viommu.viommu.clone()),
            Ok(_) => return (0, Err(Error::Invalid("neither a nested HWPT nor a vIOMMU"))),
            Err(error) => return (0, Err(error)),
        }
    };
    let mm = command.mm();
    let read = |offset, buf: &mut [u8]| mm.copy_from_user(cmd.data_uptr.wrapping_add(offset), buf);
    if !context.watch.is_on() {
        return of.invalidate(cmd, &read);
    }
    let started = Instant::now();
    let entries = RefCell::new(Vec::new());
    let most = Invalidation::ENTRIES * cmd.entry_len as usize;
    let watched = |offset, buf: &mut [u8]| {
        let result = read(offset, buf);
        let mut entries = entries.borrow_mut();
        if result.is_ok() && entries.len() as u64 == offset && entries.len() < most {
            entries.extend_from_slice(buf);
        }
        result
    };
    let is_viommu = matches!(of, Of::Viommu(_));
    let (done, result) = of.invalidate(cmd, &watched);
    context.watch.tell(|observer, number| {
        observer.invalidated(&Invalidation {
            context: number,
            target: cmd.hwpt_id,
            is_viommu,
            data_type: cmd.data_type,
            entry_len: cmd.entry_len,
            entry_num: cmd.entry_num,
            done,
            entries: &entries.borrow(),
            result: observe::errno(&result),
            started,
        });
    });
    (done, result)
}

pub(super) fn fault_queue_alloc(context: &Context, command: &Command<'_>) -> Result<(), Error> {
    let mut cmd: u::iommu_fault_alloc = command.get();
    if cmd.flags != 0 {
        return Err(Error::Unsupported("FAULT_QUEUE_ALLOC flags"));
    }
    let queue = Arc::new(FaultQueue::default());
    let file = Arc::new(FaultFile::new(context.arc()?, queue.clone()));
    let fd = command.task().install(file.clone(), true).map_err(Error::File)?;
    let object = Object::Fault(queue);
    let published = context.publish_held(
        |state: &mut State| state.reserve(object),
        |id| {
            cmd.out_fault_id = id;
            cmd.out_fault_fd = fd as u32;
            command.respond(&cmd)
        },
        |state, id| file.hold().take(state, id),
    );
    published.inspect_err(|_| command.task().uninstall(fd))
}
