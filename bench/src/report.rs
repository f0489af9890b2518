//! From findings to `results.jsonl` (the latest full run of each scenario, a line each), `RESULTS.md` and its plots.
//! Owns the form of tables, bars and ratios. Measures nothing.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::lab::Subject;
use crate::plot;
use crate::proc::{self, Machine, Others};
use crate::scenario::Series;

/// Rows of text under a title.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Table {
    pub title: String,
    pub columns: Vec<String>,
    pub rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new(title: &str, columns: &[&str]) -> Self {
        let columns = columns.iter().map(|&column| column.to_owned()).collect();
        Self { title: title.to_owned(), columns, rows: Vec::new() }
    }

    /// As Markdown, padded so that it reads well as plain text too.
    pub fn markdown(&self) -> String {
        let width = |at: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(at)).chain(self.columns.get(at));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        let line = |cells: &[String]| {
            let padded: Vec<String> = cells
                .iter()
                .zip(&widths)
                .enumerate()
                .map(
                    |(at, (cell, &width))| {
                        if at == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
                    },
                )
                .collect();
            format!("| {} |\n", padded.join(" | "))
        };
        let rule = |at: usize, width: usize| {
            if at == 0 { "-".repeat(width + 2) } else { format!("{}:", "-".repeat(width + 1)) }
        };
        let rules: Vec<String> = widths.iter().enumerate().map(|(at, &width)| rule(at, width)).collect();
        let mut out = line(&self.columns);
        let _ = writeln!(out, "|{}|", rules.join("|"));
        self.rows.iter().for_each(|row| out.push_str(&line(row)));
        out
    }
}

/// What a bar asks for. In JSON one key, `at_most` or `at_least`, beside those of the bar.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    AtMost(f64),
    AtLeast(f64),
}

/// A bar, and what was measured against it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Bar {
    pub what: String,
    #[serde(flatten)]
    pub limit: Limit,
    pub measured: f64,
}

impl Bar {
    pub fn at_most(what: &str, at_most: f64, measured: f64) -> Self {
        Self { what: what.to_owned(), limit: Limit::AtMost(at_most), measured }
    }

    pub fn at_least(what: &str, at_least: f64, measured: f64) -> Self {
        Self { what: what.to_owned(), limit: Limit::AtLeast(at_least), measured }
    }

    /// What is not a number meets nothing.
    pub fn met(&self) -> bool {
        match self.limit {
            Limit::AtMost(limit) => self.measured <= limit,
            Limit::AtLeast(limit) => self.measured >= limit,
        }
    }

    fn limit_text(&self) -> String {
        match self.limit {
            Limit::AtMost(limit) => format!("at most {limit}"),
            Limit::AtLeast(limit) => format!("at least {limit}"),
        }
    }

    fn verdict(&self) -> &'static str {
        if self.met() { "met" } else { "MISSED" }
    }

    fn line(&self) -> String {
        format!("{}: {} of {} — {}", self.what, decimals(self.measured), self.limit_text(), self.verdict())
    }
}

/// As many decimals as tell something.
fn decimals(value: f64) -> String {
    match value.abs() {
        size if size >= 1_000.0 => format!("{value:.0}"),
        size if size >= 100.0 => format!("{value:.1}"),
        size if size >= 10.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Better {
    Less,
    More,
}

/// One quantity of several servers under the same load: becomes a table with the ratios to the floor and to each peer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Figure {
    pub what: String,
    pub unit: String,
    pub better: Better,
    /// Servers by name, as plots name them: `floor`, `pushline`, a peer's name.
    pub of: Vec<(String, f64)>,
}

const FLOOR: &str = "floor";
const COALESCING_FLOOR: &str = "floor-coalescing";
const OURS: &str = "pushline";

impl Figure {
    pub fn new(what: &str, unit: &str, better: Better) -> Self {
        Self { what: what.to_owned(), unit: unit.to_owned(), better, of: Vec::new() }
    }

    #[must_use]
    pub fn with(mut self, server: &str, value: f64) -> Self {
        self.of.push((server.to_owned(), value));
        self
    }

    fn value_of(&self, server: &str) -> Option<f64> {
        self.of.iter().find(|(name, _)| name == server).map(|&(_, value)| value)
    }

    /// The best first; beside each value its ratio to the floor's, and what Pushline's is of it.
    pub fn table(&self) -> Table {
        let mut table =
            Table::new(&self.what, &["server", self.unit.as_str(), "× floor", "Pushline's ÷ this"]);
        let mut ranked: Vec<&(String, f64)> = self.of.iter().collect();
        ranked.sort_by(|a, b| match self.better {
            Better::Less => a.1.total_cmp(&b.1),
            Better::More => b.1.total_cmp(&a.1),
        });
        let floor = self.value_of(FLOOR).or_else(|| self.value_of(COALESCING_FLOOR));
        let ours = self.value_of(OURS);
        let ratio = |of: Option<f64>, to: f64| match of {
            Some(of) if to != 0.0 => format!("{:.3}", of / to),
            _ => "–".to_owned(),
        };
        for (name, value) in ranked {
            let to_floor = floor.map_or("–".to_owned(), |floor| ratio(Some(*value), floor));
            let to_this = if name == OURS { "–".to_owned() } else { ratio(ours, *value) };
            table.rows.push(vec![name.clone(), decimals(*value), to_floor, to_this]);
        }
        table
    }
}

/// What one run of a scenario found, and where.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Finding {
    pub scenario: String,
    pub at: String,
    pub commit: String,
    pub machine: Machine,
    /// What others had of the machine meanwhile.
    #[serde(default)]
    pub others: Option<Others>,
    /// How this run was asked for.
    pub invocation: String,
    /// Command lines of the servers and the load.
    pub commands: BTreeMap<String, String>,
    pub tables: Vec<Table>,
    /// Tables of ratios, after the others.
    #[serde(default)]
    pub figures: Vec<Figure>,
    pub bars: Vec<Bar>,
    /// What makes a figure doubtful.
    pub doubts: Vec<String>,
    pub samples: Vec<Value>,
}

