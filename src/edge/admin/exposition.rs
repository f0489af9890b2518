//! The numbers of a scrape in the words of OpenMetrics: each family's name, unit, help and series (`docs/admin.md` tells
//! what each means). Names end in their unit; times are seconds. A family is there with all its series from the first
//! scrape on, so that the first of anything is seen as an increase.

use std::fmt::Error;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;

use crate::runtime::close::{Reason, Transport};
use crate::runtime::quotas::{Resource, Scope};
use crate::runtime::stats::{BOUNDS_US, HandshakeFailure, Histogram, Refusal, Stats};

use super::census::Census;
use super::metrics::Scrape;
use super::own::Own;

/// A scrape to be written.
#[derive(Debug)]
pub struct Exposition(pub Scrape);

type Labels = Vec<(&'static str, String)>;

/// What a family is.
struct Family {
    name: &'static str,
    unit: Option<Unit>,
    help: &'static str,
}

const fn plain(name: &'static str, help: &'static str) -> Family {
    Family { name, unit: None, help }
}

const fn bytes(name: &'static str, help: &'static str) -> Family {
    Family { name, unit: Some(Unit::Bytes), help }
}

const fn seconds(name: &'static str, help: &'static str) -> Family {
    Family { name, unit: Some(Unit::Seconds), help }
}

impl Collector for Exposition {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), Error> {
        let mut page = Page { scrape: &self.0, encoder: &mut encoder };
        page.node()?;
        page.connections()?;
        page.handshakes()?;
        page.requests()?;
        page.quotas()?;
        page.messages()?;
        page.fan_out()?;
        page.readers()?;
        page.stores()?;
        page.workers()
    }
}

/// The page as it is written.
struct Page<'p, 'e> {
    scrape: &'p Scrape,
    encoder: &'p mut DescriptorEncoder<'e>,
}

impl Page<'_, '_> {
    fn node(&mut self) -> Result<(), Error> {
        let node = &self.scrape.node.0;
        let (settings, phase) = (&node.settings, node.progress.phase());
        let workers = node.stats.len() as f64;
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        let build = plain("pushline_build", "The program that serves");
        self.family(&build, MetricType::Info)?.encode_info(&version)?;
        self.gauge(
            &plain("pushline_ready", "1 while the node wants new clients"),
            f64::from(u8::from(phase.is_ready())),
        )?;
        self.gauge(&plain("pushline_workers", "Worker threads"), workers)?;
        let limit = plain("pushline_connections_limit", "limits.connections");
        self.gauge(&limit, settings.limits.connections as f64)?;
        let own = Own::read();
        self.gauge(
            &bytes("process_resident_memory", "Memory that the process has"),
            own.resident_bytes as f64,
        )?;
        self.gauge(&seconds("process_start_time", "When the process began, since 1970"), own.started_s)?;
        let cpu = seconds("process_cpu", "CPU time of the process, user and system");
        self.family(&cpu, MetricType::Counter)?.encode_counter::<NoLabelSet, _, f64>(&own.cpu_s, None)
    }

    fn connections(&mut self) -> Result<(), Error> {
        let open = plain("pushline_connections", "Open connections, by what they are now");
        self.by_worker_and_transport(&open, MetricType::Gauge, Stats::open)?;
        let accepted = plain("pushline_connections_accepted", "Connections that were accepted");
        self.by_worker(&accepted, MetricType::Counter, |stats| stats.accepted.get())?;
        let opened = plain(
            "pushline_connections_opened",
            "Connections that became this: http when accepted, a stream when it opened, long_poll each time one was held",
        );
        self.by_worker_and_transport(&opened, MetricType::Counter, |stats, transport| match transport {
            Transport::Http => stats.accepted.get(),
            other => stats.began.get(other as usize),
        })?;
        let closed =
            plain("pushline_connections_closed", "Connections that ended, by what they were and why");
        let mut series = Vec::new();
        for transport in Transport::ALL {
            for &reason in Reason::ALL {
                let labels =
                    vec![("transport", transport.as_str().into()), ("reason", reason.as_str().into())];
                series.push((labels, self.sum(|stats| stats.closed_as(transport, reason))));
            }
        }
        self.series(&closed, MetricType::Counter, series)
    }

