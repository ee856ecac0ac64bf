//! The words of memory that a translation is made from, and how one of them has changed.

use std::fmt;

use pagetable::format;

use crate::explain::{Explanation, Step};
use crate::wire::field::Field;
use crate::wire::{Cd, Class, L1Cd, L1Std, Ste};

/// What a word of memory is to a translation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// A level 1 stream table descriptor.
    L1Std,
    /// A word of an STE: bits `64 * word` and up.
    Ste {
        /// From 0.
        word: u8,
    },
    /// A level 1 CD descriptor.
    L1Cd,
    /// A word of a CD.
    Cd {
        /// From 0.
        word: u8,
    },
    /// A stage 1 translation table descriptor.
    Stage1 {
        /// The level of its table.
        level: i8,
    },
    /// A stage 2 translation table descriptor.
    Stage2 {
        /// The level of its table.
        level: i8,
        /// The address that it translates (IPA).
        ipa: u64,
        /// What is there: a CD, a stage 1 table, or the data.
        class: Class,
    },
}

/// A word that a translation depends on, and what it was and is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// What it is.
    pub place: Place,
    /// Where it is (PA).
    pub address: u64,
    /// What it held when the cache was filled from it.
    pub was: u64,
    /// What it holds now.
    pub is: u64,
}

/// A word as a walk has read it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Word {
    pub(super) place: Place,
    pub(super) address: u64,
    pub(super) value: u64,
}

/// Words of an STE or CD that a translation can depend on.
const CONFIGURED: usize = 4;

/// The words that a translation has read, in order.
pub(super) fn words(explanation: &Explanation) -> Vec<Word> {
    let mut words = Vec::with_capacity(16);
    let mut stage2 = (0, Class::In);
    for step in &explanation.steps {
        match *step {
            Step::L1Std { address, l1std } => {
                words.push(Word { place: Place::L1Std, address, value: l1std.0 });
            }
            Step::Ste { address, ste } => {
                words.extend(ste.0.iter().zip(0..CONFIGURED as u8).map(|(&value, word)| Word {
                    place: Place::Ste { word },
                    address: address + 8 * u64::from(word),
                    value,
                }));
            }
            Step::L1Cd { physical, l1cd, .. } => {
                words.push(Word { place: Place::L1Cd, address: physical, value: l1cd.0 });
            }
            Step::Cd { physical, cd, .. } => {
                words.extend(cd.0.iter().zip(0..CONFIGURED as u8).map(|(&value, word)| Word {
                    place: Place::Cd { word },
                    address: physical + 8 * u64::from(word),
                    value,
                }));
            }
            Step::Stage2 { ipa, class } => stage2 = (ipa, class),
            Step::Descriptor { stage, physical, step } => {
                let level = step.level;
                let place = if stage == 1 {
                    Place::Stage1 { level }
                } else {
                    Place::Stage2 { level, ipa: stage2.0, class: stage2.1 }
                };
                words.push(Word { place, address: physical, value: step.descriptor });
            }
            _ => {}
        }
    }
    words
}

/// The same after the hardware updates that the walk of a transaction makes.
pub(super) fn words_after(explanation: &Explanation) -> Vec<Word> {
    let mut words = words(explanation);
    for step in &explanation.steps {
        if let Step::Updated { address, new, .. } = *step
            && let Some(word) = words.iter_mut().find(|word| word.address == address)
        {
            word.value = new;
        }
    }
    words
}

/// Whether a transaction, if it walks, marks a page dirty.
pub(super) fn marks_dirty(explanation: &Explanation) -> bool {
    // In one stage the bit is set, in the other cleared.
    const DIRTY: u64 = format::AP_READ_ONLY | format::S2AP_WRITE;
    explanation
        .steps
        .iter()
        .any(|step| matches!(step, Step::Updated { old, new, .. } if (old ^ new) & DIRTY != 0))
}

/// The words of the configuration among them: up to the CD.
pub(super) fn configuration(words: &[Word]) -> &[Word] {
    let is_configuration = |word: &Word| match word.place {
        Place::L1Std | Place::Ste { .. } | Place::L1Cd | Place::Cd { .. } => true,
        Place::Stage2 { class, .. } => class == Class::Cd,
        Place::Stage1 { .. } => false,
    };
    let end = words.iter().position(|word| !is_configuration(word)).unwrap_or(words.len());
    &words[..end]
}

/// The first word of the walk `now` that had another value in the walk `then`. Both begin at the stream table, so up to
/// the first change they read the same words.
pub(super) fn first_change(then: &[Word], now: &[Word]) -> Option<Change> {
    // What hardware itself updates is no change, unless nothing else is.
    find(then, now, significant).or_else(|| find(then, now, |word| word.value))
}

fn find(then: &[Word], now: &[Word], value: impl Fn(&Word) -> u64) -> Option<Change> {
    now.iter().find_map(|is| {
        let was = then.iter().find(|was| was.address == is.address)?;
        (value(was) != value(is)).then_some(Change {
            place: is.place,
            address: is.address,
            was: was.value,
            is: is.value,
        })
    })
}

