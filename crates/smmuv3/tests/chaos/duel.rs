//! Both SMMUs on the same transactions, and the comparison.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use smmuv3::{
    AtsError, AtsRequest, AtsTranslation, Options, Refused, Stale, StaleCache, Transaction,
    Translation,
};

use super::dice::Dice;
use super::live::{Invalidation, Issued, invalidation};
use super::plan::Plan;
use super::rig::Rig;
use super::verdict::{
    compare_completion, compare_end, compare_explained, compare_record, compare_updates, in_mair,
};
use crate::naive::ats::Completion;
use crate::naive::attributes::{Attributes as NaiveAttributes, Cache, Hints, Memory, Share};
use crate::naive::{
    Answer, End, Incoming, Read, Role, Words, answer, answer_request, answer_translated,
};

/// What came of many cases.
#[derive(Clone, Default, Debug)]
pub(crate) struct Tally {
    pub cases: u64,
    pub translated: u64,
    /// Translation Requests that were granted something.
    pub granted: u64,
    pub events: u64,
    pub stalls: u64,
    pub updates: u64,
    /// Tags whose configuration differs, so that everything had to be invalidated in between.
    pub conflicts: u64,
    /// Changes of tables that were in use.
    pub changes: u64,
    /// Differences that were gone after an invalidation which hardware updates made necessary.
    pub stale: u64,
    /// The tables are such that anything may happen.
    pub unpredictable: u64,
    /// By event number.
    pub kinds: BTreeMap<u64, u64>,
}

/// A case on which the two do not agree.
pub(crate) struct Difference {
    pub seed: u64,
    pub case: u64,
    pub what: String,
    incoming: Incoming,
    answer: Answer,
    kind: Kind,
    completion: Option<Completion>,
    found: Found,
    record: Option<[u64; 4]>,
    log: Vec<(u64, u64)>,
    plan: Plan,
    /// How the model explains what it would do now.
    explanation: String,
}

impl fmt::Debug for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.what)?;
        writeln!(f, "seed {:#x} case {}", self.seed, self.case)?;
        writeln!(f, "{:#x?}", self.incoming)?;
        writeln!(f, "naive to {:?}: {:x?} {:x?}", self.kind, self.answer.end, self.completion)?;
        writeln!(f, "model: {:x?}", self.found)?;
        writeln!(f, "naive record: {:x?}", self.answer.record.map(|record| record.words))?;
        writeln!(f, "model record: {:x?}", self.record)?;
        writeln!(f, "naive updates: {:x?} perhaps {:x?}", self.answer.must, self.answer.may)?;
        writeln!(f, "model updates: {:x?}", self.log)?;
        writeln!(f, "{:#x?}", self.answer.tags)?;
        writeln!(f, "{:x?}", self.plan)?;
        write!(f, "explained: {}", self.explanation)
    }
}

/// How the SMMU is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    /// By an ordinary transaction.
    Ordinary,
    /// By one whose address ATS has translated.
    Translated,
    /// By an ATS Translation Request.
    Request,
}

/// What the model says.
#[derive(Clone, Copy, Debug)]
enum Found {
    Transaction(Result<Translation, Refused>),
    Request(Result<AtsTranslation, AtsError>),
}

/// An SMMU of some kind under examination.
pub(crate) struct Duel {
    rig: Rig,
    pub(crate) tally: Tally,
    /// The configuration that each tag stands for since the last invalidation.
    tags: HashMap<(u64, u64, Option<u64>), Option<[u64; 8]>>,
    stage2: HashMap<u64, Option<[u64; 3]>>,
    /// Descriptors were updated since.
    updated: bool,
    /// What caches may remember.
    history: Vec<Issued>,
}

impl Duel {
    pub(crate) fn new(options: &Options) -> Self {
        Self {
            rig: Rig::new(options),
            tally: Tally::default(),
            tags: HashMap::new(),
            stage2: HashMap::new(),
            updated: false,
            history: Vec::new(),
        }
    }

    /// The same with the checker for stale translations, which is to report none: the software of these worlds
    /// invalidates what it must, before the next transaction.
    pub(crate) fn checked(options: &Options) -> Self {
        let duel = Self::new(options);
        duel.rig.check_stale();
        duel
    }

