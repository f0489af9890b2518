//! A world where processes take each other's place on all doors, in the midst of it: no connection is refused, and no
//! first request unanswered; whoever was there is told, comes back with its cursor, and is told what it has lost; and each
//! process ends well.
//! Memory is a process's own: of the last one what it holds is compared with the first one's at its beginning.

use std::sync::atomic::Ordering;
use std::time::Instant;

use super::door::Site;
use super::rest::{ends_well, forget, serves};
use super::{Rules, SETTINGS, World, chaos, hoarder, seconds};
use crate::common::cost::baseline;
use crate::common::rng::seed;
use crate::common::server::settled;
use crate::common::until;

/// A process is taken over from once it has answered so many publishes to each channel.
const PUBLISHES: u64 = 100;

#[test]
fn whoever_was_there_is_told_and_comes_back_2_workers() {
    let seed = seed();
    let settings = ["drain.window_seconds=0.5", "limits.message_bytes=16KiB"];
    let site = Site::new("2", &[SETTINGS, &settings]);
    let (server, doors) = site.start();
    let files = baseline(&server);
    let mut world = World::new(&server, doors.clone(), &site, Rules::Told);
    // Those that have ended too: with a server go the notes of how to come to its address.
    let mut servers = vec![server];
    let mut counted = 0;
    chaos(&mut world, &site, &hoarder::TRICKS, seed, |world, goes_well| {
        let end = Instant::now() + seconds(8);
        while goes_well() && (Instant::now() < end || servers.len() < 3) {
            goes_further(world, goes_well);
            let new = site.take_over(&doors, world.admin);
            world.pid.store(new.pid(), Ordering::SeqCst);
            counted += ends_well(servers.last_mut().expect("the one before"));
            servers.push(new);
        }
        goes_further(world, goes_well);
    });
    let last = servers.last_mut().expect("one that serves");
    forget(&world);
    settled(last, files);
    serves(&world);
    last.signal(libc::SIGTERM);
    counted += ends_well(last);
    let panics = world.panics.load(Ordering::SeqCst);
    assert!(counted <= panics, "{counted} of {panics} panics were counted");
    let ends = world.ends.lock().expect("no panic");
    let told = ["drain", "1012", "204"];
    assert!(ends.keys().any(|how| told.iter().any(|told| how.contains(told))), "{ends:?}");
    let unanswered: Vec<_> = ends.keys().filter(|how| how.contains("the first")).collect();
    assert!(unanswered.is_empty(), "not answered: {unanswered:?}");
}

/// So many more publishes to each channel are answered, or something has failed.
fn goes_further(world: &World, goes_well: &dyn Fn() -> bool) {
    let published = || world.published.iter().map(|count| count.load(Ordering::SeqCst));
    let from: Vec<u64> = published().collect();
    until("publishers go on", || {
        let done = published().zip(&from).all(|(now, from)| now >= from + PUBLISHES);
        (done || !goes_well()).then_some(())
    });
}