    fn requests(&mut self) -> Result<(), Error> {
        let answered = plain("pushline_requests", "Requests that were answered, by the class of the status");
        let of =
            |digit: usize| (vec![("status", format!("{digit}xx"))], self.sum(|stats| stats.answered(digit)));
        let series = (1..=5).map(of).collect();
        self.series(&answered, MetricType::Counter, series)?;
        let refused =
            plain("pushline_refusals", "What was refused because of the server's rules, limits or load");
        let of = |refusal: Refusal| {
            (vec![("reason", refusal.as_str().to_owned())], self.sum(|stats| stats.refused(refusal)))
        };
        let series = Refusal::ALL.into_iter().map(of).collect();
        self.series(&refused, MetricType::Counter, series)
    }

    /// By the key that decided. Who was refused is no label: there may be any number of them.
    fn quotas(&mut self) -> Result<(), Error> {
        let quotas = self.scrape.node.0.quotas.as_ref();
        let mut series = Vec::new();
        for scope in Scope::ALL {
            for limit in Resource::ALL {
                let labels = vec![("scope", scope.as_str().into()), ("limit", limit.as_str().into())];
                series.push((labels, quotas.map_or(0, |quotas| quotas.refused(scope, limit))));
            }
        }
        let refused =
            plain("pushline_quota_refusals", "What was refused by a quota, by the key that decided");
        self.series(&refused, MetricType::Counter, series)?;
        let (addresses, subjects) = quotas.map_or((0, 0), |quotas| quotas.accounts());
        let accounts = plain("pushline_quota_accounts", "Clients of which quotas keep count just now");
        let series = [(Scope::Address, addresses), (Scope::Subject, subjects)];
        let series = series.map(|(scope, count)| (vec![("scope", scope.as_str().into())], count as u64));
        self.series(&accounts, MetricType::Gauge, series.into())
    }

    fn handshakes(&mut self) -> Result<(), Error> {
        let begun = plain("pushline_tls_handshakes_begun", "TLS handshakes that were awaited");
        self.by_worker(&begun, MetricType::Counter, |stats| stats.handshakes_begun.get())?;
        let done = plain("pushline_tls_handshakes_done", "TLS handshakes that ended well");
        self.by_worker(&done, MetricType::Counter, |stats| stats.handshakes.get())?;
        let resumed = plain("pushline_tls_handshakes_resumed", "Those of them that resumed a session");
        self.by_worker(&resumed, MetricType::Counter, |stats| stats.handshakes_resumed.get())?;
        let failed = plain("pushline_tls_handshakes_failed", "TLS handshakes of which no connection came");
        let of = |failure: HandshakeFailure| {
            let count = self.sum(|stats| stats.failed_handshakes(failure));
            (vec![("reason", failure.as_str().to_owned())], count)
        };
        let series = HandshakeFailure::ALL.into_iter().map(of).collect();
        self.series(&failed, MetricType::Counter, series)?;
        let waiting = plain(
            "pushline_tls_handshakes_waiting",
            "TLS handshakes of which something has come that waits for its turn",
        );
        self.counted(&waiting, |census| census.handshakes_waiting)
    }

    fn messages(&mut self) -> Result<(), Error> {
        let placed = plain(
            "pushline_messages_published",
            "Messages that were given their place in their channel's order",
        );
        self.by_worker(&placed, MetricType::Counter, |stats| stats.placed.get())?;
        let placed = bytes("pushline_published", "Data of messages that were published");
        self.by_worker(&placed, MetricType::Counter, |stats| stats.placed_bytes.get())?;
        let delivered =
            plain("pushline_deliveries", "Messages given to readers: one message to ten readers is ten");
        self.by_worker_and_transport(&delivered, MetricType::Counter, |stats, transport| {
            stats.deliveries.get(transport as usize)
        })?;
        let sent = bytes(
            "pushline_sent",
            "All that was given to connections, what sockets still have to take included",
        );
        self.by_worker_and_transport(&sent, MetricType::Counter, |stats, transport| {
            stats.sent_bytes.get(transport as usize)
        })
    }

