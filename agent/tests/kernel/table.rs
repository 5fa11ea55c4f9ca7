//! The table of TCP sockets, of UDP sockets and of totals against `ss` and /proc.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use backlogd::{
    input::{Connections, Destination, Table},
    sources::{netstat, sockets, sockstat, udp},
};
use socket2::{Domain, Socket, Type};

use crate::{
    clients::bind,
    namespace::{in_own_netns, is_since, run, set_sysctl, wait_for},
    offenders::NeverAccepts,
};

const AMPLE: Duration = Duration::from_secs(60);

fn read(servers: &[&NeverAccepts]) -> Table {
    let listeners: BTreeSet<_> = servers.iter().map(|it| key(it.addr)).collect();
    sockets::read(&listeners, AMPLE, 10).expect("sock_diag")
}

fn key(addr: SocketAddr) -> (IpAddr, u16) {
    (addr.ip(), addr.port())
}

/// A socket as `ss` shows it: state, Recv-Q, Send-Q, both ends.
struct Ss {
    state: &'static str,
    unread: u64,
    unsent: u64,
    local: SocketAddr,
    remote: SocketAddr,
}

fn ss(arguments: &str) -> Vec<String> {
    let output = Command::new("ss").args(arguments.split(' ')).output().expect("ss");
    assert!(output.status.success(), "ss: {output:?}");
    String::from_utf8(output.stdout).expect("ASCII").lines().map(Into::into).collect()
}

/// All but listeners.
fn ss_tcp() -> Vec<Ss> {
    const STATES: [(&str, &str); 9] = [
        ("ESTAB", "established"),
        ("SYN-SENT", "syn_sent"),
        ("SYN-RECV", "syn_recv"),
        ("FIN-WAIT-1", "fin_wait_1"),
        ("FIN-WAIT-2", "fin_wait_2"),
        ("TIME-WAIT", "time_wait"),
        ("CLOSE-WAIT", "close_wait"),
        ("LAST-ACK", "last_ack"),
        ("CLOSING", "closing"),
    ];
    let parse = |line: String| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (_, state) = STATES.into_iter().find(|(name, _)| *name == words[0])?;
        let number = |text: &str| text.parse().expect("a number");
        let addr = |text: &str| text.parse().unwrap_or_else(|_| panic!("ss: {line:?}"));
        let (unread, unsent) = (number(words[1]), number(words[2]));
        Some(Ss { state, unread, unsent, local: addr(words[3]), remote: addr(words[4]) })
    };
    ss("-tanHO").into_iter().filter_map(parse).collect()
}

/// The table has as many sockets in each state as `ss` shows.
#[track_caller]
fn states_agree(table: &Table) {
    let mut expected = BTreeMap::new();
    for socket in ss_tcp() {
        *expected.entry(socket.state).or_insert(0_u64) += 1;
    }
    let mut got = table.states.clone();
    got.retain(|_, n| 0 < *n);
    assert_eq!(got, expected);
    assert_eq!(table.rows, expected.values().sum::<u64>());
    assert!(!table.is_partial);
}

fn connect(n: usize, to: SocketAddr) -> Vec<TcpStream> {
    (0..n).map(|_| TcpStream::connect(to).expect("connect")).collect()
}

#[test]
#[ignore = "kernel: needs root"]
fn each_state_and_what_stands_behind_it_is_as_ss_shows_it() {
    #[track_caller]
    fn check(bound: &str, to: &str) {
        in_own_netns(|| {
            let server = NeverAccepts::listen(bound, 100);
            let target = SocketAddr::new(to.parse().expect("an address"), server.addr.port());
            let mut clients = connect(20, target);
            let mut accepted = server.accept(12);
            // of those accepted: 4 that the peer closed, 3 that the owner closed, 5 as they were
            clients.drain(..4);
            accepted.drain(4..7);
            // of those not accepted: 2 that the peer closed, of 8
            clients.truncate(14);
            let of = |table: &Table| table.listeners[&key(server.addr)];
            let expected = Connections {
                accepted: 9,
                close_wait: 4,
                fin_wait: 3,
                queued: 8,
                unread_bytes: 4,
                unread_bytes_max: 1,
                ..Connections::default()
            };
            wait_for("the states to settle", || {
                let table = read(&[&server]);
                // an ACK of a FIN may be delayed
                of(&table) == expected && table.states["fin_wait_1"] == 0
            });
            let table = read(&[&server]);
            states_agree(&table);
            let at = |state: &str| {
                let all = ss_tcp();
                let here = all.iter().filter(|it| it.local.port() == server.addr.port());
                here.filter(|it| it.state == state).count() as u64
            };
            assert_eq!(at("close_wait"), expected.close_wait + 2, "2 of them wait for accept");
            assert_eq!(at("fin_wait_2"), expected.fin_wait);
            let queued = ss("-ltnHO")
                .iter()
                .map(|line| {
                    line.split_whitespace().nth(1).and_then(|word| word.parse().ok()).unwrap_or(0)
                })
                .sum::<u64>();
            assert_eq!(queued, expected.queued);

            // the clients are connections that began here, of one destination
            let [destination] = table.destinations[..] else { panic!("{:?}", table.destinations) };
            assert_eq!((destination.addr, destination.port), key(target));
            assert_eq!(destination.source, target.ip());
            let from_here = ss_tcp().iter().filter(|it| it.remote.port() == target.port()).count();
            assert_eq!(destination.open, from_here as u64);
            drop((clients, accepted));
        });
    }
    check("127.0.0.1:0", "127.0.0.1");
    check("[::1]:0", "::1");
    // a v4-mapped row of a listener on ::
    check("[::]:0", "127.0.0.1");
    check("0.0.0.0:0", "127.0.0.1");
}

