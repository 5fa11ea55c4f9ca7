//! A flat table of panels: which listeners are in trouble, on which hosts, and what runs out there.
//!
//! Where an agent has a series for each listener or namespace, the panels read what `dashboards/recording.yaml` makes
//! of it: of a thousand hosts with two hundred listeners each Prometheus answers no query in time, or none at all
//! (docs/BENCHMARKS.md, "fleet").

use super::board::{Board, Form, Link, Panel, Row, Unit, Variable, alarm, limit, mirrored, query};

/// Hosts and their listeners.
pub(super) const BOARD: Board = Board {
    uid: "backlogd-fleet",
    title: "backlogd / Fleet and hosts",
    help: "Which listeners are in trouble, on which hosts, and what runs out there.",
    variables: &[
        Variable { name: "job", label: "Job", of: "backlogd_build_info" },
        Variable { name: "instance", label: "Host", of: "backlogd_build_info" },
    ],
    rows: &[NOW, DROPS, SERVED, RUNS_OUT, HOST],
};

const NOW: Row = Row {
    title: "Now",
    panels: &[
        Panel {
            title: "Agents",
            help: "Hosts whose agent answers, and those whose agent does not.",
            form: Form::Stat,
            unit: Unit::Count,
            size: (4, 4),
            queries: &[query("sum(up{H})", "answer"), alarm("count(up{H} == 0)", "do not")],
            empty: "none",
            limits: None,
            link: Link::None,
        },
        Panel {
            title: "Alerts",
            help: "Alerts that the agents raise now, by severity. What another alert says better is not among them.",
            form: Form::Stat,
            unit: Unit::Count,
            size: (5, 4),
            queries: &[query("sum by (severity) (backlogd_alert_firing{H})", "{{severity}}")],
            empty: "none fires",
            limits: None,
            link: Link::None,
        },
        Panel {
            title: "Listeners",
            help: "Listeners that have a socket.",
            form: Form::Stat,
            unit: Unit::Count,
            size: (3, 4),
            queries: &[query("sum(instance:backlogd_listeners:count{H})", "listeners")],
            empty: "none",
            limits: None,
            link: Link::None,
        },
        Panel {
            title: "Stalled",
            help: "Listeners where connections wait in the accept queue and nobody accepts.",
            form: Form::Stat,
            unit: Unit::Count,
            size: (3, 4),
            queries: &[query("sum(instance:backlogd_listeners_stalled:sum{H})", "stalled")],
            empty: "not measurable here",
            limits: Some((1.0, 1.0)),
            link: Link::Runbook("BacklogdListenerStalled"),
        },
        Panel {
            title: "Overflowing",
            help: "Listeners with a listen drop since their accept queue was full, in the last five minutes.",
            form: Form::Stat,
            unit: Unit::Count,
            size: (3, 4),
            queries: &[query("sum(instance:backlogd_listeners_overflowing:sum{H})", "overflowing")],
            empty: "none",
            limits: Some((1.0, 1.0)),
            link: Link::Runbook("BacklogdAcceptQueueOverflow"),
        },
        Panel {
            title: "Expected listeners that are missing",
            help: "Listeners of [[expect]] in the agents' configuration that are not there.",
            form: Form::Stat,
            unit: Unit::Count,
            size: (6, 4),
            queries: &[query("count(backlogd_expected_listener_up{H} == 0)", "missing")],
            empty: "none is missing",
            limits: Some((1.0, 1.0)),
            link: Link::Runbook("BacklogdExpectedListenerDown"),
        },
        Panel {
            title: "What fires",
            help: "The alerts by name and by what they are about. A click leads to the host, on the name to its runbook, \
                   on the address or port to the listener, where it is one of TCP.",
            form: Form::Table,
            unit: Unit::Count,
            size: (24, 8),
            queries: &[query("backlogd_alert_firing{H} == 1", "")],
            empty: "none fires",
            limits: None,
            link: Link::Alert,
        },
    ],
};

