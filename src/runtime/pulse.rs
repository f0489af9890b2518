//! Whether every worker still does its work: each is asked, by mail, and answers when it comes to that letter. What holds
//! a worker up, be it a loop without end or a system call, keeps it from answering.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::node::Node;
use super::state::State;

/// Who owes an answer.
#[derive(Debug)]
pub struct Pulse {
    owes: Vec<Arc<AtomicBool>>,
}

/// Answered when it is dropped, read or not: the mail of a worker that has ended is thrown away.
struct Question(Arc<AtomicBool>);

impl Drop for Question {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl Pulse {
    pub fn new(workers: usize) -> Self {
        Self { owes: (0..workers).map(|_| Arc::default()).collect() }
    }

    /// Asks all, once all have answered.
    pub fn ask(&self, node: &Node) {
        node.on_each_worker(|worker| {
            let owes = &self.owes[usize::from(worker)];
            owes.store(true, Ordering::Release);
            let question = Question(Arc::clone(owes));
            move |_: &mut State| drop(question)
        });
    }

    /// Workers that have not answered since.
    pub fn silent(&self) -> Vec<usize> {
        let owes = self.owes.iter().enumerate();
        owes.filter(|(_, owes)| owes.load(Ordering::Acquire)).map(|(worker, _)| worker).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_a_question_gone() {
        let pulse = Pulse::new(3);
        assert_eq!(pulse.silent(), [0; 0]);
        let questions: Vec<Question> = (pulse.owes.iter())
            .map(|owes| {
                owes.store(true, Ordering::Release);
                Question(Arc::clone(owes))
            })
            .collect();
        assert_eq!(pulse.silent(), [0, 1, 2]);
        let mut questions = questions.into_iter();
        drop(questions.next());
        assert_eq!(pulse.silent(), [1, 2]);
        drop(questions);
        assert_eq!(pulse.silent(), [0; 0]);
    }
}
