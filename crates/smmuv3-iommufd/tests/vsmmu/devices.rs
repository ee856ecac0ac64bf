//! Devices come, get StreamIDs, and go.

use std::sync::Arc;

use smmuv3::wire::{Command, Ste};
use smmuv3::{Refused, Transaction};
use smmuv3_iommufd::{Host, Incompatible, NestParents, PlugError};

use crate::common::double::{Call, Double, Target, info};
use crate::common::{CD, ENABLED, IOAS, QUEUES, Vm, options, reg, translating};

fn words(ste: &Ste) -> [u64; 2] {
    [ste.0[0], ste.0[1]]
}

#[test]
fn a_device_is_attached_from_the_beginning_to_the_end() {
    let host = Double::new(1);
    let vm = Vm::new(&host);
    assert_eq!(host.take(), [], "nothing before the first device");
    vm.vsmmu.plug(host.device(1)).unwrap();
    let calls = host.take();
    assert_eq!(calls[..2], [Call::Parent(IOAS), Call::Viommu(1)]);
    assert_eq!(calls[2..4], [Call::Nested([0b0001, 0]), Call::Nested([0b1001, 0])]);
    assert_eq!(calls.last(), Some(&Call::Attach(1, Target::Abort)));
    assert_eq!(vm.vsmmu.nest_parent(), Some(1));
    // A StreamID: first the vDEVICE, then what GBPA says.
    vm.vsmmu.set_stream_id(1, Some(3)).unwrap();
    assert_eq!(host.take(), [Call::Vdevice(1, 3), Call::Attach(1, Target::Bypass)]);
    vm.boot();
    assert_eq!(host.attached(1), Target::Abort, "no STE");
    host.take();
    let ste = translating(CD).with_s1_dss(0b01).with_s1_cd_max(4).with_eats(1);
    vm.set_ste(3, &ste);
    let target = Target::Translate(words(&ste));
    assert_eq!(host.take(), [Call::Nested(words(&ste)), Call::Attach(1, target)]);
    // Another one: attached before the old one goes.
    let other = translating(CD + 0x1000);
    vm.set_ste(3, &other);
    let target = Target::Translate(words(&other));
    let replaced = [Call::Nested(words(&other)), Call::Attach(1, target), Call::Destroy("nested")];
    assert_eq!(host.take(), replaced);
    // The guest disables its SMMU: the vDEVICE stays.
    vm.write(reg::GBPA, 1 << 31 | 1 << 20);
    vm.write(reg::CR0, QUEUES);
    assert_eq!(host.take(), [Call::Attach(1, Target::Abort), Call::Destroy("nested")]);
    vm.write(reg::CR0, ENABLED);
    assert_eq!(host.take(), [Call::Nested(words(&other)), Call::Attach(1, target)]);
    vm.vsmmu.unplug(1).unwrap();
    assert_eq!(
        host.take(),
        [
            Call::Attach(1, Target::Abort),
            Call::Destroy("nested"),
            Call::Destroy("vdevice"),
            Call::Detach(1)
        ]
    );
    assert!(matches!(vm.vsmmu.unplug(1), Err(PlugError::Absent(1))));
    drop(vm);
    assert_eq!((host.objects(), host.violations()), (vec![], vec![]));
}

#[test]
fn a_device_that_is_renumbered_aborts_in_between() {
    let vm = Vm::running();
    let ste = translating(CD + 0x1000);
    vm.set_ste(9, &ste);
    vm.host.take();
    vm.vsmmu.set_stream_id(1, Some(9)).unwrap();
    let calls = vm.host.take();
    assert_eq!(
        calls,
        [
            Call::Attach(1, Target::Abort),
            Call::Destroy("nested"),
            Call::Destroy("vdevice"),
            Call::Vdevice(1, 9),
            Call::Nested(words(&ste)),
            Call::Attach(1, Target::Translate(words(&ste))),
        ]
    );
    // What is said of the old number does not concern it.
    vm.set_ste(3, &translating(CD));
    vm.run(&[Command::CfgiCd { sid: 3, ssid: 0, leaf: true, ssec: false }]);
    assert_eq!(vm.host.take(), []);
    vm.vsmmu.set_stream_id(1, None).unwrap();
    assert_eq!((vm.host.attached(1), vm.host.stream_ids()), (Target::Abort, vec![]));
    vm.vsmmu.set_stream_id(1, Some(3)).unwrap();
    assert_eq!(vm.host.attached(1), Target::Translate(words(&translating(CD))));
    assert_eq!(vm.host.violations(), Vec::<String>::new());
}

#[test]
fn stream_ids_are_of_one_device_each() {
    let host = Double::new(2);
    let vm = Vm::new(&host);
    vm.vsmmu.plug(host.device(1)).unwrap();
    assert!(matches!(vm.vsmmu.plug(host.device(1)), Err(PlugError::Plugged(1))));
    assert!(matches!(vm.vsmmu.set_stream_id(2, Some(1)), Err(PlugError::Absent(2))));
    vm.vsmmu.plug(host.device(2)).unwrap();
    vm.vsmmu.set_stream_id(1, Some(5)).unwrap();
    vm.vsmmu.set_stream_id(1, Some(5)).unwrap();
    assert!(matches!(vm.vsmmu.set_stream_id(2, Some(5)), Err(PlugError::InUse(5))));
    // Two devices that change places.
    vm.vsmmu.set_stream_id(2, Some(6)).unwrap();
    vm.vsmmu.set_stream_id(1, None).unwrap();
    vm.vsmmu.set_stream_id(2, Some(5)).unwrap();
    vm.vsmmu.set_stream_id(1, Some(6)).unwrap();
    assert_eq!(host.stream_ids().len(), 2);
    assert!(vm.vsmmu.plug(host.device(3)).is_err(), "no such device");
    // The last one goes, the first one stays: so does what they share.
    vm.vsmmu.unplug(2).unwrap();
    vm.boot();
    assert_eq!(host.attached(1), Target::Abort);
    drop(vm);
    assert_eq!((host.objects(), host.violations()), (vec![], vec![]));
}

