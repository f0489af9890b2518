//! Channel names and patterns over them.
//! Owns the rules for names: 1 to 200 bytes of UTF-8, no control characters, segments split by
//! `/`, none empty, `.`, `..`, `*` or `**`, no comma. Never percent-decodes: names come here decoded.

use std::fmt;
use std::sync::Arc;

/// Most bytes in a name.
pub const NAME_BYTES_MAX: usize = 200;
/// Most channels named by one request.
pub const CHANNELS_PER_REQUEST_MAX: usize = 64;

/// A checked channel name. Cheap to clone; one allocation shared by all that speak of the channel.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(Arc<str>);

/// Why a name is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameError {
    Empty,
    TooLong,
    Control,
    Comma,
    EmptySegment,
    DotSegment,
    WildcardSegment,
    /// First segments that begin with `$` belong to the server.
    Reserved,
}

impl NameError {
    /// What was wrong and what would be right, for the client.
    pub const fn detail(self) -> &'static str {
        match self {
            Self::Empty => "a channel name is empty; it needs 1 to 200 bytes of UTF-8",
            Self::TooLong => "a channel name is longer than 200 bytes after percent-decoding; shorten it",
            Self::Control => "a channel name has a control character; use printable characters",
            Self::Comma => "a channel name has a comma; commas only separate channels in a URL",
            Self::EmptySegment => {
                "a channel name has an empty segment; remove the leading, trailing or double '/'"
            }
            Self::DotSegment => "a channel name has the segment '.' or '..'; choose another",
            Self::WildcardSegment => {
                "a channel name has the segment '*' or '**', which are kept for patterns; choose another"
            }
            Self::Reserved => {
                "a channel name begins with '$', which belongs to the server; choose another first segment"
            }
        }
    }
}

impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.detail())
    }
}

impl Name {
    /// Checks one name, already percent-decoded.
    ///
    /// # Errors
    /// [`NameError`] with the first rule that it breaks.
    pub fn parse(name: &str) -> Result<Self, NameError> {
        if !is_plain(name.as_bytes()) {
            check(name)?;
        }
        Ok(Self(Arc::from(name)))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Whether a name breaks no rule, at one look: most do not. False may be wrong.
fn is_plain(name: &[u8]) -> bool {
    let mut begins = true;
    for byte in name {
        match byte {
            b'/' if !begins => begins = true,
            b'/' | b'.' | b'*' | b'$' if begins => return false,
            b',' | 0..b' ' | 0x7f.. => return false,
            _ => begins = false,
        }
    }
    !begins && name.len() <= NAME_BYTES_MAX
}

/// The first rule that a name breaks.
fn check(name: &str) -> Result<(), NameError> {
    if name.is_empty() {
        return Err(NameError::Empty);
    }
    if name.len() > NAME_BYTES_MAX {
        return Err(NameError::TooLong);
    }
    if name.chars().any(char::is_control) {
        return Err(NameError::Control);
    }
    if name.contains(',') {
        return Err(NameError::Comma);
    }
    if name.starts_with('$') {
        return Err(NameError::Reserved);
    }
    name.split('/').try_for_each(|segment| match segment {
        "" => Err(NameError::EmptySegment),
        "." | ".." => Err(NameError::DotSegment),
        "*" | "**" => Err(NameError::WildcardSegment),
        _ => Ok(()),
    })
}

impl std::borrow::Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A pattern over names: segments, of which `*` stands for any one and a last `**` for one or more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    /// With `/` between them.
    segments: Box<str>,
    /// A last `**`.
    rest: bool,
}

impl Pattern {
    /// Parses a pattern.
    ///
    /// # Errors
    /// [`NameError`] of the first segment that could match no name; `**` before the end is `WildcardSegment`.
    pub fn parse(pattern: &str) -> Result<Self, NameError> {
        let (segments, rest) = match pattern.strip_suffix("**") {
            Some("") => return Ok(Self { segments: "".into(), rest: true }),
            Some(before) if before.ends_with('/') => (&before[..before.len() - 1], true),
            _ => (pattern, false),
        };
        for (at, segment) in segments.split('/').enumerate() {
            match segment {
                "**" => return Err(NameError::WildcardSegment),
                "*" => {}
                literal => {
                    // `$` is reserved in the first segment alone.
                    let later = literal.strip_prefix('$').filter(|rest| at > 0 && !rest.is_empty());
                    if literal != "$" || at == 0 {
                        Name::parse(later.unwrap_or(literal))?;
                    }
                }
            }
        }
        Ok(Self { segments: segments.into(), rest })
    }

