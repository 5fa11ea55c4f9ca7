//! Snapshots for tests, made by hand.

#[path = "../../tests/fixtures/shell.rs"]
mod shell;

use std::{collections::BTreeMap, net::Ipv4Addr, sync::Arc};

pub(crate) use self::shell::check_mend;
use super::*;
use crate::{
    id::{Cookie, Inode, ListenerKey, NetnsId, Pid},
    input::{Absent, HostSample, ProcessSample, Workload},
    model::snapshot::{
        Agent, Counters, DropsBy, Found, Listener, Member, Namespace, Process, Rates,
    },
    time::{Nanos, UnixTime},
};

pub(super) const NETNS: NetnsId = NetnsId(7);

/// A host that a test changes between looks.
pub(super) struct World {
    pub(super) now: Snapshot,
    pub(super) detector: Detector,
}

impl World {
    /// A quiet host with a listener on port 80, seen for half a minute.
    pub(super) fn new() -> Self {
        Self::tuned(Tuning::default())
    }

    /// The same with a configuration.
    pub(super) fn tuned(tuning: Tuning) -> Self {
        let mut world = Self::unseen(tuning);
        world.run(35, |_| {});
        world
    }

    /// The same before anybody has looked.
    pub(super) fn unseen(tuning: Tuning) -> Self {
        Self { now: snapshot(vec![listener(80)]), detector: Detector::new(Arc::new(tuning)) }
    }

    /// The listener on port 80.
    pub(super) fn listener(&mut self) -> &mut Listener {
        self.now.listeners.iter_mut().find(|it| it.key.port == 80).expect("there")
    }

    /// More calls of a task that fail, accept(2) or else connect(2).
    pub(super) fn fail(&mut self, call: &str, comm: &str, errno: i32, n: u64) {
        let errors = self.now.errors.as_mut().expect("there");
        let call = if call == "accept" { &mut errors.accept } else { &mut errors.connect };
        let counts = Arc::make_mut(call.as_mut().expect("seen"));
        let errno = crate::errno::Errno(errno.unsigned_abs());
        *counts.entry((comm.into(), errno)).or_default() += n;
    }

    /// A field of the namespace's netstat grows.
    pub(super) fn count(&mut self, field: &'static str, n: u64) {
        let netstat = self.now.namespaces[0].netstat.as_mut().expect("read");
        *Arc::make_mut(netstat).entry(field).or_default() += n;
    }

    /// Each ten seconds, a read of the namespace's table: what is open and in TIME_WAIT towards 192.0.2.1:443,
    /// from `usable` local ports.
    pub(super) fn read_table(&mut self, open: u64, time_wait: u64, usable: u64) {
        let seconds = self.now.at.0 / 1_000_000_000;
        if !seconds.is_multiple_of(10) {
            return;
        }
        let namespace = &mut self.now.namespaces[0];
        let table = crate::input::Table::default();
        namespace.table = Ok(Arc::new(crate::input::TableRead { at: self.now.at, table }));
        let towards = |source, open, time_wait| crate::model::snapshot::PortUse {
            destination: crate::input::Destination {
                source: Ipv4Addr::new(192, 0, 2, source).into(),
                addr: Ipv4Addr::new(192, 0, 2, 1).into(),
                port: 443,
                open,
                time_wait,
                time_wait_reusable: 0,
            },
            used: open + time_wait,
            usable,
            exhausted_in: Err(Absent::TooEarly),
        };
        // from another address there is room
        namespace.ports =
            Ok(Arc::new([towards(9, open, time_wait), towards(8, open / 2, time_wait / 2)]));
    }

    /// Lets `seconds` pass: `change` comes before each look, one second after the one before. What the
    /// last look says.
    pub(super) fn run(&mut self, seconds: u64, change: impl Fn(&mut Self)) -> Verdicts {
        let mut last = Verdicts::default();
        for _ in 0..seconds {
            self.now.at = self.now.at + Nanos(1_000_000_000);
            self.now.unix_time.0 += 1_000_000_000;
            self.now.samples += 1;
            change(self);
            last = self.detector.judge(&self.now);
        }
        last
    }

    /// The same; the names of what is told at the end.
    #[track_caller]
    pub(super) fn check(
        &mut self,
        seconds: u64,
        expected: &[&str],
        change: impl Fn(&mut Self),
    ) -> Verdicts {
        let verdicts = self.run(seconds, change);
        let told: Vec<&str> = verdicts.told().map(|alert| alert.about.name).collect();
        assert_eq!(expected, told, "{:#?}", verdicts.alerts);
        verdicts.alerts.iter().for_each(|alert| check_mend(&alert.latest.mend));
        verdicts
    }
}

