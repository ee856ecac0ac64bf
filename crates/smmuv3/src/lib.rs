//! A register-accurate model of the Arm SMMUv3 (Arm IHI 0070).
#![forbid(unsafe_code)]

pub mod wire;