    fn fan_out(&mut self) -> Result<(), Error> {
        let sends = plain(
            "pushline_fanout_sends",
            "Sends to streams; deliveries to streams by these is the coalescing",
        );
        self.by_worker(&sends, MetricType::Counter, |stats| stats.sends.get())?;
        let short =
            plain("pushline_fanout_short_sends", "Sends that a socket took only in part, or not at all");
        self.by_worker(&short, MetricType::Counter, |stats| stats.short_sends.get())?;
        let pages = plain("pushline_catchup_pages", "Pages of history asked for by readers that were behind");
        self.by_worker(&pages, MetricType::Counter, |stats| stats.pages.get())?;
        let pass = seconds(
            "pushline_fanout_pass",
            "From the beginning of a pass over a channel's readers to its end",
        );
        self.times_by_worker(&pass, |stats| &stats.pass)?;
        let first = seconds(
            "pushline_publish_to_first_write",
            "From the placing of a pass's oldest message to its first send",
        );
        self.times(&first, |stats| &stats.first_write)?;
        let last = seconds(
            "pushline_publish_to_last_write",
            "From the placing of a pass's oldest message to its last send",
        );
        self.times(&last, |stats| &stats.last_write)
    }

    fn readers(&mut self) -> Result<(), Error> {
        let readers =
            plain("pushline_readers", "Subscriptions: a connection that reads three channels is three");
        let mut series = Vec::new();
        for (worker, census) in self.censuses() {
            for transport in Transport::ALL.into_iter().filter(|transport| *transport != Transport::Http) {
                let labels = vec![("worker", worker.clone()), ("transport", transport.as_str().into())];
                series.push((labels, census.readers[transport as usize]));
            }
        }
        self.series(&readers, MetricType::Gauge, series)?;
        let behind = plain("pushline_readers_behind", "Subscriptions that do not have all messages yet");
        self.counted(&behind, |census| census.behind)?;
        let catching_up =
            plain("pushline_readers_catching_up", "Subscriptions that are given pages of history");
        self.counted(&catching_up, |census| census.catching_up)?;
        let blocked = plain("pushline_connections_blocked", "Connections whose socket takes no more");
        self.counted(&blocked, |census| census.blocked)?;
        self.counted(&plain("pushline_lag_messages", "Messages that readers do not have yet"), |census| {
            census.lag
        })?;
        let most =
            plain("pushline_lag_messages_max", "Messages that the reader furthest behind does not have yet");
        self.counted(&most, |census| census.lag_max)?;
        let owed = bytes("pushline_owed", "The rests of messages that readers' sockets took only in part");
        self.counted(&owed, |census| census.owed_bytes)
    }

    fn stores(&mut self) -> Result<(), Error> {
        self.counted(&plain("pushline_channels", "Channels that live on the worker"), |census| {
            census.channels
        })?;
        let messages = plain("pushline_history_messages", "Messages that history keeps");
        self.counted(&messages, |census| census.history_messages)?;
        self.counted(&bytes("pushline_history", "What history keeps"), |census| census.history_bytes)?;
        self.counted(&plain("pushline_feeds", "Channels that the worker has readers of"), |census| {
            census.feeds
        })?;
        self.counted(
            &bytes("pushline_feed", "What feeds keep: framed bytes, and recent messages"),
            |census| census.feed_bytes,
        )
    }

    fn workers(&mut self) -> Result<(), Error> {
        let mailboxes = &self.scrape.node.0.mailboxes;
        let of = |count: fn(&crate::runtime::mailbox::Sender<crate::runtime::mail::Mail>) -> usize| {
            let numbered = mailboxes.iter().enumerate();
            numbered.map(|(at, mailbox)| (vec![("worker", at.to_string())], count(mailbox) as u64)).collect()
        };
        let letters = of(|mailbox| mailbox.queued());
        let letter_bytes = of(|mailbox| mailbox.queued_bytes());
        self.series(
            &plain("pushline_mailbox_messages", "Letters that wait for the worker"),
            MetricType::Gauge,
            letters,
        )?;
        self.series(
            &bytes("pushline_mailbox", "Bytes that wait for the worker"),
            MetricType::Gauge,
            letter_bytes,
        )?;
        let panics = plain("pushline_panics", "Faults of the server that ended one connection each");
        self.by_worker(&panics, MetricType::Counter, |stats| stats.panics.get())?;
        let up = plain("pushline_worker_up", "1 if the worker answered this scrape in time");
        let numbered = self.scrape.workers.iter().enumerate();
        let series =
            numbered.map(|(at, counted)| (vec![("worker", at.to_string())], u64::from(counted.is_some())));
        let series = series.collect();
        self.series(&up, MetricType::Gauge, series)?;
        let answer = seconds(
            "pushline_worker_answer",
            "How long the worker took to answer the first question of this scrape",
        );
        let scrape = self.scrape;
        let mut metric = self.family(&answer, MetricType::Gauge)?;
        for (at, counted) in scrape.workers.iter().enumerate() {
            if let Some(counted) = counted {
                let labels = vec![("worker", at.to_string())];
                metric.encode_family(&labels)?.encode_gauge(&counted.answered_in.as_secs_f64())?;
            }
        }
        Ok(())
    }

