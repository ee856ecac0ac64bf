//! What the checker says: as data, and as text for people.

use std::fmt;

use pagetable::Permissions;

use super::words::Change;
use crate::cache::generation::StreamWorld;
use crate::explain::Explanation;
use crate::transaction::{Refused, Transaction, Translation};
use crate::wire::{Command, Event};

/// A transaction that was served what memory contradicts. Its [`Display`](fmt::Display) is a report for people.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stale {
    /// The transaction: device, address, access. If the device had translated the address by ATS, this is the
    /// untranslated one that it had asked for.
    pub transaction: Transaction,
    /// What answered it.
    pub cache: StaleCache,
    /// How it was answered.
    pub used: Result<Translation, Refused>,
    /// What the cache permits, if a TLB entry or a device's own cache answered.
    pub permissions: Option<Permissions>,
    /// The regime of the translation.
    pub world: StreamWorld,
    /// The VMID, where the regime has one.
    pub vmid: u16,
    /// The ASID, where stage 1 translates.
    pub asid: Option<u16>,
    /// What memory says now. If that is the same, a write should have marked the page dirty, and has not.
    pub now: Result<Translation, Event>,
    /// The first word on the way that has changed since the cache was filled. `None` if the checker does not know: it is
    /// too long ago, or somebody else's translations have got there.
    pub change: Option<Change>,
    /// The commands that were needed, all of them, before the next `CMD_SYNC`. Others that cover more do as well.
    pub commands: Vec<Command>,
    /// The last commands that look as if they were meant to do that, oldest first.
    pub misses: Vec<Miss>,
    /// Why this is a bug; `None` if it is not known to be one (yet).
    pub proof: Option<Proof>,
    /// How many transactions were served so, as of this report.
    pub uses: u64,
    /// What memory says now, step by step.
    pub explanation: Explanation,
}

/// What served a stale answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StaleCache {
    /// An STE, and perhaps a CD, that the SMMU remembers.
    Configuration,
    /// A TLB entry: what all stages make of an address together.
    Tlb,
    /// A walk that used tables or stage 2 translations that the SMMU remembers.
    Walk,
    /// The device's own cache of translations (ATC).
    Atc,
}

/// A command that was not enough.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Miss {
    /// The command.
    pub command: Command,
    /// Why it was not.
    pub reason: String,
}

/// Why a difference between a cache and memory is a bug of the software.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Proof {
    /// The tables translate the address to another one by now, and it was not invalidated in between.
    Remapped,
    /// Software submitted a `CMD_SYNC` after the difference was there, without what covers it before; the `CMD_SYNC`
    /// completed, and the difference still served a transaction.
    Synchronized,
    /// It was used, and the rule is [`StaleRule::Use`](crate::StaleRule::Use).
    Used,
}

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Remapped => {
                "the address has another meaning while its old one can still be used; \
                 the commands and a CMD_SYNC come in between (IHI 0070 §3.21)"
            }
            Self::Synchronized => {
                "after it was first seen, software submitted a CMD_SYNC, which completed; \
                 it is still in use"
            }
            Self::Used => {
                "reported at its first use, as asked for; \
                 software that has yet to issue the commands is within its rights"
            }
        })
    }
}

impl fmt::Display for StaleCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Configuration => "cached configuration",
            Self::Tlb => "TLB entry",
            Self::Walk => "walk through cached tables",
            Self::Atc => "the device's ATC",
        })
    }
}

/// Permissions by privilege: `user rw-, privileged rw-`.
struct Rights(Permissions);

impl fmt::Display for Rights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = |read, write, execute| {
            [(read, 'r'), (write, 'w'), (execute, 'x')]
                .map(|(right, letter)| if self.0.contains(right) { letter } else { '-' })
                .iter()
                .collect::<String>()
        };
        let user = part(Permissions::USER_READ, Permissions::USER_WRITE, Permissions::USER_EXECUTE);
        let privileged = part(
            Permissions::PRIVILEGED_READ,
            Permissions::PRIVILEGED_WRITE,
            Permissions::PRIVILEGED_EXECUTE,
        );
        write!(f, "user {user}, privileged {privileged}")
    }
}

