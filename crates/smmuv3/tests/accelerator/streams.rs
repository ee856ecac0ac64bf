//! What a stream is configured to do: STEs, `SMMUEN`, `GBPA`, and who is told.

use proptest::prelude::*;
use smmuv3::{AssignError, Options, StallModel, StreamConfig};

use crate::common::raw::ste::{self, Ste};
use crate::common::raw::{Words, cmd, reg};
use crate::common::{Machine, STRTAB_LOG2};
use crate::host::Call;
use crate::{
    ASSIGNED, EMULATED, machine, machine_with, options, stage1_ste, translate, translating,
};

/// The fields that the uAPI takes (`struct iommu_hwpt_arm_smmuv3`).
const ALLOWED: [u64; 2] = [
    1 | 0b111 << 1 | 0b11 << 4 | ((1 << 56) - (1 << 6)) | 0x1f << 59,
    0b11 | 0b11 << 2 | 0b11 << 4 | 0b11 << 6 | 1 << 27 | 0b11 << 28,
];

#[test]
fn an_ste_is_reduced_to_what_takes_effect() {
    let (mut m, host) = machine();
    m.smmu.assign(ASSIGNED).unwrap();
    let cd = m.alloc(1 << 12);
    let plain = stage1_ste(cd);
    let full = Words([
        plain.0[0] | 0b01 << 4 | 3 << 59,
        0b10 | 0b01 << 2 | 0b10 << 4 | 0b11 << 6 | 1 << 27 | 0b01 << 28,
        0,
        0,
        0,
        0,
        0,
        0,
    ]);
    let installed = |ste: Ste| {
        m.set_ste(ASSIGNED, ste);
        host.take().into_iter().find_map(|call| match call {
            Call::Install(ASSIGNED, config) => Some(config),
            _ => None,
        })
    };
    host.take();
    assert_eq!(installed(plain), Some(translate(plain)));
    assert_eq!(installed(full), Some(translate(full)));
    assert_eq!(installed(ste::new(ste::BYPASS)), Some(StreamConfig::Bypass));
    assert_eq!(installed(ste::new(ste::ABORT)), Some(StreamConfig::Abort));
    assert_eq!(installed(full), Some(translate(full)));
    // Bits beyond those, or without an effect: nothing changes, so nothing is installed.
    let more = full
        .with(ste::MEV, 1)
        .with(ste::MT_CFG, 1)
        .with(ste::MEM_ATTR, 5)
        .with(ste::SH_CFG, 2)
        .with(ste::S2_TTB, 0x1234)
        .with(ste::S2_R, 1);
    m.store(Machine::ste_at(ASSIGNED), &more);
    m.run(&[cmd::cfgi_ste(ASSIGNED)]);
    assert!(matches!(host.take()[..], [Call::Invalidate(_)]), "its CDs are read again");
    // Without substreams their format does not count.
    let none = plain.with(ste::S1_FMT, 0b10).with(ste::S1_DSS, 0b01);
    assert_eq!(installed(none), Some(translate(plain)));
    // Not valid, illegal, out of the table or not to be read: abort.
    let bad = [
        plain.with(ste::V, 0),
        plain.with(ste::CONFIG, ste::STAGE2),
        plain.with(ste::CONFIG, ste::NESTED),
        plain.with(ste::S1_CD_MAX, 21),
    ];
    for bad in bad {
        installed(plain);
        assert_eq!(installed(bad), Some(StreamConfig::Abort), "{bad:x?}");
    }
    installed(plain);
    let at = Machine::ste_at(ASSIGNED);
    m.ram.make_hole(at..at + 64);
    m.run(&[cmd::cfgi_ste(ASSIGNED)]);
    assert_eq!(host.take(), [Call::Install(ASSIGNED, StreamConfig::Abort)]);
    m.ram.fill_holes();
    let beyond = 1 << STRTAB_LOG2;
    m.smmu.assign(beyond).unwrap();
    assert_eq!(host.take(), [Call::Install(beyond, StreamConfig::Abort)]);
}

