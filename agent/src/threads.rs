//! What the threads of a process did at one instant: why nobody accepts.

use std::{fmt, sync::Arc};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::time::Monotonic;

/// The threads of one process, as they were found one after the other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Threads {
    /// When they were looked at.
    pub at: Monotonic,
    /// How many there are.
    pub total: u64,
    /// How many of them were looked at; the others are in no group.
    pub looked_at: u64,
    /// Whether a debugger is attached to the process.
    pub traced: bool,
    /// Whether its control group (v2) is frozen. `None`: not known.
    pub frozen: Option<bool>,
    /// Those that do the same, most first.
    pub groups: Vec<ThreadGroup>,
}

/// Threads that do the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThreadGroup {
    /// Whether they run or sleep.
    pub state: ThreadState,
    /// The kernel's function that they sleep in. `None`: they do not sleep, or it may not be read.
    pub wchan: Option<Arc<str>>,
    /// The system call that they sleep in. `None`: in none, or it may not be read.
    pub call: Option<Call>,
    /// How many they are.
    pub count: u64,
}

/// What a thread does (`task_state_array`, fs/proc/array.c).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum ThreadState {
    /// `R`: runs, or would if there were a processor.
    Running,
    /// `S`: waits for something, and a signal wakes it.
    Sleeping,
    /// `D`: waits for something, mostly a disk, and no signal wakes it.
    DiskSleep,
    /// `T`: stopped by a signal.
    Stopped,
    /// `t`: stopped by a debugger.
    Traced,
    /// `I` or `P`: a thread of the kernel that has nothing to do.
    Idle,
    /// `Z` or `X`: has ended.
    Zombie,
}

/// A system call, or several that wait for the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Call {
    /// accept(2), accept4(2).
    Accept,
    /// epoll_wait(2) and its kin.
    EpollWait,
    /// poll(2), select(2) and their kin.
    Poll,
    /// futex(2) and its kin: a lock, a condition, another thread's end.
    Futex,
    /// read(2), recv(2) and their kin.
    Read,
    /// write(2), send(2) and their kin.
    Write,
    /// connect(2).
    Connect,
    /// nanosleep(2), clock_nanosleep(2).
    Nanosleep,
    /// wait4(2), waitid(2): a child's end.
    Wait,
    /// io_uring_enter(2).
    IoUringEnter,
    /// restart_syscall(2): a sleep, poll or wait for a futex that goes on after a stop.
    RestartSyscall,
    /// Any other, by its number on this machine.
    Other(u32),
}

impl fmt::Display for Call {
    /// A name, or the number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Accept => "accept",
            Self::EpollWait => "epoll_wait",
            Self::Poll => "poll",
            Self::Futex => "futex",
            Self::Read => "read",
            Self::Write => "write",
            Self::Connect => "connect",
            Self::Nanosleep => "nanosleep",
            Self::Wait => "wait",
            Self::IoUringEnter => "io_uring_enter",
            Self::RestartSyscall => "restart_syscall",
            Self::Other(number) => return number.fmt(f),
        })
    }
}
