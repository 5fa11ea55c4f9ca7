use std::{collections::BTreeMap, fs, os::unix::fs::MetadataExt as _};

use unicode_width::UnicodeWidthStr as _;

use super::{view::inode, *};
use crate::{
    cli::trace::Namespace,
    publish::api::{
        Aborted, Connections, DropsByReason, Durations, Listener, Member, Process, RatesPerSecond,
        SCHEMA_VERSION, Source, Workload,
    },
};

const PIPE: Terminal = Terminal { size: None, color: false, redraws: false };

/// A quiet listener of which everything is known.
fn listener(address: &str, comm: &str, pid: u32) -> Listener {
    let (addr, port) = address.rsplit_once(':').expect("address:port");
    Listener {
        netns: 4_026_531_840,
        addr: addr.replace('*', "::").replace(['[', ']'], "").parse().expect("an IP address"),
        port: port.parse().expect("a port"),
        v6only: false,
        address: address.into(),
        comm: Some(comm.into()),
        workload: Workload::default(),
        owners: vec![Process {
            pid,
            comm: Some(comm.into()),
            open_fds: Some(12),
            max_fds: Some(1024),
            fds_exhausted_in_seconds: None,
            fd_kinds: None,
            threads: None,
            absent: BTreeMap::new(),
        }],
        sockets: 1,
        length: 0,
        limit: 128,
        length_max: Some(3),
        fill_ratio_max: Some(0.0),
        syn_queue: Some(0),
        syns: Some(1003),
        syncookies: Some(0),
        established: Some(1000),
        accepted: Some(1000),
        closed: Some(990),
        aborted: Aborted { listener_closed: Some(0), reset: Some(0) },
        drops: Some(0),
        drops_by_reason: DropsByReason {
            accept_queue_full_syn: Some(0),
            accept_queue_full_ack: Some(0),
            syn_queue_full: Some(0),
            other: Some(0),
            unspecified: None,
        },
        socket_drops: Some(0),
        full_seconds: 0.0,
        accept_wait_seconds: Some(Durations {
            count: 1000,
            sum: 0.5,
            p50: Some(47e-6),
            p90: Some(0.0012),
            p99: Some(0.21),
            max_bucket: Some(0.25),
        }),
        connection_duration_seconds: Some(Durations {
            count: 0,
            sum: 0.0,
            p50: None,
            p90: None,
            p99: None,
            max_bucket: None,
        }),
        rates_per_second: RatesPerSecond {
            established: Some(1.0),
            accepted: Some(1.0),
            drops: Some(0.0),
        },
        open: Some(10),
        connections: None,
        seconds_since_accept: Some(0.4),
        stalled: Some(false),
        members: vec![],
        absent: BTreeMap::new(),
    }
}

fn queued(length: u32, limit: u32, listener: Listener) -> Listener {
    let member = Member {
        cookie: 1,
        inode: 1,
        pid: None,
        length,
        limit,
        socket_drops: Some(7),
        waiting_seconds: None,
        stalled: None,
    };
    Listener {
        length: length.into(),
        limit: limit.into(),
        fill_ratio_max: Some(f64::from(length) / f64::from(limit)),
        members: vec![member],
        ..listener
    }
}

fn listeners() -> Vec<Listener> {
    let stalled = queued(4097, 4096, listener("[2001:db8::7]:8443", "java", 2_481_337));
    let group = queued(110, 128, listener("*:443", "nginx", 811));
    let owners = [811, 812, 813].map(|pid| Process { pid, ..group.owners[0].clone() });
    let sampled = listener("127.0.0.1:10511", "backlogd", 123_456);
    let gone = listener("127.0.0.1:9", "inetd", 77);
    vec![
        listener("0.0.0.0:22", "sshd", 511),
        Listener { drops: Some(12), open: Some(1_234_567), ..listener("9.0.0.1:80", "httpd", 3) },
        Listener { owners: owners.into(), sockets: 3, ..group },
        Listener {
            stalled: Some(true),
            drops: Some(52_345),
            socket_drops: Some(104_690),
            seconds_since_accept: Some(3700.0),
            ..stalled
        },
        Listener {
            length_max: None,
            syns: None,
            accept_wait_seconds: None,
            connection_duration_seconds: None,
            established: None,
            accepted: None,
            closed: None,
            open: None,
            syn_queue: None,
            rates_per_second: RatesPerSecond {
                established: None,
                accepted: None,
                drops: Some(0.0),
            },
            ..sampled
        },
        Listener { sockets: 0, limit: 0, fill_ratio_max: None, owners: vec![], ..gone },
    ]
}

