use std::{fs, os::unix::fs::symlink, path::PathBuf, time::Duration};

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

const ID: &str = "7be7ca56452ce0f69575654683e3b8cdc61d8898d06caf92fbf5ffffcd856bd7";
const UID: &str = "01b4b887-7635-4346-9c20-58a294bbb034";
const BUNDLES: &str = "run/containerd/io.containerd.runtime.v2.task/k8s.io";
const DOCKER: &str = "var/lib/docker/containers";

/// An instant, in seconds.
fn at(seconds: u64) -> Monotonic {
    Monotonic::default() + Duration::from_secs(seconds).into()
}

/// What is known, as `key=value`; the ids cut to 8 characters.
fn show(found: &Workload) -> String {
    let fields = [
        ("unit", &found.unit, 99),
        ("id", &found.container_id, 8),
        ("uid", &found.pod_uid, 8),
        ("namespace", &found.namespace, 253),
        ("pod", &found.pod, 253),
        ("container", &found.container, 253),
    ];
    let known = fields.iter().filter_map(|(key, value, cut)| Some((key, value.as_ref()?, cut)));
    known.map(|(key, value, cut)| format!("{key}={value:.cut$}")).collect::<Vec<_>>().join(" ")
}

/// A node in tests/fixtures/pods: each process, and what is known of it.
#[track_caller]
fn check_node(node: &str, expected: &[(&str, &str)]) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/pods").join(node);
    let mut pods = Pods::new(&root);
    let processes = fs::read_dir(root.join("proc")).unwrap().count();
    assert_eq!(processes, expected.len(), "processes of {node}");
    for (process, expected) in expected {
        let text = fs::read_to_string(root.join("proc").join(process).join("cgroup")).unwrap();
        assert_eq!(show(&pods.workload(&text, at(100))), *expected, "{node}: {process}");
        assert_eq!(show(&pods.workload(&text, at(111))), *expected, "{node}: {process}, again");
    }
}

#[test]
fn containerd_names_pods_and_containers() {
    check_node(
        "containerd",
        &[
            (
                "coredns",
                "id=7be7ca56 uid=01b4b887 namespace=kube-system pod=coredns-6d4b75cb6d-w4b72 \
                 container=coredns",
            ),
            (
                "apiserver",
                "id=2884d57c uid=8daa50c3 namespace=kube-system pod=kube-apiserver-node-1 \
                 container=kube-apiserver",
            ),
            (
                "proxy",
                "id=2032491d uid=55c6c714 namespace=kube-system pod=kube-proxy-x7k2p \
                 container=kube-proxy",
            ),
            (
                "pause",
                "id=2f8ce2bd uid=01b4b887 namespace=kube-system pod=coredns-6d4b75cb6d-w4b72",
            ),
            ("kubelet", "unit=kubelet.service"),
        ],
    );
}

#[test]
fn crio_names_pods_and_containers() {
    let pod = "uid=5b5e07db namespace=kube-system pod=coredns-6d4b75cb6d-4mtdm";
    let conmon =
        "crio-conmon-438e2ba9d5970597608a7df68ae72f6085a1460f976f964ed5f369c793eaa4fe.scope";
    check_node(
        "crio",
        &[
            ("coredns", &format!("id=438e2ba9 {pod} container=coredns")),
            ("pause", &format!("id=50002771 {pod}")),
            ("conmon", &format!("unit={conmon} {pod}")),
            ("exited", &format!("id=ef4aae39 {pod}")),
        ],
    );
}

#[test]
fn docker_names_its_containers_and_those_of_pods() {
    let pod = "uid=c89f03bb namespace=istio-system pod=istiod-cbcb9f67b-ls56l";
    check_node(
        "docker",
        &[
            ("web", "id=9ec39b91 container=web"),
            ("web_v1", "id=9ec39b91 container=web"),
            ("discovery", &format!("id=d0b3604b {pod} container=discovery")),
            ("pause", &format!("id=ba0bd848 {pod}")),
            ("dockerd", "unit=docker.service"),
        ],
    );
}

#[test]
fn podman_names_its_containers() {
    let conmon =
        "libpod-conmon-579635db3532e954d07927bdc32bd435bd082f03a0696ded072f04d762a18775.scope";
    check_node(
        "podman",
        &[
            ("httpd", "id=579635db container=contenedor1"),
            ("quadlet", "unit=web.service id=66d6d4ac container=systemd-web"),
            ("conmon", &format!("unit={conmon}")),
            ("rootless", "id=deacae65"),
        ],
    );
}

#[test]
fn systemd_names_units() {
    check_node(
        "systemd",
        &[
            ("nginx", "unit=nginx.service"),
            ("session", "unit=session-3.scope"),
            ("user", "unit=caddy.service"),
            ("machine", r"unit=machine-qemu\x2d1\x2dweb.scope"),
            ("hybrid", "unit=sshd.service"),
            ("kthread", ""),
        ],
    );
}

