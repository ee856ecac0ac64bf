//! The object table: ids as the kernel hands them out.

use std::collections::BTreeSet;

use crate::Error;

/// The id of an object in one context: 1 to `i32::MAX`.
pub type Id = u32;

/// An object and its state.
#[derive(Default)]
enum Slot<T> {
    #[default]
    Free,
    /// Complete, but its id is not yet in user space's hands: invisible.
    Reserved(T),
    Live {
        object: T,
        /// Long-term holders: other objects, open files, mappings, drivers.
        users: u32,
        /// Those of them that are files and mappings.
        outside: u32,
    },
    /// Gone, but the id stays unusable for as long as the context lives.
    Tombstone,
}

/// Objects by id. The lowest free id is given out first and is free again as
/// soon as its object is gone, as with the kernel's xarray.
pub(crate) struct ObjectTable<T> {
    slots: Vec<Slot<T>>,
    free: BTreeSet<Id>,
}

impl<T> Default for ObjectTable<T> {
    fn default() -> Self {
        // Id 0 is never valid.
        Self { slots: vec![Slot::Tombstone], free: BTreeSet::new() }
    }
}

impl<T> ObjectTable<T> {
    /// Gives `object` an id that nobody can look up before
    /// [`ObjectTable::finalize`], or the object back if there is none left.
    pub(crate) fn reserve(&mut self, object: T) -> Result<Id, (T, Error)> {
        if let Some(id) = self.free.pop_first() {
            self.slots[id as usize] = Slot::Reserved(object);
            return Ok(id);
        }
        let id = self.slots.len();
        if id > i32::MAX as usize {
            return Err((object, Error::NoMemory("object ids")));
        }
        self.slots.push(Slot::Reserved(object));
        Ok(id as Id)
    }

    /// Publishes a reserved object; says whether it is still there.
    pub(crate) fn finalize(&mut self, id: Id) -> bool {
        let slot = &mut self.slots[id as usize];
        match std::mem::take(slot) {
            Slot::Reserved(object) => {
                *slot = Slot::Live { object, users: 0, outside: 0 };
                true
            }
            other => {
                *slot = other;
                false
            }
        }
    }

    /// Takes out a live object that nobody uses.
    pub(crate) fn remove(&mut self, id: Id) -> Result<T, Error> {
        match self.slots.get(id as usize) {
            Some(Slot::Live { users: 0, .. }) => {}
            Some(Slot::Live { .. }) => return Err(Error::Busy("other objects refer to it")),
            _ => return Err(Error::NoObject(id)),
        }
        self.take(id)
    }

    /// Takes out a reserved object, whose id never became known.
    pub(crate) fn abort(&mut self, id: Id) -> Result<T, Error> {
        match self.slots.get(id as usize) {
            Some(Slot::Reserved(_)) => self.take(id),
            _ => Err(Error::NoObject(id)),
        }
    }

    /// Takes out an object, whoever uses it and even if it is still under
    /// construction, and makes its id unusable.
    pub(crate) fn entomb(&mut self, id: Id) -> Result<T, Error> {
        let slot = self.slots.get_mut(id as usize).ok_or(Error::NoObject(id))?;
        match std::mem::replace(slot, Slot::Tombstone) {
            Slot::Live { object, .. } | Slot::Reserved(object) => Ok(object),
            other => {
                *slot = other;
                Err(Error::NoObject(id))
            }
        }
    }

    fn take(&mut self, id: Id) -> Result<T, Error> {
        self.free.insert(id);
        match std::mem::take(&mut self.slots[id as usize]) {
            Slot::Reserved(object) | Slot::Live { object, .. } => Ok(object),
            Slot::Free | Slot::Tombstone => Err(Error::NoObject(id)),
        }
    }

    /// A live object.
    pub(crate) fn get(&self, id: Id) -> Result<&T, Error> {
        match self.slots.get(id as usize) {
            Some(Slot::Live { object, .. }) => Ok(object),
            _ => Err(Error::NoObject(id)),
        }
    }

