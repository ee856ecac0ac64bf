//! The Stream Table Entry (§5.2).

use super::field::fields;

fields! {
    /// A Stream Table Entry: 64 bytes that configure one stream (§5.2).
    ///
    /// Fields whose name starts with `s1_` concern stage 1, with `s2_` stage 2. `secure_` marks
    /// the fields the specification prefixes with `S_`; they are RES0 outside Secure state.
    pub struct Ste(pub [u64; 8]) {
        v, with_v: bool = "V" [0] { 0 => "invalid, everything else is ignored" };
        config, with_config: u8 = "Config" [3:1] {
            0b000..=0b011 => "abort without an event",
            0b100 => "both stages bypass",
            0b101 => "stage 1 translates, stage 2 bypasses",
            0b110 => "stage 1 bypasses, stage 2 translates",
            0b111 => "both stages translate",
        };
        s1_fmt, with_s1_fmt: u8 = "S1Fmt" [5:4] {
            0b01 => "two levels of CDs, 4 KiB leaves",
            0b10 => "two levels of CDs, 64 KiB leaves",
            0b11 => "reserved, linear",
        };
        s1_context_ptr, with_s1_context_ptr: address = "S1ContextPtr" [55:6];
        /// Log2 of the number of CDs; 0 disables substreams.
        s1_cd_max, with_s1_cd_max: u8 = "S1CDMax" [63:59];
        s1_dss, with_s1_dss: u8 = "S1DSS" [65:64] {
            0b01 => "without a SubstreamID, bypass stage 1",
            0b10 => "without a SubstreamID, use CD 0",
            0b11 => "reserved, terminate without a SubstreamID",
        };
        s1_cir, with_s1_cir: u8 = "S1CIR" [67:66] {
            0b01 => "inner write-back, read-allocate",
            0b10 => "inner write-through, read-allocate",
            0b11 => "inner write-back, no read-allocate",
        };
        s1_cor, with_s1_cor: u8 = "S1COR" [69:68] {
            0b01 => "outer write-back, read-allocate",
            0b10 => "outer write-through, read-allocate",
            0b11 => "outer write-back, no read-allocate",
        };
        s1_csh, with_s1_csh: u8 = "S1CSH" [71:70] {
            0b01 => "reserved, non-shareable",
            0b10 => "outer shareable",
            0b11 => "inner shareable",
        };
        s2_hwu59, with_s2_hwu59: bool = "S2HWU59" [72];
        s2_hwu60, with_s2_hwu60: bool = "S2HWU60" [73];
        s2_hwu61, with_s2_hwu61: bool = "S2HWU61" [74];
        s2_hwu62, with_s2_hwu62: bool = "S2HWU62" [75];
        dre, with_dre: bool = "DRE" [76] { 1 => "destructive reads permitted" };
        /// Log2 of the number of identical neighbouring STEs: a hint.
        cont, with_cont: u8 = "CONT" [80:77];
        dcp, with_dcp: bool = "DCP" [81] { 1 => "directed cache prefetch permitted" };
        ppar, with_ppar: bool = "PPAR" [82] { 1 => "automatic PRI responses carry the PASID" };
        mev, with_mev: bool = "MEV" [83] { 1 => "events may be merged" };
        /// For software; the SMMU ignores it.
        sw_reserved, with_sw_reserved: u8 = "SW_RESERVED" [87:84];
        s1_pie, with_s1_pie: bool = "S1PIE" [88];
        s2_fwb, with_s2_fwb: bool = "S2FWB" [89] { 1 => "stage 2 forces the memory type" };
        s1_mpam, with_s1_mpam: bool = "S1MPAM" [90] { 1 => "the CD gives PARTID and PMG" };
        s1_stalld, with_s1_stalld: bool = "S1STALLD" [91] { 1 => "stage 1 may not stall" };
        eats, with_eats: u8 = "EATS" [93:92] {
            0b01 => "full ATS",
            0b10 => "split-stage ATS",
            0b11 => "full ATS with DPT checks",
        };
        strw, with_strw: u8 = "STRW" [95:94] {
            0b01 => "EL3 or reserved",
            0b10 => "EL2",
            0b11 => "reserved",
        };
        /// Stage 2 MemAttr encoding, used if `mt_cfg`.
        mem_attr, with_mem_attr: u8 = "MemAttr" [99:96];
        mt_cfg, with_mt_cfg: bool = "MTCFG" [100] { 1 => "MemAttr replaces the incoming type" };
        /// `0b1RWT` overrides the allocation hints.
        alloc_cfg, with_alloc_cfg: u8 = "ALLOCCFG" [104:101] {
            0b0001..=0b0111 => "incoming hints",
            0b1000..=0b1111 => "hints overridden",
        };
        sh_cfg, with_sh_cfg: u8 = "SHCFG" [109:108] {
            0b01 => "incoming shareability",
            0b10 => "outer shareable",
            0b11 => "inner shareable",
        };
        ns_cfg, with_ns_cfg: u8 = "NSCFG" [111:110];
        priv_cfg, with_priv_cfg: u8 = "PRIVCFG" [113:112] {
            0b01 => "reserved, incoming privilege",
            0b10 => "unprivileged",
            0b11 => "privileged",
        };
        inst_cfg, with_inst_cfg: u8 = "INSTCFG" [115:114] {
            0b01 => "reserved, incoming attribute",
            0b10 => "data",
            0b11 => "instruction",
        };
        s2_vmid, with_s2_vmid: u16 = "S2VMID" [143:128];
        s2_t0sz, with_s2_t0sz: u8 = "S2T0SZ" [165:160];
        s2_sl0, with_s2_sl0: u8 = "S2SL0" [167:166];
        s2_ir0, with_s2_ir0: u8 = "S2IR0" [169:168] {
            0b01 => "inner write-back, write-allocate",
            0b10 => "inner write-through",
            0b11 => "inner write-back, no write-allocate",
        };
        s2_or0, with_s2_or0: u8 = "S2OR0" [171:170] {
            0b01 => "outer write-back, write-allocate",
            0b10 => "outer write-through",
            0b11 => "outer write-back, no write-allocate",
        };
        s2_sh0, with_s2_sh0: u8 = "S2SH0" [173:172] {
            0b01 => "reserved, non-shareable",
            0b10 => "outer shareable",
            0b11 => "inner shareable",
        };
        /// Unlike a CD's TG1, 0b00 is 4 KiB, 0b01 64 KiB, 0b10 16 KiB.
        s2_tg, with_s2_tg: u8 = "S2TG" [175:174] {
            0b01 => "64 KiB granule",
            0b10 => "16 KiB granule",
            0b11 => "reserved",
        };
        s2_ps, with_s2_ps: u8 = "S2PS" [178:176] {
            0b001 => "36 bits",
            0b010 => "40 bits",
            0b011 => "42 bits",
            0b100 => "44 bits",
            0b101 => "48 bits",
            0b110 => "52 bits",
            0b111 => "56 bits, before SMMUv3.4 reserved",
        };
        s2_aa64, with_s2_aa64: bool = "S2AA64" [179] { 1 => "VMSAv8-64 tables" };
        s2_endi, with_s2_endi: bool = "S2ENDI" [180] { 1 => "big-endian tables" };
        s2_affd, with_s2_affd: bool = "S2AFFD" [181] { 1 => "no Access flag faults" };
        s2_ptw, with_s2_ptw: bool = "S2PTW" [182] { 1 => "walks to Device memory fault" };
        s2_hd, with_s2_hd: bool = "S2HD" [183] { 1 => "hardware updates dirty state" };
        s2_ha, with_s2_ha: bool = "S2HA" [184] { 1 => "hardware updates the Access flag" };
        s2_s, with_s2_s: bool = "S2S" [185] { 1 => "stage 2 faults stall" };
        s2_r, with_s2_r: bool = "S2R" [186] { 1 => "stage 2 faults are recorded" };
        s2_haft, with_s2_haft: bool = "S2HAFT" [187];
        s2_pie, with_s2_pie: bool = "S2PIE" [188];
        s2_poe, with_s2_poe: bool = "S2POE" [189];
        dpt_vmatch, with_dpt_vmatch: u8 = "DPT_VMATCH" [191:190];
        s2_nsw, with_s2_nsw: bool = "S2NSW" [192];
        s2_nsa, with_s2_nsa: bool = "S2NSA" [193];
        s2_sl0_2, with_s2_sl0_2: bool = "S2SL0_2" [194];
        s2_ds, with_s2_ds: bool = "S2DS" [195] { 1 => "52-bit addresses with 4 and 16 KiB" };
        /// Bits 55:4. Before VMSAv9-128, address bits 55:52 are RES0.
        s2_ttb, with_s2_ttb: address = "S2TTB" [247:196];
        s2_skl, with_s2_skl: u8 = "S2SKL" [254:253];
        part_id, with_part_id: u16 = "PARTID" [287:272];
        secure_s2_t0sz, with_secure_s2_t0sz: u8 = "S_S2T0SZ" [293:288];
        secure_s2_sl0, with_secure_s2_sl0: u8 = "S_S2SL0" [295:294];
        secure_s2_tg, with_secure_s2_tg: u8 = "S_S2TG" [303:302];
        mec_id, with_mec_id: u16 = "MECID" [319:304];
        pmg, with_pmg: u8 = "PMG" [327:320];
        mpam_ns, with_mpam_ns: bool = "MPAM_NS" [328];
        assured_only, with_assured_only: bool = "AssuredOnly" [329];
        tl0, with_tl0: bool = "TL0" [330];
        tl1, with_tl1: bool = "TL1" [331];
        vms_ptr, with_vms_ptr: address = "VMSPtr" [375:332];
        s2_sw, with_s2_sw: bool = "S2SW" [384];
        s2_sa, with_s2_sa: bool = "S2SA" [385];
        secure_s2_sl0_2, with_secure_s2_sl0_2: bool = "S_S2SL0_2" [386];
        secure_s2_ttb, with_secure_s2_ttb: address = "S_S2TTB" [439:388];
        secure_s2_skl, with_secure_s2_skl: u8 = "S_S2SKL" [446:445];
        /// Sixteen overlay interpretations of four bits each, by POIndex.
        s2_poi, with_s2_poi: u64 = "S2POI" [511:448];
    }
}