#[derive(Debug, clap::Parser)]
struct Line {
    #[command(flatten)]
    list: List,
}

fn list(flags: &[&str]) -> List {
    let words = std::iter::once("list").chain(flags.iter().copied());
    <Line as clap::Parser>::parse_from(words).list
}

fn render(flags: &[&str], terminal: &Terminal) -> String {
    let list = list(flags);
    let all = Listeners {
        schema_version: SCHEMA_VERSION,
        unix_time_seconds: 1_700_000_000.5,
        source: Source::Standalone,
        interval_seconds: Some(0.2),
        listeners: listeners(),
    };
    list.view.document(&list.view.select(all, &[]), terminal).expect("it can be written")
}

/// In a pod, with connections that the owner forgot to close.
fn in_pod(listener: Listener) -> Listener {
    let connections = Connections {
        age_seconds: 3.0,
        is_partial: false,
        accepted: 10,
        close_wait: 4,
        fin_wait: 0,
        queued: 0,
        time_wait: 0,
        unread_bytes: 17,
        unread_bytes_max: 9,
        unsent_bytes: 0,
        unsent_bytes_max: 0,
    };
    let workload = Workload {
        unit: Some("cri-containerd-4c1d8dae0e9a.scope".into()),
        container_id: Some("4c1d8dae0e9a2bb5".into()),
        pod_uid: Some("0ad6bc62-8e3f-4a9f-9d0c-2f9a4f3b7c11".into()),
        namespace: Some("shop".into()),
        pod: Some("web-7c65d6cfc9-x2x7k".into()),
        container: Some("nginx".into()),
    };
    Listener { netns: 4_026_532_999, workload, connections: Some(connections), ..listener }
}

/// Those of `listeners`, some of which belong somewhere.
fn with_workloads() -> Vec<Listener> {
    let mut all = listeners();
    let container =
        Workload { container_id: Some("9f8e7d6c5b4a39281706".into()), ..Workload::default() };
    let unit = Workload { unit: Some("ssh.service".into()), ..container.clone() };
    all[0].workload = unit;
    all[1].workload = container;
    all[2] = in_pod(all[2].clone());
    let pod = Workload { container: None, ..in_pod(all[3].clone()).workload };
    all[3].workload = Workload { namespace: Some("bank".into()), ..pod };
    all
}

#[test]
fn a_column_says_where_the_owners_belong() {
    let all = |listeners| Listeners {
        schema_version: SCHEMA_VERSION,
        unix_time_seconds: 0.0,
        source: Source::Daemon,
        interval_seconds: None,
        listeners,
    };
    let show = |flags: &[&str], terminal: &Terminal| {
        let list = list(flags);
        list.view
            .document(&list.view.select(all(with_workloads()), &[]), terminal)
            .expect("it is text")
    };
    insta::assert_snapshot!(show(&[], &PIPE));
    insta::assert_snapshot!(show(&["-o", "wide", "--port", "22,443"], &PIPE));
    let text = show(&[], &Terminal { size: Some((100, 24)), ..PIPE });
    assert!(text.lines().all(|line| line.width() <= 100), "{text}");
    insta::assert_snapshot!(text);
    assert!(!render(&[], &PIPE).contains("WORKLOAD"));
}

#[test]
fn a_network_namespace_is_told_by_number_or_path() {
    let own = fs::metadata("/proc/self/ns/net").expect("/proc").ino();
    assert_eq!(inode(&Namespace::Inode(crate::id::NetnsId(7))).ok(), Some(7));
    let by_path = inode(&Namespace::Path("/proc/self/ns/net".into())).ok();
    assert_eq!(by_path.map(u64::from), Some(own));
    let err = inode(&Namespace::Path("/nonexistent".into())).expect_err("there is none");
    let expected = "no network namespace at /nonexistent: No such file or directory (os error 2)";
    assert_eq!(format!("{err:#}"), expected);
}

