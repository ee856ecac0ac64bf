//! The walk: from an input address to the descriptor of its leaf.
//!
//! A walk reads descriptors and nothing else. It neither checks the Access flag
//! and permissions nor updates them: the order of those faults, and what hardware
//! may write, belong to whoever walks.

use crate::format::{CONTIGUOUS, Stage1Leaf, Stage2Leaf, TABLE_OR_PAGE, TableAttributes, VALID};
use crate::geometry::{
    AddressField, FIELD_4K, Geometry, GeometryError, Granule, LAST_LEVEL, Stage, low_bits,
};

/// Where a walk reads descriptors.
///
/// The address is an output address of the stage above, if there is one: for the
/// stage 1 of a nested translation it is an IPA, and the implementer takes it
/// through stage 2.
pub trait Descriptors {
    /// Why a descriptor could not be read.
    type Error;

    /// Reads the 64-bit descriptor at `address`, a multiple of 8, in the host's
    /// byte order, atomically.
    fn read(&mut self, address: u64, level: i8) -> Result<u64, Self::Error>;

    /// Hears of each descriptor after it was read and understood: for caches of
    /// table addresses, and for recorders. Costs nothing where it is not overridden.
    #[inline]
    fn seen(&mut self, step: Step) {
        let _ = step;
    }
}

/// A descriptor that a walk has read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Step {
    /// The level of the table that holds it.
    pub level: i8,
    /// Where it was read.
    pub address: u64,
    /// Its value.
    pub descriptor: u64,
    /// What it means there.
    pub meaning: Meaning,
}

/// What a descriptor means to the walk that reads it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Meaning {
    /// Bit 0 is clear.
    Invalid,
    /// Bit 0 is set, but bit 1 makes it a block where none may stand, or at
    /// level 3 the reserved encoding. Translates nothing, like an invalid one.
    Reserved,
    /// The next table: its address, and what all tables so far take away.
    Table(Position),
    /// A block or a page: the output address for the input of the walk.
    Leaf {
        /// The output address.
        output: u64,
        /// log2 of the size of the block or page.
        size_log2: u8,
    },
    /// A table or leaf at an address beyond the effective output size.
    BeyondOutput {
        /// The address.
        address: u64,
    },
}

/// A table that a walk can continue from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Position {
    /// The table's level.
    pub level: i8,
    /// The table's address.
    pub table: u64,
    /// What the tables before it take away.
    pub attributes: TableAttributes,
}

/// The descriptor that ends a walk, whatever it is.
struct Last {
    level: i8,
    shift: u8,
    address: u64,
    descriptor: u64,
    table_attributes: TableAttributes,
}

/// Where a walk ended: a valid block or page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Leaf {
    /// The output address for the walk's input, offset included.
    pub output: u64,
    /// The descriptor.
    pub descriptor: u64,
    /// Where the descriptor was read: an IPA in the stage 1 of a nested walk.
    pub descriptor_address: u64,
    /// log2 of the size of the block or page, without its contiguous neighbours.
    pub size_log2: u8,
    /// The contiguous bit is set, and means something at this level.
    pub contiguous: bool,
    /// The level of the table that holds the descriptor.
    pub level: i8,
    /// What the table descriptors on the way take away. Empty at stage 2.
    pub table_attributes: TableAttributes,
}

impl Leaf {
    /// The leaf as stage 1 sees it.
    #[inline]
    pub fn stage1(&self) -> Stage1Leaf {
        Stage1Leaf { descriptor: self.descriptor, tables: self.table_attributes }
    }

    /// The leaf as stage 2 sees it.
    #[inline]
    pub fn stage2(&self) -> Stage2Leaf {
        Stage2Leaf { descriptor: self.descriptor }
    }
}

/// Why an input address has no translation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Fault<E> {
    /// Nothing is mapped there: an invalid or reserved descriptor, or at level 0 an
    /// input address beyond the input size.
    #[error("translation fault, level {level}")]
    Translation {
        /// The level of the table that holds the descriptor.
        level: i8,
    },
    /// A descriptor, or at level 0 the base, holds an address beyond the effective
    /// output size.
    #[error("address size fault, level {level}")]
    AddressSize {
        /// The level of the table that holds the descriptor.
        level: i8,
    },
    /// A descriptor could not be read.
    #[error("the level {level} descriptor at {address:#x} could not be read")]
    Memory {
        /// The level of the table that holds the descriptor.
        level: i8,
        /// The descriptor's address.
        address: u64,
        /// What the reader said.
        error: E,
    },
}

