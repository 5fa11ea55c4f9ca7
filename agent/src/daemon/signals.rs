//! The signals that the daemon answers.

use std::{future, io};

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::Purpose;

/// SIGHUP, SIGTERM, SIGINT, and SIGUSR2 where there is something to hand over.
#[derive(Debug)]
pub(super) struct Signals {
    pub(super) hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
    restart: Option<Signal>,
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
    pub(super) fn take(purpose: Purpose) -> io::Result<Self> {
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            restart: match purpose {
                Purpose::Watch => None,
                Purpose::Shed => Some(signal(SignalKind::user_defined2())?),
            },
        })
    }

    /// The next one. It may be cancelled: nothing is lost.
    pub(super) async fn next(&mut self) -> Asked {
        let restart = async {
            match &mut self.restart {
                Some(restart) => restart.recv().await,
                None => future::pending().await,
            }
        };
        tokio::select! {
            _ = self.terminate.recv() => Asked::Stop,
            _ = self.interrupt.recv() => Asked::Stop,
            _ = self.hangup.recv() => Asked::Reload,
            _ = restart => Asked::Restart,
        }
    }

    /// Ends when the agent is told to stop.
    pub(super) async fn stop(&mut self) {
        while self.next().await != Asked::Stop {}
    }
}
