//! What the agent itself costs, by the names that Prometheus' client libraries share.
//!
//! In: `/proc/self/stat`, `limits`, `fd`. Out: [`Usage`]. Cost: three small reads per scrape,
//! about 30 µs. Read when asked for, not with the snapshot: it must not depend on the sampler.

use std::{fmt, time::Duration};

use procfs::{ProcResult, process::LimitValue};

use super::metrics::{Family, Scrape, Sink, Value};
use crate::metric::{Descriptor, Kind};

/// The agent's process.
#[derive(Clone, Copy, Debug)]
pub struct SelfProcess {
    /// When the machine booted, in seconds since 1970: read once, since `/proc/stat` grows with
    /// the processors and interrupts of the machine.
    boot_seconds: Option<u64>,
}

/// What the agent has used so far and uses now.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Usage {
    /// User and system time, all threads.
    pub cpu: Duration,
    /// Resident memory.
    pub resident_bytes: u64,
    /// Address space.
    pub virtual_bytes: u64,
    /// Open descriptors.
    pub open_fds: u64,
    /// Soft limit of descriptors; `u64::MAX` is unlimited.
    pub max_fds: u64,
    /// Seconds since 1970 at which it started; `None` if the boot time could not be read.
    pub start_seconds: Option<f64>,
    /// Threads.
    pub threads: u64,
}

impl SelfProcess {
    /// Finds the boot time.
    #[must_use]
    pub fn new() -> Self {
        Self { boot_seconds: procfs::boot_time_secs().ok() }
    }

    /// The usage now. `None` when /proc cannot be read.
    #[must_use]
    pub fn read(&self) -> Option<Usage> {
        self.try_read().ok()
    }

    fn try_read(&self) -> ProcResult<Usage> {
        let process = procfs::process::Process::myself()?;
        let stat = process.stat()?;
        let ticks = procfs::ticks_per_second() as f64;
        Ok(Usage {
            cpu: Duration::from_secs_f64((stat.utime + stat.stime) as f64 / ticks),
            resident_bytes: stat.rss * procfs::page_size(),
            virtual_bytes: stat.vsize,
            open_fds: process.fd_count()? as u64,
            max_fds: match process.limits()?.max_open_files.soft_limit {
                LimitValue::Value(n) => n,
                LimitValue::Unlimited => u64::MAX,
            },
            start_seconds: self
                .boot_seconds
                .map(|boot| boot as f64 + stat.starttime as f64 / ticks),
            threads: u64::try_from(stat.num_threads).unwrap_or(0),
        })
    }
}

impl Default for SelfProcess {
    fn default() -> Self {
        Self::new()
    }
}

/// The `process_*` families.
pub(super) const FAMILIES: &[Family] = &[
    Family {
        descriptor: describe(
            "process_cpu_seconds_total",
            Kind::Counter,
            "User and system CPU time of the agent",
            "utime + stime of /proc/self/stat",
        ),
        folds: None,
        emit: |scrape, sink| one(scrape, sink, |usage| Some(Value::Real(usage.cpu.as_secs_f64()))),
    },
    Family {
        descriptor: describe(
            "process_resident_memory_bytes",
            Kind::Gauge,
            "Resident memory of the agent",
            "rss of /proc/self/stat",
        ),
        folds: None,
        emit: |scrape, sink| one(scrape, sink, |usage| Some(Value::Unsigned(usage.resident_bytes))),
    },
    Family {
        descriptor: describe(
            "process_virtual_memory_bytes",
            Kind::Gauge,
            "Address space of the agent",
            "vsize of /proc/self/stat",
        ),
        folds: None,
        emit: |scrape, sink| one(scrape, sink, |usage| Some(Value::Unsigned(usage.virtual_bytes))),
    },
    Family {
        descriptor: describe(
            "process_open_fds",
            Kind::Gauge,
            "Open descriptors of the agent",
            "entries of /proc/self/fd",
        ),
        folds: None,
        emit: |scrape, sink| one(scrape, sink, |usage| Some(Value::Unsigned(usage.open_fds))),
    },
    Family {
        descriptor: describe(
            "process_max_fds",
            Kind::Gauge,
            "Soft limit of open descriptors of the agent",
            "Max open files of /proc/self/limits",
        ),
        folds: None,
        emit: |scrape, sink| one(scrape, sink, |usage| Some(Value::Unsigned(usage.max_fds))),
    },
    Family {
        descriptor: describe(
            "process_start_time_seconds",
            Kind::Gauge,
            "When the agent started, in seconds since 1970",
            "btime of /proc/stat + starttime of /proc/self/stat",
        ),
        folds: None,
        emit: |scrape, sink| one(scrape, sink, |usage| usage.start_seconds.map(Value::Real)),
    },
    Family {
        descriptor: describe(
            "process_threads",
            Kind::Gauge,
            "Threads of the agent",
            "num_threads of /proc/self/stat",
        ),
        folds: None,
        emit: |scrape, sink| one(scrape, sink, |usage| Some(Value::Unsigned(usage.threads))),
    },
];

const fn describe(
    name: &'static str,
    kind: Kind,
    help: &'static str,
    source: &'static str,
) -> Descriptor {
    Descriptor { name, kind, labels: &[], help, source }
}

fn one(
    scrape: &Scrape,
    sink: Sink<'_>,
    value: fn(&Usage) -> Option<Value<'static>>,
) -> fmt::Result {
    match scrape.process.as_ref().and_then(value) {
        Some(value) => sink(&[], value),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_this_process() {
        let usage = SelfProcess::new().read().expect("/proc is mounted");
        assert!(
            0 < usage.resident_bytes && usage.resident_bytes < usage.virtual_bytes,
            "{usage:?}"
        );
        assert!(0 < usage.threads && 2 < usage.open_fds && usage.open_fds <= usage.max_fds);
        // 2020 to 2100: a plausible clock.
        let started = usage.start_seconds.expect("/proc/stat has btime");
        assert!((1.577e9..4.102e9).contains(&started), "{started}");
    }
}
