//! Whole passes through the model, from hand-made samples.

use std::net::{IpAddr, Ipv4Addr};

use proptest::prelude::*;

use super::*;
use crate::{
    id::{Inode, Slot},
    input::{HookedDrops, HostSample, ListenSocket, SlotRecord, SlotsSample},
    model::snapshot::Found,
    recording::{Recording, Writer},
    threads::Threads,
    time::UnixTime,
};

const NETNS: NetnsId = NetnsId(7);
const SECOND: u64 = 1_000_000_000;

/// A host with listeners that a test moves by hand.
struct World {
    model: Model,
    now: u64,
    passive_opens: u64,
    listen_drops: u64,
    sockets: Vec<ListenSocket>,
    records: Known<Vec<SlotRecord>>,
    /// Whether the dump fails.
    unreadable: bool,
    /// Nor its counters.
    uncounted: bool,
    owners: Arc<BTreeMap<Inode, Vec<Pid>>>,
    /// What is found of threads in the next sample.
    threads: BTreeMap<Pid, Known<Threads>>,
}

impl World {
    fn new() -> Self {
        let hook = |event| Hook {
            event,
            tier: Tier::Tracepoint,
            program: "p",
            why: "".into(),
            refused: Arc::default(),
        };
        let settings = Settings { retention: Duration::from_secs(5), ..Settings::default() };
        Self {
            model: Model::new(settings, Arc::new([hook("enqueue"), hook("syn_queue")])),
            now: 100,
            passive_opens: 1000,
            listen_drops: 0,
            sockets: Vec::new(),
            records: Ok(Vec::new()),
            unreadable: false,
            uncounted: false,
            owners: Arc::default(),
            threads: BTreeMap::new(),
        }
    }

    /// A listening socket with its record.
    fn listen(&mut self, cookie: u64, port: u16, limit: u32) {
        self.sockets.push(ListenSocket {
            cookie: Cookie(cookie),
            inode: Inode(cookie),
            addr: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port,
            v6only: false,
            length: 0,
            limit,
            drops: Ok(0),
        });
        if let Ok(records) = &mut self.records {
            records.push(SlotRecord {
                slot: Slot(u32::try_from(cookie).expect("small")),
                cookie: Cookie(cookie),
                netns: NETNS,
                addr: IpAddr::V4(Ipv4Addr::LOCALHOST),
                port,
                established: 0,
                closed: 0,
                discarded: 0,
                resets: 0,
                undone: 0,
                high_water: 0,
                last: (0, 0),
                base: 0,
                untagged: 0,
                found: None,
                accepted: 0,
                syns: 0,
                cookies: 0,
                drops: HookedDrops::default(),
                syn_queue: Some(0),
                live: None,
                pid: None,
                final_drops: None,
                adopted: false,
                listened_by: None,
            });
        }
    }

    fn socket(&mut self, cookie: u64) -> &mut ListenSocket {
        self.sockets.iter_mut().find(|s| s.cookie.0 == cookie).expect("listens")
    }

    fn record(&mut self, cookie: u64) -> &mut SlotRecord {
        let records = self.records.as_mut().expect("programs run");
        records.iter_mut().find(|r| r.cookie.0 == cookie).expect("has a slot")
    }

    /// `n` clients complete their handshakes.
    fn connect(&mut self, cookie: u64, n: u32) {
        self.passive_opens += u64::from(n);
        self.socket(cookie).length += n;
        let length = self.socket(cookie).length;
        let record = self.record(cookie);
        record.established += u64::from(n);
        record.high_water = record.high_water.max(length);
        record.last = (record.established, length);
    }

    fn accept(&mut self, cookie: u64, n: u32) {
        self.socket(cookie).length -= n;
    }

    /// The listening socket goes with all that is queued.
    fn close(&mut self, cookie: u64) {
        let socket = *self.socket(cookie);
        self.sockets.retain(|s| s.cookie.0 != cookie);
        let record = self.record(cookie);
        record.discarded += u64::from(socket.length);
        record.closed += u64::from(socket.length);
        record.final_drops = Some(socket.drops.unwrap_or(0));
    }

