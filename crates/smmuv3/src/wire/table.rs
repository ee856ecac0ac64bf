//! First-level descriptors of the Stream table (§5.1) and of CD tables (§5.3).

use super::field::fields;

fields! {
    /// A level 1 Stream table descriptor (§5.1).
    pub struct L1Std(pub u64) {
        /// The level 2 table holds `2^(span - 1)` STEs; 0 and values above 11 make it invalid.
        span, with_span: u8 = "Span" [4:0] { 0 => "invalid", 12..=31 => "reserved, invalid" };
        l2_ptr, with_l2_ptr: address = "L2Ptr" [55:6];
    }
}

fields! {
    /// A level 1 Context Descriptor (§5.3).
    pub struct L1Cd(pub u64) {
        v, with_v: bool = "V" [0] { 0 => "invalid" };
        l2_ptr, with_l2_ptr: address = "L2Ptr" [55:12];
    }
}
