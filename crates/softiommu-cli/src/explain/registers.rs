//! Register values: from `--register`, from a text file, or from a dump of the register file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{fs, io};

use smmuv3::wire::register::Register;
use smmuv3::{IdRegisters, Options, State};
use thiserror::Error;

/// Registers of which the value is known.
#[derive(Debug, Default)]
pub(crate) struct Registers(BTreeMap<Register, u64>);

/// Why registers are not known.
#[derive(Debug, Error)]
pub(crate) enum RegistersError {
    #[error("cannot read {path}: {error}")]
    Read { path: PathBuf, error: io::Error },
    #[error("{text:?} is no register and its value; write it like STRTAB_BASE=0x81000000")]
    Assignment { text: String },
    #[error("{name:?} is no Non-secure register of an SMMUv3")]
    Name { name: String },
    #[error("the value of {name}: {error}")]
    Value { name: String, error: String },
    #[error(
        "{path} has {length} bytes: a dump of the registers has 4096 at least, and a text file a \
         register and a value on each line"
    )]
    Dump { path: PathBuf, length: usize },
    #[error("{path} is no saved state of the crate smmuv3: {error}")]
    State { path: PathBuf, error: serde_json::Error },
    #[error("the saved state has a register at {offset:#x}, where there is none")]
    Offset { offset: u32 },
    #[error(
        "the value of {0} is needed to find the stream table; give it with --register or --registers"
    )]
    Missing(Register),
}

impl Registers {
    /// `NAME=VALUE` or `NAME VALUE`, with or without `SMMU_`.
    pub(crate) fn assign(&mut self, text: &str) -> Result<(), RegistersError> {
        let bad = || RegistersError::Assignment { text: text.into() };
        let separator = |c: char| c == '=' || c == ':' || c.is_whitespace();
        let (name, value) = text.trim().split_once(separator).ok_or_else(bad)?;
        let value = value.trim_start_matches(separator).trim();
        let plain = name.trim().to_ascii_uppercase();
        let known = |register: &&Register| {
            register.name() == plain || register.name().strip_prefix("SMMU_") == Some(&plain)
        };
        let register = Register::ALL.iter().find(known);
        let register = *register.ok_or_else(|| RegistersError::Name { name: name.into() })?;
        let value = super::number(value)
            .map_err(|error| RegistersError::Value { name: name.into(), error })?;
        self.0.insert(register, value);
        Ok(())
    }

    /// A text file, a saved [`State`] in JSON, or a binary dump of page 0 or of both pages.
    pub(crate) fn read(&mut self, path: &Path) -> Result<(), RegistersError> {
        let bytes =
            fs::read(path).map_err(|error| RegistersError::Read { path: path.into(), error })?;
        if let Ok(text) = std::str::from_utf8(&bytes)
            && !text.contains('\0')
        {
            if text.trim_start().starts_with('{') {
                return self.read_state(path, text);
            }
            let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
            return lines.filter(|line| !line.is_empty()).try_for_each(|line| self.assign(line));
        }
        if bytes.len() < 0x1000 {
            return Err(RegistersError::Dump { path: path.into(), length: bytes.len() });
        }
        for register in Register::ALL {
            let at = register.offset() as usize;
            let Some(word) = bytes.get(at..at + register.width() as usize / 8) else { continue };
            let value = word.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
            self.0.insert(*register, value);
        }
        Ok(())
    }

    fn read_state(&mut self, path: &Path, text: &str) -> Result<(), RegistersError> {
        let state: State = serde_json::from_str(text)
            .map_err(|error| RegistersError::State { path: path.into(), error })?;
        for (offset, value) in state.registers {
            let register = Register::ALL.iter().find(|register| register.offset() == offset);
            let register = register.ok_or(RegistersError::Offset { offset })?;
            self.0.insert(*register, value);
        }
        Ok(())
    }

    pub(crate) fn get(&self, register: Register) -> Option<u64> {
        self.0.get(&register).copied()
    }

    pub(crate) fn need(&self, register: Register) -> Result<u64, RegistersError> {
        self.get(register).ok_or(RegistersError::Missing(register))
    }

    /// What the ID registers say, if they are known.
    pub(crate) fn options(&self) -> Option<Options> {
        let word = |register| self.get(register).map(|value| value as u32);
        let registers = IdRegisters {
            idr0: word(Register::Idr0)?,
            idr1: word(Register::Idr1)?,
            idr5: word(Register::Idr5)?,
            idr3: word(Register::Idr3).unwrap_or(0),
            iidr: word(Register::Iidr).unwrap_or(0),
            aidr: word(Register::Aidr).unwrap_or(3),
        };
        Some(Options::from_id_registers(&registers))
    }
}
