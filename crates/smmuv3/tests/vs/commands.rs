//! 23 to 26: the Command queue.

use smmuv3::{Options, StallModel, Wire};

use crate::common::raw::cmd::Cmd;
use crate::common::raw::{Words, cmd, reg, ste};
use crate::common::{CERROR_ABT, CERROR_ILL, CMDQ, CMDQ_LOG2, Machine};

/// An opcode that means nothing.
const RESERVED: Cmd = Words([0x08, 0]);

/// §7.1.
#[test]
fn vs23_an_error_stops_the_queue_at_the_command_and_its_acknowledgement_restarts_it() {
    let mut m = Machine::everything();
    m.set_ste(3, ste::new(ste::BYPASS));
    assert_eq!(m.output(3, 0x5000), 0x5000);
    m.world.wires.take();
    let start = m.r32(reg::CMDQ_PROD);
    m.store(Machine::ste_at(3), &ste::new(ste::ABORT));
    m.submit(&[cmd::cfgi_ste(3), RESERVED, cmd::sync_signal(1, 0, 0), cmd::sync()]);
    // The older command is consumed, the newer ones have no effect.
    assert_eq!(m.r32(reg::CMDQ_CONS), (start + 1) | CERROR_ILL << 24);
    m.read_aborts(3, 0x5000);
    assert_eq!(m.gerror(), reg::CMDQ_ERR);
    assert_eq!(m.world.wires.take(), [Wire::Gerror]);
    // Neither time, nor more commands, nor acknowledging something else, nor the enable goes on.
    m.submit(&[cmd::sync()]);
    assert!(!m.idle());
    m.w32(reg::GERRORN, m.r32(reg::GERRORN) ^ reg::EVENTQ_ABT_ERR);
    m.w32(reg::GERRORN, m.r32(reg::GERRORN) ^ reg::EVENTQ_ABT_ERR);
    m.set_cr0(reg::SMMUEN | reg::EVENTQEN | reg::PRIQEN);
    m.set_cr0(reg::SMMUEN | reg::EVENTQEN | reg::PRIQEN | reg::CMDQEN);
    assert_eq!(m.r32(reg::CMDQ_CONS), (start + 1) | CERROR_ILL << 24);
    assert_eq!(m.gerror(), reg::CMDQ_ERR);
    // Acknowledged and not repaired, it fails again at the same place.
    m.acknowledge();
    assert_eq!(m.gerror(), reg::CMDQ_ERR);
    assert_eq!(m.r32(reg::CMDQ_CONS), (start + 1) | CERROR_ILL << 24);
    assert_eq!(m.world.wires.take(), [Wire::Gerror]);
    // Repaired, the acknowledgement alone makes it go on: the command is fetched again.
    let index = (start + 1) & ((1 << CMDQ_LOG2) - 1);
    m.store(CMDQ + 16 * u64::from(index), &cmd::cfgi_all());
    let prod = m.r32(reg::CMDQ_PROD);
    m.acknowledge();
    assert_eq!(m.r32(reg::CMDQ_CONS) & 0xf_ffff, prod);
    assert_eq!(m.world.wires.take(), [Wire::CmdSync]);
    assert_eq!(m.gerror(), 0);

    // A command that cannot be fetched.
    let at = CMDQ + 16 * u64::from(prod & ((1 << CMDQ_LOG2) - 1));
    m.ram.make_hole(at..at + 16);
    m.submit(&[cmd::sync()]);
    assert_eq!(m.r32(reg::CMDQ_CONS), prod | CERROR_ABT << 24);
    assert_eq!(m.gerror(), reg::CMDQ_ERR);
    m.ram.fill_holes();
    m.acknowledge();
    assert!(m.idle());

    // While the error is active software may take back what is not consumed.
    let at = m.r32(reg::CMDQ_PROD);
    m.submit(&[RESERVED, RESERVED, RESERVED]);
    assert_eq!(m.r32(reg::CMDQ_CONS), at | CERROR_ILL << 24);
    m.w32(reg::CMDQ_PROD, at);
    m.acknowledge();
    assert!(m.idle());
    assert_eq!(m.gerror(), 0);
    // Many times around the queue.
    for _ in 0..200 {
        m.run(&[cmd::cfgi_all(), cmd::cfgi_ste(1), cmd::sync()]);
    }
}

