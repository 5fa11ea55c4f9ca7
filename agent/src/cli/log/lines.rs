//! Lines that a thread writes, so that nobody waits for whoever reads them.

use std::{
    io::{self, Write},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{self, Receiver, SyncSender, TrySendError},
    },
    thread,
    time::{Duration, Instant},
};

/// How often a full queue is asked for a place at the end.
const AGAIN: Duration = Duration::from_millis(5);
/// There is one line in so long about those that were lost.
const LOST_EVERY: Duration = Duration::from_secs(1);

/// Where lines are put for the thread; one that finds no place is lost.
#[derive(Clone, Debug)]
pub(super) struct Lines {
    queue: SyncSender<Job>,
    lost: Arc<AtomicU64>,
}

#[derive(Debug)]
enum Job {
    Write(Vec<u8>),
    /// Nothing more is wanted; all before is written.
    End(SyncSender<()>),
}

impl Lines {
    /// Starts the thread, which writes to `out`; `most` lines wait for it.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub(super) fn start(most: usize, out: impl Write + Send + 'static) -> io::Result<Self> {
        let (queue, jobs) = mpsc::sync_channel(most);
        let lost = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&lost);
        thread::Builder::new().name("log".into()).spawn(move || write(&jobs, &counted, out))?;
        Ok(Self { queue, lost })
    }

    /// Waits until what was put there is written, but not longer than `patience`.
    pub(super) fn end(&self, patience: Duration) {
        let until = Instant::now() + patience;
        let (done, is_done) = mpsc::sync_channel(1);
        let mut job = Job::End(done);
        while let Err(TrySendError::Full(back)) = self.queue.try_send(job) {
            if until <= Instant::now() {
                return;
            }
            job = back;
            thread::sleep(AGAIN);
        }
        // it is late, or the thread is gone
        let _ = is_done.recv_timeout(until.saturating_duration_since(Instant::now()));
    }
}

/// One write is one line; it never fails, since nobody could be told.
impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.queue.try_send(Job::Write(line.to_vec())).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write(jobs: &Receiver<Job>, lost: &AtomicU64, mut out: impl Write) {
    let mut told = None::<Instant>;
    for job in jobs {
        match job {
            Job::Write(line) => {
                // a log that is closed costs the log, not the daemon
                drop(out.write_all(&line));
                if told.is_none_or(|at| LOST_EVERY <= at.elapsed()) {
                    let n = lost.swap(0, Ordering::Relaxed);
                    if n != 0 {
                        told = Some(Instant::now());
                        tracing::warn!(n, "lines of this log were lost: nobody read it");
                    }
                }
            }
            Job::End(done) => {
                let _ = done.send(());
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{PipeReader, PipeWriter, Read as _},
        sync::Mutex,
    };

    use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

    use super::*;

    const LONG: Duration = Duration::from_secs(30);

    fn put(lines: &mut Lines, line: &str) {
        lines.write_all(line.as_bytes()).expect("it never fails");
    }

    /// A pipe that takes nothing, and how much is in it.
    fn full() -> (PipeReader, PipeWriter, usize) {
        let (reader, mut writer) = io::pipe().expect("descriptors");
        let flags = fcntl_getfl(&writer).expect("a pipe");
        fcntl_setfl(&writer, flags | OFlags::NONBLOCK).expect("a pipe");
        let mut n = 0;
        while writer.write(b"-").is_ok() {
            n += 1;
        }
        fcntl_setfl(&writer, flags).expect("a pipe");
        (reader, writer, n)
    }

    #[test]
    fn what_was_put_there_is_written_in_order_before_the_end() {
        #[derive(Clone, Default)]
        struct Kept(Arc<Mutex<Vec<u8>>>);
        impl Write for Kept {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0.lock().expect("no panic").write(bytes)
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let kept = Kept::default();
        let mut lines = Lines::start(1_000, kept.clone()).expect("a thread");
        (0..1_000).for_each(|n| put(&mut lines, &format!("{n}\n")));
        lines.end(LONG);
        let expected: String = (0..1_000).map(|n| format!("{n}\n")).collect();
        let written = kept.0.lock().expect("no panic");
        assert_eq!(String::from_utf8_lossy(&written), expected);
    }

    #[test]
    fn nobody_waits_where_nobody_reads_and_what_is_lost_is_counted() {
        let (mut reader, writer, n) = full();
        let mut lines = Lines::start(4, writer).expect("a thread");
        (0..20).for_each(|n| put(&mut lines, &format!("{n}\n")));
        // the thread has one of them, if it was there already
        let lost = lines.lost.load(Ordering::Relaxed);
        assert!((15..=16).contains(&lost), "{lost}");
        let begun = Instant::now();
        lines.end(Duration::from_millis(20));
        assert!(begun.elapsed() < LONG, "{:?}", begun.elapsed());
        let mut filled = vec![0; n];
        reader.read_exact(&mut filled).expect("it was filled");
        lines.end(LONG);
        assert_eq!(lines.lost.load(Ordering::Relaxed), 0, "it was told");
        drop(lines);
        let mut rest = String::new();
        reader.read_to_string(&mut rest).expect("the thread has ended");
        assert!(rest.starts_with("0\n1\n2\n3\n"), "{rest}");
    }
}