    pub fn matches(&self, name: &str) -> bool {
        let mut parts = name.split('/');
        if !self.segments.is_empty() {
            for segment in self.segments.split('/') {
                match parts.next() {
                    Some(part) if segment == "*" || segment == part => {}
                    _ => return false,
                }
            }
        }
        parts.next().is_some() == self.rest
    }

    /// Memory that it takes.
    pub fn kept_bytes(&self) -> usize {
        // An allocator gives sixteen bytes at least, and keeps some for itself.
        size_of::<Self>() + 2 * size_of::<usize>() + self.segments.len().next_multiple_of(16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let long = "a".repeat(201);
        for (name, want) in [
            ("news", Ok(())),
            ("a/b/c", Ok(())),
            ("räksmörgås", Ok(())),
            ("a b", Ok(())),
            ("a/$b", Ok(())),
            ("...", Ok(())),
            ("", Err(NameError::Empty)),
            (&long[..200], Ok(())),
            (&long, Err(NameError::TooLong)),
            ("a\nb", Err(NameError::Control)),
            ("a\u{85}b", Err(NameError::Control)),
            ("a,b", Err(NameError::Comma)),
            ("/a", Err(NameError::EmptySegment)),
            ("a/", Err(NameError::EmptySegment)),
            ("a//b", Err(NameError::EmptySegment)),
            ("a/./b", Err(NameError::DotSegment)),
            ("..", Err(NameError::DotSegment)),
            ("a/*", Err(NameError::WildcardSegment)),
            ("**", Err(NameError::WildcardSegment)),
            ("$sys/x", Err(NameError::Reserved)),
        ] {
            assert_eq!(Name::parse(name).map(|_| ()), want, "{name:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn a_plain_name_breaks_no_rule(name in "[ab/.*$,é\\u{1}\\u{7f}\\u{85}]{0,8}|[ab/]{190,210}") {
            proptest::prop_assert!(!is_plain(name.as_bytes()) || check(&name).is_ok(), "{name:?}");
        }

        #[test]
        fn most_names_are_plain(name in "[a-z0-9_:-]{1,20}(/[a-z][a-z0-9.$*-]{0,8}){0,3}") {
            proptest::prop_assert!(is_plain(name.as_bytes()), "{name:?}");
        }
    }

    #[test]
    fn patterns() {
        for (pattern, name, want) in [
            ("news", "news", true),
            ("news", "news/a", false),
            ("news/*", "news/a", true),
            ("news/*", "news", false),
            ("news/*", "news/a/b", false),
            ("news/**", "news/a/b", true),
            ("news/**", "news", false),
            ("**", "anything/at/all", true),
            ("*/x", "a/x", true),
            ("*/x", "a/y", false),
            ("a/$b", "a/$b", true),
            ("a/$", "a/$", true),
        ] {
            assert_eq!(Pattern::parse(pattern).map(|p| p.matches(name)), Ok(want), "{pattern} {name}");
        }
        for (wrong, why) in [
            ("a/**/b", NameError::WildcardSegment),
            ("**/b", NameError::WildcardSegment),
            ("**/**", NameError::WildcardSegment),
            ("a//**", NameError::Empty),
            ("/**", NameError::Empty),
            ("", NameError::Empty),
            ("a/$/**/b", NameError::WildcardSegment),
        ] {
            assert_eq!(Pattern::parse(wrong), Err(why), "{wrong}");
        }
    }
}
