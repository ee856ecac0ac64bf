//! The VFIO type1 ioctls that an iommufd file answers for one of its IOASes.
//!
//! Their structs carry `argsz` instead of the size rules of iommufd: shorter is
//! an error, longer is ignored.

use host::{Mm, PAGE_SIZE, Task};
use iommu::Prot;
use uapi::{Plain, nr, vfio as v};

use crate::context::{Object, State};
use crate::ioctl::{Memory, NewMapping, read_user};
use crate::{Context, Error, Id};

pub(crate) fn ioctl(context: &Context, task: &dyn Task, cmd: u32, arg: u64) -> Result<i32, Error> {
    match cmd {
        nr::VFIO_GET_API_VERSION => Ok(v::VFIO_API_VERSION as i32),
        nr::VFIO_CHECK_EXTENSION => check_extension(&context.lock(), arg),
        nr::VFIO_SET_IOMMU => set_iommu(&mut context.lock(), arg),
        nr::VFIO_IOMMU_GET_INFO => get_info(context, task.mm().as_ref(), arg),
        nr::VFIO_IOMMU_MAP_DMA => map_dma(context, task, arg),
        nr::VFIO_IOMMU_UNMAP_DMA => unmap_dma(context, task.mm().as_ref(), arg),
        _ => Err(Error::UnknownIoctl),
    }
}

impl Context {
    /// The IOAS that the VFIO ioctls are about: what a VFIO group finds when it is given this context as its container.
    /// Makes one if there is none.
    pub fn vfio_ioas(&self) -> Result<Id, Error> {
        let mut state = self.lock();
        if let Some(id) = state.vfio_ioas {
            return Ok(id);
        }
        let id = state.reserve(Object::Ioas(Box::default()))?;
        state.objects.finalize(id);
        state.vfio_ioas = Some(id);
        Ok(id)
    }
}

impl State {
    fn compat_ioas(&self) -> Result<Id, Error> {
        self.vfio_ioas.ok_or(Error::NoDevice("no VFIO IOAS is set"))
    }
}

fn check_extension(state: &State, extension: u64) -> Result<i32, Error> {
    let Ok(extension) = u32::try_from(extension) else {
        return Ok(0);
    };
    match extension {
        v::VFIO_TYPE1_IOMMU | v::VFIO_TYPE1v2_IOMMU | v::VFIO_UNMAP_ALL => Ok(1),
        v::VFIO_DMA_CC_IOMMU => {
            let ioas = state.ioas(state.compat_ioas()?)?;
            let coherent = ioas
                .hwpts
                .iter()
                .all(|id| state.hwpt_paging(*id).is_ok_and(|hwpt| hwpt.enforces_coherency));
            Ok(i32::from(coherent))
        }
        _ => Ok(0),
    }
}

fn set_iommu(state: &mut State, kind: u64) -> Result<i32, Error> {
    let v1 = u64::from(v::VFIO_TYPE1_IOMMU);
    if kind != v1 && kind != u64::from(v::VFIO_TYPE1v2_IOMMU) {
        return Err(Error::Invalid("only type1 and type1v2 are offered"));
    }
    let id = state.compat_ioas()?;
    if kind == v1 {
        // Type1 may unmap the middle of a mapping: no leaf may span it.
        let (ioas, pages) = state.ioas_and_pages(id)?;
        ioas.set_huge_pages(pages, false)?;
    }
    Ok(0)
}

/// The sizes a mapping may have, for a client that knows no sub-page sizes.
fn page_sizes(state: &State, id: Id) -> Result<u64, Error> {
    let ioas = state.ioas(id)?;
    let mut sizes = ioas.domains().fold(u64::MAX, |all, d| all & d.geometry().page_sizes);
    if sizes & (PAGE_SIZE - 1) != 0 {
        sizes = (sizes & !(PAGE_SIZE - 1)) | PAGE_SIZE;
    }
    Ok(sizes.max(ioas.alignment()))
}

fn header(id: u32, next: usize) -> v::vfio_info_cap_header {
    v::vfio_info_cap_header { id: id as u16, version: 1, next: next as u32 }
}

