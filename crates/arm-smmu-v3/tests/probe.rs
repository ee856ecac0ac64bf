//! What the driver makes of an SMMU that it finds.

mod common;

use std::time::Duration;

use arm_smmu_v3::{Error, Event, Features, Httu, Options, ProbeError, Registers, Smmu};
use common::{Bus, machine};
use smmuv3::wire::Register;
use smmuv3::wire::event::EventKind;
use smmuv3::wire::register::{Cr0, Gbpa, Idr0, Idr1, Idr5, StrtabBaseCfg};
use smmuv3::{Refused, Transaction};

fn register(bus: &Bus, register: Register) -> u32 {
    bus.read32(register.offset())
}

#[test]
fn features_are_what_the_model_was_made_with() {
    let (bus, _) = machine(smmuv3::Options::everything());
    let features = Features::probe(&bus).unwrap();
    assert_eq!((features.sid_bits, features.ssid_bits), (32, 20));
    assert_eq!((features.asid_bits, features.vmid_bits), (16, 16));
    assert_eq!((features.output_bits, features.virtual_bits), (52, 52));
    assert_eq!((features.httu, features.minor), (Httu::Dirty, 3));
    assert!(features.stage1 && features.stage2 && features.hyp && features.range_invalidation);

    let (bus, _) = machine(smmuv3::Options::minimal());
    let features = Features::probe(&bus).unwrap();
    assert_eq!((features.sid_bits, features.ssid_bits), (6, 0));
    assert_eq!((features.asid_bits, features.vmid_bits), (8, 8));
    assert_eq!((features.output_bits, features.virtual_bits), (40, 48));
    assert_eq!((features.httu, features.minor), (Httu::None, 0));
    assert!(!features.stage2 && !features.range_invalidation && !features.two_level_cds);
}

/// What becomes of the probe with another value in a register.
fn with(at: Register, value: impl FnOnce(u32) -> u32) -> ProbeError {
    let (bus, ram) = machine(smmuv3::Options::everything());
    bus.fix(at, value(register(&bus, at)));
    match Smmu::new(bus.clone(), ram.clone(), Options::default()) {
        Err(Error::Probe(error)) => {
            assert_eq!(bus.writes.lock().unwrap().len(), 0, "nothing was touched");
            assert_eq!(ram.allocations(), 0);
            error
        }
        other => panic!("{:?}", other.map(|_| ()).map_err(|error| error.to_string())),
    }
}

#[test]
fn what_the_driver_cannot_work_with_has_a_name() {
    assert_eq!(with(Register::Aidr, |_| u32::MAX), ProbeError::Version(u32::MAX));
    assert_eq!(with(Register::Aidr, |_| 0x10), ProbeError::Version(0x10));
    let idr0 = |change: fn(Idr0) -> Idr0| with(Register::Idr0, |old| change(Idr0(old)).0);
    assert_eq!(idr0(|r| r.with_ttf(0b01)), ProbeError::TableFormat);
    assert_eq!(idr0(|r| r.with_ttendian(0b11)), ProbeError::BigEndian);
    assert_eq!(idr0(|r| r.with_s1p(false).with_s2p(false)), ProbeError::NoStage);
    assert_eq!(idr0(|r| r.with_cohacc(false)), ProbeError::NotCoherent);
    assert_eq!(idr0(|r| r.with_stall_model(0b10)), ProbeError::StallOnly);
    assert_eq!(idr0(|r| r.with_stall_model(0b11)), ProbeError::Reserved("IDR0.STALL_MODEL"));
    assert_eq!(idr0(|r| r.with_st_level(2)), ProbeError::Reserved("IDR0.ST_LEVEL"));
    let idr1 = |change: fn(Idr1) -> Idr1| with(Register::Idr1, |old| change(Idr1(old)).0);
    assert_eq!(idr1(|r| r.with_sid_size(33)), ProbeError::Reserved("IDR1.SIDSIZE"));
    assert_eq!(idr1(|r| r.with_queues_preset(true)), ProbeError::Preset);
    assert_eq!(idr1(|r| r.with_cmdqs(0)), ProbeError::CommandQueue);
    let none = |r: u32| Idr5(r).with_gran4k(false).with_gran16k(false).with_gran64k(false).0;
    assert_eq!(with(Register::Idr5, none), ProbeError::NoGranule);
}

