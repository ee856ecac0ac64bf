//! Structures, commands and records as software sees them: words and bit numbers, taken from IHI 0070
//! and not from the crate under test.

/// A field: its highest and lowest bit, counted through all words.
pub type Bits = (u32, u32);

/// `N` words of 64 bits with fields in them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Words<const N: usize>(pub [u64; N]);

impl<const N: usize> Words<N> {
    pub const ZERO: Self = Self([0; N]);

    fn mask((high, low): Bits) -> u64 {
        assert_eq!(high / 64, low / 64, "no field crosses a word");
        u64::MAX >> (63 - (high - low))
    }

    #[must_use]
    pub fn with(mut self, bits: Bits, value: u64) -> Self {
        let (word, shift, mask) = (bits.1 as usize / 64, bits.1 % 64, Self::mask(bits));
        assert_eq!(value & !mask, 0, "{value:#x} does not fit {bits:?}");
        self.0[word] = self.0[word] & !(mask << shift) | value << shift;
        self
    }

    /// An address field: the bits of `address` that stand in place.
    #[must_use]
    pub fn with_address(self, bits: Bits, address: u64) -> Self {
        let low = bits.1 % 64;
        assert_eq!(address & ((1 << low) - 1), 0, "{address:#x} is not aligned");
        self.with(bits, address >> low & Self::mask(bits))
    }

    pub fn get(&self, bits: Bits) -> u64 {
        self.0[bits.1 as usize / 64] >> (bits.1 % 64) & Self::mask(bits)
    }

    /// An address field in place.
    pub fn get_address(&self, bits: Bits) -> u64 {
        self.get(bits) << (bits.1 % 64)
    }
}

/// Registers, by offset (§6.2).
pub mod reg {
    pub const IDR0: u64 = 0x0;
    pub const IDR1: u64 = 0x4;
    pub const IDR3: u64 = 0xc;
    pub const IDR5: u64 = 0x14;
    pub const IIDR: u64 = 0x18;
    pub const AIDR: u64 = 0x1c;
    pub const CR0: u64 = 0x20;
    pub const CR0ACK: u64 = 0x24;
    pub const CR1: u64 = 0x28;
    pub const CR2: u64 = 0x2c;
    pub const STATUSR: u64 = 0x40;
    pub const GBPA: u64 = 0x44;
    pub const AGBPA: u64 = 0x48;
    pub const IRQ_CTRL: u64 = 0x50;
    pub const IRQ_CTRLACK: u64 = 0x54;
    pub const GERROR: u64 = 0x60;
    pub const GERRORN: u64 = 0x64;
    pub const GERROR_IRQ_CFG0: u64 = 0x68;
    pub const GERROR_IRQ_CFG1: u64 = 0x70;
    pub const GERROR_IRQ_CFG2: u64 = 0x74;
    pub const STRTAB_BASE: u64 = 0x80;
    pub const STRTAB_BASE_CFG: u64 = 0x88;
    pub const CMDQ_BASE: u64 = 0x90;
    pub const CMDQ_PROD: u64 = 0x98;
    pub const CMDQ_CONS: u64 = 0x9c;
    pub const EVENTQ_BASE: u64 = 0xa0;
    pub const EVENTQ_IRQ_CFG0: u64 = 0xb0;
    pub const EVENTQ_IRQ_CFG1: u64 = 0xb8;
    pub const EVENTQ_IRQ_CFG2: u64 = 0xbc;
    pub const PRIQ_BASE: u64 = 0xc0;
    pub const PRIQ_IRQ_CFG0: u64 = 0xd0;
    pub const PRIQ_IRQ_CFG1: u64 = 0xd8;
    pub const PRIQ_IRQ_CFG2: u64 = 0xdc;
    pub const GATOS_CTRL: u64 = 0x100;
    pub const EVENTQ_PROD: u64 = 0x1_00a8;
    pub const EVENTQ_CONS: u64 = 0x1_00ac;
    pub const PRIQ_PROD: u64 = 0x1_00c8;
    pub const PRIQ_CONS: u64 = 0x1_00cc;

    pub const SMMUEN: u32 = 1 << 0;
    pub const PRIQEN: u32 = 1 << 1;
    pub const EVENTQEN: u32 = 1 << 2;
    pub const CMDQEN: u32 = 1 << 3;
    pub const ATSCHK: u32 = 1 << 4;

    pub const E2H: u32 = 1 << 0;
    pub const RECINVSID: u32 = 1 << 1;
    pub const REC_CFG_ATS: u32 = 1 << 3;