    /// A live object, to change.
    pub(crate) fn get_mut(&mut self, id: Id) -> Result<&mut T, Error> {
        match self.slots.get_mut(id as usize) {
            Some(Slot::Live { object, .. }) => Ok(object),
            _ => Err(Error::NoObject(id)),
        }
    }

    /// One more long-term holder.
    pub(crate) fn hold(&mut self, id: Id) {
        if let Some(Slot::Live { users, .. }) = self.slots.get_mut(id as usize) {
            *users += 1;
        }
    }

    /// One holder fewer.
    pub(crate) fn unhold(&mut self, id: Id) {
        if let Some(Slot::Live { users, .. }) = self.slots.get_mut(id as usize) {
            debug_assert!(*users > 0, "object {id} has no holder to drop");
            *users = users.saturating_sub(1);
        }
    }

    /// One more file or mapping that holds it.
    pub(crate) fn hold_outside(&mut self, id: Id) {
        self.hold(id);
        if let Some(Slot::Live { outside, .. }) = self.slots.get_mut(id as usize) {
            *outside += 1;
        }
    }

    /// One file or mapping fewer.
    pub(crate) fn unhold_outside(&mut self, id: Id) {
        self.unhold(id);
        if let Some(Slot::Live { outside, .. }) = self.slots.get_mut(id as usize) {
            debug_assert!(*outside > 0, "no file or mapping holds object {id}");
            *outside = outside.saturating_sub(1);
        }
    }

    /// How many files and mappings hold a live object.
    pub(crate) fn outside(&self, id: Id) -> u32 {
        match self.slots.get(id as usize) {
            Some(Slot::Live { outside, .. }) => *outside,
            _ => 0,
        }
    }

    /// How many hold a live object.
    pub(crate) fn users(&self, id: Id) -> Option<u32> {
        match self.slots.get(id as usize) {
            Some(Slot::Live { users, .. }) => Some(*users),
            _ => None,
        }
    }

    /// Whether no id is taken, be it by an object under construction or for good.
    pub(crate) fn is_empty(&self) -> bool {
        self.slots.iter().skip(1).all(|slot| matches!(slot, Slot::Free))
    }

    /// Live objects in the order of their ids.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Id, &T)> {
        self.slots.iter().enumerate().filter_map(|(id, slot)| match slot {
            Slot::Live { object, .. } => Some((id as Id, object)),
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn live(table: &mut ObjectTable<&'static str>, name: &'static str) -> Id {
        let id = table.reserve(name).ok().unwrap();
        table.finalize(id);
        id
    }

    #[test]
    fn the_lowest_free_id_comes_first_and_zero_never() {
        let mut table = ObjectTable::default();
        let ids: Vec<_> = (0..4).map(|_| live(&mut table, "x")).collect();
        assert_eq!(ids, [1, 2, 3, 4]);
        table.remove(3).unwrap();
        table.remove(2).unwrap();
        assert_eq!(live(&mut table, "y"), 2);
        assert_eq!(table.get(0), Err(Error::NoObject(0)));
    }

    #[test]
    fn a_reserved_object_cannot_be_looked_up() {
        let mut table = ObjectTable::default();
        let id = table.reserve("new").ok().unwrap();
        assert_eq!(table.get(id), Err(Error::NoObject(id)));
        assert_eq!(table.remove(id), Err(Error::NoObject(id)));
        table.finalize(id);
        assert_eq!(table.get(id), Ok(&"new"));
    }

    #[test]
    fn an_aborted_id_is_free_again() {
        let mut table = ObjectTable::default();
        let id = table.reserve("new").ok().unwrap();
        assert_eq!(table.abort(id), Ok("new"));
        assert_eq!(live(&mut table, "other"), id);
        assert_eq!(table.abort(id), Err(Error::NoObject(id)));
    }

    #[test]
    fn an_object_with_users_stays() {
        let mut table = ObjectTable::default();
        let id = live(&mut table, "parent");
        table.hold(id);
        assert!(matches!(table.remove(id), Err(Error::Busy(_))));
        table.unhold(id);
        assert_eq!(table.remove(id), Ok("parent"));
        assert_eq!(table.remove(id), Err(Error::NoObject(id)));
    }
}