    /// The next sample, a second later.
    fn look(&mut self) -> Snapshot {
        self.now += 1;
        let netstat = Arc::new(BTreeMap::from([("ListenDrops", self.listen_drops)]));
        let sample = Sample {
            at: Monotonic(self.now * SECOND),
            unix_time: UnixTime(0),
            namespaces: vec![NamespaceSample {
                netns: NETNS,
                is_new: false,
                reserved_ports: Arc::default(),
                sockets: match self.unreadable {
                    true => Err(Absent::Unreadable),
                    false => Ok(self.sockets.clone()),
                },
                passive_opens: Ok(self.passive_opens),
                passive_opens_after: None,
                netstat: if self.uncounted { Err(Absent::Unreadable) } else { Ok(netstat) },
                sysctls: Arc::default(),
                connected: Err(Absent::Unreadable),
                sockstat: Err(Absent::Unreadable),
                table: Err(Absent::TooEarly),
                udp: Err(Absent::TooEarly),
            }],
            slots: self.records.clone().map(|records| SlotsSample {
                records,
                capacity: 64,
                ..SlotsSample::default()
            }),
            owners: self.owners.clone(),
            processes: self.owners.values().flatten().map(|pid| (*pid, process())).collect(),
            threads: std::mem::take(&mut self.threads),
            host: HostSample {
                open_fds: Ok(1),
                max_fds: Ok(2),
                nr_open: Ok(2),
                tcp_memory_bytes: Err(Absent::Unreadable),
                tcp_memory_limits: Err(Absent::Unreadable),
                tcp_orphans: Err(Absent::Unreadable),
            },
            degraded: BTreeMap::new(),
            durations: Vec::new(),
        };
        if let Ok(records) = &mut self.records {
            records.retain(|r| r.final_drops.is_none() || r.closed < r.established);
            records.iter_mut().for_each(|r| r.high_water = 0);
        }
        self.model.apply(&sample)
    }
}

fn process() -> ProcessSample {
    ProcessSample {
        comm: "server".into(),
        workload: Arc::default(),
        open_fds: Ok(3),
        max_fds: Ok(1024),
        fd_kinds: None,
    }
}

fn at(snapshot: &Snapshot, port: u16) -> &Listener {
    snapshot.listeners.iter().find(|l| l.key.port == port).expect("in the snapshot")
}

/// established, accepted, thrown away, length
fn flow(listener: &Listener) -> [u64; 4] {
    let counters = &listener.counters;
    let known = |value: Known<u64>| value.expect("programs run");
    let flow = [
        known(counters.established),
        known(counters.accepted),
        known(counters.aborted_listener_closed),
        listener.length,
    ];
    assert_eq!(flow[0], flow[1] + flow[2] + flow[3], "{listener:?}");
    flow
}

#[test]
fn a_listener_starts_at_zero() {
    let mut world = World::new();
    world.listen(1, 80, 5);
    let snapshot = world.look();
    let listener = at(&snapshot, 80);
    assert_eq!([0, 0, 0, 0], flow(listener));
    assert_eq!(Ok(0), listener.counters.drops);
    assert_eq!(Ok(0), listener.length_max);
    assert_eq!(Ok(0), listener.open);
}

#[test]
fn a_burst_between_two_samples_is_counted_and_its_peak_stays() {
    let mut world = World::new();
    world.listen(1, 80, 100);
    world.look();
    world.connect(1, 50);
    world.accept(1, 50);
    let snapshot = world.look();
    assert_eq!([50, 50, 0, 0], flow(at(&snapshot, 80)));
    assert_eq!(Ok(50), at(&snapshot, 80).length_max);
    assert_eq!(Ok(50), at(&snapshot, 80).open);
    assert_eq!(Ok(Nanos(0)), at(&snapshot, 80).since_accept);
    assert_eq!(Ok(50), at(&world.look(), 80).length_max);
}

#[test]
fn a_queue_from_before_counts_as_established() {
    let mut world = World::new();
    world.listen(1, 80, 100);
    world.socket(1).length = 3;
    (world.record(1).base, world.record(1).adopted) = (3, true);
    assert_eq!([3, 0, 0, 3], flow(at(&world.look(), 80)));
    world.accept(1, 2);
    let snapshot = world.look();
    assert_eq!([3, 2, 0, 1], flow(at(&snapshot, 80)));
    let found = at(&snapshot, 80).counters.found;
    assert_eq!(Ok(Found { waiting: 3, open: 0 }), found);
    world.connect(1, 4);
    world.record(1).found = Some(20);
    let snapshot = world.look();
    assert_eq!([27, 22, 0, 5], flow(at(&snapshot, 80)));
    assert_eq!(Ok(Found { waiting: 3, open: 20 }), at(&snapshot, 80).counters.found);
    world.close(1);
    assert_eq!(Ok(Found { waiting: 3, open: 20 }), at(&world.look(), 80).counters.found);
}

