//! Loads of connections over loopback, both ends in one thread: the kernel does the whole
//! handshake within connect(2), so that no scheduler is measured.

use std::{
    fs,
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use backlogd::sys::clock;

/// A server and its client.
#[derive(Debug)]
pub(crate) struct Loop {
    listener: TcpListener,
    addr: SocketAddr,
}

impl Loop {
    pub(crate) fn new() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let addr = listener.local_addr()?;
        Ok(Self { listener, addr })
    }

    /// One connection, accepted.
    pub(crate) fn connect(&self) -> Result<(TcpStream, TcpStream)> {
        let client = TcpStream::connect(self.addr)?;
        Ok((client, self.listener.accept()?.0))
    }

    /// Connections made, accepted and closed in `time`; and the CPU time of this thread for each.
    pub(crate) fn flat_out(&self, time: Duration) -> Result<Rate> {
        let (start, cpu, mut n) = (Instant::now(), thread_cpu(), 0_u32);
        while start.elapsed() < time {
            for _ in 0..50 {
                drop(self.connect()?);
            }
            n += 50;
        }
        let cpu = thread_cpu().saturating_sub(cpu);
        Ok(Rate {
            per_second: f64::from(n) / start.elapsed().as_secs_f64(),
            cpu_micros: cpu.as_secs_f64() * 1e6 / f64::from(n),
        })
    }

    /// The listener's.
    pub(crate) fn port(&self) -> u16 {
        self.addr.port()
    }

    /// At most `per_second` connections for `time`, a hundredth of a second's worth at once; how
    /// many there were.
    pub(crate) fn paced(&self, per_second: u32, time: Duration) -> Result<u32> {
        let (start, mut n) = (Instant::now(), 0);
        for step in (1_u32..).map(|i| Duration::from_millis(10) * i) {
            if time <= start.elapsed() {
                break;
            }
            for _ in 0..per_second / 100 {
                drop(self.connect()?);
            }
            n += per_second / 100;
            thread::sleep(step.saturating_sub(start.elapsed()));
        }
        Ok(n)
    }
}

/// What one slice of load reached.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rate {
    pub(crate) per_second: f64,
    pub(crate) cpu_micros: f64,
}

/// CPU time of this thread.
pub(crate) fn thread_cpu() -> Duration {
    Duration::from_nanos(clock::thread_cpu().0)
}

/// Connections leave no TIME_WAIT behind in this namespace: ports do not run out.
pub(crate) fn without_time_wait() -> Result<()> {
    let path = "/proc/sys/net/ipv4/tcp_max_tw_buckets";
    fs::write(path, "0").with_context(|| format!("cannot write {path}"))
}
