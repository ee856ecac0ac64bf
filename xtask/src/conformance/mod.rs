//! `cargo xtask conformance`: does a program that was written for the kernel's
//! iommufd find it in ours? The judges are the kernel's own headers and selftests.

mod build;
mod expected;
mod hugepages;
mod layout;
mod report;
mod run;
mod source;
mod tap;

use std::path::PathBuf;

use crate::Result;
use hugepages::HugePages;
use report::Report;
use run::Runner;
use source::Source;

pub(crate) use run::build_softiommu;
pub(crate) use source::cache_directory;

/// Command line.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// A suite (layout, iommu, vfio), a case name with * for anything, or a part of one
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
    /// What `softiommu run` is told.
    machine: &'static [&'static str],
    /// What the programs are told.
    environment: &'static [(&'static str, &'static str)],
}

const SUITES: &[Suite] = &[
    Suite {
        name: "iommu",
        programs: &["iommufd", "iommufd_fail_nth"],
        // Not every machine's root may do all that the suite needs.
        machine: &["--iommu", "mock", "--fault-injection", "--grant", "sys-resource"],
        environment: &[],
    },
    Suite {
        name: "vfio",
        programs: &[
            "vfio_iommufd_setup_test",
            "vfio_pci_device_test",
            "vfio_dma_mapping_test",
            "vfio_dma_mapping_mmio_test",
            "vfio_pci_device_init_perf_test",
            "vfio_pci_driver_test",
            "vfio_pci_sriov_uapi_test",
        ],
        machine: &["--machine", concat!(env!("CARGO_MANIFEST_DIR"), "/src/conformance/vfio.toml")],
        // The DMA engine of that machine, which has virtual functions.
        environment: &[("VFIO_SELFTESTS_BDF", "0001:00:01.0")],
    },
];

/// The suite that needs no programs.
const LAYOUT: &str = "layout";

/// Runs the selected cases. True if none failed and none is missing.
pub(crate) fn run(options: &Options) -> Result<bool> {
    let filter = options.filter.as_deref();
    let names: Vec<_> =
        std::iter::once(LAYOUT).chain(SUITES.iter().map(|suite| suite.name)).collect();
    let suite = names.iter().copied().find(|name| filter == Some(name));
    let chosen = |name: &str| suite.is_none_or(|suite| suite == name);
    let pattern = filter.filter(|_| suite.is_none());
    let wanted = |case: &str| pattern.is_none_or(|pattern| selects(pattern, case));

    build::prerequisites()?;
    let source = Source::obtain(options.linux_src.as_deref())?;
    build::headers(&source)?;
    let mut claims = layout::claims();
    claims.retain(|claim| chosen(LAYOUT) && wanted(&claim.name));
    println!("headers and selftests of Linux {}", source.version);
    let suites: Vec<_> = SUITES.iter().filter(|suite| chosen(suite.name)).collect();
    let softiommu = match &options.runner {
        Some(_) => None,
        None if suites.is_empty() => None,
        None => Some(run::build_softiommu()?),
    };
    let mut selected = Vec::new();
    for suite in suites {
        let runner = match (&options.runner, &softiommu) {
            (Some(runner), _) => runner.split_whitespace().map(str::to_owned).collect(),
            (None, Some(softiommu)) => run::with_softiommu(softiommu, suite.machine),
            (None, None) => Vec::new(),
        };
        let runner = Runner { command: runner, environment: suite.environment };
        for program in build::programs(&source, suite.name, suite.programs)? {
            let all = run::list(&runner, &program.path)?;
            let count = all.len();
            let cases: Vec<_> = all.into_iter().filter(|case| wanted(case)).collect();
            if !cases.is_empty() {
                let whole = cases.len() == count;
                selected.push((runner.clone(), program, cases, whole));
            }
        }
    }
    if selected.is_empty() && claims.is_empty() {
        return Err(format!(
            "no case matches {:?}; suites: {}; `--list` shows all cases",
            pattern.unwrap_or_default(),
            names.join(", ")
        )
        .into());
    }
    if options.list {
        claims.iter().for_each(|claim| println!("{}", claim.name));
        for case in selected.iter().flat_map(|(_, _, cases, _)| cases) {
            let note =
                expected::not_yet(case).map_or(String::new(), |why| format!("  (not yet: {why})"));
            println!("{case}{note}");
        }
        return Ok(true);
    }

    let wants_huge_pages = selected
        .iter()
        .flat_map(|(_, _, cases, _)| cases)
        .any(|case| expected::needs_huge_pages(case));
    let huge_pages = wants_huge_pages.then(HugePages::reserve).transpose();
    let no_huge_pages = huge_pages.as_ref().err().map(ToString::to_string);

    let mut report = Report::new(no_huge_pages);
    if !claims.is_empty() {
        report.add_layout(claims.len(), &layout::check(&source, &claims)?);
    }
    for (runner, program, cases, whole) in &selected {
        println!("running {}: {} cases", program.name, cases.len());
        let arguments = (!whole).then_some(cases.as_slice());
        let ran = run::run(runner, &program.path, arguments)?;
        report.add(program.name, cases, ran);
    }
    drop(huge_pages);
    Ok(report.finish())
}

/// Whether a filter on the command line means this case.
fn selects(filter: &str, case: &str) -> bool {
    if filter.contains('*') { expected::matches(filter, case) } else { case.contains(filter) }
}