#[test]
fn what_is_open_from_before_is_not_known_where_nobody_looked() {
    let mut world = World::new();
    world.listen(1, 80, 100);
    (world.record(1).base, world.record(1).adopted) = (3, true);
    world.socket(1).length = 3;
    let snapshot = world.look();
    assert_eq!(Err(Absent::BeforeStart), at(&snapshot, 80).open);
}

#[test]
fn a_listener_that_is_closed_and_reopened_between_two_samples_loses_and_doubles_nothing() {
    let mut world = World::new();
    world.listen(1, 80, 100);
    world.connect(1, 10);
    world.accept(1, 4);
    world.look();
    world.connect(1, 5);
    world.close(1);
    world.listen(2, 80, 100);
    world.connect(2, 7);
    world.accept(2, 1);
    let snapshot = world.look();
    assert_eq!([22, 5, 11, 6], flow(at(&snapshot, 80)));
    assert_eq!([22, 5, 11, 6], flow(at(&world.look(), 80)));
}

#[test]
fn a_listener_between_two_samples_is_known_by_its_record() {
    let mut world = World::new();
    world.look();
    world.listen(1, 80, 100);
    world.connect(1, 3);
    world.accept(1, 1);
    world.close(1);
    let snapshot = world.look();
    assert_eq!([3, 1, 2, 0], flow(at(&snapshot, 80)));
    assert!(at(&snapshot, 80).members.is_empty());
}

#[test]
fn a_listener_that_is_shut_down_settles_in_the_second_sample() {
    let mut world = World::new();
    world.listen(1, 80, 100);
    world.connect(1, 3);
    world.accept(1, 1);
    world.look();
    let socket = *world.socket(1);
    world.sockets.clear();
    // this record may have been read before the queue was thrown away
    assert_eq!(Ok(1), at(&world.look(), 80).counters.accepted);
    world.record(1).discarded = 2;
    assert_eq!(Ok(1), at(&world.look(), 80).counters.accepted);
    assert_eq!([3, 1, 2, 0], flow(at(&world.look(), 80)));
    world.sockets.push(ListenSocket { length: 0, ..socket });
    world.connect(1, 4);
    assert_eq!([7, 1, 2, 4], flow(at(&world.look(), 80)));
}

#[test]
fn a_listener_that_is_gone_leaves_after_its_time_and_goes_on_when_it_returns() {
    let mut world = World::new();
    world.listen(1, 80, 100);
    world.connect(1, 3);
    world.accept(1, 3);
    world.look();
    world.record(1).closed = 3;
    world.close(1);
    for _ in 0..=5 {
        assert_eq!([3, 3, 0, 0], flow(at(&world.look(), 80)));
    }
    assert!(world.look().listeners.is_empty());
    world.listen(2, 80, 100);
    world.connect(2, 1);
    assert_eq!([4, 3, 0, 1], flow(at(&world.look(), 80)));
}

#[test]
fn drops_are_listen_drops_and_socket_drops_are_what_ss_shows() {
    let mut world = World::new();
    world.listen(1, 80, 1);
    world.socket(1).drops = Ok(1000); // from before
    world.look();
    world.connect(1, 2);
    world.socket(1).drops = Ok(1030);
    world.listen_drops = 15;
    let snapshot = world.look();
    assert_eq!(Ok(15), at(&snapshot, 80).counters.drops);
    assert_eq!(Ok(1030), at(&snapshot, 80).counters.socket_drops);
    // the last drops of a socket that is gone are not lost, and what it counted stays
    world.socket(1).drops = Ok(1040);
    world.listen_drops = 25;
    world.close(1);
    for _ in 0..3 {
        let snapshot = world.look();
        assert_eq!(Ok(25), at(&snapshot, 80).counters.drops);
        assert_eq!(Ok(1040), at(&snapshot, 80).counters.socket_drops);
    }
}