const DROPS: Row = Row {
    title: "Is anything dropped?",
    panels: &[
        Panel {
            title: "Listen drops by reason",
            help: "Listen drops each second, over five minutes. A drop is not a client: each client tries several times. \
                   Where no hook tells the reason it is unspecified.",
            form: Form::Stacked,
            unit: Unit::PerSecond,
            size: (12, 8),
            queries: &[query(
                "sum by (reason) (instance_reason:backlogd_listener_drops:rate5m{H})",
                "{{reason}}",
            )],
            empty: "none seen",
            limits: None,
            link: Link::None,
        },
        Panel {
            title: "The kernel's own count",
            help: "What the kernels count themselves: ListenDrops is the sum of all listen drops beside.",
            form: Form::Lines,
            unit: Unit::PerSecond,
            size: (12, 8),
            queries: &[query(
                "sum by (field) (instance_field:backlogd_netstat:rate5m{H})",
                "{{field}}",
            )],
            empty: "none seen",
            limits: None,
            link: Link::None,
        },
        Panel {
            title: "Fullest accept queues",
            help: "Highest accept-queue length of the last minute, of the limit: a burst between two scrapes is in it. \
                   Above 100 % the kernel refuses. Of a host the five worst.",
            form: Form::BarGauge,
            unit: Unit::Ratio,
            size: (12, 9),
            queries: &[query(
                "topk(15, listener:backlogd_accept_queue_fill_ratio:top5{H})",
                "{{comm}} {{addr}}:{{port}} on {{instance}}",
            )],
            empty: "not measurable here",
            limits: Some((0.8, 1.0)),
            link: Link::Listener,
        },
        Panel {
            title: "Longest time with a full queue",
            help: "Share of the time in which a socket of the listener had more than its limit and refused. Of a host the five worst.",
            form: Form::BarGauge,
            unit: Unit::Ratio,
            size: (12, 9),
            queries: &[query(
                "topk(15, listener:backlogd_accept_queue_full:top5{H} > 0)",
                "{{comm}} {{addr}}:{{port}} on {{instance}}",
            )],
            empty: "none seen",
            limits: Some((0.01, 0.1)),
            link: Link::Listener,
        },
    ],
};

const SERVED: Row = Row {
    title: "Who accepts, and how soon?",
    panels: &[
        Panel {
            title: "Slowest accepts",
            help: "Mean time that connections spent in the accept queue, over five minutes. Of a host the five worst.",
            form: Form::Table,
            unit: Unit::Seconds,
            size: (12, 9),
            queries: &[query("topk(15, listener:backlogd_accept_wait_seconds:top5{H})", "wait")],
            empty: "nobody accepts, or not measurable here",
            limits: Some((0.1, 1.0)),
            link: Link::Listener,
        },
        Panel {
            title: "Accepted and closed",
            help: "Connections returned by accept each second, over five minutes, and below the axis those closed.",
            form: Form::Lines,
            unit: Unit::PerSecond,
            size: (12, 9),
            queries: &[
                query("sum(instance:backlogd_listener_accepted:rate5m{H})", "accepted"),
                mirrored("sum(instance:backlogd_listener_closed:rate5m{H})", "closed"),
            ],
            empty: "not measurable here",
            limits: None,
            link: Link::None,
        },
        Panel {
            title: "Growing open connections",
            help: "By how much the fewest open connections of five minutes are more than those of five minutes before: a leak, or growing traffic.",
            form: Form::Table,
            unit: Unit::Count,
            size: (12, 8),
            queries: &[query("topk(10, listener:backlogd_open_connections:rise5m{H})", "growth")],
            empty: "none grow",
            limits: None,
            link: Link::Listener,
        },
        Panel {
            title: "Closed by the peer, not by the owner",
            help: "Connections in CLOSE_WAIT: each holds a descriptor until its owner closes it. Of a host the five worst.",
            form: Form::Table,
            unit: Unit::Count,
            size: (12, 8),
            queries: &[query(
                "topk(10, listener:backlogd_close_wait_connections:top5{H})",
                "CLOSE_WAIT",
            )],
            empty: "none seen",
            limits: Some((20.0, 100.0)),
            link: Link::Listener,
        },
    ],
};

