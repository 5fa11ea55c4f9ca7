//! `backlogd_listener_*`: the queue, counters and state of each listener.
//!
//! A listener that is gone (no member) has its counters and `sockets` 0, and no other gauge. Long
//! because it is a flat table.

use std::{fmt, sync::Arc};

use super::{Family, Scrape, Sink, Value, emit};
use crate::{
    histogram::Histogram,
    input::{Connections, Known},
    metric::{Descriptor, Fold, Group, Kind, LISTENER_LABELS},
    model::snapshot::{DropsBy, Listener},
    publish::histogram::{DURATION, WAIT},
};

pub(super) const FAMILIES: &[Family] = &[
    Family {
        descriptor: gauge(
            "backlogd_listener_accept_queue_length",
            "Connections that wait for accept, summed over the listener's sockets",
            "idiag_rqueue of sock_diag (tcp_diag_get_info, net/ipv4/tcp_diag.c)",
        ),
        folds: SUM,
        emit: |scrape, sink| level(scrape, sink, |l| Some(Value::Unsigned(l.length))),
    },
    Family {
        descriptor: gauge(
            "backlogd_listener_accept_queue_limit",
            "Accept-queue limit, summed; the kernel refuses when length > limit, so length can be limit + 1 per socket",
            "idiag_wqueue of sock_diag: sk_max_ack_backlog = min(backlog, somaxconn) (__sys_listen, net/socket.c)",
        ),
        folds: SUM,
        emit: |scrape, sink| level(scrape, sink, |l| Some(Value::Unsigned(l.limit))),
    },
    Family {
        descriptor: gauge(
            "backlogd_listener_accept_queue_length_max",
            "Highest length in the last length_max_window_seconds (60), the running second included; of a reuseport group the sum of its sockets' highest",
            "sk_ack_backlog at each enqueue (sk_data_ready, include/trace/events/sock.h), and the samples; absent where no program runs",
        ),
        folds: SUM,
        emit: |scrape, sink| level(scrape, sink, |l| count(l.length_max)),
    },
    Family {
        descriptor: gauge(
            "backlogd_listener_accept_queue_fill_ratio_max",
            "length / limit of the fullest socket; above 1 it refuses connections. A limit of 0 counts as 1, and refuses at 1",
            "idiag_rqueue / idiag_wqueue of sock_diag",
        ),
        folds: MAX,
        emit: |scrape, sink| level(scrape, sink, |l| l.fill_ratio_max.map(Value::Real)),
    },
    Family {
        descriptor: counter(
            "backlogd_listener_accept_queue_full_seconds_total",
            "Time in which a socket of the listener had length > limit, by sampling",
            "idiag_rqueue and idiag_wqueue of sock_diag, once per sample",
        ),
        folds: GROWTH,
        emit: |scrape, sink| {
            each(scrape, sink, None, |l| Some(Value::Real(l.counters.full.as_seconds())))
        },
    },
    Family {
        descriptor: gauge(
            "backlogd_listener_syn_queue_length",
            "Handshakes that wait for their last ACK",
            "icsk_accept_queue.qlen, by an iter/tcp program",
        ),
        folds: SUM,
        emit: |scrape, sink| level(scrape, sink, |l| count(l.syn_queue)),
    },
    Family {
        descriptor: counter(
            "backlogd_listener_syns_total",
            "SYNs that reached the listener, refused ones and those answered with a cookie included",
            "tcp_conn_request, net/ipv4/tcp_input.c",
        ),
        folds: GROWTH,
        emit: |scrape, sink| each(scrape, sink, None, |l| count(l.counters.syns)),
    },
    Family {
        descriptor: counter(
            "backlogd_listener_syncookies_total",
            "SYNs answered with a cookie, since the SYN queue was full",
            "cookie_v4_init_sequence, net/ipv4/syncookies.c, and cookie_v6_init_sequence",
        ),
        folds: GROWTH,
        emit: |scrape, sink| each(scrape, sink, None, |l| count(l.counters.syncookies)),
    },
    Family {
        descriptor: gauge(
            "backlogd_listener_sockets",
            "Sockets of the listener: several in a SO_REUSEPORT group, 0 when it is gone",
            "LISTEN sockets of sock_diag",
        ),
        folds: SUM,
        emit: |scrape, sink| {
            each(scrape, sink, None, |l| Some(Value::Unsigned(l.members.len() as u64)))
        },
    },
    Family {
        descriptor: counter(
            "backlogd_listener_established_total",
            "Handshakes completed, from the length on that the agent found: established = accepted + aborted{cause=listener_closed} + length",
            "SYN_RECV to ESTABLISHED (inet_sock_set_state, net/ipv4/af_inet.c)",
        ),
        folds: GROWTH,
        emit: |scrape, sink| each(scrape, sink, None, |l| count(l.counters.established)),
    },
    Family {
        descriptor: counter(
            "backlogd_listener_accepted_total",
            "Connections returned to user space by accept, from those on that the agent found open",
            "security_sock_graft (include/net/sock.h) or the return of accept; else established - length - thrown away, of one instant",
        ),
        folds: GROWTH,
        emit: |scrape, sink| each(scrape, sink, None, |l| count(l.counters.accepted)),
    },
    Family {
        descriptor: histogram(
            "backlogd_listener_accept_wait_seconds",
            "Time that a connection spent in the accept queue, counted when accept returns it; not of those that were queued before the agent started",
            "from the child's birth to its accept, in the kernel, in buckets of 2^(1/4)",
        ),
        folds: GROWTH,
        emit: |scrape, sink| each(scrape, sink, None, |l| durations(&l.accept_wait, WAIT)),
    },
    Family {
        descriptor: counter(
            "backlogd_listener_closed_total",
            "Accepted connections whose socket has since been destroyed, those from before the agent included",
            "tcp_destroy_sock (tcp_v4_destroy_sock, net/ipv4/tcp_ipv4.c)",
        ),
        folds: GROWTH,
        emit: |scrape, sink| each(scrape, sink, None, |l| count(l.counters.closed)),
    },
    Family {
        descriptor: histogram(
            "backlogd_listener_connection_duration_seconds",
            "Time from accept to the end of the connection's socket, counted then; not of those that were accepted before the agent started",
            "from accept to tcp_destroy_sock (tcp_v4_destroy_sock, net/ipv4/tcp_ipv4.c), in the kernel, in buckets of 2^(1/4)",
        ),
        folds: GROWTH,
        emit: |scrape, sink| {
            each(scrape, sink, None, |l| durations(&l.connection_duration, DURATION))
        },
    },
    Family {
        descriptor: counter_by(
            "backlogd_listener_aborted_total",
            &["netns", "addr", "port", "comm", "namespace", "pod", "container", "cause"],
            "Connections that ended in the queue: listener_closed, thrown away unaccepted with the listener; reset, by the peer (still handed out by accept)",
            "inet_csk_listen_stop, net/ipv4/inet_connection_sock.c; tcp_reset, net/ipv4/tcp_input.c",
        ),
        folds: GROWTH,
        emit: |scrape, sink| {
            each(scrape, sink, Some(("cause", "listener_closed")), |l| {
                count(l.counters.aborted_listener_closed)
            })?;
            each(scrape, sink, Some(("cause", "reset")), |l| count(l.counters.aborted_reset))
        },
    },
    Family {
        descriptor: counter_by(
            "backlogd_listener_drops_total",
            &["netns", "addr", "port", "comm", "namespace", "pod", "container", "reason"],
            "Listen drops; a drop is not a client, since each client tries several times. accept_queue_full_syn and syn_queue_full: a SYN was refused; accept_queue_full_ack: the last ACK of a handshake was; other: none of these; unspecified: where not every reason has a hook, the rest. A reason without a hook is absent",
            "hooks at each refusal; all reasons together: sk_drops of SKMEMINFO, per sample at most the growth of the namespace's ListenDrops",
        ),
        folds: GROWTH,
        emit: |scrape, sink| {
            REASONS.iter().try_for_each(|&(reason, n)| {
                each(scrape, sink, Some(("reason", reason)), |l| count(n(&l.counters.drops_by)))
            })
        },
    },
    Family {
        descriptor: counter(
            "backlogd_listener_socket_drops_total",
            "sk_drops of the listener's sockets as it is (the d of ss -m): counts a drop at the last ACK twice and a deferred ACK once; no alert's input",
            "sk_drops of SKMEMINFO (sk_get_meminfo, net/core/sock.c)",
        ),
        folds: GROWTH,
        emit: |scrape, sink| each(scrape, sink, None, |l| count(l.counters.socket_drops)),
    },
    Family {
        descriptor: gauge(
            "backlogd_listener_open_connections",
            "Accepted connections that are not destroyed, those from before the agent included; absent where these could not be looked for",
            "accepted - closed",
        ),
        folds: SUM,
        emit: |scrape, sink| level(scrape, sink, |l| count(l.open)),
    },
    Family {
        descriptor: gauge(
            "backlogd_listener_close_wait_connections",
            "Connections that the peer has closed and the owner has not, in the newest read of the namespace's table; a lower bound while backlogd_table_partial is 1",
            TABLE,
        ),
        folds: SUM,
        emit: |scrape, sink| level(scrape, sink, |l| of_table(l, |it| it.close_wait)),
    },
    Family {
        descriptor: gauge(
            "backlogd_listener_fin_wait_connections",
            "Connections that the owner has closed and the peer has not, likewise: FIN_WAIT_1, FIN_WAIT_2, CLOSING, LAST_ACK",
            TABLE,
        ),
        folds: SUM,
        emit: |scrape, sink| level(scrape, sink, |l| of_table(l, |it| it.fin_wait)),
    },
    Family {
        descriptor: gauge(
            "backlogd_listener_unread_bytes",
            "Bytes that arrived on accepted connections and that the owner has not read, likewise; the end of a stream counts as one",
            TABLE,
        ),
        folds: SUM,
        emit: |scrape, sink| level(scrape, sink, |l| of_table(l, |it| it.unread_bytes)),
    },
    Family {
        descriptor: gauge(
            "backlogd_listener_unread_bytes_max",
            "The same of the connection with the most",
            TABLE,
        ),
        folds: MAX,
        emit: |scrape, sink| level(scrape, sink, |l| of_table(l, |it| it.unread_bytes_max)),
    },
    Family {
        descriptor: gauge(
            "backlogd_listener_unsent_bytes",
            "Bytes written on accepted connections that the peers have not acknowledged, likewise; the end of a stream counts as one",
            TABLE,
        ),
        folds: SUM,
        emit: |scrape, sink| level(scrape, sink, |l| of_table(l, |it| it.unsent_bytes)),
    },
    Family {
        descriptor: gauge(
            "backlogd_listener_unsent_bytes_max",
            "The same of the connection with the most",
            TABLE,
        ),
        folds: MAX,
        emit: |scrape, sink| level(scrape, sink, |l| of_table(l, |it| it.unsent_bytes_max)),
    },
    Family {
        descriptor: gauge(
            "backlogd_listener_seconds_since_accept",
            "Time since somebody accepted; absent before the first accept that was seen",
            "growth of accepted between samples",
        ),
        folds: MAX,
        emit: |scrape, sink| {
            level(scrape, sink, |l| Some(Value::Real(l.since_accept.ok()?.as_seconds())))
        },
    },
    Family {
        descriptor: gauge(
            "backlogd_listener_stalled",
            "1 while a socket's accept queue is not empty and nobody has accepted for stalled_after, else 0",
            "length and accepted of each socket, over samples",
        ),
        folds: MAX,
        emit: |scrape, sink| {
            level(scrape, sink, |l| l.stalled.ok().map(|stalled| Value::Unsigned(stalled.into())))
        },
    },
];

