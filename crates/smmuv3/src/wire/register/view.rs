//! The fields of the registers (§6.3).

use crate::wire::field::fields;

fields! {
    /// SMMU_IDR0: features (§6.3.1).
    pub struct Idr0(pub u32) {
        s2p, with_s2p: bool = "S2P" [0] { 1 => "stage 2" };
        s1p, with_s1p: bool = "S1P" [1] { 1 => "stage 1" };
        ttf, with_ttf: u8 = "TTF" [3:2] {
            0b01 => "VMSAv8-32 LPAE",
            0b10 => "VMSAv8-64",
            0b11 => "VMSAv8-32 LPAE and VMSAv8-64",
        };
        cohacc, with_cohacc: bool = "COHACC" [4] { 1 => "coherent accesses" };
        btm, with_btm: bool = "BTM" [5] { 1 => "broadcast TLB maintenance" };
        httu, with_httu: u8 = "HTTU" [7:6] {
            0b01 => "Access flag updates",
            0b10 => "Access flag and dirty state updates",
            0b11 => "Access flag and dirty state updates, Access flag of tables too",
        };
        dormhint, with_dormhint: bool = "DORMHINT" [8] { 1 => "dormant hint" };
        hyp, with_hyp: bool = "Hyp" [9] { 1 => "EL2 stage 1" };
        ats, with_ats: bool = "ATS" [10] { 1 => "PCIe ATS" };
        ns1ats, with_ns1ats: bool = "NS1ATS" [11] { 1 => "no split-stage ATS" };
        asid16, with_asid16: bool = "ASID16" [12] { 1 => "16-bit ASIDs" };
        msi, with_msi: bool = "MSI" [13] { 1 => "message signalled interrupts" };
        sev, with_sev: bool = "SEV" [14] { 1 => "wake-up events" };
        atos, with_atos: bool = "ATOS" [15] { 1 => "address translation operations" };
        pri, with_pri: bool = "PRI" [16] { 1 => "page requests" };
        vmw, with_vmw: bool = "VMW" [17] { 1 => "VMID wildcards" };
        vmid16, with_vmid16: bool = "VMID16" [18] { 1 => "16-bit VMIDs" };
        cd2l, with_cd2l: bool = "CD2L" [19] { 1 => "two-level CD tables" };
        vatos, with_vatos: bool = "VATOS" [20] { 1 => "virtual ATOS page" };
        ttendian, with_ttendian: u8 = "TTENDIAN" [22:21] {
            0b00 => "tables of either endianness",
            0b01 => "reserved",
            0b10 => "little-endian tables",
            0b11 => "big-endian tables",
        };
        atsrecerr, with_atsrecerr: bool = "ATSRECERR" [23] { 1 => "more ATS events" };
        stall_model, with_stall_model: u8 = "STALL_MODEL" [25:24] {
            0b00 => "faults stall or terminate",
            0b01 => "faults terminate",
            0b10 => "faults stall",
            0b11 => "reserved",
        };
        term_model, with_term_model: bool = "TERM_MODEL" [26] { 1 => "termination always aborts" };
        st_level, with_st_level: u8 = "ST_LEVEL" [28:27] {
            0b00 => "linear Stream table",
            0b01 => "linear or two-level Stream table",
            0b10..=0b11 => "reserved",
        };
        rme_impl, with_rme_impl: bool = "RME_IMPL" [30] { 1 => "RME" };
    }
}

