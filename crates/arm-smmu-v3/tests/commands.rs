//! The Command queue: order, batches, a full queue, errors.

mod common;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arm_smmu_v3::{Command, CommandsError, Options, Registers, Smmu};
use common::{Bus, Ram, machine_with};
use smmuv3::wire::Register;
use smmuv3::{AtcCompletion, AtcInvalidate, Devices};

/// Devices that note the addresses they are told to invalidate.
#[derive(Default)]
struct Ats {
    seen: Mutex<Vec<u64>>,
    silent: AtomicBool,
    pending: AtomicBool,
    last_tag: AtomicU64,
}

impl Ats {
    fn take(&self) -> Vec<u64> {
        std::mem::take(&mut self.seen.lock().unwrap())
    }
}

impl Devices for Ats {
    fn atc_invalidate(&self, tag: u64, request: AtcInvalidate) -> AtcCompletion {
        self.seen.lock().unwrap().push(request.address >> 12);
        self.last_tag.store(tag, Ordering::Release);
        if self.silent.load(Ordering::Acquire) {
            AtcCompletion::Timeout
        } else if self.pending.load(Ordering::Acquire) {
            AtcCompletion::Pending
        } else {
            AtcCompletion::Done
        }
    }
}

type Driver = Arc<Smmu<Bus, Arc<Ram>>>;

fn started(cmdq_log2: u8, timeout: Duration) -> (Driver, Bus, Arc<Ram>, Arc<Ats>) {
    let ats = Arc::<Ats>::default();
    let options = smmuv3::Options { cmdq_log2, ..smmuv3::Options::everything() };
    let (bus, ram) = machine_with(options, ats.clone());
    let smmu = Smmu::new(bus.clone(), ram.clone(), Options { timeout }).unwrap();
    (smmu, bus, ram, ats)
}

const LONG: Duration = Duration::from_mins(10);
const SHORT: Duration = Duration::from_millis(1);

/// A command that can be seen to be executed.
fn mark(page: u64) -> Command {
    Command::AtcInv { sid: 1, ssid: None, global: false, size: 0, addr: page << 12 }
}

/// Secure, and so illegal in the Non-secure queue.
const ILLEGAL: Command = Command::TlbiSnhAll;

#[test]
fn commands_are_executed_in_order_whatever_the_size_of_the_queue() {
    for log2 in [1, 2, 3, 6, 10] {
        let (smmu, _, _, ats) = started(log2, LONG);
        let marks: Vec<_> = (0..1000).map(mark).collect();
        for count in [0, 1, 2, 3, 63, 64, 65, 1000] {
            smmu.run(&marks[..count]).unwrap();
            assert_eq!(ats.take(), (0..count as u64).collect::<Vec<_>>());
        }
    }
}

#[test]
fn a_batch_has_one_sync() {
    let (smmu, bus, ..) = started(8, LONG);
    let prod = || bus.read32(Register::CmdqProd.offset());
    let before = prod();
    smmu.run(&(0..64).map(mark).collect::<Vec<_>>()).unwrap();
    assert_eq!(prod() - before, 65);
}

#[test]
fn an_illegal_command_is_named_and_nothing_after_it_happens() {
    for log2 in [2, 4, 10] {
        let (smmu, _, _, ats) = started(log2, LONG);
        for bad in [0, 1, 2, 5, 63, 64, 99] {
            let mut commands: Vec<_> = (0..100).map(mark).collect();
            commands[bad] = ILLEGAL;
            let error = smmu.run(&commands).unwrap_err();
            assert_eq!(error, CommandsError::Illegal { index: bad, command: ILLEGAL });
            assert_eq!(ats.take(), (0..bad as u64).collect::<Vec<_>>());
            // The rest can be had again.
            smmu.run(&commands[bad + 1..]).unwrap();
            assert_eq!(ats.take(), (bad as u64 + 1..100).collect::<Vec<_>>());
        }
    }
}

#[test]
fn a_command_that_cannot_be_read_is_read_again() {
    let (smmu, _, ram, ats) = started(4, LONG);
    ram.failing_reads.store(3, Ordering::Release);
    smmu.run(&[mark(1), mark(2)]).unwrap();
    assert_eq!(ats.take(), [1, 2]);

    ram.failing_reads.store(u32::MAX, Ordering::Release);
    assert_eq!(smmu.run(&[mark(3)]), Err(CommandsError::Unreadable));
    assert_eq!(smmu.run(&[mark(4)]), Err(CommandsError::Unreadable));
    ram.failing_reads.store(0, Ordering::Release);
    smmu.run(&[mark(5)]).unwrap();
    assert_eq!(ats.take(), [3, 4, 5], "in order, late as some are");
}

#[test]
fn a_device_that_does_not_answer_fails_the_batch_it_was_asked_in() {
    let (smmu, _, _, ats) = started(4, LONG);
    ats.silent.store(true, Ordering::Release);
    let two = [mark(1), mark(2)];
    assert_eq!(smmu.run(&two), Err(CommandsError::AtcTimeout { executed: 2 }));
    assert_eq!(smmu.run(&[]), Ok(()), "nobody else's");
    ats.silent.store(false, Ordering::Release);
    assert_eq!(smmu.run(&two), Ok(()));
    assert_eq!(ats.take(), [1, 2, 1, 2]);
}

#[test]
fn a_queue_that_does_not_move_is_given_up_and_goes_on_later() {
    let (smmu, bus, _, ats) = started(3, SHORT);
    ats.pending.store(true, Ordering::Release);
    assert_eq!(smmu.run(&[mark(1)]), Err(CommandsError::Timeout));
    // Only so many find room behind it.
    for _ in 0..10 {
        assert_eq!(smmu.run(&[Command::TlbiNsnhAll]), Err(CommandsError::Timeout));
    }
    ats.pending.store(false, Ordering::Release);
    bus.model.complete_atc_invalidate(ats.last_tag.load(Ordering::Acquire), true);
    assert_eq!(smmu.run(&[mark(2)]), Ok(()));
    assert_eq!(ats.take(), [1, 2]);
}

#[test]
fn threads_share_the_queue_and_each_gets_its_own_errors() {
    for log2 in [1, 3, 8] {
        let (smmu, _, _, ats) = started(log2, LONG);
        std::thread::scope(|scope| {
            for thread in 0..4u64 {
                let smmu = &smmu;
                scope.spawn(move || {
                    for round in 0..50u64 {
                        let first = (thread << 32) + (round << 16);
                        let mut commands: Vec<_> = (first..first + 10).map(mark).collect();
                        let bad = (thread % 2 == 1).then_some(round as usize % 10);
                        if let Some(bad) = bad {
                            commands[bad] = ILLEGAL;
                        }
                        let expected = bad.map_or(Ok(()), |index| {
                            Err(CommandsError::Illegal { index, command: ILLEGAL })
                        });
                        assert_eq!(smmu.run(&commands), expected);
                    }
                });
            }
        });
        let seen = ats.take();
        for thread in 0..4u64 {
            let own: Vec<_> = seen.iter().filter(|&&page| page >> 32 == thread).collect();
            assert!(own.is_sorted(), "each thread's in order");
            let each = |round: u64| if thread % 2 == 1 { round % 10 } else { 10 };
            assert_eq!(own.len() as u64, (0..50).map(each).sum::<u64>());
        }
    }
}