fn get_info(context: &Context, mm: &dyn Mm, arg: u64) -> Result<i32, Error> {
    const MIN: usize = std::mem::offset_of!(v::vfio_iommu_type1_info, iova_pgsizes) + 8;
    const FULL: usize = size_of::<v::vfio_iommu_type1_info>();
    const AVAIL: usize = size_of::<v::vfio_iommu_type1_info_dma_avail>().next_multiple_of(8);
    let mut info = v::vfio_iommu_type1_info::zeroed();
    mm.copy_from_user(arg, &mut info.as_bytes_mut()[..MIN])?;
    let room = info.argsz as usize;
    if room < MIN {
        return Err(Error::Invalid("argsz is too short"));
    }
    let ranges = {
        let state = context.lock();
        let id = state.compat_ioas()?;
        info.iova_pgsizes = page_sizes(&state, id)?;
        state.ioas(id)?.iova_ranges()
    };
    let avail = v::vfio_iommu_type1_info_dma_avail {
        header: header(v::VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL, FULL + AVAIL),
        avail: u32::MAX,
    };
    let mut caps = avail.as_bytes().to_vec();
    caps.resize(AVAIL, 0);
    caps.extend_from_slice(header(v::VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE, 0).as_bytes());
    caps.extend_from_slice(&(ranges.len() as u32).to_ne_bytes());
    caps.extend_from_slice(&[0; 4]);
    for (start, end) in ranges {
        caps.extend_from_slice(v::vfio_iova_range { start, end }.as_bytes());
    }
    let needed = FULL + caps.len();
    info.argsz = needed as u32;
    info.flags = v::VFIO_IOMMU_INFO_PGSIZES | v::VFIO_IOMMU_INFO_CAPS;
    // A chain that does not fit is not written at all; argsz says what would.
    info.cap_offset = 0;
    if room >= needed {
        info.cap_offset = FULL as u32;
        mm.copy_to_user(arg + FULL as u64, &caps)?;
    }
    mm.copy_to_user(arg, &info.as_bytes()[..room.min(FULL)])?;
    Ok(0)
}

fn map_dma(context: &Context, task: &dyn Task, arg: u64) -> Result<i32, Error> {
    let map: v::vfio_iommu_type1_dma_map = read_user(task.mm().as_ref(), arg)?;
    let known = v::VFIO_DMA_MAP_FLAG_READ | v::VFIO_DMA_MAP_FLAG_WRITE;
    if (map.argsz as usize) < size_of_val(&map) || map.flags & !known != 0 {
        return Err(Error::Invalid("argsz or flags"));
    }
    let mut prot = Prot::CACHE;
    prot.set(Prot::READ, map.flags & v::VFIO_DMA_MAP_FLAG_READ != 0);
    prot.set(Prot::WRITE, map.flags & v::VFIO_DMA_MAP_FLAG_WRITE != 0);
    let new = NewMapping {
        ioas: context.lock().compat_ioas()?,
        memory: Memory::User(map.vaddr),
        length: map.size,
        prot,
        iova: Some(map.iova),
    };
    context.map_memory(task, new, |_| Ok(()))?;
    Ok(0)
}

fn unmap_dma(context: &Context, mm: &dyn Mm, arg: u64) -> Result<i32, Error> {
    let mut unmap: v::vfio_iommu_type1_dma_unmap = read_user(mm, arg)?;
    if (unmap.argsz as usize) < size_of_val(&unmap)
        || unmap.flags & !v::VFIO_DMA_UNMAP_FLAG_ALL != 0
    {
        return Err(Error::Invalid("argsz or flags"));
    }
    let id = context.lock().compat_ioas()?;
    let last = if unmap.flags & v::VFIO_DMA_UNMAP_FLAG_ALL != 0 {
        if unmap.iova != 0 || unmap.size != 0 {
            return Err(Error::Invalid("unmapping all takes no range"));
        }
        Ok(u64::MAX)
    } else {
        let mut state = context.lock();
        let (ioas, pages) = state.ioas_and_pages(id)?;
        if ioas.small_pages_only() {
            // Type1 cuts what sticks out at either end.
            ioas.cut(pages, unmap.iova.wrapping_add(unmap.size).wrapping_sub(1))?;
            if let Some(before) = unmap.iova.checked_sub(1) {
                ioas.cut(pages, before)?;
            }
        }
        crate::ioas::range_last(unmap.iova, unmap.size)
    };
    let (bytes, result) = match last {
        Ok(last) => context.unmap_range(id, unmap.iova, last),
        Err(error) => (0, Err(error)),
    };
    // The size is written back whatever happened.
    unmap.size = bytes;
    mm.copy_to_user(arg, unmap.as_bytes())?;
    result.map(|()| 0)
}