fields! {
    /// SMMU_IDR1: sizes (§6.3.2).
    pub struct Idr1(pub u32) {
        /// Bits of a StreamID, at most 32.
        sid_size, with_sid_size: u8 = "SIDSIZE" [5:0];
        /// Bits of a SubstreamID, at most 20; 0 for none.
        ssid_size, with_ssid_size: u8 = "SSIDSIZE" [10:6];
        /// Log2 of the PRI queue's largest size, at most 19.
        priqs, with_priqs: u8 = "PRIQS" [15:11];
        /// Log2 of the Event queue's largest size, at most 19.
        eventqs, with_eventqs: u8 = "EVENTQS" [20:16];
        /// Log2 of the Command queue's largest size, at most 19.
        cmdqs, with_cmdqs: u8 = "CMDQS" [25:21];
        attr_perms_ovr, with_attr_perms_ovr: bool = "ATTR_PERMS_OVR" [26] {
            1 => "permission attributes can be overridden"
        };
        attr_types_ovr, with_attr_types_ovr: bool = "ATTR_TYPES_OVR" [27] {
            1 => "memory attributes can be overridden"
        };
        rel, with_rel: bool = "REL" [28] { 1 => "preset bases are relative" };
        queues_preset, with_queues_preset: bool = "QUEUES_PRESET" [29];
        tables_preset, with_tables_preset: bool = "TABLES_PRESET" [30];
        ecmdq, with_ecmdq: bool = "ECMDQ" [31] { 1 => "enhanced Command queues" };
    }
}

fields! {
    /// SMMU_IDR2: place of the VATOS page (§6.3.3).
    pub struct Idr2(pub u32) {
        /// Page number after the first two pages.
        ba_vatos, with_ba_vatos: u16 = "BA_VATOS" [9:0];
    }
}

fields! {
    /// SMMU_IDR3: more features (§6.3.4).
    pub struct Idr3(pub u32) {
        had, with_had: bool = "HAD" [2] { 1 => "hierarchical attribute disable" };
        pbha, with_pbha: bool = "PBHA" [3] { 1 => "page-based hardware attributes" };
        xnx, with_xnx: bool = "XNX" [4] { 1 => "stage 2 execute control by Exception level" };
        pps, with_pps: bool = "PPS" [5] { 1 => "automatic PRI responses carry the PASID" };
        mpam, with_mpam: bool = "MPAM" [7] { 1 => "MPAM" };
        fwb, with_fwb: bool = "FWB" [8] { 1 => "stage 2 can force memory types" };
        stt, with_stt: bool = "STT" [9] { 1 => "small translation tables" };
        ril, with_ril: bool = "RIL" [10] { 1 => "range invalidation and level hints" };
        bbml, with_bbml: u8 = "BBML" [12:11] {
            0b01 => "break-before-make level 1",
            0b10 => "break-before-make level 2",
            0b11 => "reserved",
        };
        e0pd, with_e0pd: bool = "E0PD" [13] { 1 => "unprivileged access can be prevented" };
        ptwnnc, with_ptwnnc: bool = "PTWNNC" [14] {
            1 => "walks to Device memory are Normal Non-cacheable"
        };
        dpt, with_dpt: bool = "DPT" [15] { 1 => "Device Permission Table" };
        pasidtt, with_pasidtt: bool = "PASIDTT" [16] { 1 => "PASIDs on translated transactions" };
        epan, with_epan: bool = "EPAN" [17] { 1 => "enhanced PAN" };
        s1pi, with_s1pi: bool = "S1PI" [18] { 1 => "stage 1 permission indirection" };
        s2pi, with_s2pi: bool = "S2PI" [19] { 1 => "stage 2 permission indirection" };
        s2po, with_s2po: bool = "S2PO" [20] { 1 => "stage 2 permission overlays" };
        the, with_the: bool = "THE" [21] { 1 => "translation hardening" };
        mteperm, with_mteperm: bool = "MTEPERM" [22] { 1 => "NoTagAccess at stage 2" };
        aie, with_aie: bool = "AIE" [23] { 1 => "attribute index extension" };
    }
}

