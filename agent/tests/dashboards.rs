//! Grafana's dashboards in `dashboards/`: each query names what `/metrics` has, each panel says what it
//! shows, and each metric is on one.

#[path = "fixtures/choices.rs"]
mod choices;
#[path = "fixtures/files.rs"]
mod files;
#[path = "fixtures/promql.rs"]
mod promql;

use std::collections::{BTreeMap, BTreeSet};

use backlogd::publish::metrics::FAMILIES;
use serde_json::Value;

use crate::{
    files::{path, text},
    promql::{Known, Labels},
};

const BOARDS: [&str; 3] = ["fleet", "listener", "agent"];

/// What Prometheus says of each scrape.
const OF_SCRAPES: [&str; 2] = ["scrape_duration_seconds", "scrape_samples_scraped"];

/// Those of Grafana's units that are used.
const UNITS: [&str; 6] = ["bytes", "cps", "dateTimeFromNow", "percentunit", "s", "short"];

const RUNBOOKS: &str = "https://github.com/backlogd/backlogd/blob/main/docs/runbooks/";

/// Metrics that are on no panel, and why.
const WITHOUT: [(&str, &str); 6] = [
    (
        "backlogd_listener_socket_drops_total",
        "sk_drops as it is: counts a drop at the last ACK twice, so that drops_total is shown",
    ),
    (
        "backlogd_shed_accept_batch_size",
        "for who looks into one listener: its accept_loop_lag_seconds says what that leads to",
    ),
    (
        "backlogd_shed_decision_seconds",
        "a few microseconds, for who writes one: its queue_wait_seconds says what more leads to",
    ),
    ("backlogd_shed_oversized_requests_total", "no listener of the agent has a limit to requests"),
    ("process_virtual_memory_bytes", "the kernel's maps are in it: nothing to act upon"),
    ("process_max_fds", "with process_open_fds, as its limit, where it is lower than all others"),
];

/// One dashboard.
struct Board {
    file: String,
    json: Value,
}

/// A query, and where it is.
struct Query<'a> {
    place: String,
    expr: &'a str,
    /// Text that names labels of its series.
    labelled: Vec<&'a str>,
}

impl Board {
    fn all() -> Vec<Self> {
        let read = |name: &&str| {
            let file = format!("dashboards/{name}.json");
            let json =
                serde_json::from_str(&text(&file)).unwrap_or_else(|err| panic!("{file}: {err}"));
            Self { file, json }
        };
        BOARDS.iter().map(read).collect()
    }

    fn list(&self, pointer: &str) -> &[Value] {
        let found = self.json.pointer(pointer).and_then(Value::as_array);
        found.unwrap_or_else(|| panic!("{}: no {pointer}", self.file))
    }

    /// Panels that show something.
    fn panels(&self) -> impl Iterator<Item = &Value> {
        self.list("/panels").iter().filter(|panel| panel["type"] != "row")
    }

    fn place(&self, panel: &Value) -> String {
        format!("{}, {}", self.file, panel["title"])
    }

    /// Queries of panels and annotations.
    fn queries(&self) -> Vec<Query<'_>> {
        let mut all = self.queries_of_panels();
        for it in self.list("/annotations/list") {
            let place = format!("{}, annotation {}", self.file, it["name"]);
            let labelled = vec![str_of(&it["titleFormat"]), str_of(&it["textFormat"])];
            all.push(Query { place, expr: str_of(&it["expr"]), labelled });
        }
        all
    }

    fn queries_of_panels(&self) -> Vec<Query<'_>> {
        let mut all = Vec::new();
        for panel in self.panels() {
            let links = links(panel);
            for target in panel["targets"].as_array().into_iter().flatten() {
                let mut labelled = links.clone();
                labelled.push(str_of(&target["legendFormat"]));
                let (place, expr) = (self.place(panel), str_of(&target["expr"]));
                all.push(Query { place, expr, labelled });
            }
        }
        all
    }

    /// The query with all choices made.
    fn chosen(&self, expr: &str) -> String {
        choices::chosen(&self.json, expr, "5m", |_| "backlogd".to_owned())
    }
}

