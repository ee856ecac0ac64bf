//! The Non-secure registers (§6): where they stand, who may write them, what is in them.
//!
//! The register file is two pages of 64 KiB. Software reaches it in aligned 32-bit words, and
//! 64-bit registers in one access too; each half of a 64-bit register is written on its own.
//! Command queue control pages (0x4000) and the VATOS page exist only with features nobody models
//! yet and have no entries here.

mod queue;
mod view;

use std::fmt;

pub use queue::{CommandError, Ring};
pub use view::{
    Aidr, CmdqCons, Cons, Cr0, Cr1, Cr2, GatosAddr, GatosCtrl, GatosFault, GatosPar, GatosSid,
    Gbpa, Gerror, Idr0, Idr1, Idr2, Idr3, Idr5, Idr6, Iidr, IrqCfg0, IrqCfg1, IrqCfg2, IrqCtrl,
    Mpam, MpamIdr, Prod, QueueBase, Statusr, StrtabBase, StrtabBaseCfg, VatosSel,
};

/// Size of one register page in bytes.
pub const PAGE_SIZE: u32 = 0x1_0000;

/// When software may write a register. A write at any other time is ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// Never.
    ReadOnly,
    /// Always.
    ReadWrite,
    /// While SMMU_CR0.SMMUEN and its acknowledgement are 0.
    WhileSmmuDisabled,
    /// While SMMU_CR0.CMDQEN and its acknowledgement are 0.
    WhileCmdqDisabled,
    /// While SMMU_CR0.EVENTQEN and its acknowledgement are 0.
    WhileEventqDisabled,
    /// While SMMU_CR0.PRIQEN and its acknowledgement are 0.
    WhilePriqDisabled,
    /// While SMMU_IRQ_CTRL.EVENTQ_IRQEN and its acknowledgement are 0.
    WhileEventqIrqDisabled,
    /// While SMMU_IRQ_CTRL.PRIQ_IRQEN and its acknowledgement are 0.
    WhilePriqIrqDisabled,
    /// While SMMU_IRQ_CTRL.GERROR_IRQEN and its acknowledgement are 0.
    WhileGerrorIrqDisabled,
    /// While the register's own Update bit is 0.
    WhileNotUpdating,
    /// While SMMU_GATOS_CTRL.RUN is 0.
    WhileGatosIdle,
    /// While SMMU_VATOS_CTRL.RUN is 0.
    WhileVatosIdle,
    /// While SMMU_CR0.DPT_WALK_EN and its acknowledgement are 0.
    WhileDptDisabled,
    /// The register's fields have rules of their own.
    PerField,
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ReadOnly => "read-only",
            Self::ReadWrite => "read-write",
            Self::WhileSmmuDisabled => "writable while CR0.SMMUEN is 0",
            Self::WhileCmdqDisabled => "writable while CR0.CMDQEN is 0",
            Self::WhileEventqDisabled => "writable while CR0.EVENTQEN is 0",
            Self::WhilePriqDisabled => "writable while CR0.PRIQEN is 0",
            Self::WhileEventqIrqDisabled => "writable while IRQ_CTRL.EVENTQ_IRQEN is 0",
            Self::WhilePriqIrqDisabled => "writable while IRQ_CTRL.PRIQ_IRQEN is 0",
            Self::WhileGerrorIrqDisabled => "writable while IRQ_CTRL.GERROR_IRQEN is 0",
            Self::WhileNotUpdating => "writable while its Update is 0",
            Self::WhileGatosIdle => "writable while GATOS_CTRL.RUN is 0",
            Self::WhileVatosIdle => "writable while VATOS_CTRL.RUN is 0",
            Self::WhileDptDisabled => "writable while CR0.DPT_WALK_EN is 0",
            Self::PerField => "writable by field",
        })
    }
}

/// What a register holds out of reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reset {
    /// What the implementation is: constant.
    Fixed,
    /// That value.
    Value(u32),
    /// IMPLEMENTATION DEFINED.
    ImplementationDefined,
    /// UNKNOWN: software must write it before use.
    Unknown,
}

