//! What the listeners of this process shed, and why.

use std::{fmt, time::Duration};

use backlogd_shed::{Class, Histogram, Pause, Stats};

use super::{super::histogram::Octaves, Family, Scrape, Sink, Value};
use crate::{
    errno::Errno,
    metric::{Descriptor, Kind},
    shed::Counted,
};

const SOURCE: &str = "the shedding listeners of this process (backlogd shed, [[shed]])";

/// A family with one or more series for each listener.
const fn family(
    name: &'static str,
    kind: Kind,
    labels: &'static [&'static str],
    help: &'static str,
    emit: fn(&Scrape, Sink<'_>) -> fmt::Result,
) -> Family {
    Family {
        descriptor: Descriptor { name, kind, labels, help, source: SOURCE },
        folds: None,
        emit,
    }
}

pub(super) const FAMILIES: &[Family] = &[
    family(
        "backlogd_shed_accepted_total",
        Kind::Counter,
        &["listener"],
        "Connections that accept(2) gave; accepted = admitted + shed at the stage of accept",
        |scrape, sink| each(scrape, sink, |it| it.stats.accepted),
    ),
    family(
        "backlogd_shed_admitted_total",
        Kind::Counter,
        &["listener"],
        "Connections that no limit refused; admitted = closed + open",
        |scrape, sink| each(scrape, sink, |it| it.stats.admitted),
    ),
    family(
        "backlogd_shed_connections_total",
        Kind::Counter,
        &["listener", "reason", "stage"],
        "Connections that were shed, by the limit or state; at the stage of accept, or after that, before they were served",
        |scrape, sink| {
            labelled(scrape, sink, |stats, add| {
                stats.shed.iter().filter(|(_, n)| 0 < *n).try_for_each(|((reason, stage), n)| {
                    add(&[("reason", reason.as_str()), ("stage", stage.as_str())], *n)
                })
            })
        },
    ),
    family(
        "backlogd_shed_answers_total",
        Kind::Counter,
        &["listener", "answer"],
        "What shed connections got: rst, fin, bytes, or fallback_rst, a reset for want of room to let the answer arrive",
        |scrape, sink| {
            labelled(scrape, sink, |stats, add| {
                stats
                    .answers
                    .iter()
                    .try_for_each(|(answer, n)| add(&[("answer", answer.as_str())], *n))
            })
        },
    ),
    family(
        "backlogd_shed_time_wait_closes_total",
        Kind::Counter,
        &["listener"],
        "Shed connections that leave a TIME_WAIT here, since this end closed first",
        |scrape, sink| each(scrape, sink, |it| it.stats.time_wait_closes),
    ),
    family(
        "backlogd_shed_closed_total",
        Kind::Counter,
        &["listener", "cause"],
        "Admitted connections that ended",
        |scrape, sink| {
            labelled(scrape, sink, |stats, add| {
                stats.closed.iter().try_for_each(|(cause, n)| add(&[("cause", cause.as_str())], *n))
            })
        },
    ),
    family(
        "backlogd_shed_open_connections",
        Kind::Gauge,
        &["listener", "state"],
        "Admitted connections of this generation that are open: handshaking (their PROXY header is \
         awaited), or serving; limits count those of a generation that drains, too",
        |scrape, sink| {
            labelled(scrape, sink, |stats, add| {
                let serving = stats.open.saturating_sub(stats.handshaking);
                add(&[("state", "handshaking")], stats.handshaking)?;
                add(&[("state", "serving")], serving)
            })
        },
    ),
    family(
        "backlogd_shed_exempt_open_connections",
        Kind::Gauge,
        &["listener"],
        "Open connections that count towards the hard limit alone",
        |scrape, sink| each(scrape, sink, |it| it.stats.exempt_open),
    ),
    family(
        "backlogd_shed_lingering_connections",
        Kind::Gauge,
        &["listener"],
        "Shed connections that are open until their answer arrived",
        |scrape, sink| each(scrape, sink, |it| it.stats.lingering),
    ),
    family(
        "backlogd_shed_limit",
        Kind::Gauge,
        &["listener", "kind"],
        "Limits in force: above soft, and above adaptive where there is one, connections are shed; at hard, nothing is accepted",
        |scrape, sink| {
            scrape.shed.iter().try_for_each(|it| {
                let adaptive = it.stats.adaptive_limit.map(|limit| ("adaptive", limit));
                let mut all = [("soft", it.soft), ("hard", it.hard)].into_iter().chain(adaptive);
                all.try_for_each(|(kind, n)| {
                    let labels = [("listener", it.listener.as_str()), ("kind", kind)];
                    sink(&labels, Value::Unsigned(n as u64))
                })
            })
        },
    ),
    family(
        "backlogd_shed_paused",
        Kind::Gauge,
        &["listener", "cause"],
        "1 while nothing is accepted: hard, the limit was reached; backoff, accept(2) failed for want of descriptors or memory",
        |scrape, sink| {
            labelled(scrape, sink, |stats, add| {
                Pause::ALL.into_iter().try_for_each(|cause| {
                    let is_paused = stats.is_paused == Some(cause);
                    add(&[("cause", cause.as_str())], is_paused.into())
                })
            })
        },
    ),
    family(
        "backlogd_shed_paused_seconds_total",
        Kind::Counter,
        &["listener", "cause"],
        "Time in which nothing was accepted: hard, the limit was reached; backoff, accept(2) failed for want of descriptors or memory",
        |scrape, sink| {
            scrape.shed.iter().try_for_each(|it| {
                it.stats.paused.iter().try_for_each(|(cause, time)| {
                    let labels = [("listener", it.listener.as_str()), ("cause", cause.as_str())];
                    sink(&labels, Value::Real(time.as_secs_f64()))
                })
            })
        },
    ),
    family(
        "backlogd_shed_accept_errors_total",
        Kind::Counter,
        &["listener", "errno", "class"],
        "Failures of accept(2): of the connection (retry), for want of descriptors or memory (backoff), of the listener (fatal)",
        |scrape, sink| {
            labelled(scrape, sink, |stats, add| {
                stats.accept_errors.iter().try_for_each(|(number, n)| {
                    let name = Errno(number.unsigned_abs()).to_string();
                    add(&[("errno", name.as_str()), ("class", Class::of(*number).as_str())], *n)
                })
            })
        },
    ),
    family(
        "backlogd_shed_deadline_timeouts_total",
        Kind::Counter,
        &["listener", "deadline"],
        "Admitted connections that a deadline ended",
        |scrape, sink| {
            labelled(scrape, sink, |stats, add| {
                stats
                    .deadline_timeouts
                    .iter()
                    .try_for_each(|(deadline, n)| add(&[("deadline", deadline.as_str())], *n))
            })
        },
    ),
    family(
        "backlogd_shed_bytes_total",
        Kind::Counter,
        &["listener", "direction"],
        "Bytes of admitted connections, from the client (in) and to it (out)",
        |scrape, sink| {
            labelled(scrape, sink, |stats, add| {
                add(&[("direction", "in")], stats.bytes_in)?;
                add(&[("direction", "out")], stats.bytes_out)
            })
        },
    ),
    family(
        "backlogd_shed_peers_tracked",
        Kind::Gauge,
        &["listener"],
        "Peers that are kept in mind for the connections they have or opened of late",
        |scrape, sink| each(scrape, sink, |it| it.stats.peers_tracked),
    ),
    family(
        "backlogd_shed_peers_evicted_total",
        Kind::Counter,
        &["listener"],
        "Peers without connections that were forgotten early, for others",
        |scrape, sink| each(scrape, sink, |it| it.stats.peers_evicted),
    ),
    family(
        "backlogd_shed_peers_full_total",
        Kind::Counter,
        &["listener"],
        "Connections for whose peers there was no place to keep them in mind, whatever became of them",
        |scrape, sink| each(scrape, sink, |it| it.stats.peers_full),
    ),
    family(
        "backlogd_shed_oversized_requests_total",
        Kind::Counter,
        &["listener"],
        "Requests that were larger than they may be; a limit that no key of the configuration sets",
        |scrape, sink| each(scrape, sink, |it| it.stats.oversized_requests),
    ),
    family(
        "backlogd_shed_accept_batch_size",
        Kind::Histogram,
        &["listener"],
        "Connections accepted in a turn of the accept loop, until the queue is empty or others have their turn: always 8 or more means that the loop has all it can do",
        |scrape, sink| {
            histograms(scrape, sink, |stats| octaves(&stats.accept_batch_size, |n| n as f64))
        },
    ),
    family(
        "backlogd_shed_accept_loop_lag_seconds",
        Kind::Histogram,
        &["listener"],
        "Time that the accept loop waited for its turn after it gave way to others, and once in 64 times that the queue was empty",
        |scrape, sink| histograms(scrape, sink, |stats| seconds(&stats.accept_loop_lag)),
    ),
    family(
        "backlogd_shed_queue_wait_seconds",
        Kind::Histogram,
        &["listener"],
        "Time in the accept queue, of one connection in 16; of all after a pause until the queue is empty",
        |scrape, sink| histograms(scrape, sink, |stats| seconds(&stats.queue_wait)),
    ),
    family(
        "backlogd_shed_decision_seconds",
        Kind::Histogram,
        &["listener"],
        "Time from accept(2) until a connection is closed or admitted, of one in 64",
        |scrape, sink| histograms(scrape, sink, |stats| seconds(&stats.decision)),
    ),
    family(
        "backlogd_shed_connection_duration_seconds",
        Kind::Histogram,
        &["listener"],
        "Life of admitted connections, from there to close, counted when they end; as many as closed",
        |scrape, sink| histograms(scrape, sink, |stats| seconds(&stats.connection_duration)),
    ),
    family(
        "backlogd_shed_ready",
        Kind::Gauge,
        &["listener"],
        "1 while more connections are welcome, also in a pause (backlogd_shed_paused); 0 in a drain, \
         and where accept(2) failed for ever",
        |scrape, sink| each(scrape, sink, |it| it.is_ready.into()),
    ),
    family(
        "backlogd_shed_drain_seconds_remaining",
        Kind::Gauge,
        &["listener"],
        "While it drains: time until connections that are left are reset",
        |scrape, sink| {
            some(scrape, sink, |it| it.drain_left.map(|left| Value::Real(left.as_secs_f64())))
        },
    ),
    family(
        "backlogd_shed_accept_queue_length",
        Kind::Gauge,
        &["listener"],
        "Connections that wait for accept(2), as the listening socket says; until it is closed",
        |scrape, sink| {
            some(scrape, sink, |it| it.queue.map(|(length, _)| Value::Unsigned(length.into())))
        },
    ),
    family(
        "backlogd_shed_accept_queue_limit",
        Kind::Gauge,
        &["listener"],
        "Limit of its accept queue, which holds one more; until it is closed",
        |scrape, sink| {
            some(scrape, sink, |it| it.queue.map(|(_, limit)| Value::Unsigned(limit.into())))
        },
    ),
    family(
        "backlogd_shed_generation",
        Kind::Gauge,
        &["listener"],
        "How many generations of this process had the listener before, by handovers; of backlogd shed",
        |scrape, sink| {
            some(scrape, sink, |it| it.generation.map(|(number, _)| Value::Unsigned(number)))
        },
    ),
    family(
        "backlogd_shed_handovers_total",
        Kind::Counter,
        &["listener", "result"],
        "Handovers: ok, of all generations so far; of this one, child_failed, the next could not be started, or ended, and timeout, it did not say in time that it accepts",
        |scrape, sink| {
            scrape.shed.iter().try_for_each(|it| {
                let Some((before, n)) = it.generation else { return Ok(()) };
                // its own success is counted by the next one, which is asked from then on
                [("ok", before + n.ok), ("child_failed", n.child_failed), ("timeout", n.timeout)]
                    .into_iter()
                    .try_for_each(|(result, n)| {
                        let labels = [("listener", it.listener.as_str()), ("result", result)];
                        sink(&labels, Value::Unsigned(n))
                    })
            })
        },
    ),
];

