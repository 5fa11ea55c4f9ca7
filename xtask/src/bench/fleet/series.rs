//! The series of a fleet as its agents give them, made up; pure.
//!
//! Of a host: 40 listeners in its own network namespace and 160 in 40 pods, each with one of its own. Of these only
//! what rules and the fleet's dashboard ask for, with classic histograms, and what the rules record of it. One series
//! in 64 of those that are zero where all is well is not.

/// A series' labels but its name.
pub(super) type Labels = Vec<(&'static str, String)>;

/// How many ways there are for a number to move: that many chunks are made of each metric, and are shared.
pub(super) const N_VARIANTS: u64 = 256;
/// Listeners of one host that are in no pod, of two hundred.
const N_OF_HOST: u32 = 40;
/// Listeners of a pod.
const N_OF_POD: u32 = 4;
/// The only job.
pub(super) const JOB: &str = "backlogd";
const PROGRAMS: [&str; 8] =
    ["nginx", "redis-server", "java", "postgres", "python3", "node", "envoy", "sshd"];

/// What a series is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Of {
    Host,
    Namespace,
    Listener,
    Udp,
    Program,
    Destination,
}

/// How a number moves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Shape {
    /// Not at all.
    Steady(f64),
    /// Up and down, whole, from zero to this.
    Level(f64),
    /// Up and down below this.
    Ratio(f64),
    /// Grows by as much each second, half or twice of it.
    Counter(f64),
    /// The same in one series of 64, others stay at zero.
    Rare(f64),
    /// 1 in one series of 256, else 0.
    Switch,
}