/// A node that a test builds and changes.
struct Node {
    dir: TempDir,
    pods: Pods,
}

impl Node {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let pods = Pods::new(dir.path());
        Self { dir, pods }
    }

    fn path(&self, path: &str) -> PathBuf {
        let path = self.dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        path
    }

    fn write(&self, path: &str, text: impl AsRef<[u8]>) {
        fs::write(self.path(path), text).unwrap();
    }

    fn mkdir(&self, path: &str) {
        fs::create_dir_all(self.path(path)).unwrap();
    }

    /// Of a process in the container and pod that these tests have.
    #[track_caller]
    fn check(&mut self, seconds: u64, expected: &str) {
        let text = format!("0::/kubepods/burstable/pod{UID}/{ID}\n");
        let expected = format!("id=7be7ca56 uid=01b4b887 {expected}");
        assert_eq!(show(&self.pods.workload(&text, at(seconds))), expected.trim_end());
    }

    #[track_caller]
    fn check_docker(&mut self, seconds: u64, expected: &str) {
        let found = self.pods.workload(&format!("0::/docker/{ID}\n"), at(seconds));
        assert_eq!(show(&found), format!("id=7be7ca56 {expected}").trim_end());
    }
}

#[test]
fn a_pod_is_named_once_its_files_are_whole() {
    let mut node = Node::new();
    node.check(0, "");
    node.mkdir(&format!("var/log/pods/default_web-0_{}", &UID[..20]));
    node.write(&format!("{BUNDLES}/{ID}/config.json"), r#"{"annotations": {"io.kubernetes.cri"#);
    node.check(10, "");
    node.mkdir(&format!("var/log/pods/default_web-0_{UID}"));
    node.check(15, "");
    node.check(20, "namespace=default pod=web-0");
    node.write(
        &format!("{BUNDLES}/{ID}/config.json"),
        r#"{"annotations": {"io.kubernetes.cri.sandbox-name": "web-0",
            "io.kubernetes.cri.sandbox-namespace": "default",
            "io.kubernetes.cri.container-name": "nginx"}}"#,
    );
    node.check(29, "namespace=default pod=web-0");
    node.check(30, "namespace=default pod=web-0 container=nginx");
    fs::remove_dir_all(node.path("run")).unwrap();
    fs::remove_dir_all(node.path("var")).unwrap();
    node.check(1_000, "namespace=default pod=web-0 container=nginx");
}

#[test]
fn a_container_that_appears_between_two_listings_is_named_by_its_bundle() {
    let mut node = Node::new();
    let other = "f".repeat(64);
    node.pods.workload(&format!("0::/docker/{other}\n"), at(0));
    node.write(&format!("var/log/containers/web-0_default_nginx-{ID}.log"), "");
    node.write(
        &format!("{BUNDLES}/{ID}/config.json"),
        r#"{"annotations": {"io.kubernetes.cri.sandbox-name": "of-the-bundle"}}"#,
    );
    node.check(1, "pod=of-the-bundle");
    node.check(11, "namespace=default pod=web-0 container=nginx");
}

