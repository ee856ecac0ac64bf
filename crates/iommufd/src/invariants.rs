//! What must hold between any two calls, checked by tests and the fuzzer.

use std::collections::HashMap;

use crate::Id;
use crate::context::{Object, State};

macro_rules! ensure {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err(format!($($message)+));
        }
    };
}

impl State {
    /// User counts equal the references there are, areas and reservations do not
    /// meet, every domain maps exactly what its IOAS holds, and memory to be mapped
    /// has an owner. The error says what is wrong.
    pub(crate) fn check_invariants(&self) -> Result<(), String> {
        self.check_users()?;
        self.check_mmaps()?;
        for (id, object) in self.objects.iter() {
            if let Object::Ioas(ioas) = object {
                ioas.check_invariants(&self.pages).map_err(|e| format!("IOAS {id}: {e}"))?;
            }
        }
        Ok(())
    }

    /// Memory to be mapped does not overlap, and belongs to a vIOMMU.
    fn check_mmaps(&self) -> Result<(), String> {
        let mut next = host::PAGE_SIZE;
        for (offset, len, owner) in self.mmaps.iter() {
            ensure!(offset >= next, "two areas are mapped at offset {offset:#x}");
            ensure!(self.viommu(owner).is_ok(), "offset {offset:#x} is of {owner}, no vIOMMU");
            next = offset + len;
        }
        Ok(())
    }

    fn check_users(&self) -> Result<(), String> {
        let mut expected: HashMap<Id, u32> = HashMap::new();
        let mut refer = |id: Id| *expected.entry(id).or_default() += 1;
        for (id, object) in self.objects.iter() {
            match object {
                Object::HwptPaging(hwpt) => {
                    refer(hwpt.ioas);
                    hwpt.fault().into_iter().for_each(&mut refer);
                }
                Object::HwptNested(hwpt) => {
                    refer(hwpt.parent);
                    hwpt.fault().into_iter().for_each(&mut refer);
                }
                Object::Access(access) => {
                    refer(id);
                    access.holds().into_iter().for_each(&mut refer);
                }
                Object::Device(_) => refer(id),
                Object::Viommu(viommu) => refer(viommu.parent),
                Object::Vdevice(vdevice) => refer(vdevice.viommu),
                Object::Veventq(queue) => refer(queue.viommu),
                Object::HwQueue(queue) => queue.holds().for_each(&mut refer),
                Object::Ioas(_) | Object::Fault(_) | Object::External(_) => {}
            }
        }
        for group in self.groups.values() {
            for (hwpt, devices) in group.attachments() {
                (0..devices).for_each(|_| refer(hwpt));
            }
        }
        for (id, object) in self.objects.iter() {
            let users = self.objects.users(id).unwrap_or(0);
            let expected = expected.get(&id).copied().unwrap_or(0);
            let outside = self.objects.outside(id);
            ensure!(
                users == expected + outside,
                "object {id} counts {users} users, {expected} objects and {outside} files and \
                 mappings refer to it"
            );
            let holdable =
                matches!(object, Object::Fault(_) | Object::Veventq(_) | Object::Viommu(_));
            ensure!(outside == 0 || holdable, "object {id} is held by a file or a mapping");
        }
        Ok(())
    }
}
