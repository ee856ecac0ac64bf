//! `cargo xtask conformance`: does a program that was written for the kernel's
//! iommufd find it in ours? The judges are the kernel's own selftests.

mod apt;
mod build;
mod expected;
mod hugepages;
mod report;
mod run;
mod source;
mod tap;

use std::path::PathBuf;

use crate::Result;
use hugepages::HugePages;
use report::Report;
use source::Source;

/// Command line.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// A suite (iommu), a case name with * for anything, or a part of one
    filter: Option<String>,
    /// A Linux source tree or a tarball of one, instead of the package
    #[arg(long, value_name = "PATH")]
    linux_src: Option<PathBuf>,
    /// What to put in front of the test programs, instead of building
    /// softiommu and using `softiommu run --`
    #[arg(long, value_name = "COMMAND")]
    runner: Option<String>,
    /// List the selected cases and what is known of them, run nothing
    #[arg(long)]
    list: bool,
}

/// A folder of selftests.
struct Suite {
    name: &'static str,
    programs: &'static [&'static str],
}

const SUITES: &[Suite] = &[Suite { name: "iommu", programs: &["iommufd", "iommufd_fail_nth"] }];

/// Runs the selected cases. True if none failed and none is missing.
pub(crate) fn run(options: &Options) -> Result<bool> {
    let filter = options.filter.as_deref();
    let by_suite = SUITES.iter().any(|suite| filter == Some(suite.name));
    let suites = SUITES.iter().filter(|suite| !by_suite || filter == Some(suite.name));
    let pattern = filter.filter(|_| !by_suite);

    build::prerequisites()?;
    let source = Source::obtain(options.linux_src.as_deref())?;
    println!("selftests of Linux {}", source.version);
    let mut selected = Vec::new();
    for suite in suites {
        for program in build::programs(&source, suite.name, suite.programs)? {
            let all = run::list(&program.path)?;
            let count = all.len();
            let cases: Vec<_> = all
                .into_iter()
                .filter(|case| pattern.is_none_or(|pattern| selects(pattern, case)))
                .collect();
            if !cases.is_empty() {
                let whole = cases.len() == count;
                selected.push((program, cases, whole));
            }
        }
    }
    if selected.is_empty() {
        let names: Vec<_> = SUITES.iter().map(|suite| suite.name).collect();
        return Err(format!(
            "no case matches {:?}; suites: {}; `--list` shows all cases",
            pattern.unwrap_or_default(),
            names.join(", ")
        )
        .into());
    }
    if options.list {
        for case in selected.iter().flat_map(|(_, cases, _)| cases) {
            let note =
                expected::not_yet(case).map_or(String::new(), |why| format!("  (not yet: {why})"));
            println!("{case}{note}");
        }
        return Ok(true);
    }

    let runner = match &options.runner {
        Some(runner) => runner.split_whitespace().map(str::to_owned).collect(),
        None => run::build_runner()?,
    };
    let wants_huge_pages = selected
        .iter()
        .flat_map(|(_, cases, _)| cases)
        .any(|case| expected::needs_huge_pages(case));
    let huge_pages = wants_huge_pages.then(HugePages::reserve).transpose();
    let no_huge_pages = huge_pages.as_ref().err().map(ToString::to_string);

    let mut report = Report::new(no_huge_pages);
    for (program, cases, whole) in &selected {
        println!("running {}: {} cases", program.name, cases.len());
        let arguments = (!whole).then_some(cases.as_slice());
        let ran = run::run(&runner, &program.path, arguments)?;
        report.add(program.name, cases, ran);
    }
    drop(huge_pages);
    Ok(report.finish())
}

/// Whether a filter on the command line means this case.
fn selects(filter: &str, case: &str) -> bool {
    if filter.contains('*') { expected::matches(filter, case) } else { case.contains(filter) }
}
