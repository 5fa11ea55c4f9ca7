//! From the path of a cgroup to unit, container and pod.
//!
//! In: the text of `/proc/PID/cgroup` (`proc_cgroup_show`, kernel/cgroup/cgroup.c). Out: what the
//! path itself says of a [`Workload`]. Pure. Not here: names that the path does not have
//! (`names.rs`).
//!
//! Who writes which path:
//! - systemd: one directory per unit, below its slices; a leading `_` where the name could be taken
//!   for one of the kernel's files (`cg_escape`, src/basic/cgroup-util.c).
//! - kubelet: `kubepods/burstable/pod<uid>`, or `kubepods-burstable-pod<uid>.slice` with the systemd
//!   driver, `-` of the uid as `_`, below `--cgroup-root`, if any; guaranteed pods without the QoS
//!   part (pkg/kubelet/cm/cgroup_manager_linux.go, pod_container_manager_linux.go). A static pod's
//!   uid is an MD5 sum (`applyDefaults`, pkg/kubelet/config/common.go).
//! - runc, for containerd, CRI-O, docker, podman: `<id>` below the parent with the cgroupfs driver,
//!   `<prefix>-<id>.scope` with the systemd driver (`getUnitName`,
//!   libcontainer/cgroups/systemd/common.go). When it is told `<slice>:<prefix>:<id>` but not to use
//!   systemd, that is the directory's name. crun puts the processes into `container` below.
//! - CRI-O: `crio-<id>` with cgroupfs, too; `crio-conmon-<id>` is its monitor
//!   (internal/config/cgmgr/{cgmgr,cgroupfs,systemd}_linux.go).
//! - podman: `libpod-<id>`, and below a unit of the user's `libpod-payload-<id>` with
//!   `--cgroups=split` (`getOCICgroupPath`, libpod/container_internal_linux.go); `libpod-conmon-<id>`
//!   is its monitor (`moveConmonToCgroupAndSignal`, libpod/oci_conmon_linux.go).
//! - ECS: `/ecs/<task>/<id>`, `ecstasks.slice/…/docker-<id>.scope` (agent/api/task/task_linux.go).
//! - LXC: `lxc.payload.NAME` since 4.0, `lxc.payload/NAME` since 3.1, `lxc/NAME` before; the same with
//!   `monitor` is not the container (`DEFAULT_PAYLOAD_CGROUP_PREFIX`, src/lxc/cgroups/cgroup.h).
//! - systemd-nspawn: what runs inside is below `payload` (src/nspawn/nspawn-cgroup.c).

use std::sync::Arc;

use super::name;
use crate::input::Workload;

/// The longest name of a unit, `UNIT_NAME_MAX` (systemd, src/basic/unit-name.h).
const UNIT_NAME_MAX: usize = 255;

/// The path to judge a process by.
///
/// With cgroup v2 there is one, `0::/…`. Beside v1 hierarchies that one may stop at the runtime's
/// own service, so there `name=systemd` comes first; where neither leads below the root, the
/// controllers that every runtime uses do.
#[must_use]
pub fn parse(text: &str) -> Option<&str> {
    let mut ranked = [None; 4];
    for line in text.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(hierarchy), Some(controllers), Some(path)) =
            (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let has = |wanted| controllers.split(',').any(|controller| controller == wanted);
        let rank = match hierarchy {
            _ if has("name=systemd") => 0,
            "0" if controllers.is_empty() => 1,
            _ if has("memory") => 2,
            _ if has("pids") => 3,
            _ => continue,
        };
        // Said of a cgroup that was removed while the process is a zombie.
        ranked[rank] = Some(path.strip_suffix(" (deleted)").unwrap_or(path));
    }
    let paths = || ranked.iter().copied().flatten();
    paths().find(|path| *path != "/").or_else(|| paths().next())
}