#[test]
fn a_renamed_container_gets_its_name_within_a_minute() {
    let mut node = Node::new();
    let config = format!("{DOCKER}/{ID}/config.v2.json");
    node.write(&config, r#"{"Name": "/blue", "Config": {"Labels": null}}"#);
    node.check_docker(0, "container=blue");
    node.write(&config, r#"{"Name": "/green"}"#);
    node.check_docker(59, "container=blue");
    node.check_docker(60, "container=green");
    fs::remove_file(node.path(&config)).unwrap();
    node.check_docker(130, "container=green");
}

#[test]
fn what_no_runtime_writes_names_nothing() {
    let mut node = Node::new();
    let config = format!("{DOCKER}/{ID}/config.v2.json");
    let mut seconds = 0;
    let mut check = |node: &mut Node, text: &[u8]| {
        node.write(&config, text);
        seconds += 10;
        node.check_docker(seconds, "");
    };
    check(&mut node, b"");
    check(&mut node, b"null");
    check(&mut node, b"[]");
    check(&mut node, b"{\"Name\": 5}");
    check(&mut node, b"{\"Name\": \"/\"}");
    check(&mut node, b"{\"Name\": \"/a\\nb\"}");
    check(&mut node, b"{\"Name\": \"/a/b\"}");
    check(&mut node, b"{\"Name\": \"/a\xff\"}");
    check(&mut node, "{\"Name\": \"/é\"}".as_bytes());
    check(&mut node, format!("{{\"Name\": \"/{}\"}}", "a".repeat(254)).as_bytes());
    check(&mut node, format!("{{\"Name\": \"/a\"{}}}", " ".repeat(1 << 20)).as_bytes());
    check(&mut node, "[".repeat(100_000).as_bytes());
}

#[test]
fn entries_that_are_not_kubelets_are_passed_over() {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt};
    let mut node = Node::new();
    for entry in [
        "default_web-0",
        "default__UID",
        "a_b_c_UID",
        "de fault_web-0_UID",
        "default_web\n0_UID",
        "default_web-0_UIDx",
    ] {
        node.mkdir(&format!("var/log/pods/{}", entry.replace("UID", UID)));
    }
    let odd = [b"default_web\xff_", UID.as_bytes()].concat();
    fs::create_dir_all(node.path("var/log/pods/x").with_file_name(OsStr::from_bytes(&odd)))
        .unwrap();
    for entry in ["web-0_default-ID.log", "web-0_default_nginx-ID", "web-0_default_a\tb-ID.log"] {
        node.write(&format!("var/log/containers/{}", entry.replace("ID", ID)), "");
    }
    node.check(0, "");
    // A link that leads nowhere names its container all the same.
    symlink("/nowhere", node.path(&format!("var/log/containers/web-0_default_nginx-{ID}.log")))
        .unwrap();
    node.check(10, "namespace=default pod=web-0 container=nginx");
}

#[test]
fn files_and_directories_in_each_others_place_name_nothing() {
    let mut node = Node::new();
    node.write("var/log/pods", "");
    symlink("containers", node.path("var/log/containers")).unwrap();
    node.mkdir(&format!("{BUNDLES}/{ID}/config.json"));
    symlink("/nowhere", node.path("run/containers")).unwrap();
    node.write("var/lib/containers", "");
    let fifo = node.path(&format!("{DOCKER}/{ID}/config.v2.json"));
    let fifo_mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, fifo_mode, 0).unwrap();
    node.check(0, "");
    let mut nowhere = Pods::new(Path::new("/nowhere/at/all"));
    assert_eq!(show(&nowhere.workload(&format!("0::/docker/{ID}\n"), at(0))), "id=7be7ca56");
}

#[test]
fn links_are_followed_inside_the_root_and_never_out_of_it() {
    let outside = tempfile::tempdir().unwrap();
    fs::create_dir_all(outside.path().join(ID)).unwrap();
    let config = outside.path().join(ID).join("config.v2.json");
    fs::write(&config, r#"{"Name": "/outside"}"#).unwrap();
    let out_by_dots = format!("{}{}", "../".repeat(40), outside.path().display());
    for target in [outside.path().to_owned(), PathBuf::from(out_by_dots)] {
        let mut node = Node::new();
        symlink(target, node.path(DOCKER)).unwrap();
        node.check_docker(0, "");
    }
    let mut node = Node::new();
    symlink("/data/docker", node.path("var/lib/docker")).unwrap();
    node.write(&format!("data/docker/containers/{ID}/config.v2.json"), r#"{"Name": "/inside"}"#);
    node.check_docker(0, "container=inside");
}

#[test]
fn no_more_is_remembered_than_is_bounded() {
    let mut node = Node::new();
    node.write(&format!("{DOCKER}/{ID}/config.v2.json"), r#"{"Name": "/web"}"#);
    node.check_docker(0, "container=web");
    for n in 0..4_200 {
        node.pods.workload(&format!("0::/docker/{n:064x}\n"), at(1));
        // What is in use stays.
        node.check_docker(2, "container=web");
    }
    assert_eq!(node.pods.names.len(), 4_096);
}

#[test]
fn this_process_is_read() {
    let own = Pid(std::process::id());
    let mut pods = Pods::new(Path::new("/"));
    let found = pods.of(own, at(0)).unwrap();
    let text = fs::read_to_string("/proc/self/cgroup").unwrap();
    assert_eq!(found, pods.workload(&text, at(0)));
    assert_eq!(pods.of(Pid(u32::MAX), at(0)), Err(Absent::Unreadable));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn names_can_be_labels_whatever_the_files_say(
        name in any::<String>(), pod in any::<String>(), junk in any::<Vec<u8>>(),
    ) {
        let mut node = Node::new();
        let labels = serde_json::json!({
            "io.kubernetes.pod.name": pod, "io.kubernetes.pod.namespace": name,
            "io.kubernetes.pod.uid": name, "io.kubernetes.container.name": pod,
        });
        let config = serde_json::json!({"Name": name, "Config": {"Labels": labels}});
        node.write(&format!("{DOCKER}/{ID}/config.v2.json"), config.to_string());
        node.write(&format!("{BUNDLES}/{ID}/config.json"), junk);
        let found = node.pods.workload(&format!("0::/docker/{ID}\n"), at(0));
        for name in [&found.namespace, &found.pod, &found.pod_uid, &found.container] {
            let Some(name) = name else { continue };
            prop_assert!(!name.is_empty() && name.len() <= 253);
            prop_assert!(name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/'));
        }
    }
}
