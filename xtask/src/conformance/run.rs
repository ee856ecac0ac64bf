//! Running a selftest and following its output.

use std::io::{BufRead, BufReader};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};

use super::tap::{self, Parser};
use crate::{Result, command};

/// The harness stops a case that takes 30 s; a program that is silent for much
/// longer than that hangs itself.
const SILENCE: Duration = Duration::from_mins(2);

/// How long a descendant that holds the output open is waited for.
const LINGER: Duration = Duration::from_secs(5);

/// How the run of a program went, beside its results.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) tap: Parser,
    /// Why the program did not reach its own end, if it did not.
    pub(crate) died: Option<String>,
}

/// What stands in front of a program.
#[derive(Debug, Clone)]
pub(crate) struct Runner {
    /// A command and its first arguments, or nothing.
    pub(crate) command: Vec<String>,
    pub(crate) environment: &'static [(&'static str, &'static str)],
}

impl Runner {
    /// The command that runs a program.
    fn before(&self, program: &Path) -> Command {
        let mut words = self.command.iter();
        let mut command = match words.next() {
            Some(first) => {
                let mut command = Command::new(first);
                command.args(words).arg(program);
                command
            }
            None => Command::new(program),
        };
        command.envs(self.environment.iter().copied());
        command
    }
}

/// The cases `program` has, in its order.
pub(crate) fn list(runner: &Runner, program: &Path) -> Result<Vec<String>> {
    let mut list = runner.before(program);
    // It exits with the code for "skipped" and writes to standard error.
    let output = list.arg("-l").stdin(Stdio::null()).output()?;
    let text = String::from_utf8_lossy(&output.stderr);
    let cases = tap::parse_list(&text);
    if cases.is_empty() {
        return Err(format!("{} -l lists no cases:\n{text}", program.display()).into());
    }
    Ok(cases)
}

/// Runs `program` with `runner` in front. `cases` are those to run, or all if
/// that is `None`.
pub(crate) fn run(runner: &Runner, program: &Path, cases: Option<&[String]>) -> Result<Ran> {
    let mut command = runner.before(program);
    for case in cases.into_iter().flatten() {
        command.args(["-r", case]);
    }
    follow(command, SILENCE)
}

fn follow(mut command: Command, silence: Duration) -> Result<Ran> {
    let (reader, writer) = std::io::pipe()?;
    // A file descriptor 0 that is open matters to the programs.
    command.stdin(Stdio::null());
    command.stdout(writer.try_clone()?).stderr(writer);
    // Its own group, so that all of it can be killed.
    command.process_group(0);
    let name = command.get_program().to_string_lossy().into_owned();
    let mut child = command.spawn().map_err(|error| format!("{name}: {error}"))?;
    // It holds the writing end, without which the output has an end.
    drop(command);

    let (sender, lines) = mpsc::channel();
    std::thread::spawn(move || {
        let mut reader = BufReader::new(reader);
        let mut line = Vec::new();
        while matches!(reader.read_until(b'\n', &mut line), Ok(1..)) {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            if sender.send(text).is_err() {
                return;
            }
            line.clear();
        }
    });

    let mut tap = Parser::default();
    let mut exited: Option<ExitStatus> = None;
    let mut quiet = Duration::ZERO;
    let mut died = None;
    let step = Duration::from_millis(500).min(silence);
    loop {
        match lines.recv_timeout(step) {
            Ok(line) => {
                quiet = Duration::ZERO;
                tap.line(&line);
                continue;
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => quiet += step,
        }
        if exited.is_none() {
            exited = child.try_wait()?;
        }
        if exited.is_some() && quiet >= LINGER {
            break;
        }
        if exited.is_none() && quiet >= silence {
            died = Some(format!("said nothing for {} s and was killed", silence.as_secs()));
            break;
        }
    }
    // If it is still running, its output is of no use any more.
    if died.is_some()
        && let Some(group) = Pid::from_raw(child.id() as i32)
    {
        let _ = kill_process_group(group, Signal::KILL);
    }
    let status = match exited {
        Some(status) => status,
        None => child.wait()?,
    };
    if died.is_none() {
        died = status.signal().map(|signal| format!("was killed by signal {signal}"));
    }
    if died.is_none() && tap.plan.is_none() {
        died = Some(format!("announced no cases ({status})"));
    }
    Ok(Ran { tap, died })
}

/// Builds what `softiommu run` is made of; where it is.
pub(crate) fn build_softiommu() -> Result<PathBuf> {
    let workspace = crate::workspace();
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    cargo.current_dir(&workspace).args(["build", "--release"]);
    cargo.args(["-p", "softiommu-cli", "-p", "softiommu-preload"]);
    command::run(&mut cargo)?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or("target".into(), PathBuf::from);
    Ok(workspace.join(target).join("release/softiommu"))
}

/// The command that runs programs with a machine.
pub(crate) fn with_softiommu(softiommu: &Path, machine: &[&str]) -> Vec<String> {
    let softiommu = softiommu.to_string_lossy();
    [&[&*softiommu, "run"], machine, &["--"]].concat().into_iter().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::super::tap::Outcome;
    use super::*;

    fn shell(script: &str, silence: Duration) -> Ran {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        follow(command, silence).unwrap()
    }

    #[test]
    fn both_streams_are_followed_to_the_end() {
        let ran = shell("echo 1..1; echo lost >&2; printf 'ok 1 a'; exit 1", SILENCE);
        assert_eq!(ran.died, None);
        assert_eq!(ran.tap.cases[0].outcome, Outcome::Passed);
        assert_eq!(ran.tap.cases[0].output, ["lost"]);
    }

    #[test]
    fn death_is_told_from_failure() {
        let ran = shell("echo 1..2; echo ok 1 a; kill -SEGV $$", SILENCE);
        assert_eq!(ran.died.as_deref(), Some("was killed by signal 11"));
        assert_eq!(ran.tap.cases.len(), 1);
        let ran = shell("exit 3", SILENCE);
        assert!(ran.died.unwrap().contains("no cases"));
    }

    #[test]
    fn a_program_that_hangs_is_killed_with_its_children() {
        let ran = shell("echo 1..1; sleep 1000 & sleep 1000", Duration::from_millis(300));
        assert!(ran.died.unwrap().contains("killed"));
        assert_eq!(ran.tap.plan, Some(1));
    }
}