const GROWTH: Option<(Group, Fold)> = Some((Group::Listener, Fold::Growth));
const SUM: Option<(Group, Fold)> = Some((Group::Listener, Fold::Sum));
const MAX: Option<(Group, Fold)> = Some((Group::Listener, Fold::Max));

/// The source of what the read of a table tells.
const TABLE: &str = "sock_diag of all states but LISTEN (tcp_diag_get_info, net/ipv4/tcp_diag.c), within table_cpu_ratio";

/// The drops of one reason.
type OfReason = fn(&DropsBy) -> Known<u64>;

/// The values of `reason`.
const REASONS: [(&str, OfReason); 5] = [
    ("accept_queue_full_syn", |drops| drops.accept_queue_full_syn),
    ("accept_queue_full_ack", |drops| drops.accept_queue_full_ack),
    ("syn_queue_full", |drops| drops.syn_queue_full),
    ("other", |drops| drops.other),
    ("unspecified", |drops| drops.unspecified),
];

const fn gauge(name: &'static str, help: &'static str, source: &'static str) -> Descriptor {
    Descriptor { name, kind: Kind::Gauge, labels: LISTENER_LABELS, help, source }
}

const fn counter(name: &'static str, help: &'static str, source: &'static str) -> Descriptor {
    counter_by(name, LISTENER_LABELS, help, source)
}

