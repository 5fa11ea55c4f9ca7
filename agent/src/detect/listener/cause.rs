//! Why nobody accepts, by what the threads do that should.

use std::collections::BTreeMap;

use crate::{
    id::Pid,
    input::Known,
    threads::{Call, ThreadGroup, ThreadState, Threads},
};

/// Groups of threads that are told.
const TOLD: usize = 3;

/// Why nobody accepts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cause {
    /// In words.
    pub(super) says: String,
    /// What shows or mends it.
    pub(super) mend: String,
    /// Whether somebody wants it so.
    pub(super) is_meant: bool,
    /// Whether the process does nothing at all.
    pub(super) is_halted: bool,
    /// Whether accept can only fail until somebody mends it.
    pub(super) is_hopeless: bool,
}

/// Why none of `suspects` accepts. `None`: nobody has looked at them.
pub(super) fn of(threads: &BTreeMap<Pid, Known<Threads>>, suspects: &[Pid]) -> Option<Cause> {
    let known =
        || suspects.iter().filter_map(|&pid| Some((pid, threads.get(&pid)?.as_ref().ok()?)));
    let halted = known().find_map(|(pid, threads)| halted(pid, threads));
    halted.or_else(|| {
        // one that waits for events says more than its parent, which only waits for its children
        let waits = known().find(|(_, threads)| is_any(threads, waits_for_peers));
        let (pid, threads) = waits.or_else(|| known().next())?;
        Some(awake(pid, threads))
    })
}

/// Why the process does nothing at all, if it does not.
fn halted(pid: Pid, threads: &Threads) -> Option<Cause> {
    let are_all = |state| {
        let is_it = |group: &ThreadGroup| {
            matches!(group.state, ThreadState::Zombie) || group.state == state
        };
        threads.groups.iter().any(|group| group.state == state) && threads.groups.iter().all(is_it)
    };
    if threads.frozen == Some(true) {
        let cgroup = format!("/sys/fs/cgroup$(sed -n s/^0:://p /proc/{pid}/cgroup)/cgroup.freeze");
        return Some(Cause {
            says: format!("the control group of pid {pid} is frozen"),
            mend: format!("echo 0 > {cgroup}"),
            is_meant: true,
            is_halted: true,
            is_hopeless: false,
        });
    }
    if are_all(ThreadState::Traced) {
        return Some(Cause {
            says: format!("a debugger holds pid {pid}"),
            mend: format!("grep TracerPid /proc/{pid}/status"),
            is_meant: true,
            is_halted: true,
            is_hopeless: false,
        });
    }
    are_all(ThreadState::Stopped).then(|| Cause {
        says: format!("pid {pid} is stopped by a signal"),
        mend: format!("kill -CONT {pid}"),
        is_meant: false,
        is_halted: true,
        is_hopeless: false,
    })
}

/// What its threads do instead.
fn awake(pid: Pid, threads: &Threads) -> Cause {
    let mend = format!("cat /proc/{pid}/task/*/stack # where its threads are");
    let all = threads.looked_at;
    let count = |is_it: fn(&ThreadGroup) -> bool| -> u64 {
        threads.groups.iter().filter(|group| is_it(group)).map(|group| group.count).sum()
    };
    let (accepts, events) =
        (count(|group| group.call == Some(Call::Accept)), count(waits_for_peers));
    let who = |n: u64| match (n, all) {
        (_, 1) => format!("the only thread of pid {pid} waits"),
        (1, _) => format!("1 of {all} threads of pid {pid} waits"),
        (n, _) if n == all => format!("all {all} threads of pid {pid} wait"),
        (n, _) => format!("{n} of {all} threads of pid {pid} wait"),
    };
    let says = if 0 < accepts {
        format!("{} in accept, for another socket than this", who(accepts))
    } else if 0 < events {
        format!(
            "{} for events and {}: the program has not asked for this socket's, or missed the one \
             it gets",
            who(events),
            if all == 1 { "does not accept" } else { "none accepts" }
        )
    } else {
        let does: Vec<String> = threads.groups.iter().take(TOLD).map(does).collect();
        let does = does.join(", ");
        match (all, does.strip_prefix("1 ")) {
            (1, Some(does)) => format!(
                "the only thread of pid {pid} is not in accept and does not wait for events: it {does}"
            ),
            _ => format!(
                "none of {all} threads of pid {pid} is in accept or waits for events: {does}"
            ),
        }
    };
    Cause { says, mend, is_meant: false, is_halted: false, is_hopeless: false }
}

fn is_any(threads: &Threads, is_it: fn(&ThreadGroup) -> bool) -> bool {
    threads.groups.iter().any(is_it)
}

fn waits_for_peers(group: &ThreadGroup) -> bool {
    match group.call {
        Some(Call::Accept | Call::EpollWait | Call::Poll | Call::IoUringEnter) => true,
        Some(
            Call::Futex
            | Call::Read
            | Call::Write
            | Call::Connect
            | Call::Nanosleep
            | Call::Wait
            | Call::RestartSyscall
            | Call::Other(_),
        )
        | None => false,
    }
}

