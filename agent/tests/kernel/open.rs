//! Connections that are open: accepted - closed = what servers really hold, however the others ended,
//! and also of connections from before the agent.

use std::{
    io::ErrorKind,
    net::{IpAddr, Shutdown, SocketAddr},
    process::{Child, Command},
    thread,
    time::{Duration, Instant},
};

use rustix::io::{FdFlags, fcntl_setfd};
use socket2::{Domain, Socket, Type};

use crate::{
    agent::{Agent, Numbers, find},
    namespace::{DEADLINE, in_own_netns, wait_for},
    offenders::NeverAccepts,
    tier::scaled,
};

/// More than wait at a time here.
const BACKLOG: i32 = 64;

/// A listener, of one socket or of a group, and where its clients connect to.
struct Server {
    addr: SocketAddr,
    members: Vec<NeverAccepts>,
    targets: Vec<SocketAddr>,
    /// By the socket that accepted it.
    held: Vec<Pair>,
}

/// Both ends of a connection.
struct Pair {
    client: Socket,
    server: Socket,
}

/// How a connection ends. All but the last two leave the server its descriptor for a while.
#[derive(Clone, Copy, Debug)]
enum End {
    ClientCloses,
    ClientResets,
    /// Bytes that the client has not read make a RST of its FIN.
    ClientLeavesBytes,
    ClientShutsDown,
    ServerShutsDown,
    BothShutDown,
    ClientIsKilled,
    ServerIsKilled,
    ServerCloses,
    ServerResets,
}

const ENDS: [End; 10] = [
    End::ClientCloses,
    End::ClientResets,
    End::ClientLeavesBytes,
    End::ClientShutsDown,
    End::ServerShutsDown,
    End::BothShutDown,
    End::ClientIsKilled,
    End::ServerIsKilled,
    End::ServerCloses,
    End::ServerResets,
];

impl Server {
    /// Clients of `listener` take turns at `hosts`.
    fn new(members: Vec<NeverAccepts>, hosts: &[&str]) -> Self {
        for member in &members {
            member.socket().set_nonblocking(true).expect("O_NONBLOCK");
        }
        let port = members[0].addr.port();
        let target = |host: &&str| format!("{host}:{port}").parse().expect("an address");
        let targets = hosts.iter().map(target).collect();
        Self { addr: members[0].addr, members, targets, held: Vec::new() }
    }

    /// The addresses of its connections.
    fn locals(&self) -> impl Iterator<Item = SocketAddr> {
        let is_v6 = self.addr.is_ipv6();
        self.targets.iter().map(move |&target| match target.ip() {
            IpAddr::V4(ip) if is_v6 => SocketAddr::new(ip.to_ipv6_mapped().into(), target.port()),
            _ => target,
        })
    }

    /// One more connection, in the queue.
    fn connect(&mut self) -> Socket {
        self.targets.rotate_left(1);
        let target = self.targets[0];
        let client = Socket::new(Domain::for_address(target), Type::STREAM, None).expect("socket");
        client.connect(&target.into()).expect("there is room");
        client
    }

    /// What accept(2) returns: of any member.
    fn accept(&self) -> Socket {
        let mut accepted = None;
        wait_for("a connection to accept", || {
            accepted = self.members.iter().find_map(|member| match member.socket().accept() {
                Ok((socket, _)) => Some(socket),
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}");
                    None
                }
            });
            accepted.is_some()
        });
        accepted.expect("waited for")
    }

    /// `n` connections from connect(2) to accept(2).
    fn open(&mut self, n: u64) {
        for _ in 0..n {
            let client = self.connect();
            let server = self.accept();
            self.held.push(Pair { client, server });
        }
    }
}

/// A process that holds sockets until it is killed.
struct Process(Child);

impl Process {
    /// Nobody else holds them from here on.
    fn holding(sockets: Vec<Socket>) -> Self {
        for socket in &sockets {
            fcntl_setfd(socket, FdFlags::empty()).expect("an open descriptor");
        }
        let process = Command::new("sleep").arg("1000").spawn().expect("sleep");
        drop(sockets);
        Self(process)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.0.kill().expect("our child");
        self.0.wait().expect("our child");
    }
}

fn reset(socket: Socket) {
    socket.set_linger(Some(Duration::ZERO)).expect("SO_LINGER");
    drop(socket);
}

