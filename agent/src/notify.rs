//! What the service manager is told: ready, reloading, handed over, stopping, one line of status, and
//! that the sampler still runs (`man 3 sd_notify`).
//!
//! In: NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID of the environment; without the first nothing
//! is sent. Out: datagrams. Cost: one when the status changes, two per watchdog time. Not here: the
//! socket that it may have opened for the agent (`sys/activation.rs`).

use std::{
    env,
    ffi::OsStr,
    io,
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            ffi::OsStrExt as _,
            net::{SocketAddr, UnixDatagram},
        },
    },
    process,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use crate::{detect::Judged, sys::clock};

/// How long a manager that does not read may keep who tells it something.
const PATIENCE: Duration = Duration::from_millis(250);

/// What the service manager that started this process wants to hear, if one did. What it has set
/// wrong is logged and left out: the agent works without.
#[must_use]
pub fn service_manager() -> (Manager, Watchdog) {
    let line = env::var_os("NOTIFY_SOCKET").and_then(|name| {
        let opened = Line::open(&name);
        let failed =
            |err| tracing::warn!(socket = ?name, error = %err, "no service manager is told");
        opened.map_err(failed).ok().map(Arc::new)
    });
    let every = line.as_ref().and_then(|_| watchdog_time()).map(|time| time / 2);
    let watchdog =
        every.zip(line.clone()).map(|(every, line)| Beat { every, line, due: Instant::now() });
    (Manager { line, status: None }, Watchdog(watchdog))
}

/// The service manager, as those see it who watch over the daemon.
#[derive(Debug)]
pub struct Manager {
    line: Option<Arc<Line>>,
    /// As last told; `None`: not ready yet.
    status: Option<String>,
}

impl Manager {
    /// After each sample; the first one makes the agent ready.
    pub fn sampled(&mut self, judged: &Judged) {
        let Some(line) = &self.line else { return };
        let status = status(judged);
        let sent = match &self.status {
            Some(told) if *told == status => return,
            Some(_) => line.send(&format!("STATUS={status}")),
            None => line.send(&format!("READY=1\nSTATUS={status}")),
        };
        if sent {
            self.status = Some(status);
        }
    }

    /// The configuration is about to be read again.
    pub fn reloading(&self) {
        // who is not ready yet is not taken for ready when it has reloaded
        if let (Some(line), Some(_)) = (&self.line, &self.status) {
            let microseconds = clock::monotonic().0 / 1_000;
            line.send(&format!("RELOADING=1\nMONOTONIC_USEC={microseconds}"));
        }
    }

    /// It has been read, and is in force or was refused.
    pub fn reloaded(&self) {
        if let (Some(line), Some(_)) = (&self.line, &self.status) {
            line.send("READY=1");
        }
    }

    /// The next generation serves, from another process: from here on, that one is the service.
    pub fn handed_over(&self, to: u32) {
        if let Some(line) = &self.line {
            line.send(&format!("MAINPID={to}"));
        }
    }

    /// The agent was told to stop.
    pub fn stopping(&self) {
        if let Some(line) = &self.line {
            line.send("STOPPING=1");
        }
    }
}

/// Tells the service manager that whoever holds this is not stuck.
#[derive(Debug)]
pub struct Watchdog(Option<Beat>);

#[derive(Debug)]
struct Beat {
    line: Arc<Line>,
    every: Duration,
    due: Instant,
}

impl Watchdog {
    /// To be called by `wake` at the latest.
    pub fn beat(&mut self) {
        let now = Instant::now();
        if let Some(beat) = self.0.as_mut().filter(|beat| beat.due <= now) {
            beat.line.send("WATCHDOG=1");
            beat.due = now + beat.every;
        }
    }

    /// `at`, or before that where the manager wants to hear sooner.
    #[must_use]
    pub fn wake(&self, at: Instant) -> Instant {
        self.0.as_ref().map_or(at, |beat| beat.due.min(at))
    }
}

/// The way to the service manager.
#[derive(Debug)]
struct Line {
    socket: UnixDatagram,
    to: SocketAddr,
    is_heard: AtomicBool,
}

impl Line {
    fn open(name: &OsStr) -> io::Result<Self> {
        let to = match name.as_bytes() {
            [b'/', ..] => SocketAddr::from_pathname(name)?,
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            _ => {
                let text = "expected a path, or @ and a name";
                return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
            }
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { socket, to, is_heard: AtomicBool::new(true) })
    }

    /// Whether it was sent. That it was not is logged when it was the time before.
    fn send(&self, message: &str) -> bool {
        let sent = self.socket.send_to_addr(message.as_bytes(), &self.to);
        let was_heard = self.is_heard.swap(sent.is_ok(), Ordering::Relaxed);
        if let (Err(err), true) = (&sent, was_heard) {
            tracing::warn!(error = %err, "the service manager does not hear");
        }
        sent.is_ok()
    }
}

/// The time after which the manager takes the agent for stuck; `None`: never.
fn watchdog_time() -> Option<Duration> {
    let [usec, pid] = ["WATCHDOG_USEC", "WATCHDOG_PID"].map(|name| {
        let text = env::var(name).ok()?;
        let number = text.parse::<u64>().ok();
        if number.is_none() {
            tracing::warn!(name, got = text, "no watchdog: expected a number");
        }
        Some(number)
    });
    let is_ours = pid.is_none_or(|pid| pid == Some(u64::from(process::id())));
    usec.flatten().filter(|&usec| 0 < usec && is_ours).map(Duration::from_micros)
}

/// One line for `systemctl status`.
fn status(judged: &Judged) -> String {
    let listeners =
        judged.snapshot.listeners.iter().filter(|listener| !listener.members.is_empty());
    let count = |n: usize, one: &str| format!("{n} {one}{}", if n == 1 { "" } else { "s" });
    let listeners = count(listeners.count(), "listener");
    format!("{listeners}, {}", count(judged.verdicts.told().count(), "alert"))
}