impl fmt::Display for Reset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed => f.write_str("fixed"),
            Self::Value(value) => write!(f, "{value:#x}"),
            Self::ImplementationDefined => f.write_str("IMPLEMENTATION DEFINED"),
            Self::Unknown => f.write_str("UNKNOWN"),
        }
    }
}

struct Description {
    register: Register,
    name: &'static str,
    offset: u32,
    width: u32,
    access: Access,
    reset: Reset,
}

macro_rules! registers {
    ($(
        $(#[$meta:meta])*
        $register:ident = $name:literal at $offset:literal, $width:literal bits, $access:ident,
            $reset:ident $(($value:literal))?;
    )+) => {
        /// A Non-secure register of page 0 or 1 (§6.2), by its offset in the register file.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Register {
            $(
                #[doc = concat!("`", $name, "`.")]
                $(#[$meta])*
                $register,
            )+
        }

        impl Register {
            /// All registers, by offset.
            pub const ALL: &'static [Self] = &[$(Self::$register,)+];

            /// By discriminant and, at once, by offset.
            const TABLE: &'static [Description] = &[$(Description {
                register: Self::$register,
                name: $name,
                offset: $offset,
                width: $width,
                access: Access::$access,
                reset: Reset::$reset $(($value))?,
            },)+];
        }
    };
}

