//! What a dashboard is made of; pure. [`Board::json`] lays panels out from left to right, row by row.
//!
//! Form: Grafana's dashboard JSON, schema version 39 (Grafana 10.4; newer ones migrate it by themselves).
//! In an expression `{L}` stands for the selector of listeners, `{L,…}` for that and more labels, `{H}` for
//! the selector of hosts, and `$__rate_interval` and `$__range` are Grafana's. A plot of the
//! ten worst asks for the worst of the whole range: `topk` alone would choose others at each step.

use serde_json::{Value, json};

use super::{link::RUNBOOKS, panel::datasource};

/// How many columns a dashboard has.
const COLUMNS: u32 = 24;

/// One dashboard.
pub(super) struct Board {
    /// Names it in links, for ever.
    pub(super) uid: &'static str,
    pub(super) title: &'static str,
    /// The question that it answers.
    pub(super) help: &'static str,
    pub(super) variables: &'static [Variable],
    pub(super) rows: &'static [Row],
}

/// A choice above the panels.
#[derive(Clone, Copy)]
pub(super) struct Variable {
    pub(super) name: &'static str,
    pub(super) label: &'static str,
    /// A metric whose label of this name has the choices.
    pub(super) of: &'static str,
}

/// Panels under one heading.
pub(super) struct Row {
    pub(super) title: &'static str,
    pub(super) panels: &'static [Panel],
}

/// One panel.
pub(super) struct Panel {
    pub(super) title: &'static str,
    /// What its numbers are, in the words of the metrics.
    pub(super) help: &'static str,
    pub(super) form: Form,
    pub(super) unit: Unit,
    /// Columns, of 24, and lines of 30 pixels.
    pub(super) size: (u32, u32),
    pub(super) queries: &'static [Query],
    /// What stands there when there is nothing.
    pub(super) empty: &'static str,
    /// From which value on it is yellow, and red.
    pub(super) limits: Option<(f64, f64)>,
    pub(super) link: Link,
}

/// One query of a panel.
pub(super) struct Query {
    pub(super) expr: &'static str,
    /// The name of its series: text with `{{label}}`. In a table the heading of its values, which are not
    /// shown without one.
    pub(super) legend: &'static str,
    pub(super) style: Style,
}

/// How the series of a query are drawn.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    Plain,
    /// A dashed line without fill: a limit.
    Limit,
    /// Red: there should be none.
    Alarm,
    /// Below the axis.
    Mirrored,
    /// A column of plain numbers beside those of the panel's unit.
    Counted,
}

/// What a panel looks like.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Stat,
    Lines,
    Stacked,
    BarGauge,
    /// Newest values, one row for each series.
    Table,
    Heatmap,
    StateTimeline,
}

/// Grafana's names of units.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    Count,
    PerSecond,
    Seconds,
    Bytes,
    /// 1 is all.
    Ratio,
    /// 0 or 1.
    Switch,
    /// A time since 1970.
    Since,
}

/// Where a click on a value leads.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Link {
    /// To that listener's dashboard, with time and labels.
    Listener,
    /// What an alert is about: to its host, from its name to its runbook, from its address to its listener.
    Alert,
    /// To the page of that name.
    Runbook(&'static str),
    /// To the fleet's, of that host alone.
    Host,
    /// To the dashboard of that host's agent.
    Agent,
    /// The value names neither.
    None,
}

/// Query of one plain series.
pub(super) const fn query(expr: &'static str, legend: &'static str) -> Query {
    Query { expr, legend, style: Style::Plain }
}

/// Query of a limit.
pub(super) const fn limit(expr: &'static str, legend: &'static str) -> Query {
    Query { expr, legend, style: Style::Limit }
}

/// Query of what should not be.
pub(super) const fn alarm(expr: &'static str, legend: &'static str) -> Query {
    Query { expr, legend, style: Style::Alarm }
}

/// Query that is drawn below the axis.
pub(super) const fn mirrored(expr: &'static str, legend: &'static str) -> Query {
    Query { expr, legend, style: Style::Mirrored }
}

/// Query of a column of plain numbers.
pub(super) const fn counted(expr: &'static str, legend: &'static str) -> Query {
    Query { expr, legend, style: Style::Counted }
}

