//! What all ports of one PCIe function have in common: its capabilities, its ATC, its page requests.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use arm_smmu_v3::{DeviceOptions, Functions};
use parking_lot::RwLock;
use smmuv3::wire::PageRequest;
use smmuv3::{
    AtcCompletion, AtcInvalidate, AtsError, AtsRequest, AtsTranslation, Devices, PageResponse,
    Resume,
};

use crate::atc::{Atc, Entry};
use crate::port::{Access, DmaError, Stalls};
use crate::pri::{self, Answer, Pri};
use crate::smmu::Model;

/// The longest time until it asks again for what was granted and is not there.
const PAUSE: Duration = Duration::from_millis(1);

/// What a PCIe function can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Capabilities {
    /// Bits of its PASIDs; 0 if it has none.
    pub pasid_bits: u8,
    /// It has an address translation cache.
    pub ats: bool,
    /// It asks for pages that are not there.
    pub pri: bool,
}

/// See the module.
pub(crate) struct Endpoint {
    stream_id: u32,
    pub(crate) capabilities: Capabilities,
    /// How many want that nothing of the device's waits.
    halts: AtomicU32,
    pub(crate) atc: Atc,
    pub(crate) pri: Pri,
}

/// How an access is made.
pub(crate) enum Reach {
    /// With its own address.
    Untranslated,
    /// With the address that ATS has translated it to; afterwards comes [`Endpoint::finish`].
    Translated { address: u64, len: u64, age: u64 },
}

impl Endpoint {
    pub(crate) fn new(stream_id: u32, options: &DeviceOptions) -> Arc<Self> {
        let DeviceOptions { pasid_bits, ats, pri, .. } = *options;
        let capabilities = Capabilities { pasid_bits, ats, pri };
        let (halts, atc, pri) = Default::default();
        Arc::new(Self { stream_id, capabilities, halts, atc, pri })
    }

    pub(crate) fn halt(&self, halt: bool) {
        if halt {
            self.halts.fetch_add(1, Ordering::AcqRel);
        } else {
            self.halts.fetch_sub(1, Ordering::AcqRel);
        }
        self.pri.wake();
    }

    pub(crate) fn is_halted(&self) -> bool {
        self.halts.load(Ordering::Acquire) != 0
    }

    /// Finds out how to reach `len` bytes, from the first of them on.
    pub(crate) fn reach(
        &self,
        model: &Model,
        access: Access,
        write: bool,
        len: usize,
    ) -> Result<Reach, DmaError> {
        let error = DmaError { address: access.address };
        let mut asked = 0u32;
        loop {
            let Some((age, found)) = self.atc.begin(access, write) else {
                return Ok(Reach::Untranslated);
            };
            let found = match found {
                Some(entry) => Ok(Some(entry)),
                None => self
                    .translate(model, access, write)
                    .map(|entry| entry.inspect(|entry| self.atc.learn(age, access, *entry))),
            };
            if let Ok(Some(entry)) = found {
                let (address, len) = entry.output(access);
                return Ok(Reach::Translated { address, len, age });
            }
            if found == Err(AtsError::UnsupportedRequest) {
                self.atc.shut();
            }
            self.finish(model, age);
            match found {
                Err(AtsError::UnsupportedRequest) => return Ok(Reach::Untranslated),
                Err(AtsError::CompleterAbort) => return Err(error),
                Ok(_) => {}
            }
            // A success may also mean that the queue was full (IHI 0070 §8.1), or that the page is gone again.
            if asked > 0 {
                std::thread::sleep((Duration::from_micros(10) * asked).min(PAUSE));
            }
            asked = asked.saturating_add(1);
            let is_halted = || self.is_halted();
            let send = |index| self.ask_for_pages(model, access, write, len, index);
            if self.pri.request(is_halted, send) == Answer::Refused {
                return Err(error);
            }
        }
    }

    /// Ends what [`reach`](Self::reach) began.
    pub(crate) fn finish(&self, model: &Model, age: u64) {
        for tag in self.atc.end(age) {
            model.complete_atc_invalidate(tag, true);
        }
    }

    /// A translation request; `None` if there is no such access.
    fn translate(
        &self,
        model: &Model,
        access: Access,
        write: bool,
    ) -> Result<Option<Entry>, AtsError> {
        let answer: AtsTranslation = model.ats_request(&AtsRequest {
            stream_id: self.stream_id,
            substream_id: access.pasid,
            address: access.address,
            no_write: !write,
            privileged: access.privileged,
            execute: false,
        })?;
        Ok(Some(Entry::new(access, &answer)).filter(|entry| entry.permits(write)))
    }

    /// Sends a group of requests: for the page of the access, and for those after it that are not there either.
    fn ask_for_pages(&self, model: &Model, access: Access, write: bool, len: usize, index: u16) {
        let first = access.address & !0xfff;
        let last = access.address.saturating_add(len as u64 - 1);
        let rest = (first..=last).step_by(0x1000).skip(1).filter(|page| {
            let access = Access { address: *page, ..access };
            matches!(self.translate(model, access, write), Ok(None))
        });
        let rest: Vec<_> = rest.take(pri::GROUP - 1).collect();
        let mut pages = std::iter::once(first).chain(rest).peekable();
        while let Some(address) = pages.next() {
            model.page_request(PageRequest {
                sid: self.stream_id,
                ssid: access.pasid,
                write,
                read: !write,
                exec: false,
                privileged: access.privileged && access.pasid.is_some(),
                last: pages.peek().is_none(),
                prg_index: index,
                address,
            });
        }
    }
}

/// The functions behind an SMMU, by StreamID, as the SMMU and its driver reach them.
#[derive(Default)]
pub(crate) struct Endpoints {
    pub(crate) stalls: Stalls,
    functions: RwLock<BTreeMap<u32, Arc<Endpoint>>>,
}

impl Endpoints {
    pub(crate) fn add(&self, endpoint: &Arc<Endpoint>) {
        self.functions.write().insert(endpoint.stream_id, endpoint.clone());
    }

    fn at(&self, stream_id: u32) -> Option<Arc<Endpoint>> {
        self.functions.read().get(&stream_id).cloned()
    }
}

impl Devices for Endpoints {
    fn atc_invalidate(&self, tag: u64, request: AtcInvalidate) -> AtcCompletion {
        let endpoint = self.at(request.stream_id);
        endpoint.map_or(AtcCompletion::Done, |endpoint| endpoint.atc.invalidate(tag, &request))
    }

    fn page_response(&self, response: PageResponse) {
        if let Some(endpoint) = self.at(response.stream_id) {
            endpoint.pri.respond(response.prg_index, response.code);
        }
    }

    fn resume(&self, stream_id: u32, stag: u16, action: Resume) {
        self.stalls.resume(stream_id, stag, action);
    }
}

impl Functions for Endpoints {
    fn enable_ats(&self, stream_id: u32, enable: bool) {
        if let Some(endpoint) = self.at(stream_id) {
            endpoint.atc.enable(enable && endpoint.capabilities.ats);
            // Who takes page requests is the driver's to know: it answers what nobody takes.
            endpoint.pri.enable(enable && endpoint.capabilities.pri);
        }
    }
}
