//! What workers and the main thread tell the operator's thread: answers to what it asked by errands, and what concerns its
//! own life. Owns the way there. Never knows what is answered.
//!
//! Nothing that wakes another thread by itself may cross to a worker and be used or dropped there: such wake-ups write to
//! a descriptor by its number, which in a worker's own table of files is another file, a client's socket perhaps. So a
//! worker holds only the number of whoever waits, and what it says goes through a mailbox, whose eventfd all tables share.

use std::any::Any;
use std::io;
use std::sync::Mutex;

use super::mailbox::{Mailbox, Sender, mailbox};

/// One thing told.
pub enum Report {
    /// For whoever waits under the number.
    Answer { number: u64, body: Body },
    /// Another process takes this one's place, its operator's address included.
    HandOver,
    /// The node ends.
    End,
}

pub type Body = Box<dyn Any + Send>;

/// The way to the operator's thread. Where there is none, what is told is dropped. No more is told than was asked for, so
/// its bytes are not counted.
pub struct Reports {
    sender: Sender<Report>,
    /// Until that thread takes it.
    mailbox: Mutex<Option<Mailbox<Report>>>,
}

impl Reports {
    /// Makes the mailbox; by main, before any worker starts.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn new() -> io::Result<Self> {
        let (sender, mailbox) = mailbox(0)?;
        Ok(Self { sender, mailbox: Mutex::new(Some(mailbox)) })
    }

    /// The number of the eventfd that all tables of files share.
    pub fn wake_fd(&self) -> i32 {
        self.mailbox.lock().ok().and_then(|mailbox| mailbox.as_ref().map(Mailbox::wake_fd)).unwrap_or(-1)
    }

    /// The end where all arrives; once.
    pub fn take_mailbox(&self) -> Option<Mailbox<Report>> {
        self.mailbox.lock().ok()?.take()
    }

    pub fn send(&self, report: Report) {
        self.sender.send_reserved(report, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_arrives_in_order_while_somebody_hears() {
        let reports = Reports::new().expect("a mailbox");
        assert!(reports.wake_fd() >= 0);
        let mut mailbox = reports.take_mailbox().expect("the first has it");
        assert!(reports.take_mailbox().is_none());
        reports.send(Report::Answer { number: 2, body: Box::new(7_u32) });
        reports.send(Report::HandOver);
        reports.send(Report::End);
        let mut got = Vec::new();
        assert!(!mailbox.drain(10, &mut got));
        let [Report::Answer { number: 2, body }, Report::HandOver, Report::End] = &got[..] else {
            panic!("another order")
        };
        assert_eq!(body.downcast_ref(), Some(&7_u32));
        drop(mailbox);
        reports.send(Report::End);
    }
}