/// Unit, container id and pod UID of a process in `path`; the container's name, where the path has
/// that instead of an id.
///
/// The innermost container counts. What runs in a container has no unit, since the only one in its
/// path would be the runtime's, or the container's own systemd's; podman's `--cgroups=split` is the
/// exception: there the unit is the container's.
#[must_use]
pub fn identify(path: &str) -> Workload {
    let mut found = Workload::default();
    let (mut inside, mut before) = (false, "");
    for component in path.split('/') {
        if let Some(uid) = pod_uid(component) {
            found.pod_uid = Some(uid);
        }
        if let Some(id) = container_id(component) {
            found.container_id = Some(id.into());
            found.container = None;
            if inside || !component.starts_with("libpod-payload-") {
                found.unit = None;
            }
            inside = true;
        } else if let Some(container) = lxc_name(before, component) {
            found.container = Some(container);
            (found.container_id, found.unit) = (None, None);
            inside = true;
        } else if component == "payload" {
            inside = true;
        } else if !inside && let Some(unit) = unit(component) {
            found.unit = Some(unit.into());
        }
        before = component;
    }
    found
}

/// The unit that has this directory: a service or scope, as systemd writes it, `\x2d` and all.
fn unit(component: &str) -> Option<&str> {
    let name = component.strip_prefix('_').unwrap_or(component);
    let prefix = name.strip_suffix(".service").or_else(|| name.strip_suffix(".scope"))?;
    // `VALID_CHARS`, src/basic/unit-name.c
    let is_valid = |byte: u8| byte.is_ascii_alphanumeric() || b":-_.\\@".contains(&byte);
    (!prefix.is_empty() && name.len() <= UNIT_NAME_MAX && name.bytes().all(is_valid))
        .then_some(name)
}

/// The id in `<id>`, `<prefix>-<id>`, `<prefix>-<id>.scope` and `<slice>:<prefix>:<id>`; none for a
/// container's monitor.
fn container_id(component: &str) -> Option<&str> {
    let name = component.strip_suffix(".scope").unwrap_or(component);
    let (prefix, id) = name.rsplit_once(['-', ':']).unwrap_or(("", name));
    (is_container_id(id) && !prefix.ends_with("conmon")).then_some(id)
}

/// Whether `text` is what every runtime under the name of container id gives: 64 hexadecimal digits.
pub(super) fn is_container_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(is_hex)
}

/// The uid in `pod<uid>`, `…-pod<uid>.slice` and `…-pod<uid>.slice:<prefix>:<id>`.
fn pod_uid(component: &str) -> Option<Arc<str>> {
    let name = component.split(':').next()?;
    match name.strip_suffix(".slice") {
        Some(slice) => {
            let last = slice.rsplit('-').next()?;
            uid(&last.strip_prefix("pod")?.replace('_', "-"))
        }
        None => uid(name.strip_prefix("pod")?),
    }
}

/// A pod's UID: a UUID or, of a static pod, 32 hexadecimal digits.
pub(super) fn uid(text: &str) -> Option<Arc<str>> {
    const DASHES: [usize; 4] = [8, 13, 18, 23];
    let is_uid = match text.len() {
        32 => text.bytes().all(is_hex),
        36 => text.bytes().enumerate().all(|(at, byte)| match DASHES.contains(&at) {
            true => byte == b'-',
            false => is_hex(byte),
        }),
        _ => false,
    };
    is_uid.then(|| text.into())
}

fn lxc_name(before: &str, component: &str) -> Option<Arc<str>> {
    match before {
        "lxc" | "lxc.payload" => name(component),
        _ => name(component.strip_prefix("lxc.payload.")?),
    }
}

