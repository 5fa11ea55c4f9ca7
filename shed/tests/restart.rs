//! Restart without a gap, with real processes: this test binary is the server, too.

mod load;

use std::{
    env, fs,
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{self, SocketAddr},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use backlogd_shed::{Drain, DrainStage, Generation, OnShed, Queued, ShedListener};
use load::{Load, serve};
use socket2::{SockFilter, SockRef};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    signal::unix::{SignalKind, signal},
    task, time,
};

/// The address of the server, for the process that is one.
const ADDRESS: &str = "SHED_TEST_ADDRESS";
/// Its soft limit.
const SOFT: &str = "SHED_TEST_SOFT";
/// What becomes of its first child: it "dies", "hangs", "spoils" the socket and ends, "drains"
/// before it is ready, is "late" (accepts nobody until it is told to end, whatever it handed
/// over), or serves.
const CHILD: &str = "SHED_TEST_CHILD";

fn program() -> Command {
    let mut command = Command::new(env::current_exe().expect("a path"));
    command.args(["--exact", "server", "--ignored", "--nocapture"]);
    command
}

fn say(line: &str) {
    // a line of its own, whatever the test harness writes
    writeln!(io::stdout(), "\n@{line}").expect("somebody reads");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "no test: the program that the others start"]
async fn server() {
    let Ok(address) = env::var(ADDRESS) else { return };
    // if a test fails, its servers end all the same
    let end = time::sleep(Duration::from_secs(180));
    tokio::pin!(end);
    let mut generation = Generation::take().expect("a generation");
    if generation.number() != 0 {
        match env::var(CHILD).as_deref() {
            Ok("dies") => return,
            Ok("hangs") => return end.await,
            Ok("spoils") => {
                let socket = generation.take_fd("web:1").expect("the listener's");
                let (socket, nothing) = (SockRef::from(&socket), [SockFilter::new(6, 0, 0, 0)]);
                socket.attach_filter(&nothing).expect("a filter");
                return socket.listen(1).expect("a limit");
            }
            _ => {}
        }
    }
    generation.ready_within(Duration::from_secs(2));
    let soft: usize = env::var(SOFT).expect("a limit").parse().expect("a number");
    let listener = ShedListener::bind(address)
        .name("web:1")
        .soft(soft)
        .hard(soft + 1_000)
        .on_shed(OnShed::bytes(load::SHED))
        .build_in(&mut generation)
        .expect("a listener");
    let (address, handle) = (listener.local_addr(), listener.handle());
    let (_, limit) = handle.accept_queue().expect("it is open");
    let mut restart = signal(SignalKind::user_defined2()).expect("a signal");
    let mut terminate = signal(SignalKind::terminate()).expect("a signal");
    let is_child = |kind| generation.number() == 1 && env::var(CHILD).as_deref() == Ok(kind);
    let deadline = Duration::from_secs(10);
    let drain = Drain { delay: Duration::ZERO, deadline, queued: Queued::Serve };
    if is_child("drains") {
        tokio::join!(serve(listener), handle.drain(drain));
        return;
    }
    let is_late = is_child("late");
    tokio::spawn(async move {
        let handle = listener.handle();
        while is_late && handle.stage() < DrainStage::Closing {
            time::sleep(Duration::from_millis(1)).await;
        }
        serve(listener).await;
    });
    generation.ready().expect("the parent lives");
    say(&format!("serves {} {} {address}", generation.number(), std::process::id()));
    loop {
        tokio::select! {
            _ = restart.recv() => {}
            _ = terminate.recv() => break,
            () = &mut end => break,
        }
        let mut command = program();
        command.env(ADDRESS, address.to_string());
        let is_first = generation.handovers() == Default::default();
        if !is_first {
            command.env_remove(CHILD);
        }
        match generation.hand_over(command).await {
            Ok(_) if is_late => {
                terminate.recv().await;
                break;
            }
            Ok(_) => break,
            Err(err) => {
                assert_eq!(handle.accept_queue().expect("it is open").1, limit);
                say(&format!("alone {err}"));
            }
        }
    }
    handle.drain(drain).await;
    let stats = handle.stats();
    load::check_identities(&stats);
    say(&format!("ends {} {}", generation.number(), stats.open));
}

fn signal_to(pid: u32, name: &str) {
    let sent = Command::new("kill").args([name, &pid.to_string()]).status();
    assert!(sent.expect("kill(1)").success());
}

/// A server, over its generations.
struct Server {
    lines: mpsc::Receiver<String>,
    pid: u32,
    address: SocketAddr,
}

