//! What a panel looks like in Grafana; pure. [`Panel::json`] is one panel of a dashboard.
//!
//! Here are the choices that are the same on all boards: colours, columns of tables, legends, axes.

use serde_json::{Value, json};

use super::board::{Board, Form, Panel, Query, Style, Unit};

/// Labels as tables have them from left to right.
const LABELS: [&str; 19] = [
    "severity",
    "alert",
    "event",
    "tier",
    "name",
    "setting",
    "version",
    "commit",
    "instance",
    "comm",
    "addr",
    "port",
    "dst",
    "dst_port",
    "namespace",
    "pod",
    "container",
    "what",
    "netns",
];

/// Values of labels that have the same colour wherever they are, as cells and as series.
const COLOURS: [(&str, &[(&str, &str)]); 3] = [
    ("severity", &[("critical", "red"), ("warning", "orange")]),
    ("tier", &[("sampled", "yellow"), ("none", "orange")]),
    (
        "reason",
        &[
            ("accept_queue_full_syn", "red"),
            ("accept_queue_full_ack", "orange"),
            ("syn_queue_full", "yellow"),
            ("other", "purple"),
            ("unspecified", "dark-red"),
        ],
    ),
];

impl Panel {
    /// The panel, with its upper left corner.
    pub(super) fn json(&self, board: &Board, id: u32, [x, y]: [u32; 2]) -> Value {
        let (width, height) = self.size;
        let targets = self.queries.iter().zip('A'..).map(|(it, id)| self.target(board, it, id));
        let mut panel = json!({
            "type": self.form.plugin(), "title": self.title, "description": self.help, "id": id,
            "datasource": datasource(),
            "gridPos": {"x": x, "y": y, "w": width, "h": height},
            "targets": targets.collect::<Vec<_>>(),
            "options": self.options(),
            "fieldConfig": {"defaults": self.defaults(), "overrides": self.overrides()},
        });
        if self.form == Form::Table {
            panel["transformations"] = self.columns();
        }
        panel
    }

    /// What the form says, and what depends on the queries.
    fn options(&self) -> Value {
        let mut options = self.form.options();
        match self.form {
            Form::Lines | Form::Stacked if !self.has_room_for_a_table() => {
                options["legend"]["displayMode"] = json!("list");
                options["legend"]["calcs"] = json!([]);
            }
            Form::Stat if self.limits.is_none() => options["graphMode"] = json!("none"),
            Form::Table => options["sortBy"] = self.order(),
            Form::Lines
            | Form::Stacked
            | Form::Stat
            | Form::BarGauge
            | Form::Heatmap
            | Form::StateTimeline => {}
        }
        options
    }

    /// Whether newest and highest value of each line can stand below the lines.
    fn has_room_for_a_table(&self) -> bool {
        let is_one_line = |query: &Query| !query.legend.contains("{{");
        let (width, height) = self.size;
        12 <= width && 8 <= height && self.queries.len() < 4 && self.queries.iter().all(is_one_line)
    }

    /// Labels in an order that reads as a sentence, then the values, called as their queries are.
    fn columns(&self) -> Value {
        // a PodMonitor adds the last two
        let mut excluded = json!({"Time": true, "__name__": true, "endpoint": true, "node": true});
        if self.link.hidden().is_empty() {
            excluded["job"] = json!(true);
        }
        let mut names = json!({});
        for (query, id) in self.queries.iter().zip('A'..) {
            let ours =
                if self.queries.len() == 1 { "Value".into() } else { format!("Value #{id}") };
            if query.legend.is_empty() {
                excluded[ours] = json!(true);
            } else {
                names[ours] = json!(query.legend);
            }
        }
        let order: serde_json::Map<_, _> =
            LABELS.iter().zip(0..).map(|(&name, at)| (name.into(), json!(at))).collect();
        json!([
            {"id": "merge", "options": {}},
            {"id": "organize", "options": {
                "excludeByName": excluded, "indexByName": order, "renameByName": names,
            }},
        ])
    }

