//! What is said about the results, and what counts.

use super::expected;
use super::layout::Denied;
use super::run::Ran;
use super::tap::{Case, Outcome};

/// Collects the results of all programs.
#[derive(Debug)]
pub(crate) struct Report {
    /// Why cases that need huge pages cannot run.
    no_huge_pages: Option<String>,
    passed: usize,
    failed: usize,
    skipped: usize,
    /// Failed, and known to.
    expected: usize,
}

impl Report {
    pub(crate) fn new(no_huge_pages: Option<String>) -> Self {
        Self { no_huge_pages, passed: 0, failed: 0, skipped: 0, expected: 0 }
    }

    /// Counts the layouts and numbers that were checked, and prints those that
    /// the headers deny.
    pub(crate) fn add_layout(&mut self, checked: usize, denied: &[Denied]) {
        println!("layout: {checked} checked");
        for Denied { name, why } in denied {
            println!("FAILED {name}: {why}");
        }
        self.passed += checked - denied.len();
        self.failed += denied.len();
    }

    /// Judges what `program` made of `cases`, and prints what is worth reading.
    pub(crate) fn add(&mut self, program: &str, cases: &[String], ran: Ran) {
        let Ran { tap, died } = ran;
        if let Some(how) = &died {
            println!("{program} {how}; it said last:");
            print_output(&tap.pending);
        }
        if died.is_none() && tap.plan != Some(cases.len()) {
            let plan = tap.plan.map_or("none".to_owned(), |plan| plan.to_string());
            println!("FAILED {program}: of {} cases it planned {plan}", cases.len());
            self.failed += 1;
        }
        let mut results = tap.cases;
        for name in cases {
            match results.iter().position(|case| case.name == *name) {
                Some(at) => self.judge(&results.remove(at)),
                None => self.missing(name, died.as_deref()),
            }
        }
        for case in results {
            println!("FAILED {}: a result nobody asked for", case.name);
            self.failed += 1;
        }
    }

    fn judge(&mut self, case: &Case) {
        let name = &case.name;
        match (&case.outcome, expected::not_yet(name)) {
            (Outcome::Passed, None) => self.passed += 1,
            (Outcome::Passed, Some(_)) => {
                self.passed += 1;
                println!("unexpected pass: {name} (take it off the list of those not yet passing)");
            }
            (Outcome::Skipped(why), reason) => {
                self.skipped += 1;
                let reason =
                    reason.map_or(String::new(), |reason| format!(" (expected: {reason})"));
                println!("skipped: {name}: {why}{reason}");
            }
            (Outcome::Failed, _) if self.cannot_run(name) => self.not_run(name),
            (Outcome::Failed, Some(reason)) => self.expect(name, reason),
            (Outcome::Failed, None) => {
                self.failed += 1;
                println!("FAILED {name}");
                print_output(&case.output);
            }
        }
    }

    fn missing(&mut self, name: &str, died: Option<&str>) {
        if self.cannot_run(name) {
            self.not_run(name);
        } else if let Some(reason) = expected::not_yet(name) {
            self.expect(name, reason);
        } else {
            self.failed += 1;
            let why = died.map_or(String::new(), |how| format!(": the program {how} before it"));
            println!("FAILED {name}: no result{why}");
        }
    }

    fn cannot_run(&self, name: &str) -> bool {
        self.no_huge_pages.is_some() && expected::needs_huge_pages(name)
    }

    fn not_run(&mut self, name: &str) {
        self.skipped += 1;
        let why = self.no_huge_pages.as_deref().unwrap_or_default();
        println!("not run: {name} needs huge pages: {why}");
    }

    fn expect(&mut self, name: &str, reason: &str) {
        self.expected += 1;
        println!("expected: {name} does not pass yet: {reason}");
    }

    /// Prints the totals. True if nothing failed.
    pub(crate) fn finish(self) -> bool {
        if self.expected > 0 {
            println!("{} cases are expected not to pass yet and did not", self.expected);
        }
        println!("{}", self.summary());
        self.failed == 0
    }

    fn summary(&self) -> String {
        let Self { passed, failed, skipped, .. } = self;
        format!("conformance: {passed} passed, {failed} failed, {skipped} skipped")
    }
}

fn print_output(lines: &[String]) {
    for line in lines {
        println!("    {line}");
    }
}

#[cfg(test)]
mod tests {
    use super::super::tap::Parser;
    use super::*;

    const HUGE: &str = "vfio_compat_mock_domain.Ver1v2.huge_map";
    const PLAIN: &str = "iommufd.simple_close";
    const LATER: &str = "not_yet.case";

    fn ran(output: &str, died: Option<&str>) -> Ran {
        let mut tap = Parser::default();
        output.lines().for_each(|line| tap.line(line));
        Ran { tap, died: died.map(str::to_owned) }
    }

    fn report(cases: &[&str], ran: Ran, huge_pages: bool) -> Report {
        let mut report = Report::new((!huge_pages).then(|| "none".to_owned()));
        let cases: Vec<_> = cases.iter().map(|&case| case.to_owned()).collect();
        report.add("iommufd", &cases, ran);
        report
    }

    fn counts(report: &Report) -> [usize; 4] {
        [report.passed, report.failed, report.skipped, report.expected]
    }

    #[test]
    fn outcomes_are_counted_by_what_is_known_of_the_case() {
        let output = format!("1..3\nok 1 {PLAIN}\nnot ok 2 {HUGE}\nnot ok 3 {LATER}\n");
        let cases = [PLAIN, HUGE, LATER];
        let with = report(&cases, ran(&output, None), true);
        assert_eq!(counts(&with), [1, 1, 0, 1]);
        let without = report(&cases, ran(&output, None), false);
        assert_eq!(counts(&without), [1, 0, 1, 1]);
        assert_eq!(without.summary(), "conformance: 1 passed, 0 failed, 1 skipped");
        assert!(without.finish());
        assert!(!with.finish());
    }

    #[test]
    fn a_case_without_a_result_failed() {
        let output = format!("1..2\nok 1 {PLAIN}\n");
        let died = Some("was killed by signal 11");
        let report = report(&[PLAIN, "iommufd.cmd_fail"], ran(&output, died), true);
        assert_eq!(counts(&report), [1, 1, 0, 0]);
    }

    #[test]
    fn a_wrong_plan_and_strange_results_are_failures() {
        let output = format!("1..1\nok 1 {PLAIN}\nok 2 other.case\n");
        let cases = [PLAIN, "iommufd.cmd_fail"];
        let report = report(&cases, ran(&output, None), true);
        assert_eq!(counts(&report), [1, 3, 0, 0]);
    }
}
