//! A world that is short of memory: the process stays within its budget, honest readers are told what they have lost, and
//! afterwards all that was counted may be had again.

use std::time::Duration;

use super::door::{Door, Site};
use super::rest::{Rest, ends_well, forget, serves};
use super::{Rules, SETTINGS, World, chaos, for_a_while, presser, seconds};
use crate::common::cost::{KIB, MIB, Peak};
use crate::common::http::{Conn, published, wire};
use crate::common::rng::{Rng, seed};
use crate::common::server::field;
use crate::common::until;

const BUDGET: usize = 32 * MIB;
/// What is in hand for a moment and counted only after it: answers and frames under way, and what an allocator keeps.
const SLACK: usize = 16 * MIB;
const LARGEST: usize = 64 * KIB;
const WARM_UP: Duration = Duration::from_secs(3);

#[test]
fn what_is_lost_for_want_of_memory_is_told() {
    let seed = seed();
    let (budget, largest) =
        (format!("limits.memory_bytes={BUDGET}"), format!("limits.message_bytes={LARGEST}"));
    let site = Site::new("2", &[SETTINGS, &[&budget, &largest]]);
    let (mut server, doors) = site.start();
    let peak = Peak::watch(server.pid());
    let mut world = World::new(&server, doors, &site, Rules::Told);
    let time = seconds(8);
    chaos(&mut world, &site, &presser::TRICKS, seed, for_a_while(WARM_UP.max(time / 4)));
    is_calm(&world);
    let before = Rest::of(&server);
    let is_pressed = || server.log().iter().any(|line| field(line, "pressure").is_some());
    chaos(&mut world, &site, &presser::TRICKS, seed + 1, |world, goes_well| {
        for_a_while(time)(world, goes_well);
        until("memory is short", || (is_pressed() || !goes_well()).then_some(()));
    });
    is_calm(&world);
    let (most, _) = peak.end();
    eprintln!("at most {} of {} KiB", most / KIB, (BUDGET + SLACK) / KIB);
    assert!(most <= BUDGET + SLACK, "{} KiB, more than {} and some", most / KIB, BUDGET / KIB);
    before.comes_back(&server);
    may_hold_again(&world);
    forget(&world);
    serves(&world);
    server.signal(libc::SIGTERM);
    ends_well(&mut server);
}

/// Newcomers are served as usual, and nothing is left.
fn is_calm(world: &World) {
    until("newcomers are served", || {
        let mut conn = Conn::try_open(world.doors.plain).ok()?;
        conn.try_send("GET", "/channels/after", &[], "").ok()?;
        (conn.try_read_response().ok()?.status == 200).then_some(())
    });
    forget(world);
}

/// What was counted is not counted any more: bodies are taken in part that would not fit beside much of it.
fn may_hold_again(world: &World) {
    const BODIES: usize = 120;
    let mut rng = Rng::new(0, 0);
    let mut conns: Vec<Conn> = (0..BODIES)
        .map(|_| world.doors.enter(Door::Plain, 1, &mut rng).expect("the server takes connections"))
        .collect();
    let request = wire(world.doors.plain, "POST", "/channels/liar/0", &[], &[b'x'; LARGEST - 100]);
    let (begun, rest) = request.split_at(request.len() - 10);
    for conn in &mut conns {
        conn.send_raw(begun);
    }
    for conn in &mut conns {
        conn.send_raw(rest);
        conn.expect_answer_to("POST");
        published(&conn.read_response());
    }
}