const fn histogram(name: &'static str, help: &'static str, source: &'static str) -> Descriptor {
    Descriptor { name, kind: Kind::Histogram, labels: LISTENER_LABELS, help, source }
}

const fn counter_by(
    name: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
    source: &'static str,
) -> Descriptor {
    Descriptor { name, kind: Kind::Counter, labels, help, source }
}

fn count(known: Known<u64>) -> Option<Value<'static>> {
    known.ok().map(Value::Unsigned)
}

/// A number of the newest read of the table.
fn of_table(listener: &Listener, n: fn(&Connections) -> u64) -> Option<Value<'static>> {
    listener.connections.as_ref().ok().map(|connections| Value::Unsigned(n(connections)))
}

fn durations<'l>(known: &'l Known<Arc<Histogram>>, powers: &'static [i32]) -> Option<Value<'l>> {
    known.as_deref().ok().map(|histogram| Value::Histogram(histogram, powers))
}

/// One series per listener that has sockets and a `value`.
fn level(
    scrape: &Scrape,
    sink: Sink<'_>,
    value: fn(&Listener) -> Option<Value<'static>>,
) -> fmt::Result {
    each(scrape, sink, None, |listener| match listener.members.as_slice() {
        [] => None,
        [..] => value(listener),
    })
}

/// One series per listener that has a `value`, with one more label if it is given.
fn each(
    scrape: &Scrape,
    sink: Sink<'_>,
    label: Option<(&str, &str)>,
    value: impl Fn(&Listener) -> Option<Value<'_>>,
) -> fmt::Result {
    for row in &scrape.rows.listeners {
        let Some(value) = row.of(&scrape.snapshot.listeners).and_then(&value) else { continue };
        emit(sink, &row.labels, label, value)?;
    }
    Ok(())
}
