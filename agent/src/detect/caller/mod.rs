//! Detections about tasks of one name, by the system calls that fail for them.

mod accept_errors;
mod connect_errors;

use std::sync::Arc;

use crate::{
    detect::{
        book::Kind,
        history::History,
        rule::{COUNTERS, Look, Rule, seconds},
        run::Run,
        subject::{Labels, Subject, SubjectKind},
        tuning::{Target, Tuning},
    },
    errno::Errno,
    id::Pid,
    input::{Absent, CallErrors, ErrorCounts, Known},
    model::snapshot::{Process, Snapshot},
    time::Nanos,
};

/// Names of tasks for which a call failed that should not.
pub(super) struct Callers;

/// A look at one.
type At<'i, 'a> = Look<'i, 'a, Callers>;

/// Errors of accept(2) that do not go away by themselves, and that of connect(2); by place in the
/// counters. Others are no fault of the host: `EAGAIN`, `EINTR`, `ECONNABORTED` (the peer was
/// quicker), `EINVAL` (the listener is being closed), `EPERM` (a firewall's rule).
const ERRORS: [(Errno, &str); 5] = [
    (errno(libc::EMFILE), "EMFILE"),
    (errno(libc::ENFILE), "ENFILE"),
    (errno(libc::ENOBUFS), "ENOBUFS"),
    (errno(libc::ENOMEM), "ENOMEM"),
    (errno(libc::EADDRNOTAVAIL), "EADDRNOTAVAIL"),
];
const EMFILE: usize = 0;
const ENFILE: usize = 1;
/// Those before it are of accept(2).
const EADDRNOTAVAIL: usize = 4;

/// Loops that wait after an error wait no longer than that.
const ACCEPT_PAUSE: Nanos = seconds(3);
const CONNECT_PAUSE: Nanos = seconds(10);

/// Open descriptors of what they may be, from which on a process counts as full.
const FULL: f64 = 0.98;

/// What the snapshot shows of a caller.
#[derive(Clone, Copy)]
pub(super) struct Caller<'a> {
    /// `None`: nobody in particular, where a hook is missing.
    comm: Option<&'a Arc<str>>,
    counts: [u64; ERRORS.len()],
    /// Whether a hook sees the call at all.
    accept: Known<()>,
    connect: Known<()>,
}

/// Whether errors go on.
#[derive(Default)]
pub(super) struct Memory {
    accept: Run,
    connect: Run,
    /// The processes that had no descriptor left when any was last seen so since accept began to fail.
    full: Arc<[Pid]>,
}

impl Kind for Callers {
    type Key = Option<Arc<str>>;
    type Item<'a> = Caller<'a>;
    type Memory = Memory;

    const KIND: SubjectKind = SubjectKind::Caller;

    const RULES: &'static [Rule<Self>] = &[accept_errors::RULE, connect_errors::RULE];

