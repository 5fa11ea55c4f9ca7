use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use super::{owner::Owners, *};
use crate::{
    errno::Errno,
    event::{Event, Reason, Task},
    id::{Cookie, Inode},
    input::{Absent, HostSample, ListenSocket, NamespaceSample, ProcessSample, Sample},
    publish::api,
    time::{Monotonic, Nanos, UnixTime},
};

fn task(pid: u32, comm: &str) -> Task {
    Task { pid: Pid(pid), comm: comm.into() }
}

fn address(text: &str) -> Option<SocketAddr> {
    (!text.is_empty()).then(|| text.parse().expect("address and port"))
}

/// In an interrupt, on a listener that has cookie 5.
fn event(kind: EventKind, local: &str, peer: &str) -> Event {
    Event {
        at: Monotonic(0),
        kind,
        netns: Some(NetnsId(4_026_531_840)),
        cookie: Some(Cookie(5)),
        local: address(local),
        peer: address(peer),
        span: None,
        errno: None,
        reason: None,
        task: None,
    }
}

/// One of each form.
fn events() -> Vec<Event> {
    let web = "127.0.0.1:8080";
    let client = "127.0.0.1:40312";
    vec![
        Event { task: Some(task(811, "nginx")), ..event(EventKind::Listen, "0.0.0.0:0", "") },
        event(EventKind::Syn, web, client),
        event(EventKind::Established, web, client),
        Event {
            span: Some(Nanos(12_345_678)),
            task: Some(task(812, "nginx")),
            ..event(EventKind::Accept, web, client)
        },
        Event {
            reason: Some(Reason::AcceptQueueFullSyn),
            ..event(EventKind::Overflow, web, client)
        },
        event(EventKind::SynDrop, "[2001:db8::1]:443", "[2001:db8:0:1:2:3:4:5]:50000"),
        Event {
            errno: Some(Errno(24)),
            task: Some(task(812, "evil\x1b[31m")),
            ..event(EventKind::AcceptError, web, "")
        },
        Event { span: Some(Nanos(3_210_000_000)), ..event(EventKind::Close, web, client) },
        Event { span: Some(Nanos(86_400_000_000_000)), ..event(EventKind::Close, web, client) },
        Event {
            cookie: None,
            netns: None,
            errno: Some(Errno(99)),
            task: Some(task(3, "curl")),
            ..event(EventKind::ConnectError, "", "")
        },
        Event { netns: None, cookie: None, ..event(EventKind::Discard, "[::]:0", "") },
    ]
}

/// 2023-11-14 22:13:20.057 UTC
const AT: UnixTime = UnixTime(1_700_000_000_057_250_000);

#[test]
fn a_line_has_what_is_known() {
    let owner = task(800, "master");
    let lines = events()
        .into_iter()
        .map(|event| line::show(&event, AT, event.cookie.map(|_| &owner)))
        .collect::<String>();
    insta::assert_snapshot!(line::header() + &lines);
}

#[test]
fn an_object_has_every_key() {
    let owner = task(800, "master");
    let lines = events()
        .into_iter()
        .map(|event| api::Event::new(&event, AT, event.cookie.map(|_| &owner)))
        .map(|event| out::json_line(&event).expect("it is JSON"))
        .collect::<String>();
    insta::assert_snapshot!(lines);
}

fn socket(cookie: u64, port: u16) -> ListenSocket {
    ListenSocket {
        cookie: Cookie(cookie),
        inode: Inode(cookie * 10),
        addr: [127, 0, 0, 1].into(),
        port,
        v6only: false,
        length: 0,
        limit: 5,
        drops: Ok(0),
    }
}

