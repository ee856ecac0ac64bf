//! Event records and page requests.

use proptest::prelude::*;

use crate::wire::{Class, Event, EventKind, PageRequest, Rwx};

/// The bits each kind of record defines, put together by hand from §7.3.2 to §7.3.20; everything
/// else is RES0.
const LAYOUTS: [(u8, [u64; 4]); 19] = {
    const SID: u64 = 0xffff_ffff << 32;
    const SSID: u64 = 0xfffff << 12;
    const SSV: u64 = 1 << 11;
    const HEAD: u64 = SID | SSID | SSV | 0xff;
    const ACCESS: u64 = 0b1110 << 32;
    const STAGE: u64 = 0b1100_0000 << 32;
    const CLASS: u64 = 0b11 << 40;
    const STALL: u64 = 1 << 31 | 0xffff;
    const IMPL_DEF: u64 = 0xffff << 48;
    const GPCF: u64 = 1 << 16;
    const FETCH: u64 = 0x00ff_ffff_ffff_fff8;
    const IPA: u64 = 0x00ff_ffff_ffff_f000;
    const PAGE: u64 = !0xfff;
    const FAULT: u64 = ACCESS | STAGE | CLASS | STALL | IMPL_DEF;
    [
        (0x01, [HEAD, ACCESS | 0xffff, !0, 0]),
        (0x02, [HEAD, 0, 0, 0]),
        (0x03, [HEAD, GPCF | 0xffff, 0, FETCH]),
        (0x04, [HEAD, 0, 0, 0]),
        (0x05, [HEAD, 0xf000_000f, PAGE, 0]),
        (0x06, [SID | 0xff, 0, 0, 0]),
        (0x07, [SID | 0xff, 0b1000 << 32, !0, 0]),
        (0x08, [SID | SSID | 0xff, 0, 0, 0]),
        (0x09, [HEAD, GPCF | 0xffff, 0, FETCH]),
        (0x0A, [HEAD, 0, 0, 0]),
        (0x0B, [HEAD, ACCESS | STAGE | CLASS | GPCF | 0xffff, !0, FETCH]),
        (0x10, [HEAD, FAULT, !0, IPA]),
        (0x11, [HEAD, FAULT, !0, IPA]),
        (0x12, [HEAD, FAULT, !0, IPA]),
        (0x13, [HEAD, FAULT | 1 << 44, !0, IPA]),
        (0x20, [HEAD, ACCESS | STAGE | 0xffff_ffff, !0, IPA]),
        (0x21, [HEAD, 0xffff_ffff, 0, 0]),
        (0x24, [HEAD, 0x000f_f0ee_0000_0000, PAGE, 0]),
        (0x25, [HEAD, GPCF | 0xffff, 0, FETCH]),
    ]
};

#[test]
fn each_kind_has_its_own_fields_and_no_others() {
    for (number, layout) in LAYOUTS {
        let ones = [!0xff | u64::from(number), !0, !0, !0];
        let event = Event::decode(&ones).expect("number is known");
        let mut defined = layout;
        defined[0] &= !0xff | u64::from(number);
        assert_eq!(event.encode(), defined, "{}", event.kind);
    }
}

#[test]
fn exactly_the_architected_numbers_decode() {
    for number in 0..=u8::MAX {
        let kind = EventKind::from_number(number);
        assert_eq!(kind.is_some(), LAYOUTS.iter().any(|(known, _)| *known == number));
        assert_eq!(Event::decode(&[u64::from(number), 0, 0, 0]).map(|event| event.kind), kind);
    }
    assert!(EventKind::ALL.is_sorted());
}

/// §7.3.13: the record Linux decodes most often, one field at a time.
#[test]
fn a_translation_fault() {
    let event = Event {
        kind: EventKind::Translation,
        sid: 0x1234_5678,
        ssid: Some(0xabcde),
        stall: true,
        stag: 0xbeef,
        pnu: true,
        ind: true,
        rnw: true,
        s2: true,
        class: Class::Tt,
        input_address: 0xffff_0000_dead_b123,
        ipa: 0x0008_1234_5678,
        ..Event::default()
    };
    let raw = [
        0x1234_5678_abcd_e810,
        1 << 40 | 1 << 39 | 0b111 << 33 | 1 << 31 | 0xbeef,
        0xffff_0000_dead_b123,
        // The low 12 bits of an IPA are not recorded.
        0x0008_1234_5000,
    ];
    assert_eq!(event.encode(), raw);
    assert_eq!(Event::decode(&raw), Some(Event { ipa: 0x0008_1234_5000, ..event }));
}