fn str_of(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// What is set for some columns or series of a panel, by name.
fn overrides<'a>(panel: &'a Value, id: &str) -> Vec<&'a Value> {
    let all = panel["fieldConfig"]["overrides"].as_array().into_iter().flatten();
    let all = all.flat_map(|it| it["properties"].as_array().into_iter().flatten());
    all.filter(|it| it["id"] == id).map(|it| &it["value"]).collect()
}

/// Where clicks on a panel's values lead.
fn links(panel: &Value) -> Vec<&str> {
    let mut all = overrides(panel, "links");
    all.push(&panel["fieldConfig"]["defaults"]["links"]);
    let each = all.into_iter().flat_map(|it| it.as_array().into_iter().flatten());
    each.map(|link| str_of(&link["url"])).collect()
}

/// A recording rule.
struct Recorded {
    file: &'static str,
    name: String,
    expr: String,
}

fn recorded() -> Vec<Recorded> {
    let of = |file: &'static str| {
        let rules: Value =
            serde_norway::from_str(&text(file)).unwrap_or_else(|err| panic!("{file}: {err}"));
        let groups = rules["groups"].as_array().cloned().unwrap_or_default();
        let all = groups.into_iter().flat_map(|it| it["rules"].as_array().cloned());
        all.flatten().filter_map(move |it| {
            let (name, expr) = (it["record"].as_str()?.to_owned(), str_of(&it["expr"]).to_owned());
            Some(Recorded { file, name, expr })
        })
    };
    ["dashboards/alerts.yaml", "dashboards/recording.yaml"].into_iter().flat_map(of).collect()
}

/// What a scrape has, Prometheus adds, and rules record.
fn known() -> Known {
    let mut known = Known::scraped();
    for name in OF_SCRAPES {
        known.add(name, ["job", "instance"].map(str::to_owned).into());
    }
    for Recorded { file, name, expr } in recorded() {
        let labels = known.check(&expr);
        let labels = labels.unwrap_or_else(|err| panic!("{file}, {name}: {err}\n{}", expr.trim()));
        known.add(&name, labels);
    }
    known
}

/// Labels that a text asks for: `{{label}}`, and `${__field.labels.label}` of links.
fn asked(text: &str) -> Labels {
    let ends = |c: char| !c.is_ascii_lowercase() && c != '_';
    let word = |text: &str| text[..text.find(ends).unwrap_or(text.len())].to_owned();
    let marks = ["{{", "${__field.labels.", "${__data.fields."];
    marks.iter().flat_map(|mark| text.split(mark).skip(1).map(word)).collect()
}

#[test]
fn each_query_names_metrics_and_labels_that_a_scrape_has() {
    let known = known();
    for board in Board::all() {
        for Query { place, expr, labelled } in board.queries() {
            let chosen = board.chosen(expr);
            assert!(!chosen.contains('$'), "{place}: a variable that is not there: {expr}");
            let labels =
                known.check(&chosen).unwrap_or_else(|err| panic!("{place}: {err}\n{expr}"));
            promql::check_forms(expr).unwrap_or_else(|err| panic!("{place}: {err}\n{expr}"));
            for text in labelled {
                let missing: Vec<_> = asked(text).difference(&labels).cloned().collect();
                assert!(missing.is_empty(), "{place}: no labels {missing:?} for {text}\n{expr}");
            }
        }
    }
}