    fn family<'f>(&'f mut self, family: &'f Family, kind: MetricType) -> Result<MetricEncoder<'f>, Error> {
        self.encoder.encode_descriptor(family.name, family.help, family.unit.as_ref(), kind)
    }

    fn gauge(&mut self, family: &Family, value: f64) -> Result<(), Error> {
        self.family(family, MetricType::Gauge)?.encode_gauge(&value)
    }

    fn series(&mut self, family: &Family, kind: MetricType, series: Vec<(Labels, u64)>) -> Result<(), Error> {
        let mut metric = self.family(family, kind)?;
        for (labels, value) in series {
            let mut one = metric.encode_family(&labels)?;
            match kind {
                MetricType::Counter => one.encode_counter::<NoLabelSet, _, u64>(&value, None)?,
                _ => one.encode_gauge(&value)?,
            }
        }
        Ok(())
    }

    fn by_worker(
        &mut self,
        family: &Family,
        kind: MetricType,
        count: fn(&Stats) -> u64,
    ) -> Result<(), Error> {
        let numbered = self.scrape.node.0.stats.iter().enumerate();
        let series = numbered.map(|(at, stats)| (vec![("worker", at.to_string())], count(stats))).collect();
        self.series(family, kind, series)
    }

    fn by_worker_and_transport(
        &mut self,
        family: &Family,
        kind: MetricType,
        count: fn(&Stats, Transport) -> u64,
    ) -> Result<(), Error> {
        let mut series = Vec::new();
        for (at, stats) in self.scrape.node.0.stats.iter().enumerate() {
            for transport in Transport::ALL {
                let labels = vec![("worker", at.to_string()), ("transport", transport.as_str().into())];
                series.push((labels, count(stats, transport)));
            }
        }
        self.series(family, kind, series)
    }

    fn counted(&mut self, family: &Family, count: fn(&Census) -> u64) -> Result<(), Error> {
        let series =
            self.censuses().map(|(worker, census)| (vec![("worker", worker)], count(census))).collect();
        self.series(family, MetricType::Gauge, series)
    }

    fn times_by_worker(&mut self, family: &Family, of: fn(&Stats) -> &Histogram) -> Result<(), Error> {
        let scrape = self.scrape;
        let mut metric = self.family(family, MetricType::Histogram)?;
        for (at, stats) in scrape.node.0.stats.iter().enumerate() {
            let labels = vec![("worker", at.to_string())];
            write_times(&mut metric.encode_family(&labels)?, &[of(stats)])?;
        }
        Ok(())
    }

    fn times(&mut self, family: &Family, of: fn(&Stats) -> &Histogram) -> Result<(), Error> {
        let all: Vec<&Histogram> = self.scrape.node.0.stats.iter().map(of).collect();
        write_times(&mut self.family(family, MetricType::Histogram)?, &all)
    }

    /// The workers that answered.
    fn censuses(&self) -> impl Iterator<Item = (String, &Census)> {
        let numbered = self.scrape.workers.iter().enumerate();
        numbered.filter_map(|(at, counted)| Some((at.to_string(), &counted.as_ref()?.census)))
    }

    fn sum(&self, count: impl Fn(&Stats) -> u64) -> u64 {
        self.scrape.node.0.stats.iter().map(count).sum()
    }
}

/// Several workers' times as one.
fn write_times(metric: &mut MetricEncoder<'_>, all: &[&Histogram]) -> Result<(), Error> {
    let bounds = BOUNDS_US.iter().map(|us| *us as f64 / 1e6).chain([f64::MAX]);
    let count = |at: usize| all.iter().map(|histogram| histogram.buckets.get(at)).sum::<u64>();
    let buckets: Vec<(f64, u64)> = bounds.enumerate().map(|(at, bound)| (bound, count(at))).collect();
    let sum_us: u64 = all.iter().map(|histogram| histogram.sum_us.get()).sum();
    // Of the same reading: a bucket that grew meanwhile would be more than all.
    let in_all = buckets.iter().map(|(_, count)| count).sum();
    metric.encode_histogram::<NoLabelSet>(sum_us as f64 / 1e6, in_all, &buckets, None)
}
