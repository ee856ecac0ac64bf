//! The output of a kernel selftest: TAP 13 as `kselftest_harness.h` writes it.

/// How a case ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// `ok`
    Passed,
    /// `not ok`
    Failed,
    /// `ok … # SKIP reason`
    Skipped(String),
}

/// One result line and the output that led to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Case {
    /// `fixture.variant.test`, or `fixture.test` if there are no variants.
    pub(crate) name: String,
    pub(crate) outcome: Outcome,
    pub(crate) output: Vec<String>,
}

/// Reads a program's output line by line.
#[derive(Debug, Default)]
pub(crate) struct Parser {
    /// How many cases the program said it would run.
    pub(crate) plan: Option<usize>,
    pub(crate) cases: Vec<Case>,
    /// Lines since the last result: of the case that is running, or, at the
    /// end, what the program said when it gave up.
    pub(crate) pending: Vec<String>,
}

impl Parser {
    /// Takes the next line, without its line end.
    pub(crate) fn line(&mut self, line: &str) {
        if self.cases.is_empty() && self.plan.is_none() {
            if line.starts_with("TAP version") {
                return;
            }
            if let Some(plan) = line.strip_prefix("1..").and_then(|n| n.trim().parse().ok()) {
                self.plan = Some(plan);
                return;
            }
        }
        if let Some((name, outcome)) = result(line) {
            let output = std::mem::take(&mut self.pending);
            self.cases.push(Case { name, outcome, output });
        } else if line.starts_with("#  RUN ") {
            // What came before belongs to nobody: "Starting 246 tests", totals.
            self.pending.clear();
        } else {
            self.pending.push(line.to_owned());
        }
    }
}

/// `ok 12 name` or `not ok 12 name`, with or without a directive.
fn result(line: &str) -> Option<(String, Outcome)> {
    let (rest, passed) = match line.strip_prefix("not ok ") {
        Some(rest) => (rest, false),
        None => (line.strip_prefix("ok ")?, true),
    };
    let (number, rest) = rest.split_once(' ')?;
    number.parse::<usize>().ok()?;
    let (name, directive) = match rest.split_once('#') {
        Some((name, directive)) => (name, directive.trim()),
        None => (rest, ""),
    };
    // TAP allows "- " before the description.
    let name = name.trim();
    let name = name.strip_prefix("- ").unwrap_or(name).to_owned();
    let skipped = directive.get(..4).is_some_and(|word| word.eq_ignore_ascii_case("skip"));
    let outcome = match (passed, skipped) {
        (true, true) => Outcome::Skipped(directive[4..].trim().to_owned()),
        (true, false) => Outcome::Passed,
        (false, _) => Outcome::Failed,
    };
    Some((name, outcome))
}