/// One series for each listener that has the value.
fn some(
    scrape: &Scrape,
    sink: Sink<'_>,
    value: impl Fn(&Counted) -> Option<Value<'static>>,
) -> fmt::Result {
    scrape.shed.iter().try_for_each(|it| match value(it) {
        Some(value) => sink(&[("listener", it.listener.as_str())], value),
        None => Ok(()),
    })
}

/// One histogram for each listener.
fn histograms(scrape: &Scrape, sink: Sink<'_>, of: impl Fn(&Stats) -> Octaves) -> fmt::Result {
    scrape.shed.iter().try_for_each(|it| {
        sink(&[("listener", it.listener.as_str())], Value::Octaves(&of(&it.stats)))
    })
}

fn seconds(histogram: &Histogram<Duration>) -> Octaves {
    octaves(histogram, |duration| duration.as_secs_f64())
}

/// In base units, whose powers of two the bounds are but for a nanosecond.
fn octaves<T: Copy>(histogram: &Histogram<T>, number: fn(T) -> f64) -> Octaves {
    let Histogram { buckets, above, sum } = histogram;
    let power = |bound: T| number(bound).log2().round();
    #[expect(
        clippy::cast_possible_truncation,
        reason = "a nanosecond is 2^-30 s, a century 2^32 s"
    )]
    let first = buckets.first().map_or(0, |&(bound, _)| power(bound) as i32);
    let counts = buckets.iter().map(|(_, n)| *n).chain([*above]).collect();
    Octaves { first, counts, sum: number(*sum) }
}

/// One series for each listener.
fn each(scrape: &Scrape, sink: Sink<'_>, value: impl Fn(&Counted) -> u64) -> fmt::Result {
    scrape
        .shed
        .iter()
        .try_for_each(|it| sink(&[("listener", it.listener.as_str())], Value::Unsigned(value(it))))
}

/// Where series of one listener go, by their other labels.
type Add<'a> = &'a mut dyn FnMut(&[(&str, &str)], u64) -> fmt::Result;

/// Several series for each listener.
fn labelled(
    scrape: &Scrape,
    sink: Sink<'_>,
    series: impl Fn(&Stats, Add<'_>) -> fmt::Result,
) -> fmt::Result {
    scrape.shed.iter().try_for_each(|it| {
        series(&it.stats, &mut |labels, n| {
            let mut all = vec![("listener", it.listener.as_str())];
            all.extend_from_slice(labels);
            sink(&all, Value::Unsigned(n))
        })
    })
}
