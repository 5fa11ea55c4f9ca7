//! What a dashboard is made of; pure. [`Board::json`] lays panels out from left to right, row by row.
//!
//! Form: Grafana's dashboard JSON, schema version 39 (Grafana 10.4; newer ones migrate it by themselves).
//! In an expression `{L}` stands for the selector of listeners, `{L,…}` for that and more labels, `{H}` for
//! the selector of hosts, and `$__rate_interval` is Grafana's.

use serde_json::{Value, json};

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
    /// The name of its series: text with `{{label}}`.
    pub(super) legend: &'static str,
    pub(super) style: Style,
}

/// How the series of a query are drawn.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    Plain,
    /// A dashed line without fill: a limit.
    Limit,
    /// Below the axis.
    Mirrored,
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
    /// To the fleet's, of that host alone.
    Host,
    /// To the dashboard of that host's agent.
    Agent,
    /// The value names neither.
    None,
}

impl Unit {
    const fn name(self) -> &'static str {
        match self {
            Self::Count | Self::Switch => "short",
            Self::PerSecond => "cps",
            Self::Seconds => "s",
            Self::Bytes => "bytes",
            Self::Ratio => "percentunit",
            Self::Since => "dateTimeFromNow",
        }
    }
}

/// Query of one plain series.
pub(super) const fn query(expr: &'static str, legend: &'static str) -> Query {
    Query { expr, legend, style: Style::Plain }
}

/// Query of a limit.
pub(super) const fn limit(expr: &'static str, legend: &'static str) -> Query {
    Query { expr, legend, style: Style::Limit }
}

/// Query that is drawn below the axis.
pub(super) const fn mirrored(expr: &'static str, legend: &'static str) -> Query {
    Query { expr, legend, style: Style::Mirrored }
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

impl Panel {
    fn json(&self, board: &Board, id: u32, [x, y]: [u32; 2]) -> Value {
        let (width, height) = self.size;
        let targets = self.queries.iter().zip('A'..).map(|(it, id)| self.target(board, it, id));
        let mut panel = json!({
            "type": self.form.plugin(), "title": self.title, "description": self.help, "id": id,
            "datasource": datasource(),
            "gridPos": {"x": x, "y": y, "w": width, "h": height},
            "targets": targets.collect::<Vec<_>>(),
            "options": self.form.options(),
            "fieldConfig": {"defaults": self.defaults(), "overrides": self.overrides()},
        });
        if self.form == Form::Table {
            panel["transformations"] = json!([
                {"id": "merge", "options": {}},
                {"id": "organize", "options": {"excludeByName": {"Time": true, "job": true}}},
            ]);
        }
        panel
    }

    fn target(&self, board: &Board, query: &Query, id: char) -> Value {
        let is_instant = matches!(self.form, Form::Table | Form::BarGauge);
        let format = match self.form {
            Form::Heatmap => "heatmap",
            Form::Table => "table",
            Form::Stat | Form::Lines | Form::Stacked | Form::BarGauge | Form::StateTimeline => {
                "time_series"
            }
        };
        json!({
            "refId": id.to_string(), "datasource": datasource(), "expr": board.expand(query.expr),
            "legendFormat": query.legend, "editorMode": "code", "format": format,
            "instant": is_instant, "range": !is_instant,
        })
    }

    fn defaults(&self) -> Value {
        let mut steps = vec![json!({"color": self.calm(), "value": null})];
        if let Some((yellow, red)) = self.limits {
            // of two that are the same the last one counts
            steps.push(json!({"color": "orange", "value": yellow}));
            steps.push(json!({"color": "red", "value": red}));
        }
        let mode = if self.limits.is_some() && self.form != Form::Lines {
            "thresholds"
        } else {
            "palette-classic"
        };
        let mut defaults = json!({
            "unit": self.unit.name(), "noValue": self.empty, "min": 0, "color": {"mode": mode},
            "thresholds": {"mode": "absolute", "steps": steps}, "links": self.link.json(self.form),
            "mappings": [], "custom": self.form.custom(self.limits.is_some()),
        });
        if self.unit == Unit::Ratio && self.form == Form::BarGauge {
            defaults["max"] = json!(1);
        }
        if self.unit == Unit::Switch {
            defaults["mappings"] = json!([{"type": "value", "options": {
                "0": {"text": "no", "color": "green", "index": 0},
                "1": {"text": "yes", "color": "red", "index": 1},
            }}]);
        }
        if self.queries.iter().any(|it| it.style == Style::Mirrored) {
            drop(defaults.as_object_mut().and_then(|it| it.remove("min")));
        }
        defaults
    }

    const fn calm(&self) -> &'static str {
        match self.form {
            Form::Stat if self.limits.is_none() => "text",
            Form::Stat
            | Form::Lines
            | Form::Stacked
            | Form::BarGauge
            | Form::Table
            | Form::Heatmap
            | Form::StateTimeline => "green",
        }
    }

    /// How single queries are drawn.
    fn overrides(&self) -> Vec<Value> {
        let styled = self.queries.iter().zip('A'..).filter(|(it, _)| it.style != Style::Plain);
        styled
            .map(|(query, id)| {
                let properties = match query.style {
                    Style::Plain => json!([]),
                    Style::Limit => json!([
                        {"id": "custom.lineStyle", "value": {"fill": "dash", "dash": [10, 10]}},
                        {"id": "custom.fillOpacity", "value": 0},
                        {"id": "custom.stacking", "value": {"mode": "none", "group": "A"}},
                        {"id": "color", "value": {"mode": "fixed", "fixedColor": "red"}},
                    ]),
                    Style::Mirrored => json!([
                        {"id": "custom.transform", "value": "negative-Y"},
                    ]),
                };
                let matcher = json!({"id": "byFrameRefID", "options": id.to_string()});
                json!({"matcher": matcher, "properties": properties})
            })
            .collect()
    }
}