/// The cases in the table that a selftest prints for `-l`, in the order it would
/// run them: every variant of a fixture with every test.
///
/// Columns are padded to 20 and 25 and not cut if longer; the fixture stands in
/// the first line of its block only.
pub(crate) fn parse_list(table: &str) -> Vec<String> {
    #[derive(Default)]
    struct Fixture<'a> {
        name: &'a str,
        variants: Vec<&'a str>,
        tests: Vec<&'a str>,
    }
    fn column(line: &str, width: usize) -> (&str, &str) {
        let end = line.find(' ').unwrap_or(line.len());
        let next = (end.max(width) + 1).min(line.len());
        (&line[..end], &line[next..])
    }
    let mut fixtures: Vec<Fixture<'_>> = Vec::new();
    for line in table.lines() {
        if line.starts_with('#') || line.starts_with("---") || line.trim().is_empty() {
            continue;
        }
        let (name, rest) = column(line, 20);
        if !name.is_empty() {
            fixtures.push(Fixture { name, ..Fixture::default() });
        }
        let Some(fixture) = fixtures.last_mut() else {
            continue;
        };
        let (variant, rest) = column(rest, 25);
        fixture.variants.extend(Some(variant).filter(|v| !v.is_empty()));
        fixture.tests.extend(Some(rest.trim()).filter(|t| !t.is_empty()));
    }
    let mut cases = Vec::new();
    for Fixture { name, variants, tests } in fixtures {
        if variants.is_empty() {
            cases.extend(tests.iter().map(|test| format!("{name}.{test}")));
        }
        for variant in variants {
            cases.extend(tests.iter().map(|test| format!("{name}.{variant}.{test}")));
        }
    }
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(output: &str) -> Parser {
        let mut parser = Parser::default();
        output.lines().for_each(|line| parser.line(line));
        parser
    }

    #[test]
    fn results_carry_the_output_of_their_case_only() {
        let parsed = parse(
            "TAP version 13\n\
             1..4\n\
             # Starting 4 tests from 3 test cases.\n\
             #  RUN           global.first ...\n\
             #            OK  global.first\n\
             ok 1 global.first\n\
             #  RUN           ioas.mock_domain.area ...\n\
             # area: Expected 0 (0) == -1 (-1)\n\
             stray line without a hash\n\
             # area: Test terminated by assertion\n\
             #          FAIL  ioas.mock_domain.area\n\
             not ok 2 ioas.mock_domain.area\n\
             #  RUN           viommu.no_viommu.hw_queue ...\n\
             #      SKIP      Skipping hw_queue: no viommu\n\
             ok 3 viommu.no_viommu.hw_queue # SKIP Skipping hw_queue: no viommu\n\
             ok 4 - last\n\
             # FAILED: 3 / 4 tests passed.\n\
             # Totals: pass:2 fail:1 xfail:0 xpass:0 skip:1 error:0\n",
        );
        assert_eq!(parsed.plan, Some(4));
        let outcomes: Vec<_> =
            parsed.cases.iter().map(|case| (case.name.as_str(), &case.outcome)).collect();
        let skip = Outcome::Skipped("Skipping hw_queue: no viommu".into());
        assert_eq!(
            outcomes,
            [
                ("global.first", &Outcome::Passed),
                ("ioas.mock_domain.area", &Outcome::Failed),
                ("viommu.no_viommu.hw_queue", &skip),
                ("last", &Outcome::Passed),
            ]
        );
        assert_eq!(parsed.cases[1].output.len(), 4);
        assert_eq!(parsed.cases[1].output[1], "stray line without a hash");
        assert_eq!(parsed.pending.len(), 2);
    }

    #[test]
    fn a_crash_leaves_the_last_words_pending() {
        let parsed = parse("TAP version 13\n1..2\n#  RUN           a.b ...\nSegmentation fault\n");
        assert_eq!((parsed.plan, parsed.cases.len()), (Some(2), 0));
        assert_eq!(parsed.pending, ["Segmentation fault"]);
    }

    #[test]
    fn lines_that_only_look_like_results_are_output() {
        let parsed = parse("1..1\nok then\nok x y\nokay 1 z\n1..9\nok 1 real#SKIP\n");
        assert_eq!(parsed.plan, Some(1));
        assert_eq!(parsed.cases.len(), 1);
        assert_eq!(parsed.cases[0].outcome, Outcome::Skipped(String::new()));
        assert_eq!(parsed.cases[0].output.len(), 4);
        assert_eq!(parse("not ok 1 a # skip why").cases[0].outcome, Outcome::Failed);
        assert_eq!(parse("").plan, None);
    }

    #[test]
    fn the_list_is_multiplied_out() {
        let table = format!(
            "{:<20} {:<25} {}\n{:<20} {:<25} {}\n{:<20} {:<25} {}\n{}\n{:<20} {:<25} {}\n{:<20} {:<25} {}\n",
            "# FIXTURE",
            "VARIANT",
            "TEST",
            "iommufd",
            "",
            "simple_close",
            "",
            "",
            "cmd_fail",
            "-".repeat(80),
            "iommufd_dirty_tracking",
            "domain_dirty8k",
            "enforce_dirty",
            "",
            "a_variant_with_a_name_beyond_25",
            "",
        );
        assert_eq!(
            parse_list(&table),
            [
                "iommufd.simple_close",
                "iommufd.cmd_fail",
                "iommufd_dirty_tracking.domain_dirty8k.enforce_dirty",
                "iommufd_dirty_tracking.a_variant_with_a_name_beyond_25.enforce_dirty",
            ]
        );
        assert!(parse_list("").is_empty());
    }
}