/// Connections that are about to end.
struct Ending {
    /// What the server holds of them.
    held: Vec<Socket>,
    /// Clients that do no more.
    clients: Vec<Socket>,
    processes: Vec<Process>,
    /// How many connections of the server one of these holds.
    n_elsewhere: usize,
}

/// Begins to end `pairs`, by each of `ENDS` in turn.
fn begin_end(pairs: Vec<Pair>) -> Ending {
    let (mut held, mut clients) = (Vec::new(), Vec::new());
    let (mut victims, mut servers) = (Vec::new(), Vec::new());
    for (Pair { client, server }, end) in pairs.into_iter().zip(ENDS.into_iter().cycle()) {
        match end {
            End::ClientCloses => drop(client),
            End::ClientResets => reset(client),
            End::ClientLeavesBytes => {
                assert_eq!(server.send(b"x").expect("room"), 1);
                drop(client);
            }
            End::ClientShutsDown => {
                client.shutdown(Shutdown::Write).expect("connected");
                clients.push(client);
            }
            End::ServerShutsDown => {
                server.shutdown(Shutdown::Write).expect("connected");
                clients.push(client);
            }
            End::BothShutDown => {
                server.shutdown(Shutdown::Write).expect("connected");
                client.shutdown(Shutdown::Write).expect("connected");
                clients.push(client);
            }
            End::ClientIsKilled => victims.push(client),
            End::ServerIsKilled | End::ServerCloses | End::ServerResets => clients.push(client),
        }
        match end {
            End::ServerIsKilled => servers.push(server),
            End::ServerCloses => drop(server),
            End::ServerResets => reset(server),
            _ => held.push(server),
        }
    }
    let n_elsewhere = servers.len();
    Ending {
        held,
        clients,
        processes: [victims, servers].map(Process::holding).into(),
        n_elsewhere,
    }
}

/// Whether the connection is over, and only its descriptor is left: it is in no table of sockets.
fn is_over(socket: &Socket) -> bool {
    socket.peer_addr().is_err_and(|error| error.raw_os_error() == Some(libc::ENOTCONN))
}

/// Connections of `server` by `ss`: those that somebody holds, and orphans, which were closed with
/// something left to do: the kernel has yet to deliver what was sent, or waits for the client's FIN.
fn count_by_ss(server: &Server) -> (usize, usize) {
    let output = Command::new("ss")
        .args(["-tanHOe", "state", "connected", &format!("sport = :{}", server.addr.port())])
        .output()
        .expect("ss");
    assert!(output.status.success(), "ss: {output:?}");
    let text = String::from_utf8(output.stdout).expect("ss writes ASCII");
    let (mut held, mut orphans) = (0, 0);
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let inode = words.iter().find_map(|word| word.strip_prefix("ino:"));
        let local = words[3].parse().unwrap_or_else(|_| panic!("ss: {line:?}"));
        match (words[0], inode) {
            _ if server.locals().all(|addr| addr != local) => {}
            // what is left of a socket that is gone
            _ if line.contains("timer:(timewait") => {}
            (_, Some(inode)) if inode != "0" => held += 1,
            ("FIN-WAIT-1" | "FIN-WAIT-2" | "CLOSING" | "LAST-ACK", _) => orphans += 1,
            // not accepted
            _ => {}
        }
    }
    (held, orphans)
}

