//! What an operating system does with its SMMU.

use std::sync::Arc;
use std::time::Duration;

use arm_smmu_v3::{
    Attachment, Command, CommandsError, Domain, Error, Events, Options, PageRequests, Prot,
    Registers, Smmu, Stage, Stream, StreamOptions,
};
use smmuv3::wire::PageRequest;

use crate::ram::GuestRam;

const PAGE: u64 = 4096;

/// `CMD_PRI_RESP.Resp`.
const INVALID_REQUEST: u8 = 1;
const SUCCESS: u8 = 2;

/// An operating system that has taken an SMMU into service.
pub struct Guest<R: Registers> {
    smmu: Arc<Smmu<R, Arc<GuestRam>>>,
}

impl<R: Registers> Guest<R> {
    /// Boots on these registers and this memory. All streams abort.
    pub fn boot(registers: R, ram: &Arc<GuestRam>) -> Result<Self, Error> {
        // On a loaded machine, too, it is the VMM that answers.
        let options = Options { timeout: Duration::from_mins(1) };
        Ok(Self { smmu: Smmu::new(registers, ram.clone(), options)? })
    }

    /// The driver.
    pub fn smmu(&self) -> &Arc<Smmu<R, Arc<GuestRam>>> {
        &self.smmu
    }

    /// What its Event queue has.
    pub fn events(&self) -> Events {
        self.smmu.events()
    }

    /// What its PRI queue has: pages that devices ask for.
    pub fn page_requests(&self) -> PageRequests {
        self.smmu.page_requests()
    }

    /// Answers the group of which `last` is the last request: the pages are there, or they will not be.
    pub fn answer(&self, last: &PageRequest, success: bool) -> Result<(), CommandsError> {
        let PageRequest { sid, ssid, prg_index, .. } = *last;
        let resp = if success { SUCCESS } else { INVALID_REQUEST };
        self.smmu.run(&[Command::PriResp { sid, ssid, prg_index, resp }])
    }

    /// A domain of stage 1.
    pub fn domain(&self) -> Result<Arc<Domain<R, Arc<GuestRam>>>, Error> {
        Domain::new(&self.smmu, Stage::One, false)
    }

    /// Takes a stream and attaches it to a domain of its own.
    pub fn stream(&self, id: u32) -> Result<GuestStream<R>, Error> {
        self.stream_in(id, StreamOptions::default(), &self.domain()?)
    }

    /// Takes a stream and attaches it to a domain.
    pub fn stream_in(
        &self,
        id: u32,
        options: StreamOptions,
        domain: &Arc<Domain<R, Arc<GuestRam>>>,
    ) -> Result<GuestStream<R>, Error> {
        let stream = Stream::new(&self.smmu, id, options)?;
        stream.attach(Attachment::Paging(domain.clone()))?;
        Ok(GuestStream { stream, domain: domain.clone() })
    }
}

/// A device in the hands of the operating system.
pub struct GuestStream<R: Registers> {
    stream: Stream<R, Arc<GuestRam>>,
    domain: Arc<Domain<R, Arc<GuestRam>>>,
}

impl<R: Registers> GuestStream<R> {
    /// The stream.
    pub fn stream(&self) -> &Stream<R, Arc<GuestRam>> {
        &self.stream
    }

    /// What it translates through.
    pub fn domain(&self) -> &Arc<Domain<R, Arc<GuestRam>>> {
        &self.domain
    }

    /// Lets the device see a page of memory.
    pub fn map(&self, iova: u64, page: u64) -> Result<(), Error> {
        let prot = Prot::READ | Prot::WRITE | Prot::CACHE;
        self.domain.map(iova..iova + PAGE, page, prot, PAGE)
    }

    /// Lets it see registers of another device, such as an MSI doorbell.
    pub fn map_mmio(&self, iova: u64, page: u64) -> Result<(), Error> {
        self.domain.map(iova..iova + PAGE, page, Prot::READ | Prot::WRITE | Prot::MMIO, PAGE)
    }

    /// Strict unmapping: when it returns the device does not see the page any more.
    pub fn unmap(&self, iova: u64) -> Result<(), Error> {
        self.unmap_lazily(iova)?;
        self.domain.sync()
    }

    /// Lazy unmapping: the device sees the page until [`Domain::sync`].
    pub fn unmap_lazily(&self, iova: u64) -> Result<(), Error> {
        self.domain.unmap(iova..iova + PAGE)
    }
}