/// A set of translation tables: its shape and where its initial table is.
///
/// ```
/// use pagetable::{Descriptors, Granule, Table};
///
/// struct Ram(Vec<u64>);
/// impl Descriptors for Ram {
///     type Error = ();
///     fn read(&mut self, address: u64, _level: i8) -> Result<u64, ()> {
///         self.0.get(address as usize / 8).copied().ok_or(())
///     }
/// }
///
/// // 30 input bits with 4K pages: level 2 and level 3.
/// let table = Table::stage1(Granule::K4, 30, 48, false, 0)?;
/// let mut ram = Ram(vec![0; 1024]);
/// ram.0[0] = 0x1000 | 0b11;
/// ram.0[512 + 5] = 0x8000_0000 | 0b11;
/// assert_eq!(table.walk(0x5678, &mut ram).unwrap().output, 0x8000_0678);
/// # Ok::<(), pagetable::GeometryError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Table {
    geometry: Geometry,
    base: u64,
}

impl Table {
    /// Tables of this shape whose initial table is at `base`. Bits of `base` below
    /// [its size](Geometry::initial_size_log2) count as zero. A base beyond
    /// the output size makes every walk fault.
    pub fn new(geometry: Geometry, base: u64) -> Self {
        Self { geometry, base: base & !low_bits(geometry.initial_size_log2()) }
    }

    /// Stage 1 tables at `base`: [`Geometry::stage1`] and [`new`](Self::new) in one.
    pub fn stage1(
        granule: Granule,
        input_bits: u8,
        output_bits: u8,
        ds: bool,
        base: u64,
    ) -> Result<Self, GeometryError> {
        Ok(Self::new(Geometry::stage1(granule, input_bits, output_bits, ds)?, base))
    }

    /// Stage 2 tables at `base`: [`Geometry::stage2`] and [`new`](Self::new) in one.
    pub fn stage2(
        granule: Granule,
        input_bits: u8,
        start_level: i8,
        output_bits: u8,
        ds: bool,
        base: u64,
    ) -> Result<Self, GeometryError> {
        let geometry = Geometry::stage2(granule, input_bits, start_level, output_bits, ds)?;
        Ok(Self::new(geometry, base))
    }

    /// The shape.
    #[inline]
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// The address of the initial table.
    #[inline]
    pub fn base(&self) -> u64 {
        self.base
    }

    /// Where walks start.
    #[inline]
    pub fn start(&self) -> Position {
        Position {
            level: self.geometry.initial_level(),
            table: self.base,
            attributes: TableAttributes::NONE,
        }
    }

    /// Walks from the initial table. `input` is the address to be resolved, without
    /// the tag or sign bits that selected these tables.
    #[inline]
    pub fn walk<M: Descriptors>(
        &self,
        input: u64,
        memory: &mut M,
    ) -> Result<Leaf, Fault<M::Error>> {
        if self.geometry.is_beyond_output(self.base) {
            // Reported after an input out of range, which the hardware sees first.
            let out_of_range = input >> self.geometry.input_bits() != 0;
            return Err(if out_of_range {
                Fault::Translation { level: 0 }
            } else {
                Fault::AddressSize { level: 0 }
            });
        }
        self.walk_from(self.start(), input, memory)
    }

    /// Walks from a table further down, which an earlier walk for the same
    /// `input >> shift(level - 1)` has [met](Meaning::Table).
    #[inline]
    pub fn walk_from<M: Descriptors>(
        &self,
        from: Position,
        input: u64,
        memory: &mut M,
    ) -> Result<Leaf, Fault<M::Error>> {
        let geometry = &self.geometry;
        if input >> geometry.input_bits() != 0 {
            return Err(Fault::Translation { level: 0 });
        }
        // The most common shape gets a loop of constants.
        let last = match (geometry.granule(), geometry.ds()) {
            (Granule::K4, false) => self.descend(Granule::K4, FIELD_4K, from, input, memory)?,
            (granule, _) => self.descend(granule, geometry.field(), from, input, memory)?,
        };
        self.leaf(last, input, memory)
    }

