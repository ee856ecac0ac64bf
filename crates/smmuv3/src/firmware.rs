//! How firmware tells an operating system about an SMMU: ACPI's IORT (Arm DEN 0049) and a
//! device-tree node (`arm,smmu-v3`).

use std::fmt::Write as _;

use crate::options::{Httu, Options};
use crate::registers::REGISTER_FILE_SIZE;

/// One SMMU and what is behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// Address of the register file.
    pub base: u64,
    /// Interrupts, as GSIVs: all edge-triggered. 0 is none.
    pub event_gsiv: u32,
    /// See [`event_gsiv`](Self::event_gsiv).
    pub pri_gsiv: u32,
    /// See [`event_gsiv`](Self::event_gsiv).
    pub gerror_gsiv: u32,
    /// See [`event_gsiv`](Self::event_gsiv).
    pub sync_gsiv: u32,
    /// The SMMU's own accesses are coherent whatever `SMMU_IDR0.COHACC` says.
    pub coherent: bool,
    /// `SMMU_IDR0.HTTU` to be used instead of the register's, if they differ.
    pub httu: Option<Httu>,
    /// PCIe root complexes behind the SMMU.
    pub root_complexes: Vec<RootComplex>,
    /// The identifiers of the GIC ITSs that MSIs of the root complexes go to.
    pub its: Vec<u32>,
    /// Ranges that must be mapped one to one for every stream, such as a window for MSIs: (base, bytes), both
    /// multiples of 64 KiB.
    pub reserved: Vec<(u64, u64)>,
}

/// A PCIe root complex behind an SMMU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootComplex {
    /// PCI segment group.
    pub segment: u32,
    /// Endpoints may use ATS.
    pub ats: bool,
    /// Bits of physical address that it can reach.
    pub address_bits: u8,
    /// Requester IDs to StreamIDs.
    pub streams: Vec<IdMapping>,
}

/// Consecutive IDs and what they become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdMapping {
    /// First requester ID.
    pub requester_id: u32,
    /// How many, at least one.
    pub count: u32,
    /// StreamID (and, for MSIs, DeviceID) of the first.
    pub stream_id: u32,
}

const ITS_GROUP: u8 = 0;
const ROOT_COMPLEX: u8 = 2;
const SMMUV3: u8 = 4;
const RMR: u8 = 6;

/// An IORT node in the making: its body, and the mappings that come after it.
struct Node {
    kind: u8,
    revision: u8,
    body: Vec<u8>,
    mappings: Vec<[u32; 5]>,
    /// What stands after the mappings, at an offset to be noted at this place of the body.
    tail: Option<(usize, Vec<u8>)>,
}

impl Node {
    fn new(kind: u8, revision: u8, body: Vec<u8>) -> Self {
        Self { kind, revision, body, mappings: Vec::new(), tail: None }
    }

    fn encode(mut self, identifier: u32) -> Vec<u8> {
        let mappings_at = 16 + self.body.len();
        let mut end = Vec::new();
        for mapping in &self.mappings {
            end.extend(mapping.iter().flat_map(|word| word.to_le_bytes()));
        }
        if let Some((place, tail)) = self.tail.take() {
            let at = (mappings_at + end.len()) as u32;
            self.body[place..place + 4].copy_from_slice(&at.to_le_bytes());
            end.extend(tail);
        }
        let mut node = vec![self.kind];
        node.extend(((mappings_at + end.len()) as u16).to_le_bytes());
        node.push(self.revision);
        node.extend(identifier.to_le_bytes());
        node.extend((self.mappings.len() as u32).to_le_bytes());
        let offset = if self.mappings.is_empty() { 0 } else { mappings_at as u32 };
        node.extend(offset.to_le_bytes());
        node.extend(self.body);
        node.extend(end);
        node
    }
}

