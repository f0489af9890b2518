//! Somebody who is not let in: why, and who they are, where a signature that is good says so. Whoever signs a token as they
//! like is nobody.

use crate::domain::auth::Bearer;

use super::denied::Denied;

/// Why somebody is refused, and who that is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unwelcome {
    pub denied: Denied,
    pub who: Option<Box<Signed>>,
}

/// What a token with a good signature says of its holder, whatever else is wrong with it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Signed {
    pub subject: Option<Box<str>>,
    pub token_id: Option<Box<str>>,
}

impl Unwelcome {
    /// Somebody whose token was good once.
    pub fn of(denied: Denied, bearer: &Bearer) -> Self {
        let Bearer { subject, token_id, .. } = bearer;
        let who = Signed { subject: subject.clone(), token_id: token_id.clone() };
        Self { denied, who: Some(Box::new(who)) }
    }

    pub fn subject(&self) -> Option<&str> {
        self.who.as_ref()?.subject.as_deref()
    }

    pub fn token_id(&self) -> Option<&str> {
        self.who.as_ref()?.token_id.as_deref()
    }

    /// What whoever watches is told.
    pub fn why(&self) -> Box<str> {
        match self.token_id() {
            Some(token_id) => format!("{} (jti {token_id:?})", self.denied).into(),
            None => self.denied.why().into(),
        }
    }
}

impl From<Denied> for Unwelcome {
    fn from(denied: Denied) -> Self {
        Self { denied, who: None }
    }
}
