//! A guest's commands: what they invalidate, for whom, and how many of them were executed.

mod common;
#[path = "common/guest.rs"]
mod guest;

use std::sync::Arc;

use arm_smmu_v3::DeviceOptions;
use guest::{Atcs, Guest, Host, IPA, Space, attach};
use iommu::{Device, Error, UserArray};
use proptest::prelude::*;
use smmuv3::wire::{Command, Register, TlbiVa};
use smmuv3::{AtcInvalidate, Transaction};

const SID: u32 = 5;
const VSID: u32 = 0x1234;
const VA: u64 = 0x7000_0000;
const ASID: u16 = 3;

/// A guest whose device translates, with pages from `VA` on.
struct Vm {
    guest: Guest,
    _device: Arc<Device>,
    space: Space,
    sid: u32,
}

impl Vm {
    fn new(host: &Host, n: u32, options: DeviceOptions) -> Self {
        let sid = SID + n;
        let device = host.device(sid, options);
        let guest = Guest::new(host, &device, n.into());
        let cds = guest.ram.alloc(6);
        let mut space = Space::new(&guest.ram, ASID);
        space.map(VA..VA + 0x2_0000, IPA + 0x2_0000);
        guest.ram.write(cds, &space.cd().0);
        guest.viommu.add_device(&device, VSID.into()).unwrap();
        attach(&device, guest.nested(&device, Guest::ste(cds)).unwrap()).unwrap();
        Self { guest, _device: device, space, sid }
    }

    /// Removes a page from the guest's tables only: the SMMU goes on with what it remembers.
    fn unmap_cached(&mut self, host: &mut Host, page: u64) {
        let at = VA + (page << 12);
        assert!(host.read(self.sid, at).is_some());
        self.space.unmap(at..at + 0x1000);
        assert!(self.reaches(host, page), "the test is about what is cached");
    }

    fn reaches(&self, host: &mut Host, page: u64) -> bool {
        host.read(self.sid, VA + (page << 12)).is_some()
    }
}

fn page(page: u64) -> TlbiVa {
    TlbiVa { asid: ASID, address: VA + (page << 12), ..TlbiVa::default() }
}

#[test]
fn each_invalidation_is_the_guests_own() {
    let range = TlbiVa { tg: 1, num: 1, scale: 1, ..page(0) };
    for command in [
        Command::TlbiNsnhAll,
        Command::TlbiNhAll { vmid: 0 },
        // The guest's idea of its VMID counts for nothing.
        Command::TlbiNhAll { vmid: 1 },
        Command::TlbiNhAll { vmid: 2 },
        Command::TlbiNhAsid { vmid: 2, asid: ASID },
        Command::TlbiNhVa(page(2)),
        Command::TlbiNhVa(TlbiVa { vmid: 2, leaf: true, ..page(2) }),
        Command::TlbiNhVaa(TlbiVa { asid: 0, vmid: 1, ..page(2) }),
        Command::TlbiNhVa(range),
    ] {
        let mut host = Host::new(smmuv3::Options::everything());
        let mut vms = [0, 1].map(|n| Vm::new(&host, n, DeviceOptions::default()));
        for n in [0, 1] {
            vms.iter_mut().for_each(|vm| vm.unmap_cached(&mut host, 2));
            vms[n].guest.all(&[command]);
            let seen = [0, 1].map(|m| vms[m].reaches(&mut host, 2));
            assert_eq!((seen[n], seen[1 - n]), (false, true), "{command}");
            vms[1 - n].guest.all(&[command]);
            for vm in &mut vms {
                let at = VA + 0x2000;
                vm.space.map(at..at + 0x1000, IPA + 0x2_2000);
            }
        }
    }
}

