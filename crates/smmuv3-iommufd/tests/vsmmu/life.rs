//! Reset, saving and restoring.

use smmuv3::wire::{Command, Event, EventKind};
use smmuv3::{Options, RestoreError};
use smmuv3_iommufd::NestParents;
use vm_memory::{Bytes, GuestAddress};

use crate::common::double::{Double, Target, info};
use crate::common::{CD, IOAS, Vm, options, reg, tlbi_asid, translating};

fn translate(cd: u64) -> Target {
    Target::Translate([translating(cd).0[0], 0])
}

#[test]
fn a_reset_leaves_the_devices_and_nothing_of_the_guest() {
    let vm = Vm::running();
    let event = Event::new(EventKind::Translation, 3);
    vm.host.event(0, 0, Some(event.encode()));
    vm.host.fault(&[2, 1, 0, 5, 1, 0, 0x5000, 0, 0, 70]);
    vm.vsmmu.reset().unwrap();
    assert_eq!(vm.host.attached(1), Target::Bypass);
    assert_eq!(vm.host.stream_ids(), [3]);
    assert_eq!(vm.host.responses(), [[70, 1]]);
    // The next guest.
    vm.boot();
    assert_eq!(vm.host.attached(1), translate(CD), "the stream table is still in memory");
    assert_eq!((vm.vsmmu.process_events().unwrap(), vm.events().len()), (0, 0));
    // And a machine whose SMMU aborts out of reset.
    let host = Double::new(1);
    let options = Options { reset_abort: true, ..options(&host) };
    let vm = Vm::with(&host, options, &NestParents::new(host.clone(), IOAS));
    vm.vsmmu.plug(host.device(1)).unwrap();
    vm.vsmmu.set_stream_id(1, Some(3)).unwrap();
    assert_eq!(host.attached(1), Target::Abort);
    vm.boot();
    vm.set_ste(3, &translating(CD));
    vm.vsmmu.reset().unwrap();
    assert_eq!(host.attached(1), Target::Abort);
}

#[test]
fn a_vm_goes_on_elsewhere() {
    let vm = Vm::running();
    vm.host.event(0, 0, Some(Event::new(EventKind::Translation, 3).encode()));
    let state = vm.vsmmu.save().unwrap();
    // The memory goes along, and the devices are there with the same StreamIDs.
    let host = Double::new(2);
    let there = Vm::with(&host, vm.smmu.options().clone(), &NestParents::new(host.clone(), IOAS));
    let mut page = vec![0; 1 << 20];
    vm.ram.read_slice(&mut page, GuestAddress(0)).unwrap();
    there.ram.write_slice(&page, GuestAddress(0)).unwrap();
    there.vsmmu.plug(host.device(2)).unwrap();
    there.vsmmu.set_stream_id(2, Some(3)).unwrap();
    assert_eq!(host.attached(2), Target::Bypass);
    there.vsmmu.restore(&state).unwrap();
    assert_eq!(host.attached(2), translate(CD));
    assert!(host.batches().contains(&vec![Command::TlbiNsnhAll]));
    assert_eq!(there.events().len(), 1, "what the host had to tell is in the guest's queue");
    there.run(&[tlbi_asid(1)]);
    // Back to an earlier state in place: the host's caches are of the time after it.
    let state = vm.vsmmu.save().unwrap();
    vm.host.take();
    vm.vsmmu.restore(&state).unwrap();
    let all = vec![Command::TlbiNsnhAll, Command::CfgiCdAll { sid: 3, ssec: false }];
    assert_eq!(vm.host.batches(), [all]);
}

#[test]
fn a_vm_does_not_go_where_it_would_see_less() {
    let vm = Vm::running();
    let state = vm.vsmmu.save().unwrap();
    let lesser = std::sync::Arc::new(Double::default());
    let mut info = info();
    info.idr[0] &= !(1 << 12);
    lesser.add(1, 0, info);
    // With the options of the guest its device cannot be plugged in; with others its state cannot be restored.
    let parents = NestParents::new(lesser.clone(), IOAS);
    let there = Vm::with(&lesser, vm.smmu.options().clone(), &parents);
    assert!(there.vsmmu.plug(lesser.device(1)).unwrap_err().to_string().contains("asid16"));
    let there = Vm::with(&lesser, options(&lesser), &parents);
    there.vsmmu.plug(lesser.device(1)).unwrap();
    let refused = there.vsmmu.restore(&state);
    assert!(matches!(refused, Err(RestoreError::Different { .. })), "{refused:?}");
    assert_eq!(there.read(reg::CR0), 0, "nothing was changed");
}
