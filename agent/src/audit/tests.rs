//! The audit, by what it says of a host that a case changes.

use std::{collections::BTreeMap, sync::Arc};

use super::*;
use crate::id::Pid;
use crate::{
    detect::LIMIT_WANTED,
    detect::fixture::{check_mend, listener, process, snapshot},
    histogram::Histogram,
    input::{Absent, Destination, Sockstat, Table, TableRead},
    model::snapshot::PortUse,
    time::{Monotonic, Nanos},
};
use backlogd_abi::histogram::{BUCKETS, bucket};

/// The names, severities and subjects of what is found after `change`, and all of the first one's words.
#[track_caller]
fn check(change: impl FnOnce(&mut Snapshot), expected: &[&str], words: &[&str]) {
    let mut now = snapshot(vec![listener(80)]);
    change(&mut now);
    let findings = audit(&now, &Verdicts::default());
    let told: Vec<String> = findings
        .iter()
        .map(|it| format!("{} {} {}", it.severity.name(), it.name, it.subject.name))
        .collect();
    assert_eq!(expected, told, "{findings:#?}");
    findings.iter().for_each(|it| check_mend(&it.mend));
    for word in words {
        let first = format!("{:#?}", findings[0]);
        assert!(first.contains(word), "{word}: {first}");
    }
}

