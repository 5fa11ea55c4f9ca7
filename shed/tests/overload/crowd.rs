//! Thousands of clients in several processes.

use std::{
    collections::VecDeque,
    env, fmt,
    io::{self, BufRead as _, BufReader, Write as _},
    net::SocketAddr,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
    time,
};

const CLIENTS: &str = "BACKLOGD_SHED_CLIENTS";
/// Clients of one process that try at once.
const AT_ONCE: usize = 8;

/// Processes that are clients. They end with this value.
#[derive(Debug)]
pub(crate) struct Crowd(Vec<Child>);

/// What the clients saw.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Clients who got an answer.
    pub(crate) n_served: usize,
    /// From established to the end, in ascending order.
    pub(crate) ends: Vec<Duration>,
    /// Clients who know nothing.
    pub(crate) n_hanging: usize,
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { n_served, ends, n_hanging } = self;
        write!(f, "{n_served} served, {} ended, {n_hanging} hang", ends.len())?;
        match &ends[..] {
            [] => Ok(()),
            [.., longest] => {
                let median = ends[ends.len() / 2];
                write!(f, "; ended after {median:?} (median), {longest:?} (longest)")
            }
        }
    }
}

impl Crowd {
    /// `n_processes` of `n_clients` each, who wait.
    pub(crate) fn new(n_processes: usize, n_clients: usize) -> Self {
        let start = || {
            let mut command = Command::new(env::current_exe().expect("this program"));
            command.args(["--exact", "crowd", "--nocapture"]).env(CLIENTS, n_clients.to_string());
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a process")
        };
        Self((0..n_processes).map(|_| start()).collect())
    }

    /// All go to `address`, and give up after `patience`. What they saw, and they: whoever is
    /// served stays until they are dropped.
    pub(crate) fn go(&mut self, address: SocketAddr, patience: Duration) -> Seen {
        for child in &self.0 {
            let mut pipe = child.stdin.as_ref().expect("a pipe");
            writeln!(pipe, "{address} {}", patience.as_millis()).expect("it reads");
        }
        let mut seen = Seen::default();
        for child in &mut self.0 {
            let lines = BufReader::new(child.stdout.as_mut().expect("a pipe")).lines();
            for line in lines.map(|line| line.expect("text")) {
                match line.split_once(' ') {
                    Some(("ended", micros)) => {
                        let micros = micros.parse().expect("a number");
                        seen.ends.push(Duration::from_micros(micros));
                    }
                    Some(("served", n)) => seen.n_served += n.parse::<usize>().expect("a number"),
                    Some(("hanging", n)) => {
                        seen.n_hanging += n.parse::<usize>().expect("a number");
                        break;
                    }
                    _ => {}
                }
            }
        }
        seen.ends.sort_unstable();
        seen
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // its end ends the process
            drop(child.stdin.take());
            drop(child.wait());
        }
    }
}

/// Is some of a crowd's clients, if this process was started for that.
pub(crate) fn be() {
    let Some(n_clients) = env::var(CLIENTS).ok().and_then(|n| n.parse().ok()) else { return };
    let mut line = String::new();
    io::stdin().read_line(&mut line).expect("text");
    let Some((address, millis)) = line.trim_end().split_once(' ') else { return };
    let address = address.parse().expect("an address");
    let end = Instant::now() + Duration::from_millis(millis.parse().expect("a number"));
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().build().expect("a runtime");
    let (held, ends) = runtime.block_on(all(address, n_clients, end));
    let mut text = String::from("\n");
    for after in &ends {
        text += &format!("ended {}\n", after.as_micros());
    }
    let n_hanging = n_clients - held.len() - ends.len();
    text += &format!("served {}\nhanging {n_hanging}\n", held.len());
    io::stdout().write_all(text.as_bytes()).expect("a reader");
    // until nobody needs those who are served
    line.clear();
    drop(io::stdin().read_line(&mut line));
}

/// Who is served, and when the others ended.
async fn all(address: SocketAddr, n: usize, end: Instant) -> (Vec<TcpStream>, Vec<Duration>) {
    let (mut tasks, mut held, mut ends) = (JoinSet::new(), Vec::new(), Vec::new());
    let mut starts: VecDeque<_> = (0..n).collect();
    // whoever hangs keeps nobody from trying
    while !starts.is_empty() || !tasks.is_empty() {
        let room = AT_ONCE.saturating_sub(tasks.len()).max(1).min(starts.len());
        for _ in starts.drain(..room) {
            tasks.spawn(one(address));
        }
        let patience =
            if starts.is_empty() { end } else { Instant::now() + Duration::from_millis(2) };
        match time::timeout_at(patience.min(end).into(), tasks.join_next()).await {
            Ok(Some(seen)) => match seen.expect("no panic") {
                Ok(served) => held.push(served),
                Err(after) => ends.push(after),
            },
            Ok(None) => {}
            Err(_) if end <= Instant::now() => break,
            Err(_) => {}
        }
    }
    (held, ends)
}

/// Says a byte and waits for it to come back; where the connection ends instead, when.
async fn one(address: SocketAddr) -> Result<TcpStream, Duration> {
    let start = Instant::now();
    // a reset may be quicker than this process
    let mut client = TcpStream::connect(address).await.map_err(|_| start.elapsed())?;
    let established = Instant::now();
    let is_served = client.write_all(b"x").await.is_ok() && client.read_u8().await.is_ok();
    if is_served { Ok(client) } else { Err(established.elapsed()) }
}