proptest! {
    /// Whatever is in the stream table.
    #[test]
    fn nothing_but_allowed_fields_gets_out(
        words in prop::array::uniform8(any::<u64>()),
        config in 0u64..8,
        eats in 0u64..4,
        small in any::<bool>(),
        stalls in any::<bool>(),
    ) {
        let stall_model = if stalls { StallModel::Both } else { StallModel::TerminateOnly };
        let (m, _) = machine_with(Options { stall_model, ..options() });
        let mut ste = Words(words).with(ste::V, 1).with(ste::CONFIG, config).with(ste::EATS, eats);
        if small {
            // Else few are legal.
            ste = ste.with(ste::S1_CD_MAX, words[2] % 21).with(ste::STRW, 0);
            ste.0[0] &= !(0xf << 52);
        }
        m.set_ste(ASSIGNED, ste);
        let legal = ste.get(ste::S1_CD_MAX) <= 20
            && ste.get(ste::S1_CONTEXT_PTR) >> 46 == 0
            && (ste.get(ste::S1_STALLD) == 0 || stalls)
            && eats != 0b10;
        match (config, m.smmu.stream_config(ASSIGNED)) {
            (0b100, found) => prop_assert_eq!(found, StreamConfig::Bypass),
            (0b101, StreamConfig::Translate { ste: found }) => {
                prop_assert!(legal);
                prop_assert_eq!([found[0] & !ALLOWED[0], found[1] & !ALLOWED[1]], [0; 2]);
                prop_assert_eq!(found[0] & 0xf, 0b1011);
                prop_assert!(found[1] >> 28 & 0b11 <= 1);
                let same = |word: usize, mask: u64| (found[word] ^ ste.0[word]) & mask == 0;
                prop_assert!(same(0, ((1 << 56) - (1 << 6)) | 0x1f << 59));
                prop_assert!(same(1, 0xfc | 1 << 27));
            }
            (0b101, found) => {
                prop_assert!(!legal);
                prop_assert_eq!(found, StreamConfig::Abort);
            }
            (_, found) => prop_assert_eq!(found, StreamConfig::Abort),
        }
    }
}

#[test]
fn all_that_a_range_names_are_installed_again_named_before_or_not() {
    let (mut m, host) = machine();
    let cd = m.alloc(64);
    let ste = stage1_ste(cd);
    for sid in [8, 9, 10, 200] {
        m.smmu.assign(sid).unwrap();
    }
    host.take();
    for sid in [7, 8, 9, 10, 11, 200] {
        m.store(Machine::ste_at(sid), &ste);
    }
    m.run(&[]);
    assert_eq!(host.take(), [], "nobody said so");
    let install = |sid| Call::Install(sid, translate(ste));
    // 8 and 9: the low bits of the StreamID are ignored.
    m.run(&[cmd::cfgi_range(9, 0)]);
    assert_eq!(host.take(), [install(8), install(9)]);
    m.run(&[cmd::cfgi_all()]);
    let calls = host.take();
    assert_eq!(calls[..2], [install(10), install(200)]);
    let cds = [8, 9].map(|sid| cmd::stream(cmd::CFGI_CD_ALL, sid).0);
    assert_eq!(calls[2..], [Call::Invalidate(cds.to_vec())], "and the CDs of the others");
}

#[test]
fn while_it_is_disabled_gbpa_decides_for_every_stream() {
    let (m, host) = translating();
    let was = m.smmu.stream_config(ASSIGNED);
    m.smmu.assign(EMULATED).unwrap();
    host.take();
    let both = |config| [Call::Install(ASSIGNED, config), Call::Install(EMULATED, config)];
    let queues = reg::CMDQEN | reg::EVENTQEN;
    // The first of two aborted already: no STE.
    let mut m = m;
    m.set_cr0(queues);
    assert_eq!(host.take(), both(StreamConfig::Bypass));
    m.w32(reg::GBPA, reg::GBPA_ABORT);
    assert_eq!(host.take(), [], "without UPDATE");
    m.w32(reg::GBPA, reg::GBPA_ABORT | reg::GBPA_UPDATE);
    assert_eq!(host.take(), both(StreamConfig::Abort));
    m.run(&[cmd::cfgi_all(), cmd::cfgi_ste(ASSIGNED)]);
    assert_eq!(host.take(), [], "the stream table is not in use");
    m.set_cr0(queues | reg::SMMUEN);
    assert_eq!(host.take(), [Call::Install(ASSIGNED, was)]);
    // And while it is enabled it does not.
    m.w32(reg::GBPA, reg::GBPA_UPDATE);
    assert_eq!(host.take(), []);
    m.set_cr0(queues);
    assert_eq!(host.take(), both(StreamConfig::Bypass));
}