    /// The worst first: what lasts least, what is most, or `critical`, which the alphabet has first.
    fn order(&self) -> Value {
        let Some(first) = self.queries.first() else { return json!([]) };
        let is_most = !first.expr.starts_with("bottomk") && !first.legend.is_empty();
        let name = if first.legend.is_empty() { "severity" } else { first.legend };
        json!([{"displayName": name, "desc": is_most}])
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
        let is_plot = matches!(self.form, Form::Lines | Form::Stacked);
        let by_limits = self.limits.is_some() && self.form != Form::Lines;
        let mode =
            if self.form == Form::Stat || by_limits { "thresholds" } else { "palette-classic" };
        let mut defaults = json!({
            "unit": self.unit.name(), "noValue": self.empty, "color": {"mode": mode},
            "thresholds": {"mode": "absolute", "steps": steps}, "links": self.link.json(self.form),
            "mappings": [], "custom": self.form.custom(self.limits.is_some()),
        });
        if is_plot {
            // a line of zeros is on the floor, and what is below is seen
            defaults["custom"]["axisSoftMin"] = json!(0);
            defaults["custom"]["axisSoftMax"] = json!(self.unit.least_axis());
            if self.form == Form::Lines && 1 < self.queries.len() {
                defaults["custom"]["fillOpacity"] = json!(0);
            }
        } else {
            defaults["min"] = json!(0);
        }
        if self.unit == Unit::Ratio && !is_plot {
            defaults["decimals"] = json!(1);
        }
        if self.unit == Unit::Ratio && self.form == Form::BarGauge {
            defaults["max"] = json!(1);
        }
        if self.unit == Unit::Switch {
            defaults["mappings"] = json!([{"type": "value", "options": {
                "0": {"text": "no", "color": "green", "index": 0},
                "1": {"text": "yes", "color": "red", "index": 1},
            }}]);
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

    /// How single queries, series and columns are drawn.
    fn overrides(&self) -> Vec<Value> {
        let mut all = self.styles();
        if self.form == Form::Table {
            all.extend(self.cells());
        }
        if let [query] = self.queries {
            let ours =
                COLOURS.iter().filter(|(label, _)| query.legend == format!("{{{{{label}}}}}"));
            all.extend(ours.flat_map(|(_, values)| *values).map(|(name, colour)| {
                let value = json!({"mode": "fixed", "fixedColor": colour});
                by_name(name, &json!([{"id": "color", "value": value}]))
            }));
        }
        all
    }

    /// Columns that are hidden or have colours.
    fn cells(&self) -> Vec<Value> {
        let text = json!({"id": "custom.cellOptions", "value": {"type": "color-text"}});
        let mut all = Vec::new();
        // links need them, people do not
        for name in self.link.hidden() {
            all.push(by_name(name, &json!([{"id": "custom.hidden", "value": true}])));
        }
        for (name, links) in self.link.of_columns() {
            all.push(by_name(name, &json!([{"id": "links", "value": links}])));
        }
        for (label, values) in COLOURS {
            let texts: serde_json::Map<_, _> = values
                .iter()
                .zip(0..)
                .map(|((name, colour), at)| {
                    ((*name).into(), json!({"text": name, "color": colour, "index": at}))
                })
                .collect();
            let mappings = json!([{"type": "value", "options": texts}]);
            all.push(by_name(label, &json!([{"id": "mappings", "value": mappings}, text])));
        }
        if self.limits.is_some() {
            all.extend(self.queries.iter().map(|it| by_name(it.legend, &json!([text]))));
        }
        all
    }

    fn styles(&self) -> Vec<Value> {
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
                    Style::Alarm => json!([
                        {"id": "color", "value": {"mode": "fixed", "fixedColor": "red"}},
                    ]),
                    Style::Mirrored => json!([
                        {"id": "custom.transform", "value": "negative-Y"},
                    ]),
                    // columns are of one frame
                    Style::Counted => {
                        let unit = Unit::Count.name();
                        return by_name(query.legend, &json!([{"id": "unit", "value": unit}]));
                    }
                };
                let matcher = json!({"id": "byFrameRefID", "options": id.to_string()});
                json!({"matcher": matcher, "properties": properties})
            })
            .collect()
    }
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

    /// What an axis reaches at least: below it Grafana gives a line of zeros an axis up to 100.
    const fn least_axis(self) -> f64 {
        match self {
            Self::Count => 4.0,
            Self::PerSecond | Self::Switch | Self::Since => 1.0,
            Self::Seconds => 0.001,
            Self::Bytes => 1024.0,
            Self::Ratio => 0.01,
        }
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
                "text": {"titleSize": 13, "valueSize": 36},
            }),
            Self::Lines | Self::Stacked => json!({
                "legend": {"displayMode": "table", "placement": "bottom", "showLegend": true,
                    "calcs": ["lastNotNull", "max"]},
                "tooltip": {"mode": "multi", "sort": "desc"},
            }),
            Self::BarGauge => json!({
                "reduceOptions": reduce, "displayMode": "basic", "orientation": "horizontal",
                "showUnfilled": true, "valueMode": "color", "minVizHeight": 16, "namePlacement": "auto",
                "text": {"titleSize": 11, "valueSize": 13},
            }),
            Self::Table => json!({
                "showHeader": true, "cellHeight": "sm",
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
                    "drawStyle": "line", "lineWidth": 2, "fillOpacity": fill, "showPoints": "never",
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

fn by_name(name: &str, properties: &Value) -> Value {
    json!({"matcher": {"id": "byName", "options": name}, "properties": properties})
}

/// The one that is chosen above the panels.
pub(super) fn datasource() -> Value {
    json!({"type": "prometheus", "uid": "${datasource}"})
}
