//! Rules and dashboards as objects of Kubernetes: `deploy/kubernetes/overlays/operator/generated`.
//!
//! In: the files of `dashboards/`. Out: a PrometheusRule, copies of the dashboards and
//! the kustomization that makes ConfigMaps of them: kustomize reads no file above its own folder. Not
//! here: what the rules and dashboards say.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_norway::Value;

/// Where all of it goes.
const FOLDER: &str = "deploy/kubernetes/overlays/operator/generated";

/// Alerts first: they are what people look for.
const RULES: [&str; 2] = ["dashboards/alerts.yaml", "dashboards/recording.yaml"];
const DASHBOARDS: [&str; 3] = ["fleet", "listener", "agent"];

/// Paths below the root, and texts; `read` gives a file below the root.
pub(super) fn files(read: impl Fn(&Path) -> Result<String>) -> Result<Vec<(PathBuf, String)>> {
    let rule = prometheus_rule(&read)?;
    let mut files = vec![(Path::new(FOLDER).join("prometheusrule.yaml"), yaml(&rule)?)];
    for name in DASHBOARDS {
        let text = read(&Path::new("dashboards").join(name).with_extension("json"))?;
        files.push((Path::new(FOLDER).join(name).with_extension("json"), text));
    }
    let kustomization = yaml(&Kustomization::new())?;
    files.push((Path::new(FOLDER).join("kustomization.yaml"), kustomization));
    Ok(files)
}

/// All groups in one object.
fn prometheus_rule(read: impl Fn(&Path) -> Result<String>) -> Result<PrometheusRule> {
    let mut groups = Vec::new();
    for path in RULES {
        let file: RuleSpec = serde_norway::from_str(&read(Path::new(path))?).context(path)?;
        groups.extend(file.groups);
    }
    Ok(PrometheusRule {
        api_version: "monitoring.coreos.com/v1".to_owned(),
        kind: "PrometheusRule".to_owned(),
        metadata: Metadata::backlogd(),
        spec: RuleSpec { groups },
    })
}

