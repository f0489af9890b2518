//! What one reader has seen of its channel: which number comes next, and which of the last 32 came.
//! Twelve bytes would do for a million readers, these are eight. Pure.

/// How a number fits to those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    InOrder,
    /// It is later than what was due: so many were jumped over.
    Jumped(u32),
    /// It was jumped over before: out of order.
    Late,
    /// It has come before, or is too old to tell.
    Repeated,
}

#[derive(Debug, Clone, Copy)]
pub struct Count {
    next: u32,
    /// Bit i: number `next - 1 - i` has come.
    recent: u32,
}

impl Default for Count {
    /// Numbers begin at 1.
    fn default() -> Self {
        Self::after(0)
    }
}

impl Count {
    /// Of a reader that begins after `number`.
    pub fn after(number: u32) -> Self {
        Self { next: number + 1, recent: u32::MAX }
    }

    pub fn note(&mut self, number: u32) -> Seen {
        if let Some(jumped) = number.checked_sub(self.next) {
            // A shift by 32 or more is no shift in Rust: all bits are gone by then.
            self.recent = self.recent.checked_shl(jumped + 1).unwrap_or(0) | 1;
            self.next = number + 1;
            return if jumped == 0 { Seen::InOrder } else { Seen::Jumped(jumped) };
        }
        let bit = 1u32.checked_shl(self.next - 1 - number).unwrap_or(0);
        if bit == 0 || self.recent & bit != 0 {
            return Seen::Repeated;
        }
        self.recent |= bit;
        Seen::Late
    }
}

#[cfg(test)]
mod tests {
    use super::Seen::{InOrder, Jumped, Late, Repeated};
    use super::*;

    #[test]
    fn every_fault_is_noticed() {
        for (name, numbers, seen) in [
            ("in order", &[1, 2, 3][..], &[InOrder; 3][..]),
            ("the first is lost", &[2, 3], &[Jumped(1), InOrder]),
            ("one is lost", &[1, 3], &[InOrder, Jumped(1)]),
            ("one is repeated", &[1, 2, 2, 3], &[InOrder, InOrder, Repeated, InOrder]),
            ("an old one is repeated", &[1, 2, 3, 1], &[InOrder, InOrder, InOrder, Repeated]),
            ("two change places", &[1, 3, 2, 4], &[InOrder, Jumped(1), Late, InOrder]),
            ("late, then repeated", &[1, 3, 2, 2], &[InOrder, Jumped(1), Late, Repeated]),
            ("many are lost", &[1, 100, 99, 50], &[InOrder, Jumped(98), Late, Repeated]),
            ("exactly 31 are lost", &[1, 33, 1], &[InOrder, Jumped(31), Repeated]),
        ] {
            let mut count = Count::default();
            let got: Vec<Seen> = numbers.iter().map(|&number| count.note(number)).collect();
            assert_eq!(got, seen, "{name}");
        }
        assert_eq!(Count::after(41).note(42), InOrder);
        assert_eq!(Count::after(41).note(41), Repeated);
    }
}
