//! Sizes: granules, levels and how many address bits each level resolves.

/// Which stage of translation a table belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Stage {
    /// From an input address to an intermediate physical address, or to a
    /// physical one where there is no stage 2.
    One,
    /// From an intermediate physical address to a physical one.
    Two,
}

/// The translation granule: the size of a page and of a whole table.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Granule {
    /// 4 KiB pages, 512 entries a table.
    K4 = 12,
    /// 16 KiB pages, 2048 entries a table.
    K16 = 14,
    /// 64 KiB pages, 8192 entries a table.
    K64 = 16,
}

impl Granule {
    /// log2 of the page size in bytes.
    #[inline]
    pub const fn page_log2(self) -> u8 {
        self as u8
    }

    /// How many address bits a full table resolves.
    #[inline]
    pub const fn stride(self) -> u8 {
        self.page_log2() - 3
    }

    /// log2 of what one entry at `level` spans in bytes.
    #[inline]
    pub(crate) const fn shift(self, level: i8) -> u8 {
        (self.page_log2() as i8 + self.stride() as i8 * (LAST_LEVEL - level)) as u8
    }

    /// log2 of the number of neighbouring leaves at `level` that the contiguous
    /// hint joins (`ContiguousSize` of DDI 0487), or `None` where the bit is
    /// reserved.
    #[inline]
    pub const fn contiguous_log2(self, level: i8) -> Option<u8> {
        match (self, level) {
            (Self::K4, 1..=3) => Some(4),
            (Self::K16, 2) | (Self::K64, 2 | 3) => Some(5),
            (Self::K16, 3) => Some(7),
            _ => None,
        }
    }
}

/// Why a table cannot have the wanted shape.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum GeometryError {
    /// The input address has too few or too many bits for the granule.
    #[error("{bits} input address bits where {min} to {max} are possible")]
    InputBits {
        /// The number of bits asked for.
        bits: u8,
        /// The smallest possible number.
        min: u8,
        /// The largest possible number.
        max: u8,
    },
    /// The output address has too few or too many bits.
    #[error("{bits} output address bits where 32 to 52 are possible")]
    OutputBits {
        /// The number of bits asked for.
        bits: u8,
    },
    /// Stage 2 cannot start at this level: the level does not exist for the
    /// granule, or the input size would leave its initial table without an
    /// entry or with more than 16 concatenated tables.
    #[error("{bits} input address bits cannot be resolved from level {level}")]
    StartLevel {
        /// The level asked for.
        level: i8,
        /// The number of input address bits.
        bits: u8,
    },
}

/// The last level: its leaves are pages.
pub const LAST_LEVEL: i8 = 3;

/// Where descriptors hold addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct AddressField {
    /// Address bits that stand in a descriptor where they belong.
    straight: u64,
    /// Descriptor bits that hold the address bits above those.
    scattered: u64,
    /// By how much `scattered` moves up.
    shift: u8,
}

/// The field of 4K descriptors without `ds`.
pub(crate) const FIELD_4K: AddressField = AddressField::of(Granule::K4, false, false);

impl AddressField {
    const fn of(granule: Granule, ds: bool, lpa: bool) -> Self {
        let page = granule.page_log2();
        let (top, scattered, shift) = match granule {
            Granule::K64 if lpa => (47, bits(15, 12), 36),
            Granule::K4 | Granule::K16 if ds => (49, bits(9, 8), 42),
            Granule::K4 | Granule::K16 | Granule::K64 => (47, 0, 0),
        };
        Self { straight: bits(top, page), scattered, shift }
    }

    /// The address in a descriptor.
    #[inline]
    pub(crate) const fn decode(self, descriptor: u64) -> u64 {
        (descriptor & self.straight) | (descriptor & self.scattered) << self.shift
    }

    /// The bits of a descriptor for an address.
    #[inline]
    const fn encode(self, address: u64) -> u64 {
        (address & self.straight) | (address >> self.shift & self.scattered)
    }
}

/// The shape of a set of translation tables, without their address.
///
/// Small and `Copy`; everything that a walk needs at every step is worked out
/// when it is made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Geometry {
    field: AddressField,
    /// Bit `level + 1`: a block, or at level 3 a page, may stand there.
    leaf_levels: u8,
    /// Bit `level + 1`: the contiguous bit means something there.
    contiguous_levels: u8,
    stage: Stage,
    granule: Granule,
    input_bits: u8,
    output_bits: u8,
    initial_level: i8,
    ds: bool,
}

