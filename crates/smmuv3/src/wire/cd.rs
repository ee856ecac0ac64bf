//! The Context Descriptor (§5.4).

use super::field::fields;

fields! {
    /// A Context Descriptor: 64 bytes that configure one address space of stage 1 (§5.4).
    ///
    /// Where SMMU_IDR5.D128 is 1, `had0`, `hwu061` and `hwu062` (and their counterparts for TTB1)
    /// have another meaning: DisCH0 and SKL0.
    pub struct Cd(pub [u64; 8]) {
        t0sz, with_t0sz: u8 = "T0SZ" [5:0];
        /// 0b00 is 4 KiB, 0b01 64 KiB, 0b10 16 KiB: not the encoding of `tg1`.
        tg0, with_tg0: u8 = "TG0" [7:6] {
            0b00 => "4 KiB granule",
            0b01 => "64 KiB granule",
            0b10 => "16 KiB granule",
            0b11 => "reserved",
        };
        ir0, with_ir0: u8 = "IR0" [9:8] {
            0b01 => "inner write-back, write-allocate",
            0b10 => "inner write-through",
            0b11 => "inner write-back, no write-allocate",
        };
        or0, with_or0: u8 = "OR0" [11:10] {
            0b01 => "outer write-back, write-allocate",
            0b10 => "outer write-through",
            0b11 => "outer write-back, no write-allocate",
        };
        sh0, with_sh0: u8 = "SH0" [13:12] {
            0b01 => "reserved, non-shareable",
            0b10 => "outer shareable",
            0b11 => "inner shareable",
        };
        epd0, with_epd0: bool = "EPD0" [14] { 1 => "walks through TTB0 disabled" };
        endi, with_endi: bool = "ENDI" [15] { 1 => "big-endian tables" };
        t1sz, with_t1sz: u8 = "T1SZ" [21:16];
        /// 0b01 is 16 KiB, 0b10 4 KiB, 0b11 64 KiB: not the encoding of `tg0`.
        tg1, with_tg1: u8 = "TG1" [23:22] {
            0b01 => "16 KiB granule",
            0b10 => "4 KiB granule",
            0b11 => "64 KiB granule",
        };
        ir1, with_ir1: u8 = "IR1" [25:24] {
            0b01 => "inner write-back, write-allocate",
            0b10 => "inner write-through",
            0b11 => "inner write-back, no write-allocate",
        };
        or1, with_or1: u8 = "OR1" [27:26] {
            0b01 => "outer write-back, write-allocate",
            0b10 => "outer write-through",
            0b11 => "outer write-back, no write-allocate",
        };
        sh1, with_sh1: u8 = "SH1" [29:28] {
            0b01 => "reserved, non-shareable",
            0b10 => "outer shareable",
            0b11 => "inner shareable",
        };
        epd1, with_epd1: bool = "EPD1" [30] { 1 => "walks through TTB1 disabled" };
        v, with_v: bool = "V" [31] { 0 => "invalid, everything else is ignored" };
        ips, with_ips: u8 = "IPS" [34:32] {
            0b000 => "32 bits",
            0b001 => "36 bits",
            0b010 => "40 bits",
            0b011 => "42 bits",
            0b100 => "44 bits",
            0b101 => "48 bits",
            0b110 => "52 bits",
            0b111 => "56 bits, before SMMUv3.4 reserved",
        };
        affd, with_affd: bool = "AFFD" [35] { 1 => "no Access flag faults" };
        wxn, with_wxn: bool = "WXN" [36] { 1 => "writable is never executable" };
        uwxn, with_uwxn: bool = "UWXN" [37] { 1 => "user-writable is never privileged executable" };
        tbi0, with_tbi0: bool = "TBI0" [38] { 1 => "top byte ignored in TTB0's range" };
        tbi1, with_tbi1: bool = "TBI1" [39] { 1 => "top byte ignored in TTB1's range" };
        pan, with_pan: bool = "PAN" [40] { 1 => "privileged data access to user pages faults" };
        aa64, with_aa64: bool = "AA64" [41] { 1 => "VMSAv8-64 tables" };
        hd, with_hd: bool = "HD" [42] { 1 => "hardware updates dirty state" };
        ha, with_ha: bool = "HA" [43] { 1 => "hardware updates the Access flag" };
        s, with_s: bool = "S" [44] { 1 => "faults stall" };
        r, with_r: bool = "R" [45] { 1 => "faults are recorded" };
        a, with_a: bool = "A" [46] { 1 => "terminated transactions abort" };
        aset, with_aset: bool = "ASET" [47] { 1 => "ASID not shared with PEs" };
        asid, with_asid: u16 = "ASID" [63:48];
        nscfg0, with_nscfg0: bool = "NSCFG0" [64];
        had0, with_had0: bool = "HAD0" [65] { 1 => "table attributes ignored below TTB0" };
        e0pd0, with_e0pd0: bool = "E0PD0" [66] { 1 => "unprivileged access through TTB0 faults" };
        haft, with_haft: bool = "HAFT" [67];
        /// Bits 55:4. Before VMSAv9-128, address bits 55:52 are RES0.
        ttb0, with_ttb0: address = "TTB0" [119:68];
        pnch, with_pnch: bool = "PnCH" [122];
        epan, with_epan: bool = "EPAN" [123];
        hwu059, with_hwu059: bool = "HWU059" [124];
        hwu060, with_hwu060: bool = "HWU060" [125];
        hwu061, with_hwu061: bool = "HWU061" [126];
        hwu062, with_hwu062: bool = "HWU062" [127];
        nscfg1, with_nscfg1: bool = "NSCFG1" [128];
        had1, with_had1: bool = "HAD1" [129] { 1 => "table attributes ignored below TTB1" };
        e0pd1, with_e0pd1: bool = "E0PD1" [130] { 1 => "unprivileged access through TTB1 faults" };
        aie, with_aie: bool = "AIE" [131];
        /// Bits 55:4. Before VMSAv9-128, address bits 55:52 are RES0.
        ttb1, with_ttb1: address = "TTB1" [183:132];
        ds, with_ds: bool = "DS" [186] { 1 => "52-bit addresses with 4 and 16 KiB" };
        pie, with_pie: bool = "PIE" [187];
        hwu159, with_hwu159: bool = "HWU159" [188];
        hwu160, with_hwu160: bool = "HWU160" [189];
        hwu161, with_hwu161: bool = "HWU161" [190];
        hwu162, with_hwu162: bool = "HWU162" [191];
        /// MAIR1 and MAIR0 as one value: eight attributes of eight bits, by AttrIndx.
        mair, with_mair: u64 = "MAIR" [255:192];
        /// AMAIR1 and AMAIR0 as one value.
        amair, with_amair: u64 = "AMAIR" [319:256];
        part_id, with_part_id: u16 = "PARTID" [367:352];
        pmg, with_pmg: u8 = "PMG" [375:368];
        /// Sixteen unprivileged base permissions of three bits each, by PIIndex.
        piiu, with_piiu: u64 = "PIIU" [431:384];
        /// Sixteen privileged base permissions of three bits each, by PIIndex.
        piip, with_piip: u64 = "PIIP" [495:448];
    }
}