/// The series of one name.
#[derive(Clone, Copy, Debug)]
pub(super) struct Family {
    pub(super) name: &'static str,
    of: Of,
    /// A label more, and its values.
    pub(super) extra: Option<(&'static str, &'static [&'static str])>,
    shape: Shape,
    /// Only the first of as many hosts, listeners or others has such a series.
    one_of: usize,
}

const fn family(name: &'static str, of: Of, shape: Shape) -> Family {
    Family { name, of, extra: None, shape, one_of: 1 }
}

const fn by(
    name: &'static str,
    of: Of,
    label: &'static str,
    values: &'static [&'static str],
    shape: Shape,
) -> Family {
    Family { name, of, extra: Some((label, values)), shape, one_of: 1 }
}

const fn sparse(family: Family, one_of: usize) -> Family {
    Family { one_of, ..family }
}

const REASONS: &[&str] =
    &["accept_queue_full_ack", "accept_queue_full_syn", "other", "syn_queue_full"];
const BOUNDS: &[&str] = &[
    "0.0000152587890625",
    "0.00006103515625",
    "0.000244140625",
    "0.0009765625",
    "0.00390625",
    "0.015625",
    "0.0625",
    "0.25",
    "1.0",
    "4.0",
    "16.0",
    "64.0",
    "+Inf",
];
const FIELDS: &[&str] = &[
    "ListenDrops",
    "ListenOverflows",
    "PassiveOpens",
    "TCPAbortOnMemory",
    "TCPReqQFullDoCookies",
    "TCPReqQFullDrop",
    "TCPTimeWaitOverflow",
];
const SETTINGS: &[&str] = &[
    "ip_local_port_range_max",
    "ip_local_port_range_min",
    "somaxconn",
    "tcp_abort_on_overflow",
    "tcp_max_syn_backlog",
    "tcp_max_tw_buckets",
    "tcp_synack_retries",
    "tcp_syncookies",
];
const STATES: &[&str] =
    &["close_wait", "established", "fin_wait_1", "fin_wait_2", "listen", "syn_recv", "time_wait"];
const LEVELS: &[&str] = &["high", "low", "pressure"];
const PORTS: &[&str] = &["3306", "443", "6379", "80", "ephemeral"];
const STAGES: &[&str] = &["kernel", "map_full", "no_slot", "stale"];

/// All, in no order.
pub(super) const FAMILIES: &[Family] = {
    use Of::{Destination, Host, Listener, Namespace, Program, Udp};
    use Shape::{Counter, Level, Rare, Ratio, Steady, Switch};
    &[
        family("backlogd_listener_accept_queue_length", Listener, Level(4.0)),
        family("backlogd_listener_accept_queue_limit", Listener, Steady(128.0)),
        family("backlogd_listener_accept_queue_length_max", Listener, Level(24.0)),
        family("backlogd_listener_accept_queue_fill_ratio_max", Listener, Ratio(0.2)),
        family("backlogd_listener_accept_queue_full_seconds_total", Listener, Rare(0.02)),
        family("backlogd_listener_syns_total", Listener, Counter(8.0)),
        family("backlogd_listener_syncookies_total", Listener, Rare(0.1)),
        family("backlogd_listener_sockets", Listener, Steady(1.0)),
        family("backlogd_listener_established_total", Listener, Counter(8.0)),
        family("backlogd_listener_accepted_total", Listener, Counter(8.0)),
        family("backlogd_listener_accept_wait_seconds_count", Listener, Counter(8.0)),
        family("backlogd_listener_accept_wait_seconds_sum", Listener, Counter(0.008)),
        by("backlogd_listener_accept_wait_seconds_bucket", Listener, "le", BOUNDS, Counter(8.0)),
        family("backlogd_listener_closed_total", Listener, Counter(8.0)),
        by("backlogd_listener_drops_total", Listener, "reason", REASONS, Rare(0.2)),
        family("backlogd_listener_open_connections", Listener, Level(200.0)),
        family("backlogd_listener_close_wait_connections", Listener, Level(3.0)),
        family("backlogd_listener_stalled", Listener, Switch),
        family("backlogd_udp_drops_total", Udp, Rare(0.1)),
        family("backlogd_udp_receive_queue_bytes", Udp, Level(4096.0)),
        family("backlogd_udp_receive_queue_limit_bytes", Udp, Steady(212_992.0)),
        family("backlogd_udp_sockets", Udp, Steady(1.0)),
        by("backlogd_accept_errors_total", Program, "errno", &["ECONNABORTED"], Rare(0.1)),
        by("backlogd_connect_errors_total", Program, "errno", &["ECONNREFUSED"], Rare(0.1)),
        family("backlogd_process_open_fds", Program, Level(400.0)),
        family("backlogd_process_max_fds", Program, Steady(1024.0)),
        family("backlogd_process_fd_ratio_max", Program, Ratio(0.4)),
        sparse(family("backlogd_process_fds_exhausted_in_seconds", Program, Level(9000.0)), 20),
        family("backlogd_ephemeral_ports_used", Destination, Level(3000.0)),
        family("backlogd_ephemeral_ports_usable", Destination, Steady(28_232.0)),
        family("backlogd_ephemeral_ports_used_ratio", Destination, Ratio(0.1)),
        sparse(
            family("backlogd_ephemeral_ports_exhausted_in_seconds", Destination, Level(9000.0)),
            20,
        ),
        by("backlogd_netstat_total", Namespace, "field", FIELDS, Rare(0.2)),
        by("backlogd_sysctl_value", Namespace, "name", SETTINGS, Steady(1.0)),
        by("backlogd_sockets", Namespace, "state", STATES, Level(60.0)),
        by("backlogd_time_wait_sockets", Namespace, "port", &["80", "ephemeral"], Level(90.0)),
        family("backlogd_connected_sockets", Namespace, Level(200.0)),
        family("backlogd_host_open_fds", Host, Level(9000.0)),
        family("backlogd_host_max_fds", Host, Steady(1_000_000.0)),
        family("backlogd_tcp_memory_bytes", Host, Level(9e7)),
        by("backlogd_tcp_memory_limit_bytes", Host, "level", LEVELS, Steady(3e8)),
        family("backlogd_tcp_orphans", Host, Level(8.0)),
        by("backlogd_events_lost_total", Host, "stage", STAGES, Rare(0.01)),
        by("backlogd_sample_duration_seconds_sum", Host, "source", &["total"], Counter(0.004)),
        by("backlogd_sample_duration_seconds_count", Host, "source", &["total"], Counter(1.0)),
        by("backlogd_build_info", Host, "version", &["0.1.0"], Steady(1.0)),
        family("process_start_time_seconds", Host, Steady(1.7e9)),
        family("up", Host, Steady(1.0)),
        sparse(by("backlogd_expected_listener_up", Host, "port", &["443", "80"], Steady(1.0)), 10),
        sparse(
            Family {
                extra: Some(("alert", &["AcceptQueueNearLimit"])),
                ..family("backlogd_alert_firing", Listener, Steady(1.0))
            },
            2000,
        ),
        // what rules make of it
        sparse(family("listener:backlogd_overflows:increase5m", Listener, Level(9.0)), 64),
        sparse(
            family("listener:backlogd_accept_queue_fill_ratio:near_limit", Listener, Ratio(1.0)),
            512,
        ),
        sparse(family("listener:backlogd_accept_queue_length:stalled", Listener, Level(4.0)), 256),
        sparse(family("listener:backlogd_slow_accepts:ratio2m", Listener, Ratio(0.5)), 512),
        sparse(family("listener:backlogd_syns_lost:rate2m", Listener, Level(20.0)), 512),
        sparse(family("listener:backlogd_syns_of_those:rate2m", Listener, Level(200.0)), 512),
        sparse(family("listener:backlogd_close_wait_connections:min5m", Listener, Level(9.0)), 8),
        sparse(
            family("listener:backlogd_close_wait_connections:buildup", Listener, Level(90.0)),
            512,
        ),
        // the fewest of twenty
        family("listener:backlogd_open_connections:min5m", Listener, Level(20.0)),
        sparse(family("listener:backlogd_open_connections:rise5m", Listener, Level(20.0)), 3),
        sparse(family("listener:backlogd_open_connections:rise20m", Listener, Level(90.0)), 512),
        sparse(
            family("listener:backlogd_accepted_rising:increase10m", Listener, Level(900.0)),
            512,
        ),
        sparse(
            family("listener:backlogd_accepted_rising:increase10m_before", Listener, Level(900.0)),
            512,
        ),
        sparse(family("listener:backlogd_open_connections:leak", Listener, Level(90.0)), 512),
        family("comm:backlogd_open_fds:rise10m", Program, Level(9.0)),
        family("comm:backlogd_open_fds:rise75s", Program, Level(9.0)),
        family("destination:backlogd_ports_used:rise75s", Destination, Level(9.0)),
        family("instance:backlogd_host_open_fds:rise75s", Host, Level(9.0)),
        family("netns:backlogd_listen_drops:unclaimed", Namespace, Steady(0.0)),
        family("instance:backlogd_listeners:count", Host, Steady(200.0)),
        family("instance:backlogd_listeners_overflowing:sum", Host, Level(4.0)),
        family("instance:backlogd_listeners_stalled:sum", Host, Level(2.0)),
        by("instance_reason:backlogd_listener_drops:rate5m", Host, "reason", REASONS, Ratio(9.0)),
        family("instance:backlogd_listener_accepted:rate5m", Host, Ratio(2000.0)),
        family("instance:backlogd_listener_closed:rate5m", Host, Ratio(2000.0)),
        by("instance_field:backlogd_netstat:rate5m", Host, "field", FIELDS, Ratio(9.0)),
        by("instance_state:backlogd_sockets:sum", Host, "state", STATES, Level(2000.0)),
        family("instance:backlogd_connected_sockets:sum", Host, Level(9000.0)),
        by("instance_port:backlogd_time_wait_sockets:top5", Host, "port", PORTS, Level(900.0)),
        family("instance:backlogd_udp_sockets:sum", Host, Steady(20.0)),
        by("instance_setting:backlogd_sysctl_value:count", Host, "name", SETTINGS, Steady(41.0)),
        sparse(family("listener:backlogd_accept_queue_fill_ratio:top5", Listener, Ratio(1.0)), 40),
        sparse(family("listener:backlogd_accept_queue_full:top5", Listener, Ratio(0.1)), 40),
        sparse(family("listener:backlogd_accept_wait_seconds:top5", Listener, Ratio(0.1)), 40),
        sparse(family("listener:backlogd_close_wait_connections:top5", Listener, Level(9.0)), 40),
    ]
};

/// The labels of all that `of` stands for, of so many hosts with so many listeners.
pub(super) fn all(of: Of, n_hosts: u32, n_listeners: u32) -> Vec<Labels> {
    let of_host = |host: u32| -> Vec<Labels> {
        let instance = ("instance", format!("node-{host:04}.example.com:10511"));
        let own = match of {
            Of::Host => vec![Vec::new()],
            Of::Namespace => (0..=n_pods(n_listeners)).map(|pod| vec![netns(host, pod)]).collect(),
            Of::Listener => (0..n_listeners).map(|at| listener(host, at)).collect(),
            Of::Udp => (0..n_listeners.div_ceil(10)).map(|at| listener(host, at)).collect(),
            Of::Program => PROGRAMS.map(|comm| vec![("comm", comm.to_owned())]).into(),
            Of::Destination => (0..8).map(|at| destination(host, at)).collect(),
        };
        let with_host = |mut labels: Labels| {
            labels.extend([instance.clone(), ("job", JOB.to_owned())]);
            labels.sort_unstable();
            labels
        };
        own.into_iter().map(with_host).collect()
    };
    (0..n_hosts).flat_map(of_host).collect()
}

fn n_pods(n_listeners: u32) -> u32 {
    n_listeners.saturating_sub(N_OF_HOST).div_ceil(N_OF_POD)
}

/// Pod 0 is the host itself.
fn netns(host: u32, pod: u32) -> (&'static str, String) {
    let number = if pod == 0 { 4_026_531_840 } else { 4_026_532_000 + (host % 7) * 100 + pod };
    ("netns", number.to_string())
}

fn listener(host: u32, at: u32) -> Labels {
    let comm = PROGRAMS[(at as usize + host as usize) % PROGRAMS.len()];
    let addr = if at.is_multiple_of(2) { "::" } else { "0.0.0.0" };
    let mut labels = vec![
        ("addr", addr.to_owned()),
        ("comm", comm.to_owned()),
        ("port", (8000 + at).to_string()),
    ];
    let pod = (at + N_OF_POD).saturating_sub(N_OF_HOST) / N_OF_POD;
    labels.push(netns(host, pod));
    if 0 < pod {
        labels.extend([
            ("container", comm.to_owned()),
            ("namespace", format!("team-{}", pod % 12)),
            ("pod", format!("{comm}-{host:04}-{pod:03}")),
        ]);
    }
    labels
}

fn destination(host: u32, at: u32) -> Labels {
    vec![
        netns(host, 0),
        ("dst", format!("10.0.{}.{at}", host % 250)),
        ("dst_port", "5432".to_owned()),
    ]
}

impl Family {
    pub(super) fn of(&self) -> Of {
        self.of
    }

