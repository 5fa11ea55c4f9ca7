//! What the threads of a process do: whether they run, and where they sleep.
//!
//! In: `/proc/PID/{status,cgroup}`, `/proc/PID/task/TID/{stat,wchan,syscall}`, `cgroup.events`. Out:
//! [`Threads`]. Cost: 60 µs for a process and 25 µs for each further thread (Linux 6.18 on two virtual
//! cores); on a thread of its own, since reading `syscall` waits for whoever holds the process's
//! `exec_update_lock` (`lock_trace`, fs/proc/base.c), and at most a hundredth of a core.
//! `syscall` needs `CAP_SYS_PTRACE` and a Yama that allows it, `wchan` the former for other users'
//! processes, state none.
//! Not here: whose threads are worth a look (`model/suspects.rs`).

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rustix::{
    fd::{AsFd, OwnedFd},
    fs::{CWD, Mode, OFlags, RawDir, openat},
    io::{Errno, read},
};

use crate::{
    id::Pid,
    input::{Absent, Known},
    sources::{
        background::{Background, Done},
        process::{digits, open_dir},
    },
    sys::clock,
    threads::{Call, ThreadGroup, ThreadState, Threads},
    time::{Monotonic, Nanos},
};

/// Threads that are looked at in one process: those with the lowest ids.
const MOST: u64 = 256;

/// A look is followed by this many times its CPU time without one.
const REST: u64 = 100;

/// What a look found; a process that has ended is missing.
pub(super) type Found = BTreeMap<Pid, Known<Threads>>;

/// Looks at processes beside the samples.
#[derive(Debug)]
pub(super) struct Looks {
    /// Where control groups are.
    cgroups: PathBuf,
    /// Whom to look at when it may.
    asked: Vec<Pid>,
    rest_until: Monotonic,
    looking: Background<Found>,
}

impl Looks {
    /// `root` is where the host's files are.
    pub(super) fn new(root: &Path) -> Self {
        Self {
            cgroups: root.join("sys/fs/cgroup"),
            asked: Vec::new(),
            rest_until: Monotonic::default(),
            looking: Background::new("threads"),
        }
    }

    /// Looks at `pids`, after the rest that is due. Who is asked for before others were looked at is
    /// passed over.
    pub(super) fn ask(&mut self, at: Monotonic, pids: &[Pid]) {
        if self.asked.is_empty() {
            self.asked = pids.to_vec();
        }
        if self.asked.is_empty() || self.looking.is_busy() || at < self.rest_until {
            return;
        }
        let (pids, cgroups) = (std::mem::take(&mut self.asked), self.cgroups.clone());
        self.looking.start(move || {
            let look = |pid| Some((pid, look(pid, &cgroups).transpose()?));
            pids.into_iter().filter_map(look).collect()
        });
    }

    /// What was found since the last call.
    pub(super) fn found(&mut self, at: Monotonic) -> Found {
        let Some(Done { value, cpu, .. }) = self.looking.finish(Duration::ZERO) else {
            return Found::new();
        };
        self.rest_until = at + Nanos(cpu.0.saturating_mul(REST));
        value
    }
}

/// The threads of a process; none for one that has ended. `cgroups` is where control groups are.
///
/// # Errors
/// `NotPermitted` where `/proc` hides other users' processes.
fn look(pid: Pid, cgroups: &Path) -> Known<Option<Threads>> {
    match threads(pid, cgroups) {
        Ok(threads) => Ok(Some(threads)),
        Err(Errno::NOENT | Errno::SRCH) => Ok(None),
        Err(Errno::ACCESS | Errno::PERM) => Err(Absent::NotPermitted),
        Err(_) => Err(Absent::Unreadable),
    }
}

fn threads(pid: Pid, cgroups: &Path) -> rustix::io::Result<Threads> {
    let process = open_dir(CWD, &format!("/proc/{pid}"))?;
    let at = clock::monotonic();
    let mut buffer = [0; 4096];
    let status = parse_status(text(&process, "status", &mut buffer)?);
    let cgroup = text(&process, "cgroup", &mut buffer).ok();
    let frozen = cgroup.and_then(unified).and_then(|path| frozen(cgroups, path).ok()?);
    let tasks = open_dir(&process, "task")?;
    let (mut names, mut looked_at, mut alike) = (Vec::with_capacity(8 * 1024), 0, BTreeMap::new());
    let mut entries = RawDir::new(&tasks, names.spare_capacity_mut());
    while let Some(entry) = entries.next() {
        let Some(tid) = digits(entry?.file_name()) else { continue };
        if looked_at == MOST {
            break;
        }
        // it may have ended meanwhile
        if let Some(does) = thread(&tasks, tid, &mut buffer) {
            looked_at += 1;
            *alike.entry(does).or_insert(0) += 1;
        }
    }
    let group =
        |((state, call, wchan), count): (Does, u64)| ThreadGroup { state, wchan, call, count };
    let mut groups: Vec<ThreadGroup> = alike.into_iter().map(group).collect();
    groups.sort_by_key(|group| std::cmp::Reverse(group.count));
    let total = status.threads.max(looked_at);
    Ok(Threads { at, total, looked_at, traced: status.traced, frozen, groups })
}

