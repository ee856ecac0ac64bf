//! `softiommu explain`: one translation, step by step, from a dump.

mod image;
mod registers;

use std::io::{self, Write};
use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};
use smmuv3::wire::register::Register;
use smmuv3::{Options, OptionsError, Smmu, Step, Transaction, Translation};
use thiserror::Error;

use image::{Image, ImageError, Source};
use registers::{Registers, RegistersError};

/// Explains how an SMMUv3 translates one access, from an image of memory and the registers
///
/// Shows each structure and descriptor that the SMMU reads, what it means, and where it ends: at an address, or in a
/// fault. Nothing is changed.
#[derive(Args)]
#[command(after_help = "\
Registers: STRTAB_BASE and STRTAB_BASE_CFG are needed; CR2 and GBPA are used if given, and CR0 is taken to \
have SMMUEN set if not. With IDR0, IDR1 and IDR5 (IDR3, AIDR) the SMMU has the features that they say, without \
it has all.

Exit status: 0 if the access is translated, 3 if it is not, 1 for errors.

Examples:
  (qemu) dump-guest-memory guest.elf
  softiommu explain --memory guest.elf --register STRTAB_BASE=0x46e00000 --register STRTAB_BASE_CFG=0x10210 \\
      --stream-id 0x8 0xfffff000
  softiommu explain --memory ram.bin@0x40000000 --registers smmu.txt --stream-id 8 --substream-id 1 --write 0x1000")]
pub(crate) struct Explain {
    /// An ELF core of the guest, or a raw image: FILE@ADDRESS. May be given several times
    #[arg(long, required = true, value_name = "FILE[@ADDRESS]")]
    memory: Vec<Source>,

    /// A file with a register and its value on each line, a saved state of the crate smmuv3 (`State` as JSON), or a
    /// binary dump of the registers
    #[arg(long, value_name = "FILE")]
    registers: Option<PathBuf>,

    /// One register. May be given several times
    #[arg(long, value_name = "NAME=VALUE")]
    register: Vec<String>,

    /// The device
    #[arg(long, value_name = "ID", value_parser = word)]
    stream_id: u32,

    /// The substream (PASID), if the access has one
    #[arg(long, value_name = "ID", value_parser = word)]
    substream_id: Option<u32>,

    /// A write, not a read
    #[arg(long)]
    write: bool,

    /// A privileged access
    #[arg(long)]
    privileged: bool,

    /// An instruction fetch
    #[arg(long, conflicts_with = "write")]
    instruction: bool,

    /// Print a JSON object
    #[arg(long)]
    json: bool,

    /// The input address
    #[arg(value_parser = number)]
    address: u64,
}

/// Why there is no explanation.
#[derive(Debug, Error)]
pub(crate) enum ExplainError {
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error(transparent)]
    Registers(#[from] RegistersError),
    #[error("the ID registers describe no SMMU that IHI 0070 allows: {0}")]
    Options(#[from] OptionsError),
    #[error("cannot write the answer: {0}")]
    Write(#[source] io::Error),
}

/// A number in decimal, or in hexadecimal after `0x`.
fn number(text: &str) -> Result<u64, String> {
    let (digits, radix) = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => (digits, 16),
        None => (text, 10),
    };
    match u64::from_str_radix(digits, radix) {
        Ok(number) if !digits.starts_with('+') => Ok(number),
        _ => Err(format!("{text:?} is not a number of up to 64 bits, like 4096 or 0x1000")),
    }
}

fn word(text: &str) -> Result<u32, String> {
    number(text)?.try_into().map_err(|_| format!("{text:?} has more than 32 bits"))
}

impl Explain {
    /// Returns whether the access is translated.
    pub(crate) fn run(&self) -> Result<bool, ExplainError> {
        let mut registers = Registers::default();
        if let Some(path) = &self.registers {
            registers.read(path)?;
        }
        self.register.iter().try_for_each(|text| registers.assign(text))?;
        let smmu = self.smmu(&registers)?;
        let transaction = Transaction {
            substream_id: self.substream_id,
            write: self.write,
            privileged: self.privileged,
            instruction: self.instruction,
            ..Transaction::read(self.stream_id, self.address)
        };
        let (result, explanation) = smmu.explain(&transaction);
        let result = result.ok();
        let answer = if self.json {
            let steps: Vec<_> = explanation.steps.iter().map(step).collect();
            format!(
                "{:#}\n",
                json!({ "translation": result.as_ref().map(translation), "steps": steps })
            )
        } else {
            let end = if result.is_none()
                && !matches!(explanation.steps.last(), Some(Step::Fault { .. }))
            {
                "aborted without an event\n"
            } else {
                ""
            };
            format!("{explanation}{end}")
        };
        match io::stdout().lock().write_all(answer.as_bytes()) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                Err(ExplainError::Write(error))
            }
            _ => Ok(result.is_some()),
        }
    }

    fn smmu(&self, registers: &Registers) -> Result<std::sync::Arc<Smmu<Image>>, ExplainError> {
        let base = registers.need(Register::StrtabBase)?;
        let config = registers.need(Register::StrtabBaseCfg)?;
        let options = registers.options().unwrap_or_else(Options::everything);
        let smmu = Smmu::new(options, Image::open(&self.memory)?, (), ())?;
        let at = |register: Register| u64::from(register.offset());
        smmu.write64(at(Register::StrtabBase), base);
        smmu.write32(at(Register::StrtabBaseCfg), config as u32);
        if let Some(cr2) = registers.get(Register::Cr2) {
            smmu.write32(at(Register::Cr2), cr2 as u32);
        }
        if let Some(gbpa) = registers.get(Register::Gbpa) {
            // A write takes effect with its Update bit.
            smmu.write32(at(Register::Gbpa), gbpa as u32 | 1 << 31);
        }
        // Queues are of no use here: SMMUEN and ATSCHK alone.
        let cr0 = registers.get(Register::Cr0).unwrap_or(1);
        smmu.write32(at(Register::Cr0), cr0 as u32 & 0b1_0001);
        Ok(smmu)
    }
}

fn translation(translation: &Translation) -> Value {
    json!({
        "address": translation.address,
        "length": translation.length,
        "attributes": translation.attributes.to_string(),
        "privileged": translation.privileged,
        "instruction": translation.instruction,
    })
}

fn step(step: &Step) -> Value {
    let kind = format!("{step:?}");
    let kind = kind.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
    let mut object = json!({ "step": kind, "text": step.to_string() });
    match step {
        Step::Ste { address, ste } => {
            object["address"] = json!(address);
            object["raw"] = json!(ste.0);
        }
        Step::Cd { physical, cd, .. } => {
            object["address"] = json!(physical);
            object["raw"] = json!(cd.0);
        }
        Step::Descriptor { stage, physical, step } => {
            object["stage"] = json!(stage);
            object["level"] = json!(step.level);
            object["address"] = json!(physical);
            object["raw"] = json!([step.descriptor]);
        }
        Step::Fault { event, .. } => {
            object["event"] = json!(event.kind.name());
            object["raw"] = json!(event.encode());
        }
        _ => {}
    }
    object
}
