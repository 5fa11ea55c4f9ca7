//! Processes that a bench starts, and ends again whatever happens.

use std::{
    env,
    ffi::OsStr,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::{Child, ChildStderr, ChildStdout, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::raw;

/// Where the agent serves, in the bench's own network namespace.
pub(crate) const AGENT: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 10_511);
/// How long a child may take to start: the largest opens 18,000 sockets.
const PATIENCE: Duration = Duration::from_secs(30);

/// A process that ends with this value.
#[derive(Debug)]
pub(crate) struct Running(Child);

impl Running {
    /// Any program.
    pub(crate) fn start(command: &mut Command) -> Result<Self> {
        let program = command.get_program().to_owned();
        Ok(Self(command.spawn().with_context(|| format!("cannot start {program:?}"))?))
    }

    /// Another part of this program, once it has said that it is ready.
    pub(crate) fn part(words: &[&str]) -> Result<Self> {
        Ok(Self::talking_part(words)?.0)
    }

    /// The same, in a network namespace of its own whose loopback is up.
    pub(crate) fn in_own_netns(words: &[&str]) -> Result<Self> {
        const PREPARE: &str = "ip link set lo up && exec \"$0\" \"$@\"";
        let mut command = Command::new("unshare");
        command.args(["--net", "sh", "-c", PREPARE]).arg(env::current_exe()?);
        Ok(Self::ready(command.args(words).stdout(Stdio::piped()).stdin(Stdio::null()))?.0)
    }

    /// The same, and what it says from then on.
    pub(crate) fn talking_part(words: &[&str]) -> Result<(Self, BufReader<ChildStdout>)> {
        Self::ready(part(words)?.stdin(Stdio::piped()))
    }

    fn ready(command: &mut Command) -> Result<(Self, BufReader<ChildStdout>)> {
        let mut running = Self::start(command)?;
        let mut out = BufReader::new(running.0.stdout.take().context("no pipe")?);
        let mut line = String::new();
        out.read_line(&mut line)?;
        ensure!(line == "ready\n", "{command:?} did not get ready");
        Ok((running, out))
    }

    /// Writes a line to a part.
    pub(crate) fn tell(&mut self, line: &str) -> Result<()> {
        let stdin = self.0.stdin.as_mut().context("no pipe")?;
        Ok(writeln!(stdin, "{line}")?)
    }

    /// Its standard error, where that is a pipe.
    pub(crate) fn errors(&mut self) -> Result<ChildStderr> {
        self.0.stderr.take().context("no pipe")
    }

    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }

    pub(crate) fn has_ended(&mut self) -> Result<bool> {
        Ok(self.0.try_wait()?.is_some())
    }

    /// Tells it to end, as a person would, and waits until it has.
    pub(crate) fn interrupt(&mut self) -> Result<()> {
        kill_process(Pid::from_child(&self.0), Signal::INT)?;
        let status = self.0.wait()?;
        ensure!(status.success(), "{status}");
        Ok(())
    }

    /// A server, once it answers 200 on `path`.
    pub(crate) fn server(
        program: &Path,
        words: impl IntoIterator<Item = impl AsRef<OsStr>>,
        addr: SocketAddr,
        path: &str,
    ) -> Result<Self> {
        let mut command = Command::new(program);
        command.args(words).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut running = Self::start(&mut command)?;
        let start = Instant::now();
        while let Err(err) = get(addr, path, Coding::Plain) {
            if let Some(status) = running.0.try_wait()? {
                bail!("{}: {status}", program.display());
            }
            if PATIENCE < start.elapsed() {
                return Err(err.context(format!("{} does not answer", program.display())));
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(running)
    }

    /// `backlogd run` at its default setting, after its first sample.
    pub(crate) fn agent(program: &Path) -> Result<Self> {
        Self::agent_with(program, &[])
    }

    /// The same, with more words.
    pub(crate) fn agent_with(program: &Path, more: &[&str]) -> Result<Self> {
        let listen = AGENT.to_string();
        let words = ["run", "--listen", &listen, "--socket", ""];
        Self::server(program, words.iter().chain(more), AGENT, "/readyz")
    }

    /// CPU time so far.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        raw::cpu_time(self.0.id()).context("cannot read a child's CPU clock")
    }

    /// A number of KiB in `/proc/PID/status`.
    pub(crate) fn status_kib(&self, key: &str) -> Result<f64> {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.0.id()))?;
        let line = text.lines().find_map(|line| line.strip_prefix(key));
        let number = line.and_then(|rest| rest.split_whitespace().next());
        number.and_then(|n| n.parse().ok()).with_context(|| format!("no {key} in status"))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // both fail only when it has ended already
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What another part of this program says.
pub(crate) fn output(words: &[&str]) -> Result<String> {
    let output = part(words)?.stdin(Stdio::null()).output().context("cannot start a part")?;
    ensure!(output.status.success(), "bench {words:?}: {}", output.status);
    Ok(String::from_utf8(output.stdout)?)
}

fn part(words: &[&str]) -> Result<Command> {
    let mut command = Command::new(env::current_exe()?);
    command.args(words).stdout(Stdio::piped());
    Ok(command)
}

/// What a client accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Coding {
    Plain,
    Gzip,
}

/// The body of an answer of status 200.
pub(crate) fn get(addr: SocketAddr, path: &str, coding: Coding) -> Result<Vec<u8>> {
    let mut stream = TcpStream::connect(addr)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let accept = match coding {
        Coding::Plain => "",
        Coding::Gzip => "Accept-Encoding: gzip\r\n",
    };
    write!(stream, "GET {path} HTTP/1.1\r\nHost: bench\r\n{accept}Connection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").context("no HTTP answer")?;
    ensure!(answer.starts_with(b"HTTP/1.1 200 "), "{path}: not answered with 200");
    Ok(answer.split_off(end + 4))
}