#[test]
fn a_cd_is_read_again_when_the_guest_says_so() {
    for command in [
        Command::CfgiCd { sid: VSID, ssid: 0, leaf: true, ssec: false },
        Command::CfgiCdAll { sid: VSID, ssec: false },
    ] {
        let mut host = Host::new(smmuv3::Options::everything());
        let vm = Vm::new(&host, 0, DeviceOptions::default());
        assert!(vm.reaches(&mut host, 0));
        vm.guest.ram.write(IPA, &[0]);
        assert!(vm.reaches(&mut host, 0));
        // Its physical StreamID is none of the guest's business.
        let wrong = match command {
            Command::CfgiCd { .. } => {
                Command::CfgiCd { sid: SID, ssid: 0, leaf: true, ssec: false }
            }
            _ => Command::CfgiCdAll { sid: SID, ssec: false },
        };
        assert!(matches!(vm.guest.run(&[wrong]), (0, Err(Error::Io(_)))));
        assert!(vm.reaches(&mut host, 0));
        vm.guest.all(&[command]);
        assert!(!vm.reaches(&mut host, 0));
        vm.guest.viommu.remove_device(VSID.into());
        assert!(matches!(vm.guest.run(&[command]), (0, Err(Error::Io(_)))));
    }
}

fn bad() -> Vec<[u64; 2]> {
    let with = |command: Command, bit: u32| {
        let mut raw = command.encode();
        raw[bit as usize / 64] |= 1 << (bit % 64);
        raw
    };
    let va = |va: TlbiVa| Command::TlbiNhVa(va).encode();
    let cd = Command::CfgiCd { sid: VSID, ssid: 0, leaf: true, ssec: false };
    vec![
        Command::Sync { cs: 0, msh: 0, msi_attr: 0, msi_data: 0, msi_address: 0 }.encode(),
        Command::TlbiS12Vmall { vmid: 1 }.encode(),
        Command::TlbiS2Ipa(page(0)).encode(),
        Command::TlbiEl2All.encode(),
        Command::CfgiSte { sid: VSID, leaf: true, ssec: false }.encode(),
        Command::CfgiSteRange { sid: VSID, range: 31, ssec: false }.encode(),
        Command::PriResp { sid: VSID, ssid: None, prg_index: 0, resp: 0 }.encode(),
        Command::Resume { sid: VSID, stag: 0, action: 0, ssec: false }.encode(),
        Command::PrefetchConfig { sid: VSID, ssid: None, ssec: false }.encode(),
        [0xff, 0],
        with(cd, 10), // SSec
        with(cd, 65),
        with(Command::CfgiCdAll { sid: VSID, ssec: false }, 12),
        with(Command::TlbiNsnhAll, 32),
        with(Command::TlbiNhAll { vmid: 0 }, 48),
        with(Command::TlbiNhVaa(TlbiVa { asid: 0, ..page(0) }), 48),
        with(Command::TlbiNhVa(page(0)), 71), // TTL128
        with(Command::TlbiNhVa(page(0)), 17),
        va(TlbiVa { tg: 1, ..page(0) }), // a range of a single page
        va(TlbiVa { tg: 1, num: 1, scale: 40, ..page(0) }),
        Command::AtcInv { sid: VSID, ssid: None, global: false, size: 53, addr: 0 }.encode(),
        Command::AtcInv { sid: 7, ssid: None, global: false, size: 0, addr: 0 }.encode(),
    ]
}