#[test]
fn each_choice_has_values_and_is_used() {
    let known = known();
    for board in Board::all() {
        for it in board.list("/templating/list").iter().filter(|it| it["type"] == "query") {
            let (name, query) = (str_of(&it["name"]), str_of(&it["query"]["query"]));
            let place = format!("{}, variable {name}", board.file);
            let inner = query.strip_prefix("label_values(").and_then(|it| it.strip_suffix(')'));
            let (expr, label) = inner
                .and_then(|it| it.rsplit_once(", "))
                .unwrap_or_else(|| panic!("{place}: {query}"));
            let chosen = board.chosen(expr);
            assert!(!chosen.contains('$'), "{place}: a variable that is not there: {query}");
            let labels =
                known.check(&chosen).unwrap_or_else(|err| panic!("{place}: {err}\n{query}"));
            assert!(labels.contains(label), "{place}: no label {label} in {query}");
            assert_eq!(name, label, "{place}: {query}");
            let word = format!("${name}\"");
            let is_used = board.queries_of_panels().iter().any(|it| it.expr.contains(&word));
            assert!(is_used, "{place}: no panel uses it");
        }
    }
}

#[test]
fn each_panel_says_what_it_shows_and_has_a_place_of_its_own() {
    for board in Board::all() {
        let mut titles = BTreeSet::new();
        let mut taken = BTreeMap::new();
        for panel in board.panels() {
            let place = board.place(panel);
            assert!(titles.insert(str_of(&panel["title"])), "{place}: there twice");
            let defaults = &panel["fieldConfig"]["defaults"];
            for (what, text) in [
                ("title", &panel["title"]),
                ("description", &panel["description"]),
                ("unit", &defaults["unit"]),
                ("noValue", &defaults["noValue"]),
            ] {
                assert!(!str_of(text).is_empty(), "{place}: no {what}");
            }
            for unit in overrides(panel, "unit").into_iter().chain([&defaults["unit"]]) {
                assert!(UNITS.contains(&str_of(unit)), "{place}: {unit} is none of {UNITS:?}");
            }
            let targets = panel["targets"].as_array().map_or(&[][..], Vec::as_slice);
            assert!(!targets.is_empty(), "{place}: no query");
            let is_sentence = str_of(&panel["description"]).ends_with('.');
            assert!(is_sentence, "{place}: {}", panel["description"]);
            let n = |key: &str| panel["gridPos"][key].as_u64().expect("a number");
            for cell in (n("x")..n("x") + n("w"))
                .flat_map(|x| (n("y")..n("y") + n("h")).map(move |y| (x, y)))
            {
                assert!(cell.0 < 24, "{place}: ends beyond column 24");
                let other = taken.insert(cell, place.clone());
                assert_eq!(None, other, "{place}: on the place of another");
            }
        }
    }
}

/// What is wrong with a link from a value.
fn check_link(boards: &[Board], url: &str) -> Result<(), String> {
    if let Some(page) = url.strip_prefix(RUNBOOKS) {
        let of_alert = "Backlogd${__data.fields.alert}.md";
        // rules.rs has that each alert has a page
        let is_there = page == of_alert || path("docs/runbooks").join(page).is_file();
        return if is_there { Ok(()) } else { Err(format!("no page {page}")) };
    }
    let inner = url.strip_prefix("/d/").ok_or("neither a dashboard nor a runbook")?;
    let (uid, query) = inner.split_once('?').ok_or("no time")?;
    let board = boards.iter().find(|it| it.json["uid"] == uid);
    let board = board.ok_or_else(|| format!("no dashboard {uid}"))?;
    let parts: Vec<_> = query.split('&').collect();
    for needed in ["${__url_time_range}", "${datasource:queryparam}"] {
        if !parts.contains(&needed) {
            return Err(format!("no {needed}"));
        }
    }
    let choices: Vec<_> =
        board.list("/templating/list").iter().map(|it| str_of(&it["name"])).collect();
    let given: Vec<_> = parts.iter().filter_map(|it| it.strip_prefix("var-")).collect();
    for (name, value) in given.iter().filter_map(|it| it.split_once('=')) {
        if !choices.contains(&name) {
            return Err(format!("{uid} has no choice {name}"));
        }
        if !["__field.labels", "__data.fields"]
            .iter()
            .any(|it| value == format!("${{{it}.{name}}}"))
        {
            return Err(format!("{name} is {value}"));
        }
    }
    let is_given = |name: &str| given.iter().any(|it| it.starts_with(&format!("{name}=")));
    match ["job", "instance"].into_iter().find(|name| !is_given(name)) {
        Some(name) => Err(format!("no {name}")),
        None => Ok(()),
    }
}