#[test]
fn drops_of_a_listener_that_closed_come_before_what_another_shows_too_early() {
    let mut world = World::new();
    world.listen(1, 80, 1);
    world.listen(2, 81, 1);
    world.connect(1, 2);
    world.connect(2, 2);
    world.look();
    // what a socket shows is ahead of ListenDrops, which is read first
    world.socket(1).drops = Ok(3);
    world.close(1);
    world.look();
    world.socket(2).drops = Ok(3);
    world.listen_drops = 3;
    let snapshot = world.look();
    assert_eq!([80, 81].map(|port| at(&snapshot, port).counters.drops), [Ok(3), Ok(0)]);
    world.listen_drops = 6;
    let snapshot = world.look();
    assert_eq!([80, 81].map(|port| at(&snapshot, port).counters.drops), [Ok(3), Ok(3)]);
}

#[test]
fn members_of_a_group_are_one_listener_and_the_worst_one_shows() {
    let mut world = World::new();
    for cookie in 1..=4 {
        world.listen(cookie, 80, 10);
    }
    world.look();
    world.connect(3, 11);
    let snapshot = world.look();
    let listener = at(&snapshot, 80);
    assert_eq!((4, 11, 40), (listener.members.len(), listener.length, listener.limit));
    assert_eq!(Some(1.1), listener.fill_ratio_max);
    for _ in 0..11 {
        world.look();
    }
    let snapshot = world.look();
    assert_eq!(Ok(true), at(&snapshot, 80).stalled);
    assert_eq!(Nanos(12 * SECOND), at(&snapshot, 80).counters.full);
}

/// Three sockets of one port, each with an owner; the second one's has inherited it.
fn group_of_three() -> World {
    let mut world = World::new();
    for cookie in 1..=3 {
        world.listen(cookie, 80, 10);
    }
    let owners = [(1, vec![Pid(31)]), (2, vec![Pid(42), Pid(12)]), (3, vec![Pid(33)])];
    world.owners = Arc::new(owners.map(|(inode, pids)| (Inode(inode), pids)).into());
    world
}

/// A second in which each of them gets a connection, and all but the second one accept.
fn look_while_one_stands_still(world: &mut World) -> Snapshot {
    for cookie in 1..=3 {
        world.connect(cookie, 1);
    }
    for cookie in [1, 3] {
        world.accept(cookie, 1);
    }
    world.look()
}

#[test]
fn of_a_group_the_member_that_nobody_serves_is_named() {
    let mut world = group_of_three();
    world.look();
    let told = |snapshot: &Snapshot| {
        let member = |it: &snapshot::Member| (it.pid, it.waiting, it.stalled);
        at(snapshot, 80).members.iter().map(member).collect::<Vec<_>>()
    };
    let fine = |pid| (Some(Pid(pid)), Ok(Nanos(0)), Ok(false));
    for second in 0..=11 {
        let stuck = (Some(Pid(12)), Ok(Nanos(second * SECOND)), Ok(4 <= second));
        let snapshot = look_while_one_stands_still(&mut world);
        assert_eq!(vec![fine(31), stuck, fine(33)], told(&snapshot), "{second}");
    }
    // somebody accepts one of twelve
    world.accept(2, 1);
    assert_eq!(vec![fine(31), fine(12), fine(33)], told(&world.look()));
    world.records = Err(Absent::NoEbpf);
    let unknown = |pid| (Some(Pid(pid)), Err(Absent::NoEbpf), Err(Absent::NoEbpf));
    assert_eq!([31, 12, 33].map(unknown).to_vec(), told(&world.look()));
}

#[test]
fn the_owners_of_a_queue_that_nobody_serves_are_looked_at_and_what_is_found_stays_for_a_minute() {
    let mut world = group_of_three();
    world.look();
    let mut asked = Vec::new();
    for second in 0..10 {
        look_while_one_stands_still(&mut world);
        let pids = world.model.wants_threads_of().iter().map(|pid| pid.0);
        asked.push((second, pids.collect::<Vec<_>>()));
    }
    asked.retain(|(_, pids)| !pids.is_empty());
    assert_eq!(vec![(2, vec![12, 42]), (7, vec![12, 42])], asked);
    world.threads = [12, 42].map(|pid| (Pid(pid), Err(Absent::NotPermitted))).into();
    let found = |snapshot: &Snapshot| snapshot.threads.keys().map(|pid| pid.0).collect::<Vec<_>>();
    assert_eq!(vec![12, 42], found(&world.look()));
    Arc::make_mut(&mut world.owners).insert(Inode(2), vec![Pid(42)]);
    for _ in 0..59 {
        assert_eq!(vec![42], found(&world.look()));
    }
    assert_eq!(Vec::<u32>::new(), found(&world.look()));
}