/// What a thread does.
type Does = (ThreadState, Option<Call>, Option<Arc<str>>);

/// Its three files are read one after the other: a thread that goes on meanwhile shows some of both.
fn thread(tasks: &OwnedFd, tid: u32, buffer: &mut [u8]) -> Option<Does> {
    let state = parse_state(text(tasks, &format!("{tid}/stat"), buffer).ok()?)?;
    let wchan = text(tasks, &format!("{tid}/wchan"), buffer).ok().and_then(parse_wchan);
    let wchan = wchan.map(Into::into);
    let call = text(tasks, &format!("{tid}/syscall"), buffer).ok().and_then(parse_call);
    Some((state, call, wchan))
}

/// A small file; what does not fit is left out, and what is no text.
fn text<'a>(dir: impl AsFd, path: &str, buffer: &'a mut [u8]) -> rustix::io::Result<&'a str> {
    let file = openat(dir, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let n = read(&file, &mut *buffer)?;
    let valid = buffer[..n].utf8_chunks().next().map_or("", |chunk| chunk.valid());
    Ok(valid)
}

/// What `/proc/PID/status` says of the whole process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Status {
    threads: u64,
    traced: bool,
}

/// `proc_pid_status` (fs/proc/array.c).
fn parse_status(text: &str) -> Status {
    let number = |name| -> Option<u64> {
        let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
        rest.trim().parse().ok()
    };
    Status {
        threads: number("Threads:").unwrap_or(0),
        traced: number("TracerPid:").is_some_and(|pid| 0 < pid),
    }
}

/// The letter behind the name, which may hold spaces and parentheses (`do_task_stat`,
/// fs/proc/array.c).
fn parse_state(stat: &str) -> Option<ThreadState> {
    let (_, rest) = stat.rsplit_once(')')?;
    match rest.trim_start().chars().next()? {
        'R' => Some(ThreadState::Running),
        'S' => Some(ThreadState::Sleeping),
        'D' => Some(ThreadState::DiskSleep),
        'T' => Some(ThreadState::Stopped),
        't' => Some(ThreadState::Traced),
        'I' | 'P' => Some(ThreadState::Idle),
        'Z' | 'X' | 'x' => Some(ThreadState::Zombie),
        _ => None,
    }
}

/// `0` for a thread that does not sleep, and for whoever may not know (`proc_pid_wchan`,
/// fs/proc/base.c).
fn parse_wchan(text: &str) -> Option<&str> {
    Some(text.trim()).filter(|name| !matches!(*name, "" | "0"))
}

/// `running`, or the number, six arguments, the stack's address and the program's; the number is -1
/// outside of system calls, and then there are no arguments (`proc_pid_syscall`, fs/proc/base.c).
fn parse_call(text: &str) -> Option<Call> {
    let mut fields = text.split_ascii_whitespace();
    let number: u32 = fields.next()?.parse().ok()?;
    let stack = u64::from_str_radix(fields.nth(6)?.strip_prefix("0x")?, 16).ok()?;
    // a 32-bit program has its own numbers, and a stack below 4 GiB
    (u64::from(u32::MAX) < stack).then(|| call(number, MACHINE))
}

/// Whose numbers system calls have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Machine {
    /// arch/x86/entry/syscalls/syscall_64.tbl.
    X86,
    /// include/uapi/asm-generic/unistd.h.
    Generic,
}

const MACHINE: Machine = if cfg!(target_arch = "x86_64") { Machine::X86 } else { Machine::Generic };

