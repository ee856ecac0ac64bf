//! The C library's functions, interposed.
//!
//! Each asks one question (is this descriptor, or this path, ours?) and goes on
//! to the next definition of its symbol if not.
//!
//! `open`, `ioctl`, `fcntl` and `syscall` are variadic in C, which stable Rust
//! cannot define. On x86-64 (System V) and AArch64 Linux (AAPCS64) a variadic
//! callee finds integer arguments in the registers, and then the stack slots,
//! that a callee with fixed arguments would; one that the caller did not pass
//! reads as garbage, which the real functions would also never look at.
#![allow(clippy::missing_safety_doc, reason = "each has its manual page")]
#![allow(missing_docs, reason = "each has its manual page")]

mod credentials;
mod descriptor;
mod directory;
mod exec;
mod io;
mod kvm;
mod memory;
mod message;
mod open;
mod signal;
mod stat;
mod syscall;

pub(crate) use descriptor::close_all;
