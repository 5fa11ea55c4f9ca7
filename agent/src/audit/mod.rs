//! What is set so that it does harm, or will: limits, sysctls, descriptors; pure.
//!
//! In: one [`Snapshot`], and what the detections say of it. Out: [`Finding`]s, each with the listener that it concerns, or with the use that
//! makes it matter. Not here: what happens (`detect`), and whether the agent can work (`cli/doctor`).
//! A setting that nothing on this host suffers from is at most an info.

mod file;
mod limit;
mod namespace;
mod port;
pub mod story;
pub mod wanted;

use crate::{
    detect::{
        alert::Verdicts,
        command::set_sysctl,
        phase::Severity,
        subject::{Labels, Subject, SubjectKind},
        subject_of,
    },
    id::NetnsId,
    model::snapshot::{Listener, Namespace, Snapshot},
};

/// A setting that does harm.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// What it is called; in CamelCase, as alerts.
    pub name: &'static str,
    /// How much it matters here. An info changes no exit code.
    pub severity: Severity,
    /// What it concerns.
    pub subject: Subject,
    /// What was seen, in numbers.
    pub seen: String,
    /// Why that matters here.
    pub why: String,
    /// What mends it, as text for a shell; what no command does is a comment.
    pub mend: String,
    /// Whether the program has to be started again before that helps.
    pub restart: bool,
}

/// All findings, worst first. `verdicts`: what the detections say of the same snapshot.
#[must_use]
pub fn audit(snapshot: &Snapshot, verdicts: &Verdicts) -> Vec<Finding> {
    let host = Host { snapshot, verdicts };
    let mut findings = Vec::new();
    limit::look(&host, &mut findings);
    namespace::look(&host, &mut findings);
    port::look(&host, &mut findings);
    file::look(&host, &mut findings);
    findings.sort_by(|a, b| {
        (b.severity.cmp(&a.severity))
            .then_with(|| (a.name, &a.subject.name).cmp(&(b.name, &b.subject.name)))
    });
    findings
}

/// A snapshot, and what is asked of it more than once.
struct Host<'a> {
    snapshot: &'a Snapshot,
    verdicts: &'a Verdicts,
}

impl<'a> Host<'a> {
    fn namespace(&self, netns: NetnsId) -> Option<&'a Namespace> {
        let namespaces = &self.snapshot.namespaces;
        let at = namespaces.binary_search_by_key(&netns, |it| it.netns);
        at.ok().map(|at| &namespaces[at])
    }

    /// Listeners of a namespace that somebody listens on.
    fn listeners(&self, netns: NetnsId) -> impl Iterator<Item = &'a Listener> + use<'a> {
        let all = &self.snapshot.listeners;
        let first = all.partition_point(|it| it.key.netns < netns);
        let ours = all[first..].iter().take_while(move |it| it.key.netns == netns);
        ours.filter(|it| !it.members.is_empty())
    }

    /// The namespace of the host itself: the first one that the kernel makes has the lowest number.
    fn first(&self) -> Option<&'a Namespace> {
        self.snapshot.namespaces.first()
    }

    /// The command that sets a sysctl in a namespace.
    fn set(&self, netns: NetnsId, setting: &str) -> String {
        set_sysctl(self.snapshot, netns, setting)
    }

    fn listener(&self, listener: &Listener) -> Subject {
        subject_of(listener, self.snapshot)
    }
}

fn of_namespace(netns: NetnsId) -> Subject {
    Subject {
        kind: SubjectKind::Namespace,
        name: netns.to_string(),
        labels: Labels { netns: Some(netns), ..Labels::default() },
        pids: [].into(),
    }
}

fn of_host() -> Subject {
    Subject {
        kind: SubjectKind::Host,
        name: "this host".to_owned(),
        labels: Labels::default(),
        pids: [].into(),
    }
}

#[cfg(test)]
pub(crate) mod fixture;
#[cfg(test)]
mod tests;
