//! Mailboxes: how workers speak to each other. Many senders, one receiver, no waiting.
//!
//! Owns a queue without locks, its bound in bytes, and the wake-up of who waits for it. Never
//! knows what is sent.
//!
//! A wake-up is an eventfd, written only when none is under way. The receiver takes it back
//! (`Mailbox::drain`) in an order that loses none: read the eventfd, clear the flag, empty the
//! queue. A sender pushes first and looks at the flag after: either it finds the flag clear and
//! writes, or the flag was still set, and the emptying comes after its push.
//!
//! Made by main before any worker starts, so that the eventfd has one number in every thread's
//! file table (`files`). The last sender or receiver to go closes it, in its own table: the others
//! go with their threads.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::io::EventFd;

/// The receiving half; one worker's own.
pub struct Mailbox<T> {
    queue: crossbeam_channel::Receiver<Item<T>>,
    shared: Arc<Shared>,
}

/// The sending half; each worker has one for every other.
pub struct Sender<T> {
    queue: crossbeam_channel::Sender<Item<T>>,
    shared: Arc<Shared>,
}

struct Item<T> {
    value: T,
    bytes: usize,
}

struct Shared {
    event: EventFd,
    /// A wake-up is under way: the eventfd is readable, or is about to be.
    is_woken: AtomicBool,
    queued_bytes: AtomicUsize,
    bytes_max: usize,
}

/// A mailbox that holds `bytes_max`, as its senders count them.
pub fn mailbox<T>(bytes_max: usize) -> std::io::Result<(Sender<T>, Mailbox<T>)> {
    let (tx, rx) = crossbeam_channel::unbounded();
    let shared = Arc::new(Shared {
        event: EventFd::new()?,
        is_woken: AtomicBool::new(false),
        queued_bytes: AtomicUsize::new(0),
        bytes_max,
    });
    Ok((Sender { queue: tx, shared: shared.clone() }, Mailbox { queue: rx, shared }))
}

impl<T> Sender<T> {
    /// Sends `value` if its `bytes` fit beside what waits already. Never blocks.
    ///
    /// # Errors
    /// Gives `value` back when it does not fit, or the receiver is gone.
    pub fn try_send(&self, value: T, bytes: usize) -> Result<(), T> {
        let fits = |queued: usize| queued.checked_add(bytes).filter(|sum| *sum <= self.shared.bytes_max);
        // Relaxed: a count; the queue itself orders what is sent.
        match self.shared.queued_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits) {
            Ok(_) => self.push(value, bytes),
            Err(_) => Err(value),
        }
    }

    /// Sends what the receiver has asked for, and so has room for: replies. Its bytes count, but
    /// are not refused. Dropped when the receiver is gone.
    pub fn send_reserved(&self, value: T, bytes: usize) {
        self.shared.queued_bytes.fetch_add(bytes, Ordering::Relaxed);
        drop(self.push(value, bytes));
    }

    fn push(&self, value: T, bytes: usize) -> Result<(), T> {
        match self.queue.send(Item { value, bytes }) {
            Ok(()) => {
                self.shared.wake();
                Ok(())
            }
            Err(crossbeam_channel::SendError(item)) => {
                self.shared.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
                Err(item.value)
            }
        }
    }

    /// Bytes that wait to be received, replies included.
    pub fn queued_bytes(&self) -> usize {
        self.shared.queued_bytes.load(Ordering::Relaxed)
    }

    /// Items that wait to be received.
    pub fn queued(&self) -> usize {
        self.queue.len()
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Self { queue: self.queue.clone(), shared: self.shared.clone() }
    }
}

impl<T> Mailbox<T> {
    /// Receives at most `items_max` into `received`, and returns whether more wait. In that case
    /// the eventfd is readable again, so that a worker may do other work first and is woken.
    pub fn drain(&mut self, items_max: usize, received: &mut Vec<T>) -> bool {
        self.shared.event.drain();
        // AcqRel: a sender that found it set had pushed before, and we see that push; one that
        // comes after finds it clear, and writes.
        self.shared.is_woken.swap(false, Ordering::AcqRel);
        let mut bytes = 0;
        for item in self.queue.try_iter().take(items_max) {
            bytes += item.bytes;
            received.push(item.value);
        }
        self.shared.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
        let more = !self.queue.is_empty();
        if more {
            self.shared.wake();
        }
        more
    }

    /// The eventfd's number: readable when there is something to [`drain`](Self::drain). It stays
    /// this mailbox's; wrap a duplicate where a wrapper closes what it wraps.
    pub fn wake_fd(&self) -> RawFd {
        self.shared.event.as_raw_fd()
    }