/// A descriptor without what hardware updates: the Access flag and, with DBM, the dirty state.
fn significant(word: &Word) -> u64 {
    match word.place {
        Place::Stage1 { .. } | Place::Stage2 { .. } if word.value & format::VALID != 0 => {
            let dirty = if word.value & format::DBM != 0 { format::AP_READ_ONLY } else { 0 };
            word.value & !(format::AF | dirty)
        }
        _ => word.value,
    }
}

impl Change {
    /// A translation table descriptor on the way to the data, not to the CD.
    pub(super) fn is_of_translation(&self) -> bool {
        match self.place {
            Place::Stage1 { .. } => true,
            Place::Stage2 { class, .. } => class != Class::Cd,
            _ => false,
        }
    }

    /// Whether what was there was a block or page, not a table.
    pub(super) fn was_leaf(&self) -> bool {
        let (Place::Stage1 { level } | Place::Stage2 { level, .. }) = self.place else {
            return true;
        };
        level == pagetable::LAST_LEVEL || self.was & format::TABLE == 0
    }

    /// Fields of the word that differ, with both values.
    fn fields(&self) -> Vec<String> {
        let (fields, word, size): (&[Field], _, _) = match self.place {
            Place::L1Std => (L1Std::FIELDS, 0, 1),
            Place::Ste { word } => (Ste::FIELDS, usize::from(word), 8),
            Place::L1Cd => (L1Cd::FIELDS, 0, 1),
            Place::Cd { word } => (Cd::FIELDS, usize::from(word), 8),
            Place::Stage1 { .. } | Place::Stage2 { .. } => return Vec::new(),
        };
        let whole = |value| {
            let mut words = vec![0; size];
            words[word] = value;
            words
        };
        let (was, is) = (whole(self.was), whole(self.is));
        let show = |field: &Field, words: &[u64]| {
            let value = field.value(words);
            match field.meaning(words) {
                Some(meaning) => format!("{value:#x} ({meaning})"),
                None => format!("{value:#x}"),
            }
        };
        fields
            .iter()
            .filter(|field| field.low as usize / 64 == word)
            .filter(|field| field.value(&was) != field.value(&is))
            .map(|field| format!("{}: {} -> {}", field.name, show(field, &was), show(field, &is)))
            .collect()
    }

    fn descriptor(&self, value: u64) -> &'static str {
        let stage2 = matches!(self.place, Place::Stage2 { .. });
        let (Place::Stage1 { level } | Place::Stage2 { level, .. }) = self.place else { return "" };
        let last = level == pagetable::LAST_LEVEL;
        match (value & format::VALID != 0, value & format::TABLE != 0, last) {
            (false, ..) => return "invalid",
            (true, true, false) => return "a table",
            (true, false, true) => return "reserved: invalid",
            _ => {}
        }
        // Stage 1 takes write permission away with the bit by which stage 2 grants it.
        let write = value & format::AP_READ_ONLY != 0;
        match (last, stage2, value & format::S2AP_READ != 0, write) {
            (true, false, _, false) | (true, true, true, true) => "a page, writable",
            (true, false, _, true) | (true, true, true, false) => "a page, read-only",
            (true, true, false, true) => "a page, write-only",
            (true, true, false, false) => "a page without access",
            (false, false, _, false) | (false, true, true, true) => "a block, writable",
            (false, false, _, true) | (false, true, true, false) => "a block, read-only",
            (false, true, false, true) => "a block, write-only",
            (false, true, false, false) => "a block without access",
        }
    }

    /// What became of the word, in lines: the values, and what differs in them.
    pub(super) fn details(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if matches!(self.place, Place::Stage1 { .. } | Place::Stage2 { .. }) {
            lines.push(format!("was {:#018x}  {}", self.was, self.descriptor(self.was)));
            lines.push(format!("now {:#018x}  {}", self.is, self.descriptor(self.is)));
        } else {
            lines.push(format!("was {:#018x}", self.was));
            lines.push(format!("now {:#018x}", self.is));
            lines.extend(self.fields());
        }
        lines
    }
}

impl fmt::Display for Change {
    /// What the word is and where: `the stage 1 level 3 descriptor at 0x1a028`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.place {
            Place::L1Std => write!(f, "the level 1 stream table descriptor")?,
            Place::Ste { word } => write!(f, "word {word} of the STE")?,
            Place::L1Cd => write!(f, "the level 1 CD descriptor")?,
            Place::Cd { word } => write!(f, "word {word} of the CD")?,
            Place::Stage1 { level } => write!(f, "the stage 1 level {level} descriptor")?,
            Place::Stage2 { level, ipa, class } => {
                let of = match class {
                    Class::Cd => " of the CD",
                    Class::Tt => " of a stage 1 table",
                    _ => "",
                };
                write!(f, "the stage 2 level {level} descriptor for IPA {ipa:#x}{of}")?;
            }
        }
        write!(f, " at {:#x}", self.address)
    }
}