impl Board {
    /// The dashboard as Grafana reads it.
    pub(super) fn json(&self) -> Value {
        let mut panels = Vec::new();
        let (mut y, mut id) = (0, 0);
        for row in self.rows {
            id += 1;
            panels.push(json!({
                "type": "row", "title": row.title, "id": id, "collapsed": false, "panels": [],
                "gridPos": {"x": 0, "y": y, "w": COLUMNS, "h": 1},
            }));
            y += 1;
            let (mut x, mut tallest) = (0, 0);
            for panel in row.panels {
                let (width, height) = panel.size;
                if COLUMNS < x + width {
                    (x, y, tallest) = (0, y + tallest, 0);
                }
                id += 1;
                panels.push(panel.json(self, id, [x, y]));
                x += width;
                tallest = tallest.max(height);
            }
            y += tallest;
        }
        json!({
            "uid": self.uid, "title": self.title, "description": self.help, "id": null,
            "schemaVersion": 39, "version": 1, "editable": true, "tags": ["backlogd"],
            "timezone": "browser", "time": {"from": "now-1h", "to": "now"}, "refresh": "30s",
            "graphTooltip": 1, "links": links(), "panels": panels,
            "annotations": {"list": [annotation(self)]},
            "templating": {"list": templating(self)},
        })
    }

    /// The expression with its selectors.
    pub(super) fn expand(&self, expr: &str) -> String {
        let selector = |names: &[&str]| {
            let ours = self.variables.iter().map(|it| it.name).filter(|it| names.contains(it));
            ours.map(|name| format!("{name}=~\"${name}\"")).collect::<Vec<_>>().join(",")
        };
        let host = selector(&["job", "instance"]);
        let listener = selector(&[
            "job",
            "instance",
            "netns",
            "addr",
            "port",
            "comm",
            "namespace",
            "pod",
            "container",
        ]);
        expr.replace("{L", &format!("{{{listener}")).replace("{H", &format!("{{{host}"))
    }
}

/// From each dashboard to the others, with time and choices, and to the runbooks.
fn links() -> Value {
    json!([
        {
            "type": "dashboards", "title": "backlogd", "tags": ["backlogd"], "asDropdown": false,
            "includeVars": true, "keepTime": true, "targetBlank": false, "icon": "external link",
            "tooltip": "", "url": "",
        },
        {
            "type": "link", "title": "Runbooks", "tags": [], "asDropdown": false,
            "includeVars": false, "keepTime": false, "targetBlank": true, "icon": "doc",
            "tooltip": "What each alert means, and what to do", "url": format!("{RUNBOOKS}README.md"),
        },
    ])
}

/// Where an alert fires.
fn annotation(board: &Board) -> Value {
    json!({
        "name": "Alerts", "enable": true, "hide": false, "iconColor": "red",
        "datasource": datasource(), "expr": board.expand("backlogd_alert_firing{L} == 1"),
        "titleFormat": "{{alert}}", "textFormat": "{{comm}} {{addr}}:{{port}} on {{instance}}",
        "step": "30s",
    })
}

/// The choices; each narrows those after it.
fn templating(board: &Board) -> Vec<Value> {
    let mut list = vec![json!({
        "name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus",
        "hide": 0, "includeAll": false, "multi": false, "regex": "", "refresh": 1,
        "current": {}, "options": [],
    })];
    for (at, it) in board.variables.iter().enumerate() {
        let before: Vec<_> = board.variables[..at]
            .iter()
            .map(|before| format!("{name}=~\"${name}\"", name = before.name))
            .collect();
        let query = format!("label_values({}{{{}}}, {})", it.of, before.join(","), it.name);
        let mut choice = json!({
            "name": it.name, "label": it.label, "type": "query", "datasource": datasource(),
            "definition": query, "query": {"query": query, "refId": "StandardVariableQuery"},
            "hide": 0, "includeAll": true, "multi": true, "refresh": 2,
            "regex": "", "sort": 3, "options": [],
            "current": {"selected": true, "text": ["All"], "value": ["$__all"]},
        });
        // all jobs are those that are listed: other targets have `up` and `process_*`, too
        if it.name != "job" {
            choice["allValue"] = json!(".*");
        }
        list.push(choice);
    }
    list
}
