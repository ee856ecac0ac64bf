//! Named bit fields over words.
//!
//! Every encoding of this module is a view over its raw words: the bits stay as software wrote
//! them, and a getter reads one field. The macro `fields!` declares such a view in the notation of
//! the specification, which numbers the bits of a structure through all its words.

use std::fmt::{self, Write};

/// One field of a view: its name in the specification and the bits it occupies.
#[derive(Clone, Copy)]
pub struct Field {
    /// Name as the specification spells it.
    pub name: &'static str,
    /// Highest bit, counted through all words.
    pub high: u32,
    /// Lowest bit, counted through all words.
    pub low: u32,
    pub(super) address: bool,
    pub(super) meaning: fn(u64) -> &'static str,
}

impl Field {
    /// Number of bits.
    #[must_use]
    pub const fn width(&self) -> u32 {
        self.high - self.low + 1
    }

    fn bits(&self, words: &[u64]) -> u64 {
        words.get(self.low as usize / 64).copied().unwrap_or(0) & mask(self.high, self.low)
    }

    /// The field's value in `words`; an address as the address that it stands for. Words that are missing are zero.
    #[must_use]
    pub fn value(&self, words: &[u64]) -> u64 {
        let bits = self.bits(words);
        if self.address { bits } else { bits >> (self.low % 64) }
    }

    /// What the field says in `words`, where the specification gives its values names.
    #[must_use]
    pub fn meaning(&self, words: &[u64]) -> Option<&'static str> {
        let meaning = (self.meaning)(self.bits(words) >> (self.low % 64));
        Some(meaning).filter(|meaning| !meaning.is_empty())
    }
}

impl fmt::Debug for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} [{}:{}]", self.name, self.high, self.low)
    }
}

/// The raw words a view stands on.
pub(super) trait Words {
    /// Word `index`, 64 bits each.
    fn word(&self, index: usize) -> u64;
    /// Replaces word `index`.
    fn set_word(&mut self, index: usize, value: u64);
}

impl<const N: usize> Words for [u64; N] {
    #[inline]
    fn word(&self, index: usize) -> u64 {
        self[index]
    }
    #[inline]
    fn set_word(&mut self, index: usize, value: u64) {
        self[index] = value;
    }
}

impl Words for u64 {
    #[inline]
    fn word(&self, _: usize) -> u64 {
        *self
    }
    #[inline]
    fn set_word(&mut self, _: usize, value: u64) {
        *self = value;
    }
}

impl Words for u32 {
    #[inline]
    fn word(&self, _: usize) -> u64 {
        u64::from(*self)
    }
    #[inline]
    fn set_word(&mut self, _: usize, value: u64) {
        *self = value as u32;
    }
}

/// The bits of field `[high:low]` within its word. No field crosses a word.
#[inline]
pub(super) const fn mask(high: u32, low: u32) -> u64 {
    (u64::MAX >> (63 - (high - low))) << (low % 64)
}

/// Field `[high:low]`, its lowest bit at bit 0.
#[inline]
pub(super) fn get(words: &impl Words, high: u32, low: u32) -> u64 {
    in_place(words, high, low) >> (low % 64)
}

/// Field `[high:low]` where it stands: what an address field holds is the address.
#[inline]
pub(super) fn in_place(words: &impl Words, high: u32, low: u32) -> u64 {
    words.word(low as usize / 64) & mask(high, low)
}

/// Replaces field `[high:low]` by the low bits of `value`.
#[inline]
pub(super) fn set(words: &mut impl Words, high: u32, low: u32, value: u64) {
    set_in_place(words, high, low, value << (low % 64));
}

/// Replaces field `[high:low]` by the same bits of `value`.
#[inline]
pub(super) fn set_in_place(words: &mut impl Words, high: u32, low: u32, value: u64) {
    let (index, mask) = (low as usize / 64, mask(high, low));
    let word = words.word(index);
    words.set_word(index, word & !mask | value & mask);
}

