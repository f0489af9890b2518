//! Who someone is and what they may do: what a token, an API key or a rule for strangers comes to once it is verified.
//! Owns the decision about a channel and an act. Never reads tokens, keys or clocks.

use super::channel::{Name, NameError, Pattern};

/// What someone does to a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Act {
    Subscribe,
    Publish,
    Delete,
}

impl Act {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Subscribe => "subscribe",
            Self::Publish => "publish",
            Self::Delete => "delete",
        }
    }
}

/// How someone showed who they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// They did not.
    None,
    Token,
    ApiKey,
}

impl Proof {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Token => "token",
            Self::ApiKey => "api_key",
        }
    }
}

/// Channels that one may do something to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Grants {
    pub subscribe: Vec<Pattern>,
    pub publish: Vec<Pattern>,
    pub delete: Vec<Pattern>,
}

impl Grants {
    /// Everything, to everyone: what holds where no authentication is configured.
    pub fn all() -> Self {
        let every = || Pattern::parse("**").map(|pattern| vec![pattern]).unwrap_or_default();
        Self { subscribe: every(), publish: every(), delete: every() }
    }

    pub fn of(&self, act: Act) -> &[Pattern] {
        match act {
            Act::Subscribe => &self.subscribe,
            Act::Publish => &self.publish,
            Act::Delete => &self.delete,
        }
    }

    pub fn cover(&self, act: Act, name: &Name) -> bool {
        self.of(act).iter().any(|pattern| pattern.matches(name.as_str()))
    }

    fn kept_bytes(&self) -> usize {
        let lists = [&self.subscribe, &self.publish, &self.delete];
        lists.into_iter().flatten().map(Pattern::kept_bytes).sum()
    }
}

/// Someone, verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bearer {
    pub proof: Proof,
    /// `sub`; of an API key its name.
    pub subject: Option<Box<str>>,
    /// `jti`
    pub token_id: Option<Box<str>>,
    /// `iat`, in seconds since 1970.
    pub issued_s: Option<u64>,
    /// `exp`, in seconds since 1970; `None`: never.
    pub expires_s: Option<u64>,
    /// SHA-256 of the token: names it where the token itself must not be.
    pub digest: [u8; 32],
    pub grants: Grants,
}

impl Bearer {
    pub fn may(&self, act: Act, name: &Name) -> bool {
        self.grants.cover(act, name)
    }

    /// Memory that it takes.
    pub fn kept_bytes(&self) -> usize {
        let texts = self.subject.iter().chain(&self.token_id).map(|text| text.len()).sum::<usize>();
        // With what allocators and counts of references take.
        size_of::<Self>() + 6 * size_of::<usize>() + texts + self.grants.kept_bytes()
    }

    pub fn has_expired(&self, now_s: u64) -> bool {
        self.expires_s.is_some_and(|expires_s| expires_s <= now_s)
    }
}

/// A channel pattern of a token, with `{sub}` in it replaced by the subject: literally, and as one segment. `None`: the
/// pattern matches nothing, because the subject is none, or could not be one segment of a name.
///
/// # Errors
/// [`NameError`] of a pattern that is none.
pub fn pattern_for(pattern: &str, subject: Option<&str>) -> Result<Option<Pattern>, NameError> {
    if !pattern.contains("{sub}") {
        return Pattern::parse(pattern).map(Some);
    }
    // What it is with any subject must be right, whoever comes with it.
    Pattern::parse(&pattern.replace("{sub}", "s"))?;
    let Some(subject) = subject.filter(|sub| !sub.is_empty() && !sub.contains(['/', '*', ','])) else {
        return Ok(None);
    };
    // The subject may not make a segment of the pattern's own mean something else, nor one that no name has.
    Ok(Pattern::parse(&pattern.replace("{sub}", subject)).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_subject_stands_for_itself_alone() {
        for (pattern, subject, name, want) in [
            ("user/{sub}", Some("anna"), "user/anna", true),
            ("user/{sub}", Some("anna"), "user/bert", false),
            ("user/{sub}/**", Some("anna"), "user/anna/inbox", true),
            ("user-{sub}", Some("anna"), "user-anna", true),
            ("user/{sub}", Some("*"), "user/bert", false),
            ("user/{sub}", Some("**"), "user/bert", false),
            ("user/{sub}", Some("a/b"), "user/a/b", false),
            ("user/{sub}", Some("a,b"), "user/a,b", false),
            ("user/{sub}", Some(".."), "user/..", false),
            ("user/{sub}", Some(""), "user/", false),
            ("user/{sub}", None, "user/{sub}", false),
            ("{sub}", Some("$sys"), "$sys", false),
            ("news", None, "news", true),
        ] {
            let pattern = pattern_for(pattern, subject).expect("a pattern");
            assert_eq!(pattern.is_some_and(|pattern| pattern.matches(name)), want, "{subject:?} {name}");
        }
        assert!(pattern_for("a/**/{sub}", Some("x")).is_err());
    }
}