registers! {
    /// Features (§6.3.1): [`Idr0`].
    Idr0 = "SMMU_IDR0" at 0x0000, 32 bits, ReadOnly, Fixed;
    /// Sizes (§6.3.2): [`Idr1`].
    Idr1 = "SMMU_IDR1" at 0x0004, 32 bits, ReadOnly, Fixed;
    /// Place of the VATOS page (§6.3.3): [`Idr2`].
    Idr2 = "SMMU_IDR2" at 0x0008, 32 bits, ReadOnly, Fixed;
    /// More features (§6.3.4): [`Idr3`].
    Idr3 = "SMMU_IDR3" at 0x000C, 32 bits, ReadOnly, Fixed;
    /// IMPLEMENTATION DEFINED (§6.3.5).
    Idr4 = "SMMU_IDR4" at 0x0010, 32 bits, ReadOnly, Fixed;
    /// Address sizes (§6.3.6): [`Idr5`].
    Idr5 = "SMMU_IDR5" at 0x0014, 32 bits, ReadOnly, Fixed;
    /// Implementer and product (§6.3.7): [`Iidr`].
    Iidr = "SMMU_IIDR" at 0x0018, 32 bits, ReadOnly, Fixed;
    /// Architecture version (§6.3.8): [`Aidr`].
    Aidr = "SMMU_AIDR" at 0x001C, 32 bits, ReadOnly, Fixed;
    /// Enables (§6.3.9): [`Cr0`].
    Cr0 = "SMMU_CR0" at 0x0020, 32 bits, PerField, Value(0);
    /// Enables in effect (§6.3.10): [`Cr0`].
    Cr0Ack = "SMMU_CR0ACK" at 0x0024, 32 bits, ReadOnly, Value(0);
    /// Attributes of table and queue accesses (§6.3.11): [`Cr1`].
    ///
    /// Table attributes are guarded by SMMUEN, queue attributes by all queue enables.
    Cr1 = "SMMU_CR1" at 0x0028, 32 bits, PerField, Unknown;
    /// More controls (§6.3.12): [`Cr2`].
    Cr2 = "SMMU_CR2" at 0x002C, 32 bits, WhileSmmuDisabled, Unknown;
    /// Stage 2 permission interpretations (§6.3.17).
    S2Pii = "SMMU_S2PII" at 0x0030, 64 bits, ReadWrite, Unknown;
    /// Status (§6.3.13): [`Statusr`].
    Statusr = "SMMU_STATUSR" at 0x0040, 32 bits, ReadOnly, Value(0);
    /// What happens to transactions while SMMUEN is 0 (§6.3.14): [`Gbpa`].
    Gbpa = "SMMU_GBPA" at 0x0044, 32 bits, WhileNotUpdating, ImplementationDefined;
    /// IMPLEMENTATION DEFINED (§6.3.15).
    Agbpa = "SMMU_AGBPA" at 0x0048, 32 bits, ReadWrite, ImplementationDefined;
    /// Interrupt enables (§6.3.16): [`IrqCtrl`].
    IrqCtrl = "SMMU_IRQ_CTRL" at 0x0050, 32 bits, ReadWrite, Value(0);
    /// Interrupt enables in effect (§6.3.18): [`IrqCtrl`].
    IrqCtrlAck = "SMMU_IRQ_CTRLACK" at 0x0054, 32 bits, ReadOnly, Value(0);
    /// Errors, toggled by the SMMU (§6.3.19): [`Gerror`].
    Gerror = "SMMU_GERROR" at 0x0060, 32 bits, ReadOnly, Value(0);
    /// Acknowledged errors, toggled by software (§6.3.20): [`Gerror`].
    Gerrorn = "SMMU_GERRORN" at 0x0064, 32 bits, ReadWrite, Value(0);
    /// Address of the error MSI (§6.3.21): [`IrqCfg0`].
    GerrorIrqCfg0 = "SMMU_GERROR_IRQ_CFG0" at 0x0068, 64 bits, WhileGerrorIrqDisabled, Unknown;
    /// Data of the error MSI (§6.3.22): [`IrqCfg1`].
    GerrorIrqCfg1 = "SMMU_GERROR_IRQ_CFG1" at 0x0070, 32 bits, WhileGerrorIrqDisabled, Unknown;
    /// Attributes of the error MSI (§6.3.23): [`IrqCfg2`].
    GerrorIrqCfg2 = "SMMU_GERROR_IRQ_CFG2" at 0x0074, 32 bits, WhileGerrorIrqDisabled, Unknown;
    /// Stream table (§6.3.24): [`StrtabBase`].
    StrtabBase = "SMMU_STRTAB_BASE" at 0x0080, 64 bits, WhileSmmuDisabled, Unknown;
    /// Format and size of the Stream table (§6.3.25): [`StrtabBaseCfg`].
    StrtabBaseCfg = "SMMU_STRTAB_BASE_CFG" at 0x0088, 32 bits, WhileSmmuDisabled, Unknown;
    /// Command queue (§6.3.26): [`QueueBase`].
    CmdqBase = "SMMU_CMDQ_BASE" at 0x0090, 64 bits, WhileCmdqDisabled, Unknown;
    /// Where software writes the next command (§6.3.27): [`Prod`].
    CmdqProd = "SMMU_CMDQ_PROD" at 0x0098, 32 bits, ReadWrite, Unknown;
    /// Which command the SMMU reads next, and its error (§6.3.28): [`CmdqCons`].
    CmdqCons = "SMMU_CMDQ_CONS" at 0x009C, 32 bits, WhileCmdqDisabled, Unknown;
    /// Event queue (§6.3.29): [`QueueBase`].
    EventqBase = "SMMU_EVENTQ_BASE" at 0x00A0, 64 bits, WhileEventqDisabled, Unknown;
    /// Address of the Event queue's MSI (§6.3.30): [`IrqCfg0`].
    EventqIrqCfg0 = "SMMU_EVENTQ_IRQ_CFG0" at 0x00B0, 64 bits, WhileEventqIrqDisabled, Unknown;
    /// Data of the Event queue's MSI (§6.3.31): [`IrqCfg1`].
    EventqIrqCfg1 = "SMMU_EVENTQ_IRQ_CFG1" at 0x00B8, 32 bits, WhileEventqIrqDisabled, Unknown;
    /// Attributes of the Event queue's MSI (§6.3.32): [`IrqCfg2`].
    EventqIrqCfg2 = "SMMU_EVENTQ_IRQ_CFG2" at 0x00BC, 32 bits, WhileEventqIrqDisabled, Unknown;
    /// PRI queue (§6.3.33): [`QueueBase`].
    PriqBase = "SMMU_PRIQ_BASE" at 0x00C0, 64 bits, WhilePriqDisabled, Unknown;
    /// Address of the PRI queue's MSI (§6.3.34): [`IrqCfg0`].
    PriqIrqCfg0 = "SMMU_PRIQ_IRQ_CFG0" at 0x00D0, 64 bits, WhilePriqIrqDisabled, Unknown;
    /// Data of the PRI queue's MSI (§6.3.35): [`IrqCfg1`].
    PriqIrqCfg1 = "SMMU_PRIQ_IRQ_CFG1" at 0x00D8, 32 bits, WhilePriqIrqDisabled, Unknown;
    /// Attributes and condition of the PRI queue's MSI (§6.3.36): [`IrqCfg2`].
    PriqIrqCfg2 = "SMMU_PRIQ_IRQ_CFG2" at 0x00DC, 32 bits, WhilePriqIrqDisabled, Unknown;
    /// Runs an address translation operation (§6.3.37): [`GatosCtrl`].
    GatosCtrl = "SMMU_GATOS_CTRL" at 0x0100, 32 bits, WhileGatosIdle, Value(0);
    /// Stream of the operation (§6.3.38): [`GatosSid`].
    GatosSid = "SMMU_GATOS_SID" at 0x0108, 64 bits, WhileGatosIdle, Unknown;
    /// Address and kind of the operation (§6.3.39): [`GatosAddr`].
    GatosAddr = "SMMU_GATOS_ADDR" at 0x0110, 64 bits, WhileGatosIdle, Unknown;
    /// Result of the operation (§6.3.40): [`GatosPar`] or [`GatosFault`].
    GatosPar = "SMMU_GATOS_PAR" at 0x0118, 64 bits, ReadOnly, Unknown;
    /// MPAM sizes (§6.3.41): [`MpamIdr`].
    MpamIdr = "SMMU_MPAMIDR" at 0x0130, 32 bits, ReadOnly, Fixed;
    /// MPAM identifiers of the SMMU's own accesses (§6.3.42): [`Mpam`].
    Gmpam = "SMMU_GMPAM" at 0x0138, 32 bits, WhileNotUpdating, Value(0);
    /// MPAM identifiers of bypassing transactions (§6.3.43): [`Mpam`].
    Gbpmpam = "SMMU_GBPMPAM" at 0x013C, 32 bits, WhileNotUpdating, Value(0);
    /// VMID of the VATOS page (§6.3.44): [`VatosSel`].
    VatosSel = "SMMU_VATOS_SEL" at 0x0180, 32 bits, WhileVatosIdle, Unknown;
    /// Enhanced Command queues (§6.3.45): [`Idr6`].
    Idr6 = "SMMU_IDR6" at 0x0190, 32 bits, ReadOnly, Fixed;
    /// Device Permission Table (§6.3.46).
    DptBase = "SMMU_DPT_BASE" at 0x0200, 64 bits, WhileDptDisabled, Unknown;
    /// Format of the Device Permission Table (§6.3.47).
    DptBaseCfg = "SMMU_DPT_BASE_CFG" at 0x0208, 32 bits, WhileDptDisabled, Unknown;
    /// Fault of the Device Permission Table (§6.3.48).
    DptCfgFar = "SMMU_DPT_CFG_FAR" at 0x0210, 64 bits, PerField, Value(0);
    /// Peripheral ID 4 (§6.3.170).
    Pidr4 = "SMMU_PIDR4" at 0x0FD0, 32 bits, ReadOnly, Fixed;
    /// Peripheral ID 5.
    Pidr5 = "SMMU_PIDR5" at 0x0FD4, 32 bits, ReadOnly, Fixed;
    /// Peripheral ID 6.
    Pidr6 = "SMMU_PIDR6" at 0x0FD8, 32 bits, ReadOnly, Fixed;
    /// Peripheral ID 7.
    Pidr7 = "SMMU_PIDR7" at 0x0FDC, 32 bits, ReadOnly, Fixed;
    /// Peripheral ID 0.
    Pidr0 = "SMMU_PIDR0" at 0x0FE0, 32 bits, ReadOnly, Fixed;
    /// Peripheral ID 1.
    Pidr1 = "SMMU_PIDR1" at 0x0FE4, 32 bits, ReadOnly, Fixed;
    /// Peripheral ID 2.
    Pidr2 = "SMMU_PIDR2" at 0x0FE8, 32 bits, ReadOnly, Fixed;
    /// Peripheral ID 3.
    Pidr3 = "SMMU_PIDR3" at 0x0FEC, 32 bits, ReadOnly, Fixed;
    /// Component ID 0.
    Cidr0 = "SMMU_CIDR0" at 0x0FF0, 32 bits, ReadOnly, Fixed;
    /// Component ID 1.
    Cidr1 = "SMMU_CIDR1" at 0x0FF4, 32 bits, ReadOnly, Fixed;
    /// Component ID 2.
    Cidr2 = "SMMU_CIDR2" at 0x0FF8, 32 bits, ReadOnly, Fixed;
    /// Component ID 3.
    Cidr3 = "SMMU_CIDR3" at 0x0FFC, 32 bits, ReadOnly, Fixed;
    /// Where the SMMU writes the next event (§6.3.95): [`Prod`]. In page 1.
    EventqProd = "SMMU_EVENTQ_PROD" at 0x1_00A8, 32 bits, WhileEventqDisabled, Unknown;
    /// Which event software reads next (§6.3.96): [`Cons`]. In page 1.
    EventqCons = "SMMU_EVENTQ_CONS" at 0x1_00AC, 32 bits, ReadWrite, Unknown;
    /// Where the SMMU writes the next page request (§6.3.97): [`Prod`]. In page 1.
    PriqProd = "SMMU_PRIQ_PROD" at 0x1_00C8, 32 bits, WhilePriqDisabled, Unknown;
    /// Which page request software reads next (§6.3.98): [`Cons`]. In page 1.
    PriqCons = "SMMU_PRIQ_CONS" at 0x1_00CC, 32 bits, ReadWrite, Unknown;
}

