//! Servers that the bench starts on core 0 and clients beside it, which end whatever happens.

use std::{
    env, fs,
    io::{BufRead as _, BufReader},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    process::{self as own, Child, ChildStdout, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

/// How long a server may take to start.
const PATIENCE: Duration = Duration::from_secs(10);

/// A server that ends with this value.
#[derive(Debug)]
pub(crate) struct Server {
    child: Running,
    address: SocketAddr,
}

impl Server {
    /// This program as a server of `kind`, on a port of its own.
    pub(crate) fn own(kind: &str, port: u16) -> Result<Self> {
        let mut command = pinned();
        command.arg(env::current_exe()?).args(["serve", kind, &port.to_string()]);
        Self::start(&mut command, port)
    }

    /// What `command` starts, once it listens on `port`.
    pub(crate) fn start(command: &mut Command, port: u16) -> Result<Self> {
        let quiet = command.stdin(Stdio::null()).stdout(Stdio::null());
        let child = quiet.spawn().with_context(|| format!("cannot start {command:?}"))?;
        let mut server =
            Self { child: Running(child), address: (Ipv4Addr::LOCALHOST, port).into() };
        let start = Instant::now();
        while let Err(err) = TcpStream::connect(server.address) {
            if let Some(status) = server.child.0.try_wait()? {
                bail!("{command:?}: {status}");
            }
            if PATIENCE < start.elapsed() {
                bail!("{command:?} does not listen: {err}");
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(server)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// CPU time so far, user and system, of all threads: the scheduler's own sum in nanoseconds,
    /// where `/proc/PID/stat` has ticks of 10 ms.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        let mut nanos = 0;
        for task in fs::read_dir(format!("/proc/{}/task", self.child.0.id()))? {
            let text = fs::read_to_string(task?.path().join("schedstat"))?;
            let first = text.split(' ').next().context("an empty schedstat")?;
            nanos += first.parse::<u64>()?;
        }
        Ok(Duration::from_nanos(nanos))
    }

    /// VmRSS in bytes.
    pub(crate) fn memory(&self) -> Result<f64> {
        let text = fs::read_to_string(format!("/proc/{}/status", self.child.0.id()))?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let number = line.and_then(|rest| rest.split_whitespace().next()).context("no VmRSS")?;
        Ok(number.parse::<f64>()? * 1_024.0)
    }
}

/// A process that ends with this value.
#[derive(Debug)]
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // both fail only when it has ended already
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// This program as clients in a process of their own, who run after those of the bench itself: else
/// these would wait for what other clients do, and not for the server.
#[derive(Debug)]
pub(crate) struct Clients {
    child: Running,
    output: BufReader<ChildStdout>,
}

impl Clients {
    pub(crate) fn start(words: &[&str]) -> Result<Self> {
        let mut command = Command::new("chrt");
        command.args(["--rr", "4"]).arg(env::current_exe()?).args(words);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let output = BufReader::new(child.stdout.take().context("no pipe")?);
        Ok(Self { child: Running(child), output })
    }

    /// The next line that they say; empty: they have ended.
    pub(crate) fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        Ok(line)
    }

    /// Ends their standard input.
    pub(crate) fn tell(&mut self) {
        drop(self.child.0.stdin.take());
    }
}

/// A command whose program, the next word, runs on core 0.
pub(crate) fn pinned() -> Command {
    let mut command = Command::new("taskset");
    command.args(["--cpu-list", "0"]);
    command
}

/// From here on, this process and the servers that it starts run before others: latencies are of
/// interest, not what else the machine does.
pub(crate) fn before_others() -> Result<()> {
    let id = own::id().to_string();
    let moved = Command::new("chrt").args(["--rr", "--pid", "5", &id]).output();
    ensure!(moved.context("cannot start chrt")?.status.success(), "no real-time scheduling");
    Ok(())
}