#[test]
fn after_reset_everything_is_on_and_every_stream_aborts_in_silence() {
    for options in [
        smmuv3::Options::everything(),
        smmuv3::Options::minimal(),
        smmuv3::Options::mmu600(),
        smmuv3::Options::linux_host(),
    ] {
        let sid_bits = options.sid_bits;
        let (bus, ram) = machine(options);
        let smmu = Smmu::new(bus.clone(), ram, Options::default()).unwrap();
        let cr0 = Cr0(register(&bus, Register::Cr0Ack));
        assert!(cr0.smmuen() && cr0.cmdqen() && cr0.eventqen());
        let cfg = StrtabBaseCfg(register(&bus, Register::StrtabBaseCfg));
        assert_eq!(cfg.fmt(), u8::from(sid_bits > 6), "two levels for more than 64 streams");

        let mut port = bus.model.requester();
        let aborted = port.begin().translate(&Transaction::read(3, 0x1000));
        assert_eq!(aborted.unwrap_err(), Refused::Abort);
        if sid_bits <= 6 {
            assert_eq!(smmu.events().records, []);
        }
        // What no table can reach is an event.
        let far = 1 << sid_bits.min(31);
        let aborted = port.begin().translate(&Transaction::read(far, 0x1000));
        assert_eq!(aborted.unwrap_err(), Refused::Abort);
        let expected = Event::new(EventKind::BadStreamId, far);
        assert!(smmu.events().records.contains(&expected));
        assert_eq!(smmu.events(), arm_smmu_v3::Events::default(), "events are taken once");
    }
}

#[test]
fn a_driver_takes_over_from_another() {
    let (bus, ram) = machine(smmuv3::Options::everything());
    let first = Smmu::new(bus.clone(), ram.clone(), Options::default()).unwrap();
    // It leaves an error behind, too: the queue is stopped.
    bus.write32(Register::CmdqProd.offset(), register(&bus, Register::CmdqProd) + 1);
    assert_ne!(register(&bus, Register::Gerror), register(&bus, Register::Gerrorn));
    std::mem::forget(first);

    bus.writes.lock().unwrap().clear();
    let second = Smmu::new(bus.clone(), ram, Options::default()).unwrap();
    assert_eq!(second.run(&[]), Ok(()));
    // No moment in which transactions bypass: GBPA.ABORT comes before SMMUEN goes.
    let writes = bus.writes.lock().unwrap();
    let of = |register: Register| {
        writes.iter().position(|&(offset, _)| offset == register.offset()).unwrap()
    };
    assert!(of(Register::Gbpa) < of(Register::Cr0));
    assert!(Gbpa(writes[of(Register::Gbpa)].1 as u32).abort());
    assert_eq!(writes[of(Register::Cr0)].1, 0);
    assert!(of(Register::Cr0) < of(Register::StrtabBase));
}

#[test]
fn a_driver_that_goes_leaves_nothing_behind() {
    let (bus, ram) = machine(smmuv3::Options::everything());
    drop(Smmu::new(bus.clone(), ram.clone(), Options::default()).unwrap());
    assert_eq!(ram.allocations(), 0);
    assert_eq!(register(&bus, Register::Cr0Ack), 0);
    let aborted = bus.model.requester().begin().translate(&Transaction::read(3, 0x1000));
    assert_eq!(aborted.unwrap_err(), Refused::Abort);
}

#[test]
fn hardware_that_does_not_answer_is_given_up() {
    let options = || Options { timeout: Duration::from_millis(1) };
    for (register, value, name) in [
        (Register::Gbpa, 1 << 31, "SMMU_GBPA.Update"),
        (Register::Cr0Ack, 1, "SMMU_CR0"),
        (Register::IrqCtrlAck, 7, "SMMU_IRQ_CTRL"),
    ] {
        let (bus, ram) = machine(smmuv3::Options::everything());
        bus.fix(register, value);
        let error = Smmu::new(bus, ram.clone(), options()).map(|_| ()).unwrap_err();
        assert_eq!(error, Error::NotAcknowledged(name));
        assert_eq!(ram.allocations(), 0);
    }
    let (bus, ram) = machine(smmuv3::Options::everything());
    bus.fix(Register::CmdqCons, 0);
    let error = Smmu::new(bus, ram, options()).map(|_| ()).unwrap_err();
    assert_eq!(error, Error::Commands(arm_smmu_v3::CommandsError::Timeout));
}
