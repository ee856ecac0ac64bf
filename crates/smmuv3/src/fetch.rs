//! Fetching configuration from memory: stream tables and CD tables (§3.3).

use crate::cache::tlb::Before;
use crate::config::{CdIndex, Context, SubstreamError};
use crate::explain::{Recorder, Step};
use crate::fault::Fault;
use crate::platform::{Abort, Memory};
use crate::smmu::Smmu;
use crate::sync::Fence;
use crate::translate::Walker;
use crate::wire::register::{StrtabBase, StrtabBaseCfg};
use crate::wire::{Cd, Class, EventKind, L1Cd, L1Std, Ste};

impl<M: Memory, F: Fence> Smmu<M, F> {
    fn words(&self, address: u64) -> Result<[u64; 8], Abort> {
        let mut words = [0; 8];
        for (n, word) in words.iter_mut().enumerate() {
            *word = self.memory.load(address + 8 * n as u64)?;
        }
        Ok(words)
    }

    /// The configuration of a stream up to its CD.
    pub(crate) fn fetch_ste<R: Recorder>(
        &self,
        stream_id: u32,
        recorder: &mut R,
    ) -> Result<Context, Fault> {
        let address = self.ste_address(stream_id, recorder)?;
        let ste =
            Ste(self.words(address).map_err(|_| Fault::fetch(EventKind::SteFetch, address))?);
        recorder.step(|| Step::Ste { address, ste });
        self.rules().ste(ste).ok_or(Fault::configuration(EventKind::BadSte))
    }

    fn ste_address<R: Recorder>(&self, stream_id: u32, recorder: &mut R) -> Result<u64, Fault> {
        let bad = Fault::configuration(EventKind::BadStreamId);
        let (base, cfg) = self.live.strtab();
        let (base, cfg) = (StrtabBase(base).addr(), StrtabBaseCfg(cfg));
        // Alignment goes by what software wrote, the range of StreamIDs by what there is (§6.3.24).
        let written = u32::from(cfg.log2size());
        let log2 = written.min(self.options.sid_bits.into());
        if u64::from(stream_id) >> log2 != 0 {
            return Err(bad);
        }
        let stream_id = u64::from(stream_id);
        if cfg.fmt() != 0b01 || !self.options.two_level_stream_table {
            return Ok(aligned(base, written + 6) + (stream_id << 6));
        }
        let split = match cfg.split() {
            split @ (8 | 10) => u32::from(split),
            _ => 6,
        };
        let table_log2 = (written.saturating_sub(split) + 3).max(6);
        let address = aligned(base, table_log2) + (stream_id >> split << 3);
        let l1std = L1Std(
            self.memory.load(address).map_err(|_| Fault::fetch(EventKind::SteFetch, address))?,
        );
        recorder.step(|| Step::L1Std { address, l1std });
        let span = u32::from(l1std.span());
        let index = stream_id & ((1 << split) - 1);
        if span == 0 || span > split + 1 || index >> (span - 1) != 0 {
            return Err(bad);
        }
        // Level 2 tables are aligned to their size (§5.1.1).
        let table = l1std.l2_ptr() & !((1 << (span + 5)) - 1);
        let address = table + (index << 6);
        if table >> self.options.oas != 0 {
            return Err(Fault::fetch(EventKind::SteFetch, address));
        }
        Ok(address)
    }

    /// Adds to the configuration of a stream what the CD of the substream says. With `before`, CDs are looked for
    /// through the caches of stage 2. On a fault `context` stays as the STE made it.
    pub(crate) fn fetch_cd<R: Recorder>(
        &self,
        context: &mut Context,
        substream_id: Option<u32>,
        before: Option<Before>,
        recorder: &mut R,
    ) -> Result<(), Fault> {
        if context.abort {
            return Ok(());
        }
        let index = match self.rules().select_cd(&context.ste, substream_id) {
            Ok(CdIndex::Skip) => return Ok(()),
            Ok(CdIndex::Index(index)) => index,
            Err(SubstreamError::Bad) => return Err(bad_substream(substream_id.unwrap_or(0))),
            Err(SubstreamError::Disabled) => {
                return Err(Fault::configuration(EventKind::StreamDisabled));
            }
        };
        let mut fetch = CdFetch { smmu: self, context, before, recorder };
        let (address, physical) = fetch.locate(index, substream_id)?;
        let cd =
            Cd(self.words(physical).map_err(|_| Fault::fetch(EventKind::CdFetch, physical))?);
        recorder.step(|| Step::Cd { address, physical, cd });
        *context = self
            .rules()
            .cd(context.clone(), cd, index)
            .ok_or(Fault::configuration(EventKind::BadCd))?;
        Ok(())
    }
}

/// `address` without the bits below `1 << log2`, of which there may be more than 64.
fn aligned(address: u64, log2: u32) -> u64 {
    u64::MAX.checked_shl(log2).map_or(0, |mask| address & mask)
}

fn bad_substream(substream_id: u32) -> Fault {
    Fault { substream_id: Some(substream_id), ..Fault::configuration(EventKind::BadSubstreamId) }
}

struct CdFetch<'a, M, F, R> {
    smmu: &'a Smmu<M, F>,
    context: &'a Context,
    before: Option<Before>,
    recorder: &'a mut R,
}

impl<M: Memory, F: Fence, R: Recorder> CdFetch<'_, M, F, R> {
    /// The address of CD `index`, as software wrote it and as a PA.
    fn locate(&mut self, index: u32, substream_id: Option<u32>) -> Result<(u64, u64), Fault> {
        let options = &self.smmu.options;
        let ste = &self.context.ste;
        let substreams = options.ssid_bits > 0 && ste.s1_cd_max() > 0;
        let max = if substreams { u32::from(ste.s1_cd_max()) } else { 0 };
        let index = u64::from(index);
        let split = match ste.s1_fmt() {
            0b01 if substreams => 6,
            0b10 if substreams => 10,
            _ => {
                let base = ste.s1_context_ptr() & !((1 << (max + 6)) - 1);
                return self.physical(base + (index << 6));
            }
        };
        let table_log2 = (max.saturating_sub(split) + 3).max(6);
        let address = (ste.s1_context_ptr() & !((1 << table_log2) - 1)) + (index >> split << 3);
        let (_, physical) = self.physical(address)?;
        let l1cd = self
            .smmu
            .memory
            .load(physical)
            .map_err(|_| Fault::fetch(EventKind::CdFetch, physical))?;
        let l1cd = L1Cd(l1cd);
        self.recorder.step(|| Step::L1Cd { address, physical, l1cd });
        let table = l1cd.l2_ptr() & !((1 << (split + 6)) - 1);
        if !l1cd.v() || table >> options.oas != 0 {
            return Err(bad_substream(substream_id.unwrap_or(0)));
        }
        self.physical(table + ((index & ((1 << split) - 1)) << 6))
    }

    fn physical(&mut self, address: u64) -> Result<(u64, u64), Fault> {
        let Some(stage2) = &self.context.stage2 else { return Ok((address, address)) };
        let mut walker = Walker {
            memory: &self.smmu.memory,
            tlb: &self.smmu.tlb,
            context: self.context,
            oas: self.smmu.options.oas,
            before: self.before,
            recorder: &mut *self.recorder,
        };
        let output = walker.stage2(stage2, address, crate::translate::Wanted::READ, Class::Cd)?;
        Ok((address, output.address))
    }
}
