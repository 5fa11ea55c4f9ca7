//! One listener in depth: does it drop, who accepts, how long do connections wait, do they end?

use super::board::{Board, Form, Link, Panel, Row, Unit, Variable, limit, query};

const LISTENERS: &str = "backlogd_listener_accept_queue_limit";

/// Rate, errors and duration of one listener.
pub(super) const BOARD: Board = Board {
    uid: "backlogd-listener",
    title: "backlogd / One listener",
    help: "Does it drop, who accepts, how long do connections wait, do they end?",
    variables: &[
        Variable { name: "job", label: "Job", of: "backlogd_build_info" },
        Variable { name: "instance", label: "Host", of: LISTENERS },
        Variable { name: "netns", label: "Network namespace", of: LISTENERS },
        Variable { name: "namespace", label: "Namespace", of: LISTENERS },
        Variable { name: "pod", label: "Pod", of: LISTENERS },
        Variable { name: "comm", label: "Program", of: LISTENERS },
        Variable { name: "addr", label: "Address", of: LISTENERS },
        Variable { name: "port", label: "Port", of: LISTENERS },
    ],
    rows: &[QUEUE, RATES, WAITS, OPEN, OWNER],
};

/// One line for each listener that is chosen.
const EACH: &str = "{{comm}} {{addr}}:{{port}} on {{instance}}";

const QUEUE: Row = Row {
    title: "Is its accept queue full?",
    panels: &[
        Panel {
            title: "Accept queue",
            help: "Connections that wait for accept: now, the highest of the last minute, and the limit. \
                   The kernel refuses above the limit, so a queue can stand at limit + 1.",
            form: Form::Lines,
            unit: Unit::Count,
            size: (16, 9),
            queries: &[
                query("sum(backlogd_listener_accept_queue_length_max{L})", "highest in a minute"),
                query("sum(backlogd_listener_accept_queue_length{L})", "length"),
                limit("sum(backlogd_listener_accept_queue_limit{L})", "limit"),
            ],
            empty: "nobody listens there",
            limits: None,
            link: Link::None,
        },
        Panel {
            title: "Fullest socket",
            help: "Length of limit of the fullest socket: a sum hides one stuck member of a SO_REUSEPORT group.",
            form: Form::Stat,
            unit: Unit::Ratio,
            size: (4, 9),
            queries: &[query(
                "max(backlogd_listener_accept_queue_fill_ratio_max{L})",
                "fullest socket",
            )],
            empty: "nobody listens there",
            limits: Some((0.8, 1.0)),
            link: Link::None,
        },
        Panel {
            title: "Sockets",
            help: "Sockets of the listener: several in a SO_REUSEPORT group, 0 when it is gone.",
            form: Form::Stat,
            unit: Unit::Count,
            size: (4, 9),
            queries: &[query("sum(backlogd_listener_sockets{L})", "sockets")],
            empty: "none",
            limits: None,
            link: Link::None,
        },
        Panel {
            title: "Stalled",
            help: "Whether connections wait in the accept queue and nobody has accepted for some seconds.",
            form: Form::StateTimeline,
            unit: Unit::Switch,
            size: (12, 6),
            queries: &[query(
                "max by (comm, addr, port, instance) (backlogd_listener_stalled{L})",
                EACH,
            )],
            empty: "not measurable here",
            limits: None,
            link: Link::None,
        },
        Panel {
            title: "Time since the last accept",
            help: "Time since somebody accepted. It also grows when nobody connects.",
            form: Form::Lines,
            unit: Unit::Seconds,
            size: (12, 6),
            queries: &[query(
                "max by (comm, addr, port, instance) (backlogd_listener_seconds_since_accept{L})",
                EACH,
            )],
            empty: "nobody accepted so far",
            limits: None,
            link: Link::None,
        },
    ],
};

