//! Listeners of the agents' own processes that shed: what comes, what is admitted, what becomes of the rest.

use super::board::{Form, Link, Panel, Row, Unit, limit, query};

/// On the agents' board.
pub(super) const ROW: Row = Row {
    title: "What do its own listeners shed?",
    panels: &[
        Panel {
            title: "Accepted, admitted, shed",
            help: "Connections to the listeners of backlogd shed and [[shed]]; shed ones by the limit or state, and whether at accept or after \
                   that, before they were served.",
            form: Form::Lines,
            unit: Unit::PerSecond,
            size: (12, 8),
            queries: &[
                query("sum(rate(backlogd_shed_accepted_total{H}[$__rate_interval]))", "accepted"),
                query("sum(rate(backlogd_shed_admitted_total{H}[$__rate_interval]))", "admitted"),
                query(
                    "sum by (reason, stage) (rate(backlogd_shed_connections_total{H}[$__rate_interval]))",
                    "shed: {{reason}} ({{stage}})",
                ),
            ],
            empty: NONE,
            limits: None,
            link: Link::None,
        },
        Panel {
            title: "Open connections and limits",
            help: "Admitted connections that are open, the ten highest: above soft, connections are shed; at hard, nothing is accepted.",
            form: Form::Lines,
            unit: Unit::Count,
            size: (12, 8),
            queries: &[
                query(
                    "topk(10, sum by (instance, listener) (backlogd_shed_open_connections{H}))",
                    "{{listener}} on {{instance}}",
                ),
                limit("topk(20, backlogd_shed_limit{H})", "{{kind}}: {{listener}} on {{instance}}"),
            ],
            empty: NONE,
            limits: None,
            link: Link::None,
        },
        Panel {
            title: "Who accepts",
            help: "1 while more connections are welcome, and while nothing is accepted; time that a drain may take on.",
            form: Form::Lines,
            unit: Unit::Count,
            size: (8, 7),
            queries: &[
                query("bottomk(10, backlogd_shed_ready{H})", "ready: {{listener}} on {{instance}}"),
                query(
                    "topk(10, backlogd_shed_paused{H}) > 0",
                    "paused, {{cause}}: {{listener}} on {{instance}}",
                ),
                query(
                    "backlogd_shed_drain_seconds_remaining{H}",
                    "drains, seconds: {{listener}} on {{instance}}",
                ),
            ],
            empty: NONE,
            limits: None,
            link: Link::None,
        },
        Panel {
            title: "Accept queues of shedding listeners",
            help: "Connections that wait for accept, the ten highest, and how many may.",
            form: Form::Lines,
            unit: Unit::Count,
            size: (8, 7),
            queries: &[
                query(
                    "topk(10, backlogd_shed_accept_queue_length{H})",
                    "{{listener}} on {{instance}}",
                ),
                limit(
                    "topk(10, backlogd_shed_accept_queue_limit{H})",
                    "limit: {{listener}} on {{instance}}",
                ),
            ],
            empty: NONE,
            limits: None,
            link: Link::None,
        },
        Panel {
            title: "Generations",
            help: "How often the listeners of backlogd shed went to another process, and attempts in an hour at that which failed.",
            form: Form::Lines,
            unit: Unit::Count,
            size: (8, 7),
            queries: &[
                query("topk(10, max by (instance) (backlogd_shed_generation{H}))", "{{instance}}"),
                query(
                    "max by (instance, result) (increase(backlogd_shed_handovers_total{H}[1h])) > 0",
                    "{{result}}: {{instance}}",
                ),
            ],
            empty: "backlogd shed does not run",
            limits: None,
            link: Link::None,
        },
        Panel {
            title: "Time without accept",
            help: "Share of the time in which a shedding listener accepted nothing, and its queue filled: hard, the limit was reached; backoff, \
                   for want of descriptors or memory.",
            form: Form::Lines,
            unit: Unit::Ratio,
            size: (8, 7),
            queries: &[query(
                "topk(10, rate(backlogd_shed_paused_seconds_total{H}[$__rate_interval]))",
                "{{cause}}: {{listener}} on {{instance}}",
            )],
            empty: NONE,
            limits: None,
            link: Link::None,
        },
        Panel {
            title: "Failures of accept",
            help: "Failures of accept(2) of shedding listeners: of the connection (retry), for want of descriptors or memory (backoff), of the \
                   listener (fatal).",
            form: Form::Lines,
            unit: Unit::PerSecond,
            size: (8, 7),
            queries: &[query(
                "sum by (errno, class) (rate(backlogd_shed_accept_errors_total{H}[$__rate_interval]))",
                "{{errno}} ({{class}})",
            )],
            empty: "accept does not fail",
            limits: None,
            link: Link::None,
        },
        Panel {
            title: "What shed clients get",
            help: "Answers to shed connections, and those that leave a TIME_WAIT here, since this end closed first.",
            form: Form::Lines,
            unit: Unit::PerSecond,
            size: (8, 7),
            queries: &[
                query(
                    "sum by (answer) (rate(backlogd_shed_answers_total{H}[$__rate_interval]))",
                    "{{answer}}",
                ),
                query(
                    "sum(rate(backlogd_shed_time_wait_closes_total{H}[$__rate_interval]))",
                    "TIME_WAIT",
                ),
            ],
            empty: NONE,
            limits: None,
            link: Link::None,
        },
        Panel {
            title: "Why admitted connections end",
            help: "By whom or what they end, and the deadlines that ended some of them.",
            form: Form::Lines,
            unit: Unit::PerSecond,
            size: (8, 7),
            queries: &[
                query(
                    "sum by (cause) (rate(backlogd_shed_closed_total{H}[$__rate_interval]))",
                    "{{cause}}",
                ),
                query(
                    "sum by (deadline) (rate(backlogd_shed_deadline_timeouts_total{H}[$__rate_interval]))",
                    "deadline: {{deadline}}",
                ),
            ],
            empty: NONE,
            limits: None,
            link: Link::None,
        },
        Panel {
            title: "Bytes of admitted connections",
            help: "From the clients (in) and to them (out), in a second.",
            form: Form::Lines,
            unit: Unit::Bytes,
            size: (8, 7),
            queries: &[query(
                "sum by (direction) (rate(backlogd_shed_bytes_total{H}[$__rate_interval]))",
                "{{direction}}",
            )],
            empty: NONE,
            limits: None,
            link: Link::None,
        },
        Panel {
            title: "Beside the soft limit",
            help: "Exempt connections, shed ones whose answer is to arrive, peers that are kept in mind, and those that were forgotten early.",
            form: Form::Lines,
            unit: Unit::Count,
            size: (8, 7),
            queries: &[
                query("sum(backlogd_shed_exempt_open_connections{H})", "exempt"),
                query("sum(backlogd_shed_lingering_connections{H})", "shed, until answered"),
                query("sum(backlogd_shed_peers_tracked{H})", "peers"),
                query(
                    "sum(increase(backlogd_shed_peers_evicted_total{H}[1h]))",
                    "peers forgotten in an hour",
                ),
                query(
                    "sum(increase(backlogd_shed_peers_full_total{H}[1h]))",
                    "without a place for the peer in an hour",
                ),
            ],
            empty: NONE,
            limits: None,
            link: Link::None,
        },
        Panel {
            title: "Wait in the accept queue",
            help: "Of one connection in 16 to shedding listeners: how long it was queued before it was accepted.",
            form: Form::Lines,
            unit: Unit::Seconds,
            size: (8, 7),
            queries: &[
                query(
                    "histogram_quantile(0.5, sum by (le) (rate(backlogd_shed_queue_wait_seconds_bucket{H}[$__rate_interval]))) or histogram_quantile(0.5, sum(rate(backlogd_shed_queue_wait_seconds{H}[$__rate_interval])))",
                    "p50",
                ),
                query(
                    "histogram_quantile(0.99, sum by (le) (rate(backlogd_shed_queue_wait_seconds_bucket{H}[$__rate_interval]))) or histogram_quantile(0.99, sum(rate(backlogd_shed_queue_wait_seconds{H}[$__rate_interval])))",
                    "p99",
                ),
            ],
            empty: NONE,
            limits: None,
            link: Link::None,
        },
        Panel {
            title: "How late the accept loop is",
            help: "After it gave way to others: where it is long, tasks block the threads that accept.",
            form: Form::Lines,
            unit: Unit::Seconds,
            size: (8, 7),
            queries: &[
                query(
                    "histogram_quantile(0.5, sum by (le) (rate(backlogd_shed_accept_loop_lag_seconds_bucket{H}[$__rate_interval]))) or histogram_quantile(0.5, sum(rate(backlogd_shed_accept_loop_lag_seconds{H}[$__rate_interval])))",
                    "p50",
                ),
                query(
                    "histogram_quantile(0.99, sum by (le) (rate(backlogd_shed_accept_loop_lag_seconds_bucket{H}[$__rate_interval]))) or histogram_quantile(0.99, sum(rate(backlogd_shed_accept_loop_lag_seconds{H}[$__rate_interval])))",
                    "p99",
                ),
            ],
            empty: NONE,
            limits: None,
            link: Link::None,
        },
        Panel {
            title: "Life of admitted connections",
            help: "From where they were admitted to their close, of those that ended.",
            form: Form::Lines,
            unit: Unit::Seconds,
            size: (8, 7),
            queries: &[
                query(
                    "histogram_quantile(0.5, sum by (le) (rate(backlogd_shed_connection_duration_seconds_bucket{H}[$__rate_interval]))) or histogram_quantile(0.5, sum(rate(backlogd_shed_connection_duration_seconds{H}[$__rate_interval])))",
                    "p50",
                ),
                query(
                    "histogram_quantile(0.99, sum by (le) (rate(backlogd_shed_connection_duration_seconds_bucket{H}[$__rate_interval]))) or histogram_quantile(0.99, sum(rate(backlogd_shed_connection_duration_seconds{H}[$__rate_interval])))",
                    "p99",
                ),
            ],
            empty: NONE,
            limits: None,
            link: Link::None,
        },
    ],
};

const NONE: &str = "no listener here sheds";
