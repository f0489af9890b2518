//! When a certificate ends (RFC 5280 §4.1.2.5), and nothing else of it: so that an operator hears of it before clients do.
//! Owns as much of DER as that takes. Certificates are the operator's own; rustls reads them for what counts.

const SEQUENCE: u8 = 0x30;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
/// The version, if it is told.
const VERSION: u8 = 0xA0;

/// Seconds since 1970 at which a certificate's validity ends. `None`: this is no certificate.
pub fn not_after(der: &[u8]) -> Option<u64> {
    let (_, certificate, _) = element(der, Some(SEQUENCE))?;
    let (_, mut fields, _) = element(certificate, Some(SEQUENCE))?;
    if fields.first() == Some(&VERSION) {
        fields = element(fields, None)?.2;
    }
    // The serial number, the signature's algorithm, the issuer.
    for _ in 0..3 {
        fields = element(fields, None)?.2;
    }
    let (_, validity, _) = element(fields, Some(SEQUENCE))?;
    let (_, _, rest) = element(validity, None)?;
    let (tag, time, _) = element(rest, None)?;
    seconds(tag, time)
}

/// The element at the front: its tag, its content, and what follows.
fn element(input: &[u8], wanted: Option<u8>) -> Option<(u8, &[u8], &[u8])> {
    let (&[tag, first], rest) = input.split_first_chunk()?;
    if wanted.is_some_and(|wanted| wanted != tag) {
        return None;
    }
    let (bytes, rest) = match first {
        0..=0x7F => (usize::from(first), rest),
        // More than three bytes of length is no certificate that anybody sends.
        0x81..=0x83 => {
            let (length, rest) = rest.split_at_checked(usize::from(first & 0x7F))?;
            (length.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(bytes)?;
    Some((tag, content, rest))
}

/// `YYMMDDHHMMSSZ` or `YYYYMMDDHHMMSSZ`, the only forms that RFC 5280 permits.
fn seconds(tag: u8, time: &[u8]) -> Option<u64> {
    let digits = time.strip_suffix(b"Z")?;
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = |digits: &[u8]| digits.iter().fold(0u64, |sum, digit| sum * 10 + u64::from(digit - b'0'));
    let (year, rest) = match (tag, digits.len()) {
        (UTC_TIME, 12) => match number(&digits[..2]) {
            year @ 50.. => (1900 + year, &digits[2..]),
            year => (2000 + year, &digits[2..]),
        },
        (GENERALIZED_TIME, 14) => (number(&digits[..4]), &digits[4..]),
        _ => return None,
    };
    let [month, day, hour, minute, second] = [0, 2, 4, 6, 8].map(|at| number(&rest[at..at + 2]));
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    Some(days(year, month, day)?.checked_mul(86_400)? + hour * 3_600 + minute * 60 + second)
}

/// Days since 1970-01-01, counted in years that begin in March, so that the leap day is the last.
fn days(year: u64, month: u64, day: u64) -> Option<u64> {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year.checked_sub(1)?, month + 9) };
    let leap_days = year / 4 - year / 100 + year / 400;
    (year * 365 + leap_days + (month * 153 + 2) / 5 + day - 1).checked_sub(719_468)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        for (tag, text, want) in [
            (UTC_TIME, "700101000000Z", Some(0)),
            (UTC_TIME, "491231235959Z", Some(2_524_607_999)),
            (UTC_TIME, "240229120000Z", Some(1_709_208_000)),
            (GENERALIZED_TIME, "20500101000000Z", Some(2_524_608_000)),
            (GENERALIZED_TIME, "99991231235959Z", Some(253_402_300_799)),
            (UTC_TIME, "501231235959Z", None),
            (UTC_TIME, "20500101000000Z", None),
            (GENERALIZED_TIME, "500101000000Z", None),
            (UTC_TIME, "241301000000Z", None),
            (UTC_TIME, "240101000000", None),
            (UTC_TIME, "2401010000xxZ", None),
            (4, "240101000000Z", None),
        ] {
            assert_eq!(seconds(tag, text.as_bytes()), want, "{text}");
        }
    }

    /// Whatever is cut off or changed, it does not panic; and the end is the one that it was made with.
    #[test]
    fn a_certificate_of_rcgen() {
        let mut params = rcgen::CertificateParams::new(vec!["localhost".into()]).expect("a name");
        params.not_after = rcgen::date_time_ymd(2051, 3, 4);
        let key = rcgen::KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate");
        let der: &[u8] = certificate.der();
        assert_eq!(not_after(der), Some(2_561_500_800));
        for cut in 0..der.len() {
            assert_eq!(not_after(&der[..cut]), None, "cut at {cut}");
        }
        for at in 0..der.len().min(200) {
            let mut changed = der.to_vec();
            changed[at] ^= 0xFF;
            not_after(&changed);
        }
    }
}
