//! Work beside the samples, on a thread that lives as long as its sources.
//!
//! One job at a time: whoever has one looks now and then whether it is done. A thread for each job
//! would take a process id each time, and so look like a process that has begun.

use std::{
    fmt, io,
    sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    thread,
    time::{Duration, Instant},
};

use crate::{sys::clock, time::Nanos};

type Job<T> = Box<dyn FnOnce() -> T + Send>;

/// A thread for jobs that give a `T`; it begins with the first.
pub(super) struct Background<T> {
    name: &'static str,
    thread: Option<Thread<T>>,
    is_busy: bool,
}

struct Thread<T> {
    jobs: SyncSender<Job<T>>,
    results: Receiver<Done<T>>,
}

/// What a job gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Done<T> {
    pub(super) value: T,
    /// From its start to its end.
    pub(super) took: Duration,
    /// CPU time that it took.
    pub(super) cpu: Nanos,
}

impl<T> fmt::Debug for Background<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Background")
            .field("name", &self.name)
            .field("is_busy", &self.is_busy)
            .finish()
    }
}

impl<T: Send + 'static> Background<T> {
    /// `name` is that of its thread, at most 15 bytes.
    pub(super) fn new(name: &'static str) -> Self {
        Self { name, thread: None, is_busy: false }
    }

    /// Whether a job was started whose result has not been taken.
    pub(super) fn is_busy(&self) -> bool {
        self.is_busy
    }

    /// Starts a job. While it is busy, and where no thread can be had, there is none.
    pub(super) fn start(&mut self, job: impl FnOnce() -> T + Send + 'static) {
        if self.is_busy {
            return;
        }
        if self.thread.is_none() {
            match spawn(self.name) {
                Ok(thread) => self.thread = Some(thread),
                Err(err) => {
                    tracing::debug!(thread = self.name, error = %err, "not begun");
                    return;
                }
            }
        }
        let send = |thread: &Thread<T>| thread.jobs.send(Box::new(job)).is_ok();
        self.is_busy = self.thread.as_ref().is_some_and(send);
    }

    /// What the job gave, if it is done or gets done in `patience`. One that panicked gives nothing.
    pub(super) fn finish(&mut self, patience: Duration) -> Option<Done<T>> {
        if !self.is_busy {
            return None;
        }
        match self.thread.as_ref()?.results.recv_timeout(patience) {
            Ok(done) => {
                self.is_busy = false;
                Some(done)
            }
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => {
                (self.thread, self.is_busy) = (None, false);
                None
            }
        }
    }
}

fn spawn<T: Send + 'static>(name: &str) -> io::Result<Thread<T>> {
    let (jobs, next) = sync_channel::<Job<T>>(1);
    let (done, results) = sync_channel(1);
    let work = move || {
        for job in next {
            let (start, cpu) = (Instant::now(), clock::thread_cpu());
            let value = job();
            let cpu = Nanos(clock::thread_cpu().0.saturating_sub(cpu.0));
            // nobody waits for it any more: the agent is stopping
            let _ = done.send(Done { value, took: start.elapsed(), cpu });
        }
    };
    thread::Builder::new().name(name.to_owned()).spawn(work)?;
    Ok(Thread { jobs, results })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn jobs_are_done_one_after_the_other_by_one_thread() {
        let mut background = Background::new("test");
        assert_eq!(None, background.finish(LONG));
        let mut threads = Vec::new();
        for _ in 0..3 {
            background.start(|| thread::current().id());
            assert!(background.is_busy());
            threads.push(background.finish(LONG).expect("done").value);
            assert!(!background.is_busy());
        }
        threads.dedup();
        assert_eq!(1, threads.len());
    }

    #[test]
    fn a_job_that_goes_on_is_waited_for_and_no_other_begins() {
        let mut background = Background::new("test");
        let (go, wait) = sync_channel::<()>(0);
        background.start(move || {
            wait.recv().expect("told to go on");
            1
        });
        assert_eq!(None, background.finish(Duration::ZERO));
        background.start(|| 2);
        go.send(()).expect("it waits");
        assert_eq!(Some(1), background.finish(LONG).map(|done| done.value));
        assert_eq!(None, background.finish(Duration::ZERO));
    }

    #[test]
    fn after_a_job_that_panicked_another_thread_begins() {
        let mut background = Background::new("test");
        background.start(|| if true { panic!("for the test") } else { 1 });
        assert_eq!(None, background.finish(LONG));
        assert!(!background.is_busy());
        background.start(|| 2);
        assert_eq!(Some(2), background.finish(LONG).map(|done| done.value));
    }
}
