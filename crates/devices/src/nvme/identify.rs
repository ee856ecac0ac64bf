//! Identify (§5.15): what the controller and its namespaces are.

use super::controller::Controller;
use super::features::WARNING_TEMPERATURE;
use super::log::ERRORS;
use super::namespace::{MAX_TRANSFER, Namespace};
use super::spec::{Command, Status, VERSION};
use super::state::EVENT_REQUESTS;

/// Bytes of every answer.
pub(super) const LEN: usize = 4096;

pub(super) const VENDOR: u16 = 0x1b36;
pub(super) const DEVICE: u16 = 0x0010;
pub(super) const FIRMWARE: [u8; 8] = *b"1.0     ";
const MODEL: &str = "softiommu NVMe disk";

/// Controller or Namespace Structure: which answer is wanted.
mod cns {
    pub(super) const NAMESPACE: u32 = 0x00;
    pub(super) const CONTROLLER: u32 = 0x01;
    pub(super) const ACTIVE_NAMESPACES: u32 = 0x02;
    pub(super) const NAMESPACE_IDENTIFIERS: u32 = 0x03;
}

struct Answer([u8; LEN]);

impl Answer {
    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn put_text(&mut self, at: usize, len: usize, text: &str) {
        let printable =
            text.bytes().map(|byte| if (0x20..0x7f).contains(&byte) { byte } else { b'_' });
        let padded = printable.chain(std::iter::repeat(b' '));
        self.0[at..at + len].iter_mut().zip(padded).for_each(|(to, byte)| *to = byte);
    }
}

impl Controller {
    pub(super) fn identify(&self, command: &Command) -> Result<[u8; LEN], Status> {
        let mut answer = Answer([0; LEN]);
        match command.dword(10) & 0xff {
            cns::NAMESPACE => identify_namespace(&mut answer, self.namespace(command.namespace)?),
            cns::CONTROLLER => self.identify_controller(&mut answer),
            cns::ACTIVE_NAMESPACES => {
                if command.namespace >= 0xffff_fffe {
                    return Err(Status::INVALID_NAMESPACE);
                }
                let ids = (1..=self.namespaces.len() as u32).filter(|id| *id > command.namespace);
                for (n, id) in ids.take(LEN / 4).enumerate() {
                    answer.put(4 * n, &id.to_le_bytes());
                }
            }
            cns::NAMESPACE_IDENTIFIERS => {
                self.namespace(command.namespace)?;
                // A UUID, 16 bytes.
                answer.put(0, &[3, 16]);
                answer.put(4, &uuid(&self.name, command.namespace));
            }
            _ => return Err(Status::INVALID_FIELD),
        }
        Ok(answer.0)
    }

    fn identify_controller(&self, answer: &mut Answer) {
        answer.put(0, &VENDOR.to_le_bytes());
        answer.put(2, &VENDOR.to_le_bytes());
        answer.put_text(4, 20, &self.name);
        answer.put_text(24, 40, MODEL);
        answer.put(64, &FIRMWARE);
        // MDTS, in pages of 4 KiB.
        answer.put(77, &[(MAX_TRANSFER / 4096).ilog2() as u8]);
        answer.put(80, &VERSION.to_le_bytes());
        // CNTRLTYPE: an I/O controller.
        answer.put(111, &[1]);
        // ACL, AERL; FRMW: one slot, read only; LPA: lengths and offsets; ELPE.
        let events = EVENT_REQUESTS as u8 - 1;
        answer.put(258, &[3, events, 0b11, 1 << 2, ERRORS as u8 - 1]);
        answer.put(266, &WARNING_TEMPERATURE.to_le_bytes());
        answer.put(268, &(WARNING_TEMPERATURE + 30).to_le_bytes());
        // SQES, CQES: one size each.
        answer.put(512, &[0x66, 0x44]);
        answer.put(516, &(self.namespaces.len() as u32).to_le_bytes());
        // ONCS: Dataset Management, Write Zeroes.
        answer.put(520, &(1_u16 << 2 | 1 << 3).to_le_bytes());
        // VWC: there is a cache, and Flush takes the namespace that means all.
        answer.put(525, &[0b111]);
        let uuid = u128::from_be_bytes(uuid(&self.name, 0));
        let [a, b, c, d, e] = [(96, 32), (80, 16), (64, 16), (48, 16), (0, 48)]
            .map(|(from, bits)| uuid >> from & ((1 << bits) - 1));
        let name =
            format!("nqn.2014-08.org.nvmexpress:uuid:{a:08x}-{b:04x}-{c:04x}-{d:04x}-{e:012x}");
        answer.put(768, name.as_bytes());
        // Power state 0: 25 W.
        answer.put(2048, &2500_u16.to_le_bytes());
    }
}

fn identify_namespace(answer: &mut Answer, namespace: &Namespace) {
    let blocks = namespace.blocks();
    // NSZE, NCAP, NUSE.
    for at in [0, 8, 16] {
        answer.put(at, &blocks.to_le_bytes());
    }
    // NSATTR: write protected.
    answer.put(99, &[namespace.image.is_read_only().into()]);
    // LBA format 0, the only one.
    answer.put(128, &(u32::from(namespace.block_log2) << 16).to_le_bytes());
}

/// What nothing else has: the same each time for a controller's name, which no other device of a machine has.
fn uuid(name: &str, namespace: u32) -> [u8; 16] {
    // FNV-1a, 128 bits.
    let bytes = name.bytes().chain(namespace.to_le_bytes());
    let hash = bytes.fold(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d_u128, |hash, byte| {
        (hash ^ u128::from(byte)).wrapping_mul(0x0100_0000_0000_0000_0000_013b)
    });
    let mut uuid = hash.to_be_bytes();
    // Version 8, which says nothing of how it was made.
    uuid[6] = uuid[6] & 0x0f | 0x80;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    uuid
}
