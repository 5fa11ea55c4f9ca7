//! The rules for Prometheus and Alertmanager in `dashboards/`: they name what `/metrics` has, say what
//! the detections say, and each alert has a runbook whose commands are commands.

#[path = "fixtures/files.rs"]
mod files;
#[path = "fixtures/promql.rs"]
mod promql;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    process::Command,
};

use backlogd::detect::{self, rule::About, subject::SubjectKind};
use serde::{Deserialize, de::DeserializeOwned};

use crate::{
    files::{path, text},
    promql::{Known, Labels},
};

const ALERTS: &str = "dashboards/alerts.yaml";
const TESTS: &str = "dashboards/alerts_test.yaml";
const RECORDING: &str = "dashboards/recording.yaml";
const RUNBOOKS: &str = "docs/runbooks";
const RUNBOOK_URL: &str = "https://github.com/backlogd/backlogd/blob/main/docs/runbooks/";

/// Rules that are not about a detection, and what they are about.
const OTHERS: [(&str, &str); 6] = [
    ("BacklogdDown", "The agent does not answer"),
    ("BacklogdShedding", "A listener sheds more than one connection in twenty"),
    ("BacklogdShedNearLimit", "A listener that sheds is near its soft limit"),
    ("BacklogdShedPaused", "A listener that sheds did not accept for a while"),
    (
        "BacklogdShedAcceptErrors",
        "A listener that sheds has no descriptor or memory for a connection",
    ),
    ("BacklogdShedNotReady", "A listener that sheds accepts nothing more"),
];
/// Detections without a rule, and why.
const WITHOUT: [(&str, &str); 0] = [];

/// A file of rules.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rules {
    groups: Vec<Group>,
}

/// Rules that are evaluated one after the other.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Group {
    name: String,
    interval: Option<String>,
    rules: Vec<Rule>,
}

/// One rule. `keep_firing_for` is left out on purpose: the head of `alerts.yaml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    alert: Option<String>,
    record: Option<String>,
    expr: String,
    #[serde(rename = "for")]
    lasts: Option<String>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

/// One that is YAML.
fn yaml<T: DeserializeOwned>(name: &str) -> T {
    serde_norway::from_str(&text(name)).unwrap_or_else(|err| panic!("{name}: {err}"))
}

/// The rules of a file, in order.
fn rules(name: &str) -> Vec<Rule> {
    yaml::<Rules>(name).groups.into_iter().flat_map(|group| group.rules).collect()
}

/// Fails unless each query of a file is one of `known`, to which its recording rules are added.
fn check_queries(file: &str, known: &mut Known) -> Vec<(Rule, Labels)> {
    let check = |rule: Rule| {
        let name = rule.alert.as_ref().or(rule.record.as_ref()).expect("a rule has a name");
        let labels = known.check(&rule.expr);
        let labels =
            labels.unwrap_or_else(|err| panic!("{file}, {name}: {err}\n{}", rule.expr.trim()));
        if let Some(record) = &rule.record {
            known.add(record, labels.clone());
        }
        (rule, labels)
    };
    rules(file).into_iter().map(check).collect()
}

fn alerts() -> Vec<(String, Rule, Labels)> {
    let all = check_queries(ALERTS, &mut Known::scraped());
    all.into_iter().filter_map(|(rule, labels)| Some((rule.alert.clone()?, rule, labels))).collect()
}

#[test]
fn each_query_names_metrics_and_labels_that_a_scrape_has() {
    assert!(40 <= check_queries(ALERTS, &mut Known::scraped()).len());
    assert!(20 <= check_queries(RECORDING, &mut Known::scraped()).len());
}