/// One alert of some verdicts.
#[track_caller]
pub(super) fn find<'a>(verdicts: &'a Verdicts, name: &str) -> &'a Alert {
    verdicts.alerts.iter().find(|alert| alert.about.name == name).expect("it fires")
}

/// Adds to a counter.
pub(super) fn add(counter: &mut Known<u64>, n: u64) {
    *counter = counter.map(|it| it + n);
}

/// A listener that has done nothing so far.
pub(crate) fn listener(port: u16) -> Listener {
    Listener {
        key: ListenerKey { netns: NETNS, addr: Ipv4Addr::UNSPECIFIED.into(), port },
        v6only: false,
        members: vec![Member {
            cookie: Cookie(u64::from(port)),
            inode: Inode(u64::from(port)),
            pid: Some(Pid(100)),
            length: 0,
            limit: 128,
            socket_drops: Ok(0),
            waiting: Ok(Nanos(0)),
            stalled: Ok(false),
        }],
        owners: Arc::new([Pid(100)]),
        comm: Some("nginx".into()),
        workload: Arc::new(Workload::default()),
        length: 0,
        limit: 128,
        length_max: Ok(0),
        fill_ratio_max: Some(0.0),
        syn_queue: Ok(0),
        counters: Counters {
            established: Ok(0),
            found: Ok(Found::default()),
            accepted: Ok(0),
            closed: Ok(0),
            aborted_listener_closed: Ok(0),
            aborted_reset: Ok(0),
            syns: Ok(0),
            syncookies: Ok(0),
            drops: Ok(0),
            drops_by: DropsBy {
                accept_queue_full_syn: Ok(0),
                accept_queue_full_ack: Ok(0),
                syn_queue_full: Ok(0),
                other: Ok(0),
                unspecified: Err(Absent::NotOnThisKernel),
            },
            socket_drops: Ok(0),
            full: Nanos(0),
        },
        accept_wait: Ok(Arc::default()),
        connection_duration: Ok(Arc::default()),
        rates: Rates { established: Ok(0.0), accepted: Ok(0.0), drops: Ok(0.0) },
        open: Ok(0),
        connections: Err(Absent::TooEarly),
        since_accept: Err(Absent::TooEarly),
        stalled: Ok(false),
    }
}

/// A process with half of its descriptors in use.
pub(crate) fn process(comm: &str, open: u64, max: u64) -> Process {
    Process {
        now: ProcessSample {
            comm: comm.into(),
            workload: Arc::default(),
            open_fds: Ok(open),
            max_fds: Ok(max),
            fd_kinds: None,
        },
        fds_exhausted_in: Err(Absent::TooEarly),
    }
}

pub(crate) fn snapshot(listeners: Vec<Listener>) -> Snapshot {
    let netstat = ["ListenDrops", "ListenOverflows", "TCPTimeWaitOverflow", "PassiveOpens"];
    Snapshot {
        at: Monotonic(1_000_000_000_000),
        unix_time: UnixTime(1_700_000_000_000_000_000),
        samples: 0,
        interval: Ok(Nanos(1_000_000_000)),
        listeners,
        namespaces: vec![Namespace {
            netns: NETNS,
            netstat: Ok(Arc::new(netstat.into_iter().map(|name| (name, 0)).collect())),
            sysctls: Arc::new(BTreeMap::from([
                ("somaxconn", 4096),
                ("tcp_syncookies", 1),
                ("ip_local_port_range_low", 32_768),
                ("ip_local_port_range_high", 60_999),
            ])),
            reserved_ports: Arc::default(),
            connected: Ok(0),
            sockstat: Err(Absent::TooEarly),
            table: Err(Absent::TooEarly),
            ports: Err(Absent::TooEarly),
            lost_in_kernel: Ok(0),
            undone: Ok(0),
        }],
        udp: Vec::new(),
        processes: BTreeMap::from([(Pid(100), process("nginx", 10, 1024))]),
        threads: Arc::default(),
        host: HostSample {
            open_fds: Ok(1_000),
            max_fds: Ok(1_000_000),
            nr_open: Ok(1_048_576),
            tcp_memory_bytes: Ok(4096),
            tcp_memory_limits: Err(Absent::Unreadable),
            tcp_orphans: Ok(0),
        },
        errors: Ok(crate::input::CallErrors {
            accept: Ok(Arc::default()),
            connect: Ok(Arc::default()),
        }),
        hooks: Arc::new([]),
        degraded: BTreeMap::new(),
        agent: Agent {
            durations: BTreeMap::new(),
            slots: Ok((1, 4096)),
            no_slot: Ok(0),
            stale: Ok(0),
            second_copy: Ok(0),
            map_full: Ok(0),
            closer_looks: Err(Absent::NotOnThisKernel),
            corrections: Ok(0),
            missed: Vec::new(),
            runs: Vec::new(),
        },
    }
}
