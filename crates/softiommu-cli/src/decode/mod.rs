//! `softiommu decode`: what SMMUv3 structures and kernel logs say.

mod log;
mod record;

use std::io::{self, BufRead, BufWriter, Read, Write};

use clap::{Args, ValueEnum};
use serde_json::json;
use thiserror::Error;

use record::Record;

/// Says what SMMUv3 structures, queue records and kernel logs mean
///
/// Reads hexadecimal 64-bit words, from the arguments or from standard input, or a kernel log with messages of the
/// arm-smmu-v3 driver.
#[derive(Args)]
#[command(after_help = "\
Examples:
  dmesg | softiommu decode log
  softiommu decode command 0x12 0x0000000012345001
  softiommu decode ste < ste.txt
  softiommu decode --json event 0x0000080000000010 0x0000020000000000 0x1000 0")]
pub(crate) struct Decode {
    /// What to read
    #[arg(value_enum)]
    kind: Kind,

    /// 64-bit words in hexadecimal, lowest first; without any, standard input is read
    words: Vec<String>,

    /// Print a JSON array of objects
    #[arg(long)]
    json: bool,

    /// Show fields that are zero, too
    #[arg(long)]
    all: bool,
}

/// What the words are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Kind {
    /// A kernel log: event records and commands that the arm-smmu-v3 driver printed
    Log,
    /// Stream Table Entries, 8 words each
    Ste,
    /// Context Descriptors, 8 words each
    Cd,
    /// Level 1 Stream Table descriptors, 1 word each
    L1std,
    /// Level 1 Context Descriptors, 1 word each
    L1cd,
    /// Commands, 2 words each
    Command,
    /// Event records, 4 words each
    Event,
    /// PRI queue records, 2 words each
    Pri,
}

impl Kind {
    fn words(self) -> usize {
        match self {
            Self::Ste | Self::Cd => 8,
            Self::Event => 4,
            Self::Command | Self::Pri => 2,
            Self::L1std | Self::L1cd | Self::Log => 1,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Log => "log",
            Self::Ste => "ste",
            Self::Cd => "cd",
            Self::L1std => "l1std",
            Self::L1cd => "l1cd",
            Self::Command => "command",
            Self::Event => "event",
            Self::Pri => "pri",
        }
    }
}

/// Why there is nothing to say.
#[derive(Debug, Error)]
pub(crate) enum DecodeError {
    #[error("{word:?} is not a 64-bit word in hexadecimal; write it like 0x0000080000000010")]
    Word { word: String },
    #[error(
        "{found} words do not make whole {kind} records of {each} words: {missing} more would, or is it another kind?"
    )]
    Incomplete { kind: &'static str, found: usize, each: usize, missing: usize },
    #[error("there are no words to decode; give them as arguments or on standard input")]
    Empty,
    #[error(
        "the log has no event record or command of the arm-smmu-v3 driver; its messages look like \
         \"arm-smmu-v3 …: event 0x10 received:\", followed by four lines of one word each"
    )]
    NothingInLog,
    #[error("a log is read from standard input: softiommu decode log < FILE")]
    LogAsWords,
    #[error("cannot read standard input: {0}")]
    Read(#[source] io::Error),
    #[error("cannot write the answer: {0}")]
    Write(#[source] io::Error),
}

impl Decode {
    pub(crate) fn run(&self) -> Result<(), DecodeError> {
        let records = self.records()?;
        match self.print(&records) {
            // Whoever read the answer has seen enough.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            result => result.map_err(DecodeError::Write),
        }
    }

    fn records(&self) -> Result<Vec<Record>, DecodeError> {
        if self.kind == Kind::Log {
            if !self.words.is_empty() {
                return Err(DecodeError::LogAsWords);
            }
            let mut bytes = Vec::new();
            io::stdin().lock().read_to_end(&mut bytes).map_err(DecodeError::Read)?;
            let records = log::records(&String::from_utf8_lossy(&bytes));
            return if records.is_empty() { Err(DecodeError::NothingInLog) } else { Ok(records) };
        }
        let mut words = Vec::new();
        if self.words.is_empty() {
            for line in io::stdin().lock().lines() {
                parse(&line.map_err(DecodeError::Read)?, &mut words)?;
            }
        } else {
            self.words.iter().try_for_each(|argument| parse(argument, &mut words))?;
        }
        let each = self.kind.words();
        match (words.len(), words.len() % each) {
            (0, _) => Err(DecodeError::Empty),
            (_, 0) => Ok(words.chunks_exact(each).map(|raw| Record::new(self.kind, raw)).collect()),
            (found, rest) => Err(DecodeError::Incomplete {
                kind: self.kind.name(),
                found,
                each,
                missing: each - rest,
            }),
        }
    }

    fn print(&self, records: &[Record]) -> io::Result<()> {
        let mut out = BufWriter::new(io::stdout().lock());
        if self.json {
            let all: Vec<_> = records.iter().map(Record::json).collect();
            serde_json::to_writer_pretty(&mut out, &json!(all))?;
            writeln!(out)?;
        } else {
            for (n, record) in records.iter().enumerate() {
                if n > 0 && record.has_lines() {
                    writeln!(out)?;
                }
                writeln!(out, "{}", record.text(self.all))?;
            }
        }
        out.flush()
    }
}

/// The words of a line: separated by spaces or commas, with or without `0x`.
fn parse(line: &str, words: &mut Vec<u64>) -> Result<(), DecodeError> {
    for word in line.split(|c: char| c.is_whitespace() || c == ',').filter(|word| !word.is_empty())
    {
        let digits = word.strip_prefix("0x").or_else(|| word.strip_prefix("0X")).unwrap_or(word);
        // `from_str_radix` takes a sign.
        let valid = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        match u64::from_str_radix(digits, 16) {
            Ok(value) if valid => words.push(value),
            _ => return Err(DecodeError::Word { word: word.into() }),
        }
    }
    Ok(())
}
