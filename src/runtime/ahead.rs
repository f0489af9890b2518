//! Memory that will be written soon, fetched into the caches while something else is done.
//! Owns the hint. Never reads or writes what it is told of.
#![allow(unsafe_code)]

/// Bytes of a cache line.
const LINE_BYTES: usize = 64;

/// Begins to fetch the lines of so many bytes, to be written. Of no effect where nothing is, or on other processors.
pub fn fetch(place: *const u8, bytes: usize) {
    let lines = (place.addr() % LINE_BYTES + bytes).div_ceil(LINE_BYTES);
    for line in 0..lines {
        fetch_line(place.wrapping_add(line * LINE_BYTES));
    }
}

fn fetch_line(place: *const u8) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_ET0, _mm_prefetch};
        // SAFETY: a hint: it reads nothing, and faults at no address.
        unsafe { _mm_prefetch::<_MM_HINT_ET0>(place.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_address_will_do() {
        for place in [std::ptr::null(), std::ptr::dangling(), b"here".as_ptr(), usize::MAX as *const u8] {
            fetch(place, 200);
        }
    }
}
