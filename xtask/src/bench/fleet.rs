//! `cargo xtask bench fleet`: what the fleet's dashboard and the rules cost a Prometheus that has a thousand agents.
//!
//! In: `dashboards/`, made-up series of 1,000 hosts with 200 listeners each, written as a block of Prometheus' TSDB;
//! Debian's Prometheus. Out: for each panel and choice of the dashboard the time of its queries as Grafana asks them
//! at first (one hour, everything chosen), and for each group of rules the time of one evaluation. Nothing of it
//! needs root. Not here: scraping, and the memory that a Prometheus has for the newest series.

mod ask;
mod block;
mod chunk;
mod make;
mod series;

use std::{
    fs,
    path::Path,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result};
use serde::Deserialize;
use serde_json::{Value, json};

use self::{
    ask::{Answer, Prometheus, Question},
    make::Fleet,
    series::JOB,
};
use crate::{packages, sh};

const BOARD: &str = "dashboards/fleet.json";
const RULES: [&str; 2] = ["dashboards/alerts.yaml", "dashboards/recording.yaml"];
/// As `dashboards/provisioning/prometheus.yaml` has it.
const SCRAPE_SECONDS: u32 = 15;
/// The longest window of a rule, and so much that the newest chunk is half full, as it is on average.
const N_SCRAPES: u32 = (2 * 3600 + 900) / SCRAPE_SECONDS + 1;
/// Of groups that do not have an interval, as it is there, too.
const EVALUATION_SECONDS: u32 = 15;
/// What a dashboard shows at first.
const SHOWN_SECONDS: i64 = 3600;
/// Four scrapes, as Grafana makes `$__rate_interval`.
const RATE_INTERVAL: &str = "1m";
/// For a panel, and for a choice.
const GOAL_SECONDS: f64 = 2.0;
/// Of a group's interval.
const GOAL_SHARE: f64 = 0.5;

/// Rules of one file.
#[derive(Deserialize)]
struct Rules {
    groups: Vec<Group>,
}

#[derive(Deserialize)]
struct Group {
    name: String,
    interval: Option<String>,
    rules: Vec<Rule>,
}

#[derive(Deserialize)]
struct Rule {
    alert: Option<String>,
    record: Option<String>,
    expr: String,
}

/// Makes the fleet, asks all and gives the rows.
pub(super) fn measure(root: &Path) -> Result<Value> {
    let program = packages::unpacked(root, packages::PROMETHEUS)?;
    let folder = tempfile::tempdir_in(root.join("target"))?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let seconds = i64::try_from(now / 60 * 60)?;
    let fleet = Fleet {
        n_hosts: 1000,
        n_listeners: 200,
        seconds: SCRAPE_SECONDS,
        n_scrapes: N_SCRAPES,
        end: seconds * 1000,
    };
    let start = Instant::now();
    let made = make::block(&folder.path().join("data"), &fleet)?;
    eprintln!("{made:?} in {:.0?}", start.elapsed());
    let prometheus = Prometheus::start(&program, folder.path())?;
    let board: Value = serde_json::from_slice(&sh::read(&root.join(BOARD))?)?;
    let mut rows = Vec::new();
    for (what, questions) in panels(&board, seconds).into_iter().chain(choices(&board, seconds)) {
        let row = row(&what, &ask_all(&prometheus, &questions));
        eprintln!("{row}");
        rows.push(row);
    }
    for file in RULES {
        let text = fs::read_to_string(root.join(file))?;
        let rules: Rules = serde_norway::from_str(&text).with_context(|| file.to_owned())?;
        for group in rules.groups {
            let row = group_row(&prometheus, &group, seconds)?;
            eprintln!("{row}");
            rows.push(row);
        }
    }
    let how = format!("{} series, {} samples; VmHWM", made.n_series, made.n_samples);
    let memory = prometheus.memory()?;
    rows.push(json!({
        "what": "memory of Prometheus", "goal": null, "measured": memory, "unit": "GiB",
        "met": null, "how": how,
    }));
    Ok(json!({"rows": rows}))
}