/// Each call with its numbers on x86_64 and elsewhere.
const CALLS: [(Call, &[u32], &[u32]); 11] = [
    (Call::Accept, &[43, 288], &[202, 242]),
    (Call::EpollWait, &[232, 281, 441], &[22, 441]),
    // poll, select, ppoll, pselect6
    (Call::Poll, &[7, 23, 271, 270], &[73, 72]),
    // futex, futex_waitv, futex_wait
    (Call::Futex, &[202, 449, 455], &[98, 449, 455]),
    // read, readv, pread64, recvfrom, recvmsg, recvmmsg
    (Call::Read, &[0, 19, 17, 45, 47, 299], &[63, 65, 67, 207, 212, 243]),
    // write, writev, pwrite64, sendfile, sendto, sendmsg, sendmmsg
    (Call::Write, &[1, 20, 18, 40, 44, 46, 307], &[64, 66, 68, 71, 206, 211, 269]),
    (Call::Connect, &[42], &[203]),
    (Call::Nanosleep, &[35, 230], &[101, 115]),
    (Call::Wait, &[61, 247], &[260, 95]),
    (Call::IoUringEnter, &[426], &[426]),
    (Call::RestartSyscall, &[219], &[128]),
];

fn call(number: u32, machine: Machine) -> Call {
    let is_it = |(_, x86, generic): &&(Call, &[u32], &[u32])| match machine {
        Machine::X86 => x86.contains(&number),
        Machine::Generic => generic.contains(&number),
    };
    CALLS.iter().find(is_it).map_or(Call::Other(number), |(call, ..)| *call)
}

/// The path in the v2 hierarchy; none for one outside of what the agent's cgroup namespace shows.
fn unified(cgroup: &str) -> Option<&str> {
    let path = cgroup.lines().find_map(|line| line.strip_prefix("0::/"))?;
    (!path.split('/').any(|part| part == "..")).then_some(path)
}

/// Whether the control group is frozen; none where the kernel does not tell, as of the topmost one.
fn frozen(cgroups: &Path, path: &str) -> io::Result<Option<bool>> {
    let is_mixed = !cgroups.join("cgroup.controllers").exists();
    let tree = if is_mixed { cgroups.join("unified") } else { cgroups.to_owned() };
    Ok(parse_frozen(&fs::read_to_string(tree.join(path).join("cgroup.events"))?))
}

/// `cgroup_events_show` (kernel/cgroup/cgroup.c); since 5.2.
fn parse_frozen(text: &str) -> Option<bool> {
    let value = text.lines().find_map(|line| line.strip_prefix("frozen "))?;
    Some(value.trim() == "1")
}

#[cfg(test)]
mod tests {
    use std::{process::Command, sync::Barrier, thread, time::Instant};

    use super::*;

    #[track_caller]
    fn check_state(stat: &str, expected: Option<ThreadState>) {
        assert_eq!(expected, parse_state(stat), "{stat:?}");
    }

    #[test]
    fn the_state_stands_behind_any_name() {
        check_state("17 (cat) S 1 17 17 0 -1", Some(ThreadState::Sleeping));
        check_state("17 (a) R (b)) T 1 17", Some(ThreadState::Stopped));
        check_state("17 ((sd-pam)) D 1", Some(ThreadState::DiskSleep));
        check_state("17 () t 1", Some(ThreadState::Traced));
        check_state("17 (x\ny) R 1", Some(ThreadState::Running));
        check_state("17 (x) X 1", Some(ThreadState::Zombie));
        check_state("17 (x) I 1", Some(ThreadState::Idle));
        check_state("17 (x) ? 1", None);
        check_state("17 (x)", None);
        check_state("", None);
    }

    #[track_caller]
    fn check_call(text: &str, expected: Option<Call>) {
        let expected = expected.filter(|_| MACHINE == Machine::X86);
        let found = parse_call(text).filter(|_| MACHINE == Machine::X86);
        assert_eq!(expected, found, "{text:?}");
    }

    #[test]
    fn the_call_is_told_where_there_is_one() {
        let rest = "0x3 0x0 0x0 0x7ffd04175540 0x0 0x0 0x7ffd04175528 0x7f6d776e0503\n";
        check_call(&format!("43 {rest}"), Some(Call::Accept));
        check_call(&format!("230 {rest}"), Some(Call::Nanosleep));
        check_call(&format!("73 {rest}"), Some(Call::Other(73)));
        check_call("running\n", None);
        check_call("-1 0x7ffd04175528 0x7f6d776e0503\n", None);
        check_call("", None);
        check_call("43\n", None);
        // a 32-bit program in futex, which is mq_open elsewhere
        check_call("240 0x1 0x2 0x3 0x4 0x5 0x6 0xffc7c6b0 0xf7f1c549\n", None);
    }

