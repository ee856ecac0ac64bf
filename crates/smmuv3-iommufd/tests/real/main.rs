//! The same over real ioctls: `/dev/iommu` and VFIO devices of a softiommu machine, in this process. The guest programs
//! registers; a DMA engine behind two SMMUs, the guest's and the host's, does the rest.

mod engine;
mod machine;

use smmuv3::wire::{Command, Event, EventKind, Ste};
use smmuv3::{Options, Transaction};

use engine::Outcome;
use machine::{DESTINATION, ELSEWHERE, IPA, SOURCE, Vm, WITHOUT_ATS, machine, reg, tlbi_va};

const MESSAGE: &[u8] = b"through two stages";

/// An engine copies the message, and the guest finds it.
#[track_caller]
fn copies(vm: &Vm, device: usize) {
    vm.write_ram(DESTINATION.1, &[0; 64]);
    vm.write_ram(SOURCE.1, MESSAGE);
    assert_eq!(vm.copy(device, MESSAGE.len()), Outcome::Done);
    assert_eq!(vm.read_ram(DESTINATION.1, MESSAGE.len()), MESSAGE);
}

#[test]
fn a_guest_translates_unmaps_and_is_told() {
    let vm = Vm::new(&[0]);
    vm.boot();
    vm.translate(0, 0x10);
    copies(&vm, 0);
    // Unmapped and invalidated: one host call, and no stale translation.
    let calls = vm.vsmmu.statistics().invalidate_calls;
    vm.unmap(0, DESTINATION.0);
    vm.run(&[tlbi_va(0, DESTINATION.0)]);
    assert_eq!(vm.vsmmu.statistics().invalidate_calls, calls + 1);
    assert!(matches!(vm.copy(0, MESSAGE.len()), Outcome::Halted(_)));
    // The event has the guest's StreamID, and its address.
    vm.wait_for_events();
    assert_eq!(vm.vsmmu.process_events().unwrap(), 1);
    let [record] = vm.events()[..] else { panic!("not one event") };
    let event = Event::decode(&record).unwrap();
    assert_eq!((event.kind, event.sid, event.rnw), (EventKind::Translation, 0x10, false));
    assert_eq!(event.input_address, DESTINATION.0);
    // Mapped again: nothing was cached.
    vm.map(0, DESTINATION.0, DESTINATION.1);
    copies(&vm, 0);
    assert_eq!(vm.vsmmu.statistics().events_lost, 0);
    // The engine asks for no pages.
    assert!(vm.vsmmu.with_fault_file(|_| ()).is_some());
    assert_eq!(vm.vsmmu.process_page_requests().unwrap(), 0);
}

#[test]
fn registers_reach_the_device() {
    let vm = Vm::new(&[1]);
    // Out of reset: addresses pass.
    vm.vsmmu.set_stream_id(vm.id(0), Some(7)).unwrap();
    let bypasses = |vm: &Vm| {
        vm.write_ram(SOURCE.1, MESSAGE);
        vm.write_ram(DESTINATION.1, &[0; 64]);
        vm.copy_at(0, IPA, IPA + SOURCE.1, IPA + DESTINATION.1, MESSAGE.len()) == Outcome::Done
            && vm.read_ram(DESTINATION.1, MESSAGE.len()) == MESSAGE
    };
    assert!(bypasses(&vm));
    // GBPA.ABORT.
    vm.smmu.write32(reg::GBPA, 1 << 31 | 1 << 20);
    assert!(!bypasses(&vm));
    vm.smmu.write32(reg::GBPA, 1 << 31);
    assert!(bypasses(&vm));
    // Enabled, without an STE, which Linux calls V = 0.
    vm.boot();
    assert!(!bypasses(&vm));
    vm.set_ste(7, &Ste::default().with_v(true).with_config(0b100));
    assert!(bypasses(&vm));
    vm.set_ste(7, &Ste::default().with_v(true));
    assert!(!bypasses(&vm));
    vm.translate(0, 7);
    copies(&vm, 0);
    assert!(!bypasses(&vm));
    // Another number of its bus: the guest has to configure it anew.
    vm.vsmmu.set_stream_id(vm.id(0), Some(8)).unwrap();
    assert!(matches!(vm.copy(0, 1), Outcome::Halted(_)));
    vm.translate(0, 8);
    copies(&vm, 0);
    // A reset, and the next guest.
    vm.vsmmu.reset().unwrap();
    assert!(bypasses(&vm));
    vm.boot();
    vm.translate(0, 8);
    copies(&vm, 0);
    vm.vsmmu.unplug(vm.id(0)).unwrap();
    assert!(!bypasses(&vm));
    assert_eq!(vm.vsmmu.statistics().installs_failed, 0);
}

