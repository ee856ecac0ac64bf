//! Reset, saving and restoring, and many processors at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use smmuv3::{Options, Refusal, Smmu, StreamConfig};

use crate::common::raw::cmd;
use crate::common::raw::{reg, ste};
use crate::common::{CMDQ, CMDQ_LOG2, Machine};
use crate::host::{Call, Host};
use crate::{ASSIGNED, EMULATED, machine, options, translating};

fn nsnh_all() -> [u64; 2] {
    cmd::new(cmd::TLBI_NSNH_ALL).0
}

#[test]
fn a_reset_takes_streams_to_what_gbpa_says_and_keeps_them() {
    for reset_abort in [false, true] {
        let (mut m, host) = crate::machine_with(Options { reset_abort, ..options() });
        m.stage1(ASSIGNED, 1);
        m.smmu.assign(ASSIGNED).unwrap();
        let was = m.smmu.stream_config(ASSIGNED);
        let smmu = m.smmu.clone();
        host.take();
        // The streams first, then the registers.
        host.during(move || assert_eq!(smmu.read32(reg::CR0) & reg::SMMUEN, reg::SMMUEN));
        m.smmu.reset();
        let policy = if reset_abort { StreamConfig::Abort } else { StreamConfig::Bypass };
        let calls = host.take();
        assert_eq!(calls[0], Call::Install(ASSIGNED, policy));
        assert_eq!(calls[1..], [Call::Invalidate(vec![nsnh_all()])]);
        // The next guest finds the same devices.
        m.boot();
        assert!(host.take().contains(&Call::Install(ASSIGNED, was)));
    }
}

#[test]
fn a_reset_in_the_midst_of_a_batch_leaves_nothing_of_it() {
    let (mut m, host) = translating();
    let (smmu, start) = (m.smmu.clone(), m.r32(reg::CMDQ_PROD));
    // The next guest is fast: its first batch waits when the result of the old one comes in, which is bad.
    host.during(move || {
        smmu.reset();
        smmu.write64(reg::CMDQ_BASE, CMDQ | u64::from(CMDQ_LOG2));
        smmu.write32(reg::CMDQ_CONS, start);
        smmu.write32(reg::CMDQ_PROD, start + 2);
        smmu.write32(reg::CR0, reg::CMDQEN);
    });
    host.refuse(Refusal::Illegal { index: 1 });
    let commands = [cmd::new(cmd::TLBI_NH_ALL), cmd::tlbi(cmd::TLBI_NH_ASID, 0, 1)];
    m.submit(&commands);
    assert_eq!((m.gerror(), m.r32(reg::CMDQ_CONS)), (0, start + 2));
    let batch = Call::Invalidate(commands.map(|command| command.0).to_vec());
    let calls = host.take();
    assert_eq!(calls.iter().filter(|call| **call == batch).count(), 2, "{calls:x?}");
    m.smmu.reset();
    m.boot();
    m.run(&[cmd::new(cmd::TLBI_NH_ALL)]);
    assert_eq!(m.smmu.stream_config(ASSIGNED), last_installed(&host.take()).unwrap());
}

fn last_installed(calls: &[Call]) -> Option<StreamConfig> {
    calls.iter().rev().find_map(|call| match call {
        Call::Install(ASSIGNED, config) => Some(*config),
        _ => None,
    })
}

#[test]
fn a_restore_drives_every_stream_again_and_repeats_what_was_under_way() {
    let (m, host) = translating();
    let was = m.smmu.stream_config(ASSIGNED);
    let (smmu, state) = (m.smmu.clone(), Arc::new(std::sync::Mutex::new(None)));
    let saved = state.clone();
    host.during(move || *saved.lock().unwrap() = Some(smmu.save()));
    m.submit(&[cmd::cfgi_cd(ASSIGNED, 0), cmd::new(cmd::TLBI_NH_ALL), cmd::sync()]);
    host.take();
    let state = state.lock().unwrap().take().unwrap();
    // Somewhere else, on a copy of the memory: here the same.
    let other = Smmu::new(options(), m.ram.clone(), (), ()).unwrap();
    let there = Arc::new(Host::default());
    other.accelerate(there.clone()).unwrap();
    other.assign(ASSIGNED).unwrap();
    there.take();
    other.restore(&state).unwrap();
    assert_eq!(
        there.take(),
        [
            Call::Invalidate(vec![nsnh_all()]),
            Call::Install(ASSIGNED, was),
            Call::Invalidate(vec![cmd::cfgi_cd(ASSIGNED, 0).0, cmd::new(cmd::TLBI_NH_ALL).0]),
        ]
    );
    assert_eq!(other.read32(reg::CMDQ_CONS), m.r32(reg::CMDQ_PROD));
    // And in place, where nothing differs but what memory holds.
    let state = m.smmu.save();
    m.smmu.restore(&state).unwrap();
    let cds = cmd::stream(cmd::CFGI_CD_ALL, ASSIGNED).0;
    assert_eq!(host.take(), [Call::Invalidate(vec![nsnh_all(), cds])]);
}

/// Processors that enable and disable, reconfigure and invalidate, while streams come and go.
#[test]
fn in_the_end_the_host_does_what_software_said_last() {
    let (mut m, host) = machine();
    let stage1 = m.stage1(ASSIGNED, 1);
    m.smmu.assign(ASSIGNED).unwrap();
    m.smmu.assign(EMULATED).unwrap();
    let running = Arc::new(AtomicBool::new(true));
    let everything = reg::CMDQEN | reg::EVENTQEN | reg::PRIQEN | reg::SMMUEN;
    std::thread::scope(|scope| {
        let (smmu, ram) = (&m.smmu, &m.ram);
        let others: Vec<Box<dyn Fn(u32) + Send>> = vec![
            Box::new(move |n| smmu.write32(reg::CR0, everything & !(n & 1))),
            Box::new(move |n| smmu.write32(reg::GBPA, (n & 1) << 20 | reg::GBPA_UPDATE)),
            Box::new(move |n| {
                if n & 1 == 0 {
                    smmu.unassign(EMULATED);
                } else {
                    let _ = smmu.assign(EMULATED);
                }
            }),
            Box::new(move |_| _ = smmu.read32(reg::CMDQ_CONS)),
        ];
        for act in others {
            let running = running.clone();
            scope.spawn(move || {
                let mut n = 0;
                while running.load(Ordering::Acquire) {
                    act(n);
                    n += 1;
                    std::thread::yield_now();
                }
            });
        }
        // The driver: a stream of changes.
        for n in 0..2000u64 {
            let config = if n % 3 == 0 { ste::new(ste::BYPASS) } else { stage1.ste };
            ram.set(Machine::ste_at(ASSIGNED), config.0[0]);
            let prod = smmu.read32(reg::CMDQ_PROD);
            let commands = [cmd::cfgi_ste(ASSIGNED), cmd::new(cmd::TLBI_NH_ALL), cmd::sync()];
            for (at, command) in (0..).zip(commands) {
                let index = u64::from((prod + at) & 63);
                ram.set(CMDQ + 16 * index, command.0[0]);
                ram.set(CMDQ + 16 * index + 8, command.0[1]);
            }
            smmu.write32(reg::CMDQ_PROD, (prod + 3) & 0x7f);
            while smmu.read32(reg::CMDQ_CONS) != (prod + 3) & 0x7f {
                std::thread::yield_now();
            }
        }
        running.store(false, Ordering::Release);
    });
    m.set_cr0(everything);
    m.run(&[cmd::cfgi_all()]);
    assert_eq!(last_installed(&host.take()), Some(m.smmu.stream_config(ASSIGNED)));
}
