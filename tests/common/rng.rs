//! Seeded randomness for tests (xorshift64*): a run is reproduced by its seed.

/// A generator. Not for secrets.
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    /// One of the many that a seed gives: threads take a `stream` of their own.
    pub fn new(seed: u64, stream: u64) -> Self {
        let mut state = seed.wrapping_add(stream.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        state = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        state = (state ^ (state >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        Self((state ^ (state >> 31)) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        let end = u64::try_from(end).expect("64 bits");
        usize::try_from((self.next() >> 11) % end).expect("below a usize")
    }

    /// A number in `range`.
    pub fn within(&mut self, range: std::ops::RangeInclusive<usize>) -> usize {
        range.start() + self.below(range.end() - range.start() + 1)
    }

    /// True once in `times`.
    pub fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    /// A number up to `2^bits`, every power of two as likely as the next.
    pub fn by_scale(&mut self, bits: usize) -> usize {
        let scale = self.within(0..=bits);
        self.within(1..=1 << scale)
    }

    pub fn shuffle<T>(&mut self, list: &mut [T]) {
        for at in (1..list.len()).rev() {
            list.swap(at, self.below(at + 1));
        }
    }

    pub fn pick<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len())]
    }
}

/// The seed of this run: `PUSHLINE_SEED`, or a new one. Printed, so that a failure can be run again.
pub fn seed() -> u64 {
    let given =
        std::env::var("PUSHLINE_SEED").ok().map(|seed| seed.parse().expect("PUSHLINE_SEED is a number"));
    let seed = given.unwrap_or_else(|| getrandom::u64().expect("randomness") % 1_000_000);
    eprintln!("PUSHLINE_SEED={seed}");
    seed
}