#[test]
#[ignore = "kernel: needs root"]
fn close_wait_of_a_server_that_never_closes_is_ss_state_close_wait() {
    in_own_netns(|| {
        let server = NeverAccepts::listen("127.0.0.1:0", 300);
        let clients = connect(300, server.addr);
        let accepted = server.accept(300);
        drop(clients);
        wait_for("all to be closed", || 300 == ss("-tanHO state close-wait").len());
        // the acknowledgement may take its time
        wait_for("that to be acknowledged", || 300 == ss("-tanHO state fin-wait-2").len());
        let table = read(&[&server]);
        assert_eq!(table.listeners[&key(server.addr)].close_wait, 300);
        assert_eq!((table.states["close_wait"], table.states["fin_wait_2"]), (300, 300));
        states_agree(&table);
        drop(accepted);
        wait_for("all to be in TIME_WAIT", || read(&[&server]).states["time_wait"] == 300);
        // on the side that closed first
        let table = read(&[&server]);
        assert_eq!((table.time_wait_ephemeral, table.destinations[0].time_wait), (300, 300));
        assert_eq!(table.listeners[&key(server.addr)], Connections::default());
    });
}

#[test]
#[ignore = "kernel: needs root"]
fn outbound_connections_closed_by_us_are_in_time_wait_by_destination() {
    in_own_netns(|| {
        set_sysctl("ipv4/tcp_tw_reuse", "0");
        run("ip", &["addr", "add", "10.9.8.7/32", "dev", "lo"]);
        let servers = [
            (NeverAccepts::listen("127.0.0.1:0", 1), 1_500_u64),
            (NeverAccepts::listen("10.9.8.7:0", 1), 450),
            (NeverAccepts::listen("[::1]:0", 1), 50),
        ];
        let mut began = Instant::now();
        for (server, n) in &servers {
            began = Instant::now();
            for _ in 0..*n {
                let client = TcpStream::connect(server.addr).expect("connect");
                let accepted = server.accept(1);
                drop(client);
                drop(accepted);
            }
        }
        let ended = Instant::now();
        let all: Vec<&NeverAccepts> = servers.iter().map(|(server, _)| server).collect();
        wait_for("TIME_WAIT", || read(&all).time_wait_ephemeral == 2_000);
        let table = read(&all);
        if began.elapsed() < Duration::from_secs(1) {
            assert_eq!(table.destinations[2].time_wait_reusable, 0);
        }
        states_agree(&table);
        let expected = servers.each_ref().map(|(server, n)| (key(server.addr), 0, *n));
        let seen = |it: &Destination| ((it.addr, it.port), it.open, it.time_wait);
        assert_eq!(table.destinations.iter().map(seen).collect::<Vec<_>>(), expected);
        for (server, n) in &servers {
            let of_it = format!("-tanHO state time-wait dst {}", server.addr);
            assert_eq!(ss(&of_it).len() as u64, *n);
        }
        let sockstat = sockstat::read(Path::new("/proc/thread-self/net")).expect("sockstat");
        // where both ends closed at once, both are in TIME_WAIT
        assert_eq!(sockstat.time_wait, table.states["time_wait"]);

        let reusable = |table: &Table| -> u64 {
            table.destinations.iter().map(|it| it.time_wait_reusable).sum()
        };
        wait_for("a second to pass for the last", || reusable(&read(&all)) == 2_000);
        // less a jiffy of the slowest clock, and one that had begun
        assert!(Duration::from_millis(980) < ended.elapsed());

        let cut = sockets::read(&BTreeSet::new(), AMPLE, 1).expect("sock_diag");
        assert_eq!((cut.destinations.len(), cut.n_destinations), (1, 3));
    });
}

