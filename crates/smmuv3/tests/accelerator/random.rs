//! Random command streams against an accelerator that refuses at random.

use proptest::prelude::*;
use smmuv3::Refusal;

use crate::common::raw::cmd::{self, Cmd};
use crate::common::raw::reg;
use crate::host::Call;
use crate::{ASSIGNED, EMULATED, translating};

fn command() -> impl Strategy<Value = Cmd> {
    let sid = prop_oneof![Just(ASSIGNED), Just(EMULATED), Just(77u32)];
    (0..10, sid, 0u64..64).prop_map(|(kind, sid, n)| match kind {
        0 => cmd::tlbi_va(cmd::TLBI_NH_VA, 0, n as u16, n << 12),
        1 => cmd::tlbi(cmd::TLBI_NH_ASID, 0, n as u16),
        2 => cmd::new(cmd::TLBI_NSNH_ALL),
        3 => cmd::cfgi_cd(sid, n as u32),
        4 => cmd::stream(cmd::CFGI_CD_ALL, sid),
        5 => cmd::atc_inv(sid, Some(n as u32), n << 12, 0),
        6 => cmd::new(cmd::PREFETCH_CONFIG),
        7 => cmd::cfgi_ste(sid),
        8 => cmd::pri_resp(77, None, n as u16, 0),
        _ => cmd::sync(),
    })
}

fn refusal() -> impl Strategy<Value = Refusal> {
    prop_oneof![(0usize..8).prop_map(|index| Refusal::Illegal { index }), Just(Refusal::Unknown)]
}

/// What the host is to see of a command when nothing fails.
fn expected(command: &Cmd) -> Option<[u64; 2]> {
    let assigned = command.get(cmd::SID) == u64::from(ASSIGNED);
    match command.0[0] & 0xff {
        cmd::TLBI_NH_VA | cmd::TLBI_NH_ASID | cmd::TLBI_NSNH_ALL => Some(command.0),
        cmd::CFGI_CD | cmd::CFGI_CD_ALL | cmd::ATC_INV => assigned.then_some(command.0),
        // The STE never changes here.
        cmd::CFGI_STE => assigned.then(|| cmd::stream(cmd::CFGI_CD_ALL, ASSIGNED).0),
        _ => None,
    }
}

proptest! {
    /// Every command reaches the host in order, whatever it refuses: those before a refused one once, those after it
    /// again.
    #[test]
    fn no_command_is_lost_and_none_overtakes(
        commands in prop::collection::vec(prop::collection::vec(command(), 0..12), 0..12),
        refusals in prop::collection::vec(prop::option::of(refusal()), 0..16),
    ) {
        let (m, host) = translating();
        let mut refusals = refusals.into_iter();
        let mut done = Vec::new();
        // Takes what the host saw, of which it refused what `refused` says.
        let mut take = |refused: Option<Refusal>| {
            let mut calls = host.take().into_iter().filter_map(|call| match call {
                Call::Invalidate(commands) => Some(commands),
                _ => None,
            }).collect::<Vec<_>>();
            if let Some(first) = calls.first_mut() {
                match refused {
                    Some(Refusal::Illegal { index }) if index < first.len() => first.truncate(index),
                    Some(_) => first.clear(),
                    None => {}
                }
            }
            done.extend(calls.into_iter().flatten());
        };
        for group in &commands {
            let next = refusals.next().flatten();
            if let Some(refusal) = next {
                host.refuse(refusal);
            }
            m.submit(group);
            let failed = m.gerror() & reg::CMDQ_ERR != 0;
            take(next.filter(|_| failed));
            m.acknowledge();
            take(None);
            if next.is_some() && !failed {
                // Nothing was forwarded that could be refused: spend it.
                m.submit(&[cmd::new(cmd::TLBI_NSNH_ALL)]);
                host.take();
                m.acknowledge();
                host.take();
            }
            prop_assert!(m.idle());
        }
        let all: Vec<_> = commands.iter().flatten().filter_map(expected).collect();
        prop_assert_eq!(done, all);
    }
}

/// The bits that `IOMMU_HWPT_INVALIDATE` takes in a command, given that the guest is shown RIL (IHI 0070 §4.3 to §4.5):
/// those of VMIDs are the host's.
fn taken(command: &[u64; 2]) -> bool {
    let [low, high] = match command[0] & 0xff {
        cmd::CFGI_CD => [0xffff_ffff_ffff_f0ff, 1],
        cmd::CFGI_CD_ALL => [0xffff_ffff_0000_00ff, 0],
        cmd::TLBI_NH_ALL | cmd::TLBI_NSNH_ALL => [0xff, 0],
        cmd::TLBI_NH_ASID => [0xffff_0000_0000_00ff, 0],
        cmd::TLBI_NH_VA => [0xffff_0000_03f1_f0ff, 0xffff_ffff_ffff_ff01],
        cmd::TLBI_NH_VAA => [0x0000_0000_03f1_f0ff, 0xffff_ffff_ffff_ff01],
        cmd::ATC_INV => [0xffff_ffff_ffff_faff, 0xffff_ffff_ffff_f03f],
        _ => return false,
    };
    command[0] & !low == 0 && command[1] & !high == 0
}