#[test]
fn what_is_wrong_with_a_query_is_told() {
    #[track_caller]
    fn check(query: &str, expected: &str) {
        let got = Known::scraped().check(query).expect_err(query);
        assert!(got.contains(expected), "{query}: {got}");
    }
    let (stalled, wait) = ("backlogd_listener_stalled", "backlogd_listener_accept_wait_seconds");
    check("backlogd_listener_stalled == ", "invalid promql query");
    check("rate(backlogd_listener_accepts_total[5m])", "no metric backlogd_listener_accepts_total");
    check("backlogd_listener_stalled{address=\"::\"}", "has no label address");
    check(&format!("sum without (reason) ({stalled})"), "nothing has the label reason");
    check(&format!("{stalled} and on (job, destination) {stalled}"), "labels {\"destination\"}");
    check(&format!("{stalled} * ignoring (le) {stalled}"), "neither side has the label le");
    check(&format!("{wait}_bucket < {wait}_count"), "only one side has the labels {\"le\"}");
    check(&format!("{stalled} and backlogd_connected_sockets"), "only one side has the labels");
}

/// A Prometheus that takes native histograms drops the classic ones.
#[test]
fn each_rule_takes_histograms_in_both_forms() {
    for file in [ALERTS, RECORDING] {
        for rule in rules(file) {
            promql::check_forms(&rule.expr)
                .unwrap_or_else(|err| panic!("{file}: {err}\n{}", rule.expr));
        }
    }
}

#[test]
fn each_detection_has_a_rule_with_its_summary() {
    let abouts = detect::all();
    let expected: BTreeMap<String, &str> = abouts
        .iter()
        .filter(|about| WITHOUT.iter().all(|(name, _)| *name != about.name))
        .map(|about| (format!("Backlogd{}", about.name), about.summary))
        .chain(OTHERS.map(|(name, summary)| (name.to_owned(), summary)))
        .collect();
    let mut found = BTreeMap::new();
    for (name, rule, _) in alerts() {
        let summary = rule.annotations.get("summary").unwrap_or_else(|| panic!("{name}: summary"));
        assert_eq!(Some(&summary.trim_end_matches('.')), expected.get(&name), "{ALERTS}: {name}");
        found.insert(name, ());
    }
    let missing: Vec<_> = expected.keys().filter(|name| !found.contains_key(*name)).collect();
    assert!(missing.is_empty(), "{ALERTS} has no rule {missing:?}");
}

#[test]
fn each_alert_says_how_bad_it_is_what_it_saw_and_where_to_read_on() {
    for (name, rule, labels) in alerts() {
        let severity = rule.labels.get("severity").map(String::as_str);
        assert!(
            matches!(severity, Some("info" | "warning" | "critical")),
            "{ALERTS}: {name}: {severity:?}"
        );
        let annotation = |key| {
            let text = rule.annotations.get(key).map(String::as_str);
            text.unwrap_or_else(|| panic!("{ALERTS}: {name} has no {key}"))
        };
        let url = annotation("runbook_url");
        assert_eq!(format!("{RUNBOOK_URL}{name}.md"), url, "{ALERTS}: {name}");
        let runbook = format!("{RUNBOOKS}/{name}.md");
        assert!(path(&runbook).is_file(), "{ALERTS}: {name} has no runbook {runbook}");
        let description = annotation("description");
        let (_, command) = description.split_once("Run").unwrap_or_else(|| {
            panic!("{ALERTS}: {name}: no command in {description}");
        });
        let (_, command) = command.split_once(": ").expect("Run: or Run there:");
        if command.starts_with("backlogd ") {
            let command = command.replace("{{ $labels.port }}", "443");
            check_commands(&format!("{ALERTS}: {name}"), &command);
        }
        for label in description.split("$labels.").skip(1) {
            let end = label.find(|c: char| !c.is_ascii_lowercase() && c != '_');
            let label = &label[..end.unwrap_or(label.len())];
            let is_there = labels.contains(label);
            assert!(is_there, "{ALERTS}: {name}: no label {label} in {description}");
        }
    }
}

