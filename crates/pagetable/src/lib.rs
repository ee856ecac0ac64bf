//! VMSAv8-64 translation tables (DDI 0487, chapter D8), stage 1 and stage 2.
#![forbid(unsafe_code)]
