//! From a StreamID and SubstreamID to a translation context: the stream table, the STE, the CD.
//!
//! [`Context`] is the one decoded form of a configuration. Whoever translates, explains or forwards
//! a stream reads it; nobody else looks into an STE or a CD.

use crate::attributes::Attributes;
use crate::wire::register::Gbpa;
use pagetable::{Granule, Regime, Shareability, Stage1Controls, Stage2Controls, Table};

use crate::cache::generation::{Space, StreamWorld};
use crate::options::{Httu, Options, StallModel, Version};
use crate::wire::cd::Cd;
use crate::wire::ste::Ste;

/// What a stream (with a substream) is configured to do.
#[derive(Debug, Clone)]
pub(crate) struct Context {
    pub(crate) ste: Ste,
    /// `None` where stage 1 is off, or skipped by `S1DSS`.
    pub(crate) stage1: Option<Stage1>,
    pub(crate) stage2: Option<Stage2>,
    /// Transactions are to be aborted in silence (`Config == 0b0xx`).
    pub(crate) abort: bool,
    /// The address space of the stream's combined translations.
    pub(crate) space: Space,
    /// The address space of its stage 2.
    pub(crate) vm: Space,
    /// Effective `EATS`.
    pub(crate) eats: Eats,
    /// What becomes of the attributes that transactions come with.
    pub(crate) overrides: Overrides,
    /// Events may be merged.
    pub(crate) mev: bool,
    /// The SubstreamID that selected the CD.
    pub(crate) substream_id: u32,
}

/// What a stream may do with ATS: the effective value of `STE.EATS`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Eats {
    Disabled,
    Full,
    SplitStage,
}

/// What happens to a transaction that a translation fault ends (§5.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FaultControls {
    /// Terminate with an abort, else RAZ/WI.
    pub(crate) abort: bool,
    pub(crate) record: bool,
    pub(crate) stall: bool,
}

#[derive(Debug, Clone)]
pub(crate) struct Stage1 {
    /// Two halves selected by bit 55; else only the lower one exists.
    pub(crate) two_halves: bool,
    /// What TTB0 and TTB1 translate; `None` if `EPDx`.
    pub(crate) halves: [Option<Half>; 2],
    pub(crate) tbi: [bool; 2],
    pub(crate) controls: Stage1Controls,
    pub(crate) affd: bool,
    pub(crate) ha: bool,
    pub(crate) hd: bool,
    pub(crate) mair: u64,
    pub(crate) faults: FaultControls,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Half {
    pub(crate) table: Table,
    pub(crate) had: bool,
    pub(crate) e0pd: bool,
    /// Where descriptors hold 52-bit addresses, shareability comes from here.
    pub(crate) shareability: Option<Shareability>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Stage2 {
    pub(crate) table: Table,
    pub(crate) controls: Stage2Controls,
    pub(crate) shareability: Option<Shareability>,
    pub(crate) affd: bool,
    pub(crate) ha: bool,
    pub(crate) hd: bool,
    pub(crate) ptw: bool,
    pub(crate) fwb: bool,
    pub(crate) faults: FaultControls,
}

/// The registers and options that give STEs and CDs their meaning.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules<'a> {
    pub(crate) options: &'a Options,
    /// `CR0.ATSCHK`.
    pub(crate) atschk: bool,
    /// `CR2.E2H`.
    pub(crate) e2h: bool,
}

/// Which CD a transaction uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CdIndex {
    /// None: stage 1 is off or skipped.
    Skip,
    Index(u32),
}

/// An address size field (`CD.IPS`, `STE.S2PS`) in bits; reserved values behave as the largest of the version.
fn size_bits(field: u8, options: &Options) -> u8 {
    let largest = if options.version == Version::V3_0 { 48 } else { 52 };
    let bits = [32, 36, 40, 42, 44, 48, 52, 52][usize::from(field & 7)];
    bits.min(largest).min(options.oas)
}