    #[test]
    fn calls_have_other_numbers_on_other_machines() {
        let check = |call: Call, x86, generic| {
            let found = [(x86, Machine::X86), (generic, Machine::Generic)]
                .map(|(number, machine)| super::call(number, machine));
            assert_eq!([call; 2], found);
        };
        check(Call::Accept, 288, 242);
        check(Call::EpollWait, 232, 22);
        check(Call::Futex, 202, 98);
        check(Call::Poll, 271, 73);
        check(Call::Wait, 61, 260);
        check(Call::IoUringEnter, 426, 426);
        check(Call::Other(999), 999, 999);
        assert_eq!(["accept", "999"], [Call::Accept, Call::Other(999)].map(|it| it.to_string()));
    }

    #[test]
    fn what_is_said_of_the_whole_process_is_found() {
        let text = "Name:\tx\nState:\tS (sleeping)\nTracerPid:\t17\nThreads:\t5\n";
        assert_eq!(Status { threads: 5, traced: true }, parse_status(text));
        assert_eq!(
            Status { threads: 1, traced: false },
            parse_status("TracerPid:\t0\nThreads:\t1")
        );
        assert_eq!(Status::default(), parse_status("Name:\tThreads:\n"));
        assert_eq!([Some("a_b"), None, None], ["a_b", "0", ""].map(parse_wchan));
        let frozen = ["populated 1\nfrozen 1\n", "populated 1\nfrozen 0\n", "populated 1\n"];
        assert_eq!([Some(true), Some(false), None], frozen.map(parse_frozen));
        let cgroups = ["9:cpu:/a\n0::/b/c\n", "0::/../b\n", "9:cpu:/a\n"];
        assert_eq!([Some("b/c"), None, None], cgroups.map(unified));
    }

    #[test]
    fn a_process_that_sleeps_says_so_and_one_that_has_ended_is_missing() {
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        let pid = Pid(child.id());
        let is_asleep = |threads: &Threads| threads.groups[0].call == Some(Call::Nanosleep);
        let start = Instant::now();
        let threads = loop {
            let threads = look(pid, Path::new("/sys/fs/cgroup")).unwrap().unwrap();
            if is_asleep(&threads) || Duration::from_secs(10) < start.elapsed() {
                break threads;
            }
            thread::sleep(Duration::from_millis(1));
        };
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!((1, 1, false), (threads.total, threads.looked_at, threads.traced));
        assert_eq!(vec![(ThreadState::Sleeping, 1)], {
            let groups = threads.groups.iter();
            groups.map(|group| (group.state, group.count)).collect::<Vec<_>>()
        });
        assert!(is_asleep(&threads), "{threads:?}");
        assert_eq!(Ok(None), look(pid, Path::new("/sys/fs/cgroup")));
    }

    #[test]
    fn a_look_is_followed_by_a_rest() {
        let mut looks = Looks::new(Path::new("/"));
        let (at, me) = (Monotonic(1), Pid(std::process::id()));
        looks.ask(at, &[]);
        assert!(!looks.looking.is_busy());
        looks.ask(at, &[me]);
        let start = Instant::now();
        let mut found = Found::new();
        while found.is_empty() && start.elapsed() < Duration::from_secs(10) {
            found = looks.found(at);
        }
        assert!(found[&me].is_ok() && at < looks.rest_until, "{found:?} {looks:?}");
        // whoever is asked for first, and once
        looks.ask(at, &[me]);
        looks.ask(at, &[Pid(1)]);
        assert!(!looks.looking.is_busy() && looks.asked == [me], "{looks:?}");
        looks.ask(looks.rest_until, &[]);
        assert!(looks.looking.is_busy() && looks.asked.is_empty(), "{looks:?}");
    }

    #[test]
    fn no_more_threads_are_looked_at_than_may_be() {
        let end = Barrier::new(usize::try_from(MOST).unwrap() + 1);
        let found = thread::scope(|scope| {
            for _ in 0..MOST {
                scope.spawn(|| end.wait());
            }
            let found = look(Pid(std::process::id()), Path::new("/none")).unwrap().unwrap();
            end.wait();
            found
        });
        assert_eq!((MOST, None), (found.looked_at, found.frozen));
        assert!(MOST < found.total, "{found:?}");
        assert_eq!(MOST, found.groups.iter().map(|group| group.count).sum::<u64>());
        assert!(found.groups.is_sorted_by(|a, b| b.count <= a.count), "{found:?}");
    }
}
