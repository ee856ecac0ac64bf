//! The library that `softiommu run` puts into programs: the machine, installed
//! when the library is loaded, and a log if one is wanted.
//!
//! The interposed symbols come from the crate `interpose`; this one adds what
//! happens at load time. The command line tells it, through the environment:
//!
//! | variable | meaning |
//! |---|---|
//! | `SOFTIOMMU_MACHINE` | the machine file's text; the default machine if unset |
//! | `SOFTIOMMU_FAIL_NTH` | the main thread's fallible step that fails |
//! | `SOFTIOMMU_LOG_LEVEL` | what to log: `debug` or `trace`; nothing if unset |
//! | `SOFTIOMMU_LOG` | the file to log to; standard error if unset |

mod log;

use softiommu::Machine;

/// Tells the command line that library and command line are of one build.
#[used]
static VERSION: [u8; MARK.len()] = *MARK;
const MARK: &[u8; concat!("softiommu-library-version=", env!("CARGO_PKG_VERSION"), ";").len()] =
    concat!("softiommu-library-version=", env!("CARGO_PKG_VERSION"), ";")
        .as_bytes()
        .first_chunk()
        .unwrap();

/// Runs before the program's own code, as the loader's last step.
extern "C" fn start() {
    let machine = match std::env::var("SOFTIOMMU_MACHINE") {
        Ok(text) => Machine::from_toml(&text),
        Err(_) => Ok(Machine::default()),
    };
    match machine {
        Ok(machine) => {
            log::start();
            // Loaded once, so never installed before.
            let _ = softiommu::install_with(machine, log::report);
            if let Some(nth) = std::env::var("SOFTIOMMU_FAIL_NTH").ok().and_then(|n| n.parse().ok())
            {
                host::fail::set_nth(nth);
            }
        }
        Err(error) => log::complain(&format!("softiommu: SOFTIOMMU_MACHINE: {error}\n")),
    }
}

// SAFETY: the loader calls every pointer in this section once, as a function
// without arguments it needs; the name is the loader's and defines no symbol.
#[unsafe(link_section = ".init_array")]
#[used]
static START: extern "C" fn() = start;