/// Raised, and not raised or over, in the tests by hand.
#[test]
fn each_alert_is_tested_both_ways() {
    let tests = text(TESTS);
    for (name, rule, _) in alerts() {
        let about = format!("alertname=\"{name}\"");
        let expected: Vec<&str> =
            tests.split("- expr: ").filter(|it| it.contains(&about)).collect();
        let severity = format!("severity=\"{}\"", rule.labels["severity"]);
        let has = |what: &str| expected.iter().any(|it| it.contains(what));
        assert!(has(&severity), "{TESTS}: nothing raises {name} with {severity}");
        assert!(has("exp_samples: []"), "{TESTS}: {name} is never silent");
    }
}

/// What `backlogd_alert_firing` is asked for are detections, and the head of the file lists them.
#[test]
fn alerts_that_the_agent_gives_are_those_of_the_list() {
    let marker = "backlogd_alert_firing{alert=\"";
    let asked: BTreeSet<String> = rules(ALERTS)
        .iter()
        .flat_map(|rule| rule.expr.split(marker).skip(1).map(str::to_owned).collect::<Vec<_>>())
        .map(|rest| rest.split('"').next().unwrap_or_default().to_owned())
        .collect();
    let names: BTreeSet<String> = detect::all().iter().map(|about| about.name.to_owned()).collect();
    assert!(asked.is_subset(&names), "{asked:?}");
    let all = text(ALERTS);
    let listed = all.lines().take_while(|line| line.starts_with('#')).filter_map(|line| {
        let item = line.strip_prefix("# - ")?;
        names.contains(item.split([' ', ':']).next()?).then(|| item.split([' ', ':']).next())?
    });
    assert_eq!(asked, listed.map(str::to_owned).collect(), "the head of {ALERTS}");
}

#[test]
fn each_runbook_belongs_to_an_alert_and_its_commands_are_commands() {
    let alerts: BTreeSet<String> = alerts().into_iter().map(|(name, ..)| name).collect();
    let index = text(&format!("{RUNBOOKS}/README.md"));
    for file in fs::read_dir(path(RUNBOOKS)).expect("a folder") {
        let name = file.expect("a file").file_name().into_string().expect("a name in ASCII");
        let Some(alert) = name.strip_suffix(".md").filter(|alert| *alert != "README") else {
            assert_eq!("README.md", name, "{RUNBOOKS}");
            continue;
        };
        assert!(alerts.contains(alert), "{RUNBOOKS}/{name}: no alert of this name in {ALERTS}");
        assert!(index.contains(&format!("]({name})")), "{RUNBOOKS}/README.md does not list {name}");
        let text = text(&format!("{RUNBOOKS}/{name}"));
        for heading in ["## What it means", "## Confirm", "## Do", "## Do not"] {
            assert!(text.contains(&format!("\n{heading}\n")), "{RUNBOOKS}/{name}: no {heading:?}");
        }
        check_commands(&format!("{RUNBOOKS}/{name}"), &text);
    }
}

/// The program takes each line that begins with its name.
#[track_caller]
fn check_commands(file: &str, text: &str) {
    let lines = text.lines().map(|line| line.trim().trim_start_matches("sudo "));
    let commands: Vec<&str> = lines.filter(|line| line.starts_with("backlogd ")).collect();
    assert!(!commands.is_empty(), "{file} has no command of backlogd");
    for command in commands {
        let line = command.split('#').next().unwrap_or_default();
        let words = line.split_whitespace().skip(1);
        let output =
            Command::new(env!("CARGO_BIN_EXE_backlogd")).args(words).arg("--help").output();
        let output = output.expect("the program runs");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{file}: {command}: {stderr}");
    }
}

#[derive(Deserialize)]
struct Alertmanager {
    inhibit_rules: Vec<Inhibit>,
}

#[derive(Deserialize)]
struct Inhibit {
    source_matchers: Vec<String>,
    target_matchers: Vec<String>,
    equal: Vec<String>,
}