#[test]
fn what_is_before_a_bad_command_was_executed_and_nothing_after() {
    let mut host = Host::new(smmuv3::Options::everything());
    let mut vm = Vm::new(&host, 0, DeviceOptions::default());
    let filler = Command::TlbiNhVa(page(31)).encode();
    let bad = bad();
    for (n, bad) in bad.iter().copied().enumerate() {
        for before in [1, 64, [0, 2, 63, 65, 130][n % 5]] {
            if !vm.reaches(&mut host, 2) {
                vm.space.map(VA + 0x2000..VA + 0x3000, IPA + 0x2_2000);
            }
            vm.unmap_cached(&mut host, 2);
            let mut commands = vec![filler; before];
            if let Some(last) = commands.last_mut() {
                *last = Command::TlbiNhVa(page(2)).encode();
            }
            commands.push(bad);
            vm.unmap_cached(&mut host, 3);
            commands.extend([Command::TlbiNhVa(page(3)).encode(); 3]);
            host.bus.writes.lock().unwrap().clear();
            let (done, result) = vm.guest.run_raw(&commands);
            assert_eq!(done as usize, before, "{bad:x?}");
            assert!(matches!(result, Err(Error::Io(_))), "{bad:x?}: {result:?}");
            assert_eq!(vm.reaches(&mut host, 2), before == 0);
            assert!(vm.reaches(&mut host, 3), "{bad:x?}");
            // One write for each CMD_SYNC.
            let writes = host.bus.writes.lock().unwrap().len();
            assert_eq!(writes, before.div_ceil(64), "{before}");
            vm.guest.all(&[Command::TlbiNsnhAll]);
            vm.space.map(VA + 0x3000..VA + 0x4000, IPA + 0x2_3000);
        }
    }
    assert_eq!(host.bus.model.read32(Register::Gerror.offset().into()), 0, "none was tried");
}

#[test]
fn an_empty_array_of_the_right_type_is_fine() {
    let host = Host::new(smmuv3::Options::everything());
    let vm = Vm::new(&host, 0, DeviceOptions::default());
    let nothing = |_: u64, _: &mut [u8]| Err(host::Fault { va: 0 });
    let run =
        |kind, len, num| vm.guest.viommu.invalidate(&UserArray::new(kind, len, num, &nothing));
    assert_eq!(run(1, 0, 0), (0, Ok(())));
    assert!(matches!(run(0, 16, 0), (0, Err(Error::Invalid(_)))));
    assert!(matches!(run(2, 16, 1), (0, Err(Error::Invalid(_)))));
    assert!(matches!(run(1, 8, 1), (0, Err(Error::Invalid(_)))));
    assert!(matches!(run(1, 16, 1), (0, Err(Error::Fault(_)))));
}

#[test]
fn memory_that_faults_ends_the_array_there() {
    let mut host = Host::new(smmuv3::Options::everything());
    let mut vm = Vm::new(&host, 0, DeviceOptions::default());
    vm.unmap_cached(&mut host, 2);
    let [low, high] = Command::TlbiNhVa(page(2)).encode();
    // Entries of 24 bytes, the last third zero; those from the third on are not there.
    let entry = [low, high, 0].map(u64::to_le_bytes).concat();
    let read = |offset: u64, buf: &mut [u8]| {
        let all = entry.repeat(2);
        let at = offset as usize;
        let from = all.get(at..at + buf.len()).ok_or(host::Fault { va: offset })?;
        buf.copy_from_slice(from);
        Ok(())
    };
    let result = vm.guest.viommu.invalidate(&UserArray::new(1, 24, 5, &read));
    assert!(matches!(result, (2, Err(Error::Fault(_)))), "{result:?}");
    assert!(!vm.reaches(&mut host, 2));
}

#[test]
fn ranges_are_for_smmus_that_have_them() {
    let host = Host::new(smmuv3::Options::mmu600());
    let vm = Vm::new(&host, 0, DeviceOptions::default());
    vm.guest.all(&[Command::TlbiNhVa(page(0))]);
    for va in [
        TlbiVa { tg: 1, num: 1, ..page(0) },
        TlbiVa { ttl: 3, ..page(0) },
        TlbiVa { num: 1, ..page(0) },
        TlbiVa { scale: 1, ..page(0) },
    ] {
        let refused = vm.guest.run(&[Command::TlbiNhVa(va)]);
        assert!(matches!(refused, (0, Err(Error::Io(_)))), "{va:?}");
    }
}