fn is_hex(byte: u8) -> bool {
    byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ID: &str = "7be7ca56452ce0f69575654683e3b8cdc61d8898d06caf92fbf5ffffcd856bd7";
    const OUTER: &str = "d6701ec289c56e4391acb11d07474b3139466857a305490575508a8b7a9fcf22";
    const UID: &str = "01b4b887-7635-4346-9c20-58a294bbb034";
    const UID_: &str = "01b4b887_7635_4346_9c20_58a294bbb034";
    const STATIC: &str = "8daa50c3a64c9ff60bb9eab7b44b56fd";

    fn expand(text: &str) -> String {
        [("ID", ID), ("OUTER", OUTER), ("STATIC", STATIC), ("UID_", UID_), ("UID", UID)]
            .iter()
            .fold(text.to_owned(), |text, (word, value)| text.replace(&format!("<{word}>"), value))
    }

    /// What is known, as `key=value` in the order of the fields.
    fn show(found: &Workload) -> String {
        let fields = [
            ("unit", &found.unit),
            ("id", &found.container_id),
            ("uid", &found.pod_uid),
            ("container", &found.container),
        ];
        let known = fields.iter().filter_map(|(key, value)| Some((key, value.as_ref()?)));
        known.map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(" ")
    }

    #[track_caller]
    fn check(path: &str, expected: &str) {
        assert_eq!(show(&identify(&expand(path))), expand(expected), "{path}");
    }

    #[test]
    fn a_service_or_scope_of_systemd_is_the_unit() {
        check("/", "");
        check("", "");
        check("/init.scope", "unit=init.scope");
        check("/system.slice/nginx.service", "unit=nginx.service");
        check("/system.slice/system-getty.slice/getty@tty1.service", "unit=getty@tty1.service");
        check(
            "/system.slice/system-postgresql.slice/postgresql@16-main.service",
            "unit=postgresql@16-main.service",
        );
        check("/user.slice/user-1000.slice/session-3.scope", "unit=session-3.scope");
        check(
            r"/machine.slice/machine-qemu\x2d1\x2dweb.scope/libvirt/emulator",
            r"unit=machine-qemu\x2d1\x2dweb.scope",
        );
        check("/system.slice/_memory.max.service", "unit=memory.max.service");
        check("/system.slice", "");
        check("/user.slice/user-1000.slice", "");
    }

    #[test]
    fn the_innermost_unit_counts() {
        let user = "/user.slice/user-1000.slice/user@1000.service";
        check(&format!("{user}/init.scope"), "unit=init.scope");
        check(&format!("{user}/app.slice/caddy.service"), "unit=caddy.service");
        check(
            &format!(r"{user}/app.slice/app-gnome\x2dterminal.slice/vte-spawn-1.scope"),
            "unit=vte-spawn-1.scope",
        );
        check("/system.slice/podman.service/sub/group", "unit=podman.service");
    }

    #[test]
    fn a_unit_with_odd_bytes_is_none() {
        check("/system.slice/a b.service", "");
        check("/system.slice/a\u{7}.service", "");
        check("/system.slice/.service", "");
        check("/system.slice/\u{fffd}.service", "");
        check("/system.slice/good.service/b\"d.scope", "unit=good.service");
    }

    #[test]
    fn kubelet_with_the_systemd_driver() {
        let pod = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod<UID_>.slice";
        for scope in ["cri-containerd-<ID>.scope", "crio-<ID>.scope", "docker-<ID>.scope"] {
            check(&format!("{pod}/{scope}"), "id=<ID> uid=<UID>");
        }
        check(&format!("{pod}/crio-<ID>.scope/container"), "id=<ID> uid=<UID>");
        check("/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-podSTATIC.slice", "");
        check(
            "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod<STATIC>.slice/\
             cri-containerd-<ID>.scope",
            "id=<ID> uid=<STATIC>",
        );
        check(
            "/kubepods.slice/kubepods-pod<UID_>.slice/cri-containerd-<ID>.scope",
            "id=<ID> uid=<UID>",
        );
    }

    #[test]
    fn kubelet_in_a_container_as_kind_and_minikube_run_it() {
        let inner = "kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/\
                     kubelet-kubepods-burstable-pod<UID_>.slice/cri-containerd-<ID>.scope";
        check(&format!("/{inner}"), "id=<ID> uid=<UID>");
        check(&format!("/system.slice/docker-<OUTER>.scope/{inner}"), "id=<ID> uid=<UID>");
        check(
            "/docker/<OUTER>/kubepods.slice/kubepods-besteffort.slice/\
             kubepods-besteffort-pod<UID_>.slice/crio-<ID>.scope",
            "id=<ID> uid=<UID>",
        );
        check("/docker/<OUTER>/kubelet.slice/kubelet.service", "id=<OUTER>");
    }

    #[test]
    fn kubelet_with_the_cgroupfs_driver() {
        check("/kubepods/burstable/pod<UID>/<ID>", "id=<ID> uid=<UID>");
        check("/kubepods/besteffort/pod<STATIC>/<ID>", "id=<ID> uid=<STATIC>");
        check("/kubepods/pod<UID>/<ID>", "id=<ID> uid=<UID>");
        check("/kubepods/burstable/pod<UID>/crio-<ID>", "id=<ID> uid=<UID>");
        check("/kubepods/burstable/pod<UID>/crio-conmon-<ID>", "uid=<UID>");
        check("/kubepods/burstable/pod<UID>", "uid=<UID>");
        check("/kubepods/burstable/podium/<ID>", "id=<ID>");
    }

    #[test]
    fn slice_prefix_and_id_in_one_directory() {
        check("/kubepods-burstable-pod<UID_>.slice:cri-containerd:<ID>", "id=<ID> uid=<UID>");
        check(
            "/system.slice/containerd.service/kubepods-pod<STATIC>.slice:cri-containerd:<ID>",
            "id=<ID> uid=<STATIC>",
        );
        check("/system.slice:docker:<ID>", "id=<ID>");
    }

    #[test]
    fn docker_and_ecs() {
        check("/docker/<ID>", "id=<ID>");
        check("/system.slice/docker-<ID>.scope", "id=<ID>");
        check("/system.slice/docker.service", "unit=docker.service");
        check("/actions_job/<ID>", "id=<ID>");
        check("/ecs/4b8fd7a2e1c94d0f9a3b5c6d7e8f9012/<ID>", "id=<ID>");
        check(
            "/ecstasks.slice/ecstasks-4b8fd7a2e1c94d0f9a3b5c6d7e8f9012.slice/docker-<ID>.scope",
            "id=<ID>",
        );
    }

    #[test]
    fn a_systemd_in_a_container_names_no_unit_of_the_host() {
        check("/docker/<ID>/system.slice/nginx.service", "id=<ID>");
        check("/system.slice/docker-<ID>.scope/init.scope", "id=<ID>");
        check("/machine.slice/libpod-<ID>.scope/container/system.slice/x.service", "id=<ID>");
        check("/lxc.payload.web/system.slice/nginx.service", "container=web");
        check(
            "/machine.slice/systemd-nspawn@web.service/payload/system.slice/nginx.service",
            "unit=systemd-nspawn@web.service",
        );
    }

    #[test]
    fn podman() {
        let user = "/user.slice/user-1000.slice/user@1000.service";
        check("/machine.slice/libpod-<ID>.scope", "id=<ID>");
        check("/machine.slice/libpod-<ID>.scope/container", "id=<ID>");
        check("/machine.slice/machine-libpod_pod_<OUTER>.slice/libpod-<ID>.scope", "id=<ID>");
        check(&format!("{user}/user.slice/libpod-<ID>.scope/container"), "id=<ID>");
        check("/libpod_parent/libpod-<ID>", "id=<ID>");
        check("/system.slice/web.service/libpod-payload-<ID>", "unit=web.service id=<ID>");
        check("/system.slice/web.service/runtime", "unit=web.service");
        check("/machine.slice/libpod-conmon-<ID>.scope", "unit=libpod-conmon-<ID>.scope");
        check("/libpod_parent/conmon", "");
    }

    #[test]
    fn a_monitor_is_not_its_container() {
        check(
            "/kubepods.slice/kubepods-pod<UID_>.slice/crio-conmon-<ID>.scope",
            "unit=crio-conmon-<ID>.scope uid=<UID>",
        );
        check("/system.slice/crio-conmon-<ID>.scope", "unit=crio-conmon-<ID>.scope");
        check("/lxc.monitor.web", "");
        check("/lxc.monitor/web", "");
    }

    #[test]
    fn lxc_gives_a_name_and_no_id() {
        check("/lxc.payload.web-1", "container=web-1");
        check("/lxc.payload/example/init.scope", "container=example");
        check("/lxc/101/ns/system.slice/ssh.service", "container=101");
        check("/lxc.payload.web/docker/<ID>", "id=<ID>");
        check("/lxc.payload.a b", "");
    }

    #[test]
    fn cgroup_namespaces_show_the_way_up() {
        check(
            "/../../kubepods-burstable-pod<UID_>.slice/cri-containerd-<ID>.scope",
            "id=<ID> uid=<UID>",
        );
        check("/../cri-containerd-<ID>.scope", "id=<ID>");
        check("/../../../../system.slice/nginx.service", "unit=nginx.service");
        check("/..", "");
    }

    #[test]
    fn what_only_looks_like_an_id_is_none() {
        check(&format!("/docker/{}", ID.to_uppercase()), "");
        check(&format!("/docker/{}", &ID[1..]), "");
        check("/docker/<ID>0", "");
        check("/kubepods/burstable/pod01b4b887-7635-4346-9c20-58a294bbb03g/x", "");
        check("/system.slice/<ID>.service", "unit=<ID>.service");
    }

    #[test]
    fn the_path_comes_from_the_hierarchy_that_knows_most() {
        #[track_caller]
        fn check(text: &str, expected: Option<&str>) {
            assert_eq!(parse(text), expected, "{text:?}");
        }
        check("0::/system.slice/nginx.service\n", Some("/system.slice/nginx.service"));
        check("0::/\n", Some("/"));
        check("0::/a/b (deleted)\n", Some("/a/b"));
        check("0::/with:colon\n", Some("/with:colon"));
        check(
            "12:memory:/docker/x\n1:name=systemd:/docker/y\n0::/system.slice/docker.service\n",
            Some("/docker/y"),
        );
        check("9:name=systemd:/\n4:memory:/docker/x\n0::/\n", Some("/docker/x"));
        check("5:cpu,pids:/docker/x\n1:name=openrc:/docker\n", Some("/docker/x"));
        check("1:name=systemd:/\n", Some("/"));
        check("3:cpuset:/only\n", None);
        check("", None);
        check("garbage\n:\n::\n", None);
    }

    fn component() -> impl Strategy<Value = String> {
        let layouts = [
            "..",
            "docker",
            "lxc",
            "lxc.payload",
            "payload",
            "a.service",
            "b.scope",
            "<ID>",
            "pod<UID>",
            "kubepods-pod<UID_>.slice",
            "crio-<ID>.scope",
            "libpod-payload-<ID>",
        ];
        let frames = ["lxc.payload.{}", "{}.service", "{}.scope", "pod{}", "x-{}.scope", "{}"];
        prop_oneof![
            proptest::sample::select(layouts.to_vec()).prop_map(expand),
            (proptest::sample::select(frames.to_vec()), any::<String>())
                .prop_map(|(frame, odd)| frame.replace("{}", &odd)),
        ]
    }

    proptest! {
        #[test]
        fn names_are_plain_whatever_the_path(components in prop::collection::vec(component(), 0..8)) {
            let found = identify(&format!("/{}", components.join("/")));
            let names = [&found.unit, &found.container_id, &found.pod_uid, &found.container];
            for name in names.into_iter().flatten() {
                prop_assert!(!name.is_empty() && name.len() <= UNIT_NAME_MAX);
                prop_assert!(name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/'));
            }
        }

        #[test]
        fn any_text_is_parsed(text in any::<String>()) {
            _ = parse(&text);
        }
    }
}
