//! A next generation that does not accept so far: what it is lent, how it says that it accepts, and
//! its end where it does not.

use std::{
    io,
    os::unix::net::UnixStream,
    process::{Child, Command, ExitStatus},
    sync::Arc,
    time::Duration,
};

use socket2::Socket;
use tokio::{net, time};

use crate::{drain::Stage, handover::HandoverError, life::Life, shared::Shared};

/// What a child says.
pub(crate) const READY: u8 = b'R';

/// Ends when `child` said that it accepts.
///
/// # Errors
/// It ended, or says something else.
pub(crate) async fn says_ready(child: UnixStream) -> io::Result<()> {
    child.set_nonblocking(true)?;
    let child = net::UnixStream::from_std(child)?;
    loop {
        child.readable().await?;
        let mut byte = [0];
        match child.try_read(&mut byte) {
            Ok(1) if byte == [READY] => return Ok(()),
            Ok(_) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => {}
            Err(err) => return Err(err),
        }
    }
}

/// An open listener, and its socket for a child. Whatever the child did to the socket is undone
/// when this is dropped, unless it was handed over.
pub(crate) struct Lent {
    shared: Arc<Shared>,
    socket: Socket,
}

impl Lent {
    /// `None`: it is closed.
    pub(crate) fn new(shared: Arc<Shared>) -> Option<Self> {
        let socket = shared.life.kept()?;
        shared.life.lend(&socket).ok()?;
        Some(Self { shared, socket })
    }

    pub(crate) fn name(&self) -> &str {
        &self.shared.name
    }

    pub(crate) fn socket(&self) -> &Socket {
        &self.socket
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.shared.life.take_back(&self.socket);
    }
}

/// A child that is killed, unless it is taken.
pub(crate) struct Starting {
    child: Option<Child>,
    /// Taken back when the child is gone.
    lent: Vec<Lent>,
}

impl Starting {
    /// For a child that is to have `lent`; `None`: there is none, or one is about to close.
    pub(crate) fn new(lent: Vec<Lent>) -> Option<Self> {
        // a drain that is not seen here sees that they are lent
        let closes = lent.iter().any(|it| Stage::Closing <= it.shared.life.stage());
        (!closes && !lent.is_empty()).then_some(Self { child: None, lent })
    }

    pub(crate) fn lent(&self) -> &[Lent] {
        &self.lent
    }

    pub(crate) fn start(&mut self, mut command: Command) -> io::Result<()> {
        self.child = Some(command.spawn()?);
        Ok(())
    }

    /// The child, which has the sockets from here on.
    ///
    /// # Errors
    /// A drain overtook it: what is queued is not left to the child.
    pub(crate) fn hand_over(&mut self) -> Result<Child, HandoverError> {
        let lives = || self.lent.iter().map(|lent| &lent.shared.life);
        // held, so that no drain begins to close one meanwhile
        let progress: Vec<_> = lives().map(|life| life.progress.borrow()).collect();
        if progress.iter().any(|it| Stage::Closing <= it.stage) {
            return Err(HandoverError::Closed);
        }
        lives().for_each(Life::hand_over);
        drop(progress);
        self.child.take().ok_or(HandoverError::Ended(None))
    }

    /// How it ended, after its descriptors were closed: its exit is soon, or it is killed.
    pub(crate) async fn ended(&mut self) -> Option<ExitStatus> {
        for _ in 0..100 {
            if let Some(status) = self.child.as_mut()?.try_wait().ok()? {
                self.child = None;
                return Some(status);
            }
            time::sleep(Duration::from_millis(5)).await;
        }
        self.kill()
    }

    fn kill(&mut self) -> Option<ExitStatus> {
        let mut child = self.child.take()?;
        // where it fails, it ended
        drop(child.kill());
        child.wait().ok()
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        self.kill();
    }
}
