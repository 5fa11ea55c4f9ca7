//! The agent itself: does it see everything, are its numbers the kernel's, what does it cost?

use super::{
    board::{Board, Form, Link, Panel, Row, Unit, Variable, counted, query},
    shed,
};

/// The agents of the chosen hosts.
pub(super) const BOARD: Board = Board {
    uid: "backlogd-agent",
    title: "backlogd / The agent itself",
    help: "Does it see everything, are its numbers the kernel's, what does it cost?",
    variables: &[
        Variable { name: "job", label: "Job", of: "backlogd_build_info" },
        Variable { name: "instance", label: "Host", of: "backlogd_build_info" },
    ],
    rows: &[SEES, COSTS, TELLS, shed::ROW],
};

const SEES: Row = Row {
    title: "Does it see everything?",
    panels: &[
        Panel {
            title: "Agents",
            help: "Agents by version.",
            form: Form::Table,
            unit: Unit::Count,
            size: (6, 8),
            queries: &[query("count by (version, commit) (backlogd_build_info{H})", "agents")],
            empty: "no agent answers",
            limits: None,
            link: Link::None,
        },
        Panel {
            title: "Up since",
            help: "When each agent started.",
            form: Form::Table,
            unit: Unit::Since,
            size: (6, 8),
            queries: &[query("topk(20, process_start_time_seconds{H} * 1000)", "started")],
            empty: "no agent answers",
            limits: None,
            link: Link::Agent,
        },
        Panel {
            title: "How events are obtained",
            help: "Hosts by event and by the kind of hook that gives it: sampled and none mean that its numbers are rougher, or absent.",
            form: Form::Table,
            unit: Unit::Count,
            size: (12, 8),
            queries: &[query("count by (event, tier) (backlogd_hook_info{H})", "hosts")],
            empty: "no agent answers",
            limits: None,
            link: Link::None,
        },
        Panel {
            title: "Agreement with the kernel",
            help: "Listen drops of all listeners less ListenDrops of their namespaces, over five minutes: 0 when the agent \
                   counts what the kernel counts. A small one that goes with its drops is Prometheus' extrapolation, which \
                   is not the same for a counter that was 0.",
            form: Form::Lines,
            unit: Unit::Count,
            size: (8, 8),
            queries: &[query(
                "sum by (job, instance) (increase(backlogd_listener_drops_total{H}[5m])) - sum by (job, instance) (increase(backlogd_netstat_total{H,field=\"ListenDrops\"}[5m]))",
                "{{instance}}",
            )],
            empty: "nothing to compare",
            limits: None,
            link: Link::Agent,
        },
        Panel {
            title: "Lost events",
            help: "Events not counted for a listener, by stage, and runs of programs that the kernel skipped.",
            form: Form::Lines,
            unit: Unit::PerSecond,
            size: (8, 8),
            queries: &[
                query(
                    "sum by (stage) (rate(backlogd_events_lost_total{H}[$__rate_interval]))",
                    "{{stage}}",
                ),
                query(
                    "sum by (event) (rate(backlogd_hook_missed_total{H}[$__rate_interval])) > 0",
                    "skipped: {{event}}",
                ),
            ],
            empty: "no program runs",
            limits: None,
            link: Link::None,
        },
        Panel {
            title: "Put right",
            help: "Handshakes that only the second copy of a program counted, and ends of connections that only a count of all showed: \
                   these are in the numbers.",
            form: Form::Lines,
            unit: Unit::PerSecond,
            size: (8, 8),
            queries: &[
                query("sum(rate(backlogd_second_copy_total{H}[$__rate_interval]))", "second copy"),
                query(
                    "sum(rate(backlogd_open_corrections_total{H}[$__rate_interval]))",
                    "corrected ends",
                ),
            ],
            empty: "no program runs",
            limits: None,
            link: Link::None,
        },
        Panel {
            title: "Fullest maps",
            help: "Entries in use of what the kernel's maps can hold.",
            form: Form::BarGauge,
            unit: Unit::Ratio,
            size: (8, 8),
            queries: &[query(
                "topk(10, backlogd_map_entries{H} / backlogd_map_capacity{H})",
                "{{map}} on {{instance}}",
            )],
            empty: "no program runs",
            limits: Some((0.7, 0.9)),
            link: Link::Agent,
        },
        Panel {
            title: "Tables of sockets",
            help: "Age of the newest read of a namespace's table of sockets, the ten oldest; CLOSE_WAIT, ports and states are from it.",
            form: Form::Lines,
            unit: Unit::Seconds,
            size: (8, 8),
            queries: &[query(
                "backlogd_table_age_seconds{H} and topk(10, avg_over_time(backlogd_table_age_seconds{H}[$__range] @ end()))",
                "{{netns}} on {{instance}}",
            )],
            empty: "no table is readable",
            limits: None,
            link: Link::None,
        },
        Panel {
            title: "Partial tables, folded series, closer looks",
            help: "Namespaces whose table is read in part; series without labels of their own, since there are more than series_limit; \
                   times that the tracepoints of system calls were switched on for a stalled listener, and where they are on now.",
            form: Form::Stat,
            unit: Unit::Count,
            size: (8, 8),
            queries: &[
                query("sum(backlogd_table_partial{H})", "partial tables"),
                query(
                    "sum(increase(backlogd_series_folded_total{H}[1h])) or vector(0)",
                    "folded in an hour",
                ),
                query(
                    "sum(increase(backlogd_closer_looks_total{H}[1h])) or vector(0)",
                    "closer looks in an hour",
                ),
                query("sum(backlogd_closer_look_active{H}) or vector(0)", "closer looks now"),
            ],
            empty: "not readable here",
            limits: None,
            link: Link::None,
        },
    ],
};