impl Form {
    const fn plugin(self) -> &'static str {
        match self {
            Self::Stat => "stat",
            Self::Lines | Self::Stacked => "timeseries",
            Self::BarGauge => "bargauge",
            Self::Table => "table",
            Self::Heatmap => "heatmap",
            Self::StateTimeline => "state-timeline",
        }
    }

    fn options(self) -> Value {
        let reduce = json!({"calcs": ["lastNotNull"], "fields": "", "values": false});
        match self {
            Self::Stat => json!({
                "reduceOptions": reduce, "colorMode": "value", "graphMode": "area",
                "textMode": "auto", "justifyMode": "auto", "orientation": "auto",
            }),
            Self::Lines | Self::Stacked => json!({
                "legend": {"displayMode": "table", "placement": "bottom", "showLegend": true,
                    "calcs": ["lastNotNull", "max"]},
                "tooltip": {"mode": "multi", "sort": "desc"},
            }),
            Self::BarGauge => json!({
                "reduceOptions": reduce, "displayMode": "basic", "orientation": "horizontal",
                "showUnfilled": true, "valueMode": "color", "minVizHeight": 16,
            }),
            Self::Table => json!({
                "showHeader": true, "cellHeight": "sm", "sortBy": [{"displayName": "Value", "desc": true}],
            }),
            Self::Heatmap => json!({
                "calculate": false, "cellGap": 1, "legend": {"show": true},
                "color": {"mode": "scheme", "scheme": "Oranges", "scale": "exponential",
                    "exponent": 0.5, "steps": 64, "reverse": false},
                "yAxis": {"unit": "s", "axisPlacement": "left"}, "rowsFrame": {"layout": "auto"},
                "tooltip": {"mode": "single", "yHistogram": true}, "filterValues": {"le": 1e-9},
            }),
            Self::StateTimeline => json!({
                "mergeValues": true, "showValue": "never", "rowHeight": 0.8, "alignValue": "left",
                "legend": {"displayMode": "list", "placement": "bottom", "showLegend": true},
                "tooltip": {"mode": "single", "sort": "none"},
            }),
        }
    }

    fn custom(self, has_limits: bool) -> Value {
        match self {
            Self::Lines | Self::Stacked => {
                let stacking = if self == Self::Stacked { "normal" } else { "none" };
                let fill = if self == Self::Stacked { 40 } else { 10 };
                let limits = if has_limits { "dashed" } else { "off" };
                json!({
                    "drawStyle": "line", "lineWidth": 1, "fillOpacity": fill, "showPoints": "never",
                    "spanNulls": false, "lineInterpolation": "linear", "axisPlacement": "auto",
                    "stacking": {"mode": stacking, "group": "A"},
                    "thresholdsStyle": {"mode": limits},
                })
            }
            Self::Table => json!({"align": "auto", "cellOptions": {"type": "auto"}}),
            Self::StateTimeline => json!({"fillOpacity": 80, "lineWidth": 0}),
            Self::Stat | Self::BarGauge | Self::Heatmap => json!({}),
        }
    }
}

impl Link {
    fn json(self, form: Form) -> Value {
        let (title, uid, labels): (_, _, &[&str]) = match self {
            Self::Listener => (
                "This listener",
                "backlogd-listener",
                &["instance", "netns", "addr", "port", "comm", "namespace", "pod"],
            ),
            Self::Host => ("This host", "backlogd-fleet", &["instance"]),
            Self::Agent => ("Its agent", "backlogd-agent", &["instance"]),
            Self::None => return json!([]),
        };
        let from = if form == Form::Table { "__data.fields" } else { "__field.labels" };
        let labels: String =
            labels.iter().map(|name| format!("&var-{name}=${{{from}.{name}}}")).collect();
        let url = format!("/d/{uid}?${{__url_time_range}}&${{datasource:queryparam}}{labels}");
        json!([{"title": title, "url": url, "targetBlank": false}])
    }
}

fn datasource() -> Value {
    json!({"type": "prometheus", "uid": "${datasource}"})
}

/// From each dashboard to the others, with time and choices.
fn links() -> Value {
    json!([{
        "type": "dashboards", "title": "backlogd", "tags": ["backlogd"], "asDropdown": false,
        "includeVars": true, "keepTime": true, "targetBlank": false, "icon": "external link",
        "tooltip": "", "url": "",
    }])
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
        list.push(json!({
            "name": it.name, "label": it.label, "type": "query", "datasource": datasource(),
            "definition": query, "query": {"query": query, "refId": "StandardVariableQuery"},
            "hide": 0, "includeAll": true, "allValue": ".*", "multi": true, "refresh": 2,
            "regex": "", "sort": 3, "options": [],
            "current": {"selected": true, "text": ["All"], "value": ["$__all"]},
        }));
    }
    list
}