/// Waits until as many are open as the descriptors and `ss` say; nothing else moves. The orphans.
#[track_caller]
fn check_open(agent: &mut Agent, server: &Server, ending: Option<&Ending>) -> usize {
    let here = || {
        let more = ending.iter().flat_map(|ending| &ending.held);
        server.held.iter().map(|pair| &pair.server).chain(more)
    };
    let held = here().count() + ending.map_or(0, |ending| ending.n_elsewhere);
    let start = Instant::now();
    loop {
        let n_over = here().filter(|socket| is_over(socket)).count();
        let (held_by_ss, orphans) = count_by_ss(server);
        let snapshot = agent.look();
        let listener = find(&snapshot, server.addr);
        let counters = listener.counters;
        let difference = counters.accepted.and_then(|a| counters.closed.map(|c| a.checked_sub(c)));
        assert_eq!(difference, listener.open.map(Some), "{}: {counters:?}", server.addr);
        let n = Numbers::of(listener);
        let gone = n.accepted + n.listener_closed;
        assert_eq!(n.established, gone + n.length, "identity of {}: {n:?}", server.addr);
        let open = listener.open.map(|n| usize::try_from(n).expect("few"));
        if (open, held_by_ss + n_over) == (Ok(held + orphans), held) {
            return orphans;
        }
        // the last ACK of a close can be under way
        let by_ss = format!("{held_by_ss} and {orphans} orphans by ss, {n_over} are over");
        let what = format!("{}: {open:?} open, {held} held, {by_ss}: {n:?}", server.addr);
        assert!(start.elapsed() < DEADLINE, "{what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Puts `items` into an order that has nothing to do with theirs, and is the same each time.
fn shuffle<T>(items: &mut [T]) {
    let mut state = 0x9e37_79b9_u32;
    for i in (1..items.len()).rev() {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        items.swap(i, usize::try_from(state).expect("64 bits") % (i + 1));
    }
}

/// Listeners of every shape; each connects clients to itself alone.
fn servers() -> Vec<Server> {
    let reuse = |socket: &Socket| socket.set_reuse_port(true).expect("SO_REUSEPORT");
    let only_v6 = |socket: &Socket| socket.set_only_v6(true).expect("IPV6_V6ONLY");
    let listen = |addr: &str| NeverAccepts::listen(addr, BACKLOG);
    // three on one port: what is at the specific address is not the wildcard's
    let specific = NeverAccepts::prepared("127.0.0.1:0", BACKLOG, reuse);
    let port = specific.addr.port();
    let wildcard = NeverAccepts::prepared(&format!("0.0.0.0:{port}"), BACKLOG, reuse);
    let v6 = NeverAccepts::prepared(&format!("[::]:{port}"), BACKLOG, only_v6);
    vec![
        Server::new(vec![listen("127.0.0.1:0")], &["127.0.0.1"]),
        Server::new(vec![listen("[::1]:0")], &["[::1]"]),
        Server::new(vec![listen("[::]:0")], &["127.0.0.1", "[::1]"]),
        Server::new(vec![listen("[::ffff:127.0.0.1]:0")], &["127.0.0.1"]),
        Server::new(vec![specific], &["127.0.0.1"]),
        Server::new(vec![wildcard], &["127.0.0.2"]),
        Server::new(vec![v6], &["[::1]"]),
        Server::new(NeverAccepts::group(&[BACKLOG; 4]), &["127.0.0.1"]),
    ]
}

/// Ends `pairs` of `server` step by step.
#[track_caller]
fn check_end(agent: &mut Agent, server: &Server, pairs: Vec<Pair>) {
    let mut ending = begin_end(pairs);
    check_open(agent, server, Some(&ending));
    ending.processes.clear();
    ending.n_elsewhere = 0;
    ending.clients.clear();
    check_open(agent, server, Some(&ending));
    drop(ending);
    check_open(agent, server, None);
}

#[test]
#[ignore = "kernel: needs root"]
fn what_is_accepted_and_not_closed_is_open_however_the_others_end() {
    const ROUNDS: u64 = 10;
    in_own_netns(|| {
        let mut agent = Agent::start();
        let mut servers = servers();
        let n = scaled(10_000) / ROUNDS / u64::try_from(servers.len()).expect("few");
        for round in 1..=ROUNDS {
            for server in &mut servers {
                server.open(n);
                check_open(&mut agent, server, None);
                shuffle(&mut server.held);
                // nine in ten end, in any order
                let kept = usize::try_from(round * n / 10).expect("few");
                let pairs = server.held.split_off(kept);
                check_end(&mut agent, server, pairs);
            }
            agent.settled();
        }
        for server in &mut servers {
            server.held.clear();
            check_open(&mut agent, server, None);
        }
        agent.settled();
    });
}

/// What a server had before the agent came, besides what it holds.
struct Before {
    /// Clients of connections that wait.
    queued: Vec<Socket>,
    /// Clients that read nothing of what was sent before the server closed.
    deaf: Vec<Socket>,
    /// What the server holds of connections that are over. They are in no table of sockets, so that
    /// nobody can find them: not in any count.
    over: Vec<Socket>,
}

/// What [`before`] leaves.
const HELD: usize = 12;
const ORPHANS: usize = 2;
const QUEUED: u64 = 11;
/// Of those that are queued.
const RESET: [u64; 2] = [3, 7];

/// Connections in every state that a connection can have.
fn before(server: &mut Server) -> Before {
    let mut before = Before { queued: Vec::new(), deaf: Vec::new(), over: Vec::new() };
    for _ in 0..ORPHANS {
        let client = server.connect();
        fill(server.accept());
        before.deaf.push(client);
        let client = server.connect();
        before.over.push(server.accept());
        reset(client);
    }
    let client = server.connect();
    // nothing is left of it but TIME_WAIT
    drop((server.accept(), client));
    server.open(HELD as u64);
    for Pair { client, .. } in &server.held[..4] {
        client.shutdown(Shutdown::Write).expect("connected");
    }
    for Pair { server, .. } in &server.held[4..7] {
        server.shutdown(Shutdown::Write).expect("connected");
    }
    for i in 0..QUEUED {
        let client = server.connect();
        match i {
            _ if RESET.contains(&i) => reset(client),
            _ if i % 3 == 0 => drop(client),
            _ => before.queued.push(client),
        }
    }
    before
}

/// Sends until the other end takes no more, and closes.
fn fill(server: Socket) {
    server.set_nonblocking(true).expect("O_NONBLOCK");
    let bytes = [0; 65536];
    while server.send(&bytes).is_ok() {}
    drop(server);
}

/// What becomes of a queue from before the agent.
#[derive(Clone, Copy)]
enum Queue {
    IsAccepted,
    ClosesWithItsListener,
}

/// What the agent found is followed to its end, and so is what comes after.
#[track_caller]
fn check_found(queue: Queue) {
    let mut servers = servers();
    let left: Vec<Before> = servers.iter_mut().map(before).collect();
    let mut agent = Agent::start();
    let found = (HELD + ORPHANS) as u64;
    let numbers = Numbers {
        established: found + QUEUED,
        accepted: found,
        length: QUEUED,
        ..Numbers::default()
    };
    for server in &servers {
        assert_eq!(check_open(&mut agent, server, None), ORPHANS);
        check_numbers(&mut agent, server, numbers);
    }
    for (server, left) in servers.iter_mut().zip(left) {
        match queue {
            Queue::IsAccepted => check_accepted(&mut agent, server, left, numbers),
            Queue::ClosesWithItsListener => {
                server.members.clear();
                let numbers = Numbers { length: 0, listener_closed: QUEUED, ..numbers };
                check_last(&mut agent, server, left.deaf, numbers);
            }
        }
    }
}

fn check_numbers(agent: &mut Agent, server: &Server, expected: Numbers) {
    assert_eq!(Numbers::of(find(&agent.look(), server.addr)), expected, "{}", server.addr);
}

#[track_caller]
fn check_accepted(agent: &mut Agent, server: &mut Server, left: Before, mut numbers: Numbers) {
    let accepted = (0..QUEUED).map(|_| server.accept());
    let (over, held): (Vec<_>, Vec<_>) = accepted.partition(is_over);
    assert_eq!(over.len(), RESET.len());
    numbers.accepted += QUEUED;
    numbers.length = 0;
    check_numbers(agent, server, numbers);
    let mut late = Ending { held, clients: left.queued, processes: Vec::new(), n_elsewhere: 0 };
    check_open(agent, server, Some(&late));
    drop((over, left.over));
    server.open(7);
    numbers.established += 7;
    numbers.accepted += 7;
    late.clients.clear();
    check_open(agent, server, Some(&late));
    drop(late);
    check_last(agent, server, left.deaf, numbers);
}

/// Nothing is queued: the rest ends, and `numbers` stay.
#[track_caller]
fn check_last(agent: &mut Agent, server: &mut Server, deaf: Vec<Socket>, numbers: Numbers) {
    let pairs = std::mem::take(&mut server.held);
    check_end(agent, server, pairs);
    // bytes that were not read make a RST of their FIN
    drop(deaf);
    check_open(agent, server, None);
    check_numbers(agent, server, numbers);
    let closed = find(&agent.look(), server.addr).counters.closed;
    assert_eq!(closed, Ok(numbers.accepted));
}

#[test]
#[ignore = "kernel: needs root"]
fn connections_from_before_the_agent_are_open_until_they_close() {
    in_own_netns(|| check_found(Queue::IsAccepted));
}

#[test]
#[ignore = "kernel: needs root"]
fn connections_from_before_the_agent_outlive_their_listener() {
    in_own_netns(|| check_found(Queue::ClosesWithItsListener));
}