const RATES: Row = Row {
    title: "What comes, what is accepted, what is dropped?",
    panels: &[
        Panel {
            title: "From SYN to close",
            help: "SYNs, completed handshakes, accepted and closed connections each second: gaps between the lines are the story.",
            form: Form::Lines,
            unit: Unit::PerSecond,
            size: (12, 9),
            queries: &[
                query("sum(rate(backlogd_listener_syns_total{L}[$__rate_interval]))", "SYNs"),
                query(
                    "sum(rate(backlogd_listener_established_total{L}[$__rate_interval]))",
                    "established",
                ),
                query(
                    "sum(rate(backlogd_listener_accepted_total{L}[$__rate_interval]))",
                    "accepted",
                ),
                query("sum(rate(backlogd_listener_closed_total{L}[$__rate_interval]))", "closed"),
            ],
            empty: "nothing came, or not measurable here",
            limits: None,
            link: Link::None,
        },
        Panel {
            title: "Listen drops by reason",
            help: "Listen drops each second. A drop is not a client: each client tries several times.",
            form: Form::Stacked,
            unit: Unit::PerSecond,
            size: (12, 9),
            queries: &[query(
                "sum by (reason) (rate(backlogd_listener_drops_total{L}[$__rate_interval]))",
                "{{reason}}",
            )],
            empty: "none seen",
            limits: None,
            link: Link::None,
        },
        Panel {
            title: "Time with a full queue",
            help: "Share of the time in which a socket of the listener had more than its limit; of several listeners the largest.",
            form: Form::Lines,
            unit: Unit::Ratio,
            size: (8, 7),
            queries: &[query(
                "max(rate(backlogd_listener_accept_queue_full_seconds_total{L}[$__rate_interval]))",
                "full",
            )],
            empty: "none seen",
            limits: None,
            link: Link::None,
        },
        Panel {
            title: "SYN queue",
            help: "Handshakes that wait for their last ACK.",
            form: Form::Lines,
            unit: Unit::Count,
            size: (8, 7),
            queries: &[query("sum(backlogd_listener_syn_queue_length{L})", "length")],
            empty: "not measurable here",
            limits: None,
            link: Link::None,
        },
        Panel {
            title: "Cookies and aborted connections",
            help: "SYNs answered with a cookie, since the SYN queue was full; connections that ended in the accept queue: \
                   reset by the peer, or thrown away with the listener.",
            form: Form::Lines,
            unit: Unit::PerSecond,
            size: (8, 7),
            queries: &[
                query(
                    "sum(rate(backlogd_listener_syncookies_total{L}[$__rate_interval]))",
                    "cookies",
                ),
                query(
                    "sum by (cause) (rate(backlogd_listener_aborted_total{L}[$__rate_interval]))",
                    "aborted: {{cause}}",
                ),
            ],
            empty: "none seen, or not measurable here",
            limits: None,
            link: Link::None,
        },
    ],
};

const WAITS: Row = Row {
    title: "How long do connections wait for accept?",
    panels: &[
        Panel {
            title: "Wait in the accept queue",
            help: "How many connections waited how long, counted at accept.",
            form: Form::Heatmap,
            unit: Unit::Seconds,
            size: (12, 9),
            queries: &[query(
                "sum by (le) (increase(backlogd_listener_accept_wait_seconds_bucket{L}[$__rate_interval])) or on () sum(increase(backlogd_listener_accept_wait_seconds{L}[$__rate_interval]))",
                "{{le}}",
            )],
            empty: "nobody accepted, or not measurable here",
            limits: None,
            link: Link::None,
        },
        Panel {
            title: "Quantiles of the wait",
            help: "Of the time from the end of the handshake to accept.",
            form: Form::Lines,
            unit: Unit::Seconds,
            size: (12, 9),
            queries: &[
                query(
                    "histogram_quantile(0.5, sum by (le) (rate(backlogd_listener_accept_wait_seconds_bucket{L}[$__rate_interval]))) or histogram_quantile(0.5, sum(rate(backlogd_listener_accept_wait_seconds{L}[$__rate_interval])))",
                    "p50",
                ),
                query(
                    "histogram_quantile(0.95, sum by (le) (rate(backlogd_listener_accept_wait_seconds_bucket{L}[$__rate_interval]))) or histogram_quantile(0.95, sum(rate(backlogd_listener_accept_wait_seconds{L}[$__rate_interval])))",
                    "p95",
                ),
                query(
                    "histogram_quantile(0.99, sum by (le) (rate(backlogd_listener_accept_wait_seconds_bucket{L}[$__rate_interval]))) or histogram_quantile(0.99, sum(rate(backlogd_listener_accept_wait_seconds{L}[$__rate_interval])))",
                    "p99",
                ),
            ],
            empty: "nobody accepted, or not measurable here",
            limits: None,
            link: Link::None,
        },
    ],
};