/// §7.3.4, §7.3.10: the address stands in FetchAddr [247:195] and InputAddr stays 0.
#[test]
fn fetch_faults_name_the_structure() {
    for kind in [EventKind::SteFetch, EventKind::CdFetch, EventKind::VmsFetch] {
        let event = Event {
            fetch_address: 0x00ab_cdef_0123_4568,
            input_address: 0x7000,
            reason: 5,
            ..Event::new(kind, 1)
        };
        assert_eq!(
            event.encode(),
            [0x1_0000_0000 | kind as u64, 5, 0, 0x00ab_cdef_0123_4568],
            "{kind}"
        );
    }
}

/// §7.3.9: there is no SSV, for the SubstreamID is always valid.
#[test]
fn a_bad_substream_is_always_named() {
    let event = Event { ssid: Some(7), ..Event::new(EventKind::BadSubstreamId, 1) };
    assert_eq!(event.encode(), [0x1_0000_7008, 0, 0, 0]);
    assert_eq!(Event::decode(&event.encode()), Some(event));
}

#[test]
fn a_refused_translation_request_tells_what_it_asked_for() {
    let rights = Rwx { read: true, write: true, exec: false };
    let event = Event {
        input_address: 0x1_2000,
        span: 1,
        privileged: rights,
        ..Event::new(EventKind::BadAtsTreq, 3)
    };
    assert_eq!(event.encode(), [0x3_0000_0005, 0xd000_0001, 0x1_2000, 0]);
    assert_eq!(Event::decode(&event.encode()), Some(event));
}

#[test]
fn a_person_reads_an_event() {
    let fault = Event {
        ssid: Some(2),
        rnw: true,
        s2: true,
        ipa: 0x5000,
        input_address: 0x1000,
        ..Event::new(EventKind::Translation, 8)
    };
    assert_eq!(
        fault.to_string(),
        "F_TRANSLATION (no translation) SID=0x8 SSID=0x2 unprivileged read of 0x1000 at stage 2, \
         class IN IPA=0x5000"
    );
    let fetch = Event { fetch_address: 0x9000, ..Event::new(EventKind::SteFetch, 8) };
    assert_eq!(fetch.to_string(), "F_STE_FETCH (STE fetch aborted) SID=0x8 FetchAddr=0x9000");
    let request = PageRequest {
        sid: 8,
        ssid: Some(1),
        read: true,
        write: true,
        last: true,
        prg_index: 3,
        address: 0x7000,
        ..PageRequest::default()
    };
    assert_eq!(
        request.to_string(),
        "page request SID=0x8 SSID=0x1 0x7000 rw- user PRGIndex=3 last"
    );
}

/// §8: StreamID [31:0], SubstreamID [51:32], Priv, X, R, W, Last, SSV [63:58], PRGIndex [72:64],
/// page address [127:76].
#[test]
fn a_page_request() {
    let request = PageRequest {
        sid: 0xdead_beef,
        ssid: Some(0xabcde),
        write: true,
        exec: true,
        prg_index: 0x1ff,
        address: 0xffff_8000_0000_1fff,
        ..PageRequest::default()
    };
    let raw = [0xa80a_bcde_dead_beef, 0xffff_8000_0000_11ff];
    assert_eq!(request.encode(), raw);
    let address = 0xffff_8000_0000_1000;
    assert_eq!(PageRequest::decode(&raw), PageRequest { address, ..request });
}

/// §8: a request without a PASID has neither X nor Priv, and is never a stop marker.
#[test]
fn stop_markers_have_a_substream() {
    let marker = PageRequest { ssid: Some(1), last: true, ..PageRequest::default() };
    assert!(marker.is_stop_marker());
    let request = PageRequest { ssid: None, exec: true, privileged: true, ..marker };
    assert!(!request.is_stop_marker());
    assert_eq!(request.encode(), [1 << 62, 0]);
    assert!(!PageRequest { read: true, ..marker }.is_stop_marker());
}

proptest! {
    /// Decoding never adds or moves a bit, and says all that encoding needs.
    #[test]
    fn decoding_events_invents_nothing(
        kind in prop::sample::select(&EventKind::ALL[..]),
        words: [u64; 4],
    ) {
        let raw = [words[0] & !0xff | kind as u64, words[1], words[2], words[3]];
        let event = Event::decode(&raw).expect("number is known");
        let encoded = event.encode();
        prop_assert_eq!(Event::decode(&encoded), Some(event));
        for (encoded, raw) in encoded.into_iter().zip(raw) {
            prop_assert_eq!(encoded & !raw, 0);
        }
        prop_assert!(event.to_string().starts_with(kind.name()));
    }

    #[test]
    fn decoding_page_requests_invents_nothing(raw: [u64; 2]) {
        let request = PageRequest::decode(&raw);
        let encoded = request.encode();
        prop_assert_eq!(PageRequest::decode(&encoded), request);
        prop_assert_eq!(encoded[0] & !raw[0], 0);
        prop_assert_eq!(encoded[1] & !raw[1], 0);
    }
}