type Read<'a> = &'a dyn Fn(u64) -> u32;

#[test]
fn nothing_is_acknowledged_before_the_host_has_done_it() {
    use std::sync::{Arc, Mutex};
    let (m, host) = translating();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let look = |host: &crate::Host, what: fn(Read) -> u32| {
        let (smmu, seen) = (m.smmu.clone(), seen.clone());
        host.during(move || seen.lock().unwrap().push(what(&|at| smmu.read32(at))));
    };
    let queues = reg::CMDQEN | reg::EVENTQEN;
    let enabled = |read: Read| read(reg::CR0ACK) & reg::SMMUEN;
    look(&host, enabled);
    m.w32(reg::CR0, queues);
    assert_eq!(m.r32(reg::CR0ACK), queues);
    look(&host, |read| read(reg::GBPA) & reg::GBPA_UPDATE);
    m.w32(reg::GBPA, reg::GBPA_ABORT | reg::GBPA_UPDATE);
    assert_eq!(m.r32(reg::GBPA) & reg::GBPA_UPDATE, 0);
    look(&host, enabled);
    m.w32(reg::CR0, queues | reg::SMMUEN);
    assert_eq!(m.r32(reg::CR0ACK), queues | reg::SMMUEN);
    // And CMD_SYNC.
    m.store(Machine::ste_at(ASSIGNED), &ste::new(ste::BYPASS));
    look(&host, |read| read(reg::CMDQ_CONS).wrapping_sub(read(reg::CMDQ_PROD)) & 0x7f);
    m.submit(&[cmd::cfgi_ste(ASSIGNED), cmd::sync()]);
    assert!(m.idle());
    assert_eq!(*seen.lock().unwrap(), [reg::SMMUEN, reg::GBPA_UPDATE, 0, 0x7f]);
}

#[test]
fn streams_come_and_go() {
    let mut m = Machine::booted(options());
    assert_eq!(m.smmu.assign(1), Err(AssignError::NoAccelerator));
    let (other, host) = machine_with(Options { sid_bits: 8, ..options() });
    assert!(other.smmu.accelerate(crate::Host::default()).is_err(), "one is enough");
    assert_eq!(other.smmu.assign(256), Err(AssignError::OutOfRange(256)));
    m = other;
    m.smmu.assign(1).unwrap();
    assert_eq!(m.smmu.assign(1), Err(AssignError::Assigned(1)));
    assert!(m.smmu.unassign(1));
    assert!(!m.smmu.unassign(1));
    host.take();
    m.run(&[cmd::cfgi_all(), cmd::new(cmd::TLBI_NSNH_ALL), cmd::cfgi_cd(1, 0)]);
    m.set_cr0(reg::CMDQEN);
    assert_eq!(host.take(), []);
}

#[test]
fn what_could_not_be_installed_is_tried_again() {
    let (m, host) = translating();
    host.fail_to_install(true);
    m.set_ste(ASSIGNED, ste::new(ste::BYPASS));
    assert_eq!(host.take(), [Call::Install(ASSIGNED, StreamConfig::Bypass)]);
    host.fail_to_install(false);
    m.run(&[cmd::cfgi_ste(ASSIGNED)]);
    assert_eq!(host.take(), [Call::Install(ASSIGNED, StreamConfig::Bypass)]);
    m.run(&[cmd::cfgi_ste(ASSIGNED)]);
    assert_eq!(host.take(), []);
}

#[test]
fn nothing_is_translated_over_what_could_not_be_invalidated() {
    let (mut m, host) = machine();
    let one = m.stage1(ASSIGNED, 1);
    m.run(&[cmd::new(cmd::TLBI_NSNH_ALL)]);
    host.refuse(smmuv3::Refusal::Unknown);
    m.smmu.assign(ASSIGNED).unwrap();
    let flush = Call::Invalidate(vec![cmd::new(cmd::TLBI_NSNH_ALL).0]);
    assert_eq!(host.take(), [flush.clone(), Call::Install(ASSIGNED, StreamConfig::Abort)]);
    m.run(&[cmd::cfgi_ste(ASSIGNED)]);
    assert_eq!(host.take(), [flush, Call::Install(ASSIGNED, translate(one.ste))]);
}