impl Server {
    fn start(soft: usize, child: &str) -> Self {
        let mut process = program()
            .env(ADDRESS, "127.0.0.1:0")
            .env(SOFT, soft.to_string())
            .env(CHILD, child)
            .stdout(Stdio::piped())
            .spawn()
            .expect("a server");
        let stdout = process.stdout.take().expect("a pipe");
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if let Some((_, said)) = line.split_once('@') {
                    drop(sender.send(said.to_owned()));
                }
            }
            drop(process.wait());
        });
        let mut server = Self { lines, pid: 0, address: ([0, 0, 0, 0], 0).into() };
        server.serves(0);
        server
    }

    /// The next line that begins so.
    fn says(&self, beginning: &str) -> String {
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let line = self.lines.recv_timeout(left).expect("it says it");
            if let Some(rest) = line.strip_prefix(beginning) {
                return rest.trim().to_owned();
            }
        }
    }

    /// Waits until that generation serves.
    fn serves(&mut self, number: usize) {
        let said = self.says(&format!("serves {number} "));
        let (pid, address) = said.split_once(' ').expect("two");
        self.pid = pid.parse().expect("a number");
        self.address = address.parse().expect("an address");
    }

    fn signal(&self, name: &str) {
        signal_to(self.pid, name);
    }

    /// Kills it, and waits until it is gone.
    fn kill(&self) {
        self.signal("-KILL");
        let stat = format!("/proc/{}/stat", self.pid);
        let end = Instant::now() + Duration::from_secs(5);
        // a zombie: its parent waits for nobody
        while fs::read_to_string(&stat).is_ok_and(|it| !it.contains(") Z ")) {
            assert!(Instant::now() < end, "it lives");
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn restart(&mut self, number: usize) {
        self.signal("-USR2");
        self.serves(number);
    }

    fn end(&self, number: usize) {
        self.signal("-TERM");
        self.ends(number);
    }

    /// Waits until that generation has ended, and all others.
    fn ends(&self, number: usize) {
        assert_eq!(self.says(&format!("ends {number} ")), "0", "connections that were left");
        // their output ends when all generations have
        while self.lines.recv_timeout(Duration::from_secs(10)).is_ok() {}
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if thread::panicking() {
            drop(Command::new("kill").args(["-KILL", &self.pid.to_string()]).status());
        }
    }
}

/// Sends and has sent back, without a pause, until it is enough; so many bytes.
async fn exchange(address: SocketAddr, is_enough: Arc<AtomicBool>) -> usize {
    let mut stream = TcpStream::connect(address).await.expect("connected");
    let (mut n, mut got) = (0, [0; 64]);
    while !is_enough.load(Ordering::SeqCst) {
        let sent = [u8::try_from(n / 64 % 256).expect("a byte"); 64];
        stream.write_all(&sent).await.expect("connected");
        stream.read_exact(&mut got).await.expect("served");
        assert_eq!(got, sent, "after {n} bytes");
        n += got.len();
    }
    stream.shutdown().await.expect("connected");
    assert_eq!(stream.read(&mut got).await.expect("an end"), 0);
    n
}

/// Restarts under load, above the limit, so that it is always reached, each generation serving so
/// many; gives connections per second.
async fn restart_under_load(times: usize, n_clients: usize, n_served: u64) -> u64 {
    let pause = Duration::from_millis(5);
    let soft = n_clients / 2;
    let mut server = task::spawn_blocking(move || Server::start(soft, "serves")).await.expect("it");
    let hold = Duration::from_millis(20);
    let is_enough = Arc::<AtomicBool>::default();
    let long = tokio::spawn(exchange(server.address, Arc::clone(&is_enough)));
    let load = Load::start_holding(server.address, n_clients, pause, hold);
    load.until_served(200).await;
    let begun = Instant::now();
    let before = load.counts.all();
    for number in 1..=times {
        server = task::spawn_blocking(move || {
            server.restart(number);
            server
        })
        .await
        .expect("a restart");
        load.until_served(n_served).await;
        if number == 2 {
            // begun with the first generation, which drains since the next one is there
            assert!(!long.is_finished(), "it was cut off");
            is_enough.store(true, Ordering::SeqCst);
        }
    }
    let after = load.counts.all();
    let n: u64 = after[0] + after[1] - before[0] - before[1];
    let rate = n * 1_000 / u64::try_from(begun.elapsed().as_millis()).expect("short").max(1);
    let most = load.counts.most_inside.load(Ordering::SeqCst);
    let [served, shed, refused, reset, hung] = load.stop().await;
    assert_eq!((refused, reset, hung), (0, 0, 0), "served {served}, shed {shed}");
    assert!(0 < shed, "the limit was reached");
    assert!(0 < long.await.expect("all of it came back"), "it goes on while others are served");
    // the long one is among them, for a while
    assert!((soft as u64 * 8 / 10..=soft as u64).contains(&most), "{most} of {soft}");
    task::spawn_blocking(move || server.end(times)).await.expect("the end");
    rate
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restarts_lose_nobody_and_keep_the_limit() {
    restart_under_load(3, 40, 100).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "slow: 20 restarts under 5,000 connections a second and more"]
async fn twenty_restarts_lose_nobody_and_keep_the_limit() {
    let rate = restart_under_load(20, 150, 2_500).await;
    writeln!(io::stderr(), "{rate} connections a second").expect("somebody reads");
    assert!(5_000 <= rate, "{rate} connections a second");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_child_that_does_not_serve_changes_nothing() {
    let ended = "the next generation ended before it accepted: exit status: 0";
    for (child, expected) in [
        ("dies", ended),
        ("hangs", "the next generation did not accept within 2s, and was killed"),
        ("spoils", ended),
        ("drains", ended),
    ] {
        let server = task::spawn_blocking(move || Server::start(100, child)).await.expect("it");
        let load = Load::start(server.address, 8, Duration::from_millis(5));
        load.until_served(20).await;
        let mut server = task::spawn_blocking(move || {
            server.signal("-USR2");
            assert_eq!(server.says("alone "), expected);
            server
        })
        .await
        .expect("it goes on");
        load.until_served(50).await;
        // and the one after serves
        let server = task::spawn_blocking(move || {
            // who never served is no generation
            server.restart(1);
            server
        })
        .await
        .expect("a restart");
        load.until_served(50).await;
        let counts = load.stop().await;
        assert_eq!(counts[1..], [0; 4], "{child}");
        task::spawn_blocking(move || server.end(1)).await.expect("the end");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_generation_held_is_free_again() {
    let server = task::spawn_blocking(|| Server::start(5, "serves")).await.expect("it");
    let admitted = |address| async move {
        let mut client = TcpStream::connect(address).await.expect("connected");
        client.write_u8(b'x').await.expect("connected");
        client.read_u8().await.ok().filter(|&byte| byte == b'x').map(|_| client)
    };
    let mut held = Vec::new();
    for _ in 0..5 {
        held.push(admitted(server.address).await.expect("room"));
    }
    let address = server.address;
    let first = server.pid;
    let server = task::spawn_blocking(move || {
        let mut server = server;
        server.restart(1);
        server
    })
    .await
    .expect("a restart");
    assert!(admitted(address).await.is_none(), "the first generation has all");
    signal_to(first, "-KILL");
    let end = Instant::now() + Duration::from_secs(5);
    let mut mine = Vec::new();
    while mine.len() < 5 {
        assert!(Instant::now() < end, "{} admitted", mine.len());
        match admitted(address).await {
            Some(client) => mine.push(client),
            None => time::sleep(Duration::from_millis(20)).await,
        }
    }
    assert!(admitted(address).await.is_none(), "not one more");
    drop(mine);
    task::spawn_blocking(move || server.end(1)).await.expect("the end");
}

/// A client that is connected, whether somebody accepted it or not.
fn client(address: SocketAddr) -> net::TcpStream {
    let stream = net::TcpStream::connect(address).expect("connected");
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a socket");
    stream
}

/// Has a byte said back.
fn is_served(mut stream: &net::TcpStream) -> io::Result<bool> {
    stream.write_all(b"x")?;
    let mut got = [0];
    stream.read_exact(&mut got)?;
    Ok(&got == b"x")
}

#[test]
fn who_is_queued_is_left_neither_to_one_that_died_nor_to_one_that_drains() {
    // that one dies is seen at once, and not by a look before
    for n_served in [0, 1] {
        let mut server = Server::start(100, "late");
        let address = server.address;
        // by the first generation, which drains until they are gone
        let served: Vec<_> = (0..n_served).map(|_| client(address)).collect();
        assert!(served.iter().all(|it| is_served(it).expect("connected")));
        server.restart(1);
        let second = server.pid;
        server.restart(2);
        server.kill();
        let queued: Vec<_> = (0..5).map(|_| client(address)).collect();
        signal_to(second, "-TERM");
        for stream in &queued {
            assert!(is_served(stream).expect("nobody is reset"), "within the limit");
        }
        drop((queued, served));
        server.ends(1);
    }
}
