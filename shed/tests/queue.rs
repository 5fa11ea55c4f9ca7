//! The accept queue: empty while connections are shed, full while the hard limit holds; and how
//! long those waited who were in it.

#![expect(clippy::print_stderr, reason = "numbers that only a bench could judge are for a person")]

#[path = "overload/space.rs"]
mod space;
mod stats;

use std::{
    env,
    io::{self, BufRead as _, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use backlogd_shed::{
    Candidate, Decide, Limits, Linger, Load, OnShed, Pause, Reason, ShedListener, ShedStream,
    Stats, Verdict,
};
use socket2::SockRef;
use stats::{check_identities, until};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net,
    runtime::Handle,
    task::{self, JoinSet},
    time,
};

use crate::space::in_own_space;

const FLOOD: &str = "BACKLOGD_SHED_FLOOD";
/// Connections that each process of the flood has under way.
const AT_ONCE: usize = 64;

/// Not a test: a process that connects as fast as it can until the time is over, if it is told to.
/// Says how many connections ended.
#[tokio::test]
async fn flood() {
    let Ok(time) = env::var(FLOOD) else { return };
    let time = Duration::from_millis(time.parse().expect("a number"));
    let mut address = String::new();
    io::stdin().read_line(&mut address).expect("text");
    let address: SocketAddr = address.trim_end().parse().expect("an address");
    let end = Instant::now() + time;
    let mut clients = JoinSet::new();
    for _ in 0..AT_ONCE {
        clients.spawn(async move {
            let mut n_ended = 0;
            while Instant::now() < end {
                // a reset may be quicker than this process
                if let Ok(mut client) = net::TcpStream::connect(address).await {
                    assert!(client.read_u8().await.is_err(), "nobody is served");
                }
                n_ended += 1;
            }
            n_ended
        });
    }
    let n_ended: u64 = clients.join_all().await.into_iter().sum();
    writeln!(io::stdout(), "\n@{n_ended}").expect("somebody reads");
}

struct Flood(Vec<Child>);

impl Flood {
    fn new(n_processes: usize, time: Duration) -> Self {
        let start = |_| {
            let mut command = Command::new(env::current_exe().expect("this program"));
            command.args(["--exact", "flood", "--nocapture"]);
            command.env(FLOOD, time.as_millis().to_string());
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a process")
        };
        Self((0..n_processes).map(start).collect())
    }

    /// How many connections ended.
    fn go(mut self, address: SocketAddr) -> u64 {
        for child in &mut self.0 {
            writeln!(child.stdin.take().expect("a pipe"), "{address}").expect("it reads");
        }
        let ended = |child: Child| {
            let said = child.wait_with_output().expect("it ends").stdout;
            let said = said.lines().map_while(Result::ok);
            let n = said.filter_map(|line| line.strip_prefix('@')?.parse::<u64>().ok()).next();
            n.expect("it says so")
        };
        self.0.drain(..).map(ended).sum()
    }
}

/// Looks at the accept queue, and at how many tasks there are, until `is_over`.
fn look(queue: &ShedListener, runtime: &Handle, is_over: &AtomicBool) -> (Vec<u32>, usize) {
    let (mut lengths, mut most_tasks) = (Vec::new(), 0);
    while !is_over.load(Ordering::SeqCst) {
        lengths.push(queue.accept_queue().expect("TCP_INFO").0);
        most_tasks = most_tasks.max(runtime.metrics().num_alive_tasks());
        thread::sleep(Duration::from_micros(200));
    }
    lengths.sort_unstable();
    (lengths, most_tasks)
}

#[tokio::test]
#[ignore = "slow: 3 s of a flood, in a network namespace of its own"]
async fn while_it_sheds_the_queue_is_as_good_as_empty_and_no_task_is_spawned() {
    if in_own_space("while_it_sheds_the_queue_is_as_good_as_empty_and_no_task_is_spawned") {
        return;
    }
    const TIME: Duration = Duration::from_secs(3);
    let flood = Flood::new(2, TIME);
    // the queue is to say what the accept loop leaves in it, not what the scheduler does
    space::first();
    let socket = TcpListener::bind("127.0.0.1:0").expect("a socket");
    SockRef::from(&socket).listen(4_096).expect("a backlog");
    // another descriptor of the same socket
    let queue = ShedListener::adopt(socket.try_clone().expect("a descriptor"));
    let queue = queue.build().expect("a listener");
    let mut listener = ShedListener::adopt(socket).soft(1).build().expect("a listener");
    let (address, handle) = (listener.local_addr(), listener.handle());
    let held = TcpStream::connect(address).expect("queued");
    let _served = listener.accept().await.expect("the first");
    let accepting = tokio::spawn(async move { listener.accept().await.map(drop) });
    let runtime = Handle::current();
    let n_tasks = runtime.metrics().num_alive_tasks();
    let is_over = Arc::<AtomicBool>::default();
    let looking = {
        let is_over = Arc::clone(&is_over);
        thread::spawn(move || look(&queue, &runtime, &is_over))
    };
    let n_ended = {
        let flooding = thread::spawn(move || flood.go(address));
        until_ended(&flooding).await;
        flooding.join().expect("no panic")
    };
    is_over.store(true, Ordering::SeqCst);
    let (lengths, most_tasks) = looking.join().expect("no panic");
    let stats = until(&handle, |stats| stats.accepted == n_ended + 1).await;
    assert_eq!(stats.shed_for(Reason::Soft), n_ended, "{stats:?}");
    check_identities(&stats);
    let (p99, most) = (lengths[lengths.len() * 99 / 100], lengths[lengths.len() - 1]);
    let rate = n_ended / TIME.as_secs();
    eprintln!(
        "{rate} shed a second; of {} looks at the queue, 99 in 100 found at most {p99}, all {most}",
        lengths.len()
    );
    assert!(5_000 < lengths.len(), "{} looks are too few", lengths.len());
    assert!(p99 <= 16, "{p99} queued");
    assert_eq!(most_tasks, n_tasks, "tasks");
    accepting.abort();
    drop(held);
}

async fn until_ended<T>(thread: &thread::JoinHandle<T>) {
    let end = Instant::now() + Duration::from_secs(30);
    while !thread.is_finished() {
        assert!(Instant::now() < end, "it does not end");
        time::sleep(Duration::from_millis(1)).await;
    }
}

/// `n` that are connected, and say nothing.
fn connect(address: SocketAddr, n: usize) -> Vec<TcpStream> {
    (0..n).map(|_| TcpStream::connect(address).expect("queued")).collect()
}

/// A listener at its hard limit of 20, below the 64 that are open, and those.
async fn paused(listener: ShedListener) -> (Paused, SocketAddr) {
    let mut listener = listener;
    let (address, handle) = (listener.local_addr(), listener.handle());
    let clients = connect(address, 64);
    let mut open = Vec::new();
    for _ in 0..64 {
        open.push(listener.accept().await.expect("admitted"));
    }
    handle.set_limits(Limits { hard: Some(20), ..Limits::soft(16) }).expect("they hold");
    let accepting = tokio::spawn(async move {
        let mut served = Vec::new();
        while let Ok(conn) = listener.accept().await {
            served.push(conn);
        }
        served
    });
    until(&handle, |stats| stats.is_paused == Some(Pause::Hard)).await;
    (Paused { open, handle, accepting, _clients: clients }, address)
}

struct Paused {
    open: Vec<ShedStream>,
    handle: backlogd_shed::Handle,
    accepting: task::JoinHandle<Vec<ShedStream>>,
    _clients: Vec<TcpStream>,
}

#[tokio::test]
async fn at_the_hard_limit_the_queue_fills_until_there_is_room_again() {
    // answers that wait for their readers fill the place between both limits
    let mut listener = ShedListener::bind("127.0.0.1:0")
        .soft(16)
        .hard(32)
        .on_shed(OnShed::http_503())
        .linger(Linger { max: Some(16), time: Duration::from_secs(1), ..Default::default() })
        .build()
        .expect("a listener");
    let (address, handle) = (listener.local_addr(), listener.handle());
    let begun = Instant::now();
    let clients = connect(address, 60);
    let mut open = Vec::new();
    for _ in 0..16 {
        open.push(listener.accept().await.expect("admitted"));
    }
    // it sheds 16 more on its way, and stops
    let stats = tokio::select! {
        more = listener.accept() => panic!("above the soft limit: {more:?}"),
        stats = until(&handle, |stats| stats.accepted == 32) => stats,
    };
    assert_eq!((stats.open, stats.lingering), (16, 16), "{stats:?}");
    assert_eq!(listener.accept_queue().expect("TCP_INFO").0, 28);
    let more = tokio::spawn(async move { listener.accept().await });
    let stats = until(&handle, |stats| stats.accepted == 60 && stats.lingering == 0).await;
    let paused = paused_for(&stats);
    assert!(Duration::from_millis(900) < paused && paused < begun.elapsed(), "{paused:?}");
    more.abort();
    drop((clients, open));
    check_identities(&until(&handle, |stats| stats.open == 0).await);
}

/// How a client that is queued goes on.
#[derive(Clone, Copy, Debug)]
enum Goes {
    Waits,
    /// Sends a request, and then nothing more: it waits for the answer, as `nc -N` does.
    HalfCloses,
    Closes,
    Resets,
    /// Resets after its request.
    GivesUp,
}

#[tokio::test]
async fn after_a_pause_those_who_gave_up_are_never_handed_out() {
    let listener = ShedListener::bind("127.0.0.1:0").soft(64).hard(77);
    let mut listener = listener.build().expect("a listener");
    let (address, handle) = (listener.local_addr(), listener.handle());
    let held = connect(address, 64);
    let mut open = Vec::new();
    for _ in 0..64 {
        open.push(listener.accept().await.expect("admitted"));
    }
    handle.set_limits(Limits { hard: Some(20), ..Limits::soft(16) }).expect("they hold");
    // nothing is accepted: 64 are open, and 20 may be
    let accepting = tokio::spawn(async move {
        let mut peers = Vec::new();
        for _ in 0..9 {
            let mut conn = listener.accept().await.expect("admitted");
            peers.push(conn.peer_addr());
            conn.write_all(b"answer").await.expect("it waits for that");
        }
        peers
    });
    until(&handle, |stats| stats.is_paused == Some(Pause::Hard)).await;
    let goes = [Goes::Waits, Goes::HalfCloses, Goes::Closes, Goes::Resets, Goes::GivesUp];
    let mut stay = Vec::new();
    for goes in goes.into_iter().cycle().take(20).chain([Goes::Waits]) {
        let mut client = TcpStream::connect(address).expect("queued");
        let reset = |client: &TcpStream| SockRef::from(client).set_linger(Some(Duration::ZERO));
        match goes {
            Goes::Waits => stay.push(client),
            Goes::HalfCloses => {
                client.write_all(b"request").expect("room");
                client.shutdown(Shutdown::Write).expect("connected");
                stay.push(client);
            }
            Goes::Closes => drop(client),
            Goes::Resets => reset(&client).expect("an option"),
            Goes::GivesUp => {
                client.write_all(b"request").expect("room");
                reset(&client).expect("an option");
            }
        }
    }
    drop(open);
    let peers = time::timeout(Duration::from_secs(20), accepting)
        .await
        .expect("some wait")
        .expect("no panic");
    let expected: Vec<_> = stay.iter().map(|it| it.local_addr().expect("connected")).collect();
    assert_eq!(peers, expected, "in their order");
    let answered = task::spawn_blocking(move || {
        stay.into_iter().all(|mut client| client.read_exact(&mut [0; 6]).is_ok())
    });
    assert!(answered.await.expect("clients"));
    let stats = until(&handle, |stats| stats.open == 0).await;
    assert_eq!(stats.shed_for(Reason::Stale), 12, "{stats:?}");
    check_identities(&stats);
    drop(held);
}

fn paused_for(stats: &Stats) -> Duration {
    stats.paused.iter().find(|(cause, _)| *cause == Pause::Hard).expect("both").1
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_goes_on_where_there_is_room_enough_and_counts_for_how_long_it_did_not() {
    let listener = ShedListener::bind("127.0.0.1:0").soft(64).hard(80).build();
    let (mut it, address) = paused(listener.expect("a listener")).await;
    let begun = Instant::now();
    let before = paused_for(&it.handle.stats());
    let _waits = TcpStream::connect(address).expect("queued");
    // 20 less 8 is below the soft limit, where there is room for who is shed
    it.open.truncate(17);
    let end = begun + Duration::from_millis(600);
    while Instant::now() < end {
        let stats = it.handle.stats();
        assert_eq!((stats.is_paused, stats.accepted), (Some(Pause::Hard), 64));
        time::sleep(Duration::from_millis(1)).await;
    }
    it.open.truncate(16);
    let stats = until(&it.handle, |stats| stats.accepted == 65).await;
    let (counted, real) = (paused_for(&stats) - before, begun.elapsed());
    assert!(real.mul_f64(0.9) < counted && counted < real.mul_f64(1.1), "{counted:?}, {real:?}");
    assert_eq!((stats.is_paused, stats.shed_for(Reason::Soft)), (None, 1), "{stats:?}");
    it.accepting.abort();
}

/// What was told of each candidate: who, how long it had waited, and when that was.
type Told = Arc<Mutex<Vec<(SocketAddr, Option<Duration>, Instant)>>>;

struct Listens(Told);

impl Decide for Listens {
    fn decide(&self, candidate: &Candidate<'_>, _: &Load) -> Verdict {
        let told = (candidate.peer, candidate.waited, Instant::now());
        self.0.lock().expect("no panic").push(told);
        Verdict::Admit
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_pause_each_waited_as_long_as_is_said_and_who_waited_too_long_is_shed() {
    const LONGEST: Duration = Duration::from_millis(600);
    let told = Told::default();
    let builder = ShedListener::bind("127.0.0.1:0").soft(64).hard(80).queue_max_wait(LONGEST);
    let builder = builder.decide(Listens(Arc::clone(&told)));
    let (it, address) = paused(builder.build().expect("a listener")).await;
    told.lock().expect("no panic").clear();
    // one every 100 ms: the first six are too late in the end, the last six are not
    let mut clients = Vec::new();
    for _ in 0..12 {
        clients.push((TcpStream::connect(address).expect("queued"), Instant::now()));
        time::sleep(Duration::from_millis(100)).await;
    }
    // room for all at once: of connections, one would end after the other
    it.handle.set_limits(Limits::soft(1_000)).expect("they hold");
    let stats = until(&it.handle, |stats| stats.accepted == 64 + 12).await;
    let n_stale = usize::try_from(stats.shed_for(Reason::Stale)).expect("few");
    let (stale, live) = clients.split_at(n_stale);
    let told = told.lock().expect("no panic").clone();
    assert_eq!(told.len(), live.len(), "{stats:?}");
    for ((client, since), (peer, waited, at)) in live.iter().zip(told) {
        assert_eq!(client.local_addr().ok(), Some(peer), "in their order");
        let (waited, real) = (waited.expect("it was asked"), at - *since);
        assert!(waited.abs_diff(real) <= Duration::from_millis(20), "{waited:?}, {real:?}");
        assert!(waited <= LONGEST, "{waited:?}");
    }
    // all above the longest wait, but for who came at its edge
    assert!((5..=7).contains(&n_stale), "{n_stale}");
    for (mut client, _) in stale.iter().map(|(client, since)| (client, since)) {
        let got = client.read(&mut [0]).map_err(|err| err.kind());
        assert_eq!(got, Err(io::ErrorKind::ConnectionReset));
    }
    drop(it.open);
    it.accepting.abort();
    check_identities(&until(&it.handle, |stats| stats.open == 0).await);
}