#[test]
fn ats_invalidations_reach_the_guests_device_and_no_other() {
    let atcs = Arc::new(Atcs::default());
    let mut host = Host::with(smmuv3::Options::everything(), atcs.clone());
    let mut vm = Vm::new(&host, 0, DeviceOptions { ats: true, ..DeviceOptions::default() });
    let without = Vm::new(&host, 1, DeviceOptions::default());
    let invalidate = Command::AtcInv { sid: VSID, ssid: Some(9), global: true, size: 3, addr: VA };
    atcs.asked.lock().unwrap().clear();
    vm.guest.all(&[invalidate]);
    without.guest.all(&[invalidate, invalidate]);
    let asked = std::mem::take(&mut *atcs.asked.lock().unwrap());
    let expected = AtcInvalidate {
        stream_id: SID,
        substream_id: Some(9),
        global: true,
        address: VA,
        size_log2: 3,
    };
    assert_eq!(asked, [expected]);

    *atcs.deaf.lock().unwrap() = Some(SID);
    vm.unmap_cached(&mut host, 2);
    let batch = [Command::TlbiNhVa(page(2)), invalidate];
    let (done, result) = vm.guest.run(&batch);
    assert!(matches!((done, &result), (2, Err(Error::Io(_)))), "{done} {result:?}");
    assert!(!vm.reaches(&mut host, 2));
    // It has no ATS any more, and nobody waits for it again.
    atcs.asked.lock().unwrap().clear();
    vm.guest.all(&batch);
    without.guest.all(&[Command::TlbiNsnhAll]);
    assert_eq!(*atcs.asked.lock().unwrap(), []);
}

#[test]
fn guests_invalidate_side_by_side() {
    let host = Host::new(smmuv3::Options::everything());
    let vms = [0, 1].map(|n| Vm::new(&host, n, DeviceOptions::default()));
    let hog = vec![Command::TlbiNhVa(page(31)); 20_000];
    std::thread::scope(|scope| {
        let other = scope.spawn(|| vms[1].guest.all(&hog));
        let mut rounds = 0;
        let mut port = host.bus.model.requester();
        while !other.is_finished() {
            vms[0].guest.all(&[Command::TlbiNhVa(page(1)), Command::TlbiNhVa(page(2))]);
            let at = Transaction::read(SID, VA + 0x1000);
            assert!(port.begin().translate(&at).is_ok());
            rounds += 1;
        }
        assert!(rounds > 1, "it is its turn again and again");
    });
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    /// Whatever a guest says, the SMMU is given nothing that it does not know: the queue that all share never stops.
    #[test]
    fn no_guest_stops_the_queue(
        which in 0..3usize,
        commands in prop::collection::vec(
            (prop::sample::select(&[5u64, 6, 0x10, 0x11, 0x12, 0x13, 0x30, 0x40, 0x41, 0x46][..]),
             any::<[u64; 2]>(), any::<[u64; 2]>(), any::<[u64; 2]>(), any::<bool>()),
            1..40,
        ),
    ) {
        let options = [
            smmuv3::Options { check_reserved: true, ..smmuv3::Options::everything() },
            smmuv3::Options { check_reserved: true, ..smmuv3::Options::mmu600() },
            smmuv3::Options {
                check_reserved: true, ds: false, ats: false, pri: false, priq_log2: 0, atsrecerr: false,
                ..smmuv3::Options::linux_host()
            },
        ];
        let host = Host::new(options[which].clone());
        let vm = Vm::new(&host, 0, DeviceOptions { ats: which != 2, ..DeviceOptions::default() });
        for (opcode, a, b, c, ours) in commands {
            // Few bits at a time, or most would be refused for the same reason.
            let [mut low, high] = [0, 1].map(|n| a[n] & b[n] & c[n]);
            low = low & !0xff | opcode;
            if ours {
                low = low & 0xffff_ffff | u64::from(VSID) << 32;
            }
            let (done, result) = vm.guest.run_raw(&[[low, high]]);
            prop_assert_eq!(u32::from(result.is_ok()), done);
            let gerror = host.bus.model.read32(Register::Gerror.offset().into());
            prop_assert_eq!(gerror, 0, "{:#x} {:#x}", low, high);
        }
    }
}
