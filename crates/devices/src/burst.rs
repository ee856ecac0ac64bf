//! How much is done for one queue at a time.

/// Bytes until others have their turn: some 300 µs of copying, so that waking the driver is little beside it.
const BYTES: u64 = 2 << 20;
/// What a request costs without any: 16 of them are a burst.
const LEAST: u64 = BYTES / 16;

/// Requests of one queue before the next queue has its turn, and before the driver is told of them: few interrupts where
/// requests are short, and none that is late because others move a lot of data.
pub(crate) struct Burst {
    left: u64,
}

impl Burst {
    pub(crate) fn new() -> Self {
        Self { left: BYTES }
    }

    /// There may be another request.
    pub(crate) fn goes_on(&self) -> bool {
        self.left > 0
    }

    /// A request has been carried out that moved so many bytes.
    pub(crate) fn spend(&mut self, bytes: u64) {
        self.left = self.left.saturating_sub(bytes.max(LEAST));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_many_short_requests_or_one_long_one() {
        let count = |bytes: u64| {
            let mut burst = Burst::new();
            (0..20)
                .take_while(|_| {
                    let goes_on = burst.goes_on();
                    burst.spend(bytes);
                    goes_on
                })
                .count()
        };
        assert_eq!([0, 512, 4096, 128 << 10].map(count), [16; 4]);
        assert_eq!([256 << 10, 1 << 20, 2 << 20, u64::MAX].map(count), [8, 2, 1, 1]);
    }
}
