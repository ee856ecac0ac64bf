//! Devices' own caches: what a device was told by ATS, against what the tables say when it uses it.

use super::check::{Answer, Asked, Checker, Difference, Seen, Served};
use super::ledger::{NoteKey, Noted, PageKey, Told};
use super::report::StaleCache;
use super::scope::Scope;
use super::words::{first_change, words, words_after};
use crate::ats::{AtsRequest, AtsTranslation};
use crate::config::{Context, Eats};
use crate::explain::Step;
use crate::platform::Memory;
use crate::smmu::Smmu;
use crate::sync::Fence;
use crate::transaction::{Refused, Transaction, Translation};
use crate::wire::{Class, Event};

/// The untranslated access that a translated one stands for.
fn untranslated(transaction: &Transaction, substream_id: Option<u32>, told: &Told) -> Transaction {
    Transaction {
        substream_id,
        address: told.address + (transaction.address - told.output),
        privileged: told.privileged,
        instruction: false,
        translated: false,
        ..*transaction
    }
}

/// What a device is told as the translated address: where stage 1 ends, under split-stage ATS.
fn translated_address(split: bool, answer: &Answer) -> Option<u64> {
    let output = answer.0.as_ref().ok()?.address;
    let ipa = |step: &Step| match *step {
        Step::Stage2 { ipa, class: Class::In } => Some(ipa),
        _ => None,
    };
    if split { answer.1.steps.iter().rev().find_map(ipa) } else { Some(output) }
}

impl<M: Memory, F: Fence> Smmu<M, F> {
    /// The configuration of a stream as memory says.
    fn configured(&self, stream_id: u32, substream_id: Option<u32>) -> Option<Context> {
        let mut context = self.fetch_ste(stream_id, &mut ()).ok()?;
        self.fetch_cd(&mut context, substream_id, None, &mut ()).ok()?;
        Some(context)
    }

    /// A device was told a translation. Remembers it, and compares it with memory as the answer to an access.
    pub(crate) fn told(
        &self,
        checker: &Checker,
        asked: Asked,
        request: &AtsRequest,
        translation: &AtsTranslation,
    ) {
        let (substream_id, size) = (request.substream_id, u32::from(translation.size_log2));
        let Some(context) = self.configured(request.stream_id, substream_id) else { return };
        let access = Transaction {
            substream_id,
            write: !translation.read,
            privileged: request.privileged,
            ..Transaction::read(request.stream_id, request.address)
        };
        let answer = self.explain(&access);
        let split = context.eats == Eats::SplitStage;
        let offset = request.address & ((1u64 << size) - 1);
        let right = translated_address(split, &answer) == Some(translation.address + offset);
        let words = if right {
            words_after(&answer.1)
        } else {
            checker.ledger().path(context.page(&access)).to_vec()
        };
        let told = Told {
            address: request.address - offset,
            output: translation.address,
            size,
            privileged: request.privileged,
            write: translation.write,
            split,
            words,
        };
        checker.ledger().tell(request.stream_id, substream_id, told, asked.atc_invalidations);
        if !split {
            let likely = answer.0.as_ref().map_or_else(
                |_| context.attributes(&access, access.attributes),
                |answer| answer.attributes,
            );
            let used = Translation {
                address: translation.address + offset,
                length: (1 << size) - offset,
                attributes: likely,
                privileged: context.wanted(&access).privileged,
                instruction: context.wanted(&access).instruction,
            };
            self.judge(
                checker,
                &Served {
                    transaction: &access,
                    first: answer,
                    since: asked.executed,
                    used: Ok(used),
                    entry: None,
                    context: Some(&context),
                    origin: None,
                },
            );
        }
    }

    /// Compares a transaction whose address ATS has translated with memory.
    pub(crate) fn judge_translated(
        &self,
        checker: &Checker,
        since: u64,
        transaction: &Transaction,
        used: Result<Translation, Refused>,
    ) {
        checker.count();
        let Ok(translation) = &used else { return };
        self.judge_split(checker, since, transaction, translation);
        let told = checker.ledger().told(transaction.stream_id, transaction.address);
        let mut oldest = None;
        for (substream_id, told) in told {
            if transaction.write && !told.write {
                // The device's fault if it means this one.
                continue;
            }
            let access = untranslated(transaction, substream_id, &told);
            let current =
                |answer: &_| translated_address(told.split, answer) == Some(transaction.address);
            if current(&self.explain(&access)) {
                // One that is right is enough: the device does not say from which it has the address.
                let what = Noted::Atc(told.address >> 12);
                return checker.ledger().settle(NoteKey::of(&access, what));
            }
            let second = self.explain(&access);
            if !current(&second) {
                oldest = Some((substream_id, told, access, second));
            }
        }
        let Some((substream_id, told, access, now)) = oldest else { return };
        let change = first_change(&told.words, &words(&now.1));
        let scope = Scope::Atc {
            sid: transaction.stream_id,
            ssid: substream_id,
            address: told.address,
            size: told.size,
        };
        let difference = Difference {
            key: NoteKey::of(&access, Noted::Atc(told.address >> 12)),
            scope,
            cache: StaleCache::Atc,
            change,
            taken_away: now.0.is_err() && change.is_none_or(|change| change.is_of_translation()),
        };
        let context = self.configured(transaction.stream_id, substream_id);
        let seen = Seen {
            transaction: Transaction { address: access.address, substream_id, ..*transaction },
            context: context.as_ref(),
            since,
            used,
            permissions: None,
        };
        self.conclude(checker, &difference, &seen, now);
    }

    /// Compares what stage 2 made of the IPA that a device under split-stage ATS has used.
    fn judge_split(
        &self,
        checker: &Checker,
        since: u64,
        transaction: &Transaction,
        used: &Translation,
    ) {
        let Some(context) = self.configured(transaction.stream_id, None) else { return };
        if context.eats != Eats::SplitStage {
            return;
        }
        let (now, explanation) = self.explain(transaction);
        let key = PageKey {
            regime: context.vm.regime,
            tag: context.vm.tag,
            page: transaction.address >> 12,
        };
        let note = NoteKey {
            stream_id: transaction.stream_id,
            substream_id: None,
            what: Noted::Split(transaction.address >> 12),
        };
        let right = |found: &Result<Translation, Event>| {
            found.is_ok_and(|found| found.address == used.address)
        };
        if right(&now) {
            let mut ledger = checker.ledger();
            ledger.settle(note);
            return ledger.agree(key, words_after(&explanation), false);
        }
        if right(&self.explain(transaction).0) {
            return;
        }
        let memory = words(&explanation);
        let change = first_change(checker.ledger().path(key), &memory);
        let stage2_only = Context { stage1: None, ..context };
        let scope = stage2_only.scope(change.as_ref(), transaction.address);
        let difference = Difference {
            key: note,
            scope,
            cache: StaleCache::Walk,
            change,
            taken_away: now.is_err() && change.is_none_or(|change| change.is_of_translation()),
        };
        let seen = Seen {
            transaction: Transaction { substream_id: None, ..*transaction },
            context: Some(&stage2_only),
            since,
            used: Ok(*used),
            permissions: None,
        };
        self.conclude(checker, &difference, &seen, (now, explanation));
    }
}
