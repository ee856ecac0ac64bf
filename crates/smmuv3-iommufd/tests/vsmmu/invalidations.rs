//! From the Command queue to `IOMMU_HWPT_INVALIDATE`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use smmuv3::wire::Command;
use smmuv3_iommufd::HwInfo;

use crate::common::double::{Double, info};
use crate::common::{CD, SYNC, Vm, atc_inv, cfgi_cd, reg, tlbi_asid, translating};

/// `CMDQ_CONS.ERR`.
const ILL: u32 = 1 << 24;
const ABT: u32 = 2 << 24;
const ATC_INV_SYNC: u32 = 3 << 24;

#[test]
fn one_call_for_each_cmd_sync() {
    let vm = Vm::running();
    let calls = |vm: &Vm| vm.vsmmu.statistics().invalidate_calls;
    for count in [1u16, 16, 60] {
        let before = calls(&vm);
        let batch: Vec<Command> = (0..count).map(tlbi_asid).collect();
        vm.run(&batch);
        assert_eq!(calls(&vm), before + 1);
        assert_eq!(vm.host.batches(), [batch]);
    }
}

#[test]
fn a_refused_command_is_where_the_guest_finds_it() {
    for bad in 0..4u16 {
        let vm = Vm::running();
        let start = vm.read(reg::CMDQ_PROD);
        let commands: Vec<Command> = (0..4).map(tlbi_asid).collect();
        vm.host.refuse(bad.into(), libc::EIO);
        if bad > 0 {
            // Linux 7.3 says of commands that they are done when it has looked at them: those before are issued again
            // by themselves, and the one in question is asked for once more.
            vm.host.accept();
            vm.host.refuse(0, libc::EIO);
        }
        vm.submit(&commands);
        vm.submit(&[SYNC]);
        assert_eq!(vm.read(reg::CMDQ_CONS), (start + u32::from(bad)) | ILL);
        assert_eq!(vm.read(reg::GERROR) & 1, 1);
        assert_eq!(vm.vsmmu.statistics().commands_refused, 1);
        let before = commands[..bad.into()].to_vec();
        let expected = if bad > 0 { vec![before.clone(), before, vec![]] } else { vec![before] };
        assert_eq!(vm.host.batches(), expected);
        vm.acknowledge();
        assert!(vm.idle());
        assert_eq!(vm.host.batches(), [commands[bad.into()..].to_vec()]);
    }
}

/// As a host may that gives up on a device's ATC, and says so at the command after it.
#[test]
fn an_error_that_goes_away_is_not_the_next_commands() {
    let vm = Vm::running();
    let all = vec![tlbi_asid(1), atc_inv(3), tlbi_asid(2), tlbi_asid(3)];
    vm.host.refuse(2, libc::EIO);
    vm.run(&all);
    assert_eq!(vm.host.batches(), [all[..2].to_vec(), all[..2].to_vec(), all[2..].to_vec()]);
}

#[test]
fn a_host_without_memory_costs_no_invalidation() {
    for (done, errno) in
        [(0, libc::ENOMEM), (2, libc::ENOMEM), (1, libc::ETIMEDOUT), (2, libc::EIO)]
    {
        let vm = Vm::running();
        let start = vm.read(reg::CMDQ_PROD);
        vm.host.refuse(done, errno);
        vm.submit(&[tlbi_asid(1), tlbi_asid(2)]);
        vm.submit(&[SYNC]);
        assert_eq!(vm.read(reg::CMDQ_CONS), start | ABT, "{done} {errno}");
        assert_eq!(vm.vsmmu.statistics().batches_failed, 1);
        vm.host.take();
        vm.acknowledge();
        assert!(vm.idle());
        assert_eq!(vm.host.batches(), [[tlbi_asid(1), tlbi_asid(2)]]);
    }
    // Nor if it fails while it makes up for a refusal.
    let vm = Vm::running();
    let start = vm.read(reg::CMDQ_PROD);
    vm.host.refuse(1, libc::EIO);
    vm.host.refuse(0, libc::ENOMEM);
    vm.submit(&[tlbi_asid(1), tlbi_asid(2)]);
    assert_eq!(vm.read(reg::CMDQ_CONS), start | ABT);
}