impl Geometry {
    /// Stage 1: the initial level follows from the input size.
    ///
    /// * `input_bits`: 64 − TxSZ. From 16 (17 with 64K), which needs small tables
    ///   (`FEAT_TTST`), to 48, or 52 with 64K or `ds`. Whether an implementation
    ///   has small tables and large addresses is the caller's to check.
    /// * `output_bits`: the effective output size. Without `ds`, 4K and 16K
    ///   descriptors hold 48 bits, so more counts as 48.
    /// * `ds`: 52-bit descriptors for 4K and 16K (`FEAT_LPA2`). Means nothing to 64K.
    pub fn stage1(
        granule: Granule,
        input_bits: u8,
        output_bits: u8,
        ds: bool,
    ) -> Result<Self, GeometryError> {
        let geometry = Self::checked(Stage::One, granule, input_bits, output_bits, ds)?;
        let below_initial = (input_bits - 1 - granule.page_log2()) / granule.stride();
        Ok(geometry.starting_at(LAST_LEVEL - below_initial as i8))
    }

    /// Stage 2: the tables start at `start_level`, as SL0 and SL2 say, and up to
    /// 16 of them are concatenated there. Other parameters as for
    /// [`stage1`](Self::stage1).
    pub fn stage2(
        granule: Granule,
        input_bits: u8,
        start_level: i8,
        output_bits: u8,
        ds: bool,
    ) -> Result<Self, GeometryError> {
        let geometry = Self::checked(Stage::Two, granule, input_bits, output_bits, ds)?;
        let first = match granule {
            Granule::K4 if ds => -1,
            Granule::K4 => 0,
            Granule::K16 if ds => 0,
            Granule::K16 | Granule::K64 => 1,
        };
        let error = GeometryError::StartLevel { level: start_level, bits: input_bits };
        if !(first..=LAST_LEVEL).contains(&start_level) {
            return Err(error);
        }
        // At least one bit for the initial level, at most a stride and four.
        let below = geometry.shift(start_level);
        if input_bits <= below || input_bits > below + granule.stride() + 4 {
            return Err(error);
        }
        Ok(geometry.starting_at(start_level))
    }

    fn checked(
        stage: Stage,
        granule: Granule,
        input_bits: u8,
        output_bits: u8,
        ds: bool,
    ) -> Result<Self, GeometryError> {
        let ds = ds && granule != Granule::K64;
        let min = if granule == Granule::K64 { 17 } else { 16 };
        let max = if ds || granule == Granule::K64 { 52 } else { 48 };
        if !(min..=max).contains(&input_bits) {
            return Err(GeometryError::InputBits { bits: input_bits, min, max });
        }
        if !(32..=52).contains(&output_bits) {
            return Err(GeometryError::OutputBits { bits: output_bits });
        }
        let geometry = Self {
            field: AddressField::of(granule, ds, false),
            leaf_levels: 0,
            contiguous_levels: 0,
            stage,
            granule,
            input_bits,
            output_bits: output_bits.min(max_output(granule, ds)),
            initial_level: LAST_LEVEL,
            ds,
        };
        Ok(geometry.with_lpa(output_bits > 48))
    }

    fn starting_at(mut self, level: i8) -> Self {
        self.initial_level = level;
        self
    }

    /// Says whether the implementation has 52-bit physical addresses (`FEAT_LPA`; an
    /// SMMU whose OAS is 52), which matters to 64K tables alone: descriptor bits
    /// `[15:12]` are then address bits `[51:48]`, reserved otherwise, and level 1
    /// may hold blocks. Assumed when the effective output size is above 48; to be
    /// said where a context uses less than the implementation has.
    #[must_use]
    pub fn with_lpa(mut self, lpa: bool) -> Self {
        if self.granule == Granule::K64 {
            self.field = AddressField::of(self.granule, false, lpa);
            self.output_bits = if lpa { self.output_bits } else { self.output_bits.min(48) };
        }
        let first_block = match self.granule {
            Granule::K4 if self.ds => 0,
            Granule::K4 => 1,
            Granule::K16 if self.ds => 1,
            Granule::K64 if lpa => 1,
            Granule::K16 | Granule::K64 => 2,
        };
        self.leaf_levels = 0;
        self.contiguous_levels = 0;
        for level in first_block..=LAST_LEVEL {
            self.leaf_levels |= 1 << (level + 1);
            // A group larger than the input range is a programming error whose
            // outcome is CONSTRAINED UNPREDICTABLE; the hint is then ignored.
            let group = self.granule.contiguous_log2(level).map(|log2| self.shift(level) + log2);
            if group.is_some_and(|log2| log2 <= self.input_bits) {
                self.contiguous_levels |= 1 << (level + 1);
            }
        }
        self
    }

    /// The stage.
    #[inline]
    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// The granule.
    #[inline]
    pub fn granule(&self) -> Granule {
        self.granule
    }

    /// The size of an input address in bits: 64 − TxSZ.
    #[inline]
    pub fn input_bits(&self) -> u8 {
        self.input_bits
    }

    /// The effective size of an output address in bits.
    #[inline]
    pub fn output_bits(&self) -> u8 {
        self.output_bits
    }

    /// The level at which a walk starts, −1 to 3.
    #[inline]
    pub fn initial_level(&self) -> i8 {
        self.initial_level
    }