    /// Whether the one at this place has such a series.
    pub(super) fn has(&self, at: usize) -> bool {
        at.is_multiple_of(self.one_of)
    }

    /// How the number of the one at this place moves.
    pub(super) fn variant(&self, at: usize) -> u64 {
        (at as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32 & (N_VARIANTS - 1)
    }

    /// The number after so many steps of so many seconds, by the place of the value of the label more.
    pub(super) fn value(&self, variant: u64, extra: usize, step: u32, seconds: u32) -> f64 {
        let random = |of: u64| (mixed(of) % 1000) as f64 / 1000.0;
        let grown = |per_second: f64| {
            let speed = per_second * (0.5 + 1.5 * random(variant));
            // never back: a sample comes less than a step too late
            let steps = f64::from(step) + 0.9 * random(variant << 32 | u64::from(step));
            let all = speed * steps * f64::from(seconds);
            if per_second < 0.05 { all } else { all.floor() }
        };
        let now = || random(variant << 32 | u64::from(step / 4) << 8 | extra as u64);
        match self.shape {
            Shape::Steady(value) => value,
            Shape::Level(top) => (now() * random(variant) * top).round(),
            Shape::Ratio(top) => now() * top,
            Shape::Counter(per_second) if self.name.ends_with("_bucket") => {
                // all waits are shorter than a second, nine of ten than a sixteenth of one
                let share = [0.1, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99].get(extra).unwrap_or(&1.0);
                (grown(per_second) * share).floor()
            }
            Shape::Counter(per_second) => grown(per_second),
            Shape::Rare(per_second) if variant.is_multiple_of(64) => grown(per_second),
            Shape::Rare(_) => 0.0,
            Shape::Switch => f64::from(u8::from(variant == 0)),
        }
    }
}

/// The same number for the same one, and no other pattern (splitmix64).
fn mixed(of: u64) -> u64 {
    let mut it = of.wrapping_add(0x9E37_79B9_7F4A_7C15);
    it = (it ^ (it >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    it = (it ^ (it >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    it ^ (it >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_have_labels_of_their_own() {
        let all = all(Of::Listener, 3, 200);
        let different: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!((all.len(), different.len()), (600, 600));
        let in_pods = all.iter().filter(|labels| labels.iter().any(|it| it.0 == "pod"));
        assert_eq!(in_pods.count(), 3 * 160);
        assert!(all.iter().all(|labels| labels.is_sorted()));
    }

    #[test]
    fn counters_never_go_back() {
        for family in FAMILIES.iter().filter(|it| matches!(it.shape, Shape::Counter(_))) {
            for variant in [0, 1, 100, N_VARIANTS - 1] {
                let values: Vec<_> = (0..50).map(|at| family.value(variant, 0, at, 15)).collect();
                assert!(values.is_sorted(), "{}: {values:?}", family.name);
            }
        }
    }
}