fn said_by(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).current_dir(env!("CARGO_MANIFEST_DIR")).output();
    output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
}

impl Finding {
    pub fn new(scenario: &str) -> Self {
        let mut commit = said_by("git", &["rev-parse", "--short=10", "HEAD"]);
        if !said_by("git", &["status", "--porcelain", "--untracked-files=no", "--", "../src"]).is_empty() {
            commit.push_str(" with changes");
        }
        Self {
            scenario: scenario.to_owned(),
            at: said_by("date", &["-u", "+%Y-%m-%d %H:%M UTC"]),
            commit,
            machine: proc::machine(),
            others: None,
            invocation: std::env::args().skip(1).collect::<Vec<_>>().join(" "),
            commands: BTreeMap::new(),
            tables: Vec::new(),
            figures: Vec::new(),
            bars: Vec::new(),
            doubts: Vec::new(),
            samples: Vec::new(),
        }
    }

    /// A load that has no time left is measured instead of the server: say so.
    pub fn note_busy_client(&mut self, subject: Subject, busy: f64, busy_max: f64) {
        if busy > busy_max {
            self.doubts.push(format!(
                "{}: the load was busy {:.0} % of the time",
                subject.name(),
                busy * 100.0
            ));
        }
    }

    /// Keeps each round's figures, and a doubt for each that lost or repeated a message.
    pub fn keep_samples(&mut self, label: &str, taken: &[Series]) {
        for series in taken {
            for round in &series.rounds {
                if let Some(fault) = round.outcome.fault() {
                    self.doubts.push(format!("{label}, {}: {fault}", series.subject.name()));
                }
                self.samples.push(json!({
                    "label": label, "subject": series.subject, "order": series.order,
                    "server_cpu": round.server_cpu, "outcome": round.outcome,
                }));
            }
        }
    }

    /// Tables, bars and doubts as Markdown.
    pub fn markdown(&self) -> String {
        let mut out = format!("## {}\n\n", self.scenario);
        let Machine { kernel, cpu, cores, memory_mib } = &self.machine;
        let others = self.others.map_or_else(String::new, |Others { programs, neighbours }| {
            format!(
                " (other programs had {:.1} % of them, neighbours {:.1} %)",
                programs * 100.0,
                neighbours * 100.0
            )
        });
        let _ = writeln!(
            out,
            "{}, commit {}, Linux {kernel}, {cpu}, {cores} cores{others}, {} GiB, `bench/run {}`.\n",
            self.at,
            self.commit,
            memory_mib.div_ceil(1024),
            self.invocation
        );
        let ratios: Vec<Table> = self.figures.iter().map(Figure::table).collect();
        for table in self.tables.iter().chain(&ratios) {
            let _ = writeln!(out, "{}:\n\n{}", table.title, table.markdown());
        }
        self.bars.iter().for_each(|bar| {
            let _ = writeln!(out, "- {}", bar.line());
        });
        self.doubts.iter().for_each(|doubt| {
            let _ = writeln!(out, "- Doubt: {doubt}");
        });
        if !self.commands.is_empty() {
            out.push_str("\n```\n");
            self.commands.iter().for_each(|(name, command)| {
                let _ = writeln!(out, "{name}: {}", relative(command));
            });
            out.push_str("```\n");
        }
        out
    }
}

/// Without the folder of this clone.
fn relative(command: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("/"));
    command.replace(&format!("{}/", root.display()), "")
}

const HEAD: &str = "# Results\n\n\
    Generated by `bench/run`; do not edit. Of each scenario the latest full run; samples of every round are in\n\
    `results.jsonl`. `floor` is `src/bin/floor.rs`, the least a server can do; \"× floor\" is the median of the ratios of\n\
    rounds that ran one after the other. CPU is the scheduler's run time of all threads of the server, the kernel's\n\
    work for its sends, the receiver's half on loopback included. What the peers are, and what they do not do, is in\n\
    `peers/`; what was tried, and what it brought, in `NOTES.md`.\n";