    pub const CMDQ_ERR: u32 = 1 << 0;
    pub const EVENTQ_ABT_ERR: u32 = 1 << 2;
    pub const PRIQ_ABT_ERR: u32 = 1 << 3;
    pub const MSI_CMDQ_ABT_ERR: u32 = 1 << 4;
    pub const MSI_EVENTQ_ABT_ERR: u32 = 1 << 5;
    pub const MSI_PRIQ_ABT_ERR: u32 = 1 << 6;
    pub const MSI_GERROR_ABT_ERR: u32 = 1 << 7;

    pub const GBPA_ABORT: u32 = 1 << 20;
    pub const GBPA_UPDATE: u32 = 1 << 31;

    /// Overflow flag of `EVENTQ_PROD` and `PRIQ_PROD`, and its acknowledgement in `_CONS`.
    pub const OVFLG: u32 = 1 << 31;
}

/// STE fields (§5.2).
pub mod ste {
    use super::{Bits, Words};

    pub type Ste = Words<8>;

    pub const V: Bits = (0, 0);
    pub const CONFIG: Bits = (3, 1);
    pub const S1_FMT: Bits = (5, 4);
    pub const S1_CONTEXT_PTR: Bits = (55, 6);
    pub const S1_CD_MAX: Bits = (63, 59);
    pub const S1_DSS: Bits = (65, 64);
    pub const MEV: Bits = (83, 83);
    pub const S2_FWB: Bits = (89, 89);
    pub const S1_STALLD: Bits = (91, 91);
    pub const EATS: Bits = (93, 92);
    pub const STRW: Bits = (95, 94);
    pub const MEM_ATTR: Bits = (99, 96);
    pub const MT_CFG: Bits = (100, 100);
    pub const PPAR: Bits = (82, 82);
    pub const SH_CFG: Bits = (109, 108);
    pub const PRIV_CFG: Bits = (113, 112);
    pub const INST_CFG: Bits = (115, 114);
    pub const S2_VMID: Bits = (143, 128);
    pub const S2_T0SZ: Bits = (165, 160);
    pub const S2_SL0: Bits = (167, 166);
    pub const S2_TG: Bits = (175, 174);
    pub const S2_PS: Bits = (178, 176);
    pub const S2_AA64: Bits = (179, 179);
    pub const S2_ENDI: Bits = (180, 180);
    pub const S2_AFFD: Bits = (181, 181);
    pub const S2_PTW: Bits = (182, 182);
    pub const S2_HD: Bits = (183, 183);
    pub const S2_HA: Bits = (184, 184);
    pub const S2_S: Bits = (185, 185);
    pub const S2_R: Bits = (186, 186);
    pub const S2_DS: Bits = (195, 195);
    pub const S2_TTB: Bits = (247, 196);

    pub const ABORT: u64 = 0b000;
    pub const BYPASS: u64 = 0b100;
    pub const STAGE1: u64 = 0b101;
    pub const STAGE2: u64 = 0b110;
    pub const NESTED: u64 = 0b111;

    pub fn new(config: u64) -> Ste {
        // Incoming shareability, as a driver would have it.
        Ste::ZERO.with(V, 1).with(CONFIG, config).with(SH_CFG, 0b01)
    }
}

/// CD fields (§5.4).
pub mod cd {
    use super::{Bits, Words};

    pub type Cd = Words<8>;

    pub const T0SZ: Bits = (5, 0);
    pub const TG0: Bits = (7, 6);
    pub const EPD0: Bits = (14, 14);
    pub const ENDI: Bits = (15, 15);
    pub const T1SZ: Bits = (21, 16);
    pub const TG1: Bits = (23, 22);
    pub const EPD1: Bits = (30, 30);
    pub const V: Bits = (31, 31);
    pub const IPS: Bits = (34, 32);
    pub const AFFD: Bits = (35, 35);
    pub const WXN: Bits = (36, 36);
    pub const TBI0: Bits = (38, 38);
    pub const TBI1: Bits = (39, 39);
    pub const PAN: Bits = (40, 40);
    pub const AA64: Bits = (41, 41);
    pub const HD: Bits = (42, 42);
    pub const HA: Bits = (43, 43);
    pub const S: Bits = (44, 44);
    pub const R: Bits = (45, 45);
    pub const A: Bits = (46, 46);
    pub const ASET: Bits = (47, 47);
    pub const ASID: Bits = (63, 48);
    pub const HAD0: Bits = (65, 65);
    pub const E0PD0: Bits = (66, 66);
    pub const TTB0: Bits = (119, 68);
    pub const HAD1: Bits = (129, 129);
    pub const E0PD1: Bits = (130, 130);
    pub const TTB1: Bits = (183, 132);
    pub const DS: Bits = (186, 186);
    pub const MAIR0: Bits = (199, 192);
    pub const MAIR1: Bits = (207, 200);
}