#[test]
fn a_device_that_comes_late_is_held_to_the_promise() {
    let host = Double::new(1);
    let promised = options(&host);
    let mut lesser = info();
    lesser.idr[1] = 8 << 6 | 32;
    host.add(2, 0, lesser);
    host.add(3, 0, info());
    let vm = Vm::with(&host, promised, &NestParents::new(host.clone(), IOAS));
    vm.vsmmu.plug(host.device(1)).unwrap();
    vm.vsmmu.plug(host.device(3)).unwrap();
    let refused = vm.vsmmu.plug(host.device(2)).unwrap_err();
    let promised = Incompatible::Promised("ssid_bits");
    assert!(matches!(refused, PlugError::Incompatible(found) if found == promised));
    assert_eq!(host.attached(2), Target::Nothing);
}

#[test]
fn vsmmus_share_a_stage_2_if_they_may_and_the_hardware_lets_them() {
    let host = Double::new(1);
    // Behind another SMMU of the same kind, and one of another kind.
    host.add(2, 1, info());
    host.add(3, 10, info());
    let parents = NestParents::shared(host.clone(), IOAS);
    let vms: Vec<Vm> = (1..=3)
        .map(|device| {
            let vm = Vm::with(&host, options(&host), &parents);
            vm.vsmmu.plug(host.device(device)).unwrap();
            vm
        })
        .collect();
    let used: Vec<_> = vms.iter().map(|vm| vm.vsmmu.nest_parent().unwrap()).collect();
    assert_eq!(used[0], used[1]);
    assert_ne!(used[0], used[2]);
    assert_eq!(parents.ids(), [used[0], used[2]]);
    // A device behind another SMMU needs a vSMMU of its own.
    let error = vms[0].vsmmu.plug(host.device(3)).unwrap_err();
    assert!(matches!(error, PlugError::Host(error) if error.raw_os_error() == Some(libc::EINVAL)));
    // The page table goes with the last that uses it.
    let mut vms = vms.into_iter();
    drop(vms.next());
    assert_eq!(parents.ids(), [used[0], used[2]]);
    drop(vms);
    assert_eq!((host.objects(), host.violations()), (vec![], vec![]));
    // One that the VMM brings is used and not destroyed.
    let given = host.nest_parent(1, IOAS).unwrap();
    parents.adopt(given);
    let vm = Vm::with(&host, options(&host), &parents);
    vm.vsmmu.plug(host.device(1)).unwrap();
    assert_eq!(vm.vsmmu.nest_parent(), Some(given));
    drop(vm);
    // Unless told, they do not: ASIDs are of one vSMMU each.
    let parents = NestParents::new(host.clone(), IOAS);
    let vms = [1, 2].map(|device| {
        let vm = Vm::with(&host, options(&host), &parents);
        vm.vsmmu.plug(host.device(device)).unwrap();
        vm
    });
    assert_ne!(vms[0].vsmmu.nest_parent(), vms[1].vsmmu.nest_parent());
    drop(vms);
    assert_eq!(host.objects().len(), 1);
    assert_eq!(host.violations(), Vec::<String>::new());
}

#[test]
fn a_guest_that_was_promised_no_stalls_gets_none() {
    // STALL_MODEL 0b00: the hardware would stall for a CD that says so.
    let vm = Vm::running();
    vm.set_ste(3, &translating(CD + 0x1000));
    let (mut expected, stalld) = (words(&translating(CD + 0x1000)), 1 << 27);
    assert_eq!(vm.host.attached(1), Target::Translate(expected));
    let host = Arc::new(Double::default());
    let mut stalls = info();
    stalls.idr[0] &= !(0b11 << 24);
    host.add(1, 0, stalls);
    let vm = Vm::new(&host);
    vm.vsmmu.plug(host.device(1)).unwrap();
    vm.vsmmu.set_stream_id(1, Some(3)).unwrap();
    vm.boot();
    vm.set_ste(3, &translating(CD + 0x1000));
    expected[1] |= stalld;
    assert_eq!(host.attached(1), Target::Translate(expected));
}

#[test]
fn a_device_whose_page_requests_the_host_does_not_take_goes_without() {
    let host = Double::new(2);
    host.make_virtual_function(1);
    let vm = Vm::new(&host);
    vm.vsmmu.plug(host.device(1)).unwrap();
    vm.vsmmu.set_stream_id(1, Some(3)).unwrap();
    vm.boot();
    for cd in [CD, CD + 0x1000] {
        vm.set_ste(3, &translating(cd));
        assert_eq!(host.attached(1), Target::Translate(words(&translating(cd))));
    }
    assert_eq!(vm.vsmmu.statistics().installs_failed, 0);
    drop(vm);
    assert_eq!((host.objects(), host.violations()), (vec![], vec![]));
}

#[test]
fn emulated_devices_are_translated_here_beside_the_assigned_ones() {
    let vm = Vm::running();
    let mut port = vm.requester();
    // Stream 4 is emulated.
    vm.set_ste(4, &Ste::default().with_v(true).with_config(0b100));
    let read = |sid, address| Transaction::read(sid, address);
    assert_eq!(port.begin().translate(&read(4, 0x5000)).unwrap().address, 0x5000);
    assert_eq!(port.begin().translate(&read(5, 0x5000)).unwrap_err(), Refused::Abort);
    assert_eq!(vm.host.take(), [], "none of the host's business");
    assert_eq!(vm.host.attached(1), Target::Translate(words(&translating(CD))));
}