impl Stale {
    fn headline(&self) -> &'static str {
        match (&self.used, &self.now) {
            (Ok(_), Err(_)) => "memory permits it no longer",
            (Ok(used), Ok(now)) if used.address != now.address => "memory maps it elsewhere now",
            (Ok(used), Ok(now)) if used.attributes != now.attributes => {
                "memory gives it other attributes now"
            }
            (Ok(_), Ok(_)) => "memory has the page clean, and this write does not mark it dirty",
            (Err(_), _) => "memory permits it now",
        }
    }

    fn tag(&self) -> String {
        let world = match self.world {
            StreamWorld::El1 => format!("VMID {}", self.vmid),
            StreamWorld::El2 => "EL2".into(),
            StreamWorld::El2E2h => "EL2-E2H".into(),
        };
        match self.asid {
            Some(asid) if self.world != StreamWorld::El2 => format!("{world}, ASID {asid}"),
            _ => world,
        }
    }
}

/// Whether it matters that a command that could be limited to leaves is not.
fn names_more_than_leaves(change: &Change, command: &Command) -> bool {
    match command {
        Command::CfgiSte { leaf, .. } | Command::CfgiCd { leaf, .. } => !leaf,
        Command::TlbiNhVa(va) | Command::TlbiEl2Va(va) | Command::TlbiS2Ipa(va) => {
            !va.leaf && !change.was_leaf()
        }
        _ => false,
    }
}

impl fmt::Display for Stale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = if self.proof.is_some() { "error" } else { "pending" };
        // What the device's own cache has translated is told by the address that it was asked for.
        let translated = self.transaction.translated && self.cache != StaleCache::Atc;
        let transaction = Transaction { translated, ..self.transaction };
        writeln!(f, "{severity}: {transaction} by a stale translation: {}", self.headline())?;
        writeln!(f, "  --> {}, {}", self.cache, self.tag())?;
        writeln!(f, "   |")?;
        write!(f, "   | used:   ")?;
        match &self.used {
            Ok(used) => {
                write!(f, "{:#x}, {}", used.address, used.attributes)?;
                if let Some(permissions) = self.permissions {
                    write!(f, ", {}", Rights(permissions))?;
                }
                writeln!(f)?;
            }
            Err(refused) => writeln!(f, "{refused}")?,
        }
        write!(f, "   | memory: ")?;
        match &self.now {
            Ok(now) => writeln!(f, "{:#x}, {}", now.address, now.attributes)?,
            Err(event) if *event == Event::default() => {
                writeln!(f, "aborts the transaction in silence")?;
            }
            Err(event) => writeln!(f, "{event}")?,
        }
        writeln!(f, "   |")?;
        match &self.change {
            Some(change) => {
                writeln!(f, "   = changed: {change}")?;
                for line in change.details() {
                    writeln!(f, "   |            {line}")?;
                }
            }
            None => writeln!(
                f,
                "   = changed: something that the checker has not seen as it was before"
            )?,
        }
        writeln!(f, "   |")?;
        writeln!(f, "help: after this change, and before the old one may be reused, issue")?;
        writeln!(f, "   |")?;
        for command in &self.commands {
            let above =
                if self.change.is_some_and(|change| names_more_than_leaves(&change, command)) {
                    "   (not Leaf: what leads there has changed)"
                } else {
                    ""
                };
            writeln!(f, "   |     {command}{above}")?;
        }
        writeln!(f, "   |     CMD_SYNC")?;
        writeln!(f, "   |")?;
        if !self.misses.is_empty() {
            writeln!(f, "note: these were not enough")?;
            writeln!(f, "   |")?;
            for Miss { command, reason } in &self.misses {
                writeln!(f, "   |     {command}")?;
                writeln!(f, "   |       {reason}")?;
            }
            writeln!(f, "   |")?;
        }
        match self.proof {
            Some(proof) => {
                writeln!(f, "note: this is a bug because")?;
                writeln!(f, "   |")?;
                proof
                    .to_string()
                    .split("; ")
                    .try_for_each(|part| writeln!(f, "   |     {part}"))?;
            }
            None => writeln!(f, "note: nothing says yet that the commands are not still to come")?,
        }
        match self.uses {
            0 | 1 => Ok(()),
            uses => writeln!(f, "   |     transactions served so: {uses}"),
        }
    }
}