/// Every opcode with parameters that are legal where the opcode is, and whether it is.
fn assert_legal(options: Options, legal: &[u64]) {
    let m = Machine::booted(options.clone());
    for opcode in 0..=0xff {
        let error = m.error_of(cmd::new(opcode));
        let expected = if legal.contains(&opcode) { None } else { Some(CERROR_ILL) };
        assert_eq!(error, expected, "opcode {opcode:#x} with {options:?}");
    }
}

const COMMON: [u64; 6] = [
    cmd::PREFETCH_CONFIG,
    cmd::PREFETCH_ADDR,
    cmd::CFGI_STE,
    cmd::CFGI_STE_RANGE,
    cmd::TLBI_NSNH_ALL,
    cmd::SYNC,
];
const STAGE1: [u64; 6] = [
    cmd::CFGI_CD,
    cmd::CFGI_CD_ALL,
    cmd::TLBI_NH_ALL,
    cmd::TLBI_NH_ASID,
    cmd::TLBI_NH_VA,
    cmd::TLBI_NH_VAA,
];
const STAGE2: [u64; 2] = [cmd::TLBI_S12_VMALL, cmd::TLBI_S2_IPA];
const HYP: [u64; 4] = [cmd::TLBI_EL2_ALL, cmd::TLBI_EL2_ASID, cmd::TLBI_EL2_VA, cmd::TLBI_EL2_VAA];
const STALL: [u64; 2] = [cmd::RESUME, cmd::STALL_TERM];

/// §4.1.3, §4.4 to §4.7.
#[test]
fn vs24_commands_of_features_that_are_not_there_are_illegal() {
    let every = Options::everything();
    let ats = [cmd::ATC_INV];
    let pri = [cmd::PRI_RESP];
    // EL3, Secure, MPAM and DPT commands are never there.
    let all: Vec<u64> = [&COMMON[..], &STAGE1, &STAGE2, &HYP, &STALL, &ats, &pri].concat();
    assert_legal(every.clone(), &all);
    let without = |gone: &[u64]| -> Vec<u64> {
        all.iter().copied().filter(|opcode| !gone.contains(opcode)).collect()
    };
    let terminate =
        Options { stall_model: StallModel::TerminateOnly, stall_max: 0, ..every.clone() };
    assert_legal(terminate, &without(&STALL));
    let force = Options { stall_model: StallModel::StallOnly, ..every.clone() };
    assert_legal(force, &all);
    assert_legal(Options { pri: false, priq_log2: 0, pps: false, ..every.clone() }, &without(&pri));
    let no_ats = Options {
        ats: false,
        pri: false,
        priq_log2: 0,
        pps: false,
        atsrecerr: false,
        ..every.clone()
    };
    assert_legal(no_ats, &without(&[cmd::ATC_INV, cmd::PRI_RESP]));
    assert_legal(Options { hyp: false, ..every.clone() }, &without(&HYP));
    let no_stage2 = Options {
        stage2: false,
        vmid16: false,
        xnx: false,
        fwb: false,
        ptwnnc: false,
        ..every.clone()
    };
    assert_legal(no_stage2, &without(&STAGE2));
    let no_stage1 = Options {
        stage1: false,
        hyp: false,
        asid16: false,
        ssid_bits: 0,
        cd2l: false,
        had: false,
        e0pd: false,
        pps: false,
        ..every.clone()
    };
    assert_legal(no_stage1, &without(&[&STAGE1[..], &HYP].concat()));
    assert_legal(Options::minimal(), &[&COMMON[..], &STAGE1].concat());
    // Parameters without a meaning.
    let m = Machine::booted(every);
    assert_eq!(m.error_of(cmd::pri_resp(3, None, 1, 0b11)), Some(CERROR_ILL));
    for (tg, num, scale, ttl, error) in [
        (0b01, 0, 0, 0, Some(CERROR_ILL)),
        (0b11, 0, 0, 0, Some(CERROR_ILL)),
        (0b01, 1, 0, 0, None),
        (0b01, 0, 1, 0, None),
        (0b01, 0, 0, 3, None),
        (0b10, 0, 0, 1, None),
    ] {
        for opcode in [cmd::TLBI_NH_VA, cmd::TLBI_NH_VAA, cmd::TLBI_EL2_VA, cmd::TLBI_S2_IPA] {
            let command = cmd::range(cmd::tlbi_va(opcode, 1, 0, 0x8000_0000), tg, num, scale, ttl);
            assert_eq!(m.error_of(command), error, "{command:x?}");
        }
    }
    // Level 1 of 16K has leaves with DS only.
    let m = Machine::booted(Options { ds: false, oas: 48, ..Options::everything() });
    let command = cmd::tlbi_va(cmd::TLBI_NH_VA, 1, 0, 0x8000_0000);
    assert_eq!(m.error_of(cmd::range(command, 0b10, 0, 0, 1)), Some(CERROR_ILL));
}

