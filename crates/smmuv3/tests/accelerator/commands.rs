//! Batches: what is forwarded, in what order, and what `CMDQ_CONS` tells of it.

use std::sync::{Arc, Mutex};

use smmuv3::{AtcCompletion, Options, PageResponseCode, Refusal, StreamConfig, Wire};

use crate::common::raw::cmd::{self, Cmd};
use crate::common::raw::{Words, reg, ste};
use crate::common::world::Message;
use crate::common::{CERROR_ABT, CERROR_ATC_INV_SYNC, CERROR_ILL, CMDQ, CMDQ_LOG2, Machine};
use crate::host::Call;
use crate::{ASSIGNED, EMULATED, machine, machine_with, options, stage1_ste, translating};

fn words(commands: &[Cmd]) -> Vec<[u64; 2]> {
    commands.iter().map(|command| command.0).collect()
}

#[test]
fn a_cmd_sync_costs_one_call_with_everything_before_it_in_order() {
    let (m, host) = translating();
    let forwarded = [
        cmd::tlbi_va(cmd::TLBI_NH_VA, 0, 7, 0x5000),
        cmd::range(cmd::tlbi_va(cmd::TLBI_NH_VAA, 0, 0, 0x20_0000), 1, 3, 2, 0),
        cmd::cfgi_cd(ASSIGNED, 5),
        cmd::stream(cmd::CFGI_CD_ALL, ASSIGNED),
        cmd::atc_inv(ASSIGNED, Some(5), 0x7000, 0),
        cmd::tlbi(cmd::TLBI_NH_ASID, 0, 7),
        cmd::tlbi(cmd::TLBI_NH_ALL, 0, 0),
        cmd::new(cmd::TLBI_NSNH_ALL),
    ];
    // What concerns an emulated stream only, and hints, stay here.
    let mut mixed = vec![cmd::new(cmd::PREFETCH_CONFIG), cmd::cfgi_cd(EMULATED, 0)];
    for command in forwarded {
        mixed.extend([command, cmd::cfgi_cd(EMULATED, 0), cmd::cfgi_ste(EMULATED)]);
    }
    mixed.push(cmd::atc_inv(EMULATED, None, 0x7000, 0));
    mixed.push(cmd::sync());
    m.submit(&mixed);
    assert!(m.idle());
    assert_eq!(host.batch(), words(&forwarded));
    let messages = m.world.devices.take();
    assert!(matches!(messages[..], [Message::Invalidate(_, at)] if at.stream_id == EMULATED));
    // Many batches, many times around the queue.
    for _ in 0..100 {
        m.run(&forwarded);
        assert_eq!(host.batch(), words(&forwarded));
    }
}

#[test]
fn nothing_is_forwarded_that_concerns_no_assigned_stream() {
    let (mut m, host) = machine();
    let everything = [
        cmd::new(cmd::TLBI_NSNH_ALL),
        cmd::cfgi_cd(ASSIGNED, 0),
        cmd::atc_inv(ASSIGNED, None, 0, 52),
        cmd::cfgi_all(),
    ];
    m.run(&everything);
    assert_eq!(host.take(), []);
    // Who comes next must not find what went by: the host forgets everything before it translates.
    let one = m.stage1(ASSIGNED, 1);
    m.smmu.assign(ASSIGNED).unwrap();
    let calls = host.take();
    assert_eq!(calls[0], Call::Invalidate(words(&[cmd::new(cmd::TLBI_NSNH_ALL)])));
    assert_eq!(calls[1..], [Call::Install(ASSIGNED, crate::translate(one.ste))]);
    // Other streams than the assigned one.
    m.run(&[cmd::cfgi_cd(EMULATED, 0), cmd::atc_inv(EMULATED, None, 0, 52), cmd::cfgi_ste(9)]);
    assert_eq!(host.take(), []);
    // With SMMUEN == 0 there are no ATS invalidations.
    m.set_cr0(reg::CMDQEN | reg::EVENTQEN);
    host.take();
    m.run(&[cmd::atc_inv(ASSIGNED, None, 0, 52)]);
    assert_eq!(host.take(), []);
    m.run(&[cmd::new(cmd::TLBI_NSNH_ALL)]);
    assert_eq!(host.batch().len(), 1, "but the TLB may hold what was");
}

