//! What one connection holds of the quotas: given back where it is dropped, with the connection, however that ends.
//! Owns on which accounts it counts: its socket's address, and, while it reads, its client's address and subject.

use std::sync::Arc;

use crate::domain::auth::Bearer;

use super::entry::{ConnId, Entry};
use super::ledger::Held;
use super::peer::Peer;
use super::quotas::{Begins, Limited, NODE, Quotas, Resource, Scope};
use super::state::State;

/// What one connection holds of the quotas. Dropped, it gives everything back.
#[derive(Debug)]
pub struct Share {
    quotas: Arc<Quotas>,
    /// The account on which the socket itself counts, as long as it is open.
    of_socket: Option<u128>,
    /// The accounts of the client that reads.
    pub(super) address: Option<u128>,
    /// A connection of this one is held.
    subject: Option<u128>,
    /// What reads counts as a connection of its address, beside the socket: a proxy's, which serves many.
    address_connection: bool,
    subscriptions: u32,
}

impl Share {
    pub(super) fn new(quotas: &Arc<Quotas>, of_socket: Option<u128>) -> Self {
        Self {
            quotas: Arc::clone(quotas),
            of_socket,
            address: None,
            subject: None,
            address_connection: false,
            subscriptions: 0,
        }
    }

    pub(super) fn begin(
        &mut self,
        client: &Peer,
        subject: Option<u128>,
        channels: usize,
        begins: Begins,
    ) -> Result<(), Limited> {
        let quotas = Arc::clone(&self.quotas);
        // One whose socket is its client's own was counted when it was accepted.
        if let Some(key) = self.address
            && self.of_socket.is_none()
            && !self.address_connection
        {
            quotas.take(Scope::Address, Held::Connections, key, 1, client)?;
            self.address_connection = true;
            if begins == Begins::Stream {
                quotas.draw(Scope::Address, Resource::ConnectionsPerSecond, key, 1, client)?;
            }
        }
        self.hold_subject(client, subject, begins)?;
        self.subscribe(client, channels)
    }

    /// Who the client is became known after it had begun to read.
    ///
    /// # Errors
    /// [`Limited`]; it holds nothing of the subject's.
    pub fn identify(&mut self, client: &Peer, bearer: &Bearer) -> Result<(), Limited> {
        let quotas = Arc::clone(&self.quotas);
        let (_, subject) = quotas.keys(client, Some(bearer));
        if subject == self.subject {
            return Ok(());
        }
        self.leave_subject();
        self.hold_subject(client, subject, Begins::Stream)?;
        if let Some(key) = self.subject.filter(|_| quotas.quotad(Scope::Subject).holds_subscriptions()) {
            let taken = quotas.take(Scope::Subject, Held::Subscriptions, key, self.subscriptions, client);
            if taken.is_err() {
                // Only the connection is held of it so far.
                self.subject = None;
                quotas.quotad(Scope::Subject).ledger.give(key, Held::Connections, 1);
            }
            taken?;
        }
        Ok(())
    }

    fn hold_subject(&mut self, client: &Peer, subject: Option<u128>, begins: Begins) -> Result<(), Limited> {
        let Some(key) = subject else { return Ok(()) };
        let quotas = Arc::clone(&self.quotas);
        if begins == Begins::Stream {
            quotas.draw(Scope::Subject, Resource::ConnectionsPerSecond, key, 1, client)?;
        }
        quotas.take(Scope::Subject, Held::Connections, key, 1, client)?;
        self.subject = Some(key);
        Ok(())
    }

    fn leave_subject(&mut self) {
        if let Some(key) = self.subject.take() {
            let ledger = &self.quotas.quotad(Scope::Subject).ledger;
            ledger.give(key, Held::Connections, 1);
            if self.quotas.quotad(Scope::Subject).holds_subscriptions() && self.subscriptions > 0 {
                ledger.give(key, Held::Subscriptions, self.subscriptions);
            }
        }
    }

    /// The client reads so many channels more.
    ///
    /// # Errors
    /// [`Limited`]; it holds what it held.
    pub fn subscribe(&mut self, client: &Peer, channels: usize) -> Result<(), Limited> {
        let count = u32::try_from(channels).unwrap_or(u32::MAX);
        let accounts = self.subscription_accounts();
        for (taken, (scope, key)) in accounts.into_iter().flatten().enumerate() {
            if let Err(limited) = self.quotas.take(scope, Held::Subscriptions, key, count, client) {
                for (scope, key) in accounts.into_iter().flatten().take(taken) {
                    self.quotas.quotad(scope).ledger.give(key, Held::Subscriptions, count);
                }
                return Err(limited);
            }
        }
        self.subscriptions += count;
        Ok(())
    }

