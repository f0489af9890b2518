//! A bell: wakes tasks of one thread. Never crosses threads, never waits by the clock.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

/// Wakes tasks of this thread. Stays rung until unrung.
#[derive(Default)]
pub struct Bell {
    rung: Cell<bool>,
    /// How often it was heard, so that nobody misses one who waits.
    wakes: Cell<u32>,
    waiting: RefCell<slab::Slab<Waker>>,
}

impl Bell {
    pub fn ring(&self) {
        self.rung.set(true);
        self.wake();
    }

    /// Wakes those who wait, without staying rung.
    pub fn wake(&self) {
        self.wakes.set(self.wakes.get().wrapping_add(1));
        for (_, waker) in self.waiting.borrow().iter() {
            waker.wake_by_ref();
        }
    }

    pub fn unring(&self) {
        self.rung.set(false);
    }

    pub fn is_rung(&self) -> bool {
        self.rung.get()
    }

    /// Waits until the bell is rung, or those who wait are woken.
    pub fn wait(&self) -> Hearing<'_> {
        Hearing { bell: self, heard: self.wakes.get(), place: None }
    }
}

/// Waits for a bell. Leaves nothing behind when it is dropped.
pub struct Hearing<'b> {
    bell: &'b Bell,
    heard: u32,
    place: Option<usize>,
}

impl Future for Hearing<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.bell.rung.get() || self.bell.wakes.get() != self.heard {
            return Poll::Ready(());
        }
        let mut waiting = self.bell.waiting.borrow_mut();
        match self.place.and_then(|place| waiting.get_mut(place)) {
            Some(waker) => waker.clone_from(cx.waker()),
            None => {
                let place = waiting.insert(cx.waker().clone());
                drop(waiting);
                self.place = Some(place);
            }
        }
        Poll::Pending
    }
}

impl Drop for Hearing<'_> {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            self.bell.waiting.borrow_mut().try_remove(place);
        }
    }
}
