//! Looking behind the uAPI: what is mapped, pinned and dirty.

use std::sync::Weak;

use host::{Access, Fault, PAGE_SIZE};
use iommu_mock::MockDomain;
use iommufd::Error;

use crate::{Call, TestIoctl, at};

/// The most bits of one dirty operation.
const MAX_DIRTY_BITS: u64 = 16 << 23;

impl TestIoctl {
    /// The physical address of every page of user memory, in order.
    fn physical_pages(&self, call: &Call<'_>, uptr: u64, length: u64) -> Result<Vec<u64>, Fault> {
        let mut pages = Vec::new();
        let first = uptr / PAGE_SIZE * PAGE_SIZE;
        let end = (uptr + length).next_multiple_of(PAGE_SIZE);
        if first < end {
            let mut runs = Vec::new();
            call.task.mm().pin(first, end - first, Access::Read, &mut |run| runs.push(run))?;
            for run in runs {
                pages.extend((0..run.len / PAGE_SIZE).map(|page| run.pa + page * PAGE_SIZE));
                self.memory.unpin(run);
            }
        }
        Ok(pages)
    }

    pub(crate) fn check_map(
        &self,
        call: &Call<'_>,
        iova: u64,
        length: u64,
        uptr: u64,
    ) -> Result<(), Error> {
        let domain = call.context.paging_domain(call.cmd.id)?;
        let step = domain.geometry().min_page();
        let aligned = (iova | length | uptr).is_multiple_of(step);
        if !aligned || uptr.checked_add(length).is_none_or(|end| end > u64::MAX - PAGE_SIZE) {
            return Err(Error::Invalid("the range is misaligned"));
        }
        let pages = self.physical_pages(call, uptr, length)?;
        for offset in (0..length).step_by(step as usize) {
            let va = uptr + offset;
            let page = pages[((va / PAGE_SIZE) - uptr / PAGE_SIZE) as usize];
            if domain.iova_to_phys(iova.wrapping_add(offset)) != Some(page + va % PAGE_SIZE) {
                return Err(Error::Invalid("the IOVA does not map this memory"));
            }
        }
        Ok(())
    }

    pub(crate) fn check_refs(
        &self,
        call: &Call<'_>,
        uptr: u64,
        length: u64,
        refs: u32,
    ) -> Result<(), Error> {
        let end = uptr.checked_add(length).filter(|end| *end <= u64::MAX - PAGE_SIZE);
        if !(uptr | length).is_multiple_of(PAGE_SIZE) || end.is_none() {
            return Err(Error::Invalid("the range is misaligned"));
        }
        let pages = self.physical_pages(call, uptr, length)?;
        let mut pinned = Vec::new();
        if let Some(node) = self.node.get().and_then(Weak::upgrade) {
            node.pinned_runs(|run| pinned.push(run));
        }
        for page in pages {
            let holds = |run: &&host::PhysRun| (run.pa..run.pa + run.len).contains(&page);
            if pinned.iter().filter(holds).count() != refs as usize {
                return Err(iommu::Error::Io("a page is pinned more or less often").into());
            }
        }
        Ok(())
    }
}

/// Devices write where user space's bitmap says.
pub(crate) fn dirty(call: &mut Call<'_>) -> Result<(), Error> {
    let cmd = &call.cmd;
    let (iova, length) = (cmd.u64_at(at::SECOND_U64), cmd.u64_at(at::THIRD_U64));
    let (page_size, uptr) = (cmd.u64_at(at::FOURTH_U64), cmd.u64_at(at::FIFTH_U64));
    let sane = page_size != 0
        && length != 0
        && uptr != 0
        && iova.is_multiple_of(page_size)
        && length.is_multiple_of(page_size);
    if !sane {
        return Err(Error::Invalid("the range or its bitmap"));
    }
    let bits = length / page_size;
    if bits > MAX_DIRTY_BITS {
        return Err(Error::Overflow("the bitmap"));
    }
    let domain = MockDomain::from_domain(call.context.paging_domain(cmd.id)?)
        .filter(|domain| domain.is_tracking())
        .ok_or(Error::Invalid("dirty pages are not being tracked"))?;
    let mut bitmap = vec![0; bits.div_ceil(8) as usize];
    call.task.mm().copy_from_user(uptr, &mut bitmap)?;
    let mut count = 0;
    for bit in (0..bits).filter(|bit| bitmap[(bit / 8) as usize] & 1 << (bit % 8) != 0) {
        domain.set_dirty(iova.wrapping_add(bit * page_size));
        count += 1;
    }
    call.cmd.set_u64_at(at::SIXTH_U64, count);
    call.respond()
}
