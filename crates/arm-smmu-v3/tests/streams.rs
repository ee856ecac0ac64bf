//! Streams: what is attached, and what transactions see while that changes.

mod common;
#[path = "common/driven.rs"]
mod driven;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arm_smmu_v3::{Attachment, Domain, Error, Stage, Stream};
use driven::{Device, RW, SID, map, plain, start, with_page};
use smmuv3::Transaction;

#[test]
fn pasids_have_domains_of_their_own() {
    // One linear table; two levels; a linear table because there can be no other.
    let no_levels = smmuv3::Options { cd2l: false, ..smmuv3::Options::everything() };
    for (options, bits) in
        [(smmuv3::Options::everything(), 4), (smmuv3::Options::everything(), 20), (no_levels, 10)]
    {
        let (smmu, model, ram) = start(options);
        let mut device = Device::new(&model);
        let stream = Stream::new(&smmu, SID, plain(bits)).unwrap();
        let at = 0x1_0000;
        let domains: Vec<_> = (1..6).map(|n| with_page(&smmu, Stage::One, at, n << 20)).collect();
        let last = (1 << bits) - 1;
        for (pasid, n) in [(1, 0), (7, 1), (last, 2)] {
            stream.attach_pasid(pasid, &domains[n]).unwrap();
        }
        let mut seen = |transactions: &[u32]| -> Vec<Option<u64>> {
            let mut all = vec![device.read(at)];
            all.extend(transactions.iter().map(|&pasid| device.pasid(pasid, at)));
            all.into_iter().map(|address| address.map(|address| address >> 20)).collect()
        };
        assert_eq!(seen(&[1, 7, last, 2]), [None, Some(1), Some(2), Some(3), None]);
        stream.attach(Attachment::Identity).unwrap();
        assert_eq!(seen(&[1, 7, last]), [Some(0), Some(1), Some(2), Some(3)]);
        stream.attach(Attachment::Paging(domains[3].clone())).unwrap();
        assert_eq!(seen(&[1, 7, last]), [Some(4), Some(1), Some(2), Some(3)]);
        stream.attach_pasid(7, &domains[4]).unwrap();
        stream.detach_pasid(1).unwrap();
        assert_eq!(seen(&[1, 7, last]), [Some(4), None, Some(5), Some(3)]);
        stream.attach(Attachment::Blocked).unwrap();
        assert_eq!(seen(&[1, 7, last]), [None, None, Some(5), Some(3)]);

        let second = smmu.features().stage2.then(|| Domain::new(&smmu, Stage::Two, false).unwrap());
        let second = second.unwrap();
        let refused = stream.attach(Attachment::Paging(second.clone())).unwrap_err();
        assert!(matches!(refused, Error::Unsupported(_)));
        assert!(matches!(stream.attach_pasid(2, &second), Err(Error::Unsupported(_))));
        for pasid in [0, last + 1, u32::MAX] {
            let refused = stream.attach_pasid(pasid, &domains[0]);
            assert!(matches!(refused, Err(Error::Unsupported(_))));
        }
        assert_eq!(seen(&[1, 7, last]), [None, None, Some(5), Some(3)], "nothing changed");
        stream.detach_pasid(7).unwrap();
        stream.detach_pasid(last).unwrap();
        stream.attach(Attachment::Paging(second)).unwrap();
        assert_eq!(seen(&[7]), [None, None]);
        drop((stream, domains, smmu));
        assert_eq!(ram.allocations(), 0, "{:x?}", ram.in_use());
    }
}

#[test]
fn a_stream_has_one_owner_and_must_exist() {
    let (smmu, ..) = start(smmuv3::Options::minimal());
    let stream = Stream::new(&smmu, 63, plain(0)).unwrap();
    let taken = Stream::new(&smmu, 63, plain(0)).map(|_| ()).unwrap_err();
    assert_eq!(taken, Error::StreamInUse(63));
    drop(stream);
    assert!(Stream::new(&smmu, 63, plain(0)).is_ok());
    for sid in [64, u32::MAX] {
        let none = Stream::new(&smmu, sid, plain(0)).map(|_| ()).unwrap_err();
        assert_eq!(none, Error::StreamId(sid));
    }
    assert!(matches!(Stream::new(&smmu, 1, plain(1)), Err(Error::Unsupported(_))));

    let (other, ..) = start(smmuv3::Options::minimal());
    let foreign = Domain::new(&other, Stage::One, false).unwrap();
    let stream = Stream::new(&smmu, 1, plain(0)).unwrap();
    let refused = stream.attach(Attachment::Paging(foreign)).unwrap_err();
    assert!(matches!(refused, Error::Unsupported(_)));
}