/// Commands (§4).
pub mod cmd {
    use super::{Bits, Words};

    pub type Cmd = Words<2>;

    pub const SSEC: Bits = (10, 10);
    pub const SSV: Bits = (11, 11);
    pub const SSID: Bits = (31, 12);
    pub const SID: Bits = (63, 32);
    pub const NUM: Bits = (16, 12);
    pub const SCALE: Bits = (24, 20);
    pub const LEAF: Bits = (64, 64);
    pub const RANGE: Bits = (68, 64);
    pub const TTL: Bits = (73, 72);
    pub const TG: Bits = (75, 74);
    pub const ADDRESS: Bits = (127, 76);

    pub const PREFETCH_CONFIG: u64 = 0x01;
    pub const PREFETCH_ADDR: u64 = 0x02;
    pub const CFGI_STE: u64 = 0x03;
    pub const CFGI_STE_RANGE: u64 = 0x04;
    pub const CFGI_CD: u64 = 0x05;
    pub const CFGI_CD_ALL: u64 = 0x06;
    pub const CFGI_VMS_PIDM: u64 = 0x07;
    pub const TLBI_NH_ALL: u64 = 0x10;
    pub const TLBI_NH_ASID: u64 = 0x11;
    pub const TLBI_NH_VA: u64 = 0x12;
    pub const TLBI_NH_VAA: u64 = 0x13;
    pub const TLBI_EL3_ALL: u64 = 0x18;
    pub const TLBI_EL3_VA: u64 = 0x1a;
    pub const TLBI_EL2_ALL: u64 = 0x20;
    pub const TLBI_EL2_ASID: u64 = 0x21;
    pub const TLBI_EL2_VA: u64 = 0x22;
    pub const TLBI_EL2_VAA: u64 = 0x23;
    pub const TLBI_S12_VMALL: u64 = 0x28;
    pub const TLBI_S2_IPA: u64 = 0x2a;
    pub const TLBI_NSNH_ALL: u64 = 0x30;
    pub const ATC_INV: u64 = 0x40;
    pub const PRI_RESP: u64 = 0x41;
    pub const RESUME: u64 = 0x44;
    pub const STALL_TERM: u64 = 0x45;
    pub const SYNC: u64 = 0x46;

    pub fn new(opcode: u64) -> Cmd {
        Cmd::ZERO.with((7, 0), opcode)
    }

    pub fn stream(opcode: u64, sid: u32) -> Cmd {
        new(opcode).with(SID, sid.into())
    }

    pub fn cfgi_ste(sid: u32) -> Cmd {
        stream(CFGI_STE, sid).with(LEAF, 1)
    }

    pub fn cfgi_range(sid: u32, range: u64) -> Cmd {
        stream(CFGI_STE_RANGE, sid).with(RANGE, range)
    }

    pub fn cfgi_all() -> Cmd {
        cfgi_range(0, 31)
    }

    pub fn cfgi_cd(sid: u32, ssid: u32) -> Cmd {
        stream(CFGI_CD, sid).with(SSID, ssid.into()).with(LEAF, 1)
    }

    /// VMID and ASID stand alike in all that have them.
    pub fn tlbi(opcode: u64, vmid: u16, asid: u16) -> Cmd {
        new(opcode).with((47, 32), vmid.into()).with((63, 48), asid.into())
    }

    pub fn tlbi_va(opcode: u64, vmid: u16, asid: u16, address: u64) -> Cmd {
        tlbi(opcode, vmid, asid).with_address(ADDRESS, address).with(LEAF, 1)
    }

    /// `(num + 1) << scale` granules; `tg` is 1, 2 or 3 for 4K, 16K, 64K.
    pub fn range(command: Cmd, tg: u64, num: u64, scale: u64, ttl: u64) -> Cmd {
        command.with(TG, tg).with(NUM, num).with(SCALE, scale).with(TTL, ttl)
    }

    pub fn sync() -> Cmd {
        new(SYNC)
    }

    pub fn sync_signal(cs: u64, msi_address: u64, msi_data: u32) -> Cmd {
        sync()
            .with((13, 12), cs)
            .with_address((119, 66), msi_address)
            .with((63, 32), msi_data.into())
    }