/// The query with all choices at `All`.
fn chosen(board: &Value, expr: &str) -> String {
    let mut names: Vec<_> = list(board, "/templating/list")
        .filter_map(|it| Some((it["name"].as_str()?, it["allValue"].as_str().unwrap_or(JOB))))
        .collect();
    // the longest first: one may begin as another does
    names.sort_by_key(|(name, _)| std::cmp::Reverse(name.len()));
    let expr = expr
        .replace("$__rate_interval", RATE_INTERVAL)
        .replace("$__range", &format!("{SHOWN_SECONDS}s"));
    names.iter().fold(expr, |expr, (name, all)| expr.replace(&format!("${name}"), all))
}

fn list<'a>(board: &'a Value, pointer: &str) -> impl Iterator<Item = &'a Value> {
    board.pointer(pointer).and_then(Value::as_array).into_iter().flatten()
}

/// Titles of panels, and what each asks.
fn panels(board: &Value, end: i64) -> Vec<(String, Vec<Question>)> {
    let span = (end - SHOWN_SECONDS, end);
    let question = |target: &Value| {
        let expr = chosen(board, target["expr"].as_str().unwrap_or_default());
        if target["instant"] == true {
            Question::Instant { expr, at: end }
        } else {
            Question::Range { expr, span, step: SCRAPE_SECONDS }
        }
    };
    let all = list(board, "/panels").filter(|panel| panel["type"] != "row");
    let mut panels: Vec<_> = all
        .map(|panel| {
            let title = panel["title"].as_str().unwrap_or_default();
            (format!("panel: {title}"), list(panel, "/targets").map(question).collect())
        })
        .collect();
    for it in list(board, "/annotations/list") {
        panels.push((format!("annotation: {}", it["name"]), vec![question(it)]));
    }
    panels
}

/// Names of choices, and what each asks.
fn choices(board: &Value, end: i64) -> Vec<(String, Vec<Question>)> {
    let all = list(board, "/templating/list");
    all.filter_map(|it| {
        let query = it["query"]["query"].as_str()?;
        let inner = query.strip_prefix("label_values(")?.strip_suffix(')')?;
        let (of, label) = inner.rsplit_once(", ")?;
        let span = (end - SHOWN_SECONDS, end);
        let question = Question::Values { label: label.to_owned(), of: chosen(board, of), span };
        Some((format!("choice: {label}"), vec![question]))
    })
    .collect()
}

fn ask_all(prometheus: &Prometheus, questions: &[Question]) -> Result<Vec<Answer>> {
    questions.iter().map(|question| prometheus.ask(question)).collect()
}

fn seconds(times: impl Iterator<Item = Duration>) -> f64 {
    times.map(|time| time.as_secs_f64()).sum()
}

/// The line of a panel or a choice; its queries are asked one after the other.
fn row(what: &str, answers: &Result<Vec<Answer>>) -> Value {
    let (measured, how) = match answers {
        Err(err) => (None, format!("{err:#}")),
        Ok(answers) => {
            let n: usize = answers.iter().map(|it| it.n).sum();
            let max = seconds(answers.iter().map(|it| it.max));
            let how = format!("largest {max:.2} s; {n} in the answer");
            (Some(seconds(answers.iter().map(|it| it.median))), how)
        }
    };
    let met = measured.is_some_and(|it| it <= GOAL_SECONDS);
    json!({
        "what": what, "goal": {"at_most": GOAL_SECONDS}, "measured": measured, "unit": "s",
        "met": met, "how": how,
    })
}

