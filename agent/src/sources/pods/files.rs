//! The files on a node that name containers and pods.
//!
//! In: what kubelet and container runtimes write, below a root. Out: names in a [`Workload`] (never
//! its unit), or nothing: a file that is missing, half written, too large or not a file names
//! nothing. Cost: 3 µs for a file that is not there. Not here: when to look (`names.rs`).
//!
//! The root is not left: openat2(2) resolves each link, absolute ones too, as if the root were `/`
//! (`RESOLVE_IN_ROOT`, Linux 5.6; fs/namei.c). Of the links in /var/log/containers only the names
//! are read.

use std::{
    collections::BTreeMap,
    fs::File,
    io::Read,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    sync::Arc,
};

use rustix::{
    fs::{CWD, Mode, OFlags, RawDir, ResolveFlags, openat, openat2},
    io::Errno,
};
use serde::{Deserialize, de::DeserializeOwned};

use super::{
    cgroup::{is_container_id, uid},
    name,
};
use crate::input::Workload;

/// Larger files are not read.
const LARGEST: u64 = 1 << 20;

/// Entries of a directory that are looked at; kubelet runs 110 pods unless told otherwise.
const MOST_ENTRIES: usize = 16_384;

/// Names that are kept of one directory or list.
const MOST_NAMES: usize = 4_096;

/// Names by container id or pod UID.
pub(super) type ByKey = BTreeMap<Arc<str>, Workload>;

/// Where the OCI configuration of a container is, which has the pod in its annotations; `ID` stands
/// for the container's id.
const OCI_CONFIGS: &[&str] = &[
    // containerd's bundles (core/runtime/v2/bundle.go), and where k3s, RKE2 and k0s put them
    "run/containerd/io.containerd.runtime.v2.task/k8s.io/ID/config.json",
    "run/k3s/containerd/io.containerd.runtime.v2.task/k8s.io/ID/config.json",
    "run/k0s/containerd/io.containerd.runtime.v2.task/k8s.io/ID/config.json",
    // CRI-O's, in containers/storage: the run root, and the graph root
    "run/containers/storage/overlay-containers/ID/userdata/config.json",
    "var/lib/containers/storage/overlay-containers/ID/userdata/config.json",
];

/// docker's own (`Container.toDisk`, moby daemon/container/container.go).
const DOCKER_CONFIG: &str = "var/lib/docker/containers/ID/config.v2.json";

/// podman's containers by name, those of `podman run --rm` and of a transient store apart
/// (containers/storage, containers.go).
const STORES: &[&str] = &[
    "var/lib/containers/storage/overlay-containers/containers.json",
    "var/lib/containers/storage/overlay-containers/volatile-containers.json",
    "run/containers/storage/overlay-containers/volatile-containers.json",
];

/// Names of the pods that kubelet keeps logs of, by UID: `<namespace>_<pod>_<uid>`
/// (`BuildPodLogsDirectory`, pkg/kubelet/kuberuntime/helpers.go).
pub(super) fn pods(root: &Path) -> ByKey {
    list(root, "var/log/pods", |entry| {
        let mut parts = entry.split('_');
        let (namespace, pod, uid) =
            (name(parts.next()?)?, name(parts.next()?)?, uid(parts.next()?)?);
        let found = Workload { namespace: Some(namespace), pod: Some(pod), ..Workload::default() };
        parts.next().is_none().then_some((uid, found))
    })
}

/// Names of the containers that kubelet keeps logs of, by id: `<pod>_<namespace>_<container>-<id>.log`,
/// cut after 255 bytes, where the id is lost (`logSymlink`, pkg/kubelet/kuberuntime/legacy.go).
pub(super) fn containers(root: &Path) -> ByKey {
    list(root, "var/log/containers", |entry| {
        let (names, id) = entry.strip_suffix(".log")?.rsplit_once('-')?;
        let mut parts = names.split('_');
        let found = Workload {
            pod: Some(name(parts.next()?)?),
            namespace: Some(name(parts.next()?)?),
            container: Some(name(parts.next()?)?),
            ..Workload::default()
        };
        (is_container_id(id) && parts.next().is_none()).then(|| (id.into(), found))
    })
}

/// Names of the containers in podman's stores, by id.
pub(super) fn stored(root: &Path) -> ByKey {
    let of_podman = |name: &&String| !name.starts_with("k8s_");
    let mut found = ByKey::new();
    for store in STORES.iter().filter_map(|path| read_json::<Vec<Stored>>(root, path)) {
        for Stored { id, names } in store {
            let container = names.iter().flatten().find(of_podman).and_then(|text| name(text));
            if is_container_id(&id) && container.is_some() && found.len() < MOST_NAMES {
                found.insert(id.into(), Workload { container, ..Workload::default() });
            }
        }
    }
    found
}

