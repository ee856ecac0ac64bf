//! Assigned streams: what reaches the one who translates for them, when, and what software sees of it.

#[path = "../common/mod.rs"]
mod common;

mod commands;
mod events;
mod host;
mod life;
mod random;
mod streams;

use std::sync::Arc;

use smmuv3::{Options, StreamConfig};

use common::Machine;
use common::raw::Words;
use common::raw::ste::{self, Ste};
use host::Host;

/// The stream that is assigned in most tests.
const ASSIGNED: u32 = 3;
/// And one that is not.
const EMULATED: u32 = 4;

/// What a guest of an accelerated SMMU is shown: one stage.
fn options() -> Options {
    Options {
        stage2: false,
        vmid16: false,
        xnx: false,
        fwb: false,
        ptwnnc: false,
        hyp: false,
        ..Options::everything()
    }
}

/// A machine with an accelerator and nothing assigned, after its driver has started.
fn machine() -> (Machine, Arc<Host>) {
    machine_with(options())
}

fn machine_with(options: Options) -> (Machine, Arc<Host>) {
    let machine = Machine::booted(options);
    let host = Arc::new(Host::default());
    machine.smmu.accelerate(host.clone()).unwrap();
    (machine, host)
}

/// With [`ASSIGNED`] assigned and translated.
fn translating() -> (Machine, Arc<Host>) {
    let (mut m, host) = machine();
    m.stage1(ASSIGNED, 1);
    m.smmu.assign(ASSIGNED).unwrap();
    host.take();
    (m, host)
}

/// What becomes of an STE of stage 1 that uses allowed fields only, and SHCFG as all do.
fn translate(ste: Ste) -> StreamConfig {
    let ste = ste.with(ste::SH_CFG, 0);
    StreamConfig::Translate { ste: [ste.0[0], ste.0[1]] }
}

fn stage1_ste(cd: u64) -> Ste {
    ste::new(ste::STAGE1).with_address(ste::S1_CONTEXT_PTR, cd)
}