#[test]
#[ignore = "kernel: needs root"]
fn bytes_unread_and_unsent_are_those_of_ss() {
    in_own_netns(|| {
        let server = NeverAccepts::listen("127.0.0.1:0", 10);
        let mut clients = connect(3, server.addr);
        let accepted = server.accept(3);
        // nobody reads 5,000 and 700 bytes; the third client does not read what it gets
        clients[0].write_all(&[0; 5_000]).expect("write");
        clients[1].write_all(&[0; 700]).expect("write");
        accepted[2].set_nonblocking(true).expect("O_NONBLOCK");
        while (&accepted[2]).write(&[0; 65_536]).is_ok() {}

        let now = || read(&[&server]).listeners[&key(server.addr)];
        let (mut last, mut all) = (now(), Vec::new());
        wait_for("the queues to stand still", || {
            all = ss_tcp();
            let before = std::mem::replace(&mut last, now());
            before == last
        });
        let here: Vec<Ss> = all.into_iter().filter(|it| it.local == server.addr).collect();
        assert_eq!((last.unread_bytes, last.unread_bytes_max), (5_700, 5_000));
        assert_eq!(last.unread_bytes, here.iter().map(|it| it.unread).sum::<u64>());
        assert_eq!(last.unsent_bytes, here.iter().map(|it| it.unsent).sum::<u64>());
        assert_eq!(Some(last.unsent_bytes_max), here.iter().map(|it| it.unsent).max());
        assert!(0 < last.unsent_bytes);

        (&accepted[0]).read_exact(&mut [0; 5_000]).expect("read");
        assert_eq!(now().unread_bytes, 700);
    });
}

#[test]
#[ignore = "kernel: needs root"]
fn what_is_bound_and_idle_is_no_connection_and_no_listener() {
    in_own_netns(|| {
        let server = NeverAccepts::listen("127.0.0.1:20001", 10);
        let _clients = connect(3, server.addr);
        let range = 20_001..=20_003;
        assert_eq!(sockets::bound(&range).expect("sock_diag"), BTreeSet::new());
        // more than the kernel holds at once, and one more on the listener's port
        let idle: Vec<Socket> = (1..=40).map(|n| bind(&format!("127.0.1.{n}:20003"))).collect();
        let more = ["[::1]:20002", "127.0.0.9:20001", "127.0.0.1:20000", "[::1]:20004"].map(bind);
        let told = if is_since((6, 8)) { vec![20_001, 20_002, 20_003] } else { Vec::new() };
        assert_eq!(sockets::bound(&range).expect("sock_diag"), told.into_iter().collect());
        assert_eq!(read(&[&server]).rows, 6);
        drop((idle, more));
        assert_eq!(sockets::bound(&range).expect("sock_diag"), BTreeSet::new());
    });
}

#[test]
#[ignore = "kernel: needs root"]
fn a_budget_stops_the_read_and_the_read_says_so() {
    in_own_netns(|| {
        let server = NeverAccepts::listen("127.0.0.1:0", 2_000);
        let _clients = connect(2_000, server.addr);
        let listeners = [key(server.addr)].into();
        let stopped = sockets::read(&listeners, Duration::ZERO, 10).expect("sock_diag");
        assert_eq!((stopped.rows, stopped.is_partial), (0, true));
        assert_eq!(stopped.listeners[&key(server.addr)], Connections::default());
        let whole = read(&[&server]);
        assert_eq!((whole.rows, whole.is_partial), (4_000, false));

        let budget = Duration::from_nanos(whole.took.0 / 8);
        let stopped = sockets::read(&listeners, budget, 10).expect("sock_diag");
        assert!(stopped.is_partial && stopped.rows < 4_000, "{stopped:?}");
        assert!(stopped.listeners[&key(server.addr)].queued <= 2_000);
    });
}

#[test]
#[ignore = "kernel: needs root"]
fn an_empty_namespace_has_an_empty_table() {
    in_own_netns(|| {
        let table = sockets::read(&BTreeSet::new(), Duration::ZERO, 10).expect("sock_diag");
        assert!(!table.is_partial && table.states.values().all(|n| *n == 0), "{table:?}");
        assert_eq!(udp::read().expect("udp_diag"), []);
        let net = Path::new("/proc/thread-self/net");
        let sockstat = sockstat::read(net).expect("sockstat");
        assert_eq!((sockstat.tcp_inuse, sockstat.tcp6_inuse), (0, Ok(0)));
        // the host's own namespace alone has it
        assert_eq!(sockstat::limits(), Err(backlogd::input::Absent::NotOnThisKernel));
    });
}

