//! The PRI queue (§8, §4.5.2).

use smmuv3::wire::PageRequest;
use smmuv3::{Options, PageResponse, PageResponseCode, Wire};

use crate::common::raw::event::*;
use crate::common::raw::{Words, cmd, event, reg, ste};
use crate::common::world::Message;
use crate::common::{CERROR_ILL, Machine, PRIQ, PRIQ_LOG2};

const ENTRIES: u32 = 1 << PRIQ_LOG2;

fn request(ssid: Option<u32>, prg_index: u16, last: bool) -> PageRequest {
    PageRequest {
        sid: 3,
        ssid,
        read: true,
        write: false,
        exec: false,
        privileged: false,
        last,
        prg_index,
        address: 0x1234_5000,
    }
}

/// The responses since the last call.
fn responses(m: &Machine) -> Vec<PageResponse> {
    m.world
        .devices
        .take()
        .iter()
        .map(|message| match message {
            Message::Response(response) => *response,
            other => panic!("{other:?}"),
        })
        .collect()
}

fn response(ssid: Option<u32>, prg_index: u16, code: PageResponseCode) -> PageResponse {
    PageResponse { stream_id: 3, substream_id: ssid, prg_index, code }
}

/// §8: bit by bit.
#[test]
fn page_requests_are_records_in_the_queue() {
    let m = Machine::everything();
    let every = PageRequest {
        write: true,
        exec: true,
        privileged: true,
        ..request(Some(0xabcde), 0x155, true)
    };
    m.smmu.page_request(every);
    m.smmu.page_request(PageRequest { exec: true, privileged: true, ..request(None, 1, false) });
    let stop = PageRequest { read: false, ..request(Some(5), 0, true) };
    m.smmu.page_request(stop);
    assert_eq!(
        m.page_requests(),
        [
            Words([3 | 0xabcde << 32 | 0b11_1111 << 58, 0x155 | 0x1234_5000]),
            // X and Priv need a PASID.
            Words([3 | 1 << 60, 1 | 0x1234_5000]),
            Words([3 | 5 << 32 | 0b11 << 62, 0x1234_5000]),
        ]
    );
    assert_eq!(m.world.devices.take(), [], "software answers");
}

/// §4.5.2.
#[test]
fn software_answers_a_group() {
    let m = Machine::everything();
    for (resp, code) in [
        (0, PageResponseCode::Failure),
        (1, PageResponseCode::InvalidRequest),
        (2, PageResponseCode::Success),
    ] {
        m.run(&[cmd::pri_resp(3, Some(7), 0x1ff, resp), cmd::pri_resp(3, None, 5, resp)]);
        assert_eq!(responses(&m), [response(Some(7), 0x1ff, code), response(None, 5, code)]);
    }
    assert_eq!(m.error_of(cmd::pri_resp(3, None, 5, 3)), Some(CERROR_ILL));
    // Without SMMUEN it is ignored.
    m.w32(reg::CR0, reg::CMDQEN);
    m.run(&[cmd::pri_resp(3, None, 5, 2)]);
    assert_eq!(m.world.devices.take(), []);
    // Without SubstreamIDs there is no PASID to answer with.
    let options = Options { ssid_bits: 0, cd2l: false, pps: false, ..Options::everything() };
    let m = Machine::booted(options);
    m.run(&[cmd::pri_resp(3, Some(7), 5, 2)]);
    assert_eq!(responses(&m), [response(None, 5, PageResponseCode::Success)]);
}

/// §8.1: until acknowledged nothing more is written, and groups that lose their last request are answered.
#[test]
fn an_overflow_stops_the_queue_and_answers_for_software() {
    let m = Machine::everything();
    (0..ENTRIES).for_each(|n| m.smmu.page_request(request(Some(7), n as u16, false)));
    assert_eq!(m.r32(reg::PRIQ_PROD), ENTRIES);
    assert_eq!(m.world.devices.take(), []);
    m.world.wires.take();
    // Neither a request inside a group nor a marker is answered; the overflow shows.
    m.smmu.page_request(request(Some(7), 20, false));
    assert_eq!(m.r32(reg::PRIQ_PROD), ENTRIES | reg::OVFLG);
    m.smmu.page_request(PageRequest { read: false, ..request(Some(7), 0, true) });
    assert_eq!(m.world.devices.take(), []);
    m.smmu.page_request(request(Some(7), 21, true));
    m.smmu.page_request(request(None, 22, true));
    let success = PageResponseCode::Success;
    assert_eq!(responses(&m), [response(Some(7), 21, success), response(None, 22, success)]);
    // Room alone does not help: unlike the Event queue, it stays stopped until acknowledged.
    m.w32(reg::PRIQ_CONS, ENTRIES);
    m.smmu.page_request(request(None, 23, true));
    assert_eq!(responses(&m), [response(None, 23, success)]);
    assert_eq!(m.r32(reg::PRIQ_PROD), ENTRIES | reg::OVFLG);
    m.w32(reg::PRIQ_CONS, ENTRIES | reg::OVFLG);
    m.smmu.page_request(request(None, 24, true));
    assert_eq!(m.r32(reg::PRIQ_PROD), (ENTRIES + 1) | reg::OVFLG);
    assert_eq!(m.world.devices.take(), []);
    assert_eq!((m.r32(reg::GERROR), m.world.wires.take()), (0, vec![Wire::Priq]));
    // The next overflow toggles back.
    (1..=ENTRIES).for_each(|n| m.smmu.page_request(request(None, n as u16, false)));
    assert_eq!(m.r32(reg::PRIQ_PROD) & reg::OVFLG, 0);
}