const COSTS: Row = Row {
    title: "What does it cost?",
    panels: &[
        Panel {
            title: "CPU of the agent",
            help: "Share of one core that the agent's process uses, the ten highest.",
            form: Form::Lines,
            unit: Unit::Ratio,
            size: (8, 8),
            queries: &[query(
                "rate(process_cpu_seconds_total{H}[$__rate_interval]) and topk(10, rate(process_cpu_seconds_total{H}[$__range] @ end()))",
                "{{instance}}",
            )],
            empty: "no agent answers",
            limits: None,
            link: Link::Agent,
        },
        Panel {
            title: "CPU of its programs",
            help: "Share of one core that the eBPF programs use, by program; only while kernel.bpf_stats_enabled is 1.",
            form: Form::Stacked,
            unit: Unit::Ratio,
            size: (8, 8),
            queries: &[query(
                "sum by (program) (rate(backlogd_ebpf_run_seconds_total{H}[$__rate_interval]))",
                "{{program}}",
            )],
            empty: "the kernel's BPF statistics are off",
            limits: None,
            link: Link::None,
        },
        Panel {
            title: "Time of one run",
            help: "Mean time of one run of each program; only while kernel.bpf_stats_enabled is 1.",
            form: Form::Lines,
            unit: Unit::Seconds,
            size: (8, 8),
            queries: &[query(
                "sum by (program) (rate(backlogd_ebpf_run_seconds_total{H}[$__rate_interval])) / (sum by (program) (rate(backlogd_ebpf_runs_total{H}[$__rate_interval])) > 0)",
                "{{program}}",
            )],
            empty: "the kernel's BPF statistics are off",
            limits: None,
            link: Link::None,
        },
        Panel {
            title: "Memory",
            help: "Resident memory of the agent, the ten highest.",
            form: Form::Lines,
            unit: Unit::Bytes,
            size: (8, 8),
            queries: &[query(
                "process_resident_memory_bytes{H} and topk(10, avg_over_time(process_resident_memory_bytes{H}[$__range] @ end()))",
                "{{instance}}",
            )],
            empty: "no agent answers",
            limits: None,
            link: Link::Agent,
        },
        Panel {
            title: "Duration of a sample",
            help: "Time that a sample takes, by source: 99 of 100 take less.",
            form: Form::Lines,
            unit: Unit::Seconds,
            size: (8, 8),
            queries: &[query(
                "histogram_quantile(0.99, sum by (le, source) (rate(backlogd_sample_duration_seconds_bucket{H}[$__rate_interval]))) or histogram_quantile(0.99, sum by (source) (rate(backlogd_sample_duration_seconds{H}[$__rate_interval])))",
                "{{source}}",
            )],
            empty: "no agent answers",
            limits: None,
            link: Link::None,
        },
        Panel {
            title: "Reads of tables",
            help: "Time that the newest read of a namespace's table of sockets took, the ten longest, and the sockets that it saw.",
            form: Form::Table,
            unit: Unit::Seconds,
            size: (8, 8),
            queries: &[
                query(
                    "topk(10, sum without () (backlogd_table_read_seconds{H}) and backlogd_table_rows{H} > 0)",
                    "took",
                ),
                counted(
                    "sum without () (backlogd_table_rows{H}) and topk(10, backlogd_table_read_seconds{H} and backlogd_table_rows{H} > 0)",
                    "sockets",
                ),
            ],
            empty: "no table is readable",
            limits: None,
            link: Link::Agent,
        },
        Panel {
            title: "Scrapes",
            help: "Time that a scrape takes, the ten longest.",
            form: Form::Lines,
            unit: Unit::Seconds,
            size: (12, 8),
            queries: &[query(
                "scrape_duration_seconds{H} and topk(10, avg_over_time(scrape_duration_seconds{H}[$__range] @ end()))",
                "{{instance}}",
            )],
            empty: "nothing is scraped",
            limits: None,
            link: Link::Agent,
        },
        Panel {
            title: "Series",
            help: "Samples of a scrape, the ten largest.",
            form: Form::Lines,
            unit: Unit::Count,
            size: (12, 8),
            queries: &[query(
                "scrape_samples_scraped{H} and topk(10, avg_over_time(scrape_samples_scraped{H}[$__range] @ end()))",
                "{{instance}}",
            )],
            empty: "nothing is scraped",
            limits: None,
            link: Link::Agent,
        },
    ],
};

