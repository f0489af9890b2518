//! The policy of one worker: what it serves connections with, and the way in from the runtime.

use std::rc::Rc;
use std::sync::Arc;

use crate::domain::channel::Name;
use crate::domain::cursor::Cursor;
use crate::domain::home::{PublishRefusal, Published};
use crate::runtime::admission::Turned;
use crate::runtime::entry::{ConnId, HeldPoll};
use crate::runtime::holder::Last;
use crate::runtime::node::Node;
use crate::runtime::running::request_bytes;
use crate::runtime::settings::Settings;
use crate::runtime::state::{Frame, Socket};
use crate::runtime::stream::Stream;
use crate::runtime::tally::Tally;
use crate::runtime::worker::{Done, Edge, LocalTask, Worker};

use super::at_once;
use super::auth::Auth;
use super::conn::Conn;
use super::doorman::Doorman;
use super::frames;
use super::opening;
use super::origin::Gate;
use super::read::Remembered;
use super::turnstile;

/// The policy of one worker.
pub struct Site {
    pub(super) node: Arc<Node>,
    pub(super) gate: Gate,
    pub(super) doorman: Doorman,
    pub(super) remembered: Remembered,
}

impl Site {
    pub fn new(node: &Arc<Node>, auth: &Arc<Auth>) -> Self {
        let doorman = Doorman::new(auth, !node.settings.auth.is_configured(), &node.memory);
        let remembered = Remembered::new(doorman.tally());
        Self { node: Arc::clone(node), gate: Gate::new(&node.settings), doorman, remembered }
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.node.settings
    }
}

impl Edge for Site {
    fn claims(&self) -> Tally {
        self.doorman.tally().clone()
    }

    fn forget(&self, worker: &Rc<Worker>) {
        self.doorman.forget();
        self.remembered.forget();
        if worker.with(|state| state.index) == 0 {
            let now_s = self.node.clock.now_ms() / 1_000;
            self.doorman.auth().tickets.give_back(&self.node.memory, now_s);
        }
    }

    fn expect(&self, worker: &Rc<Worker>, input: &[u8]) {
        at_once::expect(worker, input);
    }

    fn serve_at_once(&self, worker: &Rc<Worker>, conn: ConnId, input: &[u8], out: &mut Vec<u8>) -> Done {
        at_once::serve(self, worker, conn, input, out)
    }

    fn open_at_once(&self, worker: &Rc<Worker>, newcomer: &mut Option<Socket>, input: &[u8]) {
        opening::open(self, worker, newcomer, input);
    }

    fn turn_away(&self, worker: &Rc<Worker>, input: &[u8], out: &mut Vec<u8>) -> Turned {
        turnstile::turn_away_unread(self, worker, input, out)
    }

    fn write_published(
        &self,
        worker: &Rc<Worker>,
        name: &Name,
        result: Result<Published, PublishRefusal>,
        out: &mut Vec<u8>,
    ) -> u16 {
        at_once::write_published(self, worker, name, result, out)
    }

    fn serve(self: Rc<Self>, worker: Rc<Worker>, socket: Socket, input: Vec<u8>) -> LocalTask {
        Box::pin(async move {
            let mut stream = Stream::new(Rc::clone(&worker), socket);
            // The first line is the target, nearly.
            stream.begin_work(request_bytes(memchr::memchr(b'\n', &input).unwrap_or(input.len())));
            Conn::new(self, worker, stream, input).run().await;
        })
    }

    fn repoll(
        self: Rc<Self>,
        worker: Rc<Worker>,
        socket: Socket,
        names: Vec<Name>,
        cursors: Vec<Cursor>,
        held: Box<HeldPoll>,
    ) -> LocalTask {
        Box::pin(async move {
            let mut stream = Stream::new(Rc::clone(&worker), socket);
            stream.begin_work(request_bytes(names.iter().map(|name| name.as_str().len()).sum()));
            Conn::new(self, worker, stream, Vec::new()).repoll(names, cursors, held).await;
        })
    }

    fn act(
        self: Rc<Self>,
        worker: Rc<Worker>,
        conn: ConnId,
        raw: Option<Name>,
        frames: Vec<Frame>,
        last: Option<Last>,
    ) -> LocalTask {
        Box::pin(frames::act(self, worker, conn, raw, frames, last))
    }
}