#[test]
fn what_the_id_registers_do_not_promise_is_not_forwarded() {
    let narrow = Options {
        version: smmuv3::Version::V3_0,
        asid16: false,
        ril: false,
        bbml: 0,
        had: true,
        ds: false,
        va52: false,
        oas: 48,
        stt: false,
        atsrecerr: false,
        ssid_bits: 0,
        cd2l: false,
        ..options()
    };
    let (mut m, host) = machine_with(narrow);
    m.stage1(ASSIGNED, 1);
    m.smmu.assign(ASSIGNED).unwrap();
    host.take();
    let noisy = |command: Cmd| Words([command.0[0] | 1 << 8, command.0[1] | 1 << 1]);
    m.run(&[
        noisy(cmd::range(cmd::tlbi_va(cmd::TLBI_NH_VA, 0x1234, 0xff07, 0x5000), 1, 3, 2, 3)),
        noisy(cmd::tlbi_va(cmd::TLBI_NH_VAA, 0x1234, 0xff07, 0x5000)),
        cmd::tlbi(cmd::TLBI_NH_ASID, 0x1234, 0xff07),
        cmd::tlbi(cmd::TLBI_NH_ALL, 0x1234, 0xff07),
        noisy(cmd::tlbi(cmd::TLBI_NSNH_ALL, 0x1234, 0xff07)),
        cmd::cfgi_cd(ASSIGNED, 5),
        cmd::atc_inv(ASSIGNED, Some(5), 0x7000, 3).with((9, 9), 1),
    ]);
    let expected = words(&[
        cmd::tlbi_va(cmd::TLBI_NH_VA, 0, 7, 0x5000),
        cmd::tlbi_va(cmd::TLBI_NH_VAA, 0, 0, 0x5000),
        cmd::tlbi(cmd::TLBI_NH_ASID, 0, 7),
        cmd::new(cmd::TLBI_NH_ALL),
        cmd::new(cmd::TLBI_NSNH_ALL),
        cmd::cfgi_cd(ASSIGNED, 0),
        cmd::atc_inv(ASSIGNED, None, 0, 3),
    ]);
    assert_eq!(host.batch(), expected);
    // A range begins at a granule.
    let (m, host) = translating();
    m.run(&[cmd::range(cmd::tlbi_va(cmd::TLBI_NH_VA, 0, 7, 0x1_5000), 3, 3, 2, 3)]);
    let range = cmd::range(cmd::tlbi_va(cmd::TLBI_NH_VA, 0, 7, 0x1_0000), 3, 3, 2, 3);
    assert_eq!(host.batch(), words(&[range]));
}

#[test]
fn a_refused_command_is_the_one_that_cons_names() {
    for count in 1..6u32 {
        for bad in 0..count {
            let (m, host) = translating();
            m.world.wires.take();
            let start = m.r32(reg::CMDQ_PROD);
            let command = |n: u32| cmd::tlbi_va(cmd::TLBI_NH_VA, 0, 1, u64::from(n) << 12);
            // Every other command is none of the host's business.
            let mut commands = vec![cmd::cfgi_cd(EMULATED, 0)];
            for n in 0..count {
                commands.extend([command(n), cmd::cfgi_cd(EMULATED, 0)]);
            }
            commands.push(cmd::sync_signal(1, 0, 0));
            host.refuse(Refusal::Illegal { index: bad as usize });
            m.submit(&commands);
            let at = start + 1 + 2 * bad;
            let cons = (at & 0x7f) | CERROR_ILL << 24;
            assert_eq!(m.r32(reg::CMDQ_CONS), cons);
            assert_eq!(m.gerror(), reg::CMDQ_ERR);
            assert_eq!(m.world.wires.take(), [Wire::Gerror]);
            assert_eq!(host.batch().len(), count as usize);
            // Acknowledged, the queue goes on with the same command: nothing is left out.
            m.acknowledge();
            assert!(m.idle());
            assert_eq!(m.gerror(), 0);
            let rest: Vec<Cmd> = (bad..count).map(command).collect();
            assert_eq!(host.batch(), words(&rest));
            assert_eq!(m.world.wires.take(), [Wire::CmdSync]);
        }
    }
}