fields! {
    /// SMMU_IDR5: address sizes (§6.3.6).
    pub struct Idr5(pub u32) {
        /// Output address size; see [`address_bits`](crate::wire::address_bits).
        oas, with_oas: u8 = "OAS" [2:0] {
            0b000 => "32 bits",
            0b001 => "36 bits",
            0b010 => "40 bits",
            0b011 => "42 bits",
            0b100 => "44 bits",
            0b101 => "48 bits",
            0b110 => "52 bits",
            0b111 => "56 bits",
        };
        gran4k, with_gran4k: bool = "GRAN4K" [4];
        gran16k, with_gran16k: bool = "GRAN16K" [5];
        gran64k, with_gran64k: bool = "GRAN64K" [6];
        ds, with_ds: bool = "DS" [7] { 1 => "52-bit addresses with 4 and 16 KiB" };
        d128, with_d128: bool = "D128" [8] { 1 => "VMSAv9-128" };
        vax, with_vax: u8 = "VAX" [11:10] {
            0b00 => "48-bit virtual addresses",
            0b01 => "52-bit virtual addresses",
            0b10 => "56-bit virtual addresses",
            0b11 => "reserved",
        };
        /// Transactions that can stall at once.
        stall_max, with_stall_max: u16 = "STALL_MAX" [31:16];
    }
}

fields! {
    /// SMMU_IDR6: enhanced Command queues (§6.3.45).
    pub struct Idr6(pub u32) {
        log2_numq, with_log2_numq: u8 = "CMDQ_CONTROL_PAGE_LOG2NUMQ" [19:16];
        log2_nump, with_log2_nump: u8 = "CMDQ_CONTROL_PAGE_LOG2NUMP" [27:24];
    }
}

fields! {
    /// SMMU_IIDR: implementer and product (§6.3.7).
    pub struct Iidr(pub u32) {
        /// JEP106 code: continuation in 11:8, identity in 6:0.
        implementer, with_implementer: u16 = "Implementer" [11:0];
        revision, with_revision: u8 = "Revision" [15:12];
        variant, with_variant: u8 = "Variant" [19:16];
        product_id, with_product_id: u16 = "ProductID" [31:20];
    }
}

fields! {
    /// SMMU_AIDR: architecture version (§6.3.8).
    pub struct Aidr(pub u32) {
        minor, with_minor: u8 = "ArchMinorRev" [3:0] {
            0 => "SMMUv3.0",
            1 => "SMMUv3.1",
            2 => "SMMUv3.2",
            3 => "SMMUv3.3",
            4 => "SMMUv3.4",
        };
        major, with_major: u8 = "ArchMajorRev" [7:4];
    }
}

fields! {
    /// SMMU_CR0 and SMMU_CR0ACK: enables (§6.3.9, §6.3.10).
    pub struct Cr0(pub u32) {
        smmuen, with_smmuen: bool = "SMMUEN" [0] {
            0 => "transactions bypass or abort as GBPA says",
            1 => "transactions are translated",
        };
        priqen, with_priqen: bool = "PRIQEN" [1];
        eventqen, with_eventqen: bool = "EVENTQEN" [2];
        cmdqen, with_cmdqen: bool = "CMDQEN" [3];
        atschk, with_atschk: bool = "ATSCHK" [4] { 1 => "translated transactions are checked" };
        /// Low bits of VMIDs that invalidations ignore: 0 to 4.
        vmw, with_vmw: u8 = "VMW" [8:6];
        dpt_walk_en, with_dpt_walk_en: bool = "DPT_WALK_EN" [10];
    }
}

fields! {
    /// SMMU_CR1: attributes of the SMMU's own accesses (§6.3.11).
    ///
    /// Cacheability is 0 non-cacheable, 1 write-back, 2 write-through; shareability is 0
    /// non-shareable, 2 outer, 3 inner.
    pub struct Cr1(pub u32) {
        queue_ic, with_queue_ic: u8 = "QUEUE_IC" [1:0];
        queue_oc, with_queue_oc: u8 = "QUEUE_OC" [3:2];
        queue_sh, with_queue_sh: u8 = "QUEUE_SH" [5:4];
        table_ic, with_table_ic: u8 = "TABLE_IC" [7:6];
        table_oc, with_table_oc: u8 = "TABLE_OC" [9:8];
        table_sh, with_table_sh: u8 = "TABLE_SH" [11:10];
    }
}

