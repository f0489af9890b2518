//! What a `pushline.v1` client, or a line of a batch, is told when an operation is refused.
//! Owns the one closed list of codes. The same text stands in the documentation.

/// `code` of a `pushline.v1` error. The connection stays open after each of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    /// Not a JSON object, an unknown `type`, a member missing or standing twice, `seq` not a number. Fix the client.
    BadFrame,
    /// `channel` is no channel name.
    BadChannel,
    /// `cursor` is not of the form of a cursor. Subscribe without it, or with `history`.
    BadCursor,
    /// `history` is not a whole number, or stands beside `cursor`.
    BadHistory,
    /// `data` and `base64` both or neither, or not what they should be.
    BadData,
    /// `event` is no event name.
    BadEvent,
    /// `ttl` is not a whole number of seconds.
    BadTtl,
    /// `key` is not 1 to 128 bytes.
    BadKey,
    /// This connection has the channel already. Nothing changed.
    AlreadySubscribed,
    /// This connection does not have the channel. Nothing changed.
    NotSubscribed,
    /// The connection has as many channels as one may. Unsubscribe first, or open another.
    TooManySubscriptions,
    /// The data is larger than `limits.message_bytes`. Publish less at once.
    MessageTooLarge,
    /// The key was used for a different message in the last two minutes. Use a new key.
    KeyConflict,
    /// No room for new keys. Publish again later, with the same key.
    KeyStoreFull,
    /// No valid token yet, or the token was refused. Send `auth` with a good one.
    Unauthorized,
    /// The token does not cover this channel or operation, or is for another subject.
    Forbidden,
    /// A subscription ended because the connection's token no longer covers its channel.
    SubscriptionEnded,
    /// The server has more to do than it can. Try again later.
    Overloaded,
    /// The server is going away. Publish again after reconnecting.
    Draining,
    /// Too many operations by this client. Slow down.
    RateLimited,
    /// A fault of the server. Trying again may help.
    Internal,
}

impl ErrorCode {
    /// Every code, in the order of the documentation.
    pub const ALL: [Self; 21] = [
        Self::BadFrame,
        Self::BadChannel,
        Self::BadCursor,
        Self::BadHistory,
        Self::BadData,
        Self::BadEvent,
        Self::BadTtl,
        Self::BadKey,
        Self::AlreadySubscribed,
        Self::NotSubscribed,
        Self::TooManySubscriptions,
        Self::MessageTooLarge,
        Self::KeyConflict,
        Self::KeyStoreFull,
        Self::Unauthorized,
        Self::Forbidden,
        Self::SubscriptionEnded,
        Self::Overloaded,
        Self::Draining,
        Self::RateLimited,
        Self::Internal,
    ];

    /// As it stands on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BadFrame => "bad_frame",
            Self::BadChannel => "bad_channel",
            Self::BadCursor => "bad_cursor",
            Self::BadHistory => "bad_history",
            Self::BadData => "bad_data",
            Self::BadEvent => "bad_event",
            Self::BadTtl => "bad_ttl",
            Self::BadKey => "bad_key",
            Self::AlreadySubscribed => "already_subscribed",
            Self::NotSubscribed => "not_subscribed",
            Self::TooManySubscriptions => "too_many_subscriptions",
            Self::MessageTooLarge => "message_too_large",
            Self::KeyConflict => "key_conflict",
            Self::KeyStoreFull => "key_store_full",
            Self::Unauthorized => "unauthorized",
            Self::Forbidden => "forbidden",
            Self::SubscriptionEnded => "subscription_ended",
            Self::Overloaded => "overloaded",
            Self::Draining => "draining",
            Self::RateLimited => "rate_limited",
            Self::Internal => "internal",
        }
    }
}

/// A refused operation: the code for programs, the detail (what was wrong, what would be right) for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    pub code: ErrorCode,
    pub detail: &'static str,
}

impl Refusal {
    pub const fn new(code: ErrorCode, detail: &'static str) -> Self {
        Self { code, detail }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn codes_are_distinct_and_plain() {
        let names: HashSet<_> = ErrorCode::ALL.iter().map(|code| code.as_str()).collect();
        assert_eq!(names.len(), ErrorCode::ALL.len());
        assert!(names.iter().all(|name| name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')));
    }
}