#[test]
fn commands_before_a_refused_one_have_taken_effect_here_too() {
    let (mut m, host) = translating();
    let one = m.stage1(EMULATED, 2);
    let two = m.stage1(5, 3);
    for stage1 in [&one, &two] {
        m.map(&stage1.tables, 0x5000, 0x1_0000);
        assert_eq!(m.output(stage1.sid, 0x5000), 0x1_0000);
        let leaf = m.entry(&stage1.tables, 0x5000, 3);
        m.ram.set(leaf, m.ram.get(leaf) + 0x1000);
    }
    host.take();
    host.refuse(Refusal::Illegal { index: 1 });
    m.submit(&[cmd::tlbi(cmd::TLBI_NH_ASID, 0, 2), cmd::tlbi(cmd::TLBI_NH_ASID, 0, 3)]);
    assert_eq!((m.output(one.sid, 0x5000), m.output(two.sid, 0x5000)), (0x1_1000, 0x1_0000));
    m.acknowledge();
    assert!(m.idle());
    assert_eq!(m.output(two.sid, 0x5000), 0x1_1000);
}

#[test]
fn a_batch_that_failed_as_a_whole_is_issued_again() {
    for refusal in [Refusal::Unknown, Refusal::Illegal { index: 3 }] {
        let (m, host) = translating();
        let commands = [cmd::tlbi(cmd::TLBI_NH_ASID, 0, 1), cmd::new(cmd::TLBI_NH_ALL)];
        let start = m.r32(reg::CMDQ_PROD);
        host.refuse(refusal);
        m.submit(&commands);
        m.submit(&[cmd::sync()]);
        // After this error Linux leaves the command as it is.
        assert_eq!(m.r32(reg::CMDQ_CONS), start | CERROR_ABT << 24);
        host.take();
        m.acknowledge();
        assert!(m.idle());
        assert_eq!(host.batch(), words(&commands));
    }
}

#[test]
fn an_ats_timeout_of_the_host_is_the_guests() {
    let (m, host) = translating();
    let start = m.r32(reg::CMDQ_PROD);
    host.refuse(Refusal::AtcTimeout);
    m.submit(&[cmd::atc_inv(ASSIGNED, None, 0, 52), cmd::new(cmd::TLBI_NH_ALL), cmd::sync()]);
    assert_eq!(m.r32(reg::CMDQ_CONS), (start + 2) & 0x7f | CERROR_ATC_INV_SYNC << 24);
    m.acknowledge();
    assert!(m.idle());
}

#[test]
fn an_illegal_command_ends_the_batch_before_it() {
    let (m, host) = translating();
    let start = m.r32(reg::CMDQ_PROD);
    m.submit(&[cmd::new(cmd::TLBI_NH_ALL), cmd::new(0x08), cmd::new(cmd::TLBI_NSNH_ALL)]);
    assert_eq!(host.batch(), words(&[cmd::new(cmd::TLBI_NH_ALL)]));
    assert_eq!(m.r32(reg::CMDQ_CONS), (start + 1) & 0x7f | CERROR_ILL << 24);
    // As it does if it is first refused by the host, and then not.
    let (m, host) = translating();
    host.refuse(Refusal::Illegal { index: 0 });
    let start = m.r32(reg::CMDQ_PROD);
    m.submit(&[cmd::new(cmd::TLBI_NH_ALL), cmd::new(0x08)]);
    assert_eq!(m.r32(reg::CMDQ_CONS), start | CERROR_ILL << 24);
    m.acknowledge();
    assert_eq!(m.r32(reg::CMDQ_CONS), (start + 1) & 0x7f | CERROR_ILL << 24);
    // And so does one that cannot be read.
    let (m, host) = translating();
    let start = m.r32(reg::CMDQ_PROD);
    let at = CMDQ + 16 * u64::from((start + 1) & ((1 << CMDQ_LOG2) - 1));
    m.submit(&[]);
    m.ram.make_hole(at..at + 16);
    let mask = (2 << CMDQ_LOG2) - 1;
    m.store(at - 16, &cmd::new(cmd::TLBI_NH_ALL));
    m.w32(reg::CMDQ_PROD, (start + 2) & mask);
    assert_eq!(m.r32(reg::CMDQ_CONS), (start + 1) & mask | CERROR_ABT << 24);
    assert_eq!(host.batch().len(), 1);
}

#[test]
fn configurations_change_between_what_came_before_and_after() {
    let (mut m, host) = translating();
    let cd = m.alloc(64);
    let ste = stage1_ste(cd);
    m.store(Machine::ste_at(ASSIGNED), &ste);
    let tlbi = cmd::new(cmd::TLBI_NH_ALL);
    m.submit(&[tlbi, cmd::cfgi_ste(ASSIGNED), tlbi, cmd::cfgi_ste(ASSIGNED), tlbi, cmd::sync()]);
    assert!(m.idle());
    let again = words(&[cmd::stream(cmd::CFGI_CD_ALL, ASSIGNED), tlbi]);
    assert_eq!(
        host.take(),
        [
            Call::Invalidate(words(&[tlbi])),
            Call::Install(ASSIGNED, crate::translate(ste)),
            Call::Invalidate(words(&[tlbi])),
            // The same STE again still makes its CDs be read again.
            Call::Invalidate(again),
        ]
    );
}

