//! Raw scripts: bytes that drive an SMMU through everything that a guest or a device can touch.
//!
//! Nothing here knows what makes sense. Reserved encodings, tables that point to themselves,
//! queues over tables, registers in the middle of an update: the SMMU must take it all.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use smmuv3::wire::PageRequest;
use smmuv3::{
    Abort, AtcCompletion, AtcInvalidate, AtsRequest, Attributes, Devices, ExplainedFault, Memory,
    Options, REGISTER_FILE_SIZE, Shareability, Smmu, Stale, StaleRule, TlbSize, Transaction,
};

/// Small, so that random addresses meet.
const RAM: u64 = 0x1_0000;

struct Ram(Box<[AtomicU64]>);

impl Ram {
    fn word(&self, address: u64) -> Result<&AtomicU64, Abort> {
        assert!(address.is_multiple_of(8), "a descriptor or a word of a structure is aligned");
        self.0.get(usize::try_from(address / 8).unwrap_or(usize::MAX)).ok_or(Abort)
    }
}

impl Memory for Ram {
    fn load(&self, address: u64) -> Result<u64, Abort> {
        Ok(self.word(address)?.load(Ordering::Acquire))
    }

    fn compare_exchange(&self, address: u64, current: u64, new: u64) -> Result<u64, Abort> {
        let (success, failure) = (Ordering::AcqRel, Ordering::Acquire);
        let word = self.word(address)?;
        Ok(word.compare_exchange(current, new, success, failure).unwrap_or_else(|seen| seen))
    }

    fn read(&self, address: u64, data: &mut [u8]) -> Result<(), Abort> {
        for (at, byte) in (address..).zip(data) {
            *byte = self.load(at & !7)?.to_le_bytes()[(at & 7) as usize];
        }
        Ok(())
    }

    fn write(&self, address: u64, data: &[u8]) -> Result<(), Abort> {
        for (at, byte) in (address..).zip(data) {
            let word = self.word(at & !7)?;
            let mut bytes = word.load(Ordering::Acquire).to_le_bytes();
            bytes[(at & 7) as usize] = *byte;
            word.store(u64::from_le_bytes(bytes), Ordering::Release);
        }
        Ok(())
    }
}

/// Endpoints that answer each third invalidation late and each fourth not at all.
#[derive(Default)]
struct Endpoints;

impl Devices for Endpoints {
    fn atc_invalidate(&self, tag: u64, _: AtcInvalidate) -> AtcCompletion {
        match tag % 5 {
            3 => AtcCompletion::Pending,
            4 => AtcCompletion::Timeout,
            _ => AtcCompletion::Done,
        }
    }
}

/// Bytes that run out into zeroes.
struct Script<'a>(&'a [u8]);

impl Script<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn word(&mut self) -> u64 {
        u64::from_le_bytes(std::array::from_fn(|_| self.byte()))
    }

    /// An address that is in RAM more often than not.
    fn address(&mut self) -> u64 {
        match self.byte() {
            kind @ 0..=15 => self.word() >> (kind * 4),
            kind => u64::from(kind) << 8 & (RAM - 1) | u64::from(self.byte()) << 3,
        }
    }

    /// A number of few bits, most of the time.
    fn small(&mut self) -> u32 {
        let byte = self.byte();
        if byte == 0xff { self.word() as u32 } else { u32::from(byte & 0x1f) }
    }

    fn substream(&mut self) -> Option<u32> {
        (self.byte() & 1 == 1).then(|| self.small())
    }
}

fn options(byte: u8) -> Options {
    let preset = match byte % 5 {
        0 => Options::everything(),
        1 => Options::linux_host(),
        2 => Options::mmu600(),
        3 => Options::mmu700(),
        _ => Options::minimal(),
    };
    Options {
        check_reserved: byte & 0x80 != 0,
        merge_events: byte & 0x40 == 0,
        // Small: a script is short, and entries shall be displaced.
        stall_max: preset.stall_max.min(3),
        tlb: TlbSize { small_log2: 4, large_log2: 2, stage2_log2: 2, walk_log2: 2 },
        contexts_log2: 1,
        ..preset
    }
}