    fn each<'a>(now: &'a Snapshot, _: &'a Tuning, visit: &mut dyn FnMut(Self::Key, Caller<'a>)) {
        let counts = |call: fn(&CallErrors) -> &Known<Arc<ErrorCounts>>| -> Known<&'a ErrorCounts> {
            let errors = now.errors.as_ref().map_err(|absent| *absent)?;
            call(errors).as_deref().map_err(|absent| *absent)
        };
        let (accepts, connects) = (counts(|it| &it.accept), counts(|it| &it.connect));
        let (accept, connect) = (accepts.map(|_| ()), connects.map(|_| ()));
        if accept.is_err() || connect.is_err() {
            visit(None, Caller { comm: None, counts: [0; ERRORS.len()], accept, connect });
        }
        let of = |errors: Known<&'a ErrorCounts>, places: std::ops::Range<usize>| {
            let entries = errors.ok().into_iter().flatten();
            entries.filter_map(move |((comm, errno), &n)| {
                let place = ERRORS.iter().position(|(it, _)| it == errno)?;
                places.contains(&place).then_some((comm, place, n))
            })
        };
        let mut failed: Vec<(&'a Arc<str>, usize, u64)> = of(accepts, 0..EADDRNOTAVAIL)
            .chain(of(connects, EADDRNOTAVAIL..ERRORS.len()))
            .collect();
        failed.sort_unstable();
        for same in failed.chunk_by(|one, next| one.0 == next.0) {
            let mut counts = [0; ERRORS.len()];
            same.iter().for_each(|&(_, place, n)| counts[place] = n);
            let comm = same[0].0;
            visit(Some(comm.clone()), Caller { comm: Some(comm), counts, accept, connect });
        }
    }

    fn counters(caller: Caller<'_>, _: &Snapshot) -> [Option<u64>; COUNTERS] {
        std::array::from_fn(|i| caller.counts.get(i).copied())
    }

    fn remember(memory: &mut Memory, caller: Caller<'_>, _: &History<COUNTERS>, now: &Snapshot) {
        let interval = now.interval.unwrap_or_default();
        let pause = |pause: Nanos| pause.max(interval + interval);
        let (accept, connect) = caller.counts.split_at(EADDRNOTAVAIL);
        let went_on = memory.accept.grown().is_some();
        memory.accept.next(now.at, accept.iter().sum(), pause(ACCEPT_PAUSE));
        if memory.accept.grown().is_some() {
            let full = processes(caller, now).filter(|(_, process)| is_full(process));
            let full: Arc<[Pid]> = full.map(|(pid, _)| pid).collect();
            if !full.is_empty() || !went_on {
                memory.full = full;
            }
        }
        memory.connect.next(now.at, connect.iter().sum(), pause(CONNECT_PAUSE));
    }

    fn target(caller: Caller<'_>) -> Target {
        Target { comm: caller.comm.cloned(), ..Target::default() }
    }

    fn subject(caller: Caller<'_>, now: &Snapshot) -> Subject {
        Subject {
            kind: Self::KIND,
            name: caller.comm.map_or("?", |comm| comm).to_owned(),
            labels: Labels { comm: caller.comm.cloned(), ..Labels::default() },
            pids: processes(caller, now).map(|(pid, _)| pid).collect(),
        }
    }

    fn recall(memory: &Memory, subject: &mut Subject) {
        if !memory.full.is_empty() {
            subject.pids = Arc::clone(&memory.full);
        }
    }
}

/// Processes of that name that have no descriptor left, or else all of that name; or, since a task can
/// have a name of its own, those that are full.
fn processes<'a>(
    caller: Caller<'_>,
    now: &'a Snapshot,
) -> impl Iterator<Item = (Pid, &'a Process)> {
    let named = |process: &Process| caller.comm.is_some_and(|comm| process.now.comm == *comm);
    let is_any_named = now.processes.values().any(named);
    let is_any_full = now.processes.values().any(|it| named(it) && is_full(it));
    let is_one = move |process: &Process| {
        let is_named = caller.comm.is_some_and(|comm| process.now.comm == *comm);
        (is_named || !is_any_named) && (is_full(process) || is_any_named && !is_any_full)
    };
    let processes = now.processes.iter().filter(move |(_, process)| is_one(process));
    processes.map(|(pid, process)| (*pid, process))
}

/// See [`crate::detect::is_full`].
pub(super) fn is_full(process: &Process) -> bool {
    FULL <= fd_ratio(process)
}

/// Open descriptors of what they may be; 0 where that is not known.
fn fd_ratio(process: &Process) -> f64 {
    match (process.now.open_fds, process.now.max_fds) {
        (Ok(open), Ok(max)) => open as f64 / max.max(1) as f64,
        (Err(_), _) | (_, Err(_)) => 0.0,
    }
}

const fn errno(number: i32) -> Errno {
    Errno(number.unsigned_abs())
}

/// The first reason why something is not known of any namespace, where it is known of none.
fn absent_everywhere<T>(known: impl Iterator<Item = Known<T>>) -> Option<Absent> {
    let mut why = Some(Absent::TooEarly);
    for (i, one) in known.enumerate() {
        match one {
            Ok(_) => return None,
            Err(absent) if i == 0 => why = Some(absent),
            Err(_) => {}
        }
    }
    why
}

#[cfg(test)]
mod tests;
