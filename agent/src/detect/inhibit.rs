//! Which alerts are not told, because others about the same listener say it better; pure.
//!
//! An alert names the detections that say it better. Alerts of these are found by what the subjects
//! share, so that ten thousand alerts are not compared with ten thousand.

use std::{
    collections::{HashMap, HashSet},
    iter,
    net::IpAddr,
    sync::Arc,
};

use crate::{
    detect::{
        alert::Alert,
        phase::Severity,
        subject::{Subject, SubjectKind},
    },
    id::{NetnsId, Pid},
};

/// What the subjects of two alerts share when one of them says the other better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Shared<'a> {
    Host,
    /// What a failed connect tells names all destinations without a port that is left.
    Destinations,
    Netns(Option<NetnsId>),
    Place(Place),
    Pid(Pid),
    /// A process that serves nobody: only what is critical about a listener says better what is wrong
    /// with the process behind it.
    Behind(Pid),
    /// The name of tasks, for subjects whose processes are not known: others may have the same name,
    /// and a thread another one than its process.
    Comm(&'a str),
    /// The name of tasks whose processes are not known, for any subject.
    CommAlone(&'a str),
}

/// Namespace, local address and port, remote address and port.
type Place = (Option<NetnsId>, Option<IpAddr>, Option<u16>, Option<IpAddr>, Option<u16>);

/// Marks alerts that others say better, each with one of these that is told.
pub(super) fn inhibit(alerts: &mut [Arc<Alert>]) {
    let all = alerts.to_vec();
    let index = Index::new(&all);
    let better: Vec<Option<usize>> = all.iter().map(|alert| index.better(alert)).collect();
    for (alert, &by) in alerts.iter_mut().zip(&better) {
        // detections make no ring, so this comes to one that nobody says better
        let told = iter::successors(by, |&at| better[at]).last();
        let inhibited_by = told.map(|at| all[at].about.name);
        if alert.inhibited_by != inhibited_by {
            Arc::make_mut(alert).inhibited_by = inhibited_by;
        }
    }
}

/// The first alert of each detection that says others better, by what these share with it.
struct Index<'a>(HashMap<(&'static str, Shared<'a>), usize>);

impl<'a> Index<'a> {
    fn new(all: &'a [Arc<Alert>]) -> Self {
        let names = all.iter().flat_map(|alert| alert.about.inhibited_by);
        let names: HashSet<&'static str> = names.copied().collect();
        let mut index = HashMap::new();
        for (at, alert) in all.iter().enumerate() {
            if names.contains(alert.about.name) {
                for shared in offers(alert) {
                    index.entry((alert.about.name, shared)).or_insert(at);
                }
            }
        }
        Self(index)
    }

    /// The alert that says this one better: the first one of the first detection that it names.
    fn better(&self, alert: &'a Alert) -> Option<usize> {
        if self.0.is_empty() {
            return None;
        }
        let mut names = alert.about.inhibited_by.iter();
        names.find_map(|&name| {
            asks(&alert.subject).filter_map(|shared| self.0.get(&(name, shared)).copied()).min()
        })
    }
}

/// By what an alert is found.
fn offers(alert: &Alert) -> impl Iterator<Item = Shared<'_>> {
    let by = &alert.subject;
    let tasks = matches!(by.kind, SubjectKind::Caller | SubjectKind::Process);
    let comm = by.labels.comm.as_deref().filter(|_| tasks);
    let first = match by.kind {
        SubjectKind::Host | SubjectKind::Agent => Some(Shared::Host),
        SubjectKind::Caller => Some(Shared::Destinations),
        SubjectKind::Process => None,
        SubjectKind::Namespace => Some(Shared::Netns(by.labels.netns)),
        SubjectKind::Listener
        | SubjectKind::Expected
        | SubjectKind::Destination
        | SubjectKind::Udp => Some(Shared::Place(place(by))),
    };
    let alone = comm.filter(|_| by.pids.is_empty()).map(Shared::CommAlone);
    let is_critical = by.kind == SubjectKind::Listener && alert.severity == Severity::Critical;
    let pids = by.pids.iter().filter_map(move |&pid| match (tasks, is_critical) {
        (true, _) => Some(Shared::Pid(pid)),
        (false, true) => Some(Shared::Behind(pid)),
        (false, false) => None,
    });
    first.into_iter().chain(comm.map(Shared::Comm)).chain(alone).chain(pids)
}

/// By what those are found that may say an alert about `of` better.
fn asks(of: &Subject) -> impl Iterator<Item = Shared<'_>> {
    let leads_away = of.kind == SubjectKind::Destination;
    let comm = of.labels.comm.as_deref().map(|comm| match of.pids.is_empty() {
        true => Shared::Comm(comm),
        false => Shared::CommAlone(comm),
    });
    let always = [Shared::Place(place(of)), Shared::Netns(of.labels.netns), Shared::Host];
    let sometimes = [leads_away.then_some(Shared::Destinations), comm].into_iter().flatten();
    let is_process = of.kind == SubjectKind::Process;
    let pids = of.pids.iter().flat_map(move |&pid| {
        [Some(Shared::Pid(pid)), is_process.then_some(Shared::Behind(pid))].into_iter().flatten()
    });
    always.into_iter().chain(sometimes).chain(pids)
}

fn place(of: &Subject) -> Place {
    let labels = &of.labels;
    (labels.netns, labels.addr, labels.port, labels.dst, labels.dst_port)
}

#[cfg(test)]
mod tests;
