//! A harness for races.
//!
//! Absolute times move by tens of percent on a shared machine; ratios inside one
//! run hold. So a [`Race`] interleaves its contestants, pass by pass, keeps the
//! best and the median pass of each, compares best with best and says for every
//! goal whether it was met.
//!
//! ```no_run
//! use benches::{Goal, Race, Report};
//!
//! let mut report = Report::new("sums", 9);
//! let mut race = Race::new("sum of 1000 numbers", 1);
//! race.enter("ours", || { std::hint::black_box((0..1000u64).sum::<u64>()); });
//! race.enter("theirs", || { std::hint::black_box((0..1000u64).fold(0, |a, b| a + b)); });
//! race.goal("ours", Goal::FasterThan("theirs", 1.5));
//! report.run(race);
//! report.finish();
//! ```
#![forbid(unsafe_code)]
// Times are shown with three digits.
#![allow(clippy::cast_precision_loss)]

use std::fmt::Write as _;
use std::time::Instant;

/// What a contestant has to achieve.
#[derive(Clone, Copy, Debug)]
pub enum Goal {
    /// Take at most 1/n-th of the time of the contestant with this name.
    FasterThan(&'static str, f64),
    /// Take at most n times the time of the contestant with this name.
    Within(&'static str, f64),
    /// Nothing: the ratio to the contestant with this name is shown.
    Compared(&'static str),
}

/// Contestants that do the same work in different ways.
pub struct Race<'a> {
    title: String,
    operations: u64,
    contestants: Vec<Contestant<'a>>,
}

struct Contestant<'a> {
    name: &'static str,
    run: Box<dyn FnMut() + 'a>,
    /// Nanoseconds per operation, one for each pass.
    passes: Vec<f64>,
    goals: Vec<Goal>,
}

impl Contestant<'_> {
    fn best(&self) -> f64 {
        self.passes.iter().copied().fold(f64::INFINITY, f64::min)
    }

    fn median(&self) -> f64 {
        let mut passes = self.passes.clone();
        passes.sort_by(f64::total_cmp);
        passes.get(passes.len() / 2).copied().unwrap_or(f64::NAN)
    }
}

impl<'a> Race<'a> {
    /// A race in which one run of a contestant does `operations` operations.
    pub fn new(title: impl Into<String>, operations: u64) -> Self {
        Self { title: title.into(), operations, contestants: Vec::new() }
    }

    /// Adds a contestant. `run` does the work of one pass.
    pub fn enter(&mut self, name: &'static str, run: impl FnMut() + 'a) -> &mut Self {
        self.contestants.push(Contestant {
            name,
            run: Box::new(run),
            passes: Vec::new(),
            goals: Vec::new(),
        });
        self
    }

    /// Sets a goal for the contestant `name`.
    ///
    /// # Panics
    /// If nobody of this name has been entered.
    pub fn goal(&mut self, name: &str, goal: Goal) -> &mut Self {
        let contestant = self.contestants.iter_mut().find(|c| c.name == name);
        contestant.expect("an entered contestant").goals.push(goal);
        self
    }

    fn best_of(&self, name: &str) -> Option<f64> {
        let contestant = self.contestants.iter().find(|c| c.name == name)?;
        Some(contestant.best())
    }
}

/// Runs races and prints their tables.
#[derive(Debug)]
pub struct Report {
    passes: u32,
    filter: Option<String>,
    met: u32,
    missed: Vec<String>,
}

impl Report {
    /// Prints the heading. Races run `passes` times; an argument that is not an
    /// option selects the races whose title contains it.
    pub fn new(name: &str, passes: u32) -> Self {
        println!("{name}: best and median of {passes} passes, ratios of the best\n");
        Self {
            passes,
            filter: std::env::args().skip(1).find(|arg| !arg.starts_with('-')),
            met: 0,
            missed: Vec::new(),
        }
    }