/// §4.1.6, §4.2.
#[test]
fn vs25_ssec_is_illegal_where_it_means_something_and_prefetches_are_legal() {
    let mut m = Machine::everything();
    let ssec = |command: Cmd| command.with(cmd::SSEC, 1);
    for opcode in [
        cmd::PREFETCH_CONFIG,
        cmd::PREFETCH_ADDR,
        cmd::CFGI_STE,
        cmd::CFGI_STE_RANGE,
        cmd::CFGI_CD,
        cmd::CFGI_CD_ALL,
        cmd::RESUME,
        cmd::STALL_TERM,
    ] {
        assert_eq!(m.error_of(cmd::stream(opcode, 3)), None, "{opcode:#x}");
        assert_eq!(m.error_of(ssec(cmd::stream(opcode, 3))), Some(CERROR_ILL), "{opcode:#x}");
    }
    assert_eq!(m.error_of(ssec(cmd::cfgi_all())), Some(CERROR_ILL));
    // The bit is reserved, and ignored, in all others.
    for opcode in STAGE1[2..].iter().chain(&STAGE2).chain(&HYP).chain(&[cmd::TLBI_NSNH_ALL]) {
        assert_eq!(m.error_of(ssec(cmd::new(*opcode))), None, "{opcode:#x}");
    }
    // Not bit 8, nor any other that the opcode has no use for.
    assert_eq!(m.error_of(cmd::stream(cmd::CFGI_STE, 3).with((8, 8), 1)), None);
    // Prefetches change nothing that software sees: neither for good streams nor for broken ones.
    let one = m.stage1(3, 1);
    m.map(&one.tables, 0x5000, 0x30_0000);
    for sid in [3, 7, 255, !0] {
        for ssid in [None, Some(0), Some(77)] {
            for opcode in [cmd::PREFETCH_CONFIG, cmd::PREFETCH_ADDR] {
                let command = cmd::stream(opcode, sid).with_address(cmd::ADDRESS, 0x5000);
                let command =
                    ssid.map_or(command, |ssid| command.with(cmd::SSV, 1).with(cmd::SSID, ssid));
                assert_eq!(m.error_of(command), None);
            }
        }
    }
    assert_eq!(m.events(), []);
    assert_eq!(m.output(3, 0x5000), 0x30_0000);
    // An implementation that checks reserved bits calls them malformed.
    let m = Machine::booted(Options { check_reserved: true, ..Options::everything() });
    assert_eq!(m.error_of(ssec(cmd::new(cmd::TLBI_NSNH_ALL))), Some(CERROR_ILL));
    assert_eq!(m.error_of(cmd::new(cmd::TLBI_NSNH_ALL)), None);
}