/// Whether a matcher of `alertname` takes an alert: `=`, or `=~` with one group at most.
fn takes(matchers: &[String], alert: &str) -> bool {
    matchers.iter().filter(|matcher| matcher.starts_with("alertname")).all(|matcher| {
        let (operator, value) = matcher["alertname ".len()..].split_once(' ').expect("three words");
        let value = value.trim_matches('"');
        let is_taken = match value.trim_end_matches(".*").split_once('(') {
            Some((prefix, names)) => alert.strip_prefix(prefix).is_some_and(|name| {
                names.trim_end_matches(')').split('|').any(|other| other == name)
            }),
            None if value.ends_with(".*") => alert.starts_with(value.trim_end_matches(".*")),
            None => value == alert,
        };
        is_taken != (operator == "!=")
    })
}

/// The labels that make two alerts ones about the same thing, as `detect/alert.rs` has it.
fn shared(by: SubjectKind, of: SubjectKind) -> BTreeSet<&'static str> {
    let own: &[&str] = match (by, of) {
        (SubjectKind::Caller, SubjectKind::Destination) => &[],
        (SubjectKind::Caller | SubjectKind::Process, _)
        | (SubjectKind::Listener, SubjectKind::Process) => &["comm"],
        (SubjectKind::Destination, _) => &["netns", "dst", "dst_port"],
        (SubjectKind::Listener, _) => &["netns", "addr", "port"],
        other => panic!("what do {other:?} have in common?"),
    };
    own.iter().copied().chain(["cluster", "instance"]).collect()
}

#[test]
fn alertmanager_inhibits_what_the_agent_inhibits_and_nothing_else() {
    let file: Alertmanager = yaml("dashboards/alertmanager.yaml");
    let kinds: Vec<(SubjectKind, &About)> = detect::kinds()
        .into_iter()
        .flat_map(|(kind, abouts)| abouts.into_iter().map(move |about| (kind, about)))
        .collect();
    for (of, about) in &kinds {
        for (by, other) in &kinds {
            let (target, source) =
                (format!("Backlogd{}", about.name), format!("Backlogd{}", other.name));
            // those that name a source by itself: not all alerts
            let rules = file.inhibit_rules.iter().filter(|rule| {
                takes(&rule.source_matchers, &source)
                    && takes(&rule.target_matchers, &target)
                    && !takes(&rule.source_matchers, "BacklogdAny")
            });
            let is_critical = |rule: &Inhibit| {
                rule.source_matchers.iter().any(|matcher| matcher == "severity = critical")
            };
            let equal = |rule: &'_ Inhibit| rule.equal.iter().cloned().collect();
            let found: Vec<(BTreeSet<String>, bool)> =
                rules.map(|rule| (equal(rule), is_critical(rule))).collect();
            let is_inhibited = about.inhibited_by.contains(&other.name);
            // what is wrong with a process is said better by what is critical about its listener alone
            let must_be = (*by, *of) == (SubjectKind::Listener, SubjectKind::Process);
            let labels = || shared(*by, *of).into_iter().map(str::to_owned).collect();
            let expected =
                is_inhibited.then(|| (labels(), must_be)).into_iter().collect::<Vec<_>>();
            assert_eq!(expected, found, "dashboards/alertmanager.yaml: {source} inhibits {target}");
        }
    }
}

#[test]
fn the_files_are_plain_rule_files() {
    for file in [ALERTS, RECORDING] {
        let rules: Rules = yaml(file);
        for group in &rules.groups {
            assert!(group.name.starts_with("backlogd."), "{file}: {}", group.name);
            let interval = group.interval.as_deref();
            let is_one = interval.is_none_or(|it| ["30s", "1m", "2m", "5m"].contains(&it));
            assert!(is_one, "{file}: {}", group.name);
        }
        for Rule { alert, record, lasts, .. } in rules.groups.into_iter().flat_map(|it| it.rules) {
            assert!(alert.is_some() != record.is_some(), "{file}: {alert:?}, {record:?}");
            let is_named = |record: &String| record.split(':').count() == 3;
            assert!(
                record.as_ref().is_none_or(is_named),
                "{file}: {record:?}: level:metric:operation"
            );
            assert!(lasts.is_none() || alert.is_some(), "{file}: {record:?}");
        }
    }
}
