//! The host fails at any call.

use smmuv3::wire::{Command, Ste};

use crate::common::double::{Double, Target};
use crate::common::{CD, ENABLED, QUEUES, Vm, cfgi_cd, reg, tlbi_asid, translating};

/// What happens to a device in its life.
fn scenario(vm: &Vm) {
    let stores =
        |sid: u32, ste: &Ste| vm.store(crate::common::STRTAB + 64 * u64::from(sid), &ste.0);
    let run = |commands: &[Command]| {
        vm.submit(commands);
        vm.submit(&[crate::common::SYNC]);
        // A guest that acknowledges errors gets on.
        while !vm.idle() {
            vm.acknowledge();
        }
    };
    let cfgi = |sid| Command::CfgiSte { sid, leaf: true, ssec: false };
    let _ = vm.vsmmu.plug(vm.host.device(1));
    let _ = vm.vsmmu.plug(vm.host.device(1));
    let _ = vm.vsmmu.set_stream_id(1, Some(3));
    vm.write(reg::CR0, QUEUES);
    vm.write(reg::CR0, ENABLED);
    assert_eq!(vm.read(reg::CR0ACK), ENABLED);
    stores(3, &translating(CD));
    run(&[cfgi(3)]);
    run(&[tlbi_asid(1), cfgi_cd(3)]);
    let wanted = Target::Translate([translating(CD).0[0], 0]);
    assert!(
        matches!(vm.host.attached(1), Target::Abort | Target::Nothing)
            || vm.host.attached(1) == wanted
    );
    stores(3, &translating(CD + 0x1000));
    run(&[cfgi(3)]);
    assert_ne!(vm.host.attached(1), wanted, "the old configuration is not in force any more");
    assert_ne!(vm.host.attached(1), Target::Bypass);
    let _ = vm.vsmmu.set_stream_id(1, Some(4));
    let _ = vm.vsmmu.set_stream_id(1, Some(4));
    let _ = vm.vsmmu.process_events();
    assert!(!matches!(vm.host.attached(1), Target::Bypass | Target::Translate(_)), "no STE");
    stores(4, &Ste::default().with_v(true).with_config(0b100));
    run(&[cfgi(4)]);
    assert!(!matches!(vm.host.attached(1), Target::Translate(_)));
    let _ = vm.vsmmu.unplug(1);
    assert_eq!(vm.host.attached(1), Target::Nothing);
}

#[test]
fn whatever_fails_the_device_is_confined_and_nothing_is_left() {
    let mut swept = 0;
    loop {
        let host = Double::new(1);
        let vm = Vm::new(&host);
        vm.boot();
        vm.write(reg::CR0, 0);
        host.fail_in(Some(swept));
        scenario(&vm);
        let finished = !host.fail_in(None);
        // And afterwards everything works.
        vm.vsmmu.plug(host.device(1)).unwrap();
        vm.vsmmu.set_stream_id(1, Some(3)).unwrap();
        assert_eq!(host.attached(1), Target::Translate([translating(CD + 0x1000).0[0], 0]));
        drop(vm);
        assert_eq!((host.objects(), host.violations()), (vec![], vec![]), "call {swept}");
        if finished {
            break;
        }
        swept += 1;
    }
    assert!(swept > 20, "the scenario makes {swept} calls");
}

#[test]
fn a_stream_that_could_not_be_configured_is_configured_at_the_next_occasion() {
    let vm = Vm::running();
    vm.host.fail_in(Some(0));
    vm.set_ste(3, &translating(CD + 0x1000));
    assert_eq!(vm.host.attached(1), Target::Abort);
    assert_eq!(vm.vsmmu.statistics().installs_failed, 1);
    vm.run(&[Command::CfgiSteRange { sid: 0, range: 31, ssec: false }]);
    assert_eq!(vm.host.attached(1), Target::Translate([translating(CD + 0x1000).0[0], 0]));
}