const RUNS_OUT: Row = Row {
    title: "What runs out?",
    panels: &[
        Panel {
            title: "Descriptors of processes",
            help: "Open descriptors of the limit, of processes that own listeners: the worst of each name.",
            form: Form::BarGauge,
            unit: Unit::Ratio,
            size: (8, 8),
            queries: &[query(
                "topk(10, backlogd_process_fd_ratio_max{H})",
                "{{comm}} on {{instance}}",
            )],
            empty: "not readable here",
            limits: Some((0.8, 0.95)),
            link: Link::Host,
        },
        Panel {
            title: "Local ports towards a destination",
            help: "Local ports in use of those usable towards one destination. At 100 % connect fails with EADDRNOTAVAIL.",
            form: Form::BarGauge,
            unit: Unit::Ratio,
            size: (8, 8),
            queries: &[query(
                "topk(10, backlogd_ephemeral_ports_used_ratio{H})",
                "{{dst}}:{{dst_port}} from {{instance}}",
            )],
            empty: "no destination uses a hundredth",
            limits: Some((0.8, 0.95)),
            link: Link::Host,
        },
        Panel {
            title: "Soonest exhaustion",
            help: "Time until no descriptor or local port is left if they go on growing as they do.",
            form: Form::Table,
            unit: Unit::Seconds,
            size: (8, 8),
            queries: &[query(
                "bottomk(10, backlogd_process_fds_exhausted_in_seconds{H} or backlogd_ephemeral_ports_exhausted_in_seconds{H})",
                "time left",
            )],
            empty: "nothing grows",
            limits: None,
            link: Link::Host,
        },
        Panel {
            title: "Failed accepts",
            help: "Calls of accept that failed, by program and errno; EAGAIN is none of them.",
            form: Form::Lines,
            unit: Unit::PerSecond,
            size: (8, 8),
            queries: &[query(
                "sum by (comm, errno) (rate(backlogd_accept_errors_total{H}[$__rate_interval]))",
                "{{comm}} {{errno}}",
            )],
            empty: "none seen",
            limits: None,
            link: Link::None,
        },
        Panel {
            title: "Failed connects",
            help: "Calls of connect that failed, by program and errno; EADDRNOTAVAIL: no local port is left.",
            form: Form::Lines,
            unit: Unit::PerSecond,
            size: (8, 8),
            queries: &[query(
                "sum by (comm, errno) (rate(backlogd_connect_errors_total{H}[$__rate_interval]))",
                "{{comm}} {{errno}}",
            )],
            empty: "none seen",
            limits: None,
            link: Link::None,
        },
        Panel {
            title: "UDP drops",
            help: "Datagrams that bound UDP sockets dropped each second, the ten worst.",
            form: Form::Lines,
            unit: Unit::PerSecond,
            size: (8, 8),
            queries: &[query(
                "rate(backlogd_udp_drops_total{H}[$__rate_interval]) and topk(10, rate(backlogd_udp_drops_total{H}[$__range] @ end()))",
                "{{comm}} {{addr}}:{{port}} on {{instance}}",
            )],
            empty: "no UDP socket is bound",
            limits: None,
            link: Link::Host,
        },
        Panel {
            title: "Fullest UDP receive queues",
            help: "Memory of the datagrams that wait to be received, of what there may be; a datagram above is dropped.",
            form: Form::BarGauge,
            unit: Unit::Ratio,
            size: (12, 8),
            queries: &[query(
                "topk(10, backlogd_udp_receive_queue_bytes{H} / backlogd_udp_receive_queue_limit_bytes{H})",
                "{{comm}} {{addr}}:{{port}} on {{instance}}",
            )],
            empty: "no UDP socket is bound",
            limits: Some((0.5, 0.9)),
            link: Link::Host,
        },
        Panel {
            title: "Busiest destinations",
            help: "Local ports in use towards one destination, and how many are usable.",
            form: Form::Table,
            unit: Unit::Count,
            size: (12, 8),
            queries: &[
                query("topk(10, sum without () (backlogd_ephemeral_ports_used{H}))", "used"),
                query(
                    "sum without () (backlogd_ephemeral_ports_usable{H}) and topk(10, sum without () (backlogd_ephemeral_ports_used{H}))",
                    "usable",
                ),
            ],
            empty: "no destination uses a hundredth",
            limits: None,
            link: Link::Host,
        },
    ],
};