    /// It reads so many less.
    pub fn unsubscribe(&mut self, channels: usize) {
        let count = u32::try_from(channels).unwrap_or(u32::MAX).min(self.subscriptions);
        if count == 0 {
            return;
        }
        self.subscriptions -= count;
        for (scope, key) in self.subscription_accounts().into_iter().flatten() {
            self.quotas.quotad(scope).ledger.give(key, Held::Subscriptions, count);
        }
    }

    /// Where its subscriptions count.
    fn subscription_accounts(&self) -> [Option<(Scope, u128)>; 3] {
        let quotas = &self.quotas;
        [
            self.address
                .filter(|_| quotas.quotad(Scope::Address).holds_subscriptions())
                .map(|key| (Scope::Address, key)),
            self.subject
                .filter(|_| quotas.quotad(Scope::Subject).holds_subscriptions())
                .map(|key| (Scope::Subject, key)),
            quotas.quotad(Scope::Node).holds_subscriptions().then_some((Scope::Node, NODE)),
        ]
    }

    /// The client reads no more; the socket may serve another request.
    pub fn end_reading(&mut self) {
        let subscriptions = self.subscriptions as usize;
        self.unsubscribe(subscriptions);
        self.leave_subject();
        if let Some(key) = self.address.take()
            && std::mem::take(&mut self.address_connection)
        {
            self.quotas.quotad(Scope::Address).ledger.give(key, Held::Connections, 1);
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.end_reading();
        if let Some(key) = self.of_socket {
            self.quotas.quotad(Scope::Address).ledger.give(key, Held::Connections, 1);
        }
    }
}

impl State {
    /// The client of a held connection begins a poll that waits.
    ///
    /// # Errors
    /// [`Limited`]
    pub fn begin_reading(&mut self, conn: ConnId, client: Peer, channels: usize) -> Result<(), Limited> {
        let Some(quotas) = self.node.quotas.clone() else {
            if let Some(entry) = self.conn_mut(conn) {
                entry.peer = client;
            }
            return Ok(());
        };
        let Some(entry) = self.conn_mut(conn) else { return Ok(()) };
        let Entry { share, bearer, .. } = entry;
        quotas.begin_reading(share, &client, bearer.as_deref(), channels, Begins::Poll)?;
        entry.peer = client;
        Ok(())
    }

    /// A connection that is told to leave reads no more: what it held is another's.
    pub fn end_reading(&mut self, conn: ConnId) {
        if let Some(Entry { share: Some(share), .. }) = self.conn_mut(conn) {
            share.end_reading();
        }
    }

    /// A held connection becomes a stream of so many channels.
    ///
    /// # Errors
    /// [`Limited`]
    pub fn begin_stream(&mut self, conn: ConnId, channels: usize) -> Result<(), Limited> {
        let Some(quotas) = self.node.quotas.clone() else { return Ok(()) };
        let Some(Entry { share, bearer, peer, .. }) = self.conn_mut(conn) else { return Ok(()) };
        quotas.begin_reading(share, peer, bearer.as_deref(), channels, Begins::Stream)
    }

    /// Who a stream's client is became known after it had begun to read: what it holds is its subject's too. One that
    /// reads nothing yet is counted when it begins.
    ///
    /// # Errors
    /// [`Limited`]
    pub fn count_for_subject(&mut self, conn: ConnId, bearer: &Bearer) -> Result<(), Limited> {
        match self.conn_mut(conn) {
            Some(Entry { share: Some(share), peer, flags, .. }) if !flags.waiting => {
                share.identify(peer, bearer)
            }
            _ => Ok(()),
        }
    }

    /// A connection is about to read one channel more.
    ///
    /// # Errors
    /// [`Limited`]
    pub fn begin_subscription(&mut self, conn: ConnId) -> Result<(), Limited> {
        match self.conn_mut(conn) {
            Some(Entry { share: Some(share), peer, .. }) => share.subscribe(peer, 1),
            _ => Ok(()),
        }
    }