    /// Whether descriptors have the 52-bit form of `FEAT_LPA2`. Shareability then
    /// comes from the translation control register. Never with 64K.
    #[inline]
    pub fn ds(&self) -> bool {
        self.ds
    }

    /// log2 of what one entry at `level` spans in bytes.
    #[inline]
    pub fn shift(&self, level: i8) -> u8 {
        self.granule.shift(level)
    }

    /// Whether a block, or at level 3 a page, may stand at `level`.
    #[inline]
    pub fn has_leaves(&self, level: i8) -> bool {
        self.leaf_levels >> (level + 1) & 1 != 0
    }

    /// log2 of the number of leaves at `level` that the contiguous hint joins,
    /// if it means something there.
    #[inline]
    pub fn contiguous_log2(&self, level: i8) -> Option<u8> {
        if self.contiguous_levels >> (level + 1) & 1 != 0 {
            self.granule.contiguous_log2(level)
        } else {
            None
        }
    }

    /// The sizes of blocks and pages: bit n for 2^n bytes. Sizes above the input size
    /// are left out.
    pub fn leaf_sizes(&self) -> u64 {
        (self.initial_level..=LAST_LEVEL)
            .filter(|&level| self.has_leaves(level) && self.shift(level) <= self.input_bits)
            .fold(0, |sizes, level| sizes | 1 << self.shift(level))
    }

    /// The sizes of blocks, pages and contiguous groups: bit n for 2^n bytes. Sizes
    /// above the input size are left out.
    pub fn page_sizes(&self) -> u64 {
        (self.initial_level..=LAST_LEVEL)
            .filter_map(|level| Some(self.shift(level) + self.contiguous_log2(level)?))
            .fold(self.leaf_sizes(), |sizes, log2| sizes | 1 << log2)
    }

    /// log2 of the number of entries of the initial table, concatenated ones included.
    #[inline]
    pub fn initial_entries_log2(&self) -> u8 {
        self.input_bits - self.shift(self.initial_level)
    }

    /// log2 of the number of entries of the table at `level`.
    #[inline]
    pub(crate) fn entries_log2(&self, level: i8) -> u8 {
        if level == self.initial_level {
            self.initial_entries_log2()
        } else {
            self.granule.stride()
        }
    }

    /// log2 of size and alignment in bytes of the initial table, concatenated ones
    /// included: at least 64 bytes, where output addresses have more than 48 bits.
    #[inline]
    pub fn initial_size_log2(&self) -> u8 {
        let least = if self.output_bits > 48 { 6 } else { 0 };
        (self.initial_entries_log2() + 3).max(least)
    }

    /// The index into the table at `level` for an input address in range. For the
    /// initial level this counts across concatenated tables.
    #[inline]
    pub fn index(&self, level: i8, input: u64) -> u64 {
        let shift = self.shift(level);
        let bits = if level == self.initial_level {
            self.input_bits
        } else {
            shift + self.granule.stride()
        };
        (input & low_bits(bits)) >> shift
    }

    /// The address in a descriptor: of the next table, or of a leaf whose lower
    /// bits are still to be cleared down from its size.
    #[inline]
    pub fn address(&self, descriptor: u64) -> u64 {
        self.field.decode(descriptor)
    }

    #[inline]
    pub(crate) fn field(&self) -> AddressField {
        self.field
    }

    /// Whether an address has bits above the effective output size.
    #[inline]
    pub fn is_beyond_output(&self, address: u64) -> bool {
        address >> self.output_bits != 0
    }

    /// The reverse of [`address`](Self::address), for an address that is
    /// page-aligned and within the output size.
    #[inline]
    pub fn address_field(&self, address: u64) -> u64 {
        self.field.encode(address)
    }

    /// The first address after `address` that differs from it in scattered bits, so
    /// that up to there the field counts like the address.
    #[inline]
    pub(crate) fn straight_end(&self, address: u64) -> u64 {
        let top = if self.ds { 50 } else { 48 };
        ((address >> top) + 1) << top
    }

    /// The bits that hold the address of a leaf of 2^`shift` bytes.
    #[inline]
    pub(crate) fn leaf_address_mask(&self, shift: u8) -> u64 {
        self.field.straight & !low_bits(shift) | self.field.scattered
    }

    /// The bits of a descriptor that hold its address.
    #[inline]
    pub fn address_mask(&self) -> u64 {
        self.field.straight | self.field.scattered
    }
}

const fn max_output(granule: Granule, ds: bool) -> u8 {
    if ds || matches!(granule, Granule::K64) { 52 } else { 48 }
}

/// Bits `high` to `low`, both included.
const fn bits(high: u8, low: u8) -> u64 {
    low_bits(high + 1) & !low_bits(low)
}

/// The lowest `count` bits, of which there are fewer than 64.
#[inline]
pub(crate) const fn low_bits(count: u8) -> u64 {
    (1 << count) - 1
}
