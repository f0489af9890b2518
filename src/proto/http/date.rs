//! Dates in HTTP (RFC 9110 §5.6.7): seconds since 1970 to `Sun, 06 Nov 1994 08:49:37 GMT`. Reads no clock.

use std::cell::Cell;

/// Bytes of an IMF-fixdate.
pub const DATE_BYTES: usize = 29;

/// The last second that fits: 9999-12-31 23:59:59.
const LAST_SECOND: u64 = 253_402_300_799;

/// The IMF-fixdate of a moment; later than the year 9999 is its end. That of the second that was asked for last is
/// remembered: all answers of a second say the same.
pub fn format_imf_date(unix_seconds: u64) -> [u8; DATE_BYTES] {
    thread_local! {
        static LAST: Cell<(u64, [u8; DATE_BYTES])> = const { Cell::new((0, *b"Thu, 01 Jan 1970 00:00:00 GMT")) };
    }
    LAST.with(|last| {
        let (seconds, date) = last.get();
        if seconds == unix_seconds {
            return date;
        }
        let date = format(unix_seconds);
        last.set((unix_seconds, date));
        date
    })
}

fn format(unix_seconds: u64) -> [u8; DATE_BYTES] {
    const WEEKDAYS: [&[u8; 3]; 7] = [b"Thu", b"Fri", b"Sat", b"Sun", b"Mon", b"Tue", b"Wed"];
    const MONTHS: [&[u8; 3]; 12] =
        [b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec"];
    let unix_seconds = unix_seconds.min(LAST_SECOND);
    let (days, second_of_day) = (unix_seconds / 86_400, unix_seconds % 86_400);
    let (year, month, day) = civil(days);
    let mut date = *b"Thu, 01 Jan 1970 00:00:00 GMT";
    date[..3].copy_from_slice(WEEKDAYS[(days % 7) as usize]);
    two_digits(&mut date, 5, day);
    date[8..11].copy_from_slice(MONTHS[month as usize - 1]);
    two_digits(&mut date, 12, year / 100);
    two_digits(&mut date, 14, year % 100);
    two_digits(&mut date, 17, second_of_day / 3600);
    two_digits(&mut date, 20, second_of_day / 60 % 60);
    two_digits(&mut date, 23, second_of_day % 60);
    date
}

/// Year, month and day of a day since 1970, in the Gregorian calendar. Counts years from March, so that the leap day
/// comes last.
pub const fn civil(days: u64) -> (u64, u64, u64) {
    /// From 0000-03-01 to 1970-01-01.
    const DAYS_BEFORE_1970: u64 = 719_468;
    const DAYS_OF_400_YEARS: u64 = 146_097;
    let days = days + DAYS_BEFORE_1970;
    let (era, day_of_era) = (days / DAYS_OF_400_YEARS, days % DAYS_OF_400_YEARS);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + if month <= 2 { 1 } else { 0 };
    (year, month, day)
}

fn two_digits(date: &mut [u8; DATE_BYTES], at: usize, number: u64) {
    date[at] = b'0' + (number / 10) as u8;
    date[at + 1] = b'0' + (number % 10) as u8;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn named_cases() {
        for (seconds, expected) in [
            (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
            (784_111_777, "Sun, 06 Nov 1994 08:49:37 GMT"),
            (951_782_400, "Tue, 29 Feb 2000 00:00:00 GMT"),
            (951_868_800, "Wed, 01 Mar 2000 00:00:00 GMT"),
            (1_709_251_199, "Thu, 29 Feb 2024 23:59:59 GMT"),
            (1_735_689_599, "Tue, 31 Dec 2024 23:59:59 GMT"),
            (4_107_542_400, "Mon, 01 Mar 2100 00:00:00 GMT"),
            (LAST_SECOND, "Fri, 31 Dec 9999 23:59:59 GMT"),
            (u64::MAX, "Fri, 31 Dec 9999 23:59:59 GMT"),
        ] {
            assert_eq!(std::str::from_utf8(&format_imf_date(seconds)), Ok(expected));
        }
    }
}