/// What the container's own configuration says. `id` has to be a container id.
pub(super) fn container(root: &Path, id: &str) -> Workload {
    let oci = OCI_CONFIGS
        .iter()
        .filter_map(|path| read_json::<Oci>(root, &path.replace("ID", id)))
        .filter_map(|config| config.annotations)
        .map(|annotations| annotations.names())
        .find(|found| found.pod.is_some());
    oci.or_else(|| Some(read_json::<Docker>(root, &DOCKER_CONFIG.replace("ID", id))?.names()))
        .unwrap_or_default()
}

/// An entry of containers/storage. CRI-O's are there, too, named `k8s_…`; their configuration says
/// more.
#[derive(Deserialize)]
struct Stored {
    id: String,
    names: Option<Vec<String>>,
}

/// An OCI runtime configuration.
#[derive(Deserialize)]
struct Oci {
    annotations: Option<Annotations>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Docker {
    name: Option<String>,
    config: Option<DockerConfig>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerConfig {
    labels: Option<Annotations>,
}

/// What names a pod: containerd's words (internal/cri/annotations/annotations.go), and kubelet's
/// (pkg/kubelet/types/labels.go), which CRI-O and cri-dockerd hand on.
#[derive(Deserialize)]
struct Annotations {
    #[serde(rename = "io.kubernetes.cri.sandbox-name")]
    cri_pod: Option<String>,
    #[serde(rename = "io.kubernetes.cri.sandbox-namespace")]
    cri_namespace: Option<String>,
    #[serde(rename = "io.kubernetes.cri.sandbox-uid")]
    cri_uid: Option<String>,
    #[serde(rename = "io.kubernetes.cri.container-name")]
    cri_container: Option<String>,
    #[serde(rename = "io.kubernetes.pod.name")]
    pod: Option<String>,
    #[serde(rename = "io.kubernetes.pod.namespace")]
    namespace: Option<String>,
    #[serde(rename = "io.kubernetes.pod.uid")]
    uid: Option<String>,
    #[serde(rename = "io.kubernetes.container.name")]
    container: Option<String>,
}

impl Annotations {
    /// A sandbox is no container of the pod's, although CRI-O and cri-dockerd name it `POD`.
    fn names(&self) -> Workload {
        let either = |first: &Option<String>, second: &Option<String>| {
            first.as_deref().and_then(name).or_else(|| second.as_deref().and_then(name))
        };
        Workload {
            unit: None,
            container_id: None,
            pod_uid: self.cri_uid.as_deref().or(self.uid.as_deref()).and_then(uid),
            namespace: either(&self.cri_namespace, &self.namespace),
            pod: either(&self.cri_pod, &self.pod),
            container: either(&self.cri_container, &self.container)
                .filter(|container| &**container != "POD"),
        }
    }
}

impl Docker {
    /// A container that is in no pod goes by docker's own name for it, which begins with `/`.
    fn names(&self) -> Workload {
        let labels = self.config.as_ref().and_then(|config| config.labels.as_ref());
        let found = labels.map(Annotations::names).unwrap_or_default();
        if found.pod.is_some() {
            return found;
        }
        let container = self.name.as_deref().and_then(|text| name(text.trim_start_matches('/')));
        Workload { container, ..Workload::default() }
    }
}

fn read_json<T: DeserializeOwned>(root: &Path, path: &str) -> Option<T> {
    let mut file = File::from(open_in(root, path, OFlags::empty()).ok()?);
    let about = file.metadata().ok()?;
    if !about.is_file() || LARGEST < about.len() {
        return None;
    }
    let mut text = Vec::new();
    // It may grow meanwhile.
    file.by_ref().take(LARGEST).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

/// The names in a directory's entries; those that `parse` cannot read are passed over.
fn list(root: &Path, path: &str, parse: impl Fn(&str) -> Option<(Arc<str>, Workload)>) -> ByKey {
    let mut found = ByKey::new();
    let Ok(dir) = open_in(root, path, OFlags::DIRECTORY) else { return found };
    let mut buffer = Vec::with_capacity(32 * 1024);
    let mut entries = RawDir::new(dir, buffer.spare_capacity_mut());
    for _ in 0..MOST_ENTRIES {
        let Some(Ok(entry)) = entries.next() else { break };
        if MOST_NAMES <= found.len() {
            break;
        }
        found.extend(entry.file_name().to_str().ok().and_then(&parse));
    }
    found
}

/// Opens a path below the root for reading. Does not wait for the other end of a FIFO.
fn open_in(root: &Path, path: &str, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let flags = flags | OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let dir = openat(CWD, root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    match openat2(dir.as_fd(), path, flags, Mode::empty(), resolve) {
        // Linux before 5.6, or a seccomp filter of that age. No link leads out of `/`.
        Err(Errno::NOSYS | Errno::PERM) if root == Path::new("/") => {
            openat(dir, path, flags, Mode::empty())
        }
        result => result,
    }
}