/// Every bar of every scenario, missed ones too.
fn bars(findings: &[Finding]) -> String {
    let mut table = Table::new("Bars", &["scenario", "what", "bar", "measured", ""]);
    for finding in findings {
        for bar in &finding.bars {
            let verdict = if bar.met() { "met".to_owned() } else { "**missed**".to_owned() };
            let measured = decimals(bar.measured);
            table.rows.push(vec![
                finding.scenario.clone(),
                bar.what.clone(),
                bar.limit_text(),
                measured,
                verdict,
            ]);
        }
    }
    if table.rows.is_empty() { String::new() } else { format!("\n## Bars\n\n{}", table.markdown()) }
}

/// Plots with their figures folded below.
fn plots(folder: &Path, findings: &[Finding]) -> Result<String> {
    let samples = findings.iter().flat_map(|finding| &finding.samples);
    let mut out = String::new();
    for plot in plot::write_plots(folder, samples)? {
        if out.is_empty() {
            out.push_str("\n## How cost and memory grow\n");
        }
        let plot::Plot { file, title, tables } = plot;
        let _ = write!(out, "\n![{title}]({file})\n\n<details><summary>The figures: {title}</summary>\n");
        tables.iter().for_each(|table| {
            let _ = write!(out, "\n{}:\n\n{}", table.title, table.markdown());
        });
        out.push_str("\n</details>\n");
    }
    Ok(out)
}

/// Puts a finding in the place of the last one of its scenario, and writes `RESULTS.md` anew.
pub fn save(folder: &Path, finding: &Finding) -> Result<()> {
    let path = folder.join("results.jsonl");
    let mut findings = load(&path)?;
    findings.retain(|kept| kept.scenario != finding.scenario);
    findings.push(finding.clone());
    findings.sort_by(|a, b| a.scenario.cmp(&b.scenario));
    let lines: Vec<String> = findings.iter().map(serde_json::to_string).collect::<Result<_, _>>()?;
    fs::write(&path, lines.join("\n") + "\n").with_context(|| format!("writing {}", path.display()))?;
    write_results(folder)
}

fn load(path: &Path) -> Result<Vec<Finding>> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines()
        .map(|line| serde_json::from_str(line).with_context(|| format!("a line of {}", path.display())))
        .collect()
}

/// `RESULTS.md` and its plots out of `results.jsonl`.
pub fn write_results(folder: &Path) -> Result<()> {
    let findings = load(&folder.join("results.jsonl"))?;
    let mut out = format!("{HEAD}{}{}", bars(&findings), plots(folder, &findings)?);
    for finding in &findings {
        let _ = write!(out, "\n{}", finding.markdown());
    }
    Ok(fs::write(folder.join("RESULTS.md"), out)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_has_a_side() {
        for (name, bar, met) in [
            ("below a most", Bar::at_most("x", 1.05, 1.04), true),
            ("above a most", Bar::at_most("x", 1.05, 1.06), false),
            ("below a least", Bar::at_least("x", 1.5, 1.4), false),
            ("at a least", Bar::at_least("x", 1.5, 1.5), true),
            ("nothing measured, most", Bar::at_most("x", 1.0, f64::NAN), false),
            ("nothing measured, least", Bar::at_least("x", 1.0, f64::NAN), false),
        ] {
            assert_eq!(bar.met(), met, "{name}");
        }
    }

    #[test]
    fn bars_keep_their_form_in_json() {
        let line = r#"{"what":"x","at_most":1.15,"measured":1.01}"#;
        let bar: Bar = serde_json::from_str(line).unwrap();
        assert_eq!((bar.limit, bar.measured), (Limit::AtMost(1.15), 1.01));
        assert_eq!(serde_json::to_string(&bar).unwrap(), line);
        let bar = Bar::at_least("y", 2.0, 3.0);
        let again: Bar = serde_json::from_str(&serde_json::to_string(&bar).unwrap()).unwrap();
        assert_eq!(again.limit, Limit::AtLeast(2.0));
    }

    #[test]
    fn ratios_are_to_the_floor_and_to_each() {
        let figure = Figure::new("cost", "µs", Better::Less)
            .with("axum", 20.0)
            .with("pushline", 8.0)
            .with("floor", 10.0);
        let rows = figure.table().rows;
        assert_eq!(rows[0], ["pushline", "8.000", "0.800", "–"]);
        assert_eq!(rows[1], ["floor", "10.00", "1.000", "0.800"]);
        assert_eq!(rows[2], ["axum", "20.00", "2.000", "0.400"]);
        let figure =
            Figure::new("publishes", "1/s", Better::More).with("nchan", 50_000.0).with("pushline", 90_000.0);
        assert_eq!(figure.table().rows[0], ["pushline", "90000", "–", "–"]);
        assert_eq!(figure.table().rows[1], ["nchan", "50000", "–", "1.800"]);
    }
}