    /// One world and its transactions; `only` one of them, if that is asked for.
    pub(crate) fn world(&mut self, seed: u64, only: Option<u64>) -> Result<(), Box<Difference>> {
        let plan = Plan::new(seed, &self.rig.features);
        self.rig.enter(&plan);
        self.forget();
        let d = &mut Dice::new(seed, 2);
        let streams: [_; 5] = std::array::from_fn(|_| self.stream(&plan, d));
        let addresses = streams.map(|stream| [(); 4].map(|()| self.address(&plan, stream, d)));
        for case in 0..100 {
            let which = d.below(5) as usize;
            let (stream, substream) = streams[which];
            let mut address = d.pick(&addresses[which]);
            if d.chance(500) {
                address ^= d.bits(12);
            }
            let incoming = Incoming {
                stream,
                substream,
                address,
                write: d.chance(450),
                privileged: d.chance(600),
                instruction: d.chance(250),
                attributes: incoming_attributes(d),
            };
            let probe = d.word();
            if plan.live && d.chance(150) {
                self.change(&plan, d);
            }
            if only.is_some_and(|only| only != case) {
                continue;
            }
            for _ in 0..2 {
                self.tally.cases += 1;
                let kind = match probe >> 8 & 0xf {
                    0 | 1 if self.rig.features.ats => Kind::Translated,
                    2 | 3 if self.rig.features.ats => Kind::Request,
                    _ => Kind::Ordinary,
                };
                self.case(&plan, kind, &incoming, probe).map_err(|mut difference| {
                    difference.case = case;
                    difference
                })?;
                if self.updated && !probe.is_multiple_of(4) {
                    // Otherwise pages would be accessed and dirty before long.
                    if probe % 4 != 1 {
                        self.rig.ram.restore();
                    }
                    self.flush();
                }
            }
        }
        Ok(())
    }

    /// A stream and substream, rather one whose configuration is found and in order.
    fn stream(&self, plan: &Plan, d: &mut Dice) -> (u32, Option<u32>) {
        let mut stream = (plan.stream(d), plan.substream(d));
        for _ in 0..d.below(16) {
            let sound = match self.answer(&probe(stream, 0)).record {
                Some(record) => record.words[0] & 0xff >= 0x0a,
                None => true,
            };
            if sound {
                break;
            }
            stream = (plan.stream(d), plan.substream(d));
        }
        stream
    }

    /// An address, rather one that is translated.
    fn address(&self, plan: &Plan, stream: (u32, Option<u32>), d: &mut Dice) -> u64 {
        let mut address = plan.address(d);
        for _ in 0..d.below(12) {
            if matches!(self.answer(&probe(stream, address)).end, End::Done { .. }) {
                break;
            }
            address = plan.address(d);
        }
        address
    }

    /// Software changes something that a recent transaction depended on, and invalidates what it must.
    fn change(&mut self, plan: &Plan, d: &mut Dice) {
        let Some(issued) = self.history.get(d.below(self.history.len().max(1) as u64) as usize)
        else {
            return;
        };
        if issued.trace.is_empty() {
            return;
        }
        let read = issued.trace[d.below(issued.trace.len() as u64) as usize];
        let whole = matches!(read.role, Role::Ste | Role::Cd);
        let (first, count) = if whole { (read.address & !63, 8) } else { (read.address, 1) };
        let other = plan.otherwise(d.word());
        for n in 0..count {
            let at = first + n * 8;
            let Some(mut word) = other.word(at) else { continue };
            if !whole && d.chance(200) {
                word = self.rig.ram.word(at).map_or(word, |old| old ^ 1);
            }
            self.rig.ram.poke(at, word);
        }
        self.tally.changes += 1;
        let changed = |read: &Read| {
            let words = if matches!(read.role, Role::Ste | Role::Cd) { 8 } else { 1 };
            read.address < first + count * 8 && first < read.address + words * 8
        };
        let mut all = Invalidation::default();
        for issued in &self.history {
            let one = invalidation(issued, &changed, &self.rig.features, d);
            for command in one.commands {
                if !all.commands.contains(&command) {
                    all.commands.push(command);
                }
            }
            all.forgotten.extend(one.forgotten);
        }
        if all.commands.len() > 50 {
            return self.flush();
        }
        for (world, vmid, both) in all.forgotten {
            self.tags.retain(|(w, v, _), _| (*w, *v) != (world, vmid));
            self.stage2.retain(|key, _| *key != combined(world, vmid) && (!both || *key != vmid));
        }
        self.rig.invalidate(&all.commands);
    }

    fn flush(&mut self) {
        self.rig.flush();
        self.forget();
    }

    fn forget(&mut self) {
        self.tags.clear();
        self.stage2.clear();
        self.updated = false;
        self.history.clear();
    }

