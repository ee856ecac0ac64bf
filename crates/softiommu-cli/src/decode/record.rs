//! One decoded structure or record.

use std::fmt::Display;

use serde_json::{Map, Value, json};
use smmuv3::wire::field::Field;
use smmuv3::wire::{Cd, Command, Event, L1Cd, L1Std, PageRequest, Ste};

use super::Kind;

/// See the module.
pub(super) struct Record {
    kind: Kind,
    raw: Vec<u64>,
    device: Option<String>,
}

impl Record {
    /// `raw` has as many words as the kind has.
    pub(super) fn new(kind: Kind, raw: &[u64]) -> Self {
        Self { kind, raw: raw.into(), device: None }
    }

    pub(super) fn of_device(self, device: &str) -> Self {
        Self { device: Some(device.into()), ..self }
    }

    fn words<const N: usize>(&self) -> [u64; N] {
        std::array::from_fn(|n| self.raw.get(n).copied().unwrap_or(0))
    }

    /// Whether the text has a line for each field.
    pub(super) fn has_lines(&self) -> bool {
        matches!(self.kind, Kind::Ste | Kind::Cd | Kind::L1std | Kind::L1cd)
    }

    /// For people; with `all`, fields that are zero as well.
    pub(super) fn text(&self, all: bool) -> String {
        let fields = |view: &dyn Display| if all { format!("{view:#}") } else { format!("{view}") };
        let text = match self.kind {
            Kind::Ste => fields(&Ste(self.words())),
            Kind::Cd => fields(&Cd(self.words())),
            Kind::L1std => fields(&L1Std(self.words::<1>()[0])),
            Kind::L1cd => fields(&L1Cd(self.words::<1>()[0])),
            Kind::Command => match Command::decode(&self.words()) {
                Some(command) => command.to_string(),
                None => {
                    format!("unknown command {:#04x}: CERROR_ILL", Command::opcode(&self.words()))
                }
            },
            Kind::Event => match Event::decode(&self.words()) {
                Some(event) => event.to_string(),
                None => format!("unknown event {:#04x}", self.words::<4>()[0] as u8),
            },
            Kind::Pri => PageRequest::decode(&self.words()).to_string(),
            Kind::Log => String::new(),
        };
        match &self.device {
            Some(device) => format!("{device}: {text}"),
            None => text,
        }
    }

    /// For programs: the kind, the words, the text, and the fields where there is a list of them.
    pub(super) fn json(&self) -> Value {
        let raw: Vec<_> = self.raw.iter().map(|word| format!("{word:#018x}")).collect();
        let fields = match self.kind {
            Kind::Ste => table(Ste::FIELDS, &self.raw),
            Kind::Cd => table(Cd::FIELDS, &self.raw),
            Kind::L1std => table(L1Std::FIELDS, &self.raw),
            Kind::L1cd => table(L1Cd::FIELDS, &self.raw),
            Kind::Event => {
                Event::decode(&self.words()).map_or(Value::Null, |event| event_fields(&event))
            }
            Kind::Command | Kind::Pri | Kind::Log => Value::Null,
        };
        let mut object = json!({ "kind": self.kind.name(), "raw": raw, "text": self.text(false) });
        if !fields.is_null() {
            object["fields"] = fields;
        }
        if let Some(device) = &self.device {
            object["device"] = json!(device);
        }
        object
    }
}

fn table(fields: &[Field], words: &[u64]) -> Value {
    let one = |field: &Field| {
        let value = json!(field.value(words));
        let value = match field.meaning(words) {
            Some(meaning) => json!({ "value": value, "meaning": meaning }),
            None => json!({ "value": value }),
        };
        (field.name.to_owned(), value)
    };
    Value::Object(fields.iter().map(one).collect::<Map<_, _>>())
}

fn event_fields(event: &Event) -> Value {
    json!({
        "event": event.kind.name(),
        "meaning": event.kind.meaning(),
        "stream_id": event.sid,
        "substream_id": event.ssid,
        "read": event.rnw,
        "privileged": event.pnu,
        "instruction": event.ind,
        "stage2": event.s2,
        "class": format!("{:?}", event.class).to_uppercase(),
        "stalled": event.stall.then_some(event.stag),
        "input_address": event.input_address,
        "ipa": event.ipa,
        "fetch_address": event.fetch_address,
    })
}
