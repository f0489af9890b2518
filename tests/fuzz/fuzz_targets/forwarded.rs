//! Any `Forwarded` and `X-Forwarded-For`: whatever a client wrote, what a proxy appends is what is read first.
#![no_main]
use std::net::{IpAddr, Ipv4Addr};

use libfuzzer_sys::fuzz_target;
use pushline::proto::forwarded::{Hop, of_forwarded, of_x_forwarded_for};

fuzz_target!(|input: &[u8]| {
    let hop = Some(Hop::At(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7)), 0));
    let forwarded = [input, b", for=192.0.2.7"].concat();
    let values = [&forwarded[..]];
    assert_eq!(of_forwarded(&values).next(), hop);
    assert!(of_forwarded(&values).count() <= forwarded.len());
    let for_ = [input, b", 192.0.2.7"].concat();
    let values = [&for_[..]];
    assert_eq!(of_x_forwarded_for(&values).next(), hop);
    assert!(of_x_forwarded_for(&values).count() <= for_.len());
});