#[test]
fn who_has_a_queue_when_the_agent_starts_is_looked_at_at_once() {
    let mut world = group_of_three();
    world.connect(2, 1);
    world.look();
    assert_eq!([Pid(12), Pid(42)], world.model.wants_threads_of());
}

#[test]
fn without_programs_the_gauges_stay_and_the_rest_is_absent() {
    let mut world = World::new();
    world.records = Err(Absent::NoEbpf);
    world.listen(1, 80, 5);
    world.look();
    world.socket(1).length = 6;
    world.socket(1).drops = Ok(9);
    world.listen_drops = 9;
    let snapshot = world.look();
    let listener = at(&snapshot, 80);
    assert_eq!((6, 5, Ok(9)), (listener.length, listener.limit, listener.counters.drops));
    let absent = Err(Absent::NoEbpf);
    assert_eq!(absent, listener.counters.established);
    assert_eq!(absent, listener.counters.accepted);
    assert_eq!(absent, listener.length_max);
    assert_eq!(absent, listener.syn_queue);
    assert_eq!(absent, listener.open);
    assert_eq!(Err(Absent::NoEbpf), listener.stalled);
}

#[test]
fn a_listener_without_a_slot_is_sampled_only() {
    let mut world = World::new();
    world.listen(1, 80, 5);
    world.records = Ok(Vec::new());
    let snapshot = world.look(); // it may just have been made
    assert_eq!(Err(Absent::TooEarly), at(&snapshot, 80).counters.established);
    let snapshot = world.look();
    assert_eq!(Err(Absent::NoSlot), at(&snapshot, 80).counters.established);
    assert_eq!(Err(Absent::NoSlot), at(&snapshot, 80).length_max);
    assert_eq!(Ok(0), at(&snapshot, 80).counters.drops);
}

#[derive(Clone, Debug)]
enum Act {
    Connect(usize, u32),
    Accept(usize, u32),
    Undo(usize, u32),
    Reopen(usize),
    Look,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        (0_usize..3, 1_u32..20).prop_map(|(i, n)| Act::Connect(i, n)),
        (0_usize..3, 1_u32..20).prop_map(|(i, n)| Act::Accept(i, n)),
        (0_usize..3, 1_u32..3).prop_map(|(i, n)| Act::Undo(i, n)),
        (0_usize..3).prop_map(Act::Reopen),
        Just(Act::Look),
    ];
    prop::collection::vec(act, 0..120)
}

proptest! {
    #[test]
    fn whatever_happens_between_samples_no_count_is_lost_doubled_or_goes_back(acts in acts()) {
        let mut world = World::new();
        let mut current: Vec<u64> = (1..=3).collect();
        let mut truth = [[0_u64; 2]; 3]; // established, accepted
        let mut undone = 0;
        for (i, &cookie) in (0_u16..).zip(&current) {
            world.listen(cookie, 80 + i, 50);
        }
        let mut next = 4;
        let mut before = [[0_u64; 4]; 3];
        for act in acts.into_iter().chain([Act::Look]) {
            match act {
                Act::Connect(i, n) => {
                    world.connect(current[i], n);
                    truth[i][0] += u64::from(n);
                }
                Act::Accept(i, n) => {
                    let n = n.min(world.socket(current[i]).length);
                    world.accept(current[i], n);
                    truth[i][1] += u64::from(n);
                }
                Act::Undo(i, n) => {
                    world.passive_opens += u64::from(n);
                    world.record(current[i]).undone += u64::from(n);
                    undone += u64::from(n);
                }
                Act::Reopen(i) => {
                    world.close(current[i]);
                    current[i] = next;
                    world.listen(next, 80 + u16::try_from(i).expect("small"), 50);
                    next += 1;
                }
                Act::Look => {
                    let snapshot = world.look();
                    for (i, port) in (80..83).enumerate() {
                        let now = flow(at(&snapshot, port));
                        prop_assert_eq!(&truth[i], &now[..2]);
                        prop_assert!((0..3).all(|k| before[i][k] <= now[k]), "{before:?} {now:?}");
                        before[i] = now;
                    }
                    let namespace = &snapshot.namespaces[0];
                    prop_assert_eq!((Ok(0), Ok(undone)), (namespace.lost_in_kernel, namespace.undone));
                }
            }
        }
    }
}