#[test]
#[ignore = "kernel: needs root"]
fn totals_are_the_namespaces_own() {
    in_own_netns(|| {
        let server = NeverAccepts::listen("127.0.0.1:0", 100);
        let server6 = NeverAccepts::listen("[::1]:0", 100);
        let clients = connect(30, server.addr);
        let clients6 = connect(20, server6.addr);
        let net = Path::new("/proc/thread-self/net");
        let sockstat = || sockstat::read(net).expect("sockstat");
        // two ends each, and the listener
        assert_eq!((sockstat().tcp_inuse, sockstat().tcp6_inuse), (61, Ok(41)));
        assert_eq!(netstat::read(net).expect("snmp").established, Some(100));

        drop(clients);
        // their peers do not close
        wait_for("FIN_WAIT_2", || read(&[&server]).states["fin_wait_2"] == 30);
        assert_eq!((sockstat().tcp_inuse, sockstat().time_wait), (31, 30));

        for client in clients6 {
            client.set_nonblocking(true).expect("O_NONBLOCK");
            while (&client).write(&[0; 65_536]).is_ok() {}
        }
        // nobody takes their bytes; those of all namespaces are counted as one
        wait_for("orphans", || 20 <= sockstat().orphans);
        assert_eq!((read(&[&server6]).states["fin_wait_1"], sockstat().tcp6_inuse), (20, Ok(41)));
    });
}

#[test]
#[ignore = "kernel: needs root"]
fn what_a_udp_socket_drops_is_what_it_did_not_take() {
    in_own_netns(|| {
        #[track_caller]
        fn check(addr: &str, field: &str) {
            let addr: SocketAddr = addr.parse().expect("an address");
            let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, None).expect("socket");
            socket.set_recv_buffer_size(8_192).expect("SO_RCVBUF");
            socket.bind(&addr.into()).expect("bind");
            let server = UdpSocket::from(socket);
            let addr = server.local_addr().expect("bound");
            let client = UdpSocket::bind(SocketAddr::new(addr.ip(), 0)).expect("bind");
            client.connect(addr).expect("connect");
            for _ in 0..500 {
                assert_eq!(client.send(&[0; 200]).expect("send"), 200);
            }
            let row = || {
                let all = udp::read().expect("udp_diag");
                // the client is connected
                assert_eq!(all.len(), 1);
                all[0]
            };
            let shown = row();
            assert_eq!((shown.addr, shown.port), key(addr));
            let net = Path::new("/proc/thread-self/net");
            let mut fields = netstat::read(net).expect("netstat").fields;
            fields.extend(netstat::udp6_errors(net).expect("snmp6"));
            let drops = u64::from(shown.drops.expect("known"));
            assert_eq!(fields[field], drops);
            let memory = ss("-uamHO").join(" ");
            assert!(
                memory.contains(&format!("skmem:(r{},rb{},", shown.queue_bytes, shown.limit_bytes)),
                "{memory}"
            );
            assert!(memory.contains(&format!(",d{drops})")), "{memory}");

            server.set_nonblocking(true).expect("O_NONBLOCK");
            let mut received = 0;
            while server.recv(&mut [0; 300]).is_ok() {
                received += 1;
            }
            assert!(0 < received);
            assert_eq!(received + drops, 500);
            assert_eq!((row().queue_bytes, row().drops), (0, shown.drops));
        }
        check("127.0.0.1:0", "UdpRcvbufErrors");
        check("[::1]:0", "Udp6RcvbufErrors");
    });
}

#[test]
#[ignore = "kernel: needs root"]
fn a_read_keeps_nothing_open() {
    in_own_netns(|| {
        let open = || fs::read_dir("/proc/thread-self/fd").expect("fd").count();
        let before = open();
        let _ = sockets::read(&BTreeSet::new(), AMPLE, 1).expect("sock_diag");
        let _ = udp::read().expect("udp_diag");
        let _ = netstat::read(Path::new("/proc/thread-self/net")).expect("netstat");
        let _ = netstat::udp6_errors(Path::new("/proc/thread-self/net")).expect("snmp6");
        let _ = sockstat::read(Path::new("/proc/thread-self/net")).expect("sockstat");
        assert_eq!(open(), before);
    });
}