    fn case(
        &mut self,
        plan: &Plan,
        kind: Kind,
        incoming: &Incoming,
        probe: u64,
    ) -> Result<(), Box<Difference>> {
        let mut outcome = self.attempt(plan, kind, incoming, probe);
        // Hardware updates may change a word that is more than one descriptor; and nobody invalidates ATCs here.
        let accused = |stale: &Stale| stale.cache != StaleCache::Atc && !self.updated;
        if let Some(stale) = self.rig.stale().into_iter().find(accused) {
            panic!("{stale}\n{}\nseed {:#x}", stale.explanation, plan.seed);
        }
        if outcome.is_err() && self.updated {
            self.flush();
            outcome = self.attempt(plan, kind, incoming, probe);
            self.tally.stale += u64::from(outcome.is_ok());
        }
        outcome
    }

    fn answer(&self, incoming: &Incoming) -> Answer {
        answer(&self.rig.features, &self.rig.registers, &*self.rig.ram, incoming)
    }

    fn completion(&self, incoming: &Incoming) -> (Completion, Answer) {
        answer_request(&self.rig.features, &self.rig.registers, &*self.rig.ram, incoming)
    }

    fn naive(&self, kind: Kind, incoming: &Incoming) -> (Option<Completion>, Answer) {
        let Rig { features, registers, ram, .. } = &self.rig;
        match kind {
            Kind::Ordinary => (None, self.answer(incoming)),
            Kind::Translated => (None, answer_translated(features, registers, &**ram, incoming)),
            Kind::Request => {
                let (completion, answer) = self.completion(incoming);
                (Some(completion), answer)
            }
        }
    }

    fn model(&mut self, kind: Kind, incoming: &Incoming) -> Found {
        let ordinary = transaction(incoming);
        match kind {
            Kind::Ordinary => Found::Transaction(self.rig.translate(&ordinary)),
            Kind::Translated => Found::Transaction(
                self.rig.translate(&Transaction { translated: true, ..ordinary }),
            ),
            Kind::Request => Found::Request(self.rig.ats_request(&AtsRequest {
                stream_id: incoming.stream,
                substream_id: incoming.substream,
                address: incoming.address,
                no_write: !incoming.write,
                privileged: incoming.privileged,
                execute: incoming.instruction,
            })),
        }
    }

    fn attempt(
        &mut self,
        plan: &Plan,
        kind: Kind,
        incoming: &Incoming,
        probe: u64,
    ) -> Result<(), Box<Difference>> {
        let (completion, answer) = self.naive(kind, incoming);
        if answer.unpredictable {
            self.tally.unpredictable += 1;
            return Ok(());
        }
        if self.conflict(&answer) {
            self.tally.conflicts += 1;
            self.flush();
            self.conflict(&answer);
        }
        // An explanation updates nothing, so it cannot know that an update is refused.
        let asked = Transaction { translated: kind == Kind::Translated, ..transaction(incoming) };
        let explained = (kind != Kind::Request && probe % 16 == 5 && plan.rom.0 == 0)
            .then(|| self.rig.explain(&asked).0);
        let found = self.model(kind, incoming);
        let (count, record) = self.rig.events();
        let log = self.rig.ram.take_log();
        self.updated |= !log.is_empty();
        self.tally.updates += log.len() as u64;
        self.tally.events += u64::from(count);
        if let Some(record) = record {
            *self.tally.kinds.entry(record[0] & 0xff).or_default() += 1;
        }
        if plan.live {
            self.history.push(Issued {
                stream: incoming.stream,
                substream: incoming.substream,
                address: incoming.address,
                tags: answer.tags,
                trace: answer.trace.clone(),
            });
        }
        let verdict = match (&found, completion) {
            (Found::Transaction(found), _) => {
                self.tally.translated += u64::from(found.is_ok());
                compare_end(&answer, found)
                    .and_then(|()| compare_record(&answer, found, count, record))
                    .and_then(|()| self.compare_length(kind, incoming, found, probe))
            }
            (Found::Request(found), Some(completion)) => {
                let granted = found.is_ok_and(|found| found.read || found.write);
                self.tally.granted += u64::from(granted);
                compare_completion(completion, incoming.address, found)
                    .and_then(|()| compare_record(&answer, &Err(Refused::Abort), count, record))
                    .and_then(|()| self.compare_span(incoming, found, probe))
            }
            (Found::Request(_), None) => Err("no completion".into()),
        };
        let verdict = verdict
            .and_then(|()| compare_updates(&answer, &log))
            .and_then(|()| explained.map_or(Ok(()), |said| compare_explained(&answer, &said)));
        if let Found::Transaction(Err(Refused::Stalled { stag })) = found {
            self.tally.stalls += 1;
            self.rig.resume(incoming.stream, stag);
        }
        verdict.map_err(|what| {
            Box::new(Difference {
                seed: plan.seed,
                case: 0,
                what,
                incoming: *incoming,
                answer,
                kind,
                completion,
                found,
                record,
                log,
                plan: plan.clone(),
                explanation: self.rig.explain(&transaction(incoming)).1.to_string(),
            })
        })
    }