/// What a guest can do that means no good.
#[derive(Debug, Clone)]
enum Act {
    Write(u64, u32),
    Submit(Vec<[u64; 2]>),
    Ste(u32, [u64; 2]),
    Refuse(Refusal),
    FailToInstall(bool),
    Assign(u32, bool),
    Reset,
}

fn act() -> impl Strategy<Value = Act> {
    let registers = [
        reg::CR0,
        reg::CR1,
        reg::CR2,
        reg::GBPA,
        reg::IRQ_CTRL,
        reg::GERRORN,
        reg::STRTAB_BASE,
        reg::STRTAB_BASE_CFG,
        reg::CMDQ_BASE,
        reg::CMDQ_PROD,
        reg::CMDQ_CONS,
        reg::EVENTQ_CONS,
    ];
    let value = prop_oneof![any::<u32>(), 0u32..32, Just(1u32 << 31), Just(0x4_0000), Just(0x46)];
    let opcode = prop::sample::select(vec![
        0x01, 0x03, 0x04, 0x05, 0x06, 0x10, 0x11, 0x12, 0x13, 0x20, 0x28, 0x30, 0x40, 0x41, 0x44,
        0x46, 0x46, 0xff,
    ]);
    let raw = (opcode, 0u64..8, any::<[u64; 2]>(), any::<bool>()).prop_map(
        |(opcode, sid, noise, noisy)| {
            let noise = if noisy { noise } else { [noise[0] & 0xff_f000, noise[1] & 0x3f] };
            [(noise[0] & 0xffff_f000 | opcode) | sid << 32, noise[1]]
        },
    );
    prop_oneof![
        (prop::sample::select(registers.to_vec()), value).prop_map(|(at, to)| Act::Write(at, to)),
        prop::collection::vec(raw, 1..20).prop_map(Act::Submit),
        (0u32..8, any::<[u64; 2]>(), 0u64..8).prop_map(|(sid, noise, config)| {
            Act::Ste(sid, [noise[0] & 0x003f_ffff_ffff_fff0 | config << 1 | 1, noise[1]])
        }),
        refusal().prop_map(Act::Refuse),
        any::<bool>().prop_map(Act::FailToInstall),
        (0u32..8, any::<bool>()).prop_map(|(sid, on)| Act::Assign(sid, on)),
        Just(Act::Reset),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Whatever it writes wherever: only what the uAPI takes gets out, each stream is where its last call put it, and
    /// after a reset everything works.
    #[test]
    fn a_hostile_guest_gets_nothing_out_and_the_next_one_is_served(
        acts in prop::collection::vec(act(), 0..60),
    ) {
        let (mut m, host) = translating();
        for act in acts {
            match act {
                Act::Write(at, value) => m.w32(at, value),
                Act::Submit(commands) => {
                    let commands: Vec<Cmd> = commands.into_iter().map(crate::Words).collect();
                    m.submit(&commands);
                    m.acknowledge();
                }
                Act::Ste(sid, [low, high]) => {
                    m.ram.set(crate::Machine::ste_at(sid), low);
                    m.ram.set(crate::Machine::ste_at(sid) + 8, high);
                }
                Act::Refuse(refusal) => host.refuse(refusal),
                Act::FailToInstall(fails) => host.fail_to_install(fails),
                Act::Assign(sid, true) => _ = m.smmu.assign(sid),
                Act::Assign(sid, false) => _ = m.smmu.unassign(sid),
                Act::Reset => m.smmu.reset(),
            }
            for call in host.take() {
                match call {
                    Call::Invalidate(commands) => {
                        for command in commands {
                            prop_assert!(taken(&command), "{:x?}", command);
                        }
                    }
                    Call::Install(_, smmuv3::StreamConfig::Translate { ste }) => {
                        prop_assert_eq!(ste[0] & 0xf, 0b1011);
                        prop_assert_eq!(ste[0] & 0x07 << 56 | ste[1] & !0x3800_00ff, 0);
                    }
                    _ => {}
                }
            }
        }
        host.fail_to_install(false);
        host.forgive();
        m.smmu.reset();
        let _ = m.smmu.assign(ASSIGNED);
        m.boot();
        host.take();
        let again = m.stage1(ASSIGNED, 9);
        let calls = host.take();
        let installed = Call::Install(ASSIGNED, crate::translate(again.ste));
        prop_assert!(calls.contains(&installed), "{:x?}", calls);
        m.run(&[cmd::tlbi(cmd::TLBI_NH_ASID, 0, 9)]);
        prop_assert_eq!(host.batch(), [cmd::tlbi(cmd::TLBI_NH_ASID, 0, 9).0]);
    }
}
