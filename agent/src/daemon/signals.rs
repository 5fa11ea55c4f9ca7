//! The signals that the daemon answers.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// SIGHUP, SIGTERM, SIGINT and SIGUSR2.
#[derive(Debug)]
pub(super) struct Signals {
    pub(super) hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
    restart: Signal,
}

/// What was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// To read the configuration again.
    Reload,
    /// To have the next generation serve.
    Restart,
    /// To end.
    Stop,
}

impl Signals {
    /// To be called within a runtime.
    pub(super) fn take() -> io::Result<Self> {
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            // whatever it is good for: unanswered, it would end the process
            restart: signal(SignalKind::user_defined2())?,
        })
    }

    /// The next one. It may be cancelled: nothing is lost.
    pub(super) async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.terminate.recv() => Asked::Stop,
            _ = self.interrupt.recv() => Asked::Stop,
            _ = self.hangup.recv() => Asked::Reload,
            _ = self.restart.recv() => Asked::Restart,
        }
    }

    /// Ends when the agent is told to stop.
    pub(super) async fn stop(&mut self) {
        while self.next().await != Asked::Stop {}
    }
}
