//! Shed connections whose answer has to arrive before they are closed.
//!
//! One task reads and throws away what their peers send, until they close, too, or their time or
//! bytes are over. It looks at each a few times, ever more rarely, and has no descriptor of its own
//! for that: most peers close within a millisecond. How many linger is bounded; beyond it, shed
//! connections are reset.

use std::{
    collections::VecDeque,
    io,
    mem::MaybeUninit,
    sync::Arc,
    time::{Duration, Instant},
};

use socket2::Socket;
use tokio::{sync::mpsc, time};

use crate::{close, limits::MAX_LIMIT, range::OutOfRange, shared::Shared};

/// Bounds of lingering.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Linger {
    /// How many connections at most; more are reset. `None`: half as many as there are between the soft
    /// and the hard limit, so that they alone never have the listener stop. At most
    /// [`MAX_LIMIT`](crate::MAX_LIMIT).
    pub max: Option<usize>,
    /// How long at most; at most 60 s.
    pub time: Duration,
    /// How many of the peer's bytes are read and thrown away at most.
    pub bytes: usize,
}

impl Linger {
    pub(crate) fn check(&self) -> Result<(), OutOfRange> {
        let most = self.max.map_or(1, |max| max as u64);
        OutOfRange::check("connections that linger", most, 1, MAX_LIMIT as u64)?;
        let ms = u64::try_from(self.time.as_millis()).unwrap_or(u64::MAX);
        OutOfRange::check("time to linger in ms", ms, 1, 60_000)
    }
}

impl Default for Linger {
    fn default() -> Self {
        Self { max: None, time: Duration::from_millis(250), bytes: 64 * 1_024 }
    }
}

/// A shed connection: its answer is sent, our end is shut.
#[derive(Debug)]
pub(crate) struct Lingering {
    socket: Option<Socket>,
    since: Instant,
    read: usize,
    shared: Arc<Shared>,
}

impl Lingering {
    /// Takes a slot for it.
    ///
    /// # Errors
    /// As many linger as may, or the hard limit leaves none; the connection is reset.
    pub(crate) fn new(socket: Socket, shared: &Arc<Shared>) -> io::Result<Self> {
        let is_counted = shared.counters.lingers(shared.most_lingering());
        if !is_counted || !shared.gate.take_hard() {
            if is_counted {
                shared.counters.lingered();
            }
            close::reset(socket);
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        let shared = Arc::clone(shared);
        Ok(Self { socket: Some(socket), since: Instant::now(), read: 0, shared })
    }

    /// Closes with a reset.
    pub(crate) fn reset(mut self) {
        if let Some(socket) = self.socket.take() {
            close::reset(socket);
        }
    }

    /// Reads what is there; whether it is over.
    fn is_over(&mut self, bounds: &Linger) -> bool {
        let Some(socket) = &self.socket else { return true };
        let mut scrap = [MaybeUninit::uninit(); 4_096];
        loop {
            match socket.recv(&mut scrap) {
                Ok(0) => return true,
                Ok(n) => self.read += n,
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => {
                    return bounds.time <= self.since.elapsed();
                }
                Err(_) => return true,
            }
            if bounds.bytes < self.read {
                return true;
            }
        }
    }
}

impl Drop for Lingering {
    fn drop(&mut self) {
        // the slot is free only after close(2)
        self.socket = None;
        self.shared.counters.lingered();
        self.shared.gate.give_back_hard();
    }
}

/// When each is looked at, after the time before; the last one is repeated.
const LOOKS: [Duration; 5] = [
    Duration::from_millis(1),
    Duration::from_millis(4),
    Duration::from_millis(15),
    Duration::from_millis(30),
    Duration::from_millis(50),
];

/// Waits for the ends of all that come by `arrivals`. Ends when no more can come and the last is
/// closed.
pub(crate) async fn run(mut arrivals: mpsc::Receiver<Lingering>, bounds: Linger) {
    // a queue for each look: within one, who came first is due first
    let mut queues: [VecDeque<(Instant, Lingering)>; LOOKS.len()] = Default::default();
    let mut may_come = true;
    loop {
        let due = queues.iter().filter_map(|queue| queue.front()).map(|(due, _)| *due).min();
        match due {
            None if !may_come => return,
            None => match arrivals.recv().await {
                Some(lingering) => queues[0].push_back((Instant::now() + LOOKS[0], lingering)),
                None => may_come = false,
            },
            Some(due) => {
                tokio::select! {
                    arrival = arrivals.recv(), if may_come => match arrival {
                        Some(it) => queues[0].push_back((Instant::now() + LOOKS[0], it)),
                        None => may_come = false,
                    },
                    () = time::sleep_until(due.into()) => look(&mut queues, &bounds),
                }
            }
        }
    }
}

/// Looks at all that are due.
fn look(queues: &mut [VecDeque<(Instant, Lingering)>; LOOKS.len()], bounds: &Linger) {
    let at = Instant::now();
    for place in (0..queues.len()).rev() {
        while queues[place].front().is_some_and(|(due, _)| *due <= at) {
            let Some((_, mut lingering)) = queues[place].pop_front() else { break };
            if !lingering.is_over(bounds) {
                let next = (place + 1).min(LOOKS.len() - 1);
                queues[next].push_back((at + LOOKS[next], lingering));
            }
        }
    }
}