#[test]
fn page_responses_go_where_the_stream_is() {
    let (m, host) = translating();
    let tlbi = cmd::new(cmd::TLBI_NH_ALL);
    m.run(&[tlbi, cmd::pri_resp(ASSIGNED, Some(2), 5, 2), cmd::pri_resp(EMULATED, None, 6, 0)]);
    let calls = host.take();
    assert_eq!(calls[0], Call::Invalidate(words(&[tlbi])));
    let Call::Response(response) = calls[1] else { panic!("{calls:x?}") };
    assert_eq!((response.stream_id, response.substream_id), (ASSIGNED, Some(2)));
    assert_eq!((response.prg_index, response.code), (5, PageResponseCode::Success));
    let messages = m.world.devices.take();
    assert!(matches!(messages[..], [Message::Response(r)] if r.stream_id == EMULATED));
}

#[test]
fn until_the_result_is_in_the_batch_is_in_the_queue_and_software_can_do_anything_else() {
    let (mut m, host) = translating();
    let smmu = m.smmu.clone();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let see = seen.clone();
    let start = m.r32(reg::CMDQ_PROD);
    host.during(move || {
        // Another processor, while the host works.
        let cons = smmu.read32(reg::CMDQ_CONS);
        smmu.write32(reg::EVENTQ_CONS, smmu.read32(reg::EVENTQ_PROD));
        smmu.write32(reg::CR0, reg::SMMUEN | reg::EVENTQEN | reg::PRIQEN);
        let ack = smmu.read32(reg::CR0ACK);
        // What this guards stays as it is.
        smmu.write32(reg::CMDQ_CONS, 0);
        see.lock().unwrap().extend([cons, ack, smmu.read32(reg::CMDQ_CONS)]);
    });
    m.submit(&[cmd::new(cmd::TLBI_NH_ALL), cmd::sync()]);
    let acknowledged = reg::SMMUEN | reg::EVENTQEN | reg::PRIQEN | reg::CMDQEN;
    assert_eq!(*seen.lock().unwrap(), [start, acknowledged, start]);
    // The batch is complete, the CMD_SYNC waits for the queue to be enabled.
    assert_eq!(m.r32(reg::CR0ACK), acknowledged & !reg::CMDQEN);
    assert_eq!(m.r32(reg::CMDQ_CONS), (start + 1) & 0x7f);
    m.set_cr0(acknowledged);
    assert!(m.idle());
}

#[test]
fn answers_of_devices_are_awaited_beside_those_of_the_host() {
    let (m, host) = translating();
    m.world.devices.answer(AtcCompletion::Pending);
    m.submit(&[
        cmd::new(cmd::TLBI_NH_ALL),
        cmd::atc_inv(EMULATED, None, 0, 52),
        cmd::atc_inv(ASSIGNED, None, 0, 52),
        cmd::sync(),
    ]);
    assert_eq!(host.batch().len(), 2);
    assert!(!m.idle());
    let messages = m.world.devices.take();
    let [Message::Invalidate(tag, _)] = messages[..] else { panic!("{messages:?}") };
    m.smmu.complete_atc_invalidate(tag, true);
    assert!(m.idle());
    // However many there are, a bounded number is under way.
    m.world.devices.answer(AtcCompletion::Done);
    let many: Vec<Cmd> =
        (0..62)
            .map(|n| {
                if n == 0 {
                    cmd::new(cmd::TLBI_NH_ALL)
                } else {
                    cmd::atc_inv(EMULATED, None, 0, 52)
                }
            })
            .collect();
    m.run(&many);
    assert_eq!(m.world.devices.take().len(), 61);
}

#[test]
fn a_stream_that_is_told_twice_is_installed_once() {
    let (m, host) = translating();
    m.set_ste(ASSIGNED, ste::new(ste::BYPASS));
    assert_eq!(host.take(), [Call::Install(ASSIGNED, StreamConfig::Bypass)]);
    m.run(&[cmd::cfgi_ste(ASSIGNED), cmd::cfgi_all(), cmd::cfgi_range(0, 4)]);
    assert_eq!(host.take(), []);
}