fn bytes(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

impl Description {
    /// A complete IORT for this SMMU: header, ITS group, SMMU, root complexes, reserved memory.
    pub fn iort(&self, oem_id: [u8; 6], oem_table_id: [u8; 8]) -> Vec<u8> {
        let header = 48;
        let mut table = Vec::new();
        let mut count = 0;
        let mut push = |node: Node| {
            let at = header + table.len() as u32;
            table.extend(node.encode(count));
            count += 1;
            at
        };
        let group = (!self.its.is_empty()).then(|| {
            let mut words = vec![self.its.len() as u32];
            words.extend(&self.its);
            push(Node::new(ITS_GROUP, 1, bytes(&words)))
        });
        let smmu = push(self.smmu_node(group));
        for complex in &self.root_complexes {
            push(complex.node(smmu));
        }
        if !self.reserved.is_empty() {
            push(self.rmr_node(smmu));
        }
        let mut iort = b"IORT".to_vec();
        iort.extend((header + table.len() as u32).to_le_bytes());
        // Revision 6 (IORT E.d), checksum to be set.
        iort.extend([6, 0]);
        iort.extend(oem_id);
        iort.extend(oem_table_id);
        iort.extend(1u32.to_le_bytes());
        iort.extend(*b"SIOM");
        iort.extend(1u32.to_le_bytes());
        iort.extend(bytes(&[count, header, 0]));
        iort.extend(table);
        iort[9] = iort.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte));
        iort
    }

    fn smmu_node(&self, group: Option<u32>) -> Node {
        let httu = self.httu.map_or(0, |httu| match httu {
            Httu::None => 0,
            Httu::Access => 1,
            Httu::AccessDirty => 2,
        });
        let flags = u32::from(self.coherent) | httu << 1;
        let mut body = self.base.to_le_bytes().to_vec();
        body.extend(bytes(&[flags, 0, 0, 0, 0]));
        body.extend(bytes(&[
            self.event_gsiv,
            self.pri_gsiv,
            self.gerror_gsiv,
            self.sync_gsiv,
            0,
            0,
        ]));
        let mut node = Node::new(SMMUV3, 5, body);
        if let Some(group) = group {
            for stream in self.root_complexes.iter().flat_map(|complex| &complex.streams) {
                node.mappings.push([
                    stream.stream_id,
                    stream.count.saturating_sub(1),
                    stream.stream_id,
                    group,
                    0,
                ]);
            }
        }
        node
    }

    fn rmr_node(&self, smmu: u32) -> Node {
        let mut tail = Vec::new();
        for (base, length) in &self.reserved {
            tail.extend(base.to_le_bytes());
            tail.extend(length.to_le_bytes());
            tail.extend(0u32.to_le_bytes());
        }
        // Remapping allowed; the offset of the ranges comes later.
        let mut node = Node::new(RMR, 3, bytes(&[1, self.reserved.len() as u32, 0]));
        node.tail = Some((8, tail));
        for stream in self.root_complexes.iter().flat_map(|complex| &complex.streams) {
            node.mappings.push([0, stream.count.saturating_sub(1), stream.stream_id, smmu, 0]);
        }
        node
    }

    /// The device-tree node as source text, with `phandle` for `iommu-map` properties to refer to. Interrupts are
    /// SPIs of a GIC: their GSIVs minus 32.
    pub fn device_tree(&self, options: &Options, phandle: u32) -> String {
        let mut node = String::new();
        let _ = writeln!(node, "iommu@{:x} {{", self.base);
        let _ = writeln!(node, "\tcompatible = \"arm,smmu-v3\";");
        let _ = writeln!(
            node,
            "\treg = <{:#x} {:#x} 0x0 {REGISTER_FILE_SIZE:#x}>;",
            self.base >> 32,
            self.base & 0xffff_ffff
        );
        let named = [
            (self.event_gsiv, "eventq"),
            (self.pri_gsiv, "priq"),
            (self.sync_gsiv, "cmdq-sync"),
            (self.gerror_gsiv, "gerror"),
        ];
        let present: Vec<_> = named.iter().filter(|(gsiv, _)| *gsiv >= 32).collect();
        if !present.is_empty() {
            // SPI, rising edge.
            let cells: Vec<_> =
                present.iter().map(|(gsiv, _)| format!("<0 {} 1>", gsiv - 32)).collect();
            let names: Vec<_> = present.iter().map(|(_, name)| format!("\"{name}\"")).collect();
            let _ = writeln!(node, "\tinterrupts = {};", cells.join(", "));
            let _ = writeln!(node, "\tinterrupt-names = {};", names.join(", "));
        }
        let _ = writeln!(node, "\t#iommu-cells = <1>;");
        if self.coherent || options.cohacc {
            let _ = writeln!(node, "\tdma-coherent;");
        }
        let _ = writeln!(node, "\tphandle = <{phandle:#x}>;");
        node.push_str("};\n");
        node
    }
}

