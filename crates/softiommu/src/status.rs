//! `/proc/PID/status` with the pages that we pinned and locked.

use std::sync::atomic::Ordering;

use host::{MmCounters, PAGE_SIZE};

/// The kernel's text with our counters in its `VmPin` and `VmLck` lines. The
/// layout stays: the numbers keep their width.
pub(crate) fn patch(text: Vec<u8>, counters: &MmCounters) -> Vec<u8> {
    let pinned = counters.pinned_vm.load(Ordering::Relaxed) * PAGE_SIZE / 1024;
    let locked = counters.locked_vm.load(Ordering::Relaxed) * PAGE_SIZE / 1024;
    if pinned == 0 && locked == 0 {
        return text;
    }
    let line = |line: &[u8]| {
        let text = String::from_utf8_lossy(line).into_owned();
        let add = match () {
            () if text.starts_with("VmPin:") => pinned,
            () if text.starts_with("VmLck:") => locked,
            () => return text,
        };
        let value =
            text.split_ascii_whitespace().nth(1).and_then(|value| value.parse::<u64>().ok());
        let key = &text[..6];
        value.map_or(text.clone(), |value| format!("{key}\t{:>8} kB\n", value + add))
    };
    text.split_inclusive(|&byte| byte == b'\n').map(line).collect::<String>().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str =
        "Name:\tcat\nVmLck:\t       0 kB\nVmPin:\t       4 kB\nVmHWM:\t    1856 kB\n";

    #[test]
    fn only_the_two_numbers_change() {
        let counters = MmCounters::default();
        assert_eq!(patch(TEXT.into(), &counters), TEXT.as_bytes());
        counters.pinned_vm.store(3, Ordering::Relaxed);
        counters.locked_vm.store(1, Ordering::Relaxed);
        let expected = TEXT
            .replace("VmLck:\t       0", "VmLck:\t       4")
            .replace("       4 kB\nVmHWM", "      16 kB\nVmHWM");
        assert_eq!(String::from_utf8(patch(TEXT.into(), &counters)).unwrap(), expected);
    }
}
