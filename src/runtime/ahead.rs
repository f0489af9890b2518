//! Memory that is written soon, asked for before: a publish writes where nobody has been since its channel's last one, and
//! would wait for that place.
#![allow(unsafe_code)]

/// Bytes of a line of the caches.
const LINE_BYTES: usize = 64;

/// The lines of `bytes` bytes from `start` on come into the caches, to be written. No more than a hint.
pub fn fetch_to_write(start: *const u8, bytes: usize) {
    #[cfg(target_arch = "x86_64")]
    for offset in (0..bytes).step_by(LINE_BYTES) {
        use std::arch::x86_64::{_MM_HINT_ET0, _mm_prefetch};
        // SAFETY: a prefetch reads nothing and never faults, whatever the address is.
        unsafe { _mm_prefetch::<_MM_HINT_ET0>(start.cast::<i8>().wrapping_add(offset)) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (start, bytes, LINE_BYTES);
}