#[test]
fn each_link_leads_to_what_is_there() {
    let boards = Board::all();
    for board in &boards {
        for panel in board.panels() {
            for url in links(panel) {
                let place = board.place(panel);
                check_link(&boards, url).unwrap_or_else(|err| panic!("{place}: {err}: {url}"));
            }
        }
        let tags = &board.json["tags"];
        for link in board.list("/links") {
            let place = format!("{}, link {}", board.file, link["title"]);
            match str_of(&link["type"]) {
                "dashboards" => assert_eq!(*tags, link["tags"], "{place}"),
                _ => check_link(&boards, str_of(&link["url"]))
                    .unwrap_or_else(|err| panic!("{place}: {err}")),
            }
        }
        let has_runbooks = board.list("/links").iter().any(|it| it["type"] == "link");
        assert!(has_runbooks, "{}: no link to the runbooks", board.file);
    }
}

#[test]
fn what_is_wrong_with_a_link_is_told() {
    let boards = Board::all();
    let check = |url: &str, expected: &str| {
        let got = check_link(&boards, url).expect_err(url);
        assert_eq!(expected, got, "{url}");
    };
    let always = "${__url_time_range}&${datasource:queryparam}";
    let host = "var-job=${__field.labels.job}&var-instance=${__field.labels.instance}";
    check("/d/nowhere", "no time");
    check(&format!("/d/nowhere?{always}&{host}"), "no dashboard nowhere");
    check(&format!("/d/backlogd-agent?{host}"), "no ${__url_time_range}");
    check(&format!("/d/backlogd-agent?{always}"), "no job");
    check(
        &format!("/d/backlogd-agent?{always}&{host}&var-pod=a"),
        "backlogd-agent has no choice pod",
    );
    check(&format!("/d/backlogd-agent?{always}&var-job=a"), "job is a");
    check(&format!("{RUNBOOKS}Backlogd.md"), "no page Backlogd.md");
    check("https://example.org/", "neither a dashboard nor a runbook");
}

#[test]
fn a_choice_is_a_whole_word() {
    let [board, ..] = &Board::all()[..] else { panic!("there are boards") };
    for (expr, expected) in [
        ("up{job=~\"$job\"}", "up{job=~\"backlogd\"}"),
        ("up{job=~\"$jobb\"}", "up{job=~\"$jobb\"}"),
        ("up{instance=~\"$instance\"}", "up{instance=~\".*\"}"),
        ("rate(x[$__rate_interval]) and y[$__range]", "rate(x[5m]) and y[5m]"),
    ] {
        assert_eq!(expected, board.chosen(expr));
    }
}

#[test]
fn each_metric_is_on_a_panel_or_has_a_reason() {
    let boards = Board::all();
    let mut shown: String =
        boards.iter().flat_map(Board::queries).map(|it| format!("{} ", it.expr)).collect();
    // what a recorded series is made of is shown with it
    for Recorded { name, expr, .. } in recorded().into_iter().rev() {
        if shown.contains(&name) {
            shown += &format!("{expr} ");
        }
    }
    let is_shown = |name: &str| {
        let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let forms = ["", "_bucket", "_sum", "_count"].map(|form| format!("{name}{form}"));
        shown.split(|c| !word(c)).any(|it| forms.iter().any(|form| form == it))
    };
    for family in FAMILIES.iter().copied().flatten() {
        let name = family.descriptor.name;
        let has_reason = WITHOUT.iter().any(|(it, _)| *it == name);
        assert!(is_shown(name) || has_reason, "{name} is on no panel of {BOARDS:?}");
        assert!(!(is_shown(name) && has_reason), "{name} is on a panel, and in the list");
    }
}