    pub fn resume(sid: u32, stag: u16, action: u64) -> Cmd {
        stream(RESUME, sid).with((79, 64), stag.into()).with((13, 12), action)
    }

    /// `CMD_RESUME` actions: terminate without an abort, retry, abort.
    pub const TERMINATE: u64 = 0b00;
    pub const RETRY: u64 = 0b01;
    pub const ABORT: u64 = 0b10;

    pub fn atc_inv(sid: u32, ssid: Option<u32>, address: u64, size: u64) -> Cmd {
        let command = stream(ATC_INV, sid).with((69, 64), size).with_address(ADDRESS, address);
        ssid.map_or(command, |ssid| command.with(SSV, 1).with(SSID, ssid.into()))
    }

    pub fn pri_resp(sid: u32, ssid: Option<u32>, prg_index: u16, resp: u64) -> Cmd {
        let command = stream(PRI_RESP, sid).with((72, 64), prg_index.into()).with((77, 76), resp);
        ssid.map_or(command, |ssid| command.with(SSV, 1).with(SSID, ssid.into()))
    }
}

/// Event records (§7.3).
pub mod event {
    use super::{Bits, Words};

    pub type Record = Words<4>;

    pub const NUMBER: Bits = (7, 0);
    pub const SSV: Bits = (11, 11);
    pub const SSID: Bits = (31, 12);
    pub const SID: Bits = (63, 32);
    pub const STAG: Bits = (79, 64);
    pub const STALL: Bits = (95, 95);
    pub const PNU: Bits = (97, 97);
    pub const IND: Bits = (98, 98);
    pub const RNW: Bits = (99, 99);
    pub const NSIPA: Bits = (102, 102);
    pub const S2: Bits = (103, 103);
    pub const CLASS: Bits = (105, 104);
    pub const TTRNW: Bits = (108, 108);
    pub const INPUT: Bits = (191, 128);
    pub const FETCH: Bits = (247, 195);
    pub const IPA: Bits = (247, 204);

    pub const C_BAD_STREAMID: u64 = 0x02;
    pub const F_STE_FETCH: u64 = 0x03;
    pub const C_BAD_STE: u64 = 0x04;
    pub const F_BAD_ATS_TREQ: u64 = 0x05;
    pub const F_STREAM_DISABLED: u64 = 0x06;
    pub const F_TRANSL_FORBIDDEN: u64 = 0x07;
    pub const C_BAD_SUBSTREAMID: u64 = 0x08;
    pub const F_CD_FETCH: u64 = 0x09;
    pub const C_BAD_CD: u64 = 0x0a;
    pub const F_WALK_EABT: u64 = 0x0b;
    pub const F_TRANSLATION: u64 = 0x10;
    pub const F_ADDR_SIZE: u64 = 0x11;
    pub const F_ACCESS: u64 = 0x12;
    pub const F_PERMISSION: u64 = 0x13;

    pub const CLASS_CD: u64 = 0b00;
    pub const CLASS_TT: u64 = 0b01;
    pub const CLASS_IN: u64 = 0b10;
}

/// Descriptors (DDI 0487 D8.3).
pub mod pte {
    pub const TABLE: u64 = 0b11;
    pub const PAGE: u64 = 0b11;
    pub const BLOCK: u64 = 0b01;

    pub const AF: u64 = 1 << 10;
    pub const NG: u64 = 1 << 11;
    pub const DBM: u64 = 1 << 51;
    pub const ISH: u64 = 3 << 8;
    pub const PXN: u64 = 1 << 53;
    pub const UXN: u64 = 1 << 54;
    /// AP[1]: unprivileged access.
    pub const USER: u64 = 1 << 6;
    /// AP[2]: read-only.
    pub const READ_ONLY: u64 = 1 << 7;
    /// APTable, PXNTable, UXNTable of table descriptors.
    pub const AP_TABLE_NO_USER: u64 = 1 << 61;
    pub const AP_TABLE_READ_ONLY: u64 = 1 << 62;
    pub const UXN_TABLE: u64 = 1 << 60;

    pub const S2_READ: u64 = 1 << 6;
    pub const S2_WRITE: u64 = 1 << 7;
    /// Stage 2 `MemAttr`: Normal write-back.
    pub const S2_WB: u64 = 0xf << 2;

    /// A stage 1 page that everybody may read and write, not global; `AttrIndx` 0.
    pub const S1_RW: u64 = PAGE | AF | NG | ISH | USER;
    /// A stage 2 page that may be read and written.
    pub const S2_RW: u64 = PAGE | AF | ISH | S2_READ | S2_WRITE | S2_WB;
}