#[test]
fn emulated_and_assigned_devices_are_behind_one_smmu() {
    let vm = Vm::new(&[2, 3]);
    vm.boot();
    vm.translate(0, 0x10);
    vm.translate(1, 0x11);
    // A third, emulated, in the address space of the first.
    vm.share(0x10, 0x20);
    copies(&vm, 0);
    copies(&vm, 1);
    let mut port = vm.smmu.requester();
    let write = Transaction::write(0x20, DESTINATION.0);
    port.begin().write(&write, b"emulated").unwrap();
    assert_eq!(vm.read_ram(DESTINATION.1, 8), b"emulated");
    // One invalidation reaches both: of the first device's space, not the second's.
    vm.unmap(0, DESTINATION.0);
    vm.run(&[tlbi_va(0, DESTINATION.0)]);
    assert!(port.begin().write(&write, b"emulated").is_err());
    assert!(matches!(vm.copy(0, 1), Outcome::Halted(_)));
    copies(&vm, 1);
    vm.wait_for_events();
    vm.vsmmu.process_events().unwrap();
    let streams: Vec<u32> = vm.events().iter().map(|record| (record[0] >> 32) as u32).collect();
    assert_eq!(streams, [0x20, 0x10], "in one queue");
}

#[test]
fn two_vsmmus_of_one_guest_are_two() {
    let vms = Vm::pair([4, 5], false);
    let mut at = DESTINATION.1;
    for vm in &vms {
        vm.boot();
        vm.translate(0, 0x10);
        // The same ASID and the same address, and another page.
        vm.map(0, DESTINATION.0, at);
        vm.run(&[tlbi_va(0, DESTINATION.0)]);
        at += 0x1000;
    }
    for (vm, at) in vms.iter().zip([DESTINATION.1, DESTINATION.1 + 0x1000]) {
        vm.write_ram(DESTINATION.1, &[0; 0x2000]);
        vm.write_ram(SOURCE.1, MESSAGE);
        assert_eq!(vm.copy(0, MESSAGE.len()), Outcome::Done);
        assert_eq!(vm.read_ram(at, MESSAGE.len()), MESSAGE);
    }
    vms[0].unmap(0, DESTINATION.0);
    vms[0].run(&[tlbi_va(0, DESTINATION.0)]);
    assert!(matches!(vms[0].copy(0, 1), Outcome::Halted(_)));
    let [first, second] = vms;
    drop(first);
    assert_eq!(second.copy(0, 1), Outcome::Done);
}

#[test]
fn two_vsmmus_can_share_a_stage_2_on_one_smmu() {
    let vms = Vm::pair([10, 11], true);
    assert_eq!(vms[0].vsmmu.nest_parent(), vms[1].vsmmu.nest_parent());
    vms[0].boot();
    vms[0].translate(0, 0x10);
    copies(&vms[0], 0);
    // Behind another SMMU of the host that is not possible, and not needed.
    let vms = Vm::pair([12, ELSEWHERE], true);
    assert_ne!(vms[0].vsmmu.nest_parent(), vms[1].vsmmu.nest_parent());
    vms[1].boot();
    vms[1].translate(0, 0x10);
    copies(&vms[1], 0);
}

#[test]
fn a_command_that_the_host_refuses_is_named() {
    // The SMMU has no ATS, which the guest was promised all the same.
    let options = Options { ats: true, ..machine::options(WITHOUT_ATS) };
    let vm = Vm::with_options(WITHOUT_ATS, options);
    vm.boot();
    vm.translate(0, 0x10);
    copies(&vm, 0);
    vm.unmap(0, DESTINATION.0);
    let start = vm.smmu.read32(reg::CMDQ_PROD);
    let atc = Command::AtcInv { sid: 0x10, ssid: None, global: false, size: 52, addr: 0 };
    vm.submit(&[tlbi_va(0, DESTINATION.0), atc, tlbi_va(0, SOURCE.0), machine::SYNC]);
    assert_eq!(vm.smmu.read32(reg::CMDQ_CONS), (start + 1) | 1 << 24, "CERROR_ILL");
    // What came before is done.
    assert!(matches!(vm.copy(0, 1), Outcome::Halted(_)));
    // A guest that drops the command gets on.
    vm.replace(start + 1, machine::SYNC);
    vm.smmu.write32(reg::GERRORN, vm.smmu.read32(reg::GERROR));
    assert_eq!(vm.smmu.read32(reg::CMDQ_CONS), vm.smmu.read32(reg::CMDQ_PROD));
    assert_eq!(vm.vsmmu.statistics().commands_refused, 1);
}

#[test]
fn a_saved_guest_goes_on_with_another_device() {
    let vm = Vm::new(&[6]);
    vm.boot();
    vm.translate(0, 0x10);
    copies(&vm, 0);
    let state = vm.vsmmu.save().unwrap();
    let there = vm.migrate(7, 0x10);
    assert!(matches!(there.copy(0, 1), Outcome::Halted(_)), "not yet");
    there.vsmmu.restore(&state).unwrap();
    copies(&there, 0);
    there.run(&[tlbi_va(0, DESTINATION.0)]);
    copies(&there, 0);
}

#[test]
fn nothing_is_left_at_the_host() {
    machine();
    let vm = Vm::new(&[8]);
    vm.boot();
    vm.translate(0, 0x10);
    copies(&vm, 0);
    let (iommu, ioas) = vm.dismantle();
    // What is left is the IOAS, which nobody uses.
    iommu.destroy_iommu_object(ioas).unwrap();
}