/// Writes one line per field: `Config = 0b101: stage 1 translates, stage 2 bypasses`.
///
/// Fields that are zero, and whose zero has no meaning of its own, are left out unless the
/// alternate form (`{:#}`) is asked for.
pub(super) fn display(
    words: &impl Words,
    fields: &[Field],
    f: &mut fmt::Formatter<'_>,
) -> fmt::Result {
    let mut first = true;
    for field in fields {
        let value = get(words, field.high, field.low);
        let meaning = (field.meaning)(value);
        if value == 0 && meaning.is_empty() && !f.alternate() {
            continue;
        }
        if !first {
            f.write_char('\n')?;
        }
        first = false;
        write!(f, "{} = ", field.name)?;
        match field.width() {
            _ if field.address => write!(f, "{:#x}", in_place(words, field.high, field.low))?,
            1 | 5..=31 => write!(f, "{value}")?,
            width @ 2..=4 => write!(f, "0b{value:0width$b}", width = width as usize)?,
            _ => write!(f, "{value:#x}")?,
        }
        if !meaning.is_empty() {
            write!(f, ": {meaning}")?;
        }
    }
    if first {
        f.write_str("all fields 0")?;
    }
    Ok(())
}

/// Declares a view: a struct over raw words with a getter and a builder for each field, a table
/// of the fields, and a `Display` that explains what is set.
///
/// ```text
/// config, with_config: u8 = "Config" [3:1] { 0b100 => "bypass" };
/// ```
///
/// The type is `bool` for one bit, `address` for an address that stands in place (low bits zero),
/// or the smallest unsigned integer that holds the field.
macro_rules! fields {
    (
        $(#[$meta:meta])*
        $vis:vis struct $name:ident($inner:vis $raw:ty) {
            $(
                $(#[$field_meta:meta])*
                $get:ident, $with:ident: $kind:ident = $label:literal
                    [$high:literal $(: $low:literal)?]
                    $({ $($value:pat => $meaning:literal),+ $(,)? })?;
            )+
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
        $vis struct $name($inner $raw);

        #[allow(dead_code)]
        impl $name {
            /// The fields, from the lowest bit up.
            $vis const FIELDS: &'static [$crate::wire::field::Field] = &[
                $($crate::wire::field::Field {
                    name: $label,
                    high: $high,
                    low: $crate::wire::field::fields!(@low $high $($low)?),
                    address: $crate::wire::field::fields!(@is_address $kind),
                    meaning: {
                        fn meaning(value: u64) -> &'static str {
                            match value {
                                $($($value => $meaning,)+)?
                                _ => "",
                            }
                        }
                        meaning
                    },
                },)+
            ];

            $(
                #[doc = concat!("`", $label, "`, bits ", $high $(, ":", $low)?, ".")]
                $(#[$field_meta])*
                #[inline]
                $vis fn $get(&self) -> $crate::wire::field::fields!(@type $kind) {
                    $crate::wire::field::fields!(
                        @get $kind &self.0, $high, $crate::wire::field::fields!(@low $high $($low)?)
                    )
                }

                #[doc = concat!("Replaces `", $label, "`; bits beyond the field are dropped.")]
                #[inline]
                #[must_use]
                $vis fn $with(mut self, value: $crate::wire::field::fields!(@type $kind)) -> Self {
                    $crate::wire::field::fields!(
                        @set $kind &mut self.0,
                        $high,
                        $crate::wire::field::fields!(@low $high $($low)?),
                        value
                    );
                    self
                }
            )+
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                $crate::wire::field::display(&self.0, Self::FIELDS, f)
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, concat!(stringify!($name), "({:x?})"), self.0)
            }
        }
    };

    (@low $high:literal $low:literal) => { $low };
    (@low $high:literal) => { $high };
    (@is_address address) => { true };
    (@is_address $kind:ident) => { false };
    (@type address) => { u64 };
    (@type $kind:ident) => { $kind };
    (@get bool $words:expr, $high:expr, $low:expr) => {
        $crate::wire::field::get($words, $high, $low) != 0
    };
    (@get address $words:expr, $high:expr, $low:expr) => {
        $crate::wire::field::in_place($words, $high, $low)
    };
    (@get u64 $words:expr, $high:expr, $low:expr) => {
        $crate::wire::field::get($words, $high, $low)
    };
    (@get $kind:ident $words:expr, $high:expr, $low:expr) => {
        $crate::wire::field::get($words, $high, $low) as $kind
    };
    (@set address $words:expr, $high:expr, $low:expr, $value:expr) => {
        $crate::wire::field::set_in_place($words, $high, $low, $value)
    };
    (@set $kind:ident $words:expr, $high:expr, $low:expr, $value:expr) => {
        $crate::wire::field::set($words, $high, $low, u64::from($value))
    };
}
pub(super) use fields;