    /// Whether a TLB may hold entries that this transaction's tags match but its configuration did
    /// not make: then the outcome is UNPREDICTABLE (§5.2.1, §5.4.1).
    fn conflict(&mut self, answer: &Answer) -> bool {
        let tags = &answer.tags;
        let mut conflict = false;
        if tags.stage2.is_some() {
            let known = self.stage2.entry(tags.vmid).or_insert(tags.stage2);
            conflict |= *known != tags.stage2;
        }
        if tags.cd.is_some() {
            // Stage 1 of one VMID with and without a stage 2 cannot be told apart either.
            let known = self.stage2.entry(combined(tags.world, tags.vmid)).or_insert(tags.stage2);
            conflict |= *known != tags.stage2;
            let all = (tags.world, tags.vmid, None);
            let one = (tags.world, tags.vmid, Some(tags.asid));
            let known = self.tags.entry(one).or_insert(tags.cd);
            conflict |= *known != tags.cd;
            if tags.global {
                self.tags.entry(all).or_insert(tags.cd);
            }
            conflict |= self.tags.get(&all).is_some_and(|known| *known != tags.cd);
        }
        conflict
    }

    /// The length says up to where the translation holds: its last byte must be translated alike.
    fn compare_length(
        &self,
        kind: Kind,
        incoming: &Incoming,
        found: &Result<Translation, Refused>,
        probe: u64,
    ) -> Result<(), String> {
        let Ok(translation) = found else { return Ok(()) };
        if translation.length == 0 {
            return Err("length of nothing".into());
        }
        if !probe.is_multiple_of(8) {
            return Ok(());
        }
        let further = if probe.is_multiple_of(16) {
            translation.length - 1
        } else {
            probe % translation.length
        };
        let Some(address) = incoming.address.checked_add(further) else {
            return Err("length wraps".into());
        };
        let (_, last) = self.naive(kind, &Incoming { address, ..*incoming });
        match last.end {
            End::Done { pa, .. } if pa == translation.address + further => Ok(()),
            other => Err(format!("{further:#x} bytes further on: {other:x?}")),
        }
    }

    /// Everything in the span of a Translation Completion is granted alike.
    fn compare_span(
        &self,
        incoming: &Incoming,
        found: &Result<AtsTranslation, AtsError>,
        probe: u64,
    ) -> Result<(), String> {
        let Ok(translation) = found else { return Ok(()) };
        if !probe.is_multiple_of(4) || !(translation.read || translation.write) {
            return Ok(());
        }
        let offset = (1 << translation.size_log2) - 1;
        let address = incoming.address & !offset | probe & offset;
        let (completion, answer) = self.completion(&Incoming { address, ..*incoming });
        if answer.unpredictable {
            return Ok(());
        }
        compare_completion(completion, address, found)
            .map_err(|what| format!("at {address:#x}, in the same span: {what}"))
    }
}

/// A key for stage 1 of a world and VMID, beside the VMIDs that are keys for stage 2.
fn combined(world: u64, vmid: u64) -> u64 {
    vmid | world << 32 | 1 << 48
}

/// A privileged read.
fn probe((stream, substream): (u32, Option<u32>), address: u64) -> Incoming {
    let attributes = NaiveAttributes::of_mair(0xff, 0b11);
    let (write, privileged, instruction) = (false, true, false);
    Incoming { stream, substream, address, write, privileged, instruction, attributes }
}

fn transaction(incoming: &Incoming) -> Transaction {
    Transaction {
        stream_id: incoming.stream,
        substream_id: incoming.substream,
        address: incoming.address,
        write: incoming.write,
        privileged: incoming.privileged,
        instruction: incoming.instruction,
        attributes: in_mair(incoming.attributes),
        translated: false,
    }
}

/// What a device presents: anything consistent.
fn incoming_attributes(d: &mut Dice) -> NaiveAttributes {
    let default = Hints { read: true, write: true, transient: false };
    if d.chance(600) {
        let memory = Memory::Normal([(Cache::Wb, default); 2]);
        return NaiveAttributes { memory, share: Share::Inner };
    }
    NaiveAttributes::of_mair(d.bits(8), d.bits(2)).consistent()
}
