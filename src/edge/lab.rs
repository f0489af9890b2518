//! The lab page at `/`: the four transports side by side, to see what each is for.

use super::answer::Answer;

const PAGE: &[u8] = include_bytes!("lab.html");

/// The page.
pub fn page() -> Answer {
    Answer::of(200, "text/html; charset=utf-8", PAGE.to_vec())
        .field("Cache-Control", "no-cache")
        .field("X-Content-Type-Options", "nosniff")
}