const OPEN: Row = Row {
    title: "Do connections end?",
    panels: &[
        Panel {
            title: "Open connections",
            help: "Accepted connections that are not destroyed, those that the peer has closed and the owner has not, \
                   and the other way round. The floor, their lowest number in 15 minutes, shows a leak.",
            form: Form::Lines,
            unit: Unit::Count,
            size: (12, 9),
            queries: &[
                query("sum(backlogd_listener_open_connections{L})", "open"),
                query("sum(min_over_time(backlogd_listener_open_connections{L}[15m]))", "floor"),
                query("sum(backlogd_listener_close_wait_connections{L})", "CLOSE_WAIT"),
                query(
                    "sum(backlogd_listener_fin_wait_connections{L})",
                    "closed by the owner alone",
                ),
            ],
            empty: "not measurable here",
            limits: None,
            link: Link::None,
        },
        Panel {
            title: "Open, and what traffic explains",
            help: "Open connections, and accepts each second times the mean lifetime, of ten minutes (Little's law): far apart, \
                   connections live long or leak.",
            form: Form::Lines,
            unit: Unit::Count,
            size: (12, 9),
            queries: &[
                query("sum(backlogd_listener_open_connections{L})", "open"),
                query(
                    "sum(rate(backlogd_listener_accepted_total{L}[10m])) * (sum(rate(backlogd_listener_connection_duration_seconds_sum{L}[10m])) / sum(rate(backlogd_listener_connection_duration_seconds_count{L}[10m])) or histogram_sum(sum(rate(backlogd_listener_connection_duration_seconds{L}[10m]))) / histogram_count(sum(rate(backlogd_listener_connection_duration_seconds{L}[10m]))))",
                    "explained by traffic",
                ),
            ],
            empty: "not measurable here",
            limits: None,
            link: Link::None,
        },
        Panel {
            title: "Lifetime of connections",
            help: "How many connections lasted how long from accept to their end, counted then.",
            form: Form::Heatmap,
            unit: Unit::Seconds,
            size: (12, 9),
            queries: &[query(
                "sum by (le) (increase(backlogd_listener_connection_duration_seconds_bucket{L}[$__rate_interval])) or on () sum(increase(backlogd_listener_connection_duration_seconds{L}[$__rate_interval]))",
                "{{le}}",
            )],
            empty: "none ended, or not measurable here",
            limits: None,
            link: Link::None,
        },
        Panel {
            title: "Unread and unsent bytes",
            help: "Bytes that arrived and that the owner has not read, and bytes written that peers have not acknowledged: \
                   of all connections, and of the one with the most.",
            form: Form::Lines,
            unit: Unit::Bytes,
            size: (12, 9),
            queries: &[
                query("sum(backlogd_listener_unread_bytes{L})", "unread"),
                query("max(backlogd_listener_unread_bytes_max{L})", "unread, worst connection"),
                query("sum(backlogd_listener_unsent_bytes{L})", "unsent"),
                query("max(backlogd_listener_unsent_bytes_max{L})", "unsent, worst connection"),
            ],
            empty: "not readable here",
            limits: None,
            link: Link::None,
        },
    ],
};

const OWNER: Row = Row {
    title: "The program that listens",
    panels: &[
        Panel {
            title: "Descriptors",
            help: "Open descriptors of the programs of this name that own listeners, and their limit where there is one.",
            form: Form::Lines,
            unit: Unit::Count,
            size: (8, 8),
            queries: &[
                query("sum by (comm) (backlogd_process_open_fds{H,comm=~\"$comm\"})", "{{comm}}"),
                limit(
                    "sum by (comm) (backlogd_process_max_fds{H,comm=~\"$comm\"} < 1e15)",
                    "{{comm}}: limit",
                ),
            ],
            empty: "not readable here",
            limits: None,
            link: Link::None,
        },
        Panel {
            title: "Failed accepts",
            help: "Calls of accept that failed, by errno, and below them those that found an empty queue (EAGAIN), \
                   which is no error: many of them are a herd that wakes for one connection.",
            form: Form::Lines,
            unit: Unit::PerSecond,
            size: (8, 8),
            queries: &[
                query(
                    "sum by (comm, errno) (rate(backlogd_accept_errors_total{H,comm=~\"$comm\"}[$__rate_interval]))",
                    "{{comm}} {{errno}}",
                ),
                query(
                    "sum by (comm) (rate(backlogd_accept_would_block_total{H,comm=~\"$comm\"}[$__rate_interval]))",
                    "{{comm}} EAGAIN",
                ),
            ],
            empty: "none seen, or not measurable here",
            limits: None,
            link: Link::None,
        },
        Panel {
            title: "Alerts of this listener",
            help: "What its agent raises; `backlogd explain PORT` on the host tells the whole story.",
            form: Form::StateTimeline,
            unit: Unit::Switch,
            size: (8, 8),
            queries: &[query(
                "max by (alert, severity) (backlogd_alert_firing{L})",
                "{{alert}} ({{severity}})",
            )],
            empty: "none fires",
            limits: None,
            link: Link::None,
        },
    ],
};
