//! What the two SMMUs say of one transaction, compared.

use smmuv3::wire::Event;
use smmuv3::{AtsError, AtsTranslation, Attributes, Refused, Shareability, Translation};

use crate::naive::ats::{Completion, Rights};
use crate::naive::attributes::{Attributes as NaiveAttributes, Cache, Hints, Memory, Share};
use crate::naive::{Answer, End};

pub(crate) fn compare_end(
    answer: &Answer,
    found: &Result<Translation, Refused>,
) -> Result<(), String> {
    match (answer.end, found) {
        (End::Done { pa, attributes, privileged, instruction }, Ok(translation)) => {
            if pa != translation.address {
                return Err("addresses differ".into());
            }
            if (privileged, instruction) != (translation.privileged, translation.instruction) {
                return Err("overrides differ".into());
            }
            let expected = in_mair(attributes);
            if !answer.vague && expected != translation.attributes {
                return Err(format!("attributes differ: {expected:x?} expected"));
            }
            Ok(())
        }
        (End::Abort, Err(Refused::Abort))
        | (End::RazWi, Err(Refused::RazWi))
        | (End::Stall, Err(Refused::Stalled { .. })) => Ok(()),
        _ => Err("ends differ".into()),
    }
}

pub(crate) fn compare_record(
    answer: &Answer,
    found: &Result<Translation, Refused>,
    count: u32,
    record: Option<[u64; 4]>,
) -> Result<(), String> {
    match (answer.record, record) {
        (None, None) => Ok(()),
        (Some(expected), Some(record)) if count == 1 => {
            for (n, word) in record.iter().enumerate() {
                if (expected.words[n] ^ word) & expected.known[n] != 0 {
                    return Err(format!("word {n} of the record differs"));
                }
            }
            match found {
                Err(Refused::Stalled { stag }) if u64::from(*stag) != record[1] & 0xffff => {
                    Err("STAG differs".into())
                }
                _ => Ok(()),
            }
        }
        _ => Err(format!("{count} records")),
    }
}

/// The model's explanation of what it would do agrees with the naive SMMU, too.
pub(crate) fn compare_explained(
    answer: &Answer,
    said: &Result<Translation, Event>,
) -> Result<(), String> {
    match (answer.end, answer.record, said) {
        (End::Done { .. }, _, Ok(translation)) => compare_end(answer, &Ok(*translation)),
        (End::Abort | End::RazWi | End::Stall, None, Err(_)) => Ok(()),
        (_, Some(expected), Err(event)) => {
            let (said, mut known) = (event.encode(), expected.known);
            // Nothing stalls for an explanation.
            known[1] &= !(1 << 31);
            let differs = |n: usize| (expected.words[n] ^ said[n]) & known[n] != 0;
            if (0..4).any(differs) { Err(format!("explained by {event}")) } else { Ok(()) }
        }
        _ => Err(format!("explained by {said:x?}")),
    }
}

/// All that must be updated was, and nothing but what may be.
pub(crate) fn compare_updates(answer: &Answer, log: &[(u64, u64)]) -> Result<(), String> {
    let last = |address: u64| log.iter().rfind(|(at, _)| *at == address).map(|(_, word)| *word);
    for (n, update) in answer.must.iter().enumerate() {
        let again = answer.must[n + 1..].iter().any(|later| later.address == update.address);
        let last = last(update.address);
        let perhaps =
            answer.may.iter().any(|may| may.address == update.address && last == Some(may.value));
        if !again && !perhaps && last != Some(update.value) {
            return Err(format!("no update of {:#x} to {:#x}", update.address, update.value));
        }
    }
    for (address, word) in log {
        let mut allowed = answer.must.iter().chain(&answer.may).chain(&answer.passed);
        if !allowed.any(|update| (update.address, update.value) == (*address, *word)) {
            return Err(format!("update of {address:#x} to {word:#x}"));
        }
    }
    Ok(())
}

/// A Translation Request for `address`.
pub(crate) fn compare_completion(
    completion: Completion,
    address: u64,
    found: &Result<AtsTranslation, AtsError>,
) -> Result<(), String> {
    match (completion, found) {
        (Completion::UnsupportedRequest, Err(AtsError::UnsupportedRequest))
        | (Completion::CompleterAbort, Err(AtsError::CompleterAbort)) => Ok(()),
        (Completion::Granted(output, rights), Ok(found)) => {
            let granted = Rights { read: found.read, write: found.write, execute: found.execute };
            let offset = (1 << found.size_log2) - 1;
            if granted != rights {
                return Err("rights differ".into());
            }
            let there = found.address | address & offset;
            if rights != Rights::default() && (there != output || found.address & offset != 0) {
                return Err("translated addresses differ".into());
            }
            Ok(())
        }
        _ => Err("completions differ".into()),
    }
}

/// As the model's interface has them: a byte as in MAIR.
pub(crate) fn in_mair(attributes: NaiveAttributes) -> Attributes {
    let nibble = |(cache, hints): (Cache, Hints)| {
        let rw = u8::from(hints.read) << 1 | u8::from(hints.write);
        match (cache, hints.transient) {
            (Cache::Nc, _) => 0b0100,
            (Cache::Wt, true) => rw,
            (Cache::Wb, true) => 0b0100 | rw,
            (Cache::Wt, false) => 0b1000 | rw,
            (Cache::Wb, false) => 0b1100 | rw,
        }
    };
    let memory = match attributes.memory {
        Memory::Device(kind) => (kind << 2) as u8,
        Memory::Normal([inner, outer]) => nibble(outer) << 4 | nibble(inner),
    };
    let shareability = match attributes.share {
        Share::Non => Shareability::NonShareable,
        Share::Inner => Shareability::Inner,
        Share::Outer => Shareability::Outer,
    };
    Attributes { memory, shareability }
}
