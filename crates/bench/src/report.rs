//! Medians, ratios, and the three ways they are shown: a table, JSON, an SVG.

use std::fmt::Write;

use serde_json::{Value, json};

use crate::engine::Run;
use crate::work::Work;

/// The runs of one line: `runs[peer][round]`.
#[derive(Debug)]
pub struct Line {
    /// What was done.
    pub work: Work,
    /// One list of rounds for each peer.
    pub runs: Vec<Vec<Run>>,
}

/// What it was measured on.
#[derive(Debug)]
pub struct Setting {
    /// Names of the peers, in the order of the columns.
    pub peers: Vec<String>,
    /// Sentences about machine, kernel, versions, settings.
    pub facts: Vec<String>,
}

/// The middle one of an odd number, the lower middle of an even one.
pub fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all.get(all.len().saturating_sub(1) / 2).copied().unwrap_or(0.0)
}

/// One figure of a line: rows of the table.
#[derive(Debug)]
pub struct Row {
    /// What the table calls it.
    pub name: String,
    /// The unit of `values`.
    pub unit: &'static str,
    /// Medians, one for each peer.
    pub values: Vec<f64>,
    /// Whether less is better (latency).
    pub less_is_better: bool,
}

impl Row {
    /// How many times better the first peer is than this one.
    pub fn ratio(&self, peer: usize) -> f64 {
        let (ours, theirs) = (self.values[0], self.values[peer]);
        if self.less_is_better {
            theirs / ours
        } else {
            ours / theirs
        }
    }
}

/// The table's rows of a line.
pub fn rows(line: &Line) -> Vec<Row> {
    let pick = |figure: fn(&Run) -> f64, scale: f64| -> Vec<f64> {
        line.runs
            .iter()
            .map(|runs| median(runs.iter().map(figure).collect()) * scale)
            .collect()
    };
    if line.work.is_latency() {
        let row = |what, values| Row {
            name: format!("{}: {what}", line.work.name),
            unit: "µs",
            values,
            less_is_better: true,
        };
        return vec![
            row("median", pick(|run| run.median, 1e-3)),
            row("p99", pick(|run| run.p99, 1e-3)),
        ];
    }
    let (scale, unit) = line.work.unit();
    let values = pick(|run| run.rate, scale);
    vec![Row {
        name: line.work.name.to_string(),
        unit,
        values,
        less_is_better: false,
    }]
}

fn figure(value: f64) -> String {
    match value {
        v if v >= 1e6 => format!("{:.2} M", v / 1e6),
        v if v >= 1e4 => format!("{:.0} k", v / 1e3),
        v if v >= 1e3 => format!("{:.1} k", v / 1e3),
        v if v >= 100.0 => format!("{v:.0}"),
        v => format!("{v:.2}"),
    }
}

/// The table as a person reads it on a terminal; the first peer is the one the ratios are about.
pub fn table(setting: &Setting, rows: &[Row]) -> String {
    let mut out = String::new();
    for fact in &setting.facts {
        let _ = writeln!(out, "{fact}");
    }
    let _ = write!(out, "\n{:<48} {:>9}", "", "");
    for peer in &setting.peers {
        let _ = write!(out, " {peer:>12}");
    }
    for peer in &setting.peers[1..] {
        let _ = write!(out, " {:>14}", format!("vs {peer}"));
    }
    out.push('\n');
    for row in rows {
        let _ = write!(out, "{:<48} {:>9}", row.name, row.unit);
        for value in &row.values {
            let _ = write!(out, " {:>12}", figure(*value));
        }
        for peer in 1..row.values.len() {
            let _ = write!(out, " {:>14}", format!("{:.2}x", row.ratio(peer)));
        }
        out.push('\n');
    }
    out
}

/// Every run, for whoever wants to compute something else.
pub fn json(setting: &Setting, lines: &[Line]) -> Value {
    let lines: Vec<Value> = lines
        .iter()
        .map(|line| {
            let peers: Vec<Value> = setting
                .peers
                .iter()
                .zip(&line.runs)
                .map(|(peer, runs)| {
                    let pick = |figure: fn(&Run) -> f64| runs.iter().map(figure).collect::<Vec<_>>();
                    json!({
                        "peer": peer,
                        "operations_per_second": pick(|run| run.rate),
                        "median_ns": pick(|run| run.median),
                        "p99_ns": pick(|run| run.p99),
                    })
                })
                .collect();
            json!({ "work": line.work.name, "peers": peers })
        })
        .collect();
    json!({ "setting": setting.facts, "lines": lines })
}

const COLOURS: [&str; 5] = ["#0b7285", "#adb5bd", "#e8590c", "#5c940d", "#ced4da"];

/// The table drawn: for each row a bar per peer, as long as its ratio to ours (logarithmic).
pub fn svg(setting: &Setting, rows: &[Row], skip: &[&str]) -> String {
    let shown: Vec<usize> = (0..setting.peers.len())
        .filter(|&p| !skip.contains(&setting.peers[p].as_str()))
        .collect();
    let (left, width, bar, gap) = (330.0, 620.0, 11.0, 10.0);
    let block = bar * shown.len() as f64 + gap;
    let top = 74.0;
    let height = top + block * rows.len() as f64 + 24.0 + 15.0 * setting.facts.len() as f64;
    let mut out = String::new();
    let _ = writeln!(
        out,
        r#"<svg xmlns="http://www.w3.org/2000/svg" width="1060" height="{height}" font-family="sans-serif" font-size="12">
<rect width="100%" height="100%" fill="white"/>
<text x="20" y="28" font-size="18" font-weight="bold">vhost-user-9p beside its peers: speed relative to {} (logarithmic)</text>"#,
        setting.peers[0]
    );
    for (number, &peer) in shown.iter().enumerate() {
        let x = left + 170.0 * number as f64;
        let name = &setting.peers[peer];
        let colour = COLOURS[peer % COLOURS.len()];
        let _ = writeln!(
            out,
            r#"<rect x="{x}" y="42" width="12" height="12" fill="{colour}"/><text x="{}" y="52">{name}</text>"#,
            x + 17.0
        );
    }
    for (number, row) in rows.iter().enumerate() {
        let y = top + block * number as f64;
        let _ = writeln!(
            out,
            r#"<text x="{}" y="{}" text-anchor="end">{}</text>"#,
            left - 10.0,
            y + block / 2.0 - 1.0,
            row.name
        );
        for (place, &peer) in shown.iter().enumerate() {
            let relative = 1.0 / row.ratio(peer);
            // Two decades below ours to one above.
            let long = ((relative.log10() + 2.2) / 3.0 * width).clamp(2.0, width);
            let y = y + bar * place as f64;
            let colour = COLOURS[peer % COLOURS.len()];
            let _ = writeln!(
                out,
                r#"<rect x="{left}" y="{y}" width="{long:.1}" height="{:.1}" fill="{colour}"/><text x="{:.1}" y="{:.1}" font-size="10">{} {}</text>"#,
                bar - 1.5,
                left + long + 5.0,
                y + bar - 2.5,
                figure(row.values[peer]),
                row.unit
            );
        }
    }
    let mut y = top + block * rows.len() as f64 + 18.0;
    for fact in &setting.facts {
        let _ = writeln!(
            out,
            r##"<text x="20" y="{y}" font-size="10" fill="#495057">{fact}</text>"##
        );
        y += 14.0;
    }
    out.push_str("</svg>\n");
    out
}