const TELLS: Row = Row {
    title: "Do its alerts arrive?",
    panels: &[
        Panel {
            title: "Alerts sent",
            help: "Alerts sent to the receivers of the agent's configuration, by result: refused ones are dropped until they are due again, \
                   failed ones are tried again.",
            form: Form::Lines,
            unit: Unit::PerSecond,
            size: (12, 7),
            queries: &[query(
                "sum by (receiver, result) (rate(backlogd_alert_notifications_total{H}[$__rate_interval]))",
                "{{receiver}} {{result}}",
            )],
            empty: "no receiver is configured",
            limits: None,
            link: Link::None,
        },
        Panel {
            title: "Alerts to be sent",
            help: "Alerts whose newest state a receiver does not know yet.",
            form: Form::Lines,
            unit: Unit::Count,
            size: (12, 7),
            queries: &[query(
                "sum by (receiver) (backlogd_alert_notifications_pending{H})",
                "{{receiver}}",
            )],
            empty: "no receiver is configured",
            limits: None,
            link: Link::None,
        },
        Panel {
            title: "Alerts that ended for want of room",
            help: "Alerts of subjects that are gone and for which there was no room.",
            form: Form::Lines,
            unit: Unit::PerSecond,
            size: (12, 7),
            queries: &[query(
                "sum(rate(backlogd_alerts_no_room_total{H}[$__rate_interval]))",
                "alerts",
            )],
            empty: "no agent answers",
            limits: None,
            link: Link::None,
        },
        Panel {
            title: "Descriptors and threads",
            help: "Of the agent's own process, the ten highest.",
            form: Form::Lines,
            unit: Unit::Count,
            size: (12, 7),
            queries: &[
                query(
                    "process_open_fds{H} and topk(10, avg_over_time(process_open_fds{H}[$__range] @ end()))",
                    "descriptors on {{instance}}",
                ),
                query(
                    "process_threads{H} and topk(10, avg_over_time(process_threads{H}[$__range] @ end()))",
                    "threads on {{instance}}",
                ),
            ],
            empty: "no agent answers",
            limits: None,
            link: Link::Agent,
        },
    ],
};
