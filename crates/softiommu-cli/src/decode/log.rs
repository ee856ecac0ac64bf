//! Messages of Linux's arm-smmu-v3 driver.
//!
//! An event is a line `… event 0x10 received:` and four lines with a word each; a command that the SMMU refused is a line
//! `… skipping command in error state:` and two of them. Between them may be lines of other devices, and before each a time and a
//! device.

use super::Kind;
use super::record::Record;

/// A record of which some words have come.
struct Open<'a> {
    device: &'a str,
    kind: Kind,
    words: Vec<u64>,
}

/// All records of a log, in order. Records that were cut off are not among them.
pub(super) fn records(log: &str) -> Vec<Record> {
    let mut open: Vec<Open<'_>> = Vec::new();
    let mut records = Vec::new();
    for line in log.lines() {
        let Some((device, message)) = split(line) else { continue };
        let kind = if message.starts_with("event 0x")
            && message.trim_end_matches(':').ends_with("received")
        {
            Some(Kind::Event)
        } else if message.starts_with("skipping command") {
            Some(Kind::Command)
        } else {
            None
        };
        if let Some(kind) = kind {
            // A new record of the device ends one that is not complete.
            open.retain(|other| other.device != device);
            open.push(Open { device, kind, words: Vec::new() });
            continue;
        }
        let Some(place) = open.iter().position(|other| other.device == device) else { continue };
        let Some(word) = word(message) else { continue };
        open[place].words.push(word);
        if open[place].words.len() == open[place].kind.words() {
            let Open { device, kind, words } = open.swap_remove(place);
            records.push(Record::new(kind, &words).of_device(device));
        }
    }
    records
}

/// The device and the message of a line of the driver.
fn split(line: &str) -> Option<(&str, &str)> {
    let (_, rest) = line.split_once("arm-smmu-v3 ")?;
    let (device, message) = rest.split_once(": ")?;
    (!device.contains(char::is_whitespace)).then(|| (device, message.trim()))
}

fn word(message: &str) -> Option<u64> {
    let digits = message.strip_prefix("0x")?;
    u64::from_str_radix(digits, 16).ok().filter(|_| !digits.starts_with('+'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
[  12.1] arm-smmu-v3 arm-smmu-v3.0.auto: event 0x10 received:
[  12.1] arm-smmu-v3 arm-smmu-v3.0.auto: \t0x0000080000000010
[  12.1] nvme nvme0: I/O tag 12 timeout
[  12.1] arm-smmu-v3 arm-smmu-v3.1.auto: event 0x02 received:
[  12.1] arm-smmu-v3 arm-smmu-v3.0.auto: \t0x0000020000000000
[  12.1] arm-smmu-v3 arm-smmu-v3.1.auto: \t0x0000000900000002
[  12.1] arm-smmu-v3 arm-smmu-v3.0.auto: \t0x00000000fffff000
[  12.1] arm-smmu-v3 arm-smmu-v3.0.auto: \t0x0000000000000000
[  12.1] arm-smmu-v3 arm-smmu-v3.0.auto: event: F_TRANSLATION client: 0000:08:00.0 sid: 0x800
[  12.2] arm-smmu-v3 arm-smmu-v3.0.auto: CMDQ error (cons 0x01000001): Illegal command
[  12.2] arm-smmu-v3 arm-smmu-v3.0.auto: skipping command in error state:
[  12.2] arm-smmu-v3 arm-smmu-v3.0.auto: \t0x0000000000000012
[  12.2] arm-smmu-v3 arm-smmu-v3.0.auto: \t0x0000000000001001
";

    #[test]
    fn records_of_several_devices_are_told_apart() {
        let records = records(LOG);
        let texts: Vec<_> = records.iter().map(|record| record.text(false)).collect();
        assert_eq!(texts.len(), 2, "the second device's record was cut off: {texts:?}");
        assert!(texts[0].starts_with("arm-smmu-v3.0.auto: F_TRANSLATION"), "{}", texts[0]);
        assert!(texts[0].contains("SID=0x800"), "{}", texts[0]);
        assert!(texts[1].starts_with("arm-smmu-v3.0.auto: CMD_TLBI_NH_VA"), "{}", texts[1]);
    }

    #[test]
    fn what_is_no_record_is_passed_over() {
        assert!(records("").is_empty());
        assert!(records("arm-smmu-v3 x: event 0x10 received:\narm-smmu-v3 x: 0xzz\n").is_empty());
        assert!(records("arm-smmu-v3 event 0x10 received:\n\t0x10\n").is_empty());
    }

    proptest::proptest! {
        #[test]
        fn no_log_is_too_broken(lines in proptest::collection::vec(
            "(.{0,20}|\\[ 1\\.0\\] )(arm-smmu-v3 (a|b|): ?)?(event 0x10 received:?|skipping command|\t?0x[0-9a-f+]{0,18}|.{0,20})",
            0..20,
        )) {
            for record in records(&lines.join("\n")) {
                assert!(!record.text(true).is_empty() && record.json().is_object());
            }
        }
    }
}
