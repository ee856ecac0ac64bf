//! The SMMU as a rust-vmm citizen: `vm-memory`'s guest memory under it, and its `Iommu` trait on
//! top of it.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use vm_memory::bitmap::Bitmap;
use vm_memory::iommu::{Error, Iommu, Iotlb, IotlbIterator, IovaRange};
use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress, Permissions,
    VolatileMemory, VolatileSlice,
};

use crate::platform::{Abort, Memory};
use crate::requester::Requester;
use crate::smmu::Smmu;
use crate::sync::{Fence, SeqCst};
use crate::transaction::Transaction;

/// Guest memory as the SMMU's physical address space. What is in no region aborts; to give MSIs a
/// doorbell, wrap this in a [`Memory`] that catches its address.
#[derive(Debug, Clone)]
pub struct GuestRam<B>(pub B);

type Slice<'a, B> = VolatileSlice<
    'a,
    vm_memory::bitmap::BS<'a, <<B as GuestMemoryBackend>::R as GuestMemoryRegion>::B>,
>;

impl<B: GuestMemoryBackend> GuestRam<B> {
    /// As much of `len` bytes from `address` on as one region holds.
    #[inline]
    fn slice(&self, address: u64, len: usize) -> Result<Slice<'_, B>, Abort> {
        let region = self.0.find_region(GuestAddress(address)).ok_or(Abort)?;
        let offset = address.wrapping_sub(region.start_addr().0);
        let len = len.min(usize::try_from(region.len() - offset).unwrap_or(usize::MAX));
        region.get_slice(MemoryRegionAddress(offset), len).map_err(|_| Abort)
    }

    /// The pieces of `len` bytes from `address` on, region by region.
    #[inline]
    fn pieces(
        &self,
        address: u64,
        len: usize,
        mut each: impl FnMut(usize, Slice<'_, B>),
    ) -> Result<(), Abort> {
        let mut done = 0;
        while done < len {
            let slice = self.slice(address.checked_add(done as u64).ok_or(Abort)?, len - done)?;
            let here = slice.len();
            each(done, slice);
            done += here;
        }
        Ok(())
    }
}

impl<B: GuestMemoryBackend + Send + Sync> Memory for GuestRam<B> {
    #[inline]
    fn load(&self, address: u64) -> Result<u64, Abort> {
        let slice = self.slice(address, 8)?;
        let word = slice.get_atomic_ref::<AtomicU64>(0).map_err(|_| Abort)?;
        Ok(u64::from_le(word.load(Ordering::Acquire)))
    }

    fn compare_exchange(&self, address: u64, current: u64, new: u64) -> Result<u64, Abort> {
        let slice = self.slice(address, 8)?;
        let word = slice.get_atomic_ref::<AtomicU64>(0).map_err(|_| Abort)?;
        let seen = word.compare_exchange(
            current.to_le(),
            new.to_le(),
            Ordering::AcqRel,
            Ordering::Acquire,
        );
        if seen.is_ok() {
            slice.bitmap().mark_dirty(0, 8);
        }
        Ok(u64::from_le(seen.unwrap_or_else(|seen| seen)))
    }

    #[inline]
    fn read(&self, address: u64, data: &mut [u8]) -> Result<(), Abort> {
        self.pieces(address, data.len(), |done, slice| {
            slice.copy_to(&mut data[done..]);
        })
    }

    #[inline]
    fn write(&self, address: u64, data: &[u8]) -> Result<(), Abort> {
        self.pieces(address, data.len(), |done, slice| slice.copy_from(&data[done..]))
    }
}

/// One stream (or substream) of an SMMU as `vm-memory`'s [`Iommu`], for device models that use
/// `IommuMemory`. Each translation holds invalidations back until its iterator is dropped.
///
/// Device models that can should use [`Requester`] directly: it neither allocates nor builds an
/// [`Iotlb`] for each access.
pub struct StreamIommu<M: Memory, F: Fence = SeqCst> {
    smmu: Arc<Smmu<M, F>>,
    template: Transaction,
    idle: Mutex<Vec<Requester<M, F>>>,
}

impl<M: Memory, F: Fence> StreamIommu<M, F> {
    /// The transactions of `stream_id`, with `substream_id` if there is one.
    pub fn new(smmu: Arc<Smmu<M, F>>, stream_id: u32, substream_id: Option<u32>) -> Self {
        let template = Transaction { substream_id, ..Transaction::read(stream_id, 0) };
        Self { smmu, template, idle: Mutex::new(Vec::new()) }
    }
}

impl<M: Memory, F: Fence> fmt::Debug for StreamIommu<M, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamIommu")
            .field("stream_id", &self.template.stream_id)
            .field("substream_id", &self.template.substream_id)
            .finish_non_exhaustive()
    }
}

/// The translation of one access; as long as it lives, no `CMD_SYNC` revokes it.
pub struct Held<'a, M: Memory, F: Fence> {
    iommu: &'a StreamIommu<M, F>,
    /// Taken in `drop` only.
    requester: Option<Requester<M, F>>,
    iotlb: Iotlb,
}

impl<M: Memory, F: Fence> Deref for Held<'_, M, F> {
    type Target = Iotlb;

    fn deref(&self) -> &Iotlb {
        &self.iotlb
    }
}

impl<M: Memory, F: Fence> Drop for Held<'_, M, F> {
    fn drop(&mut self) {
        if let Some(requester) = self.requester.take() {
            requester.end();
            self.iommu.idle.lock().push(requester);
        }
    }
}

impl<M: Memory, F: Fence> Iommu for StreamIommu<M, F> {
    type IotlbGuard<'a>
        = Held<'a, M, F>
    where
        Self: 'a;

    fn translate(
        &self,
        iova: GuestAddress,
        length: usize,
        access: Permissions,
    ) -> Result<IotlbIterator<Held<'_, M, F>>, Error> {
        let refused = |reason: String| Error::CannotResolve {
            iova_range: IovaRange { base: iova, length },
            reason,
        };
        if iova.0.checked_add(length as u64).is_none() {
            return Err(refused("the range wraps around the end of the address space".into()));
        }
        let requester = self.idle.lock().pop().unwrap_or_else(|| self.smmu.requester());
        requester.enter();
        let mut held = Held { iommu: self, requester: Some(requester), iotlb: Iotlb::new() };
        let mut done = 0;
        while done < length {
            let address = iova.0 + done as u64;
            let mut piece = length - done;
            for write in [Permissions::Read, Permissions::Write] {
                if !access.allow(write) {
                    continue;
                }
                let write = write == Permissions::Write;
                let transaction = Transaction { address, write, ..self.template };
                let Some(requester) = held.requester.as_mut() else { break };
                let found = requester
                    .translate(&transaction)
                    .map_err(|refusal| refused(refusal.to_string()))?;
                piece = piece.min(usize::try_from(found.length).unwrap_or(usize::MAX));
                held.iotlb.set_mapping(
                    GuestAddress(address),
                    GuestAddress(found.address),
                    piece,
                    access,
                )?;
            }
            done += piece;
        }
        Iotlb::lookup(held, iova, length, access)
            .map_err(|_| refused("no access was asked for".into()))
    }
}
