//! The clocks that a sample is stamped with.

use rustix::time::{ClockId, Timespec, clock_gettime};

use crate::time::{Monotonic, Nanos, UnixTime};

/// `CLOCK_MONOTONIC`, which eBPF's `bpf_ktime_get_ns` counts too.
#[must_use]
pub fn monotonic() -> Monotonic {
    Monotonic(nanos(clock_gettime(ClockId::Monotonic)))
}

/// `CLOCK_REALTIME`. May jump.
#[must_use]
pub fn realtime() -> UnixTime {
    UnixTime(nanos(clock_gettime(ClockId::Realtime)))
}

/// CPU time that the calling thread has used, in user space and in the kernel.
#[must_use]
pub fn thread_cpu() -> Nanos {
    Nanos(nanos(clock_gettime(ClockId::ThreadCPUTime)))
}

/// Zero before 1970; saturates after 584 years.
fn nanos(time: Timespec) -> u64 {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let rest = u64::try_from(time.tv_nsec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_run_forwards() {
        let (at, cpu) = (monotonic(), thread_cpu());
        let year_2020 = UnixTime(1_577_836_800_000_000_000);
        assert!(year_2020 < realtime());
        while thread_cpu() == cpu {}
        assert!(at < monotonic());
    }

    #[test]
    fn seconds_and_nanoseconds_add_up() {
        #[track_caller]
        fn check(tv_sec: i64, tv_nsec: i64, expected: u64) {
            assert_eq!(nanos(Timespec { tv_sec, tv_nsec }), expected);
        }
        check(0, 0, 0);
        check(1, 2, 1_000_000_002);
        check(-1, 5, 5);
        check(i64::MAX, 0, u64::MAX);
    }
}
