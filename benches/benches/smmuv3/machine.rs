//! A guest with an SMMU: tables in RAM, registers, a Command queue.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use smmuv3::wire::register::Register;
use smmuv3::wire::{Cd, Command, Ste};
use smmuv3::{Abort, Membarrier, Memory, Options, Smmu};

pub(crate) const PAGE: u64 = 0x1000;
pub(crate) const STRTAB: u64 = 0x10_0000;
const CDS: u64 = 0x11_0000;
const CMDQ: u64 = 0x12_0000;
const TABLES: u64 = 0x40_0000;

/// RAM from address 0 on, as the plainest memory there is.
pub(crate) struct Ram {
    words: Vec<AtomicU64>,
}

impl Ram {
    pub(crate) fn new(bytes: u64) -> Self {
        Self { words: (0..bytes / 8).map(|_| AtomicU64::new(0)).collect() }
    }

    #[inline]
    pub(crate) fn word(&self, address: u64) -> Option<&AtomicU64> {
        self.words.get(address as usize / 8)
    }
}

impl Memory for Ram {
    #[inline]
    fn load(&self, address: u64) -> Result<u64, Abort> {
        self.word(address).map(|word| word.load(Ordering::Acquire)).ok_or(Abort)
    }

    fn compare_exchange(&self, address: u64, current: u64, new: u64) -> Result<u64, Abort> {
        let word = self.word(address).ok_or(Abort)?;
        Ok(word
            .compare_exchange(current, new, Ordering::AcqRel, Ordering::Acquire)
            .unwrap_or_else(|seen| seen))
    }

    fn read(&self, address: u64, data: &mut [u8]) -> Result<(), Abort> {
        for (n, bytes) in data.chunks_mut(8).enumerate() {
            bytes.copy_from_slice(&self.load(address + 8 * n as u64)?.to_le_bytes()[..bytes.len()]);
        }
        Ok(())
    }

    fn write(&self, address: u64, data: &[u8]) -> Result<(), Abort> {
        for (n, bytes) in data.chunks(8).enumerate() {
            let mut word = [0; 8];
            word[..bytes.len()].copy_from_slice(bytes);
            self.word(address + 8 * n as u64)
                .ok_or(Abort)?
                .store(u64::from_le_bytes(word), Ordering::Release);
        }
        Ok(())
    }
}

/// Which stages a stream goes through.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stages {
    One,
    Both,
}

/// Stores words for a guest that is being built.
pub(crate) trait Build: Memory {
    fn put(&self, address: u64, value: u64) {
        self.write(address, &value.to_le_bytes()).expect("RAM");
    }
}

impl<M: Memory> Build for M {}

pub(crate) struct Machine<M: Memory> {
    pub(crate) smmu: Arc<Smmu<M, Membarrier>>,
    /// Initial tables of stage 1 (IPA = PA unless both stages are on) and stage 2.
    pub(crate) roots: [u64; 2],
    producer: u32,
}

impl<M: Memory> Machine<M> {
    /// Stream 1 maps `pages` pages from input address 0 on to `target` onwards with stage 1 alone, or with
    /// both stages of four levels, of which the second maps all of RAM onto itself.
    pub(crate) fn new(memory: M, ram: u64, stages: Stages, pages: u64, target: u64) -> Self {
        let mut free = TABLES;
        let attributes = 0x3 | 1 << 10 | 3 << 8 | 1 << 6 | 1 << 11;
        let stage1 = map(&memory, &mut free, pages, target, attributes);
        let identity = 0x3 | 1 << 10 | 3 << 8 | 3 << 6 | 0xf << 2;
        let stage2 = match stages {
            Stages::One => 0,
            Stages::Both => map(&memory, &mut free, ram / PAGE, 0, identity),
        };
        assert!(free <= target, "tables and pages overlap");
        let smmu = Smmu::with_fence(
            Options::linux_host(),
            memory,
            (),
            (),
            Membarrier::new().expect("membarrier(2)"),
        )
        .expect("a legal SMMU");
        let ste = Ste::default()
            .with_v(true)
            .with_config(if stages == Stages::Both { 0b111 } else { 0b101 })
            .with_s1_context_ptr(CDS)
            .with_sh_cfg(1)
            .with_s2_vmid(1)
            .with_s2_t0sz(16)
            .with_s2_sl0(0b10)
            .with_s2_ps(0b101)
            .with_s2_aa64(true)
            .with_s2_r(true)
            .with_s2_ttb(stage2);
        let cd = Cd::default()
            .with_v(true)
            .with_t0sz(16)
            .with_epd1(true)
            .with_ips(0b101)
            .with_aa64(true)
            .with_r(true)
            .with_a(true)
            .with_asid(7)
            .with_ttb0(stage1)
            .with_mair(0xff);
        let memory = smmu.memory();
        for n in 0..8 {
            memory.put(STRTAB + 64 + 8 * n, ste.0[n as usize]);
            memory.put(CDS + 8 * n, cd.0[n as usize]);
        }
        let at = |register: Register| u64::from(register.offset());
        smmu.write64(at(Register::StrtabBase), STRTAB);
        smmu.write32(at(Register::StrtabBaseCfg), 4);
        smmu.write64(at(Register::CmdqBase), CMDQ | 0xa);
        smmu.write32(at(Register::Cr0), 0b1001);
        assert_eq!(smmu.read32(at(Register::Cr0Ack)), 0b1001);
        Self { smmu, roots: [stage1, stage2], producer: 0 }
    }

    /// Queues commands, rings the bell once and waits until all were consumed.
    pub(crate) fn command(&mut self, commands: &[Command]) {
        let ring = smmuv3::wire::register::Ring::new(10);
        for command in commands {
            let at = CMDQ + 16 * u64::from(ring.index(self.producer));
            let [low, high] = command.encode();
            self.smmu.memory().put(at, low);
            self.smmu.memory().put(at + 8, high);
            self.producer = ring.next(self.producer);
        }
        self.smmu.write32(u64::from(Register::CmdqProd.offset()), self.producer);
        // A CMD_SYNC may wait for a transfer on another thread.
        while self.smmu.read32(u64::from(Register::CmdqCons.offset())) != self.producer {
            std::hint::spin_loop();
        }
    }
}

/// Four levels of 4 KiB tables that map `pages` pages from 0 on.
fn map<M: Memory>(memory: &M, free: &mut u64, pages: u64, target: u64, attributes: u64) -> u64 {
    let mut take = || {
        *free += PAGE;
        *free - PAGE
    };
    let root = take();
    for page in 0..pages {
        let mut table = root;
        for shift in [39, 30, 21] {
            let slot = table + ((page << 12 >> shift) & 511) * 8;
            let descriptor = memory.load(slot).expect("RAM");
            table = if descriptor == 0 {
                let next = take();
                memory.put(slot, next | 3);
                next
            } else {
                descriptor & 0xffff_ffff_f000
            };
        }
        memory.put(table + (page & 511) * 8, (target + page * PAGE) | attributes);
    }
    root
}