fn yaml(object: &impl Serialize) -> Result<String> {
    let text = serde_norway::to_string(object)?;
    Ok(format!("# Made by `cargo xtask dashboards` from dashboards/.\n{text}"))
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Kustomization {
    api_version: &'static str,
    kind: &'static str,
    namespace: &'static str,
    resources: [&'static str; 1],
    config_map_generator: [ConfigMap; 3],
}

impl Kustomization {
    fn new() -> Self {
        Self {
            api_version: "kustomize.config.k8s.io/v1beta1",
            kind: "Kustomization",
            namespace: "backlogd",
            resources: ["prometheusrule.yaml"],
            config_map_generator: DASHBOARDS.map(ConfigMap::of),
        }
    }
}

#[derive(Serialize)]
struct ConfigMap {
    name: String,
    files: [String; 1],
    options: Options,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Options {
    labels: Labels,
    /// Nothing but Grafana's sidecar asks for it, by its label.
    disable_name_suffix_hash: bool,
}

#[derive(Serialize)]
struct Labels {
    grafana_dashboard: &'static str,
}

impl ConfigMap {
    fn of(dashboard: &str) -> Self {
        Self {
            name: format!("backlogd-dashboard-{dashboard}"),
            // two dashboards of one name would be one file in Grafana's folder
            files: [format!("backlogd-{dashboard}.json={dashboard}.json")],
            options: Options {
                labels: Labels { grafana_dashboard: "1" },
                disable_name_suffix_hash: true,
            },
        }
    }
}

/// What Prometheus Operator takes as rules, as far as it is used (`PrometheusRuleSpec`,
/// pkg/apis/monitoring/v1).
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PrometheusRule {
    api_version: String,
    kind: String,
    metadata: Metadata,
    spec: RuleSpec,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Metadata {
    name: String,
    labels: Value,
}

impl Metadata {
    fn backlogd() -> Self {
        let labels = [("app.kubernetes.io/name".into(), "backlogd".into())];
        Self { name: "backlogd".to_owned(), labels: Value::Mapping(labels.into_iter().collect()) }
    }
}

/// A rules file of Prometheus is the same.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct RuleSpec {
    groups: Vec<Group>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Group {
    name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    interval: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    limit: Option<u32>,
    rules: Vec<Rule>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    alert: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    record: Option<String>,
    expr: Value,
    #[serde(default, rename = "for", skip_serializing_if = "Option::is_none")]
    wait: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    keep_firing_for: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    labels: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    annotations: Option<Value>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sh;

    const ALERTS: &str = "groups:\n- name: backlogd-alerts\n  rules:\n  - alert: ListenerStalled\n    \
        expr: backlogd_listener_stalled == 1\n    for: 1m\n    labels: {severity: warning}\n    \
        annotations: {summary: 'nobody accepts on {{ $labels.port }}'}\n";
    const RECORDING: &str = "groups:\n- name: backlogd-fleet\n  interval: 30s\n  rules:\n  \
        - record: instance:backlogd_drops:rate5m\n    expr: sum by (instance) (x)\n";

    const FILES: [(&str, &str); 5] = [
        ("dashboards/recording.yaml", RECORDING),
        ("dashboards/alerts.yaml", ALERTS),
        ("dashboards/fleet.json", "{}\n"),
        ("dashboards/listener.json", "{}\n"),
        ("dashboards/agent.json", "{}\n"),
    ];

    /// What is made of these files, by name.
    fn made(there: &[(&str, &str)]) -> Result<Vec<(String, String)>> {
        let read = |path: &Path| {
            let found = there.iter().find(|(name, _)| Path::new(name) == path);
            Ok(found.with_context(|| format!("no {}", path.display()))?.1.to_owned())
        };
        let name = |path: &Path| path.strip_prefix(FOLDER).unwrap().to_str().unwrap().to_owned();
        Ok(files(read)?.into_iter().map(|(path, text)| (name(&path), text)).collect())
    }

    #[test]
    fn groups_of_both_files_are_in_one_object_as_they_were() {
        let made = made(&FILES).unwrap();
        let (name, text) = &made[0];
        assert_eq!("prometheusrule.yaml", name);
        let rule: Value = serde_norway::from_str(text).unwrap();
        let groups = [ALERTS, RECORDING].map(|text| {
            let file: Value = serde_norway::from_str(text).unwrap();
            file["groups"][0].clone()
        });
        assert_eq!(Value::Sequence(groups.into()), rule["spec"]["groups"]);
        assert_eq!(rule["apiVersion"], "monitoring.coreos.com/v1");
    }

    #[test]
    fn a_dashboard_is_a_config_map_that_grafana_finds() {
        let made = made(&FILES).unwrap();
        assert_eq!(("fleet.json".to_owned(), "{}\n".to_owned()), made[1]);
        let kustomization: Value = serde_norway::from_str(&made[4].1).unwrap();
        let map = &kustomization["configMapGenerator"][0];
        assert_eq!(map["options"]["labels"]["grafana_dashboard"], "1");
        assert_eq!(map["files"][0], "backlogd-fleet.json=fleet.json");
        assert_eq!(kustomization["resources"][0], made[0].0.as_str());
    }

    #[test]
    fn a_file_that_is_missing_is_named() {
        for (missing, _) in FILES {
            let others: Vec<_> = FILES.into_iter().filter(|(name, _)| *name != missing).collect();
            assert_eq!(format!("no {missing}"), made(&others).unwrap_err().to_string());
        }
    }

    #[test]
    fn a_field_that_the_operator_has_not_is_refused_with_the_files_name() {
        let text = ALERTS.replace("annotations:", "anotations:");
        let there = FILES.map(|(name, ours)| (name, if ours == ALERTS { &text } else { ours }));
        let err = made(&there).unwrap_err();
        let text = format!("{err:#}");
        assert!(text.starts_with("dashboards/alerts.yaml: "), "{text}");
        assert!(text.contains("unknown field `anotations`"), "{text}");
    }

    /// What of a PodMonitor is used (`PodMonitorSpec`, pkg/apis/monitoring/v1).
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    struct PodMonitor {
        api_version: String,
        kind: String,
        #[serde(rename = "metadata")]
        _metadata: Metadata,
        spec: PodMonitorSpec,
    }

    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    struct PodMonitorSpec {
        selector: Selector,
        pod_metrics_endpoints: Vec<Endpoint>,
    }

    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    struct Selector {
        match_labels: Value,
    }

    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    struct Endpoint {
        port: String,
        interval: String,
        honor_labels: bool,
        #[serde(rename = "relabelings")]
        _relabelings: Vec<Relabeling>,
    }

    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    struct Relabeling {
        #[serde(rename = "sourceLabels")]
        _source_labels: Option<Vec<String>>,
        #[serde(rename = "targetLabel")]
        _target_label: Option<String>,
        #[serde(rename = "action")]
        _action: Option<Action>,
        #[serde(rename = "regex")]
        _regex: Option<String>,
    }

    #[derive(Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Action {
        LabelDrop,
    }

    #[test]
    fn the_pod_monitor_has_fields_of_the_operator_and_finds_the_pods_port() {
        let folder = sh::root().unwrap().join("deploy/kubernetes");
        let text = |path: &str| String::from_utf8(sh::read(&folder.join(path)).unwrap()).unwrap();
        let monitor: PodMonitor =
            serde_norway::from_str(&text("overlays/operator/podmonitor.yaml")).unwrap();
        assert_eq!("monitoring.coreos.com/v1", monitor.api_version);
        assert_eq!("PodMonitor", monitor.kind);
        let base: Value = serde_norway::from_str(&text("base/kustomization.yaml")).unwrap();
        assert_eq!(base["labels"][0]["pairs"], monitor.spec.selector.match_labels);
        let daemon_set: Value = serde_norway::from_str(&text("base/daemonset.yaml")).unwrap();
        let [endpoint] = &monitor.spec.pod_metrics_endpoints[..] else { panic!("one endpoint") };
        let ports = &daemon_set["spec"]["template"]["spec"]["containers"][0]["ports"];
        assert_eq!(ports[0]["name"], endpoint.port.as_str());
        assert_eq!("30s", endpoint.interval);
        assert!(endpoint.honor_labels, "a listener's pod is not the agent's");
    }
}
