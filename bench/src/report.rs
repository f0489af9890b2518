//! From findings to `results.jsonl` (the latest full run of each scenario, a line each) and `RESULTS.md`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::lab::Subject;
use crate::proc::{self, Machine};
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

/// A bar, and what was measured against it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Bar {
    pub what: String,
    pub at_most: f64,
    pub measured: f64,
}

impl Bar {
    pub fn at_most(what: &str, at_most: f64, measured: f64) -> Self {
        Self { what: what.to_owned(), at_most, measured }
    }

    pub fn met(&self) -> bool {
        self.measured <= self.at_most
    }

    fn line(&self) -> String {
        let verdict = if self.met() { "met" } else { "MISSED" };
        format!("{}: {:.3} of at most {} — {verdict}", self.what, self.measured, self.at_most)
    }
}

/// What one run of a scenario found, and where.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Finding {
    pub scenario: String,
    pub at: String,
    pub commit: String,
    pub machine: Machine,
    /// What others did on the machine meanwhile.
    pub load_average: f64,
    /// How this run was asked for.
    pub invocation: String,
    /// Command lines of the servers and the load.
    pub commands: BTreeMap<String, String>,
    pub tables: Vec<Table>,
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
            load_average: 0.0,
            invocation: std::env::args().skip(1).collect::<Vec<_>>().join(" "),
            commands: BTreeMap::new(),
            tables: Vec::new(),
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
        let _ = writeln!(
            out,
            "{}, commit {}, Linux {kernel}, {cpu}, {cores} cores, {} GiB, load average {:.1}, `bench/run {}`.\n",
            self.at,
            self.commit,
            memory_mib.div_ceil(1024),
            self.load_average,
            self.invocation
        );
        for table in &self.tables {
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
    work for its sends, the receiver's half on loopback included. What was tried, and what it brought, is in `NOTES.md`.\n";

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

/// `RESULTS.md` out of `results.jsonl`.
pub fn write_results(folder: &Path) -> Result<()> {
    let mut out = HEAD.to_owned();
    for finding in load(&folder.join("results.jsonl"))? {
        let _ = write!(out, "\n{}", finding.markdown());
    }
    Ok(fs::write(folder.join("RESULTS.md"), out)?)
}
