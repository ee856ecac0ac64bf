use std::any::Any;
use std::sync::{Arc, Mutex, PoisonError};

use iommu::{Error, NestedDomain, UserArray};
use uapi::selftest as t;

use crate::{MockDomain, MockViommu};

/// A nested domain: four IOTLB entries that invalidations zero.
pub struct MockNested {
    /// Never asked for: it lives as long as this does.
    _parent: Arc<MockDomain>,
    /// The vIOMMU that it was allocated on.
    viommu: Option<Arc<MockViommu>>,
    iotlb: Mutex<[u32; t::MOCK_NESTED_DOMAIN_IOTLB_NUM]>,
}

impl MockNested {
    pub(crate) fn new(
        parent: Arc<MockDomain>,
        iotlb: u32,
        viommu: Option<Arc<MockViommu>>,
    ) -> Self {
        let iotlb = Mutex::new([iotlb; t::MOCK_NESTED_DOMAIN_IOTLB_NUM]);
        Self { _parent: parent, viommu, iotlb }
    }

    /// The domain, if it is the mock's.
    pub fn from_domain(domain: Arc<dyn NestedDomain>) -> Option<Arc<Self>> {
        (domain as Arc<dyn Any + Send + Sync>).downcast().ok()
    }

    pub(crate) fn viommu(&self) -> Option<&Arc<MockViommu>> {
        self.viommu.as_ref()
    }

    /// What is in an IOTLB entry.
    pub fn iotlb(&self, index: usize) -> Option<u32> {
        self.iotlb.lock().unwrap_or_else(PoisonError::into_inner).get(index).copied()
    }

    fn invalidate_one(&self, entry: t::iommu_hwpt_invalidate_selftest) -> Result<(), Error> {
        if entry.flags & !t::IOMMU_TEST_INVALIDATE_FLAG_ALL != 0 {
            return Err(Error::Unsupported("invalidation flags"));
        }
        let mut iotlb = self.iotlb.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = iotlb.get_mut(entry.iotlb_id as usize).ok_or(Error::Invalid("iotlb_id"))?;
        if entry.flags & t::IOMMU_TEST_INVALIDATE_FLAG_ALL == 0 {
            *slot = 0;
        } else {
            iotlb.fill(0);
        }
        Ok(())
    }
}

impl NestedDomain for MockNested {
    fn invalidate(&self, array: &UserArray<'_>) -> (u32, Result<(), Error>) {
        if array.data_type != t::IOMMU_HWPT_INVALIDATE_DATA_SELFTEST {
            return (0, Err(Error::Invalid("the type of invalidation")));
        }
        for index in 0..array.entry_num {
            let done = array.get(index, 8).and_then(|entry| self.invalidate_one(entry));
            if let Err(error) = done {
                return (index, Err(error));
            }
        }
        (array.entry_num, Ok(()))
    }
}
