//! Descriptors: of the host, and of the processes that own listeners.

use super::{Finding, Host, of_host};
use crate::{
    detect::{
        command::{ample_fds, raise_nofile},
        phase::Severity,
        shell::{noted, quoted},
        subject::{Labels, Subject, SubjectKind},
    },
    id::Pid,
    model::snapshot::Process,
};

/// The soft limit that a process has where nobody set one.
const USUAL: u64 = 1_024;

pub(super) fn look(host: &Host<'_>, findings: &mut Vec<Finding>) {
    findings.extend(of_all(host));
    for (&pid, process) in &host.snapshot.processes {
        findings.extend(of_one(host, pid, process));
    }
}

fn of_all(host: &Host<'_>) -> Option<Finding> {
    let (open, most) = (host.snapshot.host.open_fds.ok()?, host.snapshot.host.max_fds.ok()?);
    let severity = match open as f64 / most.max(1) as f64 {
        share if 0.95 <= share => Severity::Critical,
        share if 0.8 <= share => Severity::Warning,
        _ => return None,
    };
    Some(Finding {
        name: "FileMax",
        severity,
        subject: of_host(),
        seen: format!("{open} of {most} files are open (fs.file-max)"),
        why: "At the limit open, socket and accept fail with ENFILE in every process without \
              CAP_SYS_ADMIN."
            .to_owned(),
        mend: format!("sysctl -w fs.file-max={}", most.saturating_mul(2)),
        restart: false,
    })
}

fn of_one(host: &Host<'_>, pid: Pid, process: &Process) -> Option<Finding> {
    let (open, most) = (process.now.open_fds.ok()?, process.now.max_fds.ok()?);
    let share = open as f64 / most.max(1) as f64;
    let severity = match share {
        share if 0.8 <= share => Severity::Warning,
        share if 0.5 <= share && most <= USUAL => Severity::Info,
        _ => return None,
    };
    let wanted = ample_fds(most);
    let nr_open = host.snapshot.host.nr_open.ok().filter(|&nr_open| nr_open < wanted);
    let raise = nr_open.map_or_else(String::new, |_| format!("sysctl -w fs.nr_open={wanted}; "));
    let unit = process.now.workload.unit.as_deref();
    let stay = unit.map_or_else(String::new, |unit| {
        format!("for good: LimitNOFILE={wanted} by systemctl edit {}", quoted(unit))
    });
    let ceiling =
        nr_open.map_or_else(String::new, |nr_open| format!("; fs.nr_open allows {nr_open}"));
    Some(Finding {
        name: "DescriptorLimit",
        severity,
        subject: Subject {
            kind: SubjectKind::Process,
            name: format!("{}/{pid}", process.now.comm),
            labels: Labels { comm: Some(process.now.comm.clone()), ..Labels::default() },
            pids: [pid].into(),
        },
        seen: format!("{open} of {most} descriptors are open (RLIMIT_NOFILE){ceiling}"),
        why: "Each connection takes one: at the limit accept fails with EMFILE, and clients wait in the \
              accept queue for a program that looks alive."
            .to_owned(),
        mend: noted(&format!("{raise}{}", raise_nofile(pid, most)), &stay),
        restart: false,
    })
}