fields! {
    /// SMMU_CR2: more controls (§6.3.12).
    pub struct Cr2(pub u32) {
        e2h, with_e2h: bool = "E2H" [0] { 1 => "EL2-E2H translation regime" };
        recinvsid, with_recinvsid: bool = "RECINVSID" [1] { 1 => "C_BAD_STREAMID is recorded" };
        ptm, with_ptm: bool = "PTM" [2] { 1 => "broadcast TLB maintenance ignored" };
        rec_cfg_ats, with_rec_cfg_ats: bool = "REC_CFG_ATS" [3] { 1 => "more ATS events" };
    }
}

fields! {
    /// SMMU_STATUSR: status (§6.3.13).
    pub struct Statusr(pub u32) {
        dormant, with_dormant: bool = "DORMANT" [0] { 1 => "nothing is cached" };
    }
}

fields! {
    /// SMMU_GBPA: what happens to transactions while SMMUEN is 0 (§6.3.14).
    pub struct Gbpa(pub u32) {
        mem_attr, with_mem_attr: u8 = "MemAttr" [3:0];
        mt_cfg, with_mt_cfg: bool = "MTCFG" [4] { 1 => "MemAttr replaces the incoming type" };
        alloc_cfg, with_alloc_cfg: u8 = "ALLOCCFG" [11:8];
        sh_cfg, with_sh_cfg: u8 = "SHCFG" [13:12] {
            0b00 => "non-shareable",
            0b01 => "incoming shareability",
            0b10 => "outer shareable",
            0b11 => "inner shareable",
        };
        priv_cfg, with_priv_cfg: u8 = "PRIVCFG" [17:16] {
            0b10 => "unprivileged",
            0b11 => "privileged",
        };
        inst_cfg, with_inst_cfg: u8 = "INSTCFG" [19:18] {
            0b10 => "data",
            0b11 => "instruction",
        };
        abort, with_abort: bool = "ABORT" [20] {
            0 => "transactions bypass",
            1 => "transactions abort",
        };
        update, with_update: bool = "Update" [31] { 1 => "change in progress" };
    }
}

fields! {
    /// SMMU_IRQ_CTRL and SMMU_IRQ_CTRLACK: interrupt enables (§6.3.16, §6.3.18).
    pub struct IrqCtrl(pub u32) {
        gerror_irqen, with_gerror_irqen: bool = "GERROR_IRQEN" [0];
        priq_irqen, with_priq_irqen: bool = "PRIQ_IRQEN" [1];
        eventq_irqen, with_eventq_irqen: bool = "EVENTQ_IRQEN" [2];
    }
}

fields! {
    /// SMMU_GERROR and SMMU_GERRORN: an error is active where the two differ (§6.3.19, §6.3.20).
    pub struct Gerror(pub u32) {
        cmdq_err, with_cmdq_err: bool = "CMDQ_ERR" [0];
        eventq_abt_err, with_eventq_abt_err: bool = "EVENTQ_ABT_ERR" [2];
        priq_abt_err, with_priq_abt_err: bool = "PRIQ_ABT_ERR" [3];
        msi_cmdq_abt_err, with_msi_cmdq_abt_err: bool = "MSI_CMDQ_ABT_ERR" [4];
        msi_eventq_abt_err, with_msi_eventq_abt_err: bool = "MSI_EVENTQ_ABT_ERR" [5];
        msi_priq_abt_err, with_msi_priq_abt_err: bool = "MSI_PRIQ_ABT_ERR" [6];
        msi_gerror_abt_err, with_msi_gerror_abt_err: bool = "MSI_GERROR_ABT_ERR" [7];
        sfm_err, with_sfm_err: bool = "SFM_ERR" [8] { 1 => "Service Failure Mode" };
        cmdqp_err, with_cmdqp_err: bool = "CMDQP_ERR" [9];
        dpt_err, with_dpt_err: bool = "DPT_ERR" [10];
    }
}

