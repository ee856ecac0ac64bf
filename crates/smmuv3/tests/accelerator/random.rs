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