    /// A duplicate of the eventfd, in the table of files of the calling thread.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn duplicate_wake(&self) -> std::io::Result<OwnedFd> {
        self.shared.event.duplicate()
    }

    /// Items that wait to be received.
    pub fn queued(&self) -> usize {
        self.queue.len()
    }

    /// Bytes that wait to be received, replies included.
    pub fn queued_bytes(&self) -> usize {
        self.shared.queued_bytes.load(Ordering::Relaxed)
    }
}

impl Shared {
    fn wake(&self) {
        if !self.is_woken.swap(true, Ordering::AcqRel) {
            self.event.write();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::io::{Epoll, Events, Interest};
    use std::time::Duration;

    /// Whether the eventfd is readable; `None` waits for as long as it takes.
    fn is_readable<T>(mailbox: &Mailbox<T>, timeout: Option<Duration>) -> bool {
        let epoll = Epoll::new().unwrap();
        epoll.add(mailbox.wake_fd(), 0, Interest::Read).unwrap();
        epoll.wait(&mut Events::with_capacity(1), timeout).unwrap() == 1
    }

    #[test]
    fn what_does_not_fit_comes_back_and_replies_always_fit() {
        let (sender, mut mailbox) = mailbox(10).unwrap();
        assert_eq!(sender.try_send("six", 6), Ok(()));
        assert_eq!(sender.try_send("five", 5), Err("five"));
        assert_eq!(sender.try_send("four", 4), Ok(()));
        sender.send_reserved("reply", 100);
        assert_eq!(sender.try_send("none", 0), Err("none"), "over the bound by its reply");
        assert_eq!((sender.queued_bytes(), mailbox.queued()), (110, 3));
        assert_eq!(sender.try_send("huge", usize::MAX), Err("huge"));

        let mut received = Vec::new();
        assert!(mailbox.drain(1, &mut received));
        assert_eq!((mailbox.queued_bytes(), mailbox.queued()), (104, 2));
        assert!(!mailbox.drain(100, &mut received));
        assert_eq!(received, ["six", "four", "reply"]);
        assert_eq!(sender.try_send("ten", 10), Ok(()));
    }

    #[test]
    fn wake_ups_are_joined_and_stand_until_all_is_received() {
        let (sender, mut mailbox) = mailbox(100).unwrap();
        let now = Some(Duration::ZERO);
        assert!(!is_readable(&mailbox, now));
        for number in 0..3 {
            sender.try_send(number, 1).unwrap();
        }
        let mut received = Vec::new();
        for left in [2, 1] {
            assert!(is_readable(&mailbox, now));
            assert!(mailbox.drain(1, &mut received));
            assert_eq!(mailbox.queued(), left);
        }
        assert!(is_readable(&mailbox, now));
        assert!(!mailbox.drain(1, &mut received));
        assert!(!is_readable(&mailbox, now));
        assert!(!mailbox.drain(1, &mut received), "nothing is no harm");
        sender.try_send(3, 1).unwrap();
        assert!(is_readable(&mailbox, now));
    }

    #[test]
    fn a_mailbox_that_is_gone_gives_back() {
        let (sender, mailbox) = mailbox(100).unwrap();
        drop(mailbox);
        assert_eq!(sender.try_send(1, 60), Err(1));
        assert_eq!(sender.try_send(2, 60), Err(2), "room is given back too");
        sender.send_reserved(3, 1);
        assert_eq!(sender.queued_bytes(), 1 - 1);
    }

    /// The receiver waits without a time limit: one lost wake-up and this test hangs. Small
    /// bounds and drains of changing sizes make it wait, be refused, and leave things behind.
    #[test]
    fn no_wake_up_is_lost_and_each_sender_keeps_its_order() {
        const SENDERS: u64 = 4;
        const EACH: u64 = 50_000;
        let (sender, mut mailbox) = mailbox::<(u64, u64)>(64).unwrap();
        let epoll = Epoll::new().unwrap();
        epoll.add(mailbox.wake_fd(), 0, Interest::Read).unwrap();
        std::thread::scope(|scope| {
            for id in 0..SENDERS {
                let sender = sender.clone();
                scope.spawn(move || {
                    for number in 0..EACH {
                        if number % 7 == 0 {
                            sender.send_reserved((id, number), 3);
                            continue;
                        }
                        let mut item = (id, number);
                        while let Err(back) = sender.try_send(item, 1) {
                            item = back;
                            std::thread::yield_now();
                        }
                    }
                });
            }
            let mut events = Events::with_capacity(1);
            let mut next = [0; SENDERS as usize];
            let mut received = Vec::new();
            let mut turn = 0;
            while next.iter().sum::<u64>() < SENDERS * EACH {
                epoll.wait(&mut events, None).unwrap();
                turn += 1;
                mailbox.drain(turn % 20, &mut received);
                for (id, number) in received.drain(..) {
                    assert_eq!(number, next[id as usize]);
                    next[id as usize] += 1;
                }
            }
        });
        assert_eq!((mailbox.queued(), mailbox.queued_bytes()), (0, 0));
    }
}
