//! What software talks to: the register file, the queues behind it, stalled transactions.
//!
//! One lock around all of it. Transactions take it only to report a fault.

use std::collections::VecDeque;

use crate::accelerator::Assigned;
use crate::cache::in_flight::Outstanding;
use crate::options::{Httu, Options, StallModel, Version};
use crate::platform::{AtcInvalidate, PageResponse, Resume, Wire};
use crate::wire::Event;
use crate::wire::register::{Aidr, Cr0, Gbpa, Idr0, Idr1, Idr3, Idr5, Register, Ring};

/// Something to be done without the lock held, in order.
#[derive(Debug)]
pub(crate) enum Effect {
    Pulse(Wire),
    AtcInvalidate {
        tag: u64,
        request: AtcInvalidate,
    },
    PageResponse(PageResponse),
    Resume {
        stream_id: u32,
        stag: u16,
        action: Resume,
    },
    /// The accelerator installs the configuration that the stream has then.
    Install {
        stream_id: u32,
    },
    /// The accelerator forgets all translations.
    Flush,
    /// The accelerator carries out a batch of invalidations.
    Forward {
        tag: u64,
        commands: Vec<[u64; 2]>,
    },
}

/// A transaction that waits for `CMD_RESUME`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stalled {
    pub(crate) event: Event,
    /// The event is in the queue.
    pub(crate) reported: bool,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Front {
    values: Box<[u64]>,
    pub(crate) effects: VecDeque<Effect>,
    /// Somebody performs an effect right now.
    pub(crate) draining: bool,
    /// Commands that the one who performs effects may execute for others.
    pub(crate) credit: u32,
    /// By STAG.
    pub(crate) stalled: Box<[Option<Stalled>]>,
    pub(crate) next_stag: u16,
    /// The record that was written last, for merging; its position in the queue.
    pub(crate) last_event: Option<(Event, u32)>,
    /// ATS invalidations without an answer.
    pub(crate) atc_pending: Vec<u64>,
    pub(crate) atc_tag: u64,
    /// One of those before the next `CMD_SYNC` timed out.
    pub(crate) atc_failed: bool,
    /// What the `CMD_SYNC` at the head of the queue waits for.
    pub(crate) sync: Option<Outstanding>,
    /// What the acknowledgement of `CR0.SMMUEN` waits for.
    pub(crate) enable: Option<Outstanding>,
    pub(crate) assigned: Assigned,
    command_queue_entries: u32,
}

impl Front {
    pub(crate) fn new(options: &Options) -> Self {
        let mut front = Self {
            values: vec![0; Register::ALL.len()].into(),
            effects: VecDeque::new(),
            draining: false,
            credit: 0,
            stalled: vec![None; usize::from(options.stall_max)].into(),
            next_stag: 0,
            last_event: None,
            atc_pending: Vec::new(),
            atc_tag: 0,
            atc_failed: false,
            sync: None,
            enable: None,
            assigned: Assigned::default(),
            command_queue_entries: 1 << options.cmdq_log2,
        };
        front.set(Register::Idr0, idr0(options).0.into());
        front.set(Register::Idr1, idr1(options).0.into());
        front.set(Register::Idr3, idr3(options).0.into());
        front.set(Register::Idr5, idr5(options).0.into());
        front.set(Register::Iidr, options.iidr.into());
        front.set(Register::Aidr, aidr(options).0.into());
        front.set(
            Register::Gbpa,
            Gbpa(0)
                .with_sh_cfg(u8::from(options.attr_types_ovr))
                .with_abort(options.reset_abort)
                .0
                .into(),
        );
        for (register, value) in [
            // A CoreLink-style component: class 0xF, designer Arm.
            (Register::Pidr4, 0x04),
            (Register::Pidr0, 0x84),
            (Register::Pidr1, 0xb4),
            (Register::Pidr2, 0x1b),
            (Register::Cidr0, 0x0d),
            (Register::Cidr1, 0xf0),
            (Register::Cidr2, 0x05),
            (Register::Cidr3, 0xb1),
        ] {
            front.set(register, value);
        }
        front
    }