impl Register {
    const fn describe(self) -> &'static Description {
        &Self::TABLE[self as usize]
    }

    /// Name in the specification.
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.describe().name
    }

    /// Offset from the start of page 0 in bytes.
    #[must_use]
    pub const fn offset(self) -> u32 {
        self.describe().offset
    }

    /// Width in bits: 32 or 64.
    #[must_use]
    pub const fn width(self) -> u32 {
        self.describe().width
    }

    /// When software may write it.
    #[must_use]
    pub const fn access(self) -> Access {
        self.describe().access
    }

    /// What it holds out of reset.
    #[must_use]
    pub const fn reset(self) -> Reset {
        self.describe().reset
    }

    /// The register that holds the 32-bit word at `offset`, which for the upper half of a 64-bit
    /// register is not the register's own offset. `None` if nothing stands there or `offset` is
    /// not a multiple of 4.
    ///
    /// The queue indexes of page 1 are not found at their page 0 offsets: whether those alias is
    /// the implementation's choice.
    #[must_use]
    pub fn lookup(offset: u32) -> Option<Self> {
        if !offset.is_multiple_of(4) {
            return None;
        }
        let after = Self::TABLE.partition_point(|entry| entry.offset <= offset);
        let entry = Self::TABLE.get(after.checked_sub(1)?)?;
        (offset < entry.offset + entry.width / 8).then_some(entry.register)
    }
}

/// [`Register::lookup`].
#[must_use]
pub fn lookup(offset: u32) -> Option<Register> {
    Register::lookup(offset)
}

impl fmt::Display for Register {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