fn granule0(tg: u8, options: &Options) -> Option<Granule> {
    let granule = match tg {
        0b00 => Granule::K4,
        0b01 => Granule::K64,
        0b10 => Granule::K16,
        _ => return None,
    };
    options.has_granule(granule).then_some(granule)
}

fn granule1(tg: u8, options: &Options) -> Option<Granule> {
    let granule = match tg {
        0b10 => Granule::K4,
        0b11 => Granule::K64,
        0b01 => Granule::K16,
        _ => return None,
    };
    options.has_granule(granule).then_some(granule)
}

impl Rules<'_> {
    fn stalls(&self, stall: bool) -> bool {
        match self.options.stall_model {
            StallModel::Both => true,
            StallModel::TerminateOnly => !stall,
            StallModel::StallOnly => stall,
        }
    }

    fn httu(&self, ha: bool, hd: bool) -> bool {
        match self.options.httu {
            Httu::None => !ha && !hd,
            Httu::Access => !hd,
            Httu::AccessDirty => true,
        }
    }

    /// The largest TxSZ (the smallest range).
    fn txsz_max(&self, granule: Granule) -> u8 {
        match (self.options.stt, granule) {
            (false, _) => 39,
            (true, Granule::K64) => 47,
            (true, _) => 48,
        }
    }

    /// `STRW`, where it counts.
    fn world(&self, ste: &Ste) -> Option<StreamWorld> {
        let ignored = !self.options.stage1
            || !self.options.hyp
            || ste.config() & 0b10 != 0
            || ste.config() == 0b100;
        match ste.strw() {
            _ if ignored => Some(StreamWorld::El1),
            0b00 => Some(StreamWorld::El1),
            0b10 if self.e2h => Some(StreamWorld::El2E2h),
            0b10 => Some(StreamWorld::El2),
            _ => None,
        }
    }

    /// Decodes an STE up to what a CD adds, or `None` if it is ILLEGAL (§5.2.2).
    pub(crate) fn ste(&self, ste: Ste) -> Option<Context> {
        if !ste.v() {
            return None;
        }
        let options = self.options;
        let (stage1, stage2) = (ste.config() & 0b101 == 0b101, ste.config() & 0b110 == 0b110);
        let mut context = Context {
            ste,
            stage1: None,
            stage2: None,
            abort: ste.config() & 0b100 == 0,
            space: Space::new(StreamWorld::El1, 0, 0, false, false),
            vm: Space::stage2(0),
            eats: Eats::Disabled,
            overrides: Overrides::of_ste(&ste, options),
            mev: ste.mev(),
            substream_id: 0,
        };
        if context.abort {
            return Some(context);
        }
        if stage1 && !options.stage1 || stage2 && !options.stage2 {
            return None;
        }
        if options.ats && ste.config() != 0b100 {
            context.eats = self.eats(&ste, stage2)?;
        }
        let world = self.world(&ste)?;
        if stage1 {
            self.stage1_fields(&ste)?;
        }
        let vmid = if options.stage2 && world == StreamWorld::El1 && ste.config() != 0b100 {
            ste.s2_vmid()
        } else {
            0
        };
        if !options.vmid16 && vmid > 0xff {
            return None;
        }
        context.vm = Space::stage2(vmid);
        context.space = Space::new(world, vmid, 0, false, stage2);
        if stage2 {
            context.stage2 = Some(self.stage2(&ste)?);
        }
        Some(context)
    }

    fn eats(&self, ste: &Ste, stage2: bool) -> Option<Eats> {
        match ste.eats() {
            0b01 if stage2 && ste.s2_s() => None,
            0b01 => Some(Eats::Full),
            0b10 if ste.config() != 0b111 || ste.s2_s() || self.options.ns1ats => None,
            0b10 if self.atschk => Some(Eats::SplitStage),
            _ => Some(Eats::Disabled),
        }
    }

    fn stage1_fields(&self, ste: &Ste) -> Option<()> {
        let options = self.options;
        let stalld_legal = !ste.s1_stalld() || options.stall_model == StallModel::Both;
        let substreams = options.ssid_bits > 0;
        let count_legal = !substreams || ste.s1_cd_max() <= options.ssid_bits;
        let two_level = substreams && ste.s1_cd_max() > 0 && matches!(ste.s1_fmt(), 0b01 | 0b10);
        let legal = stalld_legal
            && count_legal
            && (!two_level || options.cd2l)
            && ste.s1_context_ptr() >> options.oas == 0;
        legal.then_some(())
    }

    fn stage2(&self, ste: &Ste) -> Option<Stage2> {
        let options = self.options;
        if !ste.s2_aa64()
            || ste.s2_endi()
            || !self.stalls(ste.s2_s())
            || !self.httu(ste.s2_ha(), ste.s2_hd())
        {
            return None;
        }
        let granule = granule0(ste.s2_tg(), options)?;
        let ds = options.ds && ste.s2_ds() && granule != Granule::K64;
        let wide = ds || granule == Granule::K64 && options.version >= Version::V3_1;
        let smallest = if wide { 12 } else { 16 }.max(64 - options.oas);
        if !(smallest..=self.txsz_max(granule)).contains(&ste.s2_t0sz()) {
            return None;
        }
        let output = size_bits(ste.s2_ps(), options);
        let reach = if wide { output } else { output.min(48) };
        if ste.s2_ttb() >> reach != 0 {
            return None;
        }
        let start = start_level(granule, ds, ste.s2_sl0(), ste.s2_sl0_2(), options)?;
        let base = ste.s2_ttb() & if output == 52 { !0x3f } else { !0 };
        let table = Table::stage2(granule, 64 - ste.s2_t0sz(), start, output, ds, base).ok()?;
        let ha = ste.s2_ha();
        let hd = ste.s2_hd() && ha;
        Some(Stage2 {
            table: with_lpa(table, options),
            controls: Stage2Controls { xnx: options.xnx, hardware_dirty: hd },
            shareability: ds.then(|| Shareability::from_bits(ste.s2_sh0().into())),
            affd: ste.s2_affd(),
            ha,
            hd,
            ptw: ste.s2_ptw() && ste.config() == 0b111,
            fwb: options.fwb && ste.s2_fwb(),
            faults: FaultControls { abort: true, record: ste.s2_r(), stall: ste.s2_s() },
        })
    }

    /// Adds a CD to a context, or `None` if the CD is ILLEGAL (§5.4.2).
    pub(crate) fn cd(&self, mut context: Context, cd: Cd, index: u32) -> Option<Context> {
        let options = self.options;
        let world = self.world(&context.ste)?;
        let (asids, two_halves) = (world != StreamWorld::El2, world != StreamWorld::El2);
        let legal = cd.v()
            && !(context.ste.s1_stalld() && cd.s())
            && (cd.a() || !options.abort_only)
            && self.stalls(cd.s())
            && cd.aa64()
            && self.httu(cd.ha(), cd.hd())
            && (options.asid16 || !asids || cd.asid() <= 0xff);
        if !legal {
            return None;
        }
        let epd = [cd.epd0() && two_halves, cd.epd1() || !two_halves];
        if cd.endi() && !(epd[0] && epd[1]) {
            return None;
        }
        let output = size_bits(cd.ips(), options);
        let lower = if epd[0] {
            None
        } else {
            let granule = granule0(cd.tg0(), options)?;
            let sh = Shareability::from_bits(cd.sh0().into());
            Some(self.half(
                &cd,
                granule,
                cd.t0sz(),
                cd.ttb0(),
                output,
                options.had && cd.had0(),
                cd.e0pd0() && two_halves,
                sh,
            )?)
        };
        let upper = if epd[1] {
            None
        } else {
            let granule = granule1(cd.tg1(), options)?;
            let sh = Shareability::from_bits(cd.sh1().into());
            Some(self.half(
                &cd,
                granule,
                cd.t1sz(),
                cd.ttb1(),
                output,
                options.had && cd.had1(),
                cd.e0pd1(),
                sh,
            )?)
        };
        let ha = cd.ha();
        let hd = cd.hd() && ha;
        let vmid = (context.vm.tag >> 16) as u16;
        context.space = Space::new(world, vmid, cd.asid(), true, context.stage2.is_some());
        context.substream_id = index;
        context.stage1 = Some(Stage1 {
            two_halves,
            halves: [lower, upper],
            tbi: [cd.tbi0(), cd.tbi1()],
            controls: Stage1Controls {
                regime: if two_halves { Regime::TwoPrivileges } else { Regime::OnePrivilege },
                hierarchical_disabled: false,
                wxn: cd.wxn(),
                pan: cd.pan() && two_halves,
                epan: false,
                hardware_dirty: hd,
            },
            affd: cd.affd(),
            ha,
            hd,
            mair: cd.mair(),
            faults: FaultControls { abort: cd.a(), record: cd.r(), stall: cd.s() },
        });
        Some(context)
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of one half of a CD")]
    fn half(
        &self,
        cd: &Cd,
        granule: Granule,
        txsz: u8,
        ttb: u64,
        output: u8,
        had: bool,
        e0pd: bool,
        sh: Shareability,
    ) -> Option<Half> {
        let options = self.options;
        let ds = options.ds && cd.ds() && granule != Granule::K64;
        let wide = ds || granule == Granule::K64;
        let smallest = if wide && options.va52 { 12 } else { 16 };
        if !(smallest..=self.txsz_max(granule)).contains(&txsz) {
            return None;
        }
        let reach = if wide { output } else { output.min(48) };
        if ttb >> reach != 0 {
            return None;
        }
        let base = ttb & if output == 52 { !0x3f } else { !0 };
        let table = Table::stage1(granule, 64 - txsz, output, ds, base).ok()?;
        Some(Half {
            table: with_lpa(table, options),
            had,
            e0pd: e0pd && options.e0pd,
            shareability: ds.then_some(sh),
        })
    }

    /// Which CD a transaction uses. The errors are `C_BAD_SUBSTREAMID` and `F_STREAM_DISABLED`.
    pub(crate) fn select_cd(
        &self,
        ste: &Ste,
        substream_id: Option<u32>,
    ) -> Result<CdIndex, SubstreamError> {
        let stage1 = ste.config() & 0b101 == 0b101;
        let substreams = self.options.ssid_bits > 0 && ste.s1_cd_max() > 0;
        match substream_id {
            Some(_) if !stage1 || !substreams => Err(SubstreamError::Bad),
            Some(ssid) if ssid >> ste.s1_cd_max() != 0 => Err(SubstreamError::Bad),
            Some(0) if ste.s1_dss() == 0b10 => Err(SubstreamError::Disabled),
            Some(ssid) => Ok(CdIndex::Index(ssid)),
            None if !stage1 => Ok(CdIndex::Skip),
            None if !substreams => Ok(CdIndex::Index(0)),
            None => match ste.s1_dss() {
                0b01 => Ok(CdIndex::Skip),
                0b10 => Ok(CdIndex::Index(0)),
                _ => Err(SubstreamError::Disabled),
            },
        }
    }
}

