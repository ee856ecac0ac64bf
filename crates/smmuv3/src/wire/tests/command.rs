//! Commands.

use proptest::prelude::*;

use crate::wire::{Command, TlbiVa};

/// §4.1.1: every opcode that is neither reserved nor IMPLEMENTATION DEFINED.
const OPCODES: [u8; 34] = [
    0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x10, 0x11, 0x12, 0x13, 0x18, 0x1A, 0x20, 0x21, 0x22,
    0x23, 0x28, 0x2A, 0x30, 0x40, 0x41, 0x44, 0x45, 0x46, 0x50, 0x51, 0x52, 0x53, 0x58, 0x5A, 0x60,
    0x70, 0x73,
];

#[test]
fn exactly_the_architected_opcodes_decode() {
    for opcode in 0..=u8::MAX {
        let raw = [u64::from(opcode), 0];
        let command = Command::decode(&raw);
        assert_eq!(command.is_some(), OPCODES.contains(&opcode), "opcode {opcode:#x}");
        assert_eq!(Command::opcode(&raw), opcode);
        if let Some(command) = command {
            assert_eq!(Command::opcode(&command.encode()), opcode);
            assert!(command.to_string().starts_with("CMD_"));
        }
    }
}

/// One command per line of the table: the raw words were put together from the bit positions of
/// §4.2 to §4.7 by hand.
#[test]
fn every_parameter_stands_where_the_specification_puts_it() {
    let va = TlbiVa {
        vmid: 0,
        asid: 0,
        address: 0xffff_8000_1234_5000,
        leaf: true,
        ttl: 0b11,
        ttl128: false,
        tg: 0b01,
        num: 0b1_0101,
        scale: 0b10_0001,
    };
    let both = TlbiVa { vmid: 0xabcd, asid: 0x1234, ..va };
    let va_words = [0x0211_5000, 0xffff_8000_1234_5701];
    let with = |vmid: u64, asid: u64, opcode: u64| {
        [va_words[0] | opcode | vmid << 32 | asid << 48, va_words[1]]
    };
    let ipa = TlbiVa { vmid: 3, address: 0x00ff_ffff_ffff_f000, ..TlbiVa::default() };
    let table = [
        (
            Command::PrefetchConfig { sid: 0xdead_beef, ssid: Some(0xfffff), ssec: true },
            [0xdead_beef_ffff_fc01, 0],
        ),
        (
            Command::PrefetchAddr { sid: 1, ssid: None, ssec: false, addr: 0x7000, size: 0x1f },
            [0x1_0000_0002, 0x7000 | 0x1f],
        ),
        (Command::CfgiSte { sid: 5, leaf: true, ssec: false }, [0x5_0000_0003, 1]),
        (Command::CfgiSteRange { sid: 0, range: 31, ssec: true }, [0x404, 31]),
        (Command::CfgiCd { sid: 5, ssid: 0xabcde, leaf: true, ssec: false }, [0x5_abcd_e005, 1]),
        (Command::CfgiCdAll { sid: 5, ssec: false }, [0x5_0000_0006, 0]),
        (Command::CfgiVmsPidm { vmid: 0xffff, ssec: false }, [0xffff_0000_0007, 0]),
        (Command::TlbiNhAll { vmid: 0xabcd }, [0xabcd_0000_0010, 0]),
        (Command::TlbiNhAsid { vmid: 0xabcd, asid: 0x1234 }, [0x1234_abcd_0000_0011, 0]),
        (Command::TlbiNhVa(both), with(0xabcd, 0x1234, 0x12)),
        (Command::TlbiNhVaa(TlbiVa { asid: 0, ..both }), with(0xabcd, 0, 0x13)),
        (Command::TlbiEl3All, [0x18, 0]),
        (Command::TlbiEl3Va(va), with(0, 0, 0x1A)),
        (Command::TlbiEl2All, [0x20, 0]),
        (Command::TlbiEl2Asid { asid: 0x1234 }, [0x1234_0000_0000_0021, 0]),
        (Command::TlbiEl2Va(TlbiVa { vmid: 0, ..both }), with(0, 0x1234, 0x22)),
        (Command::TlbiEl2Vaa(va), with(0, 0, 0x23)),
        (Command::TlbiS12Vmall { vmid: 3 }, [0x3_0000_0028, 0]),
        (Command::TlbiS2Ipa(ipa), [0x3_0000_002A, 0x00ff_ffff_ffff_f000]),
        (Command::TlbiNsnhAll, [0x30, 0]),
        (
            Command::AtcInv { sid: 8, ssid: Some(1), global: true, size: 52, addr: 0 },
            [0x8_0000_1a40, 52],
        ),
        (
            Command::AtcInv { sid: 8, ssid: None, global: false, size: 0, addr: 0x1_0000 },
            [0x8_0000_0040, 0x1_0000],
        ),
        (
            Command::PriResp { sid: 8, ssid: Some(2), prg_index: 0x1ff, resp: 0b10 },
            [0x8_0000_2841, 0x21ff],
        ),
        (
            Command::Resume {
                sid: 8,
                stag: 0xbeef,
                action: Command::RESUME_RETRY | Command::RESUME_ABORT,
                ssec: false,
            },
            [0x8_0000_3044, 0xbeef],
        ),
        (Command::StallTerm { sid: 8, ssec: true }, [0x8_0000_0445, 0]),
        (
            Command::Sync {
                cs: 0b01,
                msh: 0b11,
                msi_attr: 0xf,
                msi_data: 0x1234_5678,
                msi_address: 0x00ff_ffff_ffff_fffc,
            },
            [0x1234_5678_0fc0_1046, 0x00ff_ffff_ffff_fffc],
        ),
        (Command::DptiPa { operand: u64::MAX }, [0x73, u64::MAX]),
    ];
    for (command, raw) in table {
        assert_eq!(command.encode(), raw, "{command}");
        assert_eq!(Command::decode(&raw), Some(command), "{command}");
    }
}