#[test]
fn a_listener_without_a_slot_that_is_gone_has_no_counts_either() {
    let mut world = World::new();
    world.look();
    world.listen(1, 80, 5);
    world.records = Ok(Vec::new());
    world.look();
    world.sockets.clear();
    for _ in 0..3 {
        assert_eq!(Err(Absent::NoSlot), at(&world.look(), 80).counters.established);
    }
}

#[test]
fn a_listener_that_one_dump_passes_by_has_its_drops_counted_once() {
    let mut world = World::new();
    world.records = Err(Absent::NoEbpf);
    world.listen(1, 80, 5);
    world.socket(1).drops = Ok(1000);
    world.look();
    let socket = world.sockets.pop().expect("listens");
    world.listen_drops = 500; // somebody else's
    assert_eq!(Ok(1000), at(&world.look(), 80).counters.socket_drops);
    world.sockets.push(socket);
    let snapshot = world.look();
    assert_eq!(Ok(1000), at(&snapshot, 80).counters.socket_drops);
    assert_eq!(Ok(0), at(&snapshot, 80).counters.drops);
}

#[test]
fn listeners_that_cannot_be_read_are_not_shown_as_they_were_and_go_on_afterwards() {
    let mut world = World::new();
    world.listen(1, 80, 5);
    world.connect(1, 3);
    world.look();
    world.unreadable = true;
    assert!(world.look().listeners.is_empty());
    world.unreadable = false;
    world.accept(1, 2);
    assert_eq!([3, 2, 0, 1], flow(at(&world.look(), 80)));
}

#[test]
fn the_last_state_of_a_listener_counts_also_where_the_others_cannot_be_read() {
    let mut world = World::new();
    world.listen(1, 80, 5);
    world.listen(2, 81, 5);
    world.connect(1, 3);
    world.connect(2, 2);
    world.look();
    world.close(1);
    world.unreadable = true;
    world.look();
    // its record is given back
    world.records.as_mut().expect("programs run").retain(|record| record.cookie.0 != 1);
    world.unreadable = false;
    let snapshot = world.look();
    assert_eq!(Ok(3), at(&snapshot, 80).counters.aborted_listener_closed);
    assert_eq!([3, 0], flow(at(&snapshot, 80))[..2]);
    assert_eq!([2, 0], flow(at(&snapshot, 81))[..2]);
}

#[test]
fn drops_that_hooks_saw_before_the_counters_could_be_read_are_counted_then() {
    let mut world = World::new();
    world.listen(1, 80, 5);
    world.look();
    world.uncounted = true;
    world.record(1).drops.full_syn = 4;
    world.socket(1).drops = Ok(4);
    for _ in 0..3 {
        assert_eq!(Err(Absent::Unreadable), at(&world.look(), 80).counters.drops);
    }
    world.listen_drops = 4;
    world.uncounted = false;
    assert_eq!(Ok(4), at(&world.look(), 80).counters.drops);
}

#[test]
fn a_recording_gives_back_what_the_model_showed() {
    let mut world = World::new();
    world.listen(1, 80, 5);
    let mut shown = vec![world.look()];
    world.listen(2, 81, 100);
    world.connect(1, 6);
    shown.push(world.look());
    world.connect(2, 50);
    world.accept(2, 50);
    shown.push(world.look());
    world.close(1);
    shown.push(world.look());
    world.unreadable = true;
    shown.push(world.look());
    let mut writer = Writer::new(Vec::new(), "x", UnixTime(0)).unwrap();
    shown.iter().for_each(|snapshot| writer.push(snapshot).unwrap());
    let bytes = writer.finish().unwrap();
    let read = Recording::open(&*bytes).unwrap().snapshots();
    assert_eq!(shown, read.map(Result::unwrap).collect::<Vec<_>>());
}