/// Runs a script. Panics if the SMMU does, or if it breaks a promise.
pub(crate) fn run(bytes: &[u8]) {
    let mut script = Script(bytes);
    let first = script.byte();
    let options = options(first);
    let ram = Ram((0..RAM / 8).map(|_| AtomicU64::new(0)).collect());
    let smmu = Smmu::new(options.clone(), ram, (), Endpoints).expect("a preset");
    let mut requester = smmu.requester();
    if first & 0x20 != 0 {
        let told =
            |stale: &Stale| assert!(stale.to_string().len() < 1 << 14, "reports are bounded");
        smmu.check_stale(StaleRule::Use, told).expect("it was off");
        let told = |fault: &ExplainedFault| assert!(!fault.to_string().is_empty());
        smmu.explain_faults(told).expect("it was off");
    }
    while !script.0.is_empty() {
        match script.byte() % 16 {
            // Structures, descriptors and commands, wherever they come to lie.
            0..=3 => {
                let (address, value) = (script.address(), script.word());
                smmu.memory().write(address & !7, &value.to_le_bytes()).ok();
            }
            // The same in the shape of pointers into RAM.
            4 => {
                let (address, low, target) = (script.address(), script.byte(), script.address());
                let value =
                    target & (RAM - 1) & !0xff | u64::from(low) | u64::from(script.byte()) << 56;
                smmu.memory().write(address & !7, &value.to_le_bytes()).ok();
            }
            5 | 6 => {
                let offset = u64::from(script.byte()) << 2
                    | if script.byte() & 1 == 1 { 0x1_0000 } else { 0 };
                if script.byte() & 1 == 1 {
                    smmu.write64(offset, script.word());
                } else {
                    smmu.write32(offset, script.word() as u32);
                }
            }
            // A queue or table base in RAM, or an enable.
            7 => {
                let (register, low) = (script.byte(), script.byte());
                let base = script.address() & (RAM - 1) & !0x1f | u64::from(low & 0x1f);
                match register % 8 {
                    0 => smmu.write64(0x80, base),
                    1 => smmu.write32(0x88, u32::from(low) | u32::from(register & 8) << 13),
                    2 => smmu.write64(0x90, base),
                    3 => smmu.write64(0xa0, base),
                    4 => smmu.write64(0xc0, base),
                    5 => smmu.write32(0x98, u32::from(low)),
                    6 => smmu.write32(0x20, u32::from(low)),
                    _ => smmu.write32(0x64, smmu.read32(0x60)),
                }
            }
            8 => {
                let (offset, size) = (script.word() % (REGISTER_FILE_SIZE + 16), script.byte() % 9);
                smmu.mmio_read(offset, &mut vec![0; usize::from(size)]);
                smmu.mmio_write(offset, &vec![script.byte(); usize::from(size)]);
            }
            9..=11 => {
                let transaction = transaction(&mut script);
                let mut transfer = requester.begin();
                if let Ok(found) = transfer.translate(&transaction) {
                    assert!(
                        found.length > 0 && found.address.checked_add(found.length - 1).is_some()
                    );
                    assert_eq!(found.address >> options.oas, 0, "beyond the output size");
                    assert_eq!(
                        transfer.translate(&transaction),
                        Ok(found),
                        "as the miss, so the hit"
                    );
                }
            }
            12 => {
                let transaction = transaction(&mut script);
                let mut data = vec![0; usize::from(script.byte()) * 32];
                requester.begin().read(&transaction, &mut data).ok();
                requester.begin().write(&transaction, &data).ok();
            }
            13 => {
                let transaction = transaction(&mut script);
                let text = smmu.explain(&transaction).1.to_string();
                assert!(text.len() < 1 << 20, "walks are bounded");
            }
            14 => {
                let request = AtsRequest {
                    stream_id: script.small(),
                    substream_id: script.substream(),
                    address: script.address(),
                    no_write: script.byte() & 1 == 1,
                    privileged: script.byte() & 1 == 1,
                    execute: script.byte() & 1 == 1,
                };
                smmu.ats_request(&request).ok();
                smmu.page_request(PageRequest::decode(&[script.word(), script.word()]));
                smmu.complete_atc_invalidate(script.byte().into(), script.byte() & 1 == 1);
            }
            _ => {
                let state = smmu.save();
                if script.byte() & 1 == 1 {
                    smmu.reset();
                }
                smmu.restore(&state).expect("its own state");
            }
        }
        assert_eq!(smmu.read32(0x60) & !0xfd, 0, "errors that do not exist");
    }
    check(&smmu);
}

fn transaction(script: &mut Script) -> Transaction {
    let flags = script.byte();
    Transaction {
        stream_id: script.small(),
        substream_id: script.substream(),
        address: script.address(),
        write: flags & 1 != 0,
        privileged: flags & 2 != 0,
        instruction: flags & 4 != 0,
        translated: flags & 0x38 == 0x38,
        attributes: Attributes {
            memory: script.byte(),
            shareability: Shareability::from_bits(u64::from(flags >> 6)),
        },
    }
}

/// What holds in the end, whatever happened.
fn check(smmu: &Arc<Smmu<Ram>>) {
    let state = smmu.save();
    assert!(state.stalled.len() <= usize::from(smmu.options().stall_max));
    for offset in [0x98, 0x9c, 0x1_00a8, 0x1_00ac, 0x1_00c8, 0x1_00cc] {
        assert_eq!(smmu.read32(offset) & 0x00f0_0000, 0, "reserved bits of an index");
    }
}