fields! {
    /// SMMU_STRTAB_BASE: the Stream table (§6.3.24).
    pub struct StrtabBase(pub u64) {
        /// Low bits below the table's size count as zero.
        addr, with_addr: address = "ADDR" [55:6];
        ra, with_ra: bool = "RA" [62] { 1 => "read-allocate" };
    }
}

fields! {
    /// SMMU_STRTAB_BASE_CFG: format and size of the Stream table (§6.3.25).
    pub struct StrtabBaseCfg(pub u32) {
        /// Log2 of the number of StreamIDs.
        log2size, with_log2size: u8 = "LOG2SIZE" [5:0];
        /// Low StreamID bits that index the level 2 tables: 6, 8 or 10, anything else is 6.
        split, with_split: u8 = "SPLIT" [10:6];
        fmt, with_fmt: u8 = "FMT" [17:16] {
            0b00 => "linear",
            0b01 => "two levels",
            0b10..=0b11 => "reserved",
        };
    }
}

fields! {
    /// SMMU_CMDQ_BASE, SMMU_EVENTQ_BASE and SMMU_PRIQ_BASE: a queue (§6.3.26, §6.3.29, §6.3.33).
    pub struct QueueBase(pub u64) {
        /// Log2 of the number of entries; larger than IDR1 allows counts as what it allows.
        log2size, with_log2size: u8 = "LOG2SIZE" [4:0];
        /// Low bits below the queue's size count as zero.
        addr, with_addr: address = "ADDR" [55:5];
        /// RA of the Command queue, WA of the others.
        allocate, with_allocate: bool = "RA/WA" [62] { 1 => "allocate" };
    }
}

fields! {
    /// SMMU_CMDQ_PROD, SMMU_EVENTQ_PROD and SMMU_PRIQ_PROD (§6.3.27, §6.3.95, §6.3.97).
    pub struct Prod(pub u32) {
        /// Index and wrap flag: see [`Ring`](super::Ring).
        wr, with_wr: u32 = "WR" [19:0];
        /// Toggled when a queue overflows. Absent from the Command queue.
        ovflg, with_ovflg: bool = "OVFLG" [31];
    }
}

fields! {
    /// SMMU_EVENTQ_CONS and SMMU_PRIQ_CONS (§6.3.96, §6.3.98).
    pub struct Cons(pub u32) {
        /// Index and wrap flag: see [`Ring`](super::Ring).
        rd, with_rd: u32 = "RD" [19:0];
        /// Made equal to OVFLG to acknowledge an overflow.
        ovackflg, with_ovackflg: bool = "OVACKFLG" [31];
    }
}

fields! {
    /// SMMU_CMDQ_CONS (§6.3.28).
    pub struct CmdqCons(pub u32) {
        /// Index and wrap flag: see [`Ring`](super::Ring).
        rd, with_rd: u32 = "RD" [19:0];
        /// Why the SMMU stopped: see [`CommandError`](super::CommandError).
        err, with_err: u8 = "ERR" [30:24] {
            1 => "CERROR_ILL",
            2 => "CERROR_ABT",
            3 => "CERROR_ATC_INV_SYNC",
        };
    }
}

fields! {
    /// SMMU_*_IRQ_CFG0: address of an MSI (§6.3.21, §6.3.30, §6.3.34).
    pub struct IrqCfg0(pub u64) {
        /// Zero sends no MSI.
        addr, with_addr: address = "ADDR" [55:2];
    }
}

fields! {
    /// SMMU_*_IRQ_CFG1: data of an MSI (§6.3.22, §6.3.31, §6.3.35).
    pub struct IrqCfg1(pub u32) {
        data, with_data: u32 = "DATA" [31:0];
    }
}