    /// Walks from a last-level table, as [`walk_from`](Self::walk_from) does, in line: for caches of
    /// such tables.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "one read, between a cache and what is made of it")]
    pub fn walk_last_level<M: Descriptors>(
        &self,
        table: u64,
        table_attributes: TableAttributes,
        input: u64,
        memory: &mut M,
    ) -> Result<Leaf, Fault<M::Error>> {
        let granule = self.geometry.granule();
        if input >> self.geometry.input_bits() != 0 {
            return Err(Fault::Translation { level: 0 });
        }
        let (level, shift) = (LAST_LEVEL, granule.page_log2());
        let address = table | (input >> shift & low_bits(granule.stride())) << 3;
        let descriptor = match memory.read(address, level) {
            Ok(descriptor) => descriptor,
            Err(error) => return Err(Fault::Memory { level, address, error }),
        };
        self.leaf(Last { level, shift, address, descriptor, table_attributes }, input, memory)
    }

    /// What the descriptor means that ended a descent.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "the end of both walks")]
    fn leaf<M: Descriptors>(
        &self,
        last: Last,
        input: u64,
        memory: &mut M,
    ) -> Result<Leaf, Fault<M::Error>> {
        let geometry = &self.geometry;
        let Last { level, shift, address: at, descriptor, table_attributes } = last;
        let mut seen = |meaning| memory.seen(Step { level, address: at, descriptor, meaning });
        // A page has bit 1 set and a block has not.
        let expected = if level == LAST_LEVEL { TABLE_OR_PAGE } else { VALID };
        if descriptor & TABLE_OR_PAGE != expected || !geometry.has_leaves(level) {
            let invalid = descriptor & VALID == 0;
            seen(if invalid { Meaning::Invalid } else { Meaning::Reserved });
            return Err(Fault::Translation { level });
        }
        let address = geometry.address(descriptor) & !low_bits(shift);
        if geometry.is_beyond_output(address) {
            seen(Meaning::BeyondOutput { address });
            return Err(Fault::AddressSize { level });
        }
        // A contiguous group is one large leaf: its outer address bits come from any of
        // its descriptors, the inner ones from the input.
        let joined = descriptor & CONTIGUOUS != 0;
        let group = if joined { geometry.contiguous_log2(level) } else { None };
        let offset = low_bits(shift + group.unwrap_or(0));
        let output = address & !offset | input & offset;
        seen(Meaning::Leaf { output, size_log2: shift });
        Ok(Leaf {
            output,
            descriptor,
            descriptor_address: at,
            size_log2: shift,
            contiguous: group.is_some(),
            level,
            table_attributes,
        })
    }

    /// Follows table descriptors down to the first descriptor that is none.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "constants are passed to be folded in")]
    fn descend<M: Descriptors>(
        &self,
        granule: Granule,
        field: AddressField,
        from: Position,
        input: u64,
        memory: &mut M,
    ) -> Result<Last, Fault<M::Error>> {
        let Position { mut level, mut table, attributes } = from;
        let stride = granule.stride();
        let mut shift = granule.shift(level);
        let mut index = self.geometry.index(level, input);
        // All table descriptors of the walk in one: a bit that any of them has.
        let mut tables = 0;
        loop {
            let address = table | index << 3;
            let descriptor = match memory.read(address, level) {
                Ok(descriptor) => descriptor,
                Err(error) => return Err(Fault::Memory { level, address, error }),
            };
            if descriptor & TABLE_OR_PAGE != TABLE_OR_PAGE || level == LAST_LEVEL {
                let table_attributes = attributes.and(self.table_attributes(tables));
                return Ok(Last { level, shift, address, descriptor, table_attributes });
            }
            let next = field.decode(descriptor);
            if self.geometry.is_beyond_output(next) {
                let meaning = Meaning::BeyondOutput { address: next };
                memory.seen(Step { level, address, descriptor, meaning });
                return Err(Fault::AddressSize { level });
            }
            tables |= descriptor;
            let attributes = attributes.and(self.table_attributes(tables));
            let meaning = Meaning::Table(Position { level: level + 1, table: next, attributes });
            memory.seen(Step { level, address, descriptor, meaning });
            table = next;
            level += 1;
            shift -= stride;
            index = input >> shift & low_bits(stride);
        }
    }

    /// What table descriptors take away: nothing at stage 2, where the bits are reserved.
    #[inline]
    fn table_attributes(&self, descriptors: u64) -> TableAttributes {
        match self.geometry.stage() {
            Stage::One => TableAttributes::of(descriptors),
            Stage::Two => TableAttributes::NONE,
        }
    }
}
