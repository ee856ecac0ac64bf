//! Mappings of the context's file: memory of the driver's that a program asks for by
//! offset and length.

use std::sync::Arc;

use host::{Errno, File, MmapBacking, MmapRequest, PAGE_SIZE};
use host_fake::FakeTask;
use iommufd::Context;

use crate::Input;

/// The most mappings that a program keeps.
const MOST: usize = 64;

/// What one thread has mapped, in the order it did.
#[derive(Default)]
pub(crate) struct Mappings(Vec<Mapping>);

struct Mapping {
    /// Kept beside the guard, which is what keeps it open.
    context: Arc<Context>,
    /// Offset, length and owner, as [`Context::mappable`] has them.
    area: (u64, u64, u32),
    _backing: MmapBacking,
}

/// What a program asks for: pairs that may fit and some that hardly do.
pub(crate) fn request(input: &mut Input<'_>) -> MmapRequest {
    let offset = match input.byte() {
        byte @ 0..=219 => u64::from(byte % 8) * PAGE_SIZE,
        byte @ 220..=239 => u64::from(byte) * 2048,
        240..=247 => 0u64.wrapping_sub(u64::from(input.byte()) * PAGE_SIZE),
        _ => input.u64(),
    };
    let len = match input.byte() {
        0..=179 => 2 * PAGE_SIZE,
        byte @ 180..=239 => u64::from(byte % 4) * PAGE_SIZE,
        240..=247 => input.length(),
        _ => input.u64(),
    };
    let flags = input.byte();
    MmapRequest {
        offset,
        len,
        read: flags & 1 == 0,
        write: flags & 2 == 0,
        exec: flags >= 240,
        shared: flags & 7 != 7,
    }
}

impl Mappings {
    /// Maps, and checks the answer if it is `certain`: nobody else changes the context
    /// meanwhile, and nothing is to fail. Says whether it could.
    pub(crate) fn map(
        &mut self,
        context: &Arc<Context>,
        task: &FakeTask,
        request: MmapRequest,
        certain: bool,
    ) -> bool {
        let fits =
            |(offset, len, _): &(u64, u64, u32)| *offset == request.offset && *len == request.len;
        let before = context.mappable().into_iter().find(fits);
        let answer = context.mmap(task, request);
        if certain {
            let expected = if !request.len.is_multiple_of(PAGE_SIZE) || !request.shared {
                Err(Errno::INVAL)
            } else if request.exec {
                Err(Errno::PERM)
            } else {
                before.map(drop).ok_or(Errno::NXIO)
            };
            assert_eq!(answer.as_ref().map(drop).map_err(|e| *e), expected, "{request:?}");
        }
        let Ok(backing) = answer else { return false };
        // From here on the area cannot go: it is the one that was mapped.
        let area = context.mappable().into_iter().find(fits);
        let area = area.unwrap_or_else(|| panic!("{request:?} mapped memory that nobody has"));
        if self.0.len() < MOST {
            self.0.push(Mapping { context: context.clone(), area, _backing: backing });
        }
        true
    }

    /// Unmaps one.
    pub(crate) fn unmap(&mut self, which: u8) {
        if !self.0.is_empty() {
            self.0.swap_remove(usize::from(which) % self.0.len());
        }
    }

    /// Whatever was destroyed, what is mapped is still there, and whose it was.
    pub(crate) fn check(&self) {
        for Mapping { context, area, .. } in &self.0 {
            assert!(context.mappable().contains(area), "{area:?} went while it was mapped");
        }
    }
}