/// What some threads do: `6 sleep in futex (futex_wait_queue)`.
fn does(group: &ThreadGroup) -> String {
    let n = group.count;
    let verb = |one: &'static str, many: &'static str| if n == 1 { one } else { many };
    let does = match group.state {
        ThreadState::Running => verb("runs", "run"),
        ThreadState::Sleeping => verb("sleeps", "sleep"),
        ThreadState::DiskSleep => verb("is blocked in the kernel", "are blocked in the kernel"),
        ThreadState::Stopped => verb("is stopped", "are stopped"),
        ThreadState::Traced => verb("is held by a debugger", "are held by a debugger"),
        ThreadState::Idle => verb("idles", "idle"),
        ThreadState::Zombie => verb("has ended", "have ended"),
    };
    let call = match group.call {
        Some(Call::Other(number)) => format!(" in system call {number}"),
        Some(call) => format!(" in {call}"),
        None => String::new(),
    };
    let wchan = group.wchan.as_ref().map_or_else(String::new, |wchan| format!(" ({wchan})"));
    format!("{n} {does}{call}{wchan}")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::time::Monotonic;

    type Group = (ThreadState, Option<Call>, Option<&'static str>, u64);

    fn threads(groups: &[Group]) -> Threads {
        let groups = groups.iter().map(|&(state, call, wchan, count)| ThreadGroup {
            state,
            wchan: wchan.map(Arc::from),
            call,
            count,
        });
        let groups: Vec<ThreadGroup> = groups.collect();
        let total = groups.iter().map(|group| group.count).sum();
        let at = Monotonic(1);
        Threads { at, total, looked_at: total, traced: false, frozen: Some(false), groups }
    }

    #[track_caller]
    fn check(processes: &[&[Group]], says: &str, mend: &str) {
        let pids: Vec<Pid> = (7..).map(Pid).take(processes.len()).collect();
        let found = pids.iter().zip(processes).map(|(pid, groups)| (*pid, Ok(threads(groups))));
        let cause = of(&found.collect(), &pids).expect("they were looked at");
        assert_eq!((says, mend, false), (&*cause.says, &*cause.mend, cause.is_meant));
    }

    const STOPPED: Group = (ThreadState::Stopped, None, Some("do_signal_stop"), 4);
    const POOL: Group = (ThreadState::Sleeping, Some(Call::Futex), Some("futex_wait_queue"), 6);
    const LOOP: Group = (ThreadState::Sleeping, Some(Call::EpollWait), Some("ep_poll"), 1);
    const PARENT: Group = (ThreadState::Sleeping, Some(Call::Wait), Some("do_wait"), 1);
    const BUSY: Group = (ThreadState::Running, None, None, 2);
    const BLOCKED: Group = (ThreadState::DiskSleep, Some(Call::Other(5)), Some("nfs_wait"), 1);

    #[test]
    fn what_the_threads_do_is_told() {
        check(&[&[STOPPED]], "pid 7 is stopped by a signal", "kill -CONT 7");
        check(
            &[&[POOL, BUSY]],
            "none of 8 threads of pid 7 is in accept or waits for events: 6 sleep in futex \
             (futex_wait_queue), 2 run",
            "cat /proc/7/task/*/stack # where its threads are",
        );
        check(
            &[&[BLOCKED]],
            "the only thread of pid 7 is not in accept and does not wait for events: it is blocked in \
             the kernel in system call 5 (nfs_wait)",
            "cat /proc/7/task/*/stack # where its threads are",
        );
        check(
            &[&[POOL, LOOP]],
            "1 of 7 threads of pid 7 waits for events and none accepts: the program has not asked for \
             this socket's, or missed the one it gets",
            "cat /proc/7/task/*/stack # where its threads are",
        );
    }

    #[test]
    fn of_several_processes_the_one_that_says_most_is_told() {
        check(&[&[PARENT], &[STOPPED]], "pid 8 is stopped by a signal", "kill -CONT 8");
        check(
            &[&[PARENT], &[LOOP]],
            "the only thread of pid 8 waits for events and does not accept: the program has not asked \
             for this socket's, or missed the one it gets",
            "cat /proc/8/task/*/stack # where its threads are",
        );
    }

    #[test]
    fn what_somebody_wants_so_is_told_apart() {
        let found = |threads| of(&BTreeMap::from([(Pid(7), Ok(threads))]), &[Pid(7)]);
        let held = threads(&[(ThreadState::Traced, None, Some("ptrace_stop"), 2)]);
        let cause = found(Threads { traced: true, ..held }).expect("known");
        assert_eq!(("a debugger holds pid 7", true), (&*cause.says, cause.is_meant));
        // strace is no debugger that holds it
        let cause = found(Threads { traced: true, ..threads(&[LOOP]) }).expect("known");
        assert!(!cause.is_meant, "{cause:?}");
        let cause = found(Threads { frozen: Some(true), ..threads(&[POOL]) }).expect("known");
        assert_eq!(("the control group of pid 7 is frozen", true), (&*cause.says, cause.is_meant));
        assert_eq!(None, of(&BTreeMap::new(), &[Pid(7)]));
    }
}