#[test]
fn an_endpoint_that_does_not_answer_is_the_guests_to_deal_with() {
    let vm = Vm::running();
    let start = vm.read(reg::CMDQ_PROD);
    vm.host.refuse(1, libc::ETIMEDOUT);
    vm.submit(&[tlbi_asid(1), atc_inv(3), tlbi_asid(2), SYNC]);
    assert_eq!(vm.read(reg::CMDQ_CONS), (start + 3) | ATC_INV_SYNC);
    // What is not about the endpoint is certain to be done.
    assert_eq!(vm.host.batches(), [vec![tlbi_asid(1)], vec![tlbi_asid(1), tlbi_asid(2)]]);
    vm.acknowledge();
    assert!(vm.idle());
}

#[test]
fn the_erratum_has_everything_issued_twice_but_atc_inv() {
    let host = Arc::new(Double::default());
    host.add(1, 0, HwInfo { flags: HwInfo::REPEAT_TLBI_CFGI, ..info() });
    let vm = Vm::new(&host);
    vm.vsmmu.plug(host.device(1)).unwrap();
    vm.vsmmu.set_stream_id(1, Some(3)).unwrap();
    vm.boot();
    vm.set_ste(3, &translating(CD));
    host.take();
    let all = vec![tlbi_asid(1), cfgi_cd(3), atc_inv(3), tlbi_asid(2)];
    vm.run(&all);
    assert_eq!(host.batches(), [all, vec![tlbi_asid(1), cfgi_cd(3), tlbi_asid(2)]]);
    vm.run(&[atc_inv(3)]);
    assert_eq!(host.batches(), [[atc_inv(3)]]);
    // If the second time fails, it is as if none had succeeded.
    let start = vm.read(reg::CMDQ_PROD);
    host.fail_in(Some(1));
    vm.submit(&[tlbi_asid(1)]);
    assert_eq!(host.batches(), [[tlbi_asid(1)]]);
    assert_eq!(vm.read(reg::CMDQ_CONS), start | ABT);
}

#[test]
fn two_devices_have_their_own_configuration_caches() {
    let host = Double::new(2);
    let vm = Vm::new(&host);
    for (device, sid) in [(1, 3), (2, 4)] {
        vm.vsmmu.plug(host.device(device)).unwrap();
        vm.vsmmu.set_stream_id(device, Some(sid)).unwrap();
    }
    vm.boot();
    vm.set_ste(3, &translating(CD));
    vm.set_ste(4, &translating(CD + 0x1000));
    host.take();
    vm.run(&[cfgi_cd(4), cfgi_cd(5), atc_inv(3)]);
    assert_eq!(host.batches(), [[cfgi_cd(4), atc_inv(3)]]);
    vm.vsmmu.unplug(2).unwrap();
    host.take();
    vm.run(&[cfgi_cd(4), cfgi_cd(3), atc_inv(4)]);
    assert_eq!(host.batches(), [[cfgi_cd(3)]]);
}

/// A processor that invalidates without end, and a device that is renumbered and unplugged meanwhile.
#[test]
fn no_stream_id_is_used_at_the_host_after_its_device_went() {
    let vm = Vm::running();
    let running = AtomicBool::new(true);
    std::thread::scope(|scope| {
        let (vm, running) = (&vm, &running);
        scope.spawn(move || {
            for n in 0..300 {
                let sid = if n % 3 == 0 { None } else { Some(3 + n % 2) };
                vm.vsmmu.set_stream_id(1, sid).unwrap();
                if n % 10 == 0 {
                    vm.vsmmu.unplug(1).unwrap();
                    vm.vsmmu.plug(vm.host.device(1)).unwrap();
                }
            }
            running.store(false, Ordering::Release);
        });
        while running.load(Ordering::Acquire) {
            vm.submit(&[cfgi_cd(3), tlbi_asid(1), cfgi_cd(4), atc_inv(3), atc_inv(4), SYNC]);
            while !vm.idle() {
                assert_eq!(vm.read(reg::GERROR), 0);
                std::thread::yield_now();
            }
        }
    });
    assert_eq!(vm.host.violations(), Vec::<String>::new());
    assert_eq!(vm.read(reg::GERROR), 0);
}
