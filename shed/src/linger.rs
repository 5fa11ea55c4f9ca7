//! Shed connections whose answer has to arrive before they are closed.
//!
//! One task reads and throws away what their peers send, until they close, too, or their time or
//! bytes are over. It looks at each a few times, ever more rarely, and has no descriptor of its own
//! for that: most peers close within a millisecond. How many linger is bounded; beyond it, shed
//! connections are reset.

use std::{
    collections::VecDeque,
    future, io,
    mem::MaybeUninit,
    sync::Arc,
    time::{Duration, Instant},
};

use socket2::Socket;
use tokio::{
    sync::mpsc,
    time::{self, MissedTickBehavior},
};

use crate::{close, descriptors, limits::MAX_LIMIT, range::OutOfRange, shared::Shared};

/// Bounds of lingering.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Linger {
    /// How many connections at most; more are reset. `None`: half as many as there are between the
    /// soft and the hard limit, so that they alone never have the listener stop. At most
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

    /// Half of the room for such connections is taken.
    fn is_pressed(&self) -> bool {
        self.shared.most_lingering() <= 2 * self.shared.counters.n_lingering()
    }

    /// Reads what is there; whether it is over.
    fn is_over(&mut self, bounds: &Linger) -> bool {
        let Some(socket) = &self.socket else { return true };
        let mut scrap = [MaybeUninit::uninit(); 4_096];
        is_read(|| socket.recv(&mut scrap), &mut self.read, bounds.bytes)
            || bounds.time <= self.since.elapsed()
    }
}

/// Reads by `recv` what is there, though no more than others can wait for, and adds it to `n_read`;
/// whether that was its end, or is more than `most`.
fn is_read(mut recv: impl FnMut() -> io::Result<usize>, n_read: &mut usize, most: usize) -> bool {
    for _ in 0..READS {
        match recv() {
            Ok(0) => return true,
            Ok(n) => *n_read += n,
            Err(err) => return err.kind() != io::ErrorKind::WouldBlock,
        }
        if most < *n_read {
            return true;
        }
    }
    false
}

/// Reads at each look: a peer may send faster than it is read.
const READS: usize = 32;

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

/// While half of the room for them is taken, all are looked at, but no more often than this.
const PRESSED: Duration = Duration::from_millis(1);

/// Waits for the ends of all that come by `arrivals`; meanwhile, since it is the one task that each
/// listener has as long as it lives, it looks at the descriptors of the process. Ends when no more
/// can come and the last is closed.
pub(crate) async fn run(mut arrivals: mpsc::Receiver<Lingering>, bounds: Linger) {
    let mut queues = Queues::default();
    let mut may_come = true;
    let mut periods = time::interval(descriptors::PERIOD);
    periods.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // the first one is at once
    periods.reset();
    loop {
        let due = queues.due();
        if due.is_none() && !may_come {
            return;
        }
        let is_due = async {
            match due {
                Some(due) => time::sleep_until(due.into()).await,
                None => future::pending().await,
            }
        };
        let arrival = tokio::select! {
            arrival = arrivals.recv(), if may_come => {
                may_come = arrival.is_some();
                arrival
            }
            () = is_due => None,
            _ = periods.tick() => {
                descriptors::look();
                None
            }
        };
        // timers are late where the runtime is busy, which is when there are many to close
        queues.look(arrival, Instant::now(), &bounds);
    }
}

/// Those that linger, and when each is due; a list for each of [`LOOKS`], in which who came first
/// is due first.
#[derive(Debug, Default)]
struct Queues {
    lists: [VecDeque<(Instant, Lingering)>; LOOKS.len()],
    /// When all were looked at.
    looked: Option<Instant>,
}

impl Queues {
    fn due(&self) -> Option<Instant> {
        self.lists.iter().filter_map(|list| list.front()).map(|(due, _)| *due).min()
    }

    /// Looks at all that are due, and at all others where there is little room for `arrival`.
    fn look(&mut self, arrival: Option<Lingering>, at: Instant, bounds: &Linger) {
        let is_pressed = arrival.as_ref().is_some_and(Lingering::is_pressed)
            && self.looked.is_none_or(|looked| looked + PRESSED <= at);
        if is_pressed {
            self.looked = Some(at);
        }
        for place in (0..self.lists.len()).rev() {
            for _ in 0..self.lists[place].len() {
                let Some((due, mut lingering)) = self.lists[place].pop_front() else { break };
                if at < due && !is_pressed {
                    self.lists[place].push_front((due, lingering));
                    break;
                }
                if !lingering.is_over(bounds) {
                    let next = (place + 1).min(LOOKS.len() - 1);
                    self.lists[next].push_back((at + LOOKS[next], lingering));
                }
            }
        }
        self.lists[0].extend(arrival.map(|lingering| (at + LOOKS[0], lingering)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_does_not_stop_sending_is_left_after_some_reads() {
        let (mut n_read, mut n_calls) = (0, 0);
        let mut sends = || {
            n_calls += 1;
            assert!(n_calls <= 1_000, "it does not end");
            Ok(4_096)
        };
        assert!(!is_read(&mut sends, &mut n_read, usize::MAX));
        assert_eq!(n_read, 131_072);
        assert!(is_read(&mut sends, &mut n_read, 200_000));
        assert_eq!(n_read, 200_704);
    }

    #[test]
    fn reads_until_an_end_an_error_or_nothing() {
        for (last, expected) in [
            (Ok(0), true),
            (Err(io::ErrorKind::ConnectionReset), true),
            (Err(io::ErrorKind::WouldBlock), false),
        ] {
            let (mut n_read, mut all) = (0, vec![last, Ok(7), Ok(9)]);
            let recv = || all.pop().expect("no more is read").map_err(io::Error::from);
            assert_eq!(is_read(recv, &mut n_read, 16), expected, "{last:?}");
            assert_eq!(n_read, 16);
        }
    }
}
