//! A VM with assigned devices at a host that is made up, from the guest's registers to the host's calls.

#[path = "../common/mod.rs"]
mod common;

mod devices;
mod failures;
mod invalidations;
mod life;
mod queues;