fn sysctls(now: &mut Snapshot, values: &[(&'static str, i64)]) {
    let mut all: BTreeMap<_, _> = (*now.namespaces[0].sysctls).clone();
    all.extend(values.iter().copied());
    now.namespaces[0].sysctls = Arc::new(all);
}

fn limit(now: &mut Snapshot, limit: u32) {
    let it = &mut now.listeners[0];
    it.members[0].limit = limit;
    it.limit = limit.into();
}

/// A Debian host as it comes, with sshd and nginx.
fn debian(now: &mut Snapshot) {
    let usual = [
        ("ip_local_port_range_low", 32_768),
        ("ip_local_port_range_high", 60_999),
        ("tcp_abort_on_overflow", 0),
        ("tcp_fin_timeout", 60),
        ("tcp_max_syn_backlog", 4096),
        ("tcp_max_tw_buckets", 262_144),
        ("tcp_timestamps", 1),
        ("tcp_tw_reuse", 2),
    ];
    sysctls(now, &usual);
    let mut ssh = listener(22);
    ssh.comm = Some("sshd".into());
    now.listeners.push(ssh);
    limit(now, 511);
    now.listeners[0].rates.established = Ok(5_000.0);
    now.listeners[0].length_max = Ok(400);
}

#[test]
fn a_host_as_it_comes_has_nothing() {
    check(|_| {}, &[], &[]);
    check(debian, &[], &[]);
}

#[test]
fn a_limit_matters_where_traffic_or_overflows_show_it() {
    let capped = |now: &mut Snapshot| {
        sysctls(now, &[("somaxconn", 128)]);
    };
    check(capped, &[], &[]);
    let overflow = |now: &mut Snapshot| {
        capped(now);
        now.listeners[0].counters.drops_by.accept_queue_full_syn = Ok(37);
        now.listeners[0].length_max = Ok(129);
    };
    check(
        overflow,
        &["warning LimitCappedBySomaxconn nginx 0.0.0.0:80"],
        &[
            "limit 128 is net.core.somaxconn; up to 129 waited, 37 overflows",
            "sysctl -w net.core.somaxconn=4096 # then restart",
            "restart: true",
        ],
    );
    let busy = |now: &mut Snapshot| {
        capped(now);
        now.listeners[0].rates.established = Ok(50.0);
    };
    check(busy, &["info LimitCappedBySomaxconn nginx 0.0.0.0:80"], &["50 handshakes/s"]);
    // a longer queue would not help
    let stalled = |now: &mut Snapshot| {
        overflow(now);
        now.listeners[0].stalled = Ok(true);
    };
    check(
        stalled,
        &["info LimitCappedBySomaxconn nginx 0.0.0.0:80"],
        &["Nobody accepts at present"],
    );
    let own = |now: &mut Snapshot| {
        limit(now, 50);
        now.listeners[0].counters.drops_by.accept_queue_full_ack = Ok(1);
    };
    check(
        own,
        &["warning SmallBacklog nginx 0.0.0.0:80"],
        &[
            "limit 50: the program asked for no more; up to 0 waited, 1 overflow since",
            "mend: \"# raise `backlog=` of `listen`, 511 by default, to 1024, then restart",
        ],
    );
    let lowered = |now: &mut Snapshot| {
        own(now);
        sysctls(now, &[("somaxconn", 20)]);
        now.listeners[0].comm = Some("nginx-ui".into());
    };
    check(
        lowered,
        &["warning SmallBacklog nginx-ui 0.0.0.0:80"],
        &[
            "limit 50: somaxconn has been lowered since",
            "mend: \"sysctl -w net.core.somaxconn=4096 # raise the backlog argument of listen(2) in the \
             program, to 1024, then restart",
        ],
    );
    check(|now| limit(now, 50), &[], &[]);
    check(
        |now| limit(now, 1),
        &["info TinyBacklog nginx 0.0.0.0:80"],
        &["No more than 2 can wait"],
    );
}

/// By how long `n` connections waited, all for a second.
#[test]
fn a_few_waits_do_not_tell_a_slow_program_from_a_short_queue() {
    #[track_caller]
    fn of(n: u64, severity: &str, words: &str) {
        let slow = |now: &mut Snapshot| {
            limit(now, 50);
            let it = &mut now.listeners[0];
            it.counters.drops_by.accept_queue_full_ack = Ok(1);
            let mut buckets = [0; BUCKETS];
            buckets[bucket(1_000_000_000)] = n;
            it.accept_wait = Ok(Arc::new(Histogram::new(buckets, Nanos(n * 1_000_000_000))));
        };
        check(slow, &[&format!("{severity} SmallBacklog nginx 0.0.0.0:80")], &[words]);
    }
    of(1, "warning", "retries after a second, and again.\"");
    of(19, "warning", "retries after a second, and again.\"");
    of(20, "info", "But 1 % wait longer than");
}

#[test]
fn a_limit_is_proposed_as_the_alerts_about_the_listener_propose_it() {
    let mut now = snapshot(vec![listener(80)]);
    limit(&mut now, 1);
    let judged =
        fixture::judged(now, &[("AcceptQueueOverflow", Severity::Warning, 0, "90 overflows")]);
    let mend = |verdicts: &Verdicts| audit(&judged.snapshot, verdicts)[0].mend.clone();
    assert!(mend(&judged.verdicts).contains(", to 1024, "), "{}", mend(&judged.verdicts));
    let mut verdicts = (*judged.verdicts).clone();
    let alert = Arc::make_mut(&mut verdicts.alerts[0]);
    Arc::make_mut(&mut alert.latest).values.push((LIMIT_WANTED, 2048.0));
    assert!(mend(&verdicts).contains(", to 2048, "), "{}", mend(&verdicts));
}

#[test]
fn a_pod_has_a_somaxconn_of_its_own() {
    let pod = |now: &mut Snapshot| {
        let mut first = now.namespaces[0].clone();
        first.netns = NetnsId(1);
        now.namespaces.insert(0, first);
        now.namespaces[1].sysctls = Arc::new([("somaxconn", 128)].into());
        now.listeners[0].counters.drops_by.accept_queue_full_syn = Ok(1);
    };
    check(
        pod,
        &["warning LimitCappedBySomaxconn nginx 0.0.0.0:80"],
        &[
            "of its network namespace (the host itself has 4096)",
            "nsenter --target 100 --net sysctl -w net.core.somaxconn=4096",
        ],
    );
}

#[test]
fn cookies_matter_where_others_can_connect() {
    let off = |now: &mut Snapshot| sysctls(now, &[("tcp_syncookies", 0)]);
    check(off, &["warning SynCookiesOff net:[7]"], &["nginx 0.0.0.0:80", "tcp_syncookies=1"]);
    let loopback = |now: &mut Snapshot| {
        off(now);
        now.listeners[0].key.addr = "127.0.0.1".parse().expect("an address");
    };
    check(loopback, &[], &[]);
    let small = |now: &mut Snapshot| {
        loopback(now);
        sysctls(now, &[("tcp_max_syn_backlog", 128)]);
    };
    check(small, &["info SynBacklogBelowLimit net:[7]"], &["= 128 without cookies, of which 96"]);
    check(
        |now| sysctls(now, &[("tcp_syncookies", 2)]),
        &["info SynCookiesAlways net:[7]"],
        &["Every SYN"],
    );
    let bare = |now: &mut Snapshot| sysctls(now, &[("tcp_syncookies", 2), ("tcp_timestamps", 0)]);
    check(bare, &["warning SynCookiesAlways net:[7]"], &["no window scaling"]);
}

#[test]
fn resets_on_overflow_matter_once_there_are_overflows() {
    let on = |now: &mut Snapshot| sysctls(now, &[("tcp_abort_on_overflow", 1)]);
    check(on, &["info AbortOnOverflow net:[7]"], &["no overflow so far"]);
    let overflow = |now: &mut Snapshot| {
        on(now);
        now.listeners[0].counters.drops_by.accept_queue_full_ack = Ok(9);
    };
    check(overflow, &["warning AbortOnOverflow net:[7]"], &["nginx 0.0.0.0:80: 9 overflows"]);
}

fn ports(now: &mut Snapshot, used: u64, time_wait: u64, usable: u64) {
    let addr = |text: &str| text.parse().expect("an address");
    let destination = Destination {
        source: addr("10.0.0.1"),
        addr: addr("10.0.0.9"),
        port: 5432,
        open: used - time_wait,
        time_wait,
        time_wait_reusable: 0,
    };
    let exhausted_in = Err(Absent::TooEarly);
    now.namespaces[0].ports = Ok([PortUse { destination, used, usable, exhausted_in }].into());
}

#[test]
fn ports_matter_when_half_of_them_are_used() {
    let range = [("ip_local_port_range_low", 40_000), ("ip_local_port_range_high", 49_999)];
    let many = |now: &mut Snapshot| {
        sysctls(now, &range);
        ports(now, 9_000, 8_000, 10_000);
    };
    check(
        many,
        &["warning NarrowPortRange net:[7]"],
        &[
            "ip_local_port_range = 40000 49999",
            "sysctl -w net.ipv4.ip_local_port_range='10000 65535'",
        ],
    );
    let met = |now: &mut Snapshot| {
        many(now);
        now.listeners[0].key.port = 27_017;
    };
    check(
        met,
        &["warning NarrowPortRange net:[7]"],
        &[
            "sysctl -w net.ipv4.ip_local_reserved_ports=27017 net.ipv4.ip_local_port_range='10000 65535'",
        ],
    );
    let time_wait = |now: &mut Snapshot| {
        sysctls(now, &[("tcp_tw_reuse", 2)]);
        ports(now, 16_000, 15_000, 28_232);
    };
    check(
        time_wait,
        &["info TimeWaitNotReused net:[7]"],
        &["16000 of 28232 usable ports in use from 10.0.0.1 to 10.0.0.9 port 5432, 15000 of them"],
    );
    let open = |now: &mut Snapshot| {
        time_wait(now);
        ports(now, 16_000, 1_000, 28_232);
    };
    check(open, &[], &[]);
    let inside = |now: &mut Snapshot| {
        sysctls(now, &range);
        now.listeners[0].key.port = 40_080;
        now.namespaces[0].reserved_ports = [41_000..=41_009].into();
    };
    check(
        inside,
        &["info ListenerInPortRange net:[7]"],
        &["ip_local_reserved_ports=41000-41009,40080"],
    );
    let reserved = |now: &mut Snapshot| {
        inside(now);
        now.namespaces[0].reserved_ports = [40_000..=41_009].into();
    };
    check(reserved, &[], &[]);
}

#[test]
fn time_wait_and_fin_wait_matter_by_their_number() {
    let sockstat = |time_wait| Sockstat {
        tcp_inuse: 1,
        tcp6_inuse: Ok(0),
        time_wait,
        orphans: 0,
        tcp_memory_pages: 0,
    };
    let time_wait = |now: &mut Snapshot| {
        sysctls(now, &[("tcp_max_tw_buckets", 1_000)]);
        now.namespaces[0].sockstat = Ok(sockstat(950));
    };
    check(
        time_wait,
        &["warning TimeWaitLimit net:[7]"],
        &["950 of 1000", "tcp_max_tw_buckets=2000"],
    );
    let fin_wait = |n| {
        move |now: &mut Snapshot| {
            sysctls(now, &[("tcp_fin_timeout", 300)]);
            let table = Table { states: [("fin_wait_2", n)].into(), ..Table::default() };
            now.namespaces[0].table = Ok(Arc::new(TableRead { at: Monotonic(0), table }));
        }
    };
    check(fin_wait(5_000), &["info LongFinTimeout net:[7]"], &["5000 sockets in FIN_WAIT_2"]);
    check(fin_wait(5), &[], &[]);
}

#[test]
fn descriptors_matter_near_their_limit() {
    let fds = |open, most| {
        move |now: &mut Snapshot| {
            now.processes = BTreeMap::from([(Pid(100), process("nginx", open, most))]);
        }
    };
    check(fds(500, 1024), &[], &[]);
    check(fds(600, 1024), &["info DescriptorLimit nginx/100"], &["--nofile=65536:"]);
    check(fds(40_000, 65_536), &[], &[]);
    check(fds(900, 1024), &["warning DescriptorLimit nginx/100"], &["900 of 1024 descriptors"]);
    check(
        fds(1_000_000, 1_048_576),
        &["warning DescriptorLimit nginx/100"],
        &["fs.nr_open allows 1048576", "sysctl -w fs.nr_open=2097152; prlimit --pid 100"],
    );
    let files = |now: &mut Snapshot| now.host.open_fds = Ok(960_000);
    check(files, &["critical FileMax this host"], &["960000 of 1000000 files"]);
}