impl RootComplex {
    fn node(&self, smmu: u32) -> Node {
        // Coherent, and cacheable by default (CCA, CPM and DACS).
        let mut body = bytes(&[1, 0x0300_0000]);
        body.extend(bytes(&[u32::from(self.ats), self.segment]));
        body.push(self.address_bits);
        // 20 bits of PASID if ATS is there, then flags.
        body.extend(if self.ats { 20u16 } else { 0 }.to_le_bytes());
        body.push(0);
        body.extend(u32::from(self.ats).to_le_bytes());
        let mut node = Node::new(ROOT_COMPLEX, 4, body);
        for stream in &self.streams {
            node.mappings.push([
                stream.requester_id,
                stream.count.saturating_sub(1),
                stream.stream_id,
                smmu,
                0,
            ]);
        }
        node
    }

    /// The `iommu-map` property of the host bridge's device-tree node: cells for each range of requester IDs.
    pub fn iommu_map(&self, phandle: u32) -> Vec<u32> {
        self.streams
            .iter()
            .flat_map(|stream| [stream.requester_id, phandle, stream.stream_id, stream.count])
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn description() -> Description {
        let streams = vec![IdMapping { requester_id: 0, count: 0x1_0000, stream_id: 0x1_0000 }];
        Description {
            base: 0x1_0905_0000,
            event_gsiv: 106,
            pri_gsiv: 107,
            gerror_gsiv: 109,
            sync_gsiv: 0,
            coherent: true,
            httu: None,
            root_complexes: vec![RootComplex { segment: 0, ats: true, address_bits: 48, streams }],
            its: vec![0],
            reserved: vec![(0x800_0000, 0x10_0000)],
        }
    }

    fn word(table: &[u8], at: usize) -> u32 {
        u32::from_le_bytes([table[at], table[at + 1], table[at + 2], table[at + 3]])
    }

    #[test]
    fn an_iort_is_a_chain_of_nodes_that_refer_to_each_other() {
        let table = description().iort(*b"SOFTIO", *b"SMMUV3  ");
        assert_eq!(&table[..4], b"IORT");
        assert_eq!(word(&table, 4) as usize, table.len());
        assert_eq!(table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);

        let mut nodes = Vec::new();
        let mut at = word(&table, 40) as usize;
        for identifier in 0..word(&table, 36) {
            let length = usize::from(u16::from_le_bytes([table[at + 1], table[at + 2]]));
            assert_eq!(word(&table, at + 4), identifier);
            nodes.push((table[at], at));
            at += length;
        }
        assert_eq!(at, table.len());
        let kinds: Vec<_> = nodes.iter().map(|(kind, _)| *kind).collect();
        assert_eq!(kinds, [ITS_GROUP, SMMUV3, ROOT_COMPLEX, RMR]);

        let [(_, its), (_, smmu), (_, complex), (_, rmr)] = nodes[..] else { panic!("four nodes") };
        assert_eq!(word(&table, smmu + 16), 0x0905_0000);
        assert_eq!(word(&table, smmu + 20), 1);
        assert_eq!(word(&table, smmu + 24), 1, "COHACC override");
        assert_eq!(word(&table, smmu + 44), 106, "event GSIV");
        let mapping = |node: usize| {
            let at = node + word(&table, node + 12) as usize;
            [0, 4, 8, 12].map(|offset| word(&table, at + offset))
        };
        assert_eq!(mapping(smmu), [0x1_0000, 0xffff, 0x1_0000, its as u32]);
        assert_eq!(mapping(complex), [0, 0xffff, 0x1_0000, smmu as u32]);
        assert_eq!(word(&table, complex + 24), 1, "ATS");
        let ranges = rmr + word(&table, rmr + 24) as usize;
        assert_eq!((word(&table, ranges), word(&table, ranges + 8)), (0x800_0000, 0x10_0000));
    }

    #[test]
    fn a_device_tree_node_names_its_interrupts() {
        let description = description();
        let node = description.device_tree(&Options::linux_host(), 7);
        assert_eq!(
            node,
            "iommu@109050000 {\n\
             \tcompatible = \"arm,smmu-v3\";\n\
             \treg = <0x1 0x9050000 0x0 0x20000>;\n\
             \tinterrupts = <0 74 1>, <0 75 1>, <0 77 1>;\n\
             \tinterrupt-names = \"eventq\", \"priq\", \"gerror\";\n\
             \t#iommu-cells = <1>;\n\
             \tdma-coherent;\n\
             \tphandle = <0x7>;\n\
             };\n"
        );
        assert_eq!(description.root_complexes[0].iommu_map(7), [0, 7, 0x1_0000, 0x1_0000]);
    }
}