/// Cookie, port, pids and names.
type Held<'a> = (u64, u16, &'a [(u32, &'a str)]);

/// Sockets, and the processes that hold each.
fn sample(sockets: &[Held<'_>]) -> Sample {
    let mut owners = BTreeMap::new();
    let mut processes = BTreeMap::new();
    for (cookie, _, held_by) in sockets.iter().filter(|(.., held_by)| !held_by.is_empty()) {
        let pids: Vec<_> = held_by.iter().map(|&(pid, _)| Pid(pid)).collect();
        owners.insert(Inode(cookie * 10), pids);
        processes.extend(held_by.iter().map(|&(pid, comm)| {
            let unknown = Err(Absent::Unreadable);
            let process = ProcessSample {
                comm: comm.into(),
                workload: Arc::default(),
                open_fds: unknown,
                max_fds: unknown,
                fd_kinds: None,
            };
            (Pid(pid), process)
        }));
    }
    Sample {
        at: Monotonic(0),
        unix_time: UnixTime(0),
        namespaces: vec![NamespaceSample {
            netns: NetnsId(9),
            is_new: false,
            reserved_ports: Arc::default(),
            sockets: Ok(sockets.iter().map(|&(cookie, port, _)| socket(cookie, port)).collect()),
            passive_opens: Ok(0),
            passive_opens_after: None,
            netstat: Err(Absent::Unreadable),
            sysctls: Arc::default(),
            connected: Err(Absent::Unreadable),
            sockstat: Err(Absent::Unreadable),
            table: Err(Absent::TooEarly),
            udp: Err(Absent::TooEarly),
        }],
        slots: Err(Absent::NoEbpf),
        owners: Arc::new(owners),
        processes,
        threads: BTreeMap::new(),
        host: HostSample {
            open_fds: Ok(0),
            max_fds: Ok(0),
            nr_open: Ok(0),
            tcp_memory_bytes: Err(Absent::Unreadable),
            tcp_memory_limits: Err(Absent::Unreadable),
            tcp_orphans: Err(Absent::Unreadable),
        },
        degraded: BTreeMap::new(),
        durations: Vec::new(),
    }
}

#[derive(Debug, clap::Parser)]
struct Line {
    #[command(flatten)]
    trace: Trace,
}

fn trace(flags: &[&str]) -> Result<Trace, clap::Error> {
    let words = std::iter::once("trace").chain(flags.iter().copied());
    <Line as clap::Parser>::try_parse_from(words).map(|line| line.trace)
}

#[track_caller]
fn check_count(flags: &[&str], expected: usize) {
    let sample = sample(&[
        (1, 80, &[(7, "nginx"), (8, "nginx")]),
        (2, 443, &[(7, "nginx"), (9, "sh")]),
        (3, 80, &[]),
    ]);
    let filter = trace(flags).expect("right usage").filter(None);
    let mut owners = Owners::default();
    owners.update(&sample);
    assert_eq!(expected, owners.count(&sample, &filter), "{flags:?}");
}

#[test]
fn the_listeners_of_a_filter_are_counted() {
    check_count(&[], 3);
    check_count(&["--port", "80"], 2);
    check_count(&["--port", "81"], 0);
    check_count(&["--pid", "8"], 1);
    check_count(&["--comm", "nginx"], 2);
    check_count(&["--comm", "nginx", "--pid", "9"], 0);
    check_count(&["--comm", "sh", "--port", "80"], 0);
}

#[test]
fn an_owner_is_known_from_listen_until_two_samples_do_not_show_the_listener() {
    let mut owners = Owners::default();
    let listen = Event { task: Some(task(3, "sh")), ..event(EventKind::Listen, "", "") };
    owners.learn(&listen);
    assert_eq!(Some(&task(3, "sh")), owners.of(Cookie(5)));
    // the descriptors have not been looked at so far
    owners.update(&sample(&[(5, 80, &[])]));
    assert_eq!(Some(&task(3, "sh")), owners.of(Cookie(5)));
    owners.update(&sample(&[(5, 80, &[(2, "init"), (4, "sh")])]));
    assert_eq!(Some(&task(2, "init")), owners.of(Cookie(5)));
    owners.update(&sample(&[]));
    assert_eq!(Some(&task(2, "init")), owners.of(Cookie(5)));
    owners.update(&sample(&[]));
    assert_eq!(None, owners.of(Cookie(5)));
}

#[track_caller]
fn check_filter(flags: &[&str], expected: impl FnOnce(&mut Filter)) {
    let mut filter = Filter { kinds: Kinds::all(), port: None, netns: None, pid: None, comm: None };
    expected(&mut filter);
    assert_eq!(filter, trace(flags).expect("right usage").filter(None), "{flags:?}");
}

#[test]
fn flags_make_a_filter() {
    check_filter(&[], |_| {});
    check_filter(&["-p", "443", "--pid", "7"], |filter| {
        filter.port = Some(443);
        filter.pid = Some(Pid(7));
    });
    check_filter(&["--comm", "systemd-resolved"], |filter| {
        filter.comm = Some(Comm::new("systemd-resolve"));
    });
    check_filter(&["--event", "syn,close", "-e", "syn"], |filter| {
        filter.kinds = [EventKind::Syn, EventKind::Close].into_iter().collect();
    });
}

#[test]
fn a_namespace_is_a_number_or_a_path() {
    let parse = str::parse::<Namespace>;
    let inode = Namespace::Inode(NetnsId(4_026_531_840));
    assert_eq!(Ok(inode.clone()), parse("4026531840"));
    assert_eq!(Ok(inode), parse("net:[4026531840]"));
    assert_eq!(Ok(Namespace::Path("/run/netns/a".into())), parse("/run/netns/a"));
    for wrong in ["", "0", "blue", "-1", "4294967296", "net:[]"] {
        assert!(parse(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn what_no_hook_sees_is_said() {
    let hook = |event, tier, why: &str| Hook {
        event,
        tier,
        program: "",
        why: why.into(),
        refused: Arc::default(),
    };
    let hooks = [
        hook("established", Tier::Tracepoint, ""),
        hook("accept", Tier::Sampled, "no fentry, no kprobe"),
        hook("syn_drop", Tier::None, "not on this kernel"),
    ];
    let said = [EventKind::Established, EventKind::Accept, EventKind::Overflow, EventKind::Close]
        .map(|kind| unseen(&hooks, kind));
    let expected = [
        None,
        Some(Unseen::Wholly("no hook sees accept: no fentry, no kprobe".to_owned())),
        Some(Unseen::Wholly("no hook sees overflow: not on this kernel".to_owned())),
        None,
    ];
    assert_eq!(expected, said);
}
