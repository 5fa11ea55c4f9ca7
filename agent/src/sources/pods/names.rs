//! What is known of containers and pods by name, and when to ask the node's files again.
//!
//! In: `files.rs`. Out: the names in a [`Workload`]. Cost: one lookup in a map for a container that
//! is known; bounded by the intervals and numbers below for all others.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::files::{self, ByKey};
use crate::{
    input::Workload,
    time::{Monotonic, Nanos},
};

/// Containers and pods that are remembered; beyond that the longest unused is forgotten.
const MOST: usize = 4_096;

/// Directories and lists are read at most this often, and so is a container asked for that nothing
/// names completely.
const ASK_EVERY: Nanos = Nanos(10_000_000_000);

/// docker and podman can rename a container while it runs.
const RENAMED_EVERY: Nanos = Nanos(60_000_000_000);

/// Names by container id or, of a process in no container, by pod UID.
#[derive(Debug)]
pub(super) struct Names {
    root: PathBuf,
    known: BTreeMap<Arc<str>, Entry>,
    pods: Listing,
    containers: Listing,
    stored: Listing,
}

/// What was found for one key.
#[derive(Debug)]
struct Entry {
    names: Workload,
    asked: Monotonic,
    used: Monotonic,
}

/// A directory or list as it was read last.
#[derive(Debug, Default)]
struct Listing {
    names: ByKey,
    read: Option<Monotonic>,
}

impl Names {
    pub(super) fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            known: BTreeMap::new(),
            pods: Listing::default(),
            containers: Listing::default(),
            stored: Listing::default(),
        }
    }

    /// How many containers and pods are remembered.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.known.len()
    }

    /// Adds the names that the node's files know to what the cgroup's path told.
    pub(super) fn complete(&mut self, workload: &mut Workload, at: Monotonic) {
        let Some(key) = workload.container_id.as_ref().or(workload.pod_uid.as_ref()).cloned()
        else {
            return;
        };
        match self.known.get_mut(&key) {
            Some(entry) if !entry.is_due(at) => entry.used = at,
            Some(_) | None => {
                let names = self.look_up(workload, at);
                self.remember(&key, names, at);
            }
        }
        if let Some(entry) = self.known.get(&key) {
            fill(workload, &entry.names);
        }
    }

    /// The directories come first: one reading names all of a node's pods.
    fn look_up(&mut self, workload: &Workload, at: Monotonic) -> Workload {
        let root = &self.root;
        let mut found = Workload::default();
        if let Some(id) = &workload.container_id {
            self.containers.refresh(at, id, || files::containers(root));
            fill_from(&mut found, &self.containers.names, id);
            if found.container.is_none() {
                fill(&mut found, &files::container(root, id));
            }
            if found == Workload::default() {
                self.stored.refresh(at, id, || files::stored(root));
                fill_from(&mut found, &self.stored.names, id);
            }
        }
        let uid = workload.pod_uid.clone().or_else(|| found.pod_uid.clone());
        if let Some(uid) = uid.filter(|_| found.pod.is_none()) {
            self.pods.refresh(at, &uid, || files::pods(root));
            fill_from(&mut found, &self.pods.names, &uid);
        }
        found
    }

    /// What is found no more keeps the names it had.
    fn remember(&mut self, key: &Arc<str>, names: Workload, at: Monotonic) {
        let mut entry = Entry { names, asked: at, used: at };
        if let Some(old) = self.known.remove(key) {
            fill(&mut entry.names, &old.names);
        } else if MOST <= self.known.len() {
            let unused = self.known.iter().min_by_key(|(_, entry)| entry.used);
            if let Some(unused) = unused.map(|(key, _)| key.clone()) {
                self.known.remove(&unused);
            }
        }
        self.known.insert(key.clone(), entry);
    }
}

impl Entry {
    /// Names in Kubernetes stay as they are.
    fn is_due(&self, at: Monotonic) -> bool {
        let Workload { pod, container, .. } = &self.names;
        match (pod, container) {
            (Some(_), Some(_)) => false,
            (None, Some(_)) => RENAMED_EVERY <= at - self.asked,
            (_, None) => ASK_EVERY <= at - self.asked,
        }
    }
}

impl Listing {
    /// Reads it again where it does not have `key`, or what it has may be old.
    fn refresh(&mut self, at: Monotonic, key: &str, read: impl FnOnce() -> ByKey) {
        let age = self.read.map(|read| at - read);
        let is_due = match age {
            None => true,
            Some(age) if self.names.contains_key(key) => RENAMED_EVERY <= age,
            Some(age) => ASK_EVERY <= age,
        };
        if is_due {
            self.names = read();
            self.read = Some(at);
        }
    }
}

fn fill_from(workload: &mut Workload, names: &ByKey, key: &str) {
    if let Some(found) = names.get(key) {
        fill(workload, found);
    }
}

/// Takes from `names` what `workload` lacks.
fn fill(workload: &mut Workload, names: &Workload) {
    let Workload { unit: _, container_id: _, pod_uid, namespace, pod, container } = names;
    for (to, from) in [
        (&mut workload.pod_uid, pod_uid),
        (&mut workload.namespace, namespace),
        (&mut workload.pod, pod),
        (&mut workload.container, container),
    ] {
        if to.is_none() {
            to.clone_from(from);
        }
    }
}
