//! Someone who was let in, as the connections of one worker share them: one object, whatever number of connections, workers
//! and tickets refer to it, and its bytes count until the last of them lets go.

use std::ops::Deref;
use std::rc::Rc;
use std::sync::Arc;

use crate::domain::auth::Bearer;

use super::tally::{Tally, Weight};

/// A bearer, and what it weighs.
#[derive(Debug)]
pub struct Claims {
    bearer: Bearer,
    weight: Weight,
}

impl Claims {
    pub fn new(bearer: Bearer, tally: &Tally) -> Self {
        let weight = tally.weigh(bearer.kept_bytes());
        Self { bearer, weight }
    }

    pub fn bytes(&self) -> usize {
        self.weight.bytes()
    }
}

impl Deref for Claims {
    type Target = Bearer;

    fn deref(&self) -> &Bearer {
        &self.bearer
    }
}

/// Claims that this worker has. A connection more costs no count that workers share: what is counted twice is meant.
#[derive(Debug, Clone)]
#[allow(clippy::redundant_allocation)]
pub struct Caller(Rc<Arc<Claims>>);

impl Caller {
    pub fn new(bearer: Bearer, tally: &Tally) -> Self {
        Self::of(Arc::new(Claims::new(bearer, tally)))
    }

    pub fn of(claims: Arc<Claims>) -> Self {
        Self(Rc::new(claims))
    }

    /// To be taken to another worker, or kept for all.
    pub fn claims(&self) -> &Arc<Claims> {
        &self.0
    }

    /// Whether it is the same object.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// What would be given back for each of those who share it.
    pub fn part_bytes(&self) -> usize {
        self.0.bytes() / (Rc::strong_count(&self.0) * Arc::strong_count(&self.0)).max(1)
    }
}

impl Deref for Caller {
    type Target = Bearer;

    fn deref(&self) -> &Bearer {
        &self.0
    }
}