fields! {
    /// SMMU_*_IRQ_CFG2: attributes of an MSI (§6.3.23, §6.3.32, §6.3.36).
    pub struct IrqCfg2(pub u32) {
        /// As STE.MemAttr.
        mem_attr, with_mem_attr: u8 = "MemAttr" [3:0];
        sh, with_sh: u8 = "SH" [5:4] {
            0b01 => "reserved, non-shareable",
            0b10 => "outer shareable",
            0b11 => "inner shareable",
        };
        /// PRI queue only.
        lo, with_lo: bool = "LO" [31] { 1 => "interrupt when Last is received" };
    }
}

fields! {
    /// SMMU_GATOS_CTRL (§6.3.37).
    pub struct GatosCtrl(pub u32) {
        run, with_run: bool = "RUN" [0];
    }
}

fields! {
    /// SMMU_GATOS_SID (§6.3.38).
    pub struct GatosSid(pub u64) {
        sid, with_sid: u32 = "STREAMID" [31:0];
        ssid, with_ssid: u32 = "SUBSTREAMID" [51:32];
        ssid_valid, with_ssid_valid: bool = "SSID_VALID" [52];
    }
}

fields! {
    /// SMMU_GATOS_ADDR (§6.3.39).
    pub struct GatosAddr(pub u64) {
        httui, with_httui: bool = "HTTUI" [6] { 1 => "hardware updates inhibited" };
        ind, with_ind: bool = "InD" [7];
        rnw, with_rnw: bool = "RnW" [8];
        pnu, with_pnu: bool = "PnU" [9];
        kind, with_kind: u8 = "TYPE" [11:10] {
            0b01 => "stage 1",
            0b10 => "stage 2",
            0b11 => "stages 1 and 2",
        };
        addr, with_addr: address = "ADDR" [63:12];
    }
}

fields! {
    /// SMMU_GATOS_PAR after a translation: `fault` is 0 (§6.3.40).
    pub struct GatosPar(pub u64) {
        fault, with_fault: bool = "FAULT" [0];
        sh, with_sh: u8 = "SH" [9:8];
        /// The lowest 1 bit of `addr` tells the size; otherwise it is 4 KiB.
        size, with_size: bool = "Size" [11];
        addr, with_addr: address = "ADDR" [55:12];
        /// As in a MAIR.
        attr, with_attr: u8 = "ATTR" [63:56];
    }
}

fields! {
    /// SMMU_GATOS_PAR after a fault: `fault` is 1 (§6.3.40).
    pub struct GatosFault(pub u64) {
        fault, with_fault: bool = "FAULT" [0];
        reason, with_reason: u8 = "REASON" [2:1] {
            0b01 => "stage 2, CD fetch",
            0b10 => "stage 2, stage 1 walk",
            0b11 => "stage 2, input address",
        };
        /// An event number or one of the codes of §9.1.5.
        fault_code, with_fault_code: u8 = "FAULTCODE" [11:4];
        /// Intermediate physical address, if the fault occurred at stage 2.
        fault_addr, with_fault_addr: address = "FADDR" [55:12];
    }
}

fields! {
    /// SMMU_MPAMIDR (§6.3.41).
    pub struct MpamIdr(pub u32) {
        part_id_max, with_part_id_max: u16 = "PARTID_MAX" [15:0];
        pmg_max, with_pmg_max: u8 = "PMG_MAX" [23:16];
    }
}

fields! {
    /// SMMU_GMPAM and SMMU_GBPMPAM (§6.3.42, §6.3.43).
    pub struct Mpam(pub u32) {
        part_id, with_part_id: u16 = "PARTID" [15:0];
        pmg, with_pmg: u8 = "PMG" [23:16];
        update, with_update: bool = "Update" [31] { 1 => "change in progress" };
    }
}

fields! {
    /// SMMU_VATOS_SEL (§6.3.44).
    pub struct VatosSel(pub u32) {
        vmid, with_vmid: u16 = "VMID" [15:0];
    }
}
