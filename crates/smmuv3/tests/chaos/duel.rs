//! Both SMMUs on the same transactions, and the comparison.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use smmuv3::wire::Event;
use smmuv3::{Attributes, Options, Refused, Shareability, Transaction, Translation};

use super::dice::Dice;
use super::live::{Invalidation, Issued, invalidation};
use super::plan::Plan;
use super::rig::Rig;
use crate::naive::attributes::{Attributes as NaiveAttributes, Cache, Hints, Memory, Share};
use crate::naive::{Answer, End, Incoming, Read, Role, Words, answer};

/// What came of many cases.
#[derive(Clone, Default, Debug)]
pub(crate) struct Tally {
    pub cases: u64,
    pub translated: u64,
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
    found: Result<Translation, Refused>,
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
        writeln!(f, "naive: {:x?}", self.answer.end)?;
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

/// An SMMU of some kind under examination.
pub(crate) struct Duel {
    rig: Rig,
    pub(crate) tally: Tally,
    /// The configuration that each tag stands for since the last invalidation.
    tags: HashMap<(u64, u64, Option<u64>), Option<[u64; 8]>>,
    stage2: HashMap<u64, Option<[u64; 8]>>,
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
                self.case(&plan, &incoming, probe).map_err(|mut difference| {
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
        for (world, vmid) in all.forgotten {
            self.tags.retain(|(w, v, _), _| (*w, *v) != (world, vmid));
            self.stage2.retain(|key, _| key & 0xffff != vmid);
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
        incoming: &Incoming,
        probe: u64,
    ) -> Result<(), Box<Difference>> {
        let mut outcome = self.attempt(plan, incoming, probe);
        if outcome.is_err() && self.updated {
            self.flush();
            outcome = self.attempt(plan, incoming, probe);
            self.tally.stale += u64::from(outcome.is_ok());
        }
        outcome
    }

    fn answer(&self, incoming: &Incoming) -> Answer {
        answer(&self.rig.features, &self.rig.registers, &*self.rig.ram, incoming)
    }

    fn attempt(
        &mut self,
        plan: &Plan,
        incoming: &Incoming,
        probe: u64,
    ) -> Result<(), Box<Difference>> {
        let answer = self.answer(incoming);
        if answer.unpredictable {
            self.tally.unpredictable += 1;
            return Ok(());
        }
        if self.conflict(&answer) {
            self.tally.conflicts += 1;
            self.flush();
            self.conflict(&answer);
        }
        let transaction = transaction(incoming);
        // An explanation updates nothing, so it cannot know that an update is refused.
        let explained =
            (probe % 16 == 5 && plan.rom.0 == 0).then(|| self.rig.explain(&transaction).0);
        let found = self.rig.translate(&transaction);
        let (count, record) = self.rig.events();
        let log = self.rig.ram.take_log();
        self.updated |= !log.is_empty();
        self.tally.updates += log.len() as u64;
        self.tally.events += u64::from(count);
        if let Some(record) = record {
            *self.tally.kinds.entry(record[0] & 0xff).or_default() += 1;
        }
        self.tally.translated += u64::from(found.is_ok());
        if plan.live {
            self.history.push(Issued {
                stream: incoming.stream,
                substream: incoming.substream,
                address: incoming.address,
                tags: answer.tags,
                trace: answer.trace.clone(),
            });
        }
        let verdict = compare_end(&answer, &found)
            .and_then(|()| compare_record(&answer, &found, count, record))
            .and_then(|()| compare_updates(&answer, &log))
            .and_then(|()| self.compare_length(incoming, &found, probe))
            .and_then(|()| explained.map_or(Ok(()), |said| compare_explained(&answer, &said)));
        if let Err(Refused::Stalled { stag }) = found {
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
                found,
                record,
                log,
                plan: plan.clone(),
                explanation: self.rig.explain(&transaction).1.to_string(),
            })
        })
    }

    /// Whether a TLB may hold entries that this transaction's tags match but its configuration did
    /// not make: then the outcome is UNPREDICTABLE (§5.2.1, §5.4.1).
    fn conflict(&mut self, answer: &Answer) -> bool {
        let tags = &answer.tags;
        let mut conflict = false;
        if tags.ste.is_some() {
            let known = self.stage2.entry(tags.vmid).or_insert(tags.ste);
            conflict |= *known != tags.ste;
        }
        if tags.cd.is_some() {
            // Stage 1 of one VMID with and without a stage 2 cannot be told apart either.
            let known =
                self.stage2.entry(tags.vmid | tags.world << 32 | 1 << 48).or_insert(tags.ste);
            conflict |= *known != tags.ste;
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
        let last = self.answer(&Incoming { address, ..*incoming });
        match last.end {
            End::Done { pa, .. } if pa == translation.address + further => Ok(()),
            other => Err(format!("{further:#x} bytes further on: {other:x?}")),
        }
    }
}

/// A privileged read.
fn probe((stream, substream): (u32, Option<u32>), address: u64) -> Incoming {
    let attributes = NaiveAttributes::of_mair(0xff, 0b11);
    let (write, privileged, instruction) = (false, true, false);
    Incoming { stream, substream, address, write, privileged, instruction, attributes }
}

fn compare_end(answer: &Answer, found: &Result<Translation, Refused>) -> Result<(), String> {
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

fn compare_record(
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
fn compare_explained(answer: &Answer, said: &Result<Translation, Event>) -> Result<(), String> {
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
fn compare_updates(answer: &Answer, log: &[(u64, u64)]) -> Result<(), String> {
    let last = |address: u64| log.iter().rfind(|(at, _)| *at == address).map(|(_, word)| *word);
    for (n, update) in answer.must.iter().enumerate() {
        let again = answer.must[n + 1..].iter().any(|later| later.address == update.address);
        let perhaps = answer.may.iter().any(|may| may.address == update.address);
        if !again && !perhaps && last(update.address) != Some(update.value) {
            return Err(format!("no update of {:#x} to {:#x}", update.address, update.value));
        }
    }
    for (address, word) in log {
        let mut allowed = answer.must.iter().chain(&answer.may);
        if !allowed.any(|update| (update.address, update.value) == (*address, *word)) {
            return Err(format!("update of {address:#x} to {word:#x}"));
        }
    }
    Ok(())
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

/// As the model's interface has them: a byte as in MAIR.
fn in_mair(attributes: NaiveAttributes) -> Attributes {
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