    #[inline]
    pub(crate) fn value(&self, register: Register) -> u64 {
        self.values[register as usize]
    }

    #[inline]
    pub(crate) fn word(&self, register: Register) -> u32 {
        self.values[register as usize] as u32
    }

    pub(crate) fn set(&mut self, register: Register, value: u64) {
        self.values[register as usize] = value;
    }

    pub(crate) fn cr0(&self) -> Cr0 {
        Cr0(self.word(Register::Cr0))
    }

    /// Commands that one call executes at most: a queue's length, so that a guest that keeps adding some
    /// does not keep the thread.
    pub(crate) fn command_budget(&self) -> u32 {
        self.command_queue_entries
    }

    pub(crate) fn atc_done(&mut self, tag: u64, success: bool) {
        let before = self.atc_pending.len();
        self.atc_pending.retain(|pending| *pending != tag);
        self.atc_failed |= before != self.atc_pending.len() && !success;
    }

    /// The queue that a base register describes: its address and its ring.
    pub(crate) fn queue(&self, base: Register, entry_log2: u32, max_log2: u8) -> (u64, Ring) {
        let base = crate::wire::register::QueueBase(self.value(base));
        let log2 = u32::from(base.log2size()).min(max_log2.into());
        (base.addr() & !((1 << (log2 + entry_log2)) - 1), Ring::new(log2))
    }
}

fn idr0(o: &Options) -> Idr0 {
    Idr0(0)
        .with_s2p(o.stage2)
        .with_s1p(o.stage1)
        .with_ttf(0b10)
        .with_cohacc(o.cohacc)
        .with_httu(match o.httu {
            Httu::None => 0,
            Httu::Access => 1,
            Httu::AccessDirty => 2,
        })
        .with_hyp(o.hyp)
        .with_ats(o.ats)
        .with_ns1ats(o.ns1ats)
        .with_asid16(o.asid16)
        .with_msi(o.msi)
        .with_sev(o.sev)
        .with_pri(o.pri)
        .with_vmid16(o.vmid16)
        .with_cd2l(o.cd2l)
        .with_ttendian(0b10)
        .with_atsrecerr(o.atsrecerr)
        .with_stall_model(match o.stall_model {
            StallModel::Both => 0,
            StallModel::TerminateOnly => 1,
            StallModel::StallOnly => 2,
        })
        .with_term_model(o.abort_only)
        .with_st_level(u8::from(o.two_level_stream_table))
}

fn idr1(o: &Options) -> Idr1 {
    Idr1(0)
        .with_sid_size(o.sid_bits)
        .with_ssid_size(o.ssid_bits)
        .with_priqs(o.priq_log2)
        .with_eventqs(o.eventq_log2)
        .with_cmdqs(o.cmdq_log2)
        .with_attr_perms_ovr(o.attr_perms_ovr)
        .with_attr_types_ovr(o.attr_types_ovr)
}

fn idr3(o: &Options) -> Idr3 {
    Idr3(0)
        .with_had(o.had)
        .with_xnx(o.xnx)
        .with_pps(o.pps)
        .with_fwb(o.fwb)
        .with_stt(o.stt)
        .with_ril(o.ril)
        .with_bbml(o.bbml)
        .with_e0pd(o.e0pd)
        .with_ptwnnc(o.ptwnnc)
}

fn idr5(o: &Options) -> Idr5 {
    let oas = [32, 36, 40, 42, 44, 48, 52].iter().position(|bits| *bits == o.oas).unwrap_or(0);
    Idr5(0)
        .with_oas(oas as u8)
        .with_gran4k(o.gran4k)
        .with_gran16k(o.gran16k)
        .with_gran64k(o.gran64k)
        .with_vax(u8::from(o.va52))
        .with_ds(o.ds)
        .with_stall_max(o.stall_max)
}

fn aidr(o: &Options) -> Aidr {
    Aidr(0).with_minor(match o.version {
        Version::V3_0 => 0,
        Version::V3_1 => 1,
        Version::V3_2 => 2,
        Version::V3_3 => 3,
    })
}
