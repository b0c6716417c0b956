//! A small random generator (splitmix64, Steele et al. 2014), so that a seed means the same on every machine for ever.

/// Randomness from a seed.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    /// The source of one part of the world. Each has its own, so that what is left out of one does not change what
    /// happens in the others: without that, nothing could be shrunk.
    pub(crate) fn of(seed: u64, part: Part) -> Self {
        let (kind, number) = match part {
            Part::Script => (1, 0),
            Part::Host(host) => (2, host),
            Part::Client(client) => (3, client),
            Part::Stream { client, to_host } => (if to_host { 4 } else { 5 }, client),
            Part::StoreLink { host, to_store } => (if to_store { 6 } else { 7 }, host),
        };
        let mut random = Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d);
        let own = random.next().wrapping_add(kind << 32 | number as u64);
        let mut random = Self(own);
        random.next();
        random
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// From `low` to `high`, both included.
    pub(crate) fn range(&mut self, low: u64, high: u64) -> u64 {
        low + self.next() % (high - low + 1)
    }

    /// Below `count`.
    pub(crate) fn index(&mut self, count: usize) -> usize {
        (self.next() % count as u64) as usize
    }

    /// True in `percent` of the cases.
    pub(crate) fn chance(&mut self, percent: u64) -> bool {
        self.next() % 100 < percent
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.index(from.len())]
    }
}

/// What needs randomness of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    Script,
    Host(usize),
    Client(usize),
    Stream { client: usize, to_host: bool },
    StoreLink { host: usize, to_store: bool },
}
