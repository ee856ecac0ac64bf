//! The map as its users see it.

use iova_map::{Entry, InsertError, IovaMap};

#[test]
fn one_range_may_cover_everything() {
    let mut map = IovaMap::new();
    map.insert(0, u64::MAX, 'a').unwrap();
    assert_eq!(map.get(u64::MAX).map(|entry| *entry.value), Some('a'));
    assert_eq!(map.gaps(0, u64::MAX).next(), None);
    assert_eq!(map.find_gap(1, 1, 0, 0, u64::MAX), None);
    let error = map.insert(5, 5, 'b').unwrap_err();
    assert_eq!(error.to_string(), "overlaps the range 0x0..=0xffffffffffffffff");
    assert_eq!(error.into_value(), 'b');
    assert_eq!(map.remove(1), None);
    assert_eq!(map.remove(0).map(|entry| entry.last), Some(u64::MAX));
    assert_eq!(map.find_gap(u64::MAX, 1, 0, 0, u64::MAX), Some(0));
}

#[test]
fn the_top_of_the_address_space_is_usable() {
    let mut map = IovaMap::new();
    map.insert(0, u64::MAX - 0x1000, ()).unwrap();
    assert_eq!(map.find_gap(0x1000, 0x1000, 0, 0, u64::MAX), Some(u64::MAX - 0xfff));
    assert_eq!(map.find_gap(0x1001, 1, 0, 0, u64::MAX), None);
    map.insert(u64::MAX - 0xfff, u64::MAX, ()).unwrap();
    assert_eq!(map.gaps(0, u64::MAX).count(), 0);
    assert_eq!(map.iter().count(), 2);
}

#[test]
fn requests_without_sense_find_nothing() {
    let mut map = IovaMap::<u8>::new();
    assert_eq!(map.find_gap(0, 1, 0, 0, u64::MAX), None);
    assert_eq!(map.find_gap(1, 0, 0, 0, u64::MAX), None);
    assert_eq!(map.find_gap(1, 3, 0, 0, u64::MAX), None);
    assert_eq!(map.find_gap(1, 4, 4, 0, u64::MAX), None);
    assert_eq!(map.find_gap(1, 1, 0, 2, 1), None);
    assert_eq!(map.find_gap(3, 1, 0, 1, 2), None);
    assert!(matches!(map.insert(2, 1, 7), Err(InsertError::Backwards { value: 7 })));
    assert!(!map.overlaps(2, 1));
    assert_eq!(map.gaps(2, 1).next(), None);
}

#[test]
fn holes_that_were_taken_are_not_offered_again() {
    let mut map = IovaMap::new();
    let mut expected = 0x1000;
    for _ in 0..10_000 {
        let at = map.find_gap(0x1000, 0x1000, 0, 0x1000, u64::MAX).unwrap();
        assert_eq!(at, expected);
        map.insert(at, at + 0xfff, ()).unwrap();
        expected += 0x1000;
    }
    // Free every eighth page: the holes come back lowest first, and no two
    // pages in a row are to be had below the end.
    for i in (0..10_000u64).step_by(8) {
        map.remove(0x1000 + i * 0x1000).unwrap();
    }
    assert_eq!(map.find_gap(0x2000, 0x1000, 0, 0x1000, u64::MAX), Some(expected));
    for i in (0..10_000u64).step_by(8) {
        let at = map.find_gap(0x1000, 0x1000, 0, 0x1000, u64::MAX).unwrap();
        assert_eq!(at, 0x1000 + i * 0x1000);
        map.insert(at, at + 0xfff, ()).unwrap();
    }
    assert_eq!(map.find_gap(0x1000, 0x1000, 0, 0x1000, u64::MAX), Some(expected));
}

#[test]
fn a_million_ascending_ranges_cost_36_bytes_each() {
    let mut map = IovaMap::new();
    for i in 0..1_000_000u64 {
        map.insert(i << 13, (i << 13) + 0xfff, [i; 2]).unwrap();
    }
    let bytes = map.memory_usage();
    assert!(bytes <= 36_000_000, "{bytes} bytes");
}

#[test]
fn values_can_be_changed_in_place() {
    let mut map = IovaMap::new();
    for i in 0..1000u64 {
        map.insert(i * 16, i * 16 + 7, 0).unwrap();
    }
    map.for_each_mut(16 + 7, 48, |entry| *entry.value += 1);
    *map.get_mut(16).unwrap().value += 1;
    assert!(map.get_mut(8).is_none());
    let changed = map.iter().filter(|entry| *entry.value > 0);
    let changed = changed.map(|Entry { start, value, .. }| (start, *value));
    assert_eq!(changed.collect::<Vec<_>>(), [(16, 2), (32, 1), (48, 1)]);
    assert_eq!(map.range(20, 40).count(), 2);
    assert_eq!(map.first_overlap(24, 100).map(|entry| entry.start), Some(32));
    map.clear();
    assert!(map.is_empty() && map.memory_usage() == 0);
}