#[test]
fn streams_far_apart_are_apart() {
    let (smmu, model, _) = start(smmuv3::Options::everything());
    let sids = [0, 1, 255, 256, 0x1234, 0x1ff_ffff];
    let streams: Vec<_> = sids.map(|sid| Stream::new(&smmu, sid, plain(0)).unwrap()).into();
    let mut device = Device::new(&model);
    for (n, stream) in streams.iter().enumerate() {
        let domain = with_page(&smmu, Stage::One, 0x1_0000, (n as u64 + 1) << 20);
        stream.attach(Attachment::Paging(domain)).unwrap();
    }
    for (n, sid) in sids.into_iter().enumerate() {
        let seen = device.go(&Transaction::read(sid, 0x1_0000));
        assert_eq!(seen, Some((n as u64 + 1) << 20));
    }
    let others: BTreeSet<_> = [2, 254, 257, 0x1235, 0x200_0000].into();
    for sid in others {
        assert_eq!(device.go(&Transaction::read(sid, 0x1_0000)), None);
    }
}

/// Each replacement is a change between two transactions.
#[test]
fn transactions_see_the_old_attachment_or_the_new_one() {
    for bits in [0, 4, 20] {
        // It remembers one stream at a time, so that configuration is read anew all the time.
        let options = smmuv3::Options { contexts_log2: 0, ..smmuv3::Options::everything() };
        let (smmu, model, ram) = start(options);
        let stream = Stream::new(&smmu, SID, plain(bits)).unwrap();
        let at = 0x1_0000;
        let page = |n: u64| with_page(&smmu, Stage::One, at, n << 20);
        let second = |n: u64| with_page(&smmu, Stage::Two, at, n << 20);
        let attachments = [
            (Attachment::Blocked, None),
            (Attachment::Identity, Some(at)),
            (Attachment::Paging(page(1)), Some(1 << 20)),
            (Attachment::Paging(page(2)), Some(2 << 20)),
            (Attachment::Paging(second(3)), Some(3 << 20)),
            (Attachment::Paging(second(4)), Some(4 << 20)),
        ];
        // A stage 2 cannot be beside PASIDs.
        let attachments = if bits > 0 { &attachments[..4] } else { &attachments };
        let (pasid, bystander) = (3, 5);
        let pasids = [page(8), page(9)];
        if bits > 0 {
            stream.attach_pasid(bystander, &page(7)).unwrap();
            stream.attach_pasid(pasid, &pasids[0]).unwrap();
        }
        ram.slow.store(true, Ordering::Relaxed);
        // The attachment before and after, and those of the PASID.
        let change = AtomicU64::new(0);
        let (stop, checked) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            let dma = scope.spawn(|| {
                let mut device = Device::new(&model);
                while !stop.load(Ordering::Acquire) {
                    device.go(&Transaction::read(SID + 1, at));
                    let before = change.load(Ordering::SeqCst);
                    let (seen, other, third) = match checked.load(Ordering::Relaxed) % 3 {
                        0 => (Some(device.read(at)), None, None),
                        1 => (None, Some(device.pasid(pasid, at)), None),
                        _ => (None, None, Some(device.pasid(bystander, at))),
                    };
                    if change.load(Ordering::SeqCst) != before {
                        continue;
                    }
                    let [from, to, old, new, ..] = before.to_le_bytes().map(usize::from);
                    if let Some(seen) = seen {
                        let expected = [attachments[from].1, attachments[to].1];
                        assert!(expected.contains(&seen), "{seen:x?} from {from} to {to}");
                    }
                    if bits > 0 {
                        let expected = [old as u64 + 8, new as u64 + 8].map(|n| n << 20);
                        let as_expected = |seen: u64| expected.contains(&seen);
                        assert!(other.is_none_or(|seen| seen.is_some_and(as_expected)));
                        assert!(third.is_none_or(|seen| seen == Some(7 << 20)), "{third:x?}");
                    }
                    checked.fetch_add(1, Ordering::Relaxed);
                }
            });
            let (mut from, mut old, mut round) = (0, 0, 0);
            while !dma.is_finished() && (round < 300 || checked.load(Ordering::Relaxed) < 2000) {
                let to = if round % 2 == 0 { round / 12 } else { round / 2 } % attachments.len();
                let new = round / 3 % 2;
                let state = |from: usize, to: usize, old: usize, new: usize| {
                    let bytes = [from as u8, to as u8, old as u8, new as u8, 0, 0, 0, 0];
                    change.store(u64::from_le_bytes(bytes), Ordering::SeqCst);
                };
                state(from, to, old, new);
                (0..round % 7).for_each(|_| std::thread::yield_now());
                stream.attach(attachments[to].0.clone()).unwrap();
                if bits > 0 {
                    stream.attach_pasid(pasid, &pasids[new]).unwrap();
                }
                state(to, to, new, new);
                (from, old, round) = (to, new, round + 1);
            }
            stop.store(true, Ordering::Release);
        });
    }
}