/// Why a SubstreamID selects no CD.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SubstreamError {
    /// `C_BAD_SUBSTREAMID`.
    Bad,
    /// `F_STREAM_DISABLED`.
    Disabled,
}

fn with_lpa(table: Table, options: &Options) -> Table {
    Table::new(table.geometry().with_lpa(options.oas == 52), table.base())
}

/// The initial level that `S2SL0` and `S2SL0_2` name (DDI 0487, VTCR_EL2.{SL2,SL0}).
fn start_level(granule: Granule, ds: bool, sl0: u8, sl2: bool, options: &Options) -> Option<i8> {
    let level = match (granule, sl2 && ds && granule == Granule::K4, sl0) {
        (Granule::K4, true, 0b00) => -1,
        (Granule::K4, true, _) => return None,
        (Granule::K4, false, 0b00) => 2,
        (Granule::K4, false, 0b01) => 1,
        (Granule::K4, false, 0b10) => 0,
        (Granule::K4, false, _) | (_, _, 0b00) => 3,
        (_, _, 0b01) => 2,
        (_, _, 0b10) => 1,
        (Granule::K16, _, _) if ds => 0,
        _ => return None,
    };
    let legal = match (granule, level) {
        // A 4K walk that starts in its last level is of the small tables.
        (Granule::K4, 3) => options.stt,
        // As in DDI 0487 (S2InvalidSL), higher levels are for those with addresses to fill them.
        (Granule::K4, 0) | (Granule::K64, 1) => options.oas >= 44,
        (Granule::K16, 1) => options.oas >= 42,
        (Granule::K16, 0) => options.oas >= 52,
        _ => true,
    };
    legal.then_some(level)
}