/// §8.1: whether the answer has the PASID.
#[test]
fn automatic_answers_have_a_pasid_as_pps_or_ppar_say() {
    use PageResponseCode::{Failure, Success};
    for (rec, recinvsid) in [(false, true), (true, true), (true, false)] {
        let mut m = Machine::new(Options { pps: false, ..Options::everything() });
        m.prepare();
        let rec_bit = if rec { reg::REC_CFG_ATS } else { 0 };
        m.w32(reg::CR2, rec_bit | if recinvsid { reg::RECINVSID } else { 0 });
        m.enable();
        (0..=ENTRIES).for_each(|_| m.smmu.page_request(request(None, 1, false)));
        let ask = |m: &Machine, sid, ssid| {
            m.smmu.page_request(PageRequest { sid, ..request(ssid, 9, true) });
            let response = responses(m)[0];
            (response.substream_id, response.code)
        };
        m.set_ste(3, ste::new(ste::ABORT).with(ste::PPAR, 1));
        assert_eq!(ask(&m, 3, Some(7)), (Some(7), Success));
        assert_eq!(ask(&m, 3, None), (None, Success));
        m.set_ste(3, ste::new(ste::ABORT).with(ste::PPAR, 0));
        assert_eq!(ask(&m, 3, Some(7)), (None, Success));
        // A request without a PASID does not look at the STE.
        assert_eq!(ask(&m, 999, None), (None, Success));
        assert_eq!(m.events(), []);
        // Where PPAR cannot be found out: failure, without a PASID, and recorded on request.
        let hole = Machine::ste_at(5);
        m.ram.make_hole(hole..hole + 8);
        for (sid, number) in [(4, C_BAD_STE), (5, F_STE_FETCH), (999, C_BAD_STREAMID)] {
            assert_eq!(ask(&m, sid, Some(7)), (None, Failure));
            let numbers: Vec<u64> = m.events().iter().map(|r| r.get(event::NUMBER)).collect();
            let recorded = rec && (number != C_BAD_STREAMID || recinvsid);
            assert_eq!(numbers, if recorded { vec![number] } else { vec![] });
        }
        // With PPS nobody looks.
        let m = Machine::everything();
        (0..=ENTRIES).for_each(|_| m.smmu.page_request(request(None, 1, false)));
        assert_eq!(ask(&m, 999, Some(7)), (Some(7), Success));
    }
}

/// §8.2: failures, for each request, without a PASID.
#[test]
fn a_queue_that_is_off_or_broken_answers_failure() {
    let failure = |m: &Machine| {
        for (ssid, last) in [(None, true), (Some(7), true), (Some(7), false)] {
            m.smmu.page_request(request(ssid, 4, last));
            assert_eq!(responses(m), [response(None, 4, PageResponseCode::Failure)]);
        }
        m.smmu.page_request(PageRequest { read: false, ..request(Some(7), 0, true) });
        assert_eq!(m.world.devices.take(), [], "nobody answers a stop marker");
    };
    let mut m = Machine::everything();
    m.set_cr0(reg::SMMUEN | reg::CMDQEN | reg::EVENTQEN);
    failure(&m);
    // Without SMMUEN, PRIQEN has no effect.
    m.set_cr0(reg::PRIQEN | reg::CMDQEN | reg::EVENTQEN);
    failure(&m);
    m.set_cr0(reg::PRIQEN | reg::CMDQEN | reg::EVENTQEN | reg::SMMUEN);
    assert_eq!(m.r32(reg::PRIQ_PROD), 0);
    m.ram.fail_next_write();
    m.smmu.page_request(request(Some(7), 4, true));
    assert_eq!(responses(&m), [response(None, 4, PageResponseCode::Failure)]);
    assert_eq!((m.gerror(), m.r32(reg::PRIQ_PROD)), (reg::PRIQ_ABT_ERR, 0));
    failure(&m);
    m.acknowledge();
    m.smmu.page_request(request(Some(7), 4, true));
    assert_eq!((m.r32(reg::PRIQ_PROD), responses(&m)), (1, vec![]));
    assert_eq!(m.ram.get(PRIQ) as u32, 3);
    // An SMMU without PRI.
    let m = Machine::booted(Options::minimal());
    failure(&m);
}