    /// Runs a race and prints its table.
    pub fn run(&mut self, mut race: Race<'_>) {
        if self.filter.as_ref().is_some_and(|f| !race.title.contains(f)) {
            return;
        }
        // The first pass warms up caches and page tables.
        for pass in 0..=self.passes {
            for contestant in &mut race.contestants {
                let begin = Instant::now();
                (contestant.run)();
                let nanoseconds = begin.elapsed().as_nanos() as f64;
                if pass > 0 {
                    contestant.passes.push(nanoseconds / race.operations as f64);
                }
            }
        }
        println!("{}", race.title);
        for contestant in &race.contestants {
            let (best, median) = (contestant.best(), contestant.median());
            let mut line =
                format!("  {:<34} {:>10} {:>10}", contestant.name, time(best), time(median));
            for (i, goal) in contestant.goals.iter().enumerate() {
                if i > 0 {
                    let _ = write!(line, "\n  {:<56}", "");
                }
                let (text, met) = judge(&race, best, *goal);
                let _ = write!(line, "  {text}");
                let Some(met) = met else { continue };
                self.count(met, || format!("{}: {} {text}", race.title, contestant.name));
            }
            println!("{}", line.trim_end());
        }
        println!();
    }

    /// Reports a quantity that is not a time, with an upper limit.
    pub fn quantity(&mut self, title: &str, value: f64, unit: &str, limit: Option<f64>) {
        if self.filter.as_ref().is_some_and(|f| !title.contains(f)) {
            return;
        }
        let verdict = limit.map_or(String::new(), |limit| {
            let met = value <= limit;
            self.count(met, || format!("{title}: {value:.1} {unit}"));
            format!("  goal ≤ {limit} {}", word(met))
        });
        println!("{title:<36} {value:>10.1} {unit}{verdict}");
    }

    /// Prints the summary: how many goals were met, and those that were missed.
    pub fn finish(self) {
        println!("\n{} goals met, {} MISSED", self.met, self.missed.len());
        for missed in self.missed {
            println!("  {missed}");
        }
    }

    fn count(&mut self, met: bool, describe: impl FnOnce() -> String) {
        if met {
            self.met += 1;
        } else {
            self.missed.push(describe());
        }
    }
}

fn word(met: bool) -> &'static str {
    if met { "met" } else { "MISSED" }
}

/// What to say about a goal, and whether it was met if it can be.
fn judge(race: &Race<'_>, best: f64, goal: Goal) -> (String, Option<bool>) {
    let (Goal::FasterThan(peer, _) | Goal::Within(peer, _) | Goal::Compared(peer)) = goal;
    let Some(other) = race.best_of(peer) else {
        return (format!("no contestant named {peer}"), Some(false));
    };
    let show = |ratio: f64| format!("{ratio:.*}x", usize::from(ratio < 100.0) * 2);
    let (faster, slower) = (other / best, best / other);
    match goal {
        Goal::FasterThan(_, limit) => {
            let met = faster >= limit;
            let text = format!("{} faster than {peer}, goal ≥ {limit}x", show(faster));
            (format!("{text} {}", word(met)), Some(met))
        }
        Goal::Within(_, limit) => {
            let met = slower <= limit;
            let text = format!("{} the time of {peer}, goal ≤ {limit}x", show(slower));
            (format!("{text} {}", word(met)), Some(met))
        }
        Goal::Compared(_) => (format!("{} the time of {peer}", show(slower)), None),
    }
}

/// A time with three significant digits or so.
fn time(nanoseconds: f64) -> String {
    match nanoseconds {
        ns if ns < 100.0 => format!("{ns:.2} ns"),
        ns if ns < 10_000.0 => format!("{ns:.0} ns"),
        ns if ns < 1e7 => format!("{:.1} us", ns / 1e3),
        ns => format!("{:.1} ms", ns / 1e6),
    }
}

/// A small, fast generator of numbers that look random (PCG, 64 bits of state).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The same seed gives the same numbers.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number below `limit`, which must be less than 2^32.
    #[inline]
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 32) * limit) >> 32
    }
}