/// What an STE or `GBPA` makes of the attributes of incoming transactions (§5.2, §6.3.14).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Overrides {
    privileged: Option<bool>,
    instruction: Option<bool>,
    mem_attr: Option<u8>,
    /// Read-allocate, write-allocate, transient.
    allocation: Option<u8>,
    shareability: Option<Shareability>,
}

impl Overrides {
    fn new(
        options: &Options,
        priv_cfg: u8,
        inst_cfg: u8,
        mem_attr: Option<u8>,
        alloc_cfg: u8,
        sh_cfg: u8,
    ) -> Self {
        let choose = |field| match field {
            0b10 => Some(false),
            0b11 => Some(true),
            _ => None,
        };
        let (permissions, types) = (options.attr_perms_ovr, options.attr_types_ovr);
        Self {
            privileged: choose(priv_cfg).filter(|_| permissions),
            instruction: choose(inst_cfg).filter(|_| permissions),
            mem_attr: mem_attr.filter(|_| types),
            allocation: (types && alloc_cfg & 0b1000 != 0).then_some(alloc_cfg & 0b111),
            shareability: (types && sh_cfg != 0b01).then(|| Shareability::from_bits(sh_cfg.into())),
        }
    }

    fn of_ste(ste: &Ste, options: &Options) -> Self {
        let mem_attr = ste.mt_cfg().then(|| ste.mem_attr());
        Self::new(options, ste.priv_cfg(), ste.inst_cfg(), mem_attr, ste.alloc_cfg(), ste.sh_cfg())
    }