/// The Command queue fails in the middle of things: nothing that hardware may use goes away, and all is well later.
#[test]
fn a_failure_of_the_command_queue_is_survived() {
    for bits in [0, 4, 20] {
        for fails_after in 0..4 {
            let (smmu, model, ram) = start(smmuv3::Options::everything());
            let mut device = Device::new(&model);
            let stream = Stream::new(&smmu, SID, plain(bits)).unwrap();
            let at = 0x1_0000;
            let page = |n: u64| with_page(&smmu, Stage::One, at, n << 20);
            stream.attach(Attachment::Paging(page(1))).unwrap();
            if bits > 0 {
                stream.attach_pasid(3, &page(2)).unwrap();
            }
            ram.fail_reads_after(2 * fails_after);
            let result = stream.attach(Attachment::Paging(page(4)));
            let pasid = (bits > 0).then(|| stream.attach_pasid(3, &page(5)));
            let detached = stream.attach(Attachment::Blocked);
            // Whatever happened, what is reached is a page of a domain that is there.
            let reached = device.read(at);
            assert!([None, Some(1 << 20), Some(4 << 20)].contains(&reached), "{reached:x?}");
            ram.fail_reads_after(u64::MAX);

            let again = Domain::new(&smmu, Stage::One, false).unwrap();
            map(&again, at..at + 0x1_0000, 6 << 20, RW);
            stream.attach(Attachment::Paging(again)).unwrap();
            assert_eq!(device.read(at), Some(6 << 20));
            if let Some(pasid) = pasid {
                let expected = if pasid.is_ok() { 5 << 20 } else { 2 << 20 };
                assert_eq!(device.pasid(3, at), Some(expected));
            }
            if fails_after == 0 {
                assert!(matches!(result, Err(Error::Commands(_))) && detached.is_err());
            }
            drop((stream, smmu));
            assert_eq!(ram.allocations(), 0, "{:x?}", ram.in_use());
        }
    }
}

#[test]
fn streams_change_side_by_side() {
    let (smmu, model, ram) = start(smmuv3::Options::everything());
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let (smmu, model) = (&smmu, &model);
            scope.spawn(move || {
                let sid = 40 + thread as u32;
                let stream = Stream::new(smmu, sid, plain(0)).unwrap();
                let mut device = Device::new(model);
                for round in 0..100 {
                    let at = 0x1_0000;
                    let output = (thread + 1) << 32 | (round + 1) << 20;
                    let (attachment, expected) = match (round + thread) % 4 {
                        0 => (Attachment::Blocked, None),
                        1 => (Attachment::Identity, Some(at)),
                        2 => (
                            Attachment::Paging(with_page(smmu, Stage::One, at, output)),
                            Some(output),
                        ),
                        _ => (
                            Attachment::Paging(with_page(smmu, Stage::Two, at, output)),
                            Some(output),
                        ),
                    };
                    stream.attach(attachment).unwrap();
                    assert_eq!(device.go(&Transaction::read(sid, at)), expected);
                }
            });
        }
    });
    drop(smmu);
    assert_eq!(ram.allocations(), 0);
}