/// The line of a group of rules, which are evaluated one after the other.
fn group_row(prometheus: &Prometheus, group: &Group, at: i64) -> Result<Value> {
    let interval = group.interval.as_deref().map_or(Ok(EVALUATION_SECONDS), seconds_of)?;
    let (mut all, mut failed) = (Vec::new(), Vec::new());
    for rule in &group.rules {
        let name = rule.alert.as_ref().or(rule.record.as_ref()).context("a rule has a name")?;
        match prometheus.ask(&Question::Instant { expr: rule.expr.clone(), at }) {
            Ok(answer) => all.push((answer.evaluation, name, answer.n)),
            Err(err) => failed.push(format!("{name}: {err:#}")),
        }
    }
    let sum = seconds(all.iter().map(|it| it.0));
    all.sort_unstable_by(|one, other| other.cmp(one));
    let is_long = |it: &&(Duration, &String, usize)| Duration::from_secs(1) < it.0;
    let longest = all
        .iter()
        .filter(is_long)
        .map(|(time, name, n)| format!("{name} {:.1} s ({n} series)", time.as_secs_f64()));
    let how: Vec<_> = failed.iter().cloned().chain(longest).collect();
    let goal = f64::from(interval) * GOAL_SHARE;
    Ok(json!({
        "what": format!("rules: {}, each {interval} s", group.name), "goal": {"at_most": goal},
        "measured": sum, "unit": "s", "met": failed.is_empty() && sum <= goal,
        "how": how.join("; "),
    }))
}

/// `15s`, `1m`.
fn seconds_of(text: &str) -> Result<u32> {
    let (number, unit) = text.split_at(text.len().saturating_sub(1));
    let factor = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => anyhow::bail!("got {text:?}, expected a time such as 1m"),
    };
    Ok(number.parse::<u32>()? * factor)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Native histograms: here are the classic ones.
    const NOT_SIMULATED: [&str; 2] =
        ["backlogd_listener_accept_wait_seconds", "backlogd_sample_duration_seconds"];

    /// Names of series in a query.
    fn named(query: &str) -> impl Iterator<Item = &str> {
        let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
        let words = query.split(move |c| !is_word(c));
        words.filter(|word| word.contains("backlogd_") || word.starts_with("process_"))
    }

    #[test]
    fn each_series_that_is_asked_for_is_simulated() {
        let root = sh::root().expect("a workspace");
        let read = |file: &str| fs::read_to_string(root.join(file)).expect("a file");
        let board: Value = serde_json::from_str(&read(BOARD)).expect("JSON");
        let mut queries: Vec<String> = Vec::new();
        for (_, questions) in panels(&board, 0).into_iter().chain(choices(&board, 0)) {
            queries.extend(questions.into_iter().map(|question| match question {
                Question::Range { expr, .. } | Question::Instant { expr, .. } => expr,
                Question::Values { of, .. } => of,
            }));
        }
        for file in RULES {
            let rules: Rules = serde_norway::from_str(&read(file)).expect("rules");
            queries.extend(rules.groups.into_iter().flat_map(|it| it.rules).map(|it| it.expr));
        }
        let made: BTreeSet<_> = series::FAMILIES.iter().map(|family| family.name).collect();
        for query in &queries {
            // few hosts shed, with few listeners: those cost nothing
            let is_left_out =
                |name: &str| NOT_SIMULATED.contains(&name) || name.starts_with("backlogd_shed_");
            for name in named(query).filter(|name| !is_left_out(name)) {
                assert!(made.contains(name), "{name}: {query}");
            }
        }
        assert!(90 < queries.len(), "{}", queries.len());
    }

    #[test]
    fn a_panel_that_fails_says_why() {
        let row = row("panel: Stalled", &Err(anyhow::anyhow!("query timed out")));
        assert_eq!((&row["met"], &row["how"]), (&json!(false), &json!("query timed out")));
    }

    #[test]
    fn intervals_are_numbers_with_a_unit() {
        assert_eq!(seconds_of("1m").expect("a time"), 60);
        assert!(seconds_of("1 minute").is_err());
    }
}