    pub(crate) fn of_gbpa(gbpa: Gbpa, options: &Options) -> Self {
        let mem_attr = gbpa.mt_cfg().then(|| gbpa.mem_attr());
        Self::new(
            options,
            gbpa.priv_cfg(),
            gbpa.inst_cfg(),
            mem_attr,
            gbpa.alloc_cfg(),
            gbpa.sh_cfg(),
        )
    }

    #[inline]
    pub(crate) fn privileged(self, incoming: bool) -> bool {
        self.privileged.unwrap_or(incoming)
    }

    /// Writes are data, whatever was said.
    #[inline]
    pub(crate) fn instruction(self, incoming: bool, write: bool) -> bool {
        !write && self.instruction.unwrap_or(incoming)
    }

    pub(crate) fn attributes(self, incoming: Attributes) -> Attributes {
        let shareability = self.shareability.unwrap_or(incoming.shareability);
        let mut attributes = Attributes::from_mair(incoming.memory, shareability);
        if let Some(mem_attr) = self.mem_attr {
            attributes = Attributes { shareability, ..attributes }.with_mem_attr(mem_attr);
        }
        match self.allocation {
            Some(hints) => attributes.with_allocation(hints),
            None => attributes,
        }
    }

    /// Whether memory types or hints are replaced.
    #[inline]
    pub(crate) fn types(self) -> bool {
        self.mem_attr.is_some() || self.allocation.is_some()
    }
}