    /// It does not read it after all.
    pub fn give_subscription_back(&mut self, conn: ConnId) {
        if let Some(Entry { share: Some(share), .. }) = self.conn_mut(conn) {
            share.unsubscribe(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::auth::Proof;
    use crate::runtime::quotas::tests::{bearer, limited, of, peer};

    #[test]
    fn behind_a_proxy_what_reads_counts_as_its_clients() {
        let quotas = of(|limits| limits.address.connections = Some(1));
        let proxy = peer("10.0.0.1");
        let mut shares: Vec<_> = (0..3).map(|_| quotas.admit(&proxy, true).expect("a proxy")).collect();
        let client = peer("192.0.2.1");
        let begin = |share: &mut Option<Box<Share>>, client: &Peer| {
            quotas.begin_reading(share, client, None, 1, Begins::Poll)
        };
        begin(&mut shares[0], &client).expect("its first");
        assert_eq!(begin(&mut shares[1], &client), limited(Scope::Address, Resource::Connections));
        begin(&mut shares[1], &peer("192.0.2.2")).expect("another client");
        shares[0].as_mut().expect("held").end_reading();
        begin(&mut shares[2], &client).expect("its first has ended");
        drop(shares);
        assert_eq!(quotas.accounts(), (0, 0));
    }

    #[test]
    fn subscriptions_count_for_all_three() {
        let quotas = of(|limits| {
            limits.address.subscriptions = Some(4);
            limits.subject.subscriptions = Some(3);
            limits.node.subscriptions = Some(6);
        });
        let anna = bearer("anna", Proof::Token);
        let (home, work) = (peer("192.0.2.1"), peer("192.0.2.2"));
        let mut first = quotas.admit(&home, false).expect("no limit of connections");
        quotas.begin_reading(&mut first, &home, Some(&anna), 2, Begins::Stream).expect("two");
        let share = first.as_mut().expect("held");
        share.subscribe(&home, 1).expect("a third");
        assert_eq!(share.subscribe(&home, 1), limited(Scope::Subject, Resource::Subscriptions));
        let mut second = None;
        let begun = quotas.begin_reading(&mut second, &work, Some(&anna), 1, Begins::Stream);
        assert_eq!(begun, limited(Scope::Subject, Resource::Subscriptions));
        let begun = quotas.begin_reading(&mut second, &home, None, 2, Begins::Stream);
        assert_eq!(begun, limited(Scope::Address, Resource::Subscriptions));
        quotas.begin_reading(&mut second, &work, None, 3, Begins::Stream).expect("another address");
        let mut third = None;
        let begun = quotas.begin_reading(&mut third, &peer("192.0.2.3"), None, 1, Begins::Stream);
        assert_eq!(begun, limited(Scope::Node, Resource::Subscriptions));
        share.unsubscribe(1);
        quotas.begin_reading(&mut third, &peer("192.0.2.3"), None, 1, Begins::Stream).expect("room");
        drop((first, second, third));
        assert_eq!((quotas.accounts(), quotas.quotad(Scope::Node).ledger.len()), ((0, 0), 0));
    }

    #[test]
    fn who_says_later_who_they_are_counts_from_then_on() {
        let quotas = of(|limits| {
            limits.subject.connections = Some(1);
            limits.subject.subscriptions = Some(2);
        });
        let (anna, bert) = (bearer("anna", Proof::Token), bearer("bert", Proof::Token));
        let home = peer("192.0.2.1");
        let (mut first, mut second) = (None, None);
        quotas.begin_reading(&mut first, &home, None, 2, Begins::Stream).expect("a stranger");
        quotas.begin_reading(&mut second, &home, None, 3, Begins::Stream).expect("a stranger");
        let (first, second) = (first.as_mut().expect("held"), second.as_mut().expect("held"));
        first.identify(&home, &anna).expect("one");
        first.identify(&home, &anna).expect("the same again");
        assert_eq!(second.identify(&home, &anna), limited(Scope::Subject, Resource::Connections));
        assert_eq!(second.identify(&home, &bert), limited(Scope::Subject, Resource::Subscriptions));
        second.unsubscribe(1);
        second.identify(&home, &bert).expect("two channels");
        assert_eq!(second.subscribe(&home, 1), limited(Scope::Subject, Resource::Subscriptions));
        first.end_reading();
        second.end_reading();
        assert_eq!(quotas.accounts(), (0, 0));
    }
}