/// §4.1.6: bits outside an address field count as zero, and a SubstreamID without SSV is no
/// SubstreamID.
#[test]
fn what_does_not_count_is_not_seen() {
    let invalidate = Command::decode(&[0xfffff << 12 | 0x40, 0xfff_fffff]);
    let Some(Command::AtcInv { ssid: None, global: false, addr, size: 63, .. }) = invalidate else {
        panic!("{invalidate:?}")
    };
    assert_eq!(addr, 0xffff_f000);
    let Some(Command::TlbiS2Ipa(ipa)) = Command::decode(&[0x2A, u64::MAX]) else { panic!() };
    assert_eq!(ipa.address, 0x00ff_ffff_ffff_f000);
    let Some(Command::Sync { msi_address, .. }) = Command::decode(&[0x46, u64::MAX]) else {
        panic!()
    };
    assert_eq!(msi_address, 0x00ff_ffff_ffff_fffc);
}

#[test]
fn a_person_reads_a_command() {
    let va = TlbiVa { vmid: 3, asid: 7, address: 0x1_2000, leaf: true, ..TlbiVa::default() };
    for (command, text) in [
        (Command::TlbiNhVa(va), "CMD_TLBI_NH_VA VMID=3 ASID=7 VA=0x12000 Leaf"),
        (
            Command::TlbiS2Ipa(TlbiVa { tg: 1, num: 3, scale: 2, ttl: 3, leaf: false, ..va }),
            "CMD_TLBI_S2_IPA VMID=3 IPA=0x12000 TG=4K NUM=3 SCALE=2 TTL=3",
        ),
        (Command::CfgiSteRange { sid: 9, range: 31, ssec: false }, "CMD_CFGI_ALL"),
        (
            Command::CfgiSteRange { sid: 16, range: 3, ssec: true },
            "CMD_CFGI_STE_RANGE SID=0x10 Range=3 SSec",
        ),
        (
            Command::Resume { sid: 8, stag: 1, action: 0b01, ssec: false },
            "CMD_RESUME SID=0x8 STAG=0x1 Retry",
        ),
        (
            Command::Sync { cs: 2, msh: 0, msi_attr: 0, msi_data: 0, msi_address: 0 },
            "CMD_SYNC CS=SIG_SEV",
        ),
    ] {
        assert_eq!(command.to_string(), text);
    }
}

proptest! {
    /// Decoding never adds or moves a bit, and says all that encoding needs.
    #[test]
    fn decoding_invents_nothing(opcode in prop::sample::select(&OPCODES[..]), words: [u64; 2]) {
        let raw = [words[0] & !0xff | u64::from(opcode), words[1]];
        let command = Command::decode(&raw).expect("opcode is known");
        let encoded = command.encode();
        prop_assert_eq!(encoded[0] & !raw[0], 0);
        prop_assert_eq!(encoded[1] & !raw[1], 0);
        prop_assert_eq!(Command::decode(&encoded), Some(command));
        prop_assert!(command.to_string().starts_with(command.name()));
    }
}