#[test]
fn the_table_is_busiest_first_and_fits_100_columns() {
    let text = render(&[], &Terminal { size: Some((100, 24)), ..PIPE });
    assert!(text.lines().all(|line| line.width() <= 100), "{text}");
    insta::assert_snapshot!(text);
}

#[test]
fn wide_has_all_columns_and_those_that_are_gone() {
    insta::assert_snapshot!(render(&["-o", "wide"], &PIPE));
}

#[test]
fn on_90_columns_addresses_and_processes_are_cut() {
    let text = render(&[], &Terminal { size: Some((90, 24)), ..PIPE });
    assert!(text.lines().all(|line| line.width() <= 90), "{text}");
    insta::assert_snapshot!(text);
}

#[test]
fn colours_mark_what_is_full() {
    let text = render(&["--no-headers", "--port", "443,8443"], &Terminal { color: true, ..PIPE });
    let shown = text.replace('\x1b', "ESC");
    insta::assert_snapshot!(shown);
}

#[test]
fn json_and_yaml_have_one_listener_of_a_filter() {
    insta::assert_snapshot!(render(&["-o", "json", "--port", "443"], &PIPE));
    insta::assert_snapshot!(render(&["-o", "yaml", "--port", "443"], &PIPE));
}

#[track_caller]
fn check(flags: &[&str], ports: &[u16]) {
    let list = list(flags);
    let all = Listeners {
        schema_version: SCHEMA_VERSION,
        unix_time_seconds: 0.0,
        source: Source::Daemon,
        interval_seconds: None,
        listeners: with_workloads(),
    };
    let netns: Vec<_> = list.view.netns.iter().map(|it| inode(it).expect("a number")).collect();
    let got: Vec<_> =
        list.view.select(all, &netns).listeners.iter().map(|listener| listener.port).collect();
    assert_eq!(got, ports, "{flags:?}");
}

#[test]
fn filters_narrow_and_sorting_is_by_what_was_asked() {
    check(&[], &[8443, 443, 80, 22, 10511]);
    check(&["--all"], &[8443, 443, 80, 22, 10511, 9]);
    check(&["--port", "80-500", "-p", "22"], &[443, 80, 22]);
    check(&["--comm", "sshd", "--comm", "java"], &[8443, 22]);
    check(&["--pid", "813"], &[443]);
    check(&["--pid", "813", "--port", "22"], &[]);
    check(&["--namespace", "shop"], &[443]);
    check(&["-n", "shop", "-n", "bank"], &[8443, 443]);
    check(&["--pod", "web-7c65d6cfc9-x2x7k", "-n", "bank"], &[8443]);
    check(&["--pod", "web"], &[]);
    check(&["--netns", "4026532999"], &[443]);
    check(&["--netns", "4026532999", "--netns", "4026531840"], &[8443, 443, 80, 22, 10511]);
    check(&["--sort", "address"], &[22, 80, 10511, 443, 8443]);
    check(&["--sort", "process"], &[10511, 80, 8443, 443, 22]);
    check(&["--sort", "drops"], &[8443, 80, 443, 22, 10511]);
    check(&["--sort", "accepts"], &[8443, 443, 80, 22, 10511]);
}

#[test]
fn a_watch_redraws_on_a_terminal_and_appends_elsewhere() {
    let list = list(&["--watch", "--no-headers", "-p", "22"]);
    assert_eq!(list.watch, Some(Duration::from_secs(2)));
    let one = Listeners {
        schema_version: SCHEMA_VERSION,
        unix_time_seconds: 0.0,
        source: Source::Daemon,
        interval_seconds: None,
        listeners: listeners().drain(..1).collect(),
    };
    let frame = |terminal, is_first| list.frame(&one, &terminal, is_first).expect("it is text");
    let row = "0.0.0.0:22  sshd/511  0/128  3  0  0  1.0  10  -  ok";
    assert_eq!(frame(PIPE, true), format!("{row}\n"));
    assert_eq!(frame(PIPE, false), format!("\n{row}\n"));
    let screen = Terminal { size: Some((100, 24)), color: false, redraws: true };
    assert_eq!(frame(screen, true), format!("\x1b[2J\x1b[?7l\x1b[H{row}\x1b[K\n\x1b[J\x1b[?7h"));
    assert_eq!(frame(screen, false), format!("\x1b[?7l\x1b[H{row}\x1b[K\n\x1b[J\x1b[?7h"));
}