/// §4.7.3, §3.18.
#[test]
fn vs26_cmd_sync_signals_as_it_is_told() {
    const TARGET: u64 = 0x8_0004;
    let oas = 44;
    let options = Options { oas, ds: false, va52: false, ..Options::everything() };
    for msi in [false, true] {
        let m = Machine::booted(Options { msi, ..options.clone() });
        m.world.wires.take();
        // 0b00: nothing, whatever the address.
        m.submit(&[cmd::sync_signal(0b00, TARGET, 0x1234_5678)]);
        assert!(m.idle());
        assert_eq!(m.world.wires.take(), []);
        // 0b01: the wire always; the message if there are messages.
        m.submit(&[cmd::sync_signal(0b01, TARGET, 0x1234_5678)]);
        assert!(m.idle());
        assert_eq!(m.world.wires.take(), [Wire::CmdSync]);
        assert_eq!(m.ram.get32(TARGET), if msi { 0x1234_5678 } else { 0 });
        assert_eq!(m.ram.get32(TARGET - 4), 0, "32 bits, not more");
        // Address 0: no message.
        m.ram.set(0, 0x5555_5555_5555_5555);
        m.submit(&[cmd::sync_signal(0b01, 0, 0x1234_5678)]);
        assert_eq!(m.world.wires.take(), [Wire::CmdSync]);
        assert_eq!(m.ram.get(0), 0x5555_5555_5555_5555);
        // The whole field is checked for 0, and then truncated to OAS.
        m.submit(&[cmd::sync_signal(0b01, 1 << oas, 0x1234_5678)]);
        assert_eq!(m.ram.get32(0), if msi { 0x1234_5678 } else { 0x5555_5555 });
        m.world.wires.take();
        // 0b10: an event of the processor.
        m.submit(&[cmd::sync_signal(0b10, TARGET, 0xffff_ffff)]);
        assert!(m.idle());
        assert_eq!(m.world.wires.take(), [Wire::Sev]);
        assert_ne!(m.ram.get32(TARGET), 0xffff_ffff);
        // 0b11 is reserved: an error and no interrupt for completion.
        assert_eq!(m.error_of(cmd::sync_signal(0b11, 0, 0)), Some(CERROR_ILL));
        assert_eq!(m.world.wires.take(), [Wire::Gerror]);
        // A message that aborts is a global error; the command is complete all the same.
        m.submit(&[cmd::sync_signal(0b01, 0x03ff_ffff_fffc, 1)]);
        assert!(m.idle());
        let error = if msi { reg::MSI_CMDQ_ABT_ERR } else { 0 };
        assert_eq!(m.gerror(), error);
        let mut wires = m.world.wires.take();
        wires.sort_unstable();
        let expected: &[Wire] = if msi { &[Wire::CmdSync, Wire::Gerror] } else { &[Wire::CmdSync] };
        assert_eq!(wires, expected);
        // It stops nothing.
        m.run(&[cmd::sync_signal(0b01, TARGET, 7)]);
        assert_eq!(m.ram.get32(TARGET), if msi { 7 } else { 0 });
    }
    // Without SEV, 0b10 is as 0b00. The interrupt of CMD_SYNC has no enable.
    let m = Machine::booted(Options { sev: false, ..options });
    m.w32(reg::IRQ_CTRL, 0);
    m.world.wires.take();
    m.run(&[cmd::sync_signal(0b10, 0, 0)]);
    assert_eq!(m.world.wires.take(), []);
    m.run(&[cmd::sync_signal(0b01, 0, 0)]);
    assert_eq!(m.world.wires.take(), [Wire::CmdSync]);
}
