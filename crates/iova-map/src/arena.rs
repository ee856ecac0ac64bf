//! Nodes named by a `u32` instead of a pointer: half the size in the parent,
//! and no ownership puzzle between a node and its siblings.

use std::ops::{Index, IndexMut};

/// Boxed nodes with a free list. Growing moves only pointers.
#[derive(Clone, Debug)]
pub(crate) struct Arena<T> {
    slots: Vec<Option<Box<T>>>,
    free: Vec<u32>,
}

impl<T> Arena<T> {
    pub(crate) const fn new() -> Self {
        Self { slots: Vec::new(), free: Vec::new() }
    }

    pub(crate) fn add(&mut self, node: T) -> u32 {
        let node = Some(Box::new(node));
        if let Some(id) = self.free.pop() {
            self.slots[id as usize] = node;
            return id;
        }
        let id = u32::try_from(self.slots.len()).expect("2^32 nodes of a kilobyte each");
        self.slots.push(node);
        id
    }

    pub(crate) fn get_mut(&mut self, id: u32) -> Option<&mut T> {
        self.slots.get_mut(id as usize)?.as_deref_mut()
    }

    /// Whether it ever held more than one node, since it was new.
    pub(crate) fn has_grown(&self) -> bool {
        self.slots.len() > 1
    }

    pub(crate) fn take(&mut self, id: u32) -> T {
        let node = self.slots[id as usize].take().expect("a live node");
        if self.slots.len() == self.free.len() + 1 {
            self.slots = Vec::new();
            self.free = Vec::new();
        } else {
            self.free.push(id);
        }
        *node
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.slots.iter().flatten().map(|node| &**node)
    }

    /// Bytes of the arena and its nodes, without what the nodes own.
    pub(crate) fn memory_usage(&self) -> usize {
        self.slots.capacity() * size_of::<Option<Box<T>>>()
            + self.free.capacity() * size_of::<u32>()
            + (self.slots.len() - self.free.len()) * size_of::<T>()
    }
}

impl<T> Index<u32> for Arena<T> {
    type Output = T;

    #[inline]
    fn index(&self, id: u32) -> &T {
        self.slots[id as usize].as_deref().expect("a live node")
    }
}

impl<T> IndexMut<u32> for Arena<T> {
    #[inline]
    fn index_mut(&mut self, id: u32) -> &mut T {
        self.slots[id as usize].as_deref_mut().expect("a live node")
    }
}