const HOST: Row = Row {
    title: "The hosts",
    panels: &[
        Panel {
            title: "TCP sockets by state",
            help: "TCP sockets of the chosen hosts.",
            form: Form::Stacked,
            unit: Unit::Count,
            size: (8, 8),
            queries: &[query(
                "sum by (state) (instance_state:backlogd_sockets:sum{H})",
                "{{state}}",
            )],
            empty: "not readable here",
            limits: None,
            link: Link::None,
        },
        Panel {
            title: "TIME_WAIT",
            help: "Sockets in TIME_WAIT by local port; ephemeral: of connections that began here. Of a host the five ports with most.",
            form: Form::Stacked,
            unit: Unit::Count,
            size: (8, 8),
            queries: &[query(
                "sum by (port) (instance_port:backlogd_time_wait_sockets:top5{H}) and topk(10, sum by (port) (avg_over_time(instance_port:backlogd_time_wait_sockets:top5{H}[$__range] @ end())))",
                "port {{port}}",
            )],
            empty: "none seen",
            limits: None,
            link: Link::None,
        },
        Panel {
            title: "TCP memory",
            help: "Memory of all TCP sockets, the ten hosts with most, and the smallest limits of the chosen hosts: \
                   above pressure the kernel saves, at high it allocates no more.",
            form: Form::Lines,
            unit: Unit::Bytes,
            size: (8, 8),
            queries: &[
                query(
                    "backlogd_tcp_memory_bytes{H} and topk(10, avg_over_time(backlogd_tcp_memory_bytes{H}[$__range] @ end()))",
                    "{{instance}}",
                ),
                limit(
                    "min by (level) (backlogd_tcp_memory_limit_bytes{H,level!=\"low\"})",
                    "{{level}}",
                ),
            ],
            empty: "not readable here",
            limits: None,
            link: Link::None,
        },
        Panel {
            title: "Open files of hosts",
            help: "Open files of fs.file-max.",
            form: Form::BarGauge,
            unit: Unit::Ratio,
            size: (8, 8),
            queries: &[query(
                "topk(10, backlogd_host_open_fds{H} / backlogd_host_max_fds{H})",
                "{{instance}}",
            )],
            empty: "not readable here",
            limits: Some((0.8, 0.9)),
            link: Link::Host,
        },
        Panel {
            title: "Connections, orphans, UDP sockets",
            help: "Connections in ESTABLISHED or CLOSE_WAIT, sockets that no descriptor refers to any more, and bound UDP sockets.",
            form: Form::Lines,
            unit: Unit::Count,
            size: (8, 8),
            queries: &[
                query("sum(instance:backlogd_connected_sockets:sum{H})", "connected"),
                query("sum(backlogd_tcp_orphans{H})", "orphans"),
                query("sum(instance:backlogd_udp_sockets:sum{H})", "bound UDP sockets"),
            ],
            empty: "not readable here",
            limits: None,
            link: Link::None,
        },
        Panel {
            title: "Settings that listeners depend on",
            help: "The kernel's settings of the network namespaces, where they differ: how many namespaces have which value.",
            form: Form::Table,
            unit: Unit::Count,
            size: (8, 8),
            queries: &[query(
                "sum by (name, setting) (instance_setting:backlogd_sysctl_value:count{H})",
                "namespaces",
            )],
            empty: "not readable here",
            limits: None,
            link: Link::None,
        },
    ],
};
