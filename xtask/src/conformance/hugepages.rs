//! Huge pages for the cases that need them.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::Result;

const TOTAL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";
const FREE: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages";

/// The most that one case holds at a time is 64.
const WANTED: u64 = 66;
const NEEDED: u64 = 64;

/// Huge pages of 2 MiB that are there while this lives.
#[derive(Debug)]
pub(crate) struct HugePages {
    /// Writes the old number back once its standard input closes: also when this
    /// process is killed.
    guardian: Option<Child>,
}

impl HugePages {
    /// Sees to it that there are enough free huge pages; reserves more if this is
    /// allowed.
    ///
    /// # Errors
    /// Says why there are none to be had.
    pub(crate) fn reserve() -> Result<Self> {
        let free = read(FREE)?;
        if free >= NEEDED {
            return Ok(Self { guardian: None });
        }
        let before = read(TOTAL)?;
        let wanted = before + (WANTED - free);
        let mut guardian = Command::new("sh");
        guardian.args(["-c", "cat >/dev/null; echo \"$1\" >\"$2\"", "sh"]);
        guardian.args([&before.to_string(), TOTAL]);
        // A Ctrl-C at the terminal is not for it.
        guardian.process_group(0);
        let guardian = Some(guardian.stdin(Stdio::piped()).stderr(Stdio::null()).spawn()?);
        let reserved = Self { guardian };
        std::fs::write(TOTAL, wanted.to_string()).map_err(|error| format!("{TOTAL}: {error}"))?;
        match read(FREE)? {
            free if free >= NEEDED => Ok(reserved),
            free => {
                Err(format!("only {free} of {NEEDED} huge pages of 2 MiB are to be had").into())
            }
        }
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        if let Some(guardian) = &mut self.guardian {
            drop(guardian.stdin.take());
            let _ = guardian.wait();
        }
    }
}

fn read(path: &str) -> Result<u64> {
    let text =
        std::fs::read_to_string(Path::new(path)).map_err(|error| format!("{path}: {error}"))?;
    Ok(text.trim().parse()?)
}
